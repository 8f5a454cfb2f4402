//! Who waits for whose lock: what the proxies tell each other of it on the home shard, and what each server says itself.
//!
//! What must stay true: servers are asked only about processes that are named, and whom those wait for in turn; it needs
//! no right but to connect (`pg_locks` and `pg_blocking_pids` show everybody every process, not what it runs).

use super::{Lease, errand};
use crate::{clock::Duration, inspect::AskError};
use tokio_postgres::Row;

/// The backend of a transaction on one shard, as its proxy tells the others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    pub owner: u64,
    pub number: i64,
    pub shard: String,
    pub pid: i32,
    /// The server's name of the backend's transaction.
    pub transaction: String,
    /// Of the transaction's prepared parts.
    pub name: Option<String>,
    /// By the home shard's clock, in microseconds.
    pub begun: i64,
}

/// One's own, before the home shard has said when it began.
#[derive(Clone, Debug)]
pub struct Own {
    pub number: i64,
    pub shard: String,
    pub pid: i32,
    pub transaction: String,
    pub name: Option<String>,
    pub age: Duration,
}

/// A process, as its server tells of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub transaction: String,
    /// Since when it waits.
    pub since: Option<String>,
    /// Processes that it waits for.
    pub blockers: Vec<i32>,
    /// The prepared transaction that it waits for.
    pub prepared: Option<String>,
}

const TELL: &str = "\
INSERT INTO shardway.waiting (owner, number, shard, pid, virtual, transaction, begun) \
SELECT $1, t.number, t.shard, t.pid, t.virtual, t.transaction, now() - make_interval(secs => t.age) \
FROM unnest($2::int8[], $3::text[], $4::int4[], $5::text[], $6::text[], $7::float8[]) \
     AS t (number, shard, pid, virtual, transaction, age) \
ON CONFLICT (owner, number, shard) DO UPDATE SET pid = excluded.pid, virtual = excluded.virtual, \
   transaction = excluded.transaction, seen = excluded.seen";
/// What is not there any more: one's own, and what nobody has renewed.
const FORGET: &str = "\
DELETE FROM shardway.waiting WHERE (owner = $1 AND number <> ALL ($2)) \
    OR seen < now() - make_interval(secs => $3)";
/// A transaction is as old as its first row says: all who read it must find the same.
const ALL: &str = "\
SELECT owner, number, shard, pid, virtual, transaction, \
       (extract(epoch FROM min(begun) OVER (PARTITION BY owner, number)) * 1000000)::int8 \
FROM shardway.waiting WHERE seen > now() - make_interval(secs => $1) ORDER BY owner, number, shard";
/// Of the processes `$1`, and whom they wait for in turn: their transactions and waits. A wait for a prepared transaction
/// is known by its number, which only waits for rows name.
const LOOK: &str = "\
WITH RECURSIVE reached (pid) AS ( \
    SELECT unnest($1::int4[]) \
    UNION \
    SELECT b.pid FROM reached r CROSS JOIN LATERAL unnest(pg_blocking_pids(r.pid)) b (pid) WHERE b.pid <> 0 \
), waits AS MATERIALIZED ( \
    SELECT r.pid, pg_blocking_pids(r.pid) AS blockers FROM reached r \
), locks AS MATERIALIZED ( \
    SELECT l.pid, l.locktype, l.virtualxid, l.virtualtransaction, l.transactionid, l.granted, l.waitstart FROM pg_locks l \
) \
SELECT w.pid, own.virtualtransaction, wait.waitstart::text, w.blockers, p.gid \
FROM waits w \
JOIN locks own ON own.pid = w.pid AND own.locktype = 'virtualxid' AND own.granted \
              AND own.virtualxid = own.virtualtransaction \
LEFT JOIN locks wait ON wait.pid = w.pid AND NOT wait.granted \
LEFT JOIN pg_prepared_xacts p ON 0 = ANY (w.blockers) AND wait.locktype = 'transactionid' \
                             AND p.transaction = wait.transactionid";

/// Tells the others of those that wait, and nothing else, and hears of everybody's. What was not told again for `silence`
/// is nobody's any more.
pub(super) async fn tell(
    lease: Lease,
    owner: u64,
    own: &[Own],
    silence: Duration,
) -> Result<Vec<Told>, AskError> {
    let all = errand(async {
        let owner = format!("{owner:016x}");
        let numbers: Vec<i64> = own.iter().map(|own| own.number).collect();
        let silence = silence.as_secs_f64();
        lease.execute(FORGET, &[&owner, &numbers, &silence]).await?;
        if own.is_empty() {
            return Ok(Vec::new());
        }
        let shards: Vec<&str> = own.iter().map(|own| own.shard.as_str()).collect();
        let pids: Vec<i32> = own.iter().map(|own| own.pid).collect();
        let virtuals: Vec<&str> = own.iter().map(|own| own.transaction.as_str()).collect();
        let names: Vec<Option<&str>> = own.iter().map(|own| own.name.as_deref()).collect();
        let ages: Vec<f64> = own.iter().map(|own| own.age.as_secs_f64()).collect();
        lease
            .execute(
                TELL,
                &[&owner, &numbers, &shards, &pids, &virtuals, &names, &ages],
            )
            .await?;
        let rows = lease.query(ALL, &[&silence]).await?;
        rows.iter().map(told).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    lease.done();
    Ok(all)
}

/// Looks at these processes of a server, and at those that they wait for.
pub(super) async fn look(lease: Lease, pids: &[i32]) -> Result<Vec<Process>, AskError> {
    let found = errand(async {
        let rows = lease.query(LOOK, &[&pids]).await?;
        rows.iter().map(process).collect::<Result<Vec<_>, _>>()
    })
    .await?;
    lease.done();
    Ok(found)
}

fn told(row: &Row) -> Result<Told, AskError> {
    let owner: String = row.try_get(0)?;
    Ok(Told {
        owner: u64::from_str_radix(&owner, 16).unwrap_or_default(),
        number: row.try_get(1)?,
        shard: row.try_get(2)?,
        pid: row.try_get(3)?,
        transaction: row.try_get(4)?,
        name: row.try_get(5)?,
        begun: row.try_get(6)?,
    })
}

fn process(row: &Row) -> Result<Process, AskError> {
    Ok(Process {
        pid: row.try_get(0)?,
        transaction: row.try_get(1)?,
        since: row.try_get(2)?,
        blockers: row.try_get(3)?,
        prepared: row.try_get(4)?,
    })
}
