//! A proxy that serves: it recovers by itself, shows what it sees, and needs none of that to serve one shard.

use crate::harness::{DECIDER, OTHER, PATIENCE, Proxy, Stage, block_on};
use shardway::{
    config::{load, settings::Listen},
    server,
};
use std::{
    net::SocketAddr,
    path::Path,
    sync::{Arc, mpsc},
    thread,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// A proxy in this process, with a console and HTTP.
struct Serving {
    port: u16,
    http: SocketAddr,
    thread: thread::JoinHandle<()>,
}

impl Serving {
    fn start(databases: &str) -> Self {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 1\n{databases}\
             [users.ops]\nauth = \"trust\"\nconsole = \"admin\"\n"
        );
        let read = move || load::load_str("test.toml", &text, Path::new("."));
        let settings = read().unwrap_or_else(|errors| panic!("{}", errors.render()));
        let (told, ready) = mpsc::channel();
        let thread = thread::spawn(move || {
            let reload: server::Reload =
                Arc::new(move || read().map_err(|errors| errors.to_string()));
            let tell = move |bound| told.send(bound).unwrap();
            block_on(server::run(settings, reload, server::sessions, tell)).unwrap();
        });
        let bound = ready.recv().unwrap();
        let Listen::Tcp(address) = bound.listen[0] else {
            panic!("a TCP listener")
        };
        Self {
            port: address.port(),
            http: bound.http.unwrap(),
            thread,
        }
    }

    /// Waits for its end, which was asked for.
    fn end(self) {
        self.thread.join().unwrap();
    }

    async fn client(&self, user: &str, database: &str) -> Client {
        let mut config = Config::new();
        config.host("127.0.0.1").port(self.port);
        config.user(user).dbname(database);
        let (client, connection) = config.connect(NoTls).await.unwrap();
        drop(tokio::spawn(connection));
        client
    }

    /// The values of these columns of what the console shows.
    async fn show(&self, what: &str, columns: &[&str]) -> Vec<Vec<String>> {
        let console = self.client("ops", "shardway").await;
        let messages = console.simple_query(&format!("SHOW {what}")).await.unwrap();
        let of_row = |message| match message {
            SimpleQueryMessage::Row(row) => {
                let value = |column: &&str| row.get(*column).unwrap_or("-").to_owned();
                Some(columns.iter().map(value).collect())
            }
            _ => None,
        };
        messages.into_iter().filter_map(of_row).collect()
    }

    async fn metrics(&self) -> String {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let request = "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    /// Waits until the metrics have this line.
    async fn counts(&self, line: &str) {
        let counted = async {
            while !self.metrics().await.lines().any(|found| found == line) {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, counted)
            .await
            .unwrap_or_else(|_| panic!("{line}"));
    }
}

#[test]
fn what_dead_proxies_left_is_finished_and_shown() {
    block_on(async {
        let stage = Stage::new().await;
        let gone: Proxy = stage.ready().await;
        let (committed, aborted, stuck) = (gone.begin(), gone.begin(), gone.begin());
        stage.prepare(&committed, 1).await;
        stage.prepare(&aborted, 2).await;
        stage
            .prepare_as("app", &format!("{}s9", stuck.gid(OTHER)), 3)
            .await;
        let decider = stage.decide(&committed, 1).await;
        decider.batch_execute("COMMIT").await.unwrap();
        let id = stuck.id().to_owned();
        drop((committed, aborted, stuck));
        let silent = "UPDATE shardway.proxy SET heartbeat = now() - interval '1 h'";
        stage.execute(DECIDER, silent).await;

        let serving = Serving::start(&stage.configuration([("s0", 0), ("s1", 1)], ""));
        let label = |outcome| {
            format!(
                "shardway_transactions_recovered_total{{database=\"app\",outcome=\"{outcome}\"}} 1"
            )
        };
        serving.counts(&label("committed")).await;
        serving.counts(&label("aborted")).await;
        serving
            .counts("shardway_transactions_in_doubt{database=\"app\"} 1")
            .await;
        assert_eq!(stage.rows(OTHER).await, ["1"]);
        let columns = [
            "transaction",
            "database",
            "shard",
            "owner",
            "state",
            "finisher",
        ];
        let left = [&*id, "app", "s1", "app", "stuck", "an operator"];
        assert_eq!(serving.show("TRANSACTIONS", &columns).await, [left]);
        let proxies = serving
            .show("PROXIES", &["database", "state", "this"])
            .await;
        assert_eq!(proxies, [["app", "silent", "no"], ["app", "alive", "yes"]]);
        stage
            .execute(OTHER, &format!("ROLLBACK PREPARED '{id}:s1s9'"))
            .await;
        serving
            .counts("shardway_transactions_in_doubt{database=\"app\"} 0")
            .await;
    });
}

#[test]
fn a_proxy_that_ends_in_order_says_so() {
    block_on(async {
        let stage = Stage::new().await;
        let serving = Serving::start(&stage.configuration([("s0", 0), ("s1", 1)], ""));
        serving.counts("shardway_proxies{database=\"app\"} 1").await;
        let console = serving.client("ops", "shardway").await;
        console.batch_execute("SHUTDOWN").await.unwrap();
        drop(console);
        let proxies = || stage.ask(DECIDER, "SELECT incarnation FROM shardway.proxy");
        let left = async {
            while !proxies().await.is_empty() {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PATIENCE, left).await.unwrap();
        serving.end();
        assert_eq!(proxies().await, [""; 0], "no heartbeat comes after");
    });
}

#[test]
fn one_shard_is_served_while_the_home_shard_cannot_be_reached() {
    block_on(async {
        let stage = Stage::new().await;
        let ports = [("s0", 0), ("s1", 1)];
        let groups = "catalog = \"s0\"\ntables = { single = { \"public.t\" = \"s1\" } }\n";
        let text = stage.configuration(ports, groups);
        // Nobody listens there.
        let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let home = format!("port={}\"", stage.servers[0].port());
        let elsewhere = format!("port={}\"", nobody.local_addr().unwrap().port());
        drop(nobody);
        let serving = Serving::start(&text.replacen(&home, &elsewhere, 1));
        let client = serving.client("app", "app").await;
        client
            .batch_execute("INSERT INTO t VALUES (7)")
            .await
            .unwrap();
        assert_eq!(stage.rows(OTHER).await, ["7"]);
    });
}

#[test]
fn a_pooler_of_one_shard_opens_nothing_for_it() {
    block_on(async {
        let stage = Stage::new().await;
        let text = stage.configuration([("s0", 0), ("s1", 1)], "");
        let one: String = text
            .lines()
            .filter(|line| !line.starts_with("shards.s1"))
            .map(|line| format!("{line}\n"))
            .collect();
        let settings = load::load_str("test.toml", &one, Path::new(".")).unwrap();
        let proxy = Proxy::of(&settings.databases["app"]);
        assert!(!proxy.coordinator.is_wanted());
        proxy.round().await;
        let serving = Serving::start(&one);
        let client = serving.client("app", "app").await;
        client
            .batch_execute("INSERT INTO t VALUES (7)")
            .await
            .unwrap();
        let schemas = "SELECT count(*) FROM pg_namespace WHERE nspname = 'shardway'";
        assert_eq!(stage.ask(DECIDER, schemas).await, ["0"]);
        let control = "SELECT count(*) FROM pg_stat_activity \
                       WHERE datname = current_database() AND usename = 'control'";
        // The look at its tables, which every database gets, may be under way still.
        tokio::time::timeout(PATIENCE, async {
            while stage.ask(DECIDER, control).await != ["0"] {
                tokio::time::sleep(std::time::Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("no connection of the control role stays");
    });
}
