//! Bad input gets a clear answer before anything is touched. Bad files and rows are in `ingest`, bad answers of an embedder
//! in `backfill`, bad model files in `embed_local`.

use std::sync::Arc;

use embank::{Bank, BankOptions, Error, IndexKind, SearchFilter, SearchOptions};

use crate::harness::{Place, build};

#[tokio::test]
async fn an_empty_query_and_k_zero_are_refused() {
    let place = Place::with_documents(3);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let calls = place.fake.texts_embedded();
    for (query, k) in [("", 10), (" \t\n", 10), ("frost", 0)] {
        let refused = bank.search(query, &SearchOptions { k, ..SearchOptions::default() }).await;
        assert!(matches!(refused, Err(Error::InvalidQuery { .. })), "{query:?} {k}");
    }
    assert_eq!(place.fake.texts_embedded(), calls, "refused before the embedder is asked");
}

#[tokio::test]
async fn filters_with_quotes_and_sql_match_nothing_and_harm_nothing() {
    let place = Place::with_documents(9);
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    for value in ["' OR 1=1 --", "water'; DROP TABLE documents; --", "\"", "%", "wat\u{0}er", "\\'"] {
        let filter = SearchFilter::parse(&[format!("category={value}")]).unwrap();
        let found = bank.search("frost", &SearchOptions { filter, ..SearchOptions::default() }).await.unwrap();
        assert!(found.hits.is_empty(), "{value}");
    }
    assert_eq!(bank.contents().await.unwrap().documents.len(), 9);
}

#[tokio::test]
async fn categories_with_quotes_are_found_by_their_own_name() {
    let place = Place::empty();
    place.write("a.md", "---\ncategory: \"o'hara's\"\n---\nfrost");
    let bank = place.filled().await;
    build(&bank, IndexKind::Flat).await.unwrap();
    let filter = SearchFilter::parse(&["category=o'hara's"]).unwrap();
    let found = bank.search("frost", &SearchOptions { filter, ..SearchOptions::default() }).await.unwrap();
    assert_eq!(found.hits.len(), 1);
}

#[tokio::test]
async fn what_is_not_a_bank_is_refused_and_left_as_it_is() {
    let place = Place::with_documents(2);
    let before: Vec<_> = std::fs::read_dir(place.docs()).unwrap().map(|e| e.unwrap().file_name()).collect();
    let open = async |dir| Bank::open_or_create(dir, Arc::new(place.fake.clone()), BankOptions::default()).await.err();
    assert!(matches!(open(place.docs()).await, Some(Error::NotABank { .. })));
    let after: Vec<_> = std::fs::read_dir(place.docs()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(before, after);

    let missing = Bank::open(place.bank_dir(), Arc::new(place.fake.clone()), BankOptions::default()).await.err();
    assert!(matches!(missing, Some(Error::NoBank { .. })));
    assert!(!place.bank_dir().exists());

    drop(place.bank().await);
    let newer = r#"{"format": 999, "created_by": "embank 99", "created_at": "2099-01-01"}"#;
    std::fs::write(place.bank_dir().join("embank.json"), newer).unwrap();
    assert!(matches!(open(place.bank_dir()).await, Some(Error::NewerFormat { found: 999, .. })));
}

#[tokio::test]
async fn a_missing_source_is_an_error_and_prunes_nothing() {
    let place = Place::with_documents(3);
    let bank = place.filled().await;
    let refused = bank.ingest(&[place.path().join("nowhere")], Default::default()).await;
    assert!(matches!(refused, Err(Error::Io { .. })), "{refused:?}");
    assert_eq!(bank.contents().await.unwrap().documents.len(), 3);
}

#[tokio::test]
async fn a_text_longer_than_the_window_is_cut_counted_and_reported() {
    // Ingest cuts to the window, so this can only come from another embedder's chunks: here from a tokenizer that lies.
    use embank::embed::{Embedded, Embedder, EmbedderIdentity, FakeEmbedder, TextKind, TokenCounter};
    struct Lying(FakeEmbedder);
    struct Short;
    impl TokenCounter for Short {
        fn count_tokens(&self, text: &str) -> usize {
            text.split_whitespace().count() / 4
        }
        fn max_text_tokens(&self) -> usize {
            254
        }
    }
    #[async_trait::async_trait]
    impl Embedder for Lying {
        fn identity(&self) -> &EmbedderIdentity {
            self.0.identity()
        }
        fn token_counter(&self) -> embank::Result<Arc<dyn TokenCounter>> {
            Ok(Arc::new(Short))
        }
        async fn embed(&self, kind: TextKind, texts: &[String]) -> embank::Result<Vec<Embedded>> {
            self.0.embed(kind, texts).await
        }
    }
    let place = Place::empty();
    place.write("long.txt", &"word ".repeat(900));
    let bank =
        Bank::open_or_create(place.bank_dir(), Arc::new(Lying(place.fake.clone())), place.options()).await.unwrap();
    bank.ingest(&[place.docs()], Default::default()).await.unwrap();
    let report = bank.backfill(Default::default()).await.unwrap();
    assert_eq!((report.ready, report.truncated), (1, 1));
}

/// A file-size limit stands in for a full disk: past it every write fails, as on a disk without space.
#[test]
#[cfg(unix)]
fn a_full_disk_is_a_clear_error_and_the_next_run_continues() {
    use std::process::Command;
    let place = Place::with_records(6000);
    let sync = |limit: &str| {
        let embank = env!("CARGO_BIN_EXE_embank");
        let script = format!("trap '' XFSZ; ulimit -f {limit}; exec {embank} \"$@\"");
        let mut command = Command::new("sh");
        command.args(["-c", &script, "sh", "--embedder", "fake:32", "--bank"]).arg(place.bank_dir());
        command.arg("sync").arg(place.docs()).output().unwrap()
    };
    // In blocks of 512 bytes: the documents do not fit.
    let full = sync("256");
    assert_eq!(full.status.code(), Some(1), "{}", String::from_utf8_lossy(&full.stderr));
    let message = String::from_utf8_lossy(&full.stderr).into_owned();
    assert!(message.contains("table documents") && message.contains("File too large"), "{message}");
    let retried = sync("unlimited");
    assert_eq!(retried.status.code(), Some(0), "{}", String::from_utf8_lossy(&retried.stderr));
    assert!(
        String::from_utf8_lossy(&retried.stdout).contains("6,000 rows"),
        "{}",
        String::from_utf8_lossy(&retried.stdout)
    );
}
