//! Owners before and after: which keys a shard owns, what moves between two maps, and the map after moves.
//!
//! What must stay true: a set has a key exactly if the map says so; of two maps every key whose owner changes is in
//! exactly one move, and no other key is in any.

use super::{Owned, Owners, Ownership};
use crate::catalog::{
    hash::HashFunction,
    key::Key,
    moving::{KeySet, Move, Part},
};
use std::collections::{BTreeMap, BTreeSet};

/// Why keys cannot be moved as it was said.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unmovable {
    #[error("there is no group {0}: SHOW MAP on a proxy's console has all")]
    NoGroup(String),
    #[error(
        "the method, the hash or the type of the key of group {0} is another than when this was planned: plan it again (shardway \
         reshard plan)"
    )]
    Method(String),
    /// No server computes its buckets.
    #[error(
        "the hash of group {0} is xxh3, which no server computes: its keys stay where they are; to move some, make a group with \
         hash = \"postgres\" and copy the rows into its tables"
    )]
    Hash(String),
    #[error(
        "keys of group {group} that are to leave shard {from} are not all its own any more: the map has changed since; plan it \
         again (shardway reshard plan; SHOW MAP has the owners)"
    )]
    NotOwned { group: String, from: String },
    #[error("keys of group {0} would have no owner any more: name the shard that gets them")]
    Lost(String),
}

impl Ownership {
    /// What a shard owns of a group; `None`: there is no such group, or no set says it (its hash is `xxh3`).
    #[must_use]
    pub fn sets_of(&self, group: &str, shard: &str) -> Option<KeySet> {
        let owned = self.groups.get(group)?;
        let pieces = owned.pieces(1);
        let part = pieces.part(|of| of.is_some_and(|of| of == shard))?;
        let special = owned.pins.keys();
        Some(exactly(part, special, |key| {
            owned.owner(key).is_some_and(|of| of == shard)
        }))
    }

    /// What has another owner in the second than in the first, by group and pair of shards. Groups that only one of them
    /// has, and values that only get their first owner, move nothing.
    ///
    /// # Errors
    /// `Method`, `Hash`, `Lost`.
    pub fn differences(before: &Self, after: &Self) -> Result<Vec<Move>, Unmovable> {
        let mut moves = Vec::new();
        for (group, before) in &before.groups {
            if let Some(after) = after.groups.get(group)
                && before != after
            {
                moves.extend(between(group, before, after)?);
            }
        }
        Ok(moves)
    }

    /// The owners after these moves.
    ///
    /// # Errors
    /// `NoGroup`, `Method`, `Hash`, `NotOwned`.
    pub fn apply(&self, moves: &[Move]) -> Result<Self, Unmovable> {
        let mut after = self.clone();
        let groups: BTreeSet<&String> = moves.iter().map(|it| &it.group).collect();
        for group in groups {
            let before = self
                .groups
                .get(group)
                .ok_or_else(|| Unmovable::NoGroup(group.clone()))?;
            let moves: Vec<&Move> = moves.iter().filter(|it| it.group == *group).collect();
            let made = before.after(group, &moves)?;
            after.groups.insert(group.clone(), made);
        }
        Ok(after)
    }
}

/// What moves between two maps of one group.
fn between(group: &str, before: &Owned, after: &Owned) -> Result<Vec<Move>, Unmovable> {
    let method = || Unmovable::Method(group.to_owned());
    if before.key_type != after.key_type {
        return Err(method());
    }
    let least = before.owners.buckets().max(after.owners.buckets());
    let pieces = before
        .pieces(least)
        .with(&after.pieces(least))
        .ok_or_else(method)?;
    let special: BTreeSet<&Key> = before.pins.keys().chain(after.pins.keys()).collect();
    let pair = |key: &Key| (before.owner(key), after.owner(key));
    let pairs = pieces.owners();
    let mut pairs: BTreeSet<_> = pairs.iter().map(|(one, other)| (*one, *other)).collect();
    pairs.extend(special.iter().map(|key| pair(key)));
    let mut moves = Vec::new();
    for (from, to) in pairs {
        let Some(from) = from.filter(|from| Some(*from) != to) else {
            continue;
        };
        let part = pieces
            .part(|of| of == (Some(from), to))
            .ok_or_else(|| Unmovable::Hash(group.to_owned()))?;
        let keys = exactly(part, special.iter().copied(), |key| {
            pair(key) == (Some(from), to)
        });
        if keys.part == Part::None && keys.with.is_empty() {
            continue;
        }
        let to = to.ok_or_else(|| Unmovable::Lost(group.to_owned()))?;
        moves.push(Move {
            group: group.to_owned(),
            keys,
            from: from.clone(),
            to: to.clone(),
        });
    }
    Ok(moves)
}

