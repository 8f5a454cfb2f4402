//! A colocation group: tables that share a shard key and the map from its values to shards.
//!
//! Maps are made by [`Map::even_hash`], [`Map::range`] and [`Map::list`], which hold what the look-ups rely on:
//! a power of two of buckets, ascending ranges, keys of the group's type.

use super::{
    hash::{HashFunction, bucket},
    key::Key,
    key::KeyType,
    moving::Doubled,
    shard::{ShardId, ShardSet},
};
use std::collections::{BTreeMap, btree_map::Entry};
use std::ops::Bound;

/// The most buckets that a hash group may have.
pub const BUCKETS_LIMIT: u32 = 1 << 16;

/// A group's place in its database's list of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// Tables that share a shard key and its map.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub name: String,
    pub key_type: KeyType,
    pub map: Map,
    /// Single keys that another shard has than the map says.
    pub pins: BTreeMap<Key, ShardId>,
    /// Rows that are on a shard too that does not own them, while a reshard is under way.
    pub doubled: Vec<Doubled>,
}

/// Which shard holds which key values.
#[derive(Clone, Debug, PartialEq)]
pub enum Map {
    /// `shards[bucket(key)]`; the length is the number of buckets.
    Hash {
        function: HashFunction,
        shards: Box<[ShardId]>,
    },
    /// Ascending, each entry holding the keys below `to` that no earlier entry holds; the last has no bound.
    Range(Box<[RangeEntry]>),
    /// Listed values; `other` holds every value that is not listed (`"*"` in the configuration).
    List {
        values: BTreeMap<Key, ShardId>,
        other: Option<ShardId>,
    },
}

/// One range of a range map.
#[derive(Clone, Debug, PartialEq)]
pub struct RangeEntry {
    /// Exclusive upper bound; `None`: no bound.
    pub to: Option<Key>,
    pub shard: ShardId,
}

/// Why a map cannot be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MapError {
    /// Not a power of two from 1 to [`BUCKETS_LIMIT`].
    Buckets(u32),
    /// Fewer buckets than shards, or no shard at all.
    TooManyShards { buckets: u32, shards: usize },
    /// The range at this index does not end above the one before it.
    NotAscending(usize),
    /// The range at this index has no bound though others follow.
    UnboundedBefore(usize),
    /// The last range has a bound, so that keys from it on have no place.
    BoundedLast(usize),
    /// No range.
    NoRange,
    /// The list entry at this index was listed before.
    ListedTwice(usize),
}

impl Map {
    /// The buckets split evenly, in order: bucket `b` belongs to shard number `b * shards / buckets`.
    ///
    /// # Errors
    /// `Buckets`, `TooManyShards`.
    pub fn even_hash(
        function: HashFunction,
        buckets: u32,
        shards: &[ShardId],
    ) -> Result<Self, MapError> {
        if !buckets.is_power_of_two() || buckets > BUCKETS_LIMIT {
            return Err(MapError::Buckets(buckets));
        }
        let count = buckets as usize;
        if shards.is_empty() || shards.len() > count {
            return Err(MapError::TooManyShards {
                buckets,
                shards: shards.len(),
            });
        }
        let shards = (0..count)
            .map(|bucket| shards[bucket * shards.len() / count])
            .collect();
        Ok(Self::Hash { function, shards })
    }

    /// Ranges in ascending order, the last without a bound.
    ///
    /// # Errors
    /// `NotAscending`, `UnboundedBefore`, `BoundedLast`, `NoRange`.
    pub fn range(entries: Vec<RangeEntry>) -> Result<Self, MapError> {
        let last = entries.len().checked_sub(1).ok_or(MapError::NoRange)?;
        for (at, entry) in entries.iter().enumerate() {
            match (&entry.to, at == last) {
                (None, false) => return Err(MapError::UnboundedBefore(at)),
                (Some(_), true) => return Err(MapError::BoundedLast(at)),
                (None, true) | (Some(_), false) => {}
            }
            if at > 0 && entry.to.is_some() && entry.to <= entries[at - 1].to {
                return Err(MapError::NotAscending(at));
            }
        }
        Ok(Self::Range(entries.into()))
    }

    /// Listed values, each once, and where all others go.
    ///
    /// # Errors
    /// `ListedTwice`.
    pub fn list(
        listed: impl IntoIterator<Item = (Key, ShardId)>,
        other: Option<ShardId>,
    ) -> Result<Self, MapError> {
        let mut values = BTreeMap::new();
        for (at, (key, shard)) in listed.into_iter().enumerate() {
            match values.entry(key) {
                Entry::Vacant(place) => place.insert(shard),
                Entry::Occupied(_) => return Err(MapError::ListedTwice(at)),
            };
        }
        Ok(Self::List { values, other })
    }
}

