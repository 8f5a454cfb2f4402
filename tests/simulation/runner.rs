//! A runner in the simulated world: what the real one does, cut into things that happen at once, between any two of which
//! it may die, sleep for as long as it likes, or be replaced.

use super::world::{NEW, No, OLD, Sabotage, World};
use shardway::reshard::{
    job::Direction,
    state::{Effect, Event, Next, Record, Stopped, Then, Waiting},
};

/// One thing that happens at once.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Action {
    Schema(usize),
    /// Copies of a source whose slot is lost go, before another slot is made.
    Slot(usize),
    Doubled(bool),
    AllKnow,
    Copy(usize),
    CaughtUp(usize, usize),
    Compare,
    Guard(usize),
    Hold,
    Drained,
    Fence(usize),
    Fenced(usize, usize),
    NoteBack(usize, usize),
    Commit,
    Activate(usize),
    UnlessCommitted,
    Unfence(usize),
    Release,
    Delete(usize),
    DropAll(usize),
}

/// What it is about to do.
#[derive(Clone, Debug)]
enum Doing {
    Elect,
    TakeWorkflow,
    Claim(usize),
    /// What the shards know and the record does not, until it is written.
    Remember,
    Decide,
    Act {
        effect: Effect,
        actions: Vec<Action>,
        at: usize,
    },
    Record(Record),
    Gone,
}

#[derive(Clone, Debug)]
pub(crate) struct Runner {
    token: i64,
    record: Record,
    version: i64,
    doing: Doing,
}

/// What came of one thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Came {
    Done,
    Waits(Waiting),
    /// It has nothing to do any more: over, or replaced.
    Ended,
}

/// Where a fault is put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// It fails, and nothing has happened.
    Before,
    /// It has happened, and seems to have failed.
    After,
}

impl Runner {
    pub(crate) fn new() -> Self {
        Self {
            token: 0,
            record: Record::new(),
            version: 0,
            doing: Doing::Elect,
        }
    }

    /// Does the next thing.
    pub(crate) fn step(&mut self, world: &mut World, fault: Fault) -> Came {
        match self.doing.clone() {
            Doing::Elect => {
                self.token = world.elect();
                self.doing = Doing::TakeWorkflow;
            }
            Doing::TakeWorkflow => match world.take_workflow(self.token) {
                Ok((record, version)) => {
                    (self.record, self.version) = (record, version);
                    self.doing = Doing::Claim(0);
                }
                Err(_) => self.doing = Doing::Gone,
            },
            Doing::Claim(shard) if shard == world.shards.len() => self.doing = Doing::Remember,
            Doing::Claim(shard) => {
                self.doing = match world.claim(shard, self.token) {
                    Ok(()) => Doing::Claim(shard + 1),
                    Err(_) => Doing::Gone,
                };
            }
            Doing::Remember => self.remember(world, fault),
            Doing::Decide => return self.decide(world),
            Doing::Act {
                effect,
                actions,
                at,
            } => self.go_on(world, effect, actions, at, fault),
            Doing::Record(record) => self.write(world, &record, fault),
            Doing::Gone => return Came::Ended,
        }
        Came::Done
    }

    fn remember(&mut self, world: &mut World, fault: Fault) {
        let known = world.known();
        let remembered = self.record.with(&known);
        let remembered = remembered.filter(|_| world.sabotage != Sabotage::Believes);
        let Some(record) = remembered.or_else(|| self.record.after(&Event::TakenOver)) else {
            self.doing = Doing::Decide;
            return;
        };
        self.write(world, &record, fault);
        // Somebody may have wished for something meanwhile.
        if matches!(self.doing, Doing::Decide) {
            (self.record, self.version) = (world.record.clone(), world.version);
            self.doing = Doing::Remember;
        }
    }

    fn decide(&mut self, world: &World) -> Came {
        // A wish may have been written meanwhile.
        if world.token != self.token && world.sabotage != Sabotage::Tokens {
            self.doing = Doing::Gone;
            return Came::Ended;
        }
        if world.version < self.version {
            // The home shard has forgotten something: whoever takes it over asks the shards.
            self.doing = Doing::Gone;
            return Came::Ended;
        }
        (self.record, self.version) = (world.record.clone(), world.version);
        match self.record.next() {
            Next::Run(effect) => {
                let actions = self.actions(effect, world.sabotage);
                self.doing = Doing::Act {
                    effect,
                    actions,
                    at: 0,
                };
                Came::Done
            }
            Next::Turn(record) => {
                self.doing = Doing::Record(record);
                Came::Done
            }
            Next::Wait(waiting) => Came::Waits(waiting),
            Next::Over => Came::Ended,
        }
    }

