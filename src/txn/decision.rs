//! The row that decides, and the end of prepared parts: what the control role says to one server.
//!
//! What must stay true: a commit row counts only if the role that prepared made it; every other row under the same key
//! means abort, because with it in place no commit can follow.

use crate::{
    inspect::AskError,
    registry::{Lease, errand},
};

/// What a decider has said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Committed,
    Aborted,
}

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

const ABORT: &str = "INSERT INTO shardway.decision (transaction, outcome) VALUES ($1, 'abort') \
                     ON CONFLICT (transaction) DO NOTHING";
const DECIDED: &str = "SELECT outcome = 'commit' AND owner = $2::text::name FROM shardway.decision \
                       WHERE transaction = $1";
/// undefined_object: no prepared transaction of that name.
const NO_SUCH: &str = "42704";

/// Reads the decision; where there is none yet, decides to abort. Waits, within limits, for a decider whose commit is
/// under way (55P03 when it takes longer).
///
/// # Errors
/// [`AskError`]: nothing is known; ask again.
pub(super) async fn decide(lease: Lease, id: &str, owner: &str) -> Result<Outcome, AskError> {
    let outcome = errand(async {
        if lease.execute(ABORT, &[&id]).await? == 1 {
            return Ok(Outcome::Aborted);
        }
        let row = lease.query_one(DECIDED, &[&id, &owner]).await?;
        Ok(if row.try_get(0)? {
            Outcome::Committed
        } else {
            Outcome::Aborted
        })
    })
    .await?;
    lease.done();
    Ok(outcome)
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
