//! The wording of what a transaction over several shards cannot do, and of how it ended.
//!
//! What is said of an outcome must be what is known of it: done, not done, or in doubt.

use super::error;
use crate::{
    catalog::shard::ShardId,
    proxy::several::Stays,
    registry::NotReady,
    txn::deadlock::{Blocker, Wait},
    wire::notice::Notice,
};

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
        hint: Some("Send SET, RESET, DISCARD, ROLLBACK, and COMMIT behind SET LOCAL in messages of their own.".to_owned()),
        ..error(
            "0A000",
            "a setting that changes within one message is not supported over several shards",
        )
    }
}

/// The end of a failed transaction in front of other statements of one Query message, which cannot run one by one.
#[must_use]
pub fn end_of_failed_among_others() -> Notice {
    Notice {
        detail: Some(
            "What stands behind it is no part of the failed transaction, and may belong to other shards. (SW304)"
                .to_owned(),
        ),
        hint: Some("Send COMMIT and ROLLBACK in messages of their own.".to_owned()),
        ..error(
            "0A000",
            "the end of a failed transaction together with other statements is not supported over several shards",
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
