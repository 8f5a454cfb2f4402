//! Which of the objects that servers have would look at, count or change on one shard what one PostgreSQL would on all.
//! Pure.

use super::{
    effects::{Action, Counted, Counter, DefaultValue, Made, Objects, Trigger},
    reach::Reach,
    trigger::{Function, contained, repeats},
};
use crate::catalog::{
    computed::{Computed, DrawnBy, Sequence, Sought, Source},
    effects::{Effects, Fired, Following, Hazard, HazardKind},
    key::KeyType,
    snapshot::{Placement, Snapshot, Table, TableName},
};
use std::collections::BTreeSet;

/// The effects of a sharded table, of what every shard has.
pub(super) fn effects(
    snapshot: &Snapshot,
    shards: &[&Objects],
    table: &TableName,
    key: &str,
) -> Effects {
    let mut found = Effects::default();
    for objects in shards {
        found.hazards.extend(of_objects(objects, table, key));
        for action in objects
            .actions
            .iter()
            .filter(|action| action.parent == *table)
        {
            found.hazards.extend(cascade(snapshot, action, key));
        }
    }
    let key_type = match snapshot.tables.get(table).map(|table| &table.placement) {
        Some(Placement::Sharded { group, .. }) => Some(snapshot.group(*group).key_type),
        Some(Placement::Reference | Placement::Single(_)) | None => None,
    };
    for (column, made) in defaults(shards, table) {
        let apart = made
            .iter()
            .all(|made| matches!(made, Made::Random(_) | Made::Id))
            || disjoint(&made, snapshot.members.len());
        let by = source(&made, shards.len())
            .filter(|by| !counts_elsewhere(snapshot, by))
            .filter(|by| (column == key || !apart) && (column != key || fits(by, key_type)));
        let again = |made: &&Made| matches!(made, Made::Counted(counter) if counter.cycles);
        if apart || by.is_some() && !made.iter().any(again) {
            found.fresh.push(column.clone());
        }
        if !apart {
            found.add(&column, HazardKind::Default, Fired::INSERT);
        }
        found.computed.extend(by.map(|by| Computed { column, by }));
    }
    found.always = always(shards, table);
    found.varies(shards, table);
    found.strays.uniques = keyless(shards, table, key);
    settle(snapshot, table, &mut found);
    found
}

/// The unique indexes without the key, those of partitions by their own names, whatever the configuration accepts.
fn keyless(shards: &[&Objects], table: &TableName, key: &str) -> Vec<String> {
    let all = shards.iter().flat_map(|objects| &objects.uniques);
    let own = all.filter(|unique| unique.table == *table && unique.lacks(key));
    let names: BTreeSet<&String> = own.map(|unique| &unique.name).collect();
    names.into_iter().cloned().collect()
}

/// Whether the sequence is that of a table on one shard, which is not the home shard.
fn counts_elsewhere(snapshot: &Snapshot, by: &Source) -> bool {
    let Source::Sequence(Sequence {
        name: Sought::Known(name),
        ..
    }) = by
    else {
        return false;
    };
    let shard = snapshot.sequences.get(name);
    shard.is_some_and(|shard| *shard != snapshot.home)
}

/// Whether such values are keys of this type.
fn fits(by: &Source, key_type: Option<KeyType>) -> bool {
    key_type
        == Some(match by {
            Source::Sequence(_) | Source::Id => KeyType::Bigint,
            Source::Uuid(_) => KeyType::Uuid,
            Source::Drawn(_) => return false,
        })
}

/// What gives the values of a column that has the same default on every shard, where it can be computed before a row has
/// its shard.
fn source(made: &[&Made], shards: usize) -> Option<Source> {
    let first = *made.first()?;
    if made.len() < shards {
        return None;
    }
    let named = |made: &Made| match made {
        Made::Counted(counter) if counter.how != Counted::Within => {
            Some((counter.sequence.clone(), counter.how))
        }
        Made::Counted(_) | Made::Random(_) | Made::Id | Made::Computed => None,
    };
    match first {
        Made::Counted(counter) => {
            let name = named(first)?;
            let same = made
                .iter()
                .all(|other| named(other).as_ref() == Some(&name));
            same.then(|| {
                Source::Sequence(Sequence {
                    name: Sought::Known(counter.sequence.clone()),
                    drawn_by: match counter.how {
                        Counted::Identity => DrawnBy::Owner(counter.owner.clone()),
                        Counted::Plainly | Counted::Within => DrawnBy::Session,
                    },
                })
            })
        }
        Made::Random(Some(version)) if made.iter().all(|other| *other == first) => {
            Some(Source::Uuid(*version))
        }
        Made::Id if made.iter().all(|other| *other == first) => Some(Source::Id),
        Made::Random(_) | Made::Id | Made::Computed => None,
    }
}

