//! After the map is committed: the destinations know that the keys are theirs, before their first write.
//!
//! What must stay true: only after the commit; a guard that refused these keys on a destination, because it had given them
//! away before, refuses them until this and not after.

use super::{
    asking::{About as _, connection, named},
    guard::{Switch, guarded},
    records::{begin, taking_part},
    unfence::switch_off,
};
use crate::{
    inspect::at_once,
    reshard::{
        job::{Direction, Job, StepError},
        servers::Server,
    },
};
use deadpool_postgres::Client;

const ACTIVATE: &str = "\
INSERT INTO shardway.activation (workflow, attempt, direction, epoch) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
const LATEST: &str = "\
SELECT attempt, direction FROM shardway.activation WHERE workflow = $1 ORDER BY attempt DESC LIMIT 1";
const FENCED: &str =
    "SELECT EXISTS (SELECT FROM shardway.fence WHERE workflow = $1 AND attempt = $2)";

/// Activates every destination of the committed cutover, whose direction is the job's, as of the map's number.
///
/// # Errors
/// [`StepError::Halt`]: the job's sources were not fenced by this attempt.
pub async fn run(job: &Job, epoch: i64) -> Result<(), StepError> {
    let sources = job.sources();
    let each = sources.iter().map(|it| unless_not_fenced(job, it));
    let fenced = at_once(each.collect()).await;
    fenced.into_iter().collect::<Result<(), StepError>>()?;
    let destinations = job.destinations();
    let each = destinations.iter().map(|it| activate(job, it, epoch));
    at_once(each.collect()).await.into_iter().collect()
}

/// The cutover went this way.
async fn unless_not_fenced(job: &Job, source: &Server) -> Result<(), StepError> {
    let client = connection(source).await?;
    let fenced = client.query_one(FENCED, &[&job.id, &job.attempt]).await;
    if fenced.about("asking for the fence")?.get(0) {
        return Ok(());
    }
    Err(StepError::Halt {
        what: format!(
            "shard {} was not fenced by attempt {}",
            source.name, job.attempt
        ),
        remedy: "report it: the cutover went the other way".to_owned(),
    })
}

async fn activate(job: &Job, destination: &Server, epoch: i64) -> Result<(), StepError> {
    let what = format!("activating shard {}", destination.name);
    let client = connection(destination).await?;
    begin(&client, job).await?;
    let direction = match job.direction {
        Direction::Forward => "forward",
        Direction::Back => "back",
    };
    let activated = client
        .execute(ACTIVATE, &[&job.id, &job.attempt, &direction, &epoch])
        .await;
    activated.about(&what)?;
    client.batch_execute("COMMIT").await.about(&what)?;
    let turned = job.turned();
    let guarded = guarded(&client, &turned, destination).await?;
    // Reference tables are opened later.
    let on = guarded.into_iter();
    let on = on.filter(|(table, switch)| table.group.is_some() && *switch == Switch::On);
    let tables: Vec<_> = on.map(|(table, _)| table).collect();
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

/// The last cutover that a shard knows of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Latest {
    pub(super) attempt: i32,
    pub(super) direction: Direction,
}

/// The last cutover by which a shard was activated.
pub(super) async fn latest(client: &Client, job: &Job) -> Result<Option<Latest>, StepError> {
    let row = client.query_opt(LATEST, &[&job.id]).await;
    let row = row.about("asking for activations")?;
    Ok(row.map(|row| Latest {
        attempt: row.get(0),
        direction: match row.get(1) {
            "back" => Direction::Back,
            _ => Direction::Forward,
        },
    }))
}

/// The last cutover by which any shard was activated.
pub(super) async fn latest_anywhere(job: &Job) -> Result<Option<Latest>, StepError> {
    let mut last: Option<Latest> = None;
    for server in taking_part(job) {
        let here = latest(&connection(&server).await?, job).await?;
        if here.map(|it| it.attempt) > last.map(|it| it.attempt) {
            last = here;
        }
    }
    Ok(last)
}
