//! Who is connected: every session and every backend registers here and leaves by drop. The console, cancel requests
//! and the drain read it.
//!
//! What must stay true: a session's number is its alone while it lives; a cancel needs the whole key; nothing on the way
//! of a message takes a lock (states are atomics, texts are locked only where they change, once per SET or login).

use crate::{
    clock::{Duration, Instant, SystemTime},
    entropy,
    wire::{cancel_key, startup::Replication},
};
use smallvec::SmallVec;
use std::{
    collections::HashMap,
    fmt,
    future::poll_fn,
    ops::Deref,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};
use subtle::ConstantTimeEq;

/// Every session of the process.
#[derive(Debug, Default)]
pub struct Sessions {
    /// What every session is asked, those that come later included.
    wanted: AtomicU8,
    /// The proxy's own number among its peers; 0: none.
    proxy: AtomicU8,
    by_pid: RwLock<HashMap<u32, Arc<SessionInfo>, foldhash::fast::RandomState>>,
}

/// What a session tells when it registers, after it has authenticated.
#[derive(Debug)]
pub struct NewSession {
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub peer: Peer,
    pub application_name: String,
    pub tls: Transport,
    pub protocol: CancelKeyLength,
    /// What its startup packet says; `None`: an ordinary connection.
    pub replication: Option<Replication>,
    /// The session's birth, monotonic and by the wall clock.
    pub now: Instant,
    pub wall: SystemTime,
}

/// Where a connection comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(std::net::SocketAddr),
    Unix,
}

/// Whether a connection is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Plain,
    Tls,
}

/// How long a session's cancel key is: 4 bytes with protocol 3.0, 32 with 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CancelKeyLength {
    Four,
    ThirtyTwo,
}

/// What others may know of a session, and how they reach it.
pub struct SessionInfo {
    /// What BackendKeyData names; unique among live sessions, never 0.
    pub pid: u32,
    key: SmallVec<[u8; 32]>,
    pub user: Arc<str>,
    pub database: Arc<str>,
    pub peer: Peer,
    pub tls: Transport,
    pub replication: Option<Replication>,
    pub connected: Instant,
    pub connected_wall: SystemTime,
    application_name: Mutex<String>,
    state: AtomicU8,
    transaction: AtomicBool,
    /// Microseconds after `connected`, plus one; 0: not waiting.
    waiting_since: AtomicU64,
    /// Microseconds after `connected` at the last request.
    last_request: AtomicU64,
    backend_pid: AtomicU32,
    /// Shard number plus one; 0: no backend.
    backend_shard: AtomicU32,
    prepared: AtomicU32,
    pub received_bytes: AtomicU64,
    pub sent_bytes: AtomicU64,
    pub queries: AtomicU64,
    pub transactions: AtomicU64,
    pin: Mutex<Option<&'static str>>,
    wanted: AtomicU8,
    /// Whether it is to give back what only work needs; and the request, as `last_request`, after which it did so last.
    thinks_long: AtomicBool,
    given_back_after: AtomicU64,
    told: AtomicBool,
    /// The session's own task, while it waits.
    waits: Mutex<Option<Waker>>,
}

/// How long a client has said nothing when its session gives back what only work needs.
const LONG: Duration = Duration::from_secs(1);

/// What a session does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionState {
    /// Holds no backend.
    Idle,
    /// Holds a backend.
    Active,
    /// In the queue for a backend.
    Waiting,
    /// At the gate, while keys change their owner.
    Held,
}

/// What a session is asked to do by others; grows only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Wanted {
    Nothing,
    /// End with 57P01 once no transaction is open: a drain.
    EndWhenIdle,
    /// End with 57P01 now: KILL, or the drain's deadline.
    EndNow,
}

/// A session's place in the registry: leaves by drop. Derefs to its [`SessionInfo`].
#[derive(Debug)]
pub struct Registered {
    info: Arc<SessionInfo>,
    sessions: Arc<Sessions>,
}

