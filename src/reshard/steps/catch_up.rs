//! Following a source: a task that brings what is committed there to every destination, from catching up to the end of the
//! cutover, and again the other way round once the owners have changed.
//!
//! What must stay true: each destination gets each change of its rows once, in the order of the source's commits; what is
//! lost (a connection, a server, this process) is taken up again where each destination durably is; a follower that was
//! stopped changes nothing any more.

mod beginning;

pub(super) use beginning::unless_changed;

use super::asking::{About as _, connection, remedy};
use crate::{
    clock::{Clock, Duration},
    inspect::at_once,
    replication::{
        apply::ApplyError,
        stream::{self, Ended, Lag, Stand, StreamError, Wish},
        tables::Changed,
    },
    reshard::{
        job::{Job, StepError},
        servers::Server,
    },
    wire::replication::Lsn,
};
use tokio::{sync::watch, task::JoinSet};

/// How long to wait before a lost connection is made again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long a destination has for ending what it is at, and then for saying that it has.
const ENDING: Duration = Duration::from_secs(5);

/// Between two times that its figures are shown.
const SHOWN: Duration = Duration::from_secs(1);

/// One source that is followed. Dropped, it is followed no more.
#[derive(Debug)]
pub struct Follower {
    job: Job,
    source: String,
    /// Whether it was given up before it had ended by itself.
    given_up: bool,
    wish: watch::Sender<Wish>,
    stand: watch::Receiver<Stand>,
    task: JoinSet<()>,
}

/// Nothing later is applied as long as it is there.
#[derive(Debug)]
pub struct Paused {
    /// None once another one holds it.
    wish: Option<watch::Sender<Wish>>,
}

impl Drop for Paused {
    fn drop(&mut self) {
        if let Some(wish) = &self.wish {
            wish.send_modify(|wish| wish.pause = None);
        }
    }
}

impl Paused {
    /// Goes on, as dropping it does.
    pub fn resume(self) {}

    /// Another one holds it.
    fn pass_on(mut self) {
        self.wish = None;
    }
}

impl Follower {
    /// Begins to follow a source of the job's direction. Forward, all its chunks have been copied; back, each destination
    /// has a row in `shardway.apply_progress` that tells from where on. What goes wrong, each function tells.
    #[must_use]
    pub fn start(job: &Job, source: &str) -> Self {
        let (wish, wishes) = watch::channel(Wish::default());
        let (told, stand) = watch::channel(Stand::default());
        let mut task = JoinSet::new();
        task.spawn(follow(job.clone(), source.to_owned(), wishes, told));
        Self {
            job: job.clone(),
            source: source.to_owned(),
            given_up: false,
            wish,
            stand,
            task,
        }
    }

    /// The shard that is followed.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Waits until every destination is past the consistency point: from there on its rows are those of a moment of the
    /// source, and unique indexes may be built.
    ///
    /// # Errors
    /// [`StepError::Halt`], [`StepError::Replaced`]: it is followed no more.
    pub async fn consistent(&self) -> Result<(), StepError> {
        self.until(|stand| stand.consistent).await
    }

    /// How far the destination that is farthest behind is behind the source.
    #[must_use]
    pub fn lag(&self) -> Lag {
        self.stand.borrow().lag
    }

