//! The wording of what cursors and portals over several shards cannot do; where PostgreSQL has words for it, PostgreSQL's.

use super::{error, name};
use crate::wire::notice::Notice;

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

/// A portal over several shards that was left before its end.
#[must_use]
pub fn portal_left() -> Notice {
    Notice {
        detail: Some("Its rows come from several shards at once; another statement, or the end of the batch, has ended that. (SW128)".to_owned()),
        hint: Some("Read all of its rows, or Execute it again before the next Sync and before another statement.".to_owned()),
        ..error("0A000", "portal over several shards cannot go on")
    }
}
