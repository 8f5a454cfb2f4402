//! Reshards that run one after another while statements are compared: what moves is drawn by chance, every state is waited
//! in until enough was asked, and what was asked in which state is counted.
//!
//! What must stay true: the reshards are those of operators, by the program's own command; rows are compared only while none
//! runs.

use crate::{
    answer::Answer,
    harness::World,
    random::Random,
    schema::{self, DATABASE, TABLES, quoted},
};
use shardway::{
    catalog::{
        ownership::Content,
        snapshot::{Placement, Snapshot},
    },
    sandbox::Cluster,
};
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::process::Command;
use tokio_postgres::{Client, NoTls};

const PATIENCE: Duration = Duration::from_secs(180);
/// How often the state is read: what is shorter may be missed.
const LOOK: Duration = Duration::from_millis(3);
/// What has to be asked before a state that waits is left.
const IN_STATE: u64 = 60;
/// States of which each has to have met statements, with the steps of a cutover in either direction.
pub(crate) const STATES: &[&str] = &[
    "prepare",
    "copy",
    "catch_up",
    "verify",
    "ready",
    "cutover forward",
    "cutover back",
    "reverse forward",
    "reverse back",
    "finish",
    "done",
    "abort",
    "aborted",
];

/// What was asked when, and where the reshard stood when.
#[derive(Default)]
pub(crate) struct Asked {
    spans: Mutex<Vec<(Instant, Instant)>>,
    states: Mutex<Vec<(Instant, String)>>,
    failed: Mutex<Vec<String>>,
    count: AtomicU64,
    /// Nothing moves until rows have been compared.
    rest: AtomicBool,
    over: AtomicBool,
}

impl Asked {
    pub(crate) fn note(&self, begun: Instant, answer: &Answer, sql: &str) {
        self.spans.lock().unwrap().push((begun, Instant::now()));
        self.count.fetch_add(1, Ordering::Relaxed);
        let failure = match answer {
            Answer::Refused(code) if is_of_moves(code) => code,
            Answer::Error(code) if code == "57P03" || code == "SWG01" || code == "40001" => code,
            Answer::Refused(_) | Answer::Error(_) | Answer::Rows { .. } | Answer::Texts(_) => {
                return;
            }
        };
        let state = self.state();
        let failure = format!("{failure} in {state}: {sql}");
        self.failed.lock().unwrap().push(failure);
    }

    /// Where it stands now.
    pub(crate) fn state(&self) -> String {
        let states = self.states.lock().unwrap();
        states
            .last()
            .map_or(String::new(), |(_, state)| state.clone())
    }

    /// Whether rows are to be compared now.
    pub(crate) fn rests(&self) -> bool {
        self.rest.load(Ordering::Relaxed)
    }

