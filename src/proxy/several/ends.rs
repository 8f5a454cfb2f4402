//! The end of a transaction over several shards: rolled back everywhere, or committed everywhere.
//!
//! What must stay true: a shard that wrote nothing commits by itself; one that alone wrote commits last and plainly; of
//! several none commits before the transaction is decided (`txn::state`). What the client is told happened has happened,
//! or will whoever dies. A backend goes back only when it is known to be outside of a transaction.

use super::{
    super::{
        changing::Changed,
        link::Link,
        reply::session as reply,
        request::Stop,
        session::{CANCEL_PATIENCE, End, Session, told},
    },
    Schema,
    asking::{Answer, ask, ask_each},
};
use crate::{
    catalog::shard::ShardId,
    clock::Duration,
    failpoint,
    sql::statement::Effect,
    txn::{
        Finish,
        coordinator::{Settled as Found, Transaction},
        state::{Action, Commit, Heard, Place, Settled, Step, Verdict},
    },
    wire::{
        backend::Status,
        notice::{Notice, Words, field},
    },
};

/// What it takes to make the decision outlive a crash, unless more is asked for already.
const COMMIT_DURABLY: &str = "SELECT pg_catalog.set_config('synchronous_commit', 'on', true) WHERE \
     pg_catalog.current_setting('synchronous_commit') OPERATOR(pg_catalog.<>) 'remote_apply'; COMMIT";
/// Whether the transaction has written anything there.
const WROTE: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned()";
/// How long it may take to find out whether a transaction whose decider was lost is committed.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
/// How long a shard that was lost behind the decision is tried again while the client waits.
const CHASE_PATIENCE: Duration = Duration::from_secs(5);

/// How a commit went.
enum Ended {
    Committed,
    /// Nothing of it stays.
    RolledBack(Words),
    /// Committed, or maybe so; the client must know that not all is as it should be.
    Doubtful {
        committed: bool,
        why: Words,
    },
    /// The session cannot go on.
    Over(End),
}

impl From<Notice> for Ended {
    fn from(why: Notice) -> Self {
        Self::RolledBack(why.into())
    }
}

