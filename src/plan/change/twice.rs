//! What a schema change does to tables whose rows are on two shards while they move.
//!
//! What must stay true: whether a change is harmless there is said by what it is called, or asked of a shard.

use super::sql_name;
use crate::sql::{
    change::{Change, Meanwhile, What},
    statement::quoted,
};

/// What a change does to tables whose rows are on two shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Twice {
    pub what: Meanwhile,
    /// Asks a shard whether constraints that it drops are of another kind than CHECK and foreign keys, or an index is one by
    /// which rows are found; it answers `t` then.
    pub asks: Option<String>,
}

impl Twice {
    pub(super) fn of(change: &Change) -> Self {
        let what = change.meanwhile.clone();
        let asks = match (&what, &change.what) {
            (Meanwhile::Done(mild), What::Tables { names, .. }) if !mild.constraints.is_empty() => {
                let names = names.iter().map(|name| quoted(&sql_name(name)));
                let dropped = mild.constraints.iter().map(|name| quoted(name));
                let list = |each: Vec<String>| each.join(", ");
                Some(format!(
                    "SELECT EXISTS (SELECT FROM pg_catalog.pg_constraint c WHERE c.conrelid OPERATOR(pg_catalog.=) \
                     ANY (ARRAY(SELECT pg_catalog.to_regclass(name)::pg_catalog.oid FROM pg_catalog.unnest(ARRAY[{}]) name)) \
                     AND c.conname::pg_catalog.text OPERATOR(pg_catalog.=) ANY (ARRAY[{}]::pg_catalog.text[]) \
                     AND c.contype::pg_catalog.text OPERATOR(pg_catalog.<>) ALL (ARRAY['c', 'f']::pg_catalog.text[]))",
                    list(names.collect()),
                    list(dropped.collect())
                ))
            }
            (Meanwhile::Done(_), What::Relations(names)) => {
                let names = names.iter().map(|name| quoted(&sql_name(name)));
                Some(format!(
                    "SELECT EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indexrelid OPERATOR(pg_catalog.=) \
                     ANY (ARRAY(SELECT pg_catalog.to_regclass(name)::pg_catalog.oid FROM pg_catalog.unnest(ARRAY[{}]) name)) \
                     AND (i.indisprimary OR i.indisreplident))",
                    names.collect::<Vec<_>>().join(", ")
                ))
            }
            _ => None,
        };
        Self { what, asks }
    }
}
