//! Progress on stderr: bars with rate and time left on a terminal, plain lines every few seconds otherwise.
//!
//! Driven by the library's progress events alone. Must not know: commands.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use embank::progress::{Listener, Progress, Stage};
use indicatif::{HumanBytes, HumanCount, HumanDuration, MultiProgress, ProgressBar, ProgressState, ProgressStyle};

use crate::output::printable;

/// How often a stage writes a line where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// How often a bar is drawn while nothing happens, so that its time goes on.
const TICK: Duration = Duration::from_millis(250);

/// Where progress is shown; clones share it.
#[derive(Clone)]
pub struct Display(Arc<Shared>);

struct Shared {
    form: Form,
    bars: MultiProgress,
    running: Mutex<HashMap<Stage, Running>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Bars,
    Lines,
    Nothing,
}

struct Running {
    total: Option<u64>,
    began: Instant,
    said: Instant,
    bar: Option<ProgressBar>,
}

impl Display {
    pub fn new(quiet: bool) -> Self {
        let form = match (quiet, io::stderr().is_terminal()) {
            (true, _) => Form::Nothing,
            (false, true) => Form::Bars,
            (false, false) => Form::Lines,
        };
        Self(Arc::new(Shared { form, bars: MultiProgress::new(), running: Mutex::default() }))
    }

    /// What the library reports to.
    pub fn listener(&self) -> Listener {
        let display = self.clone();
        Listener::new(move |event| display.show(event))
    }

    /// Shows a line above the bars, quiet or not.
    pub fn say(&self, line: &str) {
        // Without a stderr there is nobody to tell.
        self.0.bars.suspend(|| {
            let _ = writeln!(io::stderr(), "{}", printable(line));
        });
    }

    /// Takes the bars away, also those of stages that ended by an error.
    pub fn clear(&self) {
        for (_, stage) in self.running().drain() {
            if let Some(bar) = stage.bar {
                bar.finish_and_clear();
            }
        }
    }

    /// A writer for log lines that does not tear the bars.
    pub fn log_writer(&self) -> LogWriter {
        LogWriter(self.0.bars.clone())
    }

    fn show(&self, event: Progress) {
        if self.0.form == Form::Nothing {
            return;
        }
        match event {
            Progress::Started { stage, total } => self.start(stage, total),
            Progress::Advanced { stage, done } => self.advance(stage, done),
            Progress::Finished { stage } => {
                let ended = self.running().remove(&stage);
                if let Some(bar) = ended.and_then(|running| running.bar) {
                    bar.finish_and_clear();
                }
            }
            Progress::Note(note) => self.say(&note),
            _ => {}
        }
    }

    fn start(&self, stage: Stage, total: Option<u64>) {
        let bar = (self.0.form == Form::Bars).then(|| {
            let bar = self.0.bars.add(total.map_or_else(ProgressBar::no_length, ProgressBar::new));
            bar.set_style(style(stage, total.is_some()));
            bar.set_prefix(stage.label());
            bar.enable_steady_tick(TICK);
            bar
        });
        let now = Instant::now();
        let before = self.running().insert(stage, Running { total, began: now, said: now, bar });
        if let Some(bar) = before.and_then(|running| running.bar) {
            bar.finish_and_clear();
        }
    }

    fn advance(&self, stage: Stage, done: u64) {
        let mut all = self.running();
        let Some(running) = all.get_mut(&stage) else { return };
        if let Some(bar) = &running.bar {
            bar.set_position(done);
        } else if running.said.elapsed() >= LINE_EVERY {
            running.said = Instant::now();
            let line = line(stage, done, running.total, running.began.elapsed());
            drop(all);
            self.say(&line);
        }
    }

    fn running(&self) -> MutexGuard<'_, HashMap<Stage, Running>> {
        // The map is whole after any panic: every change to it is one call.
        self.0.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn style(stage: Stage, has_total: bool) -> ProgressStyle {
    let template = match (stage, has_total) {
        (Stage::Pull, true) => "{prefix:>12} {bar:30} {bytes}/{total_bytes}  {bytes_per_sec}  {eta} left",
        (Stage::Pull, false) => "{prefix:>12} {spinner} {bytes}  {bytes_per_sec}",
        (_, true) => "{prefix:>12} {bar:30} {human_pos}/{human_len}  {rate}  {eta} left",
        (_, false) => "{prefix:>12} {spinner} {human_pos}  {rate}",
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).with_key(
        "rate",
        |state: &ProgressState, out: &mut dyn std::fmt::Write| {
            let _ = write!(out, "{}/s", rate(state.per_sec()));
        },
    )
}

/// `embed: 4,096 of 100,000 (4 %), 812/s, 2 minutes left`.
fn line(stage: Stage, done: u64, total: Option<u64>, elapsed: Duration) -> String {
    let amount = |units| match stage {
        Stage::Pull => HumanBytes(units).to_string(),
        _ => HumanCount(units).to_string(),
    };
    let per_second = done as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    let speed = match stage {
        Stage::Pull => HumanBytes(per_second as u64).to_string(),
        _ => rate(per_second),
    };
    let mut line = format!("{}: {}", stage.label(), amount(done));
    // Writing to a String cannot fail.
    if let Some(total) = total.filter(|total| *total > 0) {
        let _ = write!(line, " of {} ({} %)", amount(total), done.min(total) * 100 / total);
    }
    let _ = write!(line, ", {speed}/s");
    if let Some(total) = total
        && done > 0
    {
        let left = elapsed.mul_f64(total.saturating_sub(done) as f64 / done as f64);
        let _ = write!(line, ", {} left", HumanDuration(left));
    }
    line
}

fn rate(per_second: f64) -> String {
    if per_second < 10.0 { format!("{per_second:.1}") } else { HumanCount(per_second as u64).to_string() }
}

/// Writes a log line while the bars stand aside.
pub struct LogWriter(MultiProgress);

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_how_fast_and_how_long() {
        let at = |done, total| line(Stage::Backfill, done, total, Duration::from_secs(10));
        assert_eq!(at(1_000, Some(4_000)), "embed: 1,000 of 4,000 (25 %), 100/s, 30 seconds left");
        assert_eq!(at(25, None), "embed: 25, 2.5/s");
        assert_eq!(at(0, Some(10)), "embed: 0 of 10 (0 %), 0.0/s");
    }
}
