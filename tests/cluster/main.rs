//! Claims about Shardway on real PostgreSQL, one module per capability.
//!
//! Every claim that has a meaning without shards is run twice: on one PostgreSQL that holds all rows, and through the
//! proxy before three shards. What a client sees must be the same.

#![cfg(test)]

mod cancelling;
mod copying;
mod drivers;
mod dumping;
mod entering;
mod failures;
mod harness;
mod malformed;
mod native;
mod notifying;
mod operating;
mod passthrough;
mod passwords;
mod pooling;
mod psql;
mod raw;
mod replicating;
mod servers;
mod tls;
mod tools;
