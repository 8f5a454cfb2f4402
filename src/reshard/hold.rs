//! Statements that proxies hold back during a cutover, as the runner asks for it on the home shard.
//!
//! What must stay true: a hold begins only for the record that the runner knows; it ends by compare-and-swap of its row.

use super::job::Job;
use crate::{
    clock::Duration,
    inspect::AskError,
    registry::{Answers, Lease},
};
use serde_json::json;
use tokio_postgres::types::{ToSql, Type};

/// Not waited for until it is durable: if the home shard forgets it, the attempt cannot be committed.
const BEGIN: &str = "\
WITH mine AS (SELECT FROM shardway.workflow WHERE id = $1 AND version = $2 AND token = $3 FOR UPDATE), \
    held AS (INSERT INTO shardway.hold AS h (workflow, attempt, state, moving, deadline) \
        SELECT $1, $4, 'held', $5::text::jsonb, clock_timestamp() + make_interval(secs => $6) FROM mine \
        WHERE set_config('synchronous_commit', 'off', true) IS NOT NULL \
        ON CONFLICT (workflow) DO UPDATE SET attempt = excluded.attempt, state = 'held', moving = excluded.moving, \
            begun = clock_timestamp(), deadline = excluded.deadline, activating = false, helped = NULL, ended = NULL, \
            tries = CASE h.state WHEN 'committed' THEN 1 ELSE h.tries + 1 END, \
            spent = CASE h.state WHEN 'committed' THEN 0 ELSE h.spent \
                + 1000 * extract(epoch FROM coalesce(h.ended, h.deadline) - h.begun) END \
        WHERE h.attempt < excluded.attempt RETURNING 1) \
SELECT pg_notify('shardway', 'hold') FROM held";
/// Who may still serve and has not said that nobody is at the keys.
const OPEN: &str = "\
SELECT coalesce((SELECT state = 'held' AND deadline > clock_timestamp() FROM shardway.hold \
        WHERE workflow = $1 AND attempt = $2), false), \
    (SELECT string_agg(coalesce(p.address, 'local') || coalesce(': ' || d.waiting_for, ' has not answered'), '; ') \
     FROM shardway.proxy p LEFT JOIN shardway.held d \
        ON d.workflow = $1 AND d.attempt = $2 AND d.incarnation = p.incarnation \
     WHERE p.heartbeat > clock_timestamp() - make_interval(secs => $3) AND NOT coalesce(d.drained, false))";
const RELEASE: &str = "\
WITH released AS (UPDATE shardway.hold SET state = 'released', activating = false, ended = clock_timestamp() \
    WHERE workflow = $1 AND attempt = $2 AND (state = 'held' OR state = 'released' AND activating) RETURNING 1) \
SELECT pg_notify('shardway', 'hold') FROM released";
/// If the home shard forgets it, the deadline lets them go.
const SETTLED: &str = "\
WITH settled AS (UPDATE shardway.hold SET activating = false, ended = coalesce(ended, clock_timestamp()) \
    WHERE workflow = $1 AND attempt = $2 AND activating \
        AND set_config('synchronous_commit', 'off', true) IS NOT NULL RETURNING 1) \
SELECT pg_notify('shardway', 'hold') FROM settled";
const FORGET: &str = "\
WITH held AS (DELETE FROM shardway.held WHERE workflow = $1) DELETE FROM shardway.hold WHERE workflow = $1";
/// A proxy that answered and is there still will tell, if it does not die before.
const TOLD: &str = "\
SELECT h.tries, h.took, h.spent + h.took, \
    coalesce(sum(d.statements), 0)::int8, coalesce(sum(d.failed), 0)::int8, coalesce(max(d.longest), 0)::float8, \
    coalesce(sum(d.waited), 0)::float8, \
    count(*) FILTER (WHERE d.attempt = $2 AND d.statements IS NULL AND p.incarnation IS NOT NULL) \
FROM (SELECT workflow, tries, spent, \
        1000 * extract(epoch FROM least(coalesce(ended, clock_timestamp()), deadline) - begun)::float8 AS took \
      FROM shardway.hold WHERE workflow = $1 AND attempt = $2) h \
LEFT JOIN shardway.held d ON d.workflow = h.workflow AND d.attempt <= $2 AND d.attempt > $2 - h.tries \
LEFT JOIN shardway.proxy p ON p.incarnation = d.incarnation \
    AND p.heartbeat > clock_timestamp() - make_interval(secs => $3) \
GROUP BY h.tries, h.took, h.spent";

