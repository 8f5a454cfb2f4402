//! A SELECT by its tokens: its output columns and what they are called, and where its clauses stand. Pure.

use super::{Count, WORDS};
use crate::sql::{
    clauses::{Kind as Sign, Token},
    functions::is_immutable,
};

/// An output column.
pub(super) struct Output<'t> {
    pub(super) name: OutputName<'t>,
    pub(super) expression: &'t [Token<'t>],
}

pub(super) enum OutputName<'t> {
    Named(&'t Token<'t>),
    /// All columns of one or of all relations.
    Star,
    /// No name of a column.
    None,
    /// PostgreSQL finds one for it.
    Unknown,
}

pub(super) fn outputs<'t>(
    tokens: &'t [Token<'t>],
    items: &[std::ops::Range<usize>],
) -> Vec<Output<'t>> {
    let outputs = items.iter().map(|item| {
        let item = &tokens[item.clone()];
        let (name, expression) = match item {
            [.., star] if star.text == "*" => (OutputName::Star, item),
            [expression @ .., word, name] if word.is("as") && !expression.is_empty() => {
                (OutputName::Named(name), expression)
            }
            [expression @ .., name] if is_column(expression) && is_name(name) => {
                (OutputName::Named(name), expression)
            }
            [.., name] if is_column(item) => (OutputName::Named(name), item),
            [name, rest @ ..] if is_call(name, rest) => (OutputName::Named(name), item),
            _ if is_operation(item) => (OutputName::None, item),
            _ => (OutputName::Unknown, item),
        };
        Output { name, expression }
    });
    outputs.collect()
}

/// `f(…)` of a function whose name the column gets; what only looks like one (`cast`, `trim`) has a name of another kind.
fn is_call(name: &Token<'_>, rest: &[Token<'_>]) -> bool {
    let known = ["coalesce", "greatest", "least", "nullif"];
    let word = name.text.to_ascii_lowercase();
    let named = known.contains(&word.as_str()) || is_immutable(&word);
    let closes = |token: &Token<'_>| token.text == ")" && token.depth == name.depth;
    name.kind == Sign::Word
        && named
        && rest.first().is_some_and(|token| token.text == "(")
        && rest.iter().position(closes) == Some(rest.len() - 1)
}

/// An operator's result, which has no name that could be meant; without an alias.
fn is_operation(item: &[Token<'_>]) -> bool {
    let Some(first) = item.first() else {
        return false;
    };
    let is_operator = |token: &Token<'_>| {
        token.kind == Sign::Sign && token.text.chars().all(|c| "+-*/%|<>=^&#~".contains(c))
    };
    let outer = || item.iter().filter(|token| token.depth == first.depth);
    let bare = match item {
        [.., before, last] => !is_name(last) || is_operator(before) || before.text == ".",
        _ => first.kind == Sign::Value,
    };
    let computes = outer().any(is_operator) || item.len() == 1;
    bare && computes && !outer().any(|token| token.is("case"))
}

fn is_name(token: &Token<'_>) -> bool {
    matches!(token.kind, Sign::Word | Sign::Quoted)
}

/// `a`, `t.a`, `s.t.a`.
fn is_column(tokens: &[Token<'_>]) -> bool {
    let parts = tokens.iter().enumerate();
    tokens.len() % 2 == 1
        && parts.into_iter().all(|(at, token)| {
            if at % 2 == 0 {
                is_name(token)
            } else {
                token.text == "."
            }
        })
}

/// The output column that a name alone in ORDER BY means, before any column of the tables. Outer `None`: not known.
#[expect(clippy::option_option, reason = "not known, and known to be none")]
pub(super) fn output_named<'t>(
    name: &Token<'_>,
    outputs: &[Output<'t>],
) -> Option<Option<&'t [Token<'t>]>> {
    let identifier = match name.kind {
        Sign::Quoted => name.text.replace("\"\"", "\""),
        _ => name.text.to_lowercase(),
    };
    let mut found: Option<&'t [Token<'t>]> = None;
    for output in outputs {
        match output.name {
            OutputName::Unknown => return None,
            OutputName::Star | OutputName::None => {}
            OutputName::Named(known) if known.names(&identifier) => {
                let same = |other: &[Token<'_>]| {
                    let texts = |tokens: &[Token<'_>]| -> Vec<String> {
                        tokens.iter().map(|token| token.text.to_owned()).collect()
                    };
                    texts(other) == texts(output.expression)
                };
                if found.is_some_and(|other| !same(other)) {
                    return None;
                }
                found = Some(output.expression);
            }
            OutputName::Named(_) => {}
        }
    }
    Some(found)
}

/// Where the clauses of a SELECT stand, by their tokens.
pub(super) struct Clauses<'t> {
    tokens: &'t [Token<'t>],
    /// Whether a token stands outside of all parentheses and brackets.
    outer: Vec<bool>,
    from: usize,
    pub(super) order: Option<std::ops::Range<usize>>,
    /// The first word of LIMIT, OFFSET or FETCH.
    pub(super) tail: Option<usize>,
    pub(super) limit: Option<Count>,
    pub(super) offset: Option<Count>,
}