    fn write(&mut self, world: &mut World, record: &Record, fault: Fault) {
        if fault == Fault::Before {
            self.doing = Doing::Decide;
            return;
        }
        let written = world.swap(self.token, self.version, record);
        self.doing = match written {
            Err(No::Replaced) => Doing::Gone,
            // Whether it was written or not: what is recorded tells.
            Ok(_) | Err(No::Again | No::Halt | No::Lost | No::FailedOver) => Doing::Decide,
        };
    }

    fn go_on(
        &mut self,
        world: &mut World,
        effect: Effect,
        actions: Vec<Action>,
        at: usize,
        fault: Fault,
    ) {
        let Some(action) = actions.get(at) else {
            let done = self.record.after(&Event::Done(effect));
            self.doing = match done {
                // The commit has recorded itself.
                Some(_) if effect == Effect::Commit => Doing::Decide,
                Some(record) => Doing::Record(record),
                None => Doing::Decide,
            };
            return;
        };
        let came = match fault {
            Fault::None => self.act(world, action),
            Fault::Before => Err(No::Again),
            Fault::After => self.act(world, action).and(Err(No::Again)),
        };
        let failed = |event: &Event| match self.record.after(event) {
            Some(record) => Doing::Record(record),
            None => Doing::Decide,
        };
        self.doing = match came {
            Ok(()) => Doing::Act {
                effect,
                actions,
                at: at + 1,
            },
            Err(No::Again) => failed(&Event::Again),
            Err(No::Halt) => failed(&Event::Halt(Stopped {
                what: format!("{action:?}"),
                remedy: String::new(),
                then: Then::GoOn,
            })),
            Err(No::Lost) => failed(&Event::Lost(format!("{action:?}"))),
            Err(No::FailedOver) => failed(&Event::FailedOver(format!("{action:?}"))),
            Err(No::Replaced) => Doing::Gone,
        };
    }

    fn act(&self, world: &mut World, action: &Action) -> Result<(), No> {
        let (token, attempt) = (self.token, self.record.attempt);
        match *action {
            Action::Schema(at) => world.make_schema(at, token),
            Action::Slot(at) => world.make_slot(at, token),
            Action::Doubled(doubled) => world.set_doubled(token, doubled),
            Action::AllKnow => world.all_know(),
            Action::Copy(key) => world.copy(key, token),
            Action::CaughtUp(from, to) => {
                while world.apply(from, to, token)? {}
                Ok(())
            }
            Action::Compare => compare(world),
            Action::Guard(at) => world.make_guard(at, token),
            Action::Hold => world.hold(token, self.version, attempt),
            Action::Drained => world.drained(attempt),
            Action::Fence(at) => world.fence(at, token, attempt),
            Action::Fenced(from, to) => {
                while world.apply(from, to, token)? {}
                if world.has_applied_fence(from, to, attempt)
                    || world.sabotage == Sabotage::OneFenceMissing
                {
                    Ok(())
                } else {
                    Err(No::Again)
                }
            }
            Action::NoteBack(from, to) => world.note_back(from, to, token),
            Action::Commit => world
                .commit(token, self.version, &self.record.committed())
                .map(|_version| ()),
            Action::Activate(at) => world.activate(at, token, attempt),
            Action::UnlessCommitted => world.unless_committed(token, attempt),
            Action::Unfence(at) => world.unfence(at, token),
            Action::Release => world.release(attempt),
            Action::Delete(at) => world.delete(at, token),
            Action::DropAll(at) => world.drop_all(at, token),
        }
    }

