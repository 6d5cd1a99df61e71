//! `spend`: what remote embedders have spent, as one text that changes by compare-and-set.
//!
//! A table of its own: it changes with every call of a provider, and `meta`, which every search reads, should not. Made on
//! first use, so that banks without remote embedders do not have it. Must not know what the text says.

use super::durability::Disk;
use super::meta::Meta;
use super::{Store, schema};
use crate::clock::Clock;
use crate::error::Result;

const KEY: &str = "ledger";

/// The cell.
#[derive(Clone, Debug)]
pub(crate) struct SpendCell {
    table: Meta,
    disk: Disk,
    clock: Clock,
}

impl Store {
    /// The cell of this bank; its table is made if it is not there.
    pub(crate) async fn spend_cell(&self) -> Result<SpendCell> {
        let table = super::open_or_create_table(&self.connection, "spend", schema::meta()).await?;
        Ok(SpendCell { table: Meta(table), disk: self.disk.clone(), clock: self.clock.clone() })
    }
}

impl SpendCell {
    /// The text as of the newest commit of any process.
    pub(crate) async fn get(&self) -> Result<Option<String>> {
        self.table.get(KEY).await
    }

    /// Sets the text if it still is `expected`; it then survives what the durability setting promises.
    pub(crate) async fn compare_and_set(&self, expected: Option<&str>, text: &str) -> Result<bool> {
        let was_set = self.table.compare_and_set(KEY, expected, text, self.clock.now()).await?;
        if was_set {
            self.disk.acknowledge().await?;
        }
        Ok(was_set)
    }
}
