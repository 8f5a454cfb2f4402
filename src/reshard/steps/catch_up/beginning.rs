//! What following a source begins with: tables as they are there, destinations with how far they are, the slot's stream.
//!
//! What must stay true: it begins at the least of what destinations have, and the source still has all from there on; a
//! table that is not as it was planned is not followed; a destination's progress is this runner's from here on; reference
//! tables are not brought to a shard that serves: whoever writes them writes there too, and would come first; nothing is
//! brought to who owns what it would be brought.

use super::super::{
    activate::{CLOSED, latest, unless_owners},
    asking::{About as _, remedy},
    copy::applying,
    records::as_replica,
};
use crate::{
    inspect::AskError,
    replication::{
        apply::{Destination, Reached, Shapes, Whose},
        connection::{Format, ReplicationError},
        judge::{Chunks, JudgeError},
        rows::Form,
        slot::{self, SlotError, State, WalStatus},
        stream::Setup,
        streaming::Streaming,
        tables::{Column, Goes, Routes, Table},
    },
    reshard::{
        flows::Flow,
        job::{Direction, Job, StepError},
        plan::{MovingColumn, MovingTable},
        servers::Server,
    },
    sql::statement::quoted,
    wire::replication::Lsn,
};
use deadpool_postgres::Client;
use std::{collections::BTreeMap, sync::Arc};
use tokio_postgres::types::{PgLsn, ToSql};

/// Statements over many rows find each by its key, whatever statistics say; values stay as they were streamed, and those of a
/// batch stay in memory.
const APPLY: &str = "\
SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
SET enable_material = off; SET jit = off; SET client_encoding = SQL_ASCII; SET work_mem = '64MB'";
const READ: &str = "\
SET enable_seqscan = off; SET enable_bitmapscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off; \
SET jit = off; SET client_encoding = SQL_ASCII; SET synchronous_commit = local; SET lock_timeout = '2s'";
const HERE: &str = "SELECT pg_is_in_recovery(), current_setting('server_encoding'), \
CASE WHEN NOT pg_is_in_recovery() THEN pg_current_wal_insert_lsn() END, \
pg_snapshot_xmax(pg_current_snapshot())::text::int8";
const COLUMNS: &str = "\
SELECT a.attname, format_type(a.atttypid, a.atttypmod), a.atttypid, a.atttypmod, a.attidentity <> '', \
       CASE WHEN a.attcollation <> 0 THEN (SELECT format('%I.%I', n.nspname, l.collname) \
            FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace WHERE l.oid = a.attcollation) END \
FROM pg_attribute a \
WHERE a.attrelid = to_regclass($1::text) AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
ORDER BY a.attnum";
/// Names of columns that are not computed.
const NAMES: &str = "\
SELECT attname::text FROM pg_attribute WHERE attrelid = to_regclass($1::text) AND attnum > 0 AND NOT attisdropped \
AND attgenerated = ''";
/// Where a destination is; from the slot's beginning when nothing was applied there yet. A runner that was replaced begins
/// nothing.
const BEGIN: &str = "\
WITH mine AS (SELECT FROM shardway.runner WHERE workflow = $1 AND token <= $4 FOR SHARE) \
INSERT INTO shardway.apply_progress AS p (workflow, source, lsn, token) SELECT $1, $2::text, $3::pg_lsn, $4::int8 FROM mine \
ON CONFLICT (workflow, source) DO UPDATE SET token = excluded.token WHERE p.token <= excluded.token \
RETURNING lsn, fence";
/// The same, where it was said before from where on.
const GO_ON: &str = "\
UPDATE shardway.apply_progress SET token = $3 WHERE workflow = $1 AND source = $2 AND token <= $3 RETURNING lsn, fence";
const KNOWN: &str =
    "SELECT count(*) FROM shardway.apply_progress WHERE workflow = $1 AND source = $2";

