//! What the tables that move have that cannot move, or not so.

use super::{Finding, Found, servers::REPLICA};
use crate::reshard::{
    job::{Job, StepError},
    plan::{MovingTable, identifier},
    planning,
    servers::Server,
    steps::{
        asking::{About as _, connection, named},
        condition, schema, watched,
    },
};
use deadpool_postgres::Client;

const TABLE: &str = "\
SELECT c.relkind::text, c.relpersistence::text, \
  (SELECT a.attname::text FROM pg_attribute a LEFT JOIN pg_index i ON i.indrelid = a.attrelid AND i.indisprimary \
   WHERE a.attrelid = c.oid AND a.attgenerated <> '' AND (a.attname = $2 OR a.attnum = ANY (i.indkey::int2[])) LIMIT 1), \
  c.relrowsecurity, c.relforcerowsecurity, \
  pg_has_role(c.relowner, 'USAGE'), (SELECT rolbypassrls OR rolsuper FROM pg_roles WHERE rolname = current_user), \
  EXISTS (SELECT FROM pg_inherits i WHERE c.oid IN (i.inhrelid, i.inhparent)), pg_get_userbyid(c.relowner)::text, current_user::text, \
  coalesce((SELECT a.attnotnull FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = $2), true), \
  c.relispartition, \
  EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary AND NOT i.indimmediate) \
FROM pg_class c WHERE c.oid = to_regclass($1)";

/// Triggers that act on applied rows as well.
const ALWAYS: &str = "\
SELECT tgname::text FROM pg_trigger WHERE tgrelid = to_regclass($1) AND NOT tgisinternal AND tgenabled IN ('A', 'R') \
UNION ALL SELECT rulename::text FROM pg_rewrite WHERE ev_class = to_regclass($1) AND ev_enabled IN ('A', 'R')";

/// What acts on rows, unless the role may say that they are a replica's: triggers, rules, and foreign keys both ways.
const ACTS: &str = "\
SELECT format('trigger %I', tgname) FROM pg_trigger \
WHERE tgrelid = to_regclass($1) AND NOT tgisinternal AND tgenabled IN ('O', 'A') AND tgname !~ '^shardway_guard_' \
UNION ALL SELECT format('rule %I', rulename) FROM pg_rewrite WHERE ev_class = to_regclass($1) AND ev_type <> '1' \
UNION ALL SELECT format('foreign key %I of %s', conname, conrelid::regclass) FROM pg_constraint \
WHERE contype = 'f' AND to_regclass($1) IN (conrelid, confrelid)";

/// Unique indexes that do not have the shard key.
const UNIQUE: &str = "\
SELECT i.indexrelid::regclass::text FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique \
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attname = $2 \
    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))";

/// Foreign keys of a table and to it: name, the table that has it, the one it names, whether it is that table's own, the
/// columns that are compared. Of what is between a partitioned table and its partitions, these tell.
const FOREIGN: &str = "\
SELECT conname::text, array[n.nspname::text, c.relname::text], array[fn.nspname::text, f.relname::text], k.conrelid = to_regclass($1), \
  array(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY u (num, at) \
        JOIN pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = u.num ORDER BY u.at), \
  array(SELECT a.attname::text FROM unnest(k.confkey) WITH ORDINALITY u (num, at) \
        JOIN pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = u.num ORDER BY u.at) \
FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
JOIN pg_class f ON f.oid = k.confrelid JOIN pg_namespace fn ON fn.oid = f.relnamespace \
WHERE k.contype = 'f' AND to_regclass($1) IN (k.conrelid, k.confrelid) \
  AND NOT (c.relkind = 'p' AND c.relispartition) AND NOT (f.relkind = 'p' AND f.relispartition)";

/// Columns that name large objects; there are some.
const LARGE: &str = "\
SELECT a.attname::text FROM pg_attribute a WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped \
  AND format_type(a.atttypid, NULL) IN ('oid', 'lo') AND EXISTS (SELECT FROM pg_largeobject_metadata)";

