//! The numbers of a server's own types and relations, by their names.

use super::connect::AskError;
use crate::{
    catalog::oids::{Holds, Named, Observed},
    wire::types::Oid,
};
use std::collections::HashMap;
use tokio_postgres::Client;

/// An array is called by its element: its own name may have been taken.
const TYPES: &str = "\
SELECT n.nspname::text, CASE WHEN e.oid IS NULL THEN t.typname::text ELSE e.typname::text || '[]' END, t.oid, \
       t.typtype::text, coalesce(e.oid, 0), \
       coalesce(nullif(t.typbasetype, 0), (SELECT r.rngsubtype FROM pg_catalog.pg_range r \
                                           WHERE t.oid IN (r.rngtypid, r.rngmultitypid)), 0) \
FROM pg_catalog.pg_type t \
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
LEFT JOIN pg_catalog.pg_type e ON e.oid = t.typelem AND e.typarray = t.oid \
WHERE t.oid >= 16384 AND n.nspname !~ '^pg_(toast|temp)'";

const RELATIONS: &str = "\
SELECT n.nspname::text, c.relname::text, c.oid, \
       pg_catalog.md5(pg_catalog.string_agg(a.attname::text, ',' ORDER BY a.attnum)) \
FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 \
WHERE c.oid >= 16384 AND c.relkind IN ('r', 'p', 'f', 'v', 'm') AND n.nspname !~ '^pg_(toast|temp)' \
GROUP BY n.nspname, c.relname, c.oid";

/// A type, as the catalog has it.
struct Row {
    kind: String,
    /// Of an array.
    element: Oid,
    /// Of a domain, a range or a multirange: what it is made of.
    base: Oid,
}

/// Asks for them.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub(super) async fn oids(client: &Client) -> Result<Observed, AskError> {
    let mut names: Vec<(Named, Oid)> = Vec::new();
    let mut rows = HashMap::new();
    for row in client.query(TYPES, &[]).await? {
        let oid = row.try_get(2)?;
        names.push(((row.try_get(0)?, row.try_get(1)?), oid));
        let kind = Row {
            kind: row.try_get(3)?,
            element: row.try_get(4)?,
            base: row.try_get(5)?,
        };
        rows.insert(oid, kind);
    }
    let mut observed = Observed::default();
    for (name, oid) in names {
        let holds = holds(oid, &rows, DEEPEST);
        observed.types.insert(name, (oid, holds));
    }
    for row in client.query(RELATIONS, &[]).await? {
        let name = (row.try_get(0)?, row.try_get(1)?);
        let numbered = (row.try_get(2)?, row.try_get(3)?);
        observed.relations.insert(name, numbered);
    }
    Ok(observed)
}

/// Types made of types: what is deeper holds something.
const DEEPEST: u32 = 20;

fn holds(oid: Oid, rows: &HashMap<Oid, Row>, depth: u32) -> Holds {
    let Some(row) = rows.get(&oid) else {
        // PostgreSQL's own.
        return Holds::Nothing;
    };
    if depth == 0 {
        return Holds::Within;
    }
    let within = |oid: Oid| holds(oid, rows, depth - 1);
    match row.kind.as_str() {
        "b" | "e" if row.element == 0 => Holds::Nothing,
        "b" if within(row.element) == Holds::Nothing => Holds::Element,
        "d" => within(row.base),
        "r" | "m" if within(row.base) == Holds::Nothing => Holds::Nothing,
        _ => Holds::Within,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_hold_their_elements_number_and_rows_hold_many() {
        let row = |kind: &str, element, base| Row {
            kind: kind.to_owned(),
            element,
            base,
        };
        let rows = HashMap::from([
            (20_000, row("e", 0, 0)),
            (20_001, row("b", 20_000, 0)),
            (20_002, row("d", 0, 20_001)),
            (20_003, row("c", 0, 0)),
            (20_004, row("b", 20_003, 0)),
            (20_005, row("r", 0, 20_000)),
            (20_006, row("r", 0, 20_003)),
            (20_007, row("d", 0, 23)),
            (20_008, row("b", 20_002, 0)),
        ]);
        let found: Vec<_> = (20_000..=20_008)
            .map(|oid| holds(oid, &rows, DEEPEST))
            .collect();
        use Holds::{Element, Nothing, Within};
        assert_eq!(
            found,
            [
                Nothing, Element, Element, Within, Within, Nothing, Within, Nothing, Within
            ]
        );
    }
}
