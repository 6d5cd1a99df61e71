//! The doctor: each check finds the damage that it is for and no other, and the repair, or the step that it names, gives the
//! undamaged bank again.
//!
//! Banks are broken from outside, through the storage engine and the files, as nobody but a fault would.

use std::path::Path;
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef, FixedSizeListArray, PrimitiveArray, RecordBatch, StringArray};
use arrow_schema::{DataType, Field, Schema};
use embank::embed::FakeEmbedder;
use embank::{
    Bank, BankContents, BankOptions, CheckReport, DoctorOptions, DoctorReport, IndexKind, Repair, SearchOptions,
    Severity,
};
use lance::Dataset;
use lance::dataset::transaction::{Operation, Transaction};
use lance::dataset::{CommitBuilder, InsertBuilder, UpdateBuilder, WriteMode, WriteParams};
use lance::index::DatasetIndexExt;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::harness::{DIMENSION, Place, build, sentence};

/// Enough for a graph of some size.
const ROWS: usize = 300;

/// A bank that is broken in a moment, and what it held before.
pub struct Patient {
    pub place: Place,
    pub embedder: String,
}

/// A healthy bank with two generations, the newer one active, made once and copied for each test.
pub async fn patient() -> Patient {
    static HEALTHY: OnceCell<Patient> = OnceCell::const_new();
    let healthy = HEALTHY
        .get_or_init(|| async {
            let place = Place::with_records(ROWS);
            let bank = place.filled().await;
            build(&bank, IndexKind::Flat).await.unwrap();
            build(&bank, IndexKind::Hnsw).await.unwrap();
            let embedder = bank.status().await.unwrap().embedder.to_string();
            Patient { place, embedder }
        })
        .await;
    let place = Place::empty();
    copy(healthy.place.path(), place.path());
    Patient { place, embedder: healthy.embedder.clone() }
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let (from, to) = (entry.as_ref().unwrap().path(), to.join(entry.unwrap().file_name()));
        if from.is_dir() { copy(&from, &to) } else { _ = std::fs::copy(from, to).unwrap() }
    }
}

impl Patient {
    pub fn embeddings(&self) -> String {
        format!("embeddings__{}", self.embedder)
    }

    pub fn cache(&self) -> String {
        format!("emb_cache__{}", self.embedder)
    }

    pub fn folder(&self, table: &str) -> std::path::PathBuf {
        self.place.bank_dir().join(format!("{table}.lance"))
    }

    async fn table(&self, table: &str) -> Dataset {
        Dataset::open(self.folder(table).to_str().unwrap()).await.unwrap()
    }

    /// The rows of a table that meet a condition.
    pub async fn rows(&self, table: &str, condition: &str) -> RecordBatch {
        let dataset = self.table(table).await;
        let mut scanner = dataset.scan();
        if !condition.is_empty() {
            scanner.filter(condition).unwrap();
        }
        scanner.try_into_batch().await.unwrap()
    }

    /// The `n`-th value of a text column.
    pub async fn text(&self, table: &str, column: &str, n: usize) -> String {
        let rows = self.rows(table, "").await;
        rows.column_by_name(column).unwrap().as_string::<i32>().value(n).to_owned()
    }

    pub async fn append(&self, table: &str, rows: RecordBatch) {
        let params = WriteParams { mode: WriteMode::Append, enable_stable_row_ids: true, ..WriteParams::default() };
        let dataset = Arc::new(self.table(table).await);
        InsertBuilder::new(dataset).with_params(&params).execute(vec![rows]).await.unwrap();
    }

    async fn delete(&self, table: &str, condition: &str) {
        self.table(table).await.delete(condition).await.unwrap();
    }

    /// Sets a column to the value of an expression.
    pub async fn set(&self, table: &str, condition: &str, column: &str, expression: &str) {
        let update = UpdateBuilder::new(Arc::new(self.table(table).await)).update_where(condition).unwrap();
        let updated = update.set(column, expression).unwrap().build().unwrap().execute().await.unwrap();
        assert!(updated.rows_updated > 0, "{condition} met nothing");
    }

