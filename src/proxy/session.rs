//! One client's session after login: waits for bytes on either side and keeps both moving.
//!
//! A session handles one batch at a time: what a client sends up to a Sync, or one Query. The next batch is begun only
//! when ReadyForQuery of the last has come, so that transaction status, settings and the choice of the next shard are
//! facts and not guesses; within a batch everything streams in both directions.
//!
//! ```text
//!   Idle ──extended message──▶ Batch ──Sync──▶ Answering ──ReadyForQuery──▶ Idle
//!     └────────Query, FunctionCall───────────────▲
//! ```

use super::{
    Shared,
    cancel::Slot,
    copy_in::Copying,
    counting::{Counted, Marks, note_reported},
    cursors::{CommandPortal, Cursors},
    database::Database,
    ending,
    fan::Fan,
    link::{Hold, Link},
    listening::Listening,
    named::Named,
    numbers::Drew,
    oids::Looking,
    prepared::Prepared,
    replaying::Kept,
    reply::session as reply,
    scatter::Scattering,
    script::Script,
    several::Several,
    spread::WritingPortal,
    sql_prepared::Renamed,
};
use crate::{
    catalog::{shard::ShardId, snapshot::Snapshot},
    clock::Instant,
    config::settings::{PoolMode, User},
    gate::Ticket,
    metrics::sessions::{Registered, Wanted},
    net::stream::{HIGH_WATER, Stream},
    plan::{Context, Plan},
    pool::{
        backend::Reported,
        lease::{CheckoutError, Lease, Pool},
        state::Claim,
    },
    protocol::{
        parameters::{self, Applied, Parameters},
        pipeline::Pipeline,
        transaction::Deferred,
    },
    sql::statement::{Effect, PinReason},
    wire::{
        backend::{Status, put_parameter_status, put_ready},
        frame,
        frontend::{put, put_query},
        notice::Words,
    },
};
use smallvec::SmallVec;
use std::{
    future::{Future, poll_fn},
    io,
    pin::pin,
    sync::Arc,
    task::Poll,
};

/// Why a session is over.
#[derive(Debug)]
pub enum End {
    /// The client said so, or its connection is gone.
    Client,
    /// Told the client why; nothing more to say.
    Told(Box<Words>),
    /// The backend is gone, and its own last words were forwarded.
    BackendGone,
}

impl From<io::Error> for End {
    fn from(_: io::Error) -> Self {
        Self::Client
    }
}

/// What the pipeline hands back with an answered request.
#[derive(Debug, Default)]
pub(super) enum Note {
    #[default]
    Nothing,
    /// A Parse: of this statement.
    Parsed(Arc<Prepared>),
    /// An Execute: of this statement, whose effect matters.
    Executed(Arc<Prepared>),
    /// A Close of the statement with this identity, on the backend only.
    Evicted(u128),
    /// A Bind of the statement with this identity.
    Uses(u128),
    /// A Describe of this statement.
    Described(Arc<Prepared>),
    /// A Describe of a portal of this statement.
    DescribedPortal(Arc<Prepared>),
    /// The client's Close of a statement.
    Closed,
}

/// Where a session stands within a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    /// Extended messages have come, Sync has not.
    Batch,
    /// ReadyForQuery is owed by the backend.
    Answering,
}

/// A portal whose statement matters beyond its rows.
#[derive(Debug)]
pub(super) enum Portal {
    /// Answered here.
    Here(Arc<Prepared>),
    /// Of a write to several shards.
    Writing(Box<WritingPortal>),
    /// Of a COPY of a sharded table, in or out.
    Copying(Arc<Prepared>),
    /// Of a command about a cursor over several shards.
    Cursor(Box<CommandPortal>),
    /// On the backend.
    There(Arc<Prepared>),
}

/// A long message that is passed on as it arrives.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rest {
    pub bytes: usize,
    pub forward: bool,
}

/// Statements by the name that the client gave.
pub(super) type Statements = Named<Arc<Prepared>>;
/// The proxy's own settings by name.
pub(super) type Overridden = parameters::ByName<String>;
/// Names and what they stood for.
pub(super) type Closed = SmallVec<[(Box<[u8]>, Arc<Prepared>); 1]>;

/// Settings of the role, database or server that the client did not choose, and that routing depends on.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Defaults {
    pub(super) search_path: Option<String>,
    pub(super) isolation: Option<String>,
    /// What the server reported at login, without what the client calls itself.
    pub(super) reported: Reported,
}

