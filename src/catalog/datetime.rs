//! Dates and instants from their ISO forms, the only ones that mean the same under every DateStyle and TimeZone.
//!
//! What PostgreSQL reads differently under other settings, or by the clock (`today`), is `Ambiguous`.

use super::{key::KeyError, numeric::trim_blanks};

const MICROS_PER_SECOND: i64 = 1_000_000;
const SECONDS_PER_DAY: i64 = 86_400;
/// PostgreSQL's first and last day, from 2000-01-01 (`IS_VALID_DATE`).
const DAYS: std::ops::Range<i32> = -2_451_545..2_145_031_949;
/// PostgreSQL's first and last instant, in microseconds from 2000-01-01 UTC (`IS_VALID_TIMESTAMP`).
const INSTANTS: std::ops::Range<i64> = -211_813_488_000_000_000..9_223_371_331_200_000_000;

/// `YYYY-MM-DD`, `infinity` or `-infinity`, as days since 2000-01-01.
pub(super) fn parse_date(text: &[u8]) -> Result<i32, KeyError> {
    let text = trim_blanks(text);
    match text {
        _ if text.eq_ignore_ascii_case(b"infinity") => Ok(i32::MAX),
        _ if text.eq_ignore_ascii_case(b"-infinity") => Ok(i32::MIN),
        _ => iso_day(text),
    }
}

/// `YYYY-MM-DD HH:MM[:SS[.ffffff]]` with `Z` or an offset, or an infinity, as microseconds since 2000-01-01 UTC.
pub(super) fn parse_instant(text: &[u8]) -> Result<i64, KeyError> {
    let text = trim_blanks(text);
    if text.eq_ignore_ascii_case(b"infinity") {
        return Ok(i64::MAX);
    }
    if text.eq_ignore_ascii_case(b"-infinity") {
        return Ok(i64::MIN);
    }
    let (day, rest) = text.split_at_checked(10).ok_or(KeyError::Ambiguous)?;
    let day = iso_day(day)?;
    let (b' ' | b'T', rest) = rest.split_first().ok_or(KeyError::Ambiguous)? else {
        return Err(KeyError::Ambiguous);
    };
    let zone_at = rest
        .iter()
        .position(|byte| matches!(byte, b'Z' | b'z' | b'+' | b'-'))
        .ok_or(KeyError::Ambiguous)?;
    let (time, zone) = rest.split_at(zone_at);
    let micros = time_of_day(trim_blanks(time))?;
    let local = i64::from(day) * SECONDS_PER_DAY * MICROS_PER_SECOND + micros;
    check_instant(local - zone_offset(zone)? * MICROS_PER_SECOND)
}

/// What [`parse_date`] reads again.
pub(super) fn date_text(day: i32) -> String {
    match day {
        i32::MAX => "infinity".to_owned(),
        i32::MIN => "-infinity".to_owned(),
        _ => day_text(i64::from(day)),
    }
}

/// What [`parse_instant`] reads again.
pub(super) fn instant_text(instant: i64) -> String {
    match instant {
        i64::MAX => return "infinity".to_owned(),
        i64::MIN => return "-infinity".to_owned(),
        _ => {}
    }
    let seconds = instant.div_euclid(MICROS_PER_SECOND);
    let micros = instant.rem_euclid(MICROS_PER_SECOND);
    let day = day_text(seconds.div_euclid(SECONDS_PER_DAY));
    let second = seconds.rem_euclid(SECONDS_PER_DAY);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{day} {hour:02}:{minute:02}:{second:02}.{micros:06}+00")
}

/// A day of the proleptic Gregorian calendar, from days since 2000-01-01.
fn day_text(day: i64) -> String {
    // Counted from 0000-03-01, so that a leap day is the last of its year, in eras of 400 years.
    let day = day + 730_425;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let of_month = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{of_month:02}")
}

/// A day in PostgreSQL's range, or one of the infinities.
pub(super) fn check_day(day: i32) -> Result<i32, KeyError> {
    if DAYS.contains(&day) || day == i32::MIN || day == i32::MAX {
        Ok(day)
    } else {
        Err(KeyError::Malformed)
    }
}

/// An instant in PostgreSQL's range, or one of the infinities.
pub(super) fn check_instant(instant: i64) -> Result<i64, KeyError> {
    let infinite = instant == i64::MIN || instant == i64::MAX;
    if INSTANTS.contains(&instant) || infinite {
        Ok(instant)
    } else {
        Err(KeyError::Malformed)
    }
}

fn iso_day(text: &[u8]) -> Result<i32, KeyError> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else {
        return Err(KeyError::Ambiguous);
    };
    let year = number(&[*y1, *y2, *y3, *y4])?;
    let month = number(&[*m1, *m2])?;
    let day = number(&[*d1, *d2])?;
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let length = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return Err(KeyError::Malformed),
    };
    if year == 0 || day == 0 || day > length {
        return Err(KeyError::Malformed);
    }
    // Days of the proleptic Gregorian calendar, counting years from March so that the leap day is a year's last.
    let (march_year, march_month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let days = march_year * 365 + march_year / 4 - march_year / 100 + march_year / 400;
    // 2000-01-01 is day 730,425 of that count.
    Ok(days + (march_month * 153 + 2) / 5 + day - 1 - 730_425)
}

