//! What the tables of a server set off by themselves: triggers, rules, policies, unique constraints, defaults, foreign
//! keys with actions. What a partition or an inheritance child has counts for its ancestors too.

use super::{code::pieces, connect::AskError};
use crate::{
    catalog::{
        code::Piece,
        computed::UuidVersion,
        effects::{Fired, Once, Varying},
        snapshot::TableName,
    },
    plan::spread::{asks_for_time, is_each_rows},
};
use tokio_postgres::{Client, Row};

/// What one server's tables set off.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Objects {
    pub triggers: Vec<Trigger>,
    /// Rules by table and name.
    pub rules: Vec<(TableName, String)>,
    /// Policies that look at other tables or call functions that are not PostgreSQL's own.
    pub policies: Vec<(TableName, String)>,
    pub uniques: Vec<Unique>,
    pub defaults: Vec<DefaultValue>,
    /// Defaults that another server would compute to something else.
    pub varying: Vec<(TableName, Varying)>,
    pub actions: Vec<Action>,
    /// Columns that the server computes of others.
    pub generated: Vec<(TableName, String)>,
    /// Identity columns that take no value of a client's.
    pub always: Vec<(TableName, String)>,
    /// All code of the database, where triggers, rules or policies run it.
    pub code: Vec<Piece>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trigger {
    pub table: TableName,
    pub name: String,
    pub fired: Fired,
    pub function: String,
    pub language: String,
    pub source: String,
    pub arguments: Vec<String>,
}

/// A unique index or an exclusion constraint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unique {
    pub table: TableName,
    pub name: String,
    /// Those compared for equality; an empty name: an expression, or another comparison.
    pub columns: Vec<String>,
    /// A partition's part of its parent's.
    pub attached: bool,
}

impl Unique {
    /// Whether the key is none of its columns.
    pub(super) fn lacks(&self, key: &str) -> bool {
        !self.columns.iter().any(|column| column == key)
    }
}

/// A default that may give one value twice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultValue {
    pub table: TableName,
    pub column: String,
    pub made: Made,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Made {
    /// By a random UUID; the kind that Shardway can make, if any.
    Random(Option<UuidVersion>),
    /// By `shardway.next_id()`.
    Id,
    /// By a sequence.
    Counted(Counter),
    /// By a function that is not PostgreSQL's own.
    Computed,
}

/// The numbers that a sequence gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    pub sequence: TableName,
    pub owner: String,
    pub how: Counted,
    pub step: i64,
    pub start: i64,
    /// The last number given, when there was one and the role may know.
    pub last: Option<i64>,
    pub min: i64,
    pub max: i64,
    pub cycles: bool,
}

/// How a column takes its numbers from the sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// As they come.
    Plainly,
    Identity,
    /// Something is computed of them.
    Within,
}

/// A foreign key that changes the referencing rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    pub name: String,
    pub parent: TableName,
    pub child: TableName,
    /// Pairs of the child's column and the parent's.
    pub columns: Vec<(String, String)>,
    /// `c`ascade, set `n`ull, set `d`efault, or nothing.
    pub on_delete: char,
    pub on_update: char,
}

/// Every table with itself and its ancestors.
const ANCESTORS: &str = "\
WITH RECURSIVE up(oid, root) AS (\
  SELECT c.oid, c.oid FROM pg_catalog.pg_class c WHERE c.relkind IN ('r', 'p', 'f') \
  UNION SELECT up.oid, i.inhparent FROM up JOIN pg_catalog.pg_inherits i ON i.inhrelid = up.root), \
named AS (SELECT up.oid, n.nspname::text AS schema, c.relname::text AS name FROM up \
  JOIN pg_catalog.pg_class c ON c.oid = up.root JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
  WHERE n.nspname NOT IN ('pg_catalog', 'information_schema', 'shardway') AND n.nspname !~ '^pg_(toast|temp)') ";

const TRIGGERS: &str = "\
SELECT DISTINCT named.schema, named.name, t.tgname::text, t.tgtype::int, fn.nspname || '.' || p.proname, l.lanname::text, \
       p.prosrc, pg_catalog.encode(t.tgargs, 'escape') \
FROM pg_catalog.pg_trigger t JOIN named ON named.oid = t.tgrelid \
JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid JOIN pg_catalog.pg_namespace fn ON fn.oid = p.pronamespace \
JOIN pg_catalog.pg_language l ON l.oid = p.prolang \
WHERE NOT t.tgisinternal AND t.tgenabled IN ('O', 'A') AND fn.nspname <> 'shardway' ORDER BY 1, 2, 3";

