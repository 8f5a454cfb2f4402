//! Replication connections go through to the shard that they name: PostgreSQL's own programs and subscriptions follow
//! one shard, what ends on one side ends on the other, and nobody opens more than is allowed.

use crate::{
    harness::{Proxy, Recipe, Shop, block_on, home_of, printed, program_of_server, shop, until},
    raw::Raw,
};
use shardway::sandbox::shop as names;
use std::{fs, process::Command, sync::Once};

const ROLE: &str = "copier";

/// The shop with a role that may replicate, on every server.
fn replicated() -> &'static Shop {
    static ROLES: Once = Once::new();
    let shop = shop();
    ROLES.call_once(|| {
        for server in shop.servers() {
            let role = format!("CREATE ROLE {ROLE} LOGIN REPLICATION SUPERUSER PASSWORD '{ROLE}'");
            block_on(server.execute(names::DATABASE, &role)).unwrap();
        }
    });
    shop
}

fn user() -> String {
    format!("[users.{ROLE}]\npassword = \"{ROLE}\"\ndatabases = [\"shop\"]\n")
}

/// A proxy before all shards.
fn before_all(more: &str) -> Proxy {
    replicated().serve(&Recipe::with(&format!("{}{more}", user())))
}

/// A proxy before one shard only.
fn before_one(shard: usize) -> Proxy {
    let shop = replicated();
    let port = shop.shards()[shard].port();
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [databases.shop]\nshards.only = {{ primary = \"postgres://127.0.0.1:{port}/shop\" }}\n{}",
        user()
    );
    Proxy::start(shop.dir(), &text)
}

/// A program of PostgreSQL that connects to the proxy as the role that may replicate.
fn program(name: &str, proxy: &Proxy, options: &str) -> Command {
    let mut command = Command::new(program_of_server(name));
    proxy.target().apply(&mut command);
    command
        .env("PGUSER", ROLE)
        .env("PGPASSWORD", ROLE)
        .env("PGOPTIONS", options);
    command
}

/// What one value is on a shard, asked directly.
fn on_shard(shard: usize, sql: &str) -> String {
    let rows = block_on(replicated().shards()[shard].query(names::DATABASE, sql)).unwrap();
    rows[0][0].clone().unwrap_or_default()
}

/// A customer whose row lives on a shard, from this number on.
fn key_on(shard: usize, from: i64) -> i64 {
    (from..)
        .find(|id| home_of(&replicated().settings, *id) == shard)
        .unwrap()
}

async fn insert(proxy: &Proxy, key: i64, name: &str) {
    let client = proxy.target().connect().await;
    client
        .batch_execute(&format!(
            "INSERT INTO customers VALUES ({key}, '{name}', '{name}', NULL)"
        ))
        .await
        .unwrap();
}

fn forget(shard: usize, key: i64) {
    let sql = format!("DELETE FROM customers WHERE id = {key}");
    block_on(replicated().shards()[shard].execute(names::DATABASE, &sql)).unwrap();
}

#[test]
fn the_server_that_is_named_identifies_itself() {
    let [all, one] = [before_all(""), before_one(2)];
    // The servers are made from one template, so that what tells them apart is their port.
    let system = on_shard(0, "SELECT system_identifier FROM pg_control_system()");
    let ports = [0, 1, 2].map(|shard| replicated().shards()[shard].port().to_string());
    let identify = |proxy: &Proxy, options: &str, database: &str, kind: &str| {
        let mut psql = program("psql", proxy, options);
        let to = format!("dbname={database} replication={kind}");
        psql.args(["-X", "-A", "-t", &to]);
        let out = printed(psql.args(["-c", "IDENTIFY_SYSTEM", "-c", "SHOW port"]));
        assert!(out.contains(&system), "{out}");
        out.lines().nth(1).unwrap().to_owned()
    };
    for kind in ["database", "true"] {
        for (shard, port) in ports.iter().enumerate() {
            let option = format!("-c shardway.shard=s{shard}");
            assert_eq!(identify(&all, &option, "shop", kind), *port);
            assert_eq!(identify(&all, "", &format!("shop@s{shard}"), kind), *port);
        }
        assert_eq!(identify(&one, "", "shop", kind), ports[2]);
    }
    // Ordinary queries are answered on it too, with the settings that it asked for.
    let mut psql = program(
        "psql",
        &all,
        "-c shardway.shard=s1 -c search_path=\"a\\ b\",pg_temp",
    );
    let sql =
        "SELECT current_user, current_setting('search_path'), count(*) > 0 FROM public.customers";
    let out = printed(psql.args(["-XAt", "replication=database", "-c", sql]));
    assert_eq!(out, format!("{ROLE}|\"a b\",pg_temp|t\n"));
}

#[test]
fn what_names_no_shard_or_no_database_is_refused_with_a_hint() {
    let proxy = before_all("");
    let refused = |options: &str, to: &str| {
        let mut psql = program("psql", &proxy, options);
        let output = psql.args(["-X", to, "-c", "SELECT 1"]).output().unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let said = refused("", "dbname=shop replication=database");
    assert!(said.contains("SW124") && said.contains("shop@s0"), "{said}");
    let said = refused("-c shardway.shard=s9", "dbname=shop replication=database");
    assert!(
        said.contains("SW122") && said.contains("s0, s1, s2"),
        "{said}"
    );
    let said = refused("", "dbname=nowhere@s0 replication=database");
    assert!(said.contains("\"nowhere\" does not exist"), "{said}");
    let said = refused("", "dbname=shop replication=perhaps");
    assert!(said.contains("invalid value for parameter"), "{said}");
    // The server's own words pass: the application's role may not replicate, and options are no way to be another.
    let said = refused(
        "-c shardway.shard=s0 -c user=postgres",
        "dbname=shop replication=true",
    );
    assert!(
        said.contains("unrecognized configuration parameter \"user\""),
        "{said}"
    );
    let mut psql = program("psql", &proxy, "");
    psql.env("PGUSER", names::USER)
        .env("PGPASSWORD", names::PASSWORD);
    let output = psql
        .args([
            "-X",
            "dbname=shop@s0 replication=database",
            "-c",
            "SELECT 1",
        ])
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.to_lowercase()
            .replace("wal sender", "walsender")
            .contains("to start walsender"),
        "{said}"
    );
}

/// Follows a shard with pg_recvlogical, from before a row is inserted until after; what it prints.
fn follow(proxy: &Proxy, options: &str, shard: usize, plugin: &str, key: i64) -> String {
    let slot = format!("follow_{key}");
    let receive = |more: &[&str]| {
        let mut program = program("pg_recvlogical", proxy, options);
        printed(program.args(["-d", "shop", "--slot", &slot]).args(more))
    };
    receive(&["--create-slot", "-P", plugin]);
    let whole = before_all("");
    block_on(insert(&whole, key, "followed"));
    let end = on_shard(shard, "SELECT pg_current_wal_insert_lsn()");
    let mut start = vec!["--start", "-f", "-", "--endpos", &end];
    if plugin == "pgoutput" {
        start.extend([
            "-o",
            "proto_version=1",
            "-o",
            "publication_names=everything",
        ]);
    }
    let out = receive(&start);
    receive(&["--drop-slot"]);
    forget(shard, key);
    out
}

#[test]
fn pg_recvlogical_follows_the_named_shard() {
    let proxy = before_all("");
    for (shard, from) in [(0, 8_100_000), (1, 8_200_000)] {
        let key = key_on(shard, from);
        let out = follow(
            &proxy,
            &format!("-c shardway.shard=s{shard}"),
            shard,
            "test_decoding",
            key,
        );
        assert!(
            out.contains(&format!(
                "table public.customers: INSERT: id[bigint]:{key} "
            )),
            "{out}"
        );
    }
}

#[test]
fn psycopg2_consumes_a_stream_of_the_named_shard() {
    let proxy = before_all("");
    let key = key_on(2, 8_500_000);
    let [python, script] = crate::drivers::python("with_replication.py");
    let mut client = Command::new(python);
    proxy.target().apply(&mut client);
    client.env("PGUSER", ROLE).env("PGPASSWORD", ROLE);
    let out = printed(
        client
            .args([&script, names::DATABASE, "s2"])
            .arg(key.to_string()),
    );
    let [inserted, dropped] = &out.lines().collect::<Vec<_>>()[..] else {
        panic!("{out}")
    };
    assert!(inserted.starts_with(&format!(
        "table public.customers: INSERT: id[bigint]:{key} "
    )));
    assert_eq!(*dropped, format!("dropped {ROLE}"));
    forget(2, key);
}

#[test]
fn pg_recvlogical_needs_no_name_on_a_database_of_one_shard() {
    let proxy = before_one(2);
    let key = key_on(2, 8_300_000);
    let publication = "CREATE PUBLICATION everything FOR TABLE customers";
    block_on(replicated().shards()[2].execute(names::DATABASE, publication)).unwrap();
    let out = follow(&proxy, "", 2, "pgoutput", key);
    assert!(out.contains("followed"), "{out}");
    let drop = "DROP PUBLICATION everything";
    block_on(replicated().shards()[2].execute(names::DATABASE, drop)).unwrap();
}

#[test]
fn a_subscription_gets_the_rows_of_the_shard_that_it_names() {
    let (shop, proxy) = (replicated(), before_all(""));
    let (here, there) = (key_on(1, 8_400_000), key_on(0, 8_400_000));
    let publisher = &shop.shards()[1];
    let follower = &shop.servers()[3];
    let port = proxy.target().port;
    block_on(async {
        let publish = "CREATE PUBLICATION customers FOR TABLE customers";
        publisher.execute(names::DATABASE, publish).await.unwrap();
        follower
            .execute("postgres", "CREATE DATABASE follower")
            .await
            .unwrap();
        follower
            .execute("follower", "CREATE TABLE customers (id bigint PRIMARY KEY, email text, name text, country text)")
            .await
            .unwrap();
        // The subscriber replaces `options` by its own, so that the shard stands in the database's name.
        let subscribe = format!(
            "CREATE SUBSCRIPTION follower CONNECTION 'host=127.0.0.1 port={port} dbname=shop@s1 \
             user={ROLE} password={ROLE} sslmode=disable' PUBLICATION customers"
        );
        follower.execute("follower", &subscribe).await.unwrap();
        insert(&proxy, there, "elsewhere").await;
        insert(&proxy, here, "subscribed").await;
    });
    let count = |sql: &str| {
        let rows = block_on(follower.query("follower", sql)).unwrap();
        rows[0][0].clone().unwrap()
    };
    let one = |key: i64| format!("SELECT count(*) FROM customers WHERE id = {key}");
    until("the new row has come", || count(&one(here)) == "1");
    // Those that were there before have been copied, and none is of another shard.
    let copied = "SELECT count(*), sum(id) FROM customers WHERE id <= 1000";
    let rows = block_on(publisher.query(names::DATABASE, copied)).unwrap();
    assert_eq!(block_on(follower.query("follower", copied)).unwrap(), rows);
    assert_eq!(count(&one(there)), "0");
    block_on(async {
        follower
            .execute("follower", "DROP SUBSCRIPTION follower")
            .await
            .unwrap();
        follower
            .execute("postgres", "DROP DATABASE follower")
            .await
            .unwrap();
        let drop = "DROP PUBLICATION customers";
        publisher.execute(names::DATABASE, drop).await.unwrap();
    });
    let slots = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'follower'";
    assert_eq!(on_shard(1, slots), "0");
    forget(1, here);
    forget(0, there);
}

/// Copies a whole server and checks the copy against its own manifest.
fn back_up(proxy: &Proxy, options: &str, shard: usize, name: &str) {
    let copy = replicated().dir().join(name);
    let mut backup = program("pg_basebackup", proxy, options);
    printed(
        backup
            .args(["--checkpoint", "fast", "-X", "stream", "-D"])
            .arg(&copy),
    );
    printed(program("pg_verifybackup", proxy, "").arg(&copy));
    let settings = fs::read_to_string(copy.join("postgresql.conf")).unwrap();
    let port = replicated().shards()[shard].port();
    assert!(settings.contains(&format!("port = '{port}'")), "{settings}");
    fs::remove_dir_all(&copy).unwrap();
}

#[test]
fn pg_basebackup_copies_the_one_server_or_the_one_that_is_named() {
    back_up(&before_one(0), "", 0, "backup-of-one");
    back_up(
        &before_all(""),
        "-c shardway.shard=s2",
        2,
        "backup-of-third",
    );
}

/// A replication connection that speaks bytes.
fn enter(proxy: &Proxy, shard: usize) -> Raw {
    let database = format!("shop@s{shard}");
    let parameters = [
        ("user", ROLE),
        ("database", &database),
        ("replication", "database"),
    ];
    Raw::login_with(&proxy.target(), 3 << 16, &parameters, ROLE)
}

fn rows_of_console(proxy: &Proxy, command: &str) -> String {
    let mut psql = program("psql", proxy, "");
    psql.env("PGUSER", "ops")
        .env("PGPASSWORD", "ops")
        .env("PGDATABASE", "shardway");
    printed(psql.args(["-X", "-A", "-t", "-c", command]))
}

#[test]
fn replication_connections_are_shown_and_no_more_are_opened_than_allowed() {
    let proxy = before_all("[pool]\nreplication_size = 1\n");
    let mut first = enter(&proxy, 0);
    let shown = |command: &str, word: &str| {
        let rows = rows_of_console(&proxy, command);
        rows.lines().filter(|line| line.contains(word)).count()
    };
    assert_eq!(shown("SHOW CLIENTS", "|logical|active|"), 1);
    assert_eq!(shown("SHOW SERVERS", "|logical|active|"), 1);
    let parameters = [
        ("user", ROLE),
        ("database", "shop@s0"),
        ("replication", "true"),
    ];
    let mut second = Raw::connect(&proxy.target());
    second.prove(3 << 16, &parameters, ROLE);
    let refused = second.until(b'E').pop().unwrap();
    assert_eq!(
        refused.error(),
        Some(("FATAL".to_owned(), "53300".to_owned()))
    );
    assert!(refused.field(b'D').unwrap().contains("SW207"));
    // Another shard has a place of its own, and one that is left is free again.
    drop(enter(&proxy, 1));
    first.send(b"X\0\0\0\x04");
    assert_eq!(first.rest(), (String::new(), None));
    until("its place is free", || {
        shown("SHOW SERVERS", "|logical|") == 0
    });
    drop(enter(&proxy, 0));
    assert_eq!(
        shown("SHOW SERVERS", "|none|"),
        0,
        "no pool has opened a backend for them"
    );
}

#[test]
fn what_ends_on_one_side_ends_on_the_other() {
    let proxy = before_all("");
    let mut connection = enter(&proxy, 1);
    connection.query("SELECT pg_backend_pid()");
    let row = connection
        .until(b'Z')
        .into_iter()
        .find(|reply| reply.tag == b'D')
        .unwrap();
    let pid = String::from_utf8(row.body[6..].to_vec()).unwrap();
    let alive = |pid: &str| {
        on_shard(
            1,
            &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}"),
        ) == "1"
    };
    assert!(alive(&pid));
    drop(connection);
    until("the server's side has ended", || !alive(&pid));

    let mut connection = enter(&proxy, 1);
    connection.query("SELECT pg_backend_pid()");
    let row = connection
        .until(b'Z')
        .into_iter()
        .find(|reply| reply.tag == b'D')
        .unwrap();
    let pid = String::from_utf8(row.body[6..].to_vec()).unwrap();
    assert_eq!(
        on_shard(1, &format!("SELECT pg_terminate_backend({pid})")),
        "t"
    );
    let end = connection.until(b'E').pop().unwrap();
    assert_eq!(end.error(), Some(("FATAL".to_owned(), "57P01".to_owned())));
    assert_eq!(
        end.field(b'R').as_deref(),
        Some("ProcessInterrupts"),
        "the server's own words"
    );
    assert_eq!(connection.rest(), (String::new(), None));
}

