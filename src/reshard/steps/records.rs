//! What a run has made outside of rows, as the home shard keeps it, and who may change it.
//!
//! What must stay true: it is committed there before the thing is made, and goes after the thing has gone; a runner whose
//! token is lower than what it meets stops.

use super::{
    asking::{About as _, Typed, connection, home, is_lock_timeout},
    copy,
};
use crate::reshard::{
    job::{Job, StepError},
    servers::Server,
};
use deadpool_postgres::Client;
use serde_json::Value;
use tokio_postgres::types::Type;

/// Something that has to go again.
#[derive(Clone, Debug, PartialEq)]
pub struct Note {
    pub shard: String,
    pub kind: Kind,
    pub name: String,
    pub detail: Value,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The triggers that fence a source, and their function.
    Guard,
    Slot,
    Publication,
    /// Copied rows in a table that is there anyway.
    Rows,
    /// What was made of the schema of a shard that joins.
    Table,
    /// Rows about the run in the shard's own schema.
    Records,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Guard => "guard",
            Self::Slot => "slot",
            Self::Publication => "publication",
            Self::Rows => "rows",
            Self::Table => "table",
            Self::Records => "records",
        }
    }

    fn named(name: &str) -> Option<Self> {
        let all = [
            Self::Guard,
            Self::Slot,
            Self::Publication,
            Self::Rows,
            Self::Table,
            Self::Records,
        ];
        all.into_iter().find(|kind| kind.name() == name)
    }
}

/// Writes down what is about to be made, if this runner still is the one.
const NOTE: &str = "\
WITH mine AS (SELECT FROM shardway.workflow WHERE id = $1 AND token <= $2 FOR SHARE), \
made AS (INSERT INTO shardway.cleanup (workflow, shard, kind, name, detail) SELECT $1, $3, $4, $5, $6 FROM mine \
         ON CONFLICT DO NOTHING) \
SELECT count(*) FROM mine";

const NOTES: &str = "SELECT shard, kind, name, detail FROM shardway.cleanup WHERE workflow = $1";

const GONE: &str = "\
WITH mine AS (SELECT FROM shardway.workflow WHERE id = $1 AND token <= $2 FOR SHARE), \
gone AS (DELETE FROM shardway.cleanup WHERE EXISTS (SELECT FROM mine) \
         AND workflow = $1 AND shard = $3 AND kind = $4 AND name = $5) \
SELECT count(*) FROM mine";

/// Nobody with a lower token may change what this row stands for; the row is locked until the transaction ends.
const CLAIM: &str = "\
INSERT INTO shardway.runner AS r (workflow, token) VALUES ($1, $2) \
ON CONFLICT (workflow) DO UPDATE SET token = excluded.token, \
  pass = CASE WHEN r.token < excluded.token THEN gen_random_uuid()::text ELSE r.pass END WHERE r.token <= excluded.token";

/// What is applied there is this runner's from here on, whoever has begun it. Waits for a batch that is open.
const TAKE: &str =
    "UPDATE shardway.apply_progress SET token = $2 WHERE workflow = $1 AND token < $2";
/// For so long, and as long for whoever has claimed it and has not ended.
const OPEN: &str = "SET lock_timeout = '5s'";
const OPENED: &str = "\
SELECT coalesce(string_agg(DISTINCT pid::text, ', '), 'none') FROM pg_locks \
WHERE relation = 'shardway.apply_progress'::regclass AND granted AND pid <> pg_backend_pid()";

impl Note {
    /// Without details.
    #[must_use]
    pub fn of(kind: Kind, shard: &str, name: &str) -> Self {
        Self {
            shard: shard.to_owned(),
            kind,
            name: name.to_owned(),
            detail: Value::Object(serde_json::Map::new()),
        }
    }
}

/// Writes down what is about to be made.
///
/// # Errors
/// [`StepError`].
pub async fn note(job: &Job, notes: &[Note]) -> Result<(), StepError> {
    let client = home(job).await?;
    for it in notes {
        let kind = it.kind.name();
        let detail = it.detail.to_string();
        let text = NOTE.replace("$6", "$6::text::jsonb");
        let row = client
            .query_one(
                &text,
                &[&job.id, &job.token, &it.shard, &kind, &it.name, &detail],
            )
            .await
            .about("writing down what is made")?;
        unless_replaced(row.get::<_, i64>(0) == 1)?;
    }
    Ok(())
}

