//! By which way a client may enter: the rule that fits it, or its user's own `auth` where there are no rules; what it must
//! show by that way, and whether the certificate that it showed is its own. Whatever is missing is a refusal.

use super::{super::transport::Peer, LoginContext, Transport};
use crate::{
    auth::{Account, Demand, Stored, certificate, md5, scram::Verifier},
    config::{
        rules::{Asked, Certificate, ClientName, From, Method, Rule},
        settings::{ClientAuth, Secret, User},
    },
    protocol::client_startup::{Channel, Connection, Entry, Refusal},
    wire::startup::Replication,
};
use std::sync::Arc;

/// See the module.
#[derive(Clone, Copy)]
pub(super) enum Way<'c> {
    /// There are no rules.
    Own,
    By(&'c Rule),
}

impl LoginContext {
    /// The way of a client, once it has shown the certificate that the way asks for.
    pub(super) fn way(
        &self,
        transport: &Transport,
        entry: &Entry,
        user: Option<&User>,
    ) -> Result<Way<'_>, Refusal> {
        let way = match &self.rules {
            None => Way::Own,
            Some(rules) => {
                let found = origin(transport).and_then(|from| {
                    rules.find(Asked {
                        from,
                        database: match entry.replication {
                            Some(Replication::Physical) => None,
                            Some(Replication::Logical) | None => Some(&entry.database),
                        },
                        user: &entry.user,
                    })
                });
                Way::By(found.ok_or_else(|| Refusal::NoRule(connection(transport, entry)))?)
            }
        };
        if let Way::By(rule) = way
            && rule.method == Method::Reject
        {
            return Err(Refusal::Rejected(connection(transport, entry)));
        }
        let method = match way {
            Way::By(rule) => Some(rule.method),
            Way::Own => None,
        };
        if certificate_of(way, user) != Certificate::Unasked
            && transport.client_certificate().is_none()
        {
            return Err(Refusal::NoCertificate);
        }
        // Whose certificate names somebody else learns nothing about this name.
        if method == Some(Method::Cert) {
            check_certificate(way, transport, &entry.user, user)?;
        }
        Ok(way)
    }

    /// What a user must show. Who has no account is asked for what others by this way are asked for.
    pub(super) fn demand(
        &self,
        way: Way<'_>,
        name: &[u8],
        user: Option<&User>,
    ) -> Result<(Demand, Account), Refusal> {
        let method = match way {
            Way::Own => match user.map(|user| &user.auth) {
                None => return Ok((self.mock(name), Account::Mock)),
                Some(ClientAuth::Trust) => Method::Trust,
                Some(ClientAuth::Password(_)) => Method::Password,
                Some(ClientAuth::Md5(_)) => Method::Md5,
                Some(ClientAuth::Scram(_)) => Method::Scram,
                Some(ClientAuth::Cert) => Method::Cert,
                // Found users come here with what was found; who was not is asked in vain.
                Some(ClientAuth::Found) => Method::Scram,
                Some(ClientAuth::FoundPassword) => Method::Password,
            },
            Way::By(rule) => rule.method,
        };
        let secret = user.and_then(|user| secret(&user.auth));
        let demand = match method {
            Method::Trust | Method::Cert if user.is_some() => Some(Demand::Nothing),
            // Nothing is proved here, so nothing is hidden.
            Method::Trust | Method::Cert | Method::Reject => {
                return Err(Refusal::NoRole {
                    user: name.to_vec(),
                });
            }
            Method::Password => secret.map(|secret| Demand::Password(Stored::read(&secret.0))),
            Method::Md5 => secret.map(|secret| match Stored::read(&secret.0) {
                Stored::Plain(password) => Demand::Md5(md5::Hash::of(name, password.as_bytes())),
                Stored::Md5(hash) => Demand::Md5(hash),
                // As PostgreSQL's `md5` does with such a stored secret.
                Stored::Scram(verifier) => Demand::Scram(verifier),
            }),
            Method::Scram => secret.zip(user).and_then(|(secret, user)| {
                let stored = Verifier::parse(&secret.0).map(Arc::new);
                stored
                    .or_else(|| self.verifiers.get(&user.name).map(Arc::clone))
                    .map(Demand::Scram)
            }),
        };
        Ok(match (demand, way) {
            (Some(demand), _) => (demand, Account::Known),
            (None, Way::Own) => (self.mock(name), Account::Mock),
            (None, Way::By(_)) => (self.mock_by(method, name), Account::Mock),
        })
    }

    /// Asks as a rule's method asks those who have a password.
    fn mock_by(&self, method: Method, name: &[u8]) -> Demand {
        let secret = self.entrance.secret();
        let verifier = || Arc::new(Verifier::mock(name, secret));
        // As most: a password that is kept as a verifier takes its time to be checked.
        let stored = |of: fn(&Stored) -> bool| {
            let mut secrets = self
                .users
                .values()
                .filter_map(|user| self::secret(&user.auth));
            secrets.any(|secret| of(&Stored::read(&secret.0)))
        };
        match method {
            Method::Password if stored(|it| !matches!(it, Stored::Scram(_))) => {
                Demand::Password(Stored::Plain(String::new()))
            }
            Method::Password => Demand::Password(Stored::Scram(verifier())),
            Method::Md5 if stored(|it| !matches!(it, Stored::Scram(_))) => {
                Demand::Md5(md5::Hash::of(name, secret))
            }
            Method::Md5 | Method::Scram | Method::Trust | Method::Reject | Method::Cert => {
                Demand::Scram(verifier())
            }
        }
    }

    fn mock(&self, name: &[u8]) -> Demand {
        let methods = || self.users.values().map(|user| &user.auth);
        let method = if methods().any(|auth| matches!(auth, ClientAuth::Scram(_))) {
            Method::Scram
        } else if methods().any(|auth| matches!(auth, ClientAuth::Md5(_))) {
            Method::Md5
        } else if methods().any(|auth| matches!(auth, ClientAuth::Password(_))) {
            Method::Password
        } else {
            Method::Scram
        };
        self.mock_by(method, name)
    }
}

