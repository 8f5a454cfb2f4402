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
    protocol::backend_startup::{
        BackendStartup, BackendStartupError, Established, Parameter, Step,
    },
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

/// Whom to call, and how.
#[derive(Clone, Copy)]
struct Call<'a> {
    address: &'a Address,
    tls: &'a ClientTls,
    timeout: Duration,
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
    let mut pairs = vec![
        (&b"user"[..], credentials.user.as_bytes()),
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
    startup::put_message(&mut packet, 0, &pairs);
    let call = Call {
        address,
        tls,
        timeout,
    };
    within(timeout, open(call, credentials, &packet))
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

/// With `prefer`, a server that refuses the encrypted connection is asked once more without, as libpq does.
async fn open(
    call: Call<'_>,
    credentials: &Credentials,
    packet: &[u8],
) -> Result<Connected, ConnectError> {
    let mode = call.address.tls;
    let first = attempt(call, mode, credentials, packet).await;
    match &first {
        Err(ConnectError::Handshake(_)) if mode == TlsMode::Prefer => {}
        Err(ConnectError::Refused(error))
            if mode == TlsMode::Prefer && error.sqlstate() == Some(b"28000") => {}
        Ok(_) | Err(_) => return first,
    }
    match attempt(call, TlsMode::Disable, credentials, packet).await {
        Ok(connected) => Ok(connected),
        // The first answer says more.
        Err(_) => first,
    }
}

async fn attempt(
    call: Call<'_>,
    mode: TlsMode,
    credentials: &Credentials,
    packet: &[u8],
) -> Result<Connected, ConnectError> {
    let mut transport = reach(call, mode).await?;
    let established = log_in(&mut transport, credentials, packet).await?;
    let Established {
        pid,
        key,
        parameters,
    } = established;
    Ok(Connected {
        transport,
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
            encrypt(transport, address, mode, tls).await
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
        (b'S', _) => {
            let config = tls.config(mode, address.root_cert.as_ref())?;
            transport
                .connect_tls(config, tls::server_name(&address.host)?)
                .await
                .map_err(ConnectError::Handshake)
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
    let password = credentials
        .password
        .as_ref()
        .map(|secret| secret.0.as_str());
    let mut state = BackendStartup::new(&credentials.user, password, entropy::bytes());
    let mut body = Vec::new();
    send(transport, packet).await?;
    loop {
        let tag = receive(transport, &mut body).await?;
        match state
            .handle_message(tag, &body)
            .map_err(ProtocolError::Startup)?
        {
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
mod tests {
    use super::*;
    use crate::net::{
        testing::{self, Server, credentials},
        transport::Disturbance,
    };
    use std::{future::poll_fn, task::Poll};
    use tokio::net::TcpListener;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn connect_as(
        address: &Address,
        user: &str,
        password: Option<&str>,
    ) -> Result<Connected, ConnectError> {
        let tls = ClientTls::new().unwrap();
        connect(
            address,
            "postgres",
            &credentials(user, password),
            &[("application_name", "it's me")],
            PATIENCE,
            &tls,
        )
        .await
    }

    /// Runs a query by hand and gives its first column: the connection is ready and nothing is left over.
    async fn ask(connected: &mut Connected, sql: &str) -> String {
        let mut out = Vec::new();
        crate::wire::frontend::put_query(&mut out, sql.as_bytes());
        send(&mut connected.transport, &out).await.unwrap();
        let (mut body, mut answer) = (Vec::new(), String::new());
        loop {
            match receive(&mut connected.transport, &mut body).await.unwrap() {
                b'D' => answer = String::from_utf8(body[6..].to_vec()).unwrap(),
                b'E' => panic!("{}", String::from_utf8_lossy(&body)),
                b'Z' => return answer,
                _ => {}
            }
        }
    }

    async fn is_disturbed(transport: &mut Transport) -> bool {
        poll_fn(|cx| Poll::Ready(transport.poll_disturbed(cx).is_ready())).await
    }

    #[test]
    fn a_connection_may_be_opened_on_any_thread() {
        fn check<F: Future + Send>(
            _: impl FnOnce(&'static Address, &'static Credentials, &'static ClientTls) -> F,
        ) {
        }
        check(|address, credentials, tls| connect(address, "", credentials, &[], PATIENCE, tls));
        check(|address, _, tls| cancel(address, 0, &[], PATIENCE, tls));
    }

    #[tokio::test]
    async fn backends_are_opened_with_every_method_that_the_server_asks_for() {
        let server = Server::start(
            "host all trusted all trust\nhost all plain all password\nhost all hashed all md5\n\
             host all scrammed all scram-sha-256\nlocal all scrammed scram-sha-256\nhost all peered all ident",
            None,
        );
        server.run(
            "create role trusted login; create role peered login;
             create role plain login password 'plain secret';
             set password_encryption = 'md5'; create role hashed login password 'hashed secret';
             set password_encryption = 'scram-sha-256'; create role scrammed login password U&'p\\00aass \\2168'",
        );
        let tcp = server.tcp("127.0.0.1", TlsMode::Prefer, None);
        for (address, user, password) in [
            (&tcp, "trusted", None),
            (&tcp, "plain", Some("plain secret")),
            (&tcp, "hashed", Some("hashed secret")),
            (&tcp, "scrammed", Some("p\u{aa}ss \u{2168}")),
            (&server.unix(), "scrammed", Some("pass IX")),
        ] {
            let mut connected = connect_as(address, user, password).await.unwrap();
            assert!(
                !is_disturbed(&mut connected.transport).await,
                "{user}: nothing may be left to read"
            );
            let asked = ask(
                &mut connected,
                "select current_user || ' ' || current_setting('application_name')",
            )
            .await;
            assert_eq!(asked, format!("{user} it's me"));
            assert_eq!(
                ask(&mut connected, "select pg_backend_pid()").await,
                connected.pid.to_string()
            );
            assert_eq!(connected.key.len(), 4);
            let name = connected
                .parameters
                .iter()
                .find(|(name, _)| &**name == b"application_name")
                .unwrap();
            assert_eq!(&*name.1, b"it's me");
        }
        for user in ["plain", "hashed", "scrammed"] {
            let refused = connect_as(&tcp, user, Some("wrong")).await.unwrap_err();
            let ConnectError::Refused(error) = refused else {
                panic!("{refused}")
            };
            assert_eq!(error.sqlstate(), Some(&b"28P01"[..]));
            let message = format!("password authentication failed for user \"{user}\"");
            assert_eq!(error.message(), message.as_bytes());
            let missing = connect_as(&tcp, user, None).await.unwrap_err();
            let ConnectError::Protocol(ProtocolError::Startup(error)) = missing else {
                panic!("{missing}")
            };
            assert_eq!(error, BackendStartupError::NoPassword);
        }
        let refused = connect_as(&tcp, "nobody", None).await.unwrap_err();
        assert!(
            matches!(refused, ConnectError::Refused(error) if error.sqlstate() == Some(b"28000"))
        );
        let required = server.tcp("127.0.0.1", TlsMode::Require, None);
        let refused = connect_as(&required, "trusted", None).await.unwrap_err();
        assert!(matches!(refused, ConnectError::TlsRefused), "{refused}");
    }

    #[tokio::test]
    async fn the_tls_mode_decides_whom_is_talked_to_and_how() {
        let certificates = testing::certificates();
        let server = Server::start(
            "hostssl all secure all trust\nhostnossl all open all trust",
            Some(&certificates.identity),
        );
        server.run("create role secure login; create role open login");
        let (ours, other) = (certificates.authority, testing::certificates().authority);
        let ssl = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
        for (host, mode, roots, user, expected) in [
            ("127.0.0.1", TlsMode::Disable, None, "open", Ok("f")),
            ("127.0.0.1", TlsMode::Prefer, None, "open", Ok("f")),
            ("127.0.0.1", TlsMode::Prefer, None, "secure", Ok("t")),
            ("127.0.0.1", TlsMode::Require, None, "secure", Ok("t")),
            (
                "localhost",
                TlsMode::VerifyFull,
                Some(&ours),
                "secure",
                Ok("t"),
            ),
            (
                "127.0.0.1",
                TlsMode::Disable,
                None,
                "secure",
                Err("refused"),
            ),
            ("127.0.0.1", TlsMode::Require, None, "open", Err("refused")),
            (
                "127.0.0.1",
                TlsMode::VerifyFull,
                Some(&ours),
                "secure",
                Err("handshake"),
            ),
            (
                "localhost",
                TlsMode::VerifyFull,
                Some(&other),
                "secure",
                Err("handshake"),
            ),
            (
                "localhost",
                TlsMode::VerifyFull,
                None,
                "secure",
                Err("handshake"),
            ),
        ] {
            let address = server.tcp(host, mode, roots.cloned());
            let outcome = match connect_as(&address, user, None).await {
                Ok(mut connected) => {
                    assert!(!is_disturbed(&mut connected.transport).await);
                    Ok(ask(&mut connected, ssl).await)
                }
                Err(ConnectError::Refused(_)) => Err("refused"),
                Err(ConnectError::Handshake(_) | ConnectError::Tls(_)) => Err("handshake"),
                Err(error) => panic!("{error}"),
            };
            assert_eq!(
                outcome.as_deref().map_err(|error| *error),
                expected,
                "{host} {mode:?} {user}"
            );
        }
    }

    #[tokio::test]
    async fn a_cancel_request_stops_what_a_backend_runs() {
        let certificates = testing::certificates();
        let server = Server::start("host all all all trust", Some(&certificates.identity));
        for mode in [TlsMode::Disable, TlsMode::Require] {
            let address = server.tcp("127.0.0.1", mode, None);
            let mut running = connect_as(&address, "postgres", None).await.unwrap();
            let mut out = Vec::new();
            crate::wire::frontend::put_query(&mut out, b"select pg_sleep(600)");
            send(&mut running.transport, &out).await.unwrap();
            let mut watcher = connect_as(&address, "postgres", None).await.unwrap();
            let asleep = format!(
                "select count(*) from pg_stat_activity where pid = {} and wait_event = 'PgSleep'",
                running.pid
            );
            while ask(&mut watcher, &asleep).await != "1" {}
            let tls = ClientTls::new().unwrap();
            cancel(&address, running.pid, &running.key, PATIENCE, &tls)
                .await
                .unwrap();
            let mut body = Vec::new();
            while receive(&mut running.transport, &mut body).await.unwrap() != b'E' {}
            assert_eq!(notice::field(&body, b'C'), Some(&b"57014"[..]));
        }
    }

    #[tokio::test]
    async fn an_idle_backend_that_is_ended_is_noticed() {
        let certificates = testing::certificates();
        let server = Server::start("host all all all trust", Some(&certificates.identity));
        for mode in [TlsMode::Disable, TlsMode::Require] {
            let address = server.tcp("127.0.0.1", mode, None);
            let mut connected = connect_as(&address, "postgres", None).await.unwrap();
            assert!(!is_disturbed(&mut connected.transport).await);
            server.run(&format!("select pg_terminate_backend({})", connected.pid));
            let disturbance = poll_fn(|cx| connected.transport.poll_disturbed(cx)).await;
            assert!(matches!(disturbance, Disturbance::Bytes), "{disturbance:?}");
        }
    }

    /// A server that answers each connection's first packet with these bytes and then keeps silent.
    async fn answering(bytes: &'static [u8], mode: TlsMode) -> Address {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        #[expect(
            clippy::disallowed_methods,
            reason = "a test's server ends with its runtime"
        )]
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let length = stream.read_u32().await.unwrap();
                let mut packet = vec![0; length as usize - 4];
                stream.read_exact(&mut packet).await.unwrap();
                stream.write_all(bytes).await.unwrap();
                kept.push(stream);
            }
        });
        let host = Host::Tcp("127.0.0.1".into());
        Address {
            host,
            port,
            database: String::new(),
            tls: mode,
            root_cert: None,
        }
    }

    #[tokio::test]
    async fn servers_that_break_the_protocol_are_not_believed() {
        use TlsMode::{Disable, Require};
        for (answer, mode, expected) in [
            (
                &b"E\0\0\0\x05\0"[..],
                Require,
                "unencrypted data followed the answer to a request for TLS",
            ),
            (b"E", Require, "unexpected answer 69 to a request for TLS"),
            (b"x", Require, "unexpected answer 120 to a request for TLS"),
            (
                b"S\x16",
                Require,
                "unencrypted data followed the answer to a request for TLS",
            ),
            (b"N", Require, "the server does not speak TLS"),
            (b"", Disable, "the server did not answer in time"),
            (
                b"R\0\0\0\x03",
                Disable,
                "invalid length 3 of message type 82",
            ),
            (
                b"R\xff\xff\xff\xff",
                Disable,
                "invalid length 4294967295 of message type 82",
            ),
            (
                b"N\x00\x10\0\0",
                Disable,
                "invalid length 1048576 of message type 78",
            ),
            (b"!\0\0\0\x04", Disable, "invalid message type 33"),
            (
                b"Z\0\0\0\x05I",
                Disable,
                "the server sent a message of type 90 while starting",
            ),
            (b"E\0\0\0\x05\0", Disable, "the server refused: "),
        ] {
            let address = answering(answer, mode).await;
            let tls = ClientTls::new().unwrap();
            let timeout = if answer.is_empty() {
                Duration::from_millis(50)
            } else {
                PATIENCE
            };
            let refused = connect(&address, "d", &credentials("u", None), &[], timeout, &tls)
                .await
                .unwrap_err();
            assert_eq!(refused.to_string(), expected, "{answer:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_is_not_there_is_unreachable() {
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        for host in ["127.0.0.1", "no-such-host.invalid"] {
            let host = Host::Tcp(host.into());
            let address = Address {
                host,
                port: free.port(),
                database: String::new(),
                tls: TlsMode::Prefer,
                root_cert: None,
            };
            let refused = connect_as(&address, "u", None).await.unwrap_err();
            assert!(matches!(refused, ConnectError::Unreachable(_)), "{refused}");
        }
    }
}
