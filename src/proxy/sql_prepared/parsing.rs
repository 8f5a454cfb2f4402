//! An EXECUTE that is parsed by the protocol: what it names is looked up whenever it is bound or described.

use super::super::{
    prepared::{Prepared, identity},
    request::Stop,
    session::Session,
};
use super::{
    check_foreign, readable,
    renaming::{Renamed, Rewriting},
    running::executes,
};
use crate::{
    plan::{Plan, cache::Planned},
    protocol::pipeline::Origin,
    sql::{executions::Naming, statement::Effect},
    wire::{backend::Status, notice::Notice},
};
use std::sync::Arc;

/// The statement that an EXECUTE names, and what that name is on backends.
#[derive(Debug)]
pub(in crate::proxy) struct Execution {
    pub(super) statement: Arc<Prepared>,
    renamed: Renamed,
}

impl Execution {
    /// Whether several shards may be asked with it.
    pub(in crate::proxy) fn may_use_several(&self) -> bool {
        let statement = self.statement.statement();
        statement.is_some_and(crate::plan::StatementPlan::may_use_several)
    }
}

/// What a text that is parsed means.
#[derive(Debug)]
pub(in crate::proxy) struct Meant {
    pub(in crate::proxy) planned: Planned,
    /// What backends get instead.
    pub(in crate::proxy) sent: Option<Vec<u8>>,
    pub(in crate::proxy) executes: Option<Box<Execution>>,
}

/// An EXECUTE that is prepared itself.
#[derive(Debug)]
struct Executed {
    text: Vec<u8>,
    plan: Arc<Plan>,
    execution: Box<Execution>,
}

impl Session {
    /// What a text that is parsed means: its plan, or that of the statement that it executes.
    ///
    /// # Errors
    /// It is refused.
    pub(in crate::proxy) fn meant(
        &mut self,
        text: &[u8],
        planned: Planned,
    ) -> Result<Meant, Notice> {
        if let [statement] = planned.plan.statements.as_slice()
            && let Effect::Deallocate(Some(name)) = &statement.effect
            && !self.statements.contains_key(name.as_bytes())
        {
            check_foreign(name)?;
        }
        Ok(match self.executed(text, &planned.plan)? {
            Some(Executed {
                text,
                plan,
                execution,
            }) => Meant {
                planned: Planned { plan, ..planned },
                sent: Some(text),
                executes: Some(execution),
            },
            None => Meant {
                sent: self.with_own_defaults(text, &planned.plan),
                planned,
                executes: None,
            },
        })
    }

    /// An EXECUTE that is parsed, with the statement that it names now; `None`: it is none, or names none.
    ///
    /// # Errors
    /// It is refused.
    fn executed(&mut self, text: &[u8], plan: &Plan) -> Result<Option<Executed>, Notice> {
        let [outer] = plan.statements.as_slice() else {
            return Ok(None);
        };
        if executes(outer).is_none() {
            return Ok(None);
        }
        let Some((text, named)) = readable(text, plan) else {
            return Ok(None);
        };
        let [named] = named.as_slice() else {
            return Ok(None);
        };
        let Naming::Executes { name, arguments } = &named.naming else {
            return Ok(None);
        };
        let Some(statement) = self.statement_now(name) else {
            check_foreign(name)?;
            return Ok(None);
        };
        let derived = self.derived(outer, &statement, arguments)?;
        let mut rewriting = Rewriting::new(text);
        rewriting.rename(named, name, statement.server_name());
        let (text, renamed) = rewriting.done();
        let plan = Arc::new(Plan {
            statements: vec![derived],
            structural: Vec::new(),
        });
        Ok(Some(Executed {
            text,
            plan,
            execution: Box::new(Execution { statement, renamed }),
        }))
    }

    /// The same, with the statement that its name means now, when it is an EXECUTE.
    ///
    /// # Errors
    /// It is refused.
    pub(in crate::proxy) fn executes_now(
        &mut self,
        name: &[u8],
        prepared: Arc<Prepared>,
    ) -> Result<Arc<Prepared>, Notice> {
        let is_execute = prepared.executes.is_some()
            || prepared
                .statement()
                .is_some_and(|statement| executes(statement).is_some());
        let parsed_just_now =
            |pending: &Arc<Prepared>| is_execute && Arc::ptr_eq(pending, &prepared);
        if !is_execute || self.pending.iter().any(parsed_just_now) {
            return Ok(prepared);
        }
        let planned = self.database.plans.plan(
            &prepared.text,
            &prepared.types,
            &self.context,
            &self.snapshot,
            self.scratch.get_or_insert_default(),
        );
        let Meant {
            planned,
            sent,
            executes,
        } = self.meant(&prepared.text, planned)?;
        if prepared.meaning == self.meaning() && sent.as_deref() == prepared.sent.as_deref() {
            return Ok(prepared);
        }
        let anew = Arc::new(Prepared {
            id: identity(
                self.shared.seed,
                self.context.digest,
                sent.as_deref().unwrap_or(&prepared.text),
                &prepared.raw_types,
            ),
            sent: sent.map(Vec::into_boxed_slice),
            text: prepared.text.clone(),
            raw_types: prepared.raw_types.clone(),
            types: prepared.types.clone(),
            plan: planned.plan,
            slots: planned.slots.as_slice().into(),
            unnamed: prepared.unnamed,
            meaning: self.meaning(),
            told: Arc::clone(&prepared.told),
            computing: None,
            executes,
        });
        if anew.unnamed {
            self.unnamed = Some(Arc::clone(&anew));
        } else {
            self.statements.insert(name.into(), Arc::clone(&anew));
        }
        Ok(anew)
    }

    /// Before an EXECUTE is parsed: PostgreSQL keeps the columns of its statement, which must be there.
    pub(in crate::proxy) fn send_what_it_executes(&mut self, prepared: &Prepared) {
        let Some(execution) = &prepared.executes else {
            return;
        };
        let id = execution.statement.id;
        let link = self.link.as_mut();
        if link.is_some_and(|link| link.status != Status::Failed && !link.knows(id, false)) {
            self.send_parse(&execution.statement, Origin::Injected);
        }
    }

    /// Makes the link a backend that has the statement, and the one that it executes.
    ///
    /// # Errors
    /// The session is over, or the batch is refused.
    pub(in crate::proxy) async fn make_fit_to_execute(
        &mut self,
        prepared: &Arc<Prepared>,
    ) -> Result<(), Stop> {
        if let Some(execution) = &prepared.executes {
            self.renamed
                .get_or_insert_default()
                .follows(&execution.renamed);
            self.make_fit(&execution.statement).await?;
            if self.skip {
                return Ok(());
            }
        }
        self.make_fit(prepared).await
    }
}
