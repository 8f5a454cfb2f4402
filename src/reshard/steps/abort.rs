//! Gives a reshard up before its map is committed: everything that was written down goes.
//!
//! What must stay true: never once a cutover is committed; a table that the reshard has not made is never dropped, only rows
//! go that were copied; what cannot go now is tried again, and does not keep the others.

use super::{
    activate::latest,
    asking::{About as _, connection, named},
    condition, guard,
    ready::slot_error,
    records::{Kind, Note, claim_all, gone, noted, taking_part},
    rows, schema,
    unfence::{self, unless_committed},
};
use crate::{
    replication::{publication, slot},
    reshard::{
        job::{Direction, Job, StepError},
        plan::identifier,
        servers::Server,
    },
};

/// Removes all that the run has made. Runs until nothing is left of it.
///
/// # Errors
/// [`StepError::Halt`]: the cutover is committed. The first [`StepError::Again`] when the others were tried.
pub async fn run(job: &Job) -> Result<(), StepError> {
    let job = &Job {
        direction: Direction::Forward,
        ..job.clone()
    };
    unless_committed(job).await?;
    unless_ever_activated(job).await?;
    claim_all(job).await?;
    unfence::run(job).await?;
    let mut first = None;
    for note in noted(job).await? {
        let removed = match remove(job, &note).await {
            Ok(()) => gone(job, &note).await,
            Err(error) => Err(error),
        };
        match removed {
            Ok(()) => {}
            Err(StepError::Replaced) => return Err(StepError::Replaced),
            Err(error) => {
                first.get_or_insert(error);
            }
        }
    }
    first.map_or(Ok(()), Err)
}

/// After a cutover both sides have rows of their own: only [`super::finish`] tells which to keep.
async fn unless_ever_activated(job: &Job) -> Result<(), StepError> {
    for server in taking_part(job) {
        let client = connection(&server).await?;
        if latest(&client, job).await?.is_some() {
            return Err(StepError::Halt {
                what: format!("shard {} has taken over before", server.name),
                remedy: "finish ends it, in the direction of the last cutover".to_owned(),
            });
        }
    }
    Ok(())
}

/// Removes one thing that was written down; nothing if it is not there.
pub(super) async fn remove(job: &Job, note: &Note) -> Result<(), StepError> {
    let server = named(job, &note.shard)?;
    let what = format!("removing {} on shard {}", note.name, server.name);
    match note.kind {
        Kind::Guard => {
            let back = job.turned();
            let of = if guard::name(job) == note.name {
                job
            } else {
                &back
            };
            guard::drop_on(of, server).await
        }
        Kind::Slot => {
            let client = connection(server).await?;
            let mut commands = server.stream().await.about(&what)?;
            let removed = slot::remove(&client, &mut commands, &note.name).await;
            removed.map_err(|error| slot_error(&what, error))
        }
        Kind::Publication => {
            let client = connection(server).await?;
            publication::remove(&client, &note.name).await.about(&what)
        }
        Kind::Rows => delete(job, server).await,
        Kind::Table => schema::unmake(job, server).await,
        Kind::Records => forget_records(job, server).await,
    }
}

/// Deletes copied rows. Tables that the reshard made go as a whole.
async fn delete(job: &Job, server: &Server) -> Result<(), StepError> {
    let client = connection(server).await?;
    if schema::is_made(&client, job).await? {
        return Ok(());
    }
    let moves = job.given_to(&server.name);
    for table in job.tables_of(&moves) {
        let column = identifier(&table.key_column);
        if let Some(condition) = condition(job, &table, &moves, &column)? {
            rows::delete(&client, job, &table, &condition).await?;
        }
    }
    if job.plan.joins.contains(&server.name) {
        for table in &job.plan.reference {
            rows::delete(&client, job, table, "true").await?;
        }
    }
    Ok(())
}

/// Forgets the run in a shard's own schema; that it was activated stays.
pub(super) async fn forget_records(job: &Job, server: &Server) -> Result<(), StepError> {
    const RECORDS: [&str; 7] = [
        "chunk",
        "chunk_done",
        "apply_progress",
        "schema_step",
        "made",
        "fence",
        "runner",
    ];
    let what = format!("forgetting the run on shard {}", server.name);
    let client = connection(server).await?;
    client.batch_execute("BEGIN").await.about(&what)?;
    for table in RECORDS {
        let forget = format!("DELETE FROM shardway.{table} WHERE workflow = $1");
        client.execute(&forget, &[&job.id]).await.about(&what)?;
    }
    client.batch_execute("COMMIT").await.about(&what)
}
