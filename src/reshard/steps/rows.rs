//! Deletes rows of keys that a shard does not own: old ones at the end, copied ones when a reshard is given up.
//!
//! What must stay true: only rows that the condition takes; no trigger, rule of a foreign key or subscriber acts on it; a
//! batch is short, and others have the server for as long as it took.

use super::{
    asking::About as _,
    records::{as_replica, begin},
};
use crate::{
    clock::Duration,
    reshard::{
        job::{Job, StepError},
        plan::MovingTable,
    },
};
use deadpool_postgres::Client;

/// Pages of a table that one transaction looks at.
const PAGES: i64 = 256;
const SIZE: &str = "SELECT pg_relation_size(to_regclass($1)) / current_setting('block_size')::int8";

/// Deletes the rows of a table that a condition takes, whose columns are the table's; how many.
///
/// # Errors
/// [`StepError`].
pub async fn delete(
    client: &Client,
    job: &Job,
    table: &MovingTable,
    condition: &str,
) -> Result<u64, StepError> {
    let what = format!("deleting rows of {}", table.plain());
    as_replica(client, job).await?;
    let mut all = 0;
    loop {
        let row = client.query_one(SIZE, &[&table.sql()]).await.about(&what)?;
        let Some(pages) = row.get::<_, Option<i64>>(0) else {
            return Ok(all);
        };
        let mut from = 0;
        while from < pages {
            job.unthrottled().await;
            all += batch(client, job, table, condition, from).await?;
            from += PAGES;
            job.progress.set(format!("deleted {}", table.plain()), all);
        }
        // Rows that moved to another page while they were looked for.
        let left = format!(
            "SELECT EXISTS (SELECT FROM {} WHERE {condition})",
            table.sql()
        );
        let left = client.query_one(&left, &[]).await.about(&what)?;
        if !left.get::<_, bool>(0) {
            return Ok(all);
        }
    }
}

async fn batch(
    client: &Client,
    job: &Job,
    table: &MovingTable,
    condition: &str,
    from: i64,
) -> Result<u64, StepError> {
    let what = format!("deleting rows of {}", table.plain());
    let to = from + PAGES;
    begin(client, job).await?;
    let delete = format!(
        "DELETE FROM {} WHERE ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid AND {condition}",
        table.sql()
    );
    let took = client
        .query_one("SELECT clock_timestamp()::text", &[])
        .await;
    let begun: String = took.about(&what)?.get(0);
    let deleted = client.execute(&delete, &[]).await.about(&what)?;
    let took = client
        .query_one(
            "SELECT extract(epoch FROM clock_timestamp() - $1::text::timestamptz)::float8",
            &[&begun],
        )
        .await;
    let took: f64 = took.about(&what)?.get(0);
    client.batch_execute("COMMIT").await.about(&what)?;
    if deleted > 0 {
        tokio::time::sleep(Duration::from_secs_f64(took.clamp(0.0, 10.0))).await;
    }
    Ok(deleted)
}
