//! One value of a line of COPY, read as PostgreSQL's `CopyReadAttributesText` and `CopyReadAttributesCSV` do.

use super::copy::{Fault, Field, Forced, Options};

/// The value of a column of a line in text format.
pub(super) fn text<'a>(
    line: &[u8],
    column: usize,
    options: &Options,
    value: &'a mut Vec<u8>,
) -> Result<Field<'a>, Fault> {
    let mut start = 0;
    for _ in 0..column {
        let size = text_field(&line[start..], options.delimiter);
        if start + size >= line.len() {
            return Err(Fault::Short);
        }
        start += size + 1;
    }
    let raw = &line[start..start + text_field(&line[start..], options.delimiter)];
    // Compared as they stand, before escapes are read.
    if raw == options.null {
        return Ok(Field::Null);
    }
    if options.default.as_deref() == Some(raw) {
        return Ok(Field::Default);
    }
    value.clear();
    unescape(raw, value);
    Ok(Field::Value(value))
}

/// How long the first field is.
fn text_field(bytes: &[u8], delimiter: u8) -> usize {
    let mut at = 0;
    while let Some(found) = memchr::memchr2(delimiter, b'\\', &bytes[at..]) {
        at += found;
        if bytes[at] == delimiter {
            return at;
        }
        at = (at + 2).min(bytes.len());
    }
    bytes.len()
}

fn unescape(raw: &[u8], value: &mut Vec<u8>) {
    let mut at = 0;
    while at < raw.len() {
        let byte = raw[at];
        at += 1;
        if byte != b'\\' || at == raw.len() {
            value.push(byte);
            continue;
        }
        let escaped = raw[at];
        at += 1;
        value.push(match escaped {
            b'0'..=b'7' => {
                let (number, width) = digits(&raw[at - 1..], 8, 3);
                at += width - 1;
                number
            }
            b'x' => match digits(&raw[at..], 16, 2) {
                (_, 0) => b'x',
                (number, width) => {
                    at += width;
                    number
                }
            },
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'v' => 11,
            other => other,
        });
    }
}

/// A number of at most so many digits, modulo 256, and how many there are.
fn digits(bytes: &[u8], base: u32, most: usize) -> (u8, usize) {
    let (mut number, mut width) = (0_u32, 0);
    for byte in bytes.iter().take(most) {
        let Some(digit) = char::from(*byte).to_digit(base) else {
            break;
        };
        number = number * base + digit;
        width += 1;
    }
    (number.to_le_bytes()[0], width)
}

/// The value of a column of a line in CSV format.
pub(super) fn csv<'a>(
    line: &[u8],
    column: usize,
    options: &Options,
    value: &'a mut Vec<u8>,
) -> Result<Field<'a>, Fault> {
    let mut at = 0;
    for before in 0..=column {
        value.clear();
        let (start, quoted, end) = csv_field(line, at, options, value)?;
        if before < column {
            if end >= line.len() {
                return Err(Fault::Short);
            }
            at = end + 1;
            continue;
        }
        let raw = &line[start..end];
        let is_null = raw == options.null && !quoted;
        if is_null && options.force_not_null == Forced::No {
            return Ok(Field::Null);
        }
        if options.force_null == Forced::Yes && *value == options.null {
            return Ok(Field::Null);
        }
        if !quoted && options.default.as_deref() == Some(raw) {
            return Ok(Field::Default);
        }
    }
    Ok(Field::Value(value))
}

/// Where a field starts, whether a part of it was quoted, and where it ends; its value is appended.
fn csv_field(
    line: &[u8],
    start: usize,
    options: &Options,
    value: &mut Vec<u8>,
) -> Result<(usize, bool, usize), Fault> {
    let (mut at, mut quoted, mut in_quote) = (start, false, false);
    while let Some(&byte) = line.get(at) {
        let next = line.get(at + 1).copied();
        if !in_quote {
            if byte == options.delimiter {
                return Ok((start, quoted, at));
            }
            if byte == options.quote {
                (quoted, in_quote) = (true, true);
            } else {
                value.push(byte);
            }
        } else if byte == options.escape
            && let Some(escaped) =
                next.filter(|next| *next == options.escape || *next == options.quote)
        {
            value.push(escaped);
            at += 1;
        } else if byte == options.quote {
            in_quote = false;
        } else {
            value.push(byte);
        }
        at += 1;
    }
    if in_quote {
        return Err(Fault::OpenQuote);
    }
    Ok((start, quoted, at))
}
