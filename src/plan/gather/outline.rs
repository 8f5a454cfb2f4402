//! The clauses of a query of one block over one relation, as places among its tokens. Pure.
//!
//! What must stay true: a query whose clauses are not understood to the last word has no outline, and is computed over
//! all rows.

use crate::sql::clauses::{Kind, Token};

/// Tokens, from the first to behind the last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) from: usize,
    pub(super) to: usize,
}

/// `DISTINCT` and `DISTINCT ON`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Distinct {
    No,
    Yes,
    On(Vec<Span>),
}

/// What is kept of rows that are equal to the last by ORDER BY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ties {
    Dropped,
    Kept,
}

/// LIMIT or FETCH.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Limit {
    /// `None`: FETCH FIRST ROW.
    pub(super) count: Option<Span>,
    pub(super) ties: Ties,
}

/// The clauses of `SELECT … FROM table …`.
#[derive(Debug)]
pub(super) struct Outline<'t> {
    pub(super) text: &'t str,
    pub(super) tokens: Vec<Token<'t>>,
    pub(super) distinct: Distinct,
    pub(super) targets: Vec<Span>,
    /// With the word.
    pub(super) from: Span,
    /// What the relation is called.
    pub(super) relation: usize,
    /// With the word.
    pub(super) filter: Option<Span>,
    pub(super) groups: Vec<Span>,
    pub(super) having: Option<Span>,
    pub(super) order: Vec<Span>,
    pub(super) limit: Option<Limit>,
    pub(super) offset: Option<Span>,
    pub(super) windows: Windows,
}

/// Whether there is a WINDOW clause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Windows {
    None,
    Named,
}

/// The words that begin clauses, in their order; the last three in any.
const CLAUSES: [&str; 9] = [
    "from", "where", "group", "having", "window", "order", "limit", "offset", "fetch",
];
/// What makes it more than one block, or more than a read.
const OTHERS: [&str; 6] = ["union", "intersect", "except", "for", "into", "values"];

impl<'t> Outline<'t> {
    /// The clauses of a statement of one block over one relation; `None`: it is something else.
    pub(super) fn of(text: &'t str, mut tokens: Vec<Token<'t>>) -> Option<Self> {
        while tokens.last().is_some_and(|last| last.text == ";") {
            tokens.pop();
        }
        let alone = |word: &str| tokens.iter().filter(|token| token.is(word)).count();
        if !tokens.first()?.is("select") || alone("select") != 1 || alone("table") != 0 {
            return None;
        }
        let levels = levels(&tokens)?;
        let starts = starts(&tokens, &levels)?;
        let span = |word: &str| clause(&starts, word, tokens.len());
        let from = span("from")?;
        let relation = sole_relation(&tokens, from)?;
        let (distinct, targets) = chosen(
            &tokens,
            &levels,
            Span {
                from: 1,
                to: from.from,
            },
        )?;
        let by = |word: &str| by(&tokens, &levels, span(word));
        let limit = match (span("limit"), span("fetch")) {
            (Some(_), Some(_)) => return None,
            (Some(limit), None) => counted(&tokens, limit),
            (None, Some(fetch)) => Some(fetched(&tokens, fetch)?),
            (None, None) => None,
        };
        let offset = match span("offset") {
            Some(offset) => Some(passed_over(&tokens, offset)?),
            None => None,
        };
        let (groups, order) = (by("group")?, by("order")?);
        let having = span("having").map(|having| Span {
            from: having.from + 1,
            ..having
        });
        let (filter, windows) = (span("where"), span("window"));
        Some(Self {
            text,
            distinct,
            targets,
            from,
            relation,
            filter,
            groups,
            having,
            order,
            limit,
            offset,
            windows: windows.map_or(Windows::None, |_| Windows::Named),
            tokens,
        })
    }

