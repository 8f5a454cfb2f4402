//! The wording of what a session itself refuses or notices; where PostgreSQL has words for it, PostgreSQL's.

use crate::{
    net::backend::ConnectError,
    pool::lease::CheckoutError,
    wire::notice::{Notice, Words},
};

fn error(sqlstate: &'static str, message: impl Into<String>) -> Notice {
    Notice {
        severity: "ERROR",
        sqlstate,
        message: message.into(),
        detail: None,
        hint: None,
    }
}

fn fatal(sqlstate: &'static str, message: impl Into<String>) -> Notice {
    Notice {
        severity: "FATAL",
        sqlstate,
        message: message.into(),
        detail: None,
        hint: None,
    }
}

fn name(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

/// A frame that PostgreSQL would end the connection for.
#[must_use]
pub fn broken_frame(problem: &dyn std::fmt::Display) -> Notice {
    fatal("08P01", problem.to_string())
}

/// A message that came while the backend reads the data of a COPY.
#[must_use]
pub fn unexpected_in_copy(tag: u8) -> Notice {
    error(
        "08P01",
        format!("unexpected message type 0x{tag:02X} during COPY from stdin"),
    )
}

/// The end of a session whose next message nobody can make sense of.
#[must_use]
pub fn out_of_step() -> Notice {
    fatal(
        "08P01",
        "terminating connection because protocol synchronization was lost",
    )
}

/// A message whose body is not what its tag says.
#[must_use]
pub fn malformed() -> Notice {
    error("08P01", "invalid message format")
}

/// A name that Parse has given already.
#[must_use]
pub fn statement_exists(statement: &[u8]) -> Notice {
    error(
        "42P05",
        format!("prepared statement \"{}\" already exists", name(statement)),
    )
}

/// A statement whose parameters or columns are not any more what the client was told.
#[must_use]
pub fn result_type_changed() -> Words {
    // Drivers prepare such a statement anew, and know it by the routine.
    let fields = "SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0RRevalidateCachedQuery\0\0";
    Words::Servers(fields.as_bytes().to_vec())
}

/// A name that Parse has not given.
#[must_use]
pub fn no_such_statement(statement: &[u8]) -> Notice {
    if statement.is_empty() {
        return error("26000", "unnamed prepared statement does not exist");
    }
    error(
        "26000",
        format!("prepared statement \"{}\" does not exist", name(statement)),
    )
}

/// A portal that Bind has not made.
#[must_use]
pub fn no_such_portal(portal: &[u8]) -> Notice {
    error(
        "34000",
        format!("portal \"{}\" does not exist", name(portal)),
    )
}

/// A statement in a transaction that has failed.
#[must_use]
pub fn transaction_failed() -> Notice {
    error(
        "25P02",
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// A savepoint that the transaction does not have.
#[must_use]
pub fn no_such_savepoint(savepoint: &str) -> Notice {
    error("3B001", format!("savepoint \"{savepoint}\" does not exist"))
}

/// A command that needs a transaction block.
#[must_use]
pub fn needs_transaction(command: &str) -> Notice {
    error(
        "25P01",
        format!("{command} can only be used in transaction blocks"),
    )
}

/// COMMIT or ROLLBACK outside a transaction.
#[must_use]
pub fn no_transaction() -> Notice {
    Notice {
        severity: "WARNING",
        sqlstate: "25P01",
        message: "there is no transaction in progress".to_owned(),
        detail: None,
        hint: None,
    }
}

/// SET TRANSACTION outside a transaction.
#[must_use]
pub fn only_in_transaction(command: &str) -> Notice {
    Notice {
        severity: "WARNING",
        sqlstate: "25P01",
        message: format!("{command} can only be used in transaction blocks"),
        detail: None,
        hint: None,
    }
}

/// BEGIN inside a transaction.
#[must_use]
pub fn already_in_transaction() -> Notice {
    Notice {
        severity: "WARNING",
        sqlstate: "25001",
        message: "there is already a transaction in progress".to_owned(),
        detail: None,
        hint: None,
    }
}

/// A cancel that arrived while the client waited for a backend.
#[must_use]
pub fn cancelled() -> Notice {
    error("57014", "canceling statement due to user request")
}

/// The session is being ended by an operator.
#[must_use]
pub fn shutting_down() -> Notice {
    fatal(
        "57P01",
        "terminating connection due to administrator command",
    )
}

/// A backend whose bytes make no sense.
#[must_use]
pub fn backend_broken(problem: &dyn std::fmt::Display) -> Notice {
    Notice {
        detail: Some(format!("{problem} (SW202)")),
        ..fatal(
            "08P01",
            "the server connection lost its protocol synchronisation",
        )
    }
}

/// A backend that closed its connection without a word.
#[must_use]
pub fn backend_lost(shard: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "Shard \"{shard}\" closed the connection. Whether the last statement took effect is unknown. (SW203)"
        )),
        hint: Some("Connect again and check before repeating a write.".to_owned()),
        ..fatal("08006", "the connection to the shard was lost")
    }
}

