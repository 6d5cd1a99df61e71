//! The texts of claimed chunks, read by row id. Claims follow the order in which documents were stored, so a stream of
//! `(id, row id)` that is read once finds nearly all of them; what it does not find is looked for by name.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use arrow_array::RecordBatch;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use lance::Dataset;

use super::documents::{Documents, Passage, hash_at};
use super::filter::Filter;
use super::keys::SeenFragments;
use super::rows::Rows;
use super::table::Scan;
use crate::error::Result;
use crate::id::{ChunkId, DocId};

/// Row ids of chunks that were passed by and not yet asked for, at most: about 12 MB. Chunks that are ready are passed by
/// too and never asked for; the oldest are forgotten.
const PASSED_BY: usize = 1 << 16;

const COLUMNS: [&str; 6] = ["id", "doc_id", "doc_path", "category", "content", "content_hash"];

/// Chunks with the ids of their rows.
type Places = Vec<(ChunkId, u64)>;

/// Reads passages in about the order of the documents table.
pub(crate) struct PassageReader {
    documents: Documents,
    seen: SeenFragments,
    places: Option<BoxStream<'static, Result<Places>>>,
    passed_by: HashMap<ChunkId, u64>,
    order: VecDeque<ChunkId>,
}

impl PassageReader {
    pub(crate) fn new(documents: Documents) -> Self {
        Self {
            documents,
            seen: SeenFragments::default(),
            places: None,
            passed_by: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    /// What to embed for these ids, as of the newest version; absent ones are left out.
    pub(crate) async fn read(&mut self, wanted: &[ChunkId]) -> Result<HashMap<ChunkId, Passage>> {
        self.documents.0.refresh().await?;
        let dataset = self.documents.0.dataset().await?;
        let mut sought: HashSet<&ChunkId> = HashSet::with_capacity(wanted.len());
        let mut row_ids = Vec::with_capacity(wanted.len());
        for id in wanted {
            match self.passed_by.remove(id) {
                Some(row_id) => row_ids.push(row_id),
                None => {
                    sought.insert(id);
                }
            }
        }
        while !sought.is_empty()
            && let Some(places) = self.next_places(&dataset).await?
        {
            for (id, row_id) in places {
                if sought.remove(&id) { row_ids.push(row_id) } else { self.pass_by(id, row_id) }
            }
        }
        let mut found = self.documents.take_passages(&dataset, row_ids).await?;
        // Written anew since it was passed by, or passed by too long ago; or there is none.
        let missing: Vec<_> = wanted.iter().filter(|id| !found.contains_key(id)).cloned().collect();
        if !missing.is_empty() {
            found.extend(self.documents.passages(&missing).await?);
        }
        Ok(found)
    }

    async fn next_places(&mut self, dataset: &Arc<Dataset>) -> Result<Option<Places>> {
        if let Some(places) = &mut self.places
            && let Some(some) = places.try_next().await?
        {
            return Ok(Some(some));
        }
        self.places = None;
        let unseen = self.seen.take_unseen(dataset);
        if unseen.is_empty() {
            return Ok(None);
        }
        let table = &self.documents.0;
        let name = table.name().to_owned();
        let scan = Scan { fragments: Some(unseen), row_ids: true, ..Scan::columns(&["id"]) };
        let batches = table.scan_version(dataset, scan).await?;
        let decoded = batches.and_then(move |batch| {
            let places = decode_places(&name, &batch);
            async move { places }
        });
        self.places.insert(decoded.boxed()).try_next().await
    }

    fn pass_by(&mut self, id: ChunkId, row_id: u64) {
        self.order.push_back(id.clone());
        self.passed_by.insert(id, row_id);
        while self.order.len() > PASSED_BY
            && let Some(oldest) = self.order.pop_front()
        {
            self.passed_by.remove(&oldest);
        }
    }
}

impl Documents {
    /// What to embed in these rows; ids of rows that are gone are left out.
    async fn take_passages(&self, dataset: &Arc<Dataset>, mut row_ids: Vec<u64>) -> Result<HashMap<ChunkId, Passage>> {
        let mut found = HashMap::with_capacity(row_ids.len());
        if row_ids.is_empty() {
            return Ok(found);
        }
        // Neighbours are read together.
        row_ids.sort_unstable();
        let failed = |e| self.0.error("read", e);
        let projection = dataset.schema().project(&COLUMNS).map_err(failed)?;
        let batch = dataset.take_rows(&row_ids, projection).await.map_err(failed)?;
        decode_passages(self.0.name(), &batch, &mut found)?;
        Ok(found)
    }

    /// What to embed for these ids, wherever they lie; absent ones are left out. Reads the whole column of ids.
    pub(crate) async fn passages(&self, ids: &[ChunkId]) -> Result<HashMap<ChunkId, Passage>> {
        let mut found = HashMap::with_capacity(ids.len());
        for some in ids.chunks(super::IDS_PER_STATEMENT) {
            let scan = Scan::columns(&COLUMNS).filter(Filter::In("id", super::id_texts(some)));
            for batch in self.0.scan_all(scan).await? {
                decode_passages(self.0.name(), &batch, &mut found)?;
            }
        }
        Ok(found)
    }
}

fn decode_places(table: &str, batch: &RecordBatch) -> Result<Places> {
    let rows = Rows::new(table, batch);
    let (ids, row_ids) = (rows.texts("id")?, rows.row_ids()?);
    Ok((0..batch.num_rows()).map(|row| (ChunkId::from_stored(ids.value(row)), row_ids.value(row))).collect())
}

fn decode_passages(table: &str, batch: &RecordBatch, found: &mut HashMap<ChunkId, Passage>) -> Result<()> {
    let rows = Rows::new(table, batch);
    let [id, doc_id, doc_path] = [rows.texts("id")?, rows.texts("doc_id")?, rows.texts("doc_path")?];
    let [category, content, hash] = [rows.texts("category")?, rows.texts("content")?, rows.texts("content_hash")?];
    for row in 0..batch.num_rows() {
        let passage = Passage {
            id: ChunkId::from_stored(id.value(row)),
            doc_id: DocId::from_stored(doc_id.value(row)),
            doc_path: doc_path.value(row).to_owned(),
            category: category.value(row).to_owned(),
            content: content.value(row).to_owned(),
            content_hash: hash_at(&rows, hash, row)?,
        };
        found.insert(passage.id.clone(), passage);
    }
    Ok(())
}
