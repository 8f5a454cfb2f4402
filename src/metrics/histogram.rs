//! How often a figure was within which bounds: relaxed atomics, no lock, no allocation where it is recorded.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The sum is kept in thousandths.
const FINE: f64 = 1_000.0;

/// Counts by bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than bounds: what is above all of them.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// Of bounds in rising order.
    #[must_use]
    pub fn new(bounds: &'static [f64]) -> Self {
        Self {
            bounds,
            counts: (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect(),
            sum: AtomicU64::new(0),
        }
    }

    /// Counts one.
    pub fn record(&self, value: f64) {
        let at = self.bounds.partition_point(|bound| *bound < value);
        if let Some(count) = self.counts.get(at) {
            count.fetch_add(1, Relaxed);
        }
        self.sum.fetch_add((value.max(0.0) * FINE) as u64, Relaxed);
    }

    /// How many were recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Relaxed)).sum()
    }

    /// Of all that were recorded.
    #[must_use]
    pub fn sum(&self) -> f64 {
        self.sum.load(Relaxed) as f64 / FINE
    }

    /// Each bound with how many were not above it.
    #[must_use]
    pub fn up_to(&self) -> Vec<(f64, u64)> {
        let mut all = 0;
        let counts = self.counts.iter().map(|count| count.load(Relaxed));
        let each = self.bounds.iter().zip(counts).map(|(bound, count)| {
            all += count;
            (*bound, all)
        });
        each.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_counted_up_to_their_bound() {
        let histogram = Histogram::new(&[1.0, 10.0]);
        for value in [0.5, 1.0, 1.5, 100.0] {
            histogram.record(value);
        }
        assert_eq!(histogram.up_to(), [(1.0, 2), (10.0, 3)]);
        assert_eq!((histogram.count(), histogram.sum()), (4, 103.0));
    }
}
