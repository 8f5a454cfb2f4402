//! What a follower brings to a destination, in rows a second, against PostgreSQL's own subscription of the same backlog:
//! both in turns in one run, from slots that were made before it. `cargo bench --bench reshard_apply`.

#![expect(clippy::print_stdout, reason = "a bench reports to its caller")]

use anyhow::{Context as _, Result, bail};
use shardway::{
    auth::scram::ChannelBinding,
    catalog::{
        moving::{KeySet, Move, Part},
        ownership::Ownership,
    },
    clock::{Clock, Duration},
    config::{
        load::load_str,
        settings::{Address, Credentials, Host, TlsMode, TlsStart},
    },
    net::tls::ClientTls,
    reshard::{
        job::{Direction, Job, Knobs},
        plan::{MovingColumn, MovingTable, Plan},
        servers::Server,
        steps::catch_up::Follower,
    },
    sandbox::{Cluster, Sandbox, SandboxEnv},
};
use std::{collections::BTreeMap, path::Path, sync::Arc};
use tokio::sync::watch;

/// Transactions of the backlog; each inserts five rows and changes five.
const TRANSACTIONS: u32 = 20_000;
const ROWS: u32 = TRANSACTIONS * 10;
/// How often each of the two is measured.
const ROUNDS: usize = 3;
const OWN_SCHEMA: &str = concat!(
    "CREATE SCHEMA shardway;",
    include_str!("../../src/registry/schema/1.sql"),
    include_str!("../../src/registry/schema/2.sql"),
    include_str!("../../src/registry/schema/3.sql")
);
const TABLE: &str = "\
CREATE TABLE t (tenant bigint, id bigint, n int, note text, at timestamptz, PRIMARY KEY (tenant, id)); \
INSERT INTO t SELECT id % 100, id, 0, md5(id::text), 'epoch' FROM generate_series(1, 100000) id;";

fn main() -> Result<()> {
    let runtime = tokio::runtime::Runtime::new()?;
    let environment = SandboxEnv {
        pg_bin: None,
        path: Vec::new(),
        tmp: std::env::temp_dir(),
        template_cache: None,
    };
    let sandbox = Sandbox::builder(environment)
        .clusters(2)
        .setting("wal_level", "logical")
        .setting("max_wal_size", "8GB")
        .setting("shared_buffers", "256MB")
        .setting("max_replication_slots", "20");
    let sandbox = sandbox.start()?;
    runtime.block_on(measure(&sandbox))
}

async fn measure(sandbox: &Sandbox) -> Result<()> {
    let (source, destination) = (sandbox.cluster(0), sandbox.cluster(1));
    source.execute("postgres", OWN_SCHEMA).await?;
    source.execute("postgres", TABLE).await?;
    source
        .execute(
            "postgres",
            "CREATE PUBLICATION p FOR TABLE t, shardway.fence",
        )
        .await?;
    for round in 0..ROUNDS {
        for name in [slot(round), format!("native_{round}")] {
            let make = format!("SELECT pg_create_logical_replication_slot('{name}', 'pgoutput')");
            source.execute("postgres", &make).await?;
            let create = format!("CREATE DATABASE {name}");
            destination.execute("postgres", &create).await?;
            destination.execute(&name, OWN_SCHEMA).await?;
            destination.execute(&name, TABLE).await?;
        }
        let publication = format!(
            "CREATE PUBLICATION {} FOR TABLE t, shardway.fence",
            slot(round)
        );
        source.execute("postgres", &publication).await?;
    }
    backlog(source).await?;
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        ours.push(follower(source, destination, round).await?);
        theirs.push(subscription(source, destination, round).await?);
    }
    same(source, destination).await?;
    let (ours, theirs) = (median(ours), median(theirs));
    println!("follower      {ours:>8.0} rows/s (median of {ROUNDS}, {ROWS} rows each)");
    println!("subscription  {theirs:>8.0} rows/s");
    println!("ratio         {:>8.2}", ours / theirs);
    Ok(())
}

/// What both have to bring; the last row tells that it is over.
async fn backlog(source: &Cluster) -> Result<()> {
    let sql = format!(
        "CREATE PROCEDURE write() LANGUAGE plpgsql AS $$ BEGIN FOR k IN 1..{TRANSACTIONS} LOOP \
           INSERT INTO t SELECT id % 100, id, k, md5(id::text), now() FROM generate_series(100000 + k * 5, 100004 + k * 5) id; \
           UPDATE t SET n = k, note = md5(k::text) \
             FROM generate_series(0, 4) o WHERE tenant = ((k * 7919 + o * 104729) % 100000 + 1) % 100 \
                  AND id = (k * 7919 + o * 104729) % 100000 + 1; \
           COMMIT; END LOOP; END $$"
    );
    source.execute("postgres", &sql).await?;
    source.execute("postgres", "CALL write()").await?;
    source
        .execute("postgres", "INSERT INTO t VALUES (-1, -1)")
        .await?;
    Ok(())
}

