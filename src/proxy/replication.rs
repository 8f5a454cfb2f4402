//! Replication connections: passed through, byte for byte, to the server of one shard.
//!
//! What must stay true: each has a backend of its own that no pool knows and nobody else ever gets; there are never more
//! to one shard than `pool.replication_size`; when one side ends the other is closed at once; a side that does not take
//! its bytes stops the reading of the other; nothing of ours is put within a message of the server.

use super::{
    Shared,
    cancel::Slot,
    database::Database,
    local::check_own,
    reply::{self, session as words},
    session::GOODBYE_PATIENCE,
};
use crate::{
    catalog::shard::ShardId,
    config::settings::User,
    metrics::sessions::{Registered, Wanted},
    net::{
        backend::ConnectError,
        stream::{HIGH_WATER, Stream},
    },
    pool::backend::Backend,
    protocol::replicating::Stand,
    wire::{
        backend::{Status, put_parameter_status, put_ready},
        frame::FrameError,
        frontend::put,
        notice::Words,
        startup::{Replication, Setting, as_options},
    },
};
use std::{
    collections::HashMap,
    future::{Future as _, poll_fn},
    pin::pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering::Relaxed},
    task::{Context, Poll},
};

/// What the client asked for in its startup packet.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) kind: Replication,
    pub(super) user: Arc<User>,
    pub(super) database: String,
    pub(super) settings: Vec<Setting>,
}

/// How many replication connections there are, by database and shard; a reload does not forget them.
#[derive(Debug, Default)]
pub struct Places {
    taken: Mutex<HashMap<(String, String), usize>>,
}

/// One of a shard's replication connections: given back by drop.
struct Place {
    shared: Arc<Shared>,
    key: (String, String),
}

