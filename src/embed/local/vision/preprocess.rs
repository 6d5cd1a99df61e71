//! From a picture to the numbers that a model takes, as its own `preprocessor_config.json` says: resize, crop the middle,
//! rescale, normalise.
//!
//! Guarantees: what the file asks for is done, or refused by name when it is read. Must not know: weights.

use std::path::Path;

use serde::Deserialize;

use super::picture::Picture;
use super::resample::{Filter, Side, resize};
use crate::error::{Error, Result};
use crate::id::hex;

/// What is done to a picture before the model sees it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Preprocessor {
    resize: Resize,
    filter: Filter,
    /// Width and height of what the model sees.
    crop: Size,
    /// What each channel's 256 levels become.
    levels: [Vec<f32>; 3],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Resize {
    /// The shorter edge gets this length, the other follows.
    Shortest(usize),
    Exactly(Size),
}

#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(super) struct Size {
    pub(super) height: usize,
    pub(super) width: usize,
}

impl Preprocessor {
    /// Reads a `preprocessor_config.json`; `path` is only for what is said about it.
    pub(super) fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let refuse = |reason: String, source| Error::ModelFormat { path: path.to_owned(), reason, source };
        let settings: Settings = serde_json::from_slice(json)
            .map_err(|e| refuse("not the configuration of an image processor".into(), Some(e.into())))?;
        settings.checked().map_err(|reason| refuse(reason, None))
    }

    /// Width and height of what the model sees, in pixels.
    pub(super) fn crop_size(&self) -> Size {
        self.crop
    }

    /// Everything that changes the pixels.
    pub(super) fn fingerprint(&self) -> String {
        let resize = match self.resize {
            Resize::Shortest(edge) => format!("shortest={edge}"),
            Resize::Exactly(size) => format!("exactly={}x{}", size.width, size.height),
        };
        let filter = match self.filter {
            Filter::Bilinear => "bilinear",
            Filter::Bicubic => "bicubic",
        };
        let mut hasher = blake3::Hasher::new();
        for level in self.levels.iter().flatten() {
            hasher.update(&level.to_le_bytes());
        }
        let levels = hex(hasher.finalize().as_bytes().get(..8).unwrap_or_default());
        format!("pixels {resize} {filter} crop={}x{} levels={levels}", self.crop.width, self.crop.height)
    }

    /// The pixels that the model sees.
    pub(super) fn crop(&self, picture: &Picture) -> Picture {
        let resized = match self.resize {
            Resize::Exactly(size) => size,
            Resize::Shortest(edge) => {
                let (short, long) = (picture.width.min(picture.height), picture.width.max(picture.height));
                // Cut off, not rounded; as the reference implementation has it.
                let other = edge * long / short;
                if picture.width <= picture.height {
                    Size { width: edge, height: other }
                } else {
                    Size { width: other, height: edge }
                }
            }
        };
        let middle = |resized: usize, kept: usize| Side { resized, first: (resized - kept) / 2, kept };
        let across = middle(resized.width, self.crop.width);
        let down = middle(resized.height, self.crop.height);
        resize(picture, across, down, self.filter)
    }

    /// The crop's pixels as rows for the patch embedding: one row for each square of `patch` x `patch` pixels, from left
    /// to right and from top to bottom; in a row channel by channel, each line by line. Appends `[P, 3 · patch²]`.
    pub(super) fn append_patches(&self, crop: &Picture, patch: usize, rows: &mut Vec<f32>) {
        let stride = crop.width * 3;
        for band in crop.rgb.chunks_exact(patch * stride) {
            for left in (0..crop.width / patch).map(|column| column * patch * 3) {
                for (channel, levels) in self.levels.iter().enumerate() {
                    let lines = band.chunks_exact(stride);
                    let squares = lines.flat_map(|line| line.iter().skip(left + channel).step_by(3).take(patch));
                    rows.extend(squares.filter_map(|&level| levels.get(usize::from(level))));
                }
            }
        }
    }
}

/// The file. Where a field is missing, transformers' own default for these processors stands.
#[derive(Deserialize)]
struct Settings {
    #[serde(default = "yes")]
    do_resize: bool,
    #[serde(default = "yes")]
    do_center_crop: bool,
    #[serde(default = "yes")]
    do_rescale: bool,
    #[serde(default = "yes")]
    do_normalize: bool,
    #[serde(default)]
    do_pad: Option<bool>,
    size: SizeSetting,
    crop_size: Option<SizeSetting>,
    #[serde(default = "bicubic")]
    resample: u32,
    #[serde(default = "one_of_255")]
    rescale_factor: f64,
    image_mean: [f64; 3],
    image_std: [f64; 3],
}

/// A number in the first published files, an object in later ones.
#[derive(Clone, Copy, Deserialize)]
#[serde(untagged)]
enum SizeSetting {
    Edge(usize),
    Shortest { shortest_edge: usize },
    Exactly(Size),
}

fn yes() -> bool {
    true
}

/// Pillow's number for it.
fn bicubic() -> u32 {
    3
}

fn one_of_255() -> f64 {
    1.0 / 255.0
}

