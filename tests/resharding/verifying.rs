//! What moved is compared while clients write: every difference closes the gate, wherever it is, and changes do not stand
//! still for it.

use super::{
    applying::{WIDE, begin, fence, moves, reshard, shards, soon},
    shards::{LIMIT, Reshard, Shards, block_on},
};
use shardway::{
    catalog::{
        key::Key,
        moving::{KeySet, Move, Part},
    },
    clock::Duration,
    reshard::{
        job::StepError,
        plan::Plan,
        steps::{
            catch_up::Follower,
            copy,
            verify::{self, Halts, Verdict},
        },
    },
    wire::replication::Lsn,
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

/// Two tenants that go to `a`, and one who stays.
fn tenants() -> ([i64; 2], i64) {
    let to = |number: &i64, at: usize| moves()[at].keys.contains(&Key::Bigint(*number));
    let goes: Vec<i64> = (1..200).filter(|it| to(it, 0)).take(2).collect();
    let stays = (1..200).find(|it| !to(it, 0) && !to(it, 1)).unwrap();
    ([goes[0], goes[1]], stays)
}

/// Many rows of two tenants who go to `a`, copied in chunks and followed.
struct Scene {
    shards: Shards<'static>,
    reshard: Reshard,
    followers: Vec<Follower>,
    goes: [i64; 2],
    stays: i64,
}

impl Scene {
    async fn new(prefix: &str, more: &str) -> Self {
        let shards = shards(prefix).await;
        shards.on_all(WIDE).await;
        shards.on_all(more).await;
        let (goes, stays) = tenants();
        for tenant in [goes[0], goes[1], stays] {
            let rows = format!(
                "INSERT INTO t SELECT {tenant}, id, id, 'n' || id, md5(id::text) FROM generate_series(1, 3000) id"
            );
            shards.run("s", &rows).await;
        }
        let reshard = reshard(&shards, prefix, &["public.t"]).await;
        begin(&shards, &reshard.job).await;
        soon(copy::run(&reshard.job)).await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        // Each range in snapshots of its own.
        reshard
            .knobs
            .send_modify(|knobs| knobs.compare = Duration::ZERO);
        Self {
            shards,
            reshard,
            followers: vec![follower],
            goes,
            stays,
        }
    }

    async fn verified(&self, round: i32) -> Result<Verdict, StepError> {
        let followers = self.followers.as_slice();
        let run = Box::pin(verify::run(&self.reshard.job, &followers, round));
        tokio::time::timeout(LIMIT, run).await.expect("in time")
    }

    async fn found(&self, round: i32) -> Vec<String> {
        self.verified(round).await.unwrap().found
    }

    async fn halted(&self, round: i32) -> String {
        match self.verified(round).await.unwrap_err() {
            StepError::Halt { what, .. } => what,
            other => panic!("{other}"),
        }
    }

    async fn end(self) {
        for follower in self.followers {
            soon(follower.stop()).await;
        }
    }
}

#[test]
fn a_difference_in_any_range_is_found_and_the_next_round_looks_anew() {
    block_on(async {
        let scene = Scene::new("ranges", "").await;
        let (shards, [first, last]) = (&scene.shards, scene.goes);
        let clean = scene.verified(1).await.unwrap();
        assert_eq!((clean.rows, clean.different), (6_000, 0), "{clean:?}");
        let parts = "SELECT count(DISTINCT part) FROM shardway.verify WHERE source <> destination AND destination = 'a'";
        let parts: i32 = shards.one("s", parts).await.parse().unwrap();
        assert!(parts > 2, "{parts} ranges");

        // Interrupted after the first range: what is before the cursor is not looked at again, what is behind it is.
        let forget =
            "DELETE FROM shardway.verify WHERE destination = 'a' AND source = 's' AND part > 0";
        shards.run("s", forget).await;
        let change = |tenant: i64, id: i64| {
            format!("UPDATE t SET note = 'other' WHERE tenant = {tenant} AND id = {id}")
        };
        shards.run("a", &change(first, 1)).await;
        shards.run("a", &change(last, 3_000)).await;
        let note =
            |tenant: i64, id: i64| format!("public.t ({tenant},{id}): s and a differ in note");
        assert_eq!(scene.found(1).await, [note(last, 3_000)]);
        // And it is not forgotten while the round lasts, nor by another one.
        assert_eq!(scene.found(1).await, [note(last, 3_000)]);
        assert_eq!(scene.found(2).await, [note(first, 1), note(last, 3_000)]);

        // In every way, in every range.
        let more = format!(
            "DELETE FROM t WHERE tenant = {first} AND id = 2999; INSERT INTO t VALUES ({last}, 3001, 1, '', ''), ({last}, -5, 1, '', '')"
        );
        shards.run("a", &more).await;
        let mut found = scene.found(3).await;
        found.sort();
        let mut wanted = vec![
            note(first, 1),
            note(last, 3_000),
            format!("public.t ({first},2999): on s, missing on a"),
            format!("public.t ({last},-5): on a, not on s"),
            format!("public.t ({last},3001): on a, not on s"),
        ];
        wanted.sort();
        assert_eq!(found, wanted);

        // Mended by the operator, and compared anew.
        let mended = format!(
            "UPDATE t SET note = 'n' || id WHERE note = 'other'; DELETE FROM t WHERE tenant = {last} AND id IN (3001, -5); \
             INSERT INTO t VALUES ({first}, 2999, 2999, 'n2999', md5('2999'))"
        );
        shards.run("a", &mended).await;
        let clean = scene.verified(4).await.unwrap();
        assert_eq!((clean.rows, clean.different), (6_000, 0), "{clean:?}");
        scene.end().await;
    });
}

#[test]
fn changes_go_on_while_rows_are_compared_and_while_a_snapshot_is_waited_for() {
    block_on(async {
        let scene = Scene::new("going_on", "CREATE TABLE other (n int)").await;
        let (shards, [first, last]) = (&scene.shards, scene.goes);
        let source = shards.server("s");
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        // The same rows again and again, some of which change their tenant.
        let writer = std::thread::spawn(move || {
            block_on(async {
                let client = source.sql().await.unwrap();
                client
                    .batch_execute("SET search_path = public")
                    .await
                    .unwrap();
                let mut at = 0;
                while !told.load(Ordering::Relaxed) {
                    at += 1;
                    let write = format!(
                        "UPDATE t SET n = n + 1 WHERE tenant = {first} AND id <= 5; \
                         DELETE FROM t WHERE tenant = {last} AND id = 10; INSERT INTO t VALUES ({last}, 10, {at}, '', '')"
                    );
                    client.batch_execute(&write).await.unwrap();
                }
            });
        });
        for round in 1..4 {
            let verdict = scene.verified(round).await.unwrap();
            assert!(verdict.is_clean(), "{verdict:?}");
        }
        // A transaction that the slot has to wait for.
        let long = shards.server("s").sql().await.unwrap();
        long.batch_execute("BEGIN; INSERT INTO public.other VALUES (1)")
            .await
            .unwrap();
        let mut verified = Box::pin(scene.verified(4));
        let marked = async {
            for at in 1..4 {
                let mark = format!(
                    "INSERT INTO t VALUES ({first}, {}, 0, 'mark', '')",
                    10_000 + at
                );
                shards.run("s", &mark).await;
                let there = "SELECT count(*) FROM t WHERE note = 'mark'";
                while shards.one("a", there).await != at.to_string() {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
        };
        tokio::select! {
            verdict = &mut verified => panic!("it did not wait: {verdict:?}"),
            marked = tokio::time::timeout(LIMIT, marked) => marked.expect("changes arrive"),
        }
        long.batch_execute("COMMIT").await.unwrap();
        let verdict = verified.await.unwrap();
        assert!(verdict.is_clean(), "{verdict:?}");
        let stall = scene.reshard.job.progress.all()["verify.stall_ms"].clone();
        assert!(stall.as_f64().is_some_and(|it| it > 0.0), "{stall}");
        stop.store(true, Ordering::Relaxed);
        writer.join().unwrap();
        fence(shards, &scene.reshard.job, 1).await;
        let slots = "SELECT count(*) FROM pg_replication_slots WHERE temporary AND slot_name LIKE 'shardway_going_on%'";
        assert_eq!(shards.one("s", slots).await, "0");
        scene.end().await;
    });
}

#[test]
fn rows_that_belong_to_another_shard_are_found_on_every_shard() {
    block_on(async {
        let scene = Scene::new("strays", "").await;
        let (shards, stays) = (&scene.shards, scene.stays);
        assert!(scene.verified(1).await.unwrap().is_clean());
        let stray = |id: i64| format!("INSERT INTO t VALUES ({stays}, {id}, 0, '', '')");
        for shard in ["a", "b"] {
            shards.run(shard, &stray(7)).await;
            let what = scene.halted(2).await;
            let wanted =
                format!("public.t has 1 rows on {shard} that belong to another shard: ({stays},7)");
            assert_eq!(what, wanted);
            shards
                .run(shard, "DELETE FROM t WHERE id = 7 AND n = 0")
                .await;
            shards.run("s", "DELETE FROM shardway.verify").await;
        }
        // What is given to one destination does not belong on another.
        let [given, _] = scene.goes;
        let wrong = format!("INSERT INTO t VALUES ({given}, 1, 0, '', '')");
        shards.run("b", &wrong).await;
        assert!(scene.halted(3).await.contains("1 rows on b"));
        shards.run("b", "DELETE FROM t").await;
        assert!(scene.verified(3).await.unwrap().is_clean());
        scene.end().await;
    });
}

#[test]
fn tables_and_sequences_are_compared_too() {
    block_on(async {
        let more = "CREATE SEQUENCE q OWNED BY t.n; ALTER TABLE t ALTER n SET DEFAULT nextval('q'); \
                    ALTER TABLE t ADD UNIQUE (tenant, note)";
        let scene = Scene::new("alike", more).await;
        let shards = &scene.shards;
        assert!(scene.verified(1).await.unwrap().is_clean());
        for (change, back, says) in [
            (
                "ALTER TABLE t DROP CONSTRAINT t_tenant_note_key",
                "ALTER TABLE t ADD UNIQUE (tenant, note)",
                "only on s: UNIQUE (tenant, note)",
            ),
            (
                "ALTER TABLE t ALTER long DROP NOT NULL",
                "ALTER TABLE t ALTER long SET NOT NULL",
                "only on a: column long text",
            ),
            (
                "ALTER SEQUENCE q INCREMENT -1",
                "ALTER SEQUENCE q INCREMENT 1",
                "sequence public.q of shard s counts in another direction on shard a",
            ),
            (
                "ALTER SEQUENCE q RENAME TO p",
                "ALTER SEQUENCE p RENAME TO q",
                "sequence public.q of shard s is missing on shard a",
            ),
        ] {
            shards.run("a", change).await;
            let what = scene.halted(2).await;
            assert!(what.contains(says), "{change}: {what}");
            shards.run("a", back).await;
        }
        assert!(scene.verified(2).await.unwrap().is_clean());
        scene.end().await;
    });
}

/// Nothing changes, so that nothing is followed.
struct Still;

impl Halts for Still {
    type Halted = ();

    async fn halt(&self, _source: &str) -> Result<(), StepError> {
        Ok(())
    }

    async fn go_to(&self, _source: &str, _halted: (), _lsn: Lsn) -> Result<(), StepError> {
        Ok(())
    }
}

#[test]
fn what_two_sources_give_one_destination_is_shown_apart() {
    block_on(async {
        let shards = shards("figures_apart").await;
        shards.on_all(WIDE).await;
        let goes = |tenants: std::ops::Range<i64>, from: &str, to: &str| Move {
            group: "g".to_owned(),
            keys: KeySet {
                part: Part::None,
                with: tenants.map(Key::Bigint).collect(),
                without: Vec::new(),
            },
            from: from.to_owned(),
            to: to.to_owned(),
        };
        let moves = vec![goes(1..5, "s", "a"), goes(5..20, "b", "a")];
        let insert = |from: i64, to: i64| {
            format!(
                "INSERT INTO t SELECT tenant, 1, 1, 'x', '' FROM generate_series({from}, {to}) tenant"
            )
        };
        for (shard, from, to) in [("s", 1, 4), ("b", 5, 19), ("a", 1, 19)] {
            shards.run(shard, &insert(from, to)).await;
        }
        let table = shards.table("s", "public.t", Some("g")).await;
        let mut reshard = shards.reshard("bigint", moves, vec![table]).await;
        // Before, most of them belong to the second source.
        let plan = &reshard.job.plan;
        let before = plan.before.apply(&[goes(5..20, "s", "b")]).unwrap();
        reshard.job.plan = Arc::new(Plan {
            before,
            ..(**plan).clone()
        });
        let run = Box::pin(verify::run(&reshard.job, &Still, 1));
        let verdict = tokio::time::timeout(LIMIT, run)
            .await
            .expect("in time")
            .unwrap();
        assert!(verdict.is_clean(), "{verdict:?}");
        let shown = reshard.job.progress.all();
        let rows = |name: &str| shown[&format!("verify.public.t.{name}.rows")].as_u64();
        assert_eq!([rows("s.a"), rows("b.a")], [Some(4), Some(15)], "{shown:?}");
    });
}
