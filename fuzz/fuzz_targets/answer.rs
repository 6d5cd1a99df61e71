//! The answer of a remote provider.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| embank::fuzzing::answer(data));