impl Settings {
    fn checked(&self) -> Result<Preprocessor, String> {
        if !self.do_resize {
            return Err("do_resize is false, this release always resizes".into());
        }
        if self.do_pad == Some(true) {
            return Err("do_pad is true, this release does not pad".into());
        }
        let filter = match self.resample {
            2 => Filter::Bilinear,
            3 => Filter::Bicubic,
            other => return Err(format!("resample is {other}, this release knows 2 (bilinear) and 3 (bicubic)")),
        };
        let resize = match self.size {
            SizeSetting::Edge(edge) | SizeSetting::Shortest { shortest_edge: edge } => Resize::Shortest(edge),
            SizeSetting::Exactly(size) => Resize::Exactly(size),
        };
        let crop = match (self.do_center_crop, self.crop_size, resize) {
            (true, Some(SizeSetting::Edge(edge)), _) => Size { height: edge, width: edge },
            (true, Some(SizeSetting::Exactly(size)), _) => size,
            (true, ..) => return Err("crop_size is neither a number nor a height and a width".into()),
            (false, _, Resize::Exactly(size)) => size,
            (false, ..) => return Err("without a centre crop, size has to be a height and a width".into()),
        };
        let resized = match resize {
            Resize::Shortest(edge) => Size { height: edge, width: edge },
            Resize::Exactly(size) => size,
        };
        // 4,096: no published model comes near it; beyond it, sizes of buffers could overflow.
        let sides = [(crop.height, resized.height), (crop.width, resized.width)];
        if sides.iter().any(|&(crop, resized)| crop == 0 || crop > resized || resized > 4_096) {
            let (crop, resized) =
                (format!("{}x{}", crop.width, crop.height), format!("{}x{}", resized.width, resized.height));
            return Err(format!("crop_size {crop} does not lie within size {resized}"));
        }
        if self.image_std.iter().any(|std| !(std.is_finite() && *std > 0.0)) {
            return Err("image_std has to be three positive numbers".into());
        }
        Ok(Preprocessor { resize, filter, crop, levels: self.levels() })
    }

    fn levels(&self) -> [Vec<f32>; 3] {
        let [red, green, blue] = self.image_mean;
        let [red_std, green_std, blue_std] = self.image_std;
        [(red, red_std), (green, green_std), (blue, blue_std)].map(|(mean, std)| {
            let factor = if self.do_rescale { self.rescale_factor } else { 1.0 };
            let (mean, std) = if self.do_normalize { (mean, std) } else { (0.0, 1.0) };
            (0..=255).map(|level| ((f64::from(level) * factor - mean) / std) as f32).collect()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<Preprocessor> {
        Preprocessor::parse(Path::new("preprocessor_config.json"), json.as_bytes())
    }

    const OLD: &str =
        r#"{"crop_size": 4, "size": 4, "resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.4]}"#;

    #[test]
    fn old_and_new_forms_of_the_file_mean_the_same() {
        let new = r#"{"crop_size": {"height": 4, "width": 4}, "size": {"shortest_edge": 4}, "do_rescale": true,
            "rescale_factor": 0.00392156862745098, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.4]}"#;
        assert_eq!(parse(OLD).unwrap(), parse(new).unwrap());
    }

    #[test]
    fn what_it_cannot_do_is_refused_by_name() {
        let refusal = |from: &str, to: &str| parse(&OLD.replace(from, to)).unwrap_err().to_string();
        let file = "preprocessor_config.json: ";
        let lanczos = refusal(r#""resample": 3"#, r#""resample": 1"#);
        assert_eq!(lanczos, format!("{file}resample is 1, this release knows 2 (bilinear) and 3 (bicubic)"));
        assert_eq!(
            refusal(r#""crop_size": 4"#, r#""crop_size": 5"#),
            format!("{file}crop_size 5x5 does not lie within size 4x4")
        );
        assert_eq!(refusal(r#""size": 4,"#, ""), format!("{file}not the configuration of an image processor"));
        assert_eq!(refusal("0.1, 0.2", "0.1, 0.0"), format!("{file}image_std has to be three positive numbers"));
    }

    #[test]
    fn patches_are_rows_of_channels_of_lines() {
        let settings = OLD.replace("0.5, 0.4, 0.3", "0, 0, 0").replace("0.1, 0.2, 0.4", "1, 1, 1");
        let plain = parse(&settings.replace('{', r#"{"do_rescale": false, "#)).unwrap();
        // Channel c of pixel (x, y) is 100 c + 10 y + x.
        let pixel = |at: u8| (0..3).map(move |c| 100 * c + 10 * (at / 4) + at % 4);
        let crop = Picture { width: 4, height: 4, rgb: (0..16).flat_map(pixel).collect() };
        let mut rows = Vec::new();
        plain.append_patches(&crop, 2, &mut rows);
        let third: Vec<f32> = rows.chunks_exact(12).nth(2).unwrap().to_vec();
        assert_eq!(third, [20., 21., 30., 31., 120., 121., 130., 131., 220., 221., 230., 231.]);
        assert_eq!(rows.len(), 48);
    }

    #[test]
    fn a_line_of_a_picture_does_not_unfold_to_its_resized_length() {
        let settings = OLD.replace('4', "224").replace("0.224", "0.4");
        let preprocessor = parse(&settings).unwrap();
        // Resized, it would have 22 million columns of 224 pixels.
        let line = Picture { width: 100_000, height: 1, rgb: vec![77; 300_000] };
        let crop = preprocessor.crop(&line);
        assert_eq!((crop.width, crop.height), (224, 224));
        assert!(crop.rgb.iter().all(|&level| level == 77));
    }
}
