//! A loop that times one act: the least of many rounds, which is what the machine can do when nothing disturbs it.
#![expect(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a benchmark reads the clock and prints"
)]

use std::{hint::black_box, time::Instant};

const ROUNDS: usize = 200;
const ACTS: u32 = 2000;

/// Prints the least time of one act, in nanoseconds.
pub(crate) fn time<T>(name: &str, mut act: impl FnMut() -> T) {
    let least = (0..ROUNDS)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..ACTS {
                black_box(act());
            }
            start.elapsed()
        })
        .min()
        .unwrap_or_default();
    println!(
        "{name:<56} {:>9.1} ns",
        least.as_secs_f64() * 1e9 / f64::from(ACTS)
    );
}
