//! The home shard of a database, as the command asks it and writes wishes there.

use super::{fault::Fault, knobs};
use crate::{
    catalog::ownership::Content,
    clock::Duration,
    config::settings::{Database, Host, Settings},
    inspect::AskError,
    metrics::reshards::{Leader, Sight},
    net::tls::ClientTls,
    registry::{Lease, Registry, Unable, Unflipped, errand},
    reshard::{
        job::Knobs,
        planning::Planned,
        record::{self, Stored},
        servers::Server,
        state::{Record, Refusal, Wish},
        told,
    },
};
use serde_json::Value;
use std::{collections::BTreeMap, sync::Arc};

/// An entry of a journal: when, what, and details.
pub(super) type Entry = (String, String, Value);

/// As many as are looked at: of an attempt there are about ten.
const ENTRIES: i64 = 500;
/// Somebody else may write a wish at the same time.
const TRIES: usize = 8;

/// How old the last heartbeat is of a proxy that is taken for dead.
const LAPSED: Duration = Duration::from_secs(7);
/// How many proxies serve the database.
const ALIVE: &str = "SELECT count(*) FROM shardway.proxy WHERE heartbeat > now() - interval '7 s'";

/// A database whose keys may move.
pub(super) struct Site {
    pub(super) database: Arc<Database>,
    registry: Registry,
    pub(super) servers: Arc<BTreeMap<String, Server>>,
}

/// A reshard, and who runs it.
pub(super) struct Seen {
    pub(super) stored: Stored,
    leader: Option<Leader>,
    /// How many proxies are alive.
    pub(super) proxies: i64,
}

impl Seen {
    pub(super) fn sight(&self) -> Sight {
        told::sight(&self.stored, self.leader.clone())
    }
}

impl Site {
    pub(super) fn of(settings: &Settings, name: Option<&str>) -> Result<Self, Fault> {
        let found = match name {
            Some(name) => settings.databases.get(name).ok_or_else(|| {
                let known: Vec<&str> = settings.databases.keys().map(String::as_str).collect();
                Fault::Database(format!(
                    "the configuration has no database {name}: it has {}",
                    known.join(", ")
                ))
            })?,
            None => {
                let mut able = settings
                    .databases
                    .values()
                    .filter(|it| it.control.is_some() && it.shards.len() > 1);
                match (able.next(), able.next()) {
                    (Some(only), None) => only,
                    (Some(_), Some(_)) => {
                        return Err(Fault::Database(
                            "several databases can be resharded: say which with --database"
                                .to_owned(),
                        ));
                    }
                    (None, _) => {
                        return Err(Fault::Database(
                            "no database of the configuration has several shards and a control role: resharding needs both \
                             (control = { user = ... }, and two of shards.NAME)"
                                .to_owned(),
                        ));
                    }
                }
            }
        };
        if found.control.is_none() {
            return Err(Fault::NoControl(found.name.clone()));
        }
        let registry = Registry::new(found).ok_or_else(|| Fault::OneShard(found.name.clone()))?;
        let tls = Arc::new(ClientTls::new()?);
        Ok(Self {
            servers: Arc::new(Server::all(found, &tls)),
            registry,
            database: Arc::clone(found),
        })
    }

    pub(super) fn home(&self) -> &str {
        self.registry.name(self.registry.home())
    }

    /// Asks on the home shard.
    async fn at_home<T>(
        &self,
        asks: impl AsyncFnOnce(&Lease) -> Result<T, AskError>,
    ) -> Result<T, Fault> {
        let asked = async {
            let lease = self.registry.lease(self.registry.home()).await?;
            let answer = errand(asks(&lease)).await?;
            lease.done();
            Ok(answer)
        };
        asked.await.map_err(|error| self.fault(error))
    }

    fn fault(&self, error: AskError) -> Fault {
        let home = self.home().to_owned();
        // Undefined table, schema, column: it is not of this version.
        if let AskError::Server { sqlstate, .. } = &error
            && ["42P01", "3F000", "42703"].contains(&sqlstate.as_str())
        {
            return Fault::NoSchema { home };
        }
        let primary = self.database.shards.iter().find(|it| it.name == home);
        let address = primary.map_or_else(String::new, |shard| {
            let host = match &shard.primary.host {
                Host::Tcp(name) => name.clone(),
                Host::Unix(directory) => directory.display().to_string(),
            };
            format!("{host}:{}", shard.primary.port)
        });
        Fault::Ask {
            home,
            address,
            error,
        }
    }

    /// The map, and its number.
    pub(super) async fn map(&self) -> Result<(i64, Content), Fault> {
        let now = self.registry.read_map().await;
        let now = now.map_err(|error| match error {
            Unflipped::Ask(error) => self.fault(error),
            other @ (Unflipped::NoMap
            | Unflipped::Changed { .. }
            | Unflipped::NotHeld
            | Unflipped::Replaced
            | Unflipped::Record { .. }) => Fault::Map(other),
        })?;
        Ok((now.epoch, now.content))
    }

