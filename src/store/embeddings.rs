//! `embeddings__<embedder>`: one vector a chunk. Append and delete only; carries the index generations (see `index_build`, `index_search`).
//! `emb_cache__<embedder>`: vectors by content, append only; each hash once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use arrow_array::types::Float32Type;
use arrow_array::{ArrayRef, FixedSizeListArray, PrimitiveArray, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow_schema::{DataType, Field};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;

use super::attempts::Attempts;
use super::commit::Uncommitted;
use super::documents::hash_at;
use super::filter::Filter;
use super::keys::KnownKeys;
use super::rows::Rows;
use super::schema;
use super::survey::IdDigest;
use super::table::{Scan, StoredTable};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::{ChunkId, ContentHash, DocId};

/// One chunk's vector with the columns that searches filter on.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct EmbeddingRow {
    pub(crate) id: ChunkId,
    pub(crate) content_hash: ContentHash,
    pub(crate) doc_id: DocId,
    pub(crate) doc_path: String,
    pub(crate) category: String,
    pub(crate) vector: Arc<[f32]>,
}

/// A chunk, its content, and its vector.
pub(crate) type StoredVector = (ChunkId, ContentHash, Vec<f32>);

/// A text and its vector in the cache.
pub(crate) type CachedVector = (ContentHash, Vec<f32>);

/// Vectors of consecutive rows.
#[derive(Clone, Debug)]
pub(crate) struct VectorBatch {
    pub(crate) row_ids: Vec<u64>,
    /// Row-major: `row_ids.len()` × dimension.
    pub(crate) vectors: Vec<f32>,
}

/// A fixed version of the table: ground truth and index are read from the same rows.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot(pub(super) Arc<Dataset>);

impl Snapshot {
    /// The version's number.
    pub(crate) fn version(&self) -> u64 {
        self.0.version_id()
    }
}

/// The typed table of one embedder.
#[derive(Clone, Debug)]
pub(crate) struct Embeddings {
    pub(super) table: StoredTable,
    pub(super) dimension: usize,
}

impl Embeddings {
    /// Nothing known yet about which chunks have a vector.
    pub(crate) fn known(&self) -> KnownKeys {
        KnownKeys::of("id")
    }

    /// Adds rows whose chunk has none yet; returns how many that were. `known` grows with the table, so that only what
    /// others have added since the last time is read.
    ///
    /// Chunks that are certainly new, nearly all, are appended on the condition that nobody has added any meanwhile. Those
    /// that may be there already, after a crash or of a worker that lost its lease, are merged one by one.
    pub(crate) async fn insert(&self, rows: &[EmbeddingRow], known: &mut KnownKeys, now: Timestamp) -> Result<u64> {
        let mut written: Option<(usize, Uncommitted)> = None;
        let mut attempts = Attempts::at(&self.table, "append to");
        loop {
            attempts.next().await?;
            self.refresh().await?;
            let dataset = self.table.dataset().await?;
            known.catch_up(&self.table, &dataset).await?;
            let (suspect, absent): (Vec<_>, Vec<_>) = rows.iter().partition(|row| known.contains(row.id.as_str()));
            if absent.is_empty() {
                return self.table.insert_missing(&["id"], self.encode(&suspect, now)?).await;
            }
            // Keys are only ever added to `known`: as many absent rows as before are the same rows.
            let fragments = match written.take() {
                Some((count, fragments)) if count == absent.len() => fragments,
                _ => self.table.write(&dataset, self.encode(&absent, now)?).await?,
            };
            let ids = absent.iter().map(|row| row.id.as_str()).collect::<Vec<_>>();
            if self.table.insert_absent(&dataset, fragments.clone(), "id", &ids).await? {
                let merged = self.table.insert_missing(&["id"], self.encode(&suspect, now)?).await?;
                return Ok(absent.len() as u64 + merged);
            }
            written = Some((absent.len(), fragments));
        }
    }

