//! What is answered here: transaction commands while no shard has been reached, the proxy's own settings, EXPLAIN
//! (ROUTE); and what a confirmed statement changes in the session.

use super::{
    link::{Hold, Link},
    listening::Undone,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    resetting::resets_all,
    session::{Note, Session},
    several::snapshots,
};
use crate::{
    config::settings::{BackendProof, User},
    plan::{Context, Override, Plan, StatementPlan, Target, Values, explain::Description},
    protocol::{
        parameters::{Applied, Value, is_list_of_names, list, set_to},
        transaction::Deferred,
    },
    sql::statement::Effect,
    wire::{
        backend::{Status, put_complete},
        frontend::put,
        notice::Notice,
    },
};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};
use xxhash_rust::xxh3::Xxh3;

impl Session {
    /// Whether a statement is answered here: what concerns the proxy only always is, but in a failed transaction;
    /// transaction commands are while the session has no backend.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only the effects named here are answered here"
    )]
    pub(super) fn answered_here(&self, statement: &StatementPlan) -> bool {
        let ours = matches!(statement.target, Target::Explain(_))
            || own_setting(&statement.effect).is_some()
            || matches!(&statement.effect, Effect::Deallocate(Some(name)) if self.statements.contains_key(name.as_bytes()));
        if ours {
            return self
                .link
                .as_ref()
                .is_none_or(|link| link.status != Status::Failed);
        }
        if self.ends_several(statement) {
            return true;
        }
        if self.link.is_some() || self.snapshot.is_single() {
            return false;
        }
        match &statement.effect {
            Effect::Begin
            | Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::Savepoint(_)
            | Effect::Release(_)
            | Effect::RollbackTo(_)
            | Effect::SetTransaction => true,
            _ => self.deferred.as_ref().is_some_and(Deferred::failed),
        }
    }

    /// Answers a simple query here if every statement of it can be; true when it was.
    pub(super) fn query_here(
        &mut self,
        statements: &[StatementPlan],
        values: &Values<'_>,
    ) -> Result<bool, Stop> {
        // A SET of ours among others would change how those behind it are planned.
        let alone = |statement: &StatementPlan| {
            own_setting(&statement.effect).is_none() || statements.len() == 1
        };
        let all = statements
            .iter()
            .all(|statement| alone(statement) && self.answered_here(statement));
        if statements.is_empty() || !all {
            return Ok(false);
        }
        for statement in statements {
            let mut out = Vec::new();
            self.perform(statement, values, true, &mut out)?;
            self.client.out().extend_from_slice(&out);
        }
        self.ready_here();
        Ok(true)
    }

    /// Execute of a portal that is answered here.
    pub(super) fn execute_here(&mut self, prepared: &Arc<Prepared>) -> Result<(), Stop> {
        let Some(statement) = prepared.statement() else {
            return Ok(());
        };
        let values = Values {
            text: &prepared.text,
            slots: &prepared.slots,
            types: &prepared.types,
            bind: None,
        };
        let mut out = Vec::new();
        self.perform(statement, &values, false, &mut out)?;
        self.made(out, Note::Nothing);
        Ok(())
    }

    /// Does what the statement says and appends its answer, without ReadyForQuery.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only the effects named here are answered here"
    )]
    fn perform(
        &mut self,
        statement: &StatementPlan,
        values: &Values<'_>,
        describe: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Notice> {
        self.tally.queries += 1;
        // A plan that is shared by template has another text's positions; such a statement stands alone in its text.
        let place = statement.start as usize..statement.end as usize;
        let text = values.text.get(place).unwrap_or(values.text);
        if self.deferred.as_ref().is_some_and(Deferred::failed)
            && !matches!(
                statement.effect,
                Effect::Commit { .. } | Effect::Rollback { .. } | Effect::RollbackTo(_)
            )
        {
            return Err(reply::transaction_failed());
        }
        if let Target::Explain(inner) = &statement.target {
            put_explanation(
                out,
                &crate::plan::explain::describe(inner, &self.snapshot, values),
                describe,
            );
            return Ok(());
        }
        if let Some((name, value)) = own_setting(&statement.effect) {
            let reset = matches!(statement.effect, Effect::Reset(_));
            return self.set_own(name, value, reset, out);
        }
        match &statement.effect {
            Effect::Begin => self.begin_here(text, out),
            Effect::Commit { chain } => self.end_here(Ending::Commit, *chain, out)?,
            Effect::Rollback { chain } => self.end_here(Ending::Rollback, *chain, out)?,
            Effect::Savepoint(name) => self.savepoint_here(name, text, out)?,
            Effect::Release(name) => self.release_here(name, out)?,
            Effect::RollbackTo(name) => self.rollback_to_here(name, out)?,
            Effect::SetTransaction => self.set_transaction_here(text, out),
            Effect::Deallocate(Some(name)) => {
                self.statements.remove(name.as_bytes());
                put_complete(out, b"DEALLOCATE");
            }
            _ => return Err(reply::transaction_failed()),
        }
        Ok(())
    }

    fn begin_here(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.deferred.is_some() {
            reply::already_in_transaction().put(out);
        } else {
            self.deferred = Some(Deferred::begin(text));
            self.parameters.begin();
        }
        put_complete(
            out,
            if starts_with_word(text, "start") {
                b"START TRANSACTION"
            } else {
                b"BEGIN"
            },
        );
    }

    fn end_here(&mut self, ending: Ending, chain: bool, out: &mut Vec<u8>) -> Result<(), Notice> {
        let commit = ending == Ending::Commit;
        let tag: &[u8] = if commit { b"COMMIT" } else { b"ROLLBACK" };
        let Some(deferred) = self.deferred.take() else {
            if chain {
                return Err(reply::needs_transaction(if commit {
                    "COMMIT AND CHAIN"
                } else {
                    "ROLLBACK AND CHAIN"
                }));
            }
            reply::no_transaction().put(out);
            put_complete(out, tag);
            return Ok(());
        };
        let committed = commit && !deferred.failed();
        self.transaction_ends(committed);
        if chain {
            self.parameters.begin();
            self.deferred = Some(deferred.chain());
        }
        put_complete(out, if committed { b"COMMIT" } else { b"ROLLBACK" });
        Ok(())
    }

    fn savepoint_here(&mut self, name: &str, text: &[u8], out: &mut Vec<u8>) -> Result<(), Notice> {
        let deferred = self
            .deferred
            .as_mut()
            .ok_or_else(|| reply::needs_transaction("SAVEPOINT"))?;
        deferred.savepoint(name, text);
        self.parameters.savepoint(name);
        put_complete(out, b"SAVEPOINT");
        Ok(())
    }

    fn release_here(&mut self, name: &str, out: &mut Vec<u8>) -> Result<(), Notice> {
        let deferred = self
            .deferred
            .as_mut()
            .ok_or_else(|| reply::needs_transaction("RELEASE SAVEPOINT"))?;
        deferred
            .release(name)
            .map_err(|_missing| reply::no_such_savepoint(name))?;
        self.parameters.release(name);
        self.savepoint_of_listening(Undone::Kept);
        put_complete(out, b"RELEASE");
        Ok(())
    }

    fn rollback_to_here(&mut self, name: &str, out: &mut Vec<u8>) -> Result<(), Notice> {
        let deferred = self
            .deferred
            .as_mut()
            .ok_or_else(|| reply::needs_transaction("ROLLBACK TO SAVEPOINT"))?;
        deferred
            .rollback_to(name)
            .map_err(|_missing| reply::no_such_savepoint(name))?;
        self.parameters.rollback_to(name);
        self.savepoint_of_listening(Undone::Undone);
        self.context_stale = true;
        put_complete(out, b"ROLLBACK");
        Ok(())
    }

    fn set_transaction_here(&mut self, text: &[u8], out: &mut Vec<u8>) {
        let constraints = text
            .to_ascii_lowercase()
            .windows(11)
            .any(|window| window == b"constraints");
        let command = if constraints {
            "SET CONSTRAINTS"
        } else {
            "SET TRANSACTION"
        };
        match &mut self.deferred {
            Some(deferred) => deferred.setting(text),
            None => reply::only_in_transaction(command).put(out),
        }
        put_complete(
            out,
            if constraints {
                b"SET CONSTRAINTS"
            } else {
                b"SET"
            },
        );
    }

    /// SET shardway.…: the proxy's own settings never reach a server.
    fn set_own(
        &mut self,
        name: &str,
        value: Option<&str>,
        reset: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Notice> {
        let value = value.map(unquoted).filter(|value| !value.is_empty());
        check_own(name, value.as_deref(), &self.snapshot.shards)?;
        match value {
            Some(value) => self.overridden.insert(name, value),
            None => self.overridden.remove(name),
        };
        self.context_stale = true;
        put_complete(out, if reset { b"RESET" } else { b"SET" });
        Ok(())
    }

    // ---- what statements on backends change ----

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

    // ---- planning context ----

    /// Before a batch: a new snapshot or new settings are taken over.
    pub(super) fn refresh(&mut self) {
        let generation = self.shared.generation();
        if generation != self.generation && self.link.is_none() && self.deferred.is_none() {
            self.generation = generation;
            self.take_over_password();
            if let Some(database) = self.shared.database(&self.info.database)
                && !Arc::ptr_eq(&database, &self.database)
            {
                self.database = database;
                self.pools.clear();
                self.context_stale = true;
            }
        }
        self.take_over_snapshot();
        self.take_over_settings();
    }

    /// What follows is planned by what is known now, and by what the transaction under way has changed itself.
    pub(super) fn take_over_snapshot(&mut self) {
        let current = self.database.snapshot.load();
        if Arc::ptr_eq(&current, &self.snapshot) {
            return;
        }
        self.looking.forget();
        self.keeps_what_it_began_on();
        if self.several.foreseen.is_empty() {
            self.snapshot = Arc::clone(&current);
        } else {
            drop(current);
            self.foresee_again();
        }
        if !self.snapshot.answering().contains(self.any) {
            self.any = self.snapshot.home;
        }
    }

    /// A reload may have given another password for the same role: backends are opened with it from now on.
    fn take_over_password(&mut self) {
        let settings = self.shared.settings.load();
        let Some(listed) = settings.users.get(&self.user.name) else {
            return;
        };
        let configured = |user: &User| user.backend_proof == BackendProof::Configured;
        let (old, new) = (&self.user.backend, &listed.backend);
        if configured(&self.user) && configured(listed) && old.user == new.user && old != new {
            self.user = Arc::new(User {
                backend: new.clone(),
                ..(*self.user).clone()
            });
            self.pools.clear();
        }
    }

    /// What follows is planned by the settings that are in force now.
    pub(super) fn take_over_settings(&mut self) {
        if self.context_stale {
            self.context_stale = false;
            let context = self.build_context();
            if context != *self.context {
                self.context = self.database.contexts.share(Arc::new(context));
            }
        }
    }

    fn build_context(&self) -> Context {
        let text = |name: &str| {
            self.parameters
                .get(name)
                .map(|(Value::Sql(text) | Value::Config(text))| unquoted(text).to_ascii_lowercase())
        };
        let is_on = |value: Option<String>, default: bool| {
            value.map_or(default, |value| {
                matches!(value.as_str(), "on" | "true" | "yes" | "1" | "t" | "y")
            })
        };
        // ALTER ROLE and ALTER DATABASE may have changed PostgreSQL's own default.
        let default = self
            .defaults
            .search_path
            .as_deref()
            .unwrap_or("\"$user\", public");
        let default = Value::Config(default.to_owned());
        let path = list(self.parameters.get("search_path").unwrap_or(&default));
        let role = text("role")
            .filter(|role| role != "none")
            .unwrap_or_else(|| self.user.backend.user.clone());
        let search_path = path
            .unwrap_or_default()
            .into_iter()
            .map(|schema| {
                if schema == "$user" {
                    role.clone()
                } else {
                    schema
                }
            })
            .collect();
        let encoding = self.in_force("client_encoding").unwrap_or_default();
        let encoding: String = encoding
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect();
        let pinned = self
            .overridden
            .get("shardway.shard")
            .map(|shard| Override::Shard(shard.clone()))
            .or_else(|| {
                self.overridden
                    .get("shardway.key")
                    .map(|key| Override::Key(key.clone()))
            });
        let mut context = Context {
            search_path,
            standard_conforming_strings: is_on(self.in_force("standard_conforming_strings"), true),
            utf8: matches!(encoding.as_str(), "utf8" | "unicode" | "sqlascii"),
            transform_null_equals: is_on(text("transform_null_equals"), false),
            pinned,
            computed: Vec::new(),
            digest: 0,
        };
        context.digest = digest(self.shared.seed, &context, self.meaning_digest());
        context
    }

    /// A reported setting as it is for the next statement, in lower case: as the backend says while a transaction is on
    /// it, else as the session has set it or found it. What the client was told last may be behind: it learns of the
    /// end of a transaction that reached no shard with its next statement.
    fn in_force(&self, name: &str) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).to_ascii_lowercase();
        if let (Some(link), None) = (&self.link, &self.deferred) {
            return link.lease.reported.get(name.as_bytes()).map(text);
        }
        match self.parameters.get(name) {
            Some(Value::Sql(value) | Value::Config(value)) => {
                Some(unquoted(value).to_ascii_lowercase())
            }
            None => self.defaults.reported.get(name.as_bytes()).map(text),
        }
    }

    /// What else changes the meaning of a prepared statement: role, and settings that the planner bakes in.
    fn meaning_digest(&self) -> u64 {
        let map: crate::protocol::parameters::Map = MEANING
            .iter()
            .filter_map(|name| {
                self.parameters
                    .get(name)
                    .map(|value| (*name, value.clone()))
            })
            .collect();
        crate::protocol::parameters::hash(&map)
    }
}

