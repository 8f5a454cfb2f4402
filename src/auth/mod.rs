//! Proofs of who somebody is: password, MD5, SCRAM-SHA-256. Pure: bytes in, bytes out; salts and nonces are arguments.
//! An unknown account goes through the same exchange as a known one and fails where a wrong password fails.
//! What a certificate says about its subject and its signature is read here too.

pub mod certificate;
pub mod md5;
pub mod scram;

use crate::wire::frame::{Body, DecodeError};
use scram::{Binding, ExpectFinal, ExpectFirst, Proof, ScramError, Verifier};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use subtle::ConstantTimeEq;

/// What is kept of a password, as `pg_authid.rolpassword` keeps it.
#[derive(Clone, PartialEq, Eq)]
pub enum Stored {
    Plain(String),
    Md5(md5::Hash),
    Scram(Arc<Verifier>),
}

impl Stored {
    /// Reads a secret: `SCRAM-SHA-256$…` and `md5…` are stored forms, all else is the password itself.
    #[must_use]
    pub fn read(secret: &str) -> Self {
        if let Some(verifier) = Verifier::parse(secret) {
            return Self::Scram(Arc::new(verifier));
        }
        md5::Hash::parse(secret).map_or_else(|| Self::Plain(secret.to_owned()), Self::Md5)
    }

    /// Whether `given` is the password, in constant time.
    fn is(&self, user: &[u8], given: &[u8]) -> bool {
        match self {
            // Of digests, so that the time does not tell the length either.
            Self::Plain(password) => {
                bool::from(Sha256::digest(password).ct_eq(&Sha256::digest(given)))
            }
            Self::Md5(hash) => *hash == md5::Hash::of(user, given),
            Self::Scram(verifier) => verifier.is(given),
        }
    }
}

/// What a client must show.
#[derive(Clone, PartialEq, Eq)]
pub enum Demand {
    Nothing,
    Password(Stored),
    Md5(md5::Hash),
    Scram(Arc<Verifier>),
}

/// Whether the account exists. `Mock`: the exchange is held, and fails at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
    Known,
    Mock,
}

/// Fresh random bytes for one exchange.
#[derive(Clone, Copy)]
pub struct Fresh {
    pub salt: [u8; 4],
    pub nonce: [u8; 18],
}

/// What the client is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Password,
    Md5([u8; 4]),
    /// SASL with SCRAM-SHA-256 as the one mechanism.
    Scram,
    /// SASL with SCRAM-SHA-256-PLUS, or without channel binding.
    ScramPlus,
}

/// Why a client was not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The proof is wrong, or nobody has that name: never told apart.
    #[error("the proof is wrong")]
    Wrong,
    #[error("invalid authentication message")]
    Decode(#[from] DecodeError),
    #[error("the client selected an unknown SASL mechanism")]
    Mechanism,
    #[error(transparent)]
    Scram(ScramError),
}

/// An exchange that expects a message of the client.
pub struct Exchange {
    user: Vec<u8>,
    account: Account,
    expect: Expect,
}

/// The message that must come next.
enum Expect {
    Password(Stored),
    Md5(md5::Hash, [u8; 4]),
    /// With the hash of our certificate when channel binding is offered.
    ScramFirst(Arc<Verifier>, [u8; 18], Option<Arc<[u8]>>),
    ScramFinal(ExpectFinal),
}

/// What comes after a message of the client.
pub enum Reply {
    /// SASL data to send, and what is expected then.
    Continue(Exchange, Vec<u8>),
    /// The proof holds; SCRAM has data to send before that is said. What the client has shown may log in elsewhere.
    Accepted(Option<Vec<u8>>, Option<Proof>),
}

impl Exchange {
    /// Begins the exchange that `demand` asks for; none when nothing is demanded. `end_point`: the hash of the
    /// certificate that the client was shown, to offer channel binding.
    #[must_use]
    pub fn begin(
        user: &[u8],
        demand: Demand,
        account: Account,
        fresh: Fresh,
        end_point: Option<Arc<[u8]>>,
    ) -> Option<(Self, Ask)> {
        let (expect, ask) = match demand {
            Demand::Nothing => return None,
            Demand::Password(stored) => (Expect::Password(stored), Ask::Password),
            Demand::Md5(hash) => (Expect::Md5(hash, fresh.salt), Ask::Md5(fresh.salt)),
            Demand::Scram(verifier) => {
                let ask = match end_point {
                    Some(_) => Ask::ScramPlus,
                    None => Ask::Scram,
                };
                (Expect::ScramFirst(verifier, fresh.nonce, end_point), ask)
            }
        };
        Some((
            Self {
                user: user.to_vec(),
                account,
                expect,
            },
            ask,
        ))
    }

