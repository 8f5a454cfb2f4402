//! Hot path: text to template key and literal slots; one pass, no allocation beyond the caller's buffers.
//!
//! Two texts with equal templates have equal token streams but for the values of their literals, and literals in the
//! same place are of the same [`Kind`] (written the same way, typed the same by PostgreSQL). A template is decodable:
//! outside double quotes a byte below 0x20 is a literal's place; one that begins with `BROKEN` is the text itself.
//! The rules are those of PostgreSQL 18's `scan.l`; `tests/scanner_oracle` compares them with it.
//!
//! What cannot be lexed (an unterminated string, `1a`, a stray control byte) is never made into a template that a
//! valid text could have. Keywords are not folded and blanks are kept as one blank: a client that spells a statement
//! in two ways has two templates. Servers before 15 read `0x10` and `1_000` as a number and a name, which is why such
//! numbers are of kinds of their own.

use memchr::{memchr, memchr2, memmem};
use smallvec::SmallVec;
use std::ops::Range;

/// A literal in a statement's text: the bytes that PostgreSQL's scanner makes one constant of.
/// `start` is where the parser says that the constant stands, but for a negative number, which stands at its sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub start: u32,
    pub end: u32,
}

impl Slot {
    /// Where the literal stands in its text.
    #[must_use]
    pub fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

/// The literal slots of one text, in order.
pub type Slots = SmallVec<[Slot; 8]>;

/// How a plain `'…'` is read: the session's standard_conforming_strings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Strings {
    /// On: a backslash is a character.
    Standard,
    /// Off: a backslash escapes, as in `E'…'`.
    Escapes,
}

/// Whether the whole text could be lexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lexed {
    Whole,
    /// PostgreSQL's scanner refuses the text: the template is the text, marked, and there are no slots.
    Broken,
}

/// How a literal is written and typed; the value is the byte that stands for it in a template.
/// `N'…'` is the word `n` and a string, as in PostgreSQL's scanner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `'…'`.
    String = 0x01,
    /// `E'…'`.
    Escape = 0x02,
    /// `U&'…'`, with the `UESCAPE '…'` that may follow.
    Unicode = 0x03,
    /// `$tag$…$tag$`.
    Dollar = 0x04,
    /// `B'…'`.
    Bits = 0x05,
    /// `X'…'`.
    HexBits = 0x06,
    /// A whole number that fits int4.
    Int4 = 0x07,
    /// A whole number that fits int8 and not int4.
    Int8 = 0x08,
    /// A greater whole number, or one with a point or exponent.
    Numeric = 0x0e,
    /// As `Int4`, in base 16, 8 or 2, or with underscores: no number to a server before 16.
    NewInt4 = 0x0f,
    NewInt8 = 0x10,
    NewNumeric = 0x11,
}

/// Stands before a text that cannot be lexed.
const BROKEN: u8 = 0x1f;

/// Writes the text's template and finds its literals; both buffers are emptied first.
/// Texts are below 4 GiB and hold no zero byte, as every text of a message.
pub fn normalize(
    text: &[u8],
    strings: Strings,
    template: &mut Vec<u8>,
    slots: &mut Slots,
) -> Lexed {
    template.clear();
    slots.clear();
    let mut lexer = Lexer {
        text,
        strings,
        copied: 0,
        template,
        slots,
    };
    match lexer.run() {
        Ok(()) => {
            lexer.copy_until(text.len());
            Lexed::Whole
        }
        Err(Broken) => {
            template.clear();
            slots.clear();
            template.push(BROKEN);
            template.extend_from_slice(text);
            Lexed::Broken
        }
    }
}

/// The lexer met what PostgreSQL's scanner refuses.
struct Broken;

struct Lexer<'a> {
    text: &'a [u8],
    strings: Strings,
    /// How much of the text the template has.
    copied: usize,
    template: &'a mut Vec<u8>,
    slots: &'a mut Slots,
}

/// What a byte can begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Word,
    Digit,
    Blank,
    Quote,
    DoubleQuote,
    Dollar,
    Dot,
    /// A byte of an operator that begins no comment.
    Operator,
    Minus,
    Slash,
    /// A token by itself.
    Single,
    /// In no token.
    Foreign,
}

