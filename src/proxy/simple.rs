//! The simple protocol: a Query is one batch; all its statements run on one shard, or none does. FunctionCall too.

use super::{
    gather::{Bound, Scatter},
    holding::Passed,
    link::Hold,
    local::own_setting,
    place::Place,
    reply::{self as wording, session as reply},
    request::{POISON, Stop, ends_transaction},
    session::{End, Note, Phase, Session},
    unseen::Judged,
};
use crate::{
    gate::Came,
    plan::{Explains, Plan, StatementPlan, Values, cache::Planned, unroutable::Unroutable},
    protocol::pipeline::{Origin, Request},
    sql::{
        scan::pieces,
        statement::{Effect, PinReason},
    },
    wire::{
        backend::{Status, put_complete},
        frame::HEADER,
        frontend::{self, put_parse},
        notice::{Notice, Words},
    },
};
use std::sync::Arc;

/// `FirstNormalObjectId` of transam.h: functions below it are PostgreSQL's own.
pub(super) const FIRST_OWN_OID: u32 = 16384;
/// `set_config(text, text, boolean)` in pg_proc.dat.
const SET_CONFIG_OID: u32 = 2078;

impl Session {
    pub(super) async fn query(&mut self, body: &[u8]) -> Result<(), End> {
        let text = match frontend::query(body) {
            Ok(text) => text,
            Err(_malformed) => return self.refuse_query(&reply::malformed().into()).await,
        };
        self.query_text(text).await
    }

    pub(super) async fn query_text(&mut self, text: &[u8]) -> Result<(), End> {
        self.settle_effects().await?;
        if self.skip {
            // What stood before it in its batch has failed.
            return Ok(());
        }
        self.refresh();
        self.unnamed = None;
        self.cursors.close(b"");
        match self.try_query(text).await {
            Ok(()) => Ok(()),
            Err(Stop::End(end)) => Err(end),
            Err(Stop::Refused(notice)) => self.refuse_query(&notice).await,
        }
    }

    async fn try_query(&mut self, text: &[u8]) -> Result<(), Stop> {
        let planned = loop {
            self.sure = false;
            let mut planned = self.database.plans.plan(
                text,
                &[],
                &self.context,
                &self.snapshot,
                self.scratch.get_or_insert_default(),
            );
            if self.names_unseen(&planned.plan) {
                match Box::pin(self.see(text)).await? {
                    Some(seen) => planned = seen,
                    None => return Ok(()),
                }
            }
            let came = self.comes_to_gate(&planned.plan.statements);
            if came == Came::Quiet {
                break planned;
            }
            let values = Values {
                text,
                slots: &planned.slots,
                types: &[],
                bind: None,
            };
            if self.passes_at_once(came, &planned.plan.statements, &values) {
                break planned;
            }
            let asking = self.asks_gate(came, &planned.plan.statements, &values);
            let passed = Box::pin(asking).await?;
            if self.skip {
                // What stood before it in its batch has failed.
                return Ok(());
            }
            if passed == Passed::Now {
                break planned;
            }
        };
        if self.computes(&planned).is_some() {
            return Box::pin(self.query_computed(text, &planned)).await;
        }
        if let Some(draft) = self.asks_for_ours(text, &planned) {
            return Box::pin(self.query_drawn(text, &draft)).await;
        }
        self.run_query(text, planned).await
    }

    /// Runs a Query that is planned.
    pub(super) async fn run_query(&mut self, text: &[u8], planned: Planned) -> Result<(), Stop> {
        // Names of prepared statements stand in it.
        let named = (planned.plan.statements.len() > 1).then(|| Arc::clone(&planned.plan));
        let Some((planned, resolved)) = self.with_names(text, planned).await? else {
            return Ok(());
        };
        let values = Values {
            text,
            slots: &planned.slots,
            types: &[],
            bind: None,
        };
        let statements = planned.plan.statements.as_slice();
        let apart = named.as_ref().map_or(statements, |plan| &plan.statements);
        let listening = self.concerns_listening(statements);
        if listening {
            Box::pin(self.listens_from_now(statements)).await;
        }
        if self.phase == Phase::Idle && statements.iter().any(|statement| self.controls(statement))
        {
            self.park_at_rest();
        }
        if self.must_run_one_by_one(statements) {
            if self.may_run_one_by_one(apart) {
                return Ok(self.run_one_by_one(apart, text)?);
            }
            self.check_behind_failed(statements)?;
        }
        if self.several.is_several() && Box::pin(self.query_of_all(statements)).await? {
            return Ok(());
        }
        if self.concerns_cursors(statements)
            && Box::pin(self.query_cursor(statements, apart, text)).await?
        {
            return Ok(());
        }
        if (self.link.is_none() || self.phase == Phase::Idle)
            && self.pending.is_empty()
            && self.query_here(statements, &values)?
        {
            return Ok(());
        }
        if self.several.is_several()
            && self.has_snapshots()
            && Box::pin(self.query_sequence(text, &planned.plan)).await?
        {
            return Ok(());
        }
        let place = match self.place_together(statements, &values) {
            Ok(Some(place)) => place,
            Ok(None) => return self.judge(text).await,
            Err(refused) if resolved.is_some() && named.is_none() => {
                return Box::pin(self.query_given(refused, text, &planned.plan)).await;
            }
            Err(refused) => {
                let plan = named.as_ref().unwrap_or(&planned.plan);
                return self.query_several(refused, plan, &values).await;
            }
        };
        self.reach_for(place, statements, listening).await?;
        self.send_pending();
        self.vacate_for(text);
        self.send_named(text, planned.plan, resolved).await
    }

