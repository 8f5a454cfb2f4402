//! Transfers over three shards while something dies: a proxy, a server, a connection, at each point between the first
//! PREPARE TRANSACTION and the last COMMIT PREPARED, and at any time. Afterwards all shards agree, every commit that was
//! acknowledged is there, none that was refused is, and nothing stays prepared.
//!
//! Needs the feature `failpoints`. `SHARDWAY_KILLS=all` takes every victim at every point, which takes minutes.

#![cfg(test)]

#[expect(
    dead_code,
    reason = "the harness of another suite, of which this one uses a part"
)]
#[path = "../cluster/harness.rs"]
mod harness;
mod stage;
mod tpcb;

use harness::{Proxy, block_on};
use stage::{Stage, Told, Victim};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

/// Points in the order in which a commit reaches them, and whether it is committed then.
const POINTS: [(&str, bool); 8] = [
    ("preparing", false),
    ("half-prepared", false),
    ("prepared", false),
    ("deciding", false),
    ("decided", true),
    ("finishing", true),
    ("half-finished", true),
    ("finished", true),
];
/// The shard that is used last decides.
const DECIDER: usize = 2;

fn all() -> bool {
    std::env::var_os("SHARDWAY_KILLS").is_some_and(|kills| kills == "all")
}

#[test]
fn a_proxy_that_is_killed_at_any_point_leaves_whole_transactions() {
    let stage = Stage::open();
    block_on(async {
        // Each dies at another point, and those who are left find them all.
        let mut left = Vec::new();
        for (point, committed) in POINTS {
            let proxy = stage.proxy();
            let number = stage.number();
            let told = stage
                .transfer_to(&proxy, number, point, || proxy.signal("KILL"))
                .await;
            assert_eq!(told, Told::Closed, "{point}");
            left.push((point, number, committed));
        }
        let survivor = stage.proxy();
        stage.settles().await;
        for (point, number, committed) in left {
            assert_eq!(stage.present(number).await, committed, "{point}");
        }
        stage.adds_up().await;
        // Rows that it held are free again.
        let told = stage.transfer(&survivor, stage.number()).await;
        assert_eq!(told, Told::Committed);
    });
}

#[test]
fn a_connection_that_is_lost_at_any_point_leaves_whole_transactions() {
    lose(&[Victim::Connection]);
}

#[test]
fn a_server_that_is_killed_at_any_point_leaves_whole_transactions() {
    lose(&[Victim::Server]);
}

/// Loses the decider and another shard at the points.
fn lose(victims: &[Victim]) {
    let stage = Stage::open();
    block_on(async {
        let proxy = stage.proxy();
        stage.is_ready(&proxy).await;
        for victim in victims {
            for (point, committed) in POINTS {
                for shard in [DECIDER, 0] {
                    let quick = matches!(point, "prepared" | "deciding" | "half-finished");
                    if *victim == Victim::Server && !quick && !all() {
                        continue;
                    }
                    let number = stage.number();
                    let told = stage
                        .transfer_to(&proxy, number, point, || stage.lose(*victim, shard, number))
                        .await;
                    stage.settles().await;
                    let present = stage.present(number).await;
                    let case = format!("{victim:?} {shard} at {point}: {told:?}");
                    match &told {
                        Told::Committed => assert!(present, "{case}"),
                        Told::RolledBack(_) => assert!(!present, "{case}"),
                        Told::Doubtful | Told::Closed => {}
                    }
                    // What is decided is never undone; a shard that is prepared need not be there to be decided about.
                    assert!(present || !committed, "{case}");
                }
            }
        }
        stage.adds_up().await;
    });
}

#[test]
fn a_server_that_stays_away_leaves_the_commit_in_doubt_until_it_is_back() {
    let stage = Stage::open();
    block_on(async {
        let proxy = stage.proxy();
        // The decider at its COMMIT: nobody knows; another behind the decision: it is committed.
        for (point, shard, committed) in [("deciding", DECIDER, false), ("decided", 0, true)] {
            let number = stage.number();
            let told = stage
                .transfer_to(&proxy, number, point, || stage.kill(shard))
                .await;
            assert_eq!(told, Told::Doubtful, "{point}");
            stage.revive(shard);
            stage.settles().await;
            assert_eq!(stage.present(number).await, committed, "{point}");
        }
        stage.adds_up().await;
    });
}

#[test]
fn transfers_go_on_while_everything_dies() {
    let stage = Arc::new(Stage::open());
    let seconds = if all() { 120 } else { 10 };
    let over = Arc::new(AtomicBool::new(false));
    let proxy: Arc<std::sync::Mutex<Proxy>> = Arc::new(std::sync::Mutex::new(stage.proxy()));
    let committed = Arc::new(AtomicU64::new(0));
    #[expect(clippy::needless_collect, reason = "all work at once")]
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let (stage, over, proxy) = (Arc::clone(&stage), Arc::clone(&over), Arc::clone(&proxy));
            let committed = Arc::clone(&committed);
            std::thread::spawn(move || {
                let mut told = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    let port = proxy.lock().unwrap().port;
                    let number = stage.number();
                    let outcome = block_on(stage.transfer_at(port, number));
                    if outcome == Told::Committed {
                        committed.fetch_add(1, Ordering::Relaxed);
                    }
                    told.push((number, outcome));
                }
                told
            })
        })
        .collect();
    let begun = SystemTime::now();
    let mut round = 0;
    while begun.elapsed().unwrap() < Duration::from_secs(seconds) {
        let before = committed.load(Ordering::Relaxed);
        harness::until("transfers commit", || {
            committed.load(Ordering::Relaxed) > before + 3
        });
        match round % 4 {
            0 => stage.lose_all_connections(round / 4 % 3),
            1 => stage.lose(Victim::Server, round / 4 % 3, 0),
            2 => {
                let mut proxy = proxy.lock().unwrap();
                proxy.signal("KILL");
                *proxy = stage.proxy();
            }
            _ => {}
        }
        round += 1;
    }
    over.store(true, Ordering::Relaxed);
    let told: Vec<_> = workers
        .into_iter()
        .flat_map(|worker| worker.join().unwrap())
        .collect();
    block_on(async {
        stage.settles().await;
        for (number, told) in &told {
            let present = stage.present(*number).await;
            match told {
                Told::Committed => assert!(present, "{number} was acknowledged"),
                Told::RolledBack(why) => assert!(!present, "{number} was rolled back: {why}"),
                Told::Doubtful | Told::Closed => {}
            }
        }
        stage.adds_up().await;
    });
    assert!(
        committed.load(Ordering::Relaxed) > 20 && round > 3,
        "{round} rounds"
    );
}
