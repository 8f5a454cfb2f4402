//! What resharding stands on: a server's changes, followed on real PostgreSQL.

#![cfg(test)]

mod comparing;
mod copying;
mod shards;
mod slots;
mod steps;
mod streaming;
