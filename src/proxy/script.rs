//! A Query of several statements that no shard alone can run: one after the other, as PostgreSQL runs them.
//!
//! ```text
//!   Query ──▶ due ──next statement──▶ runs ──its ReadyForQuery, which the client does not see──▶ due ── … ──▶ ended
//! ```
//!
//! What must stay true: what stands outside of BEGIN and COMMIT is one transaction, which is committed before the answer
//! of the text's last statement is told; an error stops the rest and undoes that transaction; one ReadyForQuery answers
//! it all.

use super::{
    local::own_setting,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{End, Phase, Session},
};
use crate::{
    config::settings::PoolMode,
    plan::{StatementPlan, Target, unroutable::Unroutable},
    sql::statement::Effect,
    wire::{
        backend::{Status, put_complete},
        frontend::put,
        notice::Notice,
    },
};

/// How far blanks stand for what was before a statement, so that errors name places in the client's text.
const BLANKS: usize = 64 << 10;

/// A text under way.
#[derive(Debug)]
pub(super) struct Script {
    text: Box<str>,
    /// Where its statements stand, bytes.
    places: Vec<(usize, usize)>,
    next: usize,
    state: State,
    /// The end of the last statement's answer, until what it is a part of is committed.
    held: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A statement is under way, whose answer goes to the client.
    Runs,
    /// As [`State::Runs`]: it is the last, and ours to commit.
    RunsLast,
    /// The next one is due.
    Due,
    /// The rest is skipped.
    Failed,
}

impl Script {
    /// The next statement, where it stands in the client's text.
    fn next_text(&mut self) -> Option<String> {
        let (start, end) = *self.places.get(self.next)?;
        self.next += 1;
        if self.next == 1 {
            // A remark before it may say where it runs.
            return self.text.get(..end).map(str::to_owned);
        }
        let (before, own) = (self.text.get(..start)?, self.text.get(start..end)?);
        if start > BLANKS {
            return Some(own.to_owned());
        }
        let mut text = " ".repeat(before.chars().count());
        text.push_str(own);
        Some(text)
    }

    fn is_at_last(&self) -> bool {
        self.next >= self.places.len()
    }
}

/// What becomes of a statement of a text.
enum Turn {
    /// It runs.
    Runs,
    /// It runs, and nothing is to be done behind it.
    RunsAlone,
    /// It has been answered.
    Answered,
}

/// Whether strings behind it may mean something else than PostgreSQL has read in them, which reads a text as a whole.
fn may_change_strings(statement: &StatementPlan) -> bool {
    let effect = &statement.effect;
    let named = matches!(effect, Effect::Set { name, .. } | Effect::Reset(name) if name == "standard_conforming_strings");
    let may = matches!(
        effect,
        Effect::ResetAll
            | Effect::DiscardAll
            | Effect::Pins(_)
            | Effect::Opaque
            | Effect::Execute { .. }
            | Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::RollbackTo(_)
    );
    named || may
}

impl Session {
    /// Whether the statements of a Query can run one after the other, each where it belongs.
    pub(super) fn may_run_one_by_one(&self, statements: &[StatementPlan]) -> bool {
        let elsewhere = |statement: &StatementPlan| match &statement.target {
            Target::Refused(why) => {
                statement.may_use_several() || matches!(**why, Unroutable::Unsupported { .. })
            }
            Target::Judge => false,
            Target::Fixed(_) | Target::ByKey(_) | Target::Explain(_) => true,
        };
        // A setting of ours is made in a message of its own.
        let ours = |statement: &StatementPlan| own_setting(&statement.effect).is_some();
        statements.len() > 1
            && statements.iter().all(elsewhere)
            && !statements.iter().any(ours)
            && self.script.is_none()
            && self.phase == Phase::Idle
            && self.pipeline.is_empty()
            && self.pending.is_empty()
            && self.mode == PoolMode::Transaction
            && !self.is_kept()
            && !self.snapshot.is_single()
            && (self.status() != Status::Idle || self.begins_read_committed())
    }

