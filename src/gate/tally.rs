//! What attempts of cutovers have cost the statements of this proxy: how many have waited, how long, and how many failed.
//!
//! What must stay true: a statement is counted once, when it waits no more, however it ended.

use super::state::Attempt;
use crate::clock::Duration;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What one attempt has cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub statements: u64,
    pub failed: u64,
    pub longest: Duration,
    /// All waits together.
    pub waited: Duration,
}

/// Of all attempts that were not told yet.
#[derive(Clone, Debug, Default)]
pub struct Tallies(Arc<Mutex<BTreeMap<Attempt, Open>>>);

#[derive(Debug, Default)]
struct Open {
    tally: Tally,
    /// Statements that still wait.
    waiting: usize,
}

/// A statement that waits. Dropped, it ended for another reason than the hold.
#[derive(Debug)]
pub struct Wait {
    tallies: Tallies,
    attempt: Attempt,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The statement went on, or its client did not want it any more.
    Passed,
    Failed,
}

impl Tallies {
    /// A statement begins to wait.
    #[must_use]
    pub fn begin(&self, attempt: Attempt) -> Wait {
        self.all().entry(attempt.clone()).or_default().waiting += 1;
        Wait {
            tallies: self.clone(),
            attempt,
        }
    }

    /// A statement failed that has not waited.
    pub fn fails(&self, attempt: Attempt) {
        self.all().entry(attempt).or_default().tally.failed += 1;
    }

    /// What an attempt that is over has cost, once nobody waits for it any more; from then on it is forgotten.
    #[must_use]
    pub fn take(&self, attempt: &Attempt) -> Option<Tally> {
        let mut all = self.all();
        match all.get(attempt) {
            None => Some(Tally::default()),
            Some(open) if open.waiting > 0 => None,
            Some(_) => all.remove(attempt).map(|open| open.tally),
        }
    }

    /// Nothing panics while it is locked.
    fn all(&self) -> MutexGuard<'_, BTreeMap<Attempt, Open>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wait {
    /// It waits no more.
    pub fn ends(self, waited: Duration, how: End) {
        let mut all = self.tallies.all();
        if let Some(Open { tally, .. }) = all.get_mut(&self.attempt) {
            tally.statements += 1;
            tally.failed += u64::from(how == End::Failed);
            tally.longest = tally.longest.max(waited);
            tally.waited += waited;
        }
    }
}

impl Drop for Wait {
    fn drop(&mut self) {
        if let Some(open) = self.tallies.all().get_mut(&self.attempt) {
            open.waiting = open.waiting.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_attempt_has_cost_is_told_once_nobody_waits() {
        let tallies = Tallies::default();
        let attempt = |number| Attempt {
            workflow: "w".to_owned(),
            number,
        };
        let first = tallies.begin(attempt(1));
        let second = tallies.begin(attempt(1));
        let left = tallies.begin(attempt(1));
        assert_eq!(tallies.take(&attempt(2)), Some(Tally::default()));
        first.ends(Duration::from_millis(3), End::Passed);
        second.ends(Duration::from_millis(5), End::Failed);
        assert_eq!(tallies.take(&attempt(1)), None, "somebody waits");
        drop(left);
        let told = Tally {
            statements: 2,
            failed: 1,
            longest: Duration::from_millis(5),
            waited: Duration::from_millis(8),
        };
        assert_eq!(tallies.take(&attempt(1)), Some(told));
        assert_eq!(tallies.take(&attempt(1)), Some(Tally::default()));
    }
}
