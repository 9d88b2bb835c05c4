//! What control remembers over a restart: which number belongs to which content, and how it came about.

use std::io;

use meshring_core::id::Generation;
use serde::{Deserialize, Serialize};

use super::run_dir::RunDir;

const FILE_NAME: &str = "state.json";
/// Entries of the history that are kept: a page of `meshring history`, and 20 KB on the path of each publication.
const HISTORY_MAX: usize = 100;

/// A content checksum, written as 16 hexadecimal digits: JSON numbers lose bits beyond 2^53.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Checksum(pub u64);

impl std::fmt::Display for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl Serialize for Checksum {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Checksum {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        u64::from_str_radix(&text, 16).map(Checksum).map_err(serde::de::Error::custom)
    }
}

/// One change of the active generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The generation that became active.
    pub generation: Generation,
    /// When, in milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// Of its content.
    pub checksum: Checksum,
    /// Size of the snapshot in bytes.
    pub bytes: usize,
    /// What led to it: `start`, `files changed`, `apply`, `delete`, `rollback from 5`.
    pub cause: String,
    /// The first few changes: `configured VirtualService default/reviews`.
    pub changes: Vec<String>,
}

/// The active generation is older than what the sources say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolledBack {
    /// The generation that holds what the sources say.
    pub from: Generation,
}

/// Everything that is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The active generation; 0 for none yet.
    pub active: Generation,
    /// Its content's checksum.
    pub checksum: Checksum,
    /// No number above this was ever given to a proxy, refused ones included: a number never gets a second content. One ahead of the
    /// last one given while control runs, so that the next change need not wait for the disk.
    pub reserved: Generation,
    /// Checksum of what the sources said at the last publication.
    pub desired: Checksum,
    /// Set while the active generation is not what the sources say.
    pub rolled_back: Option<RolledBack>,
    /// Resources in the configuration files at the last publication: 0 means that an empty directory is no accident.
    pub file_resources: usize,
    /// Oldest first.
    pub history: Vec<HistoryEntry>,
}

impl State {
    /// Reads it. A file that is not understood is set aside under another name with a warning, never trusted.
    pub fn load(run_dir: &RunDir) -> io::Result<Self> {
        let Some(content) = run_dir.load(FILE_NAME)? else { return Ok(Self::default()) };
        match serde_json::from_slice(&content) {
            Ok(state) => Ok(state),
            Err(error) => {
                let aside = run_dir.join("state.json.unreadable");
                tracing::warn!(
                    "{}: {error}; kept as {}, starting anew",
                    run_dir.join(FILE_NAME).display(),
                    aside.display()
                );
                std::fs::rename(run_dir.join(FILE_NAME), aside)?;
                Ok(Self::default())
            }
        }
    }

    /// Writes it; whether that went well. A failure is no reason to stop traffic from changing: it is logged.
    pub fn store(&self, run_dir: &RunDir) -> bool {
        let stored =
            serde_json::to_vec(self).map_err(io::Error::other).and_then(|json| run_dir.store(FILE_NAME, &json));
        if let Err(error) = stored {
            tracing::error!(
                "{}: {error}; after a restart control will publish the configuration under a new number",
                run_dir.join(FILE_NAME).display()
            );
            return false;
        }
        true
    }

    /// Adds an entry and drops the oldest beyond the bound.
    pub fn remember(&mut self, entry: HistoryEntry) {
        if self.history.len() >= HISTORY_MAX {
            self.history.drain(..=self.history.len() - HISTORY_MAX);
        }
        self.history.push(entry);
    }

    /// The content that a number stood for, as far as the history goes back.
    #[must_use]
    pub fn checksum_of(&self, generation: Generation) -> Option<u64> {
        self.history.iter().rev().find(|entry| entry.generation == generation).map(|entry| entry.checksum.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_survives_and_an_unreadable_one_is_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::open(dir.path()).unwrap();
        let mut state = State { active: Generation(7), checksum: Checksum(u64::MAX), ..State::default() };
        for number in 0..150 {
            let (generation, checksum) = (Generation(number), Checksum(number));
            state.remember(HistoryEntry {
                generation,
                at_ms: 1,
                checksum,
                bytes: 2,
                cause: "apply".into(),
                changes: vec![],
            });
        }
        assert_eq!((state.history.len(), state.history[0].generation), (HISTORY_MAX, Generation(50)));
        assert!(state.store(&run_dir));
        assert_eq!(State::load(&run_dir).unwrap(), state);
        std::fs::write(run_dir.join(FILE_NAME), b"{\"active\":").unwrap();
        assert_eq!(State::load(&run_dir).unwrap(), State::default());
        assert!(run_dir.join("state.json.unreadable").exists());
    }
}
