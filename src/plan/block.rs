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

use super::{
    Context, Footing,
    route::{Condition, Edge, Fixed, Pin, Why},
    scope::{Entry, EntryKind, Instance, Nullable, Outputs, Scope, Side, resolve, resolve_side},
    touch::Touches,
    unroutable::{KeyProblem, Unroutable},
    value::{Sign, Value},
};
use crate::{
    catalog::{
        effects::{Act, Effects},
        group::{GroupId, Map},
        key::KeyType,
        shard::ShardId,
        snapshot::{
            Nature, OWN_SCHEMA, Other, Placement, Snapshot, Standing, Table, Unlisted, Unseen,
        },
    },
    sql::{
        normalize::Slot,
        tree::{
            Body, CastType, Compare, Cte, Expr, From, Join, JoinKind, Kind, Literal, LiteralKind,
            Locking, Name, Query, Relation, Select, Target,
        },
    },
    wire::types::{self, Oid},
};
use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet},
    ops::Range,
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

    pub(super) fn place(&self, name: &Name) -> Place<'a> {
        let snapshot = self.snapshot;
        let listed = |schema: &str| {
            let place = place_of(snapshot.table(schema, &name.name)?);
            let touches = match place {
                Place::Sharded { group, .. } => Touches::group(group),
                Place::Reference(_) => Touches::REFERENCES,
                Place::Single(_) | Place::Catalog | Place::Unknown => Touches::NOTHING,
            };
            self.touches.set(self.touches.get().and(touches));
            match place {
                Place::Sharded { .. } | Place::Reference(_)
                    if snapshot.standing != Standing::Known =>
                {
                    self.barred.set(Some(Barred::Unknown));
                }
                Place::Sharded { group, .. } if snapshot.barred.contains(&group) => {
                    self.barred.set(Some(Barred::Group(group)));
                }
                _ => {}
            }
            Some(place)
        };
        if let Some(schema) = &name.schema {
            return match schema.as_str() {
                "pg_catalog" | "information_schema" | "pg_toast" => Place::Catalog,
                schema => listed(schema).unwrap_or_else(|| self.unlisted(schema, &name.name)),
            };
        }
        let path = &self.context.search_path;
        let catalog_first = !path.iter().any(|schema| schema == "pg_catalog");
        if catalog_first && name.name.starts_with("pg_") {
            return path
                .iter()
                .find_map(|schema| listed(schema))
                .unwrap_or(Place::Catalog);
        }
        for schema in path {
            match schema.as_str() {
                "pg_catalog" if name.name.starts_with("pg_") => return Place::Catalog,
                "information_schema"
                    if !name.name.starts_with("pg_") && listed(schema).is_none() => {}
                schema => {
                    if let Some(place) = listed(schema) {
                        return place;
                    }
                    if snapshot.other(schema, &name.name).is_some() {
                        return self.unlisted(schema, &name.name);
                    }
                }
            }
        }
        self.unlisted("", &name.name)
    }

    /// What a table sets off, wherever it is.
    pub(super) fn effects(&self, name: &Name) -> Option<&'a Effects> {
        let snapshot = self.snapshot;
        match self.place(name) {
            Place::Sharded { table, .. } | Place::Reference(table) => Some(&table.effects),
            Place::Single(_) => match &name.schema {
                Some(schema) => snapshot.effects(schema, &name.name),
                None => {
                    let mut path = self.context.search_path.iter();
                    // The first that has the table, whether it sets something off or not.
                    let has = |schema: &&String| {
                        snapshot.table(schema, &name.name).is_some()
                            || snapshot.other(schema, &name.name).is_some()
                    };
                    snapshot.effects(path.find(has)?, &name.name)
                }
            },
            Place::Catalog | Place::Unknown => None,
        }
    }

    fn listed(&self, name: &Name) -> Option<&'a Table> {
        let path = match &name.schema {
            Some(schema) => std::slice::from_ref(schema),
            None => self.context.search_path.as_slice(),
        };
        let snapshot = self.snapshot;
        let mut found = path.iter().map(|schema| snapshot.table(schema, &name.name));
        found.find_map(|table| table)
    }

    fn views(&mut self, table: &Table) {
        let shows = match table.nature {
            Nature::Table | Nature::Child | Nature::View => Moment::Any,
            Nature::ViewOfOneShard => Moment::Own,
            Nature::ViewWithCode => Moment::OfCode,
        };
        self.moment = self.moment.max(shows);
    }

    /// Why a relation has no place.
    pub(super) fn not_placed(&self, name: &Name) -> Unroutable {
        let path = match &name.schema {
            Some(schema) => std::slice::from_ref(schema),
            None => &self.context.search_path,
        };
        let mut others = path
            .iter()
            .filter_map(|schema| self.snapshot.other(schema, &name.name));
        match others.next() {
            Some(Other::View) => Unroutable::ViewOverShards {
                view: full_name(name),
            },
            Some(Other::Table | Other::Derived) | None => Unroutable::UnknownTable {
                table: full_name(name),
            },
        }
    }

    fn unlisted(&self, schema: &str, name: &str) -> Place<'a> {
        let other = self.snapshot.other(schema, name);
        let derived = matches!(other, Some(Other::Derived | Other::View));
        if !derived && !schema.starts_with("pg_temp") {
            let footing = match self.snapshot.unseen {
                Unseen::Asked if !self.is_seen(schema, name) => Footing::Unseen,
                Unseen::Asked | Unseen::Unlisted => Footing::Unlisted,
            };
            self.footing.set(self.footing.get().max(footing));
        }
        match self.snapshot.unlisted {
            // Its rows may be on every shard.
            _ if derived => Place::Unknown,
            // Every shard has its own, which is nobody's data.
            _ if schema == OWN_SCHEMA => Place::Unknown,
            Unlisted::On(shard) if !schema.starts_with("pg_temp") => Place::Single(shard),
            Unlisted::On(_) | Unlisted::Error => Place::Unknown,
        }
    }

    /// Whether nothing lists the table, no server was seen to have it, and it may be elsewhere than unlisted tables.
    pub(super) fn is_unseen(&self, name: &Name) -> bool {
        let before = self.footing.take();
        self.place(name);
        self.footing.replace(before) == Footing::Unseen
    }

    /// Whether a server was seen to have what nothing lists; an empty schema: in any of the path.
    fn is_seen(&self, schema: &str, name: &str) -> bool {
        let mut path = self.context.search_path.iter();
        match schema {
            "" => path.any(|schema| self.snapshot.other(schema, name).is_some()),
            schema => self.snapshot.other(schema, name).is_some(),
        }
    }

    fn join(&mut self, join: &Join, scope: usize, nullable: Nullable) {
        let side = |outer: bool| if outer { Nullable::Yes } else { nullable };
        let (entries, instances) = (self.scopes[scope].entries.len(), self.instances.len());
        self.item(
            &join.left,
            scope,
            side(matches!(join.kind, JoinKind::Right | JoinKind::Full)),
        );
        let (middle, between) = (self.scopes[scope].entries.len(), self.instances.len());
        self.item(
            &join.right,
            scope,
            side(matches!(join.kind, JoinKind::Left | JoinKind::Full)),
        );
        let end = self.instances.len();
        let range = match join.kind {
            JoinKind::Inner => instances..end,
            JoinKind::Left => between..end,
            JoinKind::Right => instances..between,
            JoinKind::Full => 0..0,
        };
        let using = if join.natural {
            self.natural(scope, entries, middle)
        } else {
            join.using.clone()
        };
        for name in &using {
            let (left, right) = self.scopes[scope].merge(entries, middle, name, join.kind);
            self.equate(&left, &right, scope, &range);
        }
        if let Some(name) = &join.using_alias {
            self.enter(scope, name, Outputs::unknown(), EntryKind::Using);
        }
        if let Some(on) = &join.on {
            self.restrict(on, scope, entries, &range);
            self.walk(on, scope);
        }
        if let Some(alias) = &join.alias {
            let mut outputs = Outputs {
                columns: Vec::new(),
                open: true,
            };
            for entry in &mut self.scopes[scope].entries[entries..] {
                outputs.columns.append(&mut entry.outputs.columns);
                entry.kind = EntryKind::Hidden;
            }
            self.scopes[scope].hide_merged(entries);
            self.enter(
                scope,
                &alias.name,
                outputs.renamed(&alias.columns),
                EntryKind::Derived,
            );
        }
    }

    /// The columns that a NATURAL join compares, when both sides are known.
    fn natural(&mut self, scope: usize, start: usize, middle: usize) -> Vec<String> {
        let scope = &mut self.scopes[scope];
        let (left, right) = scope.entries[start..].split_at(middle - start);
        if scope.entries[start..]
            .iter()
            .any(|entry| entry.outputs.open && entry.kind != EntryKind::Using)
        {
            scope.unsure = true;
            return Vec::new();
        }
        let names = right
            .iter()
            .flat_map(|entry| &entry.outputs.columns)
            .map(|(name, _)| name);
        let shared = names.filter(|name| {
            left.iter().any(|entry| {
                entry
                    .outputs
                    .columns
                    .iter()
                    .any(|(column, _)| column == *name)
            })
        });
        shared.cloned().collect()
    }

    /// `left` and `right` have equal keys in the rows of those in `range` that can matter.
    fn equate(&mut self, left: &Side, right: &Side, scope: usize, range: &Range<usize>) {
        for (ones, others) in [(&left.keys, &right.sure), (&right.keys, &left.sure)] {
            for one in ones {
                for other in others {
                    self.equate_one(*one, *other, scope, range);
                }
            }
        }
    }

    /// Notes what a predicate says of the keys of the instances in `range`.
    pub(super) fn restrict(
        &mut self,
        predicate: &Expr,
        scope: usize,
        start: usize,
        range: &Range<usize>,
    ) {
        match predicate {
            Expr::And(parts) => {
                for part in parts {
                    self.restrict(part, scope, start, range);
                }
                return;
            }
            Expr::Compare {
                op: Compare::Equal,
                left,
                right,
            } => self.restrict_equal(left, right, scope, start, range),
            Expr::InQuery { left, query } => {
                if let Expr::Column(column) = &**left {
                    let keys = resolve(&self.scopes, scope, start, column);
                    let outputs = self.subquery(query, scope);
                    if let ([(_, Some(other))], false) = (outputs.columns.as_slice(), outputs.open)
                    {
                        for key in keys {
                            self.equate_one(key, *other, scope, range);
                        }
                    }
                }
                return;
            }
            _ => {}
        }
        for instance in range.clone() {
            if self.instances[instance].block == scope
                && let Some(condition) = self.condition(predicate, instance, scope, start)
            {
                self.instances[instance].conditions.push(condition);
            }
        }
    }

    fn restrict_equal(
        &mut self,
        left: &Expr,
        right: &Expr,
        scope: usize,
        start: usize,
        range: &Range<usize>,
    ) {
        match (left, right) {
            (Expr::Column(left), Expr::Column(right)) => {
                let left = resolve_side(&self.scopes, scope, start, left);
                let right = resolve_side(&self.scopes, scope, start, right);
                self.equate(&left, &right, scope, range);
            }
            (Expr::Row(left), Expr::Row(right)) if left.len() == right.len() => {
                for (left, right) in left.iter().zip(right) {
                    self.restrict_equal(left, right, scope, start, range);
                }
            }
            _ => {}
        }
    }

    fn equate_one(&mut self, one: usize, other: usize, scope: usize, range: &Range<usize>) {
        let same = self.instances[one].group == self.instances[other].group;
        if one != other && same && range.contains(&one) && self.instances[one].block == scope {
            self.instances[one].equals.push(other);
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

    /// What a predicate says of one instance's key; `None`: nothing.
    fn condition(
        &self,
        predicate: &Expr,
        instance: usize,
        scope: usize,
        start: usize,
    ) -> Option<Condition> {
        let is_key = |expr: &Expr| match expr {
            Expr::Column(column) => resolve(&self.scopes, scope, start, column).contains(&instance),
            _ => false,
        };
        let key_type = self.key_type(instance);
        match predicate {
            Expr::And(parts) => both(
                parts
                    .iter()
                    .filter_map(|part| self.condition(part, instance, scope, start))
                    .collect(),
            ),
            Expr::Or(parts) => {
                let parts: Option<Vec<_>> = parts
                    .iter()
                    .map(|part| self.condition(part, instance, scope, start))
                    .collect();
                parts.map(either)
            }
            Expr::Compare {
                op: Compare::Equal,
                left,
                right,
            } => {
                if let (Expr::Row(left), Expr::Row(right)) = (&**left, &**right) {
                    return self.row_condition(left, right, instance, scope, start);
                }
                let other = if is_key(left) {
                    right
                } else if is_key(right) {
                    left
                } else {
                    return None;
                };
                let value = self.value(other, key_type)?;
                if value == Value::Null && self.context.transform_null_equals {
                    return None;
                }
                Some(equal(value))
            }
            Expr::Compare { op, left, right } => {
                let (op, other) = if is_key(left) {
                    (*op, right)
                } else if is_key(right) {
                    (flipped(*op), left)
                } else {
                    return None;
                };
                self.range(instance, op, other)
            }
            Expr::In { left, list } => self.in_list(left, list, instance, scope, start),
            Expr::EqualsAny { left, array } if is_key(left) => self.any_of(array, key_type),
            Expr::Between { left, low, high } if is_key(left) => {
                let low = self.range(instance, Compare::GreaterEqual, low)?;
                let high = self.range(instance, Compare::LessEqual, high)?;
                both(vec![low, high])
            }
            _ => None,
        }
    }

    fn in_list(
        &self,
        left: &Expr,
        list: &[Expr],
        instance: usize,
        scope: usize,
        start: usize,
    ) -> Option<Condition> {
        if let Expr::Row(left) = left {
            let rows: Option<Vec<Condition>> = list
                .iter()
                .map(|row| match row {
                    Expr::Row(right) => self.row_condition(left, right, instance, scope, start),
                    _ => None,
                })
                .collect();
            return rows.map(either);
        }
        let Expr::Column(column) = left else {
            return None;
        };
        if !resolve(&self.scopes, scope, start, column).contains(&instance) {
            return None;
        }
        let key_type = self.key_type(instance);
        if !self.one_type(list, key_type) {
            return None;
        }
        let values: Option<Vec<Value>> = list
            .iter()
            .map(|value| self.value(value, key_type))
            .collect();
        Some(one_of(values?))
    }

    fn row_condition(
        &self,
        left: &[Expr],
        right: &[Expr],
        instance: usize,
        scope: usize,
        start: usize,
    ) -> Option<Condition> {
        if left.len() != right.len() {
            return None;
        }
        let key_type = self.key_type(instance);
        let is_key = |expr: &Expr| match expr {
            Expr::Column(column) => resolve(&self.scopes, scope, start, column).contains(&instance),
            _ => false,
        };
        let parts = left.iter().zip(right).filter_map(|(left, right)| {
            let value = if is_key(left) {
                self.value(right, key_type)?
            } else if is_key(right) {
                self.value(left, key_type)?
            } else {
                return None;
            };
            Some(equal(value))
        });
        both(parts.collect())
    }

    pub(super) fn key_type(&self, instance: usize) -> KeyType {
        self.snapshot.group(self.instances[instance].group).key_type
    }

    fn any_of(&self, array: &Expr, key_type: KeyType) -> Option<Condition> {
        match array {
            Expr::Array(items) if self.one_type(items, key_type) => {
                let values: Option<Vec<Value>> = items
                    .iter()
                    .map(|item| self.value(item, key_type))
                    .collect();
                Some(one_of(values?))
            }
            Expr::Cast { inner, to } => {
                let cast = array_cast(to, key_type)?;
                match &**inner {
                    Expr::Array(_) => self.any_of(inner, key_type),
                    Expr::Literal(Literal {
                        kind: LiteralKind::Null,
                        ..
                    }) => Some(Condition::Nothing),
                    Expr::Literal(literal) if literal.kind == LiteralKind::Text => {
                        Some(Condition::ElementOf(self.slot(literal, Some(cast))?))
                    }
                    Expr::Parameter(number) => {
                        self.reads(inner, *number, (key_type, Some(cast), Count::Array));
                        Some(Condition::ElementOf(parameter(*number, Some(cast))?))
                    }
                    _ => None,
                }
            }
            Expr::Literal(literal) if literal.kind == LiteralKind::Text => {
                Some(Condition::ElementOf(self.slot(literal, None)?))
            }
            Expr::Literal(Literal {
                kind: LiteralKind::Null,
                ..
            }) => Some(Condition::Nothing),
            Expr::Parameter(number) => {
                self.reads(array, *number, (key_type, None, Count::Array));
                Some(Condition::ElementOf(parameter(*number, None)?))
            }
            _ => None,
        }
    }

    /// A comparison of order pins only a range group, and text only where the group's order is the comparison's: never.
    fn range(&self, instance: usize, op: Compare, other: &Expr) -> Option<Condition> {
        let group = self.snapshot.group(self.instances[instance].group);
        if !matches!(group.map, Map::Range(_)) || group.key_type == KeyType::Text {
            return None;
        }
        let value = self.value(other, group.key_type)?;
        let inclusive = matches!(op, Compare::LessEqual | Compare::GreaterEqual);
        let edge = Some(Edge { value, inclusive });
        Some(match op {
            Compare::Less | Compare::LessEqual => Condition::Between {
                low: None,
                high: edge,
            },
            Compare::Greater | Compare::GreaterEqual => Condition::Between {
                low: edge,
                high: None,
            },
            Compare::Equal => return None,
        })
    }

    /// A constant or parameter as a key value; `None`: anything else, or a cast that may change the value.
    pub(super) fn value(&self, expr: &Expr, key_type: KeyType) -> Option<Value> {
        match expr {
            Expr::Literal(literal) => self.literal(literal, None),
            Expr::Parameter(number) => {
                self.reads(expr, *number, (key_type, None, Count::One));
                parameter(*number, None)
            }
            Expr::Cast { inner, to } => {
                let cast = Some(cast_to(to, key_type)?);
                match &**inner {
                    Expr::Literal(literal) => self.literal(literal, cast),
                    Expr::Parameter(number) => {
                        self.reads(inner, *number, (key_type, cast, Count::One));
                        parameter(*number, cast)
                    }
                    _ => None,
                }
            }
            Expr::Negate(inner) => match self.value(inner, key_type)? {
                Value::Slot { slot, sign, cast } if is_number(inner) => {
                    let sign = if sign == Sign::Minus {
                        Sign::None
                    } else {
                        Sign::Minus
                    };
                    Some(Value::Slot { slot, sign, cast })
                }
                _ => None,
            },
            _ => None,
        }
    }

    fn reads(&self, place: &Expr, number: u32, meaning: (KeyType, Option<Oid>, Count)) {
        let mut keyed = self.keyed.borrow_mut();
        let known = keyed.entry(number).or_insert_with(|| Keyed {
            places: HashSet::new(),
            meaning,
            agreed: true,
        });
        known.agreed &= known.meaning == meaning;
        known.places.insert(std::ptr::from_ref(place).addr());
    }

    /// PostgreSQL infers an undeclared parameter's type from its first place: a parameter that stands elsewhere too may
    /// be of a type other than the key's, whose bytes we would misread.
    pub(super) fn refuse_shared_parameters(&mut self, counts: &HashMap<u32, u32>, types: &[Oid]) {
        let declared = |number: u32| {
            let index = usize::try_from(number).unwrap_or(0).checked_sub(1);
            let oid = index
                .and_then(|index| types.get(index))
                .copied()
                .unwrap_or(0);
            oid != 0 && oid != types::UNKNOWN
        };
        let keyed = self.keyed.take();
        let numeric = |number: &u32| {
            let index = usize::try_from(*number).unwrap_or(0).checked_sub(1);
            index.and_then(|index| types.get(index)) == Some(&types::NUMERIC)
        };
        let beside_numeric = keyed.keys().any(numeric);
        let shared = keyed.iter().filter(|(number, keyed)| {
            let elsewhere = counts
                .get(number)
                .is_none_or(|count| *count as usize > keyed.places.len());
            let mixed = beside_numeric && keyed.meaning.0 == KeyType::Bigint;
            !declared(**number) && (elsewhere || !keyed.agreed || mixed)
        });
        if let Some(number) = shared.map(|(number, _)| *number).min() {
            let (key, problem) = (format!("${number}"), KeyProblem::Ambiguous);
            self.refuse(Unroutable::KeyValue { key, problem });
        }
    }

    /// Items of a list have one type: an undeclared parameter beside a number may be numeric, whose bytes are no bigint's.
    fn one_type(&self, items: &[Expr], key_type: KeyType) -> bool {
        let bare = |item: &Expr| matches!(item, Expr::Parameter(_));
        let fits = |item: &Expr| match item {
            Expr::Parameter(_) | Expr::Cast { .. } => true,
            Expr::Literal(literal) => literal.kind != LiteralKind::Number,
            _ => false,
        };
        key_type != KeyType::Bigint || !items.iter().any(bare) || items.iter().all(fits)
    }

    fn literal(&self, literal: &Literal, cast: Option<Oid>) -> Option<Value> {
        match literal.kind {
            LiteralKind::Null => Some(Value::Null),
            LiteralKind::Number | LiteralKind::Text => self.slot(literal, cast),
            LiteralKind::Boolean | LiteralKind::Bits => None,
        }
    }

    /// The slot of a literal. A negative number stands at its sign, which belongs to the template.
    fn slot(&self, literal: &Literal, cast: Option<Oid>) -> Option<Value> {
        let at = self
            .slots
            .partition_point(|slot| slot.start < literal.location);
        let found = self.slots.get(at)?;
        let sign = if found.start == literal.location {
            Sign::None
        } else {
            let between = self
                .text
                .get(literal.location as usize..found.start as usize)?;
            let (b'-', blanks) = between.split_first()? else {
                return None;
            };
            if literal.kind != LiteralKind::Number || !blanks.iter().all(u8::is_ascii_whitespace) {
                return None;
            }
            Sign::Minus
        };
        Some(Value::Slot {
            slot: u32::try_from(at).ok()?,
            sign,
            cast,
        })
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

fn is_number(expr: &Expr) -> bool {
    match expr {
        Expr::Literal(literal) => literal.kind == LiteralKind::Number,
        Expr::Cast { inner, .. } => is_number(inner),
        _ => false,
    }
}

fn parameter(number: u32, cast: Option<Oid>) -> Option<Value> {
    Some(Value::Parameter {
        index: u16::try_from(number.checked_sub(1)?).ok()?,
        cast,
    })
}

/// The type of a cast that leaves every value of the key's type as it is.
fn cast_to(to: &CastType, key_type: KeyType) -> Option<Oid> {
    if to.modified || to.array {
        return None;
    }
    let oid = match to.name.as_deref()? {
        "int2" => types::INT2,
        "int4" => types::INT4,
        "int8" => types::INT8,
        "text" => types::TEXT,
        "varchar" => types::VARCHAR,
        "uuid" => types::UUID,
        "date" => types::DATE,
        "timestamptz" => types::TIMESTAMPTZ,
        "numeric" => types::NUMERIC,
        "bytea" => types::BYTEA,
        _ => return None,
    };
    let exact = match key_type {
        KeyType::Bigint => matches!(oid, types::INT2 | types::INT4 | types::INT8),
        KeyType::Text => matches!(oid, types::TEXT | types::VARCHAR),
        KeyType::Uuid => oid == types::UUID,
        KeyType::Date => oid == types::DATE,
        KeyType::Timestamptz => oid == types::TIMESTAMPTZ,
        KeyType::Numeric => matches!(
            oid,
            types::INT2 | types::INT4 | types::INT8 | types::NUMERIC
        ),
        KeyType::Bytea => oid == types::BYTEA,
    };
    exact.then_some(oid)
}

/// As [`cast_to`], for arrays.
fn array_cast(to: &CastType, key_type: KeyType) -> Option<Oid> {
    let element = CastType {
        array: false,
        ..to.clone()
    };
    if !to.array {
        return None;
    }
    Some(match cast_to(&element, key_type)? {
        types::INT2 => types::INT2_ARRAY,
        types::INT4 => types::INT4_ARRAY,
        types::INT8 => types::INT8_ARRAY,
        types::TEXT => types::TEXT_ARRAY,
        types::VARCHAR => types::VARCHAR_ARRAY,
        types::UUID => types::UUID_ARRAY,
        types::DATE => types::DATE_ARRAY,
        types::TIMESTAMPTZ => types::TIMESTAMPTZ_ARRAY,
        types::NUMERIC => types::NUMERIC_ARRAY,
        _ => types::BYTEA_ARRAY,
    })
}

fn flipped(op: Compare) -> Compare {
    match op {
        Compare::Equal => Compare::Equal,
        Compare::Less => Compare::Greater,
        Compare::LessEqual => Compare::GreaterEqual,
        Compare::Greater => Compare::Less,
        Compare::GreaterEqual => Compare::LessEqual,
    }
}

pub(super) fn equal(value: Value) -> Condition {
    if value == Value::Null {
        Condition::Nothing
    } else {
        Condition::Equal(value)
    }
}

fn one_of(mut values: Vec<Value>) -> Condition {
    values.retain(|value| *value != Value::Null);
    match values.len() {
        0 => Condition::Nothing,
        1 => equal(values.remove(0)),
        _ => Condition::OneOf(values),
    }
}

pub(super) fn both(mut parts: Vec<Condition>) -> Option<Condition> {
    if parts.len() <= 1 {
        parts.pop()
    } else {
        Some(Condition::Both(parts))
    }
}

fn either(parts: Vec<Condition>) -> Condition {
    let mut values = Vec::new();
    let mut others = Vec::new();
    for part in parts {
        match part {
            Condition::Equal(value) => values.push(value),
            Condition::OneOf(list) => values.extend(list),
            Condition::Nothing => {}
            other => others.push(other),
        }
    }
    if others.is_empty() {
        return one_of(values);
    }
    if !values.is_empty() {
        others.push(one_of(values));
    }
    Condition::Either(others)
}

fn place_of(table: &Table) -> Place<'_> {
    match &table.placement {
        Placement::Sharded { group, key_column } => Place::Sharded {
            group: *group,
            key: key_column,
            table,
        },
        Placement::Reference => Place::Reference(table),
        Placement::Single(shard) => Place::Single(*shard),
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
