//! The wording of what rows of several shards cannot be: read together, written together, moved or copied.

use super::error;
use crate::{split::copy::Fault, wire::notice::Notice};

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
