//! Online resharding: any map to any map, while the database serves.
//!
//! What must stay true: `docs/resharding.md` and `docs/decisions/resharding-engine.md`.

pub mod dump;
pub mod effects;
pub mod flows;
mod hold;
pub mod identity;
pub mod job;
pub mod leader;
pub mod participant;
pub mod plan;
pub mod planning;
pub mod record;
pub mod runner;
pub mod servers;
pub mod state;
pub mod statements;
pub mod steps;
mod throttle;
pub mod verify;
pub mod wish;
