//! Throw-away PostgreSQL servers for `demo`, tests and benches.
//!
//! What must stay true: a server listens on loopback and in its own directory only, never runs as root, and lives
//! no longer than the process that asked for it, however that process ends (`shepherd.sh`). What a killed machine
//! or a killed shepherd left behind is removed by the next start. The environment is not read here: the caller
//! says where to look and where to put things ([`SandboxEnv`]).

mod account;
mod binaries;
mod cluster;
mod remains;
pub mod shop;

pub use cluster::{Cluster, Rows};

use crate::clock::Clock;
use account::Account;
use binaries::Binaries;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    thread,
};

/// What the environment says: read by the caller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxEnv {
    /// Directory of the server's programs (`SHARDWAY_PG_BIN`); `None`: `/usr/lib/postgresql/*/bin`, then `path`.
    pub pg_bin: Option<PathBuf>,
    /// The directories of the search path for programs (`PATH`).
    pub path: Vec<PathBuf>,
    /// Where the sandbox's directory is made (`TMPDIR`).
    pub tmp: PathBuf,
    /// Where an empty initialised data directory per server version is kept for later runs; `None`: nowhere.
    pub template_cache: Option<PathBuf>,
}

impl SandboxEnv {
    /// As these variables say; `tmp`: where to put things. Nothing is kept for later runs.
    #[must_use]
    pub fn of(variable: impl Fn(&'static str) -> Option<OsString>, tmp: PathBuf) -> Self {
        Self {
            pg_bin: variable("SHARDWAY_PG_BIN").map(PathBuf::from),
            path: variable("PATH")
                .iter()
                .flat_map(std::env::split_paths)
                .collect(),
            tmp,
            template_cache: None,
        }
    }
}

/// What clients must prove on TCP. On the socket inside the sandbox's private directory nobody is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Auth {
    #[default]
    Trust,
    Scram,
    Md5,
    Password,
}

/// Whether what is committed survives the machine's crash (a crash of the server alone loses nothing either way).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// `fsync`, `synchronous_commit` and `full_page_writes` off: quick.
    #[default]
    Fast,
    /// PostgreSQL's defaults.
    Safe,
}

/// Certificate and key of the servers, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    pub cert_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
}

/// Why a sandbox could not be made, or a statement not be run in it.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("no PostgreSQL server programs in {}; install Debian's package postgresql or set SHARDWAY_PG_BIN", Listed(.looked))]
    NoServer { looked: Vec<PathBuf> },
    #[error(
        "PostgreSQL refuses to run as root, and there is neither a user postgres nor a user nobody"
    )]
    NoAccount,
    #[error("{program} failed: {output}")]
    Program { program: String, output: String },
    #[error("cannot {act} {}: {source}", path.display())]
    Io {
        act: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("the server in {} did not start: {log}", home.display())]
    Start { home: PathBuf, log: String },
    #[error("the sandbox's SQL failed: {0}")]
    Sql(#[from] tokio_postgres::Error),
}

struct Listed<'a>(&'a [PathBuf]);

impl std::fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, path) in self.0.iter().enumerate() {
            write!(f, "{}{}", if at == 0 { "" } else { ", " }, path.display())?;
        }
        Ok(())
    }
}

/// Running servers. Dropping it stops them and removes their directories.
#[derive(Debug)]
pub struct Sandbox {
    clusters: Vec<Cluster>,
    // Dropped after the clusters: removes what is left.
    root: Root,
}

impl Sandbox {
    /// A sandbox of one server with settings for tests.
    #[must_use]
    pub fn builder(env: SandboxEnv) -> Builder {
        Builder {
            env,
            clusters: 1,
            auth: Auth::default(),
            durability: Durability::default(),
            identity: None,
            settings: BTreeMap::new(),
            programs: BTreeMap::new(),
        }
    }

    /// The servers.
    #[must_use]
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// The server with this number, from 0.
    ///
    /// # Panics
    /// When there are fewer.
    #[must_use]
    pub fn cluster(&self, number: usize) -> &Cluster {
        &self.clusters[number]
    }

    /// The directory that holds everything, and that is removed at the end.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root.path
    }
}

/// What a sandbox is to be.
#[derive(Clone, Debug)]
pub struct Builder {
    env: SandboxEnv,
    clusters: usize,
    auth: Auth,
    durability: Durability,
    identity: Option<Identity>,
    settings: BTreeMap<String, String>,
    /// Directories of other programs, by the server's number.
    programs: BTreeMap<usize, PathBuf>,
}

impl Builder {
    /// How many servers.
    #[must_use]
    pub fn clusters(mut self, count: usize) -> Self {
        self.clusters = count;
        self
    }

    /// Lets one server, from 0, run with programs of its own: of another version.
    #[must_use]
    pub fn cluster_with(mut self, number: usize, programs: PathBuf) -> Self {
        self.programs.insert(number, programs);
        self
    }