    pub(crate) fn go_on(&self) {
        self.rest.store(false, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Statements that failed only because of a reshard.
    pub(crate) fn failed(&self) -> Vec<String> {
        self.failed.lock().unwrap().clone()
    }

    /// How many statements were under way in each state, at least in part.
    pub(crate) fn by_state(&self) -> BTreeMap<String, usize> {
        let (spans, states) = (self.spans.lock().unwrap(), self.states.lock().unwrap());
        let mut counts = BTreeMap::new();
        for (at, (from, state)) in states.iter().enumerate() {
            let to = states.get(at + 1).map_or_else(Instant::now, |(to, _)| *to);
            let first = spans.partition_point(|(_, ended)| ended < from);
            let met = spans[first..].iter().take_while(|(begun, _)| *begun < to);
            *counts.entry(state.clone()).or_default() += met.count();
        }
        counts
    }

    fn enter(&self, state: String) {
        let mut states = self.states.lock().unwrap();
        if states.last().is_none_or(|(_, last)| *last != state) {
            states.push((Instant::now(), state));
        }
    }

    async fn until_asked(&self, more: u64) {
        let (begun, enough) = (Instant::now(), self.count.load(Ordering::Relaxed) + more);
        while self.count.load(Ordering::Relaxed) < enough {
            assert!(begun.elapsed() < PATIENCE, "nothing is asked any more");
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Refusals that follow from a map that changes, and not from the statement.
fn is_of_moves(code: &str) -> bool {
    code.starts_with("SW4") || code.starts_with("SW16")
}

/// Runs so many reshards.
pub(crate) struct Driver {
    asked: Arc<Asked>,
    config: std::path::PathBuf,
    home: Client,
    random: Random,
}

/// Where the latest reshard stands.
struct Stands {
    state: String,
    step: String,
    paused: bool,
}

/// How a reshard goes.
#[derive(Clone, Copy)]
enum Way {
    /// There, back, there, and done.
    Finished,
    /// There, back, and given up.
    BackAndAborted,
    /// Given up in the state of this name.
    AbortedIn(&'static str),
}

impl Driver {
    pub(crate) async fn open(world: &World, asked: &Arc<Asked>, seed: u64) -> Self {
        let watched = open(world).await;
        tokio::spawn(watch(watched, Arc::clone(asked)));
        Self {
            asked: Arc::clone(asked),
            config: world.config.clone(),
            home: open(world).await,
            random: Random::new(seed ^ 0x5eed),
        }
    }

    pub(crate) async fn run(mut self, reshards: usize) {
        const IN: [&str; 5] = ["prepare", "copy", "catch_up", "verify", "ready"];
        for number in 0..reshards {
            let way = match number % 4 {
                0 | 2 => Way::Finished,
                1 => Way::BackAndAborted,
                _ => Way::AbortedIn(IN[self.random.below(IN.len())]),
            };
            let what = self.begin().await;
            let begun = Instant::now();
            self.go(way).await;
            let took = begun.elapsed().as_secs_f32();
            println!("reshard {number}: {} ({took:.1} s)", what.join(" "));
            self.asked.until_asked(IN_STATE / 2).await;
            self.asked.rest.store(true, Ordering::Relaxed);
            while self.asked.rests() {
                tokio::time::sleep(LOOK).await;
            }
        }
        self.asked.over.store(true, Ordering::Relaxed);
    }

    async fn go(&mut self, way: Way) {
        if let Way::AbortedIn(state) = way {
            self.until(&[state, "ready made"]).await;
            self.must(&["abort"]).await;
            return self.until(&["aborted"]).await;
        }
        if self.random.chance(50) {
            let state = ["copy", "catch_up", "verify"][self.random.below(3)];
            self.until(&[state, "ready made"]).await;
            self.must(&["pause"]).await;
            self.asked.until_asked(IN_STATE).await;
            self.must(&["resume"]).await;
        }
        self.until(&["ready made"]).await;
        self.asked.until_asked(IN_STATE).await;
        if self.random.chance(30) {
            self.must(&["verify"]).await;
            self.until(&["verify"]).await;
            self.until(&["ready made"]).await;
        }
        let (verbs, end): (&[&str], _) = match way {
            Way::Finished => (&["cutover", "rollback", "cutover"], ["finish", "done"]),
            Way::BackAndAborted | Way::AbortedIn(_) => {
                (&["cutover", "rollback"], ["abort", "aborted"])
            }
        };
        for verb in verbs {
            self.must(&[verb]).await;
            self.until(&["reverse made"]).await;
            self.asked.until_asked(IN_STATE).await;
        }
        self.must(&[end[0]]).await;
        self.until(&[end[1]]).await;
    }

    /// Draws something to move until there is something to it.
    async fn begin(&mut self) -> Vec<String> {
        loop {
            let what = self.drawn();
            let mut args = vec!["start"];
            args.extend(what.iter().map(String::as_str));
            for knob in [
                "chunk_rows=5",
                "copies=1",
                "bytes_per_second=6000",
                "batch=3",
                "drain_ms=400",
                "hold_ms=4000",
                "lock_ms=500",
            ] {
                args.extend(["--set", knob]);
            }
            let output = self.reshard(&args).await;
            let told = format!("{}{}", output.0, output.1);
            if output.2 {
                return what;
            }
            let nothing = ["where it is to be already", "too few different keys"];
            let drawn_again = nothing.iter().any(|it| told.contains(it));
            assert!(drawn_again, "{args:?}: {told}");
        }
    }

    fn shard(&mut self) -> String {
        format!("s{}", self.random.below(4))
    }

    fn drawn(&mut self) -> Vec<String> {
        const HASHED: [(&str, &str); 5] = [
            ("ints", "ints"),
            ("texts", "texts"),
            ("uuids", "uuids"),
            ("numbers", "numbers"),
            ("dates", "dates"),
        ];
        let of = |group: &str, rest: &[String]| {
            let mut all = vec!["--group".to_owned(), group.to_owned()];
            all.extend_from_slice(rest);
            all
        };
        match self.random.below(12) {
            0..3 => {
                let (group, _) = HASHED[self.random.below(HASHED.len())];
                let mut rest = Vec::new();
                let from = self.random.below(200);
                let middle = from + 200 + self.random.below(200);
                let to = middle + 200 + self.random.below(200);
                for (from, to) in [(from, middle - 1), (middle, to)] {
                    let shard = self.shard();
                    rest.extend(["--move".to_owned(), format!("buckets={from}-{to}:{shard}")]);
                }
                of(group, &rest)
            }
            3 | 4 => {
                let shard = self.shard();
                let bounds = ["", "0", "50", "100", "101", "150", "200", "9000"];
                let from = self.random.below(bounds.len() - 1);
                let to = from + 1 + self.random.below(bounds.len() - from - 1);
                let (from, to) = (bounds[from], bounds[to]);
                let what = format!("range=[{from},{to}):{shard}");
                of("spans", &["--move".to_owned(), what])
            }
            5 => {
                let shard = self.shard();
                let bounds = [
                    "",
                    "2000-01-01",
                    "2026-01-15",
                    "2026-01-31",
                    "2026-02-10",
                    "",
                ];
                let at = self.random.below(bounds.len() - 1);
                let what = format!("range=[{},{}):{shard}", bounds[at], bounds[at + 1]);
                of("months", &["--move".to_owned(), what])
            }
            6 => {
                let mut rest = Vec::new();
                let keys = schema::keys("regions");
                let (one, other) = (self.random.below(4), 4 + self.random.below(keys.len() - 4));
                for key in [keys[one], keys[other]] {
                    let shard = self.shard();
                    rest.extend(["--move".to_owned(), format!("value={key}:{shard}")]);
                }
                of("regions", &rest)
            }
            7 => {
                let (group, keys) = HASHED[self.random.below(HASHED.len())];
                let keys = schema::keys(keys);
                let mut rest = Vec::new();
                let first = self.random.below(keys.len());
                for at in [first, (first + 1) % keys.len()] {
                    let shard = self.shard();
                    rest.push(format!("--pin={}={shard}", keys[at]));
                }
                of(group, &rest)
            }
            _ => {
                let to = ["s0,s1,s2,s3", "s0,s1,s2", "s1,s2,s3", "s3,s0"];
                vec![
                    "--to".to_owned(),
                    to[self.random.below(to.len())].to_owned(),
                ]
            }
        }
    }

    /// Waits until it is in one of these states, or past the step of one.
    pub(crate) async fn until(&self, wanted: &[&str]) {
        let begun = Instant::now();
        loop {
            let stands = stands(&self.home).await.unwrap();
            let with_step = format!("{} {}", stands.state, stands.step);
            if wanted
                .iter()
                .any(|it| *it == stands.state || *it == with_step)
            {
                return;
            }
            let waits = format!("waits for {wanted:?} in {with_step}");
            assert!(begun.elapsed() < PATIENCE && !stands.paused, "{waits}");
            tokio::time::sleep(LOOK).await;
        }
    }

    pub(crate) async fn must(&self, args: &[&str]) {
        let (out, err, well) = self.reshard(args).await;
        assert!(well, "{args:?}: {out}{err}");
    }

    /// Runs the command: what it printed, and whether it succeeded.
    async fn reshard(&self, args: &[&str]) -> (String, String, bool) {
        let (verb, rest) = args.split_first().unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_shardway"))
            .args(["reshard", verb, "--config"])
            .arg(&self.config)
            .args(rest)
            .output()
            .await
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let well = output.status.success();
        (text(&output.stdout), text(&output.stderr), well)
    }
}

async fn open(world: &World) -> Client {
    let (client, connection) = world.home().connect(NoTls).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client
}

/// `None`: there was none yet, or there is no schema.
async fn stands(home: &Client) -> Option<Stands> {
    const STANDS: &str = "\
        SELECT state, coalesce(step, ''), paused, direction, error::text FROM shardway.workflow ORDER BY made_at DESC LIMIT 1";
    let row = home.query_opt(STANDS, &[]).await.ok()??;
    let error: Option<String> = row.get(4);
    assert_eq!(error, None, "the reshard has stopped");
    let state: String = row.get(0);
    Some(Stands {
        state,
        step: row.get(1),
        paused: row.get(2),
    })
}

async fn watch(home: Client, asked: Arc<Asked>) {
    const WHERE: &str = "\
        SELECT state || CASE WHEN state IN ('cutover', 'reverse') THEN ' ' || direction ELSE '' END, \
               CASE WHEN state = 'cutover' THEN step END \
        FROM shardway.workflow ORDER BY made_at DESC LIMIT 1";
    while !asked.is_over() {
        if let Ok(Some(row)) = home.query_opt(WHERE, &[]).await {
            asked.enter(row.get(0));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Every row of the whole is on the shard that the map of the home shard names, once, and nothing else is anywhere.
pub(crate) async fn compare(
    shards: &[Cluster],
    whole: &Cluster,
    snapshot: &Snapshot,
) -> Vec<String> {
    let read = "SELECT content::text FROM shardway.map";
    let content = shards[0].query(DATABASE, read).await.unwrap();
    let map: Content = serde_json::from_str(content[0][0].as_ref().unwrap()).unwrap();
    let mut differences = Vec::new();
    if !map.moving.is_empty() {
        differences.push(format!("the map still says {:?}", map.moving));
    }
    for table in TABLES {
        let name = table.full_name();
        let key = if table.sharded() {
            quoted(table.key)
        } else {
            "''".to_owned()
        };
        let sql = format!("SELECT {key}::text, t::text FROM {name} t");
        let placement = &snapshot.table(table.schema, table.name).unwrap().placement;
        let mut expected = vec![Vec::new(); shards.len()];
        for row in whole.query(DATABASE, &sql).await.unwrap() {
            let (key, text) = (row[0].as_ref().unwrap(), row[1].as_ref().unwrap());
            for (at, rows) in expected.iter_mut().enumerate() {
                let shard = format!("s{at}");
                let here = match placement {
                    Placement::Reference => map.members.contains(&shard),
                    Placement::Single(single) => single.index() == at,
                    Placement::Sharded { group, .. } => {
                        let group = snapshot.group(*group);
                        let key = group.key_type.from_text(key.as_bytes()).unwrap();
                        map.owners.owner(&group.name, &key) == Some(&shard)
                    }
                };
                if here {
                    rows.push(text.clone());
                }
            }
        }
        for (at, (shard, mut expected)) in shards.iter().zip(expected).enumerate() {
            let there = format!("SELECT to_regclass('{name}') IS NOT NULL");
            let there = shard.query(DATABASE, &there).await.unwrap();
            let mut found = Vec::new();
            if there[0][0].as_deref() == Some("t") {
                let rows = shard.query(DATABASE, &sql).await.unwrap().into_iter();
                found.extend(rows.map(|row| row[1].clone().unwrap()));
            }
            found.sort();
            expected.sort();
            if found != expected {
                differences.push(format!(
                    "{name} on s{at}: has {found:?}, should have {expected:?}"
                ));
            }
        }
    }
    differences
}
