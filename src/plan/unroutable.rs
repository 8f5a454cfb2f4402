//! Why a statement is not routed: data only; `proxy/reply.rs` words it.

use crate::catalog::{effects::Hazard, snapshot::Standing};

/// Why a statement is not routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unroutable {
    /// A feature that is not computed over several shards.
    Unsupported { feature: &'static str },
    /// A sharded table that no predicate restricts to one key.
    Unpinned { table: String, key: String },
    /// The statement's keys live on several shards.
    SeveralShards { shards: Vec<String> },
    /// A table that the configuration does not list.
    UnknownTable { table: String },
    /// A view that takes rows of several shards together.
    ViewOverShards { view: String },
    /// INSERT without a value for the shard key.
    KeyMissing { table: String, key: String },
    /// INSERT with NULL as the shard key.
    KeyNull { table: String, key: String },
    /// INSERT whose shard key is not a constant or a parameter.
    KeyExpression { table: String, key: String },
    /// UPDATE, ON CONFLICT or MERGE that may change the shard key.
    KeyChanged { table: String, key: String },
    /// A value that cannot be read as the shard key.
    KeyValue { key: String, problem: KeyProblem },
    /// No shard of the group holds this key.
    NoShardForKey { group: String },
    /// A write to, or a row lock on, a table that every shard holds a copy of.
    ReferenceWrite { table: String },
    /// A function whose effects are not known, or that reads what a statement cannot show.
    Function { name: String },
    /// DDL and maintenance: to be run on each shard.
    PerShard { command: &'static str },
    /// PostgreSQL's grammar, as we know it, does not accept the text.
    NotUnderstood,
    /// The text is not UTF-8.
    NotUtf8,
    /// Nested too deeply.
    TooDeep,
    /// INSERT without a column list into a table whose columns are not known.
    ColumnsUnknown { table: String },
    /// COPY of a sharded table.
    Copy { table: String },
    /// Something of the table that acts on each shard by itself.
    PerShardObject { table: String, hazard: Hazard },
    /// A schema change that sharding cannot hold.
    CannotHold { table: String, what: Unheld },
    /// Other proxies say that keys of the group are elsewhere than the configuration says.
    MapDiffers { group: String },
    /// A reshard moves rows of the group, which are on two shards meanwhile, and this cannot be told apart from them.
    Doubled { group: String, what: Undoubled },
    /// It is not known which shards own which keys; [`Standing::Known`] counts as not read.
    MapUnknown(Standing),
    /// The override names another shard than the statement's own keys.
    OverrideContradicts { named: String, keys: String },
    /// `shardway.shard` names no shard.
    OverrideShard { shard: String },
    /// `shardway.key` is no key of the group, or there is not exactly one group that it can mean.
    OverrideKey { key: String },
}

/// What cannot leave out the rows that a shard has without owning them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Undoubled {
    /// The text is not understood well enough.
    Text,
    /// The key's hash cannot be computed by SQL.
    Hash,
    CurrentOf,
    MergeBySource,
    /// Column aliases of a table the columns of which are not known.
    ColumnAliases,
    /// ON CONFLICT, by a unique index that need not hold the key.
    Conflict,
    /// A shard that was chosen by a key which the statement does not say.
    KeyOverride,
    /// A view that does not show the key.
    View,
    /// COPY of something else than a table with rows of its own.
    Copy,
    /// A write that changes rows of the group by a foreign key's action.
    Action,
    /// A row that would come to a shard where a unique index without the key may meet it already.
    Moved,
    /// What a reference table loses is still referred to on a shard.
    Referred,
    /// A unique index without the key has met another row.
    Duplicate,
}

/// What sharding cannot hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unheld {
    /// UNIQUE, PRIMARY KEY or EXCLUDE without the shard key.
    Unique { key: String },
    /// A foreign key to rows that may be on another shard.
    Reference { to: String },
    /// The shard key's column is dropped, renamed or gets another type.
    KeyColumn,
    /// The shard key's column is missing.
    NoKey { key: String },
    /// The shard key's column is of another type than the group's.
    KeyType { key: String, wanted: &'static str },
    /// A listed table would have another name.
    Name,
    /// A group's key column would claim the table from where its rows are.
    Claimed { column: String },
    /// Tables that live in different places, in one statement.
    Apart,
    /// The comment names no group or shard, or contradicts the configuration.
    Comment,
}

