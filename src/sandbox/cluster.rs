//! One server of a sandbox: made from the template, started under its shepherd, stopped, killed, started again.
//! Its port stays the same for its life. SQL helpers speak through the socket in its private directory, as the
//! superuser `postgres`.

use super::{
    Auth, Identity, SandboxError, account::Account, binaries::Binaries, copy, io_error, remains,
};
use crate::clock::{Clock, Duration};
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::{self, DirBuilder, File, OpenOptions},
    future::Future,
    io::Write as _,
    net::{Ipv4Addr, TcpListener},
    os::unix::{
        fs::{DirBuilderExt, OpenOptionsExt},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    pin::pin,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
};
use tokio_postgres::{Client, Config, NoTls, SimpleQueryMessage};

/// The rows of a result as text, `None` for NULL.
pub type Rows = Vec<Vec<Option<String>>>;

const SHEPHERD: &str = include_str!("shepherd.sh");
/// How long a server may take until it accepts connections; recovery after a kill included.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How often another port is tried when somebody else took the one that was free a moment ago.
const PORT_ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(5);

/// What the servers of one sandbox have in common.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) root: PathBuf,
    pub(super) binaries: Binaries,
    pub(super) account: Account,
    pub(super) configuration: BTreeMap<String, String>,
    pub(super) auth: Auth,
    pub(super) identity: Option<Identity>,
}

/// One server.
#[derive(Debug)]
pub struct Cluster {
    plan: Arc<Plan>,
    home: PathBuf,
    port: u16,
    shepherd: Mutex<Option<Child>>,
}

impl Cluster {
    /// Makes the server's directory and starts it.
    pub(super) fn create(
        plan: Arc<Plan>,
        number: usize,
        template: &Path,
    ) -> Result<Self, SandboxError> {
        let home = plan.root.join(number.to_string());
        for dir in [&home, &home.join("socket")] {
            DirBuilder::new()
                .mode(0o700)
                .create(dir)
                .map_err(io_error("create", dir))?;
            plan.account.give(dir)?;
        }
        copy(template, &home.join("data"))?;
        let mut cluster = Self {
            plan,
            home,
            port: 0,
            shepherd: Mutex::new(None),
        };
        cluster.write_access()?;
        for attempt in 1.. {
            cluster.port = free_port()?;
            cluster.write_configuration()?;
            match cluster.start() {
                Err(SandboxError::Start { log, .. })
                    if attempt < PORT_ATTEMPTS
                        && log.contains("could not create any TCP/IP sockets") => {}
                end => return end.map(|()| cluster),
            }
        }
        unreachable!("the last attempt returns")
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The directory of the socket `.s.PGSQL.<port>`, where nobody is asked for a password.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        self.home.join("socket")
    }

