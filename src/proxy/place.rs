//! Where a statement is to run and how the session gets there: which shard, how firmly that binds the transaction, and
//! what must be left or awaited first.

use super::{
    link::{Hold, Link},
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{End, Note, Phase, Session},
    several::snapshots::alone_complete,
};
use crate::{
    catalog::shard::ShardId,
    config::settings::PoolMode,
    plan::{Footing, Override, Route, StatementPlan, Target, Values, unroutable::Unroutable},
    protocol::{
        pipeline::{Origin, Request},
        transaction::Deferred,
    },
    sql::statement::{Access, Effect},
    wire::{
        backend::Status,
        frontend::{self},
        notice::Notice,
    },
};

/// Where a statement is to run, and how firmly that binds the transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub shard: ShardId,
    pub hold: Hold,
}

impl Session {
    /// Where a statement is to run; `None`: PostgreSQL must judge it first.
    pub(super) fn place(
        &self,
        statement: &StatementPlan,
        values: &Values<'_>,
    ) -> Result<Option<Place>, Notice> {
        let here = self.link.as_ref();
        if let Some(link) = here
            && (link.status == Status::Failed || self.snapshot.is_single())
        {
            // In a failed transaction PostgreSQL itself answers everything, 25P02 or the end of it. What stands behind that
            // end does not come here before it is known that it is over.
            return Ok(Some(Place {
                shard: link.shard,
                hold: Hold::Bound,
            }));
        }
        if matches!(statement.target, Target::Judge) {
            return Ok(None);
        }
        let route = if self.listens_anywhere(&statement.effect) {
            Route::Any
        } else {
            statement
                .route(&self.snapshot, values)
                .map_err(|reason| wording::unroutable(&reason))?
        };
        if let (Target::ByKey(_), Some(finding)) =
            (&statement.target, self.database.unfit.load().as_deref())
        {
            return Err(reply::changes::unfit(finding));
        }
        if statement.footing != Footing::Sure {
            self.check_footing(statement)?;
        }
        let bound = here
            .filter(|link| self.is_bound(link))
            .map(|link| link.shard);
        let place = match route {
            Route::One(shard) => Place {
                shard,
                hold: Hold::Bound,
            },
            Route::Home => Place {
                shard: self.snapshot.home,
                hold: Hold::Bound,
            },
            Route::Any => {
                let own = self.deferred.is_some();
                let stays = matches!(statement.effect, Effect::Declare { .. });
                let hold = match (own, statement.access) {
                    (true, Access::Read) if self.reads_beside() && !stays => Hold::AsideTransaction,
                    (true, _) => Hold::Bound,
                    (false, Access::Read) => Hold::Loose,
                    (false, Access::Write) => Hold::Bound,
                };
                let told = self
                    .several
                    .named()
                    .filter(|_| statement.names_transaction && here.is_none_or(|link| !link.named));
                let home = statement
                    .shows_oids
                    .then(|| alone_complete(&self.snapshot).unwrap_or(self.snapshot.home));
                let named = self.named_shard();
                Place {
                    shard: named
                        .or(home)
                        .or(told)
                        .unwrap_or_else(|| self.any_shard(bound)),
                    hold,
                }
            }
            Route::Some(_) | Route::All => {
                return Err(wording::unroutable(&self.several_shards(&route)));
            }
        };
        self.within(bound, statement, place, values.text).map(Some)
    }

    /// The place of a statement in the transaction or batch that is bound to a shard.
    fn within(
        &self,
        bound: Option<ShardId>,
        statement: &StatementPlan,
        place: Place,
        text: &[u8],
    ) -> Result<Place, Notice> {
        if statement.names_transaction {
            self.may_name_at(place.shard)?;
        }
        if statement.effect == Effect::Cursor
            && let Some(shard) = self.shard_of_cursor(statement, text)
        {
            return Ok(Place {
                shard,
                hold: Hold::Bound,
            });
        }
        match bound {
            // The shared listeners hear every shard.
            Some(shard)
                if statement.effect == Effect::Notify && self.mode == PoolMode::Transaction =>
            {
                Ok(Place { shard, ..place })
            }
            Some(shard) if shard != place.shard => {
                self.may_go_to(place.shard)?;
                Ok(Place {
                    hold: Hold::Bound,
                    ..place
                })
            }
            _ if statement.effect == Effect::TwoPhase && self.several.is_several() => {
                Err(reply::several::prepared_over_several())
            }
            _ => Ok(place),
        }
    }

    fn several_shards(&self, route: &Route) -> Unroutable {
        let shards = if let Route::Some(set) = route {
            set.clone()
        } else {
            self.snapshot.all()
        };
        let shards = shards
            .iter()
            .map(|shard| self.database.shard_name(shard).to_owned())
            .collect();
        Unroutable::SeveralShards { shards }
    }

