//! From the published safetensors to the towers.
//!
//! Every tensor is looked up by its published name and compared with the shape that the configuration promises; the first
//! that is missing or misshapen is named. Each is packed as soon as it is read, so that no second copy of the weights is held.
//! Must not know: images, tokenizers.

use std::path::Path;

use super::super::safetensors::Safetensors;
use super::blocks::{Block, Blocks, Branch, Dense};
use super::config::{BlocksConfig, TextConfig, TowerConfig, VisionConfig};
use super::positions::resampled;
use super::preprocess::Size;
use super::towers::{ImageTower, TextTower};
use crate::error::{Error, Result};
use crate::kernels::{Norm, Number, Reach, Weights};

/// What a model file holds.
pub(super) struct Towers {
    pub(super) image: ImageTower,
    /// `None` where the model knows images alone.
    pub(super) text: Option<TextTower>,
}

/// Reads the weights; `pixels`: what the image processor hands over, whose patches get positions.
///
/// # Errors
/// [`Error::ModelFormat`] where the file is no safetensors file or does not hold the tensors that `config` promises.
pub(super) fn load(path: &Path, config: &VisionConfig, pixels: Size, number: Number) -> Result<Towers> {
    let file = Safetensors::open(path).map_err(|e| Error::ModelFormat {
        path: path.to_owned(),
        reason: "not a safetensors file, or a damaged one".into(),
        source: Some(e),
    })?;
    let mut reader = Reader { path, file, number };
    match config {
        VisionConfig::Clip { image, text, projection } => Ok(Towers {
            image: reader.clip_image(image, *projection)?,
            text: Some(reader.clip_text(text, *projection)?),
        }),
        VisionConfig::Dinov2(image) => Ok(Towers { image: reader.dinov2(image, pixels)?, text: None }),
    }
}

/// What the parts of a block are called.
struct Names {
    attention_norm: &'static str,
    /// Query, key, value.
    attention: [&'static str; 3],
    attention_output: &'static str,
    attention_scale: Option<&'static str>,
    feed_forward_norm: &'static str,
    feed_forward_scale: Option<&'static str>,
}

const CLIP: Names = Names {
    attention_norm: "layer_norm1",
    attention: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    attention_output: "self_attn.out_proj",
    attention_scale: None,
    feed_forward_norm: "layer_norm2",
    feed_forward_scale: None,
};

const DINOV2: Names = Names {
    attention_norm: "norm1",
    attention: ["attention.attention.query", "attention.attention.key", "attention.attention.value"],
    attention_output: "attention.output.dense",
    attention_scale: Some("layer_scale1.lambda1"),
    feed_forward_norm: "norm2",
    feed_forward_scale: Some("layer_scale2.lambda1"),
};

/// Reads tensors by name and shape.
struct Reader<'a> {
    path: &'a Path,
    file: Safetensors,
    number: Number,
}

