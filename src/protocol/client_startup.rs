//! How a client's connection begins: encryption asked for, version agreed on, user and database named. Pure.
//!
//! ```text
//! ExpectPacket --SSLRequest--> Answer(N) --> ExpectPacket      each request at most once, in either order
//!              |            \-> Handshake --> ExpectPacket     nothing but a StartupMessage or CancelRequest now
//!              |--GSSENCRequest--> Answer(N) --> ExpectPacket
//!              |--CancelRequest--> Cancel
//!              \--StartupMessage--> Enter
//! ```
//! What goes wrong is a [`Refusal`]: data. [`refusal`] words it here and not in `proxy::reply`, the one exception,
//! because a login is over before there is a session to reply to.

use crate::{
    auth::{
        Ask, AuthError,
        scram::{self, ScramError},
    },
    wire::{
        frame::FrameError,
        frontend::put,
        notice::Notice,
        startup::{
            self, Message, OptionsError, PROTOCOL_OPTION, Replication, ReplicationError, Setting,
            Startup, StartupError,
        },
    },
};
use bytes::{Bytes, BytesMut};
use pgwire::messages::{Message as _, startup::Authentication};

/// The newest minor version of protocol 3 that is spoken here.
pub const NEWEST_MINOR: u16 = 2;
/// Parameters of a StartupMessage that are not settings.
const NOT_SETTINGS: [&[u8]; 4] = [b"user", b"database", b"options", b"replication"];

/// What the server does about TLS on this socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsOffer {
    Off,
    Offered,
    Required,
}

/// How the bytes travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Channel {
    Plain,
    Encrypted,
}

/// A connection that expects a startup packet.
#[derive(Clone, Copy, Debug)]
pub struct ExpectPacket {
    offer: TlsOffer,
    channel: Channel,
    tls: Request,
    gssenc: Request,
}

/// A request for encryption, which a client may make once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Request {
    Open,
    Made,
}

/// What to do after a startup packet.
#[derive(Debug)]
pub enum Step {
    /// Send the one byte; expect another packet.
    Answer(u8, ExpectPacket),
    /// Send `S`, shake hands; expect another packet inside.
    Handshake(ExpectPacket),
    Cancel {
        pid: u32,
        key: Vec<u8>,
    },
    Enter(Entry),
}

/// Who wants to enter, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The minor version agreed on.
    pub minor: u16,
    pub user: Vec<u8>,
    /// The user's name when the client gave none.
    pub database: Vec<u8>,
    /// `None`: an ordinary connection.
    pub replication: Option<Replication>,
    /// Settings in the order of their effect: `options` first, then the packet's own, later ones win.
    pub settings: Vec<Setting>,
    /// NegotiateProtocolVersion, or nothing: to be sent before anything else.
    pub negotiation: Vec<u8>,
}

/// Why a client is not let in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error(transparent)]
    Startup(StartupError),
    #[error(transparent)]
    Options(OptionsError),
    #[error("unencrypted data followed a request for encryption")]
    UnencryptedData,
    #[error("TLS without the protocol's name in ALPN")]
    Alpn,
    #[error("no user named")]
    NoUser,
    #[error(transparent)]
    Replication(ReplicationError),
    #[error("a physical replication connection names no database, and the user has several")]
    WhichDatabase,
    #[error("TLS is required")]
    TlsRequired { user: Vec<u8>, database: Vec<u8> },
    #[error("authentication failed")]
    Password { user: Vec<u8> },
    #[error(transparent)]
    Authentication(AuthError),
    #[error("a message other than the expected password or SASL response: {0}")]
    Frame(FrameError),
    #[error("unknown database")]
    NoDatabase { database: Vec<u8> },
    #[error("the user may not use the database")]
    Forbidden { database: Vec<u8> },
    #[error("the login took too long")]
    Timeout,
    /// The server that knows the users could not be asked.
    #[error("the user could not be looked up")]
    Lookup,
    #[error("newer logins took its place")]
    Evicted,
    #[error("no rule fits")]
    NoRule(Connection),
    #[error("a rule rejects it")]
    Rejected(Connection),
    #[error("no client certificate was shown")]
    NoCertificate,
    #[error("the client certificate is not the user's")]
    Certificate { user: Vec<u8> },
    /// Where no proof is asked for: elsewhere nobody learns it.
    #[error("unknown user")]
    NoRole { user: Vec<u8> },
    /// Seconds after which it may be tried again.
    #[error("too many failed logins before")]
    Throttled { user: Vec<u8>, seconds: u64 },
}

