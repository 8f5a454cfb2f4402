//! From a socket to a running session: logs the client in, finds its database, tells it the server's settings.

use super::{
    Shared, cancel,
    cursors::Cursors,
    database::Database,
    local::check_own,
    named::Named,
    reply::session as reply,
    session::{Defaults, End, Overridden, Phase, Rest, Session, told},
    several::snapshots,
};
use crate::{
    auth::scram::Proof,
    catalog::shard::ShardId,
    config::settings::{BackendProof, User},
    entropy,
    metrics::sessions::{CancelKeyLength, NewSession, Peer, Registered, Transport as Encryption},
    net::{
        login::{self, Login, LoginContext, Place},
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
        frame,
        frontend::put,
        notice::{self, Notice, Words},
        startup::Setting,
    },
};
use smallvec::SmallVec;
use std::{future::Future, sync::Arc};

/// Serves one connection from its first byte to its last.
pub fn serve(
    socket: Transport,
    place: Place,
    shared: Arc<Shared>,
    logins: Arc<LoginContext>,
) -> impl Future<Output = ()> + Send {
    // A box: what a login needs is not kept for the session's life.
    let begins = Box::pin(begin(socket, place, shared, logins));
    async move {
        let session = begins.await;
        if let Some(mut session) = session {
            session.run().await;
        }
    }
}

/// The session of a client, if it comes to one.
async fn begin(
    socket: Transport,
    place: Place,
    shared: Arc<Shared>,
    logins: Arc<LoginContext>,
) -> Option<Box<Session>> {
    match Box::pin(login::login(socket, place, &logins)).await {
        // Others may have entered since this one was accepted.
        Ok(Login::Session(entered)) if is_full(&shared) => {
            shared.metrics.process.turned_away.increment();
            Box::pin(tell_full(entered)).await;
        }
        Ok(Login::Session(entered)) => {
            drop(logins);
            return Box::pin(enter(entered, shared)).await;
        }
        Ok(Login::Cancel {
            pid,
            key,
            transport,
        }) => {
            Box::pin(cancel::carry_out(pid, &key, &shared)).await;
            drop(transport);
        }
        Ok(Login::Closed) => {}
        Err(problem) => {
            shared.metrics.process.login_failures.increment();
            tracing::info!(%problem, "login failed");
        }
    }
    None
}

/// Tells a client that there are too many; a cancel request passes, since it frees something.
pub async fn turn_away(
    socket: Transport,
    place: Place,
    shared: Arc<Shared>,
    logins: Arc<LoginContext>,
) {
    match Box::pin(login::login(socket, place, &logins)).await {
        Ok(Login::Cancel {
            pid,
            key,
            transport,
        }) => {
            Box::pin(cancel::carry_out(pid, &key, &shared)).await;
            drop(transport);
        }
        Ok(Login::Session(entered)) => tell_full(entered).await,
        Ok(Login::Closed) | Err(_) => {}
    }
}

fn is_full(shared: &Shared) -> bool {
    shared.metrics.sessions.count() >= shared.settings.load().server.max_clients
}

async fn tell_full(entered: login::Session) {
    let mut client = Stream::new(entered.transport);
    reply::too_many_clients().put(client.out());
    drop(client.flush().await);
}

/// The session of a client that has logged in, ready to run; none when there is nothing to run, or no more.
async fn enter(entered: login::Session, shared: Arc<Shared>) -> Option<Box<Session>> {
    let info = register(&entered, &shared)?;
    let client = Stream::new(entered.transport);
    if entered.database == login::CONSOLE && entered.replication.is_none() {
        super::console::serve(client, &entered.user, &shared, &info).await;
        return None;
    }
    if let Err(notice) = keep_shown(&entered.user, &entered.database, entered.shown, &shared) {
        farewell(client, &notice).await;
        return None;
    }
    if let Some(kind) = entered.replication {
        let asked = super::replication::Asked {
            kind,
            user: entered.user,
            database: entered.database,
            settings: entered.parameters,
        };
        super::replication::serve(client, asked, &shared, &info).await;
        return None;
    }
    let mut session = match Session::new(
        client,
        entered.user,
        &entered.database,
        info,
        Arc::clone(&shared),
    ) {
        Ok(session) => session,
        Err(refused) => {
            let (client, notice) = *refused;
            farewell(client, &notice).await;
            return None;
        }
    };
    session.tally.client_logins += 1;
    match session.welcome(entered.parameters).await {
        Ok(()) => Some(session),
        Err(end) => {
            session.finish(end).await;
            None
        }
    }
}

