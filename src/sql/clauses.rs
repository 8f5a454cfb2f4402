//! Where the words of a statement stand, outside of strings and comments, and how deep in parentheses. Pure.
//!
//! For texts that PostgreSQL's grammar has accepted already, with standard_conforming_strings on: what is not understood
//! gives nothing.

/// A word, a sign, or something quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Token<'a> {
    pub kind: Kind,
    /// As written; of a quoted identifier what stands between the quotes.
    pub text: &'a str,
    /// Bytes in the statement.
    pub start: usize,
    pub end: usize,
    /// Parentheses open around it.
    pub depth: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An identifier or a keyword.
    Word,
    /// An identifier in double quotes.
    Quoted,
    /// A string, a number, a parameter.
    Value,
    Sign,
}

impl Token<'_> {
    /// Whether it is this keyword, which is given in lower case.
    #[must_use]
    pub fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// Whether it names this identifier, as the catalogs store it.
    #[must_use]
    pub fn names(&self, identifier: &str) -> bool {
        match self.kind {
            Kind::Word => self.text.to_lowercase() == identifier,
            Kind::Quoted => self.text.replace("\"\"", "\"") == identifier,
            Kind::Value | Kind::Sign => false,
        }
    }
}

/// The tokens of a statement; `None`: not understood.
#[must_use]
pub fn tokens(text: &str) -> Option<Vec<Token<'_>>> {
    let mut tokens = Vec::new();
    scan(text, &mut tokens)?;
    Some(tokens)
}

/// The tokens of a statement up to where it is not understood any more.
#[must_use]
pub fn leading_tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    scan(text, &mut tokens);
    tokens
}

/// Appends the tokens; `None`: not understood, the tokens before that are there.
fn scan<'a>(text: &'a str, tokens: &mut Vec<Token<'a>>) -> Option<()> {
    let (mut at, mut depth) = (0, 0_u32);
    while let Some(first) = text[at..].chars().next() {
        let rest = &text[at..];
        let start = at;
        let mut put = |kind, text, end, depth| {
            tokens.push(Token {
                kind,
                text,
                start,
                end,
                depth,
            });
            end
        };
        at = if first.is_whitespace() {
            start + first.len_utf8()
        } else if rest.starts_with("--") {
            start + rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            start + comment(rest)?
        } else if first == '\'' {
            let end = start + quoted(rest, '\'')?;
            put(Kind::Value, &text[start..end], end, depth)
        } else if first == '"' {
            let end = start + quoted(rest, '"')?;
            put(Kind::Quoted, &text[start + 1..end - 1], end, depth)
        } else if first == '$' {
            let end = start + dollar(rest)?;
            put(Kind::Value, &text[start..end], end, depth)
        } else if first.is_alphabetic() || first == '_' {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let behind = &rest[length..];
            // `E'…'`, `B'…'`, `U&"…"` have rules of their own.
            if behind.starts_with('\'') || behind.starts_with("&'") || behind.starts_with("&\"") {
                return None;
            }
            put(Kind::Word, &rest[..length], start + length, depth)
        } else if first.is_ascii_digit() {
            let length = rest
                .find(|c: char| !(is_word(c) || c == '.'))
                .unwrap_or(rest.len());
            put(Kind::Value, &rest[..length], start + length, depth)
        } else {
            let end = start + first.len_utf8();
            if first == '(' {
                depth += 1;
            }
            let shown = if first == '(' { depth - 1 } else { depth };
            if first == ')' {
                depth = depth.checked_sub(1)?;
            }
            put(
                Kind::Sign,
                &text[start..end],
                end,
                if first == ')' { depth } else { shown },
            )
        };
    }
    (depth == 0).then_some(())
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '$'
}

/// The length of a quoted piece, a doubled quote being one of its characters.
fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut from = 1;
    loop {
        let at = from + text[from..].find(quote)?;
        if text[at + 1..].starts_with(quote) {
            from = at + 2;
        } else {
            return Some(at + 1);
        }
    }
}

/// The length of a comment, which may hold others.
fn comment(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0_u32, 0);
    loop {
        let rest = &text[at..];
        if rest.starts_with("/*") {
            (depth, at) = (depth + 1, at + 2);
        } else if rest.starts_with("*/") {
            (depth, at) = (depth - 1, at + 2);
            if depth == 0 {
                return Some(at);
            }
        } else {
            at += rest.chars().next()?.len_utf8();
        }
    }
}

/// The length of a parameter or a dollar-quoted string.
fn dollar(text: &str) -> Option<usize> {
    let digits = text[1..]
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len() - 1);
    if digits > 0 {
        return Some(digits + 1);
    }
    let end = text[1..].find('$')? + 2;
    let tag = &text[..end];
    let named = tag[1..end - 1]
        .chars()
        .all(|c| c.is_alphanumeric() || c == '_');
    let close = text[end..].find(tag).filter(|_| named)?;
    Some(end + close + tag.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_found_outside_of_strings_and_comments() {
        let text = "SELECT 'from', \"From\"/* from /* x */ */ FROM (SELECT $1, $a$ from $a$) t -- from\nWHERE x = 1";
        let found: Vec<(usize, u32)> = tokens(text)
            .unwrap()
            .iter()
            .filter(|token| token.is("from") || token.is("where"))
            .map(|token| (token.start, token.depth))
            .collect();
        assert_eq!(
            found,
            [
                (text.find("FROM").unwrap(), 0),
                (text.find("WHERE").unwrap(), 0)
            ]
        );
        let all = tokens(text).unwrap();
        assert!(all.iter().any(|token| token.names("From")));
        assert!(
            all.iter()
                .filter(|token| token.is("select"))
                .map(|token| token.depth)
                .eq([0, 1])
        );
    }

    #[test]
    fn what_is_not_understood_gives_nothing() {
        for text in [
            "SELECT E'\\''",
            "SELECT 'open",
            "SELECT (1",
            "SELECT 1)",
            "SELECT U&'x'",
            "/* open",
        ] {
            assert_eq!(tokens(text), None, "{text}");
        }
    }
}
