//! What resharding stands on: a server's changes, followed on real PostgreSQL.

#![cfg(test)]

mod applying;
mod comparing;
mod following;
mod preflight;
mod shards;
mod steps;
mod streaming;
