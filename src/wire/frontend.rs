//! Views over the messages that a client sends. Names and values are bytes: nothing is decoded as UTF-8.

use super::{
    frame::{Body, DecodeError},
    types::{Format, Oid},
};

/// `P`: statement name, text, declared parameter types.
#[derive(Clone, Copy, Debug)]
pub struct Parse<'a> {
    pub name: &'a [u8],
    pub text: &'a [u8],
    types: &'a [u8],
}

impl<'a> Parse<'a> {
    /// Reads the body of a Parse message.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut body = Body::new(body);
        let (name, text) = (body.cstr()?, body.cstr()?);
        let count = usize::from(body.u16()?);
        let types = body.bytes(count * 4)?;
        body.end()?;
        Ok(Self { name, text, types })
    }

    /// The declared parameter types, zero where the server is to infer.
    pub fn types(&self) -> impl Iterator<Item = Oid> + 'a {
        self.types
            .chunks_exact(4)
            .map(|oid| Oid::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]))
    }

    /// The count and types as they stand in the message.
    #[must_use]
    pub fn raw_types(&self) -> &'a [u8] {
        self.types
    }
}

/// `B`: portal, statement, parameters, result formats.
#[derive(Clone, Copy, Debug)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    formats: &'a [u8],
    count: usize,
    values: &'a [u8],
    /// Everything after the statement's name: what is forwarded unchanged when the name is replaced.
    pub tail: &'a [u8],
}

impl<'a> Bind<'a> {
    /// Reads and checks the body of a Bind message.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut body = Body::new(body);
        let (portal, statement) = (body.cstr()?, body.cstr()?);
        let tail = body.rest();
        let count = usize::from(body.u16()?);
        let formats = body.bytes(count * 2)?;
        let count = usize::from(body.u16()?);
        let start = body.rest();
        for _ in 0..count {
            body.value()?;
        }
        let values = &start[..start.len() - body.rest().len()];
        let results = usize::from(body.u16()?);
        body.bytes(results * 2)?;
        body.end()?;
        Ok(Self {
            portal,
            statement,
            formats,
            count,
            values,
            tail,
        })
    }

    /// The same parameters for a statement whose result is asked for as text.
    #[must_use]
    pub fn tail_for_text(&self) -> Vec<u8> {
        let mut tail = self.tail[..2 + self.formats.len() + 2 + self.values.len()].to_vec();
        tail.extend_from_slice(&[0, 0]);
        tail
    }

    /// All parameters in order, as [`Bind::parameter`] gives them.
    pub fn parameters(&self) -> impl Iterator<Item = (Format, Option<&'a [u8]>)> {
        let mut body = Body::new(self.values);
        let formats = self.formats;
        (0..self.count).map_while(move |index| {
            let at = if formats.len() == 2 { 0 } else { index * 2 };
            let format = match formats.get(at..at + 2) {
                Some([0, 1]) => Format::Binary,
                _ => Format::Text,
            };
            body.value().ok().map(|value| (format, value))
        })
    }

    /// The formats that the result is asked for in, as they stand in the message: their count, then each.
    #[must_use]
    pub fn raw_results(&self) -> &'a [u8] {
        let before = 2 + self.formats.len() + 2 + self.values.len();
        self.tail.get(before..).unwrap_or_default()
    }

    /// The names at the start of a body that has not arrived whole; `None` when they have not either. It knows nothing of
    /// the parameters, which are in what has arrived of `tail` and in what follows.
    #[must_use]
    pub fn head(start: &'a [u8]) -> Option<Self> {
        let mut body = Body::new(start);
        let (portal, statement) = (body.cstr().ok()?, body.cstr().ok()?);
        Some(Self {
            portal,
            statement,
            formats: &[],
            count: 0,
            values: &[],
            tail: body.rest(),
        })
    }

    /// How many parameters there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are no parameters.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The parameter at `index` (0 is `$1`): its format and its value, `None` inside for NULL.
    #[must_use]
    pub fn parameter(&self, index: usize) -> Option<(Format, Option<&'a [u8]>)> {
        let mut body = Body::new(self.values);
        for _ in 0..index {
            body.value().ok()?;
        }
        if index >= self.count {
            return None;
        }
        let at = if self.formats.len() == 2 {
            0
        } else {
            index * 2
        };
        let format = match self.formats.get(at..at + 2) {
            Some([0, 1]) => Format::Binary,
            _ => Format::Text,
        };
        body.value().ok().map(|value| (format, value))
    }
}

/// What a Describe or Close names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