impl Place {
    fn take(shared: &Arc<Shared>, database: &Database, shard: ShardId) -> Option<Self> {
        let key = (
            database.settings.name.clone(),
            database.shard_name(shard).to_owned(),
        );
        let mut taken = shared.replicating.lock();
        let count = taken.entry(key.clone()).or_default();
        if *count >= database.settings.pool.replication_size {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Self {
            shared: Arc::clone(shared),
            key,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.shared.replicating.lock();
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

impl Places {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a connection is over.
enum End {
    /// One side has closed: so is the other.
    Closed,
    /// The client is to be told why.
    Told(Words),
}

/// Serves a client that has logged in, to its end.
pub(super) async fn serve(
    mut client: Stream,
    asked: Asked,
    shared: &Arc<Shared>,
    info: &Registered,
) {
    let end = match open(asked, shared, info).await {
        Ok(mut passage) => {
            passage.welcome(&mut client);
            passage.run(&mut client).await
        }
        Err(refused) => End::Told(refused),
    };
    if let End::Told(words) = &end {
        words.put(client.out());
        if let Some(code) = reply::code_of(words) {
            shared.metrics.refusals.count(code);
        }
    }
    say_goodbye(&mut client).await;
}

/// Finds the shard and opens the connection to its server.
async fn open(asked: Asked, shared: &Arc<Shared>, info: &Registered) -> Result<Passage, Words> {
    let database = shared
        .database(&asked.database)
        .ok_or_else(|| words::no_such_database(&asked.database))?;
    let (shard, options) = read_settings(&asked, &database)?;
    let name = database.shard_name(shard).to_owned();
    let place = Place::take(shared, &database, shard).ok_or_else(|| {
        words::backends::too_many_replicating(&name, database.settings.pool.replication_size)
    })?;
    let backend = database
        .open_replication(&asked.user, shard, &asked.database, asked.kind, options)
        .await
        .map_err(|problem| refused(&name, &problem))?;
    let slot = shared.cancels.add(info.pid);
    slot.attach(&backend.target);
    info.set_active(shard.0, backend.target.pid);
    backend.info.set_leased(info.pid);
    let counters = shared
        .metrics
        .pool(&asked.database, &asked.user.name, &name);
    counters.client_logins.increment();
    counters.server_logins.increment();
    counters.server_assignments.increment();
    tracing::info!(user = asked.user.name, database = asked.database, shard = name, kind = ?asked.kind, "replication connection");
    Ok(Passage {
        cancel: Cancel {
            shared: Arc::clone(shared),
            pid: info.pid,
            _slot: slot,
        },
        info: Arc::clone(info),
        generation: shared.generation(),
        asked,
        shard: name,
        database,
        backend,
        stand: Stand::default(),
        counters,
        _place: place,
    })
}

/// The shard that is named, or the only one; and the settings that are the server's.
fn read_settings(asked: &Asked, database: &Database) -> Result<(ShardId, String), Words> {
    let shards = &database.snapshot.load().shards;
    let mut named = None;
    let mut settings = Vec::new();
    for (name, value) in &asked.settings {
        let (Ok(name), Ok(value)) = (std::str::from_utf8(name), std::str::from_utf8(value)) else {
            return Err(words::not_text().into());
        };
        let own = name.to_ascii_lowercase();
        if own.starts_with("shardway.") {
            check_own(&own, Some(value), shards).map_err(|notice| Words::from(notice).fatal())?;
            if own == "shardway.shard" {
                named = shards.iter().position(|shard| shard == value);
            }
        } else {
            settings.push((name, value));
        }
    }
    let only = (shards.len() == 1).then_some(0);
    let shard = named
        .or(only)
        .and_then(|shard| u16::try_from(shard).ok())
        .ok_or_else(|| words::backends::which_shard(&asked.database, shards))?;
    Ok((ShardId(shard), as_options(settings.into_iter())))
}

/// The server's own words, unless they are about Shardway's login: the client's password is not wrong.
fn refused(shard: &str, problem: &ConnectError) -> Words {
    if let ConnectError::Refused(said) = problem
        && !said.sqlstate().is_some_and(|code| code.starts_with(b"28"))
    {
        return Words::Servers(said.body().to_vec());
    }
    Words::from(words::backends::connect(shard, problem)).fatal()
}

/// Cancel requests reach the backend while this lives.
struct Cancel {
    shared: Arc<Shared>,
    pid: u32,
    _slot: Arc<Slot>,
}

impl Drop for Cancel {
    fn drop(&mut self) {
        self.shared.cancels.remove(self.pid);
    }
}

/// A client's way to its server.
struct Passage {
    cancel: Cancel,
    info: Arc<crate::metrics::sessions::SessionInfo>,
    asked: Asked,
    shard: String,
    database: Arc<Database>,
    generation: u64,
    backend: Box<Backend>,
    stand: Stand,
    counters: Arc<crate::metrics::PoolCounters>,
    _place: Place,
}

/// What a look at both sides has shown.
enum Seen {
    Client,
    Server,
    Broken(FrameError),
    /// Something else may have changed: bytes went on, or somebody wants the connection to end.
    Change,
}

impl Passage {
    /// Tells the client what the server has told: its settings; the cancel key is ours.
    fn welcome(&self, client: &mut Stream) {
        let out = client.out();
        for (name, value) in self.backend.reported.iter() {
            put_parameter_status(out, name, value);
        }
        put(out, b'K', |out| {
            out.extend_from_slice(&self.info.pid.to_be_bytes());
            out.extend_from_slice(self.info.key());
        });
        put_ready(out, Status::Idle);
    }

    async fn run(&mut self, client: &mut Stream) -> End {
        loop {
            if let Some(end) = self.is_to_end() {
                return end;
            }
            let seen = self.pass(client).await;
            self.count(client);
            match seen {
                Seen::Change => {}
                Seen::Client => {
                    // What it said last, Terminate for one, is still the server's to read.
                    say_goodbye(&mut self.backend.stream).await;
                    return End::Closed;
                }
                Seen::Server => return End::Closed,
                Seen::Broken(problem) => return End::Told(words::backend_broken(&problem).into()),
            }
        }
    }

    /// Whether somebody wants the connection to end, or its shard is not what it was.
    fn is_to_end(&mut self) -> Option<End> {
        let last_words = if self.stand.is_between_messages() {
            End::Told(words::shutting_down().into())
        } else {
            End::Closed
        };
        match self.info.wanted() {
            Wanted::EndNow => return Some(last_words),
            Wanted::EndWhenIdle if self.stand.may_end() => return Some(last_words),
            Wanted::EndWhenIdle | Wanted::Nothing => {}
        }
        let generation = self.cancel.shared.generation();
        if generation == self.generation {
            return None;
        }
        self.generation = generation;
        let database = self.cancel.shared.database(&self.asked.database);
        let address = |database: &Database| {
            let shards = &database.settings.shards;
            let shard = shards.iter().find(|shard| shard.name == self.shard)?;
            Some(shard.primary.clone())
        };
        let moved = database.is_none_or(|now| address(&now) != address(&self.database));
        moved.then_some(last_words)
    }

    /// Moves bytes in both directions until something has happened.
    async fn pass(&mut self, client: &mut Stream) -> Seen {
        let info = Arc::clone(&self.info);
        let mut asked = pin!(info.asked());
        let server = &mut self.backend.stream;
        let stand = &mut self.stand;
        poll_fn(|cx| {
            let mut moved = false;
            // Both are looked at before either ends it: a server that says goodbye is heard.
            let from_server = move_bytes(server, client, cx, |bytes| {
                moved = true;
                stand.handle_server(bytes)
            });
            let from_client = move_bytes(client, server, cx, |_| {
                moved = true;
                stand.handle_client();
                Ok(())
            });
            match (from_server, from_client) {
                (Moved::Broken(problem), _) | (_, Moved::Broken(problem)) => {
                    return Poll::Ready(Seen::Broken(problem));
                }
                (Moved::NoSource, _) | (_, Moved::NoTarget) => return Poll::Ready(Seen::Server),
                (_, Moved::NoSource) | (Moved::NoTarget, _) => return Poll::Ready(Seen::Client),
                (Moved::Pending, Moved::Pending) => {}
            }
            if asked.as_mut().poll(cx).is_ready() || moved {
                return Poll::Ready(Seen::Change);
            }
            Poll::Pending
        })
        .await
    }

    fn count(&mut self, client: &mut Stream) {
        let (received, sent) = client.totals();
        let more = |counted: &std::sync::atomic::AtomicU64, now: u64| {
            now.saturating_sub(counted.swap(now, Relaxed))
        };
        let received = more(&self.info.received_bytes, received);
        let sent = more(&self.info.sent_bytes, sent);
        self.counters.received_bytes.add(received);
        self.counters.sent_bytes.add(sent);
        self.info.set_last_request(self.cancel.shared.clock.now());
        client.relax(false);
        self.backend.stream.relax(false);
    }
}

/// How far bytes could be moved.
enum Moved {
    Pending,
    /// Where they come from has closed.
    NoSource,
    /// Where they go to has.
    NoTarget,
    Broken(FrameError),
}

/// Moves what has arrived on one side to the other, as far as that takes it, and hears of more.
fn move_bytes(
    from: &mut Stream,
    to: &mut Stream,
    cx: &mut Context<'_>,
    mut look: impl FnMut(&[u8]) -> Result<(), FrameError>,
) -> Moved {
    // A busy stream must not keep the other direction waiting.
    for _ in 0..ROUNDS {
        match to.poll_flush(cx) {
            Poll::Ready(Err(_)) => return Moved::NoTarget,
            Poll::Pending if to.unsent() >= HIGH_WATER => return Moved::Pending,
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match from.poll_fill(cx) {
            Poll::Pending => return Moved::Pending,
            Poll::Ready(Ok(0) | Err(_)) => return Moved::NoSource,
            Poll::Ready(Ok(_)) => {}
        }
        let arrived = from.buffered();
        if let Err(problem) = look(arrived) {
            return Moved::Broken(problem);
        }
        to.out().extend_from_slice(arrived);
        from.consume(arrived.len());
    }
    // Come again: neither side has been asked to wake us.
    cx.waker().wake_by_ref();
    Moved::Pending
}

/// Sends what is left, if it is taken soon, and closes.
async fn say_goodbye(stream: &mut Stream) {
    let flushed = async {
        if stream.flush().await.is_ok() {
            stream.shutdown().await;
        }
    };
    drop(tokio::time::timeout(GOODBYE_PATIENCE, flushed).await);
}

/// Pieces moved in one direction before the other has its turn.
const ROUNDS: usize = 8;
