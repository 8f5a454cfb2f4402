//! Indexes and constraints that are not the same on all shards: found by comparing what each server says of its tables,
//! each with the statement that makes the odd one like the others.
//!
//! What must stay true: nothing is said about tables that live on one shard, nor about a shard that could not be asked;
//! what is a constraint's or a partitioned table's own is told once, by what it belongs to.

use super::{
    connect::{AskError, connect},
    finding::{Drifted, Finding, Part},
    survey::at_once,
};
use crate::{
    catalog::snapshot::{Placement, Snapshot, TableName},
    config::settings::{Credentials, Database},
};
use std::{cmp::Reverse, collections::BTreeMap};
use tokio_postgres::Client;

/// Indexes that are no constraint's.
const INDEXES: &str = "\
SELECT n.nspname::text, c.relname::text, i.relname::text, d.definition, x.indisvalid, \
  d.definition, pg_catalog.format('DROP INDEX %I.%I', n.nspname, i.relname), \
  pg_catalog.format('REINDEX INDEX %I.%I', n.nspname, i.relname), false, x.indisunique \
FROM pg_catalog.pg_index x \
JOIN pg_catalog.pg_class c ON c.oid = x.indrelid \
JOIN pg_catalog.pg_class i ON i.oid = x.indexrelid \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, \
LATERAL (SELECT pg_catalog.replace(pg_catalog.pg_get_indexdef(x.indexrelid), \
  pg_catalog.format(' ON ONLY %I.%I USING ', n.nspname, c.relname), \
  pg_catalog.format(' ON %I.%I USING ', n.nspname, c.relname)) AS definition) d \
WHERE c.relkind IN ('r', 'p') AND NOT i.relispartition \
  AND NOT EXISTS (SELECT FROM pg_catalog.pg_constraint k WHERE k.conindid = x.indexrelid AND k.contype IN ('p', 'u', 'x'))";
/// Those that are not inherited. PostgreSQL 18 has NOT NULL among them, which [`NOT_NULL`] asks for everywhere.
const CONSTRAINTS: &str = "\
SELECT n.nspname::text, c.relname::text, k.conname::text, d.definition, k.convalidated, \
  pg_catalog.format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s', n.nspname, c.relname, k.conname, d.definition), \
  pg_catalog.format('ALTER TABLE %I.%I DROP CONSTRAINT %I', n.nspname, c.relname, k.conname), \
  pg_catalog.format('ALTER TABLE %I.%I VALIDATE CONSTRAINT %I', n.nspname, c.relname, k.conname), false, true \
FROM pg_catalog.pg_constraint k \
JOIN pg_catalog.pg_class c ON c.oid = k.conrelid \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace, \
LATERAL (SELECT CASE WHEN k.convalidated THEN pg_catalog.pg_get_constraintdef(k.oid) \
  ELSE pg_catalog.regexp_replace(pg_catalog.pg_get_constraintdef(k.oid), ' NOT VALID$', '') END AS definition) d \
WHERE k.contype IN ('c', 'f', 'p', 'u', 'x') AND k.conislocal AND k.conparentid = 0";
/// Columns by name; those of a primary key come and go with it.
const NOT_NULL: &str = "\
SELECT n.nspname::text, c.relname::text, a.attname::text, '', true, \
  pg_catalog.format('ALTER TABLE %I.%I ALTER COLUMN %I SET NOT NULL', n.nspname, c.relname, a.attname), '', '', \
  EXISTS (SELECT FROM pg_catalog.pg_index x WHERE x.indrelid = c.oid AND x.indisprimary AND a.attnum = ANY(x.indkey)), true \
FROM pg_catalog.pg_attribute a \
JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull";
/// The tables whose parts are told, empty ones too.
const TABLES: &str = "\
SELECT n.nspname::text, c.relname::text FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p')";

/// What the tables of one shard have, by kind and name.
type Parts = BTreeMap<TableName, BTreeMap<(Part, String), Own>>;

/// One index or constraint, as a server tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Own {
    definition: String,
    valid: bool,
    /// Statements: make it, drop it, make it valid.
    make: String,
    drop: String,
    validate: String,
    origin: Origin,
    /// Rows may be there that it would not let in, or none be refused where it is missing.
    binds: bool,
}

/// What makes a part.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Origin {
    #[default]
    Itself,
    /// It comes with the primary key.
    PrimaryKey,
}

/// Asks the primaries of all shards, and compares what tables have that live on several of them. `snapshot` knows where
/// tables live. Shards that cannot be asked are left out.
pub async fn drift(
    database: &Database,
    credentials: &Credentials,
    snapshot: &Snapshot,
) -> Vec<Finding> {
    if snapshot.is_single() {
        return Vec::new();
    }
    let limit = database.pool.connect_timeout;
    let shards = database.shards.iter();
    let asking: Vec<_> = shards
        .map(|shard| async move {
            let client = connect(&shard.primary, credentials, limit).await?;
            parts(&client).await
        })
        .collect();
    let answers = at_once(asking).await;
    let answers: Vec<_> = answers.into_iter().map(Result::ok).collect();
    compare(snapshot, &answers)
}

