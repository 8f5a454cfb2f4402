//! SHOW POOLS, STATS, SHARDS, REFUSALS: how much goes where.
//!
//! One row per key that PgBouncer has (database and user, or database), also with several shards: exporters make these
//! columns labels and stumble over a second row. Per shard: SHOW SHARDS.

use super::{Table, databases, host_word, mode_word, seconds_and_micros, tls_word};
use crate::{
    admin::{Console, Now, averages},
    clock::Duration,
    metrics::{
        PoolKey, Tally, Totals,
        sessions::{BackendState, SessionState},
    },
};
use std::collections::{BTreeMap, BTreeSet};

/// Clients and servers by state.
#[derive(Default)]
struct States {
    clients_active: u64,
    clients_waiting: u64,
    servers_active: u64,
    servers_idle: u64,
    servers_used: u64,
    servers_login: u64,
    servers_closing: u64,
    longest_wait: Duration,
}

pub(super) fn pools(console: &Console, now: Now) -> Table {
    let names = [
        "database",
        "user",
        "cl_active",
        "cl_waiting",
        "cl_active_cancel_req",
        "cl_waiting_cancel_req",
        "sv_active",
        "sv_active_cancel",
        "sv_being_canceled",
        "sv_idle",
        "sv_used",
        "sv_tested",
        "sv_login",
        "maxwait",
        "maxwait_us",
        "pool_mode",
        "load_balance_hosts",
        "pool_size",
        "shards",
    ];
    let mut numbers = names[2..15].to_vec();
    numbers.extend(["pool_size", "shards"]);
    let mut table = Table::new(&names, &numbers);
    let settings = console.settings.load();
    for ((database, user), states) in states_by_pool(console, now) {
        let configured = settings
            .databases
            .get(&database)
            .or(settings.wildcard.as_ref());
        let person = settings.users.get(&user);
        let mode = person
            .and_then(|user| user.pool_mode)
            .or_else(|| configured.map(|database| database.pool.mode));
        let size = person
            .and_then(|user| user.pool_size)
            .or_else(|| configured.map(|database| database.pool.size));
        let [wait, wait_us] = seconds_and_micros(states.longest_wait);
        table.row([
            database.into(),
            user.into(),
            states.clients_active.into(),
            states.clients_waiting.into(),
            0_u64.into(),
            0_u64.into(),
            states.servers_active.into(),
            0_u64.into(),
            states.servers_closing.into(),
            states.servers_idle.into(),
            states.servers_used.into(),
            0_u64.into(),
            states.servers_login.into(),
            wait,
            wait_us,
            mode.map(mode_word).into(),
            super::Cell::Null,
            size.into(),
            configured.map(|database| database.shards.len()).into(),
        ]);
    }
    table
}

/// By database and user: pools that were used, and those that have a client or a server now.
fn states_by_pool(console: &Console, now: Now) -> BTreeMap<(String, String), States> {
    let mut pools: BTreeMap<(String, String), States> = BTreeMap::new();
    for (key, _) in console.metrics.pools() {
        pools.entry((key.database, key.user)).or_default();
    }
    for session in console.metrics.sessions.list() {
        let pool = pools
            .entry((session.database.to_string(), session.user.to_string()))
            .or_default();
        match session.state() {
            SessionState::Waiting | SessionState::Held => pool.clients_waiting += 1,
            // PgBouncer counts every linked or idle client as active.
            SessionState::Active | SessionState::Idle => pool.clients_active += 1,
        }
        pool.longest_wait = pool
            .longest_wait
            .max(session.waited(now.monotonic).unwrap_or(Duration::ZERO));
    }
    for backend in console.metrics.backends.list() {
        let pool = pools
            .entry((backend.database.to_string(), backend.user.to_string()))
            .or_default();
        match backend.state() {
            BackendState::Login => pool.servers_login += 1,
            BackendState::Idle => pool.servers_idle += 1,
            BackendState::Active => pool.servers_active += 1,
            BackendState::Used => pool.servers_used += 1,
            BackendState::Closing => pool.servers_closing += 1,
        }
    }
    pools
}

