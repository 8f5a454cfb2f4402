//! Statements that name tables which nothing lists and no server was seen to have: made just now, or nowhere, or the
//! session's own.
//!
//! What must stay true: none runs where unlisted tables live until it is known that its table is no other proxy's new
//! one. PostgreSQL judges it by a Parse, whose error passes; only of what it accepts the table is there, and a look at
//! every server that begins after that has it, unless nobody but the session sees it. Names that are nowhere make nobody
//! look often.

use super::{
    changing::LOOK_PATIENCE,
    learning::Looked,
    link::Hold,
    place::Place,
    prepared::Prepared,
    reply::session as reply,
    request::Stop,
    session::{Note, Session},
};
use crate::{
    catalog::{
        shard::ShardId,
        snapshot::{Standing, Unlisted},
    },
    plan::{Footing, Plan, StatementPlan, Target, cache::Planned, unroutable::Unroutable},
    protocol::pipeline::{Origin, Request},
    sql::statement::Effect,
    wire::{
        backend::Status,
        frontend::{put_bare, put_parse},
        notice::Notice,
        types::Oid,
    },
};
use std::sync::Arc;

/// What comes of a look.
pub(super) enum Judged {
    /// Of what PostgreSQL has said, nothing is left to be done.
    Answered,
    GoOn,
}

impl Session {
    /// Whether the servers are to be asked about tables of these statements.
    pub(super) fn names_unseen(&self, plan: &Plan) -> bool {
        let rests = |on: Footing| plan.statements.iter().any(|one| one.footing == on);
        let unseen = rests(Footing::Unseen) && !self.sure;
        (unseen || rests(Footing::Unlooked)) && self.status() != Status::Failed
    }

    /// Whether a statement may run where its plan says.
    ///
    /// # Errors
    /// It rests on what is not sure.
    pub(super) fn check_footing(&self, statement: &StatementPlan) -> Result<(), Notice> {
        match statement.footing {
            Footing::Unlooked => Err(reply::changes::defaults_not_seen()),
            Footing::Unseen if !self.sure => Err(reply::changes::table_not_seen()),
            Footing::Unlisted | Footing::Unseen
                if self.database.coordinator.is_lapsed(self.time()) =>
            {
                Err(reply::changes::catalog_not_heard())
            }
            Footing::Sure | Footing::Unlisted | Footing::Unseen => Ok(()),
        }
    }

    /// The plan of a Query, once it is known which tables there are; `None`: PostgreSQL has answered it.
    pub(super) async fn see(&mut self, text: &[u8]) -> Result<Option<Planned>, Stop> {
        self.look_first().await;
        let planned = self.plan_now(text, &[]);
        if !self.names_unseen(&planned.plan) {
            return Ok(Some(planned));
        }
        defaults_seen(&planned.plan)?;
        for (at, statement) in planned.plan.statements.iter().enumerate() {
            let own = planned.statement_text(at, text);
            let (Some(shard), Some(own)) = (self.judged_on(statement), own) else {
                continue;
            };
            if let Judged::Answered = self.judge_there(shard, own).await? {
                return Ok(None);
            }
        }
        if !planned.plan.statements.iter().any(asks_closely) {
            return Ok(Some(planned));
        }
        let seen = self.look_closely(&planned.plan).await;
        let planned = self.plan_now(text, &[]);
        self.sure = seen == Looked::All && self.names_unseen(&planned.plan);
        Ok(Some(planned))
    }

    /// What a statement that is bound means, once it is known which tables there are; `None`: PostgreSQL refuses it.
    pub(super) async fn see_bound(
        &mut self,
        name: &[u8],
        prepared: Arc<Prepared>,
    ) -> Result<Option<Arc<Prepared>>, Stop> {
        self.look_first().await;
        let prepared = self.bound_now(name, prepared)?;
        // Also one that waits for its shard.
        let prepared = self.plan_again(name, prepared);
        if !self.names_unseen(&prepared.plan) {
            return Ok(Some(prepared));
        }
        defaults_seen(&prepared.plan)?;
        let sent = self.pending.iter().any(|one| Arc::ptr_eq(one, &prepared));
        let statement = prepared.statement();
        if let Some(shard) = statement.and_then(|one| self.judged_on(one)) {
            let hold = Hold::Aside;
            self.reach(Place { shard, hold }).await?;
            self.send_pending();
            if let (false, Some(link)) = (sent, &mut self.link) {
                let (text, types) = (&prepared.text, &prepared.raw_types);
                put_parse(link.lease.stream.out(), b"", text, types);
                link.lease.unnamed = None;
                self.pipeline
                    .asked(Request::Parse, Origin::Injected, Note::Nothing);
            }
            self.settle().await?;
            if self.skip {
                return Ok(None);
            }
        }
        if !prepared.plan.statements.iter().any(asks_closely) {
            return Ok(Some(prepared));
        }
        let seen = self.look_closely(&prepared.plan).await;
        let prepared = self.bound_now(name, prepared)?;
        self.sure = seen == Looked::All && self.names_unseen(&prepared.plan);
        Ok(Some(prepared))
    }

