//! Recall@k of one query, and what a pass over a query set came to.

use super::queries::ValidationQuery;
use crate::store::Neighbour;

/// Slack on the radius: two f32 sums over some hundred products in different orders differ by about 1e-6.
const TIE: f32 = 2e-6;

/// What one pass over a query set measured.
#[derive(Clone, Debug, Default)]
pub(super) struct Measured {
    pub(super) recalls: Vec<f64>,
    pub(super) milliseconds: Vec<f64>,
}

impl Measured {
    pub(super) fn mean(&self) -> f64 {
        let count = self.recalls.len();
        if count == 0 { 0.0 } else { self.recalls.iter().sum::<f64>() / count as f64 }
    }

    /// This and what another pass measured.
    pub(super) fn and(mut self, more: Self) -> Self {
        self.recalls.extend(more.recalls);
        self.milliseconds.extend(more.milliseconds);
        self
    }

    pub(super) fn worst(&self) -> f64 {
        self.recalls.iter().copied().reduce(f64::min).unwrap_or(0.0)
    }

    /// The nearest-rank percentile of the times; 0 without any.
    pub(super) fn percentile_ms(&self, percent: usize) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
        sorted.get(rank).copied().unwrap_or(0.0)
    }
}

/// The share of a query's true neighbours that was found. A row at the same distance as the k-th true one is as good: with
/// equal texts in a bank, which of them is returned is chance.
pub(super) fn recall_of(query: &ValidationQuery, found: &[Neighbour]) -> f64 {
    let k = query.neighbours.len();
    if k == 0 {
        return 1.0;
    }
    let good = |n: &&Neighbour| query.neighbours.contains(&n.row_id) || n.distance <= query.radius + TIE;
    let hits = found.iter().filter(|n| Some(n.row_id) != query.origin).take(k).filter(good).count();
    hits as f64 / k as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query() -> ValidationQuery {
        ValidationQuery { origin: Some(9), vector: vec![], neighbours: vec![1, 2], radius: 0.5 }
    }

    fn found(rows: &[(u64, f32)]) -> Vec<Neighbour> {
        rows.iter().map(|&(row_id, distance)| Neighbour { row_id, distance }).collect()
    }

    #[test]
    fn counts_true_neighbours_and_ties_but_never_the_origin() {
        assert_eq!(recall_of(&query(), &found(&[(9, 0.0), (1, 0.1), (2, 0.5)])), 1.0);
        assert_eq!(recall_of(&query(), &found(&[(1, 0.1), (7, 0.5)])), 1.0);
        assert_eq!(recall_of(&query(), &found(&[(1, 0.1), (7, 0.6)])), 0.5);
        assert_eq!(recall_of(&query(), &found(&[(7, 0.6), (8, 0.7), (1, 0.1)])), 0.0);
        assert_eq!(recall_of(&query(), &[]), 0.0);
    }

    #[test]
    fn percentiles_are_nearest_rank() {
        let measured = Measured { recalls: vec![0.5, 1.0], milliseconds: vec![4.0, 1.0, 2.0, 3.0] };
        assert_eq!([measured.percentile_ms(50), measured.percentile_ms(95)], [2.0, 4.0]);
        assert_eq!((measured.mean(), measured.worst()), (0.75, 0.5));
    }
}
