//! An UPDATE that gives rows another shard key: what is asked of the shards so that a row whose new key belongs elsewhere is
//! deleted here and inserted there. Pure.
//!
//! What must stay true: PostgreSQL computes every value, of the row that it has locked, as the UPDATE would. A row that
//! stays on its shard is updated there by the statement itself; a row that moves is inserted with its new values, each
//! in its own type. What an INSERT cannot answer as the UPDATE would is not moved.

use super::{
    Asked, Shares,
    fill::Given,
    text::{Layout, edited, quote},
};
use crate::{
    catalog::{group::GroupId, shard::ShardId, snapshot::Snapshot},
    plan::{
        Route, Values,
        block::{Analysis, Place},
        route::{Pin, Pins, Role},
        unroutable::Unroutable,
    },
    sql::{
        normalize::Slot,
        tree::{Expr, Kind, Name, Update},
    },
};
use std::ops::Range;

/// How rows are moved.
#[derive(Clone, Debug, PartialEq)]
pub struct Moving {
    pub group: GroupId,
    /// For messages: the table and its key.
    pub table: String,
    pub key: String,
    /// The table as SQL names it, and what its rows are called in the statement, quoted.
    pub quoted: String,
    alias: Option<String>,
    assigned: Vec<Assigned>,
    /// What chooses the shards whose rows are changed.
    sources: Sources,
    /// Whether a unique index does not hold the key.
    pub keyless: bool,
}

/// One assignment.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Assigned {
    column: String,
    /// It is a constant or parameter, which gets its type where it is stored.
    bare: bool,
}

/// Which shards have the rows that are changed.
#[derive(Clone, Debug, PartialEq)]
enum Sources {
    /// All of the group.
    All,
    /// Those that the table's own condition allows; what else is read is with its rows.
    Own(Pins),
    /// One, on which all is that the statement reads.
    One(Pins),
}

/// What is asked of the shards.
#[derive(Debug)]
pub struct Texts {
    /// The statement itself.
    pub whole: String,
    /// Locks the rows that are changed: their place, their new key, and what a moved row is made of.
    pub locate: String,
    /// Inserts one moved row; its values behind the statement's own parameters.
    pub insert: String,
    /// Whether it has subqueries, which might read the rows that it changes.
    pub reads: bool,
    /// What DELETE and UPDATE of rows at certain places are made of.
    delete: String,
    update: (String, String),
}

/// What a moved row is made of.
#[derive(Default)]
struct Row {
    names: Vec<String>,
    /// What is found out where it is, each behind a comma.
    carried: Vec<String>,
    /// What stands in its INSERT.
    stored: Vec<String>,
}

/// What a server has told of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Those that are stored as they are given, in order.
    pub names: Vec<String>,
    /// The key's type, as SQL names it.
    pub key_type: String,
}

/// How the UPDATE moves rows, if it may; `None`: it does not, or no INSERT would do the same.
pub(super) fn moving(
    update: &Update,
    asked: &Asked<'_>,
    analysis: &Analysis<'_>,
    pins: &[Pin],
) -> Option<Moving> {
    let target = analysis.changed.filter(|target| *target == 0)?;
    let instance = &analysis.instances[target];
    if let Place::Sharded { table, .. } = analysis.place(&update.table.name)
        && table.nature.is_view()
    {
        // What it does not show would not move.
        return None;
    }
    let fits = |why: &Unroutable| {
        matches!(
            why,
            Unroutable::Unpinned { .. } | Unroutable::KeyChanged { .. }
        )
    };
    let unpinned = analysis
        .refusals
        .iter()
        .any(|why| matches!(why, Unroutable::Unpinned { .. }));
    let reads = update
        .ctes
        .iter()
        .all(|cte| matches!(cte.body, Kind::Query(_)));
    if !reads || !analysis.refusals.iter().all(fits) {
        return None;
    }
    let mut assigned = Vec::new();
    for target in &update.assignments {
        if target.partial || matches!(target.value, Expr::Default) {
            return None;
        }
        let bare = matches!(target.value, Expr::Literal(_) | Expr::Parameter(_));
        let column = target.name.clone()?;
        assigned.push(Assigned { column, bare });
    }
    if assigned
        .iter()
        .filter(|one| one.column == instance.key)
        .count()
        != 1
    {
        return None;
    }
    let own = pins.iter().filter(|pin| matches!(pin.role, Role::Match));
    let pins = || Pins {
        pins: own.cloned().collect(),
        fixed: None,
        reading: asked.reading,
    };
    let with_it = (0..analysis.instances.len()).all(|at| analysis.equal_to(at).contains(&target));
    let sources = match (with_it, unpinned) {
        (true, true) => Sources::All,
        (true, false) => Sources::Own(pins()),
        (false, true) => return None,
        (false, false) => Sources::One(pins()),
    };
    let name = &update.table.name;
    let schema = name
        .schema
        .as_ref()
        .map(|schema| format!("{}.", quote(schema)));
    Some(Moving {
        group: instance.group,
        table: instance.table.clone(),
        key: instance.key.clone(),
        quoted: format!("{}{}", schema.unwrap_or_default(), quote(&name.name)),
        alias: update.table.alias.as_ref().map(|alias| quote(&alias.name)),
        assigned,
        sources,
        keyless: is_keyless(analysis, name),
    })
}

