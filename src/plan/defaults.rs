//! Values that an INSERT leaves to its table's defaults, where they must be known before a row has its shard: where they
//! belong in the statement's text. Pure.
//!
//! What must stay true: the text with the values in it does what the client's text does on one PostgreSQL whose defaults
//! gave these values, and every value stands in one place. A column that gets values of the client's and of ours is
//! taken for the client's.

use crate::{
    catalog::{
        computed::{Computed, DrawnBy, Sequence, Sought, Source},
        effects::Effects,
    },
    sql::{
        normalize::Slot,
        scan::{Kind, Piece, pieces},
        tree::{Body, Expr, Insert, Overriding},
    },
};
use std::ops::Range;

/// What an INSERT leaves to be computed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Computes {
    /// Columns that its rows say nothing of: they are added to its list.
    added: Vec<Computed>,
    replaced: Vec<Replaced>,
    /// How many rows there are; `None`: DEFAULT VALUES.
    rows: Option<usize>,
    list: List,
    system: System,
    /// Columns whose values are all ours.
    ours: Vec<String>,
    /// Where names of sequences are looked for.
    path: Vec<String>,
}

/// A value of a row that is given by us.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Replaced {
    row: usize,
    place: usize,
    by: Replacement,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Replacement {
    /// DEFAULT stands there.
    Default(Source),
    /// `nextval('…')` or `shardway.next_id()`.
    Call,
}

/// Whether the statement lists its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum List {
    Written,
    Absent,
}

/// Whether OVERRIDING SYSTEM VALUE has to be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    AsItIs,
    Overridden,
}

/// The table that rows are inserted into, as the plan knows it.
pub(super) struct Into<'a> {
    pub(super) effects: &'a Effects,
    /// Of a sharded table.
    pub(super) key: Option<&'a str>,
    /// The column whose place in rows without a list is sure, at the front.
    pub(super) first: Option<&'a str>,
    pub(super) path: &'a [String],
}

impl Computes {
    /// What has to be computed for the rows of this statement; `None`: nothing, or it cannot be.
    pub(super) fn find(
        insert: &Insert,
        own: &str,
        slots: &[Slot],
        into: &Into<'_>,
    ) -> Option<Self> {
        let rows: Option<&[Vec<Expr>]> = match &insert.source {
            None => None,
            Some(query) => match &query.body {
                Body::Values(rows) if query.ctes.is_empty() => Some(rows),
                Body::Values(_) | Body::Select(_) | Body::SetOperation(_) => return None,
            },
        };
        if insert.overriding == Overriding::UserValue {
            return None;
        }
        let mut found = Self {
            added: Vec::new(),
            replaced: Vec::new(),
            rows: rows.map(<[_]>::len),
            list: if insert.columns.is_some() {
                List::Written
            } else {
                List::Absent
            },
            system: System::AsItIs,
            ours: Vec::new(),
            path: into.path.to_vec(),
        };
        let first: Vec<String> = into.first.iter().map(|&first| first.to_owned()).collect();
        let columns = insert.columns.as_deref().unwrap_or(&first);
        for computed in &into.effects.computed {
            found.fill(computed, columns, rows)?;
        }
        found.calls(own, slots)?;
        let nothing = found.added.is_empty() && found.replaced.is_empty();
        let key_left_out = into.key.is_some_and(|key| {
            !columns.iter().any(|column| column == key) && !found.ours.iter().any(|our| our == key)
        });
        if nothing || key_left_out || !found.overrides(insert, into.effects, columns, rows) {
            return None;
        }
        found.draft(own, slots)?;
        Some(found)
    }

