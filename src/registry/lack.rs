//! What stands in the way of transactions over several shards, and the SQL by which an administrator removes it. Looks
//! only.

use super::{
    Control, Lease, SchemaFault, errand, map,
    schema::{self, Fault},
};
use crate::{
    catalog::ownership::{Content, Declared, Disagreement, What as Differs},
    config::settings::Database,
    inspect::{AskError, Severity, at_once},
};
use std::fmt;

/// One thing that is missing on a shard, or for all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    pub shard: Option<String>,
    /// Shardway's own role there; empty: none is configured.
    control: String,
    what: What,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum What {
    NoControl,
    /// The control role cannot use the schema, or make it.
    Schema(SchemaFault),
    NoPrepared {
        max_connections: i32,
    },
    /// The control role may not act as a role that backends are opened as.
    Membership {
        role: String,
        grant: Grant,
    },
    /// The same, and nobody should let it: it would be as mighty as that role.
    Superuser {
        role: String,
    },
    /// The map that all proxies share says that keys are elsewhere.
    Map(Disagreement),
    /// The map names a shard that the configuration does not have.
    Lacking(String),
    /// Nothing: the schema is made when the proxy starts.
    ToBeMade,
}

/// How membership is granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Grant {
    /// Up to PostgreSQL 15: whole.
    Whole,
    /// To act as the role, without having its rights otherwise.
    SetOnly,
}

const SETTINGS: &str = "\
SELECT current_setting('max_connections')::int4, current_setting('server_version_num')::int4 >= 160000";
/// Of `$1` those as which the asker may not act; `$2` is what SET ROLE needs.
const ROLES: &str = "\
SELECT rolname::text, rolsuper FROM pg_roles \
WHERE rolname = ANY ($1) AND NOT pg_has_role(current_user, oid, $2) ORDER BY 1";

/// Whether the map is there, and of nobody else: another role's would have us read what it likes.
const HAS_MAP: &str = "\
SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
WHERE n.nspname = 'shardway' AND c.relname = 'map' AND pg_has_role(current_user, c.relowner, 'MEMBER') \
  AND pg_has_role(current_user, n.nspowner, 'MEMBER'))";

/// What is missing on the shards of a database, `roles` being those that backends are opened as. Shards that cannot be
/// asked are passed over: who asks for anything else there is told so.
pub async fn lacks(database: &Database, roles: &[String]) -> Vec<Lack> {
    if database.shards.len() < 2 {
        return Vec::new();
    }
    let Some(control) = &database.control else {
        return vec![Lack {
            shard: None,
            control: String::new(),
            what: What::NoControl,
        }];
    };
    let asking = database.shards.iter().map(|shard| async {
        let to = Control::new(&shard.primary, control, database.pool.connect_timeout);
        let mut found = on_shard(&shard.name, &to, roles).await.unwrap_or_default();
        if database.snapshot.shard_named(&shard.name) == Some(database.snapshot.home) {
            found.extend(on_home(database, &to).await.unwrap_or_default());
        }
        let lack = |what| Lack {
            shard: Some(shard.name.clone()),
            control: control.user.clone(),
            what,
        };
        found.into_iter().map(lack).collect::<Vec<_>>()
    });
    let found = at_once(asking.collect()).await;
    found.into_iter().flatten().collect()
}

async fn on_shard(shard: &str, to: &Control, roles: &[String]) -> Result<Vec<What>, AskError> {
    let lease = to.lease().await?;
    errand(async {
        let settings = lease.query_one(SETTINGS, &[]).await?;
        let grant = if settings.try_get(1)? {
            Grant::SetOnly
        } else {
            Grant::Whole
        };
        let mut found = Vec::new();
        match of_schema(shard, &lease).await {
            Ok(what) => found.extend(what),
            Err(Fault::Schema(fault)) => found.push(What::Schema(fault)),
            Err(Fault::Ask(error)) => return Err(error),
            Err(Fault::NoPrepared) => found.push(What::NoPrepared {
                max_connections: settings.try_get(0)?,
            }),
        }
        let needed = match grant {
            Grant::Whole => "MEMBER",
            Grant::SetOnly => "SET",
        };
        for row in lease.query(ROLES, &[&roles, &needed]).await? {
            let role = row.try_get(0)?;
            found.push(if row.try_get(1)? {
                What::Superuser { role }
            } else {
                What::Membership { role, grant }
            });
        }
        Ok(found)
    })
    .await
}

async fn on_home(database: &Database, to: &Control) -> Result<Vec<What>, AskError> {
    let here = Declared::of(&database.snapshot);
    let Some((_, kept)) = kept_map(to).await? else {
        return Ok(Vec::new());
    };
    let kept = kept.and(&here);
    let disagreements = kept.disagreements(&here).into_iter().map(What::Map);
    let lacking = kept.lacking(&here).into_iter().map(What::Lacking);
    Ok(disagreements.chain(lacking).collect())
}

/// The map that all proxies share, where the schema is there and ours.
async fn kept_map(to: &Control) -> Result<Option<(i64, Content)>, AskError> {
    let lease = to.lease().await?;
    errand(async {
        let there = lease.query_one(HAS_MAP, &[]).await?;
        if there.try_get(0)? {
            map::read(&lease).await
        } else {
            Ok(None)
        }
    })
    .await
}

