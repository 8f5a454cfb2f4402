//! One reshard that this process runs, from step to step.
//!
//! What must stay true: whoever takes a run over bumps its token on the home shard and on every server that takes part
//! before anything else is done; a record that somebody else has changed is read again before anything is concluded from
//! it; nothing is done by a record that lacks what servers know.

mod growing;
mod keeping;
mod remembering;
mod showing;

use super::{
    effects::{Ground, milliseconds, since},
    identity::{Identity, Known},
    job::{Job, Knobs, Progress, StepError},
    lines::Lines,
    record::{self, Stored, word},
    runner::{Left, Runner},
    servers::Server,
    state::{Effect, Event, Next, Record, State, Step, Waiting},
    steps::{self, catch_up::Follower},
    throttle::{self, Throttle},
};
use crate::{
    clock::{Duration, Instant},
    failpoint,
    inspect::at_once,
    registry::errand,
};
use serde_json::{Value, json};
use showing::Application;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};
use tokio::sync::watch;

/// How often a run is looked at: whether somebody wants something else.
const LOOK: Duration = Duration::from_millis(250);
/// How often what is shown is written down.
const SHOWN: Duration = Duration::from_secs(1);
/// How long to wait before something is tried again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How often sources are looked at.
const WATCHED: Duration = Duration::from_secs(5);

/// One reshard that this process runs.
pub(super) struct Run<'a> {
    runner: &'a Runner<'a>,
    stored: Stored,
    /// Who each server was when it was prepared.
    known: BTreeMap<String, Identity>,
    knobs: watch::Sender<Knobs>,
    progress: Arc<Progress>,
    /// Kept for as long as a cutover is tried.
    lines: Arc<Lines>,
    streams: Vec<Follower>,
    /// Which way they go.
    flips: i32,
    /// Whether they are to begin anew.
    anew: bool,
    /// Before the next try.
    pause: Duration,
    /// Until when there is no other attempt of a cutover.
    rest: Option<Instant>,
    /// Attempts of the cutover that is asked for, by which the next comes later and has more time; why the last failed.
    failed: u32,
    hindered: Option<String>,
    /// Since when a table is known to have columns that are not planned.
    growing: Option<Instant>,
    application: Mutex<Application>,
}

/// How an effect ended.
enum Ended {
    With(Result<(), StepError>),
    /// Somebody wants something else.
    Changed(Box<Stored>),
}

impl<'a> Run<'a> {
    pub(super) fn new(runner: &'a Runner<'a>, stored: Stored) -> Self {
        let progress = Arc::new(Progress::default());
        for (name, value) in &stored.progress {
            progress.set(name.clone(), value.clone());
        }
        Self {
            runner,
            known: BTreeMap::new(),
            knobs: watch::Sender::new(stored.knobs.clone()),
            progress,
            lines: Arc::default(),
            streams: Vec::new(),
            flips: stored.record.flips,
            pause: PAUSE.0,
            rest: None,
            failed: 0,
            hindered: None,
            growing: None,
            anew: false,
            application: Mutex::new(Application {
                since: runner.clock.now(),
                times: runner.metrics.times(runner.registry.database()),
                errors: runner.errors(),
            }),
            stored,
        }
    }

    /// To its end.
    pub(super) async fn drive(mut self) -> Result<(), Left> {
        self.know().await?;
        self.claim().await?;
        self.remember().await?;
        self.settle(&Event::TakenOver, &Value::Null).await?;
        loop {
            if let Err(error) = self.tend().await {
                self.fail(error).await?;
                continue;
            }
            match self.stored.record.next() {
                Next::Over => {
                    self.show_now().await;
                    return Ok(());
                }
                Next::Turn(record) => self.turn(&record).await?,
                Next::Wait(waiting) => self.wait(waiting).await?,
                Next::Run(effect) => self.effect(effect).await?,
            }
        }
    }

    /// Whoever ran it before can do nothing on any server from here on.
    async fn claim(&mut self) -> Result<(), Left> {
        loop {
            match Box::pin(steps::records::claim_all(&self.anybodys())).await {
                Ok(()) => return Ok(()),
                Err(error) => self.begins_again(error).await?,
            }
        }
    }

    /// Whoever has failed over is told by what is done there.
    fn anybodys(&self) -> Job {
        Job {
            servers: self.servers(Known::System),
            lines: Arc::default(),
            ..self.job()
        }
    }

    /// Says why a run cannot be gone on with yet.
    async fn begins_again(&mut self, error: StepError) -> Result<(), Left> {
        if matches!(error, StepError::Replaced) {
            return Err(Left::Replaced);
        }
        self.progress.set("problem", error.to_string());
        self.show_now().await;
        self.watch_for(self.pause).await?;
        self.pause = (self.pause * 2).min(PAUSE.1);
        Ok(())
    }

    /// Reads who the servers are.
    async fn know(&mut self) -> Result<(), Left> {
        let lease = self.runner.home().await?;
        self.known = errand(record::identities(&lease, &self.stored.id)).await?;
        lease.done();
        Ok(())
    }

