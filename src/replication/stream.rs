//! The stream of one source's changes to its destinations: one reader, one applier for each destination.
//!
//! What must stay true: a destination is given the source's transactions in the order of their commits, whole; the source
//! may forget only what is durable on every destination; memory is bounded, however large a transaction is; nothing is
//! applied past the position at which it is to pause.

use super::{
    apply::{Applier, ApplyError, Destination, Done, Piece, Reached, Whose},
    batch::{Added, Full, Kind, Log},
    connection::{ReplicationError, Streaming},
    rows::Form,
    tables::{Changed, Goes, Table},
    visibility::extended,
};
use crate::{
    clock::{Clock, Duration, Instant, SystemTime},
    wire::{
        frame::DecodeError,
        pgoutput::{Change, Oids, Old, Relation, Tuple, Value},
        replication::{Answer, Lsn, Progress, Streamed},
        types::{Format, Oid},
    },
};
use deadpool_postgres::Client;
use smallvec::SmallVec;
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};
use tokio::{
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_postgres::types::{PgLsn, ToSql};

/// Between two heartbeats.
const BEAT: Duration = Duration::from_secs(1);
/// Heartbeats come in the stream: one that says nothing for so long is lost.
const SILENCE: Duration = Duration::from_secs(60);
/// Bytes of values that are kept for a destination until it takes them.
const KEPT: usize = 8 << 20;

/// What is wanted of a follower.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// To stop before the first transaction whose commit stands there or behind, and wait; zero: before the next one.
    pub pause: Option<Lsn>,
    pub stop: bool,
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
    /// Changes that are applied in one transaction, at most.
    pub batch: usize,
}

/// What a message tells of a relation.
enum Known {
    Table(usize),
    /// Heartbeats and fences.
    Fence(FenceColumns),
    Other,
}

/// Places of its columns.
struct FenceColumns {
    workflow: usize,
    attempt: usize,
    beat: usize,
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
    /// Transactions from this one on are in nothing that was copied to it.
    copied: Option<u64>,
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
    tasks.spawn(beat(
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
        batch: setup.batch.max(1),
        relations: HashMap::new(),
        transaction: None,
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
        last_heard: Clock.now(),
        alive: Lsn(0),
        changes: 0,
    };
    drop(reports);
    Box::pin(read(&mut reader, &mut ends, &mut tasks, wishes)).await?;
    // Appliers end what they have begun: nothing of theirs happens later. After an error nobody waits for them, as whoever
    // goes on waits for the progress that they hold, and goes on from there.
    drop((reader, ends));
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
    let (name, reached, copied) = (it.name.clone(), it.progress, it.chunks.end());
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
        copied,
    }
}

const BEAT_SQL: &str = "\
INSERT INTO shardway.fence AS f (workflow, attempt, token, beat) VALUES ($1, 0, $2, 1) \
ON CONFLICT (workflow, attempt) DO UPDATE SET beat = f.beat + 1, token = excluded.token, at = clock_timestamp() \
WHERE f.token <= excluded.token RETURNING beat, pg_current_wal_insert_lsn()";

/// Writes a row on the source every second, so that its slot moves although nothing else happens.
async fn beat(client: Client, whose: Whose, sooner: Arc<Notify>, beats: mpsc::Sender<Heard>) {
    let mut every = interval(BEAT);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = sooner.notified() => {}
            () = beats.closed() => return,
        }
        let sent = Clock.now();
        let asked: [&(dyn ToSql + Sync); 2] = [&whose.workflow, &whose.token];
        let row = tokio::select! {
            row = client.query_opt(BEAT_SQL, &asked) => row,
            () = beats.closed() => return,
        };
        let heard = match row {
            // A runner with a higher token beats here; appliers say so.
            Ok(None) => continue,
            Ok(Some(row)) => {
                let end: PgLsn = row.get(1);
                Heard::Beat(row.get(0), sent, Lsn(end.into()))
            }
            Err(error) => Heard::Failed(error),
        };
        if beats.send(heard).await.is_err() {
            return;
        }
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
    batch: usize,
    relations: HashMap<Oid, Known>,
    /// The one that is being read: its commit and its id.
    transaction: Option<(Lsn, u32)>,
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
                tell(reader, ends).await?;
            }
            // What they had to say is read first.
            _ = tasks.join_next() => return Err(StreamError::Task),
            heard = ends.heard.recv() => reader.hear(heard.ok_or(StreamError::Task)?)?,
            _ = tick.tick() => {
                if reads && Clock.now() - reader.last_heard > SILENCE {
                    return Err(ReplicationError::Timeout.into());
                }
                reader.show();
                tell(reader, ends).await?;
            }
            message = ends.streaming.next(), if reads => {
                let mut asks = reader.take(message?, &wish)?;
                // What has arrived already is read at once.
                while reader.reads() && ends.streaming.has_next() {
                    asks |= reader.take(ends.streaming.next().await?, &wish)?;
                }
                if asks {
                    tell(reader, ends).await?;
                }
            }
        }
    }
}

