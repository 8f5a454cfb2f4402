//! UPDATE of the shard key: rows whose new key belongs to another shard are deleted where they are and inserted there,
//! within the transaction.
//!
//! What must stay true: every row is locked before anything is computed of it, and computed once; a row that stays is
//! updated in place, so that whoever waits for it goes on with what it has become. Whoever changes rows of the table on
//! several shards is kept apart ([`keep_apart`]), as it could meet a moving row on none. A row is never on two shards, nor
//! on a shard that its key does not belong to.

use super::{
    Writing,
    answers::{Written, are_alike, column, split_last, without_last_column},
    in_formats, without_position,
};
use crate::{
    catalog::{key::KeyType, shard::ShardId},
    plan::{
        spread::{Columns, Given, Moving, Shares, Texts, examine, examined},
        unroutable::{KeyProblem, Undoubled, Unroutable},
    },
    proxy::{
        link::Hold,
        place::Place,
        reply::{self as wording, session as reply},
        request::Stop,
        session::Session,
    },
    wire::{
        backend::{Status, command_tag},
        frame::Body,
        frontend::{self, Named, put, put_bind, put_named, put_parse},
        notice::Words,
        types::{Format, Oid},
    },
};
use std::collections::HashMap;

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: Oid = 16384;
/// `record` in pg_type.dat: it has no type of its own to be stored in.
const RECORD: Oid = 2249;
/// What rows to be moved may hold.
const LIMIT: usize = 64 << 20;
/// The advisory locks that keep movers apart from others: their first number.
const CLASS: i32 = 0x5348_4d56;

/// The lock that one who writes the table's rows takes on each shard: alone for moving them, else with others like it.
pub(super) fn keep_apart(table: i32, moves: bool) -> String {
    let shared = if moves { "" } else { "_shared" };
    format!("SELECT pg_catalog.pg_advisory_xact_lock{shared}({CLASS}, {table})")
}

/// What one shard is asked, with one Sync.
struct Ask {
    shard: ShardId,
    bytes: Vec<u8>,
}

/// What the statement takes and gives.
#[derive(Default)]
struct Described {
    parameters: Vec<Oid>,
    columns: Option<Vec<u8>>,
}

/// A row that is changed.
struct Found {
    source: ShardId,
    /// Its `ctid`.
    place: String,
    target: ShardId,
    /// What it is made of on another shard, as Bind takes it.
    values: Vec<u8>,
}

/// What is being done for one statement.
struct Work<'a> {
    writing: &'a Writing<'a>,
    moving: &'a Moving,
    texts: Texts,
    described: Described,
    /// Types and formats of what a row is found with, its place and key first.
    carried: Vec<(Oid, Format)>,
    found: Vec<Found>,
}

impl Session {
    /// Changes the rows, and moves those that must be moved.
    pub(super) async fn move_rows(
        &mut self,
        writing: &Writing<'_>,
        moving: &Moving,
    ) -> Result<Written, Stop> {
        let time = if writing.spread.asks_for_time() {
            self.ask_time(&writing.shares).await?
        } else {
            None
        };
        let sources: Vec<ShardId> = writing
            .shares
            .shards
            .iter()
            .map(|(shard, _)| *shard)
            .collect();
        let mut columns = None;
        for shard in &sources {
            self.examine(moving, *shard, &mut columns).await?;
        }
        let (Some(first), Some(known)) = (sources.first(), columns.as_ref()) else {
            return Err(reply::malformed().into());
        };
        let given = Given {
            time: time.as_deref(),
            ..Given::default()
        };
        let declared = writing.types.len() / 4;
        let texts = moving.texts(writing.text, writing.slots, &given, (known, declared));
        let texts = texts.ok_or_else(reply::malformed)?;
        let described = self.describe_moving(writing, &texts.whole, *first).await?;
        let mut work = Work {
            writing,
            moving,
            texts,
            described,
            carried: Vec::new(),
            found: Vec::new(),
        };
        self.locate(&mut work, &sources).await?;
        let mut targets: Vec<ShardId> = work.found.iter().map(|found| found.target).collect();
        targets.sort_unstable();
        targets.dedup();
        for shard in targets.iter().filter(|shard| !sources.contains(shard)) {
            self.examine(moving, *shard, &mut columns).await?;
        }
        self.carry_out(&work).await
    }

