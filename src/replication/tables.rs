//! The tables that a stream of changes is followed for: what a row's columns are, and which destinations a row goes to.
//!
//! What must stay true: a row goes where its key says, and nowhere when nobody is given the key; a table that is not as it
//! was planned is noticed before one of its rows is looked at.

use crate::{
    catalog::{
        hash::{HashFunction, bucket},
        key::{Key, KeyType},
        moving::{KeySet, Part},
    },
    wire::{
        pgoutput::Relation,
        types::{BPCHAR, Format, INT2, INT4, INT8, NUMERIC, Oid},
    },
};

/// A table of which rows are brought somewhere.
#[derive(Clone, Debug)]
pub struct Table {
    pub schema: String,
    pub name: String,
    /// All that are streamed, in the table's order.
    pub columns: Vec<Column>,
    /// Places of the primary key's columns, in the key's order.
    pub key: Vec<usize>,
    pub goes: Goes,
}

/// A column as source and destinations have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    pub name: String,
    /// As `format_type` writes it.
    pub type_name: String,
    /// On the source.
    pub oid: Oid,
    /// On the source.
    pub type_modifier: i32,
    /// On the source; quoted, with its schema; none of a type without.
    pub collation: Option<String>,
    /// Its numbers are the server's, which may be so on a destination that no UPDATE sets it there.
    pub identity: bool,
}

/// Where rows go, by the destinations' places.
#[derive(Clone, Debug)]
pub enum Goes {
    ByKey(Routes),
    /// All rows.
    Everywhere(Vec<usize>),
}

/// Where the rows of a sharded table go.
#[derive(Clone, Debug)]
pub struct Routes {
    /// The place of the shard key's column.
    pub column: usize,
    key_type: KeyType,
    sets: Vec<(KeySet, usize)>,
    /// By bucket, where nothing but buckets is moved.
    buckets: Option<Vec<Option<usize>>>,
}

/// Which of its columns a table has in a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Age {
    /// It may be from before the last of them were added.
    Earlier,
    /// All of them.
    Latest,
}

/// A table is not as it was planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Changed {
    #[error("its columns are {found}, where {planned} were planned")]
    Columns { planned: String, found: String },
    /// It has those that were planned, and more behind them.
    #[error("its columns are {found}, where {planned} were planned")]
    More { planned: String, found: String },
    /// As the stream calls it, which streams those that were planned alone.
    #[error("the stream has it as {0}, which was not planned")]
    Name(String),
    /// The column that is missing in it.
    #[error("its replica identity does not have {0}")]
    Identity(String),
}

/// A shard key that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the shard key is not understood")]
pub struct NoKey;

impl Table {
    /// The name as SQL.
    #[must_use]
    pub fn sql(&self) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.name))
    }

    /// `schema.name`, for people.
    #[must_use]
    pub fn plain(&self) -> String {
        format!("{}.{}", self.schema, self.name)
    }

    /// Whether rows of it go to a destination, by its place.
    #[must_use]
    pub fn goes_to(&self, destination: usize) -> bool {
        match &self.goes {
            Goes::ByKey(routes) => routes.sets(destination).next().is_some(),
            Goes::Everywhere(places) => places.contains(&destination),
        }
    }

    /// Whether the stream's rows are those that were planned.
    ///
    /// # Errors
    /// [`Changed`].
    pub fn check(&self, relation: &Relation<'_>, age: Age) -> Result<(), Changed> {
        let planned = self.columns.iter();
        let planned = planned.map(|it| (it.name.as_bytes(), it.oid, it.type_modifier));
        let found = relation.columns();
        let found = found.map(|it| (it.name, it.oid, it.type_modifier));
        let alike = planned.zip(found).all(|(planned, found)| planned == found);
        let (planned, found) = (self.columns.len(), relation.columns().count());
        if !alike || found != planned && (found > planned || age == Age::Latest) {
            let names: Vec<&str> = self.columns.iter().map(|it| it.name.as_str()).collect();
            let told: Vec<_> = relation
                .columns()
                .map(|it| String::from_utf8_lossy(it.name).into_owned())
                .collect();
            let (names, told) = (names.join(", "), told.join(", "));
            return Err(if alike && found > planned {
                Changed::More {
                    planned: names,
                    found: told,
                }
            } else {
                Changed::Columns {
                    planned: names,
                    found: told,
                }
            });
        }
        let shard_key = match &self.goes {
            Goes::ByKey(routes) => Some(routes.column),
            Goes::Everywhere(_) => None,
        };
        for (at, column) in self.columns.iter().enumerate() {
            let needed = self.key.contains(&at) || shard_key == Some(at);
            let told = relation.columns().nth(at);
            if needed && !told.is_some_and(|told| told.in_key) {
                return Err(Changed::Identity(column.name.clone()));
            }
        }
        Ok(())
    }
}

