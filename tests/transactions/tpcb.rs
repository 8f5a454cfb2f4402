//! pgbench's TPC-B over three shards, its four tables in groups of their own, so that most transactions write on two or
//! three shards: the sums of accounts, tellers, branches and history stay equal, whatever dies at whichever point.

use crate::harness::{
    PATIENCE, Proxy, block_on, environment, open_session, program_of_server, until,
};
use shardway::sandbox::Sandbox;
use std::{
    net::TcpListener,
    process::{Command, Output},
    time::{Duration, SystemTime},
};

const SHARDS: usize = 3;
const CLIENTS: u64 = 4;
const SUMS: [&str; 4] = [
    "select coalesce(sum(abalance), 0)::bigint from pgbench_accounts",
    "select coalesce(sum(tbalance), 0)::bigint from pgbench_tellers",
    "select coalesce(sum(bbalance), 0)::bigint from pgbench_branches",
    "select coalesce(sum(delta), 0)::bigint from pgbench_history",
];

struct Bank {
    sandbox: Sandbox,
    /// Transactions that pgbench was told are committed.
    acknowledged: u64,
    /// Those of which it was told nothing at most.
    lost: u64,
}

impl Bank {
    fn open() -> Self {
        let sandbox = Sandbox::builder(environment()).clusters(SHARDS);
        let sandbox = sandbox.setting("synchronous_commit", "on").start().unwrap();
        Self {
            sandbox,
            acknowledged: 0,
            lost: 0,
        }
    }

    fn proxy(&self) -> Proxy {
        let shards: String = (0..SHARDS)
            .map(|at| {
                let port = self.sandbox.cluster(at).port();
                format!("shards.s{at} = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n")
            })
            .collect();
        let group = |table: &str, key: &str, how: &str| {
            format!(
                "[databases.postgres.groups.{table}]\nkey_type = \"bigint\"\n{how}\n\
                 tables = {{ \"public.pgbench_{table}\" = \"{key}\" }}\n"
            )
        };
        let ranges = |first: &str, second: &str, rest: &str| {
            format!(
                "method = \"range\"\nranges = [{{ to = 2, shard = \"{first}\" }}, {{ to = 9, shard = \"{second}\" }}, {{ shard = \"{rest}\" }}]"
            )
        };
        let groups = [
            group("accounts", "aid", "method = \"hash\""),
            group("tellers", "tid", &ranges("s2", "s0", "s1")),
            group("branches", "bid", &ranges("s1", "s2", "s0")),
            group("history", "tid", "method = \"hash\""),
        ]
        .concat();
        let text = format!(
            "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\nworkers = 2\n[databases.postgres]\n\
             control = {{ user = \"postgres\" }}\n{shards}{groups}[users.postgres]\nauth = \"trust\"\n"
        );
        let proxy = Proxy::start(self.sandbox.root(), &text);
        block_on(until_ready(&proxy));
        proxy
    }

    /// As pgbench makes it by itself, through the proxy.
    fn fill(&mut self, proxy: &Proxy) {
        let made = pgbench(proxy.port, "", &["-i", "-q", "-s", "2", "-F", "90"]);
        let said = String::from_utf8_lossy(&made.stderr);
        assert!(made.status.success(), "{said}");
        self.acknowledged = 0;
        self.lost = 0;
    }

    /// What the script was told counts.
    fn heard(&mut self, ran: &Output) {
        let printed = String::from_utf8_lossy(&ran.stdout);
        let count = printed
            .split_once("actually processed: ")
            .and_then(|(_, rest)| rest.split(['/', '\n']).next()?.trim().parse::<u64>().ok());
        self.acknowledged += count.unwrap_or(0);
        if !ran.status.success() {
            self.lost += CLIENTS;
        }
    }

    /// The script to its end.
    fn run(&mut self, proxy: &Proxy, mode: &str, each: &str) {
        let ran = script(proxy.port, "", mode, each);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert!(ran.status.success(), "{mode}: {said}");
        self.heard(&ran);
        self.adds_up(mode);
    }

