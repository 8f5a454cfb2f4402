//! verify: every row that moved is the same on its source and on its destination, no other is there, and none is on a shard
//! that does not own it; tables and sequences are alike.
//!
//! Tables are compared in ranges of their keys, as many in one pair of snapshots as fit into [`Knobs::compare`]; what was
//! compared is recorded range by range, so that a run that was interrupted goes on with the next. A range that differs is
//! compared once more in later snapshots before it counts.
//!
//! What must stay true: nothing counts as compared that was not recorded in this round; a difference that lasts closes the
//! gate, and the next round looks at everything anew.
//!
//! [`Knobs::compare`]: crate::reshard::job::Knobs::compare

mod moment;
mod ranges;
mod records;
mod strays;

use super::{
    asking::About as _,
    catch_up::{Follower, Paused},
    schema, sequences,
};
use crate::{
    clock::{Clock, Duration, Instant},
    replication::chunks::all_of,
    reshard::{
        flows::Flow,
        job::{Job, StepError},
        servers::Server,
        verify::{
            compare::{Compared, Found, Kind, Side, compare},
            form::{Form, Majors},
        },
    },
    wire::replication::Lsn,
};
use deadpool_postgres::Client;
use moment::Sides;
use ranges::Range;
use std::collections::VecDeque;

pub use moment::Halts;

impl Halts for &[Follower] {
    type Halted = Paused;

    async fn halt(&self, source: &str) -> Result<Paused, StepError> {
        following(self, source)?.pause().await
    }

    async fn go_to(&self, source: &str, halted: Paused, lsn: Lsn) -> Result<Paused, StepError> {
        following(self, source)?.advance(halted, lsn).await
    }
}

fn following<'a>(followers: &'a [Follower], source: &str) -> Result<&'a Follower, StepError> {
    let follower = followers.iter().find(|it| it.source() == source);
    follower.ok_or_else(|| StepError::Again {
        what: format!("comparing what went from {source}"),
        problem: "it is not followed".to_owned(),
    })
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub rows: u64,
    pub different: u64,
    /// The first of them, in words: table, key, and what.
    pub found: Vec<String>,
}

/// How many of them are told in words.
const TOLD: usize = 50;

impl Verdict {
    /// Whether the destinations may take over.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.different == 0
    }

    fn add(&mut self, unit: &Unit<'_>, compared: &Compared) {
        self.rows += compared.rows;
        self.different += compared.different;
        let room = TOLD.saturating_sub(self.found.len());
        let told = compared.found.iter().take(room);
        self.found.extend(told.map(|found| words(unit, found)));
    }
}

/// Rows of a table that went from one shard to another.
struct Unit<'a> {
    flow: Flow<'a>,
    source: &'a Server,
    destination: &'a Server,
    condition: String,
}

impl Unit<'_> {
    /// Source, destination, table.
    fn names(&self) -> (&str, &str, String) {
        (
            &self.source.name,
            &self.destination.name,
            self.flow.table.plain(),
        )
    }
}

/// Compares everything that this round has not compared yet.
///
/// # Errors
/// [`StepError::Halt`] where tables or sequences are not alike, rows are where they do not belong, or cannot be compared;
/// [`StepError::Again`] otherwise.
pub async fn run<H: Halts>(job: &Job, halts: &H, round: i32) -> Result<Verdict, StepError> {
    let home = server(job, &job.home)?;
    let home = home.sql().await.about(&format!("asking {}", home.name))?;
    let mut pace = Pace::new(job);
    sequences::alike(job).await?;
    let mut verdict = Verdict::default();
    for flow in job.flows() {
        let unit = Unit {
            source: server(job, &flow.source)?,
            destination: server(job, &flow.destination)?,
            condition: flow.sql(job)?,
            flow,
        };
        table(job, halts, (&home, &unit), (&mut pace, round), &mut verdict).await?;
    }
    strays::none(job, &home, &mut pace, round).await?;
    Ok(verdict)
}

/// Whether a range differed before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    First,
    Again,
}

