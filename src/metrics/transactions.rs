//! Transactions over several shards as recovery sees them, and the proxies that serve a database: written by recovery
//! after every round, read by the console and `/metrics`.

use super::{counters::Counter, reshards::Resharding};
use crate::{catalog::ownership::Content, clock::SystemTime};
use std::sync::atomic::AtomicU64;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Every logical database that has several shards and a control role.
#[derive(Debug, Default)]
pub struct Transactions(Mutex<BTreeMap<String, Arc<Distributed>>>);

/// The transactions over several shards of one logical database.
#[derive(Debug, Default)]
pub struct Distributed {
    /// Prepared parts that recovery committed.
    pub committed: Counter,
    /// Prepared parts that recovery rolled back.
    pub aborted: Counter,
    /// Transactions of this proxy that were ended because they were on a ring of waits over shards.
    pub deadlocks: Counter,
    /// Statements that waited while their keys changed their owner.
    pub held: Counter,
    /// How long, altogether.
    pub held_micros: Counter,
    /// Statements that were refused because nobody could say where their keys were.
    pub held_refused: Counter,
    /// The last reshard.
    pub resharding: Resharding,
    /// The number of the map that all proxies share; 0: not known.
    pub map_epoch: AtomicU64,
    /// That map.
    map: Mutex<Option<Arc<Content>>>,
    parts: Mutex<Vec<Part>>,
    proxies: Mutex<Vec<Proxy>>,
}

/// What is prepared on one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The transaction's name.
    pub transaction: String,
    pub shard: String,
    /// The role that prepared it.
    pub owner: String,
    pub since: SystemTime,
    pub standing: Standing,
}

/// How a prepared part will end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    /// A session of the proxy with this name is at it.
    UnderWay { incarnation: u64 },
    /// Recovery will try again: why it could not yet.
    InDoubt {
        outcome: Option<Outcome>,
        problem: String,
    },
    /// Recovery will not touch it by itself: why.
    Stuck { problem: String },
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Committed,
    Aborted,
}

/// A process that serves the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    pub incarnation: u64,
    /// `server.id`, or 0.
    pub number: i32,
    pub version: String,
    /// Where the home shard sees it come from; none through a socket.
    pub address: Option<String>,
    pub started: SystemTime,
    pub heartbeat: SystemTime,
    pub alive: bool,
    /// The number up to which it knows of all schema changes.
    pub epoch: Option<i64>,
    /// The shards that its configuration has; `None`: it does not say.
    pub shards: Option<Vec<String>>,
    /// Whether it is this one.
    pub this: bool,
}

impl Outcome {
    /// One word, also a label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Committed => "committed",
            Self::Aborted => "aborted",
        }
    }
}

impl Transactions {
    /// Of a database; made at the first call.
    #[must_use]
    pub fn of(&self, database: &str) -> Arc<Distributed> {
        Arc::clone(self.lock().entry(database.to_owned()).or_default())
    }

    /// Every database's, by name.
    #[must_use]
    pub fn all(&self) -> Vec<(String, Arc<Distributed>)> {
        let all = self.lock();
        all.iter()
            .map(|(name, distributed)| (name.clone(), Arc::clone(distributed)))
            .collect()
    }

    /// Forgets the databases that are served no more.
    pub fn keep(&self, served: impl Fn(&str) -> bool) {
        self.lock().retain(|name, _| served(name));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Distributed>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Distributed {
    /// What is prepared, as of the last round.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        lock(&self.parts).clone()
    }

    /// How many parts have no session any more that would finish them.
    #[must_use]
    pub fn in_doubt(&self) -> usize {
        let under_way = |part: &Part| matches!(part.standing, Standing::UnderWay { .. });
        lock(&self.parts)
            .iter()
            .filter(|part| !under_way(part))
            .count()
    }

    /// A round has ended; what was prepared before.
    pub fn set_parts(&self, parts: Vec<Part>) -> Vec<Part> {
        std::mem::replace(&mut *lock(&self.parts), parts)
    }

    /// Who serves, as of the last heartbeat.
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        lock(&self.proxies).clone()
    }

    /// The map that all proxies share, as it was read last.
    #[must_use]
    pub fn map(&self) -> Option<Arc<Content>> {
        lock(&self.map).clone()
    }

    /// It was read.
    pub fn set_map(&self, map: Arc<Content>) {
        *lock(&self.map) = Some(map);
    }

    /// The home shard has said who serves.
    pub fn set_proxies(&self, proxies: Vec<Proxy>) {
        *lock(&self.proxies) = proxies;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
