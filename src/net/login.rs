//! A client's login: encryption, startup packet, proof, database; all of it under one deadline. What
//! `protocol::client_startup` and `auth` decide is carried out here. Reads are exact, so no byte is read ahead
//! when encryption begins or the session takes over, and a stranger is given no more memory than his message needs.
//!
//! After AuthenticationOk the session speaks: ParameterStatus, BackendKeyData, ReadyForQuery, or an error.

use super::{tls::ServerTls, transport::Transport};
use crate::{
    auth::{
        Account, AuthError, Demand, Exchange, Fresh, Reply, Stored,
        md5,
        scram::{self, Verifier},
    },
    clock::Duration,
    config::settings::{ClientAuth, Secret, Settings, TlsMode, User},
    entropy,
    protocol::client_startup::{self, Channel, Entry, ExpectPacket, Refusal, Step, TlsOffer},
    wire::{
        frame::{self, HEADER},
        startup::{self, Setting},
    },
};
use std::{
    collections::HashMap,
    fmt, io,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Instant, timeout_at},
};

/// The database that is the console.
pub const CONSOLE: &str = "shardway";
/// How TLS's handshake record begins: TLS without an SSLRequest.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// What logins need to know: one for each version of the settings.
pub struct LoginContext {
    settings: Arc<Settings>,
    tls: Option<Arc<ServerTls>>,
    secret: [u8; 32],
    /// Of users whose password itself is configured: a verifier costs thousands of hashes.
    verifiers: Mutex<HashMap<String, Arc<Verifier>>>,
}

impl fmt::Debug for LoginContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoginContext(..)")
    }
}

impl LoginContext {
    /// `secret`: random bytes kept for the life of the process, so that salts stay the same over a reload.
    #[must_use]
    pub fn new(settings: Arc<Settings>, tls: Option<Arc<ServerTls>>, secret: [u8; 32]) -> Self {
        Self { settings, tls, secret, verifiers: Mutex::default() }
    }

    fn offer(&self, transport: &Transport) -> TlsOffer {
        match (transport, &self.tls, self.settings.server.tls.mode) {
            // As PostgreSQL: no encryption over Unix sockets, and none demanded.
            (Transport::Unix(_), _, _) | (_, _, TlsMode::Disable) | (_, None, TlsMode::Prefer) => TlsOffer::Off,
            (_, Some(_), TlsMode::Prefer) => TlsOffer::Offered,
            // Without an identity nobody can enter: better than in the clear.
            (_, _, TlsMode::Require | TlsMode::VerifyFull) => TlsOffer::Required,
        }
    }

    /// What a user must show. Who has no account is asked for what most are asked for.
    fn demand(&self, name: &[u8], user: Option<&User>) -> (Demand, Account) {
        let Some(user) = user else { return (self.mock(name), Account::Mock) };
        let demand = match &user.auth {
            ClientAuth::Trust => Demand::Nothing,
            ClientAuth::Password(secret) => Demand::Password(Stored::read(&secret.0)),
            ClientAuth::Md5(secret) => match Stored::read(&secret.0) {
                Stored::Plain(password) => Demand::Md5(md5::Hash::of(name, password.as_bytes())),
                Stored::Md5(hash) => Demand::Md5(hash),
                // As PostgreSQL's `md5` does with such a stored secret.
                Stored::Scram(verifier) => Demand::Scram(verifier),
            },
            ClientAuth::Scram(secret) => Demand::Scram(self.verifier(&user.name, secret)),
        };
        (demand, Account::Known)
    }

    fn mock(&self, name: &[u8]) -> Demand {
        let methods = || self.settings.users.values().map(|user| &user.auth);
        if methods().any(|auth| matches!(auth, ClientAuth::Scram(_))) {
            Demand::Scram(Arc::new(Verifier::mock(name, &self.secret)))
        } else if methods().any(|auth| matches!(auth, ClientAuth::Md5(_))) {
            Demand::Md5(md5::Hash::of(name, &self.secret))
        } else if methods().any(|auth| matches!(auth, ClientAuth::Password(_))) {
            Demand::Password(Stored::Plain(String::new()))
        } else {
            Demand::Scram(Arc::new(Verifier::mock(name, &self.secret)))
        }
    }

