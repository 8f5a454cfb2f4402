//! Looks for rings of waits over shards: the IO around `deadlock`.
//!
//! ```text
//!   own transactions without an answer for long ──do they wait for locks?──▶ told on the home shard, where the others' are
//!       ──everybody's waits, twice──▶ rings ──▶ those of one's own that must end
//! ```
//! What must stay true: nobody ends whose ring was not there at one moment as a whole: every wait of it was seen before
//! and after that moment, unbroken and among the same transactions, all of the first look before any of the second. While
//! no transaction over several shards waits for long, nobody is asked anything. A shard that cannot be asked hides the
//! rings through it, until it can be.

use super::{
    deadlock::{Blocker, Member, MemberId, Part, Victim, Wait, confirmed, victims},
    gid,
};
use crate::{
    catalog::shard::ShardId,
    clock::Duration,
    entropy,
    inspect::{AskError, at_once},
    registry::{
        Registry, SILENCE,
        waiting::{Own, Process, Told},
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// A transaction over several shards, one statement of which has been without an answer for long.
#[derive(Clone, Debug)]
pub struct Suspect {
    pub number: u64,
    /// Of which batch of its session's the statement is.
    pub batch: u64,
    pub age: Duration,
    pub backends: Vec<(ShardId, u32)>,
    /// Its name, once it is being committed.
    pub name: Option<String>,
}

/// One of one's own that must end, and why.
#[derive(Debug)]
pub struct Condemned {
    pub number: u64,
    pub batch: u64,
    pub ring: Vec<Wait>,
    /// Where it waits, on the ring or beside it.
    pub waits_on: Vec<ShardId>,
}

/// One proxy's part in finding rings.
#[derive(Debug)]
pub struct Watch {
    owner: u64,
    standing: Standing,
    /// What could not be asked at the last round, so that it is said once.
    deaf: BTreeSet<Option<ShardId>>,
}

/// Whether the others have been told of waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Silent,
    Told,
}

/// What servers say, by shard.
type Looks = BTreeMap<ShardId, Vec<Process>>;

impl Watch {
    /// Of a database of a process.
    #[must_use]
    pub fn new() -> Self {
        Self {
            owner: u64::from_le_bytes(entropy::bytes()),
            standing: Standing::Silent,
            deaf: BTreeSet::new(),
        }
    }

    /// Whether there is anything to do when nothing is suspected.
    #[must_use]
    pub fn is_silent(&self) -> bool {
        self.standing == Standing::Silent
    }

    /// Looks once; `interval` is how often it does.
    pub(super) async fn round(
        &mut self,
        registry: &Registry,
        suspects: &[Suspect],
        interval: Duration,
    ) -> Vec<Condemned> {
        let found = self.try_round(registry, suspects, interval).await;
        let said = found.as_ref().map(drop);
        self.note(registry, None, said);
        found.unwrap_or_default()
    }

    /// The home shard (`None`) or a shard has answered, or has not.
    fn note(&mut self, registry: &Registry, shard: Option<ShardId>, said: Result<(), &AskError>) {
        match said {
            Ok(()) => drop(self.deaf.remove(&shard)),
            Err(problem) if self.deaf.insert(shard) => {
                let database = registry.database();
                let shard = shard.map(|shard| registry.name(shard));
                tracing::warn!(database, shard, %problem, "rings of waits over shards are not found: the home shard or a shard does not say who waits");
            }
            Err(_) => {}
        }
    }

    async fn try_round(
        &mut self,
        registry: &Registry,
        suspects: &[Suspect],
        interval: Duration,
    ) -> Result<Vec<Condemned>, AskError> {
        let mut roots: BTreeMap<ShardId, BTreeSet<i32>> = BTreeMap::new();
        for (shard, pid) in suspects.iter().flat_map(|suspect| &suspect.backends) {
            roots.entry(*shard).or_default().insert(pid.cast_signed());
        }
        let looks = self.look(registry, &roots).await;
        let own = waiting(registry, suspects, &looks);
        if own.is_empty() && self.is_silent() {
            return Ok(Vec::new());
        }
        // Even if it fails, something may be there.
        self.standing = Standing::Told;
        let silence = SILENCE.max(interval * 3);
        let told = registry.tell_waiting(self.owner, &own, silence).await?;
        if own.is_empty() {
            self.standing = Standing::Silent;
            return Ok(Vec::new());
        }
        let members = members(registry, &told);
        let owner = self.owner;
        let mine = |victim: &Victim| victim.member.owner == owner;
        let mut roots: BTreeMap<ShardId, BTreeSet<i32>> = BTreeMap::new();
        for part in members.iter().flat_map(|member| &member.parts) {
            roots.entry(part.shard).or_default().insert(part.pid);
        }
        let first = waits(&self.look(registry, &roots).await);
        if !victims(&members, &first).iter().any(mine) {
            return Ok(Vec::new());
        }
        let second = waits(&self.look(registry, &roots).await);
        let still = confirmed(&first, &second);
        let found = victims(&members, &still);
        let condemned = found.into_iter().filter(mine).filter_map(|victim| {
            let number = victim.member.number;
            let suspect = suspects.iter().find(|suspect| suspect.number == number)?;
            Some(Condemned {
                number,
                batch: suspect.batch,
                ring: victim.ring,
                waits_on: waits_on(suspect, &still),
            })
        });
        Ok(condemned.collect())
    }
}

impl Watch {
    /// Asks all these shards at once.
    async fn look(
        &mut self,
        registry: &Registry,
        roots: &BTreeMap<ShardId, BTreeSet<i32>>,
    ) -> Looks {
        let asked = roots.iter().map(|(shard, pids)| async move {
            let pids: Vec<i32> = pids.iter().copied().collect();
            (*shard, registry.look_at_waits(*shard, &pids).await)
        });
        let mut looks = Looks::new();
        for (shard, found) in at_once(asked.collect()).await {
            self.note(registry, Some(shard), found.as_ref().map(drop));
            looks.insert(shard, found.unwrap_or_default());
        }
        looks
    }
}

impl Default for Watch {
    fn default() -> Self {
        Self::new()
    }
}

/// Where a transaction waits.
fn waits_on(suspect: &Suspect, waits: &[Wait]) -> Vec<ShardId> {
    let waits = |(shard, pid): &&(ShardId, u32)| {
        let pid = pid.cast_signed();
        waits
            .iter()
            .any(|wait| (wait.shard, wait.pid) == (*shard, pid))
    };
    let backends = suspect.backends.iter().filter(waits);
    backends.map(|(shard, _)| *shard).collect()
}

/// Those of one's own that wait for a lock, with all their backends.
fn waiting(registry: &Registry, suspects: &[Suspect], looks: &Looks) -> Vec<Own> {
    let process = |(shard, pid): &(ShardId, u32)| {
        let pid = pid.cast_signed();
        let of_shard = looks.get(shard)?;
        of_shard.iter().find(|process| process.pid == pid)
    };
    let waits = |suspect: &&Suspect| {
        let mut found = suspect.backends.iter().filter_map(process);
        found.any(|process| process.since.is_some())
    };
    let own = suspects.iter().filter(waits).flat_map(|suspect| {
        suspect.backends.iter().filter_map(move |backend| {
            let process = process(backend)?;
            Some(Own {
                number: suspect.number.cast_signed(),
                shard: registry.name(backend.0).to_owned(),
                pid: process.pid,
                transaction: process.transaction.clone(),
                name: suspect.name.clone(),
                age: suspect.age,
            })
        })
    });
    own.collect()
}

/// What proxies have told, by transaction. Shards that this proxy does not know are not its.
fn members(registry: &Registry, told: &[Told]) -> Vec<Member> {
    let mut found: BTreeMap<MemberId, Member> = BTreeMap::new();
    for told in told {
        let id = MemberId {
            begun: told.begun,
            owner: told.owner,
            number: told.number.cast_unsigned(),
        };
        let Some(shard) = registry.shard(&told.shard) else {
            continue;
        };
        let member = found.entry(id).or_insert_with(|| Member {
            id,
            parts: Vec::new(),
            name: told.name.as_deref().map(Into::into),
        });
        member.parts.push(Part {
            shard,
            pid: told.pid,
            transaction: told.transaction.as_str().into(),
        });
    }
    found.into_values().collect()
}

/// The waits that a look has seen.
fn waits(looks: &Looks) -> Vec<Wait> {
    let mut found = Vec::new();
    for (shard, processes) in looks {
        let by_pid: BTreeMap<i32, &Process> = processes
            .iter()
            .map(|process| (process.pid, process))
            .collect();
        for process in processes {
            // A server that has not said yet since when it waits says so at the next look.
            let Some(since) = &process.since else {
                continue;
            };
            let running = process.blockers.iter().filter_map(|pid| by_pid.get(pid));
            let running = running.map(|blocker| Blocker::Running {
                pid: blocker.pid,
                transaction: blocker.transaction.as_str().into(),
            });
            let prepared = process.prepared.as_deref().and_then(gid::parse);
            let prepared = prepared.map(|gid| Blocker::Prepared {
                name: gid.transaction.to_string().into(),
            });
            found.extend(running.chain(prepared).map(|blocker| Wait {
                shard: *shard,
                pid: process.pid,
                transaction: process.transaction.as_str().into(),
                since: since.as_str().into(),
                blocker,
            }));
        }
    }
    found
}
