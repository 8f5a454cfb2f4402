//! What each shard is sent of a statement while rows of its tables are also on shards that do not own them: every scan of
//! such a table carries the condition that the shard owns the row. Pure.
//!
//! What must stay true: a relation keeps its name, its columns, its row type and its system columns, so that the rest of
//! the statement means what it meant; no scan is left without its condition, and what cannot carry it is refused. A
//! relation in FROM becomes `(t AS x JOIN (SELECT) AS … ON owned)`: a join with one row of no columns.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "commands read and change no rows of their own here"
)]

use super::{
    Context,
    block::{Analysis, Place},
    scope::{Instance, Usage},
    spread::quote,
    unroutable::{Undoubled, Unroutable},
};
use crate::{
    catalog::{
        group::{Group, GroupId},
        shard::ShardId,
        snapshot::{Snapshot, Table},
    },
    sql::{
        normalize::{Slots, Strings, normalize},
        parse,
        scan::{Kind as Sort, Piece, pieces},
        tree::{Kind, Name, Statement},
    },
};
use std::ops::Range;

/// One text as each shard is sent it.
#[derive(Clone, Debug)]
pub struct PerShard {
    text: String,
    /// Of shards that have rows which they do not own.
    others: Vec<Other>,
}

/// The text for one shard.
#[derive(Clone, Debug)]
struct Other {
    shard: ShardId,
    text: String,
    /// In order: where it differs in the text, in characters, how many are left out there, and how many put in.
    changes: Vec<(usize, usize, usize)>,
}

impl PerShard {
    /// What the shards are sent of a statement that concerns several of them.
    ///
    /// # Errors
    /// [`Unroutable::Doubled`]: some scan cannot carry the condition.
    pub fn of(
        text: String,
        context: &Context,
        snapshot: &Snapshot,
    ) -> Result<Self, Box<Unroutable>> {
        let doubled = snapshot.groups.iter().find(|group| group.is_doubled());
        let others = match doubled {
            None => Vec::new(),
            Some(group) => others(&text, context, snapshot, group)?,
        };
        Ok(Self { text, others })
    }

    /// What this shard is sent.
    #[must_use]
    pub fn on(&self, shard: ShardId) -> &str {
        self.other(shard)
            .map_or(&self.text, |other| other.text.as_str())
    }

    /// Where a place in what the shard was sent stands in the text, both in characters from 1; `None`: nowhere.
    #[must_use]
    pub fn own_place(&self, shard: ShardId, place: usize) -> Option<usize> {
        let Some(other) = self.other(shard) else {
            return Some(place);
        };
        let place = place.checked_sub(1)?;
        // How far what follows has been shifted.
        let (mut added, mut left_out) = (0, 0);
        for (at, out, new) in &other.changes {
            let here = at + added - left_out;
            if place < here {
                break;
            }
            if place < here + new {
                return None;
            }
            added += new;
            left_out += out;
        }
        Some(place + left_out - added + 1)
    }

    fn other(&self, shard: ShardId) -> Option<&Other> {
        self.others.iter().find(|other| other.shard == shard)
    }
}

impl Group {
    /// Whether rows of some keys are also on a shard that does not own them.
    #[must_use]
    pub fn is_doubled(&self) -> bool {
        !self.doubled.is_empty()
    }
}

/// `COPY table … TO …` taken apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableCopy<'a> {
    before: &'a str,
    table: &'a str,
    /// Columns, if they are listed: as they are listed, and each.
    list: Option<(&'a str, Vec<String>)>,
    behind: &'a str,
}

impl<'a> TableCopy<'a> {
    /// `None`: it is none.
    #[must_use]
    pub fn of(text: &'a str) -> Option<Self> {
        let slots = slots_of(text, Strings::Standard);
        let pieces = pieces(text, &slots)?;
        pieces.first().filter(|piece| piece.is("copy"))?;
        let to = |piece: &Piece<'_>| piece.depth == 0 && piece.is("to");
        let to = pieces.iter().position(to)?;
        let named = pieces.get(1..to)?;
        let open = named.iter().position(|piece| piece.is_sign("("));
        let name = named.get(..open.unwrap_or(named.len()))?;
        let (start, end) = (name.first()?.start, name.last()?.end);
        let list = match open {
            Some(open) => {
                let list = named.get(open + 1..named.len() - 1)?;
                let text = text.get(list.first()?.start..list.last()?.end)?;
                Some((text, columns_of(list)?))
            }
            None => None,
        };
        Some(Self {
            before: text.get(..start)?,
            table: text.get(start..end)?,
            list,
            behind: text.get(pieces.get(to)?.start..)?,
        })
    }