impl Session {
    /// Ends the transaction over several shards as the statement says. Hands back its command tag.
    ///
    /// # Errors
    /// The transaction is over all the same, rolled back where the error does not say otherwise.
    pub(in crate::proxy) async fn end_several(
        &mut self,
        effect: &Effect,
    ) -> Result<&'static [u8], Stop> {
        self.leave_link().await?;
        let commits = matches!(effect, Effect::Commit { .. });
        let chain = matches!(
            effect,
            Effect::Commit { chain: true } | Effect::Rollback { chain: true }
        );
        self.tally.queries += 1;
        let failed = self.status() == Status::Failed;
        let wrote = self.may_have_written_references();
        let schema = self.several.schema;
        let announced = match schema {
            Schema::Changed if commits && !failed => self.announce().await,
            Schema::Changed | Schema::Same => Ok(None),
        };
        let chained = self.several.begun.take().filter(|_| chain);
        let mut links: Vec<Box<Link>> = self.link.take().into_iter().collect();
        links.append(&mut self.several.enlisted);
        let (ended, announced) = match announced {
            Err(why) => {
                roll_back(&mut links).await;
                (Some(why.into()), None)
            }
            Ok(announced) if commits && !failed => (Some(self.commit(&mut links).await), announced),
            Ok(announced) => {
                roll_back(&mut links).await;
                (None, announced)
            }
        };
        let committed = matches!(
            ended,
            Some(
                Ended::Committed
                    | Ended::Doubtful {
                        committed: true,
                        ..
                    }
            )
        );
        let changed = match ended {
            None | Some(Ended::RolledBack(_)) => Changed::Not,
            Some(Ended::Committed | Ended::Doubtful { .. } | Ended::Over(_)) => Changed::MayBe,
        };
        self.transaction_ends(committed);
        for link in &mut links {
            link.transaction_ended();
        }
        self.give_links_back(links).await?;
        if schema == Schema::Changed {
            // The next statement is planned with what is there now.
            Box::pin(self.look_again(changed, announced)).await;
        }
        match ended {
            Some(Ended::Over(end)) => return Err(end.into()),
            Some(Ended::RolledBack(why)) => {
                let otherwise = self.met_strays_at_end(&why, wrote);
                return Err(otherwise.unwrap_or(why).into());
            }
            Some(Ended::Doubtful { why, .. }) => return Err(why.into()),
            Some(Ended::Committed) | None => {}
        }
        if let Some(begun) = chained {
            // The next comes to the gate by itself.
            self.leaves_gate();
            self.parameters.begin();
            self.deferred = Some(begun.chain());
        }
        Ok(if committed { b"COMMIT" } else { b"ROLLBACK" })
    }

    /// Commits on all links; what is not committed is rolled back.
    async fn commit(&self, links: &mut [Box<Link>]) -> Ended {
        let asked = links
            .iter_mut()
            .map(|link| (&mut **link, WROTE.into()))
            .collect();
        let answers = ask_each(asked).await;
        let mut writers = Vec::new();
        for (at, answer) in answers.into_iter().enumerate() {
            let unseen = links[at].unpreparable || links[at].opaque;
            match answer {
                Answer::Done { value, .. } if value.is_some() || unseen => writers.push(at),
                Answer::Done { .. } => {}
                Answer::Failed(words) => {
                    roll_back(links).await;
                    return Ended::RolledBack(words);
                }
                Answer::Lost => return self.lost(links, at).await,
            }
        }
        let readers = (0..links.len())
            .filter(|at| !writers.contains(at))
            .collect();
        if let Err((at, problem)) = plainly(links, readers).await {
            roll_back(links).await;
            return match problem {
                Some(words) => Ended::RolledBack(words),
                None => self.lost(links, at).await,
            };
        }
        if let [only] = writers.as_slice() {
            let only = *only;
            return match plainly(links, vec![only]).await {
                Ok(()) => Ended::Committed,
                Err((_, Some(words))) => Ended::RolledBack(words),
                // Nobody can say what became of it: as on one shard.
                Err((_, None)) => Ended::Over(told(reply::backend_lost(
                    self.database.shard_name(links[only].shard),
                ))),
            };
        }
        if writers.is_empty() {
            return Ended::Committed;
        }
        self.in_two_phases(links, &writers).await
    }

    async fn lost(&self, links: &mut [Box<Link>], at: usize) -> Ended {
        let shard = links[at].shard;
        roll_back(links).await;
        reply::several::shard_lost(self.database.shard_name(shard)).into()
    }

    /// Commits on several shards that wrote.
    async fn in_two_phases(&self, links: &mut [Box<Link>], writers: &[usize]) -> Ended {
        let shards: Vec<ShardId> = writers.iter().map(|at| links[*at].shard).collect();
        let begun = self.decides(links, writers).and_then(|decider| {
            let mut others = shards.clone();
            others.remove(decider);
            let owner = &self.user.backend.user;
            let begun = self
                .database
                .coordinator
                .begin(shards[decider], &others, owner);
            let begun = begun.map_err(|why| reply::several::two_phase_not_ready(&why))?;
            Ok((begun, decider))
        });
        let (transaction, decider) = match begun {
            Ok(begun) => begun,
            Err(why) => {
                roll_back(links).await;
                return why.into();
            }
        };
        if let Some(seen) = self.several.seen() {
            seen.named(transaction.id());
        }
        let mut round = Round {
            links,
            writers,
            transaction: &transaction,
            armed: self.overridden.get(failpoint::SETTING).map(String::as_str),
            said: vec![None; writers.len()],
        };
        let mut commit = Commit::new(writers.len(), decider);
        let verdict = loop {
            match commit.action() {
                Action::Ask(steps) => commit.heard(&round.ask(&steps).await),
                Action::Settle => {
                    let coordinator = &self.database.coordinator;
                    let found = coordinator.settle(&transaction, SETTLE_PATIENCE).await;
                    commit.settled(match found {
                        Found::Committed => Settled::Committed,
                        Found::Aborted => Settled::Aborted,
                        Found::Unknown(error) => {
                            tracing::error!(transaction = transaction.id(), %error, "whether a transaction over several shards is committed is not known yet");
                            Settled::Unknown
                        }
                    });
                }
                Action::Chase(places) => {
                    let late = self.chase(&transaction, &shards, places).await;
                    commit.chased(late);
                }
                Action::End(verdict) => break verdict,
            }
        };
        let said = round.said;
        self.told_of(&verdict, &transaction, &shards, said)
    }

    /// Which of the shards that wrote decides: one whose part cannot be prepared must.
    fn decides(&self, links: &[Box<Link>], writers: &[usize]) -> Result<Place, Notice> {
        if self.has_other_role() {
            return Err(reply::several::role_over_several());
        }
        let unpreparable = |place: &Place| links[writers[*place]].unpreparable;
        let mut found = (0..writers.len()).filter(unpreparable);
        let decider = found.next();
        if let (Some(first), Some(second)) = (decider, found.next()) {
            let name = |place: Place| self.database.shard_name(links[writers[place]].shard);
            return Err(reply::several::cannot_prepare(name(first), name(second)));
        }
        Ok(decider.unwrap_or(0))
    }

    /// Commits the prepared parts that the session's own backends could not; which it could not reach.
    async fn chase(
        &self,
        transaction: &Transaction,
        shards: &[ShardId],
        places: Vec<Place>,
    ) -> Vec<Place> {
        let mut late = Vec::new();
        for place in places {
            let finished = self.database.coordinator.finish(
                transaction,
                shards[place],
                Finish::Commit,
                CHASE_PATIENCE,
            );
            if let Err(problem) = finished.await {
                tracing::error!(transaction = transaction.id(), %problem, "a committed transaction is to be finished by recovery");
                late.push(place);
            }
        }
        late
    }

    fn told_of(
        &self,
        verdict: &Verdict,
        transaction: &Transaction,
        shards: &[ShardId],
        mut said: Vec<Option<Words>>,
    ) -> Ended {
        let name = |place: &Place| self.database.shard_name(shards[*place]);
        let id = transaction.id();
        match verdict {
            Verdict::Committed { late, missing } if late.is_empty() && missing.is_empty() => {
                Ended::Committed
            }
            Verdict::Committed { late, missing } => {
                for place in missing {
                    tracing::error!(
                        transaction = id,
                        shard = name(place),
                        "a prepared part of a committed transaction was gone: somebody has finished it"
                    );
                }
                let names: Vec<&str> = late.iter().chain(missing).map(name).collect();
                Ended::Doubtful {
                    committed: true,
                    why: reply::several::committed_not_finished(id, &names).into(),
                }
            }
            Verdict::Aborted {
                because: Some(place),
            } => match said[*place].take() {
                Some(words) => Ended::RolledBack(words),
                None => reply::several::shard_lost(name(place)).into(),
            },
            Verdict::Aborted { because: None } => reply::several::undecided(id).into(),
            Verdict::InDoubt => Ended::Doubtful {
                committed: false,
                why: reply::several::in_doubt(id).into(),
            },
        }
    }

    /// The links' backends are nobody's, or kept as before; what is not known to be at rest is closed.
    async fn give_links_back(&mut self, links: Vec<Box<Link>>) -> Result<(), End> {
        let cancelled = self.cancel.detach();
        let quiet = !cancelled
            || tokio::time::timeout(CANCEL_PATIENCE, self.quiet())
                .await
                .is_ok();
        for link in links {
            if link.status != Status::Idle || !quiet {
                continue;
            }
            self.link = Some(link);
            if cancelled && self.prelude(b"").await.is_err() {
                // A cancel hits an empty query rather than the next client's.
                self.link = None;
                continue;
            }
            self.park_or_release().await?;
        }
        self.info.set_idle();
        Ok(())
    }
}

