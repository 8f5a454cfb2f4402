//! RESET ALL goes back to what the client started with, for what stands behind it in the same message or batch too.

use crate::{
    client::batch,
    harness::{Stage, Way, same_with},
};

const STARTED: &[(&str, &str)] = &[
    ("work_mem", "3MB"),
    ("DateStyle", "German"),
    ("application_name", "it's me"),
    ("search_path", "\"A B\", public"),
    ("options", "-c timezone=CET"),
];
const SHOWN: &str = "select current_setting('work_mem'), current_setting('datestyle'), current_setting('search_path'), \
                     current_setting('timezone'), current_setting('application_name'), date '2020-02-01'";

/// What is reported on the way is told as the server's value first, then as the client's own.
fn without_reports(seen: Vec<String>) -> impl Iterator<Item = String> {
    seen.into_iter().filter(|line| !line.starts_with("S "))
}

#[test]
fn what_stands_behind_reset_all_in_a_message_sees_what_the_client_started_with() {
    same_with(STARTED, |stage| {
        let mut seen = Vec::new();
        for sql in [
            "set work_mem = '9MB'; reset all; $",
            "reset all; $; set work_mem = '8MB'; $; reset all; $",
            "begin; set datestyle = 'SQL'; reset all; $; rollback; $",
            "set timezone = 'Asia/Tokyo'; reset all; $; select 1/0",
            "set timezone = 'Asia/Tokyo'; reset all; select 1/0; $",
            "reset all; reset all",
            "set work_mem = '7MB'; reset all; set local work_mem = '6MB'; $",
        ] {
            let sql = sql.replace('$', SHOWN);
            seen.extend(without_reports(stage.query(&sql)));
            for _ in 0..2 {
                seen.extend(without_reports(stage.query(SHOWN)));
            }
        }
        stage.assert_moves();
        seen
    });
}

#[test]
fn what_stands_behind_reset_all_in_a_batch_sees_what_the_client_started_with() {
    let started = [STARTED, &[("search_path", "")]].concat();
    for settings in [STARTED, &started] {
        same_with(settings, |stage| {
            let mut seen = Vec::new();
            for _ in 0..2 {
                let piped = batch()
                    .run("set work_mem = '9MB'", &[])
                    .run("set search_path = 'x'", &[])
                    .run("reset all", &[])
                    .run(SHOWN, &[])
                    .run("set datestyle = 'SQL'", &[])
                    .run(SHOWN, &[])
                    .sync();
                seen.extend(without_reports(stage.step(&piped.0, 1)));
                seen.extend(without_reports(stage.query(SHOWN)));
            }
            seen
        });
    }
}

#[test]
fn reset_all_that_cannot_be_followed_by_what_the_client_started_with_is_refused() {
    let mut stage = Stage::open(Way::Transaction, &[("search_path", "")]);
    let seen = stage.query("reset all; select 1");
    assert!(seen[0].starts_with("E ERROR 0A000 RESET ALL"), "{seen:?}");
    assert_eq!(stage.query("select 1; reset all")[2], "C SELECT 1\\0");
    // PostgreSQL 18 reports search_path, before the answer.
    let mut shown = without_reports(stage.query("show search_path"));
    assert_eq!(shown.nth(1).unwrap(), "D ");
}
