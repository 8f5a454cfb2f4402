//! The distributed transactions that this process is working on, under the name by which other proxies know the process.
//!
//! What must stay true: a transaction is live until its owner drops it, so that recovery keeps its hands off; a process
//! that starts again has another name.

use crate::entropy;
use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// This process, as long as it lives.
#[derive(Debug)]
pub struct Incarnation {
    id: u64,
    next: AtomicU64,
    live: Mutex<HashSet<u64>>,
}

/// A number that nobody else has; the transaction of that number is live until this is dropped.
#[derive(Debug)]
pub(super) struct Number {
    incarnation: Arc<Incarnation>,
    number: u64,
}

impl Incarnation {
    /// Of a process that starts.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            id: u64::from_le_bytes(entropy::bytes()),
            next: AtomicU64::new(1),
            live: Mutex::default(),
        })
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.id
    }

    pub(super) fn begin(self: &Arc<Self>) -> Number {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.lock().insert(number);
        Number {
            incarnation: Arc::clone(self),
            number,
        }
    }

    pub(super) fn is_live(&self, number: u64) -> bool {
        self.lock().contains(&number)
    }

    /// Whether no transaction is live.
    pub(super) fn is_idle(&self) -> bool {
        self.lock().is_empty()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Number {
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn incarnation(&self) -> u64 {
        self.incarnation.id
    }
}

impl Drop for Number {
    fn drop(&mut self) {
        self.incarnation.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_live_until_they_are_dropped() {
        let (incarnation, other) = (Incarnation::new(), Incarnation::new());
        let (first, second) = (incarnation.begin(), incarnation.begin());
        assert_ne!(first.number(), second.number());
        let number = first.number();
        assert!(incarnation.is_live(number) && !other.is_live(number));
        drop(first);
        assert!(!incarnation.is_live(number) && incarnation.is_live(second.number()));
        assert_ne!(incarnation.id(), other.id());
    }
}
