//! The numbers of a CLIP or DINOv2 model, read from the published `config.json`.
//!
//! What leaves here can be built: every size is positive and small enough that no product of sizes overflows, the heads
//! divide the width, patches tile the image. Must not know: tensors.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::kernels::Activation;

/// What a model folder's `config.json` describes.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum VisionConfig {
    /// An image and a text tower, which share a space.
    Clip {
        /// The image tower.
        image: TowerConfig,
        /// The text tower.
        text: TextConfig,
        /// Length of the vectors.
        projection: usize,
    },
    /// An image tower alone; its vectors are as wide as its states.
    Dinov2(TowerConfig),
}

/// An image tower.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TowerConfig {
    pub(super) blocks: BlocksConfig,
    /// Side of the square of pixels that becomes one token.
    pub(super) patch: usize,
    /// Side of the image that the positions were learned for, in pixels.
    pub(super) image: usize,
}

/// A text tower.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct TextConfig {
    pub(super) blocks: BlocksConfig,
    pub(super) vocabulary: usize,
    /// Positions: the window, special tokens included.
    pub(super) window: usize,
}

/// A stack of transformer blocks.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BlocksConfig {
    /// H
    pub(super) width: usize,
    pub(super) layers: usize,
    /// A
    pub(super) heads: usize,
    /// Width inside the feed-forward part, F.
    pub(super) inner: usize,
    pub(super) activation: Activation,
    /// Added to the variance in layer norms.
    pub(super) eps: f32,
}

impl VisionConfig {
    /// Reads and checks a `config.json`; `path` is only for what is said about it.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let refuse = |reason: String, source| Error::ModelFormat { path: path.to_owned(), reason, source };
        let broken =
            |e: serde_json::Error| refuse("not the configuration of a CLIP or DINOv2 model".into(), Some(e.into()));
        let Kind { model_type } = serde_json::from_slice(json).map_err(broken)?;
        let checked = match model_type.as_str() {
            "clip" => serde_json::from_slice::<Clip>(json).map_err(broken)?.checked(),
            "dinov2" => serde_json::from_slice::<Dinov2>(json).map_err(broken)?.checked(),
            other => Err(format!("model_type is {other}, this release runs the image models clip and dinov2")),
        };
        checked.map_err(|reason| refuse(reason, None))
    }

    /// The image tower.
    pub(super) fn image(&self) -> &TowerConfig {
        match self {
            Self::Clip { image, .. } | Self::Dinov2(image) => image,
        }
    }

    /// The architecture with its patch and its width: `clip-patch32-512`.
    pub(super) fn name(&self) -> String {
        let architecture = match self {
            Self::Clip { .. } => "clip",
            Self::Dinov2(_) => "dinov2",
        };
        format!("{architecture}-patch{}-{}", self.image().patch, self.dimension())
    }

    /// Everything in it that changes vectors and cannot be told from the shapes of the weights.
    pub(super) fn fingerprint(&self) -> String {
        match self {
            Self::Clip { image, text, .. } => {
                format!("clip {} text {}", image.blocks.fingerprint(), text.blocks.fingerprint())
            }
            Self::Dinov2(image) => format!("dinov2 {}", image.blocks.fingerprint()),
        }
    }

    /// Length of the vectors.
    pub(super) fn dimension(&self) -> usize {
        match self {
            Self::Clip { projection, .. } => *projection,
            Self::Dinov2(image) => image.blocks.width,
        }
    }
}

#[derive(Deserialize)]
struct Kind {
    model_type: String,
}

// A file leaves out what equals the default of transformers' configuration class, so those defaults stand below.

#[derive(Deserialize)]
struct Clip {
    #[serde(default)]
    vision_config: ClipVision,
    #[serde(default)]
    text_config: ClipText,
    #[serde(default = "clip_projection")]
    projection_dim: usize,
}

fn clip_projection() -> usize {
    512
}

#[derive(Deserialize)]
#[serde(default)]
struct ClipVision {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for ClipVision {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3_072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 32,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct ClipText {
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    vocab_size: usize,
    max_position_embeddings: usize,
    hidden_act: String,
    layer_norm_eps: f64,
}

impl Default for ClipText {
    fn default() -> Self {
        Self {
            hidden_size: 512,
            intermediate_size: 2_048,
            num_hidden_layers: 12,
            num_attention_heads: 8,
            vocab_size: 49_408,
            max_position_embeddings: 77,
            hidden_act: "quick_gelu".to_owned(),
            layer_norm_eps: 1e-5,
        }
    }
}

#[derive(Deserialize)]
#[serde(default)]
struct Dinov2 {
    hidden_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    mlp_ratio: usize,
    num_channels: usize,
    image_size: usize,
    patch_size: usize,
    hidden_act: String,
    layer_norm_eps: f64,
    qkv_bias: bool,
    use_swiglu_ffn: bool,
}

impl Default for Dinov2 {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4,
            num_channels: 3,
            image_size: 224,
            patch_size: 14,
            hidden_act: "gelu".to_owned(),
            layer_norm_eps: 1e-6,
            qkv_bias: true,
            use_swiglu_ffn: false,
        }
    }
}

