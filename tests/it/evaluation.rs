//! Retrieval on the judged collection equals that of another implementation on the same chunks.

use std::path::PathBuf;
use std::sync::Arc;

use embank::embed::{LocalEmbedder, LocalOptions};
use embank::evaluate::Judgements;
use embank::{Bank, BankOptions, SyncOptions};

/// sentence-transformers on torch with exact search, by `scripts/eval_reference.py`; see docs/evaluation.md. They change when
/// the documents, the judgements or the rules that cut documents do, and are then to be made again.
const REFERENCE: [(&str, f64); 2] = [("nDCG@10", 0.7160), ("recall@10", 0.7088)];

#[tokio::test(flavor = "multi_thread")]
async fn quality_is_that_of_the_reference_implementation_to_three_decimals() {
    let data = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("dev_data");
    let model_dir = std::env::var_os("EMBANK_MODEL_DIR")
        .map_or_else(|| dirs::cache_dir().unwrap().join("embank/models"), PathBuf::from);
    let embedder = LocalEmbedder::open(LocalOptions::new("all-minilm-l6-v2", model_dir)).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let bank = Bank::open_or_create(dir.path().join("bank"), Arc::new(embedder), BankOptions::default()).await.unwrap();
    bank.sync(&[data.join("docs")], SyncOptions::default()).await.unwrap();
    let read = |name: &str| std::fs::read_to_string(data.join(name)).unwrap();
    let judgements = Judgements::parse(&read("queries.tsv"), &read("qrels.txt")).unwrap();
    assert!(judgements.queries.len() >= 80);
    let measured = bank.evaluate(&judgements, 10).await.unwrap();
    for ((name, want), got) in REFERENCE.into_iter().zip([measured.ndcg, measured.recall]) {
        assert!((got - want).abs() < 5e-4, "{name}: {got:.4}, the reference has {want:.4}");
    }
}
