//! What went wrong in a copy, in the terms of a step: what another try may mend, and what somebody has to.

use crate::{
    inspect::AskError,
    replication::{connection::ReplicationError, copy::CopyError},
    reshard::job::StepError,
};

/// Rights and names that are missing, values and rows that do not fit: another try ends alike.
const LASTING: [&str; 8] = ["0A", "22", "23", "28", "2B", "3D", "3F", "42"];

/// Something a server said, or did not.
pub(super) fn sql(what: String, error: tokio_postgres::Error) -> StepError {
    match AskError::from(error) {
        AskError::Server { sqlstate, message } => of(what, Some(&sqlstate), message),
        other @ (AskError::Timeout
        | AskError::Tls(_)
        | AskError::Connection(_)
        | AskError::Unreadable(_)
        | AskError::Apart) => of(what, None, other.to_string()),
    }
}

/// No connection.
pub(super) fn unreachable(server: &str, error: &AskError) -> StepError {
    of(
        format!("connecting to shard {server}"),
        None,
        error.to_string(),
    )
}

/// Something on a session.
pub(super) fn session(what: String, error: &ReplicationError) -> StepError {
    of(what, error.sqlstate(), error.to_string())
}

/// Something in the middle of a copy.
pub(super) fn copy(what: String, error: &CopyError) -> StepError {
    let sqlstate = match error {
        CopyError::Source(error) | CopyError::Destination(error) => error.sqlstate(),
        CopyError::Count { .. } => None,
    };
    of(what, sqlstate, error.to_string())
}

fn of(what: String, sqlstate: Option<&str>, problem: String) -> StepError {
    let lasts = sqlstate.is_some_and(|code| LASTING.iter().any(|class| code.starts_with(class)));
    if lasts {
        return StepError::Halt {
            what: format!("{what}: {problem}"),
            remedy: "mend what the server says and resume, or abort".to_owned(),
        };
    }
    StepError::Again { what, problem }
}
