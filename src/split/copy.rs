//! Data of COPY FROM STDIN, cut into rows, each with the value of one column. Pure.
//!
//! Rows pass on byte for byte: what a shard gets is a COPY stream of the same format that holds its rows only, so that
//! the shard itself reads and judges them. What must stay true: a row ends where PostgreSQL's own reader would end it
//! (`CopyReadLineText` of copyfromparse.c), which is why line ends that change within the data are a fault here as they
//! are there: a shard that sees a part of the rows could not notice.

use super::fields;

/// How the data is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    pub format: Format,
    pub delimiter: u8,
    /// What stands for NULL, as it stands in the data.
    pub null: Vec<u8>,
    /// What stands for the column's default (PostgreSQL 16 and newer).
    pub default: Option<Vec<u8>>,
    pub header: Header,
    pub quote: u8,
    pub escape: u8,
    /// Of the column that is asked for.
    pub force_null: Forced,
    pub force_not_null: Forced,
}

/// Whether the first line names columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Header {
    #[default]
    None,
    Line,
}

/// FORCE_NULL and FORCE_NOT_NULL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forced {
    #[default]
    No,
    Yes,
}

/// The formats of COPY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Text,
    Csv,
    Binary,
}

impl Options {
    /// What COPY does when nothing is said but the format.
    #[must_use]
    pub fn of(format: Format) -> Self {
        let csv = format == Format::Csv;
        Self {
            format,
            delimiter: if csv { b',' } else { b'\t' },
            null: if csv { Vec::new() } else { b"\\N".to_vec() },
            default: None,
            header: Header::None,
            quote: b'"',
            escape: b'"',
            force_null: Forced::No,
            force_not_null: Forced::No,
        }
    }
}

/// A part of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Piece<'a> {
    /// For every shard: a header, a trailer.
    Everyone(&'a [u8]),
    /// A row, with its end of line.
    Row { bytes: &'a [u8], key: Field<'a> },
}

/// The value of the column that decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field<'a> {
    Null,
    /// As PostgreSQL's input function gets it; in binary format as its receive function does.
    Value(&'a [u8]),
    /// The marker of DEFAULT.
    Default,
}

/// Why the data cannot be cut. All are `bad_copy_file_format` (22P04) but the last, which is 54000.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    #[error("lines end in different ways")]
    LineEnds,
    #[error("\"\\.\" is not alone on its line")]
    EndMarker,
    #[error("a row has no value for the shard key")]
    Short,
    #[error("a quoted value has no end")]
    OpenQuote,
    #[error("the binary data is malformed")]
    Binary,
    #[error("data follows the end of the data")]
    AfterEnd,
    #[error("a row is too long")]
    TooLong,
}

/// How lines end, as the first one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LineEnd {
    Newline,
    Return,
    Both,
}

/// What comes next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// The header line, or binary header.
    Header,
    Rows,
    /// The end marker has come: in text format what follows is not looked at.
    Nothing,
}

/// Cuts the stream.
#[derive(Debug)]
pub struct Splitter {
    options: Options,
    /// Which column, from 0.
    column: usize,
    /// Longest row, bytes.
    limit: usize,
    next: Next,
    line_end: Option<LineEnd>,
    /// What has come of rows that are not whole.
    held: Vec<u8>,
    scan: Scan,
    /// Room for a decoded value.
    value: Vec<u8>,
}

/// How far the row at the start of what is held has been looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Scan {
    at: usize,
    in_quote: bool,
    escaped: bool,
}

/// Where a line ends.
struct Line {
    /// Without the end of line, and with it.
    content: usize,
    whole: usize,
}

/// `PGCOPY\n\377\r\n\0`, flags and the length of the extension.
const BINARY_SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0";
const BINARY_HEADER: usize = BINARY_SIGNATURE.len() + 8;
/// More columns than a table can have.
const MOST_FIELDS: i16 = 1664;

impl Splitter {
    /// Takes rows by their `column`th value, counted from 0 in the column list; no row may be longer than `limit`.
    #[must_use]
    pub fn new(options: Options, column: usize, limit: usize) -> Self {
        let header = options.header == Header::Line || options.format == Format::Binary;
        Self {
            options,
            column,
            limit,
            next: if header { Next::Header } else { Next::Rows },
            line_end: None,
            held: Vec::new(),
            scan: Scan::default(),
            value: Vec::new(),
        }
    }

