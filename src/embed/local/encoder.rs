//! A BERT or XLM-RoBERTa encoder, padding-free: the tokens of all texts of a batch stand in one matrix `[T, H]`, one text
//! after another, and nothing is ever padded or masked on a processor's own cores.
//!
//! In shapes: T tokens in the batch, B texts, L tokens in one text, H the width of a state, F the width inside the
//! feed-forward part, A heads of D numbers each (H = A · D), V token ids, P positions. Must not know: files, tokenizers.

use burn::tensor::Device;

use super::fused::Fused;
use super::stock::Stock;
use crate::embed::Pooling;
use crate::error::BoxError;
use crate::kernels::Cpu;

/// A loaded encoder.
pub(super) struct Encoder {
    pub(super) limits: Limits,
    pub(super) output: Output,
    pub(super) body: Body,
}

/// What token ids may be.
pub(super) struct Limits {
    /// V
    pub(super) vocabulary: usize,
    /// Most tokens of one text.
    pub(super) tokens: usize,
}

/// How token states become a vector.
#[derive(Clone, Copy)]
pub(super) struct Output {
    pub(super) pooling: Pooling,
    pub(super) scale: Scale,
}

/// The length of a vector.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// Unit norm.
    Unit,
    /// As it comes out of pooling.
    Raw,
}

/// The weights, once: packed for the kernels of a processor, or as tensors on a device.
pub(super) enum Body {
    Fused(Box<Fused>),
    Stock(Box<Stock>),
}

/// What computes a model.
#[derive(Clone, Debug)]
pub(super) enum Processor {
    /// All cores, by the instructions that were found.
    Cpu(Cpu),
    /// A graphics processor.
    Device(Device),
}

/// One transformer layer. `D` holds a linear layer `x W + b`, `N` a layer norm over H.
pub(super) struct Layer<D, N> {
    /// `[H, 3H]`: query, key and value side by side, each head by head.
    pub(super) qkv: D,
    /// `[H, H]`
    pub(super) attention_output: D,
    pub(super) attention_norm: N,
    /// `[H, F]`
    pub(super) up: D,
    /// `[F, H]`
    pub(super) down: D,
    pub(super) output_norm: N,
}

/// What is wrong with the token ids of a batch.
#[derive(Debug, thiserror::Error)]
pub(super) enum TokensDefect {
    #[error("a text has {tokens} tokens, the model takes 1 to {max}")]
    Length { tokens: usize, max: usize },
    #[error("token id {id} is beyond the model's {vocabulary} tokens")]
    Id { id: u32, vocabulary: usize },
}

