//! From the bytes of a file to upright pixels, and what a file says about its picture.
//!
//! Guarantees: the format is read off the bytes, never the name; nothing is decoded before its size was held against the
//! limits, so a few bytes that unfold to gigabytes cost nothing; bad bytes are an [`ImageDefect`], whatever the decoder
//! does with them. Must not know: models.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use chrono::NaiveDateTime;
use exif::{In, Tag};
use image::codecs::gif::GifDecoder;
use image::codecs::jpeg::JpegDecoder;
use image::codecs::webp::WebPDecoder;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, Limits, RgbImage};
use zune_core::bytestream::ZCursor;
use zune_core::options::DecoderOptions;
use zune_png::PngDecoder;

use crate::error::BoxError;

/// Pixels of the largest picture that is decoded: more than any telephone's, and 300 MB once decoded.
pub const MAX_IMAGE_PIXELS: u64 = 100_000_000;

/// Bytes of the largest file that is read. Uncompressed, as PNG may be, that is a picture of 45 million pixels.
pub const MAX_IMAGE_BYTES: u64 = 128 << 20;

/// Pictures of more pixels than this are decoded one at a time, so that memory does not grow with the cores.
const LARGE_PIXELS: u64 = 16_000_000;

static LARGE: Mutex<()> = Mutex::new(());

/// The kinds of image files that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// Portable Network Graphics; the first picture of an animated one.
    Png,
    /// JPEG, baseline or progressive.
    Jpeg,
    /// WebP, lossy or lossless; the first picture of an animated one.
    WebP,
    /// GIF; the first picture of an animated one.
    Gif,
}

/// What is wrong with one image; the others of its batch are not concerned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageDefect {
    /// The file could not be read.
    #[error("it cannot be read")]
    Unreadable(#[source] std::io::Error),
    /// The file is not the one that was ingested.
    #[error("it has changed since it was ingested; ingest it again")]
    Changed,
    /// The bytes start like none of the known formats.
    #[error("it is no PNG, JPEG, WebP or GIF")]
    UnknownFormat,
    /// The file is larger than [`MAX_IMAGE_BYTES`].
    #[error("it has {bytes} bytes, the limit is {limit}")]
    TooManyBytes {
        /// The file's size.
        bytes: u64,
        /// The limit.
        limit: u64,
    },
    /// The picture is larger than [`MAX_IMAGE_PIXELS`].
    #[error("it has {width} x {height} pixels, the limit is {limit} in all")]
    TooManyPixels {
        /// As the file states it.
        width: u64,
        /// As the file states it.
        height: u64,
        /// The limit.
        limit: u64,
    },
    /// The bytes break off or do not follow the format.
    #[error("it is a damaged {} file", format.name())]
    Damaged {
        /// What its first bytes promise.
        format: ImageFormat,
        /// What the decoder said, where it said anything.
        #[source]
        source: Option<BoxError>,
    },
}

/// What a file says about its picture, known without decoding it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ImageFacts {
    pub(crate) format: ImageFormat,
    /// Pixels, as the picture is looked at: turned upright.
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// When it was taken, in the camera's local time: `2023-07-14T18:30:05`.
    pub(crate) taken: Option<String>,
}

/// Upright pixels.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Picture {
    /// Positive, as the height.
    pub(super) width: usize,
    pub(super) height: usize,
    /// `[height, width, 3]`
    pub(super) rgb: Vec<u8>,
}

impl ImageFormat {
    /// Its name in lower case, as it is stored: `png`, `jpeg`, `webp`, `gif`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
            Self::Gif => "gif",
        }
    }

    /// The format that the first bytes of a file promise.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let starts = |magic: &[u8]| bytes.starts_with(magic);
        if starts(b"\x89PNG\r\n\x1a\n") {
            Some(Self::Png)
        } else if starts(b"\xff\xd8\xff") {
            Some(Self::Jpeg)
        } else if starts(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            Some(Self::WebP)
        } else if starts(b"GIF87a") || starts(b"GIF89a") {
            Some(Self::Gif)
        } else {
            None
        }
    }
}

