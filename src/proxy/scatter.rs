//! Reads over several shards whose answers are parts of the whole: asks all of them at once and passes their rows on as
//! they come, one after the other or in the order of ORDER BY.
//!
//! ```text
//!   open: Parse, Describe ─▶ columns agree? keys comparable? ─▶ Bind ─▶ stream: Execute ─▶ rows ─▶ closed
//!                                    │ no
//!                                    ▼
//!                                 gathered, or refused
//! ```
//!
//! What must stay true: nothing is told to the client before all shards have said which columns they give, and that they
//! are the same; the answer is complete or ends in one error; what LIMIT leaves out is not read to its end.

mod pump;
pub(super) mod shape;

use super::{
    cursors::{Reading, Sink},
    fan::{Long, Next},
    gather::Bound,
    link::Hold,
    place::Place,
    prepared::{Prepared, Told},
    reply::{self as wording, session as reply},
    request::Stop,
    session::{Note, Session},
};
use crate::{
    catalog::shard::ShardSet,
    merge::{limit::Limit, order::Merge},
    plan::{
        Plan, StatementPlan, Target, Values,
        combine::{Count, OrderBy, Places},
        owned::PerShard,
    },
    protocol::transaction::Deferred,
    sql::statement::Effect,
    wire::{
        backend::{Status, put_complete},
        frame::{Body, HEADER},
        frontend::{Bind, Named, put, put_bare, put_bind, put_named, put_parse},
        notice::{self, Notice, Words},
        types,
    },
};
use pump::Step;
use shape::Shape;
use std::sync::Arc;

/// Settings that values are written by.
const OF_VALUES: [&[u8]; 4] = [
    b"DateStyle",
    b"IntervalStyle",
    b"TimeZone",
    b"client_encoding",
];

/// A statement that several shards answer in parts.
#[derive(Debug)]
pub(super) struct Scattered {
    shards: ShardSet,
    /// What each of them is asked.
    question: String,
    keys: Vec<OrderBy>,
    limit: Limit,
    places: Places,
}

impl Scattered {
    /// The shards, and what each of them is asked.
    pub(super) fn asked(&self) -> (&ShardSet, &str) {
        (&self.shards, &self.question)
    }

    /// The shards, and what each is asked, when its rows are passed on as they come, and all of them.
    pub(super) fn as_it_comes(&self) -> Option<(&ShardSet, &str)> {
        let all = self.keys.is_empty() && self.limit.skips() == 0 && self.limit.gives() == u64::MAX;
        all.then_some((&self.shards, &self.question))
    }
}

/// An answer that is being put together; its backends are the session's fan.
#[derive(Debug)]
pub(super) struct Scattering {
    /// The portal that the client gave it.
    pub(super) portal: Box<[u8]>,
    /// RowDescription's body, without the keys.
    pub(super) columns: Vec<u8>,
    asked: Asked,
    /// `None`: in no order.
    merge: Option<Merge>,
    limit: Limit,
    state: State,
}

/// What the shards were asked, so that they can be asked again.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) shards: ShardSet,
    pub(super) question: PerShard,
    /// Types of parameters, as they stand in Parse.
    pub(super) types: Vec<u8>,
    /// Bind's, with the formats of the keys.
    pub(super) tail: Vec<u8>,
    /// How many columns behind the client's there are.
    pub(super) keys: usize,
}

/// How the shards' portals are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way<'a> {
    /// To their end, with nothing in between.
    Stream,
    /// In parts: they have this name.
    Parts(&'a str),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Bound, and not asked for rows.
    Bound,
    Streaming,
    /// No row more is to come.
    Complete,
    /// Left before its end: it cannot go on.
    Left,
}

/// Whether a statement is answered so.
pub(super) enum Opened {
    /// It is: [`Session::stream`].
    Yes,
    /// Its columns cannot be put together here.
    No,
}

/// How far an Execute has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pumped {
    Complete(u64),
    Suspended(u64),
}

