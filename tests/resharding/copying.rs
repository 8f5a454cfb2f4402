//! The copy: every row of the keys that move once on its destination, whatever is killed in between, and no other.

use super::{
    applying::{moves, soon},
    shards::{LIMIT, Reshard, Shards, block_on, servers},
};
use shardway::{
    catalog::{
        key::{Key, KeyType},
        moving::{KeySet, Move, Part},
    },
    replication::{chunks, publication, slot},
    reshard::{
        job::{Job, Knobs, StepError},
        steps::copy,
    },
    sandbox::{Cluster, Sandbox},
};
use std::sync::OnceLock;
use tokio::sync::watch;

fn server() -> &'static Cluster {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| servers(1, &[])).cluster(0)
}

async fn shards(prefix: &str) -> Shards<'static> {
    Shards::new(prefix, &[("s", server()), ("a", server()), ("b", server())]).await
}

/// The condition that a row of the table goes to `a` and to `b`.
fn conditions(key_type: KeyType) -> [String; 2] {
    let sql = |it: &Move| it.keys.sql("tenant", key_type).unwrap();
    let moves = moves();
    [sql(&moves[0]), sql(&moves[1])]
}

async fn copied(job: &Job) {
    soon(copy::run(job)).await;
}

/// That both destinations have the rows that are theirs, each once, and nothing else.
async fn arrived(shards: &Shards<'_>, table: &str, columns: &str, key_type: KeyType) {
    for (shard, condition) in ["a", "b"].into_iter().zip(conditions(key_type)) {
        let rows = |more: &str| {
            format!(
                "SELECT count(*), md5(string_agg(r::text, E'\\n' ORDER BY r::text)) \
                     FROM (SELECT {columns} FROM {table} {more}) r"
            )
        };
        let there = shards.one("s", &rows(&format!("WHERE {condition}"))).await;
        assert!(!there.starts_with("0|"), "{table} has nothing for {shard}");
        assert_eq!(
            shards.one(shard, &rows("")).await,
            there,
            "{table} on {shard}"
        );
    }
}

/// The records of chunks, each with the transaction that wrote it.
async fn records(shards: &Shards<'_>) -> Vec<String> {
    let mut all = Vec::new();
    for shard in ["a", "b"] {
        let sql = "SELECT relation, chunk, xmin FROM shardway.chunk_done ORDER BY 1, 2";
        let found = shards.rows(shard, sql).await.into_iter();
        all.extend(found.map(|record| format!("{shard}|{record}")));
    }
    all
}

