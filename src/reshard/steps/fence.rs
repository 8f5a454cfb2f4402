//! The fence: from one transaction on each source on, nobody writes moving keys there, and the stream of changes says where
//! that is.
//!
//! What must stay true: everything that writes a moving key on a source is committed before its fence, in its WAL, or is
//! refused by the guard; no writer of any key waits for longer than the lock's limit; a runner that was replaced fences
//! nothing, nor one that stood still until statements were let go.

use super::{
    asking::{About as _, Typed, is_lock_timeout, line, named},
    guard::{self, Switch, guarded, lock_timeout, switch_sql},
    partitions,
    ready::unless_another,
    records::begin,
};
use crate::{
    clock::Duration,
    failpoint,
    inspect::at_once,
    reshard::{
        job::{Job, StepError},
        plan::{MovingTable, roots},
        servers::Server,
    },
};
use deadpool_postgres::Client;
use tokio_postgres::types::Type;

/// What a fence's logical message is called; its content is the reshard's name and the attempt.
pub const MESSAGE: &str = "shardway_fence";

/// Who has locks on the tables, as writers do, for longer than they may be waited for. Prepared transactions have no process:
/// which of them has a lock tells the one that it has on its own number, under the same virtual transaction.
const HOLDERS: &str = "\
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks) \
SELECT coalesce(string_agg(DISTINCT coalesce('process ' || l.pid || ' of ' || a.usename || ' (' || a.application_name || ')', \
                                             coalesce(a.backend_type, 'process') || ' ' || a.pid, \
                                             'a prepared transaction' || coalesce(' (' || x.gid || ')', '')), ', '), '') \
FROM locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid \
LEFT JOIN locks own ON l.pid IS NULL AND own.pid IS NULL AND own.virtualtransaction = l.virtualtransaction \
  AND own.locktype = 'transactionid' AND own.mode = 'ExclusiveLock' \
LEFT JOIN pg_prepared_xacts x ON x.transaction = own.transactionid \
WHERE l.locktype = 'relation' AND l.granted AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database()) \
  AND l.relation = ANY(SELECT to_regclass(name)::oid FROM unnest($1::text[]) name) \
  AND l.mode <> ALL($3::text[]) AND l.pid IS DISTINCT FROM pg_backend_pid() \
  AND (a.pid IS NULL OR clock_timestamp() - a.xact_start > make_interval(secs => $2))";

const MARK: &str = "\
INSERT INTO shardway.fence AS f (workflow, attempt, token) VALUES ($1, $2, $3) \
ON CONFLICT (workflow, attempt) DO UPDATE SET token = excluded.token, beat = f.beat + 1, at = clock_timestamp()";

/// Locks that are there beside the fence's, and those that are there beside a vacuum's too.
pub(super) const READERS: [&str; 2] = ["AccessShareLock", "RowShareLock"];
const WRITERS: [&str; 3] = ["AccessShareLock", "RowShareLock", "RowExclusiveLock"];

/// For as long as it takes until an autovacuum gives way to whoever waits for it, which is looked at after this time.
const PATIENCE: &str = "\
SELECT set_config('lock_timeout', (setting::bigint + 2000)::text, true) FROM pg_settings WHERE name = 'deadlock_timeout'";

/// Whether statements were let go that this attempt has held back.
const OVER: &str = "\
SELECT EXISTS (SELECT FROM shardway.hold WHERE workflow = $1 AND attempt = $2 AND (state <> 'held' OR deadline <= clock_timestamp()))";

const TELL: &str = "SELECT pg_logical_emit_message(true, $1, $2)";

/// Fences every source, all at once. What was fenced when another could not be has to be [unfenced](super::unfence::run).
///
/// # Errors
/// [`StepError::Again`]: somebody holds a lock for too long; what it says names who.
pub async fn run(job: &Job) -> Result<(), StepError> {
    let sources = job.sources();
    // One for all: none is opened while tables are locked.
    let home = line(job, named(job, &job.home)?).await?;
    let fenced = at_once(sources.iter().map(|it| fence(job, it, &home)).collect()).await;
    home.done();
    fenced.into_iter().collect()
}