    /// Whether the next message takes a processor's time to check.
    #[must_use]
    pub fn takes_effort(&self) -> bool {
        matches!(self.expect, Expect::Password(Stored::Scram(_)))
    }

    /// Takes the body of a `p` message.
    ///
    /// # Errors
    /// [`AuthError`]: the exchange is over.
    pub fn handle_message(self, body: &[u8]) -> Result<Reply, AuthError> {
        let Self {
            user,
            account,
            expect,
        } = self;
        match expect {
            Expect::Password(stored) => {
                let given = password(body)?;
                let right = stored.is(&user, given);
                let shown = std::str::from_utf8(given).ok().map(Proof::password);
                accept(account, right, None, shown)
            }
            Expect::Md5(hash, salt) => {
                let right = hash.answers(salt, password(body)?);
                // Where the same hash is stored, it answers as the password does.
                let shown = hash.secret();
                accept(account, right, None, Some(Proof::password(&shown)))
            }
            Expect::ScramFirst(verifier, nonce, end_point) => {
                let mut body = Body::new(body);
                let binding = binding(body.cstr()?, end_point)?;
                let first = ExpectFirst::new(verifier, nonce, binding);
                let message = body.value()?.ok_or(DecodeError)?;
                body.end()?;
                let (data, last) = first.handle_first(message).map_err(AuthError::Scram)?;
                Ok(Reply::Continue(
                    Self {
                        user,
                        account,
                        expect: Expect::ScramFinal(last),
                    },
                    data,
                ))
            }
            Expect::ScramFinal(last) => match last.handle_final(body) {
                Ok((data, keys)) => {
                    accept(account, true, Some(data), Some(Proof::Keys(Arc::new(keys))))
                }
                Err(ScramError::Proof) => Err(AuthError::Wrong),
                Err(error) => Err(AuthError::Scram(error)),
            },
        }
    }
}

/// What the selected mechanism means for the binding that was offered, or was not.
fn binding(mechanism: &[u8], end_point: Option<Arc<[u8]>>) -> Result<Binding, AuthError> {
    if mechanism == scram::MECHANISM.as_bytes() {
        return Ok(match end_point {
            Some(_) => Binding::Declined,
            None => Binding::NotOffered,
        });
    }
    match end_point {
        Some(hash) if mechanism == scram::MECHANISM_PLUS.as_bytes() => Ok(Binding::Used(hash)),
        Some(_) | None => Err(AuthError::Mechanism),
    }
}

/// The one string of a PasswordMessage. An empty one is never a password.
fn password(body: &[u8]) -> Result<&[u8], AuthError> {
    let mut body = Body::new(body);
    let text = body.cstr()?;
    body.end()?;
    if text.is_empty() {
        Err(AuthError::Wrong)
    } else {
        Ok(text)
    }
}

