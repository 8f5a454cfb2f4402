//! Values of a shard key: how text and binary forms become the one canonical value that hash, range and list use.
//!
//! Everything here answers as the PostgreSQL server would, or refuses: a key read wrongly is a row on the wrong shard.
//! Values are in UTF-8; who has another client encoding transcodes first.

use super::{array, datetime, numeric, numeric::Numeric};
use crate::wire::types::{
    self, BPCHAR_ARRAY, BYTEA, BYTEA_ARRAY, DATE, DATE_ARRAY, Format, INT2, INT2_ARRAY, INT4,
    INT4_ARRAY, INT8, INT8_ARRAY, NUMERIC, NUMERIC_ARRAY, Oid, TEXT, TEXT_ARRAY, TIMESTAMPTZ,
    TIMESTAMPTZ_ARRAY, UNKNOWN, UUID, UUID_ARRAY, VARCHAR, VARCHAR_ARRAY,
};
use std::borrow::Cow;

/// The type of a group's shard key. Narrower types widen to these: int2 and int4 to bigint, varchar and bpchar to text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum KeyType {
    Bigint,
    Text,
    Uuid,
    Date,
    Timestamptz,
    Numeric,
    Bytea,
}

/// A value of a shard key, canonical: equal keys are equal values, ordered as PostgreSQL orders them
/// (text by the bytes of its UTF-8 form, which is collation "C").
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    Bigint(i64),
    Text(Box<[u8]>),
    Uuid([u8; 16]),
    /// Days since 2000-01-01; the extremes are PostgreSQL's infinities.
    Date(i32),
    /// Microseconds since 2000-01-01 UTC; the extremes are PostgreSQL's infinities.
    Timestamptz(i64),
    Numeric(Numeric),
    Bytea(Box<[u8]>),
}