async fn fence(job: &Job, source: &Server, home: &Client) -> Result<(), StepError> {
    let client = line(job, source).await?;
    let tables = guard::tables(job, source);
    let most = job.knobs.borrow().lock;
    let what = format!("fencing shard {}", source.name);
    unless_held(&client, &what, (most, &READERS), &tables).await?;
    let names = with_roots(&tables);
    let locks = format!(
        "{}; LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE; {}",
        lock_timeout(job),
        names.join(", "),
        switch_sql(job, &tables, Switch::On)
    );
    let content = format!("{} {}", job.id, job.attempt);
    let mark = mark(job);
    let message: [Typed<'_>; 2] = [(&MESSAGE, Type::TEXT), (&content, Type::TEXT)];
    // Sent at once, answered one after the other; each fails after one that has failed.
    let (begun, locked, known, same, marked, told) = tokio::join!(
        biased;
        begin(&client, job),
        client.batch_execute(&locks),
        partitions::unless_new(&client, job, &tables, source),
        unless_another(&client, job, source),
        client.execute_typed(MARK, &mark),
        client.query_typed(TELL, &message),
    );
    begun?;
    match locked {
        Err(error) if is_lock_timeout(&error) => {
            client.batch_execute("ROLLBACK").await.about(&what)?;
            unless_held(&client, &what, (most, &READERS), &tables).await?;
            client.done();
            return Err(error).about(&what);
        }
        locked => locked.about(&what)?,
    }
    known?;
    same?;
    marked.about(&what)?;
    told.about(&what)?;
    // Whoever has ended the attempt meanwhile looked for this fence before it was there.
    if let Err(over) = unless_over(job, home, &what).await {
        client.batch_execute("ROLLBACK").await.about(&what)?;
        client.done();
        return Err(over);
    }
    failpoint::reached("after_guard").await;
    client.batch_execute("COMMIT").await.about(&what)?;
    client.done();
    Ok(())
}

async fn unless_over(job: &Job, home: &Client, what: &str) -> Result<(), StepError> {
    let attempt: [Typed<'_>; 2] = [(&job.id, Type::TEXT), (&job.attempt, Type::INT4)];
    let over = home.query_typed_one(OVER, &attempt).await;
    let over: bool = over.about(what)?.get(0);
    if over {
        return Err(StepError::Again {
            what: what.to_owned(),
            problem: "statements are not held back any more".to_owned(),
        });
    }
    Ok(())
}

/// Before statements are held: opens what a fence needs, and sees that nobody is at the tables for whom it would wait.
///
/// # Errors
/// [`StepError::Again`]: somebody is, or there is no guard yet.
pub async fn rehearse(job: &Job, source: &Server) -> Result<(), StepError> {
    let client = line(job, source).await?;
    let tables = guard::tables(job, source);
    unless_vacuumed(&client, source, &tables).await?;
    begin(&client, job).await?;
    let guarded = guarded(&client, job, source).await?;
    if guarded.len() < tables.len() {
        return Err(StepError::Again {
            what: format!("fencing shard {}", source.name),
            problem: "a table has no guard yet".to_owned(),
        });
    }
    // Those that came through proxies are waited for before it is fenced.
    let most = {
        let knobs = job.knobs.borrow();
        knobs.lock.max(knobs.drain)
    };
    let what = format!("fencing shard {}", source.name);
    unless_held(&client, &what, (most, &READERS), &tables).await?;
    partitions::unless_new(&client, job, &tables, source).await?;
    unless_another(&client, job, source).await?;
    // What it will run has been run.
    let marked = client.execute_typed(MARK, &mark(job)).await;
    marked.about("rehearsing the fence")?;
    client
        .batch_execute("ROLLBACK")
        .await
        .about("rehearsing the fence")?;
    client.done();
    Ok(())
}

/// Waits for whoever vacuums or analyzes the tables or builds an index without locking writers out, as the fence would have
/// to: with a lock that no writer waits for, and for which an autovacuum gives way.
async fn unless_vacuumed(
    client: &Client,
    source: &Server,
    tables: &[MovingTable],
) -> Result<(), StepError> {
    let what = format!(
        "waiting for those who vacuum tables of shard {}",
        source.name
    );
    let names = with_roots(tables).join(", ");
    let locks = format!("BEGIN; {PATIENCE}; LOCK TABLE {names} IN SHARE UPDATE EXCLUSIVE MODE");
    let locked = client.batch_execute(&locks).await;
    client.batch_execute("ROLLBACK").await.about(&what)?;
    match locked {
        Err(error) if is_lock_timeout(&error) => {
            unless_held(client, &what, (Duration::ZERO, &WRITERS), tables).await?;
            Err(error).about(&what)
        }
        locked => locked.about(&what),
    }
}

/// What is locked: partitioned tables first, as writers lock them, with all of their partitions.
fn with_roots(tables: &[MovingTable]) -> Vec<String> {
    let tables_sql = tables.iter().map(MovingTable::sql);
    roots(tables).into_iter().chain(tables_sql).collect()
}

/// Whether a shard has seen a later attempt: what is done for this one comes too late.
///
/// # Errors
/// [`StepError::Again`]: it has.
pub(super) async fn unless_later(client: &Client, job: &Job) -> Result<(), StepError> {
    const LATER: &str =
        "SELECT EXISTS (SELECT FROM shardway.fence WHERE workflow = $1 AND attempt > $2)";
    let values: [Typed<'_>; 2] = [(&job.id, Type::TEXT), (&job.attempt, Type::INT4)];
    let row = client.query_typed_one(LATER, &values).await;
    if row.about("asking for later fences")?.get(0) {
        return Err(StepError::Again {
            what: format!("ending attempt {}", job.attempt),
            problem: "there is a later one".to_owned(),
        });
    }
    Ok(())
}

/// The values of [`MARK`].
fn mark(job: &Job) -> [Typed<'_>; 3] {
    [
        (&job.id, Type::TEXT),
        (&job.attempt, Type::INT4),
        (&job.token, Type::INT8),
    ]
}

/// Asks who holds locks already for longer than this, so that no queue of writers forms behind a lock that cannot be had.
pub(super) async fn unless_held(
    client: &Client,
    what: &str,
    (most, beside): (Duration, &[&str]),
    tables: &[MovingTable],
) -> Result<(), StepError> {
    let names = with_roots(tables);
    let seconds = most.as_secs_f64();
    let row = client
        .query_typed(
            HOLDERS,
            &[
                (&names, Type::TEXT_ARRAY),
                (&seconds, Type::FLOAT8),
                (&beside, Type::TEXT_ARRAY),
            ],
        )
        .await
        .about("looking for who holds locks")?;
    let holders: String = row.first().map_or_else(String::new, |row| row.get(0));
    if holders.is_empty() {
        return Ok(());
    }
    Err(StepError::Again {
        what: what.to_owned(),
        problem: format!(
            "{holders} has locks on the tables for longer than {most:?}, which is more than may be waited for; end it, or let \
             cutovers wait for it: shardway reshard set lock_ms=... hold_ms=..."
        ),
    })
}
