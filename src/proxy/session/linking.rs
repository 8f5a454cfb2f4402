//! How a session gets a backend for its statements: leased or kept from before, and told what the session has set and
//! begun.
//!
//! What must stay true: a backend that could not be told is in doubt and is closed, never handed on; what was deferred is
//! replayed before the first statement that belongs there.

use super::{End, Phase, Session};
use crate::{
    catalog::shard::ShardId,
    pool::state::Claim,
    protocol::parameters::{self, Applied},
    proxy::{
        counting::note_reported,
        link::{Hold, Link},
    },
    wire::{
        backend::{Status, put_parameter_status},
        notice::Words,
    },
};
use smallvec::SmallVec;
use std::sync::Arc;

impl Session {
    /// Makes the link a backend on this shard, ready for the session's statements. The caller has made sure that no
    /// other link is bound.
    ///
    /// # Errors
    /// Outer: the session is over. Inner: this statement is refused.
    pub(in crate::proxy) async fn link_to(
        &mut self,
        shard: ShardId,
        hold: Hold,
    ) -> Result<Result<(), Words>, End> {
        if self.link_shard() == Some(shard) {
            if let Some(link) = &mut self.link {
                let in_use = self.phase == Phase::Batch && link.hold >= Hold::Loose;
                link.hold = link.hold.max(hold);
                if in_use {
                    // A statement of ours in the middle of a batch would end its implicit transaction.
                    return Ok(Ok(()));
                }
            }
        } else {
            self.park_or_release().await?;
            match self.parked.iter().position(|link| link.shard == shard) {
                Some(at) => {
                    let mut link = self.parked.swap_remove(at);
                    link.hold = hold;
                    link.since = self.marks.begun;
                    self.drew.returns_to(&link.lease);
                    self.attach(link);
                }
                None => {
                    let claim = Claim::Begins;
                    let (lease, shard) = match self.checkout_for(shard, hold, claim).await? {
                        Ok(found) => found,
                        Err(problem) => return Ok(Err(problem)),
                    };
                    let link = Box::new(Link {
                        lease,
                        shard,
                        hold,
                        status: Status::Idle,
                        parsing: SmallVec::new(),
                        at_begin: Applied::Unknown,
                        savepoints: Vec::new(),
                        opaque: false,
                        named: false,
                        unpreparable: false,
                        spent: false,
                        listens: false,
                        gathered: None,
                        since: self.marks.begun,
                    });
                    self.attach(link);
                    self.come_to_numbers().await?;
                }
            }
        }
        self.bring_up_to_date(hold).await
    }

    pub(in crate::proxy) fn attach(&mut self, mut link: Box<Link>) {
        link.lease.tenure.taken_by(self.info.pid);
        self.cancel.attach(&link.lease.target);
        self.info.set_active(link.shard.0, link.lease.target.pid);
        link.lease.info.set_leased(self.info.pid);
        self.tally.server_assignments += 1;
        self.link = Some(link);
    }

    /// Tells the backend the session's settings and, for a transaction, replays what was deferred.
    pub(in crate::proxy) async fn bring_up_to_date(
        &mut self,
        hold: Hold,
    ) -> Result<Result<(), Words>, End> {
        let Some(link) = &mut self.link else {
            return Ok(Ok(()));
        };
        let known = matches!(&link.lease.applied, Applied::Known(_, hash) if *hash == self.parameters.wanted_hash());
        if !known
            && link.status != Status::Failed
            && let Some(sql) = parameters::difference(&link.lease.applied, self.parameters.wanted())
        {
            let told = Applied::Known(
                Arc::clone(self.parameters.wanted()),
                self.parameters.wanted_hash(),
            );
            if let Err(problem) = self.prelude(sql.as_bytes()).await? {
                // The backend's settings are in doubt: it must not serve anyone.
                self.link = None;
                self.cancel.detach();
                return Ok(Err(problem));
            }
            if let Some(link) = &mut self.link {
                link.lease.applied = told;
            }
            self.told_within(&sql);
        }
        self.report_changes();
        let begins = matches!(hold, Hold::Bound | Hold::AsideTransaction);
        let outside = self
            .link
            .as_ref()
            .is_some_and(|link| link.status == Status::Idle);
        if begins && outside && self.deferred.is_some() {
            return Box::pin(self.replay(hold)).await;
        }
        Ok(Ok(()))
    }

    async fn replay(&mut self, hold: Hold) -> Result<Result<(), Words>, End> {
        let Some(deferred) = self.deferred.take() else {
            return Ok(Ok(()));
        };
        if let Some(link) = &mut self.link {
            link.at_begin = link.lease.applied.clone();
        }
        for text in deferred.replay() {
            if let Err(problem) = self.prelude(text).await? {
                self.deferred = Some(deferred);
                self.link = None;
                self.cancel.detach();
                return Ok(Err(problem));
            }
        }
        if hold == Hold::AsideTransaction {
            self.deferred = Some(deferred);
        } else {
            let one_each = deferred.statement_snapshots() && self.begins_read_committed();
            if one_each {
                self.several.begun(Some(deferred));
            } else if self.has_snapshots() {
                self.several.begun(Some(deferred));
                return Box::pin(self.take_snapshots()).await;
            } else {
                self.several.stays_with_its_snapshot();
            }
        }
        Ok(Ok(()))
    }

    /// Tells the client about reported settings that differ on this backend from what it was told last.
    pub(in crate::proxy) fn report_changes(&mut self) {
        let Some(link) = &self.link else { return };
        if link.lease.reported.hash() == self.reported.hash() {
            return;
        }
        let out = self.client.out();
        for (name, value) in link.lease.reported.iter() {
            if self.reported.get(name) != Some(value) {
                note_reported(&self.info, name, value);
                put_parameter_status(out, name, value);
            }
        }
        self.reported = link.lease.reported.clone();
        self.reported.share(&self.database.reports);
    }

    /// The shard of the link.
    pub(in crate::proxy) fn link_shard(&self) -> Option<ShardId> {
        self.link.as_ref().map(|link| link.shard)
    }
}