/// Tells the source what is durable on every destination.
async fn tell(reader: &Reader<'_>, ends: &mut Ends) -> Result<(), StreamError> {
    let least = reader.least().lsn;
    let progress = Progress {
        written: least,
        flushed: least,
        applied: least,
    };
    let now = Clock.wall().duration_since(SystemTime::UNIX_EPOCH);
    let now = now.map_or(0, |now| i64::try_from(now.as_micros()).unwrap_or(0));
    Ok(ends.streaming.tell(progress, now, Answer::Needless).await?)
}

impl Reader<'_> {
    /// Whether the next message may be read.
    fn reads(&self) -> bool {
        let full = |lane: &Lane| lane.log.changes().len() >= self.batch || lane.log.size() >= KEPT;
        self.withheld.is_none() && !self.lanes.iter().any(full)
    }

    /// Takes up a transaction that was withheld, if it need not wait any more.
    fn heed(&mut self, wish: &Wish) -> Result<(), StreamError> {
        if let Some((commit, xid)) = self.withheld
            && wish.pause.is_none_or(|at| at > Lsn(0) && commit < at)
        {
            self.withheld = None;
            self.begin(commit, xid);
        }
        let paused = self.stand.borrow().paused;
        if paused.is_some_and(|(at, _)| wish.pause != Some(at)) {
            self.stand.send_modify(|stand| stand.paused = None);
        }
        if wish.pause.is_some() && paused.is_none() && self.withheld.is_none() {
            // So that there is a transaction to stop at.
            self.sooner.notify_one();
        }
        Ok(())
    }

    fn begin(&mut self, commit: Lsn, xid: u32) {
        self.begun = self.begun.max(commit);
        self.transaction = Some((commit, xid));
    }

    /// Says that it waits, once all before is durable everywhere.
    fn settle_pause(&mut self, wish: &Wish) {
        let Some(at) = wish.pause else {
            return;
        };
        if self.stand.borrow().paused.is_some_and(|(of, _)| of == at) {
            return;
        }
        let passed = at > Lsn(0) && self.begun >= at;
        let rests = |lane: &Lane| !lane.busy && lane.log.changes().is_empty();
        if !passed && (self.withheld.is_none() || !self.lanes.iter().all(rests)) {
            return;
        }
        let exact = !passed && !self.lanes.iter().any(|lane| lane.open);
        self.stand
            .send_modify(|stand| stand.paused = Some((at, exact)));
    }

    /// Gives destinations what is kept for them. A little is kept back while more has arrived already.
    fn send(&mut self, more: bool) {
        let whole = self.transaction.is_none();
        let (boundary, fence) = (self.boundary, self.fence);
        let waits = self.withheld.is_some();
        for lane in &mut self.lanes {
            let count = lane.log.changes().len();
            let full = count >= self.batch || lane.log.size() >= KEPT;
            let behind = lane.sent < boundary && (self.nudged || lane.open);
            let ready =
                whole && (behind || (count > 0 && (waits || !more || count * 2 >= self.batch)));
            if lane.busy || !(full || ready) {
                continue;
            }
            // Transactions that it has already are not in the log; the end of the last one may be before what it has.
            let end = (whole && boundary > lane.reached.lsn).then_some(Reached {
                lsn: boundary,
                fence,
            });
            let log = std::mem::take(&mut lane.log);
            if lane.pieces.try_send(Piece { log, end }).is_ok() {
                lane.busy = true;
                lane.open |= end.is_none();
                lane.sent = end.map_or(lane.sent, |end| end.lsn);
            }
        }
        if whole && self.lanes.iter().all(|lane| lane.sent >= boundary) {
            self.nudged = false;
        }
    }

    fn report(&mut self, (place, done): Report) -> Result<(), StreamError> {
        let lane = &mut self.lanes[place];
        lane.busy = false;
        let done = done.map_err(|error| StreamError::Apply {
            destination: lane.name.clone(),
            error,
        })?;
        match done {
            Done::Committed(reached) => {
                lane.reached = reached;
                lane.open = false;
            }
            Done::Open => lane.open = true,
        }
        self.show();
        Ok(())
    }

    /// What every destination has.
    fn least(&self) -> Reached {
        let reached = self.lanes.iter().map(|lane| lane.reached);
        let lsn = reached.clone().map(|it| it.lsn).min();
        let fence = reached.map(|it| it.fence).min();
        Reached {
            lsn: lsn.unwrap_or_default(),
            fence: fence.unwrap_or_default(),
        }
    }

    fn show(&mut self) {
        let least = self.least();
        while let Some(beat) = self.beats.front()
            && beat.at.is_some_and(|at| at <= least.lsn)
        {
            self.last_beat = Some(Clock.now() - beat.sent);
            self.beats.pop_front();
        }
        let waiting = self.beats.front().map(|beat| Clock.now() - beat.sent);
        let late = waiting.max(self.last_beat);
        let rests = |lane: &Lane| !lane.busy && !lane.open && lane.log.changes().is_empty();
        let idle =
            self.transaction.is_none() && self.withheld.is_none() && self.lanes.iter().all(rests);
        let bytes = if idle {
            // Nothing that came is left to be done.
            let done = self.boundary.max(least.lsn).max(self.alive);
            self.source_end.0.saturating_sub(done.0)
        } else {
            self.source_end.0.saturating_sub(least.lsn.0)
        };
        let consistent = least.lsn >= self.consistency;
        let changes = std::mem::take(&mut self.changes);
        self.stand.send_modify(|stand| {
            stand.applied = least.lsn;
            stand.fence = least.fence;
            stand.consistent |= consistent;
            stand.changes += changes;
            stand.problem = None;
            if let Some(late) = late {
                let millis = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
                stand.lag = Lag { bytes, millis };
            }
        });
    }

    fn hear(&mut self, heard: Heard) -> Result<(), StreamError> {
        match heard {
            Heard::Failed(error) => Err(error.into()),
            Heard::Beat(number, sent, end) => {
                self.source_end = self.source_end.max(end);
                let come = self.boundary;
                // It may have come in the stream before its own answer.
                let at = (number <= self.last_number).then_some(come);
                self.beats.push_back(Beat { number, sent, at });
                self.show();
                Ok(())
            }
        }
    }
}

