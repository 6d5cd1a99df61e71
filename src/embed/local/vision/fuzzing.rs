//! What the fuzz targets do with images and with the settings of image models, and what has to be true of what is read.

use std::path::Path;

use super::config::VisionConfig;
use super::picture::{self, ImageDefect, MAX_IMAGE_PIXELS, Picture};
use super::preprocess::Preprocessor;

/// Larger pictures are not decoded here: it takes time, and does nothing that a small one does not.
const MOST_PIXELS: u64 = 1 << 20;

/// An image file: what it says about itself, and its picture.
pub fn image(data: &[u8]) {
    let facts = match picture::facts(data) {
        Ok(facts) => facts,
        Err(defect) => {
            assert!(!defect.to_string().is_empty());
            assert!(picture::decode(data).is_err(), "what says nothing about itself has no picture");
            return;
        }
    };
    let pixels = u64::from(facts.width) * u64::from(facts.height);
    assert!((1..=MAX_IMAGE_PIXELS).contains(&pixels));
    assert!(facts.taken.is_none_or(|taken| taken.len() >= 19 && !taken.contains(char::is_control)));
    if pixels > MOST_PIXELS {
        return;
    }
    match picture::decode(data) {
        Ok(Picture { width, height, rgb }) => {
            assert_eq!((width, height), (facts.width as usize, facts.height as usize), "the size that was stated");
            assert_eq!(rgb.len(), width * height * 3);
        }
        Err(defect) => assert!(matches!(defect, ImageDefect::Damaged { .. }), "{defect}"),
    }
}

/// A `config.json` or a `preprocessor_config.json`.
pub(in crate::embed::local) fn config(json: &[u8]) {
    if let Ok(config) = VisionConfig::parse(Path::new("config.json"), json) {
        let tower = config.image();
        assert_eq!((tower.image % tower.patch, tower.blocks.width % tower.blocks.heads), (0, 0));
        assert!(config.dimension() > 0 && !config.name().is_empty() && !config.fingerprint().is_empty());
    }
    if let Ok(preprocessor) = Preprocessor::parse(Path::new("preprocessor_config.json"), json) {
        let size = preprocessor.crop_size();
        if size.width * size.height <= 1 << 12 {
            let crop = preprocessor.crop(&Picture { width: 3, height: 2, rgb: vec![7; 18] });
            assert_eq!(
                (crop.width, crop.height, crop.rgb.len()),
                (size.width, size.height, size.width * size.height * 3)
            );
            let mut patches = Vec::new();
            preprocessor.append_patches(&crop, 1, &mut patches);
            assert_eq!(patches.len(), size.width * size.height * 3);
        }
    }
}
