//! Channel binding: what is offered, that psql uses it, and that somebody in the middle is found out.

use super::*;
use rustls::ServerConfig;
use tokio::net::TcpListener;

/// Takes psql's TLS with a certificate of its own and passes the bytes on inside TLS of its own.
async fn man_in_the_middle(identity: &Certificates, address: SocketAddr) -> SocketAddr {
    let tls: Arc<ServerConfig> = ServerTls::new(&identity.identity, None).unwrap().config();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let middle = listener.local_addr().unwrap();
    #[expect(
        clippy::disallowed_methods,
        reason = "a test's server ends with its runtime"
    )]
    tokio::spawn(async move {
        let mut client = Transport::tcp(listener.accept().await.unwrap().0).unwrap();
        let mut request = [0; 8];
        client.read_exact(&mut request).await.unwrap();
        client.write_all(b"S").await.unwrap();
        let mut client = client.accept_tls(tls).await.unwrap();
        let mut server = encrypted(address, &[]).await;
        // Either side may end it.
        let _ended = tokio::io::copy_bidirectional(&mut client, &mut server).await;
    });
    middle
}

/// The mechanisms that are offered to a user.
async fn mechanisms(transport: &mut Transport) -> Vec<String> {
    let packet = startup_packet(&[(b"user", b"scrammed"), (b"database", b"app")]);
    transport.write_all(&packet).await.unwrap();
    let mut header = [0; HEADER];
    transport.read_exact(&mut header).await.unwrap();
    let size = frame::backend(&header).unwrap().unwrap().size;
    let mut body = vec![0; size - HEADER];
    transport.read_exact(&mut body).await.unwrap();
    assert_eq!((header[0], &body[..4]), (b'R', &[0, 0, 0, 10][..]));
    let names = body[4..].split(|byte| *byte == 0);
    names
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8(name.to_vec()).unwrap())
        .collect()
}

#[tokio::test]
async fn channel_binding_is_offered_inside_tls_only() {
    let (address, _logins) = tcp(context(TlsMode::Prefer, &testing::certificates()));
    let plain = TcpStream::connect(address).await.unwrap();
    let mut plain = Transport::tcp(plain).unwrap();
    assert_eq!(mechanisms(&mut plain).await, ["SCRAM-SHA-256"]);
    let mut inside = encrypted(address, &[]).await;
    assert_eq!(
        mechanisms(&mut inside).await,
        ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256"]
    );
}

#[tokio::test]
async fn somebody_in_the_middle_with_a_certificate_of_his_own_gets_no_session() {
    let (address, mut logins) = tcp(context(TlsMode::Prefer, &testing::certificates()));
    let connect =
        |port| format!("host=127.0.0.1 port={port} dbname=app user=scrammed sslmode=require");
    let middle = man_in_the_middle(&testing::certificates(), address).await;
    let words = psql(&connect(middle.port()), PASSWORD).await;
    assert!(
        words.contains("FATAL:  SCRAM channel binding check failed"),
        "{words}"
    );
    let outcome = logins.recv().await.unwrap();
    assert_eq!(outcome, "the client is bound to another channel");
    // Without binding nobody would notice: it is the binding that told.
    let middle = man_in_the_middle(&testing::certificates(), address).await;
    let unbound = format!("{} channel_binding=disable", connect(middle.port()));
    assert_eq!(psql(&unbound, PASSWORD).await, "");
}

#[tokio::test]
async fn a_client_whose_offer_was_stripped_of_channel_binding_is_refused() {
    let (address, mut logins) = tcp(context(TlsMode::Prefer, &testing::certificates()));
    for (flag, outcome) in [
        (
            "y",
            "the client believes that channel binding was not offered",
        ),
        (
            "p=tls-server-end-point",
            "the client's message does not fit the mechanism that it selected",
        ),
    ] {
        let mut transport = encrypted(address, &[]).await;
        mechanisms(&mut transport).await;
        let first = format!("{flag},,n=,r=abcdefgh");
        let mut out = Vec::new();
        frontend::put(&mut out, b'p', |out| {
            out.extend_from_slice(b"SCRAM-SHA-256\0");
            out.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
            out.extend_from_slice(first.as_bytes());
        });
        transport.write_all(&out).await.unwrap();
        assert_eq!(logins.recv().await.unwrap(), outcome);
    }
}

#[tokio::test]
async fn a_certificate_whose_signature_names_no_hash_offers_no_binding() {
    let certificates = testing::certificates_signed(&rcgen::PKCS_ED25519);
    let (address, mut logins) = tcp(context(TlsMode::Prefer, &certificates));
    assert_eq!(
        mechanisms(&mut encrypted(address, &[]).await).await,
        ["SCRAM-SHA-256"]
    );
    assert_eq!(logins.recv().await.unwrap(), "closed");
    let connection = format!(
        "host=127.0.0.1 port={} dbname=app user=scrammed sslmode=require",
        address.port()
    );
    // psql says `y` here, rightly.
    assert_eq!(psql(&connection, PASSWORD).await, "");
    let required = format!("{connection} channel_binding=require");
    let words = psql(&required, PASSWORD).await;
    assert!(words.contains("channel binding"), "{words}");
}
