//! One round of recovery: what is prepared on any shard and has no session any more is finished as its decider says.
//!
//! What must stay true: it may run at any time, on any number of proxies at once, because only the decision's unique key
//! decides; liveness merely spares transactions that are under way. Only what bears this installation's name is touched.
//! The absence of a decision means something only as long as decisions are surely kept.

use super::{
    coordinator::ROUND,
    decision::{self, Age, Finish, Finished, Prepared},
    gid::{self, Gid},
    live::Incarnation,
};
use crate::{
    catalog::shard::ShardId,
    clock::Duration,
    inspect::{AskError, at_once},
    metrics::transactions::{Distributed, Outcome, Part, Proxy, Standing},
    registry::Registry,
};

/// How long a decider whose commit is under way is waited for: there is a next round.
const WAIT: Duration = Duration::from_millis(100);

/// What a round works with.
pub(super) struct Round<'a> {
    pub(super) registry: &'a Registry,
    pub(super) installation: u64,
    pub(super) incarnation: &'a Incarnation,
    /// `None`: the home shard cannot be asked who is alive.
    pub(super) proxies: Option<&'a [Proxy]>,
    pub(super) retention: Duration,
    pub(super) view: &'a Distributed,
}

/// Who is to finish a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// A session's of a process that is there.
    UnderWay,
    /// Nobody's any more.
    Orphan,
    /// Another process's of which nobody can say whether it is there.
    Unknown,
}

