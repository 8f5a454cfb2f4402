//! Sets of keys of a group: what moves from one shard to another, and what a shard has without owning it. One set means the
//! same in Rust (the gate, the stream of changes) and in SQL (copies, guards, predicates of ownership, deletion).
//!
//! What must stay true: [`KeySet::contains`] and the condition of [`KeySet::sql`] say the same of every key; a NULL key is
//! in no set, and the condition is then not true.

use super::{
    datetime,
    group::Group,
    hash::{HashFunction, bucket, sql_bucket_expression},
    key::{Key, KeyType},
    numeric::Numeric,
    shard::ShardId,
};
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// The setting by which a write of a table that every shard has says, in its transaction, which shards it reaches: names with
/// commas between them.
pub const REACHES: &str = "shardway.reaches";

/// Keys of a group.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeySet {
    pub part: Part,
    /// Keys that are in it although `part` does not say so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub with: Vec<Key>,
    /// Keys that are not in it although `part` says so.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Key>,
}

/// What a group's method has pieces of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Part {
    /// No key, but those that are named.
    None,
    /// Of a hash group with so many buckets (`of`): runs from the first to before the second.
    Buckets { of: u32, runs: Vec<(u32, u32)> },
    /// Of a range group: from the first, inclusive, to before the second.
    Ranges(Vec<(Option<Key>, Option<Key>)>),
    /// Of a list group.
    Values(Vec<Key>),
    /// Of a list group: every value but these.
    Others(Vec<Key>),
}

/// Keys that go from one shard to another, by the shards' names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Move {
    pub group: String,
    pub keys: KeySet,
    pub from: String,
    pub to: String,
}

impl Move {
    /// The way back.
    #[must_use]
    pub fn turned(&self) -> Self {
        Self {
            from: self.to.clone(),
            to: self.from.clone(),
            ..self.clone()
        }
    }
}

/// Keys whose rows are also on a shard that does not own them, while a reshard is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubled {
    pub shard: ShardId,
    pub keys: KeySet,
}

/// There is no SQL for a set of this kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no SQL computes the buckets of keys of type {}", .0.name())]
pub struct NoSql(pub KeyType);

impl KeySet {
    /// A set that one piece says whole.
    #[must_use]
    pub fn of(part: Part) -> Self {
        Self {
            part,
            with: Vec::new(),
            without: Vec::new(),
        }
    }

    /// Whether a key is in it. Buckets are those of the `postgres` hash.
    #[must_use]
    pub fn contains(&self, key: &Key) -> bool {
        self.with.contains(key) || (self.part.contains(key) && !self.without.contains(key))
    }

    /// The condition on a column, which is SQL text and quoted already; never without parentheses.
    ///
    /// # Errors
    /// [`NoSql`].
    pub fn sql(&self, column: &str, key_type: KeyType) -> Result<String, NoSql> {
        let mut condition = self.part.sql(column, key_type)?;
        if !self.without.is_empty() {
            let list = list(&self.without);
            condition = format!("({condition} AND {column} NOT IN ({list}))");
        }
        if !self.with.is_empty() {
            let list = list(&self.with);
            condition = format!("({condition} OR {column} IN ({list}))");
        }
        Ok(condition)
    }

    /// For people, of each kind no more than so many; empty: it has no keys.
    #[must_use]
    pub fn words(&self, most: usize) -> String {
        let keys = |keys: &[Key]| some(keys.iter().map(plain), most);
        let mut words = Vec::new();
        match &self.part {
            Part::None => {}
            Part::Buckets { of, runs } => {
                let count: u32 = runs.iter().map(|(from, to)| to - from).sum();
                let run = |(from, to): &(u32, u32)| match to - from {
                    1 => from.to_string(),
                    _ => format!("{from}-{}", to - 1),
                };
                let runs = some(runs.iter().map(run), most);
                words.push(format!("{count} of {of} buckets ({runs})"));
            }
            Part::Ranges(ranges) => {
                let bound = |key: &Option<Key>| key.as_ref().map(plain).unwrap_or_default();
                let range = ranges
                    .iter()
                    .map(|(from, to)| format!("[{}, {})", bound(from), bound(to)));
                words.push(format!("range {}", some(range, most)));
            }
            Part::Values(values) => words.push(format!("values {}", keys(values))),
            Part::Others(values) if values.is_empty() => words.push("every value".to_owned()),
            Part::Others(values) => words.push(format!("every value but {}", keys(values))),
        }
        if !self.with.is_empty() {
            words.push(format!("key {}", keys(&self.with)));
        }
        let all = words.join(" and ");
        if self.without.is_empty() {
            return all;
        }
        format!("{all}, but not key {}", keys(&self.without))
    }
}

