//! The examples run, and print what they say.

use std::path::PathBuf;
use std::process::Command;

/// Runs an example that cargo built beside this test.
fn run(name: &str) -> String {
    let test = std::env::current_exe().unwrap();
    // target/<profile>/deps/it-… → target/<profile>/examples/<name>
    let profile: PathBuf = test.parent().unwrap().parent().unwrap().into();
    let example = profile.join("examples").join(name).with_extension(std::env::consts::EXE_EXTENSION);
    let output = Command::new(&example).output().unwrap_or_else(|e| panic!("{}: {e}", example.display()));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{name}: {text}{}", String::from_utf8_lossy(&output.stderr));
    text
}

#[test]
fn quickstart_finds_the_barrel_and_repeats_nothing() {
    let text = run("quickstart");
    assert!(text.contains("4 documents, 4 chunks embedded"), "{text}");
    assert!(text.contains("1. water/barrel.md (Rain barrel): Empty the barrel"), "{text}");
    assert!(text.contains("again: 4 unchanged, 0 embedded"), "{text}");
}

#[test]
fn resumable_backfill_loses_nothing_and_repeats_nothing() {
    let text = run("resumable_backfill");
    assert!(text.contains("the first run died: true"), "{text}");
    let again = text.lines().find_map(|line| line.strip_prefix("the second run embedded ")?.split(' ').next());
    let again: u64 = again.unwrap().parse().unwrap();
    // Not all of them; and not fewer than the first run had not seen.
    assert!((20_000 - 2_048..40_000).contains(&again), "{text}");
    assert!(text.contains("stored: 40000 of 40000"), "{text}");
}

#[test]
fn scheduled_rebuild_does_what_has_changed_enough_for() {
    let text = run("scheduled_rebuild");
    let said =
        |line: &str| ["rebuilt", "kept", "took"].into_iter().find(|word| line.contains(&format!("index {word}")));
    let index: Vec<_> = text.lines().filter_map(said).collect();
    assert_eq!(index, ["rebuilt", "kept", "kept", "took", "rebuilt"], "{text}");
}

#[test]
fn search_api_filters_takes_vectors_and_refuses_nonsense() {
    let text = run("search_api");
    assert!(text.contains("all: 3\n") && text.contains("bees: Wrap the hive before frost."), "{text}");
    assert!(text.contains("nearest to a vector: water/frost.txt"), "{text}");
    assert!(text.contains("refused: it is empty"), "{text}");
}
