//! A memory cgroup of our own, of version 1 or 2, as the machine has it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// A group whose processes get no more than its limit; gone with the value, once they are.
pub(super) struct MemoryGroup {
    path: PathBuf,
    is_v2: bool,
}

impl MemoryGroup {
    /// Makes one; says why not where that is not permitted, or not how this machine is set up.
    pub(super) fn new(limit_bytes: u64) -> anyhow::Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup/memory");
        let is_v2 = !v1.join("memory.limit_in_bytes").exists() && !v1.join("memory.usage_in_bytes").exists();
        let parent = if is_v2 { Path::new("/sys/fs/cgroup") } else { v1 };
        if is_v2 {
            // May be on already, or not ours to switch: the limit's file, or its absence, tells.
            let _ = fs::write(parent.join("cgroup.subtree_control"), "+memory");
        }
        let path = parent.join(format!("meshring-bench-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| format!("cannot make the cgroup {}", path.display()))?;
        let group = Self { path, is_v2 };
        group.set(if is_v2 { "memory.max" } else { "memory.limit_in_bytes" }, &limit_bytes.to_string())?;
        // Swapping would hide what is to be seen. Not every kernel accounts for it.
        let swap = if is_v2 { ("memory.swap.max", 0) } else { ("memory.memsw.limit_in_bytes", limit_bytes) };
        let _ = group.set(swap.0, &swap.1.to_string());
        Ok(group)
    }

    fn set(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let path = self.path.join(name);
        fs::write(&path, value).with_context(|| format!("cannot write {value} to {}", path.display()))
    }

    /// A process writes its PID here to join.
    pub(super) fn procs(&self) -> PathBuf {
        self.path.join("cgroup.procs")
    }

    /// Processes that the kernel has killed for want of memory.
    pub(super) fn oom_kills(&self) -> anyhow::Result<u64> {
        let path = self.path.join(if self.is_v2 { "memory.events" } else { "memory.oom_control" });
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        oom_kills_in(&text).with_context(|| format!("{} tells no oom_kill", path.display()))
    }

    /// The most that was used, in bytes.
    pub(super) fn peak_bytes(&self) -> Option<u64> {
        let name = if self.is_v2 { "memory.peak" } else { "memory.max_usage_in_bytes" };
        fs::read_to_string(self.path.join(name)).ok()?.trim().parse().ok()
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        // Fails while processes are in it; those are dropped first.
        let _ = fs::remove_dir(&self.path);
    }
}

fn oom_kills_in(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("oom_kill "))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_found_in_either_version() {
        assert_eq!(oom_kills_in("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(oom_kills_in("low 0\nhigh 0\nmax 12\noom 0\noom_kill 0\noom_group_kill 0\n"), Some(0));
        assert_eq!(oom_kills_in("under_oom 0\n"), None);
    }
}
