//! Hot path: message frames. Reading a header costs a few instructions and never allocates; bodies are left alone.
//!
//! Every message after startup is a tag byte, a length (big endian, counting itself) and a body. The limits are
//! PostgreSQL's own (`SocketBackend` in `postgres.c`, `PQ_SMALL_MESSAGE_LIMIT`, `PQ_LARGE_MESSAGE_LIMIT` in `libpq.h`).

/// Bytes of a header: tag and length.
pub const HEADER: usize = 5;
/// Longest body-and-length of a small frontend message (`PQ_SMALL_MESSAGE_LIMIT`).
pub const SMALL: u32 = 10_000;
/// Longest body-and-length of a large frontend message (`PQ_LARGE_MESSAGE_LIMIT`).
pub const LARGE: u32 = 0x3fff_ffff - 1;
/// Longest authentication message of a client (`PG_MAX_AUTH_TOKEN_LENGTH`).
pub const AUTH: u32 = 65_535;
/// Longest startup packet (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP: u32 = 10_000;
/// Longest backend message that is not row, copy data, notice or description (libpq's `VALID_LONG_MESSAGE_TYPE`).
pub const BACKEND_SMALL: u32 = 30_000;

/// A frame's tag and full size, header included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub tag: u8,
    /// Bytes of the whole frame: header and body.
    pub size: usize,
}

/// What is wrong with a frame. The connection cannot go on: its framing is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("invalid message type {0}")]
    Tag(u8),
    #[error("invalid length {length} of message type {tag}")]
    Length { tag: u8, length: u32 },
}

/// The header of the next frontend message, when `bytes` holds five bytes of it.
///
/// # Errors
/// [`FrameError`] as PostgreSQL would end the connection with 08P01.
pub fn frontend(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    let Some((tag, length)) = split(bytes) else {
        return Ok(None);
    };
    let limit = match tag {
        b'Q' | b'P' | b'B' | b'F' | b'd' => LARGE,
        b'C' | b'D' | b'E' | b'H' | b'S' | b'X' | b'c' | b'f' => SMALL,
        _ => return Err(FrameError::Tag(tag)),
    };
    checked(tag, length, limit)
}

/// The header of an authentication message (`p`), while a client logs in.
///
/// # Errors
/// [`FrameError`] for any other tag, and for a length that PostgreSQL refuses.
pub fn authentication(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    let Some((tag, length)) = split(bytes) else {
        return Ok(None);
    };
    if tag != b'p' {
        return Err(FrameError::Tag(tag));
    }
    checked(tag, length, AUTH)
}

/// The header of the next backend message.
///
/// # Errors
/// [`FrameError`] for an unknown tag or a length that libpq would take for lost synchronisation.
pub fn backend(bytes: &[u8]) -> Result<Option<Header>, FrameError> {
    let Some((tag, length)) = split(bytes) else {
        return Ok(None);
    };
    let limit = match tag {
        b'D' | b'd' | b'T' | b't' | b'V' | b'E' | b'N' | b'A' | b'S' => 0x7fff_ffff,
        b'1' | b'2' | b'3' | b'C' | b'G' | b'H' | b'I' | b'K' | b'R' | b'W' | b'Z' | b'c'
        | b'n' | b's' | b'v' => BACKEND_SMALL,
        _ => return Err(FrameError::Tag(tag)),
    };
    checked(tag, length, limit)
}

fn split(bytes: &[u8]) -> Option<(u8, u32)> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    Some((
        header[0],
        u32::from_be_bytes([header[1], header[2], header[3], header[4]]),
    ))
}

fn checked(tag: u8, length: u32, limit: u32) -> Result<Option<Header>, FrameError> {
    if length < 4 || length > limit {
        return Err(FrameError::Length { tag, length });
    }
    Ok(Some(Header {
        tag,
        size: length as usize + 1,
    }))
}

/// A cursor over one message's body: every read is bounded by the body.
#[derive(Clone, Copy, Debug)]
pub struct Body<'a> {
    rest: &'a [u8],
}

/// The body ended early, or holds what its message may not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid message format")]
pub struct DecodeError;

impl<'a> Body<'a> {
    /// A cursor at the start of a body (the bytes after the header).
    #[must_use]
    pub fn new(body: &'a [u8]) -> Self {
        Self { rest: body }
    }

    /// The bytes not read yet.
    #[must_use]
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// One byte.
    ///
    /// # Errors
    /// At the end of the body.
    pub fn byte(&mut self) -> Result<u8, DecodeError> {
        Ok(self.bytes(1)?[0])
    }

    /// A 16-bit count. PostgreSQL reads it as unsigned.
    ///
    /// # Errors
    /// At the end of the body.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        let bytes = self.bytes(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    /// A 32-bit number.
    ///
    /// # Errors
    /// At the end of the body.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        let bytes = self.bytes(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A signed 32-bit number.
    ///
    /// # Errors
    /// At the end of the body.
    pub fn i32(&mut self) -> Result<i32, DecodeError> {
        Ok(self.u32()?.cast_signed())
    }

    /// The next `count` bytes.
    ///
    /// # Errors
    /// When the body holds fewer.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(DecodeError)?;
        self.rest = rest;
        Ok(head)
    }

    /// A string up to its zero byte, which is read too.
    ///
    /// # Errors
    /// When no zero byte follows.
    pub fn cstr(&mut self) -> Result<&'a [u8], DecodeError> {
        let end = memchr::memchr(0, self.rest).ok_or(DecodeError)?;
        let text = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        Ok(text)
    }

    /// A value with its length in front; −1 is NULL.
    ///
    /// # Errors
    /// When the length is below −1 or beyond the body.
    pub fn value(&mut self) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.i32()? {
            -1 => Ok(None),
            length => self
                .bytes(usize::try_from(length).map_err(|_negative| DecodeError)?)
                .map(Some),
        }
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn end(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(DecodeError)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_tags_that_postgresql_refuses_are_refused() {
        for (bytes, expected) in [
            (
                &b"Q\0\0\0\x03"[..],
                Err(FrameError::Length {
                    tag: b'Q',
                    length: 3,
                }),
            ),
            (
                b"Q\xff\xff\xff\xff",
                Err(FrameError::Length {
                    tag: b'Q',
                    length: u32::MAX,
                }),
            ),
            (
                b"S\0\0\x27\x11",
                Err(FrameError::Length {
                    tag: b'S',
                    length: 10_001,
                }),
            ),
            (b"S\0\0\0\x04", Ok(Some(Header { tag: b'S', size: 5 }))),
            (b"y\0\0\0\x04", Err(FrameError::Tag(b'y'))),
            (b"Q\0\0\0", Ok(None)),
        ] {
            assert_eq!(frontend(bytes), expected, "{bytes:?}");
        }
        assert_eq!(
            authentication(b"p\0\x01\0\0"),
            Err(FrameError::Length {
                tag: b'p',
                length: 65_536
            })
        );
    }

    #[test]
    fn a_body_never_reads_past_its_end() {
        let mut body = Body::new(b"\0\0\0\x05ab");
        assert_eq!(body.value(), Err(DecodeError));
        let mut body = Body::new(b"\xff\xff\xff\xfe");
        assert_eq!(body.value(), Err(DecodeError));
        let mut body = Body::new(b"ab");
        assert_eq!(body.cstr(), Err(DecodeError));
    }
}