const CLASSES: [Class; 256] = {
    let mut classes = [Class::Foreign; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Class::Word,
            b'0'..=b'9' => Class::Digit,
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Class::Blank,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'$' => Class::Dollar,
            b'.' => Class::Dot,
            b'-' => Class::Minus,
            b'/' => Class::Slash,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'*' | b'%'
            | b'<' | b'>' | b'=' => Class::Operator,
            b',' | b'(' | b')' | b'[' | b']' | b';' | b':' => Class::Single,
            _ => Class::Foreign,
        };
        byte += 1;
    }
    classes
};

/// The class of the byte at `at`; the end of the text is in no token.
fn class(text: &[u8], at: usize) -> Class {
    text.get(at)
        .map_or(Class::Foreign, |byte| CLASSES[usize::from(*byte)])
}

impl Lexer<'_> {
    fn run(&mut self) -> Result<(), Broken> {
        let mut at = 0;
        while let Some(byte) = self.text.get(at) {
            at = match CLASSES[usize::from(*byte)] {
                Class::Word => self.word(at)?,
                Class::Blank => self.blank(at)?,
                Class::Digit => self.number(at)?,
                Class::Dot if class(self.text, at + 1) == Class::Digit => self.number(at)?,
                Class::Dot if self.text.get(at + 1) == Some(&b'.') => at + 2,
                Class::Minus if self.text.get(at + 1) == Some(&b'-') => self.blank(at)?,
                Class::Slash if self.text.get(at + 1) == Some(&b'*') => self.blank(at)?,
                Class::Dot | Class::Operator | Class::Minus | Class::Slash | Class::Single => {
                    at + 1
                }
                Class::Quote => {
                    let end = quoted(self.text, at, self.strings)?;
                    self.literal(at, end, Kind::String)
                }
                Class::DoubleQuote => double_quoted(self.text, at)?,
                Class::Dollar => self.dollar(at)?,
                Class::Foreign => return Err(Broken),
            };
        }
        Ok(())
    }

    /// A name or keyword, or a string that a letter begins.
    fn word(&mut self, at: usize) -> Result<usize, Broken> {
        match (self.text[at], self.text.get(at + 1)) {
            (b'e' | b'E', Some(b'\'')) => {
                let end = quoted(self.text, at + 1, Strings::Escapes)?;
                return Ok(self.literal(at, end, Kind::Escape));
            }
            (letter @ (b'b' | b'B' | b'x' | b'X'), Some(b'\'')) => {
                let end = quoted_bits(self.text, at + 1)?;
                let kind = if letter.eq_ignore_ascii_case(&b'b') {
                    Kind::Bits
                } else {
                    Kind::HexBits
                };
                return Ok(self.literal(at, end, kind));
            }
            (b'u' | b'U', Some(b'&')) => match self.text.get(at + 2) {
                // PostgreSQL refuses it while standard_conforming_strings is off.
                Some(b'\'') if self.strings == Strings::Escapes => return Err(Broken),
                Some(b'\'') => {
                    let end =
                        unicode_escape(self.text, quoted(self.text, at + 2, Strings::Standard)?)?;
                    return Ok(self.literal(at, end, Kind::Unicode));
                }
                Some(b'"') => return unicode_escape(self.text, double_quoted(self.text, at + 2)?),
                _ => {}
            },
            _ => {}
        }
        Ok(word_end(self.text, at))
    }

    /// Blanks and comments: one blank in the template; as they stand if an override is among them.
    fn blank(&mut self, start: usize) -> Result<usize, Broken> {
        if self.text[start] == b' ' && !is_blank(self.text, start + 1) {
            return Ok(start + 1);
        }
        let (mut at, mut overrides) = (start, false);
        while is_blank(self.text, at) {
            let end = blank_end(self.text, at)?;
            overrides |= is_override(&self.text[at..end]);
            at = end;
        }
        if !overrides {
            self.copy_until(start);
            self.template.push(b' ');
            self.copied = at;
        }
        Ok(at)
    }

    fn number(&mut self, at: usize) -> Result<usize, Broken> {
        let (end, kind) = number(self.text, at).ok_or(Broken)?;
        Ok(self.literal(at, end, kind))
    }

    /// `$1`, or a dollar-quoted string.
    fn dollar(&mut self, at: usize) -> Result<usize, Broken> {
        let mut end = at + 1;
        if class(self.text, end) == Class::Digit {
            while class(self.text, end) == Class::Digit {
                end += 1;
            }
            return if class(self.text, end) == Class::Word {
                Err(Broken)
            } else {
                Ok(end)
            };
        }
        while matches!(class(self.text, end), Class::Word | Class::Digit) {
            end += 1;
        }
        if class(self.text, end) != Class::Dollar {
            return Err(Broken);
        }
        let body = end + 1;
        let tag = &self.text[at..body];
        let close = match tag {
            b"$$" => memmem::find(&self.text[body..], b"$$"),
            _ => memmem::find(&self.text[body..], tag),
        };
        let close = close.ok_or(Broken)?;
        Ok(self.literal(at, body + close + tag.len(), Kind::Dollar))
    }

    /// Puts a literal's place into the template; returns its end.
    fn literal(&mut self, start: usize, end: usize, kind: Kind) -> usize {
        self.copy_until(start);
        self.template.push(kind as u8);
        self.copied = end;
        #[expect(clippy::cast_possible_truncation, reason = "texts are below 4 GiB")]
        self.slots.push(Slot {
            start: start as u32,
            end: end as u32,
        });
        end
    }

    fn copy_until(&mut self, at: usize) {
        self.template
            .extend_from_slice(&self.text[self.copied.min(at)..at]);
        self.copied = self.copied.max(at);
    }
}

