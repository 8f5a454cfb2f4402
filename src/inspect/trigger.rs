//! What a trigger function may do, read from its source. Pure.
//!
//! What must stay true: a function is called contained only if nothing in it can change the shard key or reach another
//! row; what is not recognised is not contained.

use crate::sql::functions::{Class, classify, is_immutable};

/// A trigger's function, as `pg_proc` has it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Function<'a> {
    /// With its schema.
    pub(super) name: &'a str,
    pub(super) language: &'a str,
    pub(super) source: &'a str,
    /// The trigger's arguments.
    pub(super) arguments: &'a [String],
}

/// Whether the function leaves the key alone and keeps to its own row.
#[must_use]
pub(super) fn contained(function: Function<'_>, key: &str) -> bool {
    match function.language {
        "plpgsql" => tokens(function.source).is_some_and(|tokens| Body(&tokens).contained(key)),
        "internal" | "c" => {
            let name = function.name.rsplit('.').next().unwrap_or(function.name);
            match name {
                "suppress_redundant_updates_trigger" => true,
                // These set the column that their first argument names.
                "moddatetime"
                | "insert_username"
                | "tsvector_update_trigger"
                | "tsvector_update_trigger_column" => {
                    function.arguments.first().is_some_and(|set| set != key)
                }
                _ => false,
            }
        }
        _ => false,
    }
}

/// Whether the function keeps to its own row and does to each copy of it exactly the same.
#[must_use]
pub(super) fn repeats(function: Function<'_>) -> bool {
    let own = match function.language {
        "plpgsql" => tokens(function.source).is_some_and(|tokens| Body(&tokens).repeats()),
        _ => !function.name.ends_with("moddatetime"),
    };
    own && contained(function, "")
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    /// An identifier or a keyword, folded unless quoted.
    Word(String),
    /// Quoted: no keyword.
    Quoted(String),
    /// A string or a number.
    Literal,
    /// One character, or `:=`.
    Symbol(&'static str),
}

/// Statements that read or write rows, run SQL, or cannot be looked into.
const REACHING: [&str; 27] = [
    "alias", "alter", "analyze", "call", "close", "copy", "create", "cursor", "delete", "drop",
    "execute", "fetch", "from", "grant", "insert", "listen", "lock", "merge", "move", "notify",
    "open", "perform", "select", "set", "truncate", "update", "vacuum",
];

/// Words before a parenthesis that are no function.
const NO_FUNCTION: [&str; 20] = [
    "all", "and", "any", "array", "between", "by", "case", "coalesce", "else", "elsif", "greatest",
    "if", "in", "least", "not", "nullif", "or", "then", "when", "row",
];

/// Values of the moment, without parentheses.
const OF_THE_MOMENT: [&str; 5] = [
    "current_date",
    "current_time",
    "current_timestamp",
    "localtime",
    "localtimestamp",
];

/// Behind these a new statement begins.
const OPENING: [&str; 5] = ["begin", "then", "else", "loop", "declare"];

struct Body<'a>(&'a [Token]);

