//! A transaction that reaches several shards: each is reached when a statement belongs to it, is told what the others
//! were told, and follows what concerns the whole transaction.
//!
//! What must stay true: every shard of the transaction has been told the same settings, savepoints and constraints in the
//! same order; if it has failed on one shard, the link is to that shard, which refuses everything but its end; a shard that
//! cannot be told the same is not reached.

mod asking;
mod ends;
mod rings;
pub(super) mod snapshots;

use super::{
    changing::Foreseen,
    link::{Hold, Link},
    prepared::Prepared,
    reply::session as reply,
    request::Stop,
    session::{End, Session, told},
    waits::Seen,
};
use crate::{
    catalog::shard::ShardId,
    config::settings::PoolMode,
    plan::{Plan, StatementPlan},
    pool::state::Claim,
    protocol::{
        parameters::{self, Applied, Parameters, set_to},
        transaction::Deferred,
    },
    sql::statement::{Effect, PinReason},
    txn::deadlock::Wait,
    wire::{
        backend::Status,
        notice::{Notice, Words},
    },
};
use std::{
    ops::{Deref, DerefMut},
    sync::Arc,
};

/// What a session keeps of its transaction so that it may go on to another shard. Empty outside of one, and takes no room
/// while its client thinks for long.
#[derive(Debug, Default)]
pub(super) struct Several(Option<Box<Course>>);

/// What there is to keep.
#[derive(Debug)]
pub(super) struct Course {
    /// What another shard is told of it; `None`: it stays on its shard.
    begun: Option<Deferred>,
    /// It stays there because it promises one snapshot.
    one_snapshot: bool,
    /// The shards of the transaction beside the link's, each at rest within it.
    enlisted: Vec<Box<Link>>,
    /// SET CONSTRAINTS or SET TRANSACTION as it was sent, until it is confirmed.
    sent: Option<Vec<u8>>,
    /// It has changed the schema: the servers are looked at when it is committed.
    schema: Schema,
    /// Once it has gone on to a second shard: whoever looks for rings of waits sees it.
    seen: Option<Seen>,
    /// What came of a ring that it was on.
    ring: Ring,
    /// What it has changed of it, and what was known besides when that was last planned with.
    pub(super) foreseen: Vec<Foreseen>,
    pub(super) foreseen_on: u64,
    /// Why it has failed in what was not needed of an answer.
    unheard: Option<Words>,
}

/// Whether the statement under way was ended for a ring of waits over shards.
#[derive(Clone, Debug, Default)]
enum Ring {
    #[default]
    None,
    /// The servers' error is still to come.
    Found(Arc<[Wait]>),
    /// The client was told; the other shards have not heard of it yet.
    Told,
}

/// Whether the transaction has changed the schema.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Schema {
    #[default]
    Same,
    Changed,
}

/// Why a transaction stays on its shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stays {
    /// It was not begun by BEGIN in a message of its own.
    Implicit,
    /// Several snapshots would be taken where it promises one.
    Isolation,
    /// The session keeps a backend.
    Kept,
    /// A function may have changed settings on its shard.
    Code,
    /// Its time, number or snapshot was told on one shard, and is asked for on another.
    Named,
    /// It runs as another role than the one that logged in.
    Role,
}

impl Several {
    /// Gives back its room when there is nothing to keep.
    pub(super) fn give_back(&mut self) {
        self.0 = self.0.take().filter(|course| !course.is_empty());
    }
}

impl Deref for Several {
    type Target = Course;

    fn deref(&self) -> &Course {
        self.0.as_deref().unwrap_or(Course::NOTHING)
    }
}

impl DerefMut for Several {
    fn deref_mut(&mut self) -> &mut Course {
        self.0.get_or_insert_with(|| Box::new(Course::EMPTY))
    }
}

impl Course {
    const EMPTY: Self = Self {
        begun: None,
        one_snapshot: false,
        enlisted: Vec::new(),
        sent: None,
        schema: Schema::Same,
        seen: None,
        ring: Ring::None,
        foreseen: Vec::new(),
        foreseen_on: 0,
        unheard: None,
    };

    const NOTHING: &Self = &Self::EMPTY;

