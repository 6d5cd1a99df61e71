//! Opening and making tables. What cannot be opened, or lacks something, is mended first and named.
//!
//! Guarantees: a table that opens has all the files of its newest version, as far as a look at their ends tells.
//! Must not know what the columns mean.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use arrow_schema::SchemaRef;

use super::acknowledged::Acknowledged;
use super::faults::Connection;
use super::inspect::{Flaw, TableFolder, Version};
use super::mend::{Mend, MendKind, Mender, lock};
use super::table::StoredTable;
use crate::error::{Error, Result};

/// The bank's tables by name; cheap to clone.
#[derive(Clone)]
pub(super) struct Tables {
    root: Arc<Path>,
    connection: Connection,
    /// What there was when the bank was opened.
    acknowledged: Arc<Acknowledged>,
    mends: Arc<Mutex<Vec<Mend>>>,
}

impl Tables {
    pub(super) fn new(root: &Path, connection: Connection) -> Self {
        let acknowledged = Arc::new(Acknowledged::read(root));
        Self { root: root.into(), connection, acknowledged, mends: Arc::default() }
    }

    /// Opens a table that should be there, as it is: what was damaged since the bank was opened is not mended under its feet.
    pub(super) async fn open(&self, name: &str) -> Result<StoredTable> {
        match self.try_open(name).await? {
            Some(table) => Ok(table),
            None => Err(error("open", name, "it is gone; open the bank again")),
        }
    }

    /// Opens a table, or makes it.
    pub(super) async fn open_or_create(&self, name: &str, schema: SchemaRef) -> Result<StoredTable> {
        if let Some(table) = self.find(name).await? {
            return Ok(table);
        }
        match self.connection.create_empty_table(name, schema, StoredTable::write_params()).await {
            Ok(table) => {
                if self.acknowledged.knows(name) {
                    self.report(vec![Mend { table: name.to_owned(), kind: MendKind::TableLost }]);
                }
                Ok(StoredTable::new(name, table))
            }
            // Another process made it in between.
            Err(lancedb::Error::TableAlreadyExists { .. }) => self.open(name).await,
            Err(failed) => Err(error("create", name, failed)),
        }
    }

    pub(super) async fn names(&self) -> Result<Vec<String>> {
        let failed = |e| error("list", &self.root.display().to_string(), e);
        let mut names = self.connection.table_names().await.map_err(failed)?;
        // A folder that has no version is what is left of a table.
        names.retain(|name| TableFolder::new(&self.root, name).has_versions());
        Ok(names)
    }

    /// What was mended through this handle.
    pub(super) fn mends(&self) -> Vec<Mend> {
        self.mends.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Opens a table, mended if need be; `None` if there is none.
    pub(super) async fn find(&self, name: &str) -> Result<Option<StoredTable>> {
        match self.try_open(name).await {
            Ok(Some(table)) => {
                let flaws = self.flaws(&table).await?;
                if flaws.is_empty() {
                    return Ok(Some(table));
                }
                flaws.iter().for_each(|flaw| tracing::debug!("{flaw}"));
            }
            Ok(None) => return Ok(None),
            Err(failed) => {
                if TableFolder::new(&self.root, name).newest_flaw().await?.is_none() {
                    return Err(failed);
                }
            }
        }
        self.mend(name).await
    }

    async fn mend(&self, name: &str) -> Result<Option<StoredTable>> {
        let _turn = lock(&self.root).await?;
        let folder = TableFolder::new(&self.root, name);
        let mender = Mender { root: &self.root, folder, faults: self.connection.faults() };
        self.report(mender.step_back().await?);
        let Some(table) = self.try_open(name).await? else { return Ok(None) };
        self.report(mender.go_on_without(&table).await?);
        Ok(Some(table))
    }

    async fn try_open(&self, name: &str) -> Result<Option<StoredTable>> {
        match self.connection.open_table(name).await {
            Ok(table) => Ok(Some(StoredTable::new(name, table))),
            Err(lancedb::Error::TableNotFound { .. }) => Ok(None),
            Err(failed) => Err(error("open", name, failed)),
        }
    }

    async fn flaws(&self, table: &StoredTable) -> Result<Vec<Flaw>> {
        let folder = TableFolder::new(&self.root, table.name());
        let dataset = table.dataset().await?;
        let version = Version::of(&dataset).await.map_err(|e| folder.failed(e))?;
        folder.flaws(&version).await
    }

    fn report(&self, mends: Vec<Mend>) {
        mends.iter().for_each(|mend| tracing::warn!("{mend}"));
        self.mends.lock().unwrap_or_else(PoisonError::into_inner).extend(mends);
    }
}

fn error(action: &'static str, table: &str, source: impl Into<crate::error::BoxError>) -> Error {
    Error::Store { action, table: table.to_owned(), source: source.into() }
}
