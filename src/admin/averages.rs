//! Averages of SHOW STATS: two samples of the totals per database, a period apart. `server.rs` calls [`Averages::sample`].

use crate::{
    clock::{Duration, Instant},
    metrics::{Metrics, Totals},
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// How often totals are sampled; PgBouncer's `stats_period`.
pub const PERIOD: Duration = Duration::from_secs(60);

/// The last two samples.
#[derive(Debug, Default)]
pub struct Averages(Mutex<Samples>);

#[derive(Debug, Default)]
struct Samples {
    earlier: Option<Sample>,
    later: Option<Sample>,
}

type Sample = (Instant, BTreeMap<String, Totals>);

/// What was counted in the last period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Period {
    pub counted: Totals,
    pub length: Duration,
}

impl Averages {
    /// Takes a sample.
    pub fn sample(&self, metrics: &Metrics, now: Instant) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.earlier = samples.later.replace((now, by_database(metrics)));
    }

    /// What a database counted in the last whole period; nothing before the second sample.
    #[must_use]
    pub fn of(&self, database: &str) -> Period {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (Some((start, before)), Some((end, after))) = (&samples.earlier, &samples.later) else {
            return Period::default();
        };
        let read =
            |sample: &BTreeMap<String, Totals>| sample.get(database).copied().unwrap_or_default();
        Period {
            counted: read(after).since(read(before)),
            length: end.saturating_duration_since(*start),
        }
    }
}

impl Period {
    /// A sum as a rate per second.
    #[must_use]
    pub fn per_second(&self, sum: u64) -> u64 {
        let micros = u64::try_from(self.length.as_micros()).unwrap_or(u64::MAX);
        if micros == 0 {
            0
        } else {
            u64::try_from(u128::from(sum) * 1_000_000 / u128::from(micros)).unwrap_or(u64::MAX)
        }
    }
}

/// The totals of every database that was used.
#[must_use]
pub fn by_database(metrics: &Metrics) -> BTreeMap<String, Totals> {
    let mut sums: BTreeMap<String, Totals> = BTreeMap::new();
    for (key, pool) in metrics.pools() {
        let sum = sums.entry(key.database).or_default();
        *sum = sum.plus(pool.read());
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    #[test]
    fn an_average_is_over_the_last_period_only() {
        let (metrics, averages, start) = (Metrics::new(), Averages::default(), Clock.now());
        let pool = metrics.pool("app", "u", "s0");
        pool.queries.add(1000);
        averages.sample(&metrics, start);
        assert_eq!(averages.of("app").per_second(7), 0);
        pool.queries.add(120);
        averages.sample(&metrics, start + PERIOD);
        let period = averages.of("app");
        assert_eq!(period.counted.0.queries, 120);
        assert_eq!(period.per_second(period.counted.0.queries), 2);
    }
}
