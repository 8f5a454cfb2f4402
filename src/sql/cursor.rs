//! DECLARE CURSOR, FETCH, MOVE and CLOSE as they are written. Pure.
//!
//! For texts that PostgreSQL's grammar has accepted already; what is not understood gives nothing. Plans hold none of
//! this: one plan serves every count.

use super::clauses::{Kind, Token, leading_tokens, tokens as all_tokens};

/// `NAMEDATALEN - 1`: as much of an identifier counts.
const LONGEST: usize = 63;

/// A command about a cursor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Declare(Declare),
    Fetch {
        name: String,
        count: Count,
        rows: Rows,
    },
    Close(String),
    CloseAll,
}

/// DECLARE CURSOR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declare {
    pub name: String,
    pub scroll: Scroll,
    /// BINARY: rows are given in binary to FETCH of the simple protocol.
    pub binary: bool,
    pub hold: bool,
    /// Where the query stands in the text, bytes.
    pub query: std::ops::Range<usize>,
}

/// Whether a cursor may go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scroll {
    NotSaid,
    Yes,
    No,
}

/// How many rows a FETCH or MOVE is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// The next so many, at least one.
    Next(u64),
    All,
    /// Rows that were given already may be needed again.
    Back,
}

/// Whether rows are given or passed over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// FETCH.
    Given,
    /// MOVE.
    Passed,
}

/// The command of a text, which holds no other statement, or of the statement that stands at `start` in it.
#[must_use]
pub fn command(text: &str, start: usize) -> Option<Command> {
    let verb = |tokens: &[Token<'_>]| {
        let verbs = ["declare", "fetch", "move", "close"];
        let first = tokens.first()?;
        verbs.into_iter().find(|verb| first.is(verb))
    };
    // A plan that several texts share has the places of one of them.
    for start in [start, 0] {
        let Some(own) = text.get(start..) else {
            continue;
        };
        let tokens = leading_tokens(own);
        let Some(verb) = verb(&tokens) else {
            continue;
        };
        let end = |token: &Token<'_>| token.kind == Kind::Sign && token.text == ";";
        let found = tokens.iter().position(end);
        // The rest of a query need not be understood.
        if verb != "declare" && found.is_none() && all_tokens(own).is_none() {
            return None;
        }
        let count = found.unwrap_or(tokens.len());
        let stop = tokens.get(count).map_or(own.len(), |end| end.start);
        let words = tokens.get(1..count)?;
        return match verb {
            "declare" => declare(words, start, start + stop),
            "fetch" => fetch(words, Rows::Given),
            "move" => fetch(words, Rows::Passed),
            _ => match words {
                [all] if all.is("all") => Some(Command::CloseAll),
                [name] => Some(Command::Close(identifier(name)?)),
                _ => None,
            },
        };
    }
    None
}

