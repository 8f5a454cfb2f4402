//! Statements that SQL prepares and executes. Their names are those of the protocol's statements and stay in the
//! session; a backend has the statement under its hash, and gets `EXECUTE` with that name.
//!
//! What must stay true: an EXECUTE runs where its statement would run with these values, and what it does to the session
//! is what its statement does; the rest of its text is the client's own, so that PostgreSQL reads the values and words
//! the errors, in which the client finds its own names and positions.

use super::{
    prepared::{Prepared, ServerName, identity},
    reply::{self as wording, session as reply},
    request::Stop,
    session::{Phase, Session},
};
use crate::{
    plan::{Plan, Route, StatementPlan, Target, Values, unroutable::Unroutable},
    protocol::pipeline::{Origin, Request},
    sql::{
        executions::{Argument, Named, Naming, executions},
        statement::{Access, Effect, PinReason, Within, quoted},
    },
    wire::{
        backend::{Status, put_complete},
        frame::Body,
        frontend::{self, Bind, put},
        notice::Notice,
        types::Oid,
    },
};
use smallvec::SmallVec;
use std::sync::Arc;

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u32 = 16384;

/// What becomes of a text that names prepared statements.
#[derive(Debug)]
pub(super) enum Sql {
    AsItStands,
    Answered,
    Resolved(Box<Resolved>),
}

/// A text whose names are those of a backend's statements.
#[derive(Debug)]
pub(super) struct Resolved {
    text: Vec<u8>,
    pub(super) plan: Arc<Plan>,
    needs: Needs,
    renamed: Renamed,
}

type Needs = SmallVec<[Arc<Prepared>; 1]>;

/// The statement that an EXECUTE names, and what that name is on backends.
#[derive(Debug)]
pub(super) struct Execution {
    statement: Arc<Prepared>,
    renamed: Renamed,
}

/// An EXECUTE that is prepared itself.
#[derive(Debug)]
pub(super) struct Executed {
    pub(super) text: Vec<u8>,
    pub(super) plan: Arc<Plan>,
    pub(super) execution: Box<Execution>,
}

/// What is called differently in the text that was sent.
#[derive(Clone, Debug, Default)]
pub(super) struct Renamed {
    names: SmallVec<[(ServerName, Box<[u8]>); 1]>,
    /// Behind which character of the text that was sent it is longer than the client's, and by how much in all.
    longer: SmallVec<[(usize, isize); 1]>,
}

/// Changes of a text, made from its start to its end.
struct Rewriting<'t> {
    text: &'t str,
    copied: usize,
    made: String,
    renamed: Renamed,
}

impl<'t> Rewriting<'t> {
    fn new(text: &'t str) -> Self {
        Self {
            text,
            copied: 0,
            made: String::with_capacity(text.len() + 35),
            renamed: Renamed::default(),
        }
    }

    /// Puts the backend's name in the client's place.
    fn rename(&mut self, named: &Named, client: &str, server: ServerName) {
        let place = named.place.clone();
        self.made.push_str(&self.text[self.copied..place.start]);
        self.made
            .push_str(&String::from_utf8_lossy(server.as_bytes()));
        self.copied = place.end;
        let (sent, given) = (
            self.made.chars().count(),
            self.text[..place.end].chars().count(),
        );
        self.renamed
            .longer
            .push((sent, sent.cast_signed() - given.cast_signed()));
        self.renamed.names.push((server, client.as_bytes().into()));
    }

    fn done(mut self) -> (Vec<u8>, Renamed) {
        self.made.push_str(&self.text[self.copied..]);
        (self.made.into_bytes(), self.renamed)
    }
}

impl Renamed {
    /// An ErrorResponse as the client is told of it: with its own names, and places in its own text. `None`: as it is.
    pub(super) fn restated(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut fields = Body::new(body);
        let mut made = Vec::new();
        let mut whole = false;
        put(&mut made, b'E', |out| {
            while let Ok(code) = fields.byte() {
                out.push(code);
                if code == 0 {
                    whole = true;
                    break;
                }
                let Ok(text) = fields.cstr() else { break };
                match code {
                    b'P' => out.extend_from_slice(&self.position(text)),
                    b'M' | b'D' | b'H' | b'W' => out.extend_from_slice(&self.told(text)),
                    _ => out.extend_from_slice(text),
                }
                out.push(0);
            }
        });
        whole.then_some(made)
    }