/// The SQL that makes the map of all proxies say what the configuration says, for the home shard; `None`: it does, or
/// there is none yet.
///
/// # Errors
/// [`AskError`].
pub async fn accept_map(database: &Database) -> Result<Option<String>, AskError> {
    let home = &database.shards[database.snapshot.home.index()];
    let Some(control) = database
        .control
        .as_ref()
        .filter(|_| database.shards.len() > 1)
    else {
        return Ok(None);
    };
    let to = Control::new(&home.primary, control, database.pool.connect_timeout);
    let here = Declared::of(&database.snapshot);
    let kept = kept_map(&to).await?;
    let kept = kept.map(|(epoch, kept)| (epoch, kept.and(&here)));
    let accepted = kept.map(|(epoch, kept)| (epoch, kept.clone().replaced_by(&here), kept));
    let differs = accepted.filter(|(_, accepted, kept)| accepted != kept);
    Ok(differs.map(|(epoch, accepted, _)| map::accept(epoch, &accepted)))
}

async fn of_schema(shard: &str, lease: &Lease) -> Result<Option<What>, Fault> {
    let facts = schema::facts(lease).await?;
    let version = schema::version(lease, &facts).await?;
    if facts.max_prepared == 0 {
        return Err(Fault::NoPrepared);
    }
    if version.is_none_or(|(version, _)| version < schema::FORM) {
        return Ok(Some(What::ToBeMade));
    }
    let identity = schema::identity(lease).await?;
    let other = identity.filter(|identity| identity.shard != shard);
    Ok(other.map(|identity| {
        What::Schema(SchemaFault::Identity {
            shard: identity.shard,
            installation: identity.installation,
        })
    }))
}

impl Lack {
    /// How much it matters: statements for one shard never need any of this.
    #[must_use]
    pub fn severity(&self) -> Severity {
        match self.what {
            What::NoControl | What::ToBeMade => Severity::Note,
            What::Map(_) | What::Lacking(_) => Severity::Error,
            What::Schema(_)
            | What::NoPrepared { .. }
            | What::Membership { .. }
            | What::Superuser { .. } => Severity::Warning,
        }
    }

    /// What an administrator says to the shard's server, in its database, if there is anything to be said.
    #[must_use]
    pub fn sql(&self) -> Option<String> {
        let control = identifier(&self.control);
        match &self.what {
            What::Schema(SchemaFault::NotAllowed { .. }) => {
                Some(format!("CREATE SCHEMA shardway AUTHORIZATION {control};"))
            }
            What::NoPrepared { max_connections } => Some(format!(
                "ALTER SYSTEM SET max_prepared_transactions = {max_connections}; -- and restart the server"
            )),
            What::Membership { role, grant } => {
                let how = match grant {
                    Grant::Whole => "",
                    Grant::SetOnly => " WITH INHERIT FALSE, SET TRUE",
                };
                Some(format!("GRANT {} TO {control}{how};", identifier(role)))
            }
            What::Map(_)
            | What::Lacking(_)
            | What::NoControl
            | What::Schema(_)
            | What::Superuser { .. }
            | What::ToBeMade => None,
        }
    }
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let control = &self.control;
        match &self.what {
            What::NoControl => f.write_str(
                "`control` gives no role: transactions that write on several shards are refused",
            ),
            What::Schema(fault) => write!(
                f,
                "schema \"shardway\" cannot be used: {fault}; transactions that write here and elsewhere are refused"
            ),
            What::NoPrepared { .. } => f.write_str(
                "max_prepared_transactions is 0: transactions that write here and elsewhere are refused",
            ),
            What::Membership { role, .. } => write!(
                f,
                "role {control} may not act as role {role}: what its transactions over several shards leave in doubt \
                 is finished by nobody"
            ),
            What::Superuser { role } => write!(
                f,
                "role {role} is a superuser and role {control} is not: what its transactions over several shards \
                 leave in doubt is finished by nobody"
            ),
            What::Map(Disagreement { group, what }) => {
                match what {
                    Differs::Method => write!(
                        f,
                        "the map of all proxies gives group {group} another method, hash or key type"
                    )?,
                    Differs::Owner { of, kept, here } => write!(
                        f,
                        "the map of all proxies gives {of} of group {group} to {kept}, the configuration to {here}"
                    )?,
                    Differs::Outside { shard } => write!(
                        f,
                        "the configuration gives keys of group {group} that nobody had to shard {shard}, which does not serve yet"
                    )?,
                }
                f.write_str(
                    ": a proxy with this configuration does not serve the group; if no row has to move, --accept-map prints the SQL that makes the configuration's the map of all",
                )
            }
            What::Lacking(shard) => write!(
                f,
                "the map of all proxies names shard {shard}, which the configuration does not have: a proxy with this configuration serves nothing that is on several shards"
            ),
            What::ToBeMade => f.write_str("schema \"shardway\" will be made when the proxy starts"),
        }
    }
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}
