//! Every option of the configuration file, declared once: its name, form, default, and what it is for.
//!
//! The loader reads by these declarations, `docs/configuration.md` is written from them, and `SHOW CONFIG` lists them.

use super::settings::{
    Host, Listen, ListenGap, LogFormat, Pool, PoolMode, Server, Settings, TlsMode,
};
use crate::clock::Duration;
use std::fmt::Write;

/// A table of the file whose keys are fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    File,
    Server,
    ServerTls,
    ServerLog,
    Pool,
    Database,
    Control,
    Shard,
    Group,
    Range,
    Tables,
    User,
    UserPool,
    Rule,
}

/// The form of an option's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Text,
    /// A text, or `true` for the one that is built in.
    TextOrTrue,
    Texts,
    Integer {
        least: u64,
        most: u64,
    },
    Duration,
    Bytes,
    Choice(&'static [&'static str]),
    /// A table, or tables by name: described by its own section.
    Table,
    Tables,
    /// A key value: its form depends on the group's `key_type`.
    Key,
}

/// When a changed value takes effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Reload,
    Restart,
}

/// One option.
#[derive(Clone, Copy, Debug)]
pub struct Opt {
    pub section: Section,
    pub key: &'static str,
    pub kind: Kind,
    /// As it would stand in the file; `None`: none.
    pub default: Option<&'static str>,
    pub change: Change,
    pub doc: &'static str,
    pub show: Show,
}

/// How the value in use is read back.
#[derive(Clone, Copy, Debug)]
pub enum Show {
    No,
    Server(fn(&Server) -> String),
    Pool(fn(&Pool) -> String),
}

/// One row of `SHOW CONFIG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub key: String,
    pub value: String,
    pub default: String,
    /// Whether a reload changes it.
    pub changeable: bool,
}

const SECTIONS: &[Section] = &[
    Section::File,
    Section::Server,
    Section::ServerTls,
    Section::ServerLog,
    Section::Pool,
    Section::Database,
    Section::Control,
    Section::Shard,
    Section::Group,
    Section::Range,
    Section::Tables,
    Section::User,
    Section::UserPool,
    Section::Rule,
];

const COUNT: Kind = Kind::Integer {
    least: 1,
    most: 1_000_000,
};

const fn opt(section: Section, key: &'static str, kind: Kind, doc: &'static str) -> Opt {
    Opt {
        section,
        key,
        kind,
        default: None,
        change: Change::Reload,
        doc,
        show: Show::No,
    }
}

impl Opt {
    const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }

    const fn restart(mut self) -> Self {
        self.change = Change::Restart;
        self
    }

    const fn server(mut self, show: fn(&Server) -> String) -> Self {
        self.show = Show::Server(show);
        self
    }

    const fn pool(mut self, show: fn(&Pool) -> String) -> Self {
        self.show = Show::Pool(show);
        self
    }
}

