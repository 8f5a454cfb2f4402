//! Waits for a reshard and shows how it goes: bars on a terminal, a line of `key=value` pairs every ten seconds elsewhere.
//!
//! What must stay true: nothing depends on it: ending it leaves the run going, and it says so.

use super::{
    asking::{Seen, Site},
    bars::Bars,
    fault::Fault,
    outcome, report,
};
use crate::{
    cli::{Exit, output::Output},
    clock::{Clock, Duration, Instant},
    reshard::state::{Next, State, Step},
};
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
    let Some(seen) = follow(site, run, output, over).await? else {
        return Ok(left(output));
    };
    let exit = output.result(&report::text(Some(&seen)), &report::json(Some(&seen)));
    Ok(if seen.stored.record.stopped.is_some() {
        Exit::Failed
    } else {
        exit
    })
}

/// Until the owners have changed and the former ones are kept up to date, or it stands still.
pub(super) async fn flipped(site: &Site, before: i32, output: &Output) -> Result<Exit, Fault> {
    let flipped = |seen: &Seen| {
        let record = &seen.stored.record;
        let kept = record.state == State::Reverse && record.step == Some(Step::Made);
        record.flips > before && kept
    };
    let ended = |seen: &Seen| {
        let record = &seen.stored.record;
        let given_up = record.wanted.is_none() && record.flips == before;
        flipped(seen) || given_up || record.is_over() || record.stopped.is_some()
    };
    let Some(seen) = follow(site, None, output, ended).await? else {
        return Ok(left(output));
    };
    let done = flipped(&seen);
    let entries = site.journal(&seen.stored.id).await?;
    let (text, value) = outcome::told(&seen, &entries, done);
    let exit = output.result(&text, &value);
    Ok(if done { exit } else { Exit::Failed })
}

/// Shows how it goes until then; `None`: somebody has interrupted it.
async fn follow(
    site: &Site,
    run: Option<&str>,
    output: &Output,
    ended: impl Fn(&Seen) -> bool,
) -> Result<Option<Seen>, Fault> {
    let mut teller = Teller::new();
    let mut heard = Clock.now();
    let watching = async {
        loop {
            match site.seen(run).await {
                Ok(Some(seen)) => {
                    heard = Clock.now();
                    teller.tell(&seen, output);
                    if ended(&seen) {
                        return Ok(seen);
                    }
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
    seen
}

fn left(output: &Output) -> Exit {
    output.progress(
        "the reshard goes on without being watched; again: shardway reshard status --watch; to stop it: pause, or abort",
    );
    Exit::Done
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
