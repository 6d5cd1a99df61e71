//! A `tokenizer.json`.
#![no_main]
#![forbid(unsafe_code)]

mod quiet;

libfuzzer_sys::fuzz_target!(init: quiet::only_own_panics_count(), |data: &[u8]| embank::fuzzing::tokenizer(data));
