//! COPY in both protocols: its data is never lost, and what comes outside of it is ignored.

use crate::{
    client::{batch, query},
    harness::{Stage, same},
};

/// A table that every backend sees.
fn fresh(stage: &mut Stage, test: &str) -> String {
    let name = format!("{test}_{:?}", stage.way).to_lowercase();
    stage.query(&format!("create table {name} (n int)"));
    name
}

fn count(stage: &mut Stage, table: &str) -> String {
    stage.query(&format!("select count(*), sum(n) from {table}"))[1].clone()
}

#[test]
fn copy_in_takes_data_that_is_sent_without_waiting() {
    same(|stage| {
        let name = fresh(stage, "eager");
        let bytes = batch()
            .query(&format!("copy {name} from stdin"))
            .copy_data("1\n2\n")
            .copy_data("3\n")
            .bare(b'c')
            .query("select 1");
        let mut seen = stage.step(&bytes.0, 2);
        seen.push(count(stage, &name));
        seen
    });
}

#[test]
fn copy_in_of_the_extended_protocol_ignores_sync_and_flush_until_its_end() {
    same(|stage| {
        let name = fresh(stage, "synced");
        let copy = format!("copy {name} from stdin");
        stage.client.send(&batch().run(&copy, &[]).sync().0);
        let mut seen = stage.client.until("G");
        stage.client.send(
            &batch()
                .copy_data("1\n")
                .sync()
                .flush()
                .copy_data("2\n")
                .bare(b'c')
                .sync()
                .0,
        );
        seen.extend(stage.client.answers(1));
        // Everything in one packet, without any wait.
        let all = batch().run(&copy, &[]).copy_data("3\n").bare(b'c').sync();
        seen.extend(stage.step(&all.0, 1));
        seen.push(count(stage, &name));
        seen
    });
}

#[test]
fn a_copy_that_fails_skips_to_sync_and_the_session_goes_on() {
    same(|stage| {
        let name = fresh(stage, "failing");
        let copy = format!("copy {name} from stdin");
        stage.client.send(&batch().run(&copy, &[]).flush().0);
        let mut seen = stage.client.until("G");
        let rest = batch()
            .copy_data("1\n")
            .copy_data("no number\n")
            .copy_data("3\n")
            .bare(b'c')
            .run("select 1", &[])
            .sync();
        seen.extend(stage.step(&rest.0, 1));
        stage.client.send(&query(&copy));
        seen.extend(stage.client.until("G"));
        stage.client.send(&batch().copy_data("1\nx\n").0);
        seen.extend(stage.client.until("Z"));
        seen.extend(stage.step(&batch().copy_data("5\n").bare(b'c').query("select 2").0, 1));
        stage.client.send(&query(&copy));
        seen.extend(stage.client.until("G"));
        seen.extend(stage.step(&batch().copy_data("1\n").copy_fail("enough").0, 1));
        seen.push(count(stage, &name));
        seen
    });
}

#[test]
fn copy_messages_outside_of_a_copy_are_ignored() {
    same(|stage| {
        let mut seen = stage.step(
            &batch()
                .copy_fail("x")
                .copy_data("y")
                .bare(b'c')
                .query("select 1")
                .0,
            1,
        );
        let inside = batch()
            .parse("", "select 2")
            .copy_data("y")
            .bind("", "", &[])
            .copy_fail("z")
            .execute("", 0)
            .bare(b'c')
            .sync();
        seen.extend(stage.step(&inside.0, 1));
        seen.extend(
            stage.step(
                &batch()
                    .query("select 3")
                    .copy_fail("late")
                    .copy_data("later")
                    .query("select 4")
                    .0,
                2,
            ),
        );
        seen
    });
}

#[test]
fn several_copies_in_one_query_take_their_data_in_order() {
    same(|stage| {
        let name = fresh(stage, "several");
        let sql = format!("copy {name} from stdin; select 7; copy {name} from stdin");
        let bytes = batch()
            .query(&sql)
            .copy_data("1\n")
            .bare(b'c')
            .copy_data("10\n")
            .bare(b'c');
        let mut seen = stage.step(&bytes.0, 1);
        seen.push(count(stage, &name));
        seen
    });
}

#[test]
fn copy_out_streams_in_both_protocols_and_its_error_ends_it() {
    same(|stage| {
        let mut seen = stage.query("copy (select generate_series(1, 3)) to stdout");
        seen.extend(
            stage.step(
                &batch()
                    .run("copy (select generate_series(1, 3)) to stdout", &[])
                    .sync()
                    .0,
                1,
            ),
        );
        seen.extend(
            stage.query("copy (select 1 / (2 - n) from generate_series(1, 3) n) to stdout"),
        );
        seen.extend(stage.query("select 1"));
        seen
    });
}

#[test]
fn a_sync_during_a_copy_that_has_failed_already_is_answered() {
    same(|stage| {
        let name = fresh(stage, "late");
        let copy = format!("copy {name} from stdin");
        stage.client.send(&batch().run(&copy, &[]).flush().0);
        let mut seen = stage.client.until("G");
        seen.extend(
            stage.step(
                &batch()
                    .copy_data("x\ny\n")
                    .sync()
                    .copy_data("1\n")
                    .sync()
                    .bare(b'c')
                    .query("select 1")
                    .0,
                3,
            ),
        );
        stage.client.send(&query(&copy));
        seen.extend(stage.client.until("G"));
        seen.extend(
            stage.step(
                &batch()
                    .copy_data("1\n")
                    .sync()
                    .flush()
                    .copy_data("2\n")
                    .bare(b'c')
                    .query("select 2")
                    .0,
                2,
            ),
        );
        seen.push(count(stage, &name));
        seen
    });
}
