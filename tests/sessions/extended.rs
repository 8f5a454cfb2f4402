//! The extended protocol: order of answers, errors in the middle, statements and portals by name.

use crate::{
    client::batch,
    harness::{Proxy, same},
};

#[test]
fn an_error_skips_the_rest_of_its_batch_and_nothing_more() {
    same(|stage| {
        let bytes = batch()
            .run("select 1", &[])
            .run("select 1/0", &[])
            .parse("lost", "select 2")
            .run("select 3", &[])
            .sync();
        let mut seen = stage.step(&bytes.0, 1);
        seen.extend(stage.step(&batch().describe("lost").sync().0, 1));
        seen.extend(stage.step(
            &batch().parse("lost", "select 2").call("lost", &[]).sync().0,
            1,
        ));
        seen
    });
}

#[test]
fn a_simple_query_after_an_error_in_a_batch_is_discarded_without_an_answer() {
    same(|stage| {
        let mut seen = stage.step(
            &batch().run("select 1/0", &[]).query("select 2").sync().0,
            1,
        );
        seen.extend(stage.query("select 3"));
        seen
    });
}

#[test]
fn a_simple_query_may_end_a_batch_without_sync() {
    same(|stage| {
        // PostgreSQL 18 itself answers the statement behind with XX000: it is not compared.
        stage.step(&batch().run("select 1", &[]).query("select 2").sync().0, 2)
    });
}

#[test]
fn a_simple_query_within_a_batch_is_no_trouble_of_the_next_client() {
    let proxy = Proxy::start("size = 1");
    for at in 0..3 {
        let (mut first, mut next) = (proxy.client(), proxy.client());
        first.send(&batch().run("select 1", &[]).query("select 2").sync().0);
        first.answers(2);
        assert_eq!(next.value(&format!("select {at}")), at.to_string());
    }
}

#[test]
fn several_syncs_in_one_packet_are_each_answered() {
    same(|stage| {
        let mut bytes = batch();
        for at in 0..5 {
            bytes = bytes
                .run(&format!("select {at}"), &[])
                .sync()
                .query("select 'simple'")
                .sync();
        }
        stage.step(&bytes.0, 15)
    });
}

#[test]
fn flush_brings_the_answers_without_ready_for_query() {
    same(|stage| {
        stage
            .client
            .send(&batch().parse("s", "select $1::int").describe("s").flush().0);
        let mut seen = stage.client.until("T");
        stage.client.send(&batch().call("s", &["7"]).flush().0);
        seen.extend(stage.client.until("C"));
        seen.extend(stage.step(&batch().sync().0, 1));
        seen
    });
}

#[test]
fn answers_made_by_the_proxy_come_at_their_place() {
    same(|stage| {
        let first = batch().parse("a", "select 1").parse("b", "select 2").sync();
        let mut seen = stage.step(&first.0, 1);
        let second = batch()
            .call("a", &[])
            .close("a")
            .call("b", &[])
            .parse("a", "select 3")
            .call("a", &[])
            .close("b")
            .sync();
        seen.extend(stage.step(&second.0, 1));
        let third = batch()
            .call("a", &[])
            .close("a")
            .close("none")
            .run("select 1/0", &[])
            .close("a")
            .sync();
        seen.extend(stage.step(&third.0, 1));
        seen
    });
}

