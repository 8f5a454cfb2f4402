//! What `set` can change of how a reshard runs, and what each of it may be. Pure.
//!
//! What must stay true: nothing is taken by which a run would stand still for ever, or statements would wait for longer than
//! their clients do; whoever asks for such is told what is allowed, and why.

use super::fault::Fault;
use crate::{clock::Duration, reshard::job::Knobs};
use serde_json::Value;

/// Statements on moving keys wait for so long at most, and those of transactions keep their backends meanwhile: a third of
/// the thirty seconds for which others wait for a backend, and for which drivers wait by default.
const LONGEST: u64 = 10_000;
/// Of what statements are held for, that others may have to end: fencing, applying, committing and undoing need the rest.
const HALF: u32 = 2;

/// Something that can be changed.
struct Knob {
    name: &'static str,
    least: u64,
    /// [`u64::MAX`]: any.
    most: u64,
    /// What it is, and why there is a bound.
    what: &'static str,
    set: fn(&mut Knobs, u64),
    get: fn(&Knobs) -> u64,
}

const KNOBS: [Knob; 14] = [
    Knob {
        name: "chunk_rows",
        least: 1,
        most: u64::MAX,
        what: "rows of a chunk of the copy",
        set: |knobs, it| knobs.chunk_rows = it,
        get: |knobs| knobs.chunk_rows,
    },
    Knob {
        name: "copies",
        least: 1,
        most: 64,
        what: "chunks that are copied at a time, each by a connection to both servers; shardway reshard pause stops all",
        set: |knobs, it| knobs.copies = count(it),
        get: |knobs| knobs.copies as u64,
    },
    Knob {
        name: "bytes_per_second",
        least: 0,
        most: u64::MAX,
        what: "bytes a second that are copied; 0: no limit",
        set: |knobs, it| knobs.bytes_per_second = it,
        get: |knobs| knobs.bytes_per_second,
    },
    Knob {
        name: "batch",
        least: 1,
        most: 1_000_000,
        what: "changes that are applied in one transaction, and kept in memory until then",
        set: |knobs, it| knobs.batch = count(it),
        get: |knobs| knobs.batch as u64,
    },
    Knob {
        name: "wal_kept",
        least: 1,
        most: u64::MAX,
        what: "bytes of WAL that a source may keep before the run stops",
        set: |knobs, it| knobs.wal_kept = it,
        get: |knobs| knobs.wal_kept,
    },
    Knob {
        name: "xmin_age",
        least: 1,
        most: 2_000_000_000,
        what: "transactions for which a slot may keep vacuum from the catalogs of a source before the run stops",
        set: |knobs, it| knobs.xmin_age = it,
        get: |knobs| knobs.xmin_age,
    },
    Knob {
        name: "load",
        least: 0,
        most: u64::MAX,
        what: "statements that others may run on a source before less is copied; 0: any number",
        set: |knobs, it| knobs.load = it,
        get: |knobs| knobs.load,
    },
    Knob {
        name: "answer_ms",
        least: 0,
        most: 2_000,
        what: "how long a source may take to answer before less is copied, 0: any time; after 2000 it is too busy in any case",
        set: |knobs, it| knobs.answer = Duration::from_millis(it),
        get: |knobs| millis(knobs.answer),
    },
    Knob {
        name: "replica_lag",
        least: 0,
        most: u64::MAX,
        what: "bytes of WAL that a replica may be behind before less is copied; 0: any",
        set: |knobs, it| knobs.replica_lag = it,
        get: |knobs| knobs.replica_lag,
    },
    Knob {
        name: "drain_ms",
        least: 1,
        most: LONGEST / 2,
        what: "how long statements under way have to end, at most half of hold_ms",
        set: |knobs, it| knobs.drain = Duration::from_millis(it),
        get: |knobs| millis(knobs.drain),
    },
    Knob {
        name: "hold_ms",
        least: 1,
        most: LONGEST,
        what: "how many milliseconds statements on moving keys are held at most: their transactions keep backends meanwhile, for \
               which others wait 30000, and clients wait no longer for an answer",
        set: |knobs, it| knobs.hold = Duration::from_millis(it),
        get: |knobs| millis(knobs.hold),
    },
    Knob {
        name: "lock_ms",
        least: 1,
        most: LONGEST / 2,
        what: "how long the fence waits for a lock, with writers behind it, at most half of hold_ms",
        set: |knobs, it| knobs.lock = Duration::from_millis(it),
        get: |knobs| millis(knobs.lock),
    },
    Knob {
        name: "rows_per_second",
        least: 0,
        most: u64::MAX,
        what: "rows a second that are compared; 0: no limit",
        set: |knobs, it| knobs.rows_per_second = it,
        get: |knobs| knobs.rows_per_second,
    },
    Knob {
        name: "compare_ms",
        least: 1,
        most: 3_600_000,
        what: "how long snapshots are held for comparing rows: vacuum waits for them on both servers",
        set: |knobs, it| knobs.compare = Duration::from_millis(it),
        get: |knobs| millis(knobs.compare),
    },
];

