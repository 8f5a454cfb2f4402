//! Portals and cursors of a transaction whose rows come from several shards and are read in parts.
//!
//! ```text
//!   Bind, DECLARE ─▶ a portal on each shard ─▶ Execute n, FETCH: parts of the shards' portals ─▶ rows ─▶ Close, CLOSE
//!                                                    ▲ whatever else the transaction does │
//!                                                    └────────────────────────────────────┘
//! ```
//!
//! What must stay true: between two parts the shards' links are free, and what they have sent and the client has not
//! asked for is held here, one part of each shard at most; a cursor ends where PostgreSQL's ends, with the transaction or
//! the savepoint behind which it was made; one in whose reading something failed gives no row more.

mod commands;

pub(super) use commands::CommandPortal;

use super::{
    fan::{Fan, LONGEST},
    named::Named,
    reply::session as reply,
    request::Stop,
    scatter::{Asked, Pumped, shape},
    session::Session,
};
use crate::{
    catalog::shard::{ShardId, ShardSet},
    merge::{
        limit::Limit,
        order::Merge,
        parts::{Gave, PART, Parts},
    },
    plan::owned::PerShard,
    protocol::parameters::Value,
    sql::{cursor::Scroll, statement::Effect},
    wire::{
        backend::{Status, command_tag, put_complete},
        frontend::{Named as Name, put, put_bare, put_bind, put_named, put_parse},
    },
};

/// The cursors of a transaction. Empty outside of one.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    all: Option<Box<All>>,
}

#[derive(Debug, Default)]
struct All {
    open: Named<Box<Reading>>,
    /// Those that are on one shard, or were: which shard that is.
    there: Named<There>,
    /// Portals on shards that are not needed any more, and are closed when the shard is asked something.
    stale: Vec<(ShardId, String)>,
    /// How many portals there have been on shards.
    named: u64,
}

/// Settings that values are written by. Rows that wait to be given were written by those of their time, where PostgreSQL
/// would write them when they are given.
const WRITTEN_BY: [&str; 8] = [
    "datestyle",
    "intervalstyle",
    "timezone",
    "client_encoding",
    "bytea_output",
    "extra_float_digits",
    "lc_monetary",
    "role",
];

/// A portal or cursor of one shard.
#[derive(Clone, Copy, Debug)]
struct There {
    shard: ShardId,
    level: usize,
}

/// Rows of several shards that are read in parts.
#[derive(Debug)]
pub(super) struct Reading {
    /// The portal on each of the shards.
    name: String,
    shards: ShardSet,
    /// RowDescription's body, without the keys.
    pub(super) columns: Vec<u8>,
    /// The formats that the shards' portals have, and that rows which are held have.
    bound: Vec<Format>,
    formats: Vec<Format>,
    /// By which settings those rows were written.
    written_by: Vec<Option<Value>>,
    keys: usize,
    parts: Parts,
    state: State,
    /// How many savepoints there were when it was made.
    level: usize,
    pub(super) scroll: Scroll,
    /// How FETCH of the simple protocol gives its rows.
    pub(super) simple: Format,
}

pub(super) type Format = crate::wire::types::Format;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ready,
    Failed,
}

/// Where rows go.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Sink<'a> {
    Client,
    /// They are kept for later.
    Held(&'a mut Vec<u8>),
    /// They are passed over.
    Nowhere,
}

impl Cursors {
    /// The cursor of this name.
    pub(super) fn reading(&self, name: &[u8]) -> Option<&Reading> {
        let all = self.all.as_deref()?;
        all.open.get(name).map(|reading| &**reading)
    }

    /// Whether the transaction has had none.
    pub(super) fn is_empty(&self) -> bool {
        self.all.is_none()
    }

    /// The shard that has a portal or cursor of this name, if one has it.
    pub(super) fn there(&self, name: &[u8]) -> Option<ShardId> {
        let all = self.all.as_deref()?;
        all.there.get(name).map(|there| there.shard)
    }

    /// A shard is asked to make a portal or cursor of this name.
    fn goes_there(&mut self, name: &[u8], shard: ShardId, level: usize) {
        let all = self.all.get_or_insert_default();
        all.there.insert(name.into(), There { shard, level });
    }

    /// A name for portals on shards.
    pub(super) fn next_name(&mut self) -> String {
        let all = self.all.get_or_insert_default();
        all.named += 1;
        format!("shardway {}", all.named)
    }

