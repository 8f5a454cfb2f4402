//! What came of a cutover or rollback: every step with its time, attempts that were undone and why, the pause, and the
//! statements that were held and failed. Pure.

use super::{
    asking::{Entry, Seen},
    report,
};
use crate::reshard::state::{Record, State, Step};
use serde_json::{Value, json};

/// How a journal says that somebody asked for one.
pub(super) const ASKED: &str = "asked for ";

/// How what was asked for stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may come to its end yet.
    UnderWay,
    /// The owners have changed, and the former ones are kept up to date, or nobody wants them to be.
    Done,
    /// The owners have changed, and what comes with that stands still.
    Half,
    /// The owners are those of before.
    Not,
}

/// By the record now, and the one that the wish was written to.
pub(super) fn verdict(now: &Record, asked: &Record) -> Verdict {
    let changed = now.flips > asked.flips;
    let told = match now.state {
        State::Cutover => now.step != Some(Step::Committed),
        State::Reverse => now.step == Some(Step::Made),
        State::Prepare
        | State::Copy
        | State::CatchUp
        | State::Verify
        | State::Ready
        | State::Finish
        | State::Done
        | State::Abort
        | State::Aborted => true,
    };
    // An attempt that is under way may commit, also where nobody wants another.
    let given_up = now.wanted.is_none() && now.state != State::Cutover;
    match changed {
        true if told => Verdict::Done,
        true if now.stopped.is_some() => Verdict::Half,
        false if given_up || now.is_over() || now.stopped.is_some() => Verdict::Not,
        true | false => Verdict::UnderWay,
    }
}

/// Of the entries of a journal, the newest first, those since it was asked for.
pub(super) fn told(seen: &Seen, entries: &[Entry], asked: &Record) -> (String, Value) {
    let since = entries
        .iter()
        .take_while(|(_, event, _)| !event.starts_with(ASKED));
    let mut steps: Vec<&Entry> = since.collect();
    steps.reverse();
    let mut lines: Vec<String> = steps.iter().map(|it| step(it)).collect();
    let figures = &seen.stored.progress;
    let figure = |name: &str| figures.get(&format!("cutover.{name}")).cloned();
    let (pause, held, failed) = (figure("pause_ms"), figure("held"), figure("failed"));
    let record = &seen.stored.record;
    // Not by the entries, of which there may be more than are looked at.
    let attempts = record.attempt.saturating_sub(asked.attempt).max(0);
    let verdict = verdict(record, asked);
    if verdict == Verdict::Done {
        let pause = pause.as_ref().and_then(Value::as_f64);
        let pause = pause.map_or_else(|| "an unknown number of".to_owned(), |it| format!("{it}"));
        let mut said = format!("statements on moving keys were held for {pause} ms at most");
        let counted = |count: &Option<Value>| count.as_ref().and_then(Value::as_u64);
        if let Some(held) = counted(&held) {
            said.push_str(&format!("; {held} were held"));
        }
        if let Some(longest) = figure("longest_ms").as_ref().and_then(Value::as_f64) {
            said.push_str(&format!(", the longest for {longest} ms"));
        }
        if let Some(failed) = counted(&failed) {
            said.push_str(&format!(", {failed} failed"));
        }
        lines.push(format!("{said}; attempts: {attempts}"));
    } else {
        let stopped = record.stopped.as_ref();
        let why = stopped.map(|stopped| stopped.what.as_str());
        let why = why.or_else(|| stopped_by(&steps));
        let why = why.unwrap_or("it was given up");
        lines.push(if verdict == Verdict::Half {
            format!("the owners have changed, but {why}")
        } else {
            format!("the owners have not changed: {why}")
        });
        lines.extend(stopped.map(|stopped| format!("    {}", stopped.remedy)));
    }
    lines.extend(report::next(&seen.sight()));
    let steps = steps.iter();
    let steps: Vec<_> = steps
        .map(|(at, event, detail)| json!({ "at": at, "event": event, "detail": detail }))
        .collect();
    let mut value = report::json(Some(seen));
    if let Value::Object(fields) = &mut value {
        fields.insert("done".to_owned(), json!(verdict == Verdict::Done));
        let changed = record.flips > asked.flips;
        fields.insert("owners_changed".to_owned(), json!(changed));
        fields.insert("pause_ms".to_owned(), json!(pause));
        fields.insert("held".to_owned(), json!(held));
        fields.insert("failed".to_owned(), json!(failed));
        fields.insert("longest_ms".to_owned(), json!(figure("longest_ms")));
        fields.insert("attempts".to_owned(), json!(attempts));
        fields.insert("steps".to_owned(), json!(steps));
    }
    (lines.join("\n") + "\n", value)
}

/// Why an attempt was taken back and not tried again: the record forgets it when that is done.
fn stopped_by<'a>(steps: &[&'a Entry]) -> Option<&'a str> {
    let stops = ["stopped", "lost", "failed over"];
    // Whoever resumed or paused it since did so for other reasons.
    let since = steps.iter().rev();
    let mut since =
        since.take_while(|(_, event, _)| !["resumed", "paused"].contains(&event.as_str()));
    let stop = since.find(|(_, event, _)| stops.contains(&event.as_str()))?;
    stop.2.get("problem").and_then(Value::as_str)
}

