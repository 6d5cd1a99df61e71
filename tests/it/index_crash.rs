//! `kill -9` of the command in each state of a generation's life; then the next tick leaves a bank in which every generation
//! has an index and a reason to be there, and every index folder a generation.
//!
//! The states are read off the program's own log. A kill lands some moments after the line; what the bank says then is what
//! counts, and each state is tried until a kill has landed in it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use embank::embed::FakeEmbedder;
use embank::{Bank, Clock, DoctorOptions, Generation, GenerationState, HousekeepingOptions, IndexKind};
use lance::Dataset;
use lance::index::DatasetIndexExt;

use crate::harness::{DIMENSION, Place, build};

/// Kills for one state until one of them must have landed in it.
const TRIES: usize = 12;

fn command(place: &Place, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_embank"));
    command.args(["--embedder", &format!("fake:{DIMENSION}"), "--bank"]).arg(place.bank_dir()).args(args);
    command.env("EMBANK_LOG", "embank=debug").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

/// Runs to the end; returns the log. The command must succeed.
fn complete(mut command: Command) -> String {
    let output = command.output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{log}");
    log
}

/// Kills the command once its log has shown the line and `is_time`; returns whether that came before its end.
fn kill_at(mut command: Command, line: &str, is_time: impl Fn() -> bool) -> bool {
    let mut child = command.spawn().unwrap();
    for logged in BufReader::new(child.stderr.take().unwrap()).lines() {
        if logged.unwrap().contains(line) {
            while !is_time() && child.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
            let _ = child.kill();
            break;
        }
    }
    !child.wait().unwrap().success()
}

/// By the machine's clock, as the command.
fn in_our_time(mut place: Place) -> Place {
    place.clock = Clock::default();
    place
}

async fn open(place: &Place) -> Bank {
    Bank::open(place.bank_dir(), std::sync::Arc::new(FakeEmbedder::new(DIMENSION)), place.options()).await.unwrap()
}

/// Nothing is unfinished, what failed says why, what is served answers, and no folder of an index is anybody's no more.
async fn check_clean(place: &Place, after: &str) -> Vec<Generation> {
    let bank = open(place).await;
    let generations = bank.generations().await.unwrap();
    for one in &generations {
        match one.state {
            GenerationState::Active | GenerationState::Retired => assert!(one.recall.is_some(), "{after}: {one:?}"),
            GenerationState::Failed => assert!(one.error.is_some(), "{after}: {one:?}"),
            _ => panic!("{after}: {} is {}", one.id, one.state.label()),
        }
    }
    assert_eq!(generations.iter().filter(|one| one.state == GenerationState::Active).count(), 1, "{after}");
    assert_eq!(bank.search("rain barrel", &Default::default()).await.unwrap().hits.len(), 10, "{after}");
    let report = bank.doctor(DoctorOptions::default()).await.unwrap();
    assert!(report.healthy, "{after}: {report:?}");
    let dataset = Dataset::open(vectors(place).to_str().unwrap()).await.unwrap();
    let mut ever_named = BTreeSet::new();
    for version in dataset.versions().await.unwrap() {
        let version = dataset.checkout_version(version.version).await.unwrap();
        ever_named.extend(version.load_indices().await.unwrap().iter().map(|segment| segment.uuid.to_string()));
    }
    assert!(index_folders(place).is_subset(&ever_named), "{after}: a folder that no version names");
    // Older versions name what was dropped, for readers that are at one of them. Without those, folders are indexes.
    bank.keep_house(HousekeepingOptions { keep_versions: Duration::ZERO }).await.unwrap();
    let folders = index_folders(place);
    let dataset = Dataset::open(vectors(place).to_str().unwrap()).await.unwrap();
    let segments = dataset.load_indices().await.unwrap();
    let (live, named): (BTreeSet<_>, BTreeSet<_>) =
        segments.iter().map(|segment| (segment.uuid.to_string(), segment.name.clone())).unzip();
    assert_eq!(folders, live, "{after}: folders of indexes, and the indexes there are");
    let known: BTreeSet<_> = bank.generations().await.unwrap().into_iter().map(|one| one.id.to_string()).collect();
    assert!(named.is_subset(&known), "{after}: {named:?} of {known:?}");
    generations
}

/// The table that carries the indexes.
fn vectors(place: &Place) -> PathBuf {
    let tables = std::fs::read_dir(place.bank_dir()).unwrap().map(|entry| entry.unwrap().path());
    tables.into_iter().find(|path| path.to_string_lossy().contains("embeddings__")).unwrap()
}

fn index_folders(place: &Place) -> BTreeSet<String> {
    let entries = std::fs::read_dir(vectors(place).join("_indices"));
    entries.map(|all| all.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()).unwrap_or_default()
}

/// Kills `args` when the log says so, on copies of the template, until the bank is then as wanted.
async fn killed(
    template: &Place,
    args: &[&str],
    line: &str,
    is_time: impl Fn(&Place) -> bool,
    is_wanted: impl AsyncFn(&Bank) -> bool,
) -> Place {
    for _ in 0..TRIES {
        let place = in_our_time(template.copy());
        if kill_at(command(&place, args), line, || is_time(&place)) && is_wanted(&open(&place).await).await {
            return place;
        }
    }
    panic!("no kill of {args:?} at `{line}` landed where it should");
}

#[tokio::test]
async fn a_kill_in_any_state_of_a_build_is_cleaned_up_by_the_next_tick() {
    let template = in_our_time(Place::with_records(1500));
    build(&template.filled().await, IndexKind::Flat).await.unwrap();
    let docs = |place: &Place| place.docs().to_str().unwrap().to_owned();
    let job = ["index", "build", "--kind", "ivf-pq"];
    let log = complete(command(&in_our_time(template.copy()), &job));
    let states = log.lines().filter(|line| line.contains("DEBUG") && line.contains("generation id="));
    let states: Vec<_> =
        states.filter_map(|line| line.split("state=\"").nth(1)?.split('"').next()).map(str::to_owned).collect();
    assert!(states.ends_with(&["building".into(), "validating".into(), "ready".into()]), "{states:?}");

    for state in states {
        let newest = async |bank: &Bank| bank.generations().await.unwrap().pop().unwrap();
        let is_in_it = async |bank: &Bank| newest(bank).await.state.label() == state;
        // In the middle of a build: when the first of its files are there.
        let is_time = |place: &Place| state != "building" || !index_folders(place).is_empty();
        let place = killed(&template, &job, &format!("state=\"{state}\""), is_time, is_in_it).await;
        let interrupted = newest(&open(&place).await).await.id;
        complete(command(&place, &["sync", &docs(&place), "--kind", "ivf-pq"]));
        let generations = check_clean(&place, &format!("killed while {state}")).await;
        let found = generations.iter().find(|one| one.id == interrupted).unwrap();
        if state == "ready" {
            assert_eq!(
                (found.state, generations.len()),
                (GenerationState::Active, 2),
                "it passed: it is not built again"
            );
        } else {
            assert_eq!(found.error, Some(format!("interrupted while {state}")));
            assert_eq!(generations.last().unwrap().state, GenerationState::Active);
        }
    }
    let is_active = async |bank: &Bank| bank.status().await.unwrap().active.unwrap().kind == "ivf-pq";
    let place = killed(&template, &job, "pointer moved", |_| true, is_active).await;
    complete(command(&place, &["sync", &docs(&place), "--kind", "ivf-pq"]));
    assert_eq!(check_clean(&place, "killed after the flip").await.len(), 2);
}

#[tokio::test]
async fn a_kill_in_garbage_collection_is_made_up_for_by_the_next_tick() {
    let template = in_our_time(Place::with_records(400));
    let bank = template.filled().await;
    for _ in 0..5 {
        build(&bank, IndexKind::Hnsw).await.unwrap();
    }
    drop(bank);
    for (line, left) in [("pointer moved", 5..6), ("removed id=", 3..5)] {
        let has_left = async |bank: &Bank| left.contains(&bank.generations().await.unwrap().len());
        let place = killed(&template, &["index", "gc"], line, |_| true, has_left).await;
        complete(command(&place, &["sync", place.docs().to_str().unwrap()]));
        let generations = check_clean(&place, &format!("killed at `{line}` of the garbage collection")).await;
        assert_eq!(generations.len(), 2);
    }
}