/// A constant in SQL text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Literal<'a> {
    /// Digits only, perhaps after a sign that the reader folded into it.
    Integer(&'a [u8]),
    /// With a point or an exponent.
    Decimal(&'a [u8]),
    /// A string constant of no given type, decoded (see `sql::literal`).
    String(Cow<'a, [u8]>),
}

/// Why a value cannot be used as a shard key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyError {
    /// The bytes are no value of that type: PostgreSQL would refuse them too (22P02, 22007, 22008 or 22003).
    Malformed,
    /// PostgreSQL may accept it, but what it means depends on a session setting that we do not model
    /// (a date in a non-ISO style, a timestamp without an offset, text in an encoding other than UTF-8),
    /// or on the server's version.
    Ambiguous,
    /// The declared type never addresses this key (a float against an integer key).
    Type(Oid),
}

impl KeyType {
    /// Reads a value as PostgreSQL's input function of the type would.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_text(self, text: &[u8]) -> Result<Key, KeyError> {
        match self {
            Self::Bigint => parse_integer(text).map(Key::Bigint),
            Self::Text => check_text(text).map(|text| Key::Text(text.into())),
            Self::Uuid => parse_uuid(text).map(Key::Uuid),
            Self::Date => datetime::parse_date(text).map(Key::Date),
            Self::Timestamptz => datetime::parse_instant(text).map(Key::Timestamptz),
            Self::Numeric => Numeric::parse(text).map(Key::Numeric),
            Self::Bytea => parse_bytea(text).map(|bytes| Key::Bytea(bytes.into())),
        }
    }

    /// Reads a Bind parameter. `declared` is the OID given in Parse, zero when it was left to the server to infer.
    /// A `numeric` against a bigint key must be integral, else it is `Type`: it equals no key, but stored it would.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_parameter(
        self,
        declared: Oid,
        format: Format,
        value: &[u8],
    ) -> Result<Key, KeyError> {
        if self == Self::Bigint && declared == NUMERIC {
            let number = match format {
                Format::Text => Numeric::parse(value)?,
                Format::Binary => Numeric::from_binary(value)?,
            };
            return number
                .to_integer()
                .map(Key::Bigint)
                .ok_or(KeyError::Type(declared));
        }
        if !self.takes(declared) {
            return Err(KeyError::Type(declared));
        }
        match (self, format) {
            (Self::Numeric, Format::Text)
                if declared == INT2 || declared == INT4 || declared == INT8 =>
            {
                parse_integer(value).map(|integer| Key::Numeric(integer.into()))
            }
            (Self::Numeric, Format::Binary)
                if declared == INT2 || declared == INT4 || declared == INT8 =>
            {
                integer_from_binary(declared, value).map(|integer| Key::Numeric(integer.into()))
            }
            (_, Format::Text) => self.from_text(value),
            (_, Format::Binary) => self.read_binary(declared, value),
        }
    }

    /// Reads an array parameter (`= ANY($1)`), each element; NULL elements are left out (they match nothing).
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn from_array_parameter(
        self,
        declared: Oid,
        format: Format,
        value: &[u8],
    ) -> Result<Vec<Key>, KeyError> {
        let declared_element = match declared {
            0 | UNKNOWN => 0,
            array => element_of(array).ok_or(KeyError::Type(array))?,
        };
        match format {
            Format::Text => array::parse_text(value)?
                .iter()
                .flatten()
                .map(|element| self.from_parameter(declared_element, format, element))
                .collect(),
            Format::Binary => {
                let (element_type, elements) = array::parse_binary(value)?;
                if declared_element != 0 && declared_element != element_type {
                    return Err(KeyError::Malformed);
                }
                let elements = elements.into_iter().flatten();
                elements
                    .map(|element| self.from_parameter(element_type, format, element))
                    .collect()
            }
        }
    }

    /// The key that a column of this type equals when it is compared to the constant; `None`: no value equals it.
    ///
    /// # Errors
    /// See [`KeyError`]; `Type` where PostgreSQL has no such comparison.
    pub fn from_literal(self, literal: &Literal<'_>) -> Result<Option<Key>, KeyError> {
        match (self, literal) {
            (_, Literal::String(text)) => self.from_text(text).map(Some),
            (Self::Bigint, Literal::Integer(text) | Literal::Decimal(text)) => {
                Ok(Numeric::parse(text)?.to_integer().map(Key::Bigint))
            }
            (Self::Numeric, Literal::Integer(text) | Literal::Decimal(text)) => {
                Numeric::parse(text).map(|number| Some(Key::Numeric(number)))
            }
            (_, Literal::Integer(_)) => Err(KeyError::Type(INT4)),
            (_, Literal::Decimal(_)) => Err(KeyError::Type(NUMERIC)),
        }
    }

    /// The key that a column of this type holds after the constant was assigned to it (INSERT, UPDATE):
    /// a fraction is rounded to an integer, an integer becomes text.
    ///
    /// # Errors
    /// See [`KeyError`]; `Type` where PostgreSQL has no such assignment.
    pub fn from_assigned_literal(self, literal: &Literal<'_>) -> Result<Key, KeyError> {
        match (self, literal) {
            (Self::Bigint, Literal::Integer(text) | Literal::Decimal(text)) => {
                Numeric::parse(text)?
                    .round_to_integer()
                    .map(Key::Bigint)
                    .ok_or(KeyError::Malformed)
            }
            (Self::Text, Literal::Integer(text)) => match Numeric::parse(text)?.to_integer() {
                Some(integer) => Ok(Key::Text(integer.to_string().into_bytes().into())),
                None => Err(KeyError::Ambiguous),
            },
            (Self::Text, Literal::Decimal(_)) => Err(KeyError::Ambiguous),
            _ => self.from_literal(literal)?.ok_or(KeyError::Malformed),
        }
    }

    /// The type of a name as [`KeyType::name`] gives it.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        const ALL: [KeyType; 7] = [
            KeyType::Bigint,
            KeyType::Text,
            KeyType::Uuid,
            KeyType::Date,
            KeyType::Timestamptz,
            KeyType::Numeric,
            KeyType::Bytea,
        ];
        ALL.into_iter().find(|key_type| key_type.name() == name)
    }

    /// The type's name in the configuration and in SQL.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Bigint => "bigint",
            Self::Text => "text",
            Self::Uuid => "uuid",
            Self::Date => "date",
            Self::Timestamptz => "timestamptz",
            Self::Numeric => "numeric",
            Self::Bytea => "bytea",
        }
    }

    /// Whether a parameter declared so compares to this key and is stored in it without changing its value.
    fn takes(self, declared: Oid) -> bool {
        let family: &[Oid] = match self {
            Self::Bigint => &[INT8, INT4, INT2],
            Self::Text => &[TEXT, VARCHAR],
            Self::Uuid => &[UUID],
            Self::Date => &[DATE],
            Self::Timestamptz => &[TIMESTAMPTZ],
            Self::Numeric => &[NUMERIC, INT8, INT4, INT2],
            Self::Bytea => &[BYTEA],
        };
        declared == 0 || declared == UNKNOWN || family.contains(&declared)
    }

    fn read_binary(self, declared: Oid, value: &[u8]) -> Result<Key, KeyError> {
        let array = |length: usize| {
            if value.len() == length {
                Ok(value)
            } else {
                Err(KeyError::Malformed)
            }
        };
        match self {
            Self::Bigint => integer_from_binary(declared, value).map(Key::Bigint),
            Self::Text => check_text(value).map(|text| Key::Text(text.into())),
            Self::Uuid => value.try_into().map(Key::Uuid).or(Err(KeyError::Malformed)),
            Self::Date => datetime::check_day(i32::from_be_bytes(fixed(array(4)?)?)).map(Key::Date),
            Self::Timestamptz => {
                datetime::check_instant(i64::from_be_bytes(fixed(array(8)?)?)).map(Key::Timestamptz)
            }
            Self::Numeric => Numeric::from_binary(value).map(Key::Numeric),
            Self::Bytea => Ok(Key::Bytea(value.into())),
        }
    }
}

