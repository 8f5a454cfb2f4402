//! The backend that a session uses now, and what the session has done on it.

use crate::{
    catalog::shard::ShardId, clock::Instant, net::stream::Stream, plan::StatementPlan,
    pool::lease::Lease, wire::backend::Status,
};
use smallvec::SmallVec;

/// A leased backend in use.
#[derive(Debug)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is one independent fact about the backend"
)]
pub(super) struct Link {
    pub(super) lease: Lease,
    pub(super) shard: ShardId,
    pub(super) hold: Hold,
    /// As the last ReadyForQuery said.
    pub(super) status: Status,
    /// Parses on their way, by identity, and which of them would be the unnamed statement.
    pub(super) parsing: SmallVec<[u128; 2]>,
    /// The wanted settings' hash when the transaction began, and the settings: what a ROLLBACK goes back to.
    pub(super) at_begin: crate::protocol::parameters::Applied,
    /// What it had been told at each savepoint of the transaction, innermost last.
    pub(super) savepoints: Vec<(String, crate::protocol::parameters::Applied)>,
    /// A function that we cannot see into ran: settings are unknown afterwards.
    pub(super) opaque: bool,
    /// The transaction's time, number or snapshot was asked for here.
    pub(super) named: bool,
    /// What was done in the transaction keeps PostgreSQL from preparing it: NOTIFY, temporary tables and the like.
    pub(super) unpreparable: bool,
    /// A Query came in the middle of an extended batch: PostgreSQL 18 answers the statement behind with XX000
    /// ("unexpected state STARTED"), which must not be another client's. Not to be given back.
    pub(super) spent: bool,
    /// LISTEN was sent here: to be told UNLISTEN * before another session has it.
    pub(super) listens: bool,
    /// Rows of several shards that it was sent, as long as they count.
    pub(super) gathered: Option<super::gather::Held>,
    pub(super) since: Instant,
}

/// How firmly the session's transaction or batch is bound to the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Hold {
    /// Beside a deferred transaction, nothing begun here: Parse and Describe only.
    Aside,
    /// Beside a deferred transaction, in a transaction of its own that is rolled back.
    AsideTransaction,
    /// Only reads that any shard answers: the next statement may choose another shard.
    Loose,
    /// A statement belongs to this shard, or a transaction is open here.
    Bound,
}

impl Link {
    /// A backend just leased, on which nothing has begun.
    pub(super) fn leased(lease: Lease, shard: ShardId, hold: Hold, since: Instant) -> Self {
        Self {
            lease,
            shard,
            hold,
            status: Status::Idle,
            parsing: SmallVec::new(),
            at_begin: crate::protocol::parameters::Applied::Unknown,
            savepoints: Vec::new(),
            opaque: false,
            named: false,
            unpreparable: false,
            spent: false,
            listens: false,
            gathered: None,
            since,
        }
    }

    /// The connection.
    pub(super) fn stream(&mut self) -> &mut Stream {
        &mut self.lease.stream
    }

    /// A statement of the transaction is sent here.
    pub(super) fn sends(&mut self, statement: &StatementPlan) {
        self.named |= statement.names_transaction;
    }

    /// The transaction is over.
    pub(super) fn transaction_ended(&mut self) {
        self.savepoints.clear();
        (self.named, self.unpreparable) = (false, false);
    }

    /// Whether a statement is prepared here, or is being prepared.
    pub(super) fn knows(&mut self, id: u128, unnamed: bool) -> bool {
        if unnamed {
            return self.lease.unnamed == Some(id);
        }
        self.parsing.contains(&id) || self.lease.statements.touch(id)
    }
}
