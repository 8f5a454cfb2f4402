//! The copy of what a reshard moves: every chunk of every table to every destination, each in a snapshot of its own.
//!
//! What must stay true: the rows of a chunk and the record that they are there are one transaction of the destination,
//! which a runner that was replaced cannot commit; nothing is committed there that the source could still lose in a
//! crash; a chunk that is recorded is never copied again, and one that is not leaves no row; nothing is copied over rows of
//! who owns them by now.

mod one;
mod others;
mod settled;
mod slots;

use super::{
    super::{
        flows::Flow,
        job::{Job, Knobs, StepError},
    },
    activate::unless_owners,
    asking::About as _,
};
use crate::{
    clock::{Clock, Instant},
    replication::{
        chunks::{Chunk, KeyColumn},
        copy::{Budget, Copied, CopyError},
    },
};
pub use others::{applying, end, stop};

use one::Idle;
use std::{
    collections::{BTreeMap, VecDeque},
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::Poll,
};
use tokio::sync::watch;

/// A chunk that is to go to one destination.
struct Part<'a> {
    flow: &'a Flow<'a>,
    source: Arc<Side>,
    chunk: Chunk,
}

/// A table on its source.
struct Side {
    key: Vec<KeyColumn>,
}

type Copying<'a> =
    Pin<Box<dyn Future<Output = Result<(&'a Flow<'a>, Copied), StepError>> + Send + 'a>>;

/// Copies what is not copied yet. What moves while it copies is for the stream to judge.
///
/// # Errors
/// [`StepError`]; run again, it goes on where it was.
pub async fn run(job: &Job) -> Result<(), StepError> {
    unless_owners(job).await?;
    let flows = job.flows();
    others::replace(job).await?;
    let mut figures = Figures::new(job);
    let mut parts = left(job, &flows, &mut figures).await?;
    figures.show();
    let mut knobs = job.knobs.clone();
    let (rate, rates) = watch::channel(knobs.borrow_and_update().bytes_per_second);
    let (idle, budget) = (Idle::default(), Budget::new(rates));
    let mut under_way: Vec<Copying<'_>> = Vec::new();
    loop {
        let Knobs {
            copies,
            bytes_per_second,
            ..
        } = *knobs.borrow_and_update();
        rate.send_replace(bytes_per_second);
        while under_way.len() < copies
            && let Some(part) = parts.pop_front()
        {
            under_way.push(Box::pin(one::copy(job, part, &idle, &budget)));
        }
        if under_way.is_empty() && parts.is_empty() {
            return Ok(());
        }
        tokio::select! {
            ended = any(&mut under_way) => {
                let (flow, copied) = ended?;
                figures.add(flow, copied);
                figures.show();
            }
            changed = knobs.changed() => {
                if changed.is_err() {
                    // Nobody runs it any more.
                    return Err(StepError::Replaced);
                }
            }
        }
    }
}

/// The first of them that ends; none while there is none.
async fn any<'a>(under_way: &mut Vec<Copying<'a>>) -> Result<(&'a Flow<'a>, Copied), StepError> {
    poll_fn(|cx| {
        for at in 0..under_way.len() {
            if let Poll::Ready(ended) = under_way[at].as_mut().poll(cx) {
                drop(under_way.swap_remove(at));
                return Poll::Ready(ended);
            }
        }
        Poll::Pending
    })
    .await
}

/// A copy that failed in the middle.
fn failed(what: &str, error: CopyError) -> StepError {
    let side = match error {
        CopyError::Source(error) => (" (source)", Err::<(), _>(error)),
        CopyError::Destination(error) => (" (destination)", Err(error)),
        CopyError::Count { .. } => {
            return StepError::Again {
                what: what.to_owned(),
                problem: error.to_string(),
            };
        }
    };
    match side.1.about(&format!("{what}{}", side.0)) {
        Err(error) => error,
        Ok(()) => StepError::Replaced,
    }
}

/// What is to be copied yet: in turns between pairs of shards, so that all of them have work.
async fn left<'a>(
    job: &'a Job,
    flows: &'a [Flow<'a>],
    figures: &mut Figures<'_>,
) -> Result<VecDeque<Part<'a>>, StepError> {
    let done = settled::done(job, flows).await?;
    slots::make(job, flows, &done).await?;
    let settled = settled::all(job, flows).await?;
    let mut pairs: BTreeMap<(&str, &str), VecDeque<Part<'a>>> = BTreeMap::new();
    for flow in flows {
        let pair = (flow.source.as_str(), flow.destination.as_str());
        let table = (flow.source.clone(), flow.table.plain());
        let Some(found) = settled.get(&table) else {
            continue;
        };
        let done = done.get(&flow.destination);
        for chunk in &found.chunks {
            let recorded = done.and_then(|done| done.get(&(table.clone(), chunk.number)));
            figures.expect(flow);
            if let Some(recorded) = recorded {
                recorded.same(flow, chunk)?;
                figures.found(flow, recorded.copied);
                continue;
            }
            pairs.entry(pair).or_default().push_back(Part {
                flow,
                source: Arc::clone(&found.side),
                chunk: chunk.clone(),
            });
        }
    }
    let mut parts = VecDeque::new();
    while !pairs.is_empty() {
        for pair in pairs.values_mut() {
            parts.extend(pair.pop_front());
        }
        pairs.retain(|_, pair| !pair.is_empty());
    }
    Ok(parts)
}

/// What is shown of the copy, table by table.
struct Figures<'a> {
    job: &'a Job,
    begun: Instant,
    tables: BTreeMap<String, Figure>,
}

#[derive(Default)]
struct Figure {
    copied: Copied,
    /// By this run, for the rate.
    rows_now: u64,
    done: u64,
    all: u64,
}

impl<'a> Figures<'a> {
    fn new(job: &'a Job) -> Self {
        Self {
            job,
            begun: Clock.now(),
            tables: BTreeMap::new(),
        }
    }

    fn expect(&mut self, flow: &Flow<'_>) {
        self.of(flow).all += 1;
    }

    fn found(&mut self, flow: &Flow<'_>, copied: Copied) {
        let figure = self.of(flow);
        figure.done += 1;
        figure.copied.rows += copied.rows;
        figure.copied.bytes += copied.bytes;
    }

    fn add(&mut self, flow: &Flow<'_>, copied: Copied) {
        self.found(flow, copied);
        self.of(flow).rows_now += copied.rows;
    }

    fn of(&mut self, flow: &Flow<'_>) -> &mut Figure {
        self.tables.entry(flow.table.plain()).or_default()
    }

    fn show(&self) {
        let millis = Clock.now().duration_since(self.begun).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        for (table, figure) in &self.tables {
            let set = |name: &str, value: u64| {
                self.job.progress.set(format!("copy.{table}.{name}"), value);
            };
            set("rows", figure.copied.rows);
            set("bytes", figure.copied.bytes);
            set("chunks_done", figure.done);
            set("chunks", figure.all);
            let rate = figure.rows_now.saturating_mul(1_000) / millis;
            set("rows_per_second", rate);
        }
    }
}
