//! Makes a plan of what is wanted, from the map and from what the servers say of the tables. Changes nothing.
//!
//! What must stay true: a plan names every table of the groups that move, and every column that is to be copied; a value
//! travels in binary form only if that means the same on every server.

use super::{
    plan::{MovingColumn, MovingTable, Plan, Root},
    servers::Server,
    wish::{NoMoves, Sample, Wish, cut, moves_by, needs_bounds},
};
use crate::{
    catalog::{
        key::{Key, KeyType},
        moving::{Move, Part},
        ownership::{Ownership, Unmovable},
        snapshot::{Nature, Placement, Snapshot, TableName},
    },
    inspect::AskError,
};
use deadpool_postgres::Client;
use std::collections::{BTreeMap, BTreeSet};

/// What a plan is made of.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    pub snapshot: &'a Snapshot,
    /// The map's number, and who owns what by it.
    pub epoch: i64,
    pub owners: &'a Ownership,
    /// The shards that serve.
    pub members: &'a BTreeSet<String>,
    /// All of the configuration, by name.
    pub servers: &'a BTreeMap<String, Server>,
}

/// A plan, and how much it moves.
#[derive(Clone, Debug, PartialEq)]
pub struct Planned {
    pub plan: Plan,
    pub sizes: Vec<Size>,
    pub cuts: Vec<Cut>,
}

/// A range group that gets new bounds, so that each shard has about as many rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cut {
    pub group: String,
    pub bounds: Vec<Key>,
}

/// About how much of a table is copied from a shard.
#[derive(Clone, Debug, PartialEq)]
pub struct Size {
    pub table: String,
    pub shard: String,
    /// The shard that joins and gets a whole table; `None`: the rows of keys that move.
    pub to: Option<String>,
    /// `None`: the table was never analyzed there.
    pub rows: Option<u64>,
    /// With its indexes.
    pub bytes: u64,
}

/// Why there is no plan.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Moves(#[from] NoMoves),
    #[error(transparent)]
    Unmovable(#[from] Unmovable),
    #[error(
        "shard {shard} cannot be asked: {error}; look whether it runs, and lets the control role in"
    )]
    Ask { shard: String, error: AskError },
    #[error(
        "shard {shard} has no table {table}, which the configuration lists: make it there (shardway check --connect says what is \
         missing where), or take it out of the configuration of every proxy"
    )]
    NoTable { shard: String, table: String },
    #[error(
        "group {0} has no tables: there are no rows to move; list some (groups.{0}.tables), or say with --group which other group \
         moves"
    )]
    NoTables(String),
}

/// A table's columns but generated ones: name, type, whether its binary form is the same everywhere; then whether it is of
/// the primary key and at which place.
const COLUMNS: &str = "\
WITH RECURSIVE base (attnum, oid) AS ( \
  SELECT a.attnum, a.atttypid FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped \
  UNION ALL SELECT b.attnum, t.typbasetype FROM base b JOIN pg_type t ON t.oid = b.oid WHERE t.typtype = 'd') \
SELECT a.attname::text, format_type(a.atttypid, a.atttypmod), \
  t.typsend <> 0 AND t.typreceive <> 0 AND (t.typtype = 'e' OR t.oid < 16384 AND t.typtype IN ('b', 'r', 'm') \
    AND t.typname !~ '^_?reg' AND t.typname NOT IN ('oidvector', 'aclitem', '_aclitem')), \
  coalesce(array_position((i.indkey::int2[])[0:i.indnkeyatts - 1], a.attnum), 0)::int4 \
FROM pg_attribute a JOIN base ON base.attnum = a.attnum JOIN pg_type t ON t.oid = base.oid AND t.typtype <> 'd' \
LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' ORDER BY a.attnum";

/// The partitions of a partitioned table that have rows, whatever is between it and them.
const PARTITIONS: &str = "\
SELECT n.nspname::text, c.relname::text FROM pg_class root, pg_partition_tree(root.oid) p \
JOIN pg_class c ON c.oid = p.relid JOIN pg_namespace n ON n.oid = c.relnamespace \
WHERE root.oid = to_regclass($1) AND root.relkind = 'p' AND p.isleaf AND c.relkind <> 'p' ORDER BY 1, 2";

