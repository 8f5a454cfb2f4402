//! A server's changes as they are committed: connections that stream its WAL, decoded, and brought to other servers; and
//! copies of what was there before.
//!
//! What must stay true: nothing of the WAL is confirmed that its user has not called durable; a connection from which
//! something was not understood is closed; a row is copied once, whoever is killed when; a change is applied once.

pub mod apply;
pub mod batch;
pub mod chunks;
pub mod connection;
pub mod copy;
pub mod durable;
pub mod judge;
pub mod publication;
pub mod rows;
pub mod slot;
pub mod stream;
pub mod streaming;
pub mod tables;
pub mod visibility;