/// Rolls back what is open. A backend that does not answer in time is closed, which does the same.
async fn roll_back(links: &mut [Box<Link>]) {
    let mut asked = Vec::new();
    for link in links {
        if link.status != Status::Idle {
            // Not at rest until it has answered.
            asked.push(async {
                let done = tokio::time::timeout(CANCEL_PATIENCE, ask(link, b"ROLLBACK".into()));
                if !matches!(done.await, Ok(Answer::Done { .. })) {
                    link.status = Status::Failed;
                }
                undone(link);
            });
        }
    }
    super::asking::all(asked).await;
}

/// The server has undone what was set in the transaction.
fn undone(link: &mut Link) {
    link.lease.applied = link.at_begin.clone();
}

/// Commits plainly, all at once; which did not, and the server's error if it has not but is there.
async fn plainly(
    links: &mut [Box<Link>],
    places: Vec<usize>,
) -> Result<(), (usize, Option<Words>)> {
    let mut asked = Vec::new();
    for (at, link) in links.iter_mut().enumerate() {
        if places.contains(&at) {
            asked.push((&mut **link, b"COMMIT".to_vec()));
        }
    }
    let answers = ask_each(asked).await;
    let mut outcome = Ok(());
    for (at, answer) in places.into_iter().zip(answers) {
        let link = &mut links[at];
        let problem = match answer {
            Answer::Done { tag, .. } if tag == b"COMMIT" => continue,
            Answer::Done { .. } => {
                undone(link);
                Some(reply::transaction_failed().into())
            }
            Answer::Failed(words) => {
                undone(link);
                Some(words)
            }
            Answer::Lost => {
                link.status = Status::Failed;
                None
            }
        };
        outcome = outcome.and(Err((at, problem)));
    }
    outcome
}

/// The rounds of one commit: its links, and what servers said.
struct Round<'a> {
    links: &'a mut [Box<Link>],
    writers: &'a [usize],
    transaction: &'a Transaction,
    armed: Option<&'a str>,
    /// The first error of each shard.
    said: Vec<Option<Words>>,
}

