//! `documents`: one row a chunk. Written whole: an edit replaces the document's rows and deletes those that are gone.

use std::collections::HashMap;
use std::sync::Arc;

use arrow_array::{ArrayRef, Int32Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};

use super::filter::Filter;
use super::rows::{Rows, count_at, stored_int};
use super::schema;
use super::survey::IdDigest;
use super::table::{Scan, StoredTable};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::{ChunkId, ContentHash, DocId};

/// One chunk of one document, as stored.
#[derive(Clone, Debug, PartialEq)]
pub struct DocumentRow {
    /// The chunk.
    pub id: ChunkId,
    /// The file it came from: relative to the bank's parent folder, or absolute.
    pub source: String,
    /// blake3 of the document's bytes and of the rules that cut it, hex: unchanged means nothing to do.
    pub source_hash: String,
    /// The document: its file, or the record's own id.
    pub doc_id: DocId,
    /// The path below the folder that was ingested, for people.
    pub doc_path: String,
    /// The first sub-folder, or what the document says of itself; empty for none.
    pub category: String,
    /// The category as words.
    pub category_text: String,
    /// `Title › Section`, empty where there is none.
    pub heading: String,
    /// Exactly what the embedder is given.
    pub content: String,
    /// 0-based position in the document.
    pub chunk_index: usize,
    /// Chunks of the document.
    pub total_chunks: usize,
    /// blake3 of `content`.
    pub content_hash: ContentHash,
    /// The document's attributes: a JSON object.
    pub attributes: serde_json::Map<String, serde_json::Value>,
    /// When the row was written.
    pub ingested_at: Timestamp,
}

/// What ingest must know of a stored chunk to tell what changed; no text.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct DocumentKey {
    pub(crate) id: ChunkId,
    pub(crate) source: String,
    pub(crate) source_hash: String,
    pub(crate) doc_id: DocId,
    pub(crate) doc_path: String,
    pub(crate) category: String,
    pub(crate) total_chunks: usize,
}

/// What is embedded: the text and the columns that searches filter on.
#[derive(Clone, Debug)]
pub(crate) struct Passage {
    pub(crate) id: ChunkId,
    pub(crate) doc_id: DocId,
    pub(crate) doc_path: String,
    pub(crate) category: String,
    pub(crate) content: String,
    pub(crate) content_hash: ContentHash,
}

const ALL: [&str; 14] = [
    "id",
    "source",
    "source_hash",
    "doc_id",
    "doc_path",
    "category",
    "category_text",
    "heading",
    "content",
    "chunk_index",
    "total_chunks",
    "content_hash",
    "attributes",
    "ingested_at",
];

/// The typed table.
#[derive(Clone, Debug)]
pub(crate) struct Documents(pub(super) StoredTable);

impl Documents {
    /// Adds chunks, replacing those with the same id: their text is the same, their place in the document may not be.
    pub(crate) async fn upsert(&self, rows: &[DocumentRow]) -> Result<()> {
        if rows.is_empty() {
            return Ok(());
        }
        self.0.upsert(&["id"], encode(rows, &self.0)?).await
    }

    pub(crate) async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        super::delete_by_ids(&self.0, ids).await
    }

    /// The chunks with these ids, in no particular order; absent ones are left out.
    pub(crate) async fn get(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, DocumentRow>> {
        let scan = Scan::columns(&ALL).filter(Filter::In("id", super::id_texts(ids)));
        let mut found = HashMap::with_capacity(ids.len());
        for batch in self.0.scan_all(scan).await? {
            found.extend(decode(self.0.name(), &batch)?.into_iter().map(|row| (row.id.clone(), row)));
        }
        Ok(found)
    }

    /// Every chunk's key, streamed.
    pub(crate) async fn keys(&self) -> Result<BoxStream<'static, Result<Vec<DocumentKey>>>> {
        let columns = ["id", "source", "source_hash", "doc_id", "doc_path", "category", "total_chunks"];
        let name = self.0.name().to_owned();
        let batches = self.0.scan(Scan::columns(&columns)).await?;
        let decoded = batches.and_then(move |batch| {
            let keys = decode_keys(&name, &batch);
            async move { keys }
        });
        Ok(decoded.boxed())
    }

    /// Every chunk's id, streamed in storage order.
    pub(crate) async fn ids(&self) -> Result<BoxStream<'static, Result<Vec<ChunkId>>>> {
        super::stream_ids(&self.0, None).await
    }

    /// Every row in storage order, streamed.
    pub(crate) async fn rows(&self) -> Result<BoxStream<'static, Result<Vec<DocumentRow>>>> {
        let name = self.0.name().to_owned();
        let batches = self.0.scan(Scan::columns(&ALL).batch_rows(1024)).await?;
        let decoded = batches.and_then(move |batch| {
            let rows = decode(&name, &batch);
            async move { rows }
        });
        Ok(decoded.boxed())
    }

    /// A fingerprint of the chunks there are.
    pub(crate) async fn digest(&self) -> Result<IdDigest> {
        super::digest_ids(&self.0).await
    }

    pub(crate) async fn count(&self) -> Result<u64> {
        self.0.count(None).await
    }

    /// The version of the table: it changes with every write, and no two writes ever share one.
    pub(crate) async fn version(&self) -> Result<String> {
        Ok(super::table::version_name(&*self.0.dataset().await?))
    }
}

