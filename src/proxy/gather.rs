//! Reads of one sharded table over several shards: asks the shards for the rows, and lets one of them compute the
//! statement over all of them.
//!
//! What must stay true: every shard is asked exactly once and answers to its end, or the statement fails; what is held
//! of rows stays within a limit; the rows' columns are those that the statement was made for.

use super::{
    link::{Hold, Link},
    place::Place,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{End, Note, Phase, Session, broken, read_more},
};
use crate::{
    catalog::{shard::ShardSet, snapshot::Table},
    config::settings::PoolMode,
    plan::{
        Plan, Route, StatementPlan, Target, Values,
        gather::{Gather, array_element},
        unroutable::Unroutable,
    },
    protocol::pipeline::{Origin, Request},
    sql::statement::Access,
    wire::{
        backend::Status,
        frame,
        frontend::{self, Bind, Named, put, put_bind, put_named, put_parse},
        notice::{Notice, Words},
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering::Relaxed},
};

/// What one statement may hold of rows, as text.
const LIMIT: usize = 64 << 20;
/// What all statements together may.
const LIMIT_OF_ALL: usize = 256 << 20;

/// Bytes of rows that one statement holds, counted with all others'.
struct Held<'a> {
    all: &'a AtomicUsize,
    own: usize,
}

impl Held<'_> {
    /// Counts `more` bytes; false: they are too many.
    fn take(&mut self, more: usize) -> bool {
        self.own += more;
        self.all.fetch_add(more, Relaxed) + more <= LIMIT_OF_ALL && self.own <= LIMIT
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(self.own, Relaxed);
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
}

/// What PostgreSQL says of a statement.
#[derive(Debug, Default)]
struct Described {
    /// Its parameters' types, as they stand in Parse.
    types: Vec<u8>,
    /// The RowDescription's body.
    columns: Vec<u8>,
}

/// What each shard is asked.
#[derive(Debug)]
struct Question {
    text: String,
    /// The RowDescription that is expected.
    shape: Vec<u8>,
    types: Vec<u8>,
    tail: Vec<u8>,
}

impl Question {
    /// As one batch, in whose transaction floats are written so that they read back as they are.
    fn put(&self, out: &mut Vec<u8>) {
        let execute = |out: &mut Vec<u8>| {
            put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
        };
        put_parse(out, b"", b"SET LOCAL extra_float_digits = 3", b"");
        put_bind(out, b"", b"", &NOTHING_BOUND);
        execute(out);
        put_parse(out, b"", self.text.as_bytes(), &self.types);
        put_bind(out, b"", b"", &self.tail);
        put_named(out, b'D', Named::Portal(b""));
        execute(out);
        frontend::put_bare(out, b'S');
    }
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

    /// Outside of a transaction that has begun anywhere, and with values that read back as they were written.
    fn may_scatter(&self, statement: &StatementPlan) -> bool {
        let beside = if self.deferred.is_none() {
            self.begins_read_committed()
        } else {
            statement.access == Access::Read && self.reads_beside()
        };
        let reported = |name: &[u8], start: &[u8]| {
            let value = self.reported.get(name);
            value.is_some_and(|value| value.starts_with(start))
        };
        beside
            && self.phase != Phase::Answering
            && self.pinned.is_none()
            && self.mode == PoolMode::Transaction
            && !self.snapshot.is_single()
            && self.database.unfit.load().is_none()
            && self
                .link
                .as_ref()
                .is_none_or(|link| is_free(link, self.phase))
            && reported(b"DateStyle", b"ISO")
            && reported(b"IntervalStyle", b"postgres")
    }

