//! Backends are shared, sessions are not: settings, cancels, and the way back to the pool.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, observer, same, until},
};
use std::{fs, process::Command};

#[test]
fn more_clients_than_backends_are_all_served() {
    let proxy = Proxy::start("size = 2");
    let mut clients: Vec<Client> = (0..20).map(|_| proxy.client()).collect();
    for round in 0..20 {
        for client in &mut clients {
            client.send(
                &batch()
                    .run("select $1::int", &[&round.to_string()])
                    .sync()
                    .0,
            );
        }
        for client in &mut clients {
            assert_eq!(client.answers(1)[2], format!("D {round}"));
        }
    }
}

#[test]
fn a_cancel_ends_the_query_and_nothing_else() {
    let proxy = Proxy::start("size = 1");
    let mut client = proxy.client();
    client.send(&query("select pg_sleep(100), 'cancel me'"));
    let mut observer = observer();
    until("the query runs", || {
        observer.value("select count(*) from pg_stat_activity where query like '%cancel me%' and state = 'active' and pid <> pg_backend_pid()") == "1"
    });
    client.cancel(proxy.port);
    let seen = client.answers(1);
    assert!(
        seen.iter().any(|line| line.starts_with("E ERROR 57014")),
        "{seen:?}"
    );
    for _ in 0..50 {
        client.cancel(proxy.port);
        let mut next = proxy.client();
        assert_eq!(next.value("select 1"), "1");
        assert_eq!(client.value("select 2"), "2");
    }
}

#[test]
fn a_client_that_waits_for_a_backend_can_cancel() {
    let proxy = Proxy::start("size = 1");
    let (mut holder, mut waiting) = (proxy.client(), proxy.client());
    holder.ask(&query("begin"));
    waiting.send(&query("select 1"));
    until("the wait is cancelled", || {
        waiting.cancel(proxy.port);
        waiting.has_answer()
    });
    let seen = waiting.answers(1);
    assert!(seen[0].starts_with("E ERROR 57014"), "{seen:?}");
    holder.ask(&query("commit"));
    assert_eq!(waiting.value("select 2"), "2");
}

#[test]
fn a_wait_has_its_deadline_and_the_batch_is_skipped() {
    let proxy = Proxy::start("size = 1\nwait_timeout = \"1s\"");
    let (mut holder, mut waiting) = (proxy.client(), proxy.client());
    holder.ask(&query("begin"));
    let seen = waiting.ask(&batch().run("select 1", &[]).run("select 2", &[]).sync().0);
    assert!(
        seen.len() == 2 && seen[0].starts_with("E ERROR 53300"),
        "{seen:?}"
    );
    let seen = waiting.ask(&query("select 3"));
    assert!(
        seen.len() == 2 && seen[0].starts_with("E ERROR 53300"),
        "{seen:?}"
    );
    holder.ask(&query("commit"));
    assert_eq!(waiting.value("select 2"), "2");
}

#[test]
fn prepared_statements_on_a_backend_stay_within_their_limit() {
    let proxy = Proxy::start("size = 1\nprepared_statements = 5");
    let mut client = proxy.client();
    for at in 0..40 {
        let (a, b) = (format!("a{at}"), format!("b{at}"));
        let bytes = batch()
            .parse(&a, &format!("select {at}"))
            .parse(&b, &format!("select -{at}"))
            .call(&a, &[])
            .call(&b, &[])
            .sync();
        let seen = client.ask(&bytes.0);
        assert_eq!(seen[3], format!("D {at}"), "{seen:?}");
    }
    let kept: usize = client
        .value("select count(*) from pg_prepared_statements")
        .parse()
        .unwrap();
    assert!(kept <= 6, "{kept}");
    for at in 0..40 {
        let bytes = batch()
            .run("select 1/0", &[])
            .parse(&format!("c{at}"), "select 1")
            .sync();
        client.ask(&bytes.0);
        let seen = client.ask(
            &batch()
                .call(&format!("a{at}"), &[])
                .call(&format!("b{at}"), &[])
                .sync()
                .0,
        );
        assert_eq!(seen[1], format!("D {at}"), "{seen:?}");
    }
}

#[test]
fn an_error_before_an_eviction_leaves_every_statement_usable() {
    let proxy = Proxy::start("size = 1\nprepared_statements = 2");
    let mut client = proxy.client();
    for round in 0..10 {
        for at in 0..4 {
            let name = format!("s{round}_{at}");
            let failing = batch()
                .run("select 1/0", &[])
                .parse(&name, &format!("select {at}"))
                .call(&name, &[])
                .sync();
            assert!(
                client
                    .ask(&failing.0)
                    .iter()
                    .any(|line| line.starts_with("E ERROR 22012"))
            );
            let seen = client.ask(
                &batch()
                    .parse(&name, &format!("select {at}"))
                    .call(&name, &[])
                    .sync()
                    .0,
            );
            assert_eq!(seen.get(2), Some(&format!("D {at}")), "{seen:?}");
        }
    }
}