/// What was written down and is not known to be gone, in the order in which it has to go.
///
/// # Errors
/// [`StepError`].
pub async fn noted(job: &Job) -> Result<Vec<Note>, StepError> {
    let client = home(job).await?;
    let text = NOTES.replace("detail FROM", "detail::text FROM");
    let rows = client.query(&text, &[&job.id]).await;
    let mut notes = Vec::new();
    for row in rows.about("reading what was made")? {
        let (kind, detail): (String, String) = (row.get(1), row.get(3));
        if let Some(kind) = Kind::named(&kind) {
            notes.push(Note {
                shard: row.get(0),
                kind,
                name: row.get(2),
                detail: serde_json::from_str(&detail).unwrap_or_default(),
            });
        }
    }
    notes.sort_by(|a, b| (a.kind, &a.shard, &a.name).cmp(&(b.kind, &b.shard, &b.name)));
    Ok(notes)
}

/// It has gone.
///
/// # Errors
/// [`StepError`].
pub async fn gone(job: &Job, note: &Note) -> Result<(), StepError> {
    let client = home(job).await?;
    let kind = note.kind.name();
    let row = client
        .query_one(GONE, &[&job.id, &job.token, &note.shard, &kind, &note.name])
        .await
        .about("forgetting what is gone")?;
    unless_replaced(row.get::<_, i64>(0) == 1)
}

/// Makes this runner the one that may change guards and records on a shard. Within a transaction it stays so until its end.
///
/// # Errors
/// [`StepError::Replaced`].
pub async fn claim(client: &Client, job: &Job) -> Result<(), StepError> {
    let values: [Typed<'_>; 2] = [(&job.id, Type::TEXT), (&job.token, Type::INT8)];
    let claimed = client.execute_typed(CLAIM, &values).await;
    unless_replaced(claimed.about("saying who runs it")? == 1)
}

/// The same on every shard that takes part: what an earlier runner still does there is refused from then on, and what it
/// has open there is ended.
///
/// # Errors
/// [`StepError`].
pub async fn claim_all(job: &Job) -> Result<(), StepError> {
    for server in taking_part(job) {
        let client = connection(&server).await?;
        client
            .batch_execute(OPEN)
            .await
            .about("saying who runs it")?;
        claim(&client, job).await?;
        copy::end(&client, job, (&server.name, job.token - 1)).await?;
        take(&client, job, &server).await?;
    }
    Ok(())
}

async fn take(client: &Client, job: &Job, server: &Server) -> Result<(), StepError> {
    let what = format!("taking over what is applied to shard {}", server.name);
    match client.execute(TAKE, &[&job.id, &job.token]).await {
        Err(error) if is_lock_timeout(&error) => {
            let open = client.query_one(OPENED, &[]).await.about(&what)?;
            Err(StepError::Again {
                what,
                problem: format!(
                    "a batch of an earlier runner is open there, of one of the processes {}",
                    open.get::<_, String>(0)
                ),
            })
        }
        taken => taken.about(&what).map(drop),
    }
}

/// The shards that give or are given something.
#[must_use]
pub fn taking_part(job: &Job) -> Vec<Server> {
    let mut all = job.sources();
    for server in job.destinations() {
        if all.iter().all(|it| it.name != server.name) {
            all.push(server);
        }
    }
    let joins = job.plan.joins.iter();
    for server in joins.filter_map(|name| job.servers.get(name)) {
        if all.iter().all(|it| it.name != server.name) {
            all.push(server.clone());
        }
    }
    all
}

/// Begins a transaction that this runner alone may make on a shard, durable when it is committed. A runner that
/// is frozen or cut off does not keep what it has locked: whoever takes the run over waits for that.
///
/// # Errors
/// [`StepError`].
pub(super) async fn begin(client: &Client, job: &Job) -> Result<(), StepError> {
    // Sent at once: what is sent with it comes after both.
    let (begun, claimed) = tokio::join!(
        biased;
        client.batch_execute(BEGIN),
        claim(client, job),
    );
    begun.about("beginning")?;
    claimed
}

const BEGIN: &str = "BEGIN; SET LOCAL synchronous_commit = on; SET LOCAL idle_in_transaction_session_timeout = '5s'";

fn unless_replaced(is_mine: bool) -> Result<(), StepError> {
    if is_mine {
        Ok(())
    } else {
        Err(StepError::Replaced)
    }
}

/// Lets the session's writes be a replica's: nothing acts on them, and no guard refuses them. Where the role may not say
/// that, what there is on the tables was looked at before, and guards know it by the runner's pass.
///
/// # Errors
/// [`StepError`].
pub(super) async fn as_replica(client: &Client, job: &Job) -> Result<(), StepError> {
    match client.batch_execute(REPLICA).await {
        Err(error) if error.code().is_some_and(|code| code.code() == "42501") => {
            let passes = client.query_opt(PASS, &[&job.id, &job.token]).await;
            unless_replaced(passes.about("passing guards")?.is_some())
        }
        set => set.about("writing as a replica"),
    }
}

/// Rows as a replica's.
pub(super) const REPLICA: &str = "SET session_replication_role = replica";
const PASS: &str = "\
SELECT set_config('shardway.pass', pass, false) FROM shardway.runner WHERE workflow = $1 AND token = $2";
