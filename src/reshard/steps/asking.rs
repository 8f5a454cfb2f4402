//! What servers say to steps: what another try may mend, and what somebody has to mend first.

use crate::{
    inspect::AskError,
    replication::connection::ReplicationError,
    reshard::{
        job::{Job, StepError},
        lines::Line,
        servers::Server,
    },
};
use deadpool_postgres::Client;
use tokio_postgres::types::{ToSql, Type};

/// A parameter with its type, so that nobody need ask the server for it.
pub(super) type Typed<'a> = (&'a (dyn ToSql + Sync), Type);

/// Says what was being done when it failed.
pub(super) trait About<T> {
    fn about(self, what: &str) -> Result<T, StepError>;
}

impl<T> About<T> for Result<T, AskError> {
    fn about(self, what: &str) -> Result<T, StepError> {
        self.map_err(|error| of(what, error))
    }
}

impl<T> About<T> for Result<T, tokio_postgres::Error> {
    fn about(self, what: &str) -> Result<T, StepError> {
        self.map_err(|error| of(what, error.into()))
    }
}

impl<T> About<T> for Result<T, ReplicationError> {
    fn about(self, what: &str) -> Result<T, StepError> {
        self.map_err(|error| match error {
            ReplicationError::Another { .. } => another(what, &error.to_string()),
            ReplicationError::FailedOver { .. } => failed_over(what, &error.to_string()),
            ReplicationError::Connect(_)
            | ReplicationError::Server { .. }
            | ReplicationError::Lost(_)
            | ReplicationError::Closed
            | ReplicationError::Timeout
            | ReplicationError::Protocol => {
                let said = error.sqlstate().map(str::to_owned);
                sorted(what, said.as_deref(), error.to_string())
            }
        })
    }
}

fn of(what: &str, error: AskError) -> StepError {
    match error {
        AskError::Server { sqlstate, message } => {
            sorted(what, Some(&sqlstate), format!("{message} ({sqlstate})"))
        }
        AskError::Another { .. } => another(what, &error.to_string()),
        AskError::FailedOver { .. } => failed_over(what, &error.to_string()),
        AskError::Timeout
        | AskError::Tls(_)
        | AskError::Connection(_)
        | AskError::Unreadable(_)
        | AskError::Apart => sorted(what, None, error.to_string()),
    }
}

fn another(what: &str, problem: &str) -> StepError {
    StepError::Halt {
        what: format!("{what}: {problem}"),
        remedy: "let the shard's address lead to the server that it was, then resume".to_owned(),
    }
}

fn failed_over(what: &str, problem: &str) -> StepError {
    StepError::FailedOver {
        what: format!("{what}: {problem}"),
    }
}

const DISK_FULL: &str = "53100";
const NO_SLOT: &str = "53400";

/// What mends what a server has said.
pub(super) fn remedy(sqlstate: Option<&str>) -> &'static str {
    match sqlstate {
        Some(DISK_FULL) => "give the server free space on its disk, then resume; or abort",
        Some(NO_SLOT) => {
            "raise max_replication_slots there with ALTER SYSTEM and restart the server, or drop a slot that nobody reads; then resume"
        }
        Some(_) | None => "mend what the server says, then resume; or abort",
    }
}

/// Names that are not there, rights that are missing, values and constraints that do not fit stay as they are.
fn sorted(what: &str, sqlstate: Option<&str>, problem: String) -> StepError {
    const LASTING: [&str; 9] = ["0A", "22", "23", "2B", "3D", "3F", "42", DISK_FULL, NO_SLOT];
    let lasts = sqlstate.is_some_and(|it| LASTING.iter().any(|class| it.starts_with(class)));
    if lasts {
        return StepError::Halt {
            what: format!("{what}: {problem}"),
            remedy: remedy(sqlstate).to_owned(),
        };
    }
    StepError::Again {
        what: what.to_owned(),
        problem,
    }
}

/// A connection of its own to a shard.
pub(super) async fn connection(server: &Server) -> Result<Client, StepError> {
    let what = format!("connecting to shard {}", server.name);
    server.sql().await.about(&what)
}

/// One that is kept from step to step.
pub(super) async fn line<'a>(job: &'a Job, server: &Server) -> Result<Line<'a>, StepError> {
    let what = format!("connecting to shard {}", server.name);
    job.lines.take(server).await.about(&what)
}

/// A connection of its own to the shard with the catalog.
pub(super) async fn home(job: &Job) -> Result<Client, StepError> {
    connection(named(job, &job.home)?).await
}

/// A shard by its name.
pub(super) fn named<'a>(job: &'a Job, shard: &str) -> Result<&'a Server, StepError> {
    job.servers.get(shard).ok_or_else(|| StepError::Halt {
        what: format!("the configuration has no shard {shard}"),
        remedy: format!("give the database its shard {shard} again"),
    })
}

/// Whether a statement failed because a lock was not to be had in time.
pub(super) fn is_lock_timeout(error: &tokio_postgres::Error) -> bool {
    error.code().is_some_and(|code| code.code() == "55P03")
}
