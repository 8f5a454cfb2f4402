//! This proxy's part in a cutover: hears which statements are to be held back, tells the gate and answers when nobody is at
//! them any more, and lets them go when the hold has ended.
//!
//! What must stay true: what a hold has held goes on only with a map that is not older than the end of the hold; a hold
//! whose deadline has passed ends, whoever is dead; where nobody can say what has become of it, its keys are refused.

use crate::{
    catalog::moving::{KeySet, Part},
    clock::{Duration, Instant},
    gate::{
        Gate,
        state::{Attempt as Attempted, Hold, Moving, REFERENCES},
    },
    inspect::AskError,
    registry::{
        Registry,
        holds::{Held, Joins, Overdue, Read, Reported},
    },
};
use std::collections::HashMap;

/// How often holds are read while something is held, without news.
const HOLDING: Duration = Duration::from_millis(200);
/// While keys move.
const MOVING: Duration = Duration::from_secs(1);
/// Otherwise.
const QUIET: Duration = Duration::from_secs(3);

/// This proxy in the cutovers of one logical database.
#[derive(Debug)]
pub struct Participant {
    incarnation: u64,
    /// What was seen of attempts that are held.
    seen: HashMap<(String, i32), Attempt>,
    /// How often the home shard could not be asked since it last could.
    failed: u32,
    /// The number of the map when holds were read last.
    map: i64,
    /// What is over, and was not told yet what it has cost.
    untold: Vec<Over>,
}

/// An attempt that is held.
#[derive(Debug)]
struct Attempt {
    /// When its deadline passes, as of the last reading.
    until: Instant,
    /// What was last said of who is at it.
    said: Option<Said>,
}

/// An attempt that holds no more.
#[derive(Debug)]
struct Over {
    attempt: Attempted,
    tries: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Said {
    Drained,
    WaitingFor(String),
}

impl Participant {
    #[must_use]
    pub fn new(incarnation: u64) -> Self {
        Self {
            incarnation,
            seen: HashMap::new(),
            failed: 0,
            map: 0,
            untold: Vec::new(),
        }
    }

    /// Reads what is held and tells the gate; what is held no more goes on only by [`Self::let_go`].
    ///
    /// # Errors
    /// [`AskError`]: nobody knows. Holds whose deadline has passed are in doubt.
    pub async fn look(
        &mut self,
        registry: &Registry,
        gate: &Gate,
        now: impl Fn() -> Instant,
    ) -> Result<Ended, AskError> {
        let began = now();
        let (read, overdue) = match self.read(registry).await {
            Ok(read) => read,
            Err(problem) => {
                self.doubt(gate, now());
                return Err(problem);
            }
        };
        self.map = read.map;
        self.failed = 0;
        for hold in held(&read) {
            let left = Duration::try_from_secs_f64(hold.left).unwrap_or_default();
            let attempt = (hold.workflow.clone(), hold.attempt);
            let seen = self.seen.entry(attempt).or_insert(Attempt {
                until: began,
                said: None,
            });
            seen.until = began + left;
            gate.hold(&hold.workflow, hold.attempt, &moving(hold));
        }
        self.answer(registry, gate).await?;
        Ok(Ended {
            holds: ended(&read, gate),
            map: read.map,
            began,
            overdue,
        })
    }

    /// What is held no more goes on: with the map that was read with it, which is taken over by now.
    pub fn let_go(&mut self, gate: &Gate, ended: &Ended) {
        for hold in &ended.holds {
            self.seen.remove(&(hold.workflow.clone(), hold.attempt));
            gate.release(&hold.workflow, hold.attempt);
            self.untold.push(Over {
                attempt: Attempted {
                    workflow: hold.workflow.clone(),
                    number: hold.attempt,
                },
                tries: TRIES,
            });
        }
        gate.has_read(ended.began);
        let held: Vec<_> = gate.holds();
        self.seen.retain(|(workflow, attempt), _| {
            let same = |hold: &Hold| hold.workflow == *workflow && hold.attempt == *attempt;
            held.iter().any(same)
        });
    }

    /// Says what holds have cost that are over, once nobody waits any more.
    pub async fn tell(&mut self, registry: &Registry, gate: &Gate) {
        for mut over in std::mem::take(&mut self.untold) {
            let Some(tally) = gate.tallies.take(&over.attempt) else {
                over.tries -= 1;
                if over.tries > 0 {
                    self.untold.push(over);
                }
                continue;
            };
            let attempt = (over.attempt.workflow.as_str(), over.attempt.number);
            let told = registry.tell_held(attempt, self.incarnation, &tally);
            if let Err(problem) = told.await {
                // Only shown to people.
                tracing::debug!(reshard = attempt.0, attempt = attempt.1, %problem, "telling what a hold has cost");
            }
        }
    }

