//! Lets this process run the reshards of each database that has a control role, if no other does.
//!
//! What must stay true: no database waits for another; a database that was replaced, or a process that ends, runs none: all
//! that was under way is dropped, and another process goes on.

use super::tasks::Tasks;
use crate::{
    clock::{Clock, Duration},
    metrics::Metrics,
    net::tls::ClientTls,
    proxy::database::Database,
    reshard::{dump::Tools, runner::Runner, servers::Server},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

/// How soon it is noticed that another has taken the database's place.
const STEP: Duration = Duration::from_millis(500);

/// From now on, until nobody uses the database any more, or another has taken its place.
pub(super) fn look_after(
    database: &Arc<Database>,
    tasks: &Arc<Tasks>,
    clock: Clock,
    tls: &Arc<ClientTls>,
    metrics: &Arc<Metrics>,
) {
    if database.coordinator.is_wanted() {
        let servers = Arc::new(Server::all(&database.settings, tls));
        let tools = Tools {
            pg_dump: database.settings.pg_dump.clone(),
        };
        tasks.spawn(
            "reshards",
            run(
                Arc::downgrade(database),
                servers,
                tools,
                clock,
                Arc::clone(metrics),
            ),
        );
    }
}

async fn run(
    database: Weak<Database>,
    servers: Arc<BTreeMap<String, Server>>,
    tools: Tools,
    clock: Clock,
    metrics: Arc<Metrics>,
) {
    let Some(coordinator) = database.upgrade().map(|it| Arc::clone(&it.coordinator)) else {
        return;
    };
    let Ok(registry) = coordinator.registry() else {
        return;
    };
    let runner = Runner {
        registry,
        servers,
        holder: format!("{:016x}", coordinator.incarnation()),
        tools,
        clock,
        metrics,
    };
    let replaced = async {
        while database.strong_count() > 0 && !coordinator.is_retired() {
            tokio::time::sleep(STEP).await;
        }
    };
    tokio::select! {
        () = runner.run() => {}
        () = replaced => {}
    }
}
