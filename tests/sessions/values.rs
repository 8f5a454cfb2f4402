//! Every way to make a setting, and what ends it: the values that a session sees are PostgreSQL's, on any backend.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, Stage, Way, observer, postgres, same, same_with},
};

const SHOWN: &str = "select current_setting('timezone'), current_setting('work_mem'), current_setting('search_path'), \
     current_setting('datestyle'), current_setting('app.one', true), current_setting('app.two', true), \
     current_setting('statement_timeout'), current_setting('default_transaction_isolation'), current_setting('client_encoding')";

/// Runs each, and shows the settings on two backends after it, without what is told of them.
fn each(stage: &mut Stage, statements: &[&str]) -> Vec<String> {
    let mut seen = Vec::new();
    let plain = |lines: Vec<String>| lines.into_iter().filter(|line| !line.starts_with("S "));
    for statement in statements {
        let answer: Vec<_> = plain(stage.query(statement)).collect();
        seen.push(format!("{statement}: {answer:?}"));
        stage.step(&batch().sync().0, 1);
        for _ in 0..2 {
            let shown: Vec<_> = plain(stage.query(SHOWN))
                .filter(|line| !line.starts_with('T'))
                .collect();
            seen.push(format!("{statement}: {shown:?}"));
        }
    }
    stage.assert_moves();
    seen
}

const EVERY_FORM: &[&str] = &[
    "set time zone 'Asia/Tokyo'",
    "set time zone -3.5",
    "set time zone local",
    "set time zone default",
    "set timezone = 'CET'",
    "reset time zone",
    "set names 'LATIN1'",
    "set names default",
    "set schema 'pg_catalog'",
    "set schema ''",
    "set search_path = \"A b\", 'it''s', \"quote\"\"d\", public",
    "set search_path to \"$user\", pg_temp",
    "set search_path = a, \"\", b",
    "set search_path = ''",
    "reset search_path",
    "set datestyle = sql, dmy",
    "set datestyle = iso",
    "set datestyle = dmy; set datestyle = postgres",
    "set datestyle = sql",
    "set datestyle to default",
    "set session statement_timeout = 90000",
    "set statement_timeout = '1.5min'",
    "set statement_timeout = 0",
    "set work_mem = 4096",
    "set work_mem = '5 MB'",
    "set \"work_mem\" = '6MB'",
    "set WORK_MEM to '7MB'",
    "set work_mem to default",
    "set session characteristics as transaction isolation level serializable, read only",
    "set session characteristics as transaction isolation level read committed, read write",
    "set app.one = 'x'; set app.two to 'y'",
    "set app.one = 'it''s \\ \"quoted\"'",
    "set app.two = E'tab\\tnew\\nline'",
    "set \"app\".\"two\" = 'quoted name'",
    "set APP.One = 'Folded'",
    "reset app.one",
    "reset app.two",
    "set app.one = 1.5, 2, 'three'",
    "set app.one to default",
    "select set_config('search_path', '', false)",
    "select set_config('search_path', '\"a,b\", c, \"it''s\"', false)",
    "select pg_catalog.set_config('search_path', 'public', false)",
    "select set_config('app.one', 'a', false)",
    "select set_config('APP.ONE', 'b', false)",
    "select pg_catalog.set_config('work_mem', '8MB', false) as made",
    "select set_config('work_mem', 'nonsense', false)",
    "select set_config('nonsense', 'x', false)",
    "set nonsense = 1",
    "set work_mem = 'nonsense'",
    "set local work_mem = '9MB'",
    "set transaction isolation level serializable",
    "reset nonsense",
    "reset all",
    "set app.one = 'again'",
    "discard all",
];

#[test]
fn every_form_of_set_means_what_it_means_on_postgresql() {
    same(|stage| each(stage, EVERY_FORM));
}

#[test]
fn settings_that_cannot_be_told_elsewhere_keep_their_backend() {
    for statement in [
        "set time zone interval '+05:30' hour to minute",
        "set search_path from current",
        "select set_config('app.' || 'one', 'x', false)",
        "select set_config('app.one', null, false)",
        "explain analyze select set_config('work_mem', '5MB', false)",
        "set seed = 0.5",
        "select setseed(0.5)",
    ] {
        same(|stage| {
            let mut seen: Vec<String> = vec![stage.query("set search_path = x, public").concat()];
            seen.push(stage.query(statement).last().unwrap().clone());
            for _ in 0..3 {
                seen.extend(stage.query(SHOWN));
            }
            let pids: Vec<_> = (0..3)
                .map(|_| stage.query("select pg_backend_pid()")[1].clone())
                .collect();
            assert!(
                pids[0] == pids[1] && pids[1] == pids[2],
                "{statement} in {:?}: {pids:?}, after {seen:#?}",
                stage.way
            );
            seen
        });
    }
}

