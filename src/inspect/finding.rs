//! What the servers of a database are found to have or to lack.

use crate::{
    catalog::{
        effects::{Hazard, HazardKind},
        snapshot::TableName,
    },
    wire::types::Oid,
};
use std::fmt;

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Some statements will fail or be refused.
    Warning,
    /// The configuration does not fit the servers.
    Error,
}

/// One thing found. Shards by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    /// No role to ask with.
    NoCredentials,
    Unreachable {
        shard: String,
        reason: String,
    },
    /// Outside of 14 to 18.
    Version {
        shard: String,
        version: u32,
    },
    /// Not UTF8: text keys would have other bytes there.
    Encoding {
        shard: String,
        encoding: String,
    },
    Reached {
        shard: String,
        version: u32,
    },
    TableMissing {
        shard: String,
        table: TableName,
    },
    KeyColumnMissing {
        shard: String,
        table: TableName,
        column: String,
    },
    /// The column's type is none that this key type reads.
    KeyColumnType {
        shard: String,
        table: TableName,
        column: String,
        actual: String,
        key_type: &'static str,
    },
    /// The column's type changes values when it stores them, so that the row's key is another than the statement's.
    KeyColumnChanges {
        shard: String,
        table: TableName,
        column: String,
        actual: String,
    },
    /// The server computes the key, so that changing another column moves the row.
    KeyColumnGenerated {
        shard: String,
        table: TableName,
        column: String,
    },
    /// Writing the table sets off what one PostgreSQL would do to the rows of all shards.
    PerShard {
        table: TableName,
        hazard: Hazard,
    },
    /// Equal keys may differ in bytes.
    KeyColumnCollation {
        shard: String,
        table: TableName,
        column: String,
    },
    /// The table's columns differ from those on another shard.
    ColumnsDiffer {
        shard: String,
        other: String,
        table: TableName,
        what: Difference,
    },
    /// An index or a constraint of the table is not what it is on other shards.
    PartDrifted {
        shard: String,
        other: String,
        table: TableName,
        part: Part,
        name: String,
        /// It refuses rows, so that where it is not the same rows may be there that others refuse.
        binds: bool,
        what: Drifted,
        /// Makes it as it is there.
        sql: String,
    },
    /// On a server, in no list, and refused as the configuration stands.
    Unlisted {
        shard: String,
        table: TableName,
    },
    /// What the servers keep of where the table lives is not what holds.
    PlacementContradicts {
        table: TableName,
        what: Contradiction,
    },
    RoleMissing {
        shard: String,
        role: String,
    },
    NoPrivilege {
        shard: String,
        role: String,
        table: TableName,
    },
}

/// Why what the servers keep does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contradiction {
    /// The configuration says something else, and wins.
    Configured,
    /// It names a group that there is not, or shards keep different things.
    Meaningless,
}

/// How a table differs between two shards: the first column that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Difference {
    /// Not there on the shard, or not at this place.
    Missing(String),
    /// Only on the shard.
    Extra(String),
    Type {
        column: String,
        here: String,
        there: String,
        oids: (Oid, Oid),
    },
}

/// What of a table is compared beside its columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    Constraint,
    Index,
    /// By the name of the column.
    NotNull,
}

/// How an index or a constraint differs between two shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drifted {
    Missing,
    Differs {
        here: String,
        there: String,
    },
    /// Its building or checking has not ended.
    Invalid,
}

impl Finding {
    /// The statement that mends it, to be run on its shard by who knows that the other shards are right.
    #[must_use]
    pub fn sql(&self) -> Option<&str> {
        let Self::PartDrifted { sql, .. } = self else {
            return None;
        };
        Some(sql)
    }