impl Sessions {
    /// Numbers sessions as those of this proxy from now on.
    pub fn set_proxy(&self, number: Option<u8>) {
        self.proxy.store(number.unwrap_or(0), Relaxed);
    }

    /// The proxy's own number among its peers.
    #[must_use]
    pub fn proxy(&self) -> Option<u8> {
        Some(self.proxy.load(Relaxed)).filter(|number| *number != 0)
    }

    /// Enters a session with a fresh number and key.
    #[must_use]
    pub fn register(self: &Arc<Self>, new: NewSession) -> Registered {
        let mut by_pid = self.by_pid.write().unwrap_or_else(PoisonError::into_inner);
        let pid = loop {
            // Above every pid of a server, so that a notification of a backend is never taken for a session's own.
            let random = u32::from_be_bytes(entropy::bytes::<4>());
            let pid = cancel_key::number(self.proxy(), random);
            if pid > LARGEST_PROCESS && !by_pid.contains_key(&pid) {
                break pid;
            }
        };
        let info = Arc::new(SessionInfo::new(pid, new));
        // Read under the lock that `end_all` takes after it has written: no session slips between.
        info.wanted.store(self.wanted.load(Relaxed), Relaxed);
        by_pid.insert(pid, Arc::clone(&info));
        Registered {
            info,
            sessions: Arc::clone(self),
        }
    }

    /// The session that a CancelRequest means; `None` unless the whole key fits. Compares in constant time.
    #[must_use]
    pub fn find_cancel(&self, pid: u32, key: &[u8]) -> Option<Arc<SessionInfo>> {
        let info = self.get(pid)?;
        bool::from(info.key.as_slice().ct_eq(key)).then_some(info)
    }

    /// The session with this number.
    #[must_use]
    pub fn get(&self, pid: u32) -> Option<Arc<SessionInfo>> {
        self.by_pid
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&pid)
            .cloned()
    }

    /// Every session, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<SessionInfo>> {
        let by_pid = self.by_pid.read().unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = by_pid.values().cloned().collect();
        all.sort_by_key(|info| (info.connected, info.pid));
        all
    }

    /// How many sessions there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.by_pid
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .len()
    }

    /// Tells sessions whose clients have asked nothing for long, once each time.
    pub fn maintain(&self, now: Instant) {
        let by_pid = self.by_pid.read().unwrap_or_else(PoisonError::into_inner);
        for info in by_pid.values() {
            info.tell_long(now);
        }
    }

    /// Asks every session to end, also those that register from now on: they read [`SessionInfo::wanted`] at their start.
    pub fn end_all(&self, wanted: Wanted) {
        self.wanted.fetch_max(wanted as u8, Relaxed);
        for info in self.list() {
            info.ask(wanted);
        }
    }
}

impl Deref for Registered {
    type Target = Arc<SessionInfo>;

    fn deref(&self) -> &Arc<SessionInfo> {
        &self.info
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.sessions
            .by_pid
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.info.pid);
    }
}

impl SessionInfo {
    fn new(pid: u32, new: NewSession) -> Self {
        let key = match new.protocol {
            CancelKeyLength::Four => SmallVec::from_slice(&entropy::bytes::<4>()),
            CancelKeyLength::ThirtyTwo => SmallVec::from_slice(&entropy::bytes::<32>()),
        };
        Self {
            pid,
            key,
            user: new.user,
            database: new.database,
            peer: new.peer,
            tls: new.tls,
            replication: new.replication,
            connected: new.now,
            connected_wall: new.wall,
            application_name: Mutex::new(new.application_name),
            state: AtomicU8::new(0),
            transaction: AtomicBool::new(false),
            waiting_since: AtomicU64::new(0),
            last_request: AtomicU64::new(0),
            backend_pid: AtomicU32::new(0),
            backend_shard: AtomicU32::new(0),
            prepared: AtomicU32::new(0),
            received_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            queries: AtomicU64::new(0),
            transactions: AtomicU64::new(0),
            pin: Mutex::new(None),
            wanted: AtomicU8::new(0),
            thinks_long: AtomicBool::new(false),
            given_back_after: AtomicU64::new(u64::MAX),
            told: AtomicBool::new(false),
            waits: Mutex::new(None),
        }
    }

