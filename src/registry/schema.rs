//! The schema `shardway` on one server: what is in it, how it is made and made newer, and whether it can be used.
//!
//! What must stay true: what belongs to another role is not touched, because its triggers would run as ours; steps are
//! made one after another, each once, however many proxies start at a time; a step never takes away what an older proxy
//! of the form that it names as oldest needs.

use super::{Lease, NotReady, SchemaFault};
use crate::inspect::AskError;

/// The form of the schema that this version makes and needs.
pub(super) const FORM: i32 = 4;

/// What leads from one form to the next.
struct Step {
    form: i32,
    /// The oldest form whose proxies can work with this one.
    oldest: i32,
    sql: &'static str,
}

const STEPS: &[Step] = &[
    Step {
        form: 1,
        oldest: 1,
        sql: include_str!("schema/1.sql"),
    },
    // Proxies of form 1 neither hear of schema changes nor keep away from numbers that others give out.
    Step {
        form: 2,
        oldest: 2,
        sql: include_str!("schema/2.sql"),
    },
    // Proxies of form 2 hold nothing when a reshard asks for it.
    Step {
        form: 3,
        oldest: 3,
        sql: include_str!("schema/3.sql"),
    },
    Step {
        form: 4,
        oldest: 3,
        sql: include_str!("schema/4.sql"),
    },
];

/// Held by whoever makes the schema newer: `shardway` in hexadecimal ASCII.
const LOCK: &str = "SELECT pg_advisory_xact_lock(x'7368617264776179'::bigint)";

const FACTS: &str = "\
SELECT pg_is_in_recovery(), current_setting('max_prepared_transactions')::int4, current_user::text, \
       n.oid IS NOT NULL, has_database_privilege(current_database(), 'CREATE'), \
       EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = n.oid AND c.relname = 'version'), \
       (SELECT pg_get_userbyid(o.owner)::text \
        FROM (SELECT n.nspowner UNION ALL SELECT c.relowner FROM pg_class c WHERE c.relnamespace = n.oid \
              UNION ALL SELECT p.proowner FROM pg_proc p WHERE p.pronamespace = n.oid) o (owner) \
        WHERE pg_get_userbyid(o.owner) <> current_user LIMIT 1) \
FROM (VALUES (1)) one LEFT JOIN pg_namespace n ON n.nspname = 'shardway'";

const VERSION: &str = "SELECT version, oldest FROM shardway.version ORDER BY version DESC LIMIT 1";
const IDENTITY: &str = "SELECT installation, shard FROM shardway.identity";
const IDENTIFY: &str =
    "INSERT INTO shardway.identity (installation, shard) VALUES ($1, $2) ON CONFLICT DO NOTHING";

/// What was kept of tables that are there no more.
const FORGET: &str = "\
DELETE FROM shardway.placement p WHERE NOT EXISTS (SELECT FROM pg_class c WHERE c.oid = p.relation)";

/// What a server says of itself, before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Facts {
    standby: bool,
    pub(super) max_prepared: i32,
    pub(super) role: String,
    schema: Found,
    /// Another role than ours that owns it or something in it.
    other_owner: Option<String>,
}

/// Whether there is a schema of that name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// And we may not make it.
    Forbidden,
    Absent,
    Empty,
    /// It has at least its table of versions.
    Made,
}

/// Whose schema it is, as it says itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) installation: u64,
    pub(super) shard: String,
}

/// Why a schema is not used.
#[derive(Debug)]
pub(super) enum Fault {
    Ask(AskError),
    Schema(SchemaFault),
    NoPrepared,
}

impl From<AskError> for Fault {
    fn from(error: AskError) -> Self {
        Self::Ask(error)
    }
}

impl From<tokio_postgres::Error> for Fault {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Ask(error.into())
    }
}

impl Fault {
    pub(super) fn of(self, shard: &str) -> NotReady {
        let shard = shard.to_owned();
        match self {
            Self::Ask(error) => NotReady::Unreachable {
                shard,
                error: error.to_string(),
            },
            Self::Schema(fault) => NotReady::NoSchema { shard, fault },
            Self::NoPrepared => NotReady::NoPrepared { shard },
        }
    }
}

/// A schema that can be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prepared {
    /// Whose it is; `None`: nobody's yet.
    pub(super) identity: Option<Identity>,
    /// Whether the server can prepare transactions.
    pub(super) may_prepare: bool,
}

