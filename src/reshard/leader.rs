//! Which process runs the reshards of a database: whoever holds a lease on the home shard.
//!
//! What must stay true: a token is given to one holder once, also by a home shard that has failed over and forgotten some; a
//! holder that could not renew in time stops everything that it does for the reshards before another can begin.

use crate::{clock::Duration, inspect::AskError, registry::Lease};

/// How long a lease is good for, by the home shard's clock.
pub const LEASE: Duration = crate::metrics::reshards::PRESENT;
/// How often it is renewed.
pub const RENEWAL: Duration = Duration::from_secs(1);
/// How long after the begin of its last renewal a holder still takes itself for one.
pub const BELIEVED: Duration = Duration::from_secs(5);

/// Tokens of one timeline of the home shard: a server that was promoted may lack those that were given last, and gives
/// greater ones than any before.
macro_rules! least {
    () => {
        "(('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int8 - 1) << 32"
    };
}
const TAKE: &str = concat!(
    "UPDATE shardway.leader SET holder = $1, token = greatest(token, ",
    least!(),
    ") + 1, until = clock_timestamp() + make_interval(secs => $2) \
WHERE until < clock_timestamp() RETURNING token"
);
const RENEW: &str = concat!(
    "UPDATE shardway.leader SET until = clock_timestamp() + make_interval(secs => $3) \
WHERE holder = $1 AND token = $2 AND token > ",
    least!()
);
const LEAVE: &str =
    "UPDATE shardway.leader SET until = '-infinity' WHERE holder = $1 AND token = $2";

/// Takes the lease if nobody has it; the token.
///
/// # Errors
/// [`AskError`].
pub async fn take(lease: &Lease, holder: &str) -> Result<Option<i64>, AskError> {
    let seconds = LEASE.as_secs_f64();
    let row = lease.query_opt(TAKE, &[&holder, &seconds]).await?;
    row.map(|row| Ok(row.try_get(0)?)).transpose()
}

/// Keeps it; false: another has it, or the home shard is not the one that gave it.
///
/// # Errors
/// [`AskError`].
pub async fn renew(lease: &Lease, holder: &str, token: i64) -> Result<bool, AskError> {
    let seconds = LEASE.as_secs_f64();
    let renewed = lease.execute(RENEW, &[&holder, &token, &seconds]).await?;
    Ok(renewed == 1)
}

/// Gives it back, so that another need not wait.
///
/// # Errors
/// [`AskError`].
pub async fn leave(lease: &Lease, holder: &str, token: i64) -> Result<(), AskError> {
    lease.execute(LEAVE, &[&holder, &token]).await?;
    Ok(())
}
