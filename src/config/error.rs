//! What is wrong with a configuration file: each problem with its place, all of them at once.

pub use super::rules::read::RuleProblem;
use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};
use serde_json::json;
use std::{fmt, ops::Range, sync::Arc};

/// Everything found wrong with one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigErrors {
    pub(super) file: String,
    pub(super) text: String,
    pub(super) errors: Vec<ConfigError>,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    pub problem: Problem,
    /// Byte range in the text.
    pub span: Range<usize>,
    /// An earlier place that this one contradicts.
    pub earlier: Option<Range<usize>>,
    /// The file that the places are in; `None`: the configuration itself.
    pub source: Option<Arc<Text>>,
}

/// A file that the configuration names.
#[derive(Debug, PartialEq, Eq)]
pub struct Text {
    pub(super) file: String,
    pub(super) text: String,
}

/// What is wrong. Names are as the file has them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("cannot read {path}: {reason}")]
    Unreadable { path: String, reason: String },
    #[error("{0}")]
    Syntax(String),
    #[error("unknown key `{key}` in {place}")]
    UnknownKey {
        key: String,
        place: String,
        like: Option<String>,
    },
    #[error("`{key}` must be {expected}, not {found}")]
    WrongType {
        key: String,
        expected: String,
        found: &'static str,
    },
    #[error("`{key}` must be from {least} to {most}")]
    OutOfRange { key: String, least: u64, most: u64 },
    #[error("`{value}` is not one of {choices}")]
    NotAChoice {
        value: String,
        choices: String,
        like: Option<String>,
    },
    #[error("`{value}` is no duration")]
    NotADuration { value: String },
    #[error("`{value}` is no size")]
    NotASize { value: String },
    #[error("{place} needs `{key}`")]
    Missing { place: String, key: &'static str },
    #[error("`{value}` is no address to listen on")]
    NotAnAddress { value: String },
    #[error("`{value}` is no address of a server: {reason}")]
    NotAServer {
        value: String,
        reason: AddressProblem,
    },
    #[error("there is no {what} `{name}`")]
    UnknownName {
        what: &'static str,
        name: String,
        like: Option<String>,
    },
    #[error("`{first}` and `{second}` exclude each other")]
    Exclusive {
        first: &'static str,
        second: &'static str,
    },
    #[error("TLS needs both `cert` and `key`")]
    TlsIncomplete,
    #[error("{path} holds no {what} in PEM form")]
    NotPem { path: String, what: &'static str },
    #[error("the environment variable {0} is not set")]
    NoVariable(String),
    #[error("user `{user}` has neither a password nor a verifier")]
    NoSecret { user: String },
    #[error("user `{user}` would have to be looked up, and no database has an `auth_query`")]
    NoAuthQuery { user: String },
    #[error(
        "user `\"*\"` is everybody whom `auth_query` finds: they enter by passthrough, and without the console"
    )]
    FoundUsers,
    #[error("`auth_query` runs as `control`, which is not given")]
    AuthQueryWithoutControl,
    #[error("`auth_query` has no `$1`, so that it would find the same for everybody")]
    AuthQueryWithoutName,
    #[error("this is no SCRAM-SHA-256 verifier")]
    NotAVerifier,
    #[error("a verifier works with `auth = \"scram\"` and passthrough only")]
    VerifierWithoutScram,
    #[error("no shard key can be of type `{0}`: equal values need not have equal bytes")]
    UnfitKeyType(String),
    #[error("`buckets` must be a power of two")]
    NotAPowerOfTwo,
    #[error("{shards} shards cannot share {buckets} buckets")]
    TooFewBuckets { shards: usize, buckets: u32 },
    #[error("`shards` must name at least one shard")]
    NoShards,
    #[error("`{key}` belongs to {method} groups only")]
    OtherMethod {
        key: &'static str,
        method: &'static str,
    },
    #[error("this is no value of type {key_type}")]
    NotAKey { key_type: &'static str },
    #[error("what this value of type {key_type} means depends on settings of a session")]
    AmbiguousKey { key_type: &'static str },
    #[error("this range does not end above the one before it")]
    RangesOverlap,
    #[error("a range without `to` must be the last")]
    RangesAfterUnbounded,
    #[error("the last range must have no `to`, so that every key has a place")]
    RangesEnd,
    #[error("this value is listed twice")]
    ListedTwice,
    #[error("table `{table}` is placed twice")]
    TableTwice { table: String },
    #[error("`{0}` is no table name")]
    NotATable(String),
    #[error("`{0}` names no trigger, constraint, index, policy, rule or column of a table")]
    NotAnObject(String),
    #[error("key column `{column}` belongs to two groups")]
    KeyColumnTwice { column: String },
    #[error("database `\"*\"` has one shard and no groups or tables")]
    WildcardShards,
    #[error("an empty list of databases would be taken for every one")]
    NoDatabases,
    #[error("`min_size` is above `size`")]
    PoolSizes,
    #[error("a database cannot be named `shardway`: that is the console")]
    ConsoleName,
    #[error("`{0}` cannot name one of several shards")]
    ShardName(String),
    #[error("database `{0}` has more than 65,535 shards")]
    TooManyShards(String),
    #[error(transparent)]
    Rule(RuleProblem),
    #[error(
        "user `{user}` shows a certificate, and no `client_ca` in `server.tls` says who signs it"
    )]
    NoAuthority { user: String },
}

