//! The slot of a reshard on a source: made, waited for, looked at, dropped.
//!
//! What must stay true: its publication is there before it; when the barrier is passed, every transaction is either seen by
//! each later snapshot or streamed whole; a slot that is dropped is read by nobody.

use super::connection::{Connection, Lifetime, ReplicationError, Snapshot};
use crate::{clock::Duration, wire::replication::Lsn};
use tokio_postgres::Client;

/// How often a server is asked again that tells nobody.
const PAUSE: Duration = Duration::from_millis(20);

/// Why a slot could not be made, looked at or dropped.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    #[error(transparent)]
    Sql(#[from] tokio_postgres::Error),
    #[error(transparent)]
    Replication(#[from] ReplicationError),
    /// Transactions of before run on.
    #[error("transactions that run since before it go on: {}", .0.join("; "))]
    Waiting(Vec<String>),
    #[error("the server tells a slot's position in a way that is not understood")]
    NotUnderstood,
}

/// Whether there was one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// What is committed from here on is streamed.
    Made(Lsn),
    Found(Lsn),
}

/// What a server says of a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Up to here changes are confirmed; none while the slot is being made.
    pub confirmed: Option<Lsn>,
    /// From here on WAL is kept.
    pub restart: Option<Lsn>,
    /// Bytes of WAL that are kept for it.
    pub kept: i64,
    pub wal: WalStatus,
    /// Bytes of WAL that may still be written before it is lost; none: without a limit.
    pub safe: Option<i64>,
    /// The process that reads it.
    pub reader: Option<i32>,
}

/// `pg_replication_slots.wal_status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalStatus {
    Reserved,
    /// More than `max_wal_size` is kept.
    Extended,
    /// It may be lost at the next checkpoint.
    Unreserved,
    /// What it needs is gone: the copy begins anew.
    Lost,
}

/// Makes a persistent slot. One that was left in the making by an earlier attempt, or is lost, is made anew.
///
/// # Errors
/// [`SlotError`]; [`ReplicationError::Timeout`] while transactions of before go on: the error tells which.
pub async fn make(
    source: &Client,
    commands: &mut Connection,
    name: &str,
) -> Result<Slot, SlotError> {
    if let Some(found) = state(source, name).await? {
        if let Some(confirmed) = found.confirmed
            && found.wal != WalStatus::Lost
        {
            return Ok(Slot::Found(confirmed));
        }
        remove(source, commands, name).await?;
    }
    let made = commands.create_slot(name, Lifetime::Persistent, Snapshot::Nothing);
    Ok(Slot::Made(made.await?.consistent))
}

/// Waits until every transaction is over that runs now. After it each snapshot sees what the slot does not stream. `limit`:
/// after so long it tells whom it waits for, to be called again.
///
/// # Errors
/// [`SlotError::Waiting`], [`SlotError::Sql`].
pub async fn barrier(source: &Client, limit: Duration) -> Result<(), SlotError> {
    const PASSED: &str = "SELECT pg_snapshot_xmin(pg_current_snapshot()) >= $1::text::xid8";
    let next: String = source.query_one(NEXT, &[]).await?.try_get(0)?;
    let passed = async {
        loop {
            if source.query_one(PASSED, &[&next]).await?.try_get(0)? {
                return Ok(());
            }
            tokio::time::sleep(PAUSE).await;
        }
    };
    match tokio::time::timeout(limit, passed).await {
        Ok(passed) => passed,
        Err(_elapsed) => Err(SlotError::Waiting(older(source, &next).await?)),
    }
}

/// A number of a transaction, after all that are running. A snapshot's xmax is not: it is after the last that has ended.
const NEXT: &str = "SELECT pg_current_xact_id()::text";

/// Who has a transaction with a number below this one, in words.
async fn older(source: &Client, next: &str) -> Result<Vec<String>, tokio_postgres::Error> {
    // Numbers of 32 bits: whoever runs is less than 2^31 behind.
    const SQL: &str = "\
SELECT format('process %s of %s in %s, %s for %s s', a.pid, coalesce(a.usename, '-'), coalesce(a.datname, '-'), \
              coalesce(a.state, a.backend_type), extract(epoch FROM clock_timestamp() - a.xact_start)::int8) \
FROM pg_stat_activity a \
WHERE a.backend_xid IS NOT NULL AND age(a.backend_xid) >= age($1::text::xid8::xid) AND a.pid <> pg_backend_pid() \
UNION ALL \
SELECT format('prepared transaction %s of %s in %s', p.gid, p.owner, p.database) FROM pg_prepared_xacts p \
WHERE age(p.transaction) >= age($1::text::xid8::xid)";
    let rows = source.query(SQL, &[&next]).await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Whom the making of a slot waits for just now: whoever has changed something in a transaction that is not over.
///
/// # Errors
/// What the server said.
pub async fn running(source: &Client) -> Result<Vec<String>, tokio_postgres::Error> {
    let next: String = source.query_one(NEXT, &[]).await?.try_get(0)?;
    older(source, &next).await
}

/// What the server says of a slot of the connection's database; `None`: there is none.
///
/// # Errors
/// [`SlotError::Sql`], [`SlotError::NotUnderstood`].
pub async fn state(source: &Client, name: &str) -> Result<Option<State>, SlotError> {
    const SQL: &str = "\
SELECT confirmed_flush_lsn::text, restart_lsn::text, \
       coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::int8, coalesce(wal_status, 'reserved'), \
       safe_wal_size, active_pid \
FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database() AND slot_type = 'logical'";
    let rows = source.query(SQL, &[&name]).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let lsn = |at: usize| {
        let text: Option<&str> = row.try_get(at)?;
        let lsn = text.map(str::parse).transpose();
        lsn.map_err(|_invalid| SlotError::NotUnderstood)
    };
    let wal: &str = row.try_get(3)?;
    Ok(Some(State {
        confirmed: lsn(0)?,
        restart: lsn(1)?,
        kept: row.try_get(2)?,
        wal: match wal {
            "reserved" => WalStatus::Reserved,
            "extended" => WalStatus::Extended,
            "unreserved" => WalStatus::Unreserved,
            "lost" => WalStatus::Lost,
            _ => return Err(SlotError::NotUnderstood),
        },
        safe: row.try_get(4)?,
        reader: row.try_get(5)?,
    }))
}

/// Drops a slot, if it is there; whoever reads it is ended.
///
/// # Errors
/// [`SlotError`].
pub async fn remove(
    source: &Client,
    commands: &mut Connection,
    name: &str,
) -> Result<(), SlotError> {
    const END: &str = "\
SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots \
WHERE slot_name = $1 AND database = current_database() AND active_pid IS NOT NULL";
    if state(source, name).await?.is_none() {
        return Ok(());
    }
    source.execute(END, &[&name]).await?;
    match commands.drop_slot(name).await {
        // One that was being made is gone with its maker.
        Err(error) if error.sqlstate() == Some("42704") => Ok(()),
        end => Ok(end?),
    }
}
