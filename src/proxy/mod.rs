//! Sessions: from a client's first byte to its last. Reads what the client asks, has it planned, leases a backend,
//! relays the answer. It decides nothing about shards (`plan`) and nothing about who is served next (`pool`).

pub mod cancel;
mod changing;
pub mod console;
mod context;
mod copy_in;
mod copy_out;
mod counting;
mod cursors;
pub mod database;
mod effects;
mod ending;
mod explaining;
mod extended;
mod fan;
mod gather;
mod holding;
mod ids;
pub mod keyring;
pub mod learning;
mod link;
mod listening;
mod local;
mod named;
mod numbers;
mod oids;
mod place;
mod prepared;
mod relay;
mod replaying;
pub mod replication;
pub mod reply;
mod request;
mod resetting;
mod scatter;
mod script;
pub mod session;
mod several;
mod simple;
mod sourcing;
mod spread;
mod sql_prepared;
pub mod start;
mod strays;
mod unseen;
mod vacate;
pub mod waits;
mod within;

use crate::{admin::Console, clock::Clock, config::settings::Settings, metrics::Metrics};
use arc_swap::ArcSwap;
use database::Database;
use std::{
    collections::HashMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};
use tokio::runtime::Handle;

/// What all sessions share.
#[derive(Debug)]
pub struct Shared {
    pub settings: ArcSwap<Settings>,
    /// By the name that clients give; replaced whole by a reload.
    pub databases: ArcSwap<HashMap<String, Arc<Database>>>,
    /// Counts reloads, so that a session notices one with a single load.
    pub generation: AtomicU64,
    pub cancels: cancel::Slots,
    pub replicating: replication::Places,
    /// Bytes of rows that statements over several shards hold.
    pub gathered: AtomicUsize,
    pub metrics: Arc<Metrics>,
    pub clock: Clock,
    pub runtime: Handle,
    pub tls: Arc<crate::net::tls::ClientTls>,
    pub keyring: Arc<keyring::Keyring>,
    /// Seeds the identities of prepared statements.
    pub seed: u64,
    /// What the console database serves; set once, before the first client.
    pub console: OnceLock<Arc<Console>>,
}

impl Shared {
    /// The database that clients call `name`: listed, or the wildcard.
    #[must_use]
    pub fn database(&self, name: &str) -> Option<Arc<Database>> {
        let databases = self.databases.load();
        databases.get(name).or_else(|| databases.get("*")).cloned()
    }

    /// Counts reloads.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}