/// One client's session.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent fact about the batch under way"
)]
pub struct Session {
    pub(super) shared: Arc<Shared>,
    pub(super) database: Arc<Database>,
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) generation: u64,
    pub(super) user: Arc<User>,
    pub(super) client: Stream,
    pub(super) info: Registered,
    pub(super) cancel: Arc<Slot>,
    pub(super) mode: PoolMode,
    pub(super) link: Option<Box<Link>>,
    /// Backends kept beside the link: in session mode, or because of a pin.
    pub(super) parked: Vec<Box<Link>>,
    /// Backends that are at work on one statement together.
    pub(super) fan: Option<Box<Fan>>,
    /// A portal whose rows come from all of them.
    pub(super) scattered: Option<Box<Scattering>>,
    /// Portals and cursors of the transaction.
    pub(super) cursors: Cursors,
    /// A COPY whose rows they are sent.
    pub(super) copying: Option<Box<Copying>>,
    /// A Query whose statements run one after the other.
    pub(super) script: Option<Box<Script>>,
    pub(super) pinned: Option<(PinReason, ShardId)>,
    pub(super) pools: Vec<Option<Arc<Pool>>>,
    pub(super) pipeline: Pipeline<Note>,
    pub(super) statements: Statements,
    /// Names parsed in this batch and not confirmed yet.
    pub(super) unconfirmed: SmallVec<[Box<[u8]>; 1]>,
    /// Statements closed in this batch, oldest first, and not confirmed yet.
    pub(super) closed: Closed,
    /// Parses not sent to any backend yet: the shard is not known before Bind.
    pub(super) pending: SmallVec<[Arc<Prepared>; 1]>,
    pub(super) portals: Named<Portal>,
    pub(super) unnamed: Option<Arc<Prepared>>,
    pub(super) parameters: Parameters,
    /// What the role and the server set for those settings that decide where statements go.
    pub(super) defaults: Arc<Defaults>,
    pub(super) context: Arc<Context>,
    pub(super) context_stale: bool,
    pub(super) overridden: Overridden,
    pub(super) deferred: Option<Deferred>,
    pub(super) several: Several,
    /// The open transaction is ours, and ends with the batch.
    pub(super) for_batch: bool,
    /// What it listens on, in transaction mode.
    pub(super) listening: Option<Box<Listening>>,
    /// Before the first ReadyForQuery.
    pub(super) welcoming: bool,
    /// What the client has been told by ParameterStatus.
    pub(super) reported: Reported,
    pub(super) phase: Phase,
    /// After an error in a batch: everything up to Sync is dropped.
    pub(super) skip: bool,
    /// Whether something in this batch failed.
    pub(super) failed: bool,
    /// Tables of the statement under way that nobody was seen to have are nobody else's either.
    pub(super) sure: bool,
    /// The statements of the simple query under way, and how many are complete.
    pub(super) running: Option<(Arc<Plan>, usize)>,
    /// How many statements of ours are to complete before the next of the simple query under way.
    pub(super) hidden: usize,
    /// Whether a setting was sent in this batch that the next statement's plan depends on.
    pub(super) unsettled: bool,
    /// Where numbers of sequences were drawn last.
    pub(super) drew: Drew,
    /// The shard for what any shard can answer.
    pub(super) any: ShardId,
    /// Types that it was not told of.
    pub(super) looking: Looking,
    pub(super) client_rest: Rest,
    pub(super) backend_rest: Rest,
    /// The portal that was bound last, and its statement, if that has a name.
    pub(super) bound: Option<(Box<[u8]>, Arc<Prepared>)>,
    /// ParameterDescription of a statement whose RowDescription is still to come.
    pub(super) half_described: Option<Box<[u8]>>,
    /// Whether the next message of the client has not arrived whole, so that more must be read however much is held.
    pub(super) starved: bool,
    /// Whether a copy message waits for answers that the backend was asked to give.
    pub(super) flushed: bool,
    /// The client sends nothing more; what it has sent is still done.
    pub(super) client_closed: bool,
    pub(super) tally: Counted,
    pub(super) marks: Marks,
    pub(super) scratch: Option<Box<crate::plan::cache::Scratch>>,
    /// Its place at the gate, once it has touched rows of several shards.
    pub(super) ticket: Option<Ticket>,
    /// What was known when its transaction came to the gate, if other things are by now.
    pub(super) began_on: Option<Arc<Snapshot>>,
    /// The batch under way, to be run again if a guard refuses it; and since when that was done, while it is begun again.
    pub(super) kept: Option<Box<Kept>>,
    pub(super) again: Option<Instant>,
    /// What SQL calls differently than the backend in this batch.
    pub(super) renamed: Option<Box<Renamed>>,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session")
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}

impl Session {
    /// Serves the client until one side ends it.
    pub async fn run(&mut self) {
        let end = match self.serve().await {
            Ok(()) => End::Client,
            Err(end) => end,
        };
        Box::pin(self.finish(end)).await;
    }

