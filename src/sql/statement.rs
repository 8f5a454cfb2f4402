//! What a statement does to the session that runs it.

/// What a statement does to the session, besides reading and writing rows.
/// Names are as PostgreSQL folds them; values are SQL text that may follow `SET name TO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Reads or writes rows, nothing else.
    None,
    /// BEGIN or START TRANSACTION; its exact text is replayed on each shard that the transaction reaches.
    Begin,
    Commit {
        chain: bool,
    },
    Rollback {
        chain: bool,
    },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    /// SET TRANSACTION, SET CONSTRAINTS: means something inside the running transaction only.
    SetTransaction,
    /// SET, and a sole `SELECT set_config(literals)`. `value` `None`: DEFAULT; empty: a list without items, which only
    /// `set_config` can make.
    Set {
        name: String,
        value: Option<String>,
        local: bool,
    },
    /// SET SESSION CHARACTERISTICS: several settings at once, names and values as in `Set`.
    SetEach(Vec<(String, String)>),
    Reset(String),
    ResetAll,
    DiscardAll,
    /// DEALLOCATE of one name, or of all.
    Deallocate(Option<String>),
    /// SQL-level PREPARE.
    Prepare(String),
    /// SQL-level EXECUTE, by itself or within another statement.
    Execute {
        name: String,
        within: Within,
    },
    /// DECLARE CURSOR; `hold`: WITH HOLD.
    Declare {
        hold: bool,
    },
    /// FETCH, MOVE, CLOSE: belongs to the shard that the transaction is on.
    Cursor,
    CopyIn,
    CopyOut,
    /// LISTEN on a channel.
    Listen(String),
    /// UNLISTEN of one channel, or of all.
    Unlisten(Option<String>),
    /// NOTIFY, or `pg_notify` and nothing else that matters: on the home shard, unless its transaction is on another.
    Notify,
    /// Its answer says on which channels the session listens.
    Channels,
    /// Leaves something in the backend that cannot be carried to another: the session keeps the backend.
    Pins(PinReason),
    /// Draws a number from a sequence by name.
    Draws,
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
    /// DO, CALL or a function that is not PostgreSQL's own, and leaves nothing as far as its text says: the backend is
    /// reset all the same before another session gets it.
    Opaque,
}

/// The statement that an EXECUTE is a part of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Within {
    Itself,
    Explain,
    ExplainAnalyze,
    /// CREATE TABLE … AS EXECUTE.
    Table,
    TemporaryTable,
}

/// Why a session keeps its backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PinReason {
    TemporaryTable,
    SessionAdvisoryLock,
    HoldCursor,
    Listen,
    SqlPrepare,
    Load,
    SetRole,
    /// A setting whose value cannot be replayed elsewhere.
    Setting,
    /// `currval` or `lastval` was asked, and is right on this backend.
    Sequence,
    /// A function, trigger or block that may have left something we cannot see.
    Code,
}

/// Whether a statement can change data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}

/// A text as a string constant of SQL that means the same whatever `standard_conforming_strings` is.
#[must_use]
pub fn quoted(text: &str) -> String {
    let mut made = String::with_capacity(text.len() + 2);
    if text.contains('\\') {
        made.push('E');
    }
    made.push('\'');
    for c in text.chars() {
        if c == '\'' || c == '\\' {
            made.push(c);
        }
        made.push(c);
    }
    made.push('\'');
    made
}
