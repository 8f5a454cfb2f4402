//! The stream of one source's changes to its destinations: one reader, one applier for each destination.
//!
//! What must stay true: a destination is given the source's transactions in the order of their commits, whole; the source
//! may forget only what is durable on every destination; memory is bounded, however large a transaction is; nothing is
//! applied past the position at which it is to pause.

mod beating;
mod changes;
mod reader;

use super::{
    apply::{Applier, ApplyError, Destination, Done, Piece, Reached, Whose},
    batch::{Full, Log},
    connection::ReplicationError,
    judge::Chunks,
    rows::Form,
    streaming::Streaming,
    tables::{Changed, Table},
    visibility::Ids,
};
use crate::{
    clock::{Clock, Duration, Instant, SystemTime},
    wire::{
        frame::DecodeError,
        replication::{Answer, Lsn, Progress},
        types::Oid,
    },
};
use deadpool_postgres::Client;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// Heartbeats come in the stream: one that says nothing for so long is lost.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes of values that are kept for a destination until it takes them.
const KEPT: usize = 8 << 20;
/// Changes that a destination with nothing to do is given although more have arrived already.
const ENOUGH: usize = 1_000;
/// Pieces in a row that are committed without waiting until they are durable.
const SOON: u32 = 8;

/// What is wanted of a follower.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// To stop before the first transaction whose commit stands there or behind, and wait; zero: before the next one.
    pub pause: Option<Lsn>,
    pub stop: bool,
    /// Grows when somebody wants a heartbeat now, to see how long changes take.
    pub beats: u64,
}

/// Where a follower stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stand {
    /// Every destination durably has what was committed before.
    pub applied: Lsn,
    /// The last fence that every destination has.
    pub fence: i32,
    /// Past the consistency point.
    pub consistent: bool,
    /// For which wish it waits, and whether it could stop exactly there.
    pub paused: Option<(Lsn, bool)>,
    pub lag: Lag,
    /// When the last heartbeat was sent of those that every destination has.
    pub beat: Option<Instant>,
    /// Rows that were brought, since the process began.
    pub changes: u64,
    /// What keeps it from going on at the moment.
    pub problem: Option<String>,
    pub ended: Option<Ended>,
}

/// How far a destination is behind its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lag {
    /// Of WAL.
    pub bytes: u64,
    pub millis: u64,
}

impl Default for Lag {
    /// Nothing is known.
    fn default() -> Self {
        Self {
            bytes: u64::MAX,
            millis: u64::MAX,
        }
    }
}

