//! Aggregates and DISTINCT in two steps: every shard gives one row for each of its groups, with partial results, and the
//! statement is computed over these rows. Pure.
//!
//! What must stay true: what is made of the partial results is what PostgreSQL makes of all rows, to the last digit. The
//! groups are PostgreSQL's own in both steps; where they are made by expressions, the values of one row of each group
//! stand for all of them. Sums of floats are added up as PostgreSQL's own parallel aggregation adds them.

use super::{
    Asked, Edit, Named, Texts,
    calls::{Call, Function, Repeats, aggregates},
    order::{First, Key, Scope, columns_of, first_rows, is_star, own, sole_column, value},
    outline::{Distinct, Outline, Span},
    quote,
};
use crate::{catalog::snapshot::Table, sql::clauses::Token, wire::types::Oid};

/// The question for groups, before the types of partial results are known.
#[derive(Debug)]
pub struct Groups<'a> {
    pub question: String,
    outline: &'a Outline<'a>,
    table: &'a Table,
    /// The CTE's columns of the table.
    columns: Vec<String>,
    /// How many columns of the question's they are made of.
    width: usize,
    partials: Vec<Partial>,
    calls: Vec<Made>,
    edits: Vec<Edit>,
}

/// A partial result.
#[derive(Debug, PartialEq, Eq)]
struct Partial {
    text: String,
    /// The column that its argument is.
    column: Option<usize>,
    /// Of the argument, if it is a text; empty: the default.
    collation: Option<String>,
}

/// An aggregate and the numbers of the partial results that it is made of.
#[derive(Debug)]
struct Made {
    call: Call,
    first: usize,
    second: Option<usize>,
}

/// Types whose values read back from a cast to text as they were.
const WRITTEN: [&str; 17] = [
    "smallint",
    "integer",
    "bigint",
    "numeric",
    "real",
    "double precision",
    "text",
    "character varying",
    "character",
    "date",
    "time",
    "timestamp",
    "uuid",
    "boolean",
    "interval",
    "bytea",
    "jsonb",
];
/// Types of text.
const TEXTS: [&str; 3] = ["text", "character varying", "character"];
const INT8: Oid = 20;
const FLOAT4: Oid = 700;
const FLOAT8: Oid = 701;
const INTERVAL: Oid = 1186;
const NUMERIC: Oid = 1700;
/// `FirstNormalObjectId`: types from here on are the database's own.
const FIRST_OWN: Oid = 16384;

/// The question for groups; `None`: the statement has none, or is not made of parts.
pub(super) fn asked<'a>(
    texts: &'a Texts<'a>,
    named: &[Named],
    names: &[String],
) -> Option<Groups<'a>> {
    let outline = texts.outline.as_ref()?;
    let calls = aggregates(outline)?;
    let scope = Scope::new(outline, texts.table, named, names)?;
    let keys = keys(&scope, &calls)?;
    let mut partials = Vec::new();
    let mut made = Vec::new();
    for call in calls
        .iter()
        .filter(|call| call.distinct == Repeats::Counted)
    {
        made.push(Made::of(outline, texts.table, *call, &mut partials)?);
    }
    let (columns, mut selected) = groups(outline, texts.table, &keys)?;
    let width = selected.len();
    selected.extend(partials.iter().map(|partial| partial.text.clone()));
    // No name of a column orders by what is selected here.
    for (number, value) in selected.iter_mut().enumerate() {
        *value = format!("{value} AS {}", quote(&hidden(number)));
    }
    let filter = outline.filter.map_or("", |filter| outline.text(filter));
    let mut question = format!(
        "SELECT {} {} {filter}",
        selected.join(", "),
        outline.text(outline.from)
    );
    if !keys.is_empty() {
        let keys: Vec<&str> = keys.iter().map(|key| key.text.as_str()).collect();
        question.push_str(" GROUP BY ");
        question.push_str(&keys.join(", "));
    }
    if calls.is_empty() && outline.groups.is_empty() {
        let tail = scope.order_by().zip(first_rows(outline));
        if let Some((order, limit)) = tail {
            question.push_str(&order);
            question.push_str(&limit);
        }
    }
    let edits = edits(outline, named, &calls, names)?;
    Some(Groups {
        question,
        outline,
        table: texts.table,
        columns,
        width,
        partials,
        calls: made,
        edits,
    })
}

