//! Ends an attempt of a cutover for a runner that does not: it has died, or stands still, while statements wait for it.
//! Whichever proxy sees it first does it, long before another has the lead.
//!
//! What must stay true: what is done is what the record asks for, on every shard that takes part, may be done twice, and is
//! refused on a server that has seen a later attempt; an attempt is undone only when it cannot be committed any more.

use super::{
    hold,
    job::{Job, StepError},
    record::{self, Stored},
    servers::Server,
    state::{State, Step},
    steps,
};
use crate::{
    inspect::AskError,
    registry::{
        Registry, errand,
        holds::{Ending, Overdue},
    },
};
use std::{collections::BTreeMap, sync::Arc};
use tokio::sync::watch;

/// Why it was not done: by somebody else, or nobody can.
#[derive(Debug, thiserror::Error)]
pub enum Unhelped {
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("the map cannot be read: {0}")]
    Map(crate::registry::Unflipped),
    #[error("it is at another attempt by now")]
    Other,
    #[error("the configuration has no shard {0}, which takes part")]
    Lacks(String),
}

/// Lets the new owners know what is theirs, or turns guards off, and lets statements go.
///
/// # Errors
/// [`Unhelped`]: they wait until the hold's deadline, or until somebody else has done it.
pub async fn help(
    registry: &Registry,
    servers: &Arc<BTreeMap<String, Server>>,
    overdue: &Overdue,
) -> Result<(), Unhelped> {
    let lease = registry.lease(registry.home()).await?;
    let stored = errand(record::read(&lease, &overdue.workflow)).await?;
    let Some(stored) = stored.filter(|it| it.record.attempt == overdue.attempt) else {
        lease.done();
        return Err(Unhelped::Other);
    };
    let committed = stored.record.step == Some(Step::Committed);
    if stored.record.state != State::Cutover || committed != (overdue.ending == Ending::Committed) {
        lease.done();
        return Err(Unhelped::Other);
    }
    if let Some(shard) = stored.plan.lacks(servers, &stored.without()) {
        lease.done();
        return Err(Unhelped::Lacks(shard));
    }
    let job = job(registry, servers, &stored);
    match overdue.ending {
        Ending::Committed => {
            let map = registry.read_map().await.map_err(Unhelped::Map)?;
            Box::pin(steps::activate::run(&job.turned(), &map)).await?;
        }
        Ending::Released => Box::pin(steps::unfence::run(&job)).await?,
    }
    let (workflow, attempt) = (&overdue.workflow, overdue.attempt);
    errand(hold::settled(&lease, workflow, attempt)).await?;
    lease.done();
    tracing::warn!(
        database = registry.database(),
        reshard = workflow,
        attempt,
        ending = ?overdue.ending,
        "has ended an attempt for a runner that did not"
    );
    Ok(())
}

/// As the record has it: committed, it speaks of the next cutover already.
fn job(registry: &Registry, servers: &Arc<BTreeMap<String, Server>>, stored: &Stored) -> Job {
    let (_, knobs) = watch::channel(stored.knobs.clone());
    Job {
        id: stored.id.clone(),
        token: stored.token,
        attempt: stored.record.attempt,
        direction: stored.record.direction(),
        plan: Arc::clone(&stored.plan),
        knobs,
        servers: Arc::clone(servers),
        home: registry.name(registry.home()).to_owned(),
        progress: Arc::default(),
        lines: Arc::default(),
    }
}
