//! verify: every row that moved is the same on its source and on its destination, and no other is there.
//!
//! A temporary slot on the source says at which point of its WAL a snapshot is of; the stream of changes stops before the
//! first commit past it, the destinations take their snapshots, and the stream goes on. What was compared is recorded, table
//! by table, so that a run that was interrupted goes on with the next; every table is compared in snapshots of its own, so
//! that none is held for longer than one table takes.

use crate::{
    catalog::{key::KeyType, moving::KeySet},
    inspect::AskError,
    replication::connection::{Connection, Lifetime, Snapshot},
    reshard::{
        job::{Job, StepError},
        plan::MovingTable,
        servers::Server,
        verify::{
            compare::{Compared, Found, Kind, Side, compare},
            form::{Form, Majors},
        },
    },
    wire::replication::Lsn,
};
use deadpool_postgres::Client;
use std::{collections::BTreeMap, future::Future};

/// Who lets a source's changes reach a point of its WAL, and no further.
pub trait Halts: Sync {
    /// Changes go on when it is dropped.
    type Halted: Send;

    /// Resolves when every destination has every commit of the source before this point, and none after it.
    fn halt_before(
        &self,
        source: &str,
        lsn: Lsn,
    ) -> impl Future<Output = Result<Self::Halted, StepError>> + Send;
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub rows: u64,
    pub different: u64,
    /// The first of them, in words: table, key, and what.
    pub found: Vec<String>,
}

impl Verdict {
    /// Whether the destinations may take over.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.different == 0
    }
}

/// Rows of a table that went from one shard to another.
struct Unit<'a> {
    source: &'a Server,
    destination: &'a Server,
    table: &'a MovingTable,
    condition: String,
}

/// Compares everything that this round has not compared yet.
///
/// # Errors
/// [`StepError::Halt`] where the tables are not alike, or rows cannot be compared; [`StepError::Again`] otherwise.
pub async fn run<H: Halts>(job: &Job, halts: &H, round: i32) -> Result<Verdict, StepError> {
    let home = server(job, &job.home)?.sql().await.map_err(of(&job.home))?;
    let mut verdict = Verdict::default();
    for unit in units(job)? {
        let compared = match known(&home, job, &unit, round).await? {
            Some(compared) => compared,
            None => {
                let compared = one(job, halts, &unit).await?;
                record(&home, job, &unit, round, &compared).await?;
                compared
            }
        };
        let table = unit.table.plain();
        job.progress.set(
            format!("verify.{table}.{}.rows", unit.destination.name),
            compared.rows,
        );
        verdict.rows += compared.rows;
        verdict.different += compared.different;
        let told = compared.found.iter().map(|found| words(&unit, found));
        verdict.found.extend(told);
    }
    Ok(verdict)
}

/// What there is to compare, one table and pair of shards after the other.
fn units(job: &Job) -> Result<Vec<Unit<'_>>, StepError> {
    let mut conditions: BTreeMap<(String, String, String), Vec<KeySet>> = BTreeMap::new();
    for it in job.moves() {
        let pair = (it.group, it.from, it.to);
        conditions.entry(pair).or_default().push(it.keys);
    }
    let mut units = Vec::new();
    for ((group, from, to), sets) in &conditions {
        let tables = job.plan.tables.iter();
        for table in tables.filter(|table| table.group.as_ref() == Some(group)) {
            units.push(Unit {
                source: server(job, from)?,
                destination: server(job, to)?,
                table,
                condition: condition(job, table, sets)?,
            });
        }
    }
    let from = job.plan.moves.first().map(|it| &it.from);
    for (to, from) in job.plan.joins.iter().zip(from.into_iter().cycle()) {
        for table in &job.plan.reference {
            units.push(Unit {
                source: server(job, from)?,
                destination: server(job, to)?,
                table,
                condition: "true".to_owned(),
            });
        }
    }
    Ok(units)
}

fn condition(job: &Job, table: &MovingTable, sets: &[KeySet]) -> Result<String, StepError> {
    let key_type = job
        .key_type(table)
        .ok_or_else(|| halt(format!("the map has no group of table {}", table.plain())))?;
    let column = crate::reshard::plan::identifier(&table.key_column);
    let each = sets.iter().map(|keys| keys.sql(&column, key_type));
    let each: Result<Vec<String>, _> = each.collect();
    let each = each.map_err(|problem| halt(problem.to_string()))?;
    Ok(format!("({})", each.join(" OR ")))
}

/// Compares one table of a pair of shards at one moment of the source.
async fn one<H: Halts>(job: &Job, halts: &H, unit: &Unit<'_>) -> Result<Compared, StepError> {
    let Unit {
        source,
        destination,
        table,
        condition,
    } = unit;
    let here = source.sql().await.map_err(of(&source.name))?;
    let there = destination.sql().await.map_err(of(&destination.name))?;
    let form = Form::of(table, alike(unit, &here, &there).await?);
    let mut slots = source
        .stream()
        .await
        .map_err(|problem| again(&source.name, &problem))?;
    let slot = slots
        .create_slot(
            &format!("{}_verify", job.slot(&source.name)),
            Lifetime::Temporary,
            Snapshot::Exported,
        )
        .await
        .map_err(|problem| again(&source.name, &problem))?;
    let shown = slot.snapshot.unwrap_or_default();
    begin(&here, Some(&shown)).await.map_err(of(&source.name))?;
    let halted = halts.halt_before(&source.name, slot.consistent).await?;
    begin(&there, None).await.map_err(of(&destination.name))?;
    drop(halted);
    drop(slots);
    let side = |client| Side {
        client,
        condition: condition.as_str(),
    };
    let compared = compare(&form, side(&here), side(&there))
        .await
        .map_err(of(&destination.name))?;
    for client in [&here, &there] {
        client
            .batch_execute("COMMIT")
            .await
            .map_err(|problem| again("compare", &problem))?;
    }
    Ok(compared)
}

