//! A connection with `replication=database`: commands for slots, then the stream of one slot (`streaming.rs`).
//!
//! What must stay true: an answer is read to its end, or the connection is closed.

use crate::{
    clock::Duration,
    config::settings::{Address, Credentials},
    net::{
        backend::{ConnectError, connect},
        stream::Stream,
        tls::ClientTls,
    },
    wire::{
        frame::{self, Body, DecodeError, FrameError, HEADER},
        frontend::put_query,
        notice,
        replication::Lsn,
    },
};
use std::io;
use tokio::time::timeout as within;

/// Settings under which values are written as every server reads them, and nothing ends by itself.
const SETTINGS: [(&str, &str); 10] = [
    ("replication", "database"),
    ("application_name", "shardway"),
    ("client_encoding", "SQL_ASCII"), // values as they are stored
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
];

/// Why a replication connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The server said so.
    #[error("{message} ({sqlstate})")]
    Server { sqlstate: String, message: String },
    #[error("the connection is lost: {0}")]
    Lost(#[from] io::Error),
    #[error("the server has closed the connection")]
    Closed,
    #[error("the server did not answer in time")]
    Timeout,
    #[error("the server's answer is not understood")]
    Protocol,
    #[error("another server answers: its system identifier is {is}, and was {was}")]
    Another { was: String, is: String },
    #[error("it has failed over, or was restored: its timeline is {is}, and was {was}")]
    FailedOver { was: u32, is: u32 },
}

impl From<FrameError> for ReplicationError {
    fn from(_: FrameError) -> Self {
        Self::Protocol
    }
}

impl From<DecodeError> for ReplicationError {
    fn from(_: DecodeError) -> Self {
        Self::Protocol
    }
}

impl ReplicationError {
    /// The SQLSTATE, when it was the server that said so.
    #[must_use]
    pub fn sqlstate(&self) -> Option<&str> {
        match self {
            Self::Server { sqlstate, .. } => Some(sqlstate),
            Self::Connect(_)
            | Self::Lost(_)
            | Self::Closed
            | Self::Timeout
            | Self::Protocol
            | Self::Another { .. }
            | Self::FailedOver { .. } => None,
        }
    }
}

/// Which server it is, and how far its WAL goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct System {
    /// `pg_control_system().system_identifier`.
    pub identifier: u64,
    /// Another one after each failover.
    pub timeline: u32,
    pub flushed: Lsn,
}

/// How long a slot lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lifetime {
    Persistent,
    /// Until the connection ends, or a command on it fails.
    Temporary,
}

/// Whether others may see what the slot's beginning sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Snapshot {
    /// Until the next command on the connection.
    Exported,
    Nothing,
}

/// A slot that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// What is committed from here on is streamed.
    pub consistent: Lsn,
    /// For `SET TRANSACTION SNAPSHOT`.
    pub snapshot: Option<String>,
}

/// How a stream is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Values as their types send them; those without are text.
    Binary,
    Text,
}

/// A connection for commands.
#[derive(Debug)]
pub struct Connection {
    pub(super) stream: Stream,
    limit: Duration,
}

/// A row's columns, `None` for NULL.
pub(super) type Row = Vec<Option<String>>;

impl Connection {
    /// Logs in; `limit` bounds this and each command. The role needs REPLICATION.
    ///
    /// # Errors
    /// [`ReplicationError::Connect`].
    pub async fn open(
        address: &Address,
        credentials: &Credentials,
        limit: Duration,
        tls: &ClientTls,
    ) -> Result<Self, ReplicationError> {
        Self::with(address, credentials, &SETTINGS, limit, tls).await
    }

    /// The same, with settings of its own.
    pub(super) async fn with(
        address: &Address,
        credentials: &Credentials,
        settings: &[(&str, &str)],
        limit: Duration,
        tls: &ClientTls,
    ) -> Result<Self, ReplicationError> {
        let database = &address.database;
        let connected = connect(address, database, credentials, settings, limit, tls).await?;
        let stream = Stream::new(connected.transport);
        Ok(Self { stream, limit })
    }

