//! The publication of a reshard on a source: which tables' changes its slot streams.
//!
//! What must stay true: it is there before the slot is made, and unchanged as long as the slot is: the stream looks it up
//! as it was when a change was made.

use tokio_postgres::Client;

/// What there was when it was to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Publication {
    /// None: a slot of before streams nothing of use.
    Made,
    /// The same.
    Found,
    /// One of that name with these tables instead, or which does not publish what it must.
    Another { tables: Vec<String> },
}

/// Makes a publication of tables, whose names are SQL, partitions under the name of their root.
///
/// # Errors
/// What the server said.
pub async fn make(
    source: &Client,
    name: &str,
    tables: &[String],
) -> Result<Publication, tokio_postgres::Error> {
    if let Some(found) = find(source, name, tables).await? {
        return Ok(found);
    }
    let sql = format!(
        "CREATE PUBLICATION {} FOR TABLE {} WITH (publish_via_partition_root = true)",
        identifier(name),
        tables.join(", ")
    );
    source.batch_execute(&sql).await?;
    Ok(Publication::Made)
}

/// Drops a publication, if it is there.
///
/// # Errors
/// What the server said.
pub async fn remove(source: &Client, name: &str) -> Result<(), tokio_postgres::Error> {
    let sql = format!("DROP PUBLICATION IF EXISTS {}", identifier(name));
    source.batch_execute(&sql).await
}

/// The publication of that name, if there is one: [`Publication::Found`] or [`Publication::Another`].
///
/// # Errors
/// What the server said.
pub async fn find(
    source: &Client,
    name: &str,
    tables: &[String],
) -> Result<Option<Publication>, tokio_postgres::Error> {
    const SQL: &str = "\
SELECT p.pubviaroot AND p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate AND NOT p.puballtables, \
       array(SELECT format('%I.%I', n.nspname, c.relname) FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid \
             JOIN pg_namespace n ON n.oid = c.relnamespace WHERE r.prpubid = p.oid), \
       (SELECT count(*) FROM pg_publication_rel r WHERE r.prpubid = p.oid), \
       (SELECT count(*) FROM pg_publication_rel r WHERE r.prpubid = p.oid AND r.prrelid = ANY ($2::text[]::regclass[])) \
FROM pg_publication p WHERE p.pubname = $1";
    let rows = source.query(SQL, &[&name, &tables]).await?;
    let Some(row) = rows.first() else {
        return Ok(None);
    };
    let count = i64::try_from(tables.len()).unwrap_or(i64::MAX);
    let (all, ours): (i64, i64) = (row.try_get(2)?, row.try_get(3)?);
    if row.try_get(0)? && all == count && ours == count {
        return Ok(Some(Publication::Found));
    }
    let tables = row.try_get(1)?;
    Ok(Some(Publication::Another { tables }))
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
