//! The phases of the process, what signals and the console do to them, and reloads.

use super::{Foundation, Reload, Service};
use crate::{
    admin::{Control, Readiness, command::Shutdown},
    config::settings::Settings,
    plan::cache::Stats,
};
use arc_swap::ArcSwap;
use std::{fmt, sync::Arc};
use tokio::{signal::unix::Signal, sync::watch};

/// Phases in their order; there is no way back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Serving,
    /// No new clients; transactions may end.
    Draining,
    /// Everybody out.
    Ending,
}

/// The phases of the process, and who may change them.
pub struct Life {
    phase: watch::Sender<Phase>,
    foundation: Foundation,
    service: Arc<dyn Service>,
    reload: Reload,
    /// Databases and shards whose primary was not reachable when last tried; all of them before the first try.
    unreachable: ArcSwap<Vec<(String, String)>>,
}

/// The signals that are obeyed.
#[derive(Debug)]
pub struct Signals {
    pub terminate: Signal,
    pub interrupt: Signal,
    pub hangup: Signal,
}

impl fmt::Debug for Life {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Life")
            .field("phase", &self.phase())
            .finish_non_exhaustive()
    }
}

impl Life {
    pub(super) fn new(
        foundation: Foundation,
        service: Arc<dyn Service>,
        reload: Reload,
    ) -> Arc<Self> {
        let unreachable = every_shard(&foundation.settings.load());
        Arc::new(Self {
            phase: watch::Sender::new(Phase::Serving),
            foundation,
            service,
            reload,
            unreachable: ArcSwap::from_pointee(unreachable),
        })
    }

    /// What the process is built from.
    #[must_use]
    pub fn foundation(&self) -> &Foundation {
        &self.foundation
    }

    pub(super) fn service(&self) -> &Arc<dyn Service> {
        &self.service
    }

    /// The phase now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Resolves once the phase is reached, or passed.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives in `self`, so it cannot be gone.
        drop(self.phase.subscribe().wait_for(|now| *now >= phase).await);
    }

    pub(super) fn set_unreachable(&self, shards: Vec<(String, String)>) {
        if **self.unreachable.load() != shards {
            for (database, shard) in &shards {
                tracing::warn!(database, shard, "primary not reachable");
            }
            self.unreachable.store(Arc::new(shards));
        }
    }

    /// Obeys signals for the life of the process: the first to end drains, the second ends; SIGHUP reloads.
    pub(super) async fn obey(&self, mut signals: Signals) {
        loop {
            tokio::select! {
                _ = signals.terminate.recv() => self.asked_to_end("SIGTERM"),
                _ = signals.interrupt.recv() => self.asked_to_end("SIGINT"),
                // The fault is logged; the old settings stay.
                _ = signals.hangup.recv() => drop(self.reload()),
            }
        }
    }

    fn asked_to_end(&self, signal: &str) {
        let how = if self.phase() == Phase::Serving {
            Shutdown::Drain
        } else {
            Shutdown::Immediate
        };
        tracing::info!(signal, ?how, "asked to end");
        self.shutdown(how);
    }

    fn try_reload(&self) -> Result<(), String> {
        let new = Arc::new((self.reload)()?);
        self.service.apply(Arc::clone(&new))?;
        for setting in needs_restart(&self.foundation.settings.load(), &new) {
            tracing::warn!(setting, "takes effect at the next start");
        }
        self.foundation.settings.store(new);
        Ok(())
    }
}

impl Control for Life {
    fn reload(&self) -> Result<(), String> {
        let process = &self.foundation.metrics.process;
        let done = self.try_reload();
        match &done {
            Ok(()) => {
                process.reloads.increment();
                tracing::info!("configuration reloaded");
            }
            Err(fault) => {
                process.reload_failures.increment();
                tracing::error!(%fault, "configuration not reloaded: the old one stays");
            }
        }
        done
    }

    fn shutdown(&self, how: Shutdown) {
        let asked = match how {
            Shutdown::Drain => Phase::Draining,
            Shutdown::Immediate => Phase::Ending,
        };
        self.phase.send_if_modified(|phase| {
            let later = asked > *phase;
            *phase = asked.max(*phase);
            later
        });
    }

    fn plan_caches(&self) -> Vec<(String, Stats)> {
        self.service.plan_caches()
    }

    fn readiness(&self) -> Readiness {
        let unreachable = self.unreachable.load();
        if self.phase() != Phase::Serving {
            Readiness::Draining
        } else if unreachable.is_empty() {
            Readiness::Ready
        } else {
            Readiness::NoPrimary(unreachable.to_vec())
        }
    }
}

fn every_shard(settings: &Settings) -> Vec<(String, String)> {
    let shards = |(name, database): (&String, &Arc<crate::config::settings::Database>)| {
        let name = name.clone();
        database
            .shards
            .iter()
            .map(|shard| (name.clone(), shard.name.clone()))
            .collect::<Vec<_>>()
    };
    settings.databases.iter().flat_map(shards).collect()
}

/// Settings that differ and are read at the start only.
fn needs_restart(old: &Settings, new: &Settings) -> Vec<&'static str> {
    let (old, new) = (&old.server, &new.server);
    [
        ("server.listen", old.listen != new.listen),
        ("server.http", old.http != new.http),
        ("server.workers", old.workers != new.workers),
        (
            "server.plan_cache_bytes",
            old.plan_cache_bytes != new.plan_cache_bytes,
        ),
        ("server.log.format", old.log_format != new.log_format),
        ("server.log.level", old.log_level != new.log_level),
    ]
    .into_iter()
    .filter_map(|(name, differs)| differs.then_some(name))
    .collect()
}
