//! Partitions that somebody has made past the proxies since the plan: no guard is on them, and no stream has their rows.
//!
//! What must stay true: owners change only where there are none; once they have changed, a run with such partitions stands
//! still until somebody has looked, and no row that a former owner has taken in one of them is forgotten.

use super::{
    asking::{About as _, connection},
    condition,
    records::taking_part,
};
use crate::reshard::{
    job::{Direction, Job, StepError},
    plan::{MovingTable, Root, identifier, roots},
    servers::Server,
};
use deadpool_postgres::Client;
use tokio_postgres::types::Type;

/// Partitions that the plan does not know, each with its table.
const UNKNOWN: &str = "\
SELECT root, p.relid::regclass::text FROM unnest($1::text[]) root, pg_partition_tree(to_regclass(root)) p \
WHERE p.isleaf AND NOT EXISTS (SELECT FROM unnest($2::text[]) name WHERE to_regclass(name) = p.relid) ORDER BY 1, 2";

/// Sees, on every server that takes part, that tables have no partitions that the plan does not know.
///
/// # Errors
/// [`StepError::Halt`]: one has.
pub async fn none_new(job: &Job) -> Result<(), StepError> {
    for server in taking_part(job) {
        let tables = [job.given_by(&server.name), job.given_to(&server.name)].concat();
        let tables = job.tables_of(&tables);
        if !roots(&tables).is_empty() {
            unless_new(&connection(&server).await?, job, &tables, &server).await?;
        }
    }
    Ok(())
}

/// The same, of tables of one server. Under the locks of a fence none can be made.
pub(super) async fn unless_new(
    client: &Client,
    job: &Job,
    tables: &[MovingTable],
    server: &Server,
) -> Result<(), StepError> {
    let unknown = unknown(client, tables).await?;
    if unknown.is_empty() {
        return Ok(());
    }
    let names: Vec<String> = unknown.into_iter().map(|(_, name)| name).collect();
    let otherwise = match job.direction {
        Direction::Forward => "or abort and start again",
        Direction::Back => "or give up the way back: ask for finish, and resume for it to be done",
    };
    Err(StepError::Halt {
        what: format!(
            "shard {} has partitions that were made since the plan: {}",
            server.name,
            names.join(", ")
        ),
        remedy: format!("detach or drop them, then resume; {otherwise}"),
    })
}

/// Before a former owner's rows go: no row of a key that it has given away is in a partition that no guard was on.
pub(super) async fn unless_written(job: &Job, source: &Server) -> Result<(), StepError> {
    let moves = job.given_by(&source.name);
    let tables = job.tables_of(&moves);
    if roots(&tables).is_empty() {
        return Ok(());
    }
    let client = connection(source).await?;
    for (root, partition) in unknown(&client, &tables).await? {
        let named = |it: &&MovingTable| it.root.as_ref().map(Root::sql).as_ref() == Some(&root);
        let Some(table) = tables.iter().find(named) else {
            continue;
        };
        let column = identifier(&table.key_column);
        let Some(condition) = condition(job, table, &moves, &column)? else {
            continue;
        };
        let count = format!("SELECT count(*) FROM {partition} WHERE {condition}");
        let row = client.query_one(&count, &[]).await;
        let count: i64 = row.about("looking into new partitions")?.get(0);
        if count > 0 {
            return Err(StepError::Halt {
                what: format!(
                    "{count} rows in partition {partition} of shard {} belong to another shard: they were written there past the \
                     proxies",
                    source.name
                ),
                remedy: format!(
                    "write them again through Shardway if they are to be kept, DELETE FROM {partition} WHERE {condition} there, \
                     then resume"
                ),
            });
        }
    }
    Ok(())
}

async fn unknown(
    client: &Client,
    tables: &[MovingTable],
) -> Result<Vec<(String, String)>, StepError> {
    let roots = roots(tables);
    if roots.is_empty() {
        return Ok(Vec::new());
    }
    let names: Vec<String> = tables.iter().map(MovingTable::sql).collect();
    let rows = client
        .query_typed(
            UNKNOWN,
            &[(&roots, Type::TEXT_ARRAY), (&names, Type::TEXT_ARRAY)],
        )
        .await
        .about("looking for partitions")?;
    let unknown = rows.iter().map(|row| (row.get(0), row.get(1)));
    Ok(unknown.collect())
}
