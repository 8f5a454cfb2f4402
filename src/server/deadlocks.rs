//! Looks for rings of waits over shards, as long as a database is used.
//!
//! What must stay true: nothing that serves clients waits for it; it asks servers only while a statement over several
//! shards has been without an answer for long.

use super::tasks::Tasks;
use crate::{
    clock::Clock,
    net::tls::ClientTls,
    proxy::{database::Database, waits::Waits},
    txn::waiting::Watch,
};
use std::sync::{Arc, Weak};

/// From now on, until nobody uses the database any more: also of one that was replaced, whose sessions may still wait.
pub(super) fn look_after(
    database: &Arc<Database>,
    tasks: &Arc<Tasks>,
    clock: Clock,
    tls: &Arc<ClientTls>,
) {
    if let Some(waits) = &database.waits {
        let (database, waits) = (Arc::downgrade(database), Arc::clone(waits));
        tasks.spawn("deadlocks", rounds(database, waits, clock, Arc::clone(tls)));
    }
}

async fn rounds(database: Weak<Database>, waits: Arc<Waits>, clock: Clock, tls: Arc<ClientTls>) {
    let mut watch = Watch::new();
    while let Some(database) = database.upgrade() {
        let interval = database.settings.deadlock_interval;
        let suspects = waits.suspects(clock.now(), interval);
        if !suspects.is_empty() || !watch.is_silent() {
            let coordinator = &database.coordinator;
            for condemned in coordinator
                .find_rings(&mut watch, &suspects, interval)
                .await
            {
                if waits.carry_out(condemned, &tls).await {
                    coordinator.count_deadlock();
                }
            }
        }
        drop(database);
        tokio::time::sleep(interval).await;
    }
}
