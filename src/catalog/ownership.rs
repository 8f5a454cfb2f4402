//! Who owns which keys, as proxies keep it for each other: the groups' maps with shards by name. Pure.
//!
//! What must stay true: it says of every key of a group what [`Group::shard_of`] says under the map made of it; a moved
//! key has one owner before and one after; two agree about a group exactly if every key that has an owner in the first has
//! the same owner in the second.

mod judge;
mod kept;
mod moves;
mod stored;
mod words;

pub use judge::{Disagreement, What};
pub use kept::{Content, Declared, Moving};
pub use moves::Unmovable;

use super::{
    group::{Group, Map, RangeEntry},
    hash::{HashFunction, bucket},
    key::{Key, KeyType},
    shard::ShardId,
    snapshot::Snapshot,
};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// The owners of all groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ownership {
    pub(super) groups: BTreeMap<String, Owned>,
}

/// The owners of one group's keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "stored::Stored", into = "stored::Stored")]
pub(super) struct Owned {
    pub(super) key_type: KeyType,
    pub(super) owners: Owners,
    /// Single keys whose owner is not that of their bucket or range. A list has none: they are values of it.
    pub(super) pins: BTreeMap<Key, String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Owners {
    /// The owner of each bucket.
    Hash {
        function: HashFunction,
        buckets: Vec<String>,
    },
    /// Each up to its bound, which is not in it. Neighbours with one owner are one range; the last has no bound.
    Range(Vec<(Option<Key>, String)>),
    List {
        values: BTreeMap<Key, String>,
        other: Option<String>,
    },
}

/// A group's map, and the single keys that are elsewhere.
pub type Mapped = (Map, BTreeMap<Key, ShardId>);

/// The map names a shard that the configuration does not have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the map names shard {0}")]
pub struct UnknownShard(pub String);

impl Ownership {
    /// Of a snapshot.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let groups = snapshot.groups.iter();
        let groups = groups.map(|group| (group.name.clone(), Owned::of(group, snapshot)));
        Self {
            groups: groups.collect(),
        }
    }

    /// The names of the groups.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.keys().map(String::as_str)
    }

    /// Whether it has a group of that name.
    #[must_use]
    pub fn has(&self, group: &str) -> bool {
        self.groups.contains_key(group)
    }

    /// The type of a group's keys.
    #[must_use]
    pub fn key_type(&self, group: &str) -> Option<KeyType> {
        self.groups.get(group).map(|owned| owned.key_type)
    }

    /// Who owns a key; `None`: nobody, or there is no such group.
    #[must_use]
    pub fn owner(&self, group: &str, key: &Key) -> Option<&str> {
        self.groups.get(group)?.owner(key).map(String::as_str)
    }

    /// Every shard that owns keys.
    #[must_use]
    pub fn shards(&self) -> BTreeSet<String> {
        let shards = self.groups.values().flat_map(Owned::shards);
        shards.cloned().collect()
    }

    /// What a group's shards have, in which unit: buckets, ranges or values, and single keys.
    #[must_use]
    pub fn held(&self, group: &str) -> (&'static str, BTreeMap<&str, (usize, usize)>) {
        let mut counts: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let Some(owned) = self.groups.get(group) else {
            return ("", counts);
        };
        let (unit, each): (_, Vec<&String>) = match &owned.owners {
            Owners::Hash { buckets, .. } => ("buckets", buckets.iter().collect()),
            Owners::Range(ranges) => ("ranges", ranges.iter().map(|(_, of)| of).collect()),
            Owners::List { values, other } => ("values", values.values().chain(other).collect()),
        };
        for shard in each {
            counts.entry(shard).or_default().0 += 1;
        }
        for shard in owned.pins.values() {
            counts.entry(shard).or_default().1 += 1;
        }
        (unit, counts)
    }

    /// The map of a group, and the single keys that are elsewhere; `None`: there is no such group.
    ///
    /// # Errors
    /// [`UnknownShard`].
    pub fn map_of(
        &self,
        group: &str,
        shard: impl Fn(&str) -> Option<ShardId>,
    ) -> Result<Option<Mapped>, UnknownShard> {
        let Some(owned) = self.groups.get(group) else {
            return Ok(None);
        };
        owned.map(shard).map(Some)
    }
}

