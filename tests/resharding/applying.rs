//! What is written while rows are copied and after: each change once on the destination of its row, whoever is killed when,
//! and no change on a row that it is not about.

use super::shards::{LIMIT, Reshard, Shards, block_on, servers};
use shardway::{
    catalog::{
        key::Key,
        moving::{KeySet, Move, Part},
    },
    replication::{publication, slot},
    reshard::{
        job::{Job, StepError},
        steps::{catch_up::Follower, copy},
    },
    sandbox::{Cluster, Sandbox},
};
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    let settings = [
        ("max_connections", "100"),
        ("max_replication_slots", "40"),
        ("max_wal_senders", "40"),
    ];
    SANDBOX.get_or_init(|| servers(3, &settings))
}

pub(super) fn server(number: usize) -> &'static Cluster {
    sandbox().cluster(number)
}

/// Each shard on a server of its own, as are those of a reshard.
pub(super) async fn shards(prefix: &str) -> Shards<'static> {
    Shards::new(
        prefix,
        &[("s", server(0)), ("a", server(1)), ("b", server(2))],
    )
    .await
}

/// Moves of buckets out of four from `s`: the first to `a`, the second to `b`.
pub(super) fn moves() -> Vec<Move> {
    let to = |shard: &str, from| Move {
        group: "g".to_owned(),
        keys: KeySet::of(Part::Buckets {
            of: 4,
            runs: vec![(from, from + 1)],
        }),
        from: "s".to_owned(),
        to: shard.to_owned(),
    };
    vec![to("a", 0), to("b", 1)]
}

/// The first tenant of a move, or who stays.
pub(super) fn tenant(of: Option<usize>) -> String {
    let goes = |number: &i64| {
        let key = Key::Bigint(*number);
        moves().iter().position(|it| it.keys.contains(&key))
    };
    let found = (1..100).find(|number| goes(number) == of);
    found.unwrap().to_string()
}

pub(super) const WIDE: &str = "\
CREATE TABLE t (tenant bigint NOT NULL, id bigint, n int, note text, long text NOT NULL, PRIMARY KEY (tenant, id)); \
ALTER TABLE t ALTER long SET STORAGE EXTERNAL;";
/// Keys in an order that is not that of their bytes; values that are streamed as text; the whole old row is streamed.
pub(super) const TEXTS: &str = "\
CREATE TYPE mood AS ENUM ('good', 'bad'); \
CREATE TABLE w (name text, part int, tenant bigint NOT NULL, mood mood, tags text[], long text, \
                PRIMARY KEY (name, part)); \
ALTER TABLE w ALTER long SET STORAGE EXTERNAL; ALTER TABLE w REPLICA IDENTITY FULL;";

/// The same from one server to another, with rows.
pub(super) async fn filled<'a>(
    prefix: &str,
    source: &'a Cluster,
    other: &'a Cluster,
) -> Shards<'a> {
    let shards = Shards::new(prefix, &[("s", source), ("a", other), ("b", other)]).await;
    shards.on_all(WIDE).await;
    let rows = "INSERT INTO t SELECT n % 40, n, n, NULL, 'x' || n FROM generate_series(1, 400) n";
    shards.run("s", rows).await;
    shards
}

/// Publication, slot, and everybody gone who could be in neither the copy nor the stream.
pub(super) async fn begin(shards: &Shards<'_>, job: &Job) {
    let source = shards.server("s");
    let client = source.sql().await.unwrap();
    let mut tables: Vec<String> = job
        .plan
        .tables
        .iter()
        .map(shardway::reshard::plan::MovingTable::sql)
        .collect();
    tables.extend(
        job.plan
            .reference
            .iter()
            .map(shardway::reshard::plan::MovingTable::sql),
    );
    tables.push("shardway.fence".to_owned());
    let name = job.slot("s");
    publication::make(&client, &name, &tables).await.unwrap();
    let mut commands = source.stream().await.unwrap();
    slot::make(&client, &mut commands, &name).await.unwrap();
    slot::barrier(&client, LIMIT).await.unwrap();
}

/// A reshard of that name, as those of slots must differ on a server.
pub(super) async fn reshard(shards: &Shards<'_>, id: &str, tables: &[&str]) -> Reshard {
    let mut found = Vec::new();
    for table in tables {
        let mut table = shards.table("s", table, Some("g")).await;
        for column in &mut table.columns {
            if column.type_name == "mood" {
                // As it is written where only `pg_catalog` is searched.
                column.type_name = "public.mood".to_owned();
            }
        }
        found.push(table);
    }
    let mut reshard = shards.reshard("bigint", moves(), found).await;
    reshard.job.id = id.to_owned();
    let sql = format!("UPDATE shardway.workflow SET id = '{id}'");
    shards.run("s", &sql).await;
    reshard
}

