//! `INSERT … SELECT` whose query reads no table: one backend computes the query's rows, and the statement runs with them
//! as VALUES, each row on the shard of its key.
//!
//! What must stay true: PostgreSQL judges the client's own text first, so that what is wrong with it is told in its
//! words; the rows are computed once for each execution, in the client's transaction if it has reached a shard; what is
//! held of them stays within the limits of gathered rows.

use super::{
    gather::{Bound, Described, Held},
    link::Hold,
    place::Place,
    prepared::{Prepared, identity},
    reply::{self as wording, session as reply},
    request::Stop,
    session::{End, Session},
    spread::without_position,
    within::{BACK, MARK, UNMARK},
};
use crate::{
    plan::{
        Plan, Route, StatementPlan, Values,
        cache::Planned,
        gather::Push,
        source::{Row, Sourced, of_no_rows},
        spread::{Shares, What},
    },
    wire::{
        backend::Status,
        frame,
        frontend::{self, Bind, Named, put, put_bind, put_named, put_parse},
        notice::{Notice, Words},
        types::Oid,
    },
};
use std::{fmt::Write as _, sync::Arc};

/// The rest of a Bind without parameters, with a result in text.
const NOTHING_BOUND: [u8; 6] = [0; 6];
/// Values are written so that they read back as they are.
const IN_FULL: &str = "SET LOCAL extra_float_digits = 3";

/// A statement whose rows are computed.
struct Filled {
    text: Vec<u8>,
    planned: Planned,
    rows: usize,
    /// Of the client's parameters, as they stand in Parse.
    types: Vec<u8>,
    /// For as long as the rows are held here.
    _held: Held,
}

/// The rows of a query, and what it called their types.
struct Computed {
    rows: Vec<Row>,
    types: Vec<Oid>,
    held: Held,
}

/// The plan of a statement whose rows are in its text: they are not computed once more, even if they choose no shard so.
fn with_rows_given(mut planned: Planned) -> Planned {
    let statements = &planned.plan.statements;
    if statements.iter().any(|one| one.sourced.is_some()) {
        let given = |one: &StatementPlan| StatementPlan {
            sourced: None,
            ..one.clone()
        };
        planned.plan = Arc::new(Plan {
            statements: statements.iter().map(given).collect(),
            structural: planned.plan.structural.clone(),
        });
    }
    planned
}