    async fn serve(&mut self) -> Result<(), End> {
        loop {
            self.answer()?;
            while self.is_script_due() {
                Box::pin(self.go_on_with_script()).await?;
            }
            if self.holds_ready() {
                Box::pin(self.give_ready()).await?;
            }
            if self.phase == Phase::Idle && self.pipeline.is_empty() && self.link.is_some() {
                self.rest().await?;
            }
            if self.several.fails_elsewhere() && self.phase == Phase::Idle {
                Box::pin(self.fail_elsewhere()).await;
            }
            if self.must_replay() {
                Box::pin(self.run_again()).await?;
                continue;
            }
            if self.listening.is_some() {
                self.deliver()?;
                if self.must_join_others() {
                    Box::pin(self.join_others()).await?;
                }
            }
            // Boxes: what the work needs is not kept while the client thinks.
            let none = self.client.buffered().is_empty();
            if none || !Box::pin(self.requests()).await? {
                let done = self.client_closed && !self.answers_on_its_own();
                if done || self.left_in_copy() {
                    return Ok(());
                }
                if self.copying.is_some() {
                    Box::pin(self.wait_in_copy()).await?;
                } else {
                    self.wait().await?;
                }
            }
        }
    }

    /// Whether the backend goes on without a further word of the client's.
    fn answers_on_its_own(&self) -> bool {
        self.phase == Phase::Answering && self.pipeline.owes_ready()
    }

    /// The end of a session: says why, cancels what still runs, closes what is not at rest.
    pub(super) async fn finish(&mut self, end: End) {
        if let End::Told(notice) = &end
            && !(self.backend_rest.forward && self.backend_rest.bytes > 0)
        {
            // Within a message that has begun nothing can be said.
            notice.put(self.client.out());
        }
        if !matches!(end, End::Client) || !self.client.is_flushed() {
            self.say_goodbye().await;
        }
        if self.fan.is_some() {
            self.abandon_copy();
            drop(Box::pin(self.rest_fan()).await);
        }
        let runs = self.pipeline.owes_ready() || self.phase != Phase::Idle;
        if let (Some(link), true, End::Client | End::Told(_)) = (&mut self.link, runs, &end) {
            // The server would go on with a query that nobody waits for.
            Box::pin(ending::stop(link, &self.shared.tls)).await;
        }
        if let End::Told(words) = &end {
            self.count_refusal(words);
        }
        self.fold();
        self.cancel.detach();
        let clean = self.link.is_some() && self.at_rest();
        let kept = self.mode == PoolMode::Session || self.pinned.is_some();
        if clean && !kept {
            drop(self.unlink().await);
        } else if kept {
            drop(tokio::time::timeout(RESET_PATIENCE, self.reset_kept(clean)).await);
        }
        self.link = None;
        self.several.close();
        self.parked.clear();
    }

    /// Gives back the backends that the session kept for itself, as new: what it left in them is discarded.
    async fn reset_kept(&mut self, link_is_clean: bool) {
        let link = self.link.take().filter(|_| link_is_clean);
        for link in link.into_iter().chain(std::mem::take(&mut self.parked)) {
            self.link = Some(link);
            let spent = self.link.as_ref().is_some_and(|link| link.spent);
            let target = self.link.as_ref().map(|link| &link.lease.target);
            let doubtful = target.is_some_and(|target| self.cancel.is_doubtful(target));
            let quiet = !self.cancel.detach() && !doubtful && !spent;
            if quiet
                && matches!(self.prelude(b"DISCARD ALL").await, Ok(Ok(())))
                && let Some(mut link) = self.link.take()
            {
                link.lease.applied = Applied::default();
                link.lease.statements.clear();
                link.lease.release();
            }
            // Else dropped: closed.
            self.link = None;
        }
    }

    async fn say_goodbye(&mut self) {
        // The client may be gone as well, or not read: it has this long to take the last words.
        let flushed = async {
            if self.client.flush().await.is_ok() {
                self.client.shutdown().await;
            }
        };
        drop(tokio::time::timeout(GOODBYE_PATIENCE, flushed).await);
    }

    /// Whether the session keeps a backend for what its statements may depend on. An advisory lock is nothing that other
    /// backends lack.
    pub(super) fn is_kept(&self) -> bool {
        let lock = |(reason, _): &(PinReason, ShardId)| *reason == PinReason::SessionAdvisoryLock;
        self.pinned.is_some_and(|pin| !lock(&pin))
    }

    /// Whether the link is at rest: answered everything, no transaction.
    pub(super) fn at_rest(&self) -> bool {
        self.pipeline.is_empty()
            && self.phase == Phase::Idle
            && self.backend_rest.bytes == 0
            && !(self.client_rest.forward && self.client_rest.bytes > 0)
            && self
                .link
                .as_ref()
                .is_some_and(|link| link.status == Status::Idle)
    }

    /// Between batches: gives the backend back when nothing holds it.
    async fn rest(&mut self) -> Result<(), End> {
        if self.runs_aside() {
            Box::pin(self.end_aside()).await?;
        }
        if !self.at_rest() {
            return Ok(());
        }
        if self.link.as_ref().is_some_and(|link| link.listens) {
            Box::pin(self.stop_listening_there()).await;
        }
        if self.mode == PoolMode::Session
            || self
                .pinned
                .is_some_and(|(_, shard)| self.link_shard() == Some(shard))
        {
            if let Some(link) = &mut self.link {
                link.hold = Hold::Loose;
            }
            self.fold();
            return Ok(());
        }
        self.unlink().await
    }

