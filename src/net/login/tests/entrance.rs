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
