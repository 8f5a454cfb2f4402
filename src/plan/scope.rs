//! Which column a name means: the relations of a query block, what they are called, and whose shard key a column is.
//!
//! A name resolves to a key only when PostgreSQL cannot resolve it to anything else: where columns are not known, a
//! name that another relation may own resolves to nothing, and the statement is at worst refused.

use crate::{
    catalog::group::GroupId,
    plan::route::Condition,
    sql::tree::{Alias, Column, JoinKind, Relation},
};

/// A sharded relation of the statement, once per mention.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) group: GroupId,
    pub(super) table: String,
    /// As written.
    pub(super) schema: Option<String>,
    pub(super) key: String,
    /// What its rows are called in the statement, if they are called otherwise than the table.
    pub(super) alias: Option<Alias>,
    pub(super) usage: Usage,
    /// Where its name stands in the text, bytes.
    pub(super) location: u32,
    /// The scope that it stands in.
    pub(super) block: usize,
    pub(super) nullable: Nullable,
    /// Each holds for every row that can matter.
    pub(super) conditions: Vec<Condition>,
    /// Instances whose key equals this one's in every row of this one that can matter.
    pub(super) equals: Vec<usize>,
}

impl Instance {
    /// Of a group and with its key, in this block.
    pub(super) fn read(
        relation: &Relation,
        (group, key): (GroupId, &str),
        block: usize,
        nullable: Nullable,
    ) -> Self {
        Self {
            group,
            table: relation.name.name.clone(),
            schema: relation.name.schema.clone(),
            key: key.to_owned(),
            alias: relation.alias.clone(),
            usage: Usage::Read,
            location: relation.location,
            block,
            nullable,
            conditions: Vec::new(),
            equals: Vec::new(),
        }
    }
}

/// What is done with a relation's rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Usage {
    Read,
    /// UPDATE, DELETE.
    Changed,
    /// MERGE INTO.
    Merged,
}

/// Whether an outer join may replace a relation's rows by NULLs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Nullable {
    No,
    Yes,
}

/// The columns of a relation; `open`: there may be others.
#[derive(Clone, Debug, Default)]
pub(super) struct Outputs {
    /// Name, and the instance whose key it is.
    pub(super) columns: Vec<(String, Option<usize>)>,
    pub(super) open: bool,
}

impl Outputs {
    /// Of nothing known.
    pub(super) fn unknown() -> Self {
        Self {
            columns: Vec::new(),
            open: true,
        }
    }

    /// After `AS t(a, b)`.
    pub(super) fn renamed(mut self, names: &[String]) -> Self {
        if names.is_empty() {
            return self;
        }
        if self.open {
            return Self {
                columns: names.iter().map(|name| (name.clone(), None)).collect(),
                open: true,
            };
        }
        for (column, name) in self.columns.iter_mut().zip(names) {
            column.0.clone_from(name);
        }
        self
    }
}

/// A relation as a block names it.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    /// Where it can be qualified by its schema.
    pub(super) schema: Option<String>,
    pub(super) outputs: Outputs,
    pub(super) kind: EntryKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum EntryKind {
    /// A table whose rows are locked where the statement runs.
    Table,
    Reference,
    Derived,
    /// What USING calls its merged columns: of these only by that name.
    Using,
    /// Inside a join that has an alias: cannot be named.
    Hidden,
}

/// A column that USING made of several.
#[derive(Debug)]
struct Merged {
    name: String,
    /// The first entry of the join.
    start: usize,
    /// The keys that a condition on it restricts; empty: not known.
    keys: Vec<usize>,
    /// Those of them that it equals in every row: a side that the join fills with NULLs has none.
    sure: Vec<usize>,
}

/// The keys that a name means on one side of a join.
#[derive(Debug, Default)]
pub(super) struct Side {
    pub(super) keys: Vec<usize>,
    pub(super) sure: Vec<usize>,
}

impl Side {
    fn of(keys: Vec<usize>) -> Self {
        let sure = keys.clone();
        Self { keys, sure }
    }
}

/// The names of one query block.
#[derive(Debug, Default)]
pub(super) struct Scope {
    pub(super) entries: Vec<Entry>,
    merged: Vec<Merged>,
    pub(super) parent: Option<usize>,
    /// A NATURAL join of unknown columns: no unqualified name is sure.
    pub(super) unsure: bool,
}

enum Lookup {
    Key(usize),
    Other,
    Maybe,
    No,
}

impl Entry {
    fn lookup(&self, name: &str) -> Lookup {
        if self.kind == EntryKind::Hidden {
            return Lookup::No;
        }
        let mut hits = self
            .outputs
            .columns
            .iter()
            .filter(|(column, _)| column == name);
        match (hits.next(), hits.next()) {
            (None, _) if self.outputs.open => Lookup::Maybe,
            (None, _) => Lookup::No,
            (Some((_, Some(key))), None) => Lookup::Key(*key),
            (Some((_, None)), None) => Lookup::Other,
            (Some(_), Some(_)) => Lookup::Maybe,
        }
    }
}

impl Scope {
    pub(super) fn inside(parent: Option<usize>) -> Self {
        Self {
            parent,
            ..Self::default()
        }
    }