#[test]
fn values_of_all_types_arrive_as_they_are() {
    block_on(async {
        let shards = shards("types").await;
        shards
            .on_all(
                "CREATE TYPE mood AS ENUM ('good', 'it''s \"bad\"'); CREATE TYPE pair AS (x int, y text); \
                 CREATE DOMAIN positive AS int CHECK (VALUE > 0); \
                 CREATE TABLE plain (\"The \"\"Id\" bigint GENERATED ALWAYS AS IDENTITY, tenant bigint NOT NULL, n numeric, \
                     r float8, s float4, b bytea, t text, c char(5), v varchar(9), u uuid, j json, jb jsonb, ts timestamptz, \
                     d date, i interval, ip inet, bits varbit, points point[], nested int[][], texts text[], range int8range, \
                     name \"char\", yes bool, twice bigint GENERATED ALWAYS AS (tenant * 2) STORED, long text, \
                     PRIMARY KEY (\"The \"\"Id\")); \
                 ALTER TABLE plain ALTER long SET STORAGE EXTERNAL; \
                 CREATE TABLE own (id int, tenant bigint, mood mood, moods mood[], pair pair, positive positive, \
                     PRIMARY KEY (mood, id));",
            )
            .await;
        shards
            .run(
                "s",
                "INSERT INTO plain (tenant, n, r, s, b, t, c, v, u, j, jb, ts, d, i, ip, bits, points, nested, texts, range, \
                     name, yes, long) \
                 SELECT k, CASE k % 3 WHEN 0 THEN 'NaN' WHEN 1 THEN k / 7.0 END, CASE k % 2 WHEN 0 THEN 1/3.0 ELSE '-Infinity' END, \
                     'NaN', decode(md5(k::text), 'hex'), E'a\\tb\\\\N\\n' || k, 'x ', '\\N', md5(k::text)::uuid, '{\"a\" :  1}', \
                     '{\"b\": [1, null]}', 'infinity'::timestamptz, '4713-01-01 BC', '1 mon -2 days', '10.0.0.0/8', B'101', \
                     '{\"(1,2)\"}', '{{1,2},{3,NULL}}', ARRAY['', NULL, '{\"'], '[1,)', 'y', NULL, \
                     repeat(md5(k::text), 200) FROM generate_series(1, 3000) k; \
                 INSERT INTO own SELECT k, k, CASE WHEN k % 2 = 0 THEN 'good' ELSE 'it''s \"bad\"' END::mood, \
                     '{good,\"it''s \\\"bad\\\"\"}', ROW(k, E'\\t,\"') ::pair, k FROM generate_series(1, 3000) k;",
            )
            .await;
        let tables = vec![
            shards.table("s", "public.plain", Some("g")).await,
            shards.table("s", "public.own", Some("g")).await,
        ];
        assert!(tables[0].columns.iter().all(|column| column.binary));
        let reshard = shards.reshard("bigint", moves(), tables).await;
        copied(&reshard.job).await;
        arrived(&shards, "plain", "*", KeyType::Bigint).await;
        arrived(&shards, "own", "*", KeyType::Bigint).await;
        let figures = reshard.job.progress.all();
        let rows = "SELECT count(*) FROM plain";
        let (a, b) = (shards.one("a", rows).await, shards.one("b", rows).await);
        let both: u64 = a.parse::<u64>().unwrap() + b.parse::<u64>().unwrap();
        assert_eq!(figures["copy.public.plain.rows"], both);
        assert_eq!(
            figures["copy.public.plain.chunks"],
            figures["copy.public.plain.chunks_done"]
        );
    });
}

#[test]
fn keys_of_several_columns_in_the_order_of_their_collations() {
    block_on(async {
        let shards = shards("collated").await;
        // The destinations have no key yet.
        let table = "CREATE TABLE t (tenant text COLLATE \"en-x-icu\", part varchar(20), at date, note text";
        for shard in ["a", "b"] {
            shards.run(shard, &format!("{table})")).await;
        }
        let key = "PRIMARY KEY (tenant, part, at) INCLUDE (note)";
        shards.run("s", &format!("{table}, {key})")).await;
        shards
            .run(
                "s",
                "INSERT INTO t SELECT CASE k % 3 WHEN 0 THEN 'a' WHEN 1 THEN 'B' ELSE 'ä''\\' END || k % 100, \
                     chr(32 + k % 90) || k, '2000-01-01'::date + k, k FROM generate_series(1, 20000) k",
            )
            .await;
        let source = shards.server("s").sql().await.unwrap();
        let columns = chunks::key_columns(&source, "public.t").await.unwrap();
        let types: Vec<&str> = columns.iter().map(|it| it.type_name.as_str()).collect();
        assert_eq!(types, ["text", "character varying(20)", "date"]);
        let moving = vec![shards.table("s", "public.t", Some("g")).await];
        let reshard = shards.reshard("text", moves(), moving).await;
        copied(&reshard.job).await;
        arrived(&shards, "t", "*", KeyType::Text).await;

        // Chunks hold each key once, and the number that a key is given is that of the chunk that it was copied with.
        let kept = source
            .query(
                "SELECT chunk, low, high FROM shardway.chunk ORDER BY chunk",
                &[],
            )
            .await
            .unwrap();
        assert!((10..60).contains(&kept.len()), "{} chunks", kept.len());
        let keys =
            "SELECT tenant::text, part::text, at::text FROM public.t ORDER BY md5(part) LIMIT 500";
        let keys = source.query(keys, &[]).await.unwrap();
        let column = |at: usize| keys.iter().map(|key| key.get(at)).collect::<Vec<String>>();
        let lows: Vec<Vec<String>> = kept.iter().filter_map(|chunk| chunk.get(1)).collect();
        let bound = |at: usize| {
            lows.iter()
                .map(|low| low[at].clone())
                .collect::<Vec<String>>()
        };
        let sql = chunks::numbers_sql(&columns);
        let numbers = source
            .query(
                &sql,
                &[
                    &column(0),
                    &column(1),
                    &column(2),
                    &bound(0),
                    &bound(1),
                    &bound(2),
                ],
            )
            .await
            .unwrap();
        assert_eq!(numbers.len(), 500);
        for (key, number) in keys.iter().zip(&numbers) {
            let number: i32 = number.get(0);
            let chunk = chunks::between(lows.clone()).swap_remove(number as usize);
            let there = format!(
                "SELECT count(*) FROM public.t WHERE {} AND part = $1",
                chunk.sql(&columns)
            );
            let there: i64 = source
                .query_one(&there, &[&key.get::<_, String>(1)])
                .await
                .unwrap()
                .get(0);
            assert_eq!(there, 1, "{key:?} in {chunk:?}");
        }
    });
}

