//! Pieces of a table by its primary key: where they begin and end, and which of them a key belongs to.
//!
//! What must stay true: the chunks of a table hold every key exactly once; where they begin is settled once per reshard,
//! source and table, and nobody but the source compares keys with it.
//!
//! # How bounds are stored, and how SQL tells which chunk a key belongs to
//!
//! - A reshard has one list of chunks for each (source, table), the same for every destination: `shardway.chunk` on the
//!   home shard, written once, in one transaction, before the first row is copied. `shardway.chunk_done` on a destination
//!   repeats number and bounds of each chunk that is done there, with the snapshot on the source that it was read in.
//! - Chunks are numbered from 0 without gaps, in the order of the primary key. `low` is inclusive, `high` exclusive; the
//!   `high` of a chunk is the `low` of the next. Chunk 0 has `low` NULL, the last has `high` NULL: no bound. A table with
//!   one chunk has both NULL.
//! - A bound is a `text[]`: the text of each column of the primary key, in the key's order, under the settings of
//!   `reshard::servers` (ISO dates, UTC, all digits). It is no record's text: PostgreSQL reads no anonymous record back.
//!   No element is NULL.
//! - The order is that of the primary key's index on the source, thus of the columns' own collations there. It may be
//!   another one on a destination, with another version of the C library or of ICU: keys are compared with bounds on the
//!   source only. [`numbers_sql`] makes the statement: given n keys, it answers n rows in their order, each the number
//!   of the chunk: `width_bucket(ROW(key), the lows of chunks 1, 2, … in order)`, which is 0 before the first.
//! - A change is in the copy of a destination iff its transaction is visible in the `snapshot` of that destination's
//!   `chunk_done` row of the chunk that its key belongs to.

use tokio_postgres::Client;

/// A column of a primary key, as the source has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyColumn {
    /// Quoted.
    pub name: String,
    /// As `format_type` writes it where only `pg_catalog` is searched.
    pub type_name: String,
    /// Quoted, with its schema; none of a type without.
    pub collation: Option<String>,
}

/// A key as the text of its columns.
pub type Key = Vec<String>;

/// A piece of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    pub number: i32,
    /// The first key that is in it.
    pub low: Option<Key>,
    /// The first key that is not in it any more.
    pub high: Option<Key>,
}

/// The columns of a table's primary key in the key's order; `table` is its name as SQL.
///
/// # Errors
/// What the server said.
pub async fn key_columns(
    source: &Client,
    table: &str,
) -> Result<Vec<KeyColumn>, tokio_postgres::Error> {
    const SQL: &str = "\
SELECT quote_ident(a.attname), format_type(a.atttypid, a.atttypmod), \
       CASE WHEN a.attcollation <> 0 THEN (SELECT quote_ident(n.nspname) || '.' || quote_ident(l.collname) \
            FROM pg_collation l JOIN pg_namespace n ON n.oid = l.collnamespace WHERE l.oid = a.attcollation) END \
FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY k (number, place) \
     JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number \
WHERE i.indrelid = $1::text::regclass AND i.indisprimary AND k.place <= i.indnkeyatts ORDER BY k.place";
    let rows = source.query(SQL, &[&table]).await?;
    let column = |row: &tokio_postgres::Row| {
        Ok(KeyColumn {
            name: row.try_get(0)?,
            type_name: row.try_get(1)?,
            collation: row.try_get(2)?,
        })
    };
    rows.iter().map(column).collect()
}

/// Blocks that tell how many rows a table has, about.
const COUNTED: i64 = 1_000;
/// Blocks and rows of each chunk that are looked at to find where it ends: rows of one block may be neighbours.
const BLOCKS: i64 = 30;
const ROWS: i64 = 300;
/// Bytes that a chunk has at most, about, however few rows that are.
const LARGEST: i64 = 256 << 20;

/// The first keys of chunks 1, 2, … of so many rows each, about; `table` is its name as SQL.
///
/// # Errors
/// What the server said.
pub async fn find(
    source: &Client,
    table: &str,
    key: &[KeyColumn],
    rows: u64,
) -> Result<Vec<Key>, tokio_postgres::Error> {
    const SIZE: &str = "\
SELECT (sum(pg_relation_size(c.oid)) / current_setting('block_size')::int8)::int8, sum(pg_table_size(c.oid))::int8 \
FROM pg_class c WHERE c.oid = $1::text::regclass \
     OR c.oid IN (SELECT t.relid FROM pg_partition_tree($1::text::regclass) t WHERE t.isleaf)";
    let size = source.query_one(SIZE, &[&table]).await?;
    let (blocks, bytes): (i64, i64) = (size.try_get(0)?, size.try_get(1)?);
    if blocks == 0 {
        return Ok(Vec::new());
    }
    let counted = percent(COUNTED, blocks);
    let sql = format!("SELECT count(*) FROM {table} TABLESAMPLE SYSTEM ({counted})");
    let sampled: i64 = source.query_one(&sql, &[]).await?.try_get(0)?;
    let total = (sampled.saturating_mul(blocks) / COUNTED.min(blocks)).max(1);
    let largest = (LARGEST / (bytes / total).max(1)).max(1);
    let each = i64::try_from(rows).unwrap_or(i64::MAX).clamp(1, largest);
    let count = total.saturating_add(each - 1) / each;
    if count <= 1 {
        return Ok(Vec::new());
    }
    let wanted = count.saturating_mul(BLOCKS).max(COUNTED);
    let seen = total.saturating_mul(wanted.min(blocks)) / blocks;
    let sql = sample(
        table,
        key,
        &percent(wanted, blocks),
        &share(count.saturating_mul(ROWS), seen),
    );
    let found = source.query(&sql, &[&count]).await?;
    found.iter().map(|row| row.try_get(0)).collect()
}