    /// Starts and stops the streams as the record has it.
    async fn tend(&mut self) -> Result<(), StepError> {
        let record = &self.stored.record;
        let wanted = record.streams();
        let others = self.flips != record.flips || self.anew;
        if !self.streams.is_empty() && (!wanted || others) {
            self.end_streams().await?;
        }
        let record = &self.stored.record;
        if wanted && self.streams.is_empty() {
            self.anew = false;
            self.flips = record.flips;
            let job = self.job();
            if record.state == State::CatchUp {
                Box::pin(steps::keys::primary(&job)).await?;
            }
            let sources = job.sources();
            let started = sources.iter().map(|it| Follower::start(&job, &it.name));
            self.streams = started.collect();
        }
        Ok(())
    }

    async fn end_streams(&mut self) -> Result<(), StepError> {
        // At once: statements may be held. What one ended with before, it has told.
        let each = self.streams.iter_mut().map(Follower::end);
        let ended = at_once(each.collect()).await;
        ended.into_iter().collect::<Result<(), StepError>>()?;
        self.streams.clear();
        Ok(())
    }

    async fn turn(&mut self, record: &Record) -> Result<(), Left> {
        let cutover = record.step == Some(Step::Hold);
        if let (true, Some(rest)) = (cutover, self.rest) {
            let left = rest.saturating_duration_since(self.runner.clock.now());
            if !left.is_zero() {
                let why = self.hindered.as_deref().unwrap_or("it was undone");
                let attempt = self.stored.record.attempt;
                let waits = format!("the next attempt of the cutover: in attempt {attempt}, {why}");
                self.progress.set("waiting_for", waits);
                self.show_now().await;
                self.watch_for(left.min(LOOK)).await?;
                return Ok(());
            }
            self.rest = None;
        }
        self.progress.set("waiting_for", Value::Null);
        let event = format!("{} {}", word(&record.state), step_word(record.step));
        let detail = json!({ "attempt": record.attempt });
        self.swap(record, event.trim(), &detail).await?;
        Ok(())
    }

    async fn wait(&mut self, waiting: Waiting) -> Result<(), Left> {
        self.progress.set("waiting_for", word(&waiting));
        self.lines.close();
        self.lags();
        self.show_now().await;
        let idle = matches!(waiting, Waiting::Operator) && !self.streams.is_empty();
        if idle {
            let ground = self.ground();
            match ground.idle(&self.job()).await {
                Ok(()) => {}
                Err(error @ StepError::Halt { .. }) => return self.fail(error).await,
                Err(error) => self.progress.set("problem", error.to_string()),
            }
        }
        // Once what may move slots on has done so.
        if let Err(error) = self.kept().await {
            return self.fail(error).await;
        }
        let began = self.runner.clock.now();
        while since(self.runner.clock, began) < WATCHED {
            let ended = tokio::select! {
                biased;
                failed = failed(&self.streams) => Some(failed),
                changed = async { tokio::time::sleep(LOOK).await; self.changed().await } => {
                    if let Some(changed) = changed? {
                        self.stored = changed;
                        return Ok(());
                    }
                    None
                }
            };
            self.lags();
            self.tell();
            if let Some(error) = ended {
                return self.fail(error).await;
            }
        }
        self.show_now().await;
        Ok(())
    }

    /// Looks at what slots cost, of both ways: longest of all it is waited with them.
    async fn kept(&self) -> Result<(), StepError> {
        let record = &self.stored.record;
        if !record.needs_slots() || record.is_attempt() {
            return Ok(());
        }
        let kept = throttle::look_both(&self.job()).await;
        match kept {
            // What it has stopped for comes first.
            Err(_) if record.stopped.is_some() => Ok(()),
            kept => kept,
        }
    }

    /// Runs an effect, unless somebody wants something else meanwhile.
    async fn effect(&mut self, effect: Effect) -> Result<(), Left> {
        let name = format!("{effect:?}").to_lowercase();
        if effect == Effect::Prepare {
            self.read_columns().await?;
        }
        self.progress.set("doing", name.as_str());
        self.progress.set("waiting_for", Value::Null);
        self.progress.set("throttle", Value::Null);
        self.set_knobs(self.stored.knobs.clone());
        let job = self.job();
        let ground = self.ground();
        let began = self.runner.clock.now();
        failpoint::reached(&format!("begin_{name}")).await;
        let ended = {
            let running = Box::pin(ground.run(effect, &job, &self.stored, &self.streams));
            tokio::select! {
                done = running => Ended::With(done),
                // An attempt is taken back whatever has become of its streams.
                error = failed(&self.streams), if effect != Effect::Undo => Ended::With(Err(error)),
                changed = self.other_than(effect, &job) => changed?,
            }
        };
        let took = milliseconds(since(self.runner.clock, began));
        match ended {
            Ended::Changed(stored) => {
                self.take_over(*stored);
                Ok(())
            }
            Ended::With(Ok(())) => {
                self.pause = PAUSE.0;
                self.progress.set("problem", Value::Null);
                if self.stored.record.state == State::Cutover && effect != Effect::Hold {
                    self.progress.set(format!("cutover.{name}_ms"), took);
                }
                if effect == Effect::Commit {
                    self.failed = 0;
                    // With the map.
                    self.stored.record = self.stored.record.committed();
                    self.stored.version += 1;
                    return Ok(());
                }
                if effect == Effect::Prepare {
                    self.know().await?;
                }
                if effect == Effect::Activate {
                    self.show_now().await;
                }
                let detail = json!({ "attempt": job.attempt, "took_ms": took });
                self.settle(&Event::Done(effect), &detail).await?;
                failpoint::reached(&format!("after_{name}_recorded")).await;
                Ok(())
            }
            Ended::With(Err(error)) => self.fail(error).await,
        }
    }

