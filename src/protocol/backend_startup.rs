//! How a connection to a backend begins: proofs of who we are, then what the server says of itself. Pure.
//! The server is not trusted: once it has asked for SCRAM it must prove that it knows the password before it is
//! believed, and what may not come while starting ends the connection.
//!
//! A server that asks for a cleartext password gets it, with or without TLS, as from libpq by default: use
//! `verify-full` or a trusted network.

use crate::{
    auth::{
        md5,
        scram::{self, Client, ClientFinal, ScramError},
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

/// A name and its value, as the server sent them.
pub type Parameter = (Box<[u8]>, Box<[u8]>);

/// A connection to a backend that is not ready yet.
pub struct BackendStartup {
    user: String,
    password: Option<String>,
    nonce: [u8; 18],
    state: State,
    parameters: Vec<Parameter>,
    key: Option<(u32, Vec<u8>)>,
}

enum State {
    ExpectAuthentication,
    ExpectScramContinue(Client),
    ExpectScramFinal(ClientFinal),
    /// A password, an MD5 response or a SCRAM proof that held: only AuthenticationOk may follow.
    ExpectOk,
    ExpectReady,
}

/// A backend that is ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
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
    #[error("the server asks for an authentication that is not supported: {0}")]
    Method(u32),
    #[error("the server offers no SASL mechanism that is supported")]
    Mechanism,
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
    #[error("the server negotiated a version that was not asked for")]
    Version,
}

impl BackendStartup {
    /// After a StartupMessage of protocol 3.0. `nonce`: random bytes of this connection alone.
    #[must_use]
    pub fn new(user: &str, password: Option<&str>, nonce: [u8; 18]) -> Self {
        Self {
            user: user.to_owned(),
            password: password.map(str::to_owned),
            nonce,
            state: State::ExpectAuthentication,
            parameters: Vec::new(),
            key: None,
        }
    }

    /// Takes a message's tag and body.
    ///
    /// # Errors
    /// [`BackendStartupError`]: the connection is to be closed.
    pub fn handle_message(mut self, tag: u8, body: &[u8]) -> Result<Step, BackendStartupError> {
        match (tag, &self.state) {
            (b'E', _) => Ok(Step::Refused(body.to_vec())),
            (b'N', _) => Ok(Step::Continue(self, Vec::new())),
            // We ask for 3.0 and no options: there is nothing to negotiate.
            (b'v', _) => Err(BackendStartupError::Version),
            (b'R', _) => self.handle_authentication(body),
            (b'S', State::ExpectReady) => {
                let (name, value) = backend::parameter_status(body)?;
                if self.parameters.len() == MOST_PARAMETERS {
                    return Err(BackendStartupError::TooManyParameters);
                }
                self.parameters.push((name.into(), value.into()));
                Ok(Step::Continue(self, Vec::new()))
            }
            (b'K', State::ExpectReady) => {
                let mut body = Body::new(body);
                let pid = body.u32()?;
                if !CANCEL_KEY.contains(&body.rest().len()) {
                    return Err(DecodeError.into());
                }
                self.key = Some((pid, body.rest().to_vec()));
                Ok(Step::Continue(self, Vec::new()))
            }
            (b'Z', State::ExpectReady) => match Status::decode(body)? {
                Status::Idle => {
                    // A pooler may send no key: such a backend cannot be cancelled.
                    let (pid, key) = self.key.unwrap_or_default();
                    Ok(Step::Ready(Established { pid, key, parameters: self.parameters }))
                }
                Status::Transaction | Status::Failed => Err(DecodeError.into()),
            },
            (tag, _) => Err(BackendStartupError::Unexpected(tag)),
        }
    }

    fn handle_authentication(mut self, body: &[u8]) -> Result<Step, BackendStartupError> {
        let mut body = Body::new(body);
        let kind = body.u32()?;
        let data = body.rest();
        let (state, reply) = match (kind, self.state) {
            (0, State::ExpectAuthentication | State::ExpectOk) => (State::ExpectReady, Vec::new()),
            (3, State::ExpectAuthentication) => {
                let password = self.password.as_deref().ok_or(BackendStartupError::NoPassword)?;
                (State::ExpectOk, password_message(password.as_bytes()))
            }
            (5, State::ExpectAuthentication) => {
                let password = self.password.as_deref().ok_or(BackendStartupError::NoPassword)?;
                let salt: [u8; 4] = data.try_into().map_err(|_other_length| DecodeError)?;
                let hash = md5::Hash::parse(password)
                    .unwrap_or_else(|| md5::Hash::of(self.user.as_bytes(), password.as_bytes()));
                (State::ExpectOk, password_message(&hash.response(salt)))
            }
            (10, State::ExpectAuthentication) => {
                let password = self.password.as_deref().ok_or(BackendStartupError::NoPassword)?;
                if !offers_scram(data)? {
                    return Err(BackendStartupError::Mechanism);
                }
                let (client, first) = Client::begin(password, self.nonce);
                (State::ExpectScramContinue(client), sasl_initial(&first))
            }
            (11, State::ExpectScramContinue(client)) => {
                let (client, last) = client.handle_first(data)?;
                (State::ExpectScramFinal(client), message(|out| out.extend_from_slice(&last)))
            }
            (12, State::ExpectScramFinal(client)) => {
                client.handle_final(data)?;
                (State::ExpectOk, Vec::new())
            }
            (0 | 3 | 5 | 10 | 11 | 12, _) => return Err(BackendStartupError::Order(kind)),
            (kind, _) => return Err(BackendStartupError::Method(kind)),
        };
        self.state = state;
        Ok(Step::Continue(self, reply))
    }
}

/// Whether SCRAM-SHA-256 is among the mechanisms of AuthenticationSASL.
fn offers_scram(data: &[u8]) -> Result<bool, DecodeError> {
    let mut body = Body::new(data);
    let mut found = false;
    loop {
        match body.cstr()? {
            b"" => return Ok(found),
            mechanism => found |= mechanism == scram::MECHANISM.as_bytes(),
        }
    }
}

fn password_message(text: &[u8]) -> Vec<u8> {
    message(|out| {
        out.extend_from_slice(text);
        out.push(0);
    })
}

fn sasl_initial(data: &[u8]) -> Vec<u8> {
    message(|out| {
        out.extend_from_slice(scram::MECHANISM.as_bytes());
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

    fn startup() -> BackendStartup {
        BackendStartup::new("ann", Some("secret"), [1; 18])
    }

    fn after(messages: &[(u8, &[u8])]) -> Result<Step, BackendStartupError> {
        let mut startup = startup();
        let (last, before) = messages.split_last().unwrap();
        for (tag, body) in before {
            let Step::Continue(next, _) = startup.handle_message(*tag, body)? else { panic!("over too early") };
            startup = next;
        }
        startup.handle_message(last.0, last.1)
    }

    const OK: (u8, &[u8]) = (b'R', &[0, 0, 0, 0]);

    #[test]
    fn what_the_server_says_of_itself_is_kept() {
        let key = (b'K', &b"\0\0\0\x07\x01\x02\x03\x04"[..]);
        let Ok(Step::Ready(established)) =
            after(&[OK, (b'N', b"\0"), (b'S', b"server_version\x0015\0"), key, (b'Z', b"I")])
        else {
            panic!()
        };
        assert_eq!((established.pid, &established.key[..]), (7, &[1, 2, 3, 4][..]));
        assert_eq!(established.parameters, [(b"server_version"[..].into(), b"15"[..].into())]);
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
            (&[(b'Z', &b"I"[..])][..], BackendStartupError::Unexpected(b'Z')),
            (&[(b'S', b"a\0b\0")], BackendStartupError::Unexpected(b'S')),
            (&[sasl, OK], BackendStartupError::Order(0)),
            (&[sasl, password], BackendStartupError::Order(3)),
            (&[(b'R', b"\0\0\0\x0c")], BackendStartupError::Order(12)),
            (&[password, password], BackendStartupError::Order(3)),
            (&[OK, OK], BackendStartupError::Order(0)),
            (&[(b'R', b"\0\0\0\x07")], BackendStartupError::Method(7)),
            (&[(b'R', b"\0\0\0\x05abc")], BackendStartupError::Decode(DecodeError)),
            (&[(b'R', b"\0\0\0\x0aOTHER\0\0")], BackendStartupError::Mechanism),
            (&[(b'R', b"\0\0\0\x0aSCRAM-SHA-256\0")], BackendStartupError::Decode(DecodeError)),
            (&[OK, (b'K', b"\0\0\0\x07abc")], BackendStartupError::Decode(DecodeError)),
            (&[OK, (b'Z', b"T")], BackendStartupError::Decode(DecodeError)),
            (&[OK, (b'D', b"")], BackendStartupError::Unexpected(b'D')),
            (&[(b'v', b"\0\x03\0\0\0\0\0\0")], BackendStartupError::Version),
        ] {
            assert_eq!(after(messages).map(|_| ()), Err(expected), "{messages:?}");
        }
    }
}