/// The set that has of these keys those that it is to have, and of all others those of the part.
fn exactly<'a>(
    part: Part,
    special: impl Iterator<Item = &'a Key>,
    has: impl Fn(&Key) -> bool,
) -> KeySet {
    let mut keys = KeySet::of(part);
    for key in special {
        match (keys.contains(key), has(key)) {
            (false, true) => keys.with.push(key.clone()),
            (true, false) => keys.without.push(key.clone()),
            (true, true) | (false, false) => {}
        }
    }
    keys
}

/// The pieces of a group's keys that one thing is said of, single keys apart.
enum Pieces<T> {
    Hash(HashFunction, Vec<T>),
    Range(Vec<(Option<Key>, T)>),
    List(BTreeMap<Key, T>, T),
}

impl Owned {
    /// The owners of pieces, at least so many buckets.
    fn pieces(&self, least: usize) -> Pieces<Option<&String>> {
        match &self.owners {
            Owners::Hash { function, buckets } => {
                let count = buckets.len().max(least);
                let each = buckets.iter().cycle().take(count);
                Pieces::Hash(*function, each.map(Some).collect())
            }
            Owners::Range(ranges) => {
                let each = ranges.iter();
                Pieces::Range(each.map(|(to, of)| (to.clone(), Some(of))).collect())
            }
            Owners::List { values, other } => {
                let each = values.iter();
                let values = each.map(|(key, of)| (key.clone(), Some(of))).collect();
                Pieces::List(values, other.as_ref())
            }
        }
    }

    /// The owners after moves of this group.
    fn after(&self, group: &str, moves: &[&Move]) -> Result<Self, Unmovable> {
        if self.owners.is_hashed_by(HashFunction::Xxh3) {
            return Err(Unmovable::Hash(group.to_owned()));
        }
        let mut special: BTreeSet<&Key> = self.pins.keys().collect();
        let mut owners = self.owners.clone();
        for it in moves {
            let named = it.keys.with.iter().chain(&it.keys.without);
            special.extend(named);
            owners.give(group, &it.keys.part, &it.from, &it.to)?;
        }
        let mut after = Self {
            key_type: self.key_type,
            owners,
            pins: BTreeMap::new(),
        };
        for key in special {
            let mut taking = moves.iter().filter(|it| it.keys.contains(key));
            let owner = match (taking.next(), taking.next()) {
                (None, _) => self.owner(key),
                (Some(it), None) if self.owner(key) == Some(&it.from) => Some(&it.to),
                (Some(it), _) => {
                    return Err(Unmovable::NotOwned {
                        group: group.to_owned(),
                        from: it.from.clone(),
                    });
                }
            };
            let owner = owner.ok_or_else(|| Unmovable::Lost(group.to_owned()))?;
            after.pin(key, owner);
        }
        Ok(after)
    }

    fn pin(&mut self, key: &Key, owner: &String) {
        if self.owners.owner(key) == Some(owner) {
            return;
        }
        if let Owners::List { values, .. } = &mut self.owners {
            values.insert(key.clone(), owner.clone());
        } else {
            self.pins.insert(key.clone(), owner.clone());
        }
    }
}

