//! The end of a reshard: the way back is given up, rows that the old owners still have go, then what refused writes to them.
//!
//! What must stay true: no row is deleted unless the new owner is known to have taken over; the guards stay until the last
//! row has gone; each note goes after its thing, so that a run that was cut goes on; reference tables are emptied only where
//! the map names their shard no more, and nobody reads there who came by an older one.

use super::{
    abort::{forget, forget_records, remove},
    activate::{Latest, latest, latest_anywhere},
    asking::{About as _, connection, named},
    condition, partitions, readers,
    records::{Kind, claim, claim_all, gone, noted},
    rows, watched,
};
use crate::{
    failpoint,
    reshard::{
        job::{Direction, Job, StepError},
        plan::identifier,
        servers::Server,
    },
};

/// Deletes what the shards that gave rows still have of them, and all that was made for the run. Forward, whatever the
/// job's direction is.
///
/// # Errors
/// [`StepError::Halt`]: the cutover in this direction is not known to be committed.
pub async fn run(job: &Job) -> Result<(), StepError> {
    let job = &Job {
        direction: Direction::Forward,
        ..job.clone()
    };
    unless_not_committed(job).await?;
    claim_all(job).await?;
    // What was brought back could be committed else after it was deleted.
    super::copy::stop(job).await?;
    let notes = noted(job).await?;
    for note in &notes {
        if matches!(note.kind, Kind::Slot | Kind::Publication) {
            remove(job, note).await?;
            gone(job, note).await?;
        }
    }
    for source in job.sources() {
        // What it brings meanwhile would go with the others, or stay.
        watched::unless_subscribed(&connection(&source).await?, job, &source).await?;
        partitions::unless_written(job, &source).await?;
        delete(job, &source).await?;
    }
    failpoint::reached("after_old_rows").await;
    for note in &notes {
        match note.kind {
            Kind::Guard => remove(job, note).await?,
            // What came stays.
            Kind::Rows | Kind::Slot | Kind::Publication | Kind::Table | Kind::Records => {}
        }
        if note.kind != Kind::Records {
            gone(job, note).await?;
        }
    }
    forget(job, &notes).await
}

/// Takes reference tables from a shard that serves no more, as every proxy knows: their rows would be in the way when it
/// joins again. Their tables stay.
///
/// # Errors
/// [`StepError::Again`] as well: somebody is there whose transaction began when it served.
pub async fn empty(job: &Job, shard: &str) -> Result<(), StepError> {
    let server = named(job, shard)?;
    let client = connection(server).await?;
    let what = format!("taking reference tables from shard {shard}");
    readers::until_gone(&client, (readers::Who::Wrote, "while it served"), what).await?;
    claim(&client, job).await?;
    for table in &job.plan.left {
        rows::delete(&client, job, table, "true").await?;
    }
    forget_records(job, server).await
}

/// Whether a shard has tables that were made to live there alone.
///
/// # Errors
/// [`StepError`].
pub async fn has_tables(job: &Job, shard: &str) -> Result<bool, StepError> {
    const TABLES: &str = "SELECT EXISTS (SELECT FROM shardway.placement p JOIN pg_class c ON c.oid = p.relation \
                          WHERE p.kind = 'single')";
    let client = connection(named(job, shard)?).await?;
    let row = client.query_one(TABLES, &[]).await;
    Ok(row.about("looking for tables of one shard")?.get(0))
}

/// Every destination has taken over, and none of it was rolled back since.
async fn unless_not_committed(job: &Job) -> Result<(), StepError> {
    let last = latest_anywhere(job).await?;
    let last = last.filter(|it| it.direction == Direction::Forward);
    for destination in job.destinations() {
        let here = latest(&connection(&destination).await?, job).await?;
        // By whichever map: others may have changed it between two destinations.
        if last.is_none() || here.map(Latest::cutover) != last.map(Latest::cutover) {
            return Err(StepError::Halt {
                what: format!(
                    "shard {} has not taken over what it was given",
                    destination.name
                ),
                remedy: "cut over first; abort gives a reshard up before that".to_owned(),
            });
        }
    }
    Ok(())
}

async fn delete(job: &Job, source: &Server) -> Result<(), StepError> {
    let client = connection(source).await?;
    let moves = job.given_by(&source.name);
    for table in job.tables_of(&moves) {
        let column = identifier(&table.key_column);
        if let Some(condition) = condition(job, &table, &moves, &column)? {
            rows::delete(&client, job, &table, &condition).await?;
        }
    }
    Ok(())
}