/// Begins a transaction with a snapshot: that which was exported, or one of its own, taken at once.
async fn begin(client: &Client, snapshot: Option<&str>) -> Result<(), AskError> {
    let shown = match snapshot {
        Some(snapshot) => format!(
            "SET TRANSACTION SNAPSHOT {}",
            crate::sql::statement::quoted(snapshot)
        ),
        None => "SELECT pg_current_snapshot()".to_owned(),
    };
    let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {shown}");
    Ok(client.batch_execute(&begin).await?)
}

const COLUMNS: &str = "\
SELECT string_agg(quote_ident(attname) || ' ' || format_type(atttypid, atttypmod) || CASE WHEN attnotnull THEN ' NOT NULL' ELSE '' END, \
       ', ' ORDER BY attname), current_setting('server_version_num')::int / 10000 \
FROM pg_attribute WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped";

/// Whether both sides have the same columns; whether hashes mean the same on both.
async fn alike(unit: &Unit<'_>, here: &Client, there: &Client) -> Result<Majors, StepError> {
    let table = unit.table.sql();
    let ask = async |client: &Client, server: &Server| -> Result<(String, i32), StepError> {
        let row = client
            .query_one(COLUMNS, &[&table])
            .await
            .map_err(|problem| again(&server.name, &problem))?;
        let columns: Option<String> = row.get(0);
        Ok((columns.unwrap_or_default(), row.get(1)))
    };
    let (here, major) = ask(here, unit.source).await?;
    let (there, other) = ask(there, unit.destination).await?;
    if here != there {
        return Err(StepError::Halt {
            what: format!(
                "table {} is not the same on {} ({here}) and {} ({there})",
                unit.table.plain(),
                unit.source.name,
                unit.destination.name
            ),
            remedy: "make the columns the same on both, then: shardway reshard resume".to_owned(),
        });
    }
    Ok(if major == other {
        Majors::Same
    } else {
        Majors::Different
    })
}

const KNOWN: &str = "\
SELECT rows, found::text FROM shardway.verify \
WHERE workflow = $1 AND source = $2 AND destination = $3 AND relation = $4 AND part = 0 AND round = $5";
const RECORD: &str = "\
INSERT INTO shardway.verify (workflow, source, destination, relation, part, rows, found, round) \
VALUES ($1, $2, $3, $4, 0, $5, $6::text::jsonb, $7) \
ON CONFLICT (workflow, source, destination, relation, part) DO UPDATE \
SET rows = excluded.rows, found = excluded.found, round = excluded.round, at = clock_timestamp()";

async fn known(
    home: &Client,
    job: &Job,
    unit: &Unit<'_>,
    round: i32,
) -> Result<Option<Compared>, StepError> {
    let (source, destination, table) = names(unit);
    let row = home
        .query_opt(KNOWN, &[&job.id, &source, &destination, &table, &round])
        .await
        .map_err(|problem| again(&job.home, &problem))?;
    Ok(row.and_then(|row| serde_json::from_str(row.get(1)).ok()))
}

async fn record(
    home: &Client,
    job: &Job,
    unit: &Unit<'_>,
    round: i32,
    compared: &Compared,
) -> Result<(), StepError> {
    let (source, destination, table) = names(unit);
    let found = serde_json::to_string(compared).unwrap_or_default();
    let rows = i64::try_from(compared.rows).unwrap_or(i64::MAX);
    home.execute(
        RECORD,
        &[
            &job.id,
            &source,
            &destination,
            &table,
            &rows,
            &found,
            &round,
        ],
    )
    .await
    .map_err(|problem| again(&job.home, &problem))?;
    Ok(())
}

fn names<'a>(unit: &'a Unit<'_>) -> (&'a str, &'a str, String) {
    (
        &unit.source.name,
        &unit.destination.name,
        unit.table.plain(),
    )
}

fn words(unit: &Unit<'_>, found: &Found) -> String {
    let (source, destination, table) = names(unit);
    let key = &found.key;
    match &found.what {
        Kind::Missing => format!("{table} {key}: on {source}, missing on {destination}"),
        Kind::Extra => format!("{table} {key}: on {destination}, not on {source}"),
        Kind::Different(columns) => {
            let named = columns.iter().filter_map(|at| unit.table.columns.get(*at));
            let named: Vec<&str> = named.map(|column| column.name.as_str()).collect();
            format!(
                "{table} {key}: {source} and {destination} differ in {}",
                named.join(", ")
            )
        }
    }
}

fn server<'a>(job: &'a Job, name: &str) -> Result<&'a Server, StepError> {
    job.servers
        .get(name)
        .ok_or_else(|| halt(format!("the configuration has no shard {name}")))
}

fn halt(what: String) -> StepError {
    StepError::Halt {
        what,
        remedy: "shardway reshard abort".to_owned(),
    }
}

fn again(what: &str, problem: &dyn std::fmt::Display) -> StepError {
    StepError::Again {
        what: what.to_owned(),
        problem: problem.to_string(),
    }
}

fn of(shard: &str) -> impl Fn(AskError) -> StepError + '_ {
    move |problem| again(shard, &problem)
}