    /// The shard that the session has named.
    fn named_shard(&self) -> Option<ShardId> {
        match &self.context.pinned {
            Some(Override::Shard(name)) => self.snapshot.shard_named(name),
            Some(Override::Key(_)) | None => None,
        }
    }

    /// Where a FunctionCall runs, large objects among them: on the shard that is named, else on the home shard.
    pub(super) fn place_of_call(&self) -> Result<Place, Notice> {
        let shard = self.named_shard().unwrap_or(self.snapshot.home);
        match self.link.as_ref().filter(|link| self.is_bound(link)) {
            Some(link) if link.status != Status::Failed && link.shard != shard => {
                self.may_go_to(shard)?;
                Ok(Place {
                    shard,
                    hold: Hold::Bound,
                })
            }
            Some(link) => Ok(Place {
                shard: link.shard,
                hold: Hold::Bound,
            }),
            None => Ok(Place {
                shard,
                hold: Hold::Bound,
            }),
        }
    }

    /// Whether the transaction or batch is on this link, and not only beside it.
    fn is_bound(&self, link: &Link) -> bool {
        let beside =
            matches!(link.hold, Hold::Aside | Hold::AsideTransaction) && self.deferred.is_some();
        link.hold == Hold::Bound || (link.status != Status::Idle && !beside)
    }

    /// Whether a read that any shard answers may run beside the deferred transaction, with a snapshot of its own.
    pub(super) fn reads_beside(&self) -> bool {
        self.deferred
            .as_ref()
            .is_some_and(Deferred::statement_snapshots)
            && self.begins_read_committed()
    }

    /// Whether a transaction that says nothing else is READ COMMITTED.
    pub(super) fn begins_read_committed(&self) -> bool {
        self.parameters
            .get("default_transaction_isolation")
            .is_none()
            && self.defaults.isolation.as_deref() == Some("read committed")
    }

    /// Where a statement is parsed and described before its values are known.
    pub(super) async fn reach_any(&mut self, prepared: &Prepared) -> Result<(), Stop> {
        if let Some(link) = &self.link {
            let shard = link.shard;
            return self
                .reach(Place {
                    shard,
                    hold: Hold::Aside,
                })
                .await;
        }
        let shard = match prepared.statement().map(|statement| &statement.target) {
            Some(Target::Fixed(Route::One(shard))) => *shard,
            Some(Target::Fixed(Route::Home)) => self.snapshot.home,
            _ => self.any,
        };
        let behind_settings = self.deferred.as_ref().is_some_and(Deferred::has_settings);
        let hold = if behind_settings {
            Hold::AsideTransaction
        } else {
            Hold::Aside
        };
        self.reach(Place { shard, hold }).await
    }

    /// Makes the link a backend at that place, giving up one that is not bound.
    pub(super) async fn reach(&mut self, place: Place) -> Result<(), Stop> {
        if self.scattered.is_some() {
            // Its backends are not held while others are waited for.
            Box::pin(self.leave_scattered()).await?;
        }
        if let Some(link) = &self.link {
            let same = link.shard == place.shard;
            let aside = matches!(link.hold, Hold::Aside | Hold::AsideTransaction)
                && self.deferred.is_some();
            let begins = aside && place.hold > link.hold;
            if same && !begins {
                if self.pipeline.is_empty() {
                    return self.linked(place).await;
                }
                if let Some(link) = &mut self.link {
                    link.hold = link.hold.max(place.hold);
                }
                return Ok(());
            }
            if place.hold <= Hold::Aside {
                return Ok(());
            }
            if self.is_bound(link) {
                return Box::pin(self.go_to(place.shard)).await;
            }
            self.leave_link().await?;
            if self.skip {
                return Ok(());
            }
        }
        self.linked(place).await
    }

    async fn linked(&mut self, place: Place) -> Result<(), Stop> {
        let Err(refused) = self.link_to(place.shard, place.hold).await? else {
            return Ok(());
        };
        // No other backend is tried for them.
        for prepared in std::mem::take(&mut self.pending) {
            self.forget_parsed(&prepared);
        }
        Err(refused.into())
    }

    /// Ends what a loose link still does, so that another shard can be reached in the same batch.
    pub(super) async fn leave_link(&mut self) -> Result<(), End> {
        if !self.pipeline.is_empty() || self.phase == Phase::Batch {
            if let Some(link) = &mut self.link {
                frontend::put_bare(link.lease.stream.out(), b'S');
                self.pipeline
                    .asked(Request::Sync, Origin::Injected, Note::Nothing);
            }
            self.settle().await?;
        }
        if let Some(link) = &mut self.link {
            link.gathered = None;
        }
        self.end_aside().await
    }

    /// Waits until the link has answered everything, passing the answers on.
    pub(super) async fn settle(&mut self) -> Result<(), End> {
        if !self.pipeline.is_empty()
            && !self.pipeline.owes_ready()
            && let Some(link) = &mut self.link
        {
            // The server holds its answers back until it is asked for them.
            frontend::put_bare(link.lease.stream.out(), b'H');
        }
        loop {
            self.answer()?;
            if self.pipeline.is_empty() {
                return Ok(());
            }
            self.wait().await?;
        }
    }

