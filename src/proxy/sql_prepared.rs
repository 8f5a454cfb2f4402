//! Statements that SQL prepares and executes. Their names are those of the protocol's statements and stay in the
//! session; a backend has the statement under its hash, and gets `EXECUTE` with that name.
//!
//! What must stay true: an EXECUTE runs where its statement would run with these values, and what it does to the session
//! is what its statement does; the rest of its text is the client's own, so that PostgreSQL reads the values and words
//! the errors, in which the client finds its own names and positions.

use super::{
    link::Hold,
    place::Place,
    prepared::{Prepared, ServerName, identity},
    reply::{self as wording, session as reply},
    request::Stop,
    session::{Note, Phase, Session},
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
    /// What the text prepares, by the client's names.
    prepares: Vec<(String, Arc<Prepared>)>,
    /// What the text deallocates on the backend, in order.
    takes: Vec<u128>,
}

/// The names that a text has given and taken so far.
#[derive(Default)]
struct Names {
    known: Vec<(String, Option<Arc<Prepared>>)>,
    /// Whether it has forgotten all that was there before it.
    all_forgotten: bool,
}

/// Where a statement comes from that a text names.
enum Found {
    /// The session had it before.
    Before(Arc<Prepared>),
    /// The text itself prepares it.
    Within(Arc<Prepared>),
    Nowhere,
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

/// A text whose names are being found.
struct Resolving<'t> {
    rewriting: Rewriting<'t>,
    needs: Needs,
}

