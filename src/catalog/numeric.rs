//! PostgreSQL's `numeric` in one canonical form: equal numbers are equal values, whatever their scale was.
//!
//! Digits are base 10000 as PostgreSQL stores them, without leading or trailing zero digits; zero has no digits
//! and is not negative. The order is PostgreSQL's: -Infinity, finite, Infinity, NaN.

use super::key::KeyError;
use smallvec::SmallVec;
use std::cmp::Ordering;

/// Digits after the decimal point that PostgreSQL can store.
const SCALE_LIMIT: i64 = 0x3FFF;
const WEIGHT_LIMIT: i64 = 0x7FFF;
/// Beyond this an exponent is refused before it is used.
const EXPONENT_LIMIT: i64 = (i32::MAX / 2) as i64;

/// A `numeric`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Numeric {
    NegativeInfinity,
    Finite(Decimal),
    Infinity,
    NaN,
}

/// A finite `numeric`: `digits[0] * 10000^weight + digits[1] * 10000^(weight - 1) + …`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Decimal {
    negative: bool,
    weight: i16,
    digits: SmallVec<[i16; 8]>,
}

impl Numeric {
    /// Reads a number as `numeric_in` does.
    ///
    /// # Errors
    /// `Malformed`, or `Ambiguous` for the spellings that only servers from version 16 on accept.
    pub fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let text = trim_blanks(text);
        for (name, value) in [
            ("nan", Self::NaN),
            ("infinity", Self::Infinity),
            ("+infinity", Self::Infinity),
            ("-infinity", Self::NegativeInfinity),
            ("inf", Self::Infinity),
            ("+inf", Self::Infinity),
            ("-inf", Self::NegativeInfinity),
        ] {
            if text.eq_ignore_ascii_case(name.as_bytes()) {
                return Ok(value);
            }
        }
        Decimal::parse(text).map(Self::Finite)
    }

    /// Reads the binary form as `numeric_recv` does.
    ///
    /// # Errors
    /// `Malformed`, or `Ambiguous` when digits lie beyond the display scale (PostgreSQL would cut them off).
    pub fn from_binary(value: &[u8]) -> Result<Self, KeyError> {
        let (header, body) = value.split_first_chunk::<8>().ok_or(KeyError::Malformed)?;
        let count = usize::from(u16::from_be_bytes([header[0], header[1]]));
        let weight = i16::from_be_bytes([header[2], header[3]]);
        let sign = u16::from_be_bytes([header[4], header[5]]);
        let scale = u16::from_be_bytes([header[6], header[7]]);
        if body.len() != count * 2 || i64::from(scale) > SCALE_LIMIT {
            return Err(KeyError::Malformed);
        }
        let mut digits = SmallVec::with_capacity(count);
        for pair in body.chunks_exact(2) {
            let digit = i16::from_be_bytes([pair[0], pair[1]]);
            if !(0..10_000).contains(&digit) {
                return Err(KeyError::Malformed);
            }
            digits.push(digit);
        }
        let negative = match sign {
            0x0000 => false,
            0x4000 => true,
            0xC000 => return Ok(Self::NaN),
            0xD000 => return Ok(Self::Infinity),
            0xF000 => return Ok(Self::NegativeInfinity),
            _ => return Err(KeyError::Malformed),
        };
        let number = Decimal::canonical(negative, i64::from(weight), digits)?;
        if number.scale() > i64::from(scale) {
            Err(KeyError::Ambiguous)
        } else {
            Ok(Self::Finite(number))
        }
    }

    /// The integer that equals this number, if there is one of 64 bits.
    #[must_use]
    pub fn to_integer(&self) -> Option<i64> {
        match self {
            Self::Finite(number) => number.to_integer(),
            Self::NegativeInfinity | Self::Infinity | Self::NaN => None,
        }
    }

    /// The integer that an assignment to an integer column stores: rounded half away from zero.
    #[must_use]
    pub fn round_to_integer(&self) -> Option<i64> {
        match self {
            Self::Finite(number) => number.round_to_integer(),
            Self::NegativeInfinity | Self::Infinity | Self::NaN => None,
        }
    }
}

