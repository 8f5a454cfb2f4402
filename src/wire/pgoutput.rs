//! What PostgreSQL's output plugin `pgoutput` writes, version 1 of its protocol with logical messages: views over bytes.
//! Manual, "Logical Replication Message Formats"; `src/backend/replication/logical/proto.c`.
//!
//! What must stay true: a value that was not sent (unchanged TOAST) is told apart from NULL; a message that is not
//! understood wholly is an error, never skipped.

use super::{
    frame::{Body, DecodeError},
    replication::{Lsn, lsn},
    types::Oid,
};

/// One message of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// `B`: what follows up to [`Change::Commit`] is one transaction.
    Begin {
        /// Where its commit record stands.
        commit: Lsn,
        /// The lower 32 bits of its top-level transaction id.
        xid: u32,
    },
    /// `C`.
    Commit {
        /// Where the commit record stands.
        commit: Lsn,
        /// Where the WAL goes on behind it: what feedback confirms.
        end: Lsn,
    },
    /// `O`: it was replicated from there.
    Origin { commit: Lsn, name: &'a [u8] },
    /// `R`: comes before the first row of a relation, and again after it has changed.
    Relation(Relation<'a>),
    /// `Y`: the name of a type that is not PostgreSQL's own.
    Type {
        oid: Oid,
        schema: &'a [u8],
        name: &'a [u8],
    },
    /// `I`.
    Insert { relation: Oid, new: Tuple<'a> },
    /// `U`.
    Update {
        relation: Oid,
        old: Option<Old<'a>>,
        new: Tuple<'a>,
    },
    /// `D`.
    Delete { relation: Oid, old: Old<'a> },
    /// `T`.
    Truncate {
        relations: Oids<'a>,
        cascade: bool,
        restart_identity: bool,
    },
    /// `M`: `pg_logical_emit_message`.
    Message {
        /// As part of its transaction, or at once.
        transactional: bool,
        at: Lsn,
        prefix: &'a [u8],
        content: &'a [u8],
    },
}

/// A relation's name and columns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relation<'a> {
    pub oid: Oid,
    /// Empty for `pg_catalog`.
    pub schema: &'a [u8],
    pub name: &'a [u8],
    /// `pg_class.relreplident`: `d`, `n`, `f` or `i`.
    pub identity: u8,
    count: u16,
    columns: &'a [u8],
}

/// A column that is published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Column<'a> {
    /// Part of the replica identity.
    pub in_key: bool,
    pub name: &'a [u8],
    pub oid: Oid,
    pub type_modifier: i32,
}

impl<'a> Relation<'a> {
    /// The columns, in the order of a tuple's values.
    pub fn columns(&self) -> impl ExactSizeIterator<Item = Column<'a>> + use<'a> {
        let mut body = Body::new(self.columns);
        // They were read once already.
        (0..self.count).map(move |_| {
            column(&mut body).unwrap_or(Column {
                in_key: false,
                name: b"",
                oid: 0,
                type_modifier: -1,
            })
        })
    }
}

/// What is told of a row as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Old<'a> {
    /// `K`: the columns of its replica identity, all others NULL.
    Key(Tuple<'a>),
    /// `O`: all columns, with REPLICA IDENTITY FULL.
    Row(Tuple<'a>),
}

/// The values of a row, one for each published column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple<'a> {
    count: u16,
    values: &'a [u8],
}

/// One value of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value<'a> {
    Null,
    /// Not sent, since it is out of line and has not changed.
    Unchanged,
    Text(&'a [u8]),
    Binary(&'a [u8]),
}

impl<'a> Tuple<'a> {
    /// How many values it has.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::from(self.count)
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The values in the order of [`Relation::columns`].
    pub fn values(&self) -> impl ExactSizeIterator<Item = Value<'a>> + use<'a> {
        let mut body = Body::new(self.values);
        // They were read once already.
        (0..self.count).map(move |_| value(&mut body).unwrap_or(Value::Null))
    }
}

/// The relations of a TRUNCATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Oids<'a>(&'a [u8]);

impl Oids<'_> {
    /// Their numbers.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Oid> {
        let oids = self.0.chunks_exact(4);
        oids.map(|oid| Oid::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]))
    }
}

