//! The rules of one connection. Pure: messages in, decisions out.

pub mod backend_startup;
pub mod client_startup;
