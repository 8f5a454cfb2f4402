//! One chunk to one destination.
//!
//! What must stay true: the chunk's record is claimed before the snapshot is taken, so that two who copy the same chunk
//! wait for each other; sessions that something went wrong on are not used again.

use super::{
    Part, faults,
    settled::{connect, literal, server},
};
use crate::{
    clock::Duration,
    replication::copy::{Budget, Copied, Session, copy as pass},
    reshard::{
        flows::Flow,
        job::{Job, StepError},
        plan::identifier,
    },
    sql::statement::quoted,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// How often a server is asked again that tells nobody.
const PAUSE: Duration = Duration::from_millis(5);

const STANDBY: &str = "SELECT pg_is_in_recovery()";
/// Makes this runner the one that may copy to a shard.
const CLAIM: &str = "\
INSERT INTO shardway.runner AS r (workflow, token) VALUES ($1, $2) \
ON CONFLICT (workflow) DO UPDATE SET token = excluded.token WHERE r.token <= excluded.token";
/// Ends what earlier runs have left: they are done for, and who is to copy a chunk again would wait for them.
const CLEAR: &str = "\
SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() \
      AND substring(application_name FROM '^shardway copy ' || $1 || ' ([0-9]{1,18})$')::int8 <= $2";

/// Keeps off whoever copied before.
pub(super) async fn clear(job: &Job, flows: &[Flow<'_>]) -> Result<(), StepError> {
    let mut names: Vec<&String> = Vec::new();
    for flow in flows {
        names.extend([&flow.source, &flow.destination]);
    }
    names.sort_unstable();
    names.dedup();
    for name in names {
        let client = connect(job, name).await?;
        let about = |error| faults::sql(format!("ending earlier copies on {name}"), error);
        let standby = client.query_one(STANDBY, &[]).await;
        if standby.map_err(about)?.get(0) {
            return Err(on_standby(name));
        }
        let claimed = client.execute(CLAIM, &[&job.id, &job.token]).await;
        if claimed.map_err(about)? != 1 {
            return Err(StepError::Replaced);
        }
        let ended = client.execute(CLEAR, &[&job.id, &job.token]).await;
        ended.map_err(about)?;
    }
    Ok(())
}

/// The snapshot of a standby does not tell which transactions run: a change would be lost.
fn on_standby(shard: &str) -> StepError {
    StepError::Halt {
        what: format!(
            "the address of shard {shard} leads to a standby, and rows are copied between primaries only"
        ),
        remedy: format!("let shard {shard} have the address of its primary"),
    }
}

/// Sessions that wait for their next chunk.
#[derive(Default)]
pub(super) struct Idle(Mutex<BTreeMap<(String, End), Vec<Session>>>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Source,
    Destination,
}

impl Idle {
    async fn take(&self, job: &Job, name: &str, end: End) -> Result<Session, StepError> {
        let found = self.of(name, end, Vec::pop);
        match found {
            Some(session) => Ok(session),
            None => open(job, name, end).await,
        }
    }

    fn give(&self, name: &str, end: End, session: Session) {
        self.of(name, end, |sessions| sessions.push(session));
    }

    fn of<T>(&self, name: &str, end: End, act: impl FnOnce(&mut Vec<Session>) -> T) -> T {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        act(idle.entry((name.to_owned(), end)).or_default())
    }
}

async fn open(job: &Job, name: &str, end: End) -> Result<Session, StepError> {
    let server = server(job, name)?;
    let about = |error| faults::session(format!("connecting to shard {name}"), &error);
    let shown = format!("shardway copy {} {}", job.id, job.token);
    let (address, limit) = (&server.address, server.limit);
    let opened = Session::open(address, &server.credentials, &shown, limit, &server.tls).await;
    let mut session = opened.map_err(about)?;
    if end == End::Destination {
        // Where it is allowed: else there is nothing on the tables that would fire, which was looked at before.
        match session.ask("SET session_replication_role = replica").await {
            Err(error) if error.sqlstate() != Some("42501") => return Err(about(error)),
            _ => {}
        }
    }
    Ok(session)
}

/// Copies a chunk to its destination, unless that has been done meanwhile.
pub(super) async fn copy<'a>(
    job: &'a Job,
    part: Part<'a>,
    idle: &Idle,
    budget: &Budget,
) -> Result<(&'a Flow<'a>, Copied), StepError> {
    let flow = part.flow;
    let what = format!(
        "copying chunk {} of {} from shard {} to {}",
        part.chunk.number,
        flow.table.plain(),
        flow.source,
        flow.destination
    );
    let failed = |error| faults::session(what.clone(), &error);
    let condition = flow.sql(job)?;
    let mut source = idle.take(job, &flow.source, End::Source).await?;
    let mut destination = idle.take(job, &flow.destination, End::Destination).await?;
    let record = Record::of(job, &part);
    let claimed = destination.ask(&record.claim()).await.map_err(failed)?;
    if claimed.is_empty() {
        // Whoever copied it has committed only now.
        let ended = destination.ask("ROLLBACK").await;
        ended.map_err(failed)?;
        return Ok((flow, Copied::default()));
    }
    let (snapshot, written) = begin(&mut source).await.map_err(failed)?;
    let (out, into) = statements(&part, &condition);
    let copied = pass(&mut source, &out, &mut destination, &into, budget).await;
    let copied = copied.map_err(|error| faults::copy(what.clone(), &error))?;
    while !is_flushed(&mut source, &written).await.map_err(failed)? {
        tokio::time::sleep(PAUSE).await;
    }
    source.ask("COMMIT").await.map_err(failed)?;
    let committed = destination.ask(&record.commit(&snapshot, copied)).await;
    committed.map_err(|error| match error.sqlstate() {
        // No token: another's is higher.
        Some("23502") => StepError::Replaced,
        _ => failed(error),
    })?;
    idle.give(&flow.source, End::Source, source);
    idle.give(&flow.destination, End::Destination, destination);
    Ok((flow, copied))
}

type Said<T> = Result<T, crate::replication::connection::ReplicationError>;

/// Takes a snapshot: its text, and where the WAL of what it sees ends.
async fn begin(source: &mut Session) -> Said<(String, String)> {
    const BEGIN: &str = "\
BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text";
    let rows = source.ask(BEGIN).await?;
    let mut cells = rows.into_iter().flatten().flatten();
    match (cells.next(), cells.next()) {
        (Some(snapshot), Some(written)) => Ok((snapshot, written)),
        _ => Err(crate::replication::connection::ReplicationError::Protocol),
    }
}

/// Whether a crash of the source could not take back what the snapshot has seen.
async fn is_flushed(source: &mut Session, written: &str) -> Said<bool> {
    let sql = format!(
        "SELECT pg_current_wal_flush_lsn() >= {}::pg_lsn",
        quoted(written)
    );
    let rows = source.ask(&sql).await?;
    Ok(rows.into_iter().flatten().flatten().any(|cell| cell == "t"))
}

/// How the rows leave and how they arrive.
fn statements(part: &Part<'_>, condition: &str) -> (String, String) {
    let table = part.flow.table;
    let columns = table.columns.iter();
    let names: Vec<String> = columns.map(|column| identifier(&column.name)).collect();
    let (name, names) = (table.sql(), names.join(", "));
    let chunk = part.chunk.sql(&part.source.key);
    let format = if table.columns.iter().all(|column| column.binary) {
        "binary"
    } else {
        "text"
    };
    let out = format!(
        "COPY (SELECT {names} FROM {name} WHERE {chunk} AND {condition}) TO STDOUT (FORMAT {format})"
    );
    let into = format!("COPY {name} ({names}) FROM STDIN (FORMAT {format})");
    (out, into)
}

/// The record of a chunk on its destination, as SQL.
struct Record {
    workflow: String,
    /// Workflow, source, relation and number.
    place: [String; 4],
    low: String,
    high: String,
    token: i64,
}

impl Record {
    fn of(job: &Job, part: &Part<'_>) -> Self {
        let bound = |key| literal(key).map_or_else(|| "NULL".to_owned(), |text| quoted(&text));
        let workflow = quoted(&job.id);
        Self {
            place: [
                workflow.clone(),
                quoted(&part.flow.source),
                quoted(&part.flow.table.plain()),
                part.chunk.number.to_string(),
            ],
            workflow,
            low: bound(part.chunk.low.as_ref()),
            high: bound(part.chunk.high.as_ref()),
            token: job.token,
        }
    }

    /// Begins, and answers with a row unless the chunk is done. Waits for whoever copies it.
    fn claim(&self) -> String {
        let Self {
            place,
            low,
            high,
            token,
            ..
        } = self;
        format!(
            "BEGIN; INSERT INTO shardway.chunk_done (workflow, source, relation, chunk, low, high, snapshot, rows, bytes, \
             token) VALUES ({}, {low}, {high}, '', 0, 0, {token}) ON CONFLICT DO NOTHING RETURNING chunk",
            place.join(", ")
        )
    }

    /// Completes it and commits, if this runner still is the one: in one message, so that no other becomes the one while
    /// this process is asleep in between.
    fn commit(&self, snapshot: &str, copied: Copied) -> String {
        let Self {
            place: [_, source, relation, chunk],
            workflow,
            token,
            ..
        } = self;
        let Copied { rows, bytes } = copied;
        format!(
            "WITH mine AS (SELECT token FROM shardway.runner WHERE workflow = {workflow} AND token <= {token} FOR SHARE) \
             UPDATE shardway.chunk_done SET snapshot = {}, rows = {rows}, bytes = {bytes}, token = (SELECT token FROM mine) \
             WHERE workflow = {workflow} AND source = {source} AND relation = {relation} AND chunk = {chunk}; COMMIT",
            quoted(snapshot)
        )
    }
}
