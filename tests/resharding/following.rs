//! What a follower does with what it meets in the stream, and where it stops.

use super::{
    applying::{WIDE, Writers, begin, equal, fence, fill, moves, reshard, shards, soon, tenant},
    shards::{LIMIT, Reshard, Shards, block_on},
};
use shardway::{
    catalog::key::KeyType,
    replication::connection::{Lifetime, Snapshot},
    reshard::{
        job::{Direction, Job, StepError},
        steps::{catch_up::Follower, copy},
    },
    wire::replication::Lsn,
};

/// A table, copied, with rows of a tenant for each destination and of one who stays; those are what it answers.
pub(super) async fn copied(prefix: &str, more: &str) -> (Shards<'static>, Reshard, [String; 3]) {
    let shards = shards(prefix).await;
    shards.on_all(WIDE).await;
    shards.on_all(more).await;
    let tenants = [tenant(Some(0)), tenant(Some(1)), tenant(None)];
    for tenant in &tenants {
        let rows = format!(
            "INSERT INTO t SELECT {tenant}, id, id, NULL, repeat(md5(id::text), 100) FROM generate_series(1, 10) id"
        );
        shards.run("s", &rows).await;
    }
    let reshard = reshard(&shards, prefix, &["public.t"]).await;
    begin(&shards, &reshard.job).await;
    soon(copy::run(&reshard.job)).await;
    (shards, reshard, tenants)
}

/// Waits until everything is there that was written on the source before, and compares.
pub(super) async fn arrived(
    shards: &Shards<'_>,
    reshard: &Reshard,
    follower: &Follower,
    attempt: i32,
) {
    fence(shards, &reshard.job, attempt).await;
    soon(follower.fenced(attempt)).await;
    equal(shards, reshard).await;
}

pub(super) async fn halted(follower: &Follower) -> String {
    let failed = tokio::time::timeout(LIMIT, follower.failed()).await;
    match failed.expect("in time") {
        StepError::Halt { what, .. } | StepError::Grown { what } => what,
        other => panic!("{other}"),
    }
}

pub(super) async fn position(shards: &Shards<'_>, shard: &str) -> Lsn {
    let lsn = shards
        .one(shard, "SELECT pg_current_wal_insert_lsn()")
        .await;
    lsn.parse().unwrap()
}

/// A follower of the source that is past the consistency point.
async fn following(job: &Job) -> Follower {
    let follower = Follower::start(job, "s");
    soon(follower.consistent()).await;
    follower
}

#[test]
fn values_that_are_not_streamed_are_read_where_the_row_is() {
    block_on(async {
        let (shards, reshard, [a, b, stays]) = copied("toast", "").await;
        // Before anything of it is read: rows that have gone on by then, changed their values, or are gone.
        shards
            .run(
                "s",
                &format!(
                    "UPDATE t SET tenant = {b} , id = 101 WHERE tenant = {a} AND id = 1; \
                     UPDATE t SET tenant = {a}, id = 102 WHERE tenant = {b} AND id = 1; \
                     UPDATE t SET tenant = {a}, id = 103 WHERE tenant = {stays} AND id = 1; \
                     UPDATE t SET id = 104 WHERE tenant = {a} AND id = 2; UPDATE t SET id = 105 WHERE tenant = {a} AND id = 104; \
                     UPDATE t SET tenant = {b}, id = 106 WHERE tenant = {a} AND id = 3; DELETE FROM t WHERE id = 106; \
                     UPDATE t SET tenant = {b}, id = 107 WHERE tenant = {a} AND id = 4; \
                     UPDATE t SET tenant = {stays}, id = 108 WHERE id = 107; \
                     UPDATE t SET tenant = {b}, id = 109 WHERE tenant = {stays} AND id = 2; \
                     UPDATE t SET long = repeat('new', 3000) WHERE id = 109; \
                     UPDATE t SET tenant = {b}, id = 110 WHERE tenant = {stays} AND id = 3; \
                     DELETE FROM t WHERE id = 110; INSERT INTO t VALUES ({b}, 110, 1, 'another', 'short');"
                ),
            )
            .await;
        reshard.knobs.send_modify(|knobs| knobs.batch = 1);
        let follower = following(&reshard.job).await;
        arrived(&shards, &reshard, &follower, 1).await;
        let moved = format!("UPDATE t SET tenant = {b}, id = id + 200 WHERE tenant = {a}");
        shards.run("s", &moved).await;
        let moved =
            format!("UPDATE t SET tenant = {a}, id = id + 200 WHERE tenant = {stays} AND id < 9");
        shards.run("s", &moved).await;
        arrived(&shards, &reshard, &follower, 2).await;
        soon(follower.stop()).await;
    });
}

