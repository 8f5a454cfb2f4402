//! Rows that are on shards which do not own them, as while a reshard moves them: wrong in every column but the key, so
//! that whoever sees or changes one is found out.

use crate::schema::{self, DATABASE, TABLES, Table, quoted};
use shardway::{
    catalog::{
        group::{Group, Map},
        moving::{KeySet, Part},
        shard::ShardId,
        snapshot::{Placement, Snapshot},
    },
    sandbox::Cluster,
};
use std::{
    fmt::Write as _,
    time::{Duration, SystemTime},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// Keys of a group that a shard has without owning them.
pub(crate) struct Copied {
    pub(crate) group: String,
    pub(crate) shard: ShardId,
    pub(crate) keys: KeySet,
}

/// Of every group, part of each shard's keys, which the next shard has too.
pub(crate) fn copied(snapshot: &Snapshot) -> Vec<Copied> {
    let shards = u16::try_from(snapshot.shards.len()).unwrap();
    let mut all = Vec::new();
    for group in &snapshot.groups {
        for from in 0..shards {
            let keys = KeySet::of(part(group, ShardId(from)));
            all.push(Copied {
                group: group.name.clone(),
                shard: ShardId((from + 1) % shards),
                keys,
            });
        }
    }
    all
}

/// Many of the keys that a shard owns.
fn part(group: &Group, from: ShardId) -> Part {
    match &group.map {
        Map::Hash { shards, .. } => {
            let own = |at: &usize| shards[*at] == from;
            // Of the first shard one run, of the others many.
            let every = if from.0 == 0 {
                1
            } else {
                2 + usize::from(from.0)
            };
            let buckets = (0..shards.len()).filter(own).filter(|at| at % every != 1);
            let run = |at: usize| u32::try_from(at).unwrap();
            let mut runs: Vec<(u32, u32)> = Vec::new();
            for at in buckets {
                match runs.last_mut() {
                    Some((_, to)) if *to == run(at) => *to += 1,
                    _ => runs.push((run(at), run(at) + 1)),
                }
            }
            let of = run(shards.len());
            Part::Buckets { of, runs }
        }
        Map::Range(entries) => {
            let mut below = None;
            let mut ranges = Vec::new();
            for entry in entries {
                if entry.shard == from {
                    ranges.push((below.clone(), entry.to.clone()));
                }
                below.clone_from(&entry.to);
            }
            Part::Ranges(ranges)
        }
        Map::List { values, other } if *other == Some(from) => {
            let elsewhere = values.iter().filter(|(_, shard)| **shard != from);
            Part::Others(elsewhere.map(|(key, _)| key.clone()).collect())
        }
        Map::List { values, .. } => {
            let own = values.iter().filter(|(_, shard)| **shard == from);
            Part::Values(own.map(|(key, _)| key.clone()).collect())
        }
    }
}

/// Puts the rows where they do not belong.
pub(crate) async fn fill(shards: &[Cluster], snapshot: &Snapshot, all: &[Copied]) {
    for table in TABLES.iter().filter(|table| table.sharded()) {
        let listed = snapshot.table(table.schema, table.name).unwrap();
        let Placement::Sharded { group, .. } = &listed.placement else {
            panic!("{} is sharded", table.name);
        };
        let group = snapshot.group(*group);
        for copied in all.iter().filter(|copied| copied.group == group.name) {
            let mut script = String::new();
            for key in schema::keys(table.group) {
                let value = group.key_type.from_text(key.as_bytes()).unwrap();
                if copied.keys.contains(&value) {
                    let row = row(table, key);
                    let _ = write!(script, "INSERT INTO {} VALUES ({row});", table.full_name());
                }
            }
            let shard = &shards[copied.shard.index()];
            shard.execute(DATABASE, &script).await.unwrap();
        }
    }
}

fn row(table: &Table, key: &str) -> String {
    let values = table.columns.iter().map(|(name, kind)| match *kind {
        _ if *name == table.key => format!("'{}'", key.replace('\'', "''")),
        "text" => "'not of this shard'".to_owned(),
        "integer" | "bigint" | "numeric" => "1000001".to_owned(),
        "numeric(12,2)" => "999999.99".to_owned(),
        "boolean" => "true".to_owned(),
        _ => "NULL".to_owned(),
    });
    values.collect::<Vec<_>>().join(", ")
}

/// By table and shard, what a shard has without owning it, as text.
pub(crate) async fn all(
    shards: &[Cluster],
    snapshot: &Snapshot,
    all: &[Copied],
) -> Vec<Vec<Vec<String>>> {
    let mut found = Vec::new();
    for table in TABLES {
        found.push(rows(shards, snapshot, table, all).await);
    }
    found
}

/// Says in the map what is where, and waits until the proxy acts on it.
pub(crate) async fn announce(home: &Cluster, snapshot: &Snapshot, all: &[Copied]) {
    if all.is_empty() {
        return;
    }
    let moving: Vec<_> = all
        .iter()
        .map(|one| {
            serde_json::json!({
                "workflow": "w",
                "group": one.group,
                "shard": snapshot.shards[one.shard.index()],
                "keys": one.keys,
            })
        })
        .collect();
    let moving = serde_json::to_string(&moving).unwrap().replace('\'', "''");
    let kept = "SELECT count(*)::text FROM pg_class WHERE oid = to_regclass('shardway.map') AND EXISTS \
        (SELECT FROM pg_class WHERE oid = to_regclass('shardway.proxy'))";
    until(home, kept).await;
    until(home, "SELECT count(*)::text FROM shardway.map").await;
    let say = format!(
        "UPDATE shardway.map SET epoch = epoch + 1, content = jsonb_set(content, '{{moving}}', '{moving}'); \
         UPDATE shardway.epoch SET epoch = epoch + 1; \
         SELECT pg_notify('shardway', epoch::text) FROM shardway.epoch"
    );
    home.execute(DATABASE, &say).await.unwrap();
    let acts =
        "SELECT count(*)::text FROM shardway.proxy p, shardway.epoch e WHERE p.epoch >= e.epoch";
    until(home, acts).await;
}

/// Waits for an answer that is not 0.
async fn until(home: &Cluster, sql: &str) {
    let begun = SystemTime::now();
    loop {
        let rows = home.query(DATABASE, sql).await.unwrap();
        if rows[0][0].as_deref() != Some("0") {
            return;
        }
        assert!(begun.elapsed().unwrap() < PATIENCE, "waited in vain: {sql}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What each shard has of a table without owning it, as text.
async fn rows(
    shards: &[Cluster],
    snapshot: &Snapshot,
    table: &Table,
    all: &[Copied],
) -> Vec<Vec<String>> {
    let sql = format!(
        "SELECT {}::text, t::text FROM {} t",
        quoted(table.key),
        table.full_name()
    );
    let listed = snapshot.table(table.schema, table.name).unwrap();
    let Placement::Sharded { group, .. } = &listed.placement else {
        return vec![Vec::new(); shards.len()];
    };
    let group = snapshot.group(*group);
    let mut found = Vec::new();
    for (at, shard) in shards.iter().enumerate() {
        let mut rows = Vec::new();
        for row in shard.query(DATABASE, &sql).await.unwrap() {
            let key = group
                .key_type
                .from_text(row[0].as_ref().unwrap().as_bytes())
                .unwrap();
            let here = all
                .iter()
                .filter(|one| one.group == group.name && one.shard.index() == at);
            if here.clone().any(|one| one.keys.contains(&key)) {
                rows.push(row[1].clone().unwrap());
            }
        }
        found.push(rows);
    }
    found
}
