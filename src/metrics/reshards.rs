//! The reshard of a database as this process saw it last, in words and figures: written by whoever looks for reshards to run,
//! read by the console and `/metrics`.
//!
//! What must stay true: nothing is decided by it; a figure is never more than what it is a part of; what could not be looked
//! at for longer than a lease is shown with its age, and nobody is said to run it.

use super::{counters::Counter, histogram::Histogram};
use crate::clock::{Duration, Instant};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Bounds of pauses, in milliseconds.
const PAUSES: &[f64] = &[
    5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1_000.0, 2_500.0, 5_000.0,
];

/// How long what was seen is taken for the present: as long as a lease of whoever runs reshards.
pub const PRESENT: Duration = Duration::from_secs(6);

/// The reshards of one database.
#[derive(Debug)]
pub struct Resharding {
    seen: Mutex<Option<Seen>>,
    /// How long statements were held by cutovers whose end this process saw, in milliseconds.
    pub pauses: Histogram,
    /// Statements that were refused because of keys that move.
    pub refused: Counter,
}

/// What was seen, and until when it was known to be so.
#[derive(Clone, Debug)]
pub struct Seen {
    pub sight: Arc<Sight>,
    at: Instant,
    /// How many changes of owners are counted, or were before this process looked.
    counted: i32,
}

/// A reshard as people are told of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Sight {
    pub id: String,
    pub state: String,
    pub step: Option<String>,
    /// Cutovers that were tried, in either direction.
    pub attempt: i32,
    /// How often the owners have changed.
    pub flips: i32,
    /// `old` or `new` owners.
    pub serving: &'static str,
    pub over: bool,
    pub leader: Option<Leader>,
    /// Why it does not go on, or not faster.
    pub waiting_for: Option<String>,
    pub paused: bool,
    /// For what servers are spared.
    pub throttle: Option<String>,
    /// Why it stands still, and what mends it.
    pub error: Option<String>,
    pub remedy: Option<String>,
    pub tables: Vec<Table>,
    pub streams: Vec<Stream>,
    pub sources: Vec<Source>,
    pub verified_rows: Option<u64>,
    pub differences: Option<u64>,
    /// Figures of the last cutover, by name.
    pub cutover: BTreeMap<String, f64>,
    /// Of the process that runs it: how long its transactions take (99 of 100 take less), and the errors of a while.
    pub application_p99_ms: Option<f64>,
    pub application_errors: Option<u64>,
    pub next_steps: Vec<String>,
}

/// Who runs it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Leader {
    pub proxy: String,
    pub address: Option<String>,
    pub alive: bool,
}

/// How far the copy of a table is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Table {
    pub table: String,
    pub rows: u64,
    /// Never less than `rows`; an estimate until the copy is done.
    pub rows_of: Option<u64>,
    pub bytes: u64,
    pub bytes_of: Option<u64>,
    pub chunks_done: u64,
    pub chunks: u64,
    /// 100 only when it is done.
    pub percent: u64,
    pub rows_per_second: u64,
    pub seconds_left: Option<u64>,
}

/// How far the changes of a shard are behind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stream {
    pub shard: String,
    pub lag_bytes: Option<u64>,
    pub lag_ms: Option<u64>,
    pub changes: u64,
    pub problem: Option<String>,
}

/// What a reshard costs a shard that gives rows away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Source {
    pub shard: String,
    pub wal_kept: u64,
    pub wal_status: String,
    /// For how many transactions its slot keeps vacuum from the catalogs.
    pub xmin_age: Option<u64>,
    /// What else is to be said of it.
    pub notice: Option<String>,
}

/// All tables together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Total {
    pub rows: u64,
    pub rows_of: Option<u64>,
    pub bytes: u64,
    pub bytes_of: Option<u64>,
    pub chunks_left: u64,
    pub rows_per_second: u64,
    pub seconds_left: Option<u64>,
    pub percent: u64,
}

