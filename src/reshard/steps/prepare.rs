//! Makes the destinations ready for rows: what will be made is written down, nobody older may interfere, the tables are
//! there and of the same shape; and makes the sources tell their changes, from before the copy on.
//!
//! What must stay true: what a slot does not stream, every snapshot of the copy sees; a slot that is made anew has no copies
//! from before it.

use super::{
    activate::unless_owners,
    asking::{About as _, connection, named},
    lost,
    ready::{slot_error, stream},
    records::{Kind, Note, claim_all, note, taking_part},
    schema,
};
use crate::{
    clock::Duration,
    inspect::at_once,
    replication::slot::{self, Slot},
    reshard::{
        dump::Tools,
        job::{Job, StepError},
        plan::MovingTable,
        servers::Server,
    },
};

/// How long transactions of before a slot are waited for, before it is told who they are.
const BARRIER: Duration = Duration::from_secs(5);

/// Prepares every shard that takes part.
///
/// # Errors
/// [`StepError::Halt`]: a destination has tables of another shape, or some of them only.
pub async fn run(job: &Job, tools: &Tools) -> Result<(), StepError> {
    note(job, &notes(job)).await?;
    claim_all(job).await?;
    unless_owners(job).await?;
    let mut destinations: Vec<Server> = job.destinations();
    for join in &job.plan.joins {
        let server = named(job, join)?;
        if destinations.iter().all(|it| it.name != *join) {
            destinations.push(server.clone());
        }
    }
    for destination in &destinations {
        let source = model(job, &destination.name)?;
        prepare(job, tools, &source, destination).await?;
    }
    let servers = lost::settle(job).await?;
    let sources = job.sources();
    let streaming = at_once(sources.iter().map(|it| streams(job, it)).collect()).await;
    streaming.into_iter().collect::<Result<(), StepError>>()?;
    lost::record(job, &servers).await
}

/// The source's publication and slot, and every transaction over that was begun before.
async fn streams(job: &Job, source: &Server) -> Result<(), StepError> {
    let what = format!("making ready to stream from shard {}", source.name);
    let client = connection(source).await?;
    if let Slot::Made(_) = stream(job, source).await?
        && lost::is_copied(job, source).await?
    {
        // Somebody dropped the slot just now: without one it is seen that what was copied is of no use.
        let name = job.slot(&source.name);
        let mut commands = source.stream().await.about(&what)?;
        let removed = slot::remove(&client, &mut commands, &name).await;
        removed.map_err(|error| slot_error(&what, error))?;
        return Err(StepError::Again {
            what,
            problem: format!("slot {name} was lost after rows were copied"),
        });
    }
    let passed = slot::barrier(&client, BARRIER).await;
    passed.map_err(|error| slot_error(&what, error))
}

/// The source whose schema a destination is to have: one that gives it rows, else any.
fn model(job: &Job, destination: &str) -> Result<Server, StepError> {
    let giving = job.given_to(destination);
    match giving.first() {
        Some(moved) => Ok(named(job, &moved.from)?.clone()),
        None => job
            .sources()
            .into_iter()
            .next()
            .ok_or_else(|| StepError::Halt {
                what: "the plan moves nothing".to_owned(),
                remedy: "make another plan".to_owned(),
            }),
    }
}

fn notes(job: &Job) -> Vec<Note> {
    let mut notes = Vec::new();
    for source in job.sources() {
        let slot = job.slot(&source.name);
        notes.push(Note::of(Kind::Publication, &source.name, &slot));
        notes.push(Note::of(Kind::Slot, &source.name, &slot));
    }
    for server in taking_part(job) {
        notes.push(Note::of(Kind::Records, &server.name, "*"));
    }
    for destination in job.destinations() {
        notes.push(Note::of(Kind::Rows, &destination.name, "*"));
    }
    for join in &job.plan.joins {
        notes.push(Note::of(Kind::Table, join, "*"));
        notes.push(Note::of(Kind::Rows, join, "*"));
    }
    notes
}

async fn prepare(
    job: &Job,
    tools: &Tools,
    source: &Server,
    destination: &Server,
) -> Result<(), StepError> {
    let joins = job.plan.joins.contains(&destination.name);
    let (from, to) = (connection(source).await?, connection(destination).await?);
    if joins && schema::is_made(&to, job).await? {
        return Ok(());
    }
    let mut tables: Vec<MovingTable> = job.tables_of(&job.given_to(&destination.name));
    if joins {
        tables.extend(job.plan.reference.iter().cloned());
    }
    let (mut there, mut missing) = (0, Vec::new());
    for table in &tables {
        let wanted = schema::shape(&from, table)
            .await?
            .ok_or_else(|| StepError::Halt {
                what: format!("shard {} has no table {}", source.name, table.plain()),
                remedy: "make another plan".to_owned(),
            })?;
        let Some(found) = schema::shape(&to, table).await? else {
            missing.push(table.plain());
            continue;
        };
        there += 1;
        if let Some(differs) = wanted.differs(&found).filter(|differs| differs.essential) {
            return Err(StepError::Halt {
                what: format!(
                    "table {} differs on shard {}: it lacks {:?}, and has {:?} instead",
                    table.plain(),
                    destination.name,
                    differs.missing,
                    differs.extra
                ),
                remedy: "make the tables alike, then resume".to_owned(),
            });
        }
    }
    match (there, joins) {
        (0, true) => schema::make(job, tools, source, destination).await,
        _ if missing.is_empty() => Ok(()),
        _ => Err(StepError::Halt {
            what: format!("shard {} lacks {}", destination.name, missing.join(", ")),
            remedy: "make the tables there as they are on the others, then resume".to_owned(),
        }),
    }
}
