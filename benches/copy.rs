//! Rows a second that a reshard copies, beside `psql COPY … | psql COPY` of the same rows in the same format, in turns in one
//! run; medians. `cargo bench --bench copy [rows] [rounds] [copies at a time]`. Starts two servers and leaves nothing behind.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a bench ends at the first problem and reports to its caller"
)]

use shardway::{
    auth::scram::ChannelBinding,
    catalog::{
        key::KeyType,
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
        steps::copy,
    },
    sandbox::{Cluster, Sandbox, SandboxEnv},
};
use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};
use tokio::sync::watch;

const SCHEMA: &str = concat!(
    "CREATE SCHEMA shardway;",
    include_str!("../src/registry/schema/1.sql"),
    include_str!("../src/registry/schema/2.sql"),
    include_str!("../src/registry/schema/3.sql")
);
const COLUMNS: [&str; 5] = ["id", "tenant", "amount", "at", "note"];

fn main() {
    let arguments = std::env::args().filter_map(|argument| argument.parse().ok());
    let given: Vec<usize> = arguments.collect();
    let rows = given.first().copied().unwrap_or(2_000_000);
    let rounds = given.get(1).copied().unwrap_or(5);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let copies = given
        .get(2)
        .copied()
        .unwrap_or_else(|| Knobs::default().copies);
    runtime.block_on(measure(rows, rounds, copies));
}

async fn measure(rows: usize, rounds: usize, copies: usize) {
    let sandbox = sandbox();
    let (from, to) = (sandbox.cluster(0), sandbox.cluster(1));
    let fill = format!(
        "INSERT INTO t SELECT k, k, k / 7.0, now(), md5(k::text) FROM generate_series(1, {rows}) k"
    );
    let key = "ALTER TABLE t ADD PRIMARY KEY (id)";
    for sql in [SCHEMA, TABLE, &fill, key, "VACUUM ANALYZE t"] {
        from.execute("postgres", sql).await.unwrap();
    }
    to.execute("postgres", SCHEMA).await.unwrap();
    let (mut pipes, mut ours) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        fresh(to).await;
        let begun = Clock.now();
        let moved = pipe(from, to).await;
        pipes.push(rate(moved, Clock.now() - begun));
        fresh(to).await;
        let (job, _knobs) = job(from, to, round, copies).await;
        let begun = Clock.now();
        copy::run(&job).await.unwrap();
        let taken = Clock.now() - begun;
        assert_eq!(count(to).await, moved);
        ours.push(rate(moved, taken));
        let [pipe, our] = [pipes[round], ours[round]];
        println!(
            "pipe {pipe:9.0} rows/s   reshard {our:9.0} rows/s   {:.2}",
            our / pipe
        );
    }
    let (pipe, our) = (median(pipes), median(ours));
    println!(
        "median: pipe {pipe:.0}, reshard {our:.0}, {:.2} times as many",
        our / pipe
    );
}

const TABLE: &str =
    "CREATE TABLE t (id bigint, tenant bigint, amount numeric, at timestamptz, note text)";

async fn fresh(to: &Cluster) {
    for sql in ["DROP TABLE IF EXISTS t", TABLE, "CHECKPOINT"] {
        to.execute("postgres", sql).await.unwrap();
    }
}

async fn count(to: &Cluster) -> u64 {
    let rows = to
        .query("postgres", "SELECT count(*) FROM t")
        .await
        .unwrap();
    rows[0][0].as_deref().unwrap().parse().unwrap()
}

/// One half of the buckets.
fn half() -> KeySet {
    KeySet::of(Part::Buckets {
        of: 16,
        runs: vec![(0, 8)],
    })
}

