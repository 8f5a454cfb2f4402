//! What a server answers to what it was asked.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::replies::check(bytes));
