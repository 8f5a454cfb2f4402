//! What is counted: per database, user and shard; per process; refusals by code. Relaxed atomics, no lock where a
//! statement passes.

use super::times::Times;
use crate::clock::Duration;
use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

/// Only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds; relaxed.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Relaxed);
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds a duration in microseconds.
    pub fn add_time(&self, time: Duration) {
        self.add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
    }

    /// The sum so far.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Goes up and down; never below zero as long as every `enter` has one `leave`.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more.
    pub fn enter(&self) {
        self.0.fetch_add(1, Relaxed);
    }

    /// One less.
    pub fn leave(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// Sets the value.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// The value now.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Names one pool's counters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PoolKey {
    pub database: String,
    pub user: String,
    pub shard: String,
}

/// Declares what is counted per pool, once: the shared counters, a session's own tally, and a reading of them.
macro_rules! pool_counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counters of one database, user and shard, shared by its sessions.
        #[derive(Debug, Default)]
        pub struct PoolCounters {
            $($(#[$doc])* pub $name: Counter,)*
            /// How long transactions took, waits for a backend included, the client's own time not.
            pub times: Times,
        }

        /// What one session counted since it last folded; plain numbers, owned by the session.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Tally {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Tally {
            /// Nothing counted.
            pub const NOTHING: Self = Self { $($name: 0,)* };
        }

        impl PoolCounters {
            /// Adds a session's tally and empties it; called when a lease is released.
            pub fn fold(&self, tally: &mut Tally) {
                if tally.queries != 0 {
                    self.times.record(tally.query_micros + tally.wait_micros);
                }
                $(if tally.$name != 0 { self.$name.add(tally.$name); })*
                *tally = Tally::default();
            }

            /// The sums so far.
            #[must_use]
            pub fn read(&self) -> Totals {
                Totals(Tally { $($name: self.$name.get(),)* })
            }
        }

        impl Totals {
            /// The sums of both.
            #[must_use]
            pub fn plus(self, other: Self) -> Self {
                Self(Tally { $($name: self.0.$name + other.0.$name,)* })
            }

            /// What was counted since `earlier`.
            #[must_use]
            pub fn since(self, earlier: Self) -> Self {
                Self(Tally { $($name: self.0.$name.saturating_sub(earlier.0.$name),)* })
            }
        }
    };
}

pool_counters! {
    /// Transactions ended, implicit ones included.
    transactions,
    /// Statements answered: simple queries and Executes.
    queries,
    /// Bytes from clients.
    received_bytes,
    /// Bytes to clients.
    sent_bytes,
    /// Microseconds that leases lasted.
    transaction_micros,
    /// Microseconds that backends worked on statements.
    query_micros,
    /// Microseconds that clients waited for a backend.
    wait_micros,
    /// Times a backend was handed to a client.
    server_assignments,
    /// Parse messages of clients.
    client_parses,
    /// Parse messages that reached a backend.
    server_parses,
    binds,
    /// Clients that logged in.
    client_logins,
    /// Logins on backends.
    server_logins,
    /// Errors that backends reported.
    errors,
    /// Waits that ended without a backend.
    wait_timeouts,
    /// Backends beyond the size of their pool, handed to transactions that go on to another shard.
    reserve_assignments,
}

/// A reading of counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals(pub Tally);

/// What is counted once per process.
#[derive(Debug, Default)]
pub struct ProcessCounters {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections turned away because `max_clients` were open.
    pub turned_away: Counter,
    /// Logins that failed.
    pub login_failures: Counter,
    /// Connections that are logging in just now.
    pub logging_in: Gauge,
    /// Logins closed because others waited for their place.
    pub logins_evicted: Counter,
    /// Logins that had to wait, or were refused, after too many failures.
    pub logins_delayed: Counter,
    pub logins_refused: Counter,
    /// Cancel requests, and those that named a session.
    pub cancels: Counter,
    pub cancels_matched: Counter,
    /// Cancel requests for sessions of other proxies, passed on to them.
    pub cancels_passed_on: Counter,
    /// Sessions that ended by a panic.
    pub panics: Counter,
    pub reloads: Counter,
    pub reload_failures: Counter,
    /// Backends that could not be opened.
    pub connect_failures: Counter,
}

/// Refusals by stable code (`SW…`). Takes a lock: a refused statement is off the hot path.
#[derive(Debug, Default)]
pub struct Refusals(Mutex<BTreeMap<&'static str, u64>>);

impl Refusals {
    /// Counts one refusal.
    pub fn count(&self, code: &'static str) {
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(code)
            .or_default() += 1;
    }

    /// Refusals so far, by code.
    #[must_use]
    pub fn read(&self) -> Vec<(&'static str, u64)> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(code, count)| (*code, *count))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folding_moves_a_tally_into_the_pool() {
        let pool = PoolCounters::default();
        let mut tally = Tally {
            queries: 3,
            sent_bytes: 90,
            ..Tally::default()
        };
        pool.fold(&mut tally);
        assert_eq!(tally, Tally::default());
        pool.fold(&mut tally);
        assert_eq!((pool.queries.get(), pool.sent_bytes.get()), (3, 90));
    }

    #[test]
    fn totals_add_and_subtract() {
        let one = Totals(Tally {
            queries: 5,
            ..Tally::default()
        });
        let two = Totals(Tally {
            queries: 7,
            ..Tally::default()
        });
        assert_eq!(one.plus(two).0.queries, 12);
        assert_eq!(two.since(one).0.queries, 2);
        assert_eq!(one.since(two).0.queries, 0);
    }
}
