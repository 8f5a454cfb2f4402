//! Elements of one-dimensional array parameters, from PostgreSQL's text and binary forms.

use super::{key::KeyError, numeric::trim_blanks};
use crate::wire::types::Oid;
use std::borrow::Cow;

/// The elements of an array literal such as `{1,"two",NULL}`; `None`: NULL.
/// Several dimensions and explicit bounds are `Ambiguous`: valid, but not read here.
pub(super) fn parse_text(text: &[u8]) -> Result<Vec<Option<Cow<'_, [u8]>>>, KeyError> {
    let text = trim_blanks(text);
    let body = match text {
        [b'{', body @ .., b'}'] => body,
        [b'[', ..] => return Err(KeyError::Ambiguous),
        _ => return Err(KeyError::Malformed),
    };
    let mut elements = Vec::new();
    if trim_blanks(body).is_empty() {
        return Ok(elements);
    }
    let mut rest = body;
    loop {
        let (element, after) = element(trim_start(rest))?;
        elements.push(element);
        rest = match trim_start(after) {
            [] => return Ok(elements),
            [b',', after @ ..] => after,
            _ => return Err(KeyError::Malformed),
        };
    }
}

/// The element type and the elements of a binary array; `None`: NULL.
pub(super) fn parse_binary(value: &[u8]) -> Result<(Oid, Vec<Option<&[u8]>>), KeyError> {
    let mut rest = value;
    let dimensions = take_int(&mut rest)?;
    let _has_nulls = take_int(&mut rest)?;
    let element_type = take_int(&mut rest)?.cast_unsigned();
    let count = match dimensions {
        0 => 0,
        1 => {
            let count = take_int(&mut rest)?;
            let _lower_bound = take_int(&mut rest)?;
            usize::try_from(count).or(Err(KeyError::Malformed))?
        }
        _ => return Err(KeyError::Ambiguous),
    };
    // An element takes four bytes at least: what cannot be there is not reserved.
    let mut elements = Vec::with_capacity(count.min(rest.len() / 4));
    for _ in 0..count {
        let element = match take_int(&mut rest)? {
            -1 => None,
            length => {
                let length = usize::try_from(length).or(Err(KeyError::Malformed))?;
                let (element, after) = rest.split_at_checked(length).ok_or(KeyError::Malformed)?;
                rest = after;
                Some(element)
            }
        };
        elements.push(element);
    }
    if rest.is_empty() {
        Ok((element_type, elements))
    } else {
        Err(KeyError::Malformed)
    }
}

fn take_int(rest: &mut &[u8]) -> Result<i32, KeyError> {
    let (head, after) = rest.split_first_chunk::<4>().ok_or(KeyError::Malformed)?;
    *rest = after;
    Ok(i32::from_be_bytes(*head))
}

fn trim_start(text: &[u8]) -> &[u8] {
    let start = text
        .iter()
        .position(|byte| !matches!(byte, b' ' | b'\t'..=b'\r'))
        .unwrap_or(text.len());
    &text[start..]
}

type Element<'a> = (Option<Cow<'a, [u8]>>, &'a [u8]);

fn element(text: &[u8]) -> Result<Element<'_>, KeyError> {
    match text {
        [b'"', rest @ ..] => quoted(rest),
        [b'{', ..] => Err(KeyError::Ambiguous),
        _ => unquoted(text),
    }
}

fn quoted(text: &[u8]) -> Result<Element<'_>, KeyError> {
    let mut value = Vec::new();
    let mut bytes = text.iter().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Ok((Some(Cow::Owned(value)), &text[at + 1..])),
            b'\\' => value.push(*bytes.next().ok_or(KeyError::Malformed)?.1),
            _ => value.push(*byte),
        }
    }
    Err(KeyError::Malformed)
}

fn unquoted(text: &[u8]) -> Result<Element<'_>, KeyError> {
    let end = text
        .iter()
        .position(|byte| *byte == b',')
        .unwrap_or(text.len());
    let (value, rest) = text.split_at(end);
    if value.contains(&b'\\') {
        return Err(KeyError::Ambiguous);
    }
    let value = trim_blanks(value);
    if value.is_empty() || value.iter().any(|byte| matches!(byte, b'"' | b'{' | b'}')) {
        return Err(KeyError::Malformed);
    }
    Ok((
        (!value.eq_ignore_ascii_case(b"null")).then_some(Cow::Borrowed(value)),
        rest,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn elements(text: &str) -> Vec<Option<String>> {
        let elements = parse_text(text.as_bytes()).unwrap();
        elements
            .into_iter()
            .map(|element| Some(String::from_utf8(element?.into_owned()).unwrap()))
            .collect()
    }

    #[test]
    fn array_literals_are_read_as_array_in_reads_them() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(elements("{}"), []);
        assert_eq!(elements(" { } "), []);
        assert_eq!(elements("{1, 2 ,NULL}"), [some("1"), some("2"), None]);
        assert_eq!(
            elements(r#"{"a,b","NULL","q\"\\"," x "}"#),
            [some("a,b"), some("NULL"), some("q\"\\"), some(" x ")]
        );
        assert_eq!(elements("{a b}"), [some("a b")]);
    }

    #[test]
    fn other_array_literals_are_refused() {
        for text in [
            "", "{", "1,2", "{1,}", "{,1}", "{\"a}", "{a\"b}", "{1}}", "{\"a\"b}",
        ] {
            assert_eq!(
                parse_text(text.as_bytes()),
                Err(KeyError::Malformed),
                "{text}"
            );
        }
        for text in ["{{1},{2}}", "[1:2]={1,2}"] {
            assert_eq!(
                parse_text(text.as_bytes()),
                Err(KeyError::Ambiguous),
                "{text}"
            );
        }
    }
}
