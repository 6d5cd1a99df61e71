//! Searching from an application: filters, chunks instead of documents, and vectors of one's own.

use std::sync::Arc;

use embank::embed::{Embedder, FakeEmbedder, TextKind};
use embank::{Bank, BankOptions, Error, Grouping, SearchFilter, SearchOptions, SyncOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let notes = dir.path().join("notes");
    for (name, text) in [
        ("water/frost.txt", "Drain the pump before frost."),
        ("bees/frost.txt", "Wrap the hive before frost."),
        ("garden/frost.txt", "Cover the beds before frost."),
    ] {
        let path = notes.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&notes))?;
        std::fs::write(path, text)?;
    }
    let embedder = FakeEmbedder::new(64);
    let bank =
        Bank::open_or_create(dir.path().join("bank"), Arc::new(embedder.clone()), BankOptions::default()).await?;
    bank.sync(&[&notes], SyncOptions::default()).await?;

    let all = bank.search("before frost", &SearchOptions::default()).await?;
    println!("all: {}", all.hits.len());

    let filter = SearchFilter::parse(&["category=bees"])?;
    let bees = bank.search("before frost", &SearchOptions { filter, ..SearchOptions::default() }).await?;
    println!("bees: {}", bees.hits.iter().map(|hit| hit.snippet.as_str()).collect::<Vec<_>>().join(" | "));

    let vector = embedder.embed(TextKind::Query, &["drain the pump".to_owned()]).await?.remove(0).vector;
    let options = SearchOptions { k: 1, grouping: Grouping::Chunks, ..SearchOptions::default() };
    let nearest = bank.search_vector(&vector, &options).await?;
    println!("nearest to a vector: {}", nearest.hits.iter().map(|hit| hit.doc_path.as_str()).collect::<String>());

    match bank.search("", &SearchOptions::default()).await {
        Err(Error::InvalidQuery { reason }) => println!("refused: {reason}"),
        other => println!("unexpected: {other:?}"),
    }
    Ok(())
}