/// A key for people: text in quotes, since it may be anything.
fn plain(key: &Key) -> String {
    match key {
        Key::Text(_) => format!("'{}'", key.text()),
        Key::Bigint(_)
        | Key::Uuid(_)
        | Key::Date(_)
        | Key::Timestamptz(_)
        | Key::Numeric(_)
        | Key::Bytea(_) => key.text(),
    }
}

/// The first of a list, and how many more there are.
fn some(each: impl ExactSizeIterator<Item = String>, most: usize) -> String {
    let more = each.len().saturating_sub(most);
    let mut words: Vec<String> = each.take(most).collect();
    if more > 0 {
        words.push(format!("{more} more"));
    }
    words.join(", ")
}

impl Part {
    fn contains(&self, key: &Key) -> bool {
        match self {
            Self::None => false,
            Self::Buckets { of, runs } => {
                let at = bucket(HashFunction::Postgres, *of, key);
                runs.iter().any(|(from, to)| (*from..*to).contains(&at))
            }
            Self::Ranges(ranges) => ranges.iter().any(|(from, to)| {
                from.as_ref().is_none_or(|from| from <= key)
                    && to.as_ref().is_none_or(|to| key < to)
            }),
            Self::Values(values) => values.contains(key),
            Self::Others(values) => !values.contains(key),
        }
    }

    fn sql(&self, column: &str, key_type: KeyType) -> Result<String, NoSql> {
        Ok(match self {
            Self::None => "(false)".to_owned(),
            Self::Buckets { of, runs } => {
                let bucket = sql_bucket_expression(column, key_type, *of).ok_or(NoSql(key_type))?;
                in_runs(&bucket, *of, runs)
            }
            Self::Ranges(ranges) => {
                // Text is ordered by its bytes, whatever the column's collation is.
                let column = if key_type == KeyType::Text {
                    format!("{column} COLLATE \"C\"")
                } else {
                    column.to_owned()
                };
                let each = ranges.iter().map(|(from, to)| {
                    let mut all = vec![format!("{column} IS NOT NULL")];
                    all.extend(from.iter().map(|key| format!("{column} >= {}", key.sql())));
                    all.extend(to.iter().map(|key| format!("{column} < {}", key.sql())));
                    format!("({})", all.join(" AND "))
                });
                either(each.collect())
            }
            Self::Values(values) if values.is_empty() => "(false)".to_owned(),
            Self::Values(values) => format!("({column} IN ({}))", list(values)),
            Self::Others(values) if values.is_empty() => format!("({column} IS NOT NULL)"),
            Self::Others(values) => format!("({column} NOT IN ({}))", list(values)),
        })
    }
}

/// Whether a bucket is in the runs: by comparisons while they are few, else by a map of bits.
fn in_runs(bucket: &str, of: u32, runs: &[(u32, u32)]) -> String {
    const FEW: usize = 4;
    if runs.len() <= FEW {
        let each = runs.iter().map(|(from, to)| {
            let last = to.saturating_sub(1);
            format!("({bucket} BETWEEN {from} AND {last})")
        });
        return either(each.collect());
    }
    let mut bytes = vec![0_u8; (of as usize).div_ceil(8)];
    for at in runs.iter().flat_map(|(from, to)| *from..*to) {
        if let Some(byte) = bytes.get_mut(at as usize / 8) {
            *byte |= 1 << (at % 8);
        }
    }
    let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
        let _written = write!(hex, "{byte:02x}");
        hex
    });
    // get_bit counts from the lowest bit of the first byte.
    format!("(get_bit(decode('{hex}', 'hex'), {bucket}) = 1)")
}

fn either(conditions: Vec<String>) -> String {
    if conditions.is_empty() {
        return "(false)".to_owned();
    }
    format!("({})", conditions.join(" OR "))
}

fn list(keys: &[Key]) -> String {
    let keys: Vec<String> = keys.iter().map(Key::sql).collect();
    keys.join(", ")
}