    /// As it stands in the statement.
    pub(super) fn text(&self, span: Span) -> &'t str {
        let (from, to) = self.bytes(span);
        &self.text[from..to]
    }

    /// Where it stands in the statement.
    pub(super) fn bytes(&self, span: Span) -> (usize, usize) {
        let tokens = &self.tokens[span.from..span.to];
        let first = tokens.first().map_or(0, |first| first.start);
        (first, tokens.last().map_or(first, |last| last.end))
    }

    /// The place behind the parenthesis that closes the one at `open`.
    pub(super) fn behind(&self, open: usize) -> Option<usize> {
        let depth = self.tokens.get(open)?.depth;
        let closes = |token: &Token<'_>| {
            token.text == ")" && token.depth == depth && token.kind == Kind::Sign
        };
        let at = self.tokens[open + 1..].iter().position(closes)?;
        Some(open + at + 2)
    }

    /// Its parts between commas.
    pub(super) fn parts(&self, span: Span) -> Option<Vec<Span>> {
        let levels = levels(&self.tokens)?;
        list(&self.tokens, &levels, span)
    }

    /// Without parentheses around all of it.
    pub(super) fn bare(&self, mut span: Span) -> Span {
        while span.to > span.from + 2
            && self.tokens[span.from].text == "("
            && self.tokens[span.from].kind == Kind::Sign
            && self.behind(span.from) == Some(span.to)
        {
            span = Span {
                from: span.from + 1,
                to: span.to - 1,
            };
        }
        span
    }
}

