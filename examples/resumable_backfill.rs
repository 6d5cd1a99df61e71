//! Kills itself half-way through embedding, and continues: none is lost, and no text whose vector was stored is embedded again.
//!
//! The program starts itself as a child whose embedder aborts the process, without any clean-up, once it has seen 20,000
//! texts; the parent then does the rest, and counts. The fake embedder outruns the disk, so that some thousands of its answers
//! are on their way when the process dies; calls of a slower one are sized to half a second each.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
use embank::{BackfillOptions, Bank, BankOptions, IngestOptions};

const TEXTS: u64 = 40_000;
const ABORT_AFTER: u64 = 20_000;

/// The fake embedder, until it has seen enough.
struct Mortal {
    fake: FakeEmbedder,
    seen: AtomicU64,
}

#[async_trait::async_trait]
impl Embedder for Mortal {
    fn identity(&self) -> &EmbedderIdentity {
        self.fake.identity()
    }

    fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
        self.fake.token_counter()
    }

    async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
        if self.seen.fetch_add(texts.len() as u64, Ordering::SeqCst) + texts.len() as u64 > ABORT_AFTER {
            std::process::abort();
        }
        self.fake.embed(kind, texts).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(dir) = std::env::args().nth(1) {
        let embedder = Mortal { fake: FakeEmbedder::new(64), seen: AtomicU64::new(0) };
        let bank = Bank::open(dir, Arc::new(embedder), BankOptions::default()).await?;
        bank.backfill(BackfillOptions::default()).await?;
        return Err("the embedder should have aborted this process".into());
    }

    let dir = tempfile::tempdir()?;
    let records: Vec<_> = (0..TEXTS).map(|n| format!("{{\"id\": {n}, \"text\": \"note number {n}\"}}")).collect();
    std::fs::write(dir.path().join("notes.jsonl"), records.join("\n"))?;
    let fake = FakeEmbedder::new(64);
    let bank_dir = dir.path().join("bank");
    let bank = Bank::open_or_create(&bank_dir, Arc::new(fake.clone()), BankOptions::default()).await?;
    bank.ingest(&[dir.path().join("notes.jsonl")], IngestOptions::default()).await?;

    let child = std::process::Command::new(std::env::current_exe()?).arg(&bank_dir).output()?;
    println!("the first run died: {}", !child.status.success());

    let report = bank.backfill(BackfillOptions::default()).await?;
    let stored = bank.contents().await?.embeddings.len() as u64;
    println!("the second run embedded {} texts, those that the first had not finished", report.embedded);
    println!("stored: {stored} of {TEXTS}");
    Ok(())
}
