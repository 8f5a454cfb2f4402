//! A reshard as its steps see it: what moves between which servers, in which direction, for which runner.

use super::{lines::Lines, plan::Plan, servers::Server};
use crate::{catalog::moving::Move, clock::Duration};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// Which way rows go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Forward,
    /// While a reshard is undone: from the new owners to the old ones.
    Back,
}

/// What an operator may change while it runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Knobs {
    /// Rows a chunk has, about.
    pub chunk_rows: u64,
    /// Chunks that are copied at a time; none while the run is throttled to a standstill.
    pub copies: usize,
    /// Most bytes a second that copies read; 0: no limit.
    pub bytes_per_second: u64,
    /// Changes that are applied in one transaction, at most.
    pub batch: usize,
    /// WAL that a source may keep before the reshard stands still and says so, in bytes.
    pub wal_kept: u64,
    /// Transactions for which a slot may keep a source's vacuum from its catalogs before the reshard stands still and says so.
    pub xmin_age: u64,
    /// Statements that others may run on a source before less is copied at a time; 0: as many as they like.
    pub load: u64,
    /// How long a source may take to say how busy it is before less is copied at a time; zero: any time.
    pub answer: Duration,
    /// Bytes of WAL that a replica of any of the servers may be behind before less is copied at a time; 0: any.
    pub replica_lag: u64,
    /// How long statements may be held while those under way end.
    pub drain: Duration,
    /// How long statements may be held altogether.
    pub hold: Duration,
    /// How long the fence may wait for locks.
    pub lock: Duration,
    /// Most rows a second that are compared; 0: no limit.
    pub rows_per_second: u64,
    /// How long snapshots are held that rows are compared in, about.
    pub compare: Duration,
    /// Shards that were to join and are gone for good, as the operator says who gives it up: nothing is removed there.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub without: BTreeSet<String>,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            chunk_rows: 50_000,
            copies: 2,
            bytes_per_second: 0,
            batch: 4_000,
            wal_kept: 16 << 30,
            // Below autovacuum_freeze_max_age (200 million by default): from there on a server vacuums its catalogs again
            // and again, in vain.
            xmin_age: 150_000_000,
            load: 0,
            answer: Duration::from_millis(500),
            replica_lag: 256 << 20,
            drain: Duration::from_millis(50),
            hold: Duration::from_millis(1_000),
            lock: Duration::from_millis(20),
            rows_per_second: 0,
            compare: Duration::from_secs(120),
            without: BTreeSet::new(),
        }
    }
}

impl Knobs {
    /// As an attempt of a cutover has them after so many that have failed: twice the time of the one before for statements
    /// under way to end and for locks, up to what [`Knobs::hold`], which stays as it is, has room for. A machine that is
    /// slower than the first attempt allows for comes to an end that way.
    #[must_use]
    pub fn after_failed(&self, attempts: u32) -> Self {
        /// Of what statements may be held for: what is left is for the fence, its way to the destinations, the commit, and
        /// for undoing them.
        const DRAIN: u32 = 4;
        const LOCK: u32 = 8;
        let times = 2_u32.saturating_pow(attempts);
        let more = |first: Duration, part: u32| {
            let most = (self.hold / part).max(first);
            first.saturating_mul(times).min(most)
        };
        Self {
            drain: more(self.drain, DRAIN),
            lock: more(self.lock, LOCK),
            ..self.clone()
        }
    }

    /// How long a step of a cutover may take while statements are held: some of what is left of that, and no more than four
    /// times what the fence may wait for locks, so that attempts which fail cost little, and later ones have more time.
    #[must_use]
    pub fn step(&self) -> Duration {
        const PARTS: u32 = 5;
        let left = self.hold.saturating_sub(self.drain) / PARTS;
        left.min(self.lock.saturating_mul(4))
    }
}

/// A reshard and who runs it.
#[derive(Clone, Debug)]
pub struct Job {
    pub id: String,
    /// The runner's: whoever meets a higher one has been replaced.
    pub token: i64,
    pub attempt: i32,
    pub direction: Direction,
    pub plan: Arc<Plan>,
    pub knobs: watch::Receiver<Knobs>,
    /// By name.
    pub servers: Arc<BTreeMap<String, Server>>,
    /// The shard with the catalog.
    pub home: String,
    pub progress: Arc<Progress>,
    /// Connections that steps hand on to each other.
    pub lines: Arc<Lines>,
}

