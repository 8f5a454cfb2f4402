//! Looks after this proxy's part in cutovers: hears of holds, and answers them.
//!
//! What must stay true: no database waits for another; what a hold has held goes on only when the map has been taken over
//! that was read with the end of the hold.

use super::tasks::Tasks;
use crate::{
    clock::{Clock, Duration},
    proxy::database::Database,
    reshard::participant::Participant,
};
use std::sync::{Arc, Weak};

/// How soon the home shard is asked again that could not be.
const AGAIN: Duration = Duration::from_millis(200);

/// From now on, until nobody uses the database any more, or another has taken its place.
pub(super) fn look_after(database: &Arc<Database>, tasks: &Arc<Tasks>, clock: Clock) {
    if database.coordinator.is_wanted() {
        tasks.spawn("holds", follow(Arc::downgrade(database), clock));
    }
}

async fn follow(database: Weak<Database>, clock: Clock) {
    let Some(incarnation) = database.upgrade().map(|it| it.coordinator.incarnation()) else {
        return;
    };
    let mut participant = Participant::new(incarnation);
    while let Some(alive) = database.upgrade() {
        if alive.coordinator.is_retired() {
            return;
        }
        let pause = round(&mut participant, &alive, clock).await;
        let (gate, waits) = (Arc::clone(&alive.gate), participant.waits());
        let news = async {
            let left = async {
                if waits {
                    gate.left().await;
                } else {
                    std::future::pending::<()>().await;
                }
            };
            match alive.coordinator.registry() {
                Ok(registry) => tokio::select! {
                    () = registry.told() => {}
                    () = left => {}
                },
                Err(_) => std::future::pending().await,
            }
        };
        drop(tokio::time::timeout(pause, news).await);
    }
}

/// One look; how long it can be until the next.
async fn round(participant: &mut Participant, database: &Database, clock: Clock) -> Duration {
    let gate = &database.gate;
    let Ok(registry) = database.coordinator.registry() else {
        return AGAIN;
    };
    if !registry.is_known() {
        return AGAIN;
    }
    match participant.look(registry, gate, || clock.now()).await {
        Ok(ended) => {
            if database.map_epoch() < ended.map {
                database.renew_map().await;
            }
            database.watch_moving();
            if database.map_epoch() < ended.map {
                return AGAIN;
            }
            participant.let_go(gate, &ended);
            participant.tell(registry, gate).await;
            participant.rests(gate, clock.now())
        }
        Err(problem) => {
            let name = registry.database();
            tracing::debug!(database = name, %problem, "reading what is held back");
            AGAIN
        }
    }
}
