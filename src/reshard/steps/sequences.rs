//! Sequences of the tables that move: whoever draws from one on a destination meets no number that its source gave.
//!
//! What must stay true: a sequence never goes back, and keeps its place between others that it steps over.

use super::asking::{About as _, connection};
use crate::reshard::{
    job::{Job, StepError},
    plan::MovingTable,
    servers::Server,
};
use deadpool_postgres::Client;
use std::collections::BTreeMap;

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
    for destination in job.destinations() {
        let to = connection(&destination).await?;
        let moves = job.given_to(&destination.name);
        for source in job.sources() {
            let given = moves.iter().filter(|it| it.from == source.name);
            let given: Vec<_> = given.cloned().collect();
            let tables = job.tables_of(&given);
            if !tables.is_empty() {
                advance(&source, &to, &destination, &tables).await?;
            }
        }
    }
    Ok(())
}

async fn advance(
    source: &Server,
    to: &Client,
    destination: &Server,
    tables: &[MovingTable],
) -> Result<(), StepError> {
    let what = format!("setting sequences on shard {}", destination.name);
    let from = connection(source).await?;
    let there = sequences(to, tables).await.about(&what)?;
    for (name, source) in sequences(&from, tables).await.about(&what)? {
        let Some(value) = there.get(&name).and_then(|there| there.past(&source)) else {
            continue;
        };
        to.execute("SELECT setval(to_regclass($1), $2)", &[&name, &value])
            .await
            .about(&what)?;
    }
    Ok(())
}

async fn sequences(
    client: &Client,
    tables: &[MovingTable],
) -> Result<BTreeMap<String, Sequence>, tokio_postgres::Error> {
    let names: Vec<String> = tables.iter().map(MovingTable::sql).collect();
    let mut found = BTreeMap::new();
    for row in client.query(SEQUENCES, &[&names]).await? {
        let name: String = row.get(0);
        let last = client
            .query_one(&format!("SELECT last_value FROM {name}"), &[])
            .await?;
        let sequence = Sequence {
            increment: row.get(1),
            min: row.get(2),
            max: row.get(3),
            cycles: row.get(4),
            last: last.get(0),
        };
        found.insert(name, sequence);
    }
    Ok(found)
}

impl Sequence {
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
