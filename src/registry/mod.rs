//! What the proxies of one logical database share on its servers: Shardway's own schema, and who else there is.
//!
//! Every shard has `shardway.version`, `identity`, `decision` and `proxy`; only the home shard's `proxy` has rows.
//! What must stay true: nothing here stands in the way of a statement for one shard; a schema that is not ours, or
//! belongs to another shard than the configuration says, is not used; a database of one shard opens no connection here.

mod agreement;
mod control;
mod copies;
mod flip;
pub mod holds;
mod ids;
mod lack;
mod map;
mod proxies;
mod schema;
pub mod waiting;

pub use agreement::{Agreement, Announced, Late};
pub use control::{Control, Lease, errand};
pub(crate) use copies::KEEP;
pub use flip::{Flip, Flipped, MapNow, Record, Unflipped};
pub use holds::Answers;
pub use ids::Ids;
pub use lack::{Lack, accept_map, lacks};
pub use map::Kept;
pub use proxies::{HEARTBEAT, Me, SILENCE, Unable};

use crate::{
    catalog::{
        ownership::{Declared, Disagreement},
        shard::ShardId,
        snapshot::Standing,
    },
    clock::Duration,
    config::settings::{Credentials, Database},
    entropy,
    gate::tally::Tally,
    inspect::{AskError, at_once},
    metrics::transactions::Proxy,
};
use arc_swap::ArcSwap;
use copies::{Compared, Seen};
use schema::{Fault, Identity, Prepared};
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};
use tokio::sync::{Mutex, Notify};

/// Why there are no transactions over several shards.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    #[error("the configuration gives the database no control role")]
    NoControl,
    #[error("shard {shard} has no schema \"shardway\" that this version can use: {fault}")]
    NoSchema { shard: String, fault: SchemaFault },
    #[error("max_prepared_transactions is 0 on shard {shard}")]
    NoPrepared { shard: String },
    #[error("shard {shard} has not been reached by the control role: {error}")]
    Unreachable { shard: String, error: String },
}

/// What is wrong with a shard's schema.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SchemaFault {
    #[error("role {role} may not create it")]
    NotAllowed { role: String },
    #[error("it, or something in it, belongs to role {owner}")]
    Owner { owner: String },
    #[error("it has form {version}, for versions of Shardway that understand form {oldest}")]
    TooNew { version: i32, oldest: i32 },
    #[error("it says that it is shard {shard} of installation {installation:016x}")]
    Identity { shard: String, installation: u64 },
}

/// What is shared on the servers of one logical database.
#[derive(Debug)]
pub struct Registry {
    database: String,
    home: ShardId,
    names: Arc<[String]>,
    /// Who owns which keys, as the configuration says.
    declared: Declared,
    controls: Vec<Control>,
    /// To the home shard, for whoever runs a cutover: rings when a proxy has answered.
    answers: Control,
    answered: Arc<Notify>,
    /// To the home shard, for heartbeats alone: nothing else makes one late.
    pulse: Control,
    /// What was heard of others' schema changes, through the pulse.
    agreement: Agreement,
    known: ArcSwap<Known>,
    /// Held while the map is read and made known.
    turn: Mutex<()>,
    /// Whether every shard has its number for ids.
    numbered: AtomicBool,
}

/// What the servers said when they were last asked.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    /// `None`: the home shard has not said it, or does not know this process yet.
    installation: Option<u64>,
    /// By shard: whether it can take part in a transaction over several.
    shards: Vec<Result<(), NotReady>>,
    /// Who owns which keys; `None`: nobody has been asked yet.
    map: Option<Kept>,
    /// Whether that may be relied on.
    standing: Standing,
    /// What newer proxies keep that is not for this version, and makes everything else that is known meaningless: the form
    /// of a shard's schema, and the map.
    newer: [Option<Standing>; 2],
}

/// How long the first look waits for a shard other than the home shard.
const FIRST: Duration = Duration::from_secs(2);

