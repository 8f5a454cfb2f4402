//! One connection to one server for the control plane, with a limit on how long it may take.

use super::tls::Connector;
use crate::{
    auth::scram::ChannelBinding,
    clock::Duration,
    config::settings::{Address, Credentials, Host, TlsMode, TlsStart},
};
use deadpool_postgres::{Client, Manager, Pool, PoolError, Runtime, TimeoutType};
use tokio_postgres::config::{ChannelBinding as Binding, SslMode, SslNegotiation};

/// Why a server could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("it did not answer in time")]
    Timeout,
    #[error("TLS cannot be set up: {0}")]
    Tls(#[source] rustls::Error),
    #[error("it said {sqlstate}: {message}")]
    Server { sqlstate: String, message: String },
    #[error("{0}")]
    Connection(String),
}

/// Connects; the connection closes when the client is dropped.
///
/// # Errors
/// See [`AskError`].
pub async fn connect(
    address: &Address,
    credentials: &Credentials,
    limit: Duration,
) -> Result<Client, AskError> {
    let mut config = tokio_postgres::Config::new();
    match &address.host {
        Host::Tcp(name) => config.host(name),
        Host::Unix(directory) => config.host_path(directory),
    };
    config
        .port(address.port)
        .dbname(&address.database)
        .user(&credentials.user)
        .application_name("shardway")
        // Else whoever owns the database could say whose operators the control role calls.
        .options("-c search_path=pg_catalog")
        .connect_timeout(limit)
        .ssl_negotiation(match address.tls_start {
            TlsStart::Request => SslNegotiation::Postgres,
            TlsStart::Direct => SslNegotiation::Direct,
        })
        .channel_binding(match address.channel_binding {
            ChannelBinding::Disable => Binding::Disable,
            ChannelBinding::Prefer => Binding::Prefer,
            ChannelBinding::Require => Binding::Require,
        })
        .ssl_mode(match address.tls {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyFull => SslMode::Require,
        });
    if let Some(password) = &credentials.password {
        config.password(&password.0);
    }
    let manager = Manager::new(config, Connector::new(address).map_err(AskError::Tls)?);
    let pool = Pool::builder(manager)
        .max_size(1)
        .runtime(Runtime::Tokio1)
        .create_timeout(Some(limit))
        .build();
    let pool = pool.map_err(|error| AskError::Connection(error.to_string()))?;
    let client = pool.get().await;
    client.map_err(|error| match error {
        PoolError::Backend(error) => AskError::from(error),
        PoolError::Timeout(TimeoutType::Wait | TimeoutType::Create | TimeoutType::Recycle) => {
            AskError::Timeout
        }
        PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
            AskError::Connection(error.to_string())
        }
    })
}

impl From<tokio_postgres::Error> for AskError {
    fn from(error: tokio_postgres::Error) -> Self {
        if let Some(said) = error.as_db_error() {
            let (sqlstate, message) = (said.code().code().to_owned(), said.message().to_owned());
            return Self::Server { sqlstate, message };
        }
        let cause = std::error::Error::source(&error)
            .map(|source| format!(": {source}"))
            .unwrap_or_default();
        Self::Connection(format!("{error}{cause}"))
    }
}