    /// Asks for what the table is, and for the columns that a COPY without a list has.
    #[must_use]
    pub fn question(&self) -> String {
        let table = format!("'{}'", self.table.replace('\'', "''"));
        format!(
            "SELECT c.relkind::pg_catalog.text || (SELECT coalesce(pg_catalog.string_agg(a.attname::pg_catalog.text, pg_catalog.chr(1) \
             ORDER BY a.attnum), '') FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 \
             AND NOT a.attisdropped AND a.attgenerated = '') FROM pg_catalog.pg_class c \
             WHERE c.oid = {table}::pg_catalog.regclass"
        )
    }

    /// The COPY of a query that reads the same, by the answer to [`Self::question`]; `None`: it may not be made.
    #[must_use]
    pub fn of_query(&self, answer: &str) -> Option<String> {
        let Self {
            before,
            table,
            list,
            behind,
        } = self;
        let (kind, all) = answer.split_at_checked(1)?;
        let all: Vec<&str> = all.split('\u{1}').filter(|name| !name.is_empty()).collect();
        let each = list.as_ref().map(|(_, each)| each.as_slice());
        let fits = each
            .unwrap_or_default()
            .iter()
            .enumerate()
            .all(|(at, name)| {
                let twice = each.is_some_and(|each| each[..at].contains(name));
                all.contains(&name.as_str()) && !twice
            });
        let listed = list.as_ref().map(|(text, _)| *text);
        match kind {
            "r" if fits => {
                let all = || all.iter().map(|name| quote(name)).collect::<Vec<_>>();
                let columns = listed.map_or_else(|| all().join(", "), str::to_owned);
                Some(format!(
                    "{before}(SELECT {columns} FROM ONLY {table}) {behind}"
                ))
            }
            // PostgreSQL refuses it.
            "r" | "p" | "v" | "f" | "S" => {
                let listed = listed.map_or_else(String::new, |list| format!(" ({list})"));
                Some(format!("{before}{table}{listed} {behind}"))
            }
            _ => None,
        }
    }
}

