//! Rows from one server to another: what `COPY … TO STDOUT` answers there is what `COPY … FROM STDIN` is given here, bytes
//! as they are.
//!
//! What must stay true: no more is read than the other side takes; as many rows arrive as left, or it is an error; a
//! session that something went wrong on, or that was given up in the middle, is closed, which undoes its transaction.

use super::connection::{Connection, ReplicationError, Row, said};
use crate::{
    clock::{Clock, Duration, Instant},
    config::settings::{Address, Credentials},
    net::{
        stream::{HIGH_WATER, Stream},
        tls::ClientTls,
    },
    wire::{
        frame::{self, HEADER},
        frontend::{put, put_bare, put_query},
    },
};
use std::{
    future::poll_fn,
    sync::{Mutex, PoisonError},
    task::Poll,
};
use tokio::sync::watch;

/// Nothing ends by itself; values are written as every server reads them; row security is an error, never a filter.
const SETTINGS: [(&str, &str); 14] = [
    ("client_encoding", "UTF8"),
    ("datestyle", "ISO"),
    ("intervalstyle", "postgres"),
    ("timezone", "UTC"),
    ("extra_float_digits", "3"),
    ("bytea_output", "hex"),
    ("statement_timeout", "0"),
    ("lock_timeout", "0"),
    ("idle_in_transaction_session_timeout", "0"),
    ("row_security", "off"),
    ("search_path", "pg_catalog"),
    ("synchronous_commit", "on"),
    ("max_parallel_workers_per_gather", "0"), // others have work to do as well
    ("jit", "off"),
];
/// Those that not every version has.
const MORE_SETTINGS: &str = "\
SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('transaction_timeout', 'idle_session_timeout')";

/// A connection for statements and copies.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
}

/// What was copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    pub rows: u64,
    pub bytes: u64,
}

/// Why rows did not arrive.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    #[error("on the source: {0}")]
    Source(#[source] ReplicationError),
    #[error("on the destination: {0}")]
    Destination(#[source] ReplicationError),
    #[error("{left} rows left the source and {arrived} arrived")]
    Count { left: u64, arrived: u64 },
}

impl Session {
    /// Logs in within `limit`, under a name that `pg_stat_activity` shows; statements have no limit.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn open(
        address: &Address,
        credentials: &Credentials,
        name: &str,
        limit: Duration,
        tls: &ClientTls,
    ) -> Result<Self, ReplicationError> {
        let mut settings = vec![("application_name", name)];
        settings.extend(SETTINGS);
        let connection = Connection::with(address, credentials, &settings, limit, tls).await?;
        let mut session = Self { connection };
        session.ask(MORE_SETTINGS).await?;
        Ok(session)
    }

    /// The rows of statements, in text.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn ask(&mut self, sql: &str) -> Result<Vec<Row>, ReplicationError> {
        self.connection.run(sql).await
    }

    /// Begins a copy, which the server agrees to with this message.
    async fn begin(&mut self, sql: &str, agreed: u8) -> Result<(), ReplicationError> {
        put_query(self.connection.stream.out(), sql.as_bytes());
        self.connection.stream.flush().await?;
        loop {
            let size = self.connection.frame().await?;
            let (tag, problem) = said(self.connection.stream.buffered(), size);
            self.connection.stream.consume(size);
            match (tag, problem) {
                (_, Some(problem)) => return Err(problem),
                (tag, None) if tag == agreed => return Ok(()),
                (b'N' | b'S', None) => {}
                _ => return Err(ReplicationError::Protocol),
            }
        }
    }

    /// Reads up to ReadyForQuery; the rows that the command's tag tells.
    async fn end(&mut self) -> Result<u64, ReplicationError> {
        let mut rows = None;
        loop {
            let size = self.connection.frame().await?;
            let (tag, problem) = said(self.connection.stream.buffered(), size);
            if tag == b'C' {
                rows = counted(&self.connection.stream.buffered()[HEADER..size]);
            }
            self.connection.stream.consume(size);
            match (tag, problem) {
                (_, Some(problem)) => return Err(problem),
                (b'Z', None) => return rows.ok_or(ReplicationError::Protocol),
                (b'C' | b'N' | b'S', None) => {}
                _ => return Err(ReplicationError::Protocol),
            }
        }
    }
}