    fn encode(&self, rows: &[&EmbeddingRow], now: Timestamp) -> Result<RecordBatch> {
        fn texts<'a>(rows: &[&'a EmbeddingRow], text: impl Fn(&'a EmbeddingRow) -> &'a str) -> ArrayRef {
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| text(row))))
        }
        let hashes = rows.iter().map(|r| r.content_hash.to_string());
        let columns = vec![
            texts(rows, |r| r.id.as_str()),
            Arc::new(StringArray::from_iter_values(hashes)),
            texts(rows, |r| r.doc_id.as_str()),
            texts(rows, |r| &r.doc_path),
            texts(rows, |r| &r.category),
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|_| now.0))),
            vector_column(rows.iter().map(|r| &*r.vector), self.dimension, &self.table)?,
        ];
        let schema = schema::embeddings(width(self.dimension, &self.table)?);
        RecordBatch::try_new(schema, columns).map_err(|e| self.table.error("encode rows of", e))
    }

    /// A fingerprint of the chunks that have a vector.
    pub(crate) async fn digest(&self) -> Result<IdDigest> {
        super::digest_ids(&self.table).await
    }

    pub(crate) async fn delete(&self, ids: &[ChunkId]) -> Result<()> {
        super::delete_by_ids(&self.table, ids).await
    }

    pub(crate) async fn refresh(&self) -> Result<()> {
        self.table.refresh().await
    }

    pub(crate) fn dimension(&self) -> usize {
        self.dimension
    }

    /// The newest version that this handle has seen.
    pub(crate) async fn snapshot(&self) -> Result<Snapshot> {
        Ok(Snapshot(self.table.dataset().await?))
    }

    pub(crate) async fn count(&self) -> Result<u64> {
        self.table.count(None).await
    }

    pub(crate) async fn count_at(&self, snapshot: &Snapshot) -> Result<u64> {
        let rows = snapshot.0.count_rows(None).await.map_err(|e| self.table.error("count", e))?;
        Ok(rows as u64)
    }

    /// Every chunk's id, streamed.
    pub(crate) async fn ids(&self) -> Result<BoxStream<'static, Result<Vec<ChunkId>>>> {
        super::stream_ids(&self.table, None).await
    }

    /// All vectors of a snapshot that meet the filter, streamed with their row ids.
    pub(crate) async fn vectors(
        &self,
        snapshot: &Snapshot,
        filter: Option<Filter>,
    ) -> Result<BoxStream<'static, Result<VectorBatch>>> {
        let scan = Scan { filter, row_ids: true, ..Scan::columns(&[schema::VECTOR]) };
        let name = self.table.name().to_owned();
        let batches = self.table.scan_version(&snapshot.0, scan).await?;
        let decoded = batches.and_then(move |batch| {
            let vectors = decode_vectors(&name, &batch);
            async move { vectors }
        });
        Ok(decoded.boxed())
    }

    /// Chunk ids by row id; ids that are gone are left out.
    pub(crate) async fn take_ids(&self, snapshot: &Snapshot, row_ids: &[u64]) -> Result<HashMap<u64, ChunkId>> {
        let batch = self.take(snapshot, row_ids, &["id"]).await?;
        let rows = Rows::new(self.table.name(), &batch);
        let (ids, row_ids) = (rows.texts("id")?, rows.row_ids()?);
        Ok(row_ids.values().iter().enumerate().map(|(at, row)| (*row, ChunkId::from_stored(ids.value(at)))).collect())
    }

    /// Chunk id, content hash and vector of every row, streamed in storage order.
    pub(crate) async fn rows(&self) -> Result<BoxStream<'static, Result<Vec<StoredVector>>>> {
        let columns = ["id", "content_hash", schema::VECTOR];
        let (name, dimension) = (self.table.name().to_owned(), self.dimension);
        let batches = self.table.scan(Scan::columns(&columns)).await?;
        let decoded = batches.and_then(move |batch| {
            let rows = decode_rows(&name, &batch, dimension);
            async move { rows }
        });
        Ok(decoded.boxed())
    }

    pub(super) async fn take(&self, snapshot: &Snapshot, row_ids: &[u64], columns: &[&str]) -> Result<RecordBatch> {
        let projection = columns.iter().copied().chain(["_rowid"]);
        let projection = snapshot.0.schema().project_preserve_system_columns(&projection.collect::<Vec<_>>());
        let projection = projection.map_err(|e| self.table.error("read", e))?;
        snapshot.0.take_rows(row_ids, projection).await.map_err(|e| self.table.error("read", e))
    }
}

