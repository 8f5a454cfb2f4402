//! Query blocks: which relations a statement reads, and what its predicates say of their keys.
//!
//! Why a condition may restrict a relation: deleting every row that fails it would not change the result. So WHERE
//! restricts each relation of its block (a comparison with NULL is never true, which covers null-extended rows), ON
//! only the side that the join does not preserve, and a subquery's predicates only the subquery's own relations.
//! An equality with another relation's key passes that relation's conditions on, under the same rule.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

mod conditions;
mod joins;
mod places;
mod values;

use super::{
    Context, Footing,
    route::{Condition, Fixed, Pin, Why},
    scope::{Entry, EntryKind, Instance, Nullable, Outputs, Scope, resolve},
    touch::Touches,
    unroutable::Unroutable,
    value::Value,
};
use crate::{
    catalog::{
        effects::Act,
        group::GroupId,
        key::KeyType,
        shard::ShardId,
        snapshot::{Snapshot, Table},
    },
    sql::{
        normalize::Slot,
        tree::{Body, Cte, Expr, From, Kind, Locking, Name, Query, Relation, Select, Target},
    },
    wire::types::Oid,
};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
};

/// The analysis of one statement.
pub(super) struct Analysis<'a> {
    pub(super) text: &'a [u8],
    pub(super) slots: &'a [Slot],
    pub(super) context: &'a Context,
    pub(super) snapshot: &'a Snapshot,
    pub(super) scopes: Vec<Scope>,
    pub(super) instances: Vec<Instance>,
    ctes: Vec<(String, Outputs)>,
    /// Subqueries of expressions that were looked into, by where they stand in memory.
    subqueries: HashMap<usize, Outputs>,
    /// Pins of new rows and new keys.
    pub(super) written: Vec<Pin>,
    /// The group of a table that rows are inserted into.
    pub(super) inserted: Option<GroupId>,
    pub(super) fixed: Vec<Fixed>,
    /// Parameters that are read as keys.
    keyed: RefCell<HashMap<u32, Keyed>>,
    /// Reference tables that are read.
    references: Vec<String>,
    /// Why it is refused, unless an override lifts it; the first is told.
    pub(super) refusals: Vec<Unroutable>,
    pub(super) writes: bool,
    /// What the views that are read show.
    pub(super) moment: Moment,
    /// Whether a system catalog is read.
    pub(super) catalogs: bool,
    /// How many tables are written, and the sharded one that an UPDATE or DELETE changes.
    pub(super) changes: usize,
    pub(super) changed: Option<usize>,
    /// The weakest of what tables were found by.
    pub(super) footing: Cell<Footing>,
    /// A group that it came upon and that is not served.
    pub(super) barred: Cell<Option<Barred>>,
    /// Whose rows may be touched.
    pub(super) touches: Cell<Touches>,
    /// The relation whose key new rows take over.
    pub(super) carried: Option<usize>,
    /// Groups of relations whose keys nothing restricts.
    pub(super) unrestricted: Vec<GroupId>,
}

/// How a parameter is read as a key.
#[derive(Debug)]
struct Keyed {
    /// Where it stands, in memory: one place may be looked at for several relations.
    places: HashSet<usize>,
    /// What its first place takes it for.
    meaning: (KeyType, Option<Oid>, Count),
    agreed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Count {
    One,
    Array,
}

/// What views show that is not in their tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moment {
    /// Nothing.
    Any,
    /// The moment, the session, the server: no two shards show it alike.
    Own,
    /// What functions compute that are not PostgreSQL's own.
    OfCode,
}

/// Why what a statement names is not served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Barred {
    Group(GroupId),
    /// It is not known which shards own what.
    Unknown,
}

/// Where a table is.
pub(super) enum Place<'a> {
    Sharded {
        group: GroupId,
        key: &'a str,
        table: &'a Table,
    },
    Reference(&'a Table),
    Single(ShardId),
    Catalog,
    Unknown,
}

impl<'a> Analysis<'a> {
    pub(super) fn new(
        text: &'a [u8],
        slots: &'a [Slot],
        context: &'a Context,
        snapshot: &'a Snapshot,
    ) -> Self {
        Self {
            text,
            slots,
            context,
            snapshot,
            scopes: Vec::new(),
            instances: Vec::new(),
            ctes: Vec::new(),
            subqueries: HashMap::new(),
            written: Vec::new(),
            inserted: None,
            fixed: Vec::new(),
            keyed: RefCell::default(),
            references: Vec::new(),
            refusals: Vec::new(),
            writes: false,
            moment: Moment::Any,
            catalogs: false,
            changes: 0,
            changed: None,
            footing: Cell::default(),
            barred: Cell::default(),
            touches: Cell::default(),
            carried: None,
            unrestricted: Vec::new(),
        }
    }