    /// Whether there is nothing that the next statement would be treated otherwise for.
    fn is_empty(&self) -> bool {
        let Self {
            begun,
            one_snapshot,
            enlisted,
            sent,
            schema,
            seen,
            ring,
            foreseen,
            // Of what was foreseen.
            foreseen_on: _,
            unheard,
        } = self;
        let told = sent.is_some() || seen.is_some() || unheard.is_some();
        let nothing = begun.is_none() && enlisted.is_empty() && foreseen.is_empty();
        nothing && !told && !one_snapshot && *schema == Schema::Same && matches!(ring, Ring::None)
    }

    /// A deferred transaction has reached its first shard, from which it may go on.
    pub(super) fn begun(&mut self, deferred: Option<Deferred>) {
        self.begun = deferred;
        self.one_snapshot = false;
        self.sent = None;
    }

    /// A deferred transaction has reached the shard on which it stays, as it promises one snapshot.
    pub(super) fn stays_with_its_snapshot(&mut self) {
        self.begun(None);
        self.one_snapshot = true;
    }

    /// What the next transaction is told when this one ends AND CHAIN.
    pub(super) fn chain(&self, chain: bool) -> Option<Deferred> {
        self.begun.as_ref().filter(|_| chain).map(Deferred::chain)
    }

    /// Whether several shards have been reached, or the end of the transaction is brought about here for another reason.
    pub(super) fn is_several(&self) -> bool {
        !self.enlisted.is_empty() || self.schema == Schema::Changed
    }

    /// The transaction has failed, if it has, in what was not needed of an answer.
    pub(super) fn unheard(&mut self, words: Option<Words>) {
        self.unheard = words;
    }

    /// Why it has, once.
    pub(super) fn take_unheard(&mut self) -> Option<Words> {
        self.unheard.take()
    }

    /// The transaction has changed the schema.
    pub(super) fn schema_changes(&mut self) {
        self.schema = Schema::Changed;
    }

    /// The links that the transaction has beside the session's, to work together with it.
    pub(super) fn take_enlisted(&mut self) -> Vec<Box<Link>> {
        std::mem::take(&mut self.enlisted)
    }

    /// A link of the transaction on which its time was told.
    pub(super) fn named(&self) -> Option<ShardId> {
        let told = self.enlisted.iter().find(|link| link.named);
        told.map(|link| link.shard)
    }

    /// Links of the transaction, each at rest within it.
    pub(super) fn enlist_again(&mut self, links: Vec<Box<Link>>) {
        self.enlisted.extend(links);
    }

    /// The transaction or session ends: servers undo what is not committed when their connections close.
    pub(super) fn close(&mut self) {
        self.no_longer_seen();
        self.begun(None);
        self.schema = Schema::Same;
        self.foreseen = Vec::new();
        self.enlisted.clear();
    }

    /// A batch has failed: what was sent in it is never confirmed.
    pub(super) fn batch_failed(&mut self) {
        self.sent = None;
    }

    /// Whether the transaction has reached a shard from which it may go on.
    pub(super) fn goes_on(&self) -> bool {
        self.begun.is_some()
    }

    /// The shards of the transaction, `own` being the link's.
    pub(super) fn shards(&self, own: Option<ShardId>) -> Vec<ShardId> {
        let others = self.enlisted.iter().map(|link| link.shard);
        own.into_iter().chain(others).collect()
    }

    /// How many savepoints the transaction has.
    pub(super) fn savepoints(&self) -> usize {
        self.begun.as_ref().map_or(0, Deferred::savepoints)
    }

