//! How a connection to a backend begins: the version agreed on, proofs of who we are, then what the server says of
//! itself. Pure. The server is not trusted: once it has asked for SCRAM it must prove that it knows the password before
//! it is believed, where channel binding is required nothing but a bound exchange lets it be, and what may not come while
//! starting ends the connection.
//!
//! A server that asks for a cleartext password gets it, with or without TLS, as from libpq by default: use
//! `verify-full`, `channel_binding=require` or a trusted network.

use crate::{
    auth::{
        md5,
        scram::{self, ChannelBinding, Client, ClientFinal, Gs2, Proof, ScramError},
    },
    wire::{
        backend::{self, Status},
        frame::{Body, DecodeError},
        frontend::put,
        startup::CANCEL_KEY,
    },
};

/// The most ParameterStatus messages of one startup: PostgreSQL sends some fifteen.
const MOST_PARAMETERS: usize = 256;
/// The newest minor version of protocol 3 that is asked of servers.
pub const NEWEST_MINOR: u16 = 2;

/// A name and its value, as the server sent them.
pub type Parameter = (Box<[u8]>, Box<[u8]>);

/// How the bytes travel, and what of it a login can be bound to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Channel {
    Plain,
    /// With the hash of the server's certificate, when there is one.
    Tls(Option<Vec<u8>>),
}

/// Who logs in, and how.
#[derive(Clone, Debug)]
pub struct Login {
    pub user: String,
    pub proof: Option<Proof>,
    pub binding: ChannelBinding,
    pub channel: Channel,
    /// The minor version of protocol 3 that the StartupMessage asked for.
    pub minor: u16,
    /// Random bytes of this connection alone.
    pub nonce: [u8; 18],
}

/// A connection to a backend that is not ready yet.
pub struct BackendStartup {
    login: Box<Login>,
    expect: Expect,
    parameters: Vec<Parameter>,
    key: Option<(u32, Vec<u8>)>,
}

/// The message that may come next.
enum Expect {
    Authentication,
    ScramContinue(Client),
    ScramFinal(ClientFinal),
    /// A password, an MD5 response or a SCRAM proof that held: only AuthenticationOk may follow.
    Ok,
    Ready,
}

/// A backend that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    /// The minor version agreed on.
    pub minor: u16,
    pub pid: u32,
    pub key: Vec<u8>,
    /// In the order in which the server sent them.
    pub parameters: Vec<Parameter>,
}

/// What to do after a message of the server.
pub enum Step {
    /// Send the bytes, if any; expect another message.
    Continue(BackendStartup, Vec<u8>),
    Ready(Established),
    /// ErrorResponse: its body.
    Refused(Vec<u8>),
}

/// What the server may not do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BackendStartupError {
    #[error("the server asks for a password, and none is configured")]
    NoPassword,
    /// Keys that a client has shown answer SCRAM and nothing else.
    #[error("the server asks for a password, and what the client has shown answers SCRAM only")]
    KeysOnly,
    #[error("the server asks for an authentication that is not supported: {0}")]
    Method(u32),
    #[error("the server offers no SASL mechanism that is supported")]
    Mechanism,
    #[error("channel binding is required, and {0}")]
    Unbound(Unbound),
    #[error("the server offered channel binding on a connection without TLS")]
    BindingWithoutTls,
    #[error(transparent)]
    Scram(#[from] ScramError),
    #[error("the server sent a message of type {0} while starting")]
    Unexpected(u8),
    #[error("the server sent an authentication message of type {0} out of order")]
    Order(u32),
    #[error("the server sent a malformed message")]
    Decode(#[from] DecodeError),
    #[error("the server sent too many parameters")]
    TooManyParameters,
    #[error("the server negotiated a version or an option that was not asked for")]
    Version,
}

/// Why a login could not be bound to its channel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unbound {
    #[error("the connection is not encrypted")]
    Plain,
    #[error(
        "the server's certificate has no hash function to bind to in its signature, or is not of X.509 version 3"
    )]
    Certificate,
    #[error("the server does not offer it")]
    NotOffered,
    #[error("the server asks for another proof than SCRAM, or for none")]
    NotScram,
}

