//! Many proxies before one catalog: what they cost its server at rest, and how soon all of them know of a change and
//! have answered a hold.
//!
//! Each does what a proxy does there without clients: heartbeats, rounds, the map, holds. `SHARDWAY_FLEET` says how many,
//! `SHARDWAY_FLEET_CHANGES` how often something changes; the figures are printed (`make fleet`).

#![expect(clippy::print_stdout, reason = "the figures are what it is for")]

use shardway::{
    clock::{Clock, Duration},
    config::{load::load_str, settings::Settings},
    gate::Gate,
    metrics::Metrics,
    registry::HEARTBEAT,
    reshard::participant::Participant,
    sandbox::{Cluster, Sandbox, SandboxEnv},
    txn::{
        Incarnation,
        coordinator::{Coordinator, ROUND},
    },
};
use std::{path::Path, sync::Arc};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// For how long the home shard is watched.
const WATCHED: Duration = Duration::from_secs(10);
/// After how long a silent proxy is not waited for any more, as the runner of a cutover has it.
const LAPSED: f64 = 7.0;

/// How many there are of something, as the environment has it.
fn count(name: &str, usual: usize) -> usize {
    std::env::var(name).map_or(usual, |text| text.parse().unwrap())
}

struct Fleet {
    sandbox: Sandbox,
    /// Asks the home shard.
    home: Client,
    proxies: Vec<(Arc<Coordinator>, JoinHandle<()>)>,
}