/// What the shards group by; `None`: there are no groups.
fn keys(scope: &Scope<'_>, calls: &[Call]) -> Option<Vec<Key>> {
    let (outline, mut keys) = (scope.outline, Vec::new());
    if !outline.groups.is_empty() {
        let constant = |item: &Span| {
            columns_of(outline, scope.table, *item).is_empty()
                && outline.bare(*item).to > outline.bare(*item).from + 1
        };
        for item in outline.groups.iter().filter(|item| !constant(item)) {
            keys.push(scope.key(*item, First::Columns)?);
        }
        if keys.is_empty() {
            return None;
        }
    } else if calls.is_empty() {
        if outline.distinct != Distinct::Yes || outline.having.is_some() {
            return None;
        }
        let outputs = scope
            .outputs
            .iter()
            .filter(|output| !output.columns.is_empty());
        keys.extend(outputs.map(|output| Key {
            text: output.text.clone(),
            columns: output.columns.clone(),
        }));
        if keys.is_empty() {
            return None;
        }
        return Some(keys);
    }
    let stars = outline
        .targets
        .iter()
        .any(|target| is_star(outline, *target));
    if stars {
        return None;
    }
    let expression = |span: Span| Key {
        text: format!("({})", outline.text(span)),
        columns: columns_of(outline, scope.table, span),
    };
    for call in calls.iter().filter(|call| call.distinct == Repeats::Once) {
        let argument = expression(call.arguments);
        if argument.columns.is_empty() {
            return None;
        }
        keys.push(argument);
        keys.extend(
            call.filter
                .map(expression)
                .filter(|filter| !filter.columns.is_empty()),
        );
    }
    Some(keys)
}

/// The CTE's columns for the groups, and what they are made of: the columns themselves where they are grouped by, else
/// the values of one row of each group.
fn groups(
    outline: &Outline<'_>,
    table: &Table,
    keys: &[Key],
) -> Option<(Vec<String>, Vec<String>)> {
    let mut needed: Vec<usize> = keys
        .iter()
        .flat_map(|key| key.columns.iter().copied())
        .collect();
    needed.sort_unstable();
    needed.dedup();
    let is_column = |key: &Key| {
        let [at] = key.columns.as_slice() else {
            return false;
        };
        let column = own(outline, &table.columns[*at]);
        key.text == column || is_sole(outline, table, &key.text, *at)
    };
    let as_column = |value: &str, at: usize| {
        format!(
            "{value}::{} AS {}",
            table.sources[at],
            quote(&table.columns[at])
        )
    };
    if keys.iter().all(is_column) {
        let numbered = needed.iter().enumerate();
        let columns = numbered.map(|(number, at)| as_column(&format!("c{}", number + 1), *at));
        let selected = needed.iter().map(|at| own(outline, &table.columns[*at]));
        return Some((columns.collect(), selected.collect()));
    }
    let written = |at: &usize| is_of(&WRITTEN, &table.sources[*at]);
    if !needed.iter().all(written) {
        return None;
    }
    let values: Vec<String> = needed
        .iter()
        .map(|at| format!("{}::pg_catalog.text", own(outline, &table.columns[*at])))
        .collect();
    let row = format!(
        "pg_catalog.min((ARRAY[{}]) COLLATE pg_catalog.\"C\")",
        values.join(", ")
    );
    let numbered = needed.iter().enumerate();
    let columns = numbered
        .map(|(number, at)| as_column(&format!("(c1::pg_catalog.text[])[{}]", number + 1), *at));
    Some((columns.collect(), vec![row]))
}