    /// Gives a column its values, where the rows give none; `None`: it cannot be told which do.
    fn fill(
        &mut self,
        computed: &Computed,
        columns: &[String],
        rows: Option<&[Vec<Expr>]>,
    ) -> Option<()> {
        let place = columns.iter().position(|column| *column == computed.column);
        match (rows, place) {
            (None, _) | (Some(_), None) if rows.is_none() || self.list == List::Written => {
                self.added.push(computed.clone());
                self.ours.push(computed.column.clone());
            }
            // Which of the values is this column's is not sure.
            (_, None) => return None,
            (rows, Some(place)) => {
                let rows = rows.unwrap_or_default();
                let left = (0..)
                    .zip(rows)
                    .filter(|(_, row)| matches!(row.get(place), None | Some(Expr::Default)));
                let before = self.replaced.len();
                self.replaced.extend(left.map(|(row, _)| Replaced {
                    row,
                    place,
                    by: Replacement::Default(computed.by.clone()),
                }));
                if self.replaced.len() - before == rows.len() {
                    self.ours.push(computed.column.clone());
                }
            }
        }
        Some(())
    }

    /// Finds calls that stand for a value.
    fn calls(&mut self, own: &str, slots: &[Slot]) -> Option<()> {
        let pieces = pieces(own, slots)?;
        let layout = Layout::of(&pieces, self.list)?;
        for (row, elements) in (0..).zip(layout.rows(self.rows)?) {
            for (place, element) in (0..).zip(elements.values) {
                if call(&pieces[element], &self.path).is_some() {
                    let by = Replacement::Call;
                    self.replaced.push(Replaced { row, place, by });
                }
            }
        }
        Some(())
    }

    /// Whether the values of identity columns are all ours where PostgreSQL would take none of the client's.
    fn overrides(
        &mut self,
        insert: &Insert,
        effects: &Effects,
        columns: &[String],
        rows: Option<&[Vec<Expr>]>,
    ) -> bool {
        let always = |column: &&String| effects.always.contains(*column);
        let needed = self.added.iter().map(|added| &added.column);
        let replaced = self
            .replaced
            .iter()
            .filter_map(|one| columns.get(one.place));
        let needed = needed.chain(replaced).any(|column| always(&column));
        if !needed || insert.overriding == Overriding::SystemValue {
            return true;
        }
        self.system = System::Overridden;
        let given = |column: &String| {
            let place = columns.iter().position(|other| other == column);
            let values = rows.unwrap_or_default().iter();
            place.is_some_and(|place| {
                let mut values = values.map(|row| row.get(place));
                values.any(|value| !matches!(value, None | Some(Expr::Default)))
            })
        };
        effects.always.iter().all(|column| !given(column)) && self.list_is_sure(effects)
    }

    /// Without a list it is not known which other identity columns rows have values for.
    fn list_is_sure(&self, effects: &Effects) -> bool {
        self.list == List::Written || self.rows.is_none() || effects.always.len() == 1
    }

    /// Columns that the client gives no value.
    #[must_use]
    pub fn ours(&self) -> &[String] {
        &self.ours
    }

    /// Where the values belong in a text of the same template; `None`: it is not such a text.
    #[must_use]
    pub fn draft(&self, text: &str, slots: &[Slot]) -> Option<Draft> {
        let pieces = pieces(text, slots)?;
        let layout = Layout::of(&pieces, self.list)?;
        let mut draft = Draft {
            edits: Vec::new(),
            needs: Vec::new(),
            parameters: pieces
                .iter()
                .filter_map(Piece::parameter)
                .max()
                .unwrap_or(0),
        };
        let names = || -> String {
            let names = self.added.iter().map(|added| quote(&added.column));
            names.collect::<Vec<_>>().join(", ")
        };
        let Some(count) = self.rows else {
            draft.replace(layout.values(), format!("({})", names()));
            if self.system == System::Overridden {
                draft.write(" OVERRIDING SYSTEM VALUE");
            }
            draft.write(" VALUES (");
            for (at, added) in self.added.iter().enumerate() {
                draft.write(if at == 0 { "" } else { ", " });
                draft.need(added.by.clone());
            }
            draft.write(")");
            return Some(draft);
        };
        if !self.added.is_empty() {
            draft.insert(layout.list_end?, format!(", {}", names()));
        }
        if self.system == System::Overridden {
            draft.insert(layout.values().start, "OVERRIDING SYSTEM VALUE ".to_owned());
        }
        for (row, elements) in (0..).zip(layout.rows(Some(count))?) {
            let mut own: Vec<&Replaced> =
                self.replaced.iter().filter(|one| one.row == row).collect();
            own.sort_by_key(|one| one.place);
            for replaced in own {
                let element = elements.values.get(replaced.place)?.clone();
                let by = match &replaced.by {
                    Replacement::Default(by) => by.clone(),
                    Replacement::Call => call(&pieces[element.clone()], &self.path)?,
                };
                draft.replace(place(&pieces, &element)?, String::new());
                draft.need(by);
            }
            if !self.added.is_empty() {
                draft.insert(elements.end, String::new());
            }
            for added in &self.added {
                draft.write(", ");
                draft.need(added.by.clone());
            }
        }
        Some(draft)
    }
}