fn word_end(text: &[u8], start: usize) -> usize {
    let mut at = start;
    while matches!(class(text, at), Class::Word | Class::Digit | Class::Dollar) {
        at += 1;
    }
    at
}

/// The end of `UESCAPE '…'` after a Unicode string or name that ends here, or this end: both are one token to the parser.
fn unicode_escape(text: &[u8], end: usize) -> Result<usize, Broken> {
    let skip_blanks = |mut at: usize| {
        while is_blank(text, at) {
            at = blank_end(text, at)?;
        }
        Ok(at)
    };
    let word = skip_blanks(end)?;
    let after = word_end(text, word);
    if !text[word..after].eq_ignore_ascii_case(b"uescape") {
        return Ok(end);
    }
    let open = skip_blanks(after)?;
    if class(text, open) == Class::Quote {
        quoted(text, open, Strings::Standard)
    } else {
        Err(Broken)
    }
}

/// Whether a blank or a comment begins here.
fn is_blank(text: &[u8], at: usize) -> bool {
    match class(text, at) {
        Class::Blank => true,
        Class::Minus => text.get(at + 1) == Some(&b'-'),
        Class::Slash => text.get(at + 1) == Some(&b'*'),
        Class::Word
        | Class::Digit
        | Class::Quote
        | Class::DoubleQuote
        | Class::Dollar
        | Class::Dot
        | Class::Operator
        | Class::Single
        | Class::Foreign => false,
    }
}

/// The end of the blanks, or of the one comment, that begin here.
fn blank_end(text: &[u8], start: usize) -> Result<usize, Broken> {
    let mut at = start;
    while class(text, at) == Class::Blank {
        at += 1;
    }
    match text.get(start) {
        Some(b'-') => Ok(line_comment(text, start)),
        Some(b'/') => block_comment(text, start),
        _ => Ok(at),
    }
}

fn line_comment(text: &[u8], start: usize) -> usize {
    memchr2(b'\n', b'\r', &text[start..]).map_or(text.len(), |length| start + length)
}

/// Comments nest.
fn block_comment(text: &[u8], start: usize) -> Result<usize, Broken> {
    let (mut at, mut depth) = (start + 2, 1_usize);
    while let Some(skip) = memchr2(b'*', b'/', &text[at..]) {
        at += skip;
        match (text[at], text.get(at + 1)) {
            (b'*', Some(b'/')) if depth == 1 => return Ok(at + 2),
            (b'*', Some(b'/')) => (at, depth) = (at + 2, depth - 1),
            (b'/', Some(b'*')) => (at, depth) = (at + 2, depth + 1),
            _ => at += 1,
        }
    }
    Err(Broken)
}