/// Looks at the tables of one shard, from which rows go or to which they come.
pub(super) async fn look(job: &Job, server: &Server) -> Result<Vec<Finding>, StepError> {
    let client = connection(server).await?;
    let mut found = Found::on(&server.name);
    let acts = match client.batch_execute(REPLICA).await {
        Ok(()) => Acts::Nothing,
        Err(_refused) => {
            let what = format!("looking at shard {}", server.name);
            client.batch_execute("ROLLBACK").await.about(&what)?;
            Acts::Everything
        }
    };
    let mut leaving = job.tables_of(&job.given_by(&server.name));
    if job.giver().as_ref() == Some(&server.name) {
        leaving.extend(job.plan.reference.iter().cloned());
    }
    for table in &leaving {
        let since = found.all.len();
        leaves(job, &client, server, table, &mut found).await?;
        if acts == Acts::Everything {
            unless_quiet(&client, table, &mut found).await?;
        }
        found.about(since, &table.plain());
    }
    let joins = job.plan.joins.contains(&server.name);
    let mut coming = job.tables_of(&job.given_to(&server.name));
    if joins {
        coming.extend(job.plan.reference.iter().cloned());
    }
    for table in &coming {
        let since = found.all.len();
        comes(job, &client, server, table, &mut found).await?;
        if acts == Acts::Everything {
            unless_quiet(&client, table, &mut found).await?;
            // What it will have is what its source has.
            let moves = job.given_to(&server.name);
            let from = moves.first().map(|it| it.from.clone());
            if let Some(from) = from.or_else(|| job.giver()).filter(|_| joins) {
                let source = connection(named(job, &from)?).await?;
                unless_quiet(&source, table, &mut found).await?;
            }
        }
        found.about(since, &table.plain());
    }
    Ok(found.all)
}

/// What acts on rows that are copied and applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Acts {
    /// They are written as a replica's.
    Nothing,
    /// The role may not say that they are: as on a client's.
    Everything,
}

/// Rows come to a table forward, and to the one that they left when they are brought back.
async fn unless_quiet(
    client: &Client,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), StepError> {
    let rows = client.query(ACTS, &[&table.sql()]).await;
    for row in rows.about("looking for what acts on rows")? {
        let what: String = row.get(0);
        found.error(
            format!("{what} would act on copied rows, as the control role may not set session_replication_role"),
            "GRANT SET ON PARAMETER session_replication_role TO the control role (PostgreSQL 15 and newer), or let it be a superuser",
        );
    }
    Ok(())
}

async fn leaves(
    job: &Job,
    client: &Client,
    server: &Server,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), StepError> {
    let what = format!("looking at {} on shard {}", table.plain(), server.name);
    let name = table.sql();
    let row = client.query_opt(TABLE, &[&name, &table.key_column]).await;
    let Some(row) = row.about(&what)? else {
        found.error("it is not there", "make the plan again");
        return Ok(());
    };
    kind(&row, table, found);
    identity(client, &row, table, found).await.about(&what)?;
    order(client, table, found).await.about(&what)?;
    rights(&row, table, found);
    if !row.get::<_, bool>(10) {
        let column = identifier(&table.key_column);
        if any(client, &format!("{name} WHERE {column} IS NULL"), found)
            .await
            .about(&what)?
        {
            found.error(
                format!("there are rows whose {column} is NULL, which no shard owns"),
                format!("DELETE FROM {name} WHERE {column} IS NULL"),
            );
        }
    }
    acting(client, table, found).await?;
    subscribed(client, table, found).await?;
    if table.group.is_some() {
        let rows = client.query(UNIQUE, &[&name, &table.key_column]).await;
        for row in rows.about(&what)? {
            let index: String = row.get(0);
            found.warning(
                format!(
                    "{index} is unique without the shard key: no shard sees what another one has"
                ),
                "let values come from one sequence, or make them UUIDs",
            );
        }
    }
    for row in client.query(LARGE, &[&name]).await.about(&what)? {
        let column: String = row.get(0);
        found.error(
            format!("column {column} may name large objects, which are not copied"),
            format!(
                "keep them in a column of type bytea: ALTER TABLE {name} ADD COLUMN data bytea"
            ),
        );
    }
    let foreign = client.query(FOREIGN, &[&name]).await.about(&what)?;
    for row in &foreign {
        foreign_key(job, row, found);
    }
    Ok(())
}

/// What acts on rows that are copied and applied, whatever the session says that they are.
async fn acting(
    client: &Client,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), StepError> {
    let name = table.sql();
    let rows = client.query(ALWAYS, &[&name]).await;
    for row in rows.about("looking for what acts on rows")? {
        let trigger: String = row.get(0);
        found.error(
            format!("{trigger} acts on replicas as well: it would act on copied rows again"),
            format!("ALTER TABLE {name} ENABLE TRIGGER {}", identifier(&trigger)),
        );
    }
    Ok(())
}

/// Who writes to it as a replica, past every guard.
async fn subscribed(
    client: &Client,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), StepError> {
    let subscriptions = watched::subscriptions(client, &[table.sql()]).await;
    for subscription in subscriptions.about("looking for subscriptions")? {
        found.error(
            format!(
                "subscription {} brings rows to it, and no guard refuses them: those of keys that another shard owns would be lost",
                subscription.name
            ),
            subscription.remedy(),
        );
    }
    Ok(())
}

