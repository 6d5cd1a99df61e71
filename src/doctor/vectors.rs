//! The vectors of one embedder: one a chunk, made of what the chunk holds, finite, of unit norm where promised; and a vector
//! for every chunk that is called ready.

use super::checks;
use super::documents::{Chunks, key};
use super::findings::Cure;
use super::look::{Look, Promise};
use super::states::State;
use crate::error::Result;
use crate::id::{ChunkId, EmbedderId};
use crate::store::VectorTable;

/// How far a norm may be from 1, as invariant 4 has it.
const NORM_TOLERANCE: f32 = 1e-3;

/// Where nobody recorded what an embedder promises, its vectors tell: unit norm is promised if at least nine in ten have it.
const TELLING: (usize, usize) = (9, 10);

/// One row; 32 bytes.
struct Vector {
    id: u128,
    address: u64,
    sound: bool,
}

impl Look {
    /// Checks the embeddings against the chunks and their states.
    pub(super) async fn vectors(
        &mut self,
        embedder: &EmbedderId,
        chunks: Option<&Chunks>,
        states: &[State],
        promise: Promise,
    ) -> Result<()> {
        let table = VectorTable::Embeddings.name(embedder);
        let others = [
            &checks::READY_WITHOUT_VECTOR,
            &checks::VECTOR_KEYS,
            &checks::VECTOR_ORPHANS,
            &checks::VECTOR_CONTENT,
            &checks::VECTOR_VALUES,
        ];
        // A table that is gone has no vectors; one that is damaged may.
        if !self.inspection.lacks(&table) && !self.is_whole(&table, &others) {
            return Ok(());
        }
        let requeue = |id: &str| Cure::Requeue(embedder.clone(), ChunkId::from_stored(id));
        let (mut vectors, mut found, mut norms) = (Vec::new(), Vec::new(), Norms::new(promise));
        self.inspection
            .vectors(VectorTable::Embeddings, embedder, |row| {
                let what = |reason: &str| format!("{} under {embedder}{reason}", row.id);
                let dropped = Cure::DropRow { table: table.clone(), address: row.address };
                let is_bad = if chunks.is_some_and(|chunks| !chunks.has(row.id)) {
                    found.push((&checks::VECTOR_ORPHANS, what(""), vec![dropped]));
                    true
                } else if chunks.and_then(|chunks| chunks.holds(row.id, row.content_hash)) == Some(false) {
                    found.push((&checks::VECTOR_CONTENT, what(""), vec![dropped, requeue(row.id)]));
                    true
                } else if !is_finite(row.vector) {
                    let cures = vec![dropped, requeue(row.id)];
                    found.push((&checks::VECTOR_VALUES, what(": not finite"), cures));
                    true
                } else {
                    norms.look_at(row.vector, || (what(": not of unit norm"), vec![dropped, requeue(row.id)]))
                };
                vectors.push(Vector { id: key(row.id), address: row.address, sound: !is_bad });
            })
            .await?;
        for (check, what, cures) in found {
            self.find(check, what, cures);
        }
        for (what, cures) in norms.broken() {
            self.find(&checks::VECTOR_VALUES, what, cures);
        }
        vectors.sort_unstable_by_key(|vector| (vector.id, !vector.sound, vector.address));
        for pair in vectors.windows(2) {
            let [kept, other] = pair else { continue };
            if kept.id == other.id && other.sound {
                let cure = Cure::DropRow { table: table.clone(), address: other.address };
                self.find(&checks::VECTOR_KEYS, format!("{:032x} under {embedder} stands twice", other.id), vec![cure]);
            }
        }
        for state in states.iter().filter(|state| state.ready) {
            if vectors.binary_search_by_key(&state.id, |vector| vector.id).is_err() {
                let id = format!("{:032x}", state.id);
                let cures = if state.is_named { vec![requeue(&id)] } else { Vec::new() };
                self.find(&checks::READY_WITHOUT_VECTOR, format!("{id} under {embedder}"), cures);
            }
        }
        Ok(())
    }
}

pub(super) fn is_finite(vector: &[f32]) -> bool {
    vector.iter().all(|x| x.is_finite())
}

/// Vectors that are not of unit norm, until it is known whether they should be.
pub(super) struct Norms {
    promise: Promise,
    seen: usize,
    off: Vec<(String, Vec<Cure>)>,
}

impl Norms {
    pub(super) fn new(promise: Promise) -> Self {
        Self { promise, seen: 0, off: Vec::new() }
    }

    /// Returns whether the vector is certainly at fault.
    pub(super) fn look_at(&mut self, vector: &[f32], finding: impl FnOnce() -> (String, Vec<Cure>)) -> bool {
        self.seen += 1;
        if self.promise == Promise::Nothing {
            return false;
        }
        let norm = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if (norm - 1.0).abs() <= f64::from(NORM_TOLERANCE) {
            return false;
        }
        self.off.push(finding());
        // So many that nothing of the kind can be promised; and no list of them grows with the table.
        if self.promise == Promise::Unknown && self.off.len() > 1000 && !self.is_telling() {
            (self.promise, self.off) = (Promise::Nothing, Vec::new());
        }
        self.promise == Promise::UnitNorm
    }

    /// What is wrong, now that all of them were seen.
    pub(super) fn broken(self) -> Vec<(String, Vec<Cure>)> {
        let counts = self.promise == Promise::UnitNorm || (self.promise == Promise::Unknown && self.is_telling());
        if counts { self.off } else { Vec::new() }
    }

    fn is_telling(&self) -> bool {
        (self.seen - self.off.len().min(self.seen)) * TELLING.1 >= self.seen * TELLING.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn broken(promise: Promise, unit: usize, other: usize) -> usize {
        let mut norms = Norms::new(promise);
        for at in 0..unit + other {
            // The odd ones first: the worst order for telling.
            let vector = if at < other { [3.0, 4.0] } else { [0.6, 0.8] };
            norms.look_at(&vector, || (at.to_string(), Vec::new()));
        }
        norms.broken().len()
    }

    #[test]
    fn unit_norm_is_held_against_a_vector_where_it_is_promised_or_nearly_all_have_it() {
        assert_eq!(broken(Promise::UnitNorm, 0, 5), 5);
        assert_eq!(broken(Promise::Nothing, 100, 5), 0);
        assert_eq!(broken(Promise::Unknown, 100, 5), 5);
        assert_eq!(broken(Promise::Unknown, 0, 5), 0);
        assert_eq!(broken(Promise::Unknown, 10, 5000), 0);
    }
}
