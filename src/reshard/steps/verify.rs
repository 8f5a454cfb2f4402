//! verify: every row that moved is the same on its source and on its destination, and no other is there.
//!
//! A temporary slot on the source says at which point of its WAL a snapshot is of; the stream of changes stops before the
//! first commit past it, the destinations take their snapshots, and the stream goes on. What was compared is recorded, table
//! by table, so that a run that was interrupted goes on with the next; every table is compared in snapshots of its own, so
//! that none is held for longer than one table takes.

use super::{
    asking::About as _,
    catch_up::{Follower, Paused},
};
use crate::{
    inspect::AskError,
    replication::connection::{Lifetime, Snapshot},
    reshard::{
        flows::Flow,
        job::{Job, StepError},
        servers::Server,
        verify::{
            compare::{Compared, Found, Kind, Side, compare},
            form::{Form, Majors},
        },
    },
    sql::statement::quoted,
    wire::replication::Lsn,
};
use deadpool_postgres::Client;
use std::future::Future;

/// Who lets a source's changes reach a point of its WAL, and no further.
pub trait Halts: Sync {
    /// Changes go on when it is dropped.
    type Halted: Send;

    /// Stops where the changes of a source stand: nothing made behind this is passed.
    ///
    /// # Errors
    /// [`StepError`]: it is not followed.
    fn halt(&self, source: &str) -> impl Future<Output = Result<Self::Halted, StepError>> + Send;

    /// Goes on until every destination has every commit of the source before this point, and none after it.
    ///
    /// # Errors
    /// [`StepError`].
    fn go_to(
        &self,
        source: &str,
        halted: Self::Halted,
        lsn: Lsn,
    ) -> impl Future<Output = Result<Self::Halted, StepError>> + Send;
}

impl Halts for &[Follower] {
    type Halted = Paused;

    async fn halt(&self, source: &str) -> Result<Paused, StepError> {
        following(self, source)?.pause().await
    }

    async fn go_to(&self, source: &str, halted: Paused, lsn: Lsn) -> Result<Paused, StepError> {
        following(self, source)?.advance(halted, lsn).await
    }
}

fn following<'a>(followers: &'a [Follower], source: &str) -> Result<&'a Follower, StepError> {
    let follower = followers.iter().find(|it| it.source() == source);
    follower.ok_or_else(|| {
        again(
            &format!("comparing what went from {source}"),
            &"it is not followed",
        )
    })
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
    flow: Flow<'a>,
    source: &'a Server,
    destination: &'a Server,
    condition: String,
}

/// Compares everything that this round has not compared yet.
///
/// # Errors
/// [`StepError::Halt`] where the tables are not alike, or rows cannot be compared; [`StepError::Again`] otherwise.
pub async fn run<H: Halts>(job: &Job, halts: &H, round: i32) -> Result<Verdict, StepError> {
    let home = server(job, &job.home)?;
    let home = home.sql().await.about(&format!("asking {}", home.name))?;
    let mut verdict = Verdict::default();
    for flow in job.flows() {
        let unit = Unit {
            source: server(job, &flow.source)?,
            destination: server(job, &flow.destination)?,
            condition: flow.sql(job)?,
            flow,
        };
        let compared = match known(&home, job, &unit, round).await? {
            Some(compared) => compared,
            None => {
                job.unthrottled().await;
                let compared = one(job, halts, &unit).await?;
                record(&home, job, &unit, round, &compared).await?;
                compared
            }
        };
        let (_, destination, table) = names(&unit);
        let figure = format!("verify.{table}.{destination}");
        job.progress.set(format!("{figure}.rows"), compared.rows);
        job.progress
            .set(format!("{figure}.different"), compared.different);
        verdict.rows += compared.rows;
        verdict.different += compared.different;
        let told = compared.found.iter().map(|found| words(&unit, found));
        verdict.found.extend(told);
    }
    Ok(verdict)
}

