//! The memory limit: what runs under it stays below it as the kernel counts, and what cannot is refused beforehand.

use std::process::Command;

use embank::{BankOptions, BuildOptions, Error, IndexKind, ValidateOptions};

use crate::harness::Place;

const MIB: u64 = 1 << 20;

/// Runs a command over the place's bank with the fake embedder; its answer and the most memory that was resident, as it logs
/// at its end what the kernel counted, in MiB.
fn run(place: &Place, arguments: &[&str]) -> (serde_json::Value, f64) {
    let output = Command::new(env!("CARGO_BIN_EXE_embank"))
        .args(["--quiet", "--json", "--durability", "process-crash", "--embedder", "fake:384", "--bank"])
        .arg(place.bank_dir())
        .args(arguments)
        .env("EMBANK_LOG", "embank=info")
        .output()
        .unwrap();
    let log = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{log}");
    let (_, peak) = log.rsplit_once("resident_mb=").unwrap_or_else(|| panic!("no peak in {log}"));
    let peak = peak.split_whitespace().next().unwrap().parse().unwrap();
    (serde_json::from_slice(&output.stdout).unwrap(), peak)
}

#[test]
#[cfg(target_os = "linux")]
fn ingest_and_backfill_stay_below_a_limit_that_they_pass_without() {
    const LIMIT: f64 = 172.0;
    let bounded = Place::with_records(40_000);
    let limit = ["--memory-limit", "172M"];
    let docs = bounded.docs();
    let (ingested, ingest_peak) = run(&bounded, &[limit[0], limit[1], "ingest", docs.to_str().unwrap()]);
    let (report, peak) = run(&bounded, &[limit[0], limit[1], "backfill"]);
    assert_eq!((&report["ready"], &ingested["added"]), (&40_000.into(), &40_000.into()));
    assert!(ingest_peak < LIMIT && peak < LIMIT, "{ingest_peak} and {peak} MiB");
    for report in [&ingested, &report] {
        let expected = report["expected_peak_bytes"].as_u64().unwrap();
        assert!(expected > 144 * MIB && expected <= 172 * MIB, "{expected}");
    }

    let free = Place::with_records(40_000);
    run(&free, &["ingest", free.docs().to_str().unwrap()]);
    let (_, peak) = run(&free, &["backfill"]);
    assert!(peak > LIMIT, "{peak} MiB: the limit above binds nothing");
}

#[tokio::test]
async fn an_index_that_cannot_fit_is_refused_and_leaves_no_generation() {
    let place = Place::with_records(6_000);
    let limit = |mib: u64| BankOptions { memory_limit: Some(mib * MIB), ..place.options() };
    let open =
        |options| embank::Bank::open_or_create(place.bank_dir(), std::sync::Arc::new(place.fake.clone()), options);
    let bank = open(limit(172)).await.unwrap();
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    bank.backfill(Default::default()).await.unwrap();
    for kind in [IndexKind::Hnsw, IndexKind::IvfPq, IndexKind::Auto] {
        let refused = bank.build_index(BuildOptions { kind, ..BuildOptions::default() }).await.unwrap_err();
        assert!(matches!(refused, Error::CannotBuild { .. }), "{refused}");
        assert!(refused.to_string().contains("the memory limit is 172 MiB; raise it, or build flat ("), "{refused}");
    }
    assert!(bank.generations().await.unwrap().is_empty());
    // Nobody is kept waiting by it either: the maintenance lease was given back.
    let flat = BuildOptions { kind: IndexKind::Flat, ..BuildOptions::default() };
    let built = bank.build_validated(flat, ValidateOptions::default()).await.unwrap();
    bank.set_aside(built).await.unwrap();

    let free = open(limit(1024)).await.unwrap();
    let built = free.build_index(BuildOptions::default()).await.unwrap();
    assert!(built.expected_peak_bytes() > 172 * MIB && built.expected_peak_bytes() <= 1024 * MIB);
    assert_eq!(free.generations().await.unwrap().len(), 2);
}

#[test]
fn a_limit_below_the_program_itself_is_a_usage_error() {
    let place = Place::empty();
    let output = Command::new(env!("CARGO_BIN_EXE_embank"))
        .args(["--embedder", "fake:8", "--memory-limit", "64M", "--bank"])
        .arg(place.bank_dir())
        .args(["sync", place.docs().to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64));
    assert!(String::from_utf8_lossy(&output.stderr).contains("give at least 168 MiB"));
    assert!(!place.bank_dir().exists(), "nothing was made");
}
