//! The extended protocol: Parse to Sync. A Parse waits here until its shard is known; a statement is prepared again on
//! each backend that needs it, under a name of its own.

mod binding;
mod describing;
mod preparing;

use super::{
    ids::Filled,
    prepared::{Prepared, identity},
    reply::{self as wording, session as reply},
    request::{Stop, ends_transaction},
    resetting::resets_all,
    session::{End, Note, Phase, Portal, Session},
    sql_prepared::{Execution, Meant},
};
use crate::{
    plan::{StatementPlan, Target},
    protocol::pipeline::{Origin, Request},
    sql::statement::{Effect, PinReason},
    wire::{
        backend::{Status, put_complete},
        frame::{self},
        frontend::{self, Named, Parse},
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
        self.keeps_name(name);
        if prepared.unnamed {
            self.unnamed = Some(Arc::clone(&prepared));
        } else {
            self.statements.insert(name.into(), Arc::clone(&prepared));
            self.info.set_prepared(self.statements.len());
        }
        self.unconfirmed.push(name.into());
        self.pending.push(prepared);
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
                if !self.skip {
                    self.execute_made(&prepared).await?;
                    // What is done here has taken effect, for what stands behind it too.
                    self.take_over_settings();
                }
                return Ok(());
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
            let failed = self.fails_there();
            self.unsettled |= prepared.statement().is_some_and(|statement| {
                self.changes_meaning(&statement.effect)
                    || (failed && ends_transaction(&statement.effect))
            });
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
            return Err(reply::several::bound_before().into());
        }
        self.execute_here(prepared)
    }

    pub(super) async fn close(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
        match Named::decode(body).map_err(|_malformed| reply::malformed())? {
            Named::Statement(name) => {
                if !self.pending.is_empty() {
                    self.flush_pending().await?;
                }
                self.keeps_name(name);
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
