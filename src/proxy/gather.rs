//! Reads of one sharded table over several shards: asks the shards for the rows, and lets one of them compute the
//! statement over all of them.
//!
//! What must stay true: every shard is asked exactly once and answers to its end, or the statement fails; what is held
//! of rows stays within a limit; the rows' columns are those that the statement was made for.

use super::{
    Shared,
    fan::Fan,
    link::{Hold, Link},
    place::Place,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{End, Note, Phase, Session, broken, read_more},
    within::{BACK, MARK, UNMARK},
};
use crate::{
    catalog::{
        shard::{ShardId, ShardSet},
        snapshot::Table,
    },
    config::settings::PoolMode,
    plan::{
        Plan, Route, StatementPlan, Target, Values,
        gather::{Asked, Gather, Push, Texts, array_element},
        owned::PerShard,
        unroutable::Unroutable,
    },
    pool::backend::Reported,
    protocol::{
        parameters::{self, Value},
        pipeline::{Origin, Request},
    },
    sql::statement::Access,
    wire::{
        backend::Status,
        frame,
        frontend::{self, Bind, Named, put, put_bind, put_named, put_parse},
        notice::{Notice, Words},
        types::Oid,
    },
};
use std::sync::{Arc, atomic::Ordering::Relaxed};

/// Bytes of rows that one statement holds, counted with all others' for as long as this lives.
#[derive(Debug)]
pub(super) struct Held {
    shared: Arc<Shared>,
    own: usize,
}

impl Held {
    /// Nothing yet.
    pub(super) fn none(shared: &Arc<Shared>) -> Self {
        Self {
            shared: Arc::clone(shared),
            own: 0,
        }
    }

    /// Counts `more` bytes; false: they are too many.
    pub(super) fn take(&mut self, more: usize, limit: usize, limit_total: usize) -> bool {
        self.own += more;
        self.shared.gathered.fetch_add(more, Relaxed) + more <= limit_total && self.own <= limit
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared.gathered.fetch_sub(self.own, Relaxed);
    }
}

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u32 = 16384;
/// The rest of a Bind without parameters, with a result in text.
const NOTHING_BOUND: [u8; 6] = [0; 6];

/// What comes with a statement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bound<'a> {
    /// Types of parameters, as they stand in Parse.
    pub(super) types: &'a [u8],
    pub(super) tail: Option<&'a Bind<'a>>,
}

/// The statement over the rows of all shards.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    pub(super) types: Vec<u8>,
    /// Its RowDescription's body.
    pub(super) columns: Vec<u8>,
}

/// What PostgreSQL says of a statement.
#[derive(Debug, Default)]
pub(super) struct Described {
    /// Its parameters' types, as they stand in Parse.
    pub(super) types: Vec<u8>,
    /// The RowDescription's body.
    columns: Vec<u8>,
}

/// What each shard is asked.
#[derive(Debug)]
struct Question {
    asked: Asked,
    text: PerShard,
    /// The RowDescription that is expected.
    shape: Vec<u8>,
    /// What reads the needed columns of the table, and the RowDescription that is expected of it.
    columns: String,
    shape_of_columns: Vec<u8>,
    types: Vec<u8>,
    tail: Vec<u8>,
    /// What values are written by, as the shard that answers has it: names and values.
    settings: Vec<(&'static str, Vec<u8>)>,
}

/// Reported settings by which values are written and read.
const OF_VALUES: [&str; 3] = ["DateStyle", "IntervalStyle", "TimeZone"];

impl Question {
    /// What a shard is told first, so that it reads and writes values as the one that answers does.
    fn preparations(&self, reported: &Reported) -> Vec<String> {
        let mut settings = vec!["SET LOCAL extra_float_digits = 3".to_owned()];
        for (name, value) in &self.settings {
            if reported.get(name.as_bytes()) != Some(value.as_slice()) {
                let mut text = String::new();
                parameters::quote_literal(&mut text, &String::from_utf8_lossy(value));
                settings.push(parameters::set_local(name, Some(&text)));
            }
        }
        settings
    }

