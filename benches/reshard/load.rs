//! How long statements of an application take on a source: without a reshard, while it copies, and while it follows, in
//! turns in one run; p50, p99 and the longest. `cargo bench --bench reshard_load [rows] [rounds] [clients]`. Starts servers
//! and leaves nothing behind.

#![expect(clippy::print_stdout, reason = "a bench reports to its caller")]

mod stand;

use anyhow::Result;
use shardway::{
    clock::{Clock, Duration},
    reshard::{
        job::{Direction, Job},
        steps::{catch_up::Follower, copy},
    },
};
use stand::{OWN_SCHEMA, Place, SHAPES, Stand, TENANTS};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::watch, task::JoinSet};

const DATABASE: &str = "postgres";
/// How long it is looked at without a copy, and while changes are followed.
const LOOK: Duration = Duration::from_secs(5);
/// Between two statements of a client: what is measured is how long they take, not how many there can be.
const PAUSE: Duration = Duration::from_millis(2);

/// What goes on on the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Alone,
    Copying,
    Following,
}

type Taken = Arc<Mutex<BTreeMap<Phase, Vec<f64>>>>;

fn main() -> Result<()> {
    let numbers = stand::numbers();
    let given = |at: usize, or: usize| numbers.get(at).copied().unwrap_or(or);
    let (rows, rounds, clients) = (given(0, 1_000_000), given(1, 3), given(2, 4));
    let runtime = tokio::runtime::Runtime::new()?;
    let stand = Stand::open(1)?;
    let taken = Taken::default();
    runtime.block_on(measure(&stand, (rows, rounds, clients), &taken))?;
    let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    for (phase, all) in taken.iter() {
        let mut all = all.clone();
        all.sort_by(f64::total_cmp);
        let of = |thousandths: usize| all[(all.len() - 1) * thousandths / 1000];
        println!(
            "{:<10} {:>7} statements: p50 {:>7.3} ms, p99 {:>7.3} ms, longest {:>8.3} ms",
            format!("{phase:?}").to_lowercase(),
            all.len(),
            of(500),
            of(990),
            of(1000)
        );
    }
    Ok(())
}

async fn measure(
    stand: &Stand,
    (rows, rounds, clients): (usize, usize, usize),
    taken: &Taken,
) -> Result<()> {
    let (source, destination) = (stand.source(), &stand.destinations(1)[0]);
    let shape = SHAPES[0];
    let fill = shape.rows("1", &rows.to_string());
    for sql in [OWN_SCHEMA, &shape.table(), &fill, "VACUUM ANALYZE t"] {
        source.execute(DATABASE, sql).await?;
    }
    let place = |cluster| Place {
        cluster,
        database: DATABASE,
    };
    for round in 0..rounds {
        for sql in [
            "DROP SCHEMA IF EXISTS shardway CASCADE; DROP TABLE IF EXISTS t",
            OWN_SCHEMA,
            &shape.table(),
        ] {
            destination.execute(DATABASE, sql).await?;
        }
        let id = format!("load{round}");
        let begin = format!(
            "UPDATE shardway.workflow SET state = 'done'; \
             INSERT INTO shardway.workflow (id, state, token, plan) VALUES ('{id}', 'copy', 1, '{{}}')"
        );
        source.execute(DATABASE, &begin).await?;
        let places = [place(destination)];
        let (job, _knobs) = stand::job(&id, &shape, Direction::Forward, place(source), &places)?;
        let (phase, phases) = watch::channel(Phase::Alone);
        let mut working = JoinSet::new();
        for client in 0..clients {
            let config = source.config(DATABASE);
            working.spawn(work(
                config,
                (client, rows),
                phases.clone(),
                Arc::clone(taken),
            ));
        }
        drop(phases);
        run(&job, &phase).await?;
        drop(phase);
        while let Some(ended) = working.join_next().await {
            ended??;
        }
        let drop = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots";
        source.execute(DATABASE, drop).await?;
    }
    Ok(())
}

async fn run(job: &Job, phase: &watch::Sender<Phase>) -> Result<()> {
    tokio::time::sleep(LOOK).await;
    phase.send_replace(Phase::Copying);
    Box::pin(copy::run(job)).await?;
    phase.send_replace(Phase::Following);
    let follower = Follower::start(job, "s");
    follower.consistent().await?;
    tokio::time::sleep(LOOK).await;
    follower.stop().await?;
    Ok(())
}

/// Reads and changes rows by their keys until nobody looks any more.
async fn work(
    config: tokio_postgres::Config,
    (client, rows): (usize, usize),
    phase: watch::Receiver<Phase>,
    taken: Taken,
) -> Result<()> {
    let (session, connection) = config.connect(tokio_postgres::NoTls).await?;
    let working = async {
        let read = format!("SELECT note FROM t WHERE tenant = $1::bigint % {TENANTS} AND id = $1");
        let write =
            format!("UPDATE t SET n = n + 1 WHERE tenant = $1::bigint % {TENANTS} AND id = $1");
        let statements = [
            session.prepare(&read).await?,
            session.prepare(&write).await?,
        ];
        let mut number = client;
        while phase.has_changed().is_ok() {
            number += 1;
            let id = i64::try_from((number * 7919 + client * 104_729) % rows + 1)?;
            let now = *phase.borrow();
            let begun = Clock.now();
            session.execute(&statements[number % 2], &[&id]).await?;
            let took = Clock.now().duration_since(begun).as_secs_f64() * 1e3;
            note(&taken, now, took);
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    };
    tokio::select! {
        ended = working => ended,
        ended = connection => Ok(ended?),
    }
}

fn note(taken: &Taken, phase: Phase, took: f64) {
    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    taken.entry(phase).or_default().push(took);
}
