//! Statements that proxies hold back during a cutover, as the runner asks for it on the home shard.
//!
//! What must stay true: a hold begins only for the record that the runner knows; it ends by compare-and-swap of its row.

use super::job::Job;
use crate::{clock::Duration, inspect::AskError, registry::Lease};
use serde_json::json;
use tokio_postgres::types::ToSql;

const BEGIN: &str = "\
WITH mine AS (SELECT FROM shardway.workflow WHERE id = $1 AND version = $2 AND token = $3 FOR UPDATE), \
    held AS (INSERT INTO shardway.hold AS h (workflow, attempt, state, moving, deadline) \
        SELECT $1, $4, 'held', $5::text::jsonb, clock_timestamp() + make_interval(secs => $6) FROM mine \
        ON CONFLICT (workflow) DO UPDATE SET attempt = excluded.attempt, state = 'held', moving = excluded.moving, \
            begun = clock_timestamp(), deadline = excluded.deadline, activating = false WHERE h.attempt < excluded.attempt RETURNING 1) \
SELECT pg_notify('shardway', 'hold') FROM held";
/// Who may still serve and has not said that nobody is at the keys.
const OPEN: &str = "\
SELECT coalesce((SELECT state = 'held' AND deadline > clock_timestamp() FROM shardway.hold \
        WHERE workflow = $1 AND attempt = $2), false), \
    (SELECT string_agg(coalesce(d.waiting_for, coalesce(p.address, 'local') || ' has not answered'), '; ') \
     FROM shardway.proxy p LEFT JOIN shardway.held d \
        ON d.workflow = $1 AND d.attempt = $2 AND d.incarnation = p.incarnation \
     WHERE p.heartbeat > clock_timestamp() - make_interval(secs => $3) AND NOT coalesce(d.drained, false))";
const RELEASE: &str = "\
WITH released AS (UPDATE shardway.hold SET state = 'released' WHERE workflow = $1 AND attempt = $2 AND state = 'held' \
    RETURNING 1) SELECT pg_notify('shardway', 'hold') FROM released";
const ACTIVATED: &str = "\
WITH activated AS (UPDATE shardway.hold SET activating = false WHERE workflow = $1 AND attempt = $2 AND activating \
    RETURNING 1) SELECT pg_notify('shardway', 'hold') FROM activated";
const FORGET: &str = "\
WITH held AS (DELETE FROM shardway.held WHERE workflow = $1) DELETE FROM shardway.hold WHERE workflow = $1";
const TOOK: &str = "\
SELECT (extract(epoch FROM clock_timestamp() - begun) * 1000)::float8 FROM shardway.hold WHERE workflow = $1";

/// How often proxies are looked at.
const LOOK: Duration = Duration::from_millis(2);

/// What became of a hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Drained {
    Yes,
    /// Not in time.
    No {
        waiting_for: String,
    },
    /// Its deadline has passed.
    Released,
}

/// Asks every proxy to hold back what touches the keys; false: the record is another by now.
///
/// # Errors
/// [`AskError`]: it may have been asked.
pub(super) async fn begin(
    lease: &Lease,
    job: &Job,
    version: i64,
    most: Duration,
) -> Result<bool, AskError> {
    let moves = job.moves();
    let moving = moves.iter();
    let moving: Vec<_> = moving
        .map(|it| json!({ "group": it.group, "keys": it.keys }))
        .collect();
    let moving = serde_json::Value::from(moving).to_string();
    let seconds = most.as_secs_f64();
    let values: [&(dyn ToSql + Sync); 6] = [
        &job.id,
        &version,
        &job.token,
        &job.attempt,
        &moving,
        &seconds,
    ];
    Ok(lease.query_opt(BEGIN, &values).await?.is_some())
}

/// Waits until nobody is at the keys any more; `lapsed`: after how long a proxy that says nothing serves them no more.
///
/// # Errors
/// [`AskError`].
pub(super) async fn drained(
    lease: &Lease,
    job: &Job,
    lapsed: Duration,
    most: Duration,
) -> Result<Drained, AskError> {
    let mut waiting_for = String::new();
    let look = lease.prepare(OPEN).await?;
    let looking = async {
        loop {
            let values: [&(dyn ToSql + Sync); 3] = [&job.id, &job.attempt, &lapsed.as_secs_f64()];
            let row = lease.query_one(&look, &values).await?;
            let held: bool = row.try_get(0)?;
            if !held {
                return Ok::<_, AskError>(Drained::Released);
            }
            match row.try_get::<_, Option<String>>(1)? {
                None => return Ok(Drained::Yes),
                Some(open) => waiting_for = open,
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    match tokio::time::timeout(most, looking).await {
        Ok(looked) => looked,
        Err(_) => Ok(Drained::No { waiting_for }),
    }
}

/// Lets statements go, if nobody did, and it is not committed.
///
/// # Errors
/// [`AskError`].
pub(super) async fn release(lease: &Lease, workflow: &str, attempt: i32) -> Result<(), AskError> {
    lease.query(RELEASE, &[&workflow, &attempt]).await?;
    Ok(())
}

/// The new owners know what is theirs: statements go on.
///
/// # Errors
/// [`AskError`].
pub(super) async fn activated(lease: &Lease, workflow: &str, attempt: i32) -> Result<(), AskError> {
    lease.query(ACTIVATED, &[&workflow, &attempt]).await?;
    Ok(())
}

/// How long ago it began, in milliseconds.
///
/// # Errors
/// [`AskError`].
pub(super) async fn took(lease: &Lease, workflow: &str) -> Result<f64, AskError> {
    let row = lease.query_one(TOOK, &[&workflow]).await?;
    Ok(row.try_get(0)?)
}

/// When all is over.
///
/// # Errors
/// [`AskError`].
pub(super) async fn forget(lease: &Lease, workflow: &str) -> Result<(), AskError> {
    lease.execute(FORGET, &[&workflow]).await?;
    Ok(())
}
