//! What a reshard costs its sources: the WAL that its slots keep, and how old a snapshot the server has to respect.
//!
//! What must stay true: a slot that the server has invalidated stops the run with that reason, before anything is concluded
//! from a stream that has a gap; nothing is asked that is not cheap.

use super::job::{Job, StepError};
use crate::inspect::AskError;

/// How many transactions back a server's oldest snapshot may be before it is told: vacuum waits for it.
const OLD: i64 = 50_000_000;

const SLOT: &str = "\
SELECT coalesce(s.wal_status, 'none'), s.safe_wal_size, \
    (pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn))::int8, \
    (SELECT max(greatest(age(backend_xmin), age(backend_xid))) FROM pg_stat_activity)::int8 \
FROM pg_replication_slots s WHERE s.slot_name = $1";

/// Looks at every source, shows what it sees, and stops what must not go on.
///
/// # Errors
/// [`StepError::Lost`]; [`StepError::Halt`]: a slot keeps more than the limit.
pub(super) async fn look(job: &Job) -> Result<(), StepError> {
    let most = job.knobs.borrow().wal_kept;
    for source in job.sources() {
        let slot = job.slot(&source.name);
        let asked = async {
            let client = source.sql().await?;
            Ok::<_, AskError>(client.query_opt(SLOT, &[&slot]).await?)
        };
        // A server that cannot be asked is the matter of whoever needs it.
        let Ok(Some(row)) = asked.await else {
            continue;
        };
        let (status, kept): (String, Option<i64>) = (row.get(0), row.get(2));
        let (left, age): (Option<i64>, Option<i64>) = (row.get(1), row.get(3));
        let kept = u64::try_from(kept.unwrap_or(0)).unwrap_or(0);
        let name = |what: &str| format!("source.{}.{what}", source.name);
        job.progress.set(name("wal_kept"), kept);
        job.progress.set(name("wal_status"), status.as_str());
        job.progress.set(name("wal_left"), left);
        job.progress.set(name("oldest_snapshot"), age);
        if status == "lost" {
            return Err(StepError::Lost {
                what: format!(
                    "shard {} has invalidated slot {slot}: max_slot_wal_keep_size is too little there",
                    source.name
                ),
            });
        }
        if kept > most {
            return Err(StepError::Halt {
                what: format!(
                    "shard {} keeps {kept} bytes of WAL for slot {slot}, more than {most}",
                    source.name
                ),
                remedy: "resume with a higher limit (reshard set wal_kept=...), or abort"
                    .to_owned(),
            });
        }
        if age.is_some_and(|age| age > OLD) {
            job.progress.set(
                name("notice"),
                "a transaction there is so old that vacuum waits for it",
            );
        }
    }
    Ok(())
}
