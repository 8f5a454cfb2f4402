//! The wording of ids and numbers of sequences that could not be had or told.

use super::error;
use crate::wire::notice::{Notice, Words};

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
