//! Shardway's pure readers of strangers' bytes, included so that only they are built with the sanitizer, and what must
//! hold of each for any bytes ([`targets`]). The tests play every target's seeds without a fuzzer.

#[path = "../../../src/auth/mod.rs"]
pub mod auth;
#[path = "../../../src/sql/normalize.rs"]
pub mod normalize;
#[path = "../../../src/protocol/mod.rs"]
pub mod protocol;
pub mod targets;
#[path = "../../../src/wire/mod.rs"]
pub mod wire;