/// A connection as rules of authentication see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    pub replication: Option<Replication>,
    /// Without its port; `[local]` over a Unix socket.
    pub host: String,
    pub user: Vec<u8>,
    pub database: Vec<u8>,
    pub channel: Channel,
}

impl ExpectPacket {
    /// A connection on which nothing was read yet. `Encrypted`: TLS was begun without a request.
    #[must_use]
    pub fn new(offer: TlsOffer, channel: Channel) -> Self {
        let request = match channel {
            Channel::Plain => Request::Open,
            Channel::Encrypted => Request::Made,
        };
        Self {
            offer,
            channel,
            tls: request,
            gssenc: request,
        }
    }

    /// Takes a packet without its length word.
    ///
    /// # Errors
    /// [`Refusal`]: the connection is over.
    pub fn handle_packet(self, packet: &[u8]) -> Result<Step, Refusal> {
        match startup::decode(packet).map_err(Refusal::Startup)? {
            Startup::SslRequest if self.tls == Request::Open => Ok(self.answer_tls()),
            Startup::GssEncRequest if self.gssenc == Request::Open => Ok(Step::Answer(
                b'N',
                Self {
                    gssenc: Request::Made,
                    ..self
                },
            )),
            // A second request is no request any more but an unknown version, as in PostgreSQL.
            Startup::SslRequest => Err(Refusal::Startup(StartupError::Version {
                major: 1234,
                minor: 5679,
            })),
            Startup::GssEncRequest => Err(Refusal::Startup(StartupError::Version {
                major: 1234,
                minor: 5680,
            })),
            Startup::CancelRequest { pid, key } => Ok(Step::Cancel {
                pid,
                key: key.to_vec(),
            }),
            Startup::Message(message) => self.enter(message).map(Step::Enter),
        }
    }

    fn answer_tls(self) -> Step {
        match self.offer {
            TlsOffer::Off => Step::Answer(
                b'N',
                Self {
                    tls: Request::Made,
                    ..self
                },
            ),
            TlsOffer::Offered | TlsOffer::Required => {
                Step::Handshake(Self::new(self.offer, Channel::Encrypted))
            }
        }
    }

    fn enter(self, message: Message<'_>) -> Result<Entry, Refusal> {
        let (minor, negotiation) = negotiate(message);
        let user = message
            .parameter(b"user")
            .filter(|user| !user.is_empty())
            .ok_or(Refusal::NoUser)?
            .to_vec();
        let mut database = message
            .parameter(b"database")
            .filter(|name| !name.is_empty())
            .unwrap_or(&user)
            .to_vec();
        if self.offer == TlsOffer::Required && self.channel == Channel::Plain {
            return Err(Refusal::TlsRequired { user, database });
        }
        let replication = match message.parameter(b"replication") {
            Some(value) => startup::replication(value).map_err(Refusal::Replication)?,
            None => None,
        };
        let options = message.parameter(b"options").unwrap_or_default();
        let mut settings = startup::options(options).map_err(Refusal::Options)?;
        settings.extend(
            message
                .parameters()
                .filter(|(name, _)| {
                    !NOT_SETTINGS.contains(name) && !name.starts_with(PROTOCOL_OPTION)
                })
                .map(|(name, value)| (name.to_vec(), value.to_vec())),
        );
        if replication.is_some() {
            name_place(&mut database, &mut settings);
        }
        Ok(Entry {
            minor,
            user,
            database,
            replication,
            settings,
            negotiation,
        })
    }
}