/// The identity columns that take no value of a client's, on any shard.
fn always(shards: &[&Objects], table: &TableName) -> Vec<String> {
    let all = shards.iter().flat_map(|objects| &objects.always);
    let own = all.filter(|(on, _)| on == table);
    let columns: BTreeSet<&String> = own.map(|(_, column)| column).collect();
    columns.into_iter().cloned().collect()
}

/// The effects of a table that one shard has, of what that shard has.
pub(super) fn effects_of_single(
    snapshot: &Snapshot,
    objects: &Objects,
    reach: &Reach,
    table: &TableName,
) -> Effects {
    let mut found = Effects::default();
    for trigger in objects.triggers.iter().filter(|one| one.table == *table) {
        let function = function(trigger);
        let unknown = !matches!(trigger.language.as_str(), "plpgsql" | "sql");
        if !contained(function, "") && (unknown || reach.has(&trigger.function)) {
            let fired = trigger.fired;
            found.add(&trigger.name, HazardKind::Trigger, fired);
        }
    }
    let own = reach.has(&table.name);
    for (_, name) in objects.rules.iter().filter(|(on, _)| own && on == table) {
        found.add(name, HazardKind::Rule, Fired::WRITES);
    }
    for (_, name) in objects.policies.iter().filter(|(on, _)| own && on == table) {
        found.add(name, HazardKind::Policy, Fired::ALL);
    }
    for action in objects.actions.iter().filter(|one| one.parent == *table) {
        let child = snapshot.tables.get(&action.child);
        let elsewhere = child.is_some_and(|child| !matches!(child.placement, Placement::Single(_)));
        if elsewhere {
            let fired = Fired {
                delete: action.on_delete != ' ',
                update: action.on_update != ' ',
                ..Fired::default()
            };
            found.add(
                &action.name,
                HazardKind::Cascade(action.child.clone()),
                fired,
            );
        }
    }
    found.varies(&[objects], table);
    settle(snapshot, table, &mut found);
    found
}

/// The effects of a table of which every shard has a copy, each changed by itself: what would not do to all copies the
/// same.
pub(super) fn effects_of_copies(
    snapshot: &Snapshot,
    shards: &[&Objects],
    table: &TableName,
) -> Effects {
    let mut found = Effects::default();
    for objects in shards {
        for trigger in objects.triggers.iter().filter(|one| one.table == *table) {
            if !repeats(function(trigger)) {
                found.add(&trigger.name, HazardKind::Trigger, trigger.fired);
            }
        }
        for (_, name) in objects.rules.iter().filter(|(on, _)| on == table) {
            found.add(name, HazardKind::Rule, Fired::WRITES);
        }
        for (_, name) in objects.policies.iter().filter(|(on, _)| on == table) {
            found.add(name, HazardKind::Policy, Fired::ALL);
        }
        let own = |action: &&Action| action.parent == *table;
        for action in objects.actions.iter().filter(own) {
            let child = snapshot.tables.get(&action.child);
            if child.is_some_and(|child| matches!(child.placement, Placement::Sharded { .. })) {
                // Rows of every shard follow their own copy, but their keys must stay.
                found.hazards.extend(cascade(snapshot, action, ""));
            }
        }
    }
    for (column, made) in defaults(shards, table) {
        let by = source(&made, shards.len()).filter(|by| !counts_elsewhere(snapshot, by));
        found.computed.extend(by.map(|by| Computed { column, by }));
    }
    found.always = always(shards, table);
    found.varies(shards, table);
    found.strays.follow = following(snapshot, shards, table);
    settle(snapshot, table, &mut found);
    found
}

/// The actions on tables of groups that changes of a table of which every shard has a copy set off, also by way of other
/// such tables.
fn following(snapshot: &Snapshot, shards: &[&Objects], table: &TableName) -> Vec<Following> {
    let actions: Vec<&Action> = shards.iter().flat_map(|one| &one.actions).collect();
    let of = |parent: &TableName| {
        let parent = parent.clone();
        actions.iter().filter(move |one| one.parent == parent)
    };
    let mut found = BTreeSet::new();
    for first in of(table) {
        let mut reached: BTreeSet<&TableName> = BTreeSet::from([&first.child]);
        let mut left = vec![&first.child];
        while let Some(child) = left.pop() {
            match snapshot.tables.get(child).map(|table| &table.placement) {
                Some(Placement::Sharded { group, .. }) => {
                    found.insert(Following {
                        group: *group,
                        columns: first.columns.iter().map(|(_, own)| own.clone()).collect(),
                        fired: Fired {
                            delete: first.on_delete != ' ',
                            update: first.on_update != ' ',
                            ..Fired::default()
                        },
                    });
                }
                // What becomes of its rows is not looked into.
                Some(Placement::Reference) => {
                    let next = of(child).map(|one| &one.child);
                    left.extend(next.filter(|next| reached.insert(*next)));
                }
                Some(Placement::Single(_)) | None => {}
            }
        }
    }
    found.into_iter().collect()
}

