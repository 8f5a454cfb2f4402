//! Rows on shards that neither own them nor are given them: nobody would ever see them, and a key that moves there later
//! would meet them.
//!
//! What must stay true: every block of every moving table is looked at on every shard that takes part; a statement looks at
//! some blocks only, so that no snapshot is held for long.

use super::{
    super::{asking::About as _, condition, records::taking_part},
    Pace, records,
};
use crate::reshard::{
    job::{Job, StepError},
    plan::{MovingTable, identifier},
    servers::Server,
    verify::compare::Compared,
};
use deadpool_postgres::Client;

/// Blocks that one statement looks at.
const BLOCKS: i64 = 32_768;
/// How many keys are named.
const NAMED: usize = 5;

/// The table, or its partitions, and how many blocks each has.
const PIECES: &str = "\
SELECT format('%I.%I', n.nspname, c.relname), pg_relation_size(c.oid) / current_setting('block_size')::int8 \
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind = 'r' AND (c.oid = to_regclass($1) \
   OR c.oid IN (SELECT relid FROM pg_partition_tree(to_regclass($1)) WHERE isleaf)) ORDER BY 1";

/// Looks at everything that this round has not looked at yet.
///
/// # Errors
/// [`StepError::Halt`]: there are such rows.
pub(super) async fn none(
    job: &Job,
    home: &Client,
    pace: &mut Pace<'_>,
    round: i32,
) -> Result<(), StepError> {
    for shard in taking_part(job) {
        let client = shard.sql().await;
        let client = client.about(&format!("asking {}", shard.name))?;
        for table in &job.plan.tables {
            let Some(condition) = belongs(job, table, &shard)? else {
                continue;
            };
            let about = records::About {
                source: &shard.name,
                destination: &shard.name,
                table: table.plain(),
                round,
            };
            one(job, home, &client, (table, &condition, &about), pace).await?;
        }
    }
    Ok(())
}

async fn one(
    job: &Job,
    home: &Client,
    client: &Client,
    (table, condition, about): (&MovingTable, &str, &records::About<'_>),
    pace: &mut Pace<'_>,
) -> Result<(), StepError> {
    let what = format!("looking for rows of {} on {}", about.table, about.source);
    let known = about.known(home, job).await?;
    let key = table.primary_key.iter().map(|name| identifier(name));
    let key = format!("ROW({})::text", key.collect::<Vec<String>>().join(", "));
    let pieces = client.query(PIECES, &[&table.sql()]).await.about(&what)?;
    let mut part = 0;
    for piece in &pieces {
        let (name, blocks): (String, i64) = (piece.get(0), piece.get(1));
        // What was added since is the proxies' and the stream's, which know where it belongs.
        for from in (0..blocks).step_by(usize::try_from(BLOCKS).unwrap_or(usize::MAX)) {
            if !known.contains_key(&part) {
                job.unthrottled().await;
                let to = from + BLOCKS;
                let sql = format!(
                    "SELECT count(*), count(*) FILTER (WHERE outside), \
                     (array_agg(key) FILTER (WHERE outside))[1:{NAMED}] FROM ( \
                     SELECT ({condition}) IS NOT TRUE AS outside, CASE WHEN ({condition}) IS NOT TRUE THEN {key} END AS key \
                     FROM ONLY {name} WHERE ctid >= '({from},0)'::tid AND ctid < '({to},0)'::tid) r"
                );
                let row = client.query_one(&sql, &[]).await.about(&what)?;
                let (rows, outside): (i64, i64) = (row.get(0), row.get(1));
                if outside > 0 {
                    let keys: Option<Vec<String>> = row.get(2);
                    return Err(stray(about, outside, &keys.unwrap_or_default()));
                }
                let compared = Compared {
                    rows: rows.unsigned_abs(),
                    ..Compared::default()
                };
                about.record(home, job, part, &compared).await?;
                pace.rows(compared.rows).await;
            }
            part += 1;
        }
    }
    Ok(())
}

fn stray(about: &records::About<'_>, count: i64, keys: &[String]) -> StepError {
    let records::About { source, table, .. } = about;
    StepError::Halt {
        what: format!(
            "{table} has {count} rows on {source} that belong to another shard: {}",
            keys.join(", ")
        ),
        remedy: "find out who wrote them there, move or delete them on that shard, then resume; or abort".to_owned(),
    }
}

/// The condition that a row belongs on a shard: it owns the key, or is given it; `None`: no row has to.
fn belongs(job: &Job, table: &MovingTable, shard: &Server) -> Result<Option<String>, StepError> {
    let Some(group) = &table.group else {
        return Ok(None);
    };
    let column = identifier(&table.key_column);
    let moves = job.given_to(&shard.name);
    let given = condition(job, table, &moves, &column)?;
    let owned = match job.plan.before.sets_of(group, &shard.name) {
        Some(keys) => {
            let key_type = job.plan.before.key_type(group);
            key_type.and_then(|key_type| keys.sql(&column, key_type).ok())
        }
        None => None,
    };
    Ok(owned.map(|owned| match given {
        Some(given) => format!("({owned} OR {given})"),
        None => owned,
    }))
}
