//! The bypass around TCP as a further column: a cgroup for everything that is measured, and programs attached to it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Context, bail};

use super::launch::Site;
use crate::limits::{CHILD_POLL_INTERVAL, READY_MAX};
use crate::process::{Process, Spawn};

/// A cgroup that this process, and so each child from now on, is in; left and removed with the value.
pub(super) struct Group {
    path: PathBuf,
    /// Where this process was.
    before: PathBuf,
}

impl Group {
    pub(super) fn enter() -> anyhow::Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot see what is mounted")?;
        let is_cgroup2 = |line: &&str| line.split(" - ").nth(1).is_some_and(|rest| rest.starts_with("cgroup2 "));
        let root = mounts.lines().find(is_cgroup2).and_then(|line| line.split(' ').nth(4));
        let root = PathBuf::from(root.context("--bypass needs cgroup v2, which is not mounted here")?);
        let own = fs::read_to_string("/proc/self/cgroup").context("cannot see the own cgroup")?;
        let own = own.lines().find_map(|line| line.strip_prefix("0::/")).context("this process is in no cgroup v2")?;
        let before = root.join(own);
        let path = root.join(format!("meshring-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        let group = Self { path, before };
        fs::write(group.path.join("cgroup.procs"), std::process::id().to_string())
            .with_context(|| format!("cannot join the cgroup {}", group.path.display()))?;
        Ok(group)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // What is left behind is an empty cgroup.
        let _ = fs::write(self.before.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(&self.path);
    }
}

/// Takes the connections of a peer's processes around TCP while the process that comes back lives.
pub(super) fn attach(meshring: &Path, site: &Site<'_>, pids: &[u32]) -> anyhow::Result<Process> {
    let [pid] = pids else { bail!("one process is expected, there are {}", pids.len()) };
    let group = site.bypass.context("no cgroup for the bypass")?;
    let mut arguments: Vec<OsString> = ["bypass", "attach", "--cgroup"].map(OsString::from).to_vec();
    arguments.extend([group.into(), "--pid".into(), pid.to_string().into()]);
    let mut process = Process::spawn(&Spawn {
        name: "bypass",
        program: meshring,
        arguments,
        core: Some(site.load_core),
        log_dir: &site.dir,
        take_stdout: true,
    })?;
    let line = process.read_line()?;
    if !line.contains("around TCP") {
        bail!("the bypass was not attached; {}", process.quote_log());
    }
    Ok(process)
}

/// Waits until control has registered the proxy.
pub(super) fn wait_until_registered(meshring: &Path, site: &Site<'_>) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY_MAX;
    while Instant::now() < deadline {
        let mut command = Command::new(meshring);
        command.arg("--run-dir").arg(site.dir.join("run")).args(["bypass", "show", "-o", "json"]);
        let output = command.output().context("cannot run meshring bypass show")?;
        if String::from_utf8_lossy(&output.stdout).contains("\"pid\"") {
            return Ok(());
        }
        thread::sleep(CHILD_POLL_INTERVAL);
    }
    bail!("control has not registered the proxy for the bypass")
}
