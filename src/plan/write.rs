//! Writes: where new rows go, and that none leaves its shard.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no rule of its own is treated alike: it pins nothing, or is refused"
)]

use super::{
    block::{Analysis, Place, both},
    route::{Condition, Pin, Role},
    scope::{Entry, EntryKind, Nullable, Outputs, Usage, resolve},
    unroutable::{Undoubled, Unroutable},
    value::Value,
};
use crate::{
    catalog::{
        effects::Act,
        group::GroupId,
        snapshot::{ObjectName, Table},
    },
    sql::tree::{
        Body, Column, Cte, Delete, Expr, From, Insert, Merge, MergeAct, MergeAction, Overriding,
        Query, Relation, Select, Target, Update,
    },
};

/// The sharded table that rows are inserted into.
struct Into<'a> {
    group: GroupId,
    table: String,
    key: &'a str,
}

impl<'a> Analysis<'a> {
    pub(super) fn insert(&mut self, insert: &Insert, parent: Option<usize>) {
        self.writes = true;
        let outer = self.cte_count();
        self.with(&insert.ctes, insert.recursive, parent);
        let scope = self.open(parent);
        if let Place::Reference(_) = self.place(&insert.table.name) {
            self.sets_off(&insert.table, Act::Insert(&[]));
        }
        match self.written_table(&insert.table) {
            Some(into) => {
                self.inserted = Some(into.group);
                self.overriding(insert.overriding, &insert.table);
                self.insert_rows(insert, &into, parent);
            }
            None => {
                let given = insert.columns.as_deref().unwrap_or_default();
                self.sets_off(&insert.table, Act::Insert(given));
                if let Some(source) = &insert.source {
                    self.query(source, parent);
                }
            }
        }
        self.inserted_scope(&insert.table, scope);
        if let Some(conflict) = &insert.conflict {
            self.conflict_with_doubled(&insert.table);
            if !conflict.assignments.is_empty() {
                let assigned = assigned(&conflict.assignments);
                self.sets_off(&insert.table, Act::Update(&assigned));
            }
            for target in &conflict.assignments {
                self.walk(&target.value, scope);
                self.conflict_assignment(target, &insert.table);
            }
            self.walk_all(&conflict.filters, scope);
        }
        self.walk_all(&insert.returning, scope);
        self.forget_ctes(outer);
    }

    /// What ON CONFLICT and RETURNING see: the table, whose rows are where the new ones are.
    fn inserted_scope(&mut self, table: &Relation, scope: usize) {
        let name = table
            .alias
            .as_ref()
            .map_or(&table.name.name, |alias| &alias.name)
            .clone();
        for name in [name, "excluded".to_owned()] {
            let outputs = Outputs::unknown();
            self.scopes[scope].entries.push(Entry {
                name,
                schema: None,
                outputs,
                kind: EntryKind::Table,
            });
        }
    }

