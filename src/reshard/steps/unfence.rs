//! Undoes an attempt: the guards are turned off, so that the sources go on as before.
//!
//! What must stay true: never once the attempt is committed: two shards would take writes of one key.

use super::{
    activate::latest,
    asking::{About as _, connection, home, is_lock_timeout},
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

/// Whether the attempt's cutover is committed.
const COMMITTED: &str = "\
SELECT EXISTS (SELECT FROM shardway.hold WHERE workflow = $1 AND attempt = $2 AND state = 'committed')";

/// Turns the guards of all sources off. Waits for its lock in turns, so that writers of other keys get theirs in between.
///
/// # Errors
/// [`StepError::Halt`]: the attempt is committed.
pub async fn run(job: &Job) -> Result<(), StepError> {
    unless_committed(job).await?;
    let sources = job.sources();
    let undone = at_once(sources.iter().map(|it| unfence(job, it)).collect()).await;
    undone.into_iter().collect()
}

/// Proves that no destination takes writes of this attempt.
///
/// # Errors
/// [`StepError::Halt`]: one does, or may.
pub async fn unless_committed(job: &Job) -> Result<(), StepError> {
    let client = home(job).await?;
    let row = client.query_one(COMMITTED, &[&job.id, &job.attempt]).await;
    let mut committed: bool = row.about("asking whether the cutover is committed")?.get(0);
    for server in job.destinations() {
        let client = connection(&server).await?;
        let latest = latest(&client, job).await?;
        committed |= latest.is_some_and(|it| it.attempt == job.attempt);
    }
    if committed {
        return Err(StepError::Halt {
            what: format!("attempt {} of the cutover is committed", job.attempt),
            remedy: "go on with it; a rollback undoes it".to_owned(),
        });
    }
    Ok(())
}

async fn unfence(job: &Job, source: &Server) -> Result<(), StepError> {
    let client = connection(source).await?;
    let guarded = guarded(&client, job, source).await?;
    let on = guarded.into_iter();
    let on = on.filter(|(_, switch)| *switch == Switch::On);
    let tables: Vec<_> = on.map(|(table, _)| table).collect();
    switch_off(&client, job, &tables, source).await
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