/// Where a replication connection goes, as far as it cannot say so in other ways: programs of PostgreSQL replace either
/// the database's name (pg_basebackup) or the options (CREATE SUBSCRIPTION). `shardway.database` among the settings
/// replaces the name, and of the name `app@s1` the part behind the last `@` is the shard, unless a setting names one.
fn name_place(database: &mut Vec<u8>, settings: &mut Vec<Setting>) {
    settings.retain(|(name, value)| {
        let names_database = name.eq_ignore_ascii_case(b"shardway.database");
        if names_database {
            database.clone_from(value);
        }
        !names_database
    });
    if let Some(at) = memchr::memrchr(b'@', database) {
        let shard = database.split_off(at + 1);
        database.truncate(at);
        settings.insert(0, (b"shardway.shard".to_vec(), shard));
    }
}

/// The minor version agreed on, and NegotiateProtocolVersion when that or an option is not what was asked for.
/// The version is sent whole, as PostgreSQL does and libpq expects; the manual says "minor".
fn negotiate(message: Message<'_>) -> (u16, Vec<u8>) {
    let minor = match message.minor {
        // 3.1 never existed.
        0 | 1 => 0,
        _ => NEWEST_MINOR,
    };
    let unknown = || {
        message
            .parameters()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with(PROTOCOL_OPTION))
    };
    let count = u32::try_from(unknown().count()).unwrap_or(u32::MAX);
    let mut out = Vec::new();
    if minor != message.minor || count > 0 {
        put(&mut out, b'v', |out| {
            out.extend_from_slice(&[0, 3]);
            out.extend_from_slice(&minor.to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
            for name in unknown() {
                out.extend_from_slice(name);
                out.push(0);
            }
        });
    }
    (minor, out)
}

/// Appends the request for a proof.
pub fn put_ask(out: &mut Vec<u8>, ask: Ask) {
    put_authentication(
        out,
        &match ask {
            Ask::Password => Authentication::CleartextPassword,
            Ask::Md5(salt) => Authentication::MD5Password(salt.to_vec()),
            Ask::Scram => Authentication::SASL(vec![scram::MECHANISM.to_owned()]),
            // The stronger first, as PostgreSQL.
            Ask::ScramPlus => Authentication::SASL(vec![
                scram::MECHANISM_PLUS.to_owned(),
                scram::MECHANISM.to_owned(),
            ]),
        },
    );
}

/// Appends SASL data that another message of the client answers.
pub fn put_continue(out: &mut Vec<u8>, data: Vec<u8>) {
    put_authentication(out, &Authentication::SASLContinue(Bytes::from(data)));
}

/// Appends the last SASL data, when there is some, and AuthenticationOk.
pub fn put_accepted(out: &mut Vec<u8>, data: Option<Vec<u8>>) {
    if let Some(data) = data {
        put_authentication(out, &Authentication::SASLFinal(Bytes::from(data)));
    }
    put_authentication(out, &Authentication::Ok);
}

/// # Panics
/// When SASL data is too long for a message: ours are bounded by the client's, which are.
#[expect(
    clippy::expect_used,
    reason = "a wrapped length would smuggle a message"
)]
fn put_authentication(out: &mut Vec<u8>, message: &Authentication) {
    let mut buffer = BytesMut::new();
    message
        .encode(&mut buffer)
        .expect("an authentication message of ours is short");
    out.extend_from_slice(&buffer);
}

