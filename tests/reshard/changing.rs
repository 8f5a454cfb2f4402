//! Schema changes through a proxy while rows move: on all sides, with clients that write what is new at once; others are
//! refused with the reason.

use crate::{
    harness::{PATIENCE, Proxy, block_on, open_session},
    ledger::{Clients, Keys, TENANTS, fill, map, rows},
    stage::{Setting, Stage, to},
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Config};

const KNOBS: [&str; 6] = [
    "--set",
    "lock_ms=300",
    "--set",
    "drain_ms=1000",
    "--set",
    "hold_ms=3000",
];
/// Both give and are given.
const EXCHANGE: [&str; 4] = ["--move", "buckets=2-6:s1", "--move", "buckets=8-12:s0"];

/// Clients that write a column as soon as it is there, each through its own proxy, and what was acknowledged.
struct Writers {
    column: &'static str,
    stop: Arc<AtomicBool>,
    tasks: Vec<JoinHandle<BTreeMap<i64, i64>>>,
}

/// Numbers of rows that are not the ledger's.
static NEXT: AtomicI64 = AtomicI64::new(1_000_000_000);

impl Writers {
    /// Of the table `own`, whose rows nobody else writes.
    fn start(column: &'static str, proxies: &[Config]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let each = proxies.iter().cloned();
        let tasks = each.map(|proxy| tokio::spawn(write(column, proxy, Arc::clone(&stop))));
        Self {
            column,
            tasks: tasks.collect(),
            stop,
        }
    }

    /// Ends them; every value that was acknowledged is on one shard, and there is no other.
    async fn end(self, stage: &Stage) {
        self.stop.store(true, Ordering::Relaxed);
        let mut wanted = BTreeMap::new();
        for task in self.tasks {
            let told = task.await.unwrap();
            assert!(
                told.len() > 10,
                "{} values of {} only",
                told.len(),
                self.column
            );
            wanted.extend(told);
        }
        assert_eq!(found(stage, self.column).await, wanted, "{}", self.column);
    }
}

/// Values that are not as rows have them that were there before, through the shards' owners.
async fn found(stage: &Stage, column: &str) -> BTreeMap<i64, i64> {
    let proxy = stage.proxy(0);
    stage.ready(&proxy).await;
    let client = open_session(&to(&proxy)).await.unwrap();
    let all = format!("select n, {column} from own where {column} <> -1");
    let mut found = BTreeMap::new();
    for row in client.query(&all, &[]).await.unwrap() {
        let twice = found.insert(row.get(0), row.get(1));
        assert_eq!(twice, None, "{column} of {} twice", row.get::<_, i64>(0));
    }
    found
}

async fn write(column: &str, proxy: Config, stop: Arc<AtomicBool>) -> BTreeMap<i64, i64> {
    let client = open_session(&proxy).await.unwrap();
    let mut told = BTreeMap::new();
    while !stop.load(Ordering::Relaxed) {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let key = Keys::Bigint.of(usize::try_from(number).unwrap() % TENANTS);
        let insert = format!("insert into own (k, n, {column}) values ({key}, {number}, {number})");
        let update =
            format!("update own set {column} = {column} * 2 where k = {key} and n = {number}");
        for (what, value) in [(insert, number), (update, number * 2)] {
            let done = client.batch_execute(&what).await;
            done.unwrap_or_else(|error| panic!("{what}: {error:?}"));
            told.insert(number, value);
        }
    }
    told
}

async fn refused(client: &Client, change: &str) -> String {
    let refused = client.batch_execute(change).await;
    let refused = refused.expect_err(change);
    let said = refused
        .as_db_error()
        .unwrap_or_else(|| panic!("{change}: {refused:?}"));
    let detail = said.detail().unwrap_or_default().to_owned();
    assert!(detail.contains("SW403"), "{change}: {said:?}");
    detail
}

async fn done(client: &Client, change: &str) {
    let done = client.batch_execute(change).await;
    done.unwrap_or_else(|error| panic!("{change}: {error:?}"));
}