    fn follow(&mut self, effect: &Effect, parameters: &Parameters) {
        let Some(begun) = &mut self.begun else {
            return;
        };
        let set = |name: &str, value: Option<&str>, local: bool| {
            let verb = if local { "SET LOCAL " } else { "SET " };
            let own = parameters.own_default(name);
            let value = value.map(|value| if value.is_empty() { "''" } else { value });
            set_to(verb, name, value.or(own.as_deref()).unwrap_or("DEFAULT"))
        };
        // What the savepoint's end says has been confirmed: it is there.
        match effect {
            Effect::Savepoint(name) => {
                begun.savepoint(name, savepoint(name).as_bytes());
            }
            Effect::Release(name) => drop(begun.release(name)),
            Effect::RollbackTo(name) => drop(begun.rollback_to(name)),
            Effect::Set { name, value, local } => {
                begun.setting(set(name, value.as_deref(), *local).as_bytes());
            }
            Effect::SetEach(settings) => {
                for (name, value) in settings {
                    begun.setting(set(name, Some(value), false).as_bytes());
                }
            }
            Effect::Reset(name) => begun.setting(set(name, None, false).as_bytes()),
            Effect::ResetAll => begun.setting(b"RESET ALL"),
            Effect::SetTransaction => match self.sent.take() {
                Some(text) => begun.setting(&text),
                None => self.begun = None,
            },
            Effect::None
            | Effect::Begin
            | Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::DiscardAll
            | Effect::Deallocate(_)
            | Effect::Prepare(_)
            | Effect::Execute { .. }
            | Effect::Declare { .. }
            | Effect::Cursor
            | Effect::CopyIn
            | Effect::CopyOut
            | Effect::Listen(_)
            | Effect::Unlisten(_)
            | Effect::Notify
            | Effect::Channels
            | Effect::Pins(_)
            | Effect::Draws
            | Effect::TwoPhase
            | Effect::Opaque => {}
        }
    }
}

/// Names are as PostgreSQL has folded them.
fn savepoint(name: &str) -> String {
    format!("SAVEPOINT \"{}\"", name.replace('"', "\"\""))
}

/// Whether every shard of the transaction must do it, and not one alone.
fn concerns_all(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Savepoint(_)
            | Effect::Release(_)
            | Effect::RollbackTo(_)
            | Effect::SetTransaction
            | Effect::Set { .. }
            | Effect::SetEach(_)
            | Effect::Reset(_)
            | Effect::ResetAll
    )
}

/// Whether PostgreSQL refuses to prepare a transaction in which it was done.
fn keeps_from_preparing(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Notify
            | Effect::Listen(_)
            | Effect::Unlisten(_)
            | Effect::Declare { hold: true }
            | Effect::Pins(PinReason::TemporaryTable | PinReason::HoldCursor)
    )
}

/// Whether it is the end of the transaction.
fn is_end(effect: &Effect) -> bool {
    matches!(effect, Effect::Commit { .. } | Effect::Rollback { .. })
}

impl Session {
    /// Whether the transaction under way may go on to this shard.
    pub(super) fn may_go_to(&self, shard: ShardId) -> Result<(), Notice> {
        let Some(why) = self.stays(shard) else {
            return Ok(());
        };
        let here = self.link_shard().unwrap_or(self.any);
        Err(reply::several::second_shard(
            self.database.shard_name(here),
            self.database.shard_name(shard),
            why,
        ))
    }

    /// Whether a statement on this shard may ask for what is the transaction's own: every shard has another answer.
    pub(super) fn may_name_at(&self, shard: ShardId) -> Result<(), Notice> {
        let mut links = self.link.iter().chain(&self.several.enlisted);
        let named = links.find(|link| link.named && link.shard != shard);
        let Some(link) = named.filter(|_| self.several.goes_on()) else {
            return Ok(());
        };
        Err(reply::several::second_shard(
            self.database.shard_name(link.shard),
            self.database.shard_name(shard),
            Stays::Named,
        ))
    }

    fn stays(&self, shard: ShardId) -> Option<Stays> {
        let Some(begun) = &self.several.begun else {
            return Some(if self.several.one_snapshot {
                Stays::Isolation
            } else {
                Stays::Implicit
            });
        };
        let mut links = self.link.iter().chain(&self.several.enlisted);
        if links.any(|link| link.opaque) {
            return Some(Stays::Code);
        }
        let enlisted = &self.several.enlisted;
        if enlisted.iter().any(|link| link.shard == shard) {
            return None;
        }
        if self.mode != PoolMode::Transaction || self.is_kept() {
            Some(Stays::Kept)
        } else if !begun.statement_snapshots() {
            Some(Stays::Isolation)
        } else if self.has_other_role() {
            Some(Stays::Role)
        } else {
            None
        }
    }

    /// Whether statements run as another role than the one that logged in.
    pub(super) fn has_other_role(&self) -> bool {
        let who = ["role", "session_authorization"];
        who.iter().any(|name| self.parameters.get(name).is_some())
    }

