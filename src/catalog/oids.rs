//! Numbers (OIDs) of a database's own types and relations. Each shard gives its own; clients see the home shard's. Pure.
//!
//! What must stay true: a number is never passed on as another type's: what has no name here is nobody's.

use super::shard::ShardId;
use crate::wire::types::Oid;
use std::{collections::HashMap, sync::Arc};
use xxhash_rust::xxh3::xxh3_64;

/// `FirstNormalObjectId` of transam.h: what is below it is the same on every server.
pub const FIRST_OWN: Oid = 16384;
/// A number that no type has: a server that is told it says that there is none.
pub const NOBODY: Oid = Oid::MAX;
/// `record`, `record[]` and `anyarray`: their binary values hold the numbers of other types.
const HOLDERS: [Oid; 3] = [2249, 2287, 2277];

/// A type or relation, by its schema and name.
pub type Named = (String, String);

/// What a type's binary values hold of other types' numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    /// Nothing.
    Nothing,
    /// An array's: its element's, in a fixed place.
    Element,
    /// Somewhere within.
    Within,
}

/// The own types and relations of one server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    pub types: HashMap<Named, (Oid, Holds)>,
    /// With a digest of their columns' names and places.
    pub relations: HashMap<Named, (Oid, String)>,
}

/// Which numbers of the shards mean the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Oids {
    /// What clients see.
    types: HashMap<Oid, Holds, foldhash::fast::RandomState>,
    /// By shard; `None`: its numbers are the home shard's.
    shards: Vec<Option<ShardOids>>,
}

/// One shard's numbers, and what clients see in their place.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ShardOids {
    seen: HashMap<Oid, Oid, foldhash::fast::RandomState>,
    own: HashMap<Oid, Oid, foldhash::fast::RandomState>,
    /// Relations whose columns stand as on the home shard.
    relations: HashMap<Oid, Oid, foldhash::fast::RandomState>,
}

impl Oids {
    /// What the shards' servers say, in their order; `None` of one: it could not be asked. Nothing when all agree.
    #[must_use]
    pub fn of(observed: &[Option<&Observed>], home: ShardId) -> Option<Arc<Self>> {
        let nothing = Observed::default();
        let at_home = observed.get(home.index()).copied().flatten();
        let own = at_home.unwrap_or(&nothing);
        let mut types = HashMap::default();
        types.extend(own.types.values().copied());
        let shards: Vec<Option<ShardOids>> = observed
            .iter()
            .map(|there| match there {
                Some(there) if *there == own => None,
                Some(there) => Some(ShardOids::of(there, own, &mut types)),
                None => Some(ShardOids::default()),
            })
            .collect();
        let differ = shards.iter().any(Option::is_some);
        differ.then(|| Arc::new(Self { types, shards }))
    }

    /// A shard's numbers, when they are others than clients see.
    #[must_use]
    pub fn of_shard(&self, shard: ShardId) -> Option<&ShardOids> {
        self.shards.get(shard.index())?.as_ref()
    }

    /// Whether clients can know this type.
    #[must_use]
    pub fn has(&self, oid: Oid) -> bool {
        oid < FIRST_OWN || self.types.contains_key(&oid)
    }

    /// What binary values of this type, as clients see it, hold.
    #[must_use]
    pub fn holds(&self, oid: Oid) -> Holds {
        if oid < FIRST_OWN {
            return if HOLDERS.contains(&oid) {
                Holds::Within
            } else {
                Holds::Nothing
            };
        }
        self.types.get(&oid).copied().unwrap_or(Holds::Within)
    }
}

impl ShardOids {
    fn of(
        there: &Observed,
        home: &Observed,
        types: &mut HashMap<Oid, Holds, foldhash::fast::RandomState>,
    ) -> Self {
        let mut found = Self::default();
        for (name, (oid, holds)) in &there.types {
            let seen = home
                .types
                .get(name)
                .map_or_else(|| foreign(name), |(oid, _)| *oid);
            // Of two that meet, neither is passed on.
            if found.own.insert(seen, *oid).is_none() {
                found.seen.insert(*oid, seen);
            }
            types.entry(seen).or_insert(*holds);
        }
        for (name, (oid, columns)) in &there.relations {
            if let Some((seen, same)) = home.relations.get(name)
                && same == columns
            {
                found.relations.insert(*oid, *seen);
            }
        }
        found
    }

