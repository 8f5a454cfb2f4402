//! What was read of a source, before anything that comes of it is durable elsewhere.
//!
//! What must stay true: once it is answered, nothing that its session has seen before is lost in a crash of the server.

/// Waits for it, whatever the session's settings are. A transaction that has only a number is not waited for at its end; one
/// that has written something is, with all that was written before it. Whoever reads the stream passes over the message.
pub const FLUSH: &str = "\
BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_catalog.pg_logical_emit_message(true, 'shardway', ''); COMMIT";
