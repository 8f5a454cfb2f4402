//! Looks after this proxy's part in cutovers: hears of holds, and answers them.
//!
//! What must stay true: no database waits for another; what a hold has held goes on only when the map has been taken over
//! that was read with the end of the hold.

use super::tasks::Tasks;
use crate::{
    clock::{Clock, Duration},
    net::tls::ClientTls,
    proxy::database::Database,
    registry::holds::Overdue,
    reshard::{helping, participant::Participant, servers::Server},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

/// How soon the home shard is asked again that could not be.
const AGAIN: Duration = Duration::from_millis(200);

/// How long this proxy tries to end an attempt for its runner.
const HELPING: Duration = Duration::from_secs(2);

/// From now on, until nobody uses the database any more, or another has taken its place.
pub(super) fn look_after(
    database: &Arc<Database>,
    tasks: &Arc<Tasks>,
    clock: Clock,
    tls: &Arc<ClientTls>,
) {
    if database.coordinator.is_wanted() {
        let (followed, helpers) = (Arc::downgrade(database), Arc::downgrade(tasks));
        let servers = Arc::new(Server::all(&database.settings, tls));
        let helpers = Helpers { helpers, servers };
        tasks.spawn("holds", follow(followed, helpers, clock));
    }
}

/// Who ends attempts of cutovers for a runner that does not.
struct Helpers {
    helpers: Weak<Tasks>,
    servers: Arc<BTreeMap<String, Server>>,
}

impl Helpers {
    /// Beside everything else: holds are looked at meanwhile.
    fn help(&self, database: &Database, overdue: Overdue) {
        let (coordinator, servers) = (Arc::clone(&database.coordinator), Arc::clone(&self.servers));
        let helping = async move {
            let Ok(registry) = coordinator.registry() else {
                return;
            };
            let helped = Box::pin(helping::help(registry, &servers, &overdue));
            if let Ok(Err(problem)) = tokio::time::timeout(HELPING, helped).await {
                let (reshard, attempt) = (&overdue.workflow, overdue.attempt);
                tracing::warn!(reshard, attempt, %problem, "an attempt of a cutover waits to be ended");
            }
        };
        if let Some(tasks) = self.helpers.upgrade() {
            tasks.spawn("help", helping);
        }
    }
}

async fn follow(database: Weak<Database>, helpers: Helpers, clock: Clock) {
    let Some(incarnation) = database.upgrade().map(|it| it.coordinator.incarnation()) else {
        return;
    };
    let mut participant = Participant::new(incarnation);
    while let Some(alive) = database.upgrade() {
        if alive.coordinator.is_retired() {
            return;
        }
        let pause = round(&mut participant, &alive, &helpers, clock).await;
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
async fn round(
    participant: &mut Participant,
    database: &Database,
    helpers: &Helpers,
    clock: Clock,
) -> Duration {
    let gate = &database.gate;
    let Ok(registry) = database.coordinator.registry() else {
        return AGAIN;
    };
    if !registry.is_known() {
        return AGAIN;
    }
    match participant.look(registry, gate, || clock.now()).await {
        Ok(ended) => {
            for overdue in &ended.overdue {
                helpers.help(database, overdue.clone());
            }
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
