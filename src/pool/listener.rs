//! LISTEN for many sessions over one connection per shard.
//!
//! A [`Hub`] is one server-side database on every shard; a session that listens is a [`Member`] of it. Each shard has a
//! line, driven by a task of `server` (`line.rs`) from the first LISTEN until nobody wants anything any more. What is
//! decided is in `state.rs`, without IO.
//!
//! What must stay true:
//! - [`Member::want`] returns only when the channel is listened on on every shard, so that whatever is notified later
//!   reaches the mailbox, or the mailbox is told that it may not have;
//! - after [`Member::settle`] everything that a backend of the shard had notified before is in the mailboxes.

mod line;
pub mod mailbox;
pub mod state;

use crate::{
    auth::scram::Proof,
    clock::{Clock, Duration},
    config::settings::Address,
    metrics::listeners::{NewListener, Registered},
    net::tls::ClientTls,
};
use mailbox::{Mailbox, Overflown};
use state::{MemberId, Standing, State};
use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};
use tokio::sync::{Notify, oneshot};

/// Runs tasks that outlive their maker; `server`'s own.
#[derive(Clone)]
pub struct Spawner(pub Arc<dyn Fn(Task) + Send + Sync>);

/// What is run.
pub type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Spawner(..)")
    }
}

/// What shows the server who a line is: looked for when it is opened, because a client may show it later.
#[derive(Clone)]
pub struct Prover(pub Arc<dyn Fn() -> Option<Proof> + Send + Sync>);

impl fmt::Debug for Prover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prover(..)")
    }
}

/// Where and as whom a line is opened.
#[derive(Clone, Debug)]
pub struct Login {
    pub address: Address,
    /// The database on the server.
    pub database: String,
    pub user: String,
    pub prover: Prover,
    /// How long opening, and any one answer, may take.
    pub timeout: Duration,
    pub tls: Arc<ClientTls>,
    pub listener: NewListener,
}

/// What a hub is built from.
#[derive(Debug)]
pub struct Parts {
    /// One for each shard, in their order.
    pub logins: Vec<Login>,
    pub metrics: Arc<crate::metrics::listeners::Listeners>,
    /// Bytes that may wait for one session.
    pub limit: usize,
    pub clock: Clock,
    pub spawner: Spawner,
}

/// The shared listeners of one database.
#[derive(Debug)]
pub struct Hub {
    state: Mutex<State<Arc<Mailbox>, oneshot::Sender<()>>>,
    lines: Vec<Line>,
    /// Something was acknowledged, or has failed.
    progress: Notify,
    limit: usize,
    clock: Clock,
    spawner: Spawner,
}

#[derive(Debug)]
struct Line {
    login: Login,
    /// There is something to tell the server.
    wake: Notify,
    info: Registered,
}

/// Why a channel is not listened on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    #[error("shard \"{shard}\": {problem}")]
    Failed { shard: Arc<str>, problem: String },
    #[error("shard \"{shard}\" did not confirm LISTEN in time")]
    Timeout { shard: Arc<str> },
}

impl Hub {
    /// No connection is opened before somebody wants a channel.
    #[must_use]
    pub fn new(parts: Parts) -> Arc<Self> {
        let Parts {
            logins,
            metrics,
            limit,
            clock,
            spawner,
        } = parts;
        let line = |login: Login| Line {
            info: metrics.register(login.listener.clone()),
            login,
            wake: Notify::new(),
        };
        Arc::new(Self {
            state: Mutex::new(State::new(logins.len())),
            lines: logins.into_iter().map(line).collect(),
            progress: Notify::new(),
            limit,
            clock,
            spawner,
        })
    }

    /// A session that will listen; `session` is the number that its client knows as its backend's pid.
    #[must_use]
    pub fn join(self: &Arc<Self>, session: u32) -> Member {
        let mailbox = Arc::new(Mailbox::new(self.limit));
        let id = {
            let mut state = self.lock();
            if state.standing() == Standing::Replaced {
                mailbox.put(mailbox::Mail::Moved);
            }
            state.join(Arc::clone(&mailbox))
        };
        self.show_figures();
        Member {
            hub: Arc::clone(self),
            id,
            session,
            mailbox,
            claims: Vec::new(),
        }
    }

    /// Tells every session that there are other listeners for it now; whoever comes later, too: it may have found these
    /// before.
    pub fn retire(&self) {
        for mailbox in self.lock().replaced() {
            mailbox.put(mailbox::Mail::Moved);
        }
    }

    /// Wakes every line, so that it tells the server what is new; those that rest are driven from now on.
    fn wake(self: &Arc<Self>) {
        let resting = self.lock().wake();
        for at in resting {
            let hub = Arc::clone(self);
            (self.spawner.0)(Box::pin(line::run(hub, at)));
        }
        for line in &self.lines {
            line.wake.notify_one();
        }
    }

    /// Waits until these lines have passed on all that was notified before; lines without a connection have.
    async fn settle(&self, lines: std::ops::Range<usize>) {
        let mut waits = Vec::with_capacity(lines.len());
        for at in lines {
            let (arrived, all) = oneshot::channel();
            let Some(line) = self.lines.get(at) else {
                return;
            };
            if !self.lock().wait(at, arrived) {
                continue;
            }
            line.wake.notify_one();
            waits.push(all);
        }
        for all in waits {
            // An error: the line is lost, and whoever listens on it is told.
            drop(all.await);
        }
    }

