//! What a client asks: one message after another, planned, given a shard, and sent on.

use super::{
    link::{Hold, Link},
    local::{own_setting, put_explanation_columns},
    prepared::{Meaning, Prepared, identity, server_name},
    reply::{self as wording, session as reply},
    session::{End, Note, Phase, Portal, Rest, Session, told},
};
use crate::{
    catalog::{shard::ShardId, snapshot::Snapshot},
    plan::{Route, StatementPlan, Target, Values, unroutable::Unroutable},
    protocol::pipeline::{Origin, Request},
    sql::statement::{Access, Effect},
    wire::{
        backend::Status,
        frame::{self, HEADER, Header},
        frontend::{self, Bind, Named, Parse, put_bind, put_named, put_parse},
        notice::{Notice, Words},
    },
};
use smallvec::SmallVec;
use std::sync::Arc;

/// Where a statement is to run, and how firmly that binds the transaction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub shard: ShardId,
    pub hold: Hold,
}

/// Why a statement does not go on.
pub(super) enum Stop {
    /// The session is over.
    End(End),
    /// This statement, or the batch it is in, is refused.
    Refused(Box<Words>),
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

impl From<Notice> for Stop {
    fn from(notice: Notice) -> Self {
        Self::Refused(Box::new(notice.into()))
    }
}

impl From<Words> for Stop {
    fn from(words: Words) -> Self {
        Self::Refused(Box::new(words))
    }
}

/// What a handled message leaves to do.
enum Next {
    /// The next message may be read.
    Go,
    /// The answer must come first.
    Pause,
}

impl Session {
    /// Handles the messages that have arrived, as far as the batch allows. True when there was one.
    pub(super) async fn requests(&mut self) -> Result<bool, End> {
        if self.client.buffered().is_empty() {
            return Ok(false);
        }
        self.starved = false;
        let lent = self.client.lend();
        let mut taken = 0;
        let mut outcome = Ok(());
        loop {
            let bytes = &lent.bytes()[taken..];
            match self.next_message(bytes).await {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(end) => {
                    outcome = Err(end);
                    break;
                }
            }
        }
        self.client.restore(lent, taken);
        outcome.map(|()| taken > 0)
    }

    /// Handles one message, or a part of a long one; how many bytes it took, 0 when it cannot go on yet.
    async fn next_message(&mut self, bytes: &[u8]) -> Result<usize, End> {
        if self.client_rest.bytes > 0 {
            return Ok(self.pass_rest(bytes));
        }
        let header = match frame::frontend(bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(0),
            Err(problem) => return Err(told(reply::broken_frame(&problem))),
        };
        if matches!(header.tag, b'd' | b'c' | b'f') {
            return Ok(self.copy_data(header, bytes));
        }
        self.flushed = false;
        let ignored_in_copy = matches!(header.tag, b'S' | b'H') && self.pipeline.copying_in();
        if self.phase == Phase::Answering && !ignored_in_copy {
            return Ok(0);
        }
        if bytes.len() < header.size {
            self.starved = true;
            return Ok(0);
        }
        let link_is_full =
            self.link.as_ref().is_some_and(|link| link.lease.stream.unsent() > crate::net::stream::HIGH_WATER);
        if link_is_full {
            return Ok(0);
        }
        let frame = &bytes[..header.size];
        match self.message(header, frame).await? {
            Next::Go | Next::Pause => Ok(header.size),
        }
    }

    async fn message(&mut self, header: Header, frame: &[u8]) -> Result<Next, End> {
        let body = &frame[HEADER..];
        if header.tag == b'X' {
            return Err(End::Client);
        }
        if self.skip && header.tag != b'S' {
            return Ok(Next::Go);
        }
        self.tally.received_bytes += frame.len() as u64;
        if self.phase == Phase::Idle {
            self.count_begin();
            self.refresh();
        }
        let done = match header.tag {
            b'Q' => return self.query(body).await.map(|()| Next::Pause),
            b'F' => return self.function_call(frame).await.map(|()| Next::Pause),
            b'S' => return self.sync().await.map(|()| Next::Pause),
            b'P' => self.parse(body).await,
            b'B' => self.bind(frame, body).await,
            b'D' => self.describe(frame, body).await,
            b'E' => self.execute(frame, body).await,
            b'C' => self.close(frame, body).await,
            _ => self.flush_request(frame).await,
        };
        match done {
            Ok(()) => {
                self.enter_batch();
                Ok(Next::Go)
            }
            Err(Stop::End(end)) => Err(end),
            Err(Stop::Refused(notice)) => {
                self.enter_batch();
                self.answer_what_came_before().await?;
                self.refuse(&notice);
                Ok(Next::Go)
            }
        }
    }

