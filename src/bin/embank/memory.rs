//! How much memory this process uses. Known on Linux alone.

/// Resident memory, in megabytes of 2^20 bytes.
pub fn resident_mb() -> Option<f64> {
    field("VmRSS:")
}

/// The most that was resident so far.
pub fn peak_resident_mb() -> Option<f64> {
    field("VmHWM:")
}

/// A field of `/proc/self/status`, which states sizes in kB.
fn field(name: &str) -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    let kilobytes: f64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes / 1024.0)
}
