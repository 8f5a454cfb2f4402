//! What an operator is told at three in the morning: who keeps a cutover from its end without a process, what a pause takes
//! back, who owns what after it, and that what is shown is old.

use crate::{
    stage::{Demo, SHARDWAY, Typed, said, typed, until},
    steering::metrics,
};
use serde_json::Value;
use std::{fs, path::Path, process::Command};

fn must(demo: &Demo, args: &[&str]) -> String {
    let output = demo.reshard(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    said(&output)
}

fn status(demo: &Demo) -> Value {
    serde_json::from_str(&must(demo, &["status", "--output", "json"])).unwrap()
}

fn waits_for_the_operator(demo: &Demo) {
    until("it waits for the operator", || {
        let now = status(demo);
        now["waiting_for"] == "the operator: shardway reshard cutover" && now["wanted"].is_null()
    });
}

/// What `shardway route` says of a customer's orders: its result, and what it says beside it.
fn route(demo: &Demo, customer: &str, more: &[&str]) -> (String, String) {
    let sql = format!("SELECT * FROM orders WHERE customer_id = {customer}");
    let mut command = Command::new(SHARDWAY);
    command.args(["route", "--config"]).arg(demo.config());
    let output = command.args(more).arg(sql).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

fn console(demo: &Demo, show: &str) -> String {
    let url = format!("postgres://ops:ops@127.0.0.1:{}/shardway", demo.port);
    let shown = typed(&format!("psql -X -A -x -c '{show}' {url}"));
    assert!(shown.status.success(), "{}", said(&shown));
    said(&shown)
}

/// The process of the server that listens there.
fn postmaster(under: &Path, port: u16) -> Option<String> {
    for entry in fs::read_dir(under).ok()?.flatten() {
        let path = entry.path();
        if path.is_dir() {
            if let Some(found) = postmaster(&path, port) {
                return Some(found);
            }
        } else if path.ends_with("postmaster.pid") {
            let text = fs::read_to_string(&path).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            if lines.get(3).is_some_and(|it| *it == port.to_string()) {
                return lines.first().map(|it| (*it).to_owned());
            }
        }
    }
    None
}

#[test]
fn an_operator_is_told_what_is_in_the_way_what_is_withdrawn_and_who_owns_what() {
    let demo = Demo::start();
    let home = demo.servers()[0];
    until("there are records", || {
        demo.reshard(&["status"]).status.success()
    });
    must(
        &demo,
        &[
            "start",
            "--group",
            "customers",
            "--to",
            "s0,s1,s2,s3",
            "--set",
            "drain_ms=1000",
            "--set",
            "hold_ms=5000",
            "--set",
            "lock_ms=500",
        ],
    );
    waits_for_the_operator(&demo);
    let told = must(&demo, &["status"]);
    assert!(told.contains("copies=2 bytes_per_second=0"), "{told}");
    assert!(
        told.contains("vacuum of its catalogs held back for "),
        "{told}"
    );
    let knobs = must(&demo, &["set"]);
    assert!(knobs.contains("hold_ms=5000 "), "{knobs}");
    let of_set: Value = serde_json::from_str(&must(&demo, &["set", "--output", "json"])).unwrap();
    assert_eq!(status(&demo)["knobs"], of_set);

    what_is_in_the_way_is_told_and_withdrawn(&demo, home);
    must(&demo, &["cutover"]);
    owners_are_told(&demo);
    what_is_old_is_told_as_such(&demo, home);
}

/// A prepared transaction, which no process has; and a cutover that is asked for meanwhile.
fn what_is_in_the_way_is_told_and_withdrawn(demo: &Demo, home: u16) {
    let prepare = "BEGIN; UPDATE orders SET status = status; PREPARE TRANSACTION 'mine'";
    demo.ask_at(home, prepare);
    until("it is among the gates", || {
        let gates = demo.reshard(&["cutover", "--dry-run"]);
        let text = said(&gates);
        gates.status.code() == Some(3) && text.contains(
            "closed  shard s0: transactions have its tables: transaction 'mine' of app, prepared ",
        ) && text.contains("ROLLBACK PREPARED 'mine'")
    });
    let waiting = Typed::begin(&format!(
        "{SHARDWAY} --output json reshard cutover --config {}",
        demo.config().display()
    ));
    until("an attempt was undone", || {
        let now = status(demo);
        now["attempt"].as_i64() > Some(0) && now["state"] == "ready"
    });
    // Whoever stops waiting is not told that it is done.
    let (told, code) = waiting.end("INT");
    let left: Value = serde_json::from_str(&told).unwrap_or_else(|_| panic!("{told}"));
    assert_eq!(
        (&left["interrupted"], &left["flips"], code),
        (&true.into(), &0.into(), Some(1)),
        "{told}"
    );
    let paused = must(demo, &["pause"]);
    assert!(paused.contains("not wanted any more: cutover"), "{paused}");
    until("it stands still", || {
        status(demo)["waiting_for"] == "resume: it is paused"
    });
    // Whoever resumes it later does not do by that what was asked for meanwhile.
    for asked in [&["cutover"][..], &["verify", "--watch"]] {
        let refused = demo.reshard(asked);
        let text = said(&refused);
        assert_eq!(refused.status.code(), Some(3), "{text}");
        assert!(
            text.contains("it is paused") && text.contains("resume it first"),
            "{text}"
        );
    }
    demo.ask_at(home, "ROLLBACK PREPARED 'mine'");
    must(demo, &["resume"]);
    waits_for_the_operator(demo);
    assert_eq!(status(demo)["flips"], 0);
}

/// By the map; the file is as it was.
fn owners_are_told(demo: &Demo) {
    let spare = *demo.servers().last().unwrap();
    let customer = demo.ask_at(spare, "SELECT min(id) FROM customers");
    let (by_file, beside) = route(demo, &customer, &[]);
    assert!(!by_file.contains("shards: s3"), "{by_file}");
    assert!(beside.contains("--catalog"), "{beside}");
    let (by_catalog, _) = route(demo, &customer, &["--catalog"]);
    assert!(by_catalog.contains("shards: s3"), "{by_catalog}");
    let map = console(demo, "SHOW MAP");
    assert!(map.contains("keys|256 of 1024 buckets ("), "{map}");
}

/// The home shard goes, and with it all that could tell.
fn what_is_old_is_told_as_such(demo: &Demo, home: u16) {
    let led = |of| format!("shardway_reshard_led{{database=\"shop\",reshard=\"r1\"}} {of}");
    until("it is led", || metrics(demo).contains(&led(1)));
    let process = postmaster(demo.config().parent().unwrap(), home).unwrap();
    assert!(typed(&format!("kill -s QUIT {process}")).status.success());
    until("nobody is said to lead it", || {
        metrics(demo).contains(&led(0))
    });
    let shown = console(demo, "SHOW RESHARD");
    assert!(
        shown.contains("waits_for|the home shard, which could not be asked for "),
        "{shown}"
    );
}
