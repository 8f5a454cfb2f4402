//! A read whose answer is that of each shard, one after the other or merged by ORDER BY: which statements are, and what
//! the shards are asked. Pure.
//!
//! What must stay true: every row of the answer holds a row of a sharded table that no outer join has made up, and all
//! that is joined or compared with it lives on its shard: a table of the same group by an equal key, or a copy. Nothing
//! is computed over several rows. When in doubt a statement is none of these, and is gathered or refused.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it does not combine"
)]

mod clauses;

use super::{
    block::{Analysis, Place},
    scope::Nullable,
    unroutable::Unroutable,
};
use crate::{
    catalog::{
        shard::ShardSet,
        snapshot::{Snapshot, Table},
    },
    merge::key::{Direction, Nulls, Text},
    sql::{
        clauses::{Kind as Sign, Token, tokens},
        functions::{computes_over_rows, is_immutable},
        tree::{Body, Expr, From, Kind, Name, Query, Relation, Select},
    },
};
use clauses::{Clauses, Output, OutputName, output_named, outputs};
use std::fmt::Write as _;

/// A read whose answer is that of each shard.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Combine {
    /// How many sharded relations it reads: the shards that one of them needs are all only if it is alone.
    relations: usize,
    /// Columns of text that compare byte by byte in every table of the statement.
    bytewise: Vec<String>,
    /// Columns of text that another collation compares.
    collated: Vec<String>,
}

/// A statement taken apart.
#[derive(Debug)]
pub struct Parts<'a> {
    text: &'a str,
    /// Where the output columns end, and the statement, bytes; between them where LIMIT and OFFSET begin.
    list_end: usize,
    tail: usize,
    pub keys: Vec<OrderBy>,
    pub limit: Option<Count>,
    pub offset: Option<Count>,
}

/// An item of ORDER BY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OrderBy {
    /// What it stands for, as an output column says it.
    pub expression: String,
    pub direction: Direction,
    pub nulls: Nulls,
    pub text: Text,
}

/// Where the client's statement stands in the question that is made of it, in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Places {
    before: usize,
    added: usize,
    all: usize,
}

impl Places {
    /// The place in the client's statement of one in the question, both counted from 1; `None`: it has none.
    #[must_use]
    pub fn own(&self, place: usize) -> Option<usize> {
        if place <= self.before {
            return Some(place);
        }
        let own = place.checked_sub(self.added)?;
        (own > self.before && own <= self.all).then_some(own)
    }
}

/// The number in LIMIT or OFFSET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    Number(u64),
    /// `$n`, from 1.
    Parameter(u32),
}

/// Words that compute over several rows, or mean another thing on each shard.
const WORDS: [&str; 27] = [
    "group",
    "having",
    "window",
    "over",
    "filter",
    "within",
    "grouping",
    "union",
    "intersect",
    "except",
    "tablesample",
    "json_arrayagg",
    "json_objectagg",
    "ctid",
    "xmin",
    "xmax",
    "cmin",
    "cmax",
    "tableoid",
    "user",
    "session_user",
    "system_user",
    "localtime",
    "localtimestamp",
    "money",
    "into",
    "using",
];
/// Functions that depend on settings, which are a session's own on every shard, and on nothing else.
const BY_SETTINGS: [&str; 11] = [
    "concat",
    "concat_ws",
    "date_part",
    "date_trunc",
    "extract",
    "format",
    "generate_series",
    "timezone",
    "to_char",
    "to_date",
    "to_timestamp",
];

/// How this statement, whose keys choose no shard or several, combines. `text` is its own.
pub(super) fn find(
    query: &Query,
    text: &str,
    functions: &[Name],
    analysis: &Analysis<'_>,
) -> Option<Combine> {
    let mut tables = Tables {
        analysis,
        found: Vec::new(),
    };
    let rows = functions.iter().any(|name| {
        let known = is_immutable(&name.name) || BY_SETTINGS.contains(&name.name.as_str());
        let builtin = name
            .schema
            .as_deref()
            .is_none_or(|schema| schema == "pg_catalog");
        !known || !builtin || computes_over_rows(&name.name)
    });
    if rows || !tables.query(query) || !share_one_shard(analysis) {
        return None;
    }
    let (bytewise, collated) = collations(&tables.found);
    let combine = Combine {
        relations: analysis.instances.len(),
        bytewise,
        collated,
    };
    combine.parts(text).is_some().then_some(combine)
}

