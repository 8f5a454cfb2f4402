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
    let survey = runtime.block_on(inspect::survey(
        database,
        &database.snapshot.members,
        credentials,
        &roles,
    ));
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

/// What `check --connect` says can be mended: shard, severity, message and the statement that mends it.
fn drift(server: &Server, exit: i32) -> Vec<[String; 4]> {
    let file = server.directory.join("drift.toml");
    fs::write(&file, configuration(server)).unwrap();
    let ran = Command::new(env!("CARGO_BIN_EXE_shardway"))
        .args(["check", "--connect", "--output", "json", "--config"])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(ran.status.code(), Some(exit), "{ran:?}");
    let told: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    let text = |found: &serde_json::Value, key: &str| found[key].as_str().unwrap_or("-").to_owned();
    let findings = told["findings"].as_array().unwrap();
    findings
        .iter()
        .map(|found| ["shard", "severity", "message", "sql"].map(|key| text(found, key)))
        .filter(|[_, _, message, _]| message.contains(" of public."))
        .collect()
}

#[test]
#[expect(clippy::too_many_lines, reason = "one claim, told in its order")]
fn indexes_and_constraints_that_differ_are_found_with_what_mends_them() {
    let same = "
        CREATE TABLE customers (id bigint PRIMARY KEY, name text NOT NULL, age int, country text REFERENCES countries (code));
        CREATE TABLE visits (at timestamptz, tenant_id int, note text) PARTITION BY RANGE (tenant_id);
        CREATE TABLE visits_0 PARTITION OF visits DEFAULT;
        CREATE INDEX \"at, of\" ON visits (at);
    ";
    let first = format!(
        "CREATE TABLE countries (code text PRIMARY KEY, name text); {same}
        CREATE INDEX names ON customers (lower(name)) WHERE age > 5;
        CREATE INDEX ages ON customers (age);
        CREATE UNIQUE INDEX own ON customers (id, name);
        CREATE INDEX notes ON visits (note);
        ALTER TABLE customers ADD CONSTRAINT young CHECK (age < 200) NOT VALID;
        ALTER TABLE customers ADD CONSTRAINT old CHECK (age >= 0);
        ALTER TABLE customers ADD CONSTRAINT \"Named\" UNIQUE (id, age) DEFERRABLE;"
    );
    let second = format!(
        "CREATE TABLE countries (code text UNIQUE, name text); {same}
        CREATE INDEX names ON customers (lower(name)) WHERE age > 5;
        CREATE INDEX ages ON customers (age DESC);
        ALTER TABLE customers ADD CONSTRAINT young CHECK (age < 200);
        ALTER TABLE customers ALTER COLUMN name DROP NOT NULL;
        ALTER TABLE visits ADD CONSTRAINT noted CHECK (note <> '');
        ALTER TABLE countries ALTER COLUMN name SET NOT NULL;
        CREATE TABLE loose (a int UNIQUE);"
    );
    let (server, _settings) = start([&first, &second]);
    server.psql("\\c s1\nDROP TABLE loose");
    let found = drift(&server, 3);
    let shown: Vec<String> = found
        .iter()
        .map(|[shard, severity, message, _]| format!("{shard} {severity}: {message}"))
        .collect();
    assert_eq!(
        shown,
        [
            "s0 error: constraint countries_code_key of public.countries is missing here, and there on s1",
            "s0 error: NOT NULL of public.countries.name is missing here, and there on s1",
            "s0 error: constraint young of public.customers is not valid",
            "s0 error: constraint noted of public.visits is missing here, and there on s1",
            "s1 error: constraint countries_pkey of public.countries is missing here, and there on s0",
            "s1 error: constraint Named of public.customers is missing here, and there on s0",
            "s1 error: constraint old of public.customers is missing here, and there on s0",
            "s1 warning: index ages of public.customers is here CREATE INDEX ages ON public.customers USING btree (age DESC) \
             and on s0 CREATE INDEX ages ON public.customers USING btree (age)",
            "s1 error: index own of public.customers is missing here, and there on s0",
            "s1 error: NOT NULL of public.customers.name is missing here, and there on s0",
            "s1 warning: index notes of public.visits is missing here, and there on s0",
        ]
    );
    for [shard, _, message, sql] in &found {
        assert_ne!(sql, "-", "{message}");
        server.psql(&format!("\\c {shard}\n{sql}"));
    }
    assert_eq!(drift(&server, 0), Vec::<[String; 4]>::new());
    // An index whose building did not end.
    server.psql(
        "\\c s1\nUPDATE pg_index SET indisvalid = false WHERE indexrelid = 'names'::regclass",
    );
    let found = drift(&server, 0);
    let [[shard, severity, message, sql]] = &*found else {
        panic!("{found:?}")
    };
    assert_eq!(
        [&**shard, severity, message, sql],
        [
            "s1",
            "warning",
            "index names of public.customers is not valid",
            "REINDEX INDEX public.names;"
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

/// What each table of a shard sets off by itself.
const GUARDED: &str = "
    CREATE TABLE customers (id bigint PRIMARY KEY, name text, seen timestamptz);
    CREATE FUNCTION seen() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.seen := now(); RETURN NEW; END';
    CREATE TRIGGER seen BEFORE INSERT OR UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION seen();
    CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := 1; RETURN NEW; END';
    CREATE TRIGGER move BEFORE UPDATE ON customers FOR EACH ROW EXECUTE FUNCTION move();
    CREATE TRIGGER off BEFORE DELETE ON customers FOR EACH ROW EXECUTE FUNCTION move();
    ALTER TABLE customers DISABLE TRIGGER off;
    CREATE TABLE countries (code text PRIMARY KEY, visit uuid UNIQUE, tenant int);
    CREATE TABLE visits (
        tenant_id int, id serial, number bigint GENERATED ALWAYS AS IDENTITY, token uuid DEFAULT gen_random_uuid(),
        at timestamptz DEFAULT now(), PRIMARY KEY (tenant_id, id)
    ) PARTITION BY HASH (tenant_id);
    CREATE TABLE visits_0 PARTITION OF visits FOR VALUES WITH (modulus 1, remainder 0);
    CREATE UNIQUE INDEX ON visits_0 (number);
";

#[test]
fn what_acts_on_one_shard_only_is_found() {
    let parted = "
        CREATE TABLE visits (tenant_id int, id serial, number bigint GENERATED ALWAYS AS IDENTITY,
            token uuid DEFAULT gen_random_uuid(), at timestamptz DEFAULT now());
        CREATE UNIQUE INDEX lowered ON visits ((abs(id)));
        CREATE UNIQUE INDEX fine ON visits (at, tenant_id) WHERE id > 5;
        CREATE RULE elsewhere AS ON DELETE TO visits DO INSTEAD NOTHING;
        CREATE FUNCTION allowed(int) RETURNS bool LANGUAGE sql AS 'SELECT true';
        CREATE POLICY own ON visits USING (tenant_id = current_setting('app.tenant')::int);
        CREATE POLICY asks ON visits USING (allowed(tenant_id));
        ALTER TABLE visits ENABLE ROW LEVEL SECURITY;
    ";
    let schema = GUARDED.split("CREATE TABLE visits").next().unwrap_or("");
    let first = format!(
        "{schema}{parted}
        ALTER TABLE countries ADD FOREIGN KEY (tenant) REFERENCES customers ON DELETE CASCADE;
        ALTER SEQUENCE visits_number_seq INCREMENT BY 2 START WITH 1 RESTART;"
    );
    let second = format!(
        "{schema}{parted}
        ALTER SEQUENCE visits_number_seq INCREMENT BY 2 START WITH 2 RESTART;"
    );
    let (server, settings) = start([&first, &second]);
    let told: Vec<String> = findings(&settings);
    let expected = [
        "trigger move of public.customers may change the key or reach other rows: what sets it off is refused, unless per_shard lists public.customers.move",
        "foreign key countries_tenant_fkey to public.customers changes public.countries on one shard only: what sets it off is refused, unless per_shard lists public.customers.countries_tenant_fkey",
        "policy asks of public.visits looks beyond its row: statements on it are refused, unless per_shard lists public.visits.asks",
        "rule elsewhere of public.visits rewrites writes to public.visits",
        "lowered of public.visits does not contain the shard key, so that no shard sees what is taken on another: writes of its columns are refused, unless per_shard lists public.visits.lowered",
    ];
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    for line in &expected[..3] {
        assert!(told.contains(&format!("-: {line}")), "{line}\n{told:#?}");
    }
    let database = &settings.databases["app"];
    let mut snapshot = Snapshot::clone(&database.snapshot);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(inspect::complete_snapshot(database, None, &mut snapshot));
    let visits = snapshot.table("public", "visits").unwrap();
    assert_eq!(visits.effects.fresh, ["id", "number", "token"]);

    server.psql("\\c s1\nALTER SEQUENCE visits_number_seq START WITH 3 RESTART");
    // Sequences that may meet are no fault: proxies give the numbers of one.
    assert_eq!(findings(&settings).len(), expected.len());
    server.psql("\\c s0\nALTER TABLE visits DROP COLUMN tenant_id CASCADE, ADD tenant_id int GENERATED ALWAYS AS (id + 1) STORED");
    let told = findings(&settings);
    assert!(
        told.iter().any(|line| line.starts_with(
            "s0: public.visits.tenant_id is computed by the server from other columns"
        )),
        "{told:#?}"
    );
}

#[test]
fn what_the_configuration_lists_may_act_on_each_shard() {
    let server = Server::start();
    server.psql("CREATE ROLE app; CREATE DATABASE s0; CREATE DATABASE s1;");
    for shard in SHARDS {
        server.psql(&format!(
            "\\c {shard}\n{GUARDED}\nGRANT SELECT ON ALL TABLES IN SCHEMA public TO app;"
        ));
    }
    let listed = r#"per_shard = ["customers.move", "public.visits.*", "*.visits_0.*"]"#;
    let text = configuration(&server).replacen("control =", &format!("{listed}\ncontrol ="), 1);
    let settings =
        load_str("test.toml", &text, Path::new(".")).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(findings(&settings), Vec::<String>::new());
}

#[test]
fn looking_into_a_database_runs_nothing_of_its_owners() {
    // What PostgreSQL would take for its own operators, did a search path of the database's decide.
    let trap = "
        CREATE SCHEMA trap; CREATE TABLE trap.caught (who name);
        CREATE FUNCTION trap.same(oid, oid) RETURNS bool LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO trap.caught VALUES (current_user); RETURN $1::text = $2::text; END $$;
        CREATE OPERATOR trap.= (LEFTARG = oid, RIGHTARG = oid, FUNCTION = trap.same);
    ";
    let (server, settings) = start([&format!("{GOOD}{trap}"), GOOD]);
    server.psql("ALTER DATABASE s0 SET search_path = trap, pg_catalog, public");
    findings(&settings);
    let shard = &settings.databases["app"].shards[0];
    let credentials = inspect::credentials_for(&settings, &settings.databases["app"]).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let limit = std::time::Duration::from_secs(20);
    runtime
        .block_on(inspect::code(&shard.primary, credentials, limit))
        .unwrap();
    server
        .psql("\\c s0\nDO $$ BEGIN ASSERT NOT EXISTS (SELECT FROM trap.caught), 'caught'; END $$");
}
