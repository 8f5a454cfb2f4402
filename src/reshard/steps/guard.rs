//! The triggers that refuse writes of keys that a shard has given away, to whoever comes past the proxies or with an old map.
//!
//! What must stay true: they are made disabled, and enabled under a lock that waits for every writer; they judge the rows
//! that are written by what is written in them, so that no snapshot is too old for them; they say nothing of other keys;
//! they do not fire for what is applied under `session_replication_role = replica`, and let pass who has the pass of the
//! run's last runner. Of reference tables, while shards join, they let pass whoever says that the write reaches these too:
//! only a map in which they serve leads a proxy there.

use super::{
    asking::{About as _, connection},
    condition,
    records::begin,
};
use crate::{
    catalog::moving::REACHES,
    reshard::{
        job::{Direction, Job, StepError},
        plan::{MovingTable, identifier},
        servers::Server,
    },
    sql::statement::quoted,
};
use deadpool_postgres::Client;
use tokio_postgres::types::Type;

/// What a refused write is told with; proxies that meet it take the map over again.
pub const REFUSED: &str = "SWG01";

/// What each trigger of a guard is for: the end of its name, the event, the rows it looks at.
const PARTS: [(&str, &str, &[&str]); 3] = [
    ("_i", "INSERT", &["NEW"]),
    ("_u", "UPDATE", &["OLD", "NEW"]),
    ("_d", "DELETE", &["OLD"]),
];
const TRUNCATE: &str = "_t";

/// Which triggers of a table belong to a guard, by the beginning of their name, and whether one of them is enabled.
const FOUND: &str = "\
SELECT count(t.oid), coalesce(bool_or(t.tgenabled <> 'D'), false) FROM unnest($1) WITH ORDINALITY n (name, place) \
LEFT JOIN pg_trigger t ON t.tgrelid = to_regclass(n.name) AND NOT t.tgisinternal AND t.tgname = ANY($2) \
GROUP BY n.place ORDER BY n.place";

/// What a guard's function and its triggers are called; the triggers have an ending each.
#[must_use]
pub fn name(job: &Job) -> String {
    match job.direction {
        Direction::Forward => format!("shardway_guard_{}", job.id),
        Direction::Back => format!("shardway_guard_{}_back", job.id),
    }
}

fn function(job: &Job) -> String {
    format!("shardway.{}", identifier(&name(job)))
}

fn triggers(job: &Job) -> Vec<String> {
    let parts = PARTS.iter().map(|(ending, ..)| *ending);
    let endings = parts.chain([TRUNCATE]);
    endings
        .map(|ending| format!("{}{ending}", name(job)))
        .collect()
}

/// Makes the guard of a shard, disabled; a table that has it already keeps it as it is.
///
/// # Errors
/// [`StepError::Again`] as well when a table is too busy for the lock that it takes for a moment.
pub async fn make(job: &Job, server: &Server) -> Result<(), StepError> {
    let client = connection(server).await?;
    begin(&client, job).await?;
    let made = client.batch_execute(&function_sql(job)).await;
    made.about("making the guard's function")?;
    let committed = client.batch_execute("COMMIT").await;
    committed.about("making the guard's function")?;
    for table in tables(job, server) {
        let Some(when) = Conditions::of(job, &table, server)? else {
            continue;
        };
        if found_on(&client, job, &table).await? == triggers(job).len() {
            continue;
        }
        let what = format!(
            "making the guard of {} on shard {}",
            table.plain(),
            server.name
        );
        begin(&client, job).await?;
        let sql = format!(
            "{}; {}",
            lock_timeout(job),
            triggers_sql(job, &table, &when)
        );
        client.batch_execute(&sql).await.about(&what)?;
        client.batch_execute("COMMIT").await.about(&what)?;
    }
    Ok(())
}

/// The tables that a shard's guard is on: those of which it gives rows, and, while shards join that are given all rows of
/// reference tables by it, these.
pub(super) fn tables(job: &Job, server: &Server) -> Vec<MovingTable> {
    let mut tables = job.tables_of(&job.given_by(&server.name));
    if job.giver().as_ref() == Some(&server.name) {
        tables.extend(job.plan.reference.iter().cloned());
    }
    tables
}

/// For how long a table's writers may have to wait behind this: until it has the lock, and then until it goes on, for a
/// process that is frozen or cut off says nothing more and keeps what it has locked.
pub(super) fn lock_timeout(job: &Job) -> String {
    let knobs = job.knobs.borrow();
    let (most, idle) = (knobs.lock.as_millis().max(1), knobs.hold.as_millis().max(1));
    format!(
        "SET LOCAL lock_timeout = {most}; SET LOCAL idle_in_transaction_session_timeout = {idle}"
    )
}

/// Turns the guard's triggers of tables on or off, as statements.
#[must_use]
pub fn switch_sql(job: &Job, tables: &[MovingTable], switch: Switch) -> String {
    let word = match switch {
        Switch::On => "ENABLE",
        Switch::Off => "DISABLE",
    };
    let mut sql = String::new();
    for table in tables {
        for trigger in triggers(job) {
            let (table, trigger) = (table.sql(), identifier(&trigger));
            sql.push_str(&format!("ALTER TABLE {table} {word} TRIGGER {trigger}; "));
        }
    }
    sql
}

/// Whether a guard refuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Switch {
    On,
    Off,
}

/// Which of a shard's tables have the guard.
pub(super) async fn guarded(
    client: &Client,
    job: &Job,
    server: &Server,
) -> Result<Vec<(MovingTable, Switch)>, StepError> {
    let tables = tables(job, server);
    let found = found(client, job, &tables).await?;
    let all = triggers(job).len();
    let guarded = tables.into_iter().zip(found);
    Ok(guarded
        .filter(|(_, found)| found.count == all)
        .map(|(table, found)| (table, found.switch))
        .collect())
}

