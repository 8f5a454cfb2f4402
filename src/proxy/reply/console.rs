//! The wording of what the console does not do.

use crate::{
    admin::{
        ConsoleError,
        command::{ParseError, VERBS},
    },
    wire::notice::Notice,
};

/// A command that was not done.
#[must_use]
pub fn refused(problem: &ConsoleError) -> Notice {
    let (message, hint) = match problem {
        ConsoleError::Parse(ParseError::Unknown(text)) => (
            format!("unknown command \"{text}\""),
            Some(format!(
                "Commands: {}, and SHOW; SHOW HELP lists everything.",
                list(|words| !words.starts_with("SHOW "))
            )),
        ),
        ConsoleError::Parse(ParseError::UnknownShow(subject)) => (
            format!("cannot show \"{subject}\""),
            Some(format!(
                "There is: {}.",
                list(|words| words.starts_with("SHOW "))
            )),
        ),
        ConsoleError::Parse(ParseError::NotBuilt(command)) => (
            format!("{command} is not built yet: nothing was done"),
            Some(
                "SHUTDOWN lets transactions end and closes this process; RELOAD moves sessions to \
                 changed settings between their transactions."
                    .to_owned(),
            ),
        ),
        ConsoleError::Parse(ParseError::NoNumber) => (
            "KILL needs the number of a session".to_owned(),
            Some("Take it from column id of SHOW CLIENTS.".to_owned()),
        ),
        ConsoleError::Forbidden { needs } => (
            "permission denied".to_owned(),
            Some(format!(
                "The user needs console = \"{needs}\" in the configuration."
            )),
        ),
        ConsoleError::NoSuchSession(pid) => (format!("there is no session {pid}"), None),
        ConsoleError::Reload(fault) => {
            (format!("the configuration was not reloaded: {fault}"), None)
        }
    };
    Notice {
        severity: "ERROR",
        sqlstate: problem.sqlstate(),
        message,
        detail: None,
        hint,
    }
}

/// A statement name that Parse has not given.
#[must_use]
pub fn no_such_statement(name: &str) -> Notice {
    error(
        "26000",
        format!("prepared statement \"{name}\" does not exist"),
    )
}

/// A portal that Bind has not made.
#[must_use]
pub fn no_such_portal(name: &str) -> Notice {
    error("34000", format!("portal \"{name}\" does not exist"))
}

/// Commands of the console take no parameters.
#[must_use]
pub fn no_parameters() -> Notice {
    error(
        "08P01",
        "commands of the console take no parameters".to_owned(),
    )
}

/// A message that the console does not serve: COPY, or a function call.
#[must_use]
pub fn not_served() -> Notice {
    error("0A000", "the console serves queries only".to_owned())
}

/// More prepared statements or portals than the console keeps.
#[must_use]
pub fn too_many_names() -> Notice {
    error(
        "54000",
        "too many prepared statements on the console".to_owned(),
    )
}

fn error(sqlstate: &'static str, message: String) -> Notice {
    Notice {
        severity: "ERROR",
        sqlstate,
        message,
        detail: None,
        hint: None,
    }
}

fn list(keep: impl Fn(&str) -> bool) -> String {
    VERBS
        .iter()
        .filter(|verb| verb.help != "for drivers")
        .map(|verb| verb.words)
        .filter(|words| keep(words))
        .collect::<Vec<_>>()
        .join(", ")
}