/// Everything that a stream needs.
pub(super) async fn begin(job: &Job, name: &str) -> Result<Setup, StepError> {
    unless_owners(job).await?;
    let flows: Vec<Flow<'_>> = job.flows();
    let flows: Vec<&Flow<'_>> = flows.iter().filter(|flow| flow.source == name).collect();
    let source = server(job, name)?;
    let asking = sql(source).await?;
    let state = state(job, name, &asking).await?;
    let given = given(job, &flows).await?;
    let mut names: Vec<&str> = given.iter().map(|flow| flow.destination.as_str()).collect();
    names.sort_unstable();
    names.dedup();
    let Primary {
        encoding,
        end: consistency,
        newest,
    } = primary(&asking, name).await?;
    let of = (flows.as_slice(), given.as_slice());
    let first = tables(job, &asking, of, &names).await?;
    // All columns were there before and after it: who lacks one later than that has lost it.
    let Primary { end: columns, .. } = primary(&asking, name).await?;
    let tables: Arc<[Table]> = tables(job, &asking, of, &names).await?.into();
    drop(first);
    let binary = flows.iter().all(|flow| is_binary(flow.table));
    let whose = Whose {
        workflow: job.id.clone(),
        source: name.to_owned(),
        followed: job.followed(name),
        token: job.token,
        form: if binary { Form::Binary } else { Form::Text },
        tables,
    };
    let mut destinations = Vec::new();
    for (place, to) in names.iter().enumerate() {
        let reading = sql(source).await?;
        said(name, reading.batch_execute(READ).await)?;
        let found = destination(job, &whose, (place, to), state.confirmed, &encoding).await?;
        destinations.push(Destination {
            name: (*to).to_owned(),
            client: found.0,
            source: reading,
            progress: found.1,
            chunks: found.2,
            shapes: found.3,
        });
    }
    let reached = destinations.iter().map(|it| it.progress.lsn);
    let from = reached.min().unwrap_or_default();
    let format = if binary { Format::Binary } else { Format::Text };
    let slot = job.slot(name);
    let from_server = source.clone();
    let started = async move {
        let connection = from_server.stream().await?;
        connection.start(&slot, from, &slot, format).await
    };
    let streaming = Streaming::open(started).await;
    Ok(Setup {
        whose,
        streaming: streaming.map_err(|error| lost(name, &error))?,
        heart: asking,
        destinations,
        consistency,
        columns,
        newest,
        batch: job.knobs.borrow().batch,
    })
}

/// Those that still go anywhere: a shard that has joined once serves reference tables from then on.
async fn given<'a, 'f>(job: &Job, flows: &[&'f Flow<'a>]) -> Result<Vec<&'f Flow<'a>>, StepError> {
    let mut serves: BTreeMap<&str, bool> = BTreeMap::new();
    for flow in flows.iter().filter(|flow| flow.keys.is_none()) {
        let name = flow.destination.as_str();
        if !serves.contains_key(name) {
            let client = sql(server(job, name)?).await?;
            serves.insert(name, latest(&client, job).await?.is_some());
        }
    }
    let mut given = flows.to_vec();
    given
        .retain(|flow| flow.keys.is_some() || serves.get(flow.destination.as_str()) != Some(&true));
    Ok(given)
}

/// What the server says of the slot, which must have all that is needed.
async fn state(job: &Job, name: &str, source: &Client) -> Result<Confirmed, StepError> {
    let slot = job.slot(name);
    let found = slot::state(source, &slot)
        .await
        .map_err(|error| match error {
            SlotError::Sql(error) => of(name, &error),
            error @ (SlotError::Replication(_)
            | SlotError::Waiting(_)
            | SlotError::NotUnderstood) => again(name, error.to_string()),
        })?;
    let gone = |what: &str| StepError::Lost {
        what: format!("slot {slot} of shard {name} {what}"),
    };
    match found {
        None => Err(gone("is not there")),
        Some(State {
            wal: WalStatus::Lost,
            ..
        }) => Err(gone("has lost its WAL")),
        Some(State {
            confirmed: None, ..
        }) => Err(again(name, format!("slot {slot} is being made"))),
        Some(State {
            confirmed: Some(confirmed),
            ..
        }) => Ok(Confirmed { confirmed }),
    }
}

struct Confirmed {
    confirmed: Lsn,
}

/// A server that takes writes.
struct Primary {
    encoding: String,
    /// Of its WAL.
    end: Lsn,
    /// The id of its next transaction.
    newest: u64,
}

async fn primary(client: &Client, name: &str) -> Result<Primary, StepError> {
    let row = said(name, client.query_one(HERE, &[]).await)?;
    let (standby, encoding): (bool, String) = (row.get(0), row.get(1));
    if standby {
        return Err(StepError::Halt {
            what: format!("the address of shard {name} leads to a standby"),
            remedy: format!("let shard {name} have the address of its primary"),
        });
    }
    let end: Option<PgLsn> = row.get(2);
    Ok(Primary {
        encoding,
        end: Lsn(end.map_or(0, u64::from)),
        newest: row.get::<_, i64>(3).unsigned_abs(),
    })
}

