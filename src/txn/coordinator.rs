//! Begins transactions over several shards, and brings to an end what a session has lost sight of.
//!
//! What must stay true: what `settle` says once is the outcome for ever; what it does not know it does not guess.

use super::{
    decision::{self, Finish, Finished},
    gid::{Gid, TransactionId},
    live::{Incarnation, Number},
    recover,
    waiting::{self, Condemned, Suspect},
};
use crate::{
    catalog::{shard::ShardId, snapshot::Standing as MapStanding},
    clock::{Duration, Instant},
    config::settings::Database,
    inspect::AskError,
    metrics::{
        Metrics,
        transactions::{Distributed, Outcome, Proxy},
    },
    registry::{Agreement, Announced, Kept, Late, Me, NotReady, Registry},
};
use std::sync::{Arc, atomic::Ordering};
use tokio::sync::{Mutex, watch};

/// How soon a server that could not say is asked again.
const AGAIN: Duration = Duration::from_millis(200);
/// How long one question waits for a commit that is under way.
const WAIT: Duration = Duration::from_secs(1);
/// How often every proxy looks for what was left in doubt.
pub const ROUND: Duration = Duration::from_secs(5);

/// The transactions over several shards of one logical database.
#[derive(Debug)]
pub struct Coordinator {
    /// `None`: one shard, or no control role.
    registry: Option<Registry>,
    incarnation: Arc<Incarnation>,
    /// How long decisions are kept.
    retention: Duration,
    view: Arc<Distributed>,
    standing: watch::Sender<Standing>,
    /// Held for a heartbeat.
    pulse: Mutex<Pulse>,
}

/// Whether the last heartbeat was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pulse {
    Felt,
    Missed,
}

/// Whether recovery goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// The shards have not been asked yet.
    New,
    Working,
    /// The database was replaced: its successor recovers.
    Retired,
    /// The process ends: it has said so.
    Gone,
}

/// A transaction over several shards; live, so that recovery leaves it alone, until it is dropped.
#[derive(Debug)]
pub struct Transaction {
    id: TransactionId,
    text: String,
    decider: ShardId,
    owner: String,
    names: Arc<[String]>,
    /// Keeps it live.
    _number: Number,
}

/// What has become of a transaction.
#[derive(Debug)]
pub enum Settled {
    Committed,
    /// And nobody can commit it any more.
    Aborted,
    /// The decider cannot be asked, or its commit is still under way. Nothing may be rolled back.
    Unknown(AskError),
}

/// Why a prepared part was not finished. Recovery will try again.
#[derive(Debug, thiserror::Error)]
pub enum Unfinished {
    #[error("{0}")]
    NotReady(NotReady),
    #[error("shard {shard}: {error}")]
    Server { shard: String, error: AskError },
}

impl Coordinator {
    /// Of a database; opens nothing.
    #[must_use]
    pub fn new(database: &Database, incarnation: Arc<Incarnation>, metrics: &Metrics) -> Arc<Self> {
        let registry = Registry::new(database);
        let view = match &registry {
            Some(_) => metrics.transactions.of(&database.name),
            None => Arc::default(),
        };
        Arc::new(Self {
            registry,
            incarnation,
            retention: database.two_phase_retention,
            view,
            standing: watch::Sender::new(Standing::New),
            pulse: Mutex::new(Pulse::Felt),
        })
    }