const TOTAL: [&str; 12] = [
    "total_xact_count",
    "total_query_count",
    "total_server_assignment_count",
    "total_received",
    "total_sent",
    "total_xact_time",
    "total_query_time",
    "total_wait_time",
    "total_client_parse_count",
    "total_server_parse_count",
    "total_bind_count",
    "total_client_login_count",
];
const AVERAGE: [&str; 12] = [
    "avg_xact_count",
    "avg_query_count",
    "avg_server_assignment_count",
    "avg_recv",
    "avg_sent",
    "avg_xact_time",
    "avg_query_time",
    "avg_wait_time",
    "avg_client_parse_count",
    "avg_server_parse_count",
    "avg_bind_count",
    "avg_client_login_count",
];
/// As STATS_TOTALS and STATS_AVERAGES name and order them.
const UNPREFIXED: [&str; 13] = [
    "database",
    "server_assignment_count",
    "xact_count",
    "query_count",
    "bytes_received",
    "bytes_sent",
    "xact_time",
    "query_time",
    "wait_time",
    "client_parse_count",
    "server_parse_count",
    "bind_count",
    "client_login_count",
];
/// Ours, after PgBouncer's.
const OURS: [&str; 2] = ["total_errors", "total_wait_timeouts"];

pub(super) fn stats(console: &Console) -> Table {
    let names: Vec<_> = ["database"]
        .into_iter()
        .chain(TOTAL)
        .chain(AVERAGE)
        .chain(OURS)
        .collect();
    per_database(console, &names, |name, sum| {
        let mut values = totals(sum).to_vec();
        values.extend(averages_of(console, name));
        values.extend([sum.errors, sum.wait_timeouts]);
        values
    })
}

pub(super) fn stats_totals(console: &Console) -> Table {
    per_database(console, &UNPREFIXED, |_, sum| {
        assignments_first(totals(sum)).to_vec()
    })
}

pub(super) fn stats_averages(console: &Console) -> Table {
    per_database(console, &UNPREFIXED, |name, _| {
        assignments_first(averages_of(console, name)).to_vec()
    })
}