/// A text with places for values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Draft {
    /// In order: what is left out of the text, and what stands there instead.
    edits: Vec<(Range<usize>, Vec<Fragment>)>,
    needs: Vec<Source>,
    /// The highest number of a parameter.
    parameters: u16,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fragment {
    Text(String),
    Value(usize),
}

impl Draft {
    /// What the values come from, in order.
    #[must_use]
    pub fn needs(&self) -> &[Source] {
        &self.needs
    }

    /// The highest number of a parameter.
    #[must_use]
    pub fn parameters(&self) -> u16 {
        self.parameters
    }

    /// The text with these values.
    #[must_use]
    pub fn with_values(&self, text: &str, values: &[String]) -> String {
        self.written(text, |at| {
            let value = values.get(at).map_or("", String::as_str);
            let kind = self.needs.get(at).map_or("", Source::type_name);
            format!("'{value}'::{kind}")
        })
    }

    /// The text with parameters in place of values, the first of them with this number.
    #[must_use]
    pub fn with_parameters(&self, text: &str, first: usize) -> String {
        self.written(text, |at| {
            let kind = self.needs.get(at).map_or("", Source::type_name);
            format!("${}::{kind}", first + at)
        })
    }

    fn written(&self, text: &str, value: impl Fn(usize) -> String) -> String {
        let mut made = String::with_capacity(text.len() + 32 * self.needs.len());
        let mut at = 0;
        for (place, fragments) in &self.edits {
            made.push_str(&text[at..place.start]);
            for fragment in fragments {
                match fragment {
                    Fragment::Text(text) => made.push_str(text),
                    Fragment::Value(at) => made.push_str(&value(*at)),
                }
            }
            at = place.end;
        }
        made.push_str(&text[at..]);
        made
    }

    fn replace(&mut self, place: Range<usize>, text: String) {
        self.edits.push((place, vec![Fragment::Text(text)]));
    }

    fn insert(&mut self, at: usize, text: String) {
        self.replace(at..at, text);
    }

    /// Behind what was written last.
    fn write(&mut self, text: &str) {
        if let Some((_, fragments)) = self.edits.last_mut() {
            fragments.push(Fragment::Text(text.to_owned()));
        }
    }

    fn need(&mut self, source: Source) {
        let at = self.needs.len();
        if let Some((_, fragments)) = self.edits.last_mut() {
            fragments.push(Fragment::Value(at));
            self.needs.push(source);
        }
    }
}

/// A statement that asks for what its session drew last, with places for these numbers; `None`: not understood.
#[must_use]
pub fn asking(text: &str, slots: &[Slot], path: &[String]) -> Option<Draft> {
    let pieces = pieces(text, slots)?;
    let mut draft = Draft {
        edits: Vec::new(),
        needs: Vec::new(),
        parameters: pieces
            .iter()
            .filter_map(Piece::parameter)
            .max()
            .unwrap_or(0),
    };
    // Elsewhere its name may be seen.
    let inserts = pieces.first()?.is("insert");
    for at in 0..pieces.len() {
        let called = pieces.get(at + 1).is_some_and(|next| next.is_sign("("));
        let name = pieces[at].folded();
        if !called || !matches!(name.as_str(), "currval" | "lastval") {
            continue;
        }
        let end = closing(&pieces, at + 1)?;
        let qualified = at >= 2 && pieces[at - 1].is_sign(".");
        if qualified && pieces[at - 2].folded() != "pg_catalog" {
            return None;
        }
        let sought = match (name.as_str(), end - at) {
            ("lastval", 2) => None,
            ("currval", _) => Some(Sought::Written {
                name: sequence_of(&pieces[at..=end], "currval")?,
                path: path.to_vec(),
            }),
            _ => return None,
        };
        let start = if qualified { at - 2 } else { at };
        let (before, behind) = if inserts {
            (String::new(), "")
        } else {
            (format!("shardway.{name}("), ")")
        };
        draft.replace(pieces[start].start..pieces[end].end, before);
        draft.need(Source::Drawn(sought));
        draft.write(behind);
    }
    (!draft.needs.is_empty()).then_some(draft)
}

