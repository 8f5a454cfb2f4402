//! A run gives way: while a server has more to do than it may have, less is copied, then nothing, and it says why; it goes
//! on by itself.

use super::shards::{LIMIT, Reshard, Shards, block_on, servers};
use shardway::{
    catalog::moving::{KeySet, Move, Part},
    clock::{Clock, Duration},
    reshard::{
        dump::Tools,
        job::{Knobs, StepError},
        steps::{abort, copy, prepare, ready},
        throttle::{Throttle, look_both},
    },
    sandbox::{Cluster, Sandbox},
};
use std::{
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
};
use tokio::task::JoinSet;
use tokio_postgres::NoTls;

fn cluster(at: usize) -> &'static Cluster {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| servers(2, &[])).cluster(at)
}

/// A table whose rows all go from one server to the other.
async fn reshard(prefix: &str) -> (Shards<'static>, Reshard) {
    reshard_on(prefix, cluster(0), cluster(1)).await
}

async fn reshard_on<'a>(prefix: &str, from: &'a Cluster, to: &'a Cluster) -> (Shards<'a>, Reshard) {
    let shards = Shards::new(prefix, &[("s", from), ("d", to)]).await;
    let table = "CREATE TABLE t (tenant bigint, id bigint, PRIMARY KEY (tenant, id))";
    shards.on_all(table).await;
    let fill = "INSERT INTO t SELECT k % 7, k FROM generate_series(1, 20000) k; ANALYZE t";
    shards.run("s", fill).await;
    let all = Move {
        group: "g".to_owned(),
        keys: KeySet::of(Part::Buckets {
            of: 4,
            runs: vec![(0, 4)],
        }),
        from: "s".to_owned(),
        to: "d".to_owned(),
    };
    let table = shards.table("s", "public.t", Some("g")).await;
    let reshard = shards.reshard("bigint", vec![all], vec![table]).await;
    (shards, reshard)
}