impl BackendStartup {
    /// After a StartupMessage.
    #[must_use]
    pub fn new(login: Login) -> Self {
        Self {
            login: Box::new(login),
            expect: Expect::Authentication,
            parameters: Vec::new(),
            key: None,
        }
    }

    /// Takes a message's tag and body.
    ///
    /// # Errors
    /// [`BackendStartupError`]: the connection is to be closed.
    pub fn handle_message(mut self, tag: u8, body: &[u8]) -> Result<Step, BackendStartupError> {
        match (tag, &self.expect) {
            (b'E', _) => Ok(Step::Refused(body.to_vec())),
            (b'N', _) => Ok(Step::Continue(self, Vec::new())),
            (b'v', Expect::Authentication) => self.handle_negotiation(body),
            (b'v', _) => Err(BackendStartupError::Version),
            (b'R', _) => self.handle_authentication(body),
            (b'S', Expect::Ready) => {
                let (name, value) = backend::parameter_status(body)?;
                if self.parameters.len() == MOST_PARAMETERS {
                    return Err(BackendStartupError::TooManyParameters);
                }
                self.parameters.push((name.into(), value.into()));
                Ok(Step::Continue(self, Vec::new()))
            }
            (b'K', Expect::Ready) => {
                let mut body = Body::new(body);
                let pid = body.u32()?;
                if !CANCEL_KEY.contains(&body.rest().len()) {
                    return Err(DecodeError.into());
                }
                self.key = Some((pid, body.rest().to_vec()));
                Ok(Step::Continue(self, Vec::new()))
            }
            (b'Z', Expect::Ready) => match Status::decode(body)? {
                Status::Idle => {
                    // A pooler may send no key: such a backend cannot be cancelled.
                    let (pid, key) = self.key.unwrap_or_default();
                    Ok(Step::Ready(Established {
                        minor: self.login.minor,
                        pid,
                        key,
                        parameters: self.parameters,
                    }))
                }
                Status::Transaction | Status::Failed => Err(DecodeError.into()),
            },
            (tag, _) => Err(BackendStartupError::Unexpected(tag)),
        }
    }

    /// NegotiateProtocolVersion: the server wants an older version than we asked for. We ask for no options, so it has
    /// none to refuse. The version comes whole from PostgreSQL; the manual says "minor", which is read too.
    fn handle_negotiation(mut self, body: &[u8]) -> Result<Step, BackendStartupError> {
        let mut body = Body::new(body);
        let (version, options) = (body.u32()?, body.u32()?);
        body.end()?;
        // 3.1 never existed. A second one finds nothing that could be older.
        let older = matches!(version, 0 | 0x0003_0000) && self.login.minor > 0;
        if options > 0 || !older {
            return Err(BackendStartupError::Version);
        }
        self.login.minor = 0;
        Ok(Step::Continue(self, Vec::new()))
    }

    fn handle_authentication(mut self, body: &[u8]) -> Result<Step, BackendStartupError> {
        let mut body = Body::new(body);
        let kind = body.u32()?;
        let data = body.rest();
        let (expect, reply) = match (kind, self.expect) {
            (0, Expect::Ok) => (Expect::Ready, Vec::new()),
            (0, Expect::Authentication) => {
                self.login.may_go_unbound(Unbound::NotScram)?;
                (Expect::Ready, Vec::new())
            }
            (3, Expect::Authentication) => {
                let password = self.login.password()?;
                (Expect::Ok, password_message(password.as_bytes()))
            }
            (5, Expect::Authentication) => {
                let password = self.login.password()?;
                let salt: [u8; 4] = data.try_into().map_err(|_other_length| DecodeError)?;
                let hash = md5::Hash::parse(password).unwrap_or_else(|| {
                    md5::Hash::of(self.login.user.as_bytes(), password.as_bytes())
                });
                (Expect::Ok, password_message(&hash.response(salt)))
            }
            (10, Expect::Authentication) => {
                let gs2 = self.login.bind(offers(data)?)?;
                let mechanism = match gs2 {
                    Gs2::EndPoint(_) => scram::MECHANISM_PLUS,
                    Gs2::Cannot | Gs2::Could => scram::MECHANISM,
                };
                let proof = self.login.proof.clone();
                let proof = proof.ok_or(BackendStartupError::NoPassword)?;
                let (client, first) = Client::with(proof, gs2, self.login.nonce);
                (
                    Expect::ScramContinue(client),
                    sasl_initial(mechanism, &first),
                )
            }
            (11, Expect::ScramContinue(client)) => {
                let (client, last) = client.handle_first(data)?;
                (
                    Expect::ScramFinal(client),
                    message(|out| out.extend_from_slice(&last)),
                )
            }
            (12, Expect::ScramFinal(client)) => {
                client.handle_final(data)?;
                (Expect::Ok, Vec::new())
            }
            (0 | 3 | 5 | 10 | 11 | 12, _) => return Err(BackendStartupError::Order(kind)),
            (kind, _) => return Err(BackendStartupError::Method(kind)),
        };
        self.expect = expect;
        Ok(Step::Continue(self, reply))
    }
}