impl Default for Resharding {
    fn default() -> Self {
        Self {
            seen: Mutex::default(),
            pauses: Histogram::new(PAUSES),
            refused: Counter::default(),
        }
    }
}

impl Resharding {
    /// The last reshard, as it was seen last.
    #[must_use]
    pub fn seen(&self) -> Option<Seen> {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.clone()
    }

    /// It was looked for, and nothing is new.
    pub fn looked(&self, now: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seen) = &mut *seen {
            seen.at = seen.at.max(now);
        }
    }

    /// It was seen.
    pub fn set(&self, sight: Sight, now: Instant) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let old = seen.as_ref().filter(|old| old.sight.id == sight.id);
        // What was before this process is not counted.
        let mut counted = old.map_or_else(|| sight.ended(), |old| old.counted);
        // The end of a cutover, once: while it is under way the figures are those of the one before.
        if sight.ended() > counted && sight.state != "cutover" {
            if let Some(pause) = sight.cutover.get("pause_ms") {
                self.pauses.record(*pause);
            }
            counted = sight.ended();
        }
        *seen = Some(Seen {
            sight: Arc::new(sight),
            at: now,
            counted,
        });
    }
}

impl Seen {
    /// How long ago that was.
    #[must_use]
    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.at)
    }

    /// Whether it may have changed unseen since.
    #[must_use]
    pub fn is_stale(&self, now: Instant) -> bool {
        self.age(now) > PRESENT
    }

    /// Whether a process is known to run it.
    #[must_use]
    pub fn is_led(&self, now: Instant) -> bool {
        let led = self.sight.leader.as_ref().is_some_and(|it| it.alive);
        led && !self.is_stale(now)
    }

    /// Why it does not go on, or not faster; or why nobody can say.
    #[must_use]
    pub fn waiting_for(&self, now: Instant) -> Option<String> {
        if self.is_stale(now) && !self.sight.over {
            let age = self.age(now).as_secs();
            return Some(format!(
                "the home shard, which could not be asked for {age} s: all this is of before"
            ));
        }
        self.sight.waiting_for.clone()
    }
}

impl Sight {
    /// How often the owners have changed to the end.
    fn ended(&self) -> i32 {
        let committed = self.state == "cutover" && self.step.as_deref() == Some("committed");
        self.flips - i32::from(committed)
    }

