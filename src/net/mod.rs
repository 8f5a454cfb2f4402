//! Sockets: listening, encryption, logging clients in, opening authenticated connections to backends.

pub mod backend;
mod effort;
pub mod listen;
pub mod login;
pub mod stream;
pub mod tls;
pub mod transport;

#[cfg(test)]
mod testing;
