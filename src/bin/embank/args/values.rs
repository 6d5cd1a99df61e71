//! Values of flags: enums as they are written on the command line and in embank.toml, and checked numbers.

use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use embank::embed::{LocalDevice, Precision};
use embank::{Durability, FailureKind, IndexKind, OnDrift};
use serde::Deserialize;

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DurabilityArg {
    /// A power cut
    PowerLoss,
    /// A crash of the process, not of the machine
    ProcessCrash,
}

impl From<DurabilityArg> for Durability {
    fn from(level: DurabilityArg) -> Self {
        match level {
            DurabilityArg::PowerLoss => Self::PowerLoss,
            DurabilityArg::ProcessCrash => Self::ProcessCrash,
        }
    }
}

/// Which failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FailureArg {
    /// May pass: tried again by itself, five times in all
    Transient,
    /// Would come again: not tried again by itself
    Permanent,
}

impl From<FailureArg> for FailureKind {
    fn from(kind: FailureArg) -> Self {
        match kind {
            FailureArg::Transient => Self::Transient,
            FailureArg::Permanent => Self::Permanent,
        }
    }
}

/// Which index.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum KindArg {
    /// By the number of rows: flat, then ivf-rq, then hnsw, then ivf-pq
    Auto,
    /// No index: every query looks at every vector
    Flat,
    /// Inverted lists of whole vectors
    IvfFlat,
    /// Inverted lists with product quantisation
    IvfPq,
    /// Inverted lists with a few bits for each dimension
    IvfRq,
    /// A graph with scalar quantisation
    Hnsw,
    /// A graph with product quantisation
    HnswPq,
    /// A graph of whole vectors
    HnswFlat,
}

impl From<KindArg> for IndexKind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::Auto => Self::Auto,
            KindArg::Flat => Self::Flat,
            KindArg::IvfFlat => Self::IvfFlat,
            KindArg::IvfPq => Self::IvfPq,
            KindArg::IvfRq => Self::IvfRq,
            KindArg::Hnsw => Self::Hnsw,
            KindArg::HnswPq => Self::HnswPq,
            KindArg::HnswFlat => Self::HnswFlat,
        }
    }
}

/// What a fallen recall leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DriftArg {
    Rebuild,
    Warn,
}

impl From<DriftArg> for OnDrift {
    fn from(drift: DriftArg) -> Self {
        match drift {
            DriftArg::Rebuild => Self::Rebuild,
            DriftArg::Warn => Self::Warn,
        }
    }
}

/// Number format of a local model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PrecisionArg {
    /// 32-bit floating point
    F32,
    /// 16 bits, of which 8 are mantissa: half the memory, faster on processors that multiply it
    Bf16,
    /// Half precision, on graphics processors
    F16,
}

impl From<PrecisionArg> for Precision {
    fn from(precision: PrecisionArg) -> Self {
        match precision {
            PrecisionArg::F32 => Self::F32,
            PrecisionArg::Bf16 => Self::Bf16,
            PrecisionArg::F16 => Self::F16,
        }
    }
}

/// A span of time, as `duration` reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SpanArg(pub Duration);

impl TryFrom<String> for SpanArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        duration(&text).map(Self)
    }
}

/// What computes a local model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DeviceArg(pub LocalDevice);

impl FromStr for DeviceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("`{text}` is not known; write auto, cpu, gpu or gpu:N"))
    }
}

impl TryFrom<String> for DeviceArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A number of bytes, as `512M` or `2G`; powers of 1,024.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct SizeArg(pub u64);

impl FromStr for SizeArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is not a size; write a whole number above 0 and a unit: K, M or G");
        let shift = match text.chars().last() {
            Some('K') => 10,
            Some('M') => 20,
            Some('G') => 30,
            _ => return Err(wrong()),
        };
        let number: u64 = text.get(..text.len() - 1).and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
        number.checked_mul(1 << shift).filter(|bytes| *bytes > 0).map(Self).ok_or_else(wrong)
    }
}

impl TryFrom<String> for SizeArg {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// A share from 0 to 1.
pub(super) fn fraction(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(share) if (0.0..=1.0).contains(&share) => Ok(share),
        _ => Err("write a number from 0 to 1".to_owned()),
    }
}

/// A whole number above 0.
pub(super) fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err("write a whole number above 0".to_owned()),
    }
}

/// A number with its unit: `90s`, `30m`, `1h`, `1d`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || "write a whole number above 0 and a unit: s, m, h or d".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds = match unit {
        's' => 1,
        'm' => 60,
        'h' => 60 * 60,
        'd' => 24 * 60 * 60,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).and_then(|number| number.parse().ok()).ok_or_else(wrong)?;
    let seconds = number.checked_mul(seconds).filter(|seconds| *seconds > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_number_and_a_unit() {
        let seconds = |text| duration(text).map(|d| d.as_secs()).ok();
        assert_eq!(["90s", "30m", "1h", "2d"].map(seconds), [Some(90), Some(1800), Some(3600), Some(172_800)]);
        for wrong in ["", "h", "30", "-1h", "0s", "1.5h", "1y", "9999999999999999999d", "5µ"] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn sizes_have_a_number_and_a_unit() {
        let bytes = |text: &str| text.parse().map(|SizeArg(bytes)| bytes).ok();
        assert_eq!(["4K", "512M", "2G"].map(bytes), [Some(4096), Some(512 << 20), Some(2 << 30)]);
        for wrong in ["", "M", "512", "-1M", "0G", "1.5G", "1T", "1m", "99999999999999G", "5µ"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn shares_and_counts_are_in_range() {
        assert_eq!(["0", "0.95", "1"].map(|text| fraction(text).ok()), [Some(0.0), Some(0.95), Some(1.0)]);
        assert_eq!(["-0.1", "1.01", "NaN", "95%"].map(|text| fraction(text).ok()), [None; 4]);
        assert_eq!(["1", "0", "-1", "x"].map(|text| positive(text).ok()), [Some(1), None, None, None]);
    }
}
