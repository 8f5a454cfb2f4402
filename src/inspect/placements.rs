//! Where tables live that only their CREATE TABLE says, as a server's schema `shardway` keeps it.

use super::connect::AskError;
use crate::catalog::snapshot::TableName;
use std::collections::BTreeMap;
use tokio_postgres::Client;

/// Where the table lives to which it belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kept {
    Sharded { group: String, key_column: String },
    Reference,
    Single,
}

const READABLE: &str = "\
SELECT coalesce((SELECT pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_schema_privilege(n.oid, 'USAGE') \
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE n.nspname = 'shardway' AND c.relname = 'placement'), false)";
const PLACEMENTS: &str = "\
SELECT n.nspname::text, c.relname::text, p.\"group\", p.key_column, p.kind \
FROM shardway.placement p JOIN pg_catalog.pg_class c ON c.oid = p.relation \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace";

/// Asks for what is kept; nothing where there is no such schema, or it is not for the asker.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub(super) async fn placements(client: &Client) -> Result<BTreeMap<TableName, Kept>, AskError> {
    let mut found = BTreeMap::new();
    if !client
        .query_one(READABLE, &[])
        .await?
        .try_get::<_, bool>(0)?
    {
        return Ok(found);
    }
    for row in client.query(PLACEMENTS, &[]).await? {
        let (schema, name) = (row.try_get(0)?, row.try_get(1)?);
        let kept = match (row.try_get(2)?, row.try_get(3)?) {
            (Some(group), Some(key_column)) => Kept::Sharded { group, key_column },
            _ if row.try_get::<_, String>(4)? == "single" => Kept::Single,
            _ => Kept::Reference,
        };
        found.insert(TableName { schema, name }, kept);
    }
    Ok(found)
}
