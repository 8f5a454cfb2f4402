//! How what is tested or measured of resharding reaches databases of servers that were started for it.

use shardway::{
    auth::scram::ChannelBinding,
    catalog::ownership::Ownership,
    clock::Duration,
    config::{
        load::load_str,
        settings::{Address, Credentials, Host, TlsMode, TlsStart},
    },
    net::tls::ClientTls,
    reshard::{identity::Known, servers::Server},
    sandbox::{Cluster, SandboxEnv},
};
use std::{path::Path, sync::Arc};

/// Shardway's own schema.
pub(crate) const OWN_SCHEMA: &str = concat!(
    "CREATE SCHEMA shardway;",
    include_str!("../../src/registry/schema/1.sql"),
    include_str!("../../src/registry/schema/2.sql"),
    include_str!("../../src/registry/schema/3.sql"),
    include_str!("../../src/registry/schema/4.sql")
);

/// Where servers are looked for and started. One data directory is made for all runs.
pub(crate) fn environment() -> SandboxEnv {
    SandboxEnv {
        template_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates")),
        ..SandboxEnv::of(std::env::var_os, std::env::temp_dir())
    }
}

/// A database of a server.
pub(crate) fn address(cluster: &Cluster, database: &str) -> Address {
    Address {
        host: Host::Tcp("127.0.0.1".to_owned()),
        port: cluster.port(),
        database: database.to_owned(),
        tls: TlsMode::Disable,
        root_cert: None,
        tls_start: TlsStart::Request,
        channel_binding: ChannelBinding::Prefer,
    }
}

/// Who is asked for nothing there.
pub(crate) fn superuser() -> Credentials {
    Credentials {
        user: "postgres".to_owned(),
        password: None,
    }
}

/// A shard, as steps of a reshard reach it.
pub(crate) fn server(
    name: &str,
    address: Address,
    limit: Duration,
    tls: &Arc<ClientTls>,
) -> Server {
    Server {
        name: name.to_owned(),
        address,
        credentials: superuser(),
        limit,
        tls: Arc::clone(tls),
        known: Known::Nothing,
    }
}

/// Who owns what by this configuration of the database `app`.
pub(crate) fn owners(configuration: &str) -> Ownership {
    let settings = load_str("test", configuration, Path::new("."));
    let settings = settings.unwrap_or_else(|errors| panic!("{}", errors.render()));
    Ownership::of(&settings.databases["app"].snapshot)
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("threads and sockets are to be had");
    runtime.block_on(future)
}