    /// As one batch, in whose transaction values are written so that they read back as they are; in the client's this is
    /// undone behind it.
    fn put(&self, preparations: &[String], own: Own<'_>, stands: Stands, out: &mut Vec<u8>) {
        let execute = |out: &mut Vec<u8>| {
            put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
        };
        let run = |sql: &str, out: &mut Vec<u8>| {
            put_parse(out, b"", sql.as_bytes(), b"");
            put_bind(out, b"", b"", &NOTHING_BOUND);
            execute(out);
        };
        if stands == Stands::Within {
            run(MARK, out);
        }
        for set in preparations {
            run(set, out);
        }
        put_parse(out, b"", self.columns.as_bytes(), b"");
        put_named(out, b'D', Named::Statement(b""));
        put_parse(out, b"", self.text.on(own.shard).as_bytes(), own.types);
        put_bind(out, b"", b"", &self.tail);
        put_named(out, b'D', Named::Portal(b""));
        execute(out);
        if stands == Stands::Within {
            run(BACK, out);
            run(UNMARK, out);
        }
        frontend::put_bare(out, b'S');
    }
}

/// What is one shard's own of a question.
#[derive(Clone, Copy)]
struct Own<'a> {
    shard: ShardId,
    /// Of parameters, as they stand in Parse.
    types: &'a [u8],
}

/// Whose transaction the shards answer in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stands {
    /// One of each shard's own.
    Apart,
    /// The client's.
    Within,
}

/// A statement to be computed over several shards.
pub(super) struct Scatter {
    pub(super) plan: Arc<Plan>,
    shards: ShardSet,
}

impl Session {
    /// Whether this statement, the only one of its text, is computed over several shards, and over which.
    pub(super) fn scatters(&self, plan: &Arc<Plan>, values: &Values<'_>) -> Option<Scatter> {
        let [statement] = plan.statements.as_slice() else {
            return None;
        };
        statement.gather.as_ref()?;
        if !self.may_scatter(statement) {
            return None;
        }
        let shards = match &statement.target {
            Target::Refused(why) if matches!(**why, Unroutable::Unpinned { .. }) => {
                self.snapshot.all()
            }
            Target::ByKey(_) => match statement.route(&self.snapshot, values) {
                Ok(Route::Some(shards)) => shards,
                Ok(Route::All) => self.snapshot.all(),
                Err(why) if matches!(*why, Unroutable::SeveralShards { .. }) => self.snapshot.all(),
                Ok(Route::One(_) | Route::Any | Route::Home) | Err(_) => return None,
            },
            Target::Refused(_) | Target::Fixed(_) | Target::Explain(_) | Target::Judge => {
                return None;
            }
        };
        Some(Scatter {
            plan: Arc::clone(plan),
            shards,
        })
    }

    /// With values that read back as they were written.
    fn may_scatter(&self, statement: &StatementPlan) -> bool {
        (self.may_ask_shards(statement) || self.may_ask_within(statement))
            && self.values_read_back()
    }

    /// Whether values read back as they are written.
    pub(super) fn values_read_back(&self) -> bool {
        let reported = |name: &[u8], start: &[u8]| {
            let value = self.reported.get(name);
            value.is_some_and(|value| value.starts_with(start))
        };
        reported(b"DateStyle", b"ISO")
            && (reported(b"IntervalStyle", b"postgres") || reported(b"IntervalStyle", b"iso_8601"))
    }

    /// Outside of a transaction that has begun anywhere.
    pub(super) fn may_ask_shards(&self, statement: &StatementPlan) -> bool {
        let beside = if self.deferred.is_none() {
            self.begins_read_committed()
        } else {
            statement.access == Access::Read && self.reads_beside()
        };
        beside
            && self.phase != Phase::Answering
            && !self.is_kept()
            && self.mode == PoolMode::Transaction
            && !self.snapshot.is_single()
            && self.database.unfit.load().is_none()
            && self
                .link
                .as_ref()
                .is_none_or(|link| is_free(link, self.phase))
    }

