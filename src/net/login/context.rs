//! What a login is decided by: users, databases, TLS as the settings have them. One for each version of the settings.

use super::super::{
    tls::{ClientTls, ServerTls},
    transport::Transport,
};
use super::{CONSOLE, Entrance, failures::Limits, lookup::Lookups, way::secret};
use crate::{
    auth::{Stored, scram::Verifier},
    clock::{Clock, Duration},
    config::{
        rules::Rules,
        settings::{ClientAuth, Settings, TlsMode, User},
    },
    protocol::client_startup::{Entry, Refusal, TlsOffer},
    wire::startup::Replication,
};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    sync::Arc,
};

/// What logins need to know: one for each version of the settings.
pub struct LoginContext {
    pub(super) users: BTreeMap<String, Arc<User>>,
    pub(super) found_users: Arc<User>,
    pub(super) lookups: Lookups,
    pub(super) databases: BTreeSet<String>,
    pub(super) others: Others,
    pub(super) rules: Option<Arc<Rules>>,
    pub(super) mode: TlsMode,
    pub(super) timeout: Duration,
    pub(super) tls: Option<Arc<ServerTls>>,
    pub(super) limits: Limits,
    pub(super) entrance: Arc<Entrance>,
    /// Of users whose password itself is configured: a verifier costs thousands of hashes.
    pub(super) verifiers: HashMap<String, Arc<Verifier>>,
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
    /// `entrance` is kept for the life of the process, so that salts and failures stay the same over a reload.
    #[must_use]
    pub fn new(settings: &Settings, tls: Option<Arc<ServerTls>>, entrance: Arc<Entrance>) -> Self {
        let others = if settings.wildcard.is_some() {
            Others::Wildcard
        } else {
            Others::Unknown
        };
        let server = &settings.server;
        Self {
            users: settings.users.clone(),
            found_users: Arc::clone(&settings.found_users),
            lookups: Lookups::default(),
            databases: settings.databases.keys().cloned().collect(),
            others,
            rules: settings.rules.clone(),
            mode: server.tls.mode,
            timeout: server.login_timeout,
            tls,
            limits: Limits {
                failures: u32::try_from(server.failed_logins).unwrap_or(u32::MAX),
                spacing: server.failed_login_delay,
                patience: server.login_timeout / 2,
            },
            verifiers: verifiers(&settings.users, &entrance),
            entrance,
        }
    }

    /// Looks users up where the settings say so.
    #[must_use]
    pub fn with_lookups(self, settings: &Settings, tls: &Arc<ClientTls>, clock: Clock) -> Self {
        Self {
            lookups: Lookups::new(settings, tls, clock),
            ..self
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

    /// The database that a client names. Programs that copy a whole server name none: libpq says "replication" for
    /// them, which then is the user's only database.
    pub(super) fn database_meant(&self, user: &User, entry: &Entry) -> Result<Vec<u8>, Refusal> {
        let unnamed = entry.replication == Some(Replication::Physical)
            && entry.database == b"replication"
            && !self.databases.contains("replication")
            && self.others == Others::Unknown;
        if !unnamed {
            return Ok(entry.database.clone());
        }
        let mut open = self
            .databases
            .iter()
            .filter(|name| user.databases.is_empty() || user.databases.contains(name));
        match (open.next(), open.next()) {
            (Some(only), None) => Ok(only.clone().into_bytes()),
            _ => Err(Refusal::WhichDatabase),
        }
    }

    /// The database's name, when it exists and the user may use it. Nothing replicates the console: for replication its
    /// name is one like any other.
    pub(super) fn admit(
        &self,
        user: &User,
        database: Vec<u8>,
        replication: Option<Replication>,
    ) -> Result<String, Refusal> {
        let name = match String::from_utf8(database) {
            Ok(name) => name,
            Err(error) => {
                return Err(Refusal::NoDatabase {
                    database: error.into_bytes(),
                });
            }
        };
        let database = || name.clone().into_bytes();
        if name == CONSOLE && replication.is_none() && !self.databases.contains(CONSOLE) {
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

/// Of every user whose password is configured as it is.
pub(super) fn verifiers(
    users: &BTreeMap<String, Arc<User>>,
    entrance: &Entrance,
) -> HashMap<String, Arc<Verifier>> {
    entrance.verifiers(users.iter().filter_map(|(name, user)| {
        let secret = secret(&user.auth)?;
        // Of a hash no verifier can be made; with `scram` alone it is taken for the password itself.
        let is_password = match Stored::read(&secret.0) {
            Stored::Plain(_) => true,
            Stored::Md5(_) => matches!(user.auth, ClientAuth::Scram(_)),
            Stored::Scram(_) => false,
        };
        is_password.then_some((name.as_str(), secret))
    }))
}
