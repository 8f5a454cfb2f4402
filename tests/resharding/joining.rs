//! Shards that join, and leave: what every shard has is written there by whoever writes it from the time they serve, and is
//! taken from them when they serve no more.

use crate::{
    following::position,
    shards::{LIMIT, Reshard, Shards, block_on, map, servers},
    whole::{cut, followers},
};
use shardway::{
    catalog::{
        key::Key,
        moving::{KeySet, Move, Part, REACHES},
    },
    reshard::{
        dump::Tools,
        job::Job,
        steps::{activate, copy, fence, finish, keys, prepare, ready, reverse, turn},
    },
    sandbox::Sandbox,
};
use std::sync::{Arc, OnceLock};

fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| servers(2, &[]))
}

const SHARDS: [&str; 4] = ["a", "b", "c", "d"];
const TABLES: &str = "\
CREATE TABLE t (tenant bigint, id bigint, PRIMARY KEY (tenant, id)); CREATE TABLE country (code text PRIMARY KEY, n int);
INSERT INTO country SELECT 'c' || n, 0 FROM generate_series(1, 20) n";

/// `c` joins and is given keys of `a`, `d` joins and is given keys of `b`: both have reference tables from `a`.
async fn begin<'a>(prefix: &str) -> (Shards<'a>, Reshard) {
    let (one, other) = (sandbox().cluster(0), sandbox().cluster(1));
    let at = [("a", one), ("b", other), ("c", other), ("d", one)];
    let shards = Shards::new(prefix, &at).await;
    for (shard, tenant) in [("a", 1), ("b", 2)] {
        shards.run(shard, TABLES).await;
        let rows = format!("INSERT INTO t SELECT {tenant}, n FROM generate_series(1, 50) n");
        shards.run(shard, &rows).await;
    }
    let goes = |tenant, from: &str, to: &str| Move {
        group: "g".to_owned(),
        keys: KeySet::of(Part::Values(vec![Key::Bigint(tenant)])),
        from: from.to_owned(),
        to: to.to_owned(),
    };
    let moves = vec![goes(1, "a", "c"), goes(2, "b", "d")];
    let tables = vec![
        shards.table("a", "public.t", Some("g")).await,
        shards.table("a", "public.country", None).await,
    ];
    let mut reshard = shards.reshard("bigint", moves, tables).await;
    let mut plan = (*reshard.job.plan).clone();
    plan.joins = vec!["c".to_owned(), "d".to_owned()];
    plan.left.clone_from(&plan.reference);
    reshard.job.plan = Arc::new(plan);
    (shards, reshard)
}

/// On all shards, as proxies do it that know of all.
async fn everywhere(shards: &Shards<'_>, write: &str) {
    let reaching = format!("BEGIN; SET LOCAL {REACHES} = 'a,b,c,d'; {write}; COMMIT");
    shards.on_all(&reaching).await;
}

async fn alike(shards: &Shards<'_>, sql: &str) -> String {
    let first = shards.one("a", sql).await;
    for shard in SHARDS {
        assert_eq!(shards.one(shard, sql).await, first, "{shard}");
    }
    first
}

const COUNTRIES: &str = "SELECT string_agg(code || n, ' ' ORDER BY code) FROM country";

#[test]
fn reference_tables_of_shards_that_have_joined_are_written_and_not_streamed() {
    block_on(async {
        let (shards, reshard) = begin("joining").await;
        let mut job = reshard.job.clone();
        prepare::run(&job, &Tools::default()).await.unwrap();
        copy::run(&job).await.unwrap();
        keys::primary(&job).await.unwrap();
        let streams = followers(&job);
        for stream in &streams {
            stream.consistent().await.unwrap();
        }
        // While they join, changes come by the stream.
        for shard in ["a", "b"] {
            shards
                .run(shard, "UPDATE country SET n = 1 WHERE code = 'c1'")
                .await;
        }
        keys::rest(&job).await.unwrap();
        ready::run(&job).await.unwrap();
        job.attempt = 1;
        cut(&mut job, streams, 2).await;
        alike(&shards, COUNTRIES).await;

        // There and back and there again: the slots go on meanwhile.
        let written = [
            "INSERT INTO country VALUES ('back', 7); UPDATE country SET n = n + 1 WHERE code = 'c1'",
            "INSERT INTO country VALUES ('there', 8); UPDATE country SET n = n + 1 WHERE code = 'c1'; \
             DELETE FROM country WHERE code = 'c2'",
        ];
        for (write, epoch) in written.into_iter().zip(3..) {
            job = Job {
                attempt: job.attempt + 1,
                ..job.turned()
            };
            let streams = followers(&job);
            reverse::run(&job).await.unwrap();
            everywhere(&shards, write).await;
            ready::advance(&job).await.unwrap();
            cut(&mut job, streams, epoch).await;
            alike(&shards, COUNTRIES).await;
        }
        let found = alike(&shards, COUNTRIES).await;
        assert!(
            found.contains("back7") && found.contains("there8") && found.contains("c13"),
            "{found}"
        );
        // A proxy added something to the map between two of them.
        let later = "UPDATE shardway.activation SET epoch = epoch + 1";
        shards.run("c", later).await;
        finish::run(&job).await.unwrap();
        assert_eq!(shards.one("c", "SELECT count(*) FROM t").await, "50");
        assert_eq!(shards.one("a", "SELECT count(*) FROM t").await, "0");
    });
}

