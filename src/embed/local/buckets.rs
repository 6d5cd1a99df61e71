//! Rectangles of tokens for graphics processors: which shapes a batch is padded to.
//!
//! A graphics processor compiles or tunes its code for each new shape, so there are few of them, and after the first
//! minutes of a backfill none is new. Pure. Guarantees: every text is in exactly one sheet, in order. Must not know: tensors.

use std::ops::Range;

/// Rows up to which a sheet is filled up rather than split: so small a product costs the same, however many rows it has.
const FEW_ROWS: usize = 8;

/// Neighbouring texts as a rectangle `[rows, length]`, the rest of which is padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sheet {
    /// Which texts of the batch, by index.
    pub(super) texts: Range<usize>,
    /// A power of two, at least the number of texts.
    pub(super) rows: usize,
    /// At least the tokens of the longest text.
    pub(super) length: usize,
}

/// Cuts a batch, longest text first, into sheets.
pub(super) fn sheets(lengths: &[usize]) -> Vec<Sheet> {
    let mut sheets = Vec::new();
    let mut start = 0;
    for texts in lengths.chunk_by(|a, b| length_bucket(*a) == length_bucket(*b)) {
        let length = length_bucket(texts.iter().copied().max().unwrap_or(0));
        let end = start + texts.len();
        while start < end {
            let rows = row_bucket(end - start);
            let last = end.min(start + rows);
            sheets.push(Sheet { texts: start..last, rows, length });
            start = last;
        }
    }
    sheets
}

/// The next of 16, 24, 32, 48, 64, 96, 128, 192 …: at most a third of a sheet is padding beside texts of more than 16 tokens,
/// and 19 lengths reach 8,192.
fn length_bucket(tokens: usize) -> usize {
    let power = tokens.max(16).next_power_of_two();
    let between = power / 4 * 3;
    if power > 16 && tokens <= between { between } else { power }
}

/// A power of two of rows: all that are left if less than a quarter would be empty, else as many as fill it.
fn row_bucket(texts: usize) -> usize {
    let power = texts.next_power_of_two();
    if power <= FEW_ROWS || (power - texts) * 4 < power { power } else { power / 2 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn sheets_are_cut_where_the_bucket_changes_and_where_rows_would_be_empty() {
        let sheet = |texts, rows, length| Sheet { texts, rows, length };
        assert_eq!(sheets(&[100, 97, 90, 17]), [sheet(0..2, 2, 128), sheet(2..3, 1, 96), sheet(3..4, 1, 24)]);
        // 37 rows: 32, and 5 of 8.
        assert_eq!(sheets(&[16; 37]), [sheet(0..32, 32, 16), sheet(32..37, 8, 16)]);
        assert_eq!(sheets(&[16; 50]), [sheet(0..50, 64, 16)]);
        assert_eq!(sheets(&[]), []);
    }

    #[test]
    fn there_are_few_shapes() {
        let lengths: BTreeSet<usize> = (1..=8192).map(length_bucket).collect();
        let rows: BTreeSet<usize> = (1..=4096).map(row_bucket).collect();
        assert_eq!((lengths.len(), rows.len()), (19, 13));
    }

    proptest! {
        #[test]
        fn every_text_fits_its_sheet_and_little_is_padding(mut lengths in prop::collection::vec(1_usize..600, 0..300)) {
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            let mut next = 0;
            for Sheet { texts, rows, length } in sheets(&lengths) {
                prop_assert_eq!(texts.start, next);
                next = texts.end;
                prop_assert!(texts.len() <= rows && !texts.is_empty());
                for &tokens in &lengths[texts] {
                    prop_assert!(tokens <= length && (length <= 16 || length < 2 * tokens));
                }
            }
            prop_assert_eq!(next, lengths.len());
        }
    }
}