/// `COPY 17`.
fn counted(body: &[u8]) -> Option<u64> {
    let tag = body.strip_suffix(b"\0")?.strip_prefix(b"COPY ")?;
    std::str::from_utf8(tag).ok()?.parse().ok()
}

/// Copies what one statement answers into what the other takes, within the transactions that the sessions are in.
///
/// # Errors
/// [`CopyError`]: both sessions are of no use any more.
pub async fn copy(
    source: &mut Session,
    out: &str,
    destination: &mut Session,
    into: &str,
    budget: &Budget,
) -> Result<Copied, CopyError> {
    let (giving, taking) = tokio::join!(source.begin(out, b'H'), destination.begin(into, b'G'));
    giving.map_err(CopyError::Source)?;
    taking.map_err(CopyError::Destination)?;
    let mut passing = Passing {
        from: &mut source.connection.stream,
        to: &mut destination.connection.stream,
        left: 0,
        bytes: 0,
    };
    let (mut spent, mut over) = (0, false);
    while !over {
        over = passing.step().await?;
        // The last piece as well: it may be the only one.
        let more = passing.bytes - spent;
        spent = passing.bytes;
        budget.spend(more).await;
    }
    let bytes = passing.bytes;
    let left = source.end().await.map_err(CopyError::Source)?;
    let to = &mut destination.connection.stream;
    put_bare(to.out(), b'c');
    let flushed = to.flush().await;
    flushed.map_err(|error| CopyError::Destination(error.into()))?;
    let arrived = destination.end().await.map_err(CopyError::Destination)?;
    if left != arrived {
        return Err(CopyError::Count { left, arrived });
    }
    Ok(Copied {
        rows: arrived,
        bytes,
    })
}

/// A copy under way.
struct Passing<'a> {
    from: &'a mut Stream,
    to: &'a mut Stream,
    /// Bytes of the message under way that have not arrived.
    left: usize,
    bytes: u64,
}

/// What a stream is ready for.
enum Ready {
    /// The source has sent something.
    Arrived,
    /// The destination, which is to be silent, has.
    Spoken,
}

