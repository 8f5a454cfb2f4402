//! Texts of statements.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| shardway_fuzz::targets::lexer::check(bytes));
