//! PostgreSQL messages as views over bytes. Pure: no socket, clock or environment.
//! "Frontend" and "backend" are used here as in the PostgreSQL manual, chapter 54.

pub mod backend;
pub mod cancel_key;
pub mod frame;
pub mod frontend;
pub mod notice;
pub mod pgoutput;
pub mod replication;
pub mod startup;
pub mod types;
