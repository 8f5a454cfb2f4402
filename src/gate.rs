//! Hot path: the gate of one logical database, before which statements wait that touch keys in the instant in which those
//! change their owner. While nothing moves it costs one exchange of an atomic of the session's own per transaction and
//! one load; while something does, but nothing is held, a lock of the session's own. Neither allocates.
//!
//! What must stay true: a session notes what it is about to touch before it looks whether that is held, and whoever holds
//! looks at the sessions after it has begun to hold: one of them sees the other. Likewise a session says by which knowledge
//! of what is on two shards its statement was planned before it looks whether that is still so, and whoever tells others that
//! this proxy has newer knowledge looks at the sessions first. Nobody waits for long under the lock.

pub mod state;
pub mod tally;

use crate::clock::{Clock, Duration, Instant};
use state::{Answer, Moving, Seen, Standing, State, Touched};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering, fence},
    },
};
use tally::Tallies;
use tokio::sync::{Notify, watch};

/// Of [`Slot::since`]: nothing is under way.
const IDLE: u64 = 0;
/// Of [`Slot::since`]: something is, and what it touches was not noted.
const UNNOTED: u64 = 1;
/// What is added to generations in [`Slot::since`].
const NOTED: u64 = 1;

/// Of [`Gate::read`].
const NEVER: u64 = u64::MAX;

/// How long what was read of the map and holds may be relied on.
pub const LEASE: Duration = Duration::from_secs(6);
const LEASE_MICROS: u64 = LEASE.as_secs() * 1_000_000;

/// The gate of one logical database.
#[derive(Debug)]
pub struct Gate {
    /// 0: nothing is watched or held.
    generation: AtomicU64,
    /// How many eras there were.
    eras: AtomicU64,
    /// Whether anything is held.
    holding: AtomicBool,
    state: Mutex<State>,
    slots: Mutex<HashMap<u32, Arc<Slot>>>,
    base: Instant,
    /// When the map and holds were read last, as of the begin of the reading, in microseconds after `base`; [`NEVER`].
    read: AtomicU64,
    /// Whether they can be read, as far as is known.
    unreachable: AtomicBool,
    /// Tells those who wait that something has changed.
    changed: watch::Sender<u64>,
    /// Tells whoever waits for a hold to be drained.
    left: Notify,
    /// What holds have cost statements.
    pub tallies: Tallies,
}

/// One session at the gate.
#[derive(Debug)]
struct Slot {
    /// [`IDLE`], [`UNNOTED`], or the generation since which what it touches is noted, plus [`NOTED`].
    since: AtomicU64,
    /// The first era by whose knowledge of what is on two shards any of its statements was planned, plus one; 0: none is
    /// under way.
    planned: AtomicU64,
    touched: Mutex<Touched>,
}

/// A session's place at the gate; left by drop.
#[derive(Debug)]
pub struct Ticket {
    gate: Arc<Gate>,
    slot: Arc<Slot>,
    number: u32,
    /// For what a statement touches.
    room: Touched,
}

/// A statement that has come to the gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Came {
    /// Nothing moves: it passes.
    Quiet,
    /// Something moves, and it is the first of its transaction that is seen.
    First,
    /// Something moves, and its transaction was seen before.
    Again,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            generation: AtomicU64::new(0),
            eras: AtomicU64::new(0),
            holding: AtomicBool::new(false),
            state: Mutex::default(),
            slots: Mutex::default(),
            base: Clock.now(),
            read: AtomicU64::new(NEVER),
            unreachable: AtomicBool::new(false),
            changed: watch::Sender::new(0),
            left: Notify::new(),
            tallies: Tallies::default(),
        }
    }
}

impl Ticket {
    /// A statement is about to touch rows that was planned in an era; whether anything moves, or may by now. `newest` tells
    /// the era of now: who was planned in an earlier one does not pass.
    #[must_use]
    pub fn comes(&self, now: Instant, planned: u64, newest: impl FnOnce() -> u64) -> Came {
        let first = self.slot.since.load(Ordering::Relaxed) == IDLE;
        if first {
            self.slot.since.store(UNNOTED, Ordering::SeqCst);
        }
        // What is left of a statement before it keeps its era.
        let left = self.slot.planned.load(Ordering::Relaxed);
        let least = if left == 0 {
            planned + 1
        } else {
            left.min(planned + 1)
        };
        self.slot.planned.store(least, Ordering::SeqCst);
        // Either it sees a new era, or whoever has begun one sees it.
        fence(Ordering::SeqCst);
        if newest() > planned {
            return if first { Came::First } else { Came::Again };
        }
        if self.gate.generation.load(Ordering::SeqCst) == 0 && !self.gate.may_be_stale(now) {
            return Came::Quiet;
        }
        if first { Came::First } else { Came::Again }
    }

