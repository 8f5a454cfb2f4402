//! How a reshard is told: for people, as a line of `key=value` pairs, and as JSON. Pure.

use super::{
    asking::Seen,
    figures::{bytes, seconds, word as as_word},
    knobs,
};
use crate::{
    metrics::reshards::{Sight, Stream, Table},
    reshard::{record::word, told::standing},
};
use serde_json::{Value, json};

/// For people.
pub(super) fn text(seen: Option<&Seen>) -> String {
    let Some(seen) = seen else {
        return "no reshard was ever begun; one begins with: shardway reshard start --to SHARD,...\n"
            .to_owned();
    };
    let sight = seen.sight();
    let mut lines = head(seen, &sight);
    lines.extend(
        sight
            .tables
            .iter()
            .map(|it| format!("  {:<28} {}", it.table, table(it))),
    );
    lines.extend(foot(&sight));
    if !sight.over {
        lines.push(format!("set: {}", knobs::line(&seen.stored.knobs)));
    }
    lines.extend(next(&sight));
    lines.join("\n") + "\n"
}

/// What it is and does.
pub(super) fn head(seen: &Seen, sight: &Sight) -> Vec<String> {
    let record = &seen.stored.record;
    let serving = match sight.serving {
        "new" => "the new owners serve",
        _ => "the former owners serve",
    };
    let mut lines = vec![format!(
        "reshard {}: {}; {serving}",
        sight.id,
        standing(record)
    )];
    if let Some(stopped) = &record.stopped {
        lines.push(format!("stopped: {}", stopped.what));
        lines.push(format!("    {}", stopped.remedy));
    }
    if let Some(wanted) = record.wanted.filter(|_| !sight.over) {
        lines.push(format!("wanted: {}", word(&wanted)));
    }
    if let Some(leader) = &sight.leader {
        let address = leader.address.as_deref().unwrap_or("local");
        let silent = if leader.alive { "" } else { ", silent" };
        lines.push(format!("led by: {address} ({}){silent}", leader.proxy));
    }
    if let Some(why) = &sight.waiting_for {
        lines.push(format!("waits for: {why}"));
    }
    if seen.proxies == 0 && !sight.over {
        lines.push("no proxy of this database is alive: it goes on when one is".to_owned());
    }
    lines
}

/// How far a table is, in a line.
pub(super) fn table(it: &Table) -> String {
    let of = match it.rows_of {
        Some(of) if it.percent < 100 => format!(" of about {of}"),
        Some(_) | None => String::new(),
    };
    let rate = match it.rows_per_second {
        0 => String::new(),
        rate => format!(", {rate} rows/s"),
    };
    let left = it
        .seconds_left
        .map(|left| format!(", {} left", seconds(left)));
    format!(
        "{:>3} %  {} rows{of}, {}{rate}{}",
        it.percent,
        it.rows,
        bytes(it.bytes),
        left.unwrap_or_default()
    )
}

/// What it costs, and what came of it.
pub(super) fn foot(sight: &Sight) -> Vec<String> {
    let mut lines = Vec::new();
    for stream in &sight.streams {
        let lag = stream.lag_bytes.map_or_else(
            || "begins".to_owned(),
            |lag| format!("{} ({} ms) behind", bytes(lag), stream.lag_ms.unwrap_or(0)),
        );
        let problem = stream.problem.as_ref().map(|it| format!("; {it}"));
        lines.push(format!(
            "changes of {}: {lag}, {} applied{}",
            stream.shard,
            stream.changes,
            problem.unwrap_or_default()
        ));
    }
    for source in &sight.sources {
        let kept = bytes(source.wal_kept);
        let age = source.xmin_age;
        let age =
            age.map(|age| format!("; vacuum of its catalogs held back for {age} transactions"));
        let notice = source.notice.as_ref().map(|it| format!("; {it}"));
        lines.push(format!(
            "WAL kept by {}: {kept} ({}){}{}",
            source.shard,
            source.wal_status,
            age.unwrap_or_default(),
            notice.unwrap_or_default()
        ));
    }
    if let Some(rows) = sight.verified_rows {
        let different = sight.differences.unwrap_or(0);
        lines.push(format!("compared: {rows} rows, {different} differ"));
    }
    if let Some(p99) = sight.application_p99_ms {
        let errors = sight.application_errors.unwrap_or(0);
        lines.push(format!(
            "application at the leader: p99 {p99} ms, {errors} errors since it leads"
        ));
    }
    lines.extend(cutover(sight));
    lines
}

/// The last cutover, in a line.
fn cutover(sight: &Sight) -> Option<String> {
    let figure = |name: &str| sight.cutover.get(name);
    let pause = figure("pause_ms")?;
    let counts = [
        ("held", "held"),
        ("failed", "failed"),
        ("attempts", "attempts"),
    ];
    let counts = counts.iter().filter_map(|(name, said)| {
        let count = figure(name)?;
        Some(format!(", {count:.0} {said}"))
    });
    let counts: String = counts.collect();
    Some(format!(
        "last cutover: statements held for {pause} ms at most{counts}"
    ))
}

