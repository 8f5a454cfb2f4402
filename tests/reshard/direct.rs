//! A client that writes past the proxies, to the servers themselves: it is told by a guard when a key belongs to another
//! shard, and writes there.
//!
//! What must stay true: it never writes where the key has never belonged.

use crate::{
    harness::open_session,
    load::{ACCOUNTS, Known, Random, Seen, Whom, is_open},
    stage::Stage,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config, Error, error::SqlState};

/// On a shard that joins, keys are written only once it has been told that they are its own.
const WRITE: &str = "\
insert into entry select $1, $2, 'direct' where not $3 or exists (select from shardway.activation)";

/// The shard that is given keys by the first cutover.
const JOINS: usize = 3;

pub(crate) struct Direct {
    task: JoinHandle<()>,
    stop: Arc<AtomicBool>,
    /// How often a guard refused it.
    pub(crate) refused: Arc<AtomicU64>,
}

impl Direct {
    /// Looks where each account is and begins to write.
    pub(crate) async fn start(stage: &Stage, seen: &Arc<Seen>) -> Self {
        let mut homes = BTreeMap::new();
        for shard in 0..JOINS {
            let client = stage.session(shard).await;
            for row in client.query("select id from account", &[]).await.unwrap() {
                homes.insert(row.get::<_, i64>(0), shard);
            }
        }
        assert_eq!(homes.len(), usize::try_from(ACCOUNTS).unwrap());
        let configs = stage.sandbox.clusters().iter();
        let configs: Vec<Config> = configs.map(|it| it.config("postgres")).collect();
        let (stop, refused) = (Arc::default(), Arc::default());
        let writer = Writer {
            configs,
            clients: BTreeMap::new(),
            now: homes.clone(),
            homes,
            seen: Arc::clone(seen),
            refused: Arc::clone(&refused),
        };
        let task = tokio::spawn(writer.work(Arc::clone(&stop)));
        Self {
            task,
            stop,
            refused,
        }
    }

    /// Ends it: guards that would tell it are about to go.
    pub(crate) async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

struct Writer {
    configs: Vec<Config>,
    clients: BTreeMap<usize, Client>,
    /// Where each account was at first, and where it was met last.
    homes: BTreeMap<i64, usize>,
    now: BTreeMap<i64, usize>,
    seen: Arc<Seen>,
    refused: Arc<AtomicU64>,
}

impl Writer {
    async fn work(mut self, stop: Arc<AtomicBool>) {
        let mut random = Random(99);
        while !stop.load(Ordering::Relaxed) {
            let key = (random.account(), self.seen.number());
            while !stop.load(Ordering::Relaxed) {
                let begun = Instant::now();
                match self.write(key).await {
                    Ok(true) => {
                        self.seen.note(key, Known::There);
                        self.seen.answered.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    Ok(false) => {}
                    Err(error) => {
                        if is_open(&error) {
                            self.seen.note(key, Known::Open);
                        }
                        self.seen.failed(Whom::Server, begun, &error);
                        break;
                    }
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Whether it was taken; if not, the other shard is next.
    async fn write(&mut self, key: (i64, i64)) -> Result<bool, Error> {
        let (home, shard) = (self.homes[&key.0], self.now[&key.0]);
        let client = match self.clients.get(&shard) {
            Some(client) if !client.is_closed() => client,
            _ => {
                let client = open_session(&self.configs[shard]).await?;
                self.clients.insert(shard, client);
                &self.clients[&shard]
            }
        };
        let joined = shard == JOINS;
        let written = client.execute(WRITE, &[&key.0, &key.1, &joined]).await;
        let other = if joined { home } else { JOINS };
        match written {
            Ok(0) => {
                self.now.insert(key.0, other);
                Ok(false)
            }
            Ok(_) => Ok(true),
            Err(error) => match error.code().map(SqlState::code) {
                Some("SWG01") => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    self.now.insert(key.0, other);
                    Ok(false)
                }
                // The table is not there yet, or is locked while it is made.
                Some("42P01") if joined => {
                    self.now.insert(key.0, home);
                    Ok(false)
                }
                _ => Err(error),
            },
        }
    }
}
