//! The wording of what a session itself refuses or notices; where PostgreSQL has words for it, PostgreSQL's.

pub mod backends;
pub mod changes;
pub mod cursors;
pub mod listening;
pub mod numbers;
pub mod rows;
pub mod several;

use crate::{
    pool::{lease::CheckoutError, state::Claim},
    proxy::holding::Why,
    registry::holds::Reshard,
    sql::change::Harm,
    wire::notice::{Notice, Words},
};
use backends::connect;

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

/// Keys that move, of which nobody can say now whose they are.
#[must_use]
pub fn keys_in_doubt(reshard: Option<&str>) -> Notice {
    let why = match reshard {
        Some(reshard) => format!(
            "Reshard \"{reshard}\" was about to move them, and the home shard cannot be asked what has become of that. (SW401)"
        ),
        None => "They move, and this proxy has not heard from the home shard for so long that they may be elsewhere. (SW401)".to_owned(),
    };
    Notice {
        detail: Some(why),
        hint: Some("Repeat it when the home shard can be reached.".to_owned()),
        ..error("57P03", "it is not known on which shard these keys are")
    }
}

/// A schema change of tables of which a reshard moves rows.
#[must_use]
pub(in crate::proxy) fn tables_move(
    command: &str,
    group: &str,
    reshard: Option<&Reshard>,
    why: &Why,
) -> Notice {
    let which = which_moves(reshard);
    let why = match why {
        Why::Harm(Harm::Holds) => {
            "all rows would have to hold to it, and one shard may not have yet what the other one has".to_owned()
        }
        Why::Harm(Harm::Index) => {
            "what it computes of values may fail for some that are still on their way".to_owned()
        }
        Why::Harm(Harm::Value) => {
            "rows are on two shards, and the new column might have another value on each".to_owned()
        }
        Why::Harm(Harm::Type) => {
            "a column is added to both sides only of a type that PostgreSQL has itself".to_owned()
        }
        Why::Harm(Harm::Else) => "this change is not made on both sides".to_owned(),
        Why::Joins(shard) => format!(
            "shard \"{shard}\", which joins with it, has them too and does not serve yet"
        ),
        Why::Early => {
            "columns are added while it is ready for a cutover, or at reverse, and not in between".to_owned()
        }
        Why::Key => "rows are moved by the shard key, which none may lack".to_owned(),
        Why::Kept => "rows are found by the constraint that it drops".to_owned(),
        Why::Unknown => "the home shard cannot be asked how far it is".to_owned(),
    };
    // Once the new owners serve it cannot be given up any more.
    let end = match reshard {
        Some(Reshard { state, .. }) if state == "reverse" || state == "finish" => "finish",
        Some(_) | None => "abort",
    };
    Notice {
        detail: Some(format!(
            "{which} rows of tables of group \"{group}\": {why}. (SW403)"
        )),
        hint: Some(format!(
            "Wait until it is finished (shardway reshard status), or end it by shardway reshard {end}."
        )),
        ..error(
            "55006",
            format!("{command} is not possible while rows of these tables move"),
        )
    }
}

fn which_moves(reshard: Option<&Reshard>) -> String {
    match reshard {
        Some(Reshard { name, state, .. }) => {
            format!("Reshard \"{name}\", which is at {state}, moves")
        }
        None => "A reshard moves".to_owned(),
    }
}

/// A write of keys that its shard has given away: this proxy did not know of it yet.
#[must_use]
pub fn write_refused(said: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "The shard has given them away, of which this proxy had not heard: {said}. (SW404)"
        )),
        hint: Some("Repeat the transaction.".to_owned()),
        ..error("40001", "could not write keys that have moved")
    }
}

/// A transaction that touches keys whose owner has changed since it began.
#[must_use]
pub fn keys_moved(group: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "Keys of group \"{group}\" that the transaction touches were given to another shard since it began. (SW402)"
        )),
        hint: Some("Repeat the transaction.".to_owned()),
        ..error("40001", "could not go on with keys that have moved")
    }
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
        CheckoutError::Timeout(waited, Claim::Begins) => Notice {
            detail: Some(format!("Every connection of this user to shard \"{shard}\" was in use for {} s. (SW201)", waited.as_secs_f32())),
            hint: Some("Raise pool.size, or end transactions sooner; SHOW POOLS in the console shows who waits.".to_owned()),
            ..error("53300", "no server connection became free in time")
        },
        CheckoutError::Timeout(waited, Claim::GoesOn) => Notice {
            detail: Some(format!("Every connection of this user to shard \"{shard}\" was in use for {} s, those for transactions that go on from another shard too. (SW201)", waited.as_secs_f32())),
            hint: Some("Raise pool.reserve_size, or end transactions sooner; SHOW POOLS in the console shows who waits.".to_owned()),
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

/// A portal that has given all it has.
#[must_use]
pub fn portal_is_done(portal: &[u8]) -> Notice {
    error(
        "55000",
        format!("portal \"{}\" cannot be run", name(portal)),
    )
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
