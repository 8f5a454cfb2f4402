//! Resharding from three shards to four while clients write: nothing that was acknowledged is lost or there twice, nothing
//! fails that need not, whatever dies in between.
//!
//! Needs the feature `failpoints`. `SHARDWAY_RESHARD=all` takes every victim at every point, which takes long.

#![cfg(test)]
#![expect(
    clippy::disallowed_methods,
    reason = "clients run on their own, and how long they waited is what is claimed"
)]

#[expect(
    dead_code,
    reason = "the harness of another suite, of which this one uses a part"
)]
#[path = "../cluster/harness.rs"]
mod harness;
mod kinds;
mod ledger;
mod load;
mod stage;

use harness::block_on;
use load::Load;
use stage::{Stage, to};

/// What moves: an even split over four shards.
const TO: [&str; 4] = ["--group", "g", "--to", "s0,s1,s2,s3"];

#[test]
fn rows_move_there_and_back_and_there_again_while_clients_write() {
    let stage = Stage::open();
    let (first, second) = (stage.proxy(""), stage.proxy(""));
    block_on(async {
        stage.fill(&first).await;
        let proxies = [to(&first), to(&second)];
        let load = Load::start(&proxies, 6);
        stage.must(&[&["start"], &TO[..]].concat()).await;
        stage.until("ready").await;
        for verb in ["cutover", "rollback", "cutover"] {
            stage.must(&[verb]).await;
            stage.until("reverse").await;
            let pause = &stage.status().await["progress"]["cutover.pause_ms"];
            println!("{verb}: statements were held for {pause} ms at most");
        }
        stage.must(&["finish"]).await;
        stage.until("done").await;
        let seen = load.stop().await;
        stage.adds_up(&proxies[0], &seen).await;
        stage.adds_up(&proxies[1], &seen).await;
        stage.is_clean().await;
        let errors = seen.errors.lock().unwrap().clone();
        assert!(
            errors.is_empty(),
            "{} errors: {:?}",
            errors.len(),
            &errors[..errors.len().min(5)]
        );
    });
}

#[test]
fn a_leader_that_dies_at_any_point_of_a_cutover_is_replaced_and_nothing_is_lost() {
    let stage = Stage::open();
    let mut plain = stage.proxy("");
    block_on(async {
        stage.fill(&plain).await;
        let load = Load::start(&[to(&plain)], 4);
        stage.must(&[&["start"], &TO[..]].concat()).await;
        stage.until("ready").await;
        for (point, verb) in [
            ("after_hold", "cutover"),
            ("after_fence", "rollback"),
            ("after_drain", "cutover"),
            ("after_flip", "rollback"),
            ("after_activate", "cutover"),
            ("before_reverse", "rollback"),
        ] {
            let mut armed = stage.proxy(&format!("{point}:kill"));
            load.seen.goes_to(&[to(&armed)]);
            plain.signal("KILL");
            let dies = async {
                tokio::task::spawn_blocking(move || armed.wait())
                    .await
                    .unwrap();
                plain = stage.proxy("");
                load.seen.goes_to(&[to(&plain)]);
            };
            // The command waits for the end of the cutover, whoever leads it.
            let verbs = [verb];
            tokio::join!(stage.must(&verbs), dies);
            stage.until("reverse").await;
            println!("{point}, {verb}: done");
        }
        stage.must(&["cutover"]).await;
        stage.until("reverse").await;
        stage.must(&["finish"]).await;
        stage.until("done").await;
        let seen = load.stop().await;
        stage.adds_up(&to(&plain), &seen).await;
        stage.is_clean().await;
        let errors = seen.errors.lock().unwrap().clone();
        let wrong = errors.iter().find(|error| error.starts_with("wrong"));
        assert_eq!(wrong, None);
    });
}

#[test]
fn an_aborted_reshard_leaves_nothing_behind() {
    let stage = Stage::open();
    let proxy = stage.proxy("");
    block_on(async {
        stage.fill(&proxy).await;
        let load = Load::start(&[to(&proxy)], 4);
        stage.must(&[&["start"], &TO[..]].concat()).await;
        stage.until("ready").await;
        // A shard that has joined leaves with it.
        for verb in ["cutover", "rollback"] {
            stage.must(&[verb]).await;
            stage.until("reverse").await;
        }
        stage.must(&["abort"]).await;
        stage.until("aborted").await;
        let seen = load.stop().await;
        let errors = seen.errors.lock().unwrap().clone();
        assert!(
            errors.is_empty(),
            "{} errors: {:?}",
            errors.len(),
            &errors[..errors.len().min(5)]
        );
        stage.adds_up(&to(&proxy), &seen).await;
        stage.is_clean().await;
    });
}
