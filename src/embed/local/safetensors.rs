//! Reading tensors out of a safetensors file, one at a time.
//!
//! Guarantees: the header is believed only where it fits the file; reading it takes no more memory than the file has bytes, or
//! 8 MiB, whatever is in it; a tensor is read into memory of its own and the file is never mapped, so that a loaded model does
//! not count its weights twice.
//! Must not know: what the tensors are for.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use burn::tensor::{bf16, f16};
use serde::de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::error::BoxError;
use crate::regular_file;

/// The largest header of the format, as its specification has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;
/// A header in memory, text and table, takes less than this many times its length.
const HEADER_GROWTH: u64 = 8;
/// A header up to this length, which is ten thousand tensors, needs no data beside it.
const SMALL_HEADER_BYTES: u64 = 1 << 20;
/// Dimensions of a tensor. Encoders have four at most.
const MAX_DIMENSIONS: usize = 8;
/// The largest piece that is converted at a time; a multiple of every number's size.
const BLOCK_BYTES: usize = 1 << 20;

/// An open file and where its tensors are.
pub(super) struct Safetensors {
    file: File,
    tensors: BTreeMap<Box<str>, Entry>,
    /// Where the data starts in the file.
    data_start: u64,
    block: Vec<u8>,
}

/// One tensor of the header.
#[derive(Debug, Deserialize)]
struct Entry {
    dtype: Box<str>,
    shape: Shape,
    data_offsets: [u64; 2],
}

/// A tensor's dimensions.
#[derive(Debug)]
struct Shape(Box<[usize]>);

/// The header: tensors by name.
struct Header(BTreeMap<Box<str>, Entry>);

/// Why a tensor cannot be had; completes the sentence "tensor x …".
#[derive(Debug, thiserror::Error)]
pub(super) enum TensorDefect {
    #[error("is missing")]
    Missing,
    #[error("has shape {found}, expected {expected}")]
    Shape { found: String, expected: String },
    #[error("holds {0}, this release reads F32, F16 and BF16")]
    Numbers(String),
    #[error("cannot be read")]
    Unreadable(#[source] std::io::Error),
}

/// Why a file as a whole cannot be had.
#[derive(Debug, thiserror::Error)]
enum HeaderDefect {
    #[error("its header is longer than the file or than the format allows")]
    Length,
    #[error("its header is most of the file, which has no room for the tensors")]
    Bare,
    #[error("tensor {0} lies outside the file or does not fill its place")]
    Place(Box<str>),
}

impl Safetensors {
    /// Opens a file and checks its header.
    pub(super) fn open(path: &Path) -> Result<Self, BoxError> {
        let mut file = regular_file::open(path)?;
        let file_bytes = file.metadata()?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let length = u64::from_le_bytes(length);
        if length > MAX_HEADER_BYTES || length > file_bytes.saturating_sub(8) {
            return Err(HeaderDefect::Length.into());
        }
        if length > SMALL_HEADER_BYTES && length > file_bytes / HEADER_GROWTH {
            return Err(HeaderDefect::Bare.into());
        }
        let mut header = vec![0; length as usize];
        file.read_exact(&mut header)?;
        let Header(tensors) = serde_json::from_slice(&header)?;
        let data_start = 8 + length;
        if let Some((name, _)) = tensors.iter().find(|(_, entry)| !entry.fits(file_bytes - data_start)) {
            return Err(HeaderDefect::Place(name.clone()).into());
        }
        Ok(Self { file, tensors, data_start, block: Vec::new() })
    }

    /// Names and shapes of the tensors.
    #[cfg(any(test, fuzzing))]
    pub(super) fn shapes(&self) -> Vec<(String, Vec<usize>)> {
        self.tensors.iter().map(|(name, entry)| (name.to_string(), entry.shape.0.to_vec())).collect()
    }

    /// Whether there is a tensor of this name.
    pub(super) fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Whether a tensor of this name and shape can be read.
    pub(super) fn check(&self, name: &str, shape: &[usize]) -> Result<(), TensorDefect> {
        self.find(name, shape).map(drop)
    }

