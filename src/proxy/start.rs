//! From a socket to a running session: logs the client in, finds its database, tells it the server's settings.

use super::{
    Shared,
    database::Database,
    local::check_own,
    reply::session as reply,
    session::{Defaults, End, Phase, Rest, Session, told},
};
use crate::{
    catalog::shard::ShardId,
    config::settings::User,
    entropy,
    metrics::sessions::{CancelKeyLength, NewSession, Peer, Transport as Encryption},
    net::{
        login::{self, Login, LoginContext},
        stream::Stream,
        transport::{self, Transport},
    },
    plan::Context,
    pool::backend::Reported,
    protocol::{
        parameters::{Map, Parameters, Value},
        pipeline::Pipeline,
    },
    wire::{
        backend::{Status, put_parameter_status, put_ready},
        frontend::put,
        notice::{Notice, Words},
        startup::Setting,
    },
};
use smallvec::SmallVec;
use std::{collections::HashMap, sync::Arc};

/// Serves one connection from its first byte to its last.
pub async fn serve(socket: Transport, shared: Arc<Shared>, logins: Arc<LoginContext>) {
    match login::login(socket, &logins).await {
        Ok(Login::Session(entered)) => enter(entered, shared).await,
        Ok(Login::Cancel {
            pid,
            key,
            transport,
        }) => {
            cancel(pid, &key, &shared).await;
            drop(transport);
        }
        Ok(Login::Closed) => {}
        Err(problem) => {
            shared.metrics.process.login_failures.increment();
            tracing::info!(%problem, "login failed");
        }
    }
}

/// Tells a client that there are too many; a cancel request passes, since it frees something.
pub async fn turn_away(socket: Transport, shared: Arc<Shared>, logins: Arc<LoginContext>) {
    match login::login(socket, &logins).await {
        Ok(Login::Cancel {
            pid,
            key,
            transport,
        }) => {
            cancel(pid, &key, &shared).await;
            drop(transport);
        }
        Ok(Login::Session(entered)) => {
            let mut client = Stream::new(entered.transport);
            reply::too_many_clients().put(client.out());
            drop(client.flush().await);
        }
        Ok(Login::Closed) | Err(_) => {}
    }
}

/// Carries out a CancelRequest, if it names one of our sessions with its key. It is never answered.
async fn cancel(pid: u32, key: &[u8], shared: &Arc<Shared>) {
    shared.metrics.process.cancels.increment();
    if shared.metrics.sessions.find_cancel(pid, key).is_none() {
        return;
    }
    shared.metrics.process.cancels_matched.increment();
    let Some(in_flight) = shared.cancels.get(pid).and_then(|slot| slot.cancel()) else {
        return;
    };
    let target = &in_flight.target;
    let sent = crate::net::backend::cancel(
        &target.address,
        target.pid,
        &target.key,
        super::session::CANCEL_PATIENCE,
        &shared.tls,
    )
    .await;
    if let Err(problem) = sent {
        tracing::warn!(%problem, "a cancel request did not reach the server");
    }
}

async fn enter(entered: login::Session, shared: Arc<Shared>) {
    let peer = match entered.transport.peer() {
        transport::Peer::Tcp(address) => Peer::Tcp(address),
        transport::Peer::Unix => Peer::Unix,
        transport::Peer::Gone => return,
    };
    let tls = if entered.transport.is_encrypted() {
        Encryption::Tls
    } else {
        Encryption::Plain
    };
    let client = Stream::new(entered.transport);
    let application_name = entered
        .parameters
        .iter()
        .rev()
        .find(|(name, _)| name == b"application_name")
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned());
    let info = shared.metrics.sessions.register(NewSession {
        user: Arc::from(entered.user.name.as_str()),
        database: Arc::from(entered.database.as_str()),
        peer,
        application_name: application_name.unwrap_or_default(),
        tls,
        protocol: if entered.minor >= 2 {
            CancelKeyLength::ThirtyTwo
        } else {
            CancelKeyLength::Four
        },
        now: shared.clock.now(),
        wall: shared.clock.wall(),
    });
    if entered.database == login::CONSOLE {
        super::console::serve(client, &entered.user, &shared, &info).await;
        return;
    }
    let mut session = match Session::new(
        client,
        entered.user,
        entered.database,
        info,
        Arc::clone(&shared),
    ) {
        Ok(session) => session,
        Err(refused) => {
            let (mut client, notice) = *refused;
            notice.put(client.out());
            drop(client.flush().await);
            return;
        }
    };
    session.tally.client_logins += 1;
    match session.welcome(entered.parameters).await {
        Ok(()) => session.run().await,
        Err(end) => session.finish(end).await,
    }
}