/// Why a step did not do what it was to do.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Of the moment: the step is run again.
    #[error("{what}: {problem}")]
    Again { what: String, problem: String },
    /// Somebody has to do something first.
    #[error("{what}")]
    Halt {
        what: String,
        /// A statement or a command that mends it.
        remedy: String,
    },
    /// What was copied from a source has to be copied again: what has changed there since is not known any more.
    #[error("{what}")]
    Lost { what: String },
    /// A server may lack what it had: somebody has to say whether the rows are copied again.
    #[error("{what}")]
    FailedOver { what: String },
    /// A table has columns beside those that were planned: they are planned first.
    #[error("{what}")]
    Grown { what: String },
    /// Another process runs the reshard by now.
    #[error("another process runs it")]
    Replaced,
}

/// What is shown of a run; nothing is decided by it.
#[derive(Debug, Default)]
pub struct Progress(Mutex<BTreeMap<String, serde_json::Value>>);

impl Progress {
    /// Sets one figure, by its name in `docs/resharding.md`.
    pub fn set(&self, name: impl Into<String>, value: impl Into<serde_json::Value>) {
        let mut figures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        figures.insert(name.into(), value.into());
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> BTreeMap<String, serde_json::Value> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Job {
    /// The moves as this direction has them.
    #[must_use]
    pub fn moves(&self) -> Vec<Move> {
        let way = |it: &Move| match self.direction {
            Direction::Forward => it.clone(),
            Direction::Back => it.turned(),
        };
        self.plan.moves.iter().map(way).collect()
    }

    /// The shards that give rows away, each once.
    #[must_use]
    pub fn sources(&self) -> Vec<Server> {
        self.named(self.moves().into_iter().map(|it| it.from).collect())
    }

    /// The shards that are given rows, each once.
    #[must_use]
    pub fn destinations(&self) -> Vec<Server> {
        self.named(self.moves().into_iter().map(|it| it.to).collect())
    }

    fn named(&self, names: BTreeSet<String>) -> Vec<Server> {
        let found = names.iter().filter_map(|name| self.servers.get(name));
        found.cloned().collect()
    }

    /// Waits while the run is throttled to a standstill.
    pub async fn unthrottled(&self) {
        let mut knobs = self.knobs.clone();
        // Whom nobody tells any more, nobody throttles.
        drop(knobs.wait_for(|knobs| knobs.copies > 0).await);
    }

    /// What a source is called in `shardway.apply_progress`, in this direction: two shards may give each other rows, and then
    /// each is followed both ways.
    #[must_use]
    pub fn followed(&self, source: &str) -> String {
        match self.direction {
            Direction::Forward => source.to_owned(),
            Direction::Back => format!("{source} back"),
        }
    }

    /// What the publication and the slot on a source are called, in this direction.
    #[must_use]
    pub fn slot(&self, source: &str) -> String {
        slot(&self.id, source, self.direction)
    }
}

/// What the publication and the slot of a reshard are called on a source.
#[must_use]
pub fn slot(workflow: &str, source: &str, direction: Direction) -> String {
    let plain = |c: char| match c {
        'a'..='z' | '0'..='9' | '_' => c,
        'A'..='Z' => c.to_ascii_lowercase(),
        _ => '_',
    };
    let source: String = source.chars().map(plain).take(24).collect();
    match direction {
        Direction::Forward => format!("shardway_{workflow}_{source}"),
        Direction::Back => format!("shardway_{workflow}_{source}_back"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_after_failed_ones_has_more_time_within_what_statements_are_held_for() {
        let knobs = Knobs::default();
        assert_eq!(knobs.after_failed(0), knobs);
        let times = |it: &Knobs| [it.drain, it.lock, it.hold].map(|it| it.as_millis());
        assert_eq!(times(&knobs.after_failed(1)), [100, 40, 1_000]);
        assert_eq!(times(&knobs.after_failed(2)), [200, 80, 1_000]);
        assert_eq!(times(&knobs.after_failed(u32::MAX)), [250, 125, 1_000]);
        let steps = [0, 1, 2, 9].map(|failed| knobs.after_failed(failed).step().as_millis());
        assert_eq!(steps, [80, 160, 160, 150]);
        // Whoever asks for more than that has it from the first on.
        let generous = Knobs {
            drain: Duration::from_millis(600),
            lock: Duration::from_millis(300),
            ..knobs
        };
        assert_eq!(generous.after_failed(3), generous);
    }
}
