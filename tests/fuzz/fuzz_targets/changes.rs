//! What a server streams of its WAL.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::changes::check(bytes));
