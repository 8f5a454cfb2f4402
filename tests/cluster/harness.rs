//! The servers and the proxy that all tests share: three shards, one server that holds everything, and the real
//! binary. Started by the first test that asks; everything ends with the test process, however that ends.

use shardway::{
    config::{load, settings::Settings},
    sandbox::{Auth, Cluster, Sandbox, SandboxEnv, shop},
};
use std::{
    fs,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

pub(crate) const SHARDS: usize = 3;
/// The program that is tested.
pub(crate) const SHARDWAY: &str = env!("CARGO_BIN_EXE_shardway");
/// What waits for a condition gives up after this.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Shardway's own schema, as its control role makes it.
const OWN_SCHEMA: &str = concat!(
    "SET ROLE shardway; CREATE SCHEMA shardway;",
    include_str!("../../src/registry/schema/1.sql"),
    include_str!("../../src/registry/schema/2.sql"),
    include_str!("../../src/registry/schema/3.sql"),
    include_str!("../../src/registry/schema/4.sql")
);

/// Prints the program's number and runs it. It ends with its pipe to the owner: statics are never dropped, and a test
/// process may be killed.
const WITH_OWNER: &str = r#"exec 3<&0 </dev/null
"$@" 3<&- >/dev/null &
program=$!
echo "$program"
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

    /// Connects; the connection is driven by a task until the client is dropped.
    pub(crate) async fn connect(&self) -> tokio_postgres::Client {
        open_session(&self.config()).await.unwrap()
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

    /// Another proxy before the same shards.
    pub(crate) fn serve(&self, recipe: &Recipe) -> Proxy {
        Proxy::start(self.sandbox.root(), &recipe.write(self.shards()))
    }

    /// The directory that is removed at the end.
    pub(crate) fn dir(&self) -> &Path {
        self.sandbox.root()
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
    let sandbox = builder.setting("max_connections", "200").start().unwrap();
    let (shards, whole) = (&sandbox.clusters()[..SHARDS], sandbox.cluster(SHARDS));
    let settings = fill(shards);
    block_on(async {
        shop::create(whole).await.unwrap();
        shop::fill_whole(whole).await.unwrap();
        // As on every shard: tools see it, and applications may not look inside.
        whole.execute(shop::DATABASE, OWN_SCHEMA).await.unwrap();
    });
    let proxy = Proxy::start(sandbox.root(), &Recipe::default().write(shards));
    Shop {
        sandbox,
        settings,
        proxy,
    }
}

/// Makes the shop on these shards and fills it.
pub(crate) fn fill(shards: &[Cluster]) -> Settings {
    let text = Recipe::default().write(shards);
    let settings = load::load_str("shop.toml", &text, Path::new("."))
        .unwrap_or_else(|errors| panic!("{}", errors.render()));
    block_on(async {
        for shard in shards {
            shop::create(shard).await.unwrap();
        }
        shop::fill(shards, &settings.databases[shop::DATABASE].snapshot)
            .await
            .unwrap();
    });
    settings
}

/// Customers of the shop whose rows live on the shard with this number.
pub(crate) fn customers_on(settings: &Settings, shard: usize) -> Vec<i64> {
    (1..=1000)
        .filter(|id| home_of(settings, *id) == shard)
        .collect()
}

/// The number of the shard where the rows of a customer live.
pub(crate) fn home_of(settings: &Settings, id: i64) -> usize {
    let snapshot = &settings.databases[shop::DATABASE].snapshot;
    let group = snapshot
        .groups
        .iter()
        .find(|group| group.name == "customers")
        .unwrap();
    let key = group.key_type.from_text(id.to_string().as_bytes()).unwrap();
    group.shard_of(&key).unwrap().index()
}

/// What a proxy's configuration says beside the shop's own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Recipe {
    /// Lines of the section `server`.
    pub(crate) server: String,
    /// The sections after the shop's own.
    pub(crate) sections: String,
    /// The query of every shard's address: `?sslmode=require`.
    pub(crate) address: String,
}

impl Recipe {
    /// With these sections after the shop's own.
    pub(crate) fn with(sections: &str) -> Self {
        Self {
            sections: sections.to_owned(),
            ..Self::default()
        }
    }

    /// The configuration of a proxy before these shards, on ports that the system chooses.
    pub(crate) fn write(&self, shards: &[Cluster]) -> String {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let text = shop::configuration(shards, any, Some(any));
        let text = text.replacen("[server]\n", &format!("[server]\n{}\n", self.server), 1);
        let primary = format!("/{}\" }}", shop::DATABASE);
        let text = text.replace(
            &primary,
            &format!("/{}{}\" }}", shop::DATABASE, self.address),
        );
        format!("{text}\n{}\n", self.sections)
    }
}

/// The environment of a sandbox in a test.
pub(crate) fn environment() -> SandboxEnv {
    SandboxEnv {
        // One for all runs: making a data directory takes longer than starting a server on it.
        template_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates")),
        ..SandboxEnv::of(std::env::var_os, std::env::temp_dir())
    }
}

/// One of PostgreSQL's programs, those of the servers included: where the sandbox finds them, or by the search path.
pub(crate) fn program_of_server(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten();
    let mut installed: Vec<_> = versions.map(|entry| entry.path().join("bin")).collect();
    installed.sort();
    let mut directories = environment()
        .pg_bin
        .into_iter()
        .chain(installed.into_iter().rev());
    directories
        .find_map(|directory| Some(directory.join(name)).filter(|path| path.exists()))
        .unwrap_or_else(|| PathBuf::from(name))
}

/// A running `shardway serve`.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    pub(crate) http: u16,
    /// Where its configuration is.
    pub(crate) config: PathBuf,
    pub(crate) pid: String,
    log: Arc<Mutex<String>>,
    child: Child,
}