#[test]
fn it_stops_exactly_where_it_is_to() {
    block_on(async {
        let (shards, reshard, [a, ..]) = copied("paused", "").await;
        let follower = following(&reshard.job).await;
        let insert = |id: i32| format!("INSERT INTO t VALUES ({a}, {id}, 0, '', '')");
        shards.run("s", &insert(1001)).await;
        soon(follower.applied(position(&shards, "s").await)).await;
        let paused = soon(follower.pause()).await;
        shards.run("s", &insert(1002)).await;
        let one = position(&shards, "s").await;
        shards.run("s", &insert(1003)).await;
        let two = position(&shards, "s").await;
        shards.run("s", &insert(1004)).await;
        let there = "SELECT array_agg(id ORDER BY id) FROM t WHERE id > 1000";
        assert_eq!(shards.one("a", there).await, "{1001}");
        let paused = soon(follower.advance(paused, one)).await;
        assert_eq!(shards.one("a", there).await, "{1001,1002}");
        let paused = soon(follower.advance(paused, two)).await;
        assert_eq!(shards.one("a", there).await, "{1001,1002,1003}");
        // A position that has been passed.
        let late = follower.pause_at_first_commit_after(one).await;
        assert!(matches!(late, Err(StepError::Again { .. })), "{late:?}");
        paused.resume();
        let end = position(&shards, "s").await;
        soon(follower.applied(end)).await;
        assert_eq!(shards.one("a", there).await, "{1001,1002,1003,1004}");
        soon(follower.stop()).await;
    });
}

#[test]
fn unique_values_may_go_from_row_to_row() {
    block_on(async {
        let unique = "ALTER TABLE t ADD mark int UNIQUE DEFERRABLE; CREATE UNIQUE INDEX one ON t (tenant, n)";
        let (shards, reshard, [a, ..]) = copied("unique", unique).await;
        // In one transaction, so that they are one batch: values are exchanged, and go around.
        shards
            .run(
                "s",
                &format!(
                    "BEGIN; UPDATE t SET n = -1 WHERE tenant = {a} AND id = 1; UPDATE t SET n = 1 WHERE tenant = {a} AND id = 2; \
                     UPDATE t SET n = 2 WHERE tenant = {a} AND id = 1; \
                     UPDATE t SET mark = id WHERE tenant = {a}; UPDATE t SET mark = 11 - mark WHERE tenant = {a}; COMMIT"
                ),
            )
            .await;
        let follower = following(&reshard.job).await;
        arrived(&shards, &reshard, &follower, 1).await;
        let exchanged = format!("SELECT n, mark FROM t WHERE tenant = {a} AND id = 1");
        assert_eq!(shards.one("a", &exchanged).await, "2|10");
        soon(follower.stop()).await;
    });
}

#[test]
fn a_large_transaction_is_applied_in_pieces_and_seen_at_once() {
    block_on(async {
        let (shards, reshard, [a, b, _]) = copied("large", "").await;
        reshard.knobs.send_modify(|knobs| knobs.batch = 100);
        let follower = following(&reshard.job).await;
        let counted = "SELECT count(*) FROM t WHERE id > 1000";
        shards
            .run(
                "s",
                &format!(
                    "BEGIN; INSERT INTO t SELECT CASE id % 2 WHEN 0 THEN {a} ELSE {b} END, id, 0, '', '' \
                         FROM generate_series(1001, 41000) id; \
                     UPDATE t SET n = 1 WHERE id > 1000; COMMIT"
                ),
            )
            .await;
        let seen = async {
            loop {
                let count = shards.one("a", counted).await;
                assert!(["0", "20000"].contains(&count.as_str()), "{count}");
                if count != "0" {
                    return;
                }
            }
        };
        tokio::time::timeout(LIMIT, seen).await.unwrap();
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
    });
}