    /// Binds a statement that no shard alone can answer: it is computed over several, or refused.
    pub(super) async fn bind_elsewhere(
        &mut self,
        refused: Notice,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
        values: &Values<'_>,
    ) -> Result<(), Stop> {
        if self.bind_spread(prepared, bind, values).await? {
            return Ok(());
        }
        let Some(scatter) = &self.scatters(&prepared.plan, values) else {
            return Err(refused.into());
        };
        self.answer_pending().await?;
        if self.link.is_some() {
            self.leave_link().await?;
        }
        if self.skip {
            return Ok(());
        }
        let bound = Bound {
            types: &prepared.raw_types,
            tail: Some(bind),
        };
        if !bind.portal.is_empty() && self.deferred.is_some() {
            // It lives to the end of the transaction, and may be read in parts.
            let (shard, hold) = (self.any, Hold::Bound);
            self.reach(Place { shard, hold }).await?;
        }
        let answer = self.gather(scatter, &prepared.text, &bound).await?;
        self.judge_answer(&prepared.told, &answer.columns, bind)?;
        if !bind.portal.is_empty() {
            self.portal_goes_there(bind.portal);
        }
        let types = self
            .link_shard()
            .map(|shard| self.types_for(shard, &answer.types));
        let (Some(link), Some(types)) = (&mut self.link, types) else {
            return Err(End::Client.into());
        };
        prepared
            .statement()
            .into_iter()
            .for_each(|one| link.sends(one));
        let out = link.lease.stream.out();
        put_parse(out, b"", answer.text.as_bytes(), &types);
        put_bind(out, bind.portal, b"", bind.tail);
        link.lease.unnamed = None;
        self.pipeline
            .asked(Request::Parse, Origin::Injected, Note::Nothing);
        self.pipeline
            .asked(Request::Bind, Origin::Client, Note::Nothing);
        self.portals.remove(bind.portal);
        self.note_arrays(bind.portal, prepared);
        Ok(())
    }

    /// The table that is gathered, as the search path finds it, with its columns.
    fn gathered_table(&self, gather: &Gather) -> Option<Table> {
        let found = self.snapshot.table(&gather.schema, &gather.table)?;
        let known = !found.columns.is_empty() && found.columns.len() == found.sources.len();
        known.then(|| found.clone())
    }

    /// The text of the statement over the rows of all its shards.
    ///
    /// # Errors
    /// It is refused, or a server has said why it fails.
    pub(super) async fn gather(
        &mut self,
        scatter: &Scatter,
        text: &[u8],
        bound: &Bound<'_>,
    ) -> Result<Answer, Stop> {
        let (statement, gather, own) = gathers(scatter, text)?;
        let table = self.gathered_table(gather);
        let texts = table.as_ref().and_then(|table| gather.texts(own, table));
        let Some(texts) = texts else {
            return Err(refusal(statement));
        };
        let (question, columns, judges) =
            self.judged_question(statement, &texts, text, bound).await?;
        let (arrays, held) = self.ask_all(&scatter.shards, &question).await?;
        self.reach_to_compute(statement, judges).await?;
        if let Some(link) = &mut self.link {
            // Until the backend has answered, and is given back.
            link.gathered = Some(held);
        }
        Ok(Answer {
            text: texts.answer(&question.asked, &arrays),
            types: question.types,
            columns,
        })
    }

    /// The shards, and what each would be asked, with the types and values of parameters as they stand in messages.
    ///
    /// # Errors
    /// As [`Session::gather`].
    pub(super) async fn gather_question(
        &mut self,
        scatter: &Scatter,
        text: &[u8],
        bound: &Bound<'_>,
    ) -> Result<(ShardSet, String, Vec<u8>), Stop> {
        let (statement, gather, own) = gathers(scatter, text)?;
        let table = self.gathered_table(gather);
        let texts = table.as_ref().and_then(|table| gather.texts(own, table));
        let Some(texts) = texts else {
            return Err(refusal(statement));
        };
        let (question, _columns, _judges) =
            self.judged_question(statement, &texts, text, bound).await?;
        let shards = scatter.shards.clone();
        Ok((shards, question.asked.question, question.types))
    }

