//! The rules of one connection, without any IO: what replies a request expects, what a transaction has promised,

pub mod parameters;
pub mod pipeline;
pub mod transaction;
