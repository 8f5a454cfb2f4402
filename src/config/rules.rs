//! Who may enter from where, and how it is proved: rules as in PostgreSQL's pg_hba.conf. The first rule that fits
//! decides; what fits none is refused. Read by `read` from the tables `rules` or a file in pg_hba's own format.

pub(super) mod read;
mod tokens;

use std::{net::IpAddr, sync::Arc};

/// Rules in their order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules(pub Vec<Rule>);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub kind: Kind,
    pub databases: Vec<DatabaseName>,
    pub users: Vec<UserName>,
    /// Of connections over TCP.
    pub addresses: Addresses,
    pub method: Method,
    pub certificate: Certificate,
    pub client_name: ClientName,
    /// Which names in certificates stand for which users; `None`: the user's own name.
    pub map: Option<Arc<Vec<Mapping>>>,
}

/// Which connections a rule is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Unix sockets.
    Local,
    /// TCP, encrypted or not.
    Host,
    HostTls,
    HostPlain,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DatabaseName {
    All,
    /// The one that bears the user's name.
    SameUser,
    /// Physical replication, and nothing else: it reads a whole server, which no other name allows.
    Replication,
    Named(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UserName {
    All,
    Named(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    All,
    Network { address: IpAddr, mask: IpAddr },
}

/// How a client proves who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Trust,
    Reject,
    Password,
    Md5,
    Scram,
    /// By its certificate alone.
    Cert,
}

/// What is asked of a client's certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certificate {
    Unasked,
    /// One that an authority of ours signed.
    Signed,
    /// And its name stands for the user.
    Named,
}

/// Which name of a certificate is the client's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientName {
    Common,
    Distinguished,
}

/// A name in certificates, and a user that it may enter as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    pub system: String,
    pub user: String,
}

/// A connection, as rules see it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub from: From,
    /// `None`: a whole server, by physical replication.
    pub database: Option<&'a [u8]>,
    pub user: &'a [u8],
}

/// From where and how a client came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    Local,
    Plain(IpAddr),
    Tls(IpAddr),
}

impl Rules {
    /// The first rule that fits.
    #[must_use]
    pub fn find(&self, asked: Asked<'_>) -> Option<&Rule> {
        self.0.iter().find(|rule| rule.fits(asked))
    }
}

impl Rule {
    fn fits(&self, asked: Asked<'_>) -> bool {
        let address = match (self.kind, asked.from) {
            (Kind::Local, From::Local) => None,
            (Kind::Host, From::Plain(address) | From::Tls(address))
            | (Kind::HostTls, From::Tls(address))
            | (Kind::HostPlain, From::Plain(address)) => Some(address),
            (Kind::Local, From::Plain(_) | From::Tls(_))
            | (Kind::Host | Kind::HostTls | Kind::HostPlain, From::Local)
            | (Kind::HostTls, From::Plain(_))
            | (Kind::HostPlain, From::Tls(_)) => return false,
        };
        address.is_none_or(|address| self.addresses.hold(address))
            && self
                .databases
                .iter()
                .any(|name| match (name, asked.database) {
                    (DatabaseName::Replication, database) => database.is_none(),
                    (_, None) => false,
                    (DatabaseName::All, Some(_)) => true,
                    (DatabaseName::SameUser, Some(database)) => database == asked.user,
                    (DatabaseName::Named(name), Some(database)) => name.as_bytes() == database,
                })
            && self.users.iter().any(|name| match name {
                UserName::All => true,
                UserName::Named(name) => name.as_bytes() == asked.user,
            })
    }

    /// Whether a name in a certificate stands for a user.
    #[must_use]
    pub fn maps(&self, system: &str, user: &[u8]) -> bool {
        match &self.map {
            None => system.as_bytes() == user,
            Some(map) => map
                .iter()
                .any(|line| line.system == system && line.user.as_bytes() == user),
        }
    }
}

impl Addresses {
    fn hold(self, given: IpAddr) -> bool {
        let Self::Network { address, mask } = self else {
            return true;
        };
        match (given.to_canonical(), address, mask) {
            (IpAddr::V4(given), IpAddr::V4(address), IpAddr::V4(mask)) => {
                (given.to_bits() ^ address.to_bits()) & mask.to_bits() == 0
            }
            (IpAddr::V6(given), IpAddr::V6(address), IpAddr::V6(mask)) => {
                (given.to_bits() ^ address.to_bits()) & mask.to_bits() == 0
            }
            _ => false,
        }
    }
}

#[cfg(test)]
mod tests;