    /// What keeps it from going on at the moment, as text for people.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        self.stand.borrow().problem.clone()
    }

    /// Waits until every destination durably has all that was committed on the source until now, and tells how long that
    /// took.
    ///
    /// # Errors
    /// As [`Follower::consistent`].
    pub async fn now(&self) -> Result<Duration, StepError> {
        let began = Clock.now();
        self.wish.send_modify(|wish| wish.beats += 1);
        let sent = |stand: &Stand| stand.beat.is_some_and(|sent| sent >= began);
        self.until(sent).await?;
        Ok(Clock.now() - began)
    }

    /// Waits until every destination durably has all that was committed on the source before the fence of an attempt.
    ///
    /// # Errors
    /// As [`Follower::consistent`].
    pub async fn fenced(&self, attempt: i32) -> Result<(), StepError> {
        self.until(|stand| stand.fence >= attempt).await
    }

    /// Waits until every destination durably has all that was committed on the source before a position.
    ///
    /// # Errors
    /// As [`Follower::consistent`].
    pub async fn applied(&self, lsn: Lsn) -> Result<(), StepError> {
        self.until(|stand| stand.applied >= lsn).await
    }

    /// Stops before the first transaction whose commit stands at or behind a position (a slot's consistent point), with all
    /// before it durable on every destination, until what it answers is dropped.
    ///
    /// # Errors
    /// As [`Follower::consistent`]; [`StepError::Again`] when it is past the position already, or when a row is under way
    /// whose values come later in the stream: the next position will do.
    pub async fn pause_at_first_commit_after(&self, lsn: Lsn) -> Result<Paused, StepError> {
        self.wish.send_modify(|wish| wish.pause = Some(lsn));
        let paused = Paused {
            wish: Some(self.wish.clone()),
        };
        let stands = |stand: &Stand| matches!(stand.paused, Some((at, _)) if at == lsn);
        self.until(stands).await?;
        let exact = matches!(self.stand.borrow().paused, Some((_, true)));
        if !exact {
            return Err(StepError::Again {
                what: format!("stopping what is applied of {} at {lsn}", self.source),
                problem: "it cannot stop exactly there".to_owned(),
            });
        }
        Ok(paused)
    }

    /// Stops before the next transaction, wherever it stands, with all before it durable on every destination. A position
    /// that is made after this one is not passed before [`Follower::advance`] reaches it.
    ///
    /// # Errors
    /// As [`Follower::pause_at_first_commit_after`].
    pub async fn pause(&self) -> Result<Paused, StepError> {
        self.pause_at_first_commit_after(Lsn(0)).await
    }

    /// Goes on from where it stands up to a position, and stops there: `paused` is what holds it from then on.
    ///
    /// # Errors
    /// As [`Follower::pause_at_first_commit_after`].
    pub async fn advance(&self, paused: Paused, lsn: Lsn) -> Result<Paused, StepError> {
        let further = self.pause_at_first_commit_after(lsn).await;
        if further.is_ok() {
            paused.pass_on();
        }
        further
    }

    /// Waits until it cannot go on any more, and tells why.
    pub async fn failed(&self) -> StepError {
        match self.until(|_stand| false).await {
            Err(error) => error,
            Ok(()) => StepError::Replaced,
        }
    }

    /// Ends it: nothing is changed on a destination any more when it answers, whatever it had ended with before.
    ///
    /// # Errors
    /// [`StepError::Again`]: a destination does not answer, so that something that was sent to it may yet be done there.
    pub async fn end(&mut self) -> Result<(), StepError> {
        self.wish.send_modify(|wish| wish.stop = true);
        let task = &mut self.task;
        let ended = async { while task.join_next().await.is_some() {} };
        if tokio::time::timeout(ENDING, ended).await.is_err() {
            self.given_up = true;
            self.task.abort_all();
            while self.task.join_next().await.is_some() {}
        }
        if self.given_up {
            let servers = self.job.destinations();
            let each = servers.iter().map(|it| self.settle(it)).collect();
            at_once(each).await.into_iter().collect::<Result<(), _>>()?;
        }
        Ok(())
    }

    /// Waits until nothing is open on a destination that was begun there: a batch has the progress locked from its first
    /// statement to its last, and nobody sends another.
    async fn settle(&self, destination: &Server) -> Result<(), StepError> {
        const SETTLED: &str =
            "SELECT FROM shardway.apply_progress WHERE workflow = $1 AND source = $2 FOR UPDATE";
        let followed = self.job.followed(&self.source);
        let what = format!("ending what is applied to shard {}", destination.name);
        let asked = async {
            let client = connection(destination).await?;
            let settled = client.query(SETTLED, &[&self.job.id, &followed]).await;
            settled.about(&what).map(drop)
        };
        let asked = tokio::time::timeout(ENDING, asked).await;
        asked.unwrap_or_else(|_| {
            Err(StepError::Again {
                what: what.clone(),
                problem: format!("it has not answered within {ENDING:?}"),
            })
        })
    }

    /// The same, and how it had ended before.
    ///
    /// # Errors
    /// [`StepError::Halt`], [`StepError::Replaced`]: it had ended before; else as [`Follower::end`].
    pub async fn stop(mut self) -> Result<(), StepError> {
        self.end().await?;
        match &self.stand.borrow().ended {
            None | Some(Ended::Stopped) => Ok(()),
            Some(ended) => Err(error_of(ended)),
        }
    }

    async fn until(&self, reached: impl Fn(&Stand) -> bool) -> Result<(), StepError> {
        let mut stand = self.stand.clone();
        let seen = stand.wait_for(|stand| stand.ended.is_some() || reached(stand));
        match seen.await {
            Ok(stand) => match &stand.ended {
                Some(ended) if !reached(&stand) => Err(error_of(ended)),
                _ => Ok(()),
            },
            Err(_gone) => Err(StepError::Again {
                what: format!("following {}", self.source),
                problem: "its task has ended".to_owned(),
            }),
        }
    }
}