impl Owned {
    fn of(group: &Group, snapshot: &Snapshot) -> Self {
        let name = |shard: &ShardId| {
            let name = snapshot.shards.get(shard.index());
            name.cloned().unwrap_or_default()
        };
        let pins = group.pins.iter();
        let mut pins: BTreeMap<Key, String> = pins
            .map(|(key, shard)| (key.clone(), name(shard)))
            .collect();
        let owners = match &group.map {
            Map::Hash { function, shards } => Owners::Hash {
                function: *function,
                buckets: shards.iter().map(name).collect(),
            },
            Map::Range(entries) => {
                let entries = entries.iter();
                Owners::range(entries.map(|entry| (entry.to.clone(), name(&entry.shard))))
            }
            Map::List { values, other } => {
                let values = values.iter().map(|(key, shard)| (key.clone(), name(shard)));
                Owners::List {
                    values: values.chain(std::mem::take(&mut pins)).collect(),
                    other: other.as_ref().map(name),
                }
            }
        };
        Self {
            key_type: group.key_type,
            owners,
            pins,
        }
    }

    pub(super) fn owner(&self, key: &Key) -> Option<&String> {
        if key.key_type() != self.key_type {
            return None;
        }
        self.pins.get(key).or_else(|| self.owners.owner(key))
    }

    fn shards(&self) -> impl Iterator<Item = &String> {
        self.owners.shards().into_iter().chain(self.pins.values())
    }

    fn map(&self, shard: impl Fn(&str) -> Option<ShardId>) -> Result<Mapped, UnknownShard> {
        let find = |name: &String| shard(name).ok_or_else(|| UnknownShard(name.clone()));
        let keys = |keys: &BTreeMap<Key, String>| {
            let keys = keys.iter();
            keys.map(|(key, name)| Ok((key.clone(), find(name)?)))
                .collect::<Result<BTreeMap<_, _>, _>>()
        };
        let map = match &self.owners {
            Owners::Hash { function, buckets } => Map::Hash {
                function: *function,
                shards: buckets.iter().map(find).collect::<Result<_, _>>()?,
            },
            Owners::Range(ranges) => {
                let entry = |(to, name): &(Option<Key>, String)| {
                    Ok(RangeEntry {
                        to: to.clone(),
                        shard: find(name)?,
                    })
                };
                Map::Range(ranges.iter().map(entry).collect::<Result<_, _>>()?)
            }
            Owners::List { values, other } => Map::List {
                values: keys(values)?,
                other: other.as_ref().map(find).transpose()?,
            },
        };
        Ok((map, keys(&self.pins)?))
    }
}

impl Owners {
    /// Neighbours with one owner joined.
    pub(super) fn range(entries: impl IntoIterator<Item = (Option<Key>, String)>) -> Self {
        let mut ranges: Vec<(Option<Key>, String)> = Vec::new();
        for (to, owner) in entries {
            match ranges.last_mut() {
                Some((last_to, last)) if *last == owner => *last_to = to,
                _ => ranges.push((to, owner)),
            }
        }
        Self::Range(ranges)
    }

    pub(super) fn owner(&self, key: &Key) -> Option<&String> {
        match self {
            Self::Hash { function, buckets } => {
                let count = u32::try_from(buckets.len()).ok()?;
                buckets.get(bucket(*function, count, key) as usize)
            }
            Self::Range(ranges) => {
                let at = ranges.partition_point(|(to, _)| to.as_ref().is_some_and(|to| to <= key));
                ranges.get(at).map(|(_, owner)| owner)
            }
            Self::List { values, other } => values.get(key).or(other.as_ref()),
        }
    }

    pub(super) fn shards(&self) -> BTreeSet<&String> {
        match self {
            Self::Hash { buckets, .. } => buckets.iter().collect(),
            Self::Range(ranges) => ranges.iter().map(|(_, owner)| owner).collect(),
            Self::List { values, other } => values.values().chain(other).collect(),
        }
    }
}

#[cfg(test)]
mod tests;