#[test]
fn settings_of_the_startup_packet_hold_on_every_backend() {
    same(|stage| {
        let mut client = Client::connect(
            stage.port,
            &[
                ("application_name", "it's \\ me"),
                ("timezone", "Asia/Tokyo"),
                ("search_path", "\"$user\", public"),
            ],
        );
        let mut seen = Vec::new();
        for name in ["application_name", "timezone", "search_path"] {
            seen.push(client.value(&format!("select current_setting('{name}')")));
            seen.extend(
                stage.query(
                    "select current_setting('timezone'), current_setting('application_name')",
                ),
            );
        }
        seen
    });
}

#[test]
fn notices_and_function_calls_pass() {
    same(|stage| {
        let mut seen =
            stage.query("do $$ begin for i in 1..50 loop raise notice 'n %', i; end loop; end $$");
        let oid: u32 = stage.query("select 'int4pl(int,int)'::regprocedure::oid")[1][2..]
            .parse()
            .unwrap();
        let mut bytes = Vec::new();
        shardway::wire::frontend::put(&mut bytes, b'F', |out| {
            out.extend_from_slice(&oid.to_be_bytes());
            out.extend_from_slice(&[0, 0, 0, 2, 0, 0, 0, 1, b'2', 0, 0, 0, 1, b'3', 0, 0]);
        });
        seen.extend(stage.step(&bytes, 1));
        seen.extend(stage.query("select 1"));
        seen
    });
}

#[test]
fn a_query_that_begins_after_its_client_has_left_is_stopped() {
    let proxy = Proxy::start("size = 1\nwait_timeout = \"10s\"");
    let mut leaving = proxy.client();
    let pid = leaving.value("select pg_backend_pid()");
    let signal = |signal: &str| {
        let sent = Command::new("kill").args([signal, &pid]).status().unwrap();
        assert!(sent.success());
    };
    // The server reads the query only when the first cancel has come, which it ignores then.
    signal("-STOP");
    leaving.send(&query("select pg_sleep(2000)"));
    drop(leaving);
    until("a cancel has come", || interrupted(&pid));
    signal("-CONT");
    let mut observer = observer();
    until("the query is over", || {
        observer.value(&format!(
            "select count(*) from pg_stat_activity where pid = {pid}"
        )) == "0"
    });
    assert_eq!(proxy.client().value("select 1"), "1");
}

/// Whether SIGINT waits for the process to go on.
fn interrupted(pid: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let pending = status.lines().find_map(|line| line.strip_prefix("ShdPnd:"));
    let set = u64::from_str_radix(pending.unwrap().trim(), 16).unwrap();
    set & 1 << 1 != 0
}

#[test]
fn a_backend_is_free_again_however_its_client_ends() {
    let proxy = Proxy::start("size = 1\nwait_timeout = \"10s\"");
    let unfinished = [
        query("begin"),
        query("select pg_sleep(1000)"),
        query("copy (select generate_series(1, 10000000)) to stdout"),
        batch().run("select 1", &[]).0,
        batch().run("select 1", &[]).flush().0,
        query("create temp table leaving (n int); copy leaving from stdin"),
        query("select 1")[..3].to_vec(),
    ];
    for bytes in unfinished {
        let mut leaving = proxy.client();
        leaving.send(&bytes);
        drop(leaving);
        assert_eq!(proxy.client().value("select 1"), "1");
    }
    let mut observer = observer();
    until("what they ran is over", || {
        observer.value("select count(*) from pg_stat_activity where query like '%pg_sleep(1000)%' and pid <> pg_backend_pid()") == "0"
    });
}

#[test]
fn a_part_of_datestyle_at_startup_is_completed_by_the_server_and_not_by_who_was_there_before() {
    let proxy = Proxy::start("size = 1");
    let mut before = proxy.client();
    before.ask(&query("set datestyle = 'German, DMY'"));
    assert_eq!(before.value("select date '2026-11-22'"), "22.11.2026");
    let mut part = Client::connect(proxy.port, &[("DateStyle", "ymd")]);
    assert_eq!(part.value("show datestyle"), "ISO, YMD");
    assert_eq!(before.value("show datestyle"), "German, DMY");
    assert_eq!(part.value("show datestyle"), "ISO, YMD");
}
