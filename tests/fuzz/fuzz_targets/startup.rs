//! Packets before login.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::startup::check(bytes));
