//! Where the chunks of each table begin, settled once and kept on the home shard, and which of them are done.
//!
//! What must stay true: chunks are settled before the first of them is copied, and never again; records that do not fit
//! what was settled stop the copy.

use super::{
    super::asking::{About as _, connection, home, named},
    Side,
};
use crate::{
    replication::{
        chunks::{self, Chunk, Key},
        copy::Copied,
    },
    reshard::{
        flows::Flow,
        job::{Job, StepError},
    },
};
use deadpool_postgres::Client;
use std::{collections::BTreeMap, sync::Arc};

/// A source and the plain name of a table.
pub(super) type Table = (String, String);

/// The chunks of a table.
pub(super) struct Settled {
    pub(super) side: Arc<Side>,
    pub(super) chunks: Vec<Chunk>,
}

/// What is recorded, by the destination's name.
pub(super) type Done = BTreeMap<String, BTreeMap<(Table, i32), Recorded>>;

/// A chunk's record on a destination.
pub(super) struct Recorded {
    low: Option<Key>,
    high: Option<Key>,
    pub(super) copied: Copied,
}

const KEPT: &str = "\
SELECT chunk, low, high FROM shardway.chunk WHERE workflow = $1 AND source = $2 AND relation = $3 ORDER BY chunk";
/// Whoever settles waits for whoever does, and then finds it settled.
const MINE: &str = "SELECT FROM shardway.workflow WHERE id = $1 AND token <= $2 FOR UPDATE";
const KEEP: &str = "\
INSERT INTO shardway.chunk (workflow, source, relation, chunk, low, high, token) \
SELECT $1, $2, $3, number, low::text[], high::text[], $4 FROM unnest($5::int4[], $6::text[], $7::text[]) c (number, low, high)";
const DONE: &str = "\
SELECT source, relation, chunk, low, high, rows, bytes FROM shardway.chunk_done WHERE workflow = $1";

/// The chunks of all tables on all their sources, settled where they are not yet.
pub(super) async fn all(
    job: &Job,
    flows: &[Flow<'_>],
) -> Result<BTreeMap<Table, Settled>, StepError> {
    let home = home(job).await?;
    let mut all = BTreeMap::new();
    let mut sources: BTreeMap<&str, Client> = BTreeMap::new();
    for flow in flows {
        let table = (flow.source.clone(), flow.table.plain());
        if all.contains_key(&table) {
            continue;
        }
        if !sources.contains_key(flow.source.as_str()) {
            sources.insert(&flow.source, connection(named(job, &flow.source)?).await?);
        }
        let source = &sources[flow.source.as_str()];
        all.insert(table, of(job, &home, source, flow).await?);
    }
    Ok(all)
}

/// What is recorded on each destination.
pub(super) async fn done(job: &Job, flows: &[Flow<'_>]) -> Result<Done, StepError> {
    let mut all = BTreeMap::new();
    for flow in flows {
        if all.contains_key(&flow.destination) {
            continue;
        }
        let client = connection(named(job, &flow.destination)?).await?;
        let what = format!("reading what shard {} has", flow.destination);
        let mut found = BTreeMap::new();
        for row in client.query(DONE, &[&job.id]).await.about(&what)? {
            let table = (row.get(0), row.get(1));
            let count = |at| u64::try_from(row.get::<_, i64>(at)).unwrap_or(0);
            let recorded = Recorded {
                low: row.get(3),
                high: row.get(4),
                copied: Copied {
                    rows: count(5),
                    bytes: count(6),
                },
            };
            found.insert((table, row.get(2)), recorded);
        }
        all.insert(flow.destination.clone(), found);
    }
    Ok(all)
}

impl Recorded {
    /// That what is recorded is what was settled.
    pub(super) fn same(&self, flow: &Flow<'_>, chunk: &Chunk) -> Result<(), StepError> {
        if self.low == chunk.low && self.high == chunk.high {
            return Ok(());
        }
        Err(StepError::Halt {
            what: format!(
                "shard {} has rows of {} from {} that were copied in other chunks than the catalog has",
                flow.destination,
                flow.table.plain(),
                flow.source
            ),
            remedy: "abort the reshard and start it again".to_owned(),
        })
    }
}

async fn of(
    job: &Job,
    home: &Client,
    source: &Client,
    flow: &Flow<'_>,
) -> Result<Settled, StepError> {
    let (name, plain) = (flow.table.sql(), flow.table.plain());
    let what = format!("finding the chunks of {plain} on shard {}", flow.source);
    let key = chunks::key_columns(source, &name).await.about(&what)?;
    if key.is_empty() {
        return Err(StepError::Halt {
            what: format!("{plain} has no primary key on shard {}", flow.source),
            remedy: format!("ALTER TABLE {name} ADD PRIMARY KEY (…)"),
        });
    }
    let mut found = kept(job, home, flow).await?;
    if found.is_empty() {
        let rows = job.knobs.borrow().chunk_rows;
        let lows = chunks::find(source, &name, &key, rows).await;
        keep(job, home, flow, &chunks::between(lows.about(&what)?)).await?;
        found = kept(job, home, flow).await?;
    }
    let side = Arc::new(Side { key });
    Ok(Settled {
        side,
        chunks: found,
    })
}

async fn kept(job: &Job, home: &Client, flow: &Flow<'_>) -> Result<Vec<Chunk>, StepError> {
    let rows = home
        .query(KEPT, &[&job.id, &flow.source, &flow.table.plain()])
        .await
        .about("reading chunks from the catalog")?;
    let chunk = |row: &tokio_postgres::Row| Chunk {
        number: row.get(0),
        low: row.get(1),
        high: row.get(2),
    };
    Ok(rows.iter().map(chunk).collect())
}

/// Writes them down, unless somebody has.
async fn keep(
    job: &Job,
    home: &Client,
    flow: &Flow<'_>,
    chunks: &[Chunk],
) -> Result<(), StepError> {
    let what = "writing chunks to the catalog";
    let begun = home.batch_execute("BEGIN").await;
    begun.about(what)?;
    let mine = home.query(MINE, &[&job.id, &job.token]).await;
    if mine.about(what)?.is_empty() {
        return Err(StepError::Replaced);
    }
    if kept(job, home, flow).await?.is_empty() {
        let numbers: Vec<i32> = chunks.iter().map(|chunk| chunk.number).collect();
        let lows = chunks.iter().map(|chunk| literal(chunk.low.as_ref()));
        let highs = chunks.iter().map(|chunk| literal(chunk.high.as_ref()));
        let (lows, highs): (Vec<_>, Vec<_>) = (lows.collect(), highs.collect());
        let (plain, id, token) = (flow.table.plain(), &job.id, &job.token);
        home.execute(
            KEEP,
            &[id, &flow.source, &plain, token, &numbers, &lows, &highs],
        )
        .await
        .about(what)?;
    }
    home.batch_execute("COMMIT").await.about(what)
}

/// A key as the text of a `text[]`.
pub(super) fn literal(key: Option<&Key>) -> Option<String> {
    let quoted = |text: &String| {
        let text = text.replace('\\', "\\\\").replace('"', "\\\"");
        format!("\"{text}\"")
    };
    let each: Vec<String> = key?.iter().map(quoted).collect();
    Some(format!("{{{}}}", each.join(",")))
}