/// Shows the session to the console; none when its client is gone.
fn register(entered: &login::Session, shared: &Shared) -> Option<Registered> {
    let peer = match entered.transport.peer() {
        transport::Peer::Tcp(address) => Peer::Tcp(address),
        transport::Peer::Unix => Peer::Unix,
        transport::Peer::Gone => return None,
    };
    let tls = if entered.transport.is_encrypted() {
        Encryption::Tls
    } else {
        Encryption::Plain
    };
    let application_name = entered
        .parameters
        .iter()
        .rev()
        .find(|(name, _)| name == b"application_name")
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned());
    Some(shared.metrics.sessions.register(NewSession {
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
        replication: entered.replication,
        now: shared.clock.now(),
        wall: shared.clock.wall(),
    }))
}

/// Of what was said while the first backend was made ready, the client is told notices, and what is less only if it asked
/// for that: whoever had the backend before may have. Settings come whole, later.
fn keep_notices(out: &mut Vec<u8>, asks_for_more: bool) {
    let mut kept = Vec::new();
    let mut rest = out.as_slice();
    while let Ok(Some(header)) = frame::backend(rest) {
        let Some((one, more)) = rest.split_at_checked(header.size) else {
            break;
        };
        let severity = notice::field(&one[frame::HEADER..], b'V').unwrap_or_default();
        if header.tag == b'N' && (asks_for_more || matches!(severity, b"NOTICE" | b"WARNING")) {
            kept.extend_from_slice(one);
        }
        rest = more;
    }
    *out = kept;
}

/// Whether it arrives changes nothing: the session is over.
async fn farewell(mut client: Stream, notice: &Notice) {
    notice.put(client.out());
    drop(client.flush().await);
}

/// Keeps what the client has shown, to open backends with it.
///
/// # Errors
/// When that is what opens them and the client was let in without a proof: whoever shows nothing uses nothing that
/// another has shown.
fn keep_shown(
    user: &User,
    database: &str,
    shown: Option<Proof>,
    shared: &Shared,
) -> Result<(), Notice> {
    if user.backend_proof == BackendProof::Configured {
        return Ok(());
    }
    let shown = shown.ok_or_else(reply::backends::nothing_shown)?;
    if let Some(database) = shared.database(database) {
        let name = &database.settings.name;
        shared.keyring.put(name, &user.name, shown);
    }
    Ok(())
}

