//! Sort keys as bytes that compare as PostgreSQL orders the values. Pure.
//!
//! Values are read in their binary formats. Only types are known whose order is one function of the value, the same on
//! every server: text is among them where its collation compares bytes, which whoever names it [`Kind::Bytes`] has made
//! sure of.

use super::Malformed;
use crate::wire::types::{self, Oid};

/// How a key orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub kind: Kind,
    pub direction: Direction,
    pub nulls: Nulls,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Ascending,
    Descending,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nulls {
    First,
    Last,
}

/// What a value's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Big endian, two's complement, of so many bytes: integers, dates, times.
    Signed(usize),
    /// Compared byte by byte, of so many bytes.
    Unsigned(usize),
    Float4,
    Float8,
    Numeric,
    /// Of any length, compared byte by byte.
    Bytes,
}

/// How the text of a key is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    Bytewise,
    /// By a collation that is not known here.
    Collated,
}

impl Kind {
    /// The order of a type; `None`: it is not known here.
    #[must_use]
    pub fn of(oid: Oid, text: Text) -> Option<Self> {
        Some(match oid {
            types::BOOL => Self::Unsigned(1),
            types::OID => Self::Unsigned(4),
            types::UUID => Self::Unsigned(16),
            types::INT2 => Self::Signed(2),
            types::INT4 | types::DATE => Self::Signed(4),
            types::INT8 | types::TIMESTAMP | types::TIMESTAMPTZ | types::TIME => Self::Signed(8),
            types::FLOAT4 => Self::Float4,
            types::FLOAT8 => Self::Float8,
            types::NUMERIC => Self::Numeric,
            types::BYTEA => Self::Bytes,
            types::TEXT | types::VARCHAR | types::NAME if text == Text::Bytewise => Self::Bytes,
            _ => return None,
        })
    }

    /// Appends a value so that it compares as bytes, and ends where no longer one goes on.
    fn put(self, value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
        match self {
            Self::Signed(size) if value.len() == size && size > 0 => {
                out.push(value[0] ^ 0x80);
                out.extend_from_slice(&value[1..]);
            }
            Self::Unsigned(size) if value.len() == size => out.extend_from_slice(value),
            Self::Float4 => {
                let bits = value.try_into().map_err(|_size| Malformed)?;
                put_float(f64::from(f32::from_be_bytes(bits)), out);
            }
            Self::Float8 => {
                let bits = value.try_into().map_err(|_size| Malformed)?;
                put_float(f64::from_be_bytes(bits), out);
            }
            Self::Numeric => put_numeric(value, out)?,
            Self::Bytes => {
                for byte in value {
                    out.push(*byte);
                    if *byte == 0 {
                        out.push(1);
                    }
                }
                out.extend_from_slice(&[0, 0]);
            }
            Self::Signed(_) | Self::Unsigned(_) => return Err(Malformed),
        }
        Ok(())
    }
}

impl Key {
    /// Appends a value of this key, NULL if there is none.
    ///
    /// # Errors
    /// It is no value of the key's type.
    pub fn put(&self, value: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let null = match self.nulls {
            Nulls::First => 0,
            Nulls::Last => 2,
        };
        let Some(value) = value else {
            out.push(null);
            return Ok(());
        };
        out.push(1);
        let start = out.len();
        self.kind.put(value, out)?;
        if self.direction == Direction::Descending {
            out[start..].iter_mut().for_each(|byte| *byte = !*byte);
        }
        Ok(())
    }
}

/// As `float8_cmp_internal` compares: NaN equals itself and is the greatest, and there is one zero.
fn put_float(value: f64, out: &mut Vec<u8>) {
    let bits = if value.is_nan() {
        u64::MAX
    } else {
        let bits = if value == 0.0 { 0 } else { value.to_bits() };
        let negative = bits >> 63 == 1;
        if negative { !bits } else { bits | 1 << 63 }
    };
    out.extend_from_slice(&bits.to_be_bytes());
}