fn kind(row: &tokio_postgres::Row, table: &MovingTable, found: &mut Found<'_>) {
    let name = table.sql();
    let (kind, persistence): (&str, &str) = (row.get(0), row.get(1));
    let is_partition: bool = row.get(11);
    if kind == "f" {
        found.error(
            "it is a foreign table: its rows are on another server",
            "copy its rows into a table",
        );
    } else if is_partition && table.root.is_none() {
        found.error(
            "it is a partition of a table that the group does not have",
            "list the partitioned table instead",
        );
    } else if kind == "p" {
        found.error(
            "it is partitioned and has no partitions",
            format!("CREATE TABLE … PARTITION OF {name} …, or take it out of the group"),
        );
    } else if row.get(7) && !is_partition {
        found.error(
            "it inherits from a table, or another from it: such tables cannot be moved",
            format!("ALTER TABLE … NO INHERIT …, or make {name} a partitioned table"),
        );
    }
    logged(persistence, table, found);
}

/// A plan has a table's columns as the first shard has them that gives rows, and a stream of another is followed in that order
/// alone: a column that stands elsewhere may be another one of that name, made since.
async fn order(
    client: &Client,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), tokio_postgres::Error> {
    let here = planning::columns(client, &table.sql()).await?;
    let here: Vec<&str> = here.iter().map(|(it, _)| it.name.as_str()).collect();
    let planned: Vec<&str> = table.columns.iter().map(|it| it.name.as_str()).collect();
    let (mut one, mut other) = (here.clone(), planned.clone());
    one.sort_unstable();
    other.sort_unstable();
    if here != planned && one == other {
        found.error(
            "its columns stand in another order than on another shard that gives rows: its changes could not be followed",
            format!("make it anew with its columns in this order: {}", planned.join(", ")),
        );
    }
    Ok(())
}

fn logged(persistence: &str, table: &MovingTable, found: &mut Found<'_>) {
    if persistence == "u" {
        found.error(
            "it is unlogged: its changes cannot be followed",
            format!("ALTER TABLE {} SET LOGGED", table.sql()),
        );
    }
}

async fn identity(
    client: &Client,
    row: &tokio_postgres::Row,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), tokio_postgres::Error> {
    let name = table.sql();
    if row.get(12) {
        found.error(
            "its primary key is deferrable: its rows could not be updated any more once it is published",
            format!("make it anew without DEFERRABLE: ALTER TABLE {name} DROP CONSTRAINT …, ADD PRIMARY KEY (…)"),
        );
    }
    if let Some(column) = row.get::<_, Option<String>>(2) {
        found.error(
            format!("{column} is generated, and changes do not tell it"),
            format!(
                "ALTER TABLE {name} ALTER {} DROP EXPRESSION",
                identifier(&column)
            ),
        );
    }
    if table.primary_key.is_empty() {
        found.error(
            "it has no primary key",
            format!("ALTER TABLE {name} ADD PRIMARY KEY (…)"),
        );
    }
    if row.get(12) || table.primary_key.is_empty() {
        return Ok(());
    }
    for untold in watched::untold(client, &[table], 0).await? {
        found.error(untold.what(), untold.remedy());
    }
    Ok(())
}

fn rights(row: &tokio_postgres::Row, table: &MovingTable, found: &mut Found<'_>) {
    let (owns, bypasses): (bool, bool) = (row.get(5), row.get(6));
    let (owner, role): (&str, &str) = (row.get(8), row.get(9));
    if !owns {
        found.error(
            format!("role {role} is no member of {owner}, which owns it"),
            format!("GRANT \"{owner}\" TO \"{role}\""),
        );
    }
    let forced: bool = row.get(4);
    if row.get(3) && !bypasses && (forced || !owns) {
        found.error(
            format!(
                "row security hides rows of {} from role {role}",
                table.plain()
            ),
            format!("ALTER ROLE \"{role}\" BYPASSRLS"),
        );
    }
}