fn accept(
    account: Account,
    right: bool,
    data: Option<Vec<u8>>,
    shown: Option<Proof>,
) -> Result<Reply, AuthError> {
    match (account, right) {
        (Account::Known, true) => Ok(Reply::Accepted(data, shown)),
        (Account::Known, false) | (Account::Mock, _) => Err(AuthError::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Fresh = Fresh {
        salt: *b"salt",
        nonce: [7; 18],
    };

    fn outcome(demand: Demand, account: Account, body: &[u8]) -> Result<(), AuthError> {
        let (exchange, _) = Exchange::begin(b"ann", demand, account, FRESH, None).unwrap();
        exchange.handle_message(body).map(|_| ())
    }

    #[test]
    fn a_cleartext_password_is_checked_against_every_stored_form() {
        let scram = Verifier::of(b"secret", b"0123456789abcdef", 4096).text();
        let md5 = "md5".to_owned() + &hex(md5::Hash::of(b"ann", b"secret"));
        for stored in ["secret", &scram, &md5] {
            let demand = || Demand::Password(Stored::read(stored));
            assert_eq!(
                outcome(demand(), Account::Known, b"secret\0"),
                Ok(()),
                "{stored}"
            );
            assert_eq!(
                outcome(demand(), Account::Known, b"wrong\0"),
                Err(AuthError::Wrong),
                "{stored}"
            );
            assert_eq!(
                outcome(demand(), Account::Known, b"\0"),
                Err(AuthError::Wrong),
                "{stored}"
            );
            assert_eq!(
                outcome(demand(), Account::Known, b"secret"),
                Err(AuthError::Decode(DecodeError))
            );
            assert_eq!(
                outcome(demand(), Account::Known, b"secret\0x"),
                Err(AuthError::Decode(DecodeError))
            );
            assert_eq!(
                outcome(demand(), Account::Mock, b"secret\0"),
                Err(AuthError::Wrong),
                "{stored}"
            );
        }
    }

    #[test]
    fn a_verifier_that_asks_for_too_much_work_is_not_computed() {
        let verifier = |iterations| {
            let verifier = Verifier::of(b"secret", b"0123456789abcdef", iterations);
            Demand::Password(Stored::Scram(Arc::new(verifier)))
        };
        let given = |iterations| outcome(verifier(iterations), Account::Known, b"secret\0");
        assert_eq!(given(10_000), Ok(()));
        assert_eq!(given(scram::MOST_ITERATIONS + 1), Err(AuthError::Wrong));
    }

    #[test]
    fn an_md5_response_is_checked_with_its_salt() {
        let hash = md5::Hash::of(b"ann", b"secret");
        let mut body = hash.response(FRESH.salt);
        body.push(0);
        assert_eq!(outcome(Demand::Md5(hash), Account::Known, &body), Ok(()));
        assert_eq!(
            outcome(Demand::Md5(hash), Account::Mock, &body),
            Err(AuthError::Wrong)
        );
        let mut replayed = hash.response(*b"SALT");
        replayed.push(0);
        assert_eq!(
            outcome(Demand::Md5(hash), Account::Known, &replayed),
            Err(AuthError::Wrong)
        );
    }

    fn scram_login(verifier: Verifier, account: Account, password: &str) -> Result<(), AuthError> {
        let (exchange, ask) = Exchange::begin(
            b"ann",
            Demand::Scram(Arc::new(verifier)),
            account,
            FRESH,
            None,
        )
        .unwrap();
        assert_eq!(ask, Ask::Scram);
        let (client, first) = scram::Client::begin(password, [9; 18]);
        let mut body = b"SCRAM-SHA-256\0".to_vec();
        body.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
        body.extend_from_slice(&first);
        let Reply::Continue(exchange, data) = exchange.handle_message(&body)? else {
            panic!("too early")
        };
        let (client, last) = client.handle_first(&data).unwrap();
        let Reply::Accepted(Some(data), _) = exchange.handle_message(&last)? else {
            panic!("no signature")
        };
        client.handle_final(&data).unwrap();
        Ok(())
    }

    #[test]
    fn scram_lets_in_who_knows_the_password_and_nobody_else() {
        for password in ["secret", "pass\u{f6}r\u{aa}", "\u{2168}"] {
            let verifier = || Verifier::of(password.as_bytes(), b"0123456789abcdef", 4096);
            assert_eq!(scram_login(verifier(), Account::Known, password), Ok(()));
            assert_eq!(
                scram_login(verifier(), Account::Known, "other"),
                Err(AuthError::Wrong)
            );
            assert_eq!(
                scram_login(verifier(), Account::Mock, password),
                Err(AuthError::Wrong)
            );
        }
        assert_eq!(
            scram_login(Verifier::mock(b"ann", &[1; 32]), Account::Mock, ""),
            Err(AuthError::Wrong)
        );
    }

    #[test]
    fn malformed_sasl_messages_are_refused() {
        let verifier = Arc::new(Verifier::mock(b"ann", &[1; 32]));
        for (body, expected) in [
            (&b""[..], AuthError::Decode(DecodeError)),
            (b"SCRAM-SHA-256\0", AuthError::Decode(DecodeError)),
            (
                b"SCRAM-SHA-256\0\xff\xff\xff\xff",
                AuthError::Decode(DecodeError),
            ),
            (
                b"SCRAM-SHA-256\0\x7f\xff\xff\xffx",
                AuthError::Decode(DecodeError),
            ),
            (b"SCRAM-SHA-256\0\0\0\0\0x", AuthError::Decode(DecodeError)),
            (
                b"SCRAM-SHA-256\0\0\0\0\0",
                AuthError::Scram(ScramError::Malformed),
            ),
            (b"SCRAM-SHA-256-PLUS\0\0\0\0\0", AuthError::Mechanism),
        ] {
            assert_eq!(
                outcome(Demand::Scram(Arc::clone(&verifier)), Account::Known, body),
                Err(expected),
                "{body:?}"
            );
        }
    }

    fn hex(hash: md5::Hash) -> String {
        String::from_utf8(hash.text().to_vec()).unwrap()
    }
}