/// Whether a unique index of the table does not hold the key.
fn is_keyless(analysis: &Analysis<'_>, table: &Name) -> bool {
    let effects = analysis.effects(table);
    effects.is_some_and(|effects| !effects.strays.uniques.is_empty())
}

impl Moving {
    /// The shards whose rows this execution changes; `None`: it is not moved.
    pub(super) fn shares(
        &self,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Option<Result<Shares, Box<Unroutable>>> {
        let shards = match &self.sources {
            Sources::All => snapshot.group(self.group).shards(),
            Sources::Own(pins) => match pins.of_first(snapshot, values) {
                Ok(shards) => shards,
                Err(why) => return Some(Err(why)),
            },
            Sources::One(pins) => match pins.route(snapshot, values) {
                Ok(Route::One(shard)) => crate::catalog::shard::ShardSet::one(shard),
                Ok(_) | Err(_) => return None,
            },
        };
        let shards: Vec<(ShardId, Vec<u32>)> =
            shards.iter().map(|shard| (shard, Vec::new())).collect();
        (!shards.is_empty()).then_some(Ok(Shares { shards }))
    }

    /// What the table's rows are called in the statement.
    fn called(&self) -> &str {
        let own = || match self.quoted.rsplit_once("\".\"") {
            Some((schema, _)) => &self.quoted[schema.len() + 2..],
            None => &self.quoted,
        };
        self.alias.as_deref().unwrap_or_else(own)
    }

    /// What the shards are asked, of so many declared parameters at least; `None`: the text is not that of such a statement.
    #[must_use]
    pub fn texts(
        &self,
        text: &str,
        slots: &[Slot],
        given: &Given<'_>,
        (columns, declared): (&Columns, usize),
    ) -> Option<Texts> {
        let layout = Layout::of(text, slots)?;
        let clauses = Clauses::of(&layout, self.assigned.len())?;
        let edits = match given.time {
            Some(time) => layout.times(time)?,
            None => Vec::new(),
        };
        let cut = |range: &Range<usize>| edited(text, range.clone(), &edits);
        let called = self.called();
        let key = self
            .assigned
            .iter()
            .position(|one| one.column == self.key)?;
        let first = parameters(&layout).max(declared) + 1;
        let values: Vec<String> = clauses.assigned.iter().map(cut).collect();
        let row = self.row(columns, &values, first);
        let table = match &self.alias {
            Some(alias) => format!("{} AS {alias}", self.quoted),
            None => self.quoted.clone(),
        };
        let behind = |word: &str, clause: &Option<Range<usize>>| {
            clause
                .as_ref()
                .map_or_else(String::new, |range| format!("{word}{}", cut(range)))
        };
        let locate = format!(
            "{}SELECT {called}.ctid, ({})::{}{} FROM {table}{}{} FOR UPDATE OF {called}",
            cut(&clauses.before),
            values.get(key)?,
            columns.key_type,
            row.carried.concat(),
            behind(", ", &clauses.from),
            behind(" WHERE ", &clauses.filter),
        );
        let insert = format!(
            "INSERT INTO {table} ({}) OVERRIDING SYSTEM VALUE VALUES ({}){}",
            row.names.join(", "),
            row.stored.join(", "),
            behind(" RETURNING ", &clauses.returning),
        );
        let head = cut(&(0..clauses.head));
        let filter = clauses.filter.as_ref();
        let filter = filter.map_or_else(String::new, |filter| format!("({}) AND ", cut(filter)));
        let returning = clauses.returning.as_ref();
        let returning = returning.map_or_else(String::new, |list| format!("{}, ", cut(list)));
        Some(Texts {
            whole: cut(&(0..layout.end()?)),
            locate,
            insert,
            reads: layout.pieces.iter().any(|piece| piece.is("select")),
            delete: format!("DELETE FROM {table} WHERE {}", at_places(called)),
            update: (
                format!("{head} WHERE {filter}{}", at_places(called)),
                format!(" RETURNING {returning}{called}.{}", quote(&self.key)),
            ),
        })
    }

    /// What a moved row is made of: assigned values as they stand in the statement, the first of the others `$first`.
    fn row(&self, columns: &Columns, values: &[String], first: usize) -> Row {
        let mut row = Row::default();
        for name in &columns.names {
            row.names.push(quote(name));
            let at = self.assigned.iter().position(|one| one.column == *name);
            let assigned = at.and_then(|at| self.assigned.get(at).zip(values.get(at)));
            if let Some((Assigned { bare: true, .. }, value)) = assigned {
                row.stored.push(value.clone());
                continue;
            }
            row.stored.push(format!("${}", first + row.carried.len()));
            row.carried.push(match assigned {
                Some((_, computed)) => format!(", ({computed})"),
                None => format!(", {}.{}", self.called(), quote(name)),
            });
        }
        row
    }

    /// Whether the statement that is planned has such texts.
    pub(super) fn can_be_made(&self, own: &str, slots: &[Slot]) -> bool {
        let columns = Columns {
            names: self.assigned.iter().map(|one| one.column.clone()).collect(),
            key_type: String::new(),
        };
        self.texts(own, slots, &Given::TRIED, (&columns, 0))
            .is_some()
    }
}

impl Texts {
    /// Deletes the rows at these places.
    #[must_use]
    pub fn delete(&self, places: &[&str]) -> String {
        format!("{}{}", self.delete, array(places))
    }