#[test]
fn every_form_of_set_goes_back_to_what_the_client_started_with() {
    let settings = [
        ("timezone", "Europe/Paris"),
        (
            "options",
            "-c work_mem=3MB -c app.one=started\\ with\\ \\\\ -capp.two= --search-path=\"$user\",x -c statement_timeout=77s",
        ),
        ("datestyle", "German"),
        ("client_encoding", "LATIN1"),
    ];
    same_with(&settings, |stage| each(stage, EVERY_FORM));
}

const IN_TRANSACTIONS: &[&str] = &[
    "begin",
    "set local work_mem = default",
    "set local timezone to default",
    "set local work_mem = '9MB'",
    "set local work_mem = default",
    "commit",
    "begin",
    "set work_mem = '10MB'",
    "set local work_mem = '11MB'",
    "reset work_mem",
    "commit",
    "begin",
    "set local app.one = 'l'",
    "set app.one from current",
    "commit",
    "begin",
    "set app.two = 't'",
    "reset all",
    "rollback",
    "begin",
    "set local work_mem = '12MB'",
    "set work_mem = '13MB'",
    "rollback",
    "begin",
    "set work_mem = '14MB'",
    "set local work_mem = '15MB'",
    "commit",
    "begin",
    "select set_config('app.one', 's', false), set_config('app.two', 'u', true)",
    "savepoint a",
    "select set_config('app.one', 'inner', true)",
    "release a",
    "savepoint b",
    "set app.two = 'b'",
    "savepoint b",
    "set app.two = 'bb'",
    "rollback to b",
    "rollback to b",
    "release b",
    "rollback to b",
    "commit",
    "begin",
    "savepoint c",
    "set local timezone = 'UTC'",
    "set time zone 'CET'",
    "select 1/0",
    "rollback to c",
    "set app.one = 'after'",
    "commit",
    "begin; set work_mem = '16MB'; rollback; set app.one = 'outside'",
    "begin; set work_mem = '17MB'; savepoint a; set work_mem = '18MB'; rollback to a; commit",
    "set work_mem = '19MB'; set work_mem = '20MB'; select 1/0",
    "start transaction; set timezone = 'UTC'; commit; set timezone = 'CET'; select 1/0",
    "set local work_mem = '21MB'; set local app.two = 'implicit'",
    "begin; set datestyle = german",
    "savepoint a; set datestyle = ymd; set local datestyle = sql; rollback to a",
    "set local datestyle = iso",
    "commit",
    "begin; set datestyle = mdy",
    "rollback",
];

#[test]
fn local_settings_and_defaults_in_transactions_are_postgresqls() {
    let play = |stage: &mut Stage| {
        let mut seen = Vec::new();
        for statement in IN_TRANSACTIONS {
            let plain = |lines: Vec<String>| -> Vec<String> {
                lines
                    .into_iter()
                    .filter(|line| !line.starts_with("S ") && !line.starts_with('T'))
                    .collect()
            };
            seen.push(format!("{statement}: {:?}", plain(stage.query(statement))));
            for _ in 0..2 {
                seen.push(format!("{statement}: {:?}", plain(stage.query(SHOWN))));
            }
        }
        seen
    };
    same(play);
    let settings = [
        ("work_mem", "3MB"),
        ("timezone", "Asia/Tokyo"),
        ("options", "-c app.two=base"),
    ];
    same_with(&settings, play);
}

#[test]
fn a_default_in_the_middle_of_a_message_or_pipeline_is_the_clients_own() {
    let settings = [("work_mem", "3MB"), ("options", "-c app.one=base")];
    same_with(&settings, |stage| {
        let mut seen =
            stage.query("set work_mem = '5MB'; reset work_mem; select current_setting('work_mem')");
        seen.extend(stage.query("set app.one = 'x'; set app.one to default; show app.one"));
        seen.extend(stage.query("begin; set local work_mem to default; show work_mem; commit"));
        let piped = batch()
            .run("set work_mem = '6MB'", &[])
            .run("reset work_mem", &[])
            .run("show work_mem", &[])
            .run("set app.one = 'y'", &[])
            .run("set app.one to default", &[])
            .run("show app.one", &[])
            .sync();
        seen.extend(stage.step(&piped.0, 1));
        seen.extend(stage.query("show work_mem"));
        seen
    });
}

#[test]
fn long_values_are_told_whole() {
    let long = "long \\ 'value' ".repeat(20_000);
    let literal = long.replace('\'', "''");
    same(|stage| {
        let mut seen = stage.query(&format!("set app.one = '{literal}'"));
        for _ in 0..3 {
            seen.extend(stage.query(
                "select md5(current_setting('app.one')), length(current_setting('app.one'))",
            ));
        }
        let path: Vec<String> = (0..300).map(|at| format!("\"Schema {at}\"")).collect();
        seen.extend(stage.query(&format!("set search_path = {}", path.join(", "))));
        for _ in 0..3 {
            seen.extend(stage.query("select md5(current_setting('search_path'))"));
        }
        seen
    });
}