    /// The placement of a table that is written, when it is sharded; notes what forbids or fixes the others.
    fn written_table(&mut self, relation: &Relation) -> Option<Into<'a>> {
        self.changes += 1;
        match self.place(&relation.name) {
            Place::Sharded { group, key, .. } => Some(Into {
                group,
                table: relation.name.name.clone(),
                key,
            }),
            Place::Reference(_) => {
                self.refuse(Unroutable::ReferenceWrite {
                    table: relation.name.name.clone(),
                });
                None
            }
            Place::Single(shard) => {
                self.fix_table(shard, &relation.name.name);
                None
            }
            Place::Catalog => {
                self.refuse(Unroutable::Unsupported {
                    feature: "writing to the system catalogs",
                });
                None
            }
            Place::Unknown => {
                self.refuse(self.not_placed(&relation.name));
                None
            }
        }
    }

    fn insert_rows(&mut self, insert: &Insert, into: &Into<'_>, parent: Option<usize>) {
        let columns = match (&insert.columns, self.place(&insert.table.name)) {
            (Some(columns), _) => columns.as_slice(),
            (None, Place::Sharded { table, key, .. }) => sure_columns(table, key),
            (None, _) => &[],
        };
        self.rests_on_defaults(&insert.table.name);
        let Some(source) = &insert.source else {
            return self.refuse(Unroutable::KeyMissing {
                table: into.table.clone(),
                key: into.key.to_owned(),
            });
        };
        if columns.is_empty() {
            self.refuse(Unroutable::ColumnsUnknown {
                table: into.table.clone(),
            });
            self.query(source, parent);
            return;
        }
        let place = columns.iter().position(|column| column == into.key);
        let Some(place) = place else {
            self.refuse(Unroutable::KeyMissing {
                table: into.table.clone(),
                key: into.key.to_owned(),
            });
            self.query(source, parent);
            return;
        };
        self.rows_set_off(&insert.table, &given(columns, &source.body));
        let first_scope = self.scopes.len();
        self.query(source, parent);
        match &source.body {
            Body::Values(rows) => {
                let mut values = Vec::with_capacity(rows.len());
                for row in rows {
                    values.extend(self.new_key(row.get(place), into));
                }
                self.pin_insert(values, into);
            }
            Body::Select(select) => self.insert_selected(select, source, place, into, first_scope),
            Body::SetOperation(_) => self.refuse_expression(into),
        }
    }

    /// The value of a new row's key; refuses what is none.
    fn new_key(&mut self, value: Option<&Expr>, into: &Into<'_>) -> Option<Value> {
        let (table, key) = (into.table.clone(), into.key.to_owned());
        match value {
            None | Some(Expr::Default) => self.refuse(Unroutable::KeyMissing { table, key }),
            Some(expr) => match self.value(expr, self.snapshot.group(into.group).key_type) {
                Some(Value::Null) => self.refuse(Unroutable::KeyNull { table, key }),
                Some(value) => return Some(value),
                None => self.refuse_expression(into),
            },
        }
        None
    }

    /// Refuses what sets off an object of the table that would act on this shard alone.
    pub(super) fn sets_off(&mut self, table: &Relation, act: Act<'_>) {
        if let Act::Insert(_) = act {
            self.rests_on_defaults(&table.name);
        }
        let Some(effects) = self.effects(&table.name) else {
            return;
        };
        if let Some(hazard) = effects.of(act) {
            self.refuse(Unroutable::PerShardObject {
                table: table.name.name.clone(),
                hazard: hazard.clone(),
            });
        }
        let mut groups = effects.changes_with(act).map(|at| self.snapshot.group(at));
        if let Some(group) = groups.find(|group| group.is_doubled()) {
            let (group, what) = (group.name.clone(), Undoubled::Action);
            // Before what is said of reference tables.
            let why = Unroutable::Doubled { group, what };
            self.refusals.insert(0, why);
        }
    }

    /// As [`Self::sets_off`], of new rows with values for these columns.
    fn rows_set_off(&mut self, table: &Relation, given: &[String]) {
        let effects = self.effects(&table.name);
        if let Some(hazard) =
            effects.and_then(|effects| effects.of_rows(given, &self.context.computed))
        {
            self.refuse(Unroutable::PerShardObject {
                table: table.name.name.clone(),
                hazard: hazard.clone(),
            });
        }
    }

    /// OVERRIDING USER VALUE: the values of identity columns are not those given.
    fn overriding(&mut self, overriding: Overriding, table: &Relation) {
        if overriding == Overriding::UserValue
            && matches!(self.place(&table.name), Place::Sharded { .. })
        {
            self.refuse(Unroutable::Unsupported {
                feature: "OVERRIDING USER VALUE",
            });
        }
    }

    fn refuse_expression(&mut self, into: &Into<'_>) {
        self.refuse(Unroutable::KeyExpression {
            table: into.table.clone(),
            key: into.key.to_owned(),
        });
    }

    fn pin_insert(&mut self, mut values: Vec<Value>, into: &Into<'_>) {
        let condition = match values.len() {
            0 => return,
            1 => Condition::Equal(values.remove(0)),
            _ => Condition::OneOf(values),
        };
        self.written.push(Pin {
            group: into.group,
            table: into.table.clone(),
            key: into.key.to_owned(),
            condition,
            role: Role::Insert,
        });
    }

    /// INSERT … SELECT: the key is a constant, or the key of a relation that the SELECT reads (and which is pinned).
    fn insert_selected(
        &mut self,
        select: &Select,
        query: &Query,
        place: usize,
        into: &Into<'_>,
        first: usize,
    ) {
        let stars = select.targets.iter().take(place + 1).any(is_star);
        let Some(target) = select.targets.get(place).filter(|_| !stars) else {
            return self.refuse_expression(into);
        };
        // A WITH of its own has its scopes first; grouping sets make NULLs of keys.
        let plain = query.ctes.is_empty() && select.rest.iter().all(is_plain);
        let scope = plain.then_some(first);
        match (&target.value, scope) {
            (Expr::Column(column), Some(scope)) => {
                let keys = resolve(&self.scopes, scope, 0, column);
                match keys.as_slice() {
                    [key] if self.carries(*key, scope, into.group) => self.carried = Some(*key),
                    _ => self.refuse_expression(into),
                }
            }
            (Expr::Column(_), None) => self.refuse_expression(into),
            (value, _) => {
                let values = self.new_key(Some(value), into).into_iter().collect();
                self.pin_insert(values, into);
            }
        }
    }

    /// Whether the key of this instance, as the block selects it, is never NULL and of that group.
    fn carries(&self, instance: usize, scope: usize, group: GroupId) -> bool {
        let instance = &self.instances[instance];
        instance.group == group && instance.block == scope && instance.nullable == Nullable::No
    }

    /// A unique index without the key, which the configuration may let each shard have for itself, may meet a row that the
    /// shard does not own.
    fn conflict_with_doubled(&mut self, table: &Relation) {
        let Place::Sharded { group, .. } = self.place(&table.name) else {
            return;
        };
        let group = self.snapshot.group(group);
        let name = &table.name.name;
        let accepts = |object: &ObjectName| object.table == "*" || object.table == *name;
        if group.is_doubled() && self.snapshot.per_shard.iter().any(accepts) {
            self.refuse(Unroutable::Doubled {
                group: group.name.clone(),
                what: Undoubled::Conflict,
            });
        }
    }

    /// `DO UPDATE SET key = excluded.key`, or the row's own key, stays; anything else may not.
    fn conflict_assignment(&mut self, target: &Target, table: &Relation) {
        let Place::Sharded { key, .. } = self.place(&table.name) else {
            return;
        };
        if target.name.as_deref() != Some(key) {
            return;
        }
        let own = table
            .alias
            .as_ref()
            .map_or(&table.name.name, |alias| &alias.name);
        let stays = match &target.value {
            Expr::Column(Column { path, star: false }) => {
                matches!(path.as_slice(), [relation, column] if column == key && (relation == "excluded" || relation == own))
            }
            _ => false,
        };
        if target.partial || !stays {
            self.refuse(Unroutable::KeyChanged {
                table: table.name.name.clone(),
                key: key.to_owned(),
            });
        }
    }

    pub(super) fn update(&mut self, update: &Update, parent: Option<usize>) {
        let outer = self.cte_count();
        self.sets_off(&update.table, Act::Update(&assigned(&update.assignments)));
        let (scope, instance) = self.target(
            &update.ctes,
            update.recursive,
            &update.table,
            &update.from,
            update.filter.as_ref(),
            parent,
        );
        for target in &update.assignments {
            self.walk(&target.value, scope);
            self.assignment(target, instance, scope);
        }
        self.walk_all(&update.returning, scope);
        self.forget_ctes(outer);
    }

    pub(super) fn delete(&mut self, delete: &Delete, parent: Option<usize>) {
        let outer = self.cte_count();
        self.sets_off(&delete.table, Act::Delete);
        let (scope, _) = self.target(
            &delete.ctes,
            delete.recursive,
            &delete.table,
            &delete.using,
            delete.filter.as_ref(),
            parent,
        );
        self.walk_all(&delete.returning, scope);
        self.forget_ctes(outer);
    }

    /// What UPDATE and DELETE share: CTEs, the table, other relations, WHERE.
    #[expect(clippy::too_many_arguments, reason = "the clauses of a statement")]
    fn target(
        &mut self,
        ctes: &[Cte],
        recursive: bool,
        table: &Relation,
        others: &[From],
        filter: Option<&Expr>,
        parent: Option<usize>,
    ) -> (usize, Option<usize>) {
        self.writes = true;
        self.with(ctes, recursive, parent);
        let scope = self.open(parent);
        let instance = self.target_table(table, scope);
        self.items(others, scope);
        self.filter(filter, scope);
        (scope, instance)
    }

    /// The table that is written, which no CTE shadows.
    fn target_table(&mut self, table: &Relation, scope: usize) -> Option<usize> {
        if self.written_table(table).is_some() {
            self.changed = self.table_itself(table, scope, Nullable::No);
            if let Some(instance) = self.changed {
                self.instances[instance].usage = Usage::Changed;
            }
            return self.changed;
        }
        let name = table
            .alias
            .as_ref()
            .map_or(&table.name.name, |alias| &alias.name)
            .clone();
        let outputs = Outputs::unknown();
        self.scopes[scope].entries.push(Entry {
            name,
            schema: None,
            outputs,
            kind: EntryKind::Table,
        });
        None
    }

    fn assignment(&mut self, target: &Target, instance: Option<usize>, scope: usize) {
        let Some(instance) = instance else { return };
        if target.name.as_deref() != Some(&self.instances[instance].key) {
            return;
        }
        let (group, table, key) = (
            self.instances[instance].group,
            self.instances[instance].table.clone(),
            self.instances[instance].key.clone(),
        );
        if let Expr::Column(column) = &target.value
            && !target.partial
            && resolve(&self.scopes, scope, 0, column) == [instance]
        {
            return;
        }
        let old =
            self.instances[instance]
                .conditions
                .iter()
                .find_map(|condition| match condition {
                    Condition::Equal(value) => Some(value.clone()),
                    _ => None,
                });
        let new = self
            .value(&target.value, self.key_type(instance))
            .filter(|value| *value != Value::Null);
        match (old, new) {
            (Some(old), Some(new)) if !target.partial => self.written.push(Pin {
                group,
                table,
                key,
                condition: Condition::Equal(new),
                role: Role::Assign { old },
            }),
            _ => self.refuse(Unroutable::KeyChanged { table, key }),
        }
    }

    pub(super) fn merge(&mut self, merge: &Merge, parent: Option<usize>) {
        self.writes = true;
        let outer = self.cte_count();
        self.with(&merge.ctes, merge.recursive, parent);
        let scope = self.open(parent);
        let instance = self.target_table(&merge.table, scope);
        if let Some(instance) = instance {
            self.instances[instance].usage = Usage::Merged;
        }
        self.item(&merge.source, scope, Nullable::No);
        if let (Some(instance), false) = (instance, merge.by_source) {
            self.restrict(&merge.on, scope, 0, &(instance..instance + 1));
        }
        self.walk(&merge.on, scope);
        for action in &merge.actions {
            self.merge_action(action, merge, instance, scope);
        }
        self.walk_all(&merge.returning, scope);
        self.forget_ctes(outer);
    }

    fn merge_action(
        &mut self,
        action: &MergeAction,
        merge: &Merge,
        instance: Option<usize>,
        scope: usize,
    ) {
        if let Some(condition) = &action.condition {
            self.walk(condition, scope);
        }
        match &action.act {
            MergeAct::Update(targets) => {
                self.sets_off(&merge.table, Act::Update(&assigned(targets)));
                for target in targets {
                    self.walk(&target.value, scope);
                    self.assignment(target, instance, scope);
                }
            }
            MergeAct::Insert {
                columns,
                values,
                overriding,
            } => {
                self.walk_all(values, scope);
                self.overriding(*overriding, &merge.table);
                self.merge_insert(columns, values, merge, scope);
            }
            MergeAct::Other => self.sets_off(&merge.table, Act::Delete),
        }
    }

    fn merge_insert(&mut self, columns: &[String], values: &[Expr], merge: &Merge, scope: usize) {
        let Place::Sharded { group, key, table } = self.place(&merge.table.name) else {
            return;
        };
        let into = Into {
            group,
            table: merge.table.name.name.clone(),
            key,
        };
        let columns = if columns.is_empty() {
            sure_columns(table, key)
        } else {
            columns
        };
        if columns.is_empty() {
            return self.refuse(Unroutable::ColumnsUnknown { table: into.table });
        }
        let given = columns.iter().zip(values);
        let given: Vec<String> = given
            .filter(|(_, value)| !matches!(value, Expr::Default))
            .map(|(column, _)| column.clone())
            .collect();
        self.sets_off(&merge.table, Act::Insert(&given));
        let value = columns
            .iter()
            .position(|column| column == key)
            .and_then(|place| values.get(place));
        if let Some(Expr::Column(column)) = value {
            let keys = resolve(&self.scopes, scope, 0, column);
            match keys.as_slice() {
                [key] if self.carries(*key, scope, group) => self.carried = Some(*key),
                _ => self.refuse_expression(&into),
            }
            return;
        }
        let values = self.new_key(value, &into).into_iter().collect();
        self.pin_insert(values, &into);
    }

    /// The pins of every instance and new row; refuses an instance that nothing pins.
    pub(super) fn pins(&mut self) -> Vec<Pin> {
        let mut pins: Vec<Pin> = Vec::new();
        for at in 0..self.instances.len() {
            let mut conditions: Vec<Condition> = Vec::new();
            for reached in self.equal_to(at) {
                for condition in &self.instances[reached].conditions {
                    if !conditions.contains(condition) {
                        conditions.push(condition.clone());
                    }
                }
            }
            let instance = &self.instances[at];
            let (group, table, key) =
                (instance.group, instance.table.clone(), instance.key.clone());
            match both(conditions) {
                Some(condition) => {
                    if !pins
                        .iter()
                        .any(|pin| pin.group == group && pin.condition == condition)
                    {
                        pins.push(Pin {
                            group,
                            table,
                            key,
                            condition,
                            role: Role::Match,
                        });
                    }
                }
                None => self.unpinned(group, table, key),
            }
        }
        pins.append(&mut self.written);
        pins
    }

    /// The groups that the statement reads or writes.
    pub(super) fn groups(&self, pins: &[Pin]) -> Vec<GroupId> {
        let read = self.instances.iter().map(|instance| instance.group);
        read.chain(self.inserted)
            .chain(pins.iter().map(|pin| pin.group))
            .collect()
    }

    /// This instance and all whose conditions it takes over.
    pub(super) fn equal_to(&self, start: usize) -> Vec<usize> {
        let mut reached = vec![start];
        let mut at = 0;
        while let Some(instance) = reached.get(at) {
            for other in &self.instances[*instance].equals {
                if !reached.contains(other) {
                    reached.push(*other);
                }
            }
            at += 1;
        }
        reached
    }
}

