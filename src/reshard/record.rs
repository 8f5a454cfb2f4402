//! What is recorded of reshards on the home shard.
//!
//! What must stay true: a record changes only by compare-and-swap of its version and of its runner's token, together with
//! the row of the journal that says so; an operator's wish is such a change too.

use super::{
    identity::Identity,
    job::{Direction, Knobs},
    plan::Plan,
    state::{Record, State, Step, Stopped, Wish},
};
use crate::{inspect::AskError, metrics::reshards::Leader, registry::Lease};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};
use tokio_postgres::{
    Row,
    types::{ToSql, Type},
};

/// A reshard as it is recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    pub id: String,
    pub record: Record,
    pub token: i64,
    pub version: i64,
    pub plan: Arc<Plan>,
    pub knobs: Knobs,
    pub progress: BTreeMap<String, Value>,
    pub made_at: String,
    pub changed_at: String,
}

impl Stored {
    /// The shards that need not be there: those of which somebody has said that they are gone for good, while the reshard is
    /// given up and nothing else is done any more. Until then each of them may have to be asked, or own keys.
    #[must_use]
    pub fn without(&self) -> BTreeSet<String> {
        let Record { state, wanted, .. } = &self.record;
        // An attempt is taken back first.
        let begins = *wanted == Some(Wish::Abort) && *state != State::Cutover;
        if begins || *state == State::Abort {
            self.knobs.without.clone()
        } else {
            BTreeSet::new()
        }
    }
}

/// A statement that writes a record, with what it is told; it must touch one row.
pub struct Write {
    pub sql: &'static str,
    pub values: Vec<(Box<dyn ToSql + Send + Sync>, Type)>,
}

const COLUMNS: &str = "\
id, state, step, attempt, flips, round, wanted, paused, error::text, token, version, plan::text, knobs::text, \
progress::text, made_at::text, changed_at::text";
/// The new version and token are those that are told; nobody else may have been at it.
const SWAP: &str = "\
WITH swapped AS (UPDATE shardway.workflow SET state = $4, step = $5, attempt = $6, flips = $7, round = $8, wanted = $9, \
        paused = $10, error = $11::text::jsonb, direction = $12, version = version + 1, changed_at = clock_timestamp() \
    WHERE id = $1 AND version = $2 AND token = $3 RETURNING id) \
INSERT INTO shardway.journal (workflow, token, event, detail) SELECT id, $3, $13, $14::text::jsonb FROM swapped \
    WHERE set_config('synchronous_commit', CASE WHEN $15 THEN 'off' ELSE 'on' END, true) IS NOT NULL";
const TAKE: &str = "\
WITH taken AS (UPDATE shardway.workflow SET token = $2, version = version + 1 WHERE id = $1 AND token < $2 RETURNING id) \
INSERT INTO shardway.journal (workflow, token, event) SELECT id, $2, 'taken over' FROM taken";
const START: &str = "\
WITH made AS (INSERT INTO shardway.workflow (id, state, token, plan, knobs, progress) \
        VALUES ($1, 'prepare', 0, $2::text::jsonb, $3::text::jsonb, $4::text::jsonb) RETURNING id) \
INSERT INTO shardway.journal (workflow, token, event) SELECT id, 0, 'started' FROM made";
const GROW: &str = "\
WITH grown AS (UPDATE shardway.workflow SET plan = $4::text::jsonb, round = $5, version = version + 1, \
        changed_at = clock_timestamp() WHERE id = $1 AND version = $2 AND token = $3 RETURNING id) \
INSERT INTO shardway.journal (workflow, token, event, detail) SELECT id, $3, 'columns', $6::text::jsonb FROM grown \
    WHERE set_config('synchronous_commit', 'on', true) IS NOT NULL";
const KNOBS: &str = "\
WITH set AS (UPDATE shardway.workflow SET knobs = $3::text::jsonb, version = version + 1, changed_at = clock_timestamp() \
    WHERE id = $1 AND version = $2 RETURNING id, token) \
INSERT INTO shardway.journal (workflow, token, event, detail) SELECT id, token, 'set', $3::text::jsonb FROM set";
/// Nothing is decided by it: no version.
const PROGRESS: &str =
    "UPDATE shardway.workflow SET progress = $3::text::jsonb WHERE id = $1 AND token = $2";
