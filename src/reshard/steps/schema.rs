//! The schema of the destinations: made on a shard that joins, compared on one that is there.
//!
//! What must stay true: what is made on a shard, the list of it and what is still to be made are one transaction; a table
//! that was there is never changed.

use super::asking::{About as _, connection};
use super::records::begin;
use crate::reshard::{
    dump::{Section, Tools, dump},
    job::{Job, StepError},
    plan::MovingTable,
    servers::Server,
    statements::phased,
};
use deadpool_postgres::Client;
use std::collections::BTreeSet;

/// Everything in a database that has a name of its own and is nobody's part.
const OBJECTS: &str = "\
SELECT o.class, o.oid FROM ( \
  SELECT 'pg_namespace'::regclass AS class, oid FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema' \
  UNION ALL SELECT 'pg_extension'::regclass, oid FROM pg_extension \
  UNION ALL SELECT 'pg_class'::regclass, oid FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND oid >= 16384 \
    AND relpersistence <> 't' AND relnamespace <> 'shardway'::regnamespace \
  UNION ALL SELECT 'pg_proc'::regclass, oid FROM pg_proc WHERE oid >= 16384 AND pronamespace <> 'shardway'::regnamespace \
  UNION ALL SELECT 'pg_type'::regclass, t.oid FROM pg_type t LEFT JOIN pg_class c ON c.oid = t.typrelid \
    WHERE t.oid >= 16384 AND (t.typtype IN ('d', 'e', 'r') OR c.relkind = 'c') \
  UNION ALL SELECT 'pg_collation'::regclass, oid FROM pg_collation WHERE oid >= 16384 \
  UNION ALL SELECT 'pg_operator'::regclass, oid FROM pg_operator WHERE oid >= 16384 \
  UNION ALL SELECT 'pg_cast'::regclass, oid FROM pg_cast WHERE oid >= 16384 \
  UNION ALL SELECT 'pg_ts_config'::regclass, oid FROM pg_ts_config WHERE oid >= 16384 \
  UNION ALL SELECT 'pg_ts_dict'::regclass, oid FROM pg_ts_dict WHERE oid >= 16384 \
  UNION ALL SELECT 'pg_foreign_data_wrapper'::regclass, oid FROM pg_foreign_data_wrapper \
  UNION ALL SELECT 'pg_foreign_server'::regclass, oid FROM pg_foreign_server) o \
WHERE NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = o.class AND d.objid = o.oid AND d.deptype IN ('e', 'i'))";

/// In which order things go: what others depend on last, as far as CASCADE does not do it.
const NEW: &str = "\
INSERT INTO shardway.made (workflow, kind, name, place) \
SELECT $1, i.type, i.identity, row_number() OVER (ORDER BY i.type = 'schema', i.type = 'extension', i.type, i.identity) \
FROM (SELECT * FROM pg_temp.now_there EXCEPT SELECT * FROM pg_temp.was_there) o \
CROSS JOIN LATERAL pg_identify_object(o.class, o.oid, 0) i ON CONFLICT DO NOTHING";

