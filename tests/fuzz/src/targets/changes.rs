//! What a server streams of its WAL: a message is understood wholly or not at all, and every value lies within it.

use crate::wire::{
    pgoutput::{Change, Old, Tuple, Value},
    replication::Streamed,
};

/// The target: a CopyData's body.
pub fn check(bytes: &[u8]) {
    let Ok(streamed) = Streamed::decode(bytes) else {
        return;
    };
    let Streamed::Data { data, .. } = streamed else {
        return;
    };
    let Ok(change) = Change::decode(data) else {
        return;
    };
    let (_, shorter) = data.split_last().expect("a tag at least");
    assert!(Change::decode(shorter).is_err(), "a part is a whole");
    let size = match change {
        Change::Relation(relation) => {
            let names = relation.columns().map(|column| column.name.len() + 10);
            names.sum::<usize>() + relation.schema.len() + relation.name.len() + 10
        }
        Change::Insert { new, .. } => size(new) + 6,
        Change::Update { old, new, .. } => old.map_or(0, |old| size_of_old(old) + 1) + size(new) + 6,
        Change::Delete { old, .. } => size_of_old(old) + 6,
        Change::Truncate { relations, .. } => relations.iter().len() * 4 + 6,
        Change::Message { prefix, content, .. } => prefix.len() + content.len() + 15,
        Change::Begin { .. } => 21,
        Change::Commit { .. } => 26,
        Change::Origin { name, .. } => name.len() + 10,
        Change::Type { schema, name, .. } => schema.len() + name.len() + 7,
    };
    assert_eq!(size, data.len(), "{change:?}");
}

fn size_of_old(old: Old<'_>) -> usize {
    match old {
        Old::Key(tuple) | Old::Row(tuple) => size(tuple),
    }
}

/// The bytes of a tuple, from its values.
fn size(tuple: Tuple<'_>) -> usize {
    assert_eq!(tuple.values().len(), tuple.len());
    let size = |value| match value {
        Value::Null | Value::Unchanged => 1,
        Value::Text(bytes) | Value::Binary(bytes) => bytes.len() + 5,
    };
    2 + tuple.values().map(size).sum::<usize>()
}
