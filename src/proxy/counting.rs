//! What a session tells of itself: its counters, who it says it is, what it was refused.
//!
//! What must stay true: the clock is read once when a batch begins, once when it ends on a backend, and for a statement
//! before which something was waited for since, never per message;
//! shared counters are touched when a backend comes to rest, not per statement.

use super::{
    reply,
    session::{Phase, Session, micros},
};
use crate::{
    clock::Instant,
    metrics::{counters::Tally, sessions::SessionInfo},
    wire::{backend::Status, notice::Words},
};
use std::{
    ops::{Deref, DerefMut},
    sync::atomic::Ordering::Relaxed,
};

/// Times and bytes that the next counting starts from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Marks {
    /// When the batch under way, or the last one, began: after the wait for a backend.
    pub(super) begun: Instant,
    /// When it was last asked what time it is; `None`: something was waited for since.
    known: Option<Instant>,
    /// When the last batch on a backend ended.
    ended: Instant,
    /// Bytes for the client that are counted already.
    sent: u64,
}

/// What a session has counted since it last folded; takes no room while that is nothing and its client thinks for long.
#[derive(Debug, Default)]
pub(super) struct Counted(Option<Box<Tally>>);

impl Counted {
    /// Gives back its room when nothing is counted.
    pub(super) fn give_back(&mut self) {
        self.0 = self.0.take().filter(|tally| **tally != Tally::NOTHING);
    }
}

impl Deref for Counted {
    type Target = Tally;

    fn deref(&self) -> &Tally {
        self.0.as_deref().unwrap_or(const { &Tally::NOTHING })
    }
}

impl DerefMut for Counted {
    fn deref_mut(&mut self) -> &mut Tally {
        self.0.get_or_insert_default()
    }
}

impl Marks {
    /// At the start of a session.
    pub(super) fn new(now: Instant) -> Self {
        Self {
            begun: now,
            known: None,
            ended: now,
            sent: 0,
        }
    }

    /// Something is about to be waited for, however long.
    pub(super) fn waits(&mut self) {
        self.known = None;
    }
}

impl Session {
    /// A batch begins.
    pub(super) fn count_begin(&mut self) {
        let now = self.shared.clock.now();
        self.marks.begun = now;
        self.marks.known = Some(now);
        self.info.set_last_request(now);
        self.several.batch_begins(now);
        if let Some(link) = self
            .link
            .as_mut()
            .filter(|link| link.status == Status::Idle)
        {
            // Kept from before: the time between two transactions is none of theirs.
            link.since = now;
        }
    }

    /// What time it is for a statement that is about to be sent.
    pub(super) fn now(&mut self) -> Instant {
        let now = self.time();
        self.marks.known = Some(now);
        now
    }

    /// The same, for whoever asks seldom.
    pub(super) fn time(&self) -> Instant {
        let known = self.marks.known;
        known.unwrap_or_else(|| self.shared.clock.now())
    }

    /// A batch has been answered.
    pub(super) fn count_end(&mut self) {
        if self.link.is_none() {
            // A backend that could not be used any more may have been dropped on the way.
            return self.info.set_idle();
        }
        let now = self.shared.clock.now();
        self.tally.query_micros += micros(now.saturating_duration_since(self.marks.begun));
        self.marks.begun = now;
        self.marks.known = Some(now);
        self.marks.ended = now;
    }

    /// Adds what was counted to the shared counters of the backend's pool: it comes to rest, is left, or is lost.
    pub(super) fn fold(&mut self) {
        if self.phase != Phase::Idle {
            // Left within a batch: what follows is another backend's.
            self.count_end();
        }
        let ended = self.marks.ended;
        if let Some(link) = &mut self.link {
            self.tally.transaction_micros += micros(ended.saturating_duration_since(link.since));
            link.since = ended;
        }
        let (_, sent) = self.client.totals();
        let sent = sent + self.client.unsent() as u64;
        self.tally.sent_bytes += sent.saturating_sub(self.marks.sent);
        self.marks.sent = sent;
        let (tally, info) = (&self.tally, &self.info);
        for (counter, more) in [
            (&info.queries, tally.queries),
            (&info.transactions, tally.transactions),
            (&info.received_bytes, tally.received_bytes),
            (&info.sent_bytes, tally.sent_bytes),
        ] {
            // Written by this session only.
            counter.store(counter.load(Relaxed) + more, Relaxed);
        }
        match &self.link {
            Some(link) => link.lease.pool().counters().fold(&mut self.tally),
            None if *self.tally == Tally::NOTHING => {}
            None => {
                let shard = self.database.shard_name(self.any);
                self.shared
                    .metrics
                    .pool(&self.info.database, &self.user.name, shard)
                    .fold(&mut self.tally);
            }
        }
    }

    /// Notes an error of ours by its code.
    pub(super) fn count_refusal(&self, words: &Words) {
        if let Some(code) = reply::code_of(words) {
            self.shared.metrics.refused(&self.info.database, code);
        }
    }
}

/// A setting that the client sees has changed: what it calls itself is shown to operators too.
pub(super) fn note_reported(info: &SessionInfo, name: &[u8], value: &[u8]) {
    if name == b"application_name" {
        info.set_application_name(&String::from_utf8_lossy(value));
    }
}
