//! A connection to a server begins: whatever the server says, it is ready only after a proof where it asked for SCRAM,
//! and what is kept of it is bounded. Its errors can be read and passed on with another severity.

use super::patched;
use crate::{
    auth::scram::{
        Binding, ChannelBinding, ExpectFirst, MECHANISM, MECHANISM_PLUS, Proof, Verifier,
    },
    protocol::backend_startup::{BackendStartup, Channel, Established, Login, Step},
    wire::{
        frame::{self, Body, HEADER, Header},
        frontend::put,
        notice::{self, Words},
        startup::CANCEL_KEY,
    },
};
use std::sync::Arc;

const PASSWORD: &str = "secret";
/// The hash of the server's certificate, in place of TLS.
const HASH: [u8; 32] = [5; 32];

/// The target.
pub fn check(bytes: &[u8]) {
    match bytes.split_first() {
        Some((0, rest)) => honest(rest),
        Some((how, rest)) => any(login(*how), rest),
        None => {}
    }
}

/// Who logs in: the bits say how.
fn login(how: u8) -> Login {
    Login {
        user: "ann".into(),
        proof: (how & 1 == 0).then(|| Proof::password(PASSWORD)),
        binding: [
            ChannelBinding::Prefer,
            ChannelBinding::Require,
            ChannelBinding::Disable,
            ChannelBinding::Prefer,
        ][usize::from(how >> 2 & 3)],
        channel: match how >> 4 & 3 {
            0 | 1 => Channel::Plain,
            2 => Channel::Tls(None),
            _ => Channel::Tls(Some(HASH.to_vec())),
        },
        minor: if how & 64 == 0 { 0 } else { 2 },
        nonce: [1; 18],
    }
}

/// Any frames.
fn any(login: Login, mut bytes: &[u8]) {
    let (minor, bound) = (login.minor, login.binding == ChannelBinding::Require);
    let mut startup = BackendStartup::new(login);
    let (mut scram, mut negotiated) = (false, minor == 0);
    while let Ok(Some(Header { tag, size })) = frame::backend(bytes) {
        let Some((frame, rest)) = bytes.split_at_checked(size) else {
            return;
        };
        bytes = rest;
        let body = &frame[HEADER..];
        if is_long_work(tag, body) {
            return;
        }
        scram |= tag == b'R' && body.starts_with(&[0, 0, 0, 10]);
        match startup.handle_message(tag, body) {
            Ok(Step::Continue(next, reply)) => {
                if tag == b'v' {
                    assert!(!negotiated && body[4..] == [0; 4], "nothing to negotiate");
                    negotiated = true;
                }
                check_reply(&reply);
                let gives_password = reply
                    .windows(PASSWORD.len())
                    .any(|text| text == PASSWORD.as_bytes());
                assert!(
                    !bound || !gives_password,
                    "given away although binding is required"
                );
                startup = next;
            }
            Ok(Step::Ready(established)) => {
                assert!(
                    !scram && !bound,
                    "a server is believed that does not know the password"
                );
                assert!(established.minor == 0 || established.minor == minor);
                return check_established(&established);
            }
            Ok(Step::Refused(body)) => return error(&body),
            Err(_) => return,
        }
    }
}

/// The work that a server may ask for is bounded, and too long for here: beyond 9999 iterations nothing is tried.
fn is_long_work(tag: u8, body: &[u8]) -> bool {
    let digits = |at: usize| {
        body[at..]
            .iter()
            .take_while(|byte| byte.is_ascii_digit() || **byte == b'+')
            .count()
    };
    tag == b'R' && (2..body.len()).any(|at| body[at - 2..at] == *b"i=" && digits(at) > 4)
}

/// What is sent: nothing, or one whole `p` message that a server reads.
fn check_reply(reply: &[u8]) {
    if !reply.is_empty() {
        let header = frame::authentication(reply);
        assert!(matches!(header, Ok(Some(Header { size, .. })) if size == reply.len()));
    }
}

fn check_established(established: &Established) {
    assert!(established.key.is_empty() || CANCEL_KEY.contains(&established.key.len()));
    assert!(established.parameters.len() <= 256);
    for (name, value) in &established.parameters {
        assert!(!name.contains(&0) && !value.contains(&0));
    }
}

