//! A client's proof: nobody gets in who does not know the password, whatever is kept of it and whatever is sent; who
//! knows it gets in; and one changed byte of an honest exchange ends it. Stored secrets are read back as written.

use super::{patched, piece};
use crate::auth::{
    Account, AuthError, Demand, Exchange, Fresh, Reply, Stored, md5,
    scram::{Client, Gs2, MECHANISM, MECHANISM_PLUS, Proof, Verifier},
};
use std::sync::Arc;

const USER: &[u8] = b"ann";
const PASSWORD: &str = "secret";
const FRESH: Fresh = Fresh {
    salt: *b"salt",
    nonce: [7; 18],
};

/// The target.
pub fn check(bytes: &[u8]) {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    match kind % 9 {
        0 => secret(rest),
        1 => password(&Stored::Plain(PASSWORD.into()), rest),
        2 => password(&Stored::Md5(md5::Hash::of(USER, PASSWORD.as_bytes())), rest),
        3 => password(&Stored::Scram(verifier()), rest),
        4 => md5_response(rest),
        5 => strangers(Account::Known, None, rest),
        6 => strangers(Account::Mock, None, rest),
        8 => strangers(Account::Known, Some(end_point()), rest),
        _ => honest(rest),
    }
}

/// One iteration: the arithmetic is the same, and a run is a thousand times as long.
fn verifier() -> Arc<Verifier> {
    Arc::new(Verifier::of(PASSWORD.as_bytes(), b"0123456789abcdef", 1))
}

/// The hash of our certificate, in place of TLS.
fn end_point() -> Arc<[u8]> {
    Arc::from([5; 32])
}

fn begin(demand: Demand, account: Account, end_point: Option<Arc<[u8]>>) -> Exchange {
    match Exchange::begin(USER, demand, account, FRESH, end_point) {
        Some((exchange, _ask)) => exchange,
        None => panic!("something is demanded"),
    }
}

/// A secret of a file or of a server's catalog.
fn secret(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match Stored::read(text) {
        Stored::Plain(password) => assert_eq!(password, text),
        Stored::Md5(_) => assert_eq!(text.len(), 35),
        Stored::Scram(verifier) => {
            let again = verifier.text();
            assert!(Verifier::parse(&again).is_some_and(|read| read == *verifier));
        }
    }
}

/// A PasswordMessage against each stored form.
fn password(stored: &Stored, body: &[u8]) {
    for account in [Account::Known, Account::Mock] {
        let outcome = begin(Demand::Password(stored.clone()), account, None).handle_message(body);
        let right = body == b"secret\0" && account == Account::Known;
        match outcome {
            Ok(Reply::Accepted(None, shown)) => {
                assert!(right && shown == Some(Proof::password(PASSWORD)));
            }
            Ok(_) => panic!("a password is one message without an answer"),
            Err(AuthError::Wrong | AuthError::Decode(_)) => assert!(!right),
            Err(error) => panic!("{error}"),
        }
    }
}

fn md5_response(body: &[u8]) {
    let hash = md5::Hash::of(USER, PASSWORD.as_bytes());
    let mut expected = hash.response(FRESH.salt);
    expected.push(0);
    // The same message with one byte of the fuzzer's: what it is unlikely to find.
    let (other, _) = match body {
        [0, at, byte] => patched(&expected, u16::from(*at), *byte),
        _ => (body.to_vec(), true),
    };
    let outcome = begin(Demand::Md5(hash), Account::Known, None).handle_message(&other);
    assert_eq!(outcome.is_ok(), other == expected);
}

/// Any messages: who does not compute the proof does not get in.
fn strangers(account: Account, offered: Option<Arc<[u8]>>, mut bytes: &[u8]) {
    let mut exchange = begin(Demand::Scram(verifier()), account, offered);
    while let Some(body) = piece(&mut bytes) {
        match exchange.handle_message(body) {
            Ok(Reply::Continue(next, data)) => {
                assert!(data.starts_with(b"r="));
                exchange = next;
            }
            Ok(Reply::Accepted(..)) => panic!("let in without the password"),
            Err(_) => return,
        }
    }
}

/// A client that knows the password, with one byte of one message replaced; bound to its channel, or not.
fn honest(bytes: &[u8]) {
    let [how, which, high, low, byte, nonce, ..] = *bytes else {
        return;
    };
    let account = if how & 1 == 0 {
        Account::Known
    } else {
        Account::Mock
    };
    let (offered, mechanism, gs2) = match how >> 1 & 3 {
        0 => (None, MECHANISM, Gs2::Cannot),
        // It could, and the server cannot.
        1 => (None, MECHANISM, Gs2::Could),
        2 => (Some(end_point()), MECHANISM, Gs2::Cannot),
        _ => (
            Some(end_point()),
            MECHANISM_PLUS,
            Gs2::EndPoint(end_point().to_vec()),
        ),
    };
    let patch = |number: u8, message: Vec<u8>| {
        if which % 2 == number {
            patched(&message, u16::from_be_bytes([high, low]), byte)
        } else {
            (message, false)
        }
    };
    let exchange = || begin(Demand::Scram(verifier()), account, offered.clone());
    let begun = |proof| Client::with(proof, gs2.clone(), [nonce; 18]);
    let told = |first: &[u8]| {
        let mut body = mechanism.as_bytes().to_vec();
        body.push(0);
        body.extend_from_slice(&u32::try_from(first.len()).unwrap_or(0).to_be_bytes());
        body.extend_from_slice(first);
        body
    };
    let (client, first) = begun(Proof::password(PASSWORD));
    let (body, changed_first) = patch(0, told(&first));
    let Ok(Reply::Continue(next, data)) = exchange().handle_message(&body) else {
        return assert!(changed_first, "refused at its first message");
    };
    let Ok((client, last)) = client.handle_first(&data) else {
        return assert!(changed_first, "does not believe its server");
    };
    let (last, changed) = patch(1, last);
    let changed = changed || changed_first;
    match next.handle_message(&last) {
        Ok(Reply::Accepted(Some(data), Some(shown))) => {
            assert!(!changed && account == Account::Known);
            assert!(client.handle_final(&data).is_ok());
            passes_on(begun(shown), exchange(), told);
        }
        Ok(_) => panic!("the last message ends it"),
        Err(_) => assert!(changed || account == Account::Mock),
    }
}

/// What a client has shown opens the same door again.
fn passes_on(
    (client, first): (Client, Vec<u8>),
    exchange: Exchange,
    told: impl Fn(&[u8]) -> Vec<u8>,
) {
    let Ok(Reply::Continue(next, data)) = exchange.handle_message(&told(&first)) else {
        panic!("refused at its first message")
    };
    let Ok((client, last)) = client.handle_first(&data) else {
        panic!("does not believe its server")
    };
    let Ok(Reply::Accepted(Some(data), _)) = next.handle_message(&last) else {
        panic!("keys that were shown are refused")
    };
    assert!(client.handle_final(&data).is_ok());
}