const VERSION: &str = "SELECT version, token FROM shardway.workflow WHERE id = $1";
pub(super) const IDENTITIES: &str =
    "SELECT shard, system, timeline FROM shardway.server WHERE workflow = $1";
const JOURNAL: &str = "INSERT INTO shardway.journal (workflow, token, event, detail) VALUES ($1, $2, $3, $4::text::jsonb)";
const LEADER: &str = "\
SELECT l.holder, p.address, l.until > clock_timestamp() FROM shardway.leader l \
LEFT JOIN shardway.proxy p ON p.incarnation = l.holder WHERE l.holder IS NOT NULL";
const ENTRIES: &str = "\
SELECT at::text, event, detail::text FROM shardway.journal WHERE workflow = $1 ORDER BY id DESC LIMIT $2";

/// Reshards that are not over; in practice one at most.
///
/// # Errors
/// [`AskError`].
pub async fn unfinished(lease: &Lease) -> Result<Vec<Stored>, AskError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM shardway.workflow WHERE state NOT IN ('done', 'aborted') ORDER BY made_at, id"
    );
    let rows = lease.query(&sql, &[]).await?;
    rows.iter().map(stored).collect()
}

/// All that there ever were, the newest first.
///
/// # Errors
/// [`AskError`].
pub async fn all(lease: &Lease) -> Result<Vec<Stored>, AskError> {
    let sql =
        format!("SELECT {COLUMNS} FROM shardway.workflow ORDER BY made_at DESC, id LIMIT 100");
    let rows = lease.query(&sql, &[]).await?;
    rows.iter().map(stored).collect()
}

/// One of them.
///
/// # Errors
/// [`AskError`].
pub async fn read(lease: &Lease, id: &str) -> Result<Option<Stored>, AskError> {
    let sql = format!("SELECT {COLUMNS} FROM shardway.workflow WHERE id = $1");
    let row = lease.query_opt(&sql, &[&id]).await?;
    row.as_ref().map(stored).transpose()
}

/// Who the servers were when it was prepared, by shard.
///
/// # Errors
/// [`AskError`].
pub async fn identities(lease: &Lease, id: &str) -> Result<BTreeMap<String, Identity>, AskError> {
    let rows = lease.query(IDENTITIES, &[&id]).await?;
    let one = |row: &Row| {
        let timeline: i64 = row.try_get(2)?;
        let identity = Identity {
            system: row.try_get(1)?,
            timeline: u32::try_from(timeline).unwrap_or(0),
        };
        Ok((row.try_get(0)?, identity))
    };
    rows.iter().map(one).collect()
}

/// Its version and its runner's token.
///
/// # Errors
/// [`AskError`].
pub async fn version(lease: &Lease, id: &str) -> Result<Option<(i64, i64)>, AskError> {
    let row = lease.query_opt(VERSION, &[&id]).await?;
    row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?)))
        .transpose()
}

