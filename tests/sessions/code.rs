//! What code on the server leaves in a session (settings, temporary tables, locks) stays with that session, and no other
//! gets it; code that leaves nothing costs no backend.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, Stage, observer, same, until},
};

const SHOWN: &str = "select current_setting('work_mem'), nullif(current_setting('app.left', true), ''), current_user, \
                     coalesce(to_regclass('pg_temp.left_here')::text, 'none'), \
                     (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid())";

/// Functions, a trigger and a view of one test, known by its name.
fn made(test: &str) -> Vec<String> {
    [
        "create function $_sets(value text) returns void language plpgsql as $f$ begin perform set_config('app.left', value, false); end $f$",
        "create function $_calls() returns void language sql as $f$ select $_sets('called') $f$",
        "create function $_atomic() returns text begin atomic select set_config('app.left', 'atomic', false); end",
        "create function $_dynamic(code text) returns void language plpgsql as $f$ begin execute code; end $f$",
        "create function $_temporary() returns void language plpgsql as $f$ begin create temp table left_here (n int); end $f$",
        "create function $_locks() returns void language sql as $f$ select pg_advisory_lock(4711) $f$",
        "create procedure $_procedure() language plpgsql as $f$ begin set work_mem = '31MB'; end $f$",
        "create function $_harmless(n int) returns int language plpgsql as $f$ begin perform set_config('app.local', 'x', true); return n + 1; end $f$",
        "create table $_table (n int)",
        "create table $_plain (n int)",
        "create function $_trigger() returns trigger language plpgsql as $f$ begin perform $_sets('trigger'); return new; end $f$",
        "create trigger t before insert on $_table for each row execute function $_trigger()",
        "create view $_view as select $_sets('view')::text as v",
        "create view $_over as select v from $_view",
    ]
    .iter()
    .map(|sql| sql.replace("$_", test))
    .collect()
}

const LEAVES: &[&str] = &[
    "select $_sets('a')",
    "select $_calls()",
    "select $_atomic()",
    "select $_dynamic('set work_mem = ''32MB''')",
    "select $_temporary()",
    "select $_locks()",
    "call $_procedure()",
    "insert into $_table values (1)",
    "select v from $_over",
    "copy $_table from stdin",
    "copy (select $_sets('copied')) to stdout",
    "explain (analyze, costs off, timing off, summary off) select set_config('app.left', 'explained', false)",
    "do $d$ begin perform set_config('app.left', 'done', false); end $d$",
    "do $d$ begin perform $_calls(); end $d$",
    "do $d$ begin create temp table left_here (n int); end $d$",
    "create function pg_temp.mine() returns int language sql as 'select 7'",
    "create table pg_temp.left_here (n int)",
    "select pg_advisory_lock(12), 1 / (select 0 from pg_am limit 1)",
    "begin; select pg_advisory_lock(13); rollback",
    "with x as (select pg_try_advisory_lock(14)) select * from x",
    "begin; declare c cursor for select set_config('app.left', 'fetched', false); fetch c; commit",
];

fn play(stage: &Stage, test: &str) -> Vec<String> {
    let mut seen = Vec::new();
    for leaves in LEAVES {
        let sql = leaves.replace("$_", test);
        let mut client = Client::connect(stage.port, &[]);
        if leaves.contains("stdin") {
            let bytes = batch().query(&sql).copy_data("1\n").bare(b'c');
            client.ask(&bytes.0);
        } else {
            client.ask(&query(&sql));
        }
        // Whoever comes between would get its backend, were it free.
        for _ in 0..2 {
            let between = Client::connect(stage.port, &[]).value(SHOWN);
            assert_eq!(
                between, "4MB|NULL|postgres|none|0",
                "{leaves} {:?}",
                stage.way
            );
            seen.push(format!("{leaves}: {}", client.value(SHOWN)));
        }
        drop(client);
        let after = Client::connect(stage.port, &[]).value(SHOWN);
        assert!(
            after == "4MB|NULL|postgres|none|0",
            "{leaves} {:?}: {after}",
            stage.way
        );
    }
    seen
}

#[test]
fn what_known_code_leaves_stays_with_its_session() {
    let mut admin = observer();
    for sql in made("known_") {
        let seen = admin.ask(&query(&sql));
        assert!(seen[0].starts_with('C'), "{sql}: {seen:?}");
    }
    crate::harness::same_in(&["mode = \"session\"", "size = 2"], |stage| {
        play(stage, "known_")
    });
}

#[test]
fn what_new_code_leaves_stays_with_its_session() {
    same(|stage| {
        let test = format!("new_{:?}_", stage.way).to_lowercase();
        let mut seen = Vec::new();
        stage.query(&made(&test)[0]);
        seen.extend(stage.query(&format!("select {test}sets('new')")));
        seen.extend(stage.query("show app.left"));
        seen.extend(stage.query("show app.left"));
        seen.into_iter()
            .map(|line| line.replace(&test, ""))
            .collect()
    });
}

/// Whether this session keeps its backend: the only one.
fn keeps(proxy: &Proxy, sql: &str) -> bool {
    let (mut other, mut client) = (proxy.client(), proxy.client());
    let seen = client.ask(&query(sql));
    assert!(
        !seen.iter().any(|line| line.starts_with('E')),
        "{sql}: {seen:?}"
    );
    let seen = other.ask(&query("select 1"));
    seen[0].starts_with("E ERROR 53300")
}

#[test]
fn code_that_leaves_nothing_keeps_no_backend() {
    let mut admin = observer();
    for sql in made("harm_") {
        admin.ask(&query(&sql));
    }
    let proxy = Proxy::start("size = 1\nwait_timeout = \"1s\"");
    until("the functions are known", || {
        !keeps(&proxy, "select harm_harmless(1)")
    });
    for sql in [
        "select harm_harmless(2)",
        "insert into harm_plain values (harm_harmless(1))",
        "do $$ begin perform harm_harmless(1); update harm_plain set n = 2; end $$",
        "select pg_advisory_xact_lock(1)",
        "copy (select harm_harmless(1)) to stdout",
        "explain analyze select harm_harmless(1)",
        "begin; declare c cursor for select harm_harmless(1); fetch c; commit",
        "select set_config('app.local', 'x', true), set_config('app.other', 'y', true)",
    ] {
        assert!(!keeps(&proxy, sql), "{sql}");
    }
    for sql in [
        "select harm_sets('x')",
        "insert into harm_table values (1)",
        "select * from harm_over",
    ] {
        assert!(keeps(&proxy, sql), "{sql}");
    }
}

#[test]
fn resetting_settings_does_not_reset_who_code_has_made_the_session() {
    observer().ask(&query("create role made_by_code"));
    same(|stage| {
        let mut seen = stage.query("do $$ begin execute 'set role made_by_code'; end $$");
        for sql in [
            "reset all",
            "set work_mem = '5MB'",
            "reset work_mem",
            "begin",
            "rollback",
        ] {
            seen.extend(stage.query(sql));
            seen.extend(stage.query("select current_user"));
        }
        seen.extend(stage.query("discard all"));
        seen.extend(stage.query("select current_user"));
        seen
    });
}
