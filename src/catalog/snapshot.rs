//! One immutable version of what lives where in one database, numbered by its epoch and swapped whole.

use super::{
    code::Code,
    effects::Effects,
    group::{Group, GroupId},
    oids::Oids,
    shard::{ShardId, ShardSet},
};
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

/// The number of a catalog snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Epoch(pub u64);

/// The schema that Shardway has on every shard for itself.
pub const OWN_SCHEMA: &str = "shardway";

/// One immutable version of what lives where in one database.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    pub epoch: Epoch,
    /// Counts what has been learnt from the servers since (columns, tables found by key column): part of a plan's key.
    pub schema: u64,
    /// Since which change of what is on two shards; grows with each in this process.
    pub era: u64,
    /// The logical database's name, as clients give it.
    pub database: String,
    /// Shard names in order; [`ShardId`] is the index.
    pub shards: Vec<String>,
    /// The shards that serve: no row that counts is on another.
    pub members: ShardSet,
    /// Those that were asked for what is known of tables; none: nobody was.
    pub looked: ShardSet,
    /// Holds the catalog, and what exists once per database.
    pub home: ShardId,
    pub groups: Vec<Group>,
    /// Groups whose buckets the configuration splits over as many shards as there are.
    pub even: Vec<GroupId>,
    /// Every listed table.
    pub tables: HashMap<TableName, Table, foldhash::fast::RandomState>,
    /// Groups that take every table with a column of that name (`key_column`), once the columns are known.
    pub key_columns: Vec<(String, GroupId)>,
    /// Where tables live that nothing lists.
    pub unlisted: Unlisted,
    /// Those of `tables` that the configuration does not list: a group's key column claims them, or the servers say where
    /// they live.
    pub learned: HashSet<TableName, foldhash::fast::RandomState>,
    /// What servers have outside of their own schemas that nothing lists, once they were asked: in an earlier schema of
    /// search_path it hides a listed table.
    pub others: HashMap<TableName, Other, foldhash::fast::RandomState>,
    /// What those of them set off that are on one shard, where it reaches beyond that.
    pub effects_of_others: HashMap<TableName, Effects, foldhash::fast::RandomState>,
    /// What a name means that none of the above has.
    pub unseen: Unseen,
    /// Groups whose keys are elsewhere, as other proxies say: their tables are not used.
    pub barred: Vec<GroupId>,
    /// Whether it is known who owns which keys.
    pub standing: Standing,
    /// Sequences that count for tables of one shard, and on which.
    pub sequences: HashMap<TableName, ShardId, foldhash::fast::RandomState>,
    /// What may act on each shard by itself, as the configuration says.
    pub per_shard: Vec<ObjectName>,
    /// What the database's own functions may leave in a session.
    pub code: Code,
    /// Which numbers of own types mean the same; `None`: those of all shards, or nobody was asked.
    pub oids: Option<Arc<Oids>>,
}

/// A table's trigger, constraint, index, policy, rule or column; `*` stands for every name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObjectName {
    pub schema: String,
    pub table: String,
    pub name: String,
}

/// A relation that nothing lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Other {
    /// With rows of its own.
    Table,
    /// A partition, an inheritance child, or a parent of such: its rows are also those of tables that may be elsewhere.
    Derived,
    /// A view of which it is not known where its rows are.
    View,
    /// A view that was on one shard until keys of its tables changed their owner: its definition has to be looked at again.
    Moved,
}

/// What a relation is whose place is known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Nature {
    /// A table, or what the configuration lists as one.
    #[default]
    Table,
    /// A partition or an inheritance child, which is where its parent is.
    Child,
    /// A view: every shard shows its part of it.
    View,
    /// A view that shows what is of the moment, of the session, of the server, or in an order: only of one shard.
    ViewOfOneShard,
    /// As above, and it calls functions that are not PostgreSQL's own.
    ViewWithCode,
}

impl Nature {
    /// Whether it has no rows of its own.
    #[must_use]
    pub fn is_view(self) -> bool {
        match self {
            Self::Table | Self::Child => false,
            Self::View | Self::ViewOfOneShard | Self::ViewWithCode => true,
        }
    }
}