/// How it runs, with these values changed.
///
/// # Errors
/// [`Fault::Knob`], [`Fault::KnobValue`], [`Fault::Longer`].
pub(super) fn changed(mut knobs: Knobs, values: &[String]) -> Result<Knobs, Fault> {
    for text in values {
        let unknown = || Fault::Knob { text: text.clone() };
        let (name, value) = text.split_once('=').ok_or_else(unknown)?;
        let knob = KNOBS.iter().find(|knob| knob.name == name.trim());
        let knob = knob.ok_or_else(unknown)?;
        let number = value.trim().parse::<u64>().ok();
        let number = number.filter(|it| (knob.least..=knob.most).contains(it));
        let number = number.ok_or_else(|| Fault::KnobValue {
            text: text.clone(),
            allowed: allowed(knob),
            what: knob.what,
        })?;
        (knob.set)(&mut knobs, number);
    }
    for (name, part) in [("drain_ms", knobs.drain), ("lock_ms", knobs.lock)] {
        if part > knobs.hold / HALF {
            return Err(Fault::Longer {
                name,
                part,
                hold: knobs.hold,
            });
        }
    }
    Ok(knobs)
}

/// All with their values, in a line.
pub(super) fn line(knobs: &Knobs) -> String {
    let each = KNOBS
        .iter()
        .map(|knob| format!("{}={}", knob.name, (knob.get)(knobs)));
    each.collect::<Vec<_>>().join(" ")
}

/// Each with its value, what it may be, and what it is.
pub(super) fn text(knobs: &Knobs) -> String {
    let each = KNOBS.iter().map(|knob| {
        let set = format!("{}={}", knob.name, (knob.get)(knobs));
        format!("{set:<26} {} ({})\n", knob.what, allowed(knob))
    });
    each.collect()
}

/// Each with its value, for programs.
pub(super) fn json(knobs: &Knobs) -> Value {
    let each = KNOBS
        .iter()
        .map(|knob| (knob.name.to_owned(), (knob.get)(knobs).into()));
    let without = (!knobs.without.is_empty()).then(|| knobs.without.iter().cloned().collect());
    let without = without.map(|shards: Vec<String>| ("without".to_owned(), shards.into()));
    Value::Object(each.chain(without).collect())
}

/// The names of all, for people.
pub(super) fn names() -> String {
    KNOBS.each_ref().map(|knob| knob.name).join(", ")
}

fn allowed(knob: &Knob) -> String {
    match (knob.least, knob.most) {
        (least, u64::MAX) => format!("from {least} on"),
        (least, most) => format!("from {least} to {most}"),
    }
}

/// None is so long that it would not fit.
fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// No bound is beyond it.
fn count(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(values: &[&str]) -> Result<Knobs, String> {
        let values: Vec<String> = values.iter().map(|it| (*it).to_owned()).collect();
        changed(Knobs::default(), &values).map_err(|fault| fault.to_string())
    }

    #[test]
    fn each_is_documented_with_its_default_and_shown_with_its_value() {
        let text = include_str!("../../../docs/resharding.md");
        let defaults = Knobs::default();
        for knob in &KNOBS {
            let (name, value) = (knob.name, (knob.get)(&defaults));
            let mut rows = text
                .lines()
                .filter(|line| line.starts_with(&format!("| `{name}` |")));
            let default = format!("| {value} |");
            assert!(rows.any(|row| row.contains(&default)), "{name}={value}");
            let mut changed = defaults.clone();
            (knob.set)(&mut changed, value + 1);
            assert_eq!((knob.get)(&changed), value + 1, "{name}");
            let shown = format!("{name}={}", value + 1);
            assert!(line(&changed).split(' ').any(|it| it == shown));
        }
    }

    #[test]
    fn each_takes_what_its_bounds_allow_and_says_them() {
        let longest = format!("hold_ms={LONGEST}");
        let before = set(&[&longest]).unwrap();
        for knob in &KNOBS {
            // With room for what is a part of it.
            let least = if knob.name == "hold_ms" {
                100
            } else {
                knob.least
            };
            let of = |number: u64| set(&[&longest, &format!("{}={number}", knob.name)]);
            of(least).unwrap();
            let most = of(knob.most).unwrap();
            assert_eq!(most == before, knob.name == "hold_ms", "{}", knob.name);
            let above = knob.most.checked_add(1).map(|it| it.to_string());
            let below = knob.least.checked_sub(1).map(|it| it.to_string());
            let never = [
                "",
                "-1",
                "1.5",
                "many",
                "1e3",
                "99999999999999999999",
                "5 ms",
            ];
            let wrong = never
                .map(str::to_owned)
                .into_iter()
                .chain(above)
                .chain(below);
            for wrong in wrong {
                let text = format!("{}={wrong}", knob.name);
                let said = set(&[&text]).unwrap_err();
                assert!(
                    said.contains(&format!("{text:?}")) && said.contains(&allowed(knob)),
                    "{said}"
                );
            }
        }
        for unknown in ["speed=3", "copies", "=3", ""] {
            let said = set(&[unknown]).unwrap_err();
            assert!(said.contains("one of chunk_rows, copies"), "{said}");
        }
    }

    #[test]
    fn statements_are_held_for_ten_seconds_at_most_and_their_parts_fit_in() {
        let hold = |it: &str| set(&[it]).map(|knobs| knobs.hold.as_millis());
        assert_eq!(hold("hold_ms=10000"), Ok(10_000));
        let said = hold("hold_ms=10001").unwrap_err();
        assert!(
            said.contains("from 1 to 10000") && said.contains("clients"),
            "{said}"
        );
        for values in [
            &["hold_ms=99"][..],
            &["drain_ms=501"],
            &["lock_ms=501"],
            &["hold_ms=2000", "drain_ms=1001"],
        ] {
            let said = set(values).unwrap_err();
            assert!(said.contains("half of hold_ms"), "{said}");
        }
        // In any order.
        assert!(set(&["drain_ms=1000", "lock_ms=1000", "hold_ms=2000"]).is_ok());
    }
}