impl Routes {
    /// Of the sets of keys that destinations are given.
    #[must_use]
    pub fn new(column: usize, key_type: KeyType, sets: Vec<(KeySet, usize)>) -> Self {
        let buckets = buckets(&sets);
        Self {
            column,
            key_type,
            sets,
            buckets,
        }
    }

    /// The destination of a row with this key.
    ///
    /// # Errors
    /// [`NoKey`].
    pub fn of(
        &self,
        oid: Oid,
        format: Format,
        value: Option<&[u8]>,
    ) -> Result<Option<usize>, NoKey> {
        // No owner has rows without a key.
        let Some(value) = value else {
            return Ok(None);
        };
        // Blanks at its end are no part of it.
        let value = match oid {
            BPCHAR => {
                let end = value.iter().rposition(|byte| *byte != b' ');
                &value[..end.map_or(0, |last| last + 1)]
            }
            _ => value,
        };
        let key = self
            .key_type
            .from_parameter(declared(oid), format, value)
            .map_err(|_error| NoKey)?;
        Ok(self.of_key(&key))
    }

    /// The sets of keys that a destination is given.
    pub fn sets(&self, destination: usize) -> impl Iterator<Item = &KeySet> {
        let here = self.sets.iter().filter(move |(_, to)| *to == destination);
        here.map(|(keys, _)| keys)
    }

    /// The type of the keys.
    #[must_use]
    pub fn key_type(&self) -> KeyType {
        self.key_type
    }

    fn of_key(&self, key: &Key) -> Option<usize> {
        if let Some(buckets) = &self.buckets {
            let count = u32::try_from(buckets.len()).unwrap_or(1);
            let at = bucket(HashFunction::Postgres, count, key);
            return buckets.get(at as usize).copied().flatten();
        }
        let found = self.sets.iter().find(|(keys, _)| keys.contains(key));
        found.map(|(_, to)| *to)
    }
}

/// A type that keys have; one derived from it (a domain) is read as what the key's type is.
fn declared(oid: Oid) -> Oid {
    // bpchar and the like have the form of text; only numbers differ from one another.
    if [INT2, INT4, INT8, NUMERIC].contains(&oid) {
        oid
    } else {
        0
    }
}

/// The destination of each bucket.
fn buckets(sets: &[(KeySet, usize)]) -> Option<Vec<Option<usize>>> {
    let mut by_bucket: Vec<Option<usize>> = Vec::new();
    for (keys, to) in sets {
        let Part::Buckets { of, runs } = &keys.part else {
            return None;
        };
        if !keys.with.is_empty() || !keys.without.is_empty() {
            return None;
        }
        if by_bucket.is_empty() {
            by_bucket = vec![None; *of as usize];
        } else if by_bucket.len() != *of as usize {
            return None;
        }
        for at in runs.iter().flat_map(|(from, to)| *from..*to) {
            *by_bucket.get_mut(at as usize)? = Some(*to);
        }
    }
    (!by_bucket.is_empty()).then_some(by_bucket)
}

