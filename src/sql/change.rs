//! A schema change or maintenance statement as routing needs it: which tables it is about, and what of them it changes
//! that sharding depends on. Pure data, built by `parse/change.rs` alone.

use super::tree::Name;

/// A schema change or maintenance statement.
#[derive(Debug)]
pub struct Change {
    /// What it is called in errors.
    pub command: &'static str,
    pub what: What,
    pub block: Block,
    pub meanwhile: Meanwhile,
}

/// What it does where rows of its tables are on two shards, and one of these is kept up to date with the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    /// No value becomes another one, and none that was taken before is refused.
    Done(Mild),
    Refused(Harm),
}

/// What is done of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mild {
    /// Columns that every row has the same value in.
    pub added: Vec<String>,
    /// Constraints that are dropped: of which kind, the servers know.
    pub constraints: Vec<String>,
    /// Columns that may be NULL from then on.
    pub freed: Vec<String>,
}

/// Why it is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// All rows have to hold to something from then on.
    Holds,
    /// An index that is computed.
    Index,
    /// A column whose value in rows that are there is not the same on every server.
    Value,
    /// A column of a type of which nothing is known here.
    Type,
    Else,
}

/// Whether it can stand in a transaction block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    Allowed,
    /// It runs by itself: VACUUM, CREATE INDEX CONCURRENTLY.
    Never,
}

/// What is changed.
#[derive(Debug)]
pub enum What {
    NewTable(Box<NewTable>),
    /// These tables, and what belongs to them.
    Tables {
        names: Vec<Name>,
        alter: Box<Alter>,
    },
    /// LOCK of these tables, each of which may be elsewhere.
    Locks(Locks),
    /// TRUNCATE of these tables.
    Emptied(Emptied),
    /// Relations that need not be tables: indexes, sequences, views. Servers know which of them have one.
    Relations(Vec<Name>),
    /// A view of this name on every shard.
    NewView(Name),
    /// The same on every shard: schemas, types, functions, views, rights on all tables.
    Everywhere,
    /// The same once on each server: roles.
    EveryServer,
    /// Not computed over shards.
    Unsupported,
}

/// LOCK TABLE.
#[derive(Debug)]
pub struct Locks {
    pub tables: Vec<(Name, Children)>,
    /// What stands behind the tables: `IN SHARE MODE NOWAIT`.
    pub how: String,
}

/// TRUNCATE.
#[derive(Debug)]
pub struct Emptied {
    pub tables: Vec<(Name, Children)>,
    pub numbers: Numbers,
    pub others: Others,
}

/// What becomes of the sequences of tables that are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbers {
    GoOn,
    /// RESTART IDENTITY.
    BeginAnew,
}

/// What becomes of tables that refer to those that are emptied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Others {
    /// There may be none.
    Left,
    /// CASCADE: they are emptied as well.
    Included,
}

/// Whether tables that inherit from one are meant too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Children {
    Included,
    /// ONLY.
    Left,
}

/// CREATE TABLE.
#[derive(Debug, Default)]
pub struct NewTable {
    pub name: Option<Name>,
    pub columns: Vec<Column>,
    pub holds: Holds,
    /// The table that it is a partition of, or inherits from.
    pub parents: Vec<Name>,
    /// Tables whose columns it copies.
    pub likes: Vec<Name>,
    /// OF a composite type: its columns are not known.
    pub typed: bool,
}

/// A column of a new table.
#[derive(Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// The type's name without schema, as the grammar calls it (`int4`, `text`); an array has none.
    pub type_name: Option<String>,
    pub modifier: Modifier,
}

/// Whether a type has a length or precision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Modifier {
    None,
    Some,
}

/// What an ALTER changes that sharding depends on.
#[derive(Debug, Default)]
pub struct Alter {
    pub holds: Holds,
    /// Columns that are added, or that another is called from now on.
    pub added: Vec<String>,
    /// Columns that are dropped, renamed or get another type.
    pub columns: Vec<String>,
    pub name: Renamed,
    /// Other tables that it ties to the table: a partition, a parent.
    pub ties: Vec<Name>,
}

/// Whether a table's own name or schema changes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Renamed {
    #[default]
    No,
    /// This is its new name.
    Name(String),
    /// This is its new schema.
    Schema(String),
}

/// Constraints that hold over rows of several shards only if they keep to the shard key.
#[derive(Debug, Default)]
pub struct Holds {
    pub uniques: Vec<Unique>,
    pub references: Vec<Reference>,
}

/// UNIQUE, PRIMARY KEY, EXCLUDE or a unique index: its columns, `None` for an expression.
#[derive(Debug, PartialEq, Eq)]
pub struct Unique {
    pub columns: Vec<Option<String>>,
}

/// A foreign key.
#[derive(Debug, PartialEq, Eq)]
pub struct Reference {
    pub columns: Vec<String>,
    pub table: Name,
    /// Empty: the primary key of that table.
    pub referenced: Vec<String>,
}