#[test]
fn a_table_that_is_emptied_loses_what_came_from_there() {
    block_on(async {
        let (shards, reshard, [a, b, stays]) = copied("emptied", "").await;
        let follower = following(&reshard.job).await;
        // Of another source, in a table that serves.
        let other = format!("INSERT INTO t VALUES ({stays}, 5000, 0, '', '')");
        shards.run("a", &other).await;
        shards
            .run(
                "s",
                &format!(
                    "INSERT INTO t VALUES ({a}, 2000, 0, '', ''); TRUNCATE t; \
                     INSERT INTO t VALUES ({a}, 1, 0, 'after', ''), ({b}, 2000, 0, '', '')"
                ),
            )
            .await;
        fence(&shards, &reshard.job, 1).await;
        soon(follower.fenced(1)).await;
        let rows = "SELECT id, note FROM t ORDER BY id";
        assert_eq!(shards.rows("a", rows).await, ["1|after", "5000|"]);
        assert_eq!(shards.rows("b", rows).await, ["2000|"]);
        soon(follower.stop()).await;
    });
}

#[test]
fn a_table_that_changes_its_columns_stops_it() {
    block_on(async {
        let (shards, reshard, [a, ..]) = copied("columns", "").await;
        let follower = following(&reshard.job).await;
        let change =
            format!("ALTER TABLE t ADD more int; UPDATE t SET more = 1 WHERE tenant = {a}");
        shards.run("s", &change).await;
        let what = halted(&follower).await;
        assert!(what.contains("public.t") && what.contains("more"), "{what}");
        let again = Follower::start(&reshard.job, "s");
        let what = halted(&again).await;
        assert!(what.contains("more integer"), "{what}");
    });
}

#[test]
fn a_row_that_is_not_as_it_must_be_stops_it_by_name() {
    block_on(async {
        for (prefix, wrong, written, expected) in [
            (
                "gone",
                "DELETE FROM t WHERE id = 7",
                "UPDATE t SET n = 5 WHERE id = 7",
                "UPDATE",
            ),
            (
                "doubled",
                "INSERT INTO t VALUES ($, 70, 0, '', '')",
                "INSERT INTO t VALUES ($, 70, 0, '', '')",
                "23505",
            ),
        ] {
            let (shards, reshard, [a, ..]) = copied(prefix, "").await;
            let follower = following(&reshard.job).await;
            shards.run("a", &wrong.replace('$', &a)).await;
            // Among others, which are not applied either.
            let more = format!(
                "BEGIN; UPDATE t SET n = 99 WHERE tenant = {a} AND id = 1; {written}; COMMIT"
            );
            shards.run("s", &more.replace('$', &a)).await;
            let what = halted(&follower).await;
            let key = if prefix == "gone" { "7" } else { "70" };
            let named = format!("public.t with the key ({a}, {key})");
            assert!(what.contains(&named) && what.contains(expected), "{what}");
            let count = "SELECT count(*) FROM t WHERE n = 99";
            assert_eq!(shards.one("a", count).await, "0");
        }
    });
}

#[test]
fn a_runner_that_was_replaced_applies_nothing_more() {
    block_on(async {
        let (shards, mut reshard, [a, ..]) = copied("replaced", "").await;
        let old = following(&reshard.job).await;
        reshard.job.token = 2;
        let new = Follower::start(&reshard.job, "s");
        // It has the token on both destinations before it can have the slot.
        let taken = async {
            for shard in ["a", "b"] {
                let token = "SELECT token FROM shardway.apply_progress";
                while shards.one(shard, token).await != "2" {}
            }
        };
        tokio::time::timeout(LIMIT, taken).await.unwrap();
        let row = format!("INSERT INTO t VALUES ({a}, 1001, 0, '', '')");
        shards.run("s", &row).await;
        let failed = tokio::time::timeout(LIMIT, old.failed()).await;
        assert!(matches!(failed, Ok(StepError::Replaced)), "{failed:?}");
        drop(old);
        arrived(&shards, &reshard, &new, 1).await;
        soon(new.stop()).await;
    });
}

