//! The conditions of a search.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| embank::fuzzing::filter(data));