/// What a query does with its rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// Computes with each row.
    Rows(Settled),
    /// Takes those of a group together: [`grouped_by`].
    Groups(Settled),
    /// Takes rows together, or leaves some out.
    Other,
}

/// Whether it shows the same at every moment, in no order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Yes,
    No,
}

impl Shape {
    pub(super) fn is_grouped(self) -> bool {
        matches!(self, Self::Groups(_))
    }

    pub(super) fn is_settled(self) -> bool {
        matches!(self, Self::Rows(Settled::Yes) | Self::Groups(Settled::Yes))
    }
}

/// Words that take rows together, or leave some out, wherever they stand.
const TAKE_TOGETHER: [&str; 13] = [
    "window",
    "over",
    "grouping",
    "union",
    "intersect",
    "except",
    "tablesample",
    "json_arrayagg",
    "json_objectagg",
    "into",
    "limit",
    "offset",
    "fetch",
];
/// Those that do within the groups of the whole query.
const OF_GROUPS: [&str; 4] = ["group", "having", "filter", "within"];

/// What a query, `text`, does with its rows.
pub(super) fn shape(query: &Query, text: &str, functions: &[Name]) -> Shape {
    let Some(tokens) = tokens(text) else {
        return Shape::Other;
    };
    let is_one_of = |token: &Token<'_>, words: &[&str]| words.iter().any(|word| token.is(word));
    let grouped = tokens
        .windows(2)
        .any(|pair| pair[0].depth == 0 && pair[0].is("group") && pair[1].is("by"));
    let together = tokens.iter().enumerate().any(|(at, token)| {
        let compared = at >= 1 && (tokens[at - 1].is("is") || tokens[at - 1].is("not"));
        let distinct = token.is("distinct") && !compared && !(grouped && token.depth > 0);
        let of_groups =
            is_one_of(token, &OF_GROUPS) && !(grouped && (token.depth == 0 || !token.is("group")));
        distinct || of_groups || is_one_of(token, &TAKE_TOGETHER)
    });
    let rows = functions.iter().any(|name| computes_over_rows(&name.name));
    if together || (rows && !grouped) || !matches!(query.body, Body::Select(_)) {
        return Shape::Other;
    }
    let settled = functions.iter().all(|name| {
        let own = name
            .schema
            .as_deref()
            .is_none_or(|schema| schema == "pg_catalog");
        let known = is_immutable(&name.name) || BY_SETTINGS.contains(&name.name.as_str());
        own && (known || computes_over_rows(&name.name))
    });
    // Groups are no matter here: their words are left out.
    let others: Vec<Token<'_>> = tokens
        .iter()
        .filter(|token| !is_one_of(token, &OF_GROUPS) && !token.is("distinct") && token.text != ";")
        .copied()
        .collect();
    let same = Clauses::new(&others)
        .is_some_and(|clauses| clauses.is_the_same_everywhere() && clauses.order.is_none());
    let settled = if settled && same {
        Settled::Yes
    } else {
        Settled::No
    };
    if grouped {
        Shape::Groups(settled)
    } else {
        Shape::Rows(settled)
    }
}

/// The items of a query's GROUP BY that are columns: their names with what they are qualified by.
pub(super) fn grouped_by(text: &str) -> Vec<Vec<String>> {
    let tokens = tokens(text).unwrap_or_default();
    let by = |pair: &[Token<'_>]| pair[0].depth == 0 && pair[0].is("group") && pair[1].is("by");
    let Some(start) = tokens.windows(2).position(by) else {
        return Vec::new();
    };
    let ends = |token: &Token<'_>| {
        let word = token.is("having") || token.is("order") || token.text == ";";
        token.depth == 0 && word
    };
    let list = &tokens[start + 2..];
    let list = &list[..list.iter().position(ends).unwrap_or(list.len())];
    let items = list.split(|token| token.depth == 0 && token.text == ",");
    let column = |item: &[Token<'_>]| {
        let mut path = Vec::new();
        for (at, token) in item.iter().enumerate() {
            match (at % 2, token.kind) {
                (0, Sign::Word) => path.push(token.text.to_lowercase()),
                (0, Sign::Quoted) => path.push(token.text.replace("\"\"", "\"")),
                (1, Sign::Sign) if token.text == "." => {}
                _ => return None,
            }
        }
        (item.len() % 2 == 1).then_some(path)
    };
    items.filter_map(column).collect()
}

