//! What a client sends before anything else: StartupMessage, SSLRequest, GSSENCRequest, CancelRequest.
//! Bytes of strangers: every read is bounded by the packet, and names stay bytes. Chapter 54.7 of the manual,
//! limits as in `ProcessStartupPacket` of PostgreSQL.

use super::frame::{Body, DecodeError, STARTUP};

/// The length word and the request code: the shortest packet.
const SHORTEST: u32 = 8;
const MAJOR: u16 = 3;
/// The "major version" that marks a request which is not a StartupMessage.
const SPECIAL: u16 = 1234;
const CANCEL: u16 = 5678;
const SSL: u16 = 5679;
const GSSENC: u16 = 5680;
/// Names with this prefix are protocol options, not settings.
pub const PROTOCOL_OPTION: &[u8] = b"_pq_.";
/// Lengths of a cancel key: four bytes up to 3.0, up to 256 since 3.2.
pub const CANCEL_KEY: std::ops::RangeInclusive<usize> = 4..=256;

/// A packet that opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Startup<'a> {
    Message(Message<'a>),
    SslRequest,
    GssEncRequest,
    CancelRequest { pid: u32, key: &'a [u8] },
}

/// A StartupMessage of protocol 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    pub minor: u16,
    /// The pairs, without the terminator; checked by `decode`.
    parameters: &'a [u8],
}

/// What is wrong with a startup packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    #[error("invalid length of startup packet")]
    Length(u32),
    #[error("unsupported frontend protocol {major}.{minor}")]
    Version { major: u16, minor: u16 },
    #[error("invalid startup packet layout")]
    Layout,
    #[error("invalid length of cancel request")]
    Cancel,
}

/// How many bytes follow the length word.
///
/// # Errors
/// [`StartupError::Length`] outside of 8 to 10000: nothing may be allocated for it.
pub fn remaining(length: [u8; 4]) -> Result<usize, StartupError> {
    let length = u32::from_be_bytes(length);
    if !(SHORTEST..=STARTUP).contains(&length) {
        return Err(StartupError::Length(length));
    }
    Ok(length as usize - 4)
}

/// Reads a packet without its length word.
///
/// # Errors
/// [`StartupError`], also for a code that no request has.
pub fn decode(packet: &[u8]) -> Result<Startup<'_>, StartupError> {
    if packet.len() + 4 > STARTUP as usize {
        return Err(StartupError::Length(
            u32::try_from(packet.len() + 4).unwrap_or(u32::MAX),
        ));
    }
    let mut body = Body::new(packet);
    let (Ok(major), Ok(minor)) = (body.u16(), body.u16()) else {
        return Err(StartupError::Layout);
    };
    let rest = body.rest();
    match (major, minor) {
        (SPECIAL, SSL) if rest.is_empty() => Ok(Startup::SslRequest),
        (SPECIAL, GSSENC) if rest.is_empty() => Ok(Startup::GssEncRequest),
        (SPECIAL, SSL | GSSENC) => Err(StartupError::Layout),
        (SPECIAL, CANCEL) => match (body.u32(), body.rest()) {
            (Ok(pid), key) if CANCEL_KEY.contains(&key.len()) => {
                Ok(Startup::CancelRequest { pid, key })
            }
            _ => Err(StartupError::Cancel),
        },
        (MAJOR, minor) => Ok(Startup::Message(Message {
            minor,
            parameters: pairs(body)?,
        })),
        (major, minor) => Err(StartupError::Version { major, minor }),
    }
}

/// Checks the pairs up to the terminator, which must be the last byte.
fn pairs(mut body: Body<'_>) -> Result<&[u8], StartupError> {
    let all = body.rest();
    let layout = |_: DecodeError| StartupError::Layout;
    while !body.cstr().map_err(layout)?.is_empty() {
        body.cstr().map_err(layout)?;
    }
    body.end().map_err(layout)?;
    Ok(&all[..all.len() - 1])
}

impl<'a> Message<'a> {
    /// All parameters in the order sent, `_pq_.` options included.
    pub fn parameters(&self) -> impl Iterator<Item = (&'a [u8], &'a [u8])> + use<'a> {
        let mut body = Body::new(self.parameters);
        std::iter::from_fn(move || Some((body.cstr().ok()?, body.cstr().ok()?)))
    }

    /// The last value given for a name, as PostgreSQL takes it.
    #[must_use]
    pub fn parameter(&self, name: &[u8]) -> Option<&'a [u8]> {
        self.parameters()
            .filter(|(found, _)| *found == name)
            .last()
            .map(|(_, value)| value)
    }
}

