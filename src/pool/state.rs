//! What a pool decides, without IO: idle backends (last in, first out), two fair queues of waiters, connects under way.
//!
//! ```text
//!   connect ─▶ opening ─▶ idle ⇄ leased ─▶ closed
//!                 │         ▲
//!                 └─ waiter ┘   a backend that is free goes to the longest waiter first, of those who go on before others
//! ```
//! Who goes on holds a backend of another pool, for which others may wait who hold one of this: two of them would wait for
//! each other for ever. So they come first, and there is a reserve of backends beyond the size for them alone.
//!
//! Invariant: idle + leased + opening ≤ size + reserve; who begins gets none while size are leased. `B` is a backend, `W` a
//! waiter.

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
    /// Backends at most, but for the reserve.
    pub size: usize,
    /// Beyond that, for those who go on.
    pub reserve: usize,
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
    beginning: VecDeque<(u64, W)>,
    going_on: VecDeque<(u64, W)>,
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

/// What somebody who wants a backend holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// Nothing.
    Begins,
    /// A backend of another pool, which it gives back only when it has had one of this.
    GoesOn,
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
            beginning: VecDeque::new(),
            going_on: VecDeque::new(),
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

    /// Takes the backend that was used last. Nobody overtakes a waiter who has as much reason to go first.
    pub fn take_idle(&mut self, claim: Claim) -> Option<B> {
        let overtakes =
            !self.going_on.is_empty() || (claim == Claim::Begins && !self.beginning.is_empty());
        if overtakes || self.leased >= self.most(claim) {
            return None;
        }
        let idle = self.idle.pop_back()?;
        self.leased += 1;
        Some(idle.backend)
    }

    /// How many may be leased before this claim is not met.
    fn most(&self, claim: Claim) -> usize {
        match claim {
            Claim::Begins => self.limits.size,
            Claim::GoesOn => self.limits.size + self.limits.reserve,
        }
    }

    /// Queues a waiter.
    pub fn queue(&mut self, waiter: W, claim: Claim) -> u64 {
        self.next_ticket += 1;
        let queue = match claim {
            Claim::Begins => &mut self.beginning,
            Claim::GoesOn => &mut self.going_on,
        };
        queue.push_back((self.next_ticket, waiter));
        self.next_ticket
    }

    /// Who gets a backend that is free, if anybody may have it.
    fn next_waiter(&mut self) -> Option<W> {
        let may = |claim| self.leased < self.most(claim);
        let next = if may(Claim::GoesOn) && !self.going_on.is_empty() {
            self.going_on.pop_front()
        } else if may(Claim::Begins) {
            self.beginning.pop_front()
        } else {
            None
        };
        next.map(|(_, waiter)| waiter)
    }

    /// Idle backends that waiters can have: none, unless one came back between a look and the queue, or one was lost that
    /// had been leased beyond the size.
    pub fn serve_waiting(&mut self) -> Vec<Freed<B, W>> {
        let mut freed = Vec::new();
        while !self.idle.is_empty() {
            let Some(waiter) = self.next_waiter() else {
                break;
            };
            if let Some(idle) = self.idle.pop_back() {
                self.leased += 1;
                freed.push(Freed::Hand(waiter, idle.backend));
            }
        }
        freed
    }

    fn waiting(&self) -> usize {
        self.beginning.len() + self.going_on.len()
    }

    /// Takes a waiter out of the queue that will not wait any longer.
    pub fn leave(&mut self, ticket: u64) -> Option<W> {
        for queue in [&mut self.beginning, &mut self.going_on] {
            if let Some(at) = queue.iter().position(|(found, _)| *found == ticket) {
                return queue.remove(at).map(|(_, waiter)| waiter);
            }
        }
        None
    }

    /// Whether to begin a connect now; when true it is counted as under way and must be ended by
    /// [`State::opened`] or [`State::open_failed`].
    pub fn begin_open(&mut self, now: Instant) -> bool {
        let total = self.idle.len() + self.leased + self.opening;
        let (size, reserve) = (self.limits.size, self.limits.reserve);
        // Whoever goes on has the first that is opened.
        let beyond = self.going_on.len() > self.opening && total < size + reserve;
        let within = total < size
            && (self.waiting() > self.opening || total < self.limits.min_size.min(size));
        let paused = self.pause_until.is_some_and(|until| now < until);
        // A server that failed is tried by one.
        let connects = if self.failures > 0 {
            1
        } else {
            self.limits.connects
        };
        let begin = (within || beyond) && !paused && self.opening < connects;
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
            // Who would have had the next one is told.
            let next = self.going_on.pop_front();
            let next = next.or_else(|| self.beginning.pop_front());
            return next.map(|(_, waiter)| waiter).into_iter().collect();
        }
        let waiting = self.going_on.drain(..).chain(self.beginning.drain(..));
        waiting.map(|(_, waiter)| waiter).collect()
    }

    /// A lease ended and its backend is at rest.
    pub fn released(&mut self, backend: B, now: Instant) -> Freed<B, W> {
        self.leased -= 1;
        if self.waiting() == 0 && self.vacant_until.is_some_and(|until| now < until) {
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
        let total = self.idle.len() + self.leased + self.opening;
        if total >= self.limits.size + self.limits.reserve {
            return Freed::Close(backend);
        }
        if let Some(waiter) = self.next_waiter() {
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
            waiting: self.waiting(),
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
            reserve: 0,
            min_size: 0,
            connects: 1,
            idle_timeout: Duration::from_secs(60),
        })
    }

    #[test]
    fn the_longest_waiter_is_served_first_and_nobody_overtakes() {
        let now = Clock.now();
        let mut pool = pool(1);
        pool.queue("first", Claim::Begins);
        pool.queue("second", Claim::Begins);
        assert!(pool.begin_open(now) && !pool.begin_open(now));
        assert!(matches!(pool.opened(7, now), Freed::Hand("first", 7)));
        assert_eq!(pool.take_idle(Claim::Begins), None);
        assert!(matches!(pool.released(7, now), Freed::Hand("second", 7)));
        assert!(matches!(pool.released(7, now), Freed::Kept));
        assert_eq!(pool.take_idle(Claim::Begins), Some(7));
    }

    #[test]
    fn the_size_is_never_exceeded() {
        let now = Clock.now();
        let mut pool = pool(2);
        for name in ["a", "b", "c"] {
            pool.queue(name, Claim::Begins);
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
        pool.queue("a", Claim::Begins);
        pool.queue("b", Claim::Begins);
        assert!(pool.begin_open(now));
        assert_eq!(pool.open_failed(now, Outlook::Open), ["a", "b"]);
        pool.queue("c", Claim::Begins);
        assert!(!pool.begin_open(now));
        assert!(!pool.is_down(now), "it may be back at any moment");
        assert!(pool.begin_open(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_server_that_is_likely_to_fail_again_is_tried_by_one_and_nobody_waits_for_it() {
        let (now, later) = (Clock.now(), Clock.now() + Duration::from_secs(3));
        let mut pool = State::<u32, &str>::new(Limits {
            size: 9,
            reserve: 0,
            min_size: 0,
            connects: 9,
            idle_timeout: Duration::from_secs(60),
        });
        pool.queue("a", Claim::Begins);
        assert!(pool.begin_open(now));
        assert_eq!(pool.open_failed(now, Outlook::Lasting), ["a"]);
        for name in ["b", "c"] {
            assert!(pool.is_down(later));
            pool.queue(name, Claim::Begins);
        }
        assert!(pool.begin_open(later) && !pool.begin_open(later));
        assert!(matches!(pool.opened(1, later), Freed::Hand("b", 1)));
        assert!(!pool.is_down(later));
        assert!(pool.begin_open(later));
        assert!(matches!(pool.opened(2, later), Freed::Hand("c", 2)));
        // With one in use, whoever waits may be served by it.
        pool.queue("d", Claim::Begins);
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
        pool.queue("a", Claim::Begins);
        assert!(pool.begin_open(now));
        assert!(matches!(pool.opened(1, now), Freed::Hand("a", 1)));
        assert!(pool.retire().is_empty());
        pool.queue("b", Claim::Begins);
        assert!(matches!(pool.released(1, now), Freed::Hand("b", 1)));
        assert!(matches!(pool.released(1, now), Freed::Close(1)));
    }

    #[test]
    fn idle_backends_expire_down_to_the_minimum() {
        let now = Clock.now();
        let mut pool = State::<u32, ()>::new(Limits {
            size: 3,
            reserve: 0,
            min_size: 1,
            connects: 3,
            idle_timeout: Duration::from_secs(60),
        });
        for backend in 0..3 {
            pool.queue((), Claim::Begins);
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
        pool.queue("a", Claim::Begins);
        assert!(pool.begin_open(now));
        assert!(matches!(pool.opened(1, now), Freed::Hand("a", 1)));
        assert_eq!(pool.take_idle(Claim::Begins), None);
        assert!(matches!(pool.released(1, now), Freed::Kept));
        pool.queue("b", Claim::Begins);
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
        let ticket = pool.queue("a", Claim::Begins);
        assert!(pool.begin_open(now));
        assert_eq!(pool.leave(ticket), Some("a"));
        assert!(matches!(pool.opened(1, now), Freed::Kept));
    }

    fn with_reserve(size: usize, reserve: usize) -> State<u32, &'static str> {
        let mut pool = pool(size);
        pool.set_limits(Limits {
            reserve,
            ..pool.limits
        });
        pool
    }

    #[test]
    fn who_goes_on_comes_first_and_beyond_the_size() {
        let now = Clock.now();
        let mut pool = with_reserve(1, 1);
        pool.queue("first", Claim::Begins);
        assert!(pool.begin_open(now));
        assert!(matches!(pool.opened(1, now), Freed::Hand("first", 1)));
        pool.queue("second", Claim::Begins);
        assert!(!pool.begin_open(now), "who begins waits for what is there");
        pool.queue("goes on", Claim::GoesOn);
        pool.queue("goes on too", Claim::GoesOn);
        assert!(pool.begin_open(now) && !pool.begin_open(now));
        assert!(matches!(pool.opened(2, now), Freed::Hand("goes on", 2)));
        assert!(!pool.begin_open(now), "the reserve is used up");
        assert!(matches!(
            pool.released(1, now),
            Freed::Hand("goes on too", 1)
        ));
        // It stays, for the next who goes on.
        assert!(matches!(pool.released(2, now), Freed::Kept));
        assert_eq!(pool.take_idle(Claim::GoesOn), Some(2));
        assert!(matches!(pool.released(2, now), Freed::Kept));
        assert!(matches!(pool.released(1, now), Freed::Hand("second", 1)));
        assert_eq!(pool.take_idle(Claim::Begins), None);
    }

    #[test]
    fn a_backend_that_was_lost_beyond_the_size_makes_room_for_who_begins() {
        let now = Clock.now();
        let mut pool = with_reserve(1, 1);
        for (backend, waiter, claim) in [(1, "a", Claim::Begins), (2, "b", Claim::GoesOn)] {
            pool.queue(waiter, claim);
            assert!(pool.begin_open(now));
            assert!(matches!(pool.opened(backend, now), Freed::Hand(..)));
        }
        pool.queue("c", Claim::Begins);
        assert!(matches!(pool.released(1, now), Freed::Kept));
        pool.lost();
        assert!(!pool.begin_open(now));
        assert!(matches!(
            pool.serve_waiting().as_slice(),
            [Freed::Hand("c", 1)]
        ));
    }

    proptest::proptest! {
        /// Whatever happens in whatever order: never more than there may be, and nobody waits for what is there.
        #[test]
        fn nobody_waits_while_there_is_a_backend_for_him(
            acts in proptest::collection::vec(0..6_u8, 0..60),
            size in 1..3_usize,
            reserve in 0..3_usize,
        ) {
            let now = Clock.now();
            let mut pool = State::<u32, Claim>::new(Limits {
                size,
                reserve,
                min_size: 0,
                connects: 9,
                idle_timeout: Duration::from_secs(60),
            });
            let (mut leased, mut next) = (Vec::new(), 0);
            for act in acts {
                let freed = match act {
                    0 => {
                        pool.queue(Claim::Begins, Claim::Begins);
                        pool.serve_waiting()
                    }
                    1 => {
                        pool.queue(Claim::GoesOn, Claim::GoesOn);
                        pool.serve_waiting()
                    }
                    2 if pool.opening > 0 => {
                        next += 1;
                        vec![pool.opened(next, now)]
                    }
                    3 if !leased.is_empty() => vec![pool.released(leased.remove(0), now)],
                    4 if !leased.is_empty() => {
                        leased.remove(0);
                        pool.lost();
                        pool.serve_waiting()
                    }
                    _ => pool.take_idle(Claim::GoesOn).map_or_else(Vec::new, |backend| {
                        leased.push(backend);
                        Vec::new()
                    }),
                };
                for freed in freed {
                    if let Freed::Hand(claim, backend) = freed {
                        leased.push(backend);
                        proptest::prop_assert!(claim == Claim::GoesOn || leased.len() <= size);
                    }
                }
                while pool.begin_open(now) {}
                let figures = pool.figures();
                proptest::prop_assert_eq!(figures.leased, leased.len());
                let total = figures.idle + figures.leased + figures.opening;
                proptest::prop_assert!(total <= size + reserve);
                let waits = |queue: &VecDeque<(u64, Claim)>, most: usize| {
                    !queue.is_empty() && figures.leased < most && figures.opening == 0
                };
                proptest::prop_assert!(!waits(&pool.going_on, size + reserve));
                proptest::prop_assert!(!waits(&pool.beginning, size));
            }
        }
    }
}
