//! What a client asks: one message after another, each handed to its protocol's part. What a refusal does to the batch,
//! and data of a COPY, are here too.

use super::{
    link::Hold,
    prepared::Prepared,
    reply::session as reply,
    session::{End, Note, Phase, Rest, Session, told},
};
use crate::{
    net::stream::HIGH_WATER,
    protocol::pipeline::{Origin, Request},
    sql::statement::Effect,
    wire::{
        backend::Status,
        frame::{self, HEADER, Header},
        frontend::{self, put_parse},
        notice::{Notice, Words},
    },
};
use std::sync::Arc;

/// Why a statement does not go on.
pub(super) enum Stop {
    /// The session is over.
    End(End),
    /// This statement, or the batch it is in, is refused.
    Refused(Box<Words>),
}

impl From<End> for Stop {
    fn from(end: End) -> Self {
        Self::End(end)
    }
}

impl From<Notice> for Stop {
    fn from(notice: Notice) -> Self {
        Self::Refused(Box::new(notice.into()))
    }
}

impl From<Words> for Stop {
    fn from(words: Words) -> Self {
        Self::Refused(Box::new(words))
    }
}

impl Session {
    /// Handles the messages that have arrived, as far as the batch allows. True when there was one.
    pub(super) async fn requests(&mut self) -> Result<bool, End> {
        if self.client.buffered().is_empty() {
            return Ok(false);
        }
        self.starved = false;
        let lent = self.client.lend();
        let mut taken = 0;
        let mut outcome = Ok(());
        loop {
            let bytes = &lent.bytes()[taken..];
            match self.next_message(bytes).await {
                Ok(0) => break,
                Ok(count) => taken += count,
                Err(end) => {
                    outcome = Err(end);
                    break;
                }
            }
        }
        self.client.restore(lent, taken);
        outcome.map(|()| taken > 0)
    }