    /// What a statement is told that touches this and has come. If it does not pass, it has not come.
    #[must_use]
    pub fn asks(&self, came: Came, asked: &Touched) -> Answer {
        let mut touched = lock(&self.slot.touched);
        let before = match came {
            Came::First | Came::Quiet => {
                touched.clear();
                let since = self.gate.generation.load(Ordering::SeqCst) + NOTED;
                self.slot.since.store(since, Ordering::SeqCst);
                None
            }
            Came::Again => Some(touched.clone()),
        };
        touched.join(asked);
        drop(touched);
        if !self.gate.holding.load(Ordering::SeqCst) {
            return Answer::Passes;
        }
        let since = self.noted_since();
        let seen = before.as_ref().map(|touched| Seen { since, touched });
        let answer = lock(&self.gate.state).ask(asked, seen);
        if answer != Answer::Passes {
            match before {
                Some(before) => *lock(&self.slot.touched) = before,
                None => self.slot.since.store(IDLE, Ordering::SeqCst),
            }
        }
        self.gate.left.notify_one();
        answer
    }

    /// What was touched so far in the transaction under way; `None`: not all of it was noted.
    #[must_use]
    pub fn touched(&self) -> Option<Touched> {
        let noted = self.slot.since.load(Ordering::SeqCst) > UNNOTED;
        noted.then(|| lock(&self.slot.touched).clone())
    }

    /// Room to write down what a statement touches, so that this costs no allocation from the second on.
    #[must_use]
    pub fn lend(&mut self) -> Touched {
        let mut room = std::mem::take(&mut self.room);
        room.clear();
        room
    }

    /// The room is not needed any more.
    pub fn restore(&mut self, room: Touched) {
        self.room = room;
    }

    /// Whether anything is under way.
    #[must_use]
    pub fn is_at_work(&self) -> bool {
        self.slot.since.load(Ordering::Relaxed) != IDLE
    }

    /// Its statement is over, and nothing is left of it that would be sent later.
    pub fn rests(&self) {
        if self.slot.planned.load(Ordering::Relaxed) != 0 {
            self.slot.planned.store(0, Ordering::SeqCst);
        }
    }

    /// Nothing is under way any more.
    pub fn ends(&self) {
        self.rests();
        if self.slot.since.load(Ordering::Relaxed) != IDLE {
            self.slot.since.store(IDLE, Ordering::SeqCst);
            if self.gate.holding.load(Ordering::SeqCst) {
                self.gate.left.notify_one();
            }
        }
    }

    fn noted_since(&self) -> u64 {
        self.slot.since.load(Ordering::SeqCst).saturating_sub(NOTED)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.ends();
        lock(&self.gate.slots).remove(&self.number);
    }
}

impl Gate {
    /// A session comes to it, under its number.
    #[must_use]
    pub fn enter(self: &Arc<Self>, number: u32) -> Ticket {
        let slot = Arc::new(Slot {
            since: AtomicU64::new(IDLE),
            planned: AtomicU64::new(0),
            touched: Mutex::default(),
        });
        lock(&self.slots).insert(number, Arc::clone(&slot));
        Ticket {
            gate: Arc::clone(self),
            slot,
            number,
            room: Touched::default(),
        }
    }

    /// The number of another era: more than all before.
    #[must_use]
    pub fn begins_era(&self) -> u64 {
        self.eras.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// The sessions at a statement that was planned before an era, which has begun for whoever asks.
    #[must_use]
    pub fn planned_before(&self, era: u64) -> Vec<u32> {
        fence(Ordering::SeqCst);
        let slots = lock(&self.slots);
        let old = |slot: &Slot| (1..=era).contains(&slot.planned.load(Ordering::SeqCst));
        let old = slots.iter().filter(|(_, slot)| old(slot));
        let mut numbers: Vec<u32> = old.map(|(number, _)| *number).collect();
        numbers.sort_unstable();
        numbers
    }

    /// These groups have keys that move.
    pub fn watch<'a>(&self, groups: impl IntoIterator<Item = &'a str>) {
        self.change(|state| {
            state.watch(groups);
            Change::Silent
        });
    }

