//! What a shard owns of a group, for people. Pure.
//!
//! What must stay true: it says what the map says, however the group is cut; what is left out is counted.

use super::{Owners, Ownership};
use crate::catalog::{
    hash::HashFunction,
    moving::{KeySet, Part},
};

impl Ownership {
    /// The keys of a group that a shard owns, in words, of each kind no more than so many; `None`: none.
    #[must_use]
    pub fn words_of(&self, group: &str, shard: &str, most: usize) -> Option<String> {
        let owned = self.groups.get(group)?;
        let set = match &owned.owners {
            // No server computes it, so nothing else has sets of it.
            Owners::Hash {
                function: HashFunction::Xxh3,
                buckets,
            } => {
                let has = |bucket: &String| bucket == shard;
                let pinned = owned.pins.iter().filter(|(_, of)| *of == shard);
                KeySet {
                    part: runs(buckets.iter().map(has)),
                    with: pinned.map(|(key, _)| key.clone()).collect(),
                    without: Vec::new(),
                }
            }
            Owners::Hash { .. } | Owners::Range(_) | Owners::List { .. } => {
                self.sets_of(group, shard)?
            }
        };
        let words = set.words(most);
        (!words.is_empty()).then_some(words)
    }
}

/// The buckets of which that is so.
fn runs(each: impl ExactSizeIterator<Item = bool>) -> Part {
    let of = u32::try_from(each.len()).unwrap_or(u32::MAX);
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for (bucket, _) in (0_u32..).zip(each).filter(|(_, has)| *has) {
        match runs.last_mut() {
            Some((_, end)) if *end == bucket => *end += 1,
            _ => runs.push((bucket, bucket + 1)),
        }
    }
    if runs.is_empty() {
        Part::None
    } else {
        Part::Buckets { of, runs }
    }
}
