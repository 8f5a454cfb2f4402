//! `currval` and `lastval`: what a sequence gave this session is known on the backend where it was drawn, and only until
//! another session has had that backend. Anything else would be another session's number, so it is refused.
//!
//! Code of the database (functions, triggers, defaults, checks) asks for what it drew itself as a rule: before it runs, a
//! backend that remembers numbers of others forgets them, so that PostgreSQL itself says what was not drawn here.

use super::{
    reply::session as reply,
    session::{End, Phase, Session},
};
use crate::{
    catalog::computed::Sought,
    config::settings::PoolMode,
    plan::{Numbers, StatementPlan},
    pool::backend::{Backend, Remembered, Tenure},
    sql::statement::{Access, Effect, PinReason},
    wire::{backend::Status, notice::Notice},
};
use std::sync::atomic::Ordering;

const FORGET: &[u8] = b"DISCARD SEQUENCES";

/// The backend that the session has or had last, by its process and whose it was then, and whether it drew there.
#[derive(Debug, Default)]
pub(super) struct Drew {
    at: Option<(u32, Tenure)>,
    drawn: bool,
    /// Whether backends are sent a text in this batch that the client did not write.
    rewritten: bool,
    /// Numbers that were drawn for it here, of which no backend knows.
    ours: Option<Box<Ours>>,
}

/// Numbers that a session's INSERTs were given by the proxy.
#[derive(Debug, Default)]
struct Ours {
    /// `None`: something has run since that may have drawn another.
    last: Option<i64>,
    by_sequence: Vec<(Sought, i64)>,
    /// Whether an INSERT that was given numbers is under way.
    under_way: bool,
}

impl Drew {
    /// The session has a backend again that it kept for itself.
    pub(super) fn returns_to(&mut self, backend: &Backend) {
        let at = Some((backend.target.pid, backend.tenure));
        (self.at, self.drawn) = (at, true);
    }

    /// A number was drawn for the session that no backend knows of.
    pub(super) fn ours(&mut self, sequence: &Sought, number: i64) {
        let ours = self.ours.get_or_insert_default();
        (ours.last, ours.under_way) = (Some(number), true);
        match ours
            .by_sequence
            .iter_mut()
            .find(|(known, _)| known.is(sequence))
        {
            Some((_, last)) => *last = number,
            None => ours.by_sequence.push((sequence.clone(), number)),
        }
    }

    /// What was drawn here last, of this sequence or of any; `None`: that is not known.
    pub(super) fn last(&self, sequence: Option<&Sought>) -> Option<i64> {
        let ours = self.ours.as_deref()?;
        let Some(sequence) = sequence else {
            return ours.last;
        };
        let mut known = ours
            .by_sequence
            .iter()
            .filter(|(known, _)| known.is(sequence));
        match (known.next(), known.next()) {
            (Some((_, number)), None) => Some(*number),
            _ => None,
        }
    }

    /// Whether numbers were drawn here.
    pub(super) fn has_ours(&self) -> bool {
        self.ours.is_some()
    }

    /// A text is sent that the client did not write.
    pub(super) fn rewrites(&mut self) {
        self.rewritten = true;
    }

    /// Whether places in errors are those of another text.
    pub(super) fn has_rewritten(&self) -> bool {
        self.rewritten
    }

    /// A message begins, with nothing under way.
    pub(super) fn begins(&mut self) {
        self.rewritten = false;
        if let Some(ours) = &mut self.ours {
            ours.under_way = false;
        }
    }

    /// A statement is complete that may have drawn numbers on its backend.
    fn may_have_drawn(&mut self, explicitly: bool) {
        let Some(ours) = &mut self.ours else { return };
        if explicitly {
            ours.by_sequence.clear();
        }
        if explicitly || !std::mem::take(&mut ours.under_way) {
            ours.last = None;
        }
    }

    /// The session has this backend from now on.
    fn comes_to(&mut self, backend: &mut Backend) {
        let here = Some((backend.target.pid, backend.tenure));
        if self.at == here {
            return;
        }
        (self.at, self.drawn) = (here, false);
        backend.remembered = match backend.remembered {
            Remembered::Nothing => Remembered::Own,
            Remembered::Own | Remembered::Foreign => Remembered::Foreign,
        };
    }
}

impl Session {
    /// A statement is complete: whether it may have drawn a number from a sequence.
    pub(super) fn note_draw(&mut self, effect: &Effect, tag: &[u8]) {
        let draws = [&b"INSERT"[..], b"COPY", b"MERGE", b"CALL", b"DO"];
        let may = matches!(
            effect,
            Effect::Draws | Effect::Opaque | Effect::Pins(PinReason::Code)
        );
        let drawn = may || draws.iter().any(|verb| tag.starts_with(verb));
        self.drew.drawn |= drawn;
        if drawn {
            self.drew.may_have_drawn(may);
        } else if tag == b"DISCARD ALL" || tag == b"DISCARD SEQUENCES" {
            self.drew.ours = None;
        }
    }