    /// A query or a write, standing in `parent`; returns its columns.
    pub(super) fn kind(&mut self, kind: &Kind, parent: Option<usize>) -> Outputs {
        match kind {
            Kind::Query(query) => return self.query(query, parent),
            Kind::Insert(insert) => self.insert(insert, parent),
            Kind::Update(update) => self.update(update, parent),
            Kind::Delete(delete) => self.delete(delete, parent),
            Kind::Merge(merge) => self.merge(merge, parent),
            _ => self.refuse(Unroutable::Unsupported {
                feature: "a utility command inside a query",
            }),
        }
        Outputs::unknown()
    }

    /// Whether no table is read, not even one of the system's.
    pub(super) fn reads_nothing(&self) -> bool {
        self.instances.is_empty()
            && self.references.is_empty()
            && self.fixed.is_empty()
            && !self.catalogs
    }

    pub(super) fn refuse(&mut self, why: Unroutable) {
        self.refusals.push(why);
    }

    pub(super) fn query(&mut self, query: &Query, parent: Option<usize>) -> Outputs {
        let outer = self.ctes.len();
        let references = self.references.len();
        self.with(&query.ctes, query.recursive, parent);
        let (scope, outputs) = match &query.body {
            Body::Select(select) => self.select(select, parent),
            Body::Values(rows) => {
                let scope = self.open(parent);
                for value in rows.iter().flatten() {
                    self.walk(value, scope);
                }
                (scope, Outputs::unknown())
            }
            Body::SetOperation(sides) => {
                for side in sides {
                    self.query(side, parent);
                }
                (self.open(parent), Outputs::unknown())
            }
        };
        for expr in &query.tail {
            self.walk(expr, scope);
        }
        if query.into.is_some() {
            self.refuse(Unroutable::PerShard {
                command: "SELECT INTO",
            });
        }
        for locking in &query.locking {
            self.lock(locking, scope, references);
        }
        self.ctes.truncate(outer);
        outputs
    }

    /// Row locks on one copy of a reference table exclude nobody who locks another.
    fn lock(&mut self, locking: &Locking, scope: usize, references: usize) {
        self.writes = true;
        let Some(table) = self.references.get(references).cloned() else {
            return;
        };
        let only_tables = !locking.of.is_empty()
            && locking.of.iter().all(|name| {
                self.scopes[scope]
                    .entries
                    .iter()
                    .any(|entry| entry.name == *name && entry.kind == EntryKind::Table)
            });
        if !only_tables {
            self.refuse(Unroutable::ReferenceWrite { table });
        }
    }

    pub(super) fn with(&mut self, ctes: &[Cte], recursive: bool, parent: Option<usize>) {
        if recursive {
            // Any of them may name any other, itself included.
            self.ctes.extend(
                ctes.iter()
                    .map(|cte| (cte.name.clone(), Outputs::unknown())),
            );
        }
        for cte in ctes {
            let outputs = self.kind(&cte.body, parent).renamed(&cte.columns);
            if !recursive {
                self.ctes.push((cte.name.clone(), outputs));
            }
        }
    }

    pub(super) fn forget_ctes(&mut self, count: usize) {
        self.ctes.truncate(count);
    }

    pub(super) fn cte_count(&self) -> usize {
        self.ctes.len()
    }

    pub(super) fn open(&mut self, parent: Option<usize>) -> usize {
        self.scopes.push(Scope::inside(parent));
        self.scopes.len() - 1
    }

    fn select(&mut self, select: &Select, parent: Option<usize>) -> (usize, Outputs) {
        let scope = self.open(parent);
        self.items(&select.from, scope);
        self.filter(select.filter.as_ref(), scope);
        for target in &select.targets {
            self.walk(&target.value, scope);
        }
        for expr in &select.rest {
            self.walk(expr, scope);
        }
        (scope, self.outputs(&select.targets, scope))
    }

    pub(super) fn items(&mut self, items: &[From], scope: usize) {
        for item in items {
            self.item(item, scope, Nullable::No);
        }
    }

    /// WHERE: restricts every relation of its block.
    pub(super) fn filter(&mut self, filter: Option<&Expr>, scope: usize) {
        if let Some(filter) = filter {
            self.restrict(filter, scope, 0, &(0..self.instances.len()));
            self.walk(filter, scope);
        }
    }

