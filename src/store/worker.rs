//! Who holds a lease: a name that says which process it is, so that a lease of a process that is known to be gone need not
//! be waited for.
//!
//! On Linux the name is the boot, the process namespace, the pid and the process's start time; together they are never used
//! twice. Elsewhere it is random, and leases simply run out.

use std::fmt;
use std::sync::atomic::{AtomicU32, Ordering};

/// One worker of one process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkerId {
    machine: String,
    pid: u32,
    started: String,
    number: u32,
}

impl WorkerId {
    /// A new worker of this process.
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let pid = std::process::id();
        Self {
            machine: machine().unwrap_or_else(|| uuid::Uuid::new_v4().simple().to_string()),
            pid,
            started: start_time(pid).unwrap_or_default(),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// Reads what [`Display`](fmt::Display) wrote.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let worker = Self {
            machine: parts.next()?.to_owned(),
            pid: parts.next()?.parse().ok()?,
            started: parts.next()?.to_owned(),
            number: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(worker)
    }

    /// Whether the process is known to have ended. `false` where it runs, or where it cannot be known.
    pub(crate) fn has_ended(&self) -> bool {
        let here = machine();
        here.is_some_and(|here| here == self.machine)
            && !self.started.is_empty()
            && start_time(self.pid).is_none_or(|started| started != self.started)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}/{}", self.machine, self.pid, self.started, self.number)
    }
}

/// This boot of this machine and this process namespace; `None` where the system does not say.
fn machine() -> Option<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let namespace = std::fs::read_link("/proc/self/ns/pid").ok()?;
    let digest = blake3::hash(format!("{} {}", boot.trim(), namespace.display()).as_bytes());
    Some(digest.to_hex().get(..16)?.to_owned())
}

/// Clock ticks from boot until the process began: field 22 of proc(5)'s `stat`. `None` if there is no such process, or it
/// has ended and only its parent has not noticed.
fn start_time(pid: u32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in parentheses that may hold spaces; the rest follows its last parenthesis.
    let mut rest = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = rest.next()?;
    let started = rest.nth(18)?;
    (state != "Z" && state != "X").then(|| started.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_running_worker_has_not_ended_and_survives_printing() {
        let worker = WorkerId::new();
        assert!(!worker.has_ended());
        assert_eq!(WorkerId::parse(&worker.to_string()), Some(worker.clone()));
        assert_ne!(worker, WorkerId::new());
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_reused_pid_is_not_the_same_worker() {
        let worker = WorkerId { started: "1".into(), ..WorkerId::new() };
        assert!(worker.has_ended());
    }

    #[test]
    fn a_worker_of_another_machine_is_never_called_ended() {
        let worker = WorkerId { machine: "elsewhere".into(), started: "1".into(), ..WorkerId::new() };
        assert!(!worker.has_ended());
    }
}
