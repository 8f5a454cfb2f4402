//! Compares a table's rows on two shards, in snapshots that the caller has opened.

use super::form::Form;
use crate::inspect::AskError;
use deadpool_postgres::Client;
use futures_util::{Stream, TryStreamExt as _, future::try_join};
use serde::{Deserialize, Serialize};
use std::{cmp::Ordering, pin::Pin};
use tokio_postgres::{Row, types::ToSql};

/// Groups that a table's rows are summed in.
const GROUPS: u32 = 256;
/// How many differing rows of a table are named; all are counted.
const NAMED: usize = 20;

/// One side: a connection in a transaction with a snapshot, and which rows of the table count there.
#[derive(Clone, Copy, Debug)]
pub struct Side<'a> {
    pub client: &'a Client,
    pub condition: &'a str,
}

/// What came out of a comparison.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// Of the source.
    pub rows: u64,
    pub different: u64,
    /// The first of those that differ.
    pub found: Vec<Found>,
}

/// A row that is not the same on both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// The primary key as a row in text.
    pub key: String,
    pub what: Kind,
}

/// How they differ.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The destination does not have it.
    Missing,
    /// Only the destination has it.
    Extra,
    /// In these columns, by their places from 0.
    Different(Vec<usize>),
}

/// One group's number of rows and sums.
type Sums = (i64, i64, Option<i64>, Option<i64>);

/// Compares a table.
///
/// # Errors
/// [`AskError`]: one side could not be asked.
pub async fn compare(
    form: &Form,
    source: Side<'_>,
    destination: Side<'_>,
) -> Result<Compared, AskError> {
    let (here, there) = try_join(sums(form, source), sums(form, destination)).await?;
    let mut compared = Compared {
        rows: here.iter().map(|(_, rows, ..)| rows.unsigned_abs()).sum(),
        ..Compared::default()
    };
    for group in differing(&here, &there) {
        drill(form, (source, destination), group, &mut compared).await?;
    }
    Ok(compared)
}

async fn sums(form: &Form, side: Side<'_>) -> Result<Vec<Sums>, AskError> {
    let rows = side
        .client
        .query(&form.sums(side.condition, GROUPS), &[])
        .await?;
    rows.iter()
        .map(|row| {
            Ok((
                row.try_get(0)?,
                row.try_get(1)?,
                row.try_get(2)?,
                row.try_get(3)?,
            ))
        })
        .collect()
}

/// The groups that are not the same, or only on one side.
fn differing(here: &[Sums], there: &[Sums]) -> Vec<i64> {
    let only = |of: &[Sums], other: &[Sums]| -> Vec<i64> {
        let groups = of.iter().filter(|group| !other.contains(group));
        groups.map(|(group, ..)| *group).collect()
    };
    let mut groups = only(here, there);
    groups.extend(only(there, here));
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Walks through the rows of a group on both sides, in the order of their keys' text.
async fn drill(
    form: &Form,
    (source, destination): (Side<'_>, Side<'_>),
    group: i64,
    compared: &mut Compared,
) -> Result<(), AskError> {
    let mut here = rows(form, source, group).await?;
    let mut there = rows(form, destination, group).await?;
    let (mut left, mut right) = (next(&mut here).await?, next(&mut there).await?);
    let mut unlike = Vec::new();
    loop {
        let order = match (&left, &right) {
            (None, None) => break,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(left), Some(right)) => left.key.as_bytes().cmp(right.key.as_bytes()),
        };
        let same = order == Ordering::Equal && left == right;
        let key = match order {
            Ordering::Greater => right.as_ref(),
            Ordering::Less | Ordering::Equal => left.as_ref(),
        };
        if let Some(key) = key.filter(|_| !same) {
            compared.different += 1;
            if compared.found.len() + unlike.len() < NAMED {
                unlike.push((key.key.clone(), order));
            }
        }
        if order != Ordering::Greater {
            left = next(&mut here).await?;
        }
        if order != Ordering::Less {
            right = next(&mut there).await?;
        }
    }
    drop((here, there));
    for (key, order) in unlike {
        let what = match order {
            Ordering::Less => Kind::Missing,
            Ordering::Greater => Kind::Extra,
            Ordering::Equal => {
                let here = columns(form, source, group, &key).await?;
                let there = columns(form, destination, group, &key).await?;
                let differ = (0..here.len()).filter(|at| here.get(*at) != there.get(*at));
                Kind::Different(differ.collect())
            }
        };
        compared.found.push(Found { key, what });
    }
    Ok(())
}

/// A row, by its key and two hashes.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Hashed {
    key: String,
    hashes: (i64, i64),
}

type Rows = Pin<Box<dyn Stream<Item = Result<Row, tokio_postgres::Error>> + Send>>;

async fn rows(form: &Form, side: Side<'_>, group: i64) -> Result<Rows, AskError> {
    let none: [&(dyn ToSql + Sync); 0] = [];
    let rows = side
        .client
        .query_raw(&form.rows(side.condition, GROUPS, group), none)
        .await?;
    Ok(Box::pin(rows))
}

async fn next(rows: &mut Rows) -> Result<Option<Hashed>, AskError> {
    let Some(row) = rows.try_next().await? else {
        return Ok(None);
    };
    Ok(Some(Hashed {
        key: row.try_get(0)?,
        hashes: (row.try_get(1)?, row.try_get(2)?),
    }))
}

async fn columns(
    form: &Form,
    side: Side<'_>,
    group: i64,
    key: &str,
) -> Result<Vec<Option<String>>, AskError> {
    let row = side
        .client
        .query_opt(&form.row(side.condition, GROUPS, group), &[&key])
        .await?;
    Ok(row
        .map(|row| row.try_get(0))
        .transpose()?
        .unwrap_or_default())
}
