//! A session at the gate: before a statement is given its place it says whose rows it touches. While keys change their
//! owner it waits there, and is planned anew when it goes on.
//!
//! What must stay true: nothing that touches rows of several shards is given a place without having passed; what waits
//! has done nothing, and notices a cancel, its client's end and the proxy's. Who has touched keys under one map goes on
//! with them under no other.

use super::{
    database::Database,
    prepared::Prepared,
    reply::session as reply,
    request::Stop,
    session::{End, Portal, Session},
};
use crate::{
    catalog::{
        group::{Group, GroupId},
        snapshot::{Placement, Snapshot},
    },
    clock::{Duration, Instant},
    gate::{
        Came, Ticket,
        state::{Answer, Attempt, REFERENCES, Touch, Touched},
        tally,
    },
    plan::{StatementPlan, Values, change::Changes},
    registry::holds::Reshard,
    sql::{
        change::{Harm, Meanwhile},
        statement::{Access, Effect},
    },
    wire::{
        backend::Status,
        notice::{self, Notice, Words},
    },
};
use std::sync::Arc;
use tokio::sync::watch;

/// Whether a statement may go on as it was planned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Passed {
    Now,
    /// It has waited: it is planned anew.
    Anew,
}

/// How a statement stands at the gate.
enum Stands {
    Passes,
    /// For this attempt.
    Waits(Attempt),
    /// What is known here may be out of date.
    Unheard,
    /// It is in doubt what this attempt has done.
    Refused(Option<Attempt>),
    Cancelled,
}

/// Which keys have another owner now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moved {
    /// Some that the transaction has touched.
    Touched,
    /// Some that a statement asks for: it goes on unless it has a snapshot of before.
    AskedFor,
}

/// What a shard is asked before a change that it may have to be spared; it answers `t` then.
pub(super) struct Asks {
    pub(super) question: String,
    pub(super) refused: Notice,
}

/// Why a change of tables whose rows move is not made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::proxy) enum Why {
    Harm(Harm),
    /// This shard has the tables and does not serve yet.
    Joins(String),
    /// Rows are copied or compared, or owners change: a column would come in the middle of that.
    Early,
    /// The shard key would no longer be in every row.
    Key,
    /// The constraint that it drops is one by which rows are found.
    Kept,
    /// The home shard does not say how far the reshard is.
    Unknown,
}

/// How long a statement waits for this proxy to know again what the others have agreed on.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a guard refuses a write with.
const GUARD: &[u8] = b"SWG01";

/// How often it is looked for meanwhile.
const LOOK: Duration = Duration::from_millis(50);

impl Session {
    /// Statements are about to be given their place; whether they must ask first.
    pub(super) fn comes_to_gate(&mut self, statements: &[StatementPlan]) -> Came {
        self.keeps_with(statements);
        // BEGIN together with what follows it may begin such a one too, and so may what goes to the link: nobody says here
        // which statement takes its snapshot.
        let several = statements.len() > 1;
        let concerns = |one: &StatementPlan| {
            let begins = matches!(one.effect, Effect::Begin | Effect::SetTransaction)
                && (several || (self.link.is_some() && !self.at_rest()));
            !one.touches.is_nothing() || begins || matches!(one.effect, Effect::Execute { .. })
        };
        if !self.promises_one_snapshot() && !statements.iter().any(concerns) {
            return Came::Quiet;
        }
        self.comes()
    }

    /// Whether the deferred transaction reads what was committed when it reaches a shard.
    fn promises_one_snapshot(&self) -> bool {
        self.deferred.as_ref().is_some_and(|deferred| {
            !deferred.statement_snapshots() || !self.begins_read_committed()
        })
    }

    fn comes(&mut self) -> Came {
        if self.snapshot.is_single()
            || !self.database.coordinator.is_wanted()
            // Nothing runs in it; what stands behind its end comes by itself.
            || self.status() == Status::Failed
        {
            return Came::Quiet;
        }
        let now = self.now();
        let (database, number) = (&self.database, self.info.pid);
        let ticket = self
            .ticket
            .get_or_insert_with(|| database.gate.enter(number));
        let newest = || database.snapshot.load().era;
        let came = ticket.comes(now, self.snapshot.era, newest);
        if came == Came::Quiet && self.began_on.is_some() {
            // What it began on counts, also when nothing moves any more.
            return Came::Again;
        }
        came
    }