const RULES: &str = "\
SELECT DISTINCT named.schema, named.name, r.rulename::text FROM pg_catalog.pg_rewrite r \
JOIN named ON named.oid = r.ev_class WHERE r.ev_type <> '1' AND r.ev_enabled IN ('O', 'A') ORDER BY 1, 2, 3";

const POLICIES: &str = "\
SELECT DISTINCT named.schema, named.name, p.polname::text FROM pg_catalog.pg_policy p \
JOIN named ON named.oid = p.polrelid JOIN pg_catalog.pg_class c ON c.oid = p.polrelid \
WHERE c.relrowsecurity AND EXISTS (SELECT FROM pg_catalog.pg_depend d \
  WHERE d.classid = 'pg_catalog.pg_policy'::pg_catalog.regclass AND d.objid = p.oid \
    AND (d.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass \
      OR d.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.refobjid <> p.polrelid)) \
ORDER BY 1, 2, 3";

const UNIQUES: &str = "\
SELECT named.schema, named.name, ic.relname::text, \
  (SELECT pg_catalog.array_agg(CASE WHEN o.oprname IS NULL OR o.oprname = '=' THEN coalesce(a.attname::text, '') ELSE '' END ORDER BY k.at) \
   FROM pg_catalog.unnest(i.indkey::int2[]) WITH ORDINALITY k(attnum, at) \
   LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum AND k.attnum > 0 \
   LEFT JOIN pg_catalog.pg_operator o ON o.oid = x.conexclop[k.at] \
   WHERE k.at <= i.indnkeyatts), ic.relispartition \
FROM pg_catalog.pg_index i JOIN named ON named.oid = i.indrelid \
JOIN pg_catalog.pg_class ic ON ic.oid = i.indexrelid \
LEFT JOIN pg_catalog.pg_constraint x ON x.conindid = i.indexrelid AND x.contype = 'x' \
WHERE (i.indisunique OR i.indisexclusion) ORDER BY 1, 2, 3";

const DEFAULTS: &str = "\
SELECT DISTINCT named.schema, named.name, a.attname::text, \
  coalesce(pg_catalog.pg_get_expr(d.adbin, d.adrelid), ''), a.attgenerated <> '', \
  sn.nspname::text, q.seqincrement, q.seqstart, q.seqmin, q.seqmax, q.seqcycle, \
  CASE WHEN s.oid IS NOT NULL AND pg_catalog.has_sequence_privilege(s.oid, 'SELECT,USAGE') \
       THEN pg_catalog.pg_sequence_last_value(s.oid) END, \
  sc.relname::text, pg_catalog.pg_get_userbyid(sc.relowner)::text, a.attidentity::text \
FROM pg_catalog.pg_attribute a JOIN named ON named.oid = a.attrelid \
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
LEFT JOIN LATERAL (\
  SELECT p.refobjid AS oid FROM pg_catalog.pg_depend p JOIN pg_catalog.pg_class c ON c.oid = p.refobjid AND c.relkind = 'S' \
  WHERE p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass AND p.objid = d.oid \
    AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass \
  UNION SELECT p.objid FROM pg_catalog.pg_depend p JOIN pg_catalog.pg_class c ON c.oid = p.objid AND c.relkind = 'S' \
  WHERE a.attidentity <> '' AND p.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND p.deptype = 'i' \
    AND p.refclassid = 'pg_catalog.pg_class'::pg_catalog.regclass AND p.refobjid = a.attrelid AND p.refobjsubid = a.attnum \
) s ON true \
LEFT JOIN pg_catalog.pg_sequence q ON q.seqrelid = s.oid \
LEFT JOIN pg_catalog.pg_class sc ON sc.oid = s.oid LEFT JOIN pg_catalog.pg_namespace sn ON sn.oid = sc.relnamespace \
WHERE a.attnum > 0 AND NOT a.attisdropped AND (s.oid IS NOT NULL OR a.attgenerated <> '' \
  OR pg_catalog.pg_get_expr(d.adbin, d.adrelid) ~ '^(\\w+\\.)?(gen_random_uuid|uuidv4|uuidv7)\\(\\)$|nextval\\(' \
  OR EXISTS (SELECT FROM pg_catalog.pg_depend p WHERE p.classid = 'pg_catalog.pg_attrdef'::pg_catalog.regclass \
      AND p.objid = d.oid AND p.refclassid = 'pg_catalog.pg_proc'::pg_catalog.regclass)) \
