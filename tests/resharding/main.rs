//! What resharding stands on: a server's changes, followed on real PostgreSQL.

#![cfg(test)]

mod applying;
mod following;
mod shards;
mod streaming;
