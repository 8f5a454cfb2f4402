//! Hot path: leasing a backend. One lock and no allocation when one is idle; a fair queue with a deadline when not.

use super::{
    backend::Backend,
    state::{Claim, Figures, Freed, Limits, State},
};
use crate::{
    clock::{Clock, Duration, Instant},
    config::settings::Pool as Settings,
    metrics::{counters::PoolCounters, sessions::BackendState},
    net::backend::ConnectError,
};
use std::{
    fmt,
    future::Future,
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{runtime::Handle, sync::oneshot, time::timeout_at};

/// Why no backend was leased.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckoutError {
    /// Every backend was in use until the deadline.
    #[error("waited {0:?} for a server connection")]
    Timeout(Duration, Claim),
    /// No connection could be made.
    #[error("no connection to the server: {0}")]
    Connect(Arc<ConnectError>),
    /// The pool is being closed.
    #[error("the pool is closed")]
    Closed,
}

impl CheckoutError {
    /// Whether the place cannot be reached or does not serve now, so that another place may.
    #[must_use]
    pub fn is_of_the_place(&self) -> bool {
        match self {
            Self::Timeout(..) | Self::Closed => false,
            Self::Connect(problem) => match &**problem {
                ConnectError::Unreachable(_) | ConnectError::Timeout => true,
                // cannot_connect_now: it starts, stops or recovers.
                ConnectError::Refused(said) => said.sqlstate() == Some(b"57P03"),
                ConnectError::TlsRefused
                | ConnectError::NothingShown
                | ConnectError::Handshake(_)
                | ConnectError::Tls(_)
                | ConnectError::Protocol(_) => false,
            },
        }
    }
}

/// Opens backends: an authenticated connection per call.
pub type Opener = Box<dyn Fn() -> Opening + Send + Sync>;
/// A connect under way.
pub type Opening = Pin<Box<dyn Future<Output = Result<Box<Backend>, ConnectError>> + Send>>;

type Handed = Result<Lease, CheckoutError>;

/// The backends of one user on one placement.
pub struct Pool {
    state: Mutex<State<Box<Backend>, oneshot::Sender<Handed>>>,
    settings: Settings,
    opener: Opener,
    runtime: Handle,
    clock: Clock,
    counters: Arc<PoolCounters>,
    /// Whether a task waits for the end of the pause after a failed connect.
    comes_again: AtomicBool,
    /// Why the last connect failed.
    last_failure: Mutex<Option<Arc<ConnectError>>>,
}

/// How long a client waits for a server that has failed a moment ago and is being tried again by one.
const PATIENCE_WHEN_DOWN: Duration = Duration::from_millis(250);

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("figures", &self.figures())
            .finish_non_exhaustive()
    }
}

impl Pool {
    /// An empty pool. Connects run on `runtime`, so that a client that leaves does not end one that others wait for.
    #[must_use]
    pub fn new(
        settings: Settings,
        opener: Opener,
        runtime: Handle,
        clock: Clock,
        counters: Arc<PoolCounters>,
    ) -> Arc<Self> {
        let limits = Limits {
            size: settings.size.max(1),
            reserve: settings.reserve_size,
            min_size: settings.min_size,
            connects: settings.connect_limit.max(1),
            idle_timeout: settings.idle_timeout,
        };
        Arc::new(Self {
            state: Mutex::new(State::new(limits)),
            settings,
            opener,
            runtime,
            clock,
            counters,
            comes_again: AtomicBool::new(false),
            last_failure: Mutex::default(),
        })
    }

    /// The counters of this pool.
    #[must_use]
    pub fn counters(&self) -> &Arc<PoolCounters> {
        &self.counters
    }

    /// The settings of this pool.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// How many backends are idle, leased and opening, and how many clients wait.
    #[must_use]
    pub fn figures(&self) -> Figures {
        self.lock().figures()
    }

    /// A backend that is idle right now.
    pub fn try_acquire(self: &Arc<Self>, claim: Claim) -> Option<Lease> {
        loop {
            let backend = self.lock().take_idle(claim)?;
            let mut lease = Lease {
                backend: Some(backend),
                pool: Arc::clone(self),
            };
            if lease.usable(self.clock.now()) {
                self.note(claim);
                return Some(lease);
            }
            // Dropped: closed, and its place given back.
            drop(lease);
        }
    }

