//! Who may know whom: the architecture's rules, read off the source.

use std::path::{Path, PathBuf};

/// Every Rust file below a folder of the crate with its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    fn collect(folder: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect(&path, found);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    collect(&root.join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} has no sources");
    let name = |path: &Path| path.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
    found.into_iter().map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect()
}

/// Code lines, without comments.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(str::trim_start).filter(|line| !line.starts_with("//"))
}

/// Whether a line names a crate or module: `burn::`, `use burn;`, but not `burning` or `embed::burn`.
fn names(line: &str, module: &str) -> bool {
    line.match_indices(module).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = &line[at + module.len()..];
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') && after.starts_with("::")
    })
}

fn assert_named_only_in(module: &str, allowed: &str) {
    for (file, text) in sources("src") {
        if !file.starts_with(allowed) {
            let offender = code(&text).find(|line| names(line, module));
            assert_eq!(offender, None, "{file} names {module}, which only {allowed} may");
        }
    }
}

#[test]
fn only_the_store_names_the_storage_engine() {
    for module in [
        "lance",
        "lancedb",
        "lance_index",
        "lance_linalg",
        "lance_table",
        "lance_file",
        "lance_core",
        "object_store",
        "arrow_array",
        "arrow_schema",
    ] {
        assert_named_only_in(module, "src/store/");
    }
}

#[test]
fn only_the_local_embedder_names_burn() {
    assert_named_only_in("burn", "src/embed/local/");
    assert_named_only_in("tokenizers", "src/embed/local/");
}

#[test]
fn only_the_kernels_are_unsafe() {
    for (file, text) in sources("src") {
        if !file.starts_with("src/kernels/") && file != "src/lib.rs" {
            let words =
                |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|w| w.starts_with("unsafe"));
            let offender = code(&text).find(|line| words(line) && *line != "#![forbid(unsafe_code)]");
            assert_eq!(offender, None, "{file} is unsafe, which only src/kernels/ may be");
        }
    }
}

#[test]
fn the_command_and_the_fuzz_targets_forbid_unsafe_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let forbids = |text: &str| text.lines().any(|line| line == "#![forbid(unsafe_code)]");
    assert!(
        forbids(&std::fs::read_to_string(root.join("src/bin/embank/main.rs")).unwrap()),
        "the command allows unsafe code"
    );
    // Inside the library nothing but the kernels may switch the denial off.
    for (file, text) in sources("src") {
        let switches = code(&text).filter(|line| line.contains("unsafe_code")).count();
        let may = file.starts_with("src/kernels/") || file == "src/lib.rs" || file == "src/bin/embank/main.rs";
        assert!(switches == 0 || may, "{file} speaks of unsafe_code");
    }
    let lib = std::fs::read_to_string(root.join("src/lib.rs")).unwrap();
    assert!(
        lib.lines().any(|line| line.starts_with("#![deny(") && line.contains("unsafe_code")),
        "the library allows unsafe code"
    );
    for (file, text) in sources("fuzz/fuzz_targets") {
        // That one counts memory, which takes an allocator.
        assert!(
            forbids(&text) || file.ends_with("/safetensors.rs") || file.ends_with("/quiet.rs"),
            "{file} allows unsafe code"
        );
    }
}

#[test]
fn stages_do_not_import_one_another_and_layers_do_not_look_up() {
    let stages = ["ingest", "backfill", "index", "search"];
    let above = ["engine", "generations", "inspect", "schedule", "switch", "evaluate", "doctor", "promise"];
    for stage in stages {
        let strangers = stages.iter().filter(|other| **other != stage).chain(&above);
        assert_free_of(stage, strangers);
    }
    for layer in ["store", "embed"] {
        let other = if layer == "store" { "embed" } else { "store" };
        assert_free_of(layer, stages.iter().chain(&above).chain([&other]));
    }
}

#[test]
fn the_doctor_knows_of_the_stages_only_what_they_lay_open_for_it() {
    let strangers = ["ingest", "backfill", "search", "schedule", "evaluate", "ledger"];
    assert_free_of("doctor", strangers.iter());
    for (file, text) in sources("src/doctor") {
        let opened = ["crate::index::audit::", "crate::index::GenerationState;", "crate::embed::remote::audit::"];
        let inside = |line: &&str| line.contains("crate::index::") || line.contains("crate::embed::");
        let offender = code(&text).filter(inside).find(|line| !opened.iter().any(|door| line.contains(door)));
        assert_eq!(offender, None, "{file} looks into a stage");
    }
}

fn assert_free_of<'a>(folder: &str, modules: impl Iterator<Item = &'a &'a str>) {
    let files = sources(&format!("src/{folder}"));
    for module in modules {
        for (file, text) in &files {
            let path = format!("crate::{module}");
            let offender =
                code(text).find(|line| line.contains(&format!("{path}::")) || line.contains(&format!("{path};")));
            assert_eq!(offender, None, "{file} imports {module}");
        }
    }
}

#[test]
fn sql_is_made_in_one_file() {
    for (file, text) in sources("src") {
        // What reads the text back to check it makes none.
        if file != "src/store/filter.rs" && file != "src/search/fuzzing.rs" {
            let sql =
                code(&text).find(|line| [" IN (", " AND ", "SELECT ", " OR "].iter().any(|sql| line.contains(sql)));
            // The filter's own tests of injection are values.
            let in_tests =
                text.find("#[cfg(test)]").is_some_and(|at| sql.is_some_and(|line| text[at..].contains(line)));
            assert!(sql.is_none() || in_tests, "{file} makes SQL: {sql:?}");
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for folder in ["src", "tests", "examples"] {
        for (file, text) in sources(folder) {
            assert!(text.starts_with("//! "), "{file} has no module documentation");
        }
    }
}