    /// A cursor has this name from now on.
    pub(super) fn open(&mut self, name: &[u8], reading: Box<Reading>) {
        let all = self.all.get_or_insert_default();
        all.open.insert(name.into(), reading);
    }

    /// The cursor ends; whether there was one.
    pub(super) fn close(&mut self, name: &[u8]) -> bool {
        let found = self
            .all
            .as_deref_mut()
            .and_then(|all| all.open.remove(name));
        let Some(reading) = found else {
            return false;
        };
        self.leave(*reading);
        true
    }

    /// What a cursor has on the shards is not needed any more.
    pub(super) fn leave(&mut self, reading: Reading) {
        let all = self.all.get_or_insert_default();
        reading.end(&mut all.stale);
    }

    /// The transaction is over, and what it had on the shards with it.
    pub(super) fn clear(&mut self) {
        self.all = None;
    }

    /// A statement that concerns the whole transaction was confirmed: so many savepoints are there now.
    pub(super) fn follow(&mut self, effect: &Effect, savepoints: usize) {
        let Some(all) = self.all.as_deref_mut() else {
            return;
        };
        if let Effect::RollbackTo(_) = effect {
            // The shards' own portals end with it.
            all.open.retain(|reading| reading.level < savepoints);
            all.there.retain(|there| there.level < savepoints);
        } else if let Effect::Release(_) = effect {
            all.open
                .each(|reading| reading.level = reading.level.min(savepoints));
            all.there
                .each(|there| there.level = there.level.min(savepoints));
        }
    }

    /// Portals on this shard that are to be closed.
    fn stale_on(&mut self, shard: ShardId) -> Vec<String> {
        let Some(all) = self.all.as_deref_mut() else {
            return Vec::new();
        };
        let taken = all.stale.extract_if(.., |(on, _)| *on == shard);
        taken.map(|(_, name)| name).collect()
    }

    fn take(&mut self, name: &[u8]) -> Option<Box<Reading>> {
        self.all.as_deref_mut()?.open.remove(name)
    }
}

impl Reading {
    /// The shards' portals of this name, which are bound and not read.
    pub(super) fn new(
        name: String,
        asked: Asked,
        columns: Vec<u8>,
        merge: Option<Merge>,
        limit: Limit,
        level: usize,
    ) -> Self {
        let bound = shape::formats_of(&columns);
        Self {
            name,
            columns,
            formats: bound.clone(),
            bound,
            written_by: Vec::new(),
            keys: asked.keys,
            parts: Parts::new(asked.shards.iter().count(), merge, limit),
            shards: asked.shards,
            state: State::Ready,
            level,
            scroll: Scroll::NotSaid,
            simple: Format::Text,
        }
    }

    fn end(self, stale: &mut Vec<(ShardId, String)>) {
        let shards = self.shards.iter();
        stale.extend(shards.map(|shard| (shard, self.name.clone())));
    }

    /// Rows come in these formats and by these settings from now on; false: rows of others wait to be given.
    fn turn_to(&mut self, formats: &[Format], written_by: Vec<Option<Value>>) -> bool {
        let same = self.formats == formats && self.written_by == written_by;
        if !same && self.parts.holds_rows() {
            return false;
        }
        self.formats = formats.to_vec();
        self.written_by = written_by;
        true
    }

    /// Asks a shard's portal for rows; `None`: for all of them.
    fn put(&self, rows: Option<u64>, out: &mut Vec<u8>) {
        if self.formats == self.bound {
            let most = rows.map_or(0, |rows| i32::try_from(rows).unwrap_or(i32::MAX));
            put(out, b'E', |out| {
                out.extend_from_slice(self.name.as_bytes());
                out.push(0);
                out.extend_from_slice(&most.to_be_bytes());
            });
            return;
        }
        let count = rows.map_or_else(|| "ALL".to_owned(), |rows| rows.to_string());
        let text = format!("FETCH FORWARD {count} FROM \"{}\"", self.name);
        put_parse(out, b"", text.as_bytes(), b"");
        let keys = std::iter::repeat_n(Format::Binary, self.keys);
        let formats: Vec<Format> = self.formats.iter().copied().chain(keys).collect();
        let mut tail = vec![0; 4];
        let count = u16::try_from(formats.len()).unwrap_or(u16::MAX);
        tail.extend_from_slice(&count.to_be_bytes());
        for format in formats {
            tail.extend_from_slice(&[0, u8::from(format == Format::Binary)]);
        }
        put_bind(out, b"", b"", &tail);
        put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
    }
}

