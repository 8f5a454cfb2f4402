//! A read of one sharded table over several shards: the shards are asked for its rows, and one of them computes the
//! statement over all these rows, so that PostgreSQL itself gives the answer. Pure.
//!
//! The table's name is given to a common table expression that holds the rows as arrays of text. What must stay true:
//! the statement means the same over that as over the table, or it is not gathered: the name stands unqualified and is
//! no other CTE's, no column of the system's is asked for, and types and collations of the columns are the table's.
//!
//! What shards can leave out is left out by them: columns that are not named (`gather/columns.rs`), rows that WHERE, LIMIT or
//! DISTINCT ON pass over (`gather/order.rs`), and all rows where partial results per group are enough (`gather/groups.rs`).

mod calls;
mod columns;
mod groups;
mod order;
mod outline;

pub use groups::Groups;

use crate::{
    catalog::snapshot::Table,
    sql::clauses::{Kind, Token, tokens},
};
pub(crate) use calls::is_settled;
use calls::{aggregates, is_a_time, is_of_the_moment};
use order::{Scope, first_rows};
use outline::{Distinct, Outline};
use std::fmt::Write as _;

/// A read of one sharded table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gather {
    /// As it stands in the statement, with this schema before it or without.
    pub table: String,
    pub schema: String,
    /// How often it is read.
    pub count: usize,
    pub plain: Plain,
    /// Of a statement of one block: which targets are given a name.
    pub named: Vec<Named>,
}

/// Whether a target is given a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    Yes,
    No,
}

/// How the texts for the shards and for the shard that answers are made of a statement.
#[derive(Debug)]
pub struct Texts<'a> {
    gather: &'a Gather,
    table: &'a Table,
    text: &'a str,
    /// Schemas before the table's name, with their dots, which gathered rows do not have.
    qualified: Vec<Edit>,
    /// Where the CTE goes, and what stands before and behind it.
    at: usize,
    before: &'static str,
    behind: &'static str,
    /// The columns that the statement needs.
    needed: Vec<usize>,
    /// The statement's clauses, if it is one block over this table.
    outline: Option<Outline<'a>>,
}

/// A question to every shard, and how the statement is computed over what they give.
#[derive(Clone, Debug)]
pub struct Asked {
    pub question: String,
    /// The CTE's, made of the question's columns `c1`, `c2`, ….
    columns: Vec<String>,
    /// How many columns the question has.
    pub width: usize,
    edits: Vec<Edit>,
}

/// Bytes of the statement that are written otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Edit {
    from: usize,
    to: usize,
    text: String,
}

/// What is not asked of the shards although it could be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Push {
    All,
    /// Only columns: an expression may have another value there.
    Columns,
}

/// Names that only a table has as columns, or that mean another thing of a CTE.
const OF_TABLES: [&str; 7] = [
    "ctid",
    "xmin",
    "xmax",
    "cmin",
    "cmax",
    "tableoid",
    "tablesample",
];

