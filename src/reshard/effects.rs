//! What a reshard does, by the name that the state machine gives it: steps on servers, changes of the map, holds.
//!
//! What must stay true: an effect may be run again from its beginning, and dropped at any time; one of an attempt that is
//! not committed ends within the time that statements may be held for; nothing is taken for done that was not seen.

use super::{
    dump::Tools,
    hold,
    job::{Direction, Job, StepError},
    record::{self, Stored},
    state::Effect,
    steps::{self, catch_up::Follower},
};
use crate::{
    catalog::ownership::Moving,
    clock::{Clock, Duration, Instant},
    failpoint,
    inspect::{AskError, at_once},
    registry::{Flip, MapNow, Record as Beside, Registry, Unflipped, errand},
};
use serde_json::{Value, json};

/// What effects work with.
#[derive(Clone, Copy, Debug)]
pub struct Ground<'a> {
    pub registry: &'a Registry,
    pub tools: &'a Tools,
    pub clock: Clock,
}

/// After how long a proxy that says nothing surely serves no keys that move.
const LAPSED: Duration = Duration::from_secs(7);
/// How long proxies that are alive have for taking the map over, before it is told that they do not.
const TAKING_OVER: Duration = Duration::from_secs(30);
/// How often proxies are looked at that have to take the map over.
const LOOK: Duration = Duration::from_millis(100);

/// How long changes that are late are waited for before a cutover is tried again.
const BROUGHT: Duration = Duration::from_secs(20);

/// How long proxies have to tell what a hold has cost them.
const TOLD: Duration = Duration::from_millis(500);

/// How often a lock is asked for that others hold, before it is told; and how long they have the table in between.
const TRIES: usize = 100;
const TURN: Duration = Duration::from_millis(50);
/// The same while statements are held.
const EAGER: Duration = Duration::from_millis(5);