    /// Whether statements were planned before this proxy knew what is on two shards now.
    fn is_outdated(&self) -> bool {
        self.database.snapshot.load().era > self.snapshot.era
    }

    /// Whether statements pass without a wait. If they do not they have not come, and must ask: why not, and until when,
    /// is said there.
    pub(super) fn passes_at_once(
        &mut self,
        came: Came,
        statements: &[StatementPlan],
        values: &Values<'_>,
    ) -> bool {
        if self.is_outdated() {
            return false;
        }
        let mut asked = self.ticket.as_mut().map(Ticket::lend).unwrap_or_default();
        self.note_touched(statements, values, &mut asked);
        let moved = came == Came::Again && self.moved_meanwhile(&asked).is_some();
        let passes = !moved && matches!(self.stands(came, &asked), Stands::Passes);
        if let Some(ticket) = &mut self.ticket {
            ticket.restore(asked);
        }
        passes
    }

    /// Asks whether statements may go on, and waits until they may.
    pub(super) async fn asks_gate(
        &mut self,
        came: Came,
        statements: &[StatementPlan],
        values: &Values<'_>,
    ) -> Result<Passed, Stop> {
        let mut asked = Touched::default();
        self.note_touched(statements, values, &mut asked);
        self.asks_for(came, &asked).await
    }

