//! How often addresses failed to prove who they are, and how long the next attempt waits. Decides only: the time is an
//! argument.
//!
//! Counted per address and user, and per address with ten times the limit: never per user alone, or strangers could lock
//! somebody out from anywhere. Memory is bounded: what was not touched for long is forgotten first.

use crate::{
    clock::{Duration, Instant},
    net::transport::Peer,
};
use std::{collections::HashMap, hash::Hash, net::IpAddr};

/// Failures are forgotten evenly over this time.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(600);
/// What an address may fail more often than one user from it.
const ADDRESS_FACTOR: u32 = 10;
/// Entries of one generation; two are kept.
const GENERATION: usize = 8192;

/// From where somebody comes. Who has an IPv6 network has all of its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    V4([u8; 4]),
    V6Network([u8; 8]),
    Local,
}

impl Source {
    pub(super) fn of(peer: Peer) -> Self {
        match peer {
            Peer::Unix | Peer::Gone => Self::Local,
            Peer::Tcp(address) => match address.ip().to_canonical() {
                IpAddr::V4(address) => Self::V4(address.octets()),
                IpAddr::V6(address) => {
                    let mut network = [0; 8];
                    network.copy_from_slice(&address.octets()[..8]);
                    Self::V6Network(network)
                }
            },
        }
    }
}

/// Who attempts: the user's name only as a digest, so that long names take no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Attempt {
    pub(super) source: Source,
    pub(super) user: [u8; 16],
}

/// What is permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Failures of one user from one address before attempts are spaced; zero: never.
    pub(super) failures: u32,
    /// The space between attempts then.
    pub(super) spacing: Duration,
    /// Who would have to wait for longer is refused.
    pub(super) patience: Duration,
}

/// When an attempt may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Now,
    After(Duration),
    /// Not now; perhaps after that time.
    Refused(Duration),
}

/// Failures of the last while.
#[derive(Debug, Default)]
pub(super) struct Failures {
    pairs: Generations<Attempt>,
    sources: Generations<Source>,
}

impl Failures {
    /// Whether an attempt may be made; one that waits has its turn reserved.
    pub(super) fn admit(&mut self, attempt: Attempt, limits: Limits, now: Instant) -> Verdict {
        if limits.failures == 0 {
            return Verdict::Now;
        }
        let pair = self.pairs.get(attempt);
        let source = self.sources.get(attempt.source);
        let wait = [
            pair.as_deref().and_then(|it| it.wait(limits.pair(), now)),
            source
                .as_deref()
                .and_then(|it| it.wait(limits.source(), now)),
        ];
        let Some(longest) = wait.iter().flatten().max().copied() else {
            return Verdict::Now;
        };
        if longest > limits.patience {
            return Verdict::Refused(longest);
        }
        let turn = now + longest;
        for (bucket, over, limit) in [
            (pair, wait[0], limits.pair()),
            (source, wait[1], limits.source()),
        ] {
            if let (Some(bucket), Some(_)) = (bucket, over) {
                bucket.next = turn + limit.spacing;
            }
        }
        if longest.is_zero() {
            Verdict::Now
        } else {
            Verdict::After(longest)
        }
    }

    /// A proof was wrong.
    pub(super) fn failed(&mut self, attempt: Attempt, limits: Limits, now: Instant) {
        if limits.failures == 0 {
            return;
        }
        self.pairs.entry(attempt, now).fail(limits.pair(), now);
        self.sources
            .entry(attempt.source, now)
            .fail(limits.source(), now);
    }

    /// A proof was right. The address stays counted: one account of a guesser's own must not excuse the others.
    pub(super) fn succeeded(&mut self, attempt: Attempt) {
        self.pairs.remove(attempt);
    }
}

/// How much one kind of key may fail.
#[derive(Clone, Copy)]
struct Limit {
    failures: f64,
    spacing: Duration,
}

impl Limits {
    fn pair(self) -> Limit {
        Limit {
            failures: f64::from(self.failures),
            spacing: self.spacing,
        }
    }

    fn source(self) -> Limit {
        Limit {
            failures: f64::from(self.failures.saturating_mul(ADDRESS_FACTOR)),
            spacing: self.spacing / ADDRESS_FACTOR,
        }
    }
}

/// A leaking bucket of failures.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    level: f64,
    at: Instant,
    /// When the next attempt has its turn, once there are too many failures.
    next: Instant,
}

impl Bucket {
    fn level(&self, limit: Limit, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.level - limit.failures * passed / FORGOTTEN_AFTER.as_secs_f64()).max(0.0)
    }

    /// How long an attempt waits; `None`: there is no reason to.
    fn wait(&self, limit: Limit, now: Instant) -> Option<Duration> {
        // A failure leaks from its first moment on.
        (self.level(limit, now) > limit.failures - 1.0)
            .then(|| self.next.saturating_duration_since(now))
    }

    fn fail(&mut self, limit: Limit, now: Instant) {
        // What is above the limit is forgotten in time, too.
        self.level = (self.level(limit, now) + 1.0).min(2.0 * limit.failures);
        self.at = now;
        self.next = self.next.max(now + limit.spacing);
    }
}

