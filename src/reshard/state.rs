//! The state machine of a reshard: from what is recorded to what is done next, and from what came of it to the next record.
//! Pure.
//!
//! What must stay true: what is done next follows from the record alone, so that whoever takes a run over goes on where it
//! stood; an attempt of a cutover is undone at any failure before its commit and goes forward after it; owners change only
//! from [`Step::CaughtUp`], which is recorded only after every source was fenced and every destination has applied it.

use super::job::Direction;
use serde::{Deserialize, Serialize};

/// Where a reshard stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    Prepare,
    Copy,
    CatchUp,
    Verify,
    /// Everything is there for the first cutover.
    Ready,
    Cutover,
    /// The owners have changed at least once; the former ones are kept up to date.
    Reverse,
    /// The former owners' rows go.
    Finish,
    Done,
    /// The copies go.
    Abort,
    Aborted,
}

/// What of a state was recorded. Of a cutover: what is being done, except for [`Step::Committed`], which was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// What the state makes is there: it waits for the operator, or for the proxies (in [`State::Prepare`]).
    Made,
    Hold,
    Fence,
    /// Every source is fenced.
    Fenced,
    /// Every destination has applied every fence.
    CaughtUp,
    /// The map has the new owners. No way back but a rollback.
    Committed,
    /// The attempt is taken back.
    Undo,
}

/// What the operator wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    Cutover,
    Rollback,
    Finish,
    Abort,
    /// Everything is compared once more.
    Verify,
}

/// Why it stands still, and what mends it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stopped {
    pub what: String,
    pub remedy: String,
    #[serde(default)]
    pub then: Then,
}

/// What it goes on with when somebody says so.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Then {
    /// Where it stands.
    #[default]
    GoOn,
    /// The rows of what has failed over are copied again.
    CopyAgain,
}

/// What is recorded of a reshard, as far as anything is decided by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub state: State,
    pub step: Option<Step>,
    /// The number of the last cutover that was tried, in either direction.
    pub attempt: i32,
    /// How often the owners have changed. Odd: the new ones serve.
    pub flips: i32,
    /// The round of verification.
    pub round: i32,
    pub wanted: Option<Wish>,
    pub paused: bool,
    pub stopped: Option<Stopped>,
}

/// What the servers know of a run's cutovers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// The greatest number of an attempt that has fenced any of them.
    pub tried: i32,
    /// The last attempt whose new owners have taken over, and which way; the map's number then.
    pub last: Option<(i32, Direction)>,
    pub epoch: i64,
}

impl Known {
    /// Takes over what a map says that is as late as theirs: which way keys went last. Where no shard was told yet, the
    /// attempt that did it is the last one.
    pub fn by_map(&mut self, went: Direction) {
        let known = self
            .last
            .map_or(Direction::Back, |(_, direction)| direction);
        if known != went && self.tried > 0 {
            self.last = Some((self.tried, went));
        }
    }
}

/// Something to do; each may be done again from its beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Effect {
    /// Schema on the destinations.
    Prepare,
    /// Every proxy knows that rows will be on two shards.
    Announce,
    Copy,
    CatchUp,
    Verify,
    /// What a cutover and the way back need.
    Ready,
    Hold,
    Fence,
    /// Waits until the destinations have applied the fences, and notes where the way back begins.
    Drain,
    /// New owners, in one transaction with the record of it.
    Commit,
    Activate,
    /// Guards off, statements released; first proves that the attempt is not committed.
    Undo,
    Reverse,
    Finish,
    Abort,
}

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    Run(Effect),
    /// This is recorded first.
    Turn(Record),
    Wait(Waiting),
    Over,
}

/// What it waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    Operator,
    Paused,
    Stopped,
}

/// What came of an effect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    Done(Effect),
    /// Of the moment.
    Again,
    /// Somebody has to do something first.
    Halt(Stopped),
    /// What has changed on a source since its rows were copied is not known any more.
    Lost(String),
    /// A server may lack what it had.
    FailedOver(String),
    /// Another process ran the reshard until now.
    TakenOver,
}

