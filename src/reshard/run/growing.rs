//! Columns that tables have got while a reshard runs: they are planned, and streams begin anew with them.
//!
//! What must stay true: nothing is applied by the former plan once another is recorded; what was compared without a column is
//! compared again with it.

use super::{PAUSE, Run};
use crate::{
    clock::Duration,
    failpoint,
    registry::errand,
    reshard::{
        effects::since,
        job::StepError,
        plan::Plan,
        record,
        runner::Left,
        state::State,
        steps::columns::{self, Columns},
    },
};
use serde_json::json;
use std::sync::Arc;

/// How long a shard has for getting what others have: both parts of a schema change are committed one after the other, and
/// whoever did it may have died in between.
const COMING: Duration = Duration::from_secs(20);

impl Run<'_> {
    /// A table has columns beside those that were planned.
    pub(super) async fn grow(&mut self, what: String) -> Result<(), Left> {
        const ANEW: &str = "abort the reshard and start it again, with the table as it is to be";
        let halt = |what: String, remedy: &str| StepError::Halt {
            what,
            remedy: remedy.to_owned(),
        };
        match self.stored.record.state {
            State::Verify | State::Ready | State::Reverse => {}
            // Rows are copied by the columns that were planned.
            State::Prepare | State::Copy | State::CatchUp => {
                return Box::pin(self.fail(halt(what, ANEW))).await;
            }
            State::Cutover | State::Finish | State::Done | State::Abort | State::Aborted => {
                return self.watch_for(PAUSE.0).await;
            }
        }
        let began = *self.growing.get_or_insert_with(|| self.runner.clock.now());
        let error = match columns::look(&self.job()).await {
            Ok(Columns::More { plan, what }) => return self.plan_anew(*plan, &what).await,
            Ok(Columns::AsPlanned) => halt(what, ANEW),
            Ok(Columns::Unlike { what }) => halt(what, ANEW),
            Ok(Columns::OnSome { what, .. }) if since(self.runner.clock, began) < COMING => {
                self.progress.set("problem", what);
                self.show_now().await;
                return self.watch_for(PAUSE.0).await;
            }
            Ok(Columns::OnSome { what, remedy }) => halt(what, &remedy),
            Err(error) => error,
        };
        // A shard that could not be asked has its time from when it can.
        self.growing = None;
        Box::pin(self.fail(error)).await
    }

    /// Before anything is copied, perhaps once more: the columns that tables have by now.
    pub(super) async fn read_columns(&mut self) -> Result<(), Left> {
        match columns::look(&self.job()).await {
            Ok(Columns::More { plan, what }) => self.plan_anew(*plan, &what).await,
            // What is not as it is to be is found where it is needed.
            Ok(Columns::AsPlanned | Columns::OnSome { .. } | Columns::Unlike { .. }) | Err(_) => {
                Ok(())
            }
        }
    }

    async fn plan_anew(&mut self, plan: Plan, what: &[String]) -> Result<(), Left> {
        self.anew = true;
        if let Err(error) = self.end_streams().await {
            return Box::pin(self.fail(error)).await;
        }
        let record = &self.stored.record;
        let again = i32::from(record.state == State::Verify);
        let round = record.round + again;
        failpoint::reached("begin_columns").await;
        let lease = self.runner.home().await?;
        let detail = json!({ "columns": what });
        let grown = errand(record::grow(&lease, &self.stored, (&plan, round), &detail)).await;
        if grown.is_ok() {
            lease.done();
        }
        if matches!(grown, Ok(true)) {
            tracing::info!(reshard = self.stored.id, columns = ?what, "tables have got columns");
            self.growing = None;
            self.progress.set("problem", serde_json::Value::Null);
            self.stored.plan = Arc::new(plan);
            self.stored.record.round = round;
            self.stored.version += 1;
            return Ok(());
        }
        // It may have been recorded: that tells.
        self.reload().await
    }
}