/// Appends a StartupMessage.
pub fn put_message(out: &mut Vec<u8>, minor: u16, parameters: &[(&[u8], &[u8])]) {
    put(out, MAJOR, minor, |out| {
        for (name, value) in parameters {
            for text in [name, value] {
                out.extend_from_slice(text);
                out.push(0);
            }
        }
        out.push(0);
    });
}

/// Appends an SSLRequest.
pub fn put_ssl_request(out: &mut Vec<u8>) {
    put(out, SPECIAL, SSL, |_| {});
}

/// Appends a CancelRequest.
pub fn put_cancel_request(out: &mut Vec<u8>, pid: u32, key: &[u8]) {
    put(out, SPECIAL, CANCEL, |out| {
        out.extend_from_slice(&pid.to_be_bytes());
        out.extend_from_slice(key);
    });
}

/// # Panics
/// When the packet is longer than a length can say: such a packet must never be begun.
#[expect(
    clippy::expect_used,
    reason = "a wrapped length would smuggle a message"
)]
fn put(out: &mut Vec<u8>, major: u16, minor: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&major.to_be_bytes());
    out.extend_from_slice(&minor.to_be_bytes());
    body(out);
    let length = i32::try_from(out.len() - at).expect("a startup packet is below 2 GiB");
    out[at..at + 4].copy_from_slice(&length.to_be_bytes());
}

/// A word of the `options` parameter that sets nothing that we know.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    #[error("invalid command-line argument for server process")]
    Argument(Vec<u8>),
    /// `-c name` or `--name` without `=value`; the word with its switch.
    #[error("a switch requires a value")]
    Value(Vec<u8>),
}

/// A setting's name and value.
pub type Setting = (Vec<u8>, Vec<u8>);

/// Reads the `options` parameter: `-c name=value`, `-cname=value`, `--name=value`, split as `pg_split_opts` does.
///
/// # Errors
/// [`OptionsError`] for any other switch and for a switch without a value.
pub fn options(text: &[u8]) -> Result<Vec<Setting>, OptionsError> {
    let mut settings = Vec::new();
    let mut words = split_options(text).into_iter();
    while let Some(word) = words.next() {
        if let Some(long) = word.strip_prefix(b"--") {
            settings.push(setting(long).ok_or_else(|| OptionsError::Value(word.clone()))?);
        } else if word == b"-c" {
            let argument = words
                .next()
                .ok_or_else(|| OptionsError::Argument(word.clone()))?;
            settings.push(
                setting(&argument)
                    .ok_or_else(|| OptionsError::Value([&b"-c "[..], &argument].concat()))?,
            );
        } else if let Some(argument) = word.strip_prefix(b"-c") {
            settings.push(
                setting(argument)
                    .ok_or_else(|| OptionsError::Value([&b"-c "[..], argument].concat()))?,
            );
        } else {
            return Err(OptionsError::Argument(word));
        }
    }
    Ok(settings)
}

/// Words at white space; a backslash takes the next byte as it is.
fn split_options(text: &[u8]) -> Vec<Vec<u8>> {
    let is_space = |byte: u8| byte.is_ascii_whitespace() || byte == 0x0b;
    let mut words = Vec::new();
    let mut word: Option<Vec<u8>> = None;
    let mut escaped = false;
    for byte in text.iter().copied() {
        if escaped {
            word.get_or_insert_default().push(byte);
            escaped = false;
        } else if byte == b'\\' {
            word.get_or_insert_default();
            escaped = true;
        } else if is_space(byte) {
            words.extend(word.take());
        } else {
            word.get_or_insert_default().push(byte);
        }
    }
    words.extend(word);
    words
}

/// What a connection with `replication` in its startup packet replicates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// `database`: the changes of one database, and SQL on it.
    Logical,
    /// True: the whole server.
    Physical,
}

/// A value of `replication` that PostgreSQL does not take either.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid value for parameter \"replication\"")]
pub struct ReplicationError(pub Vec<u8>);