    /// The statement for the rows at these places, which stay; returns their keys behind what it returns itself.
    #[must_use]
    pub fn update(&self, places: &[&str]) -> String {
        let (head, tail) = &self.update;
        format!("{head}{}{tail}", array(places))
    }
}

/// What asks a server for the table's columns, and for what would make a moved row another than an updated one. One
/// text, in parts divided by `chr(2)`: what is in the way and its name, the key's type, the columns.
#[must_use]
pub fn examine(moving: &Moving) -> String {
    let literal = |text: &str| format!("'{}'", text.replace('\'', "''"));
    let (table, key) = (literal(&moving.quoted), literal(&moving.key));
    format!(
        "SELECT coalesce(\
         CASE WHEN c.relkind <> 'r' OR c.relispartition OR EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhparent = c.oid OR i.inhrelid = c.oid) THEN 'kind' || pg_catalog.chr(2) END, \
         (SELECT 'trigger' || pg_catalog.chr(2) || t.tgname FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D' \
         AND NOT EXISTS (SELECT FROM pg_catalog.pg_proc f JOIN pg_catalog.pg_namespace n ON n.oid = f.pronamespace WHERE f.oid = t.tgfoid AND n.nspname = 'shardway') ORDER BY t.tgname LIMIT 1), \
         (SELECT 'reference' || pg_catalog.chr(2) || k.conname FROM pg_catalog.pg_constraint k WHERE k.confrelid = c.oid AND k.contype = 'f' ORDER BY k.conname LIMIT 1), \
         (SELECT 'rule' || pg_catalog.chr(2) || r.rulename FROM pg_catalog.pg_rewrite r WHERE r.ev_class = c.oid ORDER BY r.rulename LIMIT 1), \
         CASE WHEN pg_catalog.row_security_active(c.oid) THEN 'policy' || pg_catalog.chr(2) END, pg_catalog.chr(2)) || pg_catalog.chr(2) || \
         (SELECT pg_catalog.format_type(a.atttypid, a.atttypmod) FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attname = {key} AND NOT a.attisdropped) \
         || pg_catalog.chr(2) || (SELECT pg_catalog.string_agg(a.attname::text, pg_catalog.chr(1) ORDER BY a.attnum) FROM pg_catalog.pg_attribute a \
         WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '') \
         FROM pg_catalog.pg_class c WHERE c.oid = {table}::pg_catalog.regclass"
    )
}

/// The answer to [`examine`]: what keeps rows from being moved, its kind and name, and the columns.
#[must_use]
pub fn examined(answer: &str) -> Option<(Option<(String, String)>, Columns)> {
    let parts: Vec<&str> = answer.split('\u{2}').collect();
    let [kind, name, key_type, names] = parts.as_slice() else {
        return None;
    };
    let obstacle = (!kind.is_empty()).then(|| ((*kind).to_owned(), (*name).to_owned()));
    let columns = Columns {
        names: names.split('\u{1}').map(str::to_owned).collect(),
        key_type: (*key_type).to_owned(),
    };
    Some((obstacle, columns))
}

fn at_places(called: &str) -> String {
    format!("{called}.ctid OPERATOR(pg_catalog.=) ANY (")
}

fn array(places: &[&str]) -> String {
    let places: Vec<String> = places.iter().map(|place| format!("\"{place}\"")).collect();
    format!("'{{{}}}'::pg_catalog.tid[])", places.join(","))
}

/// How many parameters the statement may have: the highest number.
fn parameters(layout: &Layout<'_>) -> usize {
    let numbers = layout.pieces.iter().filter_map(|piece| match piece.kind {
        crate::sql::scan::Kind::Parameter(number) => Some(usize::from(number)),
        _ => None,
    });
    numbers.max().unwrap_or(0)
}

/// Where the clauses of an UPDATE stand.
struct Clauses {
    /// WITH.
    before: Range<usize>,
    assigned: Vec<Range<usize>>,
    from: Option<Range<usize>>,
    filter: Option<Range<usize>>,
    returning: Option<Range<usize>>,
    /// The end of all that is before WHERE.
    head: usize,
}

impl Clauses {
    fn of(layout: &Layout<'_>, count: usize) -> Option<Self> {
        let update = layout.find(layout.from, "update")?;
        let set = layout.find(update, "set")?;
        let returning = layout.find(set, "returning");
        let end = returning.unwrap_or(layout.to);
        let filter = (set..end).find(|at| layout.is_keyword(*at, "where"));
        let before_filter = filter.unwrap_or(end);
        let from = (set..before_filter)
            .find(|at| layout.is_keyword(*at, "from") && !layout.pieces[*at - 1].is("distinct"));
        let assigned = assignments(layout, set + 1..from.unwrap_or(before_filter))?;
        let clause = |at: Option<usize>, end: usize| {
            at.map(|at| layout.pieces[at].end..layout.pieces[end - 1].end)
        };
        let clauses = Self {
            before: 0..layout.pieces[update].start,
            from: clause(from, before_filter),
            filter: clause(filter, end),
            returning: clause(returning, layout.to),
            head: layout.pieces[before_filter - 1].end,
            assigned,
        };
        let answers = returning.is_none_or(|at| clauses.answers(layout, at, update));
        (answers && clauses.assigned.len() == count).then_some(clauses)
    }