    /// How much it matters.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self {
            Self::Reached { .. } => Severity::Note,
            // Slow at worst.
            Self::PartDrifted { binds: false, .. } => Severity::Warning,
            Self::Unlisted { .. }
            | Self::PlacementContradicts { .. }
            | Self::RoleMissing { .. }
            | Self::NoPrivilege { .. }
            | Self::PerShard { .. } => Severity::Warning,
            Self::NoCredentials
            | Self::Unreachable { .. }
            | Self::Version { .. }
            | Self::Encoding { .. }
            | Self::TableMissing { .. }
            | Self::KeyColumnMissing { .. }
            | Self::KeyColumnType { .. }
            | Self::KeyColumnChanges { .. }
            | Self::KeyColumnGenerated { .. }
            | Self::KeyColumnCollation { .. }
            | Self::ColumnsDiffer { .. }
            | Self::PartDrifted { .. } => Severity::Error,
        }
    }

    /// Whether routing by key would give wrong answers as long as this stands: such a database must not be served.
    #[must_use]
    pub fn forbids_routing(&self) -> bool {
        match self {
            Self::Encoding { .. }
            | Self::KeyColumnType { .. }
            | Self::KeyColumnChanges { .. }
            | Self::KeyColumnGenerated { .. }
            | Self::KeyColumnCollation { .. } => true,
            Self::NoCredentials
            | Self::Unreachable { .. }
            | Self::Version { .. }
            | Self::Reached { .. }
            | Self::TableMissing { .. }
            | Self::KeyColumnMissing { .. }
            | Self::ColumnsDiffer { .. }
            | Self::PartDrifted { .. }
            | Self::Unlisted { .. }
            | Self::PlacementContradicts { .. }
            | Self::PerShard { .. }
            | Self::RoleMissing { .. }
            | Self::NoPrivilege { .. } => false,
        }
    }

    /// The shard that it is about.
    #[must_use]
    pub fn shard(&self) -> Option<&str> {
        match self {
            Self::NoCredentials | Self::PerShard { .. } | Self::PlacementContradicts { .. } => None,
            Self::Unreachable { shard, .. }
            | Self::Version { shard, .. }
            | Self::Encoding { shard, .. }
            | Self::Reached { shard, .. }
            | Self::TableMissing { shard, .. }
            | Self::KeyColumnMissing { shard, .. }
            | Self::KeyColumnType { shard, .. }
            | Self::KeyColumnChanges { shard, .. }
            | Self::KeyColumnGenerated { shard, .. }
            | Self::KeyColumnCollation { shard, .. }
            | Self::ColumnsDiffer { shard, .. }
            | Self::PartDrifted { shard, .. }
            | Self::Unlisted { shard, .. }
            | Self::RoleMissing { shard, .. }
            | Self::NoPrivilege { shard, .. } => Some(shard),
        }
    }
}

