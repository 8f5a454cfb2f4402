//! What a reshard costs its servers: the WAL that its slots keep, how far back they hold vacuum, how old a snapshot a source
//! has to respect, how busy a source is, how far replicas are behind; and how much less is copied for it.
//!
//! What must stay true: a slot that the server has invalidated stops the run with that reason, before anything is concluded
//! from a stream that has a gap; nothing is asked that is not cheap; what is slowed down says why, and goes on by itself.

use super::{
    job::{Job, Knobs, StepError},
    servers::Server,
};
use crate::{
    clock::{Clock, Duration},
    inspect::AskError,
};
use deadpool_postgres::Client;
use serde_json::Value;
use std::collections::BTreeMap;
use tokio::time::timeout;

/// How many transactions back a server's oldest snapshot may be before it is told: vacuum waits for it.
const OLD: i64 = 50_000_000;
const IS_OLD: &str = "a transaction there is so old that vacuum waits for it";

const SLOT: &str = "\
SELECT coalesce(s.wal_status, 'none'), s.safe_wal_size, \
    (pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn))::int8, \
    (SELECT max(oldest) FROM (SELECT greatest(age(backend_xmin), age(backend_xid)) FROM pg_stat_activity \
        UNION ALL SELECT age(transaction) FROM pg_prepared_xacts) ages (oldest))::int8, \
    greatest(age(s.catalog_xmin), age(s.xmin))::int8 \
FROM pg_replication_slots s WHERE s.slot_name = $1";

/// Looks at what the slots of both ways cost.
///
/// # Errors
/// As `look`, but that nothing is needed yet of a slot of the other way: it is made again.
pub async fn look_both(job: &Job) -> Result<(), StepError> {
    look(job).await?;
    match look(&job.turned()).await {
        Err(StepError::Lost { .. }) => Ok(()),
        looked => looked,
    }
}

/// Looks at every source, shows what it sees, and stops what must not go on.
///
/// # Errors
/// [`StepError::Lost`]; [`StepError::Halt`]: a slot keeps more than the limits.
pub(super) async fn look(job: &Job) -> Result<(), StepError> {
    let (most, oldest) = {
        let knobs = job.knobs.borrow();
        (knobs.wal_kept, knobs.xmin_age)
    };
    for source in job.sources() {
        let slot = job.slot(&source.name);
        let asked = async {
            let client = source.sql().await?;
            Ok::<_, AskError>(client.query_opt(SLOT, &[&slot]).await?)
        };
        // A server that cannot be asked is the matter of whoever needs it.
        let Ok(Ok(Some(row))) = timeout(PATIENCE, asked).await else {
            continue;
        };
        let (status, kept): (String, Option<i64>) = (row.get(0), row.get(2));
        let (left, age): (Option<i64>, Option<i64>) = (row.get(1), row.get(3));
        let held: Option<i64> = row.get(4);
        let held = held.and_then(|held| u64::try_from(held).ok());
        let kept = u64::try_from(kept.unwrap_or(0)).unwrap_or(0);
        let name = |what: &str| format!("source.{}.{what}", source.name);
        job.progress.set(name("wal_kept"), kept);
        job.progress.set(name("wal_status"), status.as_str());
        job.progress.set(name("wal_left"), left);
        job.progress.set(name("oldest_snapshot"), age);
        job.progress.set(name("xmin_age"), held);
        let notice = age.is_some_and(|age| age > OLD).then_some(IS_OLD);
        job.progress.set(name("notice"), notice);
        if status == "lost" {
            return Err(StepError::Lost {
                what: format!(
                    "shard {} has invalidated slot {slot}: max_slot_wal_keep_size is too little there",
                    source.name
                ),
            });
        }
        if kept > most {
            return Err(StepError::Halt {
                what: format!(
                    "shard {} keeps {kept} bytes of WAL for slot {slot}, more than {most}",
                    source.name
                ),
                remedy: "resume with a higher limit (reshard set wal_kept=...), or abort"
                    .to_owned(),
            });
        }
        if let Some(held) = held.filter(|held| *held > oldest) {
            return Err(StepError::Halt {
                what: format!(
                    "slot {slot} keeps vacuum of shard {} from what {held} transactions have left in its catalogs, more than {oldest}",
                    source.name
                ),
                remedy: "finish or abort it soon, or resume with a higher limit (reshard set xmin_age=...): a server takes no \
                         writes any more after some 2000000000"
                    .to_owned(),
            });
        }
    }
    Ok(())
}

/// Whoever runs statements there for others; the replica that is farthest behind, by its name and bytes of WAL (one that
/// only receives WAL: what it has received); whether all that is to be seen.
const PRESSURE: &str = "\
SELECT (SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND backend_type = 'client backend' \
            AND application_name <> 'shardway' AND application_name !~ '^shardway (copy|apply) ')::int8, \
       r.name, r.behind, pg_has_role(current_user, 'pg_read_all_stats', 'USAGE') \
FROM (SELECT) one LEFT JOIN LATERAL ( \
    SELECT coalesce(nullif(application_name, ''), 'a replica') AS name, \
           pg_wal_lsn_diff(pg_current_wal_lsn(), coalesce(replay_lsn, flush_lsn))::int8 AS behind \
    FROM pg_stat_replication WHERE state IN ('streaming', 'catchup') AND coalesce(replay_lsn, flush_lsn) IS NOT NULL \
         AND pid NOT IN (SELECT active_pid FROM pg_replication_slots WHERE slot_type = 'logical' AND active_pid IS NOT NULL) \
    ORDER BY 2 DESC LIMIT 1) r ON true";