impl Gather {
    /// The texts for one statement; `None`: it would mean something else over gathered rows.
    #[must_use]
    pub fn texts<'a>(&'a self, text: &'a str, table: &'a Table) -> Option<Texts<'a>> {
        let tokens = tokens(text)?;
        let first = tokens.first()?;
        if !self.is_all_that_is_read(&tokens)
            || table.columns.is_empty()
            || table.columns.len() != table.sources.len()
        {
            return None;
        }
        let (at, before, behind) = if first.is("with") {
            let last = tokens
                .get(1)
                .filter(|token| token.is("recursive"))
                .unwrap_or(first);
            (last.end, " ", ",")
        } else {
            (first.start, "WITH ", " ")
        };
        let qualified = self.qualifiers(&tokens);
        let needed = columns::needed(&tokens, table);
        let alone = self.count == 1 && self.plain == Plain::Yes;
        let outline = alone.then(|| Outline::of(text, tokens)).flatten();
        Some(Texts {
            gather: self,
            table,
            text,
            qualified,
            at,
            before,
            behind,
            needed,
            outline,
        })
    }

    /// Where the table's schema stands before its name.
    fn qualifiers(&self, tokens: &[Token<'_>]) -> Vec<Edit> {
        let places = (2..tokens.len()).filter(|at| {
            tokens[*at].names(&self.table) && is_read(tokens, *at) && tokens[at - 1].text == "."
        });
        places
            .map(|at| Edit {
                from: tokens[at - 2].start,
                to: tokens[at].start,
                text: String::new(),
            })
            .collect()
    }

    /// Whether the table is read as often as was found, and only its columns are.
    fn is_all_that_is_read(&self, tokens: &[Token<'_>]) -> bool {
        let table = self.table.as_str();
        if tokens
            .iter()
            .any(|token| OF_TABLES.iter().any(|word| token.names(word)))
        {
            return false;
        }
        let mut rows: Vec<String> = vec![table.to_owned()];
        let mut reads = 0;
        for at in 0..tokens.len() {
            if tokens[at].names(table) && is_read(tokens, at) {
                reads += 1;
                rows.extend(alias(tokens, at).map(str::to_lowercase));
            }
        }
        let only = |at: usize| {
            let before = at.checked_sub(1).map(|at| tokens[at]);
            let reads = before.is_some_and(|before| {
                before.is("from") || before.is("join") || before.text == "," || before.text == "("
            });
            reads && tokens[at].is("only")
        };
        let prefixed = |at: usize| {
            let dots = at >= 1
                && tokens[at - 1].text == "."
                && tokens.get(at + 1).is_some_and(|next| next.text == ".");
            tokens[at].names(table) && dots
        };
        if (0..tokens.len()).any(|at| only(at) || prefixed(at)) {
            // `public.orders.id`: gathered rows have no schema, and no children.
            return false;
        }
        // A name that stands alone is a row of the table, which has the table's own type.
        let alone = |at: usize| {
            let own = tokens[at].names(table) && is_read(tokens, at);
            let given = at > 0 && is_alias(tokens, at, table);
            let named = rows
                .iter()
                .any(|row| tokens[at].text.to_lowercase() == *row);
            !own && !given && named && tokens[at].kind != Kind::Value && is_row(tokens, at)
        };
        reads == self.count && !(0..tokens.len()).any(alone)
    }
}

/// Whether every function that is called gives the same on all shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    Yes,
    No,
}

/// Whether the table's name at `at` stands where a relation is read.
fn is_read(tokens: &[Token<'_>], at: usize) -> bool {
    let qualified = at >= 2 && tokens[at - 1].text == ".";
    let before = at
        .checked_sub(if qualified { 3 } else { 1 })
        .map(|at| tokens[at]);
    let behind = tokens.get(at + 1);
    before.is_some_and(|before| before.is("from") || before.is("join") || before.text == ",")
        && behind.is_none_or(|behind| behind.text != ".")
}

/// The alias that the relation at `at` is given.
fn alias<'t>(tokens: &[Token<'t>], at: usize) -> Option<&'t str> {
    let next = tokens.get(at + 1)?;
    let name = if next.is("as") {
        tokens.get(at + 2)?
    } else {
        next
    };
    let named = name.kind == Kind::Quoted
        || name.kind == Kind::Word && !BEHIND_A_TABLE.iter().any(|word| name.is(word));
    named.then_some(name.text)
}

