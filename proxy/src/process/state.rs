//! The last good snapshot on disk: what a proxy starts from when control is absent.

use std::{fs, path::PathBuf};

use meshring_core::snapshot::Snapshot;

/// The file's name in the state directory.
const FILE: &str = "last-good.snapshot";

/// The state directory.
#[derive(Debug)]
pub(crate) struct StateDir {
    dir: PathBuf,
}

impl StateDir {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The last good snapshot, if there is a sound one. What is wrong with an unsound one is logged.
    pub(crate) fn load(&self) -> Option<Snapshot> {
        let path = self.dir.join(FILE);
        if !path.exists() {
            return None;
        }
        match Snapshot::load(&path) {
            Ok(snapshot) => Some(snapshot),
            Err(error) => {
                tracing::error!(path = %path.display(), %error, "the last good snapshot is unusable and is ignored");
                None
            }
        }
    }

    /// Remembers a snapshot. A full disk costs the next cold start, not this process.
    pub(crate) fn store(&self, snapshot: &Snapshot) {
        let path = self.dir.join(FILE);
        if let Err(error) = fs::create_dir_all(&self.dir).and_then(|()| snapshot.store(&path)) {
            tracing::warn!(path = %path.display(), %error, "cannot store the last good snapshot");
        }
    }
}
