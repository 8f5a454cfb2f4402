//! Changes of the map by a reshard, each one transaction on the home shard.
//!
//! What must stay true: a flip happens only while its attempt still holds statements back, only from the map that it was
//! planned for, and together with its workflow's own records; who has been replaced as the runner changes nothing. An
//! error of [`Unflipped::Ask`] says nothing about whether it happened: the row of the hold does.

use super::{AskError, Lease, Registry, errand, map};
use crate::{
    catalog::ownership::{Content, Moving, Ownership},
    inspect::at_once,
};
use tokio_postgres::types::{ToSql, Type};

/// The map at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapNow {
    pub epoch: i64,
    pub content: Content,
}

impl MapNow {
    /// As it is kept.
    #[must_use]
    pub fn text(&self) -> String {
        map::text(&self.content)
    }
}

/// A change of owners.
#[derive(Clone, Debug)]
pub struct Flip {
    pub workflow: String,
    pub attempt: i32,
    /// The runner's.
    pub token: i64,
    /// The number of the map that `after` was made from.
    pub expected: i64,
    pub after: Ownership,
    /// What is on other shards from then on, because of this workflow.
    pub doubled: Vec<Moving>,
    /// Shards that serve from then on.
    pub joins: Vec<String>,
}

/// A statement of the workflow's own records that belongs to the same transaction.
pub struct Record {
    pub sql: String,
    pub values: Vec<(Box<dyn ToSql + Send + Sync>, Type)>,
    /// How many rows it must touch: else nothing happens at all. `None`: as many as there are.
    pub rows: Option<u64>,
}

/// What a change has made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flipped {
    /// The map's number.
    pub epoch: i64,
    /// The number by which all proxies hear of it, as of a schema change.
    pub announced: i64,
}

/// Why the map was not changed.
#[derive(Debug, thiserror::Error)]
pub enum Unflipped {
    /// It may have been, if the question was the last.
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error("there is no map yet")]
    NoMap,
    #[error("the map has number {found}")]
    Changed { found: i64 },
    #[error("statements are not held back any more")]
    NotHeld,
    #[error("another process runs it")]
    Replaced,
    /// One of the records touched another number of rows.
    #[error("record {at} touched {rows} rows")]
    Record { at: usize, rows: u64 },
}

/// Locks the map until the end of the transaction, so that nobody adds to it meanwhile.
const LOCK: &str = "SELECT epoch, content::text FROM shardway.map FOR UPDATE";
/// The workflow is run by nobody later than the asker. Locked, so that nobody replaces it until the end.
const RUNS: &str = "SELECT FROM shardway.workflow WHERE id = $1 AND token <= $2 FOR UPDATE";
const COMMIT_HOLD: &str = "\
UPDATE shardway.hold SET state = 'committed', activating = true, helped = clock_timestamp() \
WHERE workflow = $1 AND attempt = $2 AND state = 'held'";
const WRITE: &str = "\
UPDATE shardway.map SET epoch = epoch + 1, content = $1::text::jsonb, made_at = now(), made_by = $2 RETURNING epoch";
const TELL: &str = "\
WITH told AS (UPDATE shardway.epoch SET epoch = epoch + 1 RETURNING epoch) \
SELECT epoch, pg_notify('shardway', epoch::text) FROM told";

impl std::fmt::Debug for Record {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Record")
            .field("sql", &self.sql)
            .finish_non_exhaustive()
    }
}

impl From<tokio_postgres::Error> for Unflipped {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Ask(error.into())
    }
}

impl Registry {
    /// The map as the home shard has it now.
    ///
    /// # Errors
    /// `Ask`, `NoMap`.
    pub async fn read_map(&self) -> Result<MapNow, Unflipped> {
        let lease = self.lease(self.home).await?;
        let read = errand(map::read(&lease)).await?;
        lease.done();
        let (epoch, content) = read.ok_or(Unflipped::NoMap)?;
        Ok(MapNow { epoch, content })
    }

    /// Says what is on a shard that does not own it because of this workflow: all of it, in the place of what was said.
    /// Changes nothing, and announces nothing, if it says so already.
    ///
    /// # Errors
    /// `Ask`, `NoMap`, `Replaced`.
    pub async fn set_moving(
        &self,
        workflow: &str,
        doubled: &[Moving],
        token: i64,
    ) -> Result<Flipped, Unflipped> {
        self.change_map(workflow, token, |now| now.doubling(workflow, doubled))
            .await
    }

    /// These serve no more, if they own no keys: a reshard that they had joined with is given up.
    ///
    /// # Errors
    /// [`Unflipped`].
    pub async fn leave_map(
        &self,
        workflow: &str,
        leaving: &[String],
        token: i64,
    ) -> Result<Flipped, Unflipped> {
        self.change_map(workflow, token, |now| now.left_by(leaving))
            .await
    }

