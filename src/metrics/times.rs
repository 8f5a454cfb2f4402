//! Hot path: how long transactions took, as counts of times that grow by a quarter from one to the next. One relaxed atomic
//! add when a backend comes to rest; no lock, no allocation.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Counts to an octave.
const PARTS: u64 = 4;
/// Enough for a minute.
const COUNTS: usize = 4 * 26;

/// Counts of microseconds.
#[derive(Debug)]
pub struct Times([AtomicU64; COUNTS]);

impl Default for Times {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; COUNTS])
    }
}

impl Times {
    /// Counts one.
    pub fn record(&self, micros: u64) {
        if let Some(count) = self.0.get(place(micros)) {
            count.fetch_add(1, Relaxed);
        }
    }

    /// Adds the counts so far to these.
    pub fn add_to(&self, counts: &mut Vec<u64>) {
        counts.resize(COUNTS, 0);
        for (sum, count) in counts.iter_mut().zip(&self.0) {
            *sum += count.load(Relaxed);
        }
    }
}

/// What so many of a hundred took at most, in microseconds; `None`: nothing was counted.
#[must_use]
pub fn percentile(counts: &[u64], percent: u64) -> Option<u64> {
    let all: u64 = counts.iter().sum();
    let wanted = (all * percent).div_ceil(100);
    let mut below = 0;
    let at = counts.iter().position(|count| {
        below += count;
        below >= wanted
    });
    at.filter(|_| all > 0).map(|at| bound(at as u64))
}

fn place(micros: u64) -> usize {
    let micros = micros.max(PARTS);
    let octave = u64::from(micros.ilog2());
    let part = (micros >> (octave - 2)) & (PARTS - 1);
    let at = (octave - 2) * PARTS + part;
    usize::try_from(at).unwrap_or(COUNTS).min(COUNTS - 1)
}

/// The most that is counted there.
fn bound(at: u64) -> u64 {
    let (octave, part) = (at / PARTS, at % PARTS);
    ((PARTS + part + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_counted_within_a_quarter() {
        for micros in [4, 5, 7, 8, 9, 100, 1_000, 12_345, 1_000_000, 30_000_000] {
            let bound = bound(place(micros) as u64);
            assert!(bound >= micros, "{micros} in {bound}");
            assert!(bound <= micros + micros / 4, "{micros} in {bound}");
        }
        assert!(place(u64::MAX) < COUNTS);
    }

    #[test]
    fn a_percentile_is_of_all_that_were_counted() {
        let times = Times::default();
        let mut counts = Vec::new();
        times.add_to(&mut counts);
        assert_eq!(percentile(&counts, 99), None);
        for _ in 0..98 {
            times.record(1_000);
        }
        times.record(50_000);
        times.record(50_000);
        let mut counts = Vec::new();
        times.add_to(&mut counts);
        assert!(percentile(&counts, 98).is_some_and(|it| (1_000..1_250).contains(&it)));
        assert!(percentile(&counts, 99).is_some_and(|it| (50_000..62_500).contains(&it)));
    }
}
