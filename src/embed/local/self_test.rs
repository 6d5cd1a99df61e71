//! The self-test after a load: a few texts whose vectors are on record are embedded, and must come out as they were.
//!
//! Guarantees: a model that answers otherwise than on record does not serve; the record of a model that has none yet is
//! written once, whole or not at all. It catches what checksums cannot: a processor or driver that computes wrongly, and a
//! release whose arithmetic changed without its identity. Must not know: how vectors are computed.

use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::embed::{EmbedderIdentity, Precision, check_vector};
use crate::error::{Error, Result};

/// The cosine that a vector must have to the one on record. Devices and instruction sets differ by 1e-6; a wrong row,
/// layer or rounding by far more than 1e-4.
const REQUIRED: f64 = 0.9999;

/// The same where the record was made with more digits than the embedder computes with. bf16 has cosine 0.9999 to f32 or
/// just above.
const REQUIRED_OF_FEWER_DIGITS: f64 = 0.999;

/// What a model without a record is asked first: a word, a sentence, umlauts, another script. About 60 tokens, which take
/// some 15 ms in a model of MiniLM's size.
const TEXTS: [&str; 4] = [
    "water",
    "How deep must a post be set so that frost does not lift it?",
    "Größere Äpfel lagern kühl und dunkel, kleinere werden zu Mus.",
    "冬天怎样保护水管不被冻裂?",
];

/// Records of known models, made by the reference implementation: the first ones of `tests/data/minilm_reference.json`.
const REFERENCES: [&str; 1] = [include_str!("self_test/all-minilm-l6-v2.json")];

/// Texts and the vectors that they must have.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// The model's name, or the embedder's id where this release made the record.
    model: String,
    /// As in the identity.
    weights: String,
    texts: Vec<String>,
    vectors: Vec<Vec<f32>>,
}

/// Compares what `embed` makes of the texts on record with their vectors; where nothing is on record, records it in `dir`,
/// the model's own folder.
///
/// # Errors
/// [`Error::ModelDrift`]; [`Error::ModelFormat`] for a damaged record; those of `embed`.
pub(super) fn run(
    identity: &EmbedderIdentity,
    dir: &Path,
    embed: impl FnOnce(&[String]) -> Result<Vec<Vec<f32>>>,
) -> Result<()> {
    let path = dir.join(format!("self-test-{}.json", identity.id()));
    let (record, required) = match (reference(identity)?, Record::read(&path)?) {
        (Some(record), _) if identity.precision != Precision::F32 => (record, REQUIRED_OF_FEWER_DIGITS),
        (Some(record), _) | (None, Some(record)) => (record, REQUIRED),
        (None, None) => return Record::make(identity, embed)?.write(&path),
    };
    record.compare(identity, &embed(&record.texts)?, required)
}

