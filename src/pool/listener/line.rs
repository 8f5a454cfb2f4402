//! One shard's shared listener: opens its connection, keeps it told, hands out what arrives, opens it again when it is
//! lost.
//!
//! An empty query after [`HEARTBEAT`] of silence finds a connection that is dead without saying so. A server sends what
//! was committed before a query of ours before it answers that query (`ProcessNotifyInterrupt` in `PostgresMain`, PostgreSQL
//! 13 and later), which is what lets [`super::Hub::settle`] wait for notifications.

use super::{
    Hub,
    mailbox::{Mail, Notification},
    state::Changes,
};
use crate::{
    clock::{Duration, Instant},
    metrics::listeners::Condition,
    net::{
        backend::{self, ConnectError, Who},
        stream::Stream,
    },
    protocol::listening::put_command,
    wire::{
        frame::{self, Body, FrameError, HEADER},
        frontend::{put, put_query},
        notice,
    },
};
use std::{
    collections::VecDeque,
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::sync::oneshot;

/// Silence after which the server is asked for a sign of life.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// The first pause after a failure; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// Longest message that a listener may get: a notification is below 8000 bytes and two names.
const LONGEST: usize = 1 << 20;

/// Why a line has no connection.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the server closed the connection")]
    Closed,
    #[error("the server did not answer in time")]
    Silent,
    #[error("the server says: {0}")]
    Said(String),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the server sent what a listener does not expect")]
    Unexpected,
}

/// A query on its way.
struct Sent {
    listens: Vec<Arc<str>>,
    waiting: Vec<oneshot::Sender<()>>,
}

/// Drives a line until nobody wants anything.
pub(super) async fn run(hub: Arc<Hub>, at: usize) {
    let line = &hub.lines[at];
    let _driver = Driver { hub: &hub, at };
    let mut pause = FIRST_PAUSE;
    let mut lost_since: Option<Instant> = None;
    loop {
        line.info.set_condition(Condition::Connecting);
        let problem = match open(&hub, at).await {
            Ok(mut stream) => {
                pause = FIRST_PAUSE;
                hub.lock().opened(at);
                let mut conversation = Conversation {
                    hub: &hub,
                    at,
                    sent: VecDeque::new(),
                    lost_since,
                };
                let ended = conversation.hold(&mut stream).await;
                lost_since = conversation.lost_since;
                match ended {
                    Ok(()) => break,
                    Err(problem) => {
                        lost_since = lost_since.or_else(|| Some(hub.clock.now()));
                        conversation.lose();
                        problem
                    }
                }
            }
            Err(problem) => {
                let problem = Lost::from(problem);
                line.info.set_problem(&problem);
                hub.lock().failed(at);
                problem
            }
        };
        let (database, shard) = (&*line.login.listener.database, &*line.login.listener.shard);
        tracing::warn!(database, shard, error = %problem, "the shared listener has no connection");
        line.info.set_problem(&problem);
        line.info.set_condition(Condition::Waiting);
        hub.progress.notify_waiters();
        if hub.lock().rest(at) {
            break;
        }
        // A LISTEN that comes now ends the pause.
        drop(tokio::time::timeout(pause, line.wake.notified()).await);
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    line.info.set_condition(Condition::Resting);
}

async fn open(hub: &Hub, at: usize) -> Result<Stream, ConnectError> {
    let line = &hub.lines[at];
    let login = &line.login;
    let proof = (login.prover.0)();
    let who = Who {
        user: &login.user,
        proof: proof.as_ref(),
    };
    let connected = backend::connect_as(
        &login.address,
        &login.database,
        who,
        &[
            ("application_name", "shardway listener"),
            ("client_encoding", "UTF8"),
        ],
        login.timeout,
        &login.tls,
    )
    .await?;
    line.info.connected(connected.pid, hub.clock.wall());
    Ok(Stream::new(connected.transport))
}

/// One connection of a line.
struct Conversation<'a> {
    hub: &'a Hub,
    at: usize,
    sent: VecDeque<Sent>,
    /// When the connection before this one was lost, until this one listens.
    lost_since: Option<Instant>,
}