    /// The rows that meet a condition, with their vectors changed.
    pub async fn changed(&self, table: &str, condition: &str, change: impl Fn(f32) -> f32) -> RecordBatch {
        let rows = self.rows(table, condition).await;
        let vectors: &FixedSizeListArray = rows.column_by_name("vector").unwrap().as_fixed_size_list();
        let numbers: PrimitiveArray<Float32Type> = vectors.values().as_primitive::<Float32Type>().unary(change);
        let DataType::FixedSizeList(item, width) = vectors.data_type() else { panic!("{}", vectors.data_type()) };
        with_column(&rows, "vector", Arc::new(FixedSizeListArray::new(item.clone(), *width, Arc::new(numbers), None)))
    }

    /// The rows that meet a condition, with another text in a column.
    pub async fn reworded(&self, table: &str, condition: &str, column: &str, text: &str) -> RecordBatch {
        let rows = self.rows(table, condition).await;
        let texts = StringArray::from_iter_values((0..rows.num_rows()).map(|_| text));
        with_column(&rows, column, Arc::new(texts))
    }

    /// Puts rows in the place of those that meet a condition.
    pub async fn replace(&self, table: &str, condition: &str, rows: RecordBatch) {
        self.delete(table, condition).await;
        self.append(table, rows).await;
    }

    /// Makes a table that was not there.
    async fn make(&self, table: &str, rows: RecordBatch) {
        let params = WriteParams { enable_stable_row_ids: true, ..WriteParams::default() };
        let folder = self.folder(table);
        InsertBuilder::new(folder.to_str().unwrap()).with_params(&params).execute(vec![rows]).await.unwrap();
    }

    pub async fn drop_index(&self, name: &str) {
        self.table(&self.embeddings()).await.drop_index(name).await.unwrap();
    }

    pub async fn repeat(&self, table: &str, condition: &str) {
        let rows = self.rows(table, condition).await;
        assert!(rows.num_rows() > 0, "{condition} met nothing");
        self.append(table, rows).await;
    }

    pub async fn examine(&self, repair: Repair) -> DoctorReport {
        Bank::examine(self.place.bank_dir(), self.options(), DoctorOptions { repair }).await.unwrap()
    }

    fn options(&self) -> BankOptions {
        self.place.options()
    }

    /// Asserts that exactly these checks find something.
    pub async fn finds(&self, checks: &[&str]) -> DoctorReport {
        let report = self.examine(Repair::Nothing).await;
        assert_eq!(names(&report), checks, "{:#?}", found(&report));
        let only_notes = found(&report).iter().all(|check| check.severity == Severity::Note);
        assert_eq!((report.healthy, report.repairs.len()), (only_notes, 0));
        report
    }

    /// Asserts that a repair leaves nothing to be found, and that what the bank then lacks is made again by the next sync.
    pub async fn is_mended_by_repair(&self) {
        let report = self.examine(Repair::WhatIsSafe).await;
        assert!(report.healthy && found(&report).iter().all(|check| check.left == 0), "{:#?}", found(&report));
        assert!(!report.repairs.is_empty());
        self.is_as_before().await;
    }

    /// Asserts that a sync makes the bank what it was.
    async fn is_as_before(&self) {
        let bank = self.sync().await;
        assert_eq!(bank.contents().await.unwrap(), undamaged().await);
        let found = bank.search(&sentence(7), &SearchOptions::default()).await.unwrap();
        assert_eq!(found.hits[0].doc_id.as_str(), "r7");
        drop(bank);
        self.finds(&[]).await;
    }

    pub async fn sync(&self) -> Bank {
        let bank = self.bank().await;
        bank.sync(&[self.place.docs()], Default::default()).await.unwrap();
        bank
    }

    pub async fn bank(&self) -> Bank {
        let fake = Arc::new(FakeEmbedder::new(DIMENSION));
        Bank::open(self.place.bank_dir(), fake, self.options()).await.unwrap()
    }
}

