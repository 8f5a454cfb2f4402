//! Makes what the cutover only has to turn on: guards on the sources, publications and slots of the way back, sequences.
//!
//! What must stay true: nothing here is seen by a client; it may take as long as it takes, for no statement is held yet.

use super::{
    asking::{About as _, Typed, connection},
    catch_up, guard,
    records::{Kind, Note, claim, claim_all, note},
    sequences, watched,
};
use crate::{
    inspect::at_once,
    replication::{
        connection::{Connection, ReplicationError},
        publication::{self, Publication},
        slot::{self, SlotError},
    },
    reshard::{
        job::{Direction, Job, StepError},
        servers::Server,
    },
};
use deadpool_postgres::Client;
use std::collections::BTreeSet;
use tokio_postgres::types::Type;

/// What every publication of a reshard has beside the tables: heartbeats and fences.
pub const FENCES: &str = "shardway.fence";

/// Makes everything ready for a cutover in the job's direction.
///
/// # Errors
/// [`StepError::Again`] as well while a table is too busy, or a transaction that is older than a slot goes on.
pub async fn run(job: &Job) -> Result<(), StepError> {
    let back = job.turned();
    let mut notes = Vec::new();
    for source in job.sources() {
        notes.push(Note::of(Kind::Guard, &source.name, &guard::name(job)));
    }
    for destination in job.destinations() {
        let slot = back.slot(&destination.name);
        notes.push(Note::of(Kind::Publication, &destination.name, &slot));
        notes.push(Note::of(Kind::Slot, &destination.name, &slot));
    }
    note(job, &notes).await?;
    claim_all(job).await?;
    let destinations = job.destinations();
    // Once owners have changed it would be too late to mend a table whose changes cannot be brought back.
    let looked = destinations.iter().map(|it| followable(&back, it));
    let looked = at_once(looked.collect()).await;
    looked.into_iter().collect::<Result<(), StepError>>()?;
    for source in job.sources() {
        watched::unless_subscribed(&connection(&source).await?, job, &source).await?;
    }
    let made = at_once(destinations.iter().map(|it| stream(&back, it)).collect()).await;
    made.into_iter().collect::<Result<Vec<_>, StepError>>()?;
    sequences::run(job).await?;
    for source in job.sources() {
        guard::make(job, &source).await?;
    }
    Ok(())
}

/// Sees that what a server gives in the job's direction is as a stream of it is to have it.
async fn followable(job: &Job, server: &Server) -> Result<(), StepError> {
    let client = connection(server).await?;
    for table in watched::given(job, server) {
        catch_up::unless_changed(job, &client, server, table).await?;
    }
    watched::unless_untold(&client, job, server).await?;
    watched::unless_subscribed(&client, job, server).await
}

/// While it waits for a cutover: nothing is read yet from the slots of the way back, and no WAL is to be kept for them.
///
/// # Errors
/// [`StepError`].
pub async fn advance(job: &Job) -> Result<(), StepError> {
    const LOST: &str = "\
SELECT NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = $1 AND database = current_database() \
    AND coalesce(wal_status, 'reserved') <> 'lost')";
    // Never where another runner has noted a position, from which on what is written there has to be brought back. In one
    // statement: nobody waits for a runner that sleeps in between.
    const ADVANCE: &str = "\
WITH mine AS (SELECT FROM shardway.runner WHERE workflow = $2 AND token <= $3 FOR SHARE) \
SELECT (SELECT count(*) FROM mine), \
       (SELECT pg_replication_slot_advance(slot_name, pg_current_wal_flush_lsn())::text FROM pg_replication_slots \
        WHERE slot_name = $1 AND active_pid IS NULL AND database = current_database() AND EXISTS (SELECT FROM mine))";
    let back = job.turned();
    for destination in job.destinations() {
        let name = back.slot(&destination.name);
        let client = connection(&destination).await?;
        let lost = client.query_one(LOST, &[&name]).await;
        if lost.about("looking at a slot")?.get(0) {
            // Nothing is needed of it yet.
            stream(&back, &destination).await?;
        }
        let values: [Typed<'_>; 3] = [
            (&name, Type::TEXT),
            (&job.id, Type::TEXT),
            (&job.token, Type::INT8),
        ];
        let advanced = client.query_typed_one(ADVANCE, &values).await;
        if advanced.about("moving a slot on")?.get::<_, i64>(0) != 1 {
            return Err(StepError::Replaced);
        }
    }
    Ok(())
}

/// What is published of what a shard gives in the job's direction.
pub(super) fn published(job: &Job, server: &Server) -> Vec<String> {
    let flows = job.flows().into_iter();
    let given = flows.filter(|flow| flow.source == server.name);
    let mut tables: BTreeSet<String> = given.map(|flow| flow.table.sql()).collect();
    tables.insert(FENCES.to_owned());
    tables.into_iter().collect()
}

