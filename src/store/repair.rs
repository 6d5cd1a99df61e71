//! Writes that only a repair makes: rows taken out by their address, fragments whose files are gone given up, claims of
//! workers that have ended given back.
//!
//! Guarantees: nothing is taken out that was changed since it was looked at; a conflict with another writer changes nothing
//! and says so. The caller holds the maintenance lease. Must not know: what is wrong with what it takes out.

use std::collections::BTreeMap;
use std::sync::Arc;

use lance::Dataset;
use lance::dataset::UpdateBuilder;
use lance::dataset::transaction::Operation;

use super::chunk_status::{ALL, ChunkStatus, Outcome, decode, encode, finished, in_state};
use super::commit::split_address;
use super::examine::Inspection;
use super::filter::{self, Filter};
use super::meta::Meta;
use super::rows::Rows;
use super::schema;
use super::table::{Scan, StoredTable};
use super::{Store, VectorTable, WorkerId};
use crate::clock::Timestamp;
use crate::error::Result;
use crate::id::{ChunkId, EmbedderId, GenerationId};
use crate::status::ChunkState;

impl Inspection {
    /// Takes rows out of the version that was looked at. Returns `false`, and nothing is changed, if another writer has
    /// touched one of them since.
    pub(crate) async fn drop_rows(&self, table: &str, addresses: &[u64]) -> Result<bool> {
        let Some(table) = self.tables.get(table) else { return Ok(false) };
        let dataset = table.dataset().await?;
        let mut offsets: BTreeMap<u64, Vec<u32>> = BTreeMap::new();
        for (fragment, offset) in addresses.iter().copied().map(split_address) {
            offsets.entry(fragment).or_default().push(offset);
        }
        let (mut updated_fragments, mut deleted_fragment_ids) = (Vec::new(), Vec::new());
        for (id, offsets) in offsets {
            let fragment = usize::try_from(id).ok().and_then(|id| dataset.get_fragment(id));
            let Some(fragment) = fragment else { return Ok(false) };
            match fragment.extend_deletions(offsets).await.map_err(|e| table.error("delete from", e))? {
                Some(rest) => updated_fragments.push(rest.metadata().clone()),
                None => deleted_fragment_ids.push(id),
            }
        }
        drop_from(table, &dataset, updated_fragments, deleted_fragment_ids).await
    }

    /// Gives up fragments whose files are gone: what they held is lost already.
    pub(crate) async fn drop_fragments(&self, table: &str, ids: &[u64]) -> Result<bool> {
        let Some(table) = self.tables.get(table) else { return Ok(false) };
        let dataset = table.dataset().await?;
        drop_from(table, &dataset, Vec::new(), ids.to_vec()).await
    }
}

async fn drop_from(
    table: &StoredTable,
    dataset: &Arc<Dataset>,
    updated_fragments: Vec<lance_table::format::Fragment>,
    deleted_fragment_ids: Vec<u64>,
) -> Result<bool> {
    let operation = Operation::Delete { updated_fragments, deleted_fragment_ids, predicate: "by address".to_owned() };
    Ok(table.commit(dataset, operation, None).await?.is_some())
}

impl ChunkStatus {
    /// Gives claims back whose lease has run out or whose worker has ended. Returns how many.
    pub(crate) async fn release_stale(&self, now: Timestamp) -> Result<u64> {
        self.0.refresh().await?;
        let dataset = self.0.dataset().await?;
        let scan = Scan { addresses: true, ..Scan::columns(&ALL).filter(in_state(ChunkState::InProgress)) };
        let (mut rows, mut addresses) = (Vec::new(), Vec::new());
        for batch in self.0.scan_version_all(&dataset, scan).await? {
            let places = Rows::new(self.0.name(), &batch).addresses()?.values();
            for (row, address) in decode(self.0.name(), &batch)?.into_iter().zip(places) {
                if is_stale(row.lease_owner.as_deref(), row.lease_until, now) {
                    rows.extend(finished(Outcome::Released, row, now));
                    addresses.push(*address);
                }
            }
        }
        if rows.is_empty() {
            return Ok(0);
        }
        let replaced = self.0.replace_rows(&dataset, &addresses, encode(&rows, &self.0)?).await?;
        Ok(replaced.map_or(0, |_| rows.len() as u64))
    }
}

/// Whether a claim holds no more.
pub(crate) fn is_stale(owner: Option<&str>, until: Option<Timestamp>, now: Timestamp) -> bool {
    until.is_some_and(|until| until <= now) || owner.and_then(WorkerId::parse).is_some_and(|worker| worker.has_ended())
}

impl Store {
    /// Has the next ingest cut the documents of these chunks again, whatever it remembers of them.
    pub(crate) async fn forget_sources(&self, ids: &[ChunkId]) -> Result<()> {
        let documents = &self.documents.0;
        documents.refresh().await?;
        let failed = |e| documents.error("update", e);
        let update = UpdateBuilder::new(documents.dataset().await?);
        let update = update.update_where(&Filter::In("id", super::id_texts(ids)).to_sql()).map_err(failed)?;
        let update = update.set("source_hash", &filter::literal("")).map_err(failed)?.build().map_err(failed)?;
        let updated = update.execute().await.map_err(failed)?;
        documents.adopt(updated.new_dataset.as_ref().clone());
        Ok(())
    }

    /// Removes a fact if it still has this value.
    pub(crate) async fn forget_fact(&self, key: &str, value: &str) -> Result<()> {
        self.meta.0.refresh().await?;
        let row = Filter::All(vec![Filter::Eq("key", key.to_owned()), Filter::Eq("value", value.to_owned())]);
        self.meta.0.delete(&row).await
    }

    /// Removes an index by name; nothing happens if there is none.
    pub(crate) async fn drop_index(&self, embedder: &EmbedderId, index: &str) -> Result<()> {
        let table = super::open_table(&self.connection, &VectorTable::Embeddings.name(embedder)).await?;
        let embeddings = super::Embeddings { table, dimension: 0 };
        embeddings.drop_index(&GenerationId::from_stored(index)).await
    }

    /// Replaces the value of the one fact in `spend` if it still is `expected`.
    pub(crate) async fn replace_spend(&self, key: &str, expected: &str, value: &str) -> Result<bool> {
        let table = super::open_or_create_table(&self.connection, "spend", schema::meta()).await?;
        Meta(table).compare_and_set(key, Some(expected), value, self.clock.now()).await
    }
}