#[test]
fn a_cancel_reaches_what_a_replication_connection_runs() {
    let proxy = before_all("");
    let mut connection = enter(&proxy, 0);
    connection.query("SELECT pg_sleep(100), 'of a follower'");
    let runs = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%of a follower%' AND pid <> pg_backend_pid()";
    until("it runs", || on_shard(0, runs) == "1");
    connection.cancel(&proxy.target());
    let error = connection
        .until(b'Z')
        .into_iter()
        .find_map(|reply| reply.error());
    assert_eq!(error, Some(("ERROR".to_owned(), "57014".to_owned())));
    connection.query("SELECT 1");
    assert_eq!(connection.until(b'Z')[1].tag, b'D');
}

#[test]
fn a_drain_ends_streams_at_once_and_lets_a_transaction_end() {
    let mut proxy = before_all("");
    let [mut stream, mut resting, mut busy] =
        [enter(&proxy, 0), enter(&proxy, 1), enter(&proxy, 2)];
    stream.query("CREATE_REPLICATION_SLOT drained TEMPORARY LOGICAL test_decoding");
    stream.until(b'Z');
    stream.query("START_REPLICATION SLOT drained LOGICAL 0/0");
    stream.until(b'W');
    busy.query("BEGIN");
    busy.until(b'Z');
    proxy.signal("TERM");
    let gone = Some(("FATAL".to_owned(), "57P01".to_owned()));
    assert_eq!(stream.rest().1, gone);
    assert_eq!(resting.rest(), ("E".to_owned(), gone.clone()));
    busy.query("SELECT 1");
    assert_eq!(busy.until(b'Z')[1].tag, b'D');
    busy.query("COMMIT");
    busy.until(b'Z');
    assert_eq!(busy.rest(), ("E".to_owned(), gone));
    assert_eq!(proxy.wait(), Some(0), "{}", proxy.log());
}