/// A table's name with its schema, both as the catalog stores them (case folded already).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TableName {
    pub schema: String,
    pub name: String,
}

/// Where a table's rows live, and its columns when a server has been asked.
#[derive(Clone, Debug, PartialEq)]
pub struct Table {
    pub placement: Placement,
    /// Column names in their order; empty: not known (no server has been asked).
    pub columns: Vec<String>,
    /// The columns' types and collations, as SQL names them anywhere.
    pub sources: Vec<String>,
    /// What its own triggers, constraints and defaults do, when the servers have been asked.
    pub effects: Effects,
    pub nature: Nature,
    /// Groups of whose tables it shows rows, a view that is on one shard as long as these are.
    pub over: Vec<GroupId>,
}

/// Where a table's rows live.
#[derive(Clone, Debug, PartialEq)]
pub enum Placement {
    /// Spread by the value of one column.
    Sharded { group: GroupId, key_column: String },
    /// Whole and identical on every shard.
    Reference,
    /// Whole on one shard.
    Single(ShardId),
}

/// Where a table lives that nothing lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unlisted {
    /// Refused: 42P01 with a hint.
    Error,
    /// On that shard.
    On(ShardId),
}

/// Whether it is known which shard owns which keys, and which shards serve. What is on several shards is used only then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Standing {
    Known,
    /// The map that all proxies share was not read yet.
    Unread,
    /// The map names a shard that the configuration does not have.
    Lacking {
        shard: String,
    },
    /// Newer proxies keep on this shard what this version does not understand.
    Newer {
        shard: String,
        what: String,
    },
    /// A shard has seen a later map than the home shard has, or another one of its number; `None`: this proxy has.
    Behind {
        shard: Option<String>,
        seen: i64,
        kept: i64,
    },
}

/// What a table is taken for that nothing lists and that no server was seen to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unseen {
    /// One of the unlisted tables.
    Unlisted,
    /// Maybe one that was made just now and belongs elsewhere: the servers are asked before a statement runs.
    Asked,
}

impl Standing {
    /// Whether a home shard that has this map by now still lacks what a shard has seen.
    #[must_use]
    pub fn is_behind(&self, now: i64) -> bool {
        match self {
            // Of two maps of one number the copies have to be asked again.
            Self::Behind {
                shard: Some(_),
                seen,
                kept,
            } => now < *seen || seen == kept,
            Self::Behind { shard: None, .. }
            | Self::Known
            | Self::Unread
            | Self::Lacking { .. }
            | Self::Newer { .. } => false,
        }
    }
}

impl Table {
    /// A table of which no server has told anything yet.
    #[must_use]
    pub fn unasked(placement: Placement) -> Self {
        Self {
            placement,
            columns: Vec::new(),
            sources: Vec::new(),
            effects: Effects::default(),
            nature: Nature::Table,
            over: Vec::new(),
        }
    }
}

impl Snapshot {
    /// Epoch 1 of a database without groups and tables, the first shard its home.
    #[must_use]
    pub fn new(database: &str, shards: Vec<String>) -> Self {
        Self {
            epoch: Epoch(1),
            schema: 0,
            era: 0,
            database: database.to_owned(),
            members: ShardSet::first(shards.len()),
            looked: ShardSet::new(),
            shards,
            home: ShardId(0),
            groups: Vec::new(),
            even: Vec::new(),
            tables: HashMap::default(),
            key_columns: Vec::new(),
            unlisted: Unlisted::Error,
            learned: HashSet::default(),
            others: HashMap::default(),
            effects_of_others: HashMap::default(),
            unseen: Unseen::Unlisted,
            barred: Vec::new(),
            standing: Standing::Known,
            sequences: HashMap::default(),
            per_shard: Vec::new(),
            code: Code::Unknown,
            oids: None,
        }
    }