#[test]
fn a_stream_that_is_late_brings_nothing_to_shards_that_have_joined() {
    block_on(async {
        let (shards, reshard) = begin("late_joining").await;
        let mut job = reshard.job.clone();
        prepare::run(&job, &Tools::default()).await.unwrap();
        copy::run(&job).await.unwrap();
        keys::primary(&job).await.unwrap();
        let streams = followers(&job);
        for stream in &streams {
            stream.consistent().await.unwrap();
        }
        keys::rest(&job).await.unwrap();
        ready::run(&job).await.unwrap();
        job.attempt = 1;
        fence::run(&job).await.unwrap();
        for stream in &streams {
            stream.fenced(1).await.unwrap();
        }
        turn::run(&job).await.unwrap();
        // Its runner is late: another proxy activates the new owners.
        let late = streams.iter().find(|it| it.source() == "a").unwrap();
        let paused = late.pause().await.unwrap();
        activate::run(&job, &map(&job, 2)).await.unwrap();
        let write = |n| format!("UPDATE country SET n = {n} WHERE code = 'c1'");
        everywhere(&shards, &write(2)).await;
        let between = position(&shards, "a").await;
        everywhere(&shards, &write(3)).await;
        let refused = async {
            while late.problem().is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        let advance = late.advance(paused, between);
        let advanced = tokio::select! {
            paused = advance => Some(paused.unwrap()),
            () = refused => None,
        };
        assert!(alike(&shards, COUNTRIES).await.contains("c13"));
        drop(advanced);
        for stream in streams {
            // How it had ended does not matter.
            drop(stream.stop().await);
        }
        assert!(alike(&shards, COUNTRIES).await.contains("c13"));

        // There again: what was brought before the owners changed is where it was.
        for epoch in [3, 4] {
            job = Job {
                attempt: job.attempt + 1,
                ..job.turned()
            };
            let streams = followers(&job);
            reverse::run(&job).await.unwrap();
            let (shard, tenant) = if epoch == 3 { ("c", 1) } else { ("b", 2) };
            let more = format!("INSERT INTO t VALUES ({tenant}, {epoch} * 1000)");
            shards.run(shard, &more).await;
            cut(&mut job, streams, epoch).await;
        }
        finish::run(&job).await.unwrap();
        assert_eq!(shards.one("c", "SELECT count(*) FROM t").await, "51");
        assert_eq!(shards.one("d", "SELECT count(*) FROM t").await, "51");
    });
}

#[test]
fn a_shard_that_serves_no_more_has_no_rows_when_those_who_read_or_wrote_there_have_ended() {
    block_on(async {
        let (shards, reshard) = begin("leaving").await;
        let reader = shards.server("a").sql().await.unwrap();
        let rows = "SELECT count(*) FROM public.country";
        reader
            .batch_execute(&format!("BEGIN; {rows}"))
            .await
            .unwrap();
        let reads = async {
            // Whoever empties it sees the reader.
            const LOOKS: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE '%virtualxid%' \
                AND datname = current_database() AND pid <> pg_backend_pid()";
            while shards.one("a", LOOKS).await != "t" {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            let found: i64 = reader.query_one(rows, &[]).await.unwrap().get(0);
            reader.batch_execute("COMMIT").await.unwrap();
            found
        };
        let (emptied, found) = tokio::join!(
            finish::empty(&reshard.job, "a"),
            tokio::time::timeout(LIMIT, reads)
        );
        emptied.unwrap();
        let found = found.expect("it waits");
        assert_eq!(found, 20, "who reads there keeps its rows");
        assert_eq!(shards.one("a", rows).await, "0");
        assert_eq!(shards.one("a", "SELECT count(*) FROM t").await, "50");
        // Once more: a run that was cut goes on.
        finish::empty(&reshard.job, "a").await.unwrap();
        // What is prepared has no process, and its rows come when it is committed.
        let late =
            "BEGIN; INSERT INTO country (code, n) VALUES ('late', 1); PREPARE TRANSACTION 'late'";
        shards.run("a", late).await;
        let committed = async {
            const LOOKS: &str = "SELECT count(*) > 0 FROM pg_stat_activity WHERE query LIKE 'SELECT gid%' \
                AND datname = current_database() AND pid <> pg_backend_pid()";
            while shards.one("a", LOOKS).await != "t" {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            shards.run("a", "COMMIT PREPARED 'late'").await;
        };
        let (emptied, waited) = tokio::join!(
            finish::empty(&reshard.job, "a"),
            tokio::time::timeout(LIMIT, committed)
        );
        emptied.unwrap();
        waited.expect("it waits");
        assert_eq!(shards.one("a", rows).await, "0");
    });
}
