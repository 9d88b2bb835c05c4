//! Child processes: output captured, ended with their owner, shown when a test fails.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::wait;

/// How long the last lines of a process that has ended may take to be read, on a busy machine.
const LAST_WORDS_MAX: Duration = Duration::from_secs(5);

/// A running (or ended) child with all that it has printed.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    output: Output,
    /// Who reads its output and its errors, each to the end.
    collecting: [JoinHandle<()>; 2],
}

#[derive(Debug, Clone, Default)]
struct Output(Arc<Mutex<Vec<String>>>);

impl Output {
    fn collect(&self, stream: impl Read + Send + 'static) -> JoinHandle<()> {
        let output = self.clone();
        thread::spawn(move || {
            let mut lines = BufReader::new(stream);
            let mut line = Vec::new();
            while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                output.0.lock().unwrap_or_else(PoisonError::into_inner).push(text);
                line.clear();
            }
        })
    }

    fn lines(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Process {
    /// Starts a command. Its standard output and error are collected line by line.
    #[must_use]
    pub fn start(name: &str, command: &mut Command) -> Self {
        command.env("NO_COLOR", "1").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        let output = Output::default();
        let stdout = output.collect(child.stdout.take().expect("a pipe"));
        let stderr = output.collect(child.stderr.take().expect("a pipe"));
        Self { name: name.to_owned(), child, output, collecting: [stdout, stderr] }
    }

    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything that it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lines().join("\n")
    }

    /// The first line that contains `text`, waited for.
    ///
    /// # Panics
    /// When the process ends without printing it, or prints nothing of the kind in time.
    pub fn wait_for_line(&mut self, text: &str) -> String {
        let what = format!("{} to print {text:?}", self.name);
        wait::until(&what, || {
            if let Some(line) = self.line(text) {
                return Some(line);
            }
            if let Some(status) = self.try_exit() {
                self.wait_for_last_words();
                let last = self.line(text);
                return Some(
                    last.unwrap_or_else(|| panic!("{} ended ({status}) without printing {text:?}", self.name)),
                );
            }
            None
        })
    }

    /// The first line so far that contains `text`.
    #[must_use]
    pub fn line(&self, text: &str) -> Option<String> {
        self.output.lines().into_iter().find(|line| line.contains(text))
    }

    /// Its exit status, if it has ended.
    pub fn try_exit(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("waiting for a child of ours")
    }

    /// Waits for its end, and for the last of what it has printed. Whoever has inherited its output and lives on is not waited for.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        let what = format!("{} to end", self.name);
        let status = wait::until(&what, || self.try_exit());
        self.wait_for_last_words();
        status
    }

    /// Of a process that has ended.
    fn wait_for_last_words(&self) {
        let begun = Instant::now();
        while !self.collecting.iter().all(JoinHandle::is_finished) && begun.elapsed() < LAST_WORDS_MAX {
            thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap_or_else(|error| panic!("cannot signal {}: {error}", self.name));
    }

    /// Ends it without giving it a chance to say goodbye.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Resident memory of its own, in KiB: without pages of files, which the kernel drops and brings back as it likes.
    #[must_use]
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(PathBuf::from(format!("/proc/{}/status", self.pid()))).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).expect("RssAnon of a running process")
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            println!("---- output of {} (pid {})\n{}\n----", self.name, self.pid(), self.output());
        }
    }
}
