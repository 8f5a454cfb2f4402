//! Hot path: a framed connection. One read per wake-up into a buffer that is given back when idle; writes are gathered
//! and sent by one call per flush.
//!
//! Everything is poll-based and keeps its progress in the stream, so that a caller which waits for several streams at
//! once loses nothing.

use super::transport::Transport;
use std::{
    future::poll_fn,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes read at once.
pub const WINDOW: usize = 16 * 1024;
/// A buffer that grew beyond this is given back once it is empty.
const KEEP: usize = 64 * 1024;
/// An idle connection's buffers up to this stay: a point select and its answer cost no allocation.
const SMALL: usize = 512;
/// Unsent bytes beyond which the other side is not read.
pub const HIGH_WATER: usize = 64 * 1024;

/// A transport with a read and a write buffer.
#[derive(Debug)]
pub struct Stream {
    io: Transport,
    read: Vec<u8>,
    /// Bytes of `read` that are consumed.
    taken: usize,
    write: Vec<u8>,
    /// Bytes of `write` that are sent.
    sent: usize,
    /// The transport took everything, and some of it may still be in its own buffer.
    unflushed: bool,
    received_total: u64,
    sent_total: u64,
}

/// Bytes taken out of a stream's read buffer for a while.
#[derive(Debug)]
pub struct Lent {
    bytes: Vec<u8>,
    start: usize,
}

impl Lent {
    /// What had arrived and was not consumed.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

impl Stream {
    /// A stream with empty buffers.
    #[must_use]
    pub fn new(io: Transport) -> Self {
        Self {
            io,
            read: Vec::new(),
            taken: 0,
            write: Vec::new(),
            sent: 0,
            unflushed: false,
            received_total: 0,
            sent_total: 0,
        }
    }

    /// The transport below.
    #[must_use]
    pub fn transport(&self) -> &Transport {
        &self.io
    }

    /// The transport below, to look for unexpected bytes.
    pub fn transport_mut(&mut self) -> &mut Transport {
        &mut self.io
    }

    /// Bytes received and sent since the stream began.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (self.received_total, self.sent_total)
    }

    /// What has arrived and is not consumed.
    #[must_use]
    pub fn buffered(&self) -> &[u8] {
        &self.read[self.taken..]
    }

    /// Marks the first `count` buffered bytes as done with.
    pub fn consume(&mut self, count: usize) {
        self.taken += count;
        debug_assert!(self.taken <= self.read.len());
        if self.taken == self.read.len() {
            self.read.clear();
            self.taken = 0;
        }
    }

    /// The write buffer, to append to.
    pub fn out(&mut self) -> &mut Vec<u8> {
        if self.sent == self.write.len() {
            self.write.clear();
            self.sent = 0;
        } else if self.sent >= HIGH_WATER {
            // A peer that is always a little behind would else let what was sent pile up.
            self.write.drain(..self.sent);
            self.sent = 0;
        }
        &mut self.write
    }

    /// Takes the buffered bytes out, so that they can be read while the stream is used. Ends with [`Stream::restore`].
    #[must_use]
    pub fn lend(&mut self) -> Lent {
        Lent {
            bytes: std::mem::take(&mut self.read),
            start: std::mem::take(&mut self.taken),
        }
    }

    /// Puts lent bytes back, of which the first `count` are done with; what arrived meanwhile follows them.
    pub fn restore(&mut self, mut lent: Lent, count: usize) {
        debug_assert!(
            self.taken == 0,
            "lent bytes come back before others are consumed"
        );
        if !self.read.is_empty() {
            lent.bytes.extend_from_slice(&self.read);
        }
        self.read = lent.bytes;
        self.taken = lent.start;
        self.consume(count);
    }

    /// Bytes that wait to be sent.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.write.len() - self.sent
    }

    /// The place in all that is ever sent at which the next byte stands that is buffered.
    #[must_use]
    pub fn mark(&self) -> u64 {
        self.sent_total + self.unsent() as u64
    }

    /// Takes back what was buffered behind a place; false: some of it was sent, and all stays.
    pub fn take_back(&mut self, mark: u64) -> bool {
        let Some(kept) = mark.checked_sub(self.sent_total) else {
            return false;
        };
        let kept = usize::try_from(kept).unwrap_or(usize::MAX);
        self.write.truncate(self.sent.saturating_add(kept));
        true
    }

    /// Whether everything has gone to the peer: nothing is left in the transport's buffer either.
    #[must_use]
    pub fn is_flushed(&self) -> bool {
        self.unsent() == 0 && !self.unflushed
    }

    /// Reads more. `Ready(0)`: the peer has closed.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let count = if self.read.is_empty() && self.read.capacity() <= SMALL {
            // Nothing is held: read to the stack first, so that waiting costs no buffer.
            let mut window = [std::mem::MaybeUninit::<u8>::uninit(); WINDOW];
            let mut buffer = ReadBuf::uninit(&mut window);
            ready!(Pin::new(&mut self.io).poll_read(cx, &mut buffer))?;
            self.read.extend_from_slice(buffer.filled());
            buffer.filled().len()
        } else {
            self.compact();
            let start = self.read.len();
            let room = WINDOW.max(start.min(1 << 20));
            self.read.reserve(room);
            let spare = self.read.spare_capacity_mut();
            let mut buffer = ReadBuf::uninit(spare);
            let polled = Pin::new(&mut self.io).poll_read(cx, &mut buffer);
            let filled = buffer.filled().len();
            ready!(polled)?;
            self.grow_to(start + filled);
            filled
        };
        self.received_total += count as u64;
        Poll::Ready(Ok(count))
    }

    #[expect(
        unsafe_code,
        reason = "the bytes below the new length were written by the read just before"
    )]
    fn grow_to(&mut self, length: usize) {
        debug_assert!(length <= self.read.capacity());
        // SAFETY: `ReadBuf::filled` reports only initialised bytes, which lie in this vector's spare capacity.
        unsafe { self.read.set_len(length) }
    }

    fn compact(&mut self) {
        if self.taken > 0 {
            self.read.drain(..self.taken);
            self.taken = 0;
        }
    }

    /// Sends what is buffered, as far as the peer takes it.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.write.len() {
            let count = ready!(Pin::new(&mut self.io).poll_write(cx, &self.write[self.sent..]))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += count;
            self.sent_total += count as u64;
        }
        if !self.write.is_empty() {
            self.write.clear();
            self.sent = 0;
            self.unflushed = self.io.buffers_writes();
        }
        if self.unflushed {
            // Kept until it is done: nobody else would send what a slow peer has not taken yet.
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.unflushed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends everything that is buffered.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn flush(&mut self) -> io::Result<()> {
        poll_fn(|cx| self.poll_flush(cx)).await
    }

    /// Waits for more bytes; 0 when the peer has closed.
    ///
    /// # Errors
    /// When the connection is gone.
    pub async fn fill(&mut self) -> io::Result<usize> {
        poll_fn(|cx| self.poll_fill(cx)).await
    }

    /// Gives empty buffers back: all but small ones when `idle`, else only those that grew large.
    pub fn relax(&mut self, idle: bool) {
        let keep = if idle { SMALL } else { KEEP };
        if self.read.is_empty() && self.read.capacity() > keep {
            self.read = Vec::new();
        }
        if self.unsent() == 0 && self.write.capacity() > keep {
            self.write = Vec::new();
            self.sent = 0;
        }
    }

    /// Gives every empty buffer back: nothing is expected for long.
    pub fn give_back(&mut self) {
        if self.read.is_empty() {
            self.read = Vec::new();
        }
        if self.unsent() == 0 {
            self.write = Vec::new();
            self.sent = 0;
        }
    }

    /// Says goodbye to the peer's reader: what follows is end of file.
    pub async fn shutdown(&mut self) {
        // The connection is over either way: nothing is left to do about an error here.
        drop(poll_fn(|cx| Pin::new(&mut self.io).poll_shutdown(cx)).await);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::settings::{Host, TlsMode},
        net::{
            testing,
            tls::{self, ClientTls, ServerTls},
        },
    };
    use std::time::Duration;
    use tokio::{
        io::AsyncReadExt as _,
        net::{TcpListener, TcpSocket},
    };

    const LITTLE: u32 = 4096;

    /// Both ends of a connection over TLS whose sockets hold little.
    async fn ends() -> (Transport, Transport) {
        let certificates = testing::certificates();
        let identity = ServerTls::new(&certificates.identity, None).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(LITTLE).unwrap();
        let connect = socket.connect(listener.local_addr().unwrap());
        let (client, accepted) = tokio::join!(connect, listener.accept());
        let (server, _) = accepted.unwrap();
        socket2::SockRef::from(&server)
            .set_send_buffer_size(LITTLE as usize)
            .unwrap();
        let client_tls = ClientTls::new().unwrap();
        let root = Some(&certificates.authority);
        let config = client_tls.config(TlsMode::VerifyFull, root).unwrap();
        let name = tls::server_name(&Host::Tcp("localhost".to_owned())).unwrap();
        let client = Transport::tcp(client.unwrap()).unwrap();
        let server = Transport::tcp(server).unwrap();
        let (server, client) = tokio::join!(
            server.accept_tls(identity.config()),
            client.connect_tls(config, name)
        );
        (server.unwrap(), client.unwrap())
    }

    #[tokio::test]
    async fn a_slow_peer_gets_all_that_was_flushed_over_tls() {
        for size in [100_000, 500_000, 1_000_003] {
            let (server, mut client) = ends().await;
            let mut stream = Stream::new(server);
            stream.out().resize(size, b'x');
            let read = async {
                let mut bytes = vec![0; size];
                for piece in bytes.chunks_mut(1000) {
                    client.read_exact(piece).await.unwrap();
                    tokio::task::yield_now().await;
                }
            };
            let both = async { tokio::join!(stream.flush(), read) };
            let (flushed, ()) = tokio::time::timeout(Duration::from_secs(20), both)
                .await
                .expect("bytes stayed behind");
            flushed.unwrap();
            assert!(stream.is_flushed());
        }
    }
}
