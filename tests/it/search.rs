//! Search: the right documents, filtered, grouped, and refused where there is nothing to answer with.

use embank::{Error, Grouping, IndexKind, SearchFilter, SearchOptions};

use crate::harness::{DIMENSION, Place, build, sentence};

#[tokio::test]
async fn a_filter_is_applied_before_k_is_counted() {
    for kind in [IndexKind::Flat, IndexKind::Hnsw] {
        let place = Place::with_records(600);
        let bank = place.filled().await;
        build(&bank, kind).await.unwrap();
        let filter = SearchFilter::parse(&["category=soil"]).unwrap();
        let found = bank.search("frost barrel", &SearchOptions { k: 50, filter, ..Default::default() }).await.unwrap();
        assert_eq!(found.hits.len(), 50, "{kind:?}");
        assert!(found.hits.iter().all(|hit| hit.category == "soil"), "{kind:?}");
    }
}

#[tokio::test]
async fn hits_come_best_first_with_what_a_reader_needs() {
    let place = Place::with_documents(30);
    place.write("power/battery.md", "# Battery bank\n\n## Winter\n\nKeep the cells above freezing and half charged.");
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let found = bank.search("battery cells freezing", &SearchOptions::default()).await.unwrap();
    let best = &found.hits[0];
    assert_eq!((best.rank, best.doc_path.as_str(), best.category.as_str()), (1, "power/battery.md", "power"));
    assert_eq!(best.heading, "Battery bank › Winter");
    assert!(best.snippet.starts_with("Keep the cells"), "{}", best.snippet);
    assert!(found.hits.windows(2).all(|pair| pair[0].score >= pair[1].score));
    assert!(found.hits.iter().all(|hit| hit.score <= 1.0 + 1e-5));
}

#[tokio::test]
async fn a_document_appears_once_unless_chunks_are_asked_for() {
    let place = Place::empty();
    let long: Vec<_> = (0..200).map(sentence).collect();
    place.write("long.txt", &long.join(" "));
    place.write("short.txt", "something else");
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let grouped = bank.search("frost barrel", &SearchOptions::default()).await.unwrap();
    assert_eq!(grouped.hits.len(), 2);
    let options = SearchOptions { grouping: Grouping::Chunks, ..SearchOptions::default() };
    let chunks = bank.search("frost barrel", &options).await.unwrap();
    assert!(chunks.hits.len() > 2);
}

#[tokio::test]
async fn asking_for_more_than_there_is_gives_what_there_is() {
    let place = Place::with_documents(4);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let found = bank.search("frost", &SearchOptions { k: 100, ..Default::default() }).await.unwrap();
    assert_eq!(found.hits.len(), 4);
    let filter = SearchFilter::default().category("no such category");
    let none = bank.search("frost", &SearchOptions { filter, ..Default::default() }).await.unwrap();
    assert!(none.hits.is_empty());
}

#[tokio::test]
async fn a_search_by_vector_equals_the_search_by_its_text() {
    use embank::embed::{Embedder, TextKind};
    let place = Place::with_documents(50);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let vector = place.fake.embed(TextKind::Query, &["pond frost".into()]).await.unwrap().remove(0).vector;
    let by_vector = bank.search_vector(&vector, &SearchOptions::default()).await.unwrap();
    let by_text = bank.search("pond frost", &SearchOptions::default()).await.unwrap();
    let ids = |hits: &[embank::Hit]| hits.iter().map(|hit| hit.id.clone()).collect::<Vec<_>>();
    assert_eq!(ids(&by_vector.hits), ids(&by_text.hits));
    let refused = bank.search_vector(&vector[..DIMENSION - 1], &SearchOptions::default()).await;
    assert!(matches!(refused, Err(Error::InvalidQuery { .. })), "{refused:?}");
}

#[tokio::test]
async fn without_an_index_the_answer_says_what_to_do() {
    let place = Place::with_documents(3);
    let refused = place.filled().await.search("frost", &SearchOptions::default()).await.unwrap_err();
    assert!(matches!(refused, Error::NoActiveGeneration { .. }));
    assert!(refused.to_string().contains("embank index build"), "{refused}");
}
