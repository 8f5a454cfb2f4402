//! One moment of a source, seen on both sides: snapshots in which everything that was committed before it is there, and
//! nothing else.
//!
//! A temporary slot on the source says at which point of its WAL a snapshot is of; the stream of changes stops before the
//! first commit at or behind it, the destination takes its snapshot, and the stream goes on.
//!
//! What must stay true: the stream never passes the slot's point before the destination has its snapshot; it does not stand
//! still while the slot waits for transactions that were running before it.
//!
//! ```text
//!   stream stops ─▶ slot is asked for ─▶ (as long as it must wait: stream goes on to where the WAL ended a moment ago)
//!       ─▶ slot's point ─▶ stream goes on to it and stops ─▶ snapshot there ─▶ stream goes on
//! ```

use super::{super::asking::About as _, Unit};
use crate::{
    clock::{Clock, Duration, Instant},
    inspect::AskError,
    replication::connection::{Connection, Lifetime, Snapshot},
    reshard::{
        job::{Job, StepError},
        servers::Server,
    },
    sql::statement::quoted,
    wire::replication::Lsn,
};
use deadpool_postgres::Client;
use std::{collections::HashSet, future::Future};

/// Who lets a source's changes reach a point of its WAL, and no further.
pub trait Halts: Sync {
    /// Changes go on when it is dropped.
    type Halted: Send;

    /// Stops where the changes of a source stand: nothing made behind this is passed.
    ///
    /// # Errors
    /// [`StepError`]: it is not followed.
    fn halt(&self, source: &str) -> impl Future<Output = Result<Self::Halted, StepError>> + Send;

    /// Goes on until every destination has every commit of the source before this point, and none after it.
    ///
    /// # Errors
    /// [`StepError`].
    fn go_to(
        &self,
        source: &str,
        halted: Self::Halted,
        lsn: Lsn,
    ) -> impl Future<Output = Result<Self::Halted, StepError>> + Send;
}

/// How long a slot may wait for transactions that were running before it.
const PATIENCE: Duration = Duration::from_secs(600);
/// Whoever changes a table on both sides may have it on one, and wait on the other for this to end.
const LOCKS: &str = "SET lock_timeout = '5s'";
/// How often it is looked whether it waits.
const STEP: Duration = Duration::from_millis(10);
/// After which time that is told.
const TOLD: Duration = Duration::from_secs(2);

/// Connections to both sides of a pair of shards.
pub(super) struct Sides {
    pub(super) here: Client,
    pub(super) there: Client,
    watch: Client,
    slots: Connection,
    slot: String,
    what: String,
}

impl Sides {
    pub(super) async fn open(job: &Job, unit: &Unit<'_>) -> Result<Self, StepError> {
        let (source, destination, table) = unit.names();
        let what = format!("comparing {table} on {source} and {destination}");
        let watch = unit.source.sql().await.about(&what)?;
        let pid = watch.query_one("SELECT pg_backend_pid()", &[]).await;
        let pid: i32 = pid.about(&what)?.get(0);
        let [here, there] = [unit.source, unit.destination];
        let (here, there) = (
            here.sql().await.about(&what)?,
            there.sql().await.about(&what)?,
        );
        for client in [&here, &there] {
            client.batch_execute(LOCKS).await.about(&what)?;
        }
        let patient = Server {
            limit: PATIENCE,
            ..unit.source.clone()
        };
        Ok(Self {
            here,
            there,
            watch,
            slots: patient.stream().await.about(&what)?,
            // Its own on the server: one that an earlier comparison left goes when the server sees that nobody is there.
            slot: format!("shardway_{}_v{}_{pid}", job.id, job.token),
            what,
        })
    }

    /// Begins transactions on both sides with snapshots of one moment; how long changes stood still for it.
    pub(super) async fn begin<H: Halts>(
        &mut self,
        job: &Job,
        halts: &H,
        source: &str,
    ) -> Result<Duration, StepError> {
        let what = self.what.clone();
        let earlier = running(&self.watch).await.about(&what)?;
        // Before the slot, whose point changes would else have passed.
        let halted = halts.halt(source).await?;
        let still = Still {
            halted,
            since: Clock.now(),
        };
        let creating = self
            .slots
            .create_slot(&self.slot, Lifetime::Temporary, Snapshot::Exported);
        let mut creating = Box::pin(creating);
        let mut waiting = Waiting {
            job,
            what: &what,
            watch: &self.watch,
            waits: Waits::on(earlier),
            begun: Clock.now(),
            still,
        };
        let slot = loop {
            tokio::select! {
                slot = &mut creating => break slot.about(&what)?,
                () = tokio::time::sleep(STEP) => {}
            }
            waiting = waiting.step(halts, source).await?;
        };
        drop(creating);
        let Still { halted, since } = waiting.end();
        let shown = slot.snapshot.unwrap_or_default();
        begin(&self.here, Some(&shown)).await.about(&what)?;
        let halted = halts.go_to(source, halted, slot.consistent).await?;
        begin(&self.there, None).await.about(&what)?;
        drop(halted);
        let stood = Clock.now().duration_since(since);
        // By name, as the server may take its time to notice that a connection is gone.
        self.slots.drop_slot(&self.slot).await.about(&what)?;
        Ok(stood)
    }

