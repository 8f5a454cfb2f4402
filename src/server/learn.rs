//! Learns from the servers now and then what the configuration does not say. Sessions take the new snapshot over between
//! transactions.
//!
//! What must stay true: nothing waits for this; a server that cannot be asked leaves what was known.

use super::life::Life;
use crate::{clock::Duration, config::settings::Settings, proxy::Shared};
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
        database.learn(&settings).await;
    }
}
