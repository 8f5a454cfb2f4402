//! Shards and sets of them.

use smallvec::SmallVec;

/// A shard's place in its database's list of shards, as the configuration orders them by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ShardId(pub u16);

impl ShardId {
    /// The place as an index.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A set of shards of one database; no allocation up to 128 shards.
#[derive(Clone, Debug, Default)]
pub struct ShardSet {
    words: SmallVec<[u64; 2]>,
}

impl ShardSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The set of one shard.
    #[must_use]
    pub fn one(shard: ShardId) -> Self {
        let mut set = Self::new();
        set.insert(shard);
        set
    }

    /// Every shard below `count`.
    #[must_use]
    pub fn first(count: usize) -> Self {
        let mut set = Self::new();
        for shard in 0..count {
            set.insert(ShardId(u16::try_from(shard).unwrap_or(u16::MAX)));
        }
        set
    }

    /// Adds a shard.
    pub fn insert(&mut self, shard: ShardId) {
        let word = shard.index() / 64;
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= 1 << (shard.index() % 64);
    }

    /// Whether the shard is in the set.
    #[must_use]
    pub fn contains(&self, shard: ShardId) -> bool {
        self.words
            .get(shard.index() / 64)
            .is_some_and(|word| word & (1 << (shard.index() % 64)) != 0)
    }

    /// Adds every shard of `other`.
    pub fn union(&mut self, other: &Self) {
        if self.words.len() < other.words.len() {
            self.words.resize(other.words.len(), 0);
        }
        for (mine, theirs) in self.words.iter_mut().zip(&other.words) {
            *mine |= theirs;
        }
    }

    /// Keeps only the shards that are in `other` too.
    pub fn intersect(&mut self, other: &Self) {
        for (at, mine) in self.words.iter_mut().enumerate() {
            *mine &= other.words.get(at).copied().unwrap_or(0);
        }
    }

    /// How many shards are in the set.
    #[must_use]
    pub fn len(&self) -> usize {
        self.words
            .iter()
            .map(|word| word.count_ones() as usize)
            .sum()
    }

    /// Whether no shard is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|word| *word == 0)
    }

    /// The shards in ascending order.
    pub fn iter(&self) -> impl Iterator<Item = ShardId> + '_ {
        self.words.iter().enumerate().flat_map(|(at, word)| {
            (0..64)
                .filter(move |bit| word & (1 << bit) != 0)
                .map(move |bit| ShardId((at * 64 + bit) as u16))
        })
    }

    /// The only shard of a set of one.
    #[must_use]
    pub fn single(&self) -> Option<ShardId> {
        let mut shards = self.iter();
        let first = shards.next()?;
        shards.next().is_none().then_some(first)
    }
}

impl PartialEq for ShardSet {
    fn eq(&self, other: &Self) -> bool {
        let longest = self.words.len().max(other.words.len());
        (0..longest).all(|at| {
            self.words.get(at).copied().unwrap_or(0) == other.words.get(at).copied().unwrap_or(0)
        })
    }
}

impl Eq for ShardSet {}

impl FromIterator<ShardId> for ShardSet {
    fn from_iter<I: IntoIterator<Item = ShardId>>(shards: I) -> Self {
        let mut set = Self::new();
        for shard in shards {
            set.insert(shard);
        }
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_was_put_in() {
        let mut set: ShardSet = [ShardId(3), ShardId(200)].into_iter().collect();
        assert_eq!(set.len(), 2);
        assert!(set.contains(ShardId(200)) && !set.contains(ShardId(4)));
        set.intersect(&ShardSet::one(ShardId(3)));
        assert_eq!(set.single(), Some(ShardId(3)));
        assert_eq!(set, ShardSet::one(ShardId(3)));
        assert_eq!(ShardSet::first(70).len(), 70);
    }
}