    fn show_figures(&self) {
        let (channels, sessions) = self.lock().figures();
        for line in &self.lines {
            line.info.set_figures(channels, sessions);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<Arc<Mailbox>, oneshot::Sender<()>>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session that listens. Leaves by drop.
#[derive(Debug)]
pub struct Member {
    hub: Arc<Hub>,
    id: MemberId,
    session: u32,
    mailbox: Arc<Mailbox>,
    /// Backends that count as this session, by shard and pid.
    claims: Vec<(usize, u32)>,
}

impl Member {
    /// Wants a channel, and waits until every shard's listener has it.
    ///
    /// # Errors
    /// [`ListenError`]: the session does not hear of it, and need not be told what it misses.
    pub async fn want(&self, channel: &str) -> Result<(), ListenError> {
        let hub = &self.hub;
        let failures: Vec<u64> = {
            let mut state = hub.lock();
            state.want(self.id, channel);
            (0..hub.lines.len()).map(|at| state.failures(at)).collect()
        };
        hub.show_figures();
        let patience = hub
            .lines
            .iter()
            .map(|line| line.login.timeout)
            .max()
            .unwrap_or_default()
            * 2;
        let waits = async {
            let mut woken = false;
            loop {
                let progress = hub.progress.notified();
                let mut progress = std::pin::pin!(progress);
                progress.as_mut().enable();
                {
                    let state = hub.lock();
                    let Some(missing) = state.missing(channel) else {
                        return Ok(());
                    };
                    if state.failures(missing) > failures[missing] {
                        let line = &hub.lines[missing];
                        return Err(ListenError::Failed {
                            shard: Arc::clone(&line.login.listener.shard),
                            problem: line.info.problem(),
                        });
                    }
                }
                if !woken {
                    woken = true;
                    hub.wake();
                }
                progress.await;
            }
        };
        match tokio::time::timeout(patience, waits).await {
            Ok(outcome) => outcome,
            Err(_elapsed) => {
                let missing = hub.lock().missing(channel);
                missing.map_or(Ok(()), |at| {
                    let shard = Arc::clone(&hub.lines[at].login.listener.shard);
                    Err(ListenError::Timeout { shard })
                })
            }
        }
    }

    /// Drops what was notified on these channels until now.
    pub async fn forget_earlier(&self, channels: impl Fn(&str) -> bool) {
        self.hear_all().await;
        self.mailbox.drop_notifications(channels);
    }

    /// Wants only the channels that pass from now on.
    pub fn keep_only(&self, keep: impl Fn(&str) -> bool) {
        self.hub.lock().keep_only(self.id, keep);
        self.hub.show_figures();
        for line in &self.hub.lines {
            line.wake.notify_one();
        }
    }

    /// From now on notifications of this backend count as this session's own. What others have notified on it before
    /// is waited for.
    pub async fn claim(&mut self, shard: usize, backend: u32) {
        if self.claims.contains(&(shard, backend)) {
            return;
        }
        self.hub.settle(shard..shard + 1).await;
        self.hub.lock().claim(shard, backend, self.session);
        self.claims.push((shard, backend));
    }

    /// Waits until what was notified on the claimed backends has arrived, and gives them back.
    pub async fn settle(&mut self) {
        for (shard, backend) in std::mem::take(&mut self.claims) {
            self.hub.settle(shard..shard + 1).await;
            self.hub.lock().unclaim(shard, backend);
        }
    }

    /// Waits until everything that was notified before now has come.
    pub async fn hear_all(&self) {
        self.hub.settle(0..self.hub.lines.len()).await;
    }

    /// What still waits at another place of the same session comes first here.
    pub fn take_over(&self, other: &Self) {
        self.mailbox.take_over(&other.mailbox);
    }

    /// Whether this is a session of these listeners.
    #[must_use]
    pub fn is_of(&self, hub: &Arc<Hub>) -> bool {
        Arc::ptr_eq(&self.hub, hub)
    }

    /// The oldest mail.
    ///
    /// # Errors
    /// [`Overflown`]: the session cannot go on.
    pub fn take(&self) -> Result<Option<mailbox::Mail>, Overflown> {
        self.mailbox.take()
    }

    /// As [`Mailbox::check`].
    ///
    /// # Errors
    /// [`Overflown`]: the session cannot go on.
    pub fn check(&self) -> Result<(), Overflown> {
        self.mailbox.check()
    }

    /// As [`Mailbox::poll`].
    pub fn poll(&self, cx: &Context<'_>, takes: bool) -> Poll<()> {
        self.mailbox.poll(cx, takes)
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        {
            let mut state = self.hub.lock();
            for (shard, backend) in self.claims.drain(..) {
                state.unclaim(shard, backend);
            }
            state.leave(self.id);
        }
        self.hub.show_figures();
        for line in &self.hub.lines {
            line.wake.notify_one();
        }
    }
}
