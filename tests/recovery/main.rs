//! What transactions over several shards leave in doubt, and what becomes of it: against real servers. Sessions are the
//! test's own connections, so that every order of events can be had.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod checking;
mod deciding;
mod harness;
mod schema;
mod serving;
