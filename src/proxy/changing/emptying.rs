//! TRUNCATE of tables of which a reshard moves rows.
//!
//! What must stay true: on every shard the tables are locked before anything is looked at or deleted, so that nobody's
//! row comes or goes between; all of it is one transaction, done on all shards or on none.

use super::{Changes, ShardSet, Stop, Written, reply};
use crate::{
    catalog::{group::GroupId, snapshot::Snapshot},
    plan::emptying::{Empties, Kept},
    proxy::{database::Database, holding::reshard_of, session::Session, spread::without_position},
    wire::notice::Words,
};
use std::sync::Arc;

/// What PostgreSQL answers.
const TAG: &[u8] = b"TRUNCATE TABLE";

impl Session {
    /// Empties tables of which rows move; `None`: no rows of theirs do, or it is no TRUNCATE.
    ///
    /// # Errors
    /// DELETE would not do what TRUNCATE does; what servers say.
    pub(super) async fn empty_moving(
        &mut self,
        changes: &Changes,
    ) -> Result<Option<Written>, Stop> {
        let Some(empties) = &changes.empties else {
            return Ok(None);
        };
        let known = Arc::clone(&self.snapshot);
        let Some(group) = empties.moving(&known) else {
            return Ok(None);
        };
        if let Err(why) = empties.check(&known) {
            return Err(kept(&self.database, &known, group, (empties, &why)).await);
        }
        self.begin_own().await?;
        let (shards, _) = self.concerned(changes).await?;
        match self.empty_on(&shards, empties, &known).await? {
            Ok(()) => Ok(Some(Written::of_command(TAG.to_vec()))),
            Err(why) => Err(kept(&self.database, &known, group, (empties, &why)).await),
        }
    }

    async fn empty_on(
        &mut self,
        shards: &ShardSet,
        empties: &Empties,
        known: &Snapshot,
    ) -> Result<Result<(), Kept>, Stop> {
        for shard in shards.iter() {
            self.run_instead(&ShardSet::one(shard), &empties.lock())
                .await?;
            if let Some(answer) = self.ask_within(shard, &empties.question()).await? {
                return Ok(Err(Kept::read(&answer)));
            }
        }
        for shard in shards.iter() {
            let Ok(delete) = empties.delete(known, shard) else {
                return Ok(Err(Kept::Hash));
            };
            self.run_instead(&ShardSet::one(shard), &delete).await?;
        }
        Ok(Ok(()))
    }

    /// Runs what the client did not write: a place in it is none of the client's text.
    async fn run_instead(&mut self, shards: &ShardSet, text: &str) -> Result<(), Stop> {
        match self.run_on(shards, text).await {
            Ok(_) => Ok(()),
            Err(Stop::Refused(words)) => Err(match *words {
                Words::Servers(body) => Words::Servers(without_position(&body)).into(),
                own => own.into(),
            }),
            Err(end) => Err(end),
        }
    }
}

/// What the client is told of why its tables are not emptied.
async fn kept(
    database: &Database,
    known: &Snapshot,
    group: GroupId,
    (empties, why): (&Empties, &Kept),
) -> Stop {
    let name = &known.group(group).name;
    let reshard = reshard_of(database, name).await;
    reply::changes::not_emptied(name, reshard.as_ref(), empties.others, why).into()
}
