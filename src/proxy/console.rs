//! The console database on a connection: simple and extended protocol. What commands mean and answer is `admin`'s; here
//! are messages only, built by pgwire (a console is no hot path).
//!
//! What must stay true: after an error in the extended protocol everything up to Sync is dropped, as in PostgreSQL; the
//! console holds no backend and no transaction.

use super::{Shared, reply::console as reply, reply::session as session_reply};
use crate::{
    admin::{
        Column, Console, ConsoleError, Now, Reply,
        command::{self, Command},
    },
    config::settings::{ConsoleRole, User},
    metrics::sessions::{Registered, Wanted},
    net::stream::Stream,
    wire::{
        backend::{Status, put_parameter_status, put_ready},
        frame::{self, DecodeError, HEADER},
        frontend::{Bind, Named, Parse, put, put_bare, query},
        notice::Notice,
        types::{Format, INT8},
    },
};
use bytes::{BufMut as _, BytesMut};
use pgwire::messages::{
    Message,
    data::{DataRow, FieldDescription, ParameterDescription, RowDescription},
    response::{CommandComplete, EmptyQueryResponse},
};
use std::{collections::HashMap, sync::Arc};

/// Prepared statements and portals that one connection may have.
const NAMES: usize = 64;
/// What drivers want to know at the start.
const PARAMETERS: [(&str, &str); 8] = [
    (
        "server_version",
        concat!(env!("CARGO_PKG_VERSION"), "/shardway"),
    ),
    ("server_encoding", "UTF8"),
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO"),
    ("TimeZone", "UTC"),
    ("integer_datetimes", "on"),
    ("standard_conforming_strings", "on"),
    ("is_superuser", "off"),
];

/// One connection to the console.
struct Conversation<'a> {
    client: Stream,
    console: Arc<Console>,
    role: ConsoleRole,
    shared: &'a Shared,
    info: &'a Registered,
    statements: HashMap<String, Command>,
    portals: HashMap<String, Portal>,
    mode: Mode,
}

/// Whether messages are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Serving,
    /// After an error: dropped up to Sync.
    Skipping,
}

/// A command bound to the formats of its result.
struct Portal {
    command: Command,
    formats: Vec<Format>,
}

/// What follows a message.
enum Next {
    Message,
    /// The client says goodbye.
    End,
}

/// Why a message was not served.
enum Fault {
    Refused(Notice),
    Malformed,
}

impl From<ConsoleError> for Fault {
    fn from(problem: ConsoleError) -> Self {
        Self::Refused(reply::refused(&problem))
    }
}

impl From<DecodeError> for Fault {
    fn from(_: DecodeError) -> Self {
        Self::Malformed
    }
}

/// Serves a client that has logged in to the console database, to its end.
pub async fn serve(client: Stream, user: &User, shared: &Arc<Shared>, info: &Registered) {
    let (Some(console), Some(role)) = (shared.console.get().cloned(), user.console) else {
        return;
    };
    let mut conversation = Conversation {
        client,
        console,
        role,
        shared,
        info,
        statements: HashMap::new(),
        portals: HashMap::new(),
        mode: Mode::Serving,
    };
    conversation.welcome();
    conversation.run().await;
    // The connection is over either way.
    drop(conversation.client.flush().await);
    conversation.client.shutdown().await;
}

