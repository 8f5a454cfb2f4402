//! What a session sets is its own and stays with it; what a statement means follows it.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, Stage, same, same_with},
};

const SHOWN: &str = "select current_setting('timezone'), current_setting('work_mem'), current_setting('search_path'), \
                     current_setting('application_name'), current_setting('app.user', true), current_user";

/// Runs each, and shows the settings on two backends after it.
fn each(stage: &mut Stage, statements: &[&str]) -> Vec<String> {
    let mut seen = Vec::new();
    for statement in statements {
        seen.extend(stage.query(statement));
        seen.extend(stage.step(&batch().sync().0, 1));
        for _ in 0..2 {
            let shown = stage.query(SHOWN);
            seen.push(format!(
                "{statement}: {:?}",
                shown.iter().find(|line| line.starts_with("D "))
            ));
        }
    }
    stage.assert_moves();
    seen
}

#[test]
fn settings_follow_the_session() {
    let statements = [
        "set timezone to 'Asia/Tokyo'",
        "set session search_path = \"A B\", public, 'x''y'",
        "set application_name = 'it''s \\ me'",
        "set app.user = 'x'",
        "select set_config('work_mem', '7MB', false)",
        "set local work_mem = '9MB'",
        "reset timezone",
        "set timezone = default",
        "set search_path = ''",
        "set search_path to default",
        "set work_mem = '11MB'; select 1/0",
        "set work_mem = '12MB'; set timezone = 'nowhere'",
        "set work_mem = '13MB'; set timezone = 'CET'",
        "reset all",
        "set work_mem = '14MB'",
        "discard all",
    ];
    same(|stage| each(stage, &statements));
    same_with(
        &[
            ("timezone", "CET"),
            ("work_mem", "3MB"),
            ("application_name", "started"),
        ],
        |stage| {
            // RESET is told as the server's value first, then as the client's own.
            each(stage, &statements)
                .into_iter()
                .filter(|line| !line.starts_with("S "))
                .collect()
        },
    );
}

#[test]
fn settings_of_a_transaction_end_as_it_does() {
    let statements = [
        "begin",
        "set timezone = 'CET'",
        "set local work_mem = '9MB'",
        "rollback",
        "begin",
        "set timezone = 'CET'",
        "set local work_mem = '9MB'",
        "commit",
        "begin",
        "set local work_mem = '9MB'",
        "set timezone = 'UTC'",
        "savepoint a",
        "set timezone = 'Asia/Tokyo'",
        "set local app.user = 'inner'",
        "rollback to a",
        "set work_mem = '10MB'",
        "savepoint b",
        "reset timezone",
        "rollback to b",
        "release a",
        "commit",
        "begin",
        "set work_mem = '20MB'",
        "select 1/0",
        "rollback",
        "begin",
        "set work_mem = '21MB'",
        "commit and chain",
        "set work_mem = '22MB'",
        "rollback and chain",
        "set work_mem = '23MB'",
        "rollback",
    ];
    same(|stage| {
        let mut seen = Vec::new();
        for statement in statements {
            seen.extend(stage.query(statement));
            let shown = stage.query(SHOWN);
            seen.push(format!("{statement}: {shown:?}"));
        }
        seen
    });
}