/// Whether the query reads sharded and reference tables only, and all rows that matter with one of its own are on that
/// one's shard.
pub(super) fn shares(query: &Query, analysis: &Analysis<'_>) -> bool {
    let mut tables = Tables {
        analysis,
        found: Vec::new(),
    };
    tables.query(query) && share_one_shard(analysis)
}

/// Whether every row of the answer holds a row of one relation, and that row's shard holds all rows of the other sharded
/// relations that matter with it.
fn share_one_shard(analysis: &Analysis<'_>) -> bool {
    let instances = &analysis.instances;
    // The statement's own block is the first that was opened.
    let anchor = instances
        .iter()
        .position(|one| one.block == 0 && one.nullable == Nullable::No);
    let Some(anchor) = anchor else {
        return false;
    };
    let mut near = vec![anchor];
    let mut at = 0;
    while let Some(&here) = near.get(at) {
        for (other, instance) in instances.iter().enumerate() {
            if instance.equals.contains(&here) && !near.contains(&other) {
                near.push(other);
            }
        }
        at += 1;
    }
    near.len() == instances.len()
}

/// The tables that a statement reads, in all its blocks.
struct Tables<'s, 'a> {
    analysis: &'s Analysis<'a>,
    found: Vec<&'a Table>,
}

impl Tables<'_, '_> {
    /// Whether it reads nothing but sharded and reference tables, itself.
    fn query(&mut self, query: &Query) -> bool {
        let Body::Select(select) = &query.body else {
            return false;
        };
        let plain = query.ctes.is_empty() && query.locking.is_empty() && query.into.is_none();
        plain && self.select(select) && self.all(&query.tail)
    }

    fn select(&mut self, select: &Select) -> bool {
        let own = select.from.iter().all(|item| self.item(item));
        let mut rest = select.filter.iter().chain(&select.rest);
        own && rest.all(|expr| self.expr(expr))
            && select.targets.iter().all(|target| self.expr(&target.value))
    }

    fn item(&mut self, item: &From) -> bool {
        match item {
            From::Table(relation) => self.table(relation),
            From::Subquery { query, .. } => self.kind(query),
            From::Function { arguments, .. } => self.all(arguments),
            From::Join(join) => {
                self.item(&join.left)
                    && self.item(&join.right)
                    && join.on.as_ref().is_none_or(|on| self.expr(on))
            }
        }
    }

    fn table(&mut self, relation: &Relation) -> bool {
        match self.analysis.place(&relation.name) {
            Place::Sharded { table, .. } | Place::Reference(table) => {
                self.found.push(table);
                true
            }
            Place::Single(_) | Place::Catalog | Place::Unknown => false,
        }
    }

    fn kind(&mut self, kind: &Kind) -> bool {
        match kind {
            Kind::Query(query) => self.query(query),
            _ => false,
        }
    }

    fn all(&mut self, exprs: &[Expr]) -> bool {
        exprs.iter().all(|expr| self.expr(expr))
    }

    fn expr(&mut self, expr: &Expr) -> bool {
        match expr {
            Expr::Query(query) => self.kind(query),
            Expr::InQuery { left, query } => self.expr(left) && self.kind(query),
            Expr::Cast { inner, .. } | Expr::Negate(inner) => self.expr(inner),
            Expr::Compare { left, right, .. } | Expr::EqualsAny { left, array: right } => {
                self.expr(left) && self.expr(right)
            }
            Expr::Between { left, low, high } => {
                self.expr(left) && self.expr(low) && self.expr(high)
            }
            Expr::In { left, list } => self.expr(left) && self.all(list),
            Expr::And(parts)
            | Expr::Or(parts)
            | Expr::Row(parts)
            | Expr::Array(parts)
            | Expr::Other(parts) => self.all(parts),
            Expr::Column(_) | Expr::Literal(_) | Expr::Parameter(_) => true,
            Expr::Default => false,
        }
    }
}