/// Some of PostgreSQL 17's indexes answer rows of other keys when a range of pairs is asked for together with keys.
#[test]
fn chosen_keys_take_no_others_along_whatever_an_index_answers() {
    block_on(async {
        let shards = shards("chosen").await;
        shards
            .on_all(
                "CREATE TABLE t (tenant bigint, id bigint, note text, PRIMARY KEY (tenant, id))",
            )
            .await;
        let fill = "INSERT INTO t SELECT k % 40, k, md5(k::text) FROM generate_series(1, 4000) k";
        shards.run("s", fill).await;
        // So that the table is read by its index, as a large one is.
        shards
            .run("s", "ANALYZE t; ALTER DATABASE chosen_s SET enable_seqscan = off; ALTER DATABASE chosen_s SET enable_bitmapscan = off")
            .await;
        let keys = |part, with: &[i64]| KeySet {
            part,
            with: with.iter().map(|it| Key::Bigint(*it)).collect(),
            without: Vec::new(),
        };
        let some = [2, 21].map(Key::Bigint).to_vec();
        let range = (Some(Key::Bigint(33)), Some(Key::Bigint(36)));
        let moves = [
            ("a", keys(Part::Values(some), &[])),
            ("b", keys(Part::Ranges(vec![range]), &[7])),
        ]
        .map(|(to, keys)| Move {
            group: "g".to_owned(),
            keys,
            from: "s".to_owned(),
            to: to.to_owned(),
        });
        let tables = vec![shards.table("s", "public.t", Some("g")).await];
        let reshard = shards.reshard("bigint", moves.to_vec(), tables).await;
        reshard.knobs.send_modify(|knobs| knobs.chunk_rows = 40);
        copied(&reshard.job).await;
        let tenants = "SELECT tenant, count(*) FROM t GROUP BY 1 ORDER BY 1";
        assert_eq!(shards.rows("a", tenants).await, ["2|100", "21|100"]);
        assert_eq!(
            shards.rows("b", tenants).await,
            ["7|100", "33|100", "34|100", "35|100"]
        );
    });
}

