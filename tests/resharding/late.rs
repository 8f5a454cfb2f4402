//! What an earlier runner, or an earlier try, still has open on a server, or does there too late.

use super::{
    applying::{WIDE, reshard, shards, soon, tenant},
    following::{self, halted, position},
    shards::{LIMIT, Reshard, Shards, block_on, servers},
};
use shardway::{
    replication::{durable::FLUSH, publication, slot, stream::Lag},
    reshard::{
        dump::Tools,
        job::{Direction, Job, StepError},
        steps::{abort, catch_up::Follower, copy, prepare, records},
    },
};
use std::time::Duration;

const OTHER: &str = "CREATE TABLE u (tenant bigint, id bigint, PRIMARY KEY (tenant, id))";

/// Two tables, copied; a tenant who goes to `a`.
async fn copied(prefix: &str) -> (Shards<'static>, Reshard, String) {
    let shards = shards(prefix).await;
    shards.on_all(WIDE).await;
    shards.on_all(OTHER).await;
    let goes = tenant(Some(0));
    let rows = format!(
        "INSERT INTO t SELECT {goes}, id, id, NULL, '' FROM generate_series(1, 10) id; INSERT INTO u SELECT tenant, id FROM t"
    );
    shards.run("s", &rows).await;
    let reshard = reshard(&shards, prefix, &["public.t", "public.u"]).await;
    soon(prepare::run(&reshard.job, &Tools::default())).await;
    soon(copy::run(&reshard.job)).await;
    (shards, reshard, goes)
}

/// A batch on `a` that has put a row into `t` and waits for whoever holds one of `u`.
async fn batch(shards: &Shards<'_>, goes: &str) -> deadpool_postgres::Client {
    let holder = shards.server("a").sql().await.unwrap();
    let row = format!("INSERT INTO public.u VALUES ({goes}, 1000)");
    holder
        .batch_execute(&format!("BEGIN; {row}"))
        .await
        .unwrap();
    let written = format!("BEGIN; INSERT INTO t VALUES ({goes}, 1000, 0, '', ''); {row}; COMMIT");
    shards.run("s", &written).await;
    until(
        shards,
        "wait_event_type = 'Lock' AND query LIKE 'INSERT INTO \"public\".\"u\"%'",
    )
    .await;
    holder
}

/// Waits until a session of `a` is like that.
async fn until(shards: &Shards<'_>, is: &str) {
    let asked = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND {is}"
    );
    let seen = async { while shards.one("a", &asked).await == "0" {} };
    if tokio::time::timeout(LIMIT, seen).await.is_err() {
        let all = "SELECT state, wait_event_type, query FROM pg_stat_activity WHERE datname = current_database()";
        panic!("{is}: {:#?}", shards.rows("a", all).await);
    }
}

#[test]
fn a_batch_that_is_open_is_never_committed_after_its_rows_were_deleted() {
    block_on(async {
        for (prefix, token) in [("late_other", 2), ("late_own", 1)] {
            let (shards, reshard, goes) = copied(prefix).await;
            let mut follower = Some(Follower::start(&reshard.job, "s"));
            soon(follower.as_ref().unwrap().consistent()).await;
            let holder = batch(&shards, &goes).await;
            if token == 1 {
                // Dropped in the middle of it.
                drop(follower.take());
            }
            let next = Job {
                token,
                ..reshard.job.clone()
            };
            let mut aborting = Box::pin(soon(abort::run(&next)));
            let waits = "wait_event_type = 'Lock' AND query LIKE '%shardway.apply_progress%'";
            let waited = tokio::select! {
                () = &mut aborting => false,
                () = until(&shards, waits) => true,
            };
            holder.batch_execute("ROLLBACK").await.unwrap();
            if waited {
                aborting.await;
            }
            if let Some(follower) = follower {
                let ended = tokio::time::timeout(LIMIT, follower.failed()).await;
                ended.expect("in time");
            }
            for table in ["t", "u"] {
                let left = format!("SELECT count(*) FROM {table}");
                assert_eq!(shards.one("a", &left).await, "0", "{prefix}: {table}");
            }
            assert!(!waited, "{prefix}: it waited for somebody who is not there");
        }
    });
}