    /// Whether a transaction runs beside a deferred one.
    fn runs_aside(&self) -> bool {
        let open = |link: &Link| link.hold == Hold::AsideTransaction && link.status != Status::Idle;
        self.link.as_deref().is_some_and(open)
    }

    /// Ends the transaction that ran beside a deferred one: nothing of it stays.
    pub(super) async fn end_aside(&mut self) -> Result<(), End> {
        if self.runs_aside() {
            drop(self.prelude(b"ROLLBACK").await?);
            if let Some(link) = &mut self.link {
                link.lease.applied = link.at_begin.clone();
            }
        }
        Ok(())
    }

    /// The shard of the link.
    pub(super) fn link_shard(&self) -> Option<ShardId> {
        self.link.as_ref().map(|link| link.shard)
    }

    /// Gives the backend back, after every cancel that is on its way to it.
    pub(super) async fn unlink(&mut self) -> Result<(), End> {
        if self.cancel.detach() {
            // A cancel is on its way: wait until it has arrived, and let it hit an empty query rather than the next
            // client's.
            let arrived = async {
                let quiet = tokio::time::timeout(CANCEL_PATIENCE, self.quiet());
                quiet.await.is_ok() && self.prelude(b"").await.is_ok()
            };
            if !Box::pin(arrived).await {
                self.link = None;
                return Ok(());
            }
        }
        if self.listening.is_some() || self.link.as_ref().is_some_and(|link| link.listens) {
            Box::pin(self.stop_listening_there()).await;
        }
        self.fold();
        let Some(mut link) = self.link.take() else {
            return Ok(());
        };
        link.spent |= self.cancel.is_doubtful(&link.lease.target);
        if link.opaque {
            link.lease.applied = Applied::Unknown;
        }
        self.info.set_idle();
        if !link.spent {
            link.lease.release();
        }
        Ok(())
    }

    /// Waits until no cancel is on its way; the client gets its answer meanwhile. That it does not take it is noticed later.
    pub(super) async fn quiet(&mut self) {
        let mut quiet = pin!(self.cancel.quiet());
        let client = &mut self.client;
        poll_fn(|cx| {
            let _flushed = client.poll_flush(cx);
            quiet.as_mut().poll(cx)
        })
        .await;
    }

    /// Makes the link a backend on this shard, ready for the session's statements. The caller has made sure that no
    /// other link is bound.
    ///
    /// # Errors
    /// Outer: the session is over. Inner: this statement is refused.
    pub(super) async fn link_to(
        &mut self,
        shard: ShardId,
        hold: Hold,
    ) -> Result<Result<(), Words>, End> {
        if self.link_shard() == Some(shard) {
            if let Some(link) = &mut self.link {
                let in_use = self.phase == Phase::Batch && link.hold >= Hold::Loose;
                link.hold = link.hold.max(hold);
                if in_use {
                    // A statement of ours in the middle of a batch would end its implicit transaction.
                    return Ok(Ok(()));
                }
            }
        } else {
            self.park_or_release().await?;
            match self.parked.iter().position(|link| link.shard == shard) {
                Some(at) => {
                    let mut link = self.parked.swap_remove(at);
                    link.hold = hold;
                    link.since = self.marks.begun;
                    self.drew.returns_to(&link.lease);
                    self.attach(link);
                }
                None => {
                    let claim = Claim::Begins;
                    let (lease, shard) = match self.checkout_for(shard, hold, claim).await? {
                        Ok(found) => found,
                        Err(problem) => return Ok(Err(problem)),
                    };
                    let link = Box::new(Link {
                        lease,
                        shard,
                        hold,
                        status: Status::Idle,
                        parsing: SmallVec::new(),
                        at_begin: Applied::Unknown,
                        savepoints: Vec::new(),
                        opaque: false,
                        named: false,
                        unpreparable: false,
                        spent: false,
                        listens: false,
                        gathered: None,
                        since: self.marks.begun,
                    });
                    self.attach(link);
                    self.come_to_numbers().await?;
                }
            }
        }
        self.bring_up_to_date(hold).await
    }

    pub(super) fn attach(&mut self, mut link: Box<Link>) {
        link.lease.tenure.taken_by(self.info.pid);
        self.cancel.attach(&link.lease.target);
        self.info.set_active(link.shard.0, link.lease.target.pid);
        link.lease.info.set_leased(self.info.pid);
        self.tally.server_assignments += 1;
        self.link = Some(link);
    }