#[test]
fn the_slot_of_an_idle_source_moves() {
    block_on(async {
        let (shards, reshard, _) = copied("idle", "").await;
        let follower = following(&reshard.job).await;
        // Of another table, thus nothing that is streamed.
        shards
            .run(
                "s",
                "CREATE TABLE other AS SELECT generate_series(1, 100000)",
            )
            .await;
        let end = position(&shards, "s").await;
        soon(follower.applied(end)).await;
        let moved = format!(
            "SELECT confirmed_flush_lsn >= '{end}' FROM pg_replication_slots WHERE slot_name = '{}'",
            reshard.job.slot("s")
        );
        let moves = async { while shards.one("s", &moved).await != "t" {} };
        tokio::time::timeout(LIMIT, moves).await.unwrap();
        let lag = follower.lag();
        assert!(lag.bytes < 1 << 20 && lag.millis < 30_000, "{lag:?}");
        soon(follower.stop()).await;
    });
}

#[test]
fn changes_go_back_once_the_owners_have_changed() {
    block_on(async {
        let (shards, reshard, [a, b, _]) = copied("back", "").await;
        let follower = following(&reshard.job).await;
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
        let back = Job {
            direction: Direction::Back,
            ..reshard.job.clone()
        };
        for shard in ["a", "b"] {
            let client = shards.server(shard).sql().await.unwrap();
            let tables = ["public.t".to_owned(), "shardway.fence".to_owned()];
            let name = back.slot(shard);
            shardway::replication::publication::make(&client, &name, &tables)
                .await
                .unwrap();
            let mut commands = shards.server(shard).stream().await.unwrap();
            shardway::replication::slot::make(&client, &mut commands, &name)
                .await
                .unwrap();
            // What the source has already.
            shards.run(shard, "UPDATE t SET n = n").await;
            let from = position(&shards, shard).await;
            let begin = format!(
                "INSERT INTO shardway.apply_progress (workflow, source, lsn, token) VALUES ('back', '{}', '{from}', 1)",
                back.followed(shard)
            );
            shards.run("s", &begin).await;
        }
        let followers = [Follower::start(&back, "a"), Follower::start(&back, "b")];
        let written = "UPDATE t SET n = n + 100 WHERE id < 5; DELETE FROM t WHERE id = 9";
        shards.run("a", written).await;
        shards.run("b", written).await;
        shards
            .run(
                "b",
                &format!("INSERT INTO t VALUES ({b}, 77, 0, '', repeat('x', 9000))"),
            )
            .await;
        for (shard, follower) in ["a", "b"].into_iter().zip(&followers) {
            let end = position(&shards, shard).await;
            soon(follower.applied(end)).await;
        }
        equal(&shards, &reshard).await;
        let there = format!("SELECT count(*), sum(n) FROM t WHERE tenant IN ({a}, {b})");
        assert_eq!(shards.one("s", &there).await, "19|892");
        for follower in followers {
            soon(follower.stop()).await;
        }
    });
}

#[test]
fn destinations_may_be_apart() {
    block_on(async {
        let (shards, reshard, [a, b, _]) = copied("apart", "").await;
        let follower = following(&reshard.job).await;
        let locker = shards.server("a").sql().await.unwrap();
        locker
            .batch_execute("BEGIN; LOCK TABLE public.t")
            .await
            .unwrap();
        for id in 1001..1100 {
            let both = format!(
                "INSERT INTO t VALUES ({a}, {id}, 0, '', ''), ({b}, {id}, 0, '', ''); \
                 UPDATE t SET tenant = {b}, id = id + 5000 WHERE tenant = {a} AND id = {id} - 1 AND id % 2 = 0; \
                 DELETE FROM t WHERE id = {id} - 7"
            );
            shards.run("s", &both).await;
        }
        let count = format!("SELECT count(*) FROM t WHERE tenant = {b}");
        let all = shards.one("s", &count).await;
        let ahead = async { while shards.one("b", &count).await != all {} };
        tokio::time::timeout(LIMIT, ahead).await.unwrap();
        drop(follower);
        locker.batch_execute("ROLLBACK").await.unwrap();
        let progress = "SELECT lsn FROM shardway.apply_progress";
        let (behind, ahead) = (
            shards.one("a", progress).await,
            shards.one("b", progress).await,
        );
        assert!(behind.parse::<Lsn>().unwrap() < ahead.parse().unwrap());
        let again = Follower::start(&reshard.job, "s");
        arrived(&shards, &reshard, &again, 1).await;
        soon(again.stop()).await;
    });
}

