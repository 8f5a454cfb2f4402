//! Between the fence and the commit: from where changes of the new owners have to go back to the old ones.
//!
//! What must stay true: it is noted after every source is fenced and everything before the fences is applied, and before a
//! destination takes its first write: what lies before it came from the sources, what lies after it did not.

use super::{
    asking::{About as _, Typed, line},
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
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::types::Type;

/// No further back than an attempt that was undone had it, whose position was earlier.
const NOTE: &str = "\
INSERT INTO shardway.apply_progress AS p (workflow, source, lsn, token) VALUES ($1, $2, $3::text::pg_lsn, $4) \
ON CONFLICT (workflow, source) DO UPDATE SET lsn = excluded.lsn, token = excluded.token WHERE p.token <= excluded.token";

/// Notes on every source where the streams of its destinations begin, and sets sequences again.
///
/// # Errors
/// [`StepError`].
pub async fn run(job: &Job) -> Result<(), StepError> {
    // Statements are held: at once, what may be.
    let (set, noted) = tokio::join!(sequences::run(job), notes(job));
    set?;
    noted
}

async fn notes(job: &Job) -> Result<(), StepError> {
    let destinations = job.destinations();
    let positions = at_once(destinations.iter().map(|it| position(job, it)).collect()).await;
    let positions = positions.into_iter().collect::<Result<Vec<_>, _>>()?;
    let positions: BTreeMap<&str, String> = destinations
        .iter()
        .map(|it| it.name.as_str())
        .zip(positions)
        .collect();
    let sources = job.sources();
    let noted = sources.iter().map(|it| note(job, it, &positions));
    at_once(noted.collect()).await.into_iter().collect()
}

/// Does it and takes it back.
pub(super) async fn rehearse(job: &Job, source: &Server) -> Result<(), StepError> {
    const WHAT: &str = "rehearsing the turn";
    let client = line(job, source).await?;
    let nowhere = "0/0".to_owned();
    let followed = String::new();
    let values = note_values(job, &followed, &nowhere);
    let (begun, noted) =
        tokio::join!(biased; begin(&client, job), client.execute_typed(NOTE, &values));
    begun?;
    noted.about(WHAT)?;
    client.batch_execute("ROLLBACK").await.about(WHAT)?;
    client.done();
    Ok(())
}

fn note_values<'a>(job: &'a Job, followed: &'a String, lsn: &'a String) -> [Typed<'a>; 4] {
    [
        (&job.id, Type::TEXT),
        (followed, Type::TEXT),
        (lsn, Type::TEXT),
        (&job.token, Type::INT8),
    ]
}

async fn position(job: &Job, destination: &Server) -> Result<String, StepError> {
    let what = format!("noting the position of shard {}", destination.name);
    let client = line(job, destination).await?;
    let row = client
        .query_typed_one("SELECT pg_current_wal_insert_lsn()::text", &[])
        .await;
    let lsn = row.about(&what)?.get(0);
    client.done();
    Ok(lsn)
}

/// On a source, of all that it gives rows to.
async fn note(
    job: &Job,
    source: &Server,
    positions: &BTreeMap<&str, String>,
) -> Result<(), StepError> {
    let what = format!("noting positions on shard {}", source.name);
    let client = line(job, source).await?;
    let back = job.turned();
    // Reference tables are not brought back, nor there again: every shard that serves is written by whoever writes them.
    let moves = job.given_by(&source.name);
    let to: BTreeSet<&str> = moves.iter().map(|it| it.to.as_str()).collect();
    let notes: Vec<(String, &String)> = to
        .iter()
        .filter_map(|to| Some((back.followed(to), positions.get(to)?)))
        .collect();
    let each = notes.iter().map(|(followed, lsn)| {
        let client = &client;
        async move {
            let values = note_values(job, followed, lsn);
            client.execute_typed(NOTE, &values).await
        }
    });
    let (begun, noted) = tokio::join!(biased; begin(&client, job), at_once(each.collect()));
    begun?;
    for noted in noted {
        if noted.about(&what)? != 1 {
            return Err(StepError::Replaced);
        }
    }
    client.batch_execute("COMMIT").await.about(&what)?;
    client.done();
    Ok(())
}
