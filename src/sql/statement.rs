//! What a statement does to the session that runs it.

/// What a statement does to the session, besides reading and writing rows.
/// Names are as PostgreSQL folds them; values are SQL text that may follow `SET name TO`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Reads or writes rows, nothing else.
    None,
    /// BEGIN or START TRANSACTION; its exact text is replayed on each shard that the transaction reaches.
    Begin,
    Commit { chain: bool },
    Rollback { chain: bool },
    Savepoint(String),
    Release(String),
    RollbackTo(String),
    /// SET TRANSACTION, SET CONSTRAINTS: means something inside the running transaction only.
    SetTransaction,
    /// SET, and a sole `SELECT set_config(literals)`. `value` `None`: DEFAULT.
    Set { name: String, value: Option<String>, local: bool },
    Reset(String),
    ResetAll,
    DiscardAll,
    /// DEALLOCATE of one name, or of all.
    Deallocate(Option<String>),
    /// SQL-level PREPARE.
    Prepare(String),
    /// SQL-level EXECUTE.
    Execute(String),
    /// DECLARE CURSOR; `hold`: WITH HOLD.
    Declare { hold: bool },
    /// FETCH, MOVE, CLOSE: belongs to the shard that the transaction is on.
    Cursor,
    CopyIn,
    CopyOut,
    /// Leaves something in the backend that cannot be carried to another: the session keeps the backend.
    Pins(PinReason),
    /// PREPARE TRANSACTION, COMMIT PREPARED, ROLLBACK PREPARED.
    TwoPhase,
    /// DO, CALL or a function that we cannot see into: the backend is reset before another session gets it.
    Opaque,
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
}

/// Whether a statement can change data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Read,
    Write,
}