    /// What the shards are asked, when PostgreSQL accepts the statement, its columns, and the shard that has judged it.
    async fn judged_question(
        &mut self,
        statement: &StatementPlan,
        texts: &Texts<'_>,
        text: &[u8],
        bound: &Bound<'_>,
    ) -> Result<(Question, Vec<u8>, Option<ShardId>), Stop> {
        self.reach_to_judge(statement).await?;
        let judges = self.link_shard();
        self.mark().await?;
        // PostgreSQL says what is wrong with the statement; what it accepts means something else over rows.
        let Ok(over_rows) = self
            .parses(texts.template().as_bytes(), bound.types)
            .await?
        else {
            self.back_to_mark().await?;
            // A transaction beside a deferred one has failed with it.
            self.end_aside().await?;
            self.reach_to_judge(statement).await?;
            let judged = self.parses(text, bound.types).await?;
            return Err(judged.map_or_else(Stop::from, |_| refusal(statement)));
        };
        let Ok(shape) = self.parses(texts.shape().as_bytes(), b"").await? else {
            return Err(reply::rows::columns_changed().into());
        };
        let columns = over_rows.columns.clone();
        let question = self
            .question(texts, over_rows, shape.columns, bound)
            .await?;
        self.unmark().await?;
        // Two sessions that lease several shards in the same order never wait for each other.
        self.leave_link().await?;
        Ok((question, columns, judges))
    }

    /// What the shards are asked: as little as makes the same answer.
    async fn question(
        &mut self,
        texts: &Texts<'_>,
        over_rows: Described,
        shape: Vec<u8>,
        bound: &Bound<'_>,
    ) -> Result<Question, Stop> {
        let push = self.push();
        let names = names(&over_rows.columns);
        let mut found = None;
        if let Some(groups) = texts.groups(push, &names)
            && let Ok(partial) = self
                .parses(groups.question.as_bytes(), &over_rows.types)
                .await?
            && let Some(asked) = groups.finish(&type_oids(&partial.columns))
        {
            let over_parts = self
                .parses(texts.answer(&asked, &[]).as_bytes(), &over_rows.types)
                .await?;
            if over_parts
                .is_ok_and(|over_parts| columns(&over_parts.columns) == columns(&over_rows.columns))
            {
                found = Some((asked, partial.columns));
            }
        }
        if found.is_none() {
            self.back_to_mark().await?;
            let asked = texts.rows(push, &names);
            let understood = self
                .parses(asked.question.as_bytes(), &over_rows.types)
                .await?;
            let asked = understood.map_or_else(|_| texts.rows(Push::Columns, &names), |_| asked);
            found = Some((asked, shape.clone()));
        }
        let Some((asked, expected)) = found else {
            return Err(reply::rows::columns_changed().into());
        };
        let reported = self.link.as_ref().map(|link| &link.lease.reported);
        let value = |name: &'static str| Some((name, reported?.get(name.as_bytes())?.to_vec()));
        let settings = OF_VALUES.into_iter().filter_map(value).collect();
        Ok(Question {
            text: self.per_shard(&asked.question)?,
            asked,
            shape: expected,
            columns: texts.columns(),
            shape_of_columns: shape,
            settings,
            types: over_rows.types,
            tail: bound
                .tail
                .map_or_else(|| NOTHING_BOUND.to_vec(), Bind::tail_for_text),
        })
    }

    /// Questions are asked with floats written in full: what the client sees of them must be no shorter.
    pub(super) fn push(&self) -> Push {
        let in_full = |value: &Value| {
            let (Value::Sql(text) | Value::Config(text)) = value;
            ["1", "2", "3"].contains(&text.trim_matches('\''))
        };
        match self.parameters.get("extra_float_digits") {
            Some(value) if !in_full(value) => Push::Columns,
            Some(_) | None => Push::All,
        }
    }

    /// Makes the link a backend that judges the statement.
    async fn reach_to_judge(&mut self, statement: &StatementPlan) -> Result<(), Stop> {
        let asks_for_time = statement.access == Access::Write;
        let (shard, hold) = match (&self.link, &self.deferred) {
            (Some(link), None) if self.is_within() => (link.shard, Hold::Bound),
            (_, Some(_)) if asks_for_time => (self.any, Hold::Bound),
            (_, Some(_)) => (self.any, Hold::AsideTransaction),
            (_, None) => (self.any, Hold::Loose),
        };
        self.reach(Place { shard, hold }).await
    }

