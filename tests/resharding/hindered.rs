//! What hinders a reshard that is under way, or keeps it from beginning: it says what, and what mends it; nothing is lost; it
//! goes on when that was done, and what it made goes when it is given up.

use super::{
    applying::{equal, fence, filled, reshard, soon},
    shards::{LIMIT, Reshard, Shards, block_on, servers},
};
use shardway::{
    inspect::Severity,
    reshard::{
        dump::Tools,
        job::{Job, StepError},
        steps::{abort, catch_up::Follower, copy, fence, preflight, prepare, ready, rehearse},
    },
    sandbox::Sandbox,
};
use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, OnceLock},
    time::Duration,
};

async fn shards<'a>(prefix: &str, sandbox: &'a Sandbox) -> Shards<'a> {
    filled(prefix, sandbox.cluster(0), sandbox.cluster(1)).await
}

fn sandbox() -> &'static Sandbox {
    static SANDBOX: OnceLock<Sandbox> = OnceLock::new();
    SANDBOX.get_or_init(|| servers(2, &[("max_prepared_transactions", "5")]))
}

/// Both the reason and what mends it.
fn halted(ended: Result<(), StepError>) -> (String, String) {
    match ended {
        Err(StepError::Halt { what, remedy }) => (what, remedy),
        other => panic!("{other:?}"),
    }
}

#[test]
fn servers_that_are_not_set_up_for_it_are_found() {
    let sandbox = servers(
        2,
        &[
            ("wal_level", "replica"),
            ("max_replication_slots", "2"),
            ("max_wal_senders", "2"),
            ("max_prepared_transactions", "0"),
            ("max_slot_wal_keep_size", "64MB"),
        ],
    );
    block_on(async {
        let shards = shards("not_set_up", &sandbox).await;
        let reshard = reshard(&shards, "not_set_up", &["public.t"]).await;
        let listening = shards.server("s").sql().await.unwrap();
        listening.batch_execute("LISTEN news").await.unwrap();
        let found = preflight::run(&reshard.job, &Tools::default())
            .await
            .unwrap();
        for (severity, what, fix) in [
            (
                Severity::Error,
                "wal_level is replica",
                "SET wal_level = 'logical'",
            ),
            (
                Severity::Error,
                "max_replication_slots leaves 2 free; 3 are needed",
                "raise max_replication_slots",
            ),
            (
                Severity::Error,
                "max_wal_senders leaves 2 free",
                "raise max_wal_senders",
            ),
            (
                Severity::Error,
                "max_prepared_transactions is 0",
                "SET max_prepared_transactions = 100",
            ),
            (
                Severity::Warning,
                "max_slot_wal_keep_size is 64MB",
                "SET max_slot_wal_keep_size = -1",
            ),
            (Severity::Note, "1 sessions listen", "LISTEN"),
        ] {
            let finding = found
                .iter()
                .find(|it| it.shard.as_deref() == Some("s") && it.what.contains(what));
            let finding = finding.unwrap_or_else(|| panic!("{what}: {found:#?}"));
            assert_eq!(finding.severity, severity, "{what}");
            assert!(
                finding.fix.to_lowercase().contains(&fix.to_lowercase()),
                "{finding:?}"
            );
        }
    });
}

#[test]
fn what_comes_to_a_destination_is_said_in_bytes() {
    block_on(async {
        let shards = shards("in_bytes", sandbox()).await;
        shards.run("s", "ANALYZE t").await;
        let reshard = reshard(&shards, "in_bytes", &["public.t"]).await;
        let found = preflight::run(&reshard.job, &Tools::default())
            .await
            .unwrap();
        for shard in ["a", "b"] {
            let room = found.iter().find(|it| {
                it.shard.as_deref() == Some(shard) && it.what.contains("bytes come to it")
            });
            let room = room.unwrap_or_else(|| panic!("{found:#?}"));
            let bytes: u64 = room
                .what
                .split_whitespace()
                .nth(1)
                .unwrap()
                .parse()
                .unwrap();
            assert!((100..100_000).contains(&bytes), "{}", room.what);
        }
    });
}

