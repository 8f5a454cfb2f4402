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

use super::{
    fan::{LONGEST, Long, Next},
    gather::Bound,
    link::Hold,
    place::Place,
    prepared::{Fit, Prepared, Told},
    reply::session as reply,
    request::Stop,
    session::{Note, Rest, Session, told},
};
use crate::{
    catalog::shard::ShardSet,
    merge::{
        Malformed,
        key::{Key, Kind},
        limit::Limit,
        order::Merge,
        rows,
    },
    net::stream::HIGH_WATER,
    plan::{
        Plan, Target, Values,
        combine::{Count, OrderBy},
    },
    pool::backend as pool,
    wire::{
        backend::put_complete,
        frame::{Body, HEADER},
        frontend::{Bind, Named, put, put_bare, put_bind, put_named, put_parse},
        notice::{self, Notice, Words},
        types::{self, Oid},
    },
};
use std::sync::Arc;

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u32 = 16384;
/// `record` and `record[]`: their binary values hold the numbers of their columns' types.
const RECORDS: [Oid; 2] = [2249, 2287];

/// A statement that several shards answer in parts.
#[derive(Debug)]
pub(super) struct Scattered {
    shards: ShardSet,
    /// What each of them is asked.
    question: String,
    keys: Vec<OrderBy>,
    limit: Limit,
}