    /// What no shard alone can do is done by several, or refused.
    async fn query_several(
        &mut self,
        refused: Notice,
        plan: &Arc<Plan>,
        values: &Values<'_>,
    ) -> Result<(), Stop> {
        self.begin_with_snapshots().await?;
        if let [statement] = plan.statements.as_slice() {
            if lacks_values(statement, values) {
                return self.query_nothing(plan, values.text).await;
            }
            if matches!(statement.effect, Effect::Declare { .. }) {
                return Box::pin(self.query_declare(refused, plan, values.text)).await;
            }
            if let Some(copy) = self.copies_in(statement) {
                return Box::pin(self.query_copy(copy, values.text)).await;
            }
            if let Some(shares) = self.spreads(statement, values)? {
                return Box::pin(self.query_spread(plan, shares, values)).await;
            }
            if statement.explains == Explains::OfSeveral {
                return Box::pin(self.query_explain(refused, values.text)).await;
            }
            if Box::pin(self.query_sourced(values.text, plan, values)).await? {
                return Ok(());
            }
        }
        let together = self.changes(&plan.statements);
        if !together && self.may_run_one_by_one(&plan.statements) {
            return Ok(self.run_one_by_one(&plan.statements, values.text)?);
        }
        Box::pin(self.query_shards(refused, plan, values)).await
    }

    /// A Query has no parameters, as a shard says in PostgreSQL's own words.
    async fn query_nothing(&mut self, plan: &Arc<Plan>, text: &[u8]) -> Result<(), Stop> {
        let hold = match &self.deferred {
            Some(_) => Hold::Bound,
            None => Hold::Loose,
        };
        let shard = self.link_shard().unwrap_or(self.any);
        self.reach(Place { shard, hold }).await?;
        self.send_query(text, Arc::clone(plan));
        Ok(())
    }

    /// Statements that cannot be sent together run one after the other, or are refused.
    pub(super) fn query_apart(
        &mut self,
        refused: Notice,
        statements: &[StatementPlan],
        text: &[u8],
    ) -> Result<(), Stop> {
        if self.may_run_one_by_one(statements) {
            return Ok(self.run_one_by_one(statements, text)?);
        }
        Err(refused.into())
    }

    /// Where the statements of a Query run together; `None`: PostgreSQL must judge them first.
    fn place_together(
        &self,
        statements: &[StatementPlan],
        values: &Values<'_>,
    ) -> Result<Option<Place>, Notice> {
        self.check_together(statements)?;
        let mut chosen: Option<Place> = None;
        for statement in statements {
            let Some(place) = self.place(statement, values)? else {
                return Ok(None);
            };
            chosen = Some(match chosen {
                None => place,
                Some(first) => self.both(first, place)?,
            });
        }
        Ok(Some(chosen.unwrap_or(Place {
            shard: self.any,
            hold: Hold::Loose,
        })))
    }

    /// Whether a text's statements mean something else together than one after the other.
    fn must_run_one_by_one(&self, statements: &[StatementPlan]) -> bool {
        // What stands behind the end of a failed transaction is no part of it.
        let failed = self.status() == Status::Failed;
        statements.len() > 1 && (failed || self.check_message(statements).is_err())
    }

    /// Refuses what stands behind the end of a failed transaction in a text that runs as a whole: it has passed no gate, and
    /// its place is not known.
    fn check_behind_failed(&self, statements: &[StatementPlan]) -> Result<(), Notice> {
        if self.status() != Status::Failed || self.snapshot.is_single() {
            return Ok(());
        }
        let ends = |statement: &StatementPlan| ends_transaction(&statement.effect);
        let from_end = statements.iter().skip_while(|one| !ends(one));
        if from_end.skip(1).all(|one| self.controls(one)) {
            Ok(())
        } else {
            Err(reply::several::end_of_failed_among_others())
        }
    }

