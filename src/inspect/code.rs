//! The code that a database holds: its functions, and what runs when its relations are read or written.

use super::connect::{AskError, connect};
use crate::{
    catalog::code::{Code, Piece, PieceKind},
    clock::Duration,
    config::settings::{Address, Credentials},
};
use tokio_postgres::Client;

const FUNCTIONS: &str = "\
SELECT pg_catalog.lower(p.proname::text), l.lanname IN ('sql', 'plpgsql', 'internal', 'c'), \
       CASE WHEN l.lanname = 'c' THEN p.proname::text \
            ELSE pg_catalog.concat(p.prosrc, ' ; ', pg_catalog.pg_get_function_sqlbody(p.oid)) END \
       || pg_catalog.concat_ws(' ; ', '', g.aggtransfn, g.aggfinalfn, g.aggcombinefn, g.aggserialfn, g.aggdeserialfn, \
                               g.aggmtransfn, g.aggminvtransfn, g.aggmfinalfn) \
FROM pg_catalog.pg_proc p \
LEFT JOIN pg_catalog.pg_aggregate g ON g.aggfnoid = p.oid \
JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')";

/// Whether an expression outside of functions calls what leaves something or asks for a number, by the function's oid in
/// the stored tree: dependencies on PostgreSQL's own functions are not recorded.
const EXPRESSIONS: &str = "\
WITH calls AS (SELECT ':funcid (' || pg_catalog.string_agg(p.oid::text, '|') || ') ' AS pattern FROM pg_catalog.pg_proc p \
  WHERE p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace \
    AND (p.proname IN ('currval', 'lastval', 'set_config', 'setseed') OR p.proname ~ '^pg_(try_)?advisory_lock')), \
held AS (SELECT adbin::text AS tree FROM pg_catalog.pg_attrdef \
  UNION ALL SELECT conbin::text FROM pg_catalog.pg_constraint WHERE conbin IS NOT NULL \
  UNION ALL SELECT pg_catalog.concat(indexprs, indpred) FROM pg_catalog.pg_index WHERE indexprs IS NOT NULL OR indpred IS NOT NULL \
  UNION ALL SELECT typdefaultbin::text FROM pg_catalog.pg_type WHERE typdefaultbin IS NOT NULL \
  UNION ALL SELECT tgqual::text FROM pg_catalog.pg_trigger WHERE tgqual IS NOT NULL \
  UNION ALL SELECT pg_catalog.concat(polqual, polwithcheck) FROM pg_catalog.pg_policy \
  UNION ALL SELECT pg_catalog.concat(r.ev_qual, r.ev_action) FROM pg_catalog.pg_rewrite r \
    JOIN pg_catalog.pg_class c ON c.oid = r.ev_class JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
    WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')) \
SELECT EXISTS (SELECT FROM held, calls WHERE held.tree ~ calls.pattern)";

