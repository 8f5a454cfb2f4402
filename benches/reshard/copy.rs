//! Rows a second that a reshard copies, beside `psql COPY … | psql COPY` of the same rows in the same format, in turns in one
//! run; medians. `cargo bench --bench reshard_copy [rows] [rounds] [copies at a time] [shapes] [apart]`. `apart`: each
//! server and this process, with the pipe, has an equal part of the processors of its own (root, control groups). Starts
//! servers and leaves nothing behind.

#![expect(clippy::print_stdout, reason = "a bench reports to its caller")]

mod stand;

use anyhow::{Result, ensure};
use shardway::{
    catalog::key::KeyType,
    reshard::{
        job::{Direction, Knobs},
        steps::copy,
    },
    sandbox::Cluster,
};
use stand::{OWN_SCHEMA, Place, Shape, Stand, Watch, compare, keys};
use std::process::Command;

const DATABASE: &str = "postgres";

fn main() -> Result<()> {
    let numbers = stand::numbers();
    let given = |at: usize, or: usize| numbers.get(at).copied().unwrap_or(or);
    let (rows, rounds) = (given(0, 1_000_000), given(1, 3));
    let copies = given(2, Knobs::default().copies);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let stand = Stand::open(2)?;
    let mut ends = Vec::new();
    for shape in stand::shapes() {
        runtime.block_on(fill(&stand, &shape, rows))?;
        for destinations in [1, 2] {
            let measured = measure(&stand, &shape, destinations, (rounds, copies));
            ends.push(runtime.block_on(measured)?);
        }
    }
    println!("\nmedians of {rounds}:\n{}", ends.join("\n"));
    Ok(())
}

async fn fill(stand: &Stand, shape: &Shape, rows: usize) -> Result<()> {
    let source = stand.source();
    let rows = rows / usize::try_from(shape.part)?;
    for sql in [
        "DROP SCHEMA IF EXISTS shardway CASCADE; DROP TABLE IF EXISTS t",
        OWN_SCHEMA,
        &shape.table(),
        &shape.rows("1", &rows.to_string()),
        "VACUUM ANALYZE t",
        "CHECKPOINT",
    ] {
        source.execute(DATABASE, sql).await?;
    }
    Ok(())
}

async fn measure(
    stand: &Stand,
    shape: &Shape,
    destinations: usize,
    (rounds, copies): (usize, usize),
) -> Result<String> {
    let to = stand.destinations(destinations);
    let what = format!("{} to {destinations}", shape.name);
    let apart = stand::said("apart").then(|| stand.apart(destinations));
    let _apart = apart.transpose()?;
    let (mut pipes, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        fresh(to, shape).await?;
        let watch = Watch::start(stand);
        pipe(stand.source(), to, shape).await?;
        let moved = count(to).await?;
        let piped = watch.stop(stand, moved);
        fresh(to, shape).await?;
        let id = format!("bench{}{destinations}{round}", shape.name);
        begin(stand.source(), &id).await?;
        let places: Vec<Place<'_>> = to.iter().map(place).collect();
        let source = place(stand.source());
        let (job, knobs) = stand::job(&id, shape, Direction::Forward, source, &places)?;
        knobs.send_modify(|knobs| knobs.copies = copies);
        let watch = Watch::start(stand);
        Box::pin(copy::run(&job)).await?;
        let copied = watch.stop(stand, moved);
        ensure!(count(to).await? == moved, "not all rows arrived");
        println!(
            "{}",
            compare(&what, ["reshard", "pipe"], [vec![copied], vec![piped]])
        );
        pipes.push(piped);
        ours.push(copied);
    }
    Ok(compare(&what, ["reshard", "pipe"], [ours, pipes]))
}

fn place(cluster: &Cluster) -> Place<'_> {
    Place {
        cluster,
        database: DATABASE,
    }
}

/// Empty destinations.
async fn fresh(to: &[Cluster], shape: &Shape) -> Result<()> {
    for cluster in to {
        for sql in [
            "DROP SCHEMA IF EXISTS shardway CASCADE; DROP TABLE IF EXISTS t",
            OWN_SCHEMA,
            &shape.table(),
            "CHECKPOINT",
        ] {
            cluster.execute(DATABASE, sql).await?;
        }
    }
    Ok(())
}

/// The record of the reshard, and no slot of the last one.
async fn begin(source: &Cluster, id: &str) -> Result<()> {
    let sql = format!(
        "UPDATE shardway.workflow SET state = 'done'; \
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots; \
         INSERT INTO shardway.workflow (id, state, token, plan) VALUES ('{id}', 'copy', 1, '{{}}')"
    );
    Ok(source.execute(DATABASE, &sql).await?)
}

async fn count(to: &[Cluster]) -> Result<u64> {
    let mut all = 0;
    for cluster in to {
        let rows = cluster.query(DATABASE, "SELECT count(*) FROM t").await?;
        all += rows[0][0].as_deref().unwrap_or("0").parse::<u64>()?;
    }
    Ok(all)
}

/// One pipe for each destination, at the same time.
async fn pipe(from: &Cluster, to: &[Cluster], shape: &Shape) -> Result<()> {
    let psql = |cluster: &Cluster| {
        let (socket, port) = (cluster.socket_dir(), cluster.port());
        format!(
            "psql -XqAt -h {} -p {port} -U postgres {DATABASE} -c",
            socket.display()
        )
    };
    let columns = shape.names();
    let mut pipes = Vec::new();
    for (at, cluster) in to.iter().enumerate() {
        let condition = keys(at, to.len()).sql("tenant", KeyType::Bigint)?;
        let line = format!(
            "{} \"COPY (SELECT {columns} FROM t WHERE {condition}) TO STDOUT (FORMAT binary)\" | \
             {} \"COPY t ({columns}) FROM STDIN (FORMAT binary)\"",
            psql(from),
            psql(cluster)
        );
        pipes.push(tokio::task::spawn_blocking(move || {
            Command::new("sh").args(["-c", &line]).status()
        }));
    }
    for pipe in pipes {
        ensure!(pipe.await??.success(), "a pipe failed");
    }
    Ok(())
}
