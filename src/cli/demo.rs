//! `shardway demo`: throw-away PostgreSQL shards, a shop in them, and the proxy, until Ctrl-C.
//!
//! What must stay true: nothing is left behind, whatever ends it; nothing outside loopback is listened on.

mod growing;

use super::{Exit, output::Output};
use crate::{
    config::{
        load::{load, load_str},
        settings::Settings,
    },
    sandbox::{
        Cluster, Sandbox, SandboxEnv, SandboxError,
        shop::{self, ShopError},
    },
    server::{self, Reload},
};
use std::{
    env, fs, io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::Arc,
};

#[derive(Debug, clap::Args)]
pub(super) struct DemoArgs {
    /// How many PostgreSQL servers share the data.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=12))]
    shards: u16,
    /// The port that clients connect to; the next one serves metrics over HTTP.
    #[arg(long, default_value_t = 6432, value_parser = clap::value_parser!(u16).range(1..=65534))]
    port: u16,
    /// Where the servers' directory is made, and removed at the end; the system's directory for temporary files.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Why there is no demo.
#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error("cannot listen on {address}: {source}; choose another with --port")]
    Port {
        address: SocketAddr,
        source: io::Error,
    },
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
    #[error(transparent)]
    Shop(#[from] ShopError),
    #[error("the demo's configuration: {0}")]
    Configuration(String),
    #[error("cannot write {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("cannot start a runtime: {0}")]
    Runtime(io::Error),
    #[error(transparent)]
    Serve(#[from] server::ServeError),
}

pub(super) fn run(args: &DemoArgs, output: &Output) -> Exit {
    match demonstrate(args, output) {
        Ok(()) => Exit::Done,
        Err(error) => output.fault(&error.to_string(), Exit::Failed),
    }
}

fn demonstrate(args: &DemoArgs, output: &Output) -> Result<(), DemoError> {
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    let http = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port + 1));
    // Asked before the servers are started: a taken port is told at once.
    for address in [listen, http] {
        TcpListener::bind(address).map_err(|source| DemoError::Port { address, source })?;
    }
    let serving = usize::from(args.shards);
    // One more, empty, for a reshard; one shard alone is no map that could change.
    let servers = if serving > 1 { serving + 1 } else { 1 };
    output.progress(&format!("starting {servers} PostgreSQL servers"));
    let sandbox = Sandbox::builder(environment(args))
        .clusters(servers)
        .start()?;
    let configuration = sandbox.root().join("shardway.toml");
    let text = written(serving, sandbox.clusters(), listen, http);
    write(&configuration, &text)?;
    let settings = load_str(&configuration.display().to_string(), &text, sandbox.root())
        .map_err(|errors| DemoError::Configuration(errors.render()))?;
    output.progress("filling the shop");
    fill(serving, sandbox.clusters(), &settings)?;
    let path = configuration.clone();
    let reload: Reload = Arc::new(move || load(&path).map_err(|errors| errors.render()));
    let mut invitation = invitation(args, &sandbox.clusters()[..serving], &configuration);
    if let Some(spare) = sandbox.clusters().get(serving) {
        let growing = growing::Growing {
            serving,
            port: args.port,
            root: sandbox.root(),
            configuration: &configuration,
            spare,
        };
        growing.write_load()?;
        invitation.push_str(&growing.invitation());
    }
    invitation.push_str("\nCtrl-C stops everything and removes it.\n");
    // Ctrl-C and SIGTERM end the serving; then the sandbox is dropped, which stops the servers and removes everything.
    // A kill of this process is seen by the servers' shepherds, which do the same.
    server::start(settings, reload, server::sessions, |_bound| {
        let _exit = output.raw(invitation.as_bytes());
    })?;
    output.progress("stopping the servers");
    drop(sandbox);
    Ok(())
}

