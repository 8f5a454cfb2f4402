//! How a reshard is told to people: what was recorded of it and what is shown of it, in words and figures. Pure.
//!
//! What must stay true: nothing is over 100 %, nor at 100 % before it is done; what does not move has a reason.

use super::{
    job::Direction,
    plan::MovingTable,
    record::{Stored, word},
    state::{Next, Record, State, Step, Waiting, Wish},
};
use crate::metrics::reshards::{Leader, Sight, Source, Stream, Table};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

type Progress = BTreeMap<String, Value>;

/// What is said of it.
#[must_use]
pub fn sight(stored: &Stored, leader: Option<Leader>) -> Sight {
    let (record, progress) = (&stored.record, &stored.progress);
    let sources = sources(stored);
    let streams = sources.iter().filter(|_| record.streams());
    Sight {
        id: stored.id.clone(),
        state: word(&record.state),
        step: record.step.map(|step| word(&step)),
        attempt: record.attempt,
        flips: record.flips,
        serving: serving(record),
        over: record.is_over(),
        waiting_for: waiting_for(stored, leader.as_ref()),
        paused: record.paused && !record.is_over(),
        throttle: text(progress, "throttle").filter(|_| !record.is_over()),
        error: record.stopped.as_ref().map(|it| it.what.clone()),
        remedy: record.stopped.as_ref().map(|it| it.remedy.clone()),
        tables: tables(stored),
        streams: streams.map(|shard| stream(progress, shard)).collect(),
        // Its slots have gone with its end: what they kept is not so any more.
        sources: sources
            .iter()
            .filter(|_| !record.is_over())
            .filter_map(|it| source(progress, it))
            .collect(),
        verified_rows: verified(progress, "rows"),
        differences: verified(progress, "different"),
        cutover: cutover(progress),
        application_p99_ms: progress.get("application.p99_ms").and_then(Value::as_f64),
        application_errors: number(progress, "application.errors"),
        next_steps: next_steps(record),
        leader: leader.filter(|_| !record.is_over()),
    }
}

/// What a copy is expected to have of a table, under its name among the figures.
#[must_use]
pub fn expected(table: &str) -> String {
    format!("copy.{table}.rows_expected")
}

/// Who serves the keys that move.
#[must_use]
pub fn serving(record: &Record) -> &'static str {
    match (record.direction(), record.state) {
        (_, State::Done) | (Direction::Back, _) => "new",
        (Direction::Forward, _) => "old",
    }
}

/// What an operator can do now.
#[must_use]
pub fn next_steps(record: &Record) -> Vec<String> {
    let command = |verb: &str| format!("shardway reshard {verb}");
    if record.is_over() {
        return vec![command("plan")];
    }
    let mut steps = Vec::new();
    if record.paused || record.stopped.is_some() {
        steps.push(command("resume"));
    }
    let wishes = [
        (Wish::Cutover, "cutover"),
        (Wish::Rollback, "rollback"),
        (Wish::Verify, "verify"),
        (Wish::Finish, "finish"),
        (Wish::Abort, "abort"),
    ];
    let allowed = wishes
        .iter()
        .filter(|(wish, _)| record.allows(*wish).is_ok());
    steps.extend(allowed.map(|(_, verb)| command(verb)));
    if !record.paused && record.stopped.is_none() && record.state != State::Cutover {
        steps.push(command("pause"));
    }
    steps
}

/// Why it does not go on, or not faster.
fn waiting_for(stored: &Stored, leader: Option<&Leader>) -> Option<String> {
    let (record, progress) = (&stored.record, &stored.progress);
    if record.is_over() {
        return None;
    }
    if record.next() == Next::Wait(Waiting::Stopped) {
        return Some("somebody who mends what stopped it, and resumes it".to_owned());
    }
    if !leader.is_some_and(|leader| leader.alive) {
        return Some(match leader {
            Some(leader) if stored.token > 0 => format!(
                "a proxy that goes on with it: {} is silent",
                leader.address.as_ref().unwrap_or(&leader.proxy)
            ),
            Some(_) | None => {
                "a proxy that begins with it: one that serves the database, with the control role"
                    .to_owned()
            }
        });
    }
    match record.next() {
        Next::Wait(Waiting::Paused) => Some("resume: it is paused".to_owned()),
        Next::Wait(Waiting::Operator) => {
            let steps = next_steps(record);
            let first = steps.first().map(String::as_str);
            Some(format!("the operator: {}", first.unwrap_or_default()))
        }
        Next::Wait(Waiting::Stopped) | Next::Over | Next::Turn(_) | Next::Run(_) => {
            let said = ["waiting_for", "problem"]
                .iter()
                .find_map(|name| text(progress, name));
            let waits = said
                .map(|said| with_way_out(stored, said))
                .or_else(|| state_waits(record, progress))
                .or_else(|| stream_problem(stored));
            // What keeps it from going on is not hidden by what slows it down.
            let both: Vec<String> = text(progress, "throttle")
                .into_iter()
                .chain(waits)
                .collect();
            if both.is_empty() {
                limit(stored)
            } else {
                Some(both.join("; "))
            }
        }
    }
}