impl Ground<'_> {
    /// Runs an effect to its end.
    ///
    /// # Errors
    /// [`StepError`].
    pub async fn run(
        &self,
        effect: Effect,
        job: &Job,
        stored: &Stored,
        streams: &[Follower],
    ) -> Result<(), StepError> {
        match effect {
            Effect::Prepare => Box::pin(steps::prepare::run(job, self.tools)).await,
            Effect::Announce => self.announce(job).await,
            Effect::Copy => Box::pin(steps::copy::run(job)).await,
            Effect::CatchUp => catch_up(job, streams).await,
            Effect::Verify => verify(job, streams, stored.record.round).await,
            Effect::Ready => patiently(job, Making::Ready).await,
            Effect::Hold => self.hold(job, stored, streams).await,
            Effect::Fence => {
                let fenced = within(job, "fencing", fence(job)).await;
                failpoint::reached("after_fence").await;
                fenced
            }
            Effect::Drain => within(job, "applying the fences", drain(job, streams)).await,
            Effect::Commit => within(job, "changing the map", self.commit(job, stored)).await,
            Effect::Activate => self.activate(job).await,
            Effect::Undo => self.undo(job).await,
            Effect::Reverse => self.reverse(job).await,
            Effect::Finish => self.finish(job).await,
            Effect::Abort => self.abort(job).await,
        }
    }

    /// While nothing else is done.
    ///
    /// # Errors
    /// [`StepError`].
    pub async fn idle(&self, job: &Job) -> Result<(), StepError> {
        steps::ready::advance(job).await?;
        steps::ready::same_tables(job).await?;
        steps::partitions::none_new(job).await
    }

    async fn announce(&self, job: &Job) -> Result<(), StepError> {
        self.all_reach(job).await?;
        let moving = moving(job, Owner::Before);
        self.all_know(job, &moving).await
    }

    /// Waits until every proxy has the shards that take part in its configuration: what it hears of a shard that it cannot
    /// reach would end its service.
    async fn all_reach(&self, job: &Job) -> Result<(), StepError> {
        const WHAT: &str = "asking which proxies reach the shards";
        let (shards, began) = (job.plan.shards(), self.clock.now());
        loop {
            let unable = self.registry.unable(&shards, LAPSED).await;
            let unable = unable.map_err(|error| again(WHAT, &error))?;
            if unable.is_empty() {
                job.progress.set("waiting_for", Value::Null);
                return Ok(());
            }
            let each = unable.iter().map(|it| {
                let found = steps::preflight::unable(it);
                format!("{}; {}", found.what, found.fix)
            });
            let problem = each.collect::<Vec<_>>().join("; ");
            if since(self.clock, began) > TAKING_OVER {
                let what = WHAT.to_owned();
                return Err(StepError::Again { what, problem });
            }
            job.progress.set("waiting_for", problem);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Says what is on two shards, and waits until every proxy has heard it.
    async fn all_know(&self, job: &Job, moving: &[Moving]) -> Result<(), StepError> {
        const WHAT: &str = "telling the proxies what is on two shards";
        let told = self
            .registry
            .set_moving(&job.id, moving, job.token)
            .await
            .map_err(|error| of_map(WHAT, error))?;
        let began = self.clock.now();
        loop {
            let late = self.late(told.announced).await?;
            if late.is_empty() {
                job.progress.set("waiting_for", Value::Null);
                return Ok(());
            }
            let late = late.join(", ");
            if since(self.clock, began) > TAKING_OVER {
                return Err(StepError::Again {
                    what: WHAT.to_owned(),
                    problem: format!(
                        "these are alive and have not taken the map over within {TAKING_OVER:?}: {late}; \
                         their logs say why, and ending them lets the reshard go on"
                    ),
                });
            }
            let waits = format!("proxies that have not taken the map over: {late}");
            job.progress.set("waiting_for", waits);
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Who has not taken a number over and may still serve by an older one.
    async fn late(&self, announced: i64) -> Result<Vec<String>, StepError> {
        const LATE: &str = "\
SELECT coalesce(address, 'local') || ' (' || incarnation || ')' FROM shardway.proxy \
WHERE coalesce(epoch, 0) < $1 AND heartbeat > clock_timestamp() - make_interval(secs => $2) ORDER BY incarnation";
        let asked = async {
            let lease = self.registry.lease(self.registry.home()).await?;
            let lapsed = LAPSED.as_secs_f64();
            let late = errand(async { Ok(lease.query(LATE, &[&announced, &lapsed]).await?) });
            let rows = late.await?;
            lease.done();
            Ok::<_, AskError>(rows.iter().map(|row| row.get(0)).collect())
        };
        asked
            .await
            .map_err(|error| again("asking which proxies there are", &error))
    }

    async fn hold(
        &self,
        job: &Job,
        stored: &Stored,
        streams: &[Follower],
    ) -> Result<(), StepError> {
        const WHAT: &str = "holding statements back";
        let (drain, most) = {
            let knobs = job.knobs.borrow();
            (knobs.drain, knobs.hold)
        };
        let rehearsed = self.clock.now();
        // What is being applied has locks that would be in the way, too.
        up_to_date(job, streams).await?;
        Box::pin(steps::rehearse::run(job)).await?;
        up_to_date(job, streams).await?;
        let answers = self.registry.hear_answers().await;
        let answers = answers.map_err(|error| again(WHAT, &error))?;
        let took = milliseconds(since(self.clock, rehearsed));
        job.progress.set("cutover.rehearse_ms", took);
        let began = self.clock.now();
        let held = errand(hold::begin(&answers, job, stored.version, most)).await;
        if !held.map_err(|error| again(WHAT, &error))? {
            return Err(changed(WHAT));
        }
        failpoint::reached("after_hold").await;
        let waited = hold::drained(&answers, job, LAPSED, drain).await;
        let took = milliseconds(since(self.clock, began));
        job.progress.set("cutover.hold_ms", took);
        let problem = match waited.map_err(|error| again(WHAT, &error))? {
            hold::Drained::Yes => return Ok(()),
            hold::Drained::No { waiting_for } => {
                job.progress
                    .set("cutover.waiting_for", waiting_for.as_str());
                format!(
                    "not drained within {drain:?}: {waiting_for}; end them (SHOW CLIENTS there says who they are), or let \
                     cutovers wait for them: shardway reshard set drain_ms=... hold_ms=..."
                )
            }
            hold::Drained::Released => "the deadline has passed".to_owned(),
        };
        // Nothing is fenced yet: they need not wait for the attempt to be undone.
        let released = errand(hold::release(&answers, &job.id, job.attempt)).await;
        released.map_err(|error| again(WHAT, &error))?;
        Err(StepError::Again {
            what: WHAT.to_owned(),
            problem,
        })
    }

    /// New owners, with the record of it, while the attempt still holds.
    async fn commit(&self, job: &Job, stored: &Stored) -> Result<(), StepError> {
        const WHAT: &str = "changing the map";
        let now = self.registry.read_map().await;
        let now = now.map_err(|error| of_map(WHAT, error))?;
        let joins = match job.direction {
            Direction::Forward => job.plan.joins.as_slice(),
            Direction::Back => &[],
        };
        // Only of these keys, whatever became of others meanwhile.
        let after = now.content.owners.apply(&job.moves());
        let after = after.map_err(|problem| StepError::Halt {
            what: format!("the map is not the one that this was planned for: {problem}"),
            remedy: "abort it and plan it again".to_owned(),
        })?;
        let flip = Flip {
            workflow: job.id.clone(),
            attempt: job.attempt,
            token: job.token,
            expected: now.epoch,
            after,
            doubled: moving(job, Owner::After),
            joins: joins.to_vec(),
        };
        let detail = json!({ "attempt": job.attempt, "epoch": now.epoch + 1 });
        let write = record::swapping(stored, &stored.record.committed(), "committed", &detail);
        let beside = Beside {
            sql: write.sql.to_owned(),
            values: write.values,
            rows: Some(1),
        };
        let flipped = self.registry.flip(&flip, &[beside]).await;
        flipped.map_err(|error| of_map(WHAT, error))?;
        failpoint::reached("after_flip").await;
        Ok(())
    }

    /// Shows what the cutover has cost statements, once the proxies have told it.
    async fn tell(&self, job: &Job, patience: Duration) {
        let until = self.clock.now() + patience;
        let asked = async {
            let lease = self.registry.lease(self.registry.home()).await?;
            let told = loop {
                let told = hold::told(&lease, job, LAPSED).await?;
                let missing = told.is_some_and(|told| told.missing > 0);
                if !missing || self.clock.now() >= until {
                    break told;
                }
                tokio::time::sleep(EAGER).await;
            };
            lease.done();
            Ok(told)
        };
        // Only shown: what happened has happened.
        if let Ok(Some(told)) = errand(asked).await {
            let set = |name: &str, value: Value| job.progress.set(format!("cutover.{name}"), value);
            set("attempts", told.attempts.into());
            set("pause_ms", rounded(told.took).into());
            set("pauses_ms", rounded(told.spent).into());
            set("held", told.statements.into());
            set("failed", told.failed.into());
            set("longest_ms", rounded(told.longest).into());
            set("waited_ms", rounded(told.waited).into());
        }
    }

    async fn activate(&self, job: &Job) -> Result<(), StepError> {
        let now = self.registry.read_map().await;
        let now = now.map_err(|error| of_map("activating the new owners", error))?;
        activate(job, &now).await?;
        failpoint::reached("after_activate").await;
        self.at_home("letting statements go on", async |lease| {
            hold::settled(lease, &job.id, job.attempt).await
        })
        .await?;
        self.tell(job, TOLD).await;
        // Proxies do it too, a little later.
        drop(self.registry.copy_map(&job.id).await);
        Ok(())
    }

    async fn undo(&self, job: &Job) -> Result<(), StepError> {
        Box::pin(steps::unfence::run(job)).await?;
        self.at_home("releasing statements", async |lease| {
            hold::release(lease, &job.id, job.attempt).await
        })
        .await?;
        self.tell(job, Duration::ZERO).await;
        Ok(())
    }

    async fn reverse(&self, job: &Job) -> Result<(), StepError> {
        // The former owners have what was theirs: seen from the next cutover, its destinations.
        self.all_know(job, &moving(job, Owner::Before)).await?;
        failpoint::reached("before_reverse").await;
        patiently(job, Making::Reverse).await
    }

    async fn finish(&self, job: &Job) -> Result<(), StepError> {
        let now = self.registry.read_map().await;
        let now = now.map_err(|error| of_map("finishing it", error))?;
        owned(job, &now, Direction::Forward)?;
        let old = moving(job, Owner::Before);
        self.all_know(job, &old).await?;
        Box::pin(steps::finish::run(job)).await?;
        let left = self.leave(job).await?;
        // Whoever has a snapshot of before reads by what is said now.
        Box::pin(steps::readers::unseen(job)).await?;
        self.all_know(job, &[]).await?;
        for shard in &left {
            Box::pin(steps::finish::empty(job, shard)).await?;
        }
        self.forget_hold(job).await
    }

    /// Shards that gave everything away serve no more, unless something else lives there; which. Nobody has read their keys
    /// since the cutover, but reference tables were read and written there until now.
    async fn leave(&self, job: &Job) -> Result<Vec<String>, StepError> {
        const WHAT: &str = "letting shards go that own nothing any more";
        let now = self.registry.read_map().await;
        let now = now.map_err(|error| of_map(WHAT, error))?;
        let owners = now.content.owners.shards();
        let mut leaving = Vec::new();
        for source in job.plan.moves.iter().map(|it| &it.from) {
            let stays = owners.contains(source)
                || leaving.contains(source)
                || self.registry.has_more(source)
                || steps::finish::has_tables(job, source).await?;
            if !stays {
                leaving.push(source.clone());
            }
        }
        self.leave_map(job, &leaving, WHAT).await?;
        // What the map says counts.
        let now = self.registry.read_map().await;
        let members = now.map_err(|error| of_map(WHAT, error))?.content.members;
        leaving.retain(|shard| !members.contains(shard));
        Ok(leaving)
    }

    /// These serve no more, unless they own keys: once nobody reads there any more what others write without them then.
    async fn leave_map(&self, job: &Job, leaving: &[String], what: &str) -> Result<(), StepError> {
        let now = self.registry.read_map().await;
        let now = now.map_err(|error| of_map(what, error))?.content;
        let owners = now.owners.shards();
        // One that is gone for good has no readers.
        let there = |shard: &String| job.servers.contains_key(shard);
        let serving = |shard: &&String| {
            now.members.contains(*shard) && !owners.contains(*shard) && there(shard)
        };
        let serving: Vec<String> = leaving.iter().filter(serving).cloned().collect();
        Box::pin(steps::readers::unread(job, &serving)).await?;
        let left = self.registry.leave_map(&job.id, leaving, job.token).await;
        left.map_err(|error| of_map(what, error))?;
        Ok(())
    }

    async fn abort(&self, job: &Job) -> Result<(), StepError> {
        // Whoever else cannot be reached.
        Box::pin(steps::abort::unkept(job)).await;
        let now = self.registry.read_map().await;
        let now = now.map_err(|error| of_map("giving it up", error))?;
        owned(job, &now, Direction::Back)?;
        let doubled = now.content.moving;
        let doubled: Vec<_> = doubled
            .into_iter()
            .filter(|it| it.workflow == job.id)
            .collect();
        // After a rollback a shard that had joined serves reference tables, which are about to go. Nobody begins to read
        // there who knows of the rollback.
        self.all_know(job, &doubled).await?;
        steps::activate::open_reference(job).await?;
        self.leave_map(job, &job.plan.joins, "giving it up").await?;
        // Nobody writes by an older map when the guards go.
        self.all_know(job, &doubled).await?;
        Box::pin(steps::abort::run(job)).await?;
        Box::pin(steps::readers::unseen(job)).await?;
        self.all_know(job, &[]).await?;
        self.forget_hold(job).await
    }

    async fn forget_hold(&self, job: &Job) -> Result<(), StepError> {
        self.at_home("forgetting holds", async |lease| {
            hold::forget(lease, &job.id).await
        })
        .await
    }

    async fn at_home(
        &self,
        what: &str,
        does: impl AsyncFnOnce(&crate::registry::Lease) -> Result<(), AskError>,
    ) -> Result<(), StepError> {
        let done = async {
            let lease = self.registry.lease(self.registry.home()).await?;
            errand(does(&lease)).await?;
            lease.done();
            Ok::<_, AskError>(())
        };
        done.await.map_err(|error| again(what, &error))
    }
}

/// Again and again for a while: locks on busy tables are asked for shortly, so as to keep no writer waiting.
async fn patiently(job: &Job, making: Making) -> Result<(), StepError> {
    let mut tries = 0;
    loop {
        let made = match making {
            Making::Ready => Box::pin(steps::ready::run(job)).await,
            Making::Reverse => Box::pin(steps::reverse::run(job)).await,
        };
        match made {
            Err(StepError::Again { what, problem }) if tries < TRIES => {
                tries += 1;
                job.progress
                    .set("waiting_for", format!("{what}: {problem}"));
                tokio::time::sleep(TURN).await;
                job.progress.set("waiting_for", Value::Null);
            }
            ended => return ended,
        }
    }
}

/// What takes locks on busy tables.
#[derive(Clone, Copy, Debug)]
enum Making {
    Ready,
    Reverse,
}

/// Until the time is over for which statements are held.
async fn fence(job: &Job) -> Result<(), StepError> {
    loop {
        match Box::pin(steps::fence::run(job)).await {
            Err(StepError::Again { what, problem }) => {
                job.progress
                    .set("cutover.waiting_for", format!("{what}: {problem}"));
                tokio::time::sleep(EAGER).await;
            }
            ended => return ended,
        }
    }
}

/// While statements are held, which need what it makes.
async fn activate(job: &Job, map: &MapNow) -> Result<(), StepError> {
    let mut tries = 0;
    loop {
        match Box::pin(steps::activate::run(job, map)).await {
            Err(StepError::Again { .. }) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(EAGER).await;
            }
            ended => return ended,
        }
    }
}

async fn catch_up(job: &Job, streams: &[Follower]) -> Result<(), StepError> {
    all(streams.iter().map(Follower::consistent).collect()).await?;
    failpoint::reached("after_consistent").await;
    Box::pin(steps::keys::rest(job)).await
}

/// The destinations have all that the sources ever committed; then the way back begins.
/// Waits, before statements are held, until changes take no longer from their source to all destinations than a fence may:
/// a stream that has just begun reads what its slot has kept first. Not for ever, as between attempts the WAL that sources
/// keep is looked at.
async fn up_to_date(job: &Job, streams: &[Follower]) -> Result<(), StepError> {
    const WHAT: &str = "seeing how late changes are";
    if !all_followed(job, streams) {
        return Err(changed(WHAT));
    }
    let awaited = tokio::time::timeout(BROUGHT, in_time(job, streams)).await;
    awaited.unwrap_or_else(|_| {
        Err(StepError::Again {
            what: WHAT.to_owned(),
            problem: format!("after {BROUGHT:?} there are still {}", behind(streams)),
        })
    })
}

async fn in_time(job: &Job, streams: &[Follower]) -> Result<(), StepError> {
    loop {
        let mut now = Box::pin(at_once(streams.iter().map(Follower::now).collect()));
        let took = loop {
            match tokio::time::timeout(LOOK, &mut now).await {
                Ok(took) => break took.into_iter().collect::<Result<Vec<_>, _>>()?,
                Err(_late) => job.progress.set("waiting_for", behind(streams)),
            }
        };
        // Half of it, as they are not always equally fast.
        let most = job.knobs.borrow().step() / 2;
        if took.iter().all(|took| *took <= most) {
            job.progress.set("waiting_for", Value::Null);
            return Ok(());
        }
        let took = took.into_iter().max().unwrap_or_default();
        let waits = format!(
            "changes to be applied faster: they take {} ms, and a cutover may wait {} ms for them (hold_ms, lock_ms)",
            took.as_millis(),
            most.as_millis()
        );
        job.progress.set("waiting_for", waits);
        tokio::time::sleep(LOOK).await;
    }
}

fn behind(streams: &[Follower]) -> String {
    let late = streams.iter().map(|it| {
        let (source, lag) = (it.source(), it.lag().millis);
        match (it.problem(), lag) {
            (Some(problem), _) => format!("{source}: {problem}"),
            (None, u64::MAX) => format!("{source} is read from where its slot begins"),
            (None, lag) => format!("{source} is {lag} ms behind"),
        }
    });
    let late: Vec<String> = late.collect();
    format!("changes to be applied: {}", late.join(", "))
}

fn all_followed(job: &Job, streams: &[Follower]) -> bool {
    let followed = |name: &str| streams.iter().any(|it| it.source() == name);
    job.sources().iter().all(|it| followed(&it.name))
}

async fn drain(job: &Job, streams: &[Follower]) -> Result<(), StepError> {
    if !all_followed(job, streams) {
        return Err(changed("applying the fences"));
    }
    all(streams.iter().map(|it| it.fenced(job.attempt)).collect()).await?;
    failpoint::reached("after_drain").await;
    Box::pin(steps::turn::run(job)).await
}

async fn all(each: Vec<impl Future<Output = Result<(), StepError>>>) -> Result<(), StepError> {
    at_once(each).await.into_iter().collect()
}

/// While statements are held, and long enough before they are let go that what was done can be undone: a guard that is
/// still there then refuses them.
async fn within(
    job: &Job,
    what: &str,
    task: impl Future<Output = Result<(), StepError>>,
) -> Result<(), StepError> {
    let most = job.knobs.borrow().step();
    let done = tokio::time::timeout(most, task).await;
    done.unwrap_or_else(|_| {
        Err(StepError::Again {
            what: what.to_owned(),
            problem: format!("not done within {most:?}"),
        })
    })
}

/// Whose rows are on two shards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// Those that get keys in the job's direction have them already.
    Before,
    /// Those that gave keys still have them.
    After,
}

fn moving(job: &Job, owner: Owner) -> Vec<Moving> {
    let moves = job.moves().into_iter();
    let doubled = moves.map(|it| Moving {
        workflow: job.id.clone(),
        group: it.group,
        keys: it.keys,
        shard: match owner {
            Owner::Before => it.to,
            Owner::After => it.from,
        },
    });
    doubled.collect()
}

/// With two places.
fn rounded(figure: f64) -> f64 {
    (figure * 100.0).round() / 100.0
}

/// Milliseconds with two places.
#[must_use]
pub fn milliseconds(took: Duration) -> f64 {
    rounded(took.as_secs_f64() * 1_000.0)
}

/// Since then.
#[must_use]
pub fn since(clock: Clock, then: Instant) -> Duration {
    clock.now().saturating_duration_since(then)
}

fn again(what: &str, error: &AskError) -> StepError {
    StepError::Again {
        what: what.to_owned(),
        problem: error.to_string(),
    }
}

fn changed(what: &str) -> StepError {
    StepError::Again {
        what: what.to_owned(),
        problem: "the reshard was changed meanwhile".to_owned(),
    }
}

/// That the map says of the keys what is about to be done by it: the only rows would go else.
fn owned(job: &Job, now: &MapNow, way: Direction) -> Result<(), StepError> {
    let went = job.plan.went(&now.content.owners);
    if went.is_none_or(|went| went == way) {
        return Ok(());
    }
    let whose = match way {
        Direction::Forward => "former",
        Direction::Back => "new",
    };
    Err(StepError::Halt {
        what: format!("map {} says that the {whose} owners own the keys", now.epoch),
        remedy: "restart the proxy that leads it, and resume it: whoever takes it over asks all shards again; SHOW MAP has the \
                 owners"
            .to_owned(),
    })
}

fn of_map(what: &str, error: Unflipped) -> StepError {
    match error {
        Unflipped::Replaced => StepError::Replaced,
        Unflipped::Ask(_)
        | Unflipped::NoMap
        | Unflipped::Changed { .. }
        | Unflipped::NotHeld
        | Unflipped::Record { .. } => StepError::Again {
            what: what.to_owned(),
            problem: error.to_string(),
        },
    }
}

async fn verify(job: &Job, streams: &[Follower], round: i32) -> Result<(), StepError> {
    let verdict = Box::pin(steps::verify::run(job, &streams, round)).await?;
    job.progress.set("verify.rows", verdict.rows);
    job.progress.set("verify.different", verdict.different);
    if verdict.is_clean() {
        return Ok(());
    }
    let found = verdict.found.join("; ");
    Err(StepError::Halt {
        what: format!("{} rows are not alike on both sides: {found}", verdict.different),
        remedy: "find out who else writes to the destinations; resume compares once more, abort gives it up".to_owned(),
    })
}