    /// Reaches a shard and looks at its table, which is not changed from then on.
    async fn examine(
        &mut self,
        moving: &Moving,
        shard: ShardId,
        known: &mut Option<Columns>,
    ) -> Result<(), Stop> {
        let hold = Hold::Bound;
        self.reach(Place { shard, hold }).await?;
        let there = self.link.as_ref();
        if !there.is_some_and(|link| link.shard == shard && link.status == Status::Transaction) {
            return Err(reply::rows::shard_missing(self.database.shard_name(shard)).into());
        }
        let lock = format!("LOCK TABLE {} IN ROW EXCLUSIVE MODE", moving.quoted);
        self.prelude(lock.as_bytes()).await??;
        let answer = self.ask(examine(moving).as_bytes()).await??;
        let Some((obstacle, mut columns)) = answer.as_deref().and_then(examined) else {
            return Err(reply::rows::columns_changed().into());
        };
        if let Some((kind, name)) = obstacle {
            return Err(reply::rows::rows_stay(&moving.table, &kind, &name).into());
        }
        match known {
            None => *known = Some(columns),
            Some(known) => {
                let mut names = known.names.clone();
                names.sort_unstable();
                columns.names.sort_unstable();
                if columns.names != names || columns.key_type != known.key_type {
                    return Err(reply::rows::columns_changed().into());
                }
            }
        }
        Ok(())
    }

    /// What PostgreSQL says of the statement itself, its errors first.
    async fn describe_moving(
        &mut self,
        writing: &Writing<'_>,
        text: &str,
        shard: ShardId,
    ) -> Result<Described, Stop> {
        let mut bytes = Vec::new();
        let types = self.types_for(shard, writing.types);
        put_parse(&mut bytes, b"", text.as_bytes(), &types);
        put_named(&mut bytes, b'D', Named::Statement(b""));
        frontend::put_bare(&mut bytes, b'S');
        let mut described = Described::default();
        let hear = |_: usize, tag: u8, body: &[u8]| {
            match tag {
                b't' => described.parameters = oids(body),
                b'T' => described.columns = Some(body.to_vec()),
                _ => {}
            }
            Ok(())
        };
        let asked = self.in_turn(&[Ask { shard, bytes }], hear).await;
        asked.map_err(|failed| failed.worded(|body| writing.own_error(body)))?;
        if let Some(columns) = &mut described.columns {
            self.columns_seen(shard, columns).await;
            let results = writing.bind.map_or(&[][..], |bind| bind.raw_results());
            self.judge_parts(columns, results)?;
        }
        Ok(described)
    }

    /// Locks the rows, and finds out where they belong.
    async fn locate(&mut self, work: &mut Work<'_>, sources: &[ShardId]) -> Result<(), Stop> {
        let text = self.per_shard(&work.texts.locate)?;
        let parse = |shard: ShardId, bytes: &mut Vec<u8>| {
            put_parse(
                bytes,
                b"",
                text.on(shard).as_bytes(),
                &raw(&work.described.parameters),
            );
        };
        let Some(first) = sources.first() else {
            return Ok(());
        };
        let mut bytes = Vec::new();
        parse(*first, &mut bytes);
        put_named(&mut bytes, b'D', Named::Statement(b""));
        frontend::put_bare(&mut bytes, b'S');
        let mut carried = Vec::new();
        let hear = |_: usize, tag: u8, body: &[u8]| {
            if tag == b'T' {
                carried = types(body);
            }
            Ok(())
        };
        let shard = *first;
        self.in_turn(&[Ask { shard, bytes }], hear)
            .await
            .map_err(Failed::plain)?;
        if carried.len() < 2 || carried.iter().any(|(oid, _)| *oid == RECORD) {
            return Err(self.not_moved(work.moving));
        }
        let mut asks = Vec::new();
        for shard in sources {
            let mut bytes = Vec::new();
            parse(*shard, &mut bytes);
            let formats: Vec<Format> = carried.iter().map(|(_, format)| *format).collect();
            put_bind(
                &mut bytes,
                b"",
                b"",
                &work.writing.tail_with(&[], &[], &raw_formats(&formats)),
            );
            put_execute(&mut bytes);
            frontend::put_bare(&mut bytes, b'S');
            asks.push(Ask {
                shard: *shard,
                bytes,
            });
        }
        work.carried = carried;
        let mut rows: Vec<(ShardId, Vec<u8>)> = Vec::new();
        let mut held = 0;
        let hear = |at: usize, tag: u8, body: &[u8]| {
            if tag == b'D' {
                held += body.len();
                if held > LIMIT {
                    return Err(reply::rows::too_many_rows(LIMIT).into());
                }
                rows.extend(sources.get(at).map(|source| (*source, body.to_vec())));
            }
            Ok(())
        };
        self.in_turn(&asks, hear).await.map_err(Failed::plain)?;
        self.place_rows(work, rows)
    }

