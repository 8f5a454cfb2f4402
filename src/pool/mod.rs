//! Backends to lease, one pool per user and placement.
//!
//! What a pool decides (who is served next, when to connect, what has expired) is in `state.rs`, without IO. A backend
//! comes back only through [`lease::Lease::release`], by someone who knows that it is at rest; a lease that is merely
//! dropped closes its backend. Pools do not know sessions, SQL or shards: a placement is an address.

pub mod backend;
pub mod common;
pub mod lease;
pub mod listener;
pub mod state;