/// Whether the key's text is this column of the relation in any of its spellings.
fn is_sole(outline: &Outline<'_>, table: &Table, text: &str, column: usize) -> bool {
    let Some(tokens) = crate::sql::clauses::tokens(text) else {
        return false;
    };
    let names: Vec<_> = tokens
        .iter()
        .filter(|token| token.text != "(" && token.text != ")")
        .collect();
    let relation = &outline.tokens[outline.relation];
    match names.as_slice() {
        [own] => own.names(&table.columns[column]),
        [named, dot, own] if dot.text == "." => {
            own.names(&table.columns[column])
                && named.text.to_lowercase() == relation.text.to_lowercase()
        }
        _ => false,
    }
}

/// What of the statement is written otherwise, besides the aggregates: WHERE has been computed, and output columns keep
/// the names that they have by the aggregates.
fn edits(
    outline: &Outline<'_>,
    named: &[Named],
    calls: &[Call],
    names: &[String],
) -> Option<Vec<Edit>> {
    let mut edits = Vec::new();
    if let Some(filter) = outline.filter {
        let (from, to) = outline.bytes(filter);
        edits.push(Edit {
            from,
            to,
            text: String::new(),
        });
    }
    if calls.is_empty() {
        return Some(edits);
    }
    for (at, (target, named)) in outline.targets.iter().zip(named).enumerate() {
        let inside = |call: &Call| call.whole.from >= target.from && call.whole.to <= target.to;
        if *named == Named::No && calls.iter().any(inside) {
            let (_, end) = outline.bytes(value(outline, *target, *named));
            let text = format!(" AS {}", quote(names.get(at)?));
            edits.push(Edit {
                from: end,
                to: end,
                text,
            });
        }
    }
    Some(edits)
}

impl Made {
    /// Adds the partial results that a call is made of.
    fn of(
        outline: &Outline<'_>,
        table: &Table,
        call: Call,
        partials: &mut Vec<Partial>,
    ) -> Option<Self> {
        let arguments = outline.text(call.arguments);
        let filter = call.filter.map_or_else(String::new, |filter| {
            format!(" FILTER (WHERE {})", outline.text(filter))
        });
        let column = sole_column(outline, table, call.arguments);
        let collation = collation(outline, table, call.arguments);
        let mut number = |function: &str| {
            let text = format!("pg_catalog.{function}({arguments}){filter}");
            let partial = Partial {
                text,
                column,
                collation: collation.clone(),
            };
            partials
                .iter()
                .position(|known| *known == partial)
                .unwrap_or_else(|| {
                    partials.push(partial);
                    partials.len() - 1
                })
        };
        let first = number(call.function.first());
        let second = (call.function == Function::Average).then(|| number("count"));
        Some(Self {
            call,
            first,
            second,
        })
    }

    /// What it is made of the partial results, whose types are known; `None`: not exactly.
    fn text(&self, types: &[Oid]) -> Option<String> {
        let kind = *types.get(self.first)?;
        let partial = |number: usize| quote(&hidden(number));
        let first = partial(self.first);
        Some(match (self.call.function, kind) {
            (Function::Count, INT8) => {
                format!("(coalesce(pg_catalog.sum({first}), 0)::pg_catalog.int8)")
            }
            (Function::Sum, INT8) => format!("(pg_catalog.sum({first})::pg_catalog.int8)"),
            (Function::Sum, NUMERIC | FLOAT4 | FLOAT8 | INTERVAL) => {
                format!("(pg_catalog.sum({first}))")
            }
            (Function::Average, INT8 | NUMERIC) => {
                let count = partial(self.second?);
                format!("(pg_catalog.sum({first}) OPERATOR(pg_catalog./) pg_catalog.sum({count}))")
            }
            (Function::Average, INTERVAL) => {
                let count = partial(self.second?);
                format!(
                    "(pg_catalog.sum({first}) OPERATOR(pg_catalog./) pg_catalog.sum({count})::pg_catalog.float8)"
                )
            }
            (Function::Minimum | Function::Maximum | Function::And | Function::Or, _) => {
                format!("(pg_catalog.{}({first}))", self.call.function.name())
            }
            (Function::Count | Function::Sum | Function::Average, _) => return None,
        })
    }
}