impl From<i64> for Numeric {
    fn from(value: i64) -> Self {
        let mut rest = value.unsigned_abs();
        let mut digits: SmallVec<[i16; 8]> = SmallVec::new();
        while rest > 0 {
            digits.insert(0, i16::try_from(rest % 10_000).unwrap_or(0));
            rest /= 10_000;
        }
        while digits.last() == Some(&0) {
            digits.pop();
        }
        let weight = match value.unsigned_abs() {
            0 => 0,
            magnitude => i16::try_from(magnitude.ilog10() / 4).unwrap_or(0),
        };
        Self::Finite(Decimal {
            negative: value < 0,
            weight,
            digits,
        })
    }
}

impl Decimal {
    /// Whether the number is below zero.
    #[must_use]
    pub fn is_negative(&self) -> bool {
        self.negative
    }

    /// The power of 10000 of the first digit; 0 for zero.
    #[must_use]
    pub fn weight(&self) -> i16 {
        self.weight
    }

    /// Base 10000, neither the first nor the last is 0; none for zero.
    #[must_use]
    pub fn digits(&self) -> &[i16] {
        &self.digits
    }

    fn parse(text: &[u8]) -> Result<Self, KeyError> {
        let (negative, unsigned) = match text.split_first() {
            Some((b'-', rest)) => (true, rest),
            Some((b'+', rest)) => (false, rest),
            _ => (false, text),
        };
        let split = unsigned
            .iter()
            .position(|byte| matches!(byte, b'e' | b'E'))
            .unwrap_or(unsigned.len());
        let (mantissa, exponent) = unsigned.split_at(split);
        let point = mantissa
            .iter()
            .position(|byte| *byte == b'.')
            .unwrap_or(mantissa.len());
        let (whole, fraction) = (
            &mantissa[..point],
            mantissa.get(point + 1..).unwrap_or_default(),
        );
        let all_digits = whole.iter().chain(fraction).all(u8::is_ascii_digit);
        if !all_digits || whole.len() + fraction.len() == 0 {
            return Err(if is_newer_spelling(unsigned) {
                KeyError::Ambiguous
            } else {
                KeyError::Malformed
            });
        }
        let exponent = parse_exponent(exponent)?;
        let scale = i64::try_from(fraction.len())
            .unwrap_or(i64::MAX)
            .saturating_sub(exponent);
        if scale > SCALE_LIMIT {
            return Err(KeyError::Malformed);
        }
        let mut decimals: SmallVec<[u8; 32]> = whole
            .iter()
            .chain(fraction)
            .map(|byte| byte - b'0')
            .collect();
        while decimals.last() == Some(&0) {
            decimals.pop();
        }
        let zeros = decimals.iter().take_while(|digit| **digit == 0).count();
        decimals.drain(..zeros);
        // The first decimal digit is worth ten to this power.
        let length = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let top = length(whole.len()) - length(zeros) + exponent - 1;
        Self::canonical(negative, top.div_euclid(4), group_by_four(&decimals, top))
    }

    fn canonical(
        negative: bool,
        weight: i64,
        mut digits: SmallVec<[i16; 8]>,
    ) -> Result<Self, KeyError> {
        while digits.last() == Some(&0) {
            digits.pop();
        }
        let zeros = digits.iter().take_while(|digit| **digit == 0).count();
        if zeros > 0 {
            digits.drain(..zeros);
        }
        if digits.is_empty() {
            return Ok(Self {
                negative: false,
                weight: 0,
                digits,
            });
        }
        let weight = weight - i64::try_from(zeros).unwrap_or(i64::MAX);
        if weight > WEIGHT_LIMIT {
            return Err(KeyError::Malformed);
        }
        let weight = i16::try_from(weight).or(Err(KeyError::Malformed))?;
        Ok(Self {
            negative,
            weight,
            digits,
        })
    }

    /// Decimal digits after the point.
    fn scale(&self) -> i64 {
        let Some(last) = self.digits.last() else {
            return 0;
        };
        let trailing = [1000, 100, 10]
            .iter()
            .filter(|power| last % **power == 0)
            .count();
        let places = (self.digits.len() as i64 - 1 - i64::from(self.weight)) * 4;
        (places - trailing as i64).max(0)
    }