    /// Resolves when the record asks for something else than this effect.
    async fn other_than(&self, effect: Effect, job: &Job) -> Result<Ended, Left> {
        let (mut shown, mut watched) = (self.runner.clock.now(), None);
        let mut version = self.stored.version;
        let mut throttle = Throttle::new(self.stored.knobs.clone(), self.runner.clock);
        loop {
            tokio::time::sleep(LOOK).await;
            self.lags();
            if since(self.runner.clock, shown) >= SHOWN {
                shown = self.runner.clock.now();
                if heeds_throttle(effect) {
                    throttle.look(job).await;
                    self.set_knobs(throttle.knobs());
                }
                self.show_now().await;
            }
            let due = watched.is_none_or(|then| since(self.runner.clock, then) >= WATCHED);
            let record = &self.stored.record;
            if due && record.needs_slots() && !record.is_attempt() {
                watched = Some(self.runner.clock.now());
                if let Err(error) = throttle::look(job).await {
                    return Ok(Ended::With(Err(error)));
                }
            }
            match self.changed_since(version).await {
                Ok(Some(stored)) => {
                    version = stored.version;
                    throttle.want(stored.knobs.clone());
                    self.set_knobs(throttle.knobs());
                    if stored.record.next() != Next::Run(effect) {
                        return Ok(Ended::Changed(Box::new(stored)));
                    }
                }
                Ok(None) | Err(Left::Ask(_)) => {}
                Err(Left::Replaced) => return Err(Left::Replaced),
            }
        }
    }

    /// As the attempt has them that is under way, or what comes between attempts. Nobody is woken for nothing.
    fn set_knobs(&self, knobs: Knobs) {
        let knobs = match self.stored.record.state {
            State::Ready | State::Reverse | State::Cutover => knobs.after_failed(self.failed),
            State::Prepare
            | State::Copy
            | State::CatchUp
            | State::Verify
            | State::Finish
            | State::Done
            | State::Abort
            | State::Aborted => knobs,
        };
        self.knobs.send_if_modified(|now| {
            let differs = *now != knobs;
            *now = knobs;
            differs
        });
    }

    fn job(&self) -> Job {
        let record = &self.stored.record;
        let home = self.runner.registry;
        let job = Job {
            id: self.stored.id.clone(),
            token: self.stored.token,
            attempt: record.attempt,
            direction: record.direction(),
            plan: Arc::clone(&self.stored.plan),
            knobs: self.knobs.subscribe(),
            servers: self.servers(if record.needs_slots() {
                Known::Exactly
            } else {
                Known::System
            }),
            home: home.name(home.home()).to_owned(),
            progress: Arc::clone(&self.progress),
            lines: Arc::clone(&self.lines),
        };
        // Committed: the record speaks of the next cutover already.
        if record.step == Some(Step::Committed) {
            job.turned()
        } else {
            job
        }
    }

    /// The servers, and who they have to be.
    fn servers(&self, known: fn(Identity) -> Known) -> Arc<BTreeMap<String, Server>> {
        let without = self.stored.without();
        if self.known.is_empty() && without.is_empty() {
            return Arc::clone(&self.runner.servers);
        }
        let mut servers = (*self.runner.servers).clone();
        servers.retain(|name, _| !without.contains(name));
        for (name, identity) in &self.known {
            if let Some(server) = servers.get_mut(name) {
                server.known = known(identity.clone());
            }
        }
        Arc::new(servers)
    }

    fn ground(&self) -> Ground<'a> {
        Ground {
            registry: self.runner.registry,
            tools: &self.runner.tools,
            clock: self.runner.clock,
        }
    }
}

/// Whether it does what servers can be spared for a while.
fn heeds_throttle(effect: Effect) -> bool {
    matches!(
        effect,
        Effect::Copy | Effect::Verify | Effect::Finish | Effect::Abort
    )
}

/// Resolves when one of them cannot go on any more.
async fn failed(streams: &[Follower]) -> StepError {
    let mut each: Vec<_> = streams.iter().map(|it| Box::pin(it.failed())).collect();
    std::future::poll_fn(|cx| {
        let ready = each.iter_mut().find_map(|it| match it.as_mut().poll(cx) {
            std::task::Poll::Ready(error) => Some(error),
            std::task::Poll::Pending => None,
        });
        ready.map_or(std::task::Poll::Pending, std::task::Poll::Ready)
    })
    .await
}

fn step_word(step: Option<Step>) -> String {
    step.map(|step| word(&step)).unwrap_or_default()
}
