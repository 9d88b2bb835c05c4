//! The last good snapshot on disk: what a proxy starts from when control is absent.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::PathBuf,
};

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
        // What is above it may be control's run directory, which is not ours to close.
        let above = self.dir.parent().map_or(Ok(()), fs::create_dir_all);
        let made = above.and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(&self.dir));
        if let Err(error) = made.and_then(|()| snapshot.store(&path)) {
            // In control's run directory a proxy of another user can make none.
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => "; --state-dir says where else it may be",
                _ => "",
            };
            tracing::warn!(path = %path.display(), %error, "cannot store the last good snapshot{hint}");
        }
    }
}