    fn verifier(&self, name: &str, secret: &Secret) -> Arc<Verifier> {
        if let Some(verifier) = Verifier::parse(&secret.0) {
            return Arc::new(verifier);
        }
        let kept = || self.verifiers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(verifier) = kept().get(name) {
            return Arc::clone(verifier);
        }
        let salt = scram::salt_for(name.as_bytes(), &self.secret);
        let verifier = Arc::new(Verifier::of(secret.0.as_bytes(), &salt, scram::ITERATIONS));
        kept().insert(name.to_owned(), Arc::clone(&verifier));
        verifier
    }

    /// The database's name, when it exists and the user may use it.
    fn admit(&self, user: &User, database: Vec<u8>) -> Result<String, Refusal> {
        let name = match String::from_utf8(database) {
            Ok(name) => name,
            Err(error) => return Err(Refusal::NoDatabase { database: error.into_bytes() }),
        };
        let database = || name.clone().into_bytes();
        if name == CONSOLE && !self.settings.databases.contains_key(CONSOLE) {
            return if user.console.is_some() { Ok(name) } else { Err(Refusal::Forbidden { database: database() }) };
        }
        if !self.settings.databases.contains_key(&name) && self.settings.wildcard.is_none() {
            return Err(Refusal::NoDatabase { database: database() });
        }
        if !user.databases.is_empty() && !user.databases.contains(&name) {
            return Err(Refusal::Forbidden { database: database() });
        }
        Ok(name)
    }
}

/// What became of a login.
#[derive(Debug)]
pub enum Login {
    Session(Session),
    Cancel {
        pid: u32,
        key: Vec<u8>,
        /// To be closed when the request has been carried out.
        transport: Transport,
    },
    /// The client left, perhaps to come back with a password.
    Closed,
}

/// A client that has shown who he is: AuthenticationOk is sent, nothing else, and nothing of him is read ahead.
#[derive(Debug)]
pub struct Session {
    pub transport: Transport,
    pub user: Arc<User>,
    /// A configured database, one of the wildcard, or the console.
    pub database: String,
    /// Settings in the order of their effect, later ones win.
    pub parameters: Vec<Setting>,
    /// The minor version of protocol 3 agreed on.
    pub minor: u16,
}

/// Why nobody entered. The client has been told what it may know.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    Refused(Refusal),
}

/// How far a packet or message could be read.
enum Received<T> {
    Whole(T),
    Closed,
}

/// What the first packets led to.
enum Opened {
    Enter(Transport, Entry),
    Refused(Transport, Refusal),
    Over(Login),
}

/// Logs a client in, within the settings' `login_timeout`.
///
/// # Errors
/// [`LoginError`]: the connection is closed.
pub async fn login(transport: Transport, context: &LoginContext) -> Result<Login, LoginError> {
    let deadline = Instant::now() + context.settings.server.login_timeout;
    // PostgreSQL says nothing either to who does not send a startup packet in time.
    let opened = match timeout_at(deadline, open(transport, context)).await {
        Ok(opened) => opened?,
        Err(_elapsed) => return Err(LoginError::Refused(Refusal::Timeout)),
    };
    let (mut transport, entry) = match opened {
        Opened::Enter(transport, entry) => (transport, entry),
        Opened::Refused(transport, refusal) => return Err(refuse(transport, refusal).await),
        Opened::Over(login) => return Ok(login),
    };
    let entered = timeout_at(deadline, enter(&mut transport, &entry, context)).await;
    match entered.unwrap_or(Err(LoginError::Refused(Refusal::Timeout))) {
        Ok(Received::Whole((user, database))) => {
            let Entry { minor, settings, .. } = entry;
            Ok(Login::Session(Session { transport, user, database, parameters: settings, minor }))
        }
        Ok(Received::Closed) => Ok(Login::Closed),
        Err(LoginError::Refused(refusal)) => Err(refuse(transport, refusal).await),
        Err(error @ (LoginError::Io(_) | LoginError::Tls(_))) => Err(error),
    }
}

