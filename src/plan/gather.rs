//! A read of one sharded table over several shards: the shards are asked for its rows, and one of them computes the
//! statement over all these rows, so that PostgreSQL itself gives the answer. Pure.
//!
//! The table's name is given to a common table expression that holds the rows as arrays of text. What must stay true:
//! the statement means the same over that as over the table, or it is not gathered: the name stands unqualified and is
//! no other CTE's, no column of the system's is asked for, and types, collations and order of the columns are the table's.

use crate::{
    catalog::snapshot::Table,
    sql::clauses::{Kind, Token, tokens},
};
use std::fmt::Write as _;

/// A read of one sharded table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gather {
    /// As it stands in the statement, with this schema before it or without.
    pub table: String,
    pub schema: String,
    /// How often it is read.
    pub count: usize,
    /// Whether only immutable functions are called.
    pub plain: Plain,
}

/// How the texts for the shards and for the shard that answers are made of a statement.
#[derive(Debug)]
pub struct Texts<'a> {
    text: &'a str,
    table: &'a str,
    /// Schemas before the table's name, with their dots.
    qualified: Vec<(usize, usize)>,
    schema: &'a str,
    /// Where the CTE goes, and what stands before and behind it.
    at: usize,
    before: &'static str,
    behind: &'static str,
    /// FROM and WHERE, as far as the shards compute them.
    part: Option<(usize, usize)>,
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
/// What ends FROM and WHERE.
const ENDS: [&str; 10] = [
    "group",
    "having",
    "window",
    "order",
    "limit",
    "offset",
    "fetch",
    "union",
    "intersect",
    "except",
];

