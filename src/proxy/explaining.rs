//! EXPLAIN of a statement over several shards: each of them explains what it would be asked, and their plans stand under
//! one node.
//!
//! What must stay true: it takes the way that the statement itself takes, and is refused where that is; without ANALYZE
//! nothing is executed; with it a write runs as one transaction over its shards, like the write itself.

use super::{
    gather::{Bound, Scatter},
    numbers::Drew,
    prepared::{Prepared, Told},
    reply::{self as wording, session as reply},
    request::Stop,
    scatter::{Opened, Scattered},
    session::{Phase, Session},
    spread::{Writing, answers::Written, without_position},
};
use crate::{
    catalog::shard::{ShardId, ShardSet},
    plan::{
        Explains, Values,
        cache::Planned,
        explained::{Explain, Form, Runs, ShardPlan, Top},
        owned::PerShard,
        spread::{Given, Part, Shares, What},
        unroutable::Unroutable,
    },
    wire::{
        backend::Status,
        frontend::{Bind, Named, put, put_bare, put_bind, put_named, put_parse},
        notice::{Notice, Words},
        types::Oid,
    },
};

/// What plans may take of memory.
const LIMIT: usize = 16 << 20;
/// The rest of a Bind without parameters, with a result in text.
const NOTHING_BOUND: [u8; 6] = [0; 6];

/// Whether a statement is an EXPLAIN of what several shards may do.
pub(super) fn explains(prepared: &Prepared) -> bool {
    let statement = prepared.statement();
    statement.is_some_and(|one| one.explains == Explains::OfSeveral)
}

/// An EXPLAIN, and the statement that it is about.
struct Explaining<'a> {
    explain: Explain,
    text: &'a str,
    /// The statement alone, at its places in the text.
    own: String,
    planned: Planned,
    types: Vec<Oid>,
}

/// How several shards do the statement.
enum Way {
    Streamed(Box<Scattered>),
    Gathered(Scatter),
    Spread(Shares),
}

/// What one shard is to explain.
struct Question {
    shard: ShardId,
    asked: String,
    /// Declared types of its parameters, as they stand in Parse.
    types: Vec<u8>,
    /// The rest of its Bind.
    tail: Vec<u8>,
}

/// What the shards have said.
struct Heard {
    columns: Option<Vec<u8>>,
    lines: Vec<Vec<Vec<u8>>>,
    notices: Vec<u8>,
    problem: Option<Vec<u8>>,
    held: usize,
}

impl Session {
    /// Runs a Query that is an EXPLAIN of what no shard alone can do, or refuses it.
    pub(super) async fn query_explain(&mut self, refused: Notice, text: &[u8]) -> Result<(), Stop> {
        if self.phase != Phase::Idle || !self.pipeline.is_empty() {
            return Err(refused.into());
        }
        let bound = Bound {
            types: &[],
            tail: None,
        };
        let Some(explaining) = self.explaining(text, &bound) else {
            return Err(refused.into());
        };
        let Some(way) = self.way_to_explain(&explaining, &bound)? else {
            return Err(refused.into());
        };
        let written = self.explain(&explaining, way, &bound).await;
        self.conclude(written).await
    }

    /// Whether a statement that is bound is an EXPLAIN of what several shards can do now.
    ///
    /// # Errors
    /// It is one that is refused for a reason of its own.
    pub(super) fn may_explain(
        &mut self,
        prepared: &Prepared,
        bind: &Bind<'_>,
    ) -> Result<bool, Stop> {
        if !explains(prepared) {
            return Ok(false);
        }
        let own = bind_for_text(bind.tail)?;
        let own = Bind::decode(&own).map_err(|_malformed| reply::malformed())?;
        let bound = bound_of(prepared, &own);
        match self.explaining(&prepared.text, &bound) {
            Some(explaining) => Ok(self.way_to_explain(&explaining, &bound)?.is_some()),
            None => Ok(false),
        }
    }

    /// Runs a portal of an EXPLAIN over several shards.
    pub(super) async fn explain_portal(
        &mut self,
        prepared: &Prepared,
        tail: &[u8],
    ) -> Result<Written, Stop> {
        let own = bind_for_text(tail)?;
        let own = Bind::decode(&own).map_err(|_malformed| reply::malformed())?;
        let bound = bound_of(prepared, &own);
        let Some(explaining) = self.explaining(&prepared.text, &bound) else {
            return Err(reply::malformed().into());
        };
        let Some(way) = self.way_to_explain(&explaining, &bound)? else {
            return Err(unsupported("EXPLAIN at this place of a pipeline"));
        };
        self.leave_scattered().await?;
        if self.link.is_some() {
            self.leave_link().await?;
        }
        let explained = self.explain(&explaining, way, &bound).await?;
        if !self.for_batch {
            self.tally.queries += 1;
        }
        Ok(explained)
    }

