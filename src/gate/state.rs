//! What the gate decides: whether a statement waits, and whether a hold is drained. Pure.
//!
//! What must stay true: whoever may have touched what moves counts as having touched it, until its transaction ends; who
//! waits has touched nothing of the hold.

use crate::catalog::{key::Key, moving::KeySet};
use serde::Deserialize;
use smallvec::SmallVec;
use std::collections::BTreeMap;

/// The group that stands for reference tables, where a shard joins: writes to them must reach it.
pub const REFERENCES: &str = "";

/// Keys of a group that move.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Moving {
    pub group: String,
    pub keys: KeySet,
}

/// Which keys of a group are touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touch {
    /// Any of them.
    Any,
    Keys(SmallVec<[Key; 1]>),
}

/// What a statement, or a transaction so far, touches, by group.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// The first are touched; the others keep their room.
    groups: Vec<(String, Touch)>,
    touched: usize,
    reach: Reach,
}

/// What may follow a statement in its transaction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// Nothing: it is a transaction of its own.
    #[default]
    Alone,
    /// Statements on other keys of the group, for which it would wait with its locks: they count as touched from its first
    /// touch of the group on.
    GoesOn,
}

/// How many keys of a group a transaction is known by; more are any.
const MOST_KEYS: usize = 64;

/// Statements that are held back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    pub workflow: String,
    pub attempt: i32,
    pub moving: Vec<Moving>,
    pub standing: Standing,
}

/// What is known of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Held,
    /// Its deadline has passed, and nobody can be asked what has become of it.
    Unsure,
}

/// One attempt of a reshard to change owners.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Attempt {
    pub workflow: String,
    pub number: i32,
}

/// What a statement is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    Passes,
    /// For this attempt.
    Waits(Attempt),
    /// Nobody knows where its keys are.
    Unsure(Attempt),
}

/// A transaction, or a statement outside of one, as far as it was seen.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'a> {
    /// Since which generation all that it touches was noted; 0: nothing was.
    pub since: u64,
    pub touched: &'a Touched,
}

/// What moves, and what is held.
#[derive(Debug, Default)]
pub struct State {
    generation: u64,
    /// Groups of which touches are noted, and since which generation.
    watched: BTreeMap<String, u64>,
    holds: Vec<Hold>,
}

impl Touched {
    /// More may follow in its transaction.
    pub fn goes_on(&mut self) {
        self.reach = Reach::GoesOn;
    }

    /// Notes more.
    pub fn add(&mut self, group: &str, more: &Touch) {
        let (touched, room) = self.groups.split_at_mut(self.touched);
        let found = touched.iter_mut().find(|(name, _)| name == group);
        let Some((_, touch)) = found else {
            match room.first_mut() {
                Some((name, touch)) => {
                    group.clone_into(name);
                    touch.clone_from(more);
                }
                None => self.groups.push((group.to_owned(), more.clone())),
            }
            self.touched += 1;
            return;
        };
        match (&mut *touch, more) {
            (Touch::Any, _) => {}
            (Touch::Keys(keys), Touch::Keys(more)) => {
                for key in more {
                    if !keys.contains(key) {
                        keys.push(key.clone());
                    }
                }
                if keys.len() > MOST_KEYS {
                    *touch = Touch::Any;
                }
            }
            (Touch::Keys(_), Touch::Any) => *touch = Touch::Any,
        }
    }

    /// Notes all of another.
    pub fn join(&mut self, more: &Self) {
        for (group, touch) in more.iter() {
            self.add(group, touch);
        }
        if more.reach == Reach::GoesOn {
            self.reach = Reach::GoesOn;
        }
    }

    /// Nothing is touched.
    pub fn clear(&mut self) {
        self.touched = 0;
        self.reach = Reach::Alone;
    }

    /// By group.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Touch)> {
        let touched = self.groups.iter().take(self.touched);
        touched.map(|(group, touch)| (group.as_str(), touch))
    }

    /// What of a group is touched.
    #[must_use]
    pub fn of(&self, group: &str) -> Option<&Touch> {
        self.iter()
            .find(|(name, _)| *name == group)
            .map(|(_, touch)| touch)
    }

    /// Whether any of these keys may be touched.
    #[must_use]
    pub fn meets(&self, moving: &[Moving]) -> bool {
        moving.iter().any(|moving| match self.of(&moving.group) {
            None => false,
            Some(_) if self.reach == Reach::GoesOn => true,
            Some(Touch::Any) => true,
            Some(Touch::Keys(keys)) => keys.iter().any(|key| moving.keys.contains(key)),
        })
    }
}

impl Hold {
    fn name(&self) -> Attempt {
        Attempt {
            workflow: self.workflow.clone(),
            number: self.attempt,
        }
    }
}

impl State {
    /// The number of what is watched now; 0: nothing is watched or held.
    #[must_use]
    pub fn generation(&self) -> u64 {
        if self.watched.is_empty() && self.holds.is_empty() {
            0
        } else {
            self.generation
        }
    }

