//! Authenticated connections to PostgreSQL servers: reached, encrypted as the address demands, logged in, ready.
//! Protocol 3.2 is asked for, for its longer cancel keys; servers that know it not agree on 3.0, and those that are too
//! old to say so are asked again. What `protocol::backend_startup` decides is carried out here. Reads are exact: nothing is buffered when a
//! connection is handed over, so nothing can be lost or smuggled in.

mod rows;

pub use rows::rows;

use super::{
    effort::aside,
    tls::{self, ClientTls, TlsError},
    transport::Transport,
};
use crate::{
    auth::{certificate, scram::Proof},
    clock::Duration,
    config::settings::{Address, Credentials, Host, TlsMode, TlsStart},
    entropy,
    protocol::backend_startup::{
        BackendStartup, BackendStartupError, Channel, Established, Login, NEWEST_MINOR, Parameter,
        Step,
    },
    wire::{
        frame::{self, BACKEND_SMALL, FrameError, HEADER},
        notice, startup,
    },
};
use std::{io, sync::Arc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream, lookup_host},
    time::timeout as within,
};

/// A backend that waits for its first query. Nothing of it has been read ahead.
#[derive(Debug)]
pub struct Connected {
    pub transport: Transport,
    /// The minor version of protocol 3 agreed on.
    pub minor: u16,
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
    /// Passthrough, and no client has logged in since the process began.
    #[error("no client has shown a proof yet that could open it")]
    NothingShown,
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

/// How likely another attempt is to end alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It may serve at any moment: it restarts, or is full.
    Open,
    /// It will go on like this for a while, or until somebody changes something: whoever waits waits in vain.
    Lasting,
}

impl ConnectError {
    /// How likely another attempt is to end alike.
    #[must_use]
    pub fn outlook(&self) -> Outlook {
        match self {
            Self::Unreachable(error) if error.kind() == io::ErrorKind::TimedOut => Outlook::Lasting,
            Self::Unreachable(_) => Outlook::Open,
            // Class 28: invalid authorization specification.
            Self::Refused(said) if !said.is_of_class(b"28") => Outlook::Open,
            Self::Timeout
            | Self::Refused(_)
            | Self::NothingShown
            | Self::TlsRefused
            | Self::Handshake(_)
            | Self::Tls(_)
            | Self::Protocol(_) => Outlook::Lasting,
        }
    }
}

/// What is wrong with what the server sent.
#[derive(Debug, thiserror::Error)]
pub enum ProtocolError {
    #[error("unexpected answer {0} to a request for TLS")]
    TlsAnswer(u8),
    #[error("unencrypted data followed the answer to a request for TLS")]
    UnencryptedData,
    /// What answers is TLS, but perhaps not PostgreSQL's: as libpq, nothing is said to it.
    #[error("TLS began without an agreement on PostgreSQL's protocol (ALPN)")]
    Alpn,
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

    /// Whether the SQLSTATE is of this class.
    #[must_use]
    pub fn is_of_class(&self, class: &[u8; 2]) -> bool {
        self.sqlstate()
            .is_some_and(|state| state.starts_with(class))
    }

    /// The message, empty when there is none.
    #[must_use]
    pub fn message(&self) -> &[u8] {
        notice::field(&self.body, b'M').unwrap_or_default()
    }
}

/// Whom to call, and how.
#[derive(Clone, Copy)]
struct Call<'a> {
    address: &'a Address,
    tls: &'a ClientTls,
    timeout: Duration,
}

impl Connected {
    /// The address for cancel requests: they travel as the connection does, encrypted or not.
    #[must_use]
    pub fn cancel_address(&self, address: &Arc<Address>) -> Arc<Address> {
        match address.tls {
            TlsMode::Disable | TlsMode::Require | TlsMode::VerifyFull => Arc::clone(address),
            TlsMode::Prefer => Arc::new(Address {
                tls: if self.transport.is_encrypted() {
                    TlsMode::Require
                } else {
                    TlsMode::Disable
                },
                ..(**address).clone()
            }),
        }
    }
}