/// An ErrorResponse, passed on as it is and as FATAL.
fn error(body: &[u8]) {
    for code in [b'S', b'V', b'C', b'M', b'H', 0, 0xff] {
        if let Some(text) = notice::field(body, code) {
            assert!(text.len() < body.len() && !text.contains(&0));
        }
    }
    let (mut same, mut fatal) = (Vec::new(), Vec::new());
    Words::Servers(body.to_vec()).put(&mut same);
    assert_eq!(&same[HEADER..], body);
    Words::Servers(body.to_vec()).fatal().put(&mut fatal);
    for out in [&same, &fatal] {
        assert!(
            matches!(frame::backend(out), Ok(Some(Header { tag: b'E', size })) if size == out.len())
        );
    }
    let other = &fatal[HEADER..];
    for code in [b'C', b'M', b'D', b'H'] {
        // What stands behind a field that never ends is not read.
        assert_eq!(notice::field(body, code), notice::field(other, code));
    }
    if notice::field(body, b'S').is_some() {
        assert_eq!(notice::field(other, b'S'), Some(&b"FATAL"[..]));
    }
}

/// A server that knows the password, with one byte of one SASL message replaced: believed only when nothing was.
fn honest(bytes: &[u8]) {
    let [which, high, low, byte, nonce, ..] = *bytes else {
        return;
    };
    let at = u16::from_be_bytes([high, low]);
    let patch = |number: u8, data: Vec<u8>| {
        if which % 3 == number {
            patched(&data, at, byte)
        } else {
            (data, false)
        }
    };
    let tls = which & 64 != 0;
    let startup = BackendStartup::new(Login {
        nonce: [nonce; 18],
        ..login(if tls { 0x30 } else { 0 })
    });
    let offer = match tls {
        true => [MECHANISM_PLUS, "\0", MECHANISM, "\0\0"].concat(),
        false => [MECHANISM, "\0\0"].concat(),
    };
    let (offer, changed_offer) = patch(0, offer.into_bytes());
    let Some((startup, reply)) = step(startup, 10, &offer) else {
        return assert!(changed_offer);
    };
    let mut reply = Body::new(&reply[HEADER..]);
    let binding = match reply.cstr() {
        Ok(name) if name == MECHANISM_PLUS.as_bytes() => Binding::Used(Arc::from(HASH)),
        Ok(_) if tls => Binding::Declined,
        Ok(_) => Binding::NotOffered,
        Err(_) => panic!("no mechanism"),
    };
    let Ok(Some(first)) = reply.value() else {
        panic!("no first message")
    };
    let verifier = Arc::new(Verifier::of(PASSWORD.as_bytes(), b"0123456789abcdef", 1));
    let server = ExpectFirst::new(verifier, [!nonce; 18], binding);
    let Ok((data, server)) = server.handle_first(first) else {
        // Somebody took the binding from the offer, and the server notices.
        return assert!(tls && changed_offer);
    };
    let (data, changed) = patch(1, data);
    if changed && is_long_work(b'R', &data) {
        return;
    }
    let Some((startup, reply)) = step(startup, 11, &data) else {
        return assert!(changed);
    };
    // Base64 of 18 bytes.
    let ours = 24;
    assert!(
        !changed || usize::from(at) >= "r=".len() + ours,
        "a server is answered that does not repeat our nonce"
    );
    let Ok((data, _)) = server.handle_final(&reply[HEADER..]) else {
        return assert!(changed);
    };
    assert!(!changed, "both sides saw the same exchange");
    let (data, changed) = patch(2, data);
    let Some((startup, _)) = step(startup, 12, &data) else {
        return assert!(changed);
    };
    assert!(!changed, "a server is believed whose proof is another's");
    assert!(step(startup, 0, b"").is_some());
}

/// One authentication message. `None`: the connection has ended.
fn step(startup: BackendStartup, kind: u32, data: &[u8]) -> Option<(BackendStartup, Vec<u8>)> {
    let mut out = Vec::new();
    put(&mut out, b'R', |out| {
        out.extend_from_slice(&kind.to_be_bytes());
        out.extend_from_slice(data);
    });
    match startup.handle_message(b'R', &out[HEADER..]) {
        Ok(Step::Continue(next, reply)) => Some((next, reply)),
        Ok(Step::Ready(_) | Step::Refused(_)) => panic!("too early"),
        Err(_) => None,
    }
}
