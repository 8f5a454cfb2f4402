//! What a follower brings to its destinations, in rows a second, against PostgreSQL's own subscriptions of the same backlog:
//! both in turns in one run, from slots that were made before it. `cargo bench --bench reshard_apply [transactions] [rounds]
//! [shapes] [apart]`. `apart`: each server and this process with an equal part of the processors of its own, as on machines
//! of their own (root, control groups); else all share all. Starts servers and leaves nothing behind.

#![expect(clippy::print_stdout, reason = "a bench reports to its caller")]

mod stand;

use anyhow::{Result, bail};
use shardway::{
    catalog::key::KeyType,
    clock::{Clock, Duration},
    reshard::{
        job::{Direction, slot},
        steps::catch_up::Follower,
    },
    sandbox::Cluster,
};
use stand::{Figure, OWN_SCHEMA, Place, Shape, Stand, TENANTS, Watch, compare, keys};

/// Rows that are there before.
const BEFORE: u32 = 100_000;
/// How long one of them may take.
const PATIENCE: Duration = Duration::from_secs(180);

fn main() -> Result<()> {
    let numbers = stand::numbers();
    let given = |at: usize, or: usize| numbers.get(at).copied().unwrap_or(or);
    let (transactions, rounds) = (given(0, 20_000), given(1, 3));
    let runtime = tokio::runtime::Runtime::new()?;
    let stand = Stand::open(2)?;
    let mut ends = Vec::new();
    for shape in stand::shapes() {
        for destinations in [1, 2] {
            let backlog = Backlog {
                database: format!("{}_{destinations}", shape.name),
                shape,
                destinations,
                transactions: transactions / (usize::try_from(shape.part)? / 4).max(1),
                inserts: 5,
            };
            ends.push(runtime.block_on(measure(&stand, &backlog, rounds))?);
        }
        if shape.part == 1 {
            let whole = Backlog {
                database: "one_transaction".to_owned(),
                shape,
                destinations: 1,
                transactions: 1,
                inserts: transactions * 50,
            };
            ends.push(runtime.block_on(measure(&stand, &whole, rounds))?);
        }
    }
    println!("\nmedians of {rounds}:\n{}", ends.join("\n"));
    Ok(())
}

/// What is to be brought: each transaction inserts some rows and changes five.
struct Backlog {
    /// On the source.
    database: String,
    shape: Shape,
    destinations: usize,
    transactions: usize,
    /// Rows that each inserts.
    inserts: usize,
}

impl Backlog {
    fn rows(&self) -> u64 {
        u64::try_from(self.transactions * (self.inserts + 5)).unwrap_or(0)
    }

    /// The reshard of a round; its slot and its databases are called after it.
    fn id(&self, round: usize) -> String {
        format!("{}_{round}", self.database)
    }

    /// As the way back is called: nothing was copied, all that is streamed is applied.
    fn ours(&self, round: usize) -> String {
        slot(&self.id(round), "s", Direction::Back)
    }

    fn native(&self, round: usize, at: usize) -> String {
        format!("native_{}_{at}", self.id(round))
    }
}

async fn measure(stand: &Stand, backlog: &Backlog, rounds: usize) -> Result<String> {
    prepare(stand, backlog, rounds).await?;
    write(stand, backlog).await?;
    let apart = stand::said("apart").then(|| stand.apart(backlog.destinations));
    let _apart = apart.transpose()?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let our = follower(stand, backlog, round).await?;
        let their = subscription(stand, backlog, round).await?;
        println!(
            "{}",
            compare(&backlog.database, NAMES, [vec![our], vec![their]])
        );
        ours.push(our);
        theirs.push(their);
    }
    same(stand, backlog).await?;
    for (at, cluster) in stand.destinations(backlog.destinations).iter().enumerate() {
        for round in 0..rounds {
            for name in [backlog.ours(round), backlog.native(round, at)] {
                cluster
                    .execute("postgres", &format!("DROP DATABASE {name}"))
                    .await?;
            }
        }
    }
    Ok(compare(&backlog.database, NAMES, [ours, theirs]))
}

const NAMES: [&str; 2] = ["follower", "subscription"];

