//! Looks after what each database shares with other proxies: heartbeats, rounds of recovery of transactions over several
//! shards, and schema changes that others have made.
//!
//! What must stay true: no database waits for another, and no heartbeat for a round; nothing that serves clients waits
//! for any of this.

use super::tasks::Tasks;
use crate::{
    clock::Duration,
    metrics::Metrics,
    proxy::{Shared, database::Database, learning::CaughtUp},
    registry::HEARTBEAT,
    txn::coordinator::{Coordinator, ROUND},
};
use std::sync::{Arc, Weak};

/// How soon servers are looked at again that could not be asked.
const AGAIN: Duration = Duration::from_millis(500);

/// From now on, until nobody uses the database any more.
pub(super) fn look_after(database: &Arc<Database>, tasks: &Arc<Tasks>, shared: &Arc<Shared>) {
    let metrics = &shared.metrics;
    let coordinator = &database.coordinator;
    if !coordinator.is_wanted() {
        return;
    }
    let parts = || (Arc::downgrade(coordinator), Arc::clone(metrics));
    let (of, metrics) = parts();
    tasks.spawn("recovery", rounds(of, metrics));
    let (of, metrics) = parts();
    tasks.spawn("heartbeat", heartbeats(of, metrics));
    let of = (Arc::downgrade(database), Arc::downgrade(shared));
    tasks.spawn("agreement", follow(of.0, of.1));
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
        // Somebody has announced a schema change: what it is called is read together with a heartbeat.
        let rung = async {
            match coordinator.agreement() {
                Some(agreement) => agreement.rung().await,
                None => std::future::pending().await,
            }
        };
        // The database is not kept by this for longer than a heartbeat.
        drop(tokio::time::timeout(HEARTBEAT, rung).await);
    }
}

/// Takes over what other proxies have changed of the schema, as soon as it is heard of.
async fn follow(database: Weak<Database>, shared: Weak<Shared>) {
    let numbers = |database: Arc<Database>| Some(database.coordinator.agreement()?.numbers());
    let Some(mut numbers) = database.upgrade().and_then(numbers) else {
        return;
    };
    loop {
        let (Some(alive), Some(with)) = (database.upgrade(), shared.upgrade()) else {
            return;
        };
        let heard = *numbers.borrow_and_update();
        let pause = match alive.catch_up(&with, heard).await {
            CaughtUp::Yes => HEARTBEAT,
            CaughtUp::No => AGAIN,
        };
        drop((alive, with));
        // Without news too: what is relied on may have to be looked at without them.
        if let Ok(Err(_)) = tokio::time::timeout(pause, numbers.changed()).await {
            return;
        }
    }
}