/// Reads what `bytes` say about their picture, without decoding it.
pub(crate) fn facts(bytes: &[u8]) -> Result<ImageFacts, ImageDefect> {
    let format = ImageFormat::of(bytes).ok_or(ImageDefect::UnknownFormat)?;
    let ([width, height], meta) = guarded(format, || Ok((Opened::open(format, bytes)?.size(), Metadata::read(bytes))))?;
    let turned = matches!(
        meta.orientation,
        Orientation::Rotate90 | Orientation::Rotate270 | Orientation::Rotate90FlipH | Orientation::Rotate270FlipH
    );
    let (width, height) = if turned { (height, width) } else { (width, height) };
    Ok(ImageFacts { format, width, height, taken: meta.taken })
}

/// Decodes the (first) picture of `bytes` and turns it upright. What is transparent shows white.
pub(super) fn decode(bytes: &[u8]) -> Result<Picture, ImageDefect> {
    let format = ImageFormat::of(bytes).ok_or(ImageDefect::UnknownFormat)?;
    let upright = guarded(format, || {
        let opened = Opened::open(format, bytes)?;
        let [width, height] = opened.size();
        let one_at_a_time = u64::from(width) * u64::from(height) > LARGE_PIXELS;
        let _turn = one_at_a_time.then(|| LARGE.lock().unwrap_or_else(PoisonError::into_inner));
        let mut picture = DynamicImage::from(opened.rgb(format)?);
        picture.apply_orientation(Metadata::read(bytes).orientation);
        Ok(picture.into_rgb8())
    })?;
    Ok(Picture { width: upright.width() as usize, height: upright.height() as usize, rgb: upright.into_raw() })
}

/// A decoder that panics has met a damaged file: decoders index what they read, and one picture must not end the run.
fn guarded<T>(format: ImageFormat, work: impl FnOnce() -> Result<T, ImageDefect>) -> Result<T, ImageDefect> {
    // Whatever a panic leaves half done is dropped with the closure.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| Err(ImageDefect::Damaged { format, source: None }))
}

