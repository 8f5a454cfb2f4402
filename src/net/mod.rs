//! Sockets: listening, encryption, logging clients in, opening authenticated connections to backends.

pub mod backend;
pub mod listen;
pub mod login;
pub mod tls;
pub mod transport;
