//! Who owns which keys, as proxies keep it for each other: the groups' maps with shards by name, and whether two agree.
//! Pure.
//!
//! What must stay true: two agree about a group exactly if every key that has an owner in the first has the same owner in
//! the second.

use super::{
    group::{Group, Map},
    hash::HashFunction,
    key::{Key, KeyType},
    shard::ShardId,
    snapshot::Snapshot,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The owners of all groups.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ownership {
    groups: BTreeMap<String, Owned>,
}

/// The owners of one group's keys.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Owned {
    key_type: String,
    owners: Owners,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Owners {
    Hash {
        function: String,
        /// As many buckets as the sum of the counts: so many in a row, and whose they are.
        buckets: Vec<(usize, String)>,
    },
    /// Neighbours with one owner are one range; the last has no bound.
    Range(Vec<(Option<String>, String)>),
    List {
        values: BTreeMap<String, String>,
        other: Option<String>,
    },
}

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
}

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

    /// The type of a group's keys.
    #[must_use]
    pub fn key_type(&self, group: &str) -> Option<KeyType> {
        KeyType::named(&self.groups.get(group)?.key_type)
    }

    /// What has another owner here than is kept; a group that only one of them has is none.
    #[must_use]
    pub fn disagreements(kept: &Self, here: &Self) -> Vec<Disagreement> {
        let both = here
            .groups
            .iter()
            .filter_map(|(name, here)| Some((name, kept.groups.get(name)?, here)));
        let of = |(name, kept, here): (&String, &Owned, &Owned)| {
            Some(Disagreement {
                group: name.clone(),
                what: kept.disagreement(here)?,
            })
        };
        both.filter_map(of).collect()
    }

    /// What is kept, and what this adds to it where it agrees.
    #[must_use]
    pub fn and(mut self, here: &Self) -> Self {
        for (name, here) in &here.groups {
            match self.groups.get_mut(name) {
                None => drop(self.groups.insert(name.clone(), here.clone())),
                Some(kept) if kept.disagreement(here).is_none() => kept.owners.add(&here.owners),
                Some(_) => {}
            }
        }
        self
    }

    /// What is kept, with this in the place of what it says of the same groups.
    #[must_use]
    pub fn replaced_by(mut self, here: &Self) -> Self {
        self.groups.extend(here.groups.clone());
        self
    }
}

impl Owned {
    fn of(group: &Group, snapshot: &Snapshot) -> Self {
        let name = |shard: &ShardId| {
            let name = snapshot.shards.get(shard.index());
            name.cloned().unwrap_or_default()
        };
        let owners = match &group.map {
            Map::Hash { function, shards } => {
                let mut buckets: Vec<(usize, String)> = Vec::new();
                for shard in shards {
                    match buckets.last_mut() {
                        Some((count, last)) if *last == name(shard) => *count += 1,
                        _ => buckets.push((1, name(shard))),
                    }
                }
                let function = match function {
                    HashFunction::Postgres => "postgres",
                    HashFunction::Xxh3 => "xxh3",
                };
                Owners::Hash {
                    function: function.to_owned(),
                    buckets,
                }
            }
            Map::Range(entries) => {
                let mut ranges: Vec<(Option<String>, String)> = Vec::new();
                for entry in entries {
                    let (to, owner) = (entry.to.as_ref().map(token), name(&entry.shard));
                    match ranges.last_mut() {
                        Some((last_to, last)) if *last == owner => *last_to = to,
                        _ => ranges.push((to, owner)),
                    }
                }
                Owners::Range(ranges)
            }
            Map::List { values, other } => Owners::List {
                values: values
                    .iter()
                    .map(|(key, shard)| (token(key), name(shard)))
                    .collect(),
                other: other.as_ref().map(name),
            },
        };
        Self {
            key_type: group.key_type.name().to_owned(),
            owners,
        }
    }