/// `numeric_send`: count of digits, weight of the first, sign, scale, digits of base 10,000. The scale is only shown.
fn put_numeric(value: &[u8], out: &mut Vec<u8>) -> Result<(), Malformed> {
    const NEGATIVE: u16 = 0x4000;
    let mut words = value
        .chunks(2)
        .map(|pair| pair.try_into().map(u16::from_be_bytes));
    let mut next = || match words.next() {
        Some(Ok(word)) => Ok(word),
        Some(Err(_)) | None => Err(Malformed),
    };
    let (count, weight, sign, _scale) = (next()?, next()?.cast_signed(), next()?, next()?);
    let rank = match sign {
        0 => 3,
        NEGATIVE => 1,
        0xC000 => 5,
        0xD000 => 4,
        0xF000 => 0,
        _ => return Err(Malformed),
    };
    let digits = value
        .get(8..)
        .filter(|digits| digits.len() == usize::from(count) * 2);
    let mut digits = digits.ok_or(Malformed)?;
    let mut weight = i32::from(weight);
    while let Some(rest) = digits.strip_prefix(&[0, 0]) {
        (digits, weight) = (rest, weight - 1);
    }
    while let Some(rest) = digits.strip_suffix(&[0, 0]) {
        digits = rest;
    }
    let finite = sign == 0 || sign == NEGATIVE;
    if finite && digits.is_empty() {
        out.push(2);
        return Ok(());
    }
    out.push(rank);
    if !finite {
        return Ok(());
    }
    let start = out.len();
    out.extend_from_slice(&(weight.cast_unsigned() ^ 0x8000_0000).to_be_bytes());
    for digit in digits.chunks_exact(2) {
        // No digit is like the end.
        let digit = u16::from_be_bytes([digit[0], digit[1]]);
        if digit > 9999 {
            return Err(Malformed);
        }
        out.extend_from_slice(&(digit + 1).to_be_bytes());
    }
    out.extend_from_slice(&[0, 0]);
    if sign == NEGATIVE {
        out[start..].iter_mut().for_each(|byte| *byte = !*byte);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(key: Key, value: Option<&[u8]>) -> Vec<u8> {
        let mut out = Vec::new();
        key.put(value, &mut out).unwrap();
        out
    }

    /// These values, in their order, compare so as keys, forwards and backwards, NULLs first or last.
    fn ordered(kind: Kind, values: &[Vec<u8>]) {
        for (direction, nulls) in [
            (Direction::Ascending, Nulls::Last),
            (Direction::Ascending, Nulls::First),
            (Direction::Descending, Nulls::Last),
            (Direction::Descending, Nulls::First),
        ] {
            let key = Key {
                kind,
                direction,
                nulls,
            };
            let null = bytes(key, None);
            for (at, one) in values.iter().enumerate() {
                let first = bytes(key, Some(one));
                assert_eq!(null < first, nulls == Nulls::First, "{one:?}");
                for (behind, other) in values.iter().enumerate() {
                    let second = bytes(key, Some(other));
                    let expected = match direction {
                        Direction::Ascending => at.cmp(&behind),
                        Direction::Descending => behind.cmp(&at),
                    };
                    assert_eq!(first.cmp(&second), expected, "{one:?} and {other:?}");
                    // What follows the key does not change what it says.
                    let (mut first, mut second) = (first.clone(), second);
                    first.push(0xff);
                    second.push(0);
                    if expected.is_ne() {
                        assert_eq!(first.cmp(&second), expected);
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_and_times_compare_as_values() {
        let ints = [i64::MIN, -256, -1, 0, 1, 255, i64::MAX];
        ordered(Kind::Signed(8), &ints.map(|int| int.to_be_bytes().to_vec()));
        let ints = [i16::MIN, -1, 0, 1, i16::MAX];
        ordered(Kind::Signed(2), &ints.map(|int| int.to_be_bytes().to_vec()));
        let ints = [0_u32, 1, 1 << 31, u32::MAX];
        ordered(
            Kind::Unsigned(4),
            &ints.map(|int| int.to_be_bytes().to_vec()),
        );
    }

    #[test]
    fn floats_compare_as_postgresql_says_with_nan_the_greatest() {
        let floats = [
            f64::NEG_INFINITY,
            -1e300,
            -1.5,
            -f64::MIN_POSITIVE,
            0.0,
            5e-324,
            1.0,
            1.5,
            f64::INFINITY,
            f64::NAN,
        ];
        ordered(
            Kind::Float8,
            &floats.map(|float| float.to_be_bytes().to_vec()),
        );
        let floats = [f32::NEG_INFINITY, -1.0, 0.0, 1e-45, f32::MAX, f32::NAN];
        ordered(
            Kind::Float4,
            &floats.map(|float| float.to_be_bytes().to_vec()),
        );
        let key = Key {
            kind: Kind::Float8,
            direction: Direction::Ascending,
            nulls: Nulls::Last,
        };
        let same = |a: f64, b: f64| {
            assert_eq!(
                bytes(key, Some(&a.to_be_bytes())),
                bytes(key, Some(&b.to_be_bytes()))
            );
        };
        same(0.0, -0.0);
        same(f64::NAN, -f64::NAN);
    }

    /// A number as `numeric_send` writes it.
    fn numeric(weight: i16, sign: u16, digits: &[u16]) -> Vec<u8> {
        let count = u16::try_from(digits.len()).unwrap();
        let words = [count, weight.cast_unsigned(), sign, 2];
        let words = words.iter().chain(digits);
        words.flat_map(|word| word.to_be_bytes()).collect()
    }

    #[test]
    fn numerics_compare_by_value_and_not_by_scale() {
        ordered(
            Kind::Numeric,
            &[
                numeric(0, 0xF000, &[]),
                numeric(3, 0x4000, &[1]),
                numeric(0, 0x4000, &[12, 5000]),
                numeric(0, 0x4000, &[12]),
                numeric(-1, 0x4000, &[1]),
                numeric(0, 0, &[]),
                numeric(-2, 0, &[9999]),
                numeric(-1, 0, &[1]),
                numeric(0, 0, &[1]),
                numeric(0, 0, &[1, 1]),
                numeric(0, 0, &[9999, 9999]),
                numeric(1, 0, &[1]),
                numeric(1, 0, &[1, 0, 1]),
                numeric(1, 0, &[1, 1]),
                numeric(0, 0xD000, &[]),
                numeric(0, 0xC000, &[]),
            ],
        );
        let key = Key {
            kind: Kind::Numeric,
            direction: Direction::Ascending,
            nulls: Nulls::Last,
        };
        let plain = bytes(key, Some(&numeric(1, 0, &[1])));
        assert_eq!(bytes(key, Some(&numeric(2, 0, &[0, 1, 0, 0]))), plain);
    }

    #[test]
    fn bytes_of_any_length_compare_as_they_stand() {
        let values: [&[u8]; 8] = [b"", b"\0", b"\0\0", b"\0\x01", b"a", b"a\0", b"a\xff", b"b"];
        ordered(Kind::Bytes, &values.map(<[u8]>::to_vec));
    }

    #[test]
    fn a_value_of_another_type_is_no_key() {
        for (kind, value) in [
            (Kind::Signed(4), &b"abc"[..]),
            (Kind::Float8, b"abcd"),
            (Kind::Numeric, b"\0\x01\0\0\0\0\0\0"),
            (Kind::Numeric, b"\0\0\0\0\x12\x34\0\0"),
        ] {
            assert_eq!(kind.put(value, &mut Vec::new()), Err(Malformed), "{kind:?}");
        }
    }
}