impl Passing<'_> {
    /// Passes on what there is, and waits for more. Whether the source has ended its copy.
    async fn step(&mut self) -> Result<bool, CopyError> {
        if self.pass().map_err(CopyError::Source)? {
            return Ok(true);
        }
        match self.ready().await? {
            Ready::Arrived => Ok(false),
            Ready::Spoken => self.heard().map(|()| false),
        }
    }

    async fn ready(&mut self) -> Result<Ready, CopyError> {
        let (from, to) = (&mut *self.from, &mut *self.to);
        poll_fn(|cx| {
            let lost = |error: std::io::Error| CopyError::Destination(error.into());
            if let Poll::Ready(Err(error)) = to.poll_flush(cx) {
                return Poll::Ready(Err(lost(error)));
            }
            match to.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    let closed = ReplicationError::Closed;
                    return Poll::Ready(Err(CopyError::Destination(closed)));
                }
                Poll::Ready(Ok(_)) => return Poll::Ready(Ok(Ready::Spoken)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(lost(error))),
                Poll::Pending => {}
            }
            if to.unsent() > HIGH_WATER {
                return Poll::Pending;
            }
            match from.poll_fill(cx) {
                Poll::Ready(Ok(0)) => Poll::Ready(Err(CopyError::Source(ReplicationError::Closed))),
                Poll::Ready(Ok(_)) => Poll::Ready(Ok(Ready::Arrived)),
                Poll::Ready(Err(error)) => Poll::Ready(Err(CopyError::Source(error.into()))),
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// Puts the data that have arrived into one message to the destination: whether all have.
    fn pass(&mut self) -> Result<bool, ReplicationError> {
        let Self {
            from,
            to,
            left,
            bytes,
        } = self;
        let mut ended = Ok(false);
        if from.buffered().is_empty() {
            return ended;
        }
        let mut done = 0;
        let arrived = from.buffered();
        let gather = |out: &mut Vec<u8>| {
            while done < arrived.len() {
                let rest = &arrived[done..];
                if *left > 0 {
                    let some = rest.len().min(*left);
                    out.extend_from_slice(&rest[..some]);
                    *left -= some;
                    *bytes += some as u64;
                    done += some;
                    continue;
                }
                match message(rest) {
                    Ok(Some(Message::Data(size))) => {
                        *left = size;
                        done += HEADER;
                    }
                    Ok(Some(Message::Other(size))) => done += size,
                    Ok(Some(Message::Done(size))) => {
                        done += size;
                        ended = Ok(true);
                        return;
                    }
                    Ok(None) => return,
                    Err(error) => {
                        ended = Err(error);
                        return;
                    }
                }
            }
        };
        put(to.out(), b'd', gather);
        from.consume(done);
        ended
    }

    /// What the destination says in the middle: an error, or nothing of importance.
    fn heard(&mut self) -> Result<(), CopyError> {
        while let Some(header) = frame::backend(self.to.buffered())
            .map_err(|error| CopyError::Destination(error.into()))?
        {
            if self.to.buffered().len() < header.size {
                return Ok(());
            }
            let (tag, problem) = said(self.to.buffered(), header.size);
            self.to.consume(header.size);
            match (tag, problem) {
                (_, Some(problem)) => return Err(CopyError::Destination(problem)),
                (b'N' | b'S' | b'A', None) => {}
                _ => return Err(CopyError::Destination(ReplicationError::Protocol)),
            }
        }
        Ok(())
    }
}

/// What comes next from a source that copies.
enum Message {
    /// Data of so many bytes, behind a header.
    Data(usize),
    /// The last of them was before this message.
    Done(usize),
    /// Something else, whole.
    Other(usize),
}

/// `None` while it has not arrived, of data: while their header has not.
fn message(bytes: &[u8]) -> Result<Option<Message>, ReplicationError> {
    let Some(header) = frame::backend(bytes)? else {
        return Ok(None);
    };
    if header.tag == b'd' {
        return Ok(Some(Message::Data(header.size - HEADER)));
    }
    if bytes.len() < header.size {
        return Ok(None);
    }
    match said(bytes, header.size) {
        (_, Some(problem)) => Err(problem),
        (b'c', None) => Ok(Some(Message::Done(header.size))),
        (b'N' | b'S' | b'A', None) => Ok(Some(Message::Other(header.size))),
        _ => Err(ReplicationError::Protocol),
    }
}

/// How much may be read in a second, by all who share it. A change takes effect at once.
#[derive(Debug)]
pub struct Budget {
    per_second: watch::Receiver<u64>,
    debt: Mutex<Debt>,
}

#[derive(Debug)]
struct Debt {
    bytes: f64,
    at: Instant,
}

impl Budget {
    /// `per_second`: bytes; 0: no limit.
    #[must_use]
    pub fn new(per_second: watch::Receiver<u64>) -> Self {
        let debt = Mutex::new(Debt {
            bytes: 0.0,
            at: Clock.now(),
        });
        Self { per_second, debt }
    }

    /// Says that so much was read, and waits until more may be.
    pub async fn spend(&self, bytes: u64) {
        let mut more = bytes;
        let mut per_second = self.per_second.clone();
        loop {
            let rate = *per_second.borrow_and_update();
            let wait = self.owe(std::mem::take(&mut more), rate);
            if wait.is_zero() {
                return;
            }
            let changed = tokio::time::timeout(wait, per_second.changed()).await;
            if matches!(changed, Ok(Err(_))) {
                // Nobody changes it any more.
                tokio::time::sleep(wait).await;
            }
        }
    }

    /// How long it takes at this rate until nothing is owed.
    #[expect(
        clippy::cast_precision_loss,
        reason = "what is read is paced, not counted"
    )]
    fn owe(&self, bytes: u64, rate: u64) -> Duration {
        let mut debt = self.debt.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Clock.now();
        let rate = rate as f64;
        let paid = now.duration_since(debt.at).as_secs_f64() * rate;
        debt.at = now;
        if rate == 0.0 {
            debt.bytes = 0.0;
            return Duration::ZERO;
        }
        debt.bytes = (debt.bytes - paid).max(0.0) + bytes as f64;
        // A tenth of a second's worth may be ahead, so that nobody sleeps for every piece.
        let over = debt.bytes - rate / 10.0;
        Duration::try_from_secs_f64((over / rate).max(0.0)).unwrap_or(Duration::from_secs(1))
    }
}