/// Makes the schema if it is not there, makes it newer if it is old, and says whose it is.
pub(super) async fn prepare(lease: &Lease, by: u64) -> Result<Prepared, Fault> {
    let facts = facts(lease).await?;
    let version = version(lease, &facts).await?;
    if version.is_none_or(|(version, _)| version < FORM) {
        migrate(lease, by).await?;
    }
    lease.execute(FORGET, &[]).await?;
    Ok(Prepared {
        identity: identity(lease).await?,
        may_prepare: facts.max_prepared > 0,
    })
}

pub(super) async fn facts(lease: &Lease) -> Result<Facts, Fault> {
    let row = lease.query_one(FACTS, &[]).await?;
    Ok(Facts {
        standby: row.try_get(0)?,
        max_prepared: row.try_get(1)?,
        role: row.try_get(2)?,
        schema: match (row.try_get(3)?, row.try_get(4)?, row.try_get(5)?) {
            (true, _, true) => Found::Made,
            (true, _, false) => Found::Empty,
            (false, true, _) => Found::Absent,
            (false, false, _) => Found::Forbidden,
        },
        other_owner: row.try_get(6)?,
    })
}

/// The schema's form and the oldest that gets on with it; `None`: there is none yet, and we may make it.
pub(super) async fn version(lease: &Lease, facts: &Facts) -> Result<Option<(i32, i32)>, Fault> {
    if facts.standby {
        let error = "it is a standby".to_owned();
        return Err(Fault::Ask(AskError::Connection(error)));
    }
    if let Some(owner) = &facts.other_owner {
        let owner = owner.clone();
        return Err(Fault::Schema(SchemaFault::Owner { owner }));
    }
    match facts.schema {
        Found::Made => {}
        Found::Absent | Found::Empty => return Ok(None),
        Found::Forbidden => {
            let role = facts.role.clone();
            return Err(Fault::Schema(SchemaFault::NotAllowed { role }));
        }
    }
    let Some(row) = lease.query_opt(VERSION, &[]).await? else {
        return Ok(None);
    };
    let (version, oldest) = (row.try_get(0)?, row.try_get(1)?);
    if oldest > FORM {
        return Err(Fault::Schema(SchemaFault::TooNew { version, oldest }));
    }
    Ok(Some((version, oldest)))
}

pub(super) async fn identity(lease: &Lease) -> Result<Option<Identity>, Fault> {
    let Some(row) = lease.query_opt(IDENTITY, &[]).await? else {
        return Ok(None);
    };
    let installation: String = row.try_get(0)?;
    let installation = u64::from_str_radix(&installation, 16).map_err(|_not_hexadecimal| {
        Fault::Ask(AskError::Connection(format!(
            "shardway.identity says installation {installation}"
        )))
    })?;
    let shard = row.try_get(1)?;
    Ok(Some(Identity {
        installation,
        shard,
    }))
}

/// Says whose schema it is, unless it has been said; what it says then.
pub(super) async fn identify(lease: &Lease, wanted: &Identity) -> Result<Identity, Fault> {
    let installation = format!("{:016x}", wanted.installation);
    lease
        .execute(IDENTIFY, &[&installation, &wanted.shard])
        .await?;
    Ok(identity(lease).await?.unwrap_or_else(|| wanted.clone()))
}

/// Whoever comes second finds the steps made. A lease that fails here is closed, and with it its transaction.
async fn migrate(lease: &Lease, by: u64) -> Result<(), Fault> {
    lease.batch_execute("BEGIN").await?;
    lease.batch_execute(LOCK).await?;
    let facts = facts(lease).await?;
    let version = version(lease, &facts)
        .await?
        .map_or(0, |(version, _)| version);
    if facts.schema == Found::Absent {
        lease.batch_execute("CREATE SCHEMA shardway").await?;
    }
    for step in STEPS.iter().filter(|step| step.form > version) {
        lease.batch_execute(step.sql).await?;
        let by = format!("{by:016x}");
        let done = "INSERT INTO shardway.version (version, oldest, made_by) VALUES ($1, $2, $3)";
        lease
            .execute(done, &[&step.form, &step.oldest, &by])
            .await?;
    }
    lease.batch_execute("COMMIT").await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The form of the first version that anybody may run.
    const FIRST: i32 = 3;

    #[test]
    fn versions_that_follow_one_on_the_other_work_together() {
        for (step, form) in STEPS.iter().zip(1..) {
            assert_eq!(step.form, form, "steps are made one after another");
            assert!(step.oldest <= form);
            // Whoever makes the schema newer must not end what the version before does meanwhile.
            assert!(form <= FIRST || step.oldest < form, "form {form}");
        }
        assert_eq!(STEPS.last().map(|step| step.form), Some(FORM));
    }
}