    fn position(&self, text: &[u8]) -> Vec<u8> {
        let number = std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        let Some(number) = number else {
            return text.to_vec();
        };
        let longer = self.longer.iter().rev().find(|(from, _)| number > *from);
        let longer = longer.map_or(0, |(_, longer)| *longer);
        number
            .saturating_add_signed(-longer)
            .to_string()
            .into_bytes()
    }

    fn told(&self, text: &[u8]) -> Vec<u8> {
        let mut told = text.to_vec();
        for (server, client) in &self.names {
            let server = server.as_bytes();
            while let Some(at) = memchr::memmem::find(&told, server) {
                told.splice(at..at + server.len(), client.iter().copied());
            }
        }
        told
    }
}

/// Whether a statement names one that is prepared.
pub(super) fn names_prepared(statement: &StatementPlan) -> bool {
    executes(statement).is_some()
        || matches!(
            statement.effect,
            Effect::Prepare(_) | Effect::Deallocate(Some(_))
        )
}

/// What EXECUTE is a part of, when the statement is or has one.
fn executes(statement: &StatementPlan) -> Option<Within> {
    let effect = match &statement.target {
        Target::Explain(inner) => &inner.effect,
        Target::Fixed(_) | Target::ByKey(_) | Target::Judge | Target::Refused(_) => {
            &statement.effect
        }
    };
    match effect {
        Effect::Execute { within, .. } => Some(*within),
        _ => None,
    }
}

impl Session {
    // ---- the simple protocol ----

    /// Finds the statements that a Query names.
    ///
    /// # Errors
    /// The session is over, or the Query is refused.
    pub(super) async fn resolve(&mut self, text: &[u8], plan: &Plan) -> Result<Sql, Stop> {
        if self.status() == Status::Failed {
            // PostgreSQL says so whatever is named.
            return Ok(Sql::AsItStands);
        }
        let Some((text, named)) = readable(text, plan) else {
            return Ok(Sql::AsItStands);
        };
        if let [named] = named.as_slice()
            && let Naming::Prepares { name } = &named.naming
        {
            return self.prepare(text, named, name).await;
        }
        let resolved = self.resolved(text, plan, &named)?;
        Ok(Sql::Resolved(Box::new(resolved)))
    }

    fn resolved(&mut self, text: &str, plan: &Plan, named: &[Named]) -> Result<Resolved, Notice> {
        let mut rewriting = Rewriting::new(text);
        let mut needs = Needs::new();
        let mut statements = Vec::with_capacity(named.len());
        let alone = named.len() == 1;
        for (outer, named) in plan.statements.iter().zip(named) {
            let mut derived = None;
            match &named.naming {
                Naming::Executes { name, arguments } => {
                    if let Some(statement) = self.statement_now(name) {
                        derived = Some(self.derived(outer, &statement, arguments)?);
                        rewriting.rename(named, name, statement.server_name());
                        needs.push(statement);
                    }
                }
                Naming::Deallocates { name } if !alone => {
                    if let Some(statement) = self.statement_now(name) {
                        rewriting.rename(named, name, statement.server_name());
                        needs.push(statement);
                    }
                }
                Naming::Nothing | Naming::Prepares { .. } | Naming::Deallocates { .. } => {}
            }
            statements.push(derived.unwrap_or_else(|| left_alone(outer)));
        }
        let (text, renamed) = rewriting.done();
        let plan = Arc::new(Plan {
            statements,
            structural: Vec::new(),
        });
        Ok(Resolved {
            text,
            plan,
            needs,
            renamed,
        })
    }

    /// The statement of this name, as it is planned now.
    fn statement_now(&mut self, name: &str) -> Option<Arc<Prepared>> {
        let found = self.statements.get(name.as_bytes()).cloned()?;
        Some(self.planned_anew(name.as_bytes(), found))
    }

    /// Sends the text to the link, which is made to have its statements.
    ///
    /// # Errors
    /// The session is over, or the Query is refused.
    pub(super) async fn run_resolved(&mut self, resolved: Resolved) -> Result<(), Stop> {
        let failed = self
            .link
            .as_ref()
            .is_some_and(|link| link.status == Status::Failed);
        if !failed {
            for statement in &resolved.needs {
                if !self.provide(statement).await? {
                    return Ok(());
                }
            }
        }
        self.renamed = Some(Box::new(resolved.renamed));
        self.send_query(&resolved.text, resolved.plan);
        Ok(())
    }