/// Keys that part a sample of a table into $1 pieces of one size, in their order.
fn sample(table: &str, key: &[KeyColumn], percent: &str, share: &str) -> String {
    let each = |write: &dyn Fn(&KeyColumn, usize) -> String| {
        let each = key.iter().zip(1..).map(|(column, at)| write(column, at));
        each.collect::<Vec<String>>().join(", ")
    };
    format!(
        "SELECT ARRAY[{}] FROM (SELECT {}, row_number() OVER (ORDER BY {}) - 1, count(*) OVER () \
              FROM {table} TABLESAMPLE SYSTEM ({percent}) WHERE random() < {share}) s ({}, place, total) \
         WHERE place > 0 AND place * $1::int8 / total <> (place - 1) * $1::int8 / total ORDER BY place",
        each(&|_, at| format!("k{at}::text")),
        each(&|column, _| column.name.clone()),
        each(&|column, _| column.name.clone()),
        each(&|_, at| format!("k{at}")),
    )
}

/// So many of so many in percent, as SQL.
fn percent(some: i64, all: i64) -> String {
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sample is as large as it happens to be"
    )]
    let percent = (100.0 * some as f64 / all.max(1) as f64).min(100.0);
    format!("{percent:.6}")
}

/// The same as a part of 1; more than all when all are wanted.
fn share(some: i64, all: i64) -> String {
    if some >= all || all <= 1_000_000 {
        return "2".to_owned();
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "a sample is as large as it happens to be"
    )]
    let share = some as f64 / all as f64;
    format!("{share:.9}")
}

/// The chunks that begin at these keys, and the one before them.
#[must_use]
pub fn between(lows: Vec<Key>) -> Vec<Chunk> {
    let mut bounds = vec![None];
    bounds.extend(lows.into_iter().map(Some));
    let highs = bounds.iter().skip(1).cloned().chain([None]);
    let chunk = |(number, (low, high)): (i32, (&Option<Key>, _))| Chunk {
        number,
        low: low.clone(),
        high,
    };
    (0..).zip(bounds.iter().zip(highs)).map(chunk).collect()
}

impl Chunk {
    /// The condition that a row of the source is in it; an index on the key serves it.
    #[must_use]
    pub fn sql(&self, key: &[KeyColumn]) -> String {
        let names: Vec<&str> = key.iter().map(|column| column.name.as_str()).collect();
        let names = format!("ROW({})", names.join(", "));
        let low = self.low.iter().map(|low| (">=", low));
        let both = low.chain(self.high.iter().map(|high| ("<", high)));
        let each: Vec<String> = both
            .map(|(than, bound)| format!("{names} {than} {}", constant(key, bound)))
            .collect();
        if each.is_empty() {
            return "true".to_owned();
        }
        each.join(" AND ")
    }
}

/// Conditions that all hold for a row, also where an index answers rows for which they do not: PostgreSQL 17.10 does so for
/// a range of keys of several columns together with a condition on the first of them, `ROW(a, b) >= … AND ROW(a, b) < … AND
/// a = …` (14 to 16 and 18 do not). What is said twice is looked at in the rows as well: no index serves `IS TRUE`.
#[must_use]
pub fn all_of(conditions: &[&str]) -> String {
    let all = conditions.join(" AND ");
    format!("{all} AND ({all}) IS TRUE")
}

/// The statement that tells which chunks keys belong to. Its parameters are `text[]`, one for each column of the key with
/// the values of all keys, then one for each column with those of the lows of chunks 1, 2, …; it answers the chunks'
/// numbers (`int4`) in the order of the keys. To be run on the source.
#[must_use]
pub fn numbers_sql(key: &[KeyColumn]) -> String {
    let count = key.len();
    let names = |from: &str| {
        let each = (1..=count).map(|at| format!("{from}{at}"));
        each.collect::<Vec<String>>().join(", ")
    };
    let parameters = |before: usize| {
        let each = (1..=count).map(|at| format!("${}::text[]", before + at));
        each.collect::<Vec<String>>().join(", ")
    };
    let row = |from: &str| {
        let each = key.iter().zip(1..).map(|(column, at)| {
            let collation = column.collation.as_ref();
            let collation = collation.map(|name| format!(" COLLATE {name}"));
            let collation = collation.unwrap_or_default();
            format!("{from}{at}::{}{collation}", column.type_name)
        });
        format!("ROW({})", each.collect::<Vec<String>>().join(", "))
    };
    format!(
        "SELECT coalesce(width_bucket({}, b.lows), 0) \
         FROM unnest({}) WITH ORDINALITY k ({}, place), \
         (SELECT array_agg({} ORDER BY place) FROM unnest({}) WITH ORDINALITY l ({}, place)) b (lows) \
         ORDER BY k.place",
        row("k"),
        parameters(0),
        names("k"),
        row("b"),
        parameters(count),
        names("b"),
    )
}

fn constant(key: &[KeyColumn], bound: &Key) -> String {
    let each = key.iter().zip(bound).map(|(column, text)| {
        let text = crate::sql::statement::quoted(text);
        format!("{text}::{}", column.type_name)
    });
    format!("ROW({})", each.collect::<Vec<String>>().join(", "))
}
