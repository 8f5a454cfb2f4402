//! What transactions over several shards leave in doubt, and what becomes of it: against real servers. Sessions are the
//! test's own connections, so that every order of events can be had.
#![expect(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::wildcard_enum_match_arm,
    reason = "a test that cannot go on fails; a client's connection ends with it; only rows matter of what it is told"
)]

mod agreeing;
mod checking;
mod deciding;
mod harness;
mod many;
mod schema;
mod serving;
