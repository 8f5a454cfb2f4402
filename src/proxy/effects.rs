//! What a statement that a backend has confirmed changes in the session: its transaction, its settings, its statements.
//!
//! What must stay true: what a backend was told is known exactly, or known to be unknown; to tell it more than it lacks
//! would undo what it goes back to by itself.

use super::{
    link::{Hold, Link},
    listening::Undone,
    session::Session,
};
use crate::{
    protocol::parameters::{Applied, Value, is_list_of_names, set_to},
    sql::statement::Effect,
};
use std::sync::Arc;

impl Session {
    /// A statement has been confirmed by the backend with this command tag.
    pub(super) fn took_effect(&mut self, effect: &Effect, tag: &[u8]) {
        if tag == b"SELECT 0" && matches!(effect, Effect::Set { .. }) {
            // set_config of a setting that the server does not have.
            return;
        }
        match effect {
            Effect::Begin
            | Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::Savepoint(_)
            | Effect::Release(_)
            | Effect::RollbackTo(_) => self.transaction_took_effect(effect, tag == b"COMMIT"),
            Effect::Set { .. }
            | Effect::SetEach(_)
            | Effect::Reset(_)
            | Effect::ResetAll
            | Effect::DiscardAll => self.setting_took_effect(effect),
            Effect::None
            | Effect::SetTransaction
            | Effect::Opaque
            | Effect::Draws
            | Effect::Notify
            | Effect::Channels => {}
            Effect::Deallocate(None) => self.forget_statements(),
            Effect::Deallocate(Some(name)) => self.deallocated_there(name),
            Effect::Execute { .. } | Effect::Cursor | Effect::TwoPhase => {}
            Effect::CopyIn | Effect::CopyOut => {}
            Effect::Prepare(name) => {
                if !self.prepared_there(name) {
                    self.pin(crate::sql::statement::PinReason::SqlPrepare);
                }
            }
            Effect::Declare { hold } => {
                if *hold {
                    self.pin(crate::sql::statement::PinReason::HoldCursor);
                }
            }
            Effect::Listen(_) | Effect::Unlisten(_) => self.listening_took_effect(effect),
            Effect::Pins(reason) => self.pin(*reason),
        }
        self.followed(effect);
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "called with the effects named here"
    )]
    fn transaction_took_effect(&mut self, effect: &Effect, committed: bool) {
        match effect {
            Effect::Begin => self.begun_there(),
            Effect::Commit { chain } | Effect::Rollback { chain } => {
                let chained = self.several.chain(*chain);
                self.transaction_ends(committed);
                if *chain {
                    self.begun_there();
                    self.several.begun(chained);
                }
            }
            Effect::Savepoint(name) => {
                self.begun_there();
                self.parameters.savepoint(name);
                if let Some(link) = &mut self.link {
                    link.savepoints
                        .push((name.clone(), link.lease.applied.clone()));
                }
            }
            Effect::Release(name) => {
                self.parameters.release(name);
                self.savepoint_of_listening(Undone::Kept);
                if let Some((link, at)) = self.savepoint_there(name) {
                    link.savepoints.truncate(at);
                }
            }
            Effect::RollbackTo(name) => {
                self.parameters.rollback_to(name);
                self.savepoint_of_listening(Undone::Undone);
                // The server goes back by itself; to tell it anything more would undo its SET LOCAL.
                match self.savepoint_there(name) {
                    Some((link, at)) => {
                        link.savepoints.truncate(at + 1);
                        link.lease.applied = link.savepoints[at].1.clone();
                    }
                    // It was made before this backend was reached, which knows what it was told then.
                    None => {
                        if let Some(link) = &mut self.link {
                            link.lease.applied = link.at_begin.clone();
                        }
                    }
                }
                self.context_stale = true;
            }
            _ => {}
        }
    }

    /// What was tried beside a transaction that has reached no shard is part of what is replayed there: SET LOCAL, and
    /// behind one what the session is set to, which a shard would else know before it.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "called with the effects of settings"
    )]
    fn replay_setting(&mut self, effect: &Effect) {
        let link = self.link.as_ref();
        if link.is_none_or(|link| link.hold != Hold::AsideTransaction) {
            return;
        }
        let own = |name: &str| self.parameters.own_default(name);
        let set = |verb: &str, name: &str, value: Option<&str>| {
            let value = value.map(|value| if value.is_empty() { "''" } else { value });
            let own = own(name);
            set_to(verb, name, value.or(own.as_deref()).unwrap_or("DEFAULT"))
        };
        let (local, texts) = match effect {
            Effect::Set { name, value, local } => {
                let verb = if *local { "SET LOCAL " } else { "SET " };
                (*local, vec![set(verb, name, value.as_deref())])
            }
            Effect::Reset(name) => (false, vec![set("SET ", name, None)]),
            Effect::SetEach(settings) => {
                let each = settings.iter();
                let each = each.map(|(name, value)| set("SET ", name, Some(value)));
                (false, each.collect())
            }
            Effect::ResetAll => (false, vec!["RESET ALL".to_owned()]),
            _ => return,
        };
        let Some(deferred) = &mut self.deferred else {
            return;
        };
        if local || deferred.has_settings() {
            texts
                .iter()
                .for_each(|text| deferred.setting(text.as_bytes()));
        }
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "called with the effects named here"
    )]
    fn setting_took_effect(&mut self, effect: &Effect) {
        self.replay_setting(effect);
        match effect {
            Effect::Set {
                name,
                value: None,
                local: false,
            }
            | Effect::Reset(name) => {
                self.begun_there();
                self.parameters.set(name, None, false);
                if self.parameters.own_default(name).is_some() && !is_list_of_names(name) {
                    self.settings_are_told();
                } else {
                    // Told again before the next statement; for a list, in the client's own spelling.
                    self.forget_one(name);
                }
            }
            Effect::Set { name, value, local } => {
                self.begun_there();
                self.parameters
                    .set(name, value.clone().map(Value::given), *local);
                self.settings_are_told();
            }
            Effect::SetEach(settings) => {
                self.begun_there();
                for (name, value) in settings {
                    self.parameters
                        .set(name, Some(Value::Sql(value.clone())), false);
                }
                self.settings_are_told();
            }
            Effect::ResetAll => {
                self.begun_there();
                self.parameters.reset_all(true);
                self.forget_all(Forgets::Settings);
            }
            Effect::DiscardAll => {
                self.parameters.reset_all(false);
                self.forget_all(Forgets::Everything);
                self.forget_statements();
                self.listening_took_effect(effect);
                self.overridden = super::session::Overridden::new();
            }
            _ => {}
        }
    }

    /// The link and where it remembers a savepoint.
    fn savepoint_there(&mut self, name: &str) -> Option<(&mut Link, usize)> {
        let link = self.link.as_mut()?;
        let at = link
            .savepoints
            .iter()
            .rposition(|(found, _)| found == name)?;
        Some((link, at))
    }

    /// A transaction runs on the link: what its settings were is remembered.
    fn begun_there(&mut self) {
        if !self.parameters.in_transaction() {
            self.parameters.begin();
            if let Some(link) = &mut self.link {
                link.at_begin = link.lease.applied.clone();
            }
        }
    }

    /// What SET has said of DateStyle is a part of it: the whole is what the backend reports.
    pub(super) fn complete_date_style(&mut self) {
        if !self.parameters.has_set_date_style() {
            return;
        }
        let Some(link) = &mut self.link else { return };
        let known = matches!(&link.lease.applied, Applied::Known(_, hash) if *hash == self.parameters.wanted_hash());
        let reported = link.lease.reported.get(b"DateStyle");
        if known
            && let Some(reported) = reported
            && self.parameters.complete_date_style(reported)
        {
            self.settings_are_told();
        }
    }

    /// The backend knows exactly what the session wants.
    pub(super) fn settings_are_told(&mut self) {
        self.context_stale = true;
        let told = Applied::Known(
            Arc::clone(self.parameters.wanted()),
            self.parameters.wanted_hash(),
        );
        if let Some(link) = &mut self.link {
            link.lease.applied = told;
        }
    }

    /// RESET of one setting: the backend has its own default, which is the client's only if it gave none at startup.
    fn forget_one(&mut self, name: &str) {
        self.context_stale = true;
        if let Some(link) = &mut self.link
            && let Applied::Known(map, _) = &link.lease.applied
        {
            let mut map = (**map).clone();
            map.remove(name);
            let hash = crate::protocol::parameters::hash(&map);
            link.lease.applied = Applied::Known(Arc::new(map), hash);
        }
    }

    /// RESET ALL leaves role and session authorization as they are, DISCARD ALL does not.
    fn forget_all(&mut self, what: Forgets) {
        self.context_stale = true;
        if let Some(link) = &mut self.link
            && let Applied::Known(map, _) = &link.lease.applied
        {
            let mut map = (**map).clone();
            map.retain(|name, _| {
                what == Forgets::Settings && matches!(name, "role" | "session_authorization")
            });
            let hash = crate::protocol::parameters::hash(&map);
            link.lease.applied = Applied::Known(Arc::new(map), hash);
        }
    }

    fn forget_statements(&mut self) {
        self.statements.clear();
        self.unnamed = None;
        self.info.set_prepared(0);
        if let Some(link) = &mut self.link {
            link.lease.statements.clear();
            link.lease.unnamed = None;
        }
    }
}

/// What a backend has been made to forget.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Forgets {
    Settings,
    Everything,
}
