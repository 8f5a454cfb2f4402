//! Values that every row of a COPY is given in front of its own, as they stand in its format. Pure.
//!
//! What must stay true: the row behind them is not touched, so that it is read as without them, and one that is wrong is
//! as wrong: values at its end would make a row with one too few whole. No value is read as the marker of NULL or DEFAULT.

use super::copy::{Format, Options};

/// What stands in front.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filling {
    /// Of a header line.
    header: Vec<u8>,
    /// Of a row; in binary format behind the number of its values.
    row: Vec<u8>,
    /// How many values in binary format.
    counted: Option<i16>,
}

impl Filling {
    /// These columns' values; `None`: one of them cannot be written.
    #[must_use]
    pub fn new(options: &Options, values: &[(&str, Vec<u8>)]) -> Option<Self> {
        let binary = options.format == Format::Binary;
        let mut filling = Self {
            header: Vec::new(),
            row: Vec::new(),
            counted: None,
        };
        if binary {
            filling.counted = Some(i16::try_from(values.len()).ok()?);
            for (_, value) in values {
                let size = i32::try_from(value.len()).ok()?;
                filling.row.extend_from_slice(&size.to_be_bytes());
                filling.row.extend_from_slice(value);
            }
            return Some(filling);
        }
        for (column, value) in values {
            put(&mut filling.header, column.as_bytes(), options);
            let before = filling.row.len();
            put(&mut filling.row, value, options);
            // FORCE_NULL reads what is quoted as NULL too.
            let written = &filling.row[before..filling.row.len() - 1];
            let marks = |marker: &Vec<u8>| marker == written || marker == value;
            if marks(&options.null) || options.default.as_ref().is_some_and(marks) {
                return None;
            }
        }
        Some(filling)
    }

    /// Appends a header line.
    pub fn header(&self, line: &[u8], out: &mut Vec<u8>) {
        // A header and a trailer in binary format name no columns.
        out.extend_from_slice(&self.header);
        out.extend_from_slice(line);
    }

    /// Appends a row.
    pub fn row(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let rest = match (self.counted, bytes.split_first_chunk()) {
            (Some(counted), Some((own, rest))) => {
                let count = i16::from_be_bytes(*own).saturating_add(counted);
                out.extend_from_slice(&count.to_be_bytes());
                rest
            }
            _ => bytes,
        };
        out.extend_from_slice(&self.row);
        out.extend_from_slice(rest);
    }
}

/// One value and the delimiter behind it.
fn put(out: &mut Vec<u8>, value: &[u8], options: &Options) {
    if options.format == Format::Csv {
        out.push(options.quote);
        for byte in value {
            if *byte == options.quote || *byte == options.escape {
                out.push(options.escape);
            }
            out.push(*byte);
        }
        out.push(options.quote);
    } else {
        for byte in value {
            match byte {
                b'\n' => out.extend_from_slice(b"\\n"),
                b'\r' => out.extend_from_slice(b"\\r"),
                byte if *byte == b'\\' || *byte == options.delimiter => {
                    out.extend_from_slice(&[b'\\', *byte]);
                }
                byte => out.push(*byte),
            }
        }
    }
    out.push(options.delimiter);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(options: &Options, values: &[(&str, &[u8])], row: &[u8]) -> Option<Vec<u8>> {
        let values: Vec<_> = values
            .iter()
            .map(|(name, value)| (*name, value.to_vec()))
            .collect();
        let mut out = Vec::new();
        Filling::new(options, &values)?.row(row, &mut out);
        Some(out)
    }

    #[test]
    fn values_are_written_as_the_format_reads_them() {
        let text = Options::of(Format::Text);
        let row = filled(&text, &[("a", b"x\ty\\z\n"), ("b", b"2")], b"1\t2\n");
        assert_eq!(row.unwrap(), b"x\\\ty\\\\z\\n\t2\t1\t2\n");
        let csv = Options {
            escape: b'\\',
            delimiter: b';',
            ..Options::of(Format::Csv)
        };
        let row = filled(&csv, &[("a", b"x\"y\\z;")], b"\"1\n\";2\r\n");
        assert_eq!(row.unwrap(), b"\"x\\\"y\\\\z;\";\"1\n\";2\r\n");
        let row = filled(
            &Options::of(Format::Binary),
            &[("a", b"ab")],
            &[0, 1, 0, 0, 0, 1, 7],
        );
        assert_eq!(row.unwrap(), [0, 2, 0, 0, 0, 2, b'a', b'b', 0, 0, 0, 1, 7]);
    }

    #[test]
    fn a_value_that_would_be_read_as_a_marker_is_not_written() {
        for format in [Format::Text, Format::Csv] {
            let mut options = Options::of(format);
            options.null = b"today".to_vec();
            assert_eq!(filled(&options, &[("a", b"today")], b"1\n"), None);
            options.null = b"N".to_vec();
            options.default = Some(b"today".to_vec());
            assert_eq!(filled(&options, &[("a", b"today")], b"1\n"), None);
            assert!(filled(&options, &[("a", b"tomorrow")], b"1\n").is_some());
        }
    }

    #[test]
    fn a_header_names_the_columns() {
        let filling = Filling::new(&Options::of(Format::Csv), &[("Made \"at\"", b"1".to_vec())]);
        let mut out = Vec::new();
        filling.unwrap().header(b"id,n\n", &mut out);
        assert_eq!(out, b"\"Made \"\"at\"\"\",id,n\n");
    }
}
