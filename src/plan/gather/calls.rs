//! What a query calls: aggregates that are made of parts, and functions that give one value for one row. Pure.
//!
//! What must stay true: a query that calls anything else, or whose words could hide a call, is not divided.

use super::outline::{Outline, Span, Windows};
use crate::sql::clauses::{Kind, Token};

/// An aggregate whose value over all rows follows from its values over parts of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    Count,
    Sum,
    Average,
    Minimum,
    Maximum,
    And,
    Or,
}

/// A call of an aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) function: Function,
    /// All of it, with its FILTER.
    pub(super) whole: Span,
    /// Between the parentheses, without DISTINCT; `count(*)`: the star.
    pub(super) arguments: Span,
    pub(super) distinct: Repeats,
    /// The condition of FILTER.
    pub(super) filter: Option<Span>,
}

/// Whether equal arguments count once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeats {
    Counted,
    Once,
}

/// What groups by several sets.
const GROUPING_SETS: [&str; 3] = ["cube", "rollup", "sets"];
/// Immutable functions of `pg_catalog` that give several rows.
const SETS: [&str; 19] = [
    "generate_series",
    "generate_subscripts",
    "json_array_elements",
    "json_array_elements_text",
    "json_each",
    "json_each_text",
    "json_object_keys",
    "jsonb_array_elements",
    "jsonb_array_elements_text",
    "jsonb_each",
    "jsonb_each_text",
    "jsonb_object_keys",
    "jsonb_path_query",
    "pg_snapshot_xip",
    "regexp_matches",
    "regexp_split_to_table",
    "string_to_table",
    "txid_snapshot_xip",
    "unnest",
];
/// Words of the grammar that stand before a parenthesis.
const SYNTAX: [&str; 40] = [
    "and",
    "or",
    "not",
    "in",
    "any",
    "some",
    "all",
    "between",
    "like",
    "ilike",
    "similar",
    "to",
    "is",
    "distinct",
    "from",
    "case",
    "when",
    "then",
    "else",
    "where",
    "by",
    "on",
    "having",
    "select",
    "limit",
    "offset",
    "first",
    "next",
    "filter",
    "coalesce",
    "nullif",
    "greatest",
    "least",
    "cast",
    "extract",
    "row",
    "using",
    "escape",
    "collate",
    "symmetric",
];
/// What the grammar makes of functions of `pg_catalog` that give one value always and everywhere.
const SPELLED: [&str; 5] = ["position", "substring", "overlay", "trim", "normalize"];
/// Types with modifiers.
const TYPES: [&str; 14] = [
    "numeric",
    "decimal",
    "dec",
    "varchar",
    "char",
    "character",
    "varying",
    "nchar",
    "bpchar",
    "bit",
    "time",
    "timestamp",
    "timestamptz",
    "interval",
];
/// Functions whose value follows from their arguments and from settings that every shard is told.
const SETTLED: [&str; 13] = [
    "array_to_string",
    "concat",
    "concat_ws",
    "date_part",
    "date_trunc",
    "extract",
    "length",
    "make_timestamptz",
    "quote_literal",
    "quote_nullable",
    "timezone",
    "to_json",
    "to_jsonb",
];

/// Whether a function gives the same on every shard that has been told the session's settings.
pub(crate) fn is_settled(name: &str) -> bool {
    SETTLED.contains(&name) || crate::sql::functions::is_immutable(name)
}

/// The calls of aggregates; `None`: something is called, or could be, that is not understood.
pub(super) fn aggregates(outline: &Outline<'_>) -> Option<Vec<Call>> {
    if outline.windows != Windows::None
        || !outline
            .tokens
            .iter()
            .enumerate()
            .all(|(at, _)| is_plain(outline, at))
    {
        return None;
    }
    let mut calls = Vec::new();
    let mut at = 0;
    while at < outline.tokens.len() {
        match function(outline, at) {
            Some(function) => {
                let call = call(outline, at, function)?;
                at = call.whole.to;
                calls.push(call);
            }
            None => at += 1,
        }
    }
    Some(calls)
}

/// Whether the token can hide nothing.
fn is_plain(outline: &Outline<'_>, at: usize) -> bool {
    let tokens = &outline.tokens;
    let token = &tokens[at];
    let calls = tokens
        .get(at + 1)
        .is_some_and(|next| next.text == "(" && next.kind == Kind::Sign);
    match token.kind {
        Kind::Value => !is_a_time(token),
        Kind::Sign => true,
        // A function of the database's own, or a type of its own.
        Kind::Quoted => !calls,
        Kind::Word => {
            let word = token.text.to_ascii_lowercase();
            let word = word.as_str();
            let timeless = !is_of_the_moment(token);
            let known = |list: &[&str]| list.contains(&word);
            let called = function_named(word).is_some()
                || known(&SYNTAX)
                || known(&SPELLED)
                || known(&TYPES)
                || !crate::sql::functions::computes_over_rows(word)
                    && !known(&GROUPING_SETS)
                    && !known(&SETS)
                    && is_settled(word);
            let alone = at > 0 && (tokens[at - 1].text == "." || tokens[at - 1].is("as"));
            let divides = ["over", "within", "natural", "grouping", "variadic"].contains(&word);
            (alone || timeless && !divides) && (!calls || called)
        }
    }
}

