//! Statements and transactions that come to the gate by a way of their own: their snapshot is taken where nothing of a
//! table is touched, their names are given in the same text, their database was gone meanwhile, their transaction is
//! followed by another.

use crate::{
    client::{Client, batch, query},
    harness::until,
    holding::{DDL, Held, answers, at_second, three, waiting},
    owners::Engine,
    three::Three,
};
use shardway::wire::frontend::put;

const READ: &str = "select n from t where id = 3";

/// The proxies know that keys move; what has moved is not there yet.
fn announced(three: Three<'_>) -> (Held, Engine) {
    let (mut held, engine) = (Held::of(three), Engine::of(three));
    held.announce(&engine);
    held.known(2);
    (held, engine)
}

/// A call of a function of PostgreSQL's own that takes nothing: `pg_backend_pid`.
fn call() -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, b'F', |out| {
        out.extend_from_slice(&2026_u32.to_be_bytes());
        out.extend_from_slice(&[0; 6]);
    });
    bytes
}

#[test]
fn a_snapshot_that_was_taken_before_a_flip_is_not_read_behind_it() {
    // Where a view is on one shard, that answers for all.
    let (tables, _view) = DDL.split_once("; create view").unwrap();
    let three = Three {
        ddl: tables,
        pool: "size = 24",
        ..three("pass_snapshot")
    };
    let (mut held, engine) = announced(three);
    let mut clients = Vec::new();
    let begin = "begin isolation level repeatable read";
    let mut client = at_second(&held);
    let piped = batch().run("show work_mem", &[]).run(begin, &[]);
    let found = client.ask(&piped.run("select 1", &[]).sync().0);
    assert_eq!(found.last().map(String::as_str), Some("Z T"), "{found:?}");
    clients.push(client);
    let mut client = held.stand.proxy.client();
    answers(&mut client, "set shardway.shard = 's1'");
    answers(&mut client, begin);
    let found = client.ask(&call());
    assert_eq!(found.last().map(String::as_str), Some("Z T"), "{found:?}");
    answers(&mut client, "reset shardway.shard");
    clients.push(client);
    held.add_copies();
    held.hold(1, 60);
    held.drained(1, 2);
    Held::flip(&engine, 1);
    held.known(2);
    for mut client in clients {
        let found = client.ask(&query(READ));
        assert!(found[0].contains("40001"), "{found:?}");
    }
}

#[test]
fn what_a_text_prepares_and_executes_waits() {
    let mut held = Held::while_held("pass_prepared");
    let texts = [
        "prepare p as select n from t where id = $1; execute p(1)",
        "prepare p as update t set n = n + 1 where id = $1; execute p(2)",
        "deallocate q; prepare q as select n from t where id = $1; execute q(3)",
        "deallocate all; prepare q as select n from t where id = $1; execute q(4)",
    ];
    let mut clients = Vec::new();
    for text in texts {
        let mut client = held.other.client();
        answers(&mut client, "prepare q as select n from u where id = $1");
        client.send(&query(text));
        clients.push(client);
    }
    waiting(&held.other, texts.len());
    held.end("released");
    for client in &mut clients {
        let found = client.answers(1);
        let done = found
            .iter()
            .any(|line| line.starts_with('D') || line.contains("UPDATE 1"));
        assert!(done, "{found:?}");
    }
}

#[test]
fn a_database_that_was_gone_for_a_while_has_its_gate_still() {
    let mut held = Held::start("pass_gone");
    let mut idle = held.stand.proxy.client();
    let mut busy = held.stand.proxy.client();
    for client in [&mut idle, &mut busy] {
        answers(client, "begin");
        answers(client, "select n from t where id = 1");
    }
    held.stand
        .proxy
        .reload("databases.postgres", "databases.gone");
    held.stand
        .proxy
        .reload("databases.gone", "databases.postgres");
    let mut fresh = held.stand.proxy.client();
    until("the database is looked at", || {
        fresh.ask(&query("select count(*) from u"))[0].starts_with('T')
    });
    answers(&mut idle, "commit");
    held.hold(1, 60);
    // Who has touched its keys under the old configuration is waited for.
    held.waited_for(1);
    fresh.send(&query("select n from t where id = 2"));
    waiting(&held.stand.proxy, 1);
    idle.send(&query(READ));
    waiting(&held.stand.proxy, 2);
    answers(&mut busy, "commit");
    held.end("released");
    for client in [&mut fresh, &mut idle] {
        let found = client.answers(1);
        assert!(found.contains(&"D 0".to_owned()), "{found:?}");
    }
}

