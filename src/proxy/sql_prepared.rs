//! Statements that SQL prepares and executes. Their names are those of the protocol's statements and stay in the
//! session; a backend has the statement under its hash, and gets `EXECUTE` with that name.
//!
//! What must stay true: an EXECUTE runs where its statement would run with these values, and what it does to the session
//! is what its statement does; the rest of its text is the client's own, so that PostgreSQL reads the values and words
//! the errors, in which the client finds its own names and positions.

mod parsing;
mod renaming;
mod running;
mod spreading;

pub(super) use parsing::{Execution, Meant};
pub(super) use renaming::Renamed;

use super::{
    link::Hold,
    place::Place,
    prepared::{Prepared, identity},
    reply::{self as wording, session as reply},
    request::Stop,
    session::{Note, Phase, Session},
};
use crate::{
    plan::{Plan, StatementPlan, Target, cache::Planned, unroutable::Unroutable},
    protocol::pipeline::{Origin, Request},
    sql::{
        executions::{Named, Naming, executions},
        statement::{Effect, quoted},
    },
    wire::{
        backend::{Status, put_complete},
        frame::{HEADER, Header},
        frontend,
        notice::Notice,
        types::Oid,
    },
};
use renaming::{Found, Names, Needs, Resolving, Rewriting};
use running::{executes, left_alone, preparing};
use smallvec::SmallVec;
use std::sync::Arc;

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u32 = 16384;

/// What becomes of a text that names prepared statements.
#[derive(Debug)]
enum Sql {
    AsItStands,
    Answered,
    Resolved(Box<Resolved>),
}

/// A text whose names are those of a backend's statements.
#[derive(Debug)]
pub(super) struct Resolved {
    text: Vec<u8>,
    plan: Arc<Plan>,
    needs: Needs,
    renamed: Renamed,
}

/// Whether a statement names one that is prepared.
fn names_prepared(statement: &StatementPlan) -> bool {
    executes(statement).is_some()
        || matches!(
            statement.effect,
            Effect::Prepare(_) | Effect::Deallocate(Some(_))
        )
}

impl Session {
    /// The plan of a Query, with the prepared statements that it names, if any; `None`: it has been answered.
    ///
    /// # Errors
    /// The session is over, or the Query is refused.
    pub(super) async fn with_names(
        &mut self,
        text: &[u8],
        planned: Planned,
    ) -> Result<Option<(Planned, Option<Box<Resolved>>)>, Stop> {
        if !planned.plan.statements.iter().any(names_prepared) {
            return Ok(Some((planned, None)));
        }
        Ok(match Box::pin(self.resolve(text, &planned.plan)).await? {
            Sql::AsItStands => Some((planned, None)),
            Sql::Answered => None,
            Sql::Resolved(resolved) => {
                let plan = Arc::clone(&resolved.plan);
                Some((Planned { plan, ..planned }, Some(resolved)))
            }
        })
    }

    /// Sends a Query to the link, and before it what it needs there.
    ///
    /// # Errors
    /// The session is over, or the Query is refused.
    pub(super) async fn send_named(
        &mut self,
        text: &[u8],
        plan: Arc<Plan>,
        resolved: Option<Box<Resolved>>,
    ) -> Result<(), Stop> {
        if let Some(resolved) = resolved {
            return Box::pin(self.run_resolved(*resolved)).await;
        }
        if self.several.goes_on() {
            Box::pin(self.query_everywhere(&plan, text)).await?;
        }
        self.send_query(text, plan);
        Ok(())
    }

    /// The backend's error as the client is told of it, when names or places in it are not the client's.
    pub(super) fn restated(&self, header: Header, body: &[u8]) -> Option<Vec<u8>> {
        let whole = body.len() + HEADER == header.size;
        let renamed = self.renamed.as_ref().filter(|_| whole)?;
        renamed.restated(body)
    }

    async fn resolve(&mut self, text: &[u8], plan: &Plan) -> Result<Sql, Stop> {
        if self.status() == Status::Failed && plan.statements.len() == 1 {
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

    #[expect(
        clippy::too_many_lines,
        reason = "one arm for each way in which a statement names another"
    )]
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
                    if matches!(found, Found::Nowhere) {
                        check_foreign(name)?;
                    }
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
                        Found::Nowhere => check_foreign(name)?,
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
                Naming::Deallocates { name } => {
                    if self.statement_now(name).is_none() {
                        check_foreign(name)?;
                    }
                }
                Naming::Nothing => {
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

    async fn run_resolved(&mut self, resolved: Resolved) -> Result<(), Stop> {
        let failed = self.link.as_ref().map(|link| link.status) == Some(Status::Failed);
        for statement in &resolved.needs {
            if failed {
                // The end of the transaction stands in the same text, and nothing is parsed before that.
                let link = self.link.as_mut();
                if !link.is_some_and(|link| link.knows(statement.id, false)) {
                    return Err(reply::transaction_failed().into());
                }
            } else if !self.provide(statement).await? {
                return Ok(());
            }
        }
        self.make_room(&resolved).await?;
        if self.several.goes_on() {
            Box::pin(self.query_everywhere(&resolved.plan, &resolved.text)).await?;
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
                .is_some_and(|statement| !statement.may_use_several())
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
            computing: None,
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

/// The text and where its statements name others, as far as we read it as PostgreSQL does.
fn readable<'t>(text: &'t [u8], plan: &Plan) -> Option<(&'t str, Vec<Named>)> {
    let text = std::str::from_utf8(text).ok()?;
    let named = executions(text).ok()?;
    (named.len() == plan.statements.len()).then_some((text, named))
}

/// A name of ours on backends, which is no name of the session's: what stands behind it is not the session's to use.
fn check_foreign(name: &str) -> Result<(), Notice> {
    let hash = name.strip_prefix("sw_").unwrap_or_default();
    if hash.len() == 32 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(reply::no_such_statement(name.as_bytes()));
    }
    Ok(())
}
