//! Whether every shard's primary can be reached, for `/readyz`. A connection is opened and closed without a word, which
//! PostgreSQL does not log; who the primary really is will be asked by the control role.

use super::life::Life;
use crate::{
    clock::Duration,
    config::settings::{Address, Host},
};
use std::sync::Arc;
use tokio::{
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};

/// How often primaries are tried.
const PERIOD: Duration = Duration::from_secs(5);

/// Tries every primary for the life of the process.
pub(super) async fn watch(life: Arc<Life>) {
    let mut tick = tokio::time::interval(PERIOD);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let settings = life.foundation().settings.load_full();
        let mut tries = JoinSet::new();
        for (name, database) in &settings.databases {
            for shard in &database.shards {
                let (place, primary) = ((name.clone(), shard.name.clone()), shard.primary.clone());
                let limit = database.pool.connect_timeout;
                tries.spawn(async move { (place, reachable(&primary, limit).await) });
            }
        }
        let mut unreachable: Vec<_> = tries
            .join_all()
            .await
            .into_iter()
            .filter_map(|(place, reached)| (!reached).then_some(place))
            .collect();
        unreachable.sort();
        life.set_unreachable(unreachable);
    }
}

async fn reachable(address: &Address, limit: Duration) -> bool {
    let connect = async {
        match &address.host {
            Host::Tcp(host) => TcpStream::connect((host.as_str(), address.port))
                .await
                .map(drop),
            Host::Unix(directory) => {
                UnixStream::connect(directory.join(format!(".s.PGSQL.{}", address.port)))
                    .await
                    .map(drop)
            }
        }
    };
    matches!(timeout(limit, connect).await, Ok(Ok(())))
}
