//! The columns of every table and view, as a server's system catalogs have them.

use super::connect::AskError;
use crate::{catalog::snapshot::TableName, wire::types::Oid};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Client;

/// A column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    pub type_oid: Oid,
    /// With its modifier, as `format_type` writes it: `numeric(10,2)`.
    pub type_name: String,
    /// `-1`: none.
    pub type_modifier: i32,
    /// Whether values that are equal by its collation have equal bytes; true for types without one.
    pub deterministic: bool,
    /// Its own, qualified, when it is not its type's.
    pub collation: Option<String>,
}

impl Column {
    /// Its type and collation as SQL names them.
    pub(super) fn source(&self) -> String {
        match &self.collation {
            Some(collation) => format!("{} COLLATE {collation}", self.type_name),
            None => self.type_name.clone(),
        }
    }
}

/// Tables and views by name, their columns in order.
pub type Tables = BTreeMap<TableName, Vec<Column>>;

const COLUMNS: &str = "\
SELECT n.nspname::text, c.relname::text, a.attname::text, a.atttypid, \
       pg_catalog.format_type(a.atttypid, a.atttypmod), a.atttypmod, coalesce(l.collisdeterministic, true), \
       CASE WHEN a.attcollation <> t.typcollation THEN pg_catalog.quote_ident(ln.nspname) || '.' || pg_catalog.quote_ident(l.collname) END \
FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped \
JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
LEFT JOIN pg_catalog.pg_collation l ON l.oid = a.attcollation \
LEFT JOIN pg_catalog.pg_namespace ln ON ln.oid = l.collnamespace \
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') \
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
  AND n.nspname !~ '^pg_(toast|temp)' \
ORDER BY c.oid, a.attnum";

const DERIVED: &str = "\
SELECT n.nspname::text, c.relname::text, c.relkind IN ('v', 'm') \
FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('v', 'm') OR c.relispartition \
   OR EXISTS (SELECT FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid AND c.relkind IN ('r', 'f'))";

/// Relations that have no columns that are told: sequences, and tables without any.
const BARE: &str = "\
SELECT n.nspname::text, c.relname::text \
FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE (c.relkind = 'S' OR c.relkind IN ('r', 'p', 'f', 'v', 'm') AND NOT EXISTS ( \
         SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped)) \
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
  AND n.nspname !~ '^pg_(toast|temp)'";

/// Asks which relations are there of which [`columns`] tells nothing.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub(super) async fn bare(client: &Client) -> Result<BTreeSet<TableName>, AskError> {
    let mut found = BTreeSet::new();
    for row in client.query(BARE, &[]).await? {
        let (schema, name) = (row.try_get(0)?, row.try_get(1)?);
        found.insert(TableName { schema, name });
    }
    Ok(found)
}

/// How a relation comes to rows of other tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Derived {
    /// Shows what it computes of them, materialised or not.
    View,
    /// A partition or an inheritance child: holds some of them.
    Child,
}

/// Asks which relations are views, partitions or inheritance children.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub(super) async fn derived(client: &Client) -> Result<BTreeMap<TableName, Derived>, AskError> {
    let mut found = BTreeMap::new();
    for row in client.query(DERIVED, &[]).await? {
        let (schema, name) = (row.try_get(0)?, row.try_get(1)?);
        let how = if row.try_get(2)? {
            Derived::View
        } else {
            Derived::Child
        };
        found.insert(TableName { schema, name }, how);
    }
    Ok(found)
}

/// Asks for the columns of all tables and views outside of the system's own schemas.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub async fn columns(client: &Client) -> Result<Tables, AskError> {
    let mut tables = Tables::new();
    for row in client.query(COLUMNS, &[]).await? {
        let table = TableName {
            schema: row.try_get(0)?,
            name: row.try_get(1)?,
        };
        tables.entry(table).or_default().push(Column {
            name: row.try_get(2)?,
            type_oid: row.try_get(3)?,
            type_name: row.try_get(4)?,
            type_modifier: row.try_get(5)?,
            deterministic: row.try_get(6)?,
            collation: row.try_get(7)?,
        });
    }
    Ok(tables)
}