/// Whether a comment could mean something to the planner, however it reads the blanks in it.
fn is_override(comment: &[u8]) -> bool {
    comment.starts_with(b"/*") && memmem::find(comment, b"shardway:").is_some()
}

/// The end of a string whose quote is at `open`, with the strings on further lines that continue it.
fn quoted(text: &[u8], open: usize, strings: Strings) -> Result<usize, Broken> {
    let mut at = open + 1;
    loop {
        let rest = text.get(at..).unwrap_or_default();
        let found = match strings {
            Strings::Standard => memchr(b'\'', rest),
            Strings::Escapes => memchr2(b'\'', b'\\', rest),
        };
        let Some(found) = found else {
            return Err(Broken);
        };
        at += found;
        if text[at] == b'\\' || text.get(at + 1) == Some(&b'\'') {
            at += 2;
            continue;
        }
        match continuation(text, at + 1) {
            Some(inside) => at = inside,
            None => return Ok(at + 1),
        }
    }
}

/// As [`quoted`], where two quotes are an end and a beginning, not a quote.
fn quoted_bits(text: &[u8], open: usize) -> Result<usize, Broken> {
    let mut at = open + 1;
    loop {
        at += memchr(b'\'', &text[at..]).ok_or(Broken)? + 1;
        match continuation(text, at) {
            Some(inside) => at = inside,
            None => return Ok(at),
        }
    }
}

/// Where a string goes on that was closed before `at`: blanks with a newline, or line comments, and a quote between.
fn continuation(text: &[u8], mut at: usize) -> Option<usize> {
    let mut newline = false;
    loop {
        match text.get(at)? {
            b'\'' if newline => return Some(at + 1),
            b'\'' => return None,
            _ if !is_blank(text, at) => return None,
            b'-' => at = line_comment(text, at),
            b'/' => return None,
            byte => {
                newline |= matches!(byte, b'\n' | b'\r');
                at += 1;
            }
        }
    }
}

fn double_quoted(text: &[u8], open: usize) -> Result<usize, Broken> {
    let mut at = open + 1;
    loop {
        at += memchr(b'"', text.get(at..).unwrap_or_default()).ok_or(Broken)? + 1;
        if text.get(at) != Some(&b'"') {
            return Ok(at);
        }
        at += 1;
    }
}

/// The end and kind of the number that begins with a digit, or with a point and a digit; none for what is no number.
fn number(text: &[u8], start: usize) -> Option<(usize, Kind)> {
    if text[start] == b'0'
        && let Some(base) = base_of(text.get(start + 1))
        && let Some(end) = base_digits_end(text, start + 2, base)
    {
        let junk = matches!(class(text, end), Class::Word | Class::Digit | Class::Dollar);
        return if junk {
            None
        } else {
            Some((end, whole_kind(&text[start + 2..end], base, Spelling::New)))
        };
    }
    let mut end = digits_end(text, start);
    let whole = end;
    if text.get(end) == Some(&b'.') && (end == start || text.get(end + 1) != Some(&b'.')) {
        end = digits_end(text, end + 1);
    }
    if let Some(b'e' | b'E') = text.get(end) {
        let sign = usize::from(matches!(text.get(end + 1), Some(b'+' | b'-')));
        let exponent = end + 1 + sign;
        end = if class(text, exponent) == Class::Digit {
            digits_end(text, exponent)
        } else {
            return None;
        };
    }
    if class(text, end) == Class::Word
        || (class(text, end) == Class::Dollar && ends_as_name(&text[start..end]))
    {
        return None;
    }
    let spelling = if memchr(b'_', &text[start..end]).is_some() {
        Spelling::New
    } else {
        Spelling::Old
    };
    let kind = match spelling {
        _ if end == whole => whole_kind(&text[start..end], 10, spelling),
        Spelling::Old => Kind::Numeric,
        Spelling::New => Kind::NewNumeric,
    };
    Some((end, kind))
}

/// Whether the end of a number could be that of a name: `1e5$` is `1` and the name `e5$`, which PostgreSQL refuses.
fn ends_as_name(number: &[u8]) -> bool {
    let class = |byte: &u8| CLASSES[usize::from(*byte)];
    let last = number
        .iter()
        .rev()
        .take_while(|byte| matches!(class(byte), Class::Word | Class::Digit));
    last.into_iter().any(|byte| class(byte) == Class::Word)
}