impl Owners {
    fn buckets(&self) -> usize {
        match self {
            Self::Hash { buckets, .. } => buckets.len(),
            Self::Range(_) | Self::List { .. } => 1,
        }
    }

    fn is_hashed_by(&self, by: HashFunction) -> bool {
        matches!(self, Self::Hash { function, .. } if *function == by)
    }

    /// Gives a part to another owner. What of it is not `from`'s is pinned, or it is an error.
    fn give(&mut self, group: &str, part: &Part, from: &str, to: &str) -> Result<(), Unmovable> {
        let not_owned = || Unmovable::NotOwned {
            group: group.to_owned(),
            from: from.to_owned(),
        };
        match (self, part) {
            (_, Part::None) => Ok(()),
            (Self::Hash { buckets, .. }, Part::Buckets { of, runs }) => {
                let count = buckets.len().max(*of as usize);
                *buckets = buckets.iter().cycle().take(count).cloned().collect();
                for (bucket, owner) in buckets.iter_mut().enumerate() {
                    let at = bucket & (*of as usize).saturating_sub(1);
                    let within =
                        |(first, end): &(u32, u32)| (*first as usize..*end as usize).contains(&at);
                    if runs.iter().any(within) {
                        if owner != from {
                            return Err(not_owned());
                        }
                        to.clone_into(owner);
                    }
                }
                Ok(())
            }
            (Self::Range(ranges), Part::Ranges(moved)) => {
                let given = given_ranges(ranges, moved, (from, to)).ok_or_else(not_owned)?;
                if let Self::Range(joined) = Self::range(given) {
                    *ranges = joined;
                }
                Ok(())
            }
            (Self::List { values, other }, Part::Values(moved)) => {
                for key in moved {
                    if values
                        .get(key)
                        .or(other.as_ref())
                        .is_none_or(|of| of != from)
                    {
                        return Err(not_owned());
                    }
                    values.insert(key.clone(), to.to_owned());
                }
                Ok(())
            }
            (Self::List { values, other }, Part::Others(stay)) => {
                if other.as_deref() != Some(from) {
                    return Err(not_owned());
                }
                for key in stay {
                    values.entry(key.clone()).or_insert_with(|| from.to_owned());
                }
                for (key, owner) in &mut *values {
                    if !stay.contains(key) {
                        if owner != from {
                            return Err(not_owned());
                        }
                        to.clone_into(owner);
                    }
                }
                *other = Some(to.to_owned());
                Ok(())
            }
            (_, _) => Err(Unmovable::Method(group.to_owned())),
        }
    }
}

/// Ranges of which some were given from one shard to another; `None`: not all of them were its own.
fn given_ranges(
    ranges: &[(Option<Key>, String)],
    moved: &[(Option<Key>, Option<Key>)],
    (from, to): (&str, &str),
) -> Option<Vec<(Option<Key>, String)>> {
    let edges = moved.iter().flat_map(|(low, high)| [low, high]).flatten();
    let mut bounds: BTreeSet<&Key> = edges.collect();
    bounds.extend(ranges.iter().filter_map(|(bound, _)| bound.as_ref()));
    let mut given = Vec::new();
    let mut low: Option<&Key> = None;
    for high in bounds.into_iter().map(Some).chain([None]) {
        let within = |(first, end): &(Option<Key>, Option<Key>)| {
            let begins = first.is_none() || (low.is_some() && first.as_ref() <= low);
            let ends = end.is_none() || (high.is_some() && high <= end.as_ref());
            begins && ends
        };
        let owner = below(ranges, high)?;
        let owner = match moved.iter().any(within) {
            true if *owner != from => return None,
            true => to.to_owned(),
            false => owner.clone(),
        };
        given.push((high.cloned(), owner));
        low = high;
    }
    Some(given)
}