/// What is given up waits for every shard, of which one may be gone for good.
fn with_way_out(stored: &Stored, said: String) -> String {
    let joins = &stored.plan.joins;
    let lost = joins.iter().find(|shard| is_about(&said, shard));
    match lost.filter(|_| stored.record.state == State::Abort) {
        Some(shard) => {
            format!("{said}; if it is gone for good: shardway reshard abort --without {shard}")
        }
        None => said,
    }
}

/// Whether a shard is named, and not one whose name begins with its name.
fn is_about(said: &str, shard: &str) -> bool {
    let goes_on = |rest: &str| {
        // A full stop ends a sentence, or stands within a name.
        let next = rest.trim_start_matches('.').chars().next();
        next.is_some_and(|it| it.is_alphanumeric() || matches!(it, '_' | '-'))
    };
    let mut named = said.split("shard ").skip(1);
    named.any(|it| it.strip_prefix(shard).is_some_and(|rest| !goes_on(rest)))
}

/// What is kept of it when it is over means nothing in other states.
fn state_waits(record: &Record, progress: &Progress) -> Option<String> {
    match record.state {
        State::Cutover => text(progress, "cutover.waiting_for"),
        State::Copy => text(progress, "copy.waiting_for"),
        State::Prepare
        | State::CatchUp
        | State::Verify
        | State::Ready
        | State::Reverse
        | State::Finish
        | State::Done
        | State::Abort
        | State::Aborted => None,
    }
}

fn stream_problem(stored: &Stored) -> Option<String> {
    let sources = sources(stored);
    let streams = sources.iter().filter(|_| stored.record.streams());
    let mut problems = streams.filter_map(|shard| {
        let problem = text(&stored.progress, &format!("stream.{shard}.problem"))?;
        Some(format!("shard {shard}: {problem}"))
    });
    problems.next()
}

fn limit(stored: &Stored) -> Option<String> {
    let bytes = stored.knobs.bytes_per_second;
    let limited = stored.record.state == State::Copy && bytes > 0;
    limited.then(|| format!("its limit of {bytes} bytes a second (set bytes_per_second)"))
}

/// The shards that give rows away, as the present direction has it.
fn sources(stored: &Stored) -> BTreeSet<String> {
    let back = stored.record.direction() == Direction::Back;
    let moves = stored.plan.moves.iter();
    let source = moves.map(|it| if back { &it.to } else { &it.from });
    source.cloned().collect()
}

fn tables(stored: &Stored) -> Vec<Table> {
    let plan = &stored.plan;
    let all = plan.tables.iter().chain(&plan.reference);
    let mut names: Vec<String> = all.map(MovingTable::plain).collect();
    names.sort();
    names.dedup();
    let (progress, copy) = (&stored.progress, Copied::by(stored.record.state));
    let table = names.into_iter().map(|name| table(progress, name, copy));
    table.collect()
}

/// What a state says of the copy.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copied {
    UnderWay,
    Done,
    /// It was given up, perhaps before the copy was done.
    Left,
}

impl Copied {
    fn by(state: State) -> Self {
        match state {
            State::Prepare | State::Copy => Self::UnderWay,
            State::Abort | State::Aborted => Self::Left,
            State::CatchUp
            | State::Verify
            | State::Ready
            | State::Cutover
            | State::Reverse
            | State::Finish
            | State::Done => Self::Done,
        }
    }
}