impl Key {
    /// The type of which this is a value.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        match self {
            Self::Bigint(_) => KeyType::Bigint,
            Self::Text(_) => KeyType::Text,
            Self::Uuid(_) => KeyType::Uuid,
            Self::Date(_) => KeyType::Date,
            Self::Timestamptz(_) => KeyType::Timestamptz,
            Self::Numeric(_) => KeyType::Numeric,
            Self::Bytea(_) => KeyType::Bytea,
        }
    }
}

fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], KeyError> {
    value.try_into().or(Err(KeyError::Malformed))
}

fn element_of(array: Oid) -> Option<Oid> {
    Some(match array {
        INT2_ARRAY => INT2,
        INT4_ARRAY => INT4,
        INT8_ARRAY => INT8,
        TEXT_ARRAY => TEXT,
        VARCHAR_ARRAY => VARCHAR,
        BPCHAR_ARRAY => types::BPCHAR,
        DATE_ARRAY => DATE,
        TIMESTAMPTZ_ARRAY => TIMESTAMPTZ,
        NUMERIC_ARRAY => NUMERIC,
        UUID_ARRAY => UUID,
        BYTEA_ARRAY => BYTEA,
        _ => return None,
    })
}

fn parse_integer(text: &[u8]) -> Result<i64, KeyError> {
    let text = numeric::trim_blanks(text);
    let (negative, unsigned) = match text.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, text),
    };
    if unsigned.is_empty() || !unsigned.iter().all(u8::is_ascii_digit) {
        let newer = numeric::is_newer_spelling(unsigned);
        return Err(if newer {
            KeyError::Ambiguous
        } else {
            KeyError::Malformed
        });
    }
    // Downwards, because the least integer has no positive counterpart.
    let value = unsigned.iter().try_fold(0_i64, |sum, byte| {
        sum.checked_mul(10)?.checked_sub(i64::from(byte - b'0'))
    });
    let value = if negative {
        value
    } else {
        value.and_then(i64::checked_neg)
    };
    value.ok_or(KeyError::Malformed)
}