/// An answer that is being put together; its backends are the session's fan.
#[derive(Debug)]
pub(super) struct Scattering {
    /// The portal that the client gave it.
    pub(super) portal: Box<[u8]>,
    /// RowDescription's body, without the keys.
    pub(super) columns: Vec<u8>,
    /// `None`: in no order.
    merge: Option<Merge>,
    limit: Limit,
    state: State,
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
enum Pumped {
    Complete(u64),
    Suspended,
}

impl Session {
    /// Whether shards answer this statement, the only one of its text, in parts, and what they are asked.
    pub(super) fn streams(&self, plan: &Plan, values: &Values<'_>) -> Option<Box<Scattered>> {
        let [statement] = plan.statements.as_slice() else {
            return None;
        };
        let combine = statement.combine.as_ref()?;
        if !self.may_ask_shards(statement) {
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
            keys: parts.keys,
        }))
    }

    /// Answers a simple Query so; false: it cannot be.
    pub(super) async fn query_scattered(
        &mut self,
        scattered: &Scattered,
        text: &[u8],
    ) -> Result<bool, Stop> {
        let bound = Bound {
            types: &[],
            tail: None,
        };
        let told = Told::default();
        let opened = self.open_stream(scattered, text, &bound, &told).await?;
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

    /// Binds what no shard alone can answer: several do, or it is refused.
    pub(super) async fn bind_shards(
        &mut self,
        refused: Notice,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
        values: &Values<'_>,
    ) -> Result<(), Stop> {
        if let Some(scattered) = self.streams(&prepared.plan, values)
            && self.bind_scattered(&scattered, prepared, bind).await?
        {
            return Ok(());
        }
        self.bind_elsewhere(refused, prepared, bind, values).await
    }

    /// The portal over several shards is bound anew.
    pub(super) async fn unbind_scattered(&mut self, portal: &[u8]) -> Result<(), Stop> {
        if self.scattered_portal(portal).is_some() {
            Box::pin(self.close_scattered()).await?;
        }
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
        let opened = self
            .open_stream(scattered, &prepared.text, &bound, &prepared.told)
            .await?;
        let (Opened::Yes, Some(stream)) = (opened, self.scattered.as_deref_mut()) else {
            return Ok(false);
        };
        stream.portal = bind.portal.into();
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
    pub(super) async fn execute_scattered(&mut self, most: u32) -> Result<(), Stop> {
        if !self.pipeline.is_empty() {
            self.settle().await?;
            if self.skip {
                return Ok(());
            }
        }
        self.stream(u64::from(most)).await
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
    async fn open_stream(
        &mut self,
        scattered: &Scattered,
        text: &[u8],
        bound: &Bound<'_>,
        told: &Told,
    ) -> Result<Opened, Stop> {
        self.lease_fan(&scattered.shards).await?;
        let opened = self.try_open(scattered, bound, told).await;
        match opened {
            Ok(Some(stream)) => {
                self.scattered = Some(Box::new(stream));
                Ok(Opened::Yes)
            }
            Ok(None) => {
                self.rest_fan().await?;
                Ok(Opened::No)
            }
            Err(Stop::Refused(words)) => {
                self.rest_fan().await?;
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

    async fn try_open(
        &mut self,
        scattered: &Scattered,
        bound: &Bound<'_>,
        told: &Told,
    ) -> Result<Option<Scattering>, Stop> {
        let Some(fan) = self.fan.as_deref_mut() else {
            return Ok(None);
        };
        let members = fan.len();
        for at in 0..members {
            fan.ask(at, 1, |out| {
                put_parse(out, b"", scattered.question.as_bytes(), bound.types);
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
            return Err(self.error_of(at, body));
        }
        let home = self.home_among(members);
        let Some(shape) = Shape::of(&described, home, scattered, bound) else {
            return Ok(None);
        };
        let Some(columns) = shape.as_told(told) else {
            return Err(reply::result_type_changed().into());
        };
        let Some(fan) = self.fan.as_deref_mut() else {
            return Ok(None);
        };
        for at in 0..members {
            fan.ask(at, 0, |out| {
                put_bind(out, b"", b"", &shape.tail);
                put_bare(out, b'H');
            });
        }
        self.hear_until_bound().await?;
        let keys = !shape.keys.is_empty();
        Ok(Some(Scattering {
            portal: Box::default(),
            columns,
            merge: keys.then(|| Merge::new(shape.keys, shape.count, members)),
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

    /// Hears each member until it has bound the portal.
    async fn hear_until_bound(&mut self) -> Result<(), Stop> {
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
    fn error_of(&self, at: usize, body: Vec<u8>) -> Stop {
        let severity = notice::field(&body, b'V').or_else(|| notice::field(&body, b'S'));
        if severity == Some(b"ERROR") {
            Words::Servers(body).into()
        } else {
            // The server ends the connection, which is not the client's.
            self.member_lost(at)
        }
    }

    fn member_lost(&self, at: usize) -> Stop {
        let shard = self.fan.as_deref().map(|fan| fan.shard(at));
        let shard = shard.map_or("", |shard| self.database.shard_name(shard));
        reply::shard_lost(shard).into()
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
            return Err(reply::portal_left().into());
        }
        let most = if most == 0 { u64::MAX } else { most };
        let pumped = if stream.state == State::Complete {
            Ok(Pumped::Complete(0))
        } else {
            self.pump(&mut stream, most).await
        };
        match pumped {
            Ok(Pumped::Suspended) => put_bare(self.client.out(), b's'),
            Ok(Pumped::Complete(rows)) => {
                stream.state = State::Complete;
                self.rest_fan().await?;
                put_complete(self.client.out(), format!("SELECT {rows}").as_bytes());
                self.tally.queries += 1;
            }
            Err(stop) => {
                if let Stop::Refused(_) = stop {
                    self.rest_fan().await?;
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
            let Some(fan) = self.fan.as_deref_mut() else {
                return Ok(Pumped::Complete(0));
            };
            let long = if stream.merge.is_some() {
                Long::Whole
            } else {
                Long::Parts
            };
            fan.set_long(long);
            for at in 0..fan.len() {
                fan.ask(at, 1, |out| {
                    put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
                    put_bare(out, b'S');
                });
            }
        }
        let mut given = 0;
        loop {
            if stream.limit.is_met() {
                return Ok(Pumped::Complete(given));
            }
            if given == most {
                return Ok(Pumped::Suspended);
            }
            let step = match &mut stream.merge {
                Some(merge) => self.merge_rows(merge, &mut stream.limit, most - given)?,
                None => self.concatenate(&mut stream.limit, most - given).await?,
            };
            match step {
                Step::Gave(rows) => given += rows,
                Step::Waits => self.wait_fan().await?,
                Step::Over(rows) => return Ok(Pumped::Complete(given + rows)),
            }
            self.wait_for_room().await?;
        }
    }

    /// Passes on what has come of any shard.
    async fn concatenate(&mut self, limit: &mut Limit, most: u64) -> Result<Step, Stop> {
        let (mut given, mut rests, mut waits) = (0, 0, true);
        let members = self.fan.as_deref().map_or(0, super::fan::Fan::len);
        for at in 0..members {
            loop {
                let Some(fan) = self.fan.as_deref_mut() else {
                    return Ok(Step::Over(given));
                };
                match fan.next(at) {
                    Next::Message(header) if header.tag == b'D' => {
                        let skips = limit.skips();
                        let wanted = if skips > 0 {
                            skips
                        } else {
                            limit.gives().min(most - given)
                        };
                        let held = fan.held(at);
                        let run = rows::run(held, wanted);
                        if skips > 0 {
                            limit.skipped(run.rows);
                        } else {
                            self.client.out().extend_from_slice(&held[..run.bytes]);
                            limit.gave(run.rows);
                            given += run.rows;
                        }
                        fan.take(at, run.bytes);
                        waits = false;
                        break;
                    }
                    Next::TooLong(header) if header.tag == b'D' => {
                        let forward = if limit.skips() > 0 {
                            limit.skipped(1);
                            Forward::No
                        } else {
                            limit.gave(1);
                            given += 1;
                            Forward::Yes
                        };
                        self.long_row(at, header.size, forward).await?;
                        waits = false;
                        break;
                    }
                    Next::Rest => {
                        rests += 1;
                        break;
                    }
                    Next::Pending => break,
                    other @ (Next::Message(_) | Next::TooLong(_) | Next::More(_) | Next::Lost) => {
                        self.aside(at, other)?;
                    }
                }
            }
            if given == most || limit.is_met() {
                return Ok(Step::Gave(given));
            }
        }
        Ok(match waits {
            _ if rests == members => Step::Over(given),
            true => Step::Waits,
            false => Step::Gave(given),
        })
    }

    /// Passes on a row that is longer than what is held of a shard, or over it, as it comes.
    async fn long_row(&mut self, at: usize, size: usize, forward: Forward) -> Result<(), Stop> {
        let mut left = size;
        while left > 0 {
            let Some(fan) = self.fan.as_deref_mut() else {
                return Ok(());
            };
            let held = fan.held(at);
            let count = held.len().min(left);
            if forward == Forward::Yes && count > 0 {
                self.client.out().extend_from_slice(&held[..count]);
            }
            fan.take(at, count);
            left -= count;
            if forward == Forward::Yes {
                // Within a message nothing else can be said.
                self.backend_rest = Rest {
                    bytes: left,
                    forward: true,
                };
            }
            if left == 0 {
                break;
            }
            self.wait_for_room().await?;
            let Some(fan) = self.fan.as_deref_mut() else {
                return Ok(());
            };
            match fan.next(at) {
                Next::More(_) => {}
                Next::Pending => self.wait_fan().await?,
                Next::Message(_) | Next::TooLong(_) | Next::Rest | Next::Lost => {
                    let shard = self.fan.as_deref().map(|fan| fan.shard(at));
                    let shard = shard.map_or("", |shard| self.database.shard_name(shard));
                    return Err(told(reply::shard_lost(shard)).into());
                }
            }
        }
        Ok(())
    }

    /// Passes on rows in their order, as far as every shard's next one is known.
    fn merge_rows(
        &mut self,
        merge: &mut Merge,
        limit: &mut Limit,
        most: u64,
    ) -> Result<Step, Stop> {
        let mut given = 0;
        let members = self.fan.as_deref().map_or(0, super::fan::Fan::len);
        loop {
            for at in 0..members {
                while merge.awaits(at) {
                    let Some(fan) = self.fan.as_deref_mut() else {
                        return Ok(Step::Over(given));
                    };
                    match fan.next(at) {
                        Next::Message(header) if header.tag == b'D' => {
                            let body = &fan.held(at)[HEADER..header.size];
                            merge.offer(at, body).map_err(out_of_shape)?;
                        }
                        Next::Rest => merge.over(at),
                        Next::Pending => {
                            return Ok(if given > 0 {
                                Step::Gave(given)
                            } else {
                                Step::Waits
                            });
                        }
                        other @ (Next::Message(_)
                        | Next::TooLong(_)
                        | Next::More(_)
                        | Next::Lost) => {
                            self.aside(at, other)?;
                        }
                    }
                }
            }
            let (Some(at), Some(fan)) = (merge.first(), self.fan.as_deref_mut()) else {
                return Ok(Step::Over(given));
            };
            let Next::Message(header) = fan.next(at) else {
                return Err(self.member_lost(at));
            };
            let body = &fan.held(at)[HEADER..header.size];
            if limit.skips() > 0 {
                limit.skipped(1);
                merge.take(body, None);
            } else {
                merge.take(body, Some(self.client.out()));
                limit.gave(1);
                given += 1;
            }
            fan.take(at, header.size);
            if given == most || limit.is_met() || self.client.unsent() >= HIGH_WATER {
                return Ok(Step::Gave(given));
            }
        }
    }

    /// A member's message that is no row.
    fn aside(&mut self, at: usize, next: Next) -> Result<(), Stop> {
        let Some(fan) = self.fan.as_deref_mut() else {
            return Ok(());
        };
        match next {
            Next::Message(header) => {
                let held = fan.held(at);
                match header.tag {
                    b'E' => {
                        let body = held[HEADER..header.size].to_vec();
                        return Err(self.error_of(at, body));
                    }
                    b'N' => self.client.out().extend_from_slice(&held[..header.size]),
                    // CommandComplete, and what else belongs to an answer.
                    _ => {}
                }
                fan.take(at, header.size);
                Ok(())
            }
            Next::More(count) => {
                fan.take(at, count);
                Ok(())
            }
            Next::TooLong(_) => Err(reply::too_many_rows(LONGEST).into()),
            Next::Lost => Err(self.member_lost(at)),
            Next::Pending | Next::Rest => Ok(()),
        }
    }
}

/// What came of looking for rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Gave(u64),
    /// Nothing has come.
    Waits,
    /// Every shard has given all its rows, these the last.
    Over(u64),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Forward {
    Yes,
    No,
}

fn out_of_shape(_malformed: Malformed) -> Stop {
    reply::columns_changed().into()
}

/// What the shards' columns, which are the same, mean for the answer.
struct Shape {
    /// RowDescription's body, without the keys: the home shard's first, then the others'.
    columns: Vec<Vec<u8>>,
    /// How many columns that are.
    count: u16,
    keys: Vec<Key>,
    /// Bind's, with the formats of the keys.
    tail: Vec<u8>,
}

/// A column of a RowDescription.
struct Column<'a> {
    name: &'a [u8],
    oid: Oid,
    modifier: u32,
    /// The whole entry.
    bytes: &'a [u8],
}

impl Shape {
    /// `None`: the answers cannot be put together here.
    fn of(
        described: &[Vec<u8>],
        home: usize,
        scattered: &Scattered,
        bound: &Bound<'_>,
    ) -> Option<Self> {
        let columns = described.iter().map(|body| columns(body));
        let all = columns.collect::<Option<Vec<_>>>()?;
        let own = all.get(home)?;
        let visible = own.len().checked_sub(scattered.keys.len())?;
        let formats = Formats::of(bound, visible)?;
        for other in &all {
            if other.len() != own.len() {
                return None;
            }
            for (at, (one, other)) in own.iter().zip(other).enumerate() {
                let same = one.name == other.name && one.modifier == other.modifier;
                let of_database = one.oid >= FIRST_OWN_OID && other.oid >= FIRST_OWN_OID;
                let type_agrees = one.oid == other.oid || of_database;
                let in_binary = at < visible && formats.is_binary(at);
                let numbered = one.oid != other.oid || RECORDS.contains(&one.oid);
                if !same || !type_agrees || (in_binary && numbered) {
                    return None;
                }
            }
        }
        let keys = own[visible..]
            .iter()
            .zip(&scattered.keys)
            .map(|(column, key)| {
                Some(Key {
                    kind: Kind::of(column.oid, key.text)?,
                    direction: key.direction,
                    nulls: key.nulls,
                })
            });
        let keys = keys.collect::<Option<Vec<Key>>>()?;
        let count = u16::try_from(visible).ok()?;
        let without_keys = |columns: &[Column<'_>]| {
            let mut body = count.to_be_bytes().to_vec();
            for (at, column) in columns[..visible].iter().enumerate() {
                let (entry, _format) = column.bytes.split_at(column.bytes.len() - 2);
                body.extend_from_slice(entry);
                body.extend_from_slice(&[0, u8::from(formats.is_binary(at))]);
            }
            body
        };
        let mut columns: Vec<_> = all.iter().map(|columns| without_keys(columns)).collect();
        columns.swap(0, home);
        let tail = formats.tail(bound, visible, keys.len());
        Some(Self {
            columns,
            count,
            keys,
            tail,
        })
    }

    /// The columns as the client knows them already, else the home shard's; `None`: it knows others.
    fn as_told(&self, told: &Told) -> Option<Vec<u8>> {
        let knows = |columns: &&Vec<u8>| {
            let digest = told.columns(Some(columns)).ok();
            let shape = pool::Shape {
                types: None,
                columns: digest,
            };
            told.fit(shape) != Fit::Differs
        };
        let mut columns = self.columns.iter();
        let found = if told.has_columns() {
            columns.find(knows)
        } else {
            columns.next()
        };
        found.cloned()
    }
}

/// The columns of a RowDescription's body.
fn columns(body: &[u8]) -> Option<Vec<Column<'_>>> {
    let mut body = Body::new(body);
    let count = body.u16().ok()?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let start = body.rest();
        let name = body.cstr().ok()?;
        let _table_and_number = body.bytes(6).ok()?;
        let oid = body.u32().ok()?;
        let _length = body.u16().ok()?;
        let modifier = body.u32().ok()?;
        let _format = body.u16().ok()?;
        columns.push(Column {
            name,
            oid,
            modifier,
            bytes: &start[..start.len() - body.rest().len()],
        });
    }
    Some(columns)
}

/// The formats that a client asks its columns in.
struct Formats<'a> {
    /// As they stand in Bind: none, one for all, or one for each.
    codes: &'a [u8],
}

impl<'a> Formats<'a> {
    /// `None`: there are neither none, one, nor as many as columns, which PostgreSQL refuses.
    fn of(bound: &Bound<'a>, visible: usize) -> Option<Self> {
        let codes = bound.tail.map_or(&[][..], Bind::result_formats);
        let count = codes.len() / 2;
        (count <= 1 || count == visible).then_some(Self { codes })
    }

    fn is_binary(&self, at: usize) -> bool {
        let at = if self.codes.len() == 2 { 0 } else { at };
        self.codes.get(at * 2..at * 2 + 2) == Some(&[0, 1])
    }

    /// Bind's tail, where the keys behind the client's columns are in binary.
    fn tail(&self, bound: &Bound<'_>, visible: usize, keys: usize) -> Vec<u8> {
        let mut tail = match bound.tail {
            Some(bind) => bind.tail_for_text(),
            None => vec![0; 6],
        };
        tail.truncate(tail.len() - 2);
        if keys == 0 {
            let count = u16::try_from(self.codes.len() / 2).unwrap_or(0);
            tail.extend_from_slice(&count.to_be_bytes());
            tail.extend_from_slice(self.codes);
            return tail;
        }
        let count = u16::try_from(visible + keys).unwrap_or(u16::MAX);
        tail.extend_from_slice(&count.to_be_bytes());
        for at in 0..visible + keys {
            let binary = at >= visible || self.is_binary(at);
            tail.extend_from_slice(&[0, u8::from(binary)]);
        }
        tail
    }
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
