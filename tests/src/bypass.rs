//! A cgroup for the processes of a test, this one included, so that a bypass can be installed on it and on nothing else.

use std::{
    fs,
    path::{Path, PathBuf},
    process,
    sync::{Mutex, PoisonError},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::control::Control;

/// How many of [`Cgroup`] there are: a process is in one cgroup at a time.
static ENTERED: Mutex<usize> = Mutex::new(0);

/// While it lives this process is in a cgroup of its own, and so is each child that is started.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    path: PathBuf,
}

impl Cgroup {
    /// Makes it, and sees that a bypass can be installed; else says what is missing.
    #[must_use]
    pub fn enter() -> Option<Self> {
        let cgroup = Self::make()?;
        let control = cgroup.control("auto", &[]);
        if let Some(refusal) = control.api("/v1/bypass")["refusal"].as_str() {
            println!("skipped: {refusal}");
            return None;
        }
        drop(control);
        Some(cgroup)
    }

    fn make() -> Option<Self> {
        let root = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"].map(PathBuf::from);
        let Some(root) = root.into_iter().find(|root| root.join("cgroup.procs").exists()) else {
            println!("skipped: cgroup v2 is not mounted");
            return None;
        };
        let path = root.join(format!("meshring-tests-{}", process::id()));
        let mut entered = ENTERED.lock().unwrap_or_else(PoisonError::into_inner);
        if *entered == 0 {
            let moved = fs::create_dir(&path).and_then(|()| join(&path));
            if let Err(error) = moved {
                println!("skipped: {}: {error}", path.display());
                return None;
            }
        }
        *entered += 1;
        Some(Self { root, path })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A control process with a bypass on it, or without.
    #[must_use]
    pub fn control(&self, mode: &str, files: &[(&str, &str)]) -> Control {
        let dir = TempDir::new().expect("a directory");
        let config = dir.path().join("config");
        fs::create_dir(&config).expect("a directory");
        for (name, text) in files {
            fs::write(config.join(name), text).expect("a file");
        }
        let path = self.path.display().to_string();
        Control::start_with_arguments(dir, "config", &["--bypass", mode, "--bypass-cgroup", &path])
    }
}

fn join(path: &Path) -> std::io::Result<()> {
    fs::write(path.join("cgroup.procs"), process::id().to_string())
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let mut entered = ENTERED.lock().unwrap_or_else(PoisonError::into_inner);
        *entered -= 1;
        if *entered == 0 {
            // The children of the last test are gone, and reaped.
            let _ = join(&self.root);
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// What `meshring bypass show` says of a proxy: `connections_bypass`, ...
#[must_use]
pub fn counter(control: &Control, workload: &str, name: &str) -> Option<u64> {
    let shown = control.api("/v1/bypass");
    let of_workload = |proxy: &&Value| proxy["proxy"] == workload;
    shown["proxies"].as_array()?.iter().find(of_workload)?["counters"][name].as_u64()
}
