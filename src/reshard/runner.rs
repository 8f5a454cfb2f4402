//! Runs the reshards of a database, while this process has the lead.
//!
//! What must stay true: nothing is done for a reshard without the lead, and everything stops when it is lost; whoever takes a
//! run over bumps its token on the home shard and on every server that takes part before anything else is done; a record
//! that somebody else has changed is read again before anything is concluded from it.

use super::{
    dump::Tools,
    effects::{Ground, since},
    identity::{Identity, Known},
    job::{Job, Knobs, Progress, StepError},
    leader,
    lines::Lines,
    record::{self, Stored, word},
    servers::Server,
    state::{Effect, Event, Next, Record, State, Step, Stopped, Then, Waiting},
    steps::{self, catch_up::Follower},
    throttle::{self, Throttle},
    told,
};
use crate::{
    clock::{Clock, Duration, Instant},
    failpoint,
    inspect::AskError,
    metrics::{
        Metrics,
        reshards::{Leader, Sight},
        times,
    },
    registry::{Lease, Registry, errand},
};
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::watch;

/// How often a process that does not lead looks for something to run.
const IDLE: Duration = Duration::from_secs(2);
/// How often a run is looked at: whether somebody wants something else.
const LOOK: Duration = Duration::from_millis(250);
/// How often what is shown is written down.
const SHOWN: Duration = Duration::from_secs(1);
/// How long to wait before something is tried again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(5));
/// How often sources are looked at.
const WATCHED: Duration = Duration::from_secs(5);

/// What a process runs reshards with.
pub struct Runner<'a> {
    pub registry: &'a Registry,
    pub servers: Arc<BTreeMap<String, Server>>,
    /// The process.
    pub holder: String,
    pub tools: Tools,
    pub clock: Clock,
    /// Where is shown what was seen of reshards; and what is known of the application.
    pub metrics: Arc<Metrics>,
}

/// Whether the newest reshard was looked at that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LookedBack {
    No,
    Yes,
}

/// Why a run is not gone on with by this process.
#[derive(Debug)]
enum Left {
    Replaced,
    Ask(AskError),
}

impl From<AskError> for Left {
    fn from(error: AskError) -> Self {
        Self::Ask(error)
    }
}

