//! A text that is cut into chunks.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| embank::fuzzing::chunk(data));
