//! Lines, fields and tokens of pg_hba.conf and pg_ident.conf, as PostgreSQL cuts them: blanks part fields, commas part
//! the tokens of one field, double quotes hold both together and take keywords their meaning, `#` begins a comment, and a
//! backslash at the end of a line joins it with the next.

use crate::config::reader::Place;

/// One word. A quoted one is never a keyword.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) quoting: Quoting,
    pub(super) place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Quoting {
    Bare,
    Quoted,
}

/// Tokens that commas join.
pub(super) type Field = Vec<Token>;

/// A line that has a field at least.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) fields: Vec<Field>,
    pub(super) place: Place,
}

/// A quote without its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Unclosed(pub(super) Place);

/// The lines of a file, or where a quote is not closed.
pub(super) fn lines(text: &str) -> Vec<Result<Line, Unclosed>> {
    let mut scanner = Scanner { text, at: 0 };
    let mut lines = Vec::new();
    while scanner.at < text.len() {
        match scanner.line() {
            Ok(line) if line.fields.is_empty() => {}
            other => lines.push(other),
        }
    }
    lines
}

struct Scanner<'t> {
    text: &'t str,
    at: usize,
}

impl Scanner<'_> {
    fn line(&mut self) -> Result<Line, Unclosed> {
        let mut fields: Vec<Field> = Vec::new();
        let mut joined = false;
        let mut unclosed = None;
        while let Some(char) = self.peek() {
            match char {
                '\n' => {
                    self.at += 1;
                    break;
                }
                ' ' | '\t' | '\r' => self.at += 1,
                ',' => {
                    joined = true;
                    self.at += 1;
                }
                '#' => self.skip_comment(),
                _ => match self.token() {
                    Ok(token) => {
                        match fields.last_mut().filter(|_| joined) {
                            Some(field) => field.push(token),
                            None => fields.push(vec![token]),
                        }
                        joined = false;
                    }
                    Err(problem) => unclosed = Some(problem),
                },
            }
        }
        if let Some(problem) = unclosed {
            return Err(problem);
        }
        let edges = fields.first().zip(fields.last());
        let place = edges
            .and_then(|(first, last)| Some(first.first()?.place.start..last.last()?.place.end));
        Ok(Line {
            fields,
            place: place.unwrap_or(self.at..self.at),
        })
    }

    /// The next character, behind what joins lines.
    fn peek(&mut self) -> Option<char> {
        loop {
            let rest = &self.text[self.at..];
            let joint = ["\\\n", "\\\r\n"]
                .into_iter()
                .find(|joint| rest.starts_with(joint));
            match joint {
                Some(joint) => self.at += joint.len(),
                None => return rest.chars().next(),
            }
        }
    }

    fn skip_comment(&mut self) {
        while let Some(char) = self.peek().filter(|char| *char != '\n') {
            self.at += char.len_utf8();
        }
    }

    fn token(&mut self) -> Result<Token, Unclosed> {
        let start = self.at;
        let (mut text, mut quoting) = (String::new(), Quoting::Bare);
        let mut quote = None;
        while let Some(char) = self.peek() {
            match (char, quote) {
                ('\n', _) => break,
                (' ' | '\t' | '\r' | ',' | '#', None) => break,
                ('"', None) => {
                    if text.is_empty() {
                        quoting = Quoting::Quoted;
                    }
                    quote = Some(self.at);
                }
                ('"', Some(_)) => {
                    // Two of them are one that is meant.
                    if self.text[self.at + 1..].starts_with('"') {
                        text.push('"');
                        self.at += 1;
                    } else {
                        quote = None;
                    }
                }
                (char, _) => text.push(char),
            }
            self.at += char.len_utf8();
        }
        match quote {
            Some(opened) => Err(Unclosed(opened..self.at)),
            None => Ok(Token {
                text,
                quoting,
                place: start..self.at,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&[&[&str]]]) {
        let found: Vec<Vec<Vec<String>>> = lines(text)
            .into_iter()
            .map(|line| {
                let fields = line.unwrap().fields.into_iter();
                fields
                    .map(|field| field.into_iter().map(|token| token.text).collect())
                    .collect()
            })
            .collect();
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn lines_are_cut_as_postgresql_cuts_them() {
        check("", &[]);
        check("# nothing\n\n  \t\n", &[]);
        check(
            "local all  all\ttrust # why\r\nhost a,b c 10.0.0.0/8 md5",
            &[
                &[&["local"], &["all"], &["all"], &["trust"]],
                &[&["host"], &["a", "b"], &["c"], &["10.0.0.0/8"], &["md5"]],
            ],
        );
        check("host a, b ,c d", &[&[&["host"], &["a", "b", "c"], &["d"]]]);
        check(
            r#"local "my db","a,b" "say ""x"" # y" trust"#,
            &[&[
                &["local"],
                &["my db", "a,b"],
                &["say \"x\" # y"],
                &["trust"],
            ]],
        );
        check(
            "local al\\\nl all \\\n trust",
            &[&[&["local"], &["all"], &["all"], &["trust"]]],
        );
        check("# a comment \\\nlocal all all trust", &[]);
    }

    #[test]
    fn quotes_take_keywords_their_meaning_and_must_end() {
        let line = lines("\"all\" all").remove(0).unwrap();
        let kinds: Vec<Quoting> = line.fields.iter().map(|field| field[0].quoting).collect();
        assert_eq!(kinds, [Quoting::Quoted, Quoting::Bare]);
        let all = lines("local \"all all\nhost all");
        assert_eq!(all[0], Err(Unclosed(6..14)));
        assert!(all[1].is_ok(), "the next line is read on its own");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[ab\"\\\\#, \t\r\n\u{e4}]{0,40}") {
            for line in lines(&text).into_iter().flatten() {
                proptest::prop_assert!(text.get(line.place).is_some());
            }
        }
    }
}