/// A server that has not answered by then is taken to be too busy.
const PATIENCE: Duration = Duration::from_secs(2);

/// Slows down what a run copies, compares and deletes while servers have more to do than they may have.
#[derive(Debug)]
pub struct Throttle {
    clock: Clock,
    wanted: Knobs,
    /// Copies at a time that are taken away.
    less: usize,
    clients: BTreeMap<String, Client>,
}

/// What was seen on a server.
struct Seen {
    running: u64,
    replica: Option<(String, u64)>,
    answer: Duration,
    sees_all: bool,
}

impl Throttle {
    /// Nothing is slowed down yet.
    #[must_use]
    pub fn new(wanted: Knobs, clock: Clock) -> Self {
        Self {
            clock,
            wanted,
            less: 0,
            clients: BTreeMap::new(),
        }
    }

    /// The operator wants something else.
    pub fn want(&mut self, wanted: Knobs) {
        self.wanted = wanted;
    }

    /// How the run goes now: with fewer copies at a time than is wanted, down to none.
    #[must_use]
    pub fn knobs(&self) -> Knobs {
        Knobs {
            copies: self.wanted.copies.saturating_sub(self.less),
            ..self.wanted.clone()
        }
    }

    /// Looks at all servers: one copy less at a time while one of them has too much to do, one more when none has. Shows
    /// the reason.
    pub async fn look(&mut self, job: &Job) {
        let mut reason = None;
        let sources = job.sources();
        let others = job.destinations().into_iter();
        let others = others.filter(|it| sources.iter().all(|source| source.name != it.name));
        let is_source = |name: &str| sources.iter().any(|source| source.name == name);
        for server in sources.iter().cloned().chain(others) {
            let found = match timeout(PATIENCE, self.ask(&server)).await {
                Ok(Ok(seen)) => self.too_much(&seen, is_source(&server.name)),
                // A server that cannot be asked is the matter of whoever needs it.
                Ok(Err(_)) => {
                    self.clients.remove(&server.name);
                    continue;
                }
                Err(_late) => {
                    self.clients.remove(&server.name);
                    Some(format!("it has not answered within {PATIENCE:?}"))
                }
            };
            reason =
                reason.or_else(|| found.map(|found| format!("shard {}: {found}", server.name)));
        }
        let all = self.wanted.copies;
        let less = match reason {
            Some(_) => self.less + 1,
            None => self.less.saturating_sub(1),
        };
        self.less = less.min(all);
        let shown: Value = match reason {
            Some(reason) => format!(
                "{reason}: {} of {all} copies at a time",
                all.saturating_sub(self.less)
            )
            .into(),
            None if self.less > 0 => {
                format!("{} of {all} copies at a time again", all - self.less).into()
            }
            None => Value::Null,
        };
        job.progress.set("throttle", shown);
    }

    async fn ask(&mut self, server: &Server) -> Result<Seen, AskError> {
        if !self.clients.contains_key(&server.name) {
            let client = server.sql().await?;
            self.clients.insert(server.name.clone(), client);
        }
        let client = &self.clients[&server.name];
        let pressure = client.prepare_cached(PRESSURE).await?;
        let begun = self.clock.now();
        let row = client.query_one(&pressure, &[]).await?;
        let answer = self.clock.now().duration_since(begun);
        let count = |at| {
            row.get::<_, Option<i64>>(at)
                .and_then(|it| u64::try_from(it).ok())
        };
        let name: Option<String> = row.get(1);
        Ok(Seen {
            running: count(0).unwrap_or(0),
            replica: name.zip(count(2)),
            answer,
            sees_all: row.get(3),
        })
    }

    /// What a server has too much of.
    fn too_much(&self, seen: &Seen, is_source: bool) -> Option<String> {
        let Knobs {
            load,
            answer,
            replica_lag,
            ..
        } = self.wanted;
        if let Some((name, behind)) = &seen.replica
            && replica_lag > 0
            && *behind > replica_lag
        {
            return Some(format!(
                "{name} is {behind} bytes of WAL behind it, more than replica_lag={replica_lag}"
            ));
        }
        if !is_source {
            return None;
        }
        if load > 0 && !seen.sees_all {
            return Some(
                "the control role cannot see its load: GRANT pg_read_all_stats to it, or set load=0".to_owned(),
            );
        }
        if load > 0 && seen.running > load {
            let running = seen.running;
            return Some(format!(
                "{running} statements run there, more than load={load}"
            ));
        }
        if !answer.is_zero() && seen.answer > answer {
            return Some(format!(
                "it took {:?} to answer, more than {answer:?}",
                seen.answer
            ));
        }
        None
    }
}
