//! What a session does when it is on a ring of waits over shards and is the one that must end.
//!
//! ```text
//!   on two shards ──▶ seen ──without an answer for long, on a ring──▶ its waits are cancelled ──57014──▶ the client is
//!       told 40P01 in its place ──▶ the other shards fail too, so that they give up their locks as PostgreSQL would
//! ```
//! What must stay true: the client is told of a ring only where a server has ended its statement for it; a transaction that
//! has failed for one holds no lock anywhere that one of PostgreSQL's would not hold.

use super::{
    super::{
        reply::session as reply,
        session::{CANCEL_PATIENCE, Session},
        waits::Seen,
    },
    Course, Ring,
    asking::ask_each,
};
use crate::{
    clock::Instant,
    wire::{
        backend::Status,
        notice::{Words, field},
    },
};

/// What fails a transaction on a shard that has not failed by itself: it appears in the server's log, so it says what it
/// is.
const FAIL: &[u8] =
    b"shardway ended this transaction: it waited over shards for others that wait for it";

impl Course {
    /// Nobody looks at it any more; a sentence that was passed stays known until its batch ends.
    pub(super) fn no_longer_seen(&mut self) {
        self.heed();
        self.seen = None;
    }

    /// As one of several links that work together outside of a transaction.
    pub(in crate::proxy) fn was_seen(&mut self, seen: Option<Seen>) {
        if let Some(ring) = seen.and_then(|seen| seen.sentence()) {
            self.ring = Ring::Found(ring);
        }
    }

    /// Whether it is seen as a whole.
    pub(in crate::proxy) fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    fn heed(&mut self) {
        if let Some(ring) = self.seen.as_ref().and_then(Seen::sentence) {
            self.ring = Ring::Found(ring);
        }
    }

    /// Whether the other shards are still to hear that it has failed.
    pub(in crate::proxy) fn fails_elsewhere(&self) -> bool {
        matches!(self.ring, Ring::Told)
    }

    /// A batch begins.
    pub(in crate::proxy) fn batch_begins(&self, now: Instant) {
        if let Some(seen) = &self.seen {
            seen.begins(now);
        }
    }

    /// A batch has been answered.
    pub(in crate::proxy) fn batch_ends(&mut self) {
        match &self.seen {
            Some(seen) => seen.rests(),
            None => self.ring = Ring::None,
        }
    }
}

impl Session {
    /// Whoever looks for rings of waits sees the transaction from now on.
    pub(super) fn is_seen(&mut self, begun: Instant) {
        if let (Some(waits), None) = (&self.database.waits, &self.several.seen) {
            let now = self.shared.clock.now();
            self.several.seen = Some(waits.enter(begun, &self.cancel, now));
        }
    }

    /// What the client is told in place of a server's error, if the server was made to give it because of a ring.
    pub(in crate::proxy) fn sentenced(&mut self, body: &[u8]) -> Option<Words> {
        if field(body, b'C') != Some(b"57014") {
            return None;
        }
        self.several.heed();
        let Ring::Found(ring) = &self.several.ring else {
            return None;
        };
        let words = reply::several::deadlock(ring, |shard| self.database.shard_name(shard));
        self.several.ring = Ring::Told;
        Some(words.into())
    }

    /// The same of an error that is to be told.
    pub(in crate::proxy) fn reworded(&mut self, words: &Words) -> Option<Words> {
        match words {
            Words::Servers(body) => {
                let otherwise = self.sentenced(body).or_else(|| self.guarded(body));
                otherwise.or_else(|| self.met_stray(self.link_shard()?, body))
            }
            Words::Ours(_) => None,
        }
    }

    /// The transaction has failed on one shard because of a ring: it fails on the others too, and gives up their locks.
    pub(in crate::proxy) async fn fail_elsewhere(&mut self) {
        self.several.ring = Ring::None;
        // A cancel that is on its way would hit what comes next.
        drop(tokio::time::timeout(CANCEL_PATIENCE, self.quiet()).await);
        let open = self.several.enlisted.iter_mut();
        let open = open.filter(|link| link.status == Status::Transaction);
        let asked = open.map(|link| (&mut **link, FAIL.to_vec())).collect();
        // One that is lost is noticed at its next use.
        drop(ask_each(asked).await);
    }
}
