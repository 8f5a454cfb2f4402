//! Replication connections go through to the shard that they name: PostgreSQL's own programs and subscriptions follow
//! one shard, what ends on one side ends on the other, and nobody opens more than is allowed.

use crate::{
    harness::{Proxy, Recipe, Shop, block_on, get, home_of, printed, shop, until},
    raw::{Raw, startup},
};
use shardway::{auth::scram, sandbox::shop as names};
use std::{
    fs,
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
    sync::Once,
};

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
    let mut command = Command::new(format!("/usr/lib/postgresql/15/bin/{name}"));
    if !std::path::Path::new(command.get_program()).exists() {
        command = Command::new(name);
    }
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
    let identify = |proxy: &Proxy, options: &str, database: &str, kind: &str| {
        let mut psql = program("psql", proxy, options);
        let to = format!("dbname={database} replication={kind}");
        let out = printed(psql.args(["-X", "-A", "-t", &to, "-c", "IDENTIFY_SYSTEM"]));
        out.split('|').next().unwrap().to_owned()
    };
    let systems: Vec<String> = (0..3)
        .map(|shard| on_shard(shard, "SELECT system_identifier FROM pg_control_system()"))
        .collect();
    for kind in ["database", "true"] {
        for (shard, system) in systems.iter().enumerate() {
            let option = format!("-c shardway.shard=s{shard}");
            assert_eq!(identify(&all, &option, "shop", kind), *system);
            assert_eq!(
                identify(&all, "", &format!("shop@s{shard}"), kind),
                *system
            );
        }
        assert_eq!(identify(&one, "", "shop", kind), systems[2]);
    }
    // Ordinary queries are answered on it too, with the settings that it asked for.
    let mut psql = program("psql", &all, "-c shardway.shard=s1 -c search_path=a\\ b,pg_temp");
    let sql = "SELECT current_user, current_setting('search_path'), count(*) > 0 FROM public.customers";
    let out = printed(psql.args(["-XAt", "replication=database", "-c", sql]));
    assert_eq!(out, format!("{ROLE}|a b,pg_temp|t\n"));
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
    assert!(said.contains("SW122") && said.contains("s0, s1, s2"), "{said}");
    let said = refused("", "dbname=nowhere@s0 replication=database");
    assert!(said.contains("\"nowhere\" does not exist"), "{said}");
    let said = refused("", "dbname=shop replication=perhaps");
    assert!(said.contains("invalid value for parameter"), "{said}");
    // The server's own words pass: the application's role may not replicate, and options are no way to be another.
    let said = refused("-c shardway.shard=s0 -c user=postgres", "dbname=shop replication=true");
    assert!(said.contains("unrecognized configuration parameter \"user\""), "{said}");
    let mut psql = program("psql", &proxy, "");
    psql.env("PGUSER", names::USER).env("PGPASSWORD", names::PASSWORD);
    let output = psql.args(["-X", "dbname=shop@s0 replication=database", "-c", "SELECT 1"]).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("must be superuser or replication role to start walsender"), "{said}");
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
    let end = on_shard(shard, "SELECT pg_current_wal_lsn()");
    let mut start = vec!["--start", "-f", "-", "--endpos", &end];
    if plugin == "pgoutput" {
        start.extend(["-o", "proto_version=1", "-o", "publication_names=everything"]);
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
        let out = follow(&proxy, &format!("-c shardway.shard=s{shard}"), shard, "test_decoding", key);
        assert!(
            out.contains(&format!("table public.customers: INSERT: id[bigint]:{key} ")),
            "{out}"
        );
    }
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
