//! A client's login: encryption, startup packet, proof, database; all of it under one deadline. What
//! `protocol::client_startup` and `auth` decide is carried out here. Reads are exact, so no byte is read ahead
//! when encryption begins or the session takes over, and a stranger is given no more memory than his message needs.
//!
//! After AuthenticationOk the session speaks: ParameterStatus, BackendKeyData, ReadyForQuery, or an error.

use super::{tls::ServerTls, transport::Transport};
use crate::{
    auth::{
        Account, AuthError, Demand, Exchange, Fresh, Reply, Stored, md5,
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
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt, io,
    pin::{Pin, pin},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    time::{Sleep, sleep, timeout},
};

/// The database that is the console.
pub const CONSOLE: &str = "shardway";
/// How TLS's handshake record begins: TLS without an SSLRequest.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// What logins need to know: one for each version of the settings.
pub struct LoginContext {
    users: BTreeMap<String, Arc<User>>,
    databases: BTreeSet<String>,
    others: Others,
    mode: TlsMode,
    timeout: Duration,
    tls: Option<Arc<ServerTls>>,
    secret: [u8; 32],
    /// Of users whose password itself is configured: a verifier costs thousands of hashes.
    verifiers: Mutex<HashMap<String, Arc<Verifier>>>,
}

/// Databases that are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Others {
    Unknown,
    Wildcard,
}

impl fmt::Debug for LoginContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoginContext(..)")
    }
}

impl LoginContext {
    /// `secret`: random bytes kept for the life of the process, so that salts stay the same over a reload.
    #[must_use]
    pub fn new(settings: &Settings, tls: Option<Arc<ServerTls>>, secret: [u8; 32]) -> Self {
        let others = if settings.wildcard.is_some() {
            Others::Wildcard
        } else {
            Others::Unknown
        };
        Self {
            users: settings.users.clone(),
            databases: settings.databases.keys().cloned().collect(),
            others,
            mode: settings.server.tls.mode,
            timeout: settings.server.login_timeout,
            tls,
            secret,
            verifiers: Mutex::default(),
        }
    }

    fn offer(&self, transport: &Transport) -> TlsOffer {
        match (transport, &self.tls, self.mode) {
            // As PostgreSQL: no encryption over Unix sockets, and none demanded.
            (Transport::Unix(_), _, _) | (_, _, TlsMode::Disable) | (_, None, TlsMode::Prefer) => {
                TlsOffer::Off
            }
            (_, Some(_), TlsMode::Prefer) => TlsOffer::Offered,
            // Without an identity nobody can enter: better than in the clear.
            (_, _, TlsMode::Require | TlsMode::VerifyFull) => TlsOffer::Required,
        }
    }

