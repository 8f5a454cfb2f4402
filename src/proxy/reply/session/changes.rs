//! The wording of schema changes that are refused, done in part or not heard of, and of tables that nobody has placed.
//!
//! A change that was made on some shards is never said to have failed as a whole: what is done is named.

use super::{error, which_moves};
use crate::{
    plan::emptying::Kept,
    registry::{Late, NotReady, holds::Reshard},
    sql::change::Others,
    wire::notice::Notice,
};

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

/// A table that nothing lists, of which it is not known whether it is one of those that unlisted_tables places.
#[must_use]
pub fn table_not_seen() -> Notice {
    Notice {
        detail: Some("No group or list has it, and no server was seen to have it: it may have been made just now and belong elsewhere, and not every server could be asked. (SW161)".to_owned()),
        hint: crate::proxy::reply::code_named("SW161").map(|code| code.what_to_do.to_owned()),
        ..error("55000", "it is not known yet where a table of this statement lives")
    }
}

/// New rows whose numbers a shard's own default might give that has just come.
#[must_use]
pub fn defaults_not_seen() -> Notice {
    Notice {
        detail: Some("A shard serves that could not be asked yet: its own default might give numbers that another shard gives too. (SW161)".to_owned()),
        hint: crate::proxy::reply::code_named("SW161").map(|code| code.what_to_do.to_owned()),
        ..error("55000", "it is not known yet what gives this table's new rows their defaults")
    }
}

/// A table that nothing lists, while other proxies may move it unheard.
#[must_use]
pub fn catalog_not_heard() -> Notice {
    Notice {
        detail: Some("The home shard has not taken this proxy's heartbeat for some time: other proxies may have changed where a table lives that nothing lists. (SW162)".to_owned()),
        hint: crate::proxy::reply::code_named("SW162").map(|code| code.what_to_do.to_owned()),
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
        hint: crate::proxy::reply::code_named("SW163").map(|code| code.what_to_do.to_owned()),
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
        hint: crate::proxy::reply::code_named("SW164").map(|code| code.what_to_do.to_owned()),
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

/// TRUNCATE of tables of which a reshard moves rows, where DELETE would not do the same.
#[must_use]
pub fn not_emptied(group: &str, reshard: Option<&Reshard>, others: Others, why: &Kept) -> Notice {
    if let Some(said) = not_truncated(others, why) {
        return said;
    }
    let (why, hint) = match why {
        Kept::Together => (
            "it names other tables as well".to_owned(),
            "Name tables of which rows move in a statement of their own.",
        ),
        Kept::BeginsAnew => (
            "no shard begins a sequence anew meanwhile".to_owned(),
            "Leave RESTART IDENTITY out.",
        ),
        Kept::OneSnapshot => (
            "rows would stay that are younger than the transaction's snapshot".to_owned(),
            "Use READ COMMITTED.",
        ),
        Kept::NoDelete(table) => (
            format!("the role may not delete from \"{table}\""),
            "GRANT DELETE on it, and SELECT on its shard key.",
        ),
        Kept::Hidden(table) => (
            format!("policies of \"{table}\" would hide rows from the role"),
            "Use a role that row security does not apply to.",
        ),
        Kept::Trigger(name, table) => (
            format!("trigger \"{name}\" of \"{table}\" would act otherwise"),
            "Write DELETE FROM if that is what it is to do.",
        ),
        Kept::Rule(name, table) => (
            format!("rule \"{name}\" of \"{table}\" would do something else"),
            "Write DELETE FROM if that is what it is to do.",
        ),
        Kept::Referenced(table, other) => (
            format!("\"{other}\" refers to \"{table}\" and is not named"),
            "Name it too.",
        ),
        Kept::Hash => (
            "no SQL tells whose a row is".to_owned(),
            "Write DELETE FROM, key by key.",
        ),
        Kept::NoTable(_) | Kept::OnlyParent | Kept::Denied(_) | Kept::Unknown => (
            "the servers' answer is not understood".to_owned(),
            "Write DELETE FROM.",
        ),
    };
    Notice {
        detail: Some(format!(
            "{} keys of group \"{group}\", and tables are emptied by DELETE meanwhile; but {why}. (SW403)",
            which_moves(reshard)
        )),
        hint: Some(format!(
            "{hint} Or wait until it is finished (shardway reshard status)."
        )),
        ..error(
            "55006",
            "TRUNCATE is not possible while rows of these tables move",
        )
    }
}

/// What PostgreSQL would say of it at any time; `None`: nothing.
fn not_truncated(others: Others, why: &Kept) -> Option<Notice> {
    Some(match why {
        Kept::NoTable(table) => error("42809", format!("\"{table}\" is not a table")),
        Kept::OnlyParent => Notice {
            hint: Some(
                "Do not specify the ONLY keyword, or use TRUNCATE ONLY on the partitions directly."
                    .to_owned(),
            ),
            ..error("42809", "cannot truncate only a partitioned table")
        },
        Kept::Denied(table) => error("42501", format!("permission denied for table {table}")),
        Kept::Referenced(table, other) if others == Others::Left => Notice {
            detail: Some(format!("Table \"{other}\" references \"{table}\".")),
            hint: Some(format!(
                "Truncate table \"{other}\" at the same time, or use TRUNCATE ... CASCADE."
            )),
            ..error(
                "0A000",
                "cannot truncate a table referenced in a foreign key constraint",
            )
        },
        Kept::Referenced(..)
        | Kept::Together
        | Kept::BeginsAnew
        | Kept::OneSnapshot
        | Kept::NoDelete(_)
        | Kept::Hidden(_)
        | Kept::Trigger(..)
        | Kept::Rule(..)
        | Kept::Hash
        | Kept::Unknown => return None,
    })
}
