//! What computes a local model: the processor, or a graphics processor where the build and the machine have one.
//!
//! Guarantees: looking for a graphics processor never fails, whatever drivers are there; one that was asked for by its
//! number and is not there is refused. The device is no part of an embedder's identity. Must not know: models.

use burn::tensor::Device;

use super::encoder::Processor;
use crate::error::{Error, Result};
use crate::kernels::Cpu;

/// What computes a local model.
///
/// Vectors of the same precision agree to a cosine of 0.9999 whatever computes them, so a bank may be filled by one device
/// and searched by another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LocalDevice {
    /// The first graphics processor that is found, else the processor.
    #[default]
    Auto,
    /// All cores of the processor.
    Cpu,
    /// The graphics processor with this number, counted from 0. Only in builds with the feature `wgpu` (Vulkan, Metal,
    /// DirectX 12) or `cuda`; in builds with both, those that CUDA finds come first.
    Gpu(usize),
}

impl LocalDevice {
    /// Looks for the device. Loads drivers where the build has any, so it belongs on the model thread.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] where the graphics processor of that number is not there.
    pub(super) fn find(self) -> Result<Processor> {
        let number = match self {
            Self::Cpu => return Ok(Processor::Cpu(Cpu::best())),
            Self::Auto => 0,
            Self::Gpu(number) => number,
        };
        let mut gpus = gpus();
        if number < gpus.len() {
            return Ok(Processor::Device(gpus.swap_remove(number)));
        }
        match self {
            Self::Auto | Self::Cpu => Ok(Processor::Cpu(Cpu::best())),
            Self::Gpu(_) if !HAS_GPU_SUPPORT => refuse(
                "this build computes on the processor only; build it with the feature `wgpu` or `cuda`".to_owned(),
            ),
            Self::Gpu(_) => refuse(format!("there is no graphics processor {number}; found: {}", gpus.len())),
        }
    }
}

fn refuse(reason: String) -> Result<Processor> {
    Err(Error::InvalidSetting { setting: "device", reason })
}

/// The instructions that local models are computed with on this processor: `portable`, `avx2`, `avx512` or `avx512-bf16`.
pub fn cpu_instructions() -> &'static str {
    Cpu::best().name()
}

/// Whether this build can compute on a graphics processor at all.
const HAS_GPU_SUPPORT: bool = cfg!(any(feature = "wgpu", feature = "cuda"));

/// The graphics processors of this machine.
fn gpus() -> Vec<Device> {
    #[cfg(feature = "cuda")]
    let cuda = Device::enumerate(burn::tensor::DeviceType::Cuda).to_vec();
    #[cfg(not(feature = "cuda"))]
    let cuda: Vec<Device> = Vec::new();

    #[cfg(feature = "wgpu")]
    let wgpu: Vec<Device> = {
        // A software rasteriser, which is slower than the processor's own path.
        let software = Device::wgpu(burn::tensor::DeviceKind::Cpu);
        let all = Device::enumerate(burn::tensor::DeviceType::Wgpu).to_vec();
        all.into_iter().filter(|device| *device != software).collect()
    };
    #[cfg(not(feature = "wgpu"))]
    let wgpu: Vec<Device> = Vec::new();

    [cuda, wgpu].concat()
}

/// `auto`, `cpu`, `gpu` (the first one) or `gpu:N`.
impl std::str::FromStr for LocalDevice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let number = || text.strip_prefix("gpu:")?.parse().ok();
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "gpu" => Ok(Self::Gpu(0)),
            _ => number().map(Self::Gpu).ok_or_else(|| Error::InvalidSetting {
                setting: "device",
                reason: format!("`{text}` is not known; write auto, cpu, gpu or gpu:N"),
            }),
        }
    }
}

/// As it is parsed.
impl std::fmt::Display for LocalDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(number) => write!(f, "gpu:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_written_as_they_are_read() {
        for device in [LocalDevice::Auto, LocalDevice::Cpu, LocalDevice::Gpu(0), LocalDevice::Gpu(12)] {
            assert_eq!(device.to_string().parse::<LocalDevice>().unwrap(), device);
        }
        assert_eq!("gpu".parse::<LocalDevice>().unwrap(), LocalDevice::Gpu(0));
        for wrong in ["", "GPU", "gpu:", "gpu:-1", "gpu:x", "tpu"] {
            let said = wrong.parse::<LocalDevice>().unwrap_err().to_string();
            assert_eq!(said, format!("device: `{wrong}` is not known; write auto, cpu, gpu or gpu:N"));
        }
    }

    #[test]
    fn without_a_graphics_processor_auto_is_the_processor_and_a_number_is_refused() {
        // No machine has that many.
        assert!(matches!(LocalDevice::Gpu(usize::MAX).find(), Err(Error::InvalidSetting { setting: "device", .. })));
        if !HAS_GPU_SUPPORT {
            assert!(matches!(LocalDevice::Auto.find(), Ok(Processor::Cpu(_))));
        }
        assert!(matches!(LocalDevice::Cpu.find(), Ok(Processor::Cpu(_))));
    }
}
