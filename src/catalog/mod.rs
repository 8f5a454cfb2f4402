//! What lives where: shards, colocation groups, tables, and the map from key values to shards. Pure.

mod array;
pub mod code;
pub mod computed;
mod datetime;
pub mod effects;
pub mod group;
pub mod hash;
pub mod id;
pub mod key;
pub mod moving;
pub mod numeric;
pub mod oids;
pub mod ownership;
pub mod shard;
pub mod snapshot;
