//! What the functions of a statement do: to the session, to the backend it keeps, and to where it may run.
//!
//! A function that is not known is taken for one that does anything.

use super::Planner;
use crate::{
    catalog::code::Code,
    plan::Numbers,
    sql::{
        code::{leaves_something, words},
        functions::{Class, Keeps, classify},
        statement::{Effect, PinReason},
        tree::{Kind, Name, SettingCalls},
    },
};
use std::borrow::Cow;

/// What the functions of a statement do.
pub(super) struct Calls {
    pub(super) home: Option<Keeps>,
    pub(super) large_objects: bool,
    pub(super) one_shard: Option<String>,
    pub(super) runs_sql: Option<String>,
    pub(super) unknown: Option<String>,
    pub(super) channels: Channels,
    /// May leave something in the session.
    pub(super) leaves: Option<String>,
    pub(super) sequence: Option<Draw>,
    pub(super) ids: Ids,
}

/// Whether `shardway.next_id()` is called, which every shard answers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ids {
    NotAsked,
    Asked,
}

/// What is asked of a sequence by its function.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Draw {
    Next,
    /// What the session drew last.
    Last,
}

/// What functions have to do with LISTEN and NOTIFY.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Channels {
    /// Nothing, or others matter as well.
    Apart,
    /// `pg_listening_channels` is among them.
    Asked,
    /// `pg_notify` is the only one that is more than its result.
    Notified,
}

impl Calls {
    /// Whether any shard may compute them.
    pub(super) fn are_harmless(&self) -> bool {
        let Self {
            home,
            large_objects,
            one_shard,
            runs_sql,
            unknown,
            channels,
            leaves,
            sequence,
            ids: _,
        } = self;
        let named = [one_shard, runs_sql, unknown, leaves];
        home.is_none()
            && !large_objects
            && *channels == Channels::Apart
            && sequence.is_none()
            && named.iter().all(|name| name.is_none())
    }
}

impl<'a> Planner<'a> {
    pub(super) fn effect(&self, kind: &Kind, calls: &Calls) -> Effect {
        if let Kind::Query(query) = kind
            && query.into == Some(crate::sql::tree::Into::Temporary)
        {
            return Effect::Pins(PinReason::TemporaryTable);
        }
        match (calls.home, self.statement.settings) {
            (Some(Keeps::SessionLock), _) => Effect::Pins(PinReason::SessionAdvisoryLock),
            (_, SettingCalls::Session) => Effect::Pins(PinReason::Setting),
            _ if calls.sequence == Some(Draw::Last) => Effect::Pins(PinReason::Sequence),
            _ if calls.leaves.is_some() || self.names_code() => Effect::Pins(PinReason::Code),
            _ if calls.channels == Channels::Asked => Effect::Channels,
            _ if calls.unknown.is_some() => Effect::Opaque,
            _ if calls.sequence == Some(Draw::Next) => Effect::Draws,
            _ if calls.channels == Channels::Notified => Effect::Notify,
            _ => Effect::None,
        }
    }

    fn function_leaves(&self, name: &str, builtin: bool) -> bool {
        let code = &self.snapshot.code;
        code.function_leaves(&name.to_lowercase(), builtin)
    }

    /// Whether it names a relation or function of the database that may leave something in the session.
    pub(super) fn names_code(&self) -> bool {
        self.snapshot.code.is_named_in(self.own_text())
    }

    /// Whether code of the database that runs here may ask for numbers; if so it is a statement with an effect.
    pub(super) fn numbers(&self, effect: &mut Effect) -> Numbers {
        if *effect == Effect::Pins(PinReason::Sequence) {
            // Asked for in its own words: told or refused.
            return Numbers::Apart;
        }
        let unknown = |function: &Name| {
            let schema = function.schema.as_deref();
            let own = match schema {
                Some("information_schema") => true,
                Some("shardway") if is_ours(&function.name) => true,
                None | Some("pg_catalog") => classify(&function.name) != Class::Unknown,
                Some(_) => false,
            };
            !own && self.function_leaves(&function.name, false)
        };
        // Functions of ours have the names of those that ask, and do not.
        let text = self.own_text();
        let text = ["shardway.currval(", "shardway.lastval("].iter().fold(
            Cow::Borrowed(text),
            |text, ours| match text.contains(ours) {
                true => Cow::Owned(text.replace(ours, "(")),
                false => text,
            },
        );
        let asks =
            self.snapshot.code.asks_in(&text) || self.statement.functions.iter().any(unknown);
        if !asks {
            return Numbers::Apart;
        }
        if *effect == Effect::None {
            *effect = Effect::Opaque;
        }
        Numbers::MayAsk
    }