    /// Whether anything is held.
    #[must_use]
    pub fn holds(&self) -> &[Hold] {
        &self.holds
    }

    /// Whether rows of a group are on several shards, so that what is known of it must be fresh.
    #[must_use]
    pub fn watches(&self, group: &str) -> bool {
        self.watched.contains_key(group)
    }

    /// These groups have keys that move; those of holds besides. Where a hold was of reference tables others follow, as long
    /// as anything moves: who comes between two of them is known to the second.
    pub fn watch<'a>(&mut self, groups: impl IntoIterator<Item = &'a str>) {
        let mut wanted: Vec<&str> = groups.into_iter().collect();
        let held: Vec<String> = self.holds.iter().flat_map(groups_of).collect();
        wanted.extend(held.iter().map(String::as_str));
        if !wanted.is_empty() && self.watched.contains_key(REFERENCES) {
            wanted.push(REFERENCES);
        }
        self.watched
            .retain(|group, _| wanted.contains(&group.as_str()));
        let new = |group: &&str| !self.watched.contains_key(*group);
        let new: Vec<&str> = wanted.iter().copied().filter(new).collect();
        if new.is_empty() {
            return;
        }
        self.generation += 1;
        for group in new {
            self.watched.insert(group.to_owned(), self.generation);
        }
    }

    /// From now on statements wait; `false`: they do already.
    pub fn hold(&mut self, workflow: &str, attempt: i32, moving: &[Moving]) -> bool {
        let known = |hold: &&Hold| hold.workflow == workflow && hold.attempt == attempt;
        if self.holds.iter().any(|hold| known(&hold)) {
            self.stands(workflow, attempt, Standing::Held);
            return false;
        }
        self.holds.retain(|hold| hold.workflow != workflow);
        self.holds.push(Hold {
            workflow: workflow.to_owned(),
            attempt,
            moving: moving.to_vec(),
            standing: Standing::Held,
        });
        let watched: Vec<String> = self.watched.keys().cloned().collect();
        self.watch(watched.iter().map(String::as_str));
        true
    }

    /// What is known of a hold; whether that is news.
    pub fn stands(&mut self, workflow: &str, attempt: i32, standing: Standing) -> bool {
        let mut news = false;
        for hold in &mut self.holds {
            if hold.workflow == workflow && hold.attempt == attempt {
                news |= hold.standing != standing;
                hold.standing = standing;
            }
        }
        news
    }

    /// They wait no more; whether they did.
    pub fn release(&mut self, workflow: &str, attempt: i32) -> bool {
        let before = self.holds.len();
        self.holds
            .retain(|hold| hold.workflow != workflow || hold.attempt != attempt);
        self.holds.len() < before
    }

    /// What a statement is told that touches this, in a transaction of which that was seen.
    #[must_use]
    pub fn ask(&self, asked: &Touched, seen: Option<Seen<'_>>) -> Answer {
        let mut answer = Answer::Passes;
        for hold in &self.holds {
            if !asked.meets(&hold.moving) || seen.is_some_and(|seen| self.is_at(hold, seen)) {
                continue;
            }
            match hold.standing {
                Standing::Unsure => return Answer::Unsure(hold.name()),
                Standing::Held => answer = Answer::Waits(hold.name()),
            }
        }
        answer
    }

    /// Whether a transaction has touched what moves, or may have.
    #[must_use]
    pub fn is_at(&self, hold: &Hold, seen: Seen<'_>) -> bool {
        let unknown = |moving: &Moving| {
            let since = self.watched.get(&moving.group);
            since.is_none_or(|since| seen.since < *since)
        };
        hold.moving.iter().any(unknown) || seen.touched.meets(&hold.moving)
    }
}