/// Which installation it is, and which shards can take part in a transaction over several.
type Identified = (Option<u64>, Vec<Result<(), NotReady>>);

impl Registry {
    /// Of a database with several shards and a control role; opens nothing yet.
    #[must_use]
    pub fn new(database: &Database) -> Option<Self> {
        let control = database.control.as_ref()?;
        (database.shards.len() > 1).then(|| Self::of(database, control))
    }

    fn of(database: &Database, credentials: &Credentials) -> Self {
        let limit = database.pool.connect_timeout;
        let shards = database.shards.iter();
        let home = &database.shards[database.snapshot.home.index()];
        let agreement = Agreement::new();
        let answered = Arc::new(Notify::new());
        let bells = vec![Arc::clone(&answered)];
        let unasked = shards
            .clone()
            .map(|shard| Err(unasked(&shard.name)))
            .collect();
        Self {
            database: database.name.clone(),
            home: database.snapshot.home,
            declared: Declared::of(&database.snapshot),
            names: shards.clone().map(|shard| shard.name.clone()).collect(),
            controls: shards
                .map(|shard| Control::new(&shard.primary, credentials, limit))
                .collect(),
            answers: Control::hearing(&home.primary, credentials, limit, bells),
            answered,
            pulse: Control::hearing(&home.primary, credentials, limit, agreement.bells()),
            agreement,
            known: ArcSwap::from_pointee(Known {
                installation: None,
                shards: unasked,
                map: None,
                standing: Standing::Unread,
                newer: [None, None],
            }),
            turn: Mutex::default(),
            numbered: AtomicBool::new(false),
        }
    }

    /// The logical database's name.
    #[must_use]
    pub fn database(&self) -> &str {
        &self.database
    }

    /// The shard on which the proxies agree.
    #[must_use]
    pub fn home(&self) -> ShardId {
        self.home
    }

    /// Every shard.
    pub fn shards(&self) -> impl Iterator<Item = ShardId> + Clone {
        (0..self.names.len()).map(|at| ShardId(u16::try_from(at).unwrap_or(u16::MAX)))
    }

    /// A shard's name.
    #[must_use]
    pub fn name(&self, shard: ShardId) -> &str {
        &self.names[shard.index()]
    }

    /// Whether something lives on a shard whoever owns the keys of groups, as the configuration says.
    #[must_use]
    pub fn has_more(&self, shard: &str) -> bool {
        self.declared.keeps(shard)
    }

    /// The names of all shards, in their order.
    #[must_use]
    pub fn names(&self) -> Arc<[String]> {
        Arc::clone(&self.names)
    }

    /// The shard of a name.
    #[must_use]
    pub fn shard(&self, name: &str) -> Option<ShardId> {
        self.shards().find(|shard| self.name(*shard) == name)
    }

