//! Which backends a session gives back between its batches, and which it keeps.
//!
//! What must stay true: only a backend that is at rest goes back, and not before every cancel that is on its way to it.

use super::{CANCEL_PATIENCE, End, Phase, Session};
use crate::{
    catalog::shard::ShardId,
    config::settings::PoolMode,
    protocol::parameters::Applied,
    proxy::link::{Hold, Link},
    sql::statement::{Effect, PinReason},
    wire::backend::Status,
};
use std::{future::poll_fn, pin::pin};

impl Session {
    /// Between batches: gives the backend back when nothing holds it.
    pub(in crate::proxy) async fn rest(&mut self) -> Result<(), End> {
        if self.runs_aside() {
            Box::pin(self.end_aside()).await?;
        }
        if !self.at_rest() {
            return Ok(());
        }
        if self.link.as_ref().is_some_and(|link| link.listens) {
            Box::pin(self.stop_listening_there()).await;
        }
        if self.mode == PoolMode::Session
            || self
                .pinned
                .is_some_and(|(_, shard)| self.link_shard() == Some(shard))
        {
            if let Some(link) = &mut self.link {
                link.hold = Hold::Loose;
            }
            self.fold();
            return Ok(());
        }
        self.unlink().await
    }

    pub(in crate::proxy) async fn park_or_release(&mut self) -> Result<(), End> {
        let keep = self.mode == PoolMode::Session
            || self
                .pinned
                .is_some_and(|(_, shard)| self.link_shard() == Some(shard));
        if keep {
            self.fold();
            self.parked.extend(self.link.take());
            return Ok(());
        }
        if self.link.is_some() {
            self.unlink().await
        } else {
            Ok(())
        }
    }

    /// Gives the backend back, after every cancel that is on its way to it.
    pub(in crate::proxy) async fn unlink(&mut self) -> Result<(), End> {
        if self.cancel.detach() {
            // A cancel is on its way: wait until it has arrived, and let it hit an empty query rather than the next
            // client's.
            let arrived = async {
                let quiet = tokio::time::timeout(CANCEL_PATIENCE, self.quiet());
                quiet.await.is_ok() && self.prelude(b"").await.is_ok()
            };
            if !Box::pin(arrived).await {
                self.link = None;
                return Ok(());
            }
        }
        if self.listening.is_some() || self.link.as_ref().is_some_and(|link| link.listens) {
            Box::pin(self.stop_listening_there()).await;
        }
        self.fold();
        let Some(mut link) = self.link.take() else {
            return Ok(());
        };
        link.spent |= self.cancel.is_doubtful(&link.lease.target);
        if link.opaque {
            link.lease.applied = Applied::Unknown;
        }
        self.info.set_idle();
        if !link.spent {
            link.lease.release();
        }
        Ok(())
    }

    /// Waits until no cancel is on its way; the client gets its answer meanwhile. That it does not take it is noticed later.
    pub(in crate::proxy) async fn quiet(&mut self) {
        let mut quiet = pin!(self.cancel.quiet());
        let client = &mut self.client;
        poll_fn(|cx| {
            let _flushed = client.poll_flush(cx);
            quiet.as_mut().poll(cx)
        })
        .await;
    }

    /// Whether the link is at rest: answered everything, no transaction.
    pub(in crate::proxy) fn at_rest(&self) -> bool {
        self.pipeline.is_empty()
            && self.phase == Phase::Idle
            && self.backend_rest.bytes == 0
            && !(self.client_rest.forward && self.client_rest.bytes > 0)
            && self
                .link
                .as_ref()
                .is_some_and(|link| link.status == Status::Idle)
    }

    /// Whether the session keeps a backend for what its statements may depend on. An advisory lock is nothing that other
    /// backends lack.
    pub(in crate::proxy) fn is_kept(&self) -> bool {
        let lock = |(reason, _): &(PinReason, ShardId)| *reason == PinReason::SessionAdvisoryLock;
        self.pinned.is_some_and(|pin| !lock(&pin))
    }

    /// Whether a transaction runs beside a deferred one.
    fn runs_aside(&self) -> bool {
        let open = |link: &Link| link.hold == Hold::AsideTransaction && link.status != Status::Idle;
        self.link.as_deref().is_some_and(open)
    }

    /// Ends the transaction that ran beside a deferred one: nothing of it stays.
    pub(in crate::proxy) async fn end_aside(&mut self) -> Result<(), End> {
        if self.runs_aside() {
            drop(self.prelude(b"ROLLBACK").await?);
            if let Some(link) = &mut self.link {
                link.lease.applied = link.at_begin.clone();
            }
        }
        Ok(())
    }

    /// Before a statement is sent: what stays even if it fails or is rolled back keeps the backend whatever becomes of it.
    pub(in crate::proxy) fn pin_before(&mut self, effect: &Effect) {
        if let Effect::Pins(reason @ (PinReason::SessionAdvisoryLock | PinReason::Code)) = effect {
            self.pin(*reason);
        }
    }

    /// The session keeps its backend from now on.
    pub(in crate::proxy) fn pin(&mut self, reason: PinReason) {
        if let (Some((PinReason::SessionAdvisoryLock, shard)), true) =
            (self.pinned, reason != PinReason::SessionAdvisoryLock)
            && self.link_shard() == Some(shard)
        {
            // It has more there than the lock from now on.
            self.pinned = None;
        }
        if let (None, Some(shard)) = (self.pinned, self.link_shard()) {
            self.pinned = Some((reason, shard));
            self.any = shard;
            self.info.set_pin(Some(pin_word(reason)));
        }
    }
}

fn pin_word(reason: PinReason) -> &'static str {
    match reason {
        PinReason::TemporaryTable => "temporary table",
        PinReason::SessionAdvisoryLock => "session advisory lock",
        PinReason::HoldCursor => "WITH HOLD cursor",
        PinReason::Listen => "LISTEN",
        PinReason::SqlPrepare => "SQL PREPARE",
        PinReason::Load => "LOAD",
        PinReason::SetRole => "SET ROLE",
        PinReason::Setting => "a setting that cannot be replayed",
        PinReason::Code => "code that may have left something",
        PinReason::Sequence => "currval or lastval",
    }
}