    /// Makes the link a backend that has the statement; false: PostgreSQL has said why it cannot, and the batch is over
    /// or skipped.
    async fn provide(&mut self, statement: &Arc<Prepared>) -> Result<bool, Stop> {
        let alone = self.phase == Phase::Idle;
        let fitted = self.make_fit(statement).await;
        if matches!(fitted, Err(Stop::End(_))) {
            return fitted.map(|()| false);
        }
        if !alone {
            self.settle().await?;
            return fitted.map(|()| !self.skip);
        }
        self.end_of_ours().await?;
        fitted?;
        if self.failed {
            self.end_failed();
            return Ok(false);
        }
        Ok(true)
    }

    /// A Sync behind what was asked for a Query, which is not a part of it.
    async fn end_of_ours(&mut self) -> Result<(), Stop> {
        if let Some(link) = &mut self.link {
            frontend::put_bare(link.lease.stream.out(), b'S');
            self.pipeline.asked(
                Request::Sync,
                Origin::Injected,
                super::session::Note::Nothing,
            );
        }
        self.settle().await?;
        if !self.failed {
            self.phase = Phase::Idle;
        }
        Ok(())
    }

    /// PostgreSQL's error has been passed on: the Query ends with it.
    fn end_failed(&mut self) {
        if let Some(deferred) = &mut self.deferred {
            deferred.fail();
        }
        self.ready_here();
    }

    /// PREPARE, the only statement of a Query: PostgreSQL parses and describes its statement, the session keeps its name.
    async fn prepare(&mut self, text: &str, named: &Named, name: &str) -> Result<Sql, Stop> {
        if self.phase != Phase::Idle || !self.pipeline.is_empty() || name.is_empty() {
            return Ok(Sql::AsItStands);
        }
        let Some(prepared) = self.prepared_by(text, named).await? else {
            return Ok(Sql::AsItStands);
        };
        if let Some(Target::Refused(why)) = prepared.statement().map(|statement| &statement.target)
            && prepared
                .statement()
                .is_some_and(|statement| statement.gather.is_none())
        {
            return Err(wording::unroutable(why).into());
        }
        self.reach_any(&prepared).await?;
        if let Some(link) = &mut self.link
            && link.lease.statements.touch(prepared.id)
        {
            // What tables are like now decides about it.
            link.lease.statements.spoil(prepared.id);
        }
        self.send_parse(&prepared, Origin::Injected);
        self.send_describe(&prepared, Origin::Injected);
        self.end_of_ours().await?;
        if self.failed {
            self.end_failed();
            return Ok(Sql::Answered);
        }
        if self.statements.contains_key(name.as_bytes()) {
            return Err(reply::statement_exists(name.as_bytes()).into());
        }
        self.statements.insert(name.as_bytes().into(), prepared);
        self.info.set_prepared(self.statements.len());
        self.tally.queries += 1;
        put_complete(self.client.out(), b"PREPARE");
        self.ready_here();
        Ok(Sql::Answered)
    }

    /// The statement that PREPARE makes. Its text stands where it stands in the client's, so that errors name its places.
    /// `None`: PostgreSQL must say what is wrong with its types.
    async fn prepared_by(
        &mut self,
        text: &str,
        named: &Named,
    ) -> Result<Option<Arc<Prepared>>, Stop> {
        let Some(parts) = &named.parts else {
            return Ok(None);
        };
        let types: Vec<&str> = parts
            .types
            .iter()
            .map(|place| text[place.clone()].trim())
            .collect();
        let Some(types) = self.types_named(&types).await? else {
            return Ok(None);
        };
        let mut own = text[..parts.keyword].to_owned();
        own.extend(text[parts.keyword..parts.body].chars().map(|_| ' '));
        own.push_str(&text[parts.body..named.span.end]);
        let own = own.into_bytes();
        let planned = self.database.plans.plan(
            &own,
            &types,
            &self.context,
            &self.snapshot,
            &mut self.scratch,
        );
        let raw_types: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
        Ok(Some(Arc::new(Prepared {
            id: identity(self.shared.seed, self.context.digest, &own, &raw_types),
            sent: None,
            text: own.into_boxed_slice(),
            raw_types: raw_types.into_boxed_slice(),
            types,
            plan: planned.plan,
            slots: planned.slots,
            unnamed: false,
            meaning: self.meaning(),
            told: Arc::default(),
            executes: None,
        })))
    }