/// A role and what shows that we are it; a server that trusts is shown nothing.
#[derive(Clone, Copy, Debug)]
pub struct Who<'a> {
    pub user: &'a str,
    pub proof: Option<&'a Proof>,
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
    let proof = credentials.proof();
    let who = Who {
        user: &credentials.user,
        proof: proof.as_ref(),
    };
    connect_as(address, database, who, parameters, timeout, tls).await
}

/// As [`connect`], with any proof.
///
/// # Errors
/// [`ConnectError`]; nothing stays open.
pub async fn connect_as(
    address: &Address,
    database: &str,
    who: Who<'_>,
    parameters: &[(&str, &str)],
    timeout: Duration,
    tls: &ClientTls,
) -> Result<Connected, ConnectError> {
    let mut pairs = vec![
        (&b"user"[..], who.user.as_bytes()),
        (b"database", database.as_bytes()),
    ];
    pairs.extend(
        parameters
            .iter()
            .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
    );
    if pairs
        .iter()
        .any(|(name, value)| name.contains(&0) || value.contains(&0))
    {
        return Err(ConnectError::Unreachable(
            io::ErrorKind::InvalidInput.into(),
        ));
    }
    let call = Call {
        address,
        tls,
        timeout,
    };
    within(timeout, open(call, who, &pairs))
        .await
        .unwrap_or(Err(ConnectError::Timeout))
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
    let call = Call {
        address,
        tls,
        timeout,
    };
    let request = async {
        let mut transport = match reach(call, address.tls).await {
            Err(ConnectError::Handshake(_)) if address.tls == TlsMode::Prefer => {
                reach(call, TlsMode::Disable).await?
            }
            reached => reached?,
        };
        transport
            .write_all(&packet)
            .await
            .map_err(ConnectError::Unreachable)?;
        transport.flush().await.map_err(ConnectError::Unreachable)?;
        // The server closes without a word, often without TLS's own goodbye.
        let mut byte = [0];
        let _closed = transport.read(&mut byte).await;
        Ok(())
    };
    within(timeout, request)
        .await
        .unwrap_or(Err(ConnectError::Timeout))
}

/// The parameters of a StartupMessage.
type Pairs<'a> = [(&'a [u8], &'a [u8])];

/// With `prefer`, a server that refuses the encrypted connection is asked once more without, as libpq does.
async fn open(call: Call<'_>, who: Who<'_>, pairs: &Pairs<'_>) -> Result<Connected, ConnectError> {
    let mode = call.address.tls;
    let first = agree(call, mode, who, pairs).await;
    match &first {
        Err(ConnectError::Handshake(_)) if mode == TlsMode::Prefer => {}
        Err(ConnectError::Refused(error))
            if mode == TlsMode::Prefer && error.sqlstate() == Some(b"28000") => {}
        Ok(_) | Err(_) => return first,
    }
    match agree(call, TlsMode::Disable, who, pairs).await {
        Ok(connected) => Ok(connected),
        // The first answer says more.
        Err(_) => first,
    }
}

/// Asks for the newest version; a server or pooler that is too old to negotiate is asked once more for 3.0. Nothing is
/// lost to who sits in between: 3.0 proves as much, only its cancel keys are shorter.
async fn agree(
    call: Call<'_>,
    mode: TlsMode,
    who: Who<'_>,
    pairs: &Pairs<'_>,
) -> Result<Connected, ConnectError> {
    match attempt(call, mode, who, pairs, NEWEST_MINOR).await {
        Err(Failure::Version) => attempt(call, mode, who, pairs, 0).await,
        other => other,
    }
    .map_err(|failure| match failure {
        Failure::Connect(error) => error,
        Failure::Version => ConnectError::Unreachable(io::ErrorKind::UnexpectedEof.into()),
    })
}