fn time_of_day(text: &[u8]) -> Result<i64, KeyError> {
    let (clock, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, &[][..]),
    };
    let (hour, minute, second) = match clock {
        [h1, h2, b':', m1, m2] if fraction.is_empty() && clock.len() == text.len() => {
            ([*h1, *h2], [*m1, *m2], *b"00")
        }
        [h1, h2, b':', m1, m2, b':', s1, s2] => ([*h1, *h2], [*m1, *m2], [*s1, *s2]),
        _ => return Err(KeyError::Ambiguous),
    };
    let (hour, minute, second) = (number(&hour)?, number(&minute)?, number(&second)?);
    // PostgreSQL takes 24:00:00 and a 60th second too; rounding of further places is left to it.
    if hour > 23 || minute > 59 || second > 59 || fraction.len() > 6 {
        return Err(KeyError::Ambiguous);
    }
    let mut micros = i64::from(if fraction.is_empty() {
        0
    } else {
        number(fraction)?
    });
    for _ in fraction.len()..6 {
        micros *= 10;
    }
    Ok(i64::from(hour * 3600 + minute * 60 + second) * MICROS_PER_SECOND + micros)
}

/// Seconds east of UTC.
fn zone_offset(text: &[u8]) -> Result<i64, KeyError> {
    let (sign, rest) = match text {
        [b'Z' | b'z'] => return Ok(0),
        [b'+', rest @ ..] => (1, rest),
        [b'-', rest @ ..] => (-1, rest),
        _ => return Err(KeyError::Ambiguous),
    };
    let (hours, minutes, seconds) = match rest {
        [h1, h2] => ([*h1, *h2], *b"00", *b"00"),
        [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => ([*h1, *h2], [*m1, *m2], *b"00"),
        [h1, h2, b':', m1, m2, b':', s1, s2] => ([*h1, *h2], [*m1, *m2], [*s1, *s2]),
        _ => return Err(KeyError::Ambiguous),
    };
    let (hours, minutes, seconds) = (number(&hours)?, number(&minutes)?, number(&seconds)?);
    if hours > 15 || minutes > 59 || seconds > 59 {
        return Err(KeyError::Malformed);
    }
    Ok(sign * i64::from(hours * 3600 + minutes * 60 + seconds))
}

/// At most six digits.
fn number(digits: &[u8]) -> Result<i32, KeyError> {
    digits.iter().try_fold(0, |sum, byte| match byte {
        b'0'..=b'9' => Ok(sum * 10 + i32::from(byte - b'0')),
        _ => Err(KeyError::Ambiguous),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_count_from_the_year_2000() {
        for (text, day) in [
            ("2000-01-01", 0),
            ("2000-02-29", 59),
            ("2000-03-01", 60),
            ("1999-12-31", -1),
            ("1970-01-01", -10_957),
            ("0001-01-01", -730_119),
            ("9999-12-31", 2_921_939),
            (" 2026-01-01 ", 9497),
            ("infinity", i32::MAX),
            ("-Infinity", i32::MIN),
        ] {
            assert_eq!(parse_date(text.as_bytes()), Ok(day), "{text}");
        }
    }

    #[test]
    fn only_iso_dates_are_read() {
        for text in [
            "01/02/2026",
            "2026-1-2",
            "today",
            "20260101",
            "2026-01-01 BC",
            "Jan 1 2026",
            "",
        ] {
            assert_eq!(
                parse_date(text.as_bytes()),
                Err(KeyError::Ambiguous),
                "{text}"
            );
        }
        for text in [
            "2026-02-30",
            "2026-13-01",
            "2025-02-29",
            "0000-01-01",
            "2026-01-00",
        ] {
            assert_eq!(
                parse_date(text.as_bytes()),
                Err(KeyError::Malformed),
                "{text}"
            );
        }
    }

    #[test]
    fn instants_need_an_offset() {
        for (text, micros) in [
            ("2000-01-01 00:00:00Z", 0),
            ("2000-01-01T00:00:00.000001+00", 1),
            ("2000-01-01 02:00+02:00", 0),
            ("1999-12-31 23:30:00-0030", 0),
            ("2000-01-01 00:00:01.5 +00:00", 1_500_000),
            ("1999-12-31 23:59:59.999999Z", -1),
        ] {
            assert_eq!(parse_instant(text.as_bytes()), Ok(micros), "{text}");
        }
        for text in [
            "2000-01-01",
            "2000-01-01 00:00:00",
            "2000-01-01 00:00 UTC",
            "now",
            "2000-01-01 24:00:00Z",
        ] {
            assert_eq!(
                parse_instant(text.as_bytes()),
                Err(KeyError::Ambiguous),
                "{text}"
            );
        }
    }
}
