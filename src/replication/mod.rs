//! A server's changes as they are committed: connections that stream its WAL, decoded.
//!
//! What must stay true: nothing of the WAL is confirmed that its user has not called durable; a connection from which
//! something was not understood is closed.

pub mod connection;
