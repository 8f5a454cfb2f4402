//! Learns from the servers what the configuration does not say: the columns of tables, and which tables belong to a group
//! by their key column. Sessions take the new snapshot over between transactions.
//!
//! What must stay true: nothing waits for this; a server that cannot be asked leaves what was known.

use super::life::Life;
use crate::{
    catalog::code::Code,
    clock::Duration,
    config::settings::{Credentials, Settings},
    inspect::{code, complete_snapshot, credentials_for},
    proxy::{Shared, database::Database},
};
use std::sync::Arc;

/// How often servers are asked again.
const PERIOD: Duration = Duration::from_secs(30);
/// How soon a reload is noticed.
const STEP: Duration = Duration::from_secs(1);

/// Asks for the life of the process: now and then, and soon after a reload.
pub(super) async fn watch(life: Arc<Life>) {
    loop {
        let settings = life.foundation().settings.load_full();
        Arc::clone(life.service())
            .learn(Arc::clone(&settings))
            .await;
        let mut waited = Duration::ZERO;
        while waited < PERIOD && Arc::ptr_eq(&settings, &life.foundation().settings.load()) {
            tokio::time::sleep(STEP).await;
            waited += STEP;
        }
    }
}

/// Asks once, for every database that has anything to learn.
pub(super) async fn all(shared: Arc<Shared>, settings: Arc<Settings>) {
    for database in shared.databases.load_full().values() {
        let Some(credentials) = credentials_for(&settings, &database.settings) else {
            continue;
        };
        if database.settings.name != "*" {
            learn_code(database, credentials).await;
        }
        if !database.snapshot.load().is_single() {
            learn(database, credentials).await;
        }
    }
}

/// Looks at the functions and triggers of the first shard that can be asked: they are the same on all.
async fn learn_code(database: &Database, credentials: &Credentials) {
    let limit = database.settings.pool.connect_timeout;
    for shard in &database.settings.shards {
        match code(&shard.primary, credentials, limit).await {
            Ok(code) => return take_over(database, code),
            Err(problem) => {
                tracing::debug!(database = database.settings.name, %problem, "looking at its functions");
            }
        }
    }
}

fn take_over(database: &Database, code: Code) {
    let old = database.snapshot.load_full();
    if old.code != code {
        let mut new = (*old).clone();
        new.code = code;
        new.schema += 1;
        database.snapshot.store(Arc::new(new));
    }
}

async fn learn(database: &Database, credentials: &Credentials) {
    let old = database.snapshot.load_full();
    // What was found by key column is found again, or is not there any more.
    let mut new = (*database.settings.snapshot).clone();
    new.schema = old.schema;
    new.code = old.code.clone();
    let findings = complete_snapshot(&database.settings, Some(credentials), &mut new).await;
    for finding in &findings {
        tracing::debug!(database = new.database, %finding, "looking into the servers");
    }
    let unfit = findings
        .iter()
        .find(|finding| finding.forbids_routing())
        .map(ToString::to_string);
    if database.unfit.load().as_deref() != unfit.as_ref() {
        match &unfit {
            Some(finding) => {
                tracing::error!(database = new.database, finding, "nothing is routed by key");
            }
            None => tracing::info!(database = new.database, "routes by key again"),
        }
        database.unfit.store(unfit.map(Arc::new));
    }
    if new != *old {
        new.schema += 1;
        tracing::info!(
            database = new.database,
            tables = new.tables.len(),
            "took over what the servers say of tables"
        );
        database.snapshot.store(Arc::new(new));
    }
}
