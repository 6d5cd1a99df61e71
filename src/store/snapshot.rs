//! What validation reads of one fixed version of an embeddings table: some of its rows, its frequent categories, and the
//! version itself when it is asked for by its number later on.

use std::collections::HashMap;
use std::sync::Arc;

use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::embeddings::{Embeddings, Snapshot, VectorBatch, decode_vectors};
use super::rows::Rows;
use super::schema::VECTOR;
use super::table::Scan;
use crate::error::Result;

/// Categories that are counted at most; one that first appears after so many others is not among the frequent ones.
const CATEGORIES: usize = 4096;

/// Vectors of consecutive rows, and which of the categories asked for each row has.
#[derive(Clone, Debug)]
pub(crate) struct CategorisedBatch {
    pub(crate) rows: VectorBatch,
    /// Positions in the list of categories; `None` for any other category.
    pub(crate) categories: Vec<Option<usize>>,
}

/// One category of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CategorySample {
    pub(crate) category: String,
    pub(crate) rows: u64,
    /// Row ids, each subset of the category's rows equally likely; all of them where there are no more.
    pub(crate) row_ids: Vec<u64>,
}

impl Embeddings {
    /// The vectors at these positions, counted from 0 in the order in which a scan gives them.
    pub(crate) async fn vectors_at(&self, snapshot: &Snapshot, positions: &[u64]) -> Result<VectorBatch> {
        let failed = |e| self.table.error("read", e);
        let projection = snapshot.0.schema().project_preserve_system_columns(&[VECTOR, "_rowid"]).map_err(failed)?;
        let batch = snapshot.0.take(positions, projection).await.map_err(failed)?;
        decode_vectors(self.table.name(), &batch)
    }

    /// The vectors of these rows; rows that are gone are left out.
    pub(crate) async fn vectors_of(&self, snapshot: &Snapshot, row_ids: &[u64]) -> Result<VectorBatch> {
        decode_vectors(self.table.name(), &self.take(snapshot, row_ids, &[VECTOR]).await?)
    }

    /// All vectors of a snapshot, streamed with their row ids, and which of `wanted` their category is.
    pub(crate) async fn categorised_vectors(
        &self,
        snapshot: &Snapshot,
        wanted: Vec<String>,
    ) -> Result<BoxStream<'static, Result<CategorisedBatch>>> {
        let scan = Scan { row_ids: true, ..Scan::columns(&[VECTOR, "category"]) };
        let name = self.table.name().to_owned();
        let batches = self.table.scan_version(&snapshot.0, scan).await?;
        let decoded = batches.map(move |batch| {
            let batch = batch?;
            let texts = Rows::new(&name, &batch).texts("category")?;
            let place = |row| wanted.iter().position(|category| category == texts.value(row));
            let categories = (0..batch.num_rows()).map(place).collect();
            Ok(CategorisedBatch { rows: decode_vectors(&name, &batch)?, categories })
        });
        Ok(decoded.boxed())
    }

    /// The `most` categories with most rows, the most frequent first, and a sample of `wanted` rows of each.
    pub(crate) async fn frequent_categories(
        &self,
        snapshot: &Snapshot,
        most: usize,
        wanted: usize,
        seed: u64,
    ) -> Result<Vec<CategorySample>> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let mut seen: HashMap<String, CategorySample> = HashMap::new();
        let scan = Scan { row_ids: true, ..Scan::columns(&["category"]) };
        let mut batches = self.table.scan_version(&snapshot.0, scan).await?;
        while let Some(batch) = batches.try_next().await? {
            let rows = Rows::new(self.table.name(), &batch);
            let (categories, row_ids) = (rows.texts("category")?, rows.row_ids()?);
            for (row, &row_id) in row_ids.values().iter().enumerate() {
                let category = categories.value(row);
                let has_room = seen.len() < CATEGORIES;
                match seen.get_mut(category) {
                    Some(sample) => sample.offer(row_id, wanted, &mut rng),
                    None if has_room => {
                        let sample = CategorySample { category: category.to_owned(), rows: 1, row_ids: vec![row_id] };
                        seen.insert(category.to_owned(), sample);
                    }
                    None => {}
                }
            }
        }
        let mut found: Vec<_> = seen.into_values().collect();
        found.sort_by(|a, b| b.rows.cmp(&a.rows).then_with(|| a.category.cmp(&b.category)));
        found.truncate(most);
        Ok(found)
    }

    /// The table as it was at a version; `None` if that version is no longer there.
    pub(crate) async fn at_version(&self, version: u64) -> Result<Option<Snapshot>> {
        let newest = self.table.dataset().await?;
        match newest.checkout_version(version).await {
            Ok(dataset) => Ok(Some(Snapshot(Arc::new(dataset)))),
            Err(error) => {
                tracing::debug!(version, %error, "a version of the vectors cannot be opened any more");
                Ok(None)
            }
        }
    }
}

impl CategorySample {
    /// Algorithm R (Vitter 1985): each row seen so far is equally likely to be in the sample.
    fn offer(&mut self, row_id: u64, wanted: usize, rng: &mut ChaCha8Rng) {
        self.rows += 1;
        if self.row_ids.len() < wanted {
            self.row_ids.push(row_id);
            return;
        }
        let place = rng.random_range(0..self.rows);
        if let Some(taken) = usize::try_from(place).ok().and_then(|place| self.row_ids.get_mut(place)) {
            *taken = row_id;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_as_likely_as_any_other() {
        let mut drawn = [0u32; 50];
        for seed in 0..4000 {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let mut sample = CategorySample { category: String::new(), rows: 1, row_ids: vec![0] };
            (1..50).for_each(|row| sample.offer(row, 5, &mut rng));
            assert_eq!((sample.rows, sample.row_ids.len()), (50, 5));
            sample.row_ids.iter().for_each(|row| drawn[*row as usize] += 1);
        }
        // Each is drawn 400 times, give or take 19; five of these.
        assert!(drawn.iter().all(|count| count.abs_diff(400) < 95), "{drawn:?}");
    }
}
