//! `kill -9` at many moments of the main job; then running it again gives what an uninterrupted run gives.
//!
//! The moments are counted in the program's own log lines, one per commit, so a kill lands between two known commits and the
//! test does not depend on the machine's speed.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;

use embank::Bank;
use embank::embed::FakeEmbedder;

use crate::harness::{DIMENSION, Place, sentence};

const RECORDS: usize = 6000;

fn sync(place: &Place) -> Command {
    run(place, "sync", Some(place.docs()))
}

/// One step over the place's bank.
fn run(place: &Place, step: &str, sources: Option<std::path::PathBuf>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
    command
        .args(["--embedder", &format!("fake:{DIMENSION}"), "--bank"])
        .arg(place.bank_dir())
        .arg(step)
        .args(sources)
        .env("EMBANK_LOG", "embank=debug")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// Runs until the log has shown `lines` commits, then kills. Returns whether it was killed before it ended by itself.
fn run_and_kill(place: &Place, lines: usize) -> bool {
    kill_after(sync(place), lines)
}

fn kill_after(mut command: Command, lines: usize) -> bool {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut seen = 0;
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        seen += usize::from(line.unwrap().contains("DEBUG"));
        if seen == lines {
            child.kill().unwrap();
            break;
        }
    }
    !child.wait().unwrap().success()
}

#[tokio::test]
async fn kills_between_any_two_commits_leave_nothing_lost_and_nothing_twice() {
    let place = Place::with_records(RECORDS);
    // Some equal texts, some files beside the records.
    place.write("copy.txt", &sentence(1));
    place.write("other.md", "# Other\n\nSomething else.");

    let calm = Place::with_records(RECORDS);
    calm.write("copy.txt", &sentence(1));
    calm.write("other.md", "# Other\n\nSomething else.");
    assert!(sync(&calm).stderr(Stdio::null()).status().unwrap().success());

    // 1, 2, 3 … commits further each time: every run dies somewhere else.
    let mut kills = 0;
    for lines in 1..40 {
        if !run_and_kill(&place, lines) {
            break;
        }
        kills += 1;
    }
    assert!(sync(&place).stderr(Stdio::null()).status().unwrap().success());
    assert!(kills >= 4, "only {kills} kills landed");

    let open = async |place: &Place| {
        Bank::open(place.bank_dir(), Arc::new(FakeEmbedder::new(DIMENSION)), place.options()).await.unwrap()
    };
    let (want, got) = (open(&calm).await, open(&place).await);
    assert_eq!(got.contents().await.unwrap(), want.contents().await.unwrap());
    let (want, got) = (want.status().await.unwrap(), got.status().await.unwrap());
    // The cache is append only: a text that was embedded again after its vector was there would stand in it twice.
    assert_eq!((got.cached, want.cached), (RECORDS as u64 + 1, RECORDS as u64 + 1));
    let active = got.active.unwrap();
    assert_eq!((active.kind.as_str(), active.rows), ("hnsw", RECORDS as u64 + 2));
    assert!(active.recall.unwrap().recall >= 0.95);
}

#[tokio::test]
async fn a_worker_beside_others_that_are_killed_makes_up_for_them() {
    let place = Place::with_records(RECORDS);
    assert!(run(&place, "ingest", Some(place.docs())).stderr(Stdio::null()).status().unwrap().success());
    let mut survivor = run(&place, "backfill", None).stderr(Stdio::null()).spawn().unwrap();
    for lines in [1, 3, 5, 7] {
        kill_after(run(&place, "backfill", None), lines);
    }
    assert!(survivor.wait().unwrap().success());
    // What the last one had claimed when it died may be left over.
    assert!(run(&place, "backfill", None).stderr(Stdio::null()).status().unwrap().success());

    let bank = Bank::open(place.bank_dir(), Arc::new(FakeEmbedder::new(DIMENSION)), place.options()).await.unwrap();
    let contents = bank.contents().await.unwrap();
    let calm = Place::with_records(RECORDS);
    let want = calm.filled().await.contents().await.unwrap();
    assert_eq!(contents.embeddings, want.embeddings);
    assert_eq!(contents.status, want.status);
}
