//! The home shard fails over to a standby that had not yet got the last change of owners: nobody is served by the older map.

use crate::{
    Run,
    answer::{Answer, Side},
    harness::{Rows, World},
    moving::{Asked, Driver},
    random::Random,
    schema::DATABASE,
};
use shardway::{
    catalog::{key::Key, ownership::Content},
    sandbox::Cluster,
};
use std::{
    fs,
    os::unix::fs::{MetadataExt as _, chown},
    path::Path,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(60);

/// A standby of a server on the place of another one, which is lost.
struct Standby<'a> {
    home: &'a Cluster,
    spare: &'a Cluster,
    /// What the home shard is configured with.
    files: Vec<(&'static str, Vec<u8>)>,
}

const FILES: [&str; 2] = ["postgresql.conf", "pg_hba.conf"];

impl<'a> Standby<'a> {
    async fn follow(home: &'a Cluster, spare: &'a Cluster) -> Self {
        let may = "local replication all trust\n";
        let access = home.data_dir().join("pg_hba.conf");
        let mut text = fs::read_to_string(&access).unwrap();
        text.insert_str(0, may);
        fs::write(&access, text).unwrap();
        home.execute("postgres", "SELECT pg_reload_conf()")
            .await
            .unwrap();
        let read =
            |of: &Cluster| FILES.map(|file| (file, fs::read(of.data_dir().join(file)).unwrap()));
        let (files, own) = (read(home), read(spare));
        spare.stop();
        fs::remove_dir_all(spare.data_dir()).unwrap();
        const PROGRAM: &str = "pg_basebackup";
        let backup = home.program(PROGRAM).unwrap_or_else(|| PROGRAM.into());
        let done = Command::new(backup)
            .args([
                "--checkpoint",
                "fast",
                "-X",
                "stream",
                "-R",
                "-U",
                "postgres",
                "-h",
            ])
            .arg(home.socket_dir())
            .args(["-p", &home.port().to_string(), "-D"])
            .arg(spare.data_dir())
            .output()
            .unwrap();
        assert!(done.status.success(), "{done:?}");
        for (file, content) in own {
            fs::write(spare.data_dir().join(file), content).unwrap();
        }
        belongs(&spare.data_dir(), &fs::metadata(home.data_dir()).unwrap());
        spare.start().unwrap();
        Self {
            home,
            spare,
            files: files.into(),
        }
    }

    /// It has what the home shard has by now, and gets no more.
    async fn falls_behind(&self) {
        let now = "SELECT pg_current_wal_flush_lsn()::text";
        let now = self.home.query("postgres", now).await.unwrap();
        let has = format!(
            "SELECT pg_last_wal_replay_lsn() >= '{}'",
            now[0][0].as_ref().unwrap()
        );
        let begun = Instant::now();
        while self.spare.query("postgres", &has).await.unwrap()[0][0].as_deref() != Some("t") {
            assert!(begun.elapsed() < PATIENCE, "the standby does not follow");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        self.spare.stop();
    }

    /// The home shard is lost, and the standby is the home shard.
    async fn takes_over(&self) {
        self.home.kill();
        let lost = self.home.data_dir().with_extension("lost");
        fs::rename(self.home.data_dir(), lost).unwrap();
        fs::rename(self.spare.data_dir(), self.home.data_dir()).unwrap();
        for (file, content) in &self.files {
            fs::write(self.home.data_dir().join(file), content).unwrap();
        }
        self.home.start().unwrap();
        self.home
            .execute("postgres", "SELECT pg_promote()")
            .await
            .unwrap();
    }
}

/// Makes everything in a directory belong to whom this belongs.
fn belongs(path: &Path, to: &fs::Metadata) {
    chown(path, Some(to.uid()), Some(to.gid())).unwrap();
    if path.is_dir() && !path.is_symlink() {
        for entry in fs::read_dir(path).unwrap() {
            belongs(&entry.unwrap().path(), to);
        }
    }
}

async fn map(home: &Cluster) -> (String, Content) {
    let read = "SELECT epoch::text, content::text FROM shardway.map";
    let rows = home.query(DATABASE, read).await.unwrap();
    let content = serde_json::from_str(rows[0][1].as_ref().unwrap()).unwrap();
    (rows[0][0].clone().unwrap(), content)
}

/// A row that was written by the newer map is seen, or the statement fails; how often it failed before it was.
async fn right_or_refused(side: &Side, sql: &str, expected: &Answer) -> usize {
    let (begun, mut failed) = (Instant::now(), 0);
    loop {
        match side.command(sql).await {
            Answer::Error(_) | Answer::Refused(_) => failed += 1,
            found @ (Answer::Rows { .. } | Answer::Texts(_)) => {
                assert_eq!(found, *expected, "by an older map, after {failed} failures");
                return failed;
            }
        }
        assert!(begun.elapsed() < PATIENCE, "never served again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Who has given keys away by what the standby lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Giver {
    Home,
    Another,
}

impl Giver {
    fn shard(self) -> usize {
        match self {
            Self::Home => 0,
            Self::Another => 1,
        }
    }

    /// Some of its buckets.
    fn buckets(self) -> &'static str {
        match self {
            Self::Home => "buckets=0-340:s2",
            Self::Another => "buckets=342-682:s2",
        }
    }
}

#[test]
fn a_standby_without_the_last_change_of_owners_serves_nothing_by_the_older_map() {
    fails_over_to_a_standby_that_lacks_what_was_given(Giver::Another);
}

#[test]
fn a_home_shard_that_forgets_what_it_gave_away_takes_nothing_back() {
    fails_over_to_a_standby_that_lacks_what_was_given(Giver::Home);
}

fn fails_over_to_a_standby_that_lacks_what_was_given(giver: Giver) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let mut world = World::start(&mut Random::new(3), Rows::Followed).await;
        let run = Run::open(&world).await;
        run.learnt().await;
        let driver = Driver::open(&world, &Arc::new(Asked::default()), 1).await;
        let (home, spare) = world.home_and_spare();
        let standby = Standby::follow(home, spare).await;
        let (_, before) = map(home).await;
        driver
            .must(&["start", "--group", "ints", "--move", giver.buckets()])
            .await;
        driver.until(&["ready made"]).await;
        standby.falls_behind().await;
        driver.must(&["cutover"]).await;
        let (flipped, after) = map(home).await;
        let owner = |of: &Content, key| {
            of.owners
                .owner("ints", &Key::Bigint(key))
                .map(str::to_owned)
        };
        let keys: Vec<i64> = (1000..3000)
            .filter(|key| owner(&before, *key) == Some(format!("s{}", giver.shard())))
            .filter(|key| owner(&after, *key).as_deref() == Some("s2"))
            .take(20)
            .collect();
        assert_eq!(keys.len(), 20);
        for key in &keys {
            let insert = format!("INSERT INTO public.acct (id, n) VALUES ({key}, 777)");
            assert!(matches!(
                run.proxied.command(&insert).await,
                Answer::Texts(_)
            ));
        }
        let list = keys
            .iter()
            .map(i64::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        // The former owner gets this, and may not give it back later over what is written then.
        let update = |n| format!("UPDATE public.acct SET n = {n} WHERE id IN ({list})");
        assert!(matches!(
            run.proxied.command(&update(778)).await,
            Answer::Texts(_)
        ));
        let brought = format!("SELECT count(*) FROM public.acct WHERE id IN ({list}) AND n = 778");
        let begun = Instant::now();
        let former = world.shard(giver.shard());
        while former.query(DATABASE, &brought).await.unwrap()[0][0].as_deref() != Some("20") {
            assert!(begun.elapsed() < PATIENCE, "nothing is brought back");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert!(matches!(
            run.proxied.command(&update(779)).await,
            Answer::Texts(_)
        ));
        let one = format!("SELECT n FROM public.acct WHERE id = {}", keys[0]);
        let all = format!("SELECT count(*), sum(n) FROM public.acct WHERE id IN ({list})");
        let (found_one, found_all) = (
            run.proxied.command(&one).await,
            run.proxied.command(&all).await,
        );
        standby.takes_over().await;
        let (behind, _) = map(home).await;
        assert!(
            behind.parse::<i64>().unwrap() < flipped.parse().unwrap(),
            "it was lost"
        );
        let fresh = Side::connect(&world.one_more()).await;
        let (other, _) = &run.others[0];
        let failed = tokio::join!(
            right_or_refused(&run.proxied, &one, &found_one),
            right_or_refused(other, &all, &found_all),
            right_or_refused(&fresh, &all, &found_all),
        );
        println!("statements that failed until it was served again: {failed:?}");
        let home = world.home_and_spare().0;
        assert_eq!(map(home).await.0, flipped, "what a shard had kept counts");
        for side in [&run.proxied, other, &fresh] {
            assert_eq!(right_or_refused(side, &one, &found_one).await, 0);
            assert_eq!(right_or_refused(side, &all, &found_all).await, 0);
        }
        // The record of the reshard was as before the cutover: it goes on from what the shards know.
        let flips = "SELECT flips::text FROM shardway.workflow WHERE state = 'reverse' AND (step = 'made' OR error IS NOT NULL)";
        let begun = Instant::now();
        loop {
            let stands = home.query(DATABASE, flips).await.unwrap();
            if let Some(stands) = stands.first() {
                assert_eq!(stands[0].as_deref(), Some("1"));
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "it does not go on");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!(run.proxied.command(&all).await, found_all);
        if giver == Giver::Home {
            // It lacks what it had, so that there is no way back; what it has of the keys goes.
            let why = "SELECT error ->> 'remedy' FROM shardway.workflow";
            let why = home.query(DATABASE, why).await.unwrap()[0][0].clone();
            assert!(why.unwrap().contains("there is no way back any more"));
            let driver = Driver::open(&world, &Arc::new(Asked::default()), 1).await;
            driver.must(&["finish"]).await;
            driver.must(&["resume"]).await;
            driver.until(&["done"]).await;
            let left = format!("SELECT count(*) FROM public.acct WHERE id IN ({list})");
            let left = home.query(DATABASE, &left).await.unwrap();
            assert_eq!(left[0][0].as_deref(), Some("0"));
            assert_eq!(run.proxied.command(&all).await, found_all);
            return;
        }
        // Both ways.
        let driver = Driver::open(&world, &Arc::new(Asked::default()), 1).await;
        assert_eq!(run.proxied.command(&all).await, found_all);
        driver.must(&["rollback"]).await;
        assert_eq!(run.proxied.command(&all).await, found_all);
        driver.until(&["reverse made"]).await;
        driver.must(&["abort"]).await;
        driver.until(&["aborted"]).await;
        assert_eq!(run.proxied.command(&all).await, found_all);
        assert_eq!(run.proxied.command(&one).await, found_one);
    });
}
