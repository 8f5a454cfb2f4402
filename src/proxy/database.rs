//! A logical database as it runs: its settings, its snapshot, its cached plans and its pools.

use super::{
    keyring::Keyring,
    learning::{self, Learning},
    session::Defaults,
    waits::Waits,
};
use crate::{
    catalog::{shard::ShardId, snapshot::Snapshot},
    clock::{Clock, Instant},
    config::settings::{self, BackendProof, Credentials, PoolMode, Settings, User},
    gate::Gate,
    metrics::{
        Metrics,
        listeners::NewListener,
        sessions::{NewBackend, Transport as Encryption},
    },
    net::{
        backend::{self, ConnectError, Connected, Who},
        stream::Stream,
        tls::ClientTls,
    },
    plan::{Context, cache::PlanCache},
    pool::{
        backend::{Backend, CancelTarget, Remembered, Reported, Reports, Statements, Tenure},
        common::Common,
        lease::{Opener, Pool},
        listener::{self, Hub, Spawner, state::Standing},
    },
    protocol::parameters::Applied,
    registry::Ids,
    txn::{Incarnation, coordinator::Coordinator},
    wire::startup::Replication,
};

use arc_swap::{ArcSwap, ArcSwapOption};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, atomic::AtomicBool},
};
use tokio::runtime::Handle;

/// A logical database as it runs.
pub struct Database {
    pub settings: Arc<settings::Database>,
    /// Swapped whole; sessions look at it between transactions.
    pub snapshot: ArcSwap<Snapshot>,
    pub plans: PlanCache,
    /// What the servers have that routing by key would give wrong answers with; nothing is routed while it stands.
    pub unfit: ArcSwapOption<String>,
    /// Looks at the servers.
    pub(super) learning: Learning,
    /// Before which statements wait whose keys change their owner.
    pub gate: Arc<Gate>,
    /// Transactions over several shards.
    pub coordinator: Arc<Coordinator>,
    /// Sessions on several shards, where rings of waits are looked for.
    pub waits: Option<Arc<Waits>>,
    /// Ids and numbers of sequences for its tables' defaults.
    pub(super) ids: Ids,
    /// Whether any session has asked for `currval` or `lastval`: backends are then handed on without such numbers.
    pub numbers_asked: AtomicBool,
    pools: Mutex<HashMap<PoolKey, Arc<Pool>>>,
    hubs: Mutex<Hubs>,
    /// What its sessions have in common.
    pub(super) reports: Reports,
    pub(super) contexts: Common<Context>,
    pub(super) defaults: Common<Defaults>,
    /// Those whose place it has taken: their sessions stay there until their transactions end.
    replaced: Mutex<Vec<Weak<Self>>>,
    parts: Parts,
}

/// What a database is built from, handed down by the composition root.
#[derive(Clone, Debug)]
pub struct Parts {
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub runtime: Handle,
    pub tls: Arc<ClientTls>,
    pub keyring: Arc<Keyring>,
    /// The process, under the name that its transactions bear.
    pub incarnation: Arc<Incarnation>,
    /// Runs what outlives its session: shared listeners.
    pub spawner: Spawner,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PoolKey {
    credentials: Credentials,
    /// The user of ours whose clients' proofs open these backends: nobody else may use them.
    shown_by: Option<String>,
    size: Option<usize>,
    shard: ShardId,
    /// The server's database, where the client's name decides it (the wildcard database).
    database: String,
}

/// Shared listeners.
#[derive(Default)]
struct Hubs {
    by_key: HashMap<HubKey, Arc<Hub>>,
    /// Of the database: sessions that are still on it make theirs of the same standing.
    standing: Standing,
}

/// Whose listeners they are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct HubKey {
    /// The database on the servers.
    database: String,
    credentials: Credentials,
    shown_by: Option<String>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database")
            .field("name", &self.settings.name)
            .finish_non_exhaustive()
    }
}

