//! Connections to shards that are kept between steps, so that none is opened while statements are held.
//!
//! What must stay true: one on which something was not seen to its end is closed, never handed on.

use super::servers::Server;
use crate::inspect::AskError;
use deadpool_postgres::Client;
use std::{
    collections::BTreeMap,
    ops::Deref,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// How many are kept of a shard.
const MOST: usize = 4;

/// Connections at rest, by shard.
#[derive(Debug, Default)]
pub struct Lines(Mutex<BTreeMap<String, Vec<Client>>>);

/// A connection for one errand; closed when dropped, unless it is [`Line::done`].
#[derive(Debug)]
pub struct Line<'a> {
    lines: &'a Lines,
    shard: String,
    client: Option<Client>,
}

impl Lines {
    /// One that is kept, or a new one.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn take(&self, server: &Server) -> Result<Line<'_>, AskError> {
        let kept = self.all().get_mut(&server.name).and_then(Vec::pop);
        let client = match kept.filter(|client| !client.is_closed()) {
            Some(client) => client,
            None => server.sql().await?,
        };
        Ok(Line {
            lines: self,
            shard: server.name.clone(),
            client: Some(client),
        })
    }

    /// None is kept any more.
    pub fn close(&self) {
        self.all().clear();
    }

    /// Nothing panics while it is locked.
    fn all(&self) -> MutexGuard<'_, BTreeMap<String, Vec<Client>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line<'_> {
    /// All is at rest on it: it is kept.
    pub fn done(mut self) {
        let Some(client) = self.client.take() else {
            return;
        };
        let mut all = self.lines.all();
        let kept = all.entry(std::mem::take(&mut self.shard)).or_default();
        if kept.len() < MOST {
            kept.push(client);
        }
    }
}

impl Deref for Line<'_> {
    type Target = Client;

    #[expect(
        clippy::expect_used,
        reason = "it is only taken by what consumes the line"
    )]
    fn deref(&self) -> &Self::Target {
        self.client.as_ref().expect("there until the end")
    }
}
