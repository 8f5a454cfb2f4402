//! Learns from the servers what the configuration does not say: the columns of tables, which tables belong to a group by
//! their key column, and what the database's own functions may leave behind.
//!
//! What must stay true: of two looks the later one's result stands; a server that cannot be asked leaves what was known.

use super::database::Database;
use crate::{
    catalog::{code::Code, snapshot::Snapshot},
    config::settings::{Credentials, Settings},
    inspect::{Finding, code, complete_snapshot, credentials_for},
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Mutex;

/// Marks the number of a schema that one transaction alone sees.
const UNCOMMITTED: u64 = 1 << 63;

/// The looks of one database at its servers.
#[derive(Debug, Default)]
pub struct Learning {
    /// How many have begun.
    begun: AtomicU64,
    /// The last that has ended. Held while one is under way.
    ended: Mutex<u64>,
    /// How many schemas were made that one transaction alone sees.
    uncommitted: AtomicU64,
}

impl Learning {
    /// A number for a schema that one transaction alone sees, so that its plans are nobody else's.
    pub(super) fn uncommitted(&self) -> u64 {
        UNCOMMITTED | self.uncommitted.fetch_add(1, Ordering::Relaxed)
    }
}

impl Database {
    /// Looks at the servers, unless somebody else has begun to after this was called, and has ended.
    pub async fn learn(&self, settings: &Settings) {
        let before = self.learning.begun.load(Ordering::Acquire);
        let mut ended = self.learning.ended.lock().await;
        if *ended > before {
            return;
        }
        let number = self.learning.begun.fetch_add(1, Ordering::AcqRel) + 1;
        if let Some(credentials) = credentials_for(settings, &self.settings) {
            if self.settings.name != "*" {
                self.learn_code(credentials).await;
            }
            if !self.snapshot.load().is_single() {
                self.learn_tables(credentials).await;
            }
        }
        *ended = number;
    }

    /// Looks at the functions and triggers of the first shard that can be asked: they are the same on all.
    async fn learn_code(&self, credentials: &Credentials) {
        let limit = self.settings.pool.connect_timeout;
        for shard in &self.settings.shards {
            match code(&shard.primary, credentials, limit).await {
                Ok(code) => return self.take_over(code),
                Err(problem) => {
                    tracing::debug!(database = self.settings.name, %problem, "looking at its functions");
                }
            }
        }
    }

    fn take_over(&self, code: Code) {
        let old = self.snapshot.load_full();
        if old.code != code {
            let mut new = (*old).clone();
            new.code = code;
            new.schema += 1;
            self.snapshot.store(Arc::new(new));
        }
    }

    async fn learn_tables(&self, credentials: &Credentials) {
        let old = self.snapshot.load_full();
        // What was found by key column is found again, or is not there any more.
        let mut new: Snapshot = (*self.settings.snapshot).clone();
        new.schema = old.schema;
        new.code = old.code.clone();
        let findings = complete_snapshot(&self.settings, Some(credentials), &mut new).await;
        let missing = |finding: &Finding| matches!(finding, Finding::Unreachable { .. });
        if old.schema > 0 && findings.iter().any(missing) {
            // What was known of a server that cannot be asked.
            new.oids.clone_from(&old.oids);
        }
        for finding in &findings {
            tracing::debug!(database = new.database, %finding, "looking into the servers");
        }
        let unfit = findings
            .iter()
            .find(|finding| finding.forbids_routing())
            .map(ToString::to_string);
        if self.unfit.load().as_deref() != unfit.as_ref() {
            match &unfit {
                Some(finding) => {
                    tracing::error!(database = new.database, finding, "nothing is routed by key");
                }
                None => tracing::info!(database = new.database, "routes by key again"),
            }
            self.unfit.store(unfit.map(Arc::new));
        }
        if new != *old {
            new.schema += 1;
            tracing::info!(
                database = new.database,
                tables = new.tables.len(),
                "took over what the servers say of tables"
            );
            self.snapshot.store(Arc::new(new));
        }
    }
}
