//! Two-phase commit, step by step, without IO: what to ask of which shard next, from what the shards have answered.
//!
//! ```text
//!   Preparing ──all──▶ Deciding ──COMMIT──▶ Finishing ─────────────────▶ committed
//!       │ not all         │ error │ no answer   ▲ committed    └─ left over ─▶ Chasing
//!       ▼                 │       ▼             │
//!   Releasing ─▶ Undoing ◀┘    Settling ────────┤ aborted ─▶ Undoing ──▶ aborted
//!                                               └ unknown ──────────────▶ in doubt
//! ```
//! What must stay true: nothing is committed anywhere before the decider's COMMIT is known to have happened, and nothing
//! is rolled back anywhere after it was sent until it is known that it cannot happen.

/// A shard of the transaction, by its place among the shards that wrote.
pub type Place = usize;

/// What one shard is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// PREPARE TRANSACTION.
    Prepare,
    /// On the decider: the row that its COMMIT makes the decision.
    Decide,
    /// On the decider: COMMIT.
    Commit,
    /// On the decider: ROLLBACK.
    Rollback,
    CommitPrepared,
    RollbackPrepared,
}

/// What came of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    Done,
    /// The server says that it was not done; a transaction that it was part of is over, or has failed.
    Refused,
    /// There is no such prepared transaction.
    Missing,
    /// No answer: it may have been done or not.
    Lost,
}

/// What to do next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// All at once; told with [`Commit::heard`].
    Ask(Vec<(Place, Step)>),
    /// Find out what has become of the decider's COMMIT; told with [`Commit::settled`].
    Settle,
    /// Commit what is prepared there by other means; told with [`Commit::chased`].
    Chase(Vec<Place>),
    End(Verdict),
}

/// What the decider's servers say of a COMMIT whose answer was lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    Committed,
    /// It never will be.
    Aborted,
    Unknown,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Committed, where `late` says which shards will be later, and `missing` which had no prepared part any more.
    Committed {
        late: Vec<Place>,
        missing: Vec<Place>,
    },
    /// Rolled back, because of what this shard answered; `None`: the decider's COMMIT was lost and cannot happen.
    Aborted { because: Option<Place> },
    /// Either, as recovery will find.
    InDoubt,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Preparing,
    Deciding,
    Settling,
    /// The decider is rolled back, so that nothing can decide otherwise.
    Releasing,
    Undoing,
    Finishing,
    Chasing,
    Over(Verdict),
}

/// One commit over several shards.
#[derive(Clone, Debug)]
pub struct Commit {
    count: usize,
    decider: Place,
    phase: Phase,
    /// What each shard answered to the first step.
    first: Vec<Heard>,
    because: Option<Place>,
    late: Vec<Place>,
    missing: Vec<Place>,
}

impl Commit {
    /// Of so many shards, one of which decides.
    #[must_use]
    pub fn new(count: usize, decider: Place) -> Self {
        Self {
            count,
            decider,
            phase: Phase::Preparing,
            first: vec![Heard::Lost; count],
            because: None,
            late: Vec::new(),
            missing: Vec::new(),
        }
    }

    /// What is to be done now.
    #[must_use]
    pub fn action(&self) -> Action {
        let others = |step| self.others().map(|place| (place, step)).collect();
        let decider = |step| vec![(self.decider, step)];
        match &self.phase {
            Phase::Preparing => Action::Ask(
                (0..self.count)
                    .map(|place| {
                        let decides = place == self.decider;
                        (place, if decides { Step::Decide } else { Step::Prepare })
                    })
                    .collect(),
            ),
            Phase::Deciding => Action::Ask(decider(Step::Commit)),
            Phase::Settling => Action::Settle,
            Phase::Releasing => Action::Ask(decider(Step::Rollback)),
            Phase::Undoing => Action::Ask(
                self.others()
                    .filter(|place| self.first[*place] == Heard::Done)
                    .map(|place| (place, Step::RollbackPrepared))
                    .collect(),
            ),
            Phase::Finishing => Action::Ask(others(Step::CommitPrepared)),
            Phase::Chasing => Action::Chase(self.late.clone()),
            Phase::Over(verdict) => Action::End(verdict.clone()),
        }
    }

    fn others(&self) -> impl Iterator<Item = Place> {
        let decider = self.decider;
        (0..self.count).filter(move |place| *place != decider)
    }

