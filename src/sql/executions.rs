//! Where the statements of a text name prepared statements, and with which values. Pure.
//!
//! A text is changed at these places only, so that everything else of it is the client's own.

use super::{
    clauses::{Kind, Token, leading_tokens},
    parse::{self, NotParsed},
};
use std::ops::Range;

/// A value that EXECUTE gives to a parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Argument {
    Null,
    /// What a client would bind as text for it.
    Text(String),
    /// Only a server can say which value it is.
    Computed,
}

/// How a statement names a prepared statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Naming {
    Nothing,
    /// PREPARE.
    Prepares {
        name: String,
    },
    /// EXECUTE, by itself or within another statement.
    Executes {
        name: String,
        arguments: Vec<Argument>,
    },
    Deallocates {
        name: String,
    },
}

/// A statement of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Bytes of the text, without its semicolon.
    pub span: Range<usize>,
    pub naming: Naming,
    /// Where the name stands.
    pub place: Range<usize>,
    /// Of PREPARE: its keyword, its types, and where its statement begins.
    pub parts: Option<Parts>,
}

/// The parts of a PREPARE, as places in its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    pub keyword: usize,
    pub types: Vec<Range<usize>>,
    pub body: usize,
}

/// The statements of a text, in order.
///
/// # Errors
/// [`NotParsed`] when the grammar refuses it, or a name is written as we do not read it.
pub fn executions(text: &str) -> Result<Vec<Named>, NotParsed> {
    parse::namings(text)?
        .into_iter()
        .map(|(span, naming)| {
            let (place, parts) = match &naming {
                Naming::Nothing => (Some(span.start..span.start), None),
                Naming::Prepares { .. } => prepare(text, &span).unzip(),
                Naming::Executes { .. } => (name_of(text, &span, executes), None),
                Naming::Deallocates { .. } => (name_of(text, &span, deallocates), None),
            };
            let place = place.ok_or(NotParsed)?;
            Ok(Named {
                span,
                naming,
                place,
                parts,
            })
        })
        .collect()
}

/// The place of the identifier behind the token that `leads` says.
fn name_of(
    text: &str,
    span: &Range<usize>,
    leads: fn(&[Token<'_>], usize) -> bool,
) -> Option<Range<usize>> {
    let tokens = leading_tokens(text.get(span.clone())?);
    let at = (0..tokens.len()).find(|at| leads(&tokens, *at))?;
    identifier(tokens.get(at + 1)?, span.start)
}

fn identifier(token: &Token<'_>, offset: usize) -> Option<Range<usize>> {
    matches!(token.kind, Kind::Word | Kind::Quoted)
        .then_some(token.start + offset..token.end + offset)
}

/// The keyword EXECUTE: at the start, behind AS or behind EXPLAIN and its options.
fn executes(tokens: &[Token<'_>], at: usize) -> bool {
    let token = tokens[at];
    let before = at.checked_sub(1).map(|at| tokens[at]);
    token.depth == 0
        && token.is("execute")
        && before.is_none_or(|before| {
            let words = ["as", "explain", "analyze", "analyse", "verbose"];
            words.iter().any(|word| before.is(word))
                || (before.text == ")" && tokens[0].is("explain"))
        })
}

/// DEALLOCATE, or the PREPARE behind it where that is not the name.
fn deallocates(tokens: &[Token<'_>], at: usize) -> bool {
    match tokens {
        [_, second, _, ..] if second.is("prepare") => at == 1,
        _ => at == 0,
    }
}

fn prepare(text: &str, span: &Range<usize>) -> Option<(Range<usize>, Parts)> {
    let tokens = leading_tokens(text.get(span.clone())?);
    let keyword = tokens.first().filter(|token| token.is("prepare"))?;
    let place = identifier(tokens.get(1)?, span.start)?;
    let mut types = Vec::new();
    let mut next = 2;
    if tokens.get(2)?.text == "(" {
        let close = tokens[3..]
            .iter()
            .position(|token| token.text == ")" && token.depth == 0)?
            + 3;
        let mut start = tokens[2].end;
        for token in &tokens[3..=close] {
            if (token.text == "," && token.depth == 1) || (token.text == ")" && token.depth == 0) {
                types.push(start + span.start..token.start + span.start);
                start = token.end;
            }
        }
        next = close + 1;
    }
    let body = tokens.get(next).filter(|token| token.is("as"))?.end + span.start;
    let keyword = keyword.start + span.start;
    Some((
        place,
        Parts {
            keyword,
            types,
            body,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<String> {
        executions(text)
            .unwrap()
            .into_iter()
            .map(|named| text[named.place].to_owned())
            .collect()
    }

    #[test]
    fn names_are_found_where_they_stand() {
        for (text, name) in [
            ("EXECUTE foo", "foo"),
            ("execute \"F o\"(1, E'\\n')", "\"F o\""),
            ("EXPLAIN EXECUTE foo(1)", "foo"),
            ("EXPLAIN (ANALYZE, FORMAT JSON) EXECUTE execute", "execute"),
            ("EXPLAIN ANALYZE VERBOSE EXECUTE foo", "foo"),
            ("CREATE TABLE execute AS EXECUTE foo(1)", "foo"),
            (
                "CREATE TEMP TABLE t (execute) WITH (fillfactor = 10) AS EXECUTE foo",
                "foo",
            ),
            ("EXPLAIN CREATE TABLE execute AS EXECUTE foo", "foo"),
            ("DEALLOCATE foo", "foo"),
            ("DEALLOCATE PREPARE foo", "foo"),
            ("DEALLOCATE prepare", "prepare"),
            ("DEALLOCATE PREPARE prepare", "prepare"),
            ("/* execute */ PREPARE foo AS SELECT 1", "foo"),
            ("PREPARE foo(int, numeric(1, 2)) AS SELECT E'\\''", "foo"),
            ("SELECT 'execute a'", ""),
            ("DEALLOCATE ALL", ""),
        ] {
            assert_eq!(names(text), [name], "{text}");
        }
        assert_eq!(names("select 1; EXECUTE a; ; execute b(2)"), ["", "a", "b"]);
    }

    #[test]
    fn a_prepare_has_types_and_a_body() {
        let text = "-- a\n PREPARE foo(int, numeric(1, 2) , text[]) AS SELECT $1";
        let named = executions(text).unwrap().remove(0);
        let parts = named.parts.unwrap();
        let types: Vec<&str> = parts
            .types
            .iter()
            .map(|place| text[place.clone()].trim())
            .collect();
        assert_eq!(types, ["int", "numeric(1, 2)", "text[]"]);
        assert_eq!(&text[parts.body..], " SELECT $1");
        assert!(text[parts.keyword..].starts_with("PREPARE foo"));
    }

    #[test]
    fn arguments_are_read_where_a_bound_text_means_the_same() {
        let text = "EXECUTE a(1, -2, 3000000000, 'x', NULL, '5'::int, 'y'::text, 1.5, now(), true, '05'::int, NULL::date)";
        let Naming::Executes { arguments, .. } = executions(text).unwrap().remove(0).naming else {
            panic!("an EXECUTE");
        };
        let text = |text: &str| Argument::Text(text.to_owned());
        assert_eq!(
            arguments,
            [
                text("1"),
                text("-2"),
                text("3000000000"),
                text("x"),
                Argument::Null,
                text("5"),
                text("y"),
                Argument::Computed,
                Argument::Computed,
                Argument::Computed,
                Argument::Computed,
                Argument::Null,
            ]
        );
    }
}
