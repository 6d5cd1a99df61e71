//! Ctrl-C and SIGTERM: the first one asks to stop after the batch in hand, the second one ends at once.
//!
//! Only commands that look at [`Cancel`] between batches watch for signals; all others end by them as usual.

use std::io::{self, Write};
use std::sync::OnceLock;

use embank::progress::Cancel;
use tokio::sync::watch;

/// What a stopped run says.
pub const STOPPED: &str = "stopped; run the same command again to continue";

/// The request to stop, and how it comes in.
pub struct Interrupt {
    cancel: Cancel,
    asked: watch::Sender<bool>,
    watched: OnceLock<()>,
}

impl Interrupt {
    pub fn new() -> Self {
        Self { cancel: Cancel::default(), asked: watch::Sender::new(false), watched: OnceLock::new() }
    }

    /// The token that steps look at.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Watches for signals from now on. `say` shows a line to the user.
    pub fn watch(&self, say: impl Fn(&str) + Send + 'static) {
        if self.watched.set(()).is_err() {
            return;
        }
        let (cancel, asked) = (self.cancel.clone(), self.asked.clone());
        tokio::spawn(async move {
            // Where signals cannot be watched, they end the process as usual.
            let Ok(()) = signal().await else { return };
            cancel.cancel();
            asked.send_replace(true);
            say("stopping after the batch in hand; once more ends at once");
            if signal().await.is_ok() {
                // A kill at any moment is safe; the next run continues.
                let _ = writeln!(io::stderr(), "{STOPPED}");
                std::process::exit(i32::from(crate::ERROR));
            }
        });
    }

    /// Returns once stopping was asked for.
    pub async fn asked(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.asked.subscribe().wait_for(|asked| *asked).await;
    }
}

#[cfg(unix)]
async fn signal() -> io::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        interrupted = tokio::signal::ctrl_c() => interrupted,
        _ = terminate.recv() => Ok(()),
    }
}

#[cfg(not(unix))]
async fn signal() -> io::Result<()> {
    tokio::signal::ctrl_c().await
}