    /// Where each row belongs. One that several rows of FROM change takes the first, as long as all send it to one shard.
    fn place_rows(&self, work: &mut Work<'_>, rows: Vec<(ShardId, Vec<u8>)>) -> Result<(), Stop> {
        let group = self.snapshot.group(work.moving.group);
        let key = Key::of(work, group.key_type);
        let mut known: HashMap<(ShardId, String), ShardId> = HashMap::new();
        for (source, body) in rows {
            let mut values = Body::new(&body);
            let malformed = |_| Stop::from(reply::malformed());
            values.u16().map_err(malformed)?;
            let place = values.value().map_err(malformed)?.unwrap_or_default();
            let place = String::from_utf8_lossy(place).into_owned();
            let new = key.read(values.value().map_err(malformed)?)?;
            let target = group.shard_of(&new).ok_or_else(|| {
                let group = group.name.clone();
                wording::unroutable(&Unroutable::NoShardForKey { group })
            })?;
            // Its own copy may be there.
            if target != source && work.moving.keyless && group.doubled_on(target).is_some() {
                let (group, what) = (group.name.clone(), Undoubled::Moved);
                return Err(wording::unroutable(&Unroutable::Doubled { group, what }).into());
            }
            match known.insert((source, place.clone()), target) {
                None => work.found.push(Found {
                    source,
                    place,
                    target,
                    values: values.rest().to_vec(),
                }),
                Some(other) if other == target => {}
                Some(_) => return Err(self.not_moved(work.moving)),
            }
        }
        Ok(())
    }

    fn not_moved(&self, moving: &Moving) -> Stop {
        let (table, key) = (moving.table.clone(), moving.key.clone());
        wording::unroutable(&Unroutable::KeyChanged { table, key }).into()
    }

    /// Takes moving rows away, updates those that stay, and puts the moving ones where they belong.
    async fn carry_out(&mut self, work: &Work<'_>) -> Result<Written, Stop> {
        let mut acts = work.taken();
        if work.texts.reads {
            // Those that stay are computed anew, of what was there before.
            acts.splice(0..0, work.updated());
        } else {
            acts.extend(work.updated());
        }
        acts.extend(work.inserted());
        let snapshot = std::sync::Arc::clone(&self.snapshot);
        let group = snapshot.group(work.moving.group);
        let key = Key::of(work, group.key_type);
        let columns = work.columns();
        let mut rows = Vec::new();
        let mut held = 0;
        let mut done = vec![0_u64; acts.len()];
        let stays_there = |at: usize, value: &[u8]| -> Result<(), Stop> {
            let new = key.read(Some(value))?;
            let there = group.shard_of(&new) == acts.get(at).map(|act: &Act| act.ask.shard);
            there
                .then_some(())
                .ok_or_else(|| reply::rows::row_changed().into())
        };
        let hear = |at: usize, tag: u8, body: &[u8]| {
            let Some(act) = acts.get(at) else {
                return Ok(());
            };
            match (tag, act.what) {
                (b'C', _) => done[at] += count(command_tag(body).unwrap_or_default()),
                (b'T', What::Update) => {
                    let own = without_last_column(body).map_err(|_malformed| reply::malformed())?;
                    if !are_alike(columns.as_deref(), own.as_deref()) {
                        return Err(reply::rows::columns_changed().into());
                    }
                }
                (b'T', What::Insert) if !are_alike(columns.as_deref(), Some(body)) => {
                    return Err(reply::rows::columns_changed().into());
                }
                (b'D', What::Update) => {
                    let (row, value) = split_last(body).ok_or_else(reply::malformed)?;
                    stays_there(at, value)?;
                    rows.push(row);
                }
                (b'D', What::Insert) => rows.push(body.to_vec()),
                _ => {}
            }
            held += body.len();
            if held > LIMIT {
                return Err(reply::rows::too_many_rows(LIMIT).into());
            }
            Ok(())
        };
        let asks: Vec<&Ask> = acts.iter().map(|act| &act.ask).collect();
        self.in_turn(&asks, hear).await.map_err(Failed::plain)?;
        if acts.iter().zip(&done).any(|(act, done)| act.rows != *done) {
            return Err(reply::rows::row_changed().into());
        }
        let tag = format!("UPDATE {}", work.found.len()).into_bytes();
        Ok(Written::of_rows(columns, rows, tag))
    }