/// Whether the token at `at` gives the relation before it its alias.
fn is_alias(tokens: &[Token<'_>], at: usize, table: &str) -> bool {
    let before = if tokens[at - 1].is("as") {
        at.checked_sub(2)
    } else {
        Some(at - 1)
    };
    before.is_some_and(|before| tokens[before].names(table) && is_read(tokens, before))
}

/// Whether the name at `at` is not only the relation of a column: it stands alone, or is `(relation.*`.
fn is_row(tokens: &[Token<'_>], at: usize) -> bool {
    let text = |at: usize| tokens.get(at).map(|token| token.text);
    if at > 0 && text(at - 1) == Some(".") {
        // A column of that name.
        return false;
    }
    if text(at + 1) != Some(".") {
        return true;
    }
    let outermost = at == 0
        || tokens[at - 1].is("select")
        || tokens[at - 1].is("distinct")
        || tokens[at - 1].text == "," && tokens[at].depth == 0;
    text(at + 2) == Some("*") && !outermost
}

/// Words behind a table that are no alias.
const BEHIND_A_TABLE: [&str; 24] = [
    "where",
    "group",
    "having",
    "window",
    "order",
    "limit",
    "offset",
    "fetch",
    "for",
    "union",
    "intersect",
    "except",
    "join",
    "inner",
    "left",
    "right",
    "full",
    "cross",
    "natural",
    "on",
    "using",
    "tablesample",
    "as",
    "returning",
];

impl Texts<'_> {
    /// The statement over no rows.
    #[must_use]
    pub fn template(&self) -> String {
        let rows = self.bare();
        self.answer(&rows, &[])
    }

    /// What reads all columns that are asked for, as the statement reads them, without rows.
    #[must_use]
    pub fn shape(&self) -> String {
        let rows = self.bare();
        let mut out = "WITH ".to_owned();
        self.put_cte(&mut out, &rows, &[]);
        let _ = write!(out, " SELECT * FROM {}", quote(&self.gather.table));
        out
    }

    /// What reads the same columns of the table itself.
    #[must_use]
    pub fn columns(&self) -> String {
        let (schema, table) = (quote(&self.gather.schema), quote(&self.gather.table));
        format!("SELECT {} FROM {schema}.{table}", self.selected())
    }

    /// For rows as far as the statement needs them. `names`: of the statement's output columns.
    #[must_use]
    pub fn rows(&self, push: Push, names: &[String]) -> Asked {
        let mut asked = self.bare();
        let outline = self
            .outline
            .as_ref()
            .filter(|outline| push == Push::All && is_timeless(outline));
        if let Some(outline) = outline {
            let filter = outline.filter.map_or("", |filter| outline.text(filter));
            let from = outline.text(outline.from);
            asked.question = match self.first_rows(outline, names) {
                Some((distinct, tail)) => {
                    format!("SELECT {distinct}{} {from} {filter}{tail}", self.selected())
                }
                None => format!("SELECT {} {from} {filter}", self.selected()),
            };
        }
        asked
    }

    /// For partial results per group; `None`: the statement is not made of such. `names`: of its output columns.
    #[must_use]
    pub fn groups(&self, push: Push, names: &[String]) -> Option<Groups<'_>> {
        match push {
            Push::All => groups::asked(self, &self.gather.named, names),
            Push::Columns => None,
        }
    }

    /// What is told of how the shards are asked, before PostgreSQL has been: the names of output columns are not known
    /// where PostgreSQL makes them.
    #[must_use]
    pub fn outlook(&self) -> String {
        let names = self.outline.as_ref().map_or_else(Vec::new, |outline| {
            order::given_names(outline, self.table, &self.gather.named)
        });
        match self.groups(Push::All, &names) {
            Some(groups) => groups.question,
            None => self.rows(Push::All, &names).question,
        }
    }

    /// DISTINCT ON, ORDER BY and LIMIT for the shards; `None`: they give all rows.
    fn first_rows(&self, outline: &Outline<'_>, names: &[String]) -> Option<(String, String)> {
        let calls = aggregates(outline)?;
        if !calls.is_empty() || !outline.groups.is_empty() || outline.having.is_some() {
            return None;
        }
        let scope = Scope::new(outline, self.table, &self.gather.named, names)?;
        let order = scope.order_by()?;
        match &outline.distinct {
            Distinct::No => Some((String::new(), order + &first_rows(outline)?)),
            Distinct::Yes => None,
            Distinct::On(items) => {
                let keys: Option<Vec<String>> = items
                    .iter()
                    .map(|item| Some(scope.key(*item, order::First::Outputs)?.text))
                    .collect();
                Some((format!("DISTINCT ON ({}) ", keys?.join(", ")), order))
            }
        }
    }

    /// For all rows.
    fn bare(&self) -> Asked {
        let column = |(number, at): (usize, &usize)| {
            let (name, source) = (quote(&self.table.columns[*at]), &self.table.sources[*at]);
            format!("c{}::{source} AS {name}", number + 1)
        };
        let needed = self.asked_for();
        Asked {
            question: self.columns(),
            columns: needed.iter().enumerate().map(column).collect(),
            width: needed.len(),
            edits: Vec::new(),
        }
    }

    /// The columns that travel: one at least, since rows are counted by it.
    fn asked_for(&self) -> &[usize] {
        if self.needed.is_empty() {
            &[0]
        } else {
            &self.needed
        }
    }

    fn selected(&self) -> String {
        let names = self.asked_for().iter().map(|at| {
            let name = quote(&self.table.columns[*at]);
            match self.needed.is_empty() {
                true => format!("NULL::{} AS {name}", self.table.sources[*at]),
                false => name,
            }
        });
        names.collect::<Vec<_>>().join(", ")
    }

    /// The statement over the rows: of each shard one array of values for each column, as `array_element` makes them.
    #[must_use]
    pub fn answer(&self, asked: &Asked, arrays: &[Vec<String>]) -> String {
        let size: usize = arrays.iter().flatten().map(String::len).sum();
        let mut out = String::with_capacity(self.text.len() + size + 200 * asked.width);
        out.push_str(&self.text[..self.at]);
        out.push_str(self.before);
        self.put_cte(&mut out, asked, arrays);
        out.push_str(self.behind);
        let mut edits: Vec<&Edit> = self.qualified.iter().chain(&asked.edits).collect();
        edits.sort_by_key(|edit| (edit.from, edit.to));
        let mut from = self.at;
        for edit in edits {
            if edit.from < from {
                // In what is left out.
                continue;
            }
            out.push_str(&self.text[from..edit.from]);
            out.push_str(&edit.text);
            from = edit.to;
        }
        out.push_str(&self.text[from..]);
        out
    }

    fn put_cte(&self, out: &mut String, asked: &Asked, arrays: &[Vec<String>]) {
        let (table, columns) = (quote(&self.gather.table), asked.columns.join(", "));
        let _ = write!(
            out,
            "{table} AS MATERIALIZED (SELECT {columns} FROM ROWS FROM ("
        );
        for at in 0..asked.width {
            out.push_str(if at == 0 { "" } else { ", " });
            out.push_str("pg_catalog.unnest(E'{");
            let parts = arrays.iter().filter_map(|arrays| arrays.get(at));
            for (number, part) in parts.filter(|part| !part.is_empty()).enumerate() {
                out.push_str(if number == 0 { "" } else { "," });
                out.push_str(part);
            }
            out.push_str("}'::pg_catalog.text[])");
        }
        out.push_str(") AS gathered(");
        for at in 0..asked.width {
            let _ = write!(out, "{}c{}", if at == 0 { "" } else { ", " }, at + 1);
        }
        out.push_str("))");
    }
}