impl Body<'_> {
    fn repeats(&self) -> bool {
        self.0.iter().enumerate().all(|(at, token)| {
            let called = self.symbol(at + 1) == Some("(");
            match token {
                Token::Word(word) => {
                    let fixed = NO_FUNCTION.contains(&word.as_str()) || is_immutable(word);
                    !OF_THE_MOMENT.contains(&word.as_str()) && (!called || fixed)
                }
                Token::Quoted(word) => !called || is_immutable(word),
                Token::Literal | Token::Symbol(_) => true,
            }
        })
    }

    fn contained(&self, key: &str) -> bool {
        (0..self.0.len()).all(|at| self.harmless(at, key))
    }

    fn harmless(&self, at: usize, key: &str) -> bool {
        let (word, quoted) = match &self.0[at] {
            Token::Word(word) => (word.as_str(), false),
            Token::Quoted(word) => (word.as_str(), true),
            Token::Literal | Token::Symbol(_) => return true,
        };
        let field = self.symbol(at.wrapping_sub(1)) == Some(".");
        if self.symbol(at + 1) == Some("(") && !self.known_function(at, word, quoted) {
            return false;
        }
        if field || quoted {
            return true;
        }
        match word {
            "new" => self.row_kept(at, key),
            // `NEW IS DISTINCT FROM OLD` reads nothing.
            "from" => self.word(at.wrapping_sub(1)) == Some("distinct"),
            "return" => matches!(
                (self.word(at + 1), self.symbol(at + 1), self.symbol(at + 2)),
                (Some("new" | "old" | "null"), _, Some(";")) | (_, Some(";"), _)
            ),
            // Variables of the block may be called like anything, and these set one.
            "into" | "for" | "foreach" => false,
            _ => !REACHING.contains(&word),
        }
    }

    /// A function of PostgreSQL's own that does nothing but compute.
    fn known_function(&self, at: usize, word: &str, quoted: bool) -> bool {
        let field = self.symbol(at.wrapping_sub(1)) == Some(".");
        let schema = field.then(|| self.word(at.wrapping_sub(2))).flatten();
        let own = !field || schema == Some("pg_catalog");
        if !own {
            return false;
        }
        (!quoted && !field && NO_FUNCTION.contains(&word)) || classify(word) == Class::Plain
    }

    /// The word `new` at `at`: not assigned to as a whole, nor its key.
    fn row_kept(&self, at: usize, key: &str) -> bool {
        let begins = self.begins(at);
        if self.symbol(at + 1) != Some(".") {
            return !(begins && matches!(self.symbol(at + 1), Some(":=" | "=")));
        }
        let is_key = match self.0.get(at + 2) {
            Some(Token::Word(field) | Token::Quoted(field)) => field == key,
            _ => false,
        };
        let assigned = matches!(self.symbol(at + 3), Some(":="))
            || (begins && matches!(self.symbol(at + 3), Some("=" | "[" | ".")));
        !(is_key && assigned)
    }

    /// Whether a statement begins here.
    fn begins(&self, at: usize) -> bool {
        match at.checked_sub(1).and_then(|before| self.0.get(before)) {
            None => true,
            Some(Token::Symbol(symbol)) => matches!(*symbol, ";" | ">"),
            Some(Token::Word(word)) => {
                OPENING.contains(&word.as_str()) || word == "diagnostics" || word == "into"
            }
            Some(Token::Quoted(_) | Token::Literal) => false,
        }
    }

    fn symbol(&self, at: usize) -> Option<&'static str> {
        match self.0.get(at) {
            Some(Token::Symbol(symbol)) => Some(symbol),
            _ => None,
        }
    }

    fn word(&self, at: usize) -> Option<&str> {
        match self.0.get(at) {
            Some(Token::Word(word)) => Some(word),
            _ => None,
        }
    }
}

/// The source in tokens; `None`: not understood.
fn tokens(source: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        if first.is_whitespace() {
            rest = &rest[first.len_utf8()..];
        } else if rest.starts_with("--") {
            rest = rest.find('\n').map_or("", |end| &rest[end..]);
        } else if rest.starts_with("/*") {
            rest = after_comment(rest)?;
        } else if first == '\'' {
            // With backslashes it may end elsewhere, by a setting.
            let (inside, after) = enclosed(rest, '\'')?;
            if inside.contains('\\') {
                return None;
            }
            tokens.push(Token::Literal);
            rest = after;
        } else if first == '"' {
            let (inside, after) = enclosed(rest, '"')?;
            tokens.push(Token::Quoted(inside.replace("\"\"", "\"")));
            rest = after;
        } else if first == '$' {
            rest = after_dollar(rest)?;
            tokens.push(Token::Literal);
        } else if first.is_alphanumeric() || first == '_' {
            let end = rest
                .find(|c: char| !(c.is_alphanumeric() || c == '_' || c == '$'))
                .unwrap_or(rest.len());
            let (word, after) = rest.split_at(end);
            // `E'…'`, `U&"…"` and the like have rules of their own.
            if after.starts_with('\'') || after.starts_with("&'") || after.starts_with("&\"") {
                return None;
            }
            tokens.push(if first.is_numeric() {
                Token::Literal
            } else {
                Token::Word(word.to_lowercase())
            });
            rest = after;
        } else {
            let (symbol, length) = symbol(rest, first);
            tokens.push(Token::Symbol(symbol));
            rest = &rest[length..];
        }
    }
    Some(tokens)
}

fn symbol(rest: &str, first: char) -> (&'static str, usize) {
    if rest.starts_with(":=") {
        return (":=", 2);
    }
    let symbol = match first {
        ';' => ";",
        '.' => ".",
        '(' => "(",
        ',' => ",",
        '=' => "=",
        '[' => "[",
        '>' => ">",
        _ => "?",
    };
    (symbol, first.len_utf8())
}

/// What stands between two quotes, a doubled one being one of its characters, and what follows.
fn enclosed(text: &str, quote: char) -> Option<(&str, &str)> {
    let inside = &text[1..];
    let mut from = 0;
    loop {
        let at = from + inside[from..].find(quote)?;
        if inside[at + 1..].starts_with(quote) {
            from = at + 2;
        } else {
            return Some((&inside[..at], &inside[at + 1..]));
        }
    }
}

fn after_comment(text: &str) -> Option<&str> {
    let (mut depth, mut at) = (0_u32, 0);
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return text.get(at..);
            }
        } else {
            at += rest.chars().next()?.len_utf8();
        }
    }
}