/// The cache of one embedder.
#[derive(Clone, Debug)]
pub(crate) struct EmbeddingCache {
    pub(super) table: StoredTable,
    pub(super) dimension: usize,
}

impl EmbeddingCache {
    /// Adds vectors that the caller has found missing, but for those that others have added since `others` was made; returns
    /// how many those are. So a text that two workers embedded at the same time, or one after its lease had run out, stands
    /// in the cache once.
    pub(crate) async fn insert(
        &self,
        vectors: &[(ContentHash, Arc<[f32]>)],
        others: &mut KnownKeys,
        now: Timestamp,
    ) -> Result<usize> {
        if vectors.is_empty() {
            return Ok(0);
        }
        let keyed: Vec<_> = vectors.iter().map(|(hash, vector)| (hash.to_string(), &**vector)).collect();
        let mut written: Option<(usize, Uncommitted)> = None;
        let mut attempts = Attempts::at(&self.table, "append to");
        loop {
            attempts.next().await?;
            self.refresh().await?;
            let dataset = self.table.dataset().await?;
            others.catch_up(&self.table, &dataset).await?;
            let suspect: Vec<_> = keyed.iter().map(|(hash, _)| hash).filter(|hash| others.contains(hash)).collect();
            let stored = self.stored(&dataset, suspect).await?;
            let absent: Vec<_> = keyed.iter().filter(|(hash, _)| !stored.contains(hash)).collect();
            if absent.is_empty() {
                return Ok(0);
            }
            // Nothing is taken out of the cache meanwhile: as many absent texts as before are the same texts.
            let fragments = match written.take() {
                Some((count, fragments)) if count == absent.len() => fragments,
                _ => self.table.write(&dataset, self.encode(&absent, now)?).await?,
            };
            let hashes: Vec<_> = absent.iter().map(|(hash, _)| hash.as_str()).collect();
            if self.table.insert_absent(&dataset, fragments.clone(), "content_hash", &hashes).await? {
                return Ok(absent.len());
            }
            written = Some((absent.len(), fragments));
        }
    }

    /// Which of these texts a version holds.
    async fn stored(&self, dataset: &Arc<Dataset>, hashes: Vec<&String>) -> Result<HashSet<String>> {
        let mut stored = HashSet::new();
        if hashes.is_empty() {
            return Ok(stored);
        }
        let wanted = Filter::In("content_hash", hashes.into_iter().cloned().collect());
        for batch in self.table.scan_version_all(dataset, Scan::columns(&["content_hash"]).filter(wanted)).await? {
            let hashes = Rows::new(self.table.name(), &batch).texts("content_hash")?;
            stored.extend((0..batch.num_rows()).map(|row| hashes.value(row).to_owned()));
        }
        Ok(stored)
    }

    fn encode(&self, vectors: &[&(String, &[f32])], now: Timestamp) -> Result<RecordBatch> {
        let columns = vec![
            Arc::new(StringArray::from_iter_values(vectors.iter().map(|(hash, _)| hash))) as ArrayRef,
            Arc::new(TimestampMicrosecondArray::from_iter_values(vectors.iter().map(|_| now.0))),
            vector_column(vectors.iter().map(|(_, vector)| *vector), self.dimension, &self.table)?,
        ];
        let schema = schema::cache(width(self.dimension, &self.table)?);
        RecordBatch::try_new(schema, columns).map_err(|e| self.table.error("encode rows of", e))
    }

    /// The vectors that are there, of those asked for.
    pub(crate) async fn get(&self, hashes: &[ContentHash]) -> Result<HashMap<ContentHash, Arc<[f32]>>> {
        let mut found = HashMap::new();
        if hashes.is_empty() {
            return Ok(found);
        }
        let wanted = Filter::In("content_hash", hashes.iter().map(ToString::to_string).collect());
        for batch in self.table.scan_all(Scan::columns(&["content_hash", schema::VECTOR]).filter(wanted)).await? {
            let rows = Rows::new(self.table.name(), &batch);
            let stored = rows.texts("content_hash")?;
            for (row, vector) in rows.vectors(schema::VECTOR)?.chunks_exact(self.dimension).enumerate() {
                found.insert(hash_at(&rows, stored, row)?, vector.into());
            }
        }
        Ok(found)
    }