    /// Takes a text apart; `None`: it is no EXPLAIN of one statement.
    fn explaining<'a>(&mut self, text: &'a [u8], bound: &Bound<'_>) -> Option<Explaining<'a>> {
        let text = std::str::from_utf8(text).ok()?;
        let explain = Explain::read(text)?;
        let own = explain.statement(text);
        let types: Vec<Oid> = bound
            .types
            .chunks_exact(4)
            .map(|oid| Oid::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]))
            .collect();
        let planned = self.database.plans.plan(
            own.as_bytes(),
            &types,
            &self.context,
            &self.snapshot,
            self.scratch.get_or_insert_default(),
        );
        (planned.plan.statements.len() == 1).then_some(Explaining {
            explain,
            text,
            own,
            planned,
            types,
        })
    }

    /// How several shards would do the statement; `None`: not at all.
    fn way_to_explain(
        &self,
        explaining: &Explaining<'_>,
        bound: &Bound<'_>,
    ) -> Result<Option<Way>, Stop> {
        let (plan, values) = (&explaining.planned.plan, explaining.values(bound));
        let [statement] = plan.statements.as_slice() else {
            return Ok(None);
        };
        let way = match self.spreads(statement, &values)? {
            Some(shares) => Some(Way::Spread(shares)),
            None => match self.streams(plan, &values) {
                Some(scattered) => Some(Way::Streamed(scattered)),
                None => self.scatters(plan, &values).map(Way::Gathered),
            },
        };
        if way.is_some() && explaining.explain.form == Form::Other {
            return Err(unsupported("EXPLAIN in another format than TEXT or JSON"));
        }
        if let (Some(Way::Spread(_)), Some(spread)) = (&way, &statement.spread) {
            match (&spread.what, explaining.explain.runs) {
                (What::Move(_), _) => {
                    return Err(unsupported("EXPLAIN of an UPDATE that moves rows"));
                }
                // Without the fingerprints that show whether the copies stay the same.
                (What::Copies(_), Runs::Yes) => {
                    let feature = "EXPLAIN ANALYZE of a write to a reference table";
                    return Err(unsupported(feature));
                }
                _ => {}
            }
        }
        Ok(way)
    }

    async fn explain(
        &mut self,
        explaining: &Explaining<'_>,
        way: Way,
        bound: &Bound<'_>,
    ) -> Result<Written, Stop> {
        match way {
            Way::Spread(shares) => self.explain_write(explaining, shares, bound).await,
            Way::Streamed(scattered) => {
                let (shards, question) = scattered.asked();
                if self.is_streamed(&scattered, explaining, bound).await? {
                    let question = self.per_shard(question)?;
                    let questions = same_of_all(shards, &question, bound.types, bound);
                    let top = explaining.top_of_stream();
                    let heard = self.explain_apart(explaining, &questions).await?;
                    return explaining.answer(&self.named(&questions), &top, heard);
                }
                let values = explaining.values(bound);
                match self.scatters(&explaining.planned.plan, &values) {
                    Some(scatter) => self.explain_gathered(explaining, &scatter, bound).await,
                    None => Err(unsupported("this order of rows")),
                }
            }
            Way::Gathered(scatter) => self.explain_gathered(explaining, &scatter, bound).await,
        }
    }

    /// Whether the shards' rows would be passed on as they come: they are asked as far as Bind.
    async fn is_streamed(
        &mut self,
        scattered: &Scattered,
        explaining: &Explaining<'_>,
        bound: &Bound<'_>,
    ) -> Result<bool, Stop> {
        let told = Told::default();
        if self.is_within() {
            let opened = Box::pin(self.open_reading(scattered, bound, &told)).await?;
            let streams = opened.is_some();
            opened
                .into_iter()
                .for_each(|reading| self.cursors.leave(*reading));
            return Ok(streams);
        }
        let earlier = self.scattered.take();
        let text = explaining.own.as_bytes();
        let opened = Box::pin(self.open_stream(scattered, text, bound, &told)).await;
        if let Ok(Opened::Yes) = opened {
            self.close_scattered().await?;
        }
        self.scattered = earlier;
        Ok(matches!(opened?, Opened::Yes))
    }

    async fn explain_gathered(
        &mut self,
        explaining: &Explaining<'_>,
        scatter: &Scatter,
        bound: &Bound<'_>,
    ) -> Result<Written, Stop> {
        let asks = self.gather_question(scatter, explaining.own.as_bytes(), bound);
        let (shards, question, types) = Box::pin(asks).await?;
        let question = self.per_shard(&question)?;
        let questions = same_of_all(&shards, &question, &types, bound);
        let heard = self.explain_apart(explaining, &questions).await?;
        let top = Top {
            node: "Shardway Gather",
            steps: "one shard computes the answer over the rows of all".to_owned(),
        };
        explaining.answer(&self.named(&questions), &top, heard)
    }

    async fn explain_write(
        &mut self,
        explaining: &Explaining<'_>,
        shares: Shares,
        bound: &Bound<'_>,
    ) -> Result<Written, Stop> {
        let statement = explaining.planned.plan.statements.first();
        let Some(spread) = statement.and_then(|one| one.spread.as_deref()) else {
            return Err(reply::malformed().into());
        };
        let as_written = spread.as_written();
        let writing = |spread, shares| Writing {
            spread,
            text: &explaining.own,
            slots: &explaining.planned.slots,
            shares,
            types: bound.types,
            bind: bound.tail,
        };
        let top = Top {
            node: "Shardway Write",
            steps: "each shard its part, in one transaction".to_owned(),
        };
        if explaining.explain.runs == Runs::No {
            let writing = writing(&as_written, shares);
            let rows = writing
                .shares
                .shards
                .iter()
                .map(|(_, rows)| rows.as_slice());
            let parts = as_written.parts(writing.text, writing.slots, rows, &Given::default());
            let parts = self.owned_parts(&writing, parts.ok_or_else(reply::malformed)?)?;
            let questions = questions_of(&writing, parts.parts);
            let heard = self.explain_apart(explaining, &questions).await?;
            return explaining.answer(&self.named(&questions), &top, heard);
        }
        let writing = writing(spread, shares);
        self.begin_own().await?;
        self.reach_shards(&writing).await?;
        let parts = self.parts_to_send(&writing).await?;
        let questions = questions_of(&writing, parts.parts);
        let heard = self
            .explain_within(explaining, &writing, &questions)
            .await?;
        explaining.answer(&self.named(&questions), &top, heard)
    }

    /// Has all shards explain at once: in the transaction if one is open, else each by itself.
    async fn explain_apart(
        &mut self,
        explaining: &Explaining<'_>,
        questions: &[Question],
    ) -> Result<Heard, Stop> {
        let mut shards = ShardSet::new();
        for question in questions {
            shards.insert(question.shard);
        }
        self.lease_fan(&shards).await?;
        let mut heard = Heard::new(questions.len());
        for at in 0..questions.len() {
            self.ask_to_explain(explaining, questions, at);
        }
        let worked = self
            .hear_fan(|at, tag, body| {
                heard.hear(at, tag, body)?;
                match heard.problem.take() {
                    Some(body) => Err(Words::Servers(without_position(&body)).into()),
                    None => Ok(()),
                }
            })
            .await;
        if worked.is_err() {
            self.give_up_fan().await?;
        } else {
            self.rest_fan().await?;
        }
        worked?;
        self.check_unheard()?;
        self.client.out().extend_from_slice(&heard.notices);
        Ok(heard)
    }

    /// Has the transaction's shards explain and do their parts of a write, one after the other.
    async fn explain_within(
        &mut self,
        explaining: &Explaining<'_>,
        writing: &Writing<'_>,
        questions: &[Question],
    ) -> Result<Heard, Stop> {
        let mut heard = Heard::new(questions.len());
        self.fan_out_over(&writing.shares);
        let mut worked = Ok(());
        for at in 0..questions.len() {
            self.ask_to_explain(explaining, questions, at);
            worked = self
                .hear_fan(|at, tag, body| heard.hear(at, tag, body))
                .await;
            if worked.is_err() || heard.problem.is_some() {
                break;
            }
        }
        if let Err(Stop::End(end)) = worked {
            return Err(Stop::End(end));
        }
        self.client.out().extend_from_slice(&heard.notices);
        self.gather_in(&writing.shares).await?;
        // What it drew, it drew on several.
        self.drew = Drew::default();
        if let Some(body) = heard.problem.take() {
            return Err(Words::Servers(without_position(&body)).into());
        }
        worked?;
        if self.status() != Status::Transaction {
            // A cancel has hit what came behind.
            return Err(reply::cancelled().into());
        }
        Ok(heard)
    }

    fn ask_to_explain(&mut self, explaining: &Explaining<'_>, questions: &[Question], at: usize) {
        let Some(question) = questions.get(at) else {
            return;
        };
        let types = self.types_for(question.shard, &question.types);
        let text = explaining.explain.of(explaining.text, &question.asked);
        if let Some(fan) = self.fan.as_deref_mut() {
            fan.ask(at, 1, |out| {
                put_parse(out, b"", text.as_bytes(), &types);
                put_bind(out, b"", b"", &question.tail);
                put_named(out, b'D', Named::Portal(b""));
                put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
                put_bare(out, b'S');
            });
        }
    }

    /// The questions by the names of their shards.
    fn named(&self, questions: &[Question]) -> Vec<(String, String)> {
        let named = |question: &Question| {
            let shard = self.database.shard_name(question.shard).to_owned();
            (shard, question.asked.clone())
        };
        questions.iter().map(named).collect()
    }
}

