//! What tables have to keep from the moment on in which they are found ready: nobody writes to them whom no guard refuses, and
//! what is changed says of which row it is.
//!
//! What must stay true: it asks and changes nothing; what it asks is sent at once, as it is asked under a fence's locks too.

use super::{
    asking::{About as _, Typed},
    ready::published,
};
use crate::reshard::{
    job::{Direction, Job, StepError},
    plan::{MovingTable, identifier},
    servers::Server,
};
use deadpool_postgres::Client;
use tokio_postgres::{Error, Row, types::Type};

/// Subscriptions that bring rows to tables, or to tables of which they are partitions: a subscription's rows are a replica's,
/// which no guard sees.
const SUBSCRIBED: &str = "\
SELECT s.subname::text, string_agg(DISTINCT replace(name, '\"', ''), ', ') FROM unnest($1::text[]) name \
JOIN pg_subscription_rel r ON r.srrelid = to_regclass(name) \
  OR r.srrelid IN (SELECT relid FROM pg_partition_ancestors(to_regclass(name))) \
JOIN pg_subscription s ON s.oid = r.srsubid GROUP BY 1 ORDER BY 1";

/// Tables of which changes do not say which row they are about: the columns that they do not tell; a generated column, of
/// PostgreSQL 18, which lets nobody change rows of a table whose identity has one that is not published; whether that is so.
const UNTOLD: &str = "\
WITH w AS (SELECT DISTINCT name, col FROM unnest($1::text[], $2::text[]) u (name, col)) \
SELECT * FROM (SELECT n.name, \
    (SELECT string_agg(w.col, ', ' ORDER BY w.col) FROM w WHERE w.name = n.name AND c.relreplident <> 'f' AND NOT EXISTS ( \
       SELECT FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]) \
       WHERE i.indrelid = c.oid AND a.attname = w.col AND i.indisvalid AND CASE c.relreplident \
         WHEN 'd' THEN i.indisprimary AND i.indimmediate WHEN 'i' THEN i.indisreplident ELSE false END)) AS untold, \
    CASE WHEN greatest($3, current_setting('server_version_num')::int4) >= 180000 THEN (SELECT min(a.attname::text) FROM pg_attribute a \
       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> '') END AS generated, \
    c.relreplident = 'f' AS whole \
  FROM (SELECT DISTINCT name FROM w) n JOIN pg_class c ON c.oid = to_regclass(n.name)) t \
WHERE untold IS NOT NULL OR whole AND generated IS NOT NULL ORDER BY name";

/// A subscription, with the tables that it brings rows to.
pub(super) struct Subscription {
    pub(super) name: String,
    pub(super) tables: String,
}

impl Subscription {
    /// What takes the tables out of it.
    pub(super) fn remedy(&self) -> String {
        let name = identifier(&self.name);
        format!(
            "take them out of what it subscribes to, then ALTER SUBSCRIPTION {name} REFRESH PUBLICATION; or DROP SUBSCRIPTION {name}"
        )
    }
}

/// Those that bring rows to tables, whose names are SQL. One that is disabled now need not stay so.
pub(super) async fn subscriptions(
    client: &Client,
    tables: &[String],
) -> Result<Vec<Subscription>, Error> {
    let rows = client
        .query_typed(SUBSCRIBED, &[(&tables, Type::TEXT_ARRAY)])
        .await?;
    let subscription = |row: &Row| Subscription {
        name: row.get(0),
        tables: row.get(1),
    };
    Ok(rows.iter().map(subscription).collect())
}

/// Sees that nobody subscribes to rows for what a server gives in the job's direction.
///
/// # Errors
/// [`StepError::Halt`]: somebody does.
pub(super) async fn unless_subscribed(
    client: &Client,
    job: &Job,
    server: &Server,
) -> Result<(), StepError> {
    let found = subscriptions(client, &published(job, server)).await;
    let found = found.about("looking for subscriptions")?;
    let Some(first) = found.first() else {
        return Ok(());
    };
    Err(StepError::Halt {
        what: format!(
            "subscription {} of shard {} brings rows to {}, and no guard refuses them: those of keys that another shard owns would be lost",
            first.name, server.name, first.tables
        ),
        remedy: format!("{}; then resume", first.remedy()),
    })
}

