//! One chunk to one destination.
//!
//! What must stay true: the chunk's record is claimed before its rows are copied, so that two who copy the same chunk wait
//! for each other; sessions that something went wrong on are not used again.

use super::{
    super::{
        asking::{About as _, named},
        records::REPLICA,
    },
    Part, failed,
    others::called,
    settled::literal,
};
use crate::{
    clock::Duration,
    failpoint,
    replication::{
        chunks::all_of,
        copy::{Budget, Copied, Session, copy as pass},
        durable::FLUSH,
    },
    reshard::{
        flows::Flow,
        job::{Job, StepError},
        plan::{MovingTable, identifier},
    },
    sql::statement::quoted,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

/// Whoever changes a table on both sides may have it on one and wait for it on the other.
const PATIENCE: &str = "lock_timeout = '10s'";
/// How long others have for making durable what was read.
const PAUSE: Duration = Duration::from_millis(5);

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
    let server = named(job, name)?;
    let what = format!("connecting to shard {name}");
    let shown = called(job);
    let mut session = server.copying(&shown).await.about(&what)?;
    if end == End::Source {
        let patience = format!("SET {PATIENCE}");
        session.ask(&patience).await.about(&what)?;
    }
    if end == End::Destination {
        // Where it is allowed: else there is nothing on the tables that would act, which was looked at before, nor is a
        // guard of these rows on before they are copied.
        match session.ask(REPLICA).await {
            Err(error) if error.sqlstate() == Some("42501") => {}
            end => drop(end.about(&what)?),
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
    let condition = flow.sql(job)?;
    let mut source = idle.take(job, &flow.source, End::Source).await?;
    let mut destination = idle.take(job, &flow.destination, End::Destination).await?;
    let record = Record::of(job, &part);
    let claim = record.claim();
    let (claimed, begun) = tokio::join!(destination.ask(&claim), begin(&mut source, flow.table));
    let (claimed, (snapshot, written, columns)) = (claimed.about(&what)?, begun.about(&what)?);
    if columns != planned(flow.table) {
        return Err(StepError::Halt {
            what: format!("{what}: the table has other columns than were planned: {columns}"),
            remedy: "abort the reshard and start it again, with the table as it is to be"
                .to_owned(),
        });
    }
    if claimed.is_empty() {
        // Whoever copied it has committed only now; both transactions are undone with their sessions.
        return Ok((flow, Copied::default()));
    }
    let (out, into) = statements(&part, &condition);
    let copied = pass(&mut source, &out, &mut destination, &into, budget).await;
    let copied = copied.map_err(|error| failed(&what, error))?;
    let ended = end(&mut source, &written).await;
    ended.about(&what)?;
    failpoint::reached("after_chunk_copy").await;
    let committed = destination.ask(&record.commit(&snapshot, copied)).await;
    match committed {
        // No token: another's is higher.
        Err(error) if error.sqlstate() == Some("23502") => return Err(StepError::Replaced),
        end => drop(end.about(&what)?),
    }
    failpoint::reached("after_chunk_commit").await;
    idle.give(&flow.source, End::Source, source);
    idle.give(&flow.destination, End::Destination, destination);
    Ok((flow, copied))
}

type Said<T> = Result<T, crate::replication::connection::ReplicationError>;

/// Takes a snapshot: its text, where the WAL of what it sees ends, and the columns that the table has in it. Rows that are
/// not in it may have others, of which the stream tells.
async fn begin(source: &mut Session, table: &MovingTable) -> Said<(String, String, String)> {
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; \
         SELECT pg_current_snapshot()::text, pg_current_wal_insert_lsn()::text, \
         coalesce((SELECT string_agg(attname::text, ', ' ORDER BY attname::text COLLATE \"C\") FROM pg_attribute \
         WHERE attrelid = to_regclass({}) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''), '')",
        quoted(&table.sql())
    );
    let rows = source.ask(&begin).await?;
    let mut cells = rows.into_iter().flatten().flatten();
    match (cells.next(), cells.next(), cells.next()) {
        (Some(snapshot), Some(written), Some(columns)) => Ok((snapshot, written, columns)),
        _ => Err(crate::replication::connection::ReplicationError::Protocol),
    }
}

/// The names of a table's columns as [`begin`] tells them.
fn planned(table: &MovingTable) -> String {
    let mut names: Vec<&str> = table.columns.iter().map(|it| it.name.as_str()).collect();
    names.sort_unstable();
    names.join(", ")
}

/// Ends the snapshot, and waits until a crash of the source could not take back what it has seen.
async fn end(source: &mut Session, written: &str) -> Said<()> {
    let flushed = format!(
        "SELECT pg_current_wal_flush_lsn() >= {}::pg_lsn",
        quoted(written)
    );
    let rows = source.ask(&format!("COMMIT; {flushed}")).await?;
    if rows.into_iter().flatten().flatten().any(|cell| cell == "t") {
        return Ok(());
    }
    tokio::time::sleep(PAUSE).await;
    // Where nobody writes, nobody makes it durable for long, and what was seen may end where a page begins that is not
    // there yet.
    source.ask(FLUSH).await.map(drop)
}

/// How the rows leave and how they arrive.
fn statements(part: &Part<'_>, condition: &str) -> (String, String) {
    let table = part.flow.table;
    let columns = table.columns.iter();
    let names: Vec<String> = columns.map(|column| identifier(&column.name)).collect();
    let (name, names) = (table.sql(), names.join(", "));
    let chunk = part.chunk.sql(&part.source.key);
    let these = all_of(&[&chunk, condition]);
    let format = if table.columns.iter().all(|column| column.binary) {
        "binary"
    } else {
        "text"
    };
    let out =
        format!("COPY (SELECT {names} FROM {name} WHERE {these}) TO STDOUT (FORMAT {format})");
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
             token) VALUES ({}, {low}, {high}, '', 0, 0, {token}) ON CONFLICT DO NOTHING RETURNING chunk; \
             SET LOCAL {PATIENCE}",
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