impl Group {
    /// The shard that holds rows with this key; `None` when a list map has no place for it,
    /// or when the key is not of the group's type.
    #[must_use]
    pub fn shard_of(&self, key: &Key) -> Option<ShardId> {
        if key.key_type() != self.key_type {
            return None;
        }
        if !self.pins.is_empty()
            && let Some(shard) = self.pins.get(key)
        {
            return Some(*shard);
        }
        match &self.map {
            Map::Hash { function, shards } => shards
                .get(bucket(*function, u32::try_from(shards.len()).ok()?, key) as usize)
                .copied(),
            Map::Range(entries) => entries.get(entry_of(entries, key)).map(|entry| entry.shard),
            Map::List { values, other } => values.get(key).copied().or(*other),
        }
    }

    /// The shards that may hold keys between the bounds: all of the group's for a hash map; the overlapping entries
    /// of a range map; the listed values between the bounds of a list map, and always the shard of all others.
    /// All of the group's for text too: servers order it by the column's collation, which need not be ours.
    #[must_use]
    pub fn shards_between(&self, low: Bound<&Key>, high: Bound<&Key>) -> ShardSet {
        let foreign = |bound: Bound<&Key>| match bound {
            Bound::Included(key) | Bound::Excluded(key) => key.key_type() != self.key_type,
            Bound::Unbounded => false,
        };
        let bounded = low != Bound::Unbounded || high != Bound::Unbounded;
        if foreign(low) || foreign(high) || (self.key_type == KeyType::Text && bounded) {
            return self.shards();
        }
        if is_empty(low, high) {
            return ShardSet::new();
        }
        let pinned = self.pins.range::<Key, _>((low, high));
        let pinned = pinned.map(|(_, shard)| *shard);
        match &self.map {
            Map::Hash { .. } => self.shards(),
            Map::Range(entries) => {
                let first = match low {
                    Bound::Unbounded => 0,
                    Bound::Included(key) | Bound::Excluded(key) => entry_of(entries, key),
                };
                let last = match high {
                    Bound::Unbounded => entries.len(),
                    Bound::Included(key) => entry_of(entries, key),
                    // Keys below a bound of the map end in the entry that ends there.
                    Bound::Excluded(key) => entries
                        .partition_point(|entry| entry.to.as_ref().is_some_and(|to| to < key)),
                };
                entries
                    .iter()
                    .take(last.saturating_add(1))
                    .skip(first)
                    .map(|entry| entry.shard)
                    .chain(pinned)
                    .collect()
            }
            Map::List { values, other } => values
                .range::<Key, _>((low, high))
                .map(|(_, shard)| *shard)
                .chain(*other)
                .chain(pinned)
                .collect(),
        }
    }

    /// Every shard that has keys.
    #[must_use]
    pub fn shards(&self) -> ShardSet {
        let mut shards: ShardSet = match &self.map {
            Map::Hash { shards, .. } => shards.iter().copied().collect(),
            Map::Range(entries) => entries.iter().map(|entry| entry.shard).collect(),
            Map::List { values, other } => values.values().copied().chain(*other).collect(),
        };
        for shard in self.pins.values() {
            shards.insert(*shard);
        }
        shards
    }
}

/// The index of the entry that holds the key.
fn entry_of(entries: &[RangeEntry], key: &Key) -> usize {
    entries.partition_point(|entry| entry.to.as_ref().is_some_and(|to| to <= key))
}

