//! Many clients that work, and die anywhere: in the middle of a startup packet, a proof, a message, an answer, a
//! transaction, a COPY. Those that live are answered exactly, and when all are gone the proxy has kept nothing of them:
//! no panic, no backend in a transaction, no permit, no session, no file, no memory.
//!
//! `SHARDWAY_SOAK_SECONDS`, `SHARDWAY_SOAK_CLIENTS` and `SHARDWAY_SOAK_SEED` say how long, how many and which; `make soak`
//! is long. The seed decides what each client does, not when.

#![cfg(test)]

mod acts;
mod big;
#[expect(dead_code, reason = "only a part is used here")]
#[path = "../sessions/client.rs"]
mod client;
#[expect(dead_code, reason = "only a part is used here")]
#[path = "../cluster/harness.rs"]
mod harness;
mod idle;
mod life;
#[expect(dead_code, reason = "only a part is used here")]
#[path = "../oracle/random.rs"]
mod random;
mod stage;
mod wide;
mod wire;

use client::batch;
use harness::{PATIENCE, until};
use life::{Counts, Person, World, shard_of};
use stage::{LOYAL, PROVEN, Place, Stage, TRUSTED};
use std::{
    collections::BTreeMap,
    fmt::{Debug, Write as _},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};
use tokio::sync::Semaphore;
use wire::Wire;

/// Kinds of problems that are shown; there is no end to them when something is really wrong.
const SHOWN: usize = 20;

#[test]
fn clients_that_die_anywhere_harm_nobody_and_leave_nothing_behind() {
    let seconds = number("SHARDWAY_SOAK_SECONDS").unwrap_or(8);
    let clients = usize::try_from(number("SHARDWAY_SOAK_CLIENTS").unwrap_or(60)).unwrap();
    let seed = number("SHARDWAY_SOAK_SEED").unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        u64::from(since.unwrap().subsec_nanos())
    });
    println!("SHARDWAY_SOAK_SEED={seed}, {clients} clients for {seconds} s");
    let stage = Stage::open(clients);
    let (files, memory) = (stage.files(), stage.resident());
    let world = Arc::new(World {
        port: stage.proxy.port,
        snapshot: Arc::clone(&stage.snapshot),
        over: AtomicBool::new(false),
        counts: Counts::default(),
        problems: Mutex::default(),
        holders: Arc::new(Semaphore::new(stage.pool.shared / 3)),
        pause: clients / 5,
    });
    let highest = AtomicUsize::new(0);
    let persons = std::thread::scope(|scope| {
        let (watched, most) = (&world, &highest);
        let stage = &stage;
        scope.spawn(move || {
            while !watched.over.load(Relaxed) {
                most.fetch_max(stage.resident(), Relaxed);
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        run(&world, clients, seed, Duration::from_secs(seconds))
    });
    report(&world.counts, memory, highest.load(Relaxed));
    let problems = world.problems.lock().unwrap();
    assert!(problems.is_empty(), "{}", by_kind(&problems));
    drop(problems);
    everything_is_given_back(&stage, files);
    rows_are_what_was_acknowledged(&stage, &persons);
    every_backend_can_be_had(&stage);
    memory_is_bounded(&stage, memory, highest.load(Relaxed), clients);
}

/// Lets them live until the time is over.
fn run(world: &Arc<World>, clients: usize, seed: u64, time: Duration) -> Vec<Person> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut lives = tokio::task::JoinSet::new();
        for number in 0..clients {
            lives.spawn(Person::new(number, seed).live(Arc::clone(world)));
        }
        tokio::time::sleep(time).await;
        world.over.store(true, Relaxed);
        lives.join_all().await
    })
}

fn report(counts: &Counts, before: usize, highest: usize) {
    let read = |count: &AtomicUsize| count.load(Relaxed);
    println!(
        "{} lives, {} died in the middle, {} at login; {} answers, {} cancels; memory {} kB at rest, {} kB at most",
        read(&counts.lives),
        read(&counts.deaths),
        read(&counts.stillborn),
        read(&counts.answers),
        read(&counts.cancels),
        before / 1024,
        highest / 1024,
    );
}

/// Problems that differ in numbers only are one kind, shown once.
fn by_kind(problems: &[String]) -> String {
    let mut kinds: BTreeMap<String, (usize, &str)> = BTreeMap::new();
    for problem in problems {
        let kind = problem.chars().filter(|c| !c.is_ascii_digit()).collect();
        kinds.entry(kind).or_insert((0, problem)).0 += 1;
    }
    let mut shown = format!("{} problems:", problems.len());
    for (count, example) in kinds.values().take(SHOWN) {
        let _ = write!(shown, "\n{count} like {example}");
    }
    shown
}

