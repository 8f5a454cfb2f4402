//! One PostgreSQL server for all tests, and a proxy in this process for each test that asks.

use crate::client::{Client, query};
use shardway::{
    config::{load, settings::Listen},
    sandbox::{Cluster, Sandbox, SandboxEnv},
    server,
};
use std::{
    path::Path,
    sync::{Arc, Mutex, OnceLock, mpsc},
    thread,
    time::{Duration, SystemTime},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// The server that all tests share.
pub(crate) fn postgres() -> &'static Cluster {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    let start = || {
        let env = SandboxEnv::of(std::env::var_os, std::env::temp_dir());
        Sandbox::builder(env)
            // Each proxy keeps what idles in its pools.
            .setting("max_connections", "3000")
            .start()
            .unwrap()
    };
    SANDBOX.get_or_init(start).cluster(0)
}

/// What a script is sent to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// PostgreSQL itself.
    Direct,
    /// Session mode.
    Session,
    /// Transaction mode with one backend.
    Transaction,
    /// Transaction mode, each step on another backend than the one before.
    Alternating,
}

/// A proxy before the server; it ends when it is dropped or stopped, as kill -9 would end it: hundreds that go on with
/// their heartbeats and looks at servers would be a load for the tests to come.
pub(crate) struct Proxy {
    pub(crate) port: u16,
    /// Its configuration, read again by RELOAD.
    text: Arc<Mutex<String>>,
    stop: tokio::sync::watch::Sender<bool>,
}

impl Proxy {
    /// A proxy with these lines in its section `pool`.
    pub(crate) fn start(pool: &str) -> Self {
        let port = postgres().port();
        let shards = format!(
            "[databases.postgres]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n"
        );
        Self::with(pool, &shards)
    }

    /// A proxy with these databases.
    pub(crate) fn with(pool: &str, databases: &str) -> Self {
        Self::of("", pool, databases)
    }