/// Columns whose text compares by bytes wherever they are, and those that are compared otherwise anywhere.
fn collations(tables: &[&Table]) -> (Vec<String>, Vec<String>) {
    let (mut bytewise, mut collated) = (Vec::new(), Vec::new());
    let columns = || {
        tables
            .iter()
            .flat_map(|table| table.columns.iter().zip(&table.sources))
    };
    for (column, source) in columns() {
        if is_text(source) && !is_bytewise(source) && !collated.contains(column) {
            collated.push(column.clone());
        }
    }
    for (column, source) in columns() {
        if is_bytewise(source) && !collated.contains(column) && !bytewise.contains(column) {
            bytewise.push(column.clone());
        }
    }
    (bytewise, collated)
}

fn is_text(source: &str) -> bool {
    ["text", "character varying", "name", "character", "\"char\""]
        .iter()
        .any(|name| source.starts_with(name))
}

/// Whether text of this type and collation compares byte by byte.
fn is_bytewise(source: &str) -> bool {
    let by_name = [" COLLATE pg_catalog.\"C\"", " COLLATE pg_catalog.\"POSIX\""];
    source == "name" || by_name.iter().any(|end| source.ends_with(end))
}

impl Combine {
    /// The shards that give a part each, when no shard alone can answer for this reason.
    #[must_use]
    pub fn shards(&self, why: &Unroutable, snapshot: &Snapshot) -> Option<ShardSet> {
        match why {
            Unroutable::SeveralShards { shards } if self.relations == 1 => {
                let mut set = ShardSet::new();
                for name in shards {
                    set.insert(snapshot.shard_named(name)?);
                }
                Some(set)
            }
            // With several tables those that are named are the shards of one of them.
            Unroutable::SeveralShards { .. } | Unroutable::Unpinned { .. } => Some(snapshot.all()),
            _ => None,
        }
    }

    /// Takes a text of this statement apart; `None`: this one does not combine.
    #[must_use]
    pub fn parts<'a>(&self, text: &'a str) -> Option<Parts<'a>> {
        let mut tokens = tokens(text)?;
        while tokens.last()?.text == ";" {
            tokens.pop();
        }
        if tokens.first()?.is("explain") {
            let query = tokens
                .iter()
                .position(|token| token.depth == 0 && token.is("select"))?;
            tokens.drain(..query);
        }
        let statement = Clauses::new(&tokens)?;
        if !statement.is_the_same_everywhere() {
            return None;
        }
        let list = statement.list();
        let items = statement.split(&list);
        let keys = match &statement.order {
            None => Vec::new(),
            Some(order) => {
                let outputs = outputs(&tokens, &items);
                let order = statement.split(order);
                let keys = order
                    .iter()
                    .map(|item| self.key(text, &tokens[item.clone()], &outputs));
                keys.collect::<Option<Vec<OrderBy>>>()?
            }
        };
        let last = tokens.last()?.end;
        let tail = statement.tail.map_or(last, |at| tokens[at].start);
        Some(Parts {
            text,
            list_end: tokens[list.end - 1].end,
            tail,
            keys,
            limit: statement.limit,
            offset: statement.offset,
        })
    }

    /// An item of ORDER BY as an output column says it.
    fn key(&self, text: &str, item: &[Token<'_>], outputs: &[Output<'_>]) -> Option<OrderBy> {
        let (item, nulls) = match item {
            [rest @ .., nulls, which] if nulls.is("nulls") && !rest.is_empty() => {
                let nulls = if which.is("first") {
                    Nulls::First
                } else {
                    Nulls::Last
                };
                (rest, Some(nulls))
            }
            _ => (item, None),
        };
        let (item, direction) = match item {
            [rest @ .., last] if last.is("asc") => (rest, Direction::Ascending),
            [rest @ .., last] if last.is("desc") => (rest, Direction::Descending),
            _ => (item, Direction::Ascending),
        };
        let expression = match item {
            [] => return None,
            [only] if only.kind == Sign::Value => {
                let place = only.text.parse::<usize>().ok()?.checked_sub(1)?;
                let before = outputs.get(..=place)?;
                let star = |output: &Output<'_>| matches!(output.name, OutputName::Star);
                if before.iter().any(star) {
                    return None;
                }
                before.last()?.expression
            }
            [only] if matches!(only.kind, Sign::Word | Sign::Quoted) => {
                output_named(only, outputs)?.unwrap_or(item)
            }
            _ => item,
        };
        let (first, last) = (expression.first()?, expression.last()?);
        if expression.len() == 1 && first.kind == Sign::Value {
            // A constant orders nothing, and is no column.
            return None;
        }
        Some(OrderBy {
            expression: text.get(first.start..last.end)?.to_owned(),
            direction,
            nulls: nulls.unwrap_or(match direction {
                Direction::Ascending => Nulls::Last,
                Direction::Descending => Nulls::First,
            }),
            text: self.collation(expression)?,
        })
    }

    /// How text of this expression compares; `None`: it is a column that is known to compare otherwise.
    fn collation(&self, expression: &[Token<'_>]) -> Option<Text> {
        if let [.., collate, name] = expression
            && collate.is("collate")
        {
            let known = name.kind == Sign::Quoted && matches!(name.text, "C" | "POSIX");
            return known.then_some(Text::Bytewise);
        }
        let column = match expression {
            [name] => name,
            [_, dot, name] if dot.text == "." => name,
            _ => return Some(Text::Collated),
        };
        if self.collated.iter().any(|known| column.names(known)) {
            return None;
        }
        let bytewise = self.bytewise.iter().any(|known| column.names(known));
        Some(if bytewise {
            Text::Bytewise
        } else {
            Text::Collated
        })
    }
}

