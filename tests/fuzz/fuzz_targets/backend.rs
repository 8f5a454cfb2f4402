//! What a server says while a connection to it begins.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::backend::check(bytes));
