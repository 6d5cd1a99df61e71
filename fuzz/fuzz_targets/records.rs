//! A JSONL, CSV or TSV file.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| embank::fuzzing::records(data));
