//! The shared listeners, one for each database and shard: what they do and how they did. Registered by the hubs that own
//! them, left by drop, read by the console and `/metrics`.

use super::counters::Counter;
use crate::clock::SystemTime;
use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering::Relaxed},
    },
};

/// Every listener.
#[derive(Debug, Default)]
pub struct Listeners {
    inner: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    last: u64,
    listeners: BTreeMap<u64, Arc<ListenerInfo>>,
}

/// Whose listener it is.
#[derive(Clone, Debug)]
pub struct NewListener {
    /// As clients call it.
    pub database: Arc<str>,
    pub shard: Arc<str>,
}

/// What one listener does.
#[derive(Debug)]
pub struct ListenerInfo {
    pub database: Arc<str>,
    pub shard: Arc<str>,
    condition: AtomicU8,
    pid: AtomicU32,
    channels: AtomicUsize,
    sessions: AtomicUsize,
    /// Connections made.
    pub connects: Counter,
    /// Times that it was lost while sessions listened.
    pub gaps: Counter,
    /// Notifications received.
    pub notifications: Counter,
    connected: Mutex<Option<SystemTime>>,
    problem: Mutex<Option<String>>,
}

/// How a listener is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Nobody listens; it has no connection.
    Resting,
    Connecting,
    Listening,
    /// Connecting has failed, or the connection was lost; it will try again.
    Waiting,
}

impl Condition {
    /// One word.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Resting => "resting",
            Self::Connecting => "connecting",
            Self::Listening => "listening",
            Self::Waiting => "waiting",
        }
    }
}

/// A listener's place in the register.
#[derive(Debug)]
pub struct Registered {
    info: Arc<ListenerInfo>,
    id: u64,
    all: Arc<Listeners>,
}

impl Listeners {
    /// Enters a listener.
    #[must_use]
    pub fn register(self: &Arc<Self>, new: NewListener) -> Registered {
        let info = Arc::new(ListenerInfo {
            database: new.database,
            shard: new.shard,
            condition: AtomicU8::new(0),
            pid: AtomicU32::new(0),
            channels: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            connects: Counter::default(),
            gaps: Counter::default(),
            notifications: Counter::default(),
            connected: Mutex::default(),
            problem: Mutex::default(),
        });
        let mut inner = self.lock();
        inner.last += 1;
        let id = inner.last;
        inner.listeners.insert(id, Arc::clone(&info));
        drop(inner);
        Registered {
            info,
            id,
            all: Arc::clone(self),
        }
    }

    /// All of them, by database and shard.
    #[must_use]
    pub fn list(&self) -> Vec<Arc<ListenerInfo>> {
        let mut all: Vec<_> = self.lock().listeners.values().cloned().collect();
        all.sort_by(|a, b| (&a.database, &a.shard).cmp(&(&b.database, &b.shard)));
        all
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        lock(&self.inner)
    }
}

impl ListenerInfo {
    /// It is so now.
    pub fn set_condition(&self, condition: Condition) {
        if condition != Condition::Listening {
            self.pid.store(0, Relaxed);
        }
        self.condition.store(condition as u8, Relaxed);
    }

    /// How it is.
    #[must_use]
    pub fn condition(&self) -> Condition {
        match self.condition.load(Relaxed) {
            1 => Condition::Connecting,
            2 => Condition::Listening,
            3 => Condition::Waiting,
            _ => Condition::Resting,
        }
    }

    /// A connection was made, to the backend with this pid.
    pub fn connected(&self, pid: u32, wall: SystemTime) {
        self.pid.store(pid, Relaxed);
        self.connects.increment();
        *lock(&self.connected) = Some(wall);
    }

    /// The backend's pid, and when it was connected.
    #[must_use]
    pub fn connection(&self) -> (Option<u32>, Option<SystemTime>) {
        let pid = Some(self.pid.load(Relaxed)).filter(|pid| *pid != 0);
        (pid, *lock(&self.connected))
    }

    /// Channels that are wanted, and sessions that listen.
    pub fn set_figures(&self, channels: usize, sessions: usize) {
        self.channels.store(channels, Relaxed);
        self.sessions.store(sessions, Relaxed);
    }

    /// Channels that are wanted, and sessions that listen.
    #[must_use]
    pub fn figures(&self) -> (usize, usize) {
        (self.channels.load(Relaxed), self.sessions.load(Relaxed))
    }

    /// Why it has, or last had, no connection.
    pub fn set_problem(&self, problem: &dyn std::fmt::Display) {
        *lock(&self.problem) = Some(problem.to_string());
    }

    /// Why it has, or last had, no connection; empty when it always had one.
    #[must_use]
    pub fn problem(&self) -> String {
        lock(&self.problem).clone().unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Registered {
    type Target = ListenerInfo;

    fn deref(&self) -> &ListenerInfo {
        &self.info
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.lock().listeners.remove(&self.id);
    }
}