#[test]
fn chunks_are_of_about_the_size_that_is_asked_for() {
    block_on(async {
        let shards = Shards::new("sizes", &[("s", server())]).await;
        shards
            .run(
                "s",
                "CREATE TABLE empty (id int PRIMARY KEY); CREATE TABLE few (id int PRIMARY KEY); INSERT INTO few VALUES (1), (2); \
                 CREATE TABLE many (id uuid PRIMARY KEY); INSERT INTO many SELECT md5(k::text)::uuid FROM generate_series(1, 400000) k; \
                 CREATE TABLE parts (id int PRIMARY KEY) PARTITION BY RANGE (id); \
                 CREATE TABLE low PARTITION OF parts DEFAULT; CREATE TABLE high PARTITION OF parts FOR VALUES FROM (5000) TO (9000); \
                 INSERT INTO parts SELECT generate_series(1, 10000); \
                 CREATE TABLE wide (id int PRIMARY KEY, t text); ALTER TABLE wide ALTER t SET STORAGE EXTERNAL; \
                 INSERT INTO wide SELECT k, repeat('x', 1000000) FROM generate_series(1, 600) k",
            )
            .await;
        let source = shards.server("s").sql().await.unwrap();
        for (table, rows, chunks, most) in [
            ("public.empty", 1000, 1..=1, 0),
            ("public.few", 1000, 1..=1, 2),
            ("public.few", 1, 2..=2, 1),
            ("public.many", 20_000, 18..=22, 30_000),
            ("public.parts", 1_000, 9..=11, 1_500),
            ("public.wide", 1_000, 2..=5, 400),
        ] {
            let key = chunks::key_columns(&source, table).await.unwrap();
            let lows = chunks::find(&source, table, &key, rows).await.unwrap();
            let found = chunks::between(lows);
            assert!(
                chunks.contains(&found.len()),
                "{table}: {} chunks",
                found.len()
            );
            let mut all = 0;
            for chunk in &found {
                let sql = format!("SELECT count(*) FROM {table} WHERE {}", chunk.sql(&key));
                let here: i64 = source.query_one(&sql, &[]).await.unwrap().get(0);
                assert!(here <= most, "{table}: {here} rows in {chunk:?}");
                all += here;
            }
            let sql = format!("SELECT count(*) FROM {table}");
            let expected: i64 = source.query_one(&sql, &[]).await.unwrap().get(0);
            assert_eq!(all, expected, "{table}");
        }
    });
}

/// A table of 20,000 narrow rows to be resharded.
async fn narrow(shards: &Shards<'_>) -> Reshard {
    shards
        .on_all("CREATE TABLE t (id bigint PRIMARY KEY, tenant bigint, note text)")
        .await;
    shards
        .run(
            "s",
            "INSERT INTO t SELECT k, k, md5(k::text) FROM generate_series(1, 20000) k",
        )
        .await;
    let moving = vec![shards.table("s", "public.t", Some("g")).await];
    shards.reshard("bigint", moves(), moving).await
}

#[test]
fn a_copy_that_is_given_up_goes_on_where_it_was() {
    block_on(async {
        let shards = shards("resumed").await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        let (mut before, mut times) = (Vec::new(), 0);
        loop {
            // Given up as soon as two more chunks are there, wherever the others are.
            let enough = before.len() + 2;
            let more = async { while records(&shards).await.len() < enough {} };
            let ended = tokio::select! {
                ended = copy::run(&job) => { ended.unwrap(); true }
                () = more => false,
            };
            let now = records(&shards).await;
            for record in &before {
                assert!(now.contains(record), "{record} was written again");
            }
            (before, times) = (now, times + 1);
            if ended {
                break;
            }
        }
        assert!(times > 5, "it was given up {times} times");
        arrived(&shards, "t", "*", KeyType::Bigint).await;
        copied(&job).await;
        assert_eq!(records(&shards).await, before);
    });
}

#[test]
fn servers_that_are_killed_lose_no_row_and_double_none() {
    block_on(async {
        let sandbox = servers(2, &[]);
        let (home, other) = (sandbox.cluster(0), sandbox.cluster(1));
        let shards = Shards::new(
            "killed",
            &[("h", home), ("s", home), ("a", other), ("b", other)],
        )
        .await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        for (killed, enough) in [(other, 2), (home, 8), (other, 16), (home, 20)] {
            let more = async { while records(&shards).await.len() < enough {} };
            let mut run = Box::pin(copy::run(&job));
            tokio::select! {
                ended = &mut run => panic!("{ended:?}"),
                () = more => killed.kill(),
            }
            let ended = tokio::time::timeout(LIMIT, run).await.expect("in time");
            assert!(matches!(ended, Err(StepError::Again { .. })), "{ended:?}");
            killed.start().unwrap();
        }
        copied(&job).await;
        arrived(&shards, "t", "*", KeyType::Bigint).await;
    });
}