impl Session {
    fn new(
        client: Stream,
        user: Arc<User>,
        asked: String,
        info: crate::metrics::sessions::Registered,
        shared: Arc<Shared>,
    ) -> Result<Box<Self>, Box<(Stream, Notice)>> {
        let generation = shared.generation();
        let Some(database) = shared.database(&asked) else {
            return Err(Box::new((client, reply::no_such_database(&asked))));
        };
        let snapshot = database.snapshot.load_full();
        let cancel = shared.cancels.add(info.pid);
        let any = any_shard(&database, info.pid);
        let marks = super::counting::Marks::new(shared.clock.now());
        Ok(Box::new(Self {
            mode: database.mode(&user),
            database,
            snapshot,
            generation,
            user,
            asked,
            client,
            info,
            cancel,
            shared,
            link: None,
            parked: Vec::new(),
            pinned: None,
            pools: Vec::new(),
            pipeline: Pipeline::default(),
            statements: HashMap::default(),
            unconfirmed: SmallVec::new(),
            closed: SmallVec::new(),
            pending: SmallVec::new(),
            portals: HashMap::default(),
            unnamed: None,
            bound: None,
            half_described: None,
            parameters: Parameters::default(),
            defaults: Defaults::default(),
            context: Arc::new(Context {
                search_path: Vec::new(),
                standard_conforming_strings: true,
                utf8: true,
                transform_null_equals: false,
                pinned: None,
                digest: 0,
            }),
            context_stale: true,
            overridden: HashMap::new(),
            deferred: None,
            reported: Reported::default(),
            phase: Phase::Idle,
            skip: false,
            failed: false,
            running: None,
            unsettled: false,
            any,
            client_rest: Rest::default(),
            backend_rest: Rest::default(),
            starved: false,
            flushed: false,
            client_closed: false,
            tally: crate::metrics::counters::Tally::default(),
            marks,
            scratch: crate::plan::cache::Scratch::default(),
        }))
    }

    /// Tells a new client what PostgreSQL tells: its settings as the server has them, a cancel key, and ReadyForQuery.
    async fn welcome(&mut self, settings: Vec<Setting>) -> Result<(), End> {
        let base = self.startup_settings(settings)?;
        self.parameters = Parameters::new(base);
        let reached = self.link_to(self.any, super::link::Hold::Loose).await?;
        if let Err(words) = reached {
            return Err(End::Told(Box::new(words.fatal())));
        }
        if let Some(link) = &self.link {
            self.reported = link.lease.reported.clone();
            self.defaults.reported = link.lease.reported.clone();
        }
        if !self.snapshot.is_single() {
            self.learn_defaults().await?;
        }
        if self.mode == crate::config::settings::PoolMode::Transaction {
            self.unlink().await?;
        }
        let key = self.info.key().to_vec();
        let pid = self.info.pid;
        let out = self.client.out();
        out.clear();
        for (name, value) in self.reported.iter() {
            put_parameter_status(out, name, value);
        }
        put(out, b'K', |out| {
            out.extend_from_slice(&pid.to_be_bytes());
            out.extend_from_slice(&key);
        });
        put_ready(out, Status::Idle);
        Ok(())
    }

    /// Asks for the settings that routing depends on and that the role or the database may have set.
    async fn learn_defaults(&mut self) -> Result<(), End> {
        let asked = self
            .ask(b"SELECT pg_catalog.current_setting('search_path') || E'\\n' || pg_catalog.current_setting('default_transaction_isolation')")
            .await?;
        let told = asked.map_err(|words| End::Told(Box::new(words.fatal())))?;
        if let Some((path, isolation)) = told.as_deref().and_then(|told| told.rsplit_once('\n')) {
            self.defaults.search_path = Some(path.to_owned());
            self.defaults.isolation = Some(isolation.to_owned());
        }
        Ok(())
    }

    /// The settings of the startup packet, without our own.
    fn startup_settings(&mut self, settings: Vec<Setting>) -> Result<Map, End> {
        let mut base = Map::new();
        for (name, value) in settings {
            let (Ok(name), Ok(value)) = (String::from_utf8(name), String::from_utf8(value)) else {
                return Err(told(reply::not_text()));
            };
            let name = name.to_ascii_lowercase();
            if name == "replication" {
                if matches!(value.as_str(), "false" | "off" | "no" | "0") {
                    continue;
                }
                return Err(told(reply::no_replication()));
            }
            if name.starts_with("shardway.") {
                check_own(&name, Some(&value), &self.snapshot.shards)
                    .map_err(|notice| End::Told(Box::new(Words::from(notice).fatal())))?;
                self.overridden.insert(name, value);
                continue;
            }
            base.insert(name, Value::Config(value));
        }
        Ok(base)
    }
}

/// Where a session's catalog queries go: sessions are spread over the shards, each stays on one.
fn any_shard(database: &Arc<Database>, pid: u32) -> ShardId {
    let count = database.settings.shards.len().max(1);
    ShardId(u16::try_from(pid as usize % count).unwrap_or(0))
}

/// A number that nobody outside knows, to seed hashes with.
#[must_use]
pub fn secret_seed() -> u64 {
    u64::from_le_bytes(entropy::bytes::<8>())
}