/// Looks until so many copies may run at a time, which the copy is told as its runner tells it.
async fn until(throttle: &mut Throttle, reshard: &Reshard, copies: usize) -> Option<String> {
    let looking = async {
        loop {
            throttle.look(&reshard.job).await;
            reshard.knobs.send_replace(throttle.knobs());
            if throttle.knobs().copies == copies {
                let shown = reshard.job.progress.all();
                return shown["throttle"].as_str().map(str::to_owned);
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, looking).await.expect("in time")
}

#[test]
fn a_copy_stands_still_while_the_source_is_busy_and_goes_on_by_itself() {
    block_on(async {
        let (shards, reshard) = reshard("busy").await;
        let count = "SELECT count(*) FROM t";
        // Servers of other tests do nothing here: only these three.
        let mut busy = JoinSet::new();
        for _ in 0..3 {
            busy.spawn(async {
                let config = cluster(0).config("postgres");
                let (client, connection) = config.connect(NoTls).await.unwrap();
                tokio::select! {
                    slept = client.batch_execute("SELECT pg_sleep(600)") => drop(slept),
                    ended = connection => drop(ended),
                }
            });
        }
        let running = "SELECT count(*) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)' AND state = 'active'";
        while shards.one("s", running).await != "3" {}

        let wanted = Knobs {
            load: 2,
            answer: Duration::ZERO,
            copies: 2,
            ..reshard.knobs.borrow().clone()
        };
        let mut throttle = Throttle::new(wanted.clone(), Clock);
        let reason = until(&mut throttle, &reshard, 0).await.unwrap();
        assert!(reason.contains("shard s: "), "{reason}");
        assert!(reason.contains("more than load=2: 0 of 2"), "{reason}");
        let mut copying = Box::pin(copy::run(&reshard.job));
        // All is there for it but leave.
        let begun = async {
            while !reshard
                .job
                .progress
                .all()
                .contains_key("copy.public.t.chunks")
            {
                tokio::task::yield_now().await;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        };
        tokio::select! {
            ended = &mut copying => panic!("{ended:?}"),
            begun = tokio::time::timeout(LIMIT, begun) => begun.expect("in time"),
        }
        assert_eq!(shards.one("d", count).await, "0");

        // Another limit, and it goes on at once; that of before, and it ends with those who were busy.
        throttle.want(Knobs {
            load: 5,
            ..wanted.clone()
        });
        assert!(until(&mut throttle, &reshard, 2).await.is_none());
        throttle.want(wanted);
        until(&mut throttle, &reshard, 0).await.unwrap();
        let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'SELECT pg_sleep(600)'";
        shards.rows("s", end).await;
        while let Some(ended) = busy.join_next().await {
            ended.unwrap();
        }
        assert!(until(&mut throttle, &reshard, 2).await.is_none());
        let copied = tokio::time::timeout(LIMIT, copying).await;
        copied.expect("in time").unwrap();
        assert_eq!(shards.one("d", count).await, "20000");
    });
}

/// A process that keeps a destination's WAL, as an archive does.
struct Receiver {
    process: Child,
    directory: PathBuf,
}

impl Receiver {
    fn start(from: &Cluster) -> Self {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("received");
        drop(std::fs::remove_dir_all(&directory));
        std::fs::create_dir_all(&directory).unwrap();
        const PROGRAM: &str = "pg_receivewal";
        let mut command = Command::new(from.program(PROGRAM).unwrap_or_else(|| PROGRAM.into()));
        command.args([
            "-n",
            "--synchronous",
            "--status-interval=1",
            "-U",
            "postgres",
        ]);
        command.arg("-h").arg(from.socket_dir());
        command.arg("-p").arg(from.port().to_string());
        command.arg("-D").arg(&directory).stderr(Stdio::null());
        let process = command.spawn().unwrap();
        Self { process, directory }
    }

    fn signal(&self, name: &str) {
        let pid = self.process.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status();
        assert!(sent.unwrap().success());
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

#[test]
fn what_is_copied_waits_for_a_replica_that_is_behind() {
    block_on(async {
        let (shards, reshard) = reshard("replica").await;
        let receiver = Receiver::start(cluster(1));
        let behind = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming' AND flush_lsn IS NOT NULL";
        while shards.one("d", behind).await != "1" {}
        let wanted = Knobs {
            replica_lag: 1 << 20,
            answer: Duration::ZERO,
            copies: 2,
            ..reshard.knobs.borrow().clone()
        };
        let mut throttle = Throttle::new(wanted, Clock);
        assert!(until(&mut throttle, &reshard, 2).await.is_none());
        receiver.signal("-STOP");
        let write = "CREATE TABLE more AS SELECT k, md5(k::text) FROM generate_series(1, 50000) k";
        shards.run("d", write).await;
        let reason = until(&mut throttle, &reshard, 0).await.unwrap();
        assert!(reason.contains("shard d: pg_receivewal is "), "{reason}");
        assert!(reason.contains("more than replica_lag=1048576"), "{reason}");
        receiver.signal("-CONT");
        assert!(until(&mut throttle, &reshard, 2).await.is_none());
    });
}

#[test]
fn a_run_stops_before_its_slot_keeps_vacuum_from_too_much() {
    block_on(async {
        let (shards, reshard) = reshard("vacuum").await;
        let job = &reshard.job;
        prepare::run(job, &Tools::default()).await.unwrap();
        look_both(job).await.unwrap();
        let age = |name: &str| {
            let figures = job.progress.all();
            figures
                .get(&format!("source.s.{name}"))
                .and_then(serde_json::Value::as_u64)
        };
        let begun = age("xmin_age").unwrap();
        // Nobody reads from the slot: what it keeps is ever older, and others use the server, too.
        const ONE: &str = "SELECT pg_current_xact_id()";
        let prepare = "BEGIN; SELECT pg_current_xact_id(); PREPARE TRANSACTION 'old'";
        shards.run("s", prepare).await;
        for _ in 0..30 {
            shards.run("s", ONE).await;
        }
        look_both(job).await.unwrap();
        assert!(age("xmin_age").unwrap() >= begun + 30);
        // A prepared transaction is among those for which vacuum waits.
        assert!(age("oldest_snapshot").unwrap() >= 30);
        shards.run("s", "ROLLBACK PREPARED 'old'").await;
        reshard
            .knobs
            .send_modify(|knobs| knobs.xmin_age = begun + 10);
        let looked = look_both(job).await;
        let Err(StepError::Halt { what, remedy }) = looked else {
            panic!("{looked:?}");
        };
        assert!(what.contains("keeps vacuum of shard s from what"), "{what}");
        assert!(remedy.contains("xmin_age"), "{remedy}");
        let default = Knobs::default().xmin_age;
        reshard.knobs.send_modify(|knobs| knobs.xmin_age = default);
        look_both(job).await.unwrap();
        abort::run(job).await.unwrap();
    });
}

#[test]
fn a_run_that_waits_stops_before_slots_of_either_way_keep_too_much() {
    // Nobody else writes WAL there.
    let own = servers(2, &[]);
    block_on(async {
        let (shards, reshard) = reshard_on("kept", own.cluster(0), own.cluster(1)).await;
        let job = &reshard.job;
        prepare::run(job, &Tools::default()).await.unwrap();
        copy::run(job).await.unwrap();
        ready::run(job).await.unwrap();
        look_both(job).await.unwrap();
        // Nobody reads there: the destination of one is down, of the other nobody reads before a cutover.
        const MORE: &str = "SELECT pg_logical_emit_message(false, '', repeat('x', 4000000))";
        reshard.knobs.send_modify(|knobs| knobs.wal_kept = 3 << 20);
        look_both(job).await.unwrap();
        for shard in ["d", "s"] {
            shards.run(shard, MORE).await;
            let looked = look_both(job).await;
            let Err(StepError::Halt { what, remedy }) = looked else {
                panic!("{shard}: {looked:?}");
            };
            assert!(what.contains(&format!("shard {shard} keeps")), "{what}");
            assert!(remedy.contains("wal_kept"), "{remedy}");
        }
        abort::run(job).await.unwrap();
    });
}