ORDER BY 1, 2, 3";

/// Of each table its own: those of its partitions are not those of rows that are inserted by its name.
const VARYING: &str = "\
SELECT n.nspname::text, c.relname::text, a.attname::text, a.attidentity::text, \
  CASE WHEN a.attidentity = '' THEN pg_catalog.pg_get_expr(d.adbin, d.adrelid) \
    ELSE pg_catalog.format('pg_catalog.nextval(%L)', pg_catalog.pg_get_serial_sequence(pg_catalog.format('%I.%I', n.nspname, c.relname), a.attname)) END \
FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
LEFT JOIN pg_catalog.pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum \
WHERE c.relkind IN ('r', 'p', 'f') AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
  AND (d.oid IS NOT NULL OR a.attidentity <> '') \
  AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'shardway') AND n.nspname !~ '^pg_(toast|temp)' \
ORDER BY 1, 2, 3";

const ACTIONS: &str = "\
SELECT DISTINCT k.conname::text, parent.schema, parent.name, child.schema, child.name, \
  k.confdeltype::text, k.confupdtype::text, \
  (SELECT pg_catalog.array_agg(a.attname::text ORDER BY n.at) FROM pg_catalog.unnest(k.conkey) WITH ORDINALITY n(attnum, at) \
   JOIN pg_catalog.pg_attribute a ON a.attrelid = k.conrelid AND a.attnum = n.attnum), \
  (SELECT pg_catalog.array_agg(a.attname::text ORDER BY n.at) FROM pg_catalog.unnest(k.confkey) WITH ORDINALITY n(attnum, at) \
   JOIN pg_catalog.pg_attribute a ON a.attrelid = k.confrelid AND a.attnum = n.attnum) \
FROM pg_catalog.pg_constraint k JOIN named parent ON parent.oid = k.confrelid JOIN named child ON child.oid = k.conrelid \
WHERE k.contype = 'f' AND (k.confdeltype IN ('c', 'n', 'd') OR k.confupdtype IN ('c', 'n', 'd')) ORDER BY 1, 2, 3, 4, 5";

/// Defaults that give no value twice wherever they are computed.
const RANDOM: [(&str, Option<UuidVersion>); 6] = [
    ("gen_random_uuid()", Some(UuidVersion::Random)),
    ("uuidv4()", Some(UuidVersion::Random)),
    ("uuidv7()", Some(UuidVersion::Ordered)),
    ("uuid_generate_v1()", None),
    ("uuid_generate_v1mc()", None),
    ("uuid_generate_v4()", Some(UuidVersion::Random)),
];

/// Asks for everything that tables outside of the system's own schemas set off.
///
/// # Errors
/// What the server said, or why it could not be asked.
pub(super) async fn objects(client: &Client) -> Result<Objects, AskError> {
    let mut found = Objects::default();
    for row in ask(client, TRIGGERS).await? {
        found.triggers.push(trigger(&row)?);
    }
    for row in ask(client, RULES).await? {
        found.rules.push((table(&row, 0)?, row.try_get(2)?));
    }
    for row in ask(client, POLICIES).await? {
        found.policies.push((table(&row, 0)?, row.try_get(2)?));
    }
    for row in ask(client, UNIQUES).await? {
        found.uniques.push(Unique {
            table: table(&row, 0)?,
            name: row.try_get(2)?,
            columns: row.try_get(3)?,
            attached: row.try_get(4)?,
        });
    }
    for row in ask(client, DEFAULTS).await? {
        let (table, column) = (table(&row, 0)?, row.try_get(2)?);
        if row.try_get(4)? {
            found.generated.push((table, column));
        } else {
            let identity: String = row.try_get(14)?;
            if identity == "a" {
                found.always.push((table.clone(), column.clone()));
            }
            let made = made(&row)?;
            found.defaults.push(DefaultValue {
                table,
                column,
                made,
            });
        }
    }
    for row in client.query(VARYING, &[]).await? {
        if let Some(varying) = varying(&row)? {
            found.varying.push((table(&row, 0)?, varying));
        }
    }
    for row in ask(client, ACTIONS).await? {
        found.actions.push(action(&row)?);
    }
    if !(found.triggers.is_empty() && found.rules.is_empty() && found.policies.is_empty()) {
        found.code = pieces(client).await?;
    }
    Ok(found)
}