/// Whether no value lies between the bounds, whatever the values are.
fn is_empty(low: Bound<&Key>, high: Bound<&Key>) -> bool {
    match (low, high) {
        (Bound::Unbounded, _) | (_, Bound::Unbounded) => false,
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (
            Bound::Included(low) | Bound::Excluded(low),
            Bound::Included(high) | Bound::Excluded(high),
        ) => low >= high,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: [ShardId; 3] = [ShardId(0), ShardId(1), ShardId(2)];

    fn key(value: i64) -> Key {
        Key::Bigint(value)
    }

    fn group(map: Map) -> Group {
        Group {
            name: "g".to_owned(),
            key_type: KeyType::Bigint,
            map,
            pins: BTreeMap::new(),
            doubled: Vec::new(),
        }
    }

    fn to(bound: Option<i64>, shard: ShardId) -> RangeEntry {
        RangeEntry {
            to: bound.map(key),
            shard,
        }
    }

    /// s0 below 10, s1 below 20, s0 below 30, s2 from there.
    fn ranges() -> Group {
        let entries = vec![
            to(Some(10), S[0]),
            to(Some(20), S[1]),
            to(Some(30), S[0]),
            to(None, S[2]),
        ];
        group(Map::range(entries).unwrap())
    }

    #[test]
    fn buckets_are_split_evenly_in_order() {
        let Map::Hash { shards, .. } = Map::even_hash(HashFunction::Postgres, 1024, &S).unwrap()
        else {
            panic!()
        };
        let count = |shard| shards.iter().filter(|owner| **owner == shard).count();
        assert_eq!((count(S[0]), count(S[1]), count(S[2])), (342, 341, 341));
        assert!(shards.is_sorted());
        let even =
            |buckets, shards: &[ShardId]| Map::even_hash(HashFunction::Xxh3, buckets, shards);
        assert_eq!(even(1000, &S), Err(MapError::Buckets(1000)));
        assert_eq!(
            even(2, &S),
            Err(MapError::TooManyShards {
                buckets: 2,
                shards: 3
            })
        );
        assert_eq!(even(0, &S), Err(MapError::Buckets(0)));
    }

    #[test]
    fn a_key_is_in_the_range_that_begins_at_or_below_it() {
        for (value, shard) in [
            (-5, 0),
            (9, 0),
            (10, 1),
            (19, 1),
            (20, 0),
            (29, 0),
            (30, 2),
            (i64::MAX, 2),
        ] {
            assert_eq!(
                ranges().shard_of(&key(value)),
                Some(ShardId(shard)),
                "{value}"
            );
        }
        assert_eq!(ranges().shard_of(&Key::Date(1)), None);
    }

    #[test]
    fn ranges_between_bounds_are_exactly_those_that_overlap() {
        use Bound::{Excluded, Included, Unbounded};
        let shards = |low: Bound<i64>, high: Bound<i64>| {
            let (low, high) = (low.map(key), high.map(key));
            ranges()
                .shards_between(low.as_ref(), high.as_ref())
                .iter()
                .map(|shard| shard.0)
                .collect::<Vec<_>>()
        };
        assert_eq!(shards(Included(10), Excluded(20)), [1]);
        assert_eq!(shards(Included(10), Included(20)), [0, 1]);
        assert_eq!(shards(Included(25), Included(25)), [0]);
        assert_eq!(shards(Unbounded, Excluded(10)), [0]);
        assert_eq!(shards(Unbounded, Included(10)), [0, 1]);
        assert_eq!(shards(Included(30), Unbounded), [2]);
        assert_eq!(shards(Unbounded, Unbounded), [0, 1, 2]);
        assert_eq!(shards(Included(20), Excluded(20)), Vec::<u16>::new());
        assert_eq!(shards(Included(21), Included(20)), Vec::<u16>::new());
    }

    #[test]
    fn order_of_text_is_left_to_the_server() {
        let text = |text: &str| Key::Text(text.as_bytes().into());
        let entries = vec![
            RangeEntry {
                to: Some(text("m")),
                shard: S[0],
            },
            to(None, S[1]),
        ];
        let group = Group {
            name: "g".to_owned(),
            key_type: KeyType::Text,
            map: Map::range(entries).unwrap(),
            pins: BTreeMap::new(),
            doubled: Vec::new(),
        };
        assert_eq!(group.shard_of(&text("B")), Some(S[0]));
        // In most collations 'Z' < 'b', and here 'Z' is on the first shard, 'z' on the second.
        assert_eq!(
            group
                .shards_between(Bound::Included(&text("n")), Bound::Unbounded)
                .len(),
            2
        );
    }

    #[test]
    fn maps_that_cannot_be_are_refused() {
        assert_eq!(Map::range(vec![]), Err(MapError::NoRange));
        assert_eq!(
            Map::range(vec![to(Some(1), S[0])]),
            Err(MapError::BoundedLast(0))
        );
        assert_eq!(
            Map::range(vec![to(None, S[0]), to(None, S[1])]),
            Err(MapError::UnboundedBefore(0))
        );
        let overlapping = vec![to(Some(2), S[0]), to(Some(2), S[1]), to(None, S[0])];
        assert_eq!(Map::range(overlapping), Err(MapError::NotAscending(1)));
        assert_eq!(
            Map::list([(key(1), S[0]), (key(1), S[1])], None),
            Err(MapError::ListedTwice(1))
        );
    }

    #[test]
    fn lists_send_what_is_not_listed_to_the_other_shard_or_nowhere() {
        let listed = [(key(1), S[0]), (key(5), S[1])];
        let closed = group(Map::list(listed.clone(), None).unwrap());
        assert_eq!(closed.shard_of(&key(5)), Some(S[1]));
        assert_eq!(closed.shard_of(&key(2)), None);
        let between = closed.shards_between(Bound::Excluded(&key(1)), Bound::Unbounded);
        assert_eq!(between.single(), Some(S[1]));
        let open = group(Map::list(listed, Some(S[2])).unwrap());
        assert_eq!(open.shard_of(&key(2)), Some(S[2]));
        assert_eq!(
            open.shards_between(Bound::Included(&key(5)), Bound::Included(&key(5)))
                .len(),
            2
        );
    }
}
