//! Two servers that the tests share; each test has a database of its own on both, and proxies without sessions: the test
//! itself says what sessions would.

use shardway::{
    catalog::shard::ShardId,
    clock::Duration,
    config::{
        load,
        settings::{self, Settings},
    },
    metrics::{
        Metrics,
        transactions::{Distributed, Standing},
    },
    sandbox::{Cluster, Sandbox, SandboxEnv},
    txn::{
        Incarnation,
        coordinator::{Coordinator, Settled, Transaction},
    },
};
use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};
use tokio_postgres::{Client, NoTls};

pub(crate) const DECIDER: ShardId = ShardId(0);
pub(crate) const OTHER: ShardId = ShardId(1);
/// What a test waits for happens within that time, or never.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Roles of every test: two that applications use, and Shardway's own, which may act as those.
const ROLES: &str = "CREATE ROLE app LOGIN; CREATE ROLE other LOGIN; CREATE ROLE control LOGIN; \
                     GRANT app, other TO control";

/// The database of one test on both servers.
pub(crate) struct Stage {
    pub(crate) name: String,
    pub(crate) servers: &'static [Cluster],
    /// The role that its proxies act as, and the one that their users' backends are opened as.
    pub(crate) control: String,
    pub(crate) app: String,
}

/// A proxy, as far as transactions over several shards go.
pub(crate) struct Proxy {
    pub(crate) coordinator: Arc<Coordinator>,
    pub(crate) view: Arc<Distributed>,
    pub(crate) incarnation: Arc<Incarnation>,
}

fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| start("20"))
}

fn unprepared() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| start("0"))
}

fn start(max_prepared: &str) -> Sandbox {
    let environment = SandboxEnv {
        template_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates")),
        ..SandboxEnv::of(std::env::var_os, std::env::temp_dir())
    };
    let builder = Sandbox::builder(environment).clusters(2);
    let builder = builder.setting("max_prepared_transactions", max_prepared);
    let sandbox = builder.start().unwrap();
    block_on(async {
        for server in sandbox.clusters() {
            server.execute("postgres", ROLES).await.unwrap();
        }
    });
    sandbox
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(future)
}

impl Stage {
    /// A database in which the control role may make its schema.
    pub(crate) async fn new() -> Self {
        Self::bare().await.granted().await
    }

    /// The same, on servers on which nothing can be prepared.
    pub(crate) async fn unprepared() -> Self {
        Self::on(unprepared).await.granted().await
    }

    async fn granted(self) -> Self {
        for server in self.servers {
            let name = &self.name;
            let grant = format!("GRANT CREATE ON DATABASE {name} TO control");
            server.execute(name, &grant).await.unwrap();
        }
        self
    }

    /// A database in which no role of ours may make anything.
    pub(crate) async fn bare() -> Self {
        Self::on(sandbox).await
    }

    async fn on(sandbox: fn() -> &'static Sandbox) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let name = format!("t{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let servers = tokio::task::spawn_blocking(move || sandbox().clusters())
            .await
            .unwrap();
        for server in servers {
            let create = format!("CREATE DATABASE {name}");
            server.execute("postgres", &create).await.unwrap();
            let table = "CREATE TABLE t (a int PRIMARY KEY); GRANT ALL ON t TO app, other";
            server.execute(&name, table).await.unwrap();
        }
        Self {
            name,
            servers,
            control: "control".to_owned(),
            app: "app".to_owned(),
        }
    }

    /// The configuration of a proxy; `shards` by name and server.
    pub(crate) fn configuration(&self, shards: [(&str, usize); 2], more: &str) -> String {
        let shard = |(name, server): (&str, usize)| {
            let (host, port) = (
                self.servers[server].socket_dir(),
                self.servers[server].port(),
            );
            let (database, host) = (&self.name, host.display());
            format!(
                "shards.{name} = {{ primary = \"postgres:///{database}?host={host}&port={port}\" }}\n"
            )
        };
        let shards: String = shards.into_iter().map(shard).collect();
        format!(
            "[databases.app]\n{shards}control = {{ user = \"{}\" }}\n{more}\n\
             [users.{}]\nauth = \"trust\"\n",
            self.control, self.app
        )
    }

    pub(crate) fn settings(&self, shards: [(&str, usize); 2], more: &str) -> Settings {
        let text = self.configuration(shards, more);
        load::load_str("test.toml", &text, Path::new("."))
            .unwrap_or_else(|errors| panic!("{}", errors.render()))
    }

