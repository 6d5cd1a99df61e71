//! Too little disk, no permission, few file descriptors: a clear error, what was acknowledged stays, the next run continues.

#![cfg(unix)]

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use embank::IndexKind;

use crate::harness::{DIMENSION, Place, build};

const EMBANK: &str = env!("CARGO_BIN_EXE_embank");

fn embank(bank: &Path) -> Command {
    let mut command = Command::new(EMBANK);
    command.args(["--quiet", "--embedder", &format!("fake:{DIMENSION}"), "--bank"]).arg(bank);
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A digest of the contents, by the real binary.
fn digest(bank: &Path) -> String {
    let asked = embank(bank).args(["--json", "digest"]).output().unwrap();
    assert!(asked.status.success(), "{}", text(&asked.stderr));
    text(&asked.stdout)
}

/// A disk of its own that is full after a few megabytes: a tmpfs in a mount namespace of the child's.
#[test]
#[cfg(target_os = "linux")]
fn a_disk_that_fills_up_is_a_clear_error_and_the_bank_goes_on_once_there_is_room() {
    let place = Place::with_records(3000);
    // As far from the documents as the other one: a source's name is relative to the folder that holds the bank.
    let calm = place.path().join("calm").join("bank");
    std::fs::create_dir(place.path().join("calm")).unwrap();
    assert!(embank(&calm).arg("sync").arg(place.docs()).output().unwrap().status.success());
    let disk = place.path().join("disk");
    std::fs::create_dir(&disk).unwrap();
    // Grows step by step, so that space runs out in every stage; after each failure the bank must open.
    let script = r#"
        mount -t tmpfs -o size=1m tmpfs "$DISK" || exit 77
        size=1; failures=0; opened=0
        while :; do
            if "$EMBANK" --quiet --embedder "$EMBEDDER" --bank "$DISK/bank" sync "$DOCS" 2> "$LOG" > /dev/null; then break; fi
            failures=$((failures + 1))
            grep -q "No space left" "$LOG" || { cat "$LOG"; exit 78; }
            "$EMBANK" --embedder "$EMBEDDER" --bank "$DISK/bank" status > /dev/null 2>&1 && opened=$((opened + 1))
            size=$((size * 3 / 2 + 1)); mount -o "remount,size=${size}m" "$DISK"
            [ $size -lt 100 ] || exit 79
        done
        echo "failures $failures opened $opened"
        "$EMBANK" --embedder "$EMBEDDER" --bank "$DISK/bank" --json digest
    "#;
    let run = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .env("DISK", &disk)
        .env("EMBANK", EMBANK)
        .env("EMBEDDER", format!("fake:{DIMENSION}"))
        .env("DOCS", place.docs())
        .env("LOG", place.path().join("log"))
        .output()
        .unwrap();
    let (out, err) = (text(&run.stdout), text(&run.stderr));
    assert!(run.status.success(), "{:?} {out} {err}", run.status);
    let (counts, digest_of_disk) = out.split_once('\n').unwrap();
    let numbers: Vec<u32> = counts.split(' ').filter_map(|word| word.parse().ok()).collect();
    assert!(numbers[0] >= 2, "space ran out {} times only", numbers[0]);
    assert!(numbers[1] + 1 >= numbers[0], "of {} full disks {} left a bank that opens", numbers[0], numbers[1]);
    assert_eq!(digest_of_disk.trim(), digest(&calm).trim());
}

/// Runs over the place's bank as somebody without special rights: root may read and write everywhere.
fn unprivileged(place: &Place, arguments: &[&str]) -> Output {
    // Where everybody may reach it.
    let program = place.path().join("embank");
    if !program.exists() {
        std::fs::hard_link(EMBANK, &program).or_else(|_| std::fs::copy(EMBANK, &program).map(|_| ())).unwrap();
    }
    let mut command = Command::new(program);
    command.args(["--embedder", &format!("fake:{DIMENSION}"), "--bank"]).arg(place.bank_dir()).args(arguments);
    // Who runs the tests is seen by who owns what they make.
    if std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(place.path()).unwrap()) == 0 {
        command.uid(65534).gid(65534);
    }
    command.output().unwrap()
}

fn allow(folder: &Path, mode: u32) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            allow(&path, mode);
        }
    }
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_bank_can_be_searched_and_says_what_it_cannot_write() {
    let place = Place::with_documents(30);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    drop(bank);
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    allow(&place.bank_dir(), 0o555);
    let found = unprivileged(&place, &["--json", "search", "frost", "-k", "3"]);
    let status = unprivileged(&place, &["status"]);
    let digest = unprivileged(&place, &["--json", "digest"]);
    place.write("late.txt", "too late");
    let refused = unprivileged(&place, &["sync", place.docs().to_str().unwrap()]);
    allow(&place.bank_dir(), 0o755);
    assert!(found.status.success() && status.status.success() && digest.status.success(), "{}", text(&found.stderr));
    assert_eq!(text(&found.stdout).matches("\"doc_path\"").count(), 3, "{}", text(&found.stdout));
    assert_eq!(refused.status.code(), Some(1));
    let message = text(&refused.stderr);
    assert!(message.contains("Permission denied") && message.contains("table documents"), "{message}");
    assert!(embank(&place.bank_dir()).arg("sync").arg(place.docs()).output().unwrap().status.success());
}

