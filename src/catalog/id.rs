//! Ids that grow with time and are given once: how they are composed, and who gives which. Pure.
//!
//! An id has 41 bits of milliseconds since 2024, 10 bits of a node and 12 bits that count within the millisecond; the
//! sign stays free, and the last id is given in 2093. What must stay true: of a node nobody gives two ids of one
//! millisecond and count. A proxy gives ids of windows only, which the home shard lends each once; within a window it
//! only goes forward, whatever its clock says.

use crate::clock::{Duration, Instant};

/// Bits of the count within a millisecond.
const COUNT_BITS: u32 = 12;
/// Bits of the node.
const NODE_BITS: u32 = 10;
/// Nodes are numbered below this.
pub const NODES: u16 = 1 << NODE_BITS;

/// A piece of time in which one process gives ids as one node, in milliseconds since 2024.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub node: u16,
    /// The first millisecond that nobody has used as this node.
    pub from: i64,
    /// The first that is no longer ours.
    pub until: i64,
}

/// What gives ids: a window, how far it has come in it, and which of its moments is which of the clock's.
#[derive(Clone, Copy, Debug)]
pub struct Generator {
    window: Window,
    /// The next to give: milliseconds, then the count.
    next: i64,
    /// A moment of the clock, and the millisecond that the home shard's clock showed then.
    seen: Instant,
    shown: i64,
}

/// The window is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spent;

impl Generator {
    /// Of a window that the home shard lent when its clock showed `shown`, which was at `seen` by ours.
    #[must_use]
    pub fn new(window: Window, shown: i64, seen: Instant) -> Self {
        Self {
            window,
            next: window.from << COUNT_BITS,
            seen,
            shown,
        }
    }

    /// The same node's window goes on until later.
    pub fn extend(&mut self, until: i64, shown: i64, seen: Instant) {
        self.window.until = self.window.until.max(until);
        (self.shown, self.seen) = (shown, seen);
    }

    /// The node.
    #[must_use]
    pub fn node(&self) -> u16 {
        self.window.node
    }

    /// Where the window ends.
    #[must_use]
    pub fn until(&self) -> i64 {
        self.window.until
    }

    /// Whether less than half of the window, which is so long, is left.
    #[must_use]
    pub fn wants_more(&self, now: Instant, whole: Duration) -> bool {
        let whole = i64::try_from(whole.as_millis()).unwrap_or(i64::MAX);
        self.window.until - self.moment(now) < whole / 2
    }

    /// An id that was never given.
    ///
    /// # Errors
    /// [`Spent`].
    pub fn give(&mut self, now: Instant) -> Result<i64, Spent> {
        let at = self.next.max(self.moment(now) << COUNT_BITS);
        if at >> COUNT_BITS >= self.window.until {
            return Err(Spent);
        }
        self.next = at + 1;
        let count = at & ((1 << COUNT_BITS) - 1);
        Ok((at >> COUNT_BITS) << (NODE_BITS + COUNT_BITS)
            | i64::from(self.window.node) << COUNT_BITS
            | count)
    }

    /// What the home shard's clock shows about now.
    fn moment(&self, now: Instant) -> i64 {
        let passed = now.saturating_duration_since(self.seen).as_millis();
        self.shown
            .saturating_add(i64::try_from(passed).unwrap_or(i64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;
    use std::collections::HashSet;

    const WINDOW: Window = Window {
        node: 7,
        from: 1_000,
        until: 2_000,
    };

    fn parts(id: i64) -> (i64, i64, i64) {
        (id >> 22, (id >> 12) & 1023, id & 4095)
    }

    #[test]
    fn an_id_says_when_and_where_it_was_given() {
        let now = Clock.now();
        let mut generator = Generator::new(WINDOW, 1_000, now);
        let ids: Vec<_> = (0..3)
            .map(|_| parts(generator.give(now).unwrap()))
            .collect();
        assert_eq!(ids, [(1_000, 7, 0), (1_000, 7, 1), (1_000, 7, 2)]);
        let later = now + Duration::from_millis(500);
        assert_eq!(parts(generator.give(later).unwrap()), (1_500, 7, 0));
    }

    #[test]
    fn a_clock_that_goes_back_or_stands_gives_no_id_twice() {
        let now = Clock.now() + Duration::from_secs(10);
        let mut generator = Generator::new(WINDOW, 1_500, now);
        let mut seen = HashSet::new();
        let mut last = 0;
        for step in 0..100_000_u64 {
            let at = match step % 3 {
                0 => now - Duration::from_secs(5),
                1 => now,
                _ => now + Duration::from_millis(step / 1_000),
            };
            if step == 50_000 {
                // The home shard's own clock was set back.
                generator.extend(1_900, 1_100, now);
            }
            let id = generator.give(at).unwrap();
            assert!(id > last && seen.insert(id));
            last = id;
        }
    }

    #[test]
    fn a_window_is_not_left() {
        let now = Clock.now();
        let mut generator = Generator::new(WINDOW, 1_999, now);
        for _ in 0..4_096 {
            assert_eq!(parts(generator.give(now).unwrap()).0, 1_999);
        }
        assert_eq!(generator.give(now), Err(Spent));
        assert_eq!(generator.give(now + Duration::from_secs(9)), Err(Spent));
        generator.extend(3_000, 1_999, now);
        assert_eq!(parts(generator.give(now).unwrap()), (2_000, 7, 0));
    }

    #[test]
    fn a_window_that_is_lent_again_begins_where_the_other_ended() {
        let now = Clock.now();
        let next = Window {
            from: 2_000,
            until: 3_000,
            ..WINDOW
        };
        // The clock shows less than what was given before.
        let mut generator = Generator::new(next, 1_200, now);
        assert_eq!(parts(generator.give(now).unwrap()), (2_000, 7, 0));
    }

    #[test]
    fn ids_fit_until_2093() {
        let window = Window {
            node: NODES - 1,
            from: (1 << 41) - 1,
            until: 1 << 41,
        };
        let now = Clock.now();
        let id = Generator::new(window, window.from, now).give(now).unwrap();
        assert!(id > 0 && id <= i64::MAX - 4_095);
    }
}
