//! Gives a reshard up before its map is committed, or after it was rolled back: everything that was written down goes.
//!
//! What must stay true: never once a cutover is committed; a table that the reshard has not made is never dropped, only rows
//! go that were copied; what cannot go now is tried again, and does not keep the others; sources keep no WAL for it, whoever
//! else cannot be reached.

use super::{
    activate::latest_anywhere,
    asking::{About as _, connection, home, named},
    condition, guard, readers,
    ready::slot_error,
    records::{Kind, Note, claim, claim_all, gone, noted, taking_part},
    rows, schema,
};
use crate::{
    failpoint,
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
    let notes = noted(job).await?;
    unless_taken_over(job).await?;
    claim_all(job).await?;
    // A chunk or a batch could be committed else after its rows were deleted.
    super::copy::stop(job).await?;
    let mut first = None;
    for note in notes.iter().filter(|it| it.kind != Kind::Records) {
        let there = !job.knobs.borrow().without.contains(&note.shard);
        let removed = match there {
            true => remove(job, note).await,
            false => Ok(()),
        };
        let removed = match removed {
            Ok(()) => gone(job, note).await,
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
    failpoint::reached("after_removed").await;
    match first {
        None => forget(job, &notes).await,
        Some(error) => Err(error),
    }
}

/// Nobody goes on from a slot of a run that is given up: those of the sources go first, as far as they can, and again with
/// all else.
pub async fn unkept(job: &Job) {
    let job = &Job {
        direction: Direction::Forward,
        ..job.clone()
    };
    let notes = noted(job).await.unwrap_or_default();
    let of_source = |it: &&Note| it.kind == Kind::Slot && it.name == job.slot(&it.shard);
    for note in notes.iter().filter(of_source) {
        let removed = async {
            let client = connection(named(job, &note.shard)?).await?;
            claim(&client, job).await?;
            remove(job, note).await
        };
        if let Err(problem) = removed.await {
            tracing::debug!(reshard = job.id, %problem, "removing a slot");
        }
    }
}

/// The copies are given up, so the sources have to own the keys: nothing was cut over, or it was rolled back.
async fn unless_taken_over(job: &Job) -> Result<(), StepError> {
    const COMMITTED: &str =
        "SELECT max(attempt) FROM shardway.hold WHERE workflow = $1 AND state = 'committed'";
    let row = home(job).await?.query_one(COMMITTED, &[&job.id]).await;
    let committed: Option<i32> = row.about("asking whether a cutover is committed")?.get(0);
    let latest = latest_anywhere(job).await?;
    let forward = latest.is_some_and(|it| it.direction == Direction::Forward);
    if forward || committed > latest.map(|it| it.attempt) {
        return Err(StepError::Halt {
            what: "the new owners have taken over: the cutover is committed".to_owned(),
            remedy: "roll it back first; finish ends it as it is".to_owned(),
        });
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
        // Last of all: they say who may do this.
        Kind::Records => Ok(()),
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
        if latest_anywhere(job).await?.is_some() {
            // It has served: who has written there may not have committed yet.
            readers::unread(job, std::slice::from_ref(&server.name)).await?;
        }
        for table in &job.plan.reference {
            rows::delete(&client, job, table, "true").await?;
        }
    }
    Ok(())
}

/// Forgets the run on every shard, when all else has gone.
pub(super) async fn forget(job: &Job, notes: &[Note]) -> Result<(), StepError> {
    let mut servers = taking_part(job);
    let home_server = named(job, &job.home)?;
    if servers.iter().all(|it| it.name != home_server.name) {
        servers.push(home_server.clone());
    }
    for server in servers {
        forget_records(job, &server).await?;
    }
    const SERVERS: &str = "DELETE FROM shardway.server WHERE workflow = $1";
    let servers = home(job).await?.execute(SERVERS, &[&job.id]).await;
    servers.about("forgetting which servers took part")?;
    for note in notes.iter().filter(|it| it.kind == Kind::Records) {
        gone(job, note).await?;
    }
    Ok(())
}

/// Forgets the run in a shard's own schema; who ran it last stays, so that nobody before goes on with it there, and that it
/// was activated.
pub(super) async fn forget_records(job: &Job, server: &Server) -> Result<(), StepError> {
    const RECORDS: [&str; 7] = [
        "chunk",
        "verify",
        "chunk_done",
        "apply_progress",
        "schema_step",
        "made",
        "fence",
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
