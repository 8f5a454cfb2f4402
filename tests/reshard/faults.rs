//! Does to a victim what is to be done to it, when a point is reached.
//!
//! What must stay true: each fault that is asked for happens once, at its point; the next begins only when the last is over;
//! clients' errors count as caused by a fault only while it lasts and until all serve again, and only those of clients
//! that the victim serves.

use crate::{
    harness::{PATIENCE, Proxy, open_session},
    load::{Failure, Seen, Whom},
    points::{self, Hit},
    relay::Relay,
    stage::{SHARDS, Stage, to},
    units::{Combination, Fault, Leg, Victim},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::sync::mpsc;
use tokio_postgres::Config;

/// For how long nobody can connect after a cut.
const CUT: Duration = Duration::from_secs(1);
/// How long after all serve again a client may still be told what was under way.
const GRACE: Duration = Duration::from_secs(3);

/// How long after a fault another may have to take a cutover back: a lease, and what it takes.
const TAKEN_OVER: Duration = Duration::from_secs(15);

/// A fault, and when it was.
#[derive(Clone, Debug)]
pub(crate) struct Done {
    pub(crate) combination: Combination,
    pub(crate) begun: Instant,
    /// When all served again.
    pub(crate) over: Option<Instant>,
    /// The proxy that was hit; none: a server.
    pub(crate) place: Option<usize>,
    /// Statements that had been answered.
    pub(crate) answered: u64,
}

impl Done {
    /// Whether a client may have been told this because of it.
    fn excuses(&self, failure: &Failure) -> bool {
        if failure.is_guards() {
            let over = self
                .over
                .is_none_or(|over| failure.begun < over + TAKEN_OVER);
            return over && failure.told > self.begun;
        }
        let over = self.over.is_none_or(|over| failure.begun < over + GRACE);
        let whom = match (self.place, failure.whom) {
            (Some(place), Whom::Proxy(at)) => place == at,
            (Some(_), Whom::Server) => false,
            (None, _) => true,
        };
        whom && over && failure.told > self.begun
    }
}

/// Two proxies before relays, and what happens to them.
pub(crate) struct Crew {
    pub(crate) stage: Arc<Stage>,
    /// By proxy and server.
    relays: Vec<Vec<Relay>>,
    armed: Vec<String>,
    proxies: [Mutex<Option<Proxy>>; 2],
    logs: Mutex<Vec<String>>,
    /// How long a victim is frozen.
    frozen: Duration,
    wanted: Mutex<Vec<Combination>>,
    pub(crate) done: Mutex<Vec<Done>>,
    /// Held while a fault is made.
    busy: tokio::sync::Mutex<()>,
    seen: Mutex<Option<Arc<Seen>>>,
}

impl Crew {
    /// Starts the proxies; what they reach is heeded from here on.
    pub(crate) async fn assemble(stage: Arc<Stage>, frozen: Duration) -> Arc<Self> {
        let (hits, reached) = mpsc::unbounded_channel();
        let (mut relays, mut armed) = (Vec::new(), Vec::new());
        for place in 0..2 {
            let mut each = Vec::new();
            for shard in 0..SHARDS {
                each.push(Relay::to(stage.sandbox.cluster(shard).port()).await);
            }
            relays.push(each);
            armed.push(points::listen(place, hits.clone()).await);
        }
        let crew = Arc::new(Self {
            stage,
            relays,
            armed,
            proxies: [Mutex::new(None), Mutex::new(None)],
            logs: Mutex::default(),
            frozen,
            wanted: Mutex::default(),
            done: Mutex::default(),
            busy: tokio::sync::Mutex::default(),
            seen: Mutex::default(),
        });
        for place in 0..2 {
            crew.serve(place).await;
        }
        tokio::spawn(heed(Arc::clone(&crew), reached));
        crew
    }

    /// Starts a proxy at its place.
    async fn serve(self: &Arc<Self>, place: usize) {
        let crew = Arc::clone(self);
        let started = tokio::task::spawn_blocking(move || {
            let ports: Vec<u16> = crew.relays[place].iter().map(|it| it.port).collect();
            let proxy = crew.stage.proxy_by(place, &ports, &crew.armed[place]);
            *crew.proxies[place].lock().unwrap() = Some(proxy);
        });
        started.await.unwrap();
        if let Some(seen) = &*self.seen.lock().unwrap() {
            seen.goes_to(&self.configs());
        }
    }

    /// How clients connect to the proxies.
    pub(crate) fn configs(&self) -> Vec<Config> {
        let each = self.proxies.iter();
        let running = each.filter_map(|it| it.lock().unwrap().as_ref().map(to));
        running.collect()
    }

    /// Whose clients are told where the proxies are.
    pub(crate) fn serves(&self, seen: &Arc<Seen>) {
        *self.seen.lock().unwrap() = Some(Arc::clone(seen));
    }

    /// What is to happen from now on.
    pub(crate) fn want(&self, faults: Vec<Combination>) {
        *self.wanted.lock().unwrap() = faults;
    }

    /// What has not happened of it.
    pub(crate) fn wanted(&self) -> Vec<Combination> {
        self.wanted.lock().unwrap().clone()
    }

    /// Until no fault is being made.
    pub(crate) async fn rests(&self) {
        drop(self.busy.lock().await);
        let begun = Instant::now();
        while self.done.lock().unwrap().iter().any(|it| it.over.is_none()) {
            assert!(begun.elapsed() < PATIENCE, "not all serve again");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Errors that no fault explains.
    pub(crate) fn unexplained(&self, seen: &Seen) -> Vec<String> {
        let (done, failures) = (self.done.lock().unwrap(), seen.failures.lock().unwrap());
        let none = |failure: &&Failure| !done.iter().any(|it| it.excuses(failure));
        // Each kind once, with how often and when it was first met.
        let mut kinds = BTreeMap::<String, (usize, Duration)>::new();
        for failure in failures.iter().filter(none) {
            let last = done.iter().rev().find(|fault| fault.begun < failure.told);
            let (after, since) = last.map_or_else(
                || ("before any fault".to_owned(), Duration::ZERO),
                |it| (format!("after {}", it.combination), failure.told - it.begun),
            );
            let kind = format!("{:?} {after}: {}", failure.whom, failure.words);
            kinds.entry(kind).or_insert((0, since)).0 += 1;
        }
        let each = kinds.into_iter();
        let mut each: Vec<String> = each
            .map(|(kind, (times, since))| format!("{times} times, first {since:?} {kind}"))
            .collect();
        each.extend(seen.wrong.lock().unwrap().iter().cloned());
        each
    }

    /// What the proxies have logged.
    pub(crate) fn logs(&self) -> String {
        let mut all = self.logs.lock().unwrap().clone();
        for (place, proxy) in self.proxies.iter().enumerate() {
            if let Some(proxy) = &*proxy.lock().unwrap() {
                all.push(format!("---- proxy {place}\n{}", proxy.log()));
            }
        }
        all.join("\n")
    }

    /// A point was reached; `hit` holds whoever reached it.
    async fn reached(self: Arc<Self>, hit: Hit, combination: Combination) {
        let busy = self.busy.lock().await;
        let leader = hit.place;
        let place = match combination.victim {
            Victim::Leader => Some(leader),
            Victim::Other => Some(1 - leader),
            Victim::Catalog | Victim::Source | Victim::Destination => None,
        };
        let answered = self.seen.lock().unwrap().as_ref().map_or(0, |seen| {
            seen.answered.load(std::sync::atomic::Ordering::Relaxed)
        });
        println!("  {combination}: proxy {leader} is there");
        let number = {
            let mut done = self.done.lock().unwrap();
            done.push(Done {
                combination,
                begun: Instant::now(),
                over: None,
                place,
                answered,
            });
            done.len() - 1
        };
        match place {
            Some(place) => self.hit_proxy(place, combination.fault, hit).await,
            None => {
                self.hit_server(server(combination), combination.fault, hit)
                    .await;
            }
        }
        // The next fault may come before all serve again: what is held by whoever waits there is not served.
        drop(busy);
        self.all_serve().await;
        self.done.lock().unwrap()[number].over = Some(Instant::now());
    }

    async fn hit_proxy(self: &Arc<Self>, place: usize, fault: Fault, hit: Hit) {
        match fault {
            Fault::Kill | Fault::Replace => {
                let lead = if fault == Fault::Replace {
                    Some(self.stage.lead().await)
                } else {
                    None
                };
                let proxy = self.proxies[place].lock().unwrap().take().unwrap();
                proxy.signal("KILL");
                drop(hit);
                let log = format!("---- proxy {place}, killed\n{}", proxy.log());
                self.logs.lock().unwrap().push(log);
                let gone = tokio::task::spawn_blocking(move || drop(proxy));
                gone.await.unwrap();
                if let Some(lead) = lead {
                    self.stage.led_since(lead).await;
                }
                self.serve(place).await;
            }
            Fault::Stop => {
                self.signal(place, "STOP");
                drop(hit);
                tokio::time::sleep(self.frozen).await;
                self.signal(place, "CONT");
            }
            Fault::Cut => {
                self.relays[place].iter().for_each(Relay::cut);
                drop(hit);
                tokio::time::sleep(CUT).await;
                self.relays[place].iter().for_each(Relay::open);
            }
        }
    }

    pub(crate) fn signal(&self, place: usize, name: &str) {
        let proxy = self.proxies[place].lock().unwrap();
        proxy.as_ref().unwrap().signal(name);
    }

    async fn hit_server(self: &Arc<Self>, shard: usize, fault: Fault, hit: Hit) {
        let stage = Arc::clone(&self.stage);
        let blocking = |act: fn(&Stage, usize)| {
            let stage = Arc::clone(&stage);
            async move {
                let done = tokio::task::spawn_blocking(move || act(&stage, shard));
                done.await.unwrap();
            }
        };
        match fault {
            Fault::Kill | Fault::Replace => {
                blocking(Stage::kill).await;
                drop(hit);
                blocking(|stage, shard| stage.sandbox.cluster(shard).start().unwrap()).await;
            }
            Fault::Stop => {
                blocking(|stage, shard| stage.signal(shard, "STOP")).await;
                drop(hit);
                tokio::time::sleep(self.frozen).await;
                blocking(|stage, shard| stage.signal(shard, "CONT")).await;
            }
            Fault::Cut => {
                let each = || self.relays.iter().map(|it| &it[shard]);
                each().for_each(Relay::cut);
                drop(hit);
                tokio::time::sleep(CUT).await;
                each().for_each(Relay::open);
            }
        }
    }

    /// Until both proxies reach every shard.
    async fn all_serve(&self) {
        let begun = Instant::now();
        for place in 0..2 {
            loop {
                let config = self.proxies[place].lock().unwrap().as_ref().map(to);
                // Another fault has begun already: it is waited for there.
                let Some(config) = config else { break };
                let asked = async {
                    let client = open_session(&config).await?;
                    client.query_one("select count(*) from account", &[]).await
                };
                if let Ok(Ok(_)) = tokio::time::timeout(PATIENCE, asked).await {
                    break;
                }
                if begun.elapsed() > PATIENCE {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Of the way that keys go in this leg.
fn server(combination: Combination) -> usize {
    let back = combination.leg == Leg::Back;
    match (combination.victim, back) {
        (Victim::Source, false) | (Victim::Destination, true) => 1,
        (Victim::Source, true) | (Victim::Destination, false) => 3,
        (Victim::Catalog | Victim::Leader | Victim::Other, _) => 0,
    }
}

/// Lets go whoever reaches a point at which nothing is to happen.
async fn heed(crew: Arc<Crew>, mut reached: mpsc::UnboundedReceiver<Hit>) {
    while let Some(hit) = reached.recv().await {
        let found = {
            let mut wanted = crew.wanted.lock().unwrap();
            let place = wanted.iter().position(|it| it.point == hit.point);
            place.map(|at| wanted.remove(at))
        };
        if let Some(combination) = found {
            tokio::spawn(Arc::clone(&crew).reached(hit, combination));
            continue;
        }
        // An attempt is taken back when statements were held for too long.
        let undo =
            hit.point == "begin_commit" && crew.wanted().iter().any(|it| it.point == "begin_undo");
        if undo {
            tokio::spawn(async move {
                tokio::time::sleep(crate::HELD).await;
                drop(hit);
            });
        }
    }
}
