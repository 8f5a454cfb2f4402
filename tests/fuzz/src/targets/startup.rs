//! Reads startup packets: nothing panics, what is read is written back as the same bytes, and `options` are settings.
//! A conversation of such packets ends soon, never enters without TLS where it is required, and every word said to
//! the client is a whole message.

use super::piece;
use crate::{
    protocol::client_startup::{Channel, Entry, ExpectPacket, Refusal, Step, TlsOffer, refusal},
    wire::{
        frame::{self, Header},
        startup::{
            CANCEL_KEY, PROTOCOL_OPTION, Setting, Startup, as_options, decode, options,
            put_cancel_request, put_message, put_ssl_request, remaining,
        },
    },
};

/// The target.
pub fn check(bytes: &[u8]) {
    packet(bytes);
    if let Some((how, packets)) = bytes.split_first() {
        conversation(*how, packets);
    }
}

/// One packet.
fn packet(bytes: &[u8]) {
    if let Some(length) = bytes.first_chunk()
        && let Ok(size) = remaining(*length)
    {
        assert!((4..10_000).contains(&size));
    }
    let mut out = Vec::new();
    match decode(bytes) {
        Ok(Startup::Message(message)) => {
            let parameters: Vec<_> = message.parameters().collect();
            put_message(&mut out, message.minor, &parameters);
            assert_eq!(&out[4..], bytes);
            for (name, _) in &parameters {
                assert!(!name.is_empty() && message.parameter(name).is_some());
            }
            if let Some(text) = message.parameter(b"options") {
                let _ = options(text);
            }
        }
        Ok(Startup::CancelRequest { pid, key }) => {
            assert!(CANCEL_KEY.contains(&key.len()));
            put_cancel_request(&mut out, pid, key);
            assert_eq!(&out[4..], bytes);
        }
        Ok(Startup::SslRequest) => {
            put_ssl_request(&mut out);
            assert_eq!(&out[4..], bytes);
        }
        Ok(Startup::GssEncRequest) | Err(_) => {}
    }
    if let Ok(settings) = options(bytes) {
        settings_of(bytes, &settings);
    }
}

/// What `options` said is as long as its text at most, and said again it is the same.
fn settings_of(text: &[u8], settings: &[Setting]) {
    let pieces = settings
        .iter()
        .map(|(name, value)| name.len() + value.len());
    assert!(pieces.sum::<usize>() <= text.len());
    let texts: Option<Vec<_>> = settings
        .iter()
        .map(|(name, value)| Some((str::from_utf8(name).ok()?, str::from_utf8(value).ok()?)))
        .collect();
    if let Some(texts) = texts {
        let again = as_options(texts.into_iter());
        assert_eq!(options(again.as_bytes()).as_deref(), Ok(settings));
    }
}

/// Packets one after another, as a client sends them that may ask for encryption first.
fn conversation(how: u8, mut packets: &[u8]) {
    let offer = [TlsOffer::Off, TlsOffer::Offered, TlsOffer::Required][usize::from(how % 3)];
    let begun = if how & 64 == 0 {
        Channel::Plain
    } else {
        Channel::Encrypted
    };
    let (mut expect, mut channel) = (ExpectPacket::new(offer, begun), begun);
    let mut answers = 0;
    while let Some(packet) = piece(&mut packets) {
        match expect.handle_packet(packet) {
            Ok(Step::Answer(byte, next)) => {
                assert_eq!(byte, b'N');
                (expect, answers) = (next, answers + 1);
            }
            Ok(Step::Handshake(next)) => {
                assert!(offer != TlsOffer::Off && channel == Channel::Plain);
                channel = Channel::Encrypted;
                (expect, answers) = (next, answers + 1);
            }
            Ok(Step::Cancel { key, .. }) => return assert!(CANCEL_KEY.contains(&key.len())),
            Ok(Step::Enter(entry)) => {
                assert!(offer != TlsOffer::Required || channel == Channel::Encrypted);
                return entered(&entry);
            }
            Err(refused) => return told(&refused),
        }
        assert!(answers <= 2, "each request for encryption once");
    }
}

fn entered(entry: &Entry) {
    assert!(matches!(entry.minor, 0 | 2));
    assert!(!entry.user.is_empty());
    // `@s1` names the shard of a database without a name, which nobody has.
    assert!(!entry.database.is_empty() || entry.replication.is_some());
    for (name, _) in &entry.settings {
        assert!(!name.starts_with(PROTOCOL_OPTION) || !name.contains(&0));
    }
    if !entry.negotiation.is_empty() {
        let header = frame::backend(&entry.negotiation);
        assert!(
            matches!(header, Ok(Some(Header { tag: b'v', size })) if size == entry.negotiation.len())
        );
    }
}

fn told(refused: &Refusal) {
    let mut out = Vec::new();
    if let Some(notice) = refusal(refused) {
        notice.put(&mut out);
        let header = frame::backend(&out);
        assert!(matches!(header, Ok(Some(Header { tag: b'E', size })) if size == out.len()));
    }
}
