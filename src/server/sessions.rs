//! Sessions as the service: what they share is built here, and rebuilt by a reload.
//!
//! What must stay true: a reload drops nobody. A database whose settings did not change keeps its pools and plans; one
//! that changed is replaced, and sessions move to the new one between transactions.

use super::{
    Foundation, ServeError, Service, Serving, deadlocks, holding, recovering, resharding,
    tasks::Tasks,
};
use crate::{
    admin::Console,
    config::settings::{self, Settings},
    entropy,
    inspect::at_once,
    metrics::sessions::Wanted,
    net::{
        login::{Entrance, LoginContext, Place},
        tls::{ClientTls, ServerTls},
        transport::Transport,
    },
    plan::cache::{PlanCache, Stats},
    pool::listener::Spawner,
    proxy::{
        Shared, cancel,
        database::{Database, Parts},
        start,
    },
    txn::Incarnation,
};
use arc_swap::ArcSwap;
use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
};

/// Serves sessions.
pub struct Sessions {
    shared: Arc<Shared>,
    logins: ArcSwap<LoginContext>,
    /// Kept over reloads, so that salts and failures stay the same.
    entrance: Arc<Entrance>,
    incarnation: Arc<Incarnation>,
    /// What outlives the session that began it.
    tasks: Arc<Tasks>,
    /// Databases that a reload has removed, as long as a session is at work there.
    left: Mutex<Vec<(String, Weak<Database>)>>,
}

impl fmt::Debug for Sessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sessions").finish_non_exhaustive()
    }
}

/// Builds what sessions share.
///
/// # Errors
/// When certificate or key cannot be used.
pub fn sessions(foundation: &Foundation) -> Result<Arc<Sessions>, ServeError> {
    let settings = foundation.settings.load_full();
    let fault = |error: &dyn fmt::Display| ServeError::Service(error.to_string());
    let entrance = Entrance::new(
        entropy::bytes(),
        foundation.clock,
        Arc::clone(&foundation.metrics),
    );
    let tls = Arc::new(ClientTls::new().map_err(|error| fault(&error))?);
    let logins = login_context(&settings, &entrance)
        .map_err(|error| fault(&error))?
        .with_lookups(&settings, &tls, foundation.clock);
    let tasks = Tasks::new(foundation.runtime.clone());
    let parts = Parts {
        metrics: Arc::clone(&foundation.metrics),
        clock: foundation.clock,
        runtime: foundation.runtime.clone(),
        tls: Arc::clone(&tls),
        keyring: Arc::default(),
        incarnation: Incarnation::new(),
        spawner: spawner(&tasks),
    };
    let seed = start::secret_seed();
    let databases = databases(&settings, &HashMap::new(), &[], &parts, seed);
    foundation.metrics.sessions.set_proxy(settings.server.id);
    let shared = Shared {
        settings: ArcSwap::from(settings),
        databases: ArcSwap::from_pointee(databases),
        generation: AtomicU64::new(0),
        cancels: cancel::Slots::default(),
        replicating: crate::proxy::replication::Places::default(),
        gathered: std::sync::atomic::AtomicUsize::new(0),
        metrics: Arc::clone(&foundation.metrics),
        clock: foundation.clock,
        runtime: foundation.runtime.clone(),
        tls,
        keyring: parts.keyring,
        seed,
        console: OnceLock::new(),
    };
    let shared = Arc::new(shared);
    for database in shared.databases.load().values() {
        recovering::look_after(database, &tasks, &shared);
        holding::look_after(database, &tasks, parts.clock, &shared.tls);
        deadlocks::look_after(database, &tasks, parts.clock, &shared.tls);
        resharding::look_after(database, &tasks, parts.clock, &shared.tls, &shared.metrics);
    }
    Ok(Arc::new(Sessions {
        shared,
        logins: ArcSwap::from_pointee(logins),
        entrance,
        incarnation: parts.incarnation,
        tasks,
        left: Mutex::default(),
    }))
}

impl Service for Sessions {
    fn room(self: Arc<Self>) -> Serving {
        Box::pin(async move {
            let most = self.shared.settings.load().server.max_logins;
            self.entrance.room(most).await;
        })
    }

