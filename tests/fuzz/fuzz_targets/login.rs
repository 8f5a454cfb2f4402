//! What a client proves itself with.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::login::check(bytes));
