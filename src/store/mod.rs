//! The bank's directory: a LanceDB database with typed tables. The only module that names lance.
//!
//! Owns schemas, typed rows, filters, leases, durability, compaction and the vector indexes. Guarantees that each write is
//! one commit, that conditional writes are evaluated against the newest version, and that nothing else in the crate sees a
//! `RecordBatch`. Must not know: embedders, files, recall.

mod acknowledged;
mod attempts;
mod chunk_status;
mod claim;
mod commit;
mod documents;
mod durability;
mod embeddings;
mod examine;
mod examine_files;
mod examine_index;
mod failures;
mod faults;
mod filter;
mod format;
mod generations;
mod index_build;
mod index_drop;
mod index_files;
mod index_optimise;
mod index_plan;
mod index_search;
mod index_spec;
#[cfg(test)]
mod index_tests;
mod index_train;
mod inspect;
mod keys;
mod lease;
mod maintenance;
mod mend;
mod meta;
mod opening;
mod passages;
mod query_log;
mod repair;
mod rows;
mod runs;
mod schema;
mod snapshot;
mod spend;
mod survey;
mod table;
#[cfg(test)]
mod tests;
mod worker;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance::session::Session;

pub(crate) use chunk_status::{ChunkStatus, Outcome, state_of};
pub use chunk_status::{StatusCounts, StatusRow};
pub(crate) use claim::{Claim, Claimant, Position};
pub use documents::DocumentRow;
pub(crate) use documents::{DocumentKey, Documents, Passage};
pub use durability::Durability;
pub(crate) use embeddings::{EmbeddingCache, EmbeddingRow, Embeddings, Snapshot};
pub(crate) use examine::{CORE, Fact, Inspection, RawDocument, RawState, VectorTable, examinable};
pub(crate) use examine_files::BrokenFragment;
pub(crate) use examine_index::IndexLook;
pub use failures::{FailedChunks, FailureGroup, RetryReport};
pub use faults::{FaultEffect, Faults};
pub(crate) use filter::Filter;
pub(crate) use generations::{GenerationRow, Generations};
pub(crate) use index_build::IndexJob;
pub use index_search::QuerySettings;
pub(crate) use index_search::{Coverage, IndexQuery, Neighbour};
pub use index_spec::IndexSpec;
pub(crate) use keys::KnownKeys;
pub(crate) use lease::{KEY as LEASE_KEY, MaintenanceLease, is_held};
pub use maintenance::TableSize;
pub use mend::{Mend, MendKind};
pub(crate) use meta::Meta;
pub(crate) use passages::PassageReader;
pub(crate) use repair::is_stale;
pub use runs::RunRow;
pub(crate) use runs::Runs;
pub(crate) use snapshot::CategorisedBatch;
pub(crate) use spend::SpendCell;
pub(crate) use survey::Survey;
pub(crate) use worker::WorkerId;

use crate::clock::Clock;
use crate::error::{Error, Result};
use crate::id::{ChunkId, EmbedderId};
use crate::memory::MemoryLimit;
use durability::Disk;
use lease::SCHEDULE_KEY;
use opening::Tables;
use rows::Rows;
use survey::IdDigest;
use table::{Scan, StoredTable};

/// Ids in one `IN` list. Lance reads the key column once per statement, so few long lists beat many short ones; 8,192 ids
/// are about 300 KB of SQL.
const IDS_PER_STATEMENT: usize = 8192;

/// How the store behaves; not stored.
#[derive(Clone, Debug)]
pub struct StoreOptions {
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Bytes of index data kept in memory. Default 512 MiB: an HNSW index of a million 384-d rows.
    pub index_cache_bytes: usize,
    /// Bytes of file metadata kept in memory. Default 8 MiB: that of 250 files at 30 kB each, several times what a search over
    /// a million rows opens once small files are merged. Every commit leaves its manifest here as well, which nobody reads
    /// again: a backfill of a million rows fills any size, and was as fast with 8 MiB as with 64.
    pub metadata_cache_bytes: usize,
    /// For tests of what a crash leaves.
    #[doc(hidden)]
    pub faults: Faults,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            durability: Durability::default(),
            index_cache_bytes: 512 << 20,
            metadata_cache_bytes: 8 << 20,
            faults: Faults::default(),
        }
    }
}