const SIZE: &str = "\
SELECT reltuples::float8, pg_total_relation_size(oid)::float8 FROM pg_class WHERE oid = to_regclass($1)";

/// Makes the plan.
///
/// # Errors
/// [`PlanError`].
pub async fn plan(asked: Asked<'_>, wishes: &[Wish]) -> Result<Planned, PlanError> {
    let shards: BTreeSet<String> = asked.servers.keys().cloned().collect();
    let mut connections = Connections::default();
    let (samples, cuts) = samples(&mut connections, asked, wishes).await?;
    let moves = moves_by(asked.owners, wishes, &shards, &samples)?;
    let after = asked.owners.apply(&moves)?;
    let to: BTreeSet<&String> = moves.iter().map(|it| &it.to).collect();
    let joins = to
        .into_iter()
        .filter(|shard| !asked.members.contains(*shard));
    let joins: Vec<String> = joins.cloned().collect();
    let mut tables = Vec::new();
    let groups: BTreeSet<&String> = moves.iter().map(|it| &it.group).collect();
    for group in groups {
        let mut of_group = moves.iter().filter(|it| it.group == *group);
        let from = of_group
            .next()
            .map(|it| it.from.clone())
            .unwrap_or_default();
        let names = sharded(asked.snapshot, group);
        if names.is_empty() {
            return Err(PlanError::NoTables(group.clone()));
        }
        let client = connections.to(asked.servers, &from).await?;
        for (name, key_column) in names {
            let read = with_partitions(client, &name, Some(group), &key_column).await;
            let read = read.map_err(|fault| fault.on(&from, &name))?;
            add(&mut tables, read);
        }
    }
    let owners = after.shards();
    let leaves = moves.iter().any(|it| !owners.contains(&it.from));
    let everywhere = match moves.first().filter(|_| leaves || !joins.is_empty()) {
        Some(first) => everywhere(&mut connections, asked, &first.from).await?,
        None => Vec::new(),
    };
    let left = if leaves {
        everywhere.clone()
    } else {
        Vec::new()
    };
    let reference = if joins.is_empty() {
        Vec::new()
    } else {
        everywhere
    };
    let plan = Plan {
        moves,
        epoch: asked.epoch,
        before: asked.owners.clone(),
        after,
        tables,
        joins,
        reference,
        left,
    };
    let sizes = sizes(&mut connections, asked, &plan).await?;
    Ok(Planned { plan, sizes, cuts })
}

/// How much is copied: of tables of which rows move, then of those that joining shards get whole.
async fn sizes(
    connections: &mut Connections,
    asked: Asked<'_>,
    plan: &Plan,
) -> Result<Vec<Size>, PlanError> {
    let mut sizes = Vec::new();
    for it in &plan.moves {
        let of_group = |table: &&MovingTable| table.group.as_ref() == Some(&it.group);
        let client = connections.to(asked.servers, &it.from).await?;
        for table in plan.tables.iter().filter(of_group) {
            let size = size(client, table, it, asked.owners).await;
            sizes.push(size.map_err(|error| unanswered(&it.from, error))?);
        }
    }
    let giver = plan.moves.iter().map(|it| &it.from).min();
    if let Some(giver) = giver.filter(|_| !plan.reference.is_empty()) {
        let client = connections.to(asked.servers, giver).await?;
        let whole = whole_sizes(client, giver, &plan.reference, &plan.joins).await;
        sizes.extend(whole.map_err(|error| unanswered(giver, error))?);
    }
    Ok(sizes)
}

/// The tables that every shard has whole, as one of them has them.
async fn everywhere(
    connections: &mut Connections,
    asked: Asked<'_>,
    from: &str,
) -> Result<Vec<MovingTable>, PlanError> {
    let mut tables = Vec::new();
    let client = connections.to(asked.servers, from).await?;
    for name in whole(asked.snapshot) {
        let read = with_partitions(client, &name, None, "").await;
        let read = read.map_err(|fault| fault.on(from, &name))?;
        add(&mut tables, read);
    }
    Ok(tables)
}

