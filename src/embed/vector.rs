//! What a vector must be before it is stored: the promised dimension, finite, and of unit norm where promised.

use super::EmbedderIdentity;

/// Allowed distance of a norm from 1. f32 sums over 1,024 squares err by about 1e-5; bf16 inference by about 1e-3.
const NORM_TOLERANCE: f32 = 1e-3;

/// Why a vector is refused.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub(crate) enum VectorDefect {
    #[error("the vector has {got} dimensions, the embedder promises {want}")]
    Dimension { got: usize, want: usize },
    #[error("the vector has a value that is not finite at position {position}")]
    NotFinite { position: usize },
    #[error("the vector has norm 0")]
    ZeroNorm,
    #[error("the vector has norm {norm}, the embedder promises unit norm")]
    NotUnit { norm: f32 },
}

/// Checks one vector against what its embedder promises.
pub(crate) fn check_vector(vector: &[f32], identity: &EmbedderIdentity) -> Result<(), VectorDefect> {
    if vector.len() != identity.dimension {
        return Err(VectorDefect::Dimension { got: vector.len(), want: identity.dimension });
    }
    if let Some(position) = vector.iter().position(|x| !x.is_finite()) {
        return Err(VectorDefect::NotFinite { position });
    }
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if norm == 0.0 {
        return Err(VectorDefect::ZeroNorm);
    }
    if identity.normalised && (norm - 1.0).abs() > NORM_TOLERANCE {
        return Err(VectorDefect::NotUnit { norm });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::embed::{Embedder, FakeEmbedder};

    #[test]
    fn each_defect_is_named() {
        let fake = FakeEmbedder::new(2);
        let check = |v: &[f32]| check_vector(v, fake.identity());
        assert_eq!(check(&[0.6, 0.8]), Ok(()));
        assert_eq!(check(&[1.0]), Err(VectorDefect::Dimension { got: 1, want: 2 }));
        assert_eq!(check(&[0.0, f32::NAN]), Err(VectorDefect::NotFinite { position: 1 }));
        assert_eq!(check(&[f32::INFINITY, 0.0]), Err(VectorDefect::NotFinite { position: 0 }));
        assert_eq!(check(&[0.0, 0.0]), Err(VectorDefect::ZeroNorm));
        assert!(matches!(check(&[2.0, 0.0]), Err(VectorDefect::NotUnit { .. })));
    }
}
