//! What each server allows: its settings, room for slots, the role's rights, who is at work, and whether they are alike.

use super::{Finding, Found};
use crate::reshard::{
    job::{Job, StepError},
    servers::Server,
    steps::asking::{About as _, connection},
};
use deadpool_postgres::Client;
use std::collections::BTreeMap;

/// What servers are compared by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    version: i32,
    encoding: String,
    collation: String,
    /// Labels of enums by name, in their order.
    enums: BTreeMap<String, String>,
    /// Versions of extensions.
    extensions: BTreeMap<String, String>,
    /// Extensions that could be installed.
    available: Vec<String>,
    roles: Vec<String>,
    /// Roles that own something or have rights on it.
    named: Vec<String>,
}

impl Facts {
    pub(super) fn major(&self) -> u32 {
        u32::try_from(self.version / 10_000).unwrap_or(0)
    }
}

const SETTINGS: &str = "\
SELECT current_setting('wal_level'), current_setting('max_prepared_transactions')::int4, \
  current_setting('max_replication_slots')::int8 - (SELECT count(*) FROM pg_replication_slots), \
  current_setting('max_wal_senders')::int8 - (SELECT count(*) FROM pg_stat_replication), \
  current_setting('max_connections')::int8 - (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'), \
  pg_is_in_recovery(), coalesce(current_setting('max_slot_wal_keep_size', true), '-1'), \
  coalesce(current_setting('idle_replication_slot_timeout', true), '0'), \
  to_regclass('shardway.schema_step') IS NOT NULL";

const RIGHTS: &str = "\
SELECT current_user::text, r.rolreplication OR r.rolsuper, has_database_privilege(current_database(), 'CREATE'), \
  current_database()::text, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') FROM pg_roles r WHERE r.rolname = current_user";

/// Tried, because only the newest servers tell; undone in any case.
pub(super) const REPLICA: &str = "BEGIN; SET LOCAL session_replication_role = replica; ROLLBACK";

/// Who keeps slots from being made, and fences from closing.
const BUSY: &str = "\
SELECT format('process %s of %s (%s) has a transaction open for %s s', pid, usename, application_name, \
              extract(epoch FROM clock_timestamp() - xact_start)::int8), format('SELECT pg_terminate_backend(%s)', pid), false \
FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend' \
  AND xact_start < clock_timestamp() - interval '60 s' \
UNION ALL \
SELECT format('transaction %L is prepared since %s s', gid, extract(epoch FROM clock_timestamp() - prepared)::int8), \
  CASE WHEN starts_with(gid, 'shardway:') THEN 'a proxy finishes it: SHOW TRANSACTIONS on its console says what is in the way' \
    ELSE format('COMMIT PREPARED %L or ROLLBACK PREPARED %1$L', gid) END, true \
FROM pg_prepared_xacts WHERE database = current_database() AND prepared < clock_timestamp() - interval '10 s'";

/// Sessions that are of this server alone.
const BOUND: &str = "\
SELECT (SELECT count(DISTINCT pid) FROM pg_locks WHERE locktype = 'advisory' \
          AND database = (SELECT oid FROM pg_database WHERE datname = current_database())), \
       (SELECT count(DISTINCT relnamespace) FROM pg_class WHERE relpersistence = 't')";

/// Those whose last statement says so: what a session listens for, only itself can tell.
const LISTENING: &str = "\
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND backend_type = 'client backend' \
  AND query ~* '^\\s*listen\\M'";

const ALL_TABLES: &str = "SELECT pubname::text FROM pg_publication WHERE puballtables";

const ALIKE: &str = "\
SELECT current_setting('server_version_num')::int4, pg_encoding_to_char(encoding), \
  concat_ws(' ', datcollate, datctype, to_jsonb(d)->>'datlocprovider', to_jsonb(d)->>'datcollversion') \
FROM pg_database d WHERE datname = current_database()";
const ENUMS: &str = "\
SELECT format_type(enumtypid, NULL), string_agg(quote_literal(enumlabel), ', ' ORDER BY enumsortorder) FROM pg_enum GROUP BY 1";
const EXTENSIONS: &str = "SELECT extname::text, extversion FROM pg_extension";
const AVAILABLE: &str = "SELECT name::text FROM pg_available_extensions";
const ROLES: &str = "SELECT rolname::text FROM pg_roles";
const NAMED: &str = "\
SELECT DISTINCT pg_get_userbyid(role)::text FROM ( \
  SELECT relowner AS role FROM pg_class WHERE oid >= 16384 UNION SELECT nspowner FROM pg_namespace WHERE oid >= 16384 \
  UNION SELECT proowner FROM pg_proc WHERE oid >= 16384 UNION SELECT typowner FROM pg_type WHERE oid >= 16384 \
  UNION SELECT (aclexplode(relacl)).grantee FROM pg_class WHERE oid >= 16384 \
  UNION SELECT (aclexplode(nspacl)).grantee FROM pg_namespace) r WHERE role <> 0";

