//! Sequences of the tables that move: whoever draws from one on a destination meets no number that its source gave.
//!
//! What must stay true: a sequence never goes back, whoever draws from it or has set it meanwhile, and keeps its place
//! between others that it steps over; a runner that was replaced sets none.

use super::asking::{About as _, Typed, line};
use crate::{
    inspect::at_once,
    reshard::{
        job::{Job, StepError},
        plan::{MovingTable, roots},
        servers::Server,
    },
};
use deadpool_postgres::Client;
use std::collections::BTreeMap;
use tokio_postgres::types::Type;

/// How many numbers ahead of the source's a sequence is set, so that it need not be set again at once.
const MARGIN: i64 = 1_000;

/// Sequences that tables own, or that their defaults draw from.
const SEQUENCES: &str = "\
SELECT DISTINCT format('%I.%I', n.nspname, s.relname), q.seqincrement, q.seqmin, q.seqmax, q.seqcycle, s.oid \
FROM unnest($1::text[]) name, pg_class s JOIN pg_namespace n ON n.oid = s.relnamespace JOIN pg_sequence q ON q.seqrelid = s.oid \
WHERE EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass AND d.objid = s.oid \
                AND d.refclassid = 'pg_class'::regclass AND d.refobjid = to_regclass(name) AND d.deptype IN ('a', 'i')) \
   OR EXISTS (SELECT FROM pg_attrdef a JOIN pg_depend d ON d.classid = 'pg_attrdef'::regclass AND d.objid = a.oid \
              WHERE a.adrelid = to_regclass(name) AND d.refclassid = 'pg_class'::regclass AND d.refobjid = s.oid)";

/// A sequence on one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sequence {
    increment: i64,
    min: i64,
    max: i64,
    cycles: bool,
    last: i64,
}

/// Sets sequences of the destinations past those of their sources.
///
/// # Errors
/// [`StepError`].
pub async fn run(job: &Job) -> Result<(), StepError> {
    let sources = job.sources();
    let read = sources.iter().map(|it| given(job, it));
    let read = at_once(read.collect()).await.into_iter();
    let read = read.collect::<Result<Vec<_>, StepError>>()?;
    if read.iter().all(BTreeMap::is_empty) {
        return Ok(());
    }
    let read: Given = sources.into_iter().map(|it| it.name).zip(read).collect();
    let destinations = job.destinations();
    let set = destinations.iter().map(|it| advance(job, it, &read));
    at_once(set.collect()).await.into_iter().collect()
}

/// Sequences by name, by the source that has them.
type Given = BTreeMap<String, BTreeMap<String, Sequence>>;

/// The sequences of the tables of which a source gives rows.
async fn given(job: &Job, source: &Server) -> Result<BTreeMap<String, Sequence>, StepError> {
    let what = format!("reading sequences of shard {}", source.name);
    let from = line(job, source).await?;
    let tables = job.tables_of(&job.given_by(&source.name));
    let read = sequences(&from, &tables).await.about(&what)?;
    from.done();
    Ok(read)
}

/// That each destination has the sequences that its sources have, which go the same way: their values are set past those of
/// the sources before a cutover.
///
/// # Errors
/// [`StepError::Halt`]: one is missing, or cannot be set past its source's.
pub(super) async fn alike(job: &Job) -> Result<(), StepError> {
    for destination in job.destinations() {
        let what = format!("looking at sequences of shard {}", destination.name);
        let moves = job.given_to(&destination.name);
        let to = line(job, &destination).await?;
        let there = sequences(&to, &job.tables_of(&moves)).await.about(&what)?;
        to.done();
        for source in job.sources() {
            let gives: Vec<_> = moves
                .iter()
                .filter(|it| it.from == source.name)
                .cloned()
                .collect();
            let from = line(job, &source).await?;
            let here = sequences(&from, &job.tables_of(&gives))
                .await
                .about(&what)?;
            from.done();
            for (name, theirs) in here {
                let problem = match there.get(&name) {
                    None => "is missing",
                    Some(own) if !own.follows(&theirs) => "counts in another direction",
                    Some(_) => continue,
                };
                let (source, destination) = (&source.name, &destination.name);
                return Err(StepError::Halt {
                    what: format!(
                        "sequence {name} of shard {source} {problem} on shard {destination}"
                    ),
                    remedy: format!("make it there as it is on {source}, then resume; or abort"),
                });
            }
        }
    }
    Ok(())
}

