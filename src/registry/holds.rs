//! Statements that proxies hold back while keys change their owner: what the home shard says of it, and what this proxy
//! answers.
//!
//! What must stay true: a hold ends by compare-and-swap of its row alone, and after its deadline any proxy may do it; an
//! answer counts for the attempt that it was given for.

use super::Lease;
use crate::{
    clock::Duration,
    gate::{state::Moving, tally::Tally},
    inspect::AskError,
};
use std::{ops::Deref, sync::Arc};
use tokio::sync::Notify;
use tokio_postgres::{Row, types::Type};

/// What the home shard says, all at one time.
#[derive(Clone, Debug, PartialEq)]
pub struct Read {
    pub holds: Vec<Reported>,
    /// The number of the map.
    pub map: i64,
}

/// One hold.
#[derive(Clone, Debug, PartialEq)]
pub struct Reported {
    pub workflow: String,
    pub attempt: i32,
    pub state: Held,
    pub moving: Vec<Moving>,
    /// Seconds until its deadline.
    pub left: f64,
    /// Whether nobody has settled it in good time.
    pub overdue: bool,
    /// Whether shards join, which writes to reference tables must reach.
    pub joins: Joins,
}

/// Whether shards join the database with a reshard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Joins {
    None,
    Some,
}

/// Hears of proxies' answers, and asks for them.
pub struct Answers {
    pub(super) lease: Lease,
    pub(super) bell: Arc<Notify>,
}

impl Answers {
    /// Resolves when a proxy has answered since the last time.
    pub async fn heard(&self) {
        self.bell.notified().await;
    }
}

impl Deref for Answers {
    type Target = Lease;

    fn deref(&self) -> &Self::Target {
        &self.lease
    }
}

/// What has become of a hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    Held,
    Released,
    /// Committed or released, and the owners do not know it yet: it is held on, until they do, or the deadline.
    Activating,
    Committed,
}

const READ: &str = "\
SELECT m.epoch, h.workflow, h.attempt, h.state, h.moving, h.left_, h.joins, h.overdue \
FROM (SELECT coalesce(max(epoch), 0)::int8 AS epoch FROM shardway.map) m LEFT JOIN ( \
    SELECT h.workflow, h.attempt, h.moving::text AS moving, \
           CASE WHEN h.activating AND h.deadline > clock_timestamp() THEN 'activating' ELSE h.state END AS state, \
           extract(epoch FROM h.deadline - clock_timestamp())::float8 AS left_, \
           coalesce(h.activating AND h.helped < clock_timestamp() - interval '250 milliseconds', false) AS overdue, \
           coalesce(jsonb_array_length(w.plan -> 'joins') > 0, false) AS joins \
    FROM shardway.hold h LEFT JOIN shardway.workflow w ON w.id = h.workflow) h ON true";
/// Where answers are told of, beside the row.
pub(super) const LISTEN: &str = "LISTEN shardway_held";
/// Not waited for until it is durable: what it says is true as long as this proxy holds.
const ANSWER: &str = "\
WITH said AS (INSERT INTO shardway.held (workflow, attempt, incarnation, drained, waiting_for) \
    SELECT $1, $2, $3, $4, $5 FROM shardway.hold WHERE workflow = $1 AND attempt = $2 AND state = 'held' \
        AND set_config('synchronous_commit', 'off', true) IS NOT NULL \
    ON CONFLICT (workflow, attempt, incarnation) DO UPDATE SET drained = excluded.drained, \
        waiting_for = excluded.waiting_for, at = clock_timestamp() RETURNING 1) \
SELECT pg_notify('shardway_held', '') FROM said";
const TELL: &str = "\
WITH told AS (UPDATE shardway.held SET statements = $4, failed = $5, longest = $6, waited = $7 \
    WHERE workflow = $1 AND attempt = $2 AND incarnation = $3 \
        AND set_config('synchronous_commit', 'off', true) IS NOT NULL RETURNING 1) \
SELECT pg_notify('shardway_held', '') FROM told";
/// From then on it cannot be committed; whoever ended it has a little time to turn guards off.
const EXPIRE: &str = "\
WITH released AS (UPDATE shardway.hold SET state = 'released', activating = true, helped = clock_timestamp(), \
        deadline = clock_timestamp() + interval '500 milliseconds' \
    WHERE workflow = $1 AND attempt = $2 AND state = 'held' AND deadline < clock_timestamp() RETURNING workflow) \
SELECT pg_notify('shardway', 'hold') FROM released";
const HELP: &str = "\
UPDATE shardway.hold SET helped = clock_timestamp() \
WHERE workflow = $1 AND attempt = $2 AND activating AND deadline > clock_timestamp() \
    AND helped < clock_timestamp() - interval '250 milliseconds' RETURNING state = 'committed'";

/// An attempt whose runner does not end it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    pub workflow: String,
    pub attempt: i32,
    pub ending: Ending,
}

/// How it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The new owners are told.
    Committed,
    /// Guards are turned off.
    Released,
}

