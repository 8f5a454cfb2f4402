//! RESET ALL with something behind it, in one message or batch: PostgreSQL goes back to what the client started with, which
//! backends were told by SET. So it is said again behind the RESET ALL, and nobody is told of that.

use super::{
    local::SET_COMPLETE,
    reply::session as reply,
    session::{Note, Session},
};
use crate::{
    plan::{Plan, StatementPlan},
    protocol::pipeline::{Origin, Request},
    sql::statement::Effect,
    wire::{
        frontend::{put, put_parse},
        notice::Notice,
    },
};

/// The statement and the portal of ours within a batch: no client's statement is called so on a server.
const OURS: &[u8] = b"shardway_within";

impl Session {
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
