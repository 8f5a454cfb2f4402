//! The extended protocol: Parse to Sync. A Parse waits here until its shard is known; a statement is prepared again on
//! each backend that needs it, under a name of its own.

use super::{
    holding::Passed,
    ids::{Computing, Filled},
    link::{Hold, Link},
    local::put_explanation_columns,
    oids::own_types,
    place::{Place, changes_meaning},
    prepared::{Fit, Meaning, Prepared, identity, server_name},
    reply::{self as wording, session as reply},
    request::{Stop, ends_transaction},
    resetting::resets_all,
    session::{End, Note, Phase, Portal, Session},
    sql_prepared::{Execution, Meant},
};
use crate::{
    catalog::snapshot::Snapshot,
    gate::Came,
    plan::{Override, StatementPlan, Target, Values, unroutable::Unroutable},
    protocol::pipeline::{Origin, Request},
    sql::statement::{Effect, PinReason},
    wire::{
        backend::{Status, put_complete},
        frame::{self},
        frontend::{self, Bind, Named, Parse, put, put_bind_head, put_named, put_parse},
        notice::Notice,
    },
};
use smallvec::SmallVec;
use std::{borrow::Cow, sync::Arc};

impl Session {
    pub(super) async fn parse(&mut self, body: &[u8]) -> Result<(), Stop> {
        let parse = Parse::decode(body).map_err(|_malformed| reply::malformed())?;
        self.settle_effects().await?;
        if self.skip {
            return Ok(());
        }
        if !parse.name.is_empty() && self.statements.contains_key(parse.name) {
            self.flush_pending().await?;
            return Err(reply::statement_exists(parse.name).into());
        }
        self.tally.client_parses += 1;
        self.vacate_for(parse.text);
        let types: SmallVec<[u32; 4]> = parse.types().collect();
        self.sure = false;
        self.know_types(&types).await;
        let mut planned = self.plan_now(parse.text, &types);
        if self.names_unseen(&planned.plan) {
            Box::pin(self.look_first()).await;
            planned = self.plan_now(parse.text, &types);
        }
        let (text, planned, computing) = match self.computing(parse.text, &types, &planned) {
            Some((Filled { text, planned }, computing)) => {
                (Cow::Owned(text), planned, Some(computing))
            }
            None => (Cow::Borrowed(parse.text), planned, None),
        };
        let Meant {
            planned,
            sent,
            executes,
        } = self.meant(&text, planned)?;
        let failed = self.status() == Status::Failed;
        if let [statement] = planned.plan.statements.as_slice()
            && let Target::Refused(reason) = &statement.target
            && !failed
            && !statement.may_use_several()
            && !executes.as_deref().is_some_and(Execution::may_use_several)
            && !matches!(statement.effect, Effect::Declare { .. })
        {
            return Err(wording::unroutable(reason).into());
        }
        let prepared = Arc::new(Prepared {
            id: identity(
                self.shared.seed,
                self.context.digest,
                sent.as_deref().unwrap_or(&text),
                parse.raw_types(),
            ),
            sent: sent.map(Vec::into_boxed_slice),
            text: text.into(),
            raw_types: parse.raw_types().into(),
            types,
            plan: planned.plan,
            slots: planned.slots.as_slice().into(),
            unnamed: parse.name.is_empty(),
            meaning: self.meaning(),
            told: Arc::default(),
            computing,
            executes,
        });
        self.keep_parsed(parse.name, prepared);
        Ok(())
    }

    /// From now on the name means this, which waits for its shard to be known.
    fn keep_parsed(&mut self, name: &[u8], prepared: Arc<Prepared>) {
        if prepared.unnamed {
            self.unnamed = Some(Arc::clone(&prepared));
        } else {
            self.statements.insert(name.into(), Arc::clone(&prepared));
            self.info.set_prepared(self.statements.len());
        }
        self.unconfirmed.push(name.into());
        self.pending.push(prepared);
    }