async fn advance(job: &Job, destination: &Server, given: &Given) -> Result<(), StepError> {
    let what = format!("setting sequences on shard {}", destination.name);
    let moves = job.given_to(&destination.name);
    let to = line(job, destination).await?;
    let mut there = sequences(&to, &job.tables_of(&moves)).await.about(&what)?;
    let mut set = BTreeMap::new();
    for (source, given) in given {
        if !moves.iter().any(|it| it.from == *source) {
            continue;
        }
        for (name, theirs) in given {
            if let Some(own) = there.get_mut(name)
                && let Some(value) = own.past(theirs)
            {
                own.last = value;
                set.insert(name, *own);
            }
        }
    }
    let each = set.iter().map(|(name, own)| {
        let to = &to;
        async move {
            let values: [Typed<'_>; 4] = [
                (*name, Type::TEXT),
                (&own.last, Type::INT8),
                (&job.id, Type::TEXT),
                (&job.token, Type::INT8),
            ];
            to.query_typed_one(&own.setting(name), &values).await
        }
    });
    for set in at_once(each.collect()).await {
        if set.about(&what)?.get::<_, i64>(0) != 1 {
            return Err(StepError::Replaced);
        }
    }
    to.done();
    Ok(())
}

async fn sequences(
    client: &Client,
    tables: &[MovingTable],
) -> Result<BTreeMap<String, Sequence>, tokio_postgres::Error> {
    let names = tables.iter().map(MovingTable::sql).chain(roots(tables));
    let names: Vec<String> = names.collect();
    let rows = client
        .query_typed(SEQUENCES, &[(&names, Type::TEXT_ARRAY)])
        .await?;
    let each = rows.iter().map(|row| async move {
        let name: String = row.get(0);
        let last = format!("SELECT last_value FROM {name}");
        let last = client.query_typed_one(&last, &[]).await?;
        let sequence = Sequence {
            increment: row.get(1),
            min: row.get(2),
            max: row.get(3),
            cycles: row.get(4),
            last: last.get(0),
        };
        Ok((name, sequence))
    });
    at_once(each.collect()).await.into_iter().collect()
}

impl Sequence {
    /// What sets it, unless it is further on by now, or another is the runner.
    fn setting(&self, name: &str) -> String {
        let behind = if self.increment > 0 { "<=" } else { ">=" };
        format!(
            "WITH mine AS (SELECT FROM shardway.runner WHERE workflow = $3 AND token <= $4 FOR SHARE) \
             SELECT (SELECT count(*) FROM mine), (SELECT setval(to_regclass($1), $2) FROM {name} \
             WHERE last_value {behind} $2 AND EXISTS (SELECT FROM mine))"
        )
    }

    /// Whether it can be set past another.
    fn follows(&self, source: &Self) -> bool {
        self.cycles || source.cycles || self.increment.signum() == source.increment.signum()
    }

    /// Where it has to be so that its next number is past the source's; `None`: it may stay. One that cycles gives every
    /// number again anyway.
    fn past(&self, source: &Self) -> Option<i64> {
        let step = self.increment;
        if self.cycles || step.signum() != source.increment.signum() {
            return None;
        }
        let behind = if step > 0 {
            self.last <= source.last
        } else {
            self.last >= source.last
        };
        if !behind {
            return None;
        }
        let margin = source.increment.saturating_mul(MARGIN);
        let wanted = source.last.saturating_add(margin);
        // Whole steps from where it is.
        let distance = i128::from(wanted) - i128::from(self.last);
        let steps = distance / i128::from(step);
        let value = i128::from(self.last) + steps * i128::from(step);
        let bounded = value.clamp(i128::from(self.min), i128::from(self.max));
        i64::try_from(bounded).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: i64, increment: i64) -> Sequence {
        Sequence {
            increment,
            min: -5_000,
            max: 5_000,
            cycles: false,
            last,
        }
    }

    #[test]
    fn a_sequence_goes_on_past_its_source_in_its_own_steps() {
        assert_eq!(at(1, 1).past(&at(500, 1)), Some(1_500));
        assert_eq!(at(501, 1).past(&at(500, 1)), None);
        assert_eq!(
            at(1, 3).past(&at(600, 3)),
            Some(3_598),
            "1 modulo 3, as before"
        );
        assert_eq!(at(-1, -1).past(&at(-7, -1)), Some(-1_007));
        assert_eq!(
            at(1, 1).past(&at(4_900, 1)),
            Some(5_000),
            "never past its end"
        );
        assert_eq!(at(1, 1).past(&at(-7, -1)), None, "they run apart");
    }
}