/// How the keys are spread of range groups that are to be split evenly over more shards than they have ranges, and the
/// bounds that follow from it.
async fn samples(
    connections: &mut Connections,
    asked: Asked<'_>,
    wishes: &[Wish],
) -> Result<(BTreeMap<String, Sample>, Vec<Cut>), PlanError> {
    let (mut samples, mut cuts) = (BTreeMap::new(), Vec::new());
    for wish in wishes {
        let Wish::Spread { group: only, to } = wish else {
            continue;
        };
        for group in asked.owners.groups() {
            let named = only.as_deref().is_none_or(|only| only == group);
            let key_type = asked.owners.key_type(group);
            let Some(key_type) = key_type.filter(|_| named) else {
                continue;
            };
            if !needs_bounds(asked.owners, group, to.len()) {
                continue;
            }
            let mut sample = Sample::new();
            let (_, held) = asked.owners.held(group);
            for shard in held.keys() {
                let client = connections.to(asked.servers, shard).await?;
                for (name, key_column) in sharded(asked.snapshot, group) {
                    let read = keys(client, &name, &key_column, key_type).await;
                    let read = read.map_err(|error| Fault::Ask(error).on(shard, &name))?;
                    sample.extend(read);
                }
            }
            cuts.extend(cut(&sample, to.len()).map(|bounds| Cut {
                group: group.to_owned(),
                bounds,
            }));
            samples.insert(group.to_owned(), sample);
        }
    }
    Ok((samples, cuts))
}

/// Keys of a table at even distances of rows, in the order of the group's ranges: the server's own quantiles. Of a table
/// that is large, by some of its pages.
async fn keys(
    client: &Client,
    name: &TableName,
    key_column: &str,
    key_type: KeyType,
) -> Result<Sample, tokio_postgres::Error> {
    const POINTS: usize = 400;
    const ROWS: f64 = 500_000.0;
    let identifier = super::plan::identifier;
    let table = format!("{}.{}", identifier(&name.schema), identifier(&name.name));
    const ESTIMATE: &str = "\
SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::float8 FROM (\
  SELECT to_regclass($1)::oid UNION SELECT relid::oid FROM pg_partition_tree(to_regclass($1))) t (oid) \
JOIN pg_class c ON c.oid = t.oid WHERE c.relkind = 'r'";
    let estimate = client.query_one(ESTIMATE, &[&table]).await?;
    let rows: f64 = estimate.get(0);
    let percent = (100.0 * ROWS / rows.max(1.0)).min(100.0);
    let sampled = if percent < 100.0 {
        format!(" TABLESAMPLE SYSTEM ({percent}) REPEATABLE (1)")
    } else {
        String::new()
    };
    // Text is ordered by its bytes, as ranges are.
    let collated = if key_type == KeyType::Text {
        " COLLATE \"C\""
    } else {
        ""
    };
    let column = format!("{}::{}{collated}", identifier(key_column), key_type.name());
    let quantiles = format!(
        "SELECT count(*)::float8, coalesce((percentile_disc($1::float8[]) WITHIN GROUP (ORDER BY k))::text[], '{{}}') \
         FROM (SELECT {column} AS k FROM {table}{sampled}) t WHERE k IS NOT NULL"
    );
    let shares: Vec<f64> = (0..POINTS)
        .map(|at| (at as f64 + 0.5) / POINTS as f64)
        .collect();
    let row = client.query_one(&quantiles, &[&shares]).await?;
    let (count, points): (f64, Vec<String>) = (row.get(0), row.get(1));
    let each = count * 100.0 / percent / POINTS as f64;
    let keys = points.iter();
    let keys = keys.filter_map(|text| key_type.from_text(text.as_bytes()).ok());
    Ok(keys.map(|key| (key, each)).collect())
}

/// One connection to each shard that is asked.
#[derive(Default)]
struct Connections(BTreeMap<String, Client>);

