//! The text that `/metrics` answers with: a recorder made for one scrape, filled with readings, rendered, dropped. So no
//! recorder is global, no series outlives what it counts, and owners of counters know nothing of exporters.

mod reshards;

use super::{
    Metrics,
    listeners::Condition,
    sessions::{BackendState, SessionState},
    transactions::Outcome,
};
use crate::clock::{Duration, Instant};
use metrics::{Key, KeyName, Label, Level, Metadata, Recorder, Unit};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusRecorder};
use std::collections::BTreeMap;

const METADATA: Metadata<'static> = Metadata::new("shardway", Level::INFO, None);

/// What the process knows beside its counters, at the moment of a scrape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    pub now: Instant,
    pub ready: bool,
    pub max_clients: usize,
    /// Database and backends that a user may have per placement.
    pub pool_sizes: Vec<(String, usize)>,
    /// Database and the number of its catalog snapshot.
    pub epochs: Vec<(String, u64)>,
    pub plan_caches: Vec<(String, PlanCacheFacts)>,
}

/// What a cache of plans knows of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PlanCacheFacts {
    pub hits: u64,
    pub misses: u64,
    pub evictions: u64,
    pub entries: usize,
    pub bytes: usize,
}

/// Renders every counter in Prometheus' text format.
#[must_use]
pub fn render(metrics: &Metrics, facts: &Facts) -> String {
    let page = Page {
        recorder: PrometheusBuilder::new().build_recorder(),
    };
    page.process(metrics, facts);
    page.plan_caches(&facts.plan_caches);
    page.clients(metrics, facts.now);
    page.servers(metrics);
    page.pools(metrics);
    page.listeners(metrics);
    page.transactions(metrics);
    page.reshards(metrics, facts.now);
    page.recorder.handle().render() + &reshards::pauses(metrics)
}

struct Page {
    recorder: PrometheusRecorder,
}

impl Page {
    #[expect(clippy::too_many_lines, reason = "a table: one line per series")]
    fn process(&self, metrics: &Metrics, facts: &Facts) {
        let process = &metrics.process;
        self.gauge(
            "shardway_ready",
            "1 while new work is served",
            &[],
            f64::from(u8::from(facts.ready)),
        );
        self.gauge(
            "shardway_max_clients",
            "Connections that may be open",
            &[],
            facts.max_clients as f64,
        );
        self.gauge(
            "shardway_logging_in",
            "Connections that are logging in",
            &[],
            process.logging_in.get() as f64,
        );
        for (name, help, counter) in [
            (
                "shardway_connections_total",
                "Connections accepted",
                &process.accepted,
            ),
            (
                "shardway_connections_turned_away_total",
                "Connections refused at max_clients",
                &process.turned_away,
            ),
            (
                "shardway_login_failures_total",
                "Logins that failed",
                &process.login_failures,
            ),
            (
                "shardway_logins_evicted_total",
                "Logins closed because others waited for their place at max_logins",
                &process.logins_evicted,
            ),
            (
                "shardway_logins_delayed_total",
                "Logins that waited because of earlier failures",
                &process.logins_delayed,
            ),
            (
                "shardway_logins_refused_total",
                "Logins refused because of earlier failures",
                &process.logins_refused,
            ),
            (
                "shardway_cancels_total",
                "Cancel requests",
                &process.cancels,
            ),
            (
                "shardway_cancels_matched_total",
                "Cancel requests that named a session",
                &process.cancels_matched,
            ),
            (
                "shardway_cancels_passed_on_total",
                "Cancel requests passed on to the proxy whose session they mean",
                &process.cancels_passed_on,
            ),
            (
                "shardway_panics_total",
                "Sessions that ended by a panic",
                &process.panics,
            ),
            (
                "shardway_reloads_total",
                "Configurations loaded while running",
                &process.reloads,
            ),
            (
                "shardway_reload_failures_total",
                "Configurations that were refused",
                &process.reload_failures,
            ),
            (
                "shardway_connect_failures_total",
                "Backends that could not be opened",
                &process.connect_failures,
            ),
        ] {
            self.counter(name, help, &[], counter.get());
        }
        for (code, count) in metrics.refusals.read() {
            self.counter(
                "shardway_refusals_total",
                "Statements refused, by stable code",
                &[("code", code)],
                count,
            );
        }
        for (database, size) in &facts.pool_sizes {
            let help = "Backends that a user may have on a placement";
            self.gauge(
                "shardway_pool_size",
                help,
                &[("database", database)],
                *size as f64,
            );
        }
        for (database, epoch) in &facts.epochs {
            let help = "Number of the catalog snapshot in use";
            self.gauge(
                "shardway_catalog_epoch",
                help,
                &[("database", database)],
                *epoch as f64,
            );
        }
    }