/// The names of a list; `None`: not understood.
fn columns_of(list: &[Piece<'_>]) -> Option<Vec<String>> {
    const LONGEST: usize = 63;
    let each = list.split(|piece| piece.is_sign(","));
    let name = |item: &[Piece<'_>]| match item {
        [name] if matches!(name.kind, Sort::Word | Sort::Quoted) => {
            Some(name.folded()).filter(|name| name.len() <= LONGEST)
        }
        _ => None,
    };
    each.map(name).collect()
}

/// The texts of shards that have rows which they do not own.
fn others(
    text: &str,
    context: &Context,
    snapshot: &Snapshot,
    group: &Group,
) -> Result<Vec<Other>, Box<Unroutable>> {
    let refused = |what| {
        let group = group.name.clone();
        Box::new(Unroutable::Doubled { group, what })
    };
    let statements = parse::parse(text).map_err(|_error| refused(Undoubled::Text))?;
    let [statement] = statements.as_slice() else {
        return Err(refused(Undoubled::Text));
    };
    let Some(kind) = rows(&statement.kind) else {
        return Ok(Vec::new());
    };
    let strings = if context.standard_conforming_strings {
        Strings::Standard
    } else {
        Strings::Escapes
    };
    let slots = slots_of(text, strings);
    let mut analysis = Analysis::new(text.as_bytes(), &slots, context, snapshot);
    analysis.kind(kind, None);
    let is_doubled = |one: &&Instance| snapshot.group(one.group).is_doubled();
    let mut scans: Vec<&Instance> = analysis.instances.iter().filter(is_doubled).collect();
    if scans.is_empty() {
        return Ok(Vec::new());
    }
    // What ends where a change begins stands before it.
    scans.sort_by_key(|one| (one.usage != Usage::Read, one.location));
    scans.dedup_by_key(|one| one.location);
    let pieces = pieces(text, &slots).ok_or_else(|| refused(Undoubled::Text))?;
    let layout = Layout {
        pieces: &pieces,
        statement,
        analysis: &analysis,
    };
    let sites = scans.iter().enumerate().map(|(number, scan)| {
        let site = layout.site(scan, number);
        site.map_err(|what| {
            let group = snapshot.group(scan.group).name.clone();
            Box::new(Unroutable::Doubled { group, what })
        })
    });
    let sites: Vec<Site> = sites.collect::<Result<_, _>>()?;
    let shards = (0..snapshot.shards.len()).filter_map(|at| u16::try_from(at).ok());
    let made = shards.map(|shard| other(text, &sites, ShardId(shard), snapshot));
    made.filter_map(Result::transpose).collect()
}

/// The text for this shard; `None`: it owns all that it has.
fn other(
    text: &str,
    sites: &[Site],
    shard: ShardId,
    snapshot: &Snapshot,
) -> Result<Option<Other>, Box<Unroutable>> {
    let mut edits = Vec::new();
    for site in sites {
        let group = snapshot.group(site.group);
        let owned = group.owned_sql(shard, &site.column).map_err(|_no_sql| {
            Box::new(Unroutable::Doubled {
                group: group.name.clone(),
                what: Undoubled::Hash,
            })
        })?;
        if let Some(owned) = owned {
            edits.extend(site.edits(&owned));
        }
    }
    if edits.is_empty() {
        return Ok(None);
    }
    edits.sort_by_key(|(place, _)| place.start);
    let (mut made, mut changes) = (String::new(), Vec::new());
    let (mut at, mut characters) = (0, 0);
    for (place, new) in edits {
        let kept = text.get(at..place.start).unwrap_or_default();
        made.push_str(kept);
        made.push_str(&new);
        characters += kept.chars().count();
        let out = text.get(place.clone()).unwrap_or_default().chars().count();
        changes.push((characters, out, new.chars().count()));
        characters += out;
        at = place.end;
    }
    made.push_str(text.get(at..).unwrap_or_default());
    Ok(Some(Other {
        shard,
        text: made,
        changes,
    }))
}

/// The query or write that a statement is, holds, or explains; `None`: a command.
fn rows(kind: &Kind) -> Option<&Kind> {
    match kind {
        Kind::Query(_) | Kind::Insert(_) | Kind::Update(_) | Kind::Delete(_) | Kind::Merge(_) => {
            Some(kind)
        }
        Kind::Explain { inner, .. } => rows(inner),
        Kind::Declare { query, .. } => rows(query),
        Kind::Copy(copy) => rows(copy.query.as_deref()?),
        _ => None,
    }
}

fn slots_of(text: &str, strings: Strings) -> Slots {
    let (mut template, mut slots) = (Vec::new(), Slots::new());
    normalize(text.as_bytes(), strings, &mut template, &mut slots);
    slots
}

/// A scan, and where its condition goes.
struct Site {
    group: GroupId,
    /// The key, as SQL names it there.
    column: String,
    way: Way,
}

/// How a scan gets its condition; places in bytes.
enum Way {
    /// In FROM, with its alias: joined with nothing. `table`: the word of `TABLE name`.
    Joined {
        place: Range<usize>,
        table: Option<Range<usize>>,
        number: usize,
    },
    /// In FROM, without its alias: as a query.
    Wrapped { place: Range<usize> },
    /// A condition between these places comes behind it.
    Before { place: Range<usize> },
    /// There is no WHERE: it would stand there.
    Where(usize),
}

impl Site {
    fn edits(&self, owned: &str) -> Vec<(Range<usize>, String)> {
        let at = |at: usize, new: String| (at..at, new);
        match &self.way {
            Way::Joined {
                place,
                table,
                number,
            } => {
                let select = table
                    .as_ref()
                    .map(|word| (word.clone(), "SELECT * FROM".to_owned()));
                let joined = format!(" JOIN (SELECT) AS \"shardway owned {number}\" ON {owned})");
                select
                    .into_iter()
                    .chain([at(place.start, "(".to_owned()), at(place.end, joined)])
                    .collect()
            }
            Way::Wrapped { place } => vec![
                at(place.start, "(SELECT * FROM ".to_owned()),
                at(place.end, format!(" WHERE {owned})")),
            ],
            Way::Before { place } => vec![
                at(place.start, format!(" {owned} AND (")),
                at(place.end, ")".to_owned()),
            ],
            Way::Where(place) => vec![at(*place, format!(" WHERE {owned}"))],
        }
    }
}

/// A statement's text in pieces.
struct Layout<'a> {
    pieces: &'a [Piece<'a>],
    statement: &'a Statement,
    analysis: &'a Analysis<'a>,
}