fn integer_from_binary(declared: Oid, value: &[u8]) -> Result<i64, KeyError> {
    let expected = match declared {
        INT2 => 2,
        INT4 => 4,
        INT8 => 8,
        // Inferred: the column's own width, which is one of these.
        _ => value.len(),
    };
    if value.len() != expected {
        return Err(KeyError::Malformed);
    }
    match value.len() {
        2 => Ok(i64::from(i16::from_be_bytes(fixed(value)?))),
        4 => Ok(i64::from(i32::from_be_bytes(fixed(value)?))),
        8 => Ok(i64::from_be_bytes(fixed(value)?)),
        _ => Err(KeyError::Malformed),
    }
}

fn check_text(text: &[u8]) -> Result<&[u8], KeyError> {
    if text.contains(&0) {
        return Err(KeyError::Malformed);
    }
    if std::str::from_utf8(text).is_ok() {
        Ok(text)
    } else {
        Err(KeyError::Ambiguous)
    }
}

/// As `uuid_in`: hyphens may follow every fourth digit, braces may surround the whole.
fn parse_uuid(text: &[u8]) -> Result<[u8; 16], KeyError> {
    let mut rest = match text {
        [b'{', inner @ .., b'}'] => inner,
        _ => text,
    };
    let mut uuid = [0; 16];
    for (at, byte) in uuid.iter_mut().enumerate() {
        let [high, low, after @ ..] = rest else {
            return Err(KeyError::Malformed);
        };
        *byte = hex_pair(*high, *low).ok_or(KeyError::Malformed)?;
        rest = match after {
            [b'-', after @ ..] if at % 2 == 1 && at < 15 => after,
            _ => after,
        };
    }
    if rest.is_empty() {
        Ok(uuid)
    } else {
        Err(KeyError::Malformed)
    }
}