/// Looks at one server.
pub(super) async fn look(
    job: &Job,
    server: &Server,
) -> Result<(String, Facts, Vec<Finding>), StepError> {
    let client = connection(server).await?;
    let what = format!("looking at shard {}", server.name);
    let mut found = Found::on(&server.name);
    settings(job, &client, &mut found).await.about(&what)?;
    rights(&client, &mut found).await.about(&what)?;
    for row in client.query(BUSY, &[]).await.about(&what)? {
        let (who, fix): (String, String) = (row.get(0), row.get(1));
        if row.get(2) {
            found.error(format!("{who}: slots cannot be made"), fix);
        } else {
            found.warning(format!("{who}: slots and the cutover wait for it"), fix);
        }
    }
    bound(&client, &mut found).await.about(&what)?;
    let facts = facts(&client).await.about(&what)?;
    Ok((server.name.clone(), facts, found.all))
}

async fn settings(
    job: &Job,
    client: &Client,
    found: &mut Found<'_>,
) -> Result<(), tokio_postgres::Error> {
    let row = client.query_one(SETTINGS, &[]).await?;
    if row.get::<_, bool>(5) {
        found.error(
            "it is a standby",
            "give the shard's primary in the configuration",
        );
    }
    if row.get::<_, &str>(0) != "logical" {
        found.error(
            format!("wal_level is {}", row.get::<_, &str>(0)),
            "ALTER SYSTEM SET wal_level = 'logical', and restart the server",
        );
    }
    if row.get::<_, i32>(1) == 0 {
        found.error(
            "max_prepared_transactions is 0",
            "ALTER SYSTEM SET max_prepared_transactions = 100, and restart the server",
        );
    }
    // One each way, and one for each comparison.
    const SLOTS: i64 = 3;
    for (at, setting) in [(2, "max_replication_slots"), (3, "max_wal_senders")] {
        let free: i64 = row.get(at);
        if free < SLOTS {
            found.error(
                format!("{setting} leaves {free} free; {SLOTS} are needed"),
                format!("raise {setting} with ALTER SYSTEM, and restart the server"),
            );
        }
    }
    let connections = 10 + i64::try_from(job.knobs.borrow().copies).unwrap_or(0) * 2;
    let free: i64 = row.get(4);
    if free < connections {
        found.warning(
            format!("max_connections leaves {free} free; up to {connections} are used"),
            "raise max_connections with ALTER SYSTEM, and restart the server",
        );
    }
    let kept: &str = row.get(6);
    if kept != "-1" {
        found.warning(
            format!("max_slot_wal_keep_size is {kept}: a slot that falls behind is lost, and the copy begins anew"),
            "ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf()",
        );
    }
    let idle: &str = row.get(7);
    if idle != "0" {
        found.warning(
            format!(
                "idle_replication_slot_timeout is {idle}: slots that wait for a cutover are lost"
            ),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; SELECT pg_reload_conf()",
        );
    }
    if !row.get::<_, bool>(8) {
        found.error(
            "there is no schema \"shardway\" of this version",
            "let a proxy with the control role reach the shard",
        );
    }
    Ok(())
}

async fn rights(client: &Client, found: &mut Found<'_>) -> Result<(), tokio_postgres::Error> {
    let row = client.query_one(RIGHTS, &[]).await?;
    let (role, database): (String, String) = (row.get(0), row.get(3));
    if !row.get::<_, bool>(1) {
        found.error(
            format!("role {role} may not use slots"),
            format!("ALTER ROLE \"{role}\" REPLICATION"),
        );
    }
    if !row.get::<_, bool>(2) {
        found.error(
            format!("role {role} may not make publications"),
            format!("GRANT CREATE ON DATABASE \"{database}\" TO \"{role}\""),
        );
    }
    // Whose transactions are hidden, nobody waits for: they would read rows that are deleted, or miss those that came.
    if !row.get::<_, bool>(4) {
        found.error(
            format!("role {role} does not see what other roles' sessions do"),
            format!("GRANT pg_read_all_stats TO \"{role}\""),
        );
    }
    if client.batch_execute(REPLICA).await.is_err() {
        client.batch_execute("ROLLBACK").await?;
        found.note(
            format!("role {role} may not set session_replication_role: tables with triggers, rules or foreign keys cannot be moved"),
            format!("GRANT SET ON PARAMETER session_replication_role TO \"{role}\" (from PostgreSQL 15 on)"),
        );
    }
    Ok(())
}

async fn bound(client: &Client, found: &mut Found<'_>) -> Result<(), tokio_postgres::Error> {
    let row = client.query_one(BOUND, &[]).await?;
    let (locks, temporary): (i64, i64) = (row.get(0), row.get(1));
    if locks > 0 {
        found.note(
            format!("{locks} sessions hold advisory locks, which count on one shard only"),
            "SELECT pid FROM pg_locks WHERE locktype = 'advisory'",
        );
    }
    if temporary > 0 {
        found.note(
            format!("{temporary} sessions have temporary tables, and stay on their shard"),
            "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'pg_temp%'",
        );
    }
    let listening: i64 = client.query_one(LISTENING, &[]).await?.get(0);
    if listening > 0 {
        found.note(
            format!("{listening} sessions listen, at least: they hear what is notified on this shard alone"),
            "SELECT pid, usename, query FROM pg_stat_activity WHERE query ~* '^\\s*listen\\M'",
        );
    }
    for row in client.query(ALL_TABLES, &[]).await? {
        let name: String = row.get(0);
        found.warning(
            format!("publication {name} is of all tables: its subscribers see rows that are copied, applied and deleted"),
            format!("DROP PUBLICATION \"{name}\", or let its subscribers expect them"),
        );
    }
    Ok(())
}

