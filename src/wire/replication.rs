//! What goes over a connection in COPY BOTH while a server streams its WAL: views over the server's messages, and the
//! client's feedback. Manual, "Streaming Replication Protocol".
//!
//! What must stay true: positions are told as they were read; nothing is decoded that the message does not hold.

use super::{
    frame::{Body, DecodeError},
    frontend::put,
};
use std::{fmt, str::FromStr};

/// Microseconds from 1970 to PostgreSQL's epoch, 2000-01-01.
const EPOCH: i64 = 946_684_800_000_000;

/// A position in a server's WAL, in bytes from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(pub u64);

/// As PostgreSQL writes it: `16/B374D848`.
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

impl FromStr for Lsn {
    type Err = DecodeError;

    /// Reads `16/B374D848` as `pg_lsn_in` does.
    fn from_str(text: &str) -> Result<Self, DecodeError> {
        let half = |text: &str| {
            let digits =
                (1..=8).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
            let number = digits.then(|| u64::from_str_radix(text, 16).ok()).flatten();
            number.ok_or(DecodeError)
        };
        let (high, low) = text.split_once('/').ok_or(DecodeError)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// What a server says in a CopyData of COPY BOTH.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Streamed<'a> {
    /// `w`: what the output plugin wrote of the WAL at `start`.
    Data {
        start: Lsn,
        /// The end of WAL on the server.
        end: Lsn,
        data: &'a [u8],
    },
    /// `k`: the server is there.
    Alive {
        end: Lsn,
        /// It wants [`put_status`] at once, else it may take the connection for lost.
        asks: bool,
    },
}

impl<'a> Streamed<'a> {
    /// Reads a CopyData's body.
    ///
    /// # Errors
    /// When it is neither of the two.
    pub fn decode(body: &'a [u8]) -> Result<Self, DecodeError> {
        let mut body = Body::new(body);
        match body.byte()? {
            b'w' => {
                let (start, end) = (lsn(&mut body)?, lsn(&mut body)?);
                body.bytes(8)?; // the server's clock
                let data = body.rest();
                Ok(Self::Data { start, end, data })
            }
            b'k' => {
                let end = lsn(&mut body)?;
                body.bytes(8)?;
                let asks = body.byte()? != 0;
                body.end()?;
                Ok(Self::Alive { end, asks })
            }
            _ => Err(DecodeError),
        }
    }
}

/// How far a client is, each position that of the last byte and one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    pub written: Lsn,
    /// Durable: the server may forget its WAL before this, and moves the slot there.
    pub flushed: Lsn,
    pub applied: Lsn,
}

/// Whether the server shall answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// With an [`Streamed::Alive`] at once.
    Wanted,
    Needless,
}

/// Appends a standby status update. `unix_micros`: now, in microseconds since 1970.
pub fn put_status(out: &mut Vec<u8>, progress: Progress, unix_micros: i64, answer: Answer) {
    put(out, b'd', |out| {
        out.push(b'r');
        for Lsn(position) in [progress.written, progress.flushed, progress.applied] {
            out.extend_from_slice(&position.to_be_bytes());
        }
        out.extend_from_slice(&unix_micros.saturating_sub(EPOCH).to_be_bytes());
        out.push(u8::from(answer == Answer::Wanted));
    });
}

/// Eight bytes of a position.
pub(super) fn lsn(body: &mut Body<'_>) -> Result<Lsn, DecodeError> {
    let (high, low) = (body.u32()?, body.u32()?);
    Ok(Lsn(u64::from(high) << 32 | u64::from(low)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_are_written_and_read_as_postgresqls() {
        for (text, number) in [
            ("0/0", 0),
            ("16/B374D848", 0x16_b374_d848),
            ("FFFFFFFF/FFFFFFFF", u64::MAX),
            ("1/0", 1 << 32),
        ] {
            assert_eq!(Lsn(number).to_string(), text);
            assert_eq!(text.parse(), Ok(Lsn(number)));
        }
        assert_eq!("a/b".parse(), Ok(Lsn(0xa_0000_000b)));
        for text in [
            "",
            "/",
            "1/",
            "/1",
            "1",
            "1/1/1",
            "+1/1",
            "123456789/0",
            "g/0",
            " 1/1",
        ] {
            assert_eq!(text.parse::<Lsn>(), Err(DecodeError), "{text}");
        }
    }

    #[test]
    fn both_messages_are_read_and_nothing_else() {
        let mut data = vec![b'w'];
        data.extend_from_slice(&1_u64.to_be_bytes());
        data.extend_from_slice(&2_u64.to_be_bytes());
        data.extend_from_slice(&[9; 8]);
        data.extend_from_slice(b"rows");
        let (start, end) = (Lsn(1), Lsn(2));
        let read = Streamed::Data {
            start,
            end,
            data: b"rows",
        };
        assert_eq!(Streamed::decode(&data), Ok(read));
        assert_eq!(Streamed::decode(&data[..24]), Err(DecodeError));
        let mut alive = vec![b'k'];
        alive.extend_from_slice(&7_u64.to_be_bytes());
        alive.extend_from_slice(&[9; 8]);
        alive.push(1);
        let (end, asks) = (Lsn(7), true);
        assert_eq!(Streamed::decode(&alive), Ok(Streamed::Alive { end, asks }));
        alive.push(0);
        assert_eq!(Streamed::decode(&alive), Err(DecodeError));
        assert_eq!(Streamed::decode(b"x"), Err(DecodeError));
        assert_eq!(Streamed::decode(b""), Err(DecodeError));
    }

    #[test]
    fn feedback_tells_three_positions_and_the_clock() {
        let mut out = Vec::new();
        let (written, flushed, applied) = (Lsn(3), Lsn(2), Lsn(1));
        let progress = Progress {
            written,
            flushed,
            applied,
        };
        put_status(&mut out, progress, EPOCH + 5, Answer::Wanted);
        let mut expected = vec![b'd', 0, 0, 0, 38, b'r'];
        for number in [3_u64, 2, 1, 5] {
            expected.extend_from_slice(&number.to_be_bytes());
        }
        expected.push(1);
        assert_eq!(out, expected);
    }
}
