//! Programs written with the drivers that applications use see the same through Shardway as on one PostgreSQL:
//! wrong passwords, prepared statements whose keys live on different shards, transactions with savepoints, pipelines
//! and batches, COPY out, errors in every position, cancel, NULL and text outside ASCII.

use crate::{
    harness::{Target, assert_same, printed, shop},
    tls,
};
use std::{path::Path, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs the program on both targets; `first` is the first customer id that it may write.
fn check(program: &[String], first: u64) {
    let [direct, proxied] = shop()
        .both()
        .map(|target| printed(&mut command(program, first, &target)));
    assert!(!direct.is_empty());
    assert_same(&direct, &proxied);
}

/// Runs the program on PostgreSQL without TLS, and through a proxy that insists on it.
fn check_over_tls(program: &[String], sslmode: &str, first: u64) {
    let (proxy, authority) = tls::serve("require");
    let direct = printed(&mut command(program, first, &shop().whole()));
    let mut encrypted = command(program, first, &proxy.target());
    encrypted
        .env("PGSSLMODE", sslmode)
        .env("PGSSLROOTCERT", authority);
    assert_same(&direct, &printed(&mut encrypted));
}

fn command(program: &[String], first: u64, target: &Target) -> Command {
    let mut command = Command::new(&program[0]);
    command.args(&program[1..]).arg(first.to_string());
    command.env(
        "NODE_PATH",
        format!("{ROOT}/target/clients/node/node_modules"),
    );
    target.apply(&mut command);
    command
}

fn client(name: &str) -> String {
    format!("{ROOT}/tests/cluster/clients/{name}")
}

fn installed(name: &str) -> String {
    let path = format!("{ROOT}/target/clients/{name}");
    assert!(
        Path::new(&path).exists(),
        "{path} is missing: run tests/setup/clients.sh"
    );
    path
}

/// A program in Python, with the drivers that are installed for tests.
pub(crate) fn python(name: &str) -> [String; 2] {
    [installed("python/bin/python"), client(name)]
}

fn node() -> [String; 2] {
    installed("node/node_modules/pg");
    ["node".to_owned(), client("with_pg.js")]
}

fn java() -> [String; 4] {
    let jar = installed("java/postgresql.jar");
    [
        "java".to_owned(),
        "-cp".to_owned(),
        jar,
        client("WithPgjdbc.java"),
    ]
}

#[test]
fn cursors_of_drivers_read_rows_of_all_shards_in_parts() {
    check(&python("cursors_with_python.py"), 0);
    let jar = installed("java/postgresql.jar");
    let program = client("CursorsWithPgjdbc.java");
    check(&["java".to_owned(), "-cp".to_owned(), jar, program], 0);
}

#[test]
fn psycopg_sees_one_postgresql() {
    check(&python("with_psycopg.py"), 3_000_000);
}

#[test]
fn psycopg2_sees_one_postgresql() {
    check(&python("with_psycopg2.py"), 3_100_000);
}

#[test]
fn asyncpg_sees_one_postgresql() {
    check(&python("with_asyncpg.py"), 3_200_000);
}

#[test]
fn node_postgres_sees_one_postgresql() {
    check(&node(), 3_300_000);
}

#[test]
fn pgjdbc_sees_one_postgresql() {
    check(&java(), 3_400_000);
}

#[test]
fn psycopg_sees_the_same_over_tls() {
    check_over_tls(&python("with_psycopg.py"), "verify-full", 3_010_000);
}

#[test]
fn psycopg2_sees_the_same_over_tls() {
    check_over_tls(&python("with_psycopg2.py"), "verify-full", 3_110_000);
}

#[test]
fn asyncpg_sees_the_same_over_tls() {
    check_over_tls(&python("with_asyncpg.py"), "verify-full", 3_210_000);
}

#[test]
fn node_postgres_sees_the_same_over_tls() {
    check_over_tls(&node(), "no-verify", 3_310_000);
}

#[test]
fn pgjdbc_sees_the_same_over_tls() {
    check_over_tls(&java(), "require", 3_410_000);
}

#[test]
fn libpq_enters_and_cancels_over_tls_bound_to_its_channel_with_and_without_a_request() {
    let (proxy, authority) = tls::serve("require");
    let mut program = command(&python("with_tls.py"), 0, &proxy.target());
    program
        .env("PGHOST", "localhost")
        .env("PGSSLMODE", "verify-full")
        .env("PGSSLROOTCERT", authority);
    let told = printed(&mut program);
    let mut expected = String::new();
    for negotiation in ["postgres", "direct"] {
        for version in ["3.0", "latest"] {
            expected +=
                &format!("{negotiation} {version} encrypted Fatima Perez\ncancelled 57014\n");
        }
    }
    assert_eq!(told, expected);
}