/// What there was before a change.
enum Before<'a> {
    Nothing,
    /// With the same key.
    Same,
    Told(Old<'a>),
}

/// The values of a row as the stream has them.
type Values<'a> = SmallVec<[Value<'a>; 24]>;
/// Places of destinations.
type Places = SmallVec<[usize; 4]>;

impl Reader<'_> {
    /// Takes a message, and tells whether the source wants to hear how far its user is.
    fn take(&mut self, message: Streamed<'_>, wish: &Wish) -> Result<bool, StreamError> {
        self.last_heard = Clock.now();
        let data = match message {
            Streamed::Alive { end, asks } => {
                self.alive = self.alive.max(end);
                self.source_end = self.source_end.max(end);
                return Ok(asks);
            }
            Streamed::Data { data, .. } => data,
        };
        match Change::decode(data)? {
            Change::Begin { commit, xid } => {
                let waits = |at: Lsn| at == Lsn(0) || commit >= at;
                if wish.pause.is_some_and(waits) {
                    self.withheld = Some((commit, xid));
                } else {
                    self.begin(commit, xid);
                }
            }
            Change::Commit { end, .. } => self.commit(end),
            Change::Relation(relation) => self.relation(&relation)?,
            Change::Insert { relation, new } => {
                self.change(relation, Before::Nothing, Some(new))?
            }
            Change::Update { relation, old, new } => {
                let before = old.map_or(Before::Same, Before::Told);
                self.change(relation, before, Some(new))?;
            }
            Change::Delete { relation, old } => self.change(relation, Before::Told(old), None)?,
            Change::Truncate { relations, .. } => self.emptied(relations)?,
            Change::Origin { .. } | Change::Type { .. } | Change::Message { .. } => {}
        }
        Ok(false)
    }

    fn commit(&mut self, end: Lsn) {
        self.transaction = None;
        self.boundary = self.boundary.max(end);
        self.source_end = self.source_end.max(end);
        if let Some(number) = self.beat.take() {
            self.last_number = self.last_number.max(number);
            let waiting = self.beats.iter_mut();
            for beat in waiting.filter(|beat| beat.number <= number && beat.at.is_none()) {
                beat.at = Some(end);
            }
        }
    }

    fn relation(&mut self, relation: &Relation<'_>) -> Result<(), StreamError> {
        let same = |table: &Table| {
            table.schema.as_bytes() == relation.schema && table.name.as_bytes() == relation.name
        };
        let known = if let Some(at) = self.tables.iter().position(same) {
            let table = &self.tables[at];
            table.check(relation).map_err(|what| StreamError::Changed {
                table: table.plain(),
                what,
            })?;
            Known::Table(at)
        } else if relation.schema == b"shardway" && relation.name == b"fence" {
            let place = |name: &[u8]| relation.columns().position(|it| it.name == name);
            let place = |name| place(name).ok_or(ReplicationError::Protocol);
            Known::Fence(FenceColumns {
                workflow: place(b"workflow")?,
                attempt: place(b"attempt")?,
                beat: place(b"beat")?,
            })
        } else {
            Known::Other
        };
        self.relations.insert(relation.oid, known);
        Ok(())
    }

    fn change(
        &mut self,
        relation: Oid,
        before: Before<'_>,
        new: Option<Tuple<'_>>,
    ) -> Result<(), StreamError> {
        let known = self.relations.get(&relation);
        match known.ok_or(ReplicationError::Protocol)? {
            Known::Other => Ok(()),
            Known::Fence(columns) => {
                let Some(new) = new else {
                    return Ok(());
                };
                let values: Values<'_> = new.values().collect();
                let text = |at: usize| values.get(at).copied();
                if bytes(text(columns.workflow)) != Some(self.workflow.as_bytes()) {
                    return Ok(());
                }
                let attempt = integer(text(columns.attempt))?;
                let beat = integer(text(columns.beat))?;
                self.nudged = true;
                if attempt == 0 {
                    self.beat = Some(beat);
                } else {
                    self.fence = self.fence.max(i32::try_from(attempt).unwrap_or(i32::MAX));
                }
                Ok(())
            }
            Known::Table(at) => self.row(*at, before, new),
        }
    }

    fn row(
        &mut self,
        at: usize,
        before: Before<'_>,
        new: Option<Tuple<'_>>,
    ) -> Result<(), StreamError> {
        let tables = Arc::clone(&self.tables);
        let table = &tables[at];
        let is_update = matches!(before, Before::Same);
        let (old, whole) = match before {
            Before::Nothing | Before::Same => (None, false),
            Before::Told(Old::Key(tuple)) => (Some(tuple.values().collect::<Values<'_>>()), false),
            Before::Told(Old::Row(tuple)) => (Some(tuple.values().collect()), true),
        };
        let mut new: Option<Values<'_>> = new.map(|tuple| tuple.values().collect());
        if let (Some(old), Some(new)) = (&old, &mut new) {
            complete(table, (old, whole), new);
        }
        let before = if is_update {
            new.as_ref()
        } else {
            old.as_ref()
        };
        let from = self.places(table, before)?;
        let to = self.places(table, new.as_ref())?;
        let same_key = match (before, &new) {
            (Some(before), Some(new)) => {
                let same = |at: &usize| before.get(*at) == new.get(*at);
                table.key.iter().all(same)
            }
            _ => false,
        };
        let stays = |place: &usize| same_key && from.contains(place) && to.contains(place);
        for place in &from {
            let kind = if stays(place) {
                Kind::Update
            } else {
                Kind::Delete
            };
            let values = if stays(place) { new.as_ref() } else { before };
            self.add(*place, at, kind, values)?;
        }
        for place in to.iter().filter(|place| !stays(place)) {
            self.add(*place, at, Kind::Insert, new.as_ref())?;
        }
        Ok(())
    }

    /// The destinations that are given a row.
    fn places(&self, table: &Table, values: Option<&Values<'_>>) -> Result<Places, StreamError> {
        let Some(values) = values else {
            return Ok(Places::new());
        };
        let routes = match &table.goes {
            Goes::Everywhere(places) => return Ok(Places::from_slice(places)),
            Goes::ByKey(routes) => routes,
        };
        let no_key = || StreamError::Key(table.plain());
        let (format, value) = match values.get(routes.column).ok_or_else(no_key)? {
            Value::Null => (Format::Text, None),
            Value::Text(value) => (Format::Text, Some(*value)),
            Value::Binary(value) => (Format::Binary, Some(*value)),
            Value::Unchanged => return Err(no_key()),
        };
        let oid = table.columns[routes.column].oid;
        let place = routes.of(oid, format, value).map_err(|_error| no_key())?;
        Ok(place.into_iter().collect())
    }

    fn add(
        &mut self,
        place: usize,
        at: usize,
        kind: Kind,
        values: Option<&Values<'_>>,
    ) -> Result<(), StreamError> {
        let (commit, xid) = self.transaction.ok_or(ReplicationError::Protocol)?;
        let lane = &mut self.lanes[place];
        if commit < lane.reached.lsn {
            return Ok(());
        }
        let values = values.map_or(&[][..], |values| values.as_slice());
        let other = |value: &Value<'_>| match self.form {
            Form::Binary => matches!(value, Value::Text(_)),
            Form::Text => matches!(value, Value::Binary(_)),
        };
        if values.iter().any(other) {
            return Err(StreamError::Form(self.tables[at].plain()));
        }
        let values = values.iter().map(|value| match value {
            Value::Null => Added::Null,
            Value::Unchanged => Added::Unchanged,
            Value::Text(value) | Value::Binary(value) => Added::Value(value),
        });
        lane.log.add(at, kind, xid, values)?;
        self.changes += 1;
        Ok(())
    }

    /// Tables were emptied on the source: their destinations lose what they have from there.
    fn emptied(&mut self, relations: Oids<'_>) -> Result<(), StreamError> {
        let (_, xid) = self.transaction.ok_or(ReplicationError::Protocol)?;
        for oid in relations.iter() {
            let known = self.relations.get(&oid);
            let Known::Table(at) = known.ok_or(ReplicationError::Protocol)? else {
                continue;
            };
            let at = *at;
            let tables = Arc::clone(&self.tables);
            for place in 0..self.lanes.len() {
                let given = match &tables[at].goes {
                    Goes::ByKey(routes) => routes.sets(place).next().is_some(),
                    Goes::Everywhere(places) => places.contains(&place),
                };
                if !given {
                    continue;
                }
                // Which rows of a copy were taken before, and which after it, nobody can say.
                let copied = self.lanes[place].copied;
                if copied.is_some_and(|end| extended(xid, end) < end) {
                    return Err(StreamError::Emptied(tables[at].plain()));
                }
                self.add(place, at, Kind::Wipe, None)?;
            }
        }
        Ok(())
    }
}