/// Encryption and the startup packet.
async fn open(mut transport: Transport, context: &LoginContext) -> Result<Opened, LoginError> {
    let offer = context.offer(&transport);
    let mut state = ExpectPacket::new(offer, Channel::Plain);
    if let (Transport::Tcp(stream), Some(tls)) = (&transport, &context.tls)
        && offer != TlsOffer::Off
    {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE {
            transport = transport.accept_tls(tls.config()).await.map_err(LoginError::Tls)?;
            if transport.alpn().is_none() {
                return Ok(Opened::Refused(transport, Refusal::Alpn));
            }
            state = ExpectPacket::new(offer, Channel::Encrypted);
        }
    }
    loop {
        let packet = match read_packet(&mut transport).await? {
            Ok(Received::Whole(packet)) => packet,
            Ok(Received::Closed) => return Ok(Opened::Over(Login::Closed)),
            Err(refusal) => return Ok(Opened::Refused(transport, refusal)),
        };
        match state.handle_packet(&packet) {
            Ok(Step::Answer(answer, next)) => {
                if !transport.is_encrypted() && transport.has_plain_bytes()? {
                    return Ok(Opened::Refused(transport, Refusal::UnencryptedData));
                }
                transport.write_all(&[answer]).await?;
                transport.flush().await?;
                state = next;
            }
            Ok(Step::Handshake(next)) => {
                if transport.has_plain_bytes()? {
                    return Ok(Opened::Refused(transport, Refusal::UnencryptedData));
                }
                let Some(tls) = &context.tls else {
                    return Err(LoginError::Tls(io::ErrorKind::Unsupported.into()));
                };
                transport.write_all(b"S").await?;
                transport = transport.accept_tls(tls.config()).await.map_err(LoginError::Tls)?;
                state = next;
            }
            Ok(Step::Cancel { pid, key }) => return Ok(Opened::Over(Login::Cancel { pid, key, transport })),
            Ok(Step::Enter(entry)) => return Ok(Opened::Enter(transport, entry)),
            Err(refusal) => return Ok(Opened::Refused(transport, refusal)),
        }
    }
}

/// The proof, then the database.
async fn enter(
    transport: &mut Transport,
    entry: &Entry,
    context: &LoginContext,
) -> Result<Received<(Arc<User>, String)>, LoginError> {
    let user = std::str::from_utf8(&entry.user).ok().and_then(|name| context.settings.users.get(name));
    let (demand, account) = context.demand(&entry.user, user.map(Arc::as_ref));
    let mut out = entry.negotiation.clone();
    let fresh = Fresh { salt: entropy::bytes(), nonce: entropy::bytes() };
    let mut proof = None;
    if let Some((mut exchange, ask)) = Exchange::begin(&entry.user, demand, account, fresh) {
        client_startup::put_ask(&mut out, ask);
        proof = loop {
            transport.write_all(&out).await?;
            transport.flush().await?;
            out.clear();
            let Received::Whole(body) = read_message(transport).await? else { return Ok(Received::Closed) };
            match exchange.handle_message(&body) {
                Ok(Reply::Continue(next, data)) => {
                    client_startup::put_continue(&mut out, data);
                    exchange = next;
                }
                Ok(Reply::Accepted(data)) => break data,
                Err(AuthError::Wrong) => {
                    return Err(LoginError::Refused(Refusal::Password { user: entry.user.clone() }));
                }
                Err(error) => return Err(LoginError::Refused(Refusal::Authentication(error))),
            }
        };
    }
    // Nobody without an account comes this far: their exchange fails.
    let Some(user) = user else {
        return Err(LoginError::Refused(Refusal::Password { user: entry.user.clone() }));
    };
    client_startup::put_accepted(&mut out, proof);
    transport.write_all(&out).await?;
    transport.flush().await?;
    let database = context.admit(user, entry.database.clone()).map_err(LoginError::Refused)?;
    Ok(Received::Whole((Arc::clone(user), database)))
}

/// A startup packet without its length word.
async fn read_packet(transport: &mut Transport) -> io::Result<Result<Received<Vec<u8>>, Refusal>> {
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
async fn read_message(transport: &mut Transport) -> Result<Received<Vec<u8>>, LoginError> {
    let mut header = [0; HEADER];
    if let Received::Closed = read_exact(transport, &mut header).await? {
        return Ok(Received::Closed);
    }
    let found = frame::authentication(&header).map_err(|error| LoginError::Refused(Refusal::Frame(error)))?;
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

/// Tells the client why, as far as it may know, and closes.
async fn refuse(mut transport: Transport, refusal: Refusal) -> LoginError {
    if let Some(notice) = client_startup::refusal(&refusal) {
        let mut out = Vec::new();
        notice.put(&mut out);
        let farewell = async {
            transport.write_all(&out).await?;
            transport.flush().await?;
            transport.shutdown().await
        };
        // Whether it arrives changes nothing: the client is refused.
        let _told = timeout_at(Instant::now() + FAREWELL, farewell).await;
    }
    LoginError::Refused(refusal)
}