/// Why an address of a server cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressProblem {
    #[error("it must begin with postgres://")]
    Scheme,
    #[error("it names a user; users and passwords belong to `users` and `control`")]
    Credentials,
    #[error("the port is no number from 1 to 65535")]
    Port,
    #[error("it has no host")]
    Host,
    #[error("a percent sign must be followed by two hexadecimal digits of UTF-8")]
    Escape,
    #[error("sslmode must be disable, prefer, require or verify-full")]
    SslMode,
    #[error("the file of sslrootcert cannot be read or holds no certificate in PEM form")]
    RootCert,
    #[error("sslnegotiation must be postgres or direct")]
    SslNegotiation,
    #[error("channel_binding must be disable, prefer or require")]
    ChannelBinding,
    #[error("sslnegotiation=direct needs sslmode=require or verify-full, and no socket")]
    DirectWithoutTls,
    #[error("channel_binding=require needs sslmode=require or verify-full, and no socket")]
    BindingWithoutTls,
    #[error(
        "only sslmode, sslrootcert, sslnegotiation, channel_binding, host and port may follow the question mark"
    )]
    Parameter,
}

impl Problem {
    /// What to do about it.
    #[must_use]
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "most problems say themselves what to do"
    )]
    pub fn help(&self) -> Option<String> {
        match self {
            Self::UnknownKey { like: Some(like), .. }
            | Self::NotAChoice { like: Some(like), .. }
            | Self::UnknownName { like: Some(like), .. } => Some(format!("did you mean `{like}`?")),
            Self::NotADuration { .. } => Some("write \"100ms\", \"30s\", \"5m\", \"1h\" or \"1d\"".to_owned()),
            Self::NotASize { .. } => Some("write \"64kB\", \"64MB\" or \"1GB\"".to_owned()),
            Self::NotAnAddress { .. } => {
                Some("write \"127.0.0.1:6432\", \"[::]:6432\" or \"unix:/run/shardway/.s.PGSQL.6432\"".to_owned())
            }
            Self::NoSecret { .. } => Some(
                "give `password`, `password_file`, `password_env` or `verifier`, or `auth = \"trust\"`".to_owned(),
            ),
            Self::AmbiguousKey { .. } | Self::NotAKey { key_type: "date" | "timestamptz" } => {
                Some("write dates as 2026-01-31, instants as 2026-01-31 12:00:00Z".to_owned())
            }
            Self::UnfitKeyType(_) => {
                Some("bigint, text, uuid, date, timestamptz, numeric and bytea can be keys".to_owned())
            }
            Self::NotATable(_) => Some("write \"schema.table\" as PostgreSQL stores the names, unquoted".to_owned()),
            Self::NoAuthQuery { .. } => Some("give its `verifier`, or the database `auth_query = true` and `control`".to_owned()),
            Self::FoundUsers => Some("write `auth = \"passthrough\"`, and `backend_user` where backends are opened as one role".to_owned()),
            Self::NotAnObject(_) => Some("write \"schema.table.name\" as PostgreSQL stores the names, unquoted; `*` stands for every name".to_owned()),
            Self::NoDatabases => Some("name the databases that the user may enter, or leave `databases` out for every one".to_owned()),
            Self::ShardName(_) => Some("use at most 63 letters, digits, `_`, `-` and `.` of ASCII: names of prepared transactions hold it".to_owned()),
            Self::Rule(problem) => problem.help(),
            Self::TlsIncomplete => Some("give both, or `mode = \"disable\"`".to_owned()),
            _ => None,
        }
    }
}

