//! Reads of one sharded table over several shards: asks the shards for the rows, and lets one of them compute the
//! statement over all of them.
//!
//! What must stay true: every shard is asked exactly once and answers to its end, or the statement fails; what is held
//! of rows stays within a limit; the rows' columns are those that the statement was made for.

use super::{
    link::Hold,
    place::Place,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{End, Phase, Session, broken, read_more},
};
use crate::{
    catalog::{shard::ShardSet, snapshot::Table},
    plan::{
        Plan, Route, StatementPlan, Target, Values,
        gather::{Gather, array_element},
        unroutable::Unroutable,
    },
    sql::statement::Access,
    wire::{
        backend::Status,
        frame,
        frontend::{self, put_parse, put_query},
        notice::Words,
    },
};
use std::sync::Arc;

/// What one statement may hold of rows, as text.
const LIMIT: usize = 64 << 20;

/// A statement to be computed over several shards.
pub(super) struct Scatter {
    plan: Arc<Plan>,
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
        let beside =
            self.deferred.is_none() || (statement.access == Access::Read && self.reads_beside());
        let reported = |name: &[u8], start: &[u8]| {
            let value = self.reported.get(name);
            value.is_some_and(|value| value.starts_with(start))
        };
        beside
            && self.phase == Phase::Idle
            && self.pipeline.is_empty()
            && self.pinned.is_none()
            && !self.snapshot.is_single()
            && self.database.unfit.load().is_none()
            && self
                .link
                .as_ref()
                .is_none_or(|link| link.status == Status::Idle && link.hold <= Hold::Loose)
            && reported(b"DateStyle", b"ISO")
            && reported(b"IntervalStyle", b"postgres")
    }

    /// The table that is gathered, as the search path finds it, with its columns.
    fn gathered_table(&self, gather: &Gather) -> Option<Table> {
        let path = &self.context.search_path;
        let found = path
            .iter()
            .find_map(|schema| self.snapshot.table(schema, &gather.table))?;
        let known = !found.columns.is_empty() && found.columns.len() == found.sources.len();
        let exact = self.deferred.is_none() || found.sources.iter().all(|source| is_exact(source));
        (known && exact).then(|| found.clone())
    }

    /// The text of the statement over the rows of all its shards.
    ///
    /// # Errors
    /// It is refused, or a server has said why it fails.
    pub(super) async fn gather(&mut self, scatter: &Scatter, text: &[u8]) -> Result<String, Stop> {
        let [statement] = scatter.plan.statements.as_slice() else {
            return Err(wording::unroutable(&Unroutable::NotUnderstood).into());
        };
        let refusal = || -> Stop {
            match &statement.target {
                Target::Refused(why) => wording::unroutable(why).into(),
                _ => wording::unroutable(&Unroutable::Unsupported {
                    feature: "a statement of this form over several shards",
                })
                .into(),
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
        if let Some(problem) = self.parses(texts.answer(&table, &empty).as_bytes()).await? {
            // PostgreSQL says what is wrong with the statement; what it accepts means something else over rows.
            return Err(match self.parses(text).await? {
                Some(problem) => problem.into(),
                None => {
                    tracing::debug!(?problem, "a statement is not computed over gathered rows");
                    refusal()
                }
            });
        }
        // In the message's own transaction: floats are to read back as they are.
        let digits = if self.deferred.is_none() {
            "SET LOCAL extra_float_digits = 3; "
        } else {
            ""
        };
        let question = format!("{digits}{}", texts.question());
        let mut arrays = empty;
        let mut held = 0;
        for shard in scatter.shards.iter() {
            self.reach_for_read(shard).await?;
            if self.link.as_ref().is_none_or(|link| link.shard != shard) {
                return Err(reply::shard_missing(self.database.shard_name(shard)).into());
            }
            self.rows(question.as_bytes(), &table, &mut arrays, &mut held)
                .await?;
        }
        self.reach_for_read(self.any).await?;
        Ok(texts.answer(&table, &arrays))
    }

    async fn reach_for_read(&mut self, shard: crate::catalog::shard::ShardId) -> Result<(), Stop> {
        let hold = if self.deferred.is_some() {
            Hold::AsideTransaction
        } else {
            Hold::Loose
        };
        self.reach(Place { shard, hold }).await
    }

    /// Whether PostgreSQL takes a text; its error if not.
    async fn parses(&mut self, text: &[u8]) -> Result<Option<Words>, End> {
        let Some(link) = &mut self.link else {
            return Err(End::Client);
        };
        let out = link.lease.stream.out();
        put_parse(out, b"", text, b"");
        frontend::put_bare(out, b'S');
        link.lease.unnamed = None;
        let mut problem = None;
        self.hear(|tag, body| {
            if tag == b'E' {
                problem = Some(Words::Servers(body.to_vec()));
            }
            Ok(())
        })
        .await
        .map_err(|stop| match stop {
            Stop::End(end) => end,
            Stop::Refused(words) => End::Told(words),
        })?;
        Ok(problem)
    }

    /// Adds a shard's rows.
    async fn rows(
        &mut self,
        question: &[u8],
        table: &Table,
        arrays: &mut [String],
        held: &mut usize,
    ) -> Result<(), Stop> {
        let Some(link) = &mut self.link else {
            return Err(End::Client.into());
        };
        put_query(link.lease.stream.out(), question);
        link.lease.unnamed = None;
        let mut problem = None;
        let heard = self
            .hear(|tag, body| {
                match tag {
                    b'E' => problem = Some(Words::Servers(body.to_vec())),
                    b'T' if !has_columns(body, table) => {
                        return Err(reply::columns_changed().into());
                    }
                    b'D' => add_row(body, arrays).ok_or_else(|| reply::rows_not_text())?,
                    _ => {}
                }
                *held += if tag == b'D' { body.len() } else { 0 };
                if *held > LIMIT {
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
    async fn hear(
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

/// Whether values of the type are written alike whatever the session has set about floats.
fn is_exact(source: &str) -> bool {
    const EXACT: [&str; 14] = [
        "bigint",
        "integer",
        "smallint",
        "text",
        "character",
        "numeric",
        "boolean",
        "date",
        "timestamp",
        "time",
        "uuid",
        "json",
        "jsonb",
        "bytea",
    ];
    let word = source
        .split(|c: char| !c.is_alphanumeric())
        .next()
        .unwrap_or_default();
    EXACT.contains(&word)
}

/// Whether a RowDescription names exactly these columns.
fn has_columns(body: &[u8], table: &Table) -> bool {
    let mut rest = body.get(2..).unwrap_or_default();
    for column in &table.columns {
        let Some(end) = rest.iter().position(|byte| *byte == 0) else {
            return false;
        };
        if &rest[..end] != column.as_bytes() {
            return false;
        }
        // Behind the name: table, number, type, length, modifier, format.
        rest = rest.get(end + 1 + 18..).unwrap_or_default();
    }
    rest.is_empty()
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