/// All options, by section and in the order of the documentation.
pub const OPTIONS: &[Opt] = &[
    opt(Section::File, "server", Kind::Table, "The process: where it listens, TLS, limits, logs."),
    opt(Section::File, "pool", Kind::Table, "How backends are pooled, unless a database or user says otherwise."),
    opt(Section::File, "databases", Kind::Tables, "The logical databases, by the name that clients give; `\"*\"` is every name not listed, a plain pooler to one server."),
    opt(Section::File, "users", Kind::Tables, "Who may enter, by name; `\"*\"` says how those enter whom only `auth_query` finds."),
    opt(Section::File, "rules", Kind::Tables, "Who may enter from where, and how it is proved: an array of tables, of which the first that fits decides; what fits none is refused. None: every user from everywhere, as its `auth` says."),
    opt(Section::Server, "listen", Kind::Texts, "Addresses for clients: `host:port` with a numeric host, or `unix:` and the path of a socket.")
        .or("[\"127.0.0.1:6432\"]").restart().server(|server| joined(server.listen.iter().map(show_listen))),
    opt(Section::Server, "http", Kind::Text, "Address of `/metrics`, `/livez` and `/readyz`; none: not served.")
        .restart().server(|server| server.http.map(|address| address.to_string()).unwrap_or_default()),
    opt(Section::Server, "tls", Kind::Table, "TLS towards clients."),
    opt(Section::Server, "max_clients", COUNT, "Clients that may be inside at once. Those who are still logging in are counted by `max_logins`.")
        .or("1000").server(|server| server.max_clients.to_string()),
    opt(Section::Server, "id", Kind::Integer { least: 1, most: 127 }, "This proxy's number among those behind one address, so that a cancel request reaches the proxy whose session it means; default: there is only one.")
        .server(|server| server.id.map(|id| id.to_string()).unwrap_or_default()),
    opt(Section::Server, "peers", Kind::Tables, "The proxies behind the same address, by number: `2 = \"postgres://host:port\"`, in the form of a shard's `primary`, TLS included. A cancel request for a session of theirs is passed on. The own number is skipped, so that all can have the same list.")
        .server(|server| joined(server.peers.iter().map(|(id, address)| format!("{id} = {}:{}", show_host(&address.host), address.port)))),
    opt(Section::Server, "max_logins", COUNT, "Connections that may be logging in at once, beside `max_clients`; more wait to be accepted, and one that takes longer than two seconds makes room for them.")
        .or("500").server(|server| server.max_logins.to_string()),
    opt(Section::Server, "login_timeout", Kind::Duration, "Startup, TLS and authentication of a client together take no longer.")
        .or("\"15s\"").server(|server| show_duration(server.login_timeout)),
    opt(Section::Server, "failed_logins", Kind::Integer { least: 0, most: 1_000_000 }, "Wrong proofs of one address for one user (and ten times as many of one address) before further attempts are spaced; they are forgotten evenly over ten minutes; 0: never spaced, as behind a balancer that hides addresses.")
        .or("20").server(|server| server.failed_logins.to_string()),
    opt(Section::Server, "failed_login_delay", Kind::Duration, "The space between such attempts; one that would wait for more than half of `login_timeout` is refused.")
        .or("\"1s\"").server(|server| show_duration(server.failed_login_delay)),
    opt(Section::Server, "rules_file", Kind::Text, "A file in the format of `pg_hba.conf`, in place of `rules`; relative to the configuration file."),
    opt(Section::Server, "ident_file", Kind::Text, "A file in the format of `pg_ident.conf`, with the maps that rules name; relative to the configuration file."),
    opt(Section::Server, "shutdown_timeout", Kind::Duration, "How long a drain waits for transactions to end.")
        .or("\"30s\"").server(|server| show_duration(server.shutdown_timeout)),
    opt(Section::Server, "workers", Kind::Integer { least: 1, most: 1024 }, "Threads that serve sessions; default: one per processor.")
        .restart().server(|server| server.workers.to_string()),
    opt(Section::Server, "plan_cache", Kind::Bytes, "Memory for plans of statements seen before.")
        .or("\"64MB\"").restart().server(|server| show_bytes(server.plan_cache_bytes)),
    opt(Section::Server, "gather_limit", Kind::Bytes, "Rows of shards that are held for one statement over several shards which another shard computes: as they come, and again as the text of the statement; beyond that it gets error 53200.")
        .or("\"64MB\"").server(|server| show_bytes(server.gather_limit)),
    opt(Section::Server, "gather_limit_total", Kind::Bytes, "The same for all such statements together.")
        .or("\"256MB\"").server(|server| show_bytes(server.gather_limit_total)),
    opt(Section::Server, "log", Kind::Table, "Logging."),
    opt(Section::ServerTls, "mode", Kind::Choice(&["disable", "prefer", "require"]), "Whether clients may or must use TLS; default `prefer` once a certificate is given, else `disable`.")
        .server(|server| show_tls(server.tls.mode).to_owned()),
    opt(Section::ServerTls, "cert", Kind::Text, "PEM file with the certificate chain; relative to the configuration file."),
    opt(Section::ServerTls, "key", Kind::Text, "PEM file with the private key; relative to the configuration file."),
    opt(Section::ServerTls, "client_ca", Kind::Text, "PEM file with the authorities that sign clients' certificates; clients are then asked for one, and need none unless rules or `auth = \"cert\"` say so."),
    opt(Section::ServerTls, "client_crl", Kind::Text, "PEM file with lists of revoked certificates of clients, one of every authority in a chain."),
    opt(Section::ServerLog, "format", Kind::Choice(&["text", "json"]), "How log lines are written.")
        .or("\"text\"").restart().server(|server| show_log(server.log_format).to_owned()),
    opt(Section::ServerLog, "level", Kind::Text, "`error`, `warn`, `info`, `debug` or `trace`, also per module: `info,shardway::pool=debug`.")
        .or("\"info\"").restart().server(|server| server.log_level.clone()),
    opt(Section::Pool, "mode", Kind::Choice(&["transaction", "session"]), "When a backend goes back to the pool: after each transaction, or when its client leaves.")
        .or("\"transaction\"").pool(|pool| show_mode(pool.mode).to_owned()),
    opt(Section::Pool, "size", COUNT, "Backends per user and placement.").or("20").pool(|pool| pool.size.to_string()),
    opt(Section::Pool, "reserve_size", Kind::Integer { least: 0, most: 1_000_000 }, "Backends per user and placement beyond `size`, for transactions that hold a backend of one shard and go on to another: two that cross would else wait for each other's. The server's `max_connections` must bear both.")
        .or("5").pool(|pool| pool.reserve_size.to_string()),
    opt(Section::Pool, "replication_size", Kind::Integer { least: 0, most: 1_000_000 }, "Replication connections (`replication=database` or `true`) to one shard open at once, beside the pools; 0 refuses them.")
        .or("10").pool(|pool| pool.replication_size.to_string()),
    opt(Section::Pool, "min_size", Kind::Integer { least: 0, most: 1_000_000 }, "Backends per user and placement kept open once a user has come.")
        .or("0").pool(|pool| pool.min_size.to_string()),
    opt(Section::Pool, "idle_timeout", Kind::Duration, "A backend unused for that long is closed.")
        .or("\"10m\"").pool(|pool| show_duration(pool.idle_timeout)),
    opt(Section::Pool, "lifetime", Kind::Duration, "A backend older than that is closed when it is free.")
        .or("\"1h\"").pool(|pool| show_duration(pool.lifetime)),
    opt(Section::Pool, "wait_timeout", Kind::Duration, "How long a client waits for a backend before it gets error 53300.")
        .or("\"30s\"").pool(|pool| show_duration(pool.wait_timeout)),
    opt(Section::Pool, "connect_timeout", Kind::Duration, "How long opening a backend may take, authentication included.")
        .or("\"5s\"").pool(|pool| show_duration(pool.connect_timeout)),
    opt(Section::Pool, "connect_limit", COUNT, "Connects to one placement under way at once.")
        .or("8").pool(|pool| pool.connect_limit.to_string()),
    opt(Section::Pool, "prepared_statements", COUNT, "Prepared statements kept per backend.")
        .or("500").pool(|pool| pool.prepared_statements.to_string()),
    opt(Section::Pool, "listen_gap", Kind::Choice(&["end", "warn"]), "Transaction mode: what a session that listens is told when the shared connection that listens for it was lost, so that notifications may be missing. `end`: its connection ends, as it would without a proxy; `warn`: it gets a WARNING (SW222) once listening works again.")
        .or("\"end\"").pool(|pool| show_gap(pool.listen_gap).to_owned()),
    opt(Section::Pool, "listen_queue", Kind::Bytes, "Transaction mode: notifications that may wait for one client, which does not read or is in a transaction; beyond that its connection ends (SW223).")
        .or("\"4MB\"").pool(|pool| show_bytes(pool.listen_queue)),
    opt(Section::Database, "catalog", Kind::Text, "The home shard: holds Shardway's own schema and what exists once per database; default: the first shard by name."),
    opt(Section::Database, "control", Kind::Table, "Shardway's own role on the servers, for the catalog, health and inspection; never the application's."),
    opt(Section::Database, "auth_query", Kind::TextOrTrue, "Looks up on the home shard, as `control`, who is not listed in `users` or has `auth = \"passthrough\"`: a query of `$1`, the name, for one row of the name and its stored password. `true`: `pg_authid`, of roles that may log in and whose password has not expired."),
    opt(Section::Database, "auth_query_cache", Kind::Duration, "How long what `auth_query` found is believed; a wrong password ends that at once.").or("\"10s\""),
    opt(Section::Database, "two_phase_retention", Kind::Duration, "How long the outcome of a transaction over several shards is kept on its deciding shard: longer than a failed server or standby may take to come back. A part that was prepared more than half of that ago, of whose transaction no outcome is known, is left to an operator.").or("\"6h\""),
    opt(Section::Database, "deadlock_interval", Kind::Duration, "A statement of a transaction over several shards that has been without an answer for so long is looked at, and again as often: does it wait on one shard for who waits for it on another? Then the youngest of such a ring gets error 40P01. Needs `control`; 0: nobody looks, as without it.").or("\"1s\""),
    opt(Section::Database, "sequence_block", Kind::Integer { least: 1, most: 100_000 }, "How many numbers of a sequence a proxy draws from the home shard at once for the defaults of sharded and reference tables. 1 gives them in PostgreSQL's order; more saves a round trip for each INSERT, as a sequence's CACHE does, and leaves gaps.").or("1"),
    opt(Section::Database, "pg_dump", Kind::Text, "The program that writes a schema, for reshards that add shards: a path, or a name that is looked for in the search path. Of the servers' version or newer.").or("\"pg_dump\""),
    opt(Section::Database, "shards", Kind::Tables, "The shards by name; their order is that of their names. One shard: a plain pooler."),
    opt(Section::Database, "unlisted_tables", Kind::Text, "Where tables live that nothing lists: a shard's name, or `error` to refuse them."),
    opt(Section::Database, "per_shard", Kind::Texts, "Triggers, unique constraints, indexes, policies, rules, foreign keys and columns with counting defaults that may act on each shard by itself, as `schema.table.name`, `*` for every name; statements that set off others of that kind are refused (SW125).").or("[]"),
    opt(Section::Database, "pool", Kind::Table, "As the section `pool`, for this database."),
    opt(Section::Database, "groups", Kind::Tables, "Colocation groups by name."),
    opt(Section::Database, "tables", Kind::Table, "Tables that are not spread by a key."),
    opt(Section::Control, "user", Kind::Text, "The role's name."),
    opt(Section::Control, "password", Kind::Text, "Its password."),
    opt(Section::Control, "password_file", Kind::Text, "A file with its password; relative to the configuration file."),
    opt(Section::Control, "password_env", Kind::Text, "An environment variable with its password."),
    opt(Section::Shard, "primary", Kind::Text, "`postgres://host:port/database`, with `?sslmode=disable`, `prefer`, `require` or `verify-full`, `&sslrootcert=FILE`, `&sslnegotiation=direct` (TLS at once: PostgreSQL 17 and later) and `&channel_binding=disable`, `prefer` or `require`; a socket as `postgres:///database?host=/directory&port=5432`."),
    opt(Section::Shard, "replicas", Kind::Texts, "Addresses of its replicas, in the same form.").or("[]"),
    opt(Section::Group, "method", Kind::Choice(&["hash", "range", "list"]), "How key values are mapped to shards."),
    opt(Section::Group, "key_type", Kind::Choice(&["bigint", "text", "uuid", "date", "timestamptz", "numeric", "bytea"]), "The shard key's type. `smallint`, `integer` and `varchar` widen to `bigint` and `text`."),
    opt(Section::Group, "hash", Kind::Choice(&["postgres", "xxh3"]), "Hash groups: `postgres` is what `PARTITION BY HASH` computes, so that SQL can compute it too; `xxh3` is faster to compute outside of PostgreSQL.")
        .or("\"postgres\""),
    opt(Section::Group, "buckets", Kind::Integer { least: 1, most: 65_536 }, "Hash groups: a power of two; the buckets are split evenly over the shards.").or("1024"),
    opt(Section::Group, "shards", Kind::Texts, "Hash groups: the shards that the buckets are first split over; default: all. A reshard moves them from there, and the file may stay as it is."),
    opt(Section::Group, "ranges", Kind::Tables, "Range groups: an array of ranges in ascending order, the last without `to`."),
    opt(Section::Group, "lists", Kind::Tables, "List groups: the values of each shard; `\"*\"` is every other value."),
    opt(Section::Group, "tables", Kind::Tables, "The group's tables, each with its key column: `\"schema.table\" = \"column\"`, written as PostgreSQL stores the names."),
    opt(Section::Group, "key_column", Kind::Text, "Every table with a column of this name belongs to the group too, once a server has been asked."),
    opt(Section::Range, "to", Kind::Key, "Exclusive upper bound; none: no bound."),
    opt(Section::Range, "shard", Kind::Text, "The shard that holds the range."),
    opt(Section::Tables, "reference", Kind::Texts, "Small tables that are whole and identical on every shard.").or("[]"),
    opt(Section::Tables, "single", Kind::Tables, "Tables that are whole on one shard: `\"schema.table\" = \"shard\"`."),
    opt(Section::User, "auth", Kind::Choice(&["scram", "md5", "password", "trust", "cert", "passthrough", "passthrough-password"]), "How the client proves who it is, where no `rules` decide; `cert`: by a certificate whose common name is the user's; `passthrough`: by SCRAM against `verifier`, or else what `auth_query` finds, and what it has shown opens its backends; `passthrough-password`: by its password in clear, over TLS only, which then opens backends whatever verifiers the servers keep.").or("\"scram\""),
    opt(Section::User, "password", Kind::Text, "The client's password, also sent to servers unless a backend password is given."),
    opt(Section::User, "password_file", Kind::Text, "A file with the password; relative to the configuration file."),
    opt(Section::User, "password_env", Kind::Text, "An environment variable with the password."),
    opt(Section::User, "verifier", Kind::Text, "A stored SCRAM verifier (`SCRAM-SHA-256$…`) in place of the password; servers then need a backend password or trust."),
    opt(Section::User, "databases", Kind::Texts, "The databases that the user may enter; default: every one."),
    opt(Section::User, "backend_user", Kind::Text, "The role as which backends are opened; default: the user's own name."),
    opt(Section::User, "backend_password", Kind::Text, "The password for servers; default: the client's."),
    opt(Section::User, "backend_password_file", Kind::Text, "A file with the password for servers; relative to the configuration file."),
    opt(Section::User, "backend_password_env", Kind::Text, "An environment variable with the password for servers."),
    opt(Section::User, "console", Kind::Choice(&["stats", "admin"]), "Opens the console database `shardway`: to look, or to act too."),
    opt(Section::User, "pool", Kind::Table, "Overrides the database's pool for this user."),
    opt(Section::UserPool, "mode", Kind::Choice(&["transaction", "session"]), "As in `pool`."),
    opt(Section::UserPool, "size", COUNT, "As in `pool`."),
    opt(Section::Rule, "type", Kind::Choice(&["local", "host", "hostssl", "hostnossl"]), "Unix sockets, TCP, TCP with TLS, TCP without."),
    opt(Section::Rule, "databases", Kind::Texts, "Databases by name, `all`, or `sameuser`: the one that bears the user's name.").or("[\"all\"]"),
    opt(Section::Rule, "users", Kind::Texts, "Users by name, or `all`.").or("[\"all\"]"),
    opt(Section::Rule, "address", Kind::Text, "A network such as `10.0.0.0/8` or `fd00::/8`, or `all`; not with `local`."),
    opt(Section::Rule, "method", Kind::Choice(&["trust", "reject", "password", "md5", "scram-sha-256", "cert"]), "How the client proves who it is; passwords are those of `users`."),
    opt(Section::Rule, "clientcert", Kind::Choice(&["verify-ca", "verify-full"]), "A certificate is needed too; `verify-full`: its name must stand for the user."),
    opt(Section::Rule, "clientname", Kind::Choice(&["CN", "DN"]), "Which name of the certificate counts; default `CN`, the common name."),
    opt(Section::Rule, "map", Kind::Text, "A map of `server.ident_file` that says which names stand for which users; default: the user's own name."),
];