impl Round<'_> {
    /// Finishes what can be finished, says what cannot, and forgets decisions that nothing needs any more.
    pub(super) async fn run(&self) {
        let listing = self.registry.shards().map(|shard| self.list(shard));
        let listed = at_once(listing.collect()).await;
        let complete = listed.iter().all(Result::is_ok);
        let mut kept = Vec::new();
        let mut working = Vec::new();
        let mut parts = Vec::new();
        for (shard, listed) in self.registry.shards().zip(listed) {
            let listed = match listed {
                Ok(listed) => listed,
                Err(problem) => {
                    parts.extend(self.not_listed(shard, &problem));
                    continue;
                }
            };
            let named = listed.iter().filter_map(|part| gid::parse(&part.gid));
            kept.extend(named.map(|gid| gid.transaction.to_string()));
            working.push(self.finish_all(shard, listed));
        }
        parts.extend(at_once(working).await.into_iter().flatten());
        self.tell(parts);
        if complete {
            self.forget(&kept).await;
        }
    }

    async fn list(&self, shard: ShardId) -> Result<Vec<Prepared>, AskError> {
        let lease = self.registry.lease(shard).await?;
        let prefix = gid::prefix_of(self.installation);
        decision::prepared(lease, &prefix, self.retention / 2).await
    }

    /// What was prepared there when it could last be asked, and may be there still.
    fn not_listed(&self, shard: ShardId, problem: &AskError) -> Vec<Part> {
        let name = self.registry.name(shard);
        let mut parts = self.view.parts();
        parts.retain(|part| part.shard == name);
        for part in &mut parts {
            let outcome = match part.standing {
                Standing::InDoubt { outcome, .. } => outcome,
                Standing::UnderWay { .. } | Standing::Stuck { .. } => None,
            };
            let problem = problem.to_string();
            part.standing = Standing::InDoubt { outcome, problem };
        }
        parts
    }

    /// One after another; the parts that are left.
    async fn finish_all(&self, shard: ShardId, listed: Vec<Prepared>) -> Vec<Part> {
        let mut left = Vec::new();
        // A decider that cannot be asked is asked once a round, not once a part.
        let mut silent: Vec<(ShardId, String)> = Vec::new();
        for part in listed {
            let parsed = gid::parse(&part.gid);
            let standing = match &parsed {
                Some(gid) => self.finish(shard, gid, &part, &mut silent).await,
                None => stuck("its name says no deciding shard"),
            };
            let transaction = parsed.map_or(part.gid, |gid| gid.transaction.to_string());
            left.extend(standing.map(|standing| Part {
                transaction,
                shard: self.registry.name(shard).to_owned(),
                owner: part.owner.unwrap_or_default(),
                since: part.since,
                standing,
            }));
        }
        left
    }

    /// `None`: it is finished.
    async fn finish(
        &self,
        shard: ShardId,
        gid: &Gid,
        part: &Prepared,
        silent: &mut Vec<(ShardId, String)>,
    ) -> Option<Standing> {
        match whose(gid, self.incarnation, self.proxies) {
            Whose::UnderWay => {
                return Some(Standing::UnderWay {
                    incarnation: gid.transaction.incarnation,
                });
            }
            Whose::Unknown => {
                return in_doubt(None, "the home shard cannot say whether its proxy is alive");
            }
            Whose::Orphan => {}
        }
        if gid.participant != self.registry.name(shard) {
            return stuck("it bears the name of another shard");
        }
        let Some(decider) = self.registry.shard(&gid.transaction.decider) else {
            return stuck("there is no shard of its decider's name");
        };
        let Some(owner) = &part.owner else {
            return stuck("the role that prepared it is gone");
        };
        for shard in [decider, shard] {
            if let Err(problem) = self.registry.shard_ready(shard) {
                return in_doubt(None, &problem.to_string());
            }
        }
        if let Some((_, problem)) = silent.iter().find(|(silent, _)| *silent == decider) {
            return in_doubt(None, problem);
        }
        let outcome = match self.outcome(decider, gid, owner, part.age).await {
            Ok(Some(outcome)) => outcome,
            Ok(None) => return stuck("its decision may have been forgotten"),
            Err(problem) => {
                let text = format!("deciding shard {}: {problem}", gid.transaction.decider);
                if !matches!(problem, AskError::Server { .. }) {
                    silent.push((decider, text.clone()));
                }
                return in_doubt(None, &text);
            }
        };
        self.end(shard, gid, owner, outcome).await
    }

    async fn outcome(
        &self,
        decider: ShardId,
        gid: &Gid,
        owner: &str,
        age: Age,
    ) -> Result<Option<Outcome>, AskError> {
        let lease = self.registry.lease(decider).await?;
        let id = gid.transaction.to_string();
        match age {
            Age::Young => Ok(Some(decision::decide(lease, &id, owner, WAIT).await?)),
            Age::Old => decision::read(lease, &id, owner).await,
        }
    }

    async fn end(
        &self,
        shard: ShardId,
        gid: &Gid,
        owner: &str,
        outcome: Outcome,
    ) -> Option<Standing> {
        let how = match outcome {
            Outcome::Committed => Finish::Commit,
            Outcome::Aborted => Finish::Rollback,
        };
        let ended = match self.registry.lease(shard).await {
            Ok(lease) => decision::finish(lease, &gid.to_string(), owner, how).await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(Finished::Now) => {
                let (database, transaction) = (self.registry.database(), &gid.transaction);
                let (shard, outcome) = (self.registry.name(shard), self.count(outcome));
                tracing::info!(database, %transaction, shard, outcome, "finished what was left in doubt");
                if how == Finish::Commit {
                    // It may have changed the schema there, which nobody has seen yet.
                    self.registry.agreement().renumber();
                }
                None
            }
            // Somebody else was quicker.
            Ok(Finished::NotFound) => None,
            Err(problem) => in_doubt(Some(outcome), &problem.to_string()),
        }
    }

    fn count(&self, outcome: Outcome) -> &'static str {
        match outcome {
            Outcome::Committed => self.view.committed.increment(),
            Outcome::Aborted => self.view.aborted.increment(),
        }
        outcome.word()
    }

    /// Shows what is left, and logs what is new about it.
    fn tell(&self, parts: Vec<Part>) {
        let before = self.view.set_parts(parts.clone());
        let database = self.registry.database();
        for part in parts.iter().filter(|part| !before.contains(part)) {
            let Part {
                transaction,
                shard,
                owner,
                standing,
                ..
            } = part;
            match standing {
                Standing::UnderWay { .. } => {}
                Standing::InDoubt { outcome, problem } => {
                    let outcome = outcome.map_or("unknown", Outcome::word);
                    tracing::warn!(database, transaction, shard, owner, outcome, problem, again = ?ROUND,
                        "a prepared transaction cannot be finished yet");
                }
                Standing::Stuck { problem } => {
                    tracing::error!(
                        database,
                        transaction,
                        shard,
                        owner,
                        problem,
                        "a prepared transaction is left to an operator"
                    );
                }
            }
        }
    }

    async fn forget(&self, kept: &[String]) {
        let ready = |shard: &ShardId| self.registry.shard_ready(*shard).is_ok();
        let forgetting = self
            .registry
            .shards()
            .filter(ready)
            .map(|shard| async move {
                let forgotten = match self.registry.lease(shard).await {
                    Ok(lease) => decision::forget(lease, self.retention, kept).await,
                    Err(error) => Err(error),
                };
                let (database, shard) = (self.registry.database(), self.registry.name(shard));
                match forgotten {
                    Ok(0) => {}
                    Ok(decisions) => {
                        tracing::debug!(database, shard, decisions, "forgot decisions");
                    }
                    Err(problem) => {
                        tracing::warn!(database, shard, %problem, "cannot forget decisions");
                    }
                }
            });
        at_once(forgetting.collect()).await;
    }
}

