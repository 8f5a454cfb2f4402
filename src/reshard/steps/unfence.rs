//! Undoes an attempt: the guards are turned off, so that the sources go on as before.
//!
//! What must stay true: never once the attempt is committed: two shards would take writes of one key; reference tables are
//! not written without shards that have joined by an earlier cutover, and serve.

use super::{
    activate::latest,
    asking::{About as _, is_lock_timeout, line, named},
    fence::unless_later,
    guard::{Switch, guarded, lock_timeout, switch_sql},
    records::begin,
};
use crate::{
    inspect::at_once,
    reshard::{
        job::{Job, StepError},
        plan::MovingTable,
        servers::Server,
    },
};
use deadpool_postgres::Client;
use tokio_postgres::types::Type;

/// Whether the attempt's cutover is committed.
const COMMITTED: &str = "\
SELECT EXISTS (SELECT FROM shardway.hold WHERE workflow = $1 AND attempt = $2 AND state = 'committed')";

/// Turns the guards of all sources off. Waits for its lock in turns, so that writers of other keys get theirs in between.
///
/// # Errors
/// [`StepError::Halt`]: the attempt is committed.
pub async fn run(job: &Job) -> Result<(), StepError> {
    let served = unless_committed(job).await?;
    let sources = job.sources();
    let undone = sources.iter().map(|it| unfence(job, it, served));
    let undone = at_once(undone.collect()).await;
    undone.into_iter().collect()
}

/// Whether the shards that are given rows have been owners before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Served {
    Never,
    Before,
}

/// Proves that no destination takes writes of this attempt.
///
/// # Errors
/// [`StepError::Halt`]: one does, or may.
pub async fn unless_committed(job: &Job) -> Result<Served, StepError> {
    let destinations = job.destinations();
    let each = destinations.iter().map(|it| activated(job, it));
    let (committed, each) = tokio::join!(is_committed(job), at_once(each.collect()));
    let (mut committed, mut served) = (committed?, Served::Never);
    for attempt in each {
        if let Some(attempt) = attempt? {
            committed |= attempt == job.attempt;
            served = Served::Before;
        }
    }
    if committed {
        return Err(StepError::Halt {
            what: format!("attempt {} of the cutover is committed", job.attempt),
            remedy: "go on with it; a rollback undoes it".to_owned(),
        });
    }
    Ok(served)
}

async fn is_committed(job: &Job) -> Result<bool, StepError> {
    let client = line(job, named(job, &job.home)?).await?;
    let row = client
        .query_typed_one(
            COMMITTED,
            &[(&job.id, Type::TEXT), (&job.attempt, Type::INT4)],
        )
        .await;
    let committed = row.about("asking whether the cutover is committed")?.get(0);
    client.done();
    Ok(committed)
}

/// By which attempt it last was.
async fn activated(job: &Job, destination: &Server) -> Result<Option<i32>, StepError> {
    let client = line(job, destination).await?;
    let latest = latest(&client, job).await?;
    client.done();
    Ok(latest.map(|it| it.attempt))
}

async fn unfence(job: &Job, source: &Server, served: Served) -> Result<(), StepError> {
    let client = line(job, source).await?;
    // After a fence that nobody waits for any more, and that may still be under way.
    let (begun, later, guarded) = tokio::join!(
        biased;
        begin(&client, job),
        unless_later(&client, job),
        guarded(&client, job, source),
    );
    begun?;
    later?;
    let on = guarded?.into_iter();
    let stays = |table: &MovingTable| table.group.is_none() && served == Served::Before;
    let on = on.filter(|(table, switch)| *switch == Switch::On && !stays(table));
    let tables: Vec<_> = on.map(|(table, _)| table).collect();
    let ended = client.batch_execute("COMMIT").await;
    ended.about("looking for guards")?;
    switch_off(&client, job, &tables, source).await?;
    client.done();
    Ok(())
}

/// Turns guards off, however often the lock is not to be had at once.
pub(super) async fn switch_off(
    client: &Client,
    job: &Job,
    tables: &[MovingTable],
    server: &Server,
) -> Result<(), StepError> {
    const TURNS: u32 = 200;
    let what = format!("turning the guard of shard {} off", server.name);
    for table in tables {
        let off = switch_sql(job, std::slice::from_ref(table), Switch::Off);
        for turn in 0.. {
            begin(client, job).await?;
            unless_later(client, job).await?;
            let switched = client
                .batch_execute(&format!("{}; {off} COMMIT", lock_timeout(job)))
                .await;
            match switched {
                Err(error) if is_lock_timeout(&error) && turn < TURNS => {
                    client.batch_execute("ROLLBACK").await.about(&what)?;
                    // As long as others have waited behind this: they go first.
                    let pause = job.knobs.borrow().lock;
                    tokio::time::sleep(pause).await;
                }
                Err(error) => return Err(error).about(&what),
                Ok(()) => break,
            }
        }
    }
    Ok(())
}