impl Layout<'_> {
    fn site(&self, scan: &Instance, number: usize) -> Result<Site, Undoubled> {
        let named = self.named(scan).ok_or(Undoubled::Text)?;
        if self.hides_key(scan) {
            return Err(Undoubled::View);
        }
        let key = |called: &str| format!("{}.{}", quote(called), quote(&scan.key));
        let called = scan.alias.as_ref().map_or(&scan.table, |alias| &alias.name);
        let (column, way) = match scan.usage {
            Usage::Changed => (key(called), self.condition(&named, scan)?),
            Usage::Merged => (key(called), self.merged(&named)?),
            Usage::Read => match self.renamed_key(scan) {
                Some(renamed) => {
                    let column = format!("{}.{}", quote(called), quote(&renamed));
                    let place = named.start..self.end_of_item(&named, scan)?;
                    let table = named.table;
                    let way = Way::Joined {
                        place,
                        table,
                        number,
                    };
                    (column, way)
                }
                None => {
                    let sampled = self.piece(named.next_behind_alias(self, scan)?);
                    if sampled.is_some_and(|piece| piece.is("tablesample")) {
                        return Err(Undoubled::ColumnAliases);
                    }
                    let place = named.start..named.end;
                    (key(&scan.table), Way::Wrapped { place })
                }
            },
        };
        let group = scan.group;
        Ok(Site { group, column, way })
    }

    fn piece(&self, at: usize) -> Option<&Piece<'_>> {
        self.pieces.get(at)
    }

    fn is_sign(&self, at: usize, sign: &str) -> bool {
        self.piece(at).is_some_and(|piece| piece.is_sign(sign))
    }

    fn is(&self, at: usize, word: &str) -> bool {
        self.piece(at).is_some_and(|piece| piece.is(word))
    }

    /// Where the relation's name stands, with ONLY and the star.
    fn named(&self, scan: &Instance) -> Option<Named> {
        let location = scan.location as usize;
        let first = self
            .pieces
            .iter()
            .position(|piece| piece.start == location)?;
        let mut last = first;
        while self.is_sign(last + 1, ".") {
            last += 2;
        }
        let name = self.piece(last)?;
        let is_name = matches!(name.kind, Sort::Word | Sort::Quoted);
        if !is_name || name.folded() != scan.table {
            return None;
        }
        let (mut from, mut to) = (first, last);
        let before = |at: usize, word: &str| at.checked_sub(1).is_some_and(|at| self.is(at, word));
        let opened = first
            .checked_sub(1)
            .filter(|at| self.is_sign(*at, "(") && before(*at, "only"));
        if let Some(open) = opened {
            if !self.is_sign(last + 1, ")") {
                return None;
            }
            (from, to) = (open - 1, last + 1);
        } else if before(first, "only") {
            from = first - 1;
        } else if self.is_sign(last + 1, "*") {
            to = last + 1;
        }
        let table = from
            .checked_sub(1)
            .and_then(|at| self.piece(at))
            .filter(|piece| piece.is("table"));
        Some(Named {
            start: self.piece(from)?.start,
            end: self.piece(to)?.end,
            depth: self.piece(from)?.depth,
            next: to + 1,
            table: table.map(|piece| piece.start..piece.end),
        })
    }

    /// Whether it is a view that does not show its rows' keys.
    fn hides_key(&self, scan: &Instance) -> bool {
        let table = self.table(scan);
        table.is_some_and(|table| table.nature.is_view() && !table.columns.contains(&scan.key))
    }

    fn table(&self, scan: &Instance) -> Option<&Table> {
        let name = Name {
            schema: scan.schema.clone(),
            name: scan.table.clone(),
        };
        match self.analysis.place(&name) {
            Place::Sharded { table, .. } => Some(table),
            _ => None,
        }
    }

    /// What the key's column is called behind the relation's alias; `None`: not known.
    fn renamed_key(&self, scan: &Instance) -> Option<String> {
        let renames = scan.alias.as_ref().map_or(&[][..], |alias| &alias.columns);
        if renames.is_empty() {
            return Some(scan.key.clone());
        }
        let table = self.table(scan)?;
        let at = table.columns.iter().position(|name| *name == scan.key)?;
        Some(renames.get(at).unwrap_or(&scan.key).clone())
    }

    /// Where the item of FROM ends, with its alias and TABLESAMPLE.
    fn end_of_item(&self, named: &Named, scan: &Instance) -> Result<usize, Undoubled> {
        let mut next = named.next_behind_alias(self, scan)?;
        if self.is(next, "tablesample") {
            next += 1;
            while self.is_sign(next + 1, ".") {
                next += 2;
            }
            next = self.behind_pair(next + 1).ok_or(Undoubled::Text)?;
            if self.is(next, "repeatable") {
                next = self.behind_pair(next + 1).ok_or(Undoubled::Text)?;
            }
        }
        let last = next.checked_sub(1).and_then(|at| self.piece(at));
        last.map(|piece| piece.end).ok_or(Undoubled::Text)
    }

    /// The piece behind a pair of parentheses that opens here.
    fn behind_pair(&self, at: usize) -> Option<usize> {
        let open = self.piece(at).filter(|piece| piece.is_sign("("))?;
        let closes = |piece: &Piece<'_>| piece.depth == open.depth && piece.is_sign(")");
        let length = self.pieces.get(at + 1..)?.iter().position(closes)?;
        Some(at + length + 2)
    }

    /// The pieces of the statement that a written relation stands in, behind it.
    fn behind(&self, named: &Named) -> Range<usize> {
        let ends = |piece: &Piece<'_>| piece.depth < named.depth || piece.is_sign(";");
        let rest = self.pieces.get(named.next..).unwrap_or_default();
        let length = rest.iter().position(ends).unwrap_or(rest.len());
        named.next..named.next + length
    }

    /// The first of these that is this keyword and no name, outside of parentheses.
    fn keyword(&self, range: Range<usize>, depth: u32, word: &str) -> Option<usize> {
        let is = |at: &usize| {
            let name = self.is(*at - 1, "as") || self.is_sign(*at - 1, ".");
            self.piece(*at)
                .is_some_and(|piece| piece.depth == depth && piece.is(word) && !name)
        };
        range.into_iter().find(is)
    }

    /// The condition of an UPDATE or DELETE.
    fn condition(&self, named: &Named, scan: &Instance) -> Result<Way, Undoubled> {
        let alias = named.next_behind_alias(self, scan)?;
        let whole = alias..self.behind(named).end;
        let returning = self.keyword(whole.clone(), named.depth, "returning");
        let end = returning.unwrap_or(whole.end);
        let last = end.checked_sub(1).and_then(|at| self.piece(at));
        let last = last.ok_or(Undoubled::Text)?.end;
        let Some(at) = self.keyword(whole.start..end, named.depth, "where") else {
            return Ok(Way::Where(last));
        };
        if self.is(at + 1, "current") && self.is(at + 2, "of") {
            return Err(Undoubled::CurrentOf);
        }
        let start = self.piece(at).ok_or(Undoubled::Text)?.end;
        Ok(Way::Before { place: start..last })
    }

    /// The condition of a MERGE: the last ON before its actions.
    fn merged(&self, named: &Named) -> Result<Way, Undoubled> {
        if let Some(Kind::Merge(merge)) = rows(&self.statement.kind)
            && merge.by_source
        {
            return Err(Undoubled::MergeBySource);
        }
        let (mut cases, mut on, mut when) = (0_u32, None, None);
        for at in self.behind(named) {
            let Some(piece) = self.piece(at).filter(|piece| piece.depth == named.depth) else {
                continue;
            };
            if piece.is("case") {
                cases += 1;
            } else if piece.is("end") {
                cases = cases.saturating_sub(1);
            } else if piece.is("on") {
                on = Some(at);
            } else if piece.is("when") && cases == 0 {
                when = Some(at);
                break;
            }
        }
        let (Some(on), Some(when)) = (on, when) else {
            return Err(Undoubled::Text);
        };
        let place = || Some(self.piece(on)?.end..self.piece(when.checked_sub(1)?)?.end);
        let place = place().ok_or(Undoubled::Text)?;
        Ok(Way::Before { place })
    }
}

