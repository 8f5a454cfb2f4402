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
mod shape;

use super::{
    fan::{Long, Next},
    gather::Bound,
    link::Hold,
    place::Place,
    prepared::{Prepared, Told},
    reply::session as reply,
    request::Stop,
    session::{Note, Session},
};
use crate::{
    catalog::shard::ShardSet,
    merge::{limit::Limit, order::Merge},
    plan::{
        Plan, Target, Values,
        combine::{Count, OrderBy},
    },
    wire::{
        backend::{Status, put_complete},
        frame::HEADER,
        frontend::{Bind, Named, put, put_bare, put_bind, put_named, put_parse},
        notice::{self, Notice, Words},
        types,
    },
};
use pump::Step;
use shape::Shape;
use std::sync::Arc;

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u16 = 16384;
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
        // The transaction's backends are not held from Bind to Execute.
        if !self.is_within()
            && let Some(scattered) = self.streams(&prepared.plan, values)
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
            types: types_everywhere(prepared),
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
        if self.is_within() {
            // A rewritten text's error would fail the transaction before the client's own has been told.
            self.judged(text, bound.types).await?;
        }
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
                self.give_up_fan().await?;
                // An error in the statement is told as PostgreSQL tells it of the client's own text.
                if self.status() == Status::Idle || self.deferred.is_some() {
                    self.judged(text, bound.types).await?;
                }
                Err(Stop::Refused(words))
            }
            Err(end @ Stop::End(_)) => Err(end),
        }
    }

    /// PostgreSQL's error if it does not take the text.
    async fn judged(&mut self, text: &[u8], types: &[u8]) -> Result<(), Stop> {
        let (shard, hold) = match &self.link {
            Some(link) if self.is_within() => (link.shard, Hold::Bound),
            _ if self.deferred.is_some() => (self.any, Hold::AsideTransaction),
            _ => (self.any, Hold::Loose),
        };
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
        if !fan.agree_in(&OF_VALUES) {
            return Ok(None);
        }
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

    pub(super) fn member_lost(&self, at: usize) -> Stop {
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
                self.check_unheard()?;
                put_complete(self.client.out(), format!("SELECT {rows}").as_bytes());
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
}

/// The parameters' types as the client was told them, unless one of them has another number on each shard.
fn types_everywhere(prepared: &Prepared) -> &[u8] {
    let same = |raw: &&[u8]| {
        let mut types = raw.chunks_exact(4);
        types.all(|oid| matches!(oid, [0, 0, a, b] if u16::from_be_bytes([*a, *b]) < FIRST_OWN_OID))
    };
    let told = prepared.told.raw_types().filter(same);
    told.unwrap_or(&prepared.raw_types)
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
