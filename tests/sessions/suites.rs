//! What third-party suites (`make clients`) have found, message by message.

use crate::{
    client::{Client, batch, query, shown},
    harness::{Proxy, Stage, observer, postgres, same, same_with, until},
};

/// What comes up to the end of the connection.
fn to_the_end(stage: &mut Stage) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some((tag, body)) = stage.client.frame() {
        seen.push(shown(tag, &body));
    }
    seen
}

const PARSED: &str = "select * from {t} where n <> $1";

/// A table of each way's own, with a row.
fn table(stage: &mut Stage, name: &str) -> String {
    let name = format!("{name}_{:?}", stage.way).to_lowercase();
    stage.query(&format!("create table {name} (n int, m int)"));
    stage.query(&format!("insert into {name} values (1, 2)"));
    name
}

/// Parse, Describe and Sync: what drivers call preparing.
fn prepare(stage: &mut Stage, name: &str, sql: &str) -> Vec<String> {
    stage.step(&batch().parse(name, sql).describe(name).sync().0, 1)
}

/// Column types in the answer, whose other parts differ by table.
fn types(answers: &[String]) -> Vec<String> {
    let wanted = |answer: &&String| !answer.starts_with("T ");
    answers.iter().filter(wanted).cloned().collect()
}

/// The rows alone: settings of a new backend may be told before them.
fn rows(answers: Vec<String>) -> impl Iterator<Item = String> {
    answers
        .into_iter()
        .filter(|answer| answer.starts_with("D "))
}

/// asyncpg: `test_prepare_statement_invalid`. The driver would take text for the bytes of an integer.
#[test]
fn a_described_statement_whose_columns_have_changed_is_refused_on_every_backend() {
    same(|stage| {
        let name = table(stage, "columns");
        let sql = PARSED.replace("{t}", &name);
        let mut seen = types(&prepare(stage, "a", &sql));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("a", &["0"]).sync().0, 1));
        }
        seen.extend(stage.query(&format!("alter table {name} alter m type text")));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("a", &["0"]).sync().0, 1));
            // PostgreSQL tells the parameters before it finds that the columns are not the same.
            seen.extend(stage.step(&batch().describe("a").sync().0, 1));
        }
        // What is parsed now is of the types that the table has now.
        seen.extend(types(&prepare(stage, "b", &sql)));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("b", &["0"]).sync().0, 1));
        }
        seen.extend(stage.query("begin"));
        seen.extend(stage.step(&batch().call("a", &["0"]).sync().0, 1));
        seen.extend(stage.query("rollback"));
        seen
    });
}

/// pgjdbc keeps the columns of the first portal that it described.
#[test]
fn a_statement_whose_portal_was_described_keeps_its_columns() {
    same(|stage| {
        let name = table(stage, "portals");
        let sql = PARSED.replace("{t}", &name);
        let mut seen = stage.step(&batch().parse("a", &sql).sync().0, 1);
        let first = batch()
            .bind("", "a", &["0"])
            .describe_portal("")
            .execute("", 0);
        seen.extend(types(&stage.step(&first.sync().0, 1)));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("a", &["0"]).sync().0, 1));
        }
        seen.extend(stage.query(&format!("alter table {name} alter m type text")));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("a", &["0"]).sync().0, 1));
        }
        seen
    });
}

/// asyncpg: `test_custom_codec_override_tuple`.
#[test]
fn a_described_statement_keeps_the_parameters_that_the_client_was_told() {
    same(|stage| {
        let name = table(stage, "parameters");
        let sql = format!("insert into {name} (n) values ($1)");
        let mut seen = prepare(stage, "a", &sql);
        seen.extend(stage.query(&format!("alter table {name} alter n type float8")));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("a", &["3"]).sync().0, 1));
            seen.extend(stage.step(&batch().call("a", &["3.5"]).sync().0, 1));
        }
        seen.extend(prepare(stage, "b", &sql));
        for _ in 0..3 {
            seen.extend(stage.step(&batch().call("b", &["4.5"]).sync().0, 1));
            // Many in one batch, on a backend that may not have it yet.
            let many = batch()
                .call("a", &["5"])
                .call("a", &["6"])
                .call("b", &["7.5"]);
            seen.extend(stage.step(&many.sync().0, 1));
        }
        seen.push(stage.query(&format!("select array_agg(n) from {name}"))[1].clone());
        seen
    });
}