/// Whether all its values can be passed on in their binary form. Elements of an array of arrays would lose their places.
fn is_binary(table: &MovingTable) -> bool {
    let mut columns = table.columns.iter();
    columns.all(|it| it.binary && !it.type_name.ends_with("[]"))
}

/// The tables of which rows go anywhere from here.
async fn tables(
    job: &Job,
    source: &Client,
    (flows, given): (&[&Flow<'_>], &[&Flow<'_>]),
    names: &[&str],
) -> Result<Vec<Table>, StepError> {
    let mut tables: Vec<Table> = Vec::new();
    for flow in flows {
        let same =
            |table: &Table| table.name == flow.table.name && table.schema == flow.table.schema;
        if !tables.iter().any(same) {
            tables.push(table(job, source, flow, given, names).await?);
        }
    }
    Ok(tables)
}

async fn table(
    job: &Job,
    source: &Client,
    flow: &Flow<'_>,
    given: &[&Flow<'_>],
    names: &[&str],
) -> Result<Table, StepError> {
    let (planned, name) = (flow.table, flow.source.as_str());
    let columns = columns(job, source, name, planned).await?;
    let place = |column: &String| {
        let found = columns.iter().position(|it| it.name == *column);
        found.ok_or_else(|| changed(planned, name, &format!("no column {column}")))
    };
    let key: Result<Vec<usize>, StepError> = planned.primary_key.iter().map(place).collect();
    let key = key?;
    if key.is_empty() {
        return Err(changed(planned, name, "no primary key"));
    }
    let same = given.iter().filter(|it| it.table == planned);
    let to = |flow: &&&Flow<'_>| names.iter().position(|name| *name == flow.destination);
    let goes = if flow.keys.is_none() {
        Goes::Everywhere(same.filter_map(|flow| to(&flow)).collect())
    } else {
        let group = planned.group.as_ref();
        let key_type = group.and_then(|group| job.plan.before.key_type(group));
        let key_type = key_type.ok_or_else(|| changed(planned, name, "a group without owners"))?;
        let sets = same.filter_map(|flow| Some((flow.keys.as_ref()?, to(&flow)?)));
        let sets = sets.flat_map(|(keys, to)| keys.iter().map(move |keys| (keys.clone(), to)));
        Goes::ByKey(Routes::new(
            place(&planned.key_column)?,
            key_type,
            sets.collect(),
        ))
    };
    Ok(Table {
        schema: planned.schema.clone(),
        name: planned.name.clone(),
        columns,
        key,
        goes,
    })
}

async fn columns(
    job: &Job,
    source: &Client,
    name: &str,
    planned: &MovingTable,
) -> Result<Vec<Column>, StepError> {
    let rows = said(name, source.query(COLUMNS, &[&planned.sql()]).await)?;
    let column = |row: &tokio_postgres::Row| Column {
        name: row.get(0),
        type_name: row.get(1),
        oid: row.get(2),
        type_modifier: row.get(3),
        identity: row.get(4),
        collation: row.get(5),
    };
    let columns: Vec<Column> = rows.iter().map(column).collect();
    let mut wanted: Vec<_> = planned.columns.iter().map(named).collect();
    let count = wanted.len().min(columns.len());
    let each = columns.iter().map(|it| (&it.name, &it.type_name));
    let mut had: Vec<_> = each.take(count).collect();
    // A plan is of the table that it leaves; the one to which it came may have them in an order of its own.
    if job.direction == Direction::Back {
        wanted.sort_unstable();
        had.sort_unstable();
    }
    if wanted == had && columns.len() == count {
        return Ok(columns);
    }
    let found = columns.iter();
    let found: Vec<String> = found
        .map(|it| format!("{} {}", it.name, it.type_name))
        .collect();
    if wanted == had {
        return Err(grown(planned, name, &found.join(", ")));
    }
    Err(changed(planned, name, &found.join(", ")))
}

/// Sees that a stream of a table would find it as it was planned; columns that were added are planned later.
///
/// # Errors
/// [`StepError::Halt`]: it would not.
pub(in super::super) async fn unless_changed(
    job: &Job,
    client: &Client,
    server: &Server,
    table: &MovingTable,
) -> Result<(), StepError> {
    match columns(job, client, &server.name, table).await {
        Err(StepError::Grown { .. }) => Ok(()),
        found => found.map(drop),
    }
}

fn named(column: &MovingColumn) -> (&String, &String) {
    (&column.name, &column.type_name)
}

fn grown(planned: &MovingTable, shard: &str, found: &str) -> StepError {
    StepError::Grown {
        what: format!(
            "{} on shard {shard} has columns that were not planned: {found}",
            planned.plain()
        ),
    }
}

fn changed(planned: &MovingTable, source: &str, found: &str) -> StepError {
    StepError::Halt {
        what: format!(
            "{} on shard {source} is not as it was planned: it has {found}",
            planned.plain()
        ),
        remedy: "abort the reshard and start it again, with the table as it is to be".to_owned(),
    }
}

async fn destination(
    job: &Job,
    whose: &Whose,
    (place, to): (usize, &str),
    confirmed: Lsn,
    encoding: &str,
) -> Result<(Client, Reached, Chunks, Shapes), StepError> {
    let client = sql(server(job, to)?).await?;
    // Whoever takes the run over, or deletes what was brought, ends it by its name.
    let name = format!("SET application_name = {}", quoted(&applying(job)));
    said(to, client.batch_execute(&name).await)?;
    let found = primary(&client, to).await?.encoding;
    if found != encoding || !["UTF8", "SQL_ASCII"].contains(&encoding) {
        return Err(StepError::Halt {
            what: format!(
                "the database has encoding {encoding} on {}, {found} on {to}",
                whose.source
            ),
            remedy: "only databases in UTF8 are resharded, all of them in the same".to_owned(),
        });
    }
    let chunks = match job.direction {
        Direction::Back => Chunks::default(),
        Direction::Forward => copied(&client, whose, (place, to)).await?,
    };
    let progress = progress(job, &client, whose, to, confirmed).await?;
    let shapes = shapes(&client, whose, (place, to)).await?;
    said(to, client.batch_execute(APPLY).await)?;
    as_replica(&client, job).await?;
    Ok((client, progress, chunks, shapes))
}

/// That the tables have no columns there of which no values come; as they are then.
async fn shapes(
    client: &Client,
    whose: &Whose,
    (place, to): (usize, &str),
) -> Result<Shapes, StepError> {
    let tables = || whose.tables.iter().filter(|table| table.goes_to(place));
    // First: what is added later is seen by it.
    let shapes = said(to, Shapes::read(client, tables()).await)?;
    for table in tables() {
        let names = said(to, client.query(NAMES, &[&table.sql()]).await)?;
        let names: Vec<String> = names.iter().map(|row| row.get(0)).collect();
        let planned = |name: &&String| table.columns.iter().all(|it| it.name != **name);
        let more: Vec<&str> = names.iter().filter(planned).map(String::as_str).collect();
        if !more.is_empty() {
            return Err(StepError::Grown {
                what: format!(
                    "{} on shard {to} has columns that were not planned: {}",
                    table.plain(),
                    more.join(", ")
                ),
            });
        }
    }
    Ok(shapes)
}

/// What was copied there, which must be all.
async fn copied(
    client: &Client,
    whose: &Whose,
    (place, to): (usize, &str),
) -> Result<Chunks, StepError> {
    let from = (whose.workflow.as_str(), whose.source.as_str());
    // The record says that all is: the home shard has forgotten that it was to be copied again.
    let not_copied = |what: String| StepError::Lost {
        what: format!("shard {to}: {what}"),
    };
    let read = Chunks::read(client, from, &whose.tables).await;
    let chunks = read.map_err(|error| match error {
        JudgeError::Sql(error) => of(to, &error),
        error @ JudgeError::NotCopied(_) => not_copied(error.to_string()),
    })?;
    let mut tables = whose.tables.iter().enumerate();
    let missing = tables.find(|(at, table)| table.goes_to(place) && !chunks.has(*at));
    match missing {
        None => Ok(chunks),
        Some((_, table)) => Err(not_copied(format!("{} is not copied", table.plain()))),
    }
}

async fn progress(
    job: &Job,
    client: &Client,
    whose: &Whose,
    to: &str,
    confirmed: Lsn,
) -> Result<Reached, StepError> {
    let (workflow, source) = (&whose.workflow, &whose.followed);
    let row = match job.direction {
        Direction::Forward => {
            let at = PgLsn::from(confirmed.0);
            let asked: [&(dyn ToSql + Sync); 4] = [workflow, source, &at, &whose.token];
            said(to, client.query_opt(BEGIN, &asked).await)?
        }
        Direction::Back => {
            let known = said(to, client.query_one(KNOWN, &[workflow, source]).await)?;
            if known.get::<_, i64>(0) == 0 {
                return Err(again(
                    to,
                    format!("nothing says from where on {source} is followed"),
                ));
            }
            let asked: [&(dyn ToSql + Sync); 3] = [workflow, source, &whose.token];
            said(to, client.query_opt(GO_ON, &asked).await)?
        }
    };
    let row = row.ok_or(StepError::Replaced)?;
    let lsn: PgLsn = row.get(0);
    let reached = Reached {
        lsn: Lsn(lsn.into()),
        fence: row.get(1),
    };
    if reached.lsn == CLOSED {
        return Err(again(
            to,
            format!("it serves what {source} gave it, and is brought nothing more"),
        ));
    }
    if reached.lsn < confirmed {
        return Err(StepError::Halt {
            what: format!(
                "shard {to} has the changes of {source} up to {}, and {source} keeps them from {confirmed} on only: {to} \
                 has lost what it had",
                reached.lsn
            ),
            remedy: match job.direction {
                Direction::Forward => "abort the reshard and start it again",
                Direction::Back => {
                    "give up the way back: ask for finish, and resume for it to be done"
                }
            }
            .to_owned(),
        });
    }
    Ok(reached)
}

fn server<'a>(job: &'a Job, name: &str) -> Result<&'a Server, StepError> {
    job.servers.get(name).ok_or_else(|| StepError::Halt {
        what: format!("the configuration has no shard {name}"),
        remedy: format!("give the database its shard {name} again"),
    })
}