impl Session {
    /// Whether shards answer this statement, the only one of its text, in parts, and what they are asked.
    pub(super) fn streams(&self, plan: &Plan, values: &Values<'_>) -> Option<Box<Scattered>> {
        let [statement] = plan.statements.as_slice() else {
            return None;
        };
        let combine = statement.combine.as_ref()?;
        let within = self.is_within() && self.may_ask_within(statement);
        if !within && !self.may_ask_shards(statement) {
            return None;
        }
        let shards = match (&statement.target, statement.route(&self.snapshot, values)) {
            (Target::Refused(why), _) => combine.shards(why, &self.snapshot)?,
            (Target::ByKey(_), Err(why)) => combine.shards(&why, &self.snapshot)?,
            (Target::ByKey(_) | Target::Fixed(_) | Target::Explain(_) | Target::Judge, _) => {
                return None;
            }
        };
        let parts = combine.parts(std::str::from_utf8(values.text).ok()?)?;
        let number = |count: Option<Count>| match count {
            None => Some(None),
            Some(Count::Number(number)) => Some(Some(number)),
            Some(Count::Parameter(number)) => parameter(number, values),
        };
        let (limit, offset) = (number(parts.limit)?, number(parts.offset)?.unwrap_or(0));
        limit.unwrap_or(0).checked_add(offset)?;
        Some(Box::new(Scattered {
            shards,
            question: parts.question()?,
            limit: Limit::new(offset, limit),
            places: parts.places(),
            keys: parts.keys,
        }))
    }

    /// Answers a simple Query so; false: it cannot be.
    pub(super) async fn query_scattered(
        &mut self,
        scattered: &Scattered,
        text: &[u8],
        bound: &Bound<'_>,
    ) -> Result<bool, Stop> {
        let told = Told::default();
        if self.is_within() && !scattered.limit.is_all() {
            return Box::pin(self.query_parts(scattered, bound)).await;
        }
        let opened = self.open_stream(scattered, text, bound, &told).await?;
        if let Opened::No = opened {
            return Ok(false);
        }
        if let Some(stream) = self.scattered.as_deref() {
            let columns = &stream.columns;
            put(self.client.out(), b'T', |out| {
                out.extend_from_slice(columns);
            });
        }
        self.stream(0).await?;
        self.scattered = None;
        self.ready_here();
        Ok(true)
    }

    /// Answers a simple Query within the transaction: what LIMIT leaves out is not asked for, since a cancel would fail
    /// the transaction.
    async fn query_parts(
        &mut self,
        scattered: &Scattered,
        bound: &Bound<'_>,
    ) -> Result<bool, Stop> {
        let told = Told::default();
        let opened = self.open_reading(scattered, bound, &told).await?;
        let Some(mut reading) = opened else {
            return Ok(false);
        };
        put(self.client.out(), b'T', |out| {
            out.extend_from_slice(&reading.columns);
        });
        let read = self.read(&mut reading, u64::MAX, Sink::Client).await;
        self.cursors.leave(*reading);
        let (Pumped::Complete(rows) | Pumped::Suspended(rows)) = read?;
        put_complete(self.end_of_answer(), format!("SELECT {rows}").as_bytes());
        self.tally.queries += 1;
        self.ready_here();
        Ok(true)
    }

    /// Binds what no shard alone can answer: several do, or it is refused.
    pub(super) async fn bind_shards(
        &mut self,
        refused: Notice,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
        values: &Values<'_>,
    ) -> Result<(), Stop> {
        self.begin_with_snapshots().await?;
        let declares = |one: &StatementPlan| matches!(one.effect, Effect::Declare { .. });
        if prepared.statement().is_some_and(declares) {
            return self.bind_declare(refused, prepared, bind).await;
        }
        if Box::pin(self.bind_sourced(&refused, prepared, bind, values)).await? {
            return Ok(());
        }
        if let Some(scattered) = self.streams(&prepared.plan, values)
            && self.bind_scattered(&scattered, prepared, bind).await?
        {
            return Ok(());
        }
        self.bind_elsewhere(refused, prepared, bind, values).await
    }

    /// A portal is bound: the unnamed one over several shards anew; a named one is there as long as it is not closed.
    pub(super) async fn unbind_scattered(&mut self, portal: &[u8]) -> Result<(), Stop> {
        let taken =
            self.scattered_portal(portal).is_some() || self.cursors.reading(portal).is_some();
        if taken && !portal.is_empty() && self.status() != Status::Failed {
            return Err(reply::cursors::cursor_exists(portal).into());
        }
        if self.scattered_portal(portal).is_some() {
            Box::pin(self.close_scattered()).await?;
        }
        self.cursors.close(portal);
        Ok(())
    }