    /// Makes the link another shard of the transaction; the shard that it leaves stays enlisted.
    pub(super) async fn go_to(&mut self, shard: ShardId) -> Result<(), Stop> {
        self.leave_link().await?;
        if self.skip {
            return Ok(());
        }
        // What was on its way may have ended the transaction.
        self.may_go_to(shard)?;
        self.fold();
        self.cancel.detach();
        let Some(here) = self.link.take() else {
            return Err(End::Client.into());
        };
        let mut enlisted = self.several.enlisted.iter();
        if let Some(at) = enlisted.position(|link| link.shard == shard) {
            let mut there = self.several.enlisted.swap_remove(at);
            there.since = self.marks.begun;
            self.several.enlisted.push(here);
            self.attach(there);
            let told_settings = self.bring_up_to_date(Hold::Bound).await?;
            // A part of the transaction would be lost.
            return told_settings.map_err(|words| End::Told(Box::new(words.fatal())).into());
        }
        self.is_seen(here.since);
        if let Some(seen) = &self.several.seen {
            seen.joins(here.shard, &here.lease.target);
        }
        match self.enlist(shard, &here).await? {
            Ok(()) => {
                self.several.enlisted.push(here);
                self.report_changes();
                Ok(())
            }
            Err(problem) => {
                self.attach(here);
                Err(problem.into())
            }
        }
    }

    /// Leases a backend of another shard and tells it all that `here` was told since BEGIN.
    async fn enlist(&mut self, shard: ShardId, here: &Link) -> Result<Result<(), Words>, End> {
        // A backend that is kept for a lock is there already.
        let mut parked = self.parked.iter();
        let lease = match parked.position(|link| link.shard == shard) {
            Some(at) => self.parked.swap_remove(at).lease,
            None => match self.checkout_for(shard, Hold::Bound, Claim::GoesOn).await? {
                Ok((lease, _)) => lease,
                Err(problem) => return Ok(Err(problem)),
            },
        };
        let Applied::Known(at_begin, _) = &here.at_begin else {
            return Ok(Err(reply::several::second_shard(
                self.database.shard_name(here.shard),
                self.database.shard_name(shard),
                Stays::Code,
            )
            .into()));
        };
        let settings = parameters::difference(&lease.applied, at_begin);
        self.attach(Box::new(Link {
            at_begin: here.at_begin.clone(),
            savepoints: here.savepoints.clone(),
            ..Link::leased(lease, shard, Hold::Bound, self.marks.begun)
        }));
        if let (Some(seen), Some(link)) = (&self.several.seen, &self.link) {
            seen.joins(shard, &link.lease.target);
        }
        let begun = self.several.begun.clone();
        let replay = begun.iter().flat_map(Deferred::replay);
        let texts = settings.iter().map(String::as_bytes).chain(replay);
        for text in texts {
            if let Err(problem) = self.prelude(text).await? {
                self.link = None;
                self.cancel.detach();
                return Ok(Err(problem));
            }
        }
        if let Some(link) = &mut self.link {
            link.lease.applied = here.lease.applied.clone();
        }
        Ok(Ok(()))
    }

    /// A statement has been confirmed on the link: what another shard is told of it, and what the enlisted ones have done
    /// already.
    pub(super) fn followed(&mut self, effect: &Effect) {
        if let Some(link) = &mut self.link {
            link.unpreparable |= keeps_from_preparing(effect);
        }
        if self.several.begun.is_none() || !concerns_all(effect) {
            return;
        }
        self.several.follow(effect, &self.parameters);
        self.cursors.follow(effect, self.several.savepoints());
        if let Some(link) = &self.link {
            for other in &mut self.several.enlisted {
                other.lease.applied.clone_from(&link.lease.applied);
                other.savepoints.clone_from(&link.savepoints);
            }
        }
    }

    /// The backend on the link was told settings within the transaction: another one is told them too.
    pub(super) fn told_within(&mut self, sql: &str) {
        let within = self
            .link
            .as_ref()
            .is_some_and(|link| link.status == Status::Transaction);
        if let (true, Some(begun)) = (within, &mut self.several.begun) {
            begun.setting(sql.as_bytes());
        }
    }