impl Reader<'_> {
    fn clip_image(&mut self, config: &TowerConfig, projection: usize) -> Result<ImageTower> {
        let (width, eps) = (config.blocks.width, config.blocks.eps);
        let side = config.image / config.patch;
        let part = |name: &str| format!("vision_model.{name}");
        let mut class = self.numbers(&part("embeddings.class_embedding"), &[width])?;
        let mut positions = self.numbers(&part("embeddings.position_embedding.weight"), &[side * side + 1, width])?;
        add_first(&mut class, &mut positions);
        Ok(ImageTower {
            // Published without a bias.
            patches: self.patches(&part("embeddings.patch_embedding"), config, vec![0.0; width])?,
            class,
            positions,
            // So it is spelt in every published file.
            norm_before: Some(self.norm(&part("pre_layrnorm"), width, eps)?),
            blocks: self.blocks(&part("encoder.layers"), &config.blocks, &CLIP, Reach::All)?,
            norm_after: self.norm(&part("post_layernorm"), width, eps)?,
            projection: Some(self.matrix("visual_projection.weight", projection, width)?),
        })
    }

    fn clip_text(&mut self, config: &TextConfig, projection: usize) -> Result<TextTower> {
        let (width, eps) = (config.blocks.width, config.blocks.eps);
        let part = |name: &str| format!("text_model.{name}");
        Ok(TextTower {
            words: self.numbers(&part("embeddings.token_embedding.weight"), &[config.vocabulary, width])?,
            positions: self.numbers(&part("embeddings.position_embedding.weight"), &[config.window, width])?,
            blocks: self.blocks(&part("encoder.layers"), &config.blocks, &CLIP, Reach::Causal)?,
            norm_after: self.norm(&part("final_layer_norm"), width, eps)?,
            projection: self.matrix("text_projection.weight", projection, width)?,
        })
    }

    fn dinov2(&mut self, config: &TowerConfig, pixels: Size) -> Result<ImageTower> {
        let (width, eps) = (config.blocks.width, config.blocks.eps);
        let side = config.image / config.patch;
        let kernel = "embeddings.patch_embeddings.projection";
        let bias = self.numbers(&format!("{kernel}.bias"), &[width])?;
        let mut class = self.numbers("embeddings.cls_token", &[1, 1, width])?;
        let mut positions = self.numbers("embeddings.position_embeddings", &[1, side * side + 1, width])?;
        add_first(&mut class, &mut positions);
        Ok(ImageTower {
            patches: self.patches(kernel, config, bias)?,
            class,
            positions: resampled(&positions, width, pixels.height / config.patch, pixels.width / config.patch),
            norm_before: None,
            blocks: self.blocks("encoder.layer", &config.blocks, &DINOV2, Reach::All)?,
            norm_after: self.norm("layernorm", width, eps)?,
            projection: None,
        })
    }

    /// A convolution whose kernel does not overlap itself is a linear layer over patches.
    fn patches(&mut self, kernel: &str, config: &TowerConfig, bias: Vec<f32>) -> Result<Dense> {
        let (width, patch) = (config.blocks.width, config.patch);
        let numbers = self.numbers(&format!("{kernel}.weight"), &[width, 3, patch, patch])?;
        Ok(Dense { weights: self.pack(&[&numbers], 3 * patch * patch), bias })
    }

    fn blocks(&mut self, stack: &str, config: &BlocksConfig, names: &Names, reach: Reach) -> Result<Blocks> {
        let layers = (0..config.layers).map(|i| self.block(&format!("{stack}.{i}"), config, names));
        let layers = layers.collect::<Result<_>>()?;
        Ok(Blocks { layers, heads: config.heads, activation: config.activation, reach })
    }

    fn block(&mut self, block: &str, config: &BlocksConfig, names: &Names) -> Result<Block> {
        let (width, inner, eps) = (config.width, config.inner, config.eps);
        let part = |name: &str| format!("{block}.{name}");
        let mut scale = |name: Option<&str>| name.map(|name| self.numbers(&part(name), &[width])).transpose();
        let (attention_scale, feed_forward_scale) = (scale(names.attention_scale)?, scale(names.feed_forward_scale)?);
        Ok(Block {
            attention_norm: self.norm(&part(names.attention_norm), width, eps)?,
            qkv: self.dense(&names.attention.map(part), width, width)?,
            attention_output: Branch {
                dense: self.dense(&[part(names.attention_output)], width, width)?,
                scale: attention_scale,
            },
            feed_forward_norm: self.norm(&part(names.feed_forward_norm), width, eps)?,
            up: self.dense(&[part("mlp.fc1")], width, inner)?,
            down: Branch { dense: self.dense(&[part("mlp.fc2")], inner, width)?, scale: feed_forward_scale },
        })
    }

    /// Linear layers with the same input, side by side: published `[out, in]` each → `[in, names · out]`
    fn dense(&mut self, names: &[String], inputs: usize, outputs: usize) -> Result<Dense> {
        let mut weights = Vec::with_capacity(names.len());
        let mut bias = Vec::with_capacity(names.len());
        for name in names {
            weights.push(self.numbers(&format!("{name}.weight"), &[outputs, inputs])?);
            bias.extend(self.numbers(&format!("{name}.bias"), &[outputs])?);
        }
        let parts: Vec<&[f32]> = weights.iter().map(Vec::as_slice).collect();
        Ok(Dense { weights: self.pack(&parts, inputs), bias })
    }

    /// A linear layer without a bias, published `[out, in]`.
    fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<Weights> {
        let numbers = self.numbers(name, &[outputs, inputs])?;
        Ok(self.pack(&[&numbers], inputs))
    }

    fn pack(&self, parts: &[&[f32]], inputs: usize) -> Weights {
        Weights::pack(parts, inputs, self.number)
    }

    fn norm(&mut self, name: &str, width: usize, eps: f32) -> Result<Norm> {
        let gamma = self.numbers(&format!("{name}.weight"), &[width])?;
        let beta = self.numbers(&format!("{name}.bias"), &[width])?;
        Ok(Norm { gamma, beta, eps })
    }

    /// The numbers of one tensor, row by row.
    fn numbers(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.file.read(name, shape).map_err(|defect| Error::ModelFormat {
            path: self.path.to_owned(),
            reason: format!("tensor {name} {defect}"),
            source: Some(defect.into()),
        })
    }
}

/// Adds the first position to the class token, and leaves the positions of the patches.
fn add_first(class: &mut [f32], positions: &mut Vec<f32>) {
    let first = positions.drain(..class.len().min(positions.len()));
    class.iter_mut().zip(first).for_each(|(class, position)| *class += position);
}