#[test]
fn a_runner_that_was_replaced_copies_nothing_more() {
    block_on(async {
        let shards = shards("replaced").await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        let blocker = shards.server("a").sql().await.unwrap();
        blocker
            .batch_execute("BEGIN; LOCK TABLE public.t IN SHARE MODE")
            .await
            .unwrap();
        let waits = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'shardway copy {} 1' AND wait_event_type = 'Lock' \
             AND datname = current_database()",
            job.id
        );
        let waiting = async {
            while shards.one("a", &waits).await == "0" {}
            shards
                .run("a", "UPDATE shardway.runner SET token = 2")
                .await;
            blocker.batch_execute("COMMIT").await.unwrap();
        };
        let (ended, ()) = tokio::join!(copy::run(&job), waiting);
        assert!(matches!(ended, Err(StepError::Replaced)), "{ended:?}");
        assert_eq!(shards.one("a", "SELECT count(*) FROM t").await, "0");
        let again = copy::run(&job).await;
        assert!(matches!(again, Err(StepError::Replaced)), "{again:?}");
        // And whoever replaced it goes on.
        shards
            .run("s", "UPDATE shardway.workflow SET token = 2")
            .await;
        copied(&Job { token: 2, ..job }).await;
        arrived(&shards, "t", "*", KeyType::Bigint).await;
    });
}

#[test]
fn what_an_earlier_runner_left_open_is_ended() {
    block_on(async {
        let shards = shards("left").await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        // It sleeps in the middle of a chunk.
        let asleep = shards.server("a").sql().await.unwrap();
        let claim = format!(
            "SET application_name = 'shardway copy {0} 1'; BEGIN; \
             INSERT INTO shardway.chunk_done VALUES ('{0}', 's', 'public.t', 0, NULL, NULL, '', 0, 0, 1)",
            job.id
        );
        asleep.batch_execute(&claim).await.unwrap();
        copied(&Job {
            token: 2,
            ..job.clone()
        })
        .await;
        arrived(&shards, "t", "*", KeyType::Bigint).await;
        assert!(matches!(copy::run(&job).await, Err(StepError::Replaced)));
    });
}

#[test]
fn a_chunk_that_somebody_else_completes_is_not_copied_again() {
    block_on(async {
        let shards = shards("twice").await;
        let Reshard { job, knobs } = narrow(&shards).await;
        knobs.send_modify(|knobs| knobs.chunk_rows = 1_000_000);
        // Nothing would stop rows that come twice.
        shards
            .run("a", "ALTER TABLE t DROP CONSTRAINT t_pkey")
            .await;
        let [condition, _] = conditions(KeyType::Bigint);
        let rows = format!(
            "SELECT string_agg(format('(%s, %s, %L)', id, tenant, note), ',') FROM t WHERE {condition}"
        );
        let rows = shards.one("s", &rows).await;
        let other = shards.server("a").sql().await.unwrap();
        let done = format!(
            "BEGIN; INSERT INTO shardway.chunk_done VALUES ('{}', 's', 'public.t', 0, NULL, NULL, '1:1:', 1, 1, 1); \
             INSERT INTO public.t VALUES {rows}",
            job.id
        );
        // The slot waits for whoever has begun before.
        knobs.send_modify(|knobs| knobs.copies = 0);
        let mut run = Box::pin(copy::run(&job));
        let settled =
            async { while shards.one("s", "SELECT count(*) FROM shardway.chunk").await == "0" {} };
        tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            () = settled => {}
        }
        other.batch_execute(&done).await.unwrap();
        knobs.send_modify(|knobs| knobs.copies = 2);
        let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        let completed = async {
            while shards.one("a", waits).await == "0" {}
            other.batch_execute("COMMIT").await.unwrap();
        };
        let (ended, ()) = tokio::join!(run, completed);
        ended.unwrap();
        arrived(&shards, "t", "*", KeyType::Bigint).await;
    });
}

