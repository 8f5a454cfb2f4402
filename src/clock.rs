//! The only reader of real time. Everything that decides takes an [`Instant`] as an argument.

pub use std::time::{Duration, Instant, SystemTime};

/// A source of time, handed down from `server.rs`. Cheap to copy.
#[derive(Clone, Copy, Debug, Default)]
pub struct Clock;

impl Clock {
    /// The monotonic now.
    #[must_use]
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the monotonic clock"
    )]
    pub fn now(self) -> Instant {
        Instant::now()
    }

    /// The wall clock, for what people read.
    #[must_use]
    pub fn wall(self) -> SystemTime {
        SystemTime::now()
    }
}
