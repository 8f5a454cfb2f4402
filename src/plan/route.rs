//! Hot path: from a plan's pins and one execution's values to a shard. One hash of the key value, no allocation for one pin.
//!
//! A condition names a superset of the keys whose rows can matter. A statement runs where all of its conditions meet
//! in one shard; an empty condition matches no row anywhere, so any shard gives its (empty) answer.

use super::{
    Route, Values,
    unroutable::{KeyProblem, Unroutable},
    value::{self, Missing, Purpose, Reading, Value},
};
use crate::catalog::{
    group::{Group, GroupId},
    key::Key,
    shard::{ShardId, ShardSet},
    snapshot::Snapshot,
};
use smallvec::SmallVec;
use std::ops::Bound;

/// What decides the shard: a condition per sharded relation of the statement.
#[derive(Clone, Debug, PartialEq)]
pub struct Pins {
    pub(super) pins: SmallVec<[Pin; 1]>,
    /// A shard that the statement needs whatever its keys are.
    pub(super) fixed: Option<Fixed>,
    pub(super) reading: Reading,
}

/// A shard that does not depend on key values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fixed {
    pub(super) shard: ShardId,
    pub(super) why: Why,
}

/// Why a shard is fixed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// A table that lives on that shard only.
    Table(String),
    /// What exists once per database.
    Home,
    /// Large objects: on the home shard, unless another is named whose own are meant, as a dump of it does.
    LargeObjects,
    /// All of a group's keys live there.
    Group,
    /// The client or DBA said so; as written.
    Override(String),
}

/// A condition on the key of one relation.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Pin {
    pub(super) group: GroupId,
    /// For messages: the table and its key column.
    pub(super) table: String,
    pub(super) key: String,
    pub(super) condition: Condition,
    pub(super) role: Role,
}

/// What the relation is used for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Role {
    /// Rows that exist: a key that nothing can hold matches nothing.
    Match,
    /// New rows: each key must be given and have a shard.
    Insert,
    /// The key's new value in an UPDATE of rows whose key is `old`: must be the same value.
    Assign { old: Value },
}

/// Which keys of a relation can matter.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Condition {
    Nothing,
    Equal(Value),
    OneOf(Vec<Value>),
    /// `= ANY (array)`.
    ElementOf(Value),
    Between {
        low: Option<Edge>,
        high: Option<Edge>,
    },
    Either(Vec<Self>),
    Both(Vec<Self>),
}

/// One end of a range.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Edge {
    pub(super) value: Value,
    pub(super) inclusive: bool,
}

/// Where a condition's rows are.
enum Found {
    Nowhere,
    One(ShardId),
    Several(ShardSet),
}