impl Runner<'_> {
    /// For as long as it is not dropped.
    pub async fn run(&self) {
        let mut back = LookedBack::No;
        loop {
            if let Err(problem) = self.once(&mut back).await {
                let database = self.registry.database();
                tracing::debug!(database, %problem, "looking for reshards to run");
            }
            tokio::time::sleep(IDLE).await;
        }
    }

    /// Leads as long as there is something to run, if nobody else does.
    async fn once(&self, back: &mut LookedBack) -> Result<(), AskError> {
        if !self.registry.is_known() {
            return Ok(());
        }
        let lease = self.home().await?;
        let unfinished = errand(record::unfinished(&lease)).await?;
        self.seen(&lease, unfinished.first(), back).await?;
        if unfinished.is_empty() {
            lease.done();
            return Ok(());
        }
        let began = self.clock.now();
        let token = errand(leader::take(&lease, &self.holder)).await?;
        lease.done();
        let Some(token) = token else {
            return Ok(());
        };
        let database = self.registry.database();
        tracing::info!(database, token, "runs the reshards from now on");
        tokio::select! {
            () = self.keep(token, began) => {
                tracing::warn!(database, token, "another process may run the reshards");
            }
            worked = self.work(token) => {
                let lease = self.home().await?;
                errand(leader::leave(&lease, &self.holder, token)).await?;
                lease.done();
                match worked {
                    Ok(()) => {}
                    Err(Left::Replaced) => tracing::warn!(database, token, "was replaced as the runner"),
                    Err(Left::Ask(problem)) => return Err(problem),
                }
            }
        }
        Ok(())
    }

    /// Lets the console and `/metrics` show where the newest stands; of one that is over, once.
    async fn seen(
        &self,
        lease: &Lease,
        unfinished: Option<&Stored>,
        back: &mut LookedBack,
    ) -> Result<(), AskError> {
        match unfinished {
            Some(stored) => {
                let leader = errand(record::leader(lease)).await?;
                self.show(told::sight(stored, leader));
                *back = LookedBack::No;
            }
            None if *back == LookedBack::No => {
                let newest = errand(record::all(lease)).await?.into_iter().next();
                if let Some(stored) = newest {
                    self.show(told::sight(&stored, None));
                }
                *back = LookedBack::Yes;
            }
            None => {}
        }
        Ok(())
    }

    /// Errors that clients were told: by servers, and by this process because of keys that move.
    fn errors(&self) -> u64 {
        let refusals = self.metrics.refusals.read().into_iter();
        let moving = refusals.filter(|(code, _)| code.starts_with("SW4"));
        let refused: u64 = moving.map(|(_, count)| count).sum();
        refused + self.metrics.errors(self.registry.database())
    }

    fn show(&self, sight: Sight) {
        let view = self.metrics.transactions.of(self.registry.database());
        view.resharding.set(sight);
    }

    async fn home(&self) -> Result<Lease, AskError> {
        self.registry.lease(self.registry.home()).await
    }

    /// Keeps the lead; resolves when it is lost, or may be.
    async fn keep(&self, token: i64, mut renewed: Instant) {
        loop {
            tokio::time::sleep(leader::RENEWAL).await;
            let began = self.clock.now();
            let renewing = async {
                let lease = self.home().await?;
                let kept = leader::renew(&lease, &self.holder, token).await?;
                lease.done();
                Ok::<_, AskError>(kept)
            };
            let left = leader::BELIEVED.saturating_sub(since(self.clock, renewed));
            match tokio::time::timeout(left, renewing).await {
                Ok(Ok(true)) => renewed = began,
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(_)) => {}
            }
            if since(self.clock, renewed) >= leader::BELIEVED {
                return;
            }
        }
    }

    async fn work(&self, token: i64) -> Result<(), Left> {
        loop {
            let lease = self.home().await?;
            let unfinished = errand(record::unfinished(&lease)).await?;
            let Some(first) = unfinished.into_iter().next() else {
                lease.done();
                return Ok(());
            };
            let mine =
                first.token == token || errand(record::take(&lease, &first.id, token)).await?;
            let stored = errand(record::read(&lease, &first.id)).await?;
            lease.done();
            match stored {
                Some(stored) if mine && stored.token == token => {
                    Box::pin(Run::new(self, stored).drive()).await?;
                }
                Some(_) => return Err(Left::Replaced),
                None => {}
            }
        }
    }
}

/// One reshard that this process runs.
struct Run<'a> {
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
    /// Before the next try.
    pause: Duration,
    /// Until when there is no other attempt of a cutover.
    rest: Option<Instant>,
    /// Attempts of the cutover that is asked for, by which the next comes later and has more time; why the last failed.
    failed: u32,
    hindered: Option<String>,
    application: Mutex<Application>,
}

/// What the application met since the process runs the reshard.
struct Application {
    since: Instant,
    times: Vec<u64>,
    /// When it began.
    errors: u64,
}

/// How an effect ended.
enum Ended {
    With(Result<(), StepError>),
    /// Somebody wants something else.
    Changed(Box<Stored>),
}

