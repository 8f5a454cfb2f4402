//! The parts that a table is compared in: ranges of its primary key, those of its chunks.
//!
//! What must stay true: every key is in exactly one range, and in the same one on both sides; where that is not known, as
//! text may have another order there, the table is one range.

use super::{super::asking::About as _, Unit};
use crate::{
    replication::chunks::{Chunk, KeyColumn, key_columns},
    reshard::job::{Job, StepError},
};
use deadpool_postgres::Client;

/// A range of keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) part: i32,
    /// The condition that a row is in it, on each side.
    pub(super) here: String,
    pub(super) there: String,
}

const KEPT: &str = "\
SELECT chunk, low, high FROM shardway.chunk WHERE workflow = $1 AND source = $2 AND relation = $3 ORDER BY chunk";

/// The ranges of a table, in their order.
pub(super) async fn of(
    job: &Job,
    home: &Client,
    unit: &Unit<'_>,
    here: &Client,
    there: &Client,
) -> Result<Vec<Range>, StepError> {
    let (source, _, table) = unit.names();
    let what = format!("dividing {table}");
    let rows = home.query(KEPT, &[&job.id, &source, &table]).await;
    let chunk = |row: &tokio_postgres::Row| Chunk {
        number: row.get(0),
        low: row.get(1),
        high: row.get(2),
    };
    let chunks: Vec<Chunk> = rows.about(&what)?.iter().map(chunk).collect();
    let name = unit.flow.table.sql();
    if chunks.len() < 2 || !ordered_alike(&name, here, there).await.about(&what)? {
        return Ok(vec![Range {
            part: 0,
            here: "true".to_owned(),
            there: "true".to_owned(),
        }]);
    }
    let of_source: Vec<KeyColumn> = key_columns(here, &name).await.about(&what)?;
    let of_destination = key_columns(there, &name).await.about(&what)?;
    let range = |chunk: &Chunk| Range {
        part: chunk.number,
        here: chunk.sql(&of_source),
        there: chunk.sql(&of_destination),
    };
    Ok(chunks.iter().map(range).collect())
}

const MAJOR: &str = "SELECT current_setting('server_version_num')::int / 10000";

/// How the columns of the primary key are ordered, and whether that is known.
const ORDER: &str = "\
SELECT coalesce(bool_and(known), true), coalesce(string_agg(said, ', ' ORDER BY place), '') FROM ( \
  SELECT k.place, t.typtype NOT IN ('c', 'r', 'm') AND (a.attcollation = 0 OR s.said = 'C' OR s.version IS NOT NULL), \
         concat_ws(' ', s.said, s.version) \
  FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k (number, place) \
       JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number JOIN pg_type t ON t.oid = a.atttypid \
       LEFT JOIN LATERAL ( \
         SELECT CASE WHEN l.collprovider = 'd' THEN d.said WHEN l.collcollate IN ('C', 'POSIX') THEN 'C' \
                     ELSE concat_ws(' ', l.collprovider, l.collname, to_jsonb(l) ->> 'collcollate', \
                          to_jsonb(l) ->> 'colliculocale', to_jsonb(l) ->> 'colllocale') END, \
                CASE WHEN l.collprovider = 'd' THEN d.version ELSE pg_collation_actual_version(l.oid) END \
         FROM pg_collation l, ( \
           SELECT CASE WHEN p.datcollate IN ('C', 'POSIX') AND coalesce(to_jsonb(p) ->> 'datlocprovider', 'c') = 'c' THEN 'C' \
                       ELSE concat_ws(' ', p.datcollate, to_jsonb(p) ->> 'datlocprovider', \
                            to_jsonb(p) ->> 'daticulocale', to_jsonb(p) ->> 'datlocale') END, {version} \
           FROM pg_database p WHERE p.datname = current_database()) d (said, version) \
         WHERE l.oid = a.attcollation) s (said, version) ON true \
  WHERE i.indrelid = $1::text::regclass AND i.indisprimary AND k.place <= i.indnkeyatts) c (place, known, said)";

/// Whether both sides surely have keys in the same order.
async fn ordered_alike(
    table: &str,
    here: &Client,
    there: &Client,
) -> Result<bool, tokio_postgres::Error> {
    let ask = async |client: &Client| -> Result<(bool, String), tokio_postgres::Error> {
        let major: i32 = client.query_one(MAJOR, &[]).await?.try_get(0)?;
        let version = match major {
            ..=14 => "NULL::text",
            _ => "pg_database_collation_actual_version(p.oid)",
        };
        let row = client
            .query_one(&ORDER.replace("{version}", version), &[&table])
            .await?;
        Ok((row.try_get(0)?, row.try_get(1)?))
    };
    let (known, said) = ask(here).await?;
    let (also, there) = ask(there).await?;
    Ok(known && also && said == there)
}