    /// On each shard, past the proxy.
    fn each(&self, sql: &str) -> Vec<i64> {
        let ask = async |at: usize| {
            let config = self.sandbox.cluster(at).config("postgres");
            let client = open_session(&config).await.unwrap();
            client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0)
        };
        (0..SHARDS).map(|at| block_on(ask(at))).collect()
    }

    /// Waits until nothing is prepared or under way on any shard.
    fn settles(&self) {
        let sql = "select (select count(*) from pg_prepared_xacts) + (select count(*) from pg_stat_activity \
                   where application_name = 'pgbench' and state <> 'idle')";
        let begun = SystemTime::now();
        while self.each(sql).iter().sum::<i64>() > 0 {
            assert!(begun.elapsed().unwrap() < 2 * PATIENCE, "something stays");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn adds_up(&self, case: &str) {
        let sums: Vec<i64> = SUMS.iter().map(|sql| self.each(sql).iter().sum()).collect();
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{case}: {sums:?}");
        let rows: i64 = self
            .each("select count(*) from pgbench_history")
            .iter()
            .sum();
        let rows = u64::try_from(rows).unwrap();
        let most = self.acknowledged + self.lost;
        assert!(
            (self.acknowledged..=most).contains(&rows),
            "{case}: {} were acknowledged, {rows} are there",
            self.acknowledged
        );
    }
}

fn pgbench(port: u16, options: &str, arguments: &[&str]) -> Output {
    Command::new(program_of_server("pgbench"))
        .args(arguments)
        .env("PGHOST", "127.0.0.1")
        .env("PGPORT", port.to_string())
        .env("PGDATABASE", "postgres")
        .env("PGUSER", "postgres")
        .env("PGOPTIONS", options)
        .output()
        .unwrap()
}

/// pgbench's standard script.
fn script(port: u16, options: &str, mode: &str, each: &str) -> Output {
    let clients = CLIENTS.to_string();
    pgbench(
        port,
        options,
        &["-n", "-M", mode, "-c", &clients, "-t", each],
    )
}

/// Waits until changes can be committed on all shards.
async fn until_ready(proxy: &Proxy) {
    let mut config = tokio_postgres::Config::new();
    config.host("127.0.0.1").port(proxy.port);
    config.dbname("postgres").user("postgres");
    let begun = SystemTime::now();
    loop {
        let client = open_session(&config).await.unwrap();
        let made = client
            .batch_execute("create schema if not exists ready")
            .await;
        if made.is_ok() {
            return;
        }
        assert!(begun.elapsed().unwrap() < PATIENCE, "never ready: {made:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[test]
fn pgbench_makes_and_runs_its_tables_over_shards() {
    let mut bank = Bank::open();
    let proxy = bank.proxy();
    bank.fill(&proxy);
    let accounts = bank.each("select count(*) from pgbench_accounts");
    assert_eq!(accounts.iter().sum::<i64>(), 200_000);
    assert!(accounts.iter().all(|count| *count > 50_000), "{accounts:?}");
    assert_eq!(
        bank.each("select count(*) from pgbench_branches"),
        [0, 1, 1]
    );
    for mode in ["simple", "extended", "prepared"] {
        bank.run(&proxy, mode, "25");
    }
    assert_eq!((bank.acknowledged, bank.lost), (300, 0));
    let sums = SUMS[0];
    assert!(bank.each(sums).iter().any(|sum| *sum != 0), "money moved");
    bank.settles();
}

#[derive(Clone, Copy, Debug)]
enum Dies {
    Proxy,
    Server(usize),
}

#[test]
fn the_four_sums_stay_equal_whatever_dies() {
    let mut bank = Bank::open();
    let mut proxy = bank.proxy();
    bank.fill(&proxy);
    let few = [
        ("half-prepared", Dies::Proxy),
        ("prepared", Dies::Server(0)),
        ("deciding", Dies::Server(1)),
        ("decided", Dies::Proxy),
        ("half-finished", Dies::Server(2)),
    ];
    let points = [
        "preparing",
        "half-prepared",
        "prepared",
        "deciding",
        "decided",
        "finishing",
        "half-finished",
        "finished",
    ];
    let dying = [
        Dies::Proxy,
        Dies::Server(0),
        Dies::Server(1),
        Dies::Server(2),
    ];
    let each = points
        .iter()
        .flat_map(|point| dying.map(|dies| (*point, dies)));
    let cases = if crate::all() {
        each.collect()
    } else {
        few.to_vec()
    };
    for (point, dies) in cases {
        let case = format!("{dies:?} at {point}");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let options = format!("-c shardway.failpoint={point}@{address}");
        let port = proxy.port;
        let running = std::thread::spawn(move || script(port, &options, "prepared", "40"));
        // One of them stands at the point, and the others are at work or come there too.
        listener.set_nonblocking(true).unwrap();
        let mut stopped = None;
        until("a client stands at the point", || {
            stopped = listener.accept().ok();
            stopped.is_some()
        });
        match dies {
            Dies::Proxy => proxy.signal("KILL"),
            Dies::Server(at) => {
                let server = bank.sandbox.cluster(at);
                server.kill();
                server.start().unwrap();
            }
        }
        drop((stopped, listener));
        bank.heard(&running.join().unwrap());
        if matches!(dies, Dies::Proxy) {
            proxy = bank.proxy();
        }
        bank.settles();
        bank.adds_up(&case);
        // What was locked is free again.
        bank.run(&proxy, "prepared", "5");
    }
}