impl Encoder {
    /// One vector per text, in order. Fastest where texts of equal length are neighbours.
    ///
    /// Fails on token ids or lengths that the model does not have, and where the device fails.
    pub(super) fn embed(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>, BoxError> {
        if texts.is_empty() {
            return Ok(Vec::new());
        }
        self.limits.check(texts)?;
        let vectors = match &self.body {
            Body::Fused(body) => body.embed(texts, self.output),
            Body::Stock(body) => body.embed(texts, self.output),
        };
        let [_, width] = vectors.dims();
        let numbers: Vec<f32> = vectors.try_into_vec_as()?;
        Ok(numbers.chunks_exact(width).map(<[f32]>::to_vec).collect())
    }
}

impl Encoder {
    /// Most tokens of a batch, where nobody says otherwise.
    pub(super) fn batch_tokens(&self) -> usize {
        match &self.body {
            // Tokens a second on two cores with AVX512-BF16, all-MiniLM-L6-v2, mean length 117, two runs each, for 1,024, 2,048 and
            // 4,096: 17,500, 17,200 and 17,300 in f32; 28,900, 24,500 and 26,500 in bf16. A question that arrives meanwhile waits
            // for one batch.
            Body::Fused(_) => 1_024,
            // Enough rows for every core of one; the scores of 16 heads over texts of 8,192 tokens take 8 GB then. Not measured.
            Body::Stock(_) => 16_384,
        }
    }
}

impl Limits {
    fn check(&self, texts: &[&[u32]]) -> Result<(), TokensDefect> {
        let (max, vocabulary) = (self.tokens, self.vocabulary);
        if let Some(text) = texts.iter().find(|text| text.is_empty() || text.len() > max) {
            return Err(TokensDefect::Length { tokens: text.len(), max });
        }
        match texts.iter().copied().flatten().find(|&&id| id as usize >= vocabulary) {
            Some(&id) => Err(TokensDefect::Id { id, vocabulary }),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::config::BertConfig;
    use super::super::{tiny, weights};
    use super::*;
    use crate::embed::{EmbedderIdentity, Precision};

    /// Every way to compute that this machine has: stock operations run on any device, so on the processor as well.
    fn processors() -> impl Iterator<Item = Processor> {
        let stock = Processor::Device(Device::flex());
        Cpu::available().into_iter().map(Processor::Cpu).chain([stock])
    }

    fn encoder(processor: &Processor, pooling: Pooling, precision: Precision) -> Encoder {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, tiny::safetensors(&tiny::tensors())).unwrap();
        let config = BertConfig::parse(Path::new("config.json"), tiny::CONFIG.as_bytes()).unwrap();
        let identity = EmbedderIdentity { pooling, precision, ..tiny::identity() };
        weights::load(&path, &config, &identity, processor).unwrap()
    }

    fn best(pooling: Pooling) -> Encoder {
        encoder(&Processor::Cpu(Cpu::best()), pooling, Precision::F32)
    }

    fn largest_difference(found: &[f32], expected: &[f64]) -> f64 {
        assert_eq!(found.len(), expected.len());
        found.iter().zip(expected).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn every_text_of_a_mixed_batch_equals_plain_f64_loops_over_it_alone() {
        let texts: [&[u32]; 7] = [
            &[2, 7, 6, 4, 5, 4, 5, 3],
            &[2, 1, 1, 1, 1, 1, 1, 3],
            &[2, 4, 5, 6, 3],
            &[2, 6, 6, 6, 3],
            &[2, 7, 4, 0, 3],
            &[2, 3],
            &[5],
        ];
        for processor in processors() {
            // 8 bits of mantissa, and vectors of 8 numbers between -1 and 1.
            for (precision, bound) in [(Precision::F32, 1e-5), (Precision::Bf16, 0.05)] {
                let vectors = encoder(&processor, Pooling::Mean, precision).embed(&texts).unwrap();
                assert_eq!(vectors.len(), texts.len());
                for (text, vector) in texts.iter().zip(&vectors) {
                    let difference = largest_difference(vector, &tiny::reference(&tiny::tensors(), text));
                    assert!(difference < bound, "{processor:?} {precision} {text:?}: {difference}");
                }
            }
        }
    }

    #[test]
    fn texts_of_one_length_need_not_be_neighbours() {
        let encoder = best(Pooling::Mean);
        let (a, b, c): (&[u32], &[u32], &[u32]) = (&[2, 4, 3], &[2, 4, 5, 3], &[2, 6, 3]);
        let apart = encoder.embed(&[a, b, c]).unwrap();
        let expected = [a, b, c].map(|text| tiny::reference(&tiny::tensors(), text));
        for (found, expected) in apart.iter().zip(&expected) {
            assert!(largest_difference(found, expected) < 1e-5);
        }
    }

    #[test]
    fn cls_pooling_takes_the_first_token() {
        // Of a text of one token, the first token is the mean.
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-6);
        for processor in processors() {
            let embed = |pooling| encoder(&processor, pooling, Precision::F32).embed(&[&[6], &[6, 4]]).unwrap();
            let (mean, cls) = (embed(Pooling::Mean), embed(Pooling::Cls));
            assert!(same(&mean[0], &cls[0]));
            assert!(!same(&mean[1], &cls[1]));
        }
    }

    #[test]
    fn tokens_that_the_model_does_not_have_are_refused() {
        let encoder = best(Pooling::Mean);
        let refusal = |texts: &[&[u32]]| encoder.embed(texts).unwrap_err().to_string();
        assert_eq!(refusal(&[&[1], &[8]]), "token id 8 is beyond the model's 8 tokens");
        assert_eq!(refusal(&[&[1], &[]]), "a text has 0 tokens, the model takes 1 to 16");
        assert_eq!(refusal(&[&[1; 17]]), "a text has 17 tokens, the model takes 1 to 16");
    }

    #[test]
    fn no_text_gives_no_vector() {
        assert_eq!(best(Pooling::Mean).embed(&[]).unwrap(), Vec::<Vec<f32>>::new());
    }
}
