//! What resharding stands on: a server's changes, followed on real PostgreSQL.

#![cfg(test)]
#![expect(
    clippy::too_many_lines,
    clippy::wildcard_enum_match_arm,
    reason = "a claim is told in its order; whatever else happens fails it"
)]

mod applying;
mod backlog;
mod comparing;
mod copying;
mod emptied;
mod following;
mod growing;
mod hindered;
mod joining;
mod late;
mod leading;
mod lost;
mod preflight;
mod reached;
mod shards;
mod slots;
mod steps;
mod streaming;
mod throttling;
mod traps;
mod verifying;
mod weak;
mod whole;