fn parse_bytea(text: &[u8]) -> Result<Vec<u8>, KeyError> {
    if let [b'\\', b'x', hex @ ..] = text {
        return parse_hex(hex);
    }
    if std::str::from_utf8(text).is_err() {
        return Err(KeyError::Ambiguous);
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    loop {
        rest = match rest {
            [] => return Ok(bytes),
            [b'\\', b'\\', after @ ..] => {
                bytes.push(b'\\');
                after
            }
            [
                b'\\',
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ] => {
                bytes.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
                after
            }
            [b'\\' | 0, ..] => return Err(KeyError::Malformed),
            [byte, after @ ..] => {
                bytes.push(*byte);
                after
            }
        };
    }
}

fn parse_hex(hex: &[u8]) -> Result<Vec<u8>, KeyError> {
    let mut bytes = Vec::with_capacity(hex.len() / 2);
    let mut rest = hex;
    loop {
        rest = match rest {
            [] => return Ok(bytes),
            [b' ' | b'\n' | b'\t' | b'\r', after @ ..] => after,
            [high, low, after @ ..] => {
                bytes.push(hex_pair(*high, *low).ok_or(KeyError::Malformed)?);
                after
            }
            [_] => return Err(KeyError::Malformed),
        };
    }
}

fn hex_pair(high: u8, low: u8) -> Option<u8> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|digit| u8::try_from(digit).ok())
    };
    Some(digit(high)? * 16 + digit(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(key_type: KeyType, text: &str, expected: Result<Key, KeyError>) {
        assert_eq!(
            key_type.from_text(text.as_bytes()),
            expected,
            "{} {text:?}",
            key_type.name()
        );
    }

    #[test]
    fn integers_are_read_as_int8in_reads_them() {
        for (text, value) in [
            ("0", 0),
            (" -12\n", -12),
            ("+007", 7),
            ("9223372036854775807", i64::MAX),
            ("-9223372036854775808", i64::MIN),
        ] {
            check(KeyType::Bigint, text, Ok(Key::Bigint(value)));
        }
        for text in [
            "",
            " ",
            "1.0",
            "abc",
            "9223372036854775808",
            "-",
            "1 2",
            "- 1",
            "1e3",
        ] {
            check(KeyType::Bigint, text, Err(KeyError::Malformed));
        }
        for text in ["0x10", "1_000", "-0b1", "0o7"] {
            check(KeyType::Bigint, text, Err(KeyError::Ambiguous));
        }
    }

    #[test]
    fn every_spelling_of_a_uuid_is_the_same_key() {
        let key = Key::Uuid(*b"\xa0\xee\xbc\x99\x9c\x0b\x4e\xf8\xbb\x6d\x6b\xb9\xbd\x38\x0a\x11");
        for text in [
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
            "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11",
            "{a0eebc99-9c0b4ef8-bb6d6bb9-bd380a11}",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0ee-bc99-9c0b-4ef8-bb6d-6bb9-bd38-0a11",
        ] {
            check(KeyType::Uuid, text, Ok(key.clone()));
        }
        for text in [
            "",
            "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
            " a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "{a0eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0-eebc999c0b4ef8bb6d6bb9bd380a11",
            "a0eebc999c0b4ef8bb6d6bb9bd380a11-",
            "g0eebc999c0b4ef8bb6d6bb9bd380a11",
        ] {
            check(KeyType::Uuid, text, Err(KeyError::Malformed));
        }
    }

    #[test]
    fn bytea_is_read_in_hex_and_escape_form() {
        let bytes = |bytes: &[u8]| Ok(Key::Bytea(bytes.into()));
        check(KeyType::Bytea, "\\xDEad 00", bytes(b"\xde\xad\x00"));
        check(KeyType::Bytea, "\\x", bytes(b""));
        check(KeyType::Bytea, "a\\\\b\\001\\377", bytes(b"a\\b\x01\xff"));
        for text in ["\\xabc", "\\xzz", "\\", "\\400", "\\a"] {
            check(KeyType::Bytea, text, Err(KeyError::Malformed));
        }
    }

    #[test]
    fn parameters_are_read_by_their_declared_type() {
        let bigint = KeyType::Bigint;
        for (declared, bytes) in [
            (INT8, &7_i64.to_be_bytes()[..]),
            (INT4, &7_i32.to_be_bytes()),
            (INT2, &7_i16.to_be_bytes()),
        ] {
            assert_eq!(
                bigint.from_parameter(declared, Format::Binary, bytes),
                Ok(Key::Bigint(7))
            );
            assert_eq!(
                bigint.from_parameter(0, Format::Binary, bytes),
                Ok(Key::Bigint(7))
            );
            let wider = KeyType::Numeric.from_parameter(declared, Format::Binary, bytes);
            assert_eq!(wider, Ok(Key::Numeric(7.into())));
        }
        assert_eq!(
            bigint.from_parameter(INT4, Format::Binary, &[0; 8]),
            Err(KeyError::Malformed)
        );
        assert_eq!(
            bigint.from_parameter(types::FLOAT8, Format::Text, b"1"),
            Err(KeyError::Type(types::FLOAT8))
        );
        assert_eq!(
            bigint.from_parameter(TEXT, Format::Text, b"1"),
            Err(KeyError::Type(TEXT))
        );
        assert_eq!(
            bigint.from_parameter(NUMERIC, Format::Text, b"7.0"),
            Ok(Key::Bigint(7))
        );
        assert_eq!(
            bigint.from_parameter(NUMERIC, Format::Text, b"7.5"),
            Err(KeyError::Type(NUMERIC))
        );
        assert_eq!(
            KeyType::Date.from_parameter(types::TIMESTAMP, Format::Text, b"2026-01-01"),
            Err(KeyError::Type(types::TIMESTAMP))
        );
        assert_eq!(
            KeyType::Date.from_parameter(DATE, Format::Binary, &9497_i32.to_be_bytes()),
            Ok(Key::Date(9497))
        );
        assert_eq!(
            KeyType::Text.from_parameter(VARCHAR, Format::Binary, b"\xff"),
            Err(KeyError::Ambiguous)
        );
    }

    #[test]
    fn array_parameters_leave_nulls_out() {
        let keys = [Key::Bigint(1), Key::Bigint(2)];
        let text = KeyType::Bigint.from_array_parameter(INT8_ARRAY, Format::Text, b"{1,NULL,2}");
        assert_eq!(text.as_deref(), Ok(&keys[..]));
        let mut binary = Vec::new();
        for word in [1, 1, i32::try_from(INT4).unwrap(), 3, 1, 4, 1, -1, 4, 2] {
            binary.extend_from_slice(&word.to_be_bytes());
        }
        for declared in [0, INT4_ARRAY] {
            let keys_read = KeyType::Bigint.from_array_parameter(declared, Format::Binary, &binary);
            assert_eq!(keys_read.as_deref(), Ok(&keys[..]));
        }
        let wrong = KeyType::Bigint.from_array_parameter(INT8_ARRAY, Format::Binary, &binary);
        assert_eq!(wrong, Err(KeyError::Malformed));
        assert_eq!(
            KeyType::Bigint.from_array_parameter(INT8, Format::Text, b"{1}"),
            Err(KeyError::Type(INT8))
        );
        binary.pop();
        let cut = KeyType::Bigint.from_array_parameter(0, Format::Binary, &binary);
        assert_eq!(cut, Err(KeyError::Malformed));
    }

    #[test]
    fn constants_compare_as_postgresql_compares_them() {
        let bigint = |literal| KeyType::Bigint.from_literal(&literal);
        assert_eq!(bigint(Literal::Integer(b"12")), Ok(Some(Key::Bigint(12))));
        assert_eq!(
            bigint(Literal::Integer(b"-9223372036854775808")),
            Ok(Some(Key::Bigint(i64::MIN)))
        );
        assert_eq!(bigint(Literal::Integer(b"9223372036854775808")), Ok(None));
        assert_eq!(bigint(Literal::Decimal(b"1e2")), Ok(Some(Key::Bigint(100))));
        assert_eq!(bigint(Literal::Decimal(b"1.5")), Ok(None));
        assert_eq!(
            bigint(Literal::String(b" 5".into())),
            Ok(Some(Key::Bigint(5)))
        );
        assert_eq!(
            bigint(Literal::String(b"5.0".into())),
            Err(KeyError::Malformed)
        );
        assert_eq!(bigint(Literal::Integer(b"0x10")), Err(KeyError::Ambiguous));
        assert_eq!(
            KeyType::Text.from_literal(&Literal::Integer(b"1")),
            Err(KeyError::Type(INT4))
        );
        let date = KeyType::Date.from_literal(&Literal::String(b"2000-01-02".into()));
        assert_eq!(date, Ok(Some(Key::Date(1))));
    }

    #[test]
    fn assigned_constants_become_what_is_stored() {
        let assigned = |key_type: KeyType, literal| key_type.from_assigned_literal(&literal);
        assert_eq!(
            assigned(KeyType::Bigint, Literal::Decimal(b"1.5")),
            Ok(Key::Bigint(2))
        );
        assert_eq!(
            assigned(KeyType::Text, Literal::Integer(b"007")),
            Ok(Key::Text(b"7"[..].into()))
        );
        assert_eq!(
            assigned(KeyType::Uuid, Literal::Integer(b"1")),
            Err(KeyError::Type(INT4))
        );
        assert_eq!(
            assigned(KeyType::Bigint, Literal::Integer(b"9223372036854775808")),
            Err(KeyError::Malformed)
        );
    }

    const TYPES: [KeyType; 7] = [
        KeyType::Bigint,
        KeyType::Text,
        KeyType::Uuid,
        KeyType::Date,
        KeyType::Timestamptz,
        KeyType::Numeric,
        KeyType::Bytea,
    ];

    proptest::proptest! {
        #[test]
        fn no_bytes_of_strangers_break_the_reader(
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..80),
            text in r#"[-+0-9eE._:TZ {}",\\xnaifINFA]{0,24}"#,
        ) {
            for key_type in TYPES {
                for declared in [0, INT2, INT8, NUMERIC, TEXT] {
                    for value in [&bytes[..], text.as_bytes()] {
                        for format in [Format::Text, Format::Binary] {
                            let _read = key_type.from_parameter(declared, format, value);
                            let _read = key_type.from_array_parameter(0, format, value);
                        }
                    }
                }
                let _read = key_type.from_literal(&Literal::Integer(text.as_bytes()));
                let _read = key_type.from_assigned_literal(&Literal::Decimal(text.as_bytes()));
            }
        }
    }
}
