//! A loop that times one act: the least of many rounds, which is what the machine can do when nothing disturbs it.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and prints"
)]

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

const ROUNDS: u32 = 200;
const SHORTEST_ROUND: Duration = Duration::from_millis(1);

/// Prints the least time of one act, in nanoseconds.
pub(crate) fn time<T>(name: &str, mut act: impl FnMut() -> T) {
    let mut round = |acts: u32| {
        let start = Instant::now();
        for _ in 0..acts {
            black_box(act());
        }
        start.elapsed()
    };
    let mut acts = 1;
    while round(acts) < SHORTEST_ROUND {
        acts *= 2;
    }
    let least = (0..ROUNDS).map(|_| round(acts)).min().unwrap_or_default();
    println!(
        "{name:<56} {:>9.1} ns",
        least.as_secs_f64() * 1e9 / f64::from(acts)
    );
}