    /// A backend, after a wait in the queue if need be.
    ///
    /// # Errors
    /// [`CheckoutError`].
    pub async fn acquire(self: &Arc<Self>, claim: Claim) -> Handed {
        if let Some(lease) = self.try_acquire(claim) {
            return Ok(lease);
        }
        let (sender, receiver) = oneshot::channel();
        let (ticket, down) = {
            let mut state = self.lock();
            let down = state.is_down(self.clock.now());
            let ticket = state.queue(sender, claim);
            // One may have come back since it was looked for: nobody would hand it to who queues only now.
            let freed = state.serve_waiting();
            drop(state);
            freed.into_iter().for_each(|freed| self.settle(freed));
            (ticket, down.then(|| self.last_failure()).flatten())
        };
        let _place = Place { pool: self, ticket };
        self.open_more();
        let patience = match &down {
            Some(_) => PATIENCE_WHEN_DOWN.min(self.settings.wait_timeout),
            None => self.settings.wait_timeout,
        };
        let deadline = tokio::time::Instant::from_std(self.clock.now() + patience);
        match timeout_at(deadline, receiver).await {
            Ok(Ok(handed)) => {
                if handed.is_ok() {
                    self.note(claim);
                }
                handed
            }
            Ok(Err(_closed)) => Err(CheckoutError::Closed),
            Err(_elapsed) => {
                if let Some(failure) = down {
                    return Err(CheckoutError::Connect(failure));
                }
                self.counters.wait_timeouts.increment();
                Err(CheckoutError::Timeout(self.settings.wait_timeout, claim))
            }
        }
    }

    /// A backend was handed out.
    fn note(&self, claim: Claim) {
        if claim == Claim::GoesOn && self.figures().leased > self.settings.size {
            self.counters.reserve_assignments.increment();
        }
    }

    /// Begins the connects that are needed and allowed.
    fn open_more(self: &Arc<Self>) {
        while self.lock().begin_open(self.clock.now()) {
            let pool = Arc::clone(self);
            self.runtime.spawn(async move { pool.open_one().await });
        }
        let (waiting, until) = {
            let state = self.lock();
            (state.figures(), state.paused_until())
        };
        if let Some(until) = until
            && waiting.waiting > 0
            && waiting.opening == 0
            && until > self.clock.now()
            && !self.comes_again.swap(true, Ordering::AcqRel)
        {
            // A failed connect holds the next one back: come again when it may begin.
            let pool = Arc::clone(self);
            self.runtime.spawn(async move {
                tokio::time::sleep_until(tokio::time::Instant::from_std(until)).await;
                pool.comes_again.store(false, Ordering::Release);
                pool.open_more();
            });
        }
    }

    async fn open_one(self: Arc<Self>) {
        let opened = (self.opener)().await;
        let now = self.clock.now();
        match opened {
            Ok(backend) => {
                self.counters.server_logins.increment();
                let freed = self.lock().opened(backend, now);
                self.settle(freed);
            }
            Err(error) => {
                tracing::debug!(%error, "no connection for those that wait");
                let error = Arc::new(error);
                *self.failure_lock() = Some(Arc::clone(&error));
                let waiters = self.lock().open_failed(now, error.outlook());
                for waiter in waiters {
                    // A waiter that has left does not need to know.
                    drop(waiter.send(Err(CheckoutError::Connect(Arc::clone(&error)))));
                }
            }
        }
        self.open_more();
    }

    /// Does what the state decided about a free backend.
    fn settle(self: &Arc<Self>, freed: Freed<Box<Backend>, oneshot::Sender<Handed>>) {
        match freed {
            Freed::Hand(waiter, backend) => {
                let lease = Lease {
                    backend: Some(backend),
                    pool: Arc::clone(self),
                };
                if let Err(Ok(lease)) = waiter.send(Ok(lease)) {
                    // The waiter left in this moment: the backend is still at rest, so it goes to the next.
                    lease.release();
                }
            }
            Freed::Kept => {}
            Freed::Close(backend) => drop(backend),
        }
    }

