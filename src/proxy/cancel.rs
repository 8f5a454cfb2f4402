//! Cancel requests: they hit what the client that sent them runs, never the next user of its backend.
//!
//! A backend is not given back while a cancel for it is on its way; a client that waits for a backend is told at once.
//! A request for a session of another proxy is passed on to that, once and at a bounded rate; it is never answered.

use super::{Shared, fan::all, session::CANCEL_PATIENCE};
use crate::{
    clock::Duration,
    net::{backend, tls::ClientTls},
    pool::backend::CancelTarget,
    wire::cancel_key::{self, Sender},
};
use smallvec::SmallVec;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::{
    sync::{Notify, Semaphore},
    time::timeout,
};

/// Requests passed on to other proxies at once; more wait.
const PASSED_ON_AT_ONCE: usize = 8;
/// Requests that may wait to be passed on; more are dropped.
const WAITING: usize = 256;
/// How long one keeps its place at least: no more than 400 a second are passed on, whoever asks for more.
const REST: Duration = Duration::from_millis(20);

/// Carries out a CancelRequest: of a session of ours that it names with the whole key, or by the proxy whose it is.
pub(super) async fn carry_out(pid: u32, key: &[u8], shared: &Arc<Shared>) {
    let counters = &shared.metrics.process;
    counters.cancels.increment();
    let (key, sender) = cancel_key::read(key);
    if shared.metrics.sessions.find_cancel(pid, key).is_some() {
        counters.cancels_matched.increment();
        reach_backends(pid, shared).await;
    } else if sender == Sender::Client {
        pass_on(pid, key, shared).await;
    }
}

/// Sends it to the backends that run the session's statement, at once; a session that waits for one is told.
async fn reach_backends(pid: u32, shared: &Shared) {
    let Some(slot) = shared.cancels.get(pid) else {
        return;
    };
    send(slot.cancel(), &shared.tls).await;
}

/// Sends all of them at once.
pub(super) async fn send(sent: Vec<InFlight>, tls: &Arc<ClientTls>) {
    let sent = sent.into_iter();
    all(sent.map(|one| reach_backend(one, tls)).collect()).await;
}

async fn reach_backend(in_flight: InFlight, tls: &Arc<ClientTls>) {
    let CancelTarget { address, pid, key } = &*in_flight.target;
    match backend::cancel(address, *pid, key, CANCEL_PATIENCE, tls).await {
        Ok(()) => in_flight.has_arrived(),
        Err(problem) => tracing::warn!(%problem, "a cancel request did not reach the server"),
    }
}

/// Sends it to the proxy whose session it names, if that is another one that we know.
async fn pass_on(pid: u32, key: &[u8], shared: &Shared) {
    let number = cancel_key::proxy_of(pid);
    let settings = shared.settings.load_full();
    let own = shared.metrics.sessions.proxy();
    let (Some(peer), Some(key)) = (
        settings
            .server
            .peers
            .get(&number)
            .filter(|_| own != Some(number)),
        cancel_key::passed_on(key),
    ) else {
        return;
    };
    let lane = &shared.cancels.lane;
    let Ok(_waiting) = lane.waiting.try_acquire() else {
        return;
    };
    let Ok(Ok(place)) = timeout(CANCEL_PATIENCE, Arc::clone(&lane.places).acquire_owned()).await
    else {
        return;
    };
    shared.metrics.process.cancels_passed_on.increment();
    let begun = shared.clock.now();
    let sent = backend::cancel(peer, pid, &key, CANCEL_PATIENCE, &shared.tls).await;
    if let Err(problem) = sent {
        tracing::warn!(peer = number, %problem, "a cancel request did not reach the proxy whose session it means");
    }
    tokio::time::sleep_until((begun + REST).into()).await;
    drop(place);
}

/// Bounds what is passed on.
#[derive(Debug)]
struct Lane {
    places: Arc<Semaphore>,
    waiting: Semaphore,
}

impl Default for Lane {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(PASSED_ON_AT_ONCE)),
            waiting: Semaphore::new(WAITING),
        }
    }
}

/// Where a session's cancel requests go.
#[derive(Debug, Default)]
pub struct Slot {
    state: Mutex<State>,
    /// Tells the session that a cancel has arrived or is done.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// One backend, or all that are at work on one statement.
    targets: SmallVec<[Arc<CancelTarget>; 1]>,
    waiting: bool,
    cancelled: bool,
    in_flight: usize,
    /// Backends that a cancel may reach at any time from now on, because nobody knows what became of it.
    doubtful: Vec<Arc<CancelTarget>>,
}

