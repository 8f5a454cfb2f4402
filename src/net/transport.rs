//! Hot path: one socket, encrypted or not, as bytes both ways. Adds a match on the kind to each call, nothing else.
//! Framing and buffers are elsewhere.

use super::tls;
use rustls_pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use std::{
    fmt, io,
    mem::MaybeUninit,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

/// A dead peer is found out after these, together some two minutes.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(10);
const KEEPALIVE_RETRIES: u32 = 6;

/// A connected socket. TLS only over TCP, as in PostgreSQL.
#[derive(Debug)]
pub enum Transport {
    Tcp(TcpStream),
    Unix(UnixStream),
    /// We are the server.
    ServerTls(Box<server::TlsStream<TcpStream>>),
    /// We are the client.
    ClientTls(Box<client::TlsStream<TcpStream>>),
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    Unix,
    /// The socket is no longer connected.
    Gone,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix => f.write_str("[local]"),
            Self::Gone => f.write_str("[gone]"),
        }
    }
}

/// What happened on a socket on which nothing should.
#[derive(Debug)]
pub enum Disturbance {
    /// There are bytes to read. Of a TLS stream one byte has been read and is lost: the connection cannot go on.
    Bytes,
    /// The peer has closed.
    Closed,
    Failed(io::Error),
}