/// Sees, on every server that takes part, that each table is the one whose changes are streamed, either way, that they say of
/// which row they are, and that nobody subscribes to rows for it.
///
/// # Errors
/// [`StepError::Halt`]: it is not so of one.
pub async fn same_tables(job: &Job) -> Result<(), StepError> {
    let back = job.turned();
    let sources = job.sources().into_iter().map(|it| (job, it));
    let destinations = job.destinations().into_iter().map(|it| (&back, it));
    let each = sources.chain(destinations).map(|(job, server)| async move {
        unless_another(&connection(&server).await?, job, &server).await
    });
    at_once(each.collect()).await.into_iter().collect()
}

/// The same, of what one server gives. Under the locks of a fence none becomes another.
pub(super) async fn unless_another(
    client: &Client,
    job: &Job,
    server: &Server,
) -> Result<(), StepError> {
    const ANOTHER: &str = "\
SELECT replace(name, '\"', '') FROM unnest($2::text[]) name WHERE NOT EXISTS ( \
    SELECT FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid \
    WHERE p.pubname = $1 AND r.prrelid = to_regclass(name)) ORDER BY 1";
    let (name, tables) = (job.slot(&server.name), published(job, server));
    let values: [Typed<'_>; 2] = [(&name, Type::TEXT), (&tables, Type::TEXT_ARRAY)];
    // Sent at once, as the rest of what is asked under a fence's locks.
    let (rows, told, subscribed) = tokio::join!(
        biased;
        client.query_typed(ANOTHER, &values),
        watched::unless_untold(client, job, server),
        watched::unless_subscribed(client, job, server),
    );
    let rows = rows.about("looking at what is published")?;
    told?;
    subscribed?;
    if rows.is_empty() {
        return Ok(());
    }
    let others: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
    let otherwise = match job.direction {
        Direction::Forward => "abort the reshard and start it again, with the table as it is to be",
        Direction::Back => {
            "abort the reshard before a cutover; after it ask for finish, and resume for it to be done"
        }
    };
    Err(StepError::Halt {
        what: format!(
            "{} on shard {} is not the table that it was: its changes are not in publication {name}",
            others.join(", "),
            server.name
        ),
        remedy: format!("give it the table that it had, then resume; or {otherwise}"),
    })
}

/// The publication and the slot of what a shard gives in the job's direction.
///
/// # Errors
/// [`StepError::Again`] as well while a transaction that is older than the slot goes on.
pub(super) async fn stream(job: &Job, server: &Server) -> Result<slot::Slot, StepError> {
    let name = job.slot(&server.name);
    let what = format!("making slot {name} on shard {}", server.name);
    let client = connection(server).await?;
    let tables = published(job, server);
    let mut commands = server.stream().await.about(&what)?;
    claim(&client, job).await?;
    match publication::make(&client, &name, &tables)
        .await
        .about(&what)?
    {
        Publication::Found => {}
        // A slot from before it streams nothing of use.
        Publication::Made => {
            let removed = slot::remove(&client, &mut commands, &name).await;
            removed.map_err(|error| slot_error(&what, error))?;
        }
        Publication::Another { tables } => {
            let tables = tables.join(", ");
            return Err(StepError::Halt {
                what: format!("{what}: its publication has other tables: {tables}"),
                remedy: format!("DROP PUBLICATION {name}"),
            });
        }
    }
    match slot::make(&client, &mut commands, &name).await {
        Ok(slot @ slot::Slot::Found(_)) => Ok(slot),
        Ok(slot @ slot::Slot::Made(_)) => {
            unless_replaced(job, &client, (&mut commands, &name)).await?;
            Ok(slot)
        }
        // The server waits for whoever has changed something in a transaction that is not over.
        Err(SlotError::Replication(ReplicationError::Timeout)) => {
            let running = slot::running(&client).await.about(&what)?;
            Err(StepError::Again {
                what,
                problem: format!("it waits for {}", running.join("; ")),
            })
        }
        Err(error) => Err(slot_error(&what, error)),
    }
}

/// A slot that was made when nobody wanted it any more would keep WAL for ever, and what is before it would be missing.
pub(super) async fn unless_replaced(
    job: &Job,
    client: &Client,
    (commands, name): (&mut Connection, &str),
) -> Result<(), StepError> {
    match claim(client, job).await {
        Err(StepError::Replaced) => {
            let removed = slot::remove(client, commands, name).await;
            removed.map_err(|error| slot_error("removing a slot", error))?;
            Err(StepError::Replaced)
        }
        end => end,
    }
}

/// A slot's fault as a step's.
pub(super) fn slot_error(what: &str, error: SlotError) -> StepError {
    match error {
        SlotError::Sql(error) => match Err::<(), _>(error).about(what) {
            Err(error) => error,
            Ok(()) => StepError::Replaced,
        },
        SlotError::Replication(error) => match Err::<(), _>(error).about(what) {
            Err(error) => error,
            Ok(()) => StepError::Replaced,
        },
        error @ (SlotError::Waiting(_) | SlotError::NotUnderstood) => StepError::Again {
            what: what.to_owned(),
            problem: error.to_string(),
        },
    }
}