    pub(super) async fn bind(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        let bind = self.bind_of(body)?;
        self.settle_effects().await?;
        self.unbind_scattered(bind.portal).await?;
        if self.skip {
            return Ok(());
        }
        let prepared = self.prepared(bind.statement).await?;
        self.sure = false;
        let Some(prepared) = self.bound_and_passed(&bind, prepared).await? else {
            return Ok(());
        };
        let filled = self.filled(&prepared, &bind).await?;
        let (bind, frame) = chosen(filled.as_deref(), bind, frame)?;
        let values = Values {
            text: &prepared.text,
            slots: &prepared.slots,
            types: &prepared.types,
            bind: Some(&bind),
        };
        if let Some(statement) = prepared.statement() {
            self.check_in_own(&statement.effect)?;
            let alone = std::slice::from_ref(statement);
            let listening = self.concerns_listening(alone);
            if listening {
                Box::pin(self.listens_from_now(alone)).await;
            }
            if self.controls(statement) {
                self.leave_for_control().await?;
            }
            if self.concerns_cursors(alone) && Box::pin(self.bind_cursor(&prepared, &bind)).await? {
                return Ok(());
            }
            if self.answered_here(statement) {
                return self.bind_here(&prepared, bind.portal).await;
            }
            if listening {
                Box::pin(self.hear_first(alone)).await?;
            }
            let placed = match self.place_in_batch(statement, &values).await? {
                _ if self.skip => return Ok(()),
                Ok(placed) => placed,
                Err(refused) if prepared.executes.is_some() => {
                    return Box::pin(self.bind_given(refused, &prepared, &bind)).await;
                }
                Err(refused) => {
                    return Box::pin(self.bind_shards(refused, &prepared, &bind, &values)).await;
                }
            };
            let Some(place) = placed else {
                return self.bind_judged().await;
            };
            self.reach(for_portal(place, bind.portal)).await?;
            if listening {
                Box::pin(self.at_backend(alone)).await?;
            }
        } else {
            let (shard, hold) = (self.link_shard().unwrap_or(self.any), Hold::Loose);
            self.reach(Place { shard, hold }).await?;
        }
        self.bind_there(&bind, frame, prepared).await
    }

    /// What a statement that is bound means now, when it may run; `None`: it was answered or skipped.
    async fn bound_and_passed(
        &mut self,
        bind: &Bind<'_>,
        prepared: Arc<Prepared>,
    ) -> Result<Option<Arc<Prepared>>, Stop> {
        let mut prepared = self.bound_now(bind.statement, prepared)?;
        if self.names_unseen(&prepared.plan) {
            match Box::pin(self.see_bound(bind.statement, prepared)).await? {
                Some(seen) => prepared = seen,
                None => return Ok(None),
            }
        }
        match self.comes_to_gate(&prepared.plan.statements) {
            Came::Quiet => Ok(Some(prepared)),
            came @ (Came::First | Came::Again) => {
                Box::pin(self.binds_at_gate(came, bind, prepared)).await
            }
        }
    }

    /// What a statement that is bound means when it has passed the gate; `None`: it was skipped.
    async fn binds_at_gate(
        &mut self,
        mut came: Came,
        bind: &Bind<'_>,
        mut prepared: Arc<Prepared>,
    ) -> Result<Option<Arc<Prepared>>, Stop> {
        loop {
            let values = Values {
                text: &prepared.text,
                slots: &prepared.slots,
                types: &prepared.types,
                bind: Some(bind),
            };
            let asking = self.asks_gate(came, &prepared.plan.statements, &values);
            let passed = asking.await?;
            if self.skip {
                return Ok(None);
            }
            if passed == Passed::Now {
                return Ok(Some(prepared));
            }
            prepared = self.executes_now(bind.statement, prepared)?;
            prepared = self.plan_again(bind.statement, prepared);
            came = self.comes_to_gate(&prepared.plan.statements);
            if came == Came::Quiet {
                return Ok(Some(prepared));
            }
        }
    }

    /// Binds on the link, which has been reached.
    async fn bind_there(
        &mut self,
        bind: &Bind<'_>,
        frame: &[u8],
        prepared: Arc<Prepared>,
    ) -> Result<(), Stop> {
        if self.skip {
            return Ok(());
        }
        self.send_pending();
        self.make_fit_to_execute(&prepared).await?;
        if self.skip {
            return Ok(());
        }
        self.judge_binary(&prepared, bind).await?;
        if self.skip {
            return Ok(());
        }
        self.send_bind(bind, frame, Arc::clone(&prepared));
        self.note_arrays(bind.portal, &prepared);
        Ok(())
    }

    /// Binds what is answered here.
    async fn bind_here(&mut self, prepared: &Arc<Prepared>, portal: &[u8]) -> Result<(), Stop> {
        self.answer_pending().await?;
        self.made(vec![b'2', 0, 0, 0, 4], Note::Nothing);
        self.portals
            .insert(portal.into(), Portal::Here(Arc::clone(prepared)));
        Ok(())
    }