    pub(super) async fn park_or_release(&mut self) -> Result<(), End> {
        let keep = self.mode == PoolMode::Session
            || self
                .pinned
                .is_some_and(|(_, shard)| self.link_shard() == Some(shard));
        if keep {
            self.fold();
            self.parked.extend(self.link.take());
            return Ok(());
        }
        if self.link.is_some() {
            self.unlink().await
        } else {
            Ok(())
        }
    }

    /// Tells the backend the session's settings and, for a transaction, replays what was deferred.
    pub(super) async fn bring_up_to_date(&mut self, hold: Hold) -> Result<Result<(), Words>, End> {
        let Some(link) = &mut self.link else {
            return Ok(Ok(()));
        };
        let known = matches!(&link.lease.applied, Applied::Known(_, hash) if *hash == self.parameters.wanted_hash());
        if !known
            && link.status != Status::Failed
            && let Some(sql) = parameters::difference(&link.lease.applied, self.parameters.wanted())
        {
            let told = Applied::Known(
                Arc::clone(self.parameters.wanted()),
                self.parameters.wanted_hash(),
            );
            if let Err(problem) = self.prelude(sql.as_bytes()).await? {
                // The backend's settings are in doubt: it must not serve anyone.
                self.link = None;
                self.cancel.detach();
                return Ok(Err(problem));
            }
            if let Some(link) = &mut self.link {
                link.lease.applied = told;
            }
            self.told_within(&sql);
        }
        self.report_changes();
        let begins = matches!(hold, Hold::Bound | Hold::AsideTransaction);
        let outside = self
            .link
            .as_ref()
            .is_some_and(|link| link.status == Status::Idle);
        if begins && outside && self.deferred.is_some() {
            return Box::pin(self.replay(hold)).await;
        }
        Ok(Ok(()))
    }

    async fn replay(&mut self, hold: Hold) -> Result<Result<(), Words>, End> {
        let Some(deferred) = self.deferred.take() else {
            return Ok(Ok(()));
        };
        if let Some(link) = &mut self.link {
            link.at_begin = link.lease.applied.clone();
        }
        for text in deferred.replay() {
            if let Err(problem) = self.prelude(text).await? {
                self.deferred = Some(deferred);
                self.link = None;
                self.cancel.detach();
                return Ok(Err(problem));
            }
        }
        if hold == Hold::AsideTransaction {
            self.deferred = Some(deferred);
        } else {
            let one_each = deferred.statement_snapshots() && self.begins_read_committed();
            if one_each {
                self.several.begun(Some(deferred));
            } else if self.has_snapshots() {
                self.several.begun(Some(deferred));
                return Box::pin(self.take_snapshots()).await;
            } else {
                self.several.stays_with_its_snapshot();
            }
        }
        Ok(Ok(()))
    }

    /// Tells the client about reported settings that differ on this backend from what it was told last.
    pub(super) fn report_changes(&mut self) {
        let Some(link) = &self.link else { return };
        if link.lease.reported.hash() == self.reported.hash() {
            return;
        }
        let out = self.client.out();
        for (name, value) in link.lease.reported.iter() {
            if self.reported.get(name) != Some(value) {
                note_reported(&self.info, name, value);
                put_parameter_status(out, name, value);
            }
        }
        self.reported = link.lease.reported.clone();
        self.reported.share(&self.database.reports);
    }

    /// Runs a statement of ours on the link and reads its answer to the end; the client sees nothing of it.
    ///
    /// # Errors
    /// Outer: the backend is lost. Inner: the server's error, as the client may see it.
    pub(super) async fn prelude(&mut self, sql: &[u8]) -> Result<Result<(), Words>, End> {
        Ok(Box::pin(self.ask(sql)).await?.map(drop))
    }

    /// As [`Session::prelude`], and hands back the first value of the last row, if there is one that is text.
    ///
    /// # Errors
    /// As [`Session::prelude`].
    pub(super) async fn ask(&mut self, sql: &[u8]) -> Result<Result<Option<String>, Words>, End> {
        let Some(link) = &mut self.link else {
            return Err(End::Client);
        };
        put_query(link.lease.stream.out(), sql);
        let (mut problem, mut value) = (None, None);
        loop {
            let Some(header) =
                frame::backend(link.lease.stream.buffered()).map_err(|error| broken(&error))?
            else {
                read_more(link, &self.database).await?;
                continue;
            };
            let buffered = link.lease.stream.buffered();
            if buffered.len() < header.size {
                read_more(link, &self.database).await?;
                continue;
            }
            let body = &buffered[frame::HEADER..header.size];
            let mut ready = false;
            match header.tag {
                b'E' => problem = problem.or_else(|| Some(Words::Servers(body.to_vec()))),
                b'D' => value = first_value(body),
                b'N' if self.welcoming => {
                    // About what the client started with: PostgreSQL tells it before the session begins.
                    put(self.client.out(), b'N', |out| out.extend_from_slice(body));
                }
                b'Z' => {
                    link.status = Status::decode(body).map_err(|error| broken(&error))?;
                    ready = true;
                }
                b'S' => {
                    if let Ok((name, value)) = crate::wire::backend::parameter_status(body) {
                        let (name, value) = (name.to_vec(), value.to_vec());
                        link.lease.reported.set(&name, &value);
                    }
                }
                _ => {}
            }
            link.lease.stream.consume(header.size);
            if ready {
                // A simple query ends the unnamed statement.
                link.lease.unnamed = None;
                return Ok(problem.map_or(Ok(value), Err));
            }
        }
    }

