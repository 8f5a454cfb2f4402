//! Counters handed to their owners, and who is connected. Nothing here is global: `server.rs` builds a [`Metrics`] and
//! hands it down; owners keep `Arc`s of the counters they touch.
//!
//! What must stay true: what runs per message is a relaxed atomic add at most, on a counter of that session; shared
//! counters are touched once per lease, when a session folds its [`Tally`] in.

pub mod counters;
pub mod exposition;
pub mod histogram;
pub mod listeners;
pub mod reshards;
pub mod sessions;
pub mod times;
pub mod transactions;

pub use counters::{
    Counter, Gauge, PoolCounters, PoolKey, ProcessCounters, Refusals, Tally, Totals,
};
use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

/// Every counter and every session of one process.
#[derive(Debug, Default)]
pub struct Metrics {
    pub process: ProcessCounters,
    pub refusals: Refusals,
    pub sessions: Arc<sessions::Sessions>,
    pub backends: Arc<sessions::Backends>,
    pub listeners: Arc<listeners::Listeners>,
    pub transactions: transactions::Transactions,
    pools: RwLock<BTreeMap<PoolKey, Arc<PoolCounters>>>,
}

impl Metrics {
    /// Builds empty counters.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// The counters of one database, user and shard; made at the first call. Keep the `Arc`: this takes a lock.
    #[must_use]
    pub fn pool(&self, database: &str, user: &str, shard: &str) -> Arc<PoolCounters> {
        let key = PoolKey {
            database: database.to_owned(),
            user: user.to_owned(),
            shard: shard.to_owned(),
        };
        if let Some(found) = self
            .pools
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&key)
        {
            return Arc::clone(found);
        }
        let mut pools = self.pools.write().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(pools.entry(key).or_default())
    }

    /// How long the transactions of a database took so far, as counts.
    #[must_use]
    pub fn times(&self, database: &str) -> Vec<u64> {
        let mut counts = Vec::new();
        for (_, pool) in self
            .pools()
            .iter()
            .filter(|(key, _)| key.database == database)
        {
            pool.times.add_to(&mut counts);
        }
        counts
    }

    /// Errors that the servers of a database reported to its clients so far.
    #[must_use]
    pub fn errors(&self, database: &str) -> u64 {
        let pools = self.pools();
        let of = pools.iter().filter(|(key, _)| key.database == database);
        of.map(|(_, pool)| pool.errors.get()).sum()
    }

    /// Notes a statement that was refused, by the code of its error.
    pub fn refused(&self, database: &str, code: &'static str) {
        self.refusals.count(code);
        if code.starts_with("SW4") {
            self.transactions
                .of(database)
                .resharding
                .refused
                .increment();
        }
    }

    /// Statements of a database that were refused because of its keys that move.
    #[must_use]
    pub fn moving_refusals(&self, database: &str) -> u64 {
        self.transactions.of(database).resharding.refused.get()
    }

    /// Every pool's counters, ordered by database, user and shard.
    #[must_use]
    pub fn pools(&self) -> Vec<(PoolKey, Arc<PoolCounters>)> {
        let pools = self.pools.read().unwrap_or_else(PoisonError::into_inner);
        pools
            .iter()
            .map(|(key, counters)| (key.clone(), Arc::clone(counters)))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_pool_has_the_same_counters() {
        let metrics = Metrics::new();
        metrics.pool("app", "u", "s0").queries.add(2);
        metrics.pool("app", "u", "s0").queries.add(3);
        metrics.pool("app", "u", "s1").queries.add(1);
        let queries: Vec<u64> = metrics
            .pools()
            .iter()
            .map(|(_, pool)| pool.queries.get())
            .collect();
        assert_eq!(queries, [5, 1]);
    }

    #[test]
    fn what_is_refused_because_keys_move_is_counted_for_their_database() {
        let metrics = Metrics::new();
        metrics.refused("app", "SW403");
        metrics.refused("app", "SW101");
        metrics.refused("other", "SW403");
        metrics.refused("other", "SW402");
        let counts = ["app", "other", "third"].map(|name| metrics.moving_refusals(name));
        assert_eq!(counts, [1, 2, 0]);
        let by_code = [("SW101", 1), ("SW402", 1), ("SW403", 2)];
        assert_eq!(metrics.refusals.read(), by_code);
    }
}