impl Session {
    #[expect(clippy::too_many_lines, reason = "one line for each field")]
    fn new(
        client: Stream,
        user: Arc<User>,
        asked: &str,
        info: Registered,
        shared: Arc<Shared>,
    ) -> Result<Box<Self>, Box<(Stream, Notice)>> {
        let generation = shared.generation();
        let Some(database) = shared.database(asked) else {
            return Err(Box::new((client, reply::no_such_database(asked))));
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
            client,
            info,
            cancel,
            shared,
            link: None,
            parked: Vec::new(),
            fan: None,
            scattered: None,
            cursors: Cursors::default(),
            copying: None,
            pinned: None,
            pools: Vec::new(),
            pipeline: Pipeline::default(),
            statements: Named::default(),
            unconfirmed: SmallVec::new(),
            closed: SmallVec::new(),
            pending: SmallVec::new(),
            portals: Named::default(),
            unnamed: None,
            bound: None,
            half_described: None,
            parameters: Parameters::default(),
            defaults: Arc::default(),
            context: Arc::new(Context {
                search_path: Vec::new(),
                ..Context::default()
            }),
            context_stale: true,
            overridden: Overridden::new(),
            deferred: None,
            for_batch: false,
            script: None,
            several: super::several::Several::default(),
            ticket: None,
            began_on: None,
            kept: None,
            again: None,
            listening: None,
            welcoming: false,
            reported: Reported::default(),
            phase: Phase::Idle,
            skip: false,
            sure: false,
            failed: false,
            running: None,
            hidden: 0,
            unsettled: false,
            drew: super::numbers::Drew::default(),
            any,
            looking: super::oids::Looking::default(),
            client_rest: Rest::default(),
            backend_rest: Rest::default(),
            starved: false,
            flushed: false,
            client_closed: false,
            tally: super::counting::Counted::default(),
            marks,
            scratch: None,
            renamed: None,
        }))
    }

    /// Tells a new client what PostgreSQL tells: its settings as the server has them, a cancel key, and ReadyForQuery.
    async fn welcome(&mut self, settings: Vec<Setting>) -> Result<(), End> {
        let base = self.startup_settings(settings)?;
        let asks_for_more = matches!(base.get("client_min_messages"), Some(Value::Config(level))
            if !matches!(level.to_ascii_lowercase().as_str(), "notice" | "warning" | "error"));
        if asks_for_more {
            // What is said while the settings of whoever was there before are taken back is nobody's.
            self.greet().await?;
        }
        self.parameters = Parameters::new(base);
        self.welcoming = true;
        self.greet().await?;
        self.welcoming = false;
        keep_notices(self.client.out(), asks_for_more);
        if let Some(link) = &self.link {
            self.reported = link.lease.reported.clone();
            self.reported.share(&self.database.reports);
        }
        let mut defaults = Defaults {
            reported: self.reported.of_all(),
            ..Defaults::default()
        };
        if !self.snapshot.is_single() {
            self.learn_defaults(&mut defaults).await?;
        }
        self.defaults = self.database.defaults.share(Arc::new(defaults));
        if self.mode == crate::config::settings::PoolMode::Transaction {
            self.unlink().await?;
        }
        let key = self.info.key().to_vec();
        let pid = self.info.pid;
        let out = self.client.out();
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

    /// Gets a first backend, which is told the settings as they are known so far.
    async fn greet(&mut self) -> Result<(), End> {
        let reached = self.link_to(self.any, super::link::Hold::Loose).await?;
        reached.map_err(|words| End::Told(Box::new(words.fatal())))
    }

    /// Asks for the settings that routing depends on and that the role or the database may have set. The client's own
    /// search_path is in force: nothing is named without its schema, no operator either.
    async fn learn_defaults(&mut self, defaults: &mut Defaults) -> Result<(), End> {
        let asked = self
            .ask(b"SELECT pg_catalog.concat(pg_catalog.current_setting('search_path'), E'\\n', pg_catalog.current_setting('default_transaction_isolation'))")
            .await?;
        let told = asked.map_err(|words| End::Told(Box::new(words.fatal())))?;
        if let Some((path, isolation)) = told.as_deref().and_then(|told| told.rsplit_once('\n')) {
            defaults.search_path = Some(path.to_owned());
            defaults.isolation = Some(isolation.to_owned());
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

/// Where a session's catalog queries go: sessions are spread over the shards, each stays on one; where one shard has tables
/// that the others have not, it is that one, as their catalogs do not show them.
fn any_shard(database: &Arc<Database>, pid: u32) -> ShardId {
    if let Some(shard) = snapshots::alone_complete(&database.snapshot.load()) {
        return shard;
    }
    let snapshot = database.snapshot.load();
    let answering = snapshot.answering();
    let at = pid as usize % answering.len().max(1);
    answering.iter().nth(at).unwrap_or(snapshot.home)
}

/// A number that nobody outside knows, to seed hashes with.
#[must_use]
pub fn secret_seed() -> u64 {
    u64::from_le_bytes(entropy::bytes::<8>())
}
