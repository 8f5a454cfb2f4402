//! The words, signs and parameters of a statement, between the literals that `normalize` has found in it. Pure.
//!
//! For texts that PostgreSQL's grammar has accepted already. What a literal is, with its escapes and settings, is left
//! to `normalize`: a quote that stands outside of a literal makes the text one that is not understood.

use super::normalize::{Slot, Slots, Strings, normalize};

/// A word, a sign, a literal or a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<'a> {
    pub kind: Kind,
    /// As written; of a quoted identifier what stands between the quotes.
    pub text: &'a str,
    /// Bytes in the text.
    pub start: usize,
    pub end: usize,
    /// Parentheses and brackets open around it; of one of these itself, around the pair.
    pub depth: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An identifier or a keyword.
    Word,
    /// An identifier in double quotes.
    Quoted,
    Literal,
    /// `$n`, from 1.
    Parameter(u16),
    /// One character.
    Sign,
}

impl Piece<'_> {
    /// Whether it is this keyword, which is given in lower case.
    #[must_use]
    pub fn is(&self, keyword: &str) -> bool {
        self.kind == Kind::Word && self.text.eq_ignore_ascii_case(keyword)
    }

    /// As PostgreSQL reads a name or keyword; what is none of these as written.
    #[must_use]
    pub fn folded(&self) -> String {
        match self.kind {
            Kind::Word => self.text.to_ascii_lowercase(),
            Kind::Quoted => self.text.replace("\"\"", "\""),
            Kind::Literal | Kind::Parameter(_) | Kind::Sign => self.text.to_owned(),
        }
    }

    /// The number of a parameter.
    #[must_use]
    pub fn parameter(&self) -> Option<u16> {
        match self.kind {
            Kind::Parameter(number) => Some(number),
            Kind::Word | Kind::Quoted | Kind::Literal | Kind::Sign => None,
        }
    }

    /// Whether it is this sign.
    #[must_use]
    pub fn is_sign(&self, sign: &str) -> bool {
        self.kind == Kind::Sign && self.text == sign
    }
}

/// The pieces of a text in order; `None`: not understood.
#[must_use]
pub fn pieces<'a>(text: &'a str, slots: &[Slot]) -> Option<Vec<Piece<'a>>> {
    let bytes = text.as_bytes();
    let mut found: Vec<Piece<'a>> = Vec::new();
    let mut slots = slots.iter().peekable();
    let (mut at, mut depth) = (0, 0_u32);
    while let Some(byte) = bytes.get(at) {
        let start = at;
        if let Some(slot) = slots.next_if(|slot| slot.start as usize == start) {
            at = slot.range().end;
            let text = text.get(slot.range())?;
            found.push(piece(Kind::Literal, text, start, at, depth));
            continue;
        }
        match byte {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => at += 1,
            b'-' if bytes.get(at + 1) == Some(&b'-') => at = line_end(bytes, at),
            b'/' if bytes.get(at + 1) == Some(&b'*') => at = comment_end(bytes, at)?,
            b'"' => {
                at = quoted_end(bytes, at)?;
                let inside = text.get(start + 1..at - 1)?;
                found.push(piece(Kind::Quoted, inside, start, at, depth));
            }
            b'$' => {
                at += 1 + count(&bytes[at + 1..], u8::is_ascii_digit);
                let number = text.get(start + 1..at)?.parse().ok()?;
                let own = text.get(start..at)?;
                found.push(piece(Kind::Parameter(number), own, start, at, depth));
            }
            b'\'' => return None,
            byte if is_word(byte) => {
                at += count(&bytes[at..], |byte| is_word(byte) || *byte == b'$');
                let word = text.get(start..at)?;
                found.push(piece(Kind::Word, word, start, at, depth));
            }
            byte => {
                at += 1;
                if matches!(byte, b')' | b']') {
                    depth = depth.checked_sub(1)?;
                }
                let sign = text.get(start..at)?;
                found.push(piece(Kind::Sign, sign, start, at, depth));
                if matches!(byte, b'(' | b'[') {
                    depth += 1;
                }
            }
        }
    }
    (depth == 0 && slots.next().is_none()).then_some(found)
}

fn piece(kind: Kind, text: &str, start: usize, end: usize, depth: u32) -> Piece<'_> {
    Piece {
        kind,
        text,
        start,
        end,
        depth,
    }
}

fn is_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || *byte == b'_' || *byte >= 0x80
}

fn count(bytes: &[u8], mut is: impl FnMut(&u8) -> bool) -> usize {
    bytes.iter().take_while(|byte| is(byte)).count()
}

fn line_end(bytes: &[u8], start: usize) -> usize {
    start + count(&bytes[start..], |byte| !matches!(byte, b'\n' | b'\r'))
}

/// Comments nest.
fn comment_end(bytes: &[u8], start: usize) -> Option<usize> {
    let (mut at, mut depth) = (start, 0_u32);
    loop {
        match bytes.get(at..at + 2)? {
            b"/*" => (at, depth) = (at + 2, depth + 1),
            b"*/" if depth == 1 => return Some(at + 2),
            b"*/" => (at, depth) = (at + 2, depth - 1),
            _ => at += 1,
        }
    }
}

/// A doubled quote is one of the name's characters.
fn quoted_end(bytes: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == b'"')? + 1;
        if bytes.get(at) != Some(&b'"') {
            return Some(at);
        }
        at += 1;
    }
}

/// The literals of a text.
#[must_use]
pub fn slots_of(text: &str, strings: Strings) -> Slots {
    let (mut template, mut slots) = (Vec::new(), Slots::new());
    normalize(text.as_bytes(), strings, &mut template, &mut slots);
    slots
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Option<Vec<(Kind, &str, u32)>> {
        let found = pieces(text, &slots_of(text, Strings::Standard))?;
        Some(
            found
                .iter()
                .map(|piece| (piece.kind, piece.text, piece.depth))
                .collect(),
        )
    }

    #[test]
    fn words_signs_and_parameters_stand_between_literals() {
        let text =
            "INSERT /* ( /* ' */ */ INTO \"a\"\"(\" VALUES (E'x\\'),(', $12, ARRAY[1]) -- (\n";
        use Kind::{Literal, Parameter, Quoted, Sign, Word};
        assert_eq!(
            all(text).unwrap(),
            [
                (Word, "INSERT", 0),
                (Word, "INTO", 0),
                (Quoted, "a\"\"(", 0),
                (Word, "VALUES", 0),
                (Sign, "(", 0),
                (Literal, "E'x\\'),('", 1),
                (Sign, ",", 1),
                (Parameter(12), "$12", 1),
                (Sign, ",", 1),
                (Word, "ARRAY", 1),
                (Sign, "[", 1),
                (Literal, "1", 2),
                (Sign, "]", 1),
                (Sign, ")", 0),
            ]
        );
    }

    #[test]
    fn what_cannot_be_lexed_is_not_understood() {
        for text in [
            "SELECT 'open",
            "SELECT (1",
            "SELECT 1)",
            "/* open",
            "\"open",
        ] {
            assert_eq!(all(text), None, "{text}");
        }
    }
}
