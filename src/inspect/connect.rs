//! One connection to one server for the control plane, with a limit on how long it may take.

use super::tls::Connector;
use crate::{
    auth::scram::ChannelBinding,
    clock::Duration,
    config::settings::{Address, Credentials, Host, TlsMode, TlsStart},
};
use deadpool_postgres::{
    Client, Connect, Manager, ManagerConfig, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType,
};
use std::{future::poll_fn, pin::Pin, sync::Arc};
use tokio::{sync::Notify, task::JoinHandle};
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
    /// It has something that this version does not understand.
    #[error("{0}")]
    Unreadable(String),
    #[error("another server answers: its system identifier is {is}, and was {was}")]
    Another { was: String, is: String },
    #[error("it has failed over, or was restored: its timeline is {is}, and was {was}")]
    FailedOver { was: u32, is: u32 },
    /// Nobody is to ask it.
    #[error("it does not serve yet")]
    Apart,
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
    let client = pool(address, credentials, "", Limits { limit, most: 1 })?
        .get()
        .await;
    Ok(client?)
}

/// How long a connection may take to open, and how many there may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub limit: Duration,
    pub most: usize,
}

/// Connections of the control plane to one server, opened when they are needed; `options` are settings in the form of
/// the server's command line, which no setting of a role or database goes before.
///
/// # Errors
/// [`AskError::Tls`], [`AskError::Connection`]: it cannot be set up.
pub fn pool(
    address: &Address,
    credentials: &Credentials,
    options: &str,
    limits: Limits,
) -> Result<Pool, AskError> {
    let config = config(address, credentials, options, limits);
    let manager = Manager::new(config, Connector::new(address).map_err(AskError::Tls)?);
    of(manager, limits)
}

/// The same, of connections on which notifications are heard: each rings the bells.
///
/// # Errors
/// As [`pool`].
pub fn hearing(
    address: &Address,
    credentials: &Credentials,
    options: &str,
    limits: Limits,
    bells: Vec<Arc<Notify>>,
) -> Result<Pool, AskError> {
    let config = config(address, credentials, options, limits);
    let tls = Connector::new(address).map_err(AskError::Tls)?;
    let recycling_method = RecyclingMethod::default();
    let manager = Manager::from_connect(
        config,
        Hearing { tls, bells },
        ManagerConfig { recycling_method },
    );
    of(manager, limits)
}

/// Connects, and rings bells at every notification.
struct Hearing {
    tls: Connector,
    bells: Vec<Arc<Notify>>,
}

type Connecting<'a> = Pin<
    Box<
        dyn Future<Output = Result<(tokio_postgres::Client, JoinHandle<()>), tokio_postgres::Error>>
            + Send
            + 'a,
    >,
>;

impl Connect for Hearing {
    fn connect(&self, config: &tokio_postgres::Config) -> Connecting<'_> {
        let (config, tls, bells) = (config.clone(), self.tls.clone(), self.bells.clone());
        Box::pin(async move {
            let (client, mut connection) = config.connect(tls).await?;
            #[expect(
                clippy::disallowed_methods,
                reason = "it drives one connection, and ends with its client"
            )]
            let driving = tokio::spawn(async move {
                while let Some(Ok(message)) = poll_fn(|cx| connection.poll_message(cx)).await {
                    if matches!(message, tokio_postgres::AsyncMessage::Notification(_)) {
                        bells.iter().for_each(|bell| bell.notify_one());
                    }
                }
            });
            Ok((client, driving))
        })
    }
}

fn config(
    address: &Address,
    credentials: &Credentials,
    options: &str,
    Limits { limit, .. }: Limits,
) -> tokio_postgres::Config {
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
        .options(format!("-c search_path=pg_catalog {options}").trim())
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
    config
}

fn of(manager: Manager, Limits { limit, most }: Limits) -> Result<Pool, AskError> {
    let pool = Pool::builder(manager)
        .max_size(most)
        .runtime(Runtime::Tokio1)
        .wait_timeout(Some(limit))
        .create_timeout(Some(limit))
        .build();
    pool.map_err(|error| AskError::Connection(error.to_string()))
}

impl From<PoolError> for AskError {
    fn from(error: PoolError) -> Self {
        match error {
            PoolError::Backend(error) => Self::from(error),
            PoolError::Timeout(TimeoutType::Wait | TimeoutType::Create | TimeoutType::Recycle) => {
                Self::Timeout
            }
            PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_) => {
                Self::Connection(error.to_string())
            }
        }
    }
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