/// Why a wish makes no sense now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the reshard is over")]
    Over,
    #[error("it is not ready: rows are still copied or compared")]
    NotReady,
    #[error("the new owners serve already")]
    CutOver,
    #[error("the new owners do not serve: there is nothing to roll back or to finish")]
    NotCutOver,
    #[error("the new owners serve: it can be rolled back, and then aborted")]
    Committed,
    #[error("the owners are changing just now: wait until they have")]
    Changing,
    #[error("the owners have changed: rows are compared before they do for the first time")]
    Compared,
    #[error("it is being finished or aborted already")]
    Ending,
    #[error("it has stopped, and would do that whenever it goes on: resume it first")]
    Stopped,
    #[error("it is paused, and would do that whenever it goes on: resume it first")]
    Paused,
}

impl Record {
    /// Of a reshard that has just been asked for.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: State::Prepare,
            step: None,
            attempt: 0,
            flips: 0,
            round: 0,
            wanted: None,
            paused: false,
            stopped: None,
        }
    }

    /// Which way the next cutover goes, the one that is under way, and the streams of changes.
    #[must_use]
    pub fn direction(&self) -> Direction {
        if self.flips % 2 == 0 {
            Direction::Forward
        } else {
            Direction::Back
        }
    }

    /// Whether nothing will happen any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        matches!(self.state, State::Done | State::Aborted)
    }

    /// Whether an attempt of a cutover is under way that is not committed.
    #[must_use]
    pub fn is_attempt(&self) -> bool {
        self.state == State::Cutover && self.step != Some(Step::Committed)
    }

    /// Whether changes of the shards that give rows away have to be brought to those that get them.
    #[must_use]
    pub fn streams(&self) -> bool {
        match self.state {
            State::CatchUp | State::Verify | State::Ready | State::Reverse => {
                !self.paused && self.stopped.is_none()
            }
            State::Cutover => self.step != Some(Step::Committed) && self.stopped.is_none(),
            State::Prepare
            | State::Copy
            | State::Finish
            | State::Done
            | State::Abort
            | State::Aborted => false,
        }
    }

    /// Whether what is done now is worth nothing once a slot is lost, or a server has failed over. What takes an attempt back,
    /// brings it to its end, or gives everything up does without.
    #[must_use]
    pub fn needs_slots(&self) -> bool {
        match self.state {
            State::Copy | State::CatchUp | State::Verify | State::Ready | State::Reverse => true,
            State::Cutover => !matches!(self.step, Some(Step::Undo | Step::Committed)),
            State::Prepare | State::Finish | State::Done | State::Abort | State::Aborted => false,
        }
    }

    /// What comes next.
    #[must_use]
    pub fn next(&self) -> Next {
        if self.is_over() {
            return Next::Over;
        }
        if let Some(turned) = self.turned() {
            return Next::Turn(turned);
        }
        if self.stopped.is_some() {
            return Next::Wait(Waiting::Stopped);
        }
        if self.paused && self.state != State::Cutover {
            return Next::Wait(Waiting::Paused);
        }
        self.effect()
            .map_or(Next::Wait(Waiting::Operator), Next::Run)
    }

    /// What the state does now.
    fn effect(&self) -> Option<Effect> {
        Some(match (self.state, self.step) {
            (State::Prepare, None) => Effect::Prepare,
            (State::Prepare, Some(_)) => Effect::Announce,
            (State::Copy, _) => Effect::Copy,
            (State::CatchUp, _) => Effect::CatchUp,
            (State::Verify, _) => Effect::Verify,
            (State::Ready, None) => Effect::Ready,
            (State::Reverse, None) => Effect::Reverse,
            (State::Cutover, Some(Step::Hold)) => Effect::Hold,
            (State::Cutover, Some(Step::Fence)) => Effect::Fence,
            (State::Cutover, Some(Step::Fenced)) => Effect::Drain,
            (State::Cutover, Some(Step::CaughtUp)) => Effect::Commit,
            (State::Cutover, Some(Step::Committed)) => Effect::Activate,
            // No other is ever recorded; taking an attempt back is always right before its commit.
            (State::Cutover, Some(Step::Undo | Step::Made) | None) => Effect::Undo,
            (State::Finish, _) => Effect::Finish,
            (State::Abort, _) => Effect::Abort,
            (State::Ready | State::Reverse, Some(_)) | (State::Done | State::Aborted, _) => {
                return None;
            }
        })
    }

    /// The record that a wish leads to, if its time has come.
    fn turned(&self) -> Option<Self> {
        let wanted = self.wanted?;
        let at = |state, step| Self {
            state,
            step,
            wanted: None,
            ..self.clone()
        };
        let goes = self.stopped.is_none() && !self.paused;
        let waits = matches!(self.state, State::Ready | State::Reverse)
            && self.step == Some(Step::Made)
            && goes;
        match wanted {
            Wish::Abort if self.state == State::Cutover => (self.is_attempt()
                && self.step != Some(Step::Undo))
            .then(|| self.at_step(Step::Undo)),
            Wish::Abort if self.state == State::Abort => Some(at(State::Abort, self.step)),
            Wish::Abort => Some(Self {
                stopped: None,
                paused: false,
                ..at(State::Abort, None)
            }),
            // Kept until it succeeded: an attempt that was undone is followed by the next.
            Wish::Cutover | Wish::Rollback if waits => Some(Self {
                state: State::Cutover,
                step: Some(Step::Hold),
                attempt: self.attempt + 1,
                ..self.clone()
            }),
            // Also where the way back could not be made, and never will.
            Wish::Finish
                if goes && self.state == State::Reverse && self.direction() == Direction::Back =>
            {
                Some(at(State::Finish, None))
            }
            Wish::Verify if waits && self.state == State::Ready => Some(Self {
                round: self.round + 1,
                ..at(State::Verify, None)
            }),
            Wish::Cutover | Wish::Rollback | Wish::Finish | Wish::Verify => None,
        }
    }

    /// The record with what servers know and it does not, as the home shard failed over to one that lacked it; `None`: it
    /// knows all.
    #[must_use]
    pub fn with(&self, known: &Known) -> Option<Self> {
        if let Some((attempt, direction)) = known.last
            && (attempt > self.attempt || attempt == self.attempt && self.is_attempt())
        {
            let turned = direction == Direction::Forward;
            let lost = if (self.flips % 2 == 1) == turned {
                2
            } else {
                1
            };
            // An attempt that came after it began when all owners had been told; its guards may be on.
            let later = known.tried > attempt;
            return Some(Self {
                attempt: attempt.max(known.tried),
                flips: self.flips + lost,
                wanted: None,
                paused: false,
                stopped: None,
                state: State::Cutover,
                step: Some(if later { Step::Undo } else { Step::Committed }),
                ..self.clone()
            });
        }
        if known.tried <= self.attempt {
            return None;
        }
        let attempt = known.tried;
        let fenced = matches!(
            self.state,
            State::Copy
                | State::CatchUp
                | State::Verify
                | State::Ready
                | State::Reverse
                | State::Cutover
        );
        // One that came after a cutover began when all owners had been told of that.
        let told = known.last.is_some_and(|(last, _)| last == self.attempt);
        if !fenced || self.step == Some(Step::Committed) && !told {
            return Some(Self {
                attempt,
                ..self.clone()
            });
        }
        // Its guards may refuse writes of the owners.
        Some(Self {
            attempt,
            stopped: None,
            state: State::Cutover,
            step: Some(Step::Undo),
            ..self.clone()
        })
    }

    fn at_step(&self, step: Step) -> Self {
        Self {
            step: Some(step),
            ..self.clone()
        }
    }

    fn at_state(&self, state: State) -> Self {
        Self {
            state,
            step: None,
            ..self.clone()
        }
    }

    /// What is recorded after something has come of the effect that the record asked for; `None`: nothing new.
    #[must_use]
    pub fn after(&self, event: &Event) -> Option<Self> {
        match event {
            Event::Done(effect) => {
                (self.effect() == Some(*effect)).then(|| self.after_done(*effect))
            }
            Event::Again | Event::TakenOver => (self.is_attempt() && self.step != Some(Step::Undo))
                .then(|| self.at_step(Step::Undo)),
            Event::Halt(stopped) => Some(self.after_halt(stopped)),
            Event::Lost(what) => self.after_loss(what),
            Event::FailedOver(what) => Some(self.after_halt(&self.failed_over(what))),
        }
    }

    /// Whether the copies may be made again: nobody has ever read them.
    fn copies_again(&self) -> bool {
        let copied = [State::Copy, State::CatchUp, State::Verify, State::Ready];
        self.flips == 0 && copied.contains(&self.state)
    }

    /// Preparing finds out whose copies are of no use any more.
    fn prepared_again(&self) -> Self {
        Self {
            // Whoever wanted a cutover did not want it after another copy.
            wanted: self.wanted.filter(|wanted| *wanted == Wish::Abort),
            ..self.at_state(State::Prepare)
        }
    }

    fn after_loss(&self, what: &str) -> Option<Self> {
        if self.copies_again() {
            return Some(self.prepared_again());
        }
        // It makes another slot, and nothing is copied yet.
        if self.state == State::Prepare {
            return None;
        }
        Some(self.after_halt(&Stopped {
            what: what.to_owned(),
            remedy: self.without_copies().to_owned(),
            then: Then::GoOn,
        }))
    }

    fn failed_over(&self, what: &str) -> Stopped {
        if self.copies_again() {
            return Stopped {
                what: what.to_owned(),
                remedy: "resume, and the rows that it gives or is given are copied again; or abort"
                    .to_owned(),
                then: Then::CopyAgain,
            };
        }
        Stopped {
            what: what.to_owned(),
            remedy: self.without_copies().to_owned(),
            then: Then::GoOn,
        }
    }

    /// What is left to do when the sides cannot be made alike any more.
    fn without_copies(&self) -> &'static str {
        match self.direction() {
            Direction::Forward => "abort the reshard, and start it again",
            Direction::Back => {
                "there is no way back any more: ask for finish, and resume for it to be done"
            }
        }
    }

    fn after_done(&self, effect: Effect) -> Self {
        match effect {
            Effect::Prepare | Effect::Ready | Effect::Reverse => self.at_step(Step::Made),
            Effect::Announce => self.at_state(State::Copy),
            Effect::Copy => self.at_state(State::CatchUp),
            Effect::CatchUp => Self {
                round: self.round + 1,
                ..self.at_state(State::Verify)
            },
            Effect::Verify => self.at_state(State::Ready),
            Effect::Hold => self.at_step(Step::Fence),
            Effect::Fence => self.at_step(Step::Fenced),
            Effect::Drain => self.at_step(Step::CaughtUp),
            Effect::Commit => self.committed(),
            Effect::Activate => self.at_state(State::Reverse),
            Effect::Undo => self.at_state(self.before_attempt()),
            Effect::Finish => self.at_state(State::Done),
            Effect::Abort => self.at_state(State::Aborted),
        }
    }

    /// The record that is written together with the new owners.
    #[must_use]
    pub fn committed(&self) -> Self {
        Self {
            flips: self.flips + 1,
            wanted: None,
            paused: false,
            ..self.at_step(Step::Committed)
        }
    }

    /// Where the attempt began.
    fn before_attempt(&self) -> State {
        if self.flips == 0 {
            State::Ready
        } else {
            State::Reverse
        }
    }

    fn after_halt(&self, stopped: &Stopped) -> Self {
        // Whoever resumes it hours later does not mean to change owners.
        let waits = |wanted: &Wish| matches!(wanted, Wish::Abort | Wish::Finish);
        let stops = Self {
            stopped: Some(stopped.clone()),
            wanted: self.wanted.filter(waits),
            ..self.clone()
        };
        if self.is_attempt() && self.step != Some(Step::Undo) {
            // Shown when the attempt is undone: an attempt that cannot be is stopped by a reason of its own.
            return Self {
                step: Some(Step::Undo),
                stopped: None,
                ..stops
            };
        }
        stops
    }

    /// The record with a wish in it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn wish(&self, wish: Wish) -> Result<Self, Refusal> {
        self.allows(wish)?;
        Ok(Self {
            wanted: Some(wish),
            ..self.clone()
        })
    }

    /// Whether a wish makes sense now.
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn allows(&self, wish: Wish) -> Result<(), Refusal> {
        let turned = self.direction() == Direction::Back;
        match (self.state, wish) {
            (State::Done | State::Aborted, _) => Err(Refusal::Over),
            (State::Finish, _) | (State::Abort, Wish::Cutover | Wish::Rollback | Wish::Finish) => {
                Err(Refusal::Ending)
            }
            (_, Wish::Abort) if turned => Err(Refusal::Committed),
            (_, Wish::Abort) => Ok(()),
            (_, Wish::Cutover) if turned => Err(Refusal::CutOver),
            (_, Wish::Rollback | Wish::Finish) if !turned => Err(Refusal::NotCutOver),
            // It would come to its time when somebody resumes the run, who may mean no more than that.
            (_, Wish::Cutover | Wish::Rollback | Wish::Verify) if self.stopped.is_some() => {
                Err(Refusal::Stopped)
            }
            (_, Wish::Cutover | Wish::Rollback | Wish::Verify) if self.paused => {
                Err(Refusal::Paused)
            }
            (State::Ready | State::Reverse | State::Cutover, Wish::Cutover | Wish::Rollback)
            | (State::Reverse, Wish::Finish)
            | (State::Ready, Wish::Verify) => Ok(()),
            (State::Cutover, Wish::Finish | Wish::Verify) => Err(Refusal::Changing),
            (State::Reverse, Wish::Verify) => Err(Refusal::Compared),
            _ => Err(Refusal::NotReady),
        }
    }

    /// Stands still as soon as it may. What was asked for and has not begun is withdrawn, but for an abort, which waits for
    /// nothing: whoever resumes it hours later does not mean to change owners. An attempt that is under way comes to its
    /// end or is undone, and no other follows.
    ///
    /// # Errors
    /// [`Refusal::Over`].
    pub fn pause(&self) -> Result<Self, Refusal> {
        self.unless_over(Self {
            paused: true,
            wanted: self.wanted.filter(|wanted| *wanted == Wish::Abort),
            ..self.clone()
        })
    }

    /// Goes on, also after a fault that somebody has mended.
    ///
    /// # Errors
    /// [`Refusal::Over`].
    pub fn resume(&self) -> Result<Self, Refusal> {
        // What differed is compared anew, not looked up; and whatever somebody has mended since everything was alike.
        let compared = matches!(self.state, State::Verify | State::Ready);
        let copies = matches!(&self.stopped, Some(stopped) if stopped.then == Then::CopyAgain);
        let from = if copies && self.copies_again() {
            self.prepared_again()
        } else if compared && self.stopped.is_some() {
            Self {
                round: self.round + 1,
                ..self.at_state(State::Verify)
            }
        } else {
            self.clone()
        };
        self.unless_over(Self {
            paused: false,
            stopped: None,
            ..from
        })
    }

    fn unless_over(&self, changed: Self) -> Result<Self, Refusal> {
        if self.is_over() {
            Err(Refusal::Over)
        } else {
            Ok(changed)
        }
    }
}

impl Default for Record {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests;