impl Session {
    /// The columns of a portal over several shards, if one has this name.
    pub(super) fn columns_over_shards(&self, portal: &[u8]) -> Option<&[u8]> {
        let stream = self.scattered_portal(portal).map(|stream| &stream.columns);
        let reading = || Some(&self.cursors.reading(portal)?.columns);
        stream.or_else(reading).map(Vec::as_slice)
    }

    /// Close of a portal over several shards.
    pub(super) async fn close_over_shards(&mut self, portal: &[u8]) -> Result<(), Stop> {
        if self.scattered_portal(portal).is_some() {
            self.close_scattered().await?;
        }
        self.cursors.close(portal);
        Ok(())
    }

    /// What was asked beside the transaction is asked within it.
    pub(super) async fn read_from_now(
        &mut self,
        asked: Asked,
        columns: Vec<u8>,
        merge: Option<Merge>,
        limit: Limit,
    ) -> Result<Box<Reading>, Stop> {
        self.enlist_fan(&asked.shards).await?;
        let name = self.cursors.next_name();
        let parsed = Some((&asked.question, asked.types.as_slice()));
        let bound = self.bind_parts(&name, parsed, &asked.tail).await;
        self.end_within(bound).await?;
        let level = self.several.savepoints();
        Ok(Box::new(Reading::new(
            name, asked, columns, merge, limit, level,
        )))
    }

    /// Binds portals of this name on the fan's members, and closes those that are not needed any more. `parse`: a text
    /// and its parameters' types, if the members have not parsed it already.
    pub(super) async fn bind_parts(
        &mut self,
        name: &str,
        parse: Option<(&PerShard, &[u8])>,
        tail: &[u8],
    ) -> Result<(), Stop> {
        let members = self.fan.as_deref().map_or(0, Fan::len);
        for at in 0..members {
            let shard = self.fan.as_deref().map(|fan| fan.shard(at));
            let own = shard.zip(parse);
            let own = own.map(|(shard, (_, types))| self.types_for(shard, types));
            if let Some(fan) = self.fan.as_deref_mut() {
                let shard = fan.shard(at);
                let stale = self.cursors.stale_on(shard);
                fan.ask(at, 1, |out| {
                    for name in &stale {
                        put_named(out, b'C', Name::Portal(name.as_bytes()));
                    }
                    if let (Some((text, _)), Some(types)) = (parse, &own) {
                        put_parse(out, b"", text.on(shard).as_bytes(), types);
                    }
                    put_bind(out, name.as_bytes(), b"", tail);
                    put_bare(out, b'S');
                });
            }
        }
        let mut failed = None;
        self.hear_fan(|at, tag, body| {
            if tag == b'E' {
                failed = failed.take().or_else(|| Some((at, body.to_vec())));
            }
            Ok(())
        })
        .await?;
        match failed {
            Some((at, body)) => Err(self.error_of(at, body)),
            None => Ok(()),
        }
    }

    /// Execute of a portal that is read in parts.
    pub(super) async fn execute_reading(&mut self, name: &[u8], most: u32) -> Result<(), Stop> {
        if self.status() == Status::Failed {
            return Err(reply::transaction_failed().into());
        }
        let Some(mut reading) = self.cursors.take(name) else {
            return Err(reply::no_such_portal(name).into());
        };
        if reading.state == State::Failed {
            self.cursors.open(name, reading);
            return Err(reply::portal_is_done(name).into());
        }
        let bound = reading.bound.clone();
        let most = if most == 0 { u64::MAX } else { u64::from(most) };
        let read = if reading.turn_to(&bound, self.written_by()) {
            self.read(&mut reading, most, Sink::Client).await
        } else {
            Err(reply::cursors::cursor_in_other_formats().into())
        };
        self.cursors.open(name, reading);
        match read? {
            Pumped::Suspended(_) => put_bare(self.client.out(), b's'),
            Pumped::Complete(rows) => {
                put_complete(self.end_of_answer(), format!("SELECT {rows}").as_bytes());
                self.tally.queries += 1;
            }
        }
        Ok(())
    }

    /// Reads the next rows, at most `most`.
    ///
    /// # Errors
    /// The transaction has failed, and the cursor gives no more.
    pub(super) async fn read(
        &mut self,
        reading: &mut Reading,
        most: u64,
        sink: Sink<'_>,
    ) -> Result<Pumped, Stop> {
        // What becomes of it is not known until it is done.
        reading.state = State::Failed;
        let whole = most == u64::MAX && sink == Sink::Client && reading.parts.is_untouched();
        let read = if whole {
            self.read_whole(reading).await
        } else {
            self.read_parts(reading, most, sink).await
        };
        let read = self.end_within(read).await?;
        reading.state = State::Ready;
        Ok(read)
    }

