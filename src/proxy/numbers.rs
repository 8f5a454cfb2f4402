//! `currval` and `lastval`: what a sequence gave this session is known on the backend where it was drawn, and only until
//! another session has had that backend. Anything else would be another session's number, so it is refused.

use super::{reply::session as reply, session::Session};
use crate::{
    config::settings::PoolMode,
    plan::StatementPlan,
    pool::backend::Tenure,
    sql::statement::{Access, Effect, PinReason},
    wire::notice::Notice,
};

/// The backend on which the session drew last, by its process, and whose it was then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Drew {
    pid: u32,
    tenure: Tenure,
}

impl Session {
    /// A statement is complete: whether it may have drawn a number from a sequence.
    pub(super) fn note_draw(&mut self, effect: &Effect, tag: &[u8]) {
        let draws = [&b"INSERT"[..], b"COPY", b"MERGE", b"CALL", b"DO"];
        let may = matches!(
            effect,
            Effect::Draws | Effect::Opaque | Effect::Pins(PinReason::Code)
        );
        if may || draws.iter().any(|verb| tag.starts_with(verb)) {
            self.drew = self.here().map(Box::new);
        }
    }

    fn here(&self) -> Option<Drew> {
        self.link.as_ref().map(|link| Drew {
            pid: link.lease.target.pid,
            tenure: link.lease.tenure,
        })
    }

    /// Whether the statements of a message that ask for what this session drew last can be answered here.
    ///
    /// # Errors
    /// When it was drawn elsewhere, or another session may have drawn here since.
    pub(super) fn check_numbers(&self, statements: &[StatementPlan]) -> Result<(), Notice> {
        let asks =
            |statement: &StatementPlan| statement.effect == Effect::Pins(PinReason::Sequence);
        let Some(at) = statements.iter().position(asks) else {
            return Ok(());
        };
        let kept =
            self.mode == PoolMode::Session || matches!(self.pinned, Some((PinReason::Sequence, _)));
        let drawn_before = statements[..at]
            .iter()
            .any(|statement| statement.access == Access::Write);
        if kept
            || drawn_before
            || (self.drew.is_some() && self.drew.as_deref() == self.here().as_ref())
        {
            return Ok(());
        }
        Err(reply::number_of_another())
    }
}