#[test]
fn who_takes_a_run_over_ends_what_the_runner_before_has_open() {
    block_on(async {
        let (shards, reshard, goes) = copied("late_taken").await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        let holder = batch(&shards, &goes).await;
        let next = Job {
            token: 2,
            ..reshard.job.clone()
        };
        soon(records::claim_all(&next)).await;
        holder.batch_execute("ROLLBACK").await.unwrap();
        let ended = tokio::time::timeout(LIMIT, follower.failed()).await;
        let ended = ended.expect("in time");
        assert!(matches!(ended, StepError::Replaced), "{ended:?}");
        let late = "SELECT count(*) FROM t WHERE id = 1000";
        assert_eq!(shards.one("a", late).await, "0");
        // Nor does it begin again, from where nothing is known yet.
        shards.run("a", "DELETE FROM shardway.apply_progress").await;
        let again = Follower::start(&reshard.job, "s");
        let ended = tokio::time::timeout(LIMIT, again.failed()).await;
        assert!(matches!(ended, Ok(StepError::Replaced)), "{ended:?}");
        let follower = Follower::start(&next, "s");
        soon(follower.now()).await;
        assert_eq!(shards.one("a", late).await, "1");
        // Its own stay.
        soon(records::claim_all(&next)).await;
        soon(follower.now()).await;
        soon(follower.stop()).await;
        soon(abort::run(&next)).await;
    });
}

#[test]
fn a_slot_that_is_past_what_was_brought_back_is_not_gone_on_with() {
    block_on(async {
        let (shards, reshard, _) = following::copied("late_slot", "").await;
        let back = Job {
            direction: Direction::Back,
            ..reshard.job.clone()
        };
        let server = shards.server("a");
        let client = server.sql().await.unwrap();
        let tables = ["public.t".to_owned(), "shardway.fence".to_owned()];
        let name = back.slot("a");
        publication::make(&client, &name, &tables).await.unwrap();
        let mut commands = server.stream().await.unwrap();
        slot::make(&client, &mut commands, &name).await.unwrap();
        let noted = format!(
            "INSERT INTO shardway.apply_progress (workflow, source, lsn, token) VALUES ('late_slot', '{}', '{}', 1)",
            back.followed("a"),
            position(&shards, "a").await
        );
        shards.run("s", &noted).await;
        shards.run("a", "UPDATE t SET n = n + 100").await;
        shards.run("a", FLUSH).await;
        let advance =
            format!("SELECT pg_replication_slot_advance('{name}', pg_current_wal_flush_lsn())");
        shards.run("a", &advance).await;
        let follower = Follower::start(&back, "a");
        // In place of a follower that has nothing to say.
        let went_on = async {
            while follower.lag() == Lag::default() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            said = halted(&follower) => assert!(said.contains("keeps them from"), "{said}"),
            () = went_on => panic!("it went on, and a row is missing"),
        }
    });
}

#[test]
fn what_was_read_of_a_source_is_made_durable_there() {
    // Nobody else makes it so for that long.
    let sandbox = servers(1, &[("wal_writer_delay", "10s")]);
    block_on(async {
        let shards = Shards::new("durable", &[("s", sandbox.cluster(0))]).await;
        shards.run("s", "CREATE TABLE t (id int)").await;
        let (writer, reader) = (shards.server("s"), shards.server("s"));
        let (writer, reader) = (writer.sql().await.unwrap(), reader.sql().await.unwrap());
        // As a role may have it.
        let off = "SET synchronous_commit = off";
        writer.batch_execute(off).await.unwrap();
        reader.batch_execute(off).await.unwrap();
        for _write in 0..20 {
            let write = "INSERT INTO public.t VALUES (1)";
            writer.batch_execute(write).await.unwrap();
            let written = position(&shards, "s").await;
            reader.batch_execute(FLUSH).await.unwrap();
            let flushed = shards.one("s", "SELECT pg_current_wal_flush_lsn()").await;
            let flushed: shardway::wire::replication::Lsn = flushed.parse().unwrap();
            assert!(flushed >= written, "{flushed}, and {written} was read");
        }
    });
}

#[test]
fn a_home_shard_that_gives_and_gets_nothing_keeps_nothing() {
    block_on(async {
        let (one, other) = (super::applying::server(0), super::applying::server(1));
        let at = [("h", one), ("s", one), ("a", other), ("b", other)];
        let shards = Shards::new("late_home", &at).await;
        shards.on_all(WIDE).await;
        let rows = "INSERT INTO t SELECT n % 40, n, n, NULL, '' FROM generate_series(1, 400) n";
        shards.run("s", rows).await;
        let tables = vec![shards.table("s", "public.t", Some("g")).await];
        let reshard = shards
            .reshard("bigint", super::applying::moves(), tables)
            .await;
        let job = &reshard.job;
        soon(prepare::run(job, &Tools::default())).await;
        soon(copy::run(job)).await;
        let compared = format!(
            "INSERT INTO shardway.verify (workflow, source, destination, relation, part, rows) VALUES ('{}', 's', 'a', 't', 1, 1)",
            job.id
        );
        shards.run("h", &compared).await;
        let left =
            "SELECT (SELECT count(*) FROM shardway.chunk), (SELECT count(*) FROM shardway.verify)";
        assert_ne!(shards.one("h", left).await, "0|0");
        soon(abort::run(job)).await;
        assert_eq!(shards.one("h", left).await, "0|0");
    });
}