/// A file whose header has been read, and whose size is within the limits.
enum Opened<'a> {
    Png(PngDecoder<ZCursor<&'a [u8]>>),
    Jpeg(JpegDecoder<Cursor<&'a [u8]>>),
    WebP(WebPDecoder<Cursor<&'a [u8]>>),
    Gif(GifDecoder<Cursor<&'a [u8]>>),
}

impl<'a> Opened<'a> {
    fn open(format: ImageFormat, bytes: &'a [u8]) -> Result<Self, ImageDefect> {
        if bytes.len() as u64 > MAX_IMAGE_BYTES {
            return Err(ImageDefect::TooManyBytes { bytes: bytes.len() as u64, limit: MAX_IMAGE_BYTES });
        }
        let damaged = |source: BoxError| ImageDefect::Damaged { format, source: Some(source) };
        let opened = match format {
            ImageFormat::Png => {
                // Its own limit on each side is 16,384; ours is on their product.
                let options = DecoderOptions::default()
                    .set_max_width(MAX_IMAGE_PIXELS as usize)
                    .set_max_height(MAX_IMAGE_PIXELS as usize)
                    .png_set_strip_to_8bit(true);
                let mut decoder = PngDecoder::new_with_options(ZCursor::new(bytes), options);
                decoder.decode_headers().map_err(|e| damaged(format!("{e:?}").into()))?;
                Self::Png(decoder)
            }
            ImageFormat::Jpeg => Self::Jpeg(JpegDecoder::new(Cursor::new(bytes)).map_err(|e| damaged(e.into()))?),
            ImageFormat::WebP => Self::WebP(WebPDecoder::new(Cursor::new(bytes)).map_err(|e| damaged(e.into()))?),
            ImageFormat::Gif => {
                let mut decoder = GifDecoder::new(Cursor::new(bytes)).map_err(|e| damaged(e.into()))?;
                let (width, height) = decoder.dimensions();
                let mut limits = Limits::no_limits();
                // A frame states a size of its own, which may be any, and is decoded whole before it is cut to the picture.
                limits.max_alloc = Some((u64::from(width) * u64::from(height)).max(LARGE_PIXELS) * 4);
                decoder.set_limits(limits).map_err(|e| damaged(e.into()))?;
                Self::Gif(decoder)
            }
        };
        let [width, height] = opened.size().map(u64::from);
        match width * height {
            0 => Err(ImageDefect::Damaged { format, source: None }),
            1..=MAX_IMAGE_PIXELS => Ok(opened),
            _ => Err(ImageDefect::TooManyPixels { width, height, limit: MAX_IMAGE_PIXELS }),
        }
    }

    /// Width and height as stored.
    fn size(&self) -> [u32; 2] {
        let (width, height) = match self {
            // PNG states 32 bits a side.
            Self::Png(decoder) => decoder.dimensions().map_or((0, 0), |(width, height)| (width as u32, height as u32)),
            Self::Jpeg(decoder) => decoder.dimensions(),
            Self::WebP(decoder) => decoder.dimensions(),
            Self::Gif(decoder) => decoder.dimensions(),
        };
        [width, height]
    }

    /// The pixels as stored.
    fn rgb(self, format: ImageFormat) -> Result<RgbImage, ImageDefect> {
        let damaged = |source: Option<BoxError>| ImageDefect::Damaged { format, source };
        let [width, height] = self.size();
        let decoded = match self {
            Self::Png(mut decoder) => {
                let pixels = decoder.decode_raw().map_err(|e| damaged(Some(format!("{e:?}").into())))?;
                let channels = decoder.colorspace().map_or(0, |space| space.num_components());
                return rgb_of(pixels, channels, [width, height]).ok_or_else(|| damaged(None));
            }
            Self::Jpeg(decoder) => DynamicImage::from_decoder(decoder),
            Self::WebP(decoder) => DynamicImage::from_decoder(decoder),
            Self::Gif(decoder) => DynamicImage::from_decoder(decoder),
        };
        match decoded.map_err(|e| damaged(Some(e.into())))? {
            DynamicImage::ImageRgba8(pixels) => {
                rgb_of(pixels.into_raw(), 4, [width, height]).ok_or_else(|| damaged(None))
            }
            other => Ok(other.into_rgb8()),
        }
    }
}

/// Grey, grey with alpha, RGB or RGBA → RGB before white.
fn rgb_of(pixels: Vec<u8>, channels: usize, [width, height]: [u32; 2]) -> Option<RgbImage> {
    let over_white = |colour: u8, alpha: u8| {
        let (colour, alpha) = (u32::from(colour), u32::from(alpha));
        ((colour * alpha + 255 * (255 - alpha) + 127) / 255) as u8
    };
    let rgb: Vec<u8> = match channels {
        1 => pixels.iter().flat_map(|&grey| [grey; 3]).collect(),
        2 => pixels.as_chunks().0.iter().flat_map(|&[grey, alpha]| [over_white(grey, alpha); 3]).collect(),
        3 => pixels,
        4 => {
            let (pixels, _) = pixels.as_chunks();
            pixels.iter().flat_map(|&[r, g, b, alpha]| [r, g, b].map(|colour| over_white(colour, alpha))).collect()
        }
        _ => return None,
    };
    RgbImage::from_raw(width, height, rgb)
}

/// What the camera wrote beside the pixels. Where it is missing or damaged, the picture is taken as it lies.
struct Metadata {
    orientation: Orientation,
    taken: Option<String>,
}

impl Metadata {
    fn read(bytes: &[u8]) -> Self {
        let mut reader = exif::Reader::new();
        reader.continue_on_error(true);
        let read = reader.read_from_container(&mut Cursor::new(bytes)).or_else(|e| e.distill_partial_result(drop));
        let Ok(exif) = read else { return Self { orientation: Orientation::NoTransforms, taken: None } };
        let number = |tag| exif.get_field(tag, In::PRIMARY)?.value.get_uint(0);
        let orientation = number(Tag::Orientation).and_then(|n| Orientation::from_exif(u8::try_from(n).ok()?));
        let date = |tag| match &exif.get_field(tag, In::PRIMARY)?.value {
            exif::Value::Ascii(lines) => date_of(lines.first()?),
            _ => None,
        };
        Self {
            orientation: orientation.unwrap_or(Orientation::NoTransforms),
            // Taken, scanned, changed: the first that is stated.
            taken: [Tag::DateTimeOriginal, Tag::DateTimeDigitized, Tag::DateTime].into_iter().find_map(date),
        }
    }
}

/// `2023:07:14 18:30:05` → `2023-07-14T18:30:05`; blanks and zeros, which cameras without a clock write, are no date.
fn date_of(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?.trim_end_matches(['\0', ' ']);
    let date = NaiveDateTime::parse_from_str(text, "%Y:%m:%d %H:%M:%S").ok()?;
    Some(date.format("%Y-%m-%dT%H:%M:%S").to_string())
}
