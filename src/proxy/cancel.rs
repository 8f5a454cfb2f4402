//! Cancel requests: they hit what the client that sent them runs, never the next user of its backend.
//!
//! A backend is not given back while a cancel for it is on its way; a client that waits for a backend is told at once.

use crate::pool::backend::CancelTarget;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};
use tokio::sync::Notify;

/// Where a session's cancel requests go.
#[derive(Debug, Default)]
pub struct Slot {
    state: Mutex<State>,
    /// Tells the session that a cancel has arrived or is done.
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    target: Option<Arc<CancelTarget>>,
    waiting: bool,
    cancelled: bool,
    in_flight: usize,
}

/// A cancel on its way to a backend: the session keeps the backend until this is dropped.
#[derive(Debug)]
pub struct InFlight {
    slot: Arc<Slot>,
    pub target: Arc<CancelTarget>,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.slot.lock().in_flight -= 1;
        self.slot.changed.notify_one();
    }
}

impl Slot {
    /// The session's requests go to this backend from now on.
    pub fn attach(&self, target: &Arc<CancelTarget>) {
        self.lock().target = Some(Arc::clone(target));
    }

    /// The session gives its backend back. True when a cancel is on its way: [`Slot::quiet`] must be awaited first.
    pub fn detach(&self) -> bool {
        let mut state = self.lock();
        state.target = None;
        state.in_flight > 0
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

    /// A cancel request has come: the backend to send it to, if the session has one.
    pub fn cancel(self: &Arc<Self>) -> Option<InFlight> {
        let mut state = self.lock();
        if state.waiting {
            state.cancelled = true;
            drop(state);
            self.changed.notify_one();
            return None;
        }
        let target = state.target.clone()?;
        state.in_flight += 1;
        drop(state);
        Some(InFlight {
            slot: Arc::clone(self),
            target,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots of all sessions by the number that BackendKeyData gave them.
#[derive(Debug, Default)]
pub struct Slots {
    by_pid: Mutex<HashMap<u32, Weak<Slot>>>,
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
