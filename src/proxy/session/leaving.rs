//! The end of a session: its last words, and what becomes of its backends.
//!
//! What must stay true: what still runs is cancelled; a backend that is not at rest is closed; what the session left in
//! one that it kept is discarded before another has it.

use super::{End, GOODBYE_PATIENCE, Phase, Session};
use crate::{config::settings::PoolMode, protocol::parameters::Applied, proxy::ending};

impl Session {
    /// The end of a session: says why, cancels what still runs, closes what is not at rest.
    pub(in crate::proxy) async fn finish(&mut self, end: End) {
        if let End::Told(notice) = &end
            && !(self.backend_rest.forward && self.backend_rest.bytes > 0)
        {
            // Within a message that has begun nothing can be said.
            notice.put(self.client.out());
        }
        if !matches!(end, End::Client) || !self.client.is_flushed() {
            self.say_goodbye().await;
        }
        if self.fan.is_some() {
            self.abandon_copy();
            drop(Box::pin(self.rest_fan()).await);
        }
        let runs = self.pipeline.owes_ready() || self.phase != Phase::Idle;
        if let (Some(link), true, End::Client | End::Told(_)) = (&mut self.link, runs, &end) {
            // The server would go on with a query that nobody waits for.
            Box::pin(ending::stop(link, &self.shared.tls)).await;
        }
        if let End::Told(words) = &end {
            self.count_refusal(words);
        }
        self.fold();
        self.cancel.detach();
        let clean = self.link.is_some() && self.at_rest();
        let kept = self.mode == PoolMode::Session || self.pinned.is_some();
        if clean && !kept {
            drop(self.unlink().await);
        } else if kept {
            drop(tokio::time::timeout(RESET_PATIENCE, self.reset_kept(clean)).await);
        }
        self.link = None;
        self.several.close();
        self.parked.clear();
    }

    /// Gives back the backends that the session kept for itself, as new: what it left in them is discarded.
    async fn reset_kept(&mut self, link_is_clean: bool) {
        let link = self.link.take().filter(|_| link_is_clean);
        for link in link.into_iter().chain(std::mem::take(&mut self.parked)) {
            self.link = Some(link);
            let spent = self.link.as_ref().is_some_and(|link| link.spent);
            let target = self.link.as_ref().map(|link| &link.lease.target);
            let doubtful = target.is_some_and(|target| self.cancel.is_doubtful(target));
            let quiet = !self.cancel.detach() && !doubtful && !spent;
            if quiet
                && matches!(self.prelude(b"DISCARD ALL").await, Ok(Ok(())))
                && let Some(mut link) = self.link.take()
            {
                link.lease.applied = Applied::default();
                link.lease.statements.clear();
                link.lease.release();
            }
            // Else dropped: closed.
            self.link = None;
        }
    }

    async fn say_goodbye(&mut self) {
        // The client may be gone as well, or not read: it has this long to take the last words.
        let flushed = async {
            if self.client.flush().await.is_ok() {
                self.client.shutdown().await;
            }
        };
        drop(tokio::time::timeout(GOODBYE_PATIENCE, flushed).await);
    }
}

/// How long the backends of a session that kept them may take to be reset.
const RESET_PATIENCE: crate::clock::Duration = crate::clock::Duration::from_secs(5);
