//! A leader that dies in a cutover: proxies that only serve end its attempt for it, long before another leads.
//!
//! What must stay true: nobody has the lead here but the dead, whose lease lasts; what it did is done by the steps of a run.

#![expect(
    clippy::disallowed_methods,
    reason = "how long a statement waits is what is claimed"
)]

use crate::{
    client::{Client, query},
    harness::until,
    holding::{Held, answers, keys, on, three, waiting},
    owners::Engine,
};
use shardway::{
    clock::Duration,
    config::load::load_str,
    net::tls::ClientTls,
    registry::{Flip, Record},
    reshard::{
        job::{Direction, Job, Knobs},
        planning::{Asked, plan},
        record,
        servers::Server,
        steps::{fence, guard},
        wish::Wish,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::Instant,
};
use tokio::sync::watch;
use tokio_postgres::types::Type;

/// A hold that lasts longer than any test waits for.
const LONG: u32 = 300;

/// Three shards behind two proxies, and a leader that has got as far as guards, and is about to die.
struct Dying {
    held: Held,
    engine: Engine,
    job: Job,
}

impl Dying {
    fn start(name: &str) -> Self {
        let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
        held.home(
            "update shardway.leader set holder = 'dead', token = 5, until = clock_timestamp() + interval '1 hour'",
        );
        let job = planned(name, &engine);
        let recorded = async {
            let lease = engine.registry.lease(engine.registry.home()).await.unwrap();
            let knobs = job.knobs.borrow().clone();
            let made = record::start(&lease, &job.id, &job.plan, &knobs, &BTreeMap::new()).await;
            assert!(made.unwrap());
            lease.done();
            let doubled = [on("s1")];
            let doubling = engine.registry.set_moving(&job.id, &doubled, 5);
            doubling.await.unwrap();
            let (here, there) = (&job.servers["s0"], &job.servers["s1"]);
            guard::make(&job, here).await.unwrap();
            guard::make(&job.turned(), there).await.unwrap();
        };
        engine.runtime.block_on(recorded);
        // What its streams would read; a fence sees that the tables are those.
        for (shard, job) in [("s0", job.clone()), ("s1", job.turned())] {
            let name = job.slot(shard);
            let publish = format!(
                "alter table public.ready replica identity full; \
                 create publication {name} for table public.ready, public.t, shardway.fence"
            );
            let at = usize::from(shard == "s1");
            let made = held.stand.shards[at].ask(&query(&publish));
            assert!(made.iter().any(|line| line.starts_with('C')), "{made:?}");
        }
        // By which it shows who has answered.
        let there = &mut held.stand.shards[1];
        there.ask(&query(
            "insert into t select g, 100 from generate_series(1, 9) g",
        ));
        held.known(2);
        Self { held, engine, job }
    }

    /// Up to the fence, by the dead, in the job's direction.
    fn fenced(&mut self, attempt: i32, seconds: u32) {
        self.job.attempt = attempt;
        self.held.home(&format!(
            "update shardway.workflow set state = 'cutover', step = 'fenced', token = 5, attempt = {attempt}"
        ));
        self.held.hold(attempt, seconds);
        self.held.drained(attempt, 2);
        let fenced = self.engine.runtime.block_on(fence::run(&self.job));
        fenced.unwrap();
    }

    /// The owners change, and that is the last that it does.
    fn commits(&self) {
        let now = self.engine.map();
        let moves = self.job.moves();
        let flip = Flip {
            workflow: self.job.id.clone(),
            attempt: self.job.attempt,
            token: 5,
            expected: now.epoch,
            after: now.content.owners.apply(&moves).unwrap(),
            doubled: vec![on(&moves[0].from)],
            joins: Vec::new(),
        };
        let committed =
            "update shardway.workflow set step = 'committed', flips = flips + 1 where id = $1";
        let record = Record {
            sql: committed.to_owned(),
            values: vec![(Box::new(self.job.id.clone()), Type::TEXT)],
            rows: Some(1),
        };
        self.engine.flip(&flip, &[record]).unwrap();
    }

    /// How many triggers of guards refuse writes, past the proxies.
    fn guards(&mut self, shard: usize) -> String {
        self.held.stand.shards[shard].value(
            "select count(*) from pg_trigger where tgname like 'shardway_guard_%' and tgenabled <> 'D'",
        )
    }

    /// A write by each of the proxies, which waits.
    fn writes(&self, key: i64) -> [Client; 2] {
        let write = format!("update t set n = n + 1 where id = {key}");
        let mut clients = [self.held.stand.proxy.client(), self.held.other.client()];
        for client in &mut clients {
            client.send(&query(&write));
        }
        waiting(&self.held.stand.proxy, 1);
        waiting(&self.held.other, 1);
        clients
    }

    /// Nobody has to do anything for the hold any more.
    fn settled(&mut self, state: &str) {
        let home = &mut self.held.stand.shards[0];
        until("the hold is settled", || {
            home.value("select state || ' ' || activating from shardway.hold")
                == format!("{state} false")
        });
        let lead = "select holder || ' ' || token from shardway.leader";
        assert_eq!(home.value(lead), "dead 5");
        let done = "select count(*) from shardway.journal where event <> 'started'";
        assert_eq!(home.value(done), "0", "nobody has run it");
    }
}

/// Keys below 10 go from the first shard to the second.
fn planned(name: &str, engine: &Engine) -> Job {
    let settings = load_str("test", &three(name).databases(), Path::new("."))
        .unwrap_or_else(|errors| panic!("{}", errors.render()));
    let database = &settings.databases["postgres"];
    let servers = Arc::new(Server::all(database, &Arc::new(ClientTls::new().unwrap())));
    let now = engine.map();
    let members: BTreeSet<String> = servers.keys().cloned().collect();
    let asked = Asked {
        snapshot: &database.snapshot,
        epoch: now.epoch,
        owners: &now.content.owners,
        members: &members,
        servers: &servers,
    };
    let wish = Wish::of_move("range=[,10):s1", Some("g".to_owned())).unwrap();
    let planned = engine.runtime.block_on(plan(asked, &[wish])).unwrap();
    assert_eq!(planned.plan.moves[0].keys, keys());
    let knobs = Knobs {
        lock: Duration::from_secs(2),
        hold: Duration::from_secs(10),
        ..Knobs::default()
    };
    Job {
        id: "w".to_owned(),
        token: 5,
        attempt: 0,
        direction: Direction::Forward,
        plan: Arc::new(planned.plan),
        knobs: watch::channel(knobs).1,
        servers,
        home: "s0".to_owned(),
        progress: Arc::default(),
        lines: Arc::default(),
    }
}

#[test]
fn an_attempt_whose_leader_died_is_undone_by_its_deadline() {
    let mut dying = Dying::start("help_undo");
    let begun = Instant::now();
    dying.fenced(1, 8);
    assert_ne!(dying.guards(0), "0");
    // Whoever waits is answered by the owner, whose guard would refuse it.
    for mut client in dying.writes(1) {
        assert_eq!(client.answers(1), ["C UPDATE 1\\0", "Z I"]);
    }
    assert!(
        begun.elapsed() >= Duration::from_secs(8),
        "nobody else ends it before"
    );
    assert!(begun.elapsed() < Duration::from_secs(20));
    dying.settled("released");
    assert_eq!(dying.guards(0), "0");
    let seen = dying.held.stand.seen("select max(n) from t where id = 1");
    assert_eq!(seen[..2], ["2", "100"]);
    // Past the proxies too.
    let here = &mut dying.held.stand.shards[0];
    answers(here, "update t set n = 0 where id = 1");
}

#[test]
fn new_owners_are_told_though_the_leader_died_at_the_commit() {
    let mut dying = Dying::start("help_commit");
    dying.fenced(1, LONG);
    let clients = dying.writes(1);
    let begun = Instant::now();
    dying.commits();
    for mut client in clients {
        assert_eq!(client.answers(1), ["C UPDATE 1\\0", "Z I"]);
    }
    dying.settled("committed");
    let told = "select attempt || ' ' || direction from shardway.activation";
    let activated = |dying: &mut Dying, shard: usize| dying.held.stand.shards[shard].value(told);
    assert_eq!(activated(&mut dying, 1), "1 forward");
    let max = "select max(n) from t where id = 1";
    assert_eq!(dying.held.stand.seen(max)[..2], ["0", "102"]);
    assert_ne!(dying.guards(0), "0");

    // The same on the way back, where the guard of the former cutover is still on.
    dying.job = dying.job.turned();
    dying.fenced(2, LONG);
    assert_ne!(dying.guards(1), "0");
    let clients = dying.writes(1);
    dying.commits();
    for mut client in clients {
        assert_eq!(client.answers(1), ["C UPDATE 1\\0", "Z I"]);
    }
    dying.settled("committed");
    assert_eq!(activated(&mut dying, 0), "2 back");
    assert_eq!(dying.guards(0), "0");
    assert_eq!(dying.held.stand.seen(max)[..2], ["2", "102"]);
    assert!(
        begun.elapsed() < Duration::from_secs(60),
        "long before the deadline"
    );
}
