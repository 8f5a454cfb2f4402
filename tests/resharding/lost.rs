//! Slots that a server has given up, servers that failed over, and another server at an address: rows are copied again, or
//! nothing is done; no change in between is lost.

use super::{
    applying::{equal, fence, filled, reshard, soon},
    shards::{LIMIT, Reshard, Shards, alone, block_on, servers},
};
use shardway::{
    reshard::{
        dump::Tools,
        identity::{Identity, Known, identify},
        job::{Job, StepError},
        steps::{abort, catch_up::Follower, copy, prepare},
    },
    sandbox::Sandbox,
};
use std::sync::Arc;

/// Two servers: the source, and both destinations.
fn two(settings: &[(&str, &str)]) -> Sandbox {
    servers(2, settings)
}

/// Everything up to the end of the copy.
async fn copied(shards: &Shards<'_>, id: &str) -> Reshard {
    let reshard = reshard(shards, id, &["public.t"]).await;
    soon(prepare::run(&reshard.job, &Tools::default())).await;
    soon(copy::run(&reshard.job)).await;
    reshard
}

/// What is left of a copy on the destinations: rows, and records of them.
async fn there(shards: &Shards<'_>) -> Vec<String> {
    const COUNT: &str = "\
SELECT (SELECT count(*) FROM t) + (SELECT count(*) FROM shardway.chunk_done) + (SELECT count(*) FROM shardway.apply_progress)";
    let mut counts = Vec::new();
    for shard in ["a", "b"] {
        counts.push(shards.one(shard, COUNT).await);
    }
    counts
}

/// Copies again, follows, and sees that both sides are alike.
async fn catches_up(shards: &Shards<'_>, reshard: &Reshard, (job, attempt): (&Job, i32)) {
    soon(copy::run(job)).await;
    let follower = Follower::start(job, "s");
    soon(follower.consistent()).await;
    shards
        .run("s", "UPDATE t SET n = n + 1 WHERE id > 300")
        .await;
    fence(shards, job, attempt).await;
    soon(follower.fenced(attempt)).await;
    equal(shards, reshard).await;
    soon(follower.stop()).await;
}

async fn failed(follower: &Follower) -> StepError {
    let failed = tokio::time::timeout(LIMIT, follower.failed()).await;
    failed.expect("in time")
}

#[test]
fn rows_are_copied_again_when_the_slot_was_lost() {
    let sandbox = two(&[
        ("max_slot_wal_keep_size", "48MB"),
        ("max_wal_size", "32MB"),
        ("min_wal_size", "32MB"),
    ]);
    block_on(async {
        let shards = filled("slot_lost", sandbox.cluster(0), sandbox.cluster(1)).await;
        let reshard = copied(&shards, "slot_lost").await;
        let job = &reshard.job;
        // What nobody will ever be told of.
        shards
            .run(
                "s",
                "DELETE FROM t WHERE id % 3 = 0; UPDATE t SET n = -1 WHERE id % 5 = 0",
            )
            .await;
        let status = "SELECT coalesce(wal_status, '-') FROM pg_replication_slots WHERE slot_name LIKE 'shardway%'";
        for _segment in 0..20 {
            if shards.one("s", status).await == "lost" {
                break;
            }
            shards
                .run(
                    "s",
                    "INSERT INTO shardway.journal (workflow, token, event) VALUES ('-', 0, '-')",
                )
                .await;
            shards.run("s", "SELECT pg_switch_wal()").await;
            shards.run("s", "CHECKPOINT").await;
        }
        assert_eq!(shards.one("s", status).await, "lost");
        let again = copy::run(job).await;
        assert!(matches!(again, Err(StepError::Lost { .. })), "{again:?}");
        let follower = Follower::start(job, "s");
        let ended = failed(&follower).await;
        assert!(matches!(ended, StepError::Lost { .. }), "{ended:?}");
        drop(follower);
        assert_ne!(there(&shards).await, ["0", "0"]);
        for _again in 0..2 {
            soon(prepare::run(job, &Tools::default())).await;
            assert_eq!(there(&shards).await, ["0", "0"]);
        }
        catches_up(&shards, &reshard, (job, 1)).await;

        // Somebody drops it: alike.
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE slot_name LIKE 'shardway%'";
        shards.run("s", drop).await;
        shards.run("s", "DELETE FROM t WHERE id % 7 = 0").await;
        let again = copy::run(job).await;
        assert!(matches!(again, Err(StepError::Lost { .. })), "{again:?}");
        soon(prepare::run(job, &Tools::default())).await;
        catches_up(&shards, &reshard, (job, 2)).await;
        soon(abort::run(job)).await;
        assert_eq!(there(&shards).await, ["0", "0"]);
        let left = "SELECT count(*) FROM pg_replication_slots";
        assert_eq!(shards.one("s", left).await, "0");
        assert_eq!(
            shards
                .one("s", "SELECT count(*) FROM shardway.server")
                .await,
            "0"
        );
    });
}