    /// Begins to run the statements of a Query one after the other.
    pub(super) fn run_one_by_one(
        &mut self,
        statements: &[StatementPlan],
        text: &[u8],
    ) -> Result<(), Notice> {
        let text = std::str::from_utf8(text).map_err(|_not_utf8| reply::malformed())?;
        // U&'' is an error where the setting is off.
        let fragile = text.contains('\\') || text.contains("U&") || text.contains("u&");
        if fragile && statements.iter().rev().skip(1).any(may_change_strings) {
            return Err(wording::unroutable(&Unroutable::Unsupported {
                feature: "a string with a backslash or U& behind what may change standard_conforming_strings, in one message",
            }));
        }
        let places = statements
            .iter()
            .map(|one| (one.start as usize, one.end as usize));
        self.script = Some(Box::new(Script {
            text: text.into(),
            places: places.collect(),
            next: 0,
            state: State::Due,
            held: Vec::new(),
        }));
        self.phase = Phase::Answering;
        Ok(())
    }

    /// Whether the next statement of a text is due.
    pub(super) fn is_script_due(&self) -> bool {
        let script = self.script.as_deref();
        script.is_some_and(|script| matches!(script.state, State::Due | State::Failed))
    }

    /// Whether a transaction of ours ends with the Query under way.
    pub(super) fn ends_with_query(&self) -> bool {
        self.for_batch && self.script.is_none()
    }

    /// Whether the answer's end waits for the commit.
    pub(super) fn holds_end(&self) -> bool {
        let script = self.script.as_deref();
        script.is_some_and(|script| script.state == State::RunsLast)
    }

    /// Where the end of a statement's answer goes.
    pub(super) fn end_of_answer(&mut self) -> &mut Vec<u8> {
        match self.script.as_deref_mut() {
            Some(script) if script.state == State::RunsLast => &mut script.held,
            Some(_) | None => self.client.out(),
        }
    }

    /// A backend's CommandComplete that waits for the commit.
    pub(super) fn hold_end(&mut self, body: &[u8]) {
        put(self.end_of_answer(), b'C', |out| {
            out.extend_from_slice(body);
        });
    }

    /// A statement of a text has been answered; false: none is under way.
    pub(super) fn statement_is_over(&mut self) -> bool {
        let status = self.status();
        let failed = self.failed;
        let Some(script) = self.script.as_deref_mut() else {
            return false;
        };
        let failed = failed || script.state == State::Failed;
        script.state = if failed { State::Failed } else { State::Due };
        self.batch_ends(status);
        self.phase = Phase::Answering;
        true
    }

    /// Runs the next statement of a text, or ends it.
    pub(super) async fn go_on_with_script(&mut self) -> Result<(), End> {
        self.phase = Phase::Idle;
        if self.link.is_some() && self.status() == Status::Idle && self.pipeline.is_empty() {
            // What ran there is over: the next statement is bound to no shard.
            Box::pin(self.rest()).await?;
        }
        let Some(script) = self.script.as_deref_mut() else {
            return Ok(());
        };
        let text = match script.state {
            State::Failed => None,
            State::Runs | State::RunsLast | State::Due => script.next_text(),
        };
        let Some(text) = text else {
            return self.end_script().await;
        };
        script.state = State::Runs;
        let last = script.is_at_last();
        match self.take_turn(text.as_bytes(), last).await {
            Ok(Turn::Answered) => {
                self.statement_is_over();
                return Ok(());
            }
            Ok(Turn::RunsAlone) => self.script = None,
            Ok(Turn::Runs) => {
                let own = self.for_batch && last;
                if let Some(script) = self.script.as_deref_mut().filter(|_| own) {
                    script.state = State::RunsLast;
                }
            }
            Err(Stop::End(end)) => return Err(end),
            Err(Stop::Refused(words)) => return self.refuse_query(&words).await,
        }
        self.query_text(text.as_bytes()).await
    }

