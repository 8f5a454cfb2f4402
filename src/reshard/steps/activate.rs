//! After the map is committed: the destinations know that the keys are theirs, before their first write.
//!
//! What must stay true: only after the commit; a guard that refused these keys on a destination, because it had given them
//! away before, refuses them until this and not after; from this on no stream brings reference tables to a shard that has
//! joined, whoever still reads one; who owns keys has the map that says so, whatever the home shard forgets.

use super::{
    asking::{About as _, Typed, connection, is_lock_timeout, line, named},
    fence::unless_later,
    guard::{Switch, guarded, lock_timeout, switch_sql},
    records::{begin, taking_part},
    unfence::switch_off,
};
use crate::{
    clock::Duration,
    inspect::at_once,
    registry::{KEEP, MapNow},
    reshard::{
        job::{Direction, Job, StepError},
        servers::Server,
        state::Known,
    },
    wire::replication::Lsn,
};
use deadpool_postgres::Client;
use std::{collections::BTreeSet, sync::Arc};
use tokio_postgres::types::Type;

const ACTIVATE: &str = "\
INSERT INTO shardway.activation (workflow, attempt, direction, epoch) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING";
const LATEST: &str = "\
SELECT attempt, direction, epoch FROM shardway.activation WHERE workflow = $1 ORDER BY attempt DESC LIMIT 1";
const TRIED: &str = "SELECT coalesce(max(attempt), 0) FROM shardway.fence WHERE workflow = $1";
/// Where a stream is that has nothing to bring any more. A follower that knows another position changes nothing.
pub(super) const CLOSED: Lsn = Lsn(u64::MAX);
const CLOSE: &str = "\
UPDATE shardway.apply_progress SET lsn = 'FFFFFFFF/FFFFFFFF' WHERE workflow = $1 AND source = ANY ($2)";
/// Ends what a follower may have open there, so that nobody waits for it, unless it is one of after a later attempt.
const END: &str = "\
SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
WHERE datname = current_database() AND usename = current_user AND pid <> pg_backend_pid() AND cardinality($2) > 0 \
  AND substring(application_name FROM '^shardway apply ' || $1 || ' ([0-9]{1,18})$')::int8 <= $3 \
  AND NOT EXISTS (SELECT FROM shardway.fence WHERE workflow = $1 AND attempt > $4)";
const FENCED: &str =
    "SELECT EXISTS (SELECT FROM shardway.fence WHERE workflow = $1 AND attempt = $2)";

/// Activates every destination of the committed cutover, whose direction is the job's, as of this map.
///
/// # Errors
/// [`StepError::Halt`]: the job's sources were not fenced by this attempt. [`StepError::Again`] as well: the map says that
/// they own the keys, as the home shard has forgotten the cutover.
pub async fn run(job: &Job, map: &MapNow) -> Result<(), StepError> {
    let went = job.plan.went(&map.content.owners);
    if went.is_some_and(|went| went != job.direction) {
        return Err(StepError::Again {
            what: "letting the new owners know".to_owned(),
            problem: format!("map {} says that the former ones own the keys", map.epoch),
        });
    }
    let sources = job.sources();
    let each = sources.iter().map(|it| unless_not_fenced(job, it));
    let fenced = at_once(each.collect()).await;
    fenced.into_iter().collect::<Result<(), StepError>>()?;
    let destinations = job.destinations();
    let each = destinations.iter().map(|it| activate(job, it, map));
    at_once(each.collect()).await.into_iter().collect()
}

/// The cutover went this way.
async fn unless_not_fenced(job: &Job, source: &Server) -> Result<(), StepError> {
    let client = line(job, source).await?;
    let fenced = client
        .query_typed_one(FENCED, &[(&job.id, Type::TEXT), (&job.attempt, Type::INT4)])
        .await;
    let fenced: bool = fenced.about("asking for the fence")?.get(0);
    client.done();
    // A source that has failed over since may have forgotten it: a destination knows by itself that it is an owner.
    let owned = !fenced && latest_anywhere(job).await?.is_some_and(|it| it.is_of(job));
    if fenced || owned {
        return Ok(());
    }
    Err(StepError::Halt {
        what: format!(
            "shard {} was not fenced by attempt {}",
            source.name, job.attempt
        ),
        remedy: "report it: the cutover went the other way".to_owned(),
    })
}

