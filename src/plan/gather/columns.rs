//! Which columns of the table a statement may need. Pure.
//!
//! What must stay true: a column that is left out is named nowhere in the statement, not even by `*`.

use crate::{
    catalog::snapshot::Table,
    sql::clauses::{Kind, Token},
};

/// The numbers of the columns that a statement names; all of them where it may mean columns without naming them.
pub(super) fn needed(tokens: &[Token<'_>], table: &Table) -> Vec<usize> {
    let all = 0..table.columns.len();
    if (0..tokens.len()).any(|at| means_all(tokens, at)) {
        return all.collect();
    }
    all.filter(|column| is_named(tokens, &table.columns[*column]))
        .collect()
}

/// Whether one of the tokens could be this column.
pub(super) fn is_named(tokens: &[Token<'_>], column: &str) -> bool {
    tokens.iter().any(|token| could_name(token, column))
}

/// The letters' case is passed over: a column too many is only a column too many.
pub(super) fn could_name(token: &Token<'_>, column: &str) -> bool {
    let folded = || token.text.to_lowercase() == column.to_lowercase();
    token.names(column) || token.kind == Kind::Word && folded()
}

/// Whether columns are meant here by their places, or all of them.
fn means_all(tokens: &[Token<'_>], at: usize) -> bool {
    let token = &tokens[at];
    let next = tokens.get(at + 1);
    let before = at.checked_sub(1).map(|at| &tokens[at]);
    if token.is("natural") {
        return true;
    }
    // New names for columns: `FROM orders AS o (a, b)`.
    let renames = token.text == "("
        && at >= 2
        && matches!(tokens[at - 1].kind, Kind::Word | Kind::Quoted)
        && !tokens[at - 1].is("using")
        && (tokens[at - 2].is("as")
            || tokens[at - 2].kind != Kind::Sign && !is_before_a_name(&tokens[at - 2]))
        && is_in_from(tokens, at);
    if renames {
        return true;
    }
    if token.text != "*" || token.kind != Kind::Sign {
        return false;
    }
    let counts = before.is_some_and(|before| before.text == "(")
        && at >= 2
        && tokens[at - 2].is("count")
        && next.is_some_and(|next| next.text == ")");
    let multiplies = next.is_some_and(|next| match next.kind {
        Kind::Value | Kind::Quoted => true,
        Kind::Sign => matches!(next.text, "(" | "-" | "+"),
        Kind::Word => !BEHIND_A_STAR.iter().any(|word| next.is(word)),
    }) && before.is_some_and(|before| before.text != ".");
    !counts && !multiplies
}

/// Words that may stand behind `SELECT *`.
const BEHIND_A_STAR: [&str; 14] = [
    "from",
    "where",
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
    "into",
    "for",
];

/// Keywords before a name that is followed by a parenthesis, and is no alias with columns.
fn is_before_a_name(token: &Token<'_>) -> bool {
    const WORDS: [&str; 24] = [
        "select", "distinct", "where", "and", "or", "not", "on", "by", "having", "when", "then",
        "else", "case", "in", "between", "like", "limit", "offset", "from", "join", "group",
        "filter", "is", "ilike",
    ];
    WORDS.iter().any(|word| token.is(word))
}

/// Whether the last clause of the same depth that begins before is FROM.
fn is_in_from(tokens: &[Token<'_>], at: usize) -> bool {
    let depth = tokens[at].depth;
    let begins = |token: &&Token<'_>| {
        token.depth == depth
            && (token.is("select") || BEHIND_A_STAR.iter().any(|word| token.is(word)))
    };
    let last = tokens[..at].iter().rev().find(begins);
    last.is_some_and(|last| last.is("from"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{catalog::snapshot::Placement, sql::clauses::tokens};

    fn names(text: &str) -> String {
        let columns = ["id", "note", "Über", "n"].map(str::to_owned).to_vec();
        let table = Table {
            columns,
            ..Table::unasked(Placement::Reference)
        };
        let found = needed(&tokens(text).unwrap(), &table);
        let found: Vec<&str> = found.iter().map(|at| table.columns[*at].as_str()).collect();
        found.join(" ")
    }

    #[test]
    fn only_columns_that_are_named_are_needed() {
        for (text, expected) in [
            ("SELECT ID FROM t WHERE n * 2 > 1", "id n"),
            ("SELECT count(*) FROM t", ""),
            ("SELECT sum(n * (n)) FROM t o ORDER BY o.note", "note n"),
            ("SELECT \"Über\" FROM t", "Über"),
            ("SELECT Über FROM t", "Über"),
            ("SELECT upper(note) FROM t JOIN u USING (id)", "id note"),
            ("SELECT abs(n) FROM t, lower('x') WHERE abs(n) = 1", "n"),
        ] {
            assert_eq!(names(text), expected, "{text}");
        }
    }

    #[test]
    fn what_means_columns_without_naming_them_needs_all() {
        for text in [
            "SELECT * FROM t",
            "SELECT n, t.* FROM t",
            "SELECT DISTINCT ON (n) * FROM t",
            "SELECT n FROM (SELECT * FROM t) x",
            "SELECT n FROM t NATURAL JOIN u",
            "SELECT a FROM t AS o (a, b)",
            "SELECT a FROM t o (a, b)",
            "SELECT a FROM u JOIN t o (a, b) ON true",
            "SELECT *",
        ] {
            assert_eq!(names(text), "id note Über n", "{text}");
        }
    }
}