/// What a table is, each property a line: those that copies and applied changes need, then the others.
const SHAPE: &str = "\
SELECT true, format('column %I %s%s%s%s%s', a.attname, format_type(a.atttypid, a.atttypmod), \
    CASE WHEN a.attnotnull THEN ' not null' ELSE '' END, \
    CASE WHEN a.attcollation <> t.typcollation THEN ' collate ' || a.attcollation::regcollation::text ELSE '' END, \
    CASE WHEN a.attgenerated <> '' THEN ' generated as ' || pg_get_expr(d.adbin, d.adrelid) ELSE '' END, \
    CASE WHEN a.attidentity <> '' THEN ' identity' ELSE '' END) \
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped \
UNION ALL SELECT true, format('partition of %s %s', i.inhparent::regclass, pg_get_expr(c.relpartbound, c.oid)) \
FROM pg_class c JOIN pg_inherits i ON i.inhrelid = c.oid WHERE c.oid = to_regclass($1) AND c.relispartition \
UNION ALL SELECT contype IN ('p', 'u', 'x'), pg_get_constraintdef(oid) FROM pg_constraint \
WHERE conrelid = to_regclass($1) AND contype IN ('p', 'u', 'x', 'c', 'f') \
UNION ALL SELECT i.indisunique, regexp_replace(pg_get_indexdef(i.indexrelid), ' INDEX .*? ON ', ' INDEX ON ') \
FROM pg_index i WHERE i.indrelid = to_regclass($1) AND NOT EXISTS (SELECT FROM pg_constraint c WHERE c.conindid = i.indexrelid) \
UNION ALL SELECT false, pg_get_triggerdef(oid) FROM pg_trigger \
WHERE tgrelid = to_regclass($1) AND NOT tgisinternal AND tgname !~ '^shardway_guard_' \
UNION ALL SELECT false, format('row security%s', CASE WHEN relforcerowsecurity THEN ', forced' ELSE '' END) FROM pg_class \
WHERE oid = to_regclass($1) AND relrowsecurity";

/// Where a shard keeps its tables' places of which only their CREATE TABLE says.
const PLACES: &str = "\
SELECT format('%I.%I', n.nspname, c.relname), p.kind, p.\"group\", p.key_column \
FROM shardway.placement p JOIN pg_class c ON c.oid = p.relation JOIN pg_namespace n ON n.oid = c.relnamespace";
const PLACE: &str = "\
INSERT INTO shardway.placement (relation, kind, \"group\", key_column, owned) \
SELECT to_regclass($1), $2, $3, $4, true WHERE to_regclass($1) IS NOT NULL ON CONFLICT DO NOTHING";

/// What tables have; `essential`: what no copy goes without.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    pub essential: BTreeSet<String>,
    pub other: BTreeSet<String>,
}

/// What of a table differs between two servers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Differs {
    pub essential: bool,
    /// Only on the first.
    pub missing: Vec<String>,
    /// Only on the second.
    pub extra: Vec<String>,
}

impl Shape {
    /// What the second has otherwise; `None`: they are alike.
    #[must_use]
    pub fn differs(&self, there: &Self) -> Option<Differs> {
        if self == there {
            return None;
        }
        let of = |a: &Self, b: &Self| -> Vec<String> {
            let (a, b) = (a.lines(), b.lines());
            a.difference(&b).cloned().collect()
        };
        Some(Differs {
            essential: self.essential != there.essential,
            missing: of(self, there),
            extra: of(there, self),
        })
    }

    fn lines(&self) -> BTreeSet<String> {
        self.essential.union(&self.other).cloned().collect()
    }
}

/// What a table has on a server; `None`: it is not there.
///
/// # Errors
/// [`StepError`].
pub async fn shape(client: &Client, table: &MovingTable) -> Result<Option<Shape>, StepError> {
    let rows = client.query(SHAPE, &[&table.sql()]).await;
    let rows = rows.about("looking at a table")?;
    let mut shape = Shape::default();
    for row in &rows {
        let line: String = row.get(1);
        if row.get(0) {
            shape.essential.insert(line);
        } else {
            shape.other.insert(line);
        }
    }
    Ok((!rows.is_empty()).then_some(shape))
}

/// Whether the reshard has made the schema of a shard.
///
/// # Errors
/// [`StepError`].
pub async fn is_made(client: &Client, job: &Job) -> Result<bool, StepError> {
    const MADE: &str = "SELECT EXISTS (SELECT FROM shardway.schema_step WHERE workflow = $1) \
                        OR EXISTS (SELECT FROM shardway.made WHERE workflow = $1)";
    let row = client.query_one(MADE, &[&job.id]).await;
    Ok(row.about("asking what was made")?.get(0))
}

