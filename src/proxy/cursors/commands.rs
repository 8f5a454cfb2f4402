//! SQL's DECLARE CURSOR, FETCH, MOVE and CLOSE, where a cursor's rows come from several shards; and on which shard the
//! cursors and named portals are that belong to one.
//!
//! What must stay true: a name is one cursor's or portal's, as in PostgreSQL; FETCH goes to the shard that has the cursor,
//! wherever the transaction has gone meanwhile.

use super::{Format, Reading, Sink, State};
use crate::{
    catalog::shard::ShardId,
    plan::{Plan, StatementPlan, Values},
    protocol::pipeline::{Origin, Request},
    proxy::{
        gather::{Bound, Scatter},
        link::Hold,
        place::Place,
        prepared::{Prepared, Told},
        reply::session as reply,
        request::Stop,
        scatter::{Pumped, Scattered, shape},
        session::{End, Note, Portal, Session},
    },
    sql::{
        cursor::{self, Command, Count, Declare, Rows, Scroll},
        statement::{Effect, quoted},
    },
    wire::{
        backend::{Status, put_complete},
        frontend::{Bind, put, put_bare, put_bind, put_parse},
        notice::Notice,
    },
};
use std::sync::Arc;

/// A portal of a command about a cursor over several shards.
#[derive(Debug)]
pub(in crate::proxy) struct CommandPortal {
    prepared: Arc<Prepared>,
    /// The parameters and the formats of the result, as they stand in Bind.
    tail: Vec<u8>,
    state: Given,
}

impl CommandPortal {
    /// Whether it has been done; rows that FETCH has read may be left.
    pub(in crate::proxy) fn has_run(&self) -> bool {
        !matches!(self.state, Given::Nothing)
    }
}

#[derive(Debug)]
enum Given {
    Nothing,
    /// FETCH has run: these rows, from there on, are to be given.
    Rows(Vec<u8>, usize),
    /// It has run, and gives no rows.
    All,
}

/// A query that a cursor is declared for.
enum Query {
    Streams(Box<Scattered>),
    Gathered(Scatter),
}

impl Session {
    /// Whether statements may be about cursors over several shards.
    pub(in crate::proxy) fn concerns_cursors(&self, statements: &[StatementPlan]) -> bool {
        let about =
            |one: &StatementPlan| matches!(one.effect, Effect::Cursor | Effect::Declare { .. });
        !self.cursors.is_empty()
            && statements.iter().any(about)
            && self.status() == Status::Transaction
    }

    /// What a statement is about a cursor over several shards; `None`: nothing.
    fn command_over_shards(&self, statement: &StatementPlan, text: &[u8]) -> Option<Command> {
        let found = command_of(statement, text)?;
        let ours = |name: &str| self.cursors.reading(name.as_bytes()).is_some();
        let is = match &found {
            Command::Fetch { name, .. } | Command::Close(name) => ours(name),
            Command::Declare(declare) => ours(&declare.name),
            Command::CloseAll => self.several.is_several(),
        };
        is.then_some(found)
    }

    /// The shard that has the cursor which a statement is about.
    pub(in crate::proxy) fn shard_of_cursor(
        &self,
        statement: &StatementPlan,
        text: &[u8],
    ) -> Option<ShardId> {
        if self.cursors.is_empty() || !self.several.is_several() {
            return None;
        }
        match command_of(statement, text)? {
            Command::Fetch { name, .. } | Command::Close(name) => {
                self.cursors.there(name.as_bytes())
            }
            Command::Declare(_) | Command::CloseAll => None,
        }
    }

    /// The link is sent these statements: cursors that they declare are there.
    pub(in crate::proxy) fn cursors_go_there(&mut self, statements: &[StatementPlan], text: &[u8]) {
        let declares = |one: &&StatementPlan| matches!(one.effect, Effect::Declare { .. });
        for statement in statements.iter().filter(declares) {
            if let Some(Command::Declare(declare)) = command_of(statement, text) {
                self.portal_goes_there(declare.name.as_bytes());
            }
        }
    }