    /// What was parsed before a refusal is answered before it, and exists after it.
    async fn answer_what_came_before(&mut self) -> Result<(), End> {
        if self.skip {
            return Ok(());
        }
        if self.link.is_some() {
            self.send_pending();
            return Ok(());
        }
        match self.flush_pending().await {
            // Without a backend the Parses go the way of what was refused.
            Ok(()) | Err(Stop::Refused(_)) => Ok(()),
            Err(Stop::End(end)) => Err(end),
        }
    }

    fn enter_batch(&mut self) {
        if self.phase == Phase::Idle {
            self.phase = Phase::Batch;
        }
    }

    /// An error of ours within a batch: at its place in the order, then everything is skipped up to Sync. What the
    /// backend has done in this batch is undone by making it fail too.
    fn refuse(&mut self, notice: &Words) {
        self.count_refusal(notice);
        self.skip = true;
        self.failed = true;
        for prepared in std::mem::take(&mut self.pending) {
            self.forget_parsed(&prepared);
        }
        if let Some(deferred) = &mut self.deferred {
            deferred.fail();
        }
        let mut bytes = Vec::new();
        notice.put(&mut bytes);
        if self.pipeline.is_empty() {
            self.client.out().extend_from_slice(&bytes);
            self.restore_closed();
        } else {
            self.pipeline.made(bytes, true, Note::Nothing);
        }
        let begun = self.link.as_ref().is_some_and(|link| link.hold >= Hold::Loose || link.status != Status::Idle);
        if begun && let Some(link) = &mut self.link {
            put_parse(link.lease.stream.out(), b"", POISON, b"");
            link.lease.unnamed = None;
            self.pipeline.asked(Request::Parse, Origin::Poison, Note::Nothing);
        }
    }

    /// Gives a reply made here at its place in the order.
    pub(super) fn made(&mut self, bytes: Vec<u8>, note: Note) {
        if !self.pipeline.is_empty() {
            return self.pipeline.made(bytes, false, note);
        }
        self.client.out().extend_from_slice(&bytes);
        self.was_given(note);
    }

    /// A reply made here has been given.
    pub(super) fn was_given(&mut self, note: Note) {
        match note {
            Note::Parsed(prepared) => self.confirm(&prepared),
            Note::Closed if !self.closed.is_empty() => drop(self.closed.remove(0)),
            Note::Closed | Note::Nothing | Note::Executed(_) | Note::Evicted(_) | Note::Uses(_) => {}
        }
    }

    /// A Parse that is never sent has not been.
    fn forget_parsed(&mut self, prepared: &Arc<Prepared>) {
        if self.unnamed.as_ref().is_some_and(|found| Arc::ptr_eq(found, prepared)) {
            self.unnamed = None;
        }
        self.statements.retain(|_, found| !Arc::ptr_eq(found, prepared));
        self.confirm(prepared);
    }

    /// Statements whose Close an error has skipped are still there.
    fn restore_closed(&mut self) {
        for (name, prepared) in std::mem::take(&mut self.closed) {
            self.statements.insert(name, prepared);
        }
    }

    /// Statements whose Parse was never confirmed do not exist.
    pub(super) fn forget_unconfirmed(&mut self) {
        for name in std::mem::take(&mut self.unconfirmed) {
            if name.is_empty() {
                self.unnamed = None;
            } else {
                self.statements.remove(&name);
            }
        }
        self.restore_closed();
    }

    // ---- simple protocol ----

    async fn query(&mut self, body: &[u8]) -> Result<(), End> {
        let text = match frontend::query(body) {
            Ok(text) => text,
            Err(_malformed) => return self.refuse_query(&reply::malformed().into()).await,
        };
        self.refresh();
        self.unnamed = None;
        match self.try_query(text).await {
            Ok(()) => Ok(()),
            Err(Stop::End(end)) => Err(end),
            Err(Stop::Refused(notice)) => self.refuse_query(&notice).await,
        }
    }

