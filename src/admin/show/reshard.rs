//! SHOW RESHARD: the last reshard of each database, as this process saw it last.

use super::{Cell, Console, Table};
use crate::{clock::Instant, metrics::reshards::Seen};

const COLUMNS: [&str; 30] = [
    "database",
    "reshard",
    "state",
    "step",
    "attempt",
    "serving",
    "leader",
    "waits_for",
    "percent",
    "rows",
    "rows_of",
    "bytes",
    "bytes_of",
    "chunks_left",
    "rows_per_second",
    "seconds_left",
    "lag_bytes",
    "wal_kept",
    "xmin_age",
    "verified_rows",
    "differences",
    "pause_ms",
    "held",
    "failed",
    "p99_ms",
    "errors",
    "error",
    "remedy",
    "next_steps",
    "seen_seconds_ago",
];
const NUMBERS: [&str; 15] = [
    "attempt",
    "percent",
    "rows",
    "rows_of",
    "bytes",
    "bytes_of",
    "chunks_left",
    "rows_per_second",
    "seconds_left",
    "verified_rows",
    "differences",
    "held",
    "failed",
    "errors",
    "seen_seconds_ago",
];

pub(super) fn reshard(console: &Console, now: Instant) -> Table {
    let mut table = Table::new(&COLUMNS, &NUMBERS);
    for (database, view) in console.metrics.transactions.all() {
        if let Some(seen) = view.resharding.seen() {
            table.row(cells(&database, &seen, now));
        }
    }
    table
}

fn cells(database: &str, seen: &Seen, now: Instant) -> Vec<Cell> {
    let sight = &seen.sight;
    let total = sight.total();
    let leader = sight.leader.as_ref().map(|it| {
        let silent = if seen.is_led(now) { "" } else { " (silent)" };
        format!("{}{silent}", it.proxy)
    });
    let lags = sight
        .streams
        .iter()
        .filter_map(|it| Some((&it.shard, it.lag_bytes?)));
    let wal = sight.sources.iter().map(|it| (&it.shard, it.wal_kept));
    let ages = sight.sources.iter();
    let ages = ages.filter_map(|it| Some((&it.shard, it.xmin_age?)));
    let count = |name: &str| sight.cutover.get(name).map(|count| count.round() as u64);
    vec![
        database.into(),
        sight.id.as_str().into(),
        sight.state.as_str().into(),
        sight.step.clone().into(),
        u64::try_from(sight.attempt).unwrap_or(0).into(),
        sight.serving.into(),
        leader.into(),
        seen.waiting_for(now).into(),
        total.percent.into(),
        total.rows.into(),
        total.rows_of.into(),
        total.bytes.into(),
        total.bytes_of.into(),
        total.chunks_left.into(),
        total.rows_per_second.into(),
        total.seconds_left.into(),
        each(lags),
        each(wal),
        each(ages),
        sight.verified_rows.into(),
        sight.differences.into(),
        sight
            .cutover
            .get("pause_ms")
            .map(ToString::to_string)
            .into(),
        count("held").into(),
        count("failed").into(),
        sight.application_p99_ms.map(|it| it.to_string()).into(),
        sight.application_errors.into(),
        sight.error.clone().into(),
        sight.remedy.clone().into(),
        sight.next_steps.join("; ").into(),
        seen.age(now).as_secs().into(),
    ]
}

/// `s0=12 s1=0`; NULL of nothing.
fn each<'a>(figures: impl Iterator<Item = (&'a String, u64)>) -> Cell {
    let each: Vec<String> = figures
        .map(|(shard, figure)| format!("{shard}={figure}"))
        .collect();
    (!each.is_empty()).then(|| each.join(" ")).into()
}
