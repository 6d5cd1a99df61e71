//! Comparing banks: everything that a bank holds for one embedder, whole or as a digest.
//!
//! Moments of writing, lease owners and the order of rows are left out: they differ between two ways to the same contents.

use futures::TryStreamExt;
use serde::Serialize;

use crate::clock::Timestamp;
use crate::engine::{Bank, Pending};
use crate::id::{ChunkId, ContentHash, hex};
use crate::status::ChunkState;
use crate::store::DocumentRow;

/// The contents, sorted by chunk id.
#[derive(Clone, Debug, PartialEq)]
pub struct BankContents {
    /// Documents, without the moment of writing.
    pub documents: Vec<DocumentRow>,
    /// Chunk, state, and failed attempts.
    pub status: Vec<(ChunkId, ChunkState, u32)>,
    /// Chunk, content and vector.
    pub embeddings: Vec<(ChunkId, ContentHash, Vec<f32>)>,
}

/// Rows and a hash of each table. Two banks with equal digests hold the same, bit for bit; a row that stands twice counts
/// twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BankDigest {
    /// The documents.
    pub documents: TableDigest,
    /// The states.
    pub status: TableDigest,
    /// The vectors.
    pub embeddings: TableDigest,
}

/// One table, whatever the order of its rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TableDigest {
    /// Its rows.
    pub rows: u64,
    /// The sum of the rows' hashes, hex.
    pub digest: String,
}

/// Adds up row hashes: addition has no order, and unlike exclusive-or does not let a row that stands twice vanish.
#[derive(Default)]
struct Sum {
    rows: u64,
    sum: u128,
}

impl Sum {
    fn add(&mut self, parts: &[&[u8]]) {
        let mut hasher = blake3::Hasher::new();
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        let mut half = [0; 16];
        half.iter_mut().zip(hasher.finalize().as_bytes()).for_each(|(to, from)| *to = *from);
        self.sum = self.sum.wrapping_add(u128::from_le_bytes(half));
        self.rows += 1;
    }

    fn finish(self) -> TableDigest {
        TableDigest { rows: self.rows, digest: hex(&self.sum.to_be_bytes()) }
    }
}

impl Bank {
    /// A digest of everything the bank holds for this embedder, streamed.
    ///
    /// # Errors
    /// Those of the store.
    pub fn digest(&self) -> Pending<'_, BankDigest> {
        Box::pin(async move {
            self.store.refresh().await?;
            self.embeddings.refresh().await?;
            let [mut documents, mut status, mut embeddings] = [Sum::default(), Sum::default(), Sum::default()];
            let mut batches = self.store.documents.rows().await?;
            while let Some(rows) = batches.try_next().await? {
                for row in rows {
                    let row = DocumentRow { ingested_at: Timestamp(0), ..row };
                    documents.add(&[format!("{row:?}").as_bytes()]);
                }
            }
            let mut batches = self.store.status.rows(&self.embedder_id).await?;
            while let Some(rows) = batches.try_next().await? {
                for row in rows {
                    status.add(&[row.id.as_str().as_bytes(), format!("{:?} {}", row.state, row.attempts).as_bytes()]);
                }
            }
            let mut batches = self.embeddings.rows().await?;
            while let Some(rows) = batches.try_next().await? {
                for (id, hash, vector) in rows {
                    let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
                    embeddings.add(&[id.as_str().as_bytes(), hash.as_bytes(), &bytes]);
                }
            }
            Ok(BankDigest { documents: documents.finish(), status: status.finish(), embeddings: embeddings.finish() })
        })
    }

    /// Content and vector of every row of this embedder's cache, sorted by content; a text that stands there twice is here
    /// twice. In memory: for small banks.
    ///
    /// # Errors
    /// Those of the store.
    pub fn cached_vectors(&self) -> Pending<'_, Vec<(ContentHash, Vec<f32>)>> {
        Box::pin(async move {
            self.cache.refresh().await?;
            let mut rows = self.cache.rows().await?.try_concat().await?;
            rows.sort_by_key(|row| row.0);
            Ok(rows)
        })
    }

    /// Everything the bank holds for this embedder, in memory. For small banks.
    ///
    /// # Errors
    /// Those of the store.
    pub fn contents(&self) -> Pending<'_, BankContents> {
        Box::pin(async move {
            self.store.refresh().await?;
            self.embeddings.refresh().await?;
            let mut documents: Vec<DocumentRow> = self.store.documents.rows().await?.try_concat().await?;
            documents.iter_mut().for_each(|row| row.ingested_at = Timestamp(0));
            documents.sort_by(|a, b| a.id.cmp(&b.id));
            let rows = self.store.status.rows(&self.embedder_id).await?.try_concat().await?;
            let mut status: Vec<_> = rows.into_iter().map(|row| (row.id, row.state, row.attempts)).collect();
            status.sort();
            let mut embeddings = self.embeddings.rows().await?.try_concat().await?;
            embeddings.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(BankContents { documents, status, embeddings })
        })
    }
}