impl Section {
    /// The section's place in the file, with `NAME` for a name that the user chooses.
    #[must_use]
    pub fn path(self) -> &'static str {
        match self {
            Self::File => "",
            Self::Server => "server",
            Self::ServerTls => "server.tls",
            Self::ServerLog => "server.log",
            Self::Pool => "pool",
            Self::Database => "databases.NAME",
            Self::Control => "databases.NAME.control",
            Self::Shard => "databases.NAME.shards.NAME",
            Self::Group => "databases.NAME.groups.NAME",
            Self::Range => "databases.NAME.groups.NAME.ranges",
            Self::Tables => "databases.NAME.tables",
            Self::User => "users.NAME",
            Self::UserPool => "users.NAME.pool",
            Self::Rule => "rules",
        }
    }

    /// The section's options.
    pub fn options(self) -> impl Iterator<Item = &'static Opt> {
        OPTIONS.iter().filter(move |option| option.section == self)
    }

    pub(super) fn option(self, key: &str) -> Option<&'static Opt> {
        self.options().find(|option| option.key == key)
    }
}

/// What `SHOW CONFIG` lists: the server's options, then each database's pool.
#[must_use]
pub fn rows(settings: &Settings) -> Vec<Row> {
    let mut rows = Vec::new();
    let row = |path: &str, option: &Opt, value: String| Row {
        key: format!("{path}.{}", option.key),
        value,
        default: option
            .default
            .unwrap_or_default()
            .trim_matches('"')
            .to_owned(),
        changeable: option.change == Change::Reload,
    };
    for option in OPTIONS {
        if let Show::Server(show) = option.show {
            rows.push(row(option.section.path(), option, show(&settings.server)));
        }
    }
    let named = settings
        .databases
        .iter()
        .map(|(name, database)| (name.as_str(), database));
    for (name, database) in
        named.chain(settings.wildcard.iter().map(|database| ("\"*\"", database)))
    {
        for option in Section::Pool.options() {
            if let Show::Pool(show) = option.show {
                rows.push(row(
                    &format!("databases.{name}.pool"),
                    option,
                    show(&database.pool),
                ));
            }
        }
    }
    rows
}