async fn table<H: Halts>(
    job: &Job,
    halts: &H,
    (home, unit): (&Client, &Unit<'_>),
    (pace, round): (&mut Pace<'_>, i32),
    verdict: &mut Verdict,
) -> Result<(), StepError> {
    let (source, destination, table) = unit.names();
    let what = format!("comparing {table} on {source} and {destination}");
    let mut sides = Sides::open(job, unit).await?;
    let majors = alike(job, unit, &sides).await?;
    let form = Form::of(unit.flow.table, majors);
    let about = records::About {
        source,
        destination,
        table: table.clone(),
        round,
    };
    let mut figures = Figures::new(job, format!("verify.{table}.{source}.{destination}"));
    let known = about.known(home, job).await?;
    let all = ranges::of(job, home, unit, &sides.here, &sides.there).await?;
    let mut left: VecDeque<(Range, Look)> = VecDeque::new();
    for range in all {
        match known.get(&range.part) {
            Some(compared) => {
                verdict.add(unit, compared);
                figures.add(compared);
            }
            None => left.push_back((range, Look::First)),
        }
    }
    while !left.is_empty() {
        job.unthrottled().await;
        let stood = sides.begin(job, halts, source).await?;
        pace.stood(stood);
        let begun = Clock.now();
        let mut again = Vec::new();
        while let Some((range, look)) = left.pop_front() {
            let side = |client, part: &str| (client, all_of(&[&unit.condition, part]));
            let (here, there) = (
                side(&sides.here, &range.here),
                side(&sides.there, &range.there),
            );
            let compared = compare(&form, of(&here), of(&there)).await.about(&what)?;
            if compared.different > 0 && look == Look::First {
                again.push((range, Look::Again));
            } else {
                about.record(home, job, range.part, &compared).await?;
                verdict.add(unit, &compared);
                figures.add(&compared);
            }
            pace.rows(compared.rows).await;
            if Pace::rests(job, begun) {
                break;
            }
        }
        sides.end().await?;
        left.extend(again);
    }
    Ok(())
}

fn of<'a>((client, condition): &'a (&'a Client, String)) -> Side<'a> {
    Side { client, condition }
}

/// What is shown of a table.
struct Figures<'a> {
    job: &'a Job,
    name: String,
    rows: u64,
    different: u64,
}

impl<'a> Figures<'a> {
    fn new(job: &'a Job, name: String) -> Self {
        Self {
            job,
            name,
            rows: 0,
            different: 0,
        }
    }

    fn add(&mut self, compared: &Compared) {
        self.rows += compared.rows;
        self.different += compared.different;
        let set = |what: &str, value: u64| {
            self.job
                .progress
                .set(format!("{}.{what}", self.name), value);
        };
        set("rows", self.rows);
        set("different", self.different);
    }
}

/// How fast it goes: no faster than the operator lets it.
struct Pace<'a> {
    job: &'a Job,
    begun: Instant,
    rows: u64,
    /// When nothing was left to wait for.
    due: Instant,
    longest: Duration,
}

impl<'a> Pace<'a> {
    fn new(job: &'a Job) -> Self {
        let now = Clock.now();
        Self {
            job,
            begun: now,
            rows: 0,
            due: now,
            longest: Duration::ZERO,
        }
    }

    /// Whether snapshots that were taken then are to be given back.
    fn rests(job: &Job, begun: Instant) -> bool {
        let knobs = job.knobs.borrow();
        knobs.copies == 0 || Clock.now().duration_since(begun) >= knobs.compare
    }

    /// Rows were compared: waits until more may be.
    async fn rows(&mut self, rows: u64) {
        let now = Clock.now();
        self.rows += rows;
        let millis = now.duration_since(self.begun).as_millis();
        let millis = u64::try_from(millis).unwrap_or(u64::MAX).max(1);
        let rate = self.rows.saturating_mul(1_000) / millis;
        self.job.progress.set("verify.rows_per_second", rate);
        let most = self.job.knobs.borrow().rows_per_second;
        if most == 0 {
            self.due = now;
            return;
        }
        #[expect(clippy::cast_precision_loss, reason = "a pause, not an account")]
        let takes = Duration::from_secs_f64(rows as f64 / most as f64);
        self.due = self.due.max(now) + takes;
        tokio::time::sleep(self.due.saturating_duration_since(now)).await;
    }

    /// Changes stood still for so long.
    fn stood(&mut self, stood: Duration) {
        self.longest = self.longest.max(stood);
        let longest = crate::reshard::effects::milliseconds(self.longest);
        self.job.progress.set("verify.stall_ms", longest);
    }
}

/// How long tables may be unlike because a change of them is under way, and how often they are looked at meanwhile.
const CHANGING: Duration = Duration::from_secs(2);
const STEP: Duration = Duration::from_millis(100);

const MAJOR: &str = "SELECT current_setting('server_version_num')::int / 10000";

/// That both sides have the table alike; whether hashes mean the same on both.
async fn alike(job: &Job, unit: &Unit<'_>, sides: &Sides) -> Result<Majors, StepError> {
    let (source, destination, table) = unit.names();
    let shape = async |client| {
        let shape = schema::shape(client, unit.flow.table).await?;
        let major = client.query_one(MAJOR, &[]).await;
        let major: i32 = major.about(&format!("looking at {table}"))?.get(0);
        Ok::<_, StepError>((shape.unwrap_or_default(), major))
    };
    let begun = Clock.now();
    loop {
        let (here, major) = shape(&sides.here).await?;
        let (there, other) = shape(&sides.there).await?;
        let majors = if major == other {
            Majors::Same
        } else {
            Majors::Different
        };
        // On a shard that joins all of it was made by this; on others an index more or less is their owner's.
        let whole = majors == Majors::Same && job.plan.joins.iter().any(|it| it == destination);
        let Some(differs) = here.differs(&there).filter(|it| it.essential || whole) else {
            return Ok(majors);
        };
        // A schema change is committed on one shard after the other.
        if Clock.now().duration_since(begun) < CHANGING {
            tokio::time::sleep(STEP).await;
            continue;
        }
        return Err(StepError::Halt {
            what: format!(
                "table {table} is not alike: only on {source}: {}; only on {destination}: {}",
                differs.missing.join(", "),
                differs.extra.join(", ")
            ),
            remedy: "make the table the same on both, then resume; or abort".to_owned(),
        });
    }
}

fn words(unit: &Unit<'_>, found: &Found) -> String {
    let (source, destination, table) = unit.names();
    let key = &found.key;
    match &found.what {
        Kind::Missing => format!("{table} {key}: on {source}, missing on {destination}"),
        Kind::Extra => format!("{table} {key}: on {destination}, not on {source}"),
        Kind::Different(columns) => {
            let named = columns
                .iter()
                .filter_map(|at| unit.flow.table.columns.get(*at));
            let named: Vec<&str> = named.map(|column| column.name.as_str()).collect();
            format!(
                "{table} {key}: {source} and {destination} differ in {}",
                named.join(", ")
            )
        }
    }
}

fn server<'a>(job: &'a Job, name: &str) -> Result<&'a Server, StepError> {
    super::asking::named(job, name)
}
