//! Three shards with the rows where the map says, one server with all rows, and the real binary before the shards.

use crate::{doubled, random::Random, schema};
use shardway::{
    catalog::snapshot::Snapshot,
    config::load,
    sandbox::{Auth, Sandbox, SandboxEnv},
};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_postgres::Config;

pub(crate) const SHARDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

/// The program ends with its pipe to the owner, however the owner ends.
const WITH_OWNER: &str = r#"exec 3<&0 </dev/null
"$@" 3<&- &
program=$!
(while read -r _ <&3; do :; done; kill -KILL "$program" 2>/dev/null) &
watcher=$!
wait "$program"
kill "$watcher" 2>/dev/null"#;

/// Both sides, filled alike. The proxy ends before the servers do.
pub(crate) struct World {
    proxy: Child,
    port: u16,
    sandbox: Sandbox,
    pub(crate) snapshot: Arc<Snapshot>,
    /// By table and shard, rows that are where they do not belong.
    strangers: Vec<Vec<Vec<String>>>,
}

/// Whether rows are also on shards that do not own them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    Once,
    Doubled,
}

impl World {
    pub(crate) async fn start(random: &mut Random, rows: Rows) -> Self {
        let sandbox = Sandbox::builder(environment())
            .clusters(SHARDS + 1)
            .auth(Auth::Scram)
            .start()
            .unwrap();
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let text = schema::configuration(
            &sandbox.clusters()[..SHARDS],
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
        );
        let settings = load::load_str("oracle.toml", &text, Path::new("."))
            .unwrap_or_else(|errors| panic!("{}", errors.render()));
        let snapshot = Arc::clone(&settings.databases[schema::DATABASE].snapshot);
        schema::fill(
            &sandbox.clusters()[..SHARDS],
            sandbox.cluster(SHARDS),
            &snapshot,
            random,
        )
        .await;
        let shards = &sandbox.clusters()[..SHARDS];
        let copied = match rows {
            Rows::Once => Vec::new(),
            Rows::Doubled => doubled::copied(&snapshot),
        };
        doubled::fill(shards, &snapshot, &copied).await;
        let strangers = doubled::all(shards, &snapshot, &copied).await;
        let config = sandbox.root().join("oracle.toml");
        fs::write(&config, &text).unwrap();
        let proxy = serve(&config, port);
        doubled::announce(&shards[0], &snapshot, &copied).await;
        Self {
            proxy,
            port,
            sandbox,
            snapshot,
            strangers,
        }
    }

    pub(crate) fn direct(&self) -> Config {
        config(self.sandbox.cluster(SHARDS).port())
    }

    pub(crate) fn proxied(&self) -> Config {
        config(self.port)
    }

    /// See [`schema::compare`].
    pub(crate) async fn compare(&self) -> Vec<String> {
        schema::compare(
            &self.sandbox.clusters()[..SHARDS],
            self.sandbox.cluster(SHARDS),
            &self.snapshot,
            &self.strangers,
        )
        .await
    }
}

impl Drop for World {
    fn drop(&mut self) {
        drop(self.proxy.stdin.take());
        self.proxy.wait().unwrap();
    }
}

fn config(port: u16) -> Config {
    let mut config = Config::new();
    config
        .host("127.0.0.1")
        .port(port)
        .dbname(schema::DATABASE)
        .user(schema::USER)
        .password("app");
    config
}

fn environment() -> SandboxEnv {
    SandboxEnv {
        pg_bin: std::env::var_os("SHARDWAY_PG_BIN").map(PathBuf::from),
        path: std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect(),
        tmp: std::env::temp_dir(),
        template_cache: None,
    }
}

fn serve(config: &Path, port: u16) -> Child {
    let mut command = Command::new("/bin/sh");
    command
        .args([
            "-c",
            WITH_OWNER,
            "proxy",
            env!("CARGO_BIN_EXE_shardway"),
            "serve",
            "--config",
        ])
        .arg(config);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let errors = BufReader::new(child.stderr.take().unwrap());
    std::thread::spawn(move || {
        errors
            .lines()
            .map_while(Result::ok)
            .for_each(|line| eprintln!("proxy: {line}"));
    });
    let begun = SystemTime::now();
    while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
        assert!(child.try_wait().unwrap().is_none(), "the proxy ended");
        assert!(
            begun.elapsed().unwrap() < PATIENCE,
            "the proxy does not answer"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}
