//! The first step of a text model: rows of words and positions, summed and normalised.

use super::cpu::{Cpu, Work};
use super::norm::{Norm, norm_row};
use super::product::Isa;
use super::share::share;
use super::weights::Table;

/// out = norm(words[id] + positions[first_position + place]) for each token of each text; out: `[T, H]`.
///
/// # Panics
/// If an id or a position is not in its table: the caller checked them when it tokenised.
pub(crate) fn embed_tokens(
    cpu: Cpu,
    words: &Table,
    positions: &Table,
    first_position: usize,
    texts: &[&[u32]],
    norm: &Norm,
    out: &mut [f32],
) {
    let width = words.width();
    assert_eq!(positions.width(), width, "words and positions have one width");
    assert_eq!(norm.width(), width, "the norm has the width of the words");
    let tokens: usize = texts.iter().map(|text| text.len()).sum();
    assert_eq!(out.len(), tokens * width, "a row for each token");
    let mut rest = out;
    let mut tasks = Vec::with_capacity(texts.len());
    for ids in texts {
        assert!(first_position + ids.len() <= positions.rows(), "every token has a position");
        assert!(ids.iter().all(|&id| (id as usize) < words.rows()), "every id is in the vocabulary");
        let (rows, others) = rest.split_at_mut(ids.len() * width);
        rest = others;
        tasks.push(EmbedText { words, positions, first_position, ids, norm, out: rows });
    }
    share(tasks.into_iter(), |task, _: &mut ()| cpu.run(task));
}

struct EmbedText<'a> {
    words: &'a Table,
    positions: &'a Table,
    first_position: usize,
    ids: &'a [u32],
    norm: &'a Norm,
    out: &'a mut [f32],
}

impl Work for EmbedText<'_> {
    type Output = ();

    #[inline(always)]
    fn run<I: Isa>(self, isa: I) {
        for (place, (&id, row)) in self.ids.iter().zip(self.out.chunks_exact_mut(self.words.width())).enumerate() {
            row.fill(0.0);
            self.words.add_row(id as usize, row);
            self.positions.add_row(self.first_position + place, row);
            norm_row(isa, row, self.norm);
        }
    }
}