    /// The link is asked to make a portal of this name.
    pub(in crate::proxy) fn portal_goes_there(&mut self, name: &[u8]) {
        if let Some(shard) = self.link_shard().filter(|_| self.several.goes_on()) {
            let level = self.several.savepoints();
            self.cursors.goes_there(name, shard, level);
        }
    }

    /// Makes the link the shard that has this portal.
    pub(in crate::proxy) async fn go_to_portal(&mut self, portal: &[u8]) -> Result<(), Stop> {
        if let Some(shard) = self.cursors.there(portal)
            && self.several.is_several()
            && self.link_shard() != Some(shard)
            && self.status() == Status::Transaction
        {
            let hold = Hold::Bound;
            return Box::pin(self.reach(Place { shard, hold })).await;
        }
        Ok(())
    }

    // ---- the simple protocol ----

    /// Answers a Query about a cursor over several shards; false: it is none. `apart`: its statements as they are when
    /// they run one by one.
    pub(in crate::proxy) async fn query_cursor(
        &mut self,
        statements: &[StatementPlan],
        apart: &[StatementPlan],
        text: &[u8],
    ) -> Result<bool, Stop> {
        let [statement] = statements else {
            let mut all = statements.iter();
            let ours = all.find_map(|one| self.command_over_shards(one, text));
            if ours.is_some() {
                self.query_apart(reply::cursors::cursor_among_others(), apart, text)?;
            }
            return Ok(ours.is_some());
        };
        let declares = match command_of(statement, text) {
            Some(Command::Declare(declare)) => Some(declare.name),
            Some(_) | None => None,
        };
        if let Some(name) = declares {
            self.check_free(&name).await?;
            return Ok(false);
        }
        match self.command_over_shards(statement, text) {
            None => return Ok(false),
            Some(Command::Fetch { name, count, rows }) => {
                self.query_fetch(name.as_bytes(), count, rows).await?;
            }
            Some(other) => {
                let tag = self.close_cursors(&other).await?;
                put_complete(self.end_of_answer(), tag);
            }
        }
        self.tally.queries += 1;
        self.ready_here();
        Ok(true)
    }

    async fn query_fetch(&mut self, name: &[u8], count: Count, rows: Rows) -> Result<(), Stop> {
        let sink = sink_of(rows);
        let count = self.fetch(name, count, None, sink).await?;
        put_complete(self.end_of_answer(), tag_of(rows, count).as_bytes());
        Ok(())
    }

    /// Answers a Query that declares a cursor over several shards, or refuses it.
    pub(in crate::proxy) async fn query_declare(
        &mut self,
        refused: Notice,
        plan: &Arc<Plan>,
        text: &[u8],
    ) -> Result<(), Stop> {
        let bound = Bound {
            types: &[],
            tail: None,
        };
        let declared = plan.statements.first();
        let declared = declared.and_then(|statement| command_of(statement, text));
        let Some(Command::Declare(declare)) = declared else {
            return Err(refused.into());
        };
        let told = Told::default();
        match self.declare(&declare, text, &[], &bound, &told).await? {
            Declared::Here => {
                put_complete(self.end_of_answer(), b"DECLARE CURSOR");
                self.tally.queries += 1;
                self.ready_here();
            }
            Declared::There { text, .. } => {
                self.portal_goes_there(declare.name.as_bytes());
                self.send_query(text.as_bytes(), Arc::clone(plan));
            }
        }
        Ok(())
    }

    // ---- the extended protocol ----

    /// Binds a command about a cursor over several shards; false: it is none.
    pub(in crate::proxy) async fn bind_cursor(
        &mut self,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
    ) -> Result<bool, Stop> {
        let found = prepared
            .statement()
            .and_then(|one| self.command_over_shards(one, &prepared.text));
        if found.is_none() {
            return Ok(false);
        }
        self.bind_command(prepared, bind).await?;
        Ok(true)
    }