    fn outputs(&self, targets: &[Target], scope: usize) -> Outputs {
        let mut outputs = Outputs::default();
        for target in targets {
            let name = target.name.clone();
            match &target.value {
                Expr::Column(column) if column.star => {
                    let all = match column.path.last() {
                        None => self.scopes[scope].all(),
                        Some(table) => self.scopes[scope].all_of(table),
                    };
                    outputs.columns.extend(all.columns);
                    outputs.open |= all.open;
                }
                Expr::Column(column) => {
                    let key = resolve(&self.scopes, scope, 0, column);
                    let name = name
                        .or_else(|| column.path.last().cloned())
                        .unwrap_or_default();
                    outputs
                        .columns
                        .push((name, key.first().copied().filter(|_| key.len() == 1)));
                }
                _ => {
                    outputs.open |= name.is_none();
                    outputs.columns.push((name.unwrap_or_default(), None));
                }
            }
        }
        outputs
    }

    pub(super) fn item(&mut self, item: &From, scope: usize, nullable: Nullable) {
        match item {
            From::Table(relation) => {
                self.table(relation, scope, nullable);
            }
            From::Subquery {
                lateral,
                query,
                alias,
            } => {
                let parent = if *lateral {
                    Some(scope)
                } else {
                    self.scopes[scope].parent
                };
                let outputs = self.kind(query, parent);
                let (name, columns) = alias
                    .as_ref()
                    .map_or(("", &[][..]), |alias| (&alias.name, &alias.columns));
                self.enter(scope, name, outputs.renamed(columns), EntryKind::Derived);
            }
            From::Function { arguments, alias } => {
                for argument in arguments {
                    self.walk(argument, scope);
                }
                let name = alias.as_ref().map_or("", |alias| &alias.name);
                self.enter(scope, name, Outputs::unknown(), EntryKind::Derived);
            }
            From::Join(join) => self.join(join, scope, nullable),
        }
    }

    fn enter(&mut self, scope: usize, name: &str, outputs: Outputs, kind: EntryKind) {
        self.scopes[scope].entries.push(Entry {
            name: name.to_owned(),
            schema: None,
            outputs,
            kind,
        });
    }

    /// A table in FROM or as the target of a write; returns its instance when it is sharded.
    pub(super) fn table(
        &mut self,
        relation: &Relation,
        scope: usize,
        nullable: Nullable,
    ) -> Option<usize> {
        let renames = relation
            .alias
            .as_ref()
            .map_or(&[][..], |alias| &alias.columns);
        let cte = (relation.name.schema.is_none())
            .then(|| {
                self.ctes
                    .iter()
                    .rev()
                    .find(|(name, _)| *name == relation.name.name)
            })
            .flatten();
        if let Some((name, outputs)) = cte {
            let name = relation
                .alias
                .as_ref()
                .map_or_else(|| name.clone(), |alias| alias.name.clone());
            let outputs = outputs.clone().renamed(renames);
            self.enter(scope, &name, outputs, EntryKind::Derived);
            return None;
        }
        self.table_itself(relation, scope, nullable)
    }

    /// As [`Self::table`], for a name that no CTE shadows.
    pub(super) fn table_itself(
        &mut self,
        relation: &Relation,
        scope: usize,
        nullable: Nullable,
    ) -> Option<usize> {
        let renames = relation
            .alias
            .as_ref()
            .map_or(&[][..], |alias| &alias.columns);
        let mut instance = None;
        let (outputs, kind) = match self.place(&relation.name) {
            Place::Sharded { group, key, table } => {
                self.views(table);
                if let Some(hazard) = table.effects.of(Act::Select) {
                    self.refuse(Unroutable::PerShardObject {
                        table: relation.name.name.clone(),
                        hazard: hazard.clone(),
                    });
                }
                instance = Some(self.instances.len());
                let outputs = table_outputs(table, Some((key, self.instances.len())));
                let read = Instance::read(relation, (group, key), scope, nullable);
                self.instances.push(read);
                (outputs, EntryKind::Table)
            }
            Place::Reference(table) => {
                self.views(table);
                self.references.push(relation.name.name.clone());
                (table_outputs(table, None), EntryKind::Reference)
            }
            Place::Single(shard) => {
                if let Some(table) = self.listed(&relation.name) {
                    self.views(table);
                }
                self.sets_off(relation, Act::Select);
                self.fix_table(shard, &relation.name.name);
                (Outputs::unknown(), EntryKind::Table)
            }
            Place::Catalog => {
                self.catalogs = true;
                if relation.name.name.starts_with("pg_largeobject") {
                    self.fixed.push(Fixed {
                        shard: self.snapshot.home,
                        why: Why::LargeObjects,
                    });
                }
                (Outputs::unknown(), EntryKind::Table)
            }
            Place::Unknown => {
                self.refuse(self.not_placed(&relation.name));
                (Outputs::unknown(), EntryKind::Table)
            }
        };
        let (name, schema) = match &relation.alias {
            Some(alias) => (alias.name.clone(), None),
            None => (relation.name.name.clone(), relation.name.schema.clone()),
        };
        self.scopes[scope].entries.push(Entry {
            name,
            schema,
            outputs: outputs.renamed(renames),
            kind,
        });
        instance
    }