/// What the client is told, in PostgreSQL's words; nothing where PostgreSQL closes without a word.
#[must_use]
pub fn refusal(refusal: &Refusal) -> Option<Notice> {
    if let Refusal::Startup(StartupError::Length(_) | StartupError::Cancel) | Refusal::Evicted =
        refusal
    {
        return None;
    }
    let detail = match refusal {
        Refusal::UnencryptedData => Some(
            "This could be either a client-software bug or evidence of an attempted man-in-the-middle attack.",
        ),
        Refusal::Forbidden { .. } => Some("User does not have CONNECT privilege."),
        Refusal::Authentication(AuthError::Scram(ScramError::Downgrade)) => Some(
            "The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding.",
        ),
        Refusal::Authentication(AuthError::Scram(ScramError::BindingMechanism)) => Some(
            "The SCRAM message has channel binding data where the selected mechanism has none, or none where it needs them.",
        ),
        Refusal::WhichDatabase => {
            Some("The server of which database's shard is meant is not known.")
        }
        Refusal::Startup(_)
        | Refusal::Options(_)
        | Refusal::Alpn
        | Refusal::NoUser
        | Refusal::Replication(_)
        | Refusal::TlsRequired { .. }
        | Refusal::Password { .. }
        | Refusal::Authentication(_)
        | Refusal::Frame(_)
        | Refusal::NoDatabase { .. }
        | Refusal::Timeout
        | Refusal::Lookup
        | Refusal::Evicted
        | Refusal::Throttled { .. }
        | Refusal::NoRule(_)
        | Refusal::Rejected(_)
        | Refusal::NoCertificate
        | Refusal::Certificate { .. }
        | Refusal::NoRole { .. } => None,
    };
    Some(Notice {
        severity: "FATAL",
        sqlstate: sqlstate(refusal),
        message: message(refusal),
        detail: detail.map(str::to_owned),
        hint: hint(refusal),
    })
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "most refusals say themselves what to do"
)]
fn hint(refusal: &Refusal) -> Option<String> {
    match refusal {
        Refusal::TlsRequired { .. } => Some("Connect with sslmode=require.".into()),
        Refusal::Replication(_) => {
            Some("Valid values are: \"false\", \"true\", \"database\".".into())
        }
        Refusal::WhichDatabase => {
            Some("Name it in the options: PGOPTIONS='-c shardway.database=NAME'.".into())
        }
        Refusal::Throttled { seconds, .. } => Some(format!("Try again in {seconds} seconds.")),
        _ => None,
    }
}

fn sqlstate(refusal: &Refusal) -> &'static str {
    match refusal {
        Refusal::Startup(StartupError::Length(_) | StartupError::Cancel | StartupError::Layout)
        | Refusal::UnencryptedData
        | Refusal::Alpn
        | Refusal::Frame(_) => "08P01",
        Refusal::Startup(StartupError::Version { .. }) => "0A000",
        Refusal::Replication(_) => "22023",
        Refusal::Options(_) => "42601",
        Refusal::NoUser
        | Refusal::TlsRequired { .. }
        | Refusal::Throttled { .. }
        | Refusal::NoRule(_)
        | Refusal::Rejected(_)
        | Refusal::NoCertificate
        | Refusal::Certificate { .. }
        | Refusal::NoRole { .. } => "28000",
        Refusal::Password { .. } | Refusal::Authentication(AuthError::Wrong) => "28P01",
        Refusal::Authentication(AuthError::Scram(
            ScramError::AuthorizationIdentity | ScramError::Extension,
        )) => "0A000",
        Refusal::Authentication(AuthError::Scram(ScramError::Downgrade | ScramError::Binding)) => {
            "28000"
        }
        Refusal::Authentication(_) => "08P01",
        Refusal::NoDatabase { .. } | Refusal::WhichDatabase => "3D000",
        Refusal::Forbidden { .. } => "42501",
        Refusal::Timeout => "57014",
        Refusal::Lookup => "08006",
        // Never told.
        Refusal::Evicted => "53300",
    }
}

