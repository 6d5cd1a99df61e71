//! A bank that is kept fresh: each tick ingests what changed, embeds it, and folds rows into the index or builds a new one only
//! when the policy says so.

use std::sync::Arc;

use embank::embed::FakeEmbedder;
use embank::{Bank, BankOptions, BuildOptions, IndexKind, IndexOutcome, SyncOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("notes.jsonl");
    let bank =
        Bank::open_or_create(dir.path().join("bank"), Arc::new(FakeEmbedder::new(32)), BankOptions::default()).await?;
    let build = BuildOptions { kind: IndexKind::Hnsw, seed: Some(1), ..BuildOptions::default() };

    // The folder grows: at first nothing is indexed, then a little is new, then more, then there is twice as much.
    for rows in [1000, 1000, 1100, 1500, 2200] {
        let records: Vec<_> = (0..rows).map(|n| format!("{{\"id\": {n}, \"text\": \"{}\"}}", words(n))).collect();
        std::fs::write(&file, records.join("\n"))?;
        let report = bank.sync(&[&file], SyncOptions { build, ..SyncOptions::default() }).await?;
        let index = match report.index {
            IndexOutcome::Activated { rows, reason, .. } => format!("rebuilt over {rows} rows: {reason}"),
            IndexOutcome::Optimised { rows, reason, .. } => format!("took {rows} rows in: {reason}"),
            IndexOutcome::Kept { reason, .. } => format!("kept: {reason}"),
            other => format!("{other:?}"),
        };
        println!("{rows} notes, {} embedded, index {index}", report.backfill.embedded);
    }
    Ok(())
}

/// Eight words that depend on the number alone.
fn words(number: u64) -> String {
    let word = |n: u64| format!("w{}", number.wrapping_mul(2_654_435_761).rotate_left(n as u32 * 7) % 200);
    (0..8).map(word).collect::<Vec<_>>().join(" ")
}