impl Parts<'_> {
    /// How the shards' rows become the answer.
    #[must_use]
    pub fn steps(&self) -> String {
        let mut steps = if self.keys.is_empty() {
            "one after the other".to_owned()
        } else {
            let keys: Vec<&str> = self
                .keys
                .iter()
                .map(|key| key.expression.as_str())
                .collect();
            format!("ordered by {}", keys.join(", "))
        };
        for (word, count) in [("offset", self.offset), ("limit", self.limit)] {
            let _ = match count {
                None => Ok(()),
                Some(Count::Number(number)) => write!(steps, ", {word} {number}"),
                Some(Count::Parameter(number)) => write!(steps, ", {word} ${number}"),
            };
        }
        steps
    }

    /// Which places of the question are the statement's own.
    #[must_use]
    pub fn places(&self) -> Places {
        let chars = |text: &str| text.chars().count();
        let keys = self.keys.iter().enumerate();
        let added = keys.map(|(at, key)| chars(&as_column(at, key))).sum();
        Places {
            before: chars(&self.text[..self.list_end]),
            added,
            all: chars(&self.text[..self.tail]),
        }
    }

    /// What each shard is asked: the keys as columns behind the client's, and as many rows as may be needed of it.
    /// `None`: LIMIT and OFFSET together are beyond all numbers.
    #[must_use]
    pub fn question(&self) -> Option<String> {
        let mut out = String::with_capacity(self.text.len() + 100);
        out.push_str(&self.text[..self.list_end]);
        for (at, key) in self.keys.iter().enumerate() {
            out.push_str(&as_column(at, key));
        }
        out.push_str(&self.text[self.list_end..self.tail]);
        let term = |count: Count| match count {
            Count::Number(number) => number.to_string(),
            Count::Parameter(number) => format!("${number}::pg_catalog.int8"),
        };
        let _ = match (self.limit, self.offset) {
            (None, None | Some(Count::Number(_))) => Ok(()),
            // The parameter stays one.
            (None, Some(offset)) => write!(out, " OFFSET {} * 0", term(offset)),
            (Some(Count::Number(limit)), Some(Count::Number(offset))) => {
                let sum = limit
                    .checked_add(offset)
                    .filter(|sum| i64::try_from(*sum).is_ok())?;
                write!(out, " LIMIT {sum}")
            }
            (Some(limit), None) => write!(out, " LIMIT {}", term(limit)),
            (Some(limit), Some(offset)) => {
                write!(
                    out,
                    " LIMIT {} + coalesce({}, 0)",
                    term(limit),
                    term(offset)
                )
            }
        };
        Some(out)
    }
}