    /// A Query of a dump for the state of a sequence; true: it has been sent to the shard where that has come furthest.
    async fn query_sequence(&mut self, text: &[u8], plan: &Arc<Plan>) -> Result<bool, Stop> {
        let Some(shard) = self.shard_of_sequence(text).await? else {
            return Ok(false);
        };
        let hold = Hold::Bound;
        self.reach(Place { shard, hold }).await?;
        self.send_query(text, Arc::clone(plan));
        Ok(true)
    }

    /// A Query that ends the transaction over several shards; true: it has been answered.
    async fn query_of_all(&mut self, statements: &[StatementPlan]) -> Result<bool, Stop> {
        self.check_message(statements)?;
        let [statement] = statements else {
            return Ok(false);
        };
        if !self.ends_several(statement) {
            return Ok(false);
        }
        let tag = self.end_several(&statement.effect).await?;
        put_complete(self.client.out(), tag);
        self.ready_here();
        Ok(true)
    }

    /// Makes the link what the statements need.
    async fn reach_for(
        &mut self,
        mut place: Place,
        statements: &[StatementPlan],
        listening: bool,
    ) -> Result<(), Stop> {
        if statements.len() != 1 && self.deferred.is_some() {
            // Some of them may end the transaction: they run in it, not beside it.
            place.hold = Hold::Bound;
        }
        if listening {
            Box::pin(self.hear_first(statements)).await?;
        }
        self.reach(place).await?;
        self.check_numbers(statements)?;
        self.forget_before(statements).await?;
        if listening {
            Box::pin(self.at_backend(statements)).await?;
        }
        Ok(())
    }

    /// What no shard alone can do is done by several, or refused.
    async fn query_shards(
        &mut self,
        refused: Notice,
        plan: &Arc<Plan>,
        values: &Values<'_>,
    ) -> Result<(), Stop> {
        if self.phase != Phase::Idle || !self.pipeline.is_empty() {
            return Err(refused.into());
        }
        if self.changes(&plan.statements) {
            return Box::pin(self.query_changes(&plan.statements, values.text)).await;
        }
        if let [statement] = plan.statements.as_slice()
            && let Some(shares) = self.spreads(statement, values)?
        {
            return Box::pin(self.query_spread(plan, shares, values)).await;
        }
        if let [statement] = plan.statements.as_slice()
            && let Some(copy) = self.copies_out(statement)
        {
            return Box::pin(self.query_copy_out(&copy, plan, values.text)).await;
        }
        let bound = Bound {
            types: &[],
            tail: None,
        };
        if let Some(scattered) = self.streams(plan, values)
            && self
                .query_scattered(&scattered, values.text, &bound)
                .await?
        {
            return Ok(());
        }
        match self.scatters(plan, values) {
            Some(scatter) => Box::pin(self.query_gathered(&scatter, values.text)).await,
            None => Err(refused.into()),
        }
    }

    async fn query_gathered(&mut self, scatter: &Scatter, text: &[u8]) -> Result<(), Stop> {
        let bound = Bound {
            types: &[],
            tail: None,
        };
        let answer = self.gather(scatter, text, &bound).await?;
        self.send_query(answer.text.as_bytes(), Arc::clone(&scatter.plan));
        Ok(())
    }

    /// Sends a Query to the link, which is where all its statements run.
    pub(super) fn send_query(&mut self, text: &[u8], plan: Arc<Plan>) {
        let own = self.with_own_defaults(text, &plan);
        let Some(link) = &mut self.link else {
            return;
        };
        frontend::put_query(link.lease.stream.out(), own.as_deref().unwrap_or(text));
        link.spent |= self.phase == Phase::Batch;
        link.lease.unnamed = None;
        plan.statements.iter().for_each(|one| link.sends(one));
        self.cursors_go_there(&plan.statements, text);
        let Some(link) = &mut self.link else {
            return;
        };
        link.opaque |= plan
            .statements
            .iter()
            .any(|statement| matches!(statement.effect, Effect::Opaque | Effect::Channels));
        for statement in &plan.statements {
            self.pin_before(&statement.effect);
        }
        let matters = plan
            .statements
            .iter()
            .any(|statement| statement.effect != Effect::None);
        self.running = matters.then_some((plan, 0));
        self.pipeline
            .asked(Request::Query, Origin::Client, Note::Nothing);
        self.phase = Phase::Answering;
    }

    /// Whether statements of one message may stand together: none changes how those behind it are planned, and none is
    /// ours alone.
    fn check_together(&self, statements: &[StatementPlan]) -> Result<(), Notice> {
        if let [before @ .., _last] = statements
            && !self.snapshot.is_single()
            && before
                .iter()
                .any(|statement| self.changes_meaning(&statement.effect))
        {
            return Err(reply::several::meaning_changes_within());
        }
        if let [before @ .., _last] = statements {
            self.check_reset(before)?;
        }
        if let Some((name, _)) = statements
            .iter()
            .find_map(|statement| own_setting(&statement.effect))
        {
            let notice = reply::bad_setting(
                name,
                "It is set in a message of its own, outside a failed transaction.".to_owned(),
            );
            return Err(notice);
        }
        Ok(())
    }

