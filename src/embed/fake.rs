//! A deterministic embedder for tests and trials: no weights, no files, the same vectors on every machine.
//!
//! Texts that share words are near each other, so that searches over it make sense. Its identity says `fake` in its name
//! and its weights and can never be taken for a model's. Must not know: real models.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;

use super::{Embedded, Embedder, EmbedderIdentity, Pooling, Precision, TextKind, TokenCounter};
use crate::error::{Error, Result};

/// Words of text that fit; the window of 256 less two, as if there were two special tokens.
const MAX_TEXT_WORDS: usize = 254;
const SPECIAL_TOKENS: usize = 2;

/// Embeds by hashing: the normalised sum of one pseudo-random vector per word, where a word is a lower-cased run of letters
/// and digits. A text without any has the vector of the empty word.
///
/// Tokens are words between white space; the window is 256, of which 254 are for text. Clones share the count of texts.
#[derive(Clone)]
pub struct FakeEmbedder {
    identity: EmbedderIdentity,
    texts_embedded: Arc<AtomicU64>,
    fault: Option<FaultOf>,
}

type FaultOf = Arc<dyn Fn(&str) -> Option<Fault> + Send + Sync>;

/// What a [`FakeEmbedder`] can be told to do wrong, to see what its caller makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The vector is one number short.
    WrongDimension,
    /// The vector's first number is not a number.
    NotANumber,
    /// The vector is all zeros.
    ZeroNorm,
    /// The answer is left out: the batch gets fewer answers than texts.
    Missing,
    /// The whole batch fails.
    Fail,
}

impl FakeEmbedder {
    /// An embedder with vectors of `dimension` numbers; 0 is taken as 1.
    pub fn new(dimension: usize) -> Self {
        let dimension = dimension.max(1);
        Self {
            identity: EmbedderIdentity {
                name: format!("fake:{dimension}"),
                dimension,
                normalised: true,
                pooling: Pooling::None,
                precision: Precision::F32,
                max_tokens: MAX_TEXT_WORDS + SPECIAL_TOKENS,
                query_prefix: String::new(),
                passage_prefix: String::new(),
                weights: "fake-v1".into(),
                tokenizer: "fake-v1".into(),
            },
            texts_embedded: Arc::default(),
            fault: None,
        }
    }

    /// An embedder that answers wrongly for the texts for which `fault` says so.
    pub fn with_faults(dimension: usize, fault: impl Fn(&str) -> Option<Fault> + Send + Sync + 'static) -> Self {
        Self { fault: Some(Arc::new(fault)), ..Self::new(dimension) }
    }

    /// How many texts this embedder and its clones were asked for so far, failed batches included.
    pub fn texts_embedded(&self) -> u64 {
        self.texts_embedded.load(Ordering::SeqCst)
    }

    fn fault_of(&self, text: &str) -> Option<Fault> {
        self.fault.as_ref().and_then(|fault| fault(text))
    }

    fn answer(&self, text: &str) -> Option<Embedded> {
        let mut embedded = embed_words(text, self.identity.dimension);
        match self.fault_of(text) {
            None => {}
            Some(Fault::WrongDimension) => embedded.vector.truncate(self.identity.dimension - 1),
            Some(Fault::NotANumber) => embedded.vector.iter_mut().take(1).for_each(|x| *x = f32::NAN),
            Some(Fault::ZeroNorm) => embedded.vector.fill(0.0),
            Some(Fault::Missing | Fault::Fail) => return None,
        }
        Some(embedded)
    }
}

#[async_trait]
impl Embedder for FakeEmbedder {
    fn identity(&self) -> &EmbedderIdentity {
        &self.identity
    }

    fn token_counter(&self) -> Result<Arc<dyn TokenCounter>> {
        Ok(Arc::new(WordCounter))
    }

    async fn embed(&self, _kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>> {
        self.texts_embedded.fetch_add(texts.len() as u64, Ordering::SeqCst);
        if texts.iter().any(|text| self.fault_of(text) == Some(Fault::Fail)) {
            return Err(Error::EmbedderFailed {
                embedder: self.identity.name.clone(),
                reason: "it was told to fail".into(),
                source: None,
            });
        }
        Ok(texts.iter().filter_map(|text| self.answer(text)).collect())
    }
}

impl std::fmt::Debug for FakeEmbedder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FakeEmbedder").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Counts words between white space.
struct WordCounter;

impl TokenCounter for WordCounter {
    fn count_tokens(&self, text: &str) -> usize {
        text.split_whitespace().count()
    }

