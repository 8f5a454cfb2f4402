//! One statement with one parameter on a connection that nobody else uses, its rows as text. Both sides of it are small:
//! it serves lookups, not clients.

use super::{ConnectError, ProtocolError, ServerError, receive, send};
use crate::{
    net::transport::Transport,
    wire::{
        frame::{Body, DecodeError},
        frontend::{put, put_bare, put_bind, put_parse},
    },
};

/// A row's columns, `None` for NULL.
pub(super) type Row = Vec<Option<Vec<u8>>>;

/// Rows that are asked for: one more than any caller wants.
const MOST_ROWS: u32 = 2;

/// The first rows of a statement in which `$1` is this text.
///
/// # Errors
/// Outer: the connection cannot be used any more. Inner: what the server said; the connection is as before.
pub async fn rows(
    transport: &mut Transport,
    sql: &str,
    parameter: &str,
) -> Result<Result<Vec<Row>, ServerError>, ConnectError> {
    let mut out = Vec::new();
    put_parse(&mut out, b"", sql.as_bytes(), &[]);
    // No format codes; one parameter; no format codes of results: everything is text.
    let mut tail = vec![0, 0, 0, 1];
    let length = u32::try_from(parameter.len()).unwrap_or(u32::MAX);
    tail.extend_from_slice(&length.to_be_bytes());
    tail.extend_from_slice(parameter.as_bytes());
    tail.extend_from_slice(&[0, 0]);
    put_bind(&mut out, b"", b"", &tail);
    put(&mut out, b'E', |out| {
        out.push(0);
        out.extend_from_slice(&MOST_ROWS.to_be_bytes());
    });
    put_bare(&mut out, b'S');
    send(transport, &out).await?;
    let (mut body, mut rows, mut problem) = (Vec::new(), Vec::new(), None);
    loop {
        match receive(transport, &mut body).await? {
            b'D' if rows.len() == MOST_ROWS as usize => return Err(malformed(DecodeError)),
            b'D' => rows.push(row(&body).map_err(malformed)?),
            b'E' => problem = Some(ServerError { body: body.clone() }),
            b'Z' => return Ok(problem.map_or(Ok(rows), Err)),
            // Parsed, bound, done, suspended; notices and settings.
            b'1' | b'2' | b'C' | b's' | b'I' | b'N' | b'S' | b'A' => {}
            _ => return Err(malformed(DecodeError)),
        }
    }
}

fn row(body: &[u8]) -> Result<Row, DecodeError> {
    let mut body = Body::new(body);
    let count = body.u16()?;
    let cells = (0..count).map(|_| Ok(body.value()?.map(<[u8]>::to_vec)));
    let cells = cells.collect::<Result<Row, DecodeError>>()?;
    body.end()?;
    Ok(cells)
}

fn malformed(error: DecodeError) -> ConnectError {
    ProtocolError::Startup(error.into()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::AsyncWriteExt as _,
        net::{TcpListener, TcpStream},
    };

    async fn answered(count: usize) -> Result<usize, ConnectError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).await;
        let (mut server, _) = listener.accept().await.unwrap();
        let mut out = Vec::new();
        for _ in 0..count {
            put(&mut out, b'D', |out| {
                out.extend_from_slice(b"\0\x01\0\0\0\x01x");
            });
        }
        put(&mut out, b'Z', |out| out.push(b'I'));
        server.write_all(&out).await.unwrap();
        let mut ours = Transport::tcp(ours.unwrap()).unwrap();
        let found = rows(&mut ours, "SELECT $1", "ann").await?;
        Ok(found.unwrap().len())
    }

    #[tokio::test]
    async fn a_server_that_sends_more_rows_than_it_was_asked_for_is_left() {
        assert_eq!(answered(2).await.unwrap(), 2);
        assert!(matches!(answered(3).await, Err(ConnectError::Protocol(_))));
    }
}