/// Whether WHERE means the same on every shard: times of the transaction, and what is set per session, need not.
fn is_timeless(outline: &Outline<'_>) -> bool {
    outline.filter.is_none_or(|filter| {
        let tokens = &outline.tokens[filter.from..filter.to];
        !tokens
            .iter()
            .any(|token| is_a_time(token) || is_of_the_moment(token))
    })
}

/// Adds a value, NULL if there is none, to the text of an array within `E'…'`.
pub fn array_element(array: &mut String, value: Option<&str>) {
    if !array.is_empty() {
        array.push(',');
    }
    let Some(value) = value else {
        array.push_str("NULL");
        return;
    };
    array.push('"');
    for c in value.chars() {
        match c {
            '"' => array.push_str("\\\\\""),
            '\\' => array.push_str("\\\\\\\\"),
            '\'' => array.push_str("''"),
            c => array.push(c),
        }
    }
    array.push('"');
}

fn quote(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::snapshot::{Placement, Table};

    fn table() -> Table {
        Table {
            columns: vec!["id".to_owned(), "Note".to_owned()],
            sources: vec![
                "bigint".to_owned(),
                "text COLLATE pg_catalog.\"C\"".to_owned(),
            ],
            ..Table::unasked(Placement::Reference)
        }
    }

    fn gather(text: &str) -> Gather {
        let named = |target: &str| {
            if target.contains(" AS ") {
                Named::Yes
            } else {
                Named::No
            }
        };
        let targets = text.split(" FROM").next().unwrap_or_default();
        Gather {
            table: "orders".to_owned(),
            schema: "public".to_owned(),
            count: 1,
            plain: Plain::Yes,
            named: targets.split(", ").map(named).collect(),
        }
    }

    /// Question and answer over rows; the names of the output columns are those that the text gives.
    fn both(text: &str) -> Option<(String, String)> {
        let (gather, table) = (gather(text), table());
        let texts = gather.texts(text, &table)?;
        let names = texts.outline.as_ref().map_or_else(Vec::new, |outline| {
            order::given_names(outline, &table, &gather.named)
        });
        let asked = texts.rows(Push::All, &names);
        let arrays = ["1".to_owned(), "\"a\"".to_owned()];
        let answer = texts.answer(&asked, &[arrays[..asked.width].to_vec()]);
        Some((asked.question, answer))
    }

    #[test]
    fn a_statement_is_asked_of_the_shards_and_computed_over_their_rows() {
        let cte = "\"orders\" AS MATERIALIZED (SELECT c1::bigint AS \"id\", c2::text COLLATE pg_catalog.\"C\" AS \"Note\" \
                   FROM ROWS FROM (pg_catalog.unnest(E'{1}'::pg_catalog.text[]), pg_catalog.unnest(E'{\"a\"}'::pg_catalog.text[])) AS gathered(c1, c2))";
        let (question, answer) =
            both("SELECT stddev(o.id) FROM public.orders o WHERE \"Note\" > 'x' GROUP BY \"Note\"")
                .unwrap();
        assert_eq!(
            question,
            "SELECT \"id\", \"Note\" FROM public.orders o WHERE \"Note\" > 'x'"
        );
        assert_eq!(
            answer,
            format!(
                "WITH {cte} SELECT stddev(o.id) FROM orders o WHERE \"Note\" > 'x' GROUP BY \"Note\""
            )
        );
        let (question, answer) =
            both("WITH RECURSIVE x AS (SELECT 1) SELECT * FROM x, orders").unwrap();
        assert_eq!(
            question,
            "SELECT \"id\", \"Note\" FROM \"public\".\"orders\""
        );
        assert_eq!(
            answer,
            format!("WITH RECURSIVE {cte}, x AS (SELECT 1) SELECT * FROM x, orders")
        );
    }

    #[test]
    fn shards_give_their_first_rows_by_what_the_statement_orders_by() {
        let own = "(id)";
        for (text, expected) in [
            (
                "SELECT id FROM orders ORDER BY id LIMIT 3",
                format!("SELECT \"id\" FROM orders  ORDER BY {own} LIMIT 3"),
            ),
            (
                "SELECT id FROM orders ORDER BY 1 DESC NULLS LAST LIMIT 3 OFFSET 4",
                "SELECT \"id\" FROM orders  ORDER BY (id) DESC NULLS LAST LIMIT 7".to_owned(),
            ),
            (
                "SELECT -id AS id FROM orders ORDER BY id FETCH FIRST 2 ROWS WITH TIES",
                "SELECT \"id\" FROM orders  ORDER BY (-id) FETCH FIRST 2 ROWS WITH TIES".to_owned(),
            ),
            (
                "SELECT id FROM orders LIMIT 3",
                "SELECT \"id\" FROM orders  LIMIT 3".to_owned(),
            ),
            (
                "SELECT DISTINCT ON (id) id FROM orders ORDER BY id, \"Note\" LIMIT 2",
                format!(
                    "SELECT DISTINCT ON ({own}) \"id\", \"Note\" FROM orders  ORDER BY {own}, orders.\"Note\""
                ),
            ),
            // Not the same over a part of the rows, or not understood.
            (
                "SELECT id, rank() OVER () FROM orders ORDER BY id LIMIT 3",
                "SELECT \"id\" FROM orders ".to_owned(),
            ),
            (
                "SELECT unnest(id) FROM orders LIMIT 3",
                "SELECT \"id\" FROM orders ".to_owned(),
            ),
            (
                "SELECT 5, id FROM orders ORDER BY 1 LIMIT 3",
                "SELECT \"id\" FROM orders ".to_owned(),
            ),
            (
                "SELECT id FROM orders ORDER BY 1",
                "SELECT \"id\" FROM orders ".to_owned(),
            ),
            (
                "SELECT id FROM orders GROUP BY id LIMIT 3",
                "SELECT \"id\" FROM orders ".to_owned(),
            ),
        ] {
            assert_eq!(both(text).unwrap().0, expected, "{text}");
        }
    }

    /// Question and answer over groups, whose partial results have these types.
    fn grouped(text: &str, names: &[&str], types: &[u32]) -> Option<(String, String)> {
        let (gather, table) = (gather(text), table());
        let texts = gather.texts(text, &table)?;
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let asked = texts.groups(Push::All, &names)?.finish(types)?;
        let answer = texts.answer(&asked, &[vec!["1".to_owned(); asked.width]]);
        let (_, cte) = answer.split_once(" AS gathered(")?;
        let (_, statement) = cte.split_once(")) ")?;
        Some((asked.question, statement.to_owned()))
    }

    #[test]
    fn partial_results_are_put_together_by_a_shard() {
        let (question, answer) = grouped(
            "SELECT \"Note\", count(*), avg(id) + 1 AS a FROM orders WHERE id > 3 GROUP BY 1 HAVING count(*) > 2 ORDER BY max(id)",
            &["Note", "count", "a"],
            &[25, 20, 1700, 20, 20],
        )
        .unwrap();
        assert_eq!(
            question,
            "SELECT (\"Note\") AS \"shardway 1\", pg_catalog.count(*) AS \"shardway 2\", pg_catalog.sum(id) AS \"shardway 3\", \
             pg_catalog.count(id) AS \"shardway 4\", pg_catalog.max(id) AS \"shardway 5\" FROM orders WHERE id > 3 GROUP BY (\"Note\")"
                .replace("(\"Note\") AS", "orders.\"Note\" AS")
        );
        let count = "(coalesce(pg_catalog.sum(\"shardway 1\"), 0)::pg_catalog.int8)";
        assert_eq!(
            answer,
            format!(
                "SELECT \"Note\", {count} AS \"count\", (pg_catalog.sum(\"shardway 2\") OPERATOR(pg_catalog./) pg_catalog.sum(\"shardway 3\")) + 1 AS a \
                     FROM orders  GROUP BY 1 HAVING {count} > 2 ORDER BY (pg_catalog.max(\"shardway 4\"))"
            )
        );
        let (question, answer) = grouped(
            "SELECT count(DISTINCT id % 5) FROM orders",
            &["count"],
            &[1009],
        )
        .unwrap();
        assert_eq!(
            question,
            "SELECT pg_catalog.min((ARRAY[orders.\"id\"::pg_catalog.text]) COLLATE pg_catalog.\"C\") AS \"shardway 1\" FROM orders  GROUP BY (id % 5)"
        );
        assert_eq!(
            answer,
            "SELECT count(DISTINCT id % 5) AS \"count\" FROM orders"
        );
    }

    #[test]
    fn what_partial_results_do_not_make_exactly_is_made_of_rows() {
        for (text, types) in [
            // The average of floats, the least of texts by a collation that is not known.
            ("SELECT avg(id) FROM orders", vec![701, 20]),
            ("SELECT min(upper(\"Note\")) FROM orders", vec![25]),
            ("SELECT min(id::text) FROM orders", vec![25]),
            ("SELECT min(id) FROM orders", vec![2277]),
            ("SELECT string_agg(\"Note\", ',') FROM orders", vec![25]),
            ("SELECT count(*), rank() OVER () FROM orders", vec![20]),
            ("SELECT id FROM orders ORDER BY id", vec![20]),
            (
                "SELECT count(*) FROM orders GROUP BY ROLLUP (id)",
                vec![20, 20],
            ),
        ] {
            assert_eq!(grouped(text, &["x"], &types), None, "{text}");
        }
        assert!(grouped("SELECT min(\"Note\") FROM orders", &["min"], &[25]).is_some());
    }

    #[test]
    fn only_a_where_of_the_statements_own_table_is_computed_by_the_shards() {
        for text in [
            "SELECT * FROM orders WHERE id IN (SELECT id FROM x)",
            "SELECT * FROM orders JOIN countries ON true WHERE code = 'x'",
            "SELECT * FROM orders, countries WHERE code = 'x'",
            "SELECT * FROM orders WHERE day = current_date",
            "SELECT * FROM orders WHERE day = 'today'",
            "SELECT * FROM orders",
            "(SELECT * FROM orders WHERE id = 1) UNION SELECT 1",
        ] {
            let question = both(text).unwrap().0;
            assert!(!question.contains("WHERE"), "{text}: {question}");
        }
    }

    #[test]
    fn what_would_mean_something_else_is_not_gathered() {
        for text in [
            "SELECT ctid FROM orders",
            "SELECT * FROM ONLY orders",
            "SELECT public.orders.id FROM public.orders",
            "SELECT orders FROM orders",
            "SELECT to_json(orders.*) FROM orders",
            "WITH orders AS (SELECT 1) SELECT * FROM orders",
            "SELECT * FROM orders TABLESAMPLE system (1)",
            "SELECT E'\\'' FROM orders",
            "SELECT id, orders FROM orders",
            "SELECT o FROM orders o",
            "SELECT row_to_json(o) FROM orders AS o",
            "SELECT to_json(o.*) FROM orders o",
            "SELECT count(O) FROM orders o",
            "SELECT a.id FROM orders a, orders b",
        ] {
            assert_eq!(both(text), None, "{text}");
        }
    }

    #[test]
    fn columns_of_a_relation_are_no_rows_of_it() {
        for text in [
            "SELECT o.id, o.* FROM orders o WHERE o.id = 1",
            "SELECT DISTINCT orders.* FROM orders",
            "SELECT x.orders FROM orders o, x",
        ] {
            assert!(both(text).is_some(), "{text}");
        }
    }

    #[test]
    fn values_are_quoted_as_arrays_are() {
        let mut array = String::new();
        for value in [Some("a'b\"c\\d"), None, Some("")] {
            array_element(&mut array, value);
        }
        assert_eq!(array, r#""a''b\\"c\\\\d",NULL,"""#);
    }
}