    /// Before a statement, alone in its text, goes to the link: what concerns the whole transaction is done on its other
    /// shards first. A shard on which it fails becomes the link, so that the transaction has failed.
    pub(super) async fn others_first(
        &mut self,
        statement: &StatementPlan,
        text: &[u8],
    ) -> Result<(), Stop> {
        if self.several.begun.is_none() || !concerns_all(&statement.effect) {
            return Ok(());
        }
        let keeps_text = statement.effect == Effect::SetTransaction;
        if self.several.is_several() || (keeps_text && self.several.sent.is_some()) {
            // What came before it has its answer first; on one shard a pipeline goes on.
            self.settle().await?;
        }
        let failed = self
            .link
            .as_ref()
            .is_none_or(|link| link.status == Status::Failed);
        let revives = matches!(statement.effect, Effect::RollbackTo(_));
        if self.skip || (failed && !revives) {
            return Ok(());
        }
        if keeps_text {
            self.several.sent = Some(text.to_vec());
        }
        if !self.several.is_several() {
            return Ok(());
        }
        if self.changes_role(&statement.effect) {
            return Err(reply::several::role_over_several().into());
        }
        self.tell_others(text, failed).await
    }

    fn changes_role(&self, effect: &Effect) -> bool {
        matches!(effect, Effect::Set { name, .. } if matches!(name.as_str(), "role" | "session_authorization"))
    }

    async fn tell_others(&mut self, text: &[u8], failed: bool) -> Result<(), Stop> {
        let mut others = std::mem::take(&mut self.several.enlisted);
        let wanted = self.parameters.wanted();
        let asked = others.iter_mut().map(|link| {
            let known = matches!(&link.lease.applied, Applied::Known(_, hash) if *hash == self.parameters.wanted_hash());
            let settings = (!failed && !known)
                .then(|| parameters::difference(&link.lease.applied, wanted))
                .flatten();
            let mut sql = settings.map(String::into_bytes).unwrap_or_default();
            sql.extend_from_slice(text);
            (&mut **link, sql)
        });
        self.marks.waits();
        let answers = asking::ask_each(asked.collect()).await;
        self.several.enlisted = others;
        let mut refused = None;
        for (at, answer) in answers.into_iter().enumerate() {
            match answer {
                asking::Answer::Done { .. } => {}
                asking::Answer::Failed(words) => refused = refused.or(Some((at, words))),
                asking::Answer::Lost => {
                    let shard = self.several.enlisted[at].shard;
                    return Err(told(reply::backend_lost(self.database.shard_name(shard))).into());
                }
            }
        }
        let Some((at, words)) = refused else {
            return Ok(());
        };
        // The link is at rest but for the Sync that ends its batch.
        self.leave_link().await?;
        let there = self.several.enlisted.swap_remove(at);
        self.several.enlisted.extend(self.link.take());
        self.attach(there);
        Err(words.into())
    }

    /// Before a Query goes to the link: the other shards of the transaction first.
    pub(super) async fn query_everywhere(&mut self, plan: &Plan, text: &[u8]) -> Result<(), Stop> {
        let [statement] = plan.statements.as_slice() else {
            self.several.sent = None;
            return Ok(());
        };
        let own = self.with_own_defaults(text, plan);
        self.others_first(statement, own.as_deref().unwrap_or(text))
            .await
    }

    /// Before an Execute goes to the link: the other shards of the transaction first.
    pub(super) async fn execute_everywhere(&mut self, prepared: &Prepared) -> Result<(), Stop> {
        let Some(statement) = prepared.statement() else {
            return Ok(());
        };
        if self.ends_several(statement) {
            // Bound when one shard had been reached: there it would end the transaction of that one.
            return Err(reply::several::bound_before().into());
        }
        let text = prepared.sent.as_ref().unwrap_or(&prepared.text);
        self.others_first(statement, text).await
    }

    /// Whether the statement is the end of a transaction over several shards, which is brought about here.
    pub(super) fn ends_several(&self, statement: &StatementPlan) -> bool {
        self.several.is_several() && is_end(&statement.effect)
    }

    /// Whether a message of several statements cannot be one transaction's over several shards.
    pub(super) fn check_message(&self, statements: &[StatementPlan]) -> Result<(), Notice> {
        let governs = |statement: &StatementPlan| {
            concerns_all(&statement.effect) || is_end(&statement.effect)
        };
        let together = statements.len() > 1 && statements.iter().any(governs);
        if self.several.is_several() && together {
            return Err(reply::several::commands_together());
        }
        Ok(())
    }
}