    /// Asks the shards one after the other, and hears each answer to its end; ends with the first error.
    async fn in_turn<A: AsRef<Ask>>(
        &mut self,
        asks: &[A],
        mut hear: impl FnMut(usize, u8, &[u8]) -> Result<(), Stop>,
    ) -> Result<(), Failed> {
        let mut shards: Vec<ShardId> = asks.iter().map(|ask| ask.as_ref().shard).collect();
        shards.sort_unstable();
        shards.dedup();
        if shards.is_empty() {
            return Ok(());
        }
        let shares = Shares {
            shards: shards
                .into_iter()
                .map(|shard| (shard, Vec::new()))
                .collect(),
        };
        self.fan_out_over(&shares);
        let (mut problem, mut notices) = (None, Vec::new());
        let mut worked = Ok(());
        for (at, ask) in asks.iter().enumerate() {
            let ask = ask.as_ref();
            if let Some(fan) = self.fan.as_deref_mut()
                && let Some(member) = (0..fan.len()).find(|member| fan.shard(*member) == ask.shard)
            {
                fan.ask(member, 1, |out| out.extend_from_slice(&ask.bytes));
            }
            let hear = |_: usize, tag: u8, body: &[u8]| match tag {
                b'E' if problem.is_none() => {
                    problem = Some(body.to_vec());
                    Ok(())
                }
                b'N' => {
                    put(&mut notices, b'N', |out| out.extend_from_slice(body));
                    Ok(())
                }
                _ => hear(at, tag, body),
            };
            worked = self.hear_fan(hear).await;
            if worked.is_err() || problem.is_some() {
                break;
            }
        }
        if let Err(Stop::End(end)) = worked {
            return Err(Failed::Stop(Stop::End(end)));
        }
        self.client.out().extend_from_slice(&notices);
        self.gather_in(&shares).await.map_err(Failed::Stop)?;
        if let Some(body) = problem {
            return Err(Failed::Server(body));
        }
        worked.map_err(Failed::Stop)?;
        if self.status() != Status::Transaction {
            // A cancel has hit what came behind.
            return Err(Failed::Stop(reply::cancelled().into()));
        }
        Ok(())
    }
}

impl AsRef<Self> for Ask {
    fn as_ref(&self) -> &Self {
        self
    }
}

/// Why shards have not done what they were asked.
enum Failed {
    /// One of them said this.
    Server(Vec<u8>),
    Stop(Stop),
}

impl Failed {
    /// The server's error is about a text that the client has not written.
    fn plain(self) -> Stop {
        self.worded(without_position)
    }

    fn worded(self, word: impl FnOnce(&[u8]) -> Vec<u8>) -> Stop {
        match self {
            Self::Server(body) => Words::Servers(word(&body)).into(),
            Self::Stop(stop) => stop,
        }
    }
}

/// How keys are read that servers have computed.
struct Key {
    key_type: KeyType,
    oid: Oid,
    table: String,
    name: String,
}

impl Key {
    fn of(work: &Work<'_>, key_type: KeyType) -> Self {
        Self {
            key_type,
            oid: work.carried.get(1).map_or(0, |(oid, _)| *oid),
            table: work.moving.table.clone(),
            name: work.moving.key.clone(),
        }
    }