    /// A proxy with these settings of its own.
    pub(crate) fn of(server: &str, pool: &str, databases: &str) -> Self {
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nworkers = 2\n{server}\n[pool]\n{pool}\n{databases}\n[users.postgres]\nauth = \"trust\"\nconsole = \"admin\"\n"
        );
        let text = Arc::new(Mutex::new(text));
        let kept = Arc::clone(&text);
        let read = move || load::load_str("test.toml", &kept.lock().unwrap(), Path::new("."));
        let settings = read().unwrap_or_else(|errors| panic!("{}", errors.render()));
        let (told, ready) = mpsc::channel();
        let (stop, mut stopped) = tokio::sync::watch::channel(false);
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let reload: server::Reload =
                Arc::new(move || read().map_err(|errors| errors.to_string()));
            let served = server::run(settings, reload, server::sessions, move |bound| {
                told.send(bound).unwrap();
            });
            runtime.block_on(async {
                tokio::select! {
                    served = served => drop(served),
                    Ok(_) = stopped.wait_for(|stopped| *stopped) => {}
                }
            });
            runtime.shutdown_background();
        });
        let bound = ready.recv().unwrap();
        let Listen::Tcp(address) = bound.listen[0] else {
            panic!("a TCP listener")
        };
        Self {
            port: address.port(),
            text,
            stop,
        }
    }

    /// Reads its configuration again, in which the second now stands for the first.
    pub(crate) fn reload(&self, from: &str, to: &str) {
        {
            let mut text = self.text.lock().unwrap();
            assert!(text.contains(from), "{text}");
            *text = text.replace(from, to);
        }
        let mut console = Client::connect_to(self.port, "shardway", &[]);
        let answer = console.ask(&query("RELOAD"));
        assert!(answer[0].starts_with('C'), "{answer:?}");
    }

    /// Ends it.
    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    /// A client of it.
    pub(crate) fn client(&self) -> Client {
        Client::connect(self.port, &[])
    }

    /// A client of it, with which it ends.
    pub(crate) fn only_client(self) -> Client {
        let mut client = self.client();
        client.behind = Some(self);
        client
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A client and, for alternation, one that keeps the other backend busy at every second step.
pub(crate) struct Stage {
    pub(crate) way: Way,
    pub(crate) port: u16,
    pub(crate) client: Client,
    other: Option<Client>,
    steps: usize,
    proxy: Option<Proxy>,
}

impl Stage {
    pub(crate) fn open(way: Way, settings: &[(&str, &str)]) -> Self {
        let proxy = match way {
            Way::Direct => None,
            Way::Session => Some(Proxy::start("mode = \"session\"")),
            Way::Transaction => Some(Proxy::start("size = 1")),
            Way::Alternating => Some(Proxy::start("size = 2")),
        };
        Self::before(way, proxy, settings)
    }

    /// Before this proxy, or the server itself.
    fn before(way: Way, proxy: Option<Proxy>, settings: &[(&str, &str)]) -> Self {
        let port = proxy
            .as_ref()
            .map_or_else(|| postgres().port(), |proxy| proxy.port);
        let other = (way == Way::Alternating).then(|| Client::connect(port, &[]));
        Self {
            way,
            port,
            client: Client::connect(port, settings),
            other,
            steps: 0,
            proxy,
        }
    }

    /// Ends the session, and not what is behind it.
    pub(crate) fn end(self) -> Option<Proxy> {
        self.proxy
    }

    /// Sends and reads up to that many ReadyForQuery.
    pub(crate) fn step(&mut self, bytes: &[u8], readies: usize) -> Vec<String> {
        self.on_the_other_backend(|client| {
            client.send(bytes);
            client.answers(readies)
        })
    }

    /// Sends, and reads whole frames up to one ReadyForQuery.
    pub(crate) fn raw_step(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.on_the_other_backend(|client| client.bytes(bytes))
    }

    fn on_the_other_backend<T>(&mut self, step: impl FnOnce(&mut Client) -> T) -> T {
        self.steps += 1;
        let other = self.other.as_mut().filter(|_| self.steps.is_multiple_of(2));
        let Some(other) = other else {
            return step(&mut self.client);
        };
        // The backend that was used last is taken away for this step, and is the first to be used in the next.
        other.ask(&query("BEGIN"));
        let answers = step(&mut self.client);
        other.ask(&query("COMMIT"));
        answers
    }

    /// With alternation each step is on another backend: nothing has pinned the session.
    pub(crate) fn assert_moves(&mut self) {
        if self.way == Way::Alternating {
            let mut pid = || self.query("select pg_backend_pid()")[1].clone();
            assert_ne!(pid(), pid(), "the session keeps its backend");
        }
    }

    /// One simple query.
    pub(crate) fn query(&mut self, sql: &str) -> Vec<String> {
        self.step(&query(sql), 1)
    }
}

/// Plays the scene everywhere: its transcript through the proxy must be PostgreSQL's.
pub(crate) fn same(scene: impl Fn(&mut Stage) -> Vec<String>) {
    same_with(&[], scene);
}

pub(crate) fn same_with(settings: &[(&str, &str)], scene: impl Fn(&mut Stage) -> Vec<String>) {
    let expected = scene(&mut Stage::open(Way::Direct, settings));
    for way in [Way::Session, Way::Transaction, Way::Alternating] {
        let found = scene(&mut Stage::open(way, settings));
        for (at, (expected, found)) in expected.iter().zip(&found).enumerate() {
            assert_eq!(
                found, expected,
                "{way:?}, answer {at}: PostgreSQL's is on the right"
            );
        }
        assert_eq!(
            found.len(),
            expected.len(),
            "{way:?}: {found:#?} against {expected:#?}"
        );
    }
}

/// As [`same`], through a proxy with each of these sections `pool`, without alternation.
pub(crate) fn same_in(pools: &[&str], scene: impl Fn(&mut Stage) -> Vec<String>) {
    let expected = scene(&mut Stage::open(Way::Direct, &[]));
    for pool in pools {
        let proxy = Proxy::start(pool);
        let found = scene(&mut Stage::before(Way::Transaction, Some(proxy), &[]));
        assert_eq!(found, expected, "{pool}: PostgreSQL's is on the right");
    }
}

/// Asks again until it is so.
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = SystemTime::now();
    while !is_so() {
        assert!(
            begun.elapsed().unwrap() < PATIENCE,
            "waited in vain: {what}"
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// A client of PostgreSQL itself, to look on.
pub(crate) fn observer() -> Client {
    Client::connect(postgres().port(), &[])
}