    pub(super) fn fix_table(&mut self, shard: ShardId, table: &str) {
        self.fixed.push(Fixed {
            shard,
            why: Why::Table(table.to_owned()),
        });
    }

    /// Nothing restricts this relation's keys: all of its group's shards would be needed.
    pub(super) fn unpinned(&mut self, group: GroupId, table: String, key: String) {
        self.unrestricted.push(group);
        match self.snapshot.group(group).shards().single() {
            Some(shard) => self.fixed.push(Fixed {
                shard,
                why: Why::Group,
            }),
            None => self.refuse(Unroutable::Unpinned { table, key }),
        }
    }

    /// A subquery of an expression, looked into once however often it is asked for.
    fn subquery(&mut self, query: &Kind, scope: usize) -> Outputs {
        let place = std::ptr::from_ref(query).addr();
        if let Some(outputs) = self.subqueries.get(&place) {
            return outputs.clone();
        }
        let outputs = self.kind(query, Some(scope));
        self.subqueries.insert(place, outputs.clone());
        outputs
    }

    pub(super) fn key_type(&self, instance: usize) -> KeyType {
        self.snapshot.group(self.instances[instance].group).key_type
    }

    /// Looks into the subqueries of an expression.
    pub(super) fn walk(&mut self, expr: &Expr, scope: usize) {
        match expr {
            Expr::Query(query) => {
                self.subquery(query, scope);
            }
            Expr::InQuery { left, query } => {
                self.walk(left, scope);
                self.subquery(query, scope);
            }
            Expr::Cast { inner, .. } | Expr::Negate(inner) => self.walk(inner, scope),
            Expr::Compare { left, right, .. } | Expr::EqualsAny { left, array: right } => {
                self.walk(left, scope);
                self.walk(right, scope);
            }
            Expr::Between { left, low, high } => {
                for part in [left, low, high] {
                    self.walk(part, scope);
                }
            }
            Expr::In { left, list } => {
                self.walk(left, scope);
                self.walk_all(list, scope);
            }
            Expr::And(parts)
            | Expr::Or(parts)
            | Expr::Row(parts)
            | Expr::Array(parts)
            | Expr::Other(parts) => {
                self.walk_all(parts, scope);
            }
            Expr::Column(_) | Expr::Literal(_) | Expr::Parameter(_) | Expr::Default => {}
        }
    }

    pub(super) fn walk_all(&mut self, exprs: &[Expr], scope: usize) {
        for expr in exprs {
            self.walk(expr, scope);
        }
    }
}

pub(super) fn equal(value: Value) -> Condition {
    if value == Value::Null {
        Condition::Nothing
    } else {
        Condition::Equal(value)
    }
}

pub(super) fn both(mut parts: Vec<Condition>) -> Option<Condition> {
    if parts.len() <= 1 {
        parts.pop()
    } else {
        Some(Condition::Both(parts))
    }
}

fn table_outputs(table: &Table, key: Option<(&str, usize)>) -> Outputs {
    if table.columns.is_empty() {
        let columns = key
            .into_iter()
            .map(|(key, instance)| (key.to_owned(), Some(instance)))
            .collect();
        return Outputs {
            columns,
            open: true,
        };
    }
    let columns = table.columns.iter().map(|name| {
        let instance = key
            .filter(|(key, _)| key == name)
            .map(|(_, instance)| instance);
        (name.clone(), instance)
    });
    Outputs {
        columns: columns.collect(),
        open: false,
    }
}

pub(super) fn full_name(name: &Name) -> String {
    match &name.schema {
        Some(schema) => format!("{schema}.{}", name.name),
        None => name.name.clone(),
    }
}