impl Session {
    /// How the rows of a text's only statement are computed, if the session may have it done now.
    fn sources<'p>(&self, plan: &'p Plan) -> Option<&'p Sourced> {
        let [statement] = plan.statements.as_slice() else {
            return None;
        };
        let sourced = statement.sourced.as_deref()?;
        let fits = self.status() != Status::Failed
            && self.may_spread()
            && self.values_read_back()
            && matches!(self.push(), Push::All);
        fits.then_some(sourced)
    }

    /// Runs a Query whose only statement has its rows computed; false: it is none.
    pub(super) async fn query_sourced(
        &mut self,
        text: &[u8],
        plan: &Arc<Plan>,
        values: &Values<'_>,
    ) -> Result<bool, Stop> {
        let bound = Bound {
            types: &[],
            tail: None,
        };
        let Some(filled) = self.with_rows(text, values, plan, &bound).await? else {
            return Ok(false);
        };
        if filled.rows > 0 {
            let planned = with_rows_given(filled.planned);
            Box::pin(self.run_query(&filled.text, planned)).await?;
            return Ok(true);
        }
        let own = Values {
            text: &filled.text,
            slots: &filled.planned.slots,
            types: &[],
            bind: None,
        };
        let shares = self.somewhere();
        Box::pin(self.query_spread(&filled.planned.plan, shares, &own)).await?;
        Ok(true)
    }

    /// Binds a statement whose rows are computed; false: it is none.
    pub(super) async fn bind_sourced(
        &mut self,
        refused: &Notice,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
        values: &Values<'_>,
    ) -> Result<bool, Stop> {
        if self.sources(&prepared.plan).is_none() {
            return Ok(false);
        }
        self.answer_pending().await?;
        self.settle().await?;
        if self.skip {
            return Ok(true);
        }
        let bound = Bound {
            types: &prepared.raw_types,
            tail: Some(bind),
        };
        let filled = self
            .with_rows(&prepared.text, values, &prepared.plan, &bound)
            .await?;
        let Some(filled) = filled else {
            return Ok(false);
        };
        let Filled {
            text,
            planned,
            rows,
            types,
            _held,
        } = filled;
        let types: smallvec::SmallVec<[Oid; 4]> = oids(&types).collect();
        let own = Values {
            text: &text,
            slots: &planned.slots,
            types: &types,
            bind: Some(bind),
        };
        let shares = match planned.plan.statements.as_slice() {
            [_] if rows == 0 => self.somewhere(),
            [statement] => self.shares_of_rows(statement, &own, rows, refused)?,
            _ => return Err(reply::malformed().into()),
        };
        let raw_types: Vec<u8> = types.iter().flat_map(|oid| oid.to_be_bytes()).collect();
        let filled = Arc::new(Prepared {
            id: identity(self.shared.seed, self.context.digest, &text, &raw_types),
            sent: None,
            text: text.into(),
            raw_types: raw_types.into(),
            types,
            slots: planned.slots.as_slice().into(),
            plan: planned.plan,
            unnamed: true,
            meaning: self.meaning(),
            told: Arc::clone(&prepared.told),
            computing: None,
            executes: None,
        });
        self.bind_writing(filled, Some(shares), bind);
        Ok(true)
    }

    /// Where the rows go.
    fn shares_of_rows(
        &self,
        statement: &StatementPlan,
        values: &Values<'_>,
        rows: usize,
        refused: &Notice,
    ) -> Result<Shares, Stop> {
        if let Some(shares) = self.spreads(statement, values)? {
            return Ok(shares);
        }
        let spreads = statement
            .spread
            .as_deref()
            .is_some_and(|spread| spread.what == What::Rows(rows));
        match statement.route(&self.snapshot, values) {
            Ok(Route::One(shard)) if spreads => {
                let count = u32::try_from(rows).map_err(|_too_many| reply::malformed())?;
                Ok(Shares {
                    shards: vec![(shard, (0..count).collect())],
                })
            }
            Ok(_) => Err(refused.clone().into()),
            Err(why) => Err(wording::unroutable(&why).into()),
        }
    }

    /// One shard, on which the transaction is already if it is on any.
    fn somewhere(&self) -> Shares {
        let shard = self.link_shard().unwrap_or(self.any);
        Shares {
            shards: vec![(shard, Vec::new())],
        }
    }

    /// The statement with its rows as VALUES, planned; `None`: it is not such a statement.
    async fn with_rows(
        &mut self,
        text: &[u8],
        values: &Values<'_>,
        plan: &Plan,
        bound: &Bound<'_>,
    ) -> Result<Option<Filled>, Stop> {
        let own = std::str::from_utf8(text).ok();
        let found = self.sources(plan).zip(own);
        let Some(sources) = found.and_then(|(sourced, own)| sourced.of(own, values.slots)) else {
            return Ok(None);
        };
        self.reach_to_compute_rows().await?;
        let judged = self.parses(text, bound.types).await??;
        let types = judged.types.clone();
        let computed = self.compute_rows(sources.query(), &judged, bound).await?;
        let names = self.names_of(&computed.types).await?;
        // Numbers, money in another locale, or rows without names for their columns do not read back elsewhere.
        let unfit = |name: &String| {
            name.starts_with("reg") || name.starts_with("money") || name.starts_with("record")
        };
        self.leave_link().await?;
        if names.iter().any(unfit) {
            return Ok(None);
        }
        let made = sources.with_rows(&computed.rows, &names);
        let (text, planned) = self
            .plan_with_rows(made, &oids(&types).collect::<Vec<_>>(), computed.rows.len())
            .await?;
        Ok(Some(Filled {
            text,
            planned,
            rows: computed.rows.len(),
            types,
            _held: computed.held,
        }))
    }

    /// Plans the text with rows; what these leave to defaults is computed as that of any VALUES.
    async fn plan_with_rows(
        &mut self,
        text: String,
        types: &[Oid],
        rows: usize,
    ) -> Result<(Vec<u8>, Planned), Stop> {
        self.drew.rewrites();
        let mut planned = self.plan_now(text.as_bytes(), types);
        if rows == 0 {
            let only = planned.plan.statements.first();
            let mut only = only.cloned().ok_or_else(reply::malformed)?;
            only.spread = Some(Box::new(of_no_rows()));
            planned.plan = Arc::new(Plan {
                statements: vec![only],
                structural: Vec::new(),
            });
            return Ok((text.into_bytes(), planned));
        }
        match self.with_computed(&text, &planned, types).await? {
            Some(filled) => Ok((filled.text, filled.planned)),
            None => Ok((text.into_bytes(), planned)),
        }
    }

    /// Makes the link a backend that computes rows: the transaction's own if it has reached one.
    async fn reach_to_compute_rows(&mut self) -> Result<(), Stop> {
        let (shard, hold) = match (&self.link, &self.deferred) {
            (Some(link), None) if self.is_within() => (link.shard, Hold::Bound),
            // It reads no table: whichever snapshot it has, it is the same.
            (_, Some(_)) => (self.any, Hold::AsideTransaction),
            (_, None) => (self.any, Hold::Loose),
        };
        self.reach(Place { shard, hold }).await
    }

    /// Asks the link for the rows of the query.
    async fn compute_rows(
        &mut self,
        query: &str,
        judged: &Described,
        bound: &Bound<'_>,
    ) -> Result<Computed, Stop> {
        let mut held = Held::none(&self.shared);
        let limits = self.limits_of_rows();
        let shard = self.link_shard().unwrap_or(self.any);
        let types = self.types_for(shard, &judged.types);
        let tail = bound
            .tail
            .map_or_else(|| NOTHING_BOUND.to_vec(), Bind::tail_for_text);
        let Some(link) = &mut self.link else {
            return Err(End::Client.into());
        };
        let within = link.status == Status::Transaction;
        put_question(query, &types, &tail, within, link.lease.stream.out());
        link.lease.unnamed = None;
        let (mut problem, mut columns, mut rows) = (None, Vec::new(), Vec::new());
        let mut over = None;
        self.hear_out(|tag, body| {
            match tag {
                b'E' if problem.is_none() => problem = Some(Words::Servers(body.to_vec())),
                b'T' => columns = columns_of(body).unwrap_or_default(),
                // It is heard to its end: a cancel would fail the transaction.
                b'D' if over.is_some() => {}
                b'D' if !held.take(body.len(), limits.0, limits.1) => {
                    over = Some(reply::rows::too_many_rows(limits.0.min(limits.1)));
                    rows = Vec::new();
                }
                b'D' => rows.push(row_of(body).ok_or_else(reply::rows::rows_not_text)?),
                _ => {}
            }
            Ok(())
        })
        .await?;
        match (problem, over) {
            // Its position is that in a text of ours.
            (Some(problem), _) => {
                let Words::Servers(body) = problem else {
                    return Err(problem.into());
                };
                Err(Words::Servers(without_position(&body)).into())
            }
            (None, Some(over)) => Err(over.into()),
            (None, None) => Ok(Computed {
                rows,
                types: columns,
                held,
            }),
        }
    }

    /// What the link calls these types, as SQL names them.
    async fn names_of(&mut self, types: &[Oid]) -> Result<Vec<String>, Stop> {
        let mut sql = "SELECT pg_catalog.concat_ws(E'\\n'".to_owned();
        for oid in types {
            let _ = write!(sql, ", pg_catalog.format_type({oid}, -1)");
        }
        sql.push(')');
        let names = self.ask(sql.as_bytes()).await??.unwrap_or_default();
        let names: Vec<String> = names.split('\n').map(str::to_owned).collect();
        if names.len() == types.len() {
            Ok(names)
        } else {
            Err(reply::malformed().into())
        }
    }
}