    /// A backend on this shard; for what any shard can answer, on the next one that can be reached, which is then this
    /// session's.
    pub(super) async fn checkout_for(
        &mut self,
        wanted: ShardId,
        hold: Hold,
        claim: Claim,
    ) -> Result<Result<(Lease, ShardId), Words>, End> {
        let count = self.database.settings.shards.len();
        let problem = match self.checkout(wanted, claim).await? {
            Waited::Lease(lease) => return Ok(Ok((lease, wanted))),
            Waited::Cancelled => return Ok(Err(reply::cancelled().into())),
            Waited::Failed(problem) => problem,
        };
        let may_move = hold != Hold::Bound && problem.is_of_the_place();
        for step in 1..if may_move { count } else { 1 } {
            let next = ShardId(u16::try_from((wanted.index() + step) % count).unwrap_or(0));
            if !self.snapshot.answering().contains(next) {
                continue;
            }
            match self.checkout(next, claim).await? {
                Waited::Lease(lease) => {
                    self.any = next;
                    return Ok(Ok((lease, next)));
                }
                Waited::Cancelled => return Ok(Err(reply::cancelled().into())),
                // What is told is about the first.
                Waited::Failed(_) => {}
            }
        }
        Ok(Err(reply::checkout(
            self.database.shard_name(wanted),
            &problem,
        )
        .into()))
    }

    /// What comes of waiting for a backend on this shard; a cancel or the client's end stops the wait.
    async fn checkout(&mut self, shard: ShardId, claim: Claim) -> Result<Waited, End> {
        let pool = self.pool(shard);
        if let Some(lease) = pool.try_acquire(claim) {
            return Ok(Waited::Lease(lease));
        }
        let begun = self.shared.clock.now();
        self.info.set_waiting(begun);
        self.cancel.wait_begins();
        let outcome = Box::pin(self.wait_for(&pool, claim)).await;
        self.cancel.wait_ends();
        self.info.set_idle();
        self.marks.begun = self.shared.clock.now();
        self.tally.wait_micros += micros(self.marks.begun.saturating_duration_since(begun));
        outcome
    }

    async fn wait_for(&mut self, pool: &Arc<Pool>, claim: Claim) -> Result<Waited, End> {
        Ok(match self.wait_beside(pool.acquire(claim)).await? {
            Some(Ok(lease)) => Waited::Lease(lease),
            Some(Err(problem)) => Waited::Failed(problem),
            None => Waited::Cancelled,
        })
    }