    /// What clients see for this shard's type; `None`: not known.
    #[must_use]
    pub fn seen(&self, oid: Oid) -> Option<Oid> {
        if oid < FIRST_OWN {
            return Some(oid);
        }
        self.seen.get(&oid).copied()
    }

    /// This shard's number for a type as clients see it; [`NOBODY`] when it has none.
    #[must_use]
    pub fn own(&self, oid: Oid) -> Oid {
        if oid < FIRST_OWN {
            return oid;
        }
        self.own.get(&oid).copied().unwrap_or(NOBODY)
    }

    /// What clients see for this shard's relation; `None`: nothing.
    #[must_use]
    pub fn relation(&self, oid: Oid) -> Option<Oid> {
        if oid < FIRST_OWN {
            return Some(oid);
        }
        self.relations.get(&oid).copied()
    }
}

/// The number of a type that the home shard does not have: beyond what a server gives, and the same wherever it is seen.
fn foreign((schema, name): &Named) -> Oid {
    let digest = xxh3_64(format!("{schema}\0{name}").as_bytes());
    let [a, b, c, ..] = digest.to_le_bytes();
    u32::from_be_bytes([0xf0 | (a & 0x0f), b, c, a]) & 0xffff_fffe
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(types: &[(&str, Oid)], relations: &[(&str, Oid, &str)]) -> Observed {
        let named = |name: &str| ("public".to_owned(), name.to_owned());
        let types = types
            .iter()
            .map(|(name, oid)| (named(name), (*oid, Holds::Nothing)));
        let relations = relations
            .iter()
            .map(|(name, oid, columns)| (named(name), (*oid, (*columns).to_owned())));
        Observed {
            types: types.collect(),
            relations: relations.collect(),
        }
    }

    #[test]
    fn shards_that_agree_cost_nothing() {
        let one = observed(&[("mood", 20_000)], &[("t", 20_010, "a")]);
        assert_eq!(
            Oids::of(&[Some(&one), Some(&one.clone())], ShardId(0)),
            None
        );
    }

    #[test]
    fn clients_see_the_home_shards_numbers() {
        let home = observed(
            &[("mood", 20_000), ("other", 20_001)],
            &[("t", 20_010, "a")],
        );
        let there = observed(&[("mood", 20_001)], &[("t", 20_000, "a")]);
        let found = Oids::of(&[Some(&home), Some(&there)], ShardId(0)).unwrap();
        assert_eq!(found.of_shard(ShardId(0)), None);
        let shard = found.of_shard(ShardId(1)).unwrap();
        assert_eq!(shard.seen(20_001), Some(20_000));
        assert_eq!(shard.own(20_000), 20_001);
        assert_eq!(shard.own(20_001), NOBODY);
        assert_eq!((shard.seen(23), shard.own(23)), (Some(23), 23));
        assert_eq!(shard.seen(20_000), None);
        assert_eq!(shard.relation(20_000), Some(20_010));
    }

    #[test]
    fn what_the_home_shard_does_not_have_has_a_number_of_its_own() {
        let home = observed(&[("mood", 20_000)], &[]);
        let there = observed(&[("mood", 20_001), ("only", 20_000)], &[("t", 20_000, "a")]);
        let found = Oids::of(&[Some(&home), Some(&there)], ShardId(0)).unwrap();
        let shard = found.of_shard(ShardId(1)).unwrap();
        let seen = shard.seen(20_000).unwrap();
        assert!(seen >= 0xf000_0000 && seen != NOBODY);
        assert_eq!(shard.own(seen), 20_000);
        assert_eq!(shard.relation(20_000), None);
    }

    #[test]
    fn a_shard_that_could_not_be_asked_knows_no_type() {
        let home = observed(&[("mood", 20_000)], &[]);
        let found = Oids::of(&[Some(&home), None], ShardId(0)).unwrap();
        assert_eq!(found.of_shard(ShardId(1)).unwrap().seen(20_000), None);
    }
}
