//! SHOW MAP, GROUPS, TABLES: what lives where.

use super::{Cell, Table, databases};
use crate::{
    admin::Console,
    catalog::{
        group::Map,
        key::KeyType,
        ownership::{Content, Declared},
        snapshot::Placement,
    },
};
use std::{collections::BTreeMap, sync::atomic::Ordering};

/// Runs of buckets, ranges, values or single keys of a shard that are named.
const MOST: usize = 64;

pub(super) fn map(console: &Console) -> Table {
    let columns = [
        "database", "epoch", "group", "shard", "holds", "unit", "pins", "member", "moving", "keys",
    ];
    let mut table = Table::new(&columns, &["epoch", "holds", "pins"]);
    let settings = console.settings.load();
    let views = console.metrics.transactions.all();
    for (name, database) in databases(&settings) {
        let snapshot = &database.snapshot;
        let view = views.iter().find(|(of, _)| of == name);
        let epoch = view.map_or(0, |(_, view)| view.map_epoch.load(Ordering::Relaxed));
        let epoch = if epoch == 0 { snapshot.epoch.0 } else { epoch };
        let map = view.and_then(|(_, view)| view.map());
        let declared = || Content::first(&Declared::of(snapshot));
        let map = map.map_or_else(declared, |map| (*map).clone());
        for group in map.owners.groups() {
            let (unit, held) = map.owners.held(group);
            let mut shards: BTreeMap<&str, (usize, usize)> = held;
            let names = snapshot.shards.iter().map(String::as_str);
            for shard in names.filter(|it| !map.members.contains(*it)) {
                shards.entry(shard).or_default();
            }
            for (shard, (holds, pins)) in shards {
                let moving = map.moving.iter();
                let moving = moving.filter(|it| it.group == group && it.shard == shard);
                let moving: Vec<&str> = moving.map(|it| it.workflow.as_str()).collect();
                let member = if map.members.contains(shard) {
                    "yes"
                } else {
                    "no"
                };
                table.row([
                    name.into(),
                    epoch.into(),
                    group.into(),
                    shard.into(),
                    holds.into(),
                    unit.into(),
                    pins.into(),
                    member.into(),
                    (!moving.is_empty()).then(|| moving.join(",")).into(),
                    map.owners.words_of(group, shard, MOST).into(),
                ]);
            }
        }
    }
    table
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