    /// Binds a portal of it; false: it cannot be.
    async fn bind_scattered(
        &mut self,
        scattered: &Scattered,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
    ) -> Result<bool, Stop> {
        self.leave_scattered().await?;
        self.answer_pending().await?;
        if self.link.is_some() {
            self.leave_link().await?;
        }
        if self.skip {
            return Ok(true);
        }
        let bound = Bound {
            types: prepared.told.raw_types().unwrap_or(&prepared.raw_types),
            tail: Some(bind),
        };
        if self.is_within() {
            let opened = self.open_reading(scattered, &bound, &prepared.told);
            let Some(reading) = Box::pin(opened).await? else {
                return Ok(false);
            };
            self.cursors.open(bind.portal, reading);
        } else {
            let opened = self
                .open_stream(scattered, &prepared.text, &bound, &prepared.told)
                .await?;
            let (Opened::Yes, Some(stream)) = (opened, self.scattered.as_deref_mut()) else {
                return Ok(false);
            };
            stream.portal = bind.portal.into();
        }
        self.portals.remove(bind.portal);
        self.bound = None;
        self.made(vec![b'2', 0, 0, 0, 4], Note::Nothing);
        Ok(true)
    }

    /// The portal over several shards, if it has this name.
    pub(super) fn scattered_portal(&self, portal: &[u8]) -> Option<&Scattering> {
        self.scattered
            .as_deref()
            .filter(|stream| *stream.portal == *portal)
    }

    /// Execute of the portal over several shards.
    pub(super) async fn execute_scattered(&mut self, portal: &[u8], most: u32) -> Result<(), Stop> {
        if !self.pipeline.is_empty() {
            self.settle().await?;
            if self.skip {
                return Ok(());
            }
        }
        if most > 0 {
            self.keep_scattered().await?;
        }
        if self.cursors.reading(portal).is_some() {
            return self.execute_reading(portal, most).await;
        }
        self.stream(u64::from(most)).await
    }

    /// A portal that was bound beside the transaction, before that reached a shard, is to be read in parts or later: it
    /// becomes one of the transaction.
    async fn keep_scattered(&mut self) -> Result<(), Stop> {
        let bound = |stream: &mut Box<Scattering>| stream.state == State::Bound;
        if self.deferred.as_ref().is_none_or(Deferred::failed) {
            return Ok(());
        }
        let Some(stream) = self.scattered.take_if(bound) else {
            return Ok(());
        };
        self.rest_fan().await?;
        let Scattering {
            portal,
            columns,
            asked,
            merge,
            limit,
            ..
        } = *stream;
        let reading = Box::pin(self.read_from_now(asked, columns, merge, limit)).await?;
        self.cursors.open(&portal, reading);
        Ok(())
    }

    /// The portal over several shards ends: its backends are given back.
    pub(super) async fn close_scattered(&mut self) -> Result<(), Stop> {
        if self.scattered.take().is_some() {
            self.rest_fan().await?;
        }
        Ok(())
    }

    /// Another statement needs backends: the portal cannot go on, and says so when it is asked to.
    pub(super) async fn leave_scattered(&mut self) -> Result<(), Stop> {
        self.keep_scattered().await?;
        if let Some(stream) = self.scattered.as_deref_mut()
            && stream.state != State::Complete
            && stream.state != State::Left
        {
            stream.state = State::Left;
            self.rest_fan().await?;
        }
        Ok(())
    }

