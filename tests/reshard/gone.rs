//! Shards that are gone for good, and proxies that do not know a shard: what is given up leaves nothing where it can be
//! reached, and nobody runs a reshard of which he knows a part only.

use crate::{
    TO, block_on,
    harness::{PATIENCE, open_session},
    load::ACCOUNTS,
    stage::{Stage, to},
};
use std::time::{Duration, Instant};

/// Slow enough that a copy lasts until something was done to it.
const SLOWLY: [&str; 4] = ["--set", "bytes_per_second=10000", "--set", "chunk_rows=20"];

#[test]
fn a_run_is_given_up_without_a_shard_that_is_gone_for_good() {
    let mut stage = Stage::open();
    let proxy = stage.proxy(0);
    block_on(async {
        stage.fill(&proxy).await;
        let start = [&["start"], &TO[..], &SLOWLY[..]].concat();
        stage.must(&start).await;
        stage.until("copy").await;
        let refused = stage.reshard(&["abort", "--without", "s3"]).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(said.contains("shard s3 answers"), "{said}");
        assert_eq!(refused.status.code(), Some(3), "{said}");
        stage.kill(3);
        stage.must(&["abort"]).await;
        // Sources keep no WAL for what will never be read.
        for shard in 0..3 {
            let client = stage.session(shard).await;
            let slots = "select count(*) from pg_replication_slots";
            holds("its slot goes", async || {
                client.query_one(slots, &[]).await.unwrap().get::<_, i64>(0) == 0
            })
            .await;
        }
        holds("it says how it can be ended", async || {
            let waits = stage.status().await["waiting_for"].to_string();
            waits.contains("shard s3") && waits.contains("reshard abort --without s3")
        })
        .await;
        let refused = stage.reshard(&["abort", "--without", "s0"]).await;
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(!refused.status.success(), "{said}");
        assert!(said.contains("only s3 may"), "{said}");
        stage.must(&["abort", "--without", "s3"]).await;
        stage.until("aborted").await;
        let asked = open_session(&to(&proxy)).await.unwrap();
        let count = asked.query_one("select count(*) from account", &[]).await;
        assert_eq!(count.unwrap().get::<_, i64>(0), ACCOUNTS);
        stage.setting.servers = 3;
        stage.has_nothing_left().await;
    });
}

#[test]
fn who_does_not_know_a_shard_that_takes_part_does_not_go_on_with_a_run() {
    let mut stage = Stage::open();
    let mut first = stage.proxy(0);
    block_on(async {
        stage.fill(&first).await;
        stage.must(&[&["start"], &TO[..]].concat()).await;
        stage.until("ready").await;
        stage.setting.shards = 3;
        let second = stage.proxy(1);
        stage.setting.shards = 4;
        let lead = stage.lead().await;
        first.signal("KILL");
        first.wait();
        holds("it says why it does not lead", async || {
            second.log().contains("lacks a shard that takes part")
        })
        .await;
        let home = stage.session(0).await;
        let free = "select until < clock_timestamp() - interval '3 s' from shardway.leader";
        holds("nobody leads for a while", async || {
            home.query_one(free, &[]).await.unwrap().get(0)
        })
        .await;
        assert_eq!(stage.lead().await, lead, "it has taken the run over");
        let third = stage.proxy(0);
        stage.led_since(lead).await;
        stage.must(&["cutover"]).await;
        stage.must(&["finish"]).await;
        stage.until("done").await;
        let asked = open_session(&to(&third)).await.unwrap();
        let count = asked.query_one("select count(*) from account", &[]).await;
        assert_eq!(count.unwrap().get::<_, i64>(0), ACCOUNTS);
    });
}

/// Waits until something is so.
async fn holds(what: &str, is_so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !is_so().await {
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
