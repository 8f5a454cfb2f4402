//! A batch that a guard refuses, because its keys have another owner than this proxy knew, or because nobody has told that
//! owner yet: it is taken back and run again with the map as it is then, as long as its client has seen nothing of it.
//!
//! What must stay true: nothing runs twice of which anything may have been committed; a client hears one answer, and its
//! statements' names mean each time what they meant before the batch; whoever is refused again and again is told so after
//! a while. Where nothing moves it costs one load per batch.

use super::{
    prepared::Prepared,
    reply::session as reply,
    session::{End, Phase, Rest, Session, told},
};
use crate::{
    clock::{Duration, Instant},
    net::stream::HIGH_WATER,
    plan::StatementPlan,
    pool::backend::Reported,
    sql::statement::Effect,
    wire::{
        backend::Status,
        frame::{self, HEADER},
    },
};
use std::sync::Arc;

/// How long a batch is run again and again: longer than anybody takes to end what a dead runner has left.
const PATIENCE: Duration = Duration::from_secs(3);
/// Before it is run again for the second time.
const PAUSE: Duration = Duration::from_millis(20);
/// How long the home shard is asked for the map.
const LOOK: Duration = Duration::from_secs(1);
/// A longer batch is not kept.
const LONGEST: usize = 64 * 1024;

/// Names, and what each stood for before, oldest first.
type Renamed = Vec<(Box<[u8]>, Option<Arc<Prepared>>)>;

/// A batch under way, as its client has sent it.
#[derive(Debug)]
pub(super) struct Kept {
    frames: Vec<u8>,
    /// Where its answer begins in what is sent to the client.
    mark: u64,
    statements: usize,
    /// Of what it has parsed or closed.
    renamed: Renamed,
    /// What the client had been told by ParameterStatus.
    reported: Reported,
    refused: bool,
    /// Since when it has been run again.
    since: Option<Instant>,
}

impl Session {
    /// A message of the client's is about to be handled.
    pub(super) fn keeps(&mut self, tag: u8, frame: &[u8]) {
        if self.phase == Phase::Idle {
            self.kept = None;
            let since = self.again.take();
            let alone = self.status() == Status::Idle
                && self.deferred.is_none()
                && self.script.is_none()
                && !self.for_batch;
            if !alone || self.database.gate.is_quiet() {
                return;
            }
            self.kept = Some(Box::new(Kept {
                frames: Vec::new(),
                mark: self.client.mark(),
                statements: 0,
                renamed: Renamed::new(),
                reported: self.reported.clone(),
                refused: false,
                since,
            }));
        }
        let Some(kept) = &mut self.kept else {
            return;
        };
        // A Flush wants to be answered now; of a function nobody knows what it does.
        if matches!(tag, b'H' | b'F' | b'X') || kept.frames.len() + frame.len() > LONGEST {
            self.kept = None;
            return;
        }
        kept.frames.extend_from_slice(frame);
    }

    /// These are about to be given their place: whether the batch can still be run again.
    pub(super) fn keeps_with(&mut self, statements: &[StatementPlan]) {
        if let Some(kept) = &mut self.kept {
            kept.statements += statements.len();
            let plain = statements.iter().all(|one| one.effect == Effect::None);
            if kept.statements > 1 || !plain {
                // Another of them may have been committed, or stays for longer.
                self.kept = None;
            }
        }
    }

    /// A name is about to mean something else, or nothing.
    pub(super) fn keeps_name(&mut self, name: &[u8]) {
        if let Some(kept) = &mut self.kept {
            let before = if name.is_empty() {
                self.unnamed.clone()
            } else {
                self.statements.get(name).cloned()
            };
            kept.renamed.push((name.into(), before));
        }
    }

    /// A guard has refused the batch.
    pub(super) fn is_guarded(&mut self) {
        if let Some(kept) = &mut self.kept {
            kept.refused = true;
        }
    }

    /// A batch is over.
    pub(super) fn keeps_no_more(&mut self, status: Status) {
        let refused = self.kept.as_ref().is_some_and(|kept| kept.refused);
        if !refused || status != Status::Idle {
            self.kept = None;
        }
    }

    /// Whether answers wait until it is known that they need not be taken back.
    pub(super) fn withholds(&self) -> bool {
        self.kept.is_some() && self.client.unsent() < HIGH_WATER
    }

    /// Whether a batch is to be run again before anything else.
    pub(super) fn must_replay(&self) -> bool {
        self.phase == Phase::Idle
            && self.pipeline.is_empty()
            && self.kept.as_ref().is_some_and(|kept| kept.refused)
    }

    /// Runs the batch again, unless its client has seen something of it, or it has been refused for long.
    pub(super) async fn run_again(&mut self) -> Result<(), End> {
        let Some(kept) = self.kept.take() else {
            return Ok(());
        };
        let now = self.shared.clock.now();
        let since = kept.since.unwrap_or(now);
        if now.saturating_duration_since(since) > PATIENCE || !self.client.take_back(kept.mark) {
            return Ok(());
        }
        // It has heard of no other.
        self.reported = kept.reported;
        if kept.since.is_some() {
            tokio::time::sleep(PAUSE).await;
        }
        drop(tokio::time::timeout(LOOK, self.database.renew_map()).await);
        self.refresh();
        self.names_as_before(kept.renamed);
        let mut at = 0;
        self.again = Some(since);
        while at < kept.frames.len() {
            let bytes = &kept.frames[at..];
            let header = match frame::frontend(bytes) {
                Ok(Some(header)) => header,
                Ok(None) => break,
                Err(problem) => return Err(told(reply::broken_frame(&problem))),
            };
            let size = header.size.clamp(HEADER, bytes.len());
            self.client_rest = Rest {
                bytes: 0,
                forward: false,
            };
            Box::pin(self.message(header, &bytes[..size])).await?;
            at += size;
        }
        Ok(())
    }

    /// Names stand again for what they stood for before the batch.
    fn names_as_before(&mut self, renamed: Renamed) {
        for (name, before) in renamed.into_iter().rev() {
            if name.is_empty() {
                self.unnamed = before;
            } else if let Some(before) = before {
                self.statements.insert(name, before);
            } else {
                self.statements.remove(&name);
            }
        }
        self.info.set_prepared(self.statements.len());
    }
}
