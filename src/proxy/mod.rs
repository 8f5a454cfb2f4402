//! Sessions of clients.

pub mod reply;
