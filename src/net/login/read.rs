//! Exact reads of what a stranger sends: never a byte ahead, never more memory than the message may need.

use super::{super::transport::Transport, LoginError};
use crate::{
    protocol::client_startup::Refusal,
    wire::{
        frame::{self, HEADER},
        startup,
    },
};
use std::io;
use tokio::io::AsyncReadExt as _;

/// How far a packet or message could be read.
pub(super) enum Received<T> {
    Whole(T),
    Closed,
}

/// A startup packet without its length word.
pub(super) async fn read_packet(
    transport: &mut Transport,
) -> io::Result<Result<Received<Vec<u8>>, Refusal>> {
    let mut length = [0; 4];
    if let Received::Closed = read_exact(transport, &mut length).await? {
        return Ok(Ok(Received::Closed));
    }
    let remaining = match startup::remaining(length) {
        Ok(remaining) => remaining,
        Err(error) => return Ok(Err(Refusal::Startup(error))),
    };
    let mut packet = vec![0; remaining];
    Ok(Ok(match read_exact(transport, &mut packet).await? {
        Received::Whole(()) => Received::Whole(packet),
        Received::Closed => Received::Closed,
    }))
}

/// The body of a `p` message.
pub(super) async fn read_message(
    transport: &mut Transport,
) -> Result<Received<Vec<u8>>, LoginError> {
    let mut header = [0; HEADER];
    if let Received::Closed = read_exact(transport, &mut header).await? {
        return Ok(Received::Closed);
    }
    let found = frame::authentication(&header)
        .map_err(|error| LoginError::Refused(Refusal::Frame(error)))?;
    let mut body = vec![0; found.map_or(0, |found| found.size - HEADER)];
    Ok(match read_exact(transport, &mut body).await? {
        Received::Whole(()) => Received::Whole(body),
        Received::Closed => Received::Closed,
    })
}

async fn read_exact(transport: &mut Transport, buffer: &mut [u8]) -> io::Result<Received<()>> {
    match transport.read_exact(buffer).await {
        Ok(_) => Ok(Received::Whole(())),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(Received::Closed),
        Err(error) => Err(error),
    }
}
