//! Whether a configuration agrees with the map that is kept, group by group, and what it adds to it.
//!
//! What must stay true: a configuration that agrees gives no key to another shard than the map did when it was declared,
//! or does now, as far as a configuration can say that; what it adds is of keys that had no owner.

use super::{Content, Declared, Owned, Owners};
use crate::catalog::{
    group::Map,
    key::{Key, KeyType},
    shard::ShardId,
};
use std::collections::{BTreeMap, BTreeSet};

/// What of a group has another owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disagreement {
    pub group: String,
    pub what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// Method, hash function or type of the key.
    Method,
    /// The first of the keys that differ: a bucket, a range's number, or a value.
    Owner {
        of: String,
        kept: String,
        here: String,
    },
    /// Keys that nobody had are given to a shard that does not serve yet.
    Outside { shard: String },
}

/// A group as it is kept from then on.
pub(super) struct Added {
    pub(super) declared: Owned,
    pub(super) owners: Owned,
}

/// Of each group of the configuration.
pub(super) fn groups(kept: &Content, here: &Declared) -> Vec<(String, Result<Added, What>)> {
    let groups = here.owners.groups.iter();
    let judged = groups.map(|(name, owned)| (name.clone(), group(kept, here, name, owned)));
    judged.collect()
}

fn group(kept: &Content, here: &Declared, name: &str, owned: &Owned) -> Result<Added, What> {
    let even = here.even.contains(name);
    let known = (kept.declared.groups.get(name), kept.owners.groups.get(name));
    let (Some(declared), Some(owners)) = known else {
        let members: BTreeSet<&String> = kept.members.iter().collect();
        let made = if even {
            owned.split_over(&members)
        } else {
            owned.clone()
        };
        for shard in made.shards() {
            serves(kept, shard)?;
        }
        return Ok(Added {
            declared: made.clone(),
            owners: made,
        });
    };
    let owned = if even {
        // As it was split then, whatever shards there are now.
        owned.split_over(&declared.shards().collect())
    } else {
        owned.clone()
    };
    if let Some(what) = disagreement(declared, &owned)
        && !owners.is_said_by(&owned, declared)
    {
        return Err(what);
    }
    added(kept, (declared, owners), &owned)
}

/// What a list adds.
fn added(
    kept: &Content,
    (declared, owners): (&Owned, &Owned),
    here: &Owned,
) -> Result<Added, What> {
    let mut added = Added {
        declared: declared.clone(),
        owners: owners.clone(),
    };
    let Owners::List { values, other } = &here.owners else {
        return Ok(added);
    };
    for (key, shard) in values {
        if !declared.owners.names(key) {
            judge_new(kept, owners.owner(key), shard, || value(key))?;
            added.declared.owners.name(key, shard);
            added.owners.owners.name(key, shard);
        }
    }
    if let Some(shard) = other
        && declared.owners.other().is_none()
    {
        judge_new(kept, owners.owners.other(), shard, || {
            "all other values".to_owned()
        })?;
        added.declared.owners.name_others(shard);
        added.owners.owners.name_others(shard);
    }
    Ok(added)
}

/// Keys that the configuration gives to a shard and did not name before.
fn judge_new(
    kept: &Content,
    owner: Option<&String>,
    shard: &String,
    of: impl FnOnce() -> String,
) -> Result<(), What> {
    match owner {
        Some(owner) if owner == shard => Ok(()),
        Some(owner) => Err(What::Owner {
            of: of(),
            kept: owner.clone(),
            here: shard.clone(),
        }),
        None => serves(kept, shard),
    }
}

fn serves(kept: &Content, shard: &String) -> Result<(), What> {
    if kept.members.contains(shard) {
        Ok(())
    } else {
        let shard = shard.clone();
        Err(What::Outside { shard })
    }
}

impl Owned {
    /// Whether a configuration says these owners, as far as one can: single keys that are elsewhere it cannot name, and of
    /// buckets only which shards have some, once a reshard has moved any.
    fn is_said_by(&self, here: &Self, declared: &Self) -> bool {
        let own = Self {
            pins: BTreeMap::new(),
            ..self.clone()
        };
        if disagreement(&own, here).is_none() {
            return true;
        }
        let (Owners::Hash { function, .. }, Owners::Hash { function: said, .. }) =
            (&self.owners, &here.owners)
        else {
            return false;
        };
        let moved = self.owners != declared.owners;
        let alike = self.key_type == here.key_type && function == said;
        moved && alike && self.owners.shards() == here.owners.shards()
    }