    /// A proxy that has not looked yet.
    pub(crate) fn proxy(&self) -> Proxy {
        self.proxy_with("")
    }

    pub(crate) fn proxy_with(&self, more: &str) -> Proxy {
        Proxy::of(&self.settings([("s0", 0), ("s1", 1)], more).databases["app"])
    }

    /// A proxy that has looked, and can begin transactions.
    pub(crate) async fn ready(&self) -> Proxy {
        let proxy = self.proxy();
        proxy.coordinator.round(None).await;
        proxy
    }

    /// A session of a role on a shard.
    pub(crate) async fn session(&self, shard: ShardId, role: &str) -> Client {
        let mut config = self.servers[shard.index()].config(&self.name);
        let (client, connection) = config.user(role).connect(NoTls).await.unwrap();
        drop(tokio::spawn(connection));
        client
    }

    /// The first column of what a shard answers.
    pub(crate) async fn ask(&self, shard: ShardId, sql: &str) -> Vec<String> {
        let rows = self.servers[shard.index()].query(&self.name, sql).await;
        let first = |row: Vec<Option<String>>| row[0].clone().unwrap_or_default();
        rows.unwrap().into_iter().map(first).collect()
    }

    pub(crate) async fn execute(&self, shard: ShardId, sql: &str) {
        let server = &self.servers[shard.index()];
        server.execute(&self.name, sql).await.unwrap();
    }

    /// What is prepared on a shard, in this test's database.
    pub(crate) async fn prepared(&self, shard: ShardId) -> Vec<String> {
        let sql =
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database() ORDER BY 1";
        self.ask(shard, sql).await
    }

    /// The rows of the table on a shard.
    pub(crate) async fn rows(&self, shard: ShardId) -> Vec<String> {
        self.ask(shard, "SELECT a FROM t ORDER BY a").await
    }

    /// Prepares the part of a shard, which inserts a row.
    pub(crate) async fn prepare(&self, transaction: &Transaction, row: i32) {
        self.prepare_as("app", &transaction.gid(OTHER), row).await;
    }

    pub(crate) async fn prepare_as(&self, role: &str, gid: &str, row: i32) {
        let session = self.session(OTHER, role).await;
        let sql = format!("BEGIN; INSERT INTO t VALUES ({row})");
        session.batch_execute(&sql).await.unwrap();
        let sql = format!("PREPARE TRANSACTION '{gid}'");
        session.batch_execute(&sql).await.unwrap();
    }

    /// The decider's session, its transaction decided but not committed.
    pub(crate) async fn decide(&self, transaction: &Transaction, row: i32) -> Client {
        let session = self.session(DECIDER, "app").await;
        let id = transaction.id();
        let sql = format!("BEGIN; INSERT INTO t VALUES ({row}); SELECT shardway.decide('{id}')");
        session.batch_execute(&sql).await.unwrap();
        session
    }
}

impl Proxy {
    pub(crate) fn of(database: &settings::Database) -> Self {
        let (incarnation, metrics) = (Incarnation::new(), Metrics::new());
        Self {
            coordinator: Coordinator::new(database, Arc::clone(&incarnation), &metrics),
            view: metrics.transactions.of("app"),
            incarnation,
        }
    }

    pub(crate) fn begin(&self) -> Transaction {
        let begun = self.coordinator.begin(DECIDER, &[OTHER], "app");
        begun.unwrap_or_else(|reason| panic!("{reason}"))
    }

    /// One round of recovery.
    pub(crate) async fn round(&self) {
        self.coordinator.round(None).await;
    }

    /// Why what is prepared is left, one text per part.
    pub(crate) fn left(&self) -> Vec<String> {
        let standings = self.view.parts().into_iter().map(|part| part.standing);
        let word = |standing| match standing {
            Standing::UnderWay { .. } => "under way".to_owned(),
            Standing::InDoubt { problem, .. } => format!("in doubt: {problem}"),
            Standing::Stuck { problem } => format!("stuck: {problem}"),
        };
        standings.map(word).collect()
    }

    /// Committed and aborted parts.
    pub(crate) fn recovered(&self) -> (u64, u64) {
        (self.view.committed.get(), self.view.aborted.get())
    }

    /// One word for what has become of a transaction.
    pub(crate) async fn settle(
        &self,
        transaction: &Transaction,
        patience: Duration,
    ) -> &'static str {
        match self.coordinator.settle(transaction, patience).await {
            Settled::Committed => "committed",
            Settled::Aborted => "aborted",
            Settled::Unknown(_) => "unknown",
        }
    }
}