/// The text of `docs/configuration.md`.
#[must_use]
pub fn document() -> String {
    let mut text = String::from(
        "# Configuration\n\nGenerated from the declarations in `src/config/options.rs`.\n\n\
         One TOML file. Durations are written `\"100ms\"`, `\"30s\"`, `\"5m\"`, `\"1h\"` or `\"1d\"`, sizes `\"64kB\"`, \
         `\"64MB\"` or `\"1GB\"`. Paths are relative to the file. Unknown keys, wrong types and contradictions are \
         errors that name file, line and a way out; `shardway check --config FILE` shows them all at once. \
         On SIGHUP the file is read again: what needs a restart is named in the log, the rest takes effect for new \
         sessions. The directory `config/` has examples.\n",
    );
    for section in SECTIONS {
        let title = if section.path().is_empty() {
            "The file"
        } else {
            section.path()
        };
        let _ = write!(
            text,
            "\n## `{title}`\n\n| key | form | default | change | meaning |\n|---|---|---|---|---|\n"
        );
        for option in section.options() {
            let default = option
                .default
                .map(|default| format!("`{default}`"))
                .unwrap_or_default();
            let change = match option.change {
                Change::Reload => "reload",
                Change::Restart => "restart",
            };
            let _ = writeln!(
                text,
                "| `{}` | {} | {default} | {change} | {} |",
                option.key,
                option.kind.describe(),
                option.doc
            );
        }
    }
    text
}