/// Why an attempt failed.
enum Failure {
    Connect(ConnectError),
    /// Before a word of authentication the server refused, or closed: it may be the version.
    Version,
}

impl From<ConnectError> for Failure {
    fn from(error: ConnectError) -> Self {
        Self::Connect(error)
    }
}

async fn attempt(
    call: Call<'_>,
    mode: TlsMode,
    who: Who<'_>,
    pairs: &Pairs<'_>,
    minor: u16,
) -> Result<Connected, Failure> {
    let mut transport = reach(call, mode).await?;
    let login = Login {
        user: who.user.to_owned(),
        proof: who.proof.cloned(),
        binding: call.address.channel_binding,
        channel: if transport.is_encrypted() {
            Channel::Tls(
                transport
                    .peer_certificate()
                    .and_then(certificate::end_point),
            )
        } else {
            Channel::Plain
        },
        minor,
        nonce: entropy::bytes(),
    };
    let mut packet = Vec::new();
    startup::put_message(&mut packet, minor, pairs);
    let established = log_in(&mut transport, login, &packet).await?;
    let Established {
        minor,
        pid,
        key,
        parameters,
    } = established;
    Ok(Connected {
        transport,
        minor,
        pid,
        key,
        parameters,
    })
}

/// A socket to the server, encrypted as `mode` demands.
async fn reach(call: Call<'_>, mode: TlsMode) -> Result<Transport, ConnectError> {
    let Call {
        address,
        tls,
        timeout,
    } = call;
    let transport = socket(address, timeout)
        .await
        .map_err(ConnectError::Unreachable)?;
    match (&address.host, mode) {
        // A Unix socket needs no encryption, and PostgreSQL offers none on it.
        (Host::Unix(_), _) | (Host::Tcp(_), TlsMode::Disable) => Ok(transport),
        (Host::Tcp(_), TlsMode::Prefer | TlsMode::Require | TlsMode::VerifyFull) => {
            match address.tls_start {
                TlsStart::Request => encrypt(transport, address, mode, tls).await,
                TlsStart::Direct => encrypt_at_once(transport, address, mode, tls).await,
            }
        }
    }
}

