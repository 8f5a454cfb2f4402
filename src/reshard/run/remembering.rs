//! What servers know of a run and its record does not: the home shard has failed over to a server that had not got it yet.
//!
//! What must stay true: where new owners have taken over, the run goes on from there and from nowhere before; no number of
//! an attempt is used twice; and nothing is done by a map that is older than what a server has seen.

use super::Run;
use crate::reshard::{
    job::StepError,
    runner::Left,
    state::{Known, Record},
    steps,
};
use serde_json::json;

impl Run<'_> {
    /// Brings the record to where the servers are, before anything is done by it.
    pub(super) async fn remember(&mut self) -> Result<(), Left> {
        loop {
            let known = match self.known().await {
                Ok(known) => known,
                Err(error) => {
                    self.begins_again(error).await?;
                    continue;
                }
            };
            let Some(record) = self.stored.record.with(&known) else {
                return Ok(());
            };
            self.tell_of(&record, &known);
            let detail = json!({ "attempt": record.attempt, "flips": record.flips });
            if self.swap(&record, "remembered", &detail).await? {
                return Ok(());
            }
        }
    }

    async fn known(&self) -> Result<Known, StepError> {
        const WHAT: &str = "asking what servers know of the run";
        let mut known = Box::pin(steps::activate::known(&self.anybodys())).await?;
        let map = self.runner.registry.read_map().await;
        let map = map.map_err(|error| StepError::Again {
            what: WHAT.to_owned(),
            problem: error.to_string(),
        })?;
        if map.epoch < known.epoch {
            return Err(StepError::Again {
                what: WHAT.to_owned(),
                problem: format!(
                    "the home shard has map {}, and servers have seen {}: it goes on when a proxy has given it back",
                    map.epoch, known.epoch
                ),
            });
        }
        // A map that a shard kept a copy of came back, and whoever owns keys by it was not told yet.
        if let Some(went) = self.stored.plan.went(&map.content.owners) {
            known.by_map(went);
        }
        Ok(known)
    }

    fn tell_of(&self, record: &Record, known: &Known) {
        tracing::warn!(
            reshard = self.stored.id,
            attempt = record.attempt,
            flips = record.flips,
            ?known,
            "the home shard had forgotten where it stood: servers know"
        );
    }
}