    fn serve(self: Arc<Self>, socket: Transport) -> Serving {
        // Now and not when the task begins: whoever is being accepted is counted as one who logs in.
        let place = self.place();
        Box::pin(start::serve(
            socket,
            place,
            Arc::clone(&self.shared),
            self.logins.load_full(),
        ))
    }

    fn turn_away(self: Arc<Self>, socket: Transport) -> Serving {
        let place = self.place();
        Box::pin(start::turn_away(
            socket,
            place,
            Arc::clone(&self.shared),
            self.logins.load_full(),
        ))
    }

    fn apply(&self, settings: Arc<Settings>) -> Result<(), String> {
        let shared = &self.shared;
        let logins = login_context(&settings, &self.entrance)?.with_lookups(
            &settings,
            &shared.tls,
            shared.clock,
        );
        let parts = Parts {
            metrics: Arc::clone(&shared.metrics),
            clock: shared.clock,
            runtime: shared.runtime.clone(),
            tls: Arc::clone(&shared.tls),
            keyring: Arc::clone(&shared.keyring),
            incarnation: Arc::clone(&self.incarnation),
            spawner: spawner(&self.tasks),
        };
        let old = shared.databases.load_full();
        let new = databases(&settings, &old, &self.left_behind(), &parts, shared.seed);
        self.leave_behind(old.iter().filter(|(name, _)| !new.contains_key(*name)));
        let replaced: Vec<_> = old
            .iter()
            .filter(|(name, database)| {
                !new.get(*name).is_some_and(|new| Arc::ptr_eq(new, database))
            })
            .map(|(_, database)| Arc::clone(database))
            .collect();
        let is_kept = |(name, new): &(&String, &Arc<Database>)| {
            old.get(*name).is_some_and(|old| Arc::ptr_eq(old, new))
        };
        for (_, made) in new.iter().filter(|database| !is_kept(database)) {
            recovering::look_after(made, &self.tasks, shared);
            holding::look_after(made, &self.tasks, parts.clock, &shared.tls);
            deadlocks::look_after(made, &self.tasks, shared.clock, &shared.tls);
            resharding::look_after(
                made,
                &self.tasks,
                shared.clock,
                &shared.tls,
                &shared.metrics,
            );
        }
        let transactions = &shared.metrics.transactions;
        transactions.keep(|name| new.get(name).is_some_and(|new| new.coordinator.is_wanted()));
        shared.databases.store(Arc::new(new));
        shared.metrics.sessions.set_proxy(settings.server.id);
        shared.settings.store(settings);
        self.logins.store(Arc::new(logins));
        // After the stores: a session that sees the new number finds the new databases.
        shared.generation.fetch_add(1, Ordering::Release);
        for session in shared.metrics.sessions.list() {
            if session.replication.is_some() {
                // Others look when they are asked something; these may wait for bytes for ever.
                session.ask(Wanted::Nothing);
            }
        }
        for pool in replaced.iter().flat_map(|database| database.pools()) {
            pool.pool.retire();
        }
        let settings = shared.settings.load();
        for database in shared.databases.load().values() {
            database.retire_pools(&settings);
        }
        for database in &replaced {
            database.retire_listeners();
            database.coordinator.retire();
        }
        Ok(())
    }

    fn maintain(&self) {
        let now = self.shared.clock.now();
        self.shared.metrics.sessions.maintain(now);
        for database in self.shared.databases.load().values() {
            for view in database.pools() {
                view.pool.maintain();
            }
        }
    }

    fn learn(self: Arc<Self>, settings: Arc<Settings>) -> Serving {
        Box::pin(async move {
            super::learn::all(Arc::clone(&self.shared), settings).await;
            // Else the first transactions over several shards would be refused.
            let looked = async {
                for database in self.shared.databases.load_full().values() {
                    database.coordinator.looked().await;
                    let agreement = database.coordinator.agreement();
                    let heard = agreement.map_or(0, |agreement| *agreement.numbers().borrow());
                    // What others changed before they knew of this proxy.
                    database.catch_up(&self.shared, heard).await;
                }
            };
            drop(tokio::time::timeout(super::FIRST_LOOK, looked).await);
        })
    }

