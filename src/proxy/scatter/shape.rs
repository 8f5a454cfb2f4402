//! What shards say of their columns: whether they are the same, what the client is told of them, and in which formats
//! they are asked for. Pure.

use super::{
    super::{
        gather::Bound,
        prepared::{Fit, Told},
    },
    Scattered,
};
use crate::{
    catalog::oids::{Holds, Oids},
    merge::key::{Key, Kind},
    pool::backend as pool,
    wire::{
        frame::Body,
        types::{Format, Oid},
    },
};

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u32 = 16384;
/// `record` and `record[]`: their binary values hold the numbers of their columns' types.
const RECORDS: [Oid; 2] = [2249, 2287];

/// What the shards' columns, which are the same, mean for the answer.
pub(super) struct Shape {
    /// RowDescription's body, without the keys: the home shard's first, then the others'.
    columns: Vec<Vec<u8>>,
    /// How many columns that are.
    pub(super) count: u16,
    pub(super) keys: Vec<Key>,
    /// Bind's, with the formats of the keys.
    pub(super) tail: Vec<u8>,
}

/// A column of a RowDescription.
struct Column<'a> {
    name: &'a [u8],
    oid: Oid,
    modifier: u32,
    /// The whole entry.
    bytes: &'a [u8],
}

impl Shape {
    /// `None`: the answers cannot be put together here.
    pub(super) fn of(
        described: &[Vec<u8>],
        home: usize,
        scattered: &Scattered,
        bound: &Bound<'_>,
        oids: Option<&Oids>,
    ) -> Option<Self> {
        let columns = described.iter().map(|body| columns(body));
        let all = columns.collect::<Option<Vec<_>>>()?;
        let own = all.get(home)?;
        let visible = own.len().checked_sub(scattered.keys.len())?;
        let formats = Formats::of(bound, visible)?;
        for other in &all {
            if other.len() != own.len() {
                return None;
            }
            for (at, (one, other)) in own.iter().zip(other).enumerate() {
                let same = one.name == other.name && one.modifier == other.modifier;
                let of_database = one.oid >= FIRST_OWN_OID && other.oid >= FIRST_OWN_OID;
                let type_agrees = one.oid == other.oid || of_database;
                let in_binary = at < visible && formats.is_binary(at);
                // Arrays and rows of a database's own types hold those types' numbers.
                let numbered = match oids {
                    Some(oids) => oids.holds(one.oid) != Holds::Nothing,
                    None => one.oid >= FIRST_OWN_OID || RECORDS.contains(&one.oid),
                };
                if !same || !type_agrees || (in_binary && numbered) {
                    return None;
                }
            }
        }
        let keys = own[visible..]
            .iter()
            .zip(&scattered.keys)
            .map(|(column, key)| {
                Some(Key {
                    kind: Kind::of(column.oid, key.text)?,
                    direction: key.direction,
                    nulls: key.nulls,
                })
            });
        let keys = keys.collect::<Option<Vec<Key>>>()?;
        let count = u16::try_from(visible).ok()?;
        let without_keys = |columns: &[Column<'_>]| {
            let mut body = count.to_be_bytes().to_vec();
            for (at, column) in columns[..visible].iter().enumerate() {
                let (entry, _format) = column.bytes.split_at(column.bytes.len() - 2);
                body.extend_from_slice(entry);
                body.extend_from_slice(&[0, u8::from(formats.is_binary(at))]);
            }
            body
        };
        let mut columns: Vec<_> = all.iter().map(|columns| without_keys(columns)).collect();
        columns.swap(0, home);
        let tail = formats.tail(bound, visible, keys.len());
        Some(Self {
            columns,
            count,
            keys,
            tail,
        })
    }

    /// The columns as the client knows them already, else the home shard's; `None`: it knows others.
    pub(super) fn as_told(&self, told: &Told) -> Option<Vec<u8>> {
        let knows = |columns: &&Vec<u8>| {
            let digest = told.columns(Some(columns)).ok();
            let shape = pool::Shape {
                types: None,
                columns: digest,
            };
            told.fit(shape) != Fit::Differs
        };
        let mut columns = self.columns.iter();
        let found = if told.has_columns() {
            columns.find(knows)
        } else {
            columns.next()
        };
        found.cloned()
    }
}

/// The formats of a RowDescription's columns.
pub(in crate::proxy) fn formats_of(body: &[u8]) -> Vec<Format> {
    let columns = columns(body).unwrap_or_default();
    let binary = |column: &Column<'_>| column.bytes.ends_with(&[0, 1]);
    let of = |column| {
        if binary(column) {
            Format::Binary
        } else {
            Format::Text
        }
    };
    columns.iter().map(of).collect()
}

/// A RowDescription's body with other formats.
pub(in crate::proxy) fn in_formats(body: &[u8], formats: &[Format]) -> Vec<u8> {
    let mut made = body.get(..2).unwrap_or_default().to_vec();
    for (column, format) in columns(body).unwrap_or_default().iter().zip(formats) {
        made.extend_from_slice(&column.bytes[..column.bytes.len() - 2]);
        made.extend_from_slice(&[0, u8::from(*format == Format::Binary)]);
    }
    made
}

/// The columns of a RowDescription's body.
fn columns(body: &[u8]) -> Option<Vec<Column<'_>>> {
    let mut body = Body::new(body);
    let count = body.u16().ok()?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let start = body.rest();
        let name = body.cstr().ok()?;
        let _table_and_number = body.bytes(6).ok()?;
        let oid = body.u32().ok()?;
        let _length = body.u16().ok()?;
        let modifier = body.u32().ok()?;
        let _format = body.u16().ok()?;
        columns.push(Column {
            name,
            oid,
            modifier,
            bytes: &start[..start.len() - body.rest().len()],
        });
    }
    Some(columns)
}

/// The formats that a client asks its columns in.
struct Formats<'a> {
    /// As they stand in Bind: none, one for all, or one for each.
    codes: &'a [u8],
}

impl<'a> Formats<'a> {
    /// `None`: there are neither none, one, nor as many as columns, which PostgreSQL refuses.
    fn of(bound: &Bound<'a>, visible: usize) -> Option<Self> {
        let codes = bound
            .tail
            .and_then(|bind| bind.raw_results().get(2..))
            .unwrap_or_default();
        let count = codes.len() / 2;
        (count <= 1 || count == visible).then_some(Self { codes })
    }

    fn is_binary(&self, at: usize) -> bool {
        let at = if self.codes.len() == 2 { 0 } else { at };
        self.codes.get(at * 2..at * 2 + 2) == Some(&[0, 1])
    }

    /// Bind's tail, where the keys behind the client's columns are in binary.
    fn tail(&self, bound: &Bound<'_>, visible: usize, keys: usize) -> Vec<u8> {
        let mut tail = match bound.tail {
            Some(bind) => bind.tail_for_text(),
            None => vec![0; 6],
        };
        tail.truncate(tail.len() - 2);
        if keys == 0 {
            let count = u16::try_from(self.codes.len() / 2).unwrap_or(0);
            tail.extend_from_slice(&count.to_be_bytes());
            tail.extend_from_slice(self.codes);
            return tail;
        }
        let count = u16::try_from(visible + keys).unwrap_or(u16::MAX);
        tail.extend_from_slice(&count.to_be_bytes());
        for at in 0..visible + keys {
            let binary = at >= visible || self.is_binary(at);
            tail.extend_from_slice(&[0, u8::from(binary)]);
        }
        tail
    }
}
