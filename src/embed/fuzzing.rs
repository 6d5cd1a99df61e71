//! The ways in of the embedders, for the fuzz targets.

pub use super::local::fuzzing::{image, model_config, safetensors, tokenizer};
pub use super::remote::fuzzing::answer;
