//! What a reader of a stream keeps for its destinations, and when it gives it to them.
//!
//! What must stay true: a destination has one piece under way at most; what it is told to have is the end of a transaction
//! that it was given whole; nothing is read while there is no room, or while it is to wait; however much comes, pieces end
//! with transactions again and again, and what is durable grows.

use super::{
    Beat, Cut, Done, ENOUGH, Heard, KEPT, Lag, Lane, Log, Lsn, Piece, Reached, Reader, Report,
    SOON, StreamError, Wish,
};
use crate::{clock::Clock, replication::apply::Commit};

impl Lane {
    /// Whether nothing more is to be kept for it. Where a transaction ends it is sooner: in the midst of the next one there
    /// would be nothing that could be committed; and at once if this one was begun in the piece before.
    fn is_full(&self, batch: usize, whole: bool) -> bool {
        let (count, size) = (self.log.changes().len(), self.log.size());
        if !whole {
            return count >= batch || size >= KEPT;
        }
        self.last == Cut::Within || count >= batch - batch / 4 || size >= KEPT - KEPT / 4
    }
}

impl Reader<'_> {
    /// Whether the next message may be read.
    pub(super) fn reads(&self) -> bool {
        let whole = self.transaction.is_none();
        let full = |lane: &Lane| lane.is_full(self.batch, whole);
        self.withheld.is_none() && !self.lanes.iter().any(full)
    }

    /// Takes up a transaction that was withheld, if it need not wait any more.
    pub(super) fn heed(&mut self, wish: &Wish) -> Result<(), StreamError> {
        if let Some((commit, xid)) = self.withheld
            && wish.pause.is_none_or(|at| at > Lsn(0) && commit < at)
        {
            self.withheld = None;
            self.begin(commit, xid);
        }
        let paused = self.stand.borrow().paused;
        if paused.is_some_and(|(at, _)| wish.pause != Some(at)) {
            self.stand.send_modify(|stand| stand.paused = None);
        }
        if wish.beats != self.beats_wanted {
            self.beats_wanted = wish.beats;
            self.sooner.notify_one();
        }
        if wish.pause.is_some() && paused.is_none() && self.withheld.is_none() {
            // So that there is a transaction to stop at.
            self.sooner.notify_one();
        }
        Ok(())
    }

    pub(super) fn begin(&mut self, commit: Lsn, xid: u32) {
        self.begun = self.begun.max(commit);
        self.transaction = Some((commit, self.ids.whole(xid)));
    }

    /// Says that it waits, once all before is durable everywhere.
    pub(super) fn settle_pause(&self, wish: &Wish) {
        let Some(at) = wish.pause else {
            return;
        };
        if self.stand.borrow().paused.is_some_and(|(of, _)| of == at) {
            return;
        }
        let passed = at > Lsn(0) && self.begun >= at;
        let rests = |lane: &Lane| !lane.busy && lane.soon == 0 && lane.log.changes().is_empty();
        if !passed && (self.withheld.is_none() || !self.lanes.iter().all(rests)) {
            return;
        }
        let exact = !passed && !self.lanes.iter().any(|lane| lane.open);
        self.stand
            .send_modify(|stand| stand.paused = Some((at, exact)));
    }

    /// Gives destinations what is kept for them. A little is kept back while more has arrived already. Where there is more than
    /// can be kept, a piece need not be durable before the next one is begun: the disk writes meanwhile.
    pub(super) fn send(&mut self, more: bool) {
        let whole = self.transaction.is_none();
        let (boundary, fence) = (self.boundary, self.fence);
        let waits = self.withheld.is_some();
        for lane in &mut self.lanes {
            let count = lane.log.changes().len();
            let full = lane.is_full(self.batch, whole);
            let settles = lane.soon > 0 && (waits || !more);
            let behind = settles || lane.sent < boundary && (self.nudged || lane.open);
            let ready = whole
                && (behind
                    || (count > 0 && (waits || !more || count >= ENOUGH.min(self.batch / 2))));
            if lane.busy || !(full || ready) {
                continue;
            }
            // Transactions that it has already are not in the log; the end of the last one may be before what it has.
            let end = (whole && boundary > lane.reached.lsn).then_some(Reached {
                lsn: boundary,
                fence,
            });
            let hurries = waits || self.nudged || lane.soon >= SOON;
            let commit = if full && !hurries {
                Commit::Soon
            } else {
                Commit::Durable
            };
            let next = if full {
                Log::like(&lane.log)
            } else {
                Log::default()
            };
            let log = std::mem::replace(&mut lane.log, next);
            if lane.pieces.try_send(Piece { log, end, commit }).is_ok() {
                lane.busy = true;
                lane.open |= end.is_none();
                lane.last = if end.is_some() {
                    Cut::Between
                } else {
                    Cut::Within
                };
                lane.sent = end.map_or(lane.sent, |end| end.lsn);
            }
        }
        if whole && self.lanes.iter().all(|lane| lane.sent >= boundary) {
            self.nudged = false;
        }
    }

    pub(super) fn report(&mut self, (place, done): Report) -> Result<(), StreamError> {
        let lane = &mut self.lanes[place];
        lane.busy = false;
        let done = done.map_err(|error| StreamError::Apply {
            destination: lane.name.clone(),
            error,
        })?;
        match done {
            Done::Committed(reached) => {
                lane.reached = reached;
                (lane.open, lane.soon) = (false, 0);
            }
            Done::Soon => {
                lane.open = false;
                lane.soon += 1;
            }
            Done::Open => lane.open = true,
        }
        self.show();
        Ok(())
    }

    /// What every destination has.
    pub(super) fn least(&self) -> Reached {
        let reached = self.lanes.iter().map(|lane| lane.reached);
        let lsn = reached.clone().map(|it| it.lsn).min();
        let fence = reached.map(|it| it.fence).min();
        Reached {
            lsn: lsn.unwrap_or_default(),
            fence: fence.unwrap_or_default(),
        }
    }

    pub(super) fn show(&mut self) {
        let least = self.least();
        while let Some(beat) = self.beats.front()
            && beat.at.is_some_and(|at| at <= least.lsn)
        {
            self.last_beat = Some(Clock.now() - beat.sent);
            self.newest_beat = Some(beat.sent);
            self.beats.pop_front();
        }
        let waiting = self.beats.front().map(|beat| Clock.now() - beat.sent);
        let late = waiting.max(self.last_beat);
        let rests = |lane: &Lane| {
            !lane.busy && !lane.open && lane.soon == 0 && lane.log.changes().is_empty()
        };
        let idle =
            self.transaction.is_none() && self.withheld.is_none() && self.lanes.iter().all(rests);
        let bytes = if idle {
            // Nothing that came is left to be done.
            let done = self.boundary.max(least.lsn).max(self.alive);
            self.source_end.0.saturating_sub(done.0)
        } else {
            self.source_end.0.saturating_sub(least.lsn.0)
        };
        let consistent = least.lsn >= self.consistency;
        let changes = std::mem::take(&mut self.changes);
        self.stand.send_modify(|stand| {
            stand.applied = least.lsn;
            stand.fence = least.fence;
            stand.consistent |= consistent;
            stand.changes += changes;
            stand.problem = None;
            stand.beat = self.newest_beat.or(stand.beat);
            if let Some(late) = late {
                let millis = u64::try_from(late.as_millis()).unwrap_or(u64::MAX);
                stand.lag = Lag { bytes, millis };
            }
        });
    }

    pub(super) fn hear(&mut self, heard: Heard) -> Result<(), StreamError> {
        match heard {
            Heard::Failed(error) => Err(error.into()),
            Heard::Beat(number, sent, end) => {
                self.source_end = self.source_end.max(end);
                let come = self.boundary;
                // It may have come in the stream before its own answer.
                let at = (number <= self.last_number).then_some(come);
                self.beats.push_back(Beat { number, sent, at });
                self.show();
                Ok(())
            }
        }
    }
}