impl Explaining<'_> {
    fn values<'v>(&'v self, bound: &Bound<'v>) -> Values<'v> {
        Values {
            text: self.own.as_bytes(),
            slots: &self.planned.slots,
            types: &self.types,
            bind: bound.tail,
        }
    }

    fn top_of_stream(&self) -> Top {
        let statement = self.planned.plan.statements.first();
        let combine = statement.and_then(|one| one.combine.as_deref());
        let steps = combine.and_then(|combine| Some(combine.parts(&self.own)?.steps()));
        let steps = steps.unwrap_or_default();
        let node = if steps.starts_with("ordered by") {
            "Shardway Merge"
        } else {
            "Shardway Append"
        };
        Top { node, steps }
    }

    fn answer(&self, asked: &[(String, String)], top: &Top, heard: Heard) -> Result<Written, Stop> {
        let plans = asked
            .iter()
            .zip(heard.lines)
            .map(|((shard, asked), lines)| ShardPlan {
                shard: shard.clone(),
                asked: asked.clone(),
                lines,
            });
        let plans: Vec<ShardPlan> = plans.collect();
        let Some(rows) = self.explain.rows(top, &plans) else {
            return Err(unsupported("a plan of this form"));
        };
        let rows = rows.iter().map(|row| data_row(row)).collect();
        Ok(Written::of_rows(heard.columns, rows, b"EXPLAIN".to_vec()))
    }
}