    /// Makes the link a backend that computes the statement: in a transaction the one that has judged it, since portals
    /// may be open there; if its time was told, that which told it.
    async fn reach_to_compute(
        &mut self,
        statement: &StatementPlan,
        judges: Option<ShardId>,
    ) -> Result<(), Stop> {
        let named = self.named_at().filter(|_| statement.names_transaction);
        match named.or(judges) {
            Some(shard) if self.is_within() => {
                let hold = Hold::Bound;
                self.reach(Place { shard, hold }).await
            }
            Some(_) | None => self.reach_to_judge(statement).await,
        }
    }

    /// The types of a text's parameters and columns, as clients see them; PostgreSQL's error if it does not take it.
    pub(super) async fn parses(
        &mut self,
        text: &[u8],
        types: &[u8],
    ) -> Result<Result<Described, Words>, Stop> {
        let own = self.link_shard().map(|shard| self.types_for(shard, types));
        let (Some(link), Some(own)) = (&mut self.link, own) else {
            return Err(End::Client.into());
        };
        let shard = link.shard;
        let out = link.lease.stream.out();
        put_parse(out, b"", text, &own);
        put_named(out, b'D', Named::Statement(b""));
        frontend::put_bare(out, b'S');
        link.lease.unnamed = None;
        let mut found = Ok(Described::default());
        self.hear_out(|tag, body| {
            match tag {
                b'E' => found = Err(Words::Servers(body.to_vec())),
                b't' => {
                    if let Ok(found) = &mut found {
                        found.types = body.get(2..).unwrap_or_default().to_vec();
                    }
                }
                b'T' => {
                    if let Ok(found) = &mut found {
                        found.columns = body.to_vec();
                    }
                }
                _ => {}
            }
            Ok(())
        })
        .await?;
        if let Ok(found) = &mut found {
            self.types_seen(shard, &mut found.types).await;
            if !found.columns.is_empty() {
                self.columns_seen(shard, &mut found.columns).await;
            }
        }
        Ok(found)
    }

    /// Asks all shards at once: their rows, one array of values for each column.
    async fn ask_all(
        &mut self,
        shards: &ShardSet,
        question: &Question,
    ) -> Result<(Vec<Vec<String>>, Held), Stop> {
        let stands = if self.is_within() {
            Stands::Within
        } else {
            Stands::Apart
        };
        self.lease_fan(shards).await?;
        let count = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..count {
            let Some(shard) = self.fan.as_deref().map(|fan| fan.shard(at)) else {
                continue;
            };
            let types = self.types_for(shard, &question.types);
            let own = Own {
                shard,
                types: &types,
            };
            if let Some(fan) = self.fan.as_deref_mut() {
                let preparations = question.preparations(&fan.link(at).lease.reported);
                fan.ask(at, 1, |out| {
                    question.put(&preparations, own, stands, out);
                });
            }
        }
        let mut held = Held::none(&self.shared);
        // Apart, so that rows come in the order of the shards.
        let mut arrays = vec![vec![String::new(); question.asked.width]; count];
        let (limit, total) = self.limits_of_rows();
        let mut described = vec![0; count];
        let heard = self
            .hear_fan(|at, tag, body| {
                match tag {
                    b'E' => return Err(Words::Servers(body.to_vec()).into()),
                    b'T' => {
                        let expected = [&question.shape_of_columns, &question.shape];
                        let found = columns(body);
                        if found.is_none()
                            || found != expected.get(described[at]).and_then(|shape| columns(shape))
                        {
                            return Err(reply::rows::columns_changed().into());
                        }
                        described[at] += 1;
                    }
                    b'D' => {
                        if !held.take(body.len(), limit, total) {
                            return Err(reply::rows::too_many_rows(limit.min(total)).into());
                        }
                        add_row(body, &mut arrays[at]).ok_or_else(reply::rows::rows_not_text)?;
                    }
                    _ => {}
                }
                Ok(())
            })
            .await;
        if heard.is_err() {
            // What they still do is cancelled.
            self.give_up_fan().await?;
        } else {
            self.rest_fan().await?;
        }
        heard?;
        Ok((arrays, held))
    }

    /// The most bytes of rows that a statement holds, and that all hold together.
    pub(super) fn limits_of_rows(&self) -> (usize, usize) {
        let settings = self.shared.settings.load();
        (
            settings.server.gather_limit,
            settings.server.gather_limit_total,
        )
    }

