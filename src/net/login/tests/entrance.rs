//! Who is kept out, for how long, and who never is: slow strangers, and those who guess.

use super::*;

fn limited(failures: u32, spacing: Duration, patience: Duration) -> LoginContext {
    LoginContext {
        limits: Limits {
            failures,
            spacing,
            patience,
        },
        ..context(TlsMode::Disable, &testing::certificates())
    }
}

fn as_user(address: SocketAddr, user: &str) -> String {
    format!(
        "host=127.0.0.1 port={} dbname=app user={user}",
        address.port()
    )
}

#[tokio::test]
async fn slow_strangers_make_room_for_whoever_comes_later() {
    let (address, mut logins) = tcp(context(TlsMode::Prefer, &testing::certificates()));
    let mut strangers = Vec::new();
    let mut come = async |number: usize| {
        let mut stranger = TcpStream::connect(address).await.unwrap();
        // Each stops somewhere else: nothing said, half a packet, a request for TLS and no more.
        let begun = [&b""[..], &[0, 0, 0], &SSL_REQUEST][number % 3];
        stranger.write_all(begun).await.unwrap();
        strangers.push(stranger);
    };
    for number in 0..LOGINS {
        come(number).await;
    }
    // Every place is taken, and nobody is turned away.
    for number in 0..3 {
        assert_eq!(psql(&as_user(address, "scrammed"), PASSWORD).await, "");
        come(number).await;
    }
    let mut outcomes = Vec::new();
    for _ in 0..6 {
        outcomes.push(logins.recv().await.unwrap());
    }
    outcomes.sort();
    let evicted = "newer logins took its place";
    let entered = "scrammed in app";
    assert_eq!(
        outcomes,
        [evicted, evicted, evicted, entered, entered, entered]
    );
    // It was the first of them who had to go.
    let mut first = Vec::new();
    strangers[0].read_to_end(&mut first).await.unwrap();
    assert_eq!(first, b"");
}

#[tokio::test]
async fn after_wrong_proofs_nobody_guesses_faster_and_others_are_not_held_up() {
    let context = limited(3, Duration::from_secs(600), Duration::from_secs(1));
    let (address, _logins) = tcp(context);
    for user in ["scrammed", "nobody"] {
        for _ in 0..3 {
            let words = psql(&as_user(address, user), "wrong").await;
            assert!(words.contains("password authentication failed"), "{words}");
        }
        for password in ["wrong", PASSWORD] {
            let words = psql(&as_user(address, user), password).await;
            let expected = format!("too many failed logins for user \"{user}\" from this address");
            assert!(words.contains(&expected), "{words}");
            assert!(words.contains("HINT:  Try again in 6"), "{words}");
        }
    }
    assert_eq!(psql(&as_user(address, "stored"), PASSWORD).await, "");
}

#[tokio::test]
async fn whoever_waited_for_his_turn_enters() {
    let spacing = Duration::from_millis(400);
    let (address, _logins) = tcp(limited(2, spacing, Duration::from_secs(10)));
    for _ in 0..2 {
        let words = psql(&as_user(address, "scrammed"), "wrong").await;
        assert!(words.contains("password authentication failed"), "{words}");
    }
    let begun = Clock.now();
    assert_eq!(psql(&as_user(address, "scrammed"), PASSWORD).await, "");
    let waited = Clock.now() - begun;
    assert!(waited >= spacing / 2, "{waited:?}");
}

#[tokio::test]
async fn whoever_proves_himself_is_forgiven() {
    let context = limited(2, Duration::from_secs(600), Duration::from_secs(1));
    let (address, _logins) = tcp(context);
    // Four wrong ones in all, never two on end.
    for _ in 0..4 {
        let words = psql(&as_user(address, "scrammed"), "wrong").await;
        assert!(words.contains("password authentication failed"), "{words}");
        assert_eq!(psql(&as_user(address, "scrammed"), PASSWORD).await, "");
    }
}

/// Salt and iterations that a user is told, and how long the server's part of the nonce is.
async fn first_reply(address: SocketAddr, user: &str) -> (String, String, usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let pairs: [(&[u8], &[u8]); 2] = [(b"user", user.as_bytes()), (b"database", b"app")];
    let mut out = startup_packet(&pairs);
    let (_, first) = scram::Client::begin("x", [7; 18]);
    frontend::put(&mut out, b'p', |out| {
        out.extend_from_slice(b"SCRAM-SHA-256\0");
        out.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
        out.extend_from_slice(&first);
    });
    stream.write_all(&out).await.unwrap();
    let mut body = Vec::new();
    // The mechanisms, then the first message.
    for _ in 0..2 {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header).await.unwrap();
        let size = frame::backend(&header).unwrap().unwrap().size;
        body = vec![0; size - HEADER];
        stream.read_exact(&mut body).await.unwrap();
    }
    let text = String::from_utf8(body[4..].to_vec()).unwrap();
    let mut parts = text.split(',').map(str::to_owned);
    let nonce = parts.next().unwrap();
    (parts.next().unwrap(), parts.next().unwrap(), nonce.len())
}

#[tokio::test]
async fn a_name_that_nobody_has_is_asked_as_one_that_somebody_has() {
    let certificates = testing::certificates();
    let first = context(TlsMode::Disable, &certificates);
    // As a reload builds it: other settings, the same entrance.
    let reloaded = LoginContext {
        entrance: Arc::clone(&first.entrance),
        ..context(TlsMode::Disable, &certificates)
    };
    let (address, _logins) = tcp(first);
    let (again, _logins_again) = tcp(reloaded);
    let known = first_reply(address, "scrammed").await;
    let unknown = first_reply(address, "nobody").await;
    assert_eq!((&known.1, known.2), (&unknown.1, unknown.2));
    assert_eq!(known.0.len(), unknown.0.len());
    assert_ne!(known.0, unknown.0);
    assert_ne!(unknown.0, first_reply(address, "nobody else").await.0);
    // A salt that changed would tell that it was made up.
    assert_eq!(unknown, first_reply(address, "nobody").await);
    assert_eq!(unknown, first_reply(again, "nobody").await);
    let other = LoginContext {
        entrance: Entrance::new([6; 32], Clock, Metrics::new()),
        ..context(TlsMode::Disable, &certificates)
    };
    let (another_process, _others) = tcp(other);
    assert_ne!(unknown.0, first_reply(another_process, "nobody").await.0);
}