/// Where a relation is named.
struct Named {
    /// Bytes.
    start: usize,
    end: usize,
    depth: u32,
    /// The piece behind it.
    next: usize,
    /// The word of `TABLE name`.
    table: Option<Range<usize>>,
}

impl Named {
    /// The piece behind the alias.
    fn next_behind_alias(&self, layout: &Layout<'_>, scan: &Instance) -> Result<usize, Undoubled> {
        let Some(alias) = &scan.alias else {
            return Ok(self.next);
        };
        let at = self.next + usize::from(layout.is(self.next, "as"));
        let named = layout
            .piece(at)
            .is_some_and(|piece| piece.folded() == alias.name);
        if !named {
            return Err(Undoubled::Text);
        }
        if alias.columns.is_empty() {
            return Ok(at + 1);
        }
        layout.behind_pair(at + 1).ok_or(Undoubled::Text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{
        group::{Map, RangeEntry},
        key::{Key, KeyType},
        moving::{Doubled, KeySet, Part},
        snapshot::{Placement, Table, TableName},
    };

    /// Keys below 10 on s0, of which s1 has those below 5 too.
    fn snapshot() -> Snapshot {
        let shards = vec!["s0".to_owned(), "s1".to_owned()];
        let mut snapshot = Snapshot::new("shop", shards);
        let entry = |to: Option<i64>, shard| RangeEntry {
            to: to.map(Key::Bigint),
            shard: ShardId(shard),
        };
        let keys = KeySet::of(Part::Values(vec![Key::Bigint(1)]));
        snapshot.groups.push(Group {
            name: "g".to_owned(),
            key_type: KeyType::Bigint,
            pins: std::collections::BTreeMap::default(),
            map: Map::range(vec![entry(Some(10), 0), entry(None, 1)]).unwrap(),
            doubled: vec![Doubled {
                shard: ShardId(1),
                keys,
            }],
        });
        for (name, columns) in [("t", vec!["n", "k"]), ("u", vec![]), ("apart", vec![])] {
            let placement = if name == "apart" {
                Placement::Reference
            } else {
                Placement::Sharded {
                    group: GroupId(0),
                    key_column: "k".to_owned(),
                }
            };
            let mut table = Table::unasked(placement);
            table.columns = columns.into_iter().map(str::to_owned).collect();
            let (schema, name) = ("public".to_owned(), name.to_owned());
            snapshot.tables.insert(TableName { schema, name }, table);
        }
        snapshot
    }

    fn made(text: &str) -> PerShard {
        PerShard::of(text.to_owned(), &Context::default(), &snapshot()).unwrap()
    }

    /// What the shard with rows of others is sent; the condition shortened.
    fn sent(text: &str) -> String {
        let made = made(text);
        assert_eq!(made.on(ShardId(0)), text);
        let mut sent = made.on(ShardId(1)).to_owned();
        for called in ["t", "u", "x", "y", "X y"] {
            for key in ["k", "b"] {
                let owned = format!("(((\"{called}\".\"{key}\" IN ('1'::bigint))) IS NOT TRUE)");
                sent = sent.replace(&owned, &format!("own({called}.{key})"));
            }
        }
        sent.replace("JOIN (SELECT) AS \"shardway owned ", "+ \"")
    }

    #[test]
    fn every_scan_in_from_is_joined_with_nothing_on_its_condition() {
        for (text, expected) in [
            ("select * from t", "select * from (t + \"0\" ON own(t.k))"),
            ("table only t", "SELECT * FROM (only t + \"0\" ON own(t.k))"),
            (
                "select * from only (public . t) as x tablesample pg_catalog.system (5) repeatable (1), u y -- c\n where x.k = y.k",
                "select * from (only (public . t) as x tablesample pg_catalog.system (5) repeatable (1) + \"0\" ON own(x.k)), \
                 (u y + \"1\" ON own(y.k)) -- c\n where x.k = y.k",
            ),
            (
                "select 'from t' from apart left join (t full join u * \"X y\" using (k)) on exists (select from t)",
                "select 'from t' from apart left join ((t + \"0\" ON own(t.k)) full join (u * \"X y\" + \"1\" ON own(X y.k)) using (k)) \
                 on exists (select from (t + \"2\" ON own(t.k)))",
            ),
            (
                "with t as (select * from t) select * from t union all select * from public.t",
                "with t as (select * from (t + \"0\" ON own(t.k))) select * from t union all select * from (public.t + \"1\" ON own(t.k))",
            ),
            (
                "select x.b from t x(a, b)",
                "select x.b from (t x(a, b) + \"0\" ON own(x.b))",
            ),
            (
                "select x.b from only u as x(a, b) for update",
                "select x.b from (SELECT * FROM only u WHERE own(u.k)) as x(a, b) for update",
            ),
            (
                "explain (costs off) select k from t",
                "explain (costs off) select k from (t + \"0\" ON own(t.k))",
            ),
            (
                "declare c cursor for select k from t",
                "declare c cursor for select k from (t + \"0\" ON own(t.k))",
            ),
            (
                "copy (select k from t) to stdout",
                "copy (select k from (t + \"0\" ON own(t.k))) to stdout",
            ),
            ("select * from apart", "select * from apart"),
        ] {
            assert_eq!(sent(text), expected);
        }
    }

    #[test]
    fn what_is_changed_has_the_condition_in_its_where() {
        for (text, expected) in [
            ("delete from t", "delete from t WHERE own(t.k)"),
            (
                "delete from only t as x where n = 1 or n = 2 returning x.*;",
                "delete from only t as x where own(x.k) AND ( n = 1 or n = 2) returning x.*;",
            ),
            (
                "update t set n = (select max(n) from u where u.k = t.k) returning n",
                "update t set n = (select max(n) from (u + \"0\" ON own(u.k)) where u.k = t.k) WHERE own(t.k) returning n",
            ),
            (
                "update t x set n = 1 from u",
                "update t x set n = 1 from (u + \"0\" ON own(u.k)) WHERE own(x.k)",
            ),
            (
                "insert into u select k from t on conflict do nothing",
                "insert into u select k from (t + \"0\" ON own(t.k)) on conflict do nothing",
            ),
            (
                "merge into t x using u y on case when true then x.k end = y.k when matched then delete",
                "merge into t x using (u y + \"0\" ON own(y.k)) on own(x.k) AND ( case when true then x.k end = y.k) when matched then delete",
            ),
        ] {
            assert_eq!(sent(text), expected);
        }
    }

    #[test]
    fn what_cannot_carry_the_condition_is_refused() {
        for (text, what) in [
            ("delete from t where current of c", Undoubled::CurrentOf),
            (
                "merge into t using u on t.k = u.k when not matched by source then delete",
                Undoubled::MergeBySource,
            ),
            (
                "select * from u as x(a) tablesample system (5)",
                Undoubled::ColumnAliases,
            ),
            ("select 1 from t; select 2", Undoubled::Text),
        ] {
            let made = PerShard::of(text.to_owned(), &Context::default(), &snapshot());
            let group = "g".to_owned();
            assert_eq!(
                made.err().as_deref(),
                Some(&Unroutable::Doubled { group, what }),
                "{text}"
            );
        }
    }

    #[test]
    fn places_are_those_of_the_clients_text() {
        let text = "select 'ü', t.a from t, u where wrong";
        let made = made(text);
        let found = |word: &str, text: &str| text[..text.find(word).unwrap()].chars().count() + 1;
        for word in ["t.a", "t,", "u where", "where wrong", "wrong"] {
            let word = if word == "t," { ", " } else { word };
            let there = match word {
                "u where" => found("(u JOIN", made.on(ShardId(1))) + 1,
                ", " => found(", (u", made.on(ShardId(1))),
                word => found(word, made.on(ShardId(1))),
            };
            let own = if word == ", " {
                found(", u", text)
            } else {
                found(word, text)
            };
            assert_eq!(made.own_place(ShardId(1), there), Some(own), "{word}");
            assert_eq!(made.own_place(ShardId(0), own), Some(own));
        }
        let inside = found("JOIN", made.on(ShardId(1)));
        assert_eq!(made.own_place(ShardId(1), inside), None);
    }

    #[test]
    fn a_copy_of_a_table_becomes_one_of_what_it_would_give() {
        let query = |text: &str| TableCopy::of(text).unwrap().of_query("rk\u{1}N");
        assert_eq!(
            query("copy public.t to stdout (format csv)").unwrap(),
            "copy (SELECT \"k\", \"N\" FROM ONLY public.t) to stdout (format csv)"
        );
        assert_eq!(
            query("COPY \"t\" (\"N\", K) TO STDOUT").unwrap(),
            "COPY (SELECT \"N\", K FROM ONLY \"t\") TO STDOUT"
        );
        for list in ["n, k", "k, k"] {
            let text = format!("copy t ({list}) to stdout");
            assert_eq!(query(&text).unwrap(), text, "PostgreSQL refuses it");
        }
        assert_eq!(TableCopy::of("copy t (U&\"k\") to stdout"), None);
        let view = TableCopy::of("copy t (n) to stdout").unwrap();
        assert_eq!(view.of_query("v").unwrap(), "copy t (n) to stdout");
    }
}
