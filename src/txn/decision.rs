//! The row that decides, and the end of prepared parts: what the control role says to one server.
//!
//! What must stay true: a commit row counts only if the role that prepared made it; every other row under the same key
//! means abort, because with it in place no commit can follow.

use crate::{
    clock::{Duration, SystemTime},
    inspect::AskError,
    metrics::transactions::Outcome,
    registry::{Lease, errand},
};
use tokio_postgres::Row;

/// What is done with a prepared part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    Commit,
    Rollback,
}

/// Whether a part was still there to be finished.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finished {
    Now,
    /// The server knows no such part: it was finished before, or never prepared.
    NotFound,
}

/// A part as PostgreSQL knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    pub(super) gid: String,
    /// `None`: the role is gone.
    pub(super) owner: Option<String>,
    pub(super) since: SystemTime,
    pub(super) age: Age,
}

/// Whether the absence of a decision still says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    Young,
    Old,
}

const WAIT: &str = "SELECT set_config('lock_timeout', $1, false)";
const ABORT: &str = "INSERT INTO shardway.decision (transaction, outcome) VALUES ($1, 'abort') \
                     ON CONFLICT (transaction) DO NOTHING";
const DECIDED: &str = "SELECT outcome = 'commit' AND owner = $2::text::name FROM shardway.decision \
                       WHERE transaction = $1";
const PREPARED: &str = "\
SELECT gid, owner::text, prepared, prepared < now() - make_interval(secs => $2) FROM pg_prepared_xacts \
WHERE starts_with(gid, $1) AND database = current_database() ORDER BY prepared, gid";
const FORGET: &str = "\
DELETE FROM shardway.decision WHERE transaction IN ( \
    SELECT transaction FROM shardway.decision WHERE decided_at < now() - make_interval(secs => $1) \
    AND xid < pg_snapshot_xmin(pg_current_snapshot()) AND NOT transaction = ANY ($2) LIMIT 10000)";
/// undefined_object: no prepared transaction of that name.
const NO_SUCH: &str = "42704";

/// Reads the decision; where there is none yet, decides to abort. Waits that long for a decider whose commit is under
/// way (55P03 when it takes longer).
///
/// # Errors
/// [`AskError`]: nothing is known; ask again.
pub(super) async fn decide(
    lease: Lease,
    id: &str,
    owner: &str,
    wait: Duration,
) -> Result<Outcome, AskError> {
    let outcome = errand(async {
        let wait = wait.as_millis().to_string();
        lease.execute(WAIT, &[&wait]).await?;
        if lease.execute(ABORT, &[&id]).await? == 1 {
            return Ok(Outcome::Aborted);
        }
        let row = lease.query_one(DECIDED, &[&id, &owner]).await?;
        outcome(&row)
    })
    .await?;
    lease.done();
    Ok(outcome)
}

/// Reads the decision, and makes none.
///
/// # Errors
/// [`AskError`].
pub(super) async fn read(lease: Lease, id: &str, owner: &str) -> Result<Option<Outcome>, AskError> {
    let outcome = errand(async {
        let row = lease.query_opt(DECIDED, &[&id, &owner]).await?;
        row.map(|row| outcome(&row)).transpose()
    })
    .await?;
    lease.done();
    Ok(outcome)
}

fn outcome(row: &Row) -> Result<Outcome, AskError> {
    Ok(if row.try_get(0)? {
        Outcome::Committed
    } else {
        Outcome::Aborted
    })
}

/// Everything of this installation that is prepared in the lease's database; those are old that were prepared longer
/// ago than that.
///
/// # Errors
/// [`AskError`].
pub(super) async fn prepared(
    lease: Lease,
    prefix: &str,
    old: Duration,
) -> Result<Vec<Prepared>, AskError> {
    let prepared = errand(async {
        let rows = lease
            .query(PREPARED, &[&prefix, &old.as_secs_f64()])
            .await?;
        let read = |row: &Row| -> Result<Prepared, AskError> {
            Ok(Prepared {
                gid: row.try_get(0)?,
                owner: row.try_get(1)?,
                since: row.try_get(2)?,
                age: if row.try_get(3)? {
                    Age::Old
                } else {
                    Age::Young
                },
            })
        };
        rows.iter().map(read).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    lease.done();
    Ok(prepared)
}

/// Forgets the decisions that are older than that, except of the transactions in `kept`. A row outlives whatever was
/// running at its shard when it was made: what it forbids to commit could be there still.
///
/// # Errors
/// [`AskError`].
pub(super) async fn forget(
    lease: Lease,
    retention: Duration,
    kept: &[String],
) -> Result<u64, AskError> {
    let forgotten = errand(async {
        Ok(lease
            .execute(FORGET, &[&retention.as_secs_f64(), &kept])
            .await?)
    })
    .await?;
    lease.done();
    Ok(forgotten)
}

/// Finishes a prepared part as the role that prepared it.
///
/// # Errors
/// [`AskError`]: nothing is known.
pub(super) async fn finish(
    lease: Lease,
    gid: &str,
    owner: &str,
    how: Finish,
) -> Result<Finished, AskError> {
    let verb = match how {
        Finish::Commit => "COMMIT",
        Finish::Rollback => "ROLLBACK",
    };
    let finished = errand(async {
        lease
            .batch_execute(&format!("SET ROLE {}", identifier(owner)))
            .await?;
        let end = format!("{verb} PREPARED {}", literal(gid));
        let finished = match lease.batch_execute(&end).await.map_err(AskError::from) {
            Ok(()) => Finished::Now,
            Err(AskError::Server { sqlstate, .. }) if sqlstate == NO_SUCH => Finished::NotFound,
            Err(error) => return Err(error),
        };
        lease.batch_execute("RESET ROLE").await?;
        Ok(finished)
    })
    .await?;
    lease.done();
    Ok(finished)
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string constant whatever `standard_conforming_strings` says: names have no backslash ([`super::gid::fits`]).
fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}