    /// The key that BackendKeyData sends: 4 or 32 bytes.
    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.key
    }

    /// The session holds no backend.
    pub fn set_idle(&self) {
        self.state.store(0, Relaxed);
        self.waiting_since.store(0, Relaxed);
        self.backend_pid.store(0, Relaxed);
        self.backend_shard.store(0, Relaxed);
    }

    /// The session holds this backend.
    pub fn set_active(&self, shard: u16, backend_pid: u32) {
        self.state.store(1, Relaxed);
        self.waiting_since.store(0, Relaxed);
        self.backend_pid.store(backend_pid, Relaxed);
        self.backend_shard.store(u32::from(shard) + 1, Relaxed);
    }

    /// The session waits for a backend since `now`.
    pub fn set_waiting(&self, now: Instant) {
        self.waiting_since.store(self.micros_at(now) + 1, Relaxed);
        self.state.store(2, Relaxed);
    }

    /// The session waits at the gate since `now`.
    pub fn set_held(&self, now: Instant) {
        self.waiting_since.store(self.micros_at(now) + 1, Relaxed);
        self.state.store(3, Relaxed);
    }

    /// What the session does now.
    #[must_use]
    pub fn state(&self) -> SessionState {
        match self.state.load(Relaxed) {
            0 => SessionState::Idle,
            1 => SessionState::Active,
            2 => SessionState::Waiting,
            _ => SessionState::Held,
        }
    }

    /// Whether a transaction block is open.
    pub fn set_in_transaction(&self, open: bool) {
        self.transaction.store(open, Relaxed);
    }

    /// Whether a transaction block is open.
    #[must_use]
    pub fn in_transaction(&self) -> bool {
        self.transaction.load(Relaxed)
    }

    /// How long the session has waited for a backend; `None` when it does not wait.
    #[must_use]
    pub fn waited(&self, now: Instant) -> Option<Duration> {
        let since = self.waiting_since.load(Relaxed).checked_sub(1)?;
        Some(
            now.saturating_duration_since(self.connected)
                .saturating_sub(Duration::from_micros(since)),
        )
    }

    /// Notes a request; costs one store.
    pub fn set_last_request(&self, now: Instant) {
        self.last_request.store(self.micros_at(now), Relaxed);
    }

    /// The last request's wall time.
    #[must_use]
    pub fn last_request_wall(&self) -> SystemTime {
        self.connected_wall + Duration::from_micros(self.last_request.load(Relaxed))
    }

    /// The backend that the session holds: its shard's number and its pid.
    #[must_use]
    pub fn backend(&self) -> Option<(u16, u32)> {
        let shard = self.backend_shard.load(Relaxed).checked_sub(1)?;
        Some((u16::try_from(shard).ok()?, self.backend_pid.load(Relaxed)))
    }

    /// How many prepared statements the session has.
    pub fn set_prepared(&self, count: usize) {
        self.prepared
            .store(u32::try_from(count).unwrap_or(u32::MAX), Relaxed);
    }

    /// How many prepared statements the session has.
    #[must_use]
    pub fn prepared(&self) -> u32 {
        self.prepared.load(Relaxed)
    }

    /// Why the session keeps its backend between transactions; `None`: it does not.
    pub fn set_pin(&self, reason: Option<&'static str>) {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }

    /// Why the session keeps its backend between transactions.
    #[must_use]
    pub fn pin(&self) -> Option<&'static str> {
        *self.pin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets what the client calls itself.
    pub fn set_application_name(&self, name: &str) {
        let mut held = self
            .application_name
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        name.clone_into(&mut held);
    }

    /// What the client calls itself.
    #[must_use]
    pub fn application_name(&self) -> String {
        self.application_name
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Asks the session to end; a weaker wish never replaces a stronger one.
    pub fn ask(&self, wanted: Wanted) {
        self.wanted.fetch_max(wanted as u8, Relaxed);
        self.tell();
    }

    /// What the session is asked to do; one load.
    #[must_use]
    pub fn wanted(&self) -> Wanted {
        match self.wanted.load(Relaxed) {
            0 => Wanted::Nothing,
            1 => Wanted::EndWhenIdle,
            _ => Wanted::EndNow,
        }
    }

    fn tell_long(&self, now: Instant) {
        let last = self.last_request.load(Relaxed);
        let long = u64::try_from(LONG.as_micros()).unwrap_or(u64::MAX);
        let is_long = self.micros_at(now).saturating_sub(last) >= long;
        if is_long
            && self.given_back_after.load(Relaxed) != last
            && !self.thinks_long.swap(true, Relaxed)
        {
            self.tell();
        }
    }

    /// Whether the session is to give back what only work needs; one load.
    #[must_use]
    pub fn thinks_long(&self) -> bool {
        self.thinks_long.load(Relaxed)
    }

    /// It has.
    pub fn has_given_back(&self) {
        let last = self.last_request.load(Relaxed);
        self.given_back_after.store(last, Relaxed);
        self.thinks_long.store(false, Relaxed);
    }

    /// Resolves when the session was told something, also when it was before; only the session's own task waits here.
    pub async fn asked(&self) {
        poll_fn(|cx| self.poll_asked(cx)).await;
    }

    /// As [`SessionInfo::asked`], for who waits for more than that; keeps nothing between calls.
    pub fn poll_asked(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        if self.told.swap(false, Relaxed) {
            return Poll::Ready(());
        }
        match &mut *waits {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waits = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn tell(&self) {
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock: who looks afterwards sees it, who waits already is woken.
        self.told.store(true, Relaxed);
        let waker = waits.take();
        drop(waits);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn micros_at(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.connected).as_micros()).unwrap_or(u64::MAX)
    }
}

impl fmt::Debug for SessionInfo {
    /// Leaves the key out.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionInfo")
            .field("pid", &self.pid)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

/// Every backend of the process.
#[derive(Debug, Default)]
pub struct Backends {
    next: AtomicU64,
    by_number: RwLock<HashMap<u64, Arc<BackendInfo>, foldhash::fast::RandomState>>,
}

/// What a backend tells when its connection begins.
#[derive(Clone, Debug)]
pub struct NewBackend {
    pub database: Arc<str>,
    /// As whom the backend is opened.
    pub user: Arc<str>,
    pub shard: Arc<str>,
    /// Host and port as the configuration gives them.
    pub host: Arc<str>,
    pub port: u16,
    pub replication: Option<Replication>,
    pub now: Instant,
    pub wall: SystemTime,
}

/// What others may know of a backend.
#[derive(Debug)]
pub struct BackendInfo {
    /// Numbers backends in order of opening, from 1.
    pub number: u64,
    pub database: Arc<str>,
    pub user: Arc<str>,
    pub shard: Arc<str>,
    pub host: Arc<str>,
    pub port: u16,
    pub replication: Option<Replication>,
    pub connected: Instant,
    pub connected_wall: SystemTime,
    state: AtomicU8,
    tls: AtomicBool,
    pid: AtomicU32,
    session: AtomicU32,
    prepared: AtomicU32,
}

/// What a backend does now; PgBouncer's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Connecting or authenticating.
    Login,
    /// Free.
    Idle,
    /// Leased to a session.
    Active,
    /// Given back, being reset.
    Used,
    /// Will be closed: broken, expired, or a cancel is under way.
    Closing,
}

/// A backend's place in the registry: leaves by drop. Derefs to its [`BackendInfo`].
#[derive(Debug)]
pub struct RegisteredBackend {
    info: Arc<BackendInfo>,
    backends: Arc<Backends>,
}

impl Backends {
    /// Enters a backend in state login.
    #[must_use]
    pub fn register(self: &Arc<Self>, new: NewBackend) -> RegisteredBackend {
        let number = self.next.fetch_add(1, Relaxed) + 1;
        let info = Arc::new(BackendInfo {
            number,
            database: new.database,
            user: new.user,
            shard: new.shard,
            host: new.host,
            port: new.port,
            replication: new.replication,
            connected: new.now,
            connected_wall: new.wall,
            state: AtomicU8::new(0),
            tls: AtomicBool::new(false),
            pid: AtomicU32::new(0),
            session: AtomicU32::new(0),
            prepared: AtomicU32::new(0),
        });
        self.by_number
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(number, Arc::clone(&info));
        RegisteredBackend {
            info,
            backends: Arc::clone(self),
        }
    }

    /// Every backend, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<BackendInfo>> {
        let by_number = self
            .by_number
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<_> = by_number.values().cloned().collect();
        all.sort_by_key(|info| info.number);
        all
    }
}

impl Deref for RegisteredBackend {
    type Target = Arc<BackendInfo>;

    fn deref(&self) -> &Arc<BackendInfo> {
        &self.info
    }
}

impl Drop for RegisteredBackend {
    fn drop(&mut self) {
        self.backends
            .by_number
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.info.number);
    }
}