    /// Waits until a function may be called: the application's own may touch anything, any other takes the snapshot of a
    /// transaction that has one.
    pub(super) async fn passes_gate_for_call(&mut self, is_own: bool) -> Result<(), Stop> {
        while is_own || self.promises_one_snapshot() {
            let came = self.comes();
            if came == Came::Quiet {
                return Ok(());
            }
            let mut asked = Touched::default();
            if is_own {
                self.touches_any(&mut asked);
            }
            if self.asks_for(came, &asked).await? == Passed::Now {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Whether a schema change leaves alone what a reshard copies, or does to all that has been copied what it does to the
    /// rest. What it has to ask shards then, before it does so.
    ///
    /// # Errors
    /// It does not.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "a session is not Sync: a future with a shared reference to it could not go to another thread"
    )]
    pub(super) async fn check_moving(
        &mut self,
        statement: &StatementPlan,
        changes: &Changes,
    ) -> Result<Option<Asks>, Stop> {
        if leaves_tables_alone(changes.command) {
            return Ok(None);
        }
        let groups = self.snapshot.groups.iter().zip(0_u16..);
        let groups = groups.map(|(_, at)| GroupId(at));
        let touched = groups.filter(|group| statement.touches.has(*group));
        let touched: Vec<GroupId> = touched.filter(|group| self.is_moving(*group)).collect();
        let mut asks = None;
        for group in touched {
            let name = self.snapshot.group(group).name.clone();
            let reshard = reshard_of(&self.database, &name).await;
            if let Err(why) = self.may_meanwhile(reshard.as_ref(), changes) {
                let refused = reply::tables_move(changes.command, &name, reshard.as_ref(), &why);
                return Err(refused.into());
            }
            asks = changes.meanwhile.asks.clone().map(|question| Asks {
                question,
                refused: reply::tables_move(changes.command, &name, reshard.as_ref(), &Why::Kept),
            });
        }
        Ok(asks)
    }

    /// Whether a change is made although rows are on two shards.
    fn may_meanwhile(&self, reshard: Option<&Reshard>, changes: &Changes) -> Result<(), Why> {
        let mild = match &changes.meanwhile.what {
            Meanwhile::Done(mild) => mild,
            Meanwhile::Refused(harm) => return Err(Why::Harm(*harm)),
        };
        let reshard = reshard.ok_or(Why::Unknown)?;
        // Who serves, by the map that this is planned with, is changed too.
        let known = Arc::clone(&self.snapshot);
        let serves = |shard: &String| {
            let named = known.shard_named(shard);
            named.is_some_and(|id| known.all().contains(id))
        };
        if let Some(joins) = reshard.joins.iter().find(|shard| !serves(shard)) {
            return Err(Why::Joins(joins.clone()));
        }
        let is_key = |column: &String| {
            let mut tables = known.tables.iter();
            tables.any(|(name, table)| {
                let keyed = matches!(&table.placement, Placement::Sharded { key_column, .. } if key_column == column);
                keyed && changes.tables.contains(&name.name)
            })
        };
        if mild.freed.iter().any(is_key) {
            return Err(Why::Key);
        }
        let stands = reshard.made && matches!(reshard.state.as_str(), "ready" | "reverse");
        if !mild.added.is_empty() && !stands {
            return Err(Why::Early);
        }
        Ok(())
    }

    /// Whether no rows of a group move.
    ///
    /// # Errors
    /// Some do.
    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "a session is not Sync: a future with a shared reference to it could not go to another thread"
    )]
    pub(super) async fn check_group_not_moving(
        &mut self,
        group: GroupId,
        command: &str,
    ) -> Result<(), Stop> {
        if !self.is_moving(group) {
            return Ok(());
        }
        let name = self.snapshot.group(group).name.clone();
        let reshard = reshard_of(&self.database, &name).await;
        let why = Why::Harm(Harm::Else);
        Err(reply::tables_move(command, &name, reshard.as_ref(), &why).into())
    }

    fn is_moving(&self, group: GroupId) -> bool {
        !self.snapshot.group(group).doubled.is_empty()
    }

    /// What a guard says to a write of keys that its shard has given away, as the client is told; `None`: it is another
    /// error.
    pub(super) fn guarded(&mut self, body: &[u8]) -> Option<Words> {
        if notice::field(body, b'C') != Some(GUARD) {
            return None;
        }
        self.is_guarded();
        if let Ok(registry) = self.database.coordinator.registry() {
            registry.look_again();
        }
        let said = notice::field(body, b'M').unwrap_or_default();
        Some(reply::write_refused(&String::from_utf8_lossy(said)).into())
    }

    /// A transaction, or a statement outside of one, has ended.
    pub(super) fn leaves_gate(&mut self) {
        if let Some(ticket) = &self.ticket {
            ticket.ends();
            self.began_on = None;
        }
    }

    /// The transaction has ended AND CHAIN, and nothing has come behind that: the next one has touched nothing. It is at the
    /// gate at once, as what takes its snapshot may not come there.
    pub(super) fn begins_again_at_gate(&mut self) {
        let at_work = self.ticket.as_ref().is_some_and(Ticket::is_at_work);
        if !at_work || self.status() != Status::Transaction {
            return;
        }
        self.leaves_gate();
        if let (came @ Came::First, Some(ticket)) = (self.comes(), &self.ticket) {
            // Nothing is touched that could be held.
            let _passes = ticket.asks(came, &Touched::default());
        }
    }

    /// It goes on with a database that has another gate: it leaves that of before, and what is under way may have touched
    /// anything.
    pub(super) fn goes_to_gate(&mut self, database: &Database) {
        let at_work = self.ticket.take().is_some_and(|it| it.is_at_work());
        self.began_on = None;
        if at_work {
            let ticket = database.gate.enter(self.info.pid);
            // By no knowledge that this gate has of what is on two shards.
            let _came = ticket.comes(self.now(), 0, || 0);
            self.ticket = Some(ticket);
        }
    }

    /// A batch is over within a transaction: nothing of it is sent later unless a portal or a cursor is left.
    pub(super) fn rests_at_gate(&self) {
        let may_run = self.portals.values().any(Portal::may_run_over_shards);
        let leaves = may_run || !self.cursors.is_empty() || self.scattered.is_some();
        if let Some(ticket) = self.ticket.as_ref().filter(|_| !leaves) {
            ticket.rests();
        }
    }

    /// Another snapshot is about to be taken over: a transaction under way is held to that under which it began.
    pub(super) fn keeps_what_it_began_on(&mut self) {
        let at_work = self.ticket.as_ref().is_some_and(Ticket::is_at_work);
        if at_work && self.began_on.is_none() {
            self.began_on = Some(Arc::clone(&self.snapshot));
        }
    }

    async fn asks_for(&mut self, came: Came, asked: &Touched) -> Result<Passed, Stop> {
        if self.is_outdated() {
            return Ok(self.takes_over_eras(came));
        }
        if came == Came::Again
            && let Some((group, which)) = self.moved_meanwhile(asked)
        {
            if which == Moved::Touched || self.has_one_snapshot().await? {
                return Err(reply::keys_moved(&group).into());
            }
            // That may have taken long.
            if !self.skip && self.is_outdated() {
                return Ok(self.takes_over_eras(came));
            }
        }
        if self.skip {
            // What stood before it has failed.
            return Ok(Passed::Now);
        }
        // Before the question, so that no change after it is missed.
        let changes = self.database.gate.changes();
        let stands = self.stands(came, asked);
        match stands {
            Stands::Passes => Ok(Passed::Now),
            Stands::Refused(ref attempt) => {
                if let Some(attempt) = attempt {
                    self.database.gate.tallies.fails(attempt.clone());
                }
                self.has_waited(stands)
            }
            Stands::Cancelled => self.has_waited(stands),
            Stands::Waits(_) | Stands::Unheard => self.waits(changes, asked, stands).await,
        }
    }

    /// A statement that was planned before this proxy knew what is on two shards now has not come.
    fn takes_over_eras(&mut self, came: Came) -> Passed {
        match &self.ticket {
            Some(ticket) if came == Came::First => ticket.ends(),
            // What stands before it in its batch was planned as it was.
            Some(_) if self.pipeline.is_empty() => self.rests_at_gate(),
            Some(_) | None => {}
        }
        self.refresh();
        Passed::Anew
    }

    /// What the gate says of a statement that has come. If it does not pass, it has not come.
    fn stands(&self, came: Came, asked: &Touched) -> Stands {
        let Some(ticket) = &self.ticket else {
            return Stands::Passes;
        };
        if self.is_unheard(asked) {
            if came == Came::First {
                ticket.ends();
            }
            return Stands::Unheard;
        }
        match ticket.asks(came, asked) {
            Answer::Passes => Stands::Passes,
            Answer::Waits(reshard) => Stands::Waits(reshard),
            Answer::Unsure(reshard) => Stands::Refused(Some(reshard)),
        }
    }

    /// Whether keys are touched that move, or may, and what is known of that may be out of date.
    fn is_unheard(&self, asked: &Touched) -> bool {
        let gate = &self.database.gate;
        let now = self.shared.clock.now();
        let lapsed = self.database.coordinator.is_silent(now) || gate.is_lapsed(now);
        lapsed && (gate.may_be_stale(now) || self.is_watched(asked))
    }

    fn is_watched(&self, asked: &Touched) -> bool {
        let mut groups = asked.iter();
        groups.any(|(group, _)| self.database.gate.watches(group))
    }

    /// Waits until it may go on.
    async fn waits(
        &mut self,
        changes: watch::Receiver<u64>,
        asked: &Touched,
        stands: Stands,
    ) -> Result<Passed, Stop> {
        if !self.pipeline.is_empty() {
            // What was asked before it is answered before it.
            self.settle().await?;
            if self.skip {
                return Ok(Passed::Now);
            }
        }
        self.rests_at_gate();
        let begun = self.shared.clock.now();
        self.info.set_held(begun);
        self.cancel.wait_begins();
        let wait = match &stands {
            Stands::Waits(attempt) => Some(self.database.gate.tallies.begin(attempt.clone())),
            Stands::Passes | Stands::Unheard | Stands::Refused(_) | Stands::Cancelled => None,
        };
        let outcome = Box::pin(self.stay(changes, asked, stands, begun + PATIENCE)).await;
        self.cancel.wait_ends();
        match &self.link {
            Some(link) => self.info.set_active(link.shard.0, link.lease.target.pid),
            None => self.info.set_idle(),
        }
        let waited = self.shared.clock.now().saturating_duration_since(begun);
        self.database.coordinator.count_held(waited);
        let stands = outcome?;
        if let Some(wait) = wait {
            let failed = matches!(
                stands,
                Stands::Refused(_) | Stands::Waits(_) | Stands::Unheard
            );
            let how = if failed {
                tally::End::Failed
            } else {
                tally::End::Passed
            };
            wait.ends(waited, how);
        }
        self.has_waited(stands)
    }

    fn has_waited(&self, stands: Stands) -> Result<Passed, Stop> {
        let reshard = match stands {
            Stands::Passes => return Ok(Passed::Anew),
            Stands::Cancelled => return Err(reply::cancelled().into()),
            Stands::Refused(reshard) => reshard,
            Stands::Waits(reshard) => Some(reshard),
            Stands::Unheard => None,
        };
        self.database.coordinator.count_held_refused();
        let reshard = reshard.as_ref().map(|attempt| attempt.workflow.as_str());
        Err(reply::keys_in_doubt(reshard).into())
    }

    /// Waits at the gate; how it stands when there is nothing to wait for any more.
    async fn stay(
        &mut self,
        mut changes: watch::Receiver<u64>,
        asked: &Touched,
        mut stands: Stands,
        until: Instant,
    ) -> Result<Stands, End> {
        loop {
            let unheard = matches!(stands, Stands::Unheard);
            // The sender lives in the gate, which the session's database has.
            let changed = changes.changed();
            let waited = if unheard {
                let looked = tokio::time::timeout(LOOK, changed);
                self.wait_beside(looked).await?.map(drop)
            } else {
                self.wait_beside(changed).await?.map(drop)
            };
            if waited.is_none() {
                return Ok(Stands::Cancelled);
            }
            let before = Arc::clone(&self.snapshot);
            self.refresh();
            if !Arc::ptr_eq(&before, &self.snapshot) {
                // What it touches may be something else by now.
                return Ok(Stands::Passes);
            }
            stands = match self.comes() {
                Came::Quiet => Stands::Passes,
                came @ (Came::First | Came::Again) => self.stands(came, asked),
            };
            match stands {
                Stands::Waits(_) => {}
                Stands::Unheard if self.shared.clock.now() < until => {}
                Stands::Unheard if !self.is_watched(asked) => {
                    // Nothing was known to move: the others wait no more for what cannot be read.
                    self.database.gate.cannot_read();
                }
                Stands::Passes | Stands::Cancelled | Stands::Refused(_) | Stands::Unheard => {
                    return Ok(stands);
                }
            }
        }
    }

    /// Notes whose rows statements touch.
    fn note_touched(&self, statements: &[StatementPlan], values: &Values<'_>, asked: &mut Touched) {
        let begins = |statement: &StatementPlan| matches!(statement.effect, Effect::Begin);
        if self.status() == Status::Transaction || statements.iter().any(begins) {
            asked.goes_on();
        }
        for statement in statements {
            for (group, at) in self.snapshot.groups.iter().zip(0_u16..) {
                let id = GroupId(at);
                if statement.touches.has(id) {
                    let keys = statement.keys_of(id, &self.snapshot, values);
                    asked.add(&group.name, &keys.map_or(Touch::Any, Touch::Keys));
                }
            }
            if statement.touches.has_references() && statement.access == Access::Write {
                asked.add(REFERENCES, &Touch::Any);
            }
            if let Effect::Execute { name, .. } = &statement.effect {
                match self.statements.get(name.as_bytes()) {
                    Some(named) if !statements.iter().any(gives_names) => {
                        self.touched_within(named, asked);
                    }
                    _ => self.touches_any(asked),
                }
            }
        }
    }

    fn touches_any(&self, asked: &mut Touched) {
        for group in &self.snapshot.groups {
            asked.add(&group.name, &Touch::Any);
        }
        asked.add(REFERENCES, &Touch::Any);
    }

    /// What a prepared statement touches that SQL executes: its keys are looked for when it is planned with them.
    fn touched_within(&self, prepared: &Prepared, asked: &mut Touched) {
        for statement in &prepared.plan.statements {
            for (group, at) in self.snapshot.groups.iter().zip(0_u16..) {
                if statement.touches.has(GroupId(at)) {
                    asked.add(&group.name, &Touch::Any);
                }
            }
            if statement.touches.has_references() && statement.access == Access::Write {
                asked.add(REFERENCES, &Touch::Any);
            }
        }
    }

    /// A group of which keys have another owner than when the transaction came to the gate: such that it has touched, or
    /// is about to.
    fn moved_meanwhile(&self, asked: &Touched) -> Option<(String, Moved)> {
        let began = self.began_on.as_ref()?;
        if Arc::ptr_eq(began, &self.snapshot) {
            return None;
        }
        let before = self.ticket.as_ref()?.touched();
        let touched = |group: &str| match &before {
            Some(before) => before.of(group),
            None => Some(&Touch::Any),
        };
        let mut asked_for = None;
        for now in &self.snapshot.groups {
            let (Some(then), Some(wanted)) = (group_named(began, &now.name), asked.of(&now.name))
            else {
                continue;
            };
            if then.map == now.map && then.pins == now.pins {
                continue;
            }
            if touched(&now.name).is_some_and(|touch| has_moved(touch, then, now)) {
                return Some((now.name.clone(), Moved::Touched));
            }
            if has_moved(wanted, then, now) {
                asked_for = Some((now.name.clone(), Moved::AskedFor));
            }
        }
        asked_for
    }

    /// Whether all statements of the transaction under way read what was committed when it began. However it was begun,
    /// and whatever has set it, its server knows, which is asked only when keys have moved meanwhile.
    async fn has_one_snapshot(&mut self) -> Result<bool, Stop> {
        if self.deferred.is_some() {
            // It has none yet.
            return Ok(false);
        }
        self.settle().await?;
        match self.link.as_ref().map(|link| link.status) {
            _ if self.skip => Ok(false),
            Some(Status::Failed) => Ok(false),
            Some(Status::Transaction) if self.parameters.in_transaction() => {
                let level = self.ask(b"SHOW transaction_isolation").await??;
                let each = ["read committed", "read uncommitted"];
                Ok(!level.is_some_and(|level| each.contains(&level.as_str())))
            }
            // A question in between would end what is a transaction only until Sync, as is what stands behind a COMMIT.
            Some(Status::Transaction | Status::Idle) | None => {
                Ok(self.parameters.in_transaction() || !self.begins_read_committed())
            }
        }
    }
}

/// The reshard that moves keys of a group, if the home shard can be asked.
pub(super) async fn reshard_of(database: &Database, group: &str) -> Option<Reshard> {
    let registry = database.coordinator.registry().ok()?;
    registry.reshard_of(group).await.ok().flatten()
}

/// Whether names of prepared statements stand for something else behind it.
fn gives_names(statement: &StatementPlan) -> bool {
    matches!(
        statement.effect,
        Effect::Prepare(_) | Effect::Deallocate(_) | Effect::DiscardAll
    )
}

/// Whether a command changes neither rows nor what tables are.
fn leaves_tables_alone(command: &str) -> bool {
    matches!(
        command,
        "LOCK TABLE" | "setval" | "VACUUM or ANALYZE" | "COMMENT" | "REINDEX"
    )
}

fn group_named<'s>(snapshot: &'s Snapshot, name: &str) -> Option<&'s Group> {
    snapshot.groups.iter().find(|group| group.name == name)
}

fn has_moved(touch: &Touch, then: &Group, now: &Group) -> bool {
    match touch {
        Touch::Any => true,
        Touch::Keys(keys) => keys
            .iter()
            .any(|key| then.shard_of(key) != now.shard_of(key)),
    }
}
