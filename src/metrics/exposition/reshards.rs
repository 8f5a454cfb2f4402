//! The last reshard of each database, as figures.

use super::{Metrics, Page};
use crate::{
    clock::Instant,
    metrics::reshards::{Seen, Sight},
};
use std::fmt::Write as _;

const PAUSE: &str = "shardway_reshard_cutover_pause_seconds";
const MILLIS: f64 = 1_000.0;

impl Page {
    pub(super) fn reshards(&self, metrics: &Metrics, now: Instant) {
        for (database, view) in metrics.transactions.all() {
            if let Some(seen) = view.resharding.seen() {
                self.run(&database, &seen.sight);
                self.standing(&database, &seen, now);
                self.copy(&database, &seen.sight);
                self.shards(&database, &seen.sight);
            }
        }
    }

    /// Of the whole.
    fn run(&self, database: &str, sight: &Sight) {
        let labels = [("database", database), ("reshard", sight.id.as_str())];
        let state = [labels[0], labels[1], ("state", sight.state.as_str())];
        self.gauge(
            "shardway_reshard_state",
            "1 for the state that the last reshard is in",
            &state,
            1.0,
        );
        let count = |name: &str| sight.cutover.get(name).copied();
        let whole = |count: Option<u64>| count.map(|count| count as f64);
        for (name, help, value) in [
            (
                "shardway_reshard_attempts",
                "Cutovers that were tried, in either direction",
                Some(f64::from(sight.attempt)),
            ),
            (
                "shardway_reshard_flips",
                "How often the owners have changed",
                Some(f64::from(sight.flips)),
            ),
            (
                "shardway_reshard_verified_rows",
                "Rows compared by the last verification",
                whole(sight.verified_rows),
            ),
            (
                "shardway_reshard_differences",
                "Rows that were not alike on both sides",
                whole(sight.differences),
            ),
            (
                "shardway_reshard_held_statements",
                "Statements that the last cutover held, by all proxies",
                count("held"),
            ),
            (
                "shardway_reshard_failed_statements",
                "Statements that failed because of the last cutover",
                count("failed"),
            ),
        ] {
            if let Some(value) = value {
                self.gauge(name, help, &labels, value);
            }
        }
    }

    /// What it does at this moment, and how old that is.
    fn standing(&self, database: &str, seen: &Seen, now: Instant) {
        let sight = &seen.sight;
        let labels = [("database", database), ("reshard", sight.id.as_str())];
        let flag = |is: bool| f64::from(u8::from(is));
        for (name, help, value) in [
            (
                "shardway_reshard_over",
                "1 when the last reshard is done or aborted",
                flag(sight.over),
            ),
            (
                "shardway_reshard_stopped",
                "1 when it stands still until somebody mends what stopped it",
                flag(sight.error.is_some()),
            ),
            (
                "shardway_reshard_led",
                "1 while a process runs it",
                flag(seen.is_led(now)),
            ),
            (
                "shardway_reshard_seen_seconds",
                "How long ago the home shard was last asked for all this",
                seen.age(now).as_secs_f64(),
            ),
            (
                "shardway_reshard_paused",
                "1 while it stands still until somebody resumes it",
                flag(sight.paused),
            ),
            (
                "shardway_reshard_throttled",
                "1 while less is copied at a time than was asked for, to spare servers",
                flag(sight.throttle.is_some()),
            ),
        ] {
            self.gauge(name, help, &labels, value);
        }
    }

    fn copy(&self, database: &str, sight: &Sight) {
        for table in &sight.tables {
            let labels = [
                ("database", database),
                ("reshard", sight.id.as_str()),
                ("table", table.table.as_str()),
            ];
            let left = table.chunks - table.chunks_done.min(table.chunks);
            for (name, help, value) in [
                (
                    "shardway_reshard_copied_rows",
                    "Rows copied",
                    Some(table.rows),
                ),
                (
                    "shardway_reshard_expected_rows",
                    "Rows to copy; an estimate until they are",
                    table.rows_of,
                ),
                (
                    "shardway_reshard_copied_bytes",
                    "Bytes copied",
                    Some(table.bytes),
                ),
                ("shardway_reshard_chunks_left", "Chunks to copy", Some(left)),
            ] {
                if let Some(value) = value {
                    self.gauge(name, help, &labels, value as f64);
                }
            }
        }
    }