/// Databases, publications and slots of all rounds, before the backlog is written.
async fn prepare(stand: &Stand, backlog: &Backlog, rounds: usize) -> Result<()> {
    let (source, from) = (stand.source(), backlog.database.as_str());
    let destinations = stand.destinations(backlog.destinations);
    let before = BEFORE / backlog.shape.part;
    let fill = backlog.shape.rows("1", &before.to_string());
    let table = format!("{}; {fill}", backlog.shape.table());
    source
        .execute("postgres", &format!("CREATE DATABASE {from}"))
        .await?;
    source.execute(from, OWN_SCHEMA).await?;
    source.execute(from, &table).await?;
    for at in 0..destinations.len() {
        let condition = keys(at, destinations.len()).sql("tenant", KeyType::Bigint)?;
        let publish = if destinations.len() == 1 {
            format!("CREATE PUBLICATION p{at} FOR TABLE t")
        } else {
            format!("CREATE PUBLICATION p{at} FOR TABLE t WHERE ({condition})")
        };
        source.execute(from, &publish).await?;
    }
    for cluster in destinations {
        cluster
            .execute("postgres", "CREATE DATABASE filled")
            .await?;
        cluster.execute("filled", OWN_SCHEMA).await?;
        cluster.execute("filled", &table).await?;
    }
    for round in 0..rounds {
        let ours = backlog.ours(round);
        let publish = format!("CREATE PUBLICATION {ours} FOR TABLE t, shardway.fence");
        source.execute(from, &publish).await?;
        let mut slots = vec![ours.clone()];
        for (at, cluster) in destinations.iter().enumerate() {
            slots.push(backlog.native(round, at));
            for name in [ours.clone(), backlog.native(round, at)] {
                let create = format!("CREATE DATABASE {name} TEMPLATE filled");
                cluster.execute("postgres", &create).await?;
            }
        }
        for name in slots {
            let make = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
            source.execute(from, &make).await?;
        }
    }
    for cluster in destinations {
        cluster.execute("postgres", "DROP DATABASE filled").await?;
    }
    Ok(())
}

/// What both have to bring; the last rows tell that it is over.
async fn write(stand: &Stand, backlog: &Backlog) -> Result<()> {
    let (source, from) = (stand.source(), backlog.database.as_str());
    let (inserts, before) = (backlog.inserts, BEFORE / backlog.shape.part);
    let insert = backlog.shape.rows(
        &format!("{BEFORE} + n * {inserts} + 1"),
        &format!("{BEFORE} + n * {inserts} + {inserts}"),
    );
    let (update, transactions) = (backlog.shape.update, backlog.transactions);
    let sql = format!(
        "CREATE PROCEDURE write() LANGUAGE plpgsql AS $$ BEGIN FOR n IN 0..{transactions} - 1 LOOP {insert} \
           UPDATE t SET {update} FROM (SELECT (n * 7919 + o) % {before} + 1 AS k FROM generate_series(0, 4) o) c \
             WHERE tenant = k % {TENANTS} AND id = k; \
           COMMIT; END LOOP; END $$"
    );
    source.execute(from, &sql).await?;
    source.execute(from, "CALL write()").await?;
    let last = format!("INSERT INTO t SELECT k, -1 FROM generate_series(0, {TENANTS} - 1) k");
    Ok(source.execute(from, &last).await?)
}