/// The rows with another column of that name, of whatever type.
fn with_column(rows: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    assert!(rows.num_rows() > 0, "the condition met nothing");
    let schema = rows.schema();
    let fields = schema.fields().iter().map(|field| match field.name() == name {
        true => Arc::new(Field::clone(field).with_data_type(column.data_type().clone())),
        false => field.clone(),
    });
    let columns = schema.fields().iter().zip(rows.columns());
    let columns = columns.map(|(field, old)| if field.name() == name { column.clone() } else { old.clone() });
    RecordBatch::try_new(Arc::new(Schema::new(fields.collect::<Vec<_>>())), columns.collect()).unwrap()
}

pub async fn undamaged() -> BankContents {
    static CONTENTS: OnceCell<BankContents> = OnceCell::const_new();
    CONTENTS.get_or_init(|| async { patient().await.bank().await.contents().await.unwrap() }).await.clone()
}

pub fn found(report: &DoctorReport) -> Vec<&CheckReport> {
    report.findings().collect()
}

pub fn names(report: &DoctorReport) -> Vec<&str> {
    report.findings().map(|check| check.name).collect()
}

#[tokio::test]
async fn a_healthy_bank_gives_no_finding_and_a_look_writes_nothing() {
    let patient = patient().await;
    let bank = patient.bank().await;
    let before = crate::harness::footprint(&bank).await;
    patient.finds(&[]).await;
    let report = bank.doctor(DoctorOptions { repair: Repair::WhatIsSafe }).await.unwrap();
    assert!(report.healthy && report.repairs.is_empty() && report.checks.len() > 20);
    assert!(report.checks.iter().all(|check| check.not_examined.is_none()), "{:#?}", report.checks);
    assert_eq!(crate::harness::footprint(&bank).await, before);
}

#[tokio::test]
async fn the_doctor_needs_no_model_and_its_exit_code_says_what_is_left() {
    let patient = patient().await;
    let doctor = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_embank"));
        command.env_remove("EMBANK_EMBEDDER").args(["--model-dir", "/nowhere", "--bank"]);
        let output = command.arg(patient.place.bank_dir()).arg("doctor").args(args).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, text) = doctor(&[]);
    assert!(code == Some(0) && text.ends_with("the bank is healthy\n"), "{text}");
    patient.repeat("documents", "doc_id = 'r7'").await;
    let (code, text) = doctor(&[]);
    assert!(code == Some(1) && text.contains("document-keys") && text.contains("ERROR: 1"), "{text}");
    let (code, text) = doctor(&["--json"]);
    let report: Value = serde_json::from_str(&text).unwrap();
    let check = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "document-keys").unwrap();
    assert_eq!((code, &report["healthy"], &check["left"]), (Some(1), &false.into(), &1.into()));
    let (code, text) = doctor(&["--repair"]);
    assert!(code == Some(0) && text.contains("repaired: removed 1 rows of documents"), "{text}");
    assert_eq!(doctor(&[]).0, Some(0));
}

