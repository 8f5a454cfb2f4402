//! Waits for whoever reads on a shard what is about to go there, or to be written without it.
//!
//! What must stay true: whoever was there when it was first looked is waited for, and nobody who came later: they know.

use super::{
    asking::{About as _, connection, named},
    records::taking_part,
};
use crate::{
    clock::Duration,
    reshard::job::{Job, StepError},
};
use deadpool_postgres::Client;
use std::collections::BTreeSet;

/// Who is in a transaction on this database now, or in a statement: everybody may see their numbers. What kind of process
/// one is, only who may read all statistics: others wait for whoever works as a role.
const UNDER_WAY: &str = "\
SELECT l.virtualxid, l.pid::int4 FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
WHERE l.locktype = 'virtualxid' AND l.granted AND l.pid <> pg_backend_pid() \
  AND coalesce(a.backend_type, 'client backend') = 'client backend' AND a.usesysid IS NOT NULL AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())";
/// What is prepared there: its rows come when it is committed, whoever has gone meanwhile.
const PREPARED: &str = "SELECT gid, 0 FROM pg_prepared_xacts WHERE database = current_database()";
/// How often it is looked for whether they have ended, and for how long at a time.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 100;

/// Who is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Who {
    /// Whose snapshot may be of before.
    Reads,
    /// And whoever may have written.
    Wrote,
}

/// Waits until everybody is gone who may read reference tables on these shards, before others write without them. Every
/// proxy knows that they own nothing, so that nobody else begins to.
///
/// # Errors
/// [`StepError::Again`] as well: somebody is there.
pub async fn unread(job: &Job, shards: &[String]) -> Result<(), StepError> {
    for shard in shards {
        let client = connection(named(job, shard)?).await?;
        let what = format!("letting shard {shard} serve no more");
        until_gone(&client, (Who::Wrote, "when it owned keys"), what).await?;
    }
    Ok(())
}

/// Waits until everybody is gone who may still see rows that a shard does not own, or see a new owner as it was before rows
/// came: a snapshot that is older than their deletion, or than the last change of owners.
///
/// # Errors
/// [`StepError::Again`] as well: somebody is there.
pub async fn unseen(job: &Job) -> Result<(), StepError> {
    for server in taking_part(job) {
        let client = connection(&server).await?;
        let what = format!(
            "waiting until nobody on shard {} may see rows as they were",
            server.name
        );
        until_gone(&client, (Who::Reads, "before"), what).await?;
    }
    Ok(())
}

/// Waits until the transactions that are under way have ended: they may read there still, or have written.
pub(super) async fn until_gone(
    client: &Client,
    (who, when): (Who, &str),
    what: String,
) -> Result<(), StepError> {
    let mut before: Option<BTreeSet<(String, i32)>> = None;
    for _look in 0..LOOKS {
        let mut rows = client.query(UNDER_WAY, &[]).await.about(&what)?;
        if who == Who::Wrote {
            rows.extend(client.query(PREPARED, &[]).await.about(&what)?);
        }
        let now: BTreeSet<_> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let left = match before {
            None => now,
            Some(before) => before.intersection(&now).cloned().collect(),
        };
        if left.is_empty() {
            return Ok(());
        }
        before = Some(left);
        tokio::time::sleep(LOOK).await;
    }
    let left = before.unwrap_or_default().into_iter();
    let left: Vec<String> = left
        .map(|(name, process)| match process {
            0 => format!("prepared transaction {name:?}"),
            process => format!("process {process}"),
        })
        .collect();
    Err(StepError::Again {
        what,
        problem: format!(
            "it goes on when transactions have ended that began {when}: {}",
            left.join(", ")
        ),
    })
}