impl<'a> Named<'a> {
    /// Reads the body of a Describe (`D`) or Close (`C`) message.
    ///
    /// # Errors
    /// When it is not one.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut body = Body::new(body);
        let kind = body.byte()?;
        let name = body.cstr()?;
        body.end()?;
        match kind {
            b'S' => Ok(Self::Statement(name)),
            b'P' => Ok(Self::Portal(name)),
            _ => Err(DecodeError),
        }
    }
}

/// The text of a simple Query (`Q`).
///
/// # Errors
/// When the body is not one string.
pub fn query(body: &[u8]) -> Result<&[u8], DecodeError> {
    let mut body = Body::new(body);
    let text = body.cstr()?;
    body.end()?;
    Ok(text)
}

/// Appends a simple Query.
pub fn put_query(out: &mut Vec<u8>, text: &[u8]) {
    put(out, b'Q', |out| {
        out.extend_from_slice(text);
        out.push(0);
    });
}

/// Appends a Parse; `raw_types` as in [`Parse::raw_types`].
pub fn put_parse(out: &mut Vec<u8>, name: &[u8], text: &[u8], raw_types: &[u8]) {
    put(out, b'P', |out| {
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(text);
        out.push(0);
        let count = u16::try_from(raw_types.len() / 4).unwrap_or(u16::MAX);
        out.extend_from_slice(&count.to_be_bytes());
        out.extend_from_slice(raw_types);
    });
}

/// Appends a Bind with another statement's name and the same tail.
pub fn put_bind(out: &mut Vec<u8>, portal: &[u8], statement: &[u8], tail: &[u8]) {
    put_bind_head(out, portal, statement, tail, 0);
}

/// As [`put_bind`], where the last `missing` bytes of the tail follow later.
pub fn put_bind_head(
    out: &mut Vec<u8>,
    portal: &[u8],
    statement: &[u8],
    tail: &[u8],
    missing: usize,
) {
    let start = out.len();
    put(out, b'B', |out| {
        out.extend_from_slice(portal);
        out.push(0);
        out.extend_from_slice(statement);
        out.push(0);
        out.extend_from_slice(tail);
    });
    if missing > 0 {
        let size = out.len() - start - 1 + missing;
        let size = u32::try_from(size).unwrap_or(u32::MAX);
        out[start + 1..start + 5].copy_from_slice(&size.to_be_bytes());
    }
}

/// Appends a Describe (`D`) or Close (`C`).
pub fn put_named(out: &mut Vec<u8>, tag: u8, named: Named<'_>) {
    put(out, tag, |out| {
        let (kind, name) = match named {
            Named::Statement(name) => (b'S', name),
            Named::Portal(name) => (b'P', name),
        };
        out.push(kind);
        out.extend_from_slice(name);
        out.push(0);
    });
}

/// Appends a message without a body: Sync, Flush, Terminate.
pub fn put_bare(out: &mut Vec<u8>, tag: u8) {
    put(out, tag, |_| {});
}

/// Appends a tag, a length that is filled in, and what `body` writes.
///
/// # Panics
/// When the body is longer than a length can say: such a message must never be begun.
#[expect(
    clippy::expect_used,
    reason = "a wrapped length would smuggle a message"
)]
pub fn put(out: &mut Vec<u8>, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
    out.push(tag);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    body(out);
    let length = i32::try_from(out.len() - at).expect("a message is below 2 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bind_is_read_as_it_was_written() {
        let tail = b"\0\x01\0\x01\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\0";
        let mut out = Vec::new();
        put_bind(&mut out, b"p", b"s1", tail);
        let bind = Bind::decode(&out[5..]).unwrap();
        assert_eq!(
            (bind.portal, bind.statement, bind.len()),
            (&b"p"[..], &b"s1"[..], 2)
        );
        assert_eq!(bind.parameter(0), Some((Format::Binary, Some(&b"a"[..]))));
        assert_eq!(bind.parameter(1), Some((Format::Binary, None)));
        assert_eq!(bind.parameter(2), None);
        assert_eq!(bind.tail, tail);
        let all: Vec<_> = bind.parameters().collect();
        assert_eq!(
            all,
            [(Format::Binary, Some(&b"a"[..])), (Format::Binary, None)]
        );
        assert_eq!(bind.raw_results(), b"\0\0");
    }

    #[test]
    fn counts_beyond_the_body_are_refused() {
        assert!(Bind::decode(b"\0\0\0\0\xff\xff\0\0").is_err());
        assert!(Parse::decode(b"\0select 1\0\0\x01").is_err());
        assert!(query(b"select 1\0x").is_err());
    }
}