/// The parts of an INSERT that matter, by piece.
struct Layout<'p> {
    pieces: &'p [Piece<'p>],
    /// Where the column list ends, before its parenthesis.
    list_end: Option<usize>,
    /// VALUES, or DEFAULT VALUES.
    values: Range<usize>,
}

/// One row, by piece.
struct Row {
    values: Vec<Range<usize>>,
    /// Where it ends in the text, before its parenthesis.
    end: usize,
}

impl<'p> Layout<'p> {
    fn of(pieces: &'p [Piece<'p>], list: List) -> Option<Self> {
        let is = |at: usize, word: &str| pieces.get(at).is_some_and(|piece| piece.is(word));
        let sign = |at: usize, sign: &str| pieces.get(at).is_some_and(|piece| piece.is_sign(sign));
        let begins = |at: &usize| pieces[*at].depth == 0 && is(*at, "insert") && is(at + 1, "into");
        // Behind INSERT INTO, then behind the table's name.
        let mut at = (0..pieces.len()).find(begins)? + 3;
        while sign(at, ".") {
            at += 2;
        }
        if is(at, "as") {
            at += 2;
        }
        let mut list_end = None;
        if list == List::Written {
            sign(at, "(").then_some(())?;
            at = closing(pieces, at)?;
            list_end = Some(pieces[at].start);
            at += 1;
        }
        if is(at, "overriding") {
            at += 3;
        }
        let start = at;
        if is(at, "default") {
            at += 1;
        }
        is(at, "values").then_some(Self {
            pieces,
            list_end,
            values: start..at + 1,
        })
    }

    /// VALUES in the text.
    fn values(&self) -> Range<usize> {
        self.pieces[self.values.start].start..self.pieces[self.values.end - 1].end
    }

    /// The rows, if there are so many; `None` asked for: there are none.
    fn rows(&self, count: Option<usize>) -> Option<Vec<Row>> {
        let Some(count) = count else {
            return Some(Vec::new());
        };
        let sign =
            |at: usize, sign: &str| self.pieces.get(at).is_some_and(|piece| piece.is_sign(sign));
        let (mut rows, mut at) = (Vec::with_capacity(count), self.values.end);
        loop {
            sign(at, "(").then_some(())?;
            let end = closing(self.pieces, at)?;
            rows.push(Row {
                values: self.elements(at + 1..end),
                end: self.pieces[end].start,
            });
            at = end + 1;
            if !sign(at, ",") {
                break;
            }
            at += 1;
        }
        (rows.len() == count).then_some(rows)
    }

    fn elements(&self, inside: Range<usize>) -> Vec<Range<usize>> {
        let (mut found, mut from) = (Vec::new(), inside.start);
        let depth = self.pieces.get(inside.start).map_or(0, |piece| piece.depth);
        for at in inside.clone() {
            if self.pieces[at].depth == depth && self.pieces[at].is_sign(",") {
                found.push(from..at);
                from = at + 1;
            }
        }
        found.push(from..inside.end);
        found
    }
}

