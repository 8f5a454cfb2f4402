//! A server's changes as they are committed: connections that stream its WAL, decoded, and brought to other servers.
//!
//! What must stay true: nothing of the WAL is confirmed that its user has not called durable; a connection from which
//! something was not understood is closed.

pub mod apply;
pub mod batch;
pub mod connection;
pub mod judge;
pub mod rows;
pub mod stream;
pub mod tables;
pub mod visibility;
