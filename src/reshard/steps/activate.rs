//! After the map is committed: the destinations know that the keys are theirs, before their first write.
//!
//! What must stay true: only after the commit; a guard that refused these keys on a destination, because it had given them
//! away before, refuses them until this and not after.

use super::{
    asking::{About as _, connection, named},
    guard::{Switch, guarded},
    records::begin,
    unfence::switch_off,
};
use crate::{
    inspect::at_once,
    reshard::{
        job::{Job, StepError},
        servers::Server,
    },
};
use deadpool_postgres::Client;

const ACTIVATE: &str = "\
INSERT INTO shardway.activation (workflow, attempt, epoch) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING";
const LATEST: &str = "SELECT max(attempt) FROM shardway.activation WHERE workflow = $1";

/// Activates every destination as of the map's number.
///
/// # Errors
/// [`StepError`].
pub async fn run(job: &Job, epoch: i64) -> Result<(), StepError> {
    let destinations = job.destinations();
    let each = destinations.iter().map(|it| activate(job, it, epoch));
    at_once(each.collect()).await.into_iter().collect()
}

async fn activate(job: &Job, destination: &Server, epoch: i64) -> Result<(), StepError> {
    let what = format!("activating shard {}", destination.name);
    let client = connection(destination).await?;
    begin(&client, job).await?;
    let activated = client
        .execute(ACTIVATE, &[&job.id, &job.attempt, &epoch])
        .await;
    activated.about(&what)?;
    client.batch_execute("COMMIT").await.about(&what)?;
    let turned = job.turned();
    let guarded = guarded(&client, &turned, destination).await?;
    let on = guarded.into_iter();
    let on: Vec<_> = on.filter(|(_, switch)| *switch == Switch::On).collect();
    let tables: Vec<_> = on.into_iter().map(|(table, _)| table).collect();
    switch_off(&client, &turned, &tables, destination).await
}

/// Lets reference tables be written again where they were guarded while shards joined: once every proxy knows that these
/// have them too.
///
/// # Errors
/// [`StepError`].
pub async fn open_reference(job: &Job) -> Result<(), StepError> {
    let Some(giver) = job.giver() else {
        return Ok(());
    };
    let server = named(job, &giver)?;
    let client = connection(server).await?;
    let guarded = guarded(&client, job, server).await?;
    let on = guarded
        .into_iter()
        .filter(|(table, switch)| table.group.is_none() && *switch == Switch::On);
    let tables: Vec<_> = on.map(|(table, _)| table).collect();
    switch_off(&client, job, &tables, server).await
}

/// The last attempt that a shard was activated by.
pub(super) async fn latest(client: &Client, job: &Job) -> Result<Option<i32>, StepError> {
    let row = client.query_one(LATEST, &[&job.id]).await;
    Ok(row.about("asking for activations")?.get(0))
}