/// The answer to EXPLAIN (ROUTE): one column, one line of text a row, as EXPLAIN's own.
fn put_explanation(out: &mut Vec<u8>, description: &Description, describe: bool) {
    if describe {
        put_explanation_columns(out);
    }
    let refused = description.refused.as_ref().map(|why| {
        let notice = wording::unroutable(why);
        [
            ("error", Some(notice.message)),
            ("detail", notice.detail),
            ("hint", notice.hint),
        ]
    });
    let mut row = |name: &str, value: &str| {
        let line = format!("{name}: {value}");
        put(out, b'D', |out| {
            out.extend_from_slice(&1_u16.to_be_bytes());
            out.extend_from_slice(&u32::try_from(line.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(line.as_bytes());
        });
    };
    for (name, value) in &description.rows {
        row(name, value);
    }
    for (name, value) in refused.into_iter().flatten() {
        if let Some(value) = value {
            row(name, &value);
        }
    }
    put_complete(out, b"EXPLAIN");
}

/// The row description of EXPLAIN: one text column named as PostgreSQL names it.
pub(super) fn put_explanation_columns(out: &mut Vec<u8>) {
    put(out, b'T', |out| {
        out.extend_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(b"QUERY PLAN\0");
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&crate::wire::types::TEXT.to_be_bytes());
        out.extend_from_slice(&(-1_i16).to_be_bytes());
        out.extend_from_slice(&(-1_i32).to_be_bytes());
        out.extend_from_slice(&[0; 2]);
    });
}

/// Everything in a context, and what else changes a statement's meaning, as one number. Clients choose what goes in,
/// and plans are shared: the seed keeps them from making two contexts meet.
fn digest(seed: u64, context: &Context, meaning: u64) -> u64 {
    let mut hasher = Xxh3::with_seed(seed);
    context.search_path.hash(&mut hasher);
    context.pinned.hash(&mut hasher);
    (
        context.standard_conforming_strings,
        context.utf8,
        context.transform_null_equals,
        meaning,
    )
        .hash(&mut hasher);
    hasher.finish()
}

/// What a backend has been made to forget.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Forgets {
    Settings,
    Everything,
}

