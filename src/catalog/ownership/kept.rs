//! The map as the proxies of a database keep it: what configuration files say, who owns what, which shards serve, and
//! what of a reshard every proxy has to know.
//!
//! What must stay true: what is stored and not understood, at whatever depth, makes the whole unreadable, and a proxy that
//! cannot read the map serves nothing by it.

use super::{Disagreement, Ownership, judge};
use crate::catalog::{
    moving::KeySet,
    shard::ShardId,
    snapshot::{Placement, Snapshot, Unlisted},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Stored")]
pub struct Content {
    /// What configuration files say: a file that contradicts it and the owners is not obeyed.
    pub declared: Ownership,
    /// What counts.
    pub owners: Ownership,
    /// The shards that serve; none as form 2 of the schema has kept it.
    pub members: BTreeSet<String>,
    /// What is on a shard that does not own it.
    pub moving: Vec<Moving>,
}

/// Keys whose rows are on a shard that does not own them, because of a reshard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Moving {
    pub workflow: String,
    pub group: String,
    pub keys: KeySet,
    pub shard: String,
}

/// What a configuration says of owners.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared {
    pub(super) owners: Ownership,
    /// Groups whose buckets it splits over as many shards as there are.
    pub(super) even: BTreeSet<String>,
    /// All shards.
    pub(super) shards: BTreeSet<String>,
    /// Those that serve if nobody has kept a map yet.
    members: BTreeSet<String>,
    /// Those on which something lives that no group has.
    keeping: BTreeSet<String>,
}

/// As it is stored, by this form of the schema or by form 2.
#[derive(Deserialize)]
#[serde(untagged, deny_unknown_fields)]
enum Stored {
    Whole {
        declared: Ownership,
        owners: Ownership,
        members: BTreeSet<String>,
        moving: Vec<Moving>,
    },
    Form2(Ownership),
}

impl From<Stored> for Content {
    fn from(stored: Stored) -> Self {
        match stored {
            Stored::Whole {
                declared,
                owners,
                members,
                moving,
            } => Self {
                declared,
                owners,
                members,
                moving,
            },
            Stored::Form2(owners) => Self {
                declared: owners.clone(),
                owners,
                members: BTreeSet::new(),
                moving: Vec::new(),
            },
        }
    }
}

impl Declared {
    /// Of a snapshot as it is configured.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Self {
        let even = snapshot.even.iter();
        let names = |shard: ShardId| snapshot.shards.get(shard.index());
        let tables = snapshot.tables.values();
        let single = tables.filter_map(|table| match table.placement {
            Placement::Single(shard) => Some(shard),
            Placement::Sharded { .. } | Placement::Reference => None,
        });
        let unlisted = match snapshot.unlisted {
            Unlisted::On(shard) => Some(shard),
            Unlisted::Error => None,
        };
        let keeping = single.chain(unlisted).chain([snapshot.home]);
        Self {
            keeping: keeping.filter_map(names).cloned().collect(),
            owners: Ownership::of(snapshot),
            even: even.map(|id| snapshot.group(*id).name.clone()).collect(),
            shards: snapshot.shards.iter().cloned().collect(),
            members: snapshot.members.iter().filter_map(names).cloned().collect(),
        }
    }
}

impl Declared {
    /// Whether something lives on a shard whoever owns the keys of groups: tables of its own, or the catalog.
    #[must_use]
    pub fn keeps(&self, shard: &str) -> bool {
        self.keeping.contains(shard)
    }
}

impl Content {
    /// Where nobody has kept anything yet.
    #[must_use]
    pub fn first(here: &Declared) -> Self {
        Self {
            declared: here.owners.clone(),
            owners: here.owners.clone(),
            members: here.members.clone(),
            moving: Vec::new(),
        }
    }

    /// What is kept, and what the configuration adds to it where it agrees: groups, values of lists.
    #[must_use]
    pub fn and(mut self, here: &Declared) -> Self {
        if self.members.is_empty() {
            self.members = here.members.union(&self.owners.shards()).cloned().collect();
        }
        for (group, judged) in judge::groups(&self, here) {
            if let Ok(added) = judged {
                self.declared.groups.insert(group.clone(), added.declared);
                self.owners.groups.insert(group, added.owners);
            }
        }
        self
    }

    /// What the configuration gives to another owner.
    #[must_use]
    pub fn disagreements(&self, here: &Declared) -> Vec<Disagreement> {
        let judged = judge::groups(self, here).into_iter();
        let differs = judged.filter_map(|(group, judged)| {
            let what = judged.err()?;
            Some(Disagreement { group, what })
        });
        differs.collect()
    }

    /// Shards that it names and the configuration does not have.
    #[must_use]
    pub fn lacking(&self, here: &Declared) -> Vec<String> {
        let moving = self.moving.iter().map(|it| it.shard.clone());
        let named: BTreeSet<String> = self.owners.shards().into_iter().chain(moving).collect();
        let named = named.union(&self.members);
        named
            .filter(|it| !here.shards.contains(*it))
            .cloned()
            .collect()
    }

    /// What is kept, with what the configuration says of the groups of which it says something else; not of those that a
    /// reshard is at. Shards serve no more that neither own anything nor are in the configuration.
    #[must_use]
    pub fn replaced_by(mut self, here: &Declared) -> Self {
        let moves = |group: &String| self.moving.iter().any(|it| it.group == *group);
        let differing = self.disagreements(here).into_iter().map(|it| it.group);
        let differing: Vec<String> = differing.filter(|group| !moves(group)).collect();
        for group in differing {
            if let Some(owned) = here.owners.groups.get(&group) {
                self.members.extend(owned.shards().cloned());
                self.declared.groups.insert(group.clone(), owned.clone());
                self.owners.groups.insert(group, owned.clone());
            }
        }
        let mut needed = self.owners.shards();
        needed.extend(self.moving.iter().map(|it| it.shard.clone()));
        self.members
            .retain(|it| here.shards.contains(it) || needed.contains(it));
        self
    }

    /// The content after a flip: these owners, this on other shards, these more that serve.
    #[must_use]
    pub fn flipped(
        mut self,
        after: Ownership,
        workflow: &str,
        doubled: &[Moving],
        joins: &[String],
    ) -> Self {
        self.owners = after;
        self.members.extend(joins.iter().cloned());
        self.doubling(workflow, doubled)
    }

    /// The content without these among the shards that serve, but for those that own keys.
    #[must_use]
    pub fn left_by(mut self, leaving: &[String]) -> Self {
        let owners = self.owners.shards();
        self.members
            .retain(|member| owners.contains(member) || !leaving.contains(member));
        self
    }

    /// The content with this on other shards because of a workflow, and nothing else because of it.
    #[must_use]
    pub fn doubling(mut self, workflow: &str, doubled: &[Moving]) -> Self {
        self.moving.retain(|it| it.workflow != workflow);
        self.moving.extend(doubled.iter().cloned());
        self
    }
}