    /// What a statement that is bound means now.
    pub(super) fn bound_now(
        &mut self,
        name: &[u8],
        prepared: Arc<Prepared>,
    ) -> Result<Arc<Prepared>, Stop> {
        let prepared = self.executes_now(name, prepared)?;
        self.tally.binds += 1;
        Ok(self.planned_anew(name, prepared))
    }

    /// The Bind, of which only the head is there when it passes on as it arrives.
    fn bind_of<'a>(&self, body: &'a [u8]) -> Result<Bind<'a>, Notice> {
        if self.client_rest.bytes > 0 {
            Bind::head(body).ok_or_else(reply::malformed)
        } else {
            Bind::decode(body).map_err(|_malformed| reply::malformed())
        }
    }

    /// Binds what we do not understand: PostgreSQL's error, or a refusal.
    async fn bind_judged(&mut self) -> Result<(), Stop> {
        self.reach(Place {
            shard: self.any,
            hold: Hold::Aside,
        })
        .await?;
        self.send_pending();
        self.settle().await?;
        if self.skip {
            Ok(())
        } else {
            Err(wording::unroutable(&Unroutable::NotUnderstood).into())
        }
    }

    /// Whether a Bind that has not arrived whole can be passed on as it arrives: when nothing in it decides where it goes,
    /// and its statement has no effect that must be followed. The parameters are then the server's to judge.
    pub(super) fn streams_bind(&mut self, start: &[u8]) -> bool {
        if self.phase == Phase::Idle {
            self.refresh();
        }
        let Some(bind) = Bind::head(start).filter(|_| self.snapshot.is_single()) else {
            return false;
        };
        let prepared = if bind.statement.is_empty() {
            self.unnamed.as_ref()
        } else {
            self.statements.get(bind.statement)
        };
        prepared.is_some_and(|prepared| {
            prepared.meaning == self.meaning()
                && prepared.statement().is_some_and(|statement| {
                    statement.effect == Effect::None && matches!(statement.target, Target::Fixed(_))
                })
        })
    }

    /// Sends a Bind to the link, with the statement's name there.
    fn send_bind(&mut self, bind: &Bind<'_>, frame: &[u8], prepared: Arc<Prepared>) {
        let Some(link) = &mut self.link else { return };
        if prepared.unnamed {
            link.lease.stream.out().extend_from_slice(frame);
        } else {
            put_bind_head(
                link.lease.stream.out(),
                bind.portal,
                prepared.server_name().as_bytes(),
                bind.tail,
                self.client_rest.bytes,
            );
        }
        if let Some(statement) = prepared.statement() {
            link.sends(statement);
            self.cursors_go_there(std::slice::from_ref(statement), &prepared.text);
        }
        if !bind.portal.is_empty() {
            self.portal_goes_there(bind.portal);
        }
        self.client_rest.forward = true;
        let note = if prepared.unnamed {
            Note::Nothing
        } else {
            Note::Uses(prepared.id)
        };
        self.pipeline.asked(Request::Bind, Origin::Client, note);
        let named = (!prepared.unnamed).then(|| Arc::clone(&prepared));
        self.bound = named.map(|prepared| (bind.portal.into(), prepared));
        let matters = prepared
            .statement()
            .is_some_and(|statement| statement.effect != Effect::None);
        if matters {
            self.portals
                .insert(bind.portal.into(), Portal::There(prepared));
        } else if !self.portals.is_empty() {
            self.portals.remove(bind.portal);
        }
    }

    pub(super) async fn describe(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        match Named::decode(body).map_err(|_malformed| reply::malformed())? {
            Named::Portal(portal) => self.describe_portal(frame, portal).await,
            Named::Statement(name) => self.describe_statement(name).await,
        }
    }

    async fn describe_portal(&mut self, frame: &[u8], portal: &[u8]) -> Result<(), Stop> {
        self.flush_pending().await?;
        if let Some(columns) = self.columns_over_shards(portal) {
            let mut out = Vec::new();
            put(&mut out, b'T', |out| out.extend_from_slice(columns));
            self.made(out, Note::Nothing);
            return Ok(());
        }
        if let Some(Portal::Here(prepared)) = self.portals.get(portal) {
            let mut out = Vec::new();
            describe_here(prepared, &mut out);
            self.made(out, Note::Nothing);
            return Ok(());
        }
        if let Some(Portal::Copying(_)) = self.portals.get(portal) {
            self.made(vec![b'n', 0, 0, 0, 4], Note::Nothing);
            return Ok(());
        }
        if let Some(Portal::Writing(_)) = self.portals.get(portal) {
            return Box::pin(self.describe_spread(portal)).await;
        }
        if let Some(Portal::Cursor(command)) = self.portals.get(portal) {
            let mut out = Vec::new();
            self.describe_command(command, &mut out);
            self.made(out, Note::Nothing);
            return Ok(());
        }
        self.go_to_portal(portal).await?;
        if self.skip {
            return Ok(());
        }
        let note = match &self.bound {
            Some((name, prepared)) if **name == *portal => {
                Note::DescribedPortal(Arc::clone(prepared))
            }
            _ => Note::Nothing,
        };
        self.forward(frame, Request::Describe, note, || {
            reply::no_such_portal(portal)
        })
    }

    async fn describe_statement(&mut self, name: &[u8]) -> Result<(), Stop> {
        let prepared = self.prepared(name).await?;
        let prepared = self.executes_now(name, prepared)?;
        if prepared
            .statement()
            .is_some_and(|statement| self.answered_here(statement))
        {
            self.answer_pending().await?;
            let mut out = vec![b't', 0, 0, 0, 6, 0, 0];
            describe_here(&prepared, &mut out);
            self.made(out, Note::Nothing);
            return Ok(());
        }
        if prepared
            .statement()
            .is_some_and(|one| self.concerns_cursors(std::slice::from_ref(one)))
            && self.describe_fetch(&prepared).await?
        {
            return Ok(());
        }
        self.reach_any(&prepared).await?;
        self.send_pending();
        if let Err(stop) = self.make_fit_to_execute(&prepared).await {
            if let (Stop::Refused(_), Some(types)) = (&stop, prepared.told.raw_types()) {
                // As PostgreSQL, which finds out about the columns only after the parameters.
                let mut out = Vec::new();
                put(&mut out, b't', |out| {
                    let types = prepared.own_types(types);
                    let count = u16::try_from(types.len() / 4).unwrap_or(u16::MAX);
                    out.extend_from_slice(&count.to_be_bytes());
                    out.extend_from_slice(types);
                });
                self.made(out, Note::Nothing);
            }
            return Err(stop);
        }
        if !self.skip {
            self.send_describe(&prepared, Origin::Client);
        }
        Ok(())
    }

    pub(super) async fn execute(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        let (portal, most) = execute_of(body).map_err(|_malformed| reply::malformed())?;
        self.flush_pending().await?;
        if self.columns_over_shards(portal).is_some() {
            return Box::pin(self.execute_scattered(portal, most)).await;
        }
        let note = match self.portals.get(portal) {
            Some(Portal::Here(prepared)) => {
                let prepared = Arc::clone(prepared);
                if !self.pipeline.is_empty() {
                    // What an error before it skips has done nothing here either.
                    self.settle().await?;
                }
                return if self.skip {
                    Ok(())
                } else {
                    self.execute_made(&prepared).await
                };
            }
            Some(Portal::Writing(_)) => {
                return Box::pin(self.execute_spread(portal, most)).await;
            }
            Some(Portal::Copying(_)) => return Box::pin(self.execute_copy(portal)).await,
            Some(Portal::Cursor(_)) => return Box::pin(self.execute_command(portal, most)).await,
            Some(Portal::There(prepared)) => Note::Executed(Arc::clone(prepared)),
            None => Note::Nothing,
        };
        self.go_to_portal(portal).await?;
        if self.skip {
            return Ok(());
        }
        if let Note::Executed(prepared) = &note {
            self.unsettled |= prepared
                .statement()
                .is_some_and(|statement| changes_meaning(&statement.effect));
        }
        if let (Note::Executed(prepared), true) = (&note, self.several.goes_on()) {
            Box::pin(self.execute_everywhere(prepared)).await?;
            if self.skip {
                return Ok(());
            }
        }
        if let Note::Executed(prepared) = &note
            && let Some(statement) = prepared.statement()
        {
            self.before_execute(statement).await?;
            if self.skip {
                return Ok(());
            }
        }
        if let (Note::Executed(prepared), Some(link)) = (&note, &mut self.link) {
            link.opaque |= prepared.statement().is_some_and(is_opaque);
        }
        let resets = matches!(&note, Note::Executed(prepared) if prepared.statement().is_some_and(resets_all));
        let forgets = matches!(&note, Note::Executed(prepared) if prepared.statement().is_some_and(forgets_statements));
        self.forward(frame, Request::Execute, note, || {
            reply::no_such_portal(portal)
        })?;
        if resets {
            self.bring_back_within();
        }
        if forgets {
            // Which statements the backend has afterwards is known when it has answered.
            self.settle().await?;
        }
        Ok(())
    }

    /// Before a statement runs on the link: what it leaves there, and what must be known before it.
    async fn before_execute(&mut self, statement: &StatementPlan) -> Result<(), Stop> {
        self.check_code(statement)?;
        self.pin_before(&statement.effect);
        if statement.effect == Effect::Pins(PinReason::Sequence) {
            // Where the last number was drawn is known when all before it is answered.
            self.settle().await?;
            if self.skip {
                return Ok(());
            }
            self.check_numbers(std::slice::from_ref(statement))?;
        }
        self.forget_within(statement).await?;
        Ok(())
    }

    /// Execute of a portal that is answered here, if it still can be.
    async fn execute_made(&mut self, prepared: &Arc<Prepared>) -> Result<(), Stop> {
        let Some(statement) = prepared.statement() else {
            return Ok(());
        };
        if self.ends_several(statement) {
            let tag = Box::pin(self.end_several(&statement.effect)).await?;
            if !self.skip {
                let mut out = Vec::new();
                put_complete(&mut out, tag);
                self.made(out, Note::Nothing);
            }
            return Ok(());
        }
        let open = self.status() != Status::Idle && self.deferred.is_none();
        if open && self.controls(statement) {
            // Bound before a shard was reached: here it would end nothing.
            return Err(reply::bound_before().into());
        }
        self.execute_here(prepared)
    }

    pub(super) async fn close(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        match Named::decode(body).map_err(|_malformed| reply::malformed())? {
            Named::Statement(name) => {
                if !self.pending.is_empty() {
                    self.flush_pending().await?;
                }
                if name.is_empty() {
                    self.unnamed = None;
                } else if let Some((name, prepared)) = self.statements.remove_entry(name) {
                    self.info.set_prepared(self.statements.len());
                    self.closed.push((name, prepared));
                    self.made(vec![b'3', 0, 0, 0, 4], Note::Closed);
                    return Ok(());
                }
                self.made(vec![b'3', 0, 0, 0, 4], Note::Nothing);
                Ok(())
            }
            Named::Portal(portal) => {
                self.flush_pending().await?;
                if self.columns_over_shards(portal).is_some() {
                    Box::pin(self.close_over_shards(portal)).await?;
                    self.made(vec![b'3', 0, 0, 0, 4], Note::Nothing);
                    return Ok(());
                }
                let here = matches!(
                    self.portals.remove(portal),
                    Some(
                        Portal::Here(_)
                            | Portal::Writing(_)
                            | Portal::Copying(_)
                            | Portal::Cursor(_)
                    )
                );
                if !here {
                    self.go_to_portal(portal).await?;
                }
                if self.skip {
                    return Ok(());
                }
                if here || self.link.is_none() {
                    self.made(vec![b'3', 0, 0, 0, 4], Note::Nothing);
                    return Ok(());
                }
                self.forward(frame, Request::Close, Note::Nothing, || {
                    reply::no_such_portal(portal)
                })
            }
        }
    }

    pub(super) async fn flush_request(&mut self, frame: &[u8]) -> Result<(), Stop> {
        self.flush_pending().await?;
        if let Some(link) = &mut self.link
            && !self.pipeline.is_empty()
        {
            link.lease.stream.out().extend_from_slice(frame);
        }
        Ok(())
    }

    pub(super) async fn sync(&mut self) -> Result<(), End> {
        if self.pipeline.copying_in()
            && let Some(link) = &mut self.link
        {
            // Ignored by the server, unless the COPY has failed already and we do not know it yet.
            frontend::put_bare(link.lease.stream.out(), b'S');
            self.pipeline
                .asked(Request::Sync, Origin::Client, Note::Nothing);
            return Ok(());
        }
        if self.for_batch {
            return Box::pin(self.end_batch()).await;
        }
        match self.flush_pending().await {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(notice)) => self.refuse(&notice),
        }
        if self.scattered.is_some() {
            match Box::pin(self.leave_scattered()).await {
                Ok(()) => {}
                Err(Stop::End(end)) => return Err(end),
                Err(Stop::Refused(notice)) => self.refuse(&notice),
            }
        }
        let needed = self.link.as_ref().is_some_and(|link| {
            // A backend that took part in the batch ends its implicit transaction; a kept one that did not needs none.
            !self.pipeline.is_empty() || self.phase == Phase::Batch || link.status != Status::Idle
        });
        if needed && let Some(link) = &mut self.link {
            frontend::put_bare(link.lease.stream.out(), b'S');
            self.pipeline
                .asked(Request::Sync, Origin::Client, Note::Nothing);
            self.phase = Phase::Answering;
            return Ok(());
        }
        self.ready_here();
        Ok(())
    }

    /// Sends a message as it stands, or says that what it names is not there.
    pub(super) fn forward(
        &mut self,
        frame: &[u8],
        request: Request,
        note: Note,
        missing: impl FnOnce() -> Notice,
    ) -> Result<(), Stop> {
        let Some(link) = &mut self.link else {
            return Err(missing().into());
        };
        link.lease.stream.out().extend_from_slice(frame);
        self.pipeline.asked(request, Origin::Client, note);
        Ok(())
    }

    /// What the plans of this session's statements depend on.
    pub(super) fn meaning(&self) -> Meaning {
        let Snapshot { epoch, schema, .. } = *self.snapshot;
        Meaning {
            context: self.context.digest,
            epoch: epoch.0,
            schema,
            generation: self.generation,
        }
    }

    /// The statement, planned again when settings or the catalog have changed since it was parsed: as in PostgreSQL a
    /// prepared statement means what its text means now.
    pub(super) fn planned_anew(&mut self, name: &[u8], prepared: Arc<Prepared>) -> Arc<Prepared> {
        let parsed_just_now = self
            .pending
            .iter()
            .any(|pending| Arc::ptr_eq(pending, &prepared));
        if parsed_just_now {
            return prepared;
        }
        self.plan_again(name, prepared)
    }

    /// The same, of a statement that may wait for its shard.
    fn plan_again(&mut self, name: &[u8], prepared: Arc<Prepared>) -> Arc<Prepared> {
        let meaning = self.meaning();
        if prepared.meaning == meaning || prepared.executes.is_some() {
            return prepared;
        }
        let types = &prepared.types;
        let planned = self.database.plans.plan(
            prepared.asked(),
            types,
            &self.context,
            &self.snapshot,
            self.scratch.get_or_insert_default(),
        );
        let (text, planned, computing) = match self.computing(prepared.asked(), types, &planned) {
            Some((Filled { text, planned }, computing)) => (text, planned, Some(computing)),
            None => (prepared.asked().to_vec(), planned, None),
        };
        let computed = |one: &Option<Arc<Computing>>| one.as_ref().map_or(0, |one| one.count());
        let told = if computed(&computing) == computed(&prepared.computing) {
            Arc::clone(&prepared.told)
        } else {
            Arc::default()
        };
        let own = self.with_own_defaults(&text, &planned.plan);
        let anew = Arc::new(Prepared {
            id: identity(
                self.shared.seed,
                self.context.digest,
                own.as_deref().unwrap_or(&text),
                &prepared.raw_types,
            ),
            sent: own.map(Vec::into_boxed_slice),
            text: text.into(),
            raw_types: prepared.raw_types.clone(),
            types: types.clone(),
            plan: planned.plan,
            slots: planned.slots.as_slice().into(),
            unnamed: prepared.unnamed,
            meaning,
            told,
            computing,
            executes: None,
        });
        if anew.unnamed {
            self.unnamed = Some(Arc::clone(&anew));
        } else {
            self.statements.insert(name.into(), Arc::clone(&anew));
        }
        for pending in &mut self.pending {
            if Arc::ptr_eq(pending, &prepared) {
                *pending = Arc::clone(&anew);
            }
        }
        anew
    }

    async fn prepared(&mut self, name: &[u8]) -> Result<Arc<Prepared>, Stop> {
        let found = if name.is_empty() {
            self.unnamed.as_ref()
        } else {
            self.statements.get(name)
        };
        if let Some(found) = found {
            return Ok(Arc::clone(found));
        }
        // What was parsed before it is answered before it.
        self.flush_pending().await?;
        Err(reply::no_such_statement(name).into())
    }

    /// Sends the Parses that wait for a shard to the link.
    pub(super) fn send_pending(&mut self) {
        for prepared in std::mem::take(&mut self.pending) {
            let refused = self
                .link
                .as_ref()
                .is_some_and(|link| link.status == Status::Failed)
                && prepared
                    .statement()
                    .is_some_and(|statement| !ends_transaction(&statement.effect));
            let Some(link) = &mut self.link else { continue };
            if !prepared.unnamed && !refused && link.parsing.contains(&prepared.id) {
                self.made(vec![b'1', 0, 0, 0, 4], Note::Parsed(prepared));
                continue;
            }
            if !prepared.unnamed && link.lease.statements.touch(prepared.id) {
                // What tables are like now decides about a statement that is parsed now: one that was parsed here
                // before may be of other types.
                link.lease.statements.spoil(prepared.id);
            }
            self.send_what_it_executes(&prepared);
            self.send_parse(&prepared, Origin::Client);
        }
    }

    /// Makes the link a backend that has the statement, as the client knows it: with the parameters and columns that it
    /// was told. Where a table has changed so that there is none, the statement is refused in PostgreSQL's words.
    pub(super) async fn make_fit(&mut self, prepared: &Arc<Prepared>) -> Result<(), Stop> {
        let told = &prepared.told;
        if prepared.unnamed || told.is_nothing() {
            let known = |link: &mut Link| link.knows(prepared.id, prepared.unnamed);
            if !self.link.as_deref_mut().is_some_and(known) {
                self.send_parse(prepared, Origin::Injected);
            }
            return Ok(());
        }
        // Asked as it is here, then parsed anew: what is still another statement after that is so everywhere.
        let (mut asked, mut parsed_anew) = (false, false);
        loop {
            let Some(link) = &mut self.link else {
                return Ok(());
            };
            if link.parsing.contains(&prepared.id) {
                self.settle().await?;
            }
            let Some(link) = &mut self.link else {
                return Ok(());
            };
            let there = link.lease.statements.shape(prepared.id);
            match there.map(|shape| told.fit(shape)) {
                _ if self.skip => return Ok(()),
                Some(Fit::Fits) => return Ok(()),
                Some(_) if parsed_anew => return Err(reply::result_type_changed().into()),
                Some(Fit::Unknown) if !asked => asked = true,
                Some(_) | None => {
                    if link.lease.statements.touch(prepared.id) {
                        link.lease.statements.spoil(prepared.id);
                    }
                    self.send_parse(prepared, Origin::Injected);
                    if told.gives_nothing() {
                        return Ok(());
                    }
                    parsed_anew = true;
                }
            }
            self.send_describe(prepared, Origin::Injected);
            self.settle().await?;
        }
    }

    pub(super) fn send_describe(&mut self, prepared: &Arc<Prepared>, origin: Origin) {
        let Some(link) = &mut self.link else { return };
        let name = prepared.server_name();
        put_named(
            link.lease.stream.out(),
            b'D',
            Named::Statement(name.as_bytes()),
        );
        let note = if prepared.unnamed && prepared.computing.is_none() {
            Note::Nothing
        } else {
            Note::Described(Arc::clone(prepared))
        };
        self.pipeline.asked(Request::Describe, origin, note);
    }

    pub(super) fn send_parse(&mut self, prepared: &Arc<Prepared>, origin: Origin) {
        let Some(link) = &mut self.link else { return };
        let limit = link.lease.pool().settings().prepared_statements;
        let spoilt = (!prepared.unnamed && link.lease.statements.is_spoilt(prepared.id))
            .then_some(prepared.id);
        let room = limit.saturating_sub(1 + link.parsing.len());
        let mut next = spoilt;
        while !prepared.unnamed
            && let Some(old) = next.take().or_else(|| link.lease.statements.excess(room))
        {
            let out = link.lease.stream.out();
            put_named(out, b'C', Named::Statement(server_name(old).as_bytes()));
            link.lease.statements.remove(old);
            self.pipeline
                .asked(Request::Close, Origin::Injected, Note::Evicted(old));
        }
        let types = prepared.told.raw_types().unwrap_or(&prepared.raw_types);
        let out = link.lease.stream.out();
        put_parse(
            out,
            prepared.server_name().as_bytes(),
            prepared.sent.as_ref().unwrap_or(&prepared.text),
            types,
        );
        let sees_own = matches!(self.context.pinned, Some(Override::Shard(_)));
        if let Some(oids) = self.snapshot.oids.as_deref().filter(|_| !sees_own)
            && let Some(of) = oids.of_shard(link.shard)
        {
            let from = out.len() - types.len();
            own_types(&mut out[from..], of);
        }
        if prepared.unnamed {
            link.lease.unnamed = Some(prepared.id);
        } else {
            link.parsing.push(prepared.id);
        }
        self.tally.server_parses += 1;
        self.pipeline
            .asked(Request::Parse, origin, Note::Parsed(Arc::clone(prepared)));
    }

    /// The statement exists from now on, whatever fails later in the batch.
    pub(super) fn confirm(&mut self, prepared: &Arc<Prepared>) {
        let statements = &self.statements;
        let unnamed = self.unnamed.as_ref();
        self.unconfirmed.retain(|name| {
            let found = if name.is_empty() {
                unnamed
            } else {
                statements.get(name.as_ref())
            };
            !found.is_some_and(|found| Arc::ptr_eq(found, prepared))
        });
    }

    /// Gives every Parse that waits a backend, because its answer is due.
    pub(super) async fn flush_pending(&mut self) -> Result<(), Stop> {
        let Some(first) = self.pending.first().cloned() else {
            return Ok(());
        };
        if self
            .pending
            .iter()
            .all(|prepared| prepared.statement().is_some_and(|s| self.answered_here(s)))
        {
            return self.answer_pending().await;
        }
        self.reach_any(&first).await?;
        self.send_pending();
        Ok(())
    }

    /// Answers the Parses that wait here when all can be; else on a backend.
    pub(super) async fn answer_pending(&mut self) -> Result<(), Stop> {
        let all_here = self
            .pending
            .iter()
            .all(|prepared| prepared.statement().is_some_and(|s| self.answered_here(s)));
        if !all_here {
            return Box::pin(self.flush_pending()).await;
        }
        for prepared in std::mem::take(&mut self.pending) {
            self.made(vec![b'1', 0, 0, 0, 4], Note::Parsed(prepared));
        }
        Ok(())
    }
}

