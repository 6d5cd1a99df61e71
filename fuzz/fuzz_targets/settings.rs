//! The settings file `embank.toml`, as the command reads it.
#![no_main]
#![forbid(unsafe_code)]
// Most of what is compiled in here is not run.
#![allow(dead_code, unused_imports)]

#[path = "../../src/bin/embank"]
mod command {
    pub mod args;
    pub mod remote;
    pub mod settings;
}

use command::settings::{Environment, Settings};
use command::{args, remote};

libfuzzer_sys::fuzz_target!(
    init: {
        let dir = std::env::temp_dir().join(format!("embank-fuzz-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::env::set_current_dir(dir).unwrap();
    },
    |data: &[u8]| {
        std::fs::write("embank.toml", data).unwrap();
        let environment = Environment { cache_dir: Some("/cache".into()), ..Environment::default() };
        match Settings::resolve(&args::Global::default(), environment) {
            Ok(settings) => {
                let share = settings.validation(None).min_recall;
                assert!((0.0..=1.0).contains(&share));
                let options = settings.ingest(&args::IngestFlags::default());
                let _ = (options, settings.kind(None), settings.remote.embedder("m"));
            }
            Err(error) => {
                let said = error.to_string();
                assert!(said.contains("embank.toml") && said.len() < 4096 + data.len(), "{said}");
            }
        }
    }
);