async fn ask(client: &Client, what: &str) -> Result<Vec<Row>, AskError> {
    Ok(client.query(&format!("{ANCESTORS}{what}"), &[]).await?)
}

fn table(row: &Row, at: usize) -> Result<TableName, AskError> {
    Ok(TableName {
        schema: row.try_get(at)?,
        name: row.try_get(at + 1)?,
    })
}

fn trigger(row: &Row) -> Result<Trigger, AskError> {
    let bits: i32 = row.try_get(3)?;
    let arguments: String = row.try_get(7)?;
    Ok(Trigger {
        table: table(row, 0)?,
        name: row.try_get(2)?,
        // As `pg_trigger.h` numbers the events.
        fired: Fired {
            select: false,
            insert: bits & 4 != 0,
            delete: bits & 8 != 0,
            update: bits & 16 != 0,
        },
        function: row.try_get(4)?,
        language: row.try_get(5)?,
        source: row.try_get(6)?,
        // Each ends with a zero byte, which `escape` writes as `\000`.
        arguments: arguments
            .split_terminator("\\000")
            .map(str::to_owned)
            .collect(),
    })
}

fn made(row: &Row) -> Result<Made, AskError> {
    let expression: String = row.try_get(3)?;
    let schema: Option<String> = row.try_get(5)?;
    let Some(schema) = schema else {
        let plain = expression.rsplit('.').next().unwrap_or_default();
        return Ok(match RANDOM.iter().find(|(known, _)| *known == plain) {
            Some((_, version)) => Made::Random(*version),
            None if expression == "shardway.next_id()" => Made::Id,
            None => Made::Computed,
        });
    };
    let identity: String = row.try_get(14)?;
    Ok(Made::Counted(Counter {
        sequence: TableName {
            schema,
            name: row.try_get(12)?,
        },
        owner: row.try_get(13)?,
        how: match identity.as_str() {
            "" if draws_plainly(&expression) => Counted::Plainly,
            "" => Counted::Within,
            _ => Counted::Identity,
        },
        step: row.try_get(6)?,
        start: row.try_get(7)?,
        min: row.try_get(8)?,
        max: row.try_get(9)?,
        cycles: row.try_get(10)?,
        last: row.try_get(11)?,
    }))
}

/// Whether a default is a sequence's next number and nothing else.
fn draws_plainly(expression: &str) -> bool {
    let name = expression.strip_prefix("nextval('");
    let name = name.and_then(|rest| rest.strip_suffix("'::regclass)"));
    name.is_some_and(|name| !name.replace("''", "").contains('\''))
}

/// `None`: it is the same everywhere, or not known.
fn varying(row: &Row) -> Result<Option<Varying>, AskError> {
    let (identity, expression): (String, Option<String>) = (row.try_get(3)?, row.try_get(4)?);
    let Some(expression) = expression else {
        return Ok(None);
    };
    let once = if identity == "a" {
        Once::RowAlways
    } else if identity == "d" || is_each_rows(&expression) {
        Once::Row
    } else if asks_for_time(&expression) {
        Once::Transaction
    } else {
        return Ok(None);
    };
    Ok(Some(Varying {
        column: row.try_get(2)?,
        expression,
        once,
    }))
}

fn action(row: &Row) -> Result<Action, AskError> {
    let letter = |text: &str| {
        let first = text.chars().next();
        first
            .filter(|letter| matches!(letter, 'c' | 'n' | 'd'))
            .unwrap_or(' ')
    };
    let (child, parent): (Vec<String>, Vec<String>) = (row.try_get(7)?, row.try_get(8)?);
    Ok(Action {
        name: row.try_get(0)?,
        parent: table(row, 1)?,
        child: table(row, 3)?,
        on_delete: letter(row.try_get(5)?),
        on_update: letter(row.try_get(6)?),
        columns: child.into_iter().zip(parent).collect(),
    })
}