/// What is wrong with a key value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyProblem {
    /// No value of the type.
    Malformed,
    /// Its meaning depends on a session setting, or on rounding.
    Ambiguous,
    /// Of a type that never addresses the key.
    Type,
}

impl Unroutable {
    /// The SQLSTATE that a client gets.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::UnknownTable { .. } => "42P01",
            Self::KeyMissing { .. } | Self::KeyNull { .. } => "23502",
            Self::KeyValue {
                problem: KeyProblem::Malformed,
                ..
            }
            | Self::OverrideKey { .. } => "22P02",
            Self::OverrideShard { .. } => "22023",
            Self::TooDeep => "54001",
            Self::MapDiffers { .. }
            | Self::MapUnknown(Standing::Lacking { .. } | Standing::Newer { .. }) => "55000",
            Self::MapUnknown(_) => "57P03",
            Self::NoShardForKey { .. } => "23514",
            Self::Unsupported { .. }
            | Self::Unpinned { .. }
            | Self::ViewOverShards { .. }
            | Self::SeveralShards { .. }
            | Self::KeyExpression { .. }
            | Self::KeyChanged { .. }
            | Self::KeyValue { .. }
            | Self::ReferenceWrite { .. }
            | Self::Function { .. }
            | Self::PerShard { .. }
            | Self::NotUnderstood
            | Self::NotUtf8
            | Self::ColumnsUnknown { .. }
            | Self::Copy { .. }
            | Self::CannotHold { .. }
            | Self::PerShardObject { .. }
            | Self::Doubled { .. }
            | Self::OverrideContradicts { .. } => "0A000",
        }
    }

    /// The stable code, as `docs/errors.md` lists it.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unsupported { .. } => "SW101",
            Self::Unpinned { .. } => "SW102",
            Self::SeveralShards { .. } => "SW103",
            Self::UnknownTable { .. } => "SW104",
            Self::ViewOverShards { .. } => "SW152",
            Self::KeyMissing { .. } => "SW105",
            Self::KeyNull { .. } => "SW106",
            Self::KeyExpression { .. } => "SW107",
            Self::KeyChanged { .. } => "SW108",
            Self::KeyValue { .. } => "SW109",
            Self::NoShardForKey { .. } => "SW110",
            Self::ReferenceWrite { .. } => "SW111",
            Self::Function { .. } => "SW112",
            Self::PerShard { .. } => "SW113",
            Self::NotUnderstood => "SW114",
            Self::NotUtf8 => "SW115",
            Self::TooDeep => "SW116",
            Self::ColumnsUnknown { .. } => "SW117",
            Self::Copy { .. } => "SW118",
            Self::OverrideContradicts { .. } => "SW119",
            Self::OverrideShard { .. } => "SW120",
            Self::OverrideKey { .. } => "SW121",
            Self::PerShardObject { .. } => "SW125",
            Self::CannotHold { .. } => "SW131",
            Self::MapDiffers { .. } => "SW165",
            Self::Doubled { .. } => "SW174",
            Self::MapUnknown(Standing::Known | Standing::Unread) => "SW166",
            Self::MapUnknown(Standing::Lacking { .. }) => "SW167",
            Self::MapUnknown(Standing::Behind { .. }) => "SW168",
            Self::MapUnknown(Standing::Newer { .. }) => "SW169",
        }
    }

    /// Whether a shard that the DBA names explicitly makes the statement acceptable.
    pub(super) fn lifted_by_override(&self) -> bool {
        matches!(
            self,
            Self::Unsupported { .. }
                | Self::Unpinned { .. }
                | Self::UnknownTable { .. }
                | Self::ViewOverShards { .. }
                | Self::KeyMissing { .. }
                | Self::KeyExpression { .. }
                | Self::ReferenceWrite { .. }
                | Self::Function { .. }
                | Self::PerShard { .. }
                | Self::ColumnsUnknown { .. }
                | Self::PerShardObject { .. }
                | Self::Copy { .. }
                | Self::Doubled { .. }
                | Self::NotUnderstood
                | Self::NotUtf8
                | Self::TooDeep
        )
    }
}
