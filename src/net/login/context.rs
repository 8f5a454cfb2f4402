//! What a login is decided by: users, databases, TLS as the settings have them. One for each version of the settings.

use super::super::{tls::ServerTls, transport::Transport};
use super::CONSOLE;
use crate::{
    auth::{
        Account, Demand, Stored, md5,
        scram::{self, Verifier},
    },
    clock::Duration,
    config::settings::{ClientAuth, Secret, Settings, TlsMode, User},
    protocol::client_startup::{Refusal, TlsOffer},
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

/// What logins need to know: one for each version of the settings.
pub struct LoginContext {
    pub(super) users: BTreeMap<String, Arc<User>>,
    pub(super) databases: BTreeSet<String>,
    pub(super) others: Others,
    pub(super) mode: TlsMode,
    pub(super) timeout: Duration,
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) secret: [u8; 32],
    /// Of users whose password itself is configured: a verifier costs thousands of hashes.
    pub(super) verifiers: Mutex<HashMap<String, Arc<Verifier>>>,
}

/// Databases that are not listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    Unknown,
    Wildcard,
}

impl fmt::Debug for LoginContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoginContext(..)")
    }
}

impl LoginContext {
    /// `secret`: random bytes kept for the life of the process, so that salts stay the same over a reload.
    #[must_use]
    pub fn new(settings: &Settings, tls: Option<Arc<ServerTls>>, secret: [u8; 32]) -> Self {
        let others = if settings.wildcard.is_some() {
            Others::Wildcard
        } else {
            Others::Unknown
        };
        Self {
            users: settings.users.clone(),
            databases: settings.databases.keys().cloned().collect(),
            others,
            mode: settings.server.tls.mode,
            timeout: settings.server.login_timeout,
            tls,
            secret,
            verifiers: Mutex::default(),
        }
    }

    pub(super) fn offer(&self, transport: &Transport) -> TlsOffer {
        match (transport, &self.tls, self.mode) {
            // As PostgreSQL: no encryption over Unix sockets, and none demanded.
            (Transport::Unix(_), _, _) | (_, _, TlsMode::Disable) | (_, None, TlsMode::Prefer) => {
                TlsOffer::Off
            }
            (_, Some(_), TlsMode::Prefer) => TlsOffer::Offered,
            // Without an identity nobody can enter: better than in the clear.
            (_, _, TlsMode::Require | TlsMode::VerifyFull) => TlsOffer::Required,
        }
    }

    /// What a user must show. Who has no account is asked for what most are asked for.
    pub(super) fn demand(&self, name: &[u8], user: Option<&User>) -> (Demand, Account) {
        let Some(user) = user else {
            return (self.mock(name), Account::Mock);
        };
        let demand = match &user.auth {
            ClientAuth::Trust => Demand::Nothing,
            ClientAuth::Password(secret) => Demand::Password(Stored::read(&secret.0)),
            ClientAuth::Md5(secret) => match Stored::read(&secret.0) {
                Stored::Plain(password) => Demand::Md5(md5::Hash::of(name, password.as_bytes())),
                Stored::Md5(hash) => Demand::Md5(hash),
                // As PostgreSQL's `md5` does with such a stored secret.
                Stored::Scram(verifier) => Demand::Scram(verifier),
            },
            ClientAuth::Scram(secret) => Demand::Scram(self.verifier(&user.name, secret)),
        };
        (demand, Account::Known)
    }

    fn mock(&self, name: &[u8]) -> Demand {
        let methods = || self.users.values().map(|user| &user.auth);
        if methods().any(|auth| matches!(auth, ClientAuth::Scram(_))) {
            Demand::Scram(Arc::new(Verifier::mock(name, &self.secret)))
        } else if methods().any(|auth| matches!(auth, ClientAuth::Md5(_))) {
            Demand::Md5(md5::Hash::of(name, &self.secret))
        } else if methods().any(|auth| matches!(auth, ClientAuth::Password(_))) {
            Demand::Password(Stored::Plain(String::new()))
        } else {
            Demand::Scram(Arc::new(Verifier::mock(name, &self.secret)))
        }
    }

    fn verifier(&self, name: &str, secret: &Secret) -> Arc<Verifier> {
        if let Some(verifier) = Verifier::parse(&secret.0) {
            return Arc::new(verifier);
        }
        let kept = || {
            self.verifiers
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(verifier) = kept().get(name) {
            return Arc::clone(verifier);
        }
        let salt = scram::salt_for(name.as_bytes(), &self.secret);
        let verifier = Arc::new(Verifier::of(secret.0.as_bytes(), &salt, scram::ITERATIONS));
        kept().insert(name.to_owned(), Arc::clone(&verifier));
        verifier
    }

    /// The database's name, when it exists and the user may use it.
    pub(super) fn admit(&self, user: &User, database: Vec<u8>) -> Result<String, Refusal> {
        let name = match String::from_utf8(database) {
            Ok(name) => name,
            Err(error) => {
                return Err(Refusal::NoDatabase {
                    database: error.into_bytes(),
                });
            }
        };
        let database = || name.clone().into_bytes();
        if name == CONSOLE && !self.databases.contains(CONSOLE) {
            return if user.console.is_some() {
                Ok(name)
            } else {
                Err(Refusal::Forbidden {
                    database: database(),
                })
            };
        }
        if !self.databases.contains(&name) && self.others == Others::Unknown {
            return Err(Refusal::NoDatabase {
                database: database(),
            });
        }
        if !user.databases.is_empty() && !user.databases.contains(&name) {
            return Err(Refusal::Forbidden {
                database: database(),
            });
        }
        Ok(name)
    }
}
