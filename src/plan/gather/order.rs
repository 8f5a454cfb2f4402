//! What shards can leave out because of ORDER BY, LIMIT and DISTINCT ON: each gives its own first rows. Pure.
//!
//! What must stay true: the shards order by what the statement orders by. An ordinal or the name of an output column is
//! written out as its expression, and what orders by nothing of the table is not passed on.

use super::{
    Named,
    columns::is_named,
    outline::{Limit, Outline, Span, Ties},
    quote,
};
use crate::{
    catalog::snapshot::Table,
    sql::clauses::{Kind, Token},
};

/// A column of the result.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: String,
    pub(super) text: String,
    /// The table's columns that it may be made of.
    pub(super) columns: Vec<usize>,
}

/// A query with what its output columns are called.
pub(super) struct Scope<'a> {
    pub(super) outline: &'a Outline<'a>,
    pub(super) table: &'a Table,
    pub(super) outputs: Vec<Output>,
}

/// Where names are looked for first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum First {
    /// GROUP BY.
    Columns,
    /// ORDER BY, DISTINCT ON.
    Outputs,
}

/// An expression over one row of the table.
#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) text: String,
    pub(super) columns: Vec<usize>,
}

impl<'a> Scope<'a> {
    /// `names`: of the output columns; `None`: they are not those of the targets.
    pub(super) fn new(
        outline: &'a Outline<'a>,
        table: &'a Table,
        named: &[Named],
        names: &[String],
    ) -> Option<Self> {
        if named.len() != outline.targets.len() {
            return None;
        }
        let mut names = names.iter();
        let mut outputs = Vec::with_capacity(names.len());
        for (target, named) in outline.targets.iter().zip(named) {
            if is_star(outline, *target) {
                for (at, column) in table.columns.iter().enumerate() {
                    outputs.push(Output {
                        name: names.next().filter(|name| *name == column)?.clone(),
                        text: own(outline, column),
                        columns: vec![at],
                    });
                }
                continue;
            }
            let value = value(outline, *target, *named);
            outputs.push(Output {
                name: names.next()?.clone(),
                text: format!("({})", outline.text(value)),
                columns: columns_of(outline, table, value),
            });
        }
        names.next().is_none().then_some(Self {
            outline,
            table,
            outputs,
        })
    }

    /// ORDER BY for the shards, with a blank before it; `None`: not the same there.
    pub(super) fn order_by(&self) -> Option<String> {
        let mut out = String::new();
        for item in &self.outline.order {
            let (value, direction) = self.direction(*item);
            let key = self.key(value, First::Outputs)?;
            out.push_str(if out.is_empty() { " ORDER BY " } else { ", " });
            out.push_str(&key.text);
            if let Some(direction) = direction {
                out.push(' ');
                out.push_str(self.outline.text(direction));
            }
        }
        Some(out)
    }

    /// An item of ORDER BY, GROUP BY or DISTINCT ON, as an expression over the table's columns; `None`: it is none.
    pub(super) fn key(&self, item: Span, first: First) -> Option<Key> {
        let bare = self.outline.bare(item);
        let tokens = &self.outline.tokens[bare.from..bare.to];
        let [token] = tokens else {
            let columns = columns_of(self.outline, self.table, bare);
            let text = format!("({})", self.outline.text(item));
            let sole = self
                .outline
                .parts(bare)
                .is_some_and(|parts| parts.len() == 1);
            return (sole && !columns.is_empty()).then_some(Key { text, columns });
        };
        let output = |output: &Output| {
            let key = Key {
                text: output.text.clone(),
                columns: output.columns.clone(),
            };
            (!key.columns.is_empty()).then_some(key)
        };
        if token.kind == Kind::Value {
            let number: usize = token.text.parse().ok()?;
            return output(self.outputs.get(number.checked_sub(1)?)?);
        }
        let column = self
            .table
            .columns
            .iter()
            .position(|column| token.names(column));
        let shown = self.outputs.iter().find(|output| token.names(&output.name));
        match (column, shown, first) {
            (_, Some(shown), First::Outputs) | (None, Some(shown), First::Columns) => output(shown),
            (Some(at), _, _) => Some(Key {
                text: own(self.outline, &self.table.columns[at]),
                columns: vec![at],
            }),
            (None, None, _) => None,
        }
    }