/// A map that never grows beyond two generations.
#[derive(Debug)]
struct Generations<K> {
    young: HashMap<K, Bucket>,
    old: HashMap<K, Bucket>,
}

impl<K> Default for Generations<K> {
    fn default() -> Self {
        Self {
            young: HashMap::new(),
            old: HashMap::new(),
        }
    }
}

impl<K: Copy + Eq + Hash> Generations<K> {
    fn get(&mut self, key: K) -> Option<&mut Bucket> {
        match self.young.get_mut(&key) {
            Some(bucket) => Some(bucket),
            None => self.old.get_mut(&key),
        }
    }

    fn entry(&mut self, key: K, now: Instant) -> &mut Bucket {
        if !self.young.contains_key(&key) && self.young.len() >= GENERATION {
            self.old = std::mem::take(&mut self.young);
        }
        let old = self.old.remove(&key);
        self.young.entry(key).or_insert_with(|| {
            old.unwrap_or(Bucket {
                level: 0.0,
                at: now,
                next: now,
            })
        })
    }

    fn remove(&mut self, key: K) {
        self.young.remove(&key);
        self.old.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        failures: 3,
        spacing: Duration::from_secs(1),
        patience: Duration::from_secs(5),
    };

    fn attempt(address: u8, user: u8) -> Attempt {
        Attempt {
            source: Source::V4([10, 0, 0, address]),
            user: [user; 16],
        }
    }

    fn start() -> Instant {
        crate::clock::Clock.now()
    }

    fn secs(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn after_some_failures_attempts_are_spaced_and_a_crowd_is_refused() {
        let (mut failures, now) = (Failures::default(), start());
        let ann = attempt(1, 1);
        for _ in 0..LIMITS.failures {
            assert_eq!(failures.admit(ann, LIMITS, now), Verdict::Now);
            failures.failed(ann, LIMITS, now);
        }
        for turn in 1..=5 {
            let verdict = failures.admit(ann, LIMITS, now);
            assert_eq!(verdict, Verdict::After(secs(turn)));
        }
        assert_eq!(failures.admit(ann, LIMITS, now), Verdict::Refused(secs(6)));
        // Neither another user there nor the same user elsewhere is held up.
        assert_eq!(failures.admit(attempt(1, 2), LIMITS, now), Verdict::Now);
        assert_eq!(failures.admit(attempt(2, 1), LIMITS, now), Verdict::Now);
    }

    #[test]
    fn a_success_and_time_forgive() {
        let (mut failures, now) = (Failures::default(), start());
        let ann = attempt(1, 1);
        for _ in 0..LIMITS.failures {
            failures.failed(ann, LIMITS, now);
        }
        assert_ne!(failures.admit(ann, LIMITS, now), Verdict::Now);
        assert_eq!(
            failures.admit(ann, LIMITS, now + FORGOTTEN_AFTER),
            Verdict::Now
        );
        failures.succeeded(ann);
        assert_eq!(failures.admit(ann, LIMITS, now), Verdict::Now);
    }

    #[test]
    fn who_fails_now_and_then_is_never_held_up() {
        let (mut failures, mut now) = (Failures::default(), start());
        let job = attempt(1, 1);
        for _ in 0..1000 {
            assert_eq!(failures.admit(job, LIMITS, now), Verdict::Now);
            failures.failed(job, LIMITS, now);
            now += FORGOTTEN_AFTER / LIMITS.failures;
        }
    }

    #[test]
    fn an_address_that_tries_many_names_is_held_up_for_each_of_them() {
        let (mut failures, now) = (Failures::default(), start());
        for user in 0..30 {
            let one = attempt(1, user);
            assert_eq!(failures.admit(one, LIMITS, now), Verdict::Now, "{user}");
            failures.failed(one, LIMITS, now);
        }
        let (fresh, own) = (attempt(1, 100), attempt(1, 0));
        assert_ne!(failures.admit(fresh, LIMITS, now), Verdict::Now);
        failures.succeeded(own);
        assert_ne!(failures.admit(fresh, LIMITS, now), Verdict::Now);
        assert_eq!(failures.admit(attempt(2, 100), LIMITS, now), Verdict::Now);
    }

    #[test]
    fn no_number_of_names_takes_more_than_the_memory_that_is_meant() {
        let (mut failures, now) = (Failures::default(), start());
        for number in 0..100_000_u32 {
            let mut user = [0; 16];
            user[..4].copy_from_slice(&number.to_be_bytes());
            let source = Source::V6Network([user[0], user[1], user[2], user[3], 0, 0, 0, 0]);
            failures.failed(Attempt { source, user }, LIMITS, now);
        }
        assert!(failures.pairs.young.len() + failures.pairs.old.len() <= 2 * GENERATION);
        assert!(failures.sources.young.len() + failures.sources.old.len() <= 2 * GENERATION);
    }

    #[test]
    fn no_limit_is_no_limit() {
        let (mut failures, now) = (Failures::default(), start());
        let limits = Limits {
            failures: 0,
            ..LIMITS
        };
        for _ in 0..1000 {
            failures.failed(attempt(1, 1), limits, now);
        }
        assert_eq!(failures.admit(attempt(1, 1), limits, now), Verdict::Now);
    }
}