async fn sql(server: &Server) -> Result<Client, StepError> {
    let connected = server.sql().await;
    connected.map_err(|error| {
        if matches!(
            error,
            AskError::Another { .. } | AskError::FailedOver { .. }
        ) {
            return of_connection(&server.name, error);
        }
        again(&server.name, error.to_string())
    })
}

fn of_connection(name: &str, error: AskError) -> StepError {
    match Err::<(), _>(error).about(&format!("connecting to shard {name}")) {
        Err(error) => error,
        Ok(()) => StepError::Replaced,
    }
}

fn said<T>(name: &str, result: Result<T, tokio_postgres::Error>) -> Result<T, StepError> {
    result.map_err(|error| of(name, &error))
}

fn again(name: &str, problem: String) -> StepError {
    StepError::Again {
        what: format!("shard {name}"),
        problem,
    }
}

/// What a server said: whether another try may mend it.
pub(super) fn of(name: &str, error: &tokio_postgres::Error) -> StepError {
    let problem = match error.as_db_error() {
        Some(said) => format!("{} ({})", said.message(), said.code().code()),
        None => AskError::Connection(error.to_string()).to_string(),
    };
    match error.code() {
        Some(code) if lasts(code.code()) => StepError::Halt {
            what: format!("shard {name}: {problem}"),
            remedy: remedy(Some(code.code())).to_owned(),
        },
        _ => again(name, problem),
    }
}

