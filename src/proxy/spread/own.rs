//! A transaction of ours, which the client did not begin: it ends with the batch, and before the client is told so.

use crate::{
    protocol::transaction::Deferred,
    proxy::{
        reply::session as reply,
        request::Stop,
        session::{End, Session},
    },
    sql::statement::Effect,
    wire::backend::Status,
};

impl Session {
    /// Begins a transaction of ours, unless the client's is open or ours is.
    pub(in crate::proxy) async fn begin_own(&mut self) -> Result<(), Stop> {
        if self.status() != Status::Idle {
            return Ok(());
        }
        if self.link.is_some() {
            // It did nothing that must stay.
            self.leave_link().await?;
            self.park_or_release().await?;
        }
        self.deferred = Some(Deferred::begin(b"BEGIN"));
        self.parameters.begin();
        self.for_batch = true;
        Ok(())
    }

    /// Commits our transaction on all its shards.
    pub(in crate::proxy) async fn commit_own(&mut self) -> Result<(), Stop> {
        if self.end_unreached(true).await? {
            return Ok(());
        }
        self.for_batch = false;
        let tag = self.end_several(&Effect::Commit { chain: false }).await?;
        if tag == b"COMMIT" {
            Ok(())
        } else {
            Err(reply::transaction_failed().into())
        }
    }

    /// Undoes our transaction, wherever it has come.
    pub(in crate::proxy) async fn undo_own(&mut self) -> Result<(), Stop> {
        if self.end_unreached(false).await? {
            return Ok(());
        }
        self.for_batch = false;
        let ended = self.end_several(&Effect::Rollback { chain: false }).await;
        ended.map(drop)
    }

    /// Sync behind a write to several shards: what the batch did is committed, or undone if any of it failed.
    pub(in crate::proxy) async fn end_batch(&mut self) -> Result<(), End> {
        match self.flush_pending().await {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(words)) => self.refuse(&words),
        }
        self.settle().await?;
        let ended = if self.failed || self.skip {
            self.undo_own().await
        } else {
            self.commit_own().await
        };
        match ended {
            Ok(()) => {}
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(words)) => {
                let words = self.reworded(&words).unwrap_or(*words);
                self.count_refusal(&words);
                self.failed = true;
                words.put(self.client.out());
            }
        }
        self.ready_here();
        Ok(())
    }

    /// A Query or FunctionCall behind a write in one pipeline: what the pipeline did before it is undone, and it is not
    /// run.
    ///
    /// # Errors
    /// The session is over.
    pub(in crate::proxy) async fn leave_own_batch(&mut self) -> Result<(), End> {
        self.settle().await?;
        if let Err(Stop::End(end)) = self.undo_own().await {
            return Err(end);
        }
        self.refuse_query(&reply::rows::behind_a_write().into())
            .await
    }

    /// What a transaction of ours, which ends with the batch, cannot take: commands that begin or end another, or that
    /// change the session.
    pub(in crate::proxy) fn check_in_own(&self, effect: &Effect) -> Result<(), Stop> {
        if self.for_batch && *effect != Effect::None {
            return Err(reply::rows::behind_a_write().into());
        }
        Ok(())
    }
}