/// Waits until the last rows are on every destination.
async fn come(destinations: &[(&Cluster, String)]) -> Result<()> {
    let begun = Clock.now();
    for (cluster, database) in destinations {
        let (client, connection) = cluster
            .config(database)
            .connect(tokio_postgres::NoTls)
            .await?;
        let driven = async {
            let last = format!(
                "SELECT EXISTS (SELECT FROM generate_series(0, {TENANTS} - 1) k JOIN t ON tenant = k AND id = -1)"
            );
            let last = client.prepare(&last).await?;
            while !client.query_one(&last, &[]).await?.get::<_, bool>(0) {
                if Clock.now().duration_since(begun) > PATIENCE {
                    bail!("{database} does not end");
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok(())
        };
        tokio::select! {
            ended = driven => ended?,
            ended = connection => ended?,
        }
    }
    Ok(())
}

async fn follower(stand: &Stand, backlog: &Backlog, round: usize) -> Result<Figure> {
    let database = backlog.ours(round);
    let destinations = stand.destinations(backlog.destinations);
    let at = |cluster| Place {
        cluster,
        database: &database,
    };
    let places: Vec<Place<'_>> = destinations.iter().map(at).collect();
    let source = Place {
        cluster: stand.source(),
        database: &backlog.database,
    };
    let id = backlog.id(round);
    let (job, _knobs) = stand::job(&id, &backlog.shape, Direction::Back, source, &places)?;
    let confirmed = format!(
        "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = '{}'",
        job.slot("s")
    );
    let found = stand.source().query(&backlog.database, &confirmed).await?;
    let confirmed = found.into_iter().flatten().flatten().next();
    let Some(confirmed) = confirmed else {
        bail!("the slot of {id} is not there");
    };
    for cluster in destinations {
        // From where the slot begins: nothing was written before it.
        let begin = format!(
            "INSERT INTO shardway.apply_progress (workflow, source, lsn, token) VALUES ('{id}', '{}', '{confirmed}', 1)",
            job.followed("s")
        );
        cluster.execute(&database, &begin).await?;
        cluster.execute(&database, "CHECKPOINT").await?;
    }
    let all: Vec<_> = destinations
        .iter()
        .map(|it| (it, database.clone()))
        .collect();
    let watch = Watch::start(stand);
    let follower = Follower::start(&job, "s");
    tokio::select! {
        come = come(&all) => come?,
        problem = follower.failed() => return Err(problem.into()),
    }
    let figure = watch.stop(stand, backlog.rows());
    follower.stop().await?;
    let (from, slot) = (&backlog.database, &database);
    let drop = format!(
        "DO $$ BEGIN WHILE (SELECT active FROM pg_replication_slots WHERE slot_name = '{slot}') LOOP \
         PERFORM pg_sleep(0.01); END LOOP; PERFORM pg_drop_replication_slot('{slot}'); END $$"
    );
    stand.source().execute(from, &drop).await?;
    Ok(figure)
}

async fn subscription(stand: &Stand, backlog: &Backlog, round: usize) -> Result<Figure> {
    let source = stand.source();
    let destinations = stand.destinations(backlog.destinations);
    let databases = destinations.iter().enumerate();
    let all: Vec<(&Cluster, String)> = databases
        .map(|(at, it)| (it, backlog.native(round, at)))
        .collect();
    for (cluster, database) in &all {
        cluster.execute(database, "CHECKPOINT").await?;
    }
    let watch = Watch::start(stand);
    for (at, (cluster, database)) in all.iter().enumerate() {
        let connection = format!(
            "host={} port={} user=postgres dbname={}",
            source.socket_dir().display(),
            source.port(),
            backlog.database
        );
        let subscribe = format!(
            "CREATE SUBSCRIPTION {database} CONNECTION '{connection}' PUBLICATION p{at} \
             WITH (create_slot = false, copy_data = false, binary = true, slot_name = '{database}')"
        );
        cluster.execute(database, &subscribe).await?;
    }
    come(&all).await?;
    let figure = watch.stop(stand, backlog.rows());
    for (cluster, database) in &all {
        let drop = format!("DROP SUBSCRIPTION {database}");
        cluster.execute(database, &drop).await?;
    }
    Ok(figure)
}

/// Both have brought what the source has.
async fn same(stand: &Stand, backlog: &Backlog) -> Result<()> {
    let destinations = stand.destinations(backlog.destinations);
    for (at, cluster) in destinations.iter().enumerate() {
        let condition = keys(at, destinations.len()).sql("tenant", KeyType::Bigint)?;
        let all = format!(
            "SELECT count(*), bit_xor(hash_record_extended(t, 0)) FROM t WHERE {condition}"
        );
        let expected = stand.source().query(&backlog.database, &all).await?;
        for database in [backlog.ours(0), backlog.native(0, at)] {
            if cluster.query(&database, &all).await? != expected {
                bail!("{database} differs from the source");
            }
        }
    }
    Ok(())
}
