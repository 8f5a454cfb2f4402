//! Prepared statements and portals where they are hardest to keep in step: limits, errors, clients that leave.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, Stage, Way, postgres, same},
};

#[test]
fn what_the_grammar_has_and_postgresql_refuses_is_refused_by_postgresql() {
    same(|stage| {
        let mut seen = Vec::new();
        for from in [
            "(values (x)) as foo",
            "foo natural join bar",
            "(select * from pg_class) as foo",
            "pg_class tablesample system (x)",
            "xmltable('foo' passing 'bar' columns a text)",
            "generate_series(1, 2)",
            "pg_class, pg_proc",
        ] {
            let sql = format!("create statistics tst on a from {from}");
            seen.extend(stage.query(&sql));
            seen.extend(stage.step(&batch().run(&sql, &[]).sync().0, 1));
        }
        seen.extend(stage.query("select 'still here'"));
        seen
    });
}

#[test]
fn a_statement_that_is_evicted_in_its_batch_is_still_executed() {
    let scene = |client: &mut Client| {
        let mut seen = Vec::new();
        for round in 0..4 {
            let (a, b, c) = (
                format!("a{round}"),
                format!("b{round}"),
                format!("c{round}"),
            );
            let bytes = batch()
                .parse(&a, &format!("select 'a{round}', $1::text"))
                .bind("pa", &a, &["1"])
                .parse(&b, &format!("select 'b{round}', $1::text"))
                .bind("pb", &b, &["2"])
                .execute("pa", 0)
                .parse(&c, &format!("select 'c{round}', $1::text"))
                .execute("pb", 0)
                .call(&a, &["3"])
                .call(&c, &["4"])
                .describe(&b)
                .sync()
                .call(&a, &["5"])
                .sync();
            seen.extend(client.ask2(&bytes.0));
        }
        seen
    };
    let expected = scene(&mut Client::connect(postgres().port(), &[]));
    for limit in [1, 2, 3] {
        let proxy = Proxy::start(&format!("size = 1\nprepared_statements = {limit}"));
        assert_eq!(scene(&mut proxy.client()), expected, "limit {limit}");
    }
}

#[test]
fn a_parse_whose_client_has_left_is_not_taken_for_done() {
    let proxy = Proxy::start("size = 1");
    let text = "select 'left behind', $1::int";
    for _ in 0..10 {
        let mut leaving = proxy.client();
        leaving.send(&batch().parse("s", text).0);
        drop(leaving);
        let mut leaving = proxy.client();
        leaving.send(&batch().parse("s", text).flush().0);
        drop(leaving);
        let mut staying = proxy.client();
        let seen = staying.ask(&batch().parse("s", text).call("s", &["7"]).sync().0);
        assert_eq!(seen[2], "D left behind|7", "{seen:?}");
    }
}

