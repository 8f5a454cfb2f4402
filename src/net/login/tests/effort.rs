//! Checking a password takes time: of one login, and of nobody else.

use super::*;
use std::{cell::Cell, rc::Rc};
use tokio::task::LocalSet;

#[tokio::test]
async fn others_are_served_while_a_password_is_checked() {
    let certificates = testing::certificates();
    let mut context = context(TlsMode::Disable, &certificates);
    let iterations = scram::MOST_ITERATIONS / 4;
    let verifier = Verifier::of(PASSWORD.as_bytes(), b"0123456789abcdef", iterations);
    let mut plain = (*context.users["plain"]).clone();
    plain.auth = ClientAuth::Password(Secret(verifier.text()));
    context.users.insert("plain".into(), Arc::new(plain));
    let (address, mut logins) = tcp(context);
    let mut stream = TcpStream::connect(address).await.unwrap();
    let packet = startup_packet(&[(b"user", b"plain"), (b"database", b"app")]);
    stream.write_all(&packet).await.unwrap();
    let mut asked = [0; 9];
    stream.read_exact(&mut asked).await.unwrap();

    // On this one thread everybody is served.
    let served = Rc::new(Cell::new(0));
    let others = Rc::clone(&served);
    LocalSet::new()
        .run_until(async move {
            let turns = tokio::task::spawn_local(async move {
                loop {
                    sleep(Duration::from_millis(1)).await;
                    others.set(others.get() + 1);
                }
            });
            let mut message = Vec::new();
            frontend::put(&mut message, b'p', |out| {
                out.extend_from_slice(PASSWORD.as_bytes());
                out.push(0);
            });
            stream.write_all(&message).await.unwrap();
            stream.read_exact(&mut asked).await.unwrap();
            turns.abort();
        })
        .await;
    assert_eq!(logins.recv().await.unwrap(), "plain in app");
    assert!(served.get() >= 10, "{} turns", served.get());
}
