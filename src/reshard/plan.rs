//! What a reshard is to do, as it is stored with it.

use super::job::Direction;
use crate::catalog::{moving::Move, ownership::Ownership};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a reshard is to do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// Keys that change their owner; each key at most once.
    pub moves: Vec<Move>,
    /// The owners before, at this number of the map, and after.
    pub epoch: i64,
    pub before: Ownership,
    pub after: Ownership,
    /// The tables of the groups that move.
    pub tables: Vec<MovingTable>,
    /// Shards that join the database with it: they get reference tables and the schema as well.
    pub joins: Vec<String>,
    /// Tables that every shard has whole, copied to those that join.
    pub reference: Vec<MovingTable>,
    /// The same tables, where shards give everything away: these have them no more once they serve no more.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left: Vec<MovingTable>,
}

impl Plan {
    /// Every shard that takes part.
    #[must_use]
    pub fn shards(&self) -> Vec<String> {
        let moved = self.moves.iter().flat_map(|it| [&it.from, &it.to]);
        let all: BTreeSet<&String> = moved.chain(&self.joins).collect();
        all.into_iter().cloned().collect()
    }

    /// Which way its keys went last, as owners say; `None`: neither, as they have others by now.
    #[must_use]
    pub fn went(&self, owners: &Ownership) -> Option<Direction> {
        let back: Vec<Move> = self.moves.iter().map(Move::turned).collect();
        match (owners.apply(&self.moves), owners.apply(&back)) {
            (Ok(_), Err(_)) => Some(Direction::Back),
            (Err(_), Ok(_)) => Some(Direction::Forward),
            (Ok(_), Ok(_)) | (Err(_), Err(_)) => None,
        }
    }

    /// A shard that takes part and is neither among these nor gone for good: whoever does not know it can do nothing for the
    /// run but harm.
    #[must_use]
    pub fn lacks<T>(
        &self,
        servers: &BTreeMap<String, T>,
        without: &BTreeSet<String>,
    ) -> Option<String> {
        let mut named = self.shards().into_iter();
        named.find(|name| !servers.contains_key(name) && !without.contains(name))
    }
}

/// A table of which rows move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovingTable {
    pub schema: String,
    pub name: String,
    /// None of a reference table.
    pub group: Option<String>,
    /// The shard key's column; empty for a reference table.
    pub key_column: String,
    /// Columns of the primary key, in its order.
    pub primary_key: Vec<String>,
    /// Columns that are copied: all but generated ones, in the order of the table.
    pub columns: Vec<MovingColumn>,
    /// The partitioned table of which it is a partition: rows move partition by partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root: Option<Root>,
}

/// A partitioned table.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Root {
    pub schema: String,
    pub name: String,
}

impl Root {
    /// The name as SQL, quoted.
    #[must_use]
    pub fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }
}

/// The partitioned tables that these tables are partitions of, each once.
#[must_use]
pub fn roots(tables: &[MovingTable]) -> Vec<String> {
    let roots = tables.iter().filter_map(|table| table.root.as_ref());
    let roots: BTreeSet<&Root> = roots.collect();
    roots.into_iter().map(Root::sql).collect()
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MovingColumn {
    pub name: String,
    /// As `format_type` writes it.
    pub type_name: String,
    /// Whether its binary form is the same on every shard: no numbers of own types in it.
    pub binary: bool,
}

impl MovingTable {
    /// The name as SQL, quoted.
    #[must_use]
    pub fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// `schema.name`, as records have it.
    #[must_use]
    pub fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }
}

/// A name as SQL has it.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
