//! What was compared, as the home shard keeps it: a row for each part, so that a run that was interrupted goes on with the
//! next.
//!
//! What must stay true: a part counts as compared in the round that it was recorded in, and in no other.

use super::super::asking::About as _;
use crate::reshard::{
    job::{Job, StepError},
    verify::compare::Compared,
};
use deadpool_postgres::Client;
use std::collections::BTreeMap;

const KNOWN: &str = "\
SELECT part, found::text FROM shardway.verify \
WHERE workflow = $1 AND source = $2 AND destination = $3 AND relation = $4 AND round = $5";
const RECORD: &str = "\
INSERT INTO shardway.verify (workflow, source, destination, relation, part, rows, found, round) \
VALUES ($1, $2, $3, $4, $5, $6, $7::text::jsonb, $8) \
ON CONFLICT (workflow, source, destination, relation, part) DO UPDATE \
SET rows = excluded.rows, found = excluded.found, round = excluded.round, at = clock_timestamp()";

/// Whose comparison it is: a table of a pair of shards, or of one shard that stands for both.
#[derive(Clone, Debug)]
pub(super) struct About<'a> {
    pub(super) source: &'a str,
    pub(super) destination: &'a str,
    pub(super) table: String,
    pub(super) round: i32,
}

impl About<'_> {
    /// What was found in the parts that were compared in this round.
    pub(super) async fn known(
        &self,
        home: &Client,
        job: &Job,
    ) -> Result<BTreeMap<i32, Compared>, StepError> {
        let Self {
            source,
            destination,
            table,
            round,
        } = self;
        let rows = home
            .query(KNOWN, &[&job.id, source, destination, table, round])
            .await
            .about("asking what was compared")?;
        let found = |row: &tokio_postgres::Row| {
            let compared = serde_json::from_str(row.get(1)).ok()?;
            Some((row.get(0), compared))
        };
        Ok(rows.iter().filter_map(found).collect())
    }

    pub(super) async fn record(
        &self,
        home: &Client,
        job: &Job,
        part: i32,
        compared: &Compared,
    ) -> Result<(), StepError> {
        let Self {
            source,
            destination,
            table,
            round,
        } = self;
        let found = serde_json::to_string(compared).unwrap_or_default();
        let rows = i64::try_from(compared.rows).unwrap_or(i64::MAX);
        let kept = home
            .execute(
                RECORD,
                &[
                    &job.id,
                    source,
                    destination,
                    table,
                    &part,
                    &rows,
                    &found,
                    round,
                ],
            )
            .await;
        kept.about("keeping what was compared").map(drop)
    }
}