    /// What the shards that were asked have answered.
    pub fn heard(&mut self, answers: &[(Place, Heard)]) {
        self.phase = match self.phase {
            Phase::Preparing => {
                for (place, heard) in answers {
                    self.first[*place] = *heard;
                }
                let failed = |heard: &Heard| *heard != Heard::Done;
                self.because = self.first.iter().position(failed);
                match self.because {
                    None => Phase::Deciding,
                    Some(_) if self.first[self.decider] == Heard::Lost => Phase::Undoing,
                    Some(_) => Phase::Releasing,
                }
            }
            Phase::Deciding => match answers {
                [(_, Heard::Done)] => Phase::Finishing,
                [(_, Heard::Refused | Heard::Missing)] => {
                    self.because = Some(self.decider);
                    Phase::Undoing
                }
                _ => Phase::Settling,
            },
            // However it went: a transaction that was not told to commit does not.
            Phase::Releasing => Phase::Undoing,
            // What was not rolled back now, recovery rolls back.
            Phase::Undoing => self.aborted(),
            Phase::Finishing => {
                for (place, heard) in answers {
                    match heard {
                        Heard::Done => {}
                        Heard::Missing => self.missing.push(*place),
                        Heard::Refused | Heard::Lost => self.late.push(*place),
                    }
                }
                if self.late.is_empty() {
                    self.committed()
                } else {
                    Phase::Chasing
                }
            }
            Phase::Settling | Phase::Chasing | Phase::Over(_) => return,
        };
    }

    /// What has become of the decider's COMMIT.
    pub fn settled(&mut self, outcome: Settled) {
        if self.phase == Phase::Settling {
            self.phase = match outcome {
                Settled::Committed => Phase::Finishing,
                Settled::Aborted => Phase::Undoing,
                Settled::Unknown => Phase::Over(Verdict::InDoubt),
            };
        }
    }

    /// These shards could not be reached by other means either.
    pub fn chased(&mut self, late: Vec<Place>) {
        if self.phase == Phase::Chasing {
            self.late = late;
            self.phase = self.committed();
        }
    }

    fn committed(&self) -> Phase {
        Phase::Over(Verdict::Committed {
            late: self.late.clone(),
            missing: self.missing.clone(),
        })
    }

