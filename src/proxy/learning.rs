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
        shard::ShardSet,
        snapshot::{Placement, Snapshot, Standing, Unlisted, Unseen},
    },
    clock::{Duration, Instant},
    config::settings::{self, Credentials, Settings},
    inspect::{Survey, code, complete, credentials_for, judge, survey},
    registry::Kept,
};
use std::sync::{
    Arc, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use tokio::sync::Mutex;

/// Marks the number of a schema that one transaction alone sees.
const UNCOMMITTED: u64 = 1 << 63;
/// How often at most the servers are looked at because of names that they turn out not to have.
const SELDOM: Duration = Duration::from_secs(1);
/// How long a look holds while nobody tells of changes.
const UNHEARD: Duration = Duration::from_secs(3);
/// How often it is looked whether statements of before are over, and how many times before something else is done.
const LOOK: Duration = Duration::from_millis(10);
const LOOKS: u32 = 20;

/// The looks of one database at its servers.
#[derive(Debug, Default)]
pub struct Learning {
    /// How many have begun.
    begun: AtomicU64,
    /// The last that has ended. Held while one is under way.
    ended: Mutex<Ended>,
    /// Held while one snapshot takes the place of another.
    installing: std::sync::Mutex<()>,
    /// How many schemas were made that one transaction alone sees.
    uncommitted: AtomicU64,
    /// The sessions that were said to be waited for.
    awaited: std::sync::Mutex<Vec<u32>>,
}

/// The last look that has ended.
#[derive(Debug, Default)]
struct Ended {
    number: u64,
    /// When it began.
    at: Option<Instant>,
    looked: Looked,
    /// The shards that were asked.
    members: Option<ShardSet>,
}

/// Who has answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Looked {
    /// Not every server.
    #[default]
    Partly,
    All,
}

