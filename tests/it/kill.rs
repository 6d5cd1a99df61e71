//! `kill -9` at many moments of the main job and of each step alone; then running it again gives what an uninterrupted run
//! gives, and the embedder was given a text again only if its answer was under way.
//!
//! The moments are counted in the program's own log lines, one per commit, so a kill lands between two known commits and the
//! test does not depend on the machine's speed. `scripts/torture.py` does the same at random moments, for as long as one likes.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use embank::Bank;
use embank::embed::FakeEmbedder;

use crate::harness::{DIMENSION, Place, sentence};

const RECORDS: usize = 6000;

fn sync(place: &Place) -> Command {
    run(place, &["sync"], Some(place.docs()))
}

/// One step over the place's bank.
fn run(place: &Place, step: &[&str], sources: Option<PathBuf>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
    command
        .args(["--embedder", &format!("fake:{DIMENSION}"), "--bank"])
        .arg(place.bank_dir())
        .args(step)
        .args(sources)
        .env("EMBANK_LOG", "embank=debug,embank::backfill=trace")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

/// What a process did before it ended.
struct Life {
    killed: bool,
    /// Texts that the embedder was given, and those of them that reached the cache.
    asked: u64,
    cached: u64,
}

/// Runs until the log has shown so many commits, then kills.
fn kill_after(mut command: Command, commits: usize) -> Life {
    let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
    let (mut seen, mut asked, mut cached) = (0, 0, 0);
    for line in BufReader::new(child.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        let texts = || line.split("texts=").nth(1).unwrap().split(' ').next().unwrap().parse::<u64>().unwrap();
        if line.contains("asking the embedder") {
            asked += texts();
        } else if line.contains(": cached ") {
            cached += texts();
        }
        // What is left of the log after the kill is read to its end: it tells what else had been done by then.
        seen += usize::from(line.contains("DEBUG"));
        if seen == commits {
            let _ = child.kill();
        }
    }
    Life { killed: !child.wait().unwrap().success(), asked, cached }
}

/// Runs to the end.
fn complete(command: Command) -> Life {
    let life = kill_after(command, usize::MAX);
    assert!(!life.killed);
    life
}

/// All lives of one bank.
#[derive(Default)]
struct Lives {
    kills: usize,
    asked: u64,
    in_flight: u64,
}

impl Lives {
    fn add(&mut self, life: &Life) {
        let in_flight = life.asked - life.cached;
        assert!(
            life.killed || in_flight == 0,
            "{in_flight} texts were embedded for nothing by a process that ended by itself"
        );
        self.kills += usize::from(life.killed);
        self.asked += life.asked;
        self.in_flight += in_flight;
    }

    /// Kills `command` 1, 2, 3 … commits further each time, so that every run dies somewhere else, then lets it end.
    fn torment(&mut self, command: impl Fn() -> Command, most: usize) {
        for commits in 1..=most {
            let life = kill_after(command(), commits);
            self.add(&life);
            if !life.killed {
                return;
            }
        }
        self.add(&complete(command()));
    }
}

async fn open(place: &Place) -> Bank {
    Bank::open(place.bank_dir(), Arc::new(FakeEmbedder::new(DIMENSION)), place.options()).await.unwrap()
}

#[tokio::test]
async fn kills_between_any_two_commits_leave_nothing_lost_and_nothing_twice() {
    let [place, calm] = [(); 2].map(|()| {
        let place = Place::with_records(RECORDS);
        // Some equal texts, some files beside the records.
        place.write("copy.txt", &sentence(1));
        place.write("other.md", "# Other\n\nSomething else.");
        place
    });
    complete(sync(&calm));
    let mut lives = Lives::default();
    lives.torment(|| sync(&place), 40);
    assert!(lives.kills >= 4, "only {} kills landed", lives.kills);

    let (want, got) = (open(&calm).await, open(&place).await);
    assert_eq!(got.contents().await.unwrap(), want.contents().await.unwrap());
    let (want, got) = (want.status().await.unwrap(), got.status().await.unwrap());
    // The cache is append only: a text that was embedded again after its vector was there would stand in it twice.
    assert_eq!((got.cached, want.cached), (RECORDS as u64 + 1, RECORDS as u64 + 1));
    assert!(lives.asked <= got.cached + lives.in_flight, "{} asked, {} in flight", lives.asked, lives.in_flight);
    let active = got.active.unwrap();
    assert_eq!((active.kind.as_str(), active.rows), ("ivf-rq", RECORDS as u64 + 2));
    assert!(active.recall.unwrap().recall >= 0.95);
}

#[tokio::test]
async fn kills_of_each_step_between_edits_leave_what_an_uninterrupted_run_leaves() {
    let (place, calm) = (Place::with_records(1200), Place::with_records(1200));
    let mut lives = Lives::default();
    for round in 0..2 {
        if round > 0 {
            // A quarter goes, a quarter is filed elsewhere, a quarter has another text, a quarter stays; some are new.
            let lines: Vec<_> = (0..1300)
                .filter(|n| n % 4 > 0)
                .map(|n| {
                    let text = sentence(if n % 4 == 2 { n + 10_000 } else { n });
                    let category = if n % 4 == 1 { "moved" } else { ["water", "soil", "bees"][n % 3] };
                    serde_json::json!({"id": format!("r{n}"), "text": text, "category": category}).to_string()
                })
                .collect();
            for place in [&place, &calm] {
                place.write("records.jsonl", &lines.join("\n"));
            }
        }
        let build = ["index", "build", "--kind", "ivf-pq", "--min-recall", "0.5"];
        for step in [&["ingest"][..], &["backfill"], &build, &["index", "gc"]] {
            let sources = |place: &Place| (step == ["ingest"]).then(|| place.docs());
            complete(run(&calm, step, sources(&calm)));
            lives.torment(|| run(&place, step, sources(&place)), 6);
        }
    }
    assert!(lives.kills >= 12, "only {} kills landed", lives.kills);
    let (want, got) = (open(&calm).await, open(&place).await);
    assert_eq!(got.contents().await.unwrap(), want.contents().await.unwrap());
    let cached = got.status().await.unwrap().cached;
    assert_eq!(cached, want.status().await.unwrap().cached);
    assert!(lives.asked <= cached + lives.in_flight, "{} asked, {} in flight", lives.asked, lives.in_flight);
    let states = async |bank: &Bank| -> Vec<_> {
        bank.generations().await.unwrap().into_iter().map(|generation| generation.state).collect()
    };
    assert_eq!(states(&got).await.last(), states(&want).await.last());
    assert_eq!(states(&got).await.len(), 2, "the active one and the one before; what was interrupted is gone");
}

#[tokio::test]
async fn a_worker_beside_others_that_are_killed_makes_up_for_them() {
    let place = Place::with_records(RECORDS);
    complete(run(&place, &["ingest"], Some(place.docs())));
    let mut survivor = run(&place, &["backfill"], None).stderr(Stdio::null()).spawn().unwrap();
    for commits in [1, 3, 5, 7] {
        kill_after(run(&place, &["backfill"], None), commits);
    }
    assert!(survivor.wait().unwrap().success());
    // What the last one had claimed when it died may be left over.
    complete(run(&place, &["backfill"], None));

    let contents = open(&place).await.contents().await.unwrap();
    let calm = Place::with_records(RECORDS);
    let want = calm.filled().await.contents().await.unwrap();
    assert_eq!(contents.embeddings, want.embeddings);
    assert_eq!(contents.status, want.status);
}
