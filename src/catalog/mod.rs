//! What lives where: shards, colocation groups, tables, and the map from key values to shards. Pure.

mod array;
pub mod code;
mod datetime;
pub mod effects;
pub mod group;
pub mod hash;
pub mod key;
pub mod numeric;
pub mod ownership;
pub mod shard;
pub mod snapshot;
