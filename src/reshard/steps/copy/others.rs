//! Whoever copied or applied before: earlier runners, and earlier tries of this one that were given up.
//!
//! What must stay true: nobody is ended who runs it now; what is ended is waited for, within a bound.

use super::super::{
    asking::{About as _, connection},
    records,
};
use crate::{
    clock::{Clock, Duration},
    reshard::job::{Job, StepError},
};
use deadpool_postgres::Client;

/// How often a server is asked again that tells nobody.
const PAUSE: Duration = Duration::from_millis(5);

const STANDBY: &str = "SELECT pg_is_in_recovery()";
/// How long sessions have for ending.
const ENDING: Duration = Duration::from_secs(10);
/// Sessions that copy or apply for it, of runners up to one.
const OTHERS: &str = "\
FROM pg_stat_activity WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() \
     AND substring(application_name FROM '^shardway (?:copy|apply) ' || $1 || ' ([0-9]{1,18})$')::int8 <= $2";

/// What a session that copies is called.
pub(super) fn called(job: &Job) -> String {
    format!("shardway copy {} {}", job.id, job.token)
}

/// What a session that applies changes is called.
pub fn applying(job: &Job) -> String {
    format!("shardway apply {} {}", job.id, job.token)
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

/// Ends every session that copies or applies for it, and waits until none is left: what it has not committed is gone then,
/// and nothing of it is committed later.
///
/// # Errors
/// [`StepError`].
pub async fn stop(job: &Job) -> Result<(), StepError> {
    for server in records::taking_part(job) {
        end(&connection(&server).await?, job, (&server.name, job.token)).await?;
    }
    Ok(())
}

/// The same on one shard, of runners up to one.
pub async fn end(client: &Client, job: &Job, (shard, token): (&str, i64)) -> Result<(), StepError> {
    let what = format!("ending what was begun before on shard {shard}");
    let (end, left) = (
        format!("SELECT pg_terminate_backend(pid) {OTHERS}"),
        format!("SELECT pid {OTHERS}"),
    );
    let ended = client.execute(&end, &[&job.id, &token]).await;
    ended.about(&what)?;
    let began = Clock.now();
    loop {
        let left = client.query(&left, &[&job.id, &token]).await;
        let left = left.about(&what)?;
        if left.is_empty() {
            return Ok(());
        }
        if Clock.now().duration_since(began) > ENDING {
            let left: Vec<String> = left
                .iter()
                .map(|it| it.get::<_, i32>(0).to_string())
                .collect();
            return Err(StepError::Again {
                what,
                problem: format!("processes {} do not end", left.join(", ")),
            });
        }
        tokio::time::sleep(PAUSE).await;
    }
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