impl<T: Copy + PartialEq> Pieces<T> {
    /// What both say of each piece; `None`: they are of different methods.
    fn with<U: Copy + PartialEq>(&self, other: &Pieces<U>) -> Option<Pieces<(T, U)>> {
        match (self, other) {
            (Self::Hash(function, one), Pieces::Hash(same, other)) if function == same => {
                let both = one.iter().copied().zip(other.iter().copied());
                Some(Pieces::Hash(*function, both.collect()))
            }
            (Self::Range(one), Pieces::Range(other)) => {
                let bounds = one.iter().map(|(to, _)| to);
                let mut bounds: Vec<&Option<Key>> =
                    bounds.chain(other.iter().map(|(to, _)| to)).collect();
                // No bound is the last.
                bounds.sort_by_key(|to| (to.is_none(), *to));
                bounds.dedup();
                let both = bounds.into_iter().map(|to| {
                    let pair = (*below(one, to.as_ref())?, *below(other, to.as_ref())?);
                    Some((to.clone(), pair))
                });
                both.collect::<Option<_>>().map(Pieces::Range)
            }
            (Self::List(one, one_other), Pieces::List(other, other_other)) => {
                let keys: BTreeSet<&Key> = one.keys().chain(other.keys()).collect();
                let pair = |key: &Key| {
                    let one = one.get(key).copied().unwrap_or(*one_other);
                    (one, other.get(key).copied().unwrap_or(*other_other))
                };
                let both = keys.into_iter().map(|key| (key.clone(), pair(key)));
                Some(Pieces::List(both.collect(), (*one_other, *other_other)))
            }
            (_, _) => None,
        }
    }

    /// All that is said.
    fn owners(&self) -> Vec<&T> {
        match self {
            Self::Hash(_, each) => each.iter().collect(),
            Self::Range(each) => each.iter().map(|(_, of)| of).collect(),
            Self::List(values, other) => values.values().chain([other]).collect(),
        }
    }

    /// The pieces of which it is said; `None`: buckets that no set can name.
    fn part(&self, wanted: impl Fn(T) -> bool) -> Option<Part> {
        Some(match self {
            Self::Hash(HashFunction::Xxh3, _) => return None,
            Self::Hash(HashFunction::Postgres, each) => {
                let mut runs: Vec<(u32, u32)> = Vec::new();
                for (at, _) in (0_u32..).zip(each).filter(|(_, of)| wanted(**of)) {
                    match runs.last_mut() {
                        Some((_, end)) if *end == at => *end += 1,
                        _ => runs.push((at, at + 1)),
                    }
                }
                let of = u32::try_from(each.len()).ok()?;
                some(runs, |runs| Part::Buckets { of, runs })
            }
            Self::Range(each) => {
                let mut ranges: Vec<(Option<Key>, Option<Key>)> = Vec::new();
                let mut low: Option<Key> = None;
                let mut open = false;
                for (to, of) in each {
                    let now = wanted(*of);
                    match ranges.last_mut() {
                        Some((_, end)) if open && now => *end = to.clone(),
                        _ if now => ranges.push((low.clone(), to.clone())),
                        _ => {}
                    }
                    open = now;
                    low.clone_from(to);
                }
                some(ranges, Part::Ranges)
            }
            Self::List(values, other) => {
                let others = wanted(*other);
                let named = values.iter().filter(|(_, of)| wanted(**of) != others);
                let named: Vec<Key> = named.map(|(key, _)| key.clone()).collect();
                if others {
                    Part::Others(named)
                } else {
                    some(named, Part::Values)
                }
            }
        })
    }
}

/// What is said of the keys right below a bound.
fn below<'a, T>(ranges: &'a [(Option<Key>, T)], bound: Option<&Key>) -> Option<&'a T> {
    let reaches = |end: &Option<Key>| match (end, bound) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(end), Some(bound)) => end >= bound,
    };
    let mut found = ranges.iter().filter(|(end, _)| reaches(end));
    found.next().map(|(_, of)| of)
}

fn some<T>(pieces: Vec<T>, part: impl FnOnce(Vec<T>) -> Part) -> Part {
    if pieces.is_empty() {
        Part::None
    } else {
        part(pieces)
    }
}