#[test]
fn no_chunk_is_read_before_all_that_ran_when_the_slot_was_made_is_over() {
    block_on(async {
        let shards = shards("barrier").await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        let mut run = Box::pin(copy::run(&job));
        // The slot is there already, and somebody has begun before the copy.
        let source = shards.server("s").sql().await.unwrap();
        let mut commands = shards.server("s").stream().await.unwrap();
        let tables = ["public.t".to_owned(), "shardway.fence".to_owned()];
        publication::make(&source, &job.slot("s"), &tables)
            .await
            .unwrap();
        slot::make(&source, &mut commands, &job.slot("s"))
            .await
            .unwrap();
        let mut other = shards.server("s").sql().await.unwrap();
        let open = other.transaction().await.unwrap();
        open.batch_execute("UPDATE public.t SET note = 'late' WHERE id = 1")
            .await
            .unwrap();
        let named = async {
            loop {
                let figures = job.progress.all();
                if let Some(who) = figures.get("copy.waiting_for").and_then(|it| it.as_str()) {
                    break who.to_owned();
                }
                tokio::task::yield_now().await;
            }
        };
        let who = tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            who = named => who,
        };
        assert!(who.contains("idle in transaction"), "{who}");
        assert!(records(&shards).await.is_empty());
        let (ended, committed) = tokio::join!(run, open.commit());
        committed.unwrap();
        ended.unwrap();
        assert!(job.progress.all()["copy.waiting_for"].is_null());
        arrived(&shards, "t", "*", KeyType::Bigint).await;
    });
}

#[test]
fn the_slot_is_there_before_the_first_chunk_and_to_the_end() {
    block_on(async {
        let shards = shards("slot").await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        let name = job.slot("s");
        // What an earlier attempt has left, before anything was copied: a slot without what it is to publish.
        let mut commands = shards.server("s").stream().await.unwrap();
        let source = shards.server("s").sql().await.unwrap();
        let slot::Slot::Made(old) = slot::make(&source, &mut commands, &name).await.unwrap() else {
            panic!("it was there");
        };
        copied(&job).await;
        let state = slot::state(&source, &name).await.unwrap().unwrap();
        assert!(state.confirmed.unwrap() > old, "{state:?}");
        let published = format!(
            "SELECT tablename FROM pg_publication_tables WHERE pubname = '{name}' ORDER BY 1"
        );
        assert_eq!(shards.rows("s", &published).await, ["fence", "t"]);
        copied(&job).await;
        // Gone in the middle, it stops the copy instead of being made anew.
        slot::remove(&source, &mut commands, &name).await.unwrap();
        let ended = copy::run(&job).await;
        assert!(
            matches!(&ended, Err(StepError::Lost { what }) if what.contains(&name)),
            "{ended:?}"
        );
        assert!(slot::state(&source, &name).await.unwrap().is_none());
    });
}

/// Lets a copy that was slowed down come to its end.
async fn at_full_speed(
    shards: &Shards<'_>,
    knobs: &watch::Sender<Knobs>,
    run: impl Future<Output = Result<(), StepError>>,
) {
    knobs.send_modify(|knobs| (knobs.copies, knobs.bytes_per_second) = (4, 0));
    let ended = tokio::time::timeout(LIMIT, run).await;
    ended.expect("in time").unwrap();
    arrived(shards, "t", "*", KeyType::Bigint).await;
}

#[test]
fn knobs_take_effect_while_it_runs() {
    block_on(async {
        let shards = shards("knobs").await;
        let Reshard { job, knobs } = narrow(&shards).await;
        knobs.send_modify(|knobs| knobs.copies = 0);
        let mut run = Box::pin(copy::run(&job));
        let settled =
            async { while shards.one("s", "SELECT count(*) FROM shardway.chunk").await == "0" {} };
        tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            () = settled => {}
        }
        // Some 400 kB go: at this rate they would take minutes.
        knobs.send_modify(|knobs| (knobs.copies, knobs.bytes_per_second) = (1, 2_000));
        let slow = tokio::time::timeout(std::time::Duration::from_secs(2), &mut run).await;
        assert!(slow.is_err(), "{slow:?}");
        assert!(
            records(&shards).await.len() <= 1,
            "more than a few thousand bytes went"
        );
        at_full_speed(&shards, &knobs, run).await;
    });
}