/// The job with what its servers have to be, as a runner has it.
async fn knowing(job: &Job, shards: &Shards<'_>, known: fn(Identity) -> Known) -> Job {
    let mut servers = (*job.servers).clone();
    let rows = shards
        .rows("s", "SELECT shard, system, timeline FROM shardway.server")
        .await;
    assert_eq!(rows.len(), 3);
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        let identity = Identity {
            system: cells[1].to_owned(),
            timeline: cells[2].parse().unwrap(),
        };
        servers.get_mut(cells[0]).unwrap().known = known(identity);
    }
    Job {
        servers: Arc::new(servers),
        ..job.clone()
    }
}

#[test]
fn a_source_that_failed_over_is_not_gone_on_with_as_it_was() {
    let sandbox = two(&[("restore_command", "false")]);
    block_on(async {
        let shards = filled("failed_over", sandbox.cluster(0), sandbox.cluster(1)).await;
        let reshard = copied(&shards, "failed_over").await;
        let job = knowing(&reshard.job, &shards, Known::Exactly).await;
        soon(copy::run(&job)).await;
        let before = identify(&job.servers["s"].sql().await.unwrap())
            .await
            .unwrap()
            .unwrap();

        // What a promoted standby does, or a backup that was restored: the end of its WAL, and another timeline.
        let source = sandbox.cluster(0);
        source.stop();
        std::fs::write(source.data_dir().join("recovery.signal"), "").unwrap();
        source.start().unwrap();
        while shards.one("s", "SELECT pg_is_in_recovery()").await == "t" {}
        let plain = shards.server("s").sql().await.unwrap();
        let after = identify(&plain).await.unwrap().unwrap();
        assert_eq!(before.system, after.system);
        assert_ne!(before.timeline, after.timeline);

        shards.run("s", "DELETE FROM t WHERE id % 3 = 0").await;
        let again = copy::run(&job).await;
        assert!(
            matches!(again, Err(StepError::FailedOver { .. })),
            "{again:?}"
        );
        let follower = Follower::start(&job, "s");
        let ended = failed(&follower).await;
        assert!(matches!(ended, StepError::FailedOver { .. }), "{ended:?}");
        assert!(
            ended.to_string().contains("its timeline is 2, and was 1"),
            "{ended}"
        );
        drop(follower);
        let streamed = job.servers["s"].stream().await;
        assert!(streamed.is_err());

        // Somebody says that it goes on: everything from there is copied again, slot or no slot.
        let system = knowing(&reshard.job, &shards, Known::System).await;
        soon(prepare::run(&system, &Tools::default())).await;
        assert_eq!(there(&shards).await, ["0", "0"]);
        let job = knowing(&reshard.job, &shards, Known::Exactly).await;
        catches_up(&shards, &reshard, (&job, 1)).await;
        soon(abort::run(&job)).await;
    });
}

#[test]
fn another_server_at_an_address_is_not_touched() {
    // Made by itself, not copied from what others are copied from.
    let (sandbox, own) = (servers(1, &[]), alone());
    block_on(async {
        let shards = filled("another", sandbox.cluster(0), own.cluster(0)).await;
        let reshard = copied(&shards, "another").await;
        let job = knowing(&reshard.job, &shards, Known::System).await;
        // The address of a destination leads to the source's server, which has all of the rows.
        let mut servers = (*job.servers).clone();
        let address = servers["s"].address.clone();
        servers.get_mut("a").unwrap().address = address;
        let wrong = Job {
            servers: Arc::new(servers),
            ..job.clone()
        };
        let before = shards.one("s", "SELECT count(*) FROM t").await;
        for ended in [
            copy::run(&wrong).await,
            prepare::run(&wrong, &Tools::default()).await,
            abort::run(&wrong).await,
        ] {
            let Err(StepError::Halt { what, remedy }) = ended else {
                panic!("{ended:?}");
            };
            assert!(what.contains("another server answers"), "{what}");
            assert!(remedy.contains("address"), "{remedy}");
        }
        assert_eq!(shards.one("s", "SELECT count(*) FROM t").await, before);
        soon(abort::run(&job)).await;
        assert_eq!(there(&shards).await, ["0", "0"]);
    });
}
