//! SHOW DATABASES, USERS, PEERS, CONFIG, LISTS, STATE: what the process was told, and how many of everything there is. No secrets.

use super::{Cell, Table, databases as all_databases, host_word, mode_word, tls_word};
use crate::{
    admin::{Console, Readiness},
    clock::Duration,
    config::settings::{ClientAuth, ConsoleRole, Listen, LogFormat},
    metrics::sessions::{BackendState, SessionState},
};

#[expect(clippy::too_many_lines, reason = "a table: one line per column")]
pub(super) fn databases(console: &Console) -> Table {
    let names = [
        "name",
        "host",
        "port",
        "database",
        "force_user",
        "pool_size",
        "min_pool_size",
        "reserve_pool_size",
        "server_lifetime",
        "pool_mode",
        "load_balance_hosts",
        "max_connections",
        "current_connections",
        "max_client_connections",
        "current_client_connections",
        "paused",
        "disabled",
        "shards",
        "epoch",
    ];
    let numbers = [
        "port",
        "pool_size",
        "min_pool_size",
        "reserve_pool_size",
        "server_lifetime",
        "max_connections",
        "current_connections",
        "max_client_connections",
        "current_client_connections",
        "paused",
        "disabled",
        "shards",
        "epoch",
    ];
    let mut table = Table::new(&names, &numbers);
    let (settings, sessions, backends) = (
        console.settings.load(),
        console.metrics.sessions.list(),
        console.metrics.backends.list(),
    );
    for (name, database) in all_databases(&settings) {
        let home = database
            .shards
            .get(database.snapshot.home.index())
            .or_else(|| database.shards.first());
        table.row([
            name.into(),
            home.map(|shard| host_word(&shard.primary.host)).into(),
            home.map(|shard| shard.primary.port).into(),
            home.map(|shard| shard.primary.database.clone()).into(),
            Cell::Null,
            database.pool.size.into(),
            database.pool.min_size.into(),
            database.pool.reserve_size.into(),
            database.pool.lifetime.as_secs().into(),
            mode_word(database.pool.mode).into(),
            Cell::Null,
            0_u64.into(),
            backends
                .iter()
                .filter(|backend| *backend.database == *name)
                .count()
                .into(),
            0_u64.into(),
            sessions
                .iter()
                .filter(|session| *session.database == *name)
                .count()
                .into(),
            0_u64.into(),
            0_u64.into(),
            database.shards.len().into(),
            database.snapshot.epoch.0.into(),
        ]);
    }
    table
}

/// This proxy is one of them, without a host.
pub(super) fn peers(console: &Console) -> Table {
    let names = ["peer_id", "host", "port", "pool_size", "tls", "own"];
    let mut table = Table::new(&names, &["peer_id", "port", "pool_size"]);
    let settings = console.settings.load();
    let own = settings.server.id;
    if let Some(own) = own {
        let number = u64::from(own).into();
        table.row([
            number,
            Cell::Null,
            Cell::Null,
            Cell::Null,
            Cell::Null,
            "yes".into(),
        ]);
    }
    for (number, address) in &settings.server.peers {
        table.row([
            u64::from(*number).into(),
            host_word(&address.host).into(),
            address.port.into(),
            Cell::Null,
            tls_word(address.tls).into(),
            "no".into(),
        ]);
    }
    table
}

pub(super) fn users(console: &Console) -> Table {
    let names = [
        "name",
        "pool_size",
        "reserve_pool_size",
        "pool_mode",
        "max_user_connections",
        "current_connections",
        "max_user_client_connections",
        "current_client_connections",
        "auth",
        "console",
        "databases",
    ];
    let numbers = [names[1], names[2], names[4], names[5], names[6], names[7]];
    let mut table = Table::new(&names, &numbers);
    let (settings, sessions, backends) = (
        console.settings.load(),
        console.metrics.sessions.list(),
        console.metrics.backends.list(),
    );
    for (name, user) in &settings.users {
        table.row([
            name.as_str().into(),
            user.pool_size.into(),
            Cell::Null,
            user.pool_mode.map(mode_word).into(),
            0_u64.into(),
            backends
                .iter()
                .filter(|backend| *backend.user == **name)
                .count()
                .into(),
            0_u64.into(),
            sessions
                .iter()
                .filter(|session| *session.user == **name)
                .count()
                .into(),
            auth_word(&user.auth).into(),
            user.console.map(console_word).into(),
            if user.databases.is_empty() {
                "*".into()
            } else {
                user.databases.join(",").into()
            },
        ]);
    }
    table
}