/// What is wrong with a table's replica identity.
pub(super) struct Untold<'a> {
    table: &'a MovingTable,
    columns: Option<String>,
    generated: Option<String>,
}

impl Untold<'_> {
    /// What it is, of a table that was named.
    pub(super) fn what(&self) -> String {
        match (&self.columns, &self.generated) {
            (Some(columns), _) => format!(
                "what is deleted or updated there does not tell {columns}: it could not be brought to others"
            ),
            (None, generated) => format!(
                "its replica identity has {}, which is generated: PostgreSQL 18 lets nobody update or delete its rows once it is published",
                generated.as_deref().unwrap_or_default()
            ),
        }
    }

    /// The statement that mends it.
    pub(super) fn remedy(&self) -> String {
        let (table, key) = (self.table, identifier(&self.table.key_column));
        let name = table.sql();
        if table.group.is_none() || table.primary_key.contains(&table.key_column) {
            return format!("ALTER TABLE {name} REPLICA IDENTITY DEFAULT");
        }
        if self.generated.is_none() {
            return format!("ALTER TABLE {name} REPLICA IDENTITY FULL");
        }
        let index = identifier(&format!("{}_identity", table.name));
        let columns: Vec<String> = table.primary_key.iter().map(|it| identifier(it)).collect();
        format!(
            "CREATE UNIQUE INDEX {index} ON {name} ({}, {key}); \
             ALTER TABLE {name} ALTER {key} SET NOT NULL, REPLICA IDENTITY USING INDEX {index}",
            columns.join(", ")
        )
    }
}

/// Those of tables of which changes do not say which row they are about, or could not be made, there or on a server of that
/// version, as `server_version_num` has it.
pub(super) async fn untold<'a>(
    client: &Client,
    tables: &[&'a MovingTable],
    version: i32,
) -> Result<Vec<Untold<'a>>, Error> {
    let (mut names, mut columns) = (Vec::new(), Vec::new());
    for table in tables {
        let sharded = table.group.is_some().then_some(&table.key_column);
        for column in table.primary_key.iter().chain(sharded) {
            names.push(table.sql());
            columns.push(column.clone());
        }
    }
    let values: [Typed<'_>; 3] = [
        (&names, Type::TEXT_ARRAY),
        (&columns, Type::TEXT_ARRAY),
        (&version, Type::INT4),
    ];
    let rows = client.query_typed(UNTOLD, &values).await?;
    let untold = |row: &Row| {
        let name: String = row.get(0);
        let table = tables.iter().find(|it| it.sql() == name)?;
        Some(Untold {
            table,
            columns: row.get(1),
            generated: row.get(2),
        })
    };
    Ok(rows.iter().filter_map(untold).collect())
}

/// Sees that what is changed of what a server gives in the job's direction says of which row it is, and may be changed.
///
/// # Errors
/// [`StepError::Halt`]: it is not so.
pub(super) async fn unless_untold(
    client: &Client,
    job: &Job,
    server: &Server,
) -> Result<(), StepError> {
    let found = untold(client, &given(job, server), 0).await;
    let found = found.about("looking at replica identities")?;
    let Some(first) = found.first() else {
        return Ok(());
    };
    let otherwise = match job.direction {
        Direction::Forward => "; or abort the reshard and start it again",
        Direction::Back => "",
    };
    Err(StepError::Halt {
        what: format!(
            "{} on shard {}: {}",
            first.table.plain(),
            server.name,
            first.what()
        ),
        remedy: format!("{}, then resume{otherwise}", first.remedy()),
    })
}

/// The tables of which a server gives rows in the job's direction.
pub(super) fn given<'a>(job: &'a Job, server: &Server) -> Vec<&'a MovingTable> {
    let mut tables: Vec<&MovingTable> = Vec::new();
    for flow in job.flows() {
        if flow.source == server.name && !tables.contains(&flow.table) {
            tables.push(flow.table);
        }
    }
    tables
}
