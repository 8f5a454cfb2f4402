//! Hot path: reads a key value of one execution, from a literal of the text or a parameter.
//!
//! A value is read only where PostgreSQL would compare exactly what we hash: a rounding, a float, or a cast that
//! changes the value is an error here, and the statement is refused.

use super::{Values, unroutable::KeyProblem};
use crate::{
    catalog::key::{Key, KeyError, KeyType, Literal},
    sql::literal::decode_string_literal,
    wire::types::{self, Format, Oid},
};
use smallvec::SmallVec;
use std::borrow::Cow;

/// Where a key value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Value {
    /// A literal; `negative`: a minus stands before it. `cast`: the type that the text casts it to.
    Slot {
        slot: u32,
        sign: Sign,
        cast: Option<Oid>,
    },
    /// A parameter, from 0.
    Parameter {
        index: u16,
        cast: Option<Oid>,
    },
    Null,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    None,
    Minus,
}

/// How the session's texts are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    pub(super) standard_conforming_strings: bool,
    pub(super) utf8: bool,
}

/// Why a value is no key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Missing {
    Null,
    /// A number that the key's type cannot hold: equal to no key.
    OutOfRange,
    Problem(KeyProblem),
}

type Bytes = SmallVec<[u8; 64]>;

/// What a literal is.
enum Lexeme<'a> {
    Number(&'a [u8]),
    Text(Cow<'a, [u8]>),
}

/// What a value is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Compared with keys.
    Compare,
    /// Becomes the key of a row: rounded as an assignment rounds.
    Store,
}

/// The key that a value is.
pub(super) fn key(
    value: &Value,
    wanted: KeyType,
    values: &Values<'_>,
    reading: Reading,
    purpose: Purpose,
) -> Result<Key, Missing> {
    let key = read(value, wanted, values, reading, purpose)?;
    // A varchar(n) loses trailing blanks beyond its length without a word, and its length is not known here.
    if let (Key::Text(text), Purpose::Store) = (&key, purpose)
        && text.ends_with(b" ")
    {
        return Err(Missing::Problem(KeyProblem::Ambiguous));
    }
    Ok(key)
}

/// As [`key`], whatever may become of it when it is stored.
fn read(
    value: &Value,
    wanted: KeyType,
    values: &Values<'_>,
    reading: Reading,
    purpose: Purpose,
) -> Result<Key, Missing> {
    match value {
        Value::Null => Err(Missing::Null),
        Value::Slot { slot, sign, cast } => {
            let text = slot_text(*slot, values)?;
            match lexeme(text, reading)? {
                Lexeme::Number(digits) => number(digits, *sign, *cast, wanted, purpose),
                Lexeme::Text(_) if *sign == Sign::Minus => {
                    Err(Missing::Problem(KeyProblem::Ambiguous))
                }
                Lexeme::Text(text) => from_text(wanted, &text, reading),
            }
        }
        Value::Parameter { index, cast } => {
            let Some((format, value, declared)) = parameter(*index, *cast, values)? else {
                return Err(Missing::Null);
            };
            let textual = matches!(declared, types::TEXT | types::VARCHAR | types::UNKNOWN);
            if wanted == KeyType::Text && !reading.utf8 && !value.is_ascii() {
                return Err(Missing::Problem(KeyProblem::Ambiguous));
            }
            if textual && cast.is_some() && wanted != KeyType::Text {
                return from_text(wanted, value, reading);
            }
            wanted
                .from_parameter(declared, format, value)
                .map_err(problem)
        }
    }
}