    /// Two statements of one message: they must agree on the shard.
    fn both(&self, first: Place, second: Place) -> Result<Place, Notice> {
        let hold = first.hold.max(second.hold);
        match (first.hold, second.hold) {
            (Hold::Bound, Hold::Bound) if first.shard != second.shard => {
                Err(reply::several::several_shards_in_query(
                    self.database.shard_name(first.shard),
                    self.database.shard_name(second.shard),
                ))
            }
            (Hold::Bound, _) => Ok(Place {
                shard: first.shard,
                hold,
            }),
            _ => Ok(Place {
                shard: second.shard,
                hold,
            }),
        }
    }

    /// Refuses a Query: an error, then ReadyForQuery; a transaction on a backend fails with it.
    pub(super) async fn refuse_query(&mut self, notice: &Words) -> Result<(), End> {
        let reworded = self.reworded(notice);
        let notice = reworded.as_ref().unwrap_or(notice);
        self.count_refusal(notice);
        self.failed = true;
        let open = self
            .link
            .as_ref()
            .is_some_and(|link| link.status == Status::Transaction);
        if open || !self.pipeline.is_empty() {
            if self.phase == Phase::Batch
                && let Some(link) = &mut self.link
            {
                // What the batch did before this Query is one implicit transaction with it.
                put_parse(link.lease.stream.out(), b"", POISON, b"");
                frontend::put_bare(link.lease.stream.out(), b'S');
                self.pipeline
                    .asked(Request::Parse, Origin::Poison, Note::Nothing);
                self.pipeline
                    .asked(Request::Sync, Origin::Injected, Note::Nothing);
            }
            self.settle().await?;
            let open = self
                .link
                .as_ref()
                .is_some_and(|link| link.status == Status::Transaction);
            if open && let Ok(()) = self.prelude(POISON).await? {
                return Err(super::session::broken(&"a refused statement was accepted"));
            }
        }
        if let Some(deferred) = &mut self.deferred {
            deferred.fail();
        }
        notice.put(self.client.out());
        self.ready_here();
        Ok(())
    }

    /// PostgreSQL judges a text that we cannot read: its error passes; what it accepts is refused.
    async fn judge(&mut self, text: &[u8]) -> Result<(), Stop> {
        match self.judge_there(self.any, text).await? {
            Judged::Answered => Ok(()),
            Judged::GoOn => Err(wording::unroutable(&Unroutable::NotUnderstood).into()),
        }
    }

    pub(super) async fn function_call(&mut self, frame: &[u8]) -> Result<(), End> {
        self.settle_effects().await?;
        if self.skip {
            return Ok(());
        }
        self.refresh();
        let oid = frame
            .get(HEADER..HEADER + 4)
            .and_then(|oid| oid.try_into().ok())
            .map_or(u32::MAX, u32::from_be_bytes);
        let builtin = oid < FIRST_OWN_OID && oid != SET_CONFIG_OID;
        match Box::pin(self.passes_gate_for_call(oid >= FIRST_OWN_OID)).await {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(notice)) => return self.refuse_query(&notice).await,
        }
        let place = match self.place_of_call() {
            Ok(place) => place,
            Err(refused) => return self.refuse_query(&refused.into()).await,
        };
        match self.reach(place).await {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(notice)) => return self.refuse_query(&notice).await,
        }
        if !builtin {
            self.pin(PinReason::Code);
        }
        self.forget_before_call(oid).await?;
        if self.listening.is_some() {
            Box::pin(self.own_notifications(&[])).await;
        }
        if let Some(link) = &mut self.link {
            link.lease.stream.out().extend_from_slice(frame);
            link.opaque = true;
            self.pipeline
                .asked(Request::Function, Origin::Client, Note::Nothing);
            self.phase = Phase::Answering;
        }
        Ok(())
    }
}

/// Whether values would have to come with a query. What is kept for later, or explained, may do without.
fn lacks_values(statement: &StatementPlan, values: &Values<'_>) -> bool {
    let queries = matches!(statement.effect, Effect::None | Effect::Declare { .. })
        && statement.changes.is_none()
        && statement.explains == Explains::No;
    if !queries {
        return false;
    }
    let text = std::str::from_utf8(values.text).ok();
    let pieces = text.and_then(|text| pieces(text, values.slots));
    pieces.is_some_and(|pieces| pieces.iter().any(|piece| piece.parameter().is_some()))
}