/// Nothing of the dead is left: sessions, backends, transactions, locks, files; and nothing panicked.
fn everything_is_given_back(stage: &Stage, files: usize) {
    settles(
        "only the console's own session is left",
        || (stage.show("SHOW CLIENTS"), stage.activity()),
        |(clients, _)| clients.len() == 1,
    );
    settles(
        "no server works for the dead",
        || stage.activity(),
        |activity| activity.iter().all(|backend| backend.starts_with("idle:")),
    );
    let backends = stage.activity().len();
    let most = stage.most_backends();
    assert!(backends <= most, "{backends} backends, {most} allowed");
    until("the console counts the servers' connections", || {
        stage.show("SHOW SERVERS").len() == stage.activity().len()
    });
    for pool in stage.show("SHOW POOLS") {
        let busy = ["cl_waiting", "sv_active", "sv_login"].map(|name| pool[name].as_str());
        assert_eq!(busy, ["0", "0", "0"], "{pool:?}");
    }
    until("no lock is left", || stage.locks() == 0);
    until("files are those of the start and of the backends", || {
        stage.files() <= files + stage.show("SHOW SERVERS").len()
    });
    let (status, metrics) = harness::get(stage.proxy.http, "/metrics");
    assert_eq!(status, 200);
    assert!(metrics.contains("\nshardway_panics_total 0\n"), "{metrics}");
    assert!(
        !stage.proxy.log().contains("panic"),
        "{}",
        stage.proxy.log()
    );
    println!(
        "{backends} backends of at most {most}, {} files",
        stage.files()
    );
}

/// What was acknowledged is there, what was rolled back is not, and there is nothing else.
fn rows_are_what_was_acknowledged(stage: &Stage, persons: &[Person]) {
    for place in [Place::Single, Place::Sharded] {
        let mut found = stage.rows(place);
        println!("{} rows on {}", found.len(), place.database());
        for person in persons.iter().filter(|person| person.place == place) {
            for (row, bodies) in &person.rows {
                let body = found.remove(row);
                assert!(
                    bodies.contains(&body),
                    "row {row} is {body:?}, not one of {bodies:?}"
                );
            }
        }
        assert!(found.is_empty(), "nobody made {found:?}");
    }
}

/// Every pool gives as many backends at once as it has: no permit went with the dead.
fn every_backend_can_be_had(stage: &Stage) {
    let placements = [(Place::Single, 0), (Place::Sharded, 0), (Place::Sharded, 1)];
    let row_on = |shard| {
        let on_it = |row: &i64| shard_of(&stage.snapshot, *row).index() == shard;
        (1..).find(on_it).unwrap()
    };
    harness::block_on(async {
        for user in [TRUSTED, PROVEN, LOYAL] {
            for (place, shard) in placements {
                let size = if user == LOYAL {
                    stage.pool.loyal
                } else {
                    stage.pool.shared
                };
                let mut held = Vec::new();
                for _ in 0..size {
                    let mut wire = Wire::open(stage.proxy.port).await.unwrap();
                    let packet = wire::startup_packet(user, place.database(), "");
                    wire.send(&packet).await.unwrap();
                    if user == PROVEN {
                        wire.prove(PROVEN).await.unwrap();
                    }
                    wire.welcome().await.unwrap();
                    let row = row_on(shard);
                    let sql = format!("select count(*) from items where id = {row} and id < 0");
                    wire.send(&batch().query("begin").query(&sql).0)
                        .await
                        .unwrap();
                    let answers = wire.answers(2).await.unwrap();
                    assert_eq!(
                        answers,
                        ["C BEGIN", "Z T", "D 0", "C SELECT 1", "Z T"],
                        "{user}"
                    );
                    held.push(wire);
                }
            }
        }
    });
}

fn memory_is_bounded(stage: &Stage, before: usize, highest: usize, clients: usize) {
    let now = stage.resident();
    println!("memory {} kB at the end", now / 1024);
    let bound = before + (64 << 20) + clients * (128 << 10);
    assert!(highest < bound, "{highest} bytes at most, {bound} allowed");
    let bound = before + (64 << 20) + clients * (16 << 10);
    assert!(now < bound, "{now} bytes at the end, {bound} allowed");
}

/// Looks again until it is so.
fn settles<T: Debug>(what: &str, look: impl Fn() -> T, is_so: impl Fn(&T) -> bool) {
    let begun = SystemTime::now();
    loop {
        let found = look();
        if is_so(&found) {
            return;
        }
        let waited = begun.elapsed().unwrap();
        assert!(waited < PATIENCE, "not so: {what}: {found:#?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn number(name: &str) -> Option<u64> {
    let value = std::env::var_os(name)?;
    let value = value.to_str().and_then(|value| value.parse().ok());
    Some(value.unwrap_or_else(|| panic!("{name} is a number")))
}
