//! What came of a cutover or rollback: every step with its time, attempts that were undone and why, the pause, and the
//! statements that were held and failed. Pure.

use super::{
    asking::{Entry, Seen},
    report,
};
use serde_json::{Value, json};

/// How a journal says that somebody asked for one.
pub(super) const ASKED: &str = "asked for ";

/// Of the entries of a journal, the newest first, those since it was asked for.
pub(super) fn told(seen: &Seen, entries: &[Entry], done: bool) -> (String, Value) {
    let since = entries
        .iter()
        .take_while(|(_, event, _)| !event.starts_with(ASKED));
    let mut steps: Vec<&Entry> = since.collect();
    steps.reverse();
    let mut lines: Vec<String> = steps.iter().map(|it| step(it)).collect();
    let figures = &seen.stored.progress;
    let figure = |name: &str| figures.get(&format!("cutover.{name}")).cloned();
    let (pause, held, failed) = (figure("pause_ms"), figure("held"), figure("failed"));
    let attempts = steps
        .iter()
        .filter(|(_, event, _)| event == "cutover hold")
        .count();
    if done {
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
        let why = seen.stored.record.stopped.as_ref();
        let why = why.map_or("it was given up", |stopped| stopped.what.as_str());
        lines.push(format!("the owners have not changed: {why}"));
        let stopped = seen.stored.record.stopped.as_ref();
        lines.extend(stopped.map(|stopped| format!("    {}", stopped.remedy)));
    }
    lines.extend(report::next(&seen.sight()));
    let steps = steps.iter();
    let steps: Vec<_> = steps
        .map(|(at, event, detail)| json!({ "at": at, "event": event, "detail": detail }))
        .collect();
    let mut value = report::json(Some(seen));
    if let Value::Object(fields) = &mut value {
        fields.insert("done".to_owned(), json!(done));
        fields.insert("pause_ms".to_owned(), json!(pause));
        fields.insert("held".to_owned(), json!(held));
        fields.insert("failed".to_owned(), json!(failed));
        fields.insert("longest_ms".to_owned(), json!(figure("longest_ms")));
        fields.insert("attempts".to_owned(), json!(attempts));
        fields.insert("steps".to_owned(), json!(steps));
    }
    (lines.join("\n") + "\n", value)
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
    use super::*;

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
}
