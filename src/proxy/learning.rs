//! Learns from the servers what the configuration does not say: the columns of tables, which tables belong to a group by
//! their key column, and what the database's own functions may leave behind.
//!
//! What must stay true: of two looks the later one's result stands; a server that cannot be asked leaves what was known;
//! only a look that every server has answered says that something is nowhere.

use super::{Shared, database::Database};
use crate::{
    catalog::{
        code::Code,
        group::GroupId,
        snapshot::{Placement, Snapshot, Unlisted, Unseen},
    },
    clock::{Duration, Instant},
    config::settings::{self, Credentials, Settings},
    inspect::{Survey, code, complete, credentials_for, judge, survey},
    registry::Registry,
};
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Mutex;

/// Marks the number of a schema that one transaction alone sees.
const UNCOMMITTED: u64 = 1 << 63;
/// How often at most the servers are looked at because of names that they turn out not to have.
const SELDOM: Duration = Duration::from_secs(1);
/// How long a look holds while nobody tells of changes.
const UNHEARD: Duration = Duration::from_secs(3);

/// The looks of one database at its servers.
#[derive(Debug, Default)]
pub struct Learning {
    /// How many have begun.
    begun: AtomicU64,
    /// The last that has ended. Held while one is under way.
    ended: Mutex<Ended>,
    /// How many schemas were made that one transaction alone sees.
    uncommitted: AtomicU64,
}

/// The last look that has ended.
#[derive(Debug, Default)]
struct Ended {
    number: u64,
    /// When it began.
    at: Option<Instant>,
    looked: Looked,
}

/// Who has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Looked {
    /// Not every server.
    #[default]
    Partly,
    All,
}

/// Whether all is known that others have announced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CaughtUp {
    Yes,
    No,
}

impl Learning {
    /// A number for a schema that one transaction alone sees, so that its plans are nobody else's.
    pub(super) fn uncommitted(&self) -> u64 {
        UNCOMMITTED | self.uncommitted.fetch_add(1, Ordering::Relaxed)
    }
}

/// What is known before the servers were looked at.
#[must_use]
pub(super) fn unlearned(settings: &settings::Database) -> Arc<Snapshot> {
    let configured = &settings.snapshot;
    let claims = !configured.key_columns.is_empty() || settings.control.is_some();
    if configured.is_single() || !claims {
        return Arc::clone(configured);
    }
    let mut snapshot = (**configured).clone();
    snapshot.unseen = Unseen::Asked;
    Arc::new(snapshot)
}

impl Database {
    /// Looks at the servers, unless somebody else has begun to after this was called, and has ended.
    pub async fn learn(&self, settings: &Settings) -> Looked {
        let before = self.learning.begun.load(Ordering::Acquire);
        let mut ended = self.learning.ended.lock().await;
        if ended.number > before {
            return ended.looked;
        }
        let number = self.learning.begun.fetch_add(1, Ordering::AcqRel) + 1;
        let at = Some(self.now());
        let mut looked = Looked::Partly;
        if let Some(credentials) = credentials_for(settings, &self.settings) {
            if self.settings.name != "*" {
                self.learn_code(credentials).await;
            }
            if !self.snapshot.load().is_single() {
                looked = self.learn_tables(credentials).await;
            }
        }
        *ended = Ended { number, at, looked };
        looked
    }

    /// The same, but not again when the last look is but a moment old: names that are nowhere make nobody look often.
    pub async fn learn_seldom(&self, settings: &Settings) {
        self.learn_within(settings, SELDOM).await;
    }

    /// The same, for who cannot hear of what others change: what was seen holds for a while.
    pub async fn learn_unheard(&self, settings: &Settings) {
        self.learn_within(settings, UNHEARD).await;
    }

    async fn learn_within(&self, settings: &Settings, fresh: Duration) {
        let at = self.learning.ended.lock().await.at;
        let now = self.now();
        if at.is_none_or(|at| now.saturating_duration_since(at) >= fresh) {
            self.learn(settings).await;
        }
    }

    /// Takes over what others have changed up to this number, and tells them.
    pub async fn catch_up(&self, shared: &Shared, heard: i64) -> CaughtUp {
        let Some(agreement) = self.coordinator.agreement() else {
            return CaughtUp::Yes;
        };
        let settings = shared.settings.load_full();
        if heard > agreement.taken() {
            self.coordinator.renew_map().await;
            if self.learn(&settings).await == Looked::Partly {
                return CaughtUp::No;
            }
            let number = shared.metrics.sessions.proxy();
            self.coordinator.takes_over(heard, number).await;
        } else if agreement.is_lapsed(self.now()) {
            self.learn_unheard(&settings).await;
        }
        self.take_over_map().await;
        CaughtUp::Yes
    }

    /// Takes over whose keys are whose, and nothing else: statements wait for it.
    pub async fn renew_map(&self) {
        self.coordinator.renew_map().await;
        self.take_over_map().await;
    }