    /// Whether the database has one shard, so that Shardway is a pooler and refuses nothing.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.shards.len() == 1
    }

    /// The group with this number.
    #[must_use]
    pub fn group(&self, id: GroupId) -> &Group {
        &self.groups[usize::from(id.0)]
    }

    /// Where a table lives, if it is listed.
    #[must_use]
    pub fn table(&self, schema: &str, name: &str) -> Option<&Table> {
        self.tables.get(&TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        })
    }

    /// What writing or reading a table sets off, as far as the servers have told.
    #[must_use]
    pub fn effects(&self, schema: &str, name: &str) -> Option<&Effects> {
        let name = TableName {
            schema: schema.to_owned(),
            name: name.to_owned(),
        };
        let listed = self.tables.get(&name).map(|table| &table.effects);
        listed.or_else(|| self.effects_of_others.get(&name))
    }

    /// What kind of relation it is, if servers have it and nothing lists it.
    #[must_use]
    pub fn other(&self, schema: &str, name: &str) -> Option<Other> {
        if self.others.is_empty() {
            return None;
        }
        self.others
            .get(&TableName {
                schema: schema.to_owned(),
                name: name.to_owned(),
            })
            .copied()
    }

    /// After a change that nobody has looked at: where rows of views are now is not known, and what a view or a child is
    /// called. Names that are not known are not taken for tables that nothing lists any more.
    pub fn forget_derived(&mut self, command: &str, tables: &[String]) {
        let derived = self.tables.iter();
        let derived = derived.filter(|(_, table)| table.nature != Nature::Table);
        let mut touched = derived.filter(|(name, _)| tables.contains(&name.name));
        // A view's, a schema's or a type's.
        let renames = command == "RENAME" && tables.is_empty();
        if !renames && !command.contains("VIEW") && touched.next().is_none() {
            return;
        }
        let views = self.tables.iter();
        let views = views.filter(|(_, table)| table.nature.is_view());
        let views: Vec<TableName> = views.map(|(name, _)| name.clone()).collect();
        for view in views {
            self.tables.remove(&view);
            self.others.insert(view, Other::View);
        }
        if let Unlisted::On(shard) = std::mem::replace(&mut self.unlisted, Unlisted::Error) {
            let plain = self.others.iter();
            let plain = plain.filter(|(_, other)| **other == Other::Table);
            for (name, _) in plain {
                let table = Table::unasked(Placement::Single(shard));
                self.tables.insert(name.clone(), table);
            }
        }
    }

    /// Keys of these groups have another owner than when the servers were looked at: views are not where they were.
    pub fn forget_views_over(&mut self, groups: &[GroupId]) {
        let shows = |table: &Table| table.over.iter().any(|group| groups.contains(group));
        let views = self.tables.iter().filter(|(_, table)| shows(table));
        let views: Vec<TableName> = views.map(|(name, _)| name.clone()).collect();
        for view in views {
            self.tables.remove(&view);
            self.others.insert(view, Other::Moved);
        }
    }

    /// Whether views have to be looked at again.
    #[must_use]
    pub fn has_moved_views(&self) -> bool {
        self.others.values().any(|other| *other == Other::Moved)
    }

    /// Every shard that serves.
    #[must_use]
    pub fn all(&self) -> ShardSet {
        self.members.clone()
    }

    /// Whether what tables set off is known of every shard that serves, as far as servers are asked at all.
    #[must_use]
    pub fn is_looked(&self) -> bool {
        self.unseen == Unseen::Unlisted
            || self.members.iter().all(|shard| self.looked.contains(shard))
    }

    /// The shards that are asked what any could answer: those that own keys, and the home shard. One that owns none may be
    /// about to leave, and who leaves must not have been read from by then.
    #[must_use]
    pub fn answering(&self) -> ShardSet {
        if self.groups.is_empty() {
            return self.all();
        }
        let mut owning = ShardSet::one(self.home);
        for group in &self.groups {
            owning.union(&group.shards());
        }
        let members = self.members.iter();
        members.filter(|shard| owning.contains(*shard)).collect()
    }

    /// Whether a shard is about to serve no more: rows move, and it owns none.
    #[must_use]
    pub fn is_leaving(&self, shard: ShardId) -> bool {
        let moves = self.groups.iter().any(|group| !group.doubled.is_empty());
        moves && !self.answering().contains(shard)
    }

    /// The shard with this name.
    #[must_use]
    pub fn shard_named(&self, name: &str) -> Option<ShardId> {
        self.shards
            .iter()
            .position(|shard| shard == name)
            .and_then(|at| u16::try_from(at).ok())
            .map(ShardId)
    }
}