/// A name as SQL has it.
#[must_use]
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buckets_of(runs: &[(u32, u32)]) -> KeySet {
        KeySet::of(Part::Buckets {
            of: 64,
            runs: runs.to_vec(),
        })
    }

    #[test]
    fn a_row_goes_to_the_destination_that_is_given_its_key() {
        let sets = vec![
            (buckets_of(&[(0, 9), (40, 64)]), 1),
            (buckets_of(&[(9, 20)]), 0),
        ];
        let quick = Routes::new(0, KeyType::Bigint, sets.clone());
        assert!(quick.buckets.is_some());
        let mut met = [false; 3];
        for number in 0..500_i64 {
            let key = Key::Bigint(number);
            let slow = sets.iter().find(|(keys, _)| keys.contains(&key));
            let slow = slow.map(|(_, to)| *to);
            let text = number.to_string();
            assert_eq!(
                quick.of(INT8, Format::Text, Some(text.as_bytes())),
                Ok(slow)
            );
            let short = i32::try_from(number).unwrap().to_be_bytes();
            assert_eq!(quick.of(INT4, Format::Binary, Some(&short)), Ok(slow));
            met[slow.map_or(2, |to| to)] = true;
        }
        assert_eq!(met, [true; 3]);
        assert_eq!(quick.of(INT8, Format::Text, None), Ok(None));
        assert_eq!(quick.of(INT8, Format::Text, Some(b"x")), Err(NoKey));
    }

    /// A relation of these columns, each an `int8`, of which the first is its identity.
    fn relation(columns: &[&str]) -> Vec<u8> {
        let mut bytes = b"R\0\0\0\x07public\0t\0d".to_vec();
        bytes.extend(u16::try_from(columns.len()).unwrap().to_be_bytes());
        for (at, name) in columns.iter().enumerate() {
            bytes.push(u8::from(at == 0));
            bytes.extend(name.as_bytes());
            bytes.push(0);
            bytes.extend(INT8.to_be_bytes());
            bytes.extend((-1_i32).to_be_bytes());
        }
        bytes
    }

    fn checked(planned: &[&str], found: &[&str], age: Age) -> Result<(), Changed> {
        let column = |name: &&str| Column {
            name: (*name).to_owned(),
            type_name: "bigint".to_owned(),
            oid: INT8,
            type_modifier: -1,
            collation: None,
            identity: false,
        };
        let table = Table {
            schema: "public".to_owned(),
            name: "t".to_owned(),
            columns: planned.iter().map(column).collect(),
            key: vec![0],
            goes: Goes::ByKey(Routes::new(0, KeyType::Bigint, Vec::new())),
        };
        let bytes = relation(found);
        let Ok(crate::wire::pgoutput::Change::Relation(relation)) =
            crate::wire::pgoutput::Change::decode(&bytes)
        else {
            panic!("it is a relation");
        };
        table.check(&relation, age)
    }

    #[test]
    fn what_was_added_last_may_lack_in_earlier_messages_alone() {
        let planned = ["k", "n", "x"];
        for age in [Age::Earlier, Age::Latest] {
            assert_eq!(checked(&planned, &planned, age), Ok(()));
            let more = checked(&planned, &["k", "n", "x", "y"], age);
            assert!(matches!(more, Err(Changed::More { .. })), "{more:?}");
            for other in [
                &["k", "x"][..],
                &["n", "k", "x"],
                &["k", "y", "x", "n"],
                &["k", "n", "y"],
            ] {
                let other = checked(&planned, other, age);
                assert!(matches!(other, Err(Changed::Columns { .. })), "{other:?}");
            }
        }
        assert_eq!(checked(&planned, &["k", "n"], Age::Earlier), Ok(()));
        let dropped = checked(&planned, &["k", "n"], Age::Latest);
        assert!(
            matches!(dropped, Err(Changed::Columns { .. })),
            "{dropped:?}"
        );
        // Without its key nobody knows whose a row is.
        let none = checked(&planned, &[], Age::Earlier);
        assert_eq!(none, Err(Changed::Identity("k".to_owned())));
    }

    #[test]
    fn single_keys_count() {
        let keys = KeySet {
            part: Part::Buckets {
                of: 64,
                runs: vec![(0, 64)],
            },
            with: Vec::new(),
            without: vec![Key::Bigint(7)],
        };
        let routes = Routes::new(0, KeyType::Bigint, vec![(keys, 3)]);
        assert_eq!(routes.of(INT8, Format::Text, Some(b"6")), Ok(Some(3)));
        assert_eq!(routes.of(INT8, Format::Text, Some(b"7")), Ok(None));
    }
}