impl Fleet {
    async fn start(count: usize) -> Self {
        let environment = SandboxEnv {
            template_cache: Some(Path::new(env!("CARGO_TARGET_TMPDIR")).join("templates")),
            ..SandboxEnv::of(std::env::var_os, std::env::temp_dir())
        };
        let most = (count * 5 + 50).to_string();
        let sandbox = Sandbox::builder(environment)
            .clusters(2)
            .setting("max_connections", &most)
            .setting("max_prepared_transactions", "20")
            .start()
            .unwrap();
        let settings = settings(sandbox.clusters());
        let config = sandbox.cluster(0).config("postgres");
        let (home, connection) = config.connect(NoTls).await.unwrap();
        tokio::spawn(connection);
        let mut fleet = Self {
            sandbox,
            home,
            proxies: Vec::new(),
        };
        for _ in 0..count {
            fleet.join(&settings);
        }
        let begun = Clock.now();
        let alive =
            "SELECT count(*) FROM shardway.proxy WHERE epoch >= (SELECT epoch FROM shardway.epoch)";
        while fleet.home(alive).await != count.to_string() {
            assert!(begun.elapsed() < Duration::from_secs(120), "not all serve");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!("{count} proxies are there after {:.1?}", begun.elapsed());
        fleet
    }

    fn join(&mut self, settings: &Settings) {
        let metrics = Metrics::new();
        let database = &settings.databases["app"];
        let coordinator = Coordinator::new(database, Incarnation::new(), &metrics);
        let task = tokio::spawn(live(Arc::clone(&coordinator)));
        self.proxies.push((coordinator, task));
    }

    /// The first value that the home shard answers; nothing where there is no such table yet.
    async fn home(&self, sql: &str) -> String {
        let told = self.home.simple_query(sql).await.unwrap_or_default();
        let first = told.iter().find_map(|it| match it {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        first.unwrap_or_default().to_owned()
    }

    /// How long it takes until the home shard answers this.
    async fn until(&self, sql: &str, wanted: &str) -> Duration {
        let begun = Clock.now();
        while self.home(sql).await != wanted {
            assert!(begun.elapsed() < Duration::from_secs(60), "never: {sql}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        begun.elapsed()
    }

    /// Changes the map and holds keys back, again and again, and tells how soon all of them know; `busy` is how much of a
    /// processor the home shard has taken without.
    async fn changes(&self, busy: f64) {
        let all = self.proxies.len().to_string();
        let (mut known, mut answered) = (Vec::new(), Vec::new());
        let (processor, begun) = (self.processor(), Clock.now());
        let changes = count("SHARDWAY_FLEET_CHANGES", 5);
        for _ in 0..changes {
            self.home.batch_execute(CHANGE).await.unwrap();
            known.push(self.until(KNOWN, &all).await);
            self.home.batch_execute(HOLD).await.unwrap();
            answered.push(self.until(ANSWERED, &all).await);
            self.home.batch_execute(RELEASE).await.unwrap();
        }
        let at_rest = begun.elapsed().mul_f64(busy);
        let each = (self.processor() - processor).saturating_sub(at_rest)
            / u32::try_from(changes).unwrap();
        for (what, mut took) in [
            ("a change of the map is known to", known),
            ("a hold is answered by", answered),
        ] {
            took.sort();
            let (best, median, most) = (took[0], took[took.len() / 2], took[took.len() - 1]);
            println!(
                "{what} all after {} ms ({} to {}, of {changes})",
                median.as_millis(),
                best.as_millis(),
                most.as_millis()
            );
            assert!(best < Duration::from_secs(1), "{what} all: {took:?}");
        }
        println!(
            "a change and a hold take {} ms of the home shard's processor time",
            each.as_millis()
        );
    }

    /// Processor time of the home shard's backends so far.
    fn processor(&self) -> Duration {
        let data = self.sandbox.cluster(0).data_dir();
        let pid = std::fs::read_to_string(data.join("postmaster.pid")).unwrap();
        let postmaster = pid.lines().next().unwrap().to_owned();
        let mut ticks = 0;
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else {
                continue;
            };
            let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
            let fields: Vec<&str> = after.split_whitespace().collect();
            if fields.get(1) == Some(&postmaster.as_str()) {
                let number = |at: usize| fields[at].parse::<u64>().unwrap();
                ticks += number(11) + number(12);
            }
        }
        Duration::from_millis(ticks * 10)
    }
}

fn settings(servers: &[Cluster]) -> Settings {
    let shards: String = servers
        .iter()
        .enumerate()
        .map(|(at, server)| {
            let (host, port) = (server.socket_dir(), server.port());
            format!(
                "shards.s{at} = {{ primary = \"postgres:///postgres?host={}&port={port}\" }}\n",
                host.display()
            )
        })
        .collect();
    let text = format!(
        "[databases.app]\n{shards}control = {{ user = \"postgres\" }}\n\
         groups.g = {{ method = \"hash\", key_type = \"bigint\", tables = {{ \"public.t\" = \"id\" }} }}\n\
         [users.postgres]\nauth = \"trust\"\n"
    );
    load_str("test", &text, Path::new(".")).unwrap_or_else(|errors| panic!("{}", errors.render()))
}

/// What the tasks of a proxy do for a database (`src/server/recovering.rs`, `holding.rs`).
async fn live(coordinator: Arc<Coordinator>) {
    let rounds = async {
        loop {
            coordinator.round(None).await;
            tokio::time::sleep(ROUND).await;
        }
    };
    let agreement = coordinator.agreement().unwrap();
    let heartbeats = async {
        loop {
            coordinator.beat(None).await;
            drop(tokio::time::timeout(HEARTBEAT, agreement.rung()).await);
        }
    };
    let follows = async {
        let mut numbers = agreement.numbers();
        loop {
            let heard = *numbers.borrow_and_update();
            if heard > agreement.taken() && coordinator.renew_map().await.is_ok() {
                coordinator.takes_over(heard, None).await;
            }
            drop(tokio::time::timeout(HEARTBEAT, numbers.changed()).await);
        }
    };
    tokio::join!(rounds, heartbeats, follows, holds(&coordinator));
}

async fn holds(coordinator: &Coordinator) {
    let (gate, clock) = (Gate::default(), Clock);
    let mut participant = Participant::new(coordinator.incarnation());
    let registry = coordinator.registry().unwrap();
    loop {
        let mut pause = Duration::from_millis(200);
        if registry.is_known()
            && let Ok(ended) = participant.look(registry, &gate, || clock.now()).await
        {
            participant.let_go(&gate, &ended);
            participant.tell(registry, &gate).await;
            pause = participant.rests(&gate, clock.now());
        }
        drop(tokio::time::timeout(pause, registry.told()).await);
    }
}

const CHANGE: &str = "\
WITH m AS (UPDATE shardway.map SET epoch = epoch + 1 RETURNING 1), \
     e AS (UPDATE shardway.epoch SET epoch = epoch + 1 RETURNING epoch) \
SELECT pg_notify('shardway', epoch::text) FROM e";
const KNOWN: &str = "\
SELECT count(*) FROM shardway.proxy p, shardway.epoch e WHERE p.epoch >= e.epoch";
const HOLD: &str = "\
INSERT INTO shardway.hold (workflow, attempt, state, moving, deadline) VALUES \
    ('w', 1, 'held', '[{\"group\": \"g\", \"keys\": {\"part\": {\"buckets\": {\"of\": 1024, \"runs\": [[0, 9]]}}}}]', \
     clock_timestamp() + interval '60 s') \
ON CONFLICT (workflow) DO UPDATE SET attempt = hold.attempt + 1, state = 'held', deadline = excluded.deadline; \
NOTIFY shardway, 'hold'";
const RELEASE: &str = "UPDATE shardway.hold SET state = 'released'; NOTIFY shardway, 'hold'";
const ANSWERED: &str = "SELECT count(*) FROM shardway.held d JOIN shardway.hold USING (workflow, attempt) WHERE drained";
const TRANSACTIONS: &str =
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = 'postgres'";
const CONNECTIONS: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = 'postgres' AND pid <> pg_backend_pid()";

#[test]
fn many_proxies_on_one_catalog_stay_cheap() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let count = count("SHARDWAY_FLEET", 40);
        let mut fleet = Fleet::start(count).await;
        let number = async |sql: &str| fleet.home(sql).await.parse::<usize>().unwrap();
        // Nothing happens.
        let (before, processor, begun) = (number(TRANSACTIONS).await, fleet.processor(), Clock.now());
        tokio::time::sleep(WATCHED).await;
        let took = begun.elapsed().as_secs_f64();
        let each = (number(TRANSACTIONS).await - before) as f64 / took / count as f64;
        let busy = (fleet.processor() - processor).as_secs_f64() / took;
        let connections = number(CONNECTIONS).await;
        println!(
            "at rest: {:.0} transactions a second, {each:.2} of each proxy; {:.1} % of a processor; {connections} connections",
            each * count as f64,
            busy * 100.0
        );
        // A heartbeat and a look at holds every three seconds, a round every five: a handful of statements each.
        assert!(each < 12.0, "{each} transactions a second of each proxy");
        assert!(connections <= count * 3 + 8, "{connections} connections");
        fleet.changes(busy).await;
        // One stands still: it is waited for until its lease has passed, and no longer.
        let (_, frozen) = fleet.proxies.pop().unwrap();
        frozen.abort();
        fleet.home.batch_execute(HOLD).await.unwrap();
        let open = format!(
            "SELECT count(*) FROM shardway.proxy p LEFT JOIN shardway.held d ON d.incarnation = p.incarnation \
             AND d.attempt = (SELECT attempt FROM shardway.hold) \
             WHERE p.heartbeat > clock_timestamp() - make_interval(secs => {LAPSED}) AND NOT coalesce(d.drained, false)"
        );
        let waited = fleet.until(&open, "0").await;
        println!("with one that stands still, nobody is waited for after {waited:.1?}");
        assert!(waited < Duration::from_secs_f64(LAPSED + 1.0), "{waited:?}");
        for (_, task) in &fleet.proxies {
            task.abort();
        }
    });
}
