//! What the proxies of one logical database share on its servers: Shardway's own schema, and who else there is.
//!
//! ```text
//!   home shard   shardway.version, shardway.identity, shardway.decision, shardway.proxy
//!   other shards the same tables; `proxy` is empty
//! ```
//! What must stay true: nothing here stands in the way of a statement for one shard; a schema that is not ours, or
//! belongs to another shard than the configuration says, is not used; a database of one shard opens no connection here.

mod control;

pub use control::{Control, Lease, errand};

use crate::{
    catalog::shard::ShardId,
    config::settings::{Credentials, Database},
};
use arc_swap::ArcSwap;
use std::sync::Arc;

/// Why there are no transactions over several shards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("the configuration gives the database no control role")]
    NoControl,
    #[error("shard {shard} has no schema \"shardway\" that this version can use: {fault}")]
    NoSchema { shard: String, fault: SchemaFault },
    #[error("max_prepared_transactions is 0 on shard {shard}")]
    NoPrepared { shard: String },
    #[error("shard {shard} has not been reached by the control role: {error}")]
    Unreachable { shard: String, error: String },
}

/// What is wrong with a shard's schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaFault {
    #[error("role {role} may not create it")]
    NotAllowed { role: String },
    #[error("it belongs to role {owner}")]
    Owner { owner: String },
    #[error("it has form {version}, for versions of Shardway that understand form {oldest}")]
    TooNew { version: i32, oldest: i32 },
    #[error("it says that it is shard {shard} of installation {installation:016x}")]
    Identity { shard: String, installation: u64 },
}

/// What is shared on the servers of one logical database.
#[derive(Debug)]
pub struct Registry {
    database: String,
    home: ShardId,
    role: String,
    names: Arc<[String]>,
    controls: Vec<Control>,
    known: ArcSwap<Known>,
}

/// What the servers said when they were last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    installation: Option<u64>,
    /// By shard: whether it can take part in a transaction over several.
    shards: Vec<Result<(), NotReady>>,
}

impl Registry {
    /// Of a database with several shards and a control role; opens nothing yet.
    #[must_use]
    pub fn new(database: &Database) -> Option<Self> {
        let control = database.control.as_ref()?;
        (database.shards.len() > 1).then(|| Self::of(database, control))
    }

    fn of(database: &Database, credentials: &Credentials) -> Self {
        let limit = database.pool.connect_timeout;
        let unasked = |name: &str| NotReady::Unreachable {
            shard: name.to_owned(),
            error: "it was not asked yet".to_owned(),
        };
        let shards = database.shards.iter();
        Self {
            database: database.name.clone(),
            home: database.snapshot.home,
            role: credentials.user.clone(),
            known: ArcSwap::from_pointee(Known {
                installation: None,
                shards: shards
                    .clone()
                    .map(|shard| Err(unasked(&shard.name)))
                    .collect(),
            }),
            names: shards.clone().map(|shard| shard.name.clone()).collect(),
            controls: shards
                .map(|shard| Control::new(&shard.primary, credentials, limit))
                .collect(),
        }
    }

    /// The logical database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The installation's number, if these shards can take part in a transaction together.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn ready(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<u64, NotReady> {
        let known = self.known.load();
        for shard in shards {
            known.shards[shard.index()].clone()?;
        }
        known.installation.ok_or_else(|| NotReady::Unreachable {
            shard: self.name(self.home).to_owned(),
            error: "it was not asked yet".to_owned(),
        })
    }

    /// A shard's name.
    #[must_use]
    pub fn name(&self, shard: ShardId) -> &str {
        &self.names[shard.index()]
    }

    /// The names of all shards, in their order.
    #[must_use]
    pub fn names(&self) -> Arc<[String]> {
        Arc::clone(&self.names)
    }

    /// The control role's way to a shard.
    #[must_use]
    pub fn control(&self, shard: ShardId) -> &Control {
        &self.controls[shard.index()]
    }
}