/// Why a source is followed no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    /// Another process runs the reshard.
    Replaced,
    /// Somebody has to do something first.
    Halt {
        what: String,
        remedy: String,
    },
    /// What was copied from it is of no use any more.
    Lost {
        what: String,
    },
    /// The source or a destination may lack what it had.
    FailedOver {
        what: String,
    },
    /// A table has columns beside those that were planned.
    Grown {
        what: String,
    },
}

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    #[error("the source: {0}")]
    Source(#[from] ReplicationError),
    #[error("the source: {0}")]
    Sql(#[from] tokio_postgres::Error),
    #[error("{destination}: {error}")]
    Apply {
        destination: String,
        error: ApplyError,
    },
    #[error("table {table}: {what}")]
    Changed { table: String, what: Changed },
    #[error("table {0}: a shard key is not understood")]
    Key(String),
    #[error("table {0} was emptied while it was copied")]
    Emptied(String),
    #[error("table {0}: values are not in the form that was asked for")]
    Form(String),
    #[error(transparent)]
    Full(#[from] Full),
    #[error("a task of it has ended")]
    Task,
}

impl From<DecodeError> for StreamError {
    fn from(error: DecodeError) -> Self {
        Self::Source(error.into())
    }
}

/// What a stream is made of.
pub struct Setup {
    pub whose: Whose,
    pub streaming: Streaming,
    /// A connection to the source for heartbeats.
    pub heart: Client,
    pub destinations: Vec<Destination>,
    /// Transactions whose commit stands before it may be in copied chunks.
    pub consistency: Lsn,
    /// Messages of transactions whose commit stands before it may lack the last of the tables' columns.
    pub columns: Lsn,
    /// The source's newest transaction when the stream begins.
    pub newest: u64,
    /// Changes that are applied in one transaction, at most.
    pub batch: usize,
}

/// What a message tells of a relation.
enum Known {
    Table(usize),
    /// Heartbeats and fences.
    Fence(FenceColumns),
}

/// Places of its columns.
struct FenceColumns {
    workflow: usize,
    attempt: usize,
    beat: usize,
}

/// Where the piece that was sent last ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    /// Between two transactions.
    Between,
    Within,
}

/// What is kept for one destination until it takes it.
struct Lane {
    name: String,
    pieces: mpsc::Sender<Piece>,
    log: Log,
    /// Whether it has a piece under way.
    busy: bool,
    /// What it has durably.
    reached: Reached,
    /// What it will have with what was sent to it.
    sent: Lsn,
    /// Whether it has a transaction open.
    open: bool,
    last: Cut,
    /// How many pieces were committed there since the last one that is known to be durable.
    soon: u32,
    /// What was copied to it.
    copied: Chunks,
}

struct Beat {
    number: i64,
    sent: Instant,
    /// Where its transaction ends, once it has come.
    at: Option<Lsn>,
}

enum Heard {
    Beat(i64, Instant, Lsn),
    Failed(tokio_postgres::Error),
}

type Report = (usize, Result<Done, ApplyError>);

/// Follows a source until it is to stop, or cannot go on.
///
/// # Errors
/// [`StreamError`].
pub async fn run(
    setup: Setup,
    wishes: &mut watch::Receiver<Wish>,
    stand: &watch::Sender<Stand>,
) -> Result<(), StreamError> {
    let mut tasks = JoinSet::new();
    let (reports, reported) = mpsc::unbounded_channel();
    let lanes = setup.destinations.into_iter().enumerate();
    let lanes: Vec<Lane> = lanes
        .map(|(place, it)| lane(&mut tasks, &setup.whose, place, it, &reports))
        .collect();
    let (beats, heard) = mpsc::channel(8);
    let sooner = Arc::new(Notify::new());
    tasks.spawn(beating::beat(
        setup.heart,
        setup.whose.clone(),
        Arc::clone(&sooner),
        beats,
    ));
    let mut ends = Ends {
        streaming: setup.streaming,
        reported,
        heard,
    };
    let mut reader = Reader {
        tables: setup.whose.tables,
        workflow: setup.whose.workflow,
        form: setup.whose.form,
        lanes,
        sooner,
        stand,
        consistency: setup.consistency,
        columns: setup.columns,
        batch: setup.batch.max(1),
        relations: HashMap::new(),
        transaction: None,
        ids: Ids::from(setup.newest),
        withheld: None,
        begun: Lsn(0),
        boundary: Lsn(0),
        fence: 0,
        nudged: false,
        source_end: Lsn(0),
        beats: VecDeque::new(),
        beat: None,
        last_number: 0,
        last_beat: None,
        newest_beat: None,
        beats_wanted: 0,
        last_heard: Clock.now(),
        alive: Lsn(0),
        changes: 0,
    };
    drop(reports);
    Box::pin(read(&mut reader, &mut ends, &mut tasks, wishes)).await?;
    // Appliers end what they have begun: nothing of theirs happens later. After an error nobody waits for them, as whoever
    // goes on waits for the progress that they hold, and goes on from there.
    drop((reader, ends.reported, ends.heard));
    ends.streaming.end().await;
    while tasks.join_next().await.is_some() {}
    Ok(())
}

fn lane(
    tasks: &mut JoinSet<()>,
    whose: &Whose,
    place: usize,
    it: Destination,
    reports: &mpsc::UnboundedSender<Report>,
) -> Lane {
    let (pieces, mut taken) = mpsc::channel::<Piece>(1);
    let (name, reached, copied) = (it.name.clone(), it.progress, it.chunks.clone());
    let mut applier = Applier::new(whose.clone(), place, it);
    let reports = reports.clone();
    tasks.spawn(async move {
        while let Some(piece) = taken.recv().await {
            let done = Box::pin(applier.apply(piece)).await;
            let failed = done.is_err();
            if reports.send((place, done)).is_err() || failed {
                return;
            }
        }
    });
    Lane {
        name,
        pieces,
        log: Log::default(),
        busy: false,
        reached,
        sent: reached.lsn,
        open: false,
        last: Cut::Between,
        soon: 0,
        copied,
    }
}

/// Where a reader hears from.
struct Ends {
    streaming: Streaming,
    reported: mpsc::UnboundedReceiver<Report>,
    heard: mpsc::Receiver<Heard>,
}

struct Reader<'a> {
    tables: Arc<[Table]>,
    workflow: String,
    form: Form,
    lanes: Vec<Lane>,
    sooner: Arc<Notify>,
    stand: &'a watch::Sender<Stand>,
    consistency: Lsn,
    columns: Lsn,
    batch: usize,
    relations: HashMap<Oid, Known>,
    /// The one that is being read: its commit and its id.
    transaction: Option<(Lsn, u64)>,
    ids: Ids,
    /// One that was begun to be read, and must wait.
    withheld: Option<(Lsn, u32)>,
    /// The last commit of which something was taken.
    begun: Lsn,
    /// The end of the last transaction that was read whole.
    boundary: Lsn,
    /// The last fence that was read.
    fence: i32,
    /// Whether destinations without changes are to say how far they are too.
    nudged: bool,
    source_end: Lsn,
    beats: VecDeque<Beat>,
    /// The number of one in the transaction that is being read.
    beat: Option<i64>,
    /// The highest number that has come.
    last_number: i64,
    last_beat: Option<Duration>,
    /// When the one was sent that came last.
    newest_beat: Option<Instant>,
    /// As they were wished for.
    beats_wanted: u64,
    last_heard: Instant,
    /// How far the source has looked for changes when it last said so.
    alive: Lsn,
    /// Rows that were taken.
    changes: u64,
}

