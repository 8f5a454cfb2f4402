//! Shardway's pure readers of strangers' bytes, included so that only they are built with the sanitizer.

#[path = "../../../src/sql/normalize.rs"]
pub mod normalize;
#[path = "../../../src/wire/mod.rs"]
pub mod wire;