    /// Waits for something that no backend of the session's has to say; `None`: a cancel came first. The client's end and
    /// the proxy's are noticed, and what the client was told goes out.
    pub(super) async fn wait_beside<T>(
        &mut self,
        something: impl Future<Output = T>,
    ) -> Result<Option<T>, End> {
        let mut something = pin!(something);
        let mut cancelled = pin!(self.cancel.cancelled());
        let mut asked = pin!(self.info.asked());
        let (client, info) = (&mut self.client, &self.info);
        poll_fn(|cx| {
            if let Poll::Ready(found) = something.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(found)));
            }
            if cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            while asked.as_mut().poll(cx).is_ready() {
                if info.wanted() == Wanted::EndNow {
                    return Poll::Ready(Err(told(reply::shutting_down())));
                }
                // A milder wish does not end the wait; a future that is done must not be asked again.
                asked.set(info.asked());
            }
            if client.poll_flush(cx)?.is_pending() || client.buffered().len() > HIGH_WATER {
                return Poll::Pending;
            }
            match client.poll_fill(cx)? {
                Poll::Ready(0) => Poll::Ready(Err(End::Client)),
                Poll::Ready(_) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// This session's pool on a shard.
    pub(super) fn pool(&mut self, shard: ShardId) -> Arc<Pool> {
        let at = shard.index();
        if let Some(Some(pool)) = self.pools.get(at) {
            return Arc::clone(pool);
        }
        let pool = self.database.pool(&self.user, shard, &self.info.database);
        if self.pools.len() <= at {
            self.pools.resize(at + 1, None);
        }
        self.pools[at] = Some(Arc::clone(&pool));
        pool
    }

    /// Waits until either side can make progress, sending what is buffered meanwhile.
    pub(super) async fn wait(&mut self) -> Result<(), End> {
        if self.must_look_for_types() {
            Box::pin(self.look_for_types()).await;
            return Ok(());
        }
        let idle = self.phase == Phase::Idle && (self.link.is_none() || self.at_rest());
        self.client.relax(false);
        if idle && self.info.thinks_long() {
            self.give_back();
        }
        if idle && self.info.wanted() != Wanted::Nothing && self.deferred.is_none() {
            return Err(told(reply::shutting_down()));
        }
        if self.info.wanted() == Wanted::EndNow {
            return Err(told(reply::shutting_down()));
        }
        let takes_input =
            !self.client_closed && (self.client.buffered().len() <= HIGH_WATER || self.starved);
        let mut seen = Seen::default();
        let withholds = self.withholds();
        let may_deliver = self.listening.is_some() && self.may_deliver();
        let listening = self.listening.as_deref();
        let (client, link, info) = (&mut self.client, &mut self.link, &self.info);
        poll_fn(|cx| {
            if !withholds && let Poll::Ready(Err(error)) = client.poll_flush(cx) {
                return Poll::Ready(Err(End::from(error)));
            }
            if let Some(listening) = listening {
                let takes = may_deliver && client.unsent() < HIGH_WATER;
                seen.progress |= listening.poll(cx, takes).is_ready();
            }
            if info.poll_asked(cx).is_ready() {
                seen.progress = true;
            }
            if let Some(link) = link.as_mut() {
                let stream = link.stream();
                let was_full = stream.unsent() >= HIGH_WATER;
                if !stream.is_flushed() && matches!(stream.poll_flush(cx), Poll::Ready(Err(_))) {
                    seen.backend_end = true;
                }
                // There is room again for what the client has sent already.
                seen.progress |= was_full && stream.unsent() < HIGH_WATER;
                // A client that does not take its rows stops us reading more of them.
                if client.unsent() < HIGH_WATER {
                    match stream.poll_fill(cx) {
                        Poll::Ready(Ok(0) | Err(_)) => seen.backend_end = true,
                        Poll::Ready(Ok(_)) => seen.progress = true,
                        Poll::Pending => {}
                    }
                }
                let blocked = stream.unsent() >= HIGH_WATER;
                if !takes_input || blocked {
                    return seen.done();
                }
            }
            // A client that does not take its answers is not asked for more.
            if takes_input && client.unsent() < HIGH_WATER && !seen.client_end {
                match client.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => seen.client_end = true,
                    Poll::Ready(Ok(_)) => seen.progress = true,
                    // It thinks, and who thinks needs no buffers.
                    Poll::Pending if idle => {
                        let flushed = client.is_flushed();
                        client.relax(flushed);
                    }
                    Poll::Pending => {}
                }
            }
            seen.done()
        })
        .await?;
        self.digest(seen)
    }

    /// The client thinks for long: what only its work needs is given back.
    fn give_back(&mut self) {
        self.client.give_back();
        self.pipeline.give_back();
        self.parameters.give_back();
        self.statements.give_back();
        self.portals.give_back();
        self.pools = Vec::new();
        self.unconfirmed.shrink_to_fit();
        self.closed.shrink_to_fit();
        self.pending.shrink_to_fit();
        self.parked.shrink_to_fit();
        self.scratch = None;
        self.tally.give_back();
        self.info.has_given_back();
    }

    fn digest(&mut self, seen: Seen) -> Result<(), End> {
        if seen.client_end {
            if self.phase != Phase::Answering || self.client.buffered().is_empty() {
                return Err(End::Client);
            }
            // It has said more before it left, Terminate for one: as in PostgreSQL that is done first.
            self.client_closed = true;
        }
        if seen.backend_end {
            // What it said before it closed comes first: a FATAL error explains the end.
            self.answer()?;
            return Err(self.backend_lost());
        }
        Ok(())
    }

    /// The backend closed its connection.
    pub(super) fn backend_lost(&self) -> End {
        let shard = self
            .link
            .as_ref()
            .map_or("", |link| self.database.shard_name(link.shard));
        told(reply::backend_lost(shard))
    }

    /// ReadyForQuery's status as the client sees it.
    pub(super) fn status(&self) -> Status {
        if let Some(deferred) = &self.deferred {
            return if deferred.failed() {
                Status::Failed
            } else {
                Status::Transaction
            };
        }
        self.link.as_ref().map_or(Status::Idle, |link| link.status)
    }

    /// Appends ReadyForQuery of a batch that was answered here.
    pub(super) fn ready_here(&mut self) {
        if self.script.is_some() && self.statement_is_over() {
            return;
        }
        let status = self.status();
        if status == Status::Idle && self.hold_ready() {
            return;
        }
        put_ready(self.client.out(), status);
        self.batch_ends(status);
    }

