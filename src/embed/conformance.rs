//! The contract of [`Embedder`], as a check that every implementation passes.
//!
//! Asks for a few dozen short texts and two as long as the window. Must not know: any implementation.

use super::{Embedded, Embedder, EmbedderIdentity, TextKind, check_vector};

/// Cosine above which two vectors count as the same, as the contract says.
const SAME: f32 = 0.9999;

/// Texts of different lengths and scripts, no two of them alike.
const SAMPLES: [&str; 9] = [
    "water",
    "Boil surface water for one minute before drinking it.",
    "How long do jars of apple sauce keep?",
    "Bees cluster when the hive is colder than about fourteen degrees; leave them alone until spring, and heft the hive \
     now and then to learn whether enough honey is left.",
    "Größere Äpfel lagern kühl und dunkel",
    "Вода кипит при ста градусах",
    "水を三分間沸かしてください",
    "🐝🍯",
    "x = (a + b) / 2; // 3.14159",
];

/// Checks that `embedder` keeps the contract of [`Embedder`].
///
/// # Errors
/// The first clause that is broken, with what was found.
pub async fn check_conformance(embedder: &dyn Embedder) -> Result<(), String> {
    let identity = embedder.identity().clone();
    if identity.dimension == 0 || identity.name.is_empty() || identity.max_tokens == 0 {
        return Err(format!("identity: {} promises nothing", identity.name));
    }
    for kind in [TextKind::Passage, TextKind::Query] {
        check_answers(embedder, &identity, kind).await?;
    }
    check_window(embedder, &identity).await?;
    if *embedder.identity() != identity {
        return Err("identity: it changed while texts were embedded".into());
    }
    Ok(())
}

async fn check_answers(embedder: &dyn Embedder, identity: &EmbedderIdentity, kind: TextKind) -> Result<(), String> {
    let none = embed(embedder, kind, &[]).await?;
    if !none.is_empty() {
        return Err(format!("count: {} answers for no text", none.len()));
    }
    let texts: Vec<String> = SAMPLES.iter().map(|&text| text.to_owned()).collect();
    let together = embed(embedder, kind, &texts).await?;
    for (text, answer) in texts.iter().zip(&together) {
        check_answer(text, answer, identity)?;
    }
    for (i, (text, a)) in texts.iter().zip(&together).enumerate() {
        if together.iter().skip(i + 1).any(|b| cosine(&a.vector, &b.vector) > SAME) {
            return Err(format!("order: the vector of `{text}` is also that of another text"));
        }
    }
    // Alone, and in reverse: other neighbours, other places in the batch.
    for (text, answer) in texts.iter().zip(&together) {
        let alone = embed(embedder, kind, std::slice::from_ref(text)).await?;
        check_same(text, answer, alone.first())?;
    }
    let reversed: Vec<String> = texts.iter().rev().cloned().collect();
    let backwards = embed(embedder, kind, &reversed).await?;
    for ((text, answer), other) in texts.iter().zip(&together).zip(backwards.iter().rev()) {
        check_same(text, answer, Some(other))?;
    }
    Ok(())
}

/// The longest text that the counter says fits is not cut; one word more is.
async fn check_window(embedder: &dyn Embedder, identity: &EmbedderIdentity) -> Result<(), String> {
    let counter = embedder.token_counter().map_err(|e| format!("token counter: {e}"))?;
    let max = counter.max_text_tokens();
    if max == 0 || max > identity.max_tokens {
        return Err(format!("token counter: {max} tokens of text in a window of {}", identity.max_tokens));
    }
    let words = |n: usize| vec!["water"; n].join(" ");
    let (mut fits, mut over) = (0, max + 1);
    while over - fits > 1 {
        let middle = fits + (over - fits) / 2;
        if counter.count_tokens(&words(middle)) <= max { fits = middle } else { over = middle }
    }
    if fits == 0 {
        return Err("token counter: not even one word fits the window".into());
    }
    let texts = [words(fits), words(fits + 1), words(4 * fits)];
    let answers = embed(embedder, TextKind::Passage, &texts).await?;
    for ((answer, text), cut) in answers.iter().zip(&texts).zip([false, true, true]) {
        check_vector(&answer.vector, identity).map_err(|defect| format!("vector: {defect}"))?;
        if answer.truncated != cut {
            let tokens = counter.count_tokens(text);
            return Err(format!("truncation: truncated = {} for {tokens} tokens where {max} fit", answer.truncated));
        }
        check_tokens(answer, identity)?;
    }
    Ok(())
}

async fn embed(embedder: &dyn Embedder, kind: TextKind, texts: &[String]) -> Result<Vec<Embedded>, String> {
    let answers = embedder.embed(kind, texts).await.map_err(|e| format!("embed: {e}"))?;
    if answers.len() != texts.len() {
        return Err(format!("count: {} answers for {} texts", answers.len(), texts.len()));
    }
    Ok(answers)
}