impl Transport {
    /// A TCP socket, set up: no delay, keepalive.
    ///
    /// # Errors
    /// When the options cannot be set: the peer is gone.
    pub fn tcp(stream: TcpStream) -> io::Result<Self> {
        stream.set_nodelay(true)?;
        let keepalive = TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_RETRIES);
        SockRef::from(&stream).set_tcp_keepalive(&keepalive)?;
        Ok(Self::Tcp(stream))
    }

    /// The peer, as far as the socket still knows it.
    #[must_use]
    pub fn peer(&self) -> Peer {
        let stream = match self {
            Self::Tcp(stream) => stream,
            Self::Unix(_) => return Peer::Unix,
            Self::ServerTls(stream) => stream.get_ref().0,
            Self::ClientTls(stream) => stream.get_ref().0,
        };
        stream.peer_addr().map_or(Peer::Gone, Peer::Tcp)
    }

    /// Whether bytes travel encrypted.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        match self {
            Self::Tcp(_) | Self::Unix(_) => false,
            Self::ServerTls(_) | Self::ClientTls(_) => true,
        }
    }

    /// The protocol agreed on by ALPN.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => None,
            Self::ServerTls(stream) => stream.get_ref().1.alpn_protocol(),
            Self::ClientTls(stream) => stream.get_ref().1.alpn_protocol(),
        }
    }

    /// The certificate, in DER, of the server that we are the client of, which has shown that it holds its key. `None` for
    /// one that cannot be read: it has shown nothing.
    #[must_use]
    pub fn peer_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::ServerTls(_) => None,
            Self::ClientTls(stream) => {
                let chain = stream.get_ref().1.peer_certificates()?;
                let shown = chain.first().filter(|shown| tls::is_readable(shown));
                shown.map(AsRef::as_ref)
            }
        }
    }

    /// The certificate that a client showed, and that was found valid.
    #[must_use]
    pub fn client_certificate(&self) -> Option<&[u8]> {
        match self {
            Self::Tcp(_) | Self::Unix(_) | Self::ClientTls(_) => None,
            Self::ServerTls(stream) => {
                let chain = stream.get_ref().1.peer_certificates()?;
                chain.first().map(AsRef::as_ref)
            }
        }
    }

    /// Shakes hands as the server.
    ///
    /// # Errors
    /// When the handshake fails, or there is no TCP socket without encryption to do it on.
    pub async fn accept_tls(self, config: Arc<rustls::ServerConfig>) -> io::Result<Self> {
        let stream = self.into_plain_tcp()?;
        Ok(Self::ServerTls(Box::new(
            TlsAcceptor::from(config).accept(stream).await?,
        )))
    }

    /// Shakes hands as the client.
    ///
    /// # Errors
    /// When the handshake fails, or there is no TCP socket without encryption to do it on.
    pub async fn connect_tls(
        self,
        config: Arc<rustls::ClientConfig>,
        name: ServerName<'static>,
    ) -> io::Result<Self> {
        let stream = self.into_plain_tcp()?;
        Ok(Self::ClientTls(Box::new(
            TlsConnector::from(config).connect(name, stream).await?,
        )))
    }

    fn into_plain_tcp(self) -> io::Result<TcpStream> {
        match self {
            Self::Tcp(stream) => Ok(stream),
            Self::Unix(_) | Self::ServerTls(_) | Self::ClientTls(_) => {
                Err(io::ErrorKind::Unsupported.into())
            }
        }
    }

    /// Whether the socket of a connection without encryption holds bytes that were not read. Never waits.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn has_plain_bytes(&self) -> io::Result<bool> {
        match self.peek_now() {
            Ok(count) => Ok(count > 0),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether nothing has happened on a connection on which nothing should.
    pub fn is_quiet(&mut self) -> bool {
        self.poll_disturbed(&mut Context::from_waker(std::task::Waker::noop()))
            .is_pending()
    }

    /// Whether what is written may stay in a buffer until it is flushed.
    #[must_use]
    pub fn buffers_writes(&self) -> bool {
        self.is_encrypted()
    }

    /// Ready when something happens on a connection on which nothing should: nothing is consumed while nothing
    /// does. Unlike readiness, it is never ready without cause.
    pub fn poll_disturbed(&mut self, cx: &mut Context<'_>) -> Poll<Disturbance> {
        match self {
            Self::Tcp(_) | Self::Unix(_) => self.poll_plain_disturbed(cx),
            // Below TLS there may be bytes that are nobody's data, such as session tickets.
            Self::ServerTls(stream) => poll_one_byte(stream.as_mut(), cx),
            Self::ClientTls(stream) => poll_one_byte(stream.as_mut(), cx),
        }
    }

    fn poll_plain_disturbed(&self, cx: &mut Context<'_>) -> Poll<Disturbance> {
        loop {
            let peeked = match self {
                Self::Unix(stream) => match ready!(stream.poll_read_ready(cx)) {
                    Ok(()) => stream.try_io(Interest::READABLE, || self.peek_now()),
                    Err(error) => Err(error),
                },
                Self::Tcp(stream) => match ready!(stream.poll_read_ready(cx)) {
                    Ok(()) => stream.try_io(Interest::READABLE, || self.peek_now()),
                    Err(error) => Err(error),
                },
                Self::ServerTls(_) | Self::ClientTls(_) => Err(io::ErrorKind::Unsupported.into()),
            };
            match peeked {
                Ok(0) => return Poll::Ready(Disturbance::Closed),
                Ok(_) => return Poll::Ready(Disturbance::Bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Disturbance::Failed(error)),
            }
        }
    }

    fn peek_now(&self) -> io::Result<usize> {
        let mut byte = [MaybeUninit::uninit()];
        match self {
            Self::Unix(stream) => SockRef::from(stream).peek(&mut byte),
            Self::Tcp(stream) => SockRef::from(stream).peek(&mut byte),
            Self::ServerTls(_) | Self::ClientTls(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

fn poll_one_byte(stream: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<Disturbance> {
    let mut byte = [0];
    let mut buffer = ReadBuf::new(&mut byte);
    Poll::Ready(match ready!(Pin::new(stream).poll_read(cx, &mut buffer)) {
        Ok(()) if buffer.filled().is_empty() => Disturbance::Closed,
        Ok(()) => Disturbance::Bytes,
        Err(error) => Disturbance::Failed(error),
    })
}

impl AsyncRead for Transport {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::ServerTls(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::ClientTls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::ServerTls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::ClientTls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::Unix(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::ServerTls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
            Self::ClientTls(stream) => Pin::new(stream).poll_write_vectored(cx, slices),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Unix(stream) => stream.is_write_vectored(),
            Self::ServerTls(stream) => stream.is_write_vectored(),
            Self::ClientTls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::ServerTls(stream) => Pin::new(stream).poll_flush(cx),
            Self::ClientTls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::ServerTls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::ClientTls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
