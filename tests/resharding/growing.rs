//! Tables that get columns while they are followed: no row is taken without its values, and none that was read before it is
//! planned is passed over.

use super::{
    applying::{WIDE, begin, equal, reshard, shards, soon, tenant},
    following::{arrived, copied, halted},
    shards::{LIMIT, Reshard, Shards, block_on},
};
use shardway::reshard::{
    job::StepError,
    plan::Plan,
    steps::{
        catch_up::Follower,
        columns::{Columns, look},
        copy,
    },
};
use std::sync::Arc;
use tokio::task::JoinSet;

/// That it ends for a column that was not planned; what it says.
async fn grown(follower: &Follower) -> String {
    let failed = tokio::time::timeout(LIMIT, follower.failed()).await;
    match failed.expect("in time") {
        StepError::Grown { what } => what,
        other => panic!("{other}"),
    }
}

/// The plan with what all of them have; what was added.
async fn planned(reshard: &Reshard) -> (Plan, Vec<String>) {
    match look(&reshard.job).await {
        Ok(Columns::More { plan, what }) => (*plan, what),
        other => panic!("{other:?}"),
    }
}

/// Waits until everything is there that was written on the source before.
async fn comes(shards: &Shards<'_>, reshard: &Reshard, attempt: i32) {
    let follower = Follower::start(&reshard.job, "s");
    soon(follower.consistent()).await;
    arrived(shards, reshard, &follower, attempt).await;
    soon(follower.stop()).await;
}

#[test]
fn a_column_that_both_sides_have_comes_with_its_rows() {
    block_on(async {
        let (shards, mut reshard, [a, b, _]) = copied("grown", "").await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        shards
            .on_all("ALTER TABLE t ADD more int NOT NULL DEFAULT 5, ADD last text")
            .await;
        let write = format!(
            "INSERT INTO t VALUES ({a}, 50, 0, 'n', 'l', 50, 'x'), ({b}, 51, 0, 'n', 'l', 51, NULL); \
             UPDATE t SET more = id, last = 'u' WHERE id = 3"
        );
        shards.run("s", &write).await;
        let what = grown(&follower).await;
        assert!(what.contains("public.t") && what.contains("more"), "{what}");
        soon(follower_ends(follower)).await;
        let count = "SELECT count(*) FROM t WHERE id = 50 OR more <> 5";
        assert_eq!(shards.one("a", count).await, "0", "nothing without it");
        let (plan, told) = planned(&reshard).await;
        assert_eq!(told, ["public.t: +more integer, +last text"]);
        reshard.job.plan = Arc::new(plan);
        comes(&shards, &reshard, 1).await;
        assert_eq!(shards.one("a", count).await, "2");
    });
}

/// What it ended with, it has told.
async fn follower_ends(mut follower: Follower) -> Result<(), StepError> {
    follower.end().await
}

#[test]
fn rows_of_before_a_column_have_what_the_source_has_in_it() {
    block_on(async {
        let (shards, mut reshard, [a, b, stays]) = copied("earlier", "").await;
        reshard.knobs.send_modify(|knobs| knobs.batch = 3);
        shards
            .run(
                "s",
                &format!(
                    "INSERT INTO t SELECT {a}, id, 0, 'early', '' FROM generate_series(100, 120) id; \
                     UPDATE t SET n = -1 WHERE id < 4; UPDATE t SET tenant = {b}, id = 201 WHERE tenant = {a} AND id = 4; \
                     UPDATE t SET tenant = {a}, id = 202 WHERE tenant = {stays} AND id = 4; \
                     DELETE FROM t WHERE id = 5; INSERT INTO t VALUES ({a}, 121, 0, 'gone soon', '')"
                ),
            )
            .await;
        // What a destination has as its default by now is not what rows of before have.
        for shard in ["a", "b"] {
            let other =
                "ALTER TABLE t ADD more int DEFAULT 5; ALTER TABLE t ALTER more SET DEFAULT 6";
            shards.run(shard, other).await;
        }
        shards
            .run("s", "ALTER TABLE t ADD more int DEFAULT 5")
            .await;
        shards
            .run(
                "s",
                &format!(
                    "UPDATE t SET more = id WHERE id IN (110, 201, 202, 7); DELETE FROM t WHERE id = 121; \
                     INSERT INTO t VALUES ({b}, 300, 0, 'late', '', NULL); \
                     BEGIN; INSERT INTO t VALUES ({a}, 301, 0, 'x', '', 1); ALTER TABLE t ADD rest text; \
                     UPDATE t SET rest = 'y' WHERE id = 301; COMMIT"
                ),
            )
            .await;
        for shard in ["a", "b"] {
            shards.run(shard, "ALTER TABLE t ADD rest text").await;
        }
        let (plan, told) = planned(&reshard).await;
        assert_eq!(told, ["public.t: +more integer, +rest text"]);
        reshard.job.plan = Arc::new(plan);
        comes(&shards, &reshard, 1).await;
        let more =
            "SELECT count(*), count(*) FILTER (WHERE more = 5) FROM t WHERE id BETWEEN 100 AND 120";
        assert_eq!(shards.one("a", more).await, "21|20");
        assert_eq!(
            shards
                .one("a", "SELECT more, rest FROM t WHERE id = 301")
                .await,
            "1|y"
        );
    });
}