fn message(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Startup(StartupError::Layout) => {
            "invalid startup packet layout: expected terminator as last byte".into()
        }
        Refusal::Startup(error @ StartupError::Version { .. }) => {
            format!("{error}: server supports 3.0 to 3.{NEWEST_MINOR}")
        }
        Refusal::Startup(error) => error.to_string(),
        Refusal::Options(error @ OptionsError::Argument(word)) => {
            format!("{error}: {}", shown(word))
        }
        Refusal::Options(OptionsError::Value(word)) => format!("{} requires a value", shown(word)),
        Refusal::UnencryptedData => "received unencrypted data after SSL request".into(),
        Refusal::Alpn => {
            "received direct SSL connection request without ALPN protocol negotiation".into()
        }
        Refusal::NoUser => "no PostgreSQL user name specified in startup packet".into(),
        Refusal::Replication(error) => format!("{error}: \"{}\"", shown(&error.0)),
        Refusal::WhichDatabase => "replication connection names no database".into(),
        Refusal::TlsRequired { user, database } => {
            let (user, database) = (shown(user), shown(database));
            format!(
                "connection refused for user \"{user}\", database \"{database}\", no encryption"
            )
        }
        Refusal::Password { user } => failed("password", user),
        Refusal::Authentication(AuthError::Decode(_)) => "invalid password packet size".into(),
        Refusal::Authentication(AuthError::Mechanism) => {
            "client selected an invalid SASL authentication mechanism".into()
        }
        Refusal::Authentication(AuthError::Scram(error)) => scram_message(*error),
        Refusal::Authentication(error @ AuthError::Wrong) => error.to_string(),
        Refusal::Frame(FrameError::Tag(tag)) => {
            format!("expected password response, got message type {tag}")
        }
        Refusal::Frame(FrameError::Length { .. }) => "invalid message length".into(),
        Refusal::NoDatabase { database } => {
            format!("database \"{}\" does not exist", shown(database))
        }
        Refusal::Forbidden { database } => {
            format!("permission denied for database \"{}\"", shown(database))
        }
        Refusal::Timeout => "canceling authentication due to timeout".into(),
        Refusal::Lookup => "cannot look up users now".into(),
        Refusal::Evicted => refusal.to_string(),
        Refusal::NoRule(asked) => no_rule(asked),
        Refusal::Rejected(asked) => rejected(asked),
        Refusal::NoCertificate => "connection requires a valid client certificate".into(),
        Refusal::Certificate { user } => failed("certificate", user),
        Refusal::NoRole { user } => format!("role \"{}\" does not exist", shown(user)),
        Refusal::Throttled { user, .. } => {
            format!(
                "too many failed logins for user \"{}\" from this address",
                shown(user)
            )
        }
    }
}

fn failed(method: &str, user: &[u8]) -> String {
    format!(
        "{method} authentication failed for user \"{}\"",
        shown(user)
    )
}

fn no_rule(asked: &Connection) -> String {
    let whose = whose(asked);
    match asked.replication {
        Some(Replication::Physical) => {
            format!("no pg_hba.conf entry for replication connection from {whose}")
        }
        Some(Replication::Logical) | None => format!("no pg_hba.conf entry for {whose}"),
    }
}

fn rejected(asked: &Connection) -> String {
    let whose = whose(asked);
    match asked.replication {
        Some(Replication::Physical) => {
            format!("pg_hba.conf rejects replication connection for {whose}")
        }
        Some(Replication::Logical) | None => {
            format!("pg_hba.conf rejects connection for {whose}")
        }
    }
}

/// From where a connection comes, for whom and how, in PostgreSQL's words.
fn whose(asked: &Connection) -> String {
    let database = match asked.replication {
        Some(Replication::Physical) => String::new(),
        Some(Replication::Logical) | None => {
            format!(" database \"{}\",", shown(&asked.database))
        }
    };
    let encryption = match asked.channel {
        Channel::Plain => "no encryption",
        Channel::Encrypted => "SSL encryption",
    };
    let (host, user) = (&asked.host, shown(&asked.user));
    format!("host \"{host}\", user \"{user}\",{database} {encryption}")
}

