//! The stream of a slot, read by a thread of its own. A server sends each row by itself; whoever waits for them is woken by
//! each, which costs both more than the row. So bytes are taken many at a time: while they flow, the thread looks for more
//! only now and then, and sleeps where nothing can wake it.
//!
//! What must stay true: waiting for the next message may be given up at any time and loses nothing; what is kept is bounded;
//! feedback tells what its user says, never more; the connection is closed soon after its user has gone.

use super::connection::{ReplicationError, Started, said};
use crate::{
    clock::Duration,
    net::stream::Stream,
    wire::{
        frame::{self, HEADER},
        replication::{Answer, Progress, Streamed, put_status},
    },
};
use std::{future::poll_fn, io, task::Poll, thread};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot,
    },
    task::yield_now,
};

/// Between two looks while bytes flow: a change waits no longer for it.
const LOOK: Duration = Duration::from_micros(400);
/// Bytes that are passed on at a time, about.
const GULP: usize = 64 << 10;
/// So many times that wait for the user.
const GULPS: usize = 4;

/// The stream of a slot.
#[derive(Debug)]
pub struct Streaming {
    /// What has arrived; up to `taken` it is done with.
    bytes: Vec<u8>,
    taken: usize,
    /// The size of the message that was shown last.
    shown: usize,
    arriving: mpsc::Receiver<Result<Vec<u8>, ReplicationError>>,
    /// Why nothing more arrives.
    over: Option<ReplicationError>,
    feedback: mpsc::Sender<Vec<u8>>,
}

impl Streaming {
    /// Streams what `started` opens, which is done where it will be read.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn open(
        started: impl Future<Output = Result<Started, ReplicationError>> + Send + 'static,
    ) -> Result<Self, ReplicationError> {
        let (arrives, arriving) = mpsc::channel(GULPS);
        let (feedback, told) = mpsc::channel(1);
        let (opens, opened) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let read = async move {
            match started.await {
                Ok(Started(stream)) => {
                    if opens.send(Ok(())).is_ok() {
                        pump(arrives, told, stream).await;
                    }
                }
                Err(error) => drop(opens.send(Err(error))),
            }
        };
        let named = thread::Builder::new().name("stream".to_owned());
        named.spawn(move || runtime.block_on(read))?;
        opened.await.unwrap_or(Err(ReplicationError::Closed))?;
        Ok(Self {
            bytes: Vec::new(),
            taken: 0,
            shown: 0,
            arriving,
            over: None,
            feedback,
        })
    }

    /// The next message. May be given up at any time, and loses nothing.
    ///
    /// # Errors
    /// [`ReplicationError`]: the stream is over; [`ReplicationError::Closed`] also when the server has ended it.
    pub async fn next(&mut self) -> Result<Streamed<'_>, ReplicationError> {
        self.taken += std::mem::take(&mut self.shown);
        loop {
            let Some(size) = self.frame()? else {
                if let Some(error) = self.over.take() {
                    return Err(error);
                }
                let more = self.arriving.recv().await;
                self.keep(more.unwrap_or(Err(ReplicationError::Closed)));
                continue;
            };
            let (tag, problem) = said(&self.bytes[self.taken..], size);
            if let Some(problem) = problem {
                return Err(problem);
            }
            match tag {
                b'd' => {
                    self.shown = size;
                    break;
                }
                // Notices, and settings that were reloaded.
                b'N' | b'S' => self.taken += size,
                b'c' => return Err(ReplicationError::Closed),
                _ => return Err(ReplicationError::Protocol),
            }
        }
        let frame = &self.bytes[self.taken..self.taken + self.shown];
        Ok(Streamed::decode(&frame[HEADER..])?)
    }

    /// Whether the next message, or the stream's end, is there already.
    #[must_use]
    pub fn has_next(&mut self) -> bool {
        self.taken += std::mem::take(&mut self.shown);
        loop {
            if !matches!(self.frame(), Ok(None)) || self.over.is_some() {
                return true;
            }
            let Ok(more) = self.arriving.try_recv() else {
                return false;
            };
            self.keep(more);
        }
    }

    /// Tells the server how far its user is, unless it has not taken yet what it was told before. `unix_micros`: now, in
    /// microseconds since 1970.
    ///
    /// # Errors
    /// When the connection is lost.
    pub fn tell(
        &mut self,
        progress: Progress,
        unix_micros: i64,
        answer: Answer,
    ) -> Result<(), ReplicationError> {
        let mut status = Vec::new();
        put_status(&mut status, progress, unix_micros, answer);
        match self.feedback.try_send(status) {
            Ok(()) | Err(TrySendError::Full(_)) => Ok(()),
            Err(TrySendError::Closed(_)) => {
                Err(self.over.take().unwrap_or(ReplicationError::Closed))
            }
        }
    }

    /// Ends the stream, and waits until its connection is closed.
    pub async fn end(mut self) {
        self.arriving.close();
        while self.arriving.recv().await.is_some() {}
    }

    /// The size of the next frame, if it is there whole.
    fn frame(&self) -> Result<Option<usize>, ReplicationError> {
        let bytes = &self.bytes[self.taken..];
        let size = frame::backend(bytes)?.map(|header| header.size);
        Ok(size.filter(|size| bytes.len() >= *size))
    }

    fn keep(&mut self, more: Result<Vec<u8>, ReplicationError>) {
        match more {
            Ok(more) => {
                self.bytes.drain(..std::mem::take(&mut self.taken));
                if self.bytes.is_empty() {
                    self.bytes = more;
                } else {
                    self.bytes.extend_from_slice(&more);
                }
            }
            Err(error) => self.over = Some(error),
        }
    }
}

