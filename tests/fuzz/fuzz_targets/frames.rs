//! Frames of both directions and their bodies.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::frames::check(bytes));
