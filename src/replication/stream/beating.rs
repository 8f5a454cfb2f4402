//! Heartbeats: a row on the source that is written every second, so that its slot moves although nothing else happens, and
//! everybody knows how late what is applied is.
//!
//! What must stay true: a runner that was replaced does not beat.

use super::{BEAT, Heard, Lsn, Whose};
use crate::clock::Clock;
use deadpool_postgres::Client;
use std::sync::Arc;
use tokio::{
    sync::{Notify, mpsc},
    time::{MissedTickBehavior, interval},
};
use tokio_postgres::types::{PgLsn, ToSql};

const BEAT_SQL: &str = "\
INSERT INTO shardway.fence AS f (workflow, attempt, token, beat) VALUES ($1, 0, $2, 1) \
ON CONFLICT (workflow, attempt) DO UPDATE SET beat = f.beat + 1, token = excluded.token, at = clock_timestamp() \
WHERE f.token <= excluded.token RETURNING beat, pg_current_wal_insert_lsn()";

/// Writes a row on the source every second, so that its slot moves although nothing else happens.
pub(super) async fn beat(
    client: Client,
    whose: Whose,
    sooner: Arc<Notify>,
    beats: mpsc::Sender<Heard>,
) {
    let mut every = interval(BEAT);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = sooner.notified() => {}
            () = beats.closed() => return,
        }
        let sent = Clock.now();
        let asked: [&(dyn ToSql + Sync); 2] = [&whose.workflow, &whose.token];
        let row = tokio::select! {
            row = client.query_opt(BEAT_SQL, &asked) => row,
            () = beats.closed() => return,
        };
        let heard = match row {
            // A runner with a higher token beats here; appliers say so.
            Ok(None) => continue,
            Ok(Some(row)) => {
                let end: PgLsn = row.get(1);
                Heard::Beat(row.get(0), sent, Lsn(end.into()))
            }
            Err(error) => Heard::Failed(error),
        };
        if beats.send(heard).await.is_err() {
            return;
        }
    }
}
