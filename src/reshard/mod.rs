//! Online resharding: any map to any map, while the database serves.
//!
//! What must stay true: `docs/resharding.md` and `docs/decisions/resharding-engine.md`.

pub mod dump;
pub mod effects;
pub mod flows;
pub mod helping;
mod hold;
pub mod identity;
pub mod job;
pub mod leader;
pub mod lines;
pub mod participant;
pub mod plan;
pub mod planning;
pub mod record;
mod run;
pub mod runner;
pub mod servers;
pub mod state;
pub mod statements;
pub mod steps;
pub mod throttle;
pub mod told;
pub mod verify;
pub mod wish;
