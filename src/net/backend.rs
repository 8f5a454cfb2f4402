//! Authenticated connections to PostgreSQL servers: reached, encrypted as the address demands, logged in, ready.
//! What `protocol::backend_startup` decides is carried out here. Reads are exact: nothing is buffered when a
//! connection is handed over, so nothing can be lost or smuggled in.

use super::{
    tls::{self, ClientTls, TlsError},
    transport::Transport,
};
use crate::{
    clock::Duration,
    config::settings::{Address, Credentials, Host, TlsMode},
    entropy,
    protocol::backend_startup::{BackendStartup, BackendStartupError, Established, Parameter, Step},
    wire::{
        frame::{self, BACKEND_SMALL, FrameError, HEADER},
        notice, startup,
    },
};
use std::io;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout as within,
};

/// A backend that waits for its first query. Nothing of it has been read ahead.
#[derive(Debug)]
pub struct Connected {
    pub transport: Transport,
    pub pid: u32,
    /// Empty when the server gave none: it cannot be cancelled then.
    pub key: Vec<u8>,
    pub parameters: Vec<Parameter>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("cannot reach the server: {0}")]
    Unreachable(io::Error),
    #[error("the server did not answer in time")]
    Timeout,
    /// The server answered with ErrorResponse.
    #[error("the server refused: {}", String::from_utf8_lossy(.0.message()))]
    Refused(ServerError),
    #[error("the server does not speak TLS")]
    TlsRefused,
    #[error("TLS: {0}")]
    Handshake(io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    /// The server, or whoever is in between, does not speak PostgreSQL's protocol as it should.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
}

/// What is wrong with what the server sent.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("unexpected answer {0} to a request for TLS")]
    TlsAnswer(u8),
    #[error("unencrypted data followed the answer to a request for TLS")]
    UnencryptedData,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Startup(#[from] BackendStartupError),
}

/// The body of an ErrorResponse, whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    body: Vec<u8>,
}

impl ServerError {
    /// The bytes as sent, to be passed on.
    #[must_use]
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// The SQLSTATE, when there is one.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&[u8]> {
        notice::field(&self.body, b'C')
    }

    /// The message, empty when there is none.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        notice::field(&self.body, b'M').unwrap_or_default()
    }
}

