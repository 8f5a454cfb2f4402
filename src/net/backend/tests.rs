//! Connections to real servers, and to ones that break the protocol.

mod copied;

use super::*;
use crate::auth::scram::ChannelBinding;
use crate::net::{
    testing::{self, Server, credentials},
    transport::Disturbance,
};
use std::{future::poll_fn, task::Poll};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(20);

async fn enter(
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
        let mut connected = enter(address, user, password).await.unwrap();
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
        let long_keys = server.version() >= 18;
        let expected = if long_keys { (2, 32) } else { (0, 4) };
        assert_eq!((connected.minor, connected.key.len()), expected);
        let name = connected
            .parameters
            .iter()
            .find(|(name, _)| &**name == b"application_name")
            .unwrap();
        assert_eq!(&*name.1, b"it's me");
    }
    for user in ["plain", "hashed", "scrammed"] {
        let refused = enter(&tcp, user, Some("wrong")).await.unwrap_err();
        let ConnectError::Refused(error) = refused else {
            panic!("{refused}")
        };
        assert_eq!(error.sqlstate(), Some(&b"28P01"[..]));
        let message = format!("password authentication failed for user \"{user}\"");
        assert_eq!(error.message(), message.as_bytes());
        let missing = enter(&tcp, user, None).await.unwrap_err();
        let ConnectError::Protocol(ProtocolError::Startup(error)) = missing else {
            panic!("{missing}")
        };
        assert_eq!(error, BackendStartupError::NoPassword);
    }
    let refused = enter(&tcp, "nobody", None).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused(error) if error.sqlstate() == Some(b"28000")));
    let required = server.tcp("127.0.0.1", TlsMode::Require, None);
    let refused = enter(&required, "trusted", None).await.unwrap_err();
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
        let outcome = match enter(&address, user, None).await {
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
    for mode in [TlsMode::Disable, TlsMode::Prefer, TlsMode::Require] {
        let address = Arc::new(server.tcp("127.0.0.1", mode, None));
        let mut running = enter(&address, "postgres", None).await.unwrap();
        let mut out = Vec::new();
        crate::wire::frontend::put_query(&mut out, b"select pg_sleep(600)");
        send(&mut running.transport, &out).await.unwrap();
        let mut watcher = enter(&address, "postgres", None).await.unwrap();
        let asleep = format!(
            "select count(*) from pg_stat_activity where pid = {} and wait_event = 'PgSleep'",
            running.pid
        );
        while ask(&mut watcher, &asleep).await != "1" {}
        let tls = ClientTls::new().unwrap();
        let address = running.cancel_address(&address);
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
        let mut connected = enter(&address, "postgres", None).await.unwrap();
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
        tls_start: TlsStart::Request,
        channel_binding: ChannelBinding::Prefer,
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
            tls_start: TlsStart::Request,
            channel_binding: ChannelBinding::Prefer,
        };
        let refused = enter(&address, "u", None).await.unwrap_err();
        assert!(matches!(refused, ConnectError::Unreachable(_)), "{refused}");
    }
}

/// What a scripted server does with the first packet, by its minor version.
#[derive(Clone, Copy, Debug)]
enum Old {
    /// As PostgreSQL before it could negotiate.
    Refuses(&'static [u8]),
    Closes,
}

/// A server that knows 3.0 only and has no words for that. Sends what it was asked for, in order.
async fn old_server(kind: Old) -> (Address, tokio::sync::mpsc::UnboundedReceiver<u32>) {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut address = testing::plain("127.0.0.1", listener.local_addr().unwrap().port());
    address.tls = TlsMode::Disable;
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's server ends with its runtime"
    )]
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let length = stream.read_u32().await.unwrap();
            let mut packet = vec![0; length as usize - 4];
            stream.read_exact(&mut packet).await.unwrap();
            let version = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
            // A test that has ended does not listen.
            let _heard = sender.send(version);
            match (version, kind) {
                (0x0003_0000, _) => {
                    let ready = b"R\0\0\0\x08\0\0\0\0K\0\0\0\x0c\0\0\0\x07abcdZ\0\0\0\x05I";
                    stream.write_all(ready).await.unwrap();
                }
                (_, Old::Refuses(error)) => stream.write_all(error).await.unwrap(),
                (_, Old::Closes) => {}
            }
        }
    });
    (address, receiver)
}

