//! A folder in, an answer out: the shortest way through the library.
//!
//! Runs on the fake embedder, so that it needs no model; with a real one, replace it by `LocalEmbedder::open(…)`.

use std::sync::Arc;

use embank::embed::FakeEmbedder;
use embank::{Bank, BankOptions, SearchOptions, SyncOptions};

const NOTES: [(&str, &str); 4] = [
    ("water/barrel.md", "# Rain barrel\n\nEmpty the barrel before the first hard frost and leave the tap open."),
    ("water/well.md", "# Well pump\n\nPrime the pump with a bucket of clean water after every dry spell."),
    ("bees/winter.md", "# Wintering\n\nLeave the hive closed from November on and clear dead bees from the entrance."),
    ("soil/lime.md", "# Lime\n\nSpread garden lime in autumn, never together with manure."),
];

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let notes = dir.path().join("notes");
    for (name, text) in NOTES {
        let path = notes.join(name);
        std::fs::create_dir_all(path.parent().unwrap_or(&notes))?;
        std::fs::write(path, text)?;
    }

    let bank =
        Bank::open_or_create(dir.path().join("bank"), Arc::new(FakeEmbedder::new(64)), BankOptions::default()).await?;
    let report = bank.sync(&[&notes], SyncOptions::default()).await?;
    println!("{} documents, {} chunks embedded", report.ingest.added, report.backfill.embedded);

    let found = bank.search("what must I do with the barrel before frost", &SearchOptions::default()).await?;
    for hit in found.hits.iter().take(1) {
        println!("{}. {} ({}): {}", hit.rank, hit.doc_path, hit.heading, hit.snippet);
    }

    let again = bank.sync(&[&notes], SyncOptions::default()).await?;
    println!("again: {} unchanged, {} embedded", again.ingest.unchanged, again.backfill.embedded);
    Ok(())
}