    /// Whether anything is watched or held.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        self.generation.load(Ordering::SeqCst) == 0
    }

    /// Whether what is known of a group must be fresh.
    #[must_use]
    pub fn watches(&self, group: &str) -> bool {
        lock(&self.state).watches(group)
    }

    /// From now on statements wait that touch these keys.
    pub fn hold(&self, workflow: &str, attempt: i32, moving: &[Moving]) {
        self.change(|state| {
            state.hold(workflow, attempt, moving);
            Change::Silent
        });
    }

    /// They wait no more.
    pub fn release(&self, workflow: &str, attempt: i32) {
        self.change(|state| match state.release(workflow, attempt) {
            true => Change::Told,
            false => Change::Silent,
        });
    }

    /// The deadline of a hold has passed, and nobody can be asked.
    pub fn is_unsure(&self, workflow: &str, attempt: i32) {
        self.change(
            |state| match state.stands(workflow, attempt, Standing::Unsure) {
                true => Change::Told,
                false => Change::Silent,
            },
        );
    }

    /// The map and holds were read, and taken over; the reading began at this time.
    pub fn has_read(&self, began: Instant) {
        let was_stale = self.is_lapsed(began);
        let unreachable = self.unreachable.swap(false, Ordering::Relaxed);
        self.read.store(self.micros(began), Ordering::Release);
        if was_stale || unreachable {
            self.tell();
        }
    }

    /// They cannot be read: where nothing was known to move, nobody waits for that.
    pub fn cannot_read(&self) {
        if !self.unreachable.swap(true, Ordering::Relaxed) {
            self.tell();
        }
    }

    /// Whether what was read of them may be relied on no more.
    #[must_use]
    pub fn is_lapsed(&self, now: Instant) -> bool {
        let read = self.read.load(Ordering::Acquire);
        read != NEVER && self.micros(now).saturating_sub(read) > LEASE_MICROS
    }

    /// Whether keys may move of which this proxy has not heard, though it could.
    #[must_use]
    pub fn may_be_stale(&self, now: Instant) -> bool {
        self.is_lapsed(now) && !self.unreachable.load(Ordering::Relaxed)
    }

    fn micros(&self, at: Instant) -> u64 {
        let micros = at.saturating_duration_since(self.base).as_micros();
        u64::try_from(micros).unwrap_or(NEVER - 1)
    }

    /// The sessions whose transactions have touched what an attempt holds, or may have.
    #[must_use]
    pub fn is_at(&self, workflow: &str, attempt: i32) -> Vec<u32> {
        let slots: Vec<_> = lock(&self.slots)
            .iter()
            .map(|(number, slot)| (*number, Arc::clone(slot)))
            .collect();
        let state = lock(&self.state);
        let known = |hold: &&state::Hold| hold.workflow == workflow && hold.attempt == attempt;
        let Some(hold) = state.holds().iter().find(known) else {
            return Vec::new();
        };
        let at = |slot: &Slot| {
            let touched = lock(&slot.touched);
            let since = slot.since.load(Ordering::SeqCst);
            let since = since.checked_sub(NOTED);
            since.is_some_and(|since| {
                let touched = &touched;
                state.is_at(hold, Seen { since, touched })
            })
        };
        let mut numbers: Vec<u32> = slots
            .iter()
            .filter(|(_, slot)| at(slot))
            .map(|(number, _)| *number)
            .collect();
        numbers.sort_unstable();
        numbers
    }

    /// What is held.
    #[must_use]
    pub fn holds(&self) -> Vec<state::Hold> {
        if !self.holding.load(Ordering::SeqCst) {
            return Vec::new();
        }
        lock(&self.state).holds().to_vec()
    }

    /// Tells of changes that may let somebody pass.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Resolves when somebody has left who may have been waited for.
    pub async fn left(&self) {
        self.left.notified().await;
    }

    /// Those who wait look again.
    pub fn tell(&self) {
        self.changed.send_modify(|number| *number += 1);
    }

    fn change(&self, change: impl FnOnce(&mut State) -> Change) {
        let mut state = lock(&self.state);
        let told = change(&mut state);
        let holds = !state.holds().is_empty();
        self.generation.store(state.generation(), Ordering::SeqCst);
        self.holding.store(holds, Ordering::SeqCst);
        drop(state);
        if told == Change::Told {
            self.tell();
        }
    }
}

/// Whether those who wait are told.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    Silent,
    Told,
}

/// Nothing panics while it is locked, so that a poisoned one is whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