#[tokio::test]
async fn servers_too_old_to_negotiate_are_asked_again_for_the_version_that_they_know() {
    let error = b"E\0\0\0\x18SFATAL\0C0A000\0Mold\0\0";
    for kind in [Old::Refuses(error), Old::Closes] {
        let (address, mut asked) = old_server(kind).await;
        let connected = enter(&address, "u", None).await.unwrap();
        assert_eq!((connected.minor, &connected.key[..]), (0, &b"abcd"[..]));
        assert_eq!(asked.recv().await, Some(0x0003_0002), "{kind:?}");
        assert_eq!(asked.recv().await, Some(0x0003_0000), "{kind:?}");
    }
}

#[tokio::test]
async fn another_refusal_is_no_reason_to_ask_again() {
    let error = b"E\0\0\0\x19SFATAL\0C53300\0Mfull\0\0";
    let (address, mut asked) = old_server(Old::Refuses(error)).await;
    let refused = enter(&address, "u", None).await.unwrap_err();
    assert!(matches!(refused, ConnectError::Refused(_)), "{refused}");
    assert_eq!(asked.recv().await, Some(0x0003_0002));
    assert!(asked.try_recv().is_err());
}

/// A server with a role for each method that a server may ask for.
fn server_with_methods(identity: &crate::config::settings::TlsIdentity) -> Server {
    let server = Server::start(
        "host all trusted all trust\nhost all plain all password\nhost all hashed all md5\n\
         host all scrammed all scram-sha-256",
        Some(identity),
    );
    server.run(
        "create role trusted login;
         set password_encryption = 'md5'; create role hashed login password 'secret';
         set password_encryption = 'scram-sha-256';
         create role scrammed login password 'secret'; create role plain login password 'secret'",
    );
    server
}

#[tokio::test]
async fn where_channel_binding_is_required_only_a_bound_login_enters() {
    let certificates = testing::certificates();
    let server = server_with_methods(&certificates.identity);
    let with = |binding| Address {
        channel_binding: binding,
        ..server.tcp("127.0.0.1", TlsMode::Require, None)
    };
    let required = with(ChannelBinding::Require);
    // The second resumes the first's TLS session, which shows no certificate again.
    for _ in 0..2 {
        enter(&required, "scrammed", Some("secret")).await.unwrap();
    }
    for user in ["trusted", "plain", "hashed"] {
        let refused = enter(&required, user, Some("secret")).await.unwrap_err();
        assert!(
            refused
                .to_string()
                .starts_with("channel binding is required"),
            "{refused}"
        );
        enter(&with(ChannelBinding::Prefer), user, Some("secret"))
            .await
            .unwrap();
    }
    enter(&with(ChannelBinding::Disable), "scrammed", Some("secret"))
        .await
        .unwrap();
}

#[tokio::test]
async fn a_certificate_that_nothing_can_be_bound_to_is_told_apart() {
    let authority_key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let authority = rcgen::CertificateParams::new(Vec::new()).unwrap();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    let identity = crate::config::settings::TlsIdentity {
        cert_pem: params.signed_by(&key, &issuer).unwrap().pem().into_bytes(),
        key_pem: key.serialize_pem().into_bytes(),
    };
    let server = server_with_methods(&identity);
    let address = server.tcp("127.0.0.1", TlsMode::Require, None);
    enter(&address, "scrammed", Some("secret")).await.unwrap();
    let required = Address {
        channel_binding: ChannelBinding::Require,
        ..address
    };
    let refused = enter(&required, "scrammed", Some("secret"))
        .await
        .unwrap_err();
    assert!(
        refused.to_string().contains("no hash function to bind to"),
        "{refused}"
    );
}

/// Somebody in the middle with a certificate of his own: TLS on both sides, every byte passed on.
async fn middle(server: Address) -> Address {
    let own = testing::certificates().identity;
    let ours = tls::ServerTls::new(&own, None).unwrap().config();
    middle_with(server, (*ours).clone()).await
}