impl Conversation<'_> {
    fn welcome(&mut self) {
        let (pid, key) = (self.info.pid, self.info.key().to_vec());
        let out = self.client.out();
        for (name, value) in PARAMETERS {
            put_parameter_status(out, name.as_bytes(), value.as_bytes());
        }
        put(out, b'K', |out| {
            out.extend_from_slice(&pid.to_be_bytes());
            out.extend_from_slice(&key);
        });
        put_ready(out, Status::Idle);
    }

    async fn run(&mut self) {
        loop {
            match self.buffered() {
                Ok(Next::Message) => {}
                Ok(Next::End) => return,
                Err(last_words) => return last_words.put(self.client.out()),
            }
            if self.info.wanted() != Wanted::Nothing {
                return session_reply::shutting_down().put(self.client.out());
            }
            if self.client.flush().await.is_err() {
                return;
            }
            self.client.relax(true);
            tokio::select! {
                filled = self.client.fill() => if filled.unwrap_or(0) == 0 { return },
                () = self.info.asked() => {}
            }
        }
    }

    /// Serves every whole message that has arrived.
    fn buffered(&mut self) -> Result<Next, Notice> {
        loop {
            let bytes = self.client.buffered();
            let header = match frame::frontend(bytes) {
                Ok(Some(header)) if bytes.len() >= header.size => header,
                // The console has no use for long messages.
                Ok(Some(header)) if header.size > frame::AUTH as usize => {
                    return Err(session_reply::malformed());
                }
                Ok(_) => return Ok(Next::Message),
                Err(problem) => return Err(session_reply::broken_frame(&problem)),
            };
            let body = bytes[HEADER..header.size].to_vec();
            self.client.consume(header.size);
            match self.message(header.tag, &body) {
                Ok(Next::Message) => {}
                Ok(Next::End) => return Ok(Next::End),
                Err(fault) => self.fail(header.tag, fault),
            }
        }
    }

    fn message(&mut self, tag: u8, body: &[u8]) -> Result<Next, Fault> {
        match (tag, self.mode) {
            (b'X', _) => return Ok(Next::End),
            (b'S', _) => {
                self.mode = Mode::Serving;
                // Portals end with the transaction.
                self.portals.clear();
                put_ready(self.client.out(), Status::Idle);
            }
            (_, Mode::Skipping) => {}
            (b'Q', Mode::Serving) => self.simple(body)?,
            (b'P', Mode::Serving) => self.parse(body)?,
            (b'B', Mode::Serving) => self.bind(body)?,
            (b'D', Mode::Serving) => self.describe(body)?,
            (b'E', Mode::Serving) => self.execute(body)?,
            (b'C', Mode::Serving) => self.close(body)?,
            // Flush: everything is sent when nothing more has arrived.
            (b'H', Mode::Serving) => {}
            _ => return Err(Fault::Refused(reply::not_served())),
        }
        Ok(Next::Message)
    }

    fn fail(&mut self, tag: u8, fault: Fault) {
        let notice = match fault {
            Fault::Refused(notice) => notice,
            Fault::Malformed => session_reply::malformed(),
        };
        notice.put(self.client.out());
        if tag == b'Q' {
            put_ready(self.client.out(), Status::Idle);
        } else {
            self.mode = Mode::Skipping;
        }
    }

    /// A simple query: one or more commands; the first that fails ends it.
    fn simple(&mut self, body: &[u8]) -> Result<(), Fault> {
        let text = String::from_utf8_lossy(query(body)?).into_owned();
        let commands: Vec<&str> = text
            .split(';')
            .filter(|command| !command.trim().is_empty())
            .collect();
        if commands.is_empty() {
            self.put(&EmptyQueryResponse::new());
        }
        for command in commands {
            let command = command::parse(command).map_err(ConsoleError::Parse)?;
            if command == Command::Empty {
                self.put(&EmptyQueryResponse::new());
                continue;
            }
            let answer = self.answer(command)?;
            if !answer.columns.is_empty() {
                self.put(&description(&answer.columns, &[]));
            }
            self.rows(&answer, &[]);
        }
        put_ready(self.client.out(), Status::Idle);
        Ok(())
    }

    fn parse(&mut self, body: &[u8]) -> Result<(), Fault> {
        let parse = Parse::decode(body)?;
        let name = text(parse.name);
        let command = command::parse(&text(parse.text)).map_err(ConsoleError::Parse)?;
        if !name.is_empty() && self.statements.contains_key(&name) {
            return Err(Fault::Refused(session_reply::statement_exists(parse.name)));
        }
        if self.statements.len() >= NAMES && !self.statements.contains_key(&name) {
            return Err(Fault::Refused(reply::too_many_names()));
        }
        self.statements.insert(name, command);
        put_bare(self.client.out(), b'1');
        Ok(())
    }

    fn bind(&mut self, body: &[u8]) -> Result<(), Fault> {
        let bind = Bind::decode(body)?;
        if !bind.is_empty() {
            return Err(Fault::Refused(reply::no_parameters()));
        }
        let command = self.statement(bind.statement)?;
        if self.portals.len() >= NAMES {
            return Err(Fault::Refused(reply::too_many_names()));
        }
        let formats = result_formats(bind.tail)?;
        self.portals
            .insert(text(bind.portal), Portal { command, formats });
        put_bare(self.client.out(), b'2');
        Ok(())
    }

    fn describe(&mut self, body: &[u8]) -> Result<(), Fault> {
        let (command, formats) = match Named::decode(body)? {
            Named::Statement(name) => {
                let command = self.statement(name)?;
                self.put(&ParameterDescription::new(Vec::new()));
                (command, Vec::new())
            }
            Named::Portal(name) => {
                let portal = self.portal(name)?;
                (portal.command, portal.formats.clone())
            }
        };
        let columns = match command {
            // Only reads: asking for the columns is asking.
            Command::Show(_) => self.answer(command)?.columns,
            Command::Empty
            | Command::Reload
            | Command::Shutdown(_)
            | Command::Kill(_)
            | Command::Set => Vec::new(),
        };
        if columns.is_empty() {
            put_bare(self.client.out(), b'n');
        } else {
            self.put(&description(&columns, &formats));
        }
        Ok(())
    }

    /// The row limit of Execute is not kept: tables of the console are short.
    fn execute(&mut self, body: &[u8]) -> Result<(), Fault> {
        let mut body = frame::Body::new(body);
        let name = body.cstr()?;
        let portal = self.portal(name)?;
        let (command, formats) = (portal.command, portal.formats.clone());
        if command == Command::Empty {
            self.put(&EmptyQueryResponse::new());
            return Ok(());
        }
        let answer = self.answer(command)?;
        self.rows(&answer, &formats);
        Ok(())
    }

    fn close(&mut self, body: &[u8]) -> Result<(), Fault> {
        match Named::decode(body)? {
            Named::Statement(name) => drop(self.statements.remove(&text(name))),
            Named::Portal(name) => drop(self.portals.remove(&text(name))),
        }
        put_bare(self.client.out(), b'3');
        Ok(())
    }

    fn statement(&self, name: &[u8]) -> Result<Command, Fault> {
        let found = self.statements.get(&text(name)).copied();
        found.ok_or_else(|| Fault::Refused(reply::no_such_statement(&text(name))))
    }

    fn portal(&self, name: &[u8]) -> Result<&Portal, Fault> {
        let found = self.portals.get(&text(name));
        found.ok_or_else(|| Fault::Refused(reply::no_such_portal(&text(name))))
    }

    fn answer(&self, command: Command) -> Result<Reply, Fault> {
        let now = Now {
            monotonic: self.shared.clock.now(),
            wall: self.shared.clock.wall(),
        };
        Ok(self.console.run(command, self.role, now)?)
    }

    fn rows(&mut self, answer: &Reply, formats: &[Format]) {
        for row in &answer.rows {
            self.put(&data_row(row, &answer.columns, formats));
        }
        self.put(&CommandComplete::new(answer.tag.clone()));
    }

    fn put<M: Message>(&mut self, message: &M) {
        let mut bytes = BytesMut::new();
        // Our own messages are within every limit; one that is not is left out, and the client sees the connection fail.
        if message.encode(&mut bytes).is_ok() {
            self.client.out().extend_from_slice(&bytes);
        }
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The formats that a Bind without parameters wants its columns in; `tail` begins after the statement's name.
fn result_formats(tail: &[u8]) -> Result<Vec<Format>, DecodeError> {
    let mut tail = frame::Body::new(tail);
    let parameter_formats = usize::from(tail.u16()?);
    tail.bytes(parameter_formats * 2)?;
    let parameters = tail.u16()?;
    debug_assert_eq!(parameters, 0, "checked before");
    let count = usize::from(tail.u16()?);
    let format = |tail: &mut frame::Body<'_>| {
        Ok(if tail.u16()? == 1 {
            Format::Binary
        } else {
            Format::Text
        })
    };
    (0..count).map(|_| format(&mut tail)).collect()
}

