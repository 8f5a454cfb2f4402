//! Every combination of a victim, a fault and a point, in one fixed order, and the runs of a reshard that take them.

use std::fmt;

/// Who is hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The proxy that is at the point.
    Leader,
    /// The proxy that is not.
    Other,
    /// The home shard, whose server has the catalog.
    Catalog,
    Source,
    Destination,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// `kill -9`, and started again.
    Kill,
    /// The same, and started again only once the other proxy leads.
    Replace,
    /// Frozen, and thawed.
    Stop,
    /// All connections of the proxies to a server, or of a proxy to all servers, end.
    Cut,
}

/// How a run ends, and with it what is on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Forward, back, forward, finished.
    Finish,
    /// Forward, back, aborted.
    Abort,
}

/// A part of a run: what is asked for in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leg {
    Start,
    Forward,
    Back,
    Again,
    End,
}

/// One fault at one point.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Combination {
    pub(crate) victim: Victim,
    pub(crate) fault: Fault,
    pub(crate) point: &'static str,
    pub(crate) leg: Leg,
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            victim,
            fault,
            point,
            leg,
        } = self;
        let text = format!("{victim:?}/{fault:?}/{point}/{leg:?}").to_lowercase();
        f.write_str(&text)
    }
}

/// One run of a reshard.
#[derive(Clone, Debug)]
pub(crate) struct Unit {
    pub(crate) name: String,
    pub(crate) takes: Vec<Combination>,
    pub(crate) ending: Ending,
}

/// Where on the way a point is passed.
#[derive(Clone, Copy)]
enum Where {
    Start,
    /// In every cutover, whichever way it goes.
    Cutover,
    /// While changes are applied: before the first cutover or after it.
    Stream,
    Finish,
    Abort,
}

const POINTS: [(&str, Where); 29] = [
    ("begin_prepare", Where::Start),
    ("begin_announce", Where::Start),
    ("begin_copy", Where::Start),
    ("after_chunk_copy", Where::Start),
    ("after_chunk_commit", Where::Start),
    ("begin_catchup", Where::Start),
    ("after_apply_commit", Where::Stream),
    ("after_consistent", Where::Start),
    ("begin_verify", Where::Start),
    ("begin_ready", Where::Start),
    ("begin_hold", Where::Cutover),
    ("after_hold", Where::Cutover),
    ("begin_fence", Where::Cutover),
    ("after_guard", Where::Cutover),
    ("after_fence", Where::Cutover),
    ("begin_drain", Where::Cutover),
    ("after_drain", Where::Cutover),
    ("begin_commit", Where::Cutover),
    ("begin_undo", Where::Cutover),
    ("after_flip", Where::Cutover),
    ("begin_activate", Where::Cutover),
    ("after_activate", Where::Cutover),
    ("begin_reverse", Where::Cutover),
    ("before_reverse", Where::Cutover),
    ("after_reverse_recorded", Where::Cutover),
    ("begin_finish", Where::Finish),
    ("after_old_rows", Where::Finish),
    ("begin_abort", Where::Abort),
    ("after_removed", Where::Abort),
];

const VICTIMS: [Victim; 5] = [
    Victim::Leader,
    Victim::Other,
    Victim::Catalog,
    Victim::Source,
    Victim::Destination,
];

/// Runs of each pair of a victim and a fault, so that none takes too long; the last of them is aborted.
const RUNS: usize = 3;

/// All there is. Shorter faults come first.
pub(crate) fn all() -> Vec<Unit> {
    let mut units = Vec::new();
    for (turn, fault) in [Fault::Kill, Fault::Cut, Fault::Stop]
        .into_iter()
        .enumerate()
    {
        for (place, victim) in VICTIMS.into_iter().enumerate() {
            let pair = place + turn;
            for run in 0..RUNS {
                let name = format!("{victim:?}-{fault:?}-{run}").to_lowercase();
                units.push(unit(name, run, pair, |_| (victim, fault)));
            }
        }
    }
    units
}

/// Every point once, with `kill -9`: the leader where it is in the middle of something, and everybody in turn where it
/// begins something.
pub(crate) fn quick() -> [Unit; 2] {
    let victim = |at: usize| {
        let (point, _) = POINTS[at];
        let turn = VICTIMS[at % VICTIMS.len()];
        let victim = if point.starts_with("begin_") {
            turn
        } else {
            Victim::Leader
        };
        (victim, Fault::Kill)
    };
    let mut first = unit("quick-0".to_owned(), 0, 0, victim);
    let second = unit("quick-1".to_owned(), 1, 0, victim);
    let last = unit("quick-2".to_owned(), RUNS - 1, 0, victim);
    first.takes.extend(second.takes);
    [first, last]
}

/// The leader dies in every state and the other goes on, which dies next: each of them takes over from the other.
pub(crate) fn takeovers() -> Unit {
    let at = |(leg, point)| Combination {
        victim: Victim::Leader,
        fault: Fault::Replace,
        point,
        leg,
    };
    let points = [
        (Leg::Start, "after_chunk_commit"),
        (Leg::Start, "after_consistent"),
        (Leg::Start, "begin_ready"),
        (Leg::Forward, "after_fence"),
        (Leg::Forward, "after_flip"),
        (Leg::Back, "after_drain"),
        (Leg::Back, "after_activate"),
        (Leg::Again, "after_guard"),
        (Leg::Again, "before_reverse"),
        (Leg::End, "after_old_rows"),
    ];
    Unit {
        name: "takeovers".to_owned(),
        takes: points.map(at).to_vec(),
        ending: Ending::Finish,
    }
}

fn unit(name: String, run: usize, pair: usize, who: impl Fn(usize) -> (Victim, Fault)) -> Unit {
    let ending = if run == RUNS - 1 {
        Ending::Abort
    } else {
        Ending::Finish
    };
    let mut takes = Vec::new();
    for (at, (point, place)) in POINTS.into_iter().enumerate() {
        let mine = match place {
            Where::Finish => ending == Ending::Finish && at % 2 == run,
            Where::Abort => ending == Ending::Abort,
            Where::Start | Where::Cutover | Where::Stream => at % RUNS == run,
        };
        if !mine {
            continue;
        }
        let (victim, fault) = who(at);
        takes.push(Combination {
            victim,
            fault,
            point,
            leg: leg(place, ending, at / RUNS + pair),
        });
    }
    Unit {
        name,
        takes,
        ending,
    }
}

/// In which of the legs where the point is passed it is taken.
fn leg(place: Where, ending: Ending, turn: usize) -> Leg {
    let legs: &[Leg] = match (place, ending) {
        (Where::Start, _) => &[Leg::Start],
        (Where::Stream, _) => &[Leg::Start, Leg::Back],
        (Where::Cutover, Ending::Finish) => &[Leg::Forward, Leg::Back, Leg::Again],
        (Where::Cutover, Ending::Abort) => &[Leg::Forward, Leg::Back],
        (Where::Finish | Where::Abort, _) => &[Leg::End],
    };
    legs[turn % legs.len()]
}

#[test]
fn every_combination_is_taken_once() {
    let units = all();
    let mut names: Vec<String> = units
        .iter()
        .flat_map(|unit| {
            unit.takes
                .iter()
                .map(|it| format!("{:?}{:?}{}", it.victim, it.fault, it.point))
        })
        .collect();
    let taken = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), taken);
    assert_eq!(taken, POINTS.len() * VICTIMS.len() * 3);
    let quick = quick();
    let points: usize = quick.iter().map(|it| it.takes.len()).sum();
    assert_eq!(points, POINTS.len());
}
