//! The processes that serve one logical database: each says every few seconds, on the home shard, that it is there.
//!
//! What must stay true: times are the home shard's own. Whoever is taken for dead wrongly loses nothing but transactions
//! that are not decided yet.

use super::{
    Lease,
    agreement::{Agreement, LISTEN},
    errand,
};
use crate::{clock::Duration, inspect::AskError, metrics::transactions::Proxy};

/// How often a proxy says that it is there.
pub const HEARTBEAT: Duration = Duration::from_secs(3);
/// After how long a silent proxy is taken for dead.
pub const SILENCE: Duration = Duration::from_secs(15);
/// How long a dead proxy is remembered.
const MEMORY: Duration = Duration::from_secs(24 * 60 * 60);

/// Who this process is.
#[derive(Clone, Copy, Debug)]
pub struct Me {
    pub incarnation: u64,
    /// `server.id`.
    pub number: Option<u8>,
    /// The number up to which it knows of all schema changes; 0: another says so.
    pub epoch: i64,
}

const BEAT: &str = "\
INSERT INTO shardway.proxy (incarnation, number, version, address, epoch, shards) \
VALUES ($1, $2, $3, host(inet_client_addr()), nullif($4::bigint, 0), $5) \
ON CONFLICT (incarnation) DO UPDATE SET heartbeat = now(), number = excluded.number, shards = excluded.shards, \
epoch = coalesce(excluded.epoch, proxy.epoch)";
const EVERYBODY: &str = "\
SELECT incarnation, number, version, address, started, heartbeat, \
       heartbeat > now() - make_interval(secs => $1), epoch, shards FROM shardway.proxy ORDER BY started, incarnation";
/// Of those that are there, whose configuration lacks which of these shards. As JSON, since a proxy of form 3, and a schema
/// of form 3, say nothing of it.
const UNABLE: &str = "\
SELECT coalesce(p.address, 'local') || ' (' || p.incarnation || ')', array_agg(wanted.name ORDER BY wanted.name) \
FROM shardway.proxy p, to_jsonb(p) said, unnest($1::text[]) wanted (name) \
WHERE p.heartbeat > clock_timestamp() - make_interval(secs => $2) \
  AND jsonb_typeof(said -> 'shards') = 'array' AND NOT said -> 'shards' ? wanted.name GROUP BY 1 ORDER BY 1";
const LEAVE: &str = "DELETE FROM shardway.proxy WHERE incarnation = $1";
const FORGET: &str =
    "DELETE FROM shardway.proxy WHERE heartbeat < now() - make_interval(secs => $1)";

/// Says that this process is there, and asks who else is.
pub(super) async fn beat(
    lease: Lease,
    me: Me,
    shards: &[String],
    agreement: &Agreement,
) -> Result<Vec<Proxy>, AskError> {
    let began = agreement.now();
    let proxies = errand(async {
        lease.batch_execute(LISTEN).await?;
        let number = i32::from(me.number.unwrap_or(0));
        let incarnation = format!("{:016x}", me.incarnation);
        let version = env!("CARGO_PKG_VERSION");
        lease
            .execute(BEAT, &[&incarnation, &number, &version, &me.epoch, &shards])
            .await?;
        agreement.follow(&lease, began, SILENCE).await?;
        lease.execute(FORGET, &[&MEMORY.as_secs_f64()]).await?;
        let rows = lease.query(EVERYBODY, &[&SILENCE.as_secs_f64()]).await?;
        rows.iter()
            .map(|row| proxy(row, me))
            .collect::<Result<Vec<_>, _>>()
    })
    .await?;
    lease.done();
    Ok(proxies)
}

/// A proxy that is there, and cannot reach some shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unable {
    /// Its address and its name, for people.
    pub proxy: String,
    /// The shards that its configuration lacks.
    pub lacks: Vec<String>,
}

/// Those that are there whose configuration lacks one of these shards. Who does not say is not one of them.
pub(super) async fn unable(
    lease: &Lease,
    shards: &[String],
    silence: Duration,
) -> Result<Vec<Unable>, AskError> {
    let rows = lease
        .query(UNABLE, &[&shards, &silence.as_secs_f64()])
        .await?;
    let unable = rows.iter().map(|row| {
        Ok(Unable {
            proxy: row.try_get(0)?,
            lacks: row.try_get(1)?,
        })
    });
    unable.collect()
}

/// Says that this process is there no more.
pub(super) async fn leave(lease: Lease, me: Me) -> Result<(), AskError> {
    errand(async {
        let incarnation = format!("{:016x}", me.incarnation);
        lease.execute(LEAVE, &[&incarnation]).await?;
        Ok(())
    })
    .await?;
    lease.done();
    Ok(())
}

fn proxy(row: &tokio_postgres::Row, me: Me) -> Result<Proxy, AskError> {
    let incarnation: String = row.try_get(0)?;
    let incarnation = u64::from_str_radix(&incarnation, 16).unwrap_or_default();
    Ok(Proxy {
        this: incarnation == me.incarnation,
        incarnation,
        number: row.try_get(1)?,
        version: row.try_get(2)?,
        address: row.try_get(3)?,
        started: row.try_get(4)?,
        heartbeat: row.try_get(5)?,
        alive: row.try_get(6)?,
        epoch: row.try_get(7)?,
        shards: row.try_get(8)?,
    })
}
