//! What a client sees of a session, message by message: the same script is sent to PostgreSQL and through the proxy in
//! each pool mode, with backends forced to alternate, and the answers must be the same.

#![cfg(test)]

mod client;
mod copy;
mod endings;
mod extended;
mod harness;
mod listen;
mod pooling;
mod settings;
mod sharded;
mod volume;
