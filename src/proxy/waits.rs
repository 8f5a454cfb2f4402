//! The sessions of a database that are on several shards at a time, for whoever looks for rings of waits; and how one of
//! them is told that it is on a ring.
//!
//! What must stay true: a session on one shard costs nothing here; a sentence hits the statement that was seen to wait, or
//! nothing: its backends are cancelled only while the same batch is under way, and as a client's cancel is, so that it
//! never hits who has the backend next.

use super::cancel::{self, Slot};
use crate::{
    catalog::shard::ShardId,
    clock::{Duration, Instant},
    net::tls::ClientTls,
    pool::backend::CancelTarget,
    txn::{
        deadlock::Wait,
        waiting::{Condemned, Suspect},
    },
};
use smallvec::SmallVec;
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// The sessions of one database that are on several shards.
#[derive(Debug, Default)]
pub struct Waits {
    entries: Mutex<HashMap<u64, Arc<Entry>>>,
    next: AtomicU64,
}

/// What one session does on several shards; seen until it is dropped.
#[derive(Debug)]
pub(super) struct Seen {
    waits: Arc<Waits>,
    number: u64,
    entry: Arc<Entry>,
}

#[derive(Debug)]
struct Entry {
    begun: Instant,
    slot: Arc<Slot>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    backends: SmallVec<[(ShardId, Arc<CancelTarget>); 2]>,
    /// The batch that has not been answered, and since when.
    batch: Option<Instant>,
    batches: u64,
    name: Option<String>,
    sentence: Option<Arc<[Wait]>>,
    /// It gives its backends back.
    is_over: bool,
}

impl Waits {
    /// A session is on several shards, or about to be, in a transaction that has begun then. `slot` takes its cancels.
    pub(super) fn enter(self: &Arc<Self>, begun: Instant, slot: &Arc<Slot>, now: Instant) -> Seen {
        let entry = Arc::new(Entry {
            begun,
            slot: Arc::clone(slot),
            state: Mutex::new(State {
                backends: SmallVec::new(),
                batch: Some(now),
                batches: 0,
                name: None,
                sentence: None,
                is_over: false,
            }),
        });
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number, Arc::clone(&entry));
        Seen {
            waits: Arc::clone(self),
            number,
            entry,
        }
    }

    /// Those that have been without an answer for so long.
    #[must_use]
    pub fn suspects(&self, now: Instant, long: Duration) -> Vec<Suspect> {
        let entries = self.lock();
        let suspects = entries.iter().filter_map(|(number, entry)| {
            let state = entry.lock();
            let since = state.batch?;
            let waits_long = now.saturating_duration_since(since) >= long;
            (waits_long && state.backends.len() > 1 && state.sentence.is_none()).then(|| Suspect {
                number: *number,
                batch: state.batches,
                age: now.saturating_duration_since(entry.begun),
                backends: state
                    .backends
                    .iter()
                    .map(|(shard, target)| (*shard, target.pid))
                    .collect(),
                name: state.name.clone(),
            })
        });
        suspects.collect()
    }

    /// Ends what the condemned session waits for, if that is still the same; whether it was.
    pub async fn carry_out(&self, condemned: Condemned, tls: &Arc<ClientTls>) -> bool {
        let Some(entry) = self.lock().get(&condemned.number).map(Arc::clone) else {
            return false;
        };
        let sent = {
            let mut state = entry.lock();
            let same = state.batch.is_some() && state.batches == condemned.batch;
            if !same || state.is_over {
                return false;
            }
            state.sentence = Some(condemned.ring.into());
            let waits = |shard: &ShardId| condemned.waits_on.contains(shard);
            let targets = state.backends.iter().filter(|(shard, _)| waits(shard));
            targets.map(|(_, target)| entry.slot.aim(target)).collect()
        };
        cancel::send(sent, tls).await;
        true
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// It has this backend of a shard.
    pub(super) fn joins(&self, shard: ShardId, target: &Arc<CancelTarget>) {
        let mut state = self.entry.lock();
        // One that could not be told what the others were is gone.
        state.backends.retain(|(known, _)| *known != shard);
        state.backends.push((shard, Arc::clone(target)));
    }

    /// A batch begins. A sentence that came too late for the last one is void, unless it may still hit.
    pub(super) fn begins(&self, now: Instant) {
        let mut state = self.entry.lock();
        if state.sentence.is_some() && self.entry.slot.is_quiet() {
            state.sentence = None;
        }
        state.batch = Some(now);
        state.batches += 1;
    }

    /// The batch has been answered.
    pub(super) fn rests(&self) {
        self.entry.lock().batch = None;
    }

    /// It is being committed under this name.
    pub(super) fn named(&self, name: &str) {
        self.entry.lock().name = Some(name.to_owned());
    }

    /// The ring that it is on, once it must end for that; told once.
    pub(super) fn sentence(&self) -> Option<Arc<[Wait]>> {
        self.entry.lock().sentence.take()
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.entry.lock().is_over = true;
        self.waits.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        clock::Clock,
        config::settings::{Address, Host, TlsMode, TlsStart},
    };

    fn target(pid: u32) -> Arc<CancelTarget> {
        Arc::new(CancelTarget {
            address: Arc::new(Address {
                host: Host::Tcp("127.0.0.1".to_owned()),
                port: 1,
                database: String::new(),
                tls: TlsMode::Disable,
                root_cert: None,
                tls_start: TlsStart::Request,
                channel_binding: crate::auth::scram::ChannelBinding::Prefer,
            }),
            pid,
            key: Vec::new(),
        })
    }

    #[test]
    fn only_who_is_on_several_shards_without_an_answer_is_suspected() {
        let (waits, slot) = (Arc::new(Waits::default()), Arc::new(Slot::default()));
        let (now, long) = (Clock.now(), Duration::from_secs(1));
        let seen = waits.enter(now, &slot, now);
        seen.joins(ShardId(0), &target(7));
        assert!(waits.suspects(now + long, long).is_empty());
        seen.joins(ShardId(1), &target(8));
        assert!(waits.suspects(now, long).is_empty());
        let found = waits.suspects(now + long, long);
        assert_eq!(found[0].backends, [(ShardId(0), 7), (ShardId(1), 8)]);
        seen.rests();
        assert!(waits.suspects(now + long, long).is_empty());
        seen.begins(now);
        assert_eq!(waits.suspects(now + long, long)[0].batch, 1);
        drop(seen);
        assert!(waits.suspects(now + long, long).is_empty());
    }
}