fn table(progress: &Progress, name: String, copy: Copied) -> Table {
    let figure = |what: &str| number(progress, &format!("copy.{name}.{what}"));
    let rows = figure("rows").unwrap_or(0);
    let bytes = figure("bytes").unwrap_or(0);
    let (chunks_done, chunks) = (
        figure("chunks_done").unwrap_or(0),
        figure("chunks").unwrap_or(0),
    );
    let rate = figure("rows_per_second").unwrap_or(0);
    // An aborted reshard may have no figures at all.
    let done = chunks > 0 && chunks_done >= chunks || copy == Copied::Done;
    let goes = copy == Copied::UnderWay && !done;
    let by_chunks = part_of(rows, chunks, chunks_done);
    let estimate = number(progress, &expected(&name)).or(by_chunks);
    let rows_of = if done {
        Some(rows)
    } else {
        // There is one more at least, or it would be done.
        estimate.map(|estimate| estimate.max(rows + 1))
    };
    let share = |part: u64, of: u64| part_of(part, 100, of);
    let percent = match rows_of {
        _ if done => 100,
        Some(of) => share(rows, of).unwrap_or(0).min(99),
        None => share(chunks_done, chunks).unwrap_or(0).min(99),
    };
    let left = rows_of.map(|of| of - rows).filter(|_| goes);
    Table {
        table: name,
        rows,
        rows_of,
        bytes,
        bytes_of: if done {
            Some(bytes)
        } else {
            rows_of.and_then(|of| part_of(bytes, of, rows))
        },
        chunks_done,
        chunks,
        percent,
        rows_per_second: if goes { rate } else { 0 },
        seconds_left: left.and_then(|left| left.checked_div(rate)),
    }
}

/// So many times this, in so many parts: terabytes times millions of rows are more than 64 bits hold.
fn part_of(figure: u64, times: u64, parts: u64) -> Option<u64> {
    let whole = u128::from(figure) * u128::from(times);
    let part = whole.checked_div(u128::from(parts))?;
    Some(u64::try_from(part).unwrap_or(u64::MAX))
}

fn stream(progress: &Progress, shard: &str) -> Stream {
    let figure = |what: &str| number(progress, &format!("stream.{shard}.{what}"));
    Stream {
        shard: shard.to_owned(),
        lag_bytes: figure("lag_bytes"),
        lag_ms: figure("lag_ms"),
        changes: figure("changes").unwrap_or(0),
        problem: text(progress, &format!("stream.{shard}.problem")),
    }
}

fn source(progress: &Progress, shard: &str) -> Option<Source> {
    Some(Source {
        shard: shard.to_owned(),
        wal_kept: number(progress, &format!("source.{shard}.wal_kept"))?,
        wal_status: text(progress, &format!("source.{shard}.wal_status")).unwrap_or_default(),
        xmin_age: number(progress, &format!("source.{shard}.xmin_age")),
        notice: text(progress, &format!("source.{shard}.notice")),
    })
}

/// Of the last comparison; before the first has ended, what it has found so far.
fn verified(progress: &Progress, what: &str) -> Option<u64> {
    let each = progress.iter().filter(|(name, _)| {
        let mut parts = name.split('.');
        // verify.<schema>.<table>.<source>.<destination>.<what>
        parts.next() == Some("verify") && parts.next_back() == Some(what) && parts.next().is_some()
    });
    let each: Vec<u64> = each.filter_map(|(_, value)| value.as_u64()).collect();
    let sum = (!each.is_empty()).then(|| each.iter().sum());
    number(progress, &format!("verify.{what}")).or(sum)
}

fn cutover(progress: &Progress) -> BTreeMap<String, f64> {
    let figures = progress.iter().filter_map(|(name, value)| {
        let name = name.strip_prefix("cutover.")?;
        Some((name.to_owned(), value.as_f64()?))
    });
    figures.collect()
}

fn number(progress: &Progress, name: &str) -> Option<u64> {
    progress.get(name).and_then(Value::as_u64)
}

fn text(progress: &Progress, name: &str) -> Option<String> {
    progress
        .get(name)
        .and_then(Value::as_str)
        .map(str::to_owned)
}