/// Follows until it is to stop or somebody has to do something; what is of the moment is tried again.
async fn follow(
    job: Job,
    source: String,
    mut wishes: watch::Receiver<Wish>,
    stand: watch::Sender<Stand>,
) {
    let mut pause = PAUSE.0;
    let ended = loop {
        let before = stand.borrow().changes;
        let error = match Box::pin(once(&job, &source, &mut wishes, &stand)).await {
            Ok(()) => break Ended::Stopped,
            Err(error) => error,
        };
        let problem = match error {
            StepError::Again { what, problem } => format!("{what}: {problem}"),
            StepError::Replaced => break Ended::Replaced,
            StepError::Halt { what, remedy } => break Ended::Halt { what, remedy },
            StepError::Lost { what } => break Ended::Lost { what },
            StepError::FailedOver { what } => break Ended::FailedOver { what },
            StepError::Grown { what } => break Ended::Grown { what },
        };
        let progressed = stand.borrow().changes > before;
        pause = if progressed { PAUSE.0 } else { pause };
        job.progress
            .set(format!("stream.{source}.problem"), problem.as_str());
        stand.send_modify(|stand| {
            stand.problem = Some(problem);
            stand.paused = None;
            stand.lag = Lag::default();
        });
        let stop = wishes.wait_for(|wish| wish.stop);
        if tokio::time::timeout(pause, stop).await.is_ok() {
            break Ended::Stopped;
        }
        pause = (pause * 2).min(PAUSE.1);
    };
    stand.send_modify(|stand| stand.ended = Some(ended));
}

async fn once(
    job: &Job,
    source: &str,
    wishes: &mut watch::Receiver<Wish>,
    stand: &watch::Sender<Stand>,
) -> Result<(), StepError> {
    let setup = Box::pin(beginning::begin(job, source)).await?;
    let streamed = Box::pin(stream::run(setup, wishes, stand));
    tokio::select! {
        ended = streamed => ended.map_err(|error| step(source, error)),
        () = publish(job, source, stand.subscribe()) => Ok(()),
    }
}

/// Shows where it stands, again and again.
async fn publish(job: &Job, source: &str, mut stand: watch::Receiver<Stand>) {
    let mut every = tokio::time::interval(SHOWN);
    loop {
        every.tick().await;
        let now = stand.borrow_and_update().clone();
        let set = |name: &str, value: serde_json::Value| {
            job.progress.set(format!("stream.{source}.{name}"), value);
        };
        set("applied", now.applied.to_string().into());
        set("changes", now.changes.into());
        set("consistent", now.consistent.into());
        set("problem", now.problem.into());
        if now.lag != Lag::default() {
            set("lag_bytes", now.lag.bytes.into());
            set("lag_ms", now.lag.millis.into());
        }
    }
}

/// Whether another try may mend it.
fn step(source: &str, error: StreamError) -> StepError {
    let what = error.to_string();
    let halt = |remedy: &str| StepError::Halt {
        what: format!("following shard {source}: {what}"),
        remedy: remedy.to_owned(),
    };
    let again = || StepError::Again {
        what: format!("following shard {source}"),
        problem: what.clone(),
    };
    match &error {
        StreamError::Source(error) => beginning::lost(source, error),
        StreamError::Sql(error) => beginning::of(source, error),
        StreamError::Apply { error, .. } => match error {
            ApplyError::Replaced => StepError::Replaced,
            // It begins anew, and looks at the tables.
            ApplyError::Altered => again(),
            ApplyError::Sql(_) | ApplyError::Rows { .. }
                if !error.sqlstate().is_some_and(beginning::lasts) =>
            {
                again()
            }
            ApplyError::Sql(_) | ApplyError::Rows { .. } | ApplyError::Row { .. }
                if error.sqlstate().is_some_and(|it| it.starts_with("53")) =>
            {
                halt(remedy(error.sqlstate()))
            }
            ApplyError::Sql(_)
            | ApplyError::Rows { .. }
            | ApplyError::NotCopied(_)
            | ApplyError::Count { .. }
            | ApplyError::Contradiction { .. }
            | ApplyError::Full(_)
            | ApplyError::Row { .. }
            | ApplyError::Wipe { .. } => {
                halt("find out who else writes to the destination, or abort the reshard")
            }
        },
        StreamError::Changed {
            what: Changed::More { .. },
            ..
        } => StepError::Grown {
            what: format!("following shard {source}: {what}"),
        },
        StreamError::Changed { .. } | StreamError::Emptied(_) | StreamError::Key(_) => {
            halt("abort the reshard and start it again, with the table as it is to be")
        }
        StreamError::Form(_) | StreamError::Full(_) => halt("abort the reshard"),
        StreamError::Task => again(),
    }
}

fn error_of(ended: &Ended) -> StepError {
    match ended {
        Ended::Stopped => StepError::Again {
            what: "following a source".to_owned(),
            problem: "it was stopped".to_owned(),
        },
        Ended::Replaced => StepError::Replaced,
        Ended::Halt { what, remedy } => StepError::Halt {
            what: what.clone(),
            remedy: remedy.clone(),
        },
        Ended::Lost { what } => StepError::Lost { what: what.clone() },
        Ended::FailedOver { what } => StepError::FailedOver { what: what.clone() },
        Ended::Grown { what } => StepError::Grown { what: what.clone() },
    }
}