    fn read(&self, value: Option<&[u8]>) -> Result<crate::catalog::key::Key, Stop> {
        let (table, key) = (self.table.clone(), self.name.clone());
        let Some(value) = value else {
            return Err(wording::unroutable(&Unroutable::KeyNull { table, key }).into());
        };
        let read = self
            .key_type
            .from_parameter(self.oid, Format::Binary, value);
        read.map_err(|_malformed| {
            let (key, problem) = (format!("{table}.{key}"), KeyProblem::Malformed);
            wording::unroutable(&Unroutable::KeyValue { key, problem }).into()
        })
    }
}

/// What is done to some rows on one shard.
struct Act {
    what: What,
    ask: Ask,
    /// How many rows it must change.
    rows: u64,
}

#[derive(Clone, Copy)]
enum What {
    Delete,
    Update,
    Insert,
}

impl Work<'_> {
    /// By shard, what `of` says of each row that is wanted.
    fn by_shard<'f>(
        &'f self,
        of: impl Fn(&'f Found) -> Option<ShardId>,
    ) -> Vec<(ShardId, Vec<&'f Found>)> {
        let mut shards: Vec<(ShardId, Vec<&Found>)> = Vec::new();
        for found in &self.found {
            let Some(shard) = of(found) else { continue };
            match shards.iter_mut().find(|(known, _)| *known == shard) {
                Some((_, rows)) => rows.push(found),
                None => shards.push((shard, vec![found])),
            }
        }
        shards.sort_by_key(|(shard, _)| *shard);
        shards
    }

    fn taken(&self) -> Vec<Act> {
        let moving = self.by_shard(|found| (found.source != found.target).then_some(found.source));
        let act = |(shard, rows): (ShardId, Vec<&Found>)| {
            let mut bytes = Vec::new();
            put_parse(
                &mut bytes,
                b"",
                self.texts.delete(&places(&rows)).as_bytes(),
                b"",
            );
            put_bind(&mut bytes, b"", b"", &[0; 6]);
            put_execute(&mut bytes);
            Act::new(What::Delete, shard, bytes, rows.len())
        };
        moving.into_iter().map(act).collect()
    }

    fn updated(&self) -> Vec<Act> {
        let staying = self.by_shard(|found| (found.source == found.target).then_some(found.source));
        let formats = [self.formats(), vec![Format::Binary]].concat();
        let act = |(shard, rows): (ShardId, Vec<&Found>)| {
            let mut bytes = Vec::new();
            let text = self.texts.update(&places(&rows));
            put_parse(
                &mut bytes,
                b"",
                text.as_bytes(),
                &raw(&self.described.parameters),
            );
            put_bind(
                &mut bytes,
                b"",
                b"",
                &self.writing.tail_with(&[], &[], &raw_formats(&formats)),
            );
            put_named(&mut bytes, b'D', Named::Portal(b""));
            put_execute(&mut bytes);
            Act::new(What::Update, shard, bytes, rows.len())
        };
        staying.into_iter().map(act).collect()
    }

    fn inserted(&self) -> Vec<Act> {
        let moving = self.by_shard(|found| (found.source != found.target).then_some(found.target));
        let carried = self.carried.get(2..).unwrap_or_default();
        let mut oids = self.described.parameters.clone();
        // A type of the database's own has another number there: it is that of the column.
        oids.extend(
            carried
                .iter()
                .map(|(oid, _)| if *oid < FIRST_OWN_OID { *oid } else { 0 }),
        );
        let formats: Vec<Format> = carried.iter().map(|(_, format)| *format).collect();
        let act = |(shard, rows): (ShardId, Vec<&Found>)| {
            let mut bytes = Vec::new();
            put_parse(&mut bytes, b"", self.texts.insert.as_bytes(), &raw(&oids));
            for (at, row) in rows.iter().enumerate() {
                let tail =
                    self.writing
                        .tail_with(&formats, &row.values, &raw_formats(&self.formats()));
                put_bind(&mut bytes, b"", b"", &tail);
                if at == 0 {
                    put_named(&mut bytes, b'D', Named::Portal(b""));
                }
                put_execute(&mut bytes);
            }
            Act::new(What::Insert, shard, bytes, rows.len())
        };
        moving.into_iter().map(act).collect()
    }

    /// The formats that the client wants the result's columns in, each.
    fn formats(&self) -> Vec<Format> {
        let columns = self.columns();
        let types = columns.as_deref().map(types_as_told).unwrap_or_default();
        types.into_iter().map(|(_, format)| format).collect()
    }

    /// The description of the result.
    fn columns(&self) -> Option<Vec<u8>> {
        let raw = self.writing.bind.map_or(&[][..], |bind| bind.raw_results());
        let columns = self.described.columns.clone();
        columns.map(|columns| in_formats(columns, raw))
    }
}