/// What can be done.
pub(super) fn next(sight: &Sight) -> Vec<String> {
    let each = sight.next_steps.iter();
    each.map(|step| format!("next: {step}")).collect()
}

/// For programs.
pub(super) fn json(seen: Option<&Seen>) -> Value {
    let Some(seen) = seen else {
        return json!({ "id": null, "state": null, "next_steps": ["shardway reshard plan"] });
    };
    let (stored, sight) = (&seen.stored, seen.sight());
    let record = &stored.record;
    let total = sight.total();
    json!({
        "id": stored.id,
        "state": word(&record.state),
        "step": record.step.map(|step| word(&step)),
        "attempt": record.attempt,
        "flips": record.flips,
        "serving": sight.serving,
        "round": record.round,
        "wanted": record.wanted.map(|wish| word(&wish)),
        "paused": record.paused,
        "stopped": record.stopped,
        "leader": sight.leader,
        "proxies": seen.proxies,
        "waiting_for": sight.waiting_for,
        "percent": total.percent,
        "seconds_left": total.seconds_left,
        "tables": sight.tables,
        "streams": sight.streams,
        "sources": sight.sources,
        "cutover": sight.cutover,
        "application": { "p99_ms": sight.application_p99_ms, "errors": sight.application_errors },
        "knobs": knobs::json(&stored.knobs),
        "progress": stored.progress,
        "moves": stored.plan.moves,
        "joins": stored.plan.joins,
        "made_at": stored.made_at,
        "changed_at": stored.changed_at,
        "next_steps": sight.next_steps,
    })
}

/// One line of `key=value` pairs, for where no terminal is.
pub(super) fn line(seen: &Seen) -> String {
    let sight = seen.sight();
    let total = sight.total();
    let mut pairs = vec![
        ("reshard", sight.id.clone()),
        ("state", sight.state.clone()),
    ];
    pairs.extend(sight.step.clone().map(|step| ("step", step)));
    pairs.push(("attempt", sight.attempt.to_string()));
    pairs.push(("percent", total.percent.to_string()));
    pairs.push(("rows", total.rows.to_string()));
    pairs.extend(total.rows_of.map(|of| ("rows_of", of.to_string())));
    pairs.push(("bytes", total.bytes.to_string()));
    pairs.extend(total.bytes_of.map(|of| ("bytes_of", of.to_string())));
    pairs.push(("chunks_left", total.chunks_left.to_string()));
    pairs.push(("rows_per_second", total.rows_per_second.to_string()));
    pairs.extend(
        total
            .seconds_left
            .map(|left| ("seconds_left", left.to_string())),
    );
    if !sight.streams.is_empty() {
        let most = |of: fn(&Stream) -> Option<u64>| {
            let each: Option<Vec<u64>> = sight.streams.iter().map(of).collect();
            // Of one of which nothing is known it may be any.
            each.and_then(|each| each.into_iter().max())
        };
        let (lag, behind) = (most(|it| it.lag_bytes), most(|it| it.lag_ms));
        pairs.extend(lag.map(|lag| ("lag_bytes", lag.to_string())));
        pairs.extend(behind.map(|behind| ("lag_ms", behind.to_string())));
    }
    let kept = sight.sources.iter().map(|it| it.wal_kept).max();
    pairs.extend(kept.map(|kept| ("wal_kept", kept.to_string())));
    let age = sight.sources.iter().filter_map(|it| it.xmin_age).max();
    pairs.extend(age.map(|age| ("xmin_age", age.to_string())));
    pairs.extend(
        sight
            .verified_rows
            .map(|rows| ("verified_rows", rows.to_string())),
    );
    pairs.extend(
        sight
            .differences
            .map(|rows| ("differences", rows.to_string())),
    );
    pairs.extend(
        sight
            .application_p99_ms
            .map(|it| ("p99_ms", it.to_string())),
    );
    pairs.extend(
        sight
            .application_errors
            .map(|it| ("errors", it.to_string())),
    );
    let leader = sight.leader.as_ref();
    let leader = leader.filter(|it| it.alive).map(|it| it.address.clone());
    pairs.extend(leader.map(|it| ("leader", it.unwrap_or_else(|| "local".to_owned()))));
    pairs.extend(sight.waiting_for.clone().map(|it| ("waits_for", it)));
    pairs.extend(sight.error.clone().map(|it| ("stopped", it)));
    let pairs = pairs
        .iter()
        .map(|(name, value)| format!("{name}={}", as_word(value)));
    pairs.collect::<Vec<_>>().join(" ")
}