    /// Binds a DECLARE whose query no shard alone can answer; what becomes of it is seen when it is executed.
    pub(in crate::proxy) async fn bind_declare(
        &mut self,
        refused: Notice,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
    ) -> Result<(), Stop> {
        if prepared
            .statement()
            .and_then(|one| command_of(one, &prepared.text))
            .is_none()
        {
            return Err(refused.into());
        }
        self.bind_command(prepared, bind).await
    }

    async fn bind_command(
        &mut self,
        prepared: &Arc<Prepared>,
        bind: &Bind<'_>,
    ) -> Result<(), Stop> {
        match self.pending.as_slice() {
            // No server needs to know it.
            [only] if Arc::ptr_eq(only, prepared) => {
                self.pending.clear();
                self.made(vec![b'1', 0, 0, 0, 4], Note::Parsed(Arc::clone(prepared)));
            }
            _ => self.answer_pending().await?,
        }
        self.settle().await?;
        if self.skip {
            return Ok(());
        }
        self.made(vec![b'2', 0, 0, 0, 4], Note::Nothing);
        let portal = CommandPortal {
            prepared: Arc::clone(prepared),
            tail: bind.tail.to_vec(),
            state: Given::Nothing,
        };
        self.bound = None;
        self.portals
            .insert(bind.portal.into(), Portal::Cursor(Box::new(portal)));
        Ok(())
    }

    /// What a command's portal gives: rows or nothing.
    pub(in crate::proxy) fn describe_command(&self, portal: &CommandPortal, out: &mut Vec<u8>) {
        match self.rows_of(&portal.prepared) {
            Some(reading) => {
                let formats = formats_of(&portal.tail, reading.formats.len());
                let columns = shape::in_formats(&reading.columns, &formats);
                put(out, b'T', |out| out.extend_from_slice(&columns));
            }
            None => put_bare(out, b'n'),
        }
    }

    /// Describes a statement about a cursor over several shards; false: it is none.
    pub(in crate::proxy) async fn describe_fetch(
        &mut self,
        prepared: &Arc<Prepared>,
    ) -> Result<bool, Stop> {
        let found = prepared
            .statement()
            .and_then(|one| self.command_over_shards(one, &prepared.text));
        if matches!(found, None | Some(Command::Declare(_))) {
            return Ok(false);
        }
        self.answer_pending().await?;
        let mut out = vec![b't', 0, 0, 0, 6, 0, 0];
        match self.rows_of(prepared) {
            Some(reading) => {
                let formats = vec![Format::Text; reading.formats.len()];
                let columns = shape::in_formats(&reading.columns, &formats);
                put(&mut out, b'T', |out| out.extend_from_slice(&columns));
            }
            None => put_bare(&mut out, b'n'),
        }
        self.made(out, Note::Nothing);
        Ok(true)
    }

    /// The cursor whose rows a statement gives.
    fn rows_of(&self, prepared: &Prepared) -> Option<&Reading> {
        match command_of(prepared.statement()?, &prepared.text)? {
            Command::Fetch {
                name,
                rows: Rows::Given,
                ..
            } => self.cursors.reading(name.as_bytes()),
            Command::Fetch { .. } | Command::Declare(_) | Command::Close(_) | Command::CloseAll => {
                None
            }
        }
    }

    /// Execute of a command's portal.
    pub(in crate::proxy) async fn execute_command(
        &mut self,
        portal: &[u8],
        most: u32,
    ) -> Result<(), Stop> {
        self.settle().await?;
        if self.skip {
            return Ok(());
        }
        if self.status() == Status::Failed {
            return Err(reply::transaction_failed().into());
        }
        let Some(Portal::Cursor(mut command)) = self.portals.remove(portal) else {
            return Err(reply::no_such_portal(portal).into());
        };
        let done = self.execute_part(portal, &mut command, most).await;
        self.portals.insert(portal.into(), Portal::Cursor(command));
        done
    }