    /// The keys that an unqualified name means among the entries from `start` on.
    /// `None`: no entry has it, a block further out may.
    fn unqualified(&self, start: usize, name: &str) -> Option<Side> {
        if self.unsure {
            return Some(Side::default());
        }
        if let Some(merged) = self
            .merged
            .iter()
            .rev()
            .find(|merged| merged.start >= start && merged.name == name)
        {
            return Some(Side {
                keys: merged.keys.clone(),
                sure: merged.sure.clone(),
            });
        }
        let mut keys = Vec::new();
        let mut others = false;
        for entry in self
            .entries
            .get(start..)
            .unwrap_or_default()
            .iter()
            .filter(|entry| entry.kind != EntryKind::Using)
        {
            match entry.lookup(name) {
                Lookup::Key(key) => keys.push(key),
                Lookup::Other | Lookup::Maybe => others = true,
                Lookup::No => {}
            }
        }
        match keys.len() {
            0 if !others => None,
            // Another relation that has the column too makes the name ambiguous, which PostgreSQL refuses.
            1 => Some(Side::of(keys)),
            _ => Some(Side::default()),
        }
    }

    fn qualified(
        &self,
        start: usize,
        schema: Option<&str>,
        table: &str,
        name: &str,
    ) -> Option<Vec<usize>> {
        let entry = self
            .entries
            .get(start..)
            .unwrap_or_default()
            .iter()
            .find(|entry| {
                entry.kind != EntryKind::Hidden
                    && entry.name == table
                    && schema.is_none_or(|schema| {
                        entry.schema.as_deref().is_none_or(|own| own == schema)
                    })
            })?;
        Some(match entry.lookup(name) {
            Lookup::Key(key) => vec![key],
            Lookup::Other | Lookup::Maybe | Lookup::No => Vec::new(),
        })
    }

    /// Makes one column of the columns of that name on both sides of a join; returns the keys of either side.
    pub(super) fn merge(
        &mut self,
        start: usize,
        middle: usize,
        name: &str,
        kind: JoinKind,
    ) -> (Side, Side) {
        let right = self.side(middle, self.entries.len(), name);
        let left = self.side(start, middle, name);
        let joined = |left: &[usize], right: &[usize]| [left, right].concat();
        // The column of the side that stays; of an inner join, both's; of a full join, that of whichever there is.
        let merged = match kind {
            _ if left.keys.is_empty() || right.keys.is_empty() => Side::default(),
            JoinKind::Inner => Side {
                keys: joined(&left.keys, &right.keys),
                sure: joined(&left.sure, &right.sure),
            },
            JoinKind::Left => Side {
                keys: left.keys.clone(),
                sure: left.sure.clone(),
            },
            JoinKind::Right => Side {
                keys: right.keys.clone(),
                sure: right.sure.clone(),
            },
            JoinKind::Full => Side {
                keys: joined(&left.keys, &right.keys),
                sure: Vec::new(),
            },
        };
        self.merged.push(Merged {
            name: name.to_owned(),
            start,
            keys: merged.keys,
            sure: merged.sure,
        });
        (left, right)
    }

    fn side(&self, start: usize, end: usize, name: &str) -> Side {
        let inside =
            |merged: &&Merged| merged.start >= start && merged.start < end && merged.name == name;
        if let Some(merged) = self.merged.iter().rev().find(inside) {
            return Side {
                keys: merged.keys.clone(),
                sure: merged.sure.clone(),
            };
        }
        let mut keys = Vec::new();
        for entry in &self.entries[start..end] {
            match entry.lookup(name) {
                Lookup::Key(key) => keys.push(key),
                // Not known to be there: then PostgreSQL takes it for the column.
                Lookup::Maybe | Lookup::Other | Lookup::No => {}
            }
        }
        if keys.len() == 1 && !self.unsure {
            Side::of(keys)
        } else {
            Side::default()
        }
    }

    /// The columns that USING merged inside a join that has an alias cannot be named any more.
    pub(super) fn hide_merged(&mut self, start: usize) {
        self.merged.retain(|merged| merged.start < start);
    }

    /// What `*` gives.
    pub(super) fn all(&self) -> Outputs {
        let mut outputs = Outputs {
            columns: Vec::new(),
            open: false,
        };
        for entry in self
            .entries
            .iter()
            .filter(|entry| !matches!(entry.kind, EntryKind::Hidden | EntryKind::Using))
        {
            outputs
                .columns
                .extend(entry.outputs.columns.iter().cloned());
            outputs.open |= entry.outputs.open;
        }
        if !self.merged.is_empty() {
            outputs.open = true;
        }
        outputs
    }

    /// What `table.*` gives.
    pub(super) fn all_of(&self, table: &str) -> Outputs {
        let found = self
            .entries
            .iter()
            .find(|entry| entry.kind != EntryKind::Hidden && entry.name == table);
        found.map_or_else(Outputs::unknown, |entry| entry.outputs.clone())
    }
}

/// The instances whose key a column is, several for a column that USING merged; none when it is no key, or unsure.
/// `start`: the first entry of the innermost scope that is visible (inside ON, only those of the join are).
pub(super) fn resolve(scopes: &[Scope], scope: usize, start: usize, column: &Column) -> Vec<usize> {
    resolve_side(scopes, scope, start, column).keys
}

/// As [`resolve`], with those that the column equals in every row.
pub(super) fn resolve_side(scopes: &[Scope], scope: usize, start: usize, column: &Column) -> Side {
    if column.star {
        return Side::default();
    }
    let (mut at, mut start) = (Some(scope), start);
    while let Some(scope) = at.and_then(|at| scopes.get(at)) {
        let found = match column.path.as_slice() {
            [name] => scope.unqualified(start, name),
            [table, name] => scope.qualified(start, None, table, name).map(Side::of),
            [schema, table, name] => scope
                .qualified(start, Some(schema), table, name)
                .map(Side::of),
            _ => Some(Side::default()),
        };
        if let Some(found) = found {
            return found;
        }
        (at, start) = (scope.parent, 0);
    }
    Side::default()
}