impl Resolving<'_> {
    /// Names what was found as backends do.
    fn name(&mut self, place: &Named, name: &str, found: Found) -> Option<Arc<Prepared>> {
        let statement = match found {
            Found::Nowhere => return None,
            Found::Within(statement) => statement,
            Found::Before(statement) => {
                self.needs.push(Arc::clone(&statement));
                statement
            }
        };
        self.rewriting.rename(place, name, statement.server_name());
        Some(statement)
    }

    /// The text prepares it under the name that it has on backends.
    fn prepare(&mut self, place: &Named, name: &str, prepared: &Arc<Prepared>) {
        self.rewriting.rename(place, name, prepared.server_name());
        let prepares = &mut self.rewriting.renamed.prepares;
        prepares.push((name.to_owned(), Arc::clone(prepared)));
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
        let mut prepares = Vec::new();
        for named in &named {
            if let Naming::Prepares { .. } = &named.naming {
                let types = self.types_named(text, named).await?;
                let body = body_of(text, named);
                // Within a text their places tell them apart.
                prepares.push(types.map(|types| self.prepared_apart(body, &types, &[])));
            }
        }
        let resolved = self.resolved(text, plan, &named, prepares)?;
        Ok(Sql::Resolved(Box::new(resolved)))
    }

    fn resolved(
        &mut self,
        text: &str,
        plan: &Plan,
        named: &[Named],
        prepares: Vec<Option<Arc<Prepared>>>,
    ) -> Result<Resolved, Notice> {
        let mut taken: Vec<u128> = prepares.iter().flatten().map(|made| made.id).collect();
        let mut prepares = prepares.into_iter();
        let mut names = Names::default();
        let mut made = Resolving {
            rewriting: Rewriting::new(text),
            needs: Needs::new(),
        };
        let mut statements = Vec::with_capacity(named.len());
        for (outer, place) in plan.statements.iter().zip(named) {
            let mut derived = None;
            match &place.naming {
                Naming::Executes { name, arguments } => {
                    let found = self.found(&names, name);
                    if let Some(statement) = made.name(place, name, found) {
                        derived = Some(self.derived(outer, &statement, arguments)?);
                    }
                }
                // Alone it is answered here.
                Naming::Deallocates { name } if named.len() > 1 => {
                    match self.found(&names, name) {
                        // Another name may stand for the same on the backend: what goes there is a copy.
                        Found::Before(statement) => {
                            let copy = self.copied(&statement, &taken);
                            taken.push(copy.id);
                            made.rewriting.renamed.takes.push(copy.id);
                            made.name(place, name, Found::Before(copy));
                        }
                        Found::Within(statement) => {
                            made.rewriting.renamed.takes.push(statement.id);
                            made.name(place, name, Found::Within(statement));
                        }
                        Found::Nowhere => {}
                    }
                    names.known.push((name.clone(), None));
                }
                Naming::Prepares { name } => {
                    let found = self.found(&names, name);
                    let prepared = prepares.next().flatten();
                    if made.name(place, name, found).is_none()
                        && let Some(prepared) = prepared
                    {
                        derived = Some(preparing(outer, &prepared));
                        made.prepare(place, name, &prepared);
                        names.known.push((name.clone(), Some(prepared)));
                    }
                }
                Naming::Nothing | Naming::Deallocates { .. } => {
                    if matches!(outer.effect, Effect::DiscardAll | Effect::Deallocate(None)) {
                        names.known.clear();
                        names.all_forgotten = true;
                    }
                }
            }
            statements.push(derived.unwrap_or_else(|| left_alone(outer)));
        }
        let (text, renamed) = made.rewriting.done();
        let plan = Arc::new(Plan {
            statements,
            structural: Vec::new(),
        });
        Ok(Resolved {
            text,
            plan,
            needs: made.needs,
            renamed,
        })
    }

    fn found(&mut self, names: &Names, name: &str) -> Found {
        let within = names.known.iter().rev().find(|(known, _)| known == name);
        match within {
            Some((_, Some(prepared))) => Found::Within(Arc::clone(prepared)),
            Some((_, None)) => Found::Nowhere,
            None if names.all_forgotten => Found::Nowhere,
            None => match self.statement_now(name) {
                Some(prepared) => Found::Before(prepared),
                None => Found::Nowhere,
            },
        }
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
            self.make_room(&resolved).await?;
        }
        self.renamed = Some(Box::new(resolved.renamed));
        self.send_query(&resolved.text, resolved.plan);
        Ok(())
    }

    /// What the text prepares is not there yet, as another session or an earlier text may have left it.
    async fn make_room(&mut self, resolved: &Resolved) -> Result<(), Stop> {
        let mut closes = false;
        for (_, prepared) in &resolved.renamed.prepares {
            let id = prepared.id;
            let Some(link) = &mut self.link else { break };
            let there = link.lease.statements.touch(id) || link.lease.statements.is_spoilt(id);
            if !there || resolved.needs.iter().any(|needed| needed.id == id) {
                continue;
            }
            let name = prepared.server_name();
            let out = link.lease.stream.out();
            frontend::put_named(out, b'C', frontend::Named::Statement(name.as_bytes()));
            link.lease.statements.remove(id);
            self.pipeline
                .asked(Request::Close, Origin::Injected, Note::Evicted(id));
            closes = true;
        }
        if closes && self.phase == Phase::Idle {
            self.end_of_ours().await?;
        }
        Ok(())
    }

    /// PREPARE has been confirmed; false: it was sent as it stood, and the backend alone knows it.
    pub(super) fn prepared_there(&mut self, name: &str) -> bool {
        let Some(renamed) = &mut self.renamed else {
            return false;
        };
        let Some(at) = renamed.prepares.iter().position(|(known, _)| known == name) else {
            return false;
        };
        let (name, prepared) = renamed.prepares.remove(at);
        if let Some(link) = &mut self.link {
            // Its text there is the whole message's: parsed anew, it is its own, and errors name the places in that.
            link.lease.statements.spoil(prepared.id);
        }
        self.statements
            .insert(name.into_bytes().into_boxed_slice(), prepared);
        self.info.set_prepared(self.statements.len());
        true
    }

    /// DEALLOCATE of one name has been confirmed.
    pub(super) fn deallocated_there(&mut self, name: &str) {
        if self.statements.remove(name.as_bytes()).is_some() {
            self.info.set_prepared(self.statements.len());
        }
        let Some(renamed) = &mut self.renamed else {
            return;
        };
        if !renamed.takes.is_empty()
            && let Some(link) = &mut self.link
        {
            link.lease.statements.remove(renamed.takes.remove(0));
        }
    }

    /// The same statement by another name on backends.
    fn copied(&mut self, statement: &Prepared, taken: &[u128]) -> Arc<Prepared> {
        let own = String::from_utf8_lossy(&statement.text).into_owned();
        self.prepared_apart(own, &statement.types, taken)
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
            self.pipeline
                .asked(Request::Sync, Origin::Injected, Note::Nothing);
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
        let Some(types) = self.types_named(text, named).await? else {
            return Ok(Sql::AsItStands);
        };
        let prepared = self.prepared_by(body_of(text, named), types);
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

    /// The statement that PREPARE makes.
    fn prepared_by(&mut self, own: String, types: SmallVec<[Oid; 4]>) -> Arc<Prepared> {
        let own = own.into_bytes();
        let planned = self.database.plans.plan(
            &own,
            &types,
            &self.context,
            &self.snapshot,
            self.scratch.get_or_insert_default(),
        );
        let raw_types: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
        Arc::new(Prepared {
            id: identity(self.shared.seed, self.context.digest, &own, &raw_types),
            sent: None,
            text: own.into_boxed_slice(),
            raw_types: raw_types.into_boxed_slice(),
            types,
            plan: planned.plan,
            slots: planned.slots.as_slice().into(),
            unnamed: false,
            meaning: self.meaning(),
            told: Arc::default(),
            executes: None,
        })
    }

    /// As [`Self::prepared_by`], with a name on backends that none of the session's statements has: a message may make
    /// it there, or take it away, while it uses another.
    fn prepared_apart(
        &mut self,
        mut own: String,
        types: &SmallVec<[Oid; 4]>,
        taken: &[u128],
    ) -> Arc<Prepared> {
        loop {
            own.push('\t');
            let made = self.prepared_by(own.clone(), types.clone());
            let is_known = self.statements.values().any(|known| known.id == made.id);
            if !is_known && !taken.contains(&made.id) {
                return made;
            }
        }
    }

    /// The types that PREPARE names; `None`: there is one that PostgreSQL must be asked about with the statement itself.
    async fn types_named(
        &mut self,
        text: &str,
        named: &Named,
    ) -> Result<Option<SmallVec<[Oid; 4]>>, Stop> {
        let places = named.parts.as_ref().map_or(&[][..], |parts| &parts.types);
        let names: Vec<&str> = places
            .iter()
            .map(|place| text[place.clone()].trim())
            .collect();
        if names.is_empty() {
            return Ok(Some(SmallVec::new()));
        }
        if self.phase != Phase::Idle || !self.pipeline.is_empty() {
            return Ok(None);
        }
        let any = Place {
            shard: self.link_shard().unwrap_or(self.any),
            hold: Hold::Aside,
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
            self.scratch.get_or_insert_default(),
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
            slots: planned.slots.as_slice().into(),
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
            numbers: inner.numbers,
            ..StatementPlan::new(outer.start..outer.end, effect, access, target)
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

/// The statement of a PREPARE. It stands where it stands in the client's text, so that errors name its places.
fn body_of(text: &str, named: &Named) -> String {
    let blank = |text: &str| text.chars().map(|_| ' ').collect::<String>();
    let Some(parts) = &named.parts else {
        return String::new();
    };
    // A remark before it may say where it runs.
    [
        &blank(&text[..named.span.start]),
        &text[named.span.start..parts.keyword],
        &blank(&text[parts.keyword..parts.body]),
        &text[parts.body..named.span.end],
    ]
    .concat()
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

/// A PREPARE among others.
fn preparing(outer: &StatementPlan, prepared: &Prepared) -> StatementPlan {
    let target = match prepared.statement() {
        Some(StatementPlan {
            target: Target::Fixed(route @ (Route::One(_) | Route::Home)),
            ..
        }) => Target::Fixed(route.clone()),
        Some(StatementPlan {
            target: Target::Refused(why),
            ..
        }) => Target::Refused(why.clone()),
        _ => Target::Fixed(Route::Any),
    };
    StatementPlan {
        numbers: outer.numbers,
        ..StatementPlan::new(
            outer.start..outer.end,
            outer.effect.clone(),
            Access::Read,
            target,
        )
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