impl Database {
    /// A database with no backend yet.
    #[must_use]
    pub fn new(
        settings: Arc<settings::Database>,
        plans: PlanCache,
        gate: Arc<Gate>,
        parts: Parts,
    ) -> Arc<Self> {
        let coordinator =
            Coordinator::new(&settings, Arc::clone(&parts.incarnation), &parts.metrics);
        let looks = coordinator.is_wanted() && !settings.deadlock_interval.is_zero();
        Arc::new(Self {
            snapshot: ArcSwap::from(learning::unlearned(&settings)),
            gate,
            coordinator,
            waits: looks.then(Arc::default),
            ids: Ids::new(parts.clock, settings.sequence_block),
            settings,
            plans,
            unfit: ArcSwapOption::empty(),
            learning: Learning::default(),
            numbers_asked: AtomicBool::new(false),
            pools: Mutex::default(),
            hubs: Mutex::default(),
            reports: Reports::default(),
            contexts: Common::default(),
            defaults: Common::default(),
            replaced: Mutex::default(),
            parts,
        })
    }

    /// The monotonic now.
    pub(super) fn now(&self) -> Instant {
        self.parts.clock.now()
    }

    /// Those whose place it has taken and that somebody uses still.
    pub(super) fn replaced_and_in_use(&self) -> Vec<Arc<Self>> {
        let mut replaced = self.locked_replaced();
        replaced.retain(|older| older.strong_count() > 0);
        replaced.iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn locked_replaced(&self) -> MutexGuard<'_, Vec<Weak<Self>>> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of a shard.
    #[must_use]
    pub fn shard_name(&self, shard: ShardId) -> &str {
        &self.settings.shards[shard.index()].name
    }

    /// The pool of a user on a shard; `asked` is the database name that the client gave.
    pub fn pool(&self, user: &User, shard: ShardId, asked: &str) -> Arc<Pool> {
        let address = &self.settings.shards[shard.index()].primary;
        let database = if address.database.is_empty() {
            asked
        } else {
            &address.database
        };
        let key = PoolKey {
            credentials: user.backend.clone(),
            shown_by: shown_by(user),
            size: user.pool_size,
            shard,
            database: database.to_owned(),
        };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(
            pools
                .entry(key)
                .or_insert_with(|| self.make_pool(user, shard, asked, database)),
        )
    }

    /// The shared listeners of the database that the client calls `asked`. LISTEN needs no privilege but to connect: they
    /// log in as the control role. Where there is none, users whose backends are opened alike share theirs: somebody whom
    /// the servers refuse keeps nobody else from listening.
    pub fn hub(&self, user: &User, asked: &str) -> Arc<Hub> {
        let of = |address: &settings::Address| {
            if address.database.is_empty() {
                asked.to_owned()
            } else {
                address.database.clone()
            }
        };
        let (credentials, shown_by) = match &self.settings.control {
            Some(control) => (control, None),
            None => (&user.backend, shown_by(user)),
        };
        let first = self.settings.shards.first();
        let key = HubKey {
            database: first.map(|shard| of(&shard.primary)).unwrap_or_default(),
            credentials: credentials.clone(),
            shown_by: shown_by.clone(),
        };
        let prover = self.prover(credentials, shown_by);
        let login = |shard: &settings::Shard| listener::Login {
            address: shard.primary.clone(),
            database: of(&shard.primary),
            user: credentials.user.clone(),
            prover: prover.clone(),
            timeout: self.settings.pool.connect_timeout,
            tls: Arc::clone(&self.parts.tls),
            listener: NewListener {
                database: Arc::from(asked),
                shard: Arc::from(shard.name.as_str()),
            },
        };
        let make = || {
            Hub::new(listener::Parts {
                logins: self.settings.shards.iter().map(login).collect(),
                metrics: Arc::clone(&self.parts.metrics.listeners),
                limit: self.settings.pool.listen_queue,
                clock: self.parts.clock,
                spawner: self.parts.spawner.clone(),
            })
        };
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        let replaced = hubs.standing == Standing::Replaced;
        let make = || {
            let hub = make();
            if replaced {
                hub.retire();
            }
            hub
        };
        Arc::clone(hubs.by_key.entry(key).or_insert_with(make))
    }

    fn prover(&self, credentials: &Credentials, shown_by: Option<String>) -> listener::Prover {
        let (credentials, owner) = (credentials.clone(), self.settings.name.clone());
        let keyring = Arc::clone(&self.parts.keyring);
        listener::Prover(Arc::new(move || match &shown_by {
            Some(user) => keyring.get(&owner, user),
            None => credentials.proof(),
        }))
    }

    /// Tells sessions that listen that this database was replaced.
    pub fn retire_listeners(&self) {
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        hubs.standing = Standing::Replaced;
        for hub in hubs.by_key.values() {
            hub.retire();
        }
    }

    /// How this user's backends are pooled.
    #[must_use]
    pub fn mode(&self, user: &User) -> PoolMode {
        user.pool_mode.unwrap_or(self.settings.pool.mode)
    }

    /// Every pool, for the console and for maintenance.
    #[must_use]
    pub fn pools(&self) -> Vec<PoolView> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools
            .iter()
            .map(|(key, pool)| PoolView {
                user: key.credentials.user.clone(),
                shard: key.shard,
                pool: Arc::clone(pool),
            })
            .collect()
    }