async fn pipe(from: &Cluster, to: &Cluster) -> u64 {
    let condition = half().sql("tenant", KeyType::Bigint).unwrap();
    let psql = |cluster: &Cluster| {
        let (socket, port) = (cluster.socket_dir(), cluster.port());
        format!(
            "psql -XqAt -h {} -p {port} -U postgres postgres -c",
            socket.display()
        )
    };
    let columns = COLUMNS.join(", ");
    let out = format!("COPY (SELECT {columns} FROM t WHERE {condition}) TO STDOUT (FORMAT binary)");
    let line = format!(
        "{} \"{out}\" | {} \"COPY t ({columns}) FROM STDIN (FORMAT binary)\"",
        psql(from),
        psql(to)
    );
    let ended =
        tokio::task::spawn_blocking(move || Command::new("sh").args(["-c", &line]).status());
    assert!(ended.await.unwrap().unwrap().success());
    count(to).await
}

async fn job(
    from: &Cluster,
    to: &Cluster,
    round: usize,
    copies: usize,
) -> (Job, watch::Sender<Knobs>) {
    let id = format!("bench{round}");
    let insert = format!(
        "UPDATE shardway.workflow SET state = 'done'; \
         SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots; \
         INSERT INTO shardway.workflow (id, state, token, plan) VALUES ('{id}', 'copy', 1, '{{}}')"
    );
    from.execute("postgres", &insert).await.unwrap();
    let (knobs, changes) = watch::channel(Knobs {
        copies,
        ..Knobs::default()
    });
    let job = Job {
        id,
        token: 1,
        attempt: 0,
        direction: Direction::Forward,
        plan: Arc::new(plan()),
        knobs: changes,
        servers: Arc::new([server("a", from), server("b", to)].into()),
        home: "a".to_owned(),
        progress: Arc::default(),
        lines: Arc::default(),
    };
    (job, knobs)
}

fn plan() -> Plan {
    let text = "[databases.app]\nshards.a = { primary = \"postgres://h/app\" }\n\
                [databases.app.groups.g]\nmethod = \"hash\"\nkey_type = \"bigint\"\n\
                tables = { \"public.t\" = \"tenant\" }\n";
    let settings = load_str("bench", text, Path::new("."));
    let settings = settings.unwrap_or_else(|errors| panic!("{}", errors.render()));
    let owners = Ownership::of(&settings.databases["app"].snapshot);
    let column = |name: &str| MovingColumn {
        name: name.to_owned(),
        type_name: String::new(),
        binary: true,
    };
    Plan {
        moves: vec![Move {
            group: "g".to_owned(),
            keys: half(),
            from: "a".to_owned(),
            to: "b".to_owned(),
        }],
        epoch: 1,
        before: owners.clone(),
        after: owners,
        tables: vec![MovingTable {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            group: Some("g".to_owned()),
            key_column: "tenant".to_owned(),
            primary_key: vec!["id".to_owned()],
            columns: COLUMNS.map(column).to_vec(),
            root: None,
        }],
        joins: Vec::new(),
        reference: Vec::new(),
    }
}

fn server(name: &str, cluster: &Cluster) -> (String, Server) {
    let server = Server {
        name: name.to_owned(),
        address: Address {
            host: Host::Unix(cluster.socket_dir()),
            port: cluster.port(),
            database: "postgres".to_owned(),
            tls: TlsMode::Disable,
            root_cert: None,
            tls_start: TlsStart::Request,
            channel_binding: ChannelBinding::Prefer,
        },
        credentials: Credentials {
            user: "postgres".to_owned(),
            password: None,
        },
        limit: Duration::from_secs(30),
        tls: Arc::new(ClientTls::new().unwrap()),
    };
    (name.to_owned(), server)
}

fn sandbox() -> Sandbox {
    let environment = SandboxEnv {
        pg_bin: std::env::var_os("SHARDWAY_PG_BIN").map(PathBuf::from),
        path: std::env::var_os("PATH")
            .iter()
            .flat_map(std::env::split_paths)
            .collect(),
        tmp: std::env::temp_dir(),
        template_cache: None,
    };
    let builder = Sandbox::builder(environment).clusters(2);
    let builder = builder.setting("wal_level", "logical");
    builder.setting("max_wal_size", "8GB").start().unwrap()
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn rate(rows: u64, taken: Duration) -> f64 {
    rows as f64 / taken.as_secs_f64()
}

fn median(mut rates: Vec<f64>) -> f64 {
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}
