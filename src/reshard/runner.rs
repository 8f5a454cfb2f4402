//! Runs the reshards of a database, while this process has the lead.
//!
//! What must stay true: nothing is done for a reshard without the lead, and everything stops when it is lost; nobody leads
//! whose configuration lacks a shard that takes part.

use super::{
    dump::Tools,
    effects::since,
    leader,
    record::{self, Stored},
    run::Run,
    servers::Server,
    told,
};
use crate::{
    clock::{Clock, Duration, Instant},
    inspect::AskError,
    metrics::{Metrics, reshards::Sight},
    registry::{Lease, Registry, errand},
};
use std::{collections::BTreeMap, sync::Arc};

/// How often a process that does not lead looks for something to run.
const IDLE: Duration = Duration::from_secs(2);

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

/// What a process remembers between two looks.
#[derive(Debug, Default)]
struct Looked {
    /// Whether the newest reshard was looked at that is over.
    back: bool,
    /// Of which shard it was told that the configuration lacks it.
    lacks: Option<String>,
}

/// Why a run is not gone on with by this process.
#[derive(Debug)]
pub(super) enum Left {
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
        let (mut looked, mut told) = (Looked::default(), None);
        loop {
            let problem = self.once(&mut looked).await.err();
            self.log(problem, &mut told);
            tokio::time::sleep(IDLE).await;
        }
    }

    /// Each change once: what is looked at every other second would fill a log.
    fn log(&self, problem: Option<AskError>, told: &mut Option<String>) {
        let (database, problem) = (self.registry.database(), problem.map(|it| it.to_string()));
        match (&problem, &told) {
            (Some(problem), before) if before.as_ref() != Some(problem) => {
                tracing::warn!(
                    database,
                    problem,
                    "cannot look for reshards to run on the home shard"
                );
            }
            (None, Some(_)) => tracing::info!(database, "looks for reshards to run again"),
            (_, _) => {}
        }
        *told = problem;
    }

    /// Leads as long as there is something to run, if nobody else does.
    async fn once(&self, looked: &mut Looked) -> Result<(), AskError> {
        if !self.registry.is_known() {
            return Ok(());
        }
        let lease = self.home().await?;
        let unfinished = errand(record::unfinished(&lease)).await?;
        self.seen(&lease, unfinished.first(), looked).await?;
        self.looked();
        let Some(first) = unfinished.first() else {
            lease.done();
            return Ok(());
        };
        if self.lacks(first, looked) {
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
        looked: &mut Looked,
    ) -> Result<(), AskError> {
        match unfinished {
            Some(stored) => {
                let leader = errand(record::leader(lease)).await?;
                self.show(told::sight(stored, leader));
                looked.back = false;
            }
            None if !looked.back => {
                let newest = errand(record::all(lease)).await?.into_iter().next();
                if let Some(stored) = newest {
                    self.show(told::sight(&stored, None));
                }
                looked.back = true;
            }
            None => {}
        }
        Ok(())
    }

    /// Whether a shard takes part that this process does not know; said once.
    fn lacks(&self, stored: &Stored, looked: &mut Looked) -> bool {
        let lacks = self.lacking(stored);
        if let Some(shard) = &lacks
            && looked.lacks != lacks
        {
            tracing::warn!(
                database = self.registry.database(),
                reshard = stored.id,
                shard,
                "the configuration of this proxy lacks a shard that takes part in the reshard: it cannot lead it"
            );
        }
        looked.lacks = lacks;
        looked.lacks.is_some()
    }

    fn lacking(&self, stored: &Stored) -> Option<String> {
        stored.plan.lacks(&self.servers, &stored.without())
    }

    /// Errors that clients were told: by servers, and by this process because of keys that move.
    pub(super) fn errors(&self) -> u64 {
        let database = self.registry.database();
        self.metrics.moving_refusals(database) + self.metrics.errors(database)
    }

    pub(super) fn show(&self, sight: Sight) {
        let view = self.metrics.transactions.of(self.registry.database());
        view.resharding.set(sight, self.clock.now());
    }

    /// What is shown is still so.
    fn looked(&self) {
        let view = self.metrics.transactions.of(self.registry.database());
        view.resharding.looked(self.clock.now());
    }

    pub(super) async fn home(&self) -> Result<Lease, AskError> {
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
                Ok(Ok(true)) => {
                    renewed = began;
                    self.looked();
                }
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
            if self.lacking(&first).is_some() {
                lease.done();
                return Ok(());
            }
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