/// Asked only where some function or expression may leave something or ask for a number: definitions are dear to write
/// out. Domains count as relations; what has columns of them names them.
const RELATIONS: &str = "\
SELECT pg_catalog.lower(c.relname::text), pg_catalog.concat_ws(' ; ', \
  CASE WHEN c.relkind IN ('v', 'm') THEN pg_catalog.pg_get_viewdef(c.oid) END, \
  (SELECT pg_catalog.string_agg(pg_catalog.pg_get_triggerdef(t.oid), ' ; ') FROM pg_catalog.pg_trigger t \
   WHERE t.tgrelid = c.oid AND NOT t.tgisinternal), \
  (SELECT pg_catalog.string_agg(pg_catalog.pg_get_ruledef(r.oid), ' ; ') FROM pg_catalog.pg_rewrite r \
   WHERE r.ev_class = c.oid AND r.rulename <> '_RETURN'), \
  (SELECT pg_catalog.string_agg(pg_catalog.pg_get_expr(d.adbin, d.adrelid), ' ; ') FROM pg_catalog.pg_attrdef d \
   WHERE d.adrelid = c.oid), \
  (SELECT pg_catalog.string_agg(pg_catalog.pg_get_constraintdef(k.oid), ' ; ') FROM pg_catalog.pg_constraint k \
   WHERE k.conrelid = c.oid AND k.contype = 'c'), \
  (SELECT pg_catalog.string_agg(o.relname::text, ' ; ') FROM pg_catalog.pg_constraint k \
   JOIN pg_catalog.pg_class o ON o.oid = k.conrelid \
   WHERE k.confrelid = c.oid AND k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd'))), \
  (SELECT pg_catalog.string_agg(o.relname::text, ' ; ') FROM pg_catalog.pg_inherits i \
   JOIN pg_catalog.pg_class o ON o.oid = i.inhrelid WHERE i.inhparent = c.oid), \
  (SELECT pg_catalog.string_agg(pg_catalog.concat_ws(' ; ', pg_catalog.pg_get_expr(y.polqual, y.polrelid), \
                                                     pg_catalog.pg_get_expr(y.polwithcheck, y.polrelid)), ' ; ') \
   FROM pg_catalog.pg_policy y WHERE y.polrelid = c.oid), \
  (SELECT pg_catalog.string_agg(pg_catalog.pg_get_indexdef(i.indexrelid), ' ; ') FROM pg_catalog.pg_index i \
   WHERE i.indrelid = c.oid AND (i.indexprs IS NOT NULL OR i.indpred IS NOT NULL)), \
  (SELECT pg_catalog.string_agg(DISTINCT coalesce(e.typname, t.typname)::text, ' ; ') FROM pg_catalog.pg_attribute a \
   JOIN pg_catalog.pg_type t ON t.oid = a.atttypid LEFT JOIN pg_catalog.pg_type e ON e.typarray = t.oid \
   WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND coalesce(e.typtype, t.typtype) IN ('d', 'c'))) \
FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm', 'c') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
  AND n.nspname !~ '^pg_(toast|temp)' \
UNION ALL \
SELECT pg_catalog.lower(t.typname::text), pg_catalog.concat_ws(' ; ', t.typdefault, b.typname, \
  (SELECT pg_catalog.string_agg(pg_catalog.pg_get_constraintdef(k.oid), ' ; ') FROM pg_catalog.pg_constraint k \
   WHERE k.contypid = t.oid)) \
FROM pg_catalog.pg_type t \
JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace \
LEFT JOIN pg_catalog.pg_type b ON b.oid = t.typbasetype AND b.typtype = 'd' \
WHERE t.typtype = 'd' AND n.nspname NOT IN ('pg_catalog', 'information_schema')";

/// Asks a server what the code of its database may leave in a session.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub async fn code(
    address: &Address,
    credentials: &Credentials,
    limit: Duration,
) -> Result<Code, AskError> {
    let client = connect(address, credentials, limit).await?;
    let mut pieces = functions(&client).await?;
    let found = Code::learned(&pieces);
    let harmless = matches!(&found, Code::Known { asking, .. } if asking.is_empty());
    if harmless && !client.query_one(EXPRESSIONS, &[]).await?.try_get(0)? {
        return Ok(found);
    }
    pieces.extend(relations(&client).await?);
    Ok(Code::learned(&pieces))
}

/// All of it.
pub(super) async fn pieces(client: &Client) -> Result<Vec<Piece>, AskError> {
    let mut pieces = functions(client).await?;
    pieces.extend(relations(client).await?);
    Ok(pieces)
}

async fn relations(client: &Client) -> Result<Vec<Piece>, AskError> {
    let mut pieces = Vec::new();
    for row in client.query(RELATIONS, &[]).await? {
        pieces.push(Piece {
            kind: PieceKind::Relation,
            name: row.try_get(0)?,
            text: row.try_get(1)?,
        });
    }
    Ok(pieces)
}

async fn functions(client: &Client) -> Result<Vec<Piece>, AskError> {
    let mut pieces = Vec::new();
    for row in client.query(FUNCTIONS, &[]).await? {
        pieces.push(Piece {
            name: row.try_get(0)?,
            kind: if row.try_get(1)? {
                PieceKind::Function
            } else {
                PieceKind::ForeignFunction
            },
            text: row.try_get(2)?,
        });
    }
    Ok(pieces)
}