/// The parenthesis that ends what begins here.
fn closing(pieces: &[Piece<'_>], open: usize) -> Option<usize> {
    let depth = pieces.get(open)?.depth;
    (open + 1..pieces.len()).find(|at| pieces[*at].depth == depth && pieces[*at].is_sign(")"))
}

/// Where pieces stand in the text.
fn place(pieces: &[Piece<'_>], range: &Range<usize>) -> Option<Range<usize>> {
    let last = pieces.get(range.end.checked_sub(1)?)?;
    Some(pieces.get(range.start)?.start..last.end)
}

/// What a value that is nothing but a call comes from: `nextval('…')` or `shardway.next_id()`.
fn call(value: &[Piece<'_>], path: &[String]) -> Option<Source> {
    let words: Vec<String> = value.iter().map(Piece::folded).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if let ["shardway", ".", "next_id", "(", ")"] = words.as_slice() {
        return Some(Source::Id);
    }
    let name = sequence_of(value, "nextval")?;
    // A function of another schema may be meant.
    let shadowed = path.iter().position(|schema| schema == "pg_catalog") > Some(0);
    let qualified = words.first() == Some(&"pg_catalog");
    (qualified || !shadowed).then(|| {
        Source::Sequence(Sequence {
            name: Sought::Written {
                name,
                path: path.to_vec(),
            },
            drawn_by: DrawnBy::Session,
        })
    })
}

/// The name, as written, of the sequence that these pieces, and nothing but they, call this function of.
fn sequence_of(value: &[Piece<'_>], function: &str) -> Option<String> {
    let mut at = 0;
    let mut next = |word: &str| {
        let is = value.get(at).is_some_and(|piece| piece.folded() == word);
        at += usize::from(is);
        is
    };
    if next("pg_catalog") {
        next(".").then_some(())?;
    }
    (next(function) && next("(")).then_some(())?;
    let literal = value.get(at)?;
    let mut at = at + 1;
    let mut next = |word: &str| {
        let is = value.get(at).is_some_and(|piece| piece.folded() == word);
        at += usize::from(is);
        is
    };
    if next(":") {
        next(":").then_some(())?;
        if next("pg_catalog") {
            next(".").then_some(())?;
        }
        next("regclass").then_some(())?;
    }
    (next(")") && at == value.len()).then_some(())?;
    let inside = literal.text.strip_prefix('\'')?.strip_suffix('\'')?;
    let plain = literal.kind == Kind::Literal && !inside.contains('\\');
    plain.then(|| inside.replace("''", "'"))
}

/// The names of the sequences that a text draws from; `None`: of some it is not known.
#[must_use]
pub(super) fn sequences(text: &str, slots: &[Slot]) -> Option<Vec<String>> {
    let pieces = pieces(text, slots)?;
    let calls = (0..pieces.len()).filter(|at| {
        let next = pieces.get(at + 1);
        pieces[*at].folded() == "nextval" && next.is_some_and(|next| next.is_sign("("))
    });
    calls
        .map(|at| sequence_of(&pieces[at..=closing(&pieces, at + 1)?], "nextval"))
        .collect()
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::snapshot::TableName,
        sql::{normalize::Strings, parse::parse, scan::slots_of, tree},
    };

    fn effects(always: &[&str]) -> Effects {
        let sequence = |name: &str| {
            Source::Sequence(Sequence {
                name: Sought::Known(TableName {
                    schema: "public".to_owned(),
                    name: name.to_owned(),
                }),
                drawn_by: DrawnBy::Session,
            })
        };
        let computed = |column: &str, by| Computed {
            column: column.to_owned(),
            by,
        };
        Effects {
            computed: vec![computed("id", sequence("s")), computed("n", Source::Id)],
            always: always.iter().map(|&name| name.to_owned()).collect(),
            ..Effects::default()
        }
    }

    fn rewritten(text: &str, always: &[&str]) -> Option<String> {
        let slots = slots_of(text, Strings::Standard);
        let parsed = parse(text).ok()?;
        let tree::Kind::Insert(insert) = &parsed[0].kind else {
            return None;
        };
        let effects = effects(always);
        let into = Into {
            effects: &effects,
            key: Some("id"),
            first: Some("id"),
            path: &["public".to_owned()],
        };
        let computes = Computes::find(insert, text, &slots, &into)?;
        let draft = computes.draft(text, &slots)?;
        let values: Vec<String> = (1..=draft.needs().len()).map(|n| n.to_string()).collect();
        let with = draft.with_values(text, &values);
        assert!(parse(&with).is_ok(), "{with}");
        assert!(parse(&draft.with_parameters(text, 7)).is_ok());
        Some(with.replace("::pg_catalog.int8", ""))
    }

    #[test]
    fn what_rows_leave_out_is_written_into_them() {
        for (text, expected) in [
            (
                "insert into t (a) values (7)",
                "insert into t (a, \"id\", \"n\") values (7, '1', '2')",
            ),
            (
                "INSERT INTO public.\"t\" AS x (a, n) VALUES (f(1, 2), 5), ((3), DEFAULT) RETURNING id",
                "INSERT INTO public.\"t\" AS x (a, n, \"id\") VALUES (f(1, 2), 5, '1'), ((3), '2', '3') RETURNING id",
            ),
            (
                "insert into t (id, n, a) values (default, 1, 2)",
                "insert into t (id, n, a) values ('1', 1, 2)",
            ),
            (
                "insert into t default values",
                "insert into t (\"id\", \"n\") VALUES ('1', '2')",
            ),
            (
                "insert into t (id, n) values (nextval('s'::regclass), shardway.next_id())",
                "insert into t (id, n) values ('1', '2')",
            ),
            (
                "with insert as (select 1) insert into t (a, n) values (pg_catalog.nextval('x.\"S\"'), 1)",
                "with insert as (select 1) insert into t (a, n, \"id\") values ('1', 1, '2')",
            ),
        ] {
            assert_eq!(rewritten(text, &[]).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_given_or_not_sure_is_left_alone() {
        for text in [
            "insert into t (id, n) values (1, 2)",
            "insert into t (a) select 1",
            "insert into t values (default, 2)",
            "insert into t (a) overriding user value values (1)",
            "insert into t (id, n) values (nextval('s') + 1, 2)",
        ] {
            assert_eq!(rewritten(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn generated_always_is_overridden_where_all_values_are_ours() {
        assert_eq!(
            rewritten("insert into t (n) values (1)", &["id"]).as_deref(),
            Some("insert into t (n, \"id\") OVERRIDING SYSTEM VALUE values (1, '1')")
        );
        assert_eq!(
            rewritten("insert into t default values", &["id"]).as_deref(),
            Some("insert into t (\"id\", \"n\") OVERRIDING SYSTEM VALUE VALUES ('1', '2')")
        );
        for text in [
            "insert into t (id, n) values (default, 1), (2, 1)",
            "insert into t (n) values (1)",
        ] {
            let always: &[&str] = if text.contains("(n)") {
                &["id", "n"]
            } else {
                &["id"]
            };
            assert_eq!(rewritten(text, always), None, "{text}");
        }
    }

    #[test]
    fn what_was_drawn_is_written_where_it_is_asked_for() {
        let told = |text: &str| {
            let slots = slots_of(text, Strings::Standard);
            let draft = asking(text, &slots, &["public".to_owned()])?;
            Some(draft.with_values(text, &["7".to_owned(), "8".to_owned()]))
        };
        assert_eq!(
            told("select currval('s'), pg_catalog.lastval() where 'lastval()' = $1").unwrap(),
            "select shardway.currval('7'::pg_catalog.int8), shardway.lastval('8'::pg_catalog.int8) where 'lastval()' = $1"
        );
        assert_eq!(
            told("insert into t values (lastval(), 1)").unwrap(),
            "insert into t values ('7'::pg_catalog.int8, 1)"
        );
        for text in ["select currval($1)", "select my.lastval()", "select 1"] {
            assert_eq!(told(text), None, "{text}");
        }
    }

    #[test]
    fn sequences_are_known_by_their_names() {
        let names = |text: &str| {
            let slots = slots_of(text, Strings::Standard);
            sequences(text, &slots)
        };
        assert_eq!(names("select nextval('a.b')").unwrap(), ["a.b"]);
        assert_eq!(names("select nextval($1)"), None);
        assert_eq!(names("select nextval('a' || 'b')"), None);
    }
}