/// Makes the source's schema on a shard that has none of it: tables without keys, indexes, triggers and foreign keys, which
/// are written down for later.
///
/// # Errors
/// [`StepError::Halt`] with what `pg_dump` or the server says.
pub async fn make(
    job: &Job,
    tools: &Tools,
    source: &Server,
    destination: &Server,
) -> Result<(), StepError> {
    let (before, after) = dumped(tools, source).await?;
    let what = format!("making the schema on shard {}", destination.name);
    let client = connection(destination).await?;
    let places = connection(source).await?;
    // Both lists are of one moment, with what was made in between: what others make meanwhile is in neither.
    let moment = "SET default_transaction_isolation = 'repeatable read'";
    client.batch_execute(moment).await.about(&what)?;
    begin(&client, job).await?;
    let list = |name: &str| format!("CREATE TEMPORARY TABLE {name} ON COMMIT DROP AS {OBJECTS}");
    client
        .batch_execute(&list("was_there"))
        .await
        .about(&what)?;
    client.batch_execute(&before).await.about(&what)?;
    client
        .batch_execute(&list("now_there"))
        .await
        .about(&what)?;
    client.execute(NEW, &[&job.id]).await.about(&what)?;
    const LATER: &str = "INSERT INTO shardway.schema_step (workflow, place, phase, statement) VALUES ($1, $2, $3, $4)";
    for (place, (phase, statement)) in (1_i32..).zip(phased(&after)) {
        let kept = client
            .execute(LATER, &[&job.id, &place, &phase.name(), &statement])
            .await;
        kept.about(&what)?;
    }
    place(&places, &client).await?;
    client.batch_execute("COMMIT").await.about(&what)
}

/// What `pg_dump` writes of a source, of one moment.
async fn dumped(tools: &Tools, source: &Server) -> Result<(String, String), StepError> {
    let what = format!("dumping the schema of shard {}", source.name);
    let client = connection(source).await?;
    let begun = client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY");
    begun.await.about(&what)?;
    let row = client.query_one("SELECT pg_export_snapshot()", &[]).await;
    let snapshot: String = row.about(&what)?.get(0);
    let halt = |problem| StepError::Halt {
        what: format!("{what}: {problem}"),
        remedy: "install pg_dump of the server's version or newer, and say where it is".to_owned(),
    };
    let before = dump(tools, source, &snapshot, Section::BeforeData).await;
    let after = dump(tools, source, &snapshot, Section::AfterData).await;
    Ok((before.map_err(halt)?, after.map_err(halt)?))
}

async fn place(source: &Client, destination: &Client) -> Result<(), StepError> {
    let what = "telling where tables live";
    for row in source.query(PLACES, &[]).await.about(what)? {
        let (table, kind): (String, String) = (row.get(0), row.get(1));
        let (group, column): (Option<String>, Option<String>) = (row.get(2), row.get(3));
        let placed = destination
            .execute(PLACE, &[&table, &kind, &group, &column])
            .await;
        placed.about(what)?;
    }
    Ok(())
}

/// Drops what the reshard made on a shard.
///
/// # Errors
/// [`StepError`].
pub async fn unmake(job: &Job, server: &Server) -> Result<(), StepError> {
    const MADE: &str = "\
SELECT format('DROP %s IF EXISTS %s CASCADE', CASE kind WHEN 'foreign-data wrapper' THEN 'FOREIGN DATA WRAPPER' ELSE kind END, name) \
FROM shardway.made WHERE workflow = $1 ORDER BY place";
    let what = format!("dropping what was made on shard {}", server.name);
    let client = connection(server).await?;
    begin(&client, job).await?;
    let rows = client.query(MADE, &[&job.id]).await.about(&what)?;
    for row in rows {
        let drop: String = row.get(0);
        client.batch_execute(&drop).await.about(&what)?;
    }
    const FORGET: &str = "\
DELETE FROM shardway.placement p WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p.relation)";
    for forget in [
        "DELETE FROM shardway.made WHERE workflow = $1",
        "DELETE FROM shardway.schema_step WHERE workflow = $1",
    ] {
        client.execute(forget, &[&job.id]).await.about(&what)?;
    }
    client.execute(FORGET, &[]).await.about(&what)?;
    client.batch_execute("COMMIT").await.about(&what)
}
