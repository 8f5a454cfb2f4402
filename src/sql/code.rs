//! Whether code that runs on a server (a function's body, a DO block, a view) may leave something in the session:
//! a setting, a temporary table, a lock, a prepared statement. Pure.
//!
//! It is judged by words, without a grammar: what is not sure counts as leaving something. It is not seen in code that
//! is put together elsewhere and handed in, unless the body runs it (`EXECUTE name`), which counts as leaving something.

/// Whether running this text may leave something behind in its session.
#[must_use]
pub fn leaves_something(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let tokens = tokens(&text);
    (0..tokens.len()).any(|at| leaves_here(&tokens, at))
}

/// Whether running this text may ask for a number that its session has drawn from a sequence before.
#[must_use]
pub fn asks_for_numbers(text: &str) -> bool {
    text.split(|c: char| !is_word(c))
        .any(|word| word.eq_ignore_ascii_case("currval") || word.eq_ignore_ascii_case("lastval"))
}

/// The words of a text in lower case, each as often as it stands there.
pub fn words(text: &str) -> impl Iterator<Item = String> + '_ {
    text.split(|c: char| !is_word(c))
        .filter(|word| !word.is_empty())
        .map(str::to_ascii_lowercase)
}

/// What a text is made of, as far as it matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    /// A semicolon, a quote, the end of a comment: a statement may begin behind it.
    Break,
    Semicolon,
    Sign(char),
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || !c.is_ascii()
}

fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    let mut in_comment = false;
    while let Some(first) = rest.chars().next() {
        let length = if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(&rest[..length]));
            length
        } else if rest.starts_with("--") {
            in_comment = true;
            2
        } else if rest.starts_with("*/") {
            tokens.push(Token::Break);
            2
        } else {
            match first {
                '\n' if in_comment => {
                    in_comment = false;
                    tokens.push(Token::Break);
                }
                ';' => tokens.push(Token::Semicolon),
                '\'' | '$' | '>' => tokens.push(Token::Break),
                c if c.is_whitespace() => {}
                c => tokens.push(Token::Sign(c)),
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    tokens
}

fn leaves_here(tokens: &[Token<'_>], at: usize) -> bool {
    let Token::Word(word) = tokens[at] else {
        return false;
    };
    let before = at.checked_sub(1).map(|at| tokens[at]);
    let word_at = |at: usize| match tokens.get(at) {
        Some(Token::Word(word)) => *word,
        _ => "",
    };
    let begins = match before {
        None | Some(Token::Break | Token::Semicolon) => true,
        Some(Token::Word(word)) => matches!(word, "begin" | "then" | "else" | "loop" | "atomic"),
        Some(Token::Sign(_)) => false,
    };
    match word {
        "set" => begins && !matches!(word_at(at + 1), "local" | "constraints" | "transaction"),
        "reset" | "discard" | "listen" | "load" | "prepare" => begins,
        "set_config" => !is_local(&tokens[at + 1..]),
        "temp" | "temporary" => makes_temporary(tokens, at),
        "pg_temp" => true,
        "hold" => matches!(before, Some(Token::Word("with"))),
        "execute" => !matches!(
            tokens.get(at + 1),
            None | Some(
                Token::Break
                    | Token::Semicolon
                    | Token::Word("format" | "function" | "procedure" | "on")
            )
        ),
        _ => {
            word.starts_with("pg_advisory_lock")
                || word.starts_with("pg_try_advisory_lock")
                || word.starts_with("dblink_connect")
        }
    }
}

/// Whether the arguments of `set_config` end with the constant TRUE.
fn is_local(arguments: &[Token<'_>]) -> bool {
    let mut depth = 0;
    let mut last = "";
    for token in arguments {
        match token {
            Token::Sign('(') => depth += 1,
            Token::Sign(')') if depth <= 1 => return last == "true",
            Token::Sign(')') => depth -= 1,
            Token::Word(word) => last = word,
            Token::Sign(_) => last = "",
            Token::Break => {}
            Token::Semicolon => return false,
        }
    }
    false
}

/// CREATE TEMPORARY or INTO TEMPORARY, but for what goes away with its transaction.
fn makes_temporary(tokens: &[Token<'_>], at: usize) -> bool {
    let makes = at.checked_sub(1).is_some_and(|before| {
        matches!(
            tokens[before],
            Token::Word("create" | "replace" | "local" | "global" | "into")
        )
    });
    let end = tokens[at..]
        .iter()
        .position(|token| *token == Token::Semicolon)
        .map_or(tokens.len(), |end| at + end);
    let drops = [
        Token::Word("on"),
        Token::Word("commit"),
        Token::Word("drop"),
    ];
    makes && !tokens[at..end].windows(3).any(|three| three == drops)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_that_leaves_something_is_found() {
        for text in [
            "begin perform set_config('a.b', 'c', false); end",
            "begin perform pg_catalog.set_config('a.b', f(true), is_local); end",
            "SET search_path = x",
            "begin\n  -- who\n  SET ROLE other; end",
            "if a then set work_mem = 1; end if",
            "begin execute 'set x.y = 1'; end",
            "begin execute format('set x.y = %L', a); end",
            "begin execute statement; end",
            "select pg_advisory_lock(1)",
            "select pg_try_advisory_lock_shared(1)",
            "create temp table x (n int)",
            "create temporary table x on commit delete rows as select 1",
            "create or replace temp view v as select 1",
            "select 1 into temp x",
            "create table pg_temp.x ()",
            "execute 'listen news'",
            "begin reset all; end",
            "declare c cursor with hold for select 1",
            "set_config",
        ] {
            assert!(leaves_something(text), "{text}");
        }
    }

    #[test]
    fn code_that_leaves_nothing_is_left_alone() {
        for text in [
            "",
            "begin update t set x = 1 where y = 2; return new; end",
            "update t\n  set x = 1",
            "insert into t values (1) on conflict (a) do update set x = 1",
            "begin perform set_config('a.b', current_user, true); end",
            "begin set local a.b = 'x'; end",
            "begin perform pg_advisory_xact_lock(1); end",
            "create temp table x (n int) on commit drop; insert into x values (1);",
            "begin execute format('create table %I ()', name); end",
            "begin execute 'analyze t' using 1; end",
            "select reset, temp, setting from readings",
        ] {
            assert!(!leaves_something(text), "{text}");
        }
    }
}