    /// Closes what is too old or has been closed by the server, and opens up to the minimum.
    pub fn maintain(self: &Arc<Self>) {
        let now = self.clock.now();
        let lifetime = self.settings.lifetime;
        let closed = self
            .lock()
            .expire(now, |backend| !backend_usable(backend, now, lifetime));
        drop(closed);
        self.open_more();
    }

    /// Nobody will find this pool any more: what is idle is closed, and what comes back too. Who uses it goes on.
    pub fn retire(&self) {
        let closed = self.lock().retire();
        drop(closed);
    }

    fn last_failure(&self) -> Option<Arc<ConnectError>> {
        self.failure_lock().clone()
    }

    fn failure_lock(&self) -> MutexGuard<'_, Option<Arc<ConnectError>>> {
        self.last_failure
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes every idle backend; leased ones as they come back is the caller's part (by dropping the pool).
    pub fn close_idle(&self) {
        let closed = self.lock().drain_idle();
        drop(closed);
    }

    /// Closes every idle backend and, for as long as this, those that come back and nobody waits for.
    pub fn vacate(&self, duration: Duration) {
        let closed = self.lock().vacate(self.clock.now() + duration);
        drop(closed);
    }

    fn lock(&self) -> MutexGuard<'_, State<Box<Backend>, oneshot::Sender<Handed>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in the queue: left by drop, also when the client's task is dropped while it waits.
struct Place<'a> {
    pool: &'a Arc<Pool>,
    ticket: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        drop(self.pool.lock().leave(self.ticket));
    }
}

/// Exclusive use of a backend. Dropped: the backend is closed. [`Lease::release`]: it is at rest and goes to the next.
pub struct Lease {
    backend: Option<Box<Backend>>,
    pool: Arc<Pool>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

impl Lease {
    /// Gives back a backend that is at rest: ReadyForQuery `I` was read and nothing is outstanding.
    pub fn release(mut self) {
        let now = self.pool.clock.now();
        let expired = now.saturating_duration_since(self.born) >= self.pool.settings.lifetime;
        if expired || !self.stream.buffered().is_empty() || !self.stream.is_flushed() {
            return; // Dropped: closed.
        }
        self.stream.relax(true);
        if let Some(backend) = self.backend.take() {
            backend.info.set_state(BackendState::Idle);
            let freed = self.pool.lock().released(backend, now);
            self.pool.settle(freed);
        }
    }

    /// The pool it belongs to.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    fn usable(&mut self, now: Instant) -> bool {
        let lifetime = self.pool.settings.lifetime;
        self.backend
            .as_mut()
            .is_some_and(|backend| backend_usable(backend, now, lifetime))
    }
}

/// Whether a backend at rest can serve: the server has said nothing (an idle server that speaks says goodbye, 57P01)
/// and its time is not over.
fn backend_usable(backend: &mut Backend, now: Instant, lifetime: Duration) -> bool {
    now.saturating_duration_since(backend.born) < lifetime
        && backend.stream.transport_mut().is_quiet()
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(backend) = self.backend.take() {
            backend.info.set_state(BackendState::Closing);
            drop(backend);
            let freed = {
                let mut state = self.pool.lock();
                state.lost();
                // One that is idle was not theirs while so many were leased.
                state.serve_waiting()
            };
            freed.into_iter().for_each(|freed| self.pool.settle(freed));
            self.pool.open_more();
        }
    }
}

impl Deref for Lease {
    type Target = Backend;

    #[expect(
        clippy::expect_used,
        reason = "only release and drop take the backend, and both end the lease"
    )]
    fn deref(&self) -> &Backend {
        self.backend.as_ref().expect("a lease holds its backend")
    }
}

impl DerefMut for Lease {
    #[expect(
        clippy::expect_used,
        reason = "only release and drop take the backend, and both end the lease"
    )]
    fn deref_mut(&mut self) -> &mut Backend {
        self.backend.as_mut().expect("a lease holds its backend")
    }
}