impl Round<'_> {
    async fn ask(&mut self, steps: &[(Place, Step)]) -> Vec<(Place, Heard)> {
        let Some((_, first)) = steps.first() else {
            return Vec::new();
        };
        let [before, half, after] = points(*first);
        failpoint::hit(before, self.armed).await;
        // A test may stop between two shards.
        let at_once = if failpoint::is_armed(half, self.armed) {
            1
        } else {
            steps.len()
        };
        let (now, later) = steps.split_at(at_once.min(steps.len()));
        let mut heard = self.ask_at_once(now).await;
        if !later.is_empty() {
            failpoint::hit(half, self.armed).await;
            heard.extend(self.ask_at_once(later).await);
        }
        failpoint::hit(after, self.armed).await;
        heard
    }

    async fn ask_at_once(&mut self, steps: &[(Place, Step)]) -> Vec<(Place, Heard)> {
        let mut asked = Vec::new();
        let mut order = Vec::new();
        for (at, link) in self.links.iter_mut().enumerate() {
            let place = self.writers.iter().position(|writer| *writer == at);
            let step = steps.iter().find(|(asked, _)| Some(*asked) == place);
            if let Some((place, step)) = step {
                let sql = sql(*step, self.transaction, link.shard);
                asked.push((&mut **link, sql.into_bytes()));
                order.push((*place, *step));
            }
        }
        let answers = ask_each(asked).await;
        let mut heard = Vec::new();
        for ((place, step), answer) in order.into_iter().zip(answers) {
            let link = &mut self.links[self.writers[place]];
            let (found, words) = judge(step, answer);
            match (found, step) {
                (Heard::Lost, _) => link.status = Status::Failed,
                (Heard::Refused, Step::Prepare | Step::Commit) | (_, Step::Rollback) => {
                    undone(link);
                }
                _ => {}
            }
            let said = &mut self.said[place];
            *said = said.take().or(words);
            heard.push((place, found));
        }
        heard
    }
}

/// The points before, within and behind a round.
fn points(step: Step) -> [&'static str; 3] {
    match step {
        Step::Prepare | Step::Decide => ["preparing", "half-prepared", "prepared"],
        Step::Commit => ["deciding", "half-decided", "decided"],
        Step::CommitPrepared => ["finishing", "half-finished", "finished"],
        Step::Rollback => ["releasing", "half-released", "released"],
        Step::RollbackPrepared => ["undoing", "half-undone", "undone"],
    }
}

/// What a shard is told. The names need no quoting (`txn::gid`).
fn sql(step: Step, transaction: &Transaction, shard: ShardId) -> String {
    let gid = || transaction.gid(shard);
    match step {
        Step::Prepare => format!("PREPARE TRANSACTION '{}'", gid()),
        Step::Decide => format!("SELECT shardway.decide('{}')", transaction.id()),
        Step::Commit => COMMIT_DURABLY.to_owned(),
        Step::Rollback => "ROLLBACK".to_owned(),
        Step::CommitPrepared => format!("COMMIT PREPARED '{}'", gid()),
        Step::RollbackPrepared => format!("ROLLBACK PREPARED '{}'", gid()),
    }
}

/// What an answer means. Only the tag says that a transaction was prepared or committed: one that has failed is rolled
/// back without an error.
fn judge(step: Step, answer: Answer) -> (Heard, Option<Words>) {
    let expected: &[u8] = match step {
        Step::Prepare => b"PREPARE TRANSACTION",
        Step::Decide => b"SELECT 1",
        Step::Commit => b"COMMIT",
        Step::Rollback => b"ROLLBACK",
        Step::CommitPrepared => b"COMMIT PREPARED",
        Step::RollbackPrepared => b"ROLLBACK PREPARED",
    };
    match answer {
        Answer::Done { tag, .. } if tag == expected => (Heard::Done, None),
        Answer::Done { .. } => (Heard::Refused, Some(reply::transaction_failed().into())),
        Answer::Failed(words) => {
            let of_prepared = matches!(step, Step::CommitPrepared | Step::RollbackPrepared);
            let heard = if of_prepared && sqlstate(&words) == b"42704" {
                Heard::Missing
            } else {
                Heard::Refused
            };
            (heard, Some(words))
        }
        Answer::Lost => (Heard::Lost, None),
    }
}

fn sqlstate(words: &Words) -> &[u8] {
    match words {
        Words::Servers(body) => field(body, b'C').unwrap_or_default(),
        Words::Ours(notice) => notice.sqlstate.as_bytes(),
    }
}