#[test]
fn slots_that_are_all_in_use_stop_it_until_one_is_free() {
    let sandbox = servers(2, &[("max_replication_slots", "1")]);
    block_on(async {
        let shards = shards("all_in_use", &sandbox).await;
        let reshard = reshard(&shards, "all_in_use", &["public.t"]).await;
        let other = "SELECT pg_create_physical_replication_slot('others')";
        shards.run("s", other).await;
        let (what, remedy) = halted(prepare::run(&reshard.job, &Tools::default()).await);
        assert!(what.contains("all replication slots are in use"), "{what}");
        assert!(remedy.contains("max_replication_slots"), "{remedy}");
        shards
            .run("s", "SELECT pg_drop_replication_slot('others')")
            .await;
        soon(prepare::run(&reshard.job, &Tools::default())).await;
        soon(abort::run(&reshard.job)).await;
    });
}

#[test]
fn whoever_writes_for_long_is_waited_for_and_named() {
    block_on(async {
        let shards = shards("for_long", sandbox()).await;
        let mut reshard = reshard(&shards, "for_long", &["public.t"]).await;
        let mut servers = (*reshard.job.servers).clone();
        for server in servers.values_mut() {
            server.limit = Duration::from_millis(500);
        }
        let hasty = Job {
            servers: Arc::new(servers),
            ..reshard.job.clone()
        };
        let writer = shards.server("s").sql().await.unwrap();
        let write = "BEGIN; INSERT INTO public.t VALUES (1, 5000, 0, '', 'w')";
        writer.batch_execute(write).await.unwrap();
        let waits = async |named: &str| {
            let ended = prepare::run(&hasty, &Tools::default()).await;
            let Err(StepError::Again { problem, .. }) = ended else {
                panic!("{ended:?}");
            };
            assert!(problem.contains(named), "{problem}");
        };
        waits("idle in transaction").await;
        writer
            .batch_execute("PREPARE TRANSACTION 'for long'")
            .await
            .unwrap();
        waits("prepared transaction for long").await;
        writer
            .batch_execute("COMMIT PREPARED 'for long'")
            .await
            .unwrap();
        soon(prepare::run(&reshard.job, &Tools::default())).await;
        soon(copy::run(&reshard.job)).await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        // Guards are made on tables that somebody is at.
        writer
            .batch_execute(&write.replace("5000", "5001"))
            .await
            .unwrap();
        let Err(StepError::Again { what, problem }) = ready::run(&reshard.job).await else {
            panic!("made");
        };
        assert!(what.contains("the guard of public.t on shard s"), "{what}");
        assert!(problem.starts_with("process "), "{problem}");
        assert!(
            problem.contains("end it") && problem.contains("set lock_ms="),
            "{problem}"
        );
        writer.batch_execute("COMMIT").await.unwrap();
        soon(ready::run(&reshard.job)).await;
        fence(&shards, &reshard.job, 1).await;
        soon(follower.fenced(1)).await;
        equal(&shards, &reshard).await;
        soon(follower.stop()).await;
        reshard.job.attempt = 1;
        soon(abort::run(&reshard.job)).await;
    });
}

/// A small disk of its own; gone when it is dropped.
struct Disk(PathBuf);

impl Disk {
    /// `None`: only root may mount.
    fn mount(path: PathBuf, like: &Path) -> Option<Self> {
        std::fs::create_dir(&path).unwrap();
        let owner = std::fs::metadata(like).unwrap();
        let options = format!("size=2m,mode=700,uid={},gid={}", owner.uid(), owner.gid());
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &options, "none"])
            .arg(&path);
        let mounted = mount.status().is_ok_and(|status| status.success());
        mounted.then_some(Self(path))
    }

    fn grow(&self) {
        let mut mount = Command::new("mount");
        let grown = mount.args(["-o", "remount,size=64m"]).arg(&self.0).status();
        assert!(grown.unwrap().success());
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(&self.0).status();
        assert!(unmounted.unwrap().success());
    }
}

