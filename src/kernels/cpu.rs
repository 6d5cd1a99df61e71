//! Which instructions this processor has, found once at run time.
//!
//! Guarantees that a [`Cpu`] names only what was detected: holding one is the proof that its path may be run.

// The one place where code compiled for a detected set of instructions is entered.
#![allow(unsafe_code)]

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::product::{Avx2, Avx512, Avx512Bf16};
use super::product::{Isa, Portable};

/// A set of instructions that this processor was found to have; holding one is the proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu(Path);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Portable(Portable),
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    #[cfg(target_arch = "x86_64")]
    Avx512(Avx512),
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16(Avx512Bf16),
}

/// Work written once and compiled for each set of instructions. Everything that `run` calls has to be inlined into it
/// (`#[inline(always)]`), or it is compiled for the baseline.
pub(super) trait Work {
    /// What comes back.
    type Output;
    /// Does the work with one set of instructions.
    fn run<I: Isa>(self, isa: I) -> Self::Output;
}

impl Cpu {
    /// The fastest path of this machine, detected once. `EMBANK_CPU=portable|avx2|avx512|avx512-bf16` chooses a lower one;
    /// a name that is unknown or that this machine cannot run is warned of and ignored.
    pub(crate) fn best() -> Self {
        static BEST: OnceLock<Cpu> = OnceLock::new();
        *BEST.get_or_init(|| Self::choose(std::env::var("EMBANK_CPU").ok().as_deref()))
    }

    /// Every path that this machine can run, slowest first; never empty.
    pub(crate) fn available() -> Vec<Self> {
        #[cfg_attr(not(target_arch = "x86_64"), expect(unused_mut, reason = "other machines have one path"))]
        let mut found = vec![Self(Path::Portable(Portable))];
        #[cfg(target_arch = "x86_64")]
        found.extend(
            [
                Avx2::detect().map(Path::Avx2),
                Avx512::detect().map(Path::Avx512),
                Avx512Bf16::detect().map(Path::Avx512Bf16),
            ]
            .into_iter()
            .flatten()
            .map(Self),
        );
        found
    }

    /// `portable`, `avx2`, `avx512` or `avx512-bf16`.
    pub(crate) fn name(self) -> &'static str {
        match self.0 {
            Path::Portable(_) => "portable",
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(_) => "avx2",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(_) => "avx512",
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16(_) => "avx512-bf16",
        }
    }

    fn choose(wanted: Option<&str>) -> Self {
        let available = Self::available();
        let best = available.last().copied().unwrap_or(Self(Path::Portable(Portable)));
        let Some(name) = wanted.filter(|name| !name.is_empty()) else { return best };
        available.into_iter().find(|cpu| cpu.name() == name).unwrap_or_else(|| {
            tracing::warn!(wanted = name, using = best.name(), "EMBANK_CPU names no path that this machine can run");
            best
        })
    }

    /// Runs `work` compiled for these instructions.
    pub(super) fn run<W: Work>(self, work: W) -> W::Output {
        match self.0 {
            Path::Portable(isa) => work.run(isa),
            // SAFETY: an `Avx2` is only made by `Avx2::detect`, which found exactly the features that `avx2` enables.
            #[cfg(target_arch = "x86_64")]
            Path::Avx2(isa) => unsafe { avx2(isa, work) },
            // SAFETY: an `Avx512` is only made by `Avx512::detect`, which found exactly the features that `avx512` enables.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512(isa) => unsafe { avx512(isa, work) },
            // SAFETY: an `Avx512Bf16` is only made by its `detect`, which found exactly the features that `avx512_bf16`
            // enables.
            #[cfg(target_arch = "x86_64")]
            Path::Avx512Bf16(isa) => unsafe { avx512_bf16(isa, work) },
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2<W: Work>(isa: Avx2, work: W) -> W::Output {
    work.run(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
fn avx512<W: Work>(isa: Avx512, work: W) -> W::Output {
    work.run(isa)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn avx512_bf16<W: Work>(isa: Avx512Bf16, work: W) -> W::Output {
    work.run(isa)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_path_is_everywhere_and_the_best_is_one_of_the_available() {
        let available = Cpu::available();
        assert_eq!(available[0].name(), "portable");
        assert!(available.contains(&Cpu::best()));
    }

    #[test]
    fn a_named_path_is_taken_and_an_unknown_one_ignored() {
        for cpu in Cpu::available() {
            assert_eq!(Cpu::choose(Some(cpu.name())), cpu);
        }
        let best = Cpu::choose(None);
        assert_eq!(Cpu::choose(Some("abacus")), best);
        assert_eq!(Cpu::choose(Some("")), best);
        assert_eq!(Some(best), Cpu::available().last().copied());
    }
}