#[test]
fn several_settings_in_one_select_follow_the_session() {
    same(|stage| {
        let mut seen = stage.query(
            "select set_config('app.one', 'x', false), set_config('work_mem', '5MB', false)",
        );
        seen.extend(stage.query(SHOWN));
        seen.extend(stage.query(SHOWN));
        seen.extend(
            stage.step(
                &batch()
                    .run(
                        "select set_config($1, $2, $3::bool)",
                        &["app.two", "z", "false"],
                    )
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.query(SHOWN));
        seen.extend(stage.query(SHOWN));
        seen.extend(stage.query("select set_config(name, '9s', false) from pg_settings where name = 'statement_timeout'"));
        seen.extend(stage.query(SHOWN));
        seen.extend(stage.query(SHOWN));
        seen
    });
}

#[test]
fn who_a_session_is_follows_it_and_never_leaks() {
    let mut admin = observer();
    for sql in [
        "create role lesser",
        "create role \"Odd \"\"name\"",
        "create role other login",
    ] {
        admin.ask(&query(sql));
    }
    let who = "select current_user, session_user, current_setting('role'), current_setting('is_superuser')";
    let statements = [
        "set role lesser",
        "set role 'Odd \"name'",
        "set role none",
        "set local role lesser",
        "set session authorization other",
        "set role lesser",
        "set session authorization default",
        "reset role",
        "begin",
        "set role lesser",
        "savepoint a",
        "set role none",
        "rollback to a",
        "rollback",
        "begin",
        "set local role lesser",
        "set session authorization other",
        "commit",
        "reset session authorization",
        "set role lesser",
        "reset all",
        "discard all",
    ];
    same(|stage| {
        let mut seen = Vec::new();
        for statement in statements {
            let mut open = false;
            for sql in [statement, who, who] {
                let answer: Vec<_> = stage
                    .query(sql)
                    .into_iter()
                    .filter(|line| !line.starts_with("S "))
                    .collect();
                open = answer.last().is_some_and(|last| last != "Z I");
                seen.push(format!("{statement}: {answer:?}"));
            }
            if open {
                continue;
            }
            let nobody = Client::connect(stage.port, &[]).value(who);
            assert_eq!(
                nobody, "postgres|postgres|none|on",
                "{statement}: {:?}",
                stage.way
            );
        }
        seen
    });
}

#[test]
fn defaults_of_role_and_database_hold_until_the_session_says_otherwise() {
    let mut admin = observer();
    for sql in [
        "create role defaulted login superuser",
        "alter role defaulted set work_mem = '33MB'",
        "alter role defaulted set search_path = own, public",
        "create database defaults",
        "alter database defaults set timezone = 'Asia/Tokyo'",
        "alter role defaulted in database defaults set app.one = 'both'",
    ] {
        admin.ask(&query(sql));
    }
    let server = postgres().port();
    let databases = format!(
        "[databases.defaults]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{server}/defaults?sslmode=disable\" }}\n\
         [users.defaulted]\nauth = \"trust\"\n"
    );
    let statements = [
        "set work_mem = '5MB'",
        "reset work_mem",
        "set timezone = 'CET'",
        "set timezone to default",
        "set app.one = 'mine'",
        "reset app.one",
        "set search_path = x",
        "reset all",
        "discard all",
    ];
    let play = |port: u16| {
        let mut client = Client::connect_as(
            port,
            "defaulted",
            "defaults",
            &[("statement_timeout", "5s")],
        );
        let mut other = Client::connect_as(port, "defaulted", "defaults", &[]);
        let mut seen = vec![client.value(SHOWN), other.value(SHOWN)];
        for statement in statements {
            seen.push(
                client
                    .ask(&query(statement))
                    .iter()
                    .any(|line| line.starts_with('E'))
                    .to_string(),
            );
            seen.push(client.value(SHOWN));
            seen.push(other.value(SHOWN));
        }
        seen
    };
    let expected = play(server);
    for pool in ["size = 1", "size = 2", "mode = \"session\""] {
        assert_eq!(play(Proxy::with(pool, &databases).port), expected, "{pool}");
    }
}

#[test]
fn a_custom_setting_that_was_never_made_is_not_there() {
    // Where the setting was made PostgreSQL says '' after RESET, elsewhere nothing: the session says which it is.
    let mut stage = Stage::open(Way::Alternating, &[]);
    stage.query("set app.made = 'x'");
    stage.query("reset app.made");
    for _ in 0..3 {
        let seen = stage.query("select coalesce(current_setting('app.made', true), 'null')");
        assert!(["D ", "D null"].contains(&seen[1].as_str()), "{seen:?}");
    }
}