/// How often proxies are looked at of which nothing is heard.
const LOOK: Duration = Duration::from_millis(20);

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
    let [id, version, token, attempt, moving, seconds] = values;
    let values = [
        (id, Type::TEXT),
        (version, Type::INT8),
        (token, Type::INT8),
        (attempt, Type::INT4),
        (moving, Type::TEXT),
        (seconds, Type::FLOAT8),
    ];
    Ok(lease.query_typed_opt(BEGIN, &values).await?.is_some())
}

/// Waits until nobody is at the keys any more; `lapsed`: after how long a proxy that says nothing serves them no more.
///
/// # Errors
/// [`AskError`].
pub(super) async fn drained(
    answers: &Answers,
    job: &Job,
    lapsed: Duration,
    most: Duration,
) -> Result<Drained, AskError> {
    let mut waiting_for = String::new();
    let lapsed = lapsed.as_secs_f64();
    let looking = async {
        loop {
            let values: [(&(dyn ToSql + Sync), Type); 3] = [
                (&job.id, Type::TEXT),
                (&job.attempt, Type::INT4),
                (&lapsed, Type::FLOAT8),
            ];
            let row = answers.query_typed_one(OPEN, &values).await?;
            let held: bool = row.try_get(0)?;
            if !held {
                return Ok::<_, AskError>(Drained::Released);
            }
            match row.try_get::<_, Option<String>>(1)? {
                None => return Ok(Drained::Yes),
                Some(open) => waiting_for = open,
            }
            // Heard meanwhile or not: whoever answers before the look is seen by it.
            drop(tokio::time::timeout(LOOK, answers.heard()).await);
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
    of_attempt(lease, RELEASE, workflow, attempt).await
}

/// The new owners know what is theirs, or no guard is on any more: statements go on.
///
/// # Errors
/// [`AskError`].
pub(super) async fn settled(lease: &Lease, workflow: &str, attempt: i32) -> Result<(), AskError> {
    of_attempt(lease, SETTLED, workflow, attempt).await
}

/// What an attempt has cost statements, with those before it since the last change of owners.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) attempts: i32,
    /// How long it held, and all of them together, in milliseconds.
    pub(super) took: f64,
    pub(super) spent: f64,
    pub(super) statements: i64,
    pub(super) failed: i64,
    /// The longest wait of a statement, and all waits together, in milliseconds.
    pub(super) longest: f64,
    pub(super) waited: f64,
    /// Proxies that have not told yet.
    pub(super) missing: i64,
}

/// What proxies have told so far.
///
/// # Errors
/// [`AskError`].
pub(super) async fn told(
    lease: &Lease,
    job: &Job,
    lapsed: Duration,
) -> Result<Option<Told>, AskError> {
    let lapsed = lapsed.as_secs_f64();
    let values: [(&(dyn ToSql + Sync), Type); 3] = [
        (&job.id, Type::TEXT),
        (&job.attempt, Type::INT4),
        (&lapsed, Type::FLOAT8),
    ];
    let row = lease.query_typed_opt(TOLD, &values).await?;
    row.map(|row| {
        Ok(Told {
            attempts: row.try_get(0)?,
            took: row.try_get(1)?,
            spent: row.try_get(2)?,
            statements: row.try_get(3)?,
            failed: row.try_get(4)?,
            longest: row.try_get(5)?,
            waited: row.try_get(6)?,
            missing: row.try_get(7)?,
        })
    })
    .transpose()
}

/// When all is over.
///
/// # Errors
/// [`AskError`].
pub(super) async fn forget(lease: &Lease, workflow: &str) -> Result<(), AskError> {
    lease.execute(FORGET, &[&workflow]).await?;
    Ok(())
}

/// Runs a change of the attempt's row.
async fn of_attempt(
    lease: &Lease,
    sql: &str,
    workflow: &str,
    attempt: i32,
) -> Result<(), AskError> {
    let values: [(&(dyn ToSql + Sync), Type); 2] =
        [(&workflow, Type::TEXT), (&attempt, Type::INT4)];
    lease.query_typed(sql, &values).await?;
    Ok(())
}
