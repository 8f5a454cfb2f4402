//! Looks after the transactions over several shards of each database: heartbeats, and rounds of recovery.
//!
//! What must stay true: no database waits for another, and no heartbeat for a round; nothing that serves clients waits
//! for any of this.

use super::tasks::Tasks;
use crate::{
    metrics::Metrics,
    proxy::database::Database,
    registry::HEARTBEAT,
    txn::coordinator::{Coordinator, ROUND},
};
use std::sync::{Arc, Weak};

/// From now on, until nobody uses the database any more.
pub(super) fn look_after(database: &Database, tasks: &Arc<Tasks>, metrics: &Arc<Metrics>) {
    let coordinator = &database.coordinator;
    if !coordinator.is_wanted() {
        return;
    }
    let parts = || (Arc::downgrade(coordinator), Arc::clone(metrics));
    let (of, metrics) = parts();
    tasks.spawn("recovery", rounds(of, metrics));
    let (of, metrics) = parts();
    tasks.spawn("heartbeat", heartbeats(of, metrics));
}

async fn rounds(coordinator: Weak<Coordinator>, metrics: Arc<Metrics>) {
    while let Some(coordinator) = coordinator.upgrade() {
        if coordinator.is_retired() {
            return;
        }
        coordinator.round(metrics.sessions.proxy()).await;
        drop(coordinator);
        tokio::time::sleep(ROUND).await;
    }
}

/// Also of a database that was replaced: sessions may still be at its transactions.
async fn heartbeats(coordinator: Weak<Coordinator>, metrics: Arc<Metrics>) {
    while let Some(coordinator) = coordinator.upgrade() {
        coordinator.beat(metrics.sessions.proxy()).await;
        drop(coordinator);
        tokio::time::sleep(HEARTBEAT).await;
    }
}