impl Pins {
    /// Where this execution runs.
    pub(super) fn route(
        &self,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Result<Route, Box<Unroutable>> {
        let mut shard = self.fixed.as_ref().map(|fixed| fixed.shard);
        for pin in &self.pins {
            let found = pin.find(snapshot, values, self.reading)?;
            match (found, shard) {
                (Found::Nowhere, _) => {}
                (Found::One(one), None) => shard = Some(one),
                (Found::One(one), Some(other)) if one == other => {}
                (Found::One(one), Some(other)) => {
                    let mut set = ShardSet::one(one);
                    set.insert(other);
                    return Err(self.apart(snapshot, &set, &ShardSet::one(one)));
                }
                (Found::Several(set), _) => return Err(self.apart(snapshot, &set, &set)),
            }
        }
        let anywhere = || {
            self.pins
                .first()
                .and_then(|pin| snapshot.group(pin.group).shards().iter().next())
        };
        Ok(Route::One(shard.or_else(anywhere).unwrap_or(snapshot.home)))
    }

    /// Whether the value of this parameter, from 0, decides.
    pub(super) fn reads_parameter(&self, index: usize) -> bool {
        self.pins.iter().any(|pin| {
            let old = match &pin.role {
                Role::Assign { old } => is_parameter(old, index),
                Role::Match | Role::Insert => false,
            };
            old || pin.condition.reads_parameter(index)
        })
    }

    /// The shard of each row that an INSERT gives a key for, in order; `Err`: some row must not be inserted.
    pub(super) fn of_rows(
        &self,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Result<Vec<ShardId>, Box<Unroutable>> {
        let mut shards = Vec::new();
        for pin in &self.pins {
            let look = Look {
                group: snapshot.group(pin.group),
                values,
                reading: self.reading,
                pin,
            };
            let list: &[Value] = match &pin.condition {
                Condition::Equal(value) => std::slice::from_ref(value),
                Condition::OneOf(list) => list,
                Condition::Nothing
                | Condition::ElementOf(_)
                | Condition::Between { .. }
                | Condition::Either(_)
                | Condition::Both(_) => &[],
            };
            for value in list {
                shards.push(look.new_row(value)?);
            }
        }
        Ok(shards)
    }

    /// The shards of the rows that the first relation's condition lets through; every other relation's rows are with
    /// them.
    pub(super) fn of_first(
        &self,
        snapshot: &Snapshot,
        values: &Values<'_>,
    ) -> Result<ShardSet, Box<Unroutable>> {
        let Some(first) = self.pins.first() else {
            return Ok(ShardSet::new());
        };
        Ok(match first.find(snapshot, values, self.reading)? {
            Found::Nowhere => ShardSet::new(),
            Found::One(shard) => ShardSet::one(shard),
            Found::Several(set) => set,
        })
    }

    fn apart(&self, snapshot: &Snapshot, all: &ShardSet, keys: &ShardSet) -> Box<Unroutable> {
        let names = |set: &ShardSet| -> Vec<String> {
            set.iter()
                .filter_map(|shard| snapshot.shards.get(shard.index()).cloned())
                .collect()
        };
        Box::new(match &self.fixed {
            Some(Fixed {
                why: Why::Override(named),
                ..
            }) => Unroutable::OverrideContradicts {
                named: named.clone(),
                keys: names(keys).join(", "),
            },
            _ => Unroutable::SeveralShards { shards: names(all) },
        })
    }
}

impl Condition {
    fn reads_parameter(&self, index: usize) -> bool {
        let reads = |value: &Value| is_parameter(value, index);
        match self {
            Self::Nothing => false,
            Self::Equal(value) | Self::ElementOf(value) => reads(value),
            Self::OneOf(list) => list.iter().any(reads),
            Self::Between { low, high } => [low, high]
                .into_iter()
                .flatten()
                .any(|edge| reads(&edge.value)),
            Self::Either(parts) | Self::Both(parts) => {
                parts.iter().any(|part| part.reads_parameter(index))
            }
        }
    }
}

fn is_parameter(value: &Value, index: usize) -> bool {
    matches!(value, Value::Parameter { index: read, .. } if usize::from(*read) == index)
}

impl Pin {
    fn find(
        &self,
        snapshot: &Snapshot,
        values: &Values<'_>,
        reading: Reading,
    ) -> Result<Found, Box<Unroutable>> {
        let group = snapshot.group(self.group);
        let look = Look {
            group,
            values,
            reading,
            pin: self,
        };
        match &self.role {
            Role::Match => look.condition(&self.condition),
            Role::Insert => look.insert(&self.condition),
            Role::Assign { old } => look.assign(&self.condition, old),
        }
    }
}

/// One evaluation of a pin.
struct Look<'a> {
    group: &'a Group,
    values: &'a Values<'a>,
    reading: Reading,
    pin: &'a Pin,
}

impl Look<'_> {
    fn condition(&self, condition: &Condition) -> Result<Found, Box<Unroutable>> {
        match condition {
            Condition::Nothing => Ok(Found::Nowhere),
            Condition::Equal(value) => Ok(match self.key(value)? {
                Some(key) => self.group.shard_of(&key).map_or(Found::Nowhere, Found::One),
                None => Found::Nowhere,
            }),
            Condition::OneOf(list) => {
                let mut set = ShardSet::new();
                for value in list {
                    set.extend_with(self.key(value)?.and_then(|key| self.group.shard_of(&key)));
                }
                Ok(found(set))
            }
            Condition::ElementOf(array) => {
                let keys = value::elements(array, self.group.key_type, self.values, self.reading);
                let mut set = ShardSet::new();
                for key in keys.map_err(|missing| self.missing(missing))? {
                    set.extend_with(self.group.shard_of(&key));
                }
                Ok(found(set))
            }
            Condition::Between { low, high } => self.between(low.as_ref(), high.as_ref()),
            Condition::Either(parts) => {
                let mut set = ShardSet::new();
                for part in parts {
                    match self.condition(part)? {
                        Found::Nowhere => {}
                        Found::One(shard) => set.insert(shard),
                        Found::Several(shards) => set.union(&shards),
                    }
                }
                Ok(found(set))
            }
            Condition::Both(parts) => self.both(parts),
        }
    }

    fn both(&self, parts: &[Condition]) -> Result<Found, Box<Unroutable>> {
        let mut set: Option<ShardSet> = None;
        for part in parts {
            let shards = match self.condition(part)? {
                Found::Nowhere => return Ok(Found::Nowhere),
                Found::One(shard) => ShardSet::one(shard),
                Found::Several(shards) => shards,
            };
            match &mut set {
                None => set = Some(shards),
                Some(set) => set.intersect(&shards),
            }
        }
        Ok(found(set.unwrap_or_default()))
    }

    fn between(&self, low: Option<&Edge>, high: Option<&Edge>) -> Result<Found, Box<Unroutable>> {
        let (low, high) = (self.edge(low)?, self.edge(high)?);
        let (Some(low), Some(high)) = (low, high) else {
            return Ok(Found::Nowhere);
        };
        Ok(found(
            self.group.shards_between(low.as_ref(), high.as_ref()),
        ))
    }