/// Reads the value of `replication`; `None`: an ordinary connection.
///
/// # Errors
/// [`ReplicationError`]: neither `database` nor a spelling of true or false that `parse_bool` takes.
pub fn replication(value: &[u8]) -> Result<Option<Replication>, ReplicationError> {
    if value == b"database" {
        return Ok(Some(Replication::Logical));
    }
    let folded = value.to_ascii_lowercase();
    let abbreviates = |word: &[u8], least| folded.len() >= least && word.starts_with(&folded);
    if abbreviates(b"false", 1) || abbreviates(b"no", 1) || abbreviates(b"off", 2) || folded == b"0"
    {
        Ok(None)
    } else if abbreviates(b"true", 1)
        || abbreviates(b"yes", 1)
        || abbreviates(b"on", 2)
        || folded == b"1"
    {
        Ok(Some(Replication::Physical))
    } else {
        Err(ReplicationError(value.to_vec()))
    }
}

/// Settings as `options` of a startup packet: [`options`] reads the same again.
#[must_use]
pub fn as_options<'a>(settings: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in settings {
        text.push_str(if text.is_empty() { "-c " } else { " -c " });
        for character in name.chars().chain(['=']).chain(value.chars()) {
            // `isspace` in the C locale, and the escape itself.
            if matches!(character, ' ' | '\t'..='\r' | '\\') {
                text.push('\\');
            }
            text.push(character);
        }
    }
    text
}