    fn shards(&self, database: &str, sight: &Sight) {
        let labels = |shard: &str| {
            [
                ("database", database.to_owned()),
                ("reshard", sight.id.clone()),
                ("shard", shard.to_owned()),
            ]
        };
        let gauge = |name, help, shard: &str, value: f64| {
            let labels = labels(shard);
            let labels = labels
                .each_ref()
                .map(|(name, value)| (*name, value.as_str()));
            self.gauge(name, help, &labels, value);
        };
        for stream in &sight.streams {
            let help = "1 while changes of a shard cannot be brought to its destinations";
            let problem = f64::from(u8::from(stream.problem.is_some()));
            gauge(
                "shardway_reshard_stream_problem",
                help,
                &stream.shard,
                problem,
            );
            if let Some(lag) = stream.lag_bytes {
                let help = "Bytes of changes of a shard that destinations have not applied";
                gauge(
                    "shardway_reshard_lag_bytes",
                    help,
                    &stream.shard,
                    lag as f64,
                );
            }
            if let Some(lag) = stream.lag_ms {
                let help = "How old the last change of a shard is that destinations have applied";
                gauge(
                    "shardway_reshard_lag_seconds",
                    help,
                    &stream.shard,
                    lag as f64 / MILLIS,
                );
            }
        }
        for source in &sight.sources {
            let help = "WAL that a shard keeps for the reshard";
            gauge(
                "shardway_reshard_wal_kept_bytes",
                help,
                &source.shard,
                source.wal_kept as f64,
            );
            if let Some(age) = source.xmin_age {
                let help =
                    "Transactions for which the reshard keeps vacuum from a shard's catalogs";
                gauge("shardway_reshard_xmin_age", help, &source.shard, age as f64);
            }
        }
    }
}

/// How long cutovers held statements: kept as counts, which a recorder made for one scrape cannot take.
pub(super) fn pauses(metrics: &Metrics) -> String {
    let mut text = String::new();
    let all = metrics.transactions.all().into_iter();
    let counted: Vec<_> = all
        .filter(|(_, view)| view.resharding.pauses.count() > 0)
        .collect();
    if counted.is_empty() {
        return text;
    }
    // Writing to a string cannot fail.
    let _ = writeln!(
        text,
        "# HELP {PAUSE} How long cutovers held statements on moving keys, at most\n# TYPE {PAUSE} histogram"
    );
    for (database, view) in counted {
        let (pauses, name) = (&view.resharding.pauses, escaped(&database));
        for (bound, count) in pauses.up_to() {
            let bound = bound / MILLIS;
            let _ = writeln!(
                text,
                "{PAUSE}_bucket{{database=\"{name}\",le=\"{bound}\"}} {count}"
            );
        }
        let (count, sum) = (pauses.count(), pauses.sum() / MILLIS);
        let _ = writeln!(
            text,
            "{PAUSE}_bucket{{database=\"{name}\",le=\"+Inf\"}} {count}"
        );
        let _ = writeln!(text, "{PAUSE}_sum{{database=\"{name}\"}} {sum}");
        let _ = writeln!(text, "{PAUSE}_count{{database=\"{name}\"}} {count}");
    }
    text
}

