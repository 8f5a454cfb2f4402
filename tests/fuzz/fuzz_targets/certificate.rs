//! Certificates that clients and servers show.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::certificate::check(bytes));
