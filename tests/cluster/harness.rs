//! The servers and the proxy that all tests share: three shards, one server that holds everything, and the real
//! binary. Started by the first test that asks; everything ends with the test process, however that ends.

use shardway::{
    config::{load, settings::Settings},
    sandbox::{Auth, Cluster, Sandbox, SandboxEnv, shop},
};
use std::{
    fs,
    io::{BufRead, BufReader},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

pub(crate) const SHARDS: usize = 3;
/// What waits for a condition gives up after this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Ends the program with its pipe to the owner: statics are never dropped, and a test process may be killed.
const WITH_OWNER: &str = r#"exec 3<&0 </dev/null
"$@" 3<&- &
program=$!
(while read -r _ <&3; do :; done; kill -KILL "$program" 2>/dev/null) &
watcher=$!
wait "$program"
status=$?
kill "$watcher" 2>/dev/null
exit "$status""#;

/// Where a client connects.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) name: &'static str,
    pub(crate) port: u16,
}

impl Target {
    /// How tokio-postgres connects.
    pub(crate) fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host("127.0.0.1")
            .port(self.port)
            .dbname(shop::DATABASE)
            .user(shop::USER)
            .password(shop::PASSWORD);
        config
    }

    /// Lets a program find the server as libpq does.
    pub(crate) fn apply(&self, command: &mut Command) {
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", self.port.to_string())
            .env("PGDATABASE", shop::DATABASE);
        command
            .env("PGUSER", shop::USER)
            .env("PGPASSWORD", shop::PASSWORD)
            .env("PGSSLMODE", "disable");
        command
            .env("LC_ALL", "C.UTF-8")
            .env("PGTZ", "UTC")
            .stdin(Stdio::null());
    }
}

/// Shards, the whole, and the proxy.
#[derive(Debug)]
pub(crate) struct Shop {
    sandbox: Sandbox,
    pub(crate) settings: Settings,
    pub(crate) proxy: Proxy,
}

impl Shop {
    /// The shards' servers, `s0` first.
    pub(crate) fn shards(&self) -> &[Cluster] {
        &self.sandbox.clusters()[..SHARDS]
    }

    /// Every server: the shards and the whole.
    pub(crate) fn servers(&self) -> &[Cluster] {
        self.sandbox.clusters()
    }

    /// One PostgreSQL that holds all rows.
    pub(crate) fn whole(&self) -> Target {
        Target {
            name: "direct",
            port: self.sandbox.cluster(SHARDS).port(),
        }
    }

    /// The proxy before the shards.
    pub(crate) fn proxied(&self) -> Target {
        Target {
            name: "proxied",
            port: self.proxy.port,
        }
    }

    /// Both, PostgreSQL first.
    pub(crate) fn both(&self) -> [Target; 2] {
        [self.whole(), self.proxied()]
    }
}

/// The shop that tests share. Each test writes only rows of its own.
pub(crate) fn shop() -> &'static Shop {
    static SHOP: OnceLock<Shop> = OnceLock::new();
    SHOP.get_or_init(open)
}

fn open() -> Shop {
    let builder = Sandbox::builder(environment())
        .clusters(SHARDS + 1)
        .auth(Auth::Scram);
    let sandbox = builder.setting("max_connections", "100").start().unwrap();
    let (shards, whole) = (&sandbox.clusters()[..SHARDS], sandbox.cluster(SHARDS));
    let port = free_port();
    let text = shop::configuration(shards, SocketAddr::from((Ipv4Addr::LOCALHOST, port)), None);
    let settings = load::load_str("shop.toml", &text, Path::new("."))
        .unwrap_or_else(|errors| panic!("{}", errors.render()));
    block_on(async {
        for server in sandbox.clusters() {
            shop::create(server).await.unwrap();
        }
        shop::fill(shards, &settings.databases[shop::DATABASE].snapshot)
            .await
            .unwrap();
        shop::fill_whole(whole).await.unwrap();
    });
    let proxy = Proxy::start(sandbox.root(), &text, port);
    Shop {
        sandbox,
        settings,
        proxy,
    }
}

/// The environment of a sandbox in a test.
pub(crate) fn environment() -> SandboxEnv {
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

/// A running `shardway serve`.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    child: Child,
}

impl Proxy {
    /// Starts the binary with a configuration that listens on the port, written to a directory that the sandbox
    /// removes, and waits until it accepts connections.
    pub(crate) fn start(dir: &Path, configuration: &str, port: u16) -> Self {
        let config = dir.join(format!("proxy-{port}.toml"));
        fs::write(&config, configuration).unwrap();
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
            .arg(&config);
        let mut child = command
            .stdin(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut errors = BufReader::new(child.stderr.take().unwrap());
        until("the proxy accepts connections", || {
            if child.try_wait().unwrap().is_some() {
                let mut said = String::new();
                std::io::Read::read_to_string(&mut errors, &mut said).unwrap();
                panic!("the proxy ended: {said}");
            }
            TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok()
        });
        // What it says is shown with the failed test, and its pipe never fills.
        std::thread::spawn(move || {
            errors
                .lines()
                .map_while(Result::ok)
                .for_each(|line| eprintln!("proxy: {line}"))
        });
        Self { port, child }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
    }
}

/// Asks again until it is so.
///
/// # Panics
/// When it is not so within [`PATIENCE`].
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = SystemTime::now();
    while !is_so() {
        assert!(
            begun.elapsed().unwrap() < PATIENCE,
            "waited in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A port that nobody has at this moment.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Runs a future to its end, with tasks beside it.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Runs a program to its end; what it printed. A failure shows what it said.
pub(crate) fn printed(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?} failed with {}:\n{out}\n{errors}",
        output.status
    );
    out.into_owned()
}

/// Both texts are the same, or the first lines that differ are shown.
pub(crate) fn assert_same(direct: &str, proxied: &str) {
    for (at, (left, right)) in direct.lines().zip(proxied.lines()).enumerate() {
        assert_eq!(
            left,
            right,
            "line {}: PostgreSQL's answer is on the left",
            at + 1
        );
    }
    assert_eq!(
        direct.lines().count(),
        proxied.lines().count(),
        "one answer is longer:\n{direct}\n---\n{proxied}"
    );
}