    /// Which server it is.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn identify(&mut self) -> Result<System, ReplicationError> {
        let row = self.one("IDENTIFY_SYSTEM").await?;
        Ok(System {
            identifier: column(&row, 0)?.parse().map_err(not_understood)?,
            timeline: column(&row, 1)?.parse().map_err(not_understood)?,
            flushed: column(&row, 2)?.parse()?,
        })
    }

    /// Makes a slot for `pgoutput`. It waits for every transaction that is running, without a limit of its own: `limit`
    /// ends it, and the slot is gone with the connection then.
    ///
    /// # Errors
    /// [`ReplicationError`]; 42710 when there is one of that name.
    pub async fn create_slot(
        &mut self,
        name: &str,
        lifetime: Lifetime,
        snapshot: Snapshot,
    ) -> Result<Slot, ReplicationError> {
        let lifetime = match lifetime {
            Lifetime::Persistent => "",
            Lifetime::Temporary => " TEMPORARY",
        };
        // The form with parentheses came with PostgreSQL 15.
        let exported = match snapshot {
            Snapshot::Exported => "EXPORT_SNAPSHOT",
            Snapshot::Nothing => "NOEXPORT_SNAPSHOT",
        };
        let name = quoted(name);
        let sql = format!("CREATE_REPLICATION_SLOT {name}{lifetime} LOGICAL pgoutput {exported}");
        let row = self.one(&sql).await?;
        Ok(Slot {
            consistent: column(&row, 1)?.parse()?,
            snapshot: row.get(2).cloned().flatten(),
        })
    }

    /// Drops a slot, once nobody reads it any more.
    ///
    /// # Errors
    /// [`ReplicationError`]; 42704 when there is none, [`ReplicationError::Timeout`] when somebody goes on reading it.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        let sql = format!("DROP_REPLICATION_SLOT {} WAIT", quoted(name));
        self.ask(&sql).await.map(drop)
    }

    /// Streams a slot from a position: what was confirmed is not sent again whatever `from` says.
    ///
    /// # Errors
    /// [`ReplicationError`]; 55006 when somebody else reads the slot.
    pub async fn start(
        mut self,
        slot: &str,
        from: Lsn,
        publication: &str,
        format: Format,
    ) -> Result<Started, ReplicationError> {
        // A list of identifiers within a literal.
        let publication = quoted(publication).replace('\'', "''");
        let binary = format == Format::Binary;
        let sql = format!(
            "START_REPLICATION SLOT {} LOGICAL {from} (proto_version '1', publication_names '{publication}', \
             binary '{binary}', messages 'true')",
            quoted(slot)
        );
        let limit = self.limit;
        let begun = async {
            put_query(self.stream.out(), sql.as_bytes());
            self.stream.flush().await?;
            loop {
                let size = self.frame().await?;
                let (tag, problem) = said(self.stream.buffered(), size);
                self.stream.consume(size);
                match (tag, problem) {
                    (_, Some(problem)) => return Err(problem),
                    (b'W', None) => return Ok(()),
                    (b'N' | b'S', None) => {}
                    _ => return Err(ReplicationError::Protocol),
                }
            }
        };
        within(limit, begun)
            .await
            .unwrap_or(Err(ReplicationError::Timeout))?;
        Ok(Started(self.stream))
    }

    /// The only row of an answer.
    async fn one(&mut self, sql: &str) -> Result<Row, ReplicationError> {
        let mut rows = self.ask(sql).await?.into_iter();
        match (rows.next(), rows.next()) {
            (Some(row), None) => Ok(row),
            _ => Err(ReplicationError::Protocol),
        }
    }

    async fn ask(&mut self, sql: &str) -> Result<Vec<Row>, ReplicationError> {
        within(self.limit, self.run(sql))
            .await
            .unwrap_or(Err(ReplicationError::Timeout))
    }

    /// Asks however long it takes.
    pub(super) async fn run(&mut self, sql: &str) -> Result<Vec<Row>, ReplicationError> {
        put_query(self.stream.out(), sql.as_bytes());
        self.stream.flush().await?;
        self.answer().await
    }

    /// Reads up to ReadyForQuery.
    pub(super) async fn answer(&mut self) -> Result<Vec<Row>, ReplicationError> {
        let (mut rows, mut failed) = (Vec::new(), None);
        loop {
            let size = self.frame().await?;
            let frame = &self.stream.buffered()[..size];
            let (tag, problem) = said(frame, size);
            let row = (tag == b'D').then(|| row(&frame[HEADER..])).transpose()?;
            self.stream.consume(size);
            rows.extend(row);
            failed = failed.or(problem);
            match tag {
                b'Z' => return failed.map_or(Ok(rows), Err),
                b'T' | b'D' | b'C' | b'E' | b'N' | b'S' => {}
                _ => return Err(ReplicationError::Protocol),
            }
        }
    }

    /// Waits until a whole frame has arrived, and tells its size. Given up, it loses nothing.
    pub(super) async fn frame(&mut self) -> Result<usize, ReplicationError> {
        loop {
            let bytes = self.stream.buffered();
            if let Some(header) = frame::backend(bytes)?
                && bytes.len() >= header.size
            {
                return Ok(header.size);
            }
            if self.stream.fill().await? == 0 {
                return Err(ReplicationError::Closed);
            }
        }
    }
}

/// A connection on which a slot is streamed.
#[derive(Debug)]
pub struct Started(pub(super) Stream);

/// A frame's tag, and the error that it is.
pub(super) fn said(bytes: &[u8], size: usize) -> (u8, Option<ReplicationError>) {
    let frame = &bytes[..size];
    let tag = frame[0];
    let problem = (tag == b'E').then(|| {
        let field = |code| {
            let found = notice::field(&frame[HEADER..], code).unwrap_or_default();
            String::from_utf8_lossy(found).into_owned()
        };
        let (sqlstate, message) = (field(b'C'), field(b'M'));
        ReplicationError::Server { sqlstate, message }
    });
    (tag, problem)
}

fn row(body: &[u8]) -> Result<Row, DecodeError> {
    let mut body = Body::new(body);
    let count = body.u16()?;
    let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
    let cells = (0..count).map(|_| Ok(body.value()?.map(text)));
    cells.collect()
}

fn column(row: &Row, at: usize) -> Result<&str, ReplicationError> {
    let found = row.get(at).and_then(Option::as_deref);
    found.ok_or(ReplicationError::Protocol)
}

fn not_understood(_: std::num::ParseIntError) -> ReplicationError {
    ReplicationError::Protocol
}

/// As an identifier.
fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
