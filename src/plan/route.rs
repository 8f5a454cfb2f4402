//! Hot path: from a plan's pins and one execution's values to a shard. One hash of the key value, no allocation for one pin.

/// What decides the shard: a condition per sharded relation of the statement.
#[derive(Debug)]
pub struct Pins;