/// Whether servers before 16 read the number the same way.
#[derive(Clone, Copy)]
enum Spelling {
    Old,
    New,
}

/// The end of `1`, `12`, `1_2`, or of nothing.
fn digits_end(text: &[u8], start: usize) -> usize {
    let mut at = start;
    while class(text, at) == Class::Digit
        || (at > start && text.get(at) == Some(&b'_') && class(text, at + 1) == Class::Digit)
    {
        at += 1;
    }
    at
}

fn base_of(letter: Option<&u8>) -> Option<u32> {
    match letter? {
        b'x' | b'X' => Some(16),
        b'o' | b'O' => Some(8),
        b'b' | b'B' => Some(2),
        _ => None,
    }
}

/// The end of digits in a base, each with an underscore before it or not; none when there are none.
fn base_digits_end(text: &[u8], start: usize, base: u32) -> Option<usize> {
    let is_digit = |at: usize| {
        text.get(at)
            .is_some_and(|byte| char::from(*byte).is_digit(base))
    };
    let mut at = start;
    loop {
        if is_digit(at) {
            at += 1;
        } else if text.get(at) == Some(&b'_') && is_digit(at + 1) {
            at += 2;
        } else {
            return (at > start).then_some(at);
        }
    }
}

/// int4, int8 or numeric, as `make_const` in PostgreSQL's `parse_node.c` types a whole number.
fn whole_kind(digits: &[u8], base: u32, spelling: Spelling) -> Kind {
    let mut value = 0_u64;
    for digit in digits
        .iter()
        .filter_map(|byte| char::from(*byte).to_digit(base))
    {
        value = value
            .saturating_mul(base.into())
            .saturating_add(digit.into());
    }
    match (i32::try_from(value), i64::try_from(value), spelling) {
        (Ok(_), _, Spelling::Old) => Kind::Int4,
        (Ok(_), _, Spelling::New) => Kind::NewInt4,
        (Err(_), Ok(_), Spelling::Old) => Kind::Int8,
        (Err(_), Ok(_), Spelling::New) => Kind::NewInt8,
        (Err(_), Err(_), Spelling::Old) => Kind::Numeric,
        (Err(_), Err(_), Spelling::New) => Kind::NewNumeric,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lex(text: &str, strings: Strings) -> (Lexed, String, Vec<&str>) {
        let (mut template, mut slots) = (Vec::new(), Slots::new());
        let lexed = normalize(text.as_bytes(), strings, &mut template, &mut slots);
        let literals = slots
            .iter()
            .map(|slot| &text[slot.start as usize..slot.end as usize])
            .collect();
        (lexed, String::from_utf8(template).unwrap(), literals)
    }

    fn check(text: &str, template: &str, literals: &[&str]) {
        assert_eq!(
            lex(text, Strings::Standard),
            (Lexed::Whole, template.to_owned(), literals.to_vec()),
            "{text}"
        );
    }

    #[test]
    fn literals_are_replaced_and_found() {
        check(
            "SELECT * FROM t WHERE id = 42",
            "SELECT * FROM t WHERE id = \x07",
            &["42"],
        );
        check(
            "select 'a''b', E'a\\'b', $$x$$, $q$ $$ $q$",
            "select \x01, \x02, \x04, \x04",
            &["'a''b'", "E'a\\'b'", "$$x$$", "$q$ $$ $q$"],
        );
        check(
            "select b'01', X'1f', n'x', u&'d\\0061'",
            "select \x05, \x06, n\x01, \x03",
            &["b'01'", "X'1f'", "'x'", "u&'d\\0061'"],
        );
        check(
            "select 1, 3000000000, 99999999999999999999, 1.5",
            "select \x07, \x08, \x0e, \x0e",
            &["1", "3000000000", "99999999999999999999", "1.5"],
        );
        check(
            "select 0x1F, 0b_11, 0o7_7, 1_000, 1_0.5",
            "select \x0f, \x0f, \x0f, \x0f, \x11",
            &["0x1F", "0b_11", "0o7_7", "1_000", "1_0.5"],
        );
        check(
            "limit 2147483647 offset 2147483648",
            "limit \x07 offset \x08",
            &["2147483647", "2147483648"],
        );
    }

    #[test]
    fn numbers_end_where_postgresql_ends_them() {
        check("a[1..2]", "a[\x07..\x07]", &["1", "2"]);
        check("1.e5+.5-1.", "\x0e+\x0e-\x0e", &["1.e5", ".5", "1."]);
        check("1...5", "\x07..\x0e", &["1", ".5"]);
        check("1.5.6", "\x0e\x0e", &["1.5", ".6"]);
        check("$1.5", "$1\x0e", &[".5"]);
        check("t1.c2 = $3::int4", "t1.c2 = $3::int4", &[]);
        check("-5", "-\x07", &["5"]);
        check("a$1 x$y$ é1", "a$1 x$y$ é1", &[]);
    }

    #[test]
    fn comments_and_blanks_are_one_blank() {
        check(
            "select /* a /* b */ 'c' */ 1 -- it's\n, 2",
            "select \x07 , \x07",
            &["1", "2"],
        );
        check("1 @-/*x*/ 2", "\x07 @- \x07", &["1", "2"]);
        check("1*--x\n2", "\x07* \x07", &["1", "2"]);
        check("a\t\r\n b", "a b", &[]);
    }

    #[test]
    fn a_string_goes_on_after_a_newline_only() {
        check("select 'a'\n 'b'", "select \x01", &["'a'\n 'b'"]);
        check(
            "select 'a' -- x\n'b', 1",
            "select \x01, \x07",
            &["'a' -- x\n'b'", "1"],
        );
        check("select 'a' 'b'", "select \x01 \x01", &["'a'", "'b'"]);
        check(
            "select 'a' /* \n */ 'b'",
            "select \x01 \x01",
            &["'a'", "'b'"],
        );
        check("select 'a' --", "select \x01 ", &["'a'"]);
    }

    #[test]
    fn a_backslash_escapes_when_the_session_says_so() {
        let text = r"select 'a\' , 1, '";
        assert_eq!(lex(text, Strings::Standard).0, Lexed::Broken);
        assert_eq!(lex(text, Strings::Escapes).2, [r"'a\' , 1, '"]);
        assert_eq!(lex(r"select u&'a'", Strings::Escapes).0, Lexed::Broken);
    }

    #[test]
    fn a_unicode_escape_belongs_to_its_string() {
        let text = "select U&'d!0061' /**/ uescape\n '!', 'x'";
        check(
            text,
            "select \x03, \x01",
            &["U&'d!0061' /**/ uescape\n '!'", "'x'"],
        );
        check(
            "select U&\"d!0061\" UESCAPE '!'",
            "select U&\"d!0061\" UESCAPE '!'",
            &[],
        );
        check("select u&'a' uescaped", "select \x03 uescaped", &["u&'a'"]);
        assert_eq!(
            lex("select u&'a' uescape 1", Strings::Standard).0,
            Lexed::Broken
        );
    }

    #[test]
    fn what_cannot_be_lexed_shares_no_template() {
        for text in [
            "1 'a",
            "1 $$a",
            "1 $q$ $$",
            "1 /* /* */",
            "1 \"a",
            "1 E'\\'",
            "1a",
            "0x",
            "1e+",
            "1 $",
            "$1a",
            "\x01",
            "0b12",
            "0x1$",
            "1e5$1",
            "1_0$1",
        ] {
            let (lexed, template, _) = lex(text, Strings::Standard);
            assert_eq!(lexed, Lexed::Broken, "{text}");
            assert!(template.contains('\x1f'), "{text}");
        }
        assert_ne!(
            lex("select 'a", Strings::Standard).1,
            lex("select 'b", Strings::Standard).1
        );
    }

    #[test]
    fn an_override_is_part_of_the_template_and_other_comments_are_not() {
        check(
            "/* shardway: key=4 */ select 1",
            "/* shardway: key=4 */ select \x07",
            &["1"],
        );
        check(
            "/*\u{a0}shardway: key=4*/select 1",
            "/*\u{a0}shardway: key=4*/select \x07",
            &["1"],
        );
        check(
            "\t/* x */\n/*shardway: */  a",
            "\t/* x */\n/*shardway: */  a",
            &[],
        );
        check("/* from the shop */ select 1", " select \x07", &["1"]);
    }
}