    fn to_integer(&self) -> Option<i64> {
        if self.digits.len() as i64 > i64::from(self.weight) + 1 {
            None
        } else {
            self.whole_part()
        }
    }

    fn round_to_integer(&self) -> Option<i64> {
        if self.weight < -1 {
            return Some(0);
        }
        let tenths = self
            .digits
            .get(usize::try_from(i32::from(self.weight) + 1).ok()?);
        let up = tenths.is_some_and(|digit| *digit >= 5000);
        let step = match (up, self.negative) {
            (false, _) => 0,
            (true, false) => 1,
            (true, true) => -1,
        };
        self.whole_part()?.checked_add(step)
    }

    /// The number without its fraction.
    fn whole_part(&self) -> Option<i64> {
        if self.weight > 4 {
            return None;
        }
        let magnitude = (0..=self.weight).fold(0_i128, |sum, at| {
            let digit = usize::try_from(at).ok().and_then(|at| self.digits.get(at));
            sum * 10_000 + i128::from(digit.copied().unwrap_or(0))
        });
        i64::try_from(if self.negative { -magnitude } else { magnitude }).ok()
    }

    fn cmp_magnitude(&self, other: &Self) -> Ordering {
        match (self.digits.is_empty(), other.digits.is_empty()) {
            (false, false) => self
                .weight
                .cmp(&other.weight)
                .then_with(|| self.digits.cmp(&other.digits)),
            (mine, theirs) => theirs.cmp(&mine),
        }
    }
}

impl Ord for Decimal {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.negative, other.negative) {
            (false, false) => self.cmp_magnitude(other),
            (true, true) => other.cmp_magnitude(self),
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
        }
    }
}