/// Names and rights that are missing, values and rows that do not fit: another try ends alike.
pub(super) fn lasts(sqlstate: &str) -> bool {
    // The last two: no room, and no slot to be had.
    const LASTING: [&str; 10] = [
        "0A", "22", "23", "28", "2B", "3D", "3F", "42", "53100", "53400",
    ];
    LASTING.iter().any(|class| sqlstate.starts_with(class))
}

pub(super) fn lost(name: &str, error: &ReplicationError) -> StepError {
    let what = format!("the stream of shard {name}: {error}");
    match error.sqlstate() {
        None if matches!(error, ReplicationError::FailedOver { .. }) => {
            StepError::FailedOver { what }
        }
        None if matches!(error, ReplicationError::Another { .. }) => StepError::Halt {
            what,
            remedy: "let the shard's address lead to the server that it was, then resume"
                .to_owned(),
        },
        Some(code) if lasts(code) => StepError::Halt {
            what,
            remedy: "mend what the server says and resume, or abort".to_owned(),
        },
        // What it cannot decode once it cannot the next time either.
        Some(code) if code.starts_with("XX") => StepError::Halt {
            what,
            remedy: "resume tries it again; if the server says the same then, abort the reshard and start another"
                .to_owned(),
        },
        _ => again(name, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_source_cannot_decode_is_told_and_not_tried_for_ever() {
        let of = |sqlstate: &str| {
            let error = ReplicationError::Server {
                sqlstate: sqlstate.to_owned(),
                message: "could not map filenode".to_owned(),
            };
            lost("s1", &error)
        };
        assert!(matches!(of("XX000"), StepError::Halt { what, remedy }
                if what.contains("could not map filenode (XX000)") && remedy.contains("abort")));
        assert!(matches!(of("57P01"), StepError::Again { .. }));
    }
}
