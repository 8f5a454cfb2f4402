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
FROM pg_catalog.pg_proc p \
JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace \
WHERE n.nspname NOT IN ('pg_catalog', 'information_schema')";

/// Asked only where some function may leave something: definitions are dear to write out.
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
   FROM pg_catalog.pg_policy y WHERE y.polrelid = c.oid)) \
FROM pg_catalog.pg_class c \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
  AND n.nspname !~ '^pg_(toast|temp)'";

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
    let harmless = matches!(&found, Code::Known { leaving, .. } if leaving.is_empty());
    if harmless {
        return Ok(found);
    }
    for row in client.query(RELATIONS, &[]).await? {
        pieces.push(Piece {
            kind: PieceKind::Relation,
            name: row.try_get(0)?,
            text: row.try_get(1)?,
        });
    }
    Ok(Code::learned(&pieces))
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
