//! SHOW MAP, GROUPS, TABLES: what lives where.

use super::{Cell, Table, databases};
use crate::{
    admin::Console,
    catalog::{
        group::{Group, Map},
        key::KeyType,
        shard::ShardId,
        snapshot::Placement,
    },
};
use std::{collections::BTreeMap, sync::atomic::Ordering};

pub(super) fn map(console: &Console) -> Table {
    let mut table = Table::new(
        &["database", "epoch", "group", "shard", "holds", "unit"],
        &["epoch", "holds"],
    );
    let settings = console.settings.load();
    for (name, database) in databases(&settings) {
        let kept = console.metrics.transactions.all();
        let kept = kept.iter().find(|(of, _)| of == name);
        let kept = kept.map_or(0, |(_, view)| view.map_epoch.load(Ordering::Relaxed));
        let epoch = if kept == 0 {
            database.snapshot.epoch.0
        } else {
            kept
        };
        for group in &database.snapshot.groups {
            let (unit, counts) = held(group);
            for (shard, count) in counts {
                table.row([
                    name.into(),
                    epoch.into(),
                    group.name.as_str().into(),
                    database.snapshot.shards.get(shard.index()).cloned().into(),
                    count.into(),
                    unit.into(),
                ]);
            }
        }
    }
    table
}

/// How many buckets, ranges or listed values each shard holds.
fn held(group: &Group) -> (&'static str, BTreeMap<ShardId, usize>) {
    let mut counts = BTreeMap::new();
    let mut count = |shard: ShardId| *counts.entry(shard).or_default() += 1;
    let unit = match &group.map {
        Map::Hash { shards, .. } => {
            shards.iter().copied().for_each(&mut count);
            "buckets"
        }
        Map::Range(entries) => {
            entries.iter().map(|entry| entry.shard).for_each(&mut count);
            "ranges"
        }
        Map::List { values, other } => {
            values.values().copied().chain(*other).for_each(&mut count);
            "values"
        }
    };
    (unit, counts)
}

pub(super) fn groups(console: &Console) -> Table {
    let mut table = Table::new(
        &[
            "database", "group", "method", "key_type", "buckets", "tables",
        ],
        &["buckets", "tables"],
    );
    let settings = console.settings.load();
    for (name, database) in databases(&settings) {
        let snapshot = &database.snapshot;
        for (at, group) in snapshot.groups.iter().enumerate() {
            let (method, buckets) = match &group.map {
                Map::Hash { shards, .. } => ("hash", Some(shards.len())),
                Map::Range(_) => ("range", None),
                Map::List { .. } => ("list", None),
            };
            let of_group = |placement: &Placement| matches!(placement, Placement::Sharded { group, .. } if usize::from(group.0) == at);
            table.row([
                name.into(),
                group.name.as_str().into(),
                method.into(),
                type_word(group.key_type).into(),
                buckets.into(),
                snapshot
                    .tables
                    .values()
                    .filter(|table| of_group(&table.placement))
                    .count()
                    .into(),
            ]);
        }
    }
    table
}

pub(super) fn tables(console: &Console) -> Table {
    let mut table = Table::new(
        &[
            "database",
            "table",
            "placement",
            "group",
            "key_column",
            "shard",
        ],
        &[],
    );
    let settings = console.settings.load();
    for (name, database) in databases(&settings) {
        let snapshot = &database.snapshot;
        let ordered: BTreeMap<_, _> = snapshot.tables.iter().collect();
        for (table_name, listed) in ordered {
            let (placement, group, key, shard): (&str, Cell, Cell, Cell) = match &listed.placement {
                Placement::Sharded { group, key_column } => {
                    let group = snapshot
                        .groups
                        .get(usize::from(group.0))
                        .map(|group| group.name.clone());
                    (
                        "sharded",
                        group.into(),
                        key_column.as_str().into(),
                        Cell::Null,
                    )
                }
                Placement::Reference => ("reference", Cell::Null, Cell::Null, Cell::Null),
                Placement::Single(shard) => (
                    "single",
                    Cell::Null,
                    Cell::Null,
                    snapshot.shards.get(shard.index()).cloned().into(),
                ),
            };
            let full = format!("{}.{}", table_name.schema, table_name.name);
            table.row([
                name.into(),
                full.into(),
                placement.into(),
                group,
                key,
                shard,
            ]);
        }
    }
    table
}

fn type_word(key: KeyType) -> &'static str {
    match key {
        KeyType::Bigint => "bigint",
        KeyType::Text => "text",
        KeyType::Uuid => "uuid",
        KeyType::Date => "date",
        KeyType::Timestamptz => "timestamptz",
        KeyType::Numeric => "numeric",
        KeyType::Bytea => "bytea",
    }
}