/// The columns that an INSERT without a list means, when the key's place is sure: a column before it may have been
/// dropped since the server was asked, which moves it; none can come before the first.
fn sure_columns<'a>(table: &'a Table, key: &str) -> &'a [String] {
    if table.columns.first().is_some_and(|first| first == key) {
        &table.columns
    } else {
        &[]
    }
}

/// The columns that these rows all have a value for.
fn given(columns: &[String], body: &Body) -> Vec<String> {
    let has = |place: usize| match body {
        Body::Values(rows) => rows
            .iter()
            .all(|row| !matches!(row.get(place), None | Some(Expr::Default))),
        Body::Select(select) => select.targets.len() > place || select.targets.iter().any(is_star),
        Body::SetOperation(sides) => sides
            .iter()
            .all(|side| given(columns, &side.body).contains(&columns[place])),
    };
    (0..columns.len())
        .filter(|place| has(*place))
        .map(|place| columns[place].clone())
        .collect()
}

fn assigned(targets: &[Target]) -> Vec<String> {
    targets
        .iter()
        .filter_map(|target| target.name.clone())
        .collect()
}

fn is_star(target: &Target) -> bool {
    matches!(&target.value, Expr::Column(Column { star: true, .. }))
}

/// A column or nothing: no grouping set.
fn is_plain(expr: &Expr) -> bool {
    match expr {
        Expr::Column(_) | Expr::Literal(_) => true,
        Expr::Other(parts) => parts.is_empty(),
        _ => false,
    }
}