impl Kind {
    /// The form in an error about a value of another type.
    pub(super) fn expected(self) -> &'static str {
        match self {
            Self::Text | Self::Choice(_) => "a string",
            Self::TextOrTrue => "a string or `true`",
            Self::Texts => "an array of strings",
            Self::Integer { .. } => "an integer",
            Self::Duration => "a duration such as \"30s\"",
            Self::Bytes => "a size such as \"64MB\"",
            Self::Table | Self::Tables => "a table",
            Self::Key => "a key value",
        }
    }

    /// The form in words.
    #[must_use]
    pub fn describe(self) -> String {
        match self {
            Self::Text => "string".to_owned(),
            Self::TextOrTrue => "string or `true`".to_owned(),
            Self::Texts => "array of strings".to_owned(),
            Self::Integer { least, most } => format!("integer from {least} to {most}"),
            Self::Duration => "duration".to_owned(),
            Self::Bytes => "size".to_owned(),
            Self::Choice(choices) => joined(choices.iter().map(|choice| format!("`{choice}`"))),
            Self::Table => "table".to_owned(),
            Self::Tables => "tables".to_owned(),
            Self::Key => "key value".to_owned(),
        }
    }
}

fn joined(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(", ")
}

fn show_listen(listen: &Listen) -> String {
    match listen {
        Listen::Tcp(address) => address.to_string(),
        Listen::Unix(path) => format!("unix:{}", path.display()),
    }
}