/// A statement that needs a second shard in a transaction.
#[must_use]
pub fn second_shard(first: &str, second: &str) -> Notice {
    Notice {
        detail: Some(format!("The transaction is on shard \"{first}\"; this statement belongs to shard \"{second}\". (SW301)")),
        hint: Some("Commit before using rows of another shard, or let one transaction use keys of one shard only.".to_owned()),
        ..error("0A000", "transactions over several shards are not supported yet")
    }
}

/// Statements of one Query message that need different shards.
#[must_use]
pub fn several_shards_in_query(first: &str, second: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "One statement belongs to shard \"{first}\", another to shard \"{second}\"; a Query message is one transaction. (SW302)"
        )),
        hint: Some("Send the statements one by one.".to_owned()),
        ..error(
            "0A000",
            "transactions over several shards are not supported yet",
        )
    }
}

/// A setting in front of other statements of one Query message, which are planned before it takes effect.
#[must_use]
pub fn meaning_changes_within() -> Notice {
    Notice {
        detail: Some(
            "The statements behind it were planned with the settings before it. (SW303)".to_owned(),
        ),
        hint: Some("Send SET, RESET, DISCARD and ROLLBACK in messages of their own.".to_owned()),
        ..error(
            "0A000",
            "a setting that changes within one message is not supported over several shards",
        )
    }
}

/// A value of `shardway.shard` that names no shard, or a setting that does not exist.
#[must_use]
pub fn bad_setting(setting: &str, detail: String) -> Notice {
    Notice {
        detail: Some(format!("{detail} (SW122)")),
        ..error(
            "22023",
            format!("invalid value for parameter \"{setting}\""),
        )
    }
}

/// No backend could be leased.
#[must_use]
pub fn checkout(shard: &str, problem: &CheckoutError) -> Notice {
    match problem {
        CheckoutError::Timeout(waited) => Notice {
            detail: Some(format!("Every connection of this user to shard \"{shard}\" was in use for {} s. (SW201)", waited.as_secs_f32())),
            hint: Some("Raise pool.size, or end transactions sooner; SHOW POOLS in the console shows who waits.".to_owned()),
            ..error("53300", "no server connection became free in time")
        },
        CheckoutError::Connect(problem) => connect(shard, problem),
        CheckoutError::Closed => Notice {
            detail: Some("The pool was closed while the client waited. (SW206)".to_owned()),
            hint: Some("Repeat the statement.".to_owned()),
            ..error("57P01", "no server connection: its pool was closed")
        },
    }
}

fn connect(shard: &str, problem: &ConnectError) -> Notice {
    let detail = Some(format!("Shard \"{shard}\": {problem}. (SW204)"));
    let hint = Some("Check that the server runs and that its address and credentials in the configuration are right.".to_owned());
    Notice {
        detail,
        hint,
        ..error("08006", "cannot connect to the shard")
    }
}

/// The servers' tables do not fit the configuration: routing by key would give wrong answers.
#[must_use]
pub fn unfit(finding: &str) -> Notice {
    Notice {
        detail: Some(format!("{finding} (SW123)")),
        hint: Some("shardway check --connect lists everything that does not fit.".to_owned()),
        ..error(
            "0A000",
            "statements on this database cannot be routed by key",
        )
    }
}

/// Replication connections are not passed on.
#[must_use]
pub fn no_replication() -> Notice {
    Notice {
        detail: Some(
            "A startup packet with replication is for one server only. (SW124)".to_owned(),
        ),
        hint: Some("Connect to the shard's own server.".to_owned()),
        ..fatal("0A000", "replication connections are not supported")
    }
}

/// A database that is not configured.
#[must_use]
pub fn no_such_database(database: &str) -> Notice {
    fatal("3D000", format!("database \"{database}\" does not exist"))
}

/// A startup setting that is not UTF-8.
#[must_use]
pub fn not_text() -> Notice {
    fatal("22021", "startup settings must be valid UTF-8")
}

/// More connections than `server.max_clients`.
#[must_use]
pub fn too_many_clients() -> Notice {
    Notice {
        detail: Some("server.max_clients connections are open. (SW205)".to_owned()),
        hint: Some(
            "Raise server.max_clients, or let applications keep fewer connections.".to_owned(),
        ),
        ..fatal("53300", "sorry, too many clients already")
    }
}