#[test]
fn a_close_that_an_error_skipped_has_not_closed() {
    same(|stage| {
        let mut seen = stage.step(&batch().parse("kept", "select 5").sync().0, 1);
        seen.extend(stage.step(&batch().run("select 1/0", &[]).close("kept").sync().0, 1));
        seen.extend(stage.step(&batch().call("kept", &[]).sync().0, 1));
        seen.extend(
            stage.step(
                &batch()
                    .run("select 1/0", &[])
                    .close("kept")
                    .parse("kept", "select 6")
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.step(&batch().call("kept", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn a_statement_parsed_before_the_error_stays_and_one_after_it_does_not_exist() {
    same(|stage| {
        let first = batch()
            .parse("early", "select 1")
            .run("select 1/0", &[])
            .parse("late", "select 1")
            .sync();
        let mut seen = stage.step(&first.0, 1);
        seen.extend(stage.step(&batch().call("early", &[]).sync().0, 1));
        seen.extend(stage.step(
            &batch().parse("late", "select 1").call("late", &[]).sync().0,
            1,
        ));
        let refused = batch()
            .parse("third", "select 3")
            .bind("", "nowhere", &[])
            .sync();
        seen.extend(stage.step(&refused.0, 1));
        seen.extend(stage.step(&batch().call("third", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn a_name_is_given_once_and_the_connection_stays() {
    same(|stage| {
        let mut seen = stage.step(
            &batch()
                .parse("s", "select 1")
                .parse("s", "select 2")
                .sync()
                .0,
            1,
        );
        seen.extend(stage.step(&batch().parse("s", "select 2").sync().0, 1));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn statements_follow_their_session_from_backend_to_backend() {
    same(|stage| {
        let mut seen = stage.step(
            &batch()
                .parse("s", "select $1::text")
                .parse("", "select $1::int + 1")
                .sync()
                .0,
            1,
        );
        for at in 0..6 {
            let value = at.to_string();
            seen.extend(
                stage.step(
                    &batch()
                        .call("s", &[&value])
                        .describe("s")
                        .call("", &["4"])
                        .sync()
                        .0,
                    1,
                ),
            );
        }
        seen
    });
}

#[test]
fn an_unnamed_statement_ends_with_a_simple_query() {
    same(|stage| {
        let mut seen = stage.step(&batch().parse("", "select 1").sync().0, 1);
        seen.extend(stage.step(&batch().call("", &[]).sync().0, 1));
        seen.extend(stage.query("select 2"));
        seen.extend(stage.step(&batch().call("", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn a_portal_gives_its_rows_in_parts_while_other_statements_are_parsed() {
    same(|stage| {
        let mut seen = stage.query("begin");
        let first = batch()
            .parse("g", "select generate_series(1, 5)")
            .bind("p", "g", &[])
            .execute("p", 2)
            .sync();
        seen.extend(stage.step(&first.0, 1));
        let second = batch()
            .parse("x", "select 9")
            .execute("p", 2)
            .call("x", &[])
            .parse("y", "select 8")
            .describe_portal("p")
            .sync();
        seen.extend(stage.step(&second.0, 1));
        let third = batch()
            .parse("z", "select 9")
            .close_portal("p")
            .execute("p", 0)
            .sync();
        seen.extend(stage.step(&third.0, 1));
        seen.extend(stage.query("rollback"));
        seen.extend(stage.step(&batch().call("x", &[]).execute("p", 0).sync().0, 1));
        seen
    });
}

#[test]
fn an_implicit_transaction_lasts_to_sync() {
    same(|stage| {
        let way = format!("{:?}", stage.way).to_lowercase();
        let mut seen = stage.query(&format!("create table implicit_{way} (n int)"));
        let insert = format!("insert into implicit_{way} values ($1)");
        let bytes = batch()
            .run(&insert, &["1"])
            .run(&insert, &["2"])
            .run("select 1/0", &[])
            .sync();
        seen.extend(stage.step(&bytes.0, 1));
        seen.extend(
            stage.step(
                &batch()
                    .run(&insert, &["3"])
                    .sync()
                    .run("select 1/0", &[])
                    .sync()
                    .0,
                2,
            ),
        );
        let count = stage.query(&format!("select count(*) from implicit_{way}"));
        seen.push(count[1].clone());
        seen.into_iter()
            .map(|line| line.replace(&way, ""))
            .collect()
    });
}

#[test]
fn a_failed_transaction_answers_as_postgresql_does() {
    same(|stage| {
        let mut seen = stage.step(
            &batch()
                .parse("s", "select 1")
                .parse("back", "rollback")
                .sync()
                .0,
            1,
        );
        seen.extend(stage.query("begin"));
        seen.extend(stage.query("select 1/0"));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().parse("t", "select 1").sync().0, 1));
        seen.extend(stage.step(&batch().parse("b", "rollback").call("b", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen
    });
}

#[test]
fn empty_and_multiple_statements_are_answered() {
    same(|stage| {
        let mut seen = stage.query("");
        seen.extend(stage.query(";;"));
        seen.extend(stage.step(&batch().run("", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().run("select 1; select 2", &[]).sync().0, 1));
        seen.extend(stage.query("select 1; select 2; select 1/0; select 3"));
        seen.extend(stage.step(&batch().sync().0, 1));
        seen.extend(
            stage.step(
                &batch()
                    .parse("n", "create table if not exists nothing ()")
                    .describe("n")
                    .sync()
                    .0,
                1,
            ),
        );
        seen
    });
}

#[test]
fn what_does_not_exist_or_is_malformed_is_an_error_and_no_more() {
    same(|stage| {
        let mut seen = stage.step(&batch().bind("", "no", &[]).sync().0, 1);
        seen.extend(stage.step(&batch().execute("no", 0).sync().0, 1));
        seen.extend(stage.step(&batch().describe("no").sync().0, 1));
        seen.extend(stage.step(&batch().describe_portal("no").sync().0, 1));
        seen.extend(stage.step(&batch().close("no").close_portal("no").sync().0, 1));
        seen.extend(stage.step(&batch().run("selec 1", &[]).sync().0, 1));
        seen.extend(stage.query("selec 1"));
        seen.extend(stage.query("select 1"));
        seen
    });
}

#[test]
fn a_result_type_that_changed_is_an_error_once() {
    same(|stage| {
        let way = format!("{:?}", stage.way).to_lowercase();
        let mut seen = stage.query(&format!("create table changing_{way} (a int)"));
        seen.extend(
            stage.step(
                &batch()
                    .parse("s", &format!("select * from changing_{way}"))
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(stage.step(&batch().call("s", &[]).sync().0, 1));
        seen.extend(stage.query(&format!("alter table changing_{way} add b int")));
        let _error = stage.step(&batch().call("s", &[]).sync().0, 1);
        let _error = stage.step(&batch().call("s", &[]).sync().0, 1);
        for name in ["t", "u", "v"] {
            let again = batch()
                .parse(name, &format!("select * from changing_{way}"))
                .call(name, &[])
                .sync();
            seen.extend(stage.step(&again.0, 1));
        }
        seen
    });
}
