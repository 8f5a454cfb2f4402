//! Who holds a backend: nobody gets one that is in use, and none is lost whatever becomes of its clients.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, observer, until},
};

/// As many backends as there should be can be held at once, and not one more.
fn assert_whole(proxy: &Proxy, size: usize) {
    let mut one_more = proxy.client();
    let mut holders: Vec<Client> = (0..size).map(|_| proxy.client()).collect();
    for holder in &mut holders {
        assert_eq!(holder.ask(&query("begin")), ["C BEGIN\\0", "Z T"]);
    }
    let seen = one_more.ask(&query("select 1"));
    assert!(seen[0].starts_with("E ERROR 53300"), "{seen:?}");
    for holder in &mut holders {
        holder.ask(&query("commit"));
    }
    assert_eq!(one_more.value("select 1"), "1");
}

#[test]
fn clients_that_leave_while_they_wait_cost_no_backend() {
    let proxy = Proxy::start("size = 2\nwait_timeout = \"3s\"");
    for round in 0..30 {
        let mut holders = [proxy.client(), proxy.client()];
        let mut waiting: Vec<Client> = (0..8).map(|_| proxy.client()).collect();
        for holder in &mut holders {
            holder.ask(&query("begin"));
        }
        for client in &mut waiting {
            client.send(&query("begin"));
        }
        // Some leave before, some after, and some in the moment that a backend is handed to them.
        waiting.truncate(4 + round % 4);
        let mut holders = holders.into_iter();
        drop(holders.next());
        waiting.truncate(round % 3);
        drop(holders.next());
    }
    until("every backend is back", || {
        observer().value("select count(*) from pg_stat_activity where state like 'idle in transaction%' and query = 'begin'") == "0"
    });
    assert_whole(&proxy, 2);
}

#[test]
fn backends_that_die_are_replaced_and_never_exceeded() {
    let proxy = Proxy::start("size = 3\nwait_timeout = \"3s\"");
    let mut observer = observer();
    for _ in 0..10 {
        let mut clients: Vec<Client> = (0..3).map(|_| proxy.client()).collect();
        for client in &mut clients {
            assert_eq!(client.ask(&query("begin"))[0], "C BEGIN\\0");
            let pid = client.value("select pg_backend_pid()");
            observer.ask(&query(&format!("select pg_terminate_backend({pid})")));
        }
        for mut client in clients {
            assert_eq!(client.answers(1).last().unwrap(), "closed");
        }
    }
    assert_whole(&proxy, 3);
}

#[test]
fn a_client_that_dies_within_a_message_leaves_nothing_behind() {
    let proxy = Proxy::start("size = 1\nwait_timeout = \"10s\"");
    let mut admin = proxy.client();
    admin.ask(&query("create table half (t text)"));
    let long = "x".repeat(3 << 20);
    let bind = batch()
        .parse("", "insert into half values ($1)")
        .bind("", "", &[&long])
        .execute("", 0)
        .sync();
    let copy = batch().query("copy half from stdin").copy_data(&long);
    let text = query(&format!("insert into half values ('{long}')"));
    for bytes in [&bind.0, &copy.0, &text] {
        for part in [bytes.len() / 2, bytes.len() - 1] {
            let mut leaving = proxy.client();
            leaving.send(&query("begin"));
            leaving.answers(1);
            leaving.send(&query("insert into half values ('uncommitted')"));
            leaving.answers(1);
            leaving.send(&bytes[..part]);
            drop(leaving);
            assert_eq!(proxy.client().value("select count(*) from half"), "0");
        }
    }
    assert_whole_of_one(&proxy);
}

fn assert_whole_of_one(proxy: &Proxy) {
    let mut holder = proxy.client();
    holder.ask(&query("begin"));
    assert_eq!(holder.value("select 1"), "1");
    holder.ask(&query("commit"));
}

/// Another client is not served until this one's backend is free.
fn assert_held(other: &mut Client, holder: &mut Client, what: &str, free: &[u8]) {
    let seen = other.ask(&query("select 'other'"));
    assert!(seen[0].starts_with("E ERROR 53300"), "{what}: {seen:?}");
    holder.send(free);
    holder.until("Z I");
    assert_eq!(other.value("select 'other'"), "other", "{what}");
}

#[test]
fn a_backend_stays_with_its_client_until_it_is_idle() {
    let proxy = Proxy::start("size = 1\nwait_timeout = \"1s\"");
    let (mut client, mut other) = (proxy.client(), proxy.client());
    client.ask(&query("create table held (n int)"));
    client.send(&query("copy held from stdin"));
    client.until("G");
    client.send(&batch().copy_data("1\n").0);
    assert_held(&mut other, &mut client, "COPY", &batch().bare(b'c').0);
    client.send(&batch().run("copy held from stdin", &[]).flush().0);
    client.until("G");
    let end = batch().copy_data("1\n").bare(b'c').sync();
    assert_held(&mut other, &mut client, "COPY in a pipeline", &end.0);
    client.ask(&query("begin"));
    client.ask(&query("select 1/0"));
    assert_held(
        &mut other,
        &mut client,
        "a failed transaction",
        &query("rollback"),
    );
    client.ask(&query("begin"));
    client.ask(&query("savepoint a"));
    client.ask(&query("select 1/0"));
    client.ask(&query("rollback to a"));
    assert_held(&mut other, &mut client, "ROLLBACK TO", &query("commit"));
    client.ask(&query("begin"));
    client.ask(&query("commit and chain"));
    assert_held(
        &mut other,
        &mut client,
        "COMMIT AND CHAIN",
        &query("rollback"),
    );
    client.ask(&query("begin"));
    client.ask(&query("rollback and chain"));
    assert_held(
        &mut other,
        &mut client,
        "ROLLBACK AND CHAIN",
        &query("rollback"),
    );
    client.send(&batch().run("select 1", &[]).flush().0);
    client.until("C");
    assert_held(
        &mut other,
        &mut client,
        "a pipeline without Sync",
        &batch().sync().0,
    );
    let syncs = batch().run("begin", &[]).sync().run("select 1", &[]).sync();
    client.ask2(&syncs.0);
    assert_held(&mut other, &mut client, "two Syncs", &query("commit"));
}

#[test]
fn a_transaction_that_the_server_ends_for_idleness_is_told_and_over() {
    crate::harness::same(|stage| {
        let mut seen = stage.query("set idle_in_transaction_session_timeout = '100ms'");
        seen.extend(stage.query("begin"));
        while let Some((tag, body)) = stage.client.frame() {
            seen.push(crate::client::shown(tag, &body));
        }
        seen
    });
}

#[test]
fn a_backend_that_the_server_ends_for_idleness_is_nobodys_error() {
    let proxy = Proxy::start("size = 1");
    let mut observer = observer();
    for _ in 0..5 {
        // One message of a client that has set nothing else: between two the backend could be idle for too long.
        let set = "set idle_session_timeout = '20ms'; select pg_backend_pid()";
        let pid = proxy.client().value(set);
        until("the server has ended it", || {
            observer.value(&format!(
                "select count(*) from pg_stat_activity where pid = {pid}"
            )) == "0"
        });
        assert_eq!(proxy.client().value("select 1"), "1");
    }
}