/// Compares one table of a pair of shards at one moment of the source.
async fn one<H: Halts>(job: &Job, halts: &H, unit: &Unit<'_>) -> Result<Compared, StepError> {
    let (source, destination, table) = names(unit);
    let what = format!("comparing {table} on {source} and {destination}");
    let here = unit.source.sql().await.about(&what)?;
    let there = unit.destination.sql().await.about(&what)?;
    let form = Form::of(unit.flow.table, alike(unit, &here, &there).await?);
    let mut slots = unit.source.stream().await.about(&what)?;
    // Before the slot, whose point changes would else have passed.
    let halted = halts.halt(source).await?;
    let name = format!("{}_v{}", job.slot(source), job.token);
    let slot = slots
        .create_slot(&name, Lifetime::Temporary, Snapshot::Exported)
        .await
        .about(&what)?;
    let shown = slot.snapshot.unwrap_or_default();
    begin(&here, Some(&shown)).await.about(&what)?;
    let halted = halts.go_to(source, halted, slot.consistent).await?;
    begin(&there, None).await.about(&what)?;
    drop(halted);
    // By name, as the server may take its time to notice that a connection is gone, and the next table wants the same name.
    slots.drop_slot(&name).await.about(&what)?;
    drop(slots);
    let side = |client| Side {
        client,
        condition: unit.condition.as_str(),
    };
    let compared = compare(&form, side(&here), side(&there))
        .await
        .about(&what)?;
    for client in [&here, &there] {
        client.batch_execute("COMMIT").await.about(&what)?;
    }
    Ok(compared)
}

/// Begins a transaction with a snapshot: that which was exported, or one of its own, taken at once.
async fn begin(client: &Client, snapshot: Option<&str>) -> Result<(), AskError> {
    let shown = match snapshot {
        Some(snapshot) => format!("SET TRANSACTION SNAPSHOT {}", quoted(snapshot)),
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
    let table = unit.flow.table.sql();
    let what = format!("looking at {table}");
    let ask = async |client: &Client| -> Result<(Option<String>, i32), StepError> {
        let row = client.query_one(COLUMNS, &[&table]).await.about(&what)?;
        Ok((row.get(0), row.get(1)))
    };
    let (here, major) = ask(here).await?;
    let (there, other) = ask(there).await?;
    if here != there {
        let (source, destination, table) = names(unit);
        let (here, there) = (here.unwrap_or_default(), there.unwrap_or_default());
        return Err(StepError::Halt {
            what: format!("table {table} is ({here}) on {source} and ({there}) on {destination}"),
            remedy: "make the columns the same on both, then resume".to_owned(),
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
        .about("keeping what was compared")?;
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
        unit.flow.table.plain(),
    )
}

fn words(unit: &Unit<'_>, found: &Found) -> String {
    let (source, destination, table) = names(unit);
    let key = &found.key;
    match &found.what {
        Kind::Missing => format!("{table} {key}: on {source}, missing on {destination}"),
        Kind::Extra => format!("{table} {key}: on {destination}, not on {source}"),
        Kind::Different(columns) => {
            let named = columns
                .iter()
                .filter_map(|at| unit.flow.table.columns.get(*at));
            let named: Vec<&str> = named.map(|column| column.name.as_str()).collect();
            format!(
                "{table} {key}: {source} and {destination} differ in {}",
                named.join(", ")
            )
        }
    }
}

fn server<'a>(job: &'a Job, name: &str) -> Result<&'a Server, StepError> {
    job.servers.get(name).ok_or_else(|| StepError::Halt {
        what: format!("the configuration has no shard {name}"),
        remedy: "give it back its shard, then resume; or abort".to_owned(),
    })
}

fn again(what: &str, problem: &dyn std::fmt::Display) -> StepError {
    StepError::Again {
        what: what.to_owned(),
        problem: problem.to_string(),
    }
}
