//! Messages that a server sends: the views that the proxy reads and the small replies that it writes itself.

use super::{
    frame::{Body, DecodeError},
    frontend::put,
};

/// ReadyForQuery's transaction status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// `I`: not in a transaction.
    Idle,
    /// `T`: in a transaction.
    Transaction,
    /// `E`: in a failed transaction.
    Failed,
}

impl Status {
    /// Reads ReadyForQuery's body.
    ///
    /// # Errors
    /// When it is not one of `I`, `T`, `E`.
    pub fn decode(body: &[u8]) -> Result<Self, DecodeError> {
        match body {
            b"I" => Ok(Self::Idle),
            b"T" => Ok(Self::Transaction),
            b"E" => Ok(Self::Failed),
            _ => Err(DecodeError),
        }
    }

    /// The status byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        match self {
            Self::Idle => b'I',
            Self::Transaction => b'T',
            Self::Failed => b'E',
        }
    }
}

/// Reads ParameterStatus: name and value.
///
/// # Errors
/// When it is not one.
pub fn parameter_status(body: &[u8]) -> Result<(&[u8], &[u8]), DecodeError> {
    let mut body = Body::new(body);
    let pair = (body.cstr()?, body.cstr()?);
    body.end()?;
    Ok(pair)
}

/// Reads CommandComplete: the tag.
///
/// # Errors
/// When it is not one.
pub fn command_tag(body: &[u8]) -> Result<&[u8], DecodeError> {
    Body::new(body).cstr()
}

/// Appends ReadyForQuery.
pub fn put_ready(out: &mut Vec<u8>, status: Status) {
    put(out, b'Z', |out| out.push(status.byte()));
}

/// Appends CommandComplete.
pub fn put_complete(out: &mut Vec<u8>, tag: &[u8]) {
    put(out, b'C', |out| {
        out.extend_from_slice(tag);
        out.push(0);
    });
}

/// Appends ParameterStatus.
pub fn put_parameter_status(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    put(out, b'S', |out| {
        out.extend_from_slice(name);
        out.push(0);
        out.extend_from_slice(value);
        out.push(0);
    });
}