    async fn execute_part(
        &mut self,
        portal: &[u8],
        command: &mut CommandPortal,
        most: u32,
    ) -> Result<(), Stop> {
        match &mut command.state {
            Given::Nothing => {}
            Given::Rows(rows, at) => {
                give(rows, at, most, self.client.out());
                return Ok(());
            }
            Given::All => return Err(reply::portal_is_done(portal).into()),
        }
        let prepared = Arc::clone(&command.prepared);
        let Some(found) = prepared
            .statement()
            .and_then(|one| command_of(one, &prepared.text))
        else {
            return Err(reply::malformed().into());
        };
        command.state = Given::All;
        match found {
            Command::Declare(declare) => {
                return self
                    .execute_declare(&declare, &prepared, &command.tail)
                    .await;
            }
            Command::Fetch { name, count, rows } => {
                let width = self.cursors.reading(name.as_bytes());
                let width = width.map_or(0, |reading| reading.formats.len());
                let formats = formats_of(&command.tail, width);
                let asked = match count {
                    Count::Next(count) => count,
                    Count::All | Count::Back => u64::MAX,
                };
                if rows == Rows::Given && most > 0 && u64::from(most) <= asked {
                    let mut held = Vec::new();
                    let sink = Sink::Held(&mut held);
                    self.fetch(name.as_bytes(), count, Some(&formats), sink)
                        .await?;
                    let mut at = 0;
                    give(&held, &mut at, most, self.client.out());
                    command.state = Given::Rows(held, at);
                } else {
                    let sink = sink_of(rows);
                    let count = self
                        .fetch(name.as_bytes(), count, Some(&formats), sink)
                        .await?;
                    if rows == Rows::Given {
                        command.state = Given::Rows(Vec::new(), 0);
                    }
                    put_complete(self.end_of_answer(), tag_of(rows, count).as_bytes());
                }
            }
            other @ (Command::Close(_) | Command::CloseAll) => {
                let tag = self.close_cursors(&other).await?;
                put_complete(self.end_of_answer(), tag);
            }
        }
        self.tally.queries += 1;
        Ok(())
    }

    async fn execute_declare(
        &mut self,
        declare: &Declare,
        prepared: &Arc<Prepared>,
        tail: &[u8],
    ) -> Result<(), Stop> {
        let head = [&[0, 0], tail].concat();
        let bind = Bind::decode(&head).map_err(|_malformed| reply::malformed())?;
        // What the cursor gives is FETCH's to say.
        let values = [&[0, 0][..], &bind.tail_for_text()].concat();
        let bind = Bind::decode(&values).map_err(|_malformed| reply::malformed())?;
        let bound = Bound {
            types: prepared.told.raw_types().unwrap_or(&prepared.raw_types),
            tail: Some(&bind),
        };
        let told = Told::default();
        let text = &prepared.text;
        let declared = self.declare(declare, text, &prepared.types, &bound, &told);
        match declared.await? {
            Declared::Here => {
                put_complete(self.end_of_answer(), b"DECLARE CURSOR");
                self.tally.queries += 1;
            }
            Declared::There { text, types } => {
                self.portal_goes_there(declare.name.as_bytes());
                let types = self.link_shard().map(|shard| self.types_for(shard, &types));
                let (Some(link), Some(types)) = (&mut self.link, types) else {
                    return Err(End::Client.into());
                };
                let out = link.lease.stream.out();
                put_parse(out, b"", text.as_bytes(), &types);
                put_bind(out, b"", b"", bind.tail);
                put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
                link.lease.unnamed = None;
                for request in [Request::Parse, Request::Bind] {
                    self.pipeline
                        .asked(request, Origin::Injected, Note::Nothing);
                }
                self.pipeline
                    .asked(Request::Execute, Origin::Client, Note::Nothing);
            }
        }
        Ok(())
    }

    // ---- what they do ----