fn encode(rows: &[DocumentRow], table: &StoredTable) -> Result<RecordBatch> {
    fn texts<'a>(rows: &'a [DocumentRow], text: impl Fn(&'a DocumentRow) -> &'a str) -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(text)))
    }
    let ints = |int: fn(&DocumentRow) -> usize| -> ArrayRef {
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| stored_int(int(row)))))
    };
    let owned = |text: fn(&DocumentRow) -> String| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rows.iter().map(text)))
    };
    let columns = vec![
        texts(rows, |r| r.id.as_str()),
        texts(rows, |r| &r.source),
        texts(rows, |r| &r.source_hash),
        texts(rows, |r| r.doc_id.as_str()),
        texts(rows, |r| &r.doc_path),
        texts(rows, |r| &r.category),
        texts(rows, |r| &r.category_text),
        texts(rows, |r| &r.heading),
        texts(rows, |r| &r.content),
        ints(|r| r.chunk_index),
        ints(|r| r.total_chunks),
        owned(|r| r.content_hash.to_string()),
        owned(|r| serde_json::Value::Object(r.attributes.clone()).to_string()),
        Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|r| r.ingested_at.0))),
    ];
    RecordBatch::try_new(schema::documents(), columns).map_err(|e| table.error("encode rows of", e))
}

fn decode(table: &str, batch: &RecordBatch) -> Result<Vec<DocumentRow>> {
    let rows = Rows::new(table, batch);
    let text = |column| rows.texts(column);
    let [id, source, source_hash, doc_id] = [text("id")?, text("source")?, text("source_hash")?, text("doc_id")?];
    let [doc_path, category, category_text] = [text("doc_path")?, text("category")?, text("category_text")?];
    let [heading, content, hash, attributes] =
        [text("heading")?, text("content")?, text("content_hash")?, text("attributes")?];
    let [chunk_index, total_chunks] = [rows.ints("chunk_index")?, rows.ints("total_chunks")?];
    let ingested_at = rows.moments("ingested_at")?;
    (0..batch.num_rows())
        .map(|row| {
            Ok(DocumentRow {
                id: ChunkId::from_stored(id.value(row)),
                source: source.value(row).to_owned(),
                source_hash: source_hash.value(row).to_owned(),
                doc_id: DocId::from_stored(doc_id.value(row)),
                doc_path: doc_path.value(row).to_owned(),
                category: category.value(row).to_owned(),
                category_text: category_text.value(row).to_owned(),
                heading: heading.value(row).to_owned(),
                content: content.value(row).to_owned(),
                chunk_index: count_at(chunk_index, row),
                total_chunks: count_at(total_chunks, row),
                content_hash: hash_at(&rows, hash, row)?,
                attributes: serde_json::from_str(attributes.value(row))
                    .map_err(|_| rows.malformed("attributes", "it is not a JSON object"))?,
                ingested_at: Timestamp(ingested_at.value(row)),
            })
        })
        .collect()
}

fn decode_keys(table: &str, batch: &RecordBatch) -> Result<Vec<DocumentKey>> {
    let rows = Rows::new(table, batch);
    let [id, source] = [rows.texts("id")?, rows.texts("source")?];
    let [source_hash, doc_id] = [rows.texts("source_hash")?, rows.texts("doc_id")?];
    let [doc_path, category] = [rows.texts("doc_path")?, rows.texts("category")?];
    let total_chunks = rows.ints("total_chunks")?;
    let key = |row| DocumentKey {
        id: ChunkId::from_stored(id.value(row)),
        source: source.value(row).to_owned(),
        source_hash: source_hash.value(row).to_owned(),
        doc_id: DocId::from_stored(doc_id.value(row)),
        doc_path: doc_path.value(row).to_owned(),
        category: category.value(row).to_owned(),
        total_chunks: count_at(total_chunks, row),
    };
    Ok((0..batch.num_rows()).map(key).collect())
}

pub(super) fn hash_at(rows: &Rows<'_>, hashes: &StringArray, row: usize) -> Result<ContentHash> {
    ContentHash::from_hex(hashes.value(row)).ok_or_else(|| rows.malformed("content_hash", "it is not a blake3 in hex"))
}
