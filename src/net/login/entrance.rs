//! What logins share for the life of the process, over every reload: the secret behind salts and mock exchanges,
//! verifiers that took work, recent failures, and who is logging in just now.
//!
//! Who is logging in takes no place of those who are inside: there may be so many of them. One more waits to be accepted
//! until a place is free, and not for long: who has been at it for [`GRACE`] has to go when others wait, so that neither a
//! crowd is sent away nor slow strangers keep others out.

use super::failures::{Attempt, Failures, Limits, Source, Verdict};
use crate::{
    auth::scram::{self, Verifier},
    clock::{Clock, Duration, Instant},
    config::settings::Secret,
    metrics::Metrics,
    net::{effort::Effort, transport::Peer},
};
use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::{
    sync::{Notify, oneshot},
    time::timeout,
};

/// How long a login may take while others wait for its place.
const GRACE: Duration = Duration::from_secs(2);

/// See the module.
pub struct Entrance {
    secret: [u8; 32],
    clock: Clock,
    metrics: Arc<Metrics>,
    failures: Mutex<Failures>,
    waiting: Mutex<Waiting>,
    left: Notify,
    verifiers: Mutex<HashMap<String, (Secret, Arc<Verifier>)>>,
    pub(super) effort: Effort,
}

/// Who is logging in, oldest first.
#[derive(Default)]
struct Waiting {
    next: u64,
    open: BTreeMap<u64, (Instant, oneshot::Sender<()>)>,
}

impl fmt::Debug for Entrance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Entrance(..)")
    }
}

impl Entrance {
    /// `secret`: random bytes, so that mock exchanges cannot be told from real ones.
    #[must_use]
    pub fn new(secret: [u8; 32], clock: Clock, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            secret,
            clock,
            metrics,
            failures: Mutex::default(),
            waiting: Mutex::default(),
            left: Notify::new(),
            verifiers: Mutex::default(),
            effort: Effort::default(),
        })
    }

    pub(super) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }

    /// Resolves when there is room for another login, or somebody who has had enough time.
    pub async fn room(&self, most: usize) {
        loop {
            let left = self.left.notified();
            let oldest = {
                let waiting = lock(&self.waiting);
                if waiting.open.len() < most.max(1) {
                    return;
                }
                waiting.open.values().next().map(|(since, _)| *since)
            };
            let now = self.clock.now();
            let had = oldest.map_or(GRACE, |since| now.saturating_duration_since(since));
            let Some(more) = GRACE.checked_sub(had).filter(|more| !more.is_zero()) else {
                return;
            };
            // Whichever comes first: it is looked at again.
            let _looked = timeout(more, left).await;
        }
    }

    /// A place among those who log in, of which there are `most`: the oldest makes room.
    #[must_use]
    pub fn admit(self: &Arc<Self>, most: usize) -> Place {
        let mut waiting = lock(&self.waiting);
        while waiting.open.len() >= most.max(1) {
            if let Some((_, (_, oldest))) = waiting.open.pop_first() {
                self.metrics.process.logins_evicted.increment();
                // It may have ended by itself in this moment.
                let _gone = oldest.send(());
            }
        }
        let number = waiting.next;
        waiting.next += 1;
        let (sender, evicted) = oneshot::channel();
        waiting.open.insert(number, (self.clock.now(), sender));
        self.metrics.process.logging_in.enter();
        Place {
            entrance: Arc::clone(self),
            number,
            evicted,
        }
    }

    pub(super) fn attempt(&self, peer: Peer, user: &[u8]) -> Attempt {
        Attempt {
            source: Source::of(peer),
            user: scram::salt_for(user, &self.secret),
        }
    }

    pub(super) fn verdict(&self, attempt: Attempt, limits: Limits) -> Verdict {
        let verdict = lock(&self.failures).admit(attempt, limits, self.clock.now());
        let process = &self.metrics.process;
        match verdict {
            Verdict::Now => {}
            Verdict::After(_) => process.logins_delayed.increment(),
            Verdict::Refused(_) => process.logins_refused.increment(),
        }
        verdict
    }

    pub(super) fn failed(&self, attempt: Attempt, limits: Limits) {
        lock(&self.failures).failed(attempt, limits, self.clock.now());
    }

    pub(super) fn succeeded(&self, attempt: Attempt) {
        lock(&self.failures).succeeded(attempt);
    }

    /// The verifiers of passwords, computed here and now: were the first login of a user what computes his, it would take
    /// longer than that of a name that nobody has. What was computed before and is not asked for now is forgotten.
    pub(super) fn verifiers<'u>(
        &self,
        passwords: impl Iterator<Item = (&'u str, &'u Secret)>,
    ) -> HashMap<String, Arc<Verifier>> {
        let mut kept = lock(&self.verifiers);
        let mut now = HashMap::new();
        for (name, password) in passwords {
            let known = kept.remove(name).filter(|(of, _)| of == password);
            let (of, verifier) = known.unwrap_or_else(|| {
                let salt = scram::salt_for(name.as_bytes(), &self.secret);
                let made = Verifier::of(password.0.as_bytes(), &salt, scram::ITERATIONS);
                (password.clone(), Arc::new(made))
            });
            now.insert(name.to_owned(), (of, verifier));
        }
        let verifiers = now
            .iter()
            .map(|(name, (_, verifier))| (name.clone(), Arc::clone(verifier)))
            .collect();
        *kept = now;
        verifiers
    }
}

/// A place among those who log in, given back by drop.
#[derive(Debug)]
pub struct Place {
    entrance: Arc<Entrance>,
    number: u64,
    evicted: oneshot::Receiver<()>,
}

impl Place {
    /// Resolves when another takes the place.
    pub(super) async fn lost(&mut self) {
        // The sender stays in the entrance until it is used or this is dropped.
        if (&mut self.evicted).await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.entrance.waiting).open.remove(&self.number);
        self.entrance.metrics.process.logging_in.leave();
        self.entrance.left.notify_waiters();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