/// Records a new one, with what is shown of it at first; false: there is one under this name, or one is not over.
///
/// # Errors
/// [`AskError`].
pub async fn start(
    lease: &Lease,
    id: &str,
    plan: &Plan,
    knobs: &Knobs,
    progress: &BTreeMap<String, Value>,
) -> Result<bool, AskError> {
    let (plan, knobs, progress) = (json(plan), json(knobs), json(progress));
    match lease.execute(START, &[&id, &plan, &knobs, &progress]).await {
        Ok(made) => Ok(made == 1),
        Err(error) if error.code() == Some(&tokio_postgres::error::SqlState::UNIQUE_VIOLATION) => {
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// Who runs reshards, or did so last.
///
/// # Errors
/// [`AskError`].
pub async fn leader(lease: &Lease) -> Result<Option<Leader>, AskError> {
    let row = lease.query_opt(LEADER, &[]).await?;
    let leader = |row: Row| {
        Ok(Leader {
            proxy: row.try_get(0)?,
            address: row.try_get(1)?,
            alive: row.try_get(2)?,
        })
    };
    row.map(leader).transpose()
}

/// Makes a runner the one that may change it; false: a later one has it.
///
/// # Errors
/// [`AskError`].
pub async fn take(lease: &Lease, id: &str, token: i64) -> Result<bool, AskError> {
    Ok(lease.execute(TAKE, &[&id, &token]).await? == 1)
}

/// Changes it; false: somebody else has changed it meanwhile.
///
/// # Errors
/// [`AskError`]: it may have been changed.
pub async fn swap(
    lease: &Lease,
    stored: &Stored,
    record: &Record,
    event: &str,
    detail: &Value,
) -> Result<bool, AskError> {
    let write = swapping(stored, record, event, detail);
    let values = write.values.iter();
    let values: Vec<(&(dyn ToSql + Sync), Type)> = values
        .map(|(value, kind)| -> (&(dyn ToSql + Sync), Type) { (&**value, kind.clone()) })
        .collect();
    Ok(lease.execute_typed(write.sql, &values).await? == 1)
}

/// What changes it, for a transaction that changes more.
#[must_use]
pub fn swapping(stored: &Stored, record: &Record, event: &str, detail: &Value) -> Write {
    let direction = match record.direction() {
        Direction::Forward => "forward",
        Direction::Back => "back",
    };
    Write {
        sql: SWAP,
        values: vec![
            (Box::new(stored.id.clone()), Type::TEXT),
            (Box::new(stored.version), Type::INT8),
            (Box::new(stored.token), Type::INT8),
            (Box::new(word(&record.state)), Type::TEXT),
            (Box::new(record.step.map(|step| word(&step))), Type::TEXT),
            (Box::new(record.attempt), Type::INT4),
            (Box::new(record.flips), Type::INT4),
            (Box::new(record.round), Type::INT4),
            (Box::new(record.wanted.map(|wish| word(&wish))), Type::TEXT),
            (Box::new(record.paused), Type::BOOL),
            (Box::new(record.stopped.as_ref().map(json)), Type::TEXT),
            (Box::new(direction), Type::TEXT),
            (Box::new(event.to_owned()), Type::TEXT),
            (Box::new(detail.to_string()), Type::TEXT),
            (Box::new(!must_last(record)), Type::BOOL),
        ],
    }
}

/// Whether it is waited for until it is durable. Of an attempt under way, what is forgotten is undone: its number is
/// recorded before, and its commit after.
fn must_last(record: &Record) -> bool {
    let steps = [Step::Fence, Step::Fenced, Step::CaughtUp];
    let under_way = record.step.is_some_and(|step| steps.contains(&step));
    !(record.state == State::Cutover && under_way)
}

/// Changes its plan, and the round of verification with it; false: somebody else has changed it meanwhile.
///
/// # Errors
/// [`AskError`]: it may have been changed.
pub async fn grow(
    lease: &Lease,
    stored: &Stored,
    (plan, round): (&Plan, i32),
    detail: &Value,
) -> Result<bool, AskError> {
    let values: [&(dyn ToSql + Sync); 6] = [
        &stored.id,
        &stored.version,
        &stored.token,
        &json(plan),
        &round,
        &detail.to_string(),
    ];
    Ok(lease.execute(GROW, &values).await? == 1)
}

/// Changes what the operator may change while it runs; false: somebody else has changed it meanwhile.
///
/// # Errors
/// [`AskError`].
pub async fn set_knobs(lease: &Lease, stored: &Stored, knobs: &Knobs) -> Result<bool, AskError> {
    let values: [&(dyn ToSql + Sync); 3] = [&stored.id, &stored.version, &json(knobs)];
    Ok(lease.execute(KNOBS, &values).await? == 1)
}

/// Says what is shown; false: a later runner has it.
///
/// # Errors
/// [`AskError`].
pub async fn show(
    lease: &Lease,
    id: &str,
    token: i64,
    progress: &BTreeMap<String, Value>,
) -> Result<bool, AskError> {
    let values: [&(dyn ToSql + Sync); 3] = [&id, &token, &json(progress)];
    Ok(lease.execute(PROGRESS, &values).await? == 1)
}

/// Writes down that something happened which changes no record.
///
/// # Errors
/// [`AskError`].
pub async fn journal(
    lease: &Lease,
    id: &str,
    token: i64,
    event: &str,
    detail: &Value,
) -> Result<(), AskError> {
    let values: [&(dyn ToSql + Sync); 4] = [&id, &token, &event, &detail.to_string()];
    lease.execute(JOURNAL, &values).await?;
    Ok(())
}

/// The last entries of its journal, the newest first: when, what, and details.
///
/// # Errors
/// [`AskError`].
pub async fn entries(
    lease: &Lease,
    id: &str,
    most: i64,
) -> Result<Vec<(String, String, Value)>, AskError> {
    let rows = lease.query(ENTRIES, &[&id, &most]).await?;
    let entry = |row: &Row| Ok((row.try_get(0)?, row.try_get(1)?, parsed(row, 2)?));
    rows.iter().map(entry).collect()
}

fn stored(row: &Row) -> Result<Stored, AskError> {
    Ok(Stored {
        id: row.try_get(0)?,
        record: Record {
            state: of_word::<State>(row, 1)?,
            step: maybe_word::<Step>(row, 2)?,
            attempt: row.try_get(3)?,
            flips: row.try_get(4)?,
            round: row.try_get(5)?,
            wanted: maybe_word::<Wish>(row, 6)?,
            paused: row.try_get(7)?,
            stopped: match row.try_get::<_, Option<String>>(8)? {
                Some(_) => Some(parsed::<Stopped>(row, 8)?),
                None => None,
            },
        },
        token: row.try_get(9)?,
        version: row.try_get(10)?,
        plan: Arc::new(parsed(row, 11)?),
        knobs: parsed(row, 12)?,
        progress: parsed(row, 13)?,
        made_at: row.try_get(14)?,
        changed_at: row.try_get(15)?,
    })
}

/// As the column has it.
#[must_use]
pub fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(Value::String(word)) => word,
        Ok(_) | Err(_) => String::new(),
    }
}

fn json(value: &impl Serialize) -> String {
    // It has nothing that JSON cannot hold.
    serde_json::to_string(value).unwrap_or_default()
}

fn parsed<T: DeserializeOwned>(row: &Row, at: usize) -> Result<T, AskError> {
    let text: String = row.try_get(at)?;
    serde_json::from_str(&text).map_err(|error| unreadable(&error))
}

fn of_word<T: DeserializeOwned>(row: &Row, at: usize) -> Result<T, AskError> {
    let text: String = row.try_get(at)?;
    serde_json::from_value(Value::String(text)).map_err(|error| unreadable(&error))
}

fn maybe_word<T: DeserializeOwned>(row: &Row, at: usize) -> Result<Option<T>, AskError> {
    match row.try_get::<_, Option<String>>(at)? {
        Some(_) => of_word(row, at).map(Some),
        None => Ok(None),
    }
}

fn unreadable(error: &serde_json::Error) -> AskError {
    AskError::Connection(format!("shardway.workflow cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_left_out_before_all_is_given_up() {
        let gone = BTreeSet::from(["s3".to_owned()]);
        let mut stored = Stored {
            id: "r1".to_owned(),
            record: Record::new(),
            token: 1,
            version: 1,
            plan: Arc::default(),
            knobs: Knobs {
                without: gone.clone(),
                ..Knobs::default()
            },
            progress: BTreeMap::new(),
            made_at: String::new(),
            changed_at: String::new(),
        };
        let mut left_out = |state, wanted| {
            (stored.record.state, stored.record.wanted) = (state, wanted);
            stored.without()
        };
        // Whoever said so was interrupted, or came while owners changed.
        for state in [State::Copy, State::Ready, State::Cutover, State::Reverse] {
            assert!(left_out(state, None).is_empty(), "{state:?}");
        }
        assert!(left_out(State::Cutover, Some(Wish::Abort)).is_empty());
        assert_eq!(left_out(State::Copy, Some(Wish::Abort)), gone);
        assert_eq!(left_out(State::Abort, None), gone);
    }
}