fn groups_of(hold: &Hold) -> impl Iterator<Item = String> + use<'_> {
    hold.moving.iter().map(|moving| moving.group.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::moving::Part;

    fn first() -> Attempt {
        Attempt {
            workflow: "w".to_owned(),
            number: 1,
        }
    }

    fn moving(group: &str, keys: &[i64]) -> Moving {
        Moving {
            group: group.to_owned(),
            keys: KeySet::of(Part::Values(
                keys.iter().map(|key| Key::Bigint(*key)).collect(),
            )),
        }
    }

    fn touched(group: &str, keys: &[i64]) -> Touched {
        let mut touched = Touched::default();
        let keys = keys.iter().map(|key| Key::Bigint(*key)).collect();
        touched.add(group, &Touch::Keys(keys));
        touched
    }

    fn any(group: &str) -> Touched {
        let mut touched = Touched::default();
        touched.add(group, &Touch::Any);
        touched
    }

    #[test]
    fn only_what_touches_moving_keys_waits() {
        let mut state = State::default();
        assert_eq!(state.generation(), 0);
        assert!(state.hold("w", 1, &[moving("g", &[1, 2])]));
        assert_ne!(state.generation(), 0);
        let waits = Answer::Waits(first());
        assert_eq!(state.ask(&touched("g", &[1]), None), waits);
        assert_eq!(state.ask(&any("g"), None), waits);
        assert_eq!(state.ask(&touched("g", &[3, 2]), None), waits);
        assert_eq!(state.ask(&touched("g", &[3]), None), Answer::Passes);
        assert_eq!(state.ask(&any("h"), None), Answer::Passes);
        assert!(!state.hold("w", 1, &[moving("g", &[1, 2])]));
        assert!(!state.release("w", 2), "another attempt");
        assert!(state.release("w", 1));
        assert_eq!(state.ask(&touched("g", &[1]), None), Answer::Passes);
    }

    #[test]
    fn a_transaction_that_may_go_on_counts_from_its_first_touch_of_the_group() {
        let mut state = State::default();
        state.watch(["g"]);
        let mut stays = touched("g", &[1]);
        stays.goes_on();
        state.hold("w", 1, &[moving("g", &[7])]);
        // It would wait for the other key with its locks, and the fence for them.
        assert_eq!(state.ask(&stays, None), Answer::Waits(first()));
        assert_eq!(state.ask(&touched("g", &[1]), None), Answer::Passes);
        let seen = Seen {
            since: state.generation(),
            touched: &stays,
        };
        assert_eq!(state.ask(&touched("g", &[7]), Some(seen)), Answer::Passes);
        assert!(state.is_at(&state.holds()[0], seen));
    }

    #[test]
    fn a_transaction_passes_that_has_touched_what_moves_or_may_have() {
        let mut state = State::default();
        state.watch(["g"]);
        let since = state.generation();
        state.hold("w", 1, &[moving("g", &[1])]);
        let asked = touched("g", &[1]);
        let ask = |state: &State, since, touched: &Touched| {
            state.ask(&asked, Some(Seen { since, touched })) == Answer::Passes
        };
        assert!(ask(&state, since, &touched("g", &[1])));
        assert!(ask(&state, since, &any("g")));
        assert!(!ask(&state, since, &touched("g", &[2])));
        assert!(!ask(&state, since, &any("h")));
        // Nothing of it was noted.
        assert!(ask(&state, 0, &Touched::default()));
        // It began before a group was watched that is held as well.
        let both = [moving("g", &[1]), moving("h", &[1])];
        state.hold("w", 2, &both);
        assert!(ask(&state, since, &Touched::default()));
        assert!(!ask(&state, state.generation(), &Touched::default()));
    }

    #[test]
    fn a_hold_of_which_nobody_knows_refuses() {
        let mut state = State::default();
        state.hold("w", 1, &[moving("g", &[1])]);
        assert!(state.stands("w", 1, Standing::Unsure));
        assert!(!state.stands("w", 1, Standing::Unsure));
        assert_eq!(
            state.ask(&touched("g", &[1]), None),
            Answer::Unsure(first())
        );
        assert_eq!(state.ask(&touched("g", &[2]), None), Answer::Passes);
        // It is heard of again.
        state.hold("w", 1, &[moving("g", &[1])]);
        assert_eq!(state.ask(&touched("g", &[1]), None), Answer::Waits(first()));
    }

    #[test]
    fn what_is_watched_stays_numbered_as_long_as_it_is() {
        let mut state = State::default();
        state.watch(["g"]);
        let first = state.generation();
        state.watch(["g"]);
        assert_eq!(state.generation(), first);
        state.hold("w", 1, &[moving("g", &[1])]);
        assert_eq!(state.generation(), first, "its group was watched already");
        state.watch([]);
        assert!(state.watches("g"), "a hold is on it");
        state.release("w", 1);
        state.watch([]);
        assert_eq!(state.generation(), 0);
        state.watch(["g"]);
        assert!(state.generation() > first);
    }

    #[test]
    fn who_comes_between_two_holds_of_reference_tables_is_known_to_the_second() {
        let mut state = State::default();
        state.watch(["g"]);
        let (before, none) = (state.generation(), Touched::default());
        let both = [moving("g", &[1]), moving(REFERENCES, &[])];
        state.hold("w", 1, &both);
        state.release("w", 1);
        state.watch(["g"]);
        let between = state.generation();
        state.hold("w", 2, &both);
        let is_at = |since| {
            let touched = &none;
            state.is_at(&state.holds()[0], Seen { since, touched })
        };
        assert_eq!([is_at(before), is_at(between)], [true, false]);
        state.release("w", 2);
        state.watch([]);
        assert_eq!(state.generation(), 0, "nothing moves any more");
    }

    #[test]
    fn a_transaction_with_many_keys_touches_any() {
        let mut touched = Touched::default();
        for key in 0..100 {
            touched.add("g", &Touch::Keys([Key::Bigint(key)].into_iter().collect()));
        }
        assert_eq!(touched.of("g"), Some(&Touch::Any));
        assert!(touched.meets(&[moving("g", &[7000])]));
    }
}