/// asyncpg: `test_prepare_cache_invalidation_silent`.
#[test]
fn a_statement_is_parsed_for_the_tables_that_are_there_now() {
    same(|stage| {
        let name = table(stage, "recreated");
        let sql = PARSED.replace("{t}", &name);
        let mut seen = Vec::new();
        for kind in ["text", "date", "int"] {
            seen.extend(types(&prepare(stage, "a", &sql)));
            seen.extend(types(&prepare(stage, "b", &sql)));
            seen.extend(stage.step(&batch().close("a").close("b").sync().0, 1));
            stage.query(&format!("drop table {name}"));
            stage.query(&format!("create table {name} (n {kind}, m int)"));
        }
        seen
    });
}

/// pg_regress: `date`. A style replayed without its other half would write dates differently on another backend.
#[test]
fn a_date_style_that_is_set_in_part_is_whole_on_every_backend() {
    same(|stage| {
        let mut seen = Vec::new();
        let statements = [
            "set datestyle to sql",
            "set datestyle to dmy",
            "begin",
            "set datestyle to ymd",
            "set local datestyle to german",
            "commit",
            "begin; set datestyle to mdy; rollback",
            "set datestyle to iso",
            "set datestyle to postgres; set local datestyle to mdy",
            "reset datestyle",
            "set datestyle to sql; reset datestyle",
        ];
        for statement in statements {
            seen.extend(stage.query(statement));
            for _ in 0..2 {
                seen.extend(rows(stage.query("select date '2001-02-03'")));
                seen.extend(rows(stage.query("show datestyle")));
            }
        }
        seen
    });
    // What the client started with comes back: which of the two values is told in between is the server's.
    same_with(&[("datestyle", "Postgres, MDY")], |stage| {
        let mut seen = Vec::new();
        for statement in [
            "set datestyle to ymd",
            "reset datestyle",
            "set datestyle to sql",
        ] {
            stage.query(statement);
            for _ in 0..2 {
                seen.extend(rows(stage.query("select date '2001-02-03'")));
            }
        }
        seen
    });
}

/// pg_regress: `privileges`.
#[test]
fn another_session_authorization_ends_the_role() {
    let mut observer = observer();
    observer.ask(&query("create role suites_a superuser"));
    observer.ask(&query("create role suites_b"));
    same(|stage| {
        let mut seen = Vec::new();
        let statements = [
            "set session authorization suites_a",
            "set role suites_b",
            "reset session authorization",
            "set role suites_b",
            "reset role",
            "set role suites_b",
            "set session authorization suites_a",
            "set role suites_b",
            "set session authorization default",
        ];
        for statement in statements {
            seen.extend(stage.query(statement));
            for _ in 0..2 {
                let shown = "select session_user, current_user, current_setting('role')";
                seen.push(stage.query(shown)[1].clone());
            }
        }
        seen
    });
}

/// pg_regress: `privileges`. A session that set what only a superuser may, and is none any more, must neither fail on
/// another backend nor leave one that the next session cannot reset.
#[test]
fn settings_of_a_superuser_hold_for_whom_the_session_becomes() {
    observer().ask(&query("create role suites_c"));
    same(|stage| {
        let mut seen = Vec::new();
        let statements = [
            "set lo_compat_privileges = on",
            "set session authorization suites_c",
            "set work_mem = '7MB'",
            "set role none",
            "set lo_compat_privileges = off",
        ];
        for statement in statements {
            seen.extend(stage.query(statement));
            for _ in 0..2 {
                let shown = "select session_user, current_user, current_setting('lo_compat_privileges'), current_setting('work_mem')";
                seen.push(stage.query(shown)[1].clone());
            }
        }
        let mut next = Client::connect(stage.port, &[]);
        for _ in 0..4 {
            seen.push(next.value("select session_user, current_setting('lo_compat_privileges')"));
        }
        seen
    });
}