/// `18:49:30.425 hold, 19.44 ms`.
fn step((at, event, detail): &Entry) -> String {
    const MILLIS: usize = "18:49:30.425".len();
    let time = at.split_whitespace().nth(1).unwrap_or(at);
    let time: String = time.chars().take(MILLIS).collect();
    let attempt = detail.get("attempt").and_then(Value::as_i64);
    let attempt = attempt.filter(|_| event == "cutover hold");
    let attempt = attempt.map(|number| format!("attempt {number} begins"));
    let said = attempt.unwrap_or_else(|| event.clone());
    let took = detail.get("took_ms").and_then(Value::as_f64);
    let took = took.map(|took| format!(", {took} ms"));
    let problem = detail.get("problem").and_then(Value::as_str);
    let problem = problem.map(|problem| format!(": {problem}"));
    format!(
        "{time} {said}{}{}",
        took.unwrap_or_default(),
        problem.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::{super::asking::tests::seen, *};
    use crate::reshard::state::{Next, Stopped, Then, Wish};

    #[test]
    fn a_step_is_told_with_its_time_and_what_went_wrong() {
        let entry = |event: &str, detail| {
            let at = "2026-11-22 18:49:30.425759+00".to_owned();
            step(&(at, event.to_owned(), detail))
        };
        assert_eq!(
            entry("cutover hold", json!({ "attempt": 2 })),
            "18:49:30.425 attempt 2 begins"
        );
        assert_eq!(
            entry("fence", json!({ "attempt": 2, "took_ms": 4.5 })),
            "18:49:30.425 fence, 4.5 ms"
        );
        assert_eq!(
            entry("failed", json!({ "problem": "not drained" })),
            "18:49:30.425 failed: not drained"
        );
    }

    fn ready() -> Record {
        Record {
            state: State::Ready,
            step: Some(Step::Made),
            ..Record::new()
        }
    }

    fn stopped() -> Option<Stopped> {
        Some(Stopped {
            what: "too many connections".to_owned(),
            remedy: "resume".to_owned(),
            then: Then::GoOn,
        })
    }

    #[test]
    fn a_cutover_is_given_up_only_when_it_cannot_change_owners_any_more() {
        let wanted = ready().wish(Wish::Cutover).unwrap();
        assert_eq!(verdict(&wanted, &wanted), Verdict::UnderWay);
        let Next::Turn(attempt) = wanted.next() else {
            panic!("{wanted:?}");
        };
        assert_eq!(verdict(&attempt, &wanted), Verdict::UnderWay);
        // It may commit in a moment.
        let paused = attempt.pause().unwrap();
        assert_eq!(paused.wanted, None);
        assert_eq!(verdict(&paused, &wanted), Verdict::UnderWay);
        let committed = paused.committed();
        assert_eq!(verdict(&committed, &wanted), Verdict::UnderWay);
        assert_eq!(verdict(&ready(), &wanted), Verdict::Not);
        let stands = Record {
            stopped: stopped(),
            ..wanted
        };
        assert_eq!(verdict(&stands, &wanted), Verdict::Not);
    }

    #[test]
    fn owners_that_have_changed_are_never_said_not_to_have() {
        let wanted = ready().wish(Wish::Cutover).unwrap();
        let reverse = Record {
            state: State::Reverse,
            step: None,
            ..wanted.committed()
        };
        assert_eq!(verdict(&reverse, &wanted), Verdict::UnderWay);
        let halted = Record {
            stopped: stopped(),
            ..reverse
        };
        assert_eq!(verdict(&halted, &wanted), Verdict::Half);
        let (text, value) = told(&seen(halted), &[], &wanted);
        assert!(
            text.contains("the owners have changed, but too many connections\n    resume\n"),
            "{text}"
        );
        assert_eq!(
            (&value["done"], &value["owners_changed"]),
            (&false.into(), &true.into())
        );
        for (state, step) in [
            (State::Reverse, Some(Step::Made)),
            (State::Finish, None),
            (State::Done, None),
            // Somebody wants it back already.
            (State::Cutover, Some(Step::Hold)),
        ] {
            let now = Record {
                state,
                step,
                ..reverse.clone()
            };
            assert_eq!(verdict(&now, &wanted), Verdict::Done, "{now:?}");
        }
    }

    #[test]
    fn what_was_undone_for_good_says_why_and_counts_every_attempt() {
        let wanted = ready().wish(Wish::Cutover).unwrap();
        let undone = Record {
            attempt: 300,
            ..ready()
        };
        let entry = |event: &str, detail| {
            (
                "2026-11-22 18:49:30+00".to_owned(),
                event.to_owned(),
                detail,
            )
        };
        let entries = [
            entry("undo", json!({})),
            entry("stopped", json!({ "problem": "a partition was made" })),
        ];
        let (text, value) = told(&seen(undone), &entries, &wanted);
        assert!(
            text.contains("the owners have not changed: a partition was made"),
            "{text}"
        );
        assert_eq!(value["attempts"], 300);
        let (text, _) = told(&seen(ready()), &[], &wanted);
        assert!(text.contains("it was given up"), "{text}");
    }
}