impl Login {
    /// # Errors
    /// When the login must be bound to its channel.
    fn may_go_unbound(&self, why: Unbound) -> Result<(), BackendStartupError> {
        match self.binding {
            ChannelBinding::Disable | ChannelBinding::Prefer => Ok(()),
            ChannelBinding::Require => Err(BackendStartupError::Unbound(why)),
        }
    }

    /// The password, to be given away or hashed for the server.
    fn password(&self) -> Result<&str, BackendStartupError> {
        self.may_go_unbound(Unbound::NotScram)?;
        match &self.proof {
            Some(Proof::Password(password)) => Ok(password),
            Some(Proof::Keys(_)) => Err(BackendStartupError::KeysOnly),
            None => Err(BackendStartupError::NoPassword),
        }
    }

    /// How SCRAM is bound to the channel, from what the server offers.
    fn bind(&self, offered: Offered) -> Result<Gs2, BackendStartupError> {
        match (&self.channel, offered) {
            (
                _,
                Offered {
                    plain: false,
                    plus: false,
                },
            ) => Err(BackendStartupError::Mechanism),
            // Somebody in between passes on what was offered over TLS.
            (Channel::Plain, Offered { plus: true, .. }) => {
                Err(BackendStartupError::BindingWithoutTls)
            }
            (Channel::Plain, _) => {
                self.may_go_unbound(Unbound::Plain)?;
                Ok(Gs2::Cannot)
            }
            (Channel::Tls(Some(hash)), Offered { plus: true, .. })
                if self.binding != ChannelBinding::Disable =>
            {
                Ok(Gs2::EndPoint(hash.clone()))
            }
            (Channel::Tls(_), Offered { plain: false, .. }) => Err(BackendStartupError::Mechanism),
            (Channel::Tls(None), _) => {
                self.may_go_unbound(Unbound::Certificate)?;
                Ok(Gs2::Cannot)
            }
            (Channel::Tls(Some(_)), _) => {
                self.may_go_unbound(Unbound::NotOffered)?;
                Ok(match self.binding {
                    ChannelBinding::Disable => Gs2::Cannot,
                    ChannelBinding::Prefer | ChannelBinding::Require => Gs2::Could,
                })
            }
        }
    }
}

/// Which of the mechanisms that we know AuthenticationSASL offers.
#[derive(Clone, Copy, Debug, Default)]
struct Offered {
    plain: bool,
    plus: bool,
}

fn offers(data: &[u8]) -> Result<Offered, DecodeError> {
    let mut body = Body::new(data);
    let mut found = Offered::default();
    loop {
        match body.cstr()? {
            b"" => return Ok(found),
            mechanism => {
                found.plain |= mechanism == scram::MECHANISM.as_bytes();
                found.plus |= mechanism == scram::MECHANISM_PLUS.as_bytes();
            }
        }
    }
}

fn password_message(text: &[u8]) -> Vec<u8> {
    message(|out| {
        out.extend_from_slice(text);
        out.push(0);
    })
}

fn sasl_initial(mechanism: &str, data: &[u8]) -> Vec<u8> {
    message(|out| {
        out.extend_from_slice(mechanism.as_bytes());
        out.push(0);
        out.extend_from_slice(&u32::try_from(data.len()).unwrap_or(u32::MAX).to_be_bytes());
        out.extend_from_slice(data);
    })
}

