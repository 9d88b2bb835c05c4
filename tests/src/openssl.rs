//! The program `openssl`, spoken to while it runs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Child, ChildStdin, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use crate::wait;

/// A running `openssl` that is spoken to.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: ChildStdin,
    output: Arc<Mutex<String>>,
    /// Who reads what it prints.
    readers: Vec<JoinHandle<()>>,
}

impl Session {
    /// Starts it.
    ///
    /// # Panics
    /// When it cannot be started.
    #[must_use]
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = Arc::<Mutex<String>>::default();
        let streams: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("a pipe")), Box::new(child.stderr.take().expect("a pipe"))];
        let read = |stream| {
            let output = Arc::clone(&output);
            thread::spawn(move || {
                let mut lines = BufReader::new(stream);
                let mut line = Vec::new();
                while lines.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
                    let text = String::from_utf8_lossy(&line);
                    output.lock().unwrap_or_else(PoisonError::into_inner).push_str(&text);
                    line.clear();
                }
            })
        };
        let readers = streams.into_iter().map(read).collect();
        Self { stdin: child.stdin.take().expect("a pipe"), child, output, readers }
    }

    /// Types words, of which `Q`, `k` and `K` at the beginning of a line are commands of `s_client`.
    ///
    /// # Panics
    /// When it has ended.
    pub fn say(&mut self, words: &str) {
        self.stdin.write_all(words.as_bytes()).and_then(|()| self.stdin.flush()).expect("openssl reads");
    }

    /// All that it has printed so far.
    #[must_use]
    pub fn output(&self) -> String {
        self.output.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a text has come so often.
    ///
    /// # Panics
    /// When it ends without it, or does not print it in time.
    pub fn wait_for(&self, needle: &str, times: usize) -> String {
        wait::until(&format!("{times} times {needle:?}"), || {
            // Before the look: what it has printed last is there once nobody reads any more.
            let ended = self.readers.iter().all(JoinHandle::is_finished);
            let output = self.output();
            if output.matches(needle).count() >= times {
                return Some(output);
            }
            assert!(!ended, "ended without {needle:?}:\n{output}");
            None
        })
    }

    /// Waits until it ends by itself.
    ///
    /// # Panics
    /// When it does not in time.
    pub fn wait_for_exit(&mut self) -> ExitStatus {
        wait::until("the end of openssl", || self.child.try_wait().expect("a child of ours"))
    }

    /// Ends it without giving it a chance to say goodbye.
    pub fn kill(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            println!("---- openssl\n{}\n----", self.output());
        }
    }
}
