//! From a string constant as written to the bytes that it means. Pure.
//!
//! The forms are those of the manual's section "String Constants": plain, escape (`E'…'`), Unicode (`U&'…'`) and
//! dollar-quoted. Bit strings and national character strings are constants of another type and are not read.

use std::borrow::Cow;

/// What a string constant means, in UTF-8; `None`: not a string constant, or one that PostgreSQL refuses.
/// `token` is all of it: with its continuations on further lines, and with `UESCAPE '…'` if there is one.
#[must_use]
pub fn decode_string_literal(
    token: &[u8],
    standard_conforming_strings: bool,
) -> Option<Cow<'_, [u8]>> {
    let decoded = match token {
        [b'$', ..] => return dollar_quoted(token).map(Cow::Borrowed),
        [b'e' | b'E', b'\'', ..] => decode_escapes(&join(&token[1..], Quote::Escape)?)?,
        [b'u' | b'U', b'&', b'\'', ..] if standard_conforming_strings => unicode(&token[2..])?,
        [b'\'', ..] if standard_conforming_strings => return join(token, Quote::Plain),
        [b'\'', ..] => decode_escapes(&join(token, Quote::Escape)?)?,
        _ => return None,
    };
    Some(Cow::Owned(decoded))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    Plain,
    /// A backslash takes the next byte with it.
    Escape,
}

/// The body of a quoted constant, continuations joined, doubled quotes single; backslashes stay.
fn join(token: &[u8], quote: Quote) -> Option<Cow<'_, [u8]>> {
    let (first, mut rest) = segment(token, quote)?;
    let mut whole = first;
    while !rest.is_empty() {
        let (next, after) = segment(skip_to_continuation(rest)?, quote)?;
        whole.to_mut().extend_from_slice(&next);
        rest = after;
    }
    Some(whole)
}

/// One `'…'` and what follows it.
fn segment(token: &[u8], quote: Quote) -> Option<(Cow<'_, [u8]>, &[u8])> {
    let [b'\'', body @ ..] = token else {
        return None;
    };
    let mut owned: Option<Vec<u8>> = None;
    let mut copied = 0;
    let mut at = 0;
    loop {
        match (&body[at.min(body.len())..], quote) {
            ([b'\'', b'\'', ..], _) => {
                // The first quote of the two stays.
                owned
                    .get_or_insert_default()
                    .extend_from_slice(&body[copied..=at]);
                at += 2;
                copied = at;
            }
            ([b'\'', rest @ ..], _) => {
                let value = match owned {
                    None => Cow::Borrowed(&body[..at]),
                    Some(mut value) => {
                        value.extend_from_slice(&body[copied..at]);
                        Cow::Owned(value)
                    }
                };
                return Some((value, rest));
            }
            ([b'\\', ..], Quote::Escape) => at += 2,
            ([], _) => return None,
            _ => at += 1,
        }
    }
}

/// Skips blanks, newlines and `--` comments up to the next `'`; at least one newline must be among them.
fn skip_to_continuation(text: &[u8]) -> Option<&[u8]> {
    let mut rest = text;
    let mut newline = false;
    loop {
        rest = match rest {
            [b'\'', ..] if newline => return Some(rest),
            [b'-', b'-', comment @ ..] => {
                let end = comment
                    .iter()
                    .position(|byte| matches!(byte, b'\n' | b'\r'))?;
                &comment[end..]
            }
            [b'\n' | b'\r', after @ ..] => {
                newline = true;
                after
            }
            [b' ' | b'\t' | 0x0b | 0x0c, after @ ..] => after,
            _ => return None,
        };
    }
}

fn dollar_quoted(token: &[u8]) -> Option<&[u8]> {
    let length = token.iter().skip(1).position(|byte| *byte == b'$')? + 2;
    let (tag, rest) = token.split_at(length);
    rest.strip_suffix(tag)
}

