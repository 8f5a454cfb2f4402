//! Statements on backends: parsed where they are needed, under names of their own, and planned again when what they mean
//! has changed.
//!
//! A backend's statement has the parameters and columns that the client was told, or the statement is refused.

use crate::{
    catalog::snapshot::Snapshot,
    plan::Override,
    protocol::pipeline::{Origin, Request},
    proxy::{
        ids::{Computing, Filled},
        link::Link,
        oids::own_types,
        prepared::{Fit, Meaning, Prepared, identity, server_name},
        reply::session as reply,
        request::{Stop, ends_transaction},
        session::{Note, Session},
    },
    wire::{
        backend::Status,
        frontend::{Named, put_named, put_parse},
    },
};
use std::sync::Arc;

impl Session {
    /// What the plans of this session's statements depend on.
    pub(in crate::proxy) fn meaning(&self) -> Meaning {
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
    pub(in crate::proxy) fn planned_anew(
        &mut self,
        name: &[u8],
        prepared: Arc<Prepared>,
    ) -> Arc<Prepared> {
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
    pub(in crate::proxy) fn plan_again(
        &mut self,
        name: &[u8],
        prepared: Arc<Prepared>,
    ) -> Arc<Prepared> {
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

    pub(super) async fn prepared(&mut self, name: &[u8]) -> Result<Arc<Prepared>, Stop> {
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
    pub(in crate::proxy) fn send_pending(&mut self) {
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
    pub(in crate::proxy) async fn make_fit(
        &mut self,
        prepared: &Arc<Prepared>,
    ) -> Result<(), Stop> {
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

    pub(in crate::proxy) fn send_describe(&mut self, prepared: &Arc<Prepared>, origin: Origin) {
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

    pub(in crate::proxy) fn send_parse(&mut self, prepared: &Arc<Prepared>, origin: Origin) {
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
    pub(in crate::proxy) fn confirm(&mut self, prepared: &Arc<Prepared>) {
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
    pub(in crate::proxy) async fn flush_pending(&mut self) -> Result<(), Stop> {
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
    pub(in crate::proxy) async fn answer_pending(&mut self) -> Result<(), Stop> {
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
