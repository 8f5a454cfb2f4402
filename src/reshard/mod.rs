//! Online resharding: any map to any map, while the database serves.
//!
//! What must stay true: `docs/resharding.md` and `docs/decisions/resharding-engine.md`.

pub mod dump;
pub mod flows;
pub mod job;
pub mod participant;
pub mod plan;
pub mod servers;
pub mod state;
pub mod statements;
pub mod steps;
pub mod verify;
