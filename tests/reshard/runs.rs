//! One run of a reshard, forward, back and forward again, under load, with faults at points on its way; and the results of
//! many of them.

use crate::{
    PATIENTLY, TO, block_on_all,
    direct::Direct,
    faults::{Crew, Done},
    load::{Load, Seen},
    stage::Stage,
    units::{Combination, Ending, Fault, Leg, Unit},
};
use std::{
    fmt::Write as _,
    path::PathBuf,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

/// What came of a run.
pub(crate) struct Ran {
    pub(crate) faults: Vec<Done>,
    pub(crate) took: Duration,
    pub(crate) statements: u64,
    /// Writes that guards refused until the cutover of one who was gone was taken back.
    pub(crate) refused: usize,
    /// What was not as it must be.
    pub(crate) failures: Vec<String>,
    logs: String,
}

/// Runs a unit on servers of its own.
pub(crate) fn run(unit: &Unit, frozen: Duration) -> Ran {
    let unit = unit.clone();
    block_on_all(async move {
        let stage = tokio::task::spawn_blocking(|| Arc::new(Stage::open())).await;
        let stage = stage.unwrap();
        let crew = Crew::assemble(Arc::clone(&stage), frozen).await;
        let begun = Instant::now();
        stage.fill_by(&crew.configs()[0]).await;
        let load = Load::start(&crew.configs(), 4);
        let seen = Arc::clone(&load.seen);
        crew.serves(&seen);
        let script = tokio::spawn(script(unit, Arc::clone(&crew), load));
        let mut failures = Vec::new();
        if let Err(panicked) = script.await {
            failures.push(said(panicked));
            failures.push(format!("{:#}", stage.stands().await));
        }
        failures.extend(crew.unexplained(&seen));
        let faults = crew.done.lock().unwrap().clone();
        let ran = Ran {
            faults,
            took: begun.elapsed(),
            statements: seen.answered.load(Ordering::Relaxed),
            refused: refused(&seen),
            logs: crew.logs(),
            failures,
        };
        let ended = tokio::task::spawn_blocking(move || drop((crew, stage)));
        ended.await.unwrap();
        ran
    })
}

fn refused(seen: &Seen) -> usize {
    let failures = seen.failures.lock().unwrap();
    failures.iter().filter(|it| it.is_guards()).count()
}

fn said(panicked: tokio::task::JoinError) -> String {
    match panicked.try_into_panic() {
        Ok(panic) => panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|it| (*it).to_owned()))
            .unwrap_or_else(|| "panicked".to_owned()),
        Err(error) => error.to_string(),
    }
}

async fn script(unit: Unit, crew: Arc<Crew>, load: Load) {
    let stage = Arc::clone(&crew.stage);
    let of = |leg: Leg| {
        let each = unit.takes.iter().filter(|it| it.leg == leg);
        each.copied().collect::<Vec<Combination>>()
    };
    let direct = Direct::start(&stage, &load.seen).await;
    crew.want(of(Leg::Start));
    let in_turns = unit.takes.iter().any(|it| it.fault == Fault::Replace);
    if in_turns {
        // It does not begin to lead: the first one does.
        crew.signal(1, "STOP");
    }
    stage
        .must(&[&["start"], &TO[..], &PATIENTLY[..]].concat())
        .await;
    if in_turns {
        stage.led_since(0).await;
        crew.signal(1, "CONT");
    }
    stage.comes_to(&crew, "ready", 0).await;
    let legs: &[(Leg, &str)] = match unit.ending {
        Ending::Finish => &[
            (Leg::Forward, "cutover"),
            (Leg::Back, "rollback"),
            (Leg::Again, "cutover"),
        ],
        Ending::Abort => &[(Leg::Forward, "cutover"), (Leg::Back, "rollback")],
    };
    for (flips, (leg, verb)) in (1..).zip(legs) {
        crew.want(of(*leg));
        stage.asks(verb).await;
        stage.comes_to(&crew, "reverse", flips).await;
    }
    let refused = Arc::clone(&direct.refused);
    direct.stop().await;
    let flips = i32::try_from(legs.len()).unwrap();
    crew.want(of(Leg::End));
    let (verb, state) = match unit.ending {
        Ending::Finish => ("finish", "done"),
        Ending::Abort => ("abort", "aborted"),
    };
    stage.asks(verb).await;
    stage.comes_to(&crew, state, flips).await;
    let seen: Arc<Seen> = load.stop().await;
    for proxy in crew.configs() {
        stage.adds_up(&proxy, &seen).await;
    }
    stage.is_clean().await;
    let refused = refused.load(Ordering::Relaxed);
    assert!(
        refused > 0,
        "no guard ever refused the client that writes past the proxies"
    );
}

