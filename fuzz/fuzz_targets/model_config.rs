//! The small JSON files of a model.
#![no_main]
#![forbid(unsafe_code)]

libfuzzer_sys::fuzz_target!(|data: &[u8]| embank::fuzzing::model_config(data));
