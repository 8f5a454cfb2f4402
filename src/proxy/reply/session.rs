//! The wording of what a session itself refuses or notices; where PostgreSQL has words for it, PostgreSQL's.

use crate::{
    auth::scram::ScramError,
    catalog::shard::ShardId,
    clock::Duration,
    net::backend::{ConnectError, ProtocolError},
    pool::{
        lease::CheckoutError,
        listener::{ListenError, mailbox::Overflown},
        state::Claim,
    },
    protocol::backend_startup::BackendStartupError,
    proxy::several::Stays,
    registry::{Late, NotReady, holds::Reshard},
    split::copy::Fault,
    txn::deadlock::{Blocker, Wait},
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

/// Data of a COPY that cannot be cut into rows, in PostgreSQL's words.
#[must_use]
pub fn copy_fault(fault: Fault, table: &str, key: &str, line: u64) -> Notice {
    let (sqlstate, message) = match fault {
        Fault::LineEnds => (
            "22P04",
            "literal newline or carriage return found in data".to_owned(),
        ),
        Fault::EndMarker => ("22P04", "end-of-copy marker corrupt".to_owned()),
        Fault::Short => ("22P04", format!("missing data for column \"{key}\"")),
        Fault::OpenQuote => ("22P04", "unterminated CSV quoted field".to_owned()),
        Fault::Binary => (
            "22P04",
            "COPY data in binary format is malformed".to_owned(),
        ),
        Fault::AfterEnd => ("22P04", "received copy data after EOF marker".to_owned()),
        Fault::TooLong => ("54000", "a row of the COPY is too long".to_owned()),
    };
    Notice {
        detail: Some(format!("COPY {table}, line {line}: {fault}.")),
        ..error(sqlstate, message)
    }
}

/// Why a row of a COPY has no shard.
#[must_use]
pub fn copy_row(why: Notice, table: &str, line: u64) -> Notice {
    let place = format!("COPY {table}, line {line}.");
    let detail = why
        .detail
        .map_or_else(|| place.clone(), |detail| format!("{detail} {place}"));
    Notice {
        detail: Some(detail),
        ..why
    }
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

/// A cursor or portal that is not there.
#[must_use]
pub fn no_such_cursor(cursor: &[u8]) -> Notice {
    error(
        "34000",
        format!("cursor \"{}\" does not exist", name(cursor)),
    )
}

/// A name that a cursor or portal has already.
#[must_use]
pub fn cursor_exists(cursor: &[u8]) -> Notice {
    error(
        "42P03",
        format!("cursor \"{}\" already exists", name(cursor)),
    )
}

/// A cursor that was declared NO SCROLL and is to go back.
#[must_use]
pub fn only_forward() -> Notice {
    Notice {
        hint: Some("Declare it with SCROLL option to enable backward scan.".to_owned()),
        ..error("55000", "cursor can only scan forward")
    }
}

/// A cursor over several shards that is to go back.
#[must_use]
pub fn cursor_goes_back() -> Notice {
    Notice {
        detail: Some("Rows that the shards have given are not kept. (SW128)".to_owned()),
        hint: Some("Fetch forward only, with NEXT, a count, FORWARD or ALL; or restrict the query to one shard by the shard key.".to_owned()),
        ..error("0A000", "going back in a cursor over several shards is not supported")
    }
}

/// A cursor over several shards that is to outlive its transaction.
#[must_use]
pub fn cursor_with_hold() -> Notice {
    Notice {
        detail: Some("Its rows come from several shards, each of which would have to keep its part. (SW128)".to_owned()),
        hint: Some("Read it within the transaction, without WITH HOLD; or restrict the query to one shard by the shard key.".to_owned()),
        ..error("0A000", "a cursor WITH HOLD over several shards is not supported")
    }
}

/// FETCH, MOVE or CLOSE of a cursor over several shards among other statements.
#[must_use]
pub fn cursor_among_others() -> Notice {
    Notice {
        detail: Some("Its rows come from several shards. (SW128)".to_owned()),
        hint: Some("Send FETCH, MOVE and CLOSE in messages of their own.".to_owned()),
        ..error(
            "0A000",
            "a command about a cursor over several shards together with other statements is not supported",
        )
    }
}

/// A cursor whose next rows have come already, in other formats than are asked for or by other settings.
#[must_use]
pub fn cursor_in_other_formats() -> Notice {
    Notice {
        detail: Some("Rows that the shards have given already are in the formats that were asked for before, and written by the settings of that time. (SW128)".to_owned()),
        hint: Some("Ask for all parts of a cursor in the same formats, without a change of DateStyle, TimeZone and their like in between.".to_owned()),
        ..error("0A000", "another format within a cursor over several shards is not supported")
    }
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

/// A schema change, or TRUNCATE, of tables of which a reshard moves rows.
#[must_use]
pub fn tables_move(command: &str, group: &str, reshard: Option<&Reshard>) -> Notice {
    let which = match reshard {
        Some(Reshard { name, state }) => format!("Reshard \"{name}\", which is at {state}, moves"),
        None => "A reshard moves".to_owned(),
    };
    let instead = if command == "TRUNCATE" {
        "Write DELETE FROM instead; or wait"
    } else {
        "Wait"
    };
    // Once the new owners serve it cannot be given up any more.
    let end = match reshard {
        Some(Reshard { state, .. }) if state == "reverse" || state == "finish" => "finish",
        Some(_) | None => "abort",
    };
    Notice {
        detail: Some(format!(
            "{which} rows of tables of group \"{group}\": what it has copied would not be changed. (SW403)"
        )),
        hint: Some(format!(
            "{instead} until it is finished (shardway reshard status), or end it by shardway reshard {end}."
        )),
        ..error(
            "55006",
            format!("{command} is not possible while rows of these tables move"),
        )
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

/// A statement that needs a second shard in a transaction that stays on its first.
#[must_use]
pub(in crate::proxy) fn second_shard(first: &str, second: &str, why: Stays) -> Notice {
    let (why, hint) = match why {
        Stays::Implicit => (
            "no BEGIN came before its statements in a message of its own",
            "Begin it with BEGIN, sent by itself, and statements may belong to any shard.",
        ),
        Stays::Isolation => (
            "it promises one snapshot, and shards have each their own",
            "Use READ COMMITTED, or keys of one shard; or SET shardway.read_consistency = 'per_shard' before BEGIN (pg_dump: PGOPTIONS='-c shardway.read_consistency=per_shard'), for one snapshot on each shard.",
        ),
        Stays::Kept => (
            "the session keeps its server connection",
            "SHOW PINS in the console says why; with pool.mode = \"transaction\" and without what pins, statements may belong to any shard.",
        ),
        Stays::Code => (
            "a function has run in it that may have changed settings on its shard only",
            "Call it in a transaction of its own.",
        ),
        Stays::Named => (
            "both ask for the transaction's time, number or snapshot, which every shard has of its own",
            "Ask once and pass the value as a parameter, or use clock_timestamp().",
        ),
        Stays::Role => (
            "it runs as another role than the one that logged in",
            "RESET ROLE before BEGIN, or log in as the role.",
        ),
    };
    Notice {
        detail: Some(format!(
            "The transaction is on shard \"{first}\" and this statement belongs to shard \"{second}\", but {why}. (SW301)"
        )),
        hint: Some(hint.to_owned()),
        ..error("0A000", "the transaction cannot go on to another shard")
    }
}

/// Commands that concern a transaction over several shards together with other statements.
#[must_use]
pub fn commands_together() -> Notice {
    Notice {
        detail: Some(
            "The transaction is on several shards, each of which must be told. (SW304)".to_owned(),
        ),
        hint: Some(
            "Send COMMIT, ROLLBACK, SAVEPOINT, SET and their like in messages of their own."
                .to_owned(),
        ),
        ..error(
            "0A000",
            "a transaction command together with other statements is not supported over several shards",
        )
    }
}

/// A portal of a transaction command that was bound when the transaction was not on the shards that it is on now.
#[must_use]
pub fn bound_before() -> Notice {
    Notice {
        detail: Some(
            "The transaction has reached a shard since the command was bound. (SW304)".to_owned(),
        ),
        hint: Some("Bind it behind the statements that it concerns.".to_owned()),
        ..error(
            "0A000",
            "a transaction command that was bound before is not supported over several shards",
        )
    }
}

/// PREPARE TRANSACTION of the client's in a transaction over several shards.
#[must_use]
pub fn prepared_over_several() -> Notice {
    Notice {
        detail: Some(
            "The transaction is on several shards, and Shardway itself prepares it there. (SW306)"
                .to_owned(),
        ),
        hint: Some("Use COMMIT: it commits on every shard or on none.".to_owned()),
        ..error(
            "0A000",
            "PREPARE TRANSACTION is not supported over several shards",
        )
    }
}

/// A transaction over several shards that wrote as another role.
#[must_use]
pub fn role_over_several() -> Notice {
    Notice {
        detail: Some("Prepared transactions belong to the role that logged in. (SW306)".to_owned()),
        hint: Some(
            "Log in as the role, or let one transaction use keys of one shard only.".to_owned(),
        ),
        ..error(
            "0A000",
            "a transaction over several shards cannot run as another role",
        )
    }
}

/// A transaction that cannot be prepared on two of its shards.
#[must_use]
pub fn cannot_prepare(first: &str, second: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "PostgreSQL does not prepare a transaction that has used LISTEN, NOTIFY, temporary tables or WITH HOLD cursors. One shard may have done so, not both \"{first}\" and \"{second}\". (SW306)"
        )),
        hint: Some("Use them on one shard of a transaction only.".to_owned()),
        ..error(
            "0A000",
            "the transaction cannot be prepared, and was rolled back",
        )
    }
}

/// A statement that was ended because its transaction and others wait for each other, on different shards.
#[must_use]
pub fn deadlock<'a>(ring: &[Wait], name: impl Fn(ShardId) -> &'a str) -> Notice {
    let told = ring.iter().enumerate().map(|(at, wait)| {
        let shard = name(wait.shard);
        let pid = wait.pid;
        let next = &ring[(at + 1) % ring.len()];
        let blocker = match &wait.blocker {
            Blocker::Running { pid, .. } => format!("process {pid}"),
            Blocker::Prepared { name } => format!("prepared transaction {name}"),
        };
        let same = next.shard == wait.shard
            && matches!(wait.blocker, Blocker::Running { pid, .. } if pid == next.pid);
        if same {
            format!("On shard \"{shard}\" process {pid} waits for {blocker}.")
        } else {
            format!(
                "On shard \"{shard}\" process {pid} waits for {blocker}, whose transaction is process {} on shard \"{}\".",
                next.pid,
                name(next.shard)
            )
        }
    });
    let told: Vec<String> = told.collect();
    Notice {
        detail: Some(format!("{} (SW311)", told.join("\n"))),
        hint: Some("Repeat the transaction.".to_owned()),
        ..error("40P01", "deadlock detected")
    }
}

/// A transaction that wrote on several shards, where two-phase commit is not ready.
#[must_use]
pub fn two_phase_not_ready(why: &NotReady) -> Notice {
    let hint = match why {
        NotReady::NoControl => {
            "Give the database a control role in the configuration, or let one transaction write on one shard only."
        }
        NotReady::NoSchema { .. } => "shardway check --connect tells what the control role needs.",
        NotReady::NoPrepared { .. } => {
            "Set max_prepared_transactions on every shard's server to at least its max_connections, and restart it."
        }
        NotReady::Unreachable { .. } => {
            "Check that the control role can log in there: shardway check --connect tries it."
        }
    };
    Notice {
        detail: Some(format!("It wrote on several shards, but {why}. (SW305)")),
        hint: Some(hint.to_owned()),
        ..error(
            "55000",
            "two-phase commit is not ready; the transaction was rolled back",
        )
    }
}

/// A shard that was lost before a transaction over several was decided.
#[must_use]
pub fn shard_lost(shard: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "Shard \"{shard}\" closed the connection before the transaction was decided. (SW307)"
        )),
        hint: Some("Repeat the transaction.".to_owned()),
        ..error(
            "08006",
            "the connection to a shard was lost; the transaction was rolled back",
        )
    }
}