/// Each once, without what the configuration accepts.
fn settle(snapshot: &Snapshot, table: &TableName, found: &mut Effects) {
    found.hazards.sort();
    found.hazards.dedup();
    found
        .hazards
        .retain(|hazard| !accepted(snapshot, table, &hazard.name));
}

fn function(trigger: &Trigger) -> Function<'_> {
    Function {
        name: &trigger.function,
        language: &trigger.language,
        source: &trigger.source,
        arguments: &trigger.arguments,
    }
}

impl Effects {
    /// What the table's defaults compute, as the first shard says that has one for a column.
    fn varies(&mut self, shards: &[&Objects], table: &TableName) {
        let all = shards.iter().flat_map(|objects| &objects.varying);
        for (_, varying) in all.filter(|(on, _)| on == table) {
            if !self
                .varying
                .iter()
                .any(|known| known.column == varying.column)
            {
                self.varying.push(varying.clone());
            }
        }
    }

    fn add(&mut self, name: &str, kind: HazardKind, fired: Fired) {
        let name = name.to_owned();
        self.hazards.push(Hazard { name, kind, fired });
    }
}

/// Whether the configuration says that it may act on each shard by itself.
fn accepted(snapshot: &Snapshot, table: &TableName, name: &str) -> bool {
    let fits = |pattern: &str, text: &str| pattern == "*" || pattern == text;
    snapshot.per_shard.iter().any(|object| {
        fits(&object.schema, &table.schema)
            && fits(&object.table, &table.name)
            && fits(&object.name, name)
    })
}

fn of_objects(objects: &Objects, table: &TableName, key: &str) -> Vec<Hazard> {
    let hazard = |name: &str, kind, fired| Hazard {
        name: name.to_owned(),
        kind,
        fired,
    };
    let mut found = Vec::new();
    for trigger in objects
        .triggers
        .iter()
        .filter(|trigger| trigger.table == *table)
    {
        if !contained(function(trigger), key) {
            found.push(hazard(&trigger.name, HazardKind::Trigger, trigger.fired));
        }
    }
    for (_, name) in objects.rules.iter().filter(|(on, _)| on == table) {
        found.push(hazard(name, HazardKind::Rule, Fired::WRITES));
    }
    for (_, name) in objects.policies.iter().filter(|(on, _)| on == table) {
        found.push(hazard(name, HazardKind::Policy, Fired::ALL));
    }
    for unique in objects
        .uniques
        .iter()
        .filter(|unique| unique.table == *table && !unique.attached)
    {
        if unique.lacks(key) {
            let kind = HazardKind::Unique(unique.columns.clone());
            found.push(hazard(&unique.name, kind, Fired::VALUES));
        }
    }
    found
}

/// What a foreign key's action on a child of this table changes that it should not.
fn cascade(snapshot: &Snapshot, action: &Action, key: &str) -> Option<Hazard> {
    let child = snapshot.tables.get(&action.child)?;
    let fired = match &child.placement {
        // Its rows on other shards reference nothing here.
        Placement::Single(_) => return None,
        Placement::Reference => Fired {
            delete: action.on_delete != ' ',
            update: action.on_update != ' ',
            ..Fired::default()
        },
        Placement::Sharded { key_column, .. } => {
            let of = action
                .columns
                .iter()
                .find(|(column, _)| column == key_column);
            let (_, parents) = of?;
            Fired {
                delete: matches!(action.on_delete, 'n' | 'd'),
                update: action.on_update != ' ' && parents != key,
                ..Fired::default()
            }
        }
    };
    (fired != Fired::default()).then(|| Hazard {
        name: action.name.clone(),
        kind: HazardKind::Cascade(action.child.clone()),
        fired,
    })
}

/// By column, what each shard's default is made by.
fn defaults<'o>(shards: &[&'o Objects], table: &TableName) -> Vec<(String, Vec<&'o Made>)> {
    let mut columns: Vec<(String, Vec<&Made>)> = Vec::new();
    let all = shards.iter().flat_map(|objects| &objects.defaults);
    for DefaultValue { column, made, .. } in all.filter(|default| default.table == *table) {
        match columns.iter_mut().find(|(known, _)| known == column) {
            Some((_, known)) => known.push(made),
            None => columns.push((column.clone(), vec![made])),
        }
    }
    columns
}

