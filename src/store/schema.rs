//! The columns of every table. What a column means is in ARCHITECTURE.md; here is only its type and whether it may be null.
//!
//! Keys are declared as Lance's unenforced primary key: with it, two processes that insert the same new key at once conflict
//! instead of both succeeding.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_schema::{DataType, Field, Schema, SchemaRef, TimeUnit};
use lance_core::datatypes::{LANCE_UNENFORCED_PRIMARY_KEY, LANCE_UNENFORCED_PRIMARY_KEY_POSITION};

/// The name of the vector column.
pub(crate) const VECTOR: &str = "vector";

/// Microseconds since the epoch, UTC. Without a time zone in the type, so that filters compare with plain literals.
pub(crate) const TIMESTAMP: DataType = DataType::Timestamp(TimeUnit::Microsecond, None);

pub(crate) fn documents() -> SchemaRef {
    schema([
        key("id", 1),
        text("source"),
        text("source_hash"),
        text("doc_id"),
        text("doc_path"),
        text("category"),
        text("category_text"),
        text("heading"),
        text("content"),
        int("chunk_index"),
        int("total_chunks"),
        text("content_hash"),
        text("attributes"),
        moment("ingested_at"),
    ])
}

pub(crate) fn status() -> SchemaRef {
    schema([
        key("id", 1),
        key("embedder_id", 2),
        text("status"),
        int("attempts"),
        moment("next_attempt_at").with_nullable(true),
        text("error_kind").with_nullable(true),
        text("error").with_nullable(true),
        text("lease_owner").with_nullable(true),
        moment("lease_until").with_nullable(true),
        int("embedding_version"),
        moment("embedded_at").with_nullable(true),
        moment("updated_at"),
    ])
}

pub(crate) fn embeddings(dimension: i32) -> SchemaRef {
    schema([
        key("id", 1),
        text("content_hash"),
        text("doc_id"),
        text("doc_path"),
        text("category"),
        moment("embedded_at"),
        vector(dimension),
    ])
}

pub(crate) fn cache(dimension: i32) -> SchemaRef {
    schema([text("content_hash"), moment("created_at"), vector(dimension)])
}

pub(crate) fn generations() -> SchemaRef {
    schema([
        key("id", 1),
        Field::new("sequence", DataType::Int64, false),
        text("embedder_id"),
        text("kind"),
        text("state"),
        text("record"),
        moment("created_at"),
        moment("updated_at"),
    ])
}

pub(crate) fn meta() -> SchemaRef {
    schema([key("key", 1), text("value"), moment("updated_at")])
}

pub(crate) fn runs() -> SchemaRef {
    schema([key("id", 1), text("kind"), moment("started_at"), moment("ended_at"), text("outcome"), text("report")])
}

fn schema<const N: usize>(fields: [Field; N]) -> SchemaRef {
    Arc::new(Schema::new(fields.to_vec()))
}

fn key(name: &str, position: u32) -> Field {
    text(name).with_metadata(HashMap::from([
        (LANCE_UNENFORCED_PRIMARY_KEY.to_owned(), "true".to_owned()),
        (LANCE_UNENFORCED_PRIMARY_KEY_POSITION.to_owned(), position.to_string()),
    ]))
}

fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, false)
}

fn int(name: &str) -> Field {
    Field::new(name, DataType::Int32, false)
}

fn moment(name: &str) -> Field {
    Field::new(name, TIMESTAMP, false)
}

fn vector(dimension: i32) -> Field {
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    Field::new(VECTOR, DataType::FixedSizeList(item, dimension), false)
}