/// Fills in what was not sent of a new row where the old one tells it: its key, or all of it.
fn complete<'a>(table: &Table, (old, whole): (&Values<'a>, bool), new: &mut Values<'a>) {
    let shard_key = match &table.goes {
        Goes::ByKey(routes) => Some(routes.column),
        Goes::Everywhere(_) => None,
    };
    for (at, value) in new.iter_mut().enumerate() {
        let told = whole || table.key.contains(&at) || shard_key == Some(at);
        if *value == Value::Unchanged
            && told
            && let Some(old) = old.get(at)
        {
            *value = *old;
        }
    }
}

fn bytes(value: Option<Value<'_>>) -> Option<&[u8]> {
    match value? {
        Value::Text(bytes) | Value::Binary(bytes) => Some(bytes),
        Value::Null | Value::Unchanged => None,
    }
}

/// An `int4` or `int8` in either form.
fn integer(value: Option<Value<'_>>) -> Result<i64, StreamError> {
    let number = match value {
        Some(Value::Text(text)) => std::str::from_utf8(text)
            .ok()
            .and_then(|it| it.parse().ok()),
        Some(Value::Binary(bytes)) => match bytes {
            [_, _, _, _] => bytes
                .try_into()
                .ok()
                .map(|it| i64::from(i32::from_be_bytes(it))),
            bytes => bytes.try_into().ok().map(i64::from_be_bytes),
        },
        Some(Value::Null | Value::Unchanged) | None => None,
    };
    Ok(number.ok_or(ReplicationError::Protocol)?)
}
