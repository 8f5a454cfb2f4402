//! Waits for a reshard and shows how it goes: bars on a terminal, a line of `key=value` pairs every ten seconds elsewhere.
//!
//! What must stay true: nothing depends on it: ending it leaves the run going, and it says so; nobody is told that what was
//! asked for is done when it is not.

use super::{
    asking::{Seen, Site},
    bars::Bars,
    fault::Fault,
    outcome::{self, Verdict},
    report,
};
use crate::{
    cli::{Exit, output::Output},
    clock::{Clock, Duration, Instant},
    reshard::state::{Next, Record, Waiting},
};
use serde_json::json;
use std::io::IsTerminal as _;

/// How often the home shard is asked.
const LOOK: Duration = Duration::from_millis(200);
/// How often something is said where no terminal is.
const TOLD: Duration = Duration::from_secs(10);
/// How long the home shard may not answer before that is the end of it.
const UNHEARD: Duration = Duration::from_secs(60);

/// Until there is nothing to wait for: it is over, stands still, or waits for the operator.
pub(super) async fn watch(site: &Site, run: Option<&str>, output: &Output) -> Result<Exit, Fault> {
    let over = |seen: &Seen| matches!(seen.stored.record.next(), Next::Over | Next::Wait(_));
    match follow(site, run, output, over).await? {
        Followed::Left(last) => Ok(left(last.as_ref(), output)),
        Followed::To(seen) => {
            let exit = output.result(&report::text(Some(&seen)), &report::json(Some(&seen)));
            Ok(if stands_still(&seen.stored.record) {
                Exit::Failed
            } else {
                exit
            })
        }
    }
}

/// Whether what somebody wants is not done: it has to be resumed first.
fn stands_still(record: &Record) -> bool {
    let paused = record.next() == Next::Wait(Waiting::Paused);
    record.stopped.is_some() || paused && record.wanted.is_some()
}

/// Until the owners have changed and the former ones are kept up to date, or it stands still.
pub(super) async fn flipped(
    site: &Site,
    run: &str,
    asked: &Record,
    output: &Output,
) -> Result<Exit, Fault> {
    let verdict = |seen: &Seen| outcome::verdict(&seen.stored.record, asked);
    let ended = |seen: &Seen| verdict(seen) != Verdict::UnderWay;
    let seen = match follow(site, Some(run), output, ended).await? {
        Followed::To(seen) => seen,
        // It was asked for, and nobody knows whether it will be.
        Followed::Left(last) => {
            left(last.as_ref(), output);
            return Ok(Exit::Failed);
        }
    };
    let entries = site.journal(&seen.stored.id).await?;
    let (text, value) = outcome::told(&seen, &entries, asked);
    let exit = output.result(&text, &value);
    Ok(if verdict(&seen) == Verdict::Done {
        exit
    } else {
        Exit::Failed
    })
}

/// How watching came to its end.
enum Followed {
    To(Seen),
    /// Somebody has interrupted it, who saw this last.
    Left(Option<Seen>),
}

/// Shows how it goes until then.
async fn follow(
    site: &Site,
    run: Option<&str>,
    output: &Output,
    ended: impl Fn(&Seen) -> bool,
) -> Result<Followed, Fault> {
    let mut teller = Teller::new();
    let mut heard = Clock.now();
    let mut last = None;
    let watching = async {
        loop {
            match site.seen(run).await {
                Ok(Some(seen)) => {
                    heard = Clock.now();
                    teller.tell(&seen, output);
                    if ended(&seen) {
                        return Ok(seen);
                    }
                    last = Some(seen);
                }
                Ok(None) => return Err(Fault::None),
                // The home shard may be restarting: the reshard goes on when it is back.
                Err(fault @ Fault::Ask { .. })
                    if Clock.now().saturating_duration_since(heard) < UNHEARD =>
                {
                    teller.tell_fault(&fault, output);
                }
                Err(fault) => return Err(fault),
            }
            tokio::time::sleep(LOOK).await;
        }
    };
    let seen = tokio::select! {
        seen = watching => seen.map(Some),
        interrupted = tokio::signal::ctrl_c() => match interrupted {
            Ok(()) => Ok(None),
            // Then a signal ends the process, as ever.
            Err(_) => std::future::pending().await,
        },
    };
    teller.end();
    Ok(match seen? {
        Some(seen) => Followed::To(seen),
        None => Followed::Left(last),
    })
}

/// For programs: what was seen last, and that nobody has waited for more.
fn left(last: Option<&Seen>, output: &Output) -> Exit {
    output.progress(
        "the reshard goes on without being watched; again: shardway reshard status --watch; to stop it: pause, or abort",
    );
    let mut value = last.map_or_else(|| json!({}), |seen| report::json(Some(seen)));
    value["interrupted"] = json!(true);
    output.result("", &value)
}

/// What was told already.
struct Teller {
    bars: Option<Bars>,
    said: Option<Instant>,
}

impl Teller {
    fn new() -> Self {
        let terminal = std::io::stderr().is_terminal();
        Self {
            bars: terminal.then(Bars::new),
            said: None,
        }
    }

    fn tell(&mut self, seen: &Seen, output: &Output) {
        if output.is_json() {
            return;
        }
        if let Some(bars) = &mut self.bars {
            return bars.draw(seen);
        }
        if self.is_due() {
            output.line(&report::line(seen));
        }
    }

    fn tell_fault(&mut self, fault: &Fault, output: &Output) {
        if self.is_due() {
            output.progress(&fault.to_string());
        }
    }

    fn is_due(&mut self) -> bool {
        let now = Clock.now();
        let due = self
            .said
            .is_none_or(|at| now.saturating_duration_since(at) >= TOLD);
        if due {
            self.said = Some(now);
        }
        due
    }

    fn end(&self) {
        if let Some(bars) = &self.bars {
            bars.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reshard::state::{State, Step, Wish};

    #[test]
    fn what_is_wanted_of_a_run_that_is_paused_is_not_done() {
        let reverse = Record {
            state: State::Reverse,
            step: Some(Step::Made),
            flips: 1,
            ..Record::new()
        };
        assert!(!stands_still(&reverse));
        let paused = reverse.pause().unwrap();
        // Whoever only looks is told what there is.
        assert!(!stands_still(&paused));
        assert!(stands_still(&paused.wish(Wish::Finish).unwrap()));
    }
}