/// A key of ORDER BY as one more column.
fn as_column(at: usize, key: &OrderBy) -> String {
    format!(", {} AS \"shardway key {at}\"", key.expression)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combine() -> Combine {
        Combine {
            relations: 1,
            bytewise: vec!["code".to_owned()],
            collated: vec!["note".to_owned()],
        }
    }

    fn question(text: &str) -> Option<String> {
        combine().parts(text)?.question()
    }

    #[test]
    fn shards_are_asked_for_the_keys_and_for_no_more_rows_than_are_needed() {
        for (text, expected) in [
            ("select * from t", "select * from t"),
            (
                "SELECT id, n FROM t WHERE n > 3 ORDER BY n DESC, t.id LIMIT 5 OFFSET 2;",
                "SELECT id, n, n AS \"shardway key 0\", t.id AS \"shardway key 1\" FROM t WHERE n > 3 \
                 ORDER BY n DESC, t.id  LIMIT 7",
            ),
            (
                "select a + b as s, c[1, 2] as x from t order by s, 2 offset 3 rows fetch next 4 rows only",
                "select a + b as s, c[1, 2] as x, a + b AS \"shardway key 0\", c[1, 2] AS \"shardway key 1\" from t \
                 order by s, 2  LIMIT 7",
            ),
            (
                "select id from t order by -id limit $1 offset $2",
                "select id, -id AS \"shardway key 0\" from t order by -id  \
                 LIMIT $1::pg_catalog.int8 + coalesce($2::pg_catalog.int8, 0)",
            ),
            (
                "select id from t offset $1",
                "select id from t  OFFSET $1::pg_catalog.int8 * 0",
            ),
            ("select id from t limit all", "select id from t "),
            (
                "select lower(x), n + 1, -n, 'a' from t order by id, lower",
                "select lower(x), n + 1, -n, 'a', id AS \"shardway key 0\", lower(x) AS \"shardway key 1\" from t \
                 order by id, lower",
            ),
            (
                "select n is distinct from 3 as d from t order by code",
                "select n is distinct from 3 as d, code AS \"shardway key 0\" from t order by code",
            ),
        ] {
            assert_eq!(question(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_sure_does_not_combine() {
        for text in [
            "select distinct id from t",
            "select count(*) from t group by n",
            "select id from t order by note",
            "select id from t order by id using >",
            "select *, n from t order by 3",
            "select n::text from t order by n",
            "select cast(n as text) from t order by n",
            "select n + 1 n from t order by n",
            "select case when n + 1 > 2 then 1 else n end from t order by n",
            "select n as x, id as x from t order by x",
            "select id from t order by 'a'",
            "select id from t order by id fetch first 3 rows with ties",
            "select id from t limit 2 + 1",
            "select id from t limit 9223372036854775807 offset 1",
            "select ctid from t",
            "select id from t where day > 'now'",
            "select id, current_date from t",
            "select (select name from c limit 1) from t",
            "values (1)",
            "(select id from t)",
            "select from t",
        ] {
            assert_eq!(question(text), None, "{text}");
        }
    }

    #[test]
    fn keys_are_read_with_their_direction_and_place_of_nulls() {
        let text = "select id from t order by code, n desc, x nulls first, y desc nulls last, lower(z) collate \"C\"";
        let keys = combine().parts(text).unwrap().keys;
        let found: Vec<_> = keys
            .iter()
            .map(|key| (key.direction, key.nulls, key.text))
            .collect();
        let (up, down) = (Direction::Ascending, Direction::Descending);
        assert_eq!(
            found,
            [
                (up, Nulls::Last, Text::Bytewise),
                (down, Nulls::First, Text::Collated),
                (up, Nulls::First, Text::Collated),
                (down, Nulls::Last, Text::Collated),
                (up, Nulls::Last, Text::Bytewise),
            ]
        );
    }
}