#[test]
fn a_full_disk_stops_the_copy_and_the_stream_until_there_is_room() {
    let own = servers(2, &[]);
    let Some(disk) = Disk::mount(own.root().join("small"), &own.cluster(1).data_dir()) else {
        println!("a small disk can only be mounted by root: not looked at");
        return;
    };
    block_on(async {
        let shards = shards("full", &own).await;
        let place = format!("CREATE TABLESPACE small LOCATION '{}'", disk.0.display());
        shards
            .cluster("a")
            .execute("postgres", &place)
            .await
            .unwrap();
        shards.run("a", "ALTER TABLE t SET TABLESPACE small").await;
        let wide = |from: u32, to: u32| {
            format!(
                "INSERT INTO t SELECT n % 40, n, n, NULL, (SELECT string_agg(md5(n::text || m), '') FROM generate_series(1, 100) m) \
                 FROM generate_series({from}, {to}) n"
            )
        };
        shards.run("s", &wide(1_001, 4_000)).await;
        let reshard = reshard(&shards, "full", &["public.t"]).await;
        soon(prepare::run(&reshard.job, &Tools::default())).await;
        let (what, remedy) = halted(copy::run(&reshard.job).await);
        assert!(
            what.contains("No space left on device") && what.contains("to a"),
            "{what}"
        );
        assert!(remedy.contains("space"), "{remedy}");
        disk.grow();
        soon(copy::run(&reshard.job)).await;

        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        shards.run("s", &wide(5_001, 20_000)).await;
        shards.run("s", &wide(20_001, 60_000)).await;
        let ended = tokio::time::timeout(LIMIT, follower.failed()).await;
        let (what, remedy) = halted(Err(ended.expect("in time")));
        assert!(what.contains("No space left on device"), "{what}");
        assert!(remedy.contains("space"), "{remedy}");
        drop(follower);
        soon(abort::run(&reshard.job)).await;
        for shard in ["a", "b"] {
            assert_eq!(shards.one(shard, "SELECT count(*) FROM t").await, "0");
        }
    });
}

/// A follower that is past the consistency point.
async fn following(prefix: &str) -> (Shards<'static>, Reshard, Follower) {
    let shards = shards(prefix, sandbox()).await;
    let reshard = reshard(&shards, prefix, &["public.t"]).await;
    soon(prepare::run(&reshard.job, &Tools::default())).await;
    soon(copy::run(&reshard.job)).await;
    let follower = Follower::start(&reshard.job, "s");
    soon(follower.consistent()).await;
    (shards, reshard, follower)
}

#[test]
fn a_table_that_is_changed_past_the_proxies_stops_it() {
    block_on(async {
        for (prefix, change) in [
            ("direct_add", "ALTER TABLE t ADD more int DEFAULT 7"),
            ("direct_drop", "ALTER TABLE t DROP note"),
            ("direct_type", "ALTER TABLE t ALTER n TYPE bigint"),
            ("direct_column", "ALTER TABLE t RENAME n TO m"),
            ("direct_name", "ALTER TABLE t RENAME TO u"),
            (
                "direct_schema",
                "CREATE SCHEMA other; ALTER TABLE t SET SCHEMA other",
            ),
        ] {
            let (shards, reshard, follower) = following(prefix).await;
            shards.run("s", change).await;
            let table = match prefix {
                "direct_name" => "public.u",
                "direct_schema" => "other.t",
                _ => "t",
            };
            shards
                .run("s", &format!("UPDATE {table} SET long = 'y'"))
                .await;
            let ended = tokio::time::timeout(LIMIT, follower.failed()).await;
            let (what, remedy) = match ended.unwrap_or_else(|_| panic!("{change}")) {
                // What leads it looks whether the others have it too.
                StepError::Grown { what } if prefix == "direct_add" => (what, "abort".to_owned()),
                ended => halted(Err(ended)),
            };
            let named = if table == "t" { "public.t" } else { table };
            assert!(what.contains(named), "{change}: {what}");
            assert!(remedy.contains("abort"), "{change}: {remedy}");
            let applied = "SELECT count(*) FROM t WHERE long = 'y'";
            for shard in ["a", "b"] {
                assert_eq!(shards.one(shard, applied).await, "0", "{change}");
            }
            drop(follower);
            soon(abort::run(&reshard.job)).await;
            let left = format!(
                "SELECT count(*) FROM pg_replication_slots WHERE slot_name LIKE 'shardway_{prefix}%'"
            );
            assert_eq!(shards.one("s", &left).await, "0", "{change}");
        }
    });
}