/// The record that comes with this release, if there is one.
fn reference(identity: &EmbedderIdentity) -> Result<Option<Record>> {
    for text in REFERENCES {
        let record = Record::parse(Path::new("the built-in self-test"), text.as_bytes())?;
        if (&record.model, &record.weights) == (&identity.name, &identity.weights) {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

impl Record {
    fn make(identity: &EmbedderIdentity, embed: impl FnOnce(&[String]) -> Result<Vec<Vec<f32>>>) -> Result<Self> {
        let texts: Vec<String> = TEXTS.iter().map(|&text| text.to_owned()).collect();
        let vectors = embed(&texts)?;
        // A record of nonsense would let nonsense pass for ever.
        if let Some(defect) = vectors.iter().find_map(|vector| check_vector(vector, identity).err()) {
            return Err(Error::EmbedderFailed {
                embedder: identity.name.clone(),
                reason: "the model's answers to the self-test cannot be used".into(),
                source: Some(defect.into()),
            });
        }
        Ok(Self { model: identity.id().to_string(), weights: identity.weights.clone(), texts, vectors })
    }

    fn compare(&self, identity: &EmbedderIdentity, vectors: &[Vec<f32>], required: f64) -> Result<()> {
        let cosines = self.vectors.iter().enumerate().map(|(i, expected)| match vectors.get(i) {
            Some(found) if found.len() == expected.len() => cosine(found, expected),
            _ => f64::NAN,
        });
        // What is not a number is the worst of all.
        let badness = |cosine: f64| if cosine.is_nan() { f64::INFINITY } else { -cosine };
        let worst = self.texts.iter().zip(cosines).max_by(|a, b| badness(a.1).total_cmp(&badness(b.1)));
        match worst {
            Some((_, cosine)) if cosine >= required => Ok(()),
            Some((text, cosine)) => {
                let (model, text) = (identity.name.clone(), text.clone());
                Err(Error::ModelDrift { model, text, cosine, required })
            }
            None => Ok(()),
        }
    }

    fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let refuse = |source: Option<crate::error::BoxError>| Error::ModelFormat {
            path: path.to_owned(),
            reason: "not a record of a self-test; delete it, and the next load makes it anew".into(),
            source,
        };
        let record: Self = serde_json::from_slice(json).map_err(|e| refuse(Some(e.into())))?;
        if record.texts.is_empty() || record.texts.len() != record.vectors.len() {
            return Err(refuse(None));
        }
        Ok(record)
    }

    fn read(path: &Path) -> Result<Option<Self>> {
        match std::fs::read(path) {
            Ok(json) => Self::parse(path, &json).map(Some),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("read", path)(e)),
        }
    }

    /// Into another file first, so that a reader finds a whole record or none. A folder that cannot be written to costs the
    /// comparison, not the model.
    fn write(&self, path: &Path) -> Result<()> {
        let unfinished = PathBuf::from(format!("{}.{}", path.display(), std::process::id()));
        let write = || {
            let mut file = std::fs::File::create(&unfinished)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            // Or a power cut could leave the name with nothing in it.
            file.sync_all()?;
            std::fs::rename(&unfinished, path)
        };
        if let Err(e) = write() {
            tracing::warn!(path = %path.display(), error = %e, "cannot record the self-test of a model");
            // It may not even be there.
            let _ = std::fs::remove_file(&unfinished);
        }
        Ok(())
    }
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;
    use crate::embed::{Embedder, FakeEmbedder};

    fn identity() -> EmbedderIdentity {
        FakeEmbedder::new(3).identity().clone()
    }

    /// Unit vectors, the `turned`-th of them at an angle to what it should be.
    fn vectors(count: usize, turned: usize, angle: f32) -> Vec<Vec<f32>> {
        let vector = |i| if i == turned { vec![angle.cos(), angle.sin(), 0.0] } else { vec![1.0, 0.0, 0.0] };
        (0..count).map(vector).collect()
    }

    #[test]
    fn the_first_load_records_and_later_ones_compare() {
        let dir = tempfile::tempdir().unwrap();
        let run = |turned, angle| run(&identity(), dir.path(), |texts| Ok(vectors(texts.len(), turned, angle)));
        run(0, 0.0).unwrap();
        // cos 0.01 is 0.99995, cos 0.02 is 0.9998.
        run(2, 0.01).unwrap();
        match run(2, 0.02) {
            Err(Error::ModelDrift { model, text, cosine, required }) => {
                assert_eq!((model.as_str(), text.as_str(), required), ("fake:3", TEXTS[2], 0.9999));
                assert!((cosine - f64::from(0.02_f32).cos()).abs() < 1e-6);
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn answers_that_are_no_numbers_or_too_few_have_drifted() {
        let dir = tempfile::tempdir().unwrap();
        let run = |vectors| run(&identity(), dir.path(), |_| Ok(vectors));
        run(vectors(4, 0, 0.0)).unwrap();
        for bad in [vectors(4, 1, f32::NAN), vectors(3, 0, 0.0), vec![vec![1.0]; 4]] {
            assert!(matches!(run(bad), Err(Error::ModelDrift { .. })));
        }
    }

    #[test]
    fn nonsense_is_not_recorded() {
        let dir = tempfile::tempdir().unwrap();
        assert!(run(&identity(), dir.path(), |_| Ok(vec![vec![0.0; 3]; 4])).is_err());
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn embedders_that_differ_have_records_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let other = EmbedderIdentity { precision: Precision::Bf16, ..identity() };
        run(&identity(), dir.path(), |_| Ok(vectors(4, 0, 0.0))).unwrap();
        run(&other, dir.path(), |_| Ok(vectors(4, 0, 1.0))).unwrap();
        run(&identity(), dir.path(), |_| Ok(vectors(4, 0, 0.0))).unwrap();
    }

    #[test]
    fn a_damaged_record_is_refused_by_its_name() {
        let dir = tempfile::tempdir().unwrap();
        run(&identity(), dir.path(), |_| Ok(vectors(4, 0, 0.0))).unwrap();
        let path = std::fs::read_dir(dir.path()).unwrap().next().unwrap().unwrap().path();
        for damaged in ["", "{", r#"{"model": "m", "weights": "w", "texts": ["a"], "vectors": []}"#] {
            std::fs::write(&path, damaged).unwrap();
            match run(&identity(), dir.path(), |_| Ok(vectors(4, 0, 0.0))) {
                Err(Error::ModelFormat { path: named, .. }) => assert_eq!(named, path),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_costs_only_the_record() {
        let gone = Path::new("no/such/folder");
        run(&identity(), gone, |_| Ok(vectors(4, 0, 0.0))).unwrap();
    }

    #[test]
    fn what_comes_with_the_release_is_what_the_reference_implementation_made() {
        #[derive(Deserialize)]
        struct Reference {
            texts: Vec<String>,
            vectors: Vec<String>,
        }
        let reference: Reference =
            serde_json::from_str(include_str!("../../../tests/data/minilm_reference.json")).unwrap();
        let record = Record::parse(Path::new("x"), REFERENCES[0].as_bytes()).unwrap();
        for (text, vector) in record.texts.iter().zip(&record.vectors) {
            let at = reference.texts.iter().position(|of| of == text).unwrap();
            let bytes = base64::engine::general_purpose::STANDARD.decode(&reference.vectors[at]).unwrap();
            let expected = bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap()));
            // Five digits after the point.
            assert!(expected.zip(vector).all(|(expected, found)| (expected - found).abs() <= 5.1e-6));
        }
    }
}