    /// The reshard that was begun last, or the one that is named.
    pub(super) async fn seen(&self, id: Option<&str>) -> Result<Option<Seen>, Fault> {
        let asked = self.at_home(async |lease| {
            let all = record::all(lease).await?;
            let leader = record::leader(lease).await?;
            let proxies: i64 = lease.query_one(ALIVE, &[]).await?.get(0);
            Ok((all, leader, proxies))
        });
        let (all, leader, proxies) = asked.await?;
        let known: Vec<String> = all.iter().map(|it| it.id.clone()).collect();
        let found = all.into_iter().find(|it| id.is_none_or(|id| id == it.id));
        match (found, id) {
            (Some(stored), _) => Ok(Some(Seen {
                stored,
                leader,
                proxies,
            })),
            (None, None) => Ok(None),
            (None, Some(id)) => Err(Fault::NoRun {
                id: id.to_owned(),
                known,
            }),
        }
    }

    /// The one that is not over.
    pub(super) async fn unfinished(&self) -> Result<Seen, Fault> {
        let seen = self.seen(None).await?.ok_or(Fault::None)?;
        let (id, state) = (&seen.stored.id, seen.stored.record.state);
        if seen.stored.record.is_over() {
            let id = id.clone();
            return Err(Fault::Over { id, state });
        }
        Ok(seen)
    }

    /// Its journal, the newest first.
    pub(super) async fn journal(&self, id: &str) -> Result<Vec<Entry>, Fault> {
        self.at_home(async |lease| record::entries(lease, id, ENTRIES).await)
            .await
    }

    /// Proxies that are alive: all, and those without the present map.
    pub(super) async fn proxies(&self) -> Result<(i64, Vec<String>), Fault> {
        const PROXIES: &str = "\
SELECT coalesce(p.address, 'local') || ' (' || p.incarnation || ')', coalesce(p.epoch, 0) < e.epoch \
FROM shardway.proxy p, shardway.epoch e WHERE p.heartbeat > now() - interval '7 s' ORDER BY 1";
        let rows = self.at_home(async |lease| Ok(lease.query(PROXIES, &[]).await?));
        let rows = rows.await?;
        let late = rows.iter().filter(|row| row.get(1)).map(|row| row.get(0));
        Ok((i64::try_from(rows.len()).unwrap_or(0), late.collect()))
    }

    /// Proxies that are alive and whose configuration lacks one of these shards.
    pub(super) async fn unable(&self, shards: &[String]) -> Result<Vec<Unable>, Fault> {
        let unable = self.registry.unable(shards, LAPSED).await;
        unable.map_err(|error| self.fault(error))
    }

    /// Records a new one.
    pub(super) async fn start(&self, planned: &Planned, knobs: &Knobs) -> Result<(), Fault> {
        let mut expected: BTreeMap<String, Value> = BTreeMap::new();
        let known = planned.sizes.iter();
        for (table, size) in known.filter_map(|it| Some((&it.table, it.rows?))) {
            let rows = expected
                .entry(told::expected(table))
                .or_insert_with(|| 0.into());
            *rows = (rows.as_u64().unwrap_or(0) + size).into();
        }
        // Of a part of a table nothing is said: it would be taken for the whole.
        for unknown in planned.sizes.iter().filter(|it| it.rows.is_none()) {
            expected.remove(&told::expected(&unknown.table));
        }
        for _ in 0..TRIES {
            let all = self.at_home(async |lease| record::all(lease).await).await?;
            if let Some(other) = all.iter().find(|it| !it.record.is_over()) {
                return Err(Fault::UnderWay(other.id.clone()));
            }
            let known = all.into_iter().map(|it| it.id).chain(self.runs().await);
            let number = |id: String| id.strip_prefix('r')?.parse::<u64>().ok();
            let last = known.filter_map(number).max().unwrap_or(0);
            let (id, plan) = (format!("r{}", last + 1), &planned.plan);
            let started =
                self.at_home(async |lease| record::start(lease, &id, plan, knobs, &expected).await);
            if started.await? {
                return Ok(());
            }
        }
        Err(Fault::Busy)
    }