impl<'a> Change<'a> {
    /// Reads the data of one [`super::replication::Streamed::Data`].
    ///
    /// # Errors
    /// When it is none of these messages, wholly.
    pub fn decode(data: &'a [u8]) -> Result<Self, DecodeError> {
        let mut body = Body::new(data);
        let change = match body.byte()? {
            b'B' => begin(&mut body)?,
            b'C' => commit(&mut body)?,
            b'O' => Self::Origin {
                commit: lsn(&mut body)?,
                name: body.cstr()?,
            },
            b'R' => Self::Relation(relation(&mut body)?),
            b'Y' => Self::Type {
                oid: body.u32()?,
                schema: body.cstr()?,
                name: body.cstr()?,
            },
            b'I' => Self::Insert {
                relation: body.u32()?,
                new: new(&mut body)?,
            },
            b'U' => update(&mut body)?,
            b'D' => {
                let relation = body.u32()?;
                let old = match body.byte()? {
                    b'K' => Old::Key(tuple(&mut body)?),
                    b'O' => Old::Row(tuple(&mut body)?),
                    _ => return Err(DecodeError),
                };
                Self::Delete { relation, old }
            }
            b'T' => truncate(&mut body)?,
            b'M' => message(&mut body)?,
            _ => return Err(DecodeError),
        };
        body.end()?;
        Ok(change)
    }
}

fn begin<'a>(body: &mut Body<'a>) -> Result<Change<'a>, DecodeError> {
    let commit = lsn(body)?;
    body.bytes(8)?; // when it was committed
    let xid = body.u32()?;
    Ok(Change::Begin { commit, xid })
}

fn commit<'a>(body: &mut Body<'a>) -> Result<Change<'a>, DecodeError> {
    if body.byte()? != 0 {
        return Err(DecodeError); // no flags are known
    }
    let (commit, end) = (lsn(body)?, lsn(body)?);
    body.bytes(8)?;
    Ok(Change::Commit { commit, end })
}

fn relation<'a>(body: &mut Body<'a>) -> Result<Relation<'a>, DecodeError> {
    let (oid, schema, name) = (body.u32()?, body.cstr()?, body.cstr()?);
    let (identity, count) = (body.byte()?, body.u16()?);
    let columns = body.rest();
    for _ in 0..count {
        column(body)?;
    }
    let columns = &columns[..columns.len() - body.rest().len()];
    Ok(Relation {
        oid,
        schema,
        name,
        identity,
        count,
        columns,
    })
}

fn column<'a>(body: &mut Body<'a>) -> Result<Column<'a>, DecodeError> {
    let in_key = match body.byte()? {
        0 => false,
        1 => true,
        _ => return Err(DecodeError),
    };
    Ok(Column {
        in_key,
        name: body.cstr()?,
        oid: body.u32()?,
        type_modifier: body.i32()?,
    })
}

fn update<'a>(body: &mut Body<'a>) -> Result<Change<'a>, DecodeError> {
    let relation = body.u32()?;
    let (old, new) = match body.byte()? {
        b'K' => (Some(Old::Key(tuple(body)?)), new(body)?),
        b'O' => (Some(Old::Row(tuple(body)?)), new(body)?),
        b'N' => (None, tuple(body)?),
        _ => return Err(DecodeError),
    };
    Ok(Change::Update { relation, old, new })
}

fn new<'a>(body: &mut Body<'a>) -> Result<Tuple<'a>, DecodeError> {
    match body.byte()? {
        b'N' => tuple(body),
        _ => Err(DecodeError),
    }
}

fn tuple<'a>(body: &mut Body<'a>) -> Result<Tuple<'a>, DecodeError> {
    let count = body.u16()?;
    let values = body.rest();
    for _ in 0..count {
        value(body)?;
    }
    let values = &values[..values.len() - body.rest().len()];
    Ok(Tuple { count, values })
}

fn value<'a>(body: &mut Body<'a>) -> Result<Value<'a>, DecodeError> {
    let kind = body.byte()?;
    let sized = |body: &mut Body<'a>| {
        let length = usize::try_from(body.u32()?).map_err(|_large| DecodeError)?;
        body.bytes(length)
    };
    match kind {
        b'n' => Ok(Value::Null),
        b'u' => Ok(Value::Unchanged),
        b't' => Ok(Value::Text(sized(body)?)),
        b'b' => Ok(Value::Binary(sized(body)?)),
        _ => Err(DecodeError),
    }
}

