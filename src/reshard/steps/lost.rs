//! What a server that failed over, or a slot that is gone, makes worthless: rows that were copied and cannot be caught up.
//!
//! What must stay true: they are gone before another slot is made, so that whoever begins again knows by the missing slot
//! that they are of no use; only rows of keys that the destination does not own go, whatever the record says.

use super::{
    activate::unless_owners,
    asking::{About as _, connection, home, named},
    condition, copy,
    ready::{published, slot_error},
    records::{begin, taking_part},
    rows,
};
use crate::{
    replication::{
        publication::{self, Publication},
        slot::{self, State, WalStatus},
    },
    reshard::{
        flows::Flow,
        identity::{Identity, identify},
        job::{Job, StepError},
        plan::identifier,
        record::IDENTITIES,
        servers::Server,
    },
};
use std::collections::{BTreeMap, BTreeSet};

const RECORD: &str = "\
INSERT INTO shardway.server AS s (workflow, shard, system, timeline) VALUES ($1, $2, $3, $4) \
ON CONFLICT (workflow, shard) DO UPDATE SET timeline = excluded.timeline, system = excluded.system";
const COPIED: &str =
    "SELECT EXISTS (SELECT FROM shardway.chunk_done WHERE workflow = $1 AND source = $2)";

/// Deletes what was copied from every source whose changes since are not known any more; who the servers are.
pub(super) async fn settle(job: &Job) -> Result<BTreeMap<String, Identity>, StepError> {
    let (now, changed) = who(job).await?;
    for source in job.sources() {
        if !is_copied(job, &source).await? {
            continue;
        }
        let mut given = flows(job, &source.name);
        let failed_over =
            changed.contains(&source.name) || given.any(|it| changed.contains(&it.destination));
        if failed_over || !has_slot(job, &source).await? {
            forget(job, &source).await?;
        }
    }
    Ok(now)
}

/// Writes down who they are: from here on they have to be.
pub(super) async fn record(job: &Job, now: &BTreeMap<String, Identity>) -> Result<(), StepError> {
    let client = home(job).await?;
    for (shard, identity) in now {
        let timeline = i64::from(identity.timeline);
        let recorded = client
            .execute(RECORD, &[&job.id, shard, &identity.system, &timeline])
            .await;
        recorded.about("recording which servers take part")?;
    }
    Ok(())
}

/// Whether rows of a source are on any destination.
pub(super) async fn is_copied(job: &Job, source: &Server) -> Result<bool, StepError> {
    let destinations: BTreeSet<String> = flows(job, &source.name)
        .map(|flow| flow.destination)
        .collect();
    for destination in destinations {
        let client = connection(named(job, &destination)?).await?;
        let copied = client.query_one(COPIED, &[&job.id, &source.name]).await;
        if copied.about("asking what is copied")?.get(0) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn flows<'a>(job: &'a Job, source: &'a str) -> impl Iterator<Item = Flow<'a>> {
    let flows = job.flows().into_iter();
    flows.filter(move |flow| flow.source == source)
}

/// Who the servers are, and which of them have failed over since they were recorded.
async fn who(job: &Job) -> Result<(BTreeMap<String, Identity>, BTreeSet<String>), StepError> {
    let what = "asking which servers take part";
    let rows = home(job).await?.query(IDENTITIES, &[&job.id]).await;
    let mut before = BTreeMap::new();
    for row in rows.about(what)? {
        let (shard, timeline): (String, i64) = (row.get(0), row.get(2));
        before.insert(shard, timeline);
    }
    let (mut now, mut changed) = (BTreeMap::new(), BTreeSet::new());
    for server in taking_part(job) {
        let client = connection(&server).await?;
        let Some(identity) = identify(&client).await.about(what)? else {
            continue;
        };
        let timeline = i64::from(identity.timeline);
        if before.get(&server.name).is_some_and(|it| *it != timeline) {
            changed.insert(server.name.clone());
        }
        now.insert(server.name, identity);
    }
    Ok((now, changed))
}

/// Whether the slot still has everything since the copy.
async fn has_slot(job: &Job, source: &Server) -> Result<bool, StepError> {
    let name = job.slot(&source.name);
    let what = format!("looking at slot {name} on shard {}", source.name);
    let client = connection(source).await?;
    let state = slot::state(&client, &name).await;
    let state = state.map_err(|error| slot_error(&what, error))?;
    let kept = |state: State| state.confirmed.is_some() && state.wal != WalStatus::Lost;
    let tables = published(job, source);
    let same = publication::find(&client, &name, &tables).await;
    Ok(state.is_some_and(kept) && same.about(&what)? == Some(Publication::Found))
}

/// The slot goes, then the rows, then what says that they are there.
async fn forget(job: &Job, source: &Server) -> Result<(), StepError> {
    let name = job.slot(&source.name);
    let what = format!("forgetting what was copied from shard {}", source.name);
    tracing::warn!(
        reshard = job.id,
        shard = source.name,
        "its rows are copied again"
    );
    unless_owners(job).await?;
    // A chunk or a batch could be committed else after its rows were deleted.
    copy::stop(job).await?;
    let client = connection(source).await?;
    let mut commands = source.stream().await.about(&what)?;
    let removed = slot::remove(&client, &mut commands, &name).await;
    removed.map_err(|error| slot_error(&what, error))?;
    let mut destinations = BTreeSet::new();
    for flow in flows(job, &source.name) {
        let client = connection(named(job, &flow.destination)?).await?;
        let moves = job.given_to(&flow.destination).into_iter();
        let moves: Vec<_> = moves.filter(|it| it.from == source.name).collect();
        let column = identifier(&flow.table.key_column);
        let condition = match flow.keys {
            Some(_) => condition(job, flow.table, &moves, &column)?,
            None => Some("true".to_owned()),
        };
        if let Some(condition) = condition {
            rows::delete(&client, job, flow.table, &condition).await?;
        }
        destinations.insert(flow.destination);
    }
    for destination in destinations {
        const RECORDS: [&str; 2] = [
            "DELETE FROM shardway.apply_progress WHERE workflow = $1 AND source = $2",
            "DELETE FROM shardway.chunk_done WHERE workflow = $1 AND source = $2",
        ];
        let client = connection(named(job, &destination)?).await?;
        begin(&client, job).await?;
        for record in RECORDS {
            let deleted = client.execute(record, &[&job.id, &source.name]).await;
            deleted.about(&what)?;
        }
        client.batch_execute("COMMIT").await.about(&what)?;
    }
    Ok(())
}
