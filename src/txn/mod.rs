//! Transactions over several shards: their names, who decides them, and how what was left in doubt is finished.
//!
//! ```text
//!   session ── begin ──▶ live ── PREPARE elsewhere, decision row ──▶ COMMIT at the decider ──▶ COMMIT PREPARED elsewhere
//!                          │ connection lost at the COMMIT                │ connection lost
//!                          ▼                                              ▼
//!                       settle: the row, or an abort row in its place  finish, or recovery later
//! ```
//! What must stay true: one row in the decider's `shardway.decision` says the outcome, and its key is unique, so that
//! whoever comes first decides and nobody can decide otherwise later. A lost connection alone decides nothing.

pub mod coordinator;
pub mod deadlock;
mod decision;
pub mod gid;
mod live;
mod recover;
pub mod state;
pub mod waiting;

pub use decision::{Finish, Finished};
pub use live::Incarnation;