impl BackendInfo {
    /// The backend is authenticated and free.
    pub fn set_connected(&self, pid: u32, tls: Transport) {
        self.pid.store(pid, Relaxed);
        self.tls.store(tls == Transport::Tls, Relaxed);
        self.set_state(BackendState::Idle);
    }

    /// Leased to the session with this number.
    pub fn set_leased(&self, session_pid: u32) {
        self.session.store(session_pid, Relaxed);
        self.set_state(BackendState::Active);
    }

    /// Any state but active, which [`BackendInfo::set_leased`] enters.
    pub fn set_state(&self, state: BackendState) {
        if state != BackendState::Active {
            self.session.store(0, Relaxed);
        }
        self.state.store(state as u8, Relaxed);
    }

    /// What the backend does now.
    #[must_use]
    pub fn state(&self) -> BackendState {
        match self.state.load(Relaxed) {
            0 => BackendState::Login,
            1 => BackendState::Idle,
            2 => BackendState::Active,
            3 => BackendState::Used,
            _ => BackendState::Closing,
        }
    }

    /// The server process; 0 before it has told.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid.load(Relaxed)
    }

    /// Whether the connection is encrypted.
    #[must_use]
    pub fn tls(&self) -> Transport {
        if self.tls.load(Relaxed) {
            Transport::Tls
        } else {
            Transport::Plain
        }
    }

    /// The session that holds the backend.
    #[must_use]
    pub fn session(&self) -> Option<u32> {
        Some(self.session.load(Relaxed)).filter(|pid| *pid != 0)
    }

    /// How many prepared statements the backend holds.
    pub fn set_prepared(&self, count: usize) {
        self.prepared
            .store(u32::try_from(count).unwrap_or(u32::MAX), Relaxed);
    }

    /// How many prepared statements the backend holds.
    #[must_use]
    pub fn prepared(&self) -> u32 {
        self.prepared.load(Relaxed)
    }
}