    fn find(&self, name: &str, shape: &[usize]) -> Result<(Number, [u64; 2]), TensorDefect> {
        let entry = self.tensors.get(name).ok_or(TensorDefect::Missing)?;
        if *entry.shape.0 != *shape {
            return Err(TensorDefect::Shape { found: by(&entry.shape.0), expected: by(shape) });
        }
        let number = Number::of(&entry.dtype).ok_or_else(|| TensorDefect::Numbers(entry.dtype.to_string()))?;
        Ok((number, entry.data_offsets))
    }

    /// The numbers of one tensor, row by row, as 32-bit floats.
    pub(super) fn read(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, TensorDefect> {
        let (number, [start, end]) = self.find(name, shape)?;
        self.file.seek(SeekFrom::Start(self.data_start + start)).map_err(TensorDefect::Unreadable)?;
        let mut numbers = Vec::with_capacity(shape.iter().product());
        // Below the file's size, as was checked when it was opened.
        let mut left = (end - start) as usize;
        if self.block.len() < left {
            self.block.resize(left.min(BLOCK_BYTES), 0);
        }
        while left > 0 {
            let Some(block) = self.block.get_mut(..left.min(BLOCK_BYTES)) else { break };
            self.file.read_exact(block).map_err(TensorDefect::Unreadable)?;
            number.append(block, &mut numbers);
            left -= block.len();
        }
        Ok(numbers)
    }
}

impl Entry {
    /// Whether the data lies within `data_bytes` and has the size that shape and number format promise.
    fn fits(&self, data_bytes: u64) -> bool {
        let [start, end] = self.data_offsets;
        let Some(bytes) = end.checked_sub(start).filter(|_| end <= data_bytes) else { return false };
        let Some(number) = Number::of(&self.dtype) else {
            // Not read, so of no concern: position ids, say, are of 64-bit integers.
            return true;
        };
        let promised = self.shape.0.iter().try_fold(number.bytes(), |product, &n| product.checked_mul(n as u64));
        promised == Some(bytes)
    }
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

/// Keeps what is needed and nothing else: as a tree of JSON values a header would take thirty times its length.
struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the header of a safetensors file")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Header, A::Error> {
        let mut tensors = BTreeMap::new();
        while let Some(name) = entries.next_key::<Box<str>>()? {
            if &*name == "__metadata__" {
                entries.next_value::<IgnoredAny>()?;
            } else if let Some(_before) = tensors.insert(name, entries.next_value()?) {
                return Err(de::Error::custom("a tensor is there twice"));
            }
        }
        Ok(Header(tensors))
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {MAX_DIMENSIONS} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut dimensions: A) -> Result<Shape, A::Error> {
        let mut shape = Vec::new();
        while let Some(dimension) = dimensions.next_element()? {
            if shape.len() == MAX_DIMENSIONS {
                return Err(de::Error::invalid_length(MAX_DIMENSIONS + 1, &self));
            }
            shape.push(dimension);
        }
        Ok(Shape(shape.into()))
    }
}

/// The number formats of published weights.
#[derive(Clone, Copy)]
enum Number {
    F32,
    F16,
    Bf16,
}

impl Number {
    fn of(dtype: &str) -> Option<Self> {
        match dtype {
            "F32" => Some(Self::F32),
            "F16" => Some(Self::F16),
            "BF16" => Some(Self::Bf16),
            _ => None,
        }
    }

    fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    fn append(self, bytes: &[u8], numbers: &mut Vec<f32>) {
        let (fours, _) = bytes.as_chunks::<4>();
        let (twos, _) = bytes.as_chunks::<2>();
        match self {
            Self::F32 => numbers.extend(fours.iter().map(|&four| f32::from_le_bytes(four))),
            Self::F16 => numbers.extend(twos.iter().map(|&two| f16::from_le_bytes(two).to_f32())),
            Self::Bf16 => numbers.extend(twos.iter().map(|&two| bf16::from_le_bytes(two).to_f32())),
        }
    }
}

/// Shape for people: `30522 x 384`.
fn by(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this header and data.
    fn file(header: &str, data: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        let content = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat();
        std::fs::write(file.path(), content).unwrap();
        file
    }

    #[test]
    fn numbers_of_all_three_formats_are_read_as_they_were_written() {
        // -2, 0.5 and 65504, the largest half: from the tables of IEEE 754; bf16 is the upper half of an f32.
        let header = r#"{"__metadata__": {"format": "pt"},
            "a": {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]},
            "b": {"dtype": "F16", "shape": [3], "data_offsets": [8, 14]},
            "c": {"dtype": "BF16", "shape": [2], "data_offsets": [14, 18]},
            "ids": {"dtype": "I64", "shape": [1], "data_offsets": [18, 26]}}"#;
        let data = [
            &(-2.0_f32).to_le_bytes()[..],
            &0.5_f32.to_le_bytes(),
            &[0x00, 0xc0, 0x00, 0x38, 0xff, 0x7b],
            &[0x00, 0xc0, 0x00, 0x3f],
            &[0; 8],
        ]
        .concat();
        let file = file(header, &data);
        let mut tensors = Safetensors::open(file.path()).unwrap();
        assert_eq!(tensors.read("a", &[1, 2]).unwrap(), [-2.0, 0.5]);
        assert_eq!(tensors.read("b", &[3]).unwrap(), [-2.0, 0.5, 65504.0]);
        assert_eq!(tensors.read("c", &[2]).unwrap(), [-2.0, 0.5]);
        let refusal = tensors.read("ids", &[1]).unwrap_err().to_string();
        assert_eq!(refusal, "holds I64, this release reads F32, F16 and BF16");
        assert_eq!(tensors.read("d", &[1]).unwrap_err().to_string(), "is missing");
        assert_eq!(tensors.read("a", &[2]).unwrap_err().to_string(), "has shape 1 x 2, expected 2");
    }

    #[test]
    fn a_tensor_longer_than_a_block_is_read_whole() {
        let count = BLOCK_BYTES / 4 + 3;
        let header = format!(r#"{{"a": {{"dtype": "F32", "shape": [{count}], "data_offsets": [0, {}]}}}}"#, count * 4);
        let data: Vec<u8> = (0..count).flat_map(|i| (i as f32).to_le_bytes()).collect();
        let file = file(&header, &data);
        let numbers = Safetensors::open(file.path()).unwrap().read("a", &[count]).unwrap();
        assert_eq!(numbers.len(), count);
        assert!(numbers.iter().enumerate().all(|(i, &x)| x == i as f32));
    }

    #[test]
    fn a_header_that_does_not_fit_the_file_is_refused() {
        let place = |entry: &str| file(&format!(r#"{{"a": {entry}}}"#), &[0; 8]);
        let wrong = [
            r#"{"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}"#,
            r#"{"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}"#,
            r#"{"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}"#,
            r#"{"dtype": "F32", "shape": [4611686018427387905], "data_offsets": [0, 4]}"#,
            r#"{"dtype": "F32", "shape": [-1], "data_offsets": [0, 8]}"#,
            r#"{"dtype": "F32"}"#,
        ];
        for entry in wrong {
            assert!(Safetensors::open(place(entry).path()).is_err(), "{entry}");
        }
        let right = place(r#"{"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#);
        assert!(Safetensors::open(right.path()).is_ok());
    }

    #[test]
    fn a_header_that_would_grow_in_memory_is_refused_before_it_does() {
        let refusal =
            |header: &str, data: &[u8]| Safetensors::open(file(header, data).path()).map(drop).unwrap_err().to_string();
        let endless =
            format!(r#"{{"a": {{"dtype": "F32", "shape": [{}0], "data_offsets": [0, 0]}}}}"#, "0,".repeat(100));
        assert!(refusal(&endless, &[]).contains("up to 8 dimensions"));
        let entry = r#"{"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}"#;
        let twice = format!(r#"{{"a": {entry}, "a": {entry}}}"#);
        assert!(refusal(&twice, &[]).contains("there twice"));
        let many: Vec<String> = (0..20_000).map(|n| format!(r#""{n}": {entry}"#)).collect();
        let many = format!("{{{}}}", many.join(","));
        assert!(many.len() as u64 > SMALL_HEADER_BYTES);
        assert!(refusal(&many, &[]).contains("no room for the tensors"));
        // With as much data as so many tensors would have, it is a model.
        assert!(Safetensors::open(file(&many, &vec![0; many.len() * HEADER_GROWTH as usize]).path()).is_ok());
        let mut claims = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut claims, &(1_u64 << 60).to_le_bytes()).unwrap();
        assert!(Safetensors::open(claims.path()).is_err());
    }
}