    /// `None`: the bound is NULL, so that nothing is in the range.
    fn edge(&self, edge: Option<&Edge>) -> Result<Option<Bound<Key>>, Box<Unroutable>> {
        let Some(edge) = edge else {
            return Ok(Some(Bound::Unbounded));
        };
        match value::key(
            &edge.value,
            self.group.key_type,
            self.values,
            self.reading,
            Purpose::Compare,
        ) {
            Ok(key) if edge.inclusive => Ok(Some(Bound::Included(key))),
            Ok(key) => Ok(Some(Bound::Excluded(key))),
            Err(Missing::Null) => Ok(None),
            Err(Missing::OutOfRange) => Err(self.missing(Missing::Problem(KeyProblem::Ambiguous))),
            Err(missing @ Missing::Problem(_)) => Err(self.missing(missing)),
        }
    }

    fn insert(&self, condition: &Condition) -> Result<Found, Box<Unroutable>> {
        let list: &[Value] = match condition {
            Condition::Equal(value) => std::slice::from_ref(value),
            Condition::OneOf(list) => list,
            Condition::Nothing
            | Condition::ElementOf(_)
            | Condition::Between { .. }
            | Condition::Either(_)
            | Condition::Both(_) => return self.condition(condition),
        };
        let mut first = None;
        let mut several: Option<ShardSet> = None;
        for value in list {
            let shard = self.new_row(value)?;
            match first {
                None => first = Some(shard),
                Some(other) if other == shard => {}
                Some(other) => several
                    .get_or_insert_with(|| ShardSet::one(other))
                    .insert(shard),
            }
        }
        Ok(match (several, first) {
            (Some(set), _) => Found::Several(set),
            (None, Some(shard)) => Found::One(shard),
            (None, None) => Found::Nowhere,
        })
    }

    /// The shard of a new row with this key.
    fn new_row(&self, value: &Value) -> Result<ShardId, Box<Unroutable>> {
        let key = match value::key(
            value,
            self.group.key_type,
            self.values,
            self.reading,
            Purpose::Store,
        ) {
            Ok(key) => key,
            Err(Missing::Null) => {
                let (table, key) = (self.pin.table.clone(), self.pin.key.clone());
                return Err(Box::new(Unroutable::KeyNull { table, key }));
            }
            Err(Missing::OutOfRange) => {
                return Err(self.missing(Missing::Problem(KeyProblem::Malformed)));
            }
            Err(missing @ Missing::Problem(_)) => return Err(self.missing(missing)),
        };
        self.group.shard_of(&key).ok_or_else(|| {
            Box::new(Unroutable::NoShardForKey {
                group: self.group.name.clone(),
            })
        })
    }

    fn assign(&self, new: &Condition, old: &Value) -> Result<Found, Box<Unroutable>> {
        let changed = || {
            let (table, key) = (self.pin.table.clone(), self.pin.key.clone());
            Box::new(Unroutable::KeyChanged { table, key })
        };
        let Condition::Equal(new) = new else {
            return Err(changed());
        };
        match (self.key_for(new, Purpose::Store)?, self.key(old)?) {
            // No row has the old key: nothing changes.
            (_, None) => Ok(Found::Nowhere),
            (Some(new), Some(old)) if new == old => Ok(Found::Nowhere),
            _ => Err(changed()),
        }
    }

    /// The key that a value is; `None`: one that no row has.
    fn key(&self, value: &Value) -> Result<Option<Key>, Box<Unroutable>> {
        self.key_for(value, Purpose::Compare)
    }

    fn key_for(&self, value: &Value, purpose: Purpose) -> Result<Option<Key>, Box<Unroutable>> {
        match value::key(
            value,
            self.group.key_type,
            self.values,
            self.reading,
            purpose,
        ) {
            Ok(key) => Ok(Some(key)),
            Err(Missing::Null | Missing::OutOfRange) => Ok(None),
            Err(missing @ Missing::Problem(_)) => Err(self.missing(missing)),
        }
    }

    fn missing(&self, missing: Missing) -> Box<Unroutable> {
        let problem = match missing {
            Missing::Problem(problem) => problem,
            Missing::Null | Missing::OutOfRange => KeyProblem::Malformed,
        };
        Box::new(Unroutable::KeyValue {
            key: format!("{}.{}", self.pin.table, self.pin.key),
            problem,
        })
    }
}

fn found(set: ShardSet) -> Found {
    match set.single() {
        Some(shard) => Found::One(shard),
        None if set.is_empty() => Found::Nowhere,
        None => Found::Several(set),
    }
}

/// Adding what may be none.
trait Extend {
    fn extend_with(&mut self, shard: Option<ShardId>);
}

impl Extend for ShardSet {
    fn extend_with(&mut self, shard: Option<ShardId>) {
        if let Some(shard) = shard {
            self.insert(shard);
        }
    }
}