/// Pure: who is to finish a part.
fn whose(gid: &Gid, me: &Incarnation, proxies: Option<&[Proxy]>) -> Whose {
    let transaction = &gid.transaction;
    if transaction.incarnation == me.id() {
        return if me.is_live(transaction.number) {
            Whose::UnderWay
        } else {
            Whose::Orphan
        };
    }
    let alive = |proxy: &Proxy| proxy.alive && proxy.incarnation == transaction.incarnation;
    match proxies {
        None => Whose::Unknown,
        Some(proxies) if proxies.iter().any(alive) => Whose::UnderWay,
        Some(_) => Whose::Orphan,
    }
}

#[expect(clippy::unnecessary_wraps, reason = "a part that is left")]
fn stuck(problem: &str) -> Option<Standing> {
    Some(Standing::Stuck {
        problem: problem.to_owned(),
    })
}

#[expect(clippy::unnecessary_wraps, reason = "a part that is left")]
fn in_doubt(outcome: Option<Outcome>, problem: &str) -> Option<Standing> {
    Some(Standing::InDoubt {
        outcome,
        problem: problem.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemTime;

    fn proxy(incarnation: u64, alive: bool) -> Proxy {
        Proxy {
            incarnation,
            number: 0,
            version: String::new(),
            address: None,
            started: SystemTime::UNIX_EPOCH,
            heartbeat: SystemTime::UNIX_EPOCH,
            alive,
            epoch: None,
            shards: None,
            this: false,
        }
    }

    fn part(incarnation: u64, number: u64) -> Gid {
        gid::TransactionId {
            installation: 1,
            incarnation,
            number,
            decider: "s0".to_owned(),
        }
        .part("s1")
    }

    #[test]
    fn only_what_nobody_is_at_is_finished() {
        let me = Incarnation::new();
        let live = me.begin();
        let other = me.id().wrapping_add(1);
        let mine = |number| part(me.id(), number);
        assert_eq!(whose(&mine(live.number()), &me, None), Whose::UnderWay);
        assert_eq!(whose(&mine(live.number() + 1), &me, None), Whose::Orphan);
        let of = |proxies: Option<&[Proxy]>| whose(&part(other, live.number()), &me, proxies);
        assert_eq!(of(None), Whose::Unknown);
        assert_eq!(of(Some(&[proxy(other, true)])), Whose::UnderWay);
        assert_eq!(of(Some(&[proxy(other, false)])), Whose::Orphan);
        assert_eq!(of(Some(&[proxy(me.id(), true)])), Whose::Orphan);
    }
}