fn message(body: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, b'p', body);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login() -> Login {
        Login {
            user: "ann".to_owned(),
            proof: Some(Proof::password("secret")),
            binding: ChannelBinding::Prefer,
            channel: Channel::Plain,
            minor: NEWEST_MINOR,
            nonce: [1; 18],
        }
    }

    fn after(messages: &[(u8, &[u8])]) -> Result<Step, BackendStartupError> {
        after_as(login(), messages)
    }

    fn after_as(login: Login, messages: &[(u8, &[u8])]) -> Result<Step, BackendStartupError> {
        let mut startup = BackendStartup::new(login);
        let (last, before) = messages.split_last().unwrap();
        for (tag, body) in before {
            let Step::Continue(next, _) = startup.handle_message(*tag, body)? else {
                panic!("over too early")
            };
            startup = next;
        }
        startup.handle_message(last.0, last.1)
    }

    const OK: (u8, &[u8]) = (b'R', &[0, 0, 0, 0]);
    const OLDER: (u8, &[u8]) = (b'v', b"\0\x03\0\0\0\0\0\0");
    const PLAIN: (u8, &[u8]) = (b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
    const BOTH: (u8, &[u8]) = (b'R', b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");

    #[test]
    fn a_key_of_any_length_that_the_protocol_allows_is_kept_with_the_version_agreed_on() {
        for (negotiation, minor) in [(None, 2), (Some(OLDER), 0)] {
            for length in [4, 32, 100, 256] {
                let key = [&[0, 0, 0, 7], &vec![9; length][..]].concat();
                let mut messages: Vec<_> = negotiation.into_iter().collect();
                messages.extend([OK, (b'K', &key[..]), (b'Z', b"I")]);
                let Ok(Step::Ready(established)) = after(&messages) else {
                    panic!("{length}")
                };
                assert_eq!(established.minor, minor);
                assert_eq!(established.key, vec![9; length]);
            }
        }
    }

    /// How SCRAM begins over this channel, or why it does not.
    fn begins(
        binding: ChannelBinding,
        channel: Channel,
        offer: (u8, &[u8]),
    ) -> Result<String, BackendStartupError> {
        let login = Login {
            binding,
            channel,
            ..login()
        };
        match after_as(login, &[offer])? {
            Step::Continue(_, reply) => {
                let text = String::from_utf8_lossy(&reply[5..]).into_owned();
                let (mechanism, first) = text.split_once('\0').unwrap();
                let (header, _) = first[4..].split_once("n=").unwrap();
                Ok(format!("{mechanism} {header}"))
            }
            Step::Ready(_) | Step::Refused(_) => panic!("over too early"),
        }
    }

    #[test]
    fn a_login_is_bound_to_its_channel_where_both_sides_can() {
        use ChannelBinding::{Disable, Prefer, Require};
        let tls = || Channel::Tls(Some(vec![1; 32]));
        let unbound = |why| Err(BackendStartupError::Unbound(why));
        for (binding, channel, offer, expected) in [
            (
                Prefer,
                tls(),
                BOTH,
                Ok("SCRAM-SHA-256-PLUS p=tls-server-end-point,,"),
            ),
            (
                Require,
                tls(),
                BOTH,
                Ok("SCRAM-SHA-256-PLUS p=tls-server-end-point,,"),
            ),
            (Disable, tls(), BOTH, Ok("SCRAM-SHA-256 n,,")),
            // Had somebody in between taken the offer away, the server would see that we could.
            (Prefer, tls(), PLAIN, Ok("SCRAM-SHA-256 y,,")),
            (Require, tls(), PLAIN, unbound(Unbound::NotOffered)),
            (Prefer, Channel::Tls(None), BOTH, Ok("SCRAM-SHA-256 n,,")),
            (
                Require,
                Channel::Tls(None),
                BOTH,
                unbound(Unbound::Certificate),
            ),
            (Prefer, Channel::Plain, PLAIN, Ok("SCRAM-SHA-256 n,,")),
            (Require, Channel::Plain, PLAIN, unbound(Unbound::Plain)),
            (
                Prefer,
                Channel::Plain,
                BOTH,
                Err(BackendStartupError::BindingWithoutTls),
            ),
        ] {
            let begun = begins(binding, channel.clone(), offer);
            assert_eq!(
                begun.as_deref(),
                expected.as_ref().map(|text| *text),
                "{binding:?} {channel:?}"
            );
        }
    }

    #[test]
    fn where_channel_binding_is_required_no_other_proof_is_given_and_none_believed() {
        for offer in [OK, (b'R', &[0, 0, 0, 3][..]), (b'R', b"\0\0\0\x05salt")] {
            let login = Login {
                binding: ChannelBinding::Require,
                channel: Channel::Tls(Some(vec![1; 32])),
                ..login()
            };
            assert_eq!(
                after_as(login, &[offer]).map(|_| ()),
                Err(BackendStartupError::Unbound(Unbound::NotScram)),
                "{offer:?}"
            );
        }
    }

    #[test]
    fn what_the_server_says_of_itself_is_kept() {
        let key = (b'K', &b"\0\0\0\x07\x01\x02\x03\x04"[..]);
        let Ok(Step::Ready(established)) = after(&[
            OK,
            (b'N', b"\0"),
            (b'S', b"server_version\x0015\0"),
            key,
            (b'Z', b"I"),
        ]) else {
            panic!()
        };
        assert_eq!(
            (established.pid, &established.key[..]),
            (7, &[1, 2, 3, 4][..])
        );
        assert_eq!(
            established.parameters,
            [(b"server_version"[..].into(), b"15"[..].into())]
        );
    }

    #[test]
    fn an_error_is_kept_whole() {
        let body = b"SFATAL\0Xunknown field\0C53300\0\0";
        assert!(matches!(after(&[(b'E', body)]), Ok(Step::Refused(kept)) if kept == body));
    }

    #[test]
    fn a_server_that_breaks_the_order_is_not_believed() {
        let sasl: (u8, &[u8]) = (b'R', b"\0\0\0\x0aSCRAM-SHA-256\0\0");
        let password: (u8, &[u8]) = (b'R', &[0, 0, 0, 3]);
        for (messages, expected) in [
            (
                &[(b'Z', &b"I"[..])][..],
                BackendStartupError::Unexpected(b'Z'),
            ),
            (&[(b'S', b"a\0b\0")], BackendStartupError::Unexpected(b'S')),
            (&[sasl, OK], BackendStartupError::Order(0)),
            (&[sasl, password], BackendStartupError::Order(3)),
            (&[(b'R', b"\0\0\0\x0c")], BackendStartupError::Order(12)),
            (&[password, password], BackendStartupError::Order(3)),
            (&[OK, OK], BackendStartupError::Order(0)),
            (&[(b'R', b"\0\0\0\x07")], BackendStartupError::Method(7)),
            (
                &[(b'R', b"\0\0\0\x05abc")],
                BackendStartupError::Decode(DecodeError),
            ),
            (
                &[(b'R', b"\0\0\0\x0aOTHER\0\0")],
                BackendStartupError::Mechanism,
            ),
            (
                &[(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0")],
                BackendStartupError::Decode(DecodeError),
            ),
            (
                &[OK, (b'K', b"\0\0\0\x07abc")],
                BackendStartupError::Decode(DecodeError),
            ),
            (
                &[OK, (b'Z', b"T")],
                BackendStartupError::Decode(DecodeError),
            ),
            (&[OK, (b'D', b"")], BackendStartupError::Unexpected(b'D')),
            (&[OLDER, OLDER], BackendStartupError::Version),
            (&[OK, OLDER], BackendStartupError::Version),
            (
                &[(b'v', b"\0\x03\0\x01\0\0\0\0")],
                BackendStartupError::Version,
            ),
            (
                &[(b'v', b"\0\x03\0\x02\0\0\0\0")],
                BackendStartupError::Version,
            ),
            (
                &[(b'v', b"\0\x03\0\x03\0\0\0\0")],
                BackendStartupError::Version,
            ),
            (
                &[(b'v', b"\0\x02\0\0\0\0\0\0")],
                BackendStartupError::Version,
            ),
            (
                &[(b'v', b"\0\x03\0\0\0\0\0\x01_pq_.x\0")],
                BackendStartupError::Decode(DecodeError),
            ),
            (
                &[(b'v', b"\0\x03\0\0\0\0\0\x01")],
                BackendStartupError::Version,
            ),
        ] {
            assert_eq!(after(messages).map(|_| ()), Err(expected), "{messages:?}");
        }
    }
}