impl Connections {
    async fn to(
        &mut self,
        servers: &BTreeMap<String, Server>,
        shard: &str,
    ) -> Result<&Client, PlanError> {
        if !self.0.contains_key(shard) {
            let server = servers
                .get(shard)
                .ok_or_else(|| NoMoves::NoShard(shard.to_owned()))?;
            let client = server.sql().await.map_err(|error| PlanError::Ask {
                shard: shard.to_owned(),
                error,
            })?;
            self.0.insert(shard.to_owned(), client);
        }
        let found = self.0.get(shard);
        found.ok_or_else(|| NoMoves::NoShard(shard.to_owned()).into())
    }
}

/// The tables of a group with their shard keys, in order.
fn sharded(snapshot: &Snapshot, group: &str) -> Vec<(TableName, String)> {
    let tables = snapshot.tables.iter();
    let tables = tables.filter(|(_, table)| table.nature == Nature::Table);
    let of_group = tables.filter_map(|(name, table)| match &table.placement {
        Placement::Sharded {
            group: id,
            key_column,
        } if snapshot.group(*id).name == group => Some((name.clone(), key_column.clone())),
        Placement::Sharded { .. } | Placement::Reference | Placement::Single(_) => None,
    });
    let mut found: Vec<_> = of_group.collect();
    found.sort();
    found
}

/// The tables that every shard has whole, in order.
fn whole(snapshot: &Snapshot) -> Vec<TableName> {
    let tables = snapshot.tables.iter();
    let tables = tables.filter(|(_, table)| {
        table.nature == Nature::Table && table.placement == Placement::Reference
    });
    let mut found: Vec<TableName> = tables.map(|(name, _)| name.clone()).collect();
    found.sort();
    found
}

fn unanswered(shard: &str, error: tokio_postgres::Error) -> PlanError {
    PlanError::Ask {
        shard: shard.to_owned(),
        error: error.into(),
    }
}

enum Fault {
    Ask(tokio_postgres::Error),
    NoTable,
}

impl Fault {
    fn on(self, shard: &str, table: &TableName) -> PlanError {
        match self {
            Self::Ask(error) => unanswered(shard, error),
            Self::NoTable => PlanError::NoTable {
                shard: shard.to_owned(),
                table: format!("{}.{}", table.schema, table.name),
            },
        }
    }
}

/// Those that are not there: a partition may be listed beside its table.
fn add(tables: &mut Vec<MovingTable>, more: Vec<MovingTable>) {
    for table in more {
        let is_it = |it: &&MovingTable| (&it.schema, &it.name) == (&table.schema, &table.name);
        if tables.iter().find(is_it).is_none() {
            tables.push(table);
        }
    }
}

/// A table, or all partitions of one that is partitioned.
async fn with_partitions(
    client: &Client,
    name: &TableName,
    group: Option<&str>,
    key_column: &str,
) -> Result<Vec<MovingTable>, Fault> {
    let root = Root {
        schema: name.schema.clone(),
        name: name.name.clone(),
    };
    let parts = client.query(PARTITIONS, &[&root.sql()]).await;
    let mut tables = Vec::new();
    for part in parts.map_err(Fault::Ask)? {
        let name = TableName {
            schema: part.get(0),
            name: part.get(1),
        };
        let mut part = table(client, &name, group, key_column).await?;
        part.root = Some(root.clone());
        tables.push(part);
    }
    if tables.is_empty() {
        tables.push(table(client, name, group, key_column).await?);
    }
    Ok(tables)
}

async fn table(
    client: &Client,
    name: &TableName,
    group: Option<&str>,
    key_column: &str,
) -> Result<MovingTable, Fault> {
    let mut table = MovingTable {
        schema: name.schema.clone(),
        name: name.name.clone(),
        group: group.map(str::to_owned),
        key_column: key_column.to_owned(),
        primary_key: Vec::new(),
        columns: Vec::new(),
        root: None,
    };
    let found = columns(client, &table.sql()).await.map_err(Fault::Ask)?;
    if found.is_empty() {
        return Err(Fault::NoTable);
    }
    let mut primary_key: Vec<(i32, String)> = Vec::new();
    for (column, place) in found {
        if place > 0 {
            primary_key.push((place, column.name.clone()));
        }
        table.columns.push(column);
    }
    primary_key.sort();
    table.primary_key = primary_key.into_iter().map(|(_, name)| name).collect();
    Ok(table)
}