impl ConfigErrors {
    /// Each problem.
    #[must_use]
    pub fn errors(&self) -> &[ConfigError] {
        &self.errors
    }

    /// Whether the file itself could not be read.
    #[must_use]
    pub fn is_without_text(&self) -> bool {
        self.text.is_empty()
    }

    /// For people: each problem with the line and a caret. No colours.
    #[must_use]
    pub fn render(&self) -> String {
        let renderer = Renderer::plain();
        let mut rendered = String::new();
        for error in &self.errors {
            let message = error.problem.to_string();
            let title = Level::ERROR.primary_title(message.as_str());
            let (file, text) = self.source(error);
            let mut group = if text.is_empty() {
                Group::with_title(title)
            } else {
                let snippet = Snippet::source(text)
                    .path(file)
                    .annotation(AnnotationKind::Primary.span(error.span.clone()));
                let earlier = error.earlier.clone();
                title.element(snippet.annotations(
                    earlier.map(|span| AnnotationKind::Context.span(span).label("first here")),
                ))
            };
            if let Some(help) = error.problem.help() {
                group = group.element(Level::HELP.message(help));
            }
            rendered.push_str(&renderer.render(&[group]));
            rendered.push_str("\n\n");
        }
        rendered.truncate(rendered.trim_end().len());
        rendered
    }

    /// For programs: an array of objects with file, line, column (both from 1), message and help.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let object = |error: &ConfigError| {
            let (file, text) = self.source(error);
            let (line, column) = position(text, error.span.start);
            json!({
                "file": file,
                "line": line,
                "column": column,
                "message": error.problem.to_string(),
                "help": error.problem.help(),
            })
        };
        self.errors.iter().map(object).collect()
    }

    /// Name and text of the file that a problem is in.
    fn source<'a>(&'a self, error: &'a ConfigError) -> (&'a str, &'a str) {
        match &error.source {
            Some(source) => (&source.file, &source.text),
            None => (&self.file, &self.text),
        }
    }
}

/// Line and column of a place, both from 1.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

impl fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

impl std::error::Error for ConfigErrors {}

/// The candidate that is most like `name`, if one is like enough to be meant.
pub(super) fn most_like<'a>(
    name: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let limit = (name.chars().count() / 3).max(1);
    candidates
        .into_iter()
        .map(|candidate| (distance(name, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate.to_owned())
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one into the other.
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.to_lowercase().chars().collect();
    let to: Vec<char> = to.to_lowercase().chars().collect();
    let mut rows = vec![(0..=to.len()).collect::<Vec<_>>()];
    for i in 1..=from.len() {
        let mut row = vec![i];
        for j in 1..=to.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(from[i - 1] != to[j - 1]);
            let mut best = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && from[i - 1] == to[j - 2] && from[i - 2] == to[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[from.len()][to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_of_the_fingers_is_recognised() {
        let keys = ["listen", "max_clients", "workers"];
        assert_eq!(most_like("lisen", keys).as_deref(), Some("listen"));
        assert_eq!(
            most_like("max_cleints", keys).as_deref(),
            Some("max_clients")
        );
        assert_eq!(most_like("colour", keys), None);
    }
}