/// Whether there is another snapshot now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Swapped {
    Yes,
    No,
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
    if settings.control.is_some() {
        snapshot.standing = Standing::Unread;
    }
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
        let (mut looked, mut members) = (Looked::Partly, None);
        if let Some(credentials) = credentials_for(settings, &self.settings) {
            if self.settings.name != "*" {
                self.learn_code(credentials).await;
            }
            if !self.snapshot.load().is_single() {
                let (by, of) = self.learn_tables(credentials).await;
                (looked, members) = (by, Some(of));
            }
        }
        *ended = Ended {
            number,
            at,
            looked,
            members,
        };
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
            if !self.knows_what_moves().await {
                return CaughtUp::No;
            }
            if self.learn(&settings).await == Looked::Partly {
                return CaughtUp::No;
            }
            let number = shared.metrics.sessions.proxy();
            self.coordinator.takes_over(heard, number).await;
        } else if agreement.is_lapsed(self.now()) {
            self.learn_unheard(&settings).await;
        }
        self.take_over_map();
        let members = self.learning.ended.lock().await.members.clone();
        if members.is_some_and(|members| members != self.snapshot.load().members) {
            // Who serves is another than who was looked at.
            self.learn(&settings).await;
        }
        CaughtUp::Yes
    }

    /// The number of the map that statements are planned by.
    #[must_use]
    pub fn map_epoch(&self) -> i64 {
        let snapshot = self.snapshot.load();
        match snapshot.standing {
            Standing::Unread => 0,
            // Whatever the map says, nothing is done by it.
            Standing::Newer { .. } => i64::MAX,
            Standing::Known | Standing::Lacking { .. } | Standing::Behind { .. } => {
                i64::try_from(snapshot.epoch.0).unwrap_or(i64::MAX)
            }
        }
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

    /// Asks for the map; whether it was taken over, and every statement under way is planned by what it says of two shards
    /// and of who serves.
    pub(super) async fn knows_what_moves(&self) -> bool {
        if !self.renew_map().await {
            return false;
        }
        for older in self.replaced_and_in_use() {
            if self.has_home_of(&older) || older.renew_own_map().await {
                continue;
            }
            if !older.coordinator.is_silent(self.now()) && older.map_epoch() != 0 {
                return false;
            }
            // It relies on nothing: what moves is refused there.
            self.watch_moving();
        }
        self.is_planned_by_all().await
    }

    /// Waits for a moment until no statement is under way that was planned before this proxy knew what is on two shards now:
    /// one may have waited for a backend until rows were copied that it would take for its own. Whether there is none.
    async fn is_planned_by_all(&self) -> bool {
        let mut looks = 0;
        loop {
            let old = self.gate.planned_before(self.snapshot.load().era);
            if old.is_empty() {
                return true;
            }
            if looks == LOOKS {
                self.tell_awaited(old);
                return false;
            }
            looks += 1;
            tokio::time::sleep(LOOK).await;
        }
    }

    fn tell_awaited(&self, clients: Vec<u32>) {
        let told = self.learning.awaited.lock();
        let mut told = told.unwrap_or_else(PoisonError::into_inner);
        if *told != clients {
            let database = &self.settings.name;
            tracing::info!(
                database,
                ?clients,
                "waits for statements that began before it was known which rows are on two shards; a reshard waits for that"
            );
            *told = clients;
        }
    }

    /// Asks for the map again and takes it over: others have changed it. Whether the home shard has answered. Transactions
    /// that a reload has left behind go on by it too, whether or not they could ask.
    pub async fn renew_map(&self) -> bool {
        let renewed = self.renew_own_map().await;
        let behind =
            |older: &&Arc<Self>| self.has_home_of(older) && older.map_epoch() < self.map_epoch();
        for older in self.replaced_and_in_use().iter().filter(behind) {
            older.coordinator.inherit_map(&self.coordinator);
            older.take_over_map();
        }
        renewed
    }

    async fn renew_own_map(&self) -> bool {
        let renewed = self.coordinator.renew_map().await;
        self.take_over_map();
        if let Err(problem) = &renewed {
            let database = &self.settings.name;
            tracing::debug!(database, %problem, "asking for the map");
        }
        renewed.is_ok()
    }

    /// Looks at the functions and triggers of the first shard that can be asked: they are the same on all.
    async fn learn_code(&self, credentials: &Credentials) {
        let limit = self.settings.pool.connect_timeout;
        let members = self.snapshot.load().all();
        let shards = members.iter();
        for shard in shards.filter_map(|shard| self.settings.shards.get(shard.index())) {
            match code(&shard.primary, credentials, limit).await {
                Ok(code) => return self.take_over(code),
                Err(problem) => {
                    tracing::debug!(database = self.settings.name, %problem, "looking at its functions");
                }
            }
        }
    }

    /// Takes the place of another, whose transactions end there: what that knew of the map is taken over, it is asked for
    /// again at once, and nobody waits for that.
    pub fn succeeds(&self, older: &Arc<Self>) {
        self.is_listed_again(&[older]);
        if self.has_home_of(older) {
            self.coordinator.inherit_map(&older.coordinator);
            self.take_over_map();
        }
    }

    /// Takes the place of such as were removed: their transactions end there. What they knew of the map may be long past.
    pub fn is_listed_again(&self, removed: &[&Arc<Self>]) {
        let mut replaced = self.locked_replaced();
        for older in removed {
            replaced.extend(older.replaced_and_in_use().iter().map(Arc::downgrade));
            replaced.push(Arc::downgrade(older));
        }
    }

    fn has_home_of(&self, other: &Self) -> bool {
        let home = |of: &Self| {
            let home = of.settings.snapshot.home;
            let home = of.settings.shards.get(home.index());
            home.map(|shard| shard.primary.clone())
        };
        home(self) == home(other)
    }

    /// Takes over who owns which keys, as far as it is known.
    pub(super) fn take_over_map(&self) {
        self.install(Snapshot::clone);
    }

    /// Puts another snapshot in the place of the last, with the map as it is known now.
    fn install(&self, make: impl FnOnce(&Snapshot) -> Snapshot) -> Swapped {
        // Whoever comes later knows a later map.
        let turn = &self.learning.installing;
        let _turn = turn.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.snapshot.load_full();
        let mut new = make(&old);
        if let Some((kept, standing)) = self.coordinator.map() {
            put_map(&mut new, kept.as_ref(), standing);
        }
        new.era = old.era;
        if new == *old {
            return Swapped::No;
        }
        let doubled = |of: &Snapshot| {
            let groups = of.groups.iter().map(|it| it.doubled.clone());
            groups.collect::<Vec<_>>()
        };
        if doubled(&new) != doubled(&old) || new.members != old.members {
            new.era = self.gate.begins_era();
        }
        new.schema = old.schema + 1;
        self.snapshot.store(Arc::new(new));
        Swapped::Yes
    }

    fn take_over(&self, code: Code) {
        self.install(|old| Snapshot {
            code,
            ..old.clone()
        });
    }

    async fn learn_tables(&self, credentials: &Credentials) -> (Looked, ShardSet) {
        let old = self.snapshot.load_full();
        // What was found by key column is found again, or is not there any more.
        let mut new = (*unlearned(&self.settings)).clone();
        new.schema = old.schema;
        new.code = old.code.clone();
        new.standing = old.standing.clone();
        if let Some((kept, standing)) = self.coordinator.map() {
            put_map(&mut new, kept.as_ref(), standing);
        }
        let members = new.members.clone();
        let credentials = self.settings.control.as_ref().unwrap_or(credentials);
        let survey = survey(&self.settings, &members, credentials, &[]).await;
        complete(&mut new, &survey);
        keep_known(&mut new, &old, &survey);
        let heard = survey.shards.iter().any(Result::is_ok);
        new.looked = if heard {
            members.clone()
        } else {
            old.looked.clone()
        };
        let looked = if survey.is_complete() {
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
        let tables = new.tables.len();
        let swapped = self.install(|old| Snapshot {
            schema: old.schema,
            ..new
        });
        if swapped == Swapped::Yes {
            let database = &self.settings.name;
            tracing::info!(database, tables, "took over what the servers say of tables");
        }
        (looked, members)
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

/// Puts who owns which keys in the place of what the configuration says of it.
fn put_map(snapshot: &mut Snapshot, kept: Option<&Kept>, standing: Standing) {
    snapshot.standing = standing;
    snapshot.barred.clear();
    if let Some(kept) = kept {
        kept.put_on(snapshot);
    }
}

/// What only servers know that could not be asked stays as it was.
fn keep_known(new: &mut Snapshot, old: &Snapshot, survey: &Survey) {
    let heard = |shard: usize| survey.shards.get(shard).is_some_and(Result::is_ok);
    if survey.is_complete() {
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
        let moved = |group: &GroupId| {
            let (old, new) = (old.group(*group), new.group(*group));
            old.map != new.map || old.pins != new.pins
        };
        if table.over.iter().any(moved) {
            continue;
        }
        let placed = new.tables.get(name).map(|new| &new.placement);
        if silent && placed.is_none_or(|placement| *placement == table.placement) {
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
