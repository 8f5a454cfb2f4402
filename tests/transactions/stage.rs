//! Three servers with accounts, proxies before them, and what may be lost.

use crate::harness::{PATIENCE, Proxy, environment, open_session};
use shardway::sandbox::Sandbox;
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};
use tokio::net::TcpListener;
use tokio_postgres::{Client, Config, error::SqlState};

const SHARDS: usize = 3;
/// Accounts of a shard, each with 1000 at the beginning.
const ACCOUNTS: u64 = 20;
const TABLES: &str = "create table account (id bigint primary key, balance bigint not null); \
    create table entry (account bigint, transfer bigint, primary key (account, transfer))";

/// What is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The backend of the transaction on a shard.
    Connection,
    /// A shard's server, which is started again.
    Server,
}

/// What a client was told of its COMMIT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Committed,
    RolledBack(String),
    /// 08007.
    Doubtful,
    /// The connection ended.
    Closed,
}

pub(crate) struct Stage {
    sandbox: Sandbox,
    next: AtomicU64,
}

impl Stage {
    pub(crate) fn open() -> Self {
        let sandbox = Sandbox::builder(environment())
            .clusters(SHARDS)
            .setting("synchronous_commit", "on")
            .start()
            .unwrap();
        for shard in 0..SHARDS {
            let first = shard as u64 * 100;
            let last = first + ACCOUNTS - 1;
            let fill = format!(
                "{TABLES}; insert into account select i, 1000 from generate_series({first}, {last}) i"
            );
            let cluster = sandbox.cluster(shard);
            crate::block_on(async {
                let client = open_session(&cluster.config("postgres")).await.unwrap();
                client.batch_execute(&fill).await.unwrap();
            });
        }
        Self {
            sandbox,
            next: AtomicU64::new(1),
        }
    }