/// Does it and takes it back.
pub(super) async fn rehearse(job: &Job, destination: &Server) -> Result<(), StepError> {
    const WHAT: &str = "rehearsing the activation";
    let client = line(job, destination).await?;
    let turned = job.turned();
    let values = values(job, direction(job), &0);
    // Nobody's: what streams bring is needed yet.
    let brought = Vec::new();
    let (begun, activated, closed, guarded) = tokio::join!(
        biased;
        begin(&client, job),
        client.execute_typed(ACTIVATE, &values),
        close(&client, job, &brought),
        guarded(&client, &turned, destination),
    );
    begun?;
    activated.about(WHAT)?;
    closed.about(WHAT)?;
    guarded?;
    client.batch_execute("ROLLBACK").await.about(WHAT)?;
    client.done();
    Ok(())
}

fn direction(job: &Job) -> &'static &'static str {
    match job.direction {
        Direction::Forward => &"forward",
        Direction::Back => &"back",
    }
}

/// Of [`ACTIVATE`].
fn values<'a>(job: &'a Job, direction: &'a &'static str, epoch: &'a i64) -> [Typed<'a>; 4] {
    [
        (&job.id, Type::TEXT),
        (&job.attempt, Type::INT4),
        (direction, Type::TEXT),
        (epoch, Type::INT8),
    ]
}

/// The sources whose streams have brought reference tables to a shard.
fn brought(job: &Job, destination: &Server) -> Vec<String> {
    let flows = job.flows().into_iter();
    let brings = flows.filter(|it| it.keys.is_none() && it.destination == destination.name);
    let sources: BTreeSet<String> = brings.map(|it| job.followed(&it.source)).collect();
    sources.into_iter().collect()
}

/// Sent with what else is done there.
async fn close(
    client: &Client,
    job: &Job,
    brought: &Vec<String>,
) -> Result<(), tokio_postgres::Error> {
    let values: [Typed<'_>; 4] = [
        (&job.id, Type::TEXT),
        (brought, Type::TEXT_ARRAY),
        (&job.token, Type::INT8),
        (&job.attempt, Type::INT4),
    ];
    let (ended, closed) = tokio::join!(
        biased;
        client.query_typed(END, &values),
        client.execute_typed(CLOSE, &values[..2]),
    );
    ended?;
    closed.map(drop)
}

/// In one transaction, with the guards of what it had given away before.
async fn activate(job: &Job, destination: &Server, map: &MapNow) -> Result<(), StepError> {
    let what = format!("activating shard {}", destination.name);
    let client = line(job, destination).await?;
    let turned = job.turned();
    let values = values(job, direction(job), &map.epoch);
    let content = map.text();
    let copy: [Typed<'_>; 3] = [
        (&map.epoch, Type::INT8),
        (&content, Type::TEXT),
        (&job.id, Type::TEXT),
    ];
    let brought = brought(job, destination);
    let (begun, later, activated, kept, closed, guarded) = tokio::join!(
        biased;
        begin(&client, job),
        unless_later(&client, job),
        client.execute_typed(ACTIVATE, &values),
        client.execute_typed(KEEP, &copy),
        close(&client, job, &brought),
        guarded(&client, &turned, destination),
    );
    begun?;
    later?;
    activated.about(&what)?;
    kept.about(&what)?;
    closed.about(&what)?;
    // Those of reference tables let writes pass that reach the shards which have joined, and these serve still.
    let on = guarded?.into_iter();
    let on = on.filter(|(table, switch)| table.group.is_some() && *switch == Switch::On);
    let tables: Vec<_> = on.map(|(table, _)| table).collect();
    let mut rest = String::from("COMMIT");
    if !tables.is_empty() {
        let off = switch_sql(&turned, &tables, Switch::Off);
        rest = format!("{}; {off} COMMIT", lock_timeout(job));
    }
    match client.batch_execute(&rest).await {
        Err(error) if is_lock_timeout(&error) => {
            client.batch_execute("ROLLBACK").await.about(&what)?;
            client.done();
            Err(error).about(&what)
        }
        done => {
            done.about(&what)?;
            client.done();
            Ok(())
        }
    }
}

/// Lets reference tables be written without the shards that have joined: these are about to leave again.
///
/// # Errors
/// [`StepError`].
pub async fn open_reference(job: &Job) -> Result<(), StepError> {
    let Some(giver) = job.giver() else {
        return Ok(());
    };
    let server = named(job, &giver)?;
    let client = connection(server).await?;
    let guarded = guarded(&client, job, server).await?;
    let on = guarded
        .into_iter()
        .filter(|(table, switch)| table.group.is_none() && *switch == Switch::On);
    let tables: Vec<_> = on.map(|(table, _)| table).collect();
    switch_off(&client, job, &tables, server).await
}