/// Whether a foreign key holds when its two tables are on several shards.
fn foreign_key(job: &Job, row: &tokio_postgres::Row, found: &mut Found<'_>) {
    let constraint: String = row.get(0);
    let (table, target): (Vec<String>, Vec<String>) = (row.get(1), row.get(2));
    let own: bool = row.get(3);
    let (columns, targets): (Vec<String>, Vec<String>) = (row.get(4), row.get(5));
    let of = |name: &[String]| {
        let mut all = job.plan.tables.iter().chain(&job.plan.reference);
        all.find(|it| {
            let root = it.root.as_ref();
            let root = root.map(|root| [&root.schema, &root.name]);
            name.iter().eq([&it.schema, &it.name]) || root.is_some_and(|root| name.iter().eq(root))
        })
    };
    if !own && of(&table).is_some() {
        // Told of that table.
        return;
    }
    let holds = match (of(&table), of(&target)) {
        (Some(one), Some(other)) => match (&one.group, &other.group) {
            (Some(group), Some(same)) => {
                let mut pairs = columns.iter().zip(&targets);
                group == same
                    && pairs
                        .any(|(own, there)| *own == one.key_column && *there == other.key_column)
            }
            (_, None) => true,
            (None, Some(_)) => false,
        },
        // Reference tables are in the plan only when shards join: every other shard has them.
        (Some(_), None) => own && job.plan.joins.is_empty(),
        (None, _) => false,
    };
    if !holds {
        let sql = |name: &[String]| {
            let parts: Vec<String> = name.iter().map(|part| identifier(part)).collect();
            parts.join(".")
        };
        let (table, target) = (sql(&table), sql(&target));
        found.error(
            format!(
                "foreign key {constraint} of {table} to {target} does not hold within one shard"
            ),
            format!(
                "ALTER TABLE {table} DROP CONSTRAINT {}",
                identifier(&constraint)
            ),
        );
    }
}

/// Whether there is a row; a role that may not look has to be told.
async fn any(
    client: &Client,
    rows: &str,
    found: &mut Found<'_>,
) -> Result<bool, tokio_postgres::Error> {
    let there = format!("SELECT EXISTS (SELECT FROM {rows})");
    match client.query_one(&there, &[]).await {
        Ok(row) => Ok(row.get(0)),
        Err(error) if error.code().is_some_and(|code| code.code() == "42501") => {
            found.error(
                "the control role may not read all of its rows",
                "make it a member of the owner, and let it bypass row security",
            );
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// What a table that is made as its source has it could not have there, as of a newer version.
async fn made(
    job: &Job,
    client: &Client,
    server: &Server,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), StepError> {
    let moves = job.given_to(&server.name);
    let Some(from) = moves.first().map(|it| &it.from) else {
        return Ok(());
    };
    let what = format!("looking at {} on shard {from}", table.plain());
    let version = "SELECT current_setting('server_version_num')::int4";
    let version = client.query_one(version, &[]).await.about(&what)?.get(0);
    let source = connection(named(job, from)?).await?;
    // What is wrong on the source too is told of it.
    let known = watched::untold(&source, &[table], 0).await.about(&what)?;
    let untold = watched::untold(&source, &[table], version).await;
    let untold = untold.about(&what)?.into_iter();
    for untold in untold.filter(|_| known.is_empty()) {
        found.error(
            format!("as on shard {from}: {}", untold.what()),
            untold.remedy(),
        );
    }
    Ok(())
}

/// What a destination has already.
async fn comes(
    job: &Job,
    client: &Client,
    server: &Server,
    table: &MovingTable,
    found: &mut Found<'_>,
) -> Result<(), StepError> {
    let what = format!("looking at {} on shard {}", table.plain(), server.name);
    let name = table.sql();
    let joins = job.plan.joins.contains(&server.name);
    let Some(here) = schema::shape(client, table).await? else {
        if joins {
            return made(job, client, server, table, found).await;
        }
        found.error("it is not there", "make it as it is on the other shards");
        return Ok(());
    };
    // Its changes are brought back once it serves.
    let row = client.query_one(TABLE, &[&name, &table.key_column]).await;
    let row = row.about(&what)?;
    logged(row.get(1), table, found);
    identity(client, &row, table, found).await.about(&what)?;
    acting(client, table, found).await?;
    subscribed(client, table, found).await?;
    let moves = job.given_to(&server.name);
    let condition = match &table.group {
        Some(_) if !joins => condition(job, table, &moves, &identifier(&table.key_column))?,
        Some(_) | None => Some("true".to_owned()),
    };
    if let Some(condition) = condition.filter(|_| joins || table.group.is_some())
        && any(client, &format!("{name} WHERE {condition}"), found)
            .await
            .about(&what)?
    {
        found.error(
            "it has rows already of keys that it does not own",
            format!("DELETE FROM {name} WHERE {condition}"),
        );
    }
    let Some(from) = moves
        .first()
        .map(|it| it.from.clone())
        .or_else(|| job.giver())
    else {
        return Ok(());
    };
    let source = connection(named(job, &from)?).await?;
    let Some(there) = schema::shape(&source, table).await? else {
        return Ok(());
    };
    if let Some(differs) = there.differs(&here) {
        let said = format!(
            "it is made otherwise than on shard {from}: it lacks {:?}, and has {:?}",
            differs.missing, differs.extra
        );
        let fix = "make the tables alike";
        if differs.essential {
            found.error(said, fix);
        } else {
            found.warning(said, fix);
        }
    }
    Ok(())
}