/// Brings bytes to the user and feedback to the server until one of them has gone.
async fn pump(
    arrives: mpsc::Sender<Result<Vec<u8>, ReplicationError>>,
    mut told: mpsc::Receiver<Vec<u8>>,
    // The last one, which is the first to go: who hears that nothing more arrives may rely on it.
    mut stream: Stream,
) {
    let ended = tokio::select! {
        ended = pumped(&mut stream, &arrives, &mut told) => ended,
        () = arrives.closed() => return,
    };
    if let Err(error) = ended {
        drop(arrives.send(Err(error)).await);
    }
}

async fn pumped(
    stream: &mut Stream,
    arrives: &mpsc::Sender<Result<Vec<u8>, ReplicationError>>,
    told: &mut mpsc::Receiver<Vec<u8>>,
) -> Result<(), ReplicationError> {
    loop {
        let flows = arrived(stream).await?;
        if stream.buffered().is_empty() {
            tokio::select! {
                filled = stream.fill() => if filled? == 0 {
                    return Err(ReplicationError::Closed);
                },
                status = told.recv() => tell(stream, status).await?,
            }
            continue;
        }
        let room = loop {
            tokio::select! {
                room = arrives.reserve() => break room.map_err(|_gone| ReplicationError::Closed)?,
                status = told.recv() => tell(stream, status).await?,
            }
        };
        let bytes = stream.buffered().to_vec();
        stream.consume(bytes.len());
        room.send(Ok(bytes));
        if flows == Flows::More {
            continue;
        }
        if let Ok(status) = told.try_recv() {
            tell(stream, Some(status)).await?;
        }
        thread::sleep(LOOK);
        // The runtime hears what has come meanwhile.
        yield_now().await;
    }
}

/// Whether there is more than was taken.
#[derive(PartialEq, Eq)]
enum Flows {
    More,
    /// Nothing more at the moment.
    Not,
}

/// Takes what has arrived, as much as is passed on at a time.
async fn arrived(stream: &mut Stream) -> io::Result<Flows> {
    while stream.buffered().len() < GULP {
        match poll_fn(|cx| Poll::Ready(stream.poll_fill(cx))).await {
            Poll::Ready(filled) => {
                if filled? == 0 {
                    return Ok(Flows::Not);
                }
            }
            Poll::Pending => return Ok(Flows::Not),
        }
    }
    Ok(Flows::More)
}

async fn tell(stream: &mut Stream, status: Option<Vec<u8>>) -> Result<(), ReplicationError> {
    let status = status.ok_or(ReplicationError::Closed)?;
    stream.out().extend_from_slice(&status);
    Ok(stream.flush().await?)
}