/// The last cutover that a shard knows of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Latest {
    pub(super) attempt: i32,
    pub(super) direction: Direction,
    /// Of the map.
    epoch: i64,
}

impl Latest {
    /// By what it is one cutover, on whichever shard.
    pub(super) fn cutover(self) -> (i32, Direction) {
        (self.attempt, self.direction)
    }

    /// Whether it is the cutover of this attempt.
    fn is_of(self, job: &Job) -> bool {
        self.cutover() == (job.attempt, job.direction)
    }
}

/// The last cutover by which a shard was activated.
pub(super) async fn latest(client: &Client, job: &Job) -> Result<Option<Latest>, StepError> {
    let row = client
        .query_typed_opt(LATEST, &[(&job.id, Type::TEXT)])
        .await;
    let row = row.about("asking for activations")?;
    Ok(row.map(|row| Latest {
        attempt: row.get(0),
        direction: match row.get(1) {
            "back" => Direction::Back,
            _ => Direction::Forward,
        },
        epoch: row.get(2),
    }))
}

/// The last cutover by which any shard was activated.
pub(super) async fn latest_anywhere(job: &Job) -> Result<Option<Latest>, StepError> {
    let mut last: Option<Latest> = None;
    for server in taking_part(job) {
        let client = line(job, &server).await?;
        let here = latest(&client, job).await?;
        client.done();
        if here.map(|it| it.attempt) > last.map(|it| it.attempt) {
            last = here;
        }
    }
    Ok(last)
}

/// That those who are to be given rows in the job's direction do not own them already, as their last cutover has it: what
/// runs by a record that has forgotten it would write over theirs.
///
/// # Errors
/// [`StepError::Replaced`]: they do, and whoever takes the run over learns it from them.
pub(super) async fn unless_owners(job: &Job) -> Result<(), StepError> {
    // Whatever has become of the servers since the last time.
    let asked = Job {
        lines: Arc::default(),
        ..job.clone()
    };
    match latest_anywhere(&asked).await? {
        Some(last) if last.direction == job.direction => Err(StepError::Replaced),
        Some(_) | None => Ok(()),
    }
}

/// What the servers know of a run's cutovers, whatever the home shard says.
///
/// # Errors
/// [`StepError`].
pub async fn known(job: &Job) -> Result<Known, StepError> {
    let mut known = Known::default();
    for server in taking_part(job) {
        let client = line(job, &server).await?;
        let tried = client
            .query_typed_one(TRIED, &[(&job.id, Type::TEXT)])
            .await;
        known.tried = known.tried.max(tried.about("asking for fences")?.get(0));
        known.epoch = known.epoch.max(copied(&client).await?);
        client.done();
    }
    known.epoch = known.epoch.max(copied_elsewhere(job).await);
    // Another run of the same name was over before this one was planned.
    let last = latest_anywhere(job).await?;
    let last = last.filter(|it| it.epoch > job.plan.epoch);
    known.last = last.map(|it| (it.attempt, it.direction));
    known.epoch = known.epoch.max(last.map_or(0, |it| it.epoch));
    Ok(known)
}

/// The number of the map of which a shard has a copy.
async fn copied(client: &Client) -> Result<i64, StepError> {
    const COPIED: &str = "SELECT coalesce(max(epoch), 0) FROM shardway.map";
    let row = client.query_typed_one(COPIED, &[]).await;
    Ok(row.about("asking for the copy of the map")?.get(0))
}

/// For so long a shard is asked that takes no part.
const PATIENCE: Duration = Duration::from_secs(2);

/// The latest of the shards that take no part, as far as they can be asked: a proxy gives it to the home shard some time.
async fn copied_elsewhere(job: &Job) -> i64 {
    let part = taking_part(job);
    let others = job.servers.values();
    let others = others.filter(|it| part.iter().all(|other| other.name != it.name));
    let asking = others.map(async |it| {
        let client = line(job, it).await?;
        let copied = copied(&client).await?;
        client.done();
        Ok::<_, StepError>(copied)
    });
    // One that is frozen keeps nobody from going on.
    let bounded = asking.map(|it| tokio::time::timeout(PATIENCE, it));
    let copied = at_once(bounded.collect()).await;
    let answered = copied.into_iter().filter_map(Result::ok).flatten();
    answered.max().unwrap_or(0)
}
