//! Bind: what a statement means now, the gate, its shard, and its portal.
//!
//! A statement is bound only after it has passed the gate as it is planned then.

use crate::{
    gate::Came,
    plan::{Target, Values, unroutable::Unroutable},
    protocol::pipeline::{Origin, Request},
    proxy::{
        holding::Passed,
        link::Hold,
        place::Place,
        prepared::Prepared,
        reply::{self as wording, session as reply},
        request::Stop,
        session::{Note, Phase, Portal, Session},
    },
    sql::statement::Effect,
    wire::{
        frame::{self},
        frontend::{Bind, put_bind_head},
        notice::Notice,
    },
};
use std::sync::Arc;

impl Session {
    pub(in crate::proxy) async fn bind(&mut self, frame: &[u8], body: &[u8]) -> Result<(), Stop> {
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
                let values = Values {
                    text: &prepared.text,
                    slots: &prepared.slots,
                    types: &prepared.types,
                    bind: Some(bind),
                };
                if self.passes_at_once(came, &prepared.plan.statements, &values) {
                    return Ok(Some(prepared));
                }
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
            if self.names_unseen(&prepared.plan) {
                match Box::pin(self.see_bound(bind.statement, prepared)).await? {
                    Some(seen) => prepared = seen,
                    None => return Ok(None),
                }
            }
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
    pub(in crate::proxy) fn bound_now(
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
    pub(in crate::proxy) fn streams_bind(&mut self, start: &[u8]) -> bool {
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