    /// Binds a statement that no shard alone can answer: it is computed over several, or refused.
    pub(super) async fn bind_elsewhere(
        &mut self,
        refused: Notice,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
        values: &Values<'_>,
    ) -> Result<(), Stop> {
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
        let answer = self.gather(scatter, &prepared.text, &bound).await?;
        let Some(link) = &mut self.link else {
            return Err(End::Client.into());
        };
        let out = link.lease.stream.out();
        put_parse(out, b"", answer.text.as_bytes(), &answer.types);
        put_bind(out, bind.portal, b"", bind.tail);
        link.lease.unnamed = None;
        self.pipeline
            .asked(Request::Parse, Origin::Injected, Note::Nothing);
        self.pipeline
            .asked(Request::Bind, Origin::Client, Note::Nothing);
        self.portals.remove(bind.portal);
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
        let [statement] = scatter.plan.statements.as_slice() else {
            return Err(wording::unroutable(&Unroutable::NotUnderstood).into());
        };
        let refusal = || -> Stop {
            match &statement.target {
                Target::Refused(why) => wording::unroutable(why).into(),
                Target::Fixed(_) | Target::ByKey(_) | Target::Explain(_) | Target::Judge => {
                    wording::unroutable(&Unroutable::Unsupported {
                        feature: "a statement of this form over several shards",
                    })
                    .into()
                }
            }
        };
        let parts = statement.gather.as_ref().and_then(|gather| {
            let texts = gather.texts(std::str::from_utf8(text).ok()?)?;
            Some((texts, self.gathered_table(gather)?))
        });
        let Some((texts, table)) = parts else {
            return Err(refusal());
        };
        let empty = vec![String::new(); table.columns.len()];
        self.reach_for_read(self.any).await?;
        let template = texts.answer(&table, &empty);
        let types = match self.parses(template.as_bytes(), bound.types).await? {
            Ok(found) => found.types,
            // PostgreSQL says what is wrong with the statement; what it accepts means something else over rows.
            Err(_of_the_template) => {
                let judged = self.parses(text, bound.types).await?;
                return Err(judged.map_or_else(Stop::from, |_| refusal()));
            }
        };
        let shape = match self.parses(texts.shape(&table).as_bytes(), b"").await? {
            Ok(found) => found.columns,
            Err(_changed) => return Err(reply::columns_changed().into()),
        };
        let question = Question {
            text: texts.question(),
            shape,
            types,
            tail: bound
                .tail
                .map_or_else(|| NOTHING_BOUND.to_vec(), Bind::tail_for_text),
        };
        let mut arrays = empty;
        let shared = Arc::clone(&self.shared);
        let mut held = Held {
            all: &shared.gathered,
            own: 0,
        };
        for shard in scatter.shards.iter() {
            self.reach_for_read(shard).await?;
            if self.link.as_ref().is_none_or(|link| link.shard != shard) {
                return Err(reply::shard_missing(self.database.shard_name(shard)).into());
            }
            self.rows(&question, &mut arrays, &mut held).await?;
        }
        // Ends what was begun for the questions, and what was set in it.
        self.leave_link().await?;
        self.reach_for_read(self.any).await?;
        Ok(Answer {
            text: texts.answer(&table, &arrays),
            types: question.types,
        })
    }

    async fn reach_for_read(&mut self, shard: crate::catalog::shard::ShardId) -> Result<(), Stop> {
        let hold = if self.deferred.is_some() {
            Hold::AsideTransaction
        } else {
            Hold::Loose
        };
        self.reach(Place { shard, hold }).await
    }

    /// The types of a text's parameters; PostgreSQL's error if it does not take it.
    async fn parses(
        &mut self,
        text: &[u8],
        types: &[u8],
    ) -> Result<Result<Described, Words>, Stop> {
        let Some(link) = &mut self.link else {
            return Err(End::Client.into());
        };
        let out = link.lease.stream.out();
        put_parse(out, b"", text, types);
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
        Ok(found)
    }

    /// Adds a shard's rows.
    async fn rows(
        &mut self,
        question: &Question,
        arrays: &mut [String],
        held: &mut Held<'_>,
    ) -> Result<(), Stop> {
        let Some(link) = &mut self.link else {
            return Err(End::Client.into());
        };
        question.put(link.lease.stream.out());
        link.lease.unnamed = None;
        let mut problem = None;
        let heard = self
            .hear_out(|tag, body| {
                match tag {
                    b'E' => problem = Some(Words::Servers(body.to_vec())),
                    b'T' if columns(body).is_none()
                        || columns(body) != columns(&question.shape) =>
                    {
                        return Err(reply::columns_changed().into());
                    }
                    b'D' => add_row(body, arrays).ok_or_else(reply::rows_not_text)?,
                    _ => {}
                }
                if tag == b'D' && !held.take(body.len()) {
                    return Err(reply::too_many_rows(LIMIT).into());
                }
                Ok(())
            })
            .await;
        if heard.is_err() {
            // The rest of the answer is nobody's.
            if let Some(link) = &mut self.link {
                super::ending::stop(link, &self.shared.tls).await;
            }
            self.cancel.detach();
            self.link = None;
        }
        heard?;
        problem.map_or(Ok(()), |problem| Err(problem.into()))
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
            if header.as_ref().is_some_and(|header| header.size > LIMIT) {
                // Not even read.
                return Err(reply::too_many_rows(LIMIT).into());
            }
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