    /// Handles one message, or a part of a long one; how many bytes it took, 0 when it cannot go on yet.
    async fn next_message(&mut self, bytes: &[u8]) -> Result<usize, End> {
        if self.copying.is_some() {
            return Box::pin(self.copy_message(bytes)).await;
        }
        if self.client_rest.bytes > 0 {
            return Ok(self.pass_rest(bytes));
        }
        let header = match frame::frontend(bytes) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(0),
            Err(problem) => return Err(told(reply::broken_frame(&problem))),
        };
        if matches!(header.tag, b'd' | b'c' | b'f') {
            if self.script.is_some() && !self.pipeline.copying_in() {
                // Whether it is for a COPY is known when that has begun, or the text is over.
                return Ok(0);
            }
            return Ok(self.copy_data(header, bytes));
        }
        self.flushed = false;
        let copying = self.pipeline.copying_in() && !self.skip;
        let ignored_in_copy = matches!(header.tag, b'S' | b'H') && self.pipeline.copying_in();
        if copying && !ignored_in_copy {
            return Err(self.interrupts_copy(header.tag));
        }
        if (self.phase == Phase::Answering && !ignored_in_copy) || self.must_replay() {
            return Ok(0);
        }
        let arrived = bytes.len().min(header.size);
        let streams = header.size > HIGH_WATER && header.tag == b'B';
        if arrived < header.size && !(streams && self.streams_bind(&bytes[HEADER..])) {
            self.starved = true;
            return Ok(0);
        }
        let link_is_full = self
            .link
            .as_ref()
            .is_some_and(|link| link.lease.stream.unsent() > HIGH_WATER);
        if link_is_full {
            return Ok(0);
        }
        self.client_rest = Rest {
            bytes: header.size - arrived,
            forward: false,
        };
        self.message(header, &bytes[..arrived]).await?;
        Ok(arrived)
    }

    pub(super) async fn message(&mut self, header: Header, frame: &[u8]) -> Result<(), End> {
        let body = &frame[HEADER..];
        if header.tag == b'X' {
            return Err(End::Client);
        }
        self.keeps(header.tag, frame);
        if self.skip && header.tag != b'S' {
            return Ok(());
        }
        self.tally.received_bytes += frame.len() as u64;
        if self.phase == Phase::Idle {
            self.count_begin();
            self.drew.begins();
            self.refresh();
            if self.database.coordinator.is_lapsed(self.marks.begun) {
                Box::pin(self.look_unheard()).await;
            }
        }
        if self.for_batch && matches!(header.tag, b'Q' | b'F') {
            return Box::pin(self.leave_own_batch()).await;
        }
        let done = match header.tag {
            b'Q' => return self.query(body).await,
            b'F' => return self.function_call(frame).await,
            b'S' => return self.sync().await,
            b'P' => self.parse(body).await,
            b'B' => self.bind(frame, body).await,
            b'D' => self.describe(frame, body).await,
            b'E' => self.execute(frame, body).await,
            b'C' => self.close(frame, body).await,
            _ => self.flush_request(frame).await,
        };
        match done {
            Ok(()) => {
                self.enter_batch();
                Ok(())
            }
            Err(Stop::End(end)) => Err(end),
            Err(Stop::Refused(notice)) => {
                self.enter_batch();
                self.answer_what_came_before().await?;
                self.refuse(&notice);
                Ok(())
            }
        }
    }

    /// What was parsed before a refusal is answered before it, and exists after it.
    async fn answer_what_came_before(&mut self) -> Result<(), End> {
        if self.skip {
            return Ok(());
        }
        if self.link.is_some() {
            self.send_pending();
            return Ok(());
        }
        match self.flush_pending().await {
            // Without a backend the Parses go the way of what was refused.
            Ok(()) | Err(Stop::Refused(_)) => Ok(()),
            Err(Stop::End(end)) => Err(end),
        }
    }

    fn enter_batch(&mut self) {
        if self.phase == Phase::Idle {
            self.phase = Phase::Batch;
        }
    }

    /// An error of ours within a batch: at its place in the order, then everything is skipped up to Sync. What the
    /// backend has done in this batch is undone by making it fail too.
    pub(super) fn refuse(&mut self, notice: &Words) {
        let reworded = self.reworded(notice);
        let notice = reworded.as_ref().unwrap_or(notice);
        self.count_refusal(notice);
        self.skip = true;
        self.failed = true;
        for prepared in std::mem::take(&mut self.pending) {
            self.forget_parsed(&prepared);
        }
        if let Some(deferred) = &mut self.deferred {
            deferred.fail();
        }
        let mut bytes = Vec::new();
        notice.put(&mut bytes);
        if self.pipeline.is_empty() {
            self.client.out().extend_from_slice(&bytes);
            self.restore_closed();
        } else {
            self.pipeline.made(bytes, true, Note::Nothing);
        }
        let begun = self
            .link
            .as_ref()
            .is_some_and(|link| link.hold >= Hold::Loose || link.status != Status::Idle);
        if begun && let Some(link) = &mut self.link {
            put_parse(link.lease.stream.out(), b"", POISON, b"");
            link.lease.unnamed = None;
            self.pipeline
                .asked(Request::Parse, Origin::Poison, Note::Nothing);
        }
    }

    /// Gives a reply made here at its place in the order.
    pub(super) fn made(&mut self, bytes: Vec<u8>, note: Note) {
        if !self.pipeline.is_empty() {
            return self.pipeline.made(bytes, false, note);
        }
        self.client.out().extend_from_slice(&bytes);
        self.was_given(note);
    }

    /// A reply made here has been given.
    pub(super) fn was_given(&mut self, note: Note) {
        match note {
            Note::Parsed(prepared) => self.confirm(&prepared),
            Note::Closed if !self.closed.is_empty() => drop(self.closed.remove(0)),
            Note::Closed
            | Note::Nothing
            | Note::Executed(_)
            | Note::Evicted(_)
            | Note::Uses(_)
            | Note::Described(_)
            | Note::DescribedPortal(_) => {}
        }
    }

    /// A Parse that is never sent has not been.
    pub(super) fn forget_parsed(&mut self, prepared: &Arc<Prepared>) {
        if self
            .unnamed
            .as_ref()
            .is_some_and(|found| Arc::ptr_eq(found, prepared))
        {
            self.unnamed = None;
        }
        self.statements
            .retain(|found| !Arc::ptr_eq(found, prepared));
        self.confirm(prepared);
    }

    /// Statements whose Close an error has skipped are still there.
    fn restore_closed(&mut self) {
        for (name, prepared) in std::mem::take(&mut self.closed) {
            self.statements.insert(name, prepared);
        }
    }

    /// Statements whose Parse was never confirmed do not exist.
    pub(super) fn forget_unconfirmed(&mut self) {
        for name in std::mem::take(&mut self.unconfirmed) {
            if name.is_empty() {
                self.unnamed = None;
            } else {
                self.statements.remove(&name);
            }
        }
        self.restore_closed();
    }

    // ---- COPY ----

    fn copy_data(&mut self, header: Header, bytes: &[u8]) -> usize {
        // Outside COPY these are ignored, as PostgreSQL does (a client may not know yet that the COPY has failed).
        let forward = self.pipeline.copying_in() && !self.skip;
        if !forward && !self.skip && !self.pipeline.is_empty() {
            // Whether a COPY begins is for what was asked before it to say.
            if !self.flushed
                && !self.pipeline.owes_ready()
                && let Some(link) = &mut self.link
            {
                frontend::put_bare(link.lease.stream.out(), b'H');
                self.flushed = true;
            }
            return 0;
        }
        self.flushed = false;
        self.client_rest = Rest {
            bytes: header.size,
            forward,
        };
        if header.tag != b'd' && forward {
            self.pipeline.copy_ended();
        }
        self.pass_rest(bytes)
    }

    /// A message in the middle of COPY IN that has no place there. PostgreSQL fails the COPY and then the session, as it
    /// does not read the message; Terminate, too, ends both.
    pub(super) fn interrupts_copy(&mut self, tag: u8) -> End {
        if tag == b'X' {
            return End::Client;
        }
        reply::unexpected_in_copy(tag).put(self.client.out());
        told(reply::out_of_step())
    }

    /// Whether a client that sends nothing more has left in the middle of COPY IN: its backend would wait for ever.
    pub(super) fn left_in_copy(&self) -> bool {
        let has_room = |link: &super::link::Link| link.lease.stream.unsent() < HIGH_WATER;
        self.client_closed
            && self.pipeline.copying_in()
            && self.link.as_deref().is_none_or(has_room)
    }

    fn pass_rest(&mut self, bytes: &[u8]) -> usize {
        let mut count = self.client_rest.bytes.min(bytes.len());
        if self.client_rest.forward
            && let Some(link) = &mut self.link
        {
            let stream = link.stream();
            let room = (2 * HIGH_WATER).saturating_sub(stream.unsent());
            count = count.min(room);
            stream.out().extend_from_slice(&bytes[..count]);
        }
        self.tally.received_bytes += count as u64;
        self.client_rest.bytes -= count;
        count
    }
}

/// Whether a statement is let through by a failed transaction.
pub(super) fn ends_transaction(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Commit { .. } | Effect::Rollback { .. } | Effect::RollbackTo(_) | Effect::TwoPhase
    )
}

/// What makes a backend fail when we refuse a statement in its transaction: it appears in the server's log, so it says
/// what it is.
pub(super) const POISON: &[u8] = b"shardway refused a statement of this transaction";
