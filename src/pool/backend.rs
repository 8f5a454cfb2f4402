//! A connection to a PostgreSQL server and what we know of its state: settings told, statements prepared.

use super::common::Common;
use crate::{
    clock::Instant, config::settings::Address, metrics::sessions::RegisteredBackend,
    net::stream::Stream, protocol::parameters::Applied,
};
use std::{collections::HashMap, sync::Arc};
use xxhash_rust::xxh3::xxh3_64;

/// A connection to a PostgreSQL server.
#[derive(Debug)]
pub struct Backend {
    pub stream: Stream,
    /// What a cancel needs.
    pub target: Arc<CancelTarget>,
    /// Settings that the server reports.
    pub reported: Reported,
    /// Settings that sessions made.
    pub applied: Applied,
    pub statements: Statements,
    /// The statement behind the unnamed name, by its identity.
    pub unnamed: Option<u128>,
    /// Whose it is, or was last.
    pub tenure: Tenure,
    pub remembered: Remembered,
    pub born: Instant,
    pub info: RegisteredBackend,
}

/// A session's unbroken use of a backend, with nobody between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tenure {
    session: u32,
    number: u64,
}

impl Tenure {
    /// The session takes the backend; one that had it last goes on.
    pub fn taken_by(&mut self, session: u32) {
        if self.session != session {
            self.session = session;
            self.number += 1;
        }
    }
}

/// Whose numbers of sequences a backend remembers, for `currval` and `lastval`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Remembered {
    /// Nobody's: it has served no session.
    #[default]
    Nothing,
    /// Only what the session that has it drew since it came here last.
    Own,
    /// Perhaps another session's, or what this one drew before it was elsewhere.
    Foreign,
}

/// Whom to ask to cancel what this backend runs.
#[derive(Debug, PartialEq, Eq)]
pub struct CancelTarget {
    pub address: Arc<Address>,
    pub pid: u32,
    pub key: Vec<u8>,
}

/// Values by name, in its order. Backends differ in few of them, and sessions are many: texts are shared one by one.
type Values = Vec<(Arc<[u8]>, Arc<[u8]>)>;

/// What every client may give another value, so that it is kept apart from what many have in common.
const OWN: &[u8] = b"application_name";

/// Values that many may be told.
#[derive(Debug, Default)]
pub struct Reports(Common<Values>);

/// Settings that a server reports (ParameterStatus), with a hash to compare by.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reported {
    /// Shared with the sessions that were told the same.
    values: Arc<Values>,
    /// The value of [`OWN`].
    own: Option<Arc<[u8]>>,
    hash: u64,
}

impl Reported {
    /// Records a value.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        if self.get(name) == Some(value) {
            return;
        }
        if name == OWN {
            if let Some(old) = self.own.replace(value.into()) {
                self.hash = self.hash.wrapping_sub(part(name, &old));
            }
            self.hash = self.hash.wrapping_add(part(name, value));
            return;
        }
        let place = self.place(name);
        let values = Arc::make_mut(&mut self.values);
        match place {
            Ok(at) => {
                let old = std::mem::replace(&mut values[at].1, value.into());
                self.hash = self.hash.wrapping_sub(part(name, &old));
            }
            Err(at) => values.insert(at, (name.into(), value.into())),
        }
        self.hash = self.hash.wrapping_add(part(name, value));
    }

    /// A value.
    #[must_use]
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        if name == OWN {
            return self.own.as_deref();
        }
        self.place(name).ok().map(|at| &*self.values[at].1)
    }

    /// Where a name is, or would be.
    fn place(&self, name: &[u8]) -> Result<usize, usize> {
        self.values
            .binary_search_by(|(known, _)| (**known).cmp(name))
    }

    /// Every name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let own = self.own.iter().map(|value| (OWN, &**value));
        let others = self.values.iter();
        own.chain(others.map(|(name, value)| (&**name, &**value)))
    }

    /// Keeps what others have been told too only once.
    pub fn share(&mut self, reports: &Reports) {
        self.values = reports.0.share(Arc::clone(&self.values));
    }

    /// Without what is one client's own.
    #[must_use]
    pub fn of_all(&self) -> Self {
        let own = self.own.as_deref();
        let share = own.map_or(0, |value| part(OWN, value));
        Self {
            values: Arc::clone(&self.values),
            own: None,
            hash: self.hash.wrapping_sub(share),
        }
    }

    /// Equal for equal contents.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash
    }
}

/// One pair's share of the hash, which is their sum, so that it follows changes.
fn part(name: &[u8], value: &[u8]) -> u64 {
    xxh3_64(name).rotate_left(17) ^ xxh3_64(value)
}

/// What Describe says of a statement, as numbers to compare by, as far as it is known: its parameters' types, and its
/// columns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub types: Option<u64>,
    pub columns: Option<u64>,
}

