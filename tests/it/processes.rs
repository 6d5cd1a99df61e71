//! Several processes on one bank, some of them killed and some of them stopped beyond their lease and continued.
//!
//! The moments are counted in the program's own log lines, drawn from a seed; only the lease itself is waited for.
#![cfg(unix)]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;

use embank::{BackfillOptions, ChunkState};

use crate::harness::{DIMENSION, Place, sentence};

/// What happens to a process.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fate {
    Survives,
    /// `kill -9` after so many log lines.
    Killed(usize),
    /// `kill -STOP` after so many log lines, for the test to continue.
    Stopped(usize),
}

/// What a process said that it did.
#[derive(Clone, Copy, Debug, Default)]
struct Said {
    asked: u64,
    cached: u64,
    dropped: u64,
    lost_claims: u64,
}

struct Process {
    child: Child,
    fate: Fate,
    log: JoinHandle<Said>,
}

fn signal(pid: u32, name: &str) {
    assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
}

fn command(place: &Place, step: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
    command.args(["--quiet", "--durability", "process-crash", "--embedder", &format!("fake:{DIMENSION}"), "--bank"]);
    command
        .arg(place.bank_dir())
        .args(step)
        .env("EMBANK_LOG", "embank=trace")
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    command
}

fn start(place: &Place, step: &[&str], fate: Fate) -> Process {
    let mut child = command(place, step).stderr(Stdio::piped()).spawn().unwrap();
    let (pid, stderr) = (child.id(), child.stderr.take().unwrap());
    let log = std::thread::spawn(move || {
        let mut said = Said::default();
        for (number, line) in BufReader::new(stderr).lines().enumerate() {
            let line = line.unwrap();
            let value = |key: &str| line.split(key).nth(1)?.split_whitespace().next()?.parse::<u64>().ok();
            if line.contains("asking the embedder") {
                said.asked += value("texts=").unwrap();
            } else if line.contains(": cached ") {
                said.cached += value("texts=").unwrap();
                said.dropped += value("dropped=").unwrap();
            } else if line.contains("claims were lost meanwhile") {
                said.lost_claims += value("rows=").unwrap();
            }
            match fate {
                Fate::Killed(lines) if number + 1 == lines => signal(pid, "-KILL"),
                Fate::Stopped(lines) if number + 1 == lines => signal(pid, "-STOP"),
                _ => {}
            }
        }
        said
    });
    Process { child, fate, log }
}

/// The process's state as the system names it: `T` for stopped. `None` once it has ended.
fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

impl Process {
    /// Waits until it has ended or stands still.
    fn settle(&mut self) {
        while !matches!(state(self.child.id()), Some('T' | 'Z') | None) {
            std::thread::yield_now();
        }
    }

    fn is_stopped(&self) -> bool {
        state(self.child.id()) == Some('T')
    }

    /// Waits for its end, which must be a good one unless it was killed.
    fn end(mut self) -> (Fate, Said) {
        let status = self.child.wait().unwrap();
        let said = self.log.join().unwrap();
        assert!(status.success() || matches!(self.fate, Fate::Killed(_)), "{:?}: {status}", self.fate);
        (self.fate, said)
    }
}

/// splitmix64
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % end
    }

    fn fate(&mut self, lines: u64) -> Fate {
        let line = 1 + self.below(lines) as usize;
        match self.below(5) {
            0 | 1 => Fate::Killed(line),
            2 | 3 => Fate::Stopped(line),
            _ => Fate::Survives,
        }
    }
}

fn backfill(place: &Place, more: &[&str], fate: Fate) -> Process {
    start(place, &[&["backfill", "--lease", "1s"], more].concat(), fate)
}