    /// Whether there is anything to look after: several shards and a control role.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.registry.is_some()
    }

    /// Resolves once the shards have been asked for the first time; at once where they never are.
    pub async fn looked(&self) {
        if self.is_wanted() {
            let mut standing = self.standing.subscribe();
            // The sender lives in `self`, so it cannot be gone.
            drop(standing.wait_for(|now| *now != Standing::New).await);
        }
    }

    /// The database was replaced: rounds are its successor's.
    pub fn retire(&self) {
        self.standing.send_replace(Standing::Retired);
    }

    /// Whether rounds are another's.
    #[must_use]
    pub fn is_retired(&self) -> bool {
        match *self.standing.borrow() {
            Standing::New | Standing::Working => false,
            Standing::Retired | Standing::Gone => true,
        }
    }

    /// The process ends: the others need not wait for its silence. Not while one of its transactions is live.
    pub async fn leave(&self) {
        self.standing.send_replace(Standing::Gone);
        // A heartbeat that is on its way must not come after this.
        let _turn = self.pulse.lock().await;
        let Some(registry) = self.registry.as_ref().filter(|it| it.is_known()) else {
            return;
        };
        if self.incarnation.is_idle()
            && let Err(problem) = registry.leave(self.me(None)).await
        {
            let database = registry.database();
            tracing::debug!(database, %problem, "the home shard was not told of the end");
        }
    }

    /// Begins a transaction that `decider` decides and in which `others` are prepared, for the role `owner`, as which all
    /// its backends logged in. Asks nobody.
    ///
    /// # Errors
    /// [`NotReady`]: it could not be finished if something went wrong.
    pub fn begin(
        &self,
        decider: ShardId,
        others: &[ShardId],
        owner: &str,
    ) -> Result<Transaction, NotReady> {
        let registry = self.registry()?;
        let installation = registry.ready([decider].into_iter().chain(others.iter().copied()))?;
        let number = self.incarnation.begin();
        let names = registry.names();
        let id = TransactionId {
            installation,
            incarnation: number.incarnation(),
            number: number.number(),
            decider: names[decider.index()].clone(),
        };
        Ok(Transaction {
            text: id.to_string(),
            id,
            decider,
            owner: owner.to_owned(),
            names,
            _number: number,
        })
    }

    /// Whether the decider's COMMIT, whose answer was lost, has happened; if it has not, it never will. Asks until
    /// `patience` is at its end.
    pub async fn settle(&self, transaction: &Transaction, patience: Duration) -> Settled {
        let Ok(registry) = self.registry() else {
            return Settled::Unknown(AskError::Connection(NotReady::NoControl.to_string()));
        };
        let last = Last::default();
        let asking = async {
            loop {
                let (id, owner) = (transaction.id(), transaction.owner.as_str());
                let asked = match registry.lease(transaction.decider).await {
                    Ok(lease) => decision::decide(lease, id, owner, WAIT).await,
                    Err(error) => Err(error),
                };
                match asked {
                    Ok(outcome) => return outcome,
                    Err(error) => last.set(error),
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        match tokio::time::timeout(patience, asking).await {
            Ok(Outcome::Committed) => Settled::Committed,
            Ok(Outcome::Aborted) => Settled::Aborted,
            Err(_) => Settled::Unknown(last.take()),
        }
    }

    /// Finishes the part of `shard` as the control role, where the session's own backend cannot. Tries until `patience`
    /// is at its end.
    ///
    /// # Errors
    /// [`Unfinished`]: recovery goes on trying.
    pub async fn finish(
        &self,
        transaction: &Transaction,
        shard: ShardId,
        how: Finish,
        patience: Duration,
    ) -> Result<Finished, Unfinished> {
        let registry = self.registry().map_err(Unfinished::NotReady)?;
        let gid = transaction.gid(shard);
        let last = Last::default();
        let trying = async {
            loop {
                let tried = match registry.lease(shard).await {
                    Ok(lease) => decision::finish(lease, &gid, &transaction.owner, how).await,
                    Err(error) => Err(error),
                };
                match tried {
                    Ok(finished) => return finished,
                    Err(error) => last.set(error),
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        let finished = tokio::time::timeout(patience, trying).await;
        finished.map_err(|_elapsed| Unfinished::Server {
            shard: registry.name(shard).to_owned(),
            error: last.take(),
        })
    }

    /// Says on the home shard that this process is there; `number` is its `server.id`. Nothing before the first round.
    pub async fn beat(&self, number: Option<u8>) {
        if let Some(registry) = self.registry.as_ref().filter(|it| it.is_known()) {
            drop(self.beat_once(registry, number).await);
        }
    }

    /// Who is there, this process among them, unless it has left.
    async fn beat_once(
        &self,
        registry: &Registry,
        number: Option<u8>,
    ) -> Result<Vec<Proxy>, AskError> {
        let mut pulse = self.pulse.lock().await;
        if *self.standing.borrow() == Standing::Gone {
            return Ok(self.view.proxies());
        }
        let proxies = registry.beat(self.me(number)).await;
        let database = registry.database();
        let now = if proxies.is_ok() {
            Pulse::Felt
        } else {
            Pulse::Missed
        };
        match (std::mem::replace(&mut *pulse, now), &proxies) {
            (Pulse::Felt, Err(problem)) => {
                tracing::warn!(database, %problem, "the home shard does not take this proxy's heartbeat");
            }
            (Pulse::Missed, Ok(_)) => {
                tracing::info!(
                    database,
                    "the home shard takes this proxy's heartbeat again"
                );
            }
            (Pulse::Felt, Ok(_)) | (Pulse::Missed, Err(_)) => {}
        }
        let proxies = proxies?;
        self.view.set_proxies(proxies.clone());
        Ok(proxies)
    }

    /// Looks once for rings of waits that these transactions of this proxy are on; which of them must end.
    pub async fn find_rings(
        &self,
        watch: &mut waiting::Watch,
        suspects: &[Suspect],
        interval: Duration,
    ) -> Vec<Condemned> {
        let Some(registry) = self.registry.as_ref().filter(|it| it.is_known()) else {
            return Vec::new();
        };
        watch.round(registry, suspects, interval).await
    }

    /// One of a ring was ended.
    pub fn count_deadlock(&self) {
        self.view.deadlocks.increment();
    }

    /// A statement has waited while its keys changed their owner.
    pub fn count_held(&self, time: Duration) {
        self.view.held.increment();
        self.view.held_micros.add_time(time);
    }

    /// One was refused because nobody could say where its keys were.
    pub fn count_held_refused(&self) {
        self.view.held_refused.increment();
    }

    /// The name of this process among those that serve the database.
    #[must_use]
    pub fn incarnation(&self) -> u64 {
        self.incarnation.id()
    }

    /// What is known of other proxies' schema changes; none where there is nobody to agree with.
    #[must_use]
    pub fn agreement(&self) -> Option<&Agreement> {
        self.registry.as_ref().map(Registry::agreement)
    }

    /// What is known of the map that all proxies share, and whether it may be relied on; `None`: there is nobody to share
    /// one with.
    #[must_use]
    pub fn map(&self) -> Option<(Option<Kept>, MapStanding)> {
        let registry = self.registry.as_ref()?;
        Some(registry.map())
    }

    /// Asks for the map again: others may have changed it.
    ///
    /// # Errors
    /// [`AskError`]: what was known stays.
    pub async fn renew_map(&self) -> Result<(), AskError> {
        let Some(registry) = &self.registry else {
            return Ok(());
        };
        let renewed = registry.renew_map(self.me(None)).await;
        self.show_map(registry);
        renewed
    }

    /// Lets the console show the map as it is known.
    fn show_map(&self, registry: &Registry) {
        if let (Some(kept), _) = registry.map() {
            let epoch = u64::try_from(kept.epoch).unwrap_or_default();
            self.view.map_epoch.store(epoch, Ordering::Relaxed);
            self.view.set_map(kept.content);
        }
    }

    /// Takes over what its predecessor knew of the map; both are before the same home shard.
    pub fn inherit_map(&self, older: &Self) {
        if let (Some(own), Some(older)) = (&self.registry, &older.registry) {
            own.inherit(older);
        }
    }

    /// Whether Shardway's own schema on these shards can be used.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn is_ready(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<(), NotReady> {
        self.registry()?.ready(shards).map(drop)
    }

    /// Whether what was known at that time may not be relied on any more: the other proxies do not wait for this one.
    #[must_use]
    pub fn is_lapsed(&self, now: Instant) -> bool {
        self.agreement().is_some_and(|it| it.is_lapsed(now))
    }

    /// Whether the other proxies may go on without this one in what they hold back.
    #[must_use]
    pub fn is_silent(&self, now: Instant) -> bool {
        self.agreement().is_some_and(|it| it.is_silent(now))
    }

    /// Announces a schema change to the other proxies, before it is committed. Nothing where there is no catalog.
    ///
    /// # Errors
    /// [`NotReady`]: the others would not hear of it.
    pub async fn change_begins(&self) -> Result<Option<Announced>, NotReady> {
        let Some(registry) = &self.registry else {
            return Ok(None);
        };
        match registry.ready([]) {
            Ok(_) => {}
            Err(NotReady::Unreachable { shard, error }) => {
                return Err(NotReady::Unreachable { shard, error });
            }
            // There is no catalog, for nobody.
            Err(_) => return Ok(None),
        }
        let begun = registry.change_begins(self.me(None)).await;
        begun.map(Some).map_err(|error| NotReady::Unreachable {
            shard: registry.name(registry.home()).to_owned(),
            error: error.to_string(),
        })
    }

    /// Numbers a schema change that is committed, or may be; `None`: the next heartbeat does.
    pub async fn change_ends(&self, change: Announced) -> Option<i64> {
        let registry = self.registry.as_ref()?;
        let ended = registry.change_ends(change).await;
        self.told_of_change(ended)
    }

    /// Takes back the announcement of a change that was not made.
    pub async fn change_abandoned(&self, change: Announced) {
        if let Some(registry) = &self.registry {
            self.told_of_change(registry.change_abandoned(change).await);
        }
    }

    fn told_of_change<T>(&self, told: Result<T, AskError>) -> Option<T> {
        let database = self.registry.as_ref().map(Registry::database);
        told.inspect_err(|problem| {
            tracing::warn!(database, %problem, "the home shard was not told of the end of a schema change");
        })
        .ok()
    }

    /// Waits until every other proxy that is there has taken the number over, or relies on nothing any more; at most for
    /// `patience`. Those that have not.
    ///
    /// # Errors
    /// [`AskError`]: nobody knows.
    pub async fn taken_over(&self, epoch: i64, patience: Duration) -> Result<Vec<Late>, AskError> {
        let Some(registry) = &self.registry else {
            return Ok(Vec::new());
        };
        let me = self.me(None);
        let last = std::sync::Mutex::new(Ok(Vec::new()));
        let waiting = async {
            let mut pause = Duration::from_millis(2);
            loop {
                let late = registry.late(me, epoch).await;
                if matches!(&late, Ok(late) if late.is_empty()) {
                    return;
                }
                *last
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner) = late;
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(AGAIN);
            }
        };
        match tokio::time::timeout(patience, waiting).await {
            Ok(()) => Ok(Vec::new()),
            Err(_) => last
                .into_inner()
                .unwrap_or_else(std::sync::PoisonError::into_inner),
        }
    }

    /// All changes up to this number are known here; says so on the home shard.
    pub async fn takes_over(&self, epoch: i64, number: Option<u8>) {
        if let Some(agreement) = self.agreement() {
            agreement.take(epoch);
            self.beat(number).await;
        }
    }

    /// Looks whether the shards can take part in transactions over several, and finishes what was left in doubt, by
    /// whomever. Every few seconds, one at a time.
    pub async fn round(&self, number: Option<u8>) {
        let Some(registry) = &self.registry else {
            return;
        };
        let me = self.me(number);
        registry.look(me).await;
        self.standing.send_if_modified(|standing| {
            let first = *standing == Standing::New;
            if first {
                *standing = Standing::Working;
            }
            first
        });
        self.show_map(registry);
        let Ok(installation) = registry.ready([]) else {
            return;
        };
        let proxies = self.beat_once(registry, number).await;
        let round = recover::Round {
            registry,
            installation,
            incarnation: &self.incarnation,
            proxies: proxies.as_deref().ok(),
            retention: self.retention,
            view: &self.view,
        };
        round.run().await;
    }

    fn me(&self, number: Option<u8>) -> Me {
        Me {
            incarnation: self.incarnation.id(),
            number,
            // Of one that was replaced, its successor says it.
            epoch: match self.agreement() {
                Some(agreement) if !self.is_retired() => agreement.taken(),
                Some(_) | None => 0,
            },
        }
    }

    /// What the proxies share on the servers.
    ///
    /// # Errors
    /// [`NotReady::NoControl`].
    pub fn registry(&self) -> Result<&Registry, NotReady> {
        self.registry.as_ref().ok_or(NotReady::NoControl)
    }
}

impl Transaction {
    /// Its name: the key of its decision.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.text
    }

    /// The name of a shard's part, which needs no quoting but quotation marks around it.
    #[must_use]
    pub fn gid(&self, shard: ShardId) -> String {
        let part: Gid = self.id.part(&self.names[shard.index()]);
        part.to_string()
    }

    /// The shard whose commit decides.
    #[must_use]
    pub fn decider(&self) -> ShardId {
        self.decider
    }
}

/// The last fault, kept past the future that met it.
#[derive(Default)]
struct Last(std::sync::Mutex<Option<AskError>>);

impl Last {
    fn set(&self, error: AskError) {
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
    }

    fn take(self) -> AskError {
        let last = self.0.into_inner();
        last.unwrap_or_else(std::sync::PoisonError::into_inner)
            .unwrap_or(AskError::Timeout)
    }
}