    /// Asks the shards, up to Bind. When it cannot be answered so, nothing is held and nothing was told to the client.
    pub(super) async fn open_stream(
        &mut self,
        scattered: &Scattered,
        text: &[u8],
        bound: &Bound<'_>,
        told: &Told,
    ) -> Result<Opened, Stop> {
        let within = self.is_within();
        self.lease_fan(&scattered.shards).await?;
        let opened = self.try_open(scattered, bound, told, Way::Stream).await;
        match opened {
            Ok(Some(stream)) => {
                self.scattered = Some(Box::new(stream));
                Ok(Opened::Yes)
            }
            Ok(None) => {
                self.rest_fan().await?;
                Ok(Opened::No)
            }
            Err(Stop::Refused(words)) if within => {
                // The transaction has failed: nothing more can be asked.
                self.give_up_fan().await?;
                Err(in_own_text(Stop::Refused(words), scattered.places))
            }
            Err(Stop::Refused(words)) => {
                self.give_up_fan().await?;
                // An error in the statement is told as PostgreSQL tells it of the client's own text.
                self.judged(text, bound.types).await?;
                Err(Stop::Refused(words))
            }
            Err(end @ Stop::End(_)) => Err(end),
        }
    }

    /// PostgreSQL's error if it does not take the text.
    async fn judged(&mut self, text: &[u8], types: &[u8]) -> Result<(), Stop> {
        let hold = if self.deferred.is_some() {
            Hold::AsideTransaction
        } else {
            Hold::Loose
        };
        let shard = self.any;
        self.reach(Place { shard, hold }).await?;
        match self.parses(text, types).await? {
            Ok(_) => Ok(()),
            Err(words) => Err(words.into()),
        }
    }

    /// Asks the transaction's shards, up to Bind, for what is read in parts. `None`: it cannot be answered so.
    pub(super) async fn open_reading(
        &mut self,
        scattered: &Scattered,
        bound: &Bound<'_>,
        told: &Told,
    ) -> Result<Option<Box<Reading>>, Stop> {
        self.enlist_fan(&scattered.shards).await?;
        let name = self.cursors.next_name();
        let opened = self
            .try_open(scattered, bound, told, Way::Parts(&name))
            .await;
        let opened = self.end_within(opened).await;
        let Some(stream) = opened.map_err(|stop| in_own_text(stop, scattered.places))? else {
            return Ok(None);
        };
        let Scattering {
            columns,
            asked,
            merge,
            limit,
            ..
        } = stream;
        let level = self.several.savepoints();
        Ok(Some(Box::new(Reading::new(
            name, asked, columns, merge, limit, level,
        ))))
    }

    /// What the shards are sent of a text.
    ///
    /// # Errors
    /// Rows are on several shards, and the text cannot leave out those that a shard does not own.
    pub(super) fn per_shard(&self, text: &str) -> Result<PerShard, Stop> {
        let made = PerShard::of(text.to_owned(), &self.context, &self.snapshot);
        made.map_err(|why| wording::unroutable(&why).into())
    }

    async fn try_open(
        &mut self,
        scattered: &Scattered,
        bound: &Bound<'_>,
        told: &Told,
        way: Way<'_>,
    ) -> Result<Option<Scattering>, Stop> {
        let Some(fan) = self.fan.as_deref() else {
            return Ok(None);
        };
        if !fan.agree_in(&OF_VALUES) {
            return Ok(None);
        }
        let members = fan.len();
        let shards: Vec<_> = (0..members).map(|at| fan.shard(at)).collect();
        let question = self.per_shard(&scattered.question)?;
        for (at, shard) in shards.iter().enumerate() {
            let types = self.types_for(*shard, bound.types);
            let Some(fan) = self.fan.as_deref_mut() else {
                return Ok(None);
            };
            fan.ask(at, 1, |out| {
                put_parse(out, b"", question.on(*shard).as_bytes(), &types);
                put_named(out, b'D', Named::Statement(b""));
                put_bare(out, b'S');
            });
        }
        let mut described = vec![Vec::new(); members];
        let mut failed = None;
        self.hear_fan(|at, tag, body| {
            match tag {
                b'T' => described[at] = body.to_vec(),
                b'E' => failed = failed.take().or_else(|| Some((at, body.to_vec()))),
                _ => {}
            }
            Ok(())
        })
        .await?;
        if let Some((at, body)) = failed {
            let body = placed(&body, |place| question.own_place(shards[at], place));
            return Err(self.error_of(at, body));
        }
        for (shard, columns) in shards.iter().zip(&mut described) {
            self.columns_seen(*shard, columns).await;
        }
        let home = self.home_among(members);
        let oids = self.snapshot.oids.as_deref();
        let Some(shape) = Shape::of(&described, home, scattered, bound, oids) else {
            return Ok(None);
        };
        let Some(columns) = shape.as_told(told) else {
            return Err(reply::result_type_changed().into());
        };
        match way {
            Way::Stream => self.bind_streams(&shape.tail).await?,
            Way::Parts(name) => self.bind_parts(name, None, &shape.tail).await?,
        }
        let keys = shape.keys.len();
        Ok(Some(Scattering {
            portal: Box::default(),
            columns,
            asked: Asked {
                shards: scattered.shards.clone(),
                question,
                types: bound.types.to_vec(),
                tail: shape.tail,
                keys,
            },
            merge: (keys > 0).then(|| Merge::new(shape.keys, shape.count, members)),
            limit: scattered.limit,
            state: State::Bound,
        }))
    }