    /// The same buckets, split evenly over other shards.
    fn split_over(&self, shards: &BTreeSet<&String>) -> Self {
        let mut split = self.clone();
        if let Owners::Hash { function, buckets } = &mut split.owners {
            let ids: Vec<ShardId> = (0..).map(ShardId).take(shards.len()).collect();
            let names: Vec<&String> = shards.iter().copied().collect();
            let count = u32::try_from(buckets.len()).unwrap_or_default();
            if let Ok(Map::Hash { shards, .. }) = Map::even_hash(*function, count, &ids) {
                let named = shards.iter().filter_map(|id| names.get(id.index()));
                *buckets = named.map(|name| (*name).clone()).collect();
            }
        }
        split
    }
}

impl Owners {
    fn names(&self, key: &Key) -> bool {
        matches!(self, Self::List { values, .. } if values.contains_key(key))
    }

    fn other(&self) -> Option<&String> {
        match self {
            Self::List { other, .. } => other.as_ref(),
            Self::Hash { .. } | Self::Range(_) => None,
        }
    }

    fn name(&mut self, key: &Key, shard: &str) {
        if let Self::List { values, .. } = self {
            values.insert(key.clone(), shard.to_owned());
        }
    }

    fn name_others(&mut self, shard: &str) {
        if let Self::List { other, .. } = self {
            *other = Some(shard.to_owned());
        }
    }
}

fn disagreement(kept: &Owned, here: &Owned) -> Option<What> {
    if kept.key_type != here.key_type {
        return Some(What::Method);
    }
    let owners = match (&kept.owners, &here.owners) {
        (
            Owners::Hash { function, buckets },
            Owners::Hash {
                function: here_function,
                buckets: here,
            },
        ) if function == here_function => of_buckets(buckets, here),
        (Owners::Range(kept), Owners::Range(here)) => of_ranges(kept, here),
        (
            Owners::List { values, other },
            Owners::List {
                values: here,
                other: here_other,
            },
        ) => of_lists((values, other.as_ref()), (here, here_other.as_ref())),
        _ => Some(What::Method),
    };
    owners.or_else(|| {
        let mut pins = kept.pins.iter().chain(&here.pins);
        pins.find_map(|(key, _)| of_key(key, (kept.owner(key), here.owner(key))))
    })
}

fn of_key(key: &Key, (kept, here): (Option<&String>, Option<&String>)) -> Option<What> {
    let said = |of: Option<&String>| of.cloned().unwrap_or_else(|| "nobody".to_owned());
    (kept.is_some() && kept != here).then(|| What::Owner {
        of: value(key),
        kept: said(kept),
        here: said(here),
    })
}

fn of_buckets(kept: &[String], here: &[String]) -> Option<What> {
    // Powers of two: a key's bucket of the fewer is its bucket of the more, modulo.
    let most = kept.len().max(here.len());
    (0..most).find_map(|at| {
        let owner = |of: &[String]| of.get(at.checked_rem(of.len())?).cloned();
        let (kept, here) = (owner(kept)?, owner(here)?);
        (kept != here).then(|| What::Owner {
            of: format!("bucket {at} of {most}"),
            kept,
            here,
        })
    })
}

type Ranges = [(Option<Key>, String)];

fn of_ranges(kept: &Ranges, here: &Ranges) -> Option<What> {
    let most = kept.len().max(here.len());
    let said = |range: Option<&(Option<Key>, String)>| match range {
        Some((Some(to), shard)) => format!("{shard} to {}", to.text()),
        Some((None, shard)) => shard.clone(),
        None => "nothing".to_owned(),
    };
    (0..most)
        .find(|at| kept.get(*at) != here.get(*at))
        .map(|at| What::Owner {
            of: format!("range {}", at + 1),
            kept: said(kept.get(at)),
            here: said(here.get(at)),
        })
}

type List<'a> = (&'a BTreeMap<Key, String>, Option<&'a String>);

fn of_lists((kept, kept_other): List<'_>, (here, here_other): List<'_>) -> Option<What> {
    let nobody = || "nobody".to_owned();
    let mut each = kept.keys().chain(here.keys()).map(|key| {
        let owners = (kept.get(key), here.get(key));
        of_key(key, (owners.0.or(kept_other), owners.1.or(here_other)))
    });
    each.find_map(|found| found).or_else(|| {
        (kept_other.is_some() && kept_other != here_other).then(|| What::Owner {
            of: "all other values".to_owned(),
            kept: kept_other.cloned().unwrap_or_else(nobody),
            here: here_other.cloned().unwrap_or_else(nobody),
        })
    })
}

fn value(key: &Key) -> String {
    let text = key.text();
    if key.key_type() == KeyType::Text {
        format!("value '{text}'")
    } else {
        format!("value {text}")
    }
}