/// Ends the test with the reason when it takes too long or cannot go on.
pub(super) async fn soon<T>(what: impl Future<Output = Result<T, StepError>>) -> T {
    let done = tokio::time::timeout(LIMIT, what).await;
    done.expect("in time").unwrap()
}

pub(super) async fn fence(shards: &Shards<'_>, job: &Job, attempt: i32) {
    let id = &job.id;
    let sql = format!(
        "INSERT INTO shardway.fence (workflow, attempt, token) VALUES ('{id}', {attempt}, 1)"
    );
    shards.run("s", &sql).await;
}

/// That both destinations have the rows that are theirs as the source has them, and nothing else.
pub(super) async fn equal(shards: &Shards<'_>, reshard: &Reshard) {
    for table in &reshard.job.plan.tables {
        for it in moves() {
            let condition = it
                .keys
                .sql("tenant", shardway::catalog::key::KeyType::Bigint);
            let rows = |more: &str| {
                format!(
                    "SELECT count(*), md5(string_agg(r::text, E'\\n' ORDER BY r::text COLLATE \"C\")) FROM {} r {more}",
                    table.sql()
                )
            };
            let there = rows(&format!("WHERE {}", condition.unwrap()));
            let there = shards.one("s", &there).await;
            assert!(!there.starts_with("0|"), "nothing for {}", it.to);
            assert_eq!(
                shards.one(&it.to, &rows("")).await,
                there,
                "{} on {}",
                table.name,
                it.to
            );
        }
    }
}

/// Numbers that look like chance and are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// Clients that write until they are told to stop.
pub(super) struct Writers {
    stop: Arc<AtomicBool>,
    transactions: Arc<AtomicU64>,
    tasks: JoinSet<()>,
}

impl Writers {
    pub(super) fn start(database: &str, count: u64) -> Self {
        let (stop, transactions) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let mut tasks = JoinSet::new();
        for seed in 1..=count {
            let config = server(0).config(database);
            let (stop, transactions) = (Arc::clone(&stop), Arc::clone(&transactions));
            tasks.spawn(async move {
                let (client, connection) = config.connect(NoTls).await.unwrap();
                let mut driving = JoinSet::new();
                driving.spawn(connection);
                let mut dice = Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                while !stop.load(Ordering::Relaxed) {
                    match client.batch_execute(&transaction(&mut dice)).await {
                        Ok(()) => drop(transactions.fetch_add(1, Ordering::Relaxed)),
                        // Keys that are there, and writers that wait for each other.
                        Err(error) => {
                            let code = error.code().expect("the connection holds").code();
                            assert!(["23505", "40P01"].contains(&code), "{error:?}");
                            client.batch_execute("ROLLBACK").await.unwrap();
                        }
                    }
                }
            });
        }
        Self {
            stop,
            transactions,
            tasks,
        }
    }

    pub(super) async fn end(mut self) {
        self.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended.unwrap();
        }
    }
}

fn transaction(dice: &mut Dice) -> String {
    let count = 1 + dice.roll(4);
    let mut each: Vec<String> = (0..count).map(|_| statement(dice)).collect();
    if dice.roll(3) == 0 {
        let (undone, kept) = (statement(dice), statement(dice));
        each.push(format!(
            "SAVEPOINT one; {undone}; ROLLBACK TO one; SAVEPOINT two; {kept}; RELEASE two"
        ));
    }
    if dice.roll(3) == 0 {
        // Under way while others begin and end, and while snapshots are taken.
        each.insert(1, "SELECT pg_sleep(0.03)".to_owned());
    }
    let end = if dice.roll(12) == 0 {
        "ROLLBACK"
    } else {
        "COMMIT"
    };
    format!("BEGIN; {}; {end}", each.join("; "))
}