    /// What clients must prove on TCP.
    #[must_use]
    pub fn auth(mut self, auth: Auth) -> Self {
        self.auth = auth;
        self
    }

    /// Whether commits survive the machine's crash.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Lets the servers offer TLS with this certificate.
    #[must_use]
    pub fn tls(mut self, identity: Identity) -> Self {
        self.identity = Some(identity);
        self
    }

    /// A setting of `postgresql.conf`, over the defaults of the sandbox.
    #[must_use]
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Starts the servers, all at once, and waits until each accepts connections. Blocks the thread.
    ///
    /// # Errors
    /// See [`SandboxError`].
    pub fn start(self) -> Result<Sandbox, SandboxError> {
        let account = Account::of_servers()?;
        let kinds = self.kinds()?;
        remains::sweep(&self.env.tmp, account, Clock);
        let root = Root::create(&self.env.tmp, account)?;
        let mut templates: BTreeMap<&Path, PathBuf> = BTreeMap::new();
        let mut plans = Vec::new();
        for binaries in &kinds {
            let template = match templates.get(binaries.dir()) {
                Some(made) => made.clone(),
                None => self.template(&root, binaries, account)?,
            };
            templates.insert(binaries.dir(), template.clone());
            let plan = cluster::Plan {
                root: root.path.clone(),
                binaries: binaries.clone(),
                account,
                configuration: self.configuration(),
                auth: self.auth,
                identity: self.identity.clone(),
            };
            plans.push((Arc::new(plan), template));
        }
        let clusters: Result<Vec<Cluster>, SandboxError> = thread::scope(|scope| {
            let starts: Vec<_> = (0..self.clusters)
                .zip(plans)
                .map(|(number, (plan, template))| {
                    scope.spawn(move || Cluster::create(plan, number, &template))
                })
                .collect();
            let joined = starts.into_iter().map(thread::ScopedJoinHandle::join);
            joined
                .map(|end| end.unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        if self.env.template_cache.is_none() {
            for template in templates.values() {
                remove(template)?;
            }
        }
        Ok(Sandbox {
            clusters: clusters?,
            root,
        })
    }

    /// The programs of each server.
    fn kinds(&self) -> Result<Vec<Binaries>, SandboxError> {
        let of = |number| match self.programs.get(&number) {
            None => Binaries::find(&self.env),
            Some(own) => Binaries::find(&SandboxEnv {
                pg_bin: Some(own.clone()),
                ..self.env.clone()
            }),
        };
        (0..self.clusters).map(of).collect()
    }

    /// An initialised data directory that nobody runs: made now, or found from an earlier run.
    fn template(
        &self,
        root: &Root,
        binaries: &Binaries,
        account: Account,
    ) -> Result<PathBuf, SandboxError> {
        let fresh = root.path.join(format!("template-{}", binaries.version()?));
        let kept = match &self.env.template_cache {
            Some(cache) => Some(cache.join(format!("{}-{}", binaries.version()?, account.uid()?))),
            None => None,
        };
        if let Some(kept) = kept.as_ref().filter(|kept| kept.is_dir()) {
            return Ok(kept.clone());
        }
        let mut initdb = binaries.command("initdb", account);
        initdb
            .current_dir(&root.path)
            .arg("--pgdata")
            .arg(&fresh)
            .args([
                "--username=postgres",
                "--auth=trust",
                "--encoding=UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ]);
        run(&mut initdb)?;
        let (Some(kept), Some(cache)) = (kept, &self.env.template_cache) else {
            return Ok(fresh);
        };
        fs::create_dir_all(cache).map_err(io_error("create", cache))?;
        // Another run may do the same: the copy gets its name in one step, and whoever comes second uses the first's.
        let partial = cache.join(format!("partial-{}", root.name()));
        copy(&fresh, &partial)?;
        if fs::rename(&partial, &kept).is_err() {
            remove(&partial)?;
        }
        remove(&fresh)?;
        Ok(kept)
    }

    fn configuration(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<String, String> = [
            ("listen_addresses", "127.0.0.1"),
            ("wal_level", "logical"),
            ("max_prepared_transactions", "100"),
            ("max_connections", "200"),
            ("shared_buffers", "32MB"),
            ("timezone", "UTC"),
            ("log_timezone", "UTC"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        if self.durability == Durability::Fast {
            for name in ["fsync", "synchronous_commit", "full_page_writes"] {
                all.insert(name.to_owned(), "off".to_owned());
            }
        }
        all.extend(self.settings.clone());
        all
    }
}

/// The sandbox's directory and the lock that says that its owner lives.
#[derive(Debug)]
struct Root {
    path: PathBuf,
    lock_path: PathBuf,
    lock: File,
}

impl Root {
    fn create(tmp: &Path, account: Account) -> Result<Self, SandboxError> {
        fs::create_dir_all(tmp).map_err(io_error("create", tmp))?;
        let tmp = tmp.canonicalize().map_err(io_error("find", tmp))?;
        for attempt in 0.. {
            let path = tmp.join(format!(
                "{}{}-{attempt}",
                remains::PREFIX,
                std::process::id()
            ));
            let lock_path = path.with_added_extension("lock");
            // The lock comes first: a directory without a held lock is what an earlier run left behind.
            let lock = match File::create_new(&lock_path) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                lock => lock.map_err(io_error("create", &lock_path))?,
            };
            lock.lock().map_err(io_error("lock", &lock_path))?;
            let root = Self {
                path,
                lock_path,
                lock,
            };
            DirBuilder::new()
                .mode(0o700)
                .create(&root.path)
                .map_err(io_error("create", &root.path))?;
            account.give(&root.path)?;
            account.give(&root.lock_path)?;
            return Ok(root);
        }
        unreachable!("the attempts are not exhausted")
    }

    fn name(&self) -> String {
        self.path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default()
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        // The shepherds have removed most of it, or all: nothing to report when nothing is left.
        drop(fs::remove_dir_all(&self.path));
        drop(fs::remove_file(&self.lock_path));
        drop(self.lock.unlock());
    }
}

fn io_error<'a>(act: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> SandboxError + 'a {
    move |source| SandboxError::Io {
        act,
        path: path.to_owned(),
        source,
    }
}

fn remove(dir: &Path) -> Result<(), SandboxError> {
    fs::remove_dir_all(dir).map_err(io_error("remove", dir))
}

fn copy(from: &Path, to: &Path) -> Result<(), SandboxError> {
    let mut cp = Command::new("cp");
    cp.args(["-a", "--reflink=auto"]).arg(from).arg(to);
    run(&mut cp)
}

/// Runs a program to its end; its output is the error when it fails.
fn run(command: &mut Command) -> Result<(), SandboxError> {
    output(command).map(drop)
}

/// Runs a program to its end; what it printed.
fn output(command: &mut Command) -> Result<String, SandboxError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .map_err(io_error("run", Path::new(&program)))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(SandboxError::Program {
        program,
        output: String::from_utf8_lossy(&said).trim().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn env(name: &str) -> SandboxEnv {
        let tmp = std::env::temp_dir().join(format!("shardway-unit-{name}-{}", std::process::id()));
        SandboxEnv {
            pg_bin: None,
            path: Vec::new(),
            tmp,
            template_cache: None,
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(future)
    }

    #[test]
    fn servers_start_together_and_leave_nothing_behind() {
        let env = env("start");
        let sandbox = Sandbox::builder(env.clone())
            .clusters(2)
            .setting("work_mem", "5MB")
            .start()
            .unwrap();
        let ports: BTreeSet<u16> = sandbox.clusters().iter().map(Cluster::port).collect();
        assert_eq!(ports.len(), 2);
        for cluster in sandbox.clusters() {
            let shown = "SELECT current_setting('work_mem'), current_setting('wal_level'), NULL";
            let rows = block_on(cluster.query("postgres", shown)).unwrap();
            assert_eq!(
                rows,
                [[Some("5MB".to_owned()), Some("logical".to_owned()), None]]
            );
        }
        drop(sandbox);
        assert_eq!(fs::read_dir(&env.tmp).unwrap().count(), 0);
        fs::remove_dir(&env.tmp).unwrap();
    }

    #[test]
    fn a_killed_or_stopped_server_starts_again_with_its_rows() {
        let env = env("kill");
        let sandbox = Sandbox::builder(env.clone())
            .durability(Durability::Safe)
            .start()
            .unwrap();
        let server = sandbox.cluster(0);
        let port = server.port();
        block_on(server.execute(
            "postgres",
            "CREATE TABLE kept (id int); INSERT INTO kept VALUES (1)",
        ))
        .unwrap();
        for end in [Cluster::kill, Cluster::stop] {
            end(server);
            assert!(block_on(server.query("postgres", "SELECT 1")).is_err());
            server.start().unwrap();
            assert_eq!(server.port(), port);
            let rows = block_on(server.query("postgres", "SELECT id FROM kept")).unwrap();
            assert_eq!(rows, [[Some("1".to_owned())]]);
        }
        drop(sandbox);
        fs::remove_dir(&env.tmp).unwrap();
    }

    #[test]
    fn what_a_dead_owner_left_running_is_removed_by_the_next_start() {
        let env = env("sweep");
        let sandbox = Sandbox::builder(env.clone()).start().unwrap();
        let left = sandbox.root().join("mark");
        fs::write(&left, "").unwrap();
        sandbox.cluster(0).stop();
        let mut server = sandbox.cluster(0).start_unattended();
        sandbox.root.lock.unlock().unwrap();
        let next = Sandbox::builder(env.clone()).start().unwrap();
        assert!(!left.exists());
        server.wait().unwrap();
        drop((next, sandbox));
        fs::remove_dir(&env.tmp).unwrap();
    }
}