/// The query as one batch.
fn put_question(query: &str, types: &[u8], tail: &[u8], within: bool, out: &mut Vec<u8>) {
    let execute = |out: &mut Vec<u8>| {
        put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
    };
    let run = |sql: &str, out: &mut Vec<u8>| {
        put_parse(out, b"", sql.as_bytes(), b"");
        put_bind(out, b"", b"", &NOTHING_BOUND);
        execute(out);
    };
    if within {
        run(MARK, out);
    }
    run(IN_FULL, out);
    put_parse(out, b"", query.as_bytes(), types);
    put_bind(out, b"", b"", tail);
    put_named(out, b'D', Named::Portal(b""));
    execute(out);
    if within {
        run(BACK, out);
        run(UNMARK, out);
    }
    frontend::put_bare(out, b'S');
}

/// The numbers of types as they stand in Parse, without their count.
fn oids(raw: &[u8]) -> impl Iterator<Item = Oid> + '_ {
    let numbers = raw.chunks_exact(4);
    numbers.map(|four| four.iter().fold(0, |oid, byte| oid << 8 | Oid::from(*byte)))
}

/// The types of a RowDescription.
fn columns_of(body: &[u8]) -> Option<Vec<Oid>> {
    let mut body = frame::Body::new(body);
    let count = body.u16().ok()?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        body.cstr().ok()?;
        body.bytes(6).ok()?;
        let oid = body.u32().ok()?;
        body.u16().ok()?;
        body.bytes(4 + 2).ok()?;
        columns.push(oid);
    }
    Some(columns)
}

/// The values of a DataRow; `None`: it is not text.
fn row_of(body: &[u8]) -> Option<Row> {
    let mut body = frame::Body::new(body);
    let count = body.u16().ok()?;
    let mut row = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        row.push(match body.value().ok()? {
            Some(value) => Some(std::str::from_utf8(value).ok()?.to_owned()),
            None => None,
        });
    }
    Some(row)
}
