//! How the owners of a group are stored: as JSON that people can read, keys in the text of their type. What form 2 of the
//! schema has stored is read too.

use super::{Owned, Owners};
use crate::catalog::{
    group::BUCKETS_LIMIT,
    hash::HashFunction,
    key::{Key, KeyType},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Stored {
    key_type: String,
    owners: StoredOwners,
    /// Owners of single keys; absent in form 2.
    #[serde(default)]
    pins: Option<Vec<(String, String)>>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum StoredOwners {
    Hash {
        function: String,
        /// As many buckets as the sum of the counts: so many in a row, and whose they are.
        buckets: Vec<(usize, String)>,
    },
    Range(Vec<(Option<String>, String)>),
    List {
        values: BTreeMap<String, String>,
        other: Option<String>,
    },
}

/// Why what is stored cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    #[error("no key type {0}")]
    KeyType(String),
    #[error("no hash function {0}")]
    Function(String),
    #[error("{0} is no {1}")]
    Key(String, &'static str),
    #[error("{0} buckets")]
    Buckets(usize),
    #[error("its ranges are not in order")]
    Ranges,
}

impl From<Owned> for Stored {
    fn from(owned: Owned) -> Self {
        let texts =
            |keys: BTreeMap<Key, String>| keys.into_iter().map(|(key, of)| (key.text(), of));
        let owners = match owned.owners {
            Owners::Hash { function, buckets } => StoredOwners::Hash {
                function: function_name(function).to_owned(),
                buckets: runs(buckets),
            },
            Owners::Range(ranges) => {
                let ranges = ranges.into_iter();
                let text = |(to, of): (Option<Key>, String)| (to.map(|to| to.text()), of);
                StoredOwners::Range(ranges.map(text).collect())
            }
            Owners::List { values, other } => StoredOwners::List {
                values: texts(values).collect(),
                other,
            },
        };
        Self {
            key_type: owned.key_type.name().to_owned(),
            owners,
            pins: Some(texts(owned.pins).collect()),
        }
    }
}

impl TryFrom<Stored> for Owned {
    type Error = Unreadable;

    fn try_from(stored: Stored) -> Result<Self, Unreadable> {
        let key_type = KeyType::named(&stored.key_type)
            .ok_or_else(|| Unreadable::KeyType(stored.key_type.clone()))?;
        let read = match stored.pins {
            Some(_) => read_text,
            None => read_token,
        };
        let key = |text: &str| {
            let key = read(key_type, text);
            key.ok_or_else(|| Unreadable::Key(text.to_owned(), key_type.name()))
        };
        let owners = match stored.owners {
            StoredOwners::Hash { function, buckets } => {
                let function = match function.as_str() {
                    "postgres" => HashFunction::Postgres,
                    "xxh3" => HashFunction::Xxh3,
                    _ => return Err(Unreadable::Function(function)),
                };
                let count = buckets
                    .iter()
                    .fold(0_usize, |sum, (count, _)| sum.saturating_add(*count));
                if !count.is_power_of_two() || count > BUCKETS_LIMIT as usize {
                    return Err(Unreadable::Buckets(count));
                }
                let each = buckets.into_iter();
                let each = each.flat_map(|(count, of)| std::iter::repeat_n(of, count));
                Owners::Hash {
                    function,
                    buckets: each.collect(),
                }
            }
            StoredOwners::Range(ranges) => {
                let ranges = ranges.into_iter();
                let read = |(to, of): (Option<String>, String)| {
                    Ok((to.map(|to| key(&to)).transpose()?, of))
                };
                let ranges: Vec<_> = ranges.map(read).collect::<Result<_, Unreadable>>()?;
                if !in_order(&ranges) {
                    return Err(Unreadable::Ranges);
                }
                Owners::range(ranges)
            }
            StoredOwners::List { values, other } => Owners::List {
                values: owners_of(values, key)?,
                other,
            },
        };
        Ok(Self {
            key_type,
            owners,
            pins: owners_of(stored.pins.unwrap_or_default(), key)?,
        })
    }
}

fn owners_of(
    texts: impl IntoIterator<Item = (String, String)>,
    key: impl Fn(&str) -> Result<Key, Unreadable>,
) -> Result<BTreeMap<Key, String>, Unreadable> {
    let each = texts.into_iter();
    each.map(|(text, of)| Ok((key(&text)?, of))).collect()
}

/// Ascending, and only the last without a bound.
fn in_order(ranges: &[(Option<Key>, String)]) -> bool {
    let Some(((None, _), bounded)) = ranges.split_last() else {
        return false;
    };
    bounded.iter().all(|(to, _)| to.is_some()) && bounded.is_sorted_by(|one, other| one.0 < other.0)
}

fn runs(buckets: Vec<String>) -> Vec<(usize, String)> {
    let mut runs: Vec<(usize, String)> = Vec::new();
    for of in buckets {
        match runs.last_mut() {
            Some((count, last)) if *last == of => *count += 1,
            _ => runs.push((1, of)),
        }
    }
    runs
}

pub(super) fn function_name(function: HashFunction) -> &'static str {
    match function {
        HashFunction::Postgres => "postgres",
        HashFunction::Xxh3 => "xxh3",
    }
}

fn read_text(key_type: KeyType, text: &str) -> Option<Key> {
    key_type.from_text(text.as_bytes()).ok()
}

/// As form 2 wrote keys. Numbers of type numeric it wrote as nothing reads them.
fn read_token(key_type: KeyType, text: &str) -> Option<Key> {
    let since_2000 = |unit: &str| text.strip_suffix(unit)?.parse::<i64>().ok();
    match key_type {
        KeyType::Text => {
            let inner = text.strip_prefix('\'')?.strip_suffix('\'')?;
            read_text(key_type, inner)
        }
        KeyType::Date => {
            let days = since_2000(" days after 2000-01-01")?;
            Some(Key::Date(i32::try_from(days).ok()?))
        }
        KeyType::Timestamptz => {
            let micros = since_2000(" microseconds after 2000-01-01")?;
            Some(Key::Timestamptz(micros))
        }
        KeyType::Bytea => read_text(key_type, &format!("\\x{text}")),
        KeyType::Numeric => None,
        KeyType::Bigint | KeyType::Uuid => read_text(key_type, text),
    }
}