impl StoreOptions {
    /// With caches that leave the steps their room: of what is left beside the program, half for an index, an eighth for
    /// metadata.
    pub(crate) fn within(self, memory: MemoryLimit) -> Self {
        Self {
            index_cache_bytes: memory.cache_bytes(self.index_cache_bytes, 2),
            metadata_cache_bytes: memory.cache_bytes(self.metadata_cache_bytes, 8),
            ..self
        }
    }
}

/// The open database; cheap to clone.
#[derive(Clone)]
pub(crate) struct Store {
    root: Arc<Path>,
    options: StoreOptions,
    connection: Tables,
    disk: Disk,
    clock: Clock,
    pub(crate) documents: Documents,
    pub(crate) status: ChunkStatus,
    pub(crate) generations: Generations,
    pub(crate) meta: Meta,
    pub(crate) runs: Runs,
}

impl Store {
    /// Opens the bank at `root`.
    ///
    /// # Errors
    /// [`Error::NoBank`], [`Error::NotABank`], [`Error::NewerFormat`]; the directory is then untouched.
    pub(crate) async fn open(root: &Path, options: StoreOptions, clock: Clock) -> Result<Self> {
        format::check(root)?;
        Self::open_tables(root, options, clock).await
    }

    /// Opens the bank at `root`, or makes one there if the directory is empty or missing.
    pub(crate) async fn open_or_create(root: &Path, options: StoreOptions, clock: Clock) -> Result<Self> {
        match format::check(root) {
            Err(Error::NoBank { .. }) => format::create(root, clock.now(), &options.faults)?,
            checked => checked?,
        }
        Self::open_tables(root, options, clock).await
    }

    async fn open_tables(root: &Path, options: StoreOptions, clock: Clock) -> Result<Self> {
        // Absolute, so that a later change of the working directory does not move the bank.
        let root: PathBuf = root.canonicalize().map_err(Error::io("open", root))?;
        let session = Session::new(options.index_cache_bytes, options.metadata_cache_bytes, Arc::default());
        let uri = root.to_str().ok_or_else(|| Error::InvalidSetting {
            setting: "bank",
            reason: format!("{} is not valid UTF-8", root.display()),
        })?;
        let failed = |e| Error::Store { action: "open", table: uri.to_owned(), source: Box::new(e) };
        let connection = options.faults.connect(uri, Arc::new(session)).await.map_err(failed)?;
        let connection = Tables::new(&root, connection);
        let table = async |name: &str, schema| open_or_create_table(&connection, name, schema).await;
        Ok(Self {
            documents: Documents(table("documents", schema::documents()).await?),
            status: ChunkStatus(table("status", schema::status()).await?),
            generations: Generations(table("generations", schema::generations()).await?),
            meta: Meta(table("meta", schema::meta()).await?),
            runs: Runs(table("runs", schema::runs()).await?),
            disk: Disk::new(&root, options.durability),
            root: root.into(),
            options,
            connection,
            clock,
        })
    }

    /// The bank's directory, absolute.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// What an acknowledged write survives.
    pub(crate) fn durability(&self) -> Durability {
        self.disk.durability()
    }