    fn aborted(&self) -> Phase {
        Phase::Over(Verdict::Aborted {
            because: self.because,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a server has of the transaction.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Part {
        Open,
        Prepared,
        Committed,
        Gone,
    }

    /// Servers that do what they are asked, or do not and say so, or leave it open.
    #[derive(Clone, Debug)]
    struct World {
        parts: Vec<Part>,
        decider: Place,
        commit: Commit,
        /// COMMIT was sent to the decider and may still be carried out.
        loose: bool,
    }

    const ANSWERS: [Heard; 4] = [Heard::Done, Heard::Refused, Heard::Missing, Heard::Lost];

    impl World {
        fn new(count: usize, decider: Place) -> Self {
            Self {
                parts: vec![Part::Open; count],
                decider,
                commit: Commit::new(count, decider),
                loose: false,
            }
        }

        /// What a server has after a step with this answer, in each way that it can have come to it.
        fn after(&self, place: Place, step: Step, heard: Heard) -> Vec<Part> {
            let part = self.parts[place];
            let done = match step {
                Step::Prepare => Part::Prepared,
                Step::Decide => Part::Open,
                Step::Commit | Step::CommitPrepared => Part::Committed,
                Step::Rollback | Step::RollbackPrepared => Part::Gone,
            };
            let lost = match step {
                // A connection that ends takes what is open with it.
                Step::Prepare | Step::Decide | Step::Commit | Step::Rollback => Part::Gone,
                Step::CommitPrepared | Step::RollbackPrepared => part,
            };
            match (heard, step) {
                (Heard::Done, _) => vec![done],
                (Heard::Refused, Step::CommitPrepared | Step::RollbackPrepared) => vec![part],
                (Heard::Refused, _) => vec![Part::Gone],
                // Recovery has been there before.
                (Heard::Missing, Step::CommitPrepared) => vec![Part::Committed],
                (Heard::Missing, _) => vec![Part::Gone],
                (Heard::Lost, Step::Decide) => vec![Part::Gone],
                (Heard::Lost, _) => vec![done, lost],
            }
        }

        /// Goes on in every way that is possible, to every end.
        fn play(self, ends: &mut Vec<(Self, Verdict)>) {
            match self.commit.action() {
                Action::Ask(asked) => self.answer(&asked, &mut Vec::new(), ends),
                Action::Settle => {
                    for outcome in [Settled::Committed, Settled::Aborted, Settled::Unknown] {
                        let committed = self.parts[self.decider] == Part::Committed;
                        if (outcome == Settled::Committed) != committed
                            && outcome != Settled::Unknown
                        {
                            continue; // The servers do not lie.
                        }
                        let mut next = self.clone();
                        next.loose = outcome == Settled::Unknown;
                        next.commit.settled(outcome);
                        next.play(ends);
                    }
                }
                Action::Chase(places) => {
                    for reached in [true, false] {
                        let mut next = self.clone();
                        for place in places.iter().filter(|_| reached) {
                            next.parts[*place] = Part::Committed;
                        }
                        next.commit
                            .chased(if reached { Vec::new() } else { places.clone() });
                        next.play(ends);
                    }
                }
                Action::End(verdict) => ends.push((self, verdict)),
            }
        }

        fn answer(
            self,
            asked: &[(Place, Step)],
            answers: &mut Vec<(Place, Heard)>,
            ends: &mut Vec<(Self, Verdict)>,
        ) {
            let Some(&(place, step)) = asked.get(answers.len()) else {
                let mut next = self;
                next.commit.heard(answers);
                return next.play(ends);
            };
            self.check(place, step);
            for heard in ANSWERS {
                for part in self.after(place, step, heard) {
                    let mut next = self.clone();
                    next.parts[place] = part;
                    answers.push((place, heard));
                    next.answer(asked, answers, ends);
                    answers.pop();
                }
            }
        }

        /// Nothing is asked that could tear the transaction apart.
        fn check(&self, place: Place, step: Step) {
            let decider = self.parts[self.decider];
            match step {
                Step::Prepare | Step::Decide => assert_eq!(self.parts[place], Part::Open),
                Step::Commit => {
                    let others = (0..self.parts.len()).filter(|other| *other != self.decider);
                    for other in others {
                        assert_eq!(self.parts[other], Part::Prepared, "{self:?}");
                    }
                }
                Step::CommitPrepared => assert_eq!(decider, Part::Committed, "{self:?}"),
                Step::Rollback | Step::RollbackPrepared => {
                    assert_ne!(decider, Part::Committed, "{self:?}");
                }
            }
        }

        /// What recovery makes of it: by the decider's commit, and nothing else.
        fn recovered(&self) -> Vec<Part> {
            let committed = self.parts[self.decider] == Part::Committed;
            let fate = if committed {
                Part::Committed
            } else {
                Part::Gone
            };
            self.parts
                .iter()
                .map(|part| match part {
                    Part::Prepared => fate,
                    Part::Open => Part::Gone,
                    Part::Committed | Part::Gone => *part,
                })
                .collect()
        }
    }

    fn ends(count: usize, decider: Place) -> Vec<(World, Verdict)> {
        let mut ends = Vec::new();
        World::new(count, decider).play(&mut ends);
        ends
    }

    #[test]
    fn whatever_fails_wherever_the_shards_agree_in_the_end() {
        for (count, decider) in [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)] {
            for (world, verdict) in ends(count, decider) {
                let parts = world.recovered();
                assert!(
                    parts.iter().all(|part| *part == parts[0]),
                    "{parts:?} {world:?} {verdict:?}"
                );
                match verdict {
                    Verdict::Committed { .. } => assert_eq!(parts[0], Part::Committed),
                    Verdict::Aborted { .. } => assert_eq!(parts[0], Part::Gone, "{world:?}"),
                    Verdict::InDoubt => assert!(world.loose),
                }
            }
        }
    }

    #[test]
    fn what_is_not_late_is_committed_already() {
        for (world, verdict) in ends(3, 1) {
            if let Verdict::Committed { late, .. } = verdict {
                for (place, part) in world.parts.iter().enumerate() {
                    assert!(
                        *part == Part::Committed || late.contains(&place),
                        "{world:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn every_end_is_reached() {
        let ends = ends(3, 0);
        let reached = |is: fn(&Verdict) -> bool| ends.iter().any(|(_, verdict)| is(verdict));
        assert!(reached(|verdict| *verdict == Verdict::InDoubt));
        assert!(reached(
            |verdict| *verdict == Verdict::Aborted { because: None }
        ));
        for because in 0..3 {
            let wanted = Verdict::Aborted {
                because: Some(because),
            };
            assert!(ends.iter().any(|(_, verdict)| *verdict == wanted));
        }
        assert!(reached(
            |verdict| matches!(verdict, Verdict::Committed { late, missing } if late.is_empty() && missing.is_empty())
        ));
        assert!(reached(
            |verdict| matches!(verdict, Verdict::Committed { late, .. } if late.len() == 2)
        ));
        assert!(reached(
            |verdict| matches!(verdict, Verdict::Committed { missing, .. } if missing.len() == 2)
        ));
    }

    #[test]
    fn all_goes_well_in_three_rounds() {
        let mut commit = Commit::new(2, 1);
        let mut rounds = Vec::new();
        while let Action::Ask(asked) = commit.action() {
            let done: Vec<_> = asked
                .iter()
                .map(|(place, _)| (*place, Heard::Done))
                .collect();
            rounds.push(asked);
            commit.heard(&done);
        }
        assert_eq!(
            rounds,
            [
                vec![(0, Step::Prepare), (1, Step::Decide)],
                vec![(1, Step::Commit)],
                vec![(0, Step::CommitPrepared)],
            ]
        );
    }
}
