//! What the console and HTTP answer: data and typed errors. Serving them on a connection is `proxy`'s, wording errors too.
//!
//! What must stay true: a command runs only when the role may ([`command::VERBS`]); no secret leaves by any reply.

pub mod averages;
pub mod command;
pub mod http;
pub mod show;

use crate::{
    clock::{Instant, SystemTime},
    config::settings::{ConsoleRole, Settings},
    metrics::{Metrics, sessions::Wanted},
    plan::cache::Stats,
    wire::types::Oid,
};
use arc_swap::ArcSwap;
use command::{Command, ParseError, Shutdown};
use std::{fmt, sync::Arc};

/// The name of the database that is the console.
pub const DATABASE: &str = "shardway";

/// What the console can have done, and asks about, by whoever owns the process.
pub trait Control: Send + Sync {
    /// Reads the configuration again; the fault as the configuration words it.
    ///
    /// # Errors
    /// The old settings stay.
    fn reload(&self) -> Result<(), String>;
    /// Begins to end the process.
    fn shutdown(&self, how: Shutdown);
    /// Whether new work is served.
    fn readiness(&self) -> Readiness;
    /// How each database's cache of plans does, by name.
    fn plan_caches(&self) -> Vec<(String, Stats)>;
}

/// Whether new work is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    /// Ending: connections are served until their transactions end.
    Draining,
    /// Databases and shards without a reachable primary.
    NoPrimary(Vec<(String, String)>),
}

/// What a command answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// None for commands that return no rows.
    pub columns: Vec<Column>,
    /// As many values per row as columns; `None` is NULL.
    pub rows: Vec<Vec<Option<String>>>,
    /// CommandComplete's; empty for an empty query.
    pub tag: String,
}

/// A column's name and type (text or int8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: &'static str,
    pub oid: Oid,
}

/// Why a command was not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConsoleError {
    Parse(ParseError),
    /// The role may not.
    Forbidden {
        needs: &'static str,
    },
    NoSuchSession(u32),
    Reload(String),
}

/// When a command runs.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub monotonic: Instant,
    pub wall: SystemTime,
}

/// The console: one per process.
pub struct Console {
    pub metrics: Arc<Metrics>,
    pub settings: Arc<ArcSwap<Settings>>,
    pub averages: averages::Averages,
    pub control: Arc<dyn Control>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").finish_non_exhaustive()
    }
}

impl Console {
    /// Reads and runs one statement.
    ///
    /// # Errors
    /// [`ConsoleError`]; nothing was done.
    pub fn execute(&self, sql: &str, role: ConsoleRole, now: Now) -> Result<Reply, ConsoleError> {
        self.run(command::parse(sql).map_err(ConsoleError::Parse)?, role, now)
    }

    /// Runs one command.
    ///
    /// # Errors
    /// [`ConsoleError`]; nothing was done.
    pub fn run(
        &self,
        command: Command,
        role: ConsoleRole,
        now: Now,
    ) -> Result<Reply, ConsoleError> {
        if !command::may(role, command::needs(command)) {
            return Err(ConsoleError::Forbidden { needs: "admin" });
        }
        match command {
            Command::Empty => Ok(Reply::done("")),
            Command::Set => Ok(Reply::done("SET")),
            Command::Show(what) => Ok(show::reply(self, what, now)),
            Command::Reload => {
                self.control.reload().map_err(ConsoleError::Reload)?;
                Ok(Reply::done("RELOAD"))
            }
            Command::Shutdown(how) => {
                self.control.shutdown(how);
                Ok(Reply::done("SHUTDOWN"))
            }
            Command::Kill(pid) => {
                let session = self
                    .metrics
                    .sessions
                    .get(pid)
                    .ok_or(ConsoleError::NoSuchSession(pid))?;
                session.ask(Wanted::EndNow);
                Ok(Reply::done("KILL"))
            }
        }
    }
}

impl Reply {
    fn done(tag: &str) -> Self {
        Self {
            columns: Vec::new(),
            rows: Vec::new(),
            tag: tag.to_owned(),
        }
    }
}

impl ConsoleError {
    /// The SQLSTATE that says whose fault it is.
    #[must_use]
    pub fn sqlstate(&self) -> &'static str {
        match self {
            Self::Parse(ParseError::NotBuilt(_)) => "0A000",
            Self::Parse(_) => "42601",
            Self::Forbidden { .. } => "42501",
            Self::NoSuchSession(_) => "42704",
            Self::Reload(_) => "F0000",
        }
    }
}
