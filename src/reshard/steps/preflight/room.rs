//! How much room each destination needs for what comes to it.

use super::Finding;
use crate::{
    inspect::Severity,
    reshard::{
        job::{Job, StepError},
        planning::size,
        steps::asking::{About as _, connection, named},
    },
};
use std::collections::BTreeMap;

/// A server does not tell how much is free where its data is: what is needed is said instead.
pub(super) async fn look(job: &Job) -> Result<Vec<Finding>, StepError> {
    const WHOLE: &str = "SELECT pg_total_relation_size(to_regclass($1))::float8";
    let what = "asking how large tables are";
    let mut needed: BTreeMap<&str, u64> = BTreeMap::new();
    for moved in &job.plan.moves {
        let client = connection(named(job, &moved.from)?).await?;
        for table in job.tables_of(std::slice::from_ref(moved)) {
            let size = size(&client, &table, moved, &job.plan.before).await;
            *needed.entry(&moved.to).or_default() += size.about(what)?.bytes;
        }
    }
    if let Some(giver) = job.giver() {
        let client = connection(named(job, &giver)?).await?;
        for table in &job.plan.reference {
            let row = client.query_one(WHOLE, &[&table.sql()]).await.about(what)?;
            let bytes = row.get::<_, Option<f64>>(0).unwrap_or(0.0);
            for join in &job.plan.joins {
                *needed.entry(join).or_default() += bytes as u64;
            }
        }
    }
    let said = needed.into_iter().map(|(shard, bytes)| Finding {
        severity: Severity::Note,
        shard: Some(shard.to_owned()),
        table: None,
        what: format!(
            "about {bytes} bytes come to it, and as much WAL again until it is archived: its disk has to have them free"
        ),
        fix: "df, in its data directory".to_owned(),
    });
    Ok(said.collect())
}
