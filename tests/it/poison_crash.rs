//! A process that dies while it looks for the texts at fault: at every change of the disk between two parts of a halved call.
//!
//! The oracle is a run that nothing happens to: whatever change the first run dies at, the second one must come to the same
//! states, vectors and messages, embed nothing that is in the cache, and need no more calls than a run from the beginning.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use embank::{Bank, BankContents, BankOptions, ContentHash, FailureKind, FaultEffect, Faults, StatusRow, StoreOptions};

use crate::harness::{DIMENSION, Place};
use crate::poison::{Scripted, number, refused};
use crate::power_loss::copy_of;

const TEXTS: usize = 64;

/// Texts of one call: two calls, each with poison.
const PER_CALL: usize = 32;

/// The first of a call, and two in the middle of the other one that part late.
const POISON: [usize; 3] = [0, 40, 41];

fn scripted(place: &Place) -> Scripted {
    Scripted::failing(place, |text| number(text).filter(|n| POISON.contains(n)).map(|_| refused())).of(PER_CALL)
}

async fn open(place: &Place, embedder: &Scripted, faults: Faults) -> embank::Result<Bank> {
    let options = BankOptions { store: StoreOptions { faults, ..place.options().store }, ..place.options() };
    Bank::open_or_create(place.bank_dir(), Arc::new(embedder.clone()), options).await
}

/// What is compared: of the rows that failed everything but moments.
#[derive(Debug, PartialEq)]
struct State {
    contents: BankContents,
    cache: Vec<(ContentHash, Vec<f32>)>,
    failed: Vec<(String, Option<FailureKind>, u32, Option<String>)>,
}

async fn state(bank: &Bank) -> State {
    let row = |row: StatusRow| (row.id.to_string(), row.error_kind, row.attempts, row.error);
    let mut failed: Vec<_> = bank.errors(usize::MAX).await.unwrap().into_iter().map(row).collect();
    failed.sort_by(|a, b| a.0.cmp(&b.0));
    State { contents: bank.contents().await.unwrap(), cache: bank.cached_vectors().await.unwrap(), failed }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bisection_that_is_killed_between_any_two_parts_ends_as_one_that_is_not() {
    let place = Place::with_records(TEXTS);
    let bank = place.bank().await;
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    drop(bank);

    let calm = copy_of(&place);
    let (embedder, faults) = (scripted(&calm), Faults::counted());
    let bank = open(&calm, &embedder, faults.clone()).await.unwrap();
    let report = bank.backfill(Default::default()).await.unwrap();
    assert_eq!((report.ready, report.failed), (TEXTS as u64 - 3, 3));
    let want = state(&bank).await;
    let changes = faults.changes();
    // Two calls, what the poison costs, and a plain text after the first failure of each.
    let bound = 2 + POISON.len() * 2 * (PER_CALL.ilog2() as usize + 1) + 2;
    let is_in_between = |change: &&String| *change == "point backfill: cached";
    let parts = changes.iter().filter(is_in_between).count();
    println!(
        "N = {} changes, {parts} of them between parts; {} calls, bound {bound}",
        changes.len(),
        embedder.calls().len()
    );
    assert!(parts >= 6 && embedder.calls().len() <= bound);

    let mut halfway = 0;
    // How many commits the answers come in depends on which of the threads is first; a few more than were counted.
    for at in 1..=changes.len() as u64 + 8 {
        let struck = copy_of(&place);
        let first = scripted(&struck);
        let faults = Faults::at(at, FaultEffect::Die);
        let ended = match open(&struck, &first, faults.clone()).await {
            Ok(bank) => bank.backfill(Default::default()).await.map(|_| ()),
            Err(error) => Err(error),
        };
        let change = faults.changes().get(at as usize - 1).cloned();
        assert!(
            ended.is_err() || change.is_none() || change.as_deref() == Some("point acknowledge"),
            "{at}: {change:?}"
        );
        struck.clock.advance(Duration::from_secs(600));
        let again = scripted(&struck);
        let bank = open(&struck, &again, Faults::default()).await.unwrap();
        let cached: HashSet<_> = bank.cached_vectors().await.unwrap().into_iter().map(|row| row.0).collect();
        halfway += usize::from(!cached.is_empty() && cached.len() < TEXTS - POISON.len());
        bank.backfill(Default::default()).await.unwrap();
        let case = format!("change {at}: {change:?}");
        let calls = again.calls();
        assert!(calls.len() <= bound, "{case}: {} calls, {bound} allowed", calls.len());
        let sent_again = calls.iter().flatten().filter(|text| cached.contains(&ContentHash::of(text))).count();
        assert_eq!(sent_again, 0, "{case}: texts in the cache were sent again");
        let found = state(&bank).await;
        assert!(found == want, "{case}:\n{:?}\n{:?}", found.failed, want.failed);
        assert!(found.cache.iter().all(|(_, vector)| vector.len() == DIMENSION));
    }
    assert!(halfway >= parts, "the process died {halfway} times in the middle of a search");
}
