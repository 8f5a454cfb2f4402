//! Logins over real sockets: psql and raw bytes against every method, offer and refusal.

mod binding;
mod effort;
mod entrance;
mod places;
mod rules;

use super::{
    context::{Others, verifiers},
    failures::Limits,
    lookup::Lookups,
    *,
};
use crate::{
    auth::scram::{self, Verifier},
    clock::Clock,
    config::settings::{BackendProof, ClientAuth, ConsoleRole, Listen, Secret, TlsMode},
    metrics::Metrics,
    net::{
        listen::{Listener, PortSharing},
        testing::{self, Certificates, Directory, credentials, program},
        tls::{ClientTls, ServerTls},
    },
    wire::{
        backend,
        frame::{self, HEADER},
        frontend, notice, startup,
    },
};
use rustls_pki_types::ServerName;
use std::{collections::BTreeMap, net::SocketAddr};
use tokio::{io::AsyncReadExt as _, net::TcpStream, process::Command, sync::mpsc};

const PASSWORD: &str = "p\u{e4}ss wort";
/// How many may log in at once.
const LOGINS: usize = 50;
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
        backend_proof: BackendProof::Configured,
        databases: if name == "limited" {
            vec!["other".into()]
        } else {
            Vec::new()
        },
        console: (name == "ops").then_some(ConsoleRole::Admin),
        pool_mode: None,
        pool_size: None,
    };
    let users: BTreeMap<_, _> = users
        .map(|given| (given.0.to_owned(), Arc::new(user(given))))
        .into();
    let entrance = Entrance::new([5; 32], Clock, Metrics::new());
    LoginContext {
        verifiers: verifiers(&users, &entrance),
        found_users: Arc::clone(&users["trusted"]),
        lookups: Lookups::default(),
        users,
        databases: ["app", "other"].map(str::to_owned).into(),
        others: Others::Unknown,
        rules: None,
        mode,
        timeout: PATIENCE,
        tls: Some(Arc::new(
            ServerTls::new(&certificates.identity, None).unwrap(),
        )),
        limits: Limits {
            failures: 0,
            spacing: Duration::ZERO,
            patience: Duration::ZERO,
        },
        entrance,
    }
}

/// Serves logins; what became of each comes out of the channel. Sessions answer every query with nothing.
fn serve(context: Arc<LoginContext>, listen: &Listen) -> (Listen, mpsc::UnboundedReceiver<String>) {
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
                let outcome = match login(transport, context.entrance.admit(LOGINS), &context).await
                {
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
        // Only SCRAM binds a channel.
        let connection = format!(
            "host=127.0.0.1 port={port} dbname=app user={user} sslmode=require channel_binding=require"
        );
        let words = psql(&connection, PASSWORD).await;
        if ["scrammed", "stored"].contains(&user) {
            assert_eq!(words, "", "{user}");
            assert_eq!(logins.recv().await.unwrap(), format!("{user} in app"));
        } else {
            assert!(words.contains("channel binding required"), "{words}");
            let outcome = logins.recv().await.unwrap();
            assert!(
                outcome == "closed" || outcome == format!("{user} in app"),
                "{outcome}"
            );
        }
        let client =
            format!("host=127.0.0.1 port={port} dbname=other user={user} password='{PASSWORD}'");
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
            let expected = format!("FATAL:  password authentication failed for user \"{user}\"\n");
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
        words.contains("connection refused for user \"scrammed\", database \"app\", no encryption"),
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

/// A TLS connection that begins with a request, or without one.
async fn encrypted(address: SocketAddr, request: &[u8]) -> Transport {
    let config = ClientTls::new().unwrap().config(TlsMode::Require, None);
    let mut transport = Transport::tcp(TcpStream::connect(address).await.unwrap()).unwrap();
    if !request.is_empty() {
        transport.write_all(request).await.unwrap();
        let mut answer = [0];
        transport.read_exact(&mut answer).await.unwrap();
        assert_eq!(answer, *b"S");
    }
    let name = ServerName::try_from("localhost").unwrap();
    transport.connect_tls(config.unwrap(), name).await.unwrap()
}

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

#[tokio::test]
async fn cancel_requests_arrive_inside_tls_and_further_requests_for_tls_do_not() {
    let (address, mut logins) = tcp(context(TlsMode::Require, &testing::certificates()));
    for request in [&[][..], &SSL_REQUEST] {
        let mut cancel = Vec::new();
        startup::put_cancel_request(&mut cancel, 7, &[1; 32]);
        let again = "unsupported frontend protocol 1234.5679";
        for (packet, outcome) in [(&cancel[..], "cancel 7 32"), (&SSL_REQUEST, again)] {
            let mut transport = encrypted(address, request).await;
            transport.write_all(packet).await.unwrap();
            assert_eq!(logins.recv().await.unwrap(), outcome);
        }
    }
}

#[tokio::test]
async fn tls_without_a_request_where_none_is_offered_is_no_startup_packet() {
    let certificates = testing::certificates();
    let mut disabled = context(TlsMode::Disable, &certificates);
    disabled.tls = None;
    let (address, mut logins) = tcp(disabled);
    let config = ClientTls::new().unwrap().config(TlsMode::Require, None);
    let transport = Transport::tcp(TcpStream::connect(address).await.unwrap()).unwrap();
    let name = ServerName::try_from("localhost").unwrap();
    assert!(transport.connect_tls(config.unwrap(), name).await.is_err());
    assert_eq!(
        logins.recv().await.unwrap(),
        "invalid length of startup packet"
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