    /// What a user must show. Who has no account is asked for what most are asked for.
    fn demand(&self, name: &[u8], user: Option<&User>) -> (Demand, Account) {
        let Some(user) = user else {
            return (self.mock(name), Account::Mock);
        };
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
        let methods = || self.users.values().map(|user| &user.auth);
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
        let kept = || {
            self.verifiers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
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
            Err(error) => {
                return Err(Refusal::NoDatabase {
                    database: error.into_bytes(),
                });
            }
        };
        let database = || name.clone().into_bytes();
        if name == CONSOLE && !self.databases.contains(CONSOLE) {
            return if user.console.is_some() {
                Ok(name)
            } else {
                Err(Refusal::Forbidden {
                    database: database(),
                })
            };
        }
        if !self.databases.contains(&name) && self.others == Others::Unknown {
            return Err(Refusal::NoDatabase {
                database: database(),
            });
        }
        if !user.databases.is_empty() && !user.databases.contains(&name) {
            return Err(Refusal::Forbidden {
                database: database(),
            });
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
    let mut deadline = pin!(sleep(context.timeout));
    // PostgreSQL says nothing either to who does not send a startup packet in time.
    let opened = match before(deadline.as_mut(), open(transport, context)).await {
        Some(opened) => opened?,
        None => return Err(LoginError::Refused(Refusal::Timeout)),
    };
    let (mut transport, entry) = match opened {
        Opened::Enter(transport, entry) => (transport, entry),
        Opened::Refused(transport, refusal) => return Err(refuse(transport, refusal).await),
        Opened::Over(login) => return Ok(login),
    };
    let entered = before(deadline, enter(&mut transport, &entry, context)).await;
    match entered.unwrap_or(Err(LoginError::Refused(Refusal::Timeout))) {
        Ok(Received::Whole((user, database))) => {
            let Entry {
                minor, settings, ..
            } = entry;
            Ok(Login::Session(Session {
                transport,
                user,
                database,
                parameters: settings,
                minor,
            }))
        }
        Ok(Received::Closed) => Ok(Login::Closed),
        Err(LoginError::Refused(refusal)) => Err(refuse(transport, refusal).await),
        Err(error @ (LoginError::Io(_) | LoginError::Tls(_))) => Err(error),
    }
}

/// What `work` gives, unless the deadline comes first.
async fn before<T>(deadline: Pin<&mut Sleep>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = deadline => None,
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
            transport = transport
                .accept_tls(tls.config())
                .await
                .map_err(LoginError::Tls)?;
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
                transport = transport
                    .accept_tls(tls.config())
                    .await
                    .map_err(LoginError::Tls)?;
                state = next;
            }
            Ok(Step::Cancel { pid, key }) => {
                return Ok(Opened::Over(Login::Cancel {
                    pid,
                    key,
                    transport,
                }));
            }
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
    let user = std::str::from_utf8(&entry.user)
        .ok()
        .and_then(|name| context.users.get(name));
    let (demand, account) = context.demand(&entry.user, user.map(Arc::as_ref));
    let mut out = entry.negotiation.clone();
    let fresh = Fresh {
        salt: entropy::bytes(),
        nonce: entropy::bytes(),
    };
    let mut proof = None;
    if let Some((mut exchange, ask)) = Exchange::begin(&entry.user, demand, account, fresh) {
        client_startup::put_ask(&mut out, ask);
        proof = loop {
            transport.write_all(&out).await?;
            transport.flush().await?;
            out.clear();
            let Received::Whole(body) = read_message(transport).await? else {
                return Ok(Received::Closed);
            };
            match exchange.handle_message(&body) {
                Ok(Reply::Continue(next, data)) => {
                    client_startup::put_continue(&mut out, data);
                    exchange = next;
                }
                Ok(Reply::Accepted(data, _)) => break data,
                Err(AuthError::Wrong) => {
                    return Err(LoginError::Refused(Refusal::Password {
                        user: entry.user.clone(),
                    }));
                }
                Err(error) => return Err(LoginError::Refused(Refusal::Authentication(error))),
            }
        };
    }
    // Nobody without an account comes this far: their exchange fails.
    let Some(user) = user else {
        return Err(LoginError::Refused(Refusal::Password {
            user: entry.user.clone(),
        }));
    };
    client_startup::put_accepted(&mut out, proof);
    transport.write_all(&out).await?;
    transport.flush().await?;
    let database = context
        .admit(user, entry.database.clone())
        .map_err(LoginError::Refused)?;
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
        let _told = timeout(FAREWELL, farewell).await;
    }
    LoginError::Refused(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::settings::{ConsoleRole, Listen},
        net::{
            listen::{Listener, PortSharing},
            testing::{self, Certificates, Directory, credentials, program},
            tls::ClientTls,
        },
        wire::{backend, frontend, notice},
    };
    use rustls_pki_types::ServerName;
    use std::net::SocketAddr;
    use tokio::{net::TcpStream, process::Command, sync::mpsc};

    const PASSWORD: &str = "p\u{e4}ss wort";
    const PATIENCE: Duration = Duration::from_secs(20);