    /// No cursor of this name is open on another shard than the one that will be asked for it.
    async fn check_free(&mut self, name: &str) -> Result<(), Stop> {
        if self.cursors.reading(name.as_bytes()).is_some() {
            return Err(reply::cursors::cursor_exists(name.as_bytes()).into());
        }
        let Some(shard) = self.cursors.there(name.as_bytes()) else {
            return Ok(());
        };
        if !self.several.is_several() {
            // The only shard says it itself.
            return Ok(());
        }
        let hold = Hold::Bound;
        self.reach(Place { shard, hold }).await?;
        let sql = format!(
            "SELECT 1 FROM pg_catalog.pg_cursors WHERE name OPERATOR(pg_catalog.=) {}",
            quoted(name)
        );
        match self.ask(sql.as_bytes()).await?? {
            Some(_) => Err(reply::cursors::cursor_exists(name.as_bytes()).into()),
            None => Ok(()),
        }
    }

    async fn declare(
        &mut self,
        declare: &Declare,
        text: &[u8],
        types: &[u32],
        bound: &Bound<'_>,
        told: &Told,
    ) -> Result<Declared, Stop> {
        if self.status() == Status::Idle || (self.for_batch && self.script.is_none()) {
            return Err(reply::needs_transaction("DECLARE CURSOR").into());
        }
        if declare.hold {
            return Err(reply::cursors::cursor_with_hold().into());
        }
        self.check_free(&declare.name).await?;
        let query = &text[declare.query.clone()];
        let planned = self.database.plans.plan(
            query,
            types,
            &self.context,
            &self.snapshot,
            self.scratch.get_or_insert_default(),
        );
        let values = Values {
            text: query,
            slots: &planned.slots,
            types,
            bind: bound.tail,
        };
        let found = match self.streams(&planned.plan, &values) {
            Some(scattered) => Some(Query::Streams(scattered)),
            None => self.scatters(&planned.plan, &values).map(Query::Gathered),
        };
        match found {
            Some(Query::Streams(scattered)) => {
                if declare.scroll == Scroll::Yes {
                    return Err(reply::cursors::cursor_goes_back().into());
                }
                if let Some(mut reading) = self.open_reading(&scattered, bound, told).await? {
                    reading.scroll = declare.scroll;
                    if declare.binary {
                        reading.simple = Format::Binary;
                    }
                    self.cursors.open(declare.name.as_bytes(), reading);
                    return Ok(Declared::Here);
                }
                match self.scatters(&planned.plan, &values) {
                    Some(scatter) => self.gather_for(declare, &scatter, text, bound).await,
                    None => Err(self.why_not(&planned.plan, &values)),
                }
            }
            Some(Query::Gathered(scatter)) => self.gather_for(declare, &scatter, text, bound).await,
            None => Err(self.why_not(&planned.plan, &values)),
        }
    }

    /// Why a query is not one that a cursor over several shards reads.
    fn why_not(&self, plan: &Plan, values: &Values<'_>) -> Stop {
        let [query] = plan.statements.as_slice() else {
            return reply::malformed().into();
        };
        match self.place(query, values) {
            Err(why) => why.into(),
            // It was, when DECLARE was bound.
            Ok(_) => reply::rows::columns_changed().into(),
        }
    }

    /// A cursor over a gathered read is one of the shard that computes it.
    async fn gather_for(
        &mut self,
        declare: &Declare,
        scatter: &Scatter,
        text: &[u8],
        bound: &Bound<'_>,
    ) -> Result<Declared, Stop> {
        if !self.is_within() {
            let (shard, hold) = (self.any, Hold::Bound);
            self.reach(Place { shard, hold }).await?;
        }
        let (head, query) = (&text[..declare.query.start], &text[declare.query.clone()]);
        let answer = self.gather(scatter, query, bound).await?;
        Ok(Declared::There {
            text: format!("{}{}", String::from_utf8_lossy(head), answer.text),
            types: answer.types,
        })
    }