impl Act {
    fn new(what: What, shard: ShardId, mut bytes: Vec<u8>, rows: usize) -> Self {
        frontend::put_bare(&mut bytes, b'S');
        Self {
            what,
            ask: Ask { shard, bytes },
            rows: rows as u64,
        }
    }
}

impl Writing<'_> {
    /// The statement's own parameters and these behind them, and how the result is asked for.
    fn tail_with(&self, formats: &[Format], values: &[u8], results: &[u8]) -> Vec<u8> {
        let own: Vec<(Format, Option<&[u8]>)> = self
            .bind
            .iter()
            .flat_map(|bind| bind.parameters())
            .collect();
        let all: Vec<Format> = own
            .iter()
            .map(|(format, _)| *format)
            .chain(formats.iter().copied())
            .collect();
        let mut tail = raw_formats(&all);
        tail.extend_from_slice(&u16::try_from(all.len()).unwrap_or(u16::MAX).to_be_bytes());
        for (_, value) in own {
            let length = value.map_or(-1, |value| i32::try_from(value.len()).unwrap_or(i32::MAX));
            tail.extend_from_slice(&length.to_be_bytes());
            tail.extend_from_slice(value.unwrap_or_default());
        }
        tail.extend_from_slice(values);
        tail.extend_from_slice(results);
        tail
    }
}

fn places<'f>(rows: &[&'f Found]) -> Vec<&'f str> {
    rows.iter().map(|row| row.place.as_str()).collect()
}

fn put_execute(out: &mut Vec<u8>) {
    put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
}

/// How many of them, then each.
fn raw_formats(formats: &[Format]) -> Vec<u8> {
    let mut raw = u16::try_from(formats.len())
        .unwrap_or(u16::MAX)
        .to_be_bytes()
        .to_vec();
    for format in formats {
        let format: u16 = if *format == Format::Binary { 1 } else { 0 };
        raw.extend_from_slice(&format.to_be_bytes());
    }
    raw
}

fn raw(oids: &[Oid]) -> Vec<u8> {
    // Another shard has another number for a type of the database's own.
    let known = oids
        .iter()
        .map(|oid| if *oid < FIRST_OWN_OID { *oid } else { 0 });
    known.flat_map(u32::to_be_bytes).collect()
}

/// The types of ParameterDescription.
fn oids(body: &[u8]) -> Vec<Oid> {
    let mut body = Body::new(body);
    let count = body.u16().unwrap_or(0);
    (0..count).map_while(|_| body.u32().ok()).collect()
}

/// The types of a RowDescription, and the formats that lose nothing.
fn types(body: &[u8]) -> Vec<(Oid, Format)> {
    let exact = |(at, (oid, _)): (usize, (Oid, Format))| {
        // A place is text; a type of the database's own has numbers of its server's in its binary form.
        let text = at == 0 || oid >= FIRST_OWN_OID;
        (oid, if text { Format::Text } else { Format::Binary })
    };
    types_as_told(body)
        .into_iter()
        .enumerate()
        .map(exact)
        .collect()
}

fn types_as_told(body: &[u8]) -> Vec<(Oid, Format)> {
    let mut body = Body::new(body);
    let count = body.u16().unwrap_or(0);
    let columns = (0..count).map_while(|_| column(&mut body));
    columns
        .map(|(_, oid, _, format)| {
            (
                oid,
                if format == 1 {
                    Format::Binary
                } else {
                    Format::Text
                },
            )
        })
        .collect()
}

/// `INSERT 0 5` as 5.
fn count(tag: &[u8]) -> u64 {
    let number = tag.rsplit(|byte| *byte == b' ').next();
    number
        .and_then(|number| std::str::from_utf8(number).ok()?.parse().ok())
        .unwrap_or(0)
}