/// The columns of a table, which SQL names, each with its place in the primary key; none: there is no such table.
pub(super) async fn columns(
    client: &Client,
    table: &str,
) -> Result<Vec<(MovingColumn, i32)>, tokio_postgres::Error> {
    let rows = client.query(COLUMNS, &[&table]).await?;
    let column = |row: &tokio_postgres::Row| {
        let column = MovingColumn {
            name: row.get(0),
            type_name: row.get(1),
            binary: row.get(2),
        };
        (column, row.get(3))
    };
    Ok(rows.iter().map(column).collect())
}

/// The share of a shard's rows that a move takes along: of buckets as many as it takes, else as the server estimates.
pub(super) async fn size(
    client: &Client,
    table: &MovingTable,
    moved: &Move,
    owners: &Ownership,
) -> Result<Size, tokio_postgres::Error> {
    let row = client.query_one(SIZE, &[&table.sql()]).await?;
    let (rows, bytes): (f64, f64) = (row.get(0), row.get(1));
    let known = rows >= 0.0;
    let share = match share_of_buckets(moved, owners) {
        Some(share) => share,
        None => estimated(client, table, moved, owners).await? / rows.max(1.0),
    };
    let share = share.clamp(0.0, 1.0);
    Ok(Size {
        table: table.plain(),
        shard: moved.from.clone(),
        to: None,
        rows: known.then(|| (rows * share).round() as u64),
        bytes: (bytes * share).round() as u64,
    })
}

/// Of tables that each joining shard gets whole.
async fn whole_sizes(
    client: &Client,
    from: &str,
    tables: &[MovingTable],
    joins: &[String],
) -> Result<Vec<Size>, tokio_postgres::Error> {
    let mut sizes = Vec::new();
    for table in tables {
        let row = client.query_one(SIZE, &[&table.sql()]).await?;
        let (rows, bytes): (f64, f64) = (row.get(0), row.get(1));
        sizes.extend(joins.iter().map(|joining| Size {
            table: table.plain(),
            shard: from.to_owned(),
            to: Some(joining.clone()),
            rows: (rows >= 0.0).then(|| rows.round() as u64),
            bytes: bytes.round() as u64,
        }));
    }
    Ok(sizes)
}

fn share_of_buckets(moved: &Move, owners: &Ownership) -> Option<f64> {
    let count = |part: &Part| match part {
        Part::Buckets { runs, .. } => {
            let each = runs.iter().map(|(from, to)| f64::from(to - from));
            Some(each.sum::<f64>())
        }
        Part::None | Part::Ranges(_) | Part::Values(_) | Part::Others(_) => None,
    };
    let all = owners.sets_of(&moved.group, &moved.from)?;
    Some(count(&moved.keys.part)? / count(&all.part)?)
}

async fn estimated(
    client: &Client,
    table: &MovingTable,
    moved: &Move,
    owners: &Ownership,
) -> Result<f64, tokio_postgres::Error> {
    let column = super::plan::identifier(&table.key_column);
    let key_type = owners.key_type(&moved.group);
    let condition = key_type.and_then(|it| moved.keys.sql(&column, it).ok());
    let explain = format!(
        "EXPLAIN (FORMAT JSON) SELECT FROM {} WHERE {}",
        table.sql(),
        condition.as_deref().unwrap_or("true")
    );
    let told = client.simple_query(&explain).await?;
    let text = told.iter().find_map(|message| {
        let tokio_postgres::SimpleQueryMessage::Row(row) = message else {
            return None;
        };
        row.get(0).map(str::to_owned)
    });
    let told: serde_json::Value =
        serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
    let rows = told.pointer("/0/Plan/Plan Rows");
    Ok(rows.and_then(serde_json::Value::as_f64).unwrap_or(0.0))
}