impl<'a> Run<'a> {
    fn new(runner: &'a Runner<'a>, stored: Stored) -> Self {
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
            application: Mutex::new(Application {
                since: runner.clock.now(),
                times: runner.metrics.times(runner.registry.database()),
                errors: runner.errors(),
            }),
            stored,
        }
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
        if self.known.is_empty() {
            return Arc::clone(&self.runner.servers);
        }
        let mut servers = (*self.runner.servers).clone();
        for (name, identity) in &self.known {
            if let Some(server) = servers.get_mut(name) {
                server.known = known(identity.clone());
            }
        }
        Arc::new(servers)
    }

    /// Reads who the servers are.
    async fn know(&mut self) -> Result<(), Left> {
        let lease = self.runner.home().await?;
        self.known = errand(record::identities(&lease, &self.stored.id)).await?;
        lease.done();
        Ok(())
    }

    /// To its end.
    async fn drive(mut self) -> Result<(), Left> {
        self.know().await?;
        self.claim().await?;
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
            // Whoever has failed over is told by what is done there.
            let job = Job {
                servers: self.servers(Known::System),
                ..self.job()
            };
            match Box::pin(steps::records::claim_all(&job)).await {
                Ok(()) => return Ok(()),
                Err(StepError::Replaced) => return Err(Left::Replaced),
                Err(error) => {
                    self.progress.set("problem", error.to_string());
                    self.show_now().await;
                    tokio::time::sleep(self.pause).await;
                    self.pause = (self.pause * 2).min(PAUSE.1);
                }
            }
        }
    }

    /// Starts and stops the streams as the record has it.
    async fn tend(&mut self) -> Result<(), StepError> {
        let record = &self.stored.record;
        let wanted = record.streams();
        if !self.streams.is_empty() && (!wanted || self.flips != record.flips) {
            while let Some(stream) = self.streams.last_mut() {
                // What it ended with before, it has told.
                stream.end().await?;
                self.streams.pop();
            }
        }
        if wanted && self.streams.is_empty() {
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

    fn ground(&self) -> Ground<'a> {
        Ground {
            registry: self.runner.registry,
            tools: &self.runner.tools,
            clock: self.runner.clock,
        }
    }

    /// Runs an effect, unless somebody wants something else meanwhile.
    async fn effect(&mut self, effect: Effect) -> Result<(), Left> {
        let name = format!("{effect:?}").to_lowercase();
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
        let took = super::effects::milliseconds(since(self.runner.clock, began));
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

    async fn changed(&self) -> Result<Option<Stored>, Left> {
        match self.changed_since(self.stored.version).await {
            Err(Left::Ask(_)) => Ok(None),
            changed => changed,
        }
    }

    /// The record, if it has another version.
    async fn changed_since(&self, version: i64) -> Result<Option<Stored>, Left> {
        let lease = self.runner.home().await?;
        let now = errand(record::version(&lease, &self.stored.id)).await?;
        let changed = match now {
            Some((_, token)) if token != self.stored.token => return Err(Left::Replaced),
            None => return Err(Left::Replaced),
            Some((now, _)) if now == version => None,
            Some(_) => errand(record::read(&lease, &self.stored.id)).await?,
        };
        lease.done();
        Ok(changed)
    }

    async fn watch_for(&mut self, time: Duration) -> Result<(), Left> {
        tokio::time::sleep(time).await;
        if let Some(changed) = self.changed().await? {
            self.take_over(changed);
        }
        Ok(())
    }

    fn take_over(&mut self, stored: Stored) {
        self.stored = stored;
        self.set_knobs(self.stored.knobs.clone());
    }

    /// Reads the record again.
    async fn reload(&mut self) -> Result<(), Left> {
        let lease = self.runner.home().await?;
        let stored = errand(record::read(&lease, &self.stored.id)).await?;
        lease.done();
        match stored {
            Some(stored) if stored.token == self.stored.token => {
                self.take_over(stored);
                Ok(())
            }
            Some(_) | None => Err(Left::Replaced),
        }
    }

    /// Records what came of something; of a record that somebody has changed, what comes of it now.
    async fn settle(&mut self, event: &Event, detail: &Value) -> Result<(), Left> {
        while let Some(next) = self.stored.record.after(event) {
            let name = match event {
                Event::Done(effect) => format!("{effect:?}").to_lowercase(),
                Event::Again => "failed".to_owned(),
                Event::Halt(_) => "stopped".to_owned(),
                Event::Lost(_) => "lost".to_owned(),
                Event::FailedOver(_) => "failed over".to_owned(),
                Event::TakenOver => "undone by another runner".to_owned(),
            };
            if self.swap(&next, &name, detail).await? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Changes the record; false: somebody else has, and it was read again.
    async fn swap(&mut self, record: &Record, event: &str, detail: &Value) -> Result<bool, Left> {
        let lease = self.runner.home().await?;
        let swapped = errand(record::swap(&lease, &self.stored, record, event, detail)).await;
        match swapped {
            Ok(true) => {
                lease.done();
                self.stored.record = record.clone();
                self.stored.version += 1;
                self.tell();
                Ok(true)
            }
            Ok(false) => {
                lease.done();
                self.reload().await?;
                Ok(false)
            }
            // It may have been changed: what is recorded tells.
            Err(_) => {
                self.reload().await?;
                Ok(false)
            }
        }
    }

    async fn fail(&mut self, error: StepError) -> Result<(), Left> {
        let (event, told) = match error {
            StepError::Replaced => return Err(Left::Replaced),
            StepError::Again {
                ref what,
                ref problem,
            } => (Event::Again, format!("{what}: {problem}")),
            StepError::Halt { what, remedy } => {
                let told = what.clone();
                let then = Then::GoOn;
                (Event::Halt(Stopped { what, remedy, then }), told)
            }
            StepError::Lost { what } => (Event::Lost(what.clone()), what),
            StepError::FailedOver { what } => (Event::FailedOver(what.clone()), what),
        };
        let (id, state) = (&self.stored.id, word(&self.stored.record.state));
        tracing::warn!(reshard = id, state, problem = told, "a step failed");
        self.progress.set("problem", told.as_str());
        // Whatever it was, a commit may have happened.
        self.reload().await?;
        let attempt = self.stored.record.is_attempt();
        self.settle(&event, &json!({ "problem": told })).await?;
        self.show_now().await;
        if matches!(event, Event::Lost(_)) && self.stored.record.state == State::Prepare {
            self.streams.clear();
            return Ok(());
        }
        if self.stored.record.stopped.is_some() && !attempt {
            self.streams.clear();
            return Ok(());
        }
        if attempt && self.stored.record.step == Some(Step::Undo) {
            self.rest = Some(self.runner.clock.now() + rest(self.failed));
            let again = matches!(event, Event::Again);
            self.hindered = Some(told);
            self.failed = if again { self.failed + 1 } else { 0 };
            return Ok(());
        }
        self.watch_for(self.pause).await?;
        self.pause = (self.pause * 2).min(PAUSE.1);
        Ok(())
    }

    /// How far the streams are behind.
    fn lags(&self) {
        for stream in &self.streams {
            let lag = stream.lag();
            let name = |what: &str| format!("stream.{}.{what}", stream.source());
            self.progress.set(name("lag_bytes"), lag.bytes);
            if let Some(problem) = stream.problem() {
                self.progress.set(name("problem"), problem);
            } else {
                self.progress.set(name("problem"), Value::Null);
            }
        }
    }

    /// How the application does, at this process, since it was looked at last.
    fn application(&self) {
        let metrics = &self.runner.metrics;
        let now = self.runner.clock.now();
        let mut last = self
            .application
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if now.saturating_duration_since(last.since) < WATCHED {
            return;
        }
        let times = metrics.times(self.runner.registry.database());
        let earlier = last.times.iter().copied().chain(std::iter::repeat(0));
        let each = times.iter().zip(earlier);
        let since: Vec<u64> = each.map(|(now, then)| now.saturating_sub(then)).collect();
        let micros = times::percentile(&since, 99);
        let p99 = micros.map(|micros| super::effects::milliseconds(Duration::from_micros(micros)));
        self.progress.set("application.p99_ms", p99);
        let errors = self.runner.errors().saturating_sub(last.errors);
        self.progress.set("application.errors", errors);
        last.since = now;
        last.times = times;
    }

    /// Lets this process's own console show where it stands.
    fn tell(&self) {
        let known = self.progress.all().into_iter();
        let stored = Stored {
            progress: known.filter(|(_, value)| !value.is_null()).collect(),
            ..self.stored.clone()
        };
        let leader = Leader {
            proxy: self.runner.holder.clone(),
            address: None,
            alive: true,
        };
        self.runner.show(told::sight(&stored, Some(leader)));
    }

    /// Writes down what is shown; nothing is decided by it.
    async fn show_now(&self) {
        self.application();
        self.tell();
        let shown = async {
            let lease = self.runner.home().await?;
            let all = self.progress.all();
            let shown = all
                .into_iter()
                .filter(|(_, value)| !value.is_null())
                .collect();
            let (id, token) = (&self.stored.id, self.stored.token);
            errand(record::show(&lease, id, token, &shown)).await?;
            lease.done();
            Ok::<_, AskError>(())
        };
        drop(shown.await);
    }
}

/// How long statements go on before the next attempt, after one before which so many had failed.
fn rest(failed: u32) -> Duration {
    PAUSE
        .0
        .saturating_mul(2_u32.saturating_pow(failed))
        .min(PAUSE.1)
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