    /// Hears the link's answer to its end.
    pub(super) async fn hear_out(
        &mut self,
        mut each: impl FnMut(u8, &[u8]) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        let Some(link) = &mut self.link else {
            return Err(End::Client.into());
        };
        loop {
            let buffered = link.lease.stream.buffered();
            let header = frame::backend(buffered).map_err(|error| broken(&error))?;
            let Some(header) = header.filter(|header| buffered.len() >= header.size) else {
                read_more(link, &self.database).await?;
                continue;
            };
            let body = &buffered[frame::HEADER..header.size];
            if header.tag == b'Z' {
                link.status = Status::decode(body).map_err(|error| broken(&error))?;
                link.lease.stream.consume(header.size);
                return Ok(());
            }
            if header.tag == b'S'
                && let Ok((name, value)) = crate::wire::backend::parameter_status(body)
            {
                let (name, value) = (name.to_vec(), value.to_vec());
                link.lease.reported.set(&name, &value);
            } else {
                each(header.tag, body)?;
            }
            link.lease.stream.consume(header.size);
        }
    }
}

/// What is gathered, and the statement's text.
fn gathers<'s>(
    scatter: &'s Scatter,
    text: &'s [u8],
) -> Result<(&'s StatementPlan, &'s Gather, &'s str), Stop> {
    let [statement] = scatter.plan.statements.as_slice() else {
        return Err(wording::unroutable(&Unroutable::NotUnderstood).into());
    };
    match (statement.gather.as_deref(), std::str::from_utf8(text)) {
        (Some(gather), Ok(text)) => Ok((statement, gather, text)),
        _ => Err(refusal(statement)),
    }
}

/// Why a statement that could be gathered is not.
fn refusal(statement: &StatementPlan) -> Stop {
    match &statement.target {
        Target::Refused(why) => wording::unroutable(why).into(),
        Target::Fixed(_) | Target::ByKey(_) | Target::Explain(_) | Target::Judge => {
            wording::unroutable(&Unroutable::Unsupported {
                feature: "a statement of this form over several shards",
            })
            .into()
        }
    }
}

/// The columns of a RowDescription: names, types and modifiers. The numbers of a database's own types differ from shard
/// to shard, and are left out.
fn columns(body: &[u8]) -> Option<Vec<(&[u8], u32, i32)>> {
    let mut body = frame::Body::new(body);
    let count = body.u16().ok()?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let name = body.cstr().ok()?;
        let _table_and_number = body.bytes(6).ok()?;
        let type_oid = body.u32().ok()?;
        let _length = body.u16().ok()?;
        let modifier = body.u32().ok()?.cast_signed();
        let _format = body.u16().ok()?;
        let own = type_oid >= FIRST_OWN_OID;
        columns.push((name, if own { 0 } else { type_oid }, modifier));
    }
    Some(columns)
}

/// What a RowDescription calls its columns.
fn names(body: &[u8]) -> Vec<String> {
    let columns = columns(body).unwrap_or_default();
    let names = columns
        .iter()
        .map(|(name, _, _)| String::from_utf8_lossy(name).into_owned());
    names.collect()
}

/// The types of a RowDescription's columns.
fn type_oids(body: &[u8]) -> Vec<Oid> {
    let columns = columns(body).unwrap_or_default();
    let own = |oid: Oid| if oid == 0 { FIRST_OWN_OID } else { oid };
    columns.into_iter().map(|(_, oid, _)| own(oid)).collect()
}

/// Adds a DataRow's values, each to its column's array; `None`: it is not as described.
fn add_row(body: &[u8], arrays: &mut [String]) -> Option<()> {
    let mut body = frame::Body::new(body);
    if usize::from(body.u16().ok()?) != arrays.len() {
        return None;
    }
    for array in arrays {
        let value = match body.value().ok()? {
            Some(value) => Some(std::str::from_utf8(value).ok()?),
            None => None,
        };
        array_element(array, value);
    }
    Some(())
}

/// Whether nothing has been done on the link that others must see or wait for.
fn is_free(link: &Link, phase: Phase) -> bool {
    let beside = match phase {
        Phase::Idle => Hold::Loose,
        Phase::Batch | Phase::Answering => Hold::AsideTransaction,
    };
    link.hold <= beside && (link.status == Status::Idle || link.hold == Hold::AsideTransaction)
}
