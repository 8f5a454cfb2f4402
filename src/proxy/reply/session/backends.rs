//! The wording of servers that could not be reached or did not let us in, and of replication connections.
//!
//! Nothing here tells a client a secret or an address: the shard is called by its name.

use super::{error, fatal};
use crate::{
    auth::scram::ScramError,
    net::backend::{ConnectError, ProtocolError},
    protocol::backend_startup::BackendStartupError,
    wire::notice::Notice,
};

/// The shard's server cannot be reached, or refuses Shardway's login.
#[must_use]
pub fn connect(shard: &str, problem: &ConnectError) -> Notice {
    use ProtocolError::Startup;
    match problem {
        ConnectError::Refused(said) if said.is_of_class(b"28") => return refused(shard, problem),
        ConnectError::Protocol(Startup(BackendStartupError::Scram(ScramError::OtherVerifier))) => {
            return Notice {
                detail: Some(format!(
                    "Shard \"{shard}\" keeps another SCRAM verifier for this role than the one that the client has proved to know. (SW212)"
                )),
                hint: Some("Copy the role's rolpassword from the home shard: ALTER ROLE … PASSWORD 'SCRAM-SHA-256$…'; or let the client log in with auth = \"passthrough-password\".".to_owned()),
                ..error("08006", "cannot log in to the shard as the client")
            };
        }
        ConnectError::NothingShown
        | ConnectError::Protocol(Startup(BackendStartupError::KeysOnly)) => {
            return Notice {
                detail: Some(format!("Shard \"{shard}\": {problem}. (SW212)")),
                hint: Some("Passthrough by SCRAM needs servers that ask for SCRAM; auth = \"passthrough-password\" opens any.".to_owned()),
                ..error("08006", "cannot log in to the shard as the client")
            };
        }
        ConnectError::Refused(_)
        | ConnectError::Unreachable(_)
        | ConnectError::Timeout
        | ConnectError::TlsRefused
        | ConnectError::Handshake(_)
        | ConnectError::Tls(_)
        | ConnectError::Protocol(_) => {}
    }
    let detail = Some(format!("Shard \"{shard}\": {problem}. (SW204)"));
    let hint = Some("Check that the server runs and that its address and credentials in the configuration are right.".to_owned());
    Notice {
        detail,
        hint,
        ..error("08006", "cannot connect to the shard")
    }
}

/// The server did not take what it was shown.
fn refused(shard: &str, problem: &ConnectError) -> Notice {
    Notice {
        detail: Some(format!("Shard \"{shard}\": {problem}. (SW211)")),
        hint: Some("Check the user's backend_user and backend_password, or the role's password on the server; after a change of either, reload.".to_owned()),
        ..error("08006", "the shard refused the login")
    }
}

/// Passthrough for a client that was asked for nothing.
#[must_use]
pub fn nothing_shown() -> Notice {
    Notice {
        detail: Some(
            "Its backends are opened with what the client shows, and it was not asked for anything. (SW212)".to_owned(),
        ),
        hint: Some("Ask the user for a password, or configure backend_user and backend_password.".to_owned()),
        ..fatal("28000", "passthrough needs a client that shows who it is")
    }
}

/// A replication connection to a database of several shards that names none of them, or to the console.
#[must_use]
pub fn which_shard(database: &str, shards: &[String]) -> Notice {
    let example = shards.first().map_or("", String::as_str);
    Notice {
        detail: Some(format!(
            "A replication connection is to one server, and \"{database}\" has the shards {}. (SW124)",
            shards.join(", ")
        )),
        hint: Some(format!(
            "Name the shard: options='-c shardway.shard={example}', or dbname={database}@{example} where options cannot be given."
        )),
        ..fatal("0A000", "replication connection names no shard")
    }
}

/// More replication connections than `pool.replication_size`.
#[must_use]
pub fn too_many_replicating(shard: &str, limit: usize) -> Notice {
    Notice {
        detail: Some(format!(
            "Replication connections to shard \"{shard}\" that may be open at once: {limit}. (SW207)"
        )),
        hint: Some(
            "Raise pool.replication_size; SHOW SERVERS in the console shows who replicates."
                .to_owned(),
        ),
        ..fatal("53300", "too many replication connections")
    }
}