    pub(super) async fn end(&self) -> Result<(), StepError> {
        for client in [&self.here, &self.there] {
            client.batch_execute("COMMIT").await.about(&self.what)?;
        }
        Ok(())
    }
}

/// The stream, which stands, and the moment up to which nothing is missing.
struct Still<H> {
    halted: H,
    since: Instant,
}

/// While the slot is made.
struct Waiting<'a, H> {
    job: &'a Job,
    what: &'a str,
    watch: &'a Client,
    waits: Waits,
    begun: Instant,
    still: Still<H>,
}

impl<H: Send> Waiting<'_, H> {
    /// Lets the stream go on to where the WAL ended a moment ago, if the slot's point is surely behind that.
    async fn step<T: Halts<Halted = H>>(
        mut self,
        halts: &T,
        source: &str,
    ) -> Result<Self, StepError> {
        let since = Clock.now();
        // The end first: who still runs after it was read ends behind it.
        let end = self.watch.query_one(END, &[]).await.about(self.what)?;
        let end: tokio_postgres::types::PgLsn = end.get(0);
        let running = running(self.watch).await.about(self.what)?;
        if self.waits.last(&running) {
            let halted = halts.go_to(source, self.still.halted, Lsn(u64::from(end)));
            self.still = Still {
                halted: halted.await?,
                since,
            };
            if Clock.now().duration_since(self.begun) > TOLD {
                let told = format!("transactions that have been running on {source} for a while");
                self.job.progress.set("waiting_for", told);
            }
        }
        Ok(self)
    }

    fn end(self) -> Still<H> {
        if Clock.now().duration_since(self.begun) > TOLD {
            self.job
                .progress
                .set("waiting_for", serde_json::Value::Null);
        }
        self.still
    }
}

/// Transactions that a slot has to wait for, as far as is known: those that ran before it was asked for, and those that
/// began before all of these had ended (PostgreSQL waits twice, `src/backend/replication/logical/snapbuild.c`).
#[derive(Debug)]
struct Waits {
    first: HashSet<i64>,
    all: HashSet<i64>,
}

impl Waits {
    fn on(first: Vec<i64>) -> Self {
        let first: HashSet<i64> = first.into_iter().collect();
        Self {
            all: first.clone(),
            first,
        }
    }

    /// Whether the slot surely waits for one of those that run now.
    fn last(&mut self, running: &[i64]) -> bool {
        if running.iter().any(|it| self.first.contains(it)) {
            self.all.extend(running);
        }
        running.iter().any(|it| self.all.contains(it))
    }
}

const END: &str = "SELECT pg_current_wal_insert_lsn()";

/// Every transaction that has written something and has not ended.
async fn running(client: &Client) -> Result<Vec<i64>, tokio_postgres::Error> {
    const SQL: &str = "SELECT xid::text::int8 FROM pg_snapshot_xip(pg_current_snapshot()) xid";
    let rows = client.query(SQL, &[]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Begins a transaction with a snapshot: that which was exported, or one of its own, taken at once.
async fn begin(client: &Client, snapshot: Option<&str>) -> Result<(), AskError> {
    let shown = match snapshot {
        Some(snapshot) => format!("SET TRANSACTION SNAPSHOT {}", quoted(snapshot)),
        None => "SELECT pg_current_snapshot()".to_owned(),
    };
    let begin = format!("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; {shown}");
    Ok(client.batch_execute(&begin).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_waits_for_who_ran_before_it_and_for_who_began_before_these_ended() {
        let mut waits = Waits::on(vec![5, 7]);
        assert!(waits.last(&[7, 9]));
        assert!(waits.last(&[9, 11]), "9 began before 7 had ended");
        assert!(!waits.last(&[11, 12]), "11 was first seen when 7 had ended");
        let mut waits = Waits::on(Vec::new());
        assert!(!waits.last(&[3]), "nothing ran before");
    }
}