/// A label's value.
fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::super::tests::facts;
    use super::*;
    use crate::metrics::reshards::{Leader, PRESENT, Source, Stream, Table};

    #[test]
    fn a_reshard_is_on_the_page() {
        let metrics = Metrics::new();
        let view = metrics.transactions.of("app");
        let sight = Sight {
            id: "r1".to_owned(),
            state: "copy".to_owned(),
            throttle: Some("a replica is behind".to_owned()),
            leader: Some(Leader {
                proxy: "a".to_owned(),
                address: None,
                alive: true,
            }),
            tables: vec![Table {
                table: "public.t".to_owned(),
                rows: 10,
                rows_of: Some(30),
                chunks_done: 1,
                chunks: 3,
                ..Table::default()
            }],
            streams: vec![Stream {
                shard: "s0".to_owned(),
                lag_bytes: Some(77),
                lag_ms: Some(1500),
                problem: Some("a destination is down".to_owned()),
                ..Stream::default()
            }],
            sources: vec![Source {
                shard: "s0".to_owned(),
                wal_kept: 99,
                xmin_age: Some(1234),
                ..Source::default()
            }],
            ..Sight::default()
        };
        let facts = facts();
        view.resharding.set(sight.clone(), facts.now);
        let flipped = Sight {
            flips: 1,
            cutover: [("pause_ms".to_owned(), 40.0), ("held".to_owned(), 3.0)].into(),
            ..sight
        };
        view.resharding.set(flipped, facts.now);
        let page = super::super::render(&metrics, &facts);
        for line in [
            r#"shardway_reshard_state{database="app",reshard="r1",state="copy"} 1"#,
            r#"shardway_reshard_led{database="app",reshard="r1"} 1"#,
            r#"shardway_reshard_seen_seconds{database="app",reshard="r1"} 0"#,
            r#"shardway_reshard_paused{database="app",reshard="r1"} 0"#,
            r#"shardway_reshard_throttled{database="app",reshard="r1"} 1"#,
            r#"shardway_reshard_stream_problem{database="app",reshard="r1",shard="s0"} 1"#,
            r#"shardway_reshard_xmin_age{database="app",reshard="r1",shard="s0"} 1234"#,
            r#"shardway_reshard_copied_rows{database="app",reshard="r1",table="public.t"} 10"#,
            r#"shardway_reshard_expected_rows{database="app",reshard="r1",table="public.t"} 30"#,
            r#"shardway_reshard_chunks_left{database="app",reshard="r1",table="public.t"} 2"#,
            r#"shardway_reshard_lag_bytes{database="app",reshard="r1",shard="s0"} 77"#,
            r#"shardway_reshard_lag_seconds{database="app",reshard="r1",shard="s0"} 1.5"#,
            r#"shardway_reshard_wal_kept_bytes{database="app",reshard="r1",shard="s0"} 99"#,
            r#"shardway_reshard_held_statements{database="app",reshard="r1"} 3"#,
            "# TYPE shardway_reshard_cutover_pause_seconds histogram",
            r#"shardway_reshard_cutover_pause_seconds_bucket{database="app",le="0.025"} 0"#,
            r#"shardway_reshard_cutover_pause_seconds_bucket{database="app",le="0.05"} 1"#,
            r#"shardway_reshard_cutover_pause_seconds_bucket{database="app",le="+Inf"} 1"#,
            r#"shardway_reshard_cutover_pause_seconds_sum{database="app"} 0.04"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }

    #[test]
    fn what_could_not_be_looked_at_is_not_led_and_has_its_age() {
        let (metrics, mut facts) = (Metrics::new(), facts());
        let leader = Leader {
            alive: true,
            ..Leader::default()
        };
        let sight = Sight {
            id: "r1".to_owned(),
            leader: Some(leader),
            ..Sight::default()
        };
        let view = metrics.transactions.of("app");
        view.resharding.set(sight, facts.now);
        facts.now += 2 * PRESENT;
        let page = super::super::render(&metrics, &facts);
        for line in [
            r#"shardway_reshard_led{database="app",reshard="r1"} 0"#,
            r#"shardway_reshard_over{database="app",reshard="r1"} 0"#,
            r#"shardway_reshard_seen_seconds{database="app",reshard="r1"} 12"#,
        ] {
            assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
        }
    }
}
