//! The client's view of its transaction while no shard has been reached: BEGIN is answered here and replayed, with its
//! exact text, on the shard that the first routed statement reaches.
//!
//! ```text
//!            BEGIN                     statement routed to a shard
//!   Outside ───────▶ Deferred ───────────────────────────────────────▶ On the backend (its status byte rules)
//!      ▲  COMMIT/ROLLBACK │   ▲ │ error made here
//!      └──────────────────┘   └─┘ failed: only ROLLBACK (TO) and COMMIT are accepted
//! ```

/// A transaction that has been begun and has reached no shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deferred {
    /// BEGIN with its exact options.
    begin: Vec<u8>,
    /// What followed and means something on every shard: SAVEPOINT, SET LOCAL, SET TRANSACTION.
    steps: Vec<Step>,
    failed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Savepoint { name: String, text: Vec<u8> },
    Text(Vec<u8>),
}

/// A savepoint of that name does not exist (3B001).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSuchSavepoint;

impl Deferred {
    /// BEGIN or START TRANSACTION was answered here.
    #[must_use]
    pub fn begin(text: &[u8]) -> Self {
        Self {
            begin: text.to_vec(),
            steps: Vec::new(),
            failed: false,
        }
    }

    /// Whether an error has ended everything but ROLLBACK.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.failed
    }

    /// An error was answered.
    pub fn fail(&mut self) {
        self.failed = true;
    }

    /// COMMIT AND CHAIN, ROLLBACK AND CHAIN: the next transaction has the same characteristics.
    #[must_use]
    pub fn chain(&self) -> Self {
        Self::begin(&self.begin)
    }

    /// SAVEPOINT.
    pub fn savepoint(&mut self, name: &str, text: &[u8]) {
        self.steps.push(Step::Savepoint {
            name: name.to_owned(),
            text: text.to_vec(),
        });
    }

    /// RELEASE SAVEPOINT: it and those after it are gone; what else was done since stays.
    ///
    /// # Errors
    /// When there is no such savepoint; the transaction has failed then.
    pub fn release(&mut self, name: &str) -> Result<(), NoSuchSavepoint> {
        let at = self.find(name)?;
        let tail = self.steps.split_off(at);
        self.steps.extend(
            tail.into_iter()
                .filter(|step| matches!(step, Step::Text(_))),
        );
        Ok(())
    }

    /// ROLLBACK TO SAVEPOINT: what was done since is undone, and the transaction works again.
    ///
    /// # Errors
    /// When there is no such savepoint; the transaction has failed then.
    pub fn rollback_to(&mut self, name: &str) -> Result<(), NoSuchSavepoint> {
        let at = self.find(name)?;
        self.steps.truncate(at + 1);
        self.failed = false;
        Ok(())
    }

    fn find(&mut self, name: &str) -> Result<usize, NoSuchSavepoint> {
        let found = self
            .steps
            .iter()
            .rposition(|step| matches!(step, Step::Savepoint { name: found, .. } if found == name));
        self.failed |= found.is_none();
        found.ok_or(NoSuchSavepoint)
    }

    /// How many savepoints there are.
    #[must_use]
    pub fn savepoints(&self) -> usize {
        let steps = self.steps.iter();
        steps
            .filter(|step| matches!(step, Step::Savepoint { .. }))
            .count()
    }

    /// SET LOCAL, SET TRANSACTION, SET CONSTRAINTS.
    pub fn setting(&mut self, text: &[u8]) {
        self.steps.push(Step::Text(text.to_vec()));
    }

    /// The statements that bring a shard to where the transaction stands, each to be confirmed before the next.
    #[must_use]
    pub fn replay(&self) -> Vec<&[u8]> {
        let steps = self.steps.iter().map(|step| match step {
            Step::Savepoint { text, .. } | Step::Text(text) => text.as_slice(),
        });
        std::iter::once(self.begin.as_slice())
            .chain(steps)
            .collect()
    }

    /// Whether settings were made in it that a statement may depend on, so that it must be parsed behind them.
    #[must_use]
    pub fn has_settings(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Text(_)))
    }

    /// Whether each statement sees its own snapshot, so that one may run in a transaction of its own. Judged by the
    /// text: whatever names an isolation level, even READ COMMITTED, is taken for one that does not.
    #[must_use]
    pub fn statement_snapshots(&self) -> bool {
        let names_level = |text: &[u8]| {
            text.to_ascii_lowercase()
                .windows(b"isolation".len())
                .any(|window| window == b"isolation")
        };
        !self.replay().into_iter().any(names_level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_replay_is_what_still_holds() {
        let mut deferred = Deferred::begin(b"BEGIN READ ONLY");
        deferred.savepoint("a", b"SAVEPOINT a");
        deferred.setting(b"SET LOCAL work_mem = '1MB'");
        deferred.savepoint("b", b"SAVEPOINT b");
        deferred.rollback_to("a").unwrap();
        deferred.setting(b"SET LOCAL x.y = 1");
        assert_eq!(
            deferred.replay(),
            [
                &b"BEGIN READ ONLY"[..],
                b"SAVEPOINT a",
                b"SET LOCAL x.y = 1"
            ]
        );
        assert_eq!(deferred.savepoints(), 1);
        deferred.release("a").unwrap();
        assert_eq!(deferred.savepoints(), 0);
        assert_eq!(
            deferred.replay(),
            [&b"BEGIN READ ONLY"[..], b"SET LOCAL x.y = 1"]
        );
    }

    #[test]
    fn an_unknown_savepoint_fails_the_transaction() {
        let mut deferred = Deferred::begin(b"begin");
        deferred.savepoint("a", b"savepoint a");
        assert_eq!(deferred.release("b"), Err(NoSuchSavepoint));
        assert!(deferred.failed());
        deferred.rollback_to("a").unwrap();
        assert!(!deferred.failed());
    }

    #[test]
    fn a_named_isolation_level_needs_one_snapshot() {
        assert!(Deferred::begin(b"BEGIN").statement_snapshots());
        assert!(
            !Deferred::begin(b"START TRANSACTION ISOLATION LEVEL repeatable read")
                .statement_snapshots()
        );
    }
}