impl<'t> Clauses<'t> {
    pub(super) fn new(tokens: &'t [Token<'t>]) -> Option<Self> {
        let mut brackets = 0_i32;
        let outer = tokens.iter().map(|token| {
            brackets -= i32::from(token.text == "]" && token.kind == Sign::Sign);
            let outer = token.depth == 0 && brackets == 0;
            brackets += i32::from(token.text == "[" && token.kind == Sign::Sign);
            outer
        });
        let mut clauses = Self {
            outer: outer.collect(),
            tokens,
            from: 0,
            order: None,
            tail: None,
            limit: None,
            offset: None,
        };
        let first = tokens.first().filter(|first| first.is("select"));
        first?;
        let from = (1..tokens.len())
            .find(|at| clauses.begins(*at, "from") && !tokens[at - 1].is("distinct"))?;
        clauses.from = from;
        let tail = (from..tokens.len()).find(|at| {
            ["limit", "offset", "fetch"]
                .iter()
                .any(|word| clauses.begins(*at, word))
        });
        clauses.tail = tail;
        let end = tail.unwrap_or(tokens.len());
        let order = (from..end).find(|at| clauses.begins(*at, "order"));
        clauses.order = order.map(|at| at + 2..end);
        if let Some(tail) = tail {
            (clauses.limit, clauses.offset) = counts(&tokens[tail..])?;
        }
        Some(clauses)
    }

    /// Whether a clause begins here: the word is neither part of a name nor one that a column is given.
    fn begins(&self, at: usize, word: &str) -> bool {
        let named = at > 0 && (self.tokens[at - 1].text == "." || self.tokens[at - 1].is("as"));
        self.outer[at] && self.tokens[at].is(word) && !named
    }

    /// The output columns.
    pub(super) fn list(&self) -> std::ops::Range<usize> {
        let all = self.tokens.get(1).is_some_and(|token| token.is("all"));
        1 + usize::from(all)..self.from
    }

    /// The items of a list; none of an empty one.
    pub(super) fn split(&self, list: &std::ops::Range<usize>) -> Vec<std::ops::Range<usize>> {
        let mut items = Vec::new();
        let mut start = list.start;
        for at in list.clone() {
            if self.outer[at] && self.tokens[at].text == "," && self.tokens[at].kind == Sign::Sign {
                items.push(start..at);
                start = at + 1;
            }
        }
        if start < list.end {
            items.push(start..list.end);
        }
        items
    }

    /// Whether no word in it computes over several rows or means something else on each shard.
    pub(super) fn is_the_same_everywhere(&self) -> bool {
        let tokens = self.tokens;
        let is_limit =
            |token: &Token<'_>| token.is("limit") || token.is("offset") || token.is("fetch");
        let fits = |at: usize| {
            let token = &tokens[at];
            match token.kind {
                Sign::Word => {
                    let word = token.text.to_ascii_lowercase();
                    let merged =
                        word == "using" && self.order.as_ref().is_none_or(|order| at < order.start);
                    let compared = at >= 1 && (tokens[at - 1].is("is") || tokens[at - 1].is("not"));
                    let nested = token.depth > 0 && is_limit(token);
                    (merged || !WORDS.contains(&word.as_str()))
                        && (word != "distinct" || compared)
                        && !nested
                        && !word.starts_with("current_")
                        && !word.starts_with("reg")
                }
                Sign::Value => !is_of_now(token.text),
                Sign::Quoted => !matches!(
                    token.text,
                    "ctid" | "xmin" | "xmax" | "cmin" | "cmax" | "tableoid"
                ),
                Sign::Sign => true,
            }
        };
        !self.list().is_empty() && (0..tokens.len()).all(fits)
    }
}

/// Whether a literal may be a date or time that is another one at each moment.
fn is_of_now(literal: &str) -> bool {
    let inside = literal
        .trim_matches(['\'', '$'])
        .trim()
        .to_ascii_lowercase();
    ["now", "today", "tomorrow", "yesterday"]
        .iter()
        .any(|word| inside.starts_with(word))
}

/// LIMIT and OFFSET, in any order and spelling; `None`: something else.
fn counts(mut tokens: &[Token<'_>]) -> Option<(Option<Count>, Option<Count>)> {
    let (mut limit, mut offset) = (None, None);
    let rows = |token: &Token<'_>| token.is("row") || token.is("rows");
    while let Some((first, rest)) = tokens.split_first() {
        if first.is("limit") {
            let (value, rest) = rest.split_first()?;
            if !value.is("all") {
                limit = Some(count(value)?);
            }
            tokens = rest;
        } else if first.is("offset") {
            let (value, rest) = rest.split_first()?;
            offset = Some(count(value)?);
            tokens = rest.strip_first_if(rows);
        } else if first.is("fetch") {
            let (_first_or_next, rest) = rest.split_first()?;
            let (value, rest) = match rest.split_first()? {
                (token, rest) if rows(token) => (Count::Number(1), rest),
                (token, rest) => (
                    count(token)?,
                    rest.split_first().filter(|(token, _)| rows(token))?.1,
                ),
            };
            limit = Some(value);
            let (only, rest) = rest.split_first()?;
            if !only.is("only") {
                return None;
            }
            tokens = rest;
        } else {
            return None;
        }
    }
    Some((limit, offset))
}

/// Passing over a token.
trait StripFirst {
    fn strip_first_if(&self, which: impl Fn(&Token<'_>) -> bool) -> &Self;
}

impl StripFirst for [Token<'_>] {
    fn strip_first_if(&self, which: impl Fn(&Token<'_>) -> bool) -> &Self {
        match self.split_first() {
            Some((first, rest)) if which(first) => rest,
            Some(_) | None => self,
        }
    }
}

fn count(token: &Token<'_>) -> Option<Count> {
    if token.kind != Sign::Value {
        return None;
    }
    match token.text.strip_prefix('$') {
        Some(number) => number.parse().ok().map(Count::Parameter),
        None => token
            .text
            .parse::<u64>()
            .ok()
            .filter(|number| i64::try_from(*number).is_ok())
            .map(Count::Number),
    }
}