/// Waits until the journal says that a column is planned.
async fn planned(stage: &Stage, what: &str) {
    const SAID: &str = "\
select count(*) from shardway.journal where event = 'columns' and detail::text like '%' || $1 || '%'";
    let home = stage.session(0).await;
    let begun = Instant::now();
    while home
        .query_one(SAID, &[&what])
        .await
        .unwrap()
        .get::<_, i64>(0)
        == 0
    {
        let stands = stage.stands().await;
        assert!(begun.elapsed() < PATIENCE, "never planned: {stands:#}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// A table of which nobody but this writes rows.
const OWN: &str = "; create table own (k bigint not null, n bigint not null, primary key (k, n), \
    constraint positive check (n > 0), note text not null default 'x')";

fn with_own(servers: usize, filled: usize) -> Stage {
    let mut stage = Setting {
        tables: Keys::Bigint.tables() + OWN,
        ..open_setting(servers, filled)
    };
    stage.sections = stage
        .sections
        .replacen("tables = {", "tables = { \"public.own\" = \"k\",", 1);
    Stage::of(stage)
}

fn open_setting(servers: usize, filled: usize) -> Setting {
    Setting {
        servers,
        filled,
        shards: servers,
        sections: format!(
            "[databases.postgres.groups.g]\nkey_type = \"bigint\"\nmethod = \"hash\"\nbuckets = 16\n\
             shards = [\"s0\", \"s1\"]\n{}",
            Keys::TABLES
        ),
        ..Setting::default()
    }
}

async fn session(proxy: &Proxy) -> Client {
    open_session(&to(proxy)).await.unwrap()
}

#[test]
#[expect(clippy::too_many_lines, reason = "a claim is told in its order")]
fn columns_and_indexes_come_to_both_sides_while_rows_move() {
    let stage = with_own(2, 2);
    block_on(async {
        let proxies = [stage.proxy(0), stage.proxy(1)];
        let targets = [to(&proxies[0]), to(&proxies[1])];
        stage.ready(&proxies[0]).await;
        stage.ready(&proxies[1]).await;
        fill(Keys::Bigint, &session(&proxies[0]).await).await;
        let clients = Clients::start(Keys::Bigint, &targets, 2);
        let (one, other) = (session(&proxies[0]).await, session(&proxies[1]).await);
        for tenant in 0..TENANTS {
            let row = format!(
                "insert into own (k, n) values ({}, 1)",
                Keys::Bigint.of(tenant)
            );
            done(&one, &row).await;
        }
        // Nothing is copied before it is let.
        let start = [
            &["start"],
            &EXCHANGE[..],
            &KNOBS[..],
            &["--set", "bytes_per_second=10000"],
        ]
        .concat();
        stage.must(&start).await;
        stage.until("copy").await;
        let early = refused(&one, "alter table own add column size bigint").await;
        assert!(early.contains("while it is ready"), "{early}");
        done(&one, "create index own_note on own (note)").await;
        stage.must(&["set", "bytes_per_second=0"]).await;
        stage.until("ready").await;
        stage.made().await;

        done(
            &one,
            "alter table own add column mark bigint not null default -1",
        )
        .await;
        let marks = Writers::start("mark", &targets);
        done(
            &other,
            "create index own_mark on own (mark) where mark is not null",
        )
        .await;
        for change in [
            "alter table own drop constraint positive, alter note drop not null, alter mark set default 0",
            "alter table own alter mark set default -1, alter note set statistics 50, set (fillfactor = 90)",
            "create index concurrently own_n on own (n)",
            "drop index own_n",
            "comment on column own.mark is 'm'",
            "create statistics own_s on k, n from own",
        ] {
            done(&other, change).await;
        }
        planned(&stage, "+mark bigint").await;
        for (change, why) in [
            (
                "alter table own alter mark drop not null, alter note set not null",
                "would have to hold",
            ),
            ("alter table own add check (n > 0)", "would have to hold"),
            ("create unique index on own (k, mark)", "would have to hold"),
            ("create index on own ((1 / mark))", "may fail"),
            ("create index on own (n) where 1 / mark > 0", "may fail"),
            (
                "alter table own rename mark to sign",
                "not made on both sides",
            ),
            ("alter table own drop column note", "not made on both sides"),
            (
                "alter table own alter note type varchar",
                "not made on both sides",
            ),
            (
                "alter table own add at timestamptz default now()",
                "another value",
            ),
            (
                "alter table own add at timestamptz default 'now'",
                "another value",
            ),
            (
                "alter table own add chance float default random()",
                "another value",
            ),
            (
                "alter table own add id bigint generated always as identity",
                "another value",
            ),
            ("alter table own add id serial", "of a type"),
            (
                "alter table own add size int check (size > 0)",
                "would have to hold",
            ),
            ("alter table own alter k drop not null", "shard key"),
            ("alter table own drop constraint own_pkey", "found by"),
        ] {
            let said = refused(&one, change).await;
            assert!(said.contains(why), "{change}: {said}");
        }
        stage.verify().await;
        stage.must(&["cutover"]).await;
        stage.until("reverse").await;
        stage.made().await;
        // As applications do it that are generous to rows of before.
        for part in [
            "begin",
            "alter table own add column tier bigint not null default -1",
            "alter table own alter tier drop default",
            "alter table own alter tier set default -1",
            "commit",
        ] {
            done(&one, part).await;
        }
        let tiers = Writers::start("tier", &targets);
        planned(&stage, "+tier bigint").await;
        clients.more(20).await;
        for verb in ["rollback", "cutover"] {
            stage.must(&[verb]).await;
            stage.until("reverse").await;
            stage.made().await;
        }
        clients.more(20).await;
        marks.end(&stage).await;
        tiers.end(&stage).await;
        for shard in 0..2 {
            let client = stage.session(shard).await;
            let indexes =
                "select count(*) from pg_index where indrelid = 'own'::regclass and indisvalid";
            assert_eq!(rows(&client, indexes).await.unwrap(), ["3"], "on s{shard}");
        }
        stage.must(&["finish"]).await;
        stage.until("done").await;
        clients.stop().await.adds_up(&stage, "g").await;
        stage.has_nothing_left().await;
    });
}

#[test]
fn shards_that_join_are_changed_once_they_serve_whoever_leads() {
    let stage = with_own(3, 2);
    block_on(async {
        // It leads, and dies when a column is about to be planned.
        let leader = stage.proxy_by(0, &stage.ports(), "begin_columns:kill");
        stage.ready(&leader).await;
        fill(Keys::Bigint, &session(&leader).await).await;
        stage
            .must(&[&["start", "--to", "s0,s1,s2"], &KNOBS[..]].concat())
            .await;
        stage.until("ready").await;
        stage.made().await;
        let proxies = [stage.proxy(0), stage.proxy(1)];
        let targets = [to(&proxies[0]), to(&proxies[1])];
        stage.ready(&proxies[0]).await;
        stage.ready(&proxies[1]).await;
        let clients = Clients::start(Keys::Bigint, &targets, 2);
        let one = session(&proxies[0]).await;
        for change in [
            "alter table own add column mark bigint default -1",
            "create index own_note on own (note)",
            "alter table own alter note drop not null",
        ] {
            let said = refused(&one, change).await;
            assert!(said.contains("shard \"s2\", which joins"), "{said}");
        }
        stage.must(&["cutover"]).await;
        stage.until("reverse").await;
        stage.made().await;
        done(&one, "create index own_note on own (note)").await;
        done(&one, "alter table own add column mark bigint default -1").await;
        let marks = Writers::start("mark", &targets);
        planned(&stage, "+mark bigint").await;
        let gone = open_session(&to(&leader)).await;
        assert!(gone.is_err(), "who led is alive");
        clients.more(20).await;
        for verb in ["rollback", "cutover"] {
            stage.must(&[verb]).await;
            stage.until("reverse").await;
            stage.made().await;
        }
        marks.end(&stage).await;
        stage.must(&["finish"]).await;
        stage.until("done").await;
        clients.stop().await.adds_up(&stage, "g").await;
        stage.has_nothing_left().await;
    });
}

#[test]
fn a_column_of_one_side_alone_stops_it_until_the_other_has_it_too() {
    let stage = with_own(2, 2);
    block_on(async {
        let proxies = [stage.proxy(0), stage.proxy(1)];
        let targets = [to(&proxies[0]), to(&proxies[1])];
        stage.ready(&proxies[0]).await;
        stage.ready(&proxies[1]).await;
        fill(Keys::Bigint, &session(&proxies[0]).await).await;
        stage
            .must(&[&["start"], &EXCHANGE[..], &KNOBS[..]].concat())
            .await;
        stage.until("ready").await;
        stage.made().await;
        let source = stage.session(0).await;
        done(&source, "alter table own add column mark bigint default 3").await;
        // Past the proxies, as the change was.
        let clients = Clients::start(Keys::Bigint, &targets, 2);
        let map = map(&stage).await;
        for tenant in 0..TENANTS {
            let key = Keys::Bigint.of(tenant);
            let owned = Keys::Bigint.key_type().from_text(key.as_bytes()).unwrap();
            if map.owners.owner("g", &owned) == Some("s0") {
                let row = format!("insert into own (k, n, mark) values ({key}, 7, {key})");
                done(&source, &row).await;
            }
        }
        let begun = Instant::now();
        let stopped = loop {
            let error = stage.stands().await["error"].clone();
            if !error.is_null() {
                break error;
            }
            assert!(begun.elapsed() < PATIENCE * 2, "it goes on");
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let (what, remedy) = (stopped["what"].to_string(), stopped["remedy"].to_string());
        assert!(
            what.contains("public.own has no mark bigint on s1"),
            "{what}"
        );
        assert!(
            remedy.contains("ADD COLUMN") && remedy.contains("DEFAULT '3'"),
            "{remedy}"
        );
        let other = stage.session(1).await;
        done(&other, "alter table own add column mark bigint default 3").await;
        stage.must(&["resume"]).await;
        planned(&stage, "+mark bigint").await;
        stage.until("ready").await;
        stage.made().await;
        stage.verify().await;
        stage.must(&["cutover"]).await;
        stage.until("reverse").await;
        let wrong = "select count(*) from own where mark is distinct from k";
        let client = session(&proxies[1]).await;
        assert_eq!(rows(&client, wrong).await.unwrap(), ["0"]);
        stage.must(&["finish"]).await;
        stage.until("done").await;
        clients.stop().await.adds_up(&stage, "g").await;
        stage.has_nothing_left().await;
    });
}

#[test]
fn a_copy_that_is_made_again_has_columns_that_came_since() {
    const DROP: &str = "\
select pg_terminate_backend(active_pid) from pg_replication_slots where active_pid is not null and slot_name !~ 'back$'; \
select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name ~ '_s0$' and active_pid is null";
    let stage = with_own(2, 2);
    block_on(async {
        let proxies = [stage.proxy(0), stage.proxy(1)];
        let targets = [to(&proxies[0]), to(&proxies[1])];
        stage.ready(&proxies[0]).await;
        stage.ready(&proxies[1]).await;
        let one = session(&proxies[0]).await;
        fill(Keys::Bigint, &one).await;
        for tenant in 0..TENANTS {
            let row = format!(
                "insert into own (k, n) values ({}, 1)",
                Keys::Bigint.of(tenant)
            );
            done(&one, &row).await;
        }
        stage
            .must(&[&["start"], &EXCHANGE[..], &KNOBS[..]].concat())
            .await;
        stage.until("ready").await;
        stage.made().await;
        done(&one, "alter table own add column mark bigint default -1").await;
        let source = stage.session(0).await;
        let left = "select count(*) from pg_replication_slots where slot_name ~ '_s0$'";
        while rows(&source, left).await.unwrap() != ["0"] {
            // Whoever has it may have it again before it is dropped.
            drop(source.batch_execute(DROP).await);
        }
        let marks = Writers::start("mark", &targets);
        planned(&stage, "+mark bigint").await;
        let begun = Instant::now();
        let again = "select count(*) from shardway.journal where event = 'copy'";
        while rows(&source, again).await.unwrap() < vec!["2".to_owned()] {
            assert!(
                begun.elapsed() < PATIENCE,
                "never again: {:#}",
                stage.stands().await
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        stage.until("ready").await;
        stage.made().await;
        stage.verify().await;
        for verb in ["cutover", "rollback"] {
            stage.must(&[verb]).await;
            stage.until("reverse").await;
            stage.made().await;
        }
        marks.end(&stage).await;
        stage.must(&["abort"]).await;
        stage.until("aborted").await;
        stage.has_nothing_left().await;
    });
}