impl Heard {
    fn new(count: usize) -> Self {
        Self {
            columns: None,
            lines: vec![Vec::new(); count],
            notices: Vec::new(),
            problem: None,
            held: 0,
        }
    }

    fn hear(&mut self, at: usize, tag: u8, body: &[u8]) -> Result<(), Stop> {
        match tag {
            b'E' if self.problem.is_none() => self.problem = Some(body.to_vec()),
            b'T' if self.columns.is_none() => self.columns = Some(body.to_vec()),
            b'D' => {
                self.held += body.len();
                if self.held > LIMIT {
                    return Err(reply::rows::too_many_rows(LIMIT).into());
                }
                // One column: its number and its length stand before it.
                self.lines[at].push(body.get(6..).unwrap_or_default().to_vec());
            }
            b'N' => put(&mut self.notices, b'N', |out| out.extend_from_slice(body)),
            _ => {}
        }
        Ok(())
    }
}

/// The same question for each of these shards.
fn same_of_all(
    shards: &ShardSet,
    asked: &PerShard,
    types: &[u8],
    bound: &Bound<'_>,
) -> Vec<Question> {
    let tail = bound
        .tail
        .map_or_else(|| NOTHING_BOUND.to_vec(), Bind::tail_for_text);
    let question = |shard| Question {
        shard,
        asked: asked.on(shard).to_owned(),
        types: types.to_vec(),
        tail: tail.clone(),
    };
    shards.iter().map(question).collect()
}

/// Each shard's part of a write.
fn questions_of(writing: &Writing<'_>, parts: Vec<Part>) -> Vec<Question> {
    let shards = writing.shares.shards.iter();
    let question = |((shard, _), part): (&(ShardId, Vec<u32>), Part)| Question {
        shard: *shard,
        types: writing.types_of(&part),
        tail: writing.tail_of(&part),
        asked: part.text,
    };
    shards.zip(parts).map(question).collect()
}

/// The Bind of what is asked: of its own only the parameters, since the formats are those of the plan.
fn bind_for_text(tail: &[u8]) -> Result<Vec<u8>, Stop> {
    let whole = [&[0, 0], tail].concat();
    let bind = Bind::decode(&whole).map_err(|_malformed| reply::malformed())?;
    Ok([&[0, 0], bind.tail_for_text().as_slice()].concat())
}

fn bound_of<'a>(prepared: &'a Prepared, bind: &'a Bind<'a>) -> Bound<'a> {
    Bound {
        types: prepared.told.raw_types().unwrap_or(&prepared.raw_types),
        tail: Some(bind),
    }
}

fn data_row(value: &[u8]) -> Vec<u8> {
    let mut row = 1_u16.to_be_bytes().to_vec();
    let length = u32::try_from(value.len()).unwrap_or(u32::MAX);
    row.extend_from_slice(&length.to_be_bytes());
    row.extend_from_slice(value);
    row
}

fn unsupported(feature: &'static str) -> Stop {
    wording::unroutable(&Unroutable::Unsupported { feature }).into()
}
