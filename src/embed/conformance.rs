//! The contract of [`Embedder`], as a check that every implementation passes.
//!
//! Asks for some two hundred short texts, three about as long as the window, and a few that nobody writes but files hold.
//! Must not know: any implementation.

use futures::future::join_all;

use super::{Embedded, Embedder, EmbedderIdentity, TextKind, check_vector};

/// Cosine above which two vectors count as the same, as the contract says.
const SAME: f32 = 0.9999;

/// Texts of different lengths and scripts, no two of them alike. The first [`TOLD_APART`] are such that any model knows their
/// words; a small one may know none of another script.
const SAMPLES: [&str; 11] = [
    "water",
    "two bees",
    "boil it first",
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

/// Samples whose vectors must differ, or an order that is wrong could not be seen.
const TOLD_APART: usize = 6;

/// Callers that ask at the same time.
const CALLERS: usize = 6;

/// Texts that an embedder must survive: nothing, only white space, one endless word, joined and modified emoji, scripts that
/// run from right to left with marks and overrides, NUL and other control characters, and nothing but marks.
fn odd_texts() -> Vec<String> {
    let endless = "w".repeat(10_000);
    [
        "",
        " \t\r\n\u{a0}\u{3000}",
        &endless,
        "👩🏽‍🌾👨‍👩‍👧‍👦🏳️‍🌈 3️⃣",
        "كيف نحفظ ماء المطر؟ שָׁלוֹם \u{202e}override\u{202c}",
        "before\0after \u{1b}[31m\u{7f}\u{200b}\u{feff}",
        "z͑ͫ̓ͪ̂ͫ ?!… [CLS] [SEP] </s> <unk>",
    ]
    .map(str::to_owned)
    .into()
}

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
    check_odd_texts(embedder, &identity).await?;
    check_window(embedder, &identity).await?;
    check_callers(embedder).await?;
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
    let counter = embedder.token_counter().map_err(|e| format!("token counter: {e}"))?;
    // Some windows are small; what is cut may well be the same as another text.
    let fits = |text: &&str| counter.count_tokens(text) <= counter.max_text_tokens();
    let told_apart = SAMPLES.iter().take(TOLD_APART).filter(|text| fits(text)).count();
    let texts: Vec<String> = SAMPLES.into_iter().filter(fits).map(str::to_owned).collect();
    if told_apart < 2 {
        return Err(format!("token counter: not even two short texts fit a window of {}", identity.max_tokens));
    }
    let together = embed(embedder, kind, &texts).await?;
    for (text, answer) in texts.iter().zip(&together) {
        check_answer(text, answer, identity)?;
    }
    for (i, (text, a)) in texts.iter().zip(&together).take(told_apart).enumerate() {
        if together.iter().take(told_apart).skip(i + 1).any(|b| cosine(&a.vector, &b.vector) > SAME) {
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

/// Each odd text has an answer like any other, alone and among ordinary ones.
async fn check_odd_texts(embedder: &dyn Embedder, identity: &EmbedderIdentity) -> Result<(), String> {
    let odd = odd_texts();
    let ordinary = SAMPLES.iter().map(|&text| text.to_owned());
    // One of each, in turn, as they come in a batch of a backfill.
    let mixed: Vec<String> = odd.iter().cloned().zip(ordinary).flat_map(|(odd, ordinary)| [odd, ordinary]).collect();
    let together = embed(embedder, TextKind::Passage, &mixed).await?;
    for (text, answer) in odd.iter().zip(together.iter().step_by(2)) {
        let shown: String = text.chars().take(20).collect();
        check_vector(&answer.vector, identity)
            .map_err(|defect| format!("vector of `{}`: {defect}", shown.escape_debug()))?;
        check_tokens(answer, identity)?;
        let alone = embed(embedder, TextKind::Passage, std::slice::from_ref(text)).await?;
        check_same(&shown, answer, alone.first())?;
    }
    Ok(())
}

/// Callers at the same time get their own answers, and one who goes away leaves the others alone.
async fn check_callers(embedder: &dyn Embedder) -> Result<(), String> {
    let texts: Vec<String> = SAMPLES.iter().map(|&text| text.to_owned()).collect();
    let expected = embed(embedder, TextKind::Passage, &texts).await?;
    let turned = |by: usize| {
        let mut texts = texts.clone();
        texts.rotate_left(by);
        texts
    };
    // One that is dropped before its first step, one that is dropped at its first wait.
    drop(embedder.embed(TextKind::Passage, &texts));
    let abandoned = turned(1);
    let mut waiting = embedder.embed(TextKind::Passage, &abandoned);
    let _ = futures::poll!(&mut waiting);
    drop(waiting);

    let calls = (0..CALLERS).map(|by| {
        let asked = turned(by);
        async move { embed(embedder, TextKind::Passage, &asked).await }
    });
    for (by, answers) in join_all(calls).await.into_iter().enumerate() {
        let mut answers = answers.map_err(|e| format!("callers at the same time, one of them gone: {e}"))?;
        let count = answers.len();
        answers.rotate_right(by.min(count));
        for ((text, expected), found) in texts.iter().zip(&expected).zip(&answers) {
            check_same(text, expected, Some(found)).map_err(|e| format!("callers at the same time: {e}"))?;
        }
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
    // The measure is that of passages: a question's prefix may leave it less room.
    if answer.truncated && identity.query_prefix.len() <= identity.passage_prefix.len() {
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
    use std::sync::{Arc, Mutex};

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
            (Fault::Missing, "count: 10 answers for 11 texts"),
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
    async fn odd_texts_that_are_refused_or_left_out_are_detected() {
        for (fault, said) in
            [(Fault::Fail, "told to fail"), (Fault::Missing, "13 answers for 14"), (Fault::ZeroNorm, "norm 0")]
        {
            for odd in odd_texts() {
                let fake = FakeEmbedder::with_faults(16, move |text| (text == odd).then_some(fault));
                let found = check_conformance(&fake).await.unwrap_err();
                assert!(found.contains(said), "{fault:?}: {found}");
            }
        }
    }

    /// A fake that takes time and mixes up what callers at the same time ask for, or is stuck once one of them has gone.
    struct Careless {
        fake: FakeEmbedder,
        defect: Defect,
        running: Mutex<Vec<String>>,
    }

    #[derive(Clone, Copy)]
    enum Defect {
        MixesUpCallers,
        IsStuckByOneThatGoes,
    }

    #[async_trait]
    impl Embedder for Careless {
        fn identity(&self) -> &EmbedderIdentity {
            self.fake.identity()
        }
        fn token_counter(&self) -> crate::Result<Arc<dyn TokenCounter>> {
            self.fake.token_counter()
        }
        async fn embed(&self, kind: TextKind, texts: &[String]) -> crate::Result<Vec<Embedded>> {
            let before = std::mem::replace(&mut *self.running.lock().unwrap(), texts.to_vec());
            tokio::task::yield_now().await;
            let texts = match self.defect {
                Defect::MixesUpCallers => std::mem::take(&mut *self.running.lock().unwrap()),
                Defect::IsStuckByOneThatGoes if !before.is_empty() => return Err(crate::Error::Cancelled),
                Defect::IsStuckByOneThatGoes => {
                    self.running.lock().unwrap().clear();
                    texts.to_vec()
                }
            };
            self.fake.embed(kind, &texts).await
        }
    }

    #[tokio::test]
    async fn callers_that_disturb_each_other_are_detected() {
        for defect in [Defect::MixesUpCallers, Defect::IsStuckByOneThatGoes] {
            let careless = Careless { fake: FakeEmbedder::new(16), defect, running: Mutex::default() };
            let found = check_conformance(&careless).await.unwrap_err();
            assert!(found.starts_with("callers at the same time"), "{found}");
        }
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