    fn max_text_tokens(&self) -> usize {
        MAX_TEXT_WORDS
    }
}

fn embed_words(text: &str, dimension: usize) -> Embedded {
    let mut sums = vec![0_i32; dimension];
    let mut hashed = 0;
    let mut words = 0_usize;
    let mut lower = String::new();
    for word in text.split_whitespace() {
        words += 1;
        if words > MAX_TEXT_WORDS {
            break;
        }
        for run in word.split(|c: char| !c.is_alphanumeric()).filter(|run| !run.is_empty()) {
            lower.clear();
            lower.extend(run.chars().flat_map(char::to_lowercase));
            add_word(&mut sums, &lower);
            hashed += 1;
        }
    }
    if hashed == 0 {
        add_word(&mut sums, "");
        hashed = 1;
    }
    Embedded {
        vector: unit_vector(&sums, hashed),
        // At most the window, so it fits.
        tokens: (words.min(MAX_TEXT_WORDS) + SPECIAL_TOKENS) as u32,
        truncated: words > MAX_TEXT_WORDS,
    }
}

/// Adds the word's vector: signed bytes of a splitmix64 stream that starts at the word's hash.
fn add_word(sums: &mut [i32], word: &str) {
    let mut state =
        blake3::hash(word.as_bytes()).as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    for eight in sums.chunks_mut(8) {
        // splitmix64, Steele, Lea and Flood 2014: every step yields 64 well-mixed bits for three multiplications.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^= bits >> 31;
        for (sum, byte) in eight.iter_mut().zip(bits.to_le_bytes()) {
            *sum += i32::from(byte.cast_signed());
        }
    }
}

fn unit_vector(sums: &[i32], words: i32) -> Vec<f32> {
    // A signed byte has mean -1/2; twice the sum plus one for each word has mean 0.
    let centred = |sum: &i32| (2 * sum + words) as f32;
    let norm = sums.iter().map(centred).map(|x| x * x).sum::<f32>().sqrt();
    if norm == 0.0 {
        let mut first_axis = vec![0.0; sums.len()];
        first_axis.iter_mut().take(1).for_each(|x| *x = 1.0);
        return first_axis;
    }
    sums.iter().map(|sum| centred(sum) / norm).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{LocalEmbedder, LocalOptions, check_vector};
    use super::*;

    fn vector(text: &str) -> Vec<f32> {
        embed_words(text, 384).vector
    }

    fn cosine(a: &str, b: &str) -> f32 {
        vector(a).iter().zip(vector(b)).map(|(x, y)| x * y).sum()
    }

    #[test]
    fn shared_words_bring_texts_nearer_whatever_their_case_and_punctuation() {
        assert!(cosine("Boil the water!", "boil THE water") > 0.9999);
        assert!(cosine("boil the rain water", "boil the well water") > 0.6);
        assert!(cosine("boil the rain water", "prune old apple trees").abs() < 0.3);
    }

    #[test]
    fn every_text_has_a_unit_vector_of_the_promised_dimension() {
        for dimension in [1, 2, 7, 8, 384, 1024] {
            let identity = FakeEmbedder::new(dimension).identity;
            for text in ["", "  ", "?!", "a", "a b", "ein Wort für Größe", "水 を 沸かす"] {
                let embedded = embed_words(text, dimension);
                assert_eq!(check_vector(&embedded.vector, &identity), Ok(()), "{text:?} at {dimension}");
            }
        }
    }

    #[test]
    fn vectors_stay_what_they_are() {
        // Stored banks and demos rely on it; a change of the algorithm must change `fake-v1`.
        let embedded = embed_words("rain barrel", 4);
        let again = embed_words("barrel rain", 4);
        assert_eq!(embedded.vector, again.vector);
        let scaled: Vec<i32> = embedded.vector.iter().map(|x| (x * 1000.0).round() as i32).collect();
        assert_eq!(scaled, PINNED);
    }
    /// By an independent implementation, in Python.
    const PINNED: [i32; 4] = [-174, -883, 396, -181];

    #[test]
    fn long_texts_are_cut_at_the_window_and_marked() {
        let fits = "word ".repeat(MAX_TEXT_WORDS);
        let whole = embed_words(&fits, 8);
        let cut = embed_words(&format!("{fits} beyond the window"), 8);
        assert_eq!((whole.tokens, whole.truncated), (256, false));
        assert_eq!((cut.tokens, cut.truncated), (256, true));
        assert_eq!(whole.vector, cut.vector);
    }

    #[tokio::test]
    async fn the_count_of_texts_is_shared_by_clones() {
        let fake = FakeEmbedder::new(8);
        let clone = fake.clone();
        fake.embed(TextKind::Passage, &["a".into(), "b".into()]).await.unwrap();
        clone.embed(TextKind::Query, &["c".into()]).await.unwrap();
        assert_eq!((fake.texts_embedded(), clone.texts_embedded()), (3, 3));
    }

    #[test]
    fn a_fake_is_never_taken_for_another_dimension_or_for_a_real_model_of_the_same_name() {
        let identity = FakeEmbedder::new(384).identity;
        assert!(identity.id().as_str().starts_with("fake-384-"));
        assert_ne!(identity.id(), FakeEmbedder::new(383).identity.id());
        let real = LocalEmbedder::open(LocalOptions::new("all-minilm-l6-v2", "models")).unwrap();
        let disguised = EmbedderIdentity { name: real.identity().name.clone(), ..identity };
        assert_ne!(disguised.id(), real.identity().id());
    }
}
