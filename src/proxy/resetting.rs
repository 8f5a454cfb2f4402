//! RESET and DEFAULT: PostgreSQL goes back to what the client started with, which backends were told by SET. So a setting
//! that the client started with is set to that instead; behind a RESET ALL that has something behind it, in one message or
//! batch, it is said again; and nobody is told of that.

use super::{
    reply::session as reply,
    session::{Note, Session},
};
use crate::{
    plan::{Plan, StatementPlan},
    protocol::{
        parameters::set_to,
        pipeline::{Origin, Request},
    },
    sql::statement::Effect,
    wire::{
        backend::put_complete,
        frontend::{put, put_parse},
        notice::Notice,
    },
};

/// CommandComplete of SET.
pub(super) const SET_COMPLETE: &[u8] = b"C\0\0\0\x08SET\0";
/// The statement and the portal of ours within a batch: no client's statement is called so on a server.
const OURS: &[u8] = b"shardway_within";

impl Session {
    /// The text with RESET and DEFAULT replaced by what they mean to this session: a value that it started with, which
    /// the backend was told by SET. `None`: nothing to replace.
    pub(super) fn with_own_defaults(&self, text: &[u8], plan: &Plan) -> Option<Vec<u8>> {
        let last = plan.statements.len().saturating_sub(1);
        let concerns = |(at, statement): (usize, &StatementPlan)| {
            defaulted(&statement.effect).is_some() || (at < last && resets_all(statement))
        };
        if !plan.statements.iter().enumerate().any(concerns) {
            return None;
        }
        let defaults = plan.statements.iter().enumerate().map(|(at, statement)| {
            if resets_all(statement) && at < last {
                let own = self
                    .parameters
                    .own_defaults()
                    .filter(|own| !own.is_empty())?;
                return Some(format!("RESET ALL;{}", own.join(";")));
            }
            let (name, local) = defaulted(&statement.effect)?;
            let value = self.parameters.own_default(name)?;
            let verb = if local { "SET LOCAL " } else { "SET " };
            Some(set_to(verb, name, &value))
        });
        let defaults: Vec<Option<String>> = defaults.collect();
        if defaults.iter().all(Option::is_none) {
            return None;
        }
        // A plan that is shared by template has another text's positions.
        let statements = crate::sql::parse::parse(std::str::from_utf8(text).ok()?).ok()?;
        let mut made = text.to_vec();
        for (statement, default) in statements.iter().zip(&defaults).rev() {
            if let Some(default) = default {
                let place = statement.start as usize..statement.end as usize;
                made.splice(place, default.bytes());
            }
        }
        (statements.len() == defaults.len()).then_some(made)
    }

    /// After a RESET that was sent as SET: the client is told what it asked for.
    pub(super) fn name_reset(&mut self, effect: &Effect) {
        let out = self.client.out();
        if let Effect::Reset(name) = effect
            && out.ends_with(SET_COMPLETE)
            && self.parameters.own_default(name).is_some()
        {
            out.truncate(out.len() - SET_COMPLETE.len());
            put_complete(out, b"RESET");
        }
    }

    /// Whether what the client started with can be said again behind a RESET ALL in the middle of a message.
    ///
    /// # Errors
    /// When it cannot.
    pub(super) fn check_reset(&self, before: &[StatementPlan]) -> Result<(), Notice> {
        let sayable = self.parameters.own_defaults().is_some();
        if sayable || !before.iter().any(resets_all) {
            return Ok(());
        }
        Err(reply::several::reset_within())
    }

    /// Whether a statement just completed is one of those that bring back what the client started with.
    pub(super) fn hides_completion(&mut self) -> bool {
        if self.hidden == 0 {
            return false;
        }
        let out = self.client.out();
        if out.ends_with(SET_COMPLETE) {
            out.truncate(out.len() - SET_COMPLETE.len());
        }
        self.hidden -= 1;
        if self.hidden == 0 {
            self.settings_are_told();
        }
        true
    }

    /// A statement of a message is complete: behind a RESET ALL that is not the last come ours.
    pub(super) fn hide_behind(&mut self, plan: &Plan, at: usize) {
        let is_last = at + 1 == plan.statements.len();
        if !is_last && plan.statements.get(at).is_some_and(resets_all) {
            let own = self.parameters.own_defaults();
            self.hidden = own.map_or(0, |own| own.len());
        }
    }

    /// Within a batch, behind the Execute of a RESET ALL.
    pub(super) fn bring_back_within(&mut self) {
        for sql in self.parameters.own_settings() {
            self.inject(sql.as_bytes());
        }
    }

    /// Runs a statement of ours within a batch, by the extended protocol and without a Sync, which would end the batch's
    /// transaction; the client sees an error of it and nothing else.
    pub(super) fn inject(&mut self, sql: &[u8]) {
        let Some(link) = &mut self.link else {
            return;
        };
        let out = link.lease.stream.out();
        put_parse(out, OURS, sql, b"");
        put(out, b'B', |out| {
            for name in [OURS, OURS] {
                out.extend_from_slice(name);
                out.push(0);
            }
            out.extend_from_slice(&[0; 6]);
        });
        put(out, b'E', |out| {
            out.extend_from_slice(OURS);
            out.extend_from_slice(&[0; 5]);
        });
        for kind in [b'P', b'S'] {
            put(out, b'C', |out| {
                out.push(kind);
                out.extend_from_slice(OURS);
                out.push(0);
            });
        }
        for request in [
            Request::Parse,
            Request::Bind,
            Request::Execute,
            Request::Close,
            Request::Close,
        ] {
            self.pipeline
                .asked(request, Origin::Injected, Note::Nothing);
        }
    }
}

pub(super) fn resets_all(statement: &StatementPlan) -> bool {
    statement.effect == Effect::ResetAll
}

/// The setting that goes back to its default, and whether for the transaction only.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only these make a default of a setting"
)]
fn defaulted(effect: &Effect) -> Option<(&str, bool)> {
    match effect {
        Effect::Reset(name) => Some((name, false)),
        Effect::Set {
            name,
            value: None,
            local,
        } => Some((name, *local)),
        _ => None,
    }
}