    fn leave(self: Arc<Self>) -> Serving {
        Box::pin(async move {
            let databases = self.shared.databases.load_full();
            let leaving = databases.values().map(|it| it.coordinator.leave());
            at_once(leaving.collect()).await;
        })
    }

    fn plan_caches(&self) -> Vec<(String, Stats)> {
        let databases = self.shared.databases.load();
        let mut caches: Vec<_> = databases
            .iter()
            .map(|(name, database)| (name.clone(), database.plans.stats()))
            .collect();
        caches.sort_by(|(one, _), (other, _)| one.cmp(other));
        caches
    }

    fn set_console(&self, console: Arc<Console>) {
        // Set once by the composition root; a second console would be the same one.
        drop(self.shared.console.set(console));
    }
}

/// Shared listeners outlive the session that needs them first: they are counted tasks of this module.
fn spawner(tasks: &Arc<Tasks>) -> Spawner {
    let tasks = Arc::clone(tasks);
    Spawner(Arc::new(move |task| tasks.spawn("listener", task)))
}

impl Sessions {
    fn place(&self) -> Place {
        let most = self.shared.settings.load().server.max_logins;
        self.entrance.admit(most)
    }

    /// Databases that were removed and are used still.
    fn left_behind(&self) -> Vec<(String, Arc<Database>)> {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.retain(|(_, database)| database.strong_count() > 0);
        let used = left.iter();
        used.filter_map(|(name, database)| Some((name.clone(), database.upgrade()?)))
            .collect()
    }

    fn leave_behind<'a>(&self, removed: impl Iterator<Item = (&'a String, &'a Arc<Database>)>) {
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.extend(removed.map(|(name, database)| (name.clone(), Arc::downgrade(database))));
    }
}

fn login_context(
    settings: &Arc<Settings>,
    entrance: &Arc<Entrance>,
) -> Result<LoginContext, String> {
    let identity = settings.server.tls.identity.as_ref();
    let tls = identity
        .map(|identity| ServerTls::new(identity, settings.server.tls.clients.as_ref()))
        .transpose()
        .map_err(|error| error.to_string())?;
    Ok(LoginContext::new(
        settings,
        tls.map(Arc::new),
        Arc::clone(entrance),
    ))
}

/// The databases by the name that clients give, the wildcard under `*`; those of `old` that did not change are kept. `left`
/// were removed before, and may be listed again.
fn databases(
    settings: &Settings,
    old: &HashMap<String, Arc<Database>>,
    left: &[(String, Arc<Database>)],
    parts: &Parts,
    seed: u64,
) -> HashMap<String, Arc<Database>> {
    let named = settings
        .databases
        .iter()
        .map(|(name, database)| (name.clone(), database));
    let all: Vec<(String, &Arc<settings::Database>)> = named
        .chain(
            settings
                .wildcard
                .iter()
                .map(|database| ("*".to_owned(), database)),
        )
        .collect();
    let plan_bytes = settings.server.plan_cache_bytes / all.len().max(1);
    let keep_or_make = |(name, wanted): (String, &Arc<settings::Database>)| {
        let kept = old
            .get(&name)
            .filter(|old| *old.settings == **wanted)
            .cloned();
        let make = || {
            let plans = PlanCache::new(plan_bytes, seed);
            let left = left.iter().filter(|(of, _)| *of == name);
            let left: Vec<&Arc<Database>> = left.map(|(_, database)| database).collect();
            let older = old.get(&name);
            // Sessions of both may be at work on keys that move.
            let before = older.or_else(|| left.first().copied());
            let gate = before.map(|before| Arc::clone(&before.gate));
            let gate = gate.unwrap_or_default();
            let made = Database::new(Arc::clone(wanted), plans, gate, parts.clone());
            match older {
                Some(older) => made.succeeds(older),
                None => made.is_listed_again(&left),
            }
            made
        };
        let database = kept.unwrap_or_else(make);
        (name, database)
    };
    all.into_iter().map(keep_or_make).collect()
}