impl Proxy {
    /// Starts the binary with a configuration written to a directory that the sandbox removes, and waits until it
    /// serves.
    pub(crate) fn start(dir: &Path, configuration: &str) -> Self {
        Self::start_with(dir, configuration, &[])
    }

    /// The same, with more in its environment.
    pub(crate) fn start_with(
        dir: &Path,
        configuration: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        Self::start_program(Path::new(SHARDWAY), dir, configuration, environment)
    }

    /// The same, of another program.
    pub(crate) fn start_program(
        program: &Path,
        dir: &Path,
        configuration: &str,
        environment: &[(&str, &str)],
    ) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let config = dir.join(format!("proxy-{number}.toml"));
        fs::write(&config, configuration).unwrap();
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", WITH_OWNER, "proxy"])
            .arg(program)
            .args(["serve", "--config"])
            .arg(&config)
            .envs(environment.iter().copied());
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut pid = String::new();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        out.read_line(&mut pid).unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (errors, kept) = (child.stderr.take().unwrap(), Arc::clone(&log));
        // What it says is kept, and its pipe never fills.
        std::thread::spawn(move || {
            for line in BufReader::new(errors).lines().map_while(Result::ok) {
                let mut log = kept.lock().unwrap();
                log.push_str(&line);
                log.push('\n');
            }
        });
        let mut proxy = Self {
            port: 0,
            http: 0,
            config,
            pid: pid.trim().to_owned(),
            log,
            child,
        };
        until("the proxy serves", || {
            let ended = proxy.child.try_wait().unwrap().is_some();
            assert!(!ended, "the proxy ended: {}", proxy.log());
            proxy.log().contains(": serving ")
        });
        (proxy.port, proxy.http) = (
            port_after(&proxy.log(), "listen=127.0.0.1:"),
            port_after(&proxy.log(), "http=Some(127.0.0.1:"),
        );
        proxy
    }

    /// The application before it.
    pub(crate) fn target(&self) -> Target {
        Target {
            name: "proxied",
            port: self.port,
        }
    }

    /// The number of its process.
    pub(crate) fn pid(&self) -> &str {
        &self.pid
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        printed(Command::new("kill").args(["-s", name, &self.pid]));
    }

    /// Waits until it has ended by itself; its exit code.
    pub(crate) fn wait(&mut self) -> Option<i32> {
        let mut code = None;
        until("the proxy ends", || {
            let status = self.child.try_wait().unwrap();
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        code
    }
}

fn port_after(log: &str, what: &str) -> u16 {
    let (_, rest) = log
        .split_once(what)
        .unwrap_or_else(|| panic!("no {what} in {log}"));
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().unwrap()
}

impl Drop for Proxy {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        self.child.wait().unwrap();
        let log = self.log();
        if std::thread::panicking() {
            // Shown with the failed test.
            eprintln!("{log}");
        } else {
            assert!(!log.contains("panic"), "{log}");
        }
    }
}

/// Status and body of a page.
pub(crate) fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (
        head.split(' ').nth(1).unwrap().parse().unwrap(),
        body.to_owned(),
    )
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

/// Runs a future to its end, with tasks beside it.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Connects as it is told; the connection is driven by a task until the client is dropped.
pub(crate) async fn open_session(
    config: &tokio_postgres::Config,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    #[expect(clippy::disallowed_methods, reason = "it ends with the client")]
    tokio::task::spawn(connection);
    Ok(client)
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