#[test]
fn a_destination_that_has_a_column_first_is_given_no_row_without_it() {
    block_on(async {
        for (prefix, column) in [
            ("first", "more int DEFAULT 7"),
            ("never", "more int NOT NULL DEFAULT 7"),
        ] {
            let (shards, mut reshard, [a, ..]) = copied(prefix, "").await;
            let follower = Follower::start(&reshard.job, "s");
            soon(follower.consistent()).await;
            let change =
                format!("ALTER TABLE t ADD {column}; ALTER TABLE t ALTER more DROP DEFAULT");
            shards.run("a", &change).await;
            let row = format!("INSERT INTO t VALUES ({a}, 50, 0, '', '')");
            shards.run("s", &row).await;
            let what = grown(&follower).await;
            assert!(what.contains("shard a") && what.contains("more"), "{what}");
            assert_eq!(
                shards
                    .one("a", "SELECT count(*) FROM t WHERE id = 50")
                    .await,
                "0"
            );
            match look(&reshard.job).await {
                Ok(Columns::OnSome { what, remedy }) => {
                    assert!(what.contains("more integer on s"), "{what}");
                    assert!(
                        remedy.contains(
                            r#"ALTER TABLE "public"."t" ADD COLUMN "more" integer DEFAULT '7'"#
                        ),
                        "{remedy}"
                    );
                }
                other => panic!("{other:?}"),
            }
            for shard in ["s", "b"] {
                shards.run(shard, &change).await;
            }
            let write = format!("INSERT INTO t VALUES ({a}, 51, 0, '', '', 8)");
            shards.run("s", &write).await;
            reshard.job.plan = Arc::new(planned(&reshard).await.0);
            soon(follower_ends(follower)).await;
            comes(&shards, &reshard, 1).await;
            assert_eq!(
                shards.one("a", "SELECT more FROM t WHERE id = 50").await,
                "7"
            );
        }
    });
}

#[test]
fn a_column_that_is_dropped_stops_it_though_earlier_rows_lack_it_too() {
    block_on(async {
        let (shards, mut reshard, [a, ..]) = copied("dropped", "").await;
        shards.run("s", "UPDATE t SET n = 8").await;
        shards.on_all("ALTER TABLE t ADD more int").await;
        reshard.job.plan = Arc::new(planned(&reshard).await.0);
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        equal(&shards, &reshard).await;
        let drops = format!("ALTER TABLE t DROP more; UPDATE t SET n = 9 WHERE tenant = {a}");
        shards.run("s", &drops).await;
        let what = halted(&follower).await;
        assert!(
            what.contains("public.t") && what.contains("more were planned"),
            "{what}"
        );
        assert_eq!(
            shards.one("a", "SELECT count(*) FROM t WHERE n = 9").await,
            "0"
        );
    });
}

#[test]
fn a_value_that_another_shard_may_have_otherwise_is_not_planned() {
    block_on(async {
        let (shards, reshard, _) = copied("unlike", "").await;
        for (there, here) in [
            ("DEFAULT random()", "DEFAULT random()"),
            ("DEFAULT 5", "DEFAULT 6"),
            ("DEFAULT 5", ""),
        ] {
            shards
                .on_all(&format!("ALTER TABLE t ADD more float {there}"))
                .await;
            shards
                .run(
                    "b",
                    &format!("ALTER TABLE t DROP more; ALTER TABLE t ADD more float {here}"),
                )
                .await;
            let looked = look(&reshard.job).await;
            assert!(matches!(looked, Ok(Columns::Unlike { .. })), "{looked:?}");
            shards.on_all("ALTER TABLE t DROP more").await;
        }
    });
}

#[test]
fn who_locks_both_sides_does_not_wait_for_ever() {
    block_on(async {
        let (shards, reshard, [a, _, stays]) = copied("locks", "").await;
        reshard.knobs.send_modify(|knobs| knobs.batch = 1);
        // A row that is written, then one whose long value is read on the source, in one transaction.
        let write = format!(
            "BEGIN; INSERT INTO t VALUES ({a}, 50, 0, '', ''); \
             UPDATE t SET tenant = {a}, id = 51 WHERE tenant = {stays} AND id = 1; COMMIT"
        );
        shards.run("s", &write).await;
        let mut driving = JoinSet::new();
        let (source, connection) = shards.session("s").await;
        driving.spawn(connection);
        source.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
        let follower = Follower::start(&reshard.job, "s");
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 't'::regclass";
        let reading = async { while shards.one("s", waits).await == "0" {} };
        tokio::time::timeout(LIMIT, reading)
            .await
            .expect("it reads there");
        let (there, connection) = shards.session("a").await;
        driving.spawn(connection);
        let both =
            there.batch_execute("BEGIN; LOCK TABLE t; ALTER TABLE t ALTER n SET DEFAULT 1; COMMIT");
        tokio::time::timeout(LIMIT, both)
            .await
            .expect("in time")
            .unwrap();
        source
            .batch_execute("ALTER TABLE t ALTER n SET DEFAULT 1; COMMIT")
            .await
            .unwrap();
        soon(follower.consistent()).await;
        arrived(&shards, &reshard, &follower, 1).await;
        soon(follower.stop()).await;
    });
}

#[test]
fn a_column_that_comes_before_a_chunk_stops_the_copy() {
    block_on(async {
        let shards = shards("chunk").await;
        shards.on_all(WIDE).await;
        let reshard = reshard(&shards, "chunk", &["public.t"]).await;
        begin(&shards, &reshard.job).await;
        let a = tenant(Some(0));
        shards.on_all("ALTER TABLE t ADD more int DEFAULT 1").await;
        let row = format!("INSERT INTO t VALUES ({a}, 1, 0, '', '', 2)");
        shards.run("s", &row).await;
        let copied = tokio::time::timeout(LIMIT, copy::run(&reshard.job)).await;
        match copied.expect("in time") {
            Err(StepError::Halt { what, .. }) => assert!(what.contains("more"), "{what}"),
            other => panic!("{other:?}"),
        }
        assert_eq!(shards.one("a", "SELECT count(*) FROM t").await, "0");
    });
}
