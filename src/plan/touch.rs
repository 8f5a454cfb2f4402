//! What a statement touches: groups whose rows it may read or write, and of which keys. Pure. For the gate, before which
//! statements wait whose keys change their owner.
//!
//! What must stay true: never less than what the statement may touch; what is not known is everything.

use super::{
    StatementPlan, Target, Values,
    route::{Condition, Pin, Pins, Role, Why},
    value::{self, Missing, Purpose, Value},
};
use crate::catalog::{group::GroupId, key::Key, snapshot::Snapshot};
use smallvec::SmallVec;

/// Keys of a group.
pub type Keys = SmallVec<[Key; 1]>;

/// Groups that a statement may touch: a bit for each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Touches(u64);

/// Groups with this number and above share a bit.
const SHARED: u16 = 61;
const REFERENCES: u64 = 1 << 62;
const EVERYTHING: u64 = 1 << 63;

impl Touches {
    /// No rows but those of tables of one shard.
    pub const NOTHING: Self = Self(0);
    /// It is not known what.
    pub const EVERYTHING: Self = Self(EVERYTHING);

    /// Tables that every shard has whole.
    pub(super) const REFERENCES: Self = Self(REFERENCES);

    pub(super) fn group(group: GroupId) -> Self {
        Self(1 << group.0.min(SHARED))
    }

    #[must_use]
    pub(super) fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether it is nothing.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self.0 == 0
    }

    /// Whether it is not known what.
    #[must_use]
    pub fn is_everything(self) -> bool {
        self.0 & EVERYTHING != 0
    }

    /// Whether rows of the group may be touched.
    #[must_use]
    pub fn has(self, group: GroupId) -> bool {
        self.0 & (Self::group(group).0 | EVERYTHING) != 0
    }

    /// Whether tables may be touched that every shard has whole.
    #[must_use]
    pub fn has_references(self) -> bool {
        self.0 & (REFERENCES | EVERYTHING) != 0
    }
}

impl StatementPlan {
    /// The keys of a group whose rows this execution may touch; `None`: any.
    #[must_use]
    pub fn keys_of(
        &self,
        group: GroupId,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Option<Keys> {
        match &self.target {
            Target::ByKey(pins) if !self.touches.is_everything() => {
                pins.keys_of(group, snapshot, values)
            }
            // EXPLAIN (ROUTE) runs nothing.
            Target::Explain(_) => Some(Keys::new()),
            Target::ByKey(_) | Target::Fixed(_) | Target::Judge | Target::Refused(_) => None,
        }
    }
}

impl Pins {
    fn keys_of(&self, group: GroupId, snapshot: &Snapshot, values: &Values<'_>) -> Option<Keys> {
        let fixed = self.fixed.as_ref().map(|fixed| &fixed.why);
        if matches!(fixed, Some(Why::Override(_) | Why::Group)) {
            return None;
        }
        let pins = || self.pins.iter().filter(|pin| pin.group == group);
        pins().next()?;
        let mut keys = Keys::new();
        let look = Look {
            pins: self,
            snapshot,
            values,
        };
        for pin in pins() {
            look.pin(pin, &mut keys)?;
        }
        Some(keys)
    }
}

/// Looks for the keys of one execution.
struct Look<'a> {
    pins: &'a Pins,
    snapshot: &'a Snapshot,
    values: &'a Values<'a>,
}

impl Look<'_> {
    fn pin(&self, pin: &Pin, keys: &mut Keys) -> Option<()> {
        let purpose = match &pin.role {
            Role::Match => Purpose::Compare,
            Role::Insert => Purpose::Store,
            Role::Assign { old } => {
                self.value(pin, old, Purpose::Compare, keys)?;
                Purpose::Store
            }
        };
        self.condition(pin, &pin.condition, purpose, keys)
    }

    fn condition(
        &self,
        pin: &Pin,
        condition: &Condition,
        purpose: Purpose,
        keys: &mut Keys,
    ) -> Option<()> {
        match condition {
            Condition::Nothing => Some(()),
            Condition::Equal(value) => self.value(pin, value, purpose, keys),
            Condition::OneOf(list) => list
                .iter()
                .try_for_each(|value| self.value(pin, value, purpose, keys)),
            Condition::ElementOf(array) => {
                let key_type = self.snapshot.group(pin.group).key_type;
                let found = value::elements(array, key_type, self.values, self.pins.reading);
                keys.extend(found.ok()?);
                Some(())
            }
            Condition::Between { .. } => None,
            Condition::Either(parts) => parts
                .iter()
                .try_for_each(|part| self.condition(pin, part, purpose, keys)),
            // Every part names a superset of the keys.
            Condition::Both(parts) => parts.iter().find_map(|part| {
                let mut found = Keys::new();
                self.condition(pin, part, purpose, &mut found)?;
                keys.extend(found);
                Some(())
            }),
        }
    }

    fn value(&self, pin: &Pin, value: &Value, purpose: Purpose, keys: &mut Keys) -> Option<()> {
        let key_type = self.snapshot.group(pin.group).key_type;
        match value::key(value, key_type, self.values, self.pins.reading, purpose) {
            Ok(key) => keys.push(key),
            // Equal to no row's key.
            Err(Missing::Null | Missing::OutOfRange) => {}
            Err(Missing::Problem(_)) => return None,
        }
        Some(())
    }
}