fn scram_message(error: ScramError) -> String {
    match error {
        ScramError::Downgrade => "SCRAM channel binding negotiation error".into(),
        ScramError::Binding => "SCRAM channel binding check failed".into(),
        ScramError::BindingMechanism => "malformed SCRAM message".into(),
        ScramError::BindingType => "unsupported SCRAM channel-binding type".into(),
        ScramError::BindingAttribute => {
            "unexpected SCRAM channel-binding attribute in client-final-message".into()
        }
        ScramError::Malformed
        | ScramError::AuthorizationIdentity
        | ScramError::Extension
        | ScramError::Nonce
        | ScramError::Proof
        | ScramError::Iterations
        | ScramError::ServerSignature
        | ScramError::ServerError
        | ScramError::OtherVerifier => error.to_string(),
    }
}

/// A name for people to read: what is not UTF-8 is escaped, nothing is replaced.
fn shown(name: &[u8]) -> String {
    match std::str::from_utf8(name) {
        Ok(text) => text.to_owned(),
        Err(_not_text) => name.escape_ascii().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(minor: u16, pairs: &[(&[u8], &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        startup::put_message(&mut out, minor, pairs);
        out.split_off(4)
    }

    fn enter(packet: &[u8]) -> Result<Entry, Refusal> {
        let step = ExpectPacket::new(TlsOffer::Offered, Channel::Plain).handle_packet(packet)?;
        let Step::Enter(entry) = step else {
            panic!("{step:?}")
        };
        Ok(entry)
    }

    const SSL: &[u8] = &[4, 210, 22, 47];
    const GSS: &[u8] = &[4, 210, 22, 48];

    #[test]
    fn encryption_may_be_asked_for_in_both_orders_but_once_each() {
        let start = ExpectPacket::new(TlsOffer::Off, Channel::Plain);
        for (first, second) in [(SSL, GSS), (GSS, SSL)] {
            let Ok(Step::Answer(b'N', next)) = start.handle_packet(first) else {
                panic!()
            };
            assert!(matches!(
                next.handle_packet(first),
                Err(Refusal::Startup(StartupError::Version { .. }))
            ));
            let Ok(Step::Answer(b'N', next)) = next.handle_packet(second) else {
                panic!()
            };
            assert!(matches!(
                next.handle_packet(second),
                Err(Refusal::Startup(StartupError::Version { .. }))
            ));
            assert!(matches!(
                next.handle_packet(&packet(0, &[(b"user", b"a")])),
                Ok(Step::Enter(_))
            ));
        }
        let Ok(Step::Handshake(inside)) =
            ExpectPacket::new(TlsOffer::Required, Channel::Plain).handle_packet(SSL)
        else {
            panic!()
        };
        for again in [SSL, GSS] {
            assert!(matches!(
                inside.handle_packet(again),
                Err(Refusal::Startup(StartupError::Version { .. }))
            ));
        }
        assert!(matches!(
            inside.handle_packet(&packet(0, &[(b"user", b"a")])),
            Ok(Step::Enter(_))
        ));
    }

    #[test]
    fn a_version_or_option_that_is_unknown_is_negotiated_once() {
        for (minor, option, agreed, bytes) in [
            (0, None, 0, &b""[..]),
            (2, None, 2, b""),
            (1, None, 0, b"v\0\0\0\x0c\0\x03\0\0\0\0\0\0"),
            (3, None, 2, b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0"),
            (
                9999,
                Some(&b"_pq_.a"[..]),
                2,
                b"v\0\0\0\x13\0\x03\0\x02\0\0\0\x01_pq_.a\0",
            ),
            (
                0,
                Some(b"_pq_.a"),
                0,
                b"v\0\0\0\x13\0\x03\0\0\0\0\0\x01_pq_.a\0",
            ),
        ] {
            let mut pairs = vec![(&b"user"[..], &b"u"[..])];
            pairs.extend(option.map(|name| (name, &b"1"[..])));
            let entry = enter(&packet(minor, &pairs)).unwrap();
            assert_eq!(
                (entry.minor, &entry.negotiation[..]),
                (agreed, bytes),
                "3.{minor}"
            );
            assert_eq!(entry.settings, [], "a protocol option is no setting");
        }
    }

    #[test]
    fn settings_of_options_come_before_those_of_the_packet() {
        let entry = enter(&packet(
            0,
            &[
                (b"application_name", b"a"),
                (b"options", b"-c application_name=b"),
                (b"user", b"\xff"),
                (b"replication", b"Off"),
            ],
        ))
        .unwrap();
        let name = || b"application_name".to_vec();
        assert_eq!(
            entry.settings,
            [(name(), b"b".to_vec()), (name(), b"a".to_vec())]
        );
        assert_eq!(
            (&entry.user[..], &entry.database[..]),
            (&b"\xff"[..], &b"\xff"[..])
        );
    }

    #[test]
    fn a_replication_connection_names_its_database_and_shard() {
        for (database, options, expected, shards) in [
            ("app", "", "app", &[][..]),
            ("app@s1", "", "app", &["s1"]),
            ("a@b@s1", "", "a@b", &["s1"]),
            ("app@s1", "-c shardway.shard=s2", "app", &["s1", "s2"]),
            ("replication", "-c shardway.database=app", "app", &[]),
            ("replication", "-c shardway.database=app@s1", "app", &["s1"]),
        ] {
            let entry = enter(&packet(
                0,
                &[
                    (b"user", b"u"),
                    (b"database", database.as_bytes()),
                    (b"options", options.as_bytes()),
                    (b"replication", b"database"),
                ],
            ))
            .unwrap();
            assert_eq!(entry.replication, Some(Replication::Logical));
            assert_eq!(entry.database, expected.as_bytes());
            let shards: Vec<Setting> = shards
                .iter()
                .map(|shard| (b"shardway.shard".to_vec(), shard.as_bytes().to_vec()))
                .collect();
            assert_eq!(entry.settings, shards, "{database} {options}");
        }
        let plain = enter(&packet(0, &[(b"user", b"u"), (b"database", b"app@s1")])).unwrap();
        assert_eq!(
            (plain.replication, &plain.database[..]),
            (None, &b"app@s1"[..])
        );
    }

    #[test]
    fn clients_are_refused_as_postgresql_refuses_them() {
        let required = ExpectPacket::new(TlsOffer::Required, Channel::Plain);
        let code = |refused: &Refusal| refusal(refused).map(|notice| notice.sqlstate);
        for (packet, expected) in [
            (packet(0, &[]), Some("28000")),
            (packet(0, &[(b"user", b"")]), Some("28000")),
            (packet(0, &[(b"user", b"a")]), Some("28000")),
            (b"\0\x02\0\0".to_vec(), Some("0A000")),
            (b"\0\x03\0\0a".to_vec(), Some("08P01")),
            (b"\x04\xd2\x16\x2e\0".to_vec(), None),
        ] {
            assert_eq!(
                code(&required.handle_packet(&packet).unwrap_err()),
                expected,
                "{packet:?}"
            );
        }
        for (pairs, expected) in [
            ([(&b"user"[..], &b"a"[..]), (b"options", b"-B 1")], "42601"),
            ([(b"user", b"a"), (b"options", b"-c x")], "42601"),
            ([(b"user", b"a"), (b"replication", b"perhaps")], "22023"),
        ] {
            assert_eq!(
                code(&enter(&packet(0, &pairs)).unwrap_err()),
                Some(expected),
                "{pairs:?}"
            );
        }
    }
}
