//! The bank's ledger: hands the store's text cell to an embedder that costs money. The store does not know embedders, and
//! embedders do not know tables; here they meet.

use async_trait::async_trait;
use tokio::sync::OnceCell;

use crate::embed::remote::SpendLedger;
use crate::error::Result;
use crate::store::{SpendCell, Store};

/// A bank as the place where spending is kept.
pub(crate) struct BankLedger {
    store: Store,
    /// Opened when something is to be spent.
    cell: OnceCell<SpendCell>,
}

impl BankLedger {
    pub(crate) fn new(store: Store) -> Self {
        Self { store, cell: OnceCell::new() }
    }

    async fn cell(&self) -> Result<&SpendCell> {
        self.cell.get_or_try_init(|| self.store.spend_cell()).await
    }
}

#[async_trait]
impl SpendLedger for BankLedger {
    async fn read(&self) -> Result<Option<String>> {
        self.cell().await?.get().await
    }

    async fn replace(&self, expected: Option<&str>, new: &str) -> Result<bool> {
        self.cell().await?.compare_and_set(expected, new).await
    }
}