/// Of tenants 1 to 40, ids 1 to 300.
fn statement(dice: &mut Dice) -> String {
    let (tenant, id, other) = (1 + dice.roll(40), 1 + dice.roll(300), 1 + dice.roll(40));
    let (number, further) = (dice.roll(1000), 1 + dice.roll(300));
    let row = format!("tenant = {tenant} AND id = {id}");
    let text = format!(
        "name = 'nam' || chr({}) || {} AND part = {}",
        65 + number % 57,
        id % 40,
        id % 3
    );
    match dice.roll(14) {
        0 | 1 => format!(
            "INSERT INTO t VALUES ({tenant}, {id}, {number}, NULL, repeat(md5('{number}'), {})) ON CONFLICT DO NOTHING",
            [1, 100][usize::from(number % 2 == 0)]
        ),
        2 | 3 => format!("UPDATE t SET n = {number} WHERE {row}"),
        4 => format!(
            "UPDATE t SET note = repeat('x', {}) WHERE {row}",
            number % 50
        ),
        5 => format!("UPDATE t SET long = repeat(md5('{number}'), 100) WHERE {row}"),
        6 => format!("DELETE FROM t WHERE {row}"),
        // To another destination, or to and from none; with values that are not streamed.
        7 => format!("UPDATE t SET tenant = {other} WHERE {row}"),
        8 => format!("UPDATE t SET tenant = {other}, id = {further}, n = n + 1 WHERE {row}"),
        9 => format!(
            "UPDATE t SET tenant = {other} WHERE {row}; DELETE FROM t WHERE tenant = {other} AND id = {id}"
        ),
        10 => format!(
            "INSERT INTO w VALUES ('nam' || chr({}) || {}, {}, {tenant}, 'good', '{{a,NULL}}', repeat(md5('{id}'), 100)) \
             ON CONFLICT DO NOTHING",
            65 + number % 57,
            id % 40,
            id % 3
        ),
        11 => format!("UPDATE w SET tenant = {other}, mood = 'bad' WHERE {text}"),
        12 => format!(
            "UPDATE w SET name = upper(name) || {further}, tags = tags || '{{\"\"}}' WHERE {text}"
        ),
        _ => format!("DELETE FROM w WHERE {text}"),
    }
}

pub(super) async fn fill(shards: &Shards<'_>) {
    shards.on_all(WIDE).await;
    shards.on_all(TEXTS).await;
    shards
        .run(
            "s",
            "INSERT INTO t SELECT tenant, id, id, 'x', repeat(md5(id::text), CASE id % 3 WHEN 0 THEN 100 ELSE 1 END) \
             FROM generate_series(1, 40) tenant, generate_series(1, 300, 2) id; \
             INSERT INTO w SELECT 'nam' || chr(65 + k % 57) || k % 40, k % 3, 1 + k % 40, 'good', NULL, repeat(md5(k::text), 100) \
             FROM generate_series(1, 3000) k ON CONFLICT DO NOTHING",
        )
        .await;
}

#[test]
fn what_is_written_during_a_copy_is_on_its_destination_once() {
    block_on(async {
        let shards = shards("during").await;
        fill(&shards).await;
        let reshard = reshard(&shards, "during", &["public.t", "public.w"]).await;
        reshard.knobs.send_modify(|knobs| knobs.chunk_rows = 400);
        begin(&shards, &reshard.job).await;
        let writers = Writers::start("during_s", 6);
        soon(copy::run(&reshard.job)).await;
        let chunks = "SELECT count(*) > 20, count(DISTINCT snapshot) > 10 FROM shardway.chunk_done";
        assert_eq!(shards.one("a", chunks).await, "t|t");
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        // However little time it took to copy.
        while writers.transactions.load(Ordering::Relaxed) <= 300 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        writers.end().await;
        fence(&shards, &reshard.job, 1).await;
        soon(follower.fenced(1)).await;
        soon(follower.stop()).await;
        equal(&shards, &reshard).await;
    });
}

#[test]
fn who_is_killed_goes_on_where_it_was() {
    block_on(async {
        let shards = shards("killed").await;
        fill(&shards).await;
        let reshard = reshard(&shards, "killed", &["public.t", "public.w"]).await;
        reshard.knobs.send_modify(|knobs| {
            knobs.chunk_rows = 400;
            knobs.batch = 50;
        });
        begin(&shards, &reshard.job).await;
        let writers = Writers::start("killed_s", 4);
        soon(copy::run(&reshard.job)).await;
        let mut dice = Dice(7);
        let ended = |shard: &'static str| {
            let database = format!("killed_{shard}");
            async move {
                let sql = format!(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}' \
                     AND application_name LIKE 'shardway%'"
                );
                let of = ["s", "a", "b"].iter().position(|it| *it == shard);
                server(of.unwrap()).execute("postgres", &sql).await.unwrap();
            }
        };
        for _ in 0..12 {
            let follower = Follower::start(&reshard.job, "s");
            let pause = Duration::from_millis(20 + dice.roll(200));
            tokio::time::timeout(pause, follower.failed())
                .await
                .unwrap_err();
            match dice.roll(4) {
                0 => ended("s").await,
                1 => ended("a").await,
                2 => ended("b").await,
                _ => {}
            }
            let pause = Duration::from_millis(dice.roll(100));
            tokio::time::timeout(pause, follower.failed())
                .await
                .unwrap_err();
            // Dropped in the middle of whatever it does.
            drop(follower);
        }
        writers.end().await;
        fence(&shards, &reshard.job, 1).await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.fenced(1)).await;
        soon(follower.stop()).await;
        equal(&shards, &reshard).await;
        let progress = "SELECT fence FROM shardway.apply_progress";
        assert_eq!(shards.one("a", progress).await, "1");
    });
}