/// CommandComplete of SET.
pub(super) const SET_COMPLETE: &[u8] = b"C\0\0\0\x08SET\0";

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

/// How a client asks for its transaction to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
}

/// Settings that are part of a prepared statement's identity besides search_path.
const MEANING: &[&str] = &[
    "role",
    "session_authorization",
    "default_text_search_config",
    "datestyle",
    "intervalstyle",
    "timezone",
    "standard_conforming_strings",
    "transform_null_equals",
    "client_encoding",
    "plpgsql.variable_conflict",
];

/// The proxy's own setting that a statement changes, and the SQL text of its new value.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only the effects named here are answered here"
)]
pub(super) fn own_setting(effect: &Effect) -> Option<(&str, Option<&str>)> {
    match effect {
        Effect::Set { name, value, .. } if name.starts_with("shardway.") => {
            Some((name, value.as_deref()))
        }
        Effect::Reset(name) if name.starts_with("shardway.") => Some((name, None)),
        _ => None,
    }
}

/// Whether one of the proxy's own settings exists and takes this value.
pub(super) fn check_own(name: &str, value: Option<&str>, shards: &[String]) -> Result<(), Notice> {
    match (name, value) {
        ("shardway.shard", Some(shard)) if !shards.iter().any(|known| known == shard) => {
            Err(reply::bad_setting(
                name,
                format!(
                    "There is no shard \"{shard}\"; shards are {}.",
                    shards.join(", ")
                ),
            ))
        }
        ("shardway.shard" | "shardway.key", _) => Ok(()),
        (crate::failpoint::SETTING, _) if cfg!(feature = "failpoints") => Ok(()),
        (snapshots::SETTING, None | Some(snapshots::PER_SHARD)) => Ok(()),
        (snapshots::SETTING, Some(other)) => Err(reply::bad_setting(
            name,
            format!("\"{other}\" is not known; it is {}, or not set.", snapshots::PER_SHARD),
        )),
        ("shardway.role", Some("primary") | None) => Ok(()),
        ("shardway.role", Some(role)) => Err(reply::bad_setting(
            name,
            format!("Role \"{role}\" is not served yet: every statement goes to the primary."),
        )),
        _ => Err(reply::bad_setting(
            name,
            "Known settings are shardway.shard, shardway.key, shardway.read_consistency and shardway.role.".to_owned(),
        )),
    }
}

/// The string that a SQL constant stands for; an unquoted word stands for itself.
fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = text
        .strip_prefix('\'')
        .and_then(|text| text.strip_suffix('\''));
    match inner {
        Some(inner) => inner.replace("''", "'"),
        None => match text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
        {
            Some(inner) => inner.replace("\"\"", "\""),
            None => text.to_owned(),
        },
    }
}

fn starts_with_word(text: &[u8], word: &str) -> bool {
    let mut rest = text.trim_ascii_start();
    loop {
        if let Some(comment) = rest.strip_prefix(b"--") {
            let end = comment
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(comment.len());
            rest = comment[end..].trim_ascii_start();
        } else if let Some(comment) = rest.strip_prefix(b"/*") {
            let end = comment
                .windows(2)
                .position(|two| two == b"*/")
                .map_or(comment.len(), |at| at + 2);
            rest = comment[end..].trim_ascii_start();
        } else {
            return rest
                .get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()));
        }
    }
}