#[expect(clippy::too_many_lines, reason = "a table: one line per setting")]
pub(super) fn config(console: &Console) -> Table {
    let mut table = Table::new(&["key", "value", "default", "changeable"], &[]);
    let settings = console.settings.load();
    let server = &settings.server;
    let listen: Vec<String> = server
        .listen
        .iter()
        .map(|listen| match listen {
            Listen::Tcp(address) => address.to_string(),
            Listen::Unix(path) => format!("unix:{}", path.display()),
        })
        .collect();
    let format = match server.log_format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    };
    let rows: [(&str, String, &str); 13] = [
        ("server.listen", listen.join(","), "no"),
        (
            "server.http",
            server
                .http
                .map_or_else(String::new, |address| address.to_string()),
            "no",
        ),
        (
            "server.tls.mode",
            tls_word(server.tls.mode).to_owned(),
            "yes",
        ),
        ("server.max_clients", server.max_clients.to_string(), "yes"),
        ("server.max_logins", server.max_logins.to_string(), "yes"),
        ("server.login_timeout", seconds(server.login_timeout), "yes"),
        (
            "server.failed_logins",
            server.failed_logins.to_string(),
            "yes",
        ),
        (
            "server.failed_login_delay",
            seconds(server.failed_login_delay),
            "yes",
        ),
        (
            "server.shutdown_timeout",
            seconds(server.shutdown_timeout),
            "yes",
        ),
        ("server.workers", server.workers.to_string(), "no"),
        (
            "server.plan_cache_bytes",
            server.plan_cache_bytes.to_string(),
            "no",
        ),
        ("server.log.format", format.to_owned(), "no"),
        ("server.log.level", server.log_level.clone(), "no"),
    ];
    for (key, value, changeable) in rows {
        table.row([key.into(), value.into(), Cell::Null, changeable.into()]);
    }
    for (name, database) in all_databases(&settings) {
        let pool = &database.pool;
        let rows: [(&str, String); 11] = [
            ("mode", mode_word(pool.mode).to_owned()),
            ("size", pool.size.to_string()),
            ("reserve_size", pool.reserve_size.to_string()),
            ("replication_size", pool.replication_size.to_string()),
            ("min_size", pool.min_size.to_string()),
            ("idle_timeout", seconds(pool.idle_timeout)),
            ("lifetime", seconds(pool.lifetime)),
            ("wait_timeout", seconds(pool.wait_timeout)),
            ("connect_timeout", seconds(pool.connect_timeout)),
            ("connect_limit", pool.connect_limit.to_string()),
            ("prepared_statements", pool.prepared_statements.to_string()),
        ];
        for (key, value) in rows {
            table.row([
                format!("databases.{name}.pool.{key}").into(),
                value.into(),
                Cell::Null,
                "yes".into(),
            ]);
        }
    }
    table
}

pub(super) fn lists(console: &Console) -> Table {
    let mut table = Table::new(&["list", "items"], &["items"]);
    let (settings, metrics) = (console.settings.load(), &console.metrics);
    let (sessions, backends) = (metrics.sessions.list(), metrics.backends.list());
    let in_use = sessions
        .iter()
        .filter(|session| session.state() != SessionState::Idle)
        .count();
    let free = backends
        .iter()
        .filter(|backend| backend.state() == BackendState::Idle)
        .count();
    let rows = [
        ("databases", all_databases(&settings).count()),
        ("users", settings.users.len()),
        ("pools", metrics.pools().len()),
        ("free_clients", sessions.len() - in_use),
        ("used_clients", in_use),
        ("login_clients", 0),
        ("free_servers", free),
        ("used_servers", backends.len() - free),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
        (
            "shards",
            all_databases(&settings)
                .map(|(_, database)| database.shards.len())
                .sum(),
        ),
    ];
    for (list, items) in rows {
        table.row([list.into(), items.into()]);
    }
    table
}

pub(super) fn state(console: &Console) -> Table {
    let mut table = Table::new(&["key", "value"], &[]);
    let readiness = console.control.readiness();
    let yes = |yes: bool| if yes { "yes" } else { "no" };
    table.row([
        "active".into(),
        yes(readiness != Readiness::Draining).into(),
    ]);
    table.row(["paused".into(), "no".into()]);
    table.row(["suspended".into(), "no".into()]);
    table.row([
        "draining".into(),
        yes(readiness == Readiness::Draining).into(),
    ]);
    table.row(["ready".into(), yes(readiness == Readiness::Ready).into()]);
    table
}

fn auth_word(auth: &ClientAuth) -> &'static str {
    match auth {
        ClientAuth::Trust => "trust",
        ClientAuth::Password(_) => "password",
        ClientAuth::Md5(_) => "md5",
        ClientAuth::Scram(_) => "scram-sha-256",
        ClientAuth::Found => "passthrough",
        ClientAuth::FoundPassword => "passthrough-password",
        ClientAuth::Cert => "cert",
    }
}

fn console_word(role: ConsoleRole) -> &'static str {
    match role {
        ConsoleRole::Stats => "stats",
        ConsoleRole::Admin => "admin",
    }
}

fn seconds(time: Duration) -> String {
    format!("{}s", time.as_secs_f64())
}