/// Every hold, and the map's number.
pub(super) async fn read(lease: &Lease) -> Result<Read, AskError> {
    let rows = lease.query_typed(READ, &[]).await?;
    let map = rows.first().map_or(Ok(0), |row| row.try_get(0))?;
    let mut holds = Vec::new();
    for row in &rows {
        holds.extend(hold(row)?);
    }
    Ok(Read { holds, map })
}

fn hold(row: &Row) -> Result<Option<Reported>, AskError> {
    let Some(workflow) = row.try_get::<_, Option<String>>(1)? else {
        return Ok(None);
    };
    let state: String = row.try_get(3)?;
    let moving: String = row.try_get(4)?;
    let moving = serde_json::from_str(&moving)
        .map_err(|error| AskError::Connection(format!("shardway.hold cannot be read: {error}")))?;
    let joins = if row.try_get(6)? {
        Joins::Some
    } else {
        Joins::None
    };
    Ok(Some(Reported {
        workflow,
        attempt: row.try_get(2)?,
        state: match state.as_str() {
            "held" => Held::Held,
            "activating" => Held::Activating,
            "committed" => Held::Committed,
            _ => Held::Released,
        },
        moving,
        left: row.try_get(5)?,
        joins,
        overdue: row.try_get(7)?,
    }))
}

/// Says for this proxy whether anybody is still at it.
pub(super) async fn answer(
    lease: &Lease,
    (workflow, attempt): (&str, i32),
    incarnation: u64,
    waiting_for: Option<&str>,
) -> Result<(), AskError> {
    let incarnation = format!("{incarnation:016x}");
    let drained = waiting_for.is_none();
    lease
        .query_typed(
            ANSWER,
            &[
                (&workflow, Type::TEXT),
                (&attempt, Type::INT4),
                (&incarnation, Type::TEXT),
                (&drained, Type::BOOL),
                (&waiting_for, Type::TEXT),
            ],
        )
        .await?;
    Ok(())
}

/// Says what it has cost this proxy's statements.
pub(super) async fn tell(
    lease: &Lease,
    (workflow, attempt): (&str, i32),
    incarnation: u64,
    tally: &Tally,
) -> Result<(), AskError> {
    let incarnation = format!("{incarnation:016x}");
    let count = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let millis = |time: Duration| time.as_secs_f64() * 1_000.0;
    lease
        .query_typed(
            TELL,
            &[
                (&workflow, Type::TEXT),
                (&attempt, Type::INT4),
                (&incarnation, Type::TEXT),
                (&count(tally.statements), Type::INT8),
                (&count(tally.failed), Type::INT8),
                (&millis(tally.longest), Type::FLOAT8),
                (&millis(tally.waited), Type::FLOAT8),
            ],
        )
        .await?;
    Ok(())
}

/// Ends a hold whose deadline has passed; `None`: somebody else has ended it.
pub(super) async fn expire(
    lease: &Lease,
    workflow: &str,
    attempt: i32,
) -> Result<Option<Overdue>, AskError> {
    let row = lease
        .query_typed_opt(EXPIRE, &[(&workflow, Type::TEXT), (&attempt, Type::INT4)])
        .await?;
    Ok(row.map(|_| Overdue {
        workflow: workflow.to_owned(),
        attempt,
        ending: Ending::Released,
    }))
}

/// Takes it upon this proxy to settle a hold; `None`: somebody else has, or did.
pub(super) async fn help(
    lease: &Lease,
    workflow: &str,
    attempt: i32,
) -> Result<Option<Overdue>, AskError> {
    let row = lease
        .query_typed_opt(HELP, &[(&workflow, Type::TEXT), (&attempt, Type::INT4)])
        .await?;
    row.map(|row| {
        Ok(Overdue {
            workflow: workflow.to_owned(),
            attempt,
            ending: if row.try_get(0)? {
                Ending::Committed
            } else {
                Ending::Released
            },
        })
    })
    .transpose()
}

/// The last reshard that moves keys of a group, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reshard {
    pub name: String,
    pub state: String,
    /// Whether what the state makes is there.
    pub made: bool,
    /// Shards that join with it, or have.
    pub joins: Vec<String>,
}

const RESHARD: &str = "\
SELECT w.id, w.state, coalesce(w.step = 'made', false), \
    array(SELECT jsonb_array_elements_text(w.plan -> 'joins')) FROM shardway.workflow w \
WHERE EXISTS (SELECT FROM jsonb_array_elements(w.plan -> 'moves') m WHERE m ->> 'group' = $1) \
ORDER BY w.made_at DESC LIMIT 1";

pub(super) async fn reshard_of(lease: &Lease, group: &str) -> Result<Option<Reshard>, AskError> {
    let rows = lease.query_typed(RESHARD, &[(&group, Type::TEXT)]).await?;
    let found = rows.first().map(|row| {
        Ok(Reshard {
            name: row.try_get(0)?,
            state: row.try_get(1)?,
            made: row.try_get(2)?,
            joins: row.try_get(3)?,
        })
    });
    found.transpose()
}
