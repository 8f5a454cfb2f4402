//! Rows of several shards that come together on one: whether some have the same value where it has to be unique.
//!
//! What must stay true: values are compared as the servers write them, in one order; nothing is kept of them in memory.

use super::{Finding, Found};
use crate::reshard::{
    job::{Job, StepError},
    plan::{MovingTable, identifier},
    steps::{
        asking::{About as _, connection, named},
        condition,
    },
};
use deadpool_postgres::Client;
use std::collections::BTreeSet;

/// Unique indexes of plain columns without the shard key, whose values may come twice.
const UNIQUE: &str = "\
SELECT i.indexrelid::regclass::text, array(SELECT quote_ident(a.attname) FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1]) num \
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = num), \
  coalesce(pg_get_expr(i.indpred, i.indrelid), 'true') \
FROM pg_index i WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indexprs IS NULL \
  AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = i.indrelid AND a.attname = $2 \
    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))";

/// Values that are fetched at a time.
const FETCH: &str = "FETCH 2000 FROM unique_values";

/// Looks at every destination where rows meet.
pub(super) async fn look(job: &Job) -> Result<Vec<Finding>, StepError> {
    let mut all = Vec::new();
    for destination in job.destinations() {
        let moves = job.given_to(&destination.name);
        let from: BTreeSet<&String> = moves.iter().map(|it| &it.from).collect();
        let joins = job.plan.joins.contains(&destination.name);
        if joins && from.len() < 2 {
            continue;
        }
        let mut found = Found::on(&destination.name);
        for table in job.tables_of(&moves) {
            let since = found.all.len();
            meet(job, &destination.name, &table, joins, &mut found).await?;
            found.about(since, &table.plain());
        }
        all.extend(found.all);
    }
    Ok(all)
}

async fn meet(
    job: &Job,
    destination: &str,
    table: &MovingTable,
    joins: bool,
    found: &mut Found<'_>,
) -> Result<(), StepError> {
    let moves = job.given_to(destination);
    let from: BTreeSet<&String> = moves.iter().map(|it| &it.from).collect();
    let what = "comparing unique values";
    let Some(first) = from.first() else {
        return Ok(());
    };
    let client = connection(named(job, first)?).await?;
    let indexes = client
        .query(UNIQUE, &[&table.sql(), &table.key_column])
        .await;
    for index in indexes.about(what)? {
        let (name, columns, predicate): (String, Vec<String>, String) =
            (index.get(0), index.get(1), index.get(2));
        let given: Vec<String> = columns
            .iter()
            .map(|it| format!("{it} IS NOT NULL"))
            .collect();
        let of = |condition: &str| {
            format!(
                "SELECT ROW({})::text COLLATE \"C\" FROM {} WHERE ({predicate}) AND {} AND {condition} ORDER BY 1",
                columns.join(", "),
                table.sql(),
                given.join(" AND ")
            )
        };
        let mut sides = Vec::new();
        for source in &from {
            let its: Vec<_> = moves
                .iter()
                .filter(|it| it.from == **source)
                .cloned()
                .collect();
            let column = identifier(&table.key_column);
            if let Some(condition) = condition(job, table, &its, &column)? {
                sides.push(Side::open(job, source, &of(&condition)).await?);
            }
        }
        if !joins {
            sides.push(Side::open(job, destination, &of("true")).await?);
        }
        if let Some((value, one, other)) = twice(&mut sides).await? {
            found.error(
                format!("{value} of {name} is on shard {one} and on shard {other}: both come to {destination}"),
                format!("give one of the two rows another value in {}", columns.join(", ")),
            );
        }
    }
    Ok(())
}

/// Values of one shard in order.
struct Side {
    shard: String,
    client: Client,
    values: std::vec::IntoIter<String>,
    next: Option<String>,
}

impl Side {
    async fn open(job: &Job, shard: &str, sql: &str) -> Result<Self, StepError> {
        let client = connection(named(job, shard)?).await?;
        let open = format!("BEGIN READ ONLY; DECLARE unique_values NO SCROLL CURSOR FOR {sql}");
        let opened = client.batch_execute(&open).await;
        opened.about("comparing unique values")?;
        let mut side = Self {
            shard: shard.to_owned(),
            client,
            values: Vec::new().into_iter(),
            next: None,
        };
        side.advance().await?;
        Ok(side)
    }

    async fn advance(&mut self) -> Result<(), StepError> {
        if self.values.len() == 0 {
            let rows = self.client.query(FETCH, &[]).await;
            let rows = rows.about("comparing unique values")?;
            let values: Vec<String> = rows.iter().map(|row| row.get(0)).collect();
            self.values = values.into_iter();
        }
        self.next = self.values.next();
        Ok(())
    }
}

/// The first value that two of them have.
async fn twice(sides: &mut [Side]) -> Result<Option<(String, String, String)>, StepError> {
    loop {
        let least = sides.iter().filter_map(|side| side.next.clone()).min();
        let Some(least) = least else {
            return Ok(None);
        };
        let mut having = sides
            .iter_mut()
            .filter(|side| side.next.as_ref() == Some(&least));
        let Some(one) = having.next() else {
            return Ok(None);
        };
        if let Some(other) = having.next() {
            return Ok(Some((least, one.shard.clone(), other.shard.clone())));
        }
        one.advance().await?;
    }
}