/// Opens a connection: all of it within `timeout`. `database` is used whatever the address says.
///
/// # Errors
/// [`ConnectError`]; nothing stays open.
pub async fn connect(
    address: &Address,
    database: &str,
    credentials: &Credentials,
    parameters: &[(&str, &str)],
    timeout: Duration,
    tls: &ClientTls,
) -> Result<Connected, ConnectError> {
    let mut packet = Vec::new();
    let mut pairs = vec![(&b"user"[..], credentials.user.as_bytes()), (b"database", database.as_bytes())];
    pairs.extend(parameters.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    if pairs.iter().any(|(name, value)| name.contains(&0) || value.contains(&0)) {
        return Err(ConnectError::Unreachable(io::ErrorKind::InvalidInput.into()));
    }
    startup::put_message(&mut packet, 0, &pairs);
    within(timeout, open(address, credentials, &packet, tls)).await.unwrap_or(Err(ConnectError::Timeout))
}

/// Asks the server to cancel what a backend runs, and waits until it has taken the request. Encrypted as the
/// address demands: the key is a secret.
///
/// # Errors
/// [`ConnectError`], also when the time is over: the request may have been taken then.
pub async fn cancel(
    address: &Address,
    pid: u32,
    key: &[u8],
    timeout: Duration,
    tls: &ClientTls,
) -> Result<(), ConnectError> {
    let mut packet = Vec::new();
    startup::put_cancel_request(&mut packet, pid, key);
    let request = async {
        let mut transport = reach(address, address.tls, tls).await?;
        transport.write_all(&packet).await.map_err(ConnectError::Unreachable)?;
        transport.flush().await.map_err(ConnectError::Unreachable)?;
        // The server closes without a word, often without TLS's own goodbye.
        let mut byte = [0];
        let _closed = transport.read(&mut byte).await;
        Ok(())
    };
    within(timeout, request).await.unwrap_or(Err(ConnectError::Timeout))
}

/// With `prefer`, a server that refuses the encrypted connection is asked once more without, as libpq does.
async fn open(
    address: &Address,
    credentials: &Credentials,
    packet: &[u8],
    tls: &ClientTls,
) -> Result<Connected, ConnectError> {
    let first = attempt(address, address.tls, credentials, packet, tls).await;
    match &first {
        Err(ConnectError::Handshake(_)) if address.tls == TlsMode::Prefer => {}
        Err(ConnectError::Refused(error))
            if address.tls == TlsMode::Prefer && error.sqlstate() == Some(b"28000") => {}
        Ok(_) | Err(_) => return first,
    }
    match attempt(address, TlsMode::Disable, credentials, packet, tls).await {
        Ok(connected) => Ok(connected),
        // The first answer says more.
        Err(_) => first,
    }
}

async fn attempt(
    address: &Address,
    mode: TlsMode,
    credentials: &Credentials,
    packet: &[u8],
    tls: &ClientTls,
) -> Result<Connected, ConnectError> {
    let mut transport = reach(address, mode, tls).await?;
    let established = log_in(&mut transport, credentials, packet).await?;
    let Established { pid, key, parameters } = established;
    Ok(Connected { transport, pid, key, parameters })
}

/// A socket to the server, encrypted as `mode` demands.
async fn reach(address: &Address, mode: TlsMode, tls: &ClientTls) -> Result<Transport, ConnectError> {
    let transport = socket(address).await.map_err(ConnectError::Unreachable)?;
    match (&address.host, mode) {
        // A Unix socket needs no encryption, and PostgreSQL offers none on it.
        (Host::Unix(_), _) | (Host::Tcp(_), TlsMode::Disable) => Ok(transport),
        (Host::Tcp(_), TlsMode::Prefer | TlsMode::Require | TlsMode::VerifyFull) => {
            encrypt(transport, address, mode, tls).await
        }
    }
}

async fn socket(address: &Address) -> io::Result<Transport> {
    match &address.host {
        Host::Unix(directory) => {
            UnixStream::connect(directory.join(format!(".s.PGSQL.{}", address.port))).await.map(Transport::Unix)
        }
        Host::Tcp(name) => {
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for resolved in lookup_host((name.as_str(), address.port)).await? {
                match TcpStream::connect(resolved).await {
                    Ok(stream) => return Transport::tcp(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
    }
}

async fn encrypt(
    mut transport: Transport,
    address: &Address,
    mode: TlsMode,
    tls: &ClientTls,
) -> Result<Transport, ConnectError> {
    let mut request = Vec::new();
    startup::put_ssl_request(&mut request);
    transport.write_all(&request).await.map_err(ConnectError::Unreachable)?;
    let answer = transport.read_u8().await.map_err(ConnectError::Unreachable)?;
    if transport.has_plain_bytes().map_err(ConnectError::Unreachable)? {
        return Err(ProtocolError::UnencryptedData.into());
    }
    match (answer, mode) {
        (b'S', _) => {
            let config = tls.config(mode, address.root_cert.as_ref())?;
            transport.connect_tls(config, tls::server_name(&address.host)?).await.map_err(ConnectError::Handshake)
        }
        (b'N', TlsMode::Disable | TlsMode::Prefer) => Ok(transport),
        (b'N', TlsMode::Require | TlsMode::VerifyFull) => Err(ConnectError::TlsRefused),
        // Also `E`: what comes before encryption is nobody's word (CVE-2024-10977).
        (other, _) => Err(ProtocolError::TlsAnswer(other).into()),
    }
}

async fn log_in(
    transport: &mut Transport,
    credentials: &Credentials,
    packet: &[u8],
) -> Result<Established, ConnectError> {
    let password = credentials.password.as_ref().map(|secret| secret.0.as_str());
    let mut state = BackendStartup::new(&credentials.user, password, entropy::bytes());
    let mut body = Vec::new();
    send(transport, packet).await?;
    loop {
        let tag = receive(transport, &mut body).await?;
        match state.handle_message(tag, &body).map_err(ProtocolError::Startup)? {
            Step::Continue(next, reply) => {
                state = next;
                if !reply.is_empty() {
                    send(transport, &reply).await?;
                }
            }
            Step::Ready(established) => return Ok(established),
            Step::Refused(body) => return Err(ConnectError::Refused(ServerError { body })),
        }
    }
}

async fn send(transport: &mut Transport, bytes: &[u8]) -> Result<(), ConnectError> {
    transport.write_all(bytes).await.map_err(ConnectError::Unreachable)?;
    transport.flush().await.map_err(ConnectError::Unreachable)
}

/// Reads one message, no longer than libpq takes while starting.
async fn receive(transport: &mut Transport, body: &mut Vec<u8>) -> Result<u8, ConnectError> {
    let mut header = [0; HEADER];
    transport.read_exact(&mut header).await.map_err(ConnectError::Unreachable)?;
    let found = frame::backend(&header).map_err(ProtocolError::Frame)?;
    let Some(found) = found.filter(|found| found.size <= BACKEND_SMALL as usize + 1) else {
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        return Err(ProtocolError::Frame(FrameError::Length { tag: header[0], length }).into());
    };
    body.clear();
    body.resize(found.size - HEADER, 0);
    transport.read_exact(body).await.map_err(ConnectError::Unreachable)?;
    Ok(found.tag)
}