    /// The number of the map that statements are planned by.
    #[must_use]
    pub fn map_epoch(&self) -> i64 {
        let kept = self.coordinator.registry().ok().and_then(Registry::map);
        kept.map_or(0, |kept| kept.epoch)
    }

    /// Tells the gate which groups have keys that move.
    pub fn watch_moving(&self) {
        let snapshot = self.snapshot.load();
        let moving = snapshot
            .groups
            .iter()
            .filter(|group| !group.doubled.is_empty());
        self.gate.watch(moving.map(|group| group.name.as_str()));
    }

    /// Looks at the functions and triggers of the first shard that can be asked: they are the same on all.
    async fn learn_code(&self, credentials: &Credentials) {
        let limit = self.settings.pool.connect_timeout;
        for shard in &self.settings.shards {
            match code(&shard.primary, credentials, limit).await {
                Ok(code) => return self.take_over(code),
                Err(problem) => {
                    tracing::debug!(database = self.settings.name, %problem, "looking at its functions");
                }
            }
        }
    }

    /// Takes over which groups are not served, because other proxies say that their keys are elsewhere.
    async fn take_over_map(&self) {
        // Not while a look is under way, which takes it over too.
        let _turn = self.learning.ended.lock().await;
        let old = self.snapshot.load_full();
        let barred = self.barred(&old);
        if old.barred != barred {
            let mut new = (*old).clone();
            new.barred = barred;
            new.schema += 1;
            self.snapshot.store(Arc::new(new));
        }
    }

    fn barred(&self, snapshot: &Snapshot) -> Vec<GroupId> {
        let barred = self.coordinator.barred();
        let groups = snapshot.groups.iter().zip(0_u16..);
        groups
            .filter(|(group, _)| barred.contains(&group.name))
            .map(|(_, at)| GroupId(at))
            .collect()
    }

    fn take_over(&self, code: Code) {
        let old = self.snapshot.load_full();
        if old.code != code {
            let mut new = (*old).clone();
            new.code = code;
            new.schema += 1;
            self.snapshot.store(Arc::new(new));
        }
    }

    async fn learn_tables(&self, credentials: &Credentials) -> Looked {
        let old = self.snapshot.load_full();
        // What was found by key column is found again, or is not there any more.
        let mut new = (*unlearned(&self.settings)).clone();
        new.schema = old.schema;
        new.code = old.code.clone();
        new.barred = self.barred(&new);
        let credentials = self.settings.control.as_ref().unwrap_or(credentials);
        let survey = survey(&self.settings, credentials, &[]).await;
        complete(&mut new, &survey);
        keep_known(&mut new, &old, &survey);
        let looked = if survey.shards.iter().all(Result::is_ok) {
            Looked::All
        } else {
            Looked::Partly
        };
        let findings = judge(&new, &survey, &[]);
        if old.schema > 0 && looked == Looked::Partly {
            // What was known of a server that cannot be asked.
            new.oids.clone_from(&old.oids);
        }
        for finding in &findings {
            tracing::debug!(database = new.database, %finding, "looking into the servers");
        }
        let unfit = findings
            .iter()
            .find(|finding| finding.forbids_routing())
            .map(ToString::to_string);
        self.judge_fitness(unfit, looked);
        if new != *old {
            new.schema += 1;
            tracing::info!(
                database = new.database,
                tables = new.tables.len(),
                "took over what the servers say of tables"
            );
            self.snapshot.store(Arc::new(new));
        }
        looked
    }

    fn judge_fitness(&self, unfit: Option<String>, looked: Looked) {
        let database = &self.settings.name;
        let before = self.unfit.load();
        let same = before.as_deref() == unfit.as_ref();
        // Who was not asked may still have it.
        if same || (unfit.is_none() && looked == Looked::Partly) {
            return;
        }
        match &unfit {
            Some(finding) => tracing::error!(database, finding, "nothing is routed by key"),
            None => tracing::info!(database, "routes by key again"),
        }
        self.unfit.store(unfit.map(Arc::new));
    }
}

/// What only servers know that could not be asked stays as it was.
fn keep_known(new: &mut Snapshot, old: &Snapshot, survey: &Survey) {
    let heard = |shard: usize| survey.shards.get(shard).is_some_and(Result::is_ok);
    if survey.shards.iter().all(Result::is_ok) {
        return;
    }
    for (name, table) in &old.tables {
        let silent = match &table.placement {
            Placement::Sharded { group, .. } => {
                let shards = old.group(*group).shards();
                !shards.iter().any(|shard| heard(shard.index()))
            }
            Placement::Reference => !(0..old.shards.len()).any(heard),
            Placement::Single(shard) => !heard(shard.index()),
        };
        if silent && !new.tables.contains_key(name) {
            new.others.remove(name);
            new.tables.insert(name.clone(), table.clone());
        }
    }
    let silent = match new.unlisted {
        Unlisted::On(shard) => !heard(shard.index()),
        Unlisted::Error => true,
    };
    let known = old.others.iter().filter(|_| silent);
    for (name, other) in known {
        if !new.tables.contains_key(name) {
            new.others.entry(name.clone()).or_insert(*other);
        }
    }
}