impl Conversation<'_> {
    /// Talks until nobody wants anything, or the connection is lost.
    async fn hold(&mut self, stream: &mut Stream) -> Result<(), Lost> {
        let (hub, line) = (self.hub, &self.hub.lines[self.at]);
        let mut heard = hub.clock.now();
        loop {
            let idle = self.sent.is_empty();
            self.tell(stream);
            if idle && !self.sent.is_empty() {
                heard = hub.clock.now();
            }
            let patience = if self.sent.is_empty() {
                HEARTBEAT
            } else {
                line.login.timeout
            };
            let deadline = tokio::time::Instant::from_std(heard + patience);
            tokio::select! {
                read = poll_fn(|cx| exchange(stream, cx)) => {
                    read?;
                    heard = hub.clock.now();
                    self.hear(stream)?;
                }
                () = line.wake.notified() => {}
                () = tokio::time::sleep_until(deadline) => {
                    if !self.sent.is_empty() {
                        return Err(Lost::Silent);
                    }
                    if hub.lock().rest(self.at) {
                        return Ok(());
                    }
                    put_query(stream.out(), b"");
                    self.sent.push_back(Sent { listens: Vec::new(), waiting: Vec::new() });
                    heard = hub.clock.now();
                }
            }
        }
    }

    /// Asks the server for what is new, if anything is.
    fn tell(&mut self, stream: &mut Stream) {
        let (Changes { listen, unlisten }, waiting) = {
            let mut state = self.hub.lock();
            (state.changes(self.at), state.take_waiting(self.at))
        };
        if listen.is_empty() && unlisten.is_empty() && waiting.is_empty() {
            return;
        }
        let mut sql = String::new();
        for (verb, channels) in [("UNLISTEN", &unlisten), ("LISTEN", &listen)] {
            for channel in channels {
                put_command(&mut sql, verb, channel);
            }
        }
        put_query(stream.out(), sql.as_bytes());
        self.sent.push_back(Sent {
            listens: listen,
            waiting,
        });
    }

    /// Takes what has arrived.
    fn hear(&mut self, stream: &mut Stream) -> Result<(), Lost> {
        loop {
            let buffered = stream.buffered();
            let Some(header) = frame::backend(buffered)? else {
                return Ok(());
            };
            if header.size > LONGEST {
                return Err(Lost::Unexpected);
            }
            if buffered.len() < header.size {
                return Ok(());
            }
            let body = &buffered[HEADER..header.size];
            match header.tag {
                b'A' => self.notified(body)?,
                b'Z' => self.answered()?,
                b'E' => {
                    let message = notice::field(body, b'M').unwrap_or_default();
                    return Err(Lost::Said(String::from_utf8_lossy(message).into_owned()));
                }
                b'C' | b'I' | b'N' | b'S' => {}
                _ => return Err(Lost::Unexpected),
            }
            stream.consume(header.size);
        }
    }

    fn notified(&self, body: &[u8]) -> Result<(), Lost> {
        let unexpected = |_| Lost::Unexpected;
        let mut rest = Body::new(body);
        let backend = rest.u32().map_err(unexpected)?;
        let channel = rest.cstr().map_err(unexpected)?;
        rest.cstr().map_err(unexpected)?;
        self.hub.lines[self.at].info.notifications.increment();
        let state = self.hub.lock();
        let found = std::str::from_utf8(channel)
            .ok()
            .and_then(|channel| state.listeners(channel));
        let Some((channel, mailboxes)) = found else {
            // Given up meanwhile.
            return Ok(());
        };
        let notifier = state.notifier(self.at, backend);
        let mut frame = Vec::with_capacity(HEADER + body.len());
        put(&mut frame, b'A', |out| {
            out.extend_from_slice(&notifier.to_be_bytes());
            out.extend_from_slice(&body[4..]);
        });
        let notification = Arc::new(Notification {
            channel: Arc::clone(channel),
            frame: frame.into(),
        });
        for mailbox in mailboxes {
            mailbox.put(Mail::Notification(Arc::clone(&notification)));
        }
        Ok(())
    }

    /// A query of ours is answered.
    fn answered(&mut self) -> Result<(), Lost> {
        let Sent { listens, waiting } = self.sent.pop_front().ok_or(Lost::Unexpected)?;
        let line = &self.hub.lines[self.at];
        if !listens.is_empty() {
            let after = self.lost_since.take().map(|since| {
                let now = self.hub.clock.now();
                now.saturating_duration_since(since)
            });
            let mut state = self.hub.lock();
            for mailbox in state.acknowledged(self.at, listens) {
                mailbox.put(Mail::Restored {
                    shard: Arc::clone(&line.login.listener.shard),
                    after: after.unwrap_or_default(),
                });
            }
            drop(state);
            line.info.set_condition(Condition::Listening);
            self.hub.progress.notify_waiters();
        }
        for session in waiting {
            // A session that has left does not need to know.
            let _left = session.send(());
        }
        Ok(())
    }

    /// The connection is gone: whoever may miss something is told, and nobody waits for it any more.
    fn lose(self) {
        let line = &self.hub.lines[self.at];
        let mut state = self.hub.lock();
        let missing = state.lost(self.at);
        if !missing.is_empty() {
            line.info.gaps.increment();
        }
        for mailbox in missing {
            mailbox.put(Mail::Lost(Arc::clone(&line.login.listener.shard)));
        }
    }
}

/// What drives a line: should it panic, the line rests, and is driven anew by the next LISTEN.
struct Driver<'a> {
    hub: &'a Hub,
    at: usize,
}

impl Drop for Driver<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.hub.lock().ended(self.at);
        }
    }
}

/// Sends and reads as far as it goes; ready when something was read.
fn exchange(stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), Lost>> {
    if stream.unsent() > 0
        && let Poll::Ready(Err(_)) = stream.poll_flush(cx)
    {
        return Poll::Ready(Err(Lost::Closed));
    }
    stream.poll_fill(cx).map(|read| match read {
        Ok(0) | Err(_) => Err(Lost::Closed),
        Ok(_) => Ok(()),
    })
}
