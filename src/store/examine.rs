//! A look at a bank from outside: every table as it lies there, nothing made, nothing changed, nothing taken for granted.
//!
//! Guarantees: tables are opened in the order in which nothing that is written correctly can look wrong (what refers before
//! what it refers to), and stay at the version that was opened; values are handed over as they are stored, so that a wrong
//! one can be named instead of failing the read. Must not know: what is right.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow_array::{Array, RecordBatch};
use arrow_schema::DataType;
use futures::TryStreamExt;
use lance::Dataset;
use lance::session::Session;

use super::acknowledged;
use super::format::{self, MARKER};
use super::inspect::TableFolder;
use super::rows::{Rows, count_at, moment_at};
use super::table::{Scan, StoredTable};
use super::{GenerationRow, Generations, StoreOptions, query_log, schema};
use crate::clock::Timestamp;
use crate::error::{Error, Result};
use crate::id::EmbedderId;

/// Vectors read at once: 3 MiB of 768 dimensions.
const VECTORS_AT_ONCE: usize = 1024;

const EMBEDDINGS: &str = "embeddings__";
const CACHE: &str = "emb_cache__";

/// Tables that every bank has.
pub(crate) const CORE: [&str; 5] = ["documents", "status", "generations", "meta", "runs"];

/// What else may lie in a bank's directory.
const KNOWN_FILES: [&str; 4] = [MARKER, "embank.toml", "embank.lock", "set-aside"];

/// The tables of a bank, each at one version.
pub(crate) struct Inspection {
    root: PathBuf,
    pub(super) tables: BTreeMap<String, StoredTable>,
    /// Tables that cannot be opened, and why.
    pub(crate) unreadable: Vec<(String, Error)>,
    /// Tables whose newest version cannot be read, which opening the bank would set aside; and what is wrong with it.
    pub(crate) damaged: Vec<(String, String)>,
    /// Entries of the directory that are none of the bank's.
    pub(crate) strangers: Vec<String>,
}

/// A row of `documents` as it is stored.
pub(crate) struct RawDocument<'a> {
    pub(crate) address: u64,
    pub(crate) id: &'a str,
    pub(crate) source: &'a str,
    pub(crate) doc_id: &'a str,
    pub(crate) content: &'a str,
    pub(crate) content_hash: &'a str,
    pub(crate) attributes: &'a str,
    pub(crate) total_chunks: usize,
}

/// A row of `status` as it is stored.
pub(crate) struct RawState<'a> {
    pub(crate) address: u64,
    pub(crate) id: &'a str,
    pub(crate) embedder: &'a str,
    pub(crate) word: &'a str,
    pub(crate) attempts: i32,
    pub(crate) error: Option<&'a str>,
    pub(crate) lease_owner: Option<&'a str>,
    pub(crate) lease_until: Option<Timestamp>,
    pub(crate) embedded_at: Option<Timestamp>,
}

/// A vector as it is stored; the cache knows it by its content alone.
pub(crate) struct RawVector<'a> {
    pub(crate) address: u64,
    /// Empty in the cache.
    pub(crate) id: &'a str,
    pub(crate) content_hash: &'a str,
    pub(crate) vector: &'a [f32],
}

/// A row of `meta` or `spend`.
#[derive(Clone, Debug)]
pub(crate) struct Fact {
    pub(crate) address: u64,
    pub(crate) key: String,
    pub(crate) value: String,
}

/// Where vectors are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VectorTable {
    Embeddings,
    Cache,
}

impl VectorTable {
    /// The table's name.
    pub(crate) fn name(self, embedder: &EmbedderId) -> String {
        let prefix = match self {
            Self::Embeddings => EMBEDDINGS,
            Self::Cache => CACHE,
        };
        format!("{prefix}{embedder}")
    }
}

/// Whether the directory can be looked at: a bank, or the tables of one whose marker is damaged.
///
/// # Errors
/// [`Error::NoBank`], [`Error::NotABank`], [`Error::NewerFormat`].
pub(crate) fn examinable(root: &Path) -> Result<()> {
    match format::check(root) {
        Err(Error::NoBank { .. } | Error::NotABank { .. }) if root.join("documents.lance").is_dir() => Ok(()),
        checked => checked,
    }
}

