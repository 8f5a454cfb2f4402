//! Clients that are gone without a goodbye, at moments when only the proxy can end what they have begun: what they held is
//! given back, and no server works for them any longer.

use crate::{
    client::query,
    harness::{Proxy, observer, until},
};

/// Statements under way on the server that hold this word.
fn running(word: &str) -> usize {
    let sql = format!(
        "select count(*) from pg_stat_activity where pid <> pg_backend_pid() \
         and state <> 'idle' and query like '%{word}%'"
    );
    observer().value(&sql).parse().unwrap()
}

#[test]
fn a_client_that_dies_within_the_header_of_copy_data_leaves_no_copy_behind() {
    let proxy = Proxy::start("size = 1");
    let mut client = proxy.client();
    client.ask(&query("create table unfinished (t text)"));
    client.send(&query("copy unfinished from stdin"));
    client.until("G");
    client.send(b"d\0\0");
    drop(client);
    // The only backend is another's now.
    let mut next = proxy.client();
    assert_eq!(next.value("select count(*) from unfinished"), "0");
}

#[test]
fn a_server_that_misses_the_first_cancel_does_not_work_for_the_dead() {
    let proxy = Proxy::start("size = 1");
    let mut client = proxy.client();
    // As a cancel that arrives before the statement has begun: the first is without effect.
    client.send(&query(
        "do $$ begin perform pg_sleep(600); exception when query_canceled then \
         perform pg_sleep(600) /* deaf */; end $$",
    ));
    until("it has begun", || running("/* deaf") == 1);
    drop(client);
    until("it has ended", || running("/* deaf") == 0);
    assert_eq!(proxy.client().value("select 1"), "1");
}
