//! Waits for a reshard and shows how it goes: a line at every change on a terminal, a line of `key=value` pairs every ten
//! seconds elsewhere. Nothing depends on it: ending it leaves the run going.

use super::{
    asking::{Fault, Site},
    report,
};
use crate::{
    cli::{Exit, output::Output},
    clock::{Clock, Duration},
    reshard::{
        record::Stored,
        state::{Next, State, Step},
    },
};
use serde_json::{Value, json};
use std::io::IsTerminal as _;

/// How often the home shard is asked.
const LOOK: Duration = Duration::from_millis(200);
/// How often something is said where no terminal is.
const TOLD: Duration = Duration::from_secs(10);

/// Until there is nothing to wait for: it is over, stands still, or waits for the operator.
pub(super) async fn watch(site: &Site, output: &Output) -> Result<Exit, Fault> {
    let mut teller = Teller::new();
    loop {
        let latest = site.latest().await?;
        let Some(stored) = latest else {
            return Err(Fault::None);
        };
        teller.tell(&stored, output);
        if let Next::Over | Next::Wait(_) = stored.record.next() {
            let exit = output.result(&report::text(Some(&stored)), &report::json(Some(&stored)));
            return Ok(if stored.record.stopped.is_some() {
                Exit::Failed
            } else {
                exit
            });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Until the owners have changed and the former ones are kept up to date, or it stands still.
pub(super) async fn flipped(site: &Site, before: i32, output: &Output) -> Result<Exit, Fault> {
    let mut teller = Teller::new();
    loop {
        let stored = site.unfinished().await?;
        teller.tell(&stored, output);
        let record = &stored.record;
        let done = record.flips > before
            && record.state == State::Reverse
            && record.step == Some(Step::Made);
        if done || record.wanted.is_none() && record.flips == before {
            let steps = site.journal(&stored.id).await?;
            let (text, value) = outcome(&stored, &steps, done);
            output.result(&text, &value);
            return Ok(if done { Exit::Done } else { Exit::Failed });
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The steps of the last attempt with their times, and the pause.
fn outcome(stored: &Stored, entries: &[(String, String, Value)], done: bool) -> (String, Value) {
    let attempt = json!(stored.record.attempt);
    let mut steps: Vec<_> = entries
        .iter()
        .filter(|(_, _, detail)| detail.get("attempt") == Some(&attempt))
        .collect();
    steps.reverse();
    let mut lines = Vec::new();
    for (at, event, detail) in &steps {
        let took = detail.get("took_ms").and_then(Value::as_f64);
        let took = took.map(|took| format!(" took {took} ms"));
        lines.push(format!("{at} {event}{}", took.unwrap_or_default()));
    }
    let pause = stored.progress.get("cutover.pause_ms").cloned();
    if done {
        let pause = pause.as_ref().map(ToString::to_string);
        let pause = pause.unwrap_or_else(|| "an unknown number of".to_owned());
        lines.push(format!(
            "statements on moving keys were held for {pause} ms at most"
        ));
    } else {
        let why = stored.record.stopped.as_ref();
        let why = why.map_or("it was given up", |stopped| stopped.what.as_str());
        lines.push(format!("the owners have not changed: {why}"));
    }
    let events: Vec<_> = steps
        .iter()
        .map(|(at, event, detail)| json!({ "at": at, "event": event, "detail": detail }))
        .collect();
    let mut value = report::json(Some(stored));
    if let Value::Object(fields) = &mut value {
        fields.insert("done".to_owned(), json!(done));
        fields.insert("pause_ms".to_owned(), json!(pause));
        fields.insert("steps".to_owned(), json!(events));
    }
    (lines.join("\n") + "\n", value)
}

/// What was told already.
struct Teller {
    clock: Clock,
    said: Option<(String, crate::clock::Instant)>,
}

impl Teller {
    fn new() -> Self {
        Self {
            clock: Clock,
            said: None,
        }
    }

    fn tell(&mut self, stored: &Stored, output: &Output) {
        let terminal = std::io::stderr().is_terminal();
        let line = if terminal {
            let doing = stored
                .progress
                .get("problem")
                .or_else(|| stored.progress.get("waiting_for"));
            let throttle = stored.progress.get("throttle");
            let doing = doing
                .or(throttle)
                .and_then(Value::as_str)
                .map(|it| format!(": {it}"));
            format!(
                "{}{}",
                report::standing(&stored.record),
                doing.unwrap_or_default()
            )
        } else {
            report::line(stored)
        };
        let now = self.clock.now();
        let due = match &self.said {
            None => true,
            Some((said, _)) if terminal => *said != line,
            Some((_, at)) => now.saturating_duration_since(*at) >= TOLD,
        };
        if due {
            output.progress(&line);
            self.said = Some((line, now));
        }
    }
}