impl Inspection {
    /// Opens what is there.
    ///
    /// # Errors
    /// [`Error::Io`] if the directory cannot be read. A table that cannot be opened is a row of `unreadable`.
    pub(crate) async fn open(root: &Path, options: StoreOptions) -> Result<Self> {
        let root = root.canonicalize().map_err(Error::io("open", root))?;
        let session = Session::new(options.index_cache_bytes, options.metadata_cache_bytes, Arc::default());
        let failed = |e| Error::Store { action: "open", table: root.display().to_string(), source: Box::new(e) };
        let uri = root.to_string_lossy();
        let connection = options.faults.connect(&uri, Arc::new(session)).await.map_err(failed)?;
        options.faults.point("look: begins").await?;
        let (mut names, mut strangers) = (Vec::new(), Vec::new());
        for entry in std::fs::read_dir(&root).map_err(Error::io("read", &root))? {
            let entry = entry.map_err(Error::io("read", &root))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            match name.strip_suffix(".lance").filter(|name| is_ours(name) && entry.path().is_dir()) {
                // A folder that has no version is what is left of a table; opening makes it anew.
                Some(table) if TableFolder::new(&root, table).has_versions() => names.push(table.to_owned()),
                Some(_) => {}
                None if KNOWN_FILES.contains(&name.as_str()) => {}
                // A killed process may leave a draft.
                None if name.starts_with(acknowledged::FILE) || name.starts_with(query_log::FILE_PREFIX) => {}
                None => strangers.push(name),
            }
        }
        strangers.sort_unstable();
        names.sort_by_key(|name| (opening_turn(name), name.clone()));
        let (mut tables, mut unreadable, mut damaged) = (BTreeMap::new(), Vec::new(), Vec::new());
        for name in names {
            // Not as the bank opens its tables, which mends what it can.
            match TableFolder::new(&root, &name).newest_flaw().await {
                Ok(None) => match connection.open_table(&name).await {
                    Ok(table) => _ = tables.insert(name.clone(), StoredTable::new(&name, table)),
                    Err(error) => {
                        let error = Error::Store { action: "open", table: name.clone(), source: Box::new(error) };
                        unreadable.push((name, error));
                    }
                },
                Ok(Some(flaw)) => damaged.push((name, flaw.to_string())),
                Err(error) => unreadable.push((name, error)),
            }
            options.faults.point("look: table opened").await?;
        }
        Ok(Self { root, tables, unreadable, damaged, strangers })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Why the marker does not say that this is a bank of a format that can be read; `None` where it does.
    pub(crate) fn marker(&self) -> Option<Error> {
        format::check(&self.root).err()
    }

    /// Names of the tables that could be opened.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Whether there is no such table, not even one that cannot be opened.
    pub(crate) fn lacks(&self, table: &str) -> bool {
        let is_damaged = self.damaged.iter().any(|(name, _)| name == table);
        !self.has(table) && !is_damaged && self.unreadable.iter().all(|(name, _)| name != table)
    }

    /// Embedders that have a table here.
    pub(crate) fn embedders(&self) -> BTreeSet<EmbedderId> {
        let names = self.names().filter_map(|name| name.strip_prefix(EMBEDDINGS).or(name.strip_prefix(CACHE)));
        names.map(EmbedderId::from_stored).collect()
    }

    /// Whether somebody has written to a table since it was opened.
    pub(crate) async fn is_outdated(&self) -> Result<bool> {
        for table in self.tables.values() {
            let dataset = table.dataset().await?;
            let newest = dataset.latest_version_id().await.map_err(|e| table.error("open", e))?;
            if newest != dataset.version_id() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Values of a table's column and where they lie, in storage order. For small tables.
    pub(crate) async fn places(&self, table: &str, column: &'static str) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        self.scan(table, &[column], |batch| {
            let rows = Rows::new(table, batch);
            let (texts, addresses) = (rows.texts(column)?, rows.addresses()?);
            found.extend((0..batch.num_rows()).map(|row| (texts.value(row).to_owned(), addresses.value(row))));
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Rows of a table; 0 where there is none.
    pub(crate) async fn count(&self, table: &str) -> Result<u64> {
        match self.tables.get(table) {
            Some(table) => table.count(None).await,
            None => Ok(0),
        }
    }

    /// Every row of `documents`.
    pub(crate) async fn documents(&self, mut visit: impl FnMut(RawDocument<'_>)) -> Result<()> {
        let columns = ["id", "source", "doc_id", "content", "content_hash", "attributes", "total_chunks"];
        self.scan("documents", &columns, |batch| {
            let rows = Rows::new("documents", batch);
            let [id, source, doc_id] = [rows.texts("id")?, rows.texts("source")?, rows.texts("doc_id")?];
            let [content, hash, attributes] =
                [rows.texts("content")?, rows.texts("content_hash")?, rows.texts("attributes")?];
            let (total, addresses) = (rows.ints("total_chunks")?, rows.addresses()?);
            (0..batch.num_rows()).for_each(|row| {
                visit(RawDocument {
                    address: addresses.value(row),
                    id: id.value(row),
                    source: source.value(row),
                    doc_id: doc_id.value(row),
                    content: content.value(row),
                    content_hash: hash.value(row),
                    attributes: attributes.value(row),
                    total_chunks: count_at(total, row),
                });
            });
            Ok(())
        })
        .await
    }

    /// Every row of `status`.
    pub(crate) async fn states(&self, mut visit: impl FnMut(RawState<'_>)) -> Result<()> {
        let columns = ["id", "embedder_id", "status", "attempts", "error", "lease_owner", "lease_until", "embedded_at"];
        self.scan("status", &columns, |batch| {
            let rows = Rows::new("status", batch);
            let [id, embedder, word] = [rows.texts("id")?, rows.texts("embedder_id")?, rows.texts("status")?];
            let [error, owner] = [rows.texts("error")?, rows.texts("lease_owner")?];
            let [until, embedded_at] = [rows.moments("lease_until")?, rows.moments("embedded_at")?];
            let (attempts, addresses) = (rows.ints("attempts")?, rows.addresses()?);
            for row in 0..batch.num_rows() {
                visit(RawState {
                    address: addresses.value(row),
                    id: id.value(row),
                    embedder: embedder.value(row),
                    word: word.value(row),
                    attempts: attempts.value(row),
                    error: (!error.is_null(row)).then(|| error.value(row)),
                    lease_owner: (!owner.is_null(row)).then(|| owner.value(row)),
                    lease_until: moment_at(until, row),
                    embedded_at: moment_at(embedded_at, row),
                });
            }
            Ok(())
        })
        .await
    }

    /// Numbers of one vector of the table, by its schema; `None` where there is no such table or column.
    pub(crate) async fn dimension(&self, table: VectorTable, embedder: &EmbedderId) -> Result<Option<usize>> {
        let Some(table) = self.tables.get(&table.name(embedder)) else { return Ok(None) };
        let dataset = table.dataset().await?;
        let field = dataset.schema().field(schema::VECTOR).map(lance_core::datatypes::Field::data_type);
        Ok(match field {
            Some(DataType::FixedSizeList(_, width)) => usize::try_from(width).ok(),
            _ => None,
        })
    }

    /// Every vector of a table.
    pub(crate) async fn vectors(
        &self,
        table: VectorTable,
        embedder: &EmbedderId,
        mut visit: impl FnMut(RawVector<'_>),
    ) -> Result<()> {
        let name = table.name(embedder);
        let Some(dimension) = self.dimension(table, embedder).await? else { return Ok(()) };
        let columns: &[&'static str] = match table {
            VectorTable::Embeddings => &["content_hash", schema::VECTOR, "id"],
            VectorTable::Cache => &["content_hash", schema::VECTOR],
        };
        self.scan(&name, columns, |batch| {
            let rows = Rows::new(&name, batch);
            let (hash, addresses) = (rows.texts("content_hash")?, rows.addresses()?);
            let id = if table == VectorTable::Embeddings { Some(rows.texts("id")?) } else { None };
            for (row, vector) in rows.vectors(schema::VECTOR)?.chunks_exact(dimension.max(1)).enumerate() {
                visit(RawVector {
                    address: addresses.value(row),
                    id: id.map_or("", |id| id.value(row)),
                    content_hash: hash.value(row),
                    vector,
                });
            }
            Ok(())
        })
        .await
    }

    /// All generations, oldest first.
    pub(crate) async fn generations(&self) -> Result<Vec<GenerationRow>> {
        match self.tables.get("generations") {
            Some(table) => Generations(table.clone()).list_seen(None).await,
            None => Ok(Vec::new()),
        }
    }

    /// Rows of `meta`, or of `spend`.
    pub(crate) async fn facts(&self, table: &str) -> Result<Vec<Fact>> {
        let mut found = Vec::new();
        self.scan(table, &["key", "value"], |batch| {
            let rows = Rows::new(table, batch);
            let (keys, values, addresses) = (rows.texts("key")?, rows.texts("value")?, rows.addresses()?);
            found.extend((0..batch.num_rows()).map(|row| Fact {
                address: addresses.value(row),
                key: keys.value(row).to_owned(),
                value: values.value(row).to_owned(),
            }));
            Ok(())
        })
        .await?;
        Ok(found)
    }

    /// Columns that a table should have and has not, or has with another type or width.
    pub(crate) async fn wrong_columns(&self, name: &str) -> Result<Vec<String>> {
        let Some(table) = self.tables.get(name) else { return Ok(Vec::new()) };
        let dataset = table.dataset().await?;
        let Some(wanted) = wanted_schema(name, &dataset) else { return Ok(Vec::new()) };
        let differs = |field: &&Arc<arrow_schema::Field>| {
            let stored = dataset.schema().field(field.name());
            stored.is_none_or(|stored| stored.data_type() != *field.data_type())
        };
        Ok(wanted.fields().iter().filter(differs).map(|field| field.name().clone()).collect())
    }

    async fn scan(
        &self,
        table: &str,
        columns: &[&'static str],
        mut visit: impl FnMut(&RecordBatch) -> Result<()>,
    ) -> Result<()> {
        let Some(table) = self.tables.get(table) else { return Ok(()) };
        let scan = Scan { addresses: true, ..Scan::columns(columns).batch_rows(VECTORS_AT_ONCE) };
        let mut batches = table.scan(scan).await?;
        while let Some(batch) = batches.try_next().await? {
            visit(&batch)?;
        }
        Ok(())
    }
}

/// When a table is opened: what refers to another one before that one, so that a correct writer in between adds nothing that
/// seems to refer to nothing. Pointer, generation, its index; state, vector, document.
fn opening_turn(name: &str) -> u8 {
    match name {
        "meta" => 0,
        "generations" => 1,
        "status" => 2,
        "documents" => 5,
        name if name.starts_with(EMBEDDINGS) => 3,
        _ => 4,
    }
}

fn is_ours(name: &str) -> bool {
    CORE.contains(&name) || name == "spend" || name.starts_with(EMBEDDINGS) || name.starts_with(CACHE)
}

/// The columns by which the program reads a table; a vector's width is taken from the table.
fn wanted_schema(name: &str, stored: &Dataset) -> Option<arrow_schema::SchemaRef> {
    let width = || match stored.schema().field(schema::VECTOR)?.data_type() {
        DataType::FixedSizeList(_, width) => Some(width),
        _ => Some(0),
    };
    Some(match name {
        "documents" => schema::documents(),
        "status" => schema::status(),
        "generations" => schema::generations(),
        "meta" | "spend" => schema::meta(),
        "runs" => schema::runs(),
        name if name.starts_with(EMBEDDINGS) => schema::embeddings(width().unwrap_or(0)),
        name if name.starts_with(CACHE) => schema::cache(width().unwrap_or(0)),
        _ => return None,
    })
}