    /// What is ordered by, and how.
    fn direction(&self, item: Span) -> (Span, Option<Span>) {
        let tokens = &self.outline.tokens;
        let depth = tokens[item.from].depth;
        let turns = |at: &usize| {
            let token = &tokens[*at];
            let nulls = token.is("nulls")
                && tokens
                    .get(at + 1)
                    .is_some_and(|next| next.is("first") || next.is("last"));
            let word = token.is("asc") || token.is("desc") || token.is("using") || nulls;
            word && token.depth == depth && tokens[at - 1].text != "."
        };
        match (item.from + 1..item.to).find(turns) {
            None => (item, None),
            Some(at) => (Span { to: at, ..item }, Some(Span { from: at, ..item })),
        }
    }
}

/// The names of output columns as far as the text gives them.
pub(super) fn given_names(outline: &Outline<'_>, table: &Table, named: &[Named]) -> Vec<String> {
    let mut names = Vec::new();
    for (target, named) in outline.targets.iter().zip(named) {
        let last = &outline.tokens[target.to - 1];
        let at = sole_column(outline, table, *target);
        match (named, at) {
            _ if is_star(outline, *target) => names.extend(table.columns.iter().cloned()),
            (Named::Yes, _) if last.kind == Kind::Quoted => {
                names.push(last.text.replace("\"\"", "\""));
            }
            (Named::Yes, _) => names.push(last.text.to_lowercase()),
            (Named::No, Some(at)) => names.push(table.columns[at].clone()),
            (Named::No, None) => names.push("?column?".to_owned()),
        }
    }
    names
}

/// How many rows each shard gives, with a blank before it; `None`: all.
pub(super) fn first_rows(outline: &Outline<'_>) -> Option<String> {
    let limit = outline.limit.as_ref()?;
    let text = |span: Option<Span>, default: &str| {
        span.map_or_else(|| default.to_owned(), |span| outline.text(span).to_owned())
    };
    let (count, offset) = (text(limit.count, "1"), text(outline.offset, "0"));
    let numbers = count.parse::<u32>().ok().zip(offset.parse::<u32>().ok());
    let rows = match numbers {
        Some((count, offset)) => (u64::from(count) + u64::from(offset)).to_string(),
        // What PostgreSQL refuses in either is refused by the shard that answers.
        None => format!(
            "(SELECT CASE WHEN wanted < 0 THEN 0 WHEN wanted > 9223372036854775807 THEN NULL \
             ELSE wanted::pg_catalog.int8 END FROM (SELECT ({count})::pg_catalog.int8::pg_catalog.numeric + \
             coalesce(({offset})::pg_catalog.int8::pg_catalog.numeric, 0) AS wanted) AS counted)"
        ),
    };
    Some(match limit {
        Limit {
            ties: Ties::Dropped,
            ..
        } => format!(" LIMIT {rows}"),
        Limit {
            ties: Ties::Kept, ..
        } => format!(" FETCH FIRST {rows} ROWS WITH TIES"),
    })
}

/// A column of the relation, which no output column can hide.
pub(super) fn own(outline: &Outline<'_>, column: &str) -> String {
    let relation = &outline.tokens[outline.relation];
    let name = match relation.kind {
        Kind::Quoted => format!("\"{}\"", relation.text),
        Kind::Word | Kind::Value | Kind::Sign => relation.text.to_owned(),
    };
    format!("{name}.{}", quote(column))
}

/// The numbers of the columns that may be named there.
pub(super) fn columns_of(outline: &Outline<'_>, table: &Table, span: Span) -> Vec<usize> {
    let tokens = &outline.tokens[span.from..span.to];
    let all = 0..table.columns.len();
    all.filter(|at| is_named(tokens, &table.columns[*at]))
        .collect()
}

/// The column that stands there and nothing else, with its relation or without.
pub(super) fn sole_column(outline: &Outline<'_>, table: &Table, span: Span) -> Option<usize> {
    let bare = outline.bare(span);
    let tokens: &[Token<'_>] = &outline.tokens[bare.from..bare.to];
    let name = match tokens {
        [name] => name,
        [_, dot, name] if dot.text == "." => name,
        _ => return None,
    };
    table.columns.iter().position(|column| name.names(column))
}

/// `*`, `orders.*`.
pub(super) fn is_star(outline: &Outline<'_>, target: Span) -> bool {
    let last = &outline.tokens[target.to - 1];
    last.text == "*" && last.kind == Kind::Sign
}

/// A target without its name.
pub(super) fn value(outline: &Outline<'_>, target: Span, named: Named) -> Span {
    match named {
        Named::No => target,
        Named::Yes if target.to >= target.from + 3 && outline.tokens[target.to - 2].is("as") => {
            Span {
                to: target.to - 2,
                ..target
            }
        }
        Named::Yes => Span {
            to: (target.to - 1).max(target.from + 1),
            ..target
        },
    }
}