/// Rows a second until the last row is there.
async fn rate(
    destination: &Cluster,
    database: &str,
    begun: shardway::clock::Instant,
) -> Result<f64> {
    let last = "SELECT count(*) FROM t WHERE tenant = -1";
    loop {
        let rows = destination.query(database, last).await?;
        if rows[0][0].as_deref() == Some("1") {
            let took = Clock.now().duration_since(begun);
            let rate = f64::from(ROWS) / took.as_secs_f64();
            println!("{database}: {rate:.0} rows/s");
            return Ok(rate);
        }
        if Clock.now().duration_since(begun) > Duration::from_secs(120) {
            bail!("{database} does not end");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn follower(source: &Cluster, destination: &Cluster, round: usize) -> Result<f64> {
    let job = job(source, destination, round)?;
    let database = slot(round);
    let begin = format!(
        "INSERT INTO shardway.apply_progress (workflow, source, lsn, token) VALUES ('{}', '{}', '0/0', 1)",
        job.id,
        job.followed("s")
    );
    destination.execute(&database, &begin).await?;
    let begun = Clock.now();
    let follower = Follower::start(&job, "s");
    let rate = tokio::select! {
        rate = rate(destination, &database, begun) => rate?,
        problem = follower.failed() => return Err(problem.into()),
    };
    follower.stop().await?;
    let drop = format!("SELECT pg_drop_replication_slot('{database}')");
    source.execute("postgres", &drop).await?;
    Ok(rate)
}

async fn subscription(source: &Cluster, destination: &Cluster, round: usize) -> Result<f64> {
    let database = format!("native_{round}");
    let connection = format!(
        "host=127.0.0.1 port={} user=postgres dbname=postgres",
        source.port()
    );
    let begun = Clock.now();
    let subscribe = format!(
        "CREATE SUBSCRIPTION {database} CONNECTION '{connection}' PUBLICATION p \
         WITH (create_slot = false, copy_data = false, binary = true, slot_name = '{database}')"
    );
    destination.execute(&database, &subscribe).await?;
    let rate = rate(destination, &database, begun).await?;
    let drop = format!("DROP SUBSCRIPTION {database}");
    destination.execute(&database, &drop).await?;
    Ok(rate)
}

/// Both have brought what the source has.
async fn same(source: &Cluster, destination: &Cluster) -> Result<()> {
    let all = "SELECT count(*), bit_xor(hash_record_extended(t, 0)) FROM t";
    let expected = source.query("postgres", all).await?;
    for database in [slot(0), "native_0".to_owned()] {
        if destination.query(&database, all).await? != expected {
            bail!("{database} differs from the source");
        }
    }
    Ok(())
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// As the way back is called: nothing was copied, all that is streamed is applied.
fn slot(round: usize) -> String {
    shardway::reshard::job::slot(&format!("r{round}"), "s", Direction::Back)
}

fn job(source: &Cluster, destination: &Cluster, round: usize) -> Result<Job> {
    let text = "[databases.app]\nshards.s = { primary = \"postgres://h/app\" }\n\
                [databases.app.groups.g]\nmethod = \"list\"\nkey_type = \"bigint\"\nlists.s = [\"*\"]\n\
                tables = { \"public.t\" = \"tenant\" }\n";
    let settings = load_str("bench", text, Path::new("."));
    let settings = settings.ok().context("a configuration")?;
    let owners = Ownership::of(&settings.databases["app"].snapshot);
    let column = |(name, type_name): (&str, &str)| MovingColumn {
        name: name.to_owned(),
        type_name: type_name.to_owned(),
        binary: true,
    };
    let columns = [
        ("tenant", "bigint"),
        ("id", "bigint"),
        ("n", "integer"),
        ("note", "text"),
        ("at", "timestamp with time zone"),
    ];
    let table = MovingTable {
        schema: "public".to_owned(),
        name: "t".to_owned(),
        group: Some("g".to_owned()),
        key_column: "tenant".to_owned(),
        primary_key: vec!["tenant".to_owned(), "id".to_owned()],
        columns: columns.into_iter().map(column).collect(),
        root: None,
    };
    let keys = KeySet::of(Part::Buckets {
        of: 64,
        runs: vec![(0, 64)],
    });
    let servers = [
        ("s", source, "postgres".to_owned()),
        ("d", destination, slot(round)),
    ];
    let tls = Arc::new(ClientTls::new()?);
    let servers = servers
        .map(|(name, cluster, database)| (name.to_owned(), server(name, cluster, database, &tls)));
    Ok(Job {
        id: format!("r{round}"),
        token: 1,
        attempt: 0,
        direction: Direction::Back,
        plan: Arc::new(Plan {
            moves: vec![Move {
                group: "g".to_owned(),
                keys,
                from: "d".to_owned(),
                to: "s".to_owned(),
            }],
            epoch: 1,
            before: owners.clone(),
            after: owners,
            tables: vec![table],
            joins: Vec::new(),
            reference: Vec::new(),
        }),
        knobs: watch::channel(Knobs::default()).1,
        servers: Arc::new(BTreeMap::from(servers)),
        home: "s".to_owned(),
        progress: Arc::default(),
        lines: Arc::default(),
    })
}

fn server(name: &str, cluster: &Cluster, database: String, tls: &Arc<ClientTls>) -> Server {
    Server {
        name: name.to_owned(),
        address: Address {
            host: Host::Tcp("127.0.0.1".to_owned()),
            port: cluster.port(),
            database,
            tls: TlsMode::Disable,
            root_cert: None,
            tls_start: TlsStart::Request,
            channel_binding: ChannelBinding::Prefer,
        },
        credentials: Credentials {
            user: "postgres".to_owned(),
            password: None,
        },
        limit: Duration::from_secs(60),
        tls: Arc::clone(tls),
    }
}
