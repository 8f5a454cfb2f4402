//! What SHOW answers, through the console, on settings of two shards.

use super::{civil, wall};
use crate::{
    admin::{
        Console, ConsoleError, Control, Now, Readiness, Reply,
        averages::Averages,
        command::{Command, Shutdown, VERBS},
    },
    catalog::snapshot::Snapshot,
    clock::{Clock, Duration, SystemTime},
    config::settings::{
        Address, BackendProof, ClientAuth, ConsoleRole, Credentials, Database, Host, Listen,
        ListenGap, LogFormat, Pool, PoolMode, Secret, Server, ServerTls, Settings, Shard, TlsMode,
        TlsStart, User,
    },
    metrics::{
        Metrics,
        sessions::{CancelKeyLength, NewSession, Peer, Registered, Transport, Wanted},
    },
    plan::cache::Stats,
};
use arc_swap::ArcSwap;
use std::{collections::BTreeMap, sync::Arc};

struct Idle;

impl Control for Idle {
    fn reload(&self) -> Result<(), String> {
        Err("line 3".to_owned())
    }

    fn shutdown(&self, _how: Shutdown) {}

    fn readiness(&self) -> Readiness {
        Readiness::Ready
    }

    fn plan_caches(&self) -> Vec<(String, Stats)> {
        vec![(
            "app".to_owned(),
            Stats {
                hits: 5,
                ..Stats::default()
            },
        )]
    }
}

fn shard(name: &str) -> Shard {
    let primary = Address {
        host: Host::Tcp("10.0.0.1".to_owned()),
        port: 5432,
        database: "app".to_owned(),
        tls: TlsMode::Disable,
        root_cert: None,
        tls_start: TlsStart::Request,
        channel_binding: crate::auth::scram::ChannelBinding::Prefer,
    };
    Shard {
        name: name.to_owned(),
        primary,
        replicas: Vec::new(),
    }
}

fn database() -> Database {
    let snapshot = Snapshot::new("app", vec!["s0".to_owned(), "s1".to_owned()]);
    let pool = Pool {
        mode: PoolMode::Transaction,
        size: 20,
        replication_size: 10,
        min_size: 0,
        idle_timeout: Duration::from_secs(600),
        lifetime: Duration::from_secs(3600),
        wait_timeout: Duration::from_secs(10),
        connect_timeout: Duration::from_secs(5),
        reserve_size: 5,
        connect_limit: 4,
        prepared_statements: 100,
        listen_gap: ListenGap::End,
        listen_queue: 1 << 20,
    };
    Database {
        name: "app".to_owned(),
        snapshot: Arc::new(snapshot),
        shards: vec![shard("s0"), shard("s1")],
        pool,
        control: Some(Credentials {
            user: "control".to_owned(),
            password: Some(Secret("hidden-1".to_owned())),
        }),
        auth_query: None,
        two_phase_retention: Duration::from_secs(6 * 60 * 60),
        deadlock_interval: Duration::from_secs(1),
        sequence_block: 1,
        pg_dump: "pg_dump".into(),
    }
}

fn console() -> Console {
    let server = Server {
        listen: vec![Listen::Tcp(([127, 0, 0, 1], 6432).into())],
        http: None,
        tls: ServerTls {
            mode: TlsMode::Disable,
            identity: None,
            clients: None,
        },
        max_clients: 100,
        max_logins: 100,
        failed_logins: 0,
        failed_login_delay: Duration::from_secs(1),
        login_timeout: Duration::from_secs(60),
        id: None,
        peers: BTreeMap::new(),
        shutdown_timeout: Duration::from_secs(60),
        workers: 2,
        plan_cache_bytes: 1 << 20,
        gather_limit: 64 << 20,
        gather_limit_total: 256 << 20,
        log_format: LogFormat::Text,
        log_level: "info".to_owned(),
    };
    let user = User {
        name: "alice".to_owned(),
        auth: ClientAuth::Scram(Secret("hidden-2".to_owned())),
        backend: Credentials {
            user: "alice".to_owned(),
            password: Some(Secret("hidden-3".to_owned())),
        },
        backend_proof: BackendProof::Configured,
        databases: Vec::new(),
        console: None,
        pool_mode: None,
        pool_size: Some(5),
    };
    let settings = Settings {
        server,
        databases: BTreeMap::from([("app".to_owned(), Arc::new(database()))]),
        wildcard: None,
        found_users: Arc::new(user.clone()),
        rules: None,
        users: BTreeMap::from([("alice".to_owned(), Arc::new(user))]),
    };
    Console {
        metrics: Metrics::new(),
        settings: Arc::new(ArcSwap::from_pointee(settings)),
        averages: Averages::default(),
        control: Arc::new(Idle),
    }
}

fn now() -> Now {
    Now {
        monotonic: Clock.now(),
        wall: Clock.wall(),
    }
}

fn enter(console: &Console) -> Registered {
    console.metrics.sessions.register(NewSession {
        user: "alice".into(),
        database: "app".into(),
        peer: Peer::Tcp(([127, 0, 0, 1], 5555).into()),
        application_name: "psql".to_owned(),
        tls: Transport::Plain,
        protocol: CancelKeyLength::Four,
        replication: None,
        now: Clock.now(),
        wall: Clock.wall(),
    })
}