/// In a few words: the state, and its step.
#[must_use]
pub fn standing(record: &Record) -> String {
    let step = record.step.filter(|step| *step != Step::Made);
    let step = step.map(|step| format!(", {}", word(&step)));
    format!("{}{}", word(&record.state), step.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        catalog::moving::{KeySet, Move, Part},
        reshard::{
            job::Knobs,
            plan::{MovingTable, Plan},
        },
    };
    use serde_json::json;
    use std::sync::Arc;

    fn stored(state: State, progress: Value) -> Stored {
        let table = |name: &str| MovingTable {
            schema: "public".to_owned(),
            name: name.to_owned(),
            group: Some("g".to_owned()),
            key_column: "id".to_owned(),
            primary_key: Vec::new(),
            columns: Vec::new(),
            root: None,
        };
        let plan = Plan {
            tables: vec![table("orders"), table("items")],
            ..Plan::default()
        };
        Stored {
            id: "r1".to_owned(),
            record: Record {
                state,
                ..Record::new()
            },
            token: 1,
            version: 1,
            plan: Arc::new(plan),
            knobs: Knobs::default(),
            progress: serde_json::from_value(progress).unwrap(),
            made_at: String::new(),
            changed_at: String::new(),
        }
    }

    /// With keys that go from s0 to s1.
    fn with_shards(state: State, progress: Value) -> Stored {
        let stored = stored(state, progress);
        let moved = Move {
            group: "g".to_owned(),
            keys: KeySet::of(Part::None),
            from: "s0".to_owned(),
            to: "s1".to_owned(),
        };
        let plan = Plan {
            moves: vec![moved],
            ..(*stored.plan).clone()
        };
        Stored {
            plan: Arc::new(plan),
            ..stored
        }
    }

    fn alive() -> Option<Leader> {
        Some(Leader {
            proxy: "a1".to_owned(),
            address: Some("10.0.0.1".to_owned()),
            alive: true,
        })
    }

    #[test]
    fn an_estimate_that_was_too_low_never_shows_more_than_all() {
        let copying = json!({
            "copy.public.items.rows": 150, "copy.public.items.rows_expected": 100, "copy.public.items.chunks": 4,
            "copy.public.items.chunks_done": 3, "copy.public.items.rows_per_second": 50, "copy.public.items.bytes": 3000,
            "copy.public.orders.rows": 80, "copy.public.orders.rows_expected": 1000, "copy.public.orders.chunks": 1,
            "copy.public.orders.chunks_done": 1,
        });
        let told = sight(&stored(State::Copy, copying), alive());
        let [items, orders] = told.tables.as_slice() else {
            panic!("{told:?}");
        };
        assert_eq!(
            (items.percent, items.rows_of, items.bytes_of),
            (99, Some(151), Some(3020))
        );
        assert_eq!((orders.percent, orders.rows_of), (100, Some(80)));
        let total = told.total();
        assert_eq!(
            (total.rows, total.rows_of, total.percent),
            (230, Some(231), 99)
        );
        assert_eq!(total.chunks_left, 1);
    }

    #[test]
    fn what_is_large_is_told_as_it_is() {
        const TERABYTE: u64 = 1_000_000_000_000;
        let copying = |state| {
            let figures = json!({
                "copy.public.items.rows": 1_000_000_000_u64, "copy.public.items.rows_expected": 4_000_000_000_u64,
                "copy.public.items.chunks": 40, "copy.public.items.chunks_done": 10, "copy.public.items.bytes": TERABYTE,
                "copy.public.orders.rows": 0, "copy.public.orders.bytes": 0,
            });
            sight(&stored(state, figures), alive())
        };
        let of = |state| copying(state).tables[0].bytes_of;
        assert_eq!(of(State::Copy), Some(4 * TERABYTE));
        assert_eq!(of(State::CatchUp), Some(TERABYTE));
        // A table without rows.
        assert_eq!(copying(State::Verify).tables[1].bytes_of, Some(0));
    }

    #[test]
    fn a_copy_that_was_given_up_in_the_middle_is_not_done() {
        let half = json!({
            "copy.public.items.rows": 50, "copy.public.items.rows_expected": 100, "copy.public.items.chunks": 4,
            "copy.public.items.chunks_done": 2, "copy.public.items.rows_per_second": 50,
            "copy.public.orders.rows": 80, "copy.public.orders.chunks": 1, "copy.public.orders.chunks_done": 1,
        });
        for state in [State::Abort, State::Aborted] {
            let told = sight(&stored(state, half.clone()), alive());
            let [items, orders] = told.tables.as_slice() else {
                panic!("{told:?}");
            };
            assert_eq!((items.percent, items.rows_of), (50, Some(100)));
            assert_eq!((items.rows_per_second, items.seconds_left), (0, None));
            assert_eq!(orders.percent, 100);
        }
    }

    #[test]
    fn what_slots_keep_is_told_as_long_as_there_are_slots() {
        let figures =
            json!({ "source.s0.wal_kept": 9_000_000_000_u64, "source.s0.xmin_age": 200_000_000 });
        let of = |state| sight(&with_shards(state, figures.clone()), alive()).sources;
        assert_eq!(of(State::Ready).len(), 1);
        assert_eq!(of(State::Finish).len(), 1);
        assert!(of(State::Done).is_empty() && of(State::Aborted).is_empty());
    }

    #[test]
    fn only_a_shard_that_is_named_may_be_gone_for_good() {
        let way_out = |said: &str| {
            let mut giving_up = with_shards(State::Abort, json!({ "problem": said }));
            let plan = Plan {
                joins: ["s1", "s10", "s1-b", "s1.b"].map(str::to_owned).into(),
                ..(*giving_up.plan).clone()
            };
            giving_up.plan = Arc::new(plan);
            let waits = sight(&giving_up, alive()).waiting_for.unwrap();
            let hint = waits.split_once("abort --without ");
            hint.map(|(_, shard)| shard.to_owned())
        };
        for shard in ["s1", "s10", "s1-b", "s1.b"] {
            for said in [
                format!("shard {shard}: it did not answer"),
                format!("asking shard {shard}"),
                format!("waits for shard {shard}, which is down"),
            ] {
                assert_eq!(way_out(&said).as_deref(), Some(shard), "{said}");
            }
        }
        assert_eq!(way_out("it asks shard s1.").as_deref(), Some("s1"));
        assert_eq!(way_out("shard s12: gone"), None);
        assert_eq!(way_out("shard s1_: gone"), None);
    }

    #[test]
    fn what_slows_a_copy_down_does_not_hide_what_it_waits_for() {
        let busy =
            json!({ "throttle": "1 of 2 copies: s0 is busy", "copy.waiting_for": "s0: process 7" });
        let why = |state, figures| sight(&stored(state, figures), alive()).waiting_for;
        assert_eq!(
            why(State::Copy, busy).as_deref(),
            Some("1 of 2 copies: s0 is busy; s0: process 7")
        );
        let alone = json!({ "throttle": "1 of 2 copies: s0 is busy" });
        assert_eq!(
            why(State::Copy, alone).as_deref(),
            Some("1 of 2 copies: s0 is busy")
        );
    }

    #[test]
    fn nothing_is_known_of_a_table_before_its_first_chunk() {
        let told = sight(&stored(State::Copy, json!({})), alive());
        assert!(
            told.tables
                .iter()
                .all(|it| it.percent == 0 && it.rows_of.is_none())
        );
        let told = sight(&stored(State::Verify, json!({})), alive());
        assert!(told.tables.iter().all(|it| it.percent == 100));
    }

    #[test]
    fn before_a_comparison_has_ended_what_it_has_found_so_far_is_shown() {
        let comparing = json!({
            "verify.public.items.s0.s2.rows": 5, "verify.public.items.s1.s2.rows": 7, "verify.public.orders.s1.s2.rows": 1,
            "verify.public.items.s0.s2.different": 0, "verify.public.items.s1.s2.different": 2, "verify.rows_per_second": 900,
        });
        let told = sight(&stored(State::Verify, comparing), alive());
        assert_eq!((told.verified_rows, told.differences), (Some(13), Some(2)));
    }

    #[test]
    fn what_does_not_move_has_a_reason() {
        let why = |stored: &Stored, leader| sight(stored, leader).waiting_for;
        let copying = stored(State::Copy, json!({}));
        assert_eq!(why(&copying, alive()), None);
        let silent = alive().map(|it| Leader { alive: false, ..it });
        let said = why(&copying, silent).unwrap();
        assert!(said.contains("10.0.0.1 is silent"), "{said}");
        assert!(why(&copying, None).is_some_and(|it| it.contains("control role")));
        let mut paused = copying.clone();
        paused.record.paused = true;
        assert_eq!(
            why(&paused, alive()).as_deref(),
            Some("resume: it is paused")
        );
        let sources = json!({ "copy.waiting_for": "s0: process 7" });
        let waits = why(&stored(State::Copy, sources.clone()), alive());
        assert_eq!(waits.as_deref(), Some("s0: process 7"));
        assert_eq!(why(&stored(State::Verify, sources), alive()), None);
        let mut slow = copying;
        slow.knobs.bytes_per_second = 9;
        assert!(why(&slow, alive()).is_some_and(|it| it.contains("9 bytes a second")));
        let mut ready = stored(State::Ready, json!({}));
        ready.record.step = Some(Step::Made);
        let operator = why(&ready, alive());
        assert_eq!(
            operator.as_deref(),
            Some("the operator: shardway reshard cutover")
        );
        assert_eq!(why(&stored(State::Done, json!({})), None), None);
    }
}
