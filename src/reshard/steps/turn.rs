//! Between the fence and the commit: from where changes of the new owners have to go back to the old ones.
//!
//! What must stay true: it is noted after every source is fenced and everything before the fences is applied, and before a
//! destination takes its first write: what lies before it came from the sources, what lies after it did not.

use super::{
    asking::{About as _, connection, named},
    records::begin,
    sequences,
};
use crate::{
    inspect::at_once,
    reshard::{
        job::{Job, StepError},
        servers::Server,
    },
};
use std::collections::BTreeSet;

/// No further back than an attempt that was undone had it, whose position was earlier.
const NOTE: &str = "\
INSERT INTO shardway.apply_progress AS p (workflow, source, lsn, token) VALUES ($1, $2, $3::text::pg_lsn, $4) \
ON CONFLICT (workflow, source) DO UPDATE SET lsn = excluded.lsn, token = excluded.token WHERE p.token <= excluded.token";

/// Notes on every source where the streams of its destinations begin, and sets sequences again.
///
/// # Errors
/// [`StepError`].
pub async fn run(job: &Job) -> Result<(), StepError> {
    let destinations = job.destinations();
    let noted = at_once(destinations.iter().map(|it| note(job, it)).collect());
    // Statements are held: at once, what may be.
    let (set, noted) = tokio::join!(sequences::run(job), noted);
    set?;
    noted.into_iter().collect()
}

async fn note(job: &Job, destination: &Server) -> Result<(), StepError> {
    let what = format!("noting the position of shard {}", destination.name);
    let client = connection(destination).await?;
    let row = client
        .query_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await;
    let lsn: String = row.about(&what)?.get(0);
    let sources = job.given_to(&destination.name).into_iter();
    let sources: BTreeSet<String> = sources.map(|it| it.from).collect();
    let followed = job.turned().followed(&destination.name);
    for source in sources {
        let client = connection(named(job, &source)?).await?;
        begin(&client, job).await?;
        let noted = client
            .execute(NOTE, &[&job.id, &followed, &lsn, &job.token])
            .await;
        if noted.about(&what)? != 1 {
            return Err(StepError::Replaced);
        }
        client.batch_execute("COMMIT").await.about(&what)?;
    }
    Ok(())
}