fn truncate<'a>(body: &mut Body<'a>) -> Result<Change<'a>, DecodeError> {
    let count = usize::try_from(body.u32()?).map_err(|_large| DecodeError)?;
    let options = body.byte()?;
    if options > 3 {
        return Err(DecodeError);
    }
    let relations = Oids(body.bytes(count.checked_mul(4).ok_or(DecodeError)?)?);
    Ok(Change::Truncate {
        relations,
        cascade: options & 1 != 0,
        restart_identity: options & 2 != 0,
    })
}

fn message<'a>(body: &mut Body<'a>) -> Result<Change<'a>, DecodeError> {
    let transactional = match body.byte()? {
        0 => false,
        1 => true,
        _ => return Err(DecodeError),
    };
    let (at, prefix) = (lsn(body)?, body.cstr()?);
    let length = usize::try_from(body.u32()?).map_err(|_large| DecodeError)?;
    let content = body.bytes(length)?;
    Ok(Change::Message {
        transactional,
        at,
        prefix,
        content,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A message's bytes.
    #[derive(Default)]
    struct Bytes(Vec<u8>);

    impl Bytes {
        fn raw(mut self, bytes: &[u8]) -> Self {
            self.0.extend_from_slice(bytes);
            self
        }

        fn long(self, number: u64) -> Self {
            self.raw(&number.to_be_bytes())
        }

        fn int(self, number: u32) -> Self {
            self.raw(&number.to_be_bytes())
        }

        fn short(self, number: u16) -> Self {
            self.raw(&number.to_be_bytes())
        }
    }

    fn message(tag: u8) -> Bytes {
        Bytes(vec![tag])
    }

    /// Every beginning of a message, and a message with a byte more, is refused.
    fn only_whole(bytes: &[u8]) {
        for end in 0..bytes.len() {
            assert_eq!(
                Change::decode(&bytes[..end]),
                Err(DecodeError),
                "{end} bytes"
            );
        }
        let longer = [bytes, b"\0"].concat();
        assert_eq!(Change::decode(&longer), Err(DecodeError));
    }

    #[test]
    fn a_transaction_begins_and_ends() {
        let begun = message(b'B').long(77).long(1).int(4711).0;
        let (commit, xid) = (Lsn(77), 4711);
        assert_eq!(Change::decode(&begun), Ok(Change::Begin { commit, xid }));
        only_whole(&begun);
        let ended = message(b'C').raw(&[0]).long(77).long(99).long(1).0;
        let end = Lsn(99);
        assert_eq!(Change::decode(&ended), Ok(Change::Commit { commit, end }));
        only_whole(&ended);
        let flagged = message(b'C').raw(&[1]).long(77).long(99).long(1).0;
        assert_eq!(Change::decode(&flagged), Err(DecodeError));
    }

    #[test]
    fn a_relation_tells_its_columns() {
        let bytes = message(b'R').int(16_385).raw(b"public\0t\0d").short(2);
        let bytes = bytes.raw(&[1]).raw(b"id\0").int(20).raw(&[0xff; 4]);
        let bytes = bytes.raw(&[0]).raw(b"note\0").int(1043).int(24).0;
        let Ok(Change::Relation(relation)) = Change::decode(&bytes) else {
            panic!("no relation")
        };
        assert_eq!(
            (relation.schema, relation.name),
            (&b"public"[..], &b"t"[..])
        );
        assert_eq!((relation.oid, relation.identity), (16_385, b'd'));
        let columns: Vec<Column<'_>> = relation.columns().collect();
        let column = |in_key, name: &'static str, oid, type_modifier| Column {
            in_key,
            name: name.as_bytes(),
            oid,
            type_modifier,
        };
        let expected = [column(true, "id", 20, -1), column(false, "note", 1043, 24)];
        assert_eq!(columns, expected);
        only_whole(&bytes);
    }

    #[test]
    fn what_was_not_sent_is_not_null() {
        let bytes = message(b'U').int(5).raw(b"K").short(2);
        let bytes = bytes.raw(b"t").int(1).raw(b"7").raw(b"n");
        let bytes = bytes.raw(b"N").short(4).raw(b"b").int(2).raw(b"\0\x08");
        let bytes = bytes.raw(b"u").raw(b"n").raw(b"t").int(0).0;
        let Ok(Change::Update { relation, old, new }) = Change::decode(&bytes) else {
            panic!("no update")
        };
        assert_eq!(relation, 5);
        let Some(Old::Key(key)) = old else {
            panic!("{old:?}")
        };
        assert_eq!((key.len(), key.is_empty()), (2, false));
        assert_eq!(
            key.values().collect::<Vec<_>>(),
            [Value::Text(b"7"), Value::Null]
        );
        let values: Vec<Value<'_>> = new.values().collect();
        let expected = [
            Value::Binary(b"\0\x08"),
            Value::Unchanged,
            Value::Null,
            Value::Text(b""),
        ];
        assert_eq!(values, expected);
        only_whole(&bytes);
    }

    #[test]
    fn rows_come_and_go() {
        let row = |bytes: Bytes| bytes.short(1).raw(b"t").int(1).raw(b"1");
        let inserted = row(message(b'I').int(5).raw(b"N")).0;
        assert!(matches!(
            Change::decode(&inserted),
            Ok(Change::Insert { relation: 5, .. })
        ));
        only_whole(&inserted);
        let updated = row(message(b'U').int(5).raw(b"N")).0;
        assert!(matches!(
            Change::decode(&updated),
            Ok(Change::Update { old: None, .. })
        ));
        only_whole(&updated);
        let replaced = row(row(message(b'U').int(5).raw(b"O")).raw(b"N")).0;
        let old = |change| match change {
            Ok(Change::Update { old, .. }) => old,
            _ => None,
        };
        assert!(matches!(old(Change::decode(&replaced)), Some(Old::Row(_))));
        for (kind, is_key) in [(b"K", true), (b"O", false)] {
            let deleted = row(message(b'D').int(5).raw(kind)).0;
            let Ok(Change::Delete { old, .. }) = Change::decode(&deleted) else {
                panic!("no delete")
            };
            assert_eq!(matches!(old, Old::Key(_)), is_key);
            only_whole(&deleted);
        }
        let neither = row(message(b'D').int(5).raw(b"N")).0;
        assert_eq!(Change::decode(&neither), Err(DecodeError));
    }

    #[test]
    fn tables_are_emptied_together() {
        let bytes = message(b'T').int(2).raw(&[3]).int(5).int(6).0;
        let Ok(Change::Truncate {
            relations,
            cascade,
            restart_identity,
        }) = Change::decode(&bytes)
        else {
            panic!("no truncate")
        };
        assert_eq!(relations.iter().collect::<Vec<_>>(), [5, 6]);
        assert!(cascade && restart_identity);
        only_whole(&bytes);
        let too_many = message(b'T').int(u32::MAX).raw(&[0]).int(5).0;
        assert_eq!(Change::decode(&too_many), Err(DecodeError));
        let unknown = message(b'T').int(0).raw(&[4]).0;
        assert_eq!(Change::decode(&unknown), Err(DecodeError));
    }

    #[test]
    fn messages_origins_and_types_are_told() {
        let bytes = message(b'M')
            .raw(&[1])
            .long(8)
            .raw(b"shardway\0")
            .int(5)
            .raw(b"fence")
            .0;
        let expected = Change::Message {
            transactional: true,
            at: Lsn(8),
            prefix: b"shardway",
            content: b"fence",
        };
        assert_eq!(Change::decode(&bytes), Ok(expected));
        only_whole(&bytes);
        let bytes = message(b'O').long(8).raw(b"there\0").0;
        let (commit, name) = (Lsn(8), &b"there"[..]);
        assert_eq!(Change::decode(&bytes), Ok(Change::Origin { commit, name }));
        let bytes = message(b'Y').int(16_400).raw(b"public\0mood\0").0;
        let (oid, schema, name) = (16_400, &b"public"[..], &b"mood"[..]);
        assert_eq!(
            Change::decode(&bytes),
            Ok(Change::Type { oid, schema, name })
        );
        only_whole(&bytes);
    }

    #[test]
    fn what_later_versions_send_is_not_understood() {
        for tag in b"SEcAbPKrp\0" {
            assert_eq!(Change::decode(&[*tag; 30]), Err(DecodeError));
        }
    }
}