/// Behind a dollar-quoted string.
fn after_dollar(text: &str) -> Option<&str> {
    let end = text[1..].find('$')? + 2;
    let tag = &text[..end];
    let named = tag[1..end - 1]
        .chars()
        .all(|c| c.is_alphanumeric() || c == '_');
    let close = text[end..].find(tag).filter(|_| named)?;
    Some(&text[end + close + tag.len()..])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(source: &str) -> bool {
        let function = Function {
            name: "public.f",
            language: "plpgsql",
            source,
            arguments: &[],
        };
        contained(function, "tenant")
    }

    #[test]
    fn what_keeps_to_its_row_is_contained() {
        for source in [
            "BEGIN NEW.updated_at = now(); RETURN NEW; END",
            "begin new.updated_at := pg_catalog.clock_timestamp(); return new; end;",
            "BEGIN IF NEW.tenant = 5 THEN RAISE EXCEPTION 'no % ''here''', NEW.tenant; END IF; RETURN NEW; END",
            "BEGIN IF NEW IS DISTINCT FROM OLD THEN NEW.version := OLD.version + 1; END IF; RETURN NEW; END",
            "BEGIN -- NEW.tenant := 1\n /* insert /* x */ */ NEW.slug := lower(regexp_replace(NEW.name, '[^a-z]', '-', 'g')); RETURN NEW; END",
            "DECLARE was text := coalesce(OLD.name, ''); BEGIN NEW.\"Was\" := was; RETURN NEW; END",
            "BEGIN RETURN NULL; END",
        ] {
            assert!(judged(source), "{source}");
        }
    }

    #[test]
    fn what_changes_the_key_or_reaches_other_rows_is_not() {
        for source in [
            "BEGIN NEW.tenant := 1; RETURN NEW; END",
            "BEGIN NEW.tenant = 1; RETURN NEW; END",
            "BEGIN IF TG_OP = 'INSERT' THEN NEW.\"tenant\" = 1; END IF; RETURN NEW; END",
            "BEGIN NEW := ROW(1, 2); RETURN NEW; END",
            "DECLARE r record; BEGIN r := NEW; r.tenant := 1; RETURN r; END",
            "BEGIN SELECT 1 INTO NEW.tenant; RETURN NEW; END",
            "BEGIN INSERT INTO audit VALUES (NEW.id); RETURN NEW; END",
            "BEGIN PERFORM pg_notify('x', NEW.id::text); RETURN NEW; END",
            "BEGIN EXECUTE 'x'; RETURN NEW; END",
            "BEGIN NEW.a := other(NEW.a); RETURN NEW; END",
            "BEGIN NEW.a := app.lower(NEW.a); RETURN NEW; END",
            "BEGIN NEW.id := nextval('s'); RETURN NEW; END",
            "BEGIN NEW.a := (SELECT max(a) FROM t); RETURN NEW; END",
            "BEGIN GET DIAGNOSTICS NEW.tenant = ROW_COUNT; RETURN NEW; END",
            "BEGIN FOR NEW IN SELECT * FROM t LOOP END LOOP; RETURN NEW; END",
            "BEGIN CALL p(NEW.tenant); RETURN NEW; END",
            "DECLARE n ALIAS FOR NEW; BEGIN n.tenant := 1; RETURN n; END",
            "BEGIN NEW.a := E'\\''; RETURN NEW; END",
            "BEGIN <<a>> NEW.tenant = 1; RETURN NEW; END",
            "BEGIN NEW = NULL; RETURN NEW; END",
        ] {
            assert!(!judged(source), "{source}");
        }
    }

    #[test]
    fn what_computes_of_its_row_alone_does_the_same_to_every_copy() {
        let repeats = |source| {
            repeats(Function {
                name: "public.f",
                language: "plpgsql",
                source,
                arguments: &[],
            })
        };
        assert!(repeats(
            "BEGIN NEW.slug := lower(NEW.name); RETURN NEW; END"
        ));
        for source in [
            "BEGIN NEW.at := now(); RETURN NEW; END",
            "BEGIN NEW.at := current_timestamp; RETURN NEW; END",
            "BEGIN NEW.id := gen_random_uuid(); RETURN NEW; END",
            "BEGIN INSERT INTO log VALUES (1); RETURN NEW; END",
        ] {
            assert!(!repeats(source), "{source}");
        }
    }

    #[test]
    fn extensions_functions_are_known_by_the_column_that_they_set() {
        let arguments = ["changed".to_owned()];
        let function = |name| Function {
            name,
            language: "c",
            source: "x",
            arguments: &arguments,
        };
        assert!(contained(function("public.moddatetime"), "tenant"));
        assert!(!contained(function("moddatetime"), "changed"));
        assert!(!contained(function("autoinc"), "tenant"));
        let python = Function {
            language: "plpython3u",
            ..function("f")
        };
        assert!(!contained(python, "tenant"));
    }
}