async fn parts(client: &Client) -> Result<Parts, AskError> {
    // Definitions are told with the schemas of what they name.
    client.batch_execute("SET search_path = pg_catalog").await?;
    let mut parts = Parts::new();
    for row in client.query(TABLES, &[]).await? {
        let (schema, name) = (row.try_get(0)?, row.try_get(1)?);
        parts.insert(TableName { schema, name }, BTreeMap::new());
    }
    for (part, sql) in [
        (Part::Index, INDEXES),
        (Part::Constraint, CONSTRAINTS),
        (Part::NotNull, NOT_NULL),
    ] {
        for row in client.query(sql, &[]).await? {
            let (schema, name) = (row.try_get(0)?, row.try_get(1)?);
            let own = Own {
                definition: row.try_get(3)?,
                valid: row.try_get(4)?,
                make: row.try_get(5)?,
                drop: row.try_get(6)?,
                validate: row.try_get(7)?,
                origin: if row.try_get(8)? {
                    Origin::PrimaryKey
                } else {
                    Origin::Itself
                },
                binds: row.try_get(9)?,
            };
            let table = parts.entry(TableName { schema, name }).or_default();
            table.insert((part, row.try_get(2)?), own);
        }
    }
    Ok(parts)
}

/// What differs, table by table.
fn compare(snapshot: &Snapshot, shards: &[Option<Parts>]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tables: BTreeMap<_, _> = snapshot.tables.iter().collect();
    for (table, known) in tables {
        if matches!(known.placement, Placement::Single(_)) {
            continue;
        }
        let own: Vec<_> = snapshot
            .shards
            .iter()
            .zip(shards)
            .filter_map(|(shard, parts)| Some((shard.as_str(), parts.as_ref()?.get(table)?)))
            .collect();
        let mut names: Vec<_> = own.iter().flat_map(|(_, parts)| parts.keys()).collect();
        names.sort();
        names.dedup();
        for name in names {
            let each: Vec<_> = own
                .iter()
                .map(|(shard, parts)| (*shard, parts.get(name)))
                .collect();
            judge_part(table, name, &each, &mut findings);
        }
    }
    findings.sort_by(|left, right| left.shard().cmp(&right.shard()));
    findings
}

/// One index or constraint on each shard that has the table.
fn judge_part(
    table: &TableName,
    (part, name): &(Part, String),
    each: &[(&str, Option<&Own>)],
    findings: &mut Vec<Finding>,
) {
    let Some((other, there)) = usual(each) else {
        return;
    };
    for (shard, here) in each {
        let (what, sql) = match here {
            // What is missing is the primary key.
            None if there.origin == Origin::PrimaryKey => continue,
            None => (Drifted::Missing, there.make.clone()),
            Some(here) if here.definition != there.definition => {
                let what = Drifted::Differs {
                    here: here.definition.clone(),
                    there: there.definition.clone(),
                };
                (what, format!("{}; {}", here.drop, there.make))
            }
            Some(here) if !here.valid => (Drifted::Invalid, here.validate.clone()),
            Some(_) => continue,
        };
        findings.push(Finding::PartDrifted {
            shard: (*shard).to_owned(),
            other: other.to_owned(),
            table: table.clone(),
            part: *part,
            name: name.clone(),
            binds: there.binds,
            what,
            sql: format!("{sql};"),
        });
    }
}

/// What most shards have, and the first of them; of several such what is valid.
fn usual<'a>(each: &[(&'a str, Option<&'a Own>)]) -> Option<(&'a str, &'a Own)> {
    let there = each
        .iter()
        .filter_map(|(shard, own)| Some((*shard, (*own)?)));
    let count = |own: &Own| {
        let alike = |other: &&Own| other.definition == own.definition;
        each.iter()
            .filter_map(|(_, own)| *own)
            .filter(alike)
            .count()
    };
    there
        .enumerate()
        .max_by_key(|(at, (_, own))| (count(own), own.valid, Reverse(*at)))
        .map(|(_, found)| found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(definition: &str, valid: bool) -> Own {
        Own {
            definition: definition.to_owned(),
            valid,
            make: format!("make {definition}"),
            drop: "drop".to_owned(),
            validate: "validate".to_owned(),
            ..Own::default()
        }
    }

    fn judged(each: &[Option<&Own>]) -> Vec<String> {
        let table = TableName {
            schema: "public".to_owned(),
            name: "t".to_owned(),
        };
        let named: Vec<_> = ["s0", "s1", "s2"]
            .into_iter()
            .zip(each.iter().copied())
            .collect();
        let mut findings = Vec::new();
        judge_part(
            &table,
            &(Part::Index, "i".to_owned()),
            &named,
            &mut findings,
        );
        let told = |found: Finding| format!("{} {}", found.shard().unwrap(), found.sql().unwrap());
        findings.into_iter().map(told).collect()
    }

    #[test]
    fn the_odd_one_is_made_like_the_others() {
        let (a, b) = (own("a", true), own("b", true));
        assert_eq!(
            judged(&[Some(&a), Some(&a), Some(&a)]),
            Vec::<String>::new()
        );
        assert_eq!(
            judged(&[Some(&b), Some(&a), Some(&a)]),
            ["s0 drop; make a;"]
        );
        assert_eq!(
            judged(&[Some(&a), Some(&b), None]),
            ["s1 drop; make a;", "s2 make a;"]
        );
        assert_eq!(
            judged(&[None, None, Some(&b)]),
            ["s0 make b;", "s1 make b;"]
        );
    }

    #[test]
    fn what_is_not_valid_is_made_so() {
        let (good, bad) = (own("a", true), own("a", false));
        assert_eq!(
            judged(&[Some(&bad), Some(&good), Some(&good)]),
            ["s0 validate;"]
        );
        assert_eq!(judged(&[Some(&bad), Some(&bad), None]).len(), 3);
    }
}