    async fn try_query(&mut self, text: &[u8]) -> Result<(), Stop> {
        let planned = self.database.plans.plan(text, &[], &self.context, &self.snapshot, &mut self.scratch);
        let values = Values { text, slots: &planned.slots, types: &[], bind: None };
        let statements = planned.plan.statements.as_slice();
        if self.phase == Phase::Idle && statements.iter().any(|statement| self.controls(statement)) {
            self.park_at_rest();
        }
        if (self.link.is_none() || self.phase == Phase::Idle)
            && self.pending.is_empty()
            && self.query_here(statements, &values)?
        {
            return Ok(());
        }
        if let [before @ .., _last] = statements
            && !self.snapshot.is_single()
            && before.iter().any(|statement| changes_meaning(&statement.effect))
        {
            return Err(reply::meaning_changes_within().into());
        }
        if let Some((name, _)) = planned.plan.statements.iter().find_map(|statement| own_setting(&statement.effect)) {
            let notice = reply::bad_setting(name, "It is set in a message of its own, outside a failed transaction.".to_owned());
            return Err(notice.into());
        }
        let mut chosen: Option<Place> = None;
        for statement in &planned.plan.statements {
            let Some(place) = self.place(statement, &values)? else {
                return self.judge(text).await;
            };
            chosen = Some(match chosen {
                None => place,
                Some(first) => self.both(first, place)?,
            });
        }
        let mut place = chosen.unwrap_or(Place { shard: self.any, hold: Hold::Loose });
        if statements.len() != 1 && self.deferred.is_some() {
            // Some of them may end the transaction: they run in it, not beside it.
            place.hold = Hold::Bound;
        }
        self.reach(place).await?;
        self.send_pending();
        let Some(link) = &mut self.link else { return Ok(()) };
        frontend::put_query(link.lease.stream.out(), text);
        link.lease.unnamed = None;
        link.opaque |= planned.plan.statements.iter().any(|statement| statement.effect == Effect::Opaque);
        let matters = planned.plan.statements.iter().any(|statement| statement.effect != Effect::None);
        self.running = matters.then_some((planned.plan, 0));
        self.pipeline.asked(Request::Query, Origin::Client, Note::Nothing);
        self.phase = Phase::Answering;
        Ok(())
    }

    /// Two statements of one message: they must agree on the shard.
    fn both(&self, first: Place, second: Place) -> Result<Place, Notice> {
        let hold = first.hold.max(second.hold);
        match (first.hold, second.hold) {
            (Hold::Bound, Hold::Bound) if first.shard != second.shard => Err(reply::several_shards_in_query(
                self.database.shard_name(first.shard),
                self.database.shard_name(second.shard),
            )),
            (Hold::Bound, _) => Ok(Place { shard: first.shard, hold }),
            _ => Ok(Place { shard: second.shard, hold }),
        }
    }

    /// Refuses a Query: an error, then ReadyForQuery; a transaction on a backend fails with it.
    async fn refuse_query(&mut self, notice: &Words) -> Result<(), End> {
        self.count_refusal(notice);
        self.failed = true;
        let open = self.link.as_ref().is_some_and(|link| link.status == Status::Transaction);
        if open || !self.pipeline.is_empty() {
            if self.phase == Phase::Batch
                && let Some(link) = &mut self.link
            {
                // What the batch did before this Query is one implicit transaction with it.
                put_parse(link.lease.stream.out(), b"", POISON, b"");
                frontend::put_bare(link.lease.stream.out(), b'S');
                self.pipeline.asked(Request::Parse, Origin::Poison, Note::Nothing);
                self.pipeline.asked(Request::Sync, Origin::Injected, Note::Nothing);
            }
            self.settle().await?;
            let open = self.link.as_ref().is_some_and(|link| link.status == Status::Transaction);
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
        self.reach(Place { shard: self.any, hold: Hold::Aside }).await?;
        let Some(link) = &mut self.link else { return Ok(()) };
        let out = link.lease.stream.out();
        put_parse(out, b"", text, b"");
        frontend::put_bare(out, b'S');
        link.lease.unnamed = None;
        self.pipeline.asked(Request::Parse, Origin::Injected, Note::Nothing);
        self.pipeline.asked(Request::Sync, Origin::Injected, Note::Nothing);
        self.settle().await?;
        if self.failed {
            // PostgreSQL has said what is wrong with it.
            if let Some(deferred) = &mut self.deferred {
                deferred.fail();
            }
            self.ready_here();
            return Ok(());
        }
        Err(wording::unroutable(&Unroutable::NotUnderstood).into())
    }

    async fn function_call(&mut self, frame: &[u8]) -> Result<(), End> {
        self.refresh();
        let shard = self.link_shard().unwrap_or(self.snapshot.home);
        match self.reach(Place { shard, hold: Hold::Bound }).await {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(notice)) => return self.refuse_query(&notice).await,
        }
        if let Some(link) = &mut self.link {
            link.lease.stream.out().extend_from_slice(frame);
            link.opaque = true;
            self.pipeline.asked(Request::Function, Origin::Client, Note::Nothing);
            self.phase = Phase::Answering;
        }
        Ok(())
    }

    // ---- extended protocol ----