/// `name=value`, with dashes of the name read as underscores (`ParseLongOption`).
fn setting(text: &[u8]) -> Option<Setting> {
    let at = memchr::memchr(b'=', text)?;
    let name = text[..at]
        .iter()
        .map(|byte| if *byte == b'-' { b'_' } else { *byte })
        .collect();
    Some((name, text[at + 1..].to_vec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_startup_message_is_read_as_it_was_written() {
        let mut out = Vec::new();
        put_message(
            &mut out,
            2,
            &[(b"user", b"j\xf6rg"), (b"_pq_.x", b""), (b"user", b"b")],
        );
        assert_eq!(remaining(*out.first_chunk().unwrap()), Ok(out.len() - 4));
        let Ok(Startup::Message(message)) = decode(&out[4..]) else {
            panic!("not a startup message")
        };
        assert_eq!(message.minor, 2);
        let pairs: Vec<_> = message.parameters().collect();
        assert_eq!(
            pairs,
            [
                (&b"user"[..], &b"j\xf6rg"[..]),
                (b"_pq_.x", b""),
                (b"user", b"b")
            ]
        );
        assert_eq!(message.parameter(b"user"), Some(&b"b"[..]));
        assert_eq!(message.parameter(b"database"), None);
    }

    #[test]
    fn requests_are_told_apart_from_messages() {
        let mut out = Vec::new();
        put_ssl_request(&mut out);
        assert_eq!(out, [0, 0, 0, 8, 4, 210, 22, 47]);
        assert_eq!(decode(&out[4..]), Ok(Startup::SslRequest));
        assert_eq!(decode(&[4, 210, 22, 48]), Ok(Startup::GssEncRequest));
        for length in [4, 32, 256] {
            let (mut out, key) = (Vec::new(), vec![7; length]);
            put_cancel_request(&mut out, 9, &key);
            assert_eq!(
                decode(&out[4..]),
                Ok(Startup::CancelRequest { pid: 9, key: &key })
            );
        }
    }

    #[test]
    fn malformed_packets_are_refused() {
        let long = [&[4, 210, 22, 46, 0, 0, 0, 1][..], &[0; 257]].concat();
        for (packet, expected) in [
            (&b""[..], StartupError::Layout),
            (b"\0\x03\0", StartupError::Layout),
            (b"\0\x03\0\0", StartupError::Layout),
            (b"\0\x03\0\0user", StartupError::Layout),
            (b"\0\x03\0\0user\0a\0", StartupError::Layout),
            (b"\0\x03\0\0user\0\0a", StartupError::Layout),
            (b"\0\x03\0\0user\0a\0\0x", StartupError::Layout),
            (b"\0\x03\0\0user\0a\0\0\0", StartupError::Layout),
            (
                b"\0\x02\0\0user\0a\0\0",
                StartupError::Version { major: 2, minor: 0 },
            ),
            (
                b"\0\x04\0\x01",
                StartupError::Version { major: 4, minor: 1 },
            ),
            (
                b"\x04\xd2\x16\x31",
                StartupError::Version {
                    major: 1234,
                    minor: 5681,
                },
            ),
            (b"\x04\xd2\x16\x2f!", StartupError::Layout),
            (b"\x04\xd2\x16\x2e\0\0\0\x01\0\0\0", StartupError::Cancel),
            (&long, StartupError::Cancel),
            (&[0; 9_997], StartupError::Length(10_001)),
        ] {
            assert_eq!(decode(packet), Err(expected), "{packet:?}");
        }
        for length in [0, 3, 4, 7, 10_001, 0x7fff_ffff, u32::MAX] {
            assert_eq!(
                remaining(length.to_be_bytes()),
                Err(StartupError::Length(length))
            );
        }
        assert_eq!(remaining(8_u32.to_be_bytes()), Ok(4));
        assert_eq!(remaining(10_000_u32.to_be_bytes()), Ok(9_996));
    }

    #[test]
    fn options_are_split_as_postgresql_splits_them() {
        for (text, expected) in [
            (&b""[..], Ok(vec![])),
            (b"  \t", Ok(vec![])),
            (b"-c a=b  -cx.y=1", Ok(vec![("a", "b"), ("x.y", "1")])),
            (
                b"--search-path=a,\\ b --x=",
                Ok(vec![("search_path", "a, b"), ("x", "")]),
            ),
            (b"-c a=b=c\\\\d", Ok(vec![("a", "b=c\\d")])),
            (b"-c", Err(OptionsError::Argument(b"-c".to_vec()))),
            (b"-c a", Err(OptionsError::Value(b"-c a".to_vec()))),
            (b"--a", Err(OptionsError::Value(b"--a".to_vec()))),
            (b"-B 10", Err(OptionsError::Argument(b"-B".to_vec()))),
            (b"a=b", Err(OptionsError::Argument(b"a=b".to_vec()))),
        ] {
            let expected = expected.map(|settings: Vec<(&str, &str)>| {
                settings
                    .into_iter()
                    .map(|(name, value)| (name.into(), value.into()))
                    .collect::<Vec<Setting>>()
            });
            assert_eq!(options(text), expected, "{text:?}");
        }
    }

    #[test]
    fn replication_is_read_as_postgresql_reads_it() {
        for (values, expected) in [
            (&["database"][..], Some(Replication::Logical)),
            (
                &["true", "T", "1", "on", "yes", "y"],
                Some(Replication::Physical),
            ),
            (&["false", "f", "0", "of", "Off", "n", "no"], None),
        ] {
            for value in values {
                assert_eq!(replication(value.as_bytes()), Ok(expected), "{value}");
            }
        }
        for value in ["", "o", "Database", "databases", "truee", "2"] {
            assert!(replication(value.as_bytes()).is_err(), "{value}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_packet_is_read_past_its_end(packet in proptest::collection::vec(proptest::num::u8::ANY, 0..64)) {
            let whole = [&[0, 3, 0, 0][..], &packet].concat();
            for bytes in [&packet, &whole] {
                if let Ok(Startup::Message(message)) = decode(bytes) {
                    let mut again = Vec::new();
                    put_message(&mut again, message.minor, &message.parameters().collect::<Vec<_>>());
                    proptest::prop_assert_eq!(&again[4..], &bytes[..]);
                }
            }
        }

        #[test]
        fn settings_are_read_from_options_as_they_were_written(settings in proptest::collection::vec(("[a-z_.]{1,4}", "[a-c= \\t\r\\x0b\\\\'\"-]{0,8}"), 0..4)) {
            let text = as_options(settings.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            let expected: Vec<Setting> = settings.into_iter().map(|(name, value)| (name.into(), value.into())).collect();
            proptest::prop_assert_eq!(options(text.as_bytes()), Ok(expected), "{}", text);
        }

        #[test]
        fn options_are_words_of_the_text(text in proptest::collection::vec(proptest::sample::select(b"-c= \\ax\t".to_vec()), 0..24)) {
            for (name, value) in options(&text).into_iter().flatten() {
                proptest::prop_assert!(name.len() + value.len() < text.len());
            }
        }
    }
}