/// A prepared statement.
#[derive(Clone, Copy, Debug)]
struct Known {
    /// When it was used last.
    used: u64,
    /// As this backend has described it.
    shape: Shape,
}

/// The statements prepared on a backend, least recently used first to go.
#[derive(Debug, Default)]
pub struct Statements {
    used: HashMap<u128, Known, foldhash::fast::RandomState>,
    clock: u64,
    /// Prepared, and no good any more: to be closed before they are prepared again.
    spoilt: Vec<u128>,
}

impl Statements {
    /// Whether the statement is prepared; if so it is now the most recently used.
    pub fn touch(&mut self, id: u128) -> bool {
        self.clock += 1;
        let clock = self.clock;
        self.used.get_mut(&id).is_some_and(|known| {
            known.used = clock;
            true
        })
    }

    /// As [`Statements::touch`]; the shape, when it is prepared.
    pub fn shape(&mut self, id: u128) -> Option<Shape> {
        self.clock += 1;
        let clock = self.clock;
        self.used.get_mut(&id).map(|known| {
            known.used = clock;
            known.shape
        })
    }

    /// This backend describes it so.
    pub fn described(&mut self, id: u128, shape: Shape) {
        if let Some(known) = self.used.get_mut(&id) {
            known.shape = Shape {
                types: shape.types.or(known.shape.types),
                columns: shape.columns.or(known.shape.columns),
            };
        }
    }

    /// A Parse of it has been confirmed.
    pub fn insert(&mut self, id: u128, shape: Shape) {
        self.clock += 1;
        let used = self.clock;
        self.used.insert(id, Known { used, shape });
    }

    /// It is not prepared any more.
    pub fn remove(&mut self, id: u128) {
        self.used.remove(&id);
        self.spoilt.retain(|spoilt| *spoilt != id);
    }

    /// It is prepared, and must be closed before it is prepared again.
    pub fn spoil(&mut self, id: u128) {
        self.used.remove(&id);
        if !self.spoilt.contains(&id) {
            self.spoilt.push(id);
        }
    }

    /// Whether it must be closed before it is prepared again.
    #[must_use]
    pub fn is_spoilt(&self, id: u128) -> bool {
        self.spoilt.contains(&id)
    }

    /// DEALLOCATE ALL, DISCARD ALL.
    pub fn clear(&mut self) {
        self.used.clear();
        self.spoilt.clear();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.used.len() + self.spoilt.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.used.is_empty() && self.spoilt.is_empty()
    }

    /// When more than `limit` are prepared: the one that was not used for longest, to be closed.
    #[must_use]
    pub fn excess(&self, limit: usize) -> Option<u128> {
        if self.len() <= limit {
            return None;
        }
        if let Some(id) = self.spoilt.last() {
            return Some(*id);
        }
        self.used
            .iter()
            .min_by_key(|(_, known)| known.used)
            .map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_of_reported_settings_follows_their_values() {
        let (mut a, mut b) = (Reported::default(), Reported::default());
        a.set(b"TimeZone", b"UTC");
        a.set(b"DateStyle", b"ISO");
        b.set(b"DateStyle", b"SQL");
        b.set(b"TimeZone", b"UTC");
        assert_ne!(a.hash(), b.hash());
        b.set(b"DateStyle", b"ISO");
        assert_eq!(a.hash(), b.hash());
        a.set(b"application_name", b"a");
        assert_ne!(a.hash(), b.hash());
        b.set(b"application_name", b"b");
        assert_ne!(a.hash(), b.hash());
        b.set(b"application_name", b"a");
        assert_eq!(a, b);
        let names: Vec<_> = a.iter().map(|(name, _)| name).collect();
        assert_eq!(names, [&b"application_name"[..], b"DateStyle", b"TimeZone"]);
        assert_eq!(a.of_all().get(b"application_name"), None);
    }

    #[test]
    fn clients_that_are_told_the_same_share_it_whatever_they_call_themselves() {
        let reports = Reports::default();
        let mut told = [&b"a"[..], b"b"].map(|name| {
            let mut told = Reported::default();
            told.set(b"TimeZone", b"UTC");
            told.set(b"application_name", name);
            told.share(&reports);
            told
        });
        assert!(Arc::ptr_eq(&told[0].values, &told[1].values));
        told[0].set(b"TimeZone", b"CET");
        assert_eq!(told[1].get(b"TimeZone"), Some(&b"UTC"[..]));
        assert_eq!(told[0].of_all().hash(), {
            let mut other = Reported::default();
            other.set(b"TimeZone", b"CET");
            other.hash()
        });
    }

    #[test]
    fn the_least_recently_used_statement_goes_first() {
        let mut statements = Statements::default();
        for id in 1..=3 {
            statements.insert(id, Shape::default());
        }
        assert!(statements.touch(1));
        assert_eq!(statements.excess(2), Some(2));
        assert_eq!(statements.excess(3), None);
    }
}
