//! Whoever copied before: earlier runners, and earlier runs of this one that were given up.
//!
//! What must stay true: nobody is ended who runs it now.

use super::super::{
    asking::{About as _, connection},
    records,
};
use crate::{
    clock::Duration,
    reshard::job::{Job, StepError},
};

/// How often a server is asked again that tells nobody.
const PAUSE: Duration = Duration::from_millis(5);

const STANDBY: &str = "SELECT pg_is_in_recovery()";
/// Sessions that copy for it, of this runner and of earlier ones.
const OTHERS: &str = "\
FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() \
     AND substring(application_name FROM '^shardway copy ' || $1 || ' ([0-9]{1,18})$')::int8 <= $2";

/// What a session that copies is called.
pub(super) fn called(job: &Job) -> String {
    format!("shardway copy {} {}", job.id, job.token)
}

/// Makes this runner the one that copies, on every shard that takes part, and ends what others have left.
pub(super) async fn replace(job: &Job) -> Result<(), StepError> {
    for server in records::taking_part(job) {
        let client = connection(&server).await?;
        let what = format!("asking shard {}", server.name);
        let standby = client.query_one(STANDBY, &[]).await;
        if standby.about(&what)?.get(0) {
            return Err(on_standby(&server.name));
        }
        records::claim(&client, job).await?;
    }
    stop(job).await
}

/// Ends every session that copies for it, and waits until none is left: what it has not committed is gone then, and nothing
/// of it is committed later.
///
/// # Errors
/// [`StepError`].
pub async fn stop(job: &Job) -> Result<(), StepError> {
    for server in records::taking_part(job) {
        let client = connection(&server).await?;
        let what = format!("ending earlier copies on shard {}", server.name);
        let (end, left) = (
            format!("SELECT pg_terminate_backend(pid) {OTHERS}"),
            format!("SELECT pid {OTHERS}"),
        );
        let ended = client.execute(&end, &[&job.id, &job.token]).await;
        ended.about(&what)?;
        loop {
            let left = client.query(&left, &[&job.id, &job.token]).await;
            if left.about(&what)?.is_empty() {
                break;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    Ok(())
}

/// The snapshot of a standby does not tell which transactions run: a change would be lost.
fn on_standby(shard: &str) -> StepError {
    StepError::Halt {
        what: format!(
            "the address of shard {shard} leads to a standby, and rows are copied between primaries only"
        ),
        remedy: format!("let shard {shard} have the address of its primary"),
    }
}