    /// The server's data directory.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.home.join("data")
    }

    /// Where a program of this server's version is, if it came with it.
    #[must_use]
    pub fn program(&self, name: &str) -> Option<PathBuf> {
        let path = self.plan.binaries.program(name);
        path.is_file().then_some(path)
    }

    /// What the server has logged.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read(self.log_path())
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// Starts a server that was stopped or killed; nothing when it runs. Blocks until it accepts connections.
    ///
    /// # Errors
    /// [`SandboxError::Start`] with the server's log when it ends or does not get ready.
    pub fn start(&self) -> Result<(), SandboxError> {
        let mut shepherd = self.shepherd.lock().unwrap_or_else(PoisonError::into_inner);
        if shepherd
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
        {
            return Ok(());
        }
        // A killed server leaves its file, and the new one needs it to see whether the old one's children still run.
        let killed = remains::postmaster(&self.data_dir());
        File::create(self.log_path()).map_err(io_error("create", &self.log_path()))?;
        let deadline = Clock.now() + READY_WITHIN;
        let mut child = self.spawn()?;
        while !self.is_ready(killed) {
            let ended = !matches!(child.try_wait(), Ok(None));
            // A killed server's children hold its shared memory and port until they have noticed.
            let crowded = ended && self.log().contains("is still in use");
            if Clock.now() >= deadline || (ended && !crowded) {
                end(child);
                return Err(SandboxError::Start {
                    home: self.home.clone(),
                    log: self.log(),
                });
            }
            if crowded {
                File::create(self.log_path()).map_err(io_error("create", &self.log_path()))?;
                child = self.spawn()?;
            }
            thread::sleep(PAUSE);
        }
        *shepherd = Some(child);
        Ok(())
    }

    /// Stops the server as an operator would (fast shutdown) and keeps its data. Blocks until it is gone.
    pub fn stop(&self) {
        self.signal_and_wait("INT");
    }

    /// Kills the server as `kill -9` would and keeps its data. Blocks until the postmaster is gone.
    pub fn kill(&self) {
        self.signal_and_wait("KILL");
    }

    /// How tokio-postgres connects as the superuser.
    #[must_use]
    pub fn config(&self, database: &str) -> Config {
        let mut config = Config::new();
        config
            .host_path(self.socket_dir())
            .port(self.port)
            .user("postgres")
            .dbname(database);
        config
    }

    /// Runs statements in one batch, as the superuser.
    ///
    /// # Errors
    /// What the server said.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<(), SandboxError> {
        self.with_client(database, async |client| client.batch_execute(sql).await)
            .await
    }

    /// The rows of the statements, as the superuser.
    ///
    /// # Errors
    /// What the server said.
    pub async fn query(&self, database: &str, sql: &str) -> Result<Rows, SandboxError> {
        let messages = self
            .with_client(database, async |client| client.simple_query(sql).await)
            .await?;
        let rows = messages.iter().filter_map(|message| {
            let SimpleQueryMessage::Row(row) = message else {
                return None;
            };
            Some(
                (0..row.len())
                    .map(|column| row.get(column).map(str::to_owned))
                    .collect(),
            )
        });
        Ok(rows.collect())
    }

    async fn with_client<T>(
        &self,
        database: &str,
        act: impl AsyncFnOnce(&Client) -> Result<T, tokio_postgres::Error>,
    ) -> Result<T, SandboxError> {
        let (client, connection) = self.config(database).connect(NoTls).await?;
        let (mut connection, mut act) = (pin!(connection), pin!(act(&client)));
        // The connection is driven beside the act, not in a task of its own: nothing outlives the call.
        let driven = std::future::poll_fn(|context| {
            let _ = connection.as_mut().poll(context).is_ready();
            act.as_mut().poll(context)
        });
        Ok(driven.await?)
    }

    fn spawn(&self) -> Result<Child, SandboxError> {
        let log = OpenOptions::new()
            .append(true)
            .open(self.log_path())
            .map_err(io_error("open", &self.log_path()))?;
        let errors = log
            .try_clone()
            .map_err(io_error("open", &self.log_path()))?;
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", SHEPHERD, "shepherd"])
            .arg(&self.plan.root)
            .arg(&self.home);
        command
            .arg(self.plan.binaries.program("postgres"))
            .arg("-D")
            .arg(self.data_dir());
        command
            .env_clear()
            .env("LC_ALL", "C.UTF-8")
            .env("PATH", "/usr/bin:/bin")
            .current_dir(&self.home);
        command.stdin(Stdio::piped()).stdout(log).stderr(errors);
        // Its own process group: Ctrl-C on the terminal is for the owner, which then ends the server in order.
        command.process_group(0);
        self.plan.account.apply(&mut command);
        command
            .spawn()
            .map_err(io_error("run", Path::new("/bin/sh")))
    }

    /// Whether another server than the killed one has written that it accepts connections
    /// (`LOCK_FILE_LINE_PM_STATUS` of `pidfile.h`).
    fn is_ready(&self, killed: Option<u32>) -> bool {
        let pid = remains::postmaster(&self.data_dir());
        let written =
            fs::read_to_string(self.data_dir().join("postmaster.pid")).is_ok_and(|text| {
                text.lines()
                    .nth(7)
                    .is_some_and(|status| status.trim() == "ready")
            });
        written && pid.is_some() && pid != killed
    }

    fn signal_and_wait(&self, name: &str) {
        let mut shepherd = self.shepherd.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(pid) = remains::postmaster(&self.data_dir()) else {
            return;
        };
        let Some(mut child) = shepherd.take() else {
            return;
        };
        remains::signal(pid, name);
        // The pipe stays open until the server is gone: its end would have the data removed.
        let pipe = child.stdin.take();
        drop(child.wait());
        drop(pipe);
    }

    fn log_path(&self) -> PathBuf {
        self.home.join("log")
    }

    fn write_access(&self) -> Result<(), SandboxError> {
        let method = match self.plan.auth {
            Auth::Trust => "trust",
            Auth::Scram => "scram-sha-256",
            Auth::Md5 => "md5",
            Auth::Password => "password",
        };
        let rules = format!(
            "local all all trust\nlocal replication all trust\n\
             host all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}\n"
        );
        self.write("pg_hba.conf", rules.as_bytes())?;
        if let Some(identity) = &self.plan.identity {
            self.write("server.crt", &identity.cert_pem)?;
            self.write("server.key", &identity.key_pem)?;
        }
        Ok(())
    }

    fn write_configuration(&self) -> Result<(), SandboxError> {
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            let quoted = value.replace('\'', "''");
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{name} = '{quoted}'");
        };
        for (name, value) in &self.plan.configuration {
            line(name, value);
        }
        line("port", &self.port.to_string());
        line(
            "unix_socket_directories",
            &self.socket_dir().to_string_lossy(),
        );
        if self.plan.identity.is_some() {
            line("ssl", "on");
        }
        if self.plan.auth == Auth::Md5 {
            line("password_encryption", "md5");
        }
        self.write("postgresql.conf", text.as_bytes())
    }

    /// Writes a file of the data directory as the server wants it: its own, readable by nobody else.
    fn write(&self, name: &str, content: &[u8]) -> Result<(), SandboxError> {
        let path = self.data_dir().join(name);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(content))
            .map_err(io_error("write", &path))?;
        self.plan.account.give(&path)
    }
}

#[cfg(test)]
impl Cluster {
    /// Starts the stopped server again with nobody to look after it, as when its shepherd was killed too.
    pub(super) fn start_unattended(&self) -> Child {
        let mut command = self.plan.binaries.command("postgres", self.plan.account);
        command
            .arg("-D")
            .arg(self.data_dir())
            .current_dir(&self.home)
            .stderr(Stdio::null())
            .process_group(0);
        let child = command.spawn().unwrap();
        while !self.is_ready(None) {
            thread::sleep(PAUSE);
        }
        child
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(child) = self
            .shepherd
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
        {
            end(child);
        }
    }
}

/// Ends the pipe, which tells the shepherd to stop the server and remove its directory, and waits for that.
fn end(mut child: Child) {
    drop(child.stdin.take());
    drop(child.wait());
}

/// A port that nobody has at this moment. Somebody may take it before the server does.
fn free_port() -> Result<u16, SandboxError> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(io_error("find a free port on", Path::new("127.0.0.1")))
}