    /// After a reload: nobody finds a pool or listeners any more whose password is not configured any more. Who uses a
    /// pool goes on; who listens joins others.
    pub fn retire_pools(&self, settings: &Settings) {
        let users = || settings.users.values().chain([&settings.found_users]);
        let wanted = |credentials: &Credentials, shown_by: &Option<String>| {
            shown_by.is_some() || users().any(|user| user.backend == *credentials)
        };
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let retired: Vec<_> = pools
            .extract_if(|key, _| !wanted(&key.credentials, &key.shown_by))
            .collect();
        drop(pools);
        for (_, pool) in retired {
            pool.retire();
        }
        if self.settings.control.is_some() {
            return;
        }
        let mut hubs = self.hubs.lock().unwrap_or_else(PoisonError::into_inner);
        let retired: Vec<_> = hubs
            .by_key
            .extract_if(|key, _| !wanted(&key.credentials, &key.shown_by))
            .collect();
        drop(hubs);
        for (_, hub) in retired {
            hub.retire();
        }
    }

    /// Opens a connection of its own for a client that replicates: in no pool, for this client only.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn open_replication(
        &self,
        user: &User,
        shard: ShardId,
        asked: &str,
        kind: Replication,
        options: String,
    ) -> Result<Box<Backend>, ConnectError> {
        let address = &self.settings.shards[shard.index()].primary;
        let database = if address.database.is_empty() {
            asked
        } else {
            &address.database
        };
        let mut login = self.login(user, shard, asked, database);
        login.replication = Some(kind);
        login.options = options;
        open(Arc::new(login)).await
    }

    fn login(&self, user: &User, shard: ShardId, asked: &str, database: &str) -> BackendLogin {
        let placement = &self.settings.shards[shard.index()];
        BackendLogin {
            address: Arc::new(placement.primary.clone()),
            database: database.to_owned(),
            credentials: user.backend.clone(),
            shown_by: shown_by(user),
            owner: self.settings.name.clone(),
            replication: None,
            options: String::new(),
            timeout: self.settings.pool.connect_timeout,
            logical: Arc::from(asked),
            user: Arc::from(user.name.as_str()),
            shard: Arc::from(placement.name.as_str()),
            parts: self.parts.clone(),
        }
    }

    fn make_pool(&self, user: &User, shard: ShardId, asked: &str, database: &str) -> Arc<Pool> {
        let mut settings = self.settings.pool.clone();
        settings.size = user.pool_size.unwrap_or(settings.size);
        let placement = &self.settings.shards[shard.index()];
        let counters = self.parts.metrics.pool(asked, &user.name, &placement.name);
        let login = Arc::new(self.login(user, shard, asked, database));
        let opener: Opener = Box::new(move || Box::pin(open(Arc::clone(&login))));
        Pool::new(
            settings,
            opener,
            self.parts.runtime.clone(),
            self.parts.clock,
            counters,
        )
    }
}

