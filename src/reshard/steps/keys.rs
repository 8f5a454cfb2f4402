//! What tables that the reshard has made get once their rows are there: primary keys, then the other indexes, foreign keys,
//! triggers, and figures for the planner.
//!
//! What must stay true: a statement and the mark that it has run are one transaction; nothing that could refuse or change a
//! row is there before every row is as on the source.

use super::{
    asking::{About as _, connection},
    records::{begin, taking_part},
};
use crate::{
    inspect::at_once,
    reshard::{
        job::{Job, StepError},
        plan::roots,
        servers::Server,
        statements::{NOT_VALID, Phase},
    },
};
use deadpool_postgres::Client;

const NEXT: &str = "\
SELECT place, statement FROM shardway.schema_step WHERE workflow = $1 AND phase = $2 AND NOT done ORDER BY place LIMIT 1";
const DONE: &str = "UPDATE shardway.schema_step SET done = true WHERE workflow = $1 AND place = $2";

/// Primary keys: after the copy, before changes are applied.
///
/// # Errors
/// [`StepError::Halt`] with what the server says of a key that cannot be.
pub async fn primary(job: &Job) -> Result<(), StepError> {
    everywhere(job, &[Phase::Key]).await
}

/// Everything else: past the consistency point.
///
/// # Errors
/// As [`primary`].
pub async fn rest(job: &Job) -> Result<(), StepError> {
    let phases = [Phase::Index, Phase::Foreign, Phase::Validate, Phase::Rest];
    everywhere(job, &phases).await?;
    let destinations = job.destinations();
    let analyzed = at_once(destinations.iter().map(|it| analyze(job, it)).collect()).await;
    analyzed.into_iter().collect()
}

async fn everywhere(job: &Job, phases: &[Phase]) -> Result<(), StepError> {
    let servers = taking_part(job).into_iter();
    let joins: Vec<Server> = servers
        .filter(|it| job.plan.joins.contains(&it.name))
        .collect();
    let each = joins.iter().map(|server| async {
        let client = connection(server).await?;
        for phase in phases {
            while next(job, server, &client, *phase).await? == Went::On {}
        }
        Ok(())
    });
    at_once(each.collect()).await.into_iter().collect()
}

#[derive(PartialEq, Eq)]
enum Went {
    On,
    Through,
}

/// Runs one statement of a phase.
async fn next(
    job: &Job,
    server: &Server,
    client: &Client,
    phase: Phase,
) -> Result<Went, StepError> {
    begin(client, job).await?;
    let row = client.query_opt(NEXT, &[&job.id, &phase.name()]).await;
    let Some(row) = row.about("looking for what is to be made")? else {
        let ended = client.batch_execute("COMMIT").await;
        return ended.about("looking").map(|()| Went::Through);
    };
    let (place, statement): (i32, String) = (row.get(0), row.get(1));
    let what = format!("on shard {}: {statement}", server.name);
    job.progress
        .set(format!("schema {}", server.name), statement.clone());
    if let Err(error) = client.batch_execute(&statement).await {
        // Partitioned tables cannot put it off.
        let whole = statement.strip_suffix(NOT_VALID);
        let refused = error
            .code()
            .is_some_and(|code| matches!(code.code(), "42809" | "0A000"));
        let Some(whole) = whole.filter(|_| refused && phase == Phase::Foreign) else {
            return Err(error).about(&what);
        };
        client.batch_execute("ROLLBACK").await.about(&what)?;
        begin(client, job).await?;
        client.batch_execute(whole).await.about(&what)?;
    }
    client
        .execute(DONE, &[&job.id, &place])
        .await
        .about(&what)?;
    client.batch_execute("COMMIT").await.about(&what)?;
    Ok(Went::On)
}

async fn analyze(job: &Job, server: &Server) -> Result<(), StepError> {
    let client = connection(server).await?;
    let tables = job.tables_of(&job.given_to(&server.name));
    for table in &tables {
        let what = format!("counting {} on shard {}", table.plain(), server.name);
        let analyze = format!("ANALYZE {}", table.sql());
        client.batch_execute(&analyze).await.about(&what)?;
    }
    // What they have together.
    for root in roots(&tables) {
        let analyze = format!("ANALYZE {root}");
        let what = format!("counting {root} on shard {}", server.name);
        client.batch_execute(&analyze).await.about(&what)?;
    }
    Ok(())
}