    fn disagreement(&self, here: &Self) -> Option<What> {
        if self.key_type != here.key_type {
            return Some(What::Method);
        }
        match (&self.owners, &here.owners) {
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
        }
    }
}

impl Owners {
    /// More values of a list. Ranges and buckets that agree are the same owners in other words.
    fn add(&mut self, here: &Self) {
        let (
            Self::List { values, other },
            Self::List {
                values: more,
                other: more_other,
            },
        ) = (self, here)
        else {
            return;
        };
        values.extend(more.clone());
        *other = other.take().or_else(|| more_other.clone());
    }
}

fn of_buckets(kept: &[(usize, String)], here: &[(usize, String)]) -> Option<What> {
    let each = |runs: &[(usize, String)]| -> Vec<String> {
        let runs = runs.iter();
        runs.flat_map(|(count, shard)| std::iter::repeat_n(shard.clone(), *count))
            .collect()
    };
    let (kept, here) = (each(kept), each(here));
    // Powers of two: a key's bucket of the fewer is its bucket of the more, modulo.
    let most = kept.len().max(here.len());
    (0..most).find_map(|at| {
        let owner = |of: &[String]| of.get(at.checked_rem(of.len())?).cloned();
        let (kept, here) = (owner(&kept)?, owner(&here)?);
        (kept != here).then(|| What::Owner {
            of: format!("bucket {at} of {most}"),
            kept,
            here,
        })
    })
}