/// A pool and whose it is.
#[derive(Debug)]
pub struct PoolView {
    pub user: String,
    pub shard: ShardId,
    pub pool: Arc<Pool>,
}

/// The user itself, where its clients' proofs open its backends.
fn shown_by(user: &User) -> Option<String> {
    match user.backend_proof {
        BackendProof::Configured => None,
        BackendProof::Shown => Some(user.name.clone()),
    }
}

/// How backends of one pool are opened.
struct BackendLogin {
    address: Arc<settings::Address>,
    database: String,
    credentials: Credentials,
    shown_by: Option<String>,
    /// The database as the file names it: the wildcard is one.
    owner: String,
    replication: Option<Replication>,
    /// The client's own settings as `options`, for a connection that is its alone. Never parameters of the packet: one
    /// of those is the role.
    options: String,
    timeout: crate::clock::Duration,
    logical: Arc<str>,
    user: Arc<str>,
    shard: Arc<str>,
    parts: Parts,
}

async fn log_in(
    login: &BackendLogin,
    parameters: &[(&str, &str)],
) -> Result<Connected, ConnectError> {
    let proof = match &login.shown_by {
        Some(user) => {
            let shown = login.parts.keyring.get(&login.owner, user);
            Some(shown.ok_or(ConnectError::NothingShown)?)
        }
        None => login.credentials.proof(),
    };
    let who = Who {
        user: &login.credentials.user,
        proof: proof.as_ref(),
    };
    let (address, database, tls) = (&login.address, &login.database, &login.parts.tls);
    backend::connect_as(address, database, who, parameters, login.timeout, tls).await
}

async fn open(login: Arc<BackendLogin>) -> Result<Box<Backend>, ConnectError> {
    let parts = &login.parts;
    let info = parts.metrics.backends.register(NewBackend {
        database: Arc::clone(&login.logical),
        user: Arc::clone(&login.user),
        shard: Arc::clone(&login.shard),
        host: match &login.address.host {
            settings::Host::Tcp(host) => Arc::from(host.as_str()),
            settings::Host::Unix(path) => Arc::from(path.to_string_lossy()),
        },
        port: login.address.port,
        replication: login.replication,
        now: parts.clock.now(),
        wall: parts.clock.wall(),
    });
    let kind = login.replication.map(|kind| match kind {
        Replication::Logical => ("replication", "database"),
        Replication::Physical => ("replication", "true"),
    });
    let options = Some(("options", login.options.as_str())).filter(|(_, text)| !text.is_empty());
    let parameters: Vec<_> = kind.into_iter().chain(options).collect();
    let connected = log_in(&login, &parameters).await.inspect_err(|error| {
        parts.metrics.process.connect_failures.increment();
        let (database, shard, user) = (&*login.logical, &*login.shard, &*login.user);
        tracing::warn!(database, shard, user, %error, "cannot connect to the server");
    })?;
    let encryption = if connected.transport.is_encrypted() {
        Encryption::Tls
    } else {
        Encryption::Plain
    };
    info.set_connected(connected.pid, encryption);
    let mut reported = Reported::default();
    for (name, value) in &connected.parameters {
        reported.set(name, value);
    }
    let target = CancelTarget {
        address: connected.cancel_address(&login.address),
        pid: connected.pid,
        key: connected.key,
    };
    Ok(Box::new(Backend {
        stream: Stream::new(connected.transport),
        target: Arc::new(target),
        reported,
        applied: Applied::default(),
        statements: Statements::default(),
        unnamed: None,
        tenure: Tenure::default(),
        remembered: Remembered::Nothing,
        born: parts.clock.now(),
        info,
    }))
}