    /// A batch is over.
    pub(super) fn batch_ends(&mut self, status: Status) {
        self.looking.arrays &= status != Status::Idle;
        self.count_end();
        self.phase = if self.pipeline.owes_ready() {
            Phase::Answering
        } else {
            Phase::Idle
        };
        self.skip = false;
        self.sure = false;
        self.running = None;
        self.hidden = 0;
        self.unconfirmed.clear();
        self.closed.clear();
        self.renamed = None;
        if let Some(link) = &mut self.link {
            link.gathered = None;
        }
        if status == Status::Idle {
            self.portals.clear();
            self.scattered = None;
            self.cursors.clear();
            self.tally.transactions += 1;
            self.leaves_gate();
            if self.parameters.in_transaction() {
                self.transaction_ends(!self.failed);
            }
            self.listening_rests();
        }
        if status != Status::Failed {
            self.complete_date_style();
        }
        self.failed = false;
        self.keeps_no_more(status);
        self.several.batch_ends();
        self.info.set_in_transaction(status != Status::Idle);
    }

    /// Settings made in the transaction hold, or are as before it.
    pub(super) fn transaction_ends(&mut self, committed: bool) {
        let changed = self.parameters.end(committed);
        self.several.close();
        self.cursors.clear();
        self.listening_ends(committed);
        self.context_stale = true;
        if let Some(link) = &mut self.link {
            link.transaction_ended();
            if changed {
                link.lease.applied = link.at_begin.clone();
            }
        }
    }

    /// Before a statement is sent: what stays even if it fails or is rolled back keeps the backend whatever becomes of it.
    pub(super) fn pin_before(&mut self, effect: &Effect) {
        if let Effect::Pins(reason @ (PinReason::SessionAdvisoryLock | PinReason::Code)) = effect {
            self.pin(*reason);
        }
    }

    /// The session keeps its backend from now on.
    pub(super) fn pin(&mut self, reason: PinReason) {
        if let (Some((PinReason::SessionAdvisoryLock, shard)), true) =
            (self.pinned, reason != PinReason::SessionAdvisoryLock)
            && self.link_shard() == Some(shard)
        {
            // It has more there than the lock from now on.
            self.pinned = None;
        }
        if let (None, Some(shard)) = (self.pinned, self.link_shard()) {
            self.pinned = Some((reason, shard));
            self.any = shard;
            self.info.set_pin(Some(pin_word(reason)));
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Also when the session panics: nobody can cancel what is gone.
        self.shared.cancels.remove(self.info.pid);
    }
}

/// What became of a wait for a backend.
enum Waited {
    Lease(Lease),
    Cancelled,
    Failed(CheckoutError),
}

/// What a wait has seen.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "three things can happen at once"
)]
struct Seen {
    progress: bool,
    client_end: bool,
    backend_end: bool,
}

impl Seen {
    fn done(&self) -> Poll<Result<(), End>> {
        if self.progress || self.client_end || self.backend_end {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}

/// How long a session that ends waits for its query to end.
pub(super) const CANCEL_PATIENCE: crate::clock::Duration = crate::clock::Duration::from_secs(5);
/// How long the backends of a session that kept them may take to be reset.
const RESET_PATIENCE: crate::clock::Duration = crate::clock::Duration::from_secs(5);
/// How long a client has to take its session's last words.
pub(super) const GOODBYE_PATIENCE: crate::clock::Duration = crate::clock::Duration::from_secs(2);

pub(super) async fn read_more(link: &mut Link, database: &Database) -> Result<(), End> {
    let lost = || told(reply::backend_lost(database.shard_name(link.shard)));
    let stream = &mut link.lease.stream;
    let flushed = stream.flush().await.is_ok();
    if !flushed || stream.fill().await.unwrap_or(0) == 0 {
        return Err(lost());
    }
    Ok(())
}

/// The first column of a DataRow, when it is text.
pub(super) fn first_value(body: &[u8]) -> Option<String> {
    let mut body = frame::Body::new(body);
    body.u16().ok()?;
    let value = body.value().ok()??;
    String::from_utf8(value.to_vec()).ok()
}

/// The session ends with these words.
pub(super) fn told(notice: crate::wire::notice::Notice) -> End {
    End::Told(Box::new(notice.into()))
}

/// The session cannot trust its backend's bytes any more.
pub(super) fn broken(problem: &dyn std::fmt::Display) -> End {
    told(reply::backend_broken(problem))
}

pub(super) fn micros(duration: crate::clock::Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

fn pin_word(reason: PinReason) -> &'static str {
    match reason {
        PinReason::TemporaryTable => "temporary table",
        PinReason::SessionAdvisoryLock => "session advisory lock",
        PinReason::HoldCursor => "WITH HOLD cursor",
        PinReason::Listen => "LISTEN",
        PinReason::SqlPrepare => "SQL PREPARE",
        PinReason::Load => "LOAD",
        PinReason::SetRole => "SET ROLE",
        PinReason::Setting => "a setting that cannot be replayed",
        PinReason::Code => "code that may have left something",
        PinReason::Sequence => "currval or lastval",
    }
}