fn decode_escapes(body: &[u8]) -> Option<Vec<u8>> {
    let mut decoded = Vec::with_capacity(body.len());
    let mut rest = body;
    while let [byte, after @ ..] = rest {
        rest = after;
        if *byte == b'\\' {
            rest = escape(after, &mut decoded)?;
        } else {
            decoded.push(*byte);
        }
    }
    valid(decoded)
}

/// Decodes what follows a backslash; returns what follows that.
fn escape<'a>(text: &'a [u8], decoded: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (kind, rest) = text.split_first()?;
    match kind {
        b'b' => decoded.push(8),
        b'f' => decoded.push(12),
        b'n' => decoded.push(b'\n'),
        b'r' => decoded.push(b'\r'),
        b't' => decoded.push(b'\t'),
        b'v' => decoded.push(11),
        b'0'..=b'7' => return byte_escape(text, 8, 3, decoded),
        b'x' if rest.first().is_some_and(u8::is_ascii_hexdigit) => {
            return byte_escape(rest, 16, 2, decoded);
        }
        b'u' => return code_point(rest, 4, decoded),
        b'U' => return code_point(rest, 8, decoded),
        other => decoded.push(*other),
    }
    Some(rest)
}

fn byte_escape<'a>(
    text: &'a [u8],
    radix: u32,
    most: usize,
    decoded: &mut Vec<u8>,
) -> Option<&'a [u8]> {
    let digit = |byte: &u8| char::from(*byte).to_digit(radix);
    let length = text
        .iter()
        .take(most)
        .take_while(|byte| digit(byte).is_some())
        .count();
    let (digits, rest) = text.split_at(length);
    let value = digits
        .iter()
        .filter_map(digit)
        .fold(0, |value, digit| value * radix + digit);
    decoded.push((value & 0xff) as u8);
    Some(rest)
}

/// `length` hexadecimal digits, or two such escapes that form a surrogate pair.
fn code_point<'a>(text: &'a [u8], length: usize, decoded: &mut Vec<u8>) -> Option<&'a [u8]> {
    let (first, rest) = hex(text, length)?;
    let (value, rest) = match (first, rest) {
        (0xD800..=0xDBFF, [b'\\', kind @ (b'u' | b'U'), rest @ ..]) => {
            let (second, rest) = hex(rest, if *kind == b'u' { 4 } else { 8 })?;
            (combine(first, second)?, rest)
        }
        _ => (first, rest),
    };
    push_char(value, decoded)?;
    Some(rest)
}

fn unicode(token: &[u8]) -> Option<Vec<u8>> {
    let (body, escape) = split_uescape(token)?;
    let body = join(body, Quote::Plain)?;
    let mut decoded = Vec::with_capacity(body.len());
    let mut rest: &[u8] = &body;
    let mut high = None;
    while let [byte, after @ ..] = rest {
        rest = after;
        let value = match after {
            _ if *byte != escape => None,
            [next, after @ ..] if *next == escape => {
                rest = after;
                None
            }
            [b'+', digits @ ..] => Some(hex(digits, 6)?),
            _ => Some(hex(after, 4)?),
        };
        match (value, high.take()) {
            (None, None) => decoded.push(*byte),
            (Some((value, after)), None) => {
                rest = after;
                if (0xD800..=0xDBFF).contains(&value) {
                    high = Some(value);
                } else {
                    push_char(value, &mut decoded)?;
                }
            }
            (Some((low, after)), Some(high)) => {
                rest = after;
                push_char(combine(high, low)?, &mut decoded)?;
            }
            (None, Some(_)) => return None,
        }
    }
    if high.is_some() { None } else { valid(decoded) }
}

