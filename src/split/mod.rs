//! What one stream or list holds for several shards, cut into a part for each. Pure.
//!
//! It says where a row ends and what its key is as text or bytes; which shard that is, is for `plan` to say.

pub mod copy;
mod fields;
pub mod filling;