fn declare(words: &[Token<'_>], start: usize, end: usize) -> Option<Command> {
    let (name, words) = words.split_first()?;
    let at = words.iter().position(|word| word.is("for"))?;
    let (options, query) = words.split_at(at);
    let has = |word: &str| options.iter().any(|option| option.is(word));
    let scroll = match (has("scroll"), has("no")) {
        (true, true) => Scroll::No,
        (true, false) => Scroll::Yes,
        (false, _) => Scroll::NotSaid,
    };
    Some(Command::Declare(Declare {
        name: identifier(name)?,
        scroll,
        binary: has("binary"),
        hold: has("with"),
        query: start + query.first()?.end..end,
    }))
}

fn fetch(words: &[Token<'_>], rows: Rows) -> Option<Command> {
    let (name, mut words) = words.split_last()?;
    if let [before @ .., last] = words
        && (last.is("from") || last.is("in"))
    {
        words = before;
    }
    Some(Command::Fetch {
        name: identifier(name)?,
        count: count(words)?,
        rows,
    })
}

fn count(words: &[Token<'_>]) -> Option<Count> {
    let number = |token: &Token<'_>| match token.text.replace('_', "").parse().ok()? {
        // The row that was given last, once more.
        0 => Some(Count::Back),
        number => Some(Count::Next(number)),
    };
    let words = match words {
        [forward, rest @ ..] if forward.is("forward") => rest,
        all => all,
    };
    match words {
        [] => Some(Count::Next(1)),
        [one] if one.is("next") => Some(Count::Next(1)),
        [one] if one.is("all") => Some(Count::All),
        [one] if one.kind == Kind::Value => number(one),
        [plus, one] if plus.text == "+" && one.kind == Kind::Value => number(one),
        [minus, _] if minus.text == "-" => Some(Count::Back),
        [first, ..] => {
            let back = ["prior", "first", "last", "absolute", "relative", "backward"];
            back.iter()
                .any(|word| first.is(word))
                .then_some(Count::Back)
        }
    }
}

/// A name as PostgreSQL keeps it.
fn identifier(token: &Token<'_>) -> Option<String> {
    let mut name = match token.kind {
        Kind::Word => token.text.to_ascii_lowercase(),
        Kind::Quoted => token.text.replace("\"\"", "\""),
        Kind::Value | Kind::Sign => return None,
    };
    if name.len() > LONGEST {
        let end = (0..=LONGEST).rev().find(|at| name.is_char_boundary(*at));
        name.truncate(end.unwrap_or(0));
    }
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(text: &str) -> (String, Count, Rows) {
        match command(text, 0) {
            Some(Command::Fetch { name, count, rows }) => (name, count, rows),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn counts_are_read_in_every_spelling() {
        for (text, count) in [
            ("fetch c", Count::Next(1)),
            ("FETCH FROM c", Count::Next(1)),
            ("fetch next from c", Count::Next(1)),
            ("fetch next in C;", Count::Next(1)),
            ("fetch 5 c", Count::Next(5)),
            ("fetch +5 from c", Count::Next(5)),
            ("fetch forward from c", Count::Next(1)),
            ("fetch forward 20 from c -- some", Count::Next(20)),
            ("fetch all c", Count::All),
            ("/* x */ fetch forward all in \"c\"", Count::All),
            ("fetch 0 from c", Count::Back),
            ("fetch -1 from c", Count::Back),
            ("fetch prior from c", Count::Back),
            ("fetch absolute 3 from c", Count::Back),
            ("fetch backward all from c", Count::Back),
            ("fetch relative 1 from c", Count::Back),
        ] {
            assert_eq!(fetched(text), ("c".into(), count, Rows::Given), "{text}");
        }
        assert_eq!(
            fetched("move forward 2 in \"A\"\"b\""),
            ("A\"b".into(), Count::Next(2), Rows::Passed)
        );
        // A cursor may be called like a direction.
        assert_eq!(fetched("fetch next").0, "next");
    }

    #[test]
    fn a_cursor_is_declared_for_a_query() {
        let text =
            "declare \"My cursor\" binary no scroll cursor without hold for select 'for' from t; ";
        let Some(Command::Declare(declare)) = command(text, 0) else {
            panic!()
        };
        assert_eq!(declare.name, "My cursor");
        assert_eq!(declare.scroll, Scroll::No);
        assert!(declare.binary && !declare.hold);
        assert_eq!(&text[declare.query], " select 'for' from t");
        let Some(Command::Declare(declare)) =
            command("declare cursor scroll cursor with hold for values (1)", 0)
        else {
            panic!()
        };
        assert_eq!(
            (declare.name.as_str(), declare.scroll, declare.hold),
            ("cursor", Scroll::Yes, true)
        );
    }

    #[test]
    fn a_statement_among_others_is_found_where_it_stands() {
        let text = "select 1; close c; fetch 2 from d";
        assert_eq!(command(text, 9), Some(Command::Close("c".into())));
        assert_eq!(command("close all", 50), Some(Command::CloseAll));
        assert_eq!(
            command("close \"all\"", 0),
            Some(Command::Close("all".into()))
        );
        assert_eq!(command("fetch 3 from U&\"x\"", 0), None);
        let long = "é".repeat(40);
        assert_eq!(
            command(&format!("close \"{long}\""), 0),
            Some(Command::Close("é".repeat(31)))
        );
    }
}