/// The format of a column: none given means text, one given means all.
fn format_at(formats: &[Format], column: usize) -> Format {
    let found = if formats.len() == 1 {
        formats.first()
    } else {
        formats.get(column)
    };
    found.copied().unwrap_or(Format::Text)
}

fn description(columns: &[Column], formats: &[Format]) -> RowDescription {
    let field = |(at, column): (usize, &Column)| {
        let size = if column.oid == INT8 { 8 } else { -1 };
        let format = i16::from(format_at(formats, at) == Format::Binary);
        FieldDescription::new(column.name.to_owned(), 0, 0, column.oid, size, -1, format)
    };
    RowDescription::new(columns.iter().enumerate().map(field).collect())
}

fn data_row(row: &[Option<String>], columns: &[Column], formats: &[Format]) -> DataRow {
    let mut data = BytesMut::new();
    for (at, value) in row.iter().enumerate() {
        let binary = format_at(formats, at) == Format::Binary
            && columns.get(at).is_some_and(|column| column.oid == INT8);
        match value {
            None => data.put_i32(-1),
            Some(number) if binary => {
                data.put_i32(8);
                data.put_i64(number.parse().unwrap_or(i64::MAX));
            }
            // Text is the same in both formats.
            Some(text) => {
                data.put_i32(i32::try_from(text.len()).unwrap_or(i32::MAX));
                data.put_slice(text.as_bytes());
            }
        }
    }
    DataRow::new(data, i16::try_from(row.len()).unwrap_or(i16::MAX))
}
