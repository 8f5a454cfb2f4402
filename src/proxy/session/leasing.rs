//! The session's pools, and the wait for a backend of one.
//!
//! What must stay true: a cancel or the client's end stops the wait.

use super::{End, Session, micros};
use crate::{
    catalog::shard::ShardId,
    pool::{
        lease::{CheckoutError, Lease, Pool},
        state::Claim,
    },
    proxy::{link::Hold, reply::session as reply},
    wire::notice::Words,
};
use std::sync::Arc;

impl Session {
    /// A backend on this shard; for what any shard can answer, on the next one that can be reached, which is then this
    /// session's.
    pub(in crate::proxy) async fn checkout_for(
        &mut self,
        wanted: ShardId,
        hold: Hold,
        claim: Claim,
    ) -> Result<Result<(Lease, ShardId), Words>, End> {
        let count = self.database.settings.shards.len();
        let problem = match self.checkout(wanted, claim).await? {
            Waited::Lease(lease) => return Ok(Ok((lease, wanted))),
            Waited::Cancelled => return Ok(Err(reply::cancelled().into())),
            Waited::Failed(problem) => problem,
        };
        let may_move = hold != Hold::Bound && problem.is_of_the_place();
        for step in 1..if may_move { count } else { 1 } {
            let next = ShardId(u16::try_from((wanted.index() + step) % count).unwrap_or(0));
            if !self.snapshot.answering().contains(next) {
                continue;
            }
            match self.checkout(next, claim).await? {
                Waited::Lease(lease) => {
                    self.any = next;
                    return Ok(Ok((lease, next)));
                }
                Waited::Cancelled => return Ok(Err(reply::cancelled().into())),
                // What is told is about the first.
                Waited::Failed(_) => {}
            }
        }
        Ok(Err(reply::checkout(
            self.database.shard_name(wanted),
            &problem,
        )
        .into()))
    }

    /// What comes of waiting for a backend on this shard; a cancel or the client's end stops the wait.
    async fn checkout(&mut self, shard: ShardId, claim: Claim) -> Result<Waited, End> {
        let pool = self.pool(shard);
        if let Some(lease) = pool.try_acquire(claim) {
            return Ok(Waited::Lease(lease));
        }
        let begun = self.shared.clock.now();
        self.info.set_waiting(begun);
        self.cancel.wait_begins();
        let outcome = Box::pin(self.wait_for(&pool, claim)).await;
        self.cancel.wait_ends();
        self.info.set_idle();
        self.marks.begun = self.shared.clock.now();
        self.tally.wait_micros += micros(self.marks.begun.saturating_duration_since(begun));
        outcome
    }

    async fn wait_for(&mut self, pool: &Arc<Pool>, claim: Claim) -> Result<Waited, End> {
        Ok(match self.wait_beside(pool.acquire(claim)).await? {
            Some(Ok(lease)) => Waited::Lease(lease),
            Some(Err(problem)) => Waited::Failed(problem),
            None => Waited::Cancelled,
        })
    }

    /// This session's pool on a shard.
    pub(in crate::proxy) fn pool(&mut self, shard: ShardId) -> Arc<Pool> {
        let at = shard.index();
        if let Some(Some(pool)) = self.pools.get(at) {
            return Arc::clone(pool);
        }
        let pool = self.database.pool(&self.user, shard, &self.info.database);
        if self.pools.len() <= at {
            self.pools.resize(at + 1, None);
        }
        self.pools[at] = Some(Arc::clone(&pool));
        pool
    }
}

/// What became of a wait for a backend.
enum Waited {
    Lease(Lease),
    Cancelled,
    Failed(CheckoutError),
}
