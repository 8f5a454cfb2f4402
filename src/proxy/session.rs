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

mod asking;
mod keeping;
mod leasing;
mod leaving;
mod linking;
mod waiting;

use super::{
    Shared,
    cancel::Slot,
    copy_in::Copying,
    counting::{Counted, Marks},
    cursors::{CommandPortal, Cursors},
    database::Database,
    fan::Fan,
    link::Link,
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
    metrics::sessions::Registered,
    net::stream::Stream,
    plan::{Context, Plan},
    pool::{backend::Reported, lease::Pool},
    protocol::{
        parameters::{self, Parameters},
        pipeline::Pipeline,
        transaction::Deferred,
    },
    sql::statement::PinReason,
    wire::{
        backend::{Status, put_ready},
        notice::Words,
    },
};
pub(super) use asking::{first_value, read_more};
use smallvec::SmallVec;
use std::{io, sync::Arc};

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

impl Portal {
    /// Whether an Execute of it may still reach shards by what was known when it was bound. What is on a backend is of that
    /// shard alone.
    pub(super) fn may_run_over_shards(&self) -> bool {
        match self {
            Self::Here(_) | Self::There(_) => false,
            Self::Writing(portal) => !portal.has_run(),
            Self::Copying(_) => true,
            Self::Cursor(portal) => !portal.has_run(),
        }
    }
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
        } else {
            self.rests_at_gate();
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
        // What a server has, or what is nothing of a transaction's, is not for this to end.
        self.portals
            .retain(|portal| matches!(portal, Portal::Here(_) | Portal::There(_)));
        self.listening_ends(committed);
        self.context_stale = true;
        if let Some(link) = &mut self.link {
            link.transaction_ended();
            if changed {
                link.lease.applied = link.at_begin.clone();
            }
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Also when the session panics: nobody can cancel what is gone.
        self.shared.cancels.remove(self.info.pid);
    }
}

/// How long a session that ends waits for its query to end.
pub(super) const CANCEL_PATIENCE: crate::clock::Duration = crate::clock::Duration::from_secs(5);
/// How long a client has to take its session's last words.
pub(super) const GOODBYE_PATIENCE: crate::clock::Duration = crate::clock::Duration::from_secs(2);

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
