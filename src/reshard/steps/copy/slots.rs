//! What keeps the changes of each source from before the first chunk: the publication, then the slot, then the barrier.
//!
//! What must stay true: no chunk is read before all three; once a chunk is there, none of them is made again, because the
//! changes in between would be lost.

use super::{
    super::{
        asking::{About as _, connection, named},
        ready::{FENCES, slot_error, unless_replaced},
    },
    settled::Done,
};
use crate::{
    clock::Duration,
    replication::{
        connection::ReplicationError,
        publication::{self, Publication},
        slot::{self, Slot, SlotError, WalStatus},
    },
    reshard::{
        flows::Flow,
        job::{Job, StepError},
    },
};
use deadpool_postgres::Client;
use serde_json::Value;
use std::collections::BTreeMap;

/// How often it is said anew whom the barrier waits for.
const ROUND: Duration = Duration::from_secs(1);
/// Who that is, among the figures.
const WAITING: &str = "copy.waiting_for";

/// Makes them on every source, and looks at them where chunks of it are copied already.
pub(super) async fn make(job: &Job, flows: &[Flow<'_>], done: &Done) -> Result<(), StepError> {
    let mut sources: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for flow in flows {
        let tables = sources.entry(&flow.source).or_default();
        let table = flow.table.sql();
        if !tables.contains(&table) {
            tables.push(table);
        }
    }
    for (source, mut tables) in sources {
        tables.push(FENCES.to_owned());
        let begun = done.values().flat_map(BTreeMap::keys);
        let begun = begun.into_iter().any(|((from, _), _)| from == source);
        if begun {
            look(job, source, &tables).await?;
        } else {
            first(job, source, &tables).await?;
        }
    }
    Ok(())
}

/// Before the first chunk: what there is otherwise than it should be is made anew.
async fn first(job: &Job, name: &str, tables: &[String]) -> Result<(), StepError> {
    let (server, called) = (named(job, name)?, job.slot(name));
    let what = format!("making slot {called} on shard {name}");
    let client = connection(server).await?;
    let mut commands = server.stream().await.about(&what)?;
    let found = publication::make(&client, &called, tables).await;
    let found = found.about(&what)?;
    let lost = slot::state(&client, &called).await;
    let lost = lost.map_err(|error| slot_error(&what, error))?;
    let is_lost = lost.is_some_and(|state| state.wal == WalStatus::Lost);
    if found != Publication::Found || is_lost {
        let removed = slot::remove(&client, &mut commands, &called).await;
        removed.map_err(|error| slot_error(&what, error))?;
    }
    if let Publication::Another { .. } = found {
        let removed = publication::remove(&client, &called).await;
        removed.about(&what)?;
        let made = publication::make(&client, &called, tables).await;
        made.about(&what)?;
    }
    let made = slot::make(&client, &mut commands, &called).await;
    match made {
        // The server waits for whoever has changed something in a transaction that is not over.
        Err(SlotError::Replication(ReplicationError::Timeout)) => {
            let running = slot::running(&client).await.about(&what)?;
            return Err(StepError::Again {
                what,
                problem: format!("it waits for {}", running.join("; ")),
            });
        }
        Err(error) => return Err(slot_error(&what, error)),
        Ok(Slot::Made(_)) => unless_replaced(job, &client, (&mut commands, &called)).await?,
        Ok(Slot::Found(_)) => {}
    }
    barrier(job, &client, name).await
}

async fn barrier(job: &Job, client: &Client, name: &str) -> Result<(), StepError> {
    let what = format!("waiting for transactions on shard {name}");
    loop {
        match slot::barrier(client, ROUND).await {
            Ok(()) => {
                job.progress.set(WAITING, Value::Null);
                return Ok(());
            }
            Err(SlotError::Waiting(who)) => {
                job.progress
                    .set(WAITING, format!("{name}: {}", who.join("; ")));
            }
            Err(error) => return Err(slot_error(&what, error)),
        }
    }
}

/// After the first chunk: they are there, or what was copied is of no use.
async fn look(job: &Job, name: &str, tables: &[String]) -> Result<(), StepError> {
    let called = job.slot(name);
    let what = format!("looking at slot {called} on shard {name}");
    let client = connection(named(job, name)?).await?;
    let state = slot::state(&client, &called).await;
    let state = state.map_err(|error| slot_error(&what, error))?;
    let kept = state.is_some_and(|it| it.confirmed.is_some() && it.wal != WalStatus::Lost);
    let same = publication::find(&client, &called, tables).await;
    if kept && same.about(&what)? == Some(Publication::Found) {
        return Ok(());
    }
    Err(StepError::Lost {
        what: format!(
            "slot or publication {called} of shard {name} is gone or another, and with it what was changed since the copy began"
        ),
    })
}