    /// Sees to the transaction that a statement of a text runs in.
    async fn take_turn(&mut self, text: &[u8], last: bool) -> Result<Turn, Stop> {
        self.refresh();
        let scratch = self.scratch.get_or_insert_default();
        let plans = &self.database.plans;
        let planned = plans.plan(text, &[], &self.context, &self.snapshot, scratch);
        let [statement] = planned.plan.statements.as_slice() else {
            return Err(reply::malformed().into());
        };
        if self.for_batch {
            return self.turn_in_own(&statement.effect, text).await;
        }
        if self.status() != Status::Idle {
            return Ok(Turn::Runs);
        }
        let ends = matches!(
            statement.effect,
            Effect::Begin
                | Effect::Commit { .. }
                | Effect::Rollback { .. }
                | Effect::Savepoint(_)
                | Effect::Release(_)
                | Effect::RollbackTo(_)
        );
        if last {
            return Ok(Turn::RunsAlone);
        }
        if !ends {
            self.begin_own().await?;
        }
        Ok(Turn::Runs)
    }

    /// A statement behind others of a text, which are a transaction that nobody has begun.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only the commands of transactions are told apart"
    )]
    async fn turn_in_own(&mut self, effect: &Effect, text: &[u8]) -> Result<Turn, Stop> {
        let command = match effect {
            Effect::Begin => return self.own_is_the_clients(text).await,
            Effect::Commit { chain: false } => {
                reply::no_transaction().put(self.client.out());
                self.commit_own().await?;
                put_complete(self.client.out(), b"COMMIT");
                return Ok(Turn::Answered);
            }
            Effect::Rollback { chain: false } => {
                reply::no_transaction().put(self.client.out());
                self.undo_own().await?;
                put_complete(self.client.out(), b"ROLLBACK");
                return Ok(Turn::Answered);
            }
            Effect::Commit { chain: true } => "COMMIT AND CHAIN",
            Effect::Rollback { chain: true } => "ROLLBACK AND CHAIN",
            Effect::Savepoint(_) => "SAVEPOINT",
            Effect::Release(_) => "RELEASE SAVEPOINT",
            Effect::RollbackTo(_) => "ROLLBACK TO SAVEPOINT",
            _ => return Ok(Turn::Runs),
        };
        Err(reply::needs_transaction(command).into())
    }

    /// BEGIN makes what stands before it in the text a part of the client's transaction.
    async fn own_is_the_clients(&mut self, text: &[u8]) -> Result<Turn, Stop> {
        if self.deferred.is_some() {
            // It has reached no shard: nothing is in it.
            self.undo_own().await?;
            return Ok(Turn::Runs);
        }
        let text = String::from_utf8_lossy(text).to_ascii_lowercase();
        let words: Vec<&str> = text.split_whitespace().collect();
        let tag: &[u8] = match words.as_slice() {
            ["begin"] | ["begin", "work" | "transaction"] => b"BEGIN",
            ["start", "transaction"] => b"START TRANSACTION",
            _ => return Err(reply::several::commands_together().into()),
        };
        self.for_batch = false;
        put_complete(self.client.out(), tag);
        Ok(Turn::Answered)
    }

    /// Ends a transaction of ours that has reached no shard; false: it has.
    pub(super) async fn end_unreached(&mut self, committed: bool) -> Result<bool, End> {
        if self.deferred.is_none() {
            return Ok(false);
        }
        if self.link.is_some() {
            // It ran beside the transaction.
            self.leave_link().await?;
            self.park_or_release().await?;
        }
        self.for_batch = false;
        self.deferred = None;
        self.transaction_ends(committed);
        Ok(true)
    }

    /// The text is over: what of it is a transaction that nobody has begun is committed, or undone if it failed.
    async fn end_script(&mut self) -> Result<(), End> {
        let Some(script) = self.script.take() else {
            return Ok(());
        };
        let failed = script.state == State::Failed;
        if self.for_batch {
            let ended = if failed {
                self.undo_own().await
            } else {
                self.commit_own().await
            };
            match ended {
                Ok(()) if failed => {}
                Ok(()) => self.client.out().extend_from_slice(&script.held),
                Err(Stop::End(end)) => return Err(end),
                Err(Stop::Refused(words)) => {
                    self.count_refusal(&words);
                    self.failed = true;
                    words.put(self.client.out());
                }
            }
        }
        self.ready_here();
        Ok(())
    }
}
