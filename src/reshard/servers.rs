//! Connections of their own to the shards, for work that takes long: never the control role's few others.

use super::identity::{ASK, Known, Mismatch, read};
use crate::{
    clock::Duration,
    config::settings::{Address, Credentials, Database, Shard},
    inspect::{AskError, connect},
    net::tls::ClientTls,
    replication::{
        connection::{Connection, ReplicationError},
        copy::Session,
    },
};
use deadpool_postgres::Client;
use std::{collections::BTreeMap, sync::Arc};

/// One shard as a reshard reaches it.
#[derive(Clone)]
pub struct Server {
    pub name: String,
    pub address: Address,
    pub credentials: Credentials,
    /// For a login, and for each command of a replication connection.
    pub limit: Duration,
    pub tls: Arc<ClientTls>,
    /// Compared with at every connection.
    pub known: Known,
}

/// Nothing ends by itself; values are written as every server reads them; row security is an error, never a filter.
const SETTINGS: &str = "\
SET statement_timeout = 0; SET lock_timeout = 0; SET idle_in_transaction_session_timeout = 0; \
SET row_security = off; SET search_path = pg_catalog; SET DateStyle = ISO; SET IntervalStyle = postgres; \
SET TimeZone = 'UTC'; SET extra_float_digits = 3; SET bytea_output = hex; SET client_min_messages = warning; \
SET synchronous_commit = on";

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Every shard of a database with a control role, as that role, by name.
    #[must_use]
    pub fn all(database: &Database, tls: &Arc<ClientTls>) -> BTreeMap<String, Self> {
        let Some(credentials) = &database.control else {
            return BTreeMap::new();
        };
        let server = |shard: &Shard| Self {
            name: shard.name.clone(),
            address: shard.primary.clone(),
            credentials: credentials.clone(),
            limit: database.pool.connect_timeout,
            tls: Arc::clone(tls),
            known: Known::Nothing,
        };
        let shards = database.shards.iter();
        shards
            .map(|shard| (shard.name.clone(), server(shard)))
            .collect()
    }

    /// A connection for statements, with nothing of a session's settings left to chance.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn sql(&self) -> Result<Client, AskError> {
        let client = connect(&self.address, &self.credentials, self.limit).await?;
        if self.known == Known::Nothing {
            client.batch_execute(SETTINGS).await?;
            return Ok(client);
        }
        // In one message: connections are made while statements are held.
        let answer = client.simple_query(&format!("{SETTINGS}; {ASK}")).await?;
        if let Some((system, timeline)) = read(&answer) {
            self.known.compare(&system, timeline)?;
        }
        Ok(client)
    }

    /// A connection that rows are copied by.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn copying(&self, name: &str) -> Result<Session, ReplicationError> {
        let (address, credentials) = (&self.address, &self.credentials);
        let mut session = Session::open(address, credentials, name, self.limit, &self.tls).await?;
        if self.known != Known::Nothing {
            let row = session.ask(ASK).await?.into_iter().next();
            let mut cells = row.unwrap_or_default().into_iter();
            let (system, timeline) = (cells.next().flatten(), cells.next().flatten());
            let timeline = timeline.and_then(|hex| u32::from_str_radix(&hex, 16).ok());
            if let Some(system) = system {
                self.known.compare(&system, timeline).map_err(streaming)?;
            }
        }
        Ok(session)
    }

    /// A connection for slots and streams.
    ///
    /// # Errors
    /// [`ReplicationError`].
    pub async fn stream(&self) -> Result<Connection, ReplicationError> {
        let (address, credentials) = (&self.address, &self.credentials);
        let mut connection = Connection::open(address, credentials, self.limit, &self.tls).await?;
        if self.known != Known::Nothing {
            let is = connection.identify().await?;
            let compared = self
                .known
                .compare(&is.identifier.to_string(), Some(is.timeline));
            compared.map_err(streaming)?;
        }
        Ok(connection)
    }
}

fn streaming(mismatch: Mismatch) -> ReplicationError {
    match mismatch {
        Mismatch::System { was, is } => ReplicationError::Another { was, is },
        Mismatch::Timeline { was, is } => ReplicationError::FailedOver { was, is },
    }
}