    /// A connection of the control role to a shard.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn lease(&self, shard: ShardId) -> Result<Lease, AskError> {
        self.controls[shard.index()].lease().await
    }

    /// The installation's number, if these shards can take part in a transaction together.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn ready(&self, shards: impl IntoIterator<Item = ShardId>) -> Result<u64, NotReady> {
        let known = self.known.load();
        for shard in shards {
            known.shards[shard.index()].clone()?;
        }
        known
            .installation
            .ok_or_else(|| match &known.shards[self.home.index()] {
                Err(reason) => reason.clone(),
                Ok(()) => unasked(self.name(self.home)),
            })
    }

    /// Whether a shard can take part.
    ///
    /// # Errors
    /// Why not.
    pub fn shard_ready(&self, shard: ShardId) -> Result<(), NotReady> {
        self.known.load().shards[shard.index()].clone()
    }

    /// Whether the home shard has once said which installation this is.
    #[must_use]
    pub fn is_known(&self) -> bool {
        self.known.load().installation.is_some()
    }

    /// Says on the home shard that this process is there; who is.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn beat(&self, me: Me) -> Result<Vec<Proxy>, AskError> {
        proxies::beat(self.pulse.lease().await?, me, &self.names, &self.agreement).await
    }

    /// What is known of other proxies' schema changes.
    #[must_use]
    pub fn agreement(&self) -> &Agreement {
        &self.agreement
    }

    /// Announces a schema change, before it is committed.
    ///
    /// # Errors
    /// [`AskError`]: others would not hear of it.
    pub async fn change_begins(&self, me: Me) -> Result<Announced, AskError> {
        let lease = self.lease(self.home).await?;
        self.agreement.begin(lease, me).await
    }

    /// Numbers a schema change that is committed, or may be.
    ///
    /// # Errors
    /// [`AskError`]: the next heartbeat does it.
    pub async fn change_ends(&self, change: Announced) -> Result<i64, AskError> {
        self.agreement
            .end(self.lease(self.home).await?, change)
            .await
    }

    /// Takes back the announcement of a change that was not made.
    ///
    /// # Errors
    /// [`AskError`]: the next heartbeat numbers it.
    pub async fn change_abandoned(&self, change: Announced) -> Result<(), AskError> {
        let lease = self.lease(self.home).await?;
        self.agreement.abandon(lease, change).await
    }

    /// The proxies that are there and have not taken a number over.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn late(&self, me: Me, epoch: i64) -> Result<Vec<Late>, AskError> {
        let lease = self.lease(self.home).await?;
        let late = errand(agreement::late(&lease, me, epoch)).await?;
        lease.done();
        Ok(late)
    }

    /// The proxies that are there, by a heartbeat that is no older than that, and whose configuration lacks one of these
    /// shards: as soon as the map names it they serve nothing that is on several shards.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn unable(
        &self,
        shards: &[String],
        silence: Duration,
    ) -> Result<Vec<Unable>, AskError> {
        let lease = self.lease(self.home).await?;
        let unable = errand(proxies::unable(&lease, shards, silence)).await?;
        lease.done();
        Ok(unable)
    }

    /// Says on the home shard that this process is there no more.
    ///
    /// # Errors
    /// [`AskError`]: its silence will tell.
    pub async fn leave(&self, me: Me) -> Result<(), AskError> {
        proxies::leave(self.pulse.lease().await?, me).await
    }

    /// What statements are held back, and the number of the map, at one time.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn read_holds(&self) -> Result<holds::Read, AskError> {
        let lease = self.lease(self.home).await?;
        let read = errand(holds::read(&lease)).await?;
        lease.done();
        Ok(read)
    }

    /// Says for this proxy whether anybody is still at what an attempt moves; `None`: nobody.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn answer_hold(
        &self,
        attempt: (&str, i32),
        incarnation: u64,
        waiting_for: Option<&str>,
    ) -> Result<(), AskError> {
        let lease = self.lease(self.home).await?;
        errand(holds::answer(&lease, attempt, incarnation, waiting_for)).await?;
        lease.done();
        Ok(())
    }

    /// Hears of proxies' answers to holds.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn hear_answers(&self) -> Result<Answers, AskError> {
        let lease = self.answers.lease().await?;
        errand(async { Ok(lease.batch_execute(holds::LISTEN).await?) }).await?;
        Ok(Answers {
            lease,
            bell: Arc::clone(&self.answered),
        })
    }

    /// Says what an attempt has cost this proxy's statements.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn tell_held(
        &self,
        attempt: (&str, i32),
        incarnation: u64,
        tally: &Tally,
    ) -> Result<(), AskError> {
        let lease = self.lease(self.home).await?;
        errand(holds::tell(&lease, attempt, incarnation, tally)).await?;
        lease.done();
        Ok(())
    }

    /// Ends a hold whose deadline has passed; `None`: somebody else has ended it.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn expire_hold(
        &self,
        workflow: &str,
        attempt: i32,
    ) -> Result<Option<holds::Overdue>, AskError> {
        let lease = self.lease(self.home).await?;
        let ended = errand(holds::expire(&lease, workflow, attempt)).await?;
        lease.done();
        Ok(ended)
    }

    /// Takes it upon this proxy to settle a hold that nobody settles; `None`: somebody else has.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn help_hold(
        &self,
        workflow: &str,
        attempt: i32,
    ) -> Result<Option<holds::Overdue>, AskError> {
        let lease = self.lease(self.home).await?;
        let mine = errand(holds::help(&lease, workflow, attempt)).await?;
        lease.done();
        Ok(mine)
    }

    /// The reshard that moves keys of a group, for people.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn reshard_of(&self, group: &str) -> Result<Option<holds::Reshard>, AskError> {
        let lease = self.lease(self.home).await?;
        let found = errand(holds::reshard_of(&lease, group)).await?;
        lease.done();
        Ok(found)
    }

    /// What this proxy knows of the map and holds may be out of date: it looks at once.
    pub fn look_again(&self) {
        self.agreement.look_again();
    }

    /// Resolves when something was announced on the home shard.
    pub async fn told(&self) {
        self.agreement.told().await;
    }

    /// Tells the other proxies on the home shard which transactions wait here, and hears which wait with them.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn tell_waiting(
        &self,
        owner: u64,
        own: &[waiting::Own],
        silence: Duration,
    ) -> Result<Vec<waiting::Told>, AskError> {
        waiting::tell(self.lease(self.home).await?, owner, own, silence).await
    }

    /// What these processes of a shard wait for, and those that they wait for.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn look_at_waits(
        &self,
        shard: ShardId,
        pids: &[i32],
    ) -> Result<Vec<waiting::Process>, AskError> {
        waiting::look(self.lease(shard).await?, pids).await
    }

    /// Asks every shard at once whether it can take part, and makes or renews its schema where it may. From the first time
    /// that the home shard knows this process, it is ready.
    pub async fn look(&self, me: Me) {
        let looking = self
            .shards()
            .map(|shard| self.prepare(shard, me.incarnation));
        let looked = at_once(looking.collect()).await;
        let (mut installation, mut shards) = self.identify(looked, me.incarnation).await;
        let old = self.known.load_full();
        if installation.is_some() && old.installation.is_none() && self.beat(me).await.is_err() {
            installation = None;
        }
        for (shard, now) in self.shards().zip(&mut shards) {
            let before = &old.shards[shard.index()];
            // Whoever cannot be asked for a while need not be worse than before.
            if matches!(now, Err(NotReady::Unreachable { .. })) && before.is_ok() {
                *now = Ok(());
            }
            self.tell(shard, before, now);
        }
        let all = shards.iter().all(Result::is_ok);
        // Where there is no schema of ours, and we may not make one, there never was a map.
        let never = matches!(
            &shards[self.home.index()],
            Err(NotReady::NoSchema {
                fault: SchemaFault::NotAllowed { .. },
                ..
            })
        );
        let form = self.too_new(&shards);
        // The map may have been renewed meanwhile.
        self.known.rcu(|known| {
            let [_, map] = known.newer.clone();
            let mut now = Known {
                installation,
                shards: shards.clone(),
                newer: [form.clone(), map],
                ..Known::clone(known)
            };
            if never && now.map.is_none() && now.standing == Standing::Unread {
                now.standing = Standing::Known;
            }
            now
        });
        if all && !self.numbered.load(Ordering::Relaxed) {
            let numbered = self.number_shards().await;
            self.numbered.store(numbered.is_ok(), Ordering::Relaxed);
            if let Err(problem) = numbered {
                let database = &self.database;
                tracing::warn!(database, %problem, "shards have no numbers for ids yet");
            }
        }
    }

    /// The first shard whose schema asks for newer proxies.
    fn too_new(&self, shards: &[Result<(), NotReady>]) -> Option<Standing> {
        self.shards()
            .zip(shards)
            .find_map(|(shard, ready)| match ready {
                Err(NotReady::NoSchema {
                    fault: fault @ SchemaFault::TooNew { .. },
                    ..
                }) => Some(Standing::Newer {
                    shard: self.name(shard).to_owned(),
                    what: format!("schema \"shardway\": {fault}"),
                }),
                Ok(()) | Err(_) => None,
            })
    }

    /// The map says what this version does not know: what was known of it is not relied on any more.
    fn cannot_read(&self, problem: &AskError) -> bool {
        let AskError::Unreadable(what) = problem else {
            return false;
        };
        let (database, shard) = (&self.database, self.name(self.home));
        let standing = Some(Standing::Newer {
            shard: shard.to_owned(),
            what: what.clone(),
        });
        let before = self.known.rcu(|known| {
            let [form, _] = known.newer.clone();
            Known {
                newer: [form, standing.clone()],
                ..Known::clone(known)
            }
        });
        if before.newer[1] != standing {
            tracing::error!(database, %problem, "what is on several shards is not served");
        }
        true
    }

    fn tell(&self, shard: ShardId, before: &Result<(), NotReady>, now: &Result<(), NotReady>) {
        let (database, shard) = (&self.database, self.name(shard));
        match (before, now) {
            (Err(_), Ok(())) => {
                tracing::info!(
                    database,
                    shard,
                    "can take part in transactions over several shards"
                );
            }
            (before, Err(reason)) if before.as_ref().err() != Some(reason) => {
                tracing::warn!(database, shard, %reason, "cannot take part in transactions over several shards");
            }
            (Ok(()) | Err(_), Ok(()) | Err(_)) => {}
        }
    }

    async fn prepare(&self, shard: ShardId, by: u64) -> Result<Prepared, NotReady> {
        let prepared = async {
            let lease = self.lease(shard).await?;
            let limited = errand(async { Ok(schema::prepare(&lease, by).await) });
            let prepared = limited.await??;
            lease.done();
            Ok(prepared)
        };
        let first = self.known.load().map.is_none() && shard != self.home;
        let prepared = if first {
            // The first statements wait for this.
            let limited = tokio::time::timeout(FIRST, prepared).await;
            limited.unwrap_or(Err(Fault::Ask(AskError::Timeout)))
        } else {
            prepared.await
        };
        prepared.map_err(|fault: Fault| fault.of(self.name(shard)))
    }

    /// One installation for all: the home shard's, else what the others say, else a new one, for which all have to have
    /// been asked. What is nobody's yet becomes ours, the home shard first, because it arbitrates.
    async fn identify(&self, looked: Vec<Result<Prepared, NotReady>>, by: u64) -> Identified {
        let said = |shard: ShardId| {
            let prepared = looked[shard.index()].as_ref().ok()?;
            let identity = prepared.identity.as_ref();
            identity.map(|identity| identity.installation)
        };
        let all_asked = looked.iter().all(Result::is_ok);
        let new = || all_asked.then(|| u64::from_le_bytes(entropy::bytes()));
        let others = || self.shards().find_map(said).or_else(new);
        let mut installation = match &looked[self.home.index()] {
            Ok(at_home) => at_home
                .identity
                .as_ref()
                .map_or_else(others, |home| Some(home.installation)),
            Err(_) => self.known.load().installation,
        };
        let mut shards: Vec<Result<(), NotReady>> = looked
            .iter()
            .map(|looked| looked.as_ref().map(|_| ()).map_err(Clone::clone))
            .collect();
        let home_first = [self.home]
            .into_iter()
            .chain(self.shards().filter(|shard| *shard != self.home));
        for shard in home_first {
            let (Some(wanted), Ok(found)) = (installation, &looked[shard.index()]) else {
                continue;
            };
            let wanted = Identity {
                installation: wanted,
                shard: self.name(shard).to_owned(),
            };
            let found = match &found.identity {
                Some(found) => Ok(found.clone()),
                None => self.make_ours(shard, &wanted).await,
            };
            if shard == self.home {
                installation = found.as_ref().ok().map(|found| found.installation);
            }
            shards[shard.index()] = found.and_then(|found| {
                let ours = Some(found.installation) == installation && found.shard == wanted.shard;
                let fault = Fault::Schema(SchemaFault::Identity {
                    shard: found.shard,
                    installation: found.installation,
                });
                if ours {
                    Ok(())
                } else {
                    Err(fault.of(&wanted.shard))
                }
            });
        }
        if shards[self.home.index()].is_ok() && installation.is_some() {
            let copies = self.shards().filter(|shard| shards[shard.index()].is_ok());
            self.compare(by, copies).await;
        }
        for (looked, shard) in looked.iter().zip(self.shards()) {
            if shards[shard.index()].is_ok() && looked.as_ref().is_ok_and(|it| !it.may_prepare) {
                shards[shard.index()] = Err(Fault::NoPrepared.of(self.name(shard)));
            }
        }
        (installation, shards)
    }

    /// Reads the map that all agree on, and compares it with the copies of these shards. The first time nothing is known
    /// before that is done.
    async fn compare(&self, by: u64, copies: impl Iterator<Item = ShardId>) {
        let read = async {
            let _turn = self.turn.lock().await;
            let kept = self.read_and_add(by).await?;
            if self.known.load().map.is_some() {
                self.publish(&kept, None);
            }
            Ok::<_, AskError>(kept)
        };
        let kept = match read.await {
            Ok(kept) => kept,
            Err(problem) => {
                if !self.cannot_read(&problem) {
                    let database = &self.database;
                    tracing::debug!(database, %problem, "asking for the map");
                }
                return;
            }
        };
        let compared = self.compare_copies(copies, kept.epoch, &kept.content, by);
        match compared.await {
            Compared::Latest => self.publish(&kept, Some(Standing::Known)),
            Compared::Behind(seen) => self.fall_behind(&kept, seen, by).await,
        }
    }

    /// The home shard had an older map than somebody has seen, or another one.
    async fn fall_behind(&self, compared: &Kept, seen: Seen, by: u64) {
        let _turn = self.turn.lock().await;
        let database = &self.database;
        let now = match self.read_and_add(by).await {
            // It was changed after it had been read.
            Ok(now) if now.epoch > compared.epoch && now.epoch >= seen.epoch => {
                return self.publish(&now, None);
            }
            Ok(now) => now,
            Err(_) => compared.clone(),
        };
        self.publish(&now, Some(seen.standing(now.epoch)));
        let Some(content) = seen.content else {
            return;
        };
        if let Ok(()) = self.adopt(seen.epoch, &content, by).await
            && let Ok(now) = self.read_and_add(by).await
            && now.epoch >= seen.epoch
        {
            let epoch = now.epoch;
            tracing::warn!(
                database,
                epoch,
                "the home shard had an older map than a shard: it has that one now"
            );
            self.publish(&now, Some(Standing::Known));
        }
    }

    /// Makes known what was read, and, if it was, what the copies say of it.
    fn publish(&self, kept: &Kept, compared: Option<Standing>) {
        let before = self
            .known
            .rcu(|known| self.weigh(known, kept, compared.as_ref()));
        let (now, database) = (self.known.load(), &self.database);
        if now.standing != before.standing {
            match &now.standing {
                Standing::Known => tracing::info!(database, epoch = kept.epoch, "read the map"),
                standing @ (Standing::Unread
                | Standing::Lacking { .. }
                | Standing::Newer { .. }
                | Standing::Behind { .. }) => {
                    tracing::error!(
                        database,
                        ?standing,
                        "what is on several shards is not served"
                    );
                }
            }
        }
        let told = before.map.as_ref();
        let told = told.is_some_and(|before| before.disagreements == kept.disagreements);
        for Disagreement { group, what } in kept.disagreements.iter().filter(|_| !told) {
            tracing::error!(
                database,
                group,
                ?what,
                "the configuration says that keys are elsewhere than the map of all proxies says: the group is not served"
            );
        }
    }

    /// What is known from now on. Reads come one after another: who reads an older map than is known reads one that has
    /// lost something; copies that were compared with an older one say nothing any more.
    fn weigh(&self, known: &Known, kept: &Kept, compared: Option<&Standing>) -> Known {
        let older = known.map.as_ref().filter(|known| known.epoch > kept.epoch);
        let (map, standing) = match (older, compared) {
            (Some(_), Some(_)) => return known.clone(),
            (Some(known), None) => {
                // Who may have written by it?
                let standing = Standing::Behind {
                    shard: None,
                    seen: known.epoch,
                    kept: kept.epoch,
                };
                (known, standing)
            }
            (None, Some(standing @ Standing::Behind { .. })) => (kept, standing.clone()),
            (None, None) if known.standing.is_behind(kept.epoch) => (kept, known.standing.clone()),
            (None, _) => {
                let lacking = kept.lacking.first();
                let lacking = lacking.map(|shard| Standing::Lacking {
                    shard: shard.clone(),
                });
                (kept, lacking.unwrap_or(Standing::Known))
            }
        };
        let [form, _] = known.newer.clone();
        Known {
            map: Some(map.clone()),
            standing,
            newer: [form, None],
            ..known.clone()
        }
    }

    async fn read_and_add(&self, by: u64) -> Result<Kept, AskError> {
        let lease = self.lease(self.home).await?;
        let kept = errand(map::compare(&lease, &self.declared, by)).await?;
        lease.done();
        Ok(kept)
    }

    /// Asks for the map again: others may have changed it.
    ///
    /// # Errors
    /// [`AskError`]: what was known stays.
    pub async fn renew_map(&self, me: Me) -> Result<(), AskError> {
        if self.known.load().map.is_some() {
            let _turn = self.turn.lock().await;
            match self.read_and_add(me.incarnation).await {
                Ok(kept) => self.publish(&kept, None),
                // Nothing is done by it any more, which is known then.
                Err(problem) if self.cannot_read(&problem) => {}
                Err(problem) => return Err(problem),
            }
        }
        Ok(())
    }

    /// The map that all proxies agree on, as of the last time that the home shard was asked, and whether it may be relied
    /// on.
    #[must_use]
    pub fn map(&self) -> (Option<Kept>, Standing) {
        let known = self.known.load();
        let newer = known.newer.iter().flatten().next();
        (known.map.clone(), newer.unwrap_or(&known.standing).clone())
    }

    /// The map that all proxies agree on, read at this moment and compared with the configuration. Changes nothing.
    ///
    /// # Errors
    /// [`Unflipped::Ask`], [`Unflipped::NoMap`].
    pub async fn ask_map(&self) -> Result<Kept, Unflipped> {
        let now = self.read_map().await?;
        let content = Arc::new(now.content.and(&self.declared));
        Ok(Kept::judged(now.epoch, content, &self.declared))
    }

    /// Takes over what its predecessor knew of the map, as long as it knows nothing itself.
    pub fn inherit(&self, older: &Self) {
        let known = older.known.load();
        if let Some(map) = &known.map {
            let kept = Kept::judged(map.epoch, Arc::clone(&map.content), &self.declared);
            self.publish(&kept, Some(known.standing.clone()));
        }
    }

    async fn make_ours(&self, shard: ShardId, wanted: &Identity) -> Result<Identity, NotReady> {
        let made = async {
            let lease = self.lease(shard).await?;
            let limited = errand(async { Ok(schema::identify(&lease, wanted).await) });
            let identity = limited.await??;
            lease.done();
            Ok(identity)
        };
        made.await
            .map_err(|fault: Fault| fault.of(self.name(shard)))
    }
}

fn unasked(shard: &str) -> NotReady {
    NotReady::Unreachable {
        shard: shard.to_owned(),
        error: "it was not asked yet".to_owned(),
    }
}