async fn facts(client: &Client) -> Result<Facts, tokio_postgres::Error> {
    let row = client.query_one(ALIKE, &[]).await?;
    let pairs = async |sql: &str| -> Result<BTreeMap<String, String>, tokio_postgres::Error> {
        let rows = client.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    };
    let list = async |sql: &str| -> Result<Vec<String>, tokio_postgres::Error> {
        let rows = client.query(sql, &[]).await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    };
    Ok(Facts {
        version: row.get(0),
        encoding: row.get(1),
        collation: row.get(2),
        enums: pairs(ENUMS).await?,
        extensions: pairs(EXTENSIONS).await?,
        available: list(AVAILABLE).await?,
        roles: list(ROLES).await?,
        named: list(NAMED).await?,
    })
}

/// What differs between those that give and those that are given.
pub(super) fn compare(job: &Job, facts: &BTreeMap<String, Facts>) -> Vec<Finding> {
    let mut all = Vec::new();
    let moves = job.moves();
    let mut pairs: Vec<(&String, &String)> = moves.iter().map(|it| (&it.from, &it.to)).collect();
    if let Some((first, _)) = pairs.first().copied() {
        pairs.extend(job.plan.joins.iter().map(|join| (first, join)));
    }
    pairs.sort();
    pairs.dedup();
    for (from, to) in pairs {
        let (Some(source), Some(here)) = (facts.get(from), facts.get(to)) else {
            continue;
        };
        let mut found = Found::on(to);
        pair(source, here, from, job.plan.joins.contains(to), &mut found);
        all.extend(found.all);
    }
    all
}

fn pair(source: &Facts, here: &Facts, from: &str, joins: bool, found: &mut Found<'_>) {
    if here.major() < source.major() {
        let what = format!(
            "it is of PostgreSQL {}, older than shard {from}",
            here.major()
        );
        let fix = format!("upgrade it to {}", source.major());
        // A schema that is there already says what it needs.
        if joins {
            found.error(format!("{what}, whose schema it may not know"), fix);
        } else {
            found.warning(what, fix);
        }
    }
    if here.encoding != source.encoding {
        found.error(
            format!(
                "the database is encoded in {}, that of shard {from} in {}",
                here.encoding, source.encoding
            ),
            format!("CREATE DATABASE with ENCODING '{}'", source.encoding),
        );
    }
    if here.collation != source.collation {
        found.warning(
            format!(
                "text is sorted by {:?}, on shard {from} by {:?}",
                here.collation, source.collation
            ),
            "CREATE DATABASE with the same locale, on the same version of its library",
        );
    }
    for (name, labels) in &source.enums {
        if here.enums.get(name).is_some_and(|here| here != labels) {
            found.error(
                format!("enum {name} has other labels, or in another order, than on shard {from}"),
                format!("make it as there: {labels}"),
            );
        }
    }
    for (name, version) in &source.extensions {
        match here.extensions.get(name) {
            Some(other) if other != version => found.warning(
                format!("extension {name} has version {other}, on shard {from} {version}"),
                format!("ALTER EXTENSION \"{name}\" UPDATE TO '{version}'"),
            ),
            None if joins && !here.available.contains(name) => found.error(
                format!("extension {name} cannot be made: the server does not have it"),
                format!("install {name} {version} there"),
            ),
            None if !joins => found.warning(
                format!("extension {name} is only on shard {from}"),
                format!("CREATE EXTENSION \"{name}\" VERSION '{version}'"),
            ),
            Some(_) | None => {}
        }
    }
    for role in source
        .named
        .iter()
        .filter(|role| joins && !here.roles.contains(role))
    {
        found.error(
            format!(
                "there is no role {role}, which owns something on shard {from}, or has rights there"
            ),
            format!("CREATE ROLE \"{role}\", as it is there"),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inspect::Severity;

    fn facts(version: i32) -> Facts {
        Facts {
            version,
            encoding: "UTF8".to_owned(),
            collation: "C".to_owned(),
            enums: BTreeMap::new(),
            extensions: BTreeMap::new(),
            available: Vec::new(),
            roles: Vec::new(),
            named: Vec::new(),
        }
    }

    #[test]
    fn a_shard_that_joins_is_not_older_than_what_it_gets_its_schema_from() {
        let (old, new) = (facts(140_020), facts(180_001));
        let said = |source, here, joins| {
            let mut found = Found::on("b");
            pair(source, here, "a", joins, &mut found);
            found.all.first().map(|it| it.severity)
        };
        assert_eq!(said(&new, &old, true), Some(Severity::Error));
        assert_eq!(said(&new, &old, false), Some(Severity::Warning));
        assert_eq!(said(&old, &new, true), None);
    }
}