    /// The types that PREPARE names; `None`: there is one that PostgreSQL does not find.
    async fn types_named(&mut self, names: &[&str]) -> Result<Option<SmallVec<[Oid; 4]>>, Stop> {
        if names.is_empty() {
            return Ok(Some(SmallVec::new()));
        }
        let any = super::place::Place {
            shard: self.link_shard().unwrap_or(self.any),
            hold: super::link::Hold::Loose,
        };
        self.reach(any).await?;
        let oids: Vec<String> = names
            .iter()
            .map(|name| {
                let name = quoted(name);
                format!("coalesce(pg_catalog.to_regtype({name})::pg_catalog.oid, '0')")
            })
            .collect();
        let question = format!("SELECT pg_catalog.concat_ws(' ', {})", oids.join(", "));
        let Ok(Some(answer)) = self.ask(question.as_bytes()).await? else {
            return Ok(None);
        };
        let found: Option<SmallVec<[Oid; 4]>> = answer
            .split(' ')
            .map(|oid| oid.parse().ok().filter(|oid| *oid != 0))
            .collect();
        let found = found.filter(|found| found.len() == names.len());
        if let Some(found) = &found
            && !self.snapshot.is_single()
            && found.iter().any(|oid| *oid >= FIRST_OWN_OID)
        {
            let feature = "PREPARE with a type that is not PostgreSQL's own";
            return Err(wording::unroutable(&Unroutable::Unsupported { feature }).into());
        }
        Ok(found)
    }

    // ---- the extended protocol ----

    /// An EXECUTE that is parsed, with the statement that it names now; `None`: it is none, or names none.
    ///
    /// # Errors
    /// It is refused.
    pub(super) fn executed(
        &mut self,
        text: &[u8],
        plan: &Plan,
    ) -> Result<Option<Executed>, Notice> {
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
    pub(super) fn executes_now(
        &mut self,
        name: &[u8],
        prepared: Arc<Prepared>,
    ) -> Result<Arc<Prepared>, Notice> {
        let is_execute = prepared.executes.is_some()
            || prepared
                .statement()
                .is_some_and(|statement| executes(statement).is_some());
        let parsed_just_now = self
            .pending
            .iter()
            .any(|pending| Arc::ptr_eq(pending, &prepared));
        if !is_execute || parsed_just_now {
            return Ok(prepared);
        }
        let planned = self.database.plans.plan(
            &prepared.text,
            &prepared.types,
            &self.context,
            &self.snapshot,
            &mut self.scratch,
        );
        let executed = self.executed(&prepared.text, &planned.plan)?;
        let (sent, plan, executes) = match executed {
            Some(Executed {
                text,
                plan,
                execution,
            }) => (Some(text), plan, Some(execution)),
            None => (None, planned.plan, None),
        };
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
            plan,
            slots: planned.slots,
            unnamed: prepared.unnamed,
            meaning: self.meaning(),
            told: Arc::clone(&prepared.told),
            executes,
        });
        if anew.unnamed {
            self.unnamed = Some(Arc::clone(&anew));
        } else {
            self.statements.insert(name.into(), Arc::clone(&anew));
        }
        Ok(anew)
    }

    /// Makes the link a backend that has the statement, and the one that it executes.
    ///
    /// # Errors
    /// The session is over, or the batch is refused.
    pub(super) async fn make_fit_to_execute(
        &mut self,
        prepared: &Arc<Prepared>,
    ) -> Result<(), Stop> {
        if let Some(execution) = &prepared.executes {
            self.renamed = Some(Box::new(execution.renamed.clone()));
            self.make_fit(&execution.statement).await?;
            if self.skip {
                return Ok(());
            }
        }
        self.make_fit(prepared).await
    }

    // ---- where it runs, and what it does ----

    /// The plan of an EXECUTE: its statement's, with these values.
    fn derived(
        &self,
        outer: &StatementPlan,
        statement: &Prepared,
        arguments: &[Argument],
    ) -> Result<StatementPlan, Notice> {
        if let Target::Explain(inner) = &outer.target {
            let derived = self.derived(inner, statement, arguments)?;
            return Ok(StatementPlan {
                target: Target::Explain(Box::new(derived)),
                ..outer.clone()
            });
        }
        let Some(within) = executes(outer) else {
            return Ok(outer.clone());
        };
        let Some(inner) = statement.statement() else {
            return Ok(left_alone(outer));
        };
        let followed = effect_of(&inner.effect, within).filter(|_| statement.executes.is_none());
        let Some(effect) = followed else {
            let feature = "EXECUTE of a command that is no query";
            return Err(wording::unroutable(&Unroutable::Unsupported { feature }));
        };
        let target = match &outer.target {
            Target::Fixed(Route::Any) => self.target(inner, statement, arguments)?,
            kept => kept.clone(),
        };
        let access = match within {
            Within::Explain => Access::Read,
            Within::Table | Within::TemporaryTable => Access::Write,
            Within::Itself | Within::ExplainAnalyze => inner.access,
        };
        Ok(StatementPlan {
            start: outer.start,
            end: outer.end,
            effect,
            access,
            target,
            gather: None,
        })
    }

    fn target(
        &self,
        inner: &StatementPlan,
        statement: &Prepared,
        arguments: &[Argument],
    ) -> Result<Target, Notice> {
        let told = statement.told.raw_types().map(|types| types.len() / 4);
        if told.is_some_and(|count| count != arguments.len()) {
            // PostgreSQL says how many it takes.
            return Ok(Target::Fixed(Route::Any));
        }
        if let (Target::ByKey(_), Some(finding)) =
            (&inner.target, self.database.unfit.load().as_deref())
        {
            return Err(reply::unfit(finding));
        }
        let escapes = !self.context.standard_conforming_strings;
        let unread = |argument: &Argument| match argument {
            Argument::Null => false,
            Argument::Text(text) => escapes && text.contains('\\'),
            Argument::Computed => true,
        };
        let unread = (0..)
            .zip(arguments)
            .any(|(index, argument)| unread(argument) && inner.reads_parameter(index));
        if unread {
            let feature = "EXECUTE with a shard key that is not a constant";
            return Ok(Target::Refused(Box::new(Unroutable::Unsupported {
                feature,
            })));
        }
        let body = bound(arguments);
        let Ok(bind) = Bind::decode(&body) else {
            return Err(reply::malformed());
        };
        let values = Values {
            text: &statement.text,
            slots: &statement.slots,
            types: &statement.types,
            bind: Some(&bind),
        };
        Ok(match inner.route(&self.snapshot, &values) {
            Ok(route) => Target::Fixed(route),
            Err(why) => Target::Refused(why),
        })
    }
}