    fn remembers_foreign(&self) -> bool {
        self.link.as_ref().is_some_and(|link| {
            link.lease.remembered == Remembered::Foreign && link.status != Status::Failed
        })
    }

    /// A backend begins to serve this session: in a database where sessions ask for numbers it forgets those of others.
    pub(super) async fn come_to_numbers(&mut self) -> Result<(), End> {
        if let Some(link) = &mut self.link {
            self.drew.comes_to(&mut link.lease);
        }
        let asked = self.database.numbers_asked.load(Ordering::Relaxed);
        if asked && self.mode == PoolMode::Transaction && self.remembers_foreign() {
            self.forget_here().await?;
        }
        Ok(())
    }

    /// Before a simple query: code that it runs must not be told others' numbers, nor what stands behind a draw in it.
    pub(super) async fn forget_before(&mut self, statements: &[StatementPlan]) -> Result<(), End> {
        let may_ask = |one: &StatementPlan| one.numbers == Numbers::MayAsk || asks(one);
        if self.mode == PoolMode::Session
            || !self.remembers_foreign()
            || !statements.iter().any(may_ask)
        {
            return Ok(());
        }
        self.settle().await?;
        match self.phase {
            _ if self.skip || !self.remembers_foreign() => Ok(()),
            Phase::Batch => {
                self.send_forgetter();
                Ok(())
            }
            Phase::Idle | Phase::Answering => self.forget_here().await,
        }
    }

    /// Before a FunctionCall of PostgreSQL's own `currval` or `lastval`, which have these numbers in every release.
    pub(super) async fn forget_before_call(&mut self, oid: u32) -> Result<(), End> {
        let may_ask = matches!(oid, 1575 | 2559) || oid >= super::simple::FIRST_OWN_OID;
        self.drew.drawn = true;
        if may_ask && self.mode == PoolMode::Transaction && self.remembers_foreign() {
            self.settle().await?;
            if self.phase == Phase::Batch {
                self.send_forgetter();
            } else {
                self.forget_here().await?;
            }
        }
        Ok(())
    }

    async fn forget_here(&mut self) -> Result<(), End> {
        self.note_asked();
        if let Err(refused) = self.prelude(FORGET).await? {
            return Err(End::Told(Box::new(refused)));
        }
        self.forgot();
        Ok(())
    }

    /// From now on sessions of this database get backends that remember nothing of others.
    fn note_asked(&self) {
        self.database.numbers_asked.store(true, Ordering::Relaxed);
    }

    fn forgot(&mut self) {
        if let Some(link) = &mut self.link {
            link.lease.remembered = Remembered::Own;
        }
    }

    /// Before an Execute of a statement whose code may ask: within a batch, which a simple query would end.
    pub(super) async fn forget_within(&mut self, statement: &StatementPlan) -> Result<(), End> {
        let may_ask = statement.numbers == Numbers::MayAsk && self.mode == PoolMode::Transaction;
        if !may_ask || !self.remembers_foreign() {
            return Ok(());
        }
        // In a failed transaction nothing more is sent.
        self.settle().await?;
        if !self.skip && self.remembers_foreign() {
            self.send_forgetter();
        }
        Ok(())
    }

    fn send_forgetter(&mut self) {
        self.note_asked();
        self.inject(FORGET);
        self.forgot();
    }

    /// Whether code that a statement runs may ask its backend: not for numbers that were drawn here.
    ///
    /// # Errors
    /// It may be told an older one.
    pub(super) fn check_code(&self, statement: &StatementPlan) -> Result<(), Notice> {
        if statement.numbers == Numbers::MayAsk && self.drew.has_ours() {
            return Err(reply::numbers::number_of_another());
        }
        Ok(())
    }

    /// Whether the statements of a message that ask for what this session drew last can be answered here.
    ///
    /// # Errors
    /// When it was drawn elsewhere, or another session may have drawn here since.
    pub(super) fn check_numbers(&self, statements: &[StatementPlan]) -> Result<(), Notice> {
        statements.iter().try_for_each(|one| self.check_code(one))?;
        let Some(at) = statements.iter().position(asks) else {
            return Ok(());
        };
        self.note_asked();
        if self.drew.has_ours() {
            // What the backend knows may be older.
            return Err(reply::numbers::number_of_another());
        }
        let kept =
            self.mode == PoolMode::Session || matches!(self.pinned, Some((PinReason::Sequence, _)));
        let drawn_before = statements[..at]
            .iter()
            .any(|statement| statement.access == Access::Write);
        let known = self.drew.drawn && !self.remembers_foreign();
        if kept || drawn_before || known {
            return Ok(());
        }
        Err(reply::numbers::number_of_another())
    }
}

/// Whether a statement asks in its own words.
fn asks(statement: &StatementPlan) -> bool {
    statement.effect == Effect::Pins(PinReason::Sequence)
}
