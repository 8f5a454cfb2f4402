//! Where a replication connection stands, as the server's bytes tell: within a message or between two, at rest, at work,
//! or streaming without end. Pure; only headers and ReadyForQuery are looked at, whatever pieces they come in.

use crate::wire::frame::{self, FrameError, HEADER};

/// What the connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Doing {
    /// ReadyForQuery outside of a transaction, and the client has said nothing since.
    Resting,
    /// A command, a base backup, a transaction: it has an end.
    Working,
    /// COPY in both directions: it has none.
    Streaming,
}

/// Follows a connection from its first ReadyForQuery on.
#[derive(Debug)]
pub struct Stand {
    doing: Doing,
    /// The header of the message that begins, and ReadyForQuery's one byte behind it.
    begun: [u8; HEADER + 1],
    have: usize,
    /// Bytes of the message under way that are still to come.
    left: usize,
}

impl Default for Stand {
    fn default() -> Self {
        Self {
            doing: Doing::Resting,
            begun: [0; HEADER + 1],
            have: 0,
            left: 0,
        }
    }
}

impl Stand {
    /// Bytes of the client are passed on.
    pub fn handle_client(&mut self) {
        if self.doing == Doing::Resting {
            self.doing = Doing::Working;
        }
    }

    /// Bytes of the server are passed on.
    ///
    /// # Errors
    /// [`FrameError`]: this is not PostgreSQL's protocol.
    pub fn handle_server(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        while let Some((byte, rest)) = bytes.split_first() {
            if self.left > 0 && self.have == 0 {
                let count = self.left.min(bytes.len());
                self.left -= count;
                bytes = &bytes[count..];
                continue;
            }
            self.begun[self.have] = *byte;
            self.have += 1;
            bytes = rest;
            if let Some(found) = frame::backend(&self.begun[..self.have])? {
                self.handle_header(found);
            }
        }
        Ok(())
    }

    fn handle_header(&mut self, found: frame::Header) {
        self.left = found.size - self.have;
        let tells_status = found.tag == b'Z' && found.size == HEADER + 1;
        if tells_status && self.left > 0 {
            // The next byte is the status.
            return;
        }
        match found.tag {
            b'Z' if self.begun[HEADER] == b'I' => self.doing = Doing::Resting,
            b'Z' => self.doing = Doing::Working,
            b'W' => self.doing = Doing::Streaming,
            _ => {}
        }
        self.have = 0;
    }

    /// Whether the last message has been passed on whole, so that one of ours may follow.
    #[must_use]
    pub fn is_between_messages(&self) -> bool {
        self.left == 0 && self.have == 0
    }

    /// Whether waiting would be for nothing: the connection is at rest, or streams without end.
    #[must_use]
    pub fn may_end(&self) -> bool {
        self.is_between_messages() && self.doing != Doing::Working
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(pieces: &[&[u8]]) -> Stand {
        let mut stand = Stand::default();
        for piece in pieces {
            stand.handle_server(piece).unwrap();
        }
        stand
    }

    const READY: &[u8] = b"Z\0\0\0\x05I";
    const IN_TRANSACTION: &[u8] = b"Z\0\0\0\x05T";
    const COPY_BOTH: &[u8] = b"W\0\0\0\x07\0\0\0";
    const DATA: &[u8] = b"d\0\0\0\x08abcd";

    #[test]
    fn a_connection_may_end_at_rest_and_while_it_streams_but_not_at_work() {
        let mut stand = Stand::default();
        assert!(stand.may_end());
        stand.handle_client();
        assert!(!stand.may_end(), "the client has asked for something");
        stand.handle_server(IN_TRANSACTION).unwrap();
        stand.handle_client();
        assert!(!stand.may_end());
        stand.handle_server(READY).unwrap();
        assert!(stand.may_end());
        stand.handle_client();
        stand.handle_server(COPY_BOTH).unwrap();
        stand.handle_server(DATA).unwrap();
        stand.handle_client();
        assert!(stand.may_end());
    }

    #[test]
    fn messages_are_followed_in_whatever_pieces_they_come() {
        let all = [COPY_BOTH, DATA, b"c\0\0\0\x04", b"C\0\0\0\x07OK\0", READY].concat();
        for first in 0..=all.len() {
            for second in first..=all.len() {
                let stand = after(&[&all[..first], &all[first..second], &all[second..]]);
                assert!(stand.may_end(), "{first} {second}");
            }
        }
        for length in 1..DATA.len() {
            assert!(!after(&[&DATA[..length]]).is_between_messages(), "{length}");
        }
    }

    #[test]
    fn what_is_not_the_protocol_is_told() {
        for bytes in [&b"HTTP/1.1"[..], b"d\0\0\0\x03", b"d\xff\xff\xff\xff"] {
            assert!(Stand::default().handle_server(bytes).is_err(), "{bytes:?}");
        }
    }
}