/// Where results are kept.
fn kept() -> PathBuf {
    let target = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    target.parent().unwrap().join("reshard-matrix")
}

fn results() -> PathBuf {
    kept().join("results.tsv")
}

/// The combinations that went well already.
fn good() -> Vec<String> {
    let text = std::fs::read_to_string(results()).unwrap_or_default();
    let mut good = Vec::new();
    for line in text.lines() {
        let mut cells = line.split('\t');
        if let (Some(name), Some("ok")) = (cells.next(), cells.next()) {
            good.push(name.to_owned());
        }
    }
    good
}

/// Takes every combination of these units that has not gone well yet; the failures.
pub(crate) fn all(units: &[Unit], frozen: Duration) -> usize {
    std::fs::create_dir_all(kept()).unwrap();
    let good = good();
    let (mut runs, mut faults, mut statements, mut failures, mut refused) = (0, 0, 0, 0, 0);
    for unit in units {
        let mut unit = unit.clone();
        unit.takes.retain(|it| !good.contains(&it.to_string()));
        if unit.takes.is_empty() {
            continue;
        }
        println!("{}: {} faults", unit.name, unit.takes.len());
        let ran = run(&unit, frozen);
        keep(&unit, &ran);
        runs += 1;
        faults += ran.faults.len();
        statements += ran.statements;
        failures += ran.failures.len();
        refused += ran.refused;
        println!(
            "{}: {} faults, {} statements, {} failures, {} refused by guards, {} s",
            unit.name,
            ran.faults.len(),
            ran.statements,
            ran.failures.len(),
            ran.refused,
            ran.took.as_secs()
        );
        for failure in ran.failures.iter().take(8) {
            println!("  FAILURE {failure}");
        }
    }
    println!(
        "runs {runs} faults {faults} statements {statements} refused by guards {refused} failures {failures}"
    );
    failures
}

/// A line for each combination, and on failure all that was said.
fn keep(unit: &Unit, ran: &Ran) {
    let word = if ran.failures.is_empty() {
        "ok"
    } else {
        "failed"
    };
    let mut lines = String::new();
    for (at, fault) in ran.faults.iter().enumerate() {
        let next = ran.faults.get(at + 1);
        let seconds = next.map_or_else(|| fault.begun.elapsed(), |next| next.begun - fault.begun);
        let statements = next.map_or(ran.statements, |it| it.answered) - fault.answered;
        let failure = ran
            .failures
            .first()
            .map_or("", |it| it.lines().next().unwrap_or_default());
        let name = fault.combination;
        let seconds = seconds.as_secs_f64();
        writeln!(
            lines,
            "{name}\t{word}\t{seconds:.1}\t{statements}\t{failure}"
        )
        .unwrap();
    }
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(results());
    std::io::Write::write_all(&mut file.unwrap(), lines.as_bytes()).unwrap();
    if !ran.failures.is_empty() {
        let text = format!("{}\n\n{}", ran.failures.join("\n"), ran.logs);
        std::fs::write(kept().join(format!("{}.log", unit.name)), text).unwrap();
    }
}

impl Ran {
    /// Fails the test with what went wrong.
    pub(crate) fn must_be_good(&self) {
        assert!(
            self.failures.is_empty(),
            "{} failures: {}\n{}",
            self.failures.len(),
            self.failures[..self.failures.len().min(8)].join("\n"),
            self.logs
        );
    }
}