    /// How long it can be until something must be done, without news.
    #[must_use]
    pub fn rests(&self, gate: &Gate, now: Instant) -> Duration {
        let deadlines = self.seen.values().map(|attempt| attempt.until);
        let next = deadlines.map(|until| until.saturating_duration_since(now));
        if !self.untold.is_empty() {
            return SHORTEST;
        }
        let most = match (self.seen.is_empty(), gate.is_quiet()) {
            (false, _) => HOLDING,
            (true, false) => MOVING,
            (true, true) => QUIET,
        };
        next.min().map_or(most, |next| next.min(most)).max(SHORTEST)
    }

    /// Whether somebody is waited for.
    #[must_use]
    pub fn waits(&self) -> bool {
        let drained = |attempt: &Attempt| attempt.said == Some(Said::Drained);
        !self.seen.values().all(drained)
    }

    /// What is held, after those whose deadline has passed were ended; and what this proxy has to end for its runner.
    async fn read(&self, registry: &Registry) -> Result<(Read, Vec<Overdue>), AskError> {
        let read = registry.read_holds().await?;
        let has_passed = |hold: &Reported| hold.state == Held::Held && hold.left <= 0.0;
        let (mut overdue, mut expired) = (Vec::new(), false);
        for hold in held(&read) {
            let (workflow, attempt) = (&hold.workflow, hold.attempt);
            if has_passed(hold) {
                tracing::warn!(
                    database = registry.database(),
                    reshard = workflow,
                    attempt,
                    "statements were held until the deadline"
                );
                expired = true;
                overdue.extend(registry.expire_hold(workflow, attempt).await?);
            } else if hold.overdue {
                overdue.extend(registry.help_hold(workflow, attempt).await?);
            }
        }
        if expired {
            return Ok((registry.read_holds().await?, overdue));
        }
        Ok((read, overdue))
    }

    fn doubt(&mut self, gate: &Gate, now: Instant) {
        // The first may only have been cut short by standing still.
        self.failed += 1;
        if self.failed >= FAILURES {
            gate.cannot_read();
        }
        for ((workflow, attempt), seen) in &self.seen {
            if seen.until <= now {
                gate.is_unsure(workflow, *attempt);
            }
        }
    }

    /// Says who is still at what is held, where that is news.
    async fn answer(&mut self, registry: &Registry, gate: &Gate) -> Result<(), AskError> {
        for hold in gate.holds() {
            let key = (hold.workflow, hold.attempt);
            let Some(seen) = self.seen.get_mut(&key) else {
                continue;
            };
            let at = gate.is_at(&key.0, key.1);
            let says = match at.as_slice() {
                [] => Said::Drained,
                at => Said::WaitingFor(clients(at)),
            };
            if seen.said.as_ref() == Some(&says) {
                continue;
            }
            let waiting_for = match &says {
                Said::Drained => None,
                Said::WaitingFor(clients) => Some(clients.as_str()),
            };
            let attempt = (key.0.as_str(), key.1);
            registry
                .answer_hold(attempt, self.incarnation, waiting_for)
                .await?;
            seen.said = Some(says);
        }
        Ok(())
    }
}

/// After how many failures the home shard is out of reach.
const FAILURES: u32 = 3;
/// No deadline is looked for more often.
const SHORTEST: Duration = Duration::from_millis(5);
/// How often it is looked for whether nobody waits any more.
const TRIES: u32 = 400;
/// How many clients are named to people.
const NAMED: usize = 10;

/// Holds that have ended, and the number of the map that says how.
#[derive(Debug, PartialEq)]
pub struct Ended {
    pub holds: Vec<Hold>,
    pub map: i64,
    /// When the reading began that found them.
    pub began: Instant,
    /// What this proxy has to end for a runner that does not.
    pub overdue: Vec<Overdue>,
}

fn held(read: &Read) -> impl Iterator<Item = &Reported> {
    read.holds
        .iter()
        .filter(|hold| matches!(hold.state, Held::Held | Held::Activating))
}

/// What is held here and there no more.
fn ended(read: &Read, gate: &Gate) -> Vec<Hold> {
    let still = |hold: &Hold| {
        held(read).any(|row| row.workflow == hold.workflow && row.attempt == hold.attempt)
    };
    let mut holds = gate.holds();
    holds.retain(|hold| !still(hold));
    holds
}

/// What is held, writes to reference tables among it where shards join.
fn moving(hold: &Reported) -> Vec<Moving> {
    let mut moving = hold.moving.clone();
    if hold.joins == Joins::Some {
        moving.push(Moving {
            group: REFERENCES.to_owned(),
            keys: KeySet::of(Part::None),
        });
    }
    moving
}

/// For people: the numbers of clients as `SHOW CLIENTS` has them.
fn clients(numbers: &[u32]) -> String {
    let named: Vec<String> = numbers.iter().take(NAMED).map(u32::to_string).collect();
    let more = numbers.len().saturating_sub(NAMED);
    if more == 0 {
        format!("clients {}", named.join(", "))
    } else {
        format!("clients {} and {more} more", named.join(", "))
    }
}