async fn middle_with(server: Address, ours: rustls::ServerConfig) -> Address {
    let ours = Arc::new(ours);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address {
        port: listener.local_addr().unwrap().port(),
        ..server.clone()
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's server ends with its runtime"
    )]
    tokio::spawn(async move {
        let tls = ClientTls::new().unwrap();
        while let Ok((mut stream, _)) = listener.accept().await {
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream.write_all(b"S").await.unwrap();
            let accepted = Transport::tcp(stream)
                .unwrap()
                .accept_tls(Arc::clone(&ours))
                .await;
            // A client that finds him out closes.
            let Ok(mut client) = accepted else { continue };
            let call = Call {
                address: &server,
                tls: &tls,
                timeout: PATIENCE,
            };
            let mut server = reach(call, TlsMode::Require).await.unwrap();
            // Ends when one of them closes.
            let _copied = tokio::io::copy_bidirectional(&mut client, &mut server).await;
        }
    });
    address
}

#[tokio::test]
async fn somebody_in_the_middle_is_noticed_by_channel_binding() {
    let certificates = testing::certificates();
    let server = server_with_methods(&certificates.identity);
    let address = middle(server.tcp("127.0.0.1", TlsMode::Require, None)).await;
    let with = |binding| Address {
        channel_binding: binding,
        ..address.clone()
    };
    for binding in [ChannelBinding::Prefer, ChannelBinding::Require] {
        let refused = enter(&with(binding), "scrammed", Some("secret"))
            .await
            .unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("SCRAM channel binding check failed"),
            "{refused}"
        );
    }
    // So it is binding that notices, nothing else.
    enter(&with(ChannelBinding::Disable), "scrammed", Some("secret"))
        .await
        .unwrap();
}

#[tokio::test]
async fn tls_without_a_request_is_spoken_with_servers_that_know_it() {
    let certificates = testing::certificates();
    let server = Server::start("host all all all trust", Some(&certificates.identity));
    let roots = Some(Arc::clone(&certificates.authority));
    let address = Arc::new(Address {
        tls_start: TlsStart::Direct,
        ..server.tcp("localhost", TlsMode::VerifyFull, roots)
    });
    let entered = enter(&address, "postgres", None).await;
    if server.version() < 17 {
        let refused = entered.unwrap_err();
        assert!(matches!(refused, ConnectError::Handshake(_)), "{refused}");
        return;
    }
    let mut running = entered.unwrap();
    let mut out = Vec::new();
    crate::wire::frontend::put_query(&mut out, b"select pg_sleep(600)");
    send(&mut running.transport, &out).await.unwrap();
    let asleep = format!(
        "select count(*) from pg_stat_activity where pid = {} and wait_event = 'PgSleep'",
        running.pid
    );
    while server.run(&asleep) != "1" {}
    let tls = ClientTls::new().unwrap();
    cancel(
        &running.cancel_address(&address),
        running.pid,
        &running.key,
        PATIENCE,
        &tls,
    )
    .await
    .unwrap();
    let mut body = Vec::new();
    while receive(&mut running.transport, &mut body).await.unwrap() != b'E' {}
    assert_eq!(notice::field(&body, b'C'), Some(&b"57014"[..]));
}

#[tokio::test]
async fn direct_tls_without_an_agreement_on_the_protocol_is_not_used() {
    let own = testing::certificates().identity;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = Address {
        tls: TlsMode::Require,
        tls_start: TlsStart::Direct,
        ..testing::plain("127.0.0.1", listener.local_addr().unwrap().port())
    };
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's server ends with its runtime"
    )]
    tokio::spawn(async move {
        let mut config = (*tls::ServerTls::new(&own, None).unwrap().config()).clone();
        config.alpn_protocols.clear();
        let config = Arc::new(config);
        let (stream, _) = listener.accept().await.unwrap();
        let accepted = Transport::tcp(stream).unwrap().accept_tls(config).await;
        // Kept open: the client must leave by itself.
        let _end = accepted.unwrap().read(&mut [0]).await;
    });
    let refused = enter(&address, "u", None).await.unwrap_err();
    assert!(
        matches!(refused, ConnectError::Protocol(ProtocolError::Alpn)),
        "{refused}"
    );
}