    /// The member whose columns the client is told: the home shard's, since types of a database's own differ in number.
    fn home_among(&self, members: usize) -> usize {
        let home = self.snapshot.home;
        let fan = self.fan.as_deref();
        let place = fan.and_then(|fan| (0..members).find(|at| fan.shard(*at) == home));
        place.unwrap_or(0)
    }

    /// Binds what the members have parsed, and hears each until it has.
    async fn bind_streams(&mut self, tail: &[u8]) -> Result<(), Stop> {
        if let Some(fan) = self.fan.as_deref_mut() {
            for at in 0..fan.len() {
                fan.ask(at, 0, |out| {
                    put_bind(out, b"", b"", tail);
                    put_bare(out, b'H');
                });
            }
        }
        let mut at = 0;
        while let Some(fan) = self.fan.as_deref_mut().filter(|fan| at < fan.len()) {
            match fan.next(at) {
                Next::Message(header) => {
                    if header.tag == b'E' {
                        let body = fan.held(at)[HEADER..header.size].to_vec();
                        return Err(self.error_of(at, body));
                    }
                    fan.take(at, header.size);
                    at += usize::from(header.tag == b'2');
                }
                Next::Pending => self.wait_fan().await?,
                Next::More(count) => fan.take(at, count),
                Next::TooLong(_) | Next::Rest | Next::Lost => return Err(self.member_lost(at)),
            }
        }
        Ok(())
    }

    /// What the client is told of a member's error.
    pub(super) fn error_of(&self, at: usize, body: Vec<u8>) -> Stop {
        let severity = notice::field(&body, b'V').or_else(|| notice::field(&body, b'S'));
        if severity == Some(b"ERROR") {
            Words::Servers(body).into()
        } else {
            // The server ends the connection, which is not the client's.
            self.member_lost(at)
        }
    }

    pub(super) fn member_lost(&self, at: usize) -> Stop {
        let shard = self.fan.as_deref().map(|fan| fan.shard(at));
        let shard = shard.map_or("", |shard| self.database.shard_name(shard));
        reply::several::shard_lost(shard).into()
    }

    /// Gives the next rows of the portal over several shards, at most `most` of them, all if that is 0; then
    /// CommandComplete or PortalSuspended.
    ///
    /// # Errors
    /// The statement has failed: its backends are given back.
    async fn stream(&mut self, most: u64) -> Result<(), Stop> {
        let Some(mut stream) = self.scattered.take() else {
            return Ok(());
        };
        if stream.state == State::Left {
            self.scattered = Some(stream);
            return Err(reply::cursors::portal_left().into());
        }
        let most = if most == 0 { u64::MAX } else { most };
        let pumped = if stream.state == State::Complete {
            Ok(Pumped::Complete(0))
        } else {
            self.pump(&mut stream, most).await
        };
        match pumped {
            Ok(Pumped::Suspended(_)) => put_bare(self.client.out(), b's'),
            Ok(Pumped::Complete(rows)) => {
                stream.state = State::Complete;
                self.rest_fan().await?;
                self.check_unheard()?;
                put_complete(self.end_of_answer(), format!("SELECT {rows}").as_bytes());
                self.tally.queries += 1;
            }
            Err(stop) => {
                if let Stop::Refused(_) = stop {
                    self.give_up_fan().await?;
                }
                return Err(stop);
            }
        }
        self.scattered = Some(stream);
        Ok(())
    }