    /// By which settings values are written now.
    fn written_by(&self) -> Vec<Option<Value>> {
        let settings = WRITTEN_BY.iter();
        settings
            .map(|name| self.parameters.get(name).cloned())
            .collect()
    }

    /// Takes the transaction's links back, if they work on something, of which this came.
    pub(super) async fn end_within<T>(&mut self, done: Result<T, Stop>) -> Result<T, Stop> {
        match done {
            Ok(done) => {
                if self.fan.is_some() {
                    self.rest_fan().await?;
                }
                self.check_unheard()?;
                Ok(done)
            }
            Err(stop @ Stop::Refused(_)) => {
                if self.fan.is_some() {
                    self.give_up_fan().await?;
                }
                Err(stop)
            }
            Err(end @ Stop::End(_)) => Err(end),
        }
    }

    /// All rows of it, as they come.
    async fn read_whole(&mut self, reading: &mut Reading) -> Result<Pumped, Stop> {
        let mut merge = reading.parts.take_merge();
        self.enlist_fan(&reading.shards).await?;
        self.begin_rows(merge.as_ref(), |out| reading.put(None, out));
        let mut limit = Limit::new(0, None);
        let pumped = self.pump_rows(&mut merge, &mut limit, u64::MAX).await?;
        for at in 0..reading.shards.iter().count() {
            reading.parts.over(at);
        }
        Ok(pumped)
    }

    async fn read_parts(
        &mut self,
        reading: &mut Reading,
        most: u64,
        mut sink: Sink<'_>,
    ) -> Result<Pumped, Stop> {
        let mut given = 0;
        loop {
            let out = match &mut sink {
                Sink::Client => Some(self.client.out()),
                Sink::Held(rows) if rows.len() > LONGEST => {
                    return Err(reply::rows::too_many_rows(LONGEST).into());
                }
                Sink::Held(rows) => Some(&mut **rows),
                Sink::Nowhere => None,
            };
            let gave = reading.parts.give(most - given, PART, out);
            let (rows, gave) = gave.map_err(|_malformed| reply::rows::columns_changed())?;
            given += rows;
            match gave {
                Gave::Enough => return Ok(Pumped::Suspended(given)),
                Gave::Over => return Ok(Pumped::Complete(given)),
                Gave::Full => {}
                Gave::Lacking => {
                    if self.fan.is_none() {
                        self.enlist_fan(&reading.shards).await?;
                    }
                    self.ask_parts(reading, most - given).await?;
                }
            }
            if self.fan.is_some() && sink == Sink::Client {
                self.wait_for_room().await?;
            }
        }
    }

    /// Asks the shards that lack rows for their next part.
    async fn ask_parts(&mut self, reading: &mut Reading, most: u64) -> Result<(), Stop> {
        let Some(fan) = self.fan.as_deref_mut() else {
            return Ok(());
        };
        let mut asked = vec![0; fan.len()];
        for (at, asked) in asked.iter_mut().enumerate() {
            if !reading.parts.lacks(at) {
                continue;
            }
            *asked = reading.parts.part(at, most);
            let stale = self.cursors.stale_on(fan.shard(at));
            fan.ask(at, 1, |out| {
                for name in &stale {
                    put_named(out, b'C', Name::Portal(name.as_bytes()));
                }
                reading.put(Some(*asked), out);
                put_bare(out, b'S');
            });
        }
        let (mut failed, mut notices, mut came) = (None, Vec::new(), vec![0; asked.len()]);
        self.hear_fan(|at, tag, body| {
            match tag {
                b'D' => {
                    reading.parts.add(at, body);
                    came[at] += 1;
                }
                // FETCH is complete with every part, a portal with its last.
                b'C' if command_tag(body).is_ok() && came[at] < asked[at] => {
                    reading.parts.over(at);
                }
                b'E' => failed = failed.take().or_else(|| Some((at, body.to_vec()))),
                b'N' => put(&mut notices, b'N', |out| out.extend_from_slice(body)),
                _ => {}
            }
            Ok(())
        })
        .await?;
        self.client.out().extend_from_slice(&notices);
        match failed {
            Some((at, body)) => Err(self.error_of(at, body)),
            None => Ok(()),
        }
    }
}
