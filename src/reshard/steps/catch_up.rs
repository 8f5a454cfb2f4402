//! Following a source: a task that brings what is committed there to every destination, from catching up to the end of the
//! cutover, and again the other way round once the owners have changed.
//!
//! What must stay true: each destination gets each change of its rows once, in the order of the source's commits; what is
//! lost (a connection, a server, this process) is taken up again where each destination durably is; a follower that was
//! stopped changes nothing any more.

use crate::{
    clock::{Clock, Duration},
    replication::stream::{Ended, Lag, Stand, Wish},
    reshard::job::{Job, StepError},
    wire::replication::Lsn,
};
use tokio::{sync::watch, task::JoinSet};

/// How long to wait before a lost connection is made again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// One source that is followed. Dropped, it is followed no more.
#[derive(Debug)]
pub struct Follower {
    source: String,
    wish: watch::Sender<Wish>,
    stand: watch::Receiver<Stand>,
    task: JoinSet<()>,
}

/// Nothing later is applied as long as it is there.
#[derive(Debug)]
pub struct Paused {
    wish: watch::Sender<Wish>,
}

impl Drop for Paused {
    fn drop(&mut self) {
        self.wish.send_modify(|wish| wish.pause = None);
    }
}

impl Paused {
    /// Goes on, as dropping it does.
    pub fn resume(self) {}
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
            source: source.to_owned(),
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
            wish: self.wish.clone(),
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

    /// Waits until it cannot go on any more, and tells why.
    pub async fn failed(&self) -> StepError {
        match self.until(|_stand| false).await {
            Err(error) => error,
            Ok(()) => StepError::Replaced,
        }
    }

    /// Ends it: nothing is changed on a destination any more when it answers.
    ///
    /// # Errors
    /// [`StepError::Halt`], [`StepError::Replaced`]: it had ended before.
    pub async fn stop(mut self) -> Result<(), StepError> {
        self.wish.send_modify(|wish| wish.stop = true);
        while self.task.join_next().await.is_some() {}
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
    }
}
