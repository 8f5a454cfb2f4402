//! Connections of the control role, a few per shard, opened when they are needed.
//!
//! What must stay true: a connection on which something was not seen to its end is closed, never handed on; nothing
//! waits for a server for longer than it says; no setting of a role or database changes what a statement here means.

use crate::{
    clock::Duration,
    config::settings::{Address, Credentials},
    inspect::{self, AskError, Limits},
};
use deadpool_postgres::{Object, Pool};
use std::{ops::Deref, sync::Arc};
use tokio::sync::Notify;

/// Connections to one shard, for the proxy's own errands.
const MOST: usize = 4;
/// How long one errand may take, the connection to the server not included.
const ERRAND: Duration = Duration::from_secs(10);
/// What those errands run under. The server gives up before we do, so that it says why.
const OPTIONS: &str = "-c statement_timeout=8s -c lock_timeout=2s -c idle_in_transaction_session_timeout=15s \
     -c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed -c synchronous_commit=on";

/// The control role's way to one shard.
#[derive(Debug)]
pub struct Control {
    /// Or why there is none.
    pool: Result<Pool, String>,
}

/// A connection for one errand; closed when dropped, unless it is [`Lease::done`].
pub struct Lease(Option<Object>);

impl Control {
    /// Opens nothing yet.
    #[must_use]
    pub fn new(address: &Address, credentials: &Credentials, limit: Duration) -> Self {
        let limits = Limits { limit, most: MOST };
        let pool = inspect::pool(address, credentials, OPTIONS, limits);
        Self {
            pool: pool.map_err(|error| error.to_string()),
        }
    }

    /// One connection, on which the bells are rung at every notification. Opens nothing yet.
    pub(super) fn hearing(
        address: &Address,
        credentials: &Credentials,
        limit: Duration,
        bells: Vec<Arc<Notify>>,
    ) -> Self {
        let limits = Limits { limit, most: 1 };
        let pool = inspect::hearing(address, credentials, OPTIONS, limits, bells);
        Self {
            pool: pool.map_err(|error| error.to_string()),
        }
    }

    /// A connection, within the time that connecting may take.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn lease(&self) -> Result<Lease, AskError> {
        match &self.pool {
            Ok(pool) => Ok(Lease(Some(pool.get().await?))),
            Err(fault) => Err(AskError::Connection(fault.clone())),
        }
    }
}

/// Waits for an errand, but not for ever.
///
/// # Errors
/// Its own, or [`AskError::Timeout`].
pub async fn errand<T>(task: impl Future<Output = Result<T, AskError>>) -> Result<T, AskError> {
    let done = tokio::time::timeout(ERRAND, task).await;
    done.unwrap_or(Err(AskError::Timeout))
}

impl Lease {
    /// All is at rest on it: others may have it.
    pub fn done(mut self) {
        drop(self.0.take());
    }
}

impl Deref for Lease {
    type Target = tokio_postgres::Client;

    #[expect(
        clippy::expect_used,
        reason = "it is only taken by what consumes the lease"
    )]
    fn deref(&self) -> &Self::Target {
        self.0.as_ref().expect("there until the end")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(object) = self.0.take() {
            drop(Object::take(object));
        }
    }
}