fn check_answer(text: &str, answer: &Embedded, identity: &EmbedderIdentity) -> Result<(), String> {
    check_vector(&answer.vector, identity).map_err(|defect| format!("vector of `{text}`: {defect}"))?;
    if answer.truncated {
        return Err(format!("truncation: `{text}` is short and was cut"));
    }
    check_tokens(answer, identity)
}

fn check_tokens(answer: &Embedded, identity: &EmbedderIdentity) -> Result<(), String> {
    if answer.tokens == 0 || answer.tokens as usize > identity.max_tokens {
        return Err(format!("tokens: {} in a window of {}", answer.tokens, identity.max_tokens));
    }
    Ok(())
}

fn check_same(text: &str, expected: &Embedded, found: Option<&Embedded>) -> Result<(), String> {
    let found = found.ok_or_else(|| format!("count: no answer for `{text}`"))?;
    let cosine = cosine(&expected.vector, &found.vector);
    if cosine.is_nan() || cosine <= SAME {
        return Err(format!("order or neighbours: `{text}` has another vector in another batch, cosine {cosine}"));
    }
    Ok(())
}

fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use async_trait::async_trait;

    use super::*;
    use crate::embed::{FakeEmbedder, Fault, TokenCounter};

    #[tokio::test]
    async fn the_fake_conforms_in_every_dimension_that_can_tell_texts_apart() {
        for dimension in [8, 16, 384, 1000] {
            assert_eq!(check_conformance(&FakeEmbedder::new(dimension)).await, Ok(()), "{dimension}");
        }
    }

    #[tokio::test]
    async fn each_fault_is_detected_whichever_text_has_it() {
        let faults = [
            (Fault::WrongDimension, "has 15 dimensions"),
            (Fault::NotANumber, "not finite"),
            (Fault::ZeroNorm, "norm 0"),
            (Fault::Missing, "count: 8 answers for 9 texts"),
            (Fault::Fail, "told to fail"),
        ];
        for (fault, said) in faults {
            for sample in SAMPLES {
                let fake = FakeEmbedder::with_faults(16, move |text| (text == sample).then_some(fault));
                let found = check_conformance(&fake).await.unwrap_err();
                assert!(found.contains(said), "{fault:?} on `{sample}`: {found}");
            }
        }
    }

    /// A fake whose answers are spoilt by `spoil`, once a batch.
    struct Spoilt(FakeEmbedder, fn(&mut Vec<Embedded>));

    #[async_trait]
    impl Embedder for Spoilt {
        fn identity(&self) -> &EmbedderIdentity {
            self.0.identity()
        }
        fn token_counter(&self) -> crate::Result<Arc<dyn TokenCounter>> {
            self.0.token_counter()
        }
        async fn embed(&self, kind: TextKind, texts: &[String]) -> crate::Result<Vec<Embedded>> {
            let mut answers = self.0.embed(kind, texts).await?;
            self.1(&mut answers);
            Ok(answers)
        }
    }

    #[tokio::test]
    async fn answers_in_the_wrong_order_are_detected() {
        let spoilt = Spoilt(FakeEmbedder::new(16), |answers| answers.reverse());
        let found = check_conformance(&spoilt).await.unwrap_err();
        assert!(found.contains("another vector in another batch"), "{found}");
    }

    #[tokio::test]
    async fn the_same_vector_for_every_text_is_detected() {
        let spoilt = Spoilt(FakeEmbedder::new(16), |answers| {
            let first = answers.first().map(|a| a.vector.clone());
            answers.iter_mut().for_each(|a| a.vector = first.clone().unwrap_or_default());
        });
        let found = check_conformance(&spoilt).await.unwrap_err();
        assert!(found.contains("also that of another text"), "{found}");
    }

    #[tokio::test]
    async fn a_silent_cut_is_detected() {
        let spoilt = Spoilt(FakeEmbedder::new(16), |answers| answers.iter_mut().for_each(|a| a.truncated = false));
        let found = check_conformance(&spoilt).await.unwrap_err();
        assert!(found.contains("truncated = false for 255 tokens where 254 fit"), "{found}");
    }

    #[tokio::test]
    async fn a_vector_without_unit_norm_is_detected() {
        let spoilt = Spoilt(FakeEmbedder::new(16), |answers| {
            answers.iter_mut().flat_map(|a| &mut a.vector).for_each(|x| *x *= 1.01);
        });
        let found = check_conformance(&spoilt).await.unwrap_err();
        assert!(found.contains("unit norm"), "{found}");
    }
}