    async fn change_map(
        &self,
        workflow: &str,
        token: i64,
        change: impl FnOnce(Content) -> Content,
    ) -> Result<Flipped, Unflipped> {
        let lease = self.lease(self.home).await?;
        let changed = within(async {
            lease.batch_execute("BEGIN").await?;
            let now = locked(&lease).await?;
            still_runs(&lease, workflow, token).await?;
            let content = change(now.content.clone());
            let flipped = if content == now.content {
                let epoch = lease
                    .query_one("SELECT epoch FROM shardway.epoch", &[])
                    .await?;
                Flipped {
                    epoch: now.epoch,
                    announced: epoch.try_get(0)?,
                }
            } else {
                write(&lease, &content, workflow).await?
            };
            lease.batch_execute("COMMIT").await?;
            Ok(flipped)
        });
        let flipped = Box::pin(changed).await?;
        lease.done();
        Ok(flipped)
    }

    /// Gives keys to their new owners, if the attempt still holds statements back and the map is the one that was
    /// expected; the records are written with it or nothing is.
    ///
    /// # Errors
    /// [`Unflipped`].
    pub async fn flip(&self, flip: &Flip, records: &[Record]) -> Result<Flipped, Unflipped> {
        let lease = self.lease(self.home).await?;
        let changed = within(async {
            let attempt: [(&(dyn ToSql + Sync), Type); 2] =
                [(&flip.workflow, Type::TEXT), (&flip.attempt, Type::INT4)];
            // Statements wait: all at once, answered one after the other.
            let (begun, now, runs, held) = tokio::join!(
                biased;
                lease.batch_execute("BEGIN"),
                locked(&lease),
                still_runs(&lease, &flip.workflow, flip.token),
                lease.execute_typed(COMMIT_HOLD, &attempt),
            );
            begun?;
            let now = now?;
            if now.epoch != flip.expected {
                return Err(Unflipped::Changed { found: now.epoch });
            }
            runs?;
            if held? != 1 {
                return Err(Unflipped::NotHeld);
            }
            let (after, doubled) = (flip.after.clone(), &flip.doubled);
            let content = now.content;
            let content = content.flipped(after, &flip.workflow, doubled, &flip.joins);
            let recorded = records.iter().map(|record| write_record(&lease, record));
            let (recorded, flipped) = tokio::join!(
                biased;
                at_once(recorded.collect()),
                write(&lease, &content, &flip.workflow),
            );
            for (at, (record, rows)) in records.iter().zip(recorded).enumerate() {
                let rows = rows?;
                if record.rows.is_some_and(|wanted| wanted != rows) {
                    return Err(Unflipped::Record { at, rows });
                }
            }
            let flipped = flipped?;
            lease.batch_execute("COMMIT").await?;
            Ok(flipped)
        });
        let flipped = Box::pin(changed).await?;
        lease.done();
        Ok(flipped)
    }
}

/// Within the time of an errand.
async fn within<T>(task: impl Future<Output = Result<T, Unflipped>>) -> Result<T, Unflipped> {
    errand(async { Ok(task.await) }).await?
}

async fn locked(lease: &Lease) -> Result<MapNow, Unflipped> {
    let row = lease.query_typed_opt(LOCK, &[]).await?;
    let row = row.ok_or(Unflipped::NoMap)?;
    let content: String = row.try_get(1)?;
    Ok(MapNow {
        epoch: row.try_get(0)?,
        content: map::parsed(&content)?,
    })
}

async fn still_runs(lease: &Lease, workflow: &str, token: i64) -> Result<(), Unflipped> {
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&workflow, Type::TEXT), (&token, Type::INT8)];
    let found = lease.query_typed_opt(RUNS, &values).await?;
    found.map(drop).ok_or(Unflipped::Replaced)
}

async fn write_record(lease: &Lease, record: &Record) -> Result<u64, tokio_postgres::Error> {
    let values = record.values.iter();
    let values: Vec<(&(dyn ToSql + Sync), Type)> = values
        .map(|(value, kind)| -> (&(dyn ToSql + Sync), Type) { (&**value, kind.clone()) })
        .collect();
    lease.execute_typed(&record.sql, &values).await
}

async fn write(lease: &Lease, content: &Content, by: &str) -> Result<Flipped, Unflipped> {
    let text = map::text(content);
    let values: [(&(dyn ToSql + Sync), Type); 2] = [(&text, Type::TEXT), (&by, Type::TEXT)];
    let (made, told) = tokio::join!(
        biased;
        lease.query_typed_one(WRITE, &values),
        lease.query_typed_one(TELL, &[]),
    );
    Ok(Flipped {
        epoch: made?.try_get(0)?,
        announced: told?.try_get(0)?,
    })
}