    /// Bytes held of a row that is not whole.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// Takes more of the stream and hands on what is whole.
    ///
    /// # Errors
    /// A [`Fault`] of the data, or what `each` says.
    pub fn feed<E: From<Fault>>(
        &mut self,
        bytes: &[u8],
        each: &mut (impl FnMut(Piece<'_>) -> Result<(), E> + ?Sized),
    ) -> Result<(), E> {
        let mut held = std::mem::take(&mut self.held);
        held.extend_from_slice(bytes);
        let taken = self.cut(&held, false, each)?;
        held.drain(..taken);
        if held.len() > self.limit {
            return Err(Fault::TooLong.into());
        }
        self.held = held;
        Ok(())
    }

    /// The stream is over: hands on a last row without an end of line.
    ///
    /// # Errors
    /// As [`Splitter::feed`].
    pub fn end<E: From<Fault>>(
        &mut self,
        each: &mut (impl FnMut(Piece<'_>) -> Result<(), E> + ?Sized),
    ) -> Result<(), E> {
        let held = std::mem::take(&mut self.held);
        self.cut(&held, true, each).map(drop)
    }

    /// How many bytes were handed on.
    fn cut<E: From<Fault>>(
        &mut self,
        bytes: &[u8],
        ends: bool,
        each: &mut (impl FnMut(Piece<'_>) -> Result<(), E> + ?Sized),
    ) -> Result<usize, E> {
        let mut taken = 0;
        while taken < bytes.len() {
            let rest = &bytes[taken..];
            let size = match (self.options.format, self.next) {
                (Format::Text | Format::Csv, Next::Nothing) => return Ok(bytes.len()),
                (Format::Binary, Next::Nothing) => return Err(Fault::AfterEnd.into()),
                (Format::Binary, _) => self.binary(rest, each)?,
                (Format::Text | Format::Csv, _) => self.line(rest, ends, each)?,
            };
            let Some(size) = size else {
                if ends && self.options.format == Format::Binary {
                    return Err(Fault::Binary.into());
                }
                return Ok(taken);
            };
            taken += size;
        }
        Ok(taken)
    }

    /// One line at the start of these bytes; its length with its end, `None` when it is not whole.
    fn line<E: From<Fault>>(
        &mut self,
        bytes: &[u8],
        ends: bool,
        each: &mut (impl FnMut(Piece<'_>) -> Result<(), E> + ?Sized),
    ) -> Result<Option<usize>, E> {
        let Some(line) = self.find_end(bytes, ends)? else {
            return Ok(None);
        };
        self.scan = Scan::default();
        let (content, whole) = (&bytes[..line.content], &bytes[..line.whole]);
        if content == b"\\." {
            if self.options.format == Format::Csv {
                // The end for PostgreSQL 17 and older, a value for newer ones.
                return Err(Fault::EndMarker.into());
            }
            self.next = Next::Nothing;
            return Ok(Some(line.whole));
        }
        if self.next == Next::Header {
            self.next = Next::Rows;
            each(Piece::Everyone(whole))?;
            return Ok(Some(line.whole));
        }
        let key = match self.options.format {
            Format::Csv => fields::csv(content, self.column, &self.options, &mut self.value)?,
            Format::Text | Format::Binary => {
                fields::text(content, self.column, &self.options, &mut self.value)?
            }
        };
        each(Piece::Row { bytes: whole, key })?;
        Ok(Some(line.whole))
    }

    fn find_end(&mut self, bytes: &[u8], ends: bool) -> Result<Option<Line>, Fault> {
        let found = match self.options.format {
            Format::Csv => self.csv_end(bytes),
            Format::Text | Format::Binary => self.text_end(bytes)?,
        };
        let Some(at) = found else {
            if !ends {
                return Ok(None);
            }
            if self.scan.in_quote {
                return Err(Fault::OpenQuote);
            }
            let size = bytes.len();
            return Ok(Some(Line {
                content: size,
                whole: size,
            }));
        };
        let second = bytes.get(at + 1);
        let (found, width) = match (bytes[at], self.line_end, second) {
            (b'\n', _, _) => (LineEnd::Newline, 1),
            (_, Some(LineEnd::Return), _) => (LineEnd::Return, 1),
            (_, _, Some(b'\n')) => (LineEnd::Both, 2),
            (_, _, None) if !ends => {
                // Whether a newline follows is not known yet.
                self.scan.at = at;
                return Ok(None);
            }
            (_, _, _) => (LineEnd::Return, 1),
        };
        if *self.line_end.get_or_insert(found) != found {
            return Err(Fault::LineEnds);
        }
        Ok(Some(Line {
            content: at,
            whole: at + width,
        }))
    }

    /// The next end of line that no backslash stands before.
    fn text_end(&mut self, bytes: &[u8]) -> Result<Option<usize>, Fault> {
        let mut at = self.scan.at;
        while let Some(found) = memchr::memchr3(b'\n', b'\r', b'\\', &bytes[at..]) {
            at += found;
            if bytes[at] != b'\\' {
                return Ok(Some(at));
            }
            match bytes.get(at + 1) {
                None => {
                    self.scan.at = at;
                    return Ok(None);
                }
                Some(b'.') => match bytes.get(at + 2) {
                    None => {
                        self.scan.at = at;
                        return Ok(None);
                    }
                    Some(b'\n' | b'\r') if at == 0 => at += 2,
                    Some(_) => return Err(Fault::EndMarker),
                },
                Some(_) => at += 2,
            }
        }
        self.scan.at = bytes.len();
        Ok(None)
    }

    /// The next end of line outside of quotes.
    fn csv_end(&mut self, bytes: &[u8]) -> Option<usize> {
        let (quote, escape) = (self.options.quote, self.options.escape);
        let Scan {
            mut at,
            mut in_quote,
            mut escaped,
        } = self.scan;
        let found = loop {
            let Some(&byte) = bytes.get(at) else {
                break None;
            };
            if escape != quote {
                if in_quote && byte == escape {
                    escaped = !escaped;
                }
                if byte == quote && !escaped {
                    in_quote = !in_quote;
                }
                if byte != escape {
                    escaped = false;
                }
            } else if byte == quote {
                in_quote = !in_quote;
            }
            if !in_quote && matches!(byte, b'\n' | b'\r') {
                break Some(at);
            }
            at += 1;
        };
        self.scan = Scan {
            at,
            in_quote,
            escaped,
        };
        found
    }

    /// One tuple, the header or the trailer; its length, `None` when it is not whole.
    fn binary<E: From<Fault>>(
        &mut self,
        bytes: &[u8],
        each: &mut (impl FnMut(Piece<'_>) -> Result<(), E> + ?Sized),
    ) -> Result<Option<usize>, E> {
        if self.next == Next::Header {
            let Some(size) = binary_header(bytes, self.limit)? else {
                return Ok(None);
            };
            self.next = Next::Rows;
            each(Piece::Everyone(&bytes[..size]))?;
            return Ok(Some(size));
        }
        let Some(count) = bytes.first_chunk().map(|two| i16::from_be_bytes(*two)) else {
            return Ok(None);
        };
        if count == -1 {
            self.next = Next::Nothing;
            each(Piece::Everyone(&bytes[..2]))?;
            return Ok(Some(2));
        }
        let columns @ 0..=MOST_FIELDS = count else {
            return Err(Fault::Binary.into());
        };
        let (mut at, mut key) = (2, None);
        for column in 0..usize::from(columns.unsigned_abs()) {
            let Some(size) = bytes.get(at..).and_then(<[u8]>::first_chunk) else {
                return Ok(None);
            };
            let size = i32::from_be_bytes(*size);
            at += 4;
            let field = match usize::try_from(size) {
                Err(_) if size == -1 => Field::Null,
                Err(_) => return Err(Fault::Binary.into()),
                Ok(size) if size > self.limit => return Err(Fault::TooLong.into()),
                Ok(size) => {
                    let Some(value) = bytes.get(at..at + size) else {
                        return Ok(None);
                    };
                    at += size;
                    Field::Value(value)
                }
            };
            if column == self.column {
                key = Some(field);
            }
        }
        let key = key.ok_or(Fault::Short)?;
        each(Piece::Row {
            bytes: &bytes[..at],
            key,
        })?;
        Ok(Some(at))
    }
}

fn binary_header(bytes: &[u8], limit: usize) -> Result<Option<usize>, Fault> {
    let known = bytes.len().min(BINARY_SIGNATURE.len());
    if bytes[..known] != BINARY_SIGNATURE[..known] {
        return Err(Fault::Binary);
    }
    let Some(length) = bytes
        .get(BINARY_HEADER - 4..)
        .and_then(<[u8]>::first_chunk)
        .map(|four| u32::from_be_bytes(*four))
    else {
        return Ok(None);
    };
    let size = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(BINARY_HEADER))
        .filter(|size| *size <= limit)
        .ok_or(Fault::Binary)?;
    Ok((bytes.len() >= size).then_some(size))
}

#[cfg(test)]
mod tests;
