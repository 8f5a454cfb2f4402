//! How a reshard is told: for people, and as JSON. Pure.

use super::asking::Gate;
use crate::reshard::{
    job::Direction,
    record::{Stored, word},
    state::{Record, State, Step, Wish},
};
use serde_json::{Value, json};

/// For people.
pub(super) fn text(stored: Option<&Stored>) -> String {
    let Some(stored) = stored else {
        return "no reshard was ever begun\n".to_owned();
    };
    let record = &stored.record;
    let mut lines = vec![format!("reshard {}: {}", stored.id, standing(record))];
    if let Some(stopped) = &record.stopped {
        lines.push(format!("stopped: {}", stopped.what));
        lines.push(format!("    {}", stopped.remedy));
    }
    if record.paused {
        lines.push("paused".to_owned());
    }
    if let Some(wanted) = record.wanted {
        lines.push(format!("wanted: {}", word(&wanted)));
    }
    for (name, value) in &stored.progress {
        lines.push(format!("{name}: {}", plain(value)));
    }
    for step in next_steps(record) {
        lines.push(format!("next: {step}"));
    }
    lines.join("\n") + "\n"
}

/// For programs.
pub(super) fn json(stored: Option<&Stored>) -> Value {
    let Some(stored) = stored else {
        return json!({ "id": null, "state": null, "next_steps": ["shardway reshard plan"] });
    };
    let record = &stored.record;
    json!({
        "id": stored.id,
        "state": word(&record.state),
        "step": record.step.map(|step| word(&step)),
        "attempt": record.attempt,
        "flips": record.flips,
        "serving": serving(record),
        "round": record.round,
        "wanted": record.wanted.map(|wish| word(&wish)),
        "paused": record.paused,
        "stopped": record.stopped,
        "knobs": stored.knobs,
        "progress": stored.progress,
        "moves": stored.plan.moves,
        "joins": stored.plan.joins,
        "made_at": stored.made_at,
        "changed_at": stored.changed_at,
        "next_steps": next_steps(record),
    })
}

/// One line of `key=value` pairs, for where no terminal is.
pub(super) fn line(stored: &Stored) -> String {
    let record = &stored.record;
    let mut pairs = vec![
        format!("reshard={}", stored.id),
        format!("state={}", word(&record.state)),
    ];
    pairs.extend(record.step.map(|step| format!("step={}", word(&step))));
    for (name, value) in &stored.progress {
        let value = plain(value);
        if value.contains([' ', '"', '=']) {
            pairs.push(format!("{name}={value:?}"));
        } else {
            pairs.push(format!("{name}={value}"));
        }
    }
    pairs.join(" ")
}

/// In a few words.
pub(super) fn standing(record: &Record) -> String {
    let step = record.step.filter(|step| *step != Step::Made);
    let step = step.map(|step| format!(", {}", word(&step)));
    format!("{}{}", word(&record.state), step.unwrap_or_default())
}

fn serving(record: &Record) -> &'static str {
    match (record.direction(), record.state) {
        (_, State::Done) | (Direction::Back, _) => "new",
        (Direction::Forward, _) => "old",
    }
}

/// What an operator can do now.
pub(super) fn next_steps(record: &Record) -> Vec<String> {
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
    steps
}

pub(super) fn gates_text(gates: &[Gate]) -> String {
    let line = |gate: &Gate| {
        let open = if gate.open { "open" } else { "closed" };
        format!("{open}: {}: {}\n", gate.name, gate.value)
    };
    gates.iter().map(line).collect()
}

pub(super) fn gates_json(gates: &[Gate]) -> Value {
    let gate = |it: &Gate| json!({ "gate": it.name, "value": it.value, "open": it.open });
    let open = gates.iter().all(|gate| gate.open);
    json!({ "open": open, "gates": gates.iter().map(gate).collect::<Vec<_>>() })
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            value.to_string()
        }
    }
}