    fn context(mode: TlsMode, certificates: &Certificates) -> LoginContext {
        let secret = || Secret(PASSWORD.into());
        let verifier = Verifier::of(PASSWORD.as_bytes(), b"0123456789abcdef", 4096).text();
        let users = [
            ("trusted", ClientAuth::Trust),
            ("plain", ClientAuth::Password(secret())),
            ("hashed", ClientAuth::Md5(secret())),
            ("scrammed", ClientAuth::Scram(secret())),
            ("stored", ClientAuth::Scram(Secret(verifier))),
            ("limited", ClientAuth::Trust),
            ("ops", ClientAuth::Trust),
        ];
        let user = |(name, auth): (&str, ClientAuth)| User {
            name: name.into(),
            auth,
            backend: credentials(name, None),
            databases: if name == "limited" {
                vec!["other".into()]
            } else {
                Vec::new()
            },
            console: (name == "ops").then_some(ConsoleRole::Admin),
            pool_mode: None,
            pool_size: None,
        };
        LoginContext {
            users: users
                .map(|given| (given.0.to_owned(), Arc::new(user(given))))
                .into(),
            databases: ["app", "other"].map(str::to_owned).into(),
            others: Others::Unknown,
            mode,
            timeout: PATIENCE,
            tls: Some(Arc::new(ServerTls::new(&certificates.identity).unwrap())),
            secret: [5; 32],
            verifiers: Mutex::default(),
        }
    }