#[test]
fn settings_made_in_the_extended_protocol_hold_when_confirmed() {
    same(|stage| {
        let mut seen = stage.step(
            &batch()
                .run("set work_mem = '5MB'", &[])
                .run("select 1/0", &[])
                .sync()
                .0,
            1,
        );
        seen.extend(stage.query(SHOWN));
        seen.extend(
            stage.step(
                &batch()
                    .run("set work_mem = '6MB'", &[])
                    .run(SHOWN, &[])
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.query(SHOWN));
        seen.extend(
            stage.step(
                &batch()
                    .parse("w", "set work_mem = '8MB'")
                    .call("w", &[])
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.query(SHOWN));
        seen.extend(
            stage.step(
                &batch()
                    .run("select set_config('work_mem', $1, false)", &["9MB"])
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.step(&batch().sync().0, 1));
        seen
    });
}

#[test]
fn a_prepared_statement_means_what_the_settings_say_when_it_is_bound() {
    same(|stage| {
        let way = format!("{:?}", stage.way).to_lowercase();
        for schema in ["one", "two"] {
            stage.query(&format!("create schema {schema}_{way}; create table {schema}_{way}.t as select '{schema}' as t"));
        }
        stage.query(&format!("set search_path = one_{way}"));
        let mut seen = stage.step(
            &batch()
                .parse("s", "select t from t")
                .call("s", &[])
                .sync()
                .0,
            1,
        );
        stage.query(&format!("set search_path = two_{way}"));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen.extend(
            stage.step(
                &batch()
                    .parse("s2", "select t from t")
                    .call("s2", &[])
                    .call("s", &[])
                    .sync()
                    .0,
                1,
            ),
        );
        seen.into_iter()
            .filter(|line| !line.starts_with('T'))
            .collect()
    });
}

#[test]
fn nobody_gets_what_another_has_set() {
    let proxy = Proxy::start("size = 1");
    let mut clean = proxy.client();
    clean.ask(&query("create role lowly"));
    let expected = clean.ask(&query(SHOWN));
    let leaks = [
        "set work_mem = '33MB'",
        "set role lowly",
        "set session authorization lowly",
        "select set_config('work_mem', '34MB', false)",
        "select set_config('work' || '_mem', '35MB', false)",
        "do $$ begin perform set_config('work_mem', '36MB', false); set role lowly; end $$",
        "set search_path = pg_catalog; create temp table pinned_here (n int)",
        "begin; set work_mem = '37MB'",
        "set work_mem = '38MB'; select 1/0",
        "create function pg_temp.hidden() returns void language sql as $$ select set_config('work_mem', '39MB', false) $$",
        "listen everything",
        "select pg_advisory_lock(77)",
        "prepare mine as select 1",
        "declare c cursor with hold for select 1",
        "set app.user = 'me'",
    ];
    for leak in leaks {
        let mut other = proxy.client();
        other.ask(&query(leak));
        drop(other);
        assert_eq!(clean.ask(&query(SHOWN)), expected, "{leak}");
    }
    let state = "select (select count(*) from pg_locks where locktype = 'advisory'), (select count(*) from pg_prepared_statements \
                 where name = 'mine'), (select count(*) from pg_listening_channels()), (select count(*) from pg_cursors where is_holdable)";
    assert_eq!(clean.value(state), "0|0|0|0");
    clean.ask(&query("drop role lowly"));
}

#[test]
fn what_cannot_be_carried_keeps_its_backend() {
    same(|stage| {
        let mut seen = stage.query("create temp table mine as select 5 as n");
        seen.extend(stage.query("select n from mine"));
        seen.extend(stage.query("prepare p as select n + 1 from mine"));
        seen.extend(stage.query("execute p"));
        seen.extend(stage.query("declare h cursor with hold for select n from mine"));
        seen.extend(stage.query("fetch h"));
        seen.extend(stage.query("select pg_advisory_lock(78)"));
        seen.extend(stage.query("select pg_advisory_unlock(78)"));
        seen.extend(stage.query("listen news"));
        seen.extend(stage.query("select 1"));
        seen.extend(stage.query("close h"));
        seen.extend(stage.query("deallocate p"));
        seen.extend(stage.query("discard all"));
        seen.extend(stage.query("select n from mine"));
        // The table's number differs.
        seen.into_iter()
            .filter(|line| !line.starts_with('T'))
            .collect()
    });
}

#[test]
fn statements_can_be_deallocated_by_sql() {
    same(|stage| {
        let prepared = batch()
            .parse("a", "select 1")
            .parse("b", "select 2")
            .parse("c", "select 3")
            .sync();
        let mut seen = stage.step(&prepared.0, 1);
        seen.extend(stage.query("deallocate a"));
        seen.extend(stage.step(&batch().call("a", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().call("b", &[]).sync().0, 1));
        seen.extend(stage.query("begin"));
        seen.extend(stage.query("select 1"));
        seen.extend(stage.query("deallocate b"));
        seen.extend(stage.step(&batch().parse("b", "select 4").call("b", &[]).sync().0, 1));
        seen.extend(stage.query("commit"));
        seen.extend(stage.step(
            &batch().parse("d", "deallocate c").call("d", &[]).sync().0,
            1,
        ));
        seen.extend(stage.step(&batch().call("c", &[]).sync().0, 1));
        seen.extend(stage.query("deallocate none"));
        seen.extend(
            stage.step(
                &batch()
                    .run("deallocate all", &[])
                    .parse("b", "select 4")
                    .call("b", &[])
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.query("discard all"));
        seen.extend(stage.step(&batch().call("b", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().parse("b", "select 5").call("b", &[]).sync().0, 1));
        seen.extend(stage.query("begin"));
        seen.extend(
            stage.step(
                &batch()
                    .run("discard all", &[])
                    .parse("e", "select 5")
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.query("rollback"));
        seen.extend(stage.step(&batch().call("b", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn own_settings_never_reach_the_server() {
    for pool in ["size = 1", "mode = \"session\""] {
        let proxy = Proxy::start(pool);
        let mut client: Client = proxy.client();
        for wrap in [None, Some(("begin", "commit"))] {
            if let Some((begin, _)) = wrap {
                client.ask(&query(begin));
                client.ask(&query("select 1"));
            }
            let seen = client.ask(&query("set shardway.shard = 's0'"));
            assert_eq!(seen[0], "C SET\\0", "{seen:?}");
            assert_eq!(
                client.value("select coalesce(current_setting('shardway.shard', true), 'none')"),
                "none"
            );
            let seen = client.ask(&query("set shardway.shard = 'elsewhere'"));
            assert!(seen[0].starts_with("E ERROR 22023"), "{seen:?}");
            if let Some((_, end)) = wrap {
                client.ask(&query(end));
            }
            client.ask(&query("reset shardway.shard"));
        }
    }
}