impl Function {
    /// The partial result that it is made of, or the first of two.
    fn first(self) -> &'static str {
        if self == Self::Average {
            "sum"
        } else {
            self.name()
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Count => "count",
            Self::Sum => "sum",
            Self::Average => "avg",
            Self::Minimum => "min",
            Self::Maximum => "max",
            Self::And => "bool_and",
            Self::Or => "bool_or",
        }
    }
}

impl Groups<'_> {
    /// The statement over the rows of the question, whose columns have these types; `None`: not exactly.
    #[must_use]
    pub fn finish(&self, types: &[Oid]) -> Option<Asked> {
        let types = types.get(self.width..)?;
        let mut columns = self.columns.clone();
        for (number, partial) in self.partials.iter().enumerate() {
            let source = self.source(partial, *types.get(number)?)?;
            columns.push(format!(
                "c{}::{source} AS {}",
                self.width + number + 1,
                quote(&hidden(number))
            ));
        }
        let mut edits = self.edits.clone();
        for made in &self.calls {
            let (from, to) = self.outline.bytes(made.call.whole);
            edits.push(Edit {
                from,
                to,
                text: made.text(types)?,
            });
        }
        Some(Asked {
            question: self.question.clone(),
            columns,
            width: self.width + self.partials.len(),
            edits,
        })
    }

    /// The type and collation of a partial result, as SQL names them.
    fn source(&self, partial: &Partial, kind: Oid) -> Option<String> {
        let source = partial.column.map(|at| self.table.sources[at].as_str());
        let base = match kind {
            FIRST_OWN.. => return source.map(str::to_owned),
            25 | 1042 => {
                let name = if kind == 25 {
                    "pg_catalog.text"
                } else {
                    "pg_catalog.bpchar"
                };
                return Some(format!("{name}{}", partial.collation.as_ref()?));
            }
            16 => "bool",
            17 => "bytea",
            INT8 => "int8",
            21 => "int2",
            23 => "int4",
            26 => "oid",
            FLOAT4 => "float4",
            FLOAT8 => "float8",
            869 => "inet",
            1082 => "date",
            1083 => "time",
            1114 => "timestamp",
            1184 => "timestamptz",
            INTERVAL => "interval",
            1266 => "timetz",
            NUMERIC => "numeric",
            2950 => "uuid",
            _ => return None,
        };
        Some(format!("pg_catalog.{base}"))
    }
}

/// The collation of an expression, if it is a text; `None`: it is not known.
fn collation(outline: &Outline<'_>, table: &Table, span: Span) -> Option<String> {
    let own = |at: usize| -> Option<String> {
        let source = table.sources[at].as_str();
        let collation = source
            .split_once(" COLLATE ")
            .map(|(_, name)| format!(" COLLATE {name}"));
        is_of(&TEXTS, source).then(|| collation.unwrap_or_default())
    };
    if let Some(at) = sole_column(outline, table, span) {
        return own(at);
    }
    // What is made of the default alone has the default.
    let tokens = &outline.tokens[span.from..span.to];
    let other = |word: &Token<'_>| {
        ["collate", "cast", "name"]
            .iter()
            .any(|other| word.is(other))
    };
    let casts = tokens.iter().any(|token| token.text == ":" || other(token));
    let plain = |at: &usize| {
        let source = &table.sources[*at];
        is_of(&WRITTEN, source) && !source.contains(" COLLATE ")
    };
    let columns = columns_of(outline, table, span);
    (!casts && columns.iter().all(plain)).then(String::new)
}

/// Whether it is one of these types of PostgreSQL's own, with any modifier and collation.
fn is_of(types: &[&str], source: &str) -> bool {
    let named = |name: &&str| {
        let rest = source.strip_prefix(*name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['(', ' ']))
    };
    types.iter().any(named) && !source.contains('[')
}

/// What a partial result is called.
fn hidden(number: usize) -> String {
    format!("shardway {}", number + 1)
}