fn per_database(
    console: &Console,
    names: &[&'static str],
    values: impl Fn(&str, &Tally) -> Vec<u64>,
) -> Table {
    let mut table = Table::new(names, &names[1..]);
    for (name, sum) in averages::by_database(&console.metrics) {
        let values = values(&name, &sum.0);
        table.row(
            [name.into()]
                .into_iter()
                .chain(values.into_iter().map(Into::into)),
        );
    }
    table
}

/// From the order of [`TOTAL`] to that of [`UNPREFIXED`].
fn assignments_first(mut values: [u64; 12]) -> [u64; 12] {
    values[..3].rotate_right(1);
    values
}

fn totals(sum: &Tally) -> [u64; 12] {
    [
        sum.transactions,
        sum.queries,
        sum.server_assignments,
        sum.received_bytes,
        sum.sent_bytes,
        sum.transaction_micros,
        sum.query_micros,
        sum.wait_micros,
        sum.client_parses,
        sum.server_parses,
        sum.binds,
        sum.client_logins,
    ]
}

/// Rates per second; times per transaction and per query.
fn averages_of(console: &Console, database: &str) -> [u64; 12] {
    let period = console.averages.of(database);
    let counted = period.counted.0;
    let mut averages = totals(&counted).map(|sum| period.per_second(sum));
    averages[5] = counted
        .transaction_micros
        .checked_div(counted.transactions)
        .unwrap_or(0);
    averages[6] = counted
        .query_micros
        .checked_div(counted.queries)
        .unwrap_or(0);
    averages
}

#[expect(clippy::too_many_lines, reason = "a table: one line per column")]
pub(super) fn shards(console: &Console) -> Table {
    let names = [
        "database",
        "shard",
        "user",
        "host",
        "port",
        "tls",
        "replicas",
        "sv_active",
        "sv_idle",
        "sv_used",
        "sv_login",
        "transactions",
        "queries",
        "received_bytes",
        "sent_bytes",
        "query_micros",
        "wait_micros",
        "errors",
    ];
    let mut numbers = names[6..].to_vec();
    numbers.push("port");
    let mut table = Table::new(&names, &numbers);
    let counters: BTreeMap<PoolKey, Totals> = console
        .metrics
        .pools()
        .into_iter()
        .map(|(key, pool)| (key, pool.read()))
        .collect();
    let settings = console.settings.load();
    for (name, database) in databases(&settings) {
        for shard in &database.shards {
            let users: BTreeSet<&str> = counters
                .keys()
                .filter(|key| key.database == name && key.shard == shard.name)
                .map(|key| key.user.as_str())
                .collect();
            // A shard that nobody has used yet shows too, with no user.
            let rows: Vec<Option<&str>> = if users.is_empty() {
                vec![None]
            } else {
                users.into_iter().map(Some).collect()
            };
            for user in rows {
                let key = PoolKey {
                    database: name.to_owned(),
                    user: user.unwrap_or_default().to_owned(),
                    shard: shard.name.clone(),
                };
                let sum = counters.get(&key).copied().unwrap_or_default().0;
                let [active, idle, used, login] = servers(console, &key);
                table.row([
                    name.into(),
                    shard.name.as_str().into(),
                    user.into(),
                    host_word(&shard.primary.host).into(),
                    shard.primary.port.into(),
                    tls_word(shard.primary.tls).into(),
                    shard.replicas.len().into(),
                    active.into(),
                    idle.into(),
                    used.into(),
                    login.into(),
                    sum.transactions.into(),
                    sum.queries.into(),
                    sum.received_bytes.into(),
                    sum.sent_bytes.into(),
                    sum.query_micros.into(),
                    sum.wait_micros.into(),
                    sum.errors.into(),
                ]);
            }
        }
    }
    table
}

/// Backends of one pool: active, idle, used, login.
fn servers(console: &Console, key: &PoolKey) -> [u64; 4] {
    let mut counts = [0; 4];
    for backend in console.metrics.backends.list() {
        if *backend.database == key.database
            && *backend.user == key.user
            && *backend.shard == key.shard
        {
            match backend.state() {
                BackendState::Active => counts[0] += 1,
                BackendState::Idle => counts[1] += 1,
                BackendState::Used | BackendState::Closing => counts[2] += 1,
                BackendState::Login => counts[3] += 1,
            }
        }
    }
    counts
}

pub(super) fn plans(console: &Console) -> Table {
    let names = [
        "database",
        "hits",
        "misses",
        "evictions",
        "entries",
        "bytes",
    ];
    let mut table = Table::new(&names, &names[1..]);
    for (database, cache) in console.control.plan_caches() {
        table.row([
            database.into(),
            cache.hits.into(),
            cache.misses.into(),
            cache.evictions.into(),
            cache.entries.into(),
            cache.bytes.into(),
        ]);
    }
    table
}

pub(super) fn listeners(console: &Console) -> Table {
    let names = [
        "database",
        "shard",
        "state",
        "channels",
        "sessions",
        "remote_pid",
        "connects",
        "gaps",
        "notifications",
        "connect_time",
        "problem",
    ];
    let mut table = Table::new(&names, &names[3..9]);
    for listener in console.metrics.listeners.list() {
        let (channels, sessions) = listener.figures();
        let (pid, connected) = listener.connection();
        let problem = Some(listener.problem()).filter(|problem| !problem.is_empty());
        table.row([
            (&*listener.database).into(),
            (&*listener.shard).into(),
            listener.condition().word().into(),
            channels.into(),
            sessions.into(),
            pid.into(),
            listener.connects.get().into(),
            listener.gaps.get().into(),
            listener.notifications.get().into(),
            connected.map(super::wall).into(),
            problem.into(),
        ]);
    }
    table
}

pub(super) fn refusals(console: &Console) -> Table {
    let mut table = Table::new(&["code", "count"], &["count"]);
    for (code, count) in console.metrics.refusals.read() {
        table.row([code.into(), count.into()]);
    }
    table
}
