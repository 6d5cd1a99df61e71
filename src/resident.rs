//! The largest resident size of this process over a while, where the system tells: Linux does.
//!
//! A thread reads it fifty times a second; where the size passes all that the process ever had, the kernel's own high-water
//! mark is exact. Must not know: what is going on meanwhile, memory limits.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// Between two looks: a build of a second is looked at fifty times, and a look takes some ten microseconds.
const EVERY: Duration = Duration::from_millis(20);

/// Watches from its making to its end.
#[derive(Debug)]
pub(crate) struct PeakWatch {
    /// Dropped to end the thread.
    stop: Sender<()>,
    thread: JoinHandle<u64>,
    high_water_before: u64,
}

impl PeakWatch {
    /// `None` where the system does not tell.
    pub(crate) fn start() -> Option<Self> {
        let high_water_before = status_bytes("VmHWM:")?;
        let (stop, stopped) = channel();
        let thread = std::thread::Builder::new().name("embank-peak".to_owned()).spawn(move || watch(&stopped)).ok()?;
        Some(Self { stop, thread, high_water_before })
    }

    /// Bytes at the peak, the program itself included.
    pub(crate) fn finish(self) -> Option<u64> {
        drop(self.stop);
        let seen = self.thread.join().ok()?;
        let high_water = status_bytes("VmHWM:")?;
        Some(if high_water > self.high_water_before { high_water } else { seen })
    }
}

fn watch(stopped: &Receiver<()>) -> u64 {
    let mut peak = 0;
    let mut goes_on = true;
    while goes_on {
        goes_on = stopped.recv_timeout(EVERY) == Err(RecvTimeoutError::Timeout);
        // The last look is after the end was asked for.
        peak = peak.max(status_bytes("VmRSS:").unwrap_or(0));
    }
    peak
}

/// A field of `/proc/self/status`, which states sizes in kB.
fn status_bytes(field: &str) -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn memory_that_is_touched_between_start_and_finish_is_in_the_peak() {
        const BYTES: usize = 64 << 20;
        let before = status_bytes("VmRSS:").unwrap();
        let running = PeakWatch::start().unwrap();
        let touched = vec![1_u8; BYTES];
        // Held until the watch has ended, whose last look comes after it was asked to.
        let while_held = status_bytes("VmRSS:").unwrap();
        let peak = running.finish().unwrap();
        // Without the kernel's mark, which stands higher already where other tests have run.
        let (stop, stopped) = channel();
        drop(stop);
        let seen = watch(&stopped);
        assert_eq!(touched.iter().map(|byte| u64::from(*byte)).sum::<u64>(), BYTES as u64);
        assert!(while_held >= before + (BYTES as u64) / 2, "{before} {while_held}");
        assert!(peak.min(seen) >= while_held - (8 << 20), "{peak} {seen} {while_held}");
    }
}
