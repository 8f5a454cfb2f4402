//! Three shards with the rows where the map says, one server with all rows, and the real binary before the shards.

use crate::{
    doubled, moving,
    random::Random,
    schema::{self, Keys},
};
use shardway::{
    catalog::snapshot::Snapshot,
    config::load,
    sandbox::{Auth, Cluster, Sandbox, SandboxEnv},
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

/// Both sides, filled alike. The proxies end before the servers do.
pub(crate) struct World {
    proxies: Vec<Proxy>,
    sandbox: Sandbox,
    pub(crate) snapshot: Arc<Snapshot>,
    /// By table and shard, rows that are where they do not belong.
    strangers: Vec<Vec<Vec<String>>>,
    pub(crate) rows: Rows,
    pub(crate) config: PathBuf,
}

struct Proxy {
    child: Child,
    port: u16,
}

/// Whether rows are also on shards that do not own them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    Once,
    Doubled,
    /// Now and then, while they move: two proxies, and one more server that has none at first.
    Moving,
    /// The same, and one more server, which can follow the home shard.
    Followed,
}

impl Rows {
    /// Shards of the configuration.
    pub(crate) fn shards(self) -> usize {
        match self {
            Self::Once | Self::Doubled => SHARDS,
            Self::Moving | Self::Followed => SHARDS + 1,
        }
    }

    fn spares(self) -> usize {
        usize::from(self == Self::Followed)
    }

    fn proxies(self) -> usize {
        match self {
            Self::Once | Self::Doubled => 1,
            Self::Moving | Self::Followed => 2,
        }
    }

    /// What moves needs a primary key.
    pub(crate) fn keys(self) -> Keys {
        match self {
            Self::Once | Self::Doubled => Keys::OfSome,
            Self::Moving | Self::Followed => Keys::OfAll,
        }
    }
}

impl World {
    pub(crate) async fn start(random: &mut Random, rows: Rows) -> Self {
        let sandbox = Sandbox::builder(environment())
            .clusters(rows.shards() + 1 + rows.spares())
            .auth(Auth::Scram)
            .setting("wal_level", "logical")
            .setting("max_wal_senders", "20")
            .setting("max_replication_slots", "20")
            .start()
            .unwrap();
        let all = &sandbox.clusters()[..rows.shards()];
        let shards = &all[..SHARDS];
        let texts: Vec<(u16, String)> = (0..rows.proxies())
            .map(|_| {
                let port = free();
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
                (port, schema::configuration(all, listen))
            })
            .collect();
        let settings = load::load_str("oracle.toml", &texts[0].1, Path::new("."))
            .unwrap_or_else(|errors| panic!("{}", errors.render()));
        let snapshot = Arc::clone(&settings.databases[schema::DATABASE].snapshot);
        let whole = sandbox.cluster(rows.shards());
        schema::fill(shards, whole, &snapshot, random, rows.keys()).await;
        for empty in &all[SHARDS..] {
            schema::found(empty).await;
        }
        let copied = match rows {
            Rows::Once | Rows::Moving | Rows::Followed => Vec::new(),
            Rows::Doubled => doubled::copied(&snapshot),
        };
        doubled::fill(shards, &snapshot, &copied).await;
        let strangers = doubled::all(shards, &snapshot, &copied).await;
        let mut proxies = Vec::new();
        for (at, (port, text)) in texts.iter().enumerate() {
            let config = sandbox.root().join(format!("oracle{at}.toml"));
            fs::write(&config, text).unwrap();
            let child = serve(&config, *port);
            proxies.push(Proxy { child, port: *port });
        }
        doubled::announce(&shards[0], &snapshot, &copied).await;
        Self {
            config: sandbox.root().join("oracle0.toml"),
            proxies,
            sandbox,
            snapshot,
            strangers,
            rows,
        }
    }

    pub(crate) fn direct(&self) -> Config {
        config(self.sandbox.cluster(self.rows.shards()).port())
    }

    /// By each of the proxies.
    pub(crate) fn proxied(&self) -> Vec<Config> {
        let proxies = self.proxies.iter();
        proxies.map(|proxy| config(proxy.port)).collect()
    }

    /// One more proxy, of the configuration of the first.
    pub(crate) fn one_more(&mut self) -> Config {
        let port = free();
        let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let all = &self.sandbox.clusters()[..self.rows.shards()];
        let path = self.sandbox.root().join("one-more.toml");
        fs::write(&path, schema::configuration(all, listen)).unwrap();
        let child = serve(&path, port);
        self.proxies.push(Proxy { child, port });
        config(port)
    }

    /// The home shard, and the server that may follow it.
    pub(crate) fn home_and_spare(&self) -> (&Cluster, &Cluster) {
        let all = self.sandbox.clusters();
        (&all[0], all.last().unwrap())
    }

    /// The server of a shard.
    pub(crate) fn shard(&self, at: usize) -> &Cluster {
        self.sandbox.cluster(at)
    }

    /// The home shard, as its superuser.
    pub(crate) fn home(&self) -> Config {
        self.sandbox.cluster(0).config(schema::DATABASE)
    }

    /// See [`schema::compare`].
    pub(crate) async fn compare(&self) -> Vec<String> {
        schema::compare(
            &self.sandbox.clusters()[..SHARDS],
            self.sandbox.cluster(self.rows.shards()),
            &self.snapshot,
            &self.strangers,
        )
        .await
    }

    /// See [`moving::compare`].
    pub(crate) async fn compare_moved(&self) -> Vec<String> {
        moving::compare(
            &self.sandbox.clusters()[..self.rows.shards()],
            self.sandbox.cluster(self.rows.shards()),
            &self.snapshot,
        )
        .await
    }
}

fn free() -> u16 {
    let any = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    any.local_addr().unwrap().port()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
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