/// The configuration: the shop's, with what the demo needs.
fn written(serving: usize, servers: &[Cluster], listen: SocketAddr, http: SocketAddr) -> String {
    let text = shop::configuration_of(servers, serving, listen, Some(http));
    // Who tries things does not want them between lines of the log.
    let quiet = "[server]\nlog = { level = \"warn\" }\n";
    let text = text.replacen("[server]\n", quiet, 1);
    let dump = servers.first().and_then(|server| server.program("pg_dump"));
    let Some(dump) = dump else {
        return text;
    };
    let database = format!("[databases.{}]\n", shop::DATABASE);
    let with_dump = format!("{database}pg_dump = {:?}\n", dump.display().to_string());
    text.replacen(&database, &with_dump, 1)
}

fn write(path: &Path, text: &str) -> Result<(), DemoError> {
    fs::write(path, text).map_err(|source| DemoError::Write {
        path: path.to_owned(),
        source,
    })
}

/// The program as it can be called from anywhere: it need not be on the search path.
fn program() -> String {
    let called = env::args().next().unwrap_or_else(|| "shardway".to_owned());
    if !called.contains('/') {
        return called;
    }
    env::current_exe().map_or(called, |path| path.display().to_string())
}

/// A word of a command as a shell takes it for one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+=:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

fn environment(args: &DemoArgs) -> SandboxEnv {
    let tmp = args.dir.clone().unwrap_or_else(env::temp_dir);
    SandboxEnv::of(env::var_os, tmp)
}

fn fill(serving: usize, servers: &[Cluster], settings: &Settings) -> Result<(), DemoError> {
    let runtime = super::runtime().map_err(DemoError::Runtime)?;
    let database = settings
        .databases
        .get(shop::DATABASE)
        .ok_or_else(|| DemoError::Configuration(format!("no database {}", shop::DATABASE)))?;
    runtime.block_on(async {
        let (shards, spare) = servers.split_at(serving);
        for shard in shards {
            shop::create(shard).await?;
        }
        for server in spare {
            shop::create_empty(server).await?;
        }
        shop::fill(shards, &database.snapshot).await?;
        Ok(())
    })
}

/// What is printed once clients can connect.
fn invitation(args: &DemoArgs, shards: &[Cluster], configuration: &Path) -> String {
    let (port, http) = (args.port, args.port + 1);
    let (user, password, database) = (shop::USER, shop::PASSWORD, shop::DATABASE);
    let servers: String = shards
        .iter()
        .enumerate()
        .map(|(at, shard)| {
            format!(
                "    s{at}  postgres://{user}:{password}@127.0.0.1:{}/{database}\n",
                shard.port()
            )
        })
        .collect();
    format!(
        "
Shardway is ready: a shop spread over {count} PostgreSQL servers, as one database.

    psql 'postgres://{user}:{password}@127.0.0.1:{port}/{database}'

Things to try:
    \\d
    SELECT * FROM customers WHERE id = 42;                              one shard, found by the key
    SELECT c.name, o.id, i.product, i.quantity FROM customers c
      JOIN orders o ON o.customer_id = c.id
      JOIN order_items i ON i.customer_id = o.customer_id AND i.order_id = o.id
      WHERE c.id = 42;                                                  joined where the rows live together
    BEGIN; UPDATE orders SET status = 'paid' WHERE customer_id = 42; ROLLBACK;
    SELECT count(*) FROM shipments WHERE region = 'eu';                 placed by a list of regions
    SELECT kind FROM events WHERE day = '2026-02-14';                   placed by ranges of days
    EXPLAIN (ROUTE) SELECT * FROM orders WHERE customer_id = 42;        where it goes, and why
    SELECT status, count(*) FROM orders GROUP BY 1;                     computed over the rows of all shards
    UPDATE orders SET status = 'open';                                  written on every shard, or on none

    {program} route --config {configuration} 'SELECT * FROM orders WHERE customer_id = 42'
    curl http://127.0.0.1:{http}/metrics
    psql 'postgres://ops:ops@127.0.0.1:{port}/shardway' -c 'SHOW POOLS'

The shards themselves, to look behind the curtain:
{servers}",
        count = shards.len(),
        program = quoted(&program()),
        configuration = quoted(&configuration.display().to_string()),
    )
}