#[test]
fn where_it_stops_is_what_an_exported_snapshot_sees() {
    block_on(async {
        let shards = shards("exact").await;
        fill(&shards).await;
        let reshard = reshard(&shards, "exact", &["public.t", "public.w"]).await;
        begin(&shards, &reshard.job).await;
        soon(copy::run(&reshard.job)).await;
        let writers = Writers::start("exact_s", 4);
        let follower = following(&reshard.job).await;
        for _ in 0..3 {
            let paused = soon(follower.pause()).await;
            let mut commands = shards.server("s").stream().await.unwrap();
            let made = commands.create_slot("exact", Lifetime::Temporary, Snapshot::Exported);
            let made = made.await.unwrap();
            let client = shards.server("s").sql().await.unwrap();
            let snapshot = format!(
                "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{}'",
                made.snapshot.unwrap()
            );
            client.batch_execute(&snapshot).await.unwrap();
            // The next round wants the name.
            commands.drop_slot("exact").await.unwrap();
            let paused = soon(follower.advance(paused, made.consistent)).await;
            for (table, columns) in [
                ("t", "tenant, id, n, note"),
                ("w", "name, part, tenant, mood, tags"),
            ] {
                // Values that are not streamed may be those of a later change already, which comes later in the stream too.
                for it in moves() {
                    let condition = it.keys.sql("tenant", KeyType::Bigint).unwrap();
                    let rows = format!(
                        "SELECT count(*) || md5(string_agg(r::text, ' ' ORDER BY r::text COLLATE \"C\")) \
                         FROM (SELECT {columns} FROM public.{table} WHERE {condition}) r"
                    );
                    let seen: String = client.query_one(&rows, &[]).await.unwrap().get(0);
                    assert_eq!(
                        shards.one(&it.to, &rows).await,
                        seen,
                        "{table} on {}",
                        it.to
                    );
                }
            }
            paused.resume();
        }
        writers.end().await;
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
    });
}

#[test]
fn a_follower_ends_within_a_bound_and_says_who_may_yet_do_something() {
    block_on(async {
        let (shards, reshard, [a, ..]) = copied("ending", "").await;
        let mut follower = following(&reshard.job).await;
        // What is applied waits for whoever holds this, and its server answers nothing meanwhile.
        let (holder, held) = shards.session("a").await;
        let mut driven = tokio::task::JoinSet::new();
        driven.spawn(held);
        let lock = "BEGIN; LOCK TABLE t IN SHARE MODE";
        holder.batch_execute(lock).await.unwrap();
        let insert = format!("INSERT INTO t VALUES ({a}, 1001, 0, '', '')");
        shards.run("s", &insert).await;
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
        while shards.one("a", waits).await == "0" {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let ended = tokio::time::timeout(LIMIT / 2, follower.end()).await;
        match ended.expect("bounded") {
            Err(StepError::Again { what, problem }) => {
                assert!(what.contains("shard a"), "{what}");
                assert!(problem.contains("has not answered"), "{problem}");
            }
            other => panic!("{other:?}"),
        }
        holder.batch_execute("COMMIT").await.unwrap();
        drop(holder);
        driven.join_next().await.unwrap().unwrap().unwrap();
        soon(follower.end()).await;
        let open = "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass";
        assert_eq!(shards.one("a", open).await, "0", "nothing is under way");
    });
}