    /// Serves logins; what became of each comes out of the channel. Sessions answer every query with nothing.
    fn serve(
        context: Arc<LoginContext>,
        listen: &Listen,
    ) -> (Listen, mpsc::UnboundedReceiver<String>) {
        let listener = Listener::bind(listen, PortSharing::Exclusive).unwrap();
        let (sender, receiver) = mpsc::unbounded_channel();
        let address = listener.address().unwrap();
        #[expect(
            clippy::disallowed_methods,
            reason = "a test's server ends with its runtime"
        )]
        tokio::spawn(async move {
            loop {
                let (transport, context, sender) = (
                    listener.accept().await.unwrap(),
                    context.clone(),
                    sender.clone(),
                );
                tokio::spawn(async move {
                    let outcome = match login(transport, &context).await {
                        Ok(Login::Session(session)) => {
                            sender
                                .send(format!("{} in {}", session.user.name, session.database))
                                .unwrap();
                            return converse(session.transport).await;
                        }
                        Ok(Login::Cancel { pid, key, .. }) => format!("cancel {pid} {}", key.len()),
                        Ok(Login::Closed) => "closed".into(),
                        Err(error) => error.to_string(),
                    };
                    // A test that ends early no longer listens.
                    let _heard = sender.send(outcome);
                });
            }
        });
        (address, receiver)
    }

    async fn converse(mut transport: Transport) {
        let mut out = Vec::new();
        backend::put_parameter_status(&mut out, b"client_encoding", b"UTF8");
        frontend::put(&mut out, b'K', |out| {
            out.extend_from_slice(&[0, 0, 0, 1, 1, 2, 3, 4]);
        });
        loop {
            backend::put_ready(&mut out, backend::Status::Idle);
            transport.write_all(&out).await.unwrap();
            let mut header = [0; HEADER];
            if transport.read_exact(&mut header).await.is_err() || header[0] != b'Q' {
                return;
            }
            let size = frame::frontend(&header).unwrap().unwrap().size;
            transport
                .read_exact(&mut vec![0; size - HEADER])
                .await
                .unwrap();
            out.clear();
            frontend::put_bare(&mut out, b'I');
        }
    }

    fn tcp(context: LoginContext) -> (SocketAddr, mpsc::UnboundedReceiver<String>) {
        let (address, logins) = serve(
            Arc::new(context),
            &Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0))),
        );
        let Listen::Tcp(address) = address else {
            panic!()
        };
        (address, logins)
    }

    /// What psql says on standard error: nothing when it got in.
    async fn psql(connection: &str, password: &str) -> String {
        let mut command = Command::new(program("psql"));
        command
            .args(["-Xw", connection, "-c", "select"])
            .env("PGPASSWORD", password)
            .kill_on_drop(true);
        let output = command.output().await.unwrap();
        let words = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), words.is_empty(), "{words}");
        words
    }

    #[tokio::test]
    async fn psql_enters_with_every_method_and_every_kind_of_encryption() {
        let certificates = testing::certificates();
        let directory = Directory::new();
        let authority = directory.0.join("authority");
        std::fs::write(&authority, &*certificates.authority).unwrap();
        let (address, mut logins) = tcp(context(TlsMode::Prefer, &certificates));
        let port = address.port();
        for user in ["trusted", "plain", "hashed", "scrammed", "stored"] {
            for tls in ["disable", "prefer", "require", "verify-full"] {
                let connection = format!(
                    "host=localhost hostaddr=127.0.0.1 port={port} dbname=app user={user} sslmode={tls} \
                     sslrootcert={}",
                    authority.display()
                );
                assert_eq!(psql(&connection, PASSWORD).await, "", "{connection}");
                assert_eq!(logins.recv().await.unwrap(), format!("{user} in app"));
            }
            let client = format!(
                "host=127.0.0.1 port={port} dbname=other user={user} password='{PASSWORD}'"
            );
            let (_client, connection) = tokio_postgres::connect(&client, tokio_postgres::NoTls)
                .await
                .unwrap();
            assert_eq!(logins.recv().await.unwrap(), format!("{user} in other"));
            drop(connection);
        }
    }

    #[tokio::test]
    async fn nobody_learns_whether_a_user_exists() {
        let (address, mut logins) = tcp(context(TlsMode::Prefer, &testing::certificates()));
        for user in [
            "plain",
            "hashed",
            "scrammed",
            "stored",
            "nobody",
            "p\u{e4}ul",
        ] {
            for tls in ["disable", "require"] {
                let connection = format!(
                    "host=127.0.0.1 port={} dbname=nothing user={user} sslmode={tls}",
                    address.port()
                );
                let words = psql(&connection, "wrong").await;
                let expected =
                    format!("FATAL:  password authentication failed for user \"{user}\"\n");
                assert!(words.ends_with(&expected), "{words}");
                assert_eq!(logins.recv().await.unwrap(), "authentication failed");
            }
        }
    }

    #[tokio::test]
    async fn databases_are_open_to_whom_they_are_given() {
        let (address, _logins) = tcp(context(TlsMode::Disable, &testing::certificates()));
        for (user, database, expected) in [
            ("trusted", "app", None),
            ("limited", "other", None),
            ("ops", CONSOLE, None),
            (
                "trusted",
                "nothing",
                Some("database \"nothing\" does not exist"),
            ),
            (
                "limited",
                "nothing",
                Some("database \"nothing\" does not exist"),
            ),
            (
                "limited",
                "app",
                Some("permission denied for database \"app\""),
            ),
            (
                "trusted",
                CONSOLE,
                Some("permission denied for database \"shardway\""),
            ),
        ] {
            let connection = format!(
                "host=127.0.0.1 port={} dbname={database} user={user}",
                address.port()
            );
            let words = psql(&connection, "").await;
            match expected {
                None => assert_eq!(words, ""),
                Some(expected) => {
                    assert!(words.contains(&format!("FATAL:  {expected}\n")), "{words}");
                }
            }
        }
    }

    #[tokio::test]
    async fn required_tls_is_demanded_over_tcp_but_not_of_a_local_socket() {
        let certificates = testing::certificates();
        let (address, _logins) = tcp(context(TlsMode::Require, &certificates));
        let connection = |tls| {
            format!(
                "host=127.0.0.1 port={} dbname=app user=scrammed sslmode={tls}",
                address.port()
            )
        };
        assert_eq!(psql(&connection("prefer"), PASSWORD).await, "");
        let words = psql(&connection("disable"), PASSWORD).await;
        assert!(
            words.contains(
                "connection refused for user \"scrammed\", database \"app\", no encryption"
            ),
            "{words}"
        );
        let directory = Directory::new();
        let listen = Listen::Unix(directory.0.join(".s.PGSQL.6432"));
        let (_, _logins) = serve(Arc::new(context(TlsMode::Require, &certificates)), &listen);
        let connection = format!(
            "host={} port=6432 dbname=app user=scrammed",
            directory.0.display()
        );
        assert_eq!(psql(&connection, PASSWORD).await, "");
    }

    #[tokio::test]
    async fn tls_may_begin_without_a_request_when_it_names_the_protocol() {
        let certificates = testing::certificates();
        let (address, mut logins) = tcp(context(TlsMode::Require, &certificates));
        let named = ClientTls::new()
            .unwrap()
            .config(TlsMode::VerifyFull, Some(&certificates.authority))
            .unwrap();
        let mut unnamed = (*named).clone();
        unnamed.alpn_protocols.clear();
        for (config, expected) in [
            (named, "trusted in app"),
            (Arc::new(unnamed), "TLS without the protocol's name in ALPN"),
        ] {
            let transport = Transport::tcp(TcpStream::connect(address).await.unwrap()).unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            let mut transport = transport.connect_tls(config, name).await.unwrap();
            transport
                .write_all(&startup_packet(&[
                    (b"user", b"trusted"),
                    (b"database", b"app"),
                ]))
                .await
                .unwrap();
            assert_eq!(logins.recv().await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn a_replaced_certificate_is_used_from_the_next_handshake_on() {
        let (first, second) = (testing::certificates(), testing::certificates());
        let context = context(TlsMode::Require, &first);
        let tls = context.tls.clone().unwrap();
        let (address, _logins) = tcp(context);
        let handshake = async |trusted: &Certificates| {
            let config = ClientTls::new()
                .unwrap()
                .config(TlsMode::VerifyFull, Some(&trusted.authority))
                .unwrap();
            let transport = Transport::tcp(TcpStream::connect(address).await.unwrap()).unwrap();
            transport
                .connect_tls(config, ServerName::try_from("localhost").unwrap())
                .await
                .is_ok()
        };
        assert!(handshake(&first).await);
        tls.replace(&second.identity).unwrap();
        assert!(!handshake(&first).await);
        assert!(handshake(&second).await);
        let broken = crate::config::settings::TlsIdentity {
            cert_pem: first.identity.cert_pem.clone(),
            ..second.identity.clone()
        };
        tls.replace(&broken).unwrap_err();
        assert!(
            handshake(&second).await,
            "an identity that does not fit changes nothing"
        );
    }

    fn startup_packet(pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        startup::put_message(&mut out, 0, pairs);
        out
    }

    /// Sends bytes, then says how the login ended and what SQLSTATE came back.
    async fn send_raw(bytes: &[u8], mode: TlsMode, timeout: Duration) -> (String, Option<String>) {
        let mut context = context(mode, &testing::certificates());
        context.timeout = timeout;
        let (address, mut logins) = tcp(context);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let outcome = logins.recv().await.unwrap();
        let mut answer = Vec::new();
        // A reset after the answer takes nothing away from it.
        let _reset = stream.read_to_end(&mut answer).await;
        let at = answer.iter().position(|byte| *byte == b'E');
        let sqlstate = at.and_then(|at| notice::field(&answer[at + HEADER..], b'C'));
        (
            outcome,
            sqlstate.map(|code| String::from_utf8(code.to_vec()).unwrap()),
        )
    }

    async fn check_raw(bytes: &[u8], mode: TlsMode, outcome: &str, sqlstate: Option<&str>) {
        let told = send_raw(bytes, mode, PATIENCE).await;
        assert_eq!(
            (&told.0[..], told.1.as_deref()),
            (outcome, sqlstate),
            "{bytes:?}"
        );
    }

    #[tokio::test]
    async fn what_follows_a_request_for_encryption_in_the_clear_is_never_read() {
        let plain = startup_packet(&[(b"user", b"plain"), (b"database", b"app")]);
        let ssl = [&[0, 0, 0, 8, 4, 210, 22, 47][..], &plain].concat();
        let gss = [&[0, 0, 0, 8, 4, 210, 22, 48][..], &plain].concat();
        let outcome = "unencrypted data followed a request for encryption";
        check_raw(&ssl, TlsMode::Prefer, outcome, Some("08P01")).await;
        check_raw(&ssl, TlsMode::Disable, outcome, Some("08P01")).await;
        check_raw(&gss, TlsMode::Prefer, outcome, Some("08P01")).await;
    }

    #[tokio::test]
    async fn malformed_startup_packets_are_answered_or_left() {
        let length = "invalid length of startup packet";
        let layout = "invalid startup packet layout";
        let mut cancel = Vec::new();
        startup::put_cancel_request(&mut cancel, 7, &[1; 256]);
        for (bytes, outcome, sqlstate) in [
            (&[0xff; 8][..], length, None),
            (&[0, 0, 0, 7, 0], length, None),
            (&[0, 0, 0x27, 0x11, 0], length, None),
            (&[0x16, 3, 1, 0, 1, 9], length, None),
            (&[0, 0, 0, 9, 0, 3, 0, 0, 1], layout, Some("08P01")),
            (
                &[0, 0, 0, 8, 0, 2, 0, 0],
                "unsupported frontend protocol 2.0",
                Some("0A000"),
            ),
            (&[0, 0, 0, 9, 0, 3, 0, 0, 0], "no user named", Some("28000")),
            (&cancel, "cancel 7 256", None),
        ] {
            check_raw(bytes, TlsMode::Disable, outcome, sqlstate).await;
        }
    }

    #[tokio::test]
    async fn malformed_proofs_are_answered() {
        let unexpected = "a message other than the expected password or SASL response";
        for (user, message, outcome, sqlstate) in [
            (
                "plain",
                &b"p\0\x01\0\0"[..],
                &format!("{unexpected}: invalid length 65536 of message type 112")[..],
                "08P01",
            ),
            (
                "plain",
                b"Q\0\0\0\x05\0",
                &format!("{unexpected}: invalid message type 81"),
                "08P01",
            ),
            (
                "plain",
                b"p\0\0\0\x04",
                "invalid authentication message",
                "08P01",
            ),
            ("plain", b"p\0\0\0\x05\0", "authentication failed", "28P01"),
            (
                "scrammed",
                b"p\0\0\0\x06x\0",
                "the client selected an unknown SASL mechanism",
                "08P01",
            ),
        ] {
            let startup = startup_packet(&[(b"user", user.as_bytes()), (b"database", b"app")]);
            check_raw(
                &[&startup[..], message].concat(),
                TlsMode::Disable,
                outcome,
                Some(sqlstate),
            )
            .await;
        }
    }

    #[tokio::test]
    async fn a_slow_login_ends_at_its_deadline_whatever_it_waits_for() {
        let plain = startup_packet(&[(b"user", b"plain"), (b"database", b"app")]);
        for (bytes, sqlstate) in [
            (&b""[..], None),
            (&plain[..7], None),
            (&[0, 0, 0, 8, 4, 210, 22, 47], None),
            (&plain[..], Some("57014")),
            (&[&plain[..], b"p\0\0\0\x09abc"].concat(), Some("57014")),
        ] {
            let told = send_raw(bytes, TlsMode::Prefer, Duration::from_millis(30)).await;
            assert_eq!(
                (&told.0[..], told.1.as_deref()),
                ("the login took too long", sqlstate),
                "{bytes:?}"
            );
        }
    }

    #[tokio::test]
    async fn a_client_that_leaves_is_no_error() {
        let plain = startup_packet(&[(b"user", b"plain"), (b"database", b"app")]);
        for count in [0, 3, 10, plain.len()] {
            let (address, mut logins) = tcp(context(TlsMode::Disable, &testing::certificates()));
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(&plain[..count]).await.unwrap();
            stream.shutdown().await.unwrap();
            assert_eq!(logins.recv().await.unwrap(), "closed");
        }
    }

    #[tokio::test]
    async fn a_long_password_that_comes_byte_by_byte_is_read_whole() {
        let long = "x".repeat(65_000);
        let mut context = context(TlsMode::Disable, &testing::certificates());
        let mut user = (**context.users.get("plain").unwrap()).clone();
        user.auth = ClientAuth::Password(Secret(long.clone()));
        context.users.insert("plain".into(), Arc::new(user));
        let (address, mut logins) = tcp(context);
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut bytes = startup_packet(&[(b"user", b"plain"), (b"database", b"app")]);
        let slow = bytes.len() + 100;
        frontend::put(&mut bytes, b'p', |out| {
            out.extend([long.as_bytes(), b"\0"].concat());
        });
        for byte in &bytes[..slow] {
            stream.write_all(&[*byte]).await.unwrap();
        }
        stream.write_all(&bytes[slow..]).await.unwrap();
        assert_eq!(logins.recv().await.unwrap(), "plain in app");
    }
}
