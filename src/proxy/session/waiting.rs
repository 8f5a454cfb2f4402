//! What a session waits for: its client, its backend, what operators ask; sending what is buffered meanwhile.
//!
//! What must stay true: who does not take what is said stops us reading more of it; a client that thinks holds no buffers.

use super::{End, Phase, Session, told};
use crate::{
    gate::Ticket, metrics::sessions::Wanted, net::stream::HIGH_WATER,
    proxy::reply::session as reply,
};
use std::{
    future::{Future, poll_fn},
    pin::pin,
    task::Poll,
};

impl Session {
    /// Waits until either side can make progress, sending what is buffered meanwhile.
    pub(in crate::proxy) async fn wait(&mut self) -> Result<(), End> {
        self.marks.waits();
        if self.must_look_for_types() {
            Box::pin(self.look_for_types()).await;
            return Ok(());
        }
        let idle = self.phase == Phase::Idle && (self.link.is_none() || self.at_rest());
        self.client.relax(false);
        if idle && self.info.thinks_long() {
            self.give_back();
        }
        if idle && self.info.wanted() != Wanted::Nothing && self.deferred.is_none() {
            return Err(told(reply::shutting_down()));
        }
        if self.info.wanted() == Wanted::EndNow {
            return Err(told(reply::shutting_down()));
        }
        let takes_input =
            !self.client_closed && (self.client.buffered().len() <= HIGH_WATER || self.starved);
        let mut seen = Seen::default();
        let withholds = self.withholds();
        let may_deliver = self.listening.is_some() && self.may_deliver();
        let listening = self.listening.as_deref();
        let (client, link, info) = (&mut self.client, &mut self.link, &self.info);
        poll_fn(|cx| {
            if !withholds && let Poll::Ready(Err(error)) = client.poll_flush(cx) {
                return Poll::Ready(Err(End::from(error)));
            }
            if let Some(listening) = listening {
                let takes = may_deliver && client.unsent() < HIGH_WATER;
                seen.progress |= listening.poll(cx, takes).is_ready();
            }
            if info.poll_asked(cx).is_ready() {
                seen.progress = true;
            }
            if let Some(link) = link.as_mut() {
                let stream = link.stream();
                let was_full = stream.unsent() >= HIGH_WATER;
                if !stream.is_flushed() && matches!(stream.poll_flush(cx), Poll::Ready(Err(_))) {
                    seen.backend_end = true;
                }
                // There is room again for what the client has sent already.
                seen.progress |= was_full && stream.unsent() < HIGH_WATER;
                // A client that does not take its rows stops us reading more of them.
                if client.unsent() < HIGH_WATER {
                    match stream.poll_fill(cx) {
                        Poll::Ready(Ok(0) | Err(_)) => seen.backend_end = true,
                        Poll::Ready(Ok(_)) => seen.progress = true,
                        Poll::Pending => {}
                    }
                }
                let blocked = stream.unsent() >= HIGH_WATER;
                if !takes_input || blocked {
                    return seen.done();
                }
            }
            // A client that does not take its answers is not asked for more.
            if takes_input && client.unsent() < HIGH_WATER && !seen.client_end {
                match client.poll_fill(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => seen.client_end = true,
                    Poll::Ready(Ok(_)) => seen.progress = true,
                    // It thinks, and who thinks needs no buffers.
                    Poll::Pending if idle => {
                        let flushed = client.is_flushed();
                        client.relax(flushed);
                    }
                    Poll::Pending => {}
                }
            }
            seen.done()
        })
        .await?;
        self.digest(seen)
    }

    /// Waits for something that no backend of the session's has to say; `None`: a cancel came first. The client's end and
    /// the proxy's are noticed, and what the client was told goes out.
    pub(in crate::proxy) async fn wait_beside<T>(
        &mut self,
        something: impl Future<Output = T>,
    ) -> Result<Option<T>, End> {
        self.marks.waits();
        let mut something = pin!(something);
        let mut cancelled = pin!(self.cancel.cancelled());
        let mut asked = pin!(self.info.asked());
        let (client, info) = (&mut self.client, &self.info);
        poll_fn(|cx| {
            if let Poll::Ready(found) = something.as_mut().poll(cx) {
                return Poll::Ready(Ok(Some(found)));
            }
            if cancelled.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Ok(None));
            }
            while asked.as_mut().poll(cx).is_ready() {
                if info.wanted() == Wanted::EndNow {
                    return Poll::Ready(Err(told(reply::shutting_down())));
                }
                // A milder wish does not end the wait; a future that is done must not be asked again.
                asked.set(info.asked());
            }
            if client.poll_flush(cx)?.is_pending() || client.buffered().len() > HIGH_WATER {
                return Poll::Pending;
            }
            match client.poll_fill(cx)? {
                Poll::Ready(0) => Poll::Ready(Err(End::Client)),
                Poll::Ready(_) => {
                    cx.waker().wake_by_ref();
                    Poll::Pending
                }
                Poll::Pending => Poll::Pending,
            }
        })
        .await
    }

    /// The client thinks for long: what only its work needs is given back.
    fn give_back(&mut self) {
        self.client.give_back();
        self.pipeline.give_back();
        self.parameters.give_back();
        self.statements.give_back();
        self.portals.give_back();
        self.pools = Vec::new();
        self.unconfirmed.shrink_to_fit();
        self.closed.shrink_to_fit();
        self.pending.shrink_to_fit();
        self.parked.shrink_to_fit();
        self.scratch = None;
        self.tally.give_back();
        self.several.give_back();
        // It comes to the gate again with its next transaction.
        self.ticket = self.ticket.take().filter(Ticket::is_at_work);
        self.info.has_given_back();
    }

    fn digest(&mut self, seen: Seen) -> Result<(), End> {
        if seen.client_end {
            if self.phase != Phase::Answering || self.client.buffered().is_empty() {
                return Err(End::Client);
            }
            // It has said more before it left, Terminate for one: as in PostgreSQL that is done first.
            self.client_closed = true;
        }
        if seen.backend_end {
            // What it said before it closed comes first: a FATAL error explains the end.
            self.answer()?;
            return Err(self.backend_lost());
        }
        Ok(())
    }

    /// The backend closed its connection.
    pub(in crate::proxy) fn backend_lost(&self) -> End {
        let shard = self
            .link
            .as_ref()
            .map_or("", |link| self.database.shard_name(link.shard));
        told(reply::backend_lost(shard))
    }
}

/// What a wait has seen.
#[derive(Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "three things can happen at once"
)]
struct Seen {
    progress: bool,
    client_end: bool,
    backend_end: bool,
}

impl Seen {
    fn done(&self) -> Poll<Result<(), End>> {
        if self.progress || self.client_end || self.backend_end {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
}