    /// Content and vector of every row, streamed in storage order.
    pub(crate) async fn rows(&self) -> Result<BoxStream<'static, Result<Vec<CachedVector>>>> {
        let (name, dimension) = (self.table.name().to_owned(), self.dimension);
        let batches = self.table.scan(Scan::columns(&["content_hash", schema::VECTOR])).await?;
        let decoded = batches.and_then(move |batch| {
            let rows = decode_cached(&name, &batch, dimension);
            async move { rows }
        });
        Ok(decoded.boxed())
    }

    /// Nothing known yet about which texts have a vector.
    pub(crate) fn known(&self) -> KnownKeys {
        KnownKeys::of("content_hash")
    }

    /// What others add from now on; to be made before it is looked which vectors are missing.
    pub(crate) async fn added_from_now_on(&self) -> Result<KnownKeys> {
        Ok(KnownKeys::since("content_hash", &*self.table.dataset().await?))
    }

    /// Adds to `known` what any process has added since the last time.
    pub(crate) async fn catch_up(&self, known: &mut KnownKeys) -> Result<()> {
        self.table.refresh().await?;
        known.catch_up(&self.table, &self.table.dataset().await?).await.map(|_| ())
    }

    pub(crate) async fn refresh(&self) -> Result<()> {
        self.table.refresh().await
    }

    pub(crate) fn dimension(&self) -> usize {
        self.dimension
    }

    pub(crate) async fn count(&self) -> Result<u64> {
        self.table.count(None).await
    }
}

fn decode_rows(table: &str, batch: &RecordBatch, dimension: usize) -> Result<Vec<StoredVector>> {
    let rows = Rows::new(table, batch);
    let (ids, hashes) = (rows.texts("id")?, rows.texts("content_hash")?);
    let vectors = rows.vectors(schema::VECTOR)?.chunks_exact(dimension).enumerate();
    vectors
        .map(|(row, vector)| Ok((ChunkId::from_stored(ids.value(row)), hash_at(&rows, hashes, row)?, vector.to_vec())))
        .collect()
}

fn decode_cached(table: &str, batch: &RecordBatch, dimension: usize) -> Result<Vec<CachedVector>> {
    let rows = Rows::new(table, batch);
    let hashes = rows.texts("content_hash")?;
    let vectors = rows.vectors(schema::VECTOR)?.chunks_exact(dimension).enumerate();
    vectors.map(|(row, vector)| Ok((hash_at(&rows, hashes, row)?, vector.to_vec()))).collect()
}

pub(super) fn decode_vectors(table: &str, batch: &RecordBatch) -> Result<VectorBatch> {
    let rows = Rows::new(table, batch);
    Ok(VectorBatch { row_ids: rows.row_ids()?.values().to_vec(), vectors: rows.vectors(schema::VECTOR)?.to_vec() })
}

fn vector_column<'a>(
    vectors: impl ExactSizeIterator<Item = &'a [f32]>,
    dimension: usize,
    table: &StoredTable,
) -> Result<ArrayRef> {
    let mut values = Vec::with_capacity(vectors.len() * dimension);
    vectors.for_each(|vector| values.extend_from_slice(vector));
    let values = Arc::new(PrimitiveArray::<Float32Type>::from(values));
    let item = Arc::new(Field::new("item", DataType::Float32, true));
    let list = FixedSizeListArray::try_new(item, width(dimension, table)?, values, None);
    Ok(Arc::new(list.map_err(|e| table.error("encode vectors of", e))?))
}

fn width(dimension: usize, table: &StoredTable) -> Result<i32> {
    i32::try_from(dimension).map_err(|_| Error::Store {
        action: "encode vectors of",
        table: table.name().to_owned(),
        source: "the dimension does not fit 32 bits".into(),
    })
}
