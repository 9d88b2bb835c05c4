//! What the command is doing, on stderr.

use std::cell::Cell;
use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

/// One line that is written over on a terminal, and a line per step elsewhere.
pub(super) struct Progress {
    terminal: bool,
    started: Instant,
    steps: usize,
    done: Cell<usize>,
}

impl Progress {
    pub(super) fn new(steps: usize) -> Self {
        Self { terminal: std::io::stderr().is_terminal(), started: Instant::now(), steps, done: Cell::new(0) }
    }

    /// Starts the clock of the time that is left.
    pub(super) fn restart(&mut self) {
        self.started = Instant::now();
    }

    pub(super) fn show(&self, what: &str) {
        let mut stderr = std::io::stderr().lock();
        // Progress that nobody reads is no reason to stop.
        let _ = if self.terminal { write!(stderr, "\r\x1b[2K{what}") } else { writeln!(stderr, "{what}") };
        let _ = stderr.flush();
    }

    /// Shows a step of the measurement and how long the rest will take.
    pub(super) fn step(&self, what: &str) {
        let (done, elapsed) = (self.done.get(), self.started.elapsed());
        let left = match done {
            0 => String::new(),
            _ => {
                let left = elapsed.as_secs_f64() / done as f64 * self.steps.saturating_sub(done) as f64;
                format!(", about {} left", humantime::format_duration(Duration::from_secs(left.ceil() as u64)))
            }
        };
        self.done.set(done + 1);
        self.show(&format!("[{}/{}] {what}{left}", done + 1, self.steps));
    }

    /// A line that stays.
    pub(super) fn note(&self, what: &str) {
        self.clear();
        let _ = writeln!(std::io::stderr(), "{what}");
    }

    fn clear(&self) {
        if self.terminal {
            let _ = write!(std::io::stderr(), "\r\x1b[2K");
        }
    }
}

impl Drop for Progress {
    /// Leaves a clean line for the result or the error.
    fn drop(&mut self) {
        self.clear();
    }
}