fn show_tls(mode: TlsMode) -> &'static str {
    match mode {
        TlsMode::Disable => "disable",
        TlsMode::Prefer => "prefer",
        TlsMode::Require => "require",
        TlsMode::VerifyFull => "verify-full",
    }
}

fn show_log(format: LogFormat) -> &'static str {
    match format {
        LogFormat::Text => "text",
        LogFormat::Json => "json",
    }
}

fn show_mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Transaction => "transaction",
        PoolMode::Session => "session",
    }
}

fn show_gap(gap: ListenGap) -> &'static str {
    match gap {
        ListenGap::End => "end",
        ListenGap::Warn => "warn",
    }
}

/// The duration in its largest whole unit.
fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    for (unit, length) in [
        ("d", 86_400_000),
        ("h", 3_600_000),
        ("m", 60_000),
        ("s", 1000),
    ] {
        if millis >= length && millis.is_multiple_of(length) {
            return format!("{}{unit}", millis / length);
        }
    }
    format!("{millis}ms")
}

fn show_bytes(bytes: usize) -> String {
    for (unit, size) in [("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)] {
        if bytes >= size && bytes.is_multiple_of(size) {
            return format!("{}{unit}", bytes / size);
        }
    }
    format!("{bytes}B")
}

/// A host as people write it.
#[must_use]
pub fn show_host(host: &Host) -> String {
    match host {
        Host::Tcp(name) => name.clone(),
        Host::Unix(directory) => directory.display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_has_one_declaration() {
        for (at, option) in OPTIONS.iter().enumerate() {
            let again = OPTIONS[..at]
                .iter()
                .any(|other| other.section == option.section && other.key == option.key);
            assert!(!again, "{}.{}", option.section.path(), option.key);
            assert!(SECTIONS.contains(&option.section));
        }
    }

    #[test]
    fn durations_and_sizes_are_shown_as_they_are_written() {
        assert_eq!(show_duration(Duration::from_millis(1500)), "1500ms");
        assert_eq!(show_duration(Duration::from_secs(600)), "10m");
        assert_eq!(show_bytes(64 << 20), "64MB");
    }
}