#[test]
fn a_client_that_does_not_read_stops_the_reading_of_its_server() {
    let proxy = before_all("");
    let mut slow = enter(&proxy, 0);
    slow.query("SELECT repeat('x', 1000) FROM generate_series(1, 100000)");
    slow.until(b'T');
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%generate_series(1, 100000)%' AND wait_event = 'ClientWrite'";
    until("the server waits for its client", || {
        on_shard(0, waits) == "1"
    });
    let held: usize = memory_of(&proxy);
    assert!(
        held < 60_000,
        "{held} kB are held for a client that does not read"
    );
    let rows = slow
        .until(b'Z')
        .iter()
        .filter(|reply| reply.tag == b'D')
        .count();
    assert_eq!(rows, 100_000);
}

/// Kilobytes of memory that the process has.
fn memory_of(proxy: &Proxy) -> usize {
    let status = fs::read_to_string(format!("/proc/{}/status", proxy.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_reload_that_moves_the_shard_ends_its_replication_and_no_other() {
    let proxy = before_all("");
    let [mut moved, mut stays] = [enter(&proxy, 0), enter(&proxy, 1)];
    let old = fs::read_to_string(&proxy.config).unwrap();
    let ports = [0, 1].map(|shard| replicated().shards()[shard].port().to_string());
    fs::write(&proxy.config, old.replace(&ports[0], &ports[1])).unwrap();
    proxy.signal("HUP");
    until("the reload is told", || {
        proxy.log().contains("configuration reloaded")
    });
    // Nothing is sent on it: it ends by itself.
    let (_, end) = moved.rest();
    assert_eq!(end, Some(("FATAL".to_owned(), "57P01".to_owned())));
    stays.query("SELECT 1");
    assert_eq!(stays.until(b'Z')[1].tag, b'D');
}
