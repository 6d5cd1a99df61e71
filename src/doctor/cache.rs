//! The cache of one embedder: usable vectors, and for one text always the same. It may outlive its chunks.

use super::checks;
use super::documents::key;
use super::findings::Cure;
use super::look::{Look, Promise};
use super::vectors::{Norms, is_finite};
use crate::error::Result;
use crate::id::{ContentHash, EmbedderId};
use crate::store::VectorTable;

/// One row; 32 bytes.
struct Cached {
    hash: u128,
    /// 64 bits of the hash of the vector's bytes.
    digest: u64,
    address: u64,
}

impl Look {
    /// Checks the cached vectors.
    pub(super) async fn cache(&mut self, embedder: &EmbedderId, promise: Promise) -> Result<()> {
        let table = VectorTable::Cache.name(embedder);
        if !self.inspection.has(&table) || !self.is_whole(&table, &[&checks::CACHE_VALUES, &checks::CACHE_AGREEMENT]) {
            return Ok(());
        }
        let (mut cached, mut found, mut norms) = (Vec::new(), Vec::new(), Norms::new(promise));
        self.inspection
            .vectors(VectorTable::Cache, embedder, |row| {
                let what = |reason: &str| format!("{} under {embedder}: {reason}", row.content_hash);
                let dropped = || vec![Cure::DropRow { table: table.clone(), address: row.address }];
                if ContentHash::from_hex(row.content_hash).is_none() {
                    found.push((what("not a content hash"), dropped()));
                } else if !is_finite(row.vector) {
                    found.push((what("not finite"), dropped()));
                } else if !norms.look_at(row.vector, || (what("not of unit norm"), dropped())) {
                    let digest = digest(row.vector);
                    cached.push(Cached { hash: key(row.content_hash), digest, address: row.address });
                }
            })
            .await?;
        found.extend(norms.broken());
        for (what, cures) in found {
            self.find(&checks::CACHE_VALUES, what, cures);
        }
        cached.sort_unstable_by_key(|row| (row.hash, row.address));
        for of_one_text in cached.chunk_by(|a, b| a.hash == b.hash) {
            let Some((first, others)) = of_one_text.split_first() else { continue };
            for other in others.iter().filter(|other| other.digest != first.digest) {
                let what = format!("{:032x}… under {embedder} has two vectors", other.hash);
                let cure = Cure::DropRow { table: table.clone(), address: other.address };
                self.find(&checks::CACHE_AGREEMENT, what, vec![cure]);
            }
        }
        Ok(())
    }
}

fn digest(vector: &[f32]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    vector.iter().for_each(|x| _ = hasher.update(&x.to_le_bytes()));
    hasher.finalize().as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes))
}
