//! `shardway check --connect` and the completion of a snapshot, against a real server.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod server;

use server::Server;
use shardway::{
    catalog::snapshot::{Placement, Snapshot},
    config::{load::load_str, settings::Settings},
    inspect,
};
use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

const SHARDS: [&str; 2] = ["s0", "s1"];
const GOOD: &str = "
    CREATE TABLE customers (id bigint PRIMARY KEY, name text);
    CREATE TABLE visits (at timestamptz, tenant_id int);
    CREATE TABLE countries (code text PRIMARY KEY);
";

/// Two shards on one server, each a database.
fn configuration(server: &Server) -> String {
    let shard = |name: &str| {
        format!(
            "shards.{name} = {{ primary = \"postgres:///{name}?host={}\" }}\n",
            server.directory.display()
        )
    };
    let groups = r#"
        control = { user = "postgres" }
        tables = { reference = ["public.countries"] }
        [databases.app.groups.customers]
        method = "hash"
        key_type = "bigint"
        key_column = "tenant_id"
        tables = { "public.customers" = "id" }
        [users.app]
        auth = "trust"
    "#;
    format!("[databases.app]\n{}{}{groups}", shard("s0"), shard("s1"))
}

fn start(schemas: [&str; 2]) -> (Server, Settings) {
    let server = Server::start();
    server.psql("CREATE ROLE app; CREATE DATABASE s0; CREATE DATABASE s1;");
    for (shard, schema) in SHARDS.iter().zip(schemas) {
        server.psql(&format!(
            "\\c {shard}\n{schema}\nGRANT SELECT ON ALL TABLES IN SCHEMA public TO app;"
        ));
    }
    let settings = load_str("test.toml", &configuration(&server), Path::new("."))
        .unwrap_or_else(|errors| panic!("{errors}"));
    (server, settings)
}

fn findings(settings: &Settings) -> Vec<String> {
    let database = &settings.databases["app"];
    let credentials = inspect::credentials_for(settings, database).unwrap();
    let roles = ["app".to_owned()];
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let survey = runtime.block_on(inspect::survey(database, credentials, &roles));
    let findings = inspect::judge(&database.snapshot, &survey, &roles);
    let bad = findings
        .iter()
        .filter(|finding| finding.severity() > inspect::Severity::Note);
    bad.map(|finding| format!("{}: {finding}", finding.shard().unwrap_or("-")))
        .collect()
}

#[test]
fn servers_that_fit_pass_and_complete_the_snapshot() {
    let (server, settings) = start([GOOD, GOOD]);
    assert_eq!(findings(&settings), Vec::<String>::new());

    let database = &settings.databases["app"];
    let mut snapshot = Snapshot::clone(&database.snapshot);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(inspect::complete_snapshot(database, None, &mut snapshot));
    assert_eq!(
        snapshot.table("public", "customers").unwrap().columns,
        ["id", "name"]
    );
    let visits = snapshot.table("public", "visits").unwrap();
    assert!(
        matches!(&visits.placement, Placement::Sharded { key_column, .. } if key_column == "tenant_id")
    );
    assert_eq!(visits.columns, ["at", "tenant_id"]);

    let file = server.directory.join("shardway.toml");
    fs::write(&file, configuration(&server)).unwrap();
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_shardway"));
        command
            .args(["check", "--output", "json", "--config"])
            .arg(&file)
            .args(more);
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap()
            .code()
    };
    assert_eq!(run(&["--connect"]), Some(0));
    server.psql("\\c s1\nDROP TABLE countries");
    assert_eq!(run(&[]), Some(0));
    assert_eq!(run(&["--connect"]), Some(3));
    fs::write(&file, "[sever]").unwrap();
    assert_eq!(run(&[]), Some(3));
    fs::remove_file(&file).unwrap();
    assert_eq!(run(&[]), Some(2));
}

#[test]
fn servers_that_do_not_fit_are_told_apart() {
    let other = "
        CREATE TABLE customers (id numeric, name text);
        CREATE TABLE loose (a int);
        CREATE TABLE visits (tenant_id int, at timestamptz);
    ";
    let (server, settings) = start([GOOD, other]);
    server.psql("\\c s0\nREVOKE SELECT ON countries FROM app");
    let mut found = findings(&settings);
    found.sort();
    assert_eq!(
        found,
        [
            "s0: role app may not SELECT from public.countries",
            "s1: public.customers.id is of type numeric, which is no bigint key",
            "s1: table public.customers differs from that on s0: column id is numeric here and bigint there",
            "s1: table public.loose is in no group or list: statements on it are refused",
            "s1: table public.visits differs from that on s0: column at is missing or at another place",
            "s1: there is no table public.countries",
        ]
    );
}

#[test]
fn a_server_that_is_not_there_is_named() {
    let (server, settings) = start([GOOD, GOOD]);
    server.psql("DROP DATABASE s1");
    assert_eq!(
        findings(&settings),
        ["s1: the primary cannot be asked: it said 3D000: database \"s1\" does not exist"]
    );
}