impl PartialOrd for Decimal {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Without the blanks that PostgreSQL's number input skips at both ends.
pub(super) fn trim_blanks(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| matches!(byte, b' ' | b'\t'..=b'\r');
    let start = text
        .iter()
        .position(|byte| !blank(byte))
        .unwrap_or(text.len());
    let end = text
        .iter()
        .rposition(|byte| !blank(byte))
        .map_or(start, |at| at + 1);
    &text[start..end]
}

/// Whether an unsigned number that is not plain may be one from version 16 on (`0x1F`, `1_000`).
pub(super) fn is_newer_spelling(unsigned: &[u8]) -> bool {
    unsigned.contains(&b'_')
        || matches!(
            unsigned,
            [b'0', b'x' | b'X' | b'o' | b'O' | b'b' | b'B', ..]
        )
}

fn parse_exponent(text: &[u8]) -> Result<i64, KeyError> {
    let Some((_, signed)) = text.split_first() else {
        return Ok(0);
    };
    let (negative, unsigned) = match signed.split_first() {
        Some((b'-', rest)) => (true, rest),
        Some((b'+', rest)) => (false, rest),
        _ => (false, signed),
    };
    if unsigned.is_empty() || !unsigned.iter().all(u8::is_ascii_digit) {
        return Err(if unsigned.contains(&b'_') {
            KeyError::Ambiguous
        } else {
            KeyError::Malformed
        });
    }
    let value = unsigned.iter().fold(0_i64, |sum, byte| {
        sum.saturating_mul(10)
            .saturating_add(i64::from(byte - b'0'))
            .min(EXPONENT_LIMIT)
    });
    if value >= EXPONENT_LIMIT {
        return Err(KeyError::Malformed);
    }
    Ok(if negative { -value } else { value })
}

/// Groups decimal digits, the first worth ten to `top`, into digits of base 10000.
fn group_by_four(decimals: &[u8], top: i64) -> SmallVec<[i16; 8]> {
    let mut groups = SmallVec::new();
    let mut places = top.rem_euclid(4);
    let mut group = 0_i16;
    for decimal in decimals {
        group = group * 10 + i16::from(*decimal);
        if places == 0 {
            groups.push(std::mem::take(&mut group));
            places = 4;
        }
        places -= 1;
    }
    // `places` now counts down from where the next digit would stand.
    let missing = (places + 1) % 4;
    if missing > 0 {
        for _ in 0..missing {
            group *= 10;
        }
        groups.push(group);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(text: &str) -> Numeric {
        Numeric::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn spellings_of_one_number_are_one_value() {
        for spellings in [
            &["1", "1.0", "+1.000", "01", "10e-1", "0.1E1", " 1 "][..],
            &["0", "-0", "0.000", "0e5", "-.0"],
            &["12345.678", "1.2345678e4", "12345678e-3"],
            &["10000", "1e4"],
            &["0.0001", "1e-4"],
            &["0.00012", "1.2e-4"],
            &["NaN", "nan"],
            &["Infinity", "+inf", "inf"],
        ] {
            for spelling in spellings {
                assert_eq!(number(spelling), number(spellings[0]), "{spelling}");
            }
        }
        for integer in [
            0,
            1,
            -1,
            9999,
            10_000,
            10_001,
            -123_456_789,
            i64::MAX,
            i64::MIN,
            100_000_000,
        ] {
            assert_eq!(number(&integer.to_string()), Numeric::from(integer));
            assert_eq!(Numeric::from(integer).to_integer(), Some(integer));
        }
    }

    #[test]
    fn numbers_are_ordered_as_postgresql_orders_them() {
        let ascending = [
            "-Infinity",
            "-1e20",
            "-10000",
            "-9999.5",
            "-1",
            "-0.00001",
            "0",
            "0.00001",
            "0.5",
            "1",
            "1.0001",
            "2",
            "9999",
            "10000",
            "1e20",
            "Infinity",
            "NaN",
        ];
        for pair in ascending.windows(2) {
            assert!(number(pair[0]) < number(pair[1]), "{pair:?}");
        }
    }

    #[test]
    fn what_postgresql_refuses_is_malformed() {
        for text in [
            "", " ", "abc", "1a", ".", "-", "1e", "1e+", "--1", "1.2.3", "1e131072", "1e-16384",
            "1 2",
        ] {
            assert_eq!(
                Numeric::parse(text.as_bytes()),
                Err(KeyError::Malformed),
                "{text}"
            );
        }
        for text in ["0x1F", "1_000", "-0b1"] {
            assert_eq!(
                Numeric::parse(text.as_bytes()),
                Err(KeyError::Ambiguous),
                "{text}"
            );
        }
        assert!(Numeric::parse(b"1e131071").is_ok() && Numeric::parse(b"1e-16383").is_ok());
    }

    #[test]
    fn assignment_to_an_integer_rounds_half_away_from_zero() {
        for (text, rounded) in [
            ("1.4", 1),
            ("1.5", 2),
            ("-1.5", -2),
            ("0.4999", 0),
            ("0.5", 1),
            ("0.00009", 0),
            ("12345.5", 12346),
        ] {
            assert_eq!(number(text).round_to_integer(), Some(rounded), "{text}");
        }
        assert_eq!(number("1.5").to_integer(), None);
        assert_eq!(number("9223372036854775808").to_integer(), None);
    }

    #[test]
    fn binary_forms_equal_their_text() {
        let binary = |words: &[u16]| {
            words
                .iter()
                .flat_map(|word| word.to_be_bytes())
                .collect::<Vec<u8>>()
        };
        assert_eq!(
            Numeric::from_binary(&binary(&[2, 0, 0, 1, 12, 5000])),
            Ok(number("12.5"))
        );
        assert_eq!(
            Numeric::from_binary(&binary(&[3, 0, 0x4000, 1, 0, 12, 0])),
            Err(KeyError::Ambiguous)
        );
        assert_eq!(
            Numeric::from_binary(&binary(&[3, 1, 0x4000, 0, 0, 12, 0])),
            Ok(number("-12"))
        );
        assert_eq!(
            Numeric::from_binary(&binary(&[0, 0, 0xC000, 0])),
            Ok(Numeric::NaN)
        );
        assert_eq!(
            Numeric::from_binary(&binary(&[1, 0, 0, 0, 10_000])),
            Err(KeyError::Malformed)
        );
        assert_eq!(
            Numeric::from_binary(&binary(&[2, 0, 0, 0, 1])),
            Err(KeyError::Malformed)
        );
    }
}
