//! What resharding stands on: a server's changes, followed on real PostgreSQL.

#![cfg(test)]

mod applying;
mod comparing;
mod copying;
mod following;
mod preflight;
mod shards;
mod slots;
mod steps;
mod streaming;
mod whole;
