//! Which changes a destination has already, in the chunks that were copied to it.
//!
//! What must stay true: it is said of each change by the snapshot of the chunk that holds its key; which chunk that is, the
//! source says, by the order of its own index (`chunks.rs`).

use super::{
    batch::{Change, Kind, Log, Row},
    rows::{Statements, What},
    tables::Table,
    visibility::Snapshot,
};
use deadpool_postgres::Client;
use std::{collections::BTreeMap, sync::Arc};

/// Why it cannot be said.
#[derive(Debug, thiserror::Error)]
pub enum JudgeError {
    #[error(transparent)]
    Sql(#[from] tokio_postgres::Error),
    /// Not all of its chunks are on the destination.
    #[error("{0} is not copied whole")]
    NotCopied(String),
}

/// Which chunks of a table have what a transaction did to all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    None,
    Some,
    /// And there are some.
    All,
}

/// The chunks of all tables on one destination.
#[derive(Clone, Debug, Default)]
pub struct Chunks {
    /// By the tables' places.
    tables: Arc<[Vec<Chunk>]>,
    /// Transactions from this one on are in no chunk; none of nothing that was copied.
    end: Option<u64>,
}

#[derive(Debug)]
struct Chunk {
    low: Option<Vec<String>>,
    snapshot: Snapshot,
}

const CHUNKS: &str = "\
SELECT relation, chunk, low, high IS NULL, snapshot FROM shardway.chunk_done WHERE workflow = $1 AND source = $2 \
ORDER BY relation, chunk";

impl Chunks {
    /// Reads what was copied to a destination from a source.
    ///
    /// # Errors
    /// [`JudgeError`].
    pub async fn read(
        destination: &Client,
        (workflow, source): (&str, &str),
        tables: &[Table],
    ) -> Result<Self, JudgeError> {
        let rows = destination.query(CHUNKS, &[&workflow, &source]).await?;
        let mut found: BTreeMap<String, Vec<Chunk>> = BTreeMap::new();
        let mut unbounded: BTreeMap<String, bool> = BTreeMap::new();
        for row in rows {
            let (relation, number): (String, i32) = (row.try_get(0)?, row.try_get(1)?);
            let (low, last): (Option<Vec<String>>, bool) = (row.try_get(2)?, row.try_get(3)?);
            let snapshot: &str = row.try_get(4)?;
            let chunks = found.entry(relation.clone()).or_default();
            let follows = usize::try_from(number) == Ok(chunks.len());
            let (true, Ok(snapshot)) = (
                follows && low.is_none() == chunks.is_empty(),
                snapshot.parse(),
            ) else {
                return Err(JudgeError::NotCopied(relation));
            };
            chunks.push(Chunk { low, snapshot });
            unbounded.insert(relation, last);
        }
        if let Some((relation, _)) = unbounded.into_iter().find(|(_, last)| !last) {
            return Err(JudgeError::NotCopied(relation));
        }
        let of = |table: &Table| found.remove(&table.plain()).unwrap_or_default();
        let tables: Arc<[Vec<Chunk>]> = tables.iter().map(of).collect();
        let ends = tables.iter().flatten().map(|chunk| chunk.snapshot.end());
        let end = ends.max();
        Ok(Self { tables, end })
    }

    /// Whether a table was copied.
    #[must_use]
    pub fn has(&self, table: usize) -> bool {
        self.tables.get(table).is_some_and(|it| !it.is_empty())
    }

    /// Which chunks of a table have what a transaction did to all of it.
    #[must_use]
    pub fn have(&self, table: usize, xid: u64) -> Within {
        let chunks = self.tables.get(table).map_or(&[][..], Vec::as_slice);
        let have = chunks.iter().filter(|chunk| chunk.snapshot.sees(xid));
        match have.count() {
            0 => Within::None,
            all if all == chunks.len() => Within::All,
            _ => Within::Some,
        }
    }

    /// The changes that the destination has already, by their places.
    ///
    /// # Errors
    /// [`JudgeError`].
    pub async fn seen(
        &self,
        source: &Client,
        statements: &mut Statements,
        tables: &[Table],
        log: &Log,
    ) -> Result<Vec<usize>, JudgeError> {
        let mut open: BTreeMap<usize, (Vec<usize>, Vec<Row>)> = BTreeMap::new();
        for (place, change) in log.changes().iter().enumerate() {
            if self.may_be_seen(change) {
                let (places, rows) = open.entry(change.table).or_default();
                places.push(place);
                rows.push(change.row);
            }
        }
        let mut seen = Vec::new();
        for (at, (places, rows)) in open {
            let (table, chunks) = (&tables[at], &self.tables[at]);
            if chunks.is_empty() {
                return Err(JudgeError::NotCopied(table.plain()));
            }
            let lows: Vec<Vec<&str>> = (0..table.key.len())
                .map(|column| {
                    let lows = chunks.iter().filter_map(|chunk| chunk.low.as_ref());
                    lows.filter_map(|low| low.get(column).map(String::as_str))
                        .collect()
                })
                .collect();
            let asked = (log, rows.as_slice());
            let numbers = statements
                .query(source, (at, table), &What::Locate, asked, &lows)
                .await?;
            for (place, number) in places.into_iter().zip(numbers) {
                let number: i32 = number.try_get(0)?;
                let chunk = usize::try_from(number).ok().and_then(|at| chunks.get(at));
                let chunk = chunk.ok_or_else(|| JudgeError::NotCopied(table.plain()))?;
                if chunk.snapshot.sees(log.changes()[place].xid) {
                    seen.push(place);
                }
            }
        }
        seen.sort_unstable();
        Ok(seen)
    }

    fn may_be_seen(&self, change: &Change) -> bool {
        let Some(end) = self.end else {
            return false;
        };
        change.kind != Kind::Wipe && change.xid < end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_have_what_their_snapshots_see() {
        let chunk = |snapshot: &str| Chunk {
            low: None,
            snapshot: snapshot.parse().unwrap(),
        };
        let chunks = Chunks {
            tables: Arc::new([vec![chunk("100:110:105"), chunk("120:130:")], Vec::new()]),
            end: Some(130),
        };
        for (xid, expected) in [
            (99, Within::All),
            (104, Within::All),
            (105, Within::Some),
            (119, Within::Some),
            (130, Within::None),
        ] {
            assert_eq!(chunks.have(0, xid), expected, "{xid}");
        }
        assert_eq!(chunks.have(1, 99), Within::None);
        assert_eq!(Chunks::default().have(0, 99), Within::None);
    }
}