async fn socket(address: &Address, timeout: Duration) -> io::Result<Transport> {
    match &address.host {
        Host::Unix(directory) => {
            UnixStream::connect(directory.join(format!(".s.PGSQL.{}", address.port)))
                .await
                .map(Transport::Unix)
        }
        Host::Tcp(name) => {
            let resolved: Vec<_> = lookup_host((name.as_str(), address.port)).await?.collect();
            // An address that does not answer leaves time for the others.
            let share = timeout / u32::try_from(resolved.len().max(1)).unwrap_or(u32::MAX);
            let mut last = io::Error::from(io::ErrorKind::NotFound);
            for resolved in resolved {
                match within(share, TcpStream::connect(resolved)).await {
                    Ok(Ok(stream)) => return Transport::tcp(stream),
                    Ok(Err(error)) => last = error,
                    Err(_elapsed) => last = io::ErrorKind::TimedOut.into(),
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
    transport
        .write_all(&request)
        .await
        .map_err(ConnectError::Unreachable)?;
    let answer = transport
        .read_u8()
        .await
        .map_err(ConnectError::Unreachable)?;
    if transport
        .has_plain_bytes()
        .map_err(ConnectError::Unreachable)?
    {
        return Err(ProtocolError::UnencryptedData.into());
    }
    match (answer, mode) {
        (b'S', _) => shake_hands(transport, address, mode, tls).await,
        (b'N', TlsMode::Disable | TlsMode::Prefer) => Ok(transport),
        (b'N', TlsMode::Require | TlsMode::VerifyFull) => Err(ConnectError::TlsRefused),
        // Also `E`: what comes before encryption is nobody's word (CVE-2024-10977).
        (other, _) => Err(ProtocolError::TlsAnswer(other).into()),
    }
}

/// TLS from the first byte. The name of the protocol must be agreed on, so that no server of another protocol can be
/// made to read our login.
async fn encrypt_at_once(
    transport: Transport,
    address: &Address,
    mode: TlsMode,
    tls: &ClientTls,
) -> Result<Transport, ConnectError> {
    let transport = shake_hands(transport, address, mode, tls).await?;
    if transport.alpn() == Some(tls::ALPN) {
        Ok(transport)
    } else {
        Err(ProtocolError::Alpn.into())
    }
}

async fn shake_hands(
    transport: Transport,
    address: &Address,
    mode: TlsMode,
    tls: &ClientTls,
) -> Result<Transport, ConnectError> {
    let config = tls.config(mode, address.root_cert.as_ref())?;
    transport
        .connect_tls(config, tls::server_name(&address.host)?)
        .await
        .map_err(ConnectError::Handshake)
}

async fn log_in(
    transport: &mut Transport,
    login: Login,
    packet: &[u8],
) -> Result<Established, Failure> {
    let asks = login.minor;
    let mut state = BackendStartup::new(login);
    let mut body = Vec::new();
    send(transport, packet).await?;
    let mut tag = match receive(transport, &mut body).await {
        Err(ConnectError::Unreachable(error))
            if asks > 0 && error.kind() == io::ErrorKind::UnexpectedEof =>
        {
            return Err(Failure::Version);
        }
        Ok(b'E') if asks > 0 && is_about_version(&body) => return Err(Failure::Version),
        first => first?,
    };
    loop {
        let handled = if takes_effort(tag, &body) {
            let message = std::mem::take(&mut body);
            let work = move || state.handle_message(tag, &message);
            aside(work).await.map_err(ConnectError::Unreachable)?
        } else {
            state.handle_message(tag, &body)
        };
        match handled.map_err(|error| ConnectError::from(ProtocolError::Startup(error)))? {
            Step::Continue(next, reply) => {
                state = next;
                if !reply.is_empty() {
                    send(transport, &reply).await?;
                }
            }
            Step::Ready(established) => return Ok(established),
            Step::Refused(body) => {
                return Err(ConnectError::Refused(ServerError { body }).into());
            }
        }
        tag = receive(transport, &mut body).await?;
    }
}

/// AuthenticationSASLContinue: the server says how often the password is to be hashed.
fn takes_effort(tag: u8, body: &[u8]) -> bool {
    tag == b'R' && body.starts_with(&[0, 0, 0, 11])
}

/// What servers from before version negotiation say, and poolers.
fn is_about_version(error: &[u8]) -> bool {
    matches!(notice::field(error, b'C'), Some(b"0A000" | b"08P01"))
}

async fn send(transport: &mut Transport, bytes: &[u8]) -> Result<(), ConnectError> {
    transport
        .write_all(bytes)
        .await
        .map_err(ConnectError::Unreachable)?;
    transport.flush().await.map_err(ConnectError::Unreachable)
}

/// Reads one message, no longer than libpq takes while starting.
async fn receive(transport: &mut Transport, body: &mut Vec<u8>) -> Result<u8, ConnectError> {
    let mut header = [0; HEADER];
    transport
        .read_exact(&mut header)
        .await
        .map_err(ConnectError::Unreachable)?;
    let found = frame::backend(&header).map_err(ProtocolError::Frame)?;
    let Some(found) = found.filter(|found| found.size <= BACKEND_SMALL as usize + 1) else {
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        return Err(ProtocolError::Frame(FrameError::Length {
            tag: header[0],
            length,
        })
        .into());
    };
    body.clear();
    body.resize(found.size - HEADER, 0);
    transport
        .read_exact(body)
        .await
        .map_err(ConnectError::Unreachable)?;
    Ok(found.tag)
}

#[cfg(test)]
mod tests;