/// pg_regress: `stats_ext`.
#[test]
fn what_is_made_in_the_temporary_schema_stays_with_its_session() {
    same(|stage| {
        let name = table(stage, "temporaries");
        let mut seen = Vec::new();
        let statements = [
            format!("create statistics pg_temp.kept on n, m from {name}"),
            "create type pg_temp.color as enum ('red')".to_owned(),
            "create function pg_temp.one() returns int language sql as 'select 1'".to_owned(),
            "select 'red'::pg_temp.color, pg_temp.one()".to_owned(),
            "select pg_temp.one()".to_owned(),
            "drop statistics pg_temp.kept".to_owned(),
        ];
        for statement in &statements {
            let answers = stage.query(statement);
            seen.extend(
                answers
                    .into_iter()
                    .filter(|answer| !answer.starts_with('T')),
            );
        }
        seen
    });
}

/// asyncpg: `TestIntrospection`; Django's test databases. Backends that idle in the pool are connections, too.
#[test]
fn a_database_that_nobody_uses_any_more_can_be_dropped() {
    let server = postgres().port();
    let databases = format!(
        "[databases.\"*\"]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{server}?sslmode=disable\" }}\n"
    );
    let proxy = Proxy::with("size = 2", &databases);
    let mut admin = proxy.client();
    let use_it = |name: &str| Client::connect_to(proxy.port, name, &[]).value("select 1");
    let statements = [
        "create database suites_a",
        "create database suites_b template suites_a",
        "alter database suites_b rename to suites_c",
        "drop database suites_a",
        "drop database suites_c",
    ];
    for (at, statement) in statements.into_iter().enumerate() {
        match at {
            0 => {}
            1 => assert_eq!(use_it("suites_a"), "1"),
            2 => assert_eq!(use_it("suites_b"), "1"),
            3 => assert_eq!(use_it("suites_a"), "1"),
            _ => assert_eq!(use_it("suites_c"), "1"),
        }
        let answers = if at % 2 == 0 {
            admin.ask(&query(statement))
        } else {
            admin.ask(&batch().run(statement, &[]).sync().0)
        };
        let done = answers.iter().any(|answer| answer.starts_with("C "));
        assert!(done, "{statement}: {answers:?}");
    }
}

/// psycopg2: `test_copy_from_segfault`. A backend that went on waiting for data would keep its locks for ever.
#[test]
fn a_client_that_leaves_in_the_middle_of_copy_in_leaves_no_backend_behind() {
    let half_a_frame = [b'd', 0, 0];
    let ways_to_leave: [(&str, &[u8]); 4] = [
        ("terminate", &batch().bare(b'X').0),
        ("silently", &[]),
        ("within_a_header", &half_a_frame),
        ("within_a_message", &batch().copy_data("1\n2\n").0[..7]),
    ];
    for (name, last_words) in ways_to_leave {
        let proxy = Proxy::start("size = 1");
        let mut observer = observer();
        let table = format!("left_{name}");
        observer.ask(&query(&format!("create table {table} (n int)")));
        let mut client = proxy.client();
        client.send(&query(&format!("copy {table} from stdin")));
        client.until("G");
        client.send(&batch().copy_data("1\n").0);
        client.send(last_words);
        client.half_close();
        until(name, || {
            observer.value(&format!(
                "select count(*) from pg_stat_activity where query like 'copy {table} %'"
            )) == "0"
        });
        assert_eq!(
            observer.value(&format!("select count(*) from {table}")),
            "0",
            "{name}"
        );
        let mut next = proxy.client();
        assert_eq!(next.value("select 1"), "1");
    }
}

#[test]
fn a_message_that_has_no_place_in_copy_in_ends_the_session() {
    same(|stage| {
        let name = format!("misplaced_{:?}", stage.way).to_lowercase();
        stage.query(&format!("create table {name} (n int)"));
        stage
            .client
            .send(&query(&format!("copy {name} from stdin")));
        let mut seen = stage.client.until("G");
        stage
            .client
            .send(&batch().copy_data("1\n").query("select 1").0);
        seen.extend(to_the_end(stage));
        seen.push(observer().value(&format!("select count(*) from {name}")));
        seen
    });
}
