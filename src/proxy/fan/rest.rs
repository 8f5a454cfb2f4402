//! How a member of a fan comes to rest when its answer is not needed any more.
//!
//! What must stay true: a member counts as at rest only when it has answered everything and no cancel of ours can reach
//! it later; a server that cannot get rid of its rows does not look for cancels, so that they are read meanwhile.

use super::{
    super::{ending, session::CANCEL_PATIENCE},
    Long, Member, Next,
};
use crate::{
    clock::Duration,
    net::{backend, tls::ClientTls},
    wire::frontend::put_query,
};
use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
};
use tokio::time::timeout;

/// How long a member that is not needed any more may go on by itself before it is cancelled, and how much it may say.
const GRACE: Duration = Duration::from_millis(20);
const GRACE_BYTES: usize = 1 << 20;
/// How long the first cancel has before the second is sent; each has twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// Whether a cancel may have reached a member just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hit {
    No,
    Maybe,
}

impl Member {
    /// Brings it to rest. What it still does is left to end by itself for a moment and is then cancelled; one that does
    /// not come to rest within the patience is closed.
    pub(super) async fn bring_to_rest(&mut self, hit: Hit, tls: &Arc<ClientTls>) {
        let quiet = timeout(CANCEL_PATIENCE, self.quieten(hit, tls)).await;
        if !matches!(quiet, Ok(true)) || !self.is_at_rest() {
            self.lost = true;
            ending::stop(&mut self.link, tls).await;
        }
    }

    /// Whether it is at rest, and nothing more comes to it.
    async fn quieten(&mut self, hit: Hit, tls: &Arc<ClientTls>) -> bool {
        self.sync();
        let mut hit = hit;
        if !matches!(
            timeout(GRACE, self.drain(GRACE_BYTES)).await,
            Ok(Drained::Rest)
        ) {
            hit = Hit::Maybe;
            let target = Arc::clone(&self.link.lease.target);
            let mut pause = FIRST_PAUSE;
            loop {
                let mut cancel = pin!(backend::cancel(
                    &target.address,
                    target.pid,
                    &target.key,
                    CANCEL_PATIENCE,
                    tls,
                ));
                // A server that cannot get rid of its rows does not look for cancels.
                let sent = poll_fn(|cx| {
                    let _at_rest = self.poll_drain(cx, &mut { usize::MAX });
                    cancel.as_mut().poll(cx)
                });
                if sent.await.is_err() {
                    // It may come at any time.
                    return false;
                }
                // One that came before the statement had begun was without effect.
                if timeout(pause, self.drain(usize::MAX)).await.is_ok() {
                    break;
                }
                pause *= 2;
            }
        }
        if hit == Hit::Maybe && !self.lost {
            // It hits this rather than the next client's.
            put_query(self.stream().out(), b"");
            self.owed += 1;
            self.drain(usize::MAX).await;
        }
        !self.lost
    }

    async fn drain(&mut self, mut most: usize) -> Drained {
        poll_fn(|cx| self.poll_drain(cx, &mut most)).await
    }

    /// Throws its answers away until it is at rest or lost, or `most` bytes are gone.
    fn poll_drain(&mut self, cx: &mut Context<'_>, most: &mut usize) -> Poll<Drained> {
        loop {
            let count = match self.next(Long::Parts) {
                Next::Message(header) => header.size,
                Next::TooLong(_) => self.link.lease.stream.buffered().len(),
                Next::More(count) => count,
                Next::Rest | Next::Lost => return Poll::Ready(Drained::Rest),
                Next::Pending if self.poll(cx, Long::Parts) => 0,
                Next::Pending => return Poll::Pending,
            };
            self.take(count);
            *most = most.saturating_sub(count);
            if *most == 0 {
                return Poll::Ready(Drained::Enough);
            }
        }
    }
}

/// What came of throwing answers away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Drained {
    /// There are no more.
    Rest,
    /// There are more than are worth reading.
    Enough,
}