/// The Bind that is sent, and its message: with what was computed for it, if anything was.
fn chosen<'b>(
    filled: Option<&'b [u8]>,
    own: Bind<'b>,
    frame: &'b [u8],
) -> Result<(Bind<'b>, &'b [u8]), Notice> {
    let Some(filled) = filled else {
        return Ok((own, frame));
    };
    let bind = Bind::decode(filled.get(frame::HEADER..).unwrap_or_default());
    Ok((bind.map_err(|_malformed| reply::malformed())?, filled))
}

/// A named portal lives to the end of the transaction, and may be read in parts.
fn for_portal(place: Place, portal: &[u8]) -> Place {
    if place.hold == Hold::AsideTransaction && !portal.is_empty() {
        Place {
            hold: Hold::Bound,
            ..place
        }
    } else {
        place
    }
}

/// The portal of an Execute, and how many rows it asks for; 0: all of them.
fn execute_of(body: &[u8]) -> Result<(&[u8], u32), frame::DecodeError> {
    let mut body = frame::Body::new(body);
    let portal = body.cstr()?;
    let most = body.i32()?;
    body.end()?;
    // Zero and below are all.
    Ok((portal, u32::try_from(most).unwrap_or(0)))
}

/// Whether a backend has fewer prepared statements after it.
fn forgets_statements(statement: &StatementPlan) -> bool {
    matches!(statement.effect, Effect::DiscardAll | Effect::Deallocate(_))
}

/// Whether a backend may have other settings after it.
fn is_opaque(statement: &StatementPlan) -> bool {
    matches!(statement.effect, Effect::Opaque | Effect::Channels)
}

/// What a statement that is answered here returns: rows of text, or nothing.
fn describe_here(prepared: &Prepared, out: &mut Vec<u8>) {
    let explains = prepared
        .statement()
        .is_some_and(|statement| matches!(statement.target, Target::Explain(_)));
    if explains {
        put_explanation_columns(out);
    } else {
        out.extend_from_slice(&[b'n', 0, 0, 0, 4]);
    }
}
