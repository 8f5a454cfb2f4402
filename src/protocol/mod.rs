//! The rules of one connection, without any IO: how both sides log in, what replies a request expects, what a
//! transaction has promised, which settings a session owns. Pure.

pub mod backend_startup;
pub mod client_startup;
pub mod listening;
pub mod parameters;
pub mod pipeline;
pub mod replicating;
pub mod transaction;