    fn plan_caches(&self, caches: &[(String, PlanCacheFacts)]) {
        for (database, cache) in caches {
            let labels = [("database", database.as_str())];
            for (name, help, value) in [
                (
                    "shardway_plan_cache_hits_total",
                    "Statements whose plan was cached",
                    cache.hits,
                ),
                (
                    "shardway_plan_cache_misses_total",
                    "Statements that were parsed",
                    cache.misses,
                ),
                (
                    "shardway_plan_cache_evictions_total",
                    "Plans that made room for others",
                    cache.evictions,
                ),
            ] {
                self.counter(name, help, &labels, value);
            }
            for (name, help, value) in [
                ("shardway_plan_cache_entries", "Cached plans", cache.entries),
                (
                    "shardway_plan_cache_bytes",
                    "What cached plans take, estimated",
                    cache.bytes,
                ),
            ] {
                self.gauge(name, help, &labels, value as f64);
            }
        }
    }

    fn clients(&self, metrics: &Metrics, now: Instant) {
        let mut counts: BTreeMap<(String, String, &'static str), u64> = BTreeMap::new();
        let mut longest: BTreeMap<String, Duration> = BTreeMap::new();
        let mut pinned: BTreeMap<&'static str, u64> = BTreeMap::new();
        for session in metrics.sessions.list() {
            let state = match session.state() {
                SessionState::Idle => "idle",
                SessionState::Active => "active",
                SessionState::Waiting => "waiting",
                SessionState::Held => "held",
            };
            *counts
                .entry((
                    session.database.to_string(),
                    session.user.to_string(),
                    state,
                ))
                .or_default() += 1;
            let wait = longest.entry(session.database.to_string()).or_default();
            *wait = session.waited(now).unwrap_or(Duration::ZERO).max(*wait);
            if let Some(reason) = session.pin() {
                *pinned.entry(reason).or_default() += 1;
            }
        }
        for ((database, user, state), count) in counts {
            let labels = [("database", &*database), ("user", &*user), ("state", state)];
            self.gauge(
                "shardway_clients",
                "Sessions by state",
                &labels,
                count as f64,
            );
        }
        for (database, wait) in longest {
            let help = "How long the first in the queue has waited for a backend";
            self.gauge(
                "shardway_longest_wait_seconds",
                help,
                &[("database", &database)],
                wait.as_secs_f64(),
            );
        }
        for (reason, count) in pinned {
            self.gauge(
                "shardway_pinned_clients",
                "Sessions that keep their backend",
                &[("reason", reason)],
                count as f64,
            );
        }
    }

    /// Two hubs of one database are there for a moment after a reload: they count as one.
    fn listeners(&self, metrics: &Metrics) {
        let mut sums: BTreeMap<(String, String), [u64; 6]> = BTreeMap::new();
        for listener in metrics.listeners.list() {
            let key = (listener.database.to_string(), listener.shard.to_string());
            let (channels, sessions) = listener.figures();
            let values = [
                u64::from(listener.condition() == Condition::Listening),
                channels as u64,
                sessions as u64,
                listener.connects.get(),
                listener.gaps.get(),
                listener.notifications.get(),
            ];
            let sum = sums.entry(key).or_default();
            for (sum, value) in sum.iter_mut().zip(values) {
                *sum += value;
            }
        }
        for ((database, shard), [up, channels, sessions, connects, gaps, notifications]) in sums {
            let labels = [("database", &*database), ("shard", &*shard)];
            for (name, help, value) in [
                (
                    "shardway_listener_up",
                    "1 while a shard's shared listener listens",
                    up,
                ),
                (
                    "shardway_listener_channels",
                    "Channels that sessions listen on",
                    channels,
                ),
                (
                    "shardway_listening_clients",
                    "Sessions that listen",
                    sessions,
                ),
            ] {
                self.gauge(name, help, &labels, value as f64);
            }
            for (name, help, value) in [
                (
                    "shardway_listener_connects_total",
                    "Connections made by shared listeners",
                    connects,
                ),
                (
                    "shardway_listener_gaps_total",
                    "Times that a shared listener was lost while sessions listened",
                    gaps,
                ),
                (
                    "shardway_notifications_total",
                    "Notifications that shared listeners received",
                    notifications,
                ),
            ] {
                self.counter(name, help, &labels, value);
            }
        }
    }

    fn transactions(&self, metrics: &Metrics) {
        for (database, distributed) in metrics.transactions.all() {
            self.gauge(
                "shardway_transactions_in_doubt",
                "Prepared parts of transactions over several shards that no session will finish",
                &[("database", &*database)],
                distributed.in_doubt() as f64,
            );
            let alive = distributed.proxies().iter().filter(|it| it.alive).count();
            self.gauge(
                "shardway_proxies",
                "Proxies that the home shard has heard of lately",
                &[("database", &*database)],
                alive as f64,
            );
            self.counter(
                "shardway_deadlocks_total",
                "Transactions that this proxy ended because they waited over shards for each other",
                &[("database", &*database)],
                distributed.deadlocks.get(),
            );
            self.counter(
                "shardway_held_statements_total",
                "Statements that waited while their keys changed their owner",
                &[("database", &*database)],
                distributed.held.get(),
            );
            self.counter(
                "shardway_held_microseconds_total",
                "Microseconds that statements waited while their keys changed their owner",
                &[("database", &*database)],
                distributed.held_micros.get(),
            );
            self.counter(
                "shardway_held_refused_total",
                "Statements refused because nobody could say where keys were that move",
                &[("database", &*database)],
                distributed.held_refused.get(),
            );
            let outcomes = [
                (Outcome::Committed, &distributed.committed),
                (Outcome::Aborted, &distributed.aborted),
            ];
            for (outcome, counter) in outcomes {
                self.counter(
                    "shardway_transactions_recovered_total",
                    "Prepared parts that recovery finished",
                    &[("database", &*database), ("outcome", outcome.word())],
                    counter.get(),
                );
            }
        }
    }

    fn servers(&self, metrics: &Metrics) {
        let mut counts: BTreeMap<(String, String, String, &'static str), u64> = BTreeMap::new();
        for backend in metrics.backends.list() {
            let state = match backend.state() {
                BackendState::Login => "login",
                BackendState::Idle => "idle",
                BackendState::Active => "active",
                BackendState::Used => "used",
                BackendState::Closing => "closing",
            };
            let (database, user) = (backend.database.to_string(), backend.user.to_string());
            *counts
                .entry((database, user, backend.shard.to_string(), state))
                .or_default() += 1;
        }
        for ((database, user, shard, state), count) in counts {
            let labels = [
                ("database", &*database),
                ("user", &*user),
                ("shard", &*shard),
                ("state", state),
            ];
            self.gauge(
                "shardway_servers",
                "Backends by state",
                &labels,
                count as f64,
            );
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table: one line per series")]
    fn pools(&self, metrics: &Metrics) {
        for (key, pool) in metrics.pools() {
            let labels = [
                ("database", &*key.database),
                ("user", &*key.user),
                ("shard", &*key.shard),
            ];
            let sum = pool.read().0;
            for (name, help, value) in [
                (
                    "shardway_transactions_total",
                    "Transactions ended, implicit ones included",
                    sum.transactions,
                ),
                ("shardway_queries_total", "Statements answered", sum.queries),
                (
                    "shardway_received_bytes_total",
                    "Bytes from clients",
                    sum.received_bytes,
                ),
                (
                    "shardway_sent_bytes_total",
                    "Bytes to clients",
                    sum.sent_bytes,
                ),
                (
                    "shardway_transaction_microseconds_total",
                    "Time that leases lasted",
                    sum.transaction_micros,
                ),
                (
                    "shardway_query_microseconds_total",
                    "Time that backends worked",
                    sum.query_micros,
                ),
                (
                    "shardway_wait_microseconds_total",
                    "Time that clients waited for a backend",
                    sum.wait_micros,
                ),
                (
                    "shardway_server_assignments_total",
                    "Times a backend was handed out",
                    sum.server_assignments,
                ),
                (
                    "shardway_client_parses_total",
                    "Parse messages of clients",
                    sum.client_parses,
                ),
                (
                    "shardway_server_parses_total",
                    "Parse messages that reached a backend",
                    sum.server_parses,
                ),
                ("shardway_binds_total", "Bind messages", sum.binds),
                (
                    "shardway_client_logins_total",
                    "Clients that logged in",
                    sum.client_logins,
                ),
                (
                    "shardway_server_logins_total",
                    "Logins on backends",
                    sum.server_logins,
                ),
                (
                    "shardway_server_errors_total",
                    "Errors that backends reported",
                    sum.errors,
                ),
                (
                    "shardway_wait_timeouts_total",
                    "Waits that ended without a backend",
                    sum.wait_timeouts,
                ),
                (
                    "shardway_reserve_assignments_total",
                    "Backends beyond pool.size, handed to transactions that go on to another shard",
                    sum.reserve_assignments,
                ),
            ] {
                self.counter(name, help, &labels, value);
            }
        }
    }

    fn counter(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: u64,
    ) {
        self.recorder
            .describe_counter(KeyName::from_const_str(name), None::<Unit>, help.into());
        self.recorder
            .register_counter(&key(name, labels), &METADATA)
            .absolute(value);
    }

    fn gauge(
        &self,
        name: &'static str,
        help: &'static str,
        labels: &[(&'static str, &str)],
        value: f64,
    ) {
        self.recorder
            .describe_gauge(KeyName::from_const_str(name), None::<Unit>, help.into());
        self.recorder
            .register_gauge(&key(name, labels), &METADATA)
            .set(value);
    }
}

fn key(name: &'static str, labels: &[(&'static str, &str)]) -> Key {
    let labels: Vec<Label> = labels
        .iter()
        .map(|(name, value)| Label::new(*name, (*value).to_owned()))
        .collect();
    Key::from_parts(name, labels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Clock;

    pub(super) fn facts() -> Facts {
        Facts {
            now: Clock.now(),
            ready: true,
            max_clients: 100,
            pool_sizes: vec![("app".to_owned(), 20)],
            epochs: vec![("app".to_owned(), 1)],
            plan_caches: vec![(
                "app".to_owned(),
                PlanCacheFacts {
                    hits: 9,
                    ..PlanCacheFacts::default()
                },
            )],
        }
    }

    #[test]
    fn every_series_is_documented() {
        let documented = include_str!("../../docs/operations.md");
        let words: Vec<&str> = documented.split('`').collect();
        let sources = [
            include_str!("exposition.rs"),
            include_str!("exposition/reshards.rs"),
        ];
        let literals = sources.iter().flat_map(|source| source.split('"'));
        let names = literals.filter_map(|text| text.strip_prefix("shardway_"));
        let is_name = |name: &&str| name.bytes().all(|it| it == b'_' || it.is_ascii_lowercase());
        let names: Vec<&str> = names.filter(is_name).collect();
        assert!(names.len() > 60, "{names:?}");
        for name in names {
            let short = name.strip_prefix("reshard_").unwrap_or(name);
            let full = format!("shardway_{name}");
            let said = words
                .iter()
                .any(|word| [name, short, full.as_str()].contains(word));
            assert!(said, "{name} is not in docs/operations.md");
        }
    }

    #[test]
    fn the_page_has_help_type_labels_and_value() {
        let metrics = Metrics::new();
        metrics.pool("app", "alice", "s1").queries.add(7);
        metrics.refusals.count("SW101");
        let facts = facts();
        let page = render(&metrics, &facts);
        for line in [
            "# HELP shardway_queries_total Statements answered",
            r#"shardway_plan_cache_hits_total{database="app"} 9"#,
            "# TYPE shardway_queries_total counter",
            r#"shardway_queries_total{database="app",user="alice",shard="s1"} 7"#,
            r#"shardway_refusals_total{code="SW101"} 1"#,
            r#"shardway_pool_size{database="app"} 20"#,
            "shardway_ready 1",
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
        let sorted = |page: &str| {
            page.lines()
                .map(str::to_owned)
                .collect::<std::collections::BTreeSet<_>>()
        };
        assert_eq!(
            sorted(&render(&metrics, &facts)),
            sorted(&page),
            "a scrape changes nothing"
        );
    }
}