    /// Whether a statement only begins, ends or marks a transaction, so that it needs no shard of its own.
    pub(super) fn controls(&self, statement: &StatementPlan) -> bool {
        let control = matches!(
            statement.effect,
            Effect::Begin
                | Effect::Commit { .. }
                | Effect::Rollback { .. }
                | Effect::Savepoint(_)
                | Effect::Release(_)
                | Effect::RollbackTo(_)
                | Effect::SetTransaction
        );
        control && !self.snapshot.is_single()
    }

    /// Before a transaction command in a batch: a backend beside the deferred transaction has no part in it.
    pub(super) async fn leave_for_control(&mut self) -> Result<(), End> {
        if self.phase == Phase::Idle {
            self.park_at_rest();
        }
        let beside = self
            .link
            .as_ref()
            .is_some_and(|link| matches!(link.hold, Hold::Aside | Hold::AsideTransaction));
        if beside && self.deferred.is_some() {
            self.leave_link().await?;
            self.park_or_release().await?;
        }
        Ok(())
    }

    /// A kept backend at rest steps aside, so that a transaction may begin on any shard.
    pub(super) fn park_at_rest(&mut self) {
        if self.at_rest() && !self.snapshot.is_single() {
            self.cancel.detach();
            self.parked.extend(self.link.take());
        }
    }

    /// Before something is planned: a setting made earlier in this batch must have taken effect, and the end of a failed
    /// transaction be known.
    pub(super) async fn settle_effects(&mut self) -> Result<(), End> {
        if !std::mem::take(&mut self.unsettled) {
            return Ok(());
        }
        if self.fails_there() && self.phase == Phase::Batch {
            return Box::pin(self.leave_failed()).await;
        }
        if self.pipeline.is_empty() {
            // It was answered before, on a Flush or for something else.
            self.take_over_settings();
            return Ok(());
        }
        self.settle().await?;
        self.refresh();
        Ok(())
    }

    /// Whether a statement can change how the next one is planned. COMMIT does where it ends what SET LOCAL has made.
    pub(super) fn changes_meaning(&self, effect: &Effect) -> bool {
        let ends_local =
            matches!(effect, Effect::Commit { .. }) && self.parameters.has_local(planned_by);
        ends_local || changes_meaning(effect)
    }

    /// Whether the link is in a failed transaction, and what stands behind that may belong elsewhere.
    pub(super) fn fails_there(&self) -> bool {
        let failed = |link: &Link| link.status == Status::Failed;
        self.link.as_deref().is_some_and(failed) && !self.snapshot.is_single()
    }

    /// What ends the failed transaction, or goes back in it, was sent in this batch: what follows is none of it, or of one
    /// that works again. A Sync, which ends nothing behind it, tells which.
    async fn leave_failed(&mut self) -> Result<(), End> {
        self.leave_link().await?;
        let over = self
            .link
            .as_ref()
            .is_some_and(|link| link.status == Status::Idle);
        if self.skip {
            return Ok(());
        }
        if !over {
            // It works again, or another has begun: with the settings of before.
            self.refresh();
            return Ok(());
        }
        self.portals.clear();
        if self.parameters.in_transaction() {
            self.transaction_ends(false);
        }
        self.leaves_gate();
        self.park_or_release().await?;
        self.refresh();
        Ok(())
    }
}

/// Whether a statement can change how the next one is planned.
fn changes_meaning(effect: &Effect) -> bool {
    match effect {
        Effect::Set { name, .. } | Effect::Reset(name) => planned_by(name),
        Effect::ResetAll | Effect::DiscardAll | Effect::Rollback { .. } | Effect::RollbackTo(_) => {
            true
        }
        Effect::SetEach(_)
        | Effect::None
        | Effect::Begin
        | Effect::Commit { .. }
        | Effect::Savepoint(_)
        | Effect::Release(_)
        | Effect::SetTransaction
        | Effect::Deallocate(_)
        | Effect::Prepare(_)
        | Effect::Execute { .. }
        | Effect::Declare { .. }
        | Effect::Cursor
        | Effect::CopyIn
        | Effect::CopyOut
        | Effect::Listen(_)
        | Effect::Unlisten(_)
        | Effect::Notify
        | Effect::Channels
        | Effect::Pins(_)
        | Effect::TwoPhase
        | Effect::Draws
        | Effect::Opaque => false,
    }
}

/// Whether plans depend on a setting.
fn planned_by(name: &str) -> bool {
    matches!(
        name,
        "search_path"
            | "role"
            | "session_authorization"
            | "standard_conforming_strings"
            | "client_encoding"
            | "transform_null_equals"
    )
}