/// The elements of an array value; NULL elements, and those of a NULL array, are none.
pub(super) fn elements(
    value: &Value,
    wanted: KeyType,
    values: &Values<'_>,
    reading: Reading,
) -> Result<Vec<Key>, Missing> {
    let (format, bytes, declared): (Format, Bytes, Oid) = match value {
        Value::Null => return Ok(Vec::new()),
        Value::Slot { slot, .. } => match lexeme(slot_text(*slot, values)?, reading)? {
            Lexeme::Text(text) => (Format::Text, Bytes::from_slice(&text), 0),
            Lexeme::Number(_) => return Err(Missing::Problem(KeyProblem::Type)),
        },
        Value::Parameter { index, cast } => match parameter(*index, *cast, values)? {
            Some((format, bytes, declared)) => (format, Bytes::from_slice(bytes), declared),
            None => return Ok(Vec::new()),
        },
    };
    if wanted == KeyType::Text && !reading.utf8 && !bytes.is_ascii() {
        return Err(Missing::Problem(KeyProblem::Ambiguous));
    }
    wanted
        .from_array_parameter(declared, format, &bytes)
        .map_err(problem)
}

/// Format, bytes and declared type; `None`: NULL, or not bound (PostgreSQL refuses the statement).
#[expect(
    clippy::type_complexity,
    reason = "read in two places, named nowhere else"
)]
fn parameter<'a>(
    index: u16,
    cast: Option<Oid>,
    values: &Values<'a>,
) -> Result<Option<(Format, &'a [u8], Oid)>, Missing> {
    let index = usize::from(index);
    let Some((format, Some(bytes))) = values.bind.and_then(|bind| bind.parameter(index)) else {
        return Ok(None);
    };
    let declared = match values.types.get(index).copied().unwrap_or(0) {
        0 => cast.unwrap_or(0),
        declared => declared,
    };
    Ok(Some((format, bytes, declared)))
}

fn slot_text<'a>(slot: u32, values: &Values<'a>) -> Result<&'a [u8], Missing> {
    let slot = values
        .slots
        .get(slot as usize)
        .ok_or(Missing::Problem(KeyProblem::Ambiguous))?;
    values
        .text
        .get(slot.start as usize..slot.end as usize)
        .ok_or(Missing::Problem(KeyProblem::Ambiguous))
}

/// The key that a number is, compared or stored; numbers in another base or with underscores are not read, since
/// servers before 16 take them for something else.
fn number(
    digits: &[u8],
    sign: Sign,
    cast: Option<Oid>,
    wanted: KeyType,
    purpose: Purpose,
) -> Result<Key, Missing> {
    let whole = digits.iter().all(u8::is_ascii_digit);
    let decimal = digits
        .iter()
        .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'));
    let to_integer = matches!(cast, Some(types::INT2 | types::INT4 | types::INT8));
    if !decimal || (to_integer && wanted == KeyType::Numeric && !whole) {
        return Err(Missing::Problem(KeyProblem::Ambiguous));
    }
    let mut signed = Bytes::new();
    if sign == Sign::Minus {
        signed.push(b'-');
    }
    signed.extend_from_slice(digits);
    let literal = if whole {
        Literal::Integer(&signed)
    } else {
        Literal::Decimal(&signed)
    };
    match purpose {
        Purpose::Compare if !to_integer => wanted
            .from_literal(&literal)
            .map_err(problem)?
            .ok_or(Missing::OutOfRange),
        Purpose::Compare | Purpose::Store => {
            wanted.from_assigned_literal(&literal).map_err(problem)
        }
    }
}

fn from_text(wanted: KeyType, text: &[u8], reading: Reading) -> Result<Key, Missing> {
    if wanted == KeyType::Text && !reading.utf8 && !text.is_ascii() {
        return Err(Missing::Problem(KeyProblem::Ambiguous));
    }
    wanted.from_text(text).map_err(problem)
}

fn problem(error: KeyError) -> Missing {
    Missing::Problem(match error {
        KeyError::Malformed => KeyProblem::Malformed,
        KeyError::Ambiguous => KeyProblem::Ambiguous,
        KeyError::Type(_) => KeyProblem::Type,
    })
}

/// What PostgreSQL's scanner makes of a literal.
fn lexeme(text: &[u8], reading: Reading) -> Result<Lexeme<'_>, Missing> {
    match text {
        [b'0'..=b'9' | b'.', ..] => Ok(Lexeme::Number(text)),
        _ => decode_string_literal(text, reading.standard_conforming_strings)
            .map(Lexeme::Text)
            .ok_or(Missing::Problem(KeyProblem::Ambiguous)),
    }
}