#[tokio::test]
async fn four_processes_killed_and_stopped_at_random_make_every_row_ready_once() {
    const ROWS: usize = 5000;
    const SEED: u64 = 20_261_121;
    let place = Place::with_records(ROWS);
    place.bank().await.ingest(&[place.docs()], Default::default()).await.unwrap();
    let mut random = Random(SEED);
    let (mut stopped, mut ended) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        // Limited, so that there is something left for all rounds.
        let fates = [(); 4].map(|()| random.fate(24));
        let mut workers: Vec<_> = fates.into_iter().map(|fate| backfill(&place, &["--limit", "300"], fate)).collect();
        workers.iter_mut().for_each(Process::settle);
        let (still, over): (Vec<_>, Vec<_>) = workers.into_iter().partition(Process::is_stopped);
        stopped.extend(still);
        ended.extend(over.into_iter().map(Process::end));
    }
    assert!(stopped.len() >= 3, "{} stand still", stopped.len());
    let bank = place.bank().await;
    let counts = async || bank.status().await.unwrap().status[0].counts;
    // Until the leases of those that stand still have run out, and their chunks are done by somebody else.
    while counts().await.ready < ROWS as u64 {
        ended.push(backfill(&place, &[], Fate::Survives).end());
    }
    let cached = bank.status().await.unwrap().cached;
    assert_eq!(cached, ROWS as u64, "the cache is whole before those that stood still go on");

    stopped.iter().for_each(|process| signal(process.child.id(), "-CONT"));
    let late: Vec<_> = stopped.into_iter().map(Process::end).collect();
    let lost_claims: u64 = late.iter().map(|(_, said)| said.lost_claims).sum();
    assert!(lost_claims > 0, "nobody came too late: {late:?}");

    let (mut asked, mut lost_calls, mut dropped) = (0, 0, 0);
    for (fate, said) in ended.into_iter().chain(late) {
        let in_flight = said.asked - said.cached - said.dropped;
        assert!(in_flight == 0 || matches!(fate, Fate::Killed(_)), "{fate:?}: {said:?}");
        asked += said.asked;
        dropped += said.dropped;
        lost_calls += in_flight;
    }
    println!(
        "{asked} texts asked for {ROWS} rows, {lost_calls} in flight at kills, {dropped} done twice beyond a lease"
    );
    // Killed between a commit and its line in the log, a process has stored more than it said.
    assert!(asked <= ROWS as u64 + lost_calls + dropped, "{asked} asked, {lost_calls} lost, {dropped} dropped");

    let left = bank.backfill(BackfillOptions::default()).await.unwrap();
    assert_eq!((left.ready, left.embedded, left.reconciled.orphans, left.reconciled.lost), (0, 0, 0, 0));
    assert_eq!(bank.status().await.unwrap().cached, ROWS as u64, "each text stands in the cache once");
    let calm = Place::with_records(ROWS);
    assert_eq!(bank.digest().await.unwrap(), calm.filled().await.digest().await.unwrap());
}

/// The folder's files at a stage of its life: some change, some go, some come.
fn write_stage(place: &Place, stage: usize) {
    for number in 0..120 {
        let name = format!("{}/{number:03}.txt", ["water", "soil", "bees"][number % 3]);
        if (number + stage).is_multiple_of(5) {
            let _ = std::fs::remove_file(place.docs().join(name));
        } else {
            let version = if (number + stage).is_multiple_of(3) { stage } else { 0 };
            place.write(&name, &sentence(number + 1000 * version));
        }
    }
    let records = (0..300).filter(|n| !(n + stage).is_multiple_of(7)).map(|n| {
        let text = sentence(5000 + n + 1000 * (stage * usize::from(n % 4 == 0)));
        serde_json::json!({"id": format!("r{n}"), "text": text, "category": (["water", "soil"][(n + stage) % 2])})
            .to_string()
    });
    place.write("soil/records.jsonl", &records.collect::<Vec<_>>().join("\n"));
}

#[tokio::test]
async fn processes_that_ingest_overlapping_folders_while_they_are_edited_store_each_document_once() {
    const SEED: u64 = 7;
    let place = Place::empty();
    write_stage(&place, 0);
    let folder = |name: &str| place.docs().join(name).to_str().unwrap().to_owned();
    let (all, water, soil) = (folder(""), folder("water"), folder("soil"));
    place.bank().await;
    let mut random = Random(SEED);
    for stage in 1..6 {
        let mut running = Vec::new();
        for (number, paths) in [&[&all][..], &[&water, &soil], &[&soil], &[&all]].iter().enumerate() {
            let paths: Vec<_> = paths.iter().map(|path| path.as_str()).collect();
            let fate = random.fate(8);
            running.push(start(&place, &[&["ingest"], &paths[..]].concat(), fate));
            if number == 1 {
                // Under the eyes of two that are reading.
                write_stage(&place, stage);
            }
        }
        running.push(backfill(&place, &[], Fate::Survives));
        for mut process in running {
            process.settle();
            if process.is_stopped() {
                // Continued when others are through with what it had planned.
                signal(process.child.id(), "-CONT");
            }
            process.end();
        }
    }
    let bank = place.filled().await;
    let contents = bank.contents().await.unwrap();
    let calm = Place::empty();
    write_stage(&calm, 5);
    let want = calm.filled().await.contents().await.unwrap();
    assert_eq!(contents.documents, want.documents);
    assert_eq!(contents.embeddings, want.embeddings);
    assert_eq!(contents.status, want.status);
    assert!(contents.status.iter().all(|row| row.1 == ChunkState::Ready));
}