impl Key {
    /// The key as text that its type reads again, in PostgreSQL and in [`KeyType::from_text`].
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Bigint(value) => value.to_string(),
            Self::Text(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Self::Uuid(bytes) => hex(bytes),
            Self::Date(days) => datetime::date_text(*days),
            Self::Timestamptz(micros) => datetime::instant_text(*micros),
            Self::Numeric(number) => numeric_text(number),
            Self::Bytea(bytes) => format!("\\x{}", hex(bytes)),
        }
    }

    /// The key as a constant of SQL, with its type.
    #[must_use]
    pub fn sql(&self) -> String {
        let text = crate::sql::statement::quoted(&self.text());
        format!("{text}::{}", self.key_type().name())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn numeric_text(number: &Numeric) -> String {
    let number = match number {
        Numeric::NegativeInfinity => return "-Infinity".to_owned(),
        Numeric::Infinity => return "Infinity".to_owned(),
        Numeric::NaN => return "NaN".to_owned(),
        Numeric::Finite(zero) if zero.digits().is_empty() => return "0".to_owned(),
        Numeric::Finite(number) => number,
    };
    let sign = if number.is_negative() { "-" } else { "" };
    let digits = number.digits().iter();
    let digits: String = digits.map(|digit| format!("{digit:04}")).collect();
    let places = i32::try_from(number.digits().len()).unwrap_or(i32::MAX);
    let exponent = (i32::from(number.weight()) - (places - 1)) * 4;
    format!("{sign}{digits}E{exponent}")
}

impl Serialize for Key {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.key_type().name(), self.text()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (key_type, text) = <(String, String)>::deserialize(deserializer)?;
        let key_type = KeyType::named(&key_type)
            .ok_or_else(|| serde::de::Error::custom(format!("no key type {key_type}")))?;
        key_type
            .from_text(text.as_bytes())
            .map_err(|_error| serde::de::Error::custom(format!("{text} is no {}", key_type.name())))
    }
}

impl Group {
    /// What a shard has of the group without owning it.
    #[must_use]
    pub fn doubled_on(&self, shard: ShardId) -> Option<Vec<&KeySet>> {
        let here = self.doubled.iter().filter(|doubled| doubled.shard == shard);
        let here: Vec<&KeySet> = here.map(|doubled| &doubled.keys).collect();
        (!here.is_empty()).then_some(here)
    }

    /// The condition that a row on a shard belongs to it, where rows of others may be there too.
    ///
    /// # Errors
    /// [`NoSql`].
    pub fn owned_sql(&self, shard: ShardId, column: &str) -> Result<Option<String>, NoSql> {
        let Some(sets) = self.doubled_on(shard) else {
            return Ok(None);
        };
        let each = sets.iter().map(|keys| keys.sql(column, self.key_type));
        let each: Result<Vec<String>, NoSql> = each.collect();
        Ok(Some(format!("({} IS NOT TRUE)", either(each?))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_read_back_as_they_were() {
        for (key_type, text) in [
            (KeyType::Bigint, "-7"),
            (KeyType::Text, "it's \\ ü"),
            (KeyType::Uuid, "00112233-4455-6677-8899-aabbccddeeff"),
            (KeyType::Date, "2026-02-28"),
            (KeyType::Date, "0001-01-01"),
            (KeyType::Date, "infinity"),
            (KeyType::Timestamptz, "1999-12-31 23:59:59.000001+00"),
            (KeyType::Timestamptz, "-infinity"),
            (KeyType::Numeric, "-120000.0034"),
            (KeyType::Numeric, "1e20"),
            (KeyType::Numeric, "0"),
            (KeyType::Numeric, "NaN"),
            (KeyType::Bytea, "\\x00ff"),
        ] {
            let key = key_type.from_text(text.as_bytes()).unwrap();
            assert_eq!(
                key_type.from_text(key.text().as_bytes()),
                Ok(key.clone()),
                "{text}: {}",
                key.text()
            );
            let json = serde_json::to_string(&key).unwrap();
            assert_eq!(serde_json::from_str::<Key>(&json).unwrap(), key);
        }
    }

    #[test]
    fn named_keys_count_more_than_the_piece() {
        let key = Key::Bigint;
        let set = KeySet {
            part: Part::Ranges(vec![(Some(key(0)), Some(key(10)))]),
            with: vec![key(100)],
            without: vec![key(5)],
        };
        let inside = |value| set.contains(&key(value));
        assert!(inside(0) && inside(9) && inside(100));
        assert!(!inside(5) && !inside(10) && !inside(-1));
        assert_eq!(
            set.sql("k", KeyType::Bigint).unwrap(),
            "((((k IS NOT NULL AND k >= '0'::bigint AND k < '10'::bigint)) AND k NOT IN ('5'::bigint)) \
             OR k IN ('100'::bigint))"
        );
    }
}
