//! Ends in every moment: of the client, of the backend.

use crate::{
    client::{batch, query},
    harness::{Proxy, observer, same, until},
};

#[test]
fn what_was_sent_before_terminate_runs_to_its_end() {
    same(|stage| {
        let name = format!("terminated_{:?}", stage.way).to_lowercase();
        stage.query(&format!("create table {name} (n int)"));
        let insert = format!("insert into {name} select 1 from pg_sleep(0.3)");
        stage.client.send(
            &batch()
                .query(&insert)
                .query(&insert)
                .run(&insert, &[])
                .sync()
                .bare(b'X')
                .0,
        );
        stage.client.half_close();
        let mut seen = Vec::new();
        while let Some((tag, body)) = stage.client.frame() {
            seen.push(crate::client::shown(tag, &body));
        }
        seen.push(observer().value(&format!("select count(*) from {name}")));
        seen
    });
}

#[test]
fn a_backend_that_is_ended_says_so_once() {
    same(|stage| {
        let mut seen = stage.query("begin");
        let pid = stage.query("select pg_backend_pid()")[1][2..].to_owned();
        stage.client.send(&query("select 'doomed', pg_sleep(100)"));
        let mut observer = observer();
        until("the query runs", || {
            observer.value(&format!("select state = 'active' and query like '%doomed%' from pg_stat_activity where pid = {pid}")) == "t"
        });
        observer.ask(&query(&format!("select pg_terminate_backend({pid})")));
        while let Some((tag, body)) = stage.client.frame() {
            seen.push(crate::client::shown(tag, &body));
        }
        seen
    });
}

#[test]
fn a_transaction_whose_backend_is_ended_is_told_and_over() {
    same(|stage| {
        let mut seen = stage.query("begin");
        let pid = stage.query("select pg_backend_pid()")[1][2..].to_owned();
        observer().ask(&query(&format!("select pg_terminate_backend({pid})")));
        while let Some((tag, body)) = stage.client.frame() {
            seen.push(crate::client::shown(tag, &body));
        }
        seen
    });
}

#[test]
fn an_idle_backend_that_was_ended_is_not_handed_out() {
    let proxy = Proxy::start("size = 2");
    let mut client = proxy.client();
    let mut observer = observer();
    for _ in 0..20 {
        let pid = client.value("select pg_backend_pid()");
        observer.ask(&query(&format!("select pg_terminate_backend({pid})")));
        until("it is gone", || {
            observer.value(&format!(
                "select count(*) from pg_stat_activity where pid = {pid}"
            )) == "0"
        });
        assert_ne!(client.value("select pg_backend_pid()"), pid);
    }
}

#[test]
fn rows_before_the_end_of_a_backend_are_whole() {
    let proxy = Proxy::start("size = 1");
    let mut client = proxy.client();
    client.send(&query(
        "select pg_backend_pid(), repeat('x', 1000000) from generate_series(1, 200)",
    ));
    let (_, first) = client.frame().unwrap();
    assert!(!first.is_empty());
    let (_, row) = client.frame().unwrap();
    let length = usize::try_from(u32::from_be_bytes([row[2], row[3], row[4], row[5]])).unwrap();
    let pid = String::from_utf8(row[6..6 + length].to_vec()).unwrap();
    observer().ask(&query(&format!("select pg_terminate_backend({pid})")));
    let mut ends = Vec::new();
    while let Some((tag, body)) = client.frame_or_cut() {
        if tag != b'D' {
            ends.push(crate::client::shown(tag, &body));
        }
    }
    assert!(
        ends.len() <= 1 && ends.iter().all(|end| end.starts_with("E FATAL")),
        "{ends:?}"
    );
}