    /// Whether an INSERT would return the same: only columns of the new row.
    fn answers(&self, layout: &Layout<'_>, returning: usize, update: usize) -> bool {
        let list = &layout.pieces[returning + 1..layout.to];
        let unfit = |word: &str| list.iter().any(|piece| piece.is(word));
        let versions = list
            .windows(2)
            .any(|two| (two[0].is("old") || two[0].is("new")) && two[1].is_sign("."));
        self.from.is_none()
            && update == layout.from
            && !unfit("select")
            && !unfit("with")
            && !versions
    }
}

/// The values of `name = value, …`, by piece; `None`: other assignments.
fn assignments(layout: &Layout<'_>, range: Range<usize>) -> Option<Vec<Range<usize>>> {
    let pieces = layout.pieces.get(range)?;
    let comma = |piece: &crate::sql::scan::Piece<'_>| piece.depth == 0 && piece.is_sign(",");
    let each = pieces.split(comma).map(|item| match item {
        [name, equals, first, ..] if equals.is_sign("=") && !name.is_sign("(") => {
            Some(first.start..item.last()?.end)
        }
        _ => None,
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{normalize::Strings, scan::slots_of};

    fn texts(text: &str, alias: Option<&str>, assigned: &[(&str, bool)]) -> Option<Texts> {
        let slots = slots_of(text, Strings::Standard);
        let assigned = assigned.iter().map(|(column, bare)| Assigned {
            column: (*column).to_owned(),
            bare: *bare,
        });
        let moving = Moving {
            group: GroupId(0),
            table: "t".to_owned(),
            key: "id".to_owned(),
            quoted: "\"public\".\"t\"".to_owned(),
            alias: alias.map(quote),
            assigned: assigned.collect(),
            sources: Sources::All,
            keyless: false,
        };
        let columns = Columns {
            names: ["id", "n", "note"].map(str::to_owned).to_vec(),
            key_type: "bigint".to_owned(),
        };
        moving.texts(text, &slots, &Given::default(), (&columns, 0))
    }

    #[test]
    fn rows_are_locked_with_their_new_values_and_stored_with_them() {
        let made = texts(
            "UPDATE public.t SET id = id + $1, n = f(n, 'a,b') WHERE n IS DISTINCT FROM 2 OR id = 3 RETURNING *; -- x",
            None,
            &[("id", false), ("n", false)],
        )
        .unwrap();
        assert_eq!(
            made.locate,
            "SELECT \"t\".ctid, (id + $1)::bigint, (id + $1), (f(n, 'a,b')), \"t\".\"note\" FROM \"public\".\"t\" \
             WHERE  n IS DISTINCT FROM 2 OR id = 3 FOR UPDATE OF \"t\""
        );
        assert_eq!(
            made.insert,
            "INSERT INTO \"public\".\"t\" (\"id\", \"n\", \"note\") OVERRIDING SYSTEM VALUE VALUES ($2, $3, $4) RETURNING  *"
        );
        assert_eq!(
            made.update(&["(0,1)", "(0,2)"]),
            "UPDATE public.t SET id = id + $1, n = f(n, 'a,b') WHERE ( n IS DISTINCT FROM 2 OR id = 3) AND \
             \"t\".ctid OPERATOR(pg_catalog.=) ANY ('{\"(0,1)\",\"(0,2)\"}'::pg_catalog.tid[]) RETURNING  *, \"t\".\"id\""
        );
    }

    #[test]
    fn constants_get_their_types_where_they_are_stored() {
        let made = texts(
            "UPDATE t x SET note = 'it''s', id = $1 FROM u WHERE u.id = x.id",
            Some("x"),
            &[("note", true), ("id", true)],
        )
        .unwrap();
        assert_eq!(
            made.locate,
            "SELECT \"x\".ctid, ($1)::bigint, \"x\".\"n\" FROM \"public\".\"t\" AS \"x\",  u WHERE  u.id = x.id FOR UPDATE OF \"x\""
        );
        assert_eq!(
            made.insert,
            "INSERT INTO \"public\".\"t\" AS \"x\" (\"id\", \"n\", \"note\") OVERRIDING SYSTEM VALUE VALUES ($1, $2, 'it''s')"
        );
        assert_eq!(
            made.delete(&["(1,2)"]),
            "DELETE FROM \"public\".\"t\" AS \"x\" WHERE \"x\".ctid OPERATOR(pg_catalog.=) ANY ('{\"(1,2)\"}'::pg_catalog.tid[])"
        );
    }

    #[test]
    fn what_an_insert_would_not_return_is_not_moved() {
        let one = &[("id", false)];
        for text in [
            "UPDATE t SET id = id + 1 FROM u RETURNING u.n",
            "UPDATE t SET id = id + 1 RETURNING old.id",
            "UPDATE t SET id = id + 1 RETURNING (SELECT 1)",
            "WITH c AS (SELECT 1) UPDATE t SET id = id + 1 RETURNING id",
            "UPDATE t SET (id) = ROW(1)",
            "UPDATE t SET id = 1, n = 2",
        ] {
            assert!(texts(text, None, one).is_none(), "{text}");
        }
    }
}