/// The decider was lost at its COMMIT, which did not happen.
#[must_use]
pub fn undecided(transaction: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "The shard that decides was lost at its COMMIT, which did not take effect: {transaction}. (SW308)"
        )),
        hint: Some("Repeat the transaction.".to_owned()),
        ..error("40001", "the transaction was rolled back on every shard")
    }
}

/// Nobody knows yet whether it is committed.
#[must_use]
pub fn in_doubt(transaction: &str) -> Notice {
    Notice {
        detail: Some(format!("The shard that decides was lost at its COMMIT and cannot be asked: {transaction}. Every shard will do the same when it is back. (SW309)")),
        hint: Some("Check before repeating it; SHOW TRANSACTIONS in the console lists what is not finished.".to_owned()),
        ..error("08007", "whether the transaction is committed is not known yet")
    }
}

/// Committed, but not yet to be seen everywhere.
#[must_use]
pub fn committed_not_finished(transaction: &str, shards: &[&str]) -> Notice {
    Notice {
        detail: Some(format!(
            "On {} it will be seen when it is finished there: {transaction}. (SW310)",
            shards.join(", ")
        )),
        hint: Some(
            "Do not repeat it; SHOW TRANSACTIONS in the console lists what is not finished."
                .to_owned(),
        ),
        ..error(
            "08007",
            "the transaction is committed, but not finished on every shard",
        )
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

/// RESET ALL in front of other statements of one Query message, for a client that started with a setting that SET cannot
/// say.
#[must_use]
pub fn reset_within() -> Notice {
    Notice {
        detail: Some(
            "The statements behind it would not see what the connection was started with. (SW303)"
                .to_owned(),
        ),
        hint: Some("Send RESET ALL in a message of its own.".to_owned()),
        ..error(
            "0A000",
            "RESET ALL is not supported here in front of other statements of one message",
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

/// More rows than one statement may hold.
#[must_use]
pub fn too_many_rows(limit: usize) -> Notice {
    Notice {
        detail: Some(format!(
            "The statement is computed over the rows of several shards, of which at most {} MB are held. (SW126)",
            limit >> 20
        )),
        hint: Some(
            "Restrict the rows in WHERE, or the statement to one shard by the shard key."
                .to_owned(),
        ),
        ..error(
            "53200",
            "the rows of the shards are more than a statement may hold",
        )
    }
}

/// An EXECUTE of what is not followed.
#[must_use]
pub fn execute_of_command() -> Notice {
    Notice {
        detail: Some("What it does to the session would not be followed. (SW129)".to_owned()),
        hint: Some("Send the command itself, or Bind and Execute it.".to_owned()),
        ..error(
            "0A000",
            "EXECUTE of a command that is no query is not supported",
        )
    }
}

/// A table's columns are not those that the statement was made for.
#[must_use]
pub fn columns_changed() -> Notice {
    Notice {
        detail: Some("A shard's table has other columns than were known. (SW127)".to_owned()),
        hint: Some("Repeat the statement when the servers have been looked at again, within half a minute.".to_owned()),
        ..error("0A000", "the table has changed")
    }
}

/// Values in binary that hold numbers of types, which are others on each shard.
#[must_use]
pub fn numbers_in_binary() -> Notice {
    Notice {
        detail: Some("A value of a composite type holds the numbers of its columns' types, which differ from shard to shard. (SW151)".to_owned()),
        ..error("0A000", "this result in binary format is not supported over several shards")
    }
}

/// A COPY over several shards that leaves a column to a time which rows cannot be sent.
#[must_use]
pub fn default_not_sent(column: &str) -> Notice {
    Notice {
        detail: Some("Its default asks for the transaction's time, and has no value that all rows can be sent alike. (SW101)".to_owned()),
        hint: Some("List the column, and give it a value in each row.".to_owned()),
        ..error("0A000", format!("COPY that leaves column \"{column}\" to its default is not supported over several shards"))
    }
}

/// Copies of a reference table that a write would make differ.
#[must_use]
pub fn copies_differ(table: &str) -> Notice {
    Notice {
        detail: Some("The shards would have written different rows, so that none was written. (SW141)".to_owned()),
        hint: Some("Give values for columns whose default is a time, a number of a sequence or random, and let the statement choose rows by their contents; shardway check --connect tells whether the copies are the same.".to_owned()),
        ..error("0A000", format!("the copies of reference table \"{table}\" would differ"))
    }
}

/// What keeps the rows of a table from moving to another shard.
#[must_use]
pub fn rows_stay(table: &str, kind: &str, name: &str) -> Notice {
    let why = match kind {
        "trigger" => format!("Trigger \"{name}\" would see a deletion and an insertion instead of an update."),
        "reference" => format!("Foreign key \"{name}\" references the rows, and would see them go."),
        "rule" => format!("Rule \"{name}\" rewrites the statement."),
        "policy" => "Row security applies to the table, and has other rules for a deletion and an insertion.".to_owned(),
        _ => "It is no plain table, or has partitions or children.".to_owned(),
    };
    Notice {
        detail: Some(format!("{why} (SW125)")),
        hint: Some("Delete the rows, and insert them with their new shard key.".to_owned()),
        ..error(
            "0A000",
            format!("rows of table \"{table}\" cannot be moved to another shard"),
        )
    }
}

/// A row is not what it was when it was found.
#[must_use]
pub fn row_changed() -> Notice {
    Notice {
        detail: Some("Its new shard key was another one a moment later. (SW108)".to_owned()),
        hint: Some("Repeat the transaction.".to_owned()),
        ..error(
            "40001",
            "could not serialize access due to concurrent update",
        )
    }
}

/// What cannot stand behind a write to several shards in one pipeline.
#[must_use]
pub fn behind_a_write() -> Notice {
    Notice {
        detail: Some("A write to several shards is committed by the Sync behind it, and only reads and writes of rows may stand between them. (SW142)".to_owned()),
        hint: Some("Send Sync behind the write.".to_owned()),
        ..error("0A000", "this cannot stand behind a write to several shards in one pipeline")
    }
}

/// What runs by itself, within a transaction.
#[must_use]
pub fn cannot_be_in_block(command: &str) -> Notice {
    let command = match command {
        "VACUUM or ANALYZE" => "VACUUM",
        "CREATE INDEX" => "CREATE INDEX CONCURRENTLY",
        "DROP" => "DROP INDEX CONCURRENTLY",
        "REINDEX" => "REINDEX CONCURRENTLY",
        other => other,
    };
    error(
        "25001",
        format!("{command} cannot run inside a transaction block"),
    )
}

/// How far a command has come that runs on one shard after the other.
#[must_use]
pub fn done_in_part(command: &str, done: &[&str], rest: &[&str]) -> Notice {
    Notice {
        severity: "WARNING",
        sqlstate: "01000",
        message: format!(
            "{command} is done on {}, and not on {}",
            done.join(", "),
            rest.join(", ")
        ),
        detail: Some("It runs on one shard after the other, and one of them failed. (SW132)".to_owned()),
        hint: Some("Remove the cause and repeat it on each of the others: /* shardway: shard=NAME */ before the command. An index that was begun CONCURRENTLY stays there, invalid: drop it first.".to_owned()),
    }
}

/// Locks in a transaction that has found the tables of one shard only, where others have more.
#[must_use]
pub(in crate::proxy) fn left_out(shard: &str, tables: &[String]) -> Notice {
    Notice {
        detail: Some(format!(
            "Its catalogs are those of shard \"{shard}\", which lack: {}. (SW341)",
            tables.join(", ")
        )),
        hint: Some(
            "Dump each shard by itself: SET shardway.shard, or PGOPTIONS='-c shardway.shard=<shard>'; or keep all tables that are not sharded on one shard.".to_owned(),
        ),
        ..error("0A000", "a dump of all shards would lack tables")
    }
}

/// A new table whose place only its CREATE TABLE says, which cannot be kept.
#[must_use]
pub fn place_not_kept(table: &str, why: &NotReady) -> Notice {
    Notice {
        detail: Some(format!("Only a comment or a foreign key says where its rows live, which cannot be kept: {why}. (SW131)")),
        hint: Some("List the table in the configuration, in a group's tables or in the database's, reload, and repeat the command.".to_owned()),
        ..error("0A000", format!("the configuration does not say where new table \"{table}\" lives"))
    }
}

/// A table that would have the name of one that lives elsewhere.
#[must_use]
pub fn table_elsewhere(table: &str) -> Notice {
    Notice {
        detail: Some("Under that name there is a table that lives elsewhere, where others would go on to put rows until they know better. (SW131)".to_owned()),
        hint: Some("Drop or rename that table first, in a transaction of its own.".to_owned()),
        ..error("0A000", format!("relation \"{table}\" lives elsewhere"))
    }
}

/// No schema of the search path is there.
#[must_use]
pub fn no_schema() -> Notice {
    error("3F000", "no schema has been selected to create in")
}

/// A portal that has given all it has.
#[must_use]
pub fn portal_is_done(portal: &[u8]) -> Notice {
    error(
        "55000",
        format!("portal \"{}\" cannot be run", name(portal)),
    )
}

/// A shard's answer that is no row of text.
#[must_use]
pub fn rows_not_text() -> Notice {
    Notice {
        detail: Some("A row of a shard is not encoded as UTF-8. (SW127)".to_owned()),
        hint: Some("Restrict the statement to one shard by the shard key.".to_owned()),
        ..error("0A000", "rows of several shards cannot be put together")
    }
}

/// A shard that is needed for the whole answer cannot be asked.
#[must_use]
pub fn shard_missing(shard: &str) -> Notice {
    Notice {
        detail: Some(format!("Shard \"{shard}\" cannot be asked now. (SW204)")),
        hint: Some("Check that its server runs.".to_owned()),
        ..error("08006", "the rows of a shard are missing")
    }
}

/// A backend that closed its connection while several worked on a statement.
#[must_use]
pub fn shard_lost_at_work(shard: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "Shard \"{shard}\" closed the connection before it had answered. (SW208)"
        )),
        hint: Some("Check that its server runs, and repeat the statement.".to_owned()),
        ..error("08006", "a shard was lost while it worked on the statement")
    }
}

/// A portal over several shards that was left before its end.
#[must_use]
pub fn portal_left() -> Notice {
    Notice {
        detail: Some("Its rows come from several shards at once; another statement, or the end of the batch, has ended that. (SW128)".to_owned()),
        hint: Some("Read all of its rows, or Execute it again before the next Sync and before another statement.".to_owned()),
        ..error("0A000", "portal over several shards cannot go on")
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

/// A table that nothing lists, of which it is not known whether it is one of those that unlisted_tables places.
#[must_use]
pub fn table_not_seen() -> Notice {
    Notice {
        detail: Some("No group or list has it, and no server was seen to have it: it may have been made just now and belong elsewhere, and not every server could be asked. (SW161)".to_owned()),
        hint: super::code_named("SW161").map(|code| code.what_to_do.to_owned()),
        ..error("55000", "it is not known yet where a table of this statement lives")
    }
}

/// A table that nothing lists, while other proxies may move it unheard.
#[must_use]
pub fn catalog_not_heard() -> Notice {
    Notice {
        detail: Some("The home shard has not taken this proxy's heartbeat for some time: other proxies may have changed where a table lives that nothing lists. (SW162)".to_owned()),
        hint: super::code_named("SW162").map(|code| code.what_to_do.to_owned()),
        ..error("55000", "it is not known for sure where a table of this statement lives")
    }
}

/// A schema change that the other proxies would not hear of.
#[must_use]
pub fn change_not_announced(why: &NotReady) -> Notice {
    Notice {
        detail: Some(format!(
            "The other proxies cannot be told of it: {why}. Nothing was changed. (SW163)"
        )),
        hint: super::code_named("SW163").map(|code| code.what_to_do.to_owned()),
        ..error("55000", "schema change needs the home shard")
    }
}

/// A schema change that is done, and that others have not taken over.
#[must_use]
pub fn change_not_taken_over(late: &[Late]) -> Notice {
    let name = |late: &Late| match &late.address {
        Some(address) => format!("{} (id {}, {address})", late.incarnation, late.number),
        None => format!("{} (id {})", late.incarnation, late.number),
    };
    let names: Vec<String> = late.iter().map(name).collect();
    let which = if names.is_empty() {
        "Which, the home shard could not be asked.".to_owned()
    } else {
        format!("Not yet: {}.", names.join(", "))
    };
    Notice {
        severity: "WARNING",
        sqlstate: "01000",
        message: "the schema change is done, and not all proxies have taken it over".to_owned(),
        detail: Some(format!("{which} (SW164)")),
        hint: super::code_named("SW164").map(|code| code.what_to_do.to_owned()),
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

/// `currval` or `lastval` where another session's number would be told.
#[must_use]
pub fn number_of_another() -> Notice {
    Notice {
        detail: Some(
            "This session drew no number on this server connection, or another session has used it since. (SW209)"
                .to_owned(),
        ),
        hint: Some(
            "Use INSERT ... RETURNING, or ask in the transaction that draws the number.".to_owned(),
        ),
        ..error("55000", "the last number of a sequence is not known here")
    }
}

/// An id or a number of a sequence that could not be had; nothing was written.
#[must_use]
pub fn no_numbers(problem: &dyn std::fmt::Display) -> Notice {
    Notice {
        detail: Some(format!(
            "The home shard, which gives them: {problem}. (SW143)"
        )),
        hint: Some("Nothing was written. Repeat it, or give the values yourself.".to_owned()),
        ..error("57P03", "values for the row's defaults could not be had")
    }
}

/// A schema change by which a sequence would give numbers that it gave before.
#[must_use]
pub fn restarts_sequence(why: &str) -> Notice {
    Notice {
        detail: Some(format!("The sequence would give numbers again: {why}. (SW144)")),
        hint: Some(
            "Do it on the home shard, under /* shardway: shard=... */, when you know that no number comes twice."
                .to_owned(),
        ),
        ..error("0A000", "a sequence of a sharded table cannot begin anew")
    }
}

/// What the home shard said when numbers were to be drawn from a sequence.
#[must_use]
pub fn said_of_numbers(sqlstate: &str, message: &str) -> Words {
    let mut body = Vec::new();
    for (code, text) in [
        (b'S', "ERROR"),
        (b'V', "ERROR"),
        (b'C', sqlstate),
        (b'M', message),
    ] {
        body.push(code);
        body.extend_from_slice(text.as_bytes());
        body.push(0);
    }
    body.push(0);
    Words::Servers(body)
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

/// A channel that the shared listeners do not have.
#[must_use]
pub fn cannot_listen(problem: &ListenError) -> Notice {
    Notice {
        detail: Some(format!("{problem}. (SW221)")),
        hint: Some("LISTEN again when every shard can be reached.".to_owned()),
        ..error("08006", "LISTEN cannot be put in force on every shard")
    }
}

/// As [`cannot_listen`], after a reload: what was listened on is not any more.
#[must_use]
pub fn listening_ended(problem: &ListenError) -> Notice {
    Notice {
        detail: Some(format!("{problem}. (SW222)")),
        hint: Some(AFTER_A_GAP.to_owned()),
        ..fatal(
            "08006",
            "terminating connection because notifications may be missing",
        )
    }
}

/// The shared listener of a shard is gone.
#[must_use]
pub fn listener_lost(shard: &str) -> Notice {
    Notice {
        detail: Some(format!(
            "The shared connection that listens on shard \"{shard}\" was lost. (SW222)"
        )),
        hint: Some(AFTER_A_GAP.to_owned()),
        ..fatal(
            "08006",
            "terminating connection because notifications may be missing",
        )
    }
}

/// The shared listener of a shard is back.
#[must_use]
pub fn listener_restored(shard: &str, after: Duration) -> Notice {
    Notice {
        severity: "WARNING",
        sqlstate: "01000",
        message: "notifications may be missing".to_owned(),
        detail: Some(format!(
            "Nothing was heard from shard \"{shard}\" for {} ms. (SW222)",
            after.as_millis()
        )),
        hint: Some("Read from the tables what notifications would have told.".to_owned()),
    }
}

/// A client that does not take its notifications.
#[must_use]
pub fn too_many_notifications(overflown: Overflown) -> Notice {
    Notice {
        detail: Some(format!(
            "More than {} bytes of notifications waited for this client. (SW223)",
            overflown.limit
        )),
        hint: Some(
            "Read the connection and end its transactions, or raise pool.listen_queue.".to_owned(),
        ),
        ..fatal(
            "53400",
            "terminating connection because the client does not take its notifications",
        )
    }
}

/// `pg_listening_channels()` where it cannot be answered.
#[must_use]
pub fn channels_within() -> Notice {
    Notice {
        detail: Some("The session's channels are kept by Shardway, and a server learns of them between transactions only. (SW225)".to_owned()),
        hint: Some("Ask before BEGIN, in a batch of its own.".to_owned()),
        ..error("0A000", "pg_listening_channels() is not supported within a transaction")
    }
}

/// A channel whose name means different bytes on the server.
#[must_use]
pub fn channel_not_ascii(channel: &str) -> Notice {
    Notice {
        detail: Some("The server's encoding is not UTF8. (SW224)".to_owned()),
        hint: Some("Use a name in ASCII, or session mode.".to_owned()),
        ..error("0A000", format!("cannot listen on channel \"{channel}\""))
    }
}

/// A notification that the client could not read.
#[must_use]
pub fn notification_not_ascii() -> Notice {
    Notice {
        detail: Some(
            "A notification beyond ASCII arrived, and client_encoding is not UTF8. (SW224)"
                .to_owned(),
        ),
        hint: Some("SET client_encoding = 'UTF8' before LISTEN.".to_owned()),
        ..fatal(
            "22P05",
            "terminating connection because a notification cannot be converted",
        )
    }
}

const AFTER_A_GAP: &str =
    "Connect and LISTEN again, then read from the tables what notifications would have told.";