#[test]
fn a_transaction_behind_another_is_at_the_gate_by_itself() {
    let three = Three {
        pool: "size = 24",
        ..three("pass_chain")
    };
    let (mut held, engine) = (Held::of(three), Engine::of(three));
    held.double(&engine);
    held.known(2);
    let touch = "update t set n = n + 1 where id = 1";
    let both = "update t set n = n + 1 where id in (1, 101)";
    let mut clients: Vec<Client> = Vec::new();
    for (touches, chain) in [
        (touch, query("commit and chain")),
        (touch, query("rollback and chain")),
        (touch, batch().run("commit and chain", &[]).sync().0),
        (both, query("commit and chain")),
        (both, batch().run("rollback and chain", &[]).sync().0),
        (
            touch,
            query("commit and chain; select n from u where id = 5"),
        ),
    ] {
        let mut client = held.stand.proxy.client();
        answers(&mut client, "begin");
        answers(&mut client, touches);
        let found = client.ask(&chain);
        assert_eq!(found.last().map(String::as_str), Some("Z T"), "{found:?}");
        clients.push(client);
    }
    let mut last = held.stand.proxy.client();
    answers(&mut last, "begin");
    answers(&mut last, "commit and chain; select n from t where id = 4");
    held.hold(1, 60);
    held.waited_for(1);
    answers(&mut last, "commit");
    held.drained(1, 2);
    for client in &mut clients {
        client.send(&query(READ));
    }
    waiting(&held.stand.proxy, clients.len());
    held.end("released");
    for client in &mut clients {
        assert!(client.answers(1).contains(&"D 0".to_owned()));
    }
}

#[test]
fn what_stands_behind_a_commit_in_its_batch_is_committed_with_it_or_not_at_all() {
    let name = "pass_commit";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    let mut client = held.stand.proxy.client();
    answers(&mut client, "begin");
    answers(&mut client, "select * from u where id = 101");
    held.hold(1, 60);
    held.drained(1, 2);
    Held::flip(&engine, 1);
    held.known(2);
    let piped = batch()
        .run("commit", &[])
        .run("insert into u values (102, 1)", &[])
        .run("update t set n = n + 1 where id = 3", &[])
        .run("select 1 / 0", &[]);
    let found = client.ask(&piped.sync().0);
    let failed = found.iter().any(|line| line.contains("22012"));
    assert!(failed, "{found:?}");
    assert_eq!(client.value("select count(*) from u where id = 102"), "0");
    assert_eq!(client.value(READ), "100");
}

#[test]
fn a_change_of_tables_in_the_extended_protocol_does_not_keep_its_proxy_from_what_moves() {
    let name = "pass_changed";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    let mut client = held.stand.proxy.client();
    answers(&mut client, "begin");
    let change = batch().run("alter table u add column x int", &[]);
    let found = client.ask(&change.sync().0);
    assert_eq!(found.last().map(String::as_str), Some("Z T"), "{found:?}");
    held.announce(&engine);
    held.known(2);
    let found = client.ask(&batch().run("commit", &[]).sync().0);
    assert_eq!(found, ["1 ", "2 ", "C COMMIT\\0", "Z I"]);
}

#[test]
fn who_waited_before_the_gate_is_answered_by_the_owner_of_then() {
    let name = "pass_late";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    let mut client = held.stand.proxy.client();
    answers(&mut client, "begin");
    answers(&mut client, "select * from u where id = 101");
    held.hold(1, 60);
    held.drained(1, 2);
    Held::flip(&engine, 1);
    held.known(2);
    let lock = "begin; update u set n = 1 where id = 101";
    held.stand.shards[1].ask(&query(lock));
    let piped = batch().run("update u set n = 2 where id = 101", &[]);
    client.send(&piped.run(READ, &[]).sync().0);
    let waits = "select count(*) from pg_stat_activity where datname = 'pass_late_1' and wait_event_type = 'Lock'";
    let home = &mut held.stand.shards[0];
    until("it waits for the row", || home.value(waits) == "1");
    // Meanwhile the keys move on.
    held.stand.shards[2].ask(&query(
        "insert into t select g, 200 from generate_series(1, 9) g",
    ));
    held.hold(2, 60);
    held.drained(2, 2);
    Held::flip_on(&engine, 2, ("s1", "s2"));
    let mut other = held.stand.proxy.client();
    until("the proxy knows of it", || other.value(READ) == "200");
    held.stand.shards[1].ask(&query("rollback"));
    let found = client.answers(1);
    assert!(found.contains(&"D 200".to_owned()), "{found:?}");
}