async fn read(
    reader: &mut Reader<'_>,
    ends: &mut Ends,
    tasks: &mut JoinSet<()>,
    wishes: &mut watch::Receiver<Wish>,
) -> Result<(), StreamError> {
    let mut tick = interval(BEAT);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    reader.show();
    loop {
        let wish = wishes.borrow_and_update().clone();
        if wish.stop {
            return Ok(());
        }
        reader.heed(&wish)?;
        reader.send(ends.streaming.has_next());
        reader.settle_pause(&wish);
        let reads = reader.reads();
        tokio::select! {
            biased;
            changed = wishes.changed() => changed.map_err(|_gone| StreamError::Task)?,
            report = ends.reported.recv() => {
                reader.report(report.ok_or(StreamError::Task)?)?;
                tell(reader, ends)?;
            }
            // What they had to say is read first.
            _ = tasks.join_next() => return Err(StreamError::Task),
            heard = ends.heard.recv() => reader.hear(heard.ok_or(StreamError::Task)?)?,
            _ = tick.tick() => {
                if reads && Clock.now() - reader.last_heard > SILENCE {
                    return Err(ReplicationError::Timeout.into());
                }
                reader.show();
                tell(reader, ends)?;
            }
            message = ends.streaming.next(), if reads => {
                reader.last_heard = Clock.now();
                let mut asks = reader.take(message?, &wish)?;
                // What has arrived already is read at once.
                while reader.reads() && ends.streaming.has_next() {
                    asks |= reader.take(ends.streaming.next().await?, &wish)?;
                }
                if asks {
                    tell(reader, ends)?;
                }
            }
        }
    }
}

/// Tells the source what is durable on every destination.
fn tell(reader: &Reader<'_>, ends: &mut Ends) -> Result<(), StreamError> {
    let least = reader.least().lsn;
    let progress = Progress {
        written: least,
        flushed: least,
        applied: least,
    };
    let now = Clock.wall().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_micros()).unwrap_or(0));
    Ok(ends.streaming.tell(progress, now, Answer::Needless)?)
}