#[test]
fn a_table_that_was_replaced_past_the_proxies_keeps_its_owners() {
    const REPLACE: &str = "ALTER TABLE t RENAME TO before; CREATE TABLE t (LIKE before INCLUDING ALL); INSERT INTO t SELECT * FROM before";
    const BACK: &str = "DROP TABLE t; ALTER TABLE before RENAME TO t";
    block_on(async {
        let (shards, mut reshard, follower) = following("replaced_table").await;
        soon(ready::run(&reshard.job)).await;
        reshard.job.attempt = 1;
        let job = &reshard.job;
        soon(rehearse::run(job)).await;
        // Nobody streams it, and what is written there is nowhere else.
        shards.run("s", REPLACE).await;
        soon(ready::run(job)).await;
        for ended in [rehearse::run(job).await, fence::run(job).await] {
            let (what, remedy) = halted(ended);
            assert!(what.contains("public.t on shard s"), "{what}");
            assert!(remedy.contains("abort"), "{remedy}");
        }
        let fences = "SELECT count(*) FROM shardway.fence WHERE attempt > 0";
        assert_eq!(shards.one("s", fences).await, "0");
        shards.run("s", BACK).await;
        soon(rehearse::run(job)).await;
        // Nor would there be a way back.
        shards.run("a", REPLACE).await;
        let (what, _) = halted(rehearse::run(job).await);
        assert!(what.contains("public.t on shard a"), "{what}");
        shards.run("a", BACK).await;
        soon(rehearse::run(job)).await;
        soon(follower.stop()).await;
        soon(abort::run(job)).await;
    });
}

#[test]
fn what_changes_no_row_does_not_stop_it() {
    block_on(async {
        let (shards, reshard, follower) = following("harmless").await;
        shards
            .run("s", "CREATE INDEX more ON t (n); ANALYZE t; ALTER TABLE t ALTER n SET STATISTICS 50; COMMENT ON TABLE t IS 'x'")
            .await;
        shards.run("s", "UPDATE t SET n = n + 1").await;
        fence(&shards, &reshard.job, 1).await;
        soon(follower.fenced(1)).await;
        equal(&shards, &reshard).await;
        soon(follower.stop()).await;
        soon(abort::run(&reshard.job)).await;
    });
}

#[test]
fn a_destination_that_went_away_is_waited_for() {
    let own = servers(2, &[]);
    block_on(async {
        let shards = shards("away", &own).await;
        let reshard = reshard(&shards, "away", &["public.t"]).await;
        soon(prepare::run(&reshard.job, &Tools::default())).await;
        own.cluster(1).kill();
        let ended = copy::run(&reshard.job).await;
        assert!(matches!(ended, Err(StepError::Again { .. })), "{ended:?}");
        own.cluster(1).start().unwrap();
        soon(copy::run(&reshard.job)).await;
        let follower = Follower::start(&reshard.job, "s");
        soon(follower.consistent()).await;
        own.cluster(1).kill();
        shards.run("s", "UPDATE t SET n = n + 1").await;
        let told = async {
            while follower.problem().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LIMIT, told).await.unwrap();
        own.cluster(1).start().unwrap();
        fence(&shards, &reshard.job, 1).await;
        soon(follower.fenced(1)).await;
        equal(&shards, &reshard).await;
        soon(follower.stop()).await;
        soon(abort::run(&reshard.job)).await;
    });
}
