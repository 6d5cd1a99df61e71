//! A builder that stood still beyond its lease while another one took over: it activates nothing, and removes nothing that
//! is not its own.

use std::sync::Arc;
use std::time::Duration;

use embank::{Bank, BuildOptions, Error, GenerationState, IndexKind, ValidateOptions};

use crate::harness::{Place, build};

/// Longer than the maintenance lease.
const TOO_LONG: Duration = Duration::from_secs(61);

/// A handle with its own connection, as another process would have.
async fn another(place: &Place) -> Bank {
    Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), place.options()).await.unwrap()
}

fn graph() -> BuildOptions {
    BuildOptions { kind: IndexKind::Hnsw, seed: Some(7), ..BuildOptions::default() }
}

async fn state_of(bank: &Bank, id: &embank::GenerationId) -> Option<GenerationState> {
    bank.generations().await.unwrap().into_iter().find(|generation| generation.id == *id).map(|found| found.state)
}

#[tokio::test]
async fn what_was_built_before_another_took_over_is_given_up() {
    let place = Place::with_records(400);
    let bank = place.filled().await;
    let built = bank.build_index(graph()).await.unwrap();
    let late = built.id().clone();
    place.clock.advance(TOO_LONG);
    let other = another(&place).await;
    let theirs = build(&other, IndexKind::Hnsw).await.unwrap().active;

    let refused = bank.validate(built, ValidateOptions::default()).await;
    assert!(matches!(refused, Err(Error::LeaseLost { .. })), "{refused:?}");
    assert_eq!(state_of(&other, &late).await, Some(GenerationState::Failed));
    assert_eq!(state_of(&other, &theirs).await, Some(GenerationState::Active));
    // Its record goes with the garbage, and the other one's stays whole.
    assert_eq!(other.keep_house(Default::default()).await.unwrap().removed, [late]);
    assert_eq!(other.search("rain", &Default::default()).await.unwrap().generation, theirs);
}

#[tokio::test]
async fn what_was_validated_before_another_took_over_does_not_replace_what_that_one_activated() {
    let place = Place::with_records(400);
    let bank = place.filled().await;
    let validated = bank.build_validated(graph(), ValidateOptions::default()).await.unwrap();
    let late = validated.id().clone();
    place.clock.advance(TOO_LONG);
    let other = another(&place).await;
    let theirs = build(&other, IndexKind::Flat).await.unwrap().active;

    let refused = bank.activate(validated).await;
    assert!(matches!(refused, Err(Error::LeaseLost { .. })), "{refused:?}");
    assert_eq!(other.status().await.unwrap().active.unwrap().id, theirs);
    // It passed, so whoever wants it can have it.
    assert_eq!(state_of(&other, &late).await, Some(GenerationState::Ready));
    assert_eq!(other.activate_generation(&late).await.unwrap().previous, Some(theirs));
}

#[tokio::test]
async fn a_first_index_is_not_activated_under_the_eyes_of_one_who_took_over() {
    let place = Place::with_records(50);
    let bank = place.filled().await;
    let validated = bank.build_validated(BuildOptions::default(), ValidateOptions::default()).await.unwrap();
    place.clock.advance(TOO_LONG);
    let other = another(&place).await;
    let theirs = other.build_index(BuildOptions::default()).await.unwrap();
    assert!(matches!(bank.activate(validated).await, Err(Error::LeaseLost { .. })));
    assert!(other.status().await.unwrap().active.is_none());
    let theirs = other.validate(theirs, ValidateOptions::default()).await.unwrap();
    other.activate(theirs).await.unwrap();
}

#[tokio::test]
async fn a_lease_that_ran_out_and_that_nobody_took_is_still_held() {
    let place = Place::with_records(50);
    let bank = place.filled().await;
    let validated = bank.build_validated(BuildOptions::default(), ValidateOptions::default()).await.unwrap();
    // A laptop that slept.
    place.clock.advance(TOO_LONG);
    bank.activate(validated).await.unwrap();
}

#[tokio::test]
async fn a_generation_that_garbage_collection_gave_up_cannot_become_active_again() {
    let place = Place::with_records(50);
    let bank = place.filled().await;
    let mut generations = Vec::new();
    for _ in 0..4 {
        generations.push(build(&bank, IndexKind::Flat).await.unwrap().active);
    }
    assert_eq!(
        bank.keep_house(Default::default()).await.unwrap().removed,
        [generations[1].clone(), generations[0].clone()]
    );
    assert!(matches!(bank.activate_generation(&generations[0]).await, Err(Error::UnknownGeneration { .. })));
    assert_eq!(bank.rollback().await.unwrap().active, generations[2]);
    assert!(matches!(bank.rollback().await, Err(Error::WrongState { .. })), "the history ends there");
}