    async fn parse(&mut self, body: &[u8]) -> Result<(), Stop> {
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
        let types: SmallVec<[u32; 4]> = parse.types().collect();
        let planned = self.database.plans.plan(parse.text, &types, &self.context, &self.snapshot, &mut self.scratch);
        let failed = self.status() == Status::Failed;
        if let [StatementPlan { target: Target::Refused(reason), .. }] = planned.plan.statements.as_slice()
            && !failed
        {
            return Err(wording::unroutable(reason).into());
        }
        let prepared = Arc::new(Prepared {
            id: identity(self.shared.seed, self.context.digest, parse.text, parse.raw_types()),
            text: parse.text.into(),
            raw_types: parse.raw_types().into(),
            types,
            plan: planned.plan,
            slots: planned.slots,
            unnamed: parse.name.is_empty(),
            meaning: self.meaning(),
        });
        if prepared.unnamed {
            self.unnamed = Some(Arc::clone(&prepared));
        } else {
            self.statements.insert(parse.name.into(), Arc::clone(&prepared));
            self.info.set_prepared(self.statements.len());
        }
        self.unconfirmed.push(parse.name.into());
        self.pending.push(prepared);
        Ok(())
    }

    async fn bind(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        let bind = Bind::decode(body).map_err(|_malformed| reply::malformed())?;
        self.settle_effects().await?;
        if self.skip {
            return Ok(());
        }
        let prepared = self.prepared(bind.statement).await?;
        let prepared = self.planned_anew(bind.statement, prepared);
        self.tally.binds += 1;
        let values =
            Values { text: &prepared.text, slots: &prepared.slots, types: &prepared.types, bind: Some(&bind) };
        if let Some(statement) = prepared.statement() {
            if self.controls(statement) {
                self.leave_for_control().await?;
            }
            if self.answered_here(statement) {
                self.answer_pending().await?;
                self.made(vec![b'2', 0, 0, 0, 4], Note::Nothing);
                self.portals.insert(bind.portal.into(), Portal::Here(Arc::clone(&prepared)));
                return Ok(());
            }
            let Some(place) = self.place(statement, &values)? else {
                self.reach(Place { shard: self.any, hold: Hold::Aside }).await?;
                self.send_pending();
                self.settle().await?;
                return if self.skip { Ok(()) } else { Err(wording::unroutable(&Unroutable::NotUnderstood).into()) };
            };
            self.reach(place).await?;
        } else {
            self.reach(Place { shard: self.link_shard().unwrap_or(self.any), hold: Hold::Loose }).await?;
        }
        if self.skip {
            return Ok(());
        }
        self.send_pending();
        self.ensure_prepared(&prepared)?;
        let Some(link) = &mut self.link else { return Ok(()) };
        if prepared.unnamed {
            link.lease.stream.out().extend_from_slice(frame);
        } else {
            put_bind(link.lease.stream.out(), bind.portal, prepared.server_name().as_bytes(), bind.tail);
        }
        let note = if prepared.unnamed { Note::Nothing } else { Note::Uses(prepared.id) };
        self.pipeline.asked(Request::Bind, Origin::Client, note);
        let matters = prepared.statement().is_some_and(|statement| statement.effect != Effect::None);
        if matters {
            self.portals.insert(bind.portal.into(), Portal::There(prepared));
        } else if !self.portals.is_empty() {
            self.portals.remove(bind.portal);
        }
        Ok(())
    }

    async fn describe(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        match Named::decode(body).map_err(|_malformed| reply::malformed())? {
            Named::Portal(portal) => {
                self.flush_pending().await?;
                if let Some(Portal::Here(prepared)) = self.portals.get(portal) {
                    let mut out = Vec::new();
                    describe_here(prepared, &mut out);
                    self.made(out, Note::Nothing);
                    return Ok(());
                }
                self.forward(frame, Request::Describe, Note::Nothing, || reply::no_such_portal(portal))
            }
            Named::Statement(name) => {
                let prepared = self.prepared(name).await?;
                if prepared.statement().is_some_and(|statement| self.answered_here(statement))
                {
                    self.answer_pending().await?;
                    let mut out = vec![b't', 0, 0, 0, 6, 0, 0];
                    describe_here(&prepared, &mut out);
                    self.made(out, Note::Nothing);
                    return Ok(());
                }
                self.reach_any(&prepared).await?;
                self.send_pending();
                self.ensure_prepared(&prepared)?;
                if let Some(link) = &mut self.link {
                    let name = prepared.server_name();
                    put_named(link.lease.stream.out(), b'D', Named::Statement(name.as_bytes()));
                    let note = if prepared.unnamed { Note::Nothing } else { Note::Uses(prepared.id) };
                    self.pipeline.asked(Request::Describe, Origin::Client, note);
                }
                Ok(())
            }
        }
    }