#[test]
fn a_folder_and_a_file_that_may_not_be_read_are_named_and_the_rest_is_taken() {
    let place = Place::with_documents(6);
    place.write("closed/a.txt", "nobody reads this");
    place.write("secret.txt", "nor this");
    std::fs::set_permissions(place.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    std::fs::set_permissions(place.docs().join("closed"), std::fs::Permissions::from_mode(0o000)).unwrap();
    std::fs::set_permissions(place.docs().join("secret.txt"), std::fs::Permissions::from_mode(0o000)).unwrap();
    let run = unprivileged(&place, &["--json", "sync", place.docs().to_str().unwrap()]);
    std::fs::set_permissions(place.docs().join("closed"), std::fs::Permissions::from_mode(0o755)).unwrap();
    assert!(run.status.success(), "{}", text(&run.stderr));
    let report: serde_json::Value = serde_json::from_slice(&run.stdout).unwrap();
    assert_eq!(report["backfill"]["ready"], 6, "{report}");
    let skipped = report["ingest"]["skipped"].to_string();
    assert!(skipped.contains("closed") && skipped.contains("secret.txt"), "{skipped}");
}

#[test]
fn two_hundred_and_fifty_six_file_descriptors_are_enough() {
    let place = Place::with_records(6000);
    let run = |step: &[&str]| {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 256; exec \"$@\"", "sh", EMBANK, "--quiet"]);
        command.args(["--embedder", &format!("fake:{DIMENSION}"), "--bank"]).arg(place.bank_dir()).args(step);
        let run = command.output().unwrap();
        assert!(run.status.success(), "{step:?}: {}", text(&run.stderr));
        text(&run.stdout)
    };
    let docs = place.docs().to_string_lossy().into_owned();
    // Many commits, so that there are many pieces and versions.
    run(&["ingest", &docs]);
    for _ in 0..40 {
        run(&["backfill", "--limit", "100"]);
    }
    run(&["sync", &docs, "--kind", "hnsw"]);
    assert!(run(&["--json", "search", "frost"]).contains("doc_path"));
    run(&["index", "gc"]);
    run(&["status"]);
}

/// By hand, in a shell that may open 256 files: `ulimit -n 256; cargo test --release --test it -- --ignored --nocapture ten_thousand`.
#[tokio::test]
#[ignore = "minutes, and it wants a limit that the shell sets"]
async fn a_bank_of_ten_thousand_versions_needs_no_more_descriptors() {
    let place = Place::with_records(8000);
    let bank = place.bank().await;
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    let manifests = || {
        let files = crate::power_loss::files_below(&place.bank_dir()).into_iter();
        files.filter(|file| file.extension().is_some_and(|extension| extension == "manifest")).count()
    };
    while manifests() < 10_000 {
        for _ in 0..50 {
            bank.backfill(embank::BackfillOptions { limit: Some(3), ..Default::default() }).await.unwrap();
        }
    }
    let sizes = bank.status().await.unwrap().tables;
    sizes.iter().for_each(|size| println!("{}: {} versions, {} fragments", size.table, size.versions, size.fragments));
    drop(bank);
    let docs = place.docs().to_string_lossy().into_owned();
    let steps: [&[&str]; 7] = [
        &["status"],
        &["doctor"],
        &["sync", &docs, "--kind", "hnsw"],
        &["search", "frost"],
        &["doctor", "--repair"],
        &["index", "gc"],
        &["status"],
    ];
    for step in steps {
        let before = manifests();
        let began = std::time::Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n 256; exec \"$@\"", "sh"]);
        command.args([EMBANK, "--quiet", "--embedder", &format!("fake:{DIMENSION}"), "--bank"]);
        let run = command.arg(place.bank_dir()).args(step).output().unwrap();
        println!("{}: {:.1} s, {before} versions before", step.join(" "), began.elapsed().as_secs_f64());
        assert!(run.status.success(), "{step:?}: {}{}", text(&run.stdout), text(&run.stderr));
    }
}

#[tokio::test]
async fn a_bank_whose_folder_vanishes_is_an_error_that_names_it() {
    let place = Place::with_documents(5);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    std::fs::remove_dir_all(place.bank_dir()).unwrap();
    place.write("more.txt", "more");
    let refused = bank.sync(&[place.docs()], Default::default()).await.unwrap_err();
    assert!(format!("{refused:?}").contains("bank"), "{refused:?}");
    assert!(!place.bank_dir().join("embank.json").exists(), "nothing is made again behind the user's back");
}