#[test]
fn small_chunks_go_no_faster_than_was_asked_for() {
    block_on(async {
        let shards = shards("small").await;
        let Reshard { job, knobs } = narrow(&shards).await;
        // Some 400 kB in chunks that arrive in one piece each: at this rate they would take minutes.
        knobs.send_modify(|knobs| {
            (knobs.copies, knobs.chunk_rows, knobs.bytes_per_second) = (1, 20, 2_000);
        });
        let mut run = Box::pin(copy::run(&job));
        let slow = tokio::time::timeout(std::time::Duration::from_secs(3), &mut run).await;
        assert!(slow.is_err(), "{slow:?}");
        let bytes = "SELECT coalesce(sum(bytes), 0) FROM shardway.chunk_done";
        let mut went = 0;
        for shard in ["a", "b"] {
            went += shards.one(shard, bytes).await.parse::<u64>().unwrap();
        }
        assert!(went < 20_000, "{went} bytes went within three seconds");
        at_full_speed(&shards, &knobs, run).await;
    });
}

#[test]
fn what_the_source_could_lose_in_a_crash_is_not_copied() {
    block_on(async {
        // Nobody but its WAL writer, which takes its time, makes what is committed on this server durable.
        let slow = [
            ("wal_writer_delay", "3s"),
            ("wal_writer_flush_after", "0"),
            ("synchronous_commit", "off"),
        ];
        let (source, sandbox) = (servers(1, &slow), server());
        let shards = Shards::new(
            "flushed",
            &[
                ("h", sandbox),
                ("s", source.cluster(0)),
                ("a", sandbox),
                ("b", sandbox),
            ],
        )
        .await;
        let Reshard { job, knobs } = narrow(&shards).await;
        knobs.send_modify(|knobs| (knobs.copies, knobs.chunk_rows) = (0, 1_000_000));
        let mut run = Box::pin(copy::run(&job));
        let settled =
            async { while shards.one("h", "SELECT count(*) FROM shardway.chunk").await == "0" {} };
        tokio::select! {
            ended = &mut run => panic!("{ended:?}"),
            () = settled => {}
        }
        shards
            .run(
                "s",
                "INSERT INTO t SELECT k, k, 'late' FROM generate_series(20001, 21000) k",
            )
            .await;
        let late = shards.one("s", "SELECT pg_current_wal_insert_lsn(), pg_current_wal_flush_lsn() < pg_current_wal_insert_lsn()").await;
        let (late, risky) = late.split_once('|').unwrap();
        assert_eq!(risky, "t");
        knobs.send_modify(|knobs| knobs.copies = 2);
        let flushed = format!("SELECT pg_current_wal_flush_lsn() >= '{late}'");
        let copied = async {
            while shards
                .one("a", "SELECT count(*) FROM t WHERE note = 'late'")
                .await
                == "0"
            {}
            shards.one("s", &flushed).await
        };
        let (ended, flushed) = tokio::join!(run, copied);
        ended.unwrap();
        assert_eq!(flushed, "t");
        arrived(&shards, "t", "*", KeyType::Bigint).await;
    });
}

#[test]
fn a_standby_is_no_source() {
    block_on(async {
        let source = servers(1, &[]);
        let shards = Shards::new(
            "standby",
            &[
                ("h", server()),
                ("s", source.cluster(0)),
                ("a", server()),
                ("b", server()),
            ],
        )
        .await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        source.cluster(0).stop();
        std::fs::write(source.cluster(0).data_dir().join("standby.signal"), "").unwrap();
        source.cluster(0).start().unwrap();
        let ended = copy::run(&job).await;
        let Err(StepError::Halt { what, .. }) = &ended else {
            panic!("{ended:?}");
        };
        assert!(what.contains("standby"), "{what}");
    });
}