    async fn pump(&mut self, stream: &mut Scattering, most: u64) -> Result<Pumped, Stop> {
        if stream.state == State::Bound {
            stream.state = State::Streaming;
            self.begin_rows(stream.merge.as_ref(), |out| {
                put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
            });
        }
        self.pump_rows(&mut stream.merge, &mut stream.limit, most)
            .await
    }

    /// Asks every member for all its rows.
    pub(super) fn begin_rows(&mut self, merge: Option<&Merge>, ask: impl Fn(&mut Vec<u8>)) {
        let Some(fan) = self.fan.as_deref_mut() else {
            return;
        };
        fan.set_long(if merge.is_some() {
            Long::Whole
        } else {
            Long::Parts
        });
        for at in 0..fan.len() {
            fan.ask(at, 1, |out| {
                ask(out);
                put_bare(out, b'S');
            });
        }
    }

    /// Passes on rows that the members were asked for.
    pub(super) async fn pump_rows(
        &mut self,
        merge: &mut Option<Merge>,
        limit: &mut Limit,
        most: u64,
    ) -> Result<Pumped, Stop> {
        let mut given = 0;
        loop {
            // As in PostgreSQL, which does not look whether there would be more.
            if given == most {
                return Ok(Pumped::Suspended(given));
            }
            if limit.is_met() {
                return Ok(Pumped::Complete(given));
            }
            let step = match merge {
                Some(merge) => self.merge_rows(merge, limit, most - given)?,
                None => self.concatenate(limit, most - given).await?,
            };
            match step {
                Step::Gave(rows) => given += rows,
                Step::Waits => self.wait_fan().await?,
                Step::Over(rows) if given + rows == most => {
                    return Ok(Pumped::Suspended(given + rows));
                }
                Step::Over(rows) => return Ok(Pumped::Complete(given + rows)),
            }
            self.wait_for_room().await?;
        }
    }
}

/// A server's error in what a shard was asked, as one in the client's text.
fn in_own_text(stop: Stop, places: Places) -> Stop {
    let Stop::Refused(words) = stop else {
        return stop;
    };
    let Words::Servers(body) = *words else {
        return Stop::Refused(words);
    };
    Words::Servers(placed(&body, |place| places.own(place))).into()
}

/// A server's error with its place in the text that it is about; without, where that has none.
pub(super) fn placed(body: &[u8], own: impl Fn(usize) -> Option<usize>) -> Vec<u8> {
    let mut made = Vec::with_capacity(body.len());
    let mut fields = Body::new(body);
    while let Ok(code @ 1..) = fields.byte() {
        let Ok(text) = fields.cstr() else { break };
        let place = || std::str::from_utf8(text).ok()?.parse().ok();
        let text = match code {
            b'P' => match place().and_then(&own) {
                Some(own) => own.to_string().into_bytes(),
                None => continue,
            },
            _ => text.to_vec(),
        };
        made.push(code);
        made.extend_from_slice(&text);
        made.push(0);
    }
    made.push(0);
    made
}

/// The value of a parameter of LIMIT or OFFSET, `None` inside for NULL; outer `None`: it is not known here, or negative.
#[expect(clippy::option_option, reason = "not known, and known to be NULL")]
fn parameter(number: u32, values: &Values<'_>) -> Option<Option<u64>> {
    use crate::wire::types::Format;
    let index = usize::try_from(number).ok()?.checked_sub(1)?;
    let declared = values.types.get(index).copied().unwrap_or(0);
    let whole = [0, types::UNKNOWN, types::INT2, types::INT4, types::INT8];
    if !whole.contains(&declared) {
        return None;
    }
    let (format, value) = values.bind?.parameter(index)?;
    let Some(value) = value else {
        return Some(None);
    };
    let number = match format {
        Format::Text => std::str::from_utf8(value).ok()?.trim().parse().ok()?,
        Format::Binary => match *value {
            [a, b] => i64::from(i16::from_be_bytes([a, b])),
            [a, b, c, d] => i64::from(i32::from_be_bytes([a, b, c, d])),
            _ => i64::from_be_bytes(value.try_into().ok()?),
        },
    };
    u64::try_from(number).ok().map(Some)
}