    /// Moves a cursor over several shards on; how many rows that were. `asked`: formats of the rows, else they are
    /// described and given as the simple protocol does it.
    async fn fetch(
        &mut self,
        name: &[u8],
        count: Count,
        asked: Option<&[Format]>,
        sink: Sink<'_>,
    ) -> Result<u64, Stop> {
        let Some(mut reading) = self.cursors.take(name) else {
            return Err(reply::cursors::no_such_cursor(name).into());
        };
        let simple = vec![reading.simple; reading.formats.len()];
        let own = reading.formats.clone();
        let formats = match sink {
            // Their format does not matter.
            Sink::Nowhere => &own,
            Sink::Client | Sink::Held(_) => asked.unwrap_or(&simple),
        };
        let most = match count {
            Count::Next(count) => Ok(count),
            Count::All => Ok(u64::MAX),
            Count::Back if reading.scroll == Scroll::No => Err(reply::cursors::only_forward()),
            Count::Back => Err(reply::cursors::cursor_goes_back()),
        };
        let read = match most {
            _ if reading.state == State::Failed => Err(reply::portal_is_done(name).into()),
            Err(notice) => {
                reading.state = State::Failed;
                Err(notice.into())
            }
            Ok(_) if !reading.turn_to(formats, self.written_by()) => {
                Err(reply::cursors::cursor_in_other_formats().into())
            }
            Ok(most) => {
                if asked.is_none() && sink == Sink::Client {
                    let columns = shape::in_formats(&reading.columns, formats);
                    put(self.client.out(), b'T', |out| {
                        out.extend_from_slice(&columns);
                    });
                }
                self.read(&mut reading, most, sink).await
            }
        };
        self.cursors.open(name, reading);
        let (Pumped::Complete(rows) | Pumped::Suspended(rows)) = read?;
        Ok(rows)
    }

    /// CLOSE of one, or of all; its tag.
    async fn close_cursors(&mut self, command: &Command) -> Result<&'static [u8], Stop> {
        if let Command::Close(name) = command {
            self.cursors.close(name.as_bytes());
            return Ok(b"CLOSE CURSOR");
        }
        for shard in self.several.shards(self.link_shard()) {
            let hold = Hold::Bound;
            self.reach(Place { shard, hold }).await?;
            self.prelude(b"CLOSE ALL").await??;
        }
        self.cursors.clear();
        Ok(b"CLOSE CURSOR ALL")
    }
}

/// Where a cursor that was asked for is.
enum Declared {
    Here,
    /// The link is to be sent this text, with parameters of these types.
    There {
        text: String,
        types: Vec<u8>,
    },
}

fn command_of(statement: &StatementPlan, text: &[u8]) -> Option<Command> {
    let text = std::str::from_utf8(text).ok()?;
    cursor::command(text, statement.start as usize)
}

fn sink_of(rows: Rows) -> Sink<'static> {
    match rows {
        Rows::Given => Sink::Client,
        Rows::Passed => Sink::Nowhere,
    }
}

fn tag_of(rows: Rows, count: u64) -> String {
    let verb = match rows {
        Rows::Given => "FETCH",
        Rows::Passed => "MOVE",
    };
    format!("{verb} {count}")
}

/// The formats that a Bind asks for, each column's.
fn formats_of(tail: &[u8], width: usize) -> Vec<Format> {
    let head = [&[0, 0], tail].concat();
    let bind = Bind::decode(&head).ok();
    let codes = bind.map_or(&[][..], |bind| {
        bind.raw_results().get(2..).unwrap_or_default()
    });
    let of = |at: usize| {
        let at = if codes.len() == 2 { 0 } else { at };
        match codes.get(at * 2..at * 2 + 2) {
            Some([0, 1]) => Format::Binary,
            _ => Format::Text,
        }
    };
    (0..width).map(of).collect()
}

/// Gives rows that FETCH has found, at most `most`, all if that is 0.
fn give(rows: &[u8], at: &mut usize, most: u32, out: &mut Vec<u8>) {
    let wanted = if most == 0 { u64::MAX } else { u64::from(most) };
    let run = crate::merge::rows::run(&rows[*at..], wanted);
    out.extend_from_slice(&rows[*at..*at + run.bytes]);
    *at += run.bytes;
    if run.rows == wanted {
        put_bare(out, b's');
    } else {
        put_complete(out, tag_of(Rows::Given, run.rows).as_bytes());
    }
}
