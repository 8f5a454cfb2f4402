//! What resharding stands on: a server's changes, followed on real PostgreSQL.

#![cfg(test)]

mod comparing;
mod preflight;
mod steps;
mod streaming;
mod whole;