impl fmt::Display for Finding {
    #[expect(
        clippy::too_many_lines,
        reason = "one sentence per finding, nothing else"
    )]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoCredentials => f.write_str(
                "no role to connect with: give `control`, or a user with a password for servers",
            ),
            Self::Unreachable { reason, .. } => write!(f, "the primary cannot be asked: {reason}"),
            Self::Version { version, .. } => {
                write!(
                    f,
                    "the server is PostgreSQL {}; 14 to 18 are supported",
                    version / 10_000
                )
            }
            Self::Encoding { encoding, .. } => {
                write!(
                    f,
                    "the database is encoded in {encoding}; keys of type text need UTF8"
                )
            }
            Self::Reached { version, .. } => {
                write!(f, "PostgreSQL {}.{}", version / 10_000, version % 10_000)
            }
            Self::TableMissing { table, .. } => write!(f, "there is no table {}", Shown(table)),
            Self::KeyColumnMissing { table, column, .. } => {
                write!(
                    f,
                    "table {} has no column {column}, its shard key",
                    Shown(table)
                )
            }
            Self::KeyColumnType {
                table,
                column,
                actual,
                key_type,
                ..
            } => {
                write!(
                    f,
                    "{}.{column} is of type {actual}, which is no {key_type} key",
                    Shown(table)
                )
            }
            Self::KeyColumnChanges {
                table,
                column,
                actual,
                ..
            } => write!(
                f,
                "{}.{column} is of type {actual}, which rounds or cuts values when it stores them: \
                 its rows would be looked for on another shard",
                Shown(table)
            ),
            Self::KeyColumnGenerated { table, column, .. } => write!(
                f,
                "{}.{column} is computed by the server from other columns: changing those would move rows to another shard",
                Shown(table)
            ),
            Self::PerShard { table, hazard } => {
                write!(f, "{}", Set(table, hazard))
            }
            Self::KeyColumnCollation { table, column, .. } => write!(
                f,
                "{}.{column} has a nondeterministic collation: equal keys could be on different shards",
                Shown(table)
            ),
            Self::ColumnsDiffer {
                other, table, what, ..
            } => {
                write!(f, "table {} differs from that on {other}: ", Shown(table))?;
                match what {
                    Difference::Missing(column) => {
                        write!(f, "column {column} is missing or at another place")
                    }
                    Difference::Extra(column) => write!(f, "column {column} is only here"),
                    Difference::Type {
                        column,
                        here,
                        there,
                        ..
                    } => {
                        write!(f, "column {column} is {here} here and {there} there")
                    }
                }
            }
            Self::PartDrifted {
                other,
                table,
                part,
                name,
                what,
                ..
            } => {
                let of = Shown(table);
                match part {
                    Part::Index => write!(f, "index {name} of {of} ")?,
                    Part::Constraint => write!(f, "constraint {name} of {of} ")?,
                    Part::NotNull => write!(f, "NOT NULL of {of}.{name} ")?,
                }
                match what {
                    Drifted::Missing => write!(f, "is missing here, and there on {other}"),
                    Drifted::Differs { here, there } => {
                        write!(f, "is here {here} and on {other} {there}")
                    }
                    Drifted::Invalid => f.write_str("is not valid"),
                }
            }
            Self::PlacementContradicts { table, what } => {
                let why = match what {
                    Contradiction::Configured => {
                        "the configuration says something else, which holds"
                    }
                    Contradiction::Meaningless => {
                        "it names a group that there is not, or shards disagree: statements on it are refused"
                    }
                };
                write!(
                    f,
                    "shardway.placement says where table {} lives, and {why}",
                    Shown(table)
                )
            }
            Self::Unlisted { table, .. } => {
                write!(
                    f,
                    "table {} is in no group or list: statements on it are refused",
                    Shown(table)
                )
            }
            Self::RoleMissing { role, .. } => write!(f, "there is no role {role}"),
            Self::NoPrivilege { role, table, .. } => {
                write!(f, "role {role} may not SELECT from {}", Shown(table))
            }
        }
    }
}

struct Shown<'a>(&'a TableName);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0.schema, self.0.name)
    }
}

/// A table, and what its writes set off.
struct Set<'a>(&'a TableName, &'a Hazard);

impl fmt::Display for Set<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (table, name) = (Shown(self.0), &self.1.name);
        match &self.1.kind {
            HazardKind::Trigger => write!(
                f,
                "trigger {name} of {table} may change the key or reach other rows: what sets it off is refused"
            )?,
            HazardKind::Rule => write!(
                f,
                "rule {name} rewrites writes to {table}: they are refused"
            )?,
            HazardKind::View => write!(f, "{table} is a view: writes through it are refused")?,
            HazardKind::Policy => write!(
                f,
                "policy {name} of {table} looks beyond its row: statements on it are refused"
            )?,
            HazardKind::Unique(_) => write!(
                f,
                "{name} of {table} does not contain the shard key, so that no shard sees what is taken on another: \
                 writes of its columns are refused"
            )?,
            HazardKind::Default => write!(
                f,
                "the default of {table}.{name} may give one value on several shards: INSERTs without a value for it are refused"
            )?,
            HazardKind::Cascade(child) => write!(
                f,
                "foreign key {name} to {table} changes {} on one shard only: what sets it off is refused",
                Shown(child)
            )?,
        }
        write!(f, ", unless per_shard lists {table}.{name}")
    }
}
