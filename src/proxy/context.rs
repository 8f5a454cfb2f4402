//! What the next statement is planned by: the newest catalog, and the settings that are in force.
//!
//! What must stay true: two contexts in which a statement means different things share no plan.

use super::{local::unquoted, session::Session};
use crate::{
    config::settings::{BackendProof, User},
    plan::{Context, Override},
    protocol::parameters::{Value, list},
};
use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};
use xxhash_rust::xxh3::Xxh3;

impl Session {
    /// Before a batch: a new snapshot or new settings are taken over.
    pub(super) fn refresh(&mut self) {
        let generation = self.shared.generation();
        if generation != self.generation && self.link.is_none() && self.deferred.is_none() {
            self.generation = generation;
            self.take_over_password();
            if let Some(database) = self.shared.database(&self.info.database)
                && !Arc::ptr_eq(&database, &self.database)
            {
                if !Arc::ptr_eq(&database.gate, &self.database.gate) {
                    self.goes_to_gate(&database);
                }
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
