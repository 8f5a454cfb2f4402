//! Links of the client's transaction at work on one statement together.
//!
//! What must stay true: every shard is a part of the transaction before any of them is asked; all of them are parts of
//! it afterwards, or the session ends; when one has failed, the session's link is one that has.

use super::super::{
    link::{Hold, Link},
    place::Place,
    reply::session as reply,
    request::Stop,
    session::{End, Session, told},
};
use crate::{
    catalog::shard::{ShardId, ShardSet},
    config::settings::PoolMode,
    wire::backend::Status,
};

impl Session {
    /// Whether a read over several shards can be a part of the client's open transaction: it has reached a shard from
    /// which it may go on, and nothing holds it there.
    pub(in crate::proxy) fn may_read_within(&self) -> bool {
        self.several.goes_on()
            && self.deferred.is_none()
            && self.status() == Status::Transaction
            && self.mode == PoolMode::Transaction
            && self.pinned.is_none()
            && !self.snapshot.is_single()
            && self.database.unfit.load().is_none()
    }

    /// Makes these shards parts of the transaction, in their order, and sets their links to work together.
    ///
    /// # Errors
    /// One of them cannot be reached; those that were stay parts of the transaction. What was sent before has failed.
    pub(in crate::proxy) async fn fan_within(&mut self, shards: &ShardSet) -> Result<(), Stop> {
        for shard in shards.iter() {
            let hold = Hold::Bound;
            self.reach(Place { shard, hold }).await?;
            let there = |link: &Link| link.shard == shard && link.status == Status::Transaction;
            if !self.link.as_deref().is_some_and(there) {
                return Err(reply::shard_missing(self.database.shard_name(shard)).into());
            }
        }
        // What the link was sent in this batch is answered first.
        self.leave_link().await?;
        if self.status() != Status::Transaction {
            return Err(reply::transaction_failed().into());
        }
        self.fold();
        self.cancel.detach();
        let mut links = self.several.take_enlisted();
        links.extend(self.link.take());
        let (mut working, resting): (Vec<_>, Vec<_>) = links
            .into_iter()
            .partition(|link| shards.contains(link.shard));
        working.sort_by_key(|link| link.shard);
        self.several.enlist_again(resting);
        self.begin_fan(working);
        if let Some(fan) = self.fan.as_deref_mut() {
            fan.within = Some(shards.clone());
        }
        Ok(())
    }

    /// Takes the links back into the transaction.
    ///
    /// # Errors
    /// The session is over: a part of the client's transaction is gone.
    pub(super) async fn fan_back(&mut self, shards: &ShardSet) -> Result<(), End> {
        let mut links = self.end_fan().await;
        let is_missing = |shard: &ShardId| !links.iter().any(|link| link.shard == *shard);
        let missing = shards.iter().find(is_missing);
        let failed = links
            .iter()
            .position(|link| link.status != Status::Transaction);
        if !links.is_empty() {
            let mut link = links.swap_remove(failed.unwrap_or(0));
            link.since = self.marks.begun;
            self.attach(link);
        }
        self.several.enlist_again(links);
        self.report_changes();
        match missing {
            Some(missing) => Err(told(reply::backend_lost(self.database.shard_name(missing)))),
            None => Ok(()),
        }
    }
}
