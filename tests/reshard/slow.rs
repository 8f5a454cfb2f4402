//! Cutovers among those who are slow, with the knobs as they are by default: transactions that last longer than the first
//! attempts wait for, and changes that come late.

use crate::{
    TO, block_on,
    harness::{PATIENCE, open_session},
    load::ACCOUNTS,
    stage::{Stage, to},
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::Duration,
};
use tokio_postgres::Config;

/// Clients; with so many, somebody is nearly always at it for longer than the first attempt waits.
const CLIENTS: i64 = 8;
/// Longer than a lock is waited for at first, and than statements under way; shorter than an eighth of how long statements
/// are held.
const LASTS: Duration = Duration::from_millis(90);
/// Each attempt has twice the time of the one before: the third has more than the transactions need.
const ATTEMPTS: i64 = 8;

#[test]
fn a_cutover_ends_though_transactions_last_longer_than_its_first_attempt_waits() {
    let stage = Stage::open();
    let proxy = stage.proxy(0);
    block_on(async {
        stage.fill(&proxy).await;
        stage.must(&[&["start"], &TO[..]].concat()).await;
        stage.until("ready").await;
        let (stop, written) = (Arc::default(), Arc::default());
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
                tokio::spawn(write(to(&proxy), client, stop, written))
            })
            .collect();
        for verb in ["cutover", "rollback"] {
            let before = stage.status().await["attempt"].as_i64().unwrap();
            let told = tokio::time::timeout(PATIENCE, stage.must(&[verb])).await;
            let told = told.unwrap_or_else(|_| panic!("{verb} has not come to an end"));
            stage.until("reverse").await;
            let tried = stage.status().await["attempt"].as_i64().unwrap() - before;
            assert!(tried <= ATTEMPTS, "{verb}: {tried} attempts\n{told}");
        }
        stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.await.unwrap();
        }
        let asked = open_session(&to(&proxy)).await.unwrap();
        let sum = "select sum(balance)::bigint from account";
        let sum: i64 = asked.query_one(sum, &[]).await.unwrap().get(0);
        let written: i64 = written.load(Ordering::Relaxed);
        assert!(written > CLIENTS, "{written} transactions");
        assert_eq!(sum, ACCOUNTS * 1000 + written, "what was acknowledged");
    });
}

#[test]
fn nothing_is_held_before_changes_come_at_once() {
    let stage = Stage::open();
    let proxy = stage.proxy(0);
    block_on(async {
        stage.fill(&proxy).await;
        stage.must(&[&["start"], &TO[..]].concat()).await;
        stage.until("ready").await;
        // Guards are made on the destination, too.
        while stage.status().await["step"] != "made" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let late = stage.session(3).await;
        let lock = "begin; select from account for update";
        late.batch_execute(lock).await.unwrap();
        let application = open_session(&to(&proxy)).await.unwrap();
        let write = "update account set balance = balance + 0";
        application.batch_execute(write).await.unwrap();
        stage.asks("cutover").await;
        let home = stage.session(0).await;
        let waits = async {
            loop {
                let held = "select count(*) from shardway.hold";
                let held: i64 = home.query_one(held, &[]).await.unwrap().get(0);
                assert_eq!(held, 0, "statements were held");
                let status = stage.status().await;
                let waits = status["progress"]["waiting_for"].as_str();
                if waits.is_some_and(|it| it.starts_with("changes to be applied: ")) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, waits).await.is_err() {
            panic!(
                "it does not tell what it waits for: {:#}",
                stage.stands().await
            );
        }
        let write = application.batch_execute(write);
        let written = tokio::time::timeout(PATIENCE, write).await;
        written.expect("nothing is held").unwrap();
        late.batch_execute("commit").await.unwrap();
        stage.until("reverse").await;
    });
}

/// One transaction after the other, each open for a while after it has written.
async fn write(to: Config, client: i64, stop: Arc<AtomicBool>, written: Arc<AtomicI64>) {
    let session = open_session(&to).await.unwrap();
    let mut account = client;
    while !stop.load(Ordering::Relaxed) {
        account = (account + CLIENTS) % ACCOUNTS;
        let id = account + 1;
        let write = format!("begin; update account set balance = balance + 1 where id = {id}");
        session.batch_execute(&write).await.unwrap();
        tokio::time::sleep(LASTS).await;
        session.batch_execute("commit").await.unwrap();
        written.fetch_add(1, Ordering::Relaxed);
    }
}