    /// Bytes that the cache of file metadata may take; every step fills it.
    pub(crate) fn metadata_cache_bytes(&self) -> usize {
        self.options.metadata_cache_bytes
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// The vectors of one embedder; the table is made on first use.
    pub(crate) async fn embeddings(&self, embedder: &EmbedderId, dimension: usize) -> Result<Embeddings> {
        let name = format!("embeddings__{embedder}");
        let table = open_or_create_table(&self.connection, &name, schema::embeddings(width(dimension)?)).await?;
        Ok(Embeddings { table, dimension })
    }

    /// The cache of one embedder; the table is made on first use.
    pub(crate) async fn cache(&self, embedder: &EmbedderId, dimension: usize) -> Result<EmbeddingCache> {
        let name = format!("emb_cache__{embedder}");
        let table = open_or_create_table(&self.connection, &name, schema::cache(width(dimension)?)).await?;
        Ok(EmbeddingCache { table, dimension })
    }

    /// Removes the chunks' vectors under every embedder that has a table.
    pub(crate) async fn delete_embeddings(&self, ids: &[ChunkId]) -> Result<()> {
        for name in self.table_names().await? {
            if name.starts_with("embeddings__") {
                let table = open_table(&self.connection, &name).await?;
                delete_by_ids(&table, ids).await?;
            }
        }
        Ok(())
    }

    /// Makes other processes' commits to the shared tables visible.
    pub(crate) async fn refresh(&self) -> Result<()> {
        for table in [&self.documents.0, &self.status.0, &self.generations.0, &self.meta.0, &self.runs.0] {
            table.refresh().await?;
        }
        Ok(())
    }

    /// Makes other processes' commits to the documents visible.
    pub(crate) async fn documents_refresh(&self) -> Result<()> {
        self.documents.0.refresh().await
    }

    /// Acknowledges what was written: on return it survives what the durability setting promises.
    pub(crate) async fn acknowledge(&self) -> Result<()> {
        self.fault_point("acknowledge").await?;
        self.disk.acknowledge().await
    }

    /// What was found damaged by this handle, and mended, in the order in which tables were opened.
    pub(crate) fn mends(&self) -> Vec<Mend> {
        self.connection.mends()
    }

    /// What was ever set aside in mending, below the bank's directory.
    pub(crate) fn set_aside(&self) -> Result<Vec<PathBuf>> {
        mend::set_aside(&self.root)
    }

    /// The version of the documents, and whether anything was set aside since: then nothing that was compared with them
    /// holds any more.
    pub(crate) async fn documents_version(&self) -> Result<String> {
        let version = self.documents.version().await?;
        match self.set_aside()?.len() {
            0 => Ok(version),
            mended => Ok(format!("{version}/{mended}")),
        }
    }

    /// A named place between two commits, where tests let a crash happen.
    pub(crate) async fn fault_point(&self, name: &'static str) -> Result<()> {
        self.options.faults.point(name).await
    }

    /// Takes the maintenance lease; see [`MaintenanceLease::acquire`].
    pub(crate) async fn maintenance_lease(&self, purpose: &str) -> Result<MaintenanceLease> {
        MaintenanceLease::acquire(&self.meta, &self.clock, purpose).await
    }

    /// Takes the lease of scheduled steps.
    pub(crate) async fn schedule_lease(&self, purpose: &str) -> Result<MaintenanceLease> {
        MaintenanceLease::acquire_at(SCHEDULE_KEY, &self.meta, &self.clock, purpose).await
    }

    /// All tables, by name.
    pub(crate) async fn table_names(&self) -> Result<Vec<String>> {
        self.connection.names().await
    }
}

async fn open_table(tables: &Tables, name: &str) -> Result<StoredTable> {
    tables.open(name).await
}

async fn open_or_create_table(tables: &Tables, name: &str, schema: arrow_schema::SchemaRef) -> Result<StoredTable> {
    tables.open_or_create(name, schema).await
}

/// Deletes rows by their `id`, in statements of bounded length.
async fn delete_by_ids(table: &StoredTable, ids: &[ChunkId]) -> Result<()> {
    for some in ids.chunks(IDS_PER_STATEMENT) {
        table.delete(&Filter::In("id", id_texts(some))).await?;
    }
    Ok(())
}

fn id_texts(ids: &[ChunkId]) -> Vec<String> {
    ids.iter().map(|id| id.as_str().to_owned()).collect()
}

/// Streams the `id` column.
async fn stream_ids(table: &StoredTable, filter: Option<Filter>) -> Result<BoxStream<'static, Result<Vec<ChunkId>>>> {
    let name = table.name().to_owned();
    let batches = table.scan(Scan { filter, ..Scan::columns(&["id"]) }).await?;
    let decoded = batches.and_then(move |batch| {
        let ids = Rows::new(&name, &batch)
            .texts("id")
            .map(|ids| (0..batch.num_rows()).map(|row| ChunkId::from_stored(ids.value(row))).collect());
        async move { ids }
    });
    Ok(decoded.boxed())
}

/// A fingerprint of the `id` column.
async fn digest_ids(table: &StoredTable) -> Result<IdDigest> {
    let mut digest = IdDigest::default();
    let mut batches = table.scan(Scan::columns(&["id"])).await?;
    while let Some(batch) = batches.try_next().await? {
        let ids = Rows::new(table.name(), &batch).texts("id")?;
        (0..batch.num_rows()).for_each(|row| digest.add(ids.value(row)));
    }
    Ok(digest)
}

fn width(dimension: usize) -> Result<i32> {
    i32::try_from(dimension).map_err(|_| Error::InvalidSetting {
        setting: "dimension",
        reason: format!("{dimension} does not fit 32 bits"),
    })
}