/// Whether every shard counts, and none gives a number that another gives.
fn disjoint(made: &[&Made], shards: usize) -> bool {
    let counters: Vec<&Counter> = made
        .iter()
        .filter_map(|made| match made {
            Made::Counted(counter) => Some(counter),
            Made::Random(_) | Made::Id | Made::Computed => None,
        })
        .collect();
    made.len() == shards
        && counters.len() == shards
        && counters.iter().enumerate().all(|(at, one)| {
            counters[at + 1..]
                .iter()
                .all(|other| apart(one, other) || stepped(one, other))
        })
}

/// In ranges that do not meet.
fn apart(one: &Counter, other: &Counter) -> bool {
    one.max < other.min || other.max < one.min
}

/// By the same step from starts that it does not lead from one to the other.
fn stepped(one: &Counter, other: &Counter) -> bool {
    let (Some(a), Some(b)) = (one.residue(), other.residue()) else {
        return false;
    };
    one.step == other.step && a != b
}

impl Counter {
    /// What all its numbers leave when divided by the step; `None`: not the same for all.
    fn residue(&self) -> Option<i64> {
        let step = self.step.checked_abs()?;
        let residue = self.start.rem_euclid(step);
        let same = self
            .last
            .is_none_or(|last| last.rem_euclid(step) == residue);
        (same && !self.cycles).then_some(residue)
    }
}

/// Whether the table's key is computed of other columns.
pub(super) fn generated_key(objects: &Objects, name: &TableName, table: &Table) -> Option<String> {
    let Placement::Sharded { key_column, .. } = &table.placement else {
        return None;
    };
    let generated = objects
        .generated
        .iter()
        .any(|(on, column)| on == name && column == key_column);
    generated.then(|| key_column.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counter(step: i64, start: i64) -> Made {
        Made::Counted(Counter {
            sequence: TableName {
                schema: "public".to_owned(),
                name: "s".to_owned(),
            },
            owner: "o".to_owned(),
            how: Counted::Plainly,
            step,
            start,
            last: None,
            min: 1,
            max: i64::MAX,
            cycles: false,
        })
    }

    #[test]
    fn sequences_that_step_over_each_other_are_disjoint() {
        let all = [counter(3, 1), counter(3, 2), counter(3, 3)];
        let [a, b, c] = &all;
        assert!(disjoint(&[a, b, c], 3));
        assert!(!disjoint(&[a, b, a], 3));
        assert!(!disjoint(&[a, b], 3), "one shard has none");
        assert!(!disjoint(&[a, &counter(2, 2)], 2), "another step");
        assert!(!disjoint(&[&counter(1, 1), &counter(1, 2)], 2));
        assert!(!disjoint(&[a, &Made::Computed], 2));
    }

    #[test]
    fn a_shard_that_counts_is_not_left_to_itself_while_another_has_not_answered() {
        let shards = vec!["s0".to_owned(), "s1".to_owned()];
        let mut snapshot = Snapshot::new("shop", shards);
        let table = TableName {
            schema: "public".to_owned(),
            name: "t".to_owned(),
        };
        let answered = Objects {
            defaults: vec![DefaultValue {
                table: table.clone(),
                column: "id".to_owned(),
                made: counter(1, 1),
            }],
            ..Objects::default()
        };
        let found = effects(&snapshot, &[&answered], &table, "k");
        assert_eq!(found.computed.len(), 1);
        snapshot.members = crate::catalog::shard::ShardSet::first(1);
        let found = effects(&snapshot, &[&answered], &table, "k");
        assert_eq!(found.computed, [], "it is alone");
    }

    #[test]
    fn a_sequence_that_was_set_elsewhere_or_cycles_is_not() {
        let mut moved = counter(2, 1);
        let Made::Counted(inner) = &mut moved else {
            return;
        };
        inner.last = Some(4);
        assert!(!disjoint(&[&moved, &counter(2, 2)], 2));
        let mut cycling = counter(2, 1);
        let Made::Counted(inner) = &mut cycling else {
            return;
        };
        inner.cycles = true;
        assert!(!disjoint(&[&cycling, &counter(2, 2)], 2));
    }

    #[test]
    fn ranges_that_do_not_meet_are_disjoint() {
        let range = |min, max| {
            let Made::Counted(inner) = counter(1, min) else {
                unreachable!("made here")
            };
            Made::Counted(Counter { min, max, ..inner })
        };
        assert!(disjoint(&[&range(1, 100), &range(101, 200)], 2));
        assert!(!disjoint(&[&range(1, 101), &range(101, 200)], 2));
    }
}