/// Linux numbers no process higher (`PID_MAX_LIMIT`).
const LARGEST_PROCESS: u32 = 1 << 22;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    fn new_session(protocol: CancelKeyLength) -> NewSession {
        NewSession {
            user: "u".into(),
            database: "d".into(),
            peer: Peer::Unix,
            application_name: String::new(),
            tls: Transport::Plain,
            protocol,
            replication: None,
            now: Clock.now(),
            wall: Clock.wall(),
        }
    }

    #[test]
    fn a_cancel_needs_the_whole_key_of_a_live_session() {
        let sessions = Arc::new(Sessions::default());
        for (protocol, length) in [(CancelKeyLength::Four, 4), (CancelKeyLength::ThirtyTwo, 32)] {
            let session = sessions.register(new_session(protocol));
            let (pid, key) = (session.pid, session.key().to_vec());
            assert_eq!(key.len(), length);
            assert!(sessions.find_cancel(pid, &key).is_some());
            assert!(sessions.find_cancel(pid, &key[..length - 1]).is_none());
            assert!(sessions.find_cancel(pid, &[]).is_none());
            assert!(sessions.find_cancel(pid ^ 1, &key).is_none());
            let mut wrong = key.clone();
            wrong[0] ^= 1;
            assert!(sessions.find_cancel(pid, &wrong).is_none());
            drop(session);
            assert!(sessions.find_cancel(pid, &key).is_none());
        }
        assert_eq!(sessions.count(), 0);
    }

    #[test]
    fn a_wait_is_seen_from_its_first_moment_and_forgotten_at_its_end() {
        let sessions = Arc::new(Sessions::default());
        let session = sessions.register(new_session(CancelKeyLength::Four));
        let start = session.connected;
        assert_eq!(session.waited(start), None);
        session.set_waiting(start);
        assert_eq!(
            session.waited(start + Duration::from_millis(5)),
            Some(Duration::from_millis(5))
        );
        session.set_active(3, 77);
        assert_eq!(session.waited(start), None);
        assert_eq!(session.backend(), Some((3, 77)));
        session.set_idle();
        assert_eq!(session.backend(), None);
    }

    #[test]
    fn a_session_is_told_once_after_each_request_that_its_client_thinks_for_long() {
        let sessions = Arc::new(Sessions::default());
        let session = sessions.register(new_session(CancelKeyLength::Four));
        let mut cx = Context::from_waker(Waker::noop());
        let mut is_told = |after: Duration| {
            sessions.maintain(session.connected + after);
            let told = session.poll_asked(&mut cx).is_ready();
            assert_eq!(session.thinks_long(), told);
            if told {
                session.has_given_back();
            }
            told
        };
        assert!(!is_told(LONG / 2));
        assert!(is_told(LONG));
        assert!(!is_told(LONG * 3));
        session.set_last_request(session.connected + LONG * 3);
        assert!(!is_told(LONG * 7 / 2));
        assert!(is_told(LONG * 4));
        assert!(!is_told(LONG * 9));
    }

    #[test]
    fn a_stronger_wish_is_never_weakened() {
        let sessions = Arc::new(Sessions::default());
        let session = sessions.register(new_session(CancelKeyLength::Four));
        session.ask(Wanted::EndNow);
        sessions.end_all(Wanted::EndWhenIdle);
        assert_eq!(session.wanted(), Wanted::EndNow);
        let late = sessions.register(new_session(CancelKeyLength::Four));
        assert_eq!(late.wanted(), Wanted::EndWhenIdle);
    }

    #[test]
    fn a_backend_leaves_the_registry_when_dropped() {
        let backends = Arc::new(Backends::default());
        let new = NewBackend {
            database: "d".into(),
            user: "u".into(),
            shard: "s0".into(),
            host: "h".into(),
            port: 5432,
            replication: None,
            now: Clock.now(),
            wall: Clock.wall(),
        };
        let backend = backends.register(new);
        backend.set_connected(9, Transport::Plain);
        backend.set_leased(4);
        assert_eq!(backends.list()[0].session(), Some(4));
        backend.set_state(BackendState::Idle);
        assert_eq!(backend.session(), None);
        drop(backend);
        assert!(backends.list().is_empty());
    }
}