    /// What an effect consists of.
    fn actions(&self, effect: Effect, sabotage: Sabotage) -> Vec<Action> {
        let each =
            |of: [usize; 2], action: fn(usize) -> Action| of.into_iter().map(action).collect();
        let (from, to) = match self.record.direction() {
            Direction::Forward => (OLD, NEW),
            Direction::Back => (NEW, OLD),
        };
        let pairs = |from: [usize; 2], to: [usize; 2], action: fn(usize, usize) -> Action| {
            let each = from
                .into_iter()
                .flat_map(move |from| to.map(|to| action(from, to)));
            each.collect::<Vec<_>>()
        };
        match effect {
            Effect::Prepare => {
                let mut all: Vec<_> = each(NEW, Action::Schema);
                all.extend(OLD.map(Action::Slot));
                all
            }
            Effect::Announce => vec![Action::Doubled(true), Action::AllKnow],
            Effect::Copy => (0..super::world::KEYS).map(Action::Copy).collect(),
            Effect::CatchUp => pairs(from, to, Action::CaughtUp),
            Effect::Verify => vec![Action::Compare],
            Effect::Ready | Effect::Reverse => {
                let mut all: Vec<_> = each(from, Action::Guard);
                all.extend(to.map(Action::Guard));
                all
            }
            Effect::Hold => vec![Action::Hold, Action::Drained],
            Effect::Fence => each(from, Action::Fence),
            Effect::Drain => {
                let mut all = pairs(from, to, Action::Fenced);
                if sabotage == Sabotage::NoDrain {
                    all.clear();
                }
                all.extend(pairs(to, from, Action::NoteBack));
                all
            }
            Effect::Commit => vec![Action::Commit],
            // The direction is that of the next already.
            Effect::Activate => each(from, Action::Activate),
            Effect::Undo => {
                let mut all = vec![Action::UnlessCommitted];
                all.extend(from.map(Action::Unfence));
                all.push(Action::Release);
                all
            }
            Effect::Finish | Effect::Abort => {
                let mut all = vec![Action::AllKnow];
                let gone = if effect == Effect::Finish { OLD } else { NEW };
                all.extend(gone.map(Action::Delete));
                all.push(Action::Doubled(false));
                all.extend(OLD.into_iter().chain(NEW).map(Action::DropAll));
                all
            }
        }
    }

    /// The streams of changes, which run beside everything else: one change of one source.
    /// What it cannot go on with for good.
    pub(crate) fn stream(&self, world: &mut World, pick: usize) -> Option<No> {
        let runs = !matches!(
            self.doing,
            Doing::Elect | Doing::TakeWorkflow | Doing::Claim(_) | Doing::Remember | Doing::Gone
        );
        if !runs || !self.record.streams() {
            return None;
        }
        let (from, to) = match self.record.direction() {
            Direction::Forward => (OLD, NEW),
            Direction::Back => (NEW, OLD),
        };
        // Refused or not: the next try tells.
        let applied = world.apply(from[pick % 2], to[pick / 2 % 2], self.token);
        applied
            .err()
            .filter(|no| matches!(no, No::Lost | No::FailedOver))
    }

    /// A stream has ended for good, while it waits or does something.
    pub(crate) fn fail(&mut self, world: &World, no: No) {
        // An attempt is taken back whatever has become of its streams.
        let listens = match &self.doing {
            Doing::Decide => self.record.next() != Next::Run(Effect::Undo),
            Doing::Act { effect, .. } => *effect != Effect::Undo,
            Doing::Elect
            | Doing::TakeWorkflow
            | Doing::Claim(_)
            | Doing::Remember
            | Doing::Record(_)
            | Doing::Gone => false,
        };
        // What it goes by is what is recorded, or it reads that first.
        if !listens || self.version != world.version {
            return;
        }
        let event = match no {
            No::FailedOver => Event::FailedOver(String::new()),
            No::Again | No::Replaced | No::Halt | No::Lost => Event::Lost(String::new()),
        };
        if let Some(record) = self.record.after(&event) {
            self.doing = Doing::Record(record);
        }
    }

    /// Whether nothing more will come of it.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self.doing, Doing::Gone)
    }
}

/// Both sides have all keys; what the streams bring is judged at the commit.
fn compare(world: &World) -> Result<(), No> {
    let is_there = |key| world.shards[super::world::new(key)].rows.contains_key(&key);
    if (0..super::world::KEYS).all(is_there) {
        Ok(())
    } else {
        Err(No::Halt)
    }
}
