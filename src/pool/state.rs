//! What a pool decides, without IO: idle backends (last in, first out), a fair queue of waiters, connects under way.
//!
//! ```text
//!   connect ─▶ opening ─▶ idle ⇄ leased ─▶ closed
//!                 │         ▲
//!                 └─ waiter ┘   a backend that is free goes to the longest waiter first
//! ```
//! Invariant: idle + leased + opening ≤ size. `B` is a backend, `W` a waiter.

use crate::{
    clock::{Duration, Instant},
    net::backend::Outlook,
};
use std::collections::VecDeque;

/// How long a failure that is likely to last is held against a server that nobody has tried since.
const REMEMBERED: Duration = Duration::from_secs(10);

/// The limits of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Backends at most.
    pub size: usize,
    /// Backends kept even when idle for long.
    pub min_size: usize,
    /// Connects under way at once.
    pub connects: usize,
    pub idle_timeout: Duration,
}

/// The state of a pool.
#[derive(Debug)]
pub struct State<B, W> {
    limits: Limits,
    idle: VecDeque<Idle<B>>,
    waiting: VecDeque<(u64, W)>,
    next_ticket: u64,
    leased: usize,
    opening: usize,
    /// No connect before this, after one that failed.
    pause_until: Option<Instant>,
    /// Until then nobody waits long, after a connect that failed and is likely to fail again.
    down_until: Option<Instant>,
    /// Nothing is kept: what is free and not waited for is closed.
    retired: bool,
    failures: u32,
    /// Until when no backend is kept idle.
    vacant_until: Option<Instant>,
}

#[derive(Debug)]
struct Idle<B> {
    backend: B,
    since: Instant,
}

/// What to do with a backend that is free.
#[derive(Debug)]
pub enum Freed<B, W> {
    /// Leased to the longest waiter.
    Hand(W, B),
    /// Kept as idle.
    Kept,
    /// More than the limit allows: close it.
    Close(B),
}

/// Figures of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Figures {
    pub idle: usize,
    pub leased: usize,
    pub opening: usize,
    pub waiting: usize,
}

