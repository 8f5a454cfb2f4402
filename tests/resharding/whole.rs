//! A whole reshard by its steps, with the copy and the followers, while clients write: no row is lost or doubled, neither
//! forward nor back.

use crate::shards::map;
use crate::{
    preflight::planned,
    steps::{Stage, block_on},
};
use shardway::reshard::{
    dump::Tools,
    job::{Job, StepError},
    steps::{
        activate, catch_up::Follower, copy, fence, finish, keys, prepare, ready, reverse, turn,
    },
};
use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicI64, Ordering},
};

/// Writes to a shard until it is told to stop or refused; how many rows it has been told are there.
struct Writer {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicI64>,
    thread: Option<std::thread::JoinHandle<String>>,
}

impl Writer {
    /// Rows from a number on, by twos, so that two writers never meet; each also changes an earlier row.
    fn start(stage: &Stage, shard: &str, from: i64) -> Self {
        let (stop, written) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicI64::new(0)),
        );
        let server = stage.job.servers[shard].clone();
        let (told, count) = (Arc::clone(&stop), Arc::clone(&written));
        let thread = std::thread::spawn(move || {
            block_on(async {
                let client = server.sql().await.unwrap();
                client
                    .batch_execute("SET search_path = public")
                    .await
                    .unwrap();
                let mut at = from;
                while !told.load(Ordering::Relaxed) {
                    let write = format!(
                        "BEGIN; INSERT INTO customer (id, name, country) VALUES ({at}, 'w', 'ch'); \
                         INSERT INTO purchase (customer, note) VALUES ({at}, repeat('x', 3000)); \
                         UPDATE customer SET name = name || '.' WHERE id = {at} - 4; \
                         DELETE FROM purchase WHERE customer = {at} - 8; COMMIT"
                    );
                    if let Err(error) = client.batch_execute(&write).await {
                        return error
                            .code()
                            .map_or_else(String::new, |code| code.code().to_owned());
                    }
                    count.fetch_add(1, Ordering::Relaxed);
                    at += 2;
                }
                String::new()
            })
        });
        Self {
            stop,
            written,
            thread: Some(thread),
        }
    }

    async fn until(&self, count: i64) {
        while self.written.load(Ordering::Relaxed) < count {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// What it was refused with, and how many rows it wrote.
    fn end(mut self) -> (String, i64) {
        self.stop.store(true, Ordering::Relaxed);
        let said = self.thread.take().unwrap().join().unwrap();
        (said, self.written.load(Ordering::Relaxed))
    }
}

/// All rows of the moving keys on a shard, as one text.
const ROWS: &str = "\
SELECT string_agg(r, E'\\n' ORDER BY r) FROM ( \
  SELECT 'c ' || md5(customer::text) FROM customer WHERE id >= 51 \
  UNION ALL SELECT 'p ' || md5(purchase::text) FROM purchase WHERE customer >= 51) rows (r)";

pub(crate) fn followers(job: &Job) -> Vec<Follower> {
    let sources = job.sources().into_iter();
    sources.map(|it| Follower::start(job, &it.name)).collect()
}

/// Fences, however busy the tables are, and waits until all of it is applied.
pub(crate) async fn cut(job: &mut Job, followers: Vec<Follower>, epoch: i64) {
    loop {
        match fence::run(job).await {
            Ok(()) => break,
            Err(StepError::Again { .. }) => {
                shardway::reshard::steps::unfence::run(job).await.unwrap();
                job.attempt += 1;
            }
            Err(error) => panic!("{error}"),
        }
    }
    for follower in &followers {
        follower.fenced(job.attempt).await.unwrap();
    }
    turn::run(job).await.unwrap();
    for follower in followers {
        follower.stop().await.unwrap();
    }
    activate::run(job, &map(job, epoch)).await.unwrap();
}

#[test]
fn every_row_is_on_its_owner_forward_and_back_and_forward() {
    block_on(async {
        let mut stage = Stage::new("to_and_fro", &["b"]).await;
        let planned = planned(&stage, &["a"], "").await.unwrap();
        stage.job.plan = Arc::new(planned.plan);
        let writer = Writer::start(&stage, "a", 1_001);
        prepare::run(&stage.job, &Tools::default()).await.unwrap();
        copy::run(&stage.job).await.unwrap();
        keys::primary(&stage.job).await.unwrap();
        let streams = followers(&stage.job);
        for stream in &streams {
            stream.consistent().await.unwrap();
        }
        keys::rest(&stage.job).await.unwrap();
        ready::run(&stage.job).await.unwrap();
        stage.job.attempt = 1;
        writer.until(50).await;
        cut(&mut stage.job, streams, 2).await;
        let (said, mut written) = writer.end();
        assert_eq!(said, "SWG01");
        let (old, new) = (stage.ask(0, ROWS).await, stage.ask(1, ROWS).await);
        assert_eq!(old, new);

        for (from, to, epoch) in [("b", "a", 3), ("a", "b", 4)] {
            stage.job = Job {
                attempt: stage.job.attempt + 1,
                ..stage.job.turned()
            };
            let writer = Writer::start(&stage, from, 1_000_000 * epoch);
            let streams = followers(&stage.job);
            reverse::run(&stage.job).await.unwrap();
            writer.until(20).await;
            cut(&mut stage.job, streams, epoch).await;
            let (said, more) = writer.end();
            assert_eq!(said, "SWG01", "{from} to {to}");
            written += more;
            assert_eq!(stage.ask(0, ROWS).await, stage.ask(1, ROWS).await);
        }
        let moved = "SELECT count(*) FROM customer WHERE id > 1000";
        assert_eq!(stage.ask(1, moved).await, [written.to_string()]);
        finish::run(&stage.job).await.unwrap();
        assert_eq!(stage.ask(0, moved).await, ["0"]);
        assert_eq!(stage.ask(1, moved).await, [written.to_string()]);
    });
}
