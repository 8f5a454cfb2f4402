//! Rows of several sources as one stream. Pure operators over DataRow messages as they stand in the sources' buffers.
//!
//! What must stay true: a row is passed on as the bytes that a server sent; nothing of it is decoded but the keys that
//! it is ordered by, which stand behind the columns that are the client's and are taken off again.

pub mod key;
pub mod limit;
pub mod order;
pub mod parts;
pub mod rows;

/// A server's message is not what was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a row is not as it was described")]
pub struct Malformed;