    /// What DO and CALL do to the session.
    pub(super) fn called(&self, command: &str) -> Effect {
        let leaves = if command == "DO" {
            self.snapshot.code == Code::Unknown || leaves_something(self.own_text())
        } else {
            self.calls().leaves.is_some()
        };
        if leaves || self.names_code() {
            Effect::Pins(PinReason::Code)
        } else {
            Effect::Opaque
        }
    }

    /// DDL and maintenance: what is made for the session alone keeps it, and so may code that runs.
    pub(super) fn made(&self, command: &str) -> Effect {
        let temporary = self
            .context
            .search_path
            .first()
            .is_some_and(|first| first == "pg_temp")
            || words(self.own_text()).any(|word| word == "pg_temp");
        if temporary {
            return Effect::Pins(PinReason::TemporaryTable);
        }
        let runs = matches!(
            command,
            "CREATE TABLE AS" | "CREATE INDEX" | "ALTER TABLE" | "REFRESH MATERIALIZED VIEW"
        );
        if runs && self.names_code() {
            return Effect::Pins(PinReason::Code);
        }
        Effect::None
    }

    pub(super) fn calls(&self) -> Calls {
        let mut calls = Calls {
            home: None,
            large_objects: false,
            one_shard: None,
            runs_sql: None,
            unknown: None,
            channels: Channels::Apart,
            leaves: None,
            sequence: None,
            ids: Ids::NotAsked,
        };
        let (mut asks, mut notifies, mut others) = (false, false, false);
        let shadowed = self
            .context
            .search_path
            .iter()
            .position(|schema| schema == "pg_catalog")
            .unwrap_or(0)
            > 0;
        for function in &self.statement.functions {
            let class = match function.schema.as_deref() {
                Some("pg_catalog") => classify(&function.name),
                None if !shadowed => classify(&function.name),
                Some("shardway") if is_ours(&function.name) => {
                    if function.name == "next_id" {
                        calls.ids = Ids::Asked;
                    }
                    Class::Plain
                }
                Some("information_schema") if SCHEMA_VIEWS.contains(&function.name.as_str()) => {
                    Class::Plain
                }
                _ => Class::Unknown,
            };
            let name = || Some(function.name.clone());
            let notify = class != Class::Unknown && function.name == "pg_notify";
            notifies |= notify;
            others |= !notify && class != Class::Plain;
            asks |= class != Class::Unknown && function.name == "pg_listening_channels";
            match class {
                Class::Plain | Class::Setting => {}
                Class::Home(Keeps::Nothing) => calls.home = calls.home.or(Some(Keeps::Nothing)),
                Class::Home(Keeps::SessionLock) => calls.home = Some(Keeps::SessionLock),
                Class::LargeObject => calls.large_objects = true,
                // Where its sequence is, or where the session is.
                Class::OneShard if draws_or_asks(&function.name) => {}
                Class::OneShard => calls.one_shard = calls.one_shard.or_else(name),
                Class::RunsSql => calls.runs_sql = calls.runs_sql.or_else(name),
                Class::Unknown => calls.unknown = calls.unknown.or_else(name),
            }
            let builtin = function.schema.is_none() && classify(&function.name) != Class::Unknown;
            match function.name.as_str() {
                _ if class != Class::OneShard => {}
                "currval" | "lastval" => calls.sequence = Some(Draw::Last),
                "nextval" => calls.sequence = calls.sequence.or(Some(Draw::Next)),
                _ => {}
            }
            if seeds(&function.name) && class != Class::Unknown {
                calls.leaves = calls.leaves.or_else(name);
            }
            if class == Class::Unknown && self.function_leaves(&function.name, builtin) {
                calls.leaves = calls.leaves.or_else(name);
            }
        }
        if asks {
            calls.channels = Channels::Asked;
        } else if notifies && !others {
            calls.channels = Channels::Notified;
        }
        calls
    }
}

/// Whether a function is about the session's numbers of sequences.
fn draws_or_asks(name: &str) -> bool {
    matches!(name, "nextval" | "currval" | "lastval")
}

/// Whether it is one of the functions for everybody in Shardway's own schema.
fn is_ours(name: &str) -> bool {
    matches!(name, "next_id" | "currval" | "lastval")
}

/// Whether a function of PostgreSQL's own begins something in its session.
fn seeds(name: &str) -> bool {
    matches!(name, "setseed" | "pg_replication_origin_session_setup")
}

/// Functions that the views of `information_schema` are made of, which drivers call too; none reads or changes anything.
const SCHEMA_VIEWS: [&str; 10] = [
    "_pg_char_max_length",
    "_pg_char_octet_length",
    "_pg_datetime_precision",
    "_pg_expandarray",
    "_pg_interval_type",
    "_pg_numeric_precision",
    "_pg_numeric_precision_radix",
    "_pg_numeric_scale",
    "_pg_truetypid",
    "_pg_truetypmod",
];