#[tokio::test]
async fn every_embedder_is_looked_at_not_only_the_open_one() {
    let patient = patient().await;
    let fake = Arc::new(FakeEmbedder::new(16));
    let other = Bank::open(patient.place.bank_dir(), fake, patient.options()).await.unwrap();
    other.backfill(Default::default()).await.unwrap();
    let table = format!("embeddings__{}", other.status().await.unwrap().embedder);
    patient.finds(&[]).await;
    let rows = patient.changed(&table, "doc_id = 'r7'", |_| f32::INFINITY).await;
    patient.replace(&table, "doc_id = 'r7'", rows).await;
    let report = patient.finds(&["vector-values"]).await;
    assert!(found(&report)[0].examples[0].contains(table.trim_start_matches("embeddings__")));
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_chunk_that_stands_twice_in_documents() {
    let patient = patient().await;
    patient.repeat("documents", "doc_id = 'r7'").await;
    patient.finds(&["document-keys"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn chunks_that_are_not_what_their_hashes_say() {
    let patient = patient().await;
    patient.set("documents", "doc_id = 'r7'", "content", "'another text'").await;
    patient.set("documents", "doc_id = 'r8'", "attributes", "'nonsense'").await;
    assert_eq!(found(&patient.finds(&["document-hashes"]).await)[0].found, 2);
    // The text in the bank may be the only one: it stays until the next sync has read it again.
    let report = patient.examine(Repair::WhatIsSafe).await;
    assert!(!report.healthy && found(&report)[0].left == 2 && found(&report)[0].mend.contains("embank sync PATH"));
    assert_eq!(patient.rows("documents", "content = 'another text'").await.num_rows(), 1);
    patient.is_as_before().await;
}

#[tokio::test]
async fn a_chunk_under_the_id_of_another_document() {
    let patient = patient().await;
    patient.set("documents", "doc_id = 'r9'", "doc_id", "'r300'").await;
    patient.finds(&["document-hashes"]).await;
    patient.examine(Repair::WhatIsSafe).await;
    // The first sync takes the row for one of a document that is gone, the second finds the document missing.
    patient.sync().await;
    patient.is_as_before().await;
}

#[tokio::test]
async fn a_state_that_stands_twice() {
    let patient = patient().await;
    let id = patient.text("status", "id", 3).await;
    patient.repeat("status", &format!("id = '{id}'")).await;
    patient.finds(&["status-keys"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_state_without_a_document() {
    let patient = patient().await;
    let id = patient.text("status", "id", 3).await;
    let rows = patient.reworded("status", &format!("id = '{id}'"), "id", "00112233445566778899aabbccddeeff").await;
    patient.append("status", rows).await;
    patient.finds(&["status-orphans"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn states_that_the_state_machine_does_not_write() {
    let patient = patient().await;
    let damages = [("status", "'odd'"), ("attempts", "-1"), ("lease_owner", "'nobody'"), ("embedded_at", "NULL")];
    for (n, (column, value)) in damages.into_iter().enumerate() {
        let id = patient.text("status", "id", n * 20).await;
        patient.set("status", &format!("id = '{id}'"), column, value).await;
    }
    let report = patient.finds(&["status-fields"]).await;
    assert_eq!(found(&report)[0].found, damages.len() as u64, "{:#?}", found(&report));
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_claim_of_a_worker_that_is_gone_is_a_note() {
    let patient = patient().await;
    let id = patient.text("status", "id", 3).await;
    let row = format!("id = '{id}'");
    for (column, value) in
        [("status", "'in_progress'"), ("lease_owner", "'elsewhere/1/1/1'"), ("lease_until", "CAST(1 AS TIMESTAMP(6))")]
    {
        patient.set("status", &row, column, value).await;
    }
    assert!(patient.finds(&["stale-leases"]).await.healthy);
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_ready_chunk_without_a_vector() {
    let patient = patient().await;
    patient.delete(&patient.embeddings(), "doc_id = 'r7'").await;
    patient.finds(&["ready-without-vector"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_lost_table_of_vectors_leaves_ready_chunks_without_any() {
    let patient = patient().await;
    std::fs::remove_dir_all(patient.folder(&patient.embeddings())).unwrap();
    let report = patient.finds(&["ready-without-vector", "generation-index"]).await;
    assert_eq!(found(&report)[0].found, ROWS as u64);
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_vector_that_stands_twice() {
    let patient = patient().await;
    patient.repeat(&patient.embeddings(), "doc_id = 'r7'").await;
    patient.finds(&["vector-keys"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_vector_without_a_document() {
    let (patient, row) = (patient().await, "doc_id = 'r7'");
    let rows = patient.reworded(&patient.embeddings(), row, "id", "00112233445566778899aabbccddeeff").await;
    patient.append(&patient.embeddings(), rows).await;
    patient.finds(&["vector-orphans"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_vector_of_another_text() {
    let (patient, row) = (patient().await, "doc_id = 'r7'");
    let hash = blake3::hash(b"another text").to_hex();
    let rows = patient.reworded(&patient.embeddings(), row, "content_hash", &hash).await;
    patient.replace(&patient.embeddings(), row, rows).await;
    patient.finds(&["vector-content"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn vectors_that_are_not_finite_or_not_of_unit_norm() {
    let patient = patient().await;
    for (row, factor) in [("doc_id = 'r7'", f32::NAN), ("doc_id = 'r8'", 2.0)] {
        let rows = patient.changed(&patient.embeddings(), row, |x| x * factor).await;
        patient.replace(&patient.embeddings(), row, rows).await;
    }
    assert_eq!(found(&patient.finds(&["vector-values"]).await)[0].found, 2);
    // A bank that is older than the record of what its embedder promises shows it by its other vectors.
    patient.delete("meta", "starts_with(key, 'embedder/')").await;
    assert_eq!(found(&patient.finds(&["vector-values"]).await)[0].found, 2);
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_cached_vector_that_is_not_finite() {
    let patient = patient().await;
    let row = format!("content_hash = '{}'", patient.text(&patient.cache(), "content_hash", 3).await);
    let rows = patient.changed(&patient.cache(), &row, |_| f32::NAN).await;
    patient.replace(&patient.cache(), &row, rows).await;
    patient.finds(&["cache-values"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn two_cached_vectors_of_one_text() {
    let patient = patient().await;
    let row = format!("content_hash = '{}'", patient.text(&patient.cache(), "content_hash", 3).await);
    // Equal ones are as they should be.
    patient.repeat(&patient.cache(), &row).await;
    patient.finds(&[]).await;
    let rows = patient.changed(&patient.cache(), &row, |x| -x).await;
    patient.append(&patient.cache(), rows.slice(0, 1)).await;
    patient.finds(&["cache-agreement"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_table_of_another_dimension() {
    let patient = patient().await;
    let row = patient.rows(&patient.cache(), "").await.slice(0, 1);
    let unit = PrimitiveArray::<Float32Type>::from(vec![1.0, 0.0]);
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let narrow = with_column(&row, "vector", Arc::new(FixedSizeListArray::new(item, 2, Arc::new(unit), None)));
    std::fs::remove_dir_all(patient.folder(&patient.cache())).unwrap();
    patient.make(&patient.cache(), narrow).await;
    let report = patient.finds(&["vector-dimension"]).await;
    assert!(found(&report)[0].mend.contains("remove the folder"));
    assert!(!patient.examine(Repair::WhatIsSafe).await.healthy);
    std::fs::remove_dir_all(patient.folder(&patient.cache())).unwrap();
    patient.is_as_before().await;
}

/// The ids of the flat generation and of the graph, which is active.
async fn generations(patient: &Patient) -> (String, String) {
    let bank = patient.bank().await;
    let all = bank.generations().await.unwrap();
    (all[0].id.to_string(), all[1].id.to_string())
}

#[tokio::test]
async fn generations_that_stand_twice_or_say_two_things_or_nothing() {
    let patient = patient().await;
    let (flat, graph) = generations(&patient).await;
    patient.repeat("generations", &format!("id = '{flat}'")).await;
    patient.set("generations", &format!("id = '{graph}'"), "state", "'failed'").await;
    assert_eq!(found(&patient.finds(&["generation-records"]).await)[0].found, 2);
    patient.is_mended_by_repair().await;
    patient.set("generations", &format!("id = '{flat}'"), "record", "'{'").await;
    patient.finds(&["generation-records"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_build_that_was_interrupted_is_a_note() {
    let patient = patient().await;
    let row = format!("id = '{}'", generations(&patient).await.0);
    let rows = patient.rows("generations", &row).await;
    let record = rows.column_by_name("record").unwrap().as_string::<i32>().value(0);
    let record = record.replace("\"state\":\"ready\"", "\"state\":\"building\"");
    patient.set("generations", &row, "record", &format!("'{}'", record.replace('\'', "''"))).await;
    patient.set("generations", &row, "state", "'building'").await;
    assert!(patient.finds(&["interrupted-builds"]).await.healthy);
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_pointer_to_nothing_to_a_failed_generation_or_without_sense() {
    let patient = patient().await;
    let (flat, graph) = generations(&patient).await;
    for value in ["{\"active\":\"g9999-00000000\",\"previous\":[]}", "nonsense"] {
        patient.set("meta", "starts_with(key, 'active/')", "value", &format!("'{value}'")).await;
        patient.finds(&["pointer"]).await;
        patient.is_mended_by_repair().await;
        assert_eq!(patient.bank().await.status().await.unwrap().active.unwrap().id.as_str(), graph);
    }
    let row = format!("id = '{graph}'");
    let rows = patient.rows("generations", &row).await;
    let record = rows.column_by_name("record").unwrap().as_string::<i32>().value(0);
    let record = record.replace("\"state\":\"ready\"", "\"state\":\"failed\"");
    patient.set("generations", &row, "record", &format!("'{}'", record.replace('\'', "''"))).await;
    patient.set("generations", &row, "state", "'failed'").await;
    // A failed generation's index is a leftover.
    patient.finds(&["pointer", "index-leftovers"]).await;
    patient.is_mended_by_repair().await;
    assert_eq!(patient.bank().await.status().await.unwrap().active.unwrap().id.as_str(), flat);
}

#[tokio::test]
async fn a_generation_whose_index_is_not_in_its_table() {
    let patient = patient().await;
    let (flat, graph) = generations(&patient).await;
    patient.drop_index(&graph).await;
    patient.finds(&["generation-index"]).await;
    patient.is_mended_by_repair().await;
    assert_ne!(patient.bank().await.status().await.unwrap().active.unwrap().id.as_str(), graph);
    assert!(patient.bank().await.generations().await.unwrap().iter().any(|one| one.id.as_str() == flat));
}

#[tokio::test]
async fn an_index_whose_files_are_gone() {
    let patient = patient().await;
    for folder in std::fs::read_dir(patient.folder(&patient.embeddings()).join("_indices")).unwrap() {
        let file = std::fs::read_dir(folder.unwrap().path()).unwrap().next().unwrap().unwrap();
        std::fs::remove_file(file.path()).unwrap();
    }
    patient.finds(&["index-files"]).await;
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn an_index_that_is_taken_to_cover_rows_that_it_does_not_hold() {
    let patient = patient().await;
    patient.place.write("late.txt", "note late: turbine gearbox oil");
    let before = patient.sync().await.contents().await.unwrap();
    patient.finds(&[]).await;
    let dataset = Arc::new(patient.table(&patient.embeddings()).await);
    let old = dataset.load_indices().await.unwrap()[0].clone();
    let mut new = old.clone();
    new.fragment_bitmap = Some(dataset.fragments().iter().map(|fragment| fragment.id as u32).collect());
    let operation = Operation::CreateIndex { new_indices: vec![new], removed_indices: vec![old] };
    let transaction = Transaction::new(dataset.version_id(), operation, None);
    CommitBuilder::new(dataset).execute(transaction).await.unwrap();
    patient.finds(&["index-coverage"]).await;
    let report = patient.examine(Repair::WhatIsSafe).await;
    assert!(report.healthy, "{:#?}", found(&report));
    assert_eq!(patient.sync().await.contents().await.unwrap(), before);
    patient.finds(&[]).await;
}

#[tokio::test]
async fn indexes_and_folders_that_belong_to_nothing() {
    let patient = patient().await;
    let (flat, graph) = generations(&patient).await;
    let stray = patient.folder(&patient.embeddings()).join("_indices/00112233-4455-6677-8899-aabbccddeeff");
    std::fs::create_dir(&stray).unwrap();
    std::fs::write(stray.join("index.idx"), "half an index").unwrap();
    patient.delete("generations", &format!("id = '{graph}'")).await;
    let pointer = format!("'{{\"active\":\"{flat}\",\"previous\":[]}}'");
    patient.set("meta", "starts_with(key, 'active/')", "value", &pointer).await;
    assert_eq!(found(&patient.finds(&["index-leftovers"]).await)[0].found, 2);
    patient.is_mended_by_repair().await;
    assert!(!stray.exists());
}

#[tokio::test]
async fn facts_that_stand_twice_or_cannot_be_read() {
    let patient = patient().await;
    patient.sync().await;
    patient.repeat("meta", "starts_with(key, 'reconciled/')").await;
    patient.set("meta", "starts_with(key, 'settled/')", "value", "'nonsense'").await;
    patient.set("meta", "key = 'lease/maintenance'", "value", "'nonsense'").await;
    assert_eq!(found(&patient.finds(&["meta-values"]).await)[0].found, 3);
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn a_spend_ledger_whose_sums_are_not_true() {
    let patient = patient().await;
    let some = |tokens: u64| json!({ "tokens": tokens, "picos": tokens });
    let ledger =
        json!({ "day": 20_000, "today": some(5), "total": some(1), "runs": [{ "id": "a", "spent": some(7) }] });
    let row = patient.reworded("meta", "key = 'lease/maintenance'", "key", "ledger").await;
    let row = with_column(&row, "value", Arc::new(StringArray::from_iter_values([ledger.to_string()])));
    patient.make("spend", row).await;
    patient.finds(&["spend-ledger"]).await;
    patient.is_mended_by_repair().await;
    let mended: Value = serde_json::from_str(&patient.text("spend", "value", 0).await).unwrap();
    assert_eq!((&mended["total"]["tokens"], &mended["today"]["tokens"]), (&7.into(), &5.into()));
    // What cannot be read may stand for money: a person must say that it counts from zero.
    patient.set("spend", "true", "value", "'nonsense'").await;
    patient.finds(&["spend-ledger"]).await;
    assert!(!patient.examine(Repair::WhatIsSafe).await.healthy);
}

#[tokio::test]
async fn lost_tables() {
    let patient = patient().await;
    for table in ["status", "runs"] {
        std::fs::remove_dir_all(patient.folder(table)).unwrap();
    }
    assert_eq!(found(&patient.finds(&["tables"]).await)[0].found, 2);
    patient.is_mended_by_repair().await;
}

#[tokio::test]
async fn lost_documents_do_not_cost_the_vectors() {
    let patient = patient().await;
    std::fs::remove_dir_all(patient.folder("documents")).unwrap();
    patient.finds(&["tables"]).await;
    let report = patient.examine(Repair::WhatIsSafe).await;
    assert!(!report.healthy && found(&report)[0].mend.contains("embank sync PATH"), "{:#?}", found(&report));
    assert_eq!(patient.rows(&patient.embeddings(), "").await.num_rows(), ROWS);
    patient.is_as_before().await;
}

#[tokio::test]
async fn strange_files_are_named_and_left_alone() {
    let patient = patient().await;
    let stray = patient.place.bank_dir().join("thesis.txt");
    std::fs::write(&stray, "dear").unwrap();
    let report = patient.finds(&["unknown-files"]).await;
    assert!(report.healthy && found(&report)[0].examples == ["thesis.txt"]);
    patient.examine(Repair::WhatIsSafe).await;
    assert!(stray.exists());
}

#[tokio::test]
async fn a_damaged_marker_is_named_and_not_guessed_at() {
    let patient = patient().await;
    let marker = patient.place.bank_dir().join("embank.json");
    let text = std::fs::read(&marker).unwrap();
    std::fs::write(&marker, "{").unwrap();
    patient.finds(&["format-marker"]).await;
    assert!(!patient.examine(Repair::WhatIsSafe).await.healthy);
    assert_eq!(std::fs::read(&marker).unwrap(), b"{");
    std::fs::write(&marker, text).unwrap();
    patient.finds(&[]).await;
    // What is no bank at all is refused.
    let empty = tempfile::tempdir().unwrap();
    let refused = Bank::examine(empty.path(), patient.options(), DoctorOptions::default()).await;
    assert!(matches!(refused, Err(embank::Error::NoBank { .. })), "{refused:?}");
}