/// The value of a column in the first row whose `by` column has that value.
fn value<'a>(reply: &'a Reply, by: (&str, &str), column: &str) -> Option<&'a str> {
    let place = |name: &str| {
        reply
            .columns
            .iter()
            .position(|column| column.name == name)
            .expect("a column of that name")
    };
    let row = reply
        .rows
        .iter()
        .find(|row| row[place(by.0)].as_deref() == Some(by.1))
        .expect("a row with that value");
    row[place(column)].as_deref()
}

#[test]
fn every_show_has_as_many_values_as_columns_and_no_secret() {
    let console = console();
    let session = enter(&console);
    session.set_active(1, 99);
    session.set_pin(Some("LISTEN"));
    console.metrics.pool("app", "alice", "s1").queries.add(3);
    for verb in VERBS
        .iter()
        .filter(|verb| matches!(verb.command, Command::Show(_)))
    {
        let reply = console
            .execute(verb.words, ConsoleRole::Stats, now())
            .expect("SHOW is for stats users");
        assert!(!reply.columns.is_empty(), "{}", verb.words);
        for row in &reply.rows {
            assert_eq!(row.len(), reply.columns.len(), "{}", verb.words);
            assert!(
                row.iter().flatten().all(|value| !value.contains("hidden")),
                "{}: {row:?}",
                verb.words
            );
        }
    }
}

#[test]
fn pools_tell_who_waits_and_for_how_long() {
    let console = console();
    let session = enter(&console);
    session.set_waiting(session.connected);
    let later = Now {
        monotonic: session.connected + Duration::from_millis(2500),
        wall: Clock.wall(),
    };
    let reply = console
        .execute("show pools", ConsoleRole::Stats, later)
        .expect("a table");
    let of_app = |column| value(&reply, ("database", "app"), column);
    assert_eq!(of_app("cl_waiting"), Some("1"));
    assert_eq!(
        (of_app("maxwait"), of_app("maxwait_us")),
        (Some("2"), Some("500000"))
    );
    assert_eq!(
        (of_app("pool_mode"), of_app("pool_size")),
        (Some("transaction"), Some("5"))
    );
}

#[test]
fn clients_name_the_shard_that_they_are_on() {
    let console = console();
    let session = enter(&console);
    session.set_active(1, 99);
    let reply = console
        .execute("SHOW CLIENTS;", ConsoleRole::Stats, now())
        .expect("a table");
    let id = session.pid.to_string();
    assert_eq!(value(&reply, ("id", &id), "shard"), Some("s1"));
    assert_eq!(value(&reply, ("id", &id), "link"), Some("63"));
    assert_eq!(value(&reply, ("id", &id), "addr"), Some("127.0.0.1"));
}

#[test]
fn stats_add_up_the_shards() {
    let console = console();
    console.metrics.pool("app", "alice", "s0").queries.add(3);
    console.metrics.pool("app", "alice", "s1").queries.add(4);
    let reply = console
        .execute("SHOW STATS", ConsoleRole::Stats, now())
        .expect("a table");
    assert_eq!(
        value(&reply, ("database", "app"), "total_query_count"),
        Some("7")
    );
    let reply = console
        .execute("SHOW SHARDS", ConsoleRole::Stats, now())
        .expect("a table");
    assert_eq!(value(&reply, ("shard", "s1"), "queries"), Some("4"));
}

#[test]
fn a_stats_user_changes_nothing_and_an_admin_kills() {
    let console = console();
    let session = enter(&console);
    let kill = format!("KILL {}", session.pid);
    assert_eq!(
        console.execute(&kill, ConsoleRole::Stats, now()),
        Err(ConsoleError::Forbidden { needs: "admin" })
    );
    assert_eq!(session.wanted(), Wanted::Nothing);
    assert_eq!(
        console
            .execute(&kill, ConsoleRole::Admin, now())
            .map(|reply| reply.tag),
        Ok("KILL".to_owned())
    );
    assert_eq!(session.wanted(), Wanted::EndNow);
    let gone = console.execute("KILL 0", ConsoleRole::Admin, now());
    assert_eq!(gone, Err(ConsoleError::NoSuchSession(0)));
    assert_eq!(
        console.execute("RELOAD", ConsoleRole::Admin, now()),
        Err(ConsoleError::Reload("line 3".to_owned()))
    );
}

#[test]
fn times_are_written_as_dates() {
    for (seconds, text) in [
        (0, "1970-01-01 00:00:00 UTC"),
        (951_782_400, "2000-02-29 00:00:00 UTC"),
        (4_102_444_799, "2099-12-31 23:59:59 UTC"),
    ] {
        assert_eq!(
            wall(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            text
        );
    }
    assert_eq!(civil(11_017), (2000, 3, 1));
}

#[test]
fn peers_are_the_proxies_of_the_configuration_and_this_one() {
    let console = console();
    let peers = || {
        console
            .execute("SHOW PEERS", ConsoleRole::Stats, now())
            .expect("SHOW is for stats users")
    };
    assert!(peers().rows.is_empty());
    let mut settings = Settings::clone(&console.settings.load());
    settings.server.id = Some(1);
    settings.server.peers.insert(2, shard("other").primary);
    console.settings.store(Arc::new(settings));
    let reply = peers();
    assert_eq!(value(&reply, ("peer_id", "1"), "own"), Some("yes"));
    assert_eq!(value(&reply, ("peer_id", "1"), "host"), None);
    assert_eq!(value(&reply, ("peer_id", "2"), "host"), Some("10.0.0.1"));
    assert_eq!(value(&reply, ("peer_id", "2"), "port"), Some("5432"));
}
