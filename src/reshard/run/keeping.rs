//! The record of a run: what comes of steps in it, and what others have written there.

use super::{PAUSE, Run};
use crate::{
    clock::Duration,
    registry::errand,
    reshard::{
        job::StepError,
        record::{self, Stored, word},
        runner::Left,
        state::{Event, Record, State, Step, Stopped, Then},
    },
};
use serde_json::{Value, json};

impl Run<'_> {
    /// Records what came of something; of a record that somebody has changed, what comes of it now.
    pub(super) async fn settle(&mut self, event: &Event, detail: &Value) -> Result<(), Left> {
        while let Some(next) = self.stored.record.after(event) {
            let name = match event {
                Event::Done(effect) => format!("{effect:?}").to_lowercase(),
                Event::Again => "failed".to_owned(),
                Event::Halt(_) => "stopped".to_owned(),
                Event::Lost(_) => "lost".to_owned(),
                Event::FailedOver(_) => "failed over".to_owned(),
                Event::TakenOver => "undone by another runner".to_owned(),
            };
            if self.swap(&next, &name, detail).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Changes the record; false: somebody else has, and it was read again.
    pub(super) async fn swap(
        &mut self,
        record: &Record,
        event: &str,
        detail: &Value,
    ) -> Result<bool, Left> {
        let lease = self.runner.home().await?;
        let swapped = errand(record::swap(&lease, &self.stored, record, event, detail)).await;
        match swapped {
            Ok(true) => {
                lease.done();
                self.stored.record = record.clone();
                self.stored.version += 1;
                self.tell();
                Ok(true)
            }
            Ok(false) => {
                lease.done();
                self.reload().await?;
                Ok(false)
            }
            // It may have been changed: what is recorded tells.
            Err(_) => {
                self.reload().await?;
                Ok(false)
            }
        }
    }

    pub(super) async fn fail(&mut self, error: StepError) -> Result<(), Left> {
        let (event, told) = match error {
            StepError::Replaced => return Err(Left::Replaced),
            StepError::Again {
                ref what,
                ref problem,
            } => (Event::Again, format!("{what}: {problem}")),
            StepError::Halt { what, remedy } => {
                let told = what.clone();
                let then = Then::GoOn;
                (Event::Halt(Stopped { what, remedy, then }), told)
            }
            StepError::Lost { what } => (Event::Lost(what.clone()), what),
            StepError::FailedOver { what } => (Event::FailedOver(what.clone()), what),
            StepError::Grown { what } => {
                self.reload().await?;
                if !self.stored.record.is_attempt() {
                    return self.grow(what).await;
                }
                // Once it is undone.
                (Event::Again, what)
            }
        };
        let (id, state) = (&self.stored.id, word(&self.stored.record.state));
        tracing::warn!(reshard = id, state, problem = told, "a step failed");
        self.progress.set("problem", told.as_str());
        // Whatever it was, a commit may have happened.
        self.reload().await?;
        let attempt = self.stored.record.is_attempt();
        self.settle(&event, &json!({ "problem": told })).await?;
        self.show_now().await;
        if matches!(event, Event::Lost(_)) && self.stored.record.state == State::Prepare {
            self.streams.clear();
            return Ok(());
        }
        if self.stored.record.stopped.is_some() && !attempt {
            self.streams.clear();
            return Ok(());
        }
        if attempt && self.stored.record.step == Some(Step::Undo) {
            self.rest = Some(self.runner.clock.now() + rest(self.failed));
            let again = matches!(event, Event::Again);
            self.hindered = Some(told);
            self.failed = if again { self.failed + 1 } else { 0 };
            return Ok(());
        }
        self.watch_for(self.pause).await?;
        self.pause = (self.pause * 2).min(PAUSE.1);
        Ok(())
    }

    pub(super) async fn changed(&self) -> Result<Option<Stored>, Left> {
        match self.changed_since(self.stored.version).await {
            Err(Left::Ask(_)) => Ok(None),
            changed => changed,
        }
    }

    /// The record, if it has another version.
    pub(super) async fn changed_since(&self, version: i64) -> Result<Option<Stored>, Left> {
        let lease = self.runner.home().await?;
        let now = errand(record::version(&lease, &self.stored.id)).await?;
        let changed = match now {
            Some((_, token)) if token != self.stored.token => return Err(Left::Replaced),
            None => return Err(Left::Replaced),
            // The home shard has forgotten something: whoever takes the run over asks the servers.
            Some((now, _)) if now < version => return Err(Left::Replaced),
            Some((now, _)) if now == version => None,
            Some(_) => errand(record::read(&lease, &self.stored.id)).await?,
        };
        lease.done();
        Ok(changed)
    }

    pub(super) async fn watch_for(&mut self, time: Duration) -> Result<(), Left> {
        tokio::time::sleep(time).await;
        if let Some(changed) = self.changed().await? {
            self.take_over(changed);
        }
        Ok(())
    }

    pub(super) fn take_over(&mut self, stored: Stored) {
        self.stored = stored;
        self.set_knobs(self.stored.knobs.clone());
    }

    /// Reads the record again.
    pub(super) async fn reload(&mut self) -> Result<(), Left> {
        let lease = self.runner.home().await?;
        let stored = errand(record::read(&lease, &self.stored.id)).await?;
        lease.done();
        match stored {
            Some(stored)
                if stored.token == self.stored.token && stored.version >= self.stored.version =>
            {
                self.take_over(stored);
                Ok(())
            }
            Some(_) | None => Err(Left::Replaced),
        }
    }
}

/// How long statements go on before the next attempt, after one before which so many had failed.
fn rest(failed: u32) -> Duration {
    PAUSE
        .0
        .saturating_mul(2_u32.saturating_pow(failed))
        .min(PAUSE.1)
}