fn of_ranges(kept: &[(Option<String>, String)], here: &[(Option<String>, String)]) -> Option<What> {
    let most = kept.len().max(here.len());
    let said = |range: Option<&(Option<String>, String)>| match range {
        Some((Some(to), shard)) => format!("{shard} to {to}"),
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

type List<'a> = (&'a BTreeMap<String, String>, Option<&'a String>);

fn of_lists((kept, kept_other): List<'_>, (here, here_other): List<'_>) -> Option<What> {
    let nobody = || "nobody".to_owned();
    let differs = |of: &str, kept: Option<&String>, here: Option<&String>| {
        (kept.is_some() && kept != here).then(|| What::Owner {
            of: of.to_owned(),
            kept: kept.cloned().unwrap_or_else(nobody),
            here: here.cloned().unwrap_or_else(nobody),
        })
    };
    let values = kept.keys().chain(here.keys());
    let mut each = values.map(|value| {
        let (kept, here) = (kept.get(value), here.get(value));
        let of = format!("value {value}");
        differs(&of, kept.or(kept_other), here.or(here_other))
    });
    each.find_map(|found| found)
        .or_else(|| differs("all other values", kept_other, here_other))
}

/// A key as text that no other key of its type has.
fn token(key: &Key) -> String {
    let hex = |bytes: &[u8]| -> String { bytes.iter().map(|byte| format!("{byte:02x}")).collect() };
    match key {
        Key::Bigint(value) => value.to_string(),
        Key::Text(bytes) => match std::str::from_utf8(bytes) {
            Ok(text) => format!("'{text}'"),
            Err(_) => hex(bytes),
        },
        Key::Uuid(bytes) => hex(bytes),
        Key::Date(days) => format!("{days} days after 2000-01-01"),
        Key::Timestamptz(micros) => format!("{micros} microseconds after 2000-01-01"),
        Key::Numeric(number) => format!("{number:?}"),
        Key::Bytea(bytes) => hex(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::load_str;
    use std::path::Path;

    fn of(groups: &str) -> Ownership {
        let shards: String = (0..3)
            .map(|at| format!("shards.s{at} = {{ primary = \"postgres://h{at}/app\" }}\n"))
            .collect();
        let text = format!("[databases.app]\n{shards}{groups}");
        let settings = load_str("test", &text, Path::new("."))
            .unwrap_or_else(|errors| panic!("{}", errors.render()));
        Ownership::of(&settings.databases["app"].snapshot)
    }

    fn range(ranges: &str) -> Ownership {
        of(&format!(
            "[databases.app.groups.g]\nmethod = \"range\"\nkey_type = \"bigint\"\nranges = [{ranges}]\ntables = {{ \"public.t\" = \"id\" }}"
        ))
    }

    fn list(lists: &str) -> Ownership {
        of(&format!(
            "[databases.app.groups.g]\nmethod = \"list\"\nkey_type = \"text\"\n{lists}\ntables = {{ \"public.t\" = \"id\" }}"
        ))
    }

    fn hash(more: &str) -> Ownership {
        of(&format!(
            "[databases.app.groups.g]\nmethod = \"hash\"\nkey_type = \"bigint\"\n{more}\ntables = {{ \"public.t\" = \"id\" }}"
        ))
    }

    fn agree(kept: &Ownership, here: &Ownership) -> bool {
        let found = Ownership::disagreements(kept, here);
        // What is kept of it reads back as it was.
        let text = serde_json::to_string(kept).unwrap();
        assert_eq!(serde_json::from_str::<Ownership>(&text).unwrap(), *kept);
        found.is_empty()
    }

    #[test]
    fn ranges_agree_when_every_key_has_the_same_owner() {
        let kept = range(r#"{ to = 100, shard = "s0" }, { shard = "s1" }"#);
        assert!(agree(&kept, &kept));
        assert!(agree(
            &kept,
            &range(r#"{ to = 50, shard = "s0" }, { to = 100, shard = "s0" }, { shard = "s1" }"#)
        ));
        for other in [
            r#"{ to = 101, shard = "s0" }, { shard = "s1" }"#,
            r#"{ to = 100, shard = "s1" }, { shard = "s0" }"#,
            r#"{ to = 100, shard = "s0" }, { to = 200, shard = "s1" }, { shard = "s2" }"#,
            r#"{ shard = "s0" }"#,
        ] {
            assert!(!agree(&kept, &range(other)), "{other}");
        }
        assert!(!agree(&kept, &hash("")), "another method");
    }

    #[test]
    fn lists_may_grow() {
        let kept = list("lists.s0 = [\"eu\"]\nlists.s1 = [\"us\"]");
        let more = list("lists.s0 = [\"eu\"]\nlists.s1 = [\"us\", \"ca\"]\nlists.s2 = [\"*\"]");
        assert!(agree(&kept, &more));
        let both = kept.clone().and(&more);
        assert!(!agree(&both, &kept), "what was added counts from then on");
        assert!(agree(&both, &more));
        let moved = list("lists.s0 = [\"eu\", \"us\"]\nlists.s1 = [\"ca\"]");
        assert_eq!(
            Ownership::disagreements(&kept, &moved),
            [Disagreement {
                group: "g".to_owned(),
                what: What::Owner {
                    of: "value 'us'".to_owned(),
                    kept: "s1".to_owned(),
                    here: "s0".to_owned(),
                },
            }]
        );
        assert!(!agree(&more, &kept), "nobody owns the others any more");
        let named =
            list("lists.s0 = [\"eu\", \"mx\"]\nlists.s1 = [\"us\", \"ca\"]\nlists.s2 = [\"*\"]");
        assert!(!agree(&both, &named), "its rows are where all others are");
        assert!(agree(&both.replaced_by(&named), &named));
    }

    #[test]
    fn more_buckets_with_the_same_owners_agree() {
        let kept = hash("buckets = 4");
        assert!(agree(&kept, &kept));
        assert!(!agree(&kept, &hash("buckets = 64")));
        assert!(!agree(&kept, &hash("buckets = 4\nhash = \"xxh3\"")));
        // A split of twice as many: bucket 1 of 4 is 1 and 5 of 8.
        assert_eq!(
            of_buckets(
                &[(1, "a".into()), (1, "b".into())],
                &[
                    (1, "a".into()),
                    (1, "b".into()),
                    (1, "a".into()),
                    (1, "b".into())
                ]
            ),
            None
        );
    }
}