    /// A proxy of its own process.
    pub(crate) fn proxy(&self) -> Proxy {
        let shards: String = (0..SHARDS)
            .map(|at| {
                let port = self.sandbox.cluster(at).port();
                format!("shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n")
            })
            .collect();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n[databases.postgres]\n\
             control = {{ user = \"postgres\" }}\n{shards}[databases.postgres.groups.g]\nmethod = \"range\"\n\
             key_type = \"bigint\"\nranges = [{{ to = 100, shard = \"s0\" }}, {{ to = 200, shard = \"s1\" }}, {{ shard = \"s2\" }}]\n\
             tables = {{ \"public.account\" = \"id\", \"public.entry\" = \"account\" }}\n[users.postgres]\nauth = \"trust\"\n"
        );
        Proxy::start(self.sandbox.root(), &text)
    }

    /// The number of another transfer.
    pub(crate) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Transfers until one is committed in two phases.
    pub(crate) async fn is_ready(&self, proxy: &Proxy) {
        let begun = SystemTime::now();
        while self.transfer(proxy, self.number()).await != Told::Committed {
            assert!(begun.elapsed().unwrap() < PATIENCE, "never ready");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(crate) async fn transfer(&self, proxy: &Proxy, number: u64) -> Told {
        self.transfer_at(proxy.port, number).await
    }

    pub(crate) async fn transfer_at(&self, port: u16, number: u64) -> Told {
        let Ok(client) = session(port).await else {
            return Told::Closed;
        };
        match transfer(&client, number).await {
            Ok(()) => commit(&client).await,
            Err(error) => outcome(Err(error)),
        }
    }

    /// A transfer that stops at a point of its commit until something is done there.
    pub(crate) async fn transfer_to(
        &self,
        proxy: &Proxy,
        number: u64,
        point: &str,
        act: impl FnOnce(),
    ) -> Told {
        self.is_ready(proxy).await;
        let client = session(proxy.port).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let armed = format!(
            "set shardway.failpoint = '{point}@{}'",
            listener.local_addr().unwrap()
        );
        client.batch_execute(&armed).await.unwrap();
        let name = format!("set application_name = 'transfer {number}'");
        client.batch_execute(&name).await.unwrap();
        transfer(&client, number).await.unwrap();
        let reached = async {
            let (stopped, _) = listener.accept().await.unwrap();
            act();
            drop(stopped);
        };
        let (told, ()) = tokio::join!(commit(&client), reached);
        told
    }

    pub(crate) fn lose(&self, victim: Victim, shard: usize, number: u64) {
        match victim {
            Victim::Server => {
                self.kill(shard);
                self.revive(shard);
            }
            Victim::Connection => {
                self.terminate(shard, &format!("application_name = 'transfer {number}'"));
            }
        }
    }

    pub(crate) fn kill(&self, shard: usize) {
        self.sandbox.cluster(shard).kill();
    }

    pub(crate) fn revive(&self, shard: usize) {
        self.sandbox.cluster(shard).start().unwrap();
    }

    pub(crate) fn lose_all_connections(&self, shard: usize) {
        self.terminate(
            shard,
            "backend_type = 'client backend' and application_name like 'transfer%'",
        );
    }

    fn terminate(&self, shard: usize, which: &str) {
        let config = self.sandbox.cluster(shard).config("postgres");
        let pids =
            format!("select coalesce(array_agg(pid), '{{}}') from pg_stat_activity where {which}");
        let work = async move {
            let client = open_session(&config).await.unwrap();
            let pids: Vec<i32> = client.query_one(&pids, &[]).await.unwrap().get(0);
            for pid in pids {
                client
                    .query("select pg_terminate_backend($1, 5000)", &[&pid])
                    .await
                    .unwrap();
            }
        };
        // It is called within a runtime.
        std::thread::scope(|scope| {
            scope.spawn(|| crate::block_on(work)).join().unwrap();
        });
    }

    async fn each(&self, sql: &str) -> Vec<i64> {
        let mut found = Vec::new();
        for cluster in self.sandbox.clusters() {
            let client = open_session(&cluster.config("postgres")).await.unwrap();
            found.push(client.query_one(sql, &[]).await.unwrap().get(0));
        }
        found
    }

    /// Waits until nothing is prepared on any shard, and no transfer is under way.
    pub(crate) async fn settles(&self) {
        let sql = "select (select count(*) from pg_prepared_xacts) + (select count(*) from pg_stat_activity \
                   where application_name like 'transfer%' and state <> 'idle')";
        let begun = SystemTime::now();
        while self.each(sql).await.iter().sum::<i64>() > 0 {
            assert!(
                begun.elapsed().unwrap() < 2 * PATIENCE,
                "something stays prepared"
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Whether a transfer is there; on every shard the same.
    pub(crate) async fn present(&self, number: u64) -> bool {
        let sql = format!("select count(*) from entry where transfer = {number}");
        let found = self.each(&sql).await;
        assert!(
            found == [1, 1, 1] || found == [0, 0, 0],
            "transfer {number} is half there: {found:?}"
        );
        found[0] == 1
    }

    /// Nothing was made and nothing lost.
    pub(crate) async fn adds_up(&self) {
        let balance = self.each("select sum(balance)::bigint from account").await;
        let entries = self.each("select count(*) from entry").await;
        let all = i64::try_from(SHARDS as u64 * ACCOUNTS * 1000).unwrap();
        assert_eq!(balance.iter().sum::<i64>(), all, "{balance:?}");
        assert!(
            entries.iter().all(|count| *count == entries[0]),
            "{entries:?}"
        );
    }
}

async fn session(port: u16) -> Result<Client, tokio_postgres::Error> {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .dbname("postgres")
        .user("postgres")
        .application_name("transfer");
    open_session(&config).await
}

/// Moves two from an account of the first shard, one each to accounts of the others.
async fn transfer(client: &Client, number: u64) -> Result<(), tokio_postgres::Error> {
    client.batch_execute("begin").await?;
    // Always in this order, so that no two wait for each other.
    for (shard, amount) in [-2, 1, 1].into_iter().enumerate() {
        let account = shard as u64 * 100 + number % ACCOUNTS;
        let sql = format!("update account set balance = balance + {amount} where id = {account}");
        client.batch_execute(&sql).await?;
        let sql = format!("insert into entry values ({account}, {number})");
        client.batch_execute(&sql).await?;
    }
    Ok(())
}

async fn commit(client: &Client) -> Told {
    outcome(client.batch_execute("commit").await)
}

fn outcome(result: Result<(), tokio_postgres::Error>) -> Told {
    let Err(error) = result else {
        return Told::Committed;
    };
    match error.as_db_error() {
        // FATAL: the connection ends, maybe within the commit.
        Some(said) if said.severity() == "FATAL" => Told::Closed,
        Some(said) if *said.code() == SqlState::TRANSACTION_RESOLUTION_UNKNOWN => Told::Doubtful,
        Some(said) => Told::RolledBack(format!("{}: {}", said.code().code(), said.message())),
        None => Told::Closed,
    }
}
