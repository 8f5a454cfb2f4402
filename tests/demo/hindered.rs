//! A cutover that somebody keeps from its end says who does, and what lets it go on.

use crate::stage::{Demo, Typed, said, until};

const TO: [&str; 8] = [
    "start",
    "--group",
    "customers",
    "--to",
    "s0,s1,s2,s3",
    "--set",
    "drain_ms=200",
    "--set",
];

fn must(demo: &Demo, args: &[&str]) -> String {
    let output = demo.reshard(args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    said(&output)
}

/// Waits until all of this is in what it waits for.
fn waits_for(demo: &Demo, parts: &[&str]) {
    let mut last = String::new();
    until(&format!("it waits for {parts:?}"), || {
        let told = must(demo, &["status"]);
        let line = told.lines().find(|line| line.starts_with("waits for: "));
        let line = line.unwrap_or_default().to_owned();
        let all = parts.iter().all(|part| line.contains(part));
        if line != last {
            println!("{line}");
        }
        last = line;
        all
    });
}

/// A session of this URL that does this, and then nothing for long.
fn stays(port: u16, does: &str) -> Typed {
    Typed::begin(&format!(
        "psql -X -A -t -c BEGIN -c '{does}' -c 'SELECT pg_sleep(600)' postgres://app:app@127.0.0.1:{port}/shop"
    ))
}

#[test]
fn whoever_keeps_a_cutover_from_its_end_is_named_with_what_to_do() {
    let demo = Demo::start();
    must(&demo, &[&TO[..], &["hold_ms=2000"]].concat());
    until("it is ready", || {
        must(&demo, &["status"]).contains("waits for: the operator")
    });
    let first = demo.servers()[0];
    let writer = stays(first, "LOCK TABLE orders IN ROW EXCLUSIVE MODE");
    let sleeps = "FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'";
    let mut pid = String::new();
    until("it is at the tables", || {
        pid = demo.ask_at(first, &format!("SELECT pid {sleeps}"));
        !pid.is_empty()
    });
    must(&demo, &["cutover", "--no-wait"]);
    let named = format!("process {pid} of app (psql)");
    waits_for(
        &demo,
        &[
            "the next attempt",
            "shard s0",
            &named,
            "end it",
            "set lock_ms=... hold_ms=...",
        ],
    );
    // Again and again, and no longer than it is there.
    until("it is tried for the third time", || {
        let said = must(&demo, &["status"]);
        let attempt = said.split("in attempt ").nth(1);
        let number = attempt.and_then(|it| it.split(',').next()?.parse::<u32>().ok());
        number >= Some(3) && said.contains(&named)
    });
    demo.ask_at(first, &format!("SELECT pg_terminate_backend(pid) {sleeps}"));
    until("the owners change", || {
        must(&demo, &["status"]).contains("r1: reverse; the new owners serve")
    });
    drop(writer);

    let reader = stays(demo.port, "SELECT count(*) FROM customers");
    until("it is under way", || {
        let count = format!("SELECT count(*) {sleeps}");
        let servers = demo.servers();
        servers.iter().any(|port| demo.ask_at(*port, &count) != "0")
    });
    must(&demo, &["rollback", "--no-wait"]);
    waits_for(
        &demo,
        &[
            "not drained",
            ": clients ",
            "SHOW CLIENTS",
            "set drain_ms=... hold_ms=...",
        ],
    );
    reader.end("TERM");
    until("the former owners serve again", || {
        must(&demo, &["status"]).contains("r1: reverse; the former owners serve")
    });
}
