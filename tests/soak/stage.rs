//! What the load runs on: two PostgreSQL servers, the proxy as a process of its own, and looks into all of them.

use crate::harness::{self, Proxy};
use shardway::{
    catalog::snapshot::Snapshot,
    config::load,
    sandbox::{Cluster, Sandbox},
};
use std::{collections::HashMap, fs, net::Ipv4Addr, path::Path, sync::Arc};
use tokio_postgres::{NoTls, SimpleQueryMessage};

/// Who enters by his name alone.
pub(crate) const TRUSTED: &str = "trusted";
/// Who proves himself by a password, which is his name.
pub(crate) const PROVEN: &str = "proven";
/// Who has a backend of his own while he is connected.
pub(crate) const LOYAL: &str = "loyal";

/// Where a client's rows are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// A database of one shard.
    Single,
    /// A database of two shards.
    Sharded,
}

impl Place {
    pub(crate) fn database(self) -> &'static str {
        match self {
            Self::Single => "single",
            Self::Sharded => "sharded",
        }
    }
}

/// Servers and proxy. The proxy ends first.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) proxy: Proxy,
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) pool: Pools,
    sandbox: Sandbox,
}

/// Backends per user and placement.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pools {
    pub(crate) shared: usize,
    pub(crate) loyal: usize,
}

impl Pools {
    /// For so many clients.
    pub(crate) fn for_clients(clients: usize) -> Self {
        Self {
            shared: (clients / 20).clamp(6, 40),
            loyal: clients / 20 + 2,
        }
    }

    fn all(self) -> usize {
        3 * (2 * self.shared + self.loyal)
    }
}

impl Stage {
    pub(crate) fn open(clients: usize) -> Self {
        let pool = Pools::for_clients(clients);
        let sandbox = Sandbox::builder(harness::environment())
            .clusters(2)
            .setting("max_connections", &(pool.all() + 20).to_string())
            .start()
            .unwrap();
        let [first, second] = [sandbox.cluster(0), sandbox.cluster(1)];
        let table = "CREATE TABLE items (id bigint PRIMARY KEY, body text NOT NULL)";
        harness::block_on(async {
            for (server, database) in [(first, "single"), (first, "sharded"), (second, "sharded")] {
                let create = format!("CREATE DATABASE {database}");
                server.execute("postgres", &create).await.unwrap();
                server.execute(database, table).await.unwrap();
            }
        });
        let text = configuration(first, second, pool, clients);
        let settings = load::load_str("soak.toml", &text, Path::new("."))
            .unwrap_or_else(|errors| panic!("{}", errors.render()));
        Self {
            proxy: Proxy::start(sandbox.root(), &text),
            snapshot: Arc::clone(&settings.databases["sharded"].snapshot),
            pool,
            sandbox,
        }
    }

    /// Rows of every database, as the servers have them.
    pub(crate) fn rows(&self, place: Place) -> HashMap<i64, String> {
        let servers: &[Cluster] = match place {
            Place::Single => &self.sandbox.clusters()[..1],
            Place::Sharded => self.sandbox.clusters(),
        };
        let mut all = HashMap::new();
        for server in servers {
            let rows = harness::block_on(
                server.query(place.database(), "SELECT id::text, body FROM items"),
            )
            .unwrap();
            for row in rows {
                let [Some(id), Some(body)] = &row[..] else {
                    panic!("{row:?}")
                };
                let twice = all.insert(id.parse().unwrap(), body.clone());
                assert_eq!(twice, None, "row {id} is on both shards");
            }
        }
        all
    }

    /// What the servers' connections from the proxy do: state and last statement.
    pub(crate) fn activity(&self) -> Vec<String> {
        let look = "SELECT format('%s: %s %s %s', coalesce(state, 'starting'), pid, datname, left(query, 100)) \
                    FROM pg_stat_activity WHERE backend_type = 'client backend' AND client_addr IS NOT NULL";
        let of = |server: &Cluster| {
            let rows = harness::block_on(server.query("postgres", look)).unwrap();
            rows.into_iter().map(|row| row[0].clone().unwrap())
        };
        self.sandbox.clusters().iter().flat_map(of).collect()
    }

    /// Advisory locks that anyone holds.
    pub(crate) fn locks(&self) -> usize {
        let count = |server: &Cluster| {
            let locks = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory'";
            harness::block_on(server.query("postgres", locks))
                .unwrap()
                .len()
        };
        self.sandbox.clusters().iter().map(count).sum()
    }

    /// Most backends that the proxy may have.
    pub(crate) fn most_backends(&self) -> usize {
        self.pool.all()
    }

    /// Rows of the console, by column.
    pub(crate) fn show(&self, what: &str) -> Vec<HashMap<String, String>> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(Ipv4Addr::LOCALHOST.to_string())
            .port(self.proxy.port)
            .user("ops")
            .dbname("shardway");
        let messages = harness::block_on(async {
            let (client, connection) = config.connect(NoTls).await.unwrap();
            let asked = async move { client.simple_query(what).await.unwrap() };
            let (messages, end) = tokio::join!(asked, connection);
            end.unwrap();
            messages
        });
        let row = |message| {
            let SimpleQueryMessage::Row(row) = message else {
                return None;
            };
            let columns = row.columns().iter().enumerate();
            let values = columns.map(|(at, column)| {
                let value = row.get(at).unwrap_or_default();
                (column.name().to_owned(), value.to_owned())
            });
            Some(values.collect())
        };
        messages.into_iter().filter_map(row).collect()
    }

    /// Files and sockets that the proxy has open.
    pub(crate) fn files(&self) -> usize {
        let all = fs::read_dir(format!("/proc/{}/fd", self.proxy.pid)).unwrap();
        all.count()
    }

    /// Bytes of memory that the proxy's process has.
    pub(crate) fn resident(&self) -> usize {
        resident(&self.proxy)
    }
}

/// Bytes of memory that a proxy's process has, counted page by page (the sum in `status` is an estimate).
pub(crate) fn resident(proxy: &Proxy) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/smaps_rollup", proxy.pid)).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Rss:"))
        .unwrap();
    let kilobytes = line.trim().trim_end_matches("kB").trim();
    kilobytes.parse::<usize>().unwrap() * 1024
}

fn configuration(first: &Cluster, second: &Cluster, pool: Pools, clients: usize) -> String {
    let shard = |server: &Cluster, database: &str| {
        let port = server.port();
        format!("{{ primary = \"postgres://127.0.0.1:{port}/{database}?sslmode=disable\" }}")
    };
    format!(
        r#"
[server]
listen = ["127.0.0.1:0"]
http = "127.0.0.1:0"
max_clients = {most}
login_timeout = "2m"
log = {{ level = "info,shardway::proxy=warn,shardway::inspect=off" }}
[pool]
size = {shared}
wait_timeout = "5m"
[databases.single]
shards.s0 = {single}
[databases.sharded]
shards.s0 = {s0}
shards.s1 = {s1}
[databases.sharded.groups.items]
method = "hash"
key_type = "bigint"
tables = {{ "public.items" = "id" }}
[users.{TRUSTED}]
auth = "trust"
backend_user = "postgres"
[users.{PROVEN}]
password = "{PROVEN}"
backend_user = "postgres"
[users.{LOYAL}]
auth = "trust"
backend_user = "postgres"
pool = {{ mode = "session", size = {loyal} }}
[users.ops]
auth = "trust"
console = "admin"
"#,
        most = clients * 2 + 100,
        shared = pool.shared,
        loyal = pool.loyal,
        single = shard(first, "single"),
        s0 = shard(first, "sharded"),
        s1 = shard(second, "sharded"),
    )
}