impl Gather {
    /// The texts for one statement; `None`: it would mean something else over gathered rows.
    #[must_use]
    pub fn texts<'a>(&'a self, text: &'a str) -> Option<Texts<'a>> {
        let tokens = tokens(text)?;
        let first = tokens.first()?;
        if !self.is_all_that_is_read(&tokens) {
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
        let part = match self.plain {
            Plain::Yes if self.count == 1 => pushed(&tokens),
            Plain::Yes | Plain::No => None,
        };
        Some(Texts {
            text,
            table: &self.table,
            qualified: self.qualifiers(&tokens),
            schema: &self.schema,
            at,
            before,
            behind,
            part,
        })
    }

    /// Where the table's schema stands before its name.
    fn qualifiers(&self, tokens: &[Token<'_>]) -> Vec<(usize, usize)> {
        let places = (2..tokens.len()).filter(|at| {
            tokens[*at].names(&self.table) && is_read(tokens, *at) && tokens[at - 1].text == "."
        });
        places
            .map(|at| (tokens[at - 2].start, tokens[at].start))
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

/// Whether only immutable functions are called.
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

/// `FROM … WHERE …` of a statement of one block over one relation, if nothing in it needs another.
fn pushed(tokens: &[Token<'_>]) -> Option<(usize, usize)> {
    if tokens.iter().filter(|token| token.is("select")).count() != 1
        || !tokens.first()?.is("select")
    {
        return None;
    }
    let top = |token: &&Token<'_>| token.depth == 0;
    let from = tokens.iter().filter(top).find(|token| token.is("from"))?;
    let filter = tokens.iter().filter(top).find(|token| token.is("where"))?;
    let end = tokens
        .iter()
        .filter(top)
        .find(|token| token.start > filter.start && ENDS.iter().any(|word| token.is(word)));
    let last = end.map_or(tokens.last()?.end, |end| end.start);
    let inside = |token: &&Token<'_>| token.start > from.start && token.start < filter.start;
    let one = tokens
        .iter()
        .filter(inside)
        .all(|token| token.text != "," && !token.is("join") && token.text != "(");
    // Times of the transaction, and what is set per session, need not be the same on all shards.
    let timeless = tokens
        .iter()
        .filter(|token| token.start > filter.start && token.start < last)
        .all(|token| {
            let word = token.text.to_ascii_lowercase();
            token.kind != Kind::Word
                || !(word.starts_with("current_")
                    || word.starts_with("localtime")
                    || word.ends_with("_user"))
        });
    (one && timeless && from.start < filter.start).then_some((from.start, last))
}

impl Texts<'_> {
    /// What each shard is asked.
    #[must_use]
    pub fn question(&self) -> String {
        match self.part {
            None => format!("SELECT * FROM {}.{}", quote(self.schema), quote(self.table)),
            Some((from, to)) => format!("SELECT * {}", self.text[from..to].trim_end()),
        }
    }

    /// What reads all columns of the table as the statement reads them, without rows.
    #[must_use]
    pub fn shape(&self, table: &Table) -> String {
        let all = format!("SELECT * FROM {}", quote(self.table));
        let texts = Texts {
            text: &all,
            qualified: Vec::new(),
            at: 0,
            before: "WITH ",
            behind: " ",
            part: None,
            table: self.table,
            schema: self.schema,
        };
        texts.answer(table, &vec![String::new(); table.columns.len()])
    }

    /// The statement over the rows: one array of values for each column, as `array_element` makes them.
    #[must_use]
    pub fn answer(&self, table: &Table, arrays: &[String]) -> String {
        let size: usize = arrays.iter().map(String::len).sum();
        let mut out = String::with_capacity(self.text.len() + size + 100 * arrays.len());
        out.push_str(&self.text[..self.at]);
        out.push_str(self.before);
        let _ = write!(out, "{} AS MATERIALIZED (SELECT ", quote(self.table));
        for (at, (name, source)) in table.columns.iter().zip(&table.sources).enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            let _ = write!(out, "{comma}{}::{source} AS {0}", quote(name));
        }
        out.push_str(" FROM ROWS FROM (");
        for (at, array) in arrays.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { ", " });
            out.push_str("pg_catalog.unnest(E'{");
            out.push_str(array);
            out.push_str("}'::pg_catalog.text[])");
        }
        out.push_str(") AS gathered(");
        for (at, name) in table.columns.iter().enumerate() {
            out.push_str(if at == 0 { "" } else { ", " });
            out.push_str(&quote(name));
        }
        out.push_str("))");
        out.push_str(self.behind);
        let mut from = self.at;
        for (start, end) in &self.qualified {
            out.push_str(&self.text[from..*start]);
            from = *end;
        }
        out.push_str(&self.text[from..]);
        out
    }
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

    fn both(text: &str) -> Option<(String, String)> {
        let gather = Gather {
            table: "orders".to_owned(),
            schema: "public".to_owned(),
            count: 1,
            plain: Plain::Yes,
        };
        let texts = gather.texts(text)?;
        Some((
            texts.question(),
            texts.answer(&table(), &["1".to_owned(), "\"a\"".to_owned()]),
        ))
    }

    #[test]
    fn a_statement_is_asked_of_the_shards_and_computed_over_their_rows() {
        let cte = "\"orders\" AS MATERIALIZED (SELECT \"id\"::bigint AS \"id\", \"Note\"::text COLLATE pg_catalog.\"C\" AS \"Note\" \
                   FROM ROWS FROM (pg_catalog.unnest(E'{1}'::pg_catalog.text[]), pg_catalog.unnest(E'{\"a\"}'::pg_catalog.text[])) AS gathered(\"id\", \"Note\"))";
        let (question, answer) =
            both("SELECT count(*) FROM orders o WHERE o.id > 5 ORDER BY 1").unwrap();
        assert_eq!(question, "SELECT * FROM orders o WHERE o.id > 5");
        assert_eq!(
            answer,
            format!("WITH {cte} SELECT count(*) FROM orders o WHERE o.id > 5 ORDER BY 1")
        );
        let (question, answer) =
            both("WITH RECURSIVE x AS (SELECT 1) SELECT * FROM x, orders").unwrap();
        assert_eq!(question, "SELECT * FROM \"public\".\"orders\"");
        assert_eq!(
            answer,
            format!("WITH RECURSIVE {cte}, x AS (SELECT 1) SELECT * FROM x, orders")
        );
    }

    #[test]
    fn only_a_where_of_the_statements_own_table_is_computed_by_the_shards() {
        for text in [
            "SELECT * FROM orders WHERE id IN (SELECT id FROM x)",
            "SELECT * FROM orders JOIN countries ON true WHERE code = 'x'",
            "SELECT * FROM orders, countries WHERE code = 'x'",
            "SELECT * FROM orders WHERE day = current_date",
            "SELECT * FROM orders",
            "(SELECT * FROM orders WHERE id = 1) UNION SELECT 1",
        ] {
            assert_eq!(
                both(text).unwrap().0,
                "SELECT * FROM \"public\".\"orders\"",
                "{text}"
            );
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