    async fn execute(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        let mut body = frame::Body::new(body);
        let portal = body.cstr().map_err(|_malformed| reply::malformed())?;
        body.u32().and_then(|_| body.end()).map_err(|_malformed| reply::malformed())?;
        self.flush_pending().await?;
        let note = match self.portals.get(portal) {
            Some(Portal::Here(prepared)) => {
                let prepared = Arc::clone(prepared);
                return self.execute_here(&prepared);
            }
            Some(Portal::There(prepared)) => Note::Executed(Arc::clone(prepared)),
            None => Note::Nothing,
        };
        if let Note::Executed(prepared) = &note {
            self.unsettled |= prepared.statement().is_some_and(|statement| changes_meaning(&statement.effect));
        }
        if let (Note::Executed(prepared), Some(link)) = (&note, &mut self.link) {
            link.opaque |= prepared.statement().is_some_and(|statement| statement.effect == Effect::Opaque);
        }
        let forgets = matches!(&note, Note::Executed(prepared) if prepared.statement().is_some_and(forgets_statements));
        self.forward(frame, Request::Execute, note, || reply::no_such_portal(portal))?;
        if forgets {
            // Which statements the backend has afterwards is known when it has answered.
            self.settle().await?;
        }
        Ok(())
    }

    async fn close(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
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
                let here = matches!(self.portals.remove(portal), Some(Portal::Here(_)));
                if here || self.link.is_none() {
                    self.made(vec![b'3', 0, 0, 0, 4], Note::Nothing);
                    return Ok(());
                }
                self.forward(frame, Request::Close, Note::Nothing, || reply::no_such_portal(portal))
            }
        }
    }

    async fn flush_request(&mut self, frame: &[u8]) -> Result<(), Stop> {
        self.flush_pending().await?;
        if let Some(link) = &mut self.link
            && !self.pipeline.is_empty()
        {
            link.lease.stream.out().extend_from_slice(frame);
        }
        Ok(())
    }

    async fn sync(&mut self) -> Result<(), End> {
        if self.pipeline.copying_in()
            && let Some(link) = &mut self.link
        {
            // Ignored by the server, unless the COPY has failed already and we do not know it yet.
            frontend::put_bare(link.lease.stream.out(), b'S');
            self.pipeline.asked(Request::Sync, Origin::Client, Note::Nothing);
            return Ok(());
        }
        match self.flush_pending().await {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(notice)) => self.refuse(&notice),
        }
        let needed = self.link.as_ref().is_some_and(|link| {
            // A backend that took part in the batch ends its implicit transaction; a kept one that did not needs none.
            !self.pipeline.is_empty() || self.phase == Phase::Batch || link.status != Status::Idle
        });
        if needed && let Some(link) = &mut self.link {
            frontend::put_bare(link.lease.stream.out(), b'S');
            self.pipeline.asked(Request::Sync, Origin::Client, Note::Nothing);
            self.phase = Phase::Answering;
            return Ok(());
        }
        self.ready_here();
        Ok(())
    }

    /// Sends a message as it stands, or says that what it names is not there.
    fn forward(
        &mut self,
        frame: &[u8],
        request: Request,
        note: Note,
        missing: impl FnOnce() -> Notice,
    ) -> Result<(), Stop> {
        let Some(link) = &mut self.link else { return Err(missing().into()) };
        link.lease.stream.out().extend_from_slice(frame);
        self.pipeline.asked(request, Origin::Client, note);
        Ok(())
    }

    /// What the plans of this session's statements depend on.
    fn meaning(&self) -> Meaning {
        let Snapshot { epoch, schema, .. } = *self.snapshot;
        Meaning { context: self.context.digest, epoch: epoch.0, schema, generation: self.generation }
    }

    /// The statement, planned again when settings or the catalog have changed since it was parsed: as in PostgreSQL a
    /// prepared statement means what its text means now.
    fn planned_anew(&mut self, name: &[u8], prepared: Arc<Prepared>) -> Arc<Prepared> {
        let meaning = self.meaning();
        let parsed_just_now = self.pending.iter().any(|pending| Arc::ptr_eq(pending, &prepared));
        if prepared.meaning == meaning || parsed_just_now {
            return prepared;
        }
        let (text, types) = (&prepared.text, &prepared.types);
        let planned = self.database.plans.plan(text, types, &self.context, &self.snapshot, &mut self.scratch);
        let anew = Arc::new(Prepared {
            id: identity(self.shared.seed, self.context.digest, text, &prepared.raw_types),
            text: text.clone(),
            raw_types: prepared.raw_types.clone(),
            types: types.clone(),
            plan: planned.plan,
            slots: planned.slots,
            unnamed: prepared.unnamed,
            meaning,
        });
        if anew.unnamed {
            self.unnamed = Some(Arc::clone(&anew));
        } else {
            self.statements.insert(name.into(), Arc::clone(&anew));
        }
        anew
    }

    async fn prepared(&mut self, name: &[u8]) -> Result<Arc<Prepared>, Stop> {
        let found = if name.is_empty() { self.unnamed.as_ref() } else { self.statements.get(name) };
        if let Some(found) = found {
            return Ok(Arc::clone(found));
        }
        // What was parsed before it is answered before it.
        self.flush_pending().await?;
        Err(reply::no_such_statement(name).into())
    }

    /// Whether a statement only begins, ends or marks a transaction, so that it needs no shard of its own.
    fn controls(&self, statement: &StatementPlan) -> bool {
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
    async fn leave_for_control(&mut self) -> Result<(), End> {
        if self.phase == Phase::Idle {
            self.park_at_rest();
        }
        let beside = self
            .link
            .as_ref()
            .is_some_and(|link| matches!(link.hold, Hold::Aside | Hold::AsideTransaction));
        if beside && self.deferred.is_some() {
            self.leave_link().await?;
            self.unlink().await?;
        }
        Ok(())
    }

    /// A kept backend at rest steps aside, so that a transaction may begin on any shard.
    fn park_at_rest(&mut self) {
        if self.at_rest() && !self.snapshot.is_single() {
            self.cancel.detach();
            self.parked.extend(self.link.take());
        }
    }

    /// Before something is planned: a setting made earlier in this batch must have taken effect.
    async fn settle_effects(&mut self) -> Result<(), End> {
        if !std::mem::take(&mut self.unsettled) || self.pipeline.is_empty() {
            return Ok(());
        }
        self.settle().await?;
        self.refresh();
        Ok(())
    }

    // ---- statements on backends ----

    /// Sends the Parses that wait for a shard to the link.
    pub(super) fn send_pending(&mut self) {
        for prepared in std::mem::take(&mut self.pending) {
            let refused = self.link.as_ref().is_some_and(|link| link.status == Status::Failed)
                && prepared.statement().is_some_and(|statement| !ends_transaction(&statement.effect));
            let known = !prepared.unnamed
                && !refused
                && self.link.as_mut().is_some_and(|link| link.knows(prepared.id, prepared.unnamed));
            if known {
                self.made(vec![b'1', 0, 0, 0, 4], Note::Parsed(prepared));
            } else {
                self.send_parse(&prepared, Origin::Client);
            }
        }
    }

    fn ensure_prepared(&mut self, prepared: &Arc<Prepared>) -> Result<(), Stop> {
        let known = self.link.as_mut().is_some_and(|link| link.knows(prepared.id, prepared.unnamed));
        if !known {
            self.send_parse(prepared, Origin::Injected);
        }
        Ok(())
    }

    fn send_parse(&mut self, prepared: &Arc<Prepared>, origin: Origin) {
        let Some(link) = &mut self.link else { return };
        let limit = link.lease.pool().settings().prepared_statements;
        let spoilt = (!prepared.unnamed && link.lease.statements.is_spoilt(prepared.id)).then_some(prepared.id);
        let room = limit.saturating_sub(1 + link.parsing.len());
        let mut next = spoilt;
        while !prepared.unnamed
            && let Some(old) = next.take().or_else(|| link.lease.statements.excess(room))
        {
            let out = link.lease.stream.out();
            put_named(out, b'C', Named::Statement(server_name(old).as_bytes()));
            link.lease.statements.remove(old);
            self.pipeline.asked(Request::Close, Origin::Injected, Note::Evicted(old));
        }
        let out = link.lease.stream.out();
        put_parse(out, prepared.server_name().as_bytes(), &prepared.text, &prepared.raw_types);
        if prepared.unnamed {
            link.lease.unnamed = Some(prepared.id);
        } else {
            link.parsing.push(prepared.id);
        }
        self.tally.server_parses += 1;
        self.pipeline.asked(Request::Parse, origin, Note::Parsed(Arc::clone(prepared)));
    }

    /// The statement exists from now on, whatever fails later in the batch.
    pub(super) fn confirm(&mut self, prepared: &Arc<Prepared>) {
        let statements = &self.statements;
        let unnamed = self.unnamed.as_ref();
        self.unconfirmed.retain(|name| {
            let found = if name.is_empty() { unnamed } else { statements.get(name.as_ref()) };
            !found.is_some_and(|found| Arc::ptr_eq(found, prepared))
        });
    }

    /// Gives every Parse that waits a backend, because its answer is due.
    async fn flush_pending(&mut self) -> Result<(), Stop> {
        let Some(first) = self.pending.first().cloned() else { return Ok(()) };
        if self.pending.iter().all(|prepared| prepared.statement().is_some_and(|s| self.answered_here(s)))
        {
            return self.answer_pending().await;
        }
        self.reach_any(&first).await?;
        self.send_pending();
        Ok(())
    }

    /// Answers the Parses that wait here when all can be; else on a backend.
    async fn answer_pending(&mut self) -> Result<(), Stop> {
        let all_here =
            self.pending.iter().all(|prepared| prepared.statement().is_some_and(|s| self.answered_here(s)));
        if !all_here {
            return Box::pin(self.flush_pending()).await;
        }
        for prepared in std::mem::take(&mut self.pending) {
            self.made(vec![b'1', 0, 0, 0, 4], Note::Parsed(prepared));
        }
        Ok(())
    }

    // ---- where ----

    /// Where a statement is to run; `None`: PostgreSQL must judge it first.
    pub(super) fn place(&self, statement: &StatementPlan, values: &Values<'_>) -> Result<Option<Place>, Notice> {
        let here = self.link.as_ref();
        if let Some(link) = here
            && (link.status == Status::Failed || self.snapshot.is_single())
        {
            // In a failed transaction PostgreSQL itself answers everything, 25P02 or the end of it.
            return Ok(Some(Place { shard: link.shard, hold: Hold::Bound }));
        }
        if matches!(statement.target, Target::Judge) {
            return Ok(None);
        }
        let route = statement.route(&self.snapshot, values).map_err(|reason| wording::unroutable(&reason))?;
        if let (Target::ByKey(_), Some(finding)) = (&statement.target, self.database.unfit.load().as_deref()) {
            return Err(reply::unfit(finding));
        }
        let bound = here.filter(|link| self.is_bound(link)).map(|link| link.shard);
        let place = match route {
            Route::One(shard) => Place { shard, hold: Hold::Bound },
            Route::Home => Place { shard: self.snapshot.home, hold: Hold::Bound },
            Route::Any => {
                let own = self.deferred.is_some();
                let hold = match (own, statement.access) {
                    (true, Access::Read) if self.reads_beside() => Hold::AsideTransaction,
                    (true, _) => Hold::Bound,
                    (false, Access::Read) => Hold::Loose,
                    (false, Access::Write) => Hold::Bound,
                };
                Place { shard: bound.unwrap_or(self.any), hold }
            }
            Route::Some(_) | Route::All => {
                let shards = if let Route::Some(set) = &route { set.clone() } else { self.snapshot.all() };
                let shards = shards.iter().map(|shard| self.database.shard_name(shard).to_owned()).collect();
                return Err(wording::unroutable(&Unroutable::SeveralShards { shards }));
            }
        };
        match bound {
            Some(shard) if shard != place.shard => {
                Err(reply::second_shard(self.database.shard_name(shard), self.database.shard_name(place.shard)))
            }
            _ => Ok(Some(place)),
        }
    }

    /// Whether the transaction or batch is on this link, and not only beside it.
    fn is_bound(&self, link: &Link) -> bool {
        let beside = matches!(link.hold, Hold::Aside | Hold::AsideTransaction) && self.deferred.is_some();
        link.hold == Hold::Bound || (link.status != Status::Idle && !beside)
    }

    /// Whether a read that any shard answers may run beside the deferred transaction, with a snapshot of its own.
    fn reads_beside(&self) -> bool {
        self.deferred.as_ref().is_some_and(crate::protocol::transaction::Deferred::statement_snapshots)
            && self.parameters.get("default_transaction_isolation").is_none()
            && self.defaults.isolation.as_deref() == Some("read committed")
    }

    /// Where a statement is parsed and described before its values are known.
    async fn reach_any(&mut self, prepared: &Prepared) -> Result<(), Stop> {
        if let Some(link) = &self.link {
            let shard = link.shard;
            return self.reach(Place { shard, hold: Hold::Aside }).await;
        }
        let shard = match prepared.statement().map(|statement| &statement.target) {
            Some(Target::Fixed(Route::One(shard))) => *shard,
            Some(Target::Fixed(Route::Home)) => self.snapshot.home,
            _ => self.any,
        };
        self.reach(Place { shard, hold: Hold::Aside }).await
    }

    /// Makes the link a backend at that place, giving up one that is not bound.
    pub(super) async fn reach(&mut self, place: Place) -> Result<(), Stop> {
        if let Some(link) = &self.link {
            let same = link.shard == place.shard;
            let aside = matches!(link.hold, Hold::Aside | Hold::AsideTransaction) && self.deferred.is_some();
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
            self.leave_link().await?;
            if self.skip {
                return Ok(());
            }
        }
        self.linked(place).await
    }

    async fn linked(&mut self, place: Place) -> Result<(), Stop> {
        let Err(refused) = self.link_to(place.shard, place.hold).await? else { return Ok(()) };
        // No other backend is tried for them.
        for prepared in std::mem::take(&mut self.pending) {
            self.forget_parsed(&prepared);
        }
        Err(refused.into())
    }

    /// Ends what a loose link still does, so that another shard can be reached in the same batch.
    async fn leave_link(&mut self) -> Result<(), End> {
        if !self.pipeline.is_empty() || self.phase == Phase::Batch {
            if let Some(link) = &mut self.link {
                frontend::put_bare(link.lease.stream.out(), b'S');
                self.pipeline.asked(Request::Sync, Origin::Injected, Note::Nothing);
            }
            self.settle().await?;
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

    // ---- COPY ----

    fn copy_data(&mut self, header: Header, bytes: &[u8]) -> usize {
        // Outside COPY these are ignored, as PostgreSQL does (a client may not know yet that the COPY has failed).
        let forward = self.pipeline.copying_in() && !self.skip;
        if !forward && !self.skip && !self.pipeline.is_empty() {
            // Whether a COPY begins is for what was asked before it to say.
            if !self.flushed
                && !self.pipeline.owes_ready()
                && let Some(link) = &mut self.link
            {
                frontend::put_bare(link.lease.stream.out(), b'H');
                self.flushed = true;
            }
            return 0;
        }
        self.flushed = false;
        self.client_rest = Rest { bytes: header.size, forward };
        if header.tag != b'd' && forward {
            self.pipeline.copy_ended();
        }
        self.pass_rest(bytes)
    }

    fn pass_rest(&mut self, bytes: &[u8]) -> usize {
        let mut count = self.client_rest.bytes.min(bytes.len());
        if self.client_rest.forward
            && let Some(link) = &mut self.link
        {
            let stream = link.stream();
            let room = (2 * crate::net::stream::HIGH_WATER).saturating_sub(stream.unsent());
            count = count.min(room);
            stream.out().extend_from_slice(&bytes[..count]);
        }
        self.tally.received_bytes += count as u64;
        self.client_rest.bytes -= count;
        count
    }
}

/// Whether a statement is let through by a failed transaction.
fn ends_transaction(effect: &Effect) -> bool {
    matches!(effect, Effect::Commit { .. } | Effect::Rollback { .. } | Effect::RollbackTo(_) | Effect::TwoPhase)
}

/// Whether a backend has fewer prepared statements after it.
fn forgets_statements(statement: &StatementPlan) -> bool {
    matches!(statement.effect, Effect::DiscardAll | Effect::Deallocate(_))
}

/// What a statement that is answered here returns: rows of text, or nothing.
fn describe_here(prepared: &Prepared, out: &mut Vec<u8>) {
    let explains = prepared.statement().is_some_and(|statement| matches!(statement.target, Target::Explain(_)));
    if explains { put_explanation_columns(out) } else { out.extend_from_slice(&[b'n', 0, 0, 0, 4]) }
}

/// Whether a statement can change how the next one is planned.
fn changes_meaning(effect: &Effect) -> bool {
    let planned_by = |name: &str| {
        matches!(
            name,
            "search_path"
                | "role"
                | "session_authorization"
                | "standard_conforming_strings"
                | "client_encoding"
                | "transform_null_equals"
        )
    };
    match effect {
        Effect::Set { name, .. } | Effect::Reset(name) => planned_by(name),
        Effect::ResetAll | Effect::DiscardAll | Effect::Rollback { .. } | Effect::RollbackTo(_) => true,
        Effect::SetEach(_)
        | Effect::None
        | Effect::Begin
        | Effect::Commit { .. }
        | Effect::Savepoint(_)
        | Effect::Release(_)
        | Effect::SetTransaction
        | Effect::Deallocate(_)
        | Effect::Prepare(_)
        | Effect::Execute(_)
        | Effect::Declare { .. }
        | Effect::Cursor
        | Effect::CopyIn
        | Effect::CopyOut
        | Effect::Pins(_)
        | Effect::TwoPhase
        | Effect::Opaque => false,
    }
}

/// What makes a backend fail when we refuse a statement in its transaction: it appears in the server's log, so it says
/// what it is.
const POISON: &[u8] = b"shardway refused a statement of this transaction";
