//! Programs written with the drivers that applications use see the same through Shardway as on one PostgreSQL:
//! wrong passwords, prepared statements whose keys live on different shards, transactions with savepoints, pipelines
//! and batches, COPY out, errors in every position, cancel, NULL and text outside ASCII.

use crate::harness::{assert_same, printed, shop};
use std::{path::Path, process::Command};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Runs the program on both targets; `first` is the first customer id that it may write.
fn check(program: &[String], first: u64) {
    let [direct, proxied] = shop().both().map(|target| {
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).arg(first.to_string());
        command.env(
            "NODE_PATH",
            format!("{ROOT}/target/clients/node/node_modules"),
        );
        target.apply(&mut command);
        printed(&mut command)
    });
    assert!(!direct.is_empty());
    assert_same(&direct, &proxied);
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

fn check_python(name: &str, first: u64) {
    check(&[installed("python/bin/python"), client(name)], first);
}

#[test]
fn psycopg_sees_one_postgresql() {
    check_python("with_psycopg.py", 3_000_000);
}

#[test]
fn psycopg2_sees_one_postgresql() {
    check_python("with_psycopg2.py", 3_100_000);
}

#[test]
fn asyncpg_sees_one_postgresql() {
    check_python("with_asyncpg.py", 3_200_000);
}

#[test]
fn node_postgres_sees_one_postgresql() {
    installed("node/node_modules/pg");
    check(&["node".to_owned(), client("with_pg.js")], 3_300_000);
}

#[test]
fn pgjdbc_sees_one_postgresql() {
    let jar = installed("java/postgresql.jar");
    check(
        &[
            "java".to_owned(),
            "-cp".to_owned(),
            jar,
            client("WithPgjdbc.java"),
        ],
        3_400_000,
    );
}
