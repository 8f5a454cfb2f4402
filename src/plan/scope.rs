//! Which column a name means: the relations of a query block, what they are called, and whose shard key a column is.
//!
//! A name resolves to a key only when PostgreSQL cannot resolve it to anything else: where columns are not known, a
//! name that another relation may own resolves to nothing, and the statement is at worst refused.

use crate::{catalog::group::GroupId, plan::route::Condition, sql::tree::Column};

/// A sharded relation of the statement, once per mention.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) group: GroupId,
    pub(super) table: String,
    pub(super) key: String,
    /// The scope that it stands in.
    pub(super) block: usize,
    pub(super) nullable: Nullable,
    /// Each holds for every row that can matter.
    pub(super) conditions: Vec<Condition>,
    /// Instances whose key equals this one's in every row of this one that can matter.
    pub(super) equals: Vec<usize>,
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
    /// Inside a join that has an alias: cannot be named.
    Hidden,
}

/// A column that USING made of several.
#[derive(Debug)]
struct Merged {
    name: String,
    /// The first entry of the join.
    start: usize,
    /// The keys that it is made of; empty: not known.
    keys: Vec<usize>,
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
    fn unqualified(&self, start: usize, name: &str) -> Option<Vec<usize>> {
        if self.unsure {
            return Some(Vec::new());
        }
        if let Some(merged) = self
            .merged
            .iter()
            .rev()
            .find(|merged| merged.start >= start && merged.name == name)
        {
            return Some(merged.keys.clone());
        }
        let mut keys = Vec::new();
        let mut others = false;
        for entry in self.entries.get(start..).unwrap_or_default() {
            match entry.lookup(name) {
                Lookup::Key(key) => keys.push(key),
                Lookup::Other | Lookup::Maybe => others = true,
                Lookup::No => {}
            }
        }
        match keys.len() {
            0 if !others => None,
            // Another relation that has the column too makes the name ambiguous, which PostgreSQL refuses.
            1 => Some(keys),
            _ => Some(Vec::new()),
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
    ) -> (Vec<usize>, Vec<usize>) {
        let right = self.unqualified(middle, name).unwrap_or_default();
        let left = self.left_side(start, middle, name);
        let keys = if left.is_empty() || right.is_empty() {
            Vec::new()
        } else {
            left.iter().chain(&right).copied().collect()
        };
        self.merged.push(Merged {
            name: name.to_owned(),
            start,
            keys,
        });
        (left, right)
    }

    fn left_side(&self, start: usize, middle: usize, name: &str) -> Vec<usize> {
        let inside = |merged: &&Merged| {
            merged.start >= start && merged.start < middle && merged.name == name
        };
        if let Some(merged) = self.merged.iter().rev().find(inside) {
            return merged.keys.clone();
        }
        let mut keys = Vec::new();
        for entry in &self.entries[start..middle] {
            if let Lookup::Key(key) = entry.lookup(name) {
                keys.push(key);
            }
        }
        if keys.len() == 1 && !self.unsure {
            keys
        } else {
            Vec::new()
        }
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
            .filter(|entry| entry.kind != EntryKind::Hidden)
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
    if column.star {
        return Vec::new();
    }
    let (mut at, mut start) = (Some(scope), start);
    while let Some(scope) = at.and_then(|at| scopes.get(at)) {
        let found = match column.path.as_slice() {
            [name] => scope.unqualified(start, name),
            [table, name] => scope.qualified(start, None, table, name),
            [schema, table, name] => scope.qualified(start, Some(schema), table, name),
            _ => Some(Vec::new()),
        };
        if let Some(found) = found {
            return found;
        }
        (at, start) = (scope.parent, 0);
    }
    Vec::new()
}
