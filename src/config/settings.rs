//! The settings as used: checked, complete, secrets read. Built from the file by `load`.

use super::rules::Rules;
use crate::{
    auth::scram::{ChannelBinding, Proof},
    catalog::snapshot::Snapshot,
    clock::Duration,
};
use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc};

/// Everything that the process is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub server: Server,
    /// By the name that clients give; `"*"` is `wildcard`.
    pub databases: BTreeMap<String, Arc<Database>>,
    /// Every database name not listed: a plain pooler; its address's database is the name that the client gave.
    pub wildcard: Option<Arc<Database>>,
    pub users: BTreeMap<String, Arc<User>>,
    /// How those enter whom only a database's `auth_query` finds.
    pub found_users: Arc<User>,
    /// Who may enter from where; `None`: every user, as its own `auth` says.
    pub rules: Option<Arc<Rules>>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    pub listen: Vec<Listen>,
    pub http: Option<SocketAddr>,
    pub tls: ServerTls,
    /// Clients that may be inside.
    pub max_clients: usize,
    /// Among the proxies behind one address, from 1 to 127.
    pub id: Option<u8>,
    /// The other proxies by their number.
    pub peers: BTreeMap<u8, Address>,
    /// Connections that may be logging in, beside `max_clients`.
    pub max_logins: usize,
    /// Failures of one user from one address before attempts are spaced; zero: never.
    pub failed_logins: usize,
    pub failed_login_delay: Duration,
    /// Startup, TLS and authentication together.
    pub login_timeout: Duration,
    /// How long a drain waits for transactions to end.
    pub shutdown_timeout: Duration,
    /// Threads that serve sessions.
    pub workers: usize,
    pub plan_cache_bytes: usize,
    /// Bytes of rows that a statement over several shards may hold, and all such statements together.
    pub gather_limit: usize,
    pub gather_limit_total: usize,
    pub log_format: LogFormat,
    /// A filter as `tracing` takes it, "info" by default.
    pub log_level: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

/// TLS towards clients.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerTls {
    pub mode: TlsMode,
    /// PEM contents of certificate chain and key, read at load.
    pub identity: Option<TlsIdentity>,
    /// `None`: clients are not asked for certificates.
    pub clients: Option<ClientCertificates>,
}

/// PEM contents of what clients' certificates are checked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificates {
    pub authority_pem: Vec<u8>,
    pub revoked_pem: Option<Vec<u8>>,
}

#[derive(Clone, PartialEq, Eq)]
pub struct TlsIdentity {
    pub cert_pem: Vec<u8>,
    pub key_pem: Vec<u8>,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity(..)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyFull,
}

/// How TLS begins on a connection to a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TlsStart {
    /// After an SSLRequest.
    Request,
    /// At once: PostgreSQL 17 and later.
    Direct,
}

/// A logical database.
#[derive(Clone, Debug, PartialEq)]
pub struct Database {
    pub name: String,
    pub snapshot: Arc<Snapshot>,
    /// Indexed by `ShardId`.
    pub shards: Vec<Shard>,
    pub pool: Pool,
    /// Shardway's own role, for the catalog, health and inspection.
    pub control: Option<Credentials>,
    pub auth_query: Option<AuthQuery>,
    /// How long the decisions of transactions over several shards are kept.
    pub two_phase_retention: Duration,
    /// How long a statement of a transaction over several shards goes without an answer before rings of waits are looked
    /// for; zero: never.
    pub deadlock_interval: Duration,
    /// How many numbers of a sequence are drawn at once.
    pub sequence_block: usize,
    /// The program that writes schemas down.
    pub pg_dump: PathBuf,
}

/// How roles are looked up on the home shard, by the control role.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthQuery {
    /// Of `$1`, a name, for the name and its stored password.
    pub sql: String,
    /// How long an answer is believed.
    pub cache: Duration,
    pub control: Credentials,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Shard {
    pub name: String,
    pub primary: Address,
    pub replicas: Vec<Address>,
}

/// A PostgreSQL server and the database on it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    pub host: Host,
    pub port: u16,
    /// Empty with the wildcard database: the name that the client gave.
    pub database: String,
    pub tls: TlsMode,
    /// PEM of the authorities for verify-full; `None`: the platform's.
    pub root_cert: Option<Arc<Vec<u8>>>,
    pub tls_start: TlsStart,
    pub channel_binding: ChannelBinding,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Host {
    /// A name or an address.
    Tcp(String),
    /// The directory of the socket `.s.PGSQL.<port>`.
    Unix(PathBuf),
}

/// How backends are pooled, per user and placement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub mode: PoolMode,
    /// Backends per user and placement.
    pub size: usize,
    /// Backends beyond that, for transactions that go on to another shard.
    pub reserve_size: usize,
    /// Replication connections to one shard open at once, beside the pools.
    pub replication_size: usize,
    /// Backends kept open once a user has come.
    pub min_size: usize,
    pub idle_timeout: Duration,
    pub lifetime: Duration,
    /// How long a client waits for a backend (53300).
    pub wait_timeout: Duration,
    pub connect_timeout: Duration,
    /// Connects to one placement under way at once.
    pub connect_limit: usize,
    /// Prepared statements kept per backend.
    pub prepared_statements: usize,
    pub listen_gap: ListenGap,
    /// Bytes of notifications that may wait for one session.
    pub listen_queue: usize,
}

/// What a session that listens is told when notifications may have been missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListenGap {
    /// Its connection ends.
    End,
    /// A warning, once the shared listener is back.
    Warn,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    Transaction,
    Session,
}

/// Who may enter, and as whom backends are opened.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub name: String,
    pub auth: ClientAuth,
    /// What the server is told; `None`: the server asks for none (trust).
    pub backend: Credentials,
    pub backend_proof: BackendProof,
    /// Logical databases; empty: every one.
    pub databases: Vec<String>,
    pub console: Option<ConsoleRole>,
    /// Overrides the database's.
    pub pool_mode: Option<PoolMode>,
    pub pool_size: Option<usize>,
}

impl User {
    /// How those enter who are looked up, where the file says nothing of them: passthrough.
    #[must_use]
    pub fn found() -> Self {
        Self {
            name: "*".to_owned(),
            auth: ClientAuth::Found,
            backend: Credentials {
                user: String::new(),
                password: None,
            },
            backend_proof: BackendProof::Shown,
            databases: Vec::new(),
            console: None,
            pool_mode: None,
            pool_size: None,
        }
    }
}

/// What opens a user's backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendProof {
    /// The configured password.
    Configured,
    /// What the client has shown (passthrough).
    Shown,
}

/// How a client proves who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    Trust,
    /// Cleartext over TLS or a trusted network.
    Password(Secret),
    Md5(Secret),
    /// The password or a stored verifier (`SCRAM-SHA-256$…`).
    Scram(Secret),
    /// Against what the database's `auth_query` finds: by SCRAM, or MD5 where that is stored.
    Found,
    /// The same, by the password itself over TLS.
    FoundPassword,
    /// A certificate whose common name is the user's.
    Cert,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Credentials {
    pub user: String,
    pub password: Option<Secret>,
}

impl Credentials {
    /// What the password proves.
    #[must_use]
    pub fn proof(&self) -> Option<Proof> {
        let password = self.password.as_ref()?;
        Some(Proof::password(&password.0))
    }
}

/// A secret that never shows itself in logs.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Secret(pub String);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleRole {
    Stats,
    Admin,
}