#[test]
fn shards_that_join_get_reference_tables_whole() {
    block_on(async {
        let shards = shards("joining").await;
        shards
            .on_all(
                "CREATE TABLE t (id bigint PRIMARY KEY, tenant bigint); CREATE TABLE country (code text PRIMARY KEY, name text)",
            )
            .await;
        shards
            .run(
                "s",
                "INSERT INTO t SELECT k, k FROM generate_series(1, 100) k; \
                 INSERT INTO country SELECT 'c' || k, k FROM generate_series(1, 5000) k",
            )
            .await;
        let tables = vec![
            shards.table("s", "public.t", Some("g")).await,
            shards.table("s", "public.country", None).await,
        ];
        let Reshard {
            mut job,
            knobs: _knobs,
        } = shards.reshard("bigint", moves(), tables).await;
        let mut plan = (*job.plan).clone();
        plan.joins = vec!["b".to_owned()];
        job.plan = std::sync::Arc::new(plan);
        copied(&job).await;
        arrived(&shards, "t", "*", KeyType::Bigint).await;
        assert_eq!(shards.one("a", "SELECT count(*) FROM country").await, "0");
        assert_eq!(
            shards
                .one("b", "SELECT count(*), count(DISTINCT code) FROM country")
                .await,
            "5000|5000"
        );
    });
}

#[test]
fn rows_that_are_there_already_stop_it() {
    block_on(async {
        let shards = shards("there").await;
        let Reshard { job, knobs: _knobs } = narrow(&shards).await;
        shards
            .run(
                "a",
                "INSERT INTO t SELECT k, k FROM generate_series(1, 20) k",
            )
            .await;
        let ended = copy::run(&job).await;
        let Err(StepError::Halt { what, .. }) = &ended else {
            panic!("{ended:?}");
        };
        assert!(
            what.contains("t_pkey") && what.contains("public.t"),
            "{what}"
        );
        // Nor is it copied in other chunks than before.
        shards.run("a", "TRUNCATE t").await;
        copied(&job).await;
        shards
            .run(
                "s",
                "UPDATE shardway.chunk SET low = '{17}' WHERE chunk = 1",
            )
            .await;
        let ended = copy::run(&job).await;
        assert!(
            matches!(&ended, Err(StepError::Halt { what, .. }) if what.contains("other chunks")),
            "{ended:?}"
        );
    });
}

#[test]
fn keys_of_every_type_part_the_rows() {
    block_on(async {
        let shards = shards("keys").await;
        for (name, key_type, value) in [
            ("uuids", KeyType::Uuid, "md5(k::text)::uuid"),
            ("dates", KeyType::Date, "'2000-01-01'::date + k"),
            ("stamps", KeyType::Timestamptz, "to_timestamp(k * 1000.5)"),
            ("numbers", KeyType::Numeric, "k / 8.0"),
            ("bytes", KeyType::Bytea, "decode(md5(k::text), 'hex')"),
        ] {
            let sql_type = key_type.name();
            shards
                .on_all(&format!(
                    "CREATE TABLE {name} (tenant {sql_type} PRIMARY KEY, k int); UPDATE shardway.workflow SET state = 'done'"
                ))
                .await;
            shards
                .run(
                    "s",
                    &format!(
                        "INSERT INTO {name} SELECT {value}, k FROM generate_series(1, 3000) k"
                    ),
                )
                .await;
            let table = format!("public.{name}");
            let moving = vec![shards.table("s", &table, Some("g")).await];
            let moves = if sql_buckets(key_type) {
                moves()
            } else {
                ranges()
            };
            let reshard = shards.reshard(sql_type, moves.clone(), moving).await;
            copied(&reshard.job).await;
            for it in moves {
                let condition = it.keys.sql("tenant", key_type).unwrap();
                let count = format!("SELECT count(*) FROM {name}");
                let there = shards.one("s", &format!("{count} WHERE {condition}")).await;
                assert_ne!(there, "0");
                assert_eq!(shards.one(&it.to, &count).await, there, "{name}");
            }
        }
    });
}

fn sql_buckets(key_type: KeyType) -> bool {
    moves()[0].keys.sql("tenant", key_type).is_ok()
}

/// For keys that no SQL has a bucket of.
fn ranges() -> Vec<Move> {
    let middle = Key::Bytea(Box::from([0x80_u8]));
    let to = |shard: &str, range| Move {
        group: "g".to_owned(),
        keys: KeySet::of(Part::Ranges(vec![range])),
        from: "s".to_owned(),
        to: shard.to_owned(),
    };
    vec![
        to("a", (None, Some(middle.clone()))),
        to("b", (Some(middle), None)),
    ]
}