/// Takes a guard away with its function, and what is left of one that was being made.
///
/// # Errors
/// [`StepError::Again`] as well when a table is too busy for the lock that it takes for a moment.
pub async fn drop_on(job: &Job, server: &Server) -> Result<(), StepError> {
    let client = connection(server).await?;
    let what = format!("dropping the guard on shard {}", server.name);
    for table in tables(job, server) {
        if found_on(&client, job, &table).await? == 0 {
            continue;
        }
        begin(&client, job).await?;
        let mut sql = lock_timeout(job);
        for trigger in triggers(job) {
            let (table, trigger) = (table.sql(), identifier(&trigger));
            sql.push_str(&format!("; DROP TRIGGER IF EXISTS {trigger} ON {table}"));
        }
        client.batch_execute(&sql).await.about(&what)?;
        client.batch_execute("COMMIT").await.about(&what)?;
    }
    begin(&client, job).await?;
    let sql = format!("DROP FUNCTION IF EXISTS {}(); COMMIT", function(job));
    client.batch_execute(&sql).await.about(&what)
}

/// What a table has of a guard.
struct Found {
    count: usize,
    switch: Switch,
}

/// Of each table.
async fn found(
    client: &Client,
    job: &Job,
    tables: &[MovingTable],
) -> Result<Vec<Found>, StepError> {
    let names: Vec<String> = tables.iter().map(MovingTable::sql).collect();
    let triggers = triggers(job);
    let rows = client
        .query_typed(
            FOUND,
            &[(&names, Type::TEXT_ARRAY), (&triggers, Type::TEXT_ARRAY)],
        )
        .await
        .about("looking for a guard")?;
    let found = rows.iter().map(|row| Found {
        count: usize::try_from(row.get::<_, i64>(0)).unwrap_or(0),
        switch: if row.get(1) { Switch::On } else { Switch::Off },
    });
    Ok(found.collect())
}

/// Of one table.
async fn found_on(client: &Client, job: &Job, table: &MovingTable) -> Result<usize, StepError> {
    let found = found(client, job, std::slice::from_ref(table)).await?;
    Ok(found.first().map_or(0, |found| found.count))
}

/// What a guard refuses: rows, by the row that is looked at, and TRUNCATE.
struct Conditions {
    old: String,
    new: String,
    table: String,
}

impl Conditions {
    fn of(job: &Job, table: &MovingTable, server: &Server) -> Result<Option<Self>, StepError> {
        if table.group.is_none() {
            let [old, new, table] = [(); 3].map(|()| passes_by(&job.plan.joins));
            return Ok(Some(Self { old, new, table }));
        }
        let moves = job.given_by(&server.name);
        let of = |row: &str| {
            let column = format!("{row}.{}", identifier(&table.key_column));
            condition(job, table, &moves, &column)
        };
        let both = of("OLD")?.zip(of("NEW")?);
        Ok(both.map(|(old, new)| Self {
            old,
            new,
            table: "true".to_owned(),
        }))
    }
}

/// The condition that a write does not reach all shards that join.
fn passes_by(joins: &[String]) -> String {
    let joins: Vec<String> = joins.iter().map(|name| quoted(name)).collect();
    format!(
        "(pg_catalog.string_to_array(pg_catalog.current_setting({}, true), ',') \
         OPERATOR(pg_catalog.@>) ARRAY[{}]::pg_catalog.text[]) IS NOT TRUE",
        quoted(REACHES),
        joins.join(", ")
    )
}

fn function_sql(job: &Job) -> String {
    let message = quoted(&format!(
        "keys of this row belong to another shard since reshard {}",
        job.id
    ));
    let hint = quoted("Write through Shardway, which knows the shard.");
    // The session of the runner may not be able to write as a replica. Who else writes cannot read its pass: this can.
    let workflow = quoted(&job.id);
    let body = format!(
        "BEGIN IF EXISTS (SELECT FROM shardway.runner WHERE workflow = {workflow} \
         AND pass = current_setting('shardway.pass', true)) THEN RETURN NULL; END IF; \
         RAISE EXCEPTION USING ERRCODE = '{REFUSED}', MESSAGE = {message}, HINT = {hint}, \
         SCHEMA = TG_TABLE_SCHEMA, TABLE = TG_TABLE_NAME; END"
    );
    format!(
        "CREATE OR REPLACE FUNCTION {}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER \
         SET search_path = pg_catalog, pg_temp AS {}",
        function(job),
        quoted(&body)
    )
}

fn triggers_sql(job: &Job, table: &MovingTable, when: &Conditions) -> String {
    let (table_sql, function, name) = (table.sql(), function(job), name(job));
    let mut sql = String::new();
    for (ending, event, rows) in PARTS {
        let each = rows.iter().map(|row| match *row {
            "OLD" => when.old.clone(),
            _ => when.new.clone(),
        });
        let each: Vec<String> = each.collect();
        let trigger = identifier(&format!("{name}{ending}"));
        sql.push_str(&format!(
            "CREATE OR REPLACE TRIGGER {trigger} AFTER {event} ON {table_sql} FOR EACH ROW WHEN ({}) \
             EXECUTE FUNCTION {function}(); ",
            each.join(" OR ")
        ));
    }
    let trigger = identifier(&format!("{name}{TRUNCATE}"));
    sql.push_str(&format!(
        "CREATE OR REPLACE TRIGGER {trigger} BEFORE TRUNCATE ON {table_sql} FOR EACH STATEMENT WHEN ({}) \
         EXECUTE FUNCTION {function}(); ",
        when.table
    ));
    sql + &switch_sql(job, std::slice::from_ref(table), Switch::Off)
}