impl Clip {
    fn checked(&self) -> Result<VisionConfig, String> {
        let (vision, text) = (&self.vision_config, &self.text_config);
        positive("projection_dim", self.projection_dim)?;
        positive("vocab_size", text.vocab_size)?;
        positive("max_position_embeddings", text.max_position_embeddings)?;
        let image = BlocksConfig {
            width: vision.hidden_size,
            layers: vision.num_hidden_layers,
            heads: vision.num_attention_heads,
            inner: vision.intermediate_size,
            activation: activation(&vision.hidden_act)?,
            eps: eps(vision.layer_norm_eps)?,
        };
        let texts = BlocksConfig {
            width: text.hidden_size,
            layers: text.num_hidden_layers,
            heads: text.num_attention_heads,
            inner: text.intermediate_size,
            activation: activation(&text.hidden_act)?,
            eps: eps(text.layer_norm_eps)?,
        };
        Ok(VisionConfig::Clip {
            image: tower(image, vision.patch_size, vision.image_size, vision.num_channels)?,
            text: TextConfig {
                blocks: texts.checked()?,
                vocabulary: text.vocab_size,
                window: text.max_position_embeddings,
            },
            projection: self.projection_dim,
        })
    }
}

impl Dinov2 {
    fn checked(&self) -> Result<VisionConfig, String> {
        if self.use_swiglu_ffn {
            return Err("use_swiglu_ffn is true (DINOv2-giant), which this release does not run".into());
        }
        if !self.qkv_bias {
            return Err("qkv_bias is false, which this release does not run".into());
        }
        let blocks = BlocksConfig {
            width: self.hidden_size,
            layers: self.num_hidden_layers,
            heads: self.num_attention_heads,
            inner: self.hidden_size.saturating_mul(self.mlp_ratio),
            activation: activation(&self.hidden_act)?,
            eps: eps(self.layer_norm_eps)?,
        };
        Ok(VisionConfig::Dinov2(tower(blocks, self.patch_size, self.image_size, self.num_channels)?))
    }
}

fn tower(blocks: BlocksConfig, patch: usize, image: usize, channels: usize) -> Result<TowerConfig, String> {
    positive("patch_size", patch)?;
    positive("image_size", image)?;
    if channels != 3 {
        return Err(format!("num_channels is {channels}, this release takes pictures of 3"));
    }
    // 4,096 as in the image processor: no published model comes near it.
    if image > 4_096 || !image.is_multiple_of(patch) {
        return Err(format!("image_size {image} is not a number of patches of patch_size {patch}"));
    }
    Ok(TowerConfig { blocks: blocks.checked()?, patch, image })
}

impl BlocksConfig {
    fn fingerprint(&self) -> String {
        let activation = match self.activation {
            Activation::Gelu => "gelu",
            Activation::QuickGelu => "quick_gelu",
            Activation::None => "linear",
        };
        format!("heads={} eps={} {activation}", self.heads, self.eps)
    }

    fn checked(self) -> Result<Self, String> {
        positive("hidden_size", self.width)?;
        positive("num_hidden_layers", self.layers)?;
        positive("num_attention_heads", self.heads)?;
        positive("the feed-forward width", self.inner)?;
        if !self.width.is_multiple_of(self.heads) {
            let Self { width, heads, .. } = self;
            return Err(format!("hidden_size {width} cannot be divided among {heads} attention heads"));
        }
        Ok(self)
    }
}

/// No size of a published encoder comes near a million; beyond it, products of sizes could overflow.
fn positive(field: &str, size: usize) -> Result<(), String> {
    if size == 0 || size > 1 << 20 { Err(format!("{field} is {size}")) } else { Ok(()) }
}

fn activation(name: &str) -> Result<Activation, String> {
    match name {
        "gelu" => Ok(Activation::Gelu),
        "quick_gelu" => Ok(Activation::QuickGelu),
        other => Err(format!("hidden_act is {other}, this release runs gelu and quick_gelu")),
    }
}

fn eps(eps: f64) -> Result<f32, String> {
    if (0.0..1.0).contains(&eps) { Ok(eps as f32) } else { Err(format!("layer_norm_eps is {eps}")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<VisionConfig> {
        VisionConfig::parse(Path::new("config.json"), json.as_bytes())
    }

    fn refusal(json: &str) -> String {
        parse(json).unwrap_err().to_string()
    }

    #[test]
    fn what_a_file_leaves_out_is_the_published_base_model() {
        let clip = parse(r#"{"model_type": "clip"}"#).unwrap();
        let tower = clip.image();
        assert_eq!((clip.dimension(), tower.blocks.width, tower.patch, tower.image), (512, 768, 32, 224));
        let small = r#"{"model_type": "dinov2", "hidden_size": 384, "num_attention_heads": 6, "image_size": 518}"#;
        let small = parse(small).unwrap();
        assert_eq!((small.dimension(), small.image().blocks.inner, small.image().image), (384, 1_536, 518));
    }

    #[test]
    fn refuses_what_it_cannot_run_and_says_why() {
        let siglip = refusal(r#"{"model_type": "siglip"}"#);
        assert_eq!(siglip, "config.json: model_type is siglip, this release runs the image models clip and dinov2");
        let giant = refusal(r#"{"model_type": "dinov2", "use_swiglu_ffn": true}"#);
        assert_eq!(giant, "config.json: use_swiglu_ffn is true (DINOv2-giant), which this release does not run");
        let heads = refusal(r#"{"model_type": "clip", "text_config": {"num_attention_heads": 7}}"#);
        assert_eq!(heads, "config.json: hidden_size 512 cannot be divided among 7 attention heads");
        let patches = refusal(r#"{"model_type": "clip", "vision_config": {"patch_size": 15}}"#);
        assert_eq!(patches, "config.json: image_size 224 is not a number of patches of patch_size 15");
        let huge = refusal(r#"{"model_type": "dinov2", "hidden_size": 1152921504606846976}"#);
        assert_eq!(huge, "config.json: hidden_size is 1152921504606846976");
        assert_eq!(refusal("{}"), "config.json: not the configuration of a CLIP or DINOv2 model");
    }
}