/// The text and where its statements name others, as far as we read it as PostgreSQL does.
fn readable<'t>(text: &'t [u8], plan: &Plan) -> Option<(&'t str, Vec<Named>)> {
    let text = std::str::from_utf8(text).ok()?;
    let named = executions(text).ok()?;
    (named.len() == plan.statements.len()).then_some((text, named))
}

/// A statement whose name the session does not know: PostgreSQL judges it. What it makes stays where it was made.
fn left_alone(outer: &StatementPlan) -> StatementPlan {
    let effect = match executes(outer) {
        Some(Within::TemporaryTable) => Effect::Pins(PinReason::TemporaryTable),
        _ => outer.effect.clone(),
    };
    StatementPlan {
        effect,
        ..outer.clone()
    }
}

/// What an EXECUTE does to the session; `None`: its statement is no query, and what becomes of it is not followed.
fn effect_of(inner: &Effect, within: Within) -> Option<Effect> {
    let followed = matches!(
        inner,
        Effect::None
            | Effect::Set { .. }
            | Effect::Draws
            | Effect::Pins(_)
            | Effect::Opaque
            | Effect::Notify
            | Effect::Channels
    );
    if !followed {
        return None;
    }
    Some(match (within, inner) {
        (Within::Itself, inner) => inner.clone(),
        (Within::TemporaryTable, _) => Effect::Pins(PinReason::TemporaryTable),
        (Within::ExplainAnalyze | Within::Table, Effect::Pins(_) | Effect::Opaque) => inner.clone(),
        (Within::ExplainAnalyze | Within::Table, Effect::Set { local: false, .. }) => {
            Effect::Pins(PinReason::Setting)
        }
        (Within::Explain | Within::ExplainAnalyze | Within::Table, _) => Effect::None,
    })
}

/// The body of a Bind with these values as text.
fn bound(arguments: &[Argument]) -> Vec<u8> {
    let mut body = vec![0, 0, 0, 0];
    let count = u16::try_from(arguments.len()).unwrap_or(u16::MAX);
    body.extend_from_slice(&count.to_be_bytes());
    for argument in arguments.iter().take(usize::from(count)) {
        match argument {
            Argument::Text(text) => {
                let length = i32::try_from(text.len()).unwrap_or(0);
                body.extend_from_slice(&length.to_be_bytes());
                body.extend_from_slice(text.as_bytes());
            }
            Argument::Null | Argument::Computed => body.extend_from_slice(&(-1_i32).to_be_bytes()),
        }
    }
    body.extend_from_slice(&[0, 0]);
    body
}