#[test]
fn a_parse_that_failed_can_be_repeated() {
    same(|stage| {
        let table = format!("made_late_{:?}", stage.way).to_lowercase();
        let parse = batch().parse("s", &format!("select n from {table}"));
        let mut seen = stage.step(&parse.clone().sync().0, 1);
        seen.extend(stage.step(&parse.clone().sync().0, 1));
        seen.extend(stage.query(&format!("create table {table} (n int)")));
        seen.extend(stage.step(&parse.call("s", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen.into_iter()
            .map(|line| line.replace(&table, "made_late"))
            .collect()
    });
}

#[test]
fn a_description_alone_finds_its_statement_on_any_backend() {
    same(|stage| {
        let name = format!("described_{:?}", stage.way).to_lowercase();
        stage.query(&format!("create table {name} (a int, b text)"));
        let parsed = batch()
            .parse("s", "select $1::int + 1 as n, $2::text as t")
            .parse("i", &format!("insert into {name} values ($1, $2)"))
            .parse("e", "")
            .sync();
        let mut seen = stage.step(&parsed.0, 1);
        for statement in ["s", "i", "e", "s", "i", "e"] {
            seen.extend(stage.step(&batch().describe(statement).sync().0, 1));
        }
        for _ in 0..2 {
            let portal = batch()
                .bind("p", "s", &["1", "x"])
                .describe_portal("p")
                .execute("p", 0)
                .sync();
            seen.extend(stage.step(&portal.0, 1));
        }
        seen.extend(
            stage.step(
                &batch()
                    .bind("", "i", &["1", "x"])
                    .describe_portal("")
                    .sync()
                    .0,
                1,
            ),
        );
        seen
    });
}

#[test]
fn a_suspended_portal_ends_with_its_implicit_transaction() {
    same(|stage| {
        let first = batch()
            .parse("g", "select generate_series(1, 7)")
            .bind("p", "g", &[])
            .execute("p", 2)
            .execute("p", 2)
            .flush();
        stage.client.send(&first.0);
        let mut seen = stage.client.until("s");
        seen.extend(stage.client.until("s"));
        stage.client.send(&batch().execute("p", 2).flush().0);
        seen.extend(stage.client.until("s"));
        seen.extend(stage.step(&batch().execute("p", 2).execute("p", 2).sync().0, 1));
        seen.extend(stage.step(&batch().execute("p", 2).sync().0, 1));
        seen.extend(stage.step(&batch().bind("p", "g", &[]).execute("p", 1).sync().0, 1));
        seen.extend(stage.step(&batch().execute("p", 1).sync().0, 1));
        seen.extend(stage.query("select 'after'"));
        seen
    });
}

#[test]
fn transaction_commands_prepared_on_another_backend_do_their_work() {
    same(|stage| {
        let table = format!("prepared_commit_{:?}", stage.way).to_lowercase();
        stage.query(&format!("create table {table} (n int)"));
        let parsed = batch()
            .parse("begin", "begin")
            .parse("insert", &format!("insert into {table} values ($1)"))
            .parse("commit", "commit")
            .parse("rollback", "rollback")
            .parse("save", "savepoint s")
            .parse("back", "rollback to s")
            .sync();
        let mut seen = stage.step(&parsed.0, 1);
        let call = |stage: &mut Stage, names: &[(&str, &[&str])]| {
            let mut seen = Vec::new();
            for (name, values) in names {
                seen.extend(stage.step(&batch().call(name, values).sync().0, 1));
            }
            seen
        };
        for ending in ["commit", "rollback"] {
            seen.extend(call(
                stage,
                &[
                    ("begin", &[]),
                    ("insert", &["1"]),
                    ("save", &[]),
                    ("insert", &["2"]),
                    ("back", &[]),
                    (ending, &[]),
                ],
            ));
        }
        let one = batch()
            .call("begin", &[])
            .call("insert", &["4"])
            .call("commit", &[])
            .sync();
        seen.extend(stage.step(&one.0, 1));
        seen.push(stage.query(&format!("select array_agg(n) from {table}"))[1].clone());
        seen
    });
}

#[test]
fn a_changed_result_type_fails_a_transaction_as_it_does_on_postgresql() {
    same(|stage| {
        let table = format!("retyped_{:?}", stage.way).to_lowercase();
        stage.query(&format!("create table {table} (a int)"));
        let parse = batch().parse("s", &format!("select * from {table}"));
        let mut seen = stage.step(&parse.call("s", &[]).sync().0, 1);
        seen.extend(stage.query("begin"));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen.extend(stage.query(&format!("alter table {table} add b int")));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().run("select 1", &[]).sync().0, 1));
        seen.extend(stage.query("rollback"));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen.into_iter()
            .filter(|line| !line.starts_with('T'))
            .collect()
    });
}

#[test]
fn what_an_error_skips_has_forgotten_nothing() {
    same(|stage| {
        let parsed = batch().parse("a", "select 1").parse("b", "select 2").sync();
        let mut seen = stage.step(&parsed.0, 1);
        for forgets in ["deallocate all", "deallocate a", "discard all"] {
            let failing = batch().run("select 1/0", &[]).run(forgets, &[]).sync();
            seen.extend(stage.step(&failing.0, 1));
            seen.extend(stage.step(&batch().call("a", &[]).call("b", &[]).sync().0, 1));
        }
        seen.extend(stage.query("select 1/0; deallocate all"));
        seen.extend(stage.step(&batch().call("a", &[]).sync().0, 1));
        // In a block of statements DISCARD ALL is refused, and forgets nothing either.
        seen.extend(stage.query("select 1; discard all"));
        seen.extend(stage.step(&batch().call("a", &[]).sync().0, 1));
        seen.extend(stage.query("begin; deallocate all"));
        seen.extend(stage.query("rollback"));
        seen.extend(stage.step(&batch().call("a", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn discards_that_are_not_all_leave_statements_and_settings() {
    same(|stage| {
        let mut seen = stage.step(&batch().parse("a", "select 1").sync().0, 1);
        seen.extend(stage.query("set work_mem = '5MB'"));
        for kind in ["plans", "sequences", "temp", "temporary"] {
            seen.extend(stage.query(&format!("discard {kind}")));
            seen.extend(stage.step(&batch().call("a", &[]).sync().0, 1));
            seen.extend(stage.query("show work_mem"));
        }
        seen
    });
}

#[test]
fn statements_of_sql_and_of_the_protocol_are_the_same() {
    same(|stage| {
        let mut seen = stage.query("prepare one as select $1::int + 1");
        seen.extend(stage.query("execute one(1)"));
        seen.extend(stage.step(&batch().parse("two", "select 2").sync().0, 1));
        seen.extend(stage.query("execute one(2)"));
        seen.extend(stage.step(&batch().run("execute one(3)", &[]).sync().0, 1));
        seen.extend(stage.query("prepare one as select 1"));
        seen.extend(stage.query("deallocate one"));
        seen.extend(stage.query("execute one(4)"));
        seen.extend(stage.step(&batch().call("two", &[]).sync().0, 1));
        seen.extend(stage.query("deallocate prepare all"));
        seen.extend(stage.step(&batch().call("two", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn an_empty_query_after_others_is_answered_in_order() {
    let mut stage = Stage::open(Way::Alternating, &[]);
    let bytes = [
        query(""),
        query(" ; "),
        query("select 1"),
        query("-- nothing"),
    ]
    .concat();
    let seen = stage.step(&bytes, 4);
    assert_eq!(
        seen.iter().filter(|line| line.starts_with('I')).count(),
        3,
        "{seen:?}"
    );
}