/// A cancel on its way to a backend: the session keeps the backend until this is dropped.
#[derive(Debug)]
pub struct InFlight {
    slot: Arc<Slot>,
    target: Arc<CancelTarget>,
    fate: Fate,
}

/// What became of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Unknown,
    Arrived,
}

impl InFlight {
    /// The server has taken the request and carried it out.
    fn has_arrived(mut self) {
        self.fate = Fate::Arrived;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut state = self.slot.lock();
        state.in_flight -= 1;
        if self.fate == Fate::Unknown {
            state.doubtful.push(Arc::clone(&self.target));
        }
        drop(state);
        self.slot.changed.notify_one();
    }
}

impl Slot {
    /// The session's requests go to this backend from now on.
    pub fn attach(&self, target: &Arc<CancelTarget>) {
        let targets = &mut self.lock().targets;
        targets.clear();
        targets.push(Arc::clone(target));
    }

    /// They go to this backend as well.
    pub fn attach_also(&self, target: &Arc<CancelTarget>) {
        let targets = &mut self.lock().targets;
        if !targets.iter().any(|known| Arc::ptr_eq(known, target)) {
            targets.push(Arc::clone(target));
        }
    }

    /// The session gives its backends back. True when a cancel is on its way: [`Slot::quiet`] must be awaited first.
    pub fn detach(&self) -> bool {
        let mut state = self.lock();
        state.targets.clear();
        state.in_flight > 0
    }

    /// Whether a cancel for this backend may still come, so that nobody else may have it.
    pub fn is_doubtful(&self, target: &Arc<CancelTarget>) -> bool {
        let state = self.lock();
        let mut doubtful = state.doubtful.iter();
        doubtful.any(|other| Arc::ptr_eq(other, target))
    }

    /// Whether no cancel is on its way.
    pub(super) fn is_quiet(&self) -> bool {
        self.lock().in_flight == 0
    }

    /// Resolves when no cancel is on its way.
    pub async fn quiet(&self) {
        while self.lock().in_flight > 0 {
            self.changed.notified().await;
        }
    }

    /// The session waits for a backend, so that a cancel ends the wait.
    pub fn wait_begins(&self) {
        let mut state = self.lock();
        state.waiting = true;
        state.cancelled = false;
    }

    /// The wait is over.
    pub fn wait_ends(&self) {
        self.lock().waiting = false;
    }

    /// Resolves when a cancel has arrived during the wait.
    pub async fn cancelled(&self) {
        while !self.lock().cancelled {
            self.changed.notified().await;
        }
    }

    /// A cancel request has come: the backends to send it to, if the session has any.
    pub fn cancel(self: &Arc<Self>) -> Vec<InFlight> {
        let mut state = self.lock();
        if state.waiting {
            state.cancelled = true;
            drop(state);
            self.changed.notify_one();
            return Vec::new();
        }
        let targets = state.targets.clone();
        state.in_flight += targets.len();
        drop(state);
        let sent = targets.into_iter().map(|target| InFlight {
            slot: Arc::clone(self),
            target,
            fate: Fate::Unknown,
        });
        sent.collect()
    }

    /// A cancel of ours for one of the session's backends, which it has until it is told otherwise.
    pub(super) fn aim(self: &Arc<Self>, target: &Arc<CancelTarget>) -> InFlight {
        self.lock().in_flight += 1;
        InFlight {
            slot: Arc::clone(self),
            target: Arc::clone(target),
            fate: Fate::Unknown,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots of all sessions by the number that BackendKeyData gave them.
#[derive(Debug, Default)]
pub struct Slots {
    by_pid: Mutex<HashMap<u32, Weak<Slot>>>,
    lane: Lane,
}

impl Slots {
    /// A session's slot; forgotten with [`Slots::remove`].
    #[must_use]
    pub fn add(&self, pid: u32) -> Arc<Slot> {
        let slot = Arc::new(Slot::default());
        self.lock().insert(pid, Arc::downgrade(&slot));
        slot
    }

    /// The session has ended.
    pub fn remove(&self, pid: u32) {
        self.lock().remove(&pid);
    }

    /// The slot of a session.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<Arc<Slot>> {
        self.lock().get(&pid).and_then(Weak::upgrade)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, Weak<Slot>>> {
        self.by_pid.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