/// Whether it is a string that may mean the time of its reading.
pub(super) fn is_a_time(token: &Token<'_>) -> bool {
    let text = token.text.to_ascii_lowercase();
    let mut words = text.split(|c: char| !c.is_ascii_alphanumeric());
    token.kind == Kind::Value
        && words.any(|word| ["now", "today", "tomorrow", "yesterday"].contains(&word))
}

/// Whether it is a word for the time or the user of the transaction.
pub(super) fn is_of_the_moment(token: &Token<'_>) -> bool {
    let word = token.text.to_ascii_lowercase();
    token.kind == Kind::Word
        && (word.starts_with("current_")
            || word.starts_with("localtime")
            || word.ends_with("_user"))
}

fn function_named(word: &str) -> Option<Function> {
    Some(match word {
        "count" => Function::Count,
        "sum" => Function::Sum,
        "avg" => Function::Average,
        "min" => Function::Minimum,
        "max" => Function::Maximum,
        "bool_and" | "every" => Function::And,
        "bool_or" => Function::Or,
        _ => return None,
    })
}

/// The aggregate that is called at this place.
fn function(outline: &Outline<'_>, at: usize) -> Option<Function> {
    let token = &outline.tokens[at];
    let open = outline.tokens.get(at + 1)?;
    let called = token.kind == Kind::Word && open.kind == Kind::Sign && open.text == "(";
    called.then(|| function_named(&token.text.to_ascii_lowercase()))?
}

fn call(outline: &Outline<'_>, at: usize, function: Function) -> Option<Call> {
    let tokens = &outline.tokens;
    let qualified = at >= 1 && tokens[at - 1].text == ".";
    if qualified && !(at >= 2 && tokens[at - 2].is("pg_catalog")) {
        return None;
    }
    let from = if qualified { at - 2 } else { at };
    let mut to = outline.behind(at + 1)?;
    let mut arguments = Span {
        from: at + 2,
        to: to - 1,
    };
    if arguments.from >= arguments.to {
        return None;
    }
    let distinct = if tokens[arguments.from].is("distinct") {
        arguments.from += 1;
        Repeats::Once
    } else {
        if tokens[arguments.from].is("all") {
            arguments.from += 1;
        }
        Repeats::Counted
    };
    let depth = tokens[at].depth + 1;
    let sorted = |token: &Token<'_>| token.depth == depth && token.is("order");
    if arguments.from >= arguments.to
        || tokens[arguments.from..arguments.to].iter().any(sorted)
        || outline.parts(arguments)?.len() != 1
    {
        return None;
    }
    let mut filter = None;
    if tokens.get(to).is_some_and(|next| next.is("filter"))
        && tokens.get(to + 1).is_some_and(|next| next.text == "(")
    {
        let end = outline.behind(to + 1)?;
        if !tokens.get(to + 2)?.is("where") {
            return None;
        }
        filter = Some(Span {
            from: to + 3,
            to: end - 1,
        });
        to = end;
    }
    Some(Call {
        function,
        whole: Span { from, to },
        arguments,
        distinct,
        filter,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::clauses::tokens;

    fn calls(text: &str) -> Option<Vec<String>> {
        let outline = Outline::of(text, tokens(text)?)?;
        let found = aggregates(&outline)?;
        let shown = found.iter().map(|call| {
            let filter = call.filter.map_or("", |filter| outline.text(filter));
            format!(
                "{:?} {} {:?} {filter}",
                call.function,
                outline.text(call.arguments),
                call.distinct
            )
        });
        Some(shown.collect())
    }

    #[test]
    fn aggregates_are_found_with_their_arguments() {
        assert_eq!(
            calls("SELECT count(*)::text, pg_catalog.sum(ALL a + abs(b)) FILTER (WHERE c > 1) / 2 FROM t HAVING count(DISTINCT x) > 1 ORDER BY every(d)").unwrap(),
            ["Count * Counted ", "Sum a + abs(b) Counted c > 1", "Count x Once ", "And d Counted "]
        );
        assert_eq!(
            calls("SELECT count, t.sum, lower(a) FROM t").unwrap(),
            Vec::<String>::new()
        );
    }

    #[test]
    fn what_is_not_made_of_parts_is_not_divided() {
        for text in [
            "SELECT string_agg(a, ',') FROM t",
            "SELECT sum(a) OVER () FROM t",
            "SELECT sum(a ORDER BY b) FROM t",
            "SELECT unnest(a) FROM t LIMIT 1",
            "SELECT own(a) FROM t",
            "SELECT \"sum\"(a) FROM t",
            "SELECT public.sum(a) FROM t",
            "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t",
            "SELECT count(*) FROM t GROUP BY GROUPING SETS ((a), (b))",
            "SELECT a FROM t WHERE b > current_timestamp ORDER BY a LIMIT 1",
            "SELECT a FROM t WHERE b > ' Now ' ORDER BY a LIMIT 1",
            "SELECT random() FROM t LIMIT 1",
            "SELECT a FROM t WHERE EXISTS (VALUES (1))",
        ] {
            assert_eq!(calls(text), None, "{text}");
        }
    }
}