    /// What shards have seen of runs: a home shard that was restored may have forgotten some, and what is said of them there
    /// must not be taken for what is said of another. Slots are of the whole server: those of a reshard of another database
    /// are called by its number too.
    async fn runs(&self) -> Vec<String> {
        const RUNS: &str = "\
SELECT workflow FROM shardway.runner UNION SELECT workflow FROM shardway.activation \
UNION SELECT (regexp_match(slot_name, '^shardway_(r[0-9]+)_'))[1] FROM pg_replication_slots WHERE slot_name ~ '^shardway_r[0-9]+_'";
        let mut runs = Vec::new();
        for shard in self.registry.shards() {
            let asked = async {
                let lease = self.registry.lease(shard).await?;
                let rows = errand(async { Ok(lease.query(RUNS, &[]).await?) }).await?;
                lease.done();
                Ok::<_, AskError>(rows)
            };
            // One that is new has no schema yet; one that is down is told by what is done there.
            let rows = asked.await.unwrap_or_default();
            runs.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        runs
    }

    /// Writes a wish.
    pub(super) async fn change(
        &self,
        event: &str,
        change: impl Fn(&Record) -> Result<Record, Refusal>,
    ) -> Result<Seen, Fault> {
        for _ in 0..TRIES {
            let seen = self.unfinished().await?;
            let stored = &seen.stored;
            let record = change(&stored.record).map_err(|refusal| refused(refusal, stored))?;
            let none = serde_json::json!({});
            let swapped = self
                .at_home(async |lease| record::swap(lease, stored, &record, event, &none).await);
            if swapped.await? {
                let stored = Stored {
                    record,
                    ..seen.stored
                };
                return Ok(Seen { stored, ..seen });
            }
        }
        Err(Fault::Busy)
    }

    /// Changes how it runs.
    pub(super) async fn set(&self, values: &[String]) -> Result<Seen, Fault> {
        self.change_knobs(|stored| knobs::changed(stored.knobs.clone(), values))
            .await
    }

    /// Says of shards that were to join that they are gone for good, if it may be given up: what is there stays there.
    pub(super) async fn goes_without(&self, shards: &[String]) -> Result<(), Fault> {
        if shards.is_empty() && self.unfinished().await?.stored.knobs.without.is_empty() {
            return Ok(());
        }
        let may = |stored: &Stored| {
            let allowed = stored.record.allows(Wish::Abort);
            allowed.map_err(|refusal| refused(refusal, stored))?;
            match shards.iter().find(|it| !stored.plan.joins.contains(it)) {
                None => Ok(()),
                Some(other) => Err(Fault::NotJoining {
                    shard: other.clone(),
                    joining: stored.plan.joins.clone(),
                }),
            }
        };
        may(&self.unfinished().await?.stored)?;
        for shard in shards {
            if self.is_there(shard).await {
                return Err(Fault::StillThere {
                    shard: shard.clone(),
                });
            }
        }
        let said = self.change_knobs(|stored| {
            may(stored)?;
            let mut knobs = stored.knobs.clone();
            // What was said with an abort that never was may not be so any more.
            if stored.without().is_empty() {
                knobs.without.clear();
            }
            knobs.without.extend(shards.iter().cloned());
            Ok(knobs)
        });
        said.await.map(drop)
    }

    /// Whether a shard answers; one that the configuration has no more cannot be asked.
    async fn is_there(&self, shard: &str) -> bool {
        let mut named = self.registry.shards();
        let Some(shard) = named.find(|it| self.registry.name(*it) == shard) else {
            return false;
        };
        let asked = async {
            let lease = self.registry.lease(shard).await?;
            errand(async { Ok(lease.query_one("SELECT 1", &[]).await?) }).await?;
            lease.done();
            Ok::<_, AskError>(())
        };
        asked.await.is_ok()
    }

    async fn change_knobs(
        &self,
        change: impl Fn(&Stored) -> Result<Knobs, Fault>,
    ) -> Result<Seen, Fault> {
        for _ in 0..TRIES {
            let seen = self.unfinished().await?;
            let stored = &seen.stored;
            let knobs = change(stored)?;
            let set = self.at_home(async |lease| record::set_knobs(lease, stored, &knobs).await);
            if set.await? {
                let stored = Stored {
                    knobs,
                    ..seen.stored
                };
                return Ok(Seen { stored, ..seen });
            }
        }
        Err(Fault::Busy)
    }
}

/// With what would make sense instead.
fn refused(refusal: Refusal, stored: &Stored) -> Fault {
    Fault::Refused {
        refusal,
        id: stored.id.clone(),
        state: stored.record.state,
        next: told::next_steps(&stored.record).join(", "),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A reshard of nothing that stands so; nobody runs it.
    pub(in crate::cli::reshard) fn seen(record: Record) -> Seen {
        Seen {
            stored: Stored {
                id: "r1".to_owned(),
                record,
                token: 1,
                version: 1,
                plan: Arc::default(),
                knobs: Knobs::default(),
                progress: BTreeMap::new(),
                made_at: String::new(),
                changed_at: String::new(),
            },
            leader: None,
            proxies: 1,
        }
    }
}