impl<B, W> State<B, W> {
    /// An empty pool.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            idle: VecDeque::new(),
            waiting: VecDeque::new(),
            next_ticket: 0,
            leased: 0,
            opening: 0,
            pause_until: None,
            down_until: None,
            retired: false,
            failures: 0,
            vacant_until: None,
        }
    }

    /// Nobody will find the pool any more: nothing idle is kept from now on. Gives what is idle.
    pub fn retire(&mut self) -> Vec<B> {
        self.retired = true;
        self.limits.min_size = 0;
        self.drain_idle()
    }

    /// Whether a waiter is better told soon: the last connect failed a moment ago, another is likely to fail alike, and
    /// no backend is in use that could come back.
    #[must_use]
    pub fn is_down(&self, now: Instant) -> bool {
        self.leased == 0 && self.idle.is_empty() && self.down_until.is_some_and(|until| now < until)
    }

    /// New limits; what is above them is closed as it becomes free.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Takes the backend that was used last. Nobody overtakes a waiter.
    pub fn take_idle(&mut self) -> Option<B> {
        if !self.waiting.is_empty() {
            return None;
        }
        let idle = self.idle.pop_back()?;
        self.leased += 1;
        Some(idle.backend)
    }

    /// Queues a waiter.
    pub fn queue(&mut self, waiter: W) -> u64 {
        self.next_ticket += 1;
        self.waiting.push_back((self.next_ticket, waiter));
        self.next_ticket
    }

    /// Idle backends that waiters can have: none, unless one came back between a look and the queue.
    pub fn serve_waiting(&mut self) -> Vec<Freed<B, W>> {
        let mut freed = Vec::new();
        while !self.idle.is_empty() && !self.waiting.is_empty() {
            if let (Some(idle), Some((_, waiter))) =
                (self.idle.pop_back(), self.waiting.pop_front())
            {
                self.leased += 1;
                freed.push(Freed::Hand(waiter, idle.backend));
            }
        }
        freed
    }

    /// Takes a waiter out of the queue that will not wait any longer.
    pub fn leave(&mut self, ticket: u64) -> Option<W> {
        let at = self
            .waiting
            .iter()
            .position(|(found, _)| *found == ticket)?;
        self.waiting.remove(at).map(|(_, waiter)| waiter)
    }

    /// Whether to begin a connect now; when true it is counted as under way and must be ended by
    /// [`State::opened`] or [`State::open_failed`].
    pub fn begin_open(&mut self, now: Instant) -> bool {
        let total = self.idle.len() + self.leased + self.opening;
        let needed =
            self.waiting.len() > self.opening || total < self.limits.min_size.min(self.limits.size);
        let paused = self.pause_until.is_some_and(|until| now < until);
        // A server that failed is tried by one.
        let connects = if self.failures > 0 {
            1
        } else {
            self.limits.connects
        };
        let begin = needed && !paused && total < self.limits.size && self.opening < connects;
        self.opening += usize::from(begin);
        begin
    }

    /// When the next connect may begin, while one that failed holds it back.
    #[must_use]
    pub fn paused_until(&self) -> Option<Instant> {
        self.pause_until
    }

    /// A connect succeeded.
    pub fn opened(&mut self, backend: B, now: Instant) -> Freed<B, W> {
        self.opening -= 1;
        self.failures = 0;
        self.pause_until = None;
        self.down_until = None;
        self.free(backend, now)
    }

    /// A connect failed: the next waits (50 ms doubling to 2 s). Every waiter learns of it, so that none waits for
    /// a server that is not there.
    pub fn open_failed(&mut self, now: Instant, outlook: Outlook) -> Vec<W> {
        self.opening -= 1;
        self.down_until = (outlook == Outlook::Lasting).then(|| now + REMEMBERED);
        self.failures = (self.failures + 1).min(6);
        self.pause_until =
            Some(now + Duration::from_millis(25 << self.failures).min(Duration::from_secs(2)));
        if self.leased > 0 {
            // The server serves others: those who wait may be served by a backend that comes back.
            return self
                .waiting
                .pop_front()
                .map(|(_, waiter)| waiter)
                .into_iter()
                .collect();
        }
        self.waiting.drain(..).map(|(_, waiter)| waiter).collect()
    }

    /// A lease ended and its backend is at rest.
    pub fn released(&mut self, backend: B, now: Instant) -> Freed<B, W> {
        self.leased -= 1;
        if self.waiting.is_empty() && self.vacant_until.is_some_and(|until| now < until) {
            return Freed::Close(backend);
        }
        self.free(backend, now)
    }

    /// Takes out every idle backend, and keeps none that comes back before `until` without being waited for.
    pub fn vacate(&mut self, until: Instant) -> Vec<B> {
        self.vacant_until = Some(until);
        self.drain_idle()
    }

    /// A lease ended and its backend is closed.
    pub fn lost(&mut self) {
        self.leased -= 1;
    }

    fn free(&mut self, backend: B, now: Instant) -> Freed<B, W> {
        if self.idle.len() + self.leased + self.opening >= self.limits.size {
            return Freed::Close(backend);
        }
        if let Some((_, waiter)) = self.waiting.pop_front() {
            self.leased += 1;
            return Freed::Hand(waiter, backend);
        }
        if self.retired {
            return Freed::Close(backend);
        }
        self.idle.push_back(Idle {
            backend,
            since: now,
        });
        Freed::Kept
    }

    /// Takes out what has been idle for too long (never below the minimum) and what `broken` finds unusable.
    pub fn expire(&mut self, now: Instant, mut broken: impl FnMut(&mut B) -> bool) -> Vec<B> {
        let mut closed = Vec::new();
        let mut kept = VecDeque::with_capacity(self.idle.len());
        let mut total = self.idle.len() + self.leased + self.opening;
        for mut idle in self.idle.drain(..) {
            let old = now.saturating_duration_since(idle.since) >= self.limits.idle_timeout;
            let spare = total > self.limits.min_size;
            if broken(&mut idle.backend) || (old && spare) {
                total -= 1;
                closed.push(idle.backend);
            } else {
                kept.push_back(idle);
            }
        }
        self.idle = kept;
        closed
    }

    /// Takes out every idle backend.
    pub fn drain_idle(&mut self) -> Vec<B> {
        self.idle.drain(..).map(|idle| idle.backend).collect()
    }

    /// How many there are of each.
    #[must_use]
    pub fn figures(&self) -> Figures {
        Figures {
            idle: self.idle.len(),
            leased: self.leased,
            opening: self.opening,
            waiting: self.waiting.len(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn pool(size: usize) -> State<u32, &'static str> {
        State::new(Limits {
            size,
            min_size: 0,
            connects: 1,
            idle_timeout: Duration::from_secs(60),
        })
    }

    #[test]
    fn the_longest_waiter_is_served_first_and_nobody_overtakes() {
        let now = Clock.now();
        let mut pool = pool(1);
        pool.queue("first");
        pool.queue("second");
        assert!(pool.begin_open(now) && !pool.begin_open(now));
        assert!(matches!(pool.opened(7, now), Freed::Hand("first", 7)));
        assert_eq!(pool.take_idle(), None);
        assert!(matches!(pool.released(7, now), Freed::Hand("second", 7)));
        assert!(matches!(pool.released(7, now), Freed::Kept));
        assert_eq!(pool.take_idle(), Some(7));
    }

    #[test]
    fn the_size_is_never_exceeded() {
        let now = Clock.now();
        let mut pool = pool(2);
        for name in ["a", "b", "c"] {
            pool.queue(name);
        }
        assert!(pool.begin_open(now));
        assert!(matches!(pool.opened(1, now), Freed::Hand("a", 1)));
        assert!(pool.begin_open(now));
        assert!(matches!(pool.opened(2, now), Freed::Hand("b", 2)));
        assert!(!pool.begin_open(now));
        pool.lost();
        assert!(pool.begin_open(now));
        assert_eq!(
            pool.figures(),
            Figures {
                idle: 0,
                leased: 1,
                opening: 1,
                waiting: 1
            }
        );
    }

    #[test]
    fn a_failed_connect_tells_every_waiter_and_backs_off() {
        let now = Clock.now();
        let mut pool = pool(2);
        pool.queue("a");
        pool.queue("b");
        assert!(pool.begin_open(now));
        assert_eq!(pool.open_failed(now, Outlook::Open), ["a", "b"]);
        pool.queue("c");
        assert!(!pool.begin_open(now));
        assert!(!pool.is_down(now), "it may be back at any moment");
        assert!(pool.begin_open(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_server_that_is_likely_to_fail_again_is_tried_by_one_and_nobody_waits_for_it() {
        let (now, later) = (Clock.now(), Clock.now() + Duration::from_secs(3));
        let mut pool = State::<u32, &str>::new(Limits {
            size: 9,
            min_size: 0,
            connects: 9,
            idle_timeout: Duration::from_secs(60),
        });
        pool.queue("a");
        assert!(pool.begin_open(now));
        assert_eq!(pool.open_failed(now, Outlook::Lasting), ["a"]);
        for name in ["b", "c"] {
            assert!(pool.is_down(later));
            pool.queue(name);
        }
        assert!(pool.begin_open(later) && !pool.begin_open(later));
        assert!(matches!(pool.opened(1, later), Freed::Hand("b", 1)));
        assert!(!pool.is_down(later));
        assert!(pool.begin_open(later));
        assert!(matches!(pool.opened(2, later), Freed::Hand("c", 2)));
        // With one in use, whoever waits may be served by it.
        pool.queue("d");
        assert!(pool.begin_open(later));
        assert_eq!(pool.open_failed(later, Outlook::Lasting), ["d"]);
        assert!(!pool.is_down(later));
        pool.lost();
        pool.lost();
        assert!(pool.is_down(later));
        assert!(!pool.is_down(later + Duration::from_secs(10)));
    }

    #[test]
    fn a_retired_pool_serves_who_waits_and_keeps_nothing() {
        let now = Clock.now();
        let mut pool = pool(2);
        pool.queue("a");
        assert!(pool.begin_open(now));
        assert!(matches!(pool.opened(1, now), Freed::Hand("a", 1)));
        assert!(pool.retire().is_empty());
        pool.queue("b");
        assert!(matches!(pool.released(1, now), Freed::Hand("b", 1)));
        assert!(matches!(pool.released(1, now), Freed::Close(1)));
    }

    #[test]
    fn idle_backends_expire_down_to_the_minimum() {
        let now = Clock.now();
        let mut pool = State::<u32, ()>::new(Limits {
            size: 3,
            min_size: 1,
            connects: 3,
            idle_timeout: Duration::from_secs(60),
        });
        for backend in 0..3 {
            pool.queue(());
            assert!(pool.begin_open(now));
            assert!(matches!(pool.opened(backend, now), Freed::Hand(..)));
        }
        for backend in 0..3 {
            assert!(matches!(pool.released(backend, now), Freed::Kept));
        }
        assert!(pool.expire(now, |_| false).is_empty());
        assert_eq!(
            pool.expire(now + Duration::from_secs(60), |_| false),
            [0, 1]
        );
        assert_eq!(pool.expire(now, |_| true), [2]);
    }

    #[test]
    fn a_backend_that_came_back_before_the_queue_was_joined_serves_who_joins() {
        let now = Clock.now();
        let mut pool = pool(1);
        pool.queue("a");
        assert!(pool.begin_open(now));
        assert!(matches!(pool.opened(1, now), Freed::Hand("a", 1)));
        assert_eq!(pool.take_idle(), None);
        assert!(matches!(pool.released(1, now), Freed::Kept));
        pool.queue("b");
        assert!(matches!(
            pool.serve_waiting().as_slice(),
            [Freed::Hand("b", 1)]
        ));
        assert_eq!(
            pool.figures(),
            Figures {
                idle: 0,
                leased: 1,
                opening: 0,
                waiting: 0
            }
        );
    }

    #[test]
    fn a_waiter_that_leaves_is_not_served() {
        let now = Clock.now();
        let mut pool = pool(1);
        let ticket = pool.queue("a");
        assert!(pool.begin_open(now));
        assert_eq!(pool.leave(ticket), Some("a"));
        assert!(matches!(pool.opened(1, now), Freed::Kept));
    }
}