/// Whether the certificate that was shown is its user's, where that is asked.
pub(super) fn check_certificate(
    way: Way<'_>,
    transport: &Transport,
    name: &[u8],
    user: Option<&User>,
) -> Result<(), Refusal> {
    if certificate_of(way, user) != Certificate::Named {
        return Ok(());
    }
    let own = || {
        let subject = certificate::subject(transport.client_certificate()?)?;
        Some(match way {
            Way::Own => subject.common_name?.as_bytes() == name,
            Way::By(rule) => {
                let shown = match rule.client_name {
                    ClientName::Common => subject.common_name?,
                    ClientName::Distinguished => subject.distinguished_name,
                };
                rule.maps(&shown, name)
            }
        })
    };
    if own().unwrap_or(false) {
        return Ok(());
    }
    let user = name.to_vec();
    Err(match way {
        Way::By(rule) if rule.method != Method::Cert => Refusal::Password { user },
        Way::By(_) | Way::Own => Refusal::Certificate { user },
    })
}

/// What the way asks of a certificate.
fn certificate_of(way: Way<'_>, user: Option<&User>) -> Certificate {
    match way {
        Way::By(rule) => rule.certificate,
        Way::Own if user.is_some_and(|user| user.auth == ClientAuth::Cert) => Certificate::Named,
        Way::Own => Certificate::Unasked,
    }
}

/// What is kept of a user's password.
pub(super) fn secret(auth: &ClientAuth) -> Option<&Secret> {
    match auth {
        ClientAuth::Password(secret) | ClientAuth::Md5(secret) | ClientAuth::Scram(secret) => {
            Some(secret)
        }
        ClientAuth::Trust | ClientAuth::Cert | ClientAuth::Found | ClientAuth::FoundPassword => {
            None
        }
    }
}

fn origin(transport: &Transport) -> Option<From> {
    match transport.peer() {
        Peer::Unix => Some(From::Local),
        Peer::Tcp(address) if transport.is_encrypted() => Some(From::Tls(address.ip())),
        Peer::Tcp(address) => Some(From::Plain(address.ip())),
        Peer::Gone => None,
    }
}

fn connection(transport: &Transport, entry: &Entry) -> Connection {
    Connection {
        replication: entry.replication,
        host: host(transport),
        user: entry.user.clone(),
        database: entry.database.clone(),
        channel: if transport.is_encrypted() {
            Channel::Encrypted
        } else {
            Channel::Plain
        },
    }
}

/// As PostgreSQL writes it: without the port.
fn host(transport: &Transport) -> String {
    match transport.peer() {
        Peer::Tcp(address) => address.ip().to_string(),
        local @ (Peer::Unix | Peer::Gone) => local.to_string(),
    }
}