/// The constant without its `UESCAPE` clause, and the escape character.
fn split_uescape(token: &[u8]) -> Option<(&[u8], u8)> {
    let [head @ .., b'\'', escape, b'\''] = token else {
        return Some((token, b'\\'));
    };
    let head = head.trim_ascii_end();
    let Some((body, word)) = head.len().checked_sub(7).map(|at| head.split_at(at)) else {
        return Some((token, b'\\'));
    };
    if !word.eq_ignore_ascii_case(b"uescape") || body.trim_ascii_end().last() != Some(&b'\'') {
        return Some((token, b'\\'));
    }
    let allowed = !escape.is_ascii_hexdigit()
        && !matches!(escape, b'+' | b'\'' | b'"')
        && !escape.is_ascii_whitespace();
    (allowed && escape.is_ascii()).then_some((body.trim_ascii_end(), *escape))
}

fn hex(text: &[u8], length: usize) -> Option<(u32, &[u8])> {
    let (digits, rest) = text.split_at_checked(length)?;
    let value = digits.iter().try_fold(0_u32, |value, byte| {
        Some(value << 4 | char::from(*byte).to_digit(16)?)
    })?;
    Some((value, rest))
}

fn combine(high: u32, low: u32) -> Option<u32> {
    (0xDC00..=0xDFFF)
        .contains(&low)
        .then(|| 0x10000 + ((high & 0x3FF) << 10 | (low & 0x3FF)))
}

fn push_char(value: u32, decoded: &mut Vec<u8>) -> Option<()> {
    let char = char::from_u32(value).filter(|char| *char != '\0')?;
    decoded.extend_from_slice(char.encode_utf8(&mut [0; 4]).as_bytes());
    Some(())
}

fn valid(decoded: Vec<u8>) -> Option<Vec<u8>> {
    let text = String::from_utf8(decoded).ok()?;
    (!text.contains('\0')).then(|| text.into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(token: &str, expected: Option<&str>) {
        let decoded = decode_string_literal(token.as_bytes(), true);
        assert_eq!(decoded.as_deref(), expected.map(str::as_bytes), "{token}");
    }

    #[test]
    fn constants_mean_what_postgresql_reads() {
        check("''", Some(""));
        check("'it''s'", Some("it's"));
        check("'a\\b'", Some("a\\b"));
        check("'a'\n  -- more\n 'b'", Some("ab"));
        check("'a''b''''c'", Some("a'b''c"));
        check(
            r"E'a\n\'\\\t\x41\101\u00e9\U0001F600'",
            Some("a\n'\\\tAA\u{e9}\u{1F600}"),
        );
        check(r"e'\ud83d\ude00'", Some("\u{1F600}"));
        check(r"U&'d\0061t\+000061'", Some("data"));
        check(r"U&'\\ \d83d\de00'", Some("\\ \u{1F600}"));
        check("U&'d!0061ta' UESCAPE '!'", Some("data"));
        check("$$it's$$", Some("it's"));
        check("$a$x$$y$a$", Some("x$$y"));
    }

    #[test]
    fn what_is_no_valid_string_constant_is_none() {
        for token in [
            "'a",
            "'a' 'b'",
            "1",
            "B'1'",
            "X'1'",
            "N'a'",
            r"E'\0'",
            r"E'\xff'",
            r"E'\u12'",
            r"E'\ud83d'",
            "U&'\\00'",
            "$a$x$$",
            "",
        ] {
            check(token, None);
        }
    }

    #[test]
    fn backslashes_escape_when_strings_do_not_conform_to_the_standard() {
        let decode = |token: &'static str| decode_string_literal(token.as_bytes(), false);
        assert_eq!(decode(r"'a\'b'").as_deref(), Some(&b"a'b"[..]));
        assert_eq!(decode(r"U&'a'"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_token_breaks_the_reader(token in r#"([eEuU]&?)?['$][a-fnux0-9+'\\$ \n-]{0,30}( UESCAPE '!')?"#) {
            let _read = decode_string_literal(token.as_bytes(), true);
            let _read = decode_string_literal(token.as_bytes(), false);
        }
    }
}