    /// The shard of unlisted tables, if its PostgreSQL can say whether the statement's are there.
    fn judged_on(&self, statement: &StatementPlan) -> Option<ShardId> {
        let refused = matches!(statement.target, Target::Refused(_));
        match self.snapshot.unlisted {
            Unlisted::On(shard) if statement.footing == Footing::Unseen && !refused => Some(shard),
            Unlisted::On(_) | Unlisted::Error => None,
        }
    }

    pub(super) fn plan_now(&mut self, text: &[u8], types: &[Oid]) -> Planned {
        let scratch = self.scratch.get_or_insert_default();
        let plans = &self.database.plans;
        plans.plan(text, types, &self.context, &self.snapshot, scratch)
    }

    /// Looks at the servers, unless somebody has a moment ago; a shard that the transaction is on already says of other
    /// shards' tables that they are nowhere.
    pub(super) async fn look_first(&mut self) {
        self.marks.waits();
        let settings = self.shared.settings.load_full();
        let elsewhere = self.link.as_ref().is_some_and(|link| {
            link.status != Status::Idle && self.snapshot.unlisted != Unlisted::On(link.shard)
        });
        let looked = async {
            if self.snapshot.standing == Standing::Unread {
                // A database that a reload has given its first shards is asked about for the first time.
                self.database.coordinator.looked().await;
                self.database.take_over_map();
                if self.database.snapshot.load().standing == Standing::Unread {
                    return;
                }
            }
            if elsewhere || !self.snapshot.is_looked() || self.snapshot.has_moved_views() {
                self.database.learn(&settings).await;
            } else {
                self.database.learn_seldom(&settings).await;
            }
        };
        drop(tokio::time::timeout(LOOK_PATIENCE, looked).await);
        self.take_over_snapshot();
    }

    /// Before a batch, when others do not wait any more for this proxy to know what they change.
    pub(super) async fn look_unheard(&mut self) {
        self.marks.waits();
        let settings = self.shared.settings.load_full();
        let looked = self.database.learn_unheard(&settings);
        drop(tokio::time::timeout(LOOK_PATIENCE, looked).await);
        self.take_over_snapshot();
    }

    /// PostgreSQL has accepted statements: what they name is there, and is seen now, or is the session's own.
    async fn look_closely(&mut self, plan: &Plan) -> Looked {
        self.marks.waits();
        let settings = self.shared.settings.load_full();
        let looked = self.database.learn(&settings);
        let looked = tokio::time::timeout(LOOK_PATIENCE, looked).await;
        // Of a COPY a Parse says nothing.
        let silent = |one: &StatementPlan| one.effect == Effect::CopyIn;
        let judged = !plan.statements.iter().any(silent);
        self.take_over_snapshot();
        looked.ok().filter(|_| judged).unwrap_or_default()
    }

    /// Has PostgreSQL judge a text by a Parse there.
    pub(super) async fn judge_there(
        &mut self,
        shard: ShardId,
        text: &[u8],
    ) -> Result<Judged, Stop> {
        let hold = Hold::Aside;
        self.reach(Place { shard, hold }).await?;
        let Some(link) = &mut self.link else {
            return Ok(Judged::Answered);
        };
        let out = link.lease.stream.out();
        put_parse(out, b"", text, b"");
        put_bare(out, b'S');
        link.lease.unnamed = None;
        self.pipeline
            .asked(Request::Parse, Origin::Injected, Note::Nothing);
        self.pipeline
            .asked(Request::Sync, Origin::Injected, Note::Nothing);
        self.settle().await?;
        if self.failed {
            if let Some(deferred) = &mut self.deferred {
                deferred.fail();
            }
            self.ready_here();
            return Ok(Judged::Answered);
        }
        Ok(Judged::GoOn)
    }
}

/// Nothing counts on shards that could not be asked; what is refused is refused for its own reason.
fn defaults_seen(plan: &Plan) -> Result<(), Notice> {
    let unread = |one: &StatementPlan| matches!(&one.target, Target::Refused(why) if **why == Unroutable::MapUnknown(Standing::Unread));
    let unlooked = |one: &StatementPlan| one.footing == Footing::Unlooked && !unread(one);
    if plan.statements.iter().any(unlooked) {
        return Err(reply::changes::defaults_not_seen());
    }
    Ok(())
}

/// Whether the servers are looked at closely for it: what is refused anyway makes nobody look.
fn asks_closely(statement: &StatementPlan) -> bool {
    let refused = matches!(statement.target, Target::Refused(_));
    statement.footing == Footing::Unseen && (!refused || statement.changes.is_some())
}
