//! Asks every shard of a database what it has.

use super::{
    columns::{Derived, Tables, bare, columns, derived},
    connect::{AskError, connect},
    effects::{Objects, objects},
    finding::Finding,
    judge::{complete, judge},
    oids::oids,
    placements::{Kept, placements},
    views::{View, parents, views},
};
use crate::{
    catalog::{
        oids,
        shard::{ShardId, ShardSet},
        snapshot::{Snapshot, TableName},
    },
    clock::Duration,
    config::settings::{Address, BackendProof, Credentials, Database, Settings},
};
use std::collections::{BTreeMap, BTreeSet};

/// What the shards of a database said, in their order.
#[derive(Debug)]
pub struct Survey {
    pub shards: Vec<Result<Observed, AskError>>,
}

impl Survey {
    /// Whether all have answered that serve.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let mut shards = self.shards.iter();
        shards.all(|answer| matches!(answer, Ok(_) | Err(AskError::Apart)))
    }
}

/// What one server has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// `server_version_num`.
    pub version: u32,
    pub encoding: String,
    pub tables: Tables,
    /// Sequences, and tables without columns.
    pub bare: BTreeSet<TableName>,
    /// Where tables live, as far as Shardway's own schema keeps it.
    pub placements: BTreeMap<TableName, Kept>,
    /// Those of its tables that are views, partitions or inheritance children.
    pub derived: BTreeMap<TableName, Derived>,
    pub views: BTreeMap<TableName, View>,
    /// Partitions and inheritance children, each with a parent of its.
    pub parents: BTreeSet<(TableName, TableName)>,
    /// What its tables set off by themselves.
    pub objects: Objects,
    /// The numbers of its own types and relations.
    pub oids: oids::Observed,
    pub roles: BTreeSet<String>,
    /// Which of the roles asked about may not read which tables.
    pub unreadable: BTreeSet<(String, TableName)>,
}

const FACTS: &str = "SELECT pg_catalog.current_setting('server_version_num'), \
                     pg_catalog.current_setting('server_encoding')";
const ROLES: &str = "SELECT rolname::text FROM pg_catalog.pg_roles WHERE rolname = ANY($1)";
const UNREADABLE: &str = "\
SELECT r.rolname::text, n.nspname::text, c.relname::text \
FROM pg_catalog.pg_roles r, pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE r.rolname = ANY($1) AND c.relkind IN ('r', 'p', 'f') \
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname !~ '^pg_(toast|temp)' \
  AND NOT pg_catalog.has_table_privilege(r.oid, c.oid, 'SELECT')";

/// Asks the primaries of all these shards at once; `roles` are those that backends will be opened as.
pub async fn survey(
    database: &Database,
    members: &ShardSet,
    credentials: &Credentials,
    roles: &[String],
) -> Survey {
    let limit = database.pool.connect_timeout;
    let shards = (0..).map(ShardId).zip(&database.shards);
    let asking: Vec<_> = shards
        .map(|(at, shard)| async move {
            if members.contains(at) {
                observe(&shard.primary, credentials, roles, limit).await
            } else {
                Err(AskError::Apart)
            }
        })
        .collect();
    Survey {
        shards: at_once(asking).await,
    }
}

/// Fills in what only servers know: the columns of tables, and the tables that belong to a group by their key column.
/// Shards that cannot be asked do not stand in the way; what differs between shards stays unknown.
pub async fn complete_snapshot(
    database: &Database,
    credentials: Option<&Credentials>,
    snapshot: &mut Snapshot,
) -> Vec<Finding> {
    let Some(credentials) = database.control.as_ref().or(credentials) else {
        return vec![Finding::NoCredentials];
    };
    let survey = survey(database, &snapshot.members, credentials, &[]).await;
    complete(snapshot, &survey);
    judge(snapshot, &survey, &[])
}

/// The role to look into a database with: Shardway's own, or else that of the first user who may enter.
#[must_use]
pub fn credentials_for<'s>(
    settings: &'s Settings,
    database: &'s Database,
) -> Option<&'s Credentials> {
    let enters = |databases: &[String]| databases.is_empty() || databases.contains(&database.name);
    let user = || {
        settings
            .users
            .values()
            .find(|user| enters(&user.databases) && user.backend_proof == BackendProof::Configured)
            .map(|user| &user.backend)
    };
    database.control.as_ref().or_else(user)
}

async fn observe(
    address: &Address,
    credentials: &Credentials,
    roles: &[String],
    limit: Duration,
) -> Result<Observed, AskError> {
    let client = connect(address, credentials, limit).await?;
    // Names of types are told with their schemas.
    client.batch_execute("SET search_path = pg_catalog").await?;
    let facts = client.query_one(FACTS, &[]).await?;
    let mut observed = Observed {
        version: facts.try_get::<_, String>(0)?.parse().unwrap_or(0),
        encoding: facts.try_get(1)?,
        tables: columns(&client).await?,
        bare: bare(&client).await?,
        placements: placements(&client).await?,
        derived: derived(&client).await?,
        views: views(&client).await?,
        parents: parents(&client).await?,
        objects: objects(&client).await?,
        oids: oids(&client).await?,
        ..Observed::default()
    };
    if roles.is_empty() {
        return Ok(observed);
    }
    for row in client.query(ROLES, &[&roles]).await? {
        observed.roles.insert(row.try_get(0)?);
    }
    for row in client.query(UNREADABLE, &[&roles]).await? {
        let table = TableName {
            schema: row.try_get(1)?,
            name: row.try_get(2)?,
        };
        observed.unreadable.insert((row.try_get(0)?, table));
    }
    Ok(observed)
}

/// Runs all futures at once in this task.
pub async fn at_once<T>(futures: Vec<impl Future<Output = T>>) -> Vec<T> {
    use std::{future::poll_fn, pin::Pin, task::Poll};
    let mut running: Vec<(Pin<Box<_>>, Option<T>)> = futures
        .into_iter()
        .map(|future| (Box::pin(future), None))
        .collect();
    poll_fn(|cx| {
        for (future, output) in &mut running {
            if output.is_none()
                && let Poll::Ready(value) = future.as_mut().poll(cx)
            {
                *output = Some(value);
            }
        }
        if running.iter().all(|(_, output)| output.is_some()) {
            Poll::Ready(())
        } else {
            Poll::Pending
        }
    })
    .await;
    running
        .into_iter()
        .filter_map(|(_, output)| output)
        .collect()
}