/// How deep each token stands, in parentheses and brackets.
fn levels(tokens: &[Token<'_>]) -> Option<Vec<u32>> {
    let mut brackets = 0_u32;
    let mut levels = Vec::with_capacity(tokens.len());
    for token in tokens {
        let sign = if token.kind == Kind::Sign {
            token.text
        } else {
            ""
        };
        if sign == "]" {
            brackets = brackets.checked_sub(1)?;
        }
        levels.push(token.depth + brackets);
        if sign == "[" {
            brackets += 1;
        }
    }
    (brackets == 0).then_some(levels)
}

/// Where clauses begin: the word's place in [`CLAUSES`], and the token. `None`: it is more than one block.
fn starts(tokens: &[Token<'_>], levels: &[u32]) -> Option<Vec<(usize, usize)>> {
    let mut starts: Vec<(usize, usize)> = Vec::new();
    for at in 1..tokens.len() {
        let (before, token) = (&tokens[at - 1], &tokens[at]);
        let named = before.text == "." || before.is("as");
        if levels[at] != 0 || token.kind != Kind::Word || named {
            continue;
        }
        if OTHERS.iter().any(|word| token.is(word)) {
            return None;
        }
        let Some(clause) = CLAUSES.iter().position(|word| token.is(word)) else {
            continue;
        };
        let compares = before.is("distinct")
            && at >= 2
            && (tokens[at - 2].is("is") || tokens[at - 2].is("not"));
        if token.is("from") && compares || token.is("group") && before.is("within") {
            continue;
        }
        let ordered = starts
            .last()
            .is_none_or(|(last, _)| *last < clause || *last >= 6 && clause >= 6);
        let again = starts.iter().any(|(known, _)| *known == clause);
        if !ordered || again {
            return None;
        }
        starts.push((clause, at));
    }
    Some(starts)
}

/// A clause with its word.
fn clause(starts: &[(usize, usize)], word: &str, end: usize) -> Option<Span> {
    let number = CLAUSES.iter().position(|clause| *clause == word)?;
    let at = starts.iter().position(|(clause, _)| *clause == number)?;
    let to = starts.get(at + 1).map_or(end, |(_, next)| *next);
    let from = starts[at].1;
    (to > from + 1).then_some(Span { from, to })
}

/// What the one relation of FROM is called: its alias, else its name.
fn sole_relation(tokens: &[Token<'_>], from: Span) -> Option<usize> {
    let name = |at: usize| {
        let token = tokens.get(at).filter(|_| at < from.to)?;
        matches!(token.kind, Kind::Word | Kind::Quoted).then_some(at)
    };
    let mut at = name(from.from + 1)?;
    if at + 1 < from.to && tokens[at + 1].text == "." {
        at = name(at + 2)?;
    }
    if at + 1 == from.to {
        return Some(at);
    }
    if tokens[at + 1].is("as") {
        at += 1;
    }
    let alias = name(at + 1)?;
    (alias + 1 == from.to).then_some(alias)
}

/// DISTINCT and the targets between SELECT and FROM.
fn chosen(tokens: &[Token<'_>], levels: &[u32], all: Span) -> Option<(Distinct, Vec<Span>)> {
    let targets = |from: usize| {
        let span = Span { from, to: all.to };
        list(tokens, levels, span)
    };
    let first = tokens.get(all.from).filter(|_| all.from < all.to)?;
    if first.is("all") {
        return Some((Distinct::No, targets(all.from + 1)?));
    }
    if !first.is("distinct") {
        return Some((Distinct::No, targets(all.from)?));
    }
    if !tokens.get(all.from + 1)?.is("on") {
        return Some((Distinct::Yes, targets(all.from + 1)?));
    }
    let open = all.from + 2;
    let closes = |at: &usize| tokens[*at].text == ")" && levels[*at] == levels[open];
    let close = (open + 1..all.to).find(closes)?;
    let inside = Span {
        from: open + 1,
        to: close,
    };
    let inner: Vec<u32> = levels.iter().map(|level| level.saturating_sub(1)).collect();
    Some((
        Distinct::On(list(tokens, &inner, inside)?),
        targets(close + 1)?,
    ))
}

/// What stands between commas; `None`: one is empty.
fn list(tokens: &[Token<'_>], levels: &[u32], span: Span) -> Option<Vec<Span>> {
    let level = *levels.get(span.from)?;
    let mut parts = Vec::new();
    let mut from = span.from;
    for at in span.from..span.to {
        if tokens[at].text == "," && tokens[at].kind == Kind::Sign && levels[at] == level {
            parts.push(Span { from, to: at });
            from = at + 1;
        }
    }
    parts.push(Span { from, to: span.to });
    parts
        .iter()
        .all(|part| part.from < part.to)
        .then_some(parts)
}

/// The items of GROUP BY or ORDER BY.
fn by(tokens: &[Token<'_>], levels: &[u32], clause: Option<Span>) -> Option<Vec<Span>> {
    let Some(clause) = clause else {
        return Some(Vec::new());
    };
    let items = Span {
        from: clause.from + 2,
        ..clause
    };
    let first = tokens.get(items.from)?;
    let whole = tokens[clause.from + 1].is("by") && !first.is("all") && !first.is("distinct");
    whole.then(|| list(tokens, levels, items))?
}

/// What OFFSET says.
fn passed_over(tokens: &[Token<'_>], offset: Span) -> Option<Span> {
    let rows = tokens[offset.to - 1].is("row") || tokens[offset.to - 1].is("rows");
    let to = if rows { offset.to - 1 } else { offset.to };
    let from = offset.from + 1;
    (from < to).then_some(Span { from, to })
}

/// LIMIT; `None`: of all.
fn counted(tokens: &[Token<'_>], limit: Span) -> Option<Limit> {
    let count = Span {
        from: limit.from + 1,
        to: limit.to,
    };
    let all = count.to == count.from + 1 && tokens[count.from].is("all");
    (!all).then_some(Limit {
        count: Some(count),
        ties: Ties::Dropped,
    })
}

/// `FETCH FIRST 5 ROWS ONLY`, `FETCH NEXT ROW WITH TIES`.
fn fetched(tokens: &[Token<'_>], fetch: Span) -> Option<Limit> {
    let is = |at: usize, words: &[&str]| words.iter().any(|word| tokens[at].is(word));
    if fetch.to < fetch.from + 4 || !is(fetch.from + 1, &["first", "next"]) {
        return None;
    }
    let (ties, to) = if is(fetch.to - 1, &["only"]) {
        (Ties::Dropped, fetch.to - 1)
    } else if is(fetch.to - 1, &["ties"]) && is(fetch.to - 2, &["with"]) {
        (Ties::Kept, fetch.to - 2)
    } else {
        return None;
    };
    let count = Span {
        from: fetch.from + 2,
        to: to - 1,
    };
    let rows = is(to - 1, &["row", "rows"]) && count.from <= count.to;
    let given = count.from < count.to;
    rows.then_some(Limit {
        count: given.then_some(count),
        ties,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::clauses::tokens;

    fn outline(text: &str) -> Option<Outline<'_>> {
        Outline::of(text, tokens(text)?)
    }

    fn texts<'t>(outline: &Outline<'t>, spans: &[Span]) -> Vec<&'t str> {
        spans.iter().map(|span| outline.text(*span)).collect()
    }

    #[test]
    fn clauses_are_found_by_their_words() {
        let text = "SELECT DISTINCT ON (a, f(b, c)) a AS from, ARRAY[1, 2], b IS DISTINCT FROM c x FROM s.t AS u \
                    WHERE a = 'x, y' GROUP BY a, (b) HAVING count(*) > 1 ORDER BY 1 DESC, b OFFSET 2 ROWS FETCH FIRST 3 ROWS WITH TIES;";
        let found = outline(text).unwrap();
        let Distinct::On(on) = &found.distinct else {
            panic!()
        };
        assert_eq!(texts(&found, on), ["a", "f(b, c)"]);
        assert_eq!(
            texts(&found, &found.targets),
            ["a AS from", "ARRAY[1, 2]", "b IS DISTINCT FROM c x"]
        );
        assert_eq!(found.text(found.from), "FROM s.t AS u");
        assert_eq!(found.tokens[found.relation].text, "u");
        assert_eq!(found.text(found.filter.unwrap()), "WHERE a = 'x, y'");
        assert_eq!(texts(&found, &found.groups), ["a", "(b)"]);
        assert_eq!(found.text(found.having.unwrap()), "count(*) > 1");
        assert_eq!(texts(&found, &found.order), ["1 DESC", "b"]);
        assert_eq!(found.text(found.offset.unwrap()), "2");
        let limit = found.limit.clone().unwrap();
        assert_eq!(
            (found.text(limit.count.unwrap()), limit.ties),
            ("3", Ties::Kept)
        );
    }

    #[test]
    fn limits_are_read_in_every_spelling() {
        for (text, count) in [
            ("SELECT a FROM t OFFSET 1 LIMIT 2", Some(Some("2"))),
            ("SELECT a FROM t LIMIT ALL", None),
            ("SELECT a FROM t LIMIT $1 OFFSET $2", Some(Some("$1"))),
            ("SELECT a FROM t FETCH NEXT ROW ONLY", Some(None)),
            (
                "SELECT a FROM t FETCH FIRST (1 + 1) ROWS ONLY OFFSET 3",
                Some(Some("(1 + 1)")),
            ),
        ] {
            let found = outline(text).unwrap();
            let counts = found
                .limit
                .as_ref()
                .map(|limit| limit.count.map(|count| found.text(count)));
            assert_eq!(counts, count, "{text}");
        }
    }

    #[test]
    fn what_is_more_than_one_block_over_one_relation_has_no_outline() {
        for text in [
            "SELECT a FROM t, u",
            "SELECT a FROM t JOIN u USING (a)",
            "SELECT a FROM (SELECT 1) t",
            "SELECT a FROM t UNION SELECT 1",
            "SELECT a FROM t AS x (b)",
            "SELECT a FROM t FOR UPDATE",
            "SELECT a FROM t WHERE a IN (TABLE u)",
            "SELECT a FROM t GROUP BY ALL a",
            "SELECT FROM t",
            "SELECT a",
            "WITH x AS (SELECT 1) SELECT a FROM t",
            "SELECT a FROM t LIMIT 1 FETCH FIRST ROW ONLY",
        ] {
            assert!(outline(text).is_none(), "{text}");
        }
    }
}