    /// All tables together.
    #[must_use]
    pub fn total(&self) -> Total {
        let mut total = Total {
            rows_of: Some(0),
            bytes_of: Some(0),
            percent: 100,
            ..Total::default()
        };
        let mut slowest = None;
        for table in &self.tables {
            total.rows += table.rows;
            total.bytes += table.bytes;
            // Of a table of which nothing is known yet: what is there.
            let of = |of: Option<u64>, now| Some(of.unwrap_or(now));
            total.rows_of = total
                .rows_of
                .zip(of(table.rows_of, table.rows))
                .map(|(a, b)| a + b);
            total.bytes_of = total
                .bytes_of
                .zip(of(table.bytes_of, table.bytes))
                .map(|(a, b)| a + b);
            total.chunks_left += table.chunks - table.chunks_done.min(table.chunks);
            if table.percent < 100 {
                total.rows_per_second += table.rows_per_second;
                slowest = slowest.max(table.seconds_left);
            }
        }
        let left = self.tables.iter().any(|table| table.percent < 100);
        if left {
            total.rows_of = total.rows_of.map(|of| of.max(total.rows + 1));
            total.bytes_of = total.bytes_of.map(|of| of.max(total.bytes));
            let done: u64 = self.tables.iter().map(|table| table.percent).sum();
            let mean = done / self.tables.len().max(1) as u64;
            let by_rows = total.rows_of.filter(|of| *of > 0);
            let percent = by_rows.map_or(mean, |of| total.rows * 100 / of);
            total.percent = percent.min(99);
            total.seconds_left = slowest;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn after(flips: i32, pause: f64) -> Sight {
        Sight {
            id: "r1".to_owned(),
            flips,
            cutover: [("pause_ms".to_owned(), pause)].into(),
            ..Sight::default()
        }
    }

    #[test]
    fn each_cutover_that_was_seen_to_end_is_counted_once() {
        let (resharding, now) = (Resharding::default(), Clock.now());
        for (flips, pause) in [(1, 40.0), (1, 40.0), (2, 7.0), (2, 7.0), (3, 30.0)] {
            resharding.set(after(flips, pause), now);
        }
        // The first had ended before anybody looked.
        assert_eq!(resharding.pauses.count(), 2);
        assert!((resharding.pauses.sum() - 37.0).abs() < 0.001);
    }

    #[test]
    fn a_pause_is_counted_when_its_cutover_has_ended() {
        // The commit, and the figures, which are of the one before until the new owners have been told.
        let committed = |flips, pause| Sight {
            state: "cutover".to_owned(),
            step: Some("committed".to_owned()),
            ..after(flips, pause)
        };
        let (resharding, now) = (Resharding::default(), Clock.now());
        let mut counts = Vec::new();
        for sight in [
            after(0, 0.0),
            committed(1, 0.0),
            committed(1, 40.0),
            after(1, 40.0),
            committed(2, 40.0),
            after(2, 7.0),
            after(2, 7.0),
        ] {
            resharding.set(sight, now);
            counts.push(resharding.pauses.count());
        }
        assert_eq!(counts, [0, 0, 0, 1, 1, 2, 2]);
        assert!((resharding.pauses.sum() - 47.0).abs() < 0.001);
        // Begun within one: its end is seen.
        let late = Resharding::default();
        late.set(committed(1, 0.0), now);
        late.set(after(1, 40.0), now);
        assert_eq!(late.pauses.count(), 1);
    }

    #[test]
    fn what_could_not_be_looked_at_for_longer_than_a_lease_is_led_by_nobody() {
        let (resharding, begun) = (Resharding::default(), Clock.now());
        let leader = Leader {
            alive: true,
            ..Leader::default()
        };
        let sight = Sight {
            leader: Some(leader),
            waiting_for: Some("the operator".to_owned()),
            ..Sight::default()
        };
        resharding.set(sight, begun);
        let told = |now| {
            let seen = resharding.seen().expect("it was set");
            (seen.is_led(now), seen.waiting_for(now).unwrap_or_default())
        };
        let later = begun + PRESENT + Duration::from_secs(1);
        assert_eq!(told(begun + PRESENT), (true, "the operator".to_owned()));
        let (led, waits) = told(later);
        assert!(
            !led && waits.contains("could not be asked for 7 s"),
            "{waits}"
        );
        // Seen to be as it was.
        resharding.looked(later);
        assert_eq!(told(later), (true, "the operator".to_owned()));
    }

    #[test]
    fn the_total_is_done_only_when_every_table_is() {
        let table = |percent, rows, rows_of| Table {
            percent,
            rows,
            rows_of: Some(rows_of),
            rows_per_second: 10,
            seconds_left: Some(3),
            ..Table::default()
        };
        let of = |tables| Sight {
            tables,
            ..Sight::default()
        };
        let total = of(vec![table(100, 1000, 1000), table(99, 1, 2)]).total();
        assert_eq!(
            (total.percent, total.rows, total.rows_of),
            (99, 1001, Some(1002))
        );
        assert_eq!((total.rows_per_second, total.seconds_left), (10, Some(3)));
        let mut unknown = table(0, 0, 0);
        unknown.rows_of = None;
        let total = of(vec![table(50, 10, 20), unknown]).total();
        assert_eq!((total.rows_of, total.percent), (Some(20), 50));
        let total = of(vec![table(100, 5, 5)]).total();
        assert_eq!((total.percent, total.seconds_left), (100, None));
    }
}
