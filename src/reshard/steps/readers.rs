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

/// Who is in a transaction on this database now, or in a statement: everybody may see their numbers.
const UNDER_WAY: &str = "\
SELECT l.virtualxid, l.pid::int4 FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid \
WHERE l.locktype = 'virtualxid' AND l.granted AND l.pid <> pg_backend_pid() \
  AND a.backend_type = 'client backend' AND a.datid = (SELECT oid FROM pg_database WHERE datname = current_database())";
/// How often it is looked for whether they have ended, and for how long at a time.
const LOOK: Duration = Duration::from_millis(100);
const LOOKS: u32 = 100;

/// Waits until everybody is gone who may read reference tables on these shards, before others write without them. Every
/// proxy knows that they own nothing, so that nobody else begins to.
///
/// # Errors
/// [`StepError::Again`] as well: somebody is there.
pub async fn unread(job: &Job, shards: &[String]) -> Result<(), StepError> {
    for shard in shards {
        let client = connection(named(job, shard)?).await?;
        let what = format!("letting shard {shard} serve no more");
        until_gone(&client, what, "when it owned keys").await?;
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
        until_gone(&client, what, "before").await?;
    }
    Ok(())
}

/// Waits until the transactions that are under way have ended: they may read there still.
pub(super) async fn until_gone(client: &Client, what: String, when: &str) -> Result<(), StepError> {
    let mut before: Option<BTreeSet<(String, i32)>> = None;
    for _look in 0..LOOKS {
        let rows = client.query(UNDER_WAY, &[]).await.about(&what)?;
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
    let left: Vec<String> = left.map(|(_, process)| process.to_string()).collect();
    Err(StepError::Again {
        what,
        problem: format!(
            "processes {} are in transactions that began {when}: it goes on when they have ended",
            left.join(", ")
        ),
    })
}
