//! `shardway demo` as a person meets it: what it prints is typed, word by word, while clients use the shop; and the
//! commands of a reshard, also where they make no sense.

#![cfg(test)]
#![expect(
    clippy::disallowed_methods,
    reason = "programs are started, and waited for"
)]

mod hindered;
mod reaching;
mod stage;
mod steering;
mod told;
mod typing;
mod wrong;
